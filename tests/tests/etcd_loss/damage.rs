//! What a power cut, a lying disk or a rolled back machine does to a member's files.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use fastrand::Rng;
use tests::etcd;
use tests::etcd::files::{self, cut, database, newest_log, write_at};

/// A member's disk at the moment of the damage.
pub struct Disk<'a> {
    pub data_dir: &'a Path,
    /// The same as it was some writes ago.
    pub earlier: &'a Path,
    /// Another member's.
    pub other: &'a Path,
}

/// One kind.
pub struct Damage {
    pub name: &'static str,
    /// Whether bytes that etcd had synchronised are gone without a trace: no reader of this disk
    /// can know.
    pub silent: bool,
    pub make: fn(&Disk<'_>, &mut Rng) -> Result<()>,
}

const fn seen(name: &'static str, make: fn(&Disk<'_>, &mut Rng) -> Result<()>) -> Damage {
    Damage {
        name,
        silent: false,
        make,
    }
}

/// All of them.
pub const ALL: &[Damage] = &[
    seen("torn tail", torn_tail),
    seen("garbage tail", garbage_tail),
    seen("record of impossible length", impossible_length),
    seen("zeroed sector in the log's end", zeroed_sector),
    seen("flipped bit in the log's end", flipped_bit),
    seen("damage in the middle of the log", middle),
    seen("damaged old segment", old_segment),
    Damage {
        silent: true,
        ..seen("last records cut off cleanly", cut_cleanly)
    },
    Damage {
        silent: true,
        ..seen("log cut within its last record", cut_within)
    },
    seen("log gone", |disk, _| {
        Ok(fs::remove_dir_all(disk.data_dir.join("member/wal"))?)
    }),
    seen("old database", |disk, _| {
        replace(&database(disk.earlier), &database(disk.data_dir))
    }),
    seen("another member's database", |disk, _| {
        replace(&database(disk.other), &database(disk.data_dir))
    }),
    seen("newest meta page damaged", |disk, _| meta(disk, false)),
    seen("both meta pages damaged", |disk, _| meta(disk, true)),
    seen("pages of the database zeroed", zeroed_pages),
    seen("database cut short", |disk, _| {
        halve(&database(disk.data_dir))
    }),
    seen("database gone", |disk, _| {
        Ok(fs::remove_file(database(disk.data_dir))?)
    }),
    seen("newest snapshot empty", |disk, _| {
        snapshots(disk, 1, |path| Ok(fs::write(path, "")?))
    }),
    seen("newest snapshot gone", |disk, _| {
        snapshots(disk, 1, |path| Ok(fs::remove_file(path)?))
    }),
    seen("all snapshots gone", |disk, _| {
        snapshots(disk, usize::MAX, |path| Ok(fs::remove_file(path)?))
    }),
    Damage {
        silent: true,
        ..seen("whole member rolled back", rolled_back)
    },
    seen("whole member gone", |disk, _| {
        Ok(fs::remove_dir_all(disk.data_dir.join("member"))?)
    }),
];

fn replace(from: &Path, to: &Path) -> Result<()> {
    if from.exists() {
        fs::copy(from, to)?;
    }
    Ok(())
}

fn snapshots(disk: &Disk<'_>, count: usize, make: impl Fn(&Path) -> Result<()>) -> Result<()> {
    files::snapshots(disk.data_dir)?
        .iter()
        .rev()
        .take(count)
        .try_for_each(|path| make(path))
}

/// To half its size.
fn halve(path: &Path) -> Result<()> {
    cut(path, fs::metadata(path)?.len() / 2)
}

/// Offsets of the records of a file of the log and the end of the last: lengths only, as the
/// format's first word has them.
fn frames(path: &Path) -> Result<Vec<u64>> {
    let bytes = fs::read(path)?;
    let (mut at, mut starts) = (0, vec![0]);
    while let Some(word) = bytes.get(at..at + 8) {
        let word = u64::from_le_bytes(word.try_into()?);
        let padding = if word >> 63 == 1 { (word >> 56) & 7 } else { 0 };
        let length = (word & ((1 << 56) - 1)) + padding;
        if word == 0 || length > (bytes.len() - at - 8) as u64 {
            break;
        }
        at += 8 + usize::try_from(length)?;
        starts.push(at as u64);
    }
    Ok(starts)
}

fn end_of_log(disk: &Disk<'_>) -> Result<(PathBuf, Vec<u64>)> {
    let log = newest_log(disk.data_dir)?;
    let frames = frames(&log)?;
    Ok((log, frames))
}

