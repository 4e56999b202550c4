//! The disks that were named are read-only in the kernel (BLKROSET) until the user has agreed to
//! write to them.
//!
//! A process of our own, the [keeper](super::keeper), sets the flag and takes it away again,
//! however we end. It is asked for by the commands that may write; a [claim](super::Claim) on a
//! disk, the point from which on it may be written to, gives that disk back first. Commands that
//! only look leave the flag alone: they open disks for reading, and many of them may look at one
//! disk at the same time.

use std::io::{BufRead, BufReader};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::{Mutex, PoisonError};

use rustix::net::SendFlags;

use super::{device, keeper};
use crate::disk::Source;

/// One for the whole process, as the claims that end it are taken far below where it begins.
static KEEPER: Mutex<Option<Keeper>> = Mutex::new(None);

/// The other process, as we see it.
#[derive(Debug)]
struct Keeper {
    child: Child,
    /// Closing it, or our end, makes it take all flags away.
    requests: Option<UnixStream>,
    answers: BufReader<ChildStdout>,
    /// The devices it was given; `None` once they were given back.
    kept: Vec<Option<PathBuf>>,
}

/// Sets the block devices among `sources` read-only where that is safe; all others stay as they
/// are.
///
/// A failure is none for the caller: the flag is a second lock on a door that we do not open
/// anyway.
pub fn protect<'a>(sources: impl IntoIterator<Item = &'a Source>) {
    let mut devices: Vec<PathBuf> = sources.into_iter().filter_map(block_device).collect();
    devices.sort();
    devices.dedup();
    if devices.is_empty() || !keeper::may_be_used() {
        return;
    }
    let mut running = KEEPER.lock().unwrap_or_else(PoisonError::into_inner);
    if running.is_none() {
        *running = Keeper::start(devices);
    }
}

/// Gives the disk that `path` is on back, with all its partitions.
pub(super) fn give_back(path: &Path) {
    let mut running = KEEPER.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(keeper) = running.as_mut() {
        keeper.give_back(path);
    }
    // That of a run whose keeper was killed as well.
    keeper::take_away_stale(path);
}

fn block_device(source: &Source) -> Option<PathBuf> {
    let Source::Disk(path) = source else {
        return None;
    };
    let path = path.canonicalize().ok()?;
    std::fs::metadata(&path)
        .is_ok_and(|metadata| metadata.file_type().is_block_device())
        .then_some(path)
}

impl Keeper {
    /// Returns when all flags are set that will be.
    fn start(devices: Vec<PathBuf>) -> Option<Self> {
        let mut command = Command::new("/proc/self/exe");
        command.arg0(keeper::PROGRAM).args(&devices);
        let (requests, theirs) = UnixStream::pair().ok()?;
        command
            .stdin(OwnedFd::from(theirs))
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        let mut child = command.spawn().ok()?;
        // Its end of the requests goes with the command: only then is its death seen.
        drop(command);
        let answers = BufReader::new(child.stdout.take()?);
        let mut keeper = Self {
            child,
            requests: Some(requests),
            answers,
            kept: devices.into_iter().map(Some).collect(),
        };
        keeper.wait_for_answer();
        Some(keeper)
    }

    /// An end of the stream (it was killed) is an answer, too.
    fn wait_for_answer(&mut self) {
        let _ = self.answers.read_line(&mut String::new());
    }

    fn give_back(&mut self, path: &Path) {
        let Ok(disk) = device::disk_number(path) else {
            return;
        };
        for number in 0..self.kept.len() {
            let Some(kept) = &self.kept[number] else {
                continue;
            };
            if device::disk_number(kept).is_ok_and(|other| other == disk) {
                self.kept[number] = None;
                self.ask_for(number);
            }
        }
    }

    fn ask_for(&mut self, number: usize) {
        let Some(requests) = &self.requests else {
            return;
        };
        // Without a signal where nobody listens any more: that would end us.
        if rustix::net::send(
            requests,
            format!("{number}\n").as_bytes(),
            SendFlags::NOSIGNAL,
        )
        .is_ok()
        {
            self.wait_for_answer();
        }
    }
}

/// At the end of a command: all flags are gone when this returns.
pub fn give_all_back() {
    let keeper = KEEPER.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some(mut keeper) = keeper {
        drop(keeper.requests.take());
        let _ = keeper.child.wait();
    }
}
