//! A file of a folder that is being built, on the guest or beside it: every call that writes can be
//! made to fail.

use std::fs::File;
use std::io::{self, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use anyhow::{Context as _, Result, ensure};

use super::confined::Place;
use super::patch;
use crate::base::fault;
use crate::guest::{Guest, RealPath};

/// Bytes that a copy holds in memory.
const COPIED_AT_ONCE: usize = 1 << 20;

/// Takes what is written.
#[derive(Debug)]
pub(super) struct NewFile {
    file: File,
    is_first: bool,
}

impl NewFile {
    /// Into an empty file.
    pub fn new(file: OwnedFd) -> Self {
        Self {
            file: File::from(file),
            is_first: true,
        }
    }
}

impl AsFd for NewFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl Write for NewFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let piece = fault::piece(bytes, self.is_first);
        self.is_first = false;
        Ok(fault::call("write", || {
            rustix::io::write(&self.file, piece)
        })?)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Seek for NewFile {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.file.seek(to)
    }
}

/// Makes `place`, which must not be there, from the `size` bytes of a guest's file. Zeros become
/// holes.
pub(super) fn copy_into(place: &Place, from: &Guest, source: &RealPath, size: u64) -> Result<()> {
    let file = place.create(b"")?;
    let mut at = 0;
    while at < size {
        let bytes = from.tree().read_range(source.as_path(), at, COPIED_AT_ONCE);
        let bytes = bytes.with_context(|| format!("reading {source} in the guest"))?;
        ensure!(
            !bytes.is_empty(),
            "{source} in the guest ended at {at} of {size} bytes"
        );
        if bytes.iter().any(|byte| *byte != 0) {
            patch::write_at(&file, &bytes, at).with_context(|| format!("writing {place}"))?;
        }
        at += bytes.len() as u64;
    }
    fault::call("ftruncate", || rustix::fs::ftruncate(&file, size))
        .with_context(|| format!("setting the length of {place}"))
}
