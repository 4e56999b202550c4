//! Copies that take no more room than their originals: where a block is zeros, nothing is written.
//! (A log of etcd's is 64 MiB, most of them set aside and never written.) And what such a copy
//! takes.

use std::ops::Range;
use std::os::fd::OwnedFd;

use anyhow::{Context as _, Result};
use rustix::io::Errno;

use crate::base::fault;
use crate::guest::RealPath;
use crate::repair::confined::{Confined, Place, is_folder};
use crate::repair::patch;

/// Read at once.
const CHUNK: usize = 1 << 20;
/// The smallest block of the file systems that are written.
const BLOCK: usize = 1 << 10;
/// What is counted for a piece, however small: blocks are rarely larger.
const COUNTED: u64 = 4 << 10;

/// Makes `to`, which must not be there, from the first `size` bytes of `from`.
pub(super) fn copy(from: &Place, to: &Place, size: u64) -> Result<()> {
    let (source, target) = (from.open_file()?, to.create(b"")?);
    each_piece(&source, size, &mut |bytes, at| {
        patch::write_at(&target, bytes, at)
    })
    .with_context(|| format!("copying {from}"))?;
    fault::call("ftruncate", || rustix::fs::ftruncate(&target, size))
        .with_context(|| format!("setting the length of {to}"))
}

/// Bytes and inodes that a copy of all in a folder takes at most.
pub(super) fn needed(confined: &Confined, folder: &RealPath) -> Result<(u64, u64)> {
    let (mut bytes, mut inodes) = (0, 0);
    for name in confined.names(folder)? {
        let path = folder.child(&name);
        let place = confined
            .place(&path)
            .with_context(|| format!("opening {folder}"))?;
        let stat = place.lstat()?.with_context(|| format!("{path} is gone"))?;
        if is_folder(&stat) {
            let inside = needed(confined, &path)?;
            bytes += inside.0 + COUNTED;
            inodes += inside.1;
        } else {
            let mut last = None;
            each_piece(
                &place.open_file()?,
                u64::try_from(stat.st_size).unwrap_or(0),
                &mut |piece, at| {
                    let (first, end) = (at / COUNTED, (at + piece.len() as u64).div_ceil(COUNTED));
                    let counted = last.map_or(first, |last: u64| first.max(last));
                    bytes += end.saturating_sub(counted) * COUNTED;
                    last = Some(end);
                    Ok(())
                },
            )
            .with_context(|| format!("reading {path}"))?;
        }
        inodes += 1;
    }
    Ok((bytes, inodes))
}

type Visitor<'a> = dyn FnMut(&[u8], u64) -> Result<(), Errno> + 'a;

/// Shows what is not zeros, each piece with its place.
fn each_piece(file: &OwnedFd, size: u64, visit: &mut Visitor<'_>) -> Result<(), Errno> {
    let mut buffer = vec![0; CHUNK];
    let mut at = 0;
    while at < size {
        let wanted = CHUNK.min(usize::try_from(size - at).unwrap_or(CHUNK));
        let mut read = 0;
        while let Some(rest) = buffer.get_mut(read..wanted).filter(|rest| !rest.is_empty()) {
            match rustix::io::pread(file, rest, at + read as u64) {
                Ok(0) => return Err(Errno::IO),
                Ok(more) => read += more,
                Err(Errno::INTR) => {}
                Err(error) => return Err(error),
            }
        }
        let bytes = buffer.get(..read).unwrap_or_default();
        for piece in pieces(bytes) {
            visit(
                bytes.get(piece.clone()).unwrap_or_default(),
                at + piece.start as u64,
            )?;
        }
        at += read as u64;
    }
    Ok(())
}

/// The runs of blocks that are not zeros.
fn pieces(bytes: &[u8]) -> Vec<Range<usize>> {
    let mut pieces: Vec<Range<usize>> = Vec::new();
    for (n, block) in bytes.chunks(BLOCK).enumerate() {
        if block.iter().all(|byte| *byte == 0) {
            continue;
        }
        let (start, end) = (n * BLOCK, n * BLOCK + block.len());
        match pieces.last_mut().filter(|last| last.end == start) {
            Some(last) => last.end = end,
            None => pieces.push(start..end),
        }
    }
    pieces
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeros_are_left_out() {
        let mut bytes = vec![0; 10 * BLOCK + 3];
        assert!(pieces(&bytes).is_empty());
        for at in [0, BLOCK, 5 * BLOCK + 7, 10 * BLOCK + 2] {
            bytes[at] = 1;
        }
        assert_eq!(
            pieces(&bytes),
            [
                0..2 * BLOCK,
                5 * BLOCK..6 * BLOCK,
                10 * BLOCK..10 * BLOCK + 3
            ]
        );
    }
}
