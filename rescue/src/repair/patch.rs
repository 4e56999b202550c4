//! Staging a copy of a large file in which some bytes are others: nothing of it is held in memory,
//! and where the file system can share blocks between files the copy takes no space.

use std::os::fd::OwnedFd;

use anyhow::{Context as _, Result};
use rustix::io::Errno;

use super::confined::Place;
use crate::base::fault;
use crate::change::Edit;

/// Copied at once.
const CHUNK: usize = 1 << 20;

/// Makes `staged`, which must not be there, from the first `size` bytes of `original`.
pub(super) fn stage(original: &Place, staged: &Place, edits: &[Edit], size: u64) -> Result<()> {
    let from = original.open_file()?;
    let to = staged.create(b"")?;
    // Blocks are shared on btrfs and newer XFS; everywhere else this fails and they are copied.
    if fault::call("clone", || rustix::fs::ioctl_ficlone(&to, &from)).is_err() {
        copy(&from, &to, size).with_context(|| format!("copying {original}"))?;
    }
    fault::call("ftruncate", || rustix::fs::ftruncate(&to, size))
        .with_context(|| format!("setting the length of the new {original}"))?;
    for edit in edits {
        write_at(&to, edit.bytes.expose(), edit.offset)
            .with_context(|| format!("changing the new {original}"))?;
    }
    Ok(())
}

/// Zeros become holes: the end of a log was set aside, not written.
fn copy(from: &OwnedFd, to: &OwnedFd, size: u64) -> Result<(), Errno> {
    let mut buffer = vec![0; CHUNK];
    let mut at = 0;
    while at < size {
        let wanted = CHUNK.min(usize::try_from(size - at).unwrap_or(CHUNK));
        let read = match rustix::io::pread(from, buffer.get_mut(..wanted).unwrap_or_default(), at) {
            Ok(0) => return Err(Errno::IO),
            Ok(read) => read,
            Err(Errno::INTR) => continue,
            Err(error) => return Err(error),
        };
        let bytes = buffer.get(..read).unwrap_or_default();
        if bytes.iter().any(|byte| *byte != 0) {
            write_at(to, bytes, at)?;
        }
        at += read as u64;
    }
    Ok(())
}

/// Writes all of `bytes` at `offset`.
pub(super) fn write_at(to: &OwnedFd, bytes: &[u8], offset: u64) -> Result<(), Errno> {
    let mut done = 0;
    while let Some(rest) = bytes.get(done..).filter(|rest| !rest.is_empty()) {
        let piece = fault::piece(rest, done == 0);
        match fault::call("pwrite", || {
            rustix::io::pwrite(to, piece, offset + done as u64)
        }) {
            Ok(0) => return Err(Errno::IO),
            Ok(written) => done += written,
            Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
