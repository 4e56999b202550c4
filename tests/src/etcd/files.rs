//! The files of a member, to be damaged and compared.

use std::fs;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use crate::Cmd;

/// Its database.
pub fn database(data_dir: &Path) -> PathBuf {
    data_dir.join("member/snap/db")
}

/// The files of its log, the oldest first.
pub fn logs(data_dir: &Path) -> Result<Vec<PathBuf>> {
    names(&data_dir.join("member/wal"), "wal")
}

/// The newest of them.
pub fn newest_log(data_dir: &Path) -> Result<PathBuf> {
    logs(data_dir)?.pop().context("a log")
}

/// Its snapshots, the oldest first.
pub fn snapshots(data_dir: &Path) -> Result<Vec<PathBuf>> {
    names(&data_dir.join("member/snap"), "snap")
}

/// Files of a folder with this extension, by name.
fn names(folder: &Path, extension: &str) -> Result<Vec<PathBuf>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(folder).with_context(|| format!("listing {}", folder.display()))? {
        names.push(entry?.path());
    }
    names.retain(|path| path.extension().is_some_and(|found| found == extension));
    names.sort();
    Ok(names)
}

/// Writes over a part of a file.
pub fn write_at(path: &Path, bytes: &[u8], offset: u64) -> Result<()> {
    Ok(fs::OpenOptions::new()
        .write(true)
        .open(path)?
        .write_all_at(bytes, offset)?)
}

/// Makes a file so long.
pub fn cut(path: &Path, size: u64) -> Result<()> {
    Ok(fs::OpenOptions::new()
        .write(true)
        .open(path)?
        .set_len(size)?)
}

/// SHA-256 of every file below a folder.
pub fn sums(folder: &Path) -> Result<String> {
    Cmd::new("sh")
        .args(["-c", "find . -type f | sort | xargs sha256sum"])
        .dir(folder)
        .ok()
        .map(|ran| ran.stdout)
}
