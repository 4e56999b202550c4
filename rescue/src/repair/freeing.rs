//! Freeing space: the only part of a repair without an undo, so it comes first, does little, and
//! looks twice.
//!
//! It must work with no byte and no inode free: removing a name needs neither, and keeping a tail
//! overwrites blocks that the file already has.

use std::fmt::Display;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::fs::Stat;
use rustix::io::Errno;

use super::confined::{Confined, Place, is_not_there, sync_file, times_of};
use super::journal::{Freed, StoredPath};
use crate::base::fault;
use crate::base::ui::Ui;
use crate::change::{FreeAction, Freeing};
use crate::in_use::held_open::{self, HeldOpen};

/// How much is copied at once when a tail is kept.
const CHUNK: usize = 1 << 20;

/// How far into the tail the start of a line is looked for.
const LONGEST_LINE: u64 = 1 << 20;

/// What freeing came to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Freeings {
    /// Files that gave back their space.
    pub freed: Vec<Freed>,
    /// Files left alone, one sentence each that says why.
    pub left_alone: Vec<String>,
    /// Whether one of those is no longer what it was: its beginning is overwritten, but it could
    /// not be cut.
    pub begun: bool,
}

/// A file that is neither as before nor freed. Its end is whole; freeing it again completes it.
#[derive(Debug, thiserror::Error)]
#[error("it was only begun to be cut, and the next repair completes that")]
struct Begun;

impl Freeings {
    /// Sum of the bytes given back.
    pub fn bytes(&self) -> u64 {
        self.freed.iter().map(|freed| freed.bytes).sum()
    }
}

enum Outcome {
    Freed(Freed),
    AlreadyDone,
    LeftAlone(String),
}

/// Frees what it can; a file that cannot be freed is reported, never an error, because the others
/// may be enough. What is given back can be used again only once the file systems are synchronised.
pub fn free(confined: &Confined, actions: &[FreeAction], ui: &dyn Ui) -> Freeings {
    let mut report = Freeings::default();
    if actions.is_empty() {
        return report;
    }
    let progress = ui.begin("Freeing space", Some(actions.len() as u64));
    let mut again = Vec::new();
    let mut others = Others::default();
    for action in actions {
        progress.message(&action.path.to_string());
        match free_one(confined, action, &mut others) {
            // A file with holes or shared blocks needs space to be cut; the files after it may
            // provide that.
            Err(error) if is_out_of_space(&error) => again.push(action),
            outcome => report.add(action, outcome),
        }
        progress.advance(1);
    }
    for action in again {
        report.add(action, free_one(confined, action, &mut others));
    }
    report
}

impl Freeings {
    /// Whether no file is other than before.
    pub fn changed_nothing(&self) -> bool {
        self.freed.is_empty() && !self.begun
    }

    fn add(&mut self, action: &FreeAction, outcome: Result<Outcome>) {
        match outcome {
            Ok(Outcome::Freed(freed)) => self.freed.push(freed),
            Ok(Outcome::AlreadyDone) => {}
            Ok(Outcome::LeftAlone(why)) => self.left_alone.push(why),
            Err(error) if error.is::<Begun>() => {
                self.begun = true;
                self.left_alone.push(format!("{}: {error:#}", action.path));
            }
            Err(error) => self
                .left_alone
                .push(format!("{} was left alone: {error:#}", action.path)),
        }
    }
}

fn is_out_of_space(error: &anyhow::Error) -> bool {
    error
        .downcast_ref::<Errno>()
        .is_some_and(|errno| *errno == Errno::NOSPC || *errno == Errno::DQUOT)
}

/// Who has files of a folder guest open; on a disk that was mounted for us alone nobody has.
#[derive(Default)]
struct Others(Option<(HeldOpen, Instant)>);

impl Others {
    /// Programs open files at any moment, so a look does not count for long.
    const FRESH: Duration = Duration::from_millis(500);

    /// Why the file must stay.
    fn objection(&mut self, place: &Place, stat: &Stat) -> Result<Option<String>> {
        let fresh = self.0.take().filter(|(_, at)| at.elapsed() < Self::FRESH);
        let (held, _) = self
            .0
            .insert(fresh.unwrap_or_else(|| (HeldOpen::scan(), Instant::now())));
        if let Some(holder) = held.holder(stat.st_dev, stat.st_ino) {
            return Ok(Some(format!("{holder} holds it open")));
        }
        // A process in a container of its own may not be seen here; the kernel knows it.
        let open = held_open::is_open_elsewhere(place.open_file()?.as_fd());
        Ok((open == Some(true))
            .then(|| "a process that cannot be seen from here holds it open".to_owned()))
    }
}