/// A record that was begun when the power failed: its first part is there.
fn torn_tail(disk: &Disk<'_>, random: &mut Rng) -> Result<()> {
    let (log, frames) = end_of_log(disk)?;
    let [.., start, end] = frames.as_slice() else {
        return Ok(());
    };
    let bytes = fs::read(&log)?;
    let record = &bytes[usize::try_from(*start)?..usize::try_from(*end)?];
    write_at(
        &log,
        &record[..random.usize(8..record.len().max(9)).min(record.len())],
        *end,
    )
}

fn garbage_tail(disk: &Disk<'_>, random: &mut Rng) -> Result<()> {
    let (log, frames) = end_of_log(disk)?;
    let garbage: Vec<u8> = (0..random.usize(8..3000)).map(|_| random.u8(..)).collect();
    write_at(&log, &garbage, *frames.last().context("an end")?)
}

fn impossible_length(disk: &Disk<'_>, _: &mut Rng) -> Result<()> {
    let (log, frames) = end_of_log(disk)?;
    write_at(&log, &[0x41; 40], *frames.last().context("an end")?)
}

fn zeroed_sector(disk: &Disk<'_>, random: &mut Rng) -> Result<()> {
    let (log, frames) = end_of_log(disk)?;
    let end = *frames.last().context("an end")?;
    let sector = (end.saturating_sub(random.u64(1..3000)) / 512).max(1) * 512;
    write_at(&log, &[0; 512], sector)
}

fn flipped_bit(disk: &Disk<'_>, random: &mut Rng) -> Result<()> {
    let (log, frames) = end_of_log(disk)?;
    let end = *frames.last().context("an end")?;
    flip(&log, end.saturating_sub(random.u64(1..3000)).max(300))
}

fn flip(path: &Path, at: u64) -> Result<()> {
    let file = OpenOptions::new().read(true).write(true).open(path)?;
    let mut byte = [0];
    file.read_exact_at(&mut byte, at)?;
    Ok(file.write_all_at(&[byte[0] ^ 0x10], at)?)
}

fn middle(disk: &Disk<'_>, _: &mut Rng) -> Result<()> {
    let (log, frames) = end_of_log(disk)?;
    write_at(
        &log,
        &[0x55; 64],
        *frames.get(frames.len() / 2).context("a record")?,
    )
}

fn old_segment(disk: &Disk<'_>, random: &mut Rng) -> Result<()> {
    let logs = files::logs(disk.data_dir)?;
    match logs.as_slice() {
        [first, _, ..] => flip(first, random.u64(1000..fs::metadata(first)?.len() - 8)),
        _ => Ok(()),
    }
}

fn cut_cleanly(disk: &Disk<'_>, random: &mut Rng) -> Result<()> {
    let (log, frames) = end_of_log(disk)?;
    let at = frames
        .len()
        .saturating_sub(random.usize(2..12))
        .max(frames.len().min(4) - 1);
    zero_from(&log, frames[at])
}

fn cut_within(disk: &Disk<'_>, _: &mut Rng) -> Result<()> {
    let (log, frames) = end_of_log(disk)?;
    match frames.as_slice() {
        [.., start, end] => zero_from(&log, (start + end) / 2),
        _ => Ok(()),
    }
}

/// As the preallocated file was before.
fn zero_from(path: &Path, at: u64) -> Result<()> {
    let file = OpenOptions::new().write(true).open(path)?;
    let size = file.metadata()?.len();
    file.set_len(at)?;
    Ok(file.set_len(size)?)
}

fn meta(disk: &Disk<'_>, both: bool) -> Result<()> {
    let path = database(disk.data_dir);
    let bytes = fs::read(&path)?;
    let transaction = |page: usize| {
        u64::from_le_bytes(bytes[page + 64..page + 72].try_into().unwrap_or_default())
    };
    let newest = if transaction(0) > transaction(4096) {
        0
    } else {
        4096
    };
    write_at(&path, &[0; 80], newest)?;
    if both {
        write_at(&path, &[0; 80], 4096 - newest)?;
    }
    Ok(())
}

fn zeroed_pages(disk: &Disk<'_>, random: &mut Rng) -> Result<()> {
    let path = database(disk.data_dir);
    let pages = fs::metadata(&path)?.len() / 4096;
    for _ in 0..random.u32(1..6) {
        write_at(&path, &[0; 4096], random.u64(2..pages.min(400)) * 4096)?;
    }
    Ok(())
}

/// As a machine whose snapshot was reverted.
fn rolled_back(disk: &Disk<'_>, _: &mut Rng) -> Result<()> {
    if disk.earlier.join("member").exists() {
        fs::remove_dir_all(disk.data_dir)?;
        etcd::copy(disk.earlier, disk.data_dir)?;
    }
    Ok(())
}