fn free_one(confined: &Confined, action: &FreeAction, others: &mut Others) -> Result<Outcome> {
    let path = &action.path;
    let place = match confined.place(path) {
        Ok(place) => place,
        Err(error) if is_not_there(&error) => return Ok(Outcome::AlreadyDone),
        Err(error) => return Err(error).context("its folder cannot be opened"),
    };
    let Some(stat) = place.lstat()? else {
        return Ok(Outcome::AlreadyDone);
    };
    if rustix::fs::FileType::from_raw_mode(stat.st_mode) != rustix::fs::FileType::RegularFile {
        return Ok(Outcome::LeftAlone(format!(
            "{path} was left alone: it is not a regular file"
        )));
    }
    let size = u64::try_from(stat.st_size).unwrap_or(0);
    if let Freeing::KeepTail(keep) = action.freeing
        && size <= keep
    {
        return Ok(Outcome::AlreadyDone);
    }
    if size != action.size || stat.st_mtime != action.mtime {
        return Ok(Outcome::LeftAlone(format!(
            "{path} was left alone: it changed since it was looked at"
        )));
    }
    if confined.is_shared(path)?
        && let Some(why) = others.objection(&place, &stat)?
    {
        return Ok(Outcome::LeftAlone(format!("{path} was left alone: {why}")));
    }
    let bytes = match action.freeing {
        Freeing::Delete => delete(&place, &stat)?,
        Freeing::KeepTail(keep) => keep_tail(&place, &stat, keep)?,
    };
    let tail_kept = matches!(action.freeing, Freeing::KeepTail(_));
    Ok(Outcome::Freed(Freed {
        path: StoredPath::from(path),
        bytes,
        tail_kept,
    }))
}

fn delete(place: &Place, stat: &Stat) -> Result<u64> {
    place.unlink()?;
    Ok(if stat.st_nlink > 1 {
        0
    } else {
        allocated(stat)
    })
}

/// Keeps the inode with its owner, mode, attributes and times, and the end of the file.
///
/// The tail is copied over the beginning, then the file is cut. At most half of the file is kept,
/// so the two never overlap: an interruption leaves the tail at the end of the file untouched, and
/// doing it again gives the same result.
fn keep_tail(place: &Place, before: &Stat, keep: u64) -> Result<u64> {
    let file = place.open_file_for_truncation()?;
    let size = u64::try_from(before.st_size).unwrap_or(0);
    let start = line_start(&file, place, size, keep.min(size / 2))?;
    if let Err(error) = copy_and_cut(&file, place, before, start, size - start) {
        // By its times it is known as the file that was looked at when this is tried again.
        let _ = keep_times(&file, place, before);
        return Err(error.context(Begun));
    }
    let after = rustix::fs::fstat(&file).with_context(|| format!("looking at {place}"))?;
    Ok(allocated(before).saturating_sub(allocated(&after)))
}

fn copy_and_cut(
    file: &OwnedFd,
    place: &Place,
    before: &Stat,
    start: u64,
    length: u64,
) -> Result<()> {
    copy_within(file, place, start, length)?;
    sync_file(file, place)?;
    fault::call("ftruncate", || rustix::fs::ftruncate(file, length))
        .with_context(|| format!("cutting {place}"))?;
    keep_times(file, place, before)?;
    sync_file(file, place)
}

fn keep_times(file: &OwnedFd, place: &Place, before: &Stat) -> Result<()> {
    fault::call("futimens", || rustix::fs::futimens(file, &times_of(before)))
        .with_context(|| format!("keeping the times of {place}"))
}

/// Where the tail of at most `keep` bytes begins: after the first line break in it, unless a line
/// break is right before it or no line ends in reach (a binary file).
fn line_start(file: &OwnedFd, what: &dyn Display, size: u64, keep: u64) -> Result<u64> {
    let start = size - keep;
    let Some(from) = start.checked_sub(1) else {
        return Ok(0);
    };
    let length = usize::try_from(LONGEST_LINE.min(keep + 1)).unwrap_or(CHUNK);
    let head = read_at(file, what, from, length)?;
    match head.iter().position(|byte| *byte == b'\n') {
        // A line that ends exactly at the end of the file leaves nothing; rather keep it, cut.
        Some(at) if from + at as u64 + 1 < size => Ok(from + at as u64 + 1),
        _ => Ok(start),
    }
}

/// Copies `length` bytes from `from` to the beginning; the two must not overlap.
fn copy_within(file: &OwnedFd, what: &dyn Display, from: u64, length: u64) -> Result<()> {
    if length > from {
        bail!("the kept end of {what} would overlap its beginning");
    }
    let mut done = 0;
    while done < length {
        let chunk = usize::try_from(length - done).unwrap_or(CHUNK).min(CHUNK);
        let bytes = read_at(file, what, from + done, chunk)?;
        if bytes.is_empty() {
            bail!("{what} became shorter while it was read");
        }
        let mut written = 0;
        while let Some(rest) = bytes.get(written..).filter(|rest| !rest.is_empty()) {
            let piece = fault::piece(rest, written == 0);
            written += fault::call("pwrite", || {
                rustix::io::pwrite(file, piece, done + written as u64)
            })
            .with_context(|| format!("writing {what}"))?;
        }
        done += bytes.len() as u64;
    }
    Ok(())
}

fn read_at(file: &OwnedFd, what: &dyn Display, offset: u64, length: usize) -> Result<Vec<u8>> {
    let mut bytes = vec![0; length];
    let mut done = 0;
    while let Some(rest) = bytes.get_mut(done..).filter(|rest| !rest.is_empty()) {
        match rustix::io::pread(file, rest, offset + done as u64)
            .with_context(|| format!("reading {what}"))?
        {
            0 => break,
            read => done += read,
        }
    }
    bytes.truncate(done);
    Ok(bytes)
}

fn allocated(stat: &Stat) -> u64 {
    u64::try_from(stat.st_blocks)
        .unwrap_or(0)
        .saturating_mul(512)
}
