//! A file system that moves by itself: two looks at its superblock and at the head of its journal,
//! a moment apart. It is the only way to see that another host has the disk (a shared LUN, a
//! machine that is running after all).

use std::fs::File;
use std::io::{Seek, SeekFrom};
use std::num::NonZeroU64;
use std::os::unix::fs::FileExt;

use anyhow::{Context, Result};

use crate::base::hash::sha256_hex;
use crate::disk::ReadAt;

/// How much of an ext4 journal is looked at, from its tail on: the head, where the next commit
/// goes, is not far.
const JOURNAL_WINDOW: u64 = 32 << 20;

/// What was seen at one look; two looks of a file system at rest are equal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head(Vec<String>);

/// Looks at the file system of `kind` that these bytes are, which should come from [`Uncached`].
pub fn head(bytes: &dyn ReadAt, kind: &str) -> Result<Head> {
    let look = Look { bytes };
    let seen = match kind {
        "xfs" => look.xfs(),
        "btrfs" => look.btrfs(),
        _ => look.ext(),
    };
    Ok(Head(
        seen.context("looking at the superblock and the journal")?,
    ))
}

/// A disk or image file read past what is cached of it.
#[derive(Debug)]
pub struct Uncached {
    file: File,
    length: u64,
    sector_size: u32,
}

impl Uncached {
    /// The whole of an open disk.
    pub fn new(mut file: File, sector_size: u32) -> Result<Self> {
        let length = file
            .seek(SeekFrom::End(0))
            .context("asking for the size of the disk")?;
        Ok(Self {
            file,
            length,
            sector_size,
        })
    }
}

impl ReadAt for Uncached {
    fn len(&self) -> u64 {
        self.length
    }
    fn sector_size(&self) -> u32 {
        self.sector_size
    }
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> std::io::Result<()> {
        // Only whole pages are dropped, and no page is larger.
        const PAGE: u64 = 64 << 10;
        let first = offset / PAGE * PAGE;
        let end = offset
            .saturating_add(buffer.len() as u64)
            .next_multiple_of(PAGE);
        rustix::fs::fadvise(
            &self.file,
            first,
            NonZeroU64::new(end - first),
            rustix::fs::Advice::DontNeed,
        )?;
        self.file.read_exact_at(buffer, offset)
    }
}

struct Look<'a> {
    bytes: &'a dyn ReadAt,
}

impl Look<'_> {
    fn read(&self, at: u64, length: usize) -> Result<Vec<u8>> {
        let mut bytes = vec![0; length];
        self.bytes
            .read_exact_at(&mut bytes, at)
            .with_context(|| format!("reading {length} bytes at {at}"))?;
        Ok(bytes)
    }

    /// ext2/3/4: the superblock; if it says that a journal is in use, the journal's superblock and
    /// its log from the tail on.
    fn ext(&self) -> Result<Vec<String>> {
        let superblock = self.read(1024, 1024)?;
        let mut seen = vec![sha256_hex(&superblock)];
        const NEEDS_RECOVERY: u32 = 4;
        let incompatible = le32(&superblock, 0x60);
        if incompatible.is_none_or(|features| features & NEEDS_RECOVERY == 0) {
            return Ok(seen);
        }
        let block_size = 1024_u64 << le32(&superblock, 0x18).unwrap_or(0).min(6);
        for (n, (start, blocks)) in journal_extents(&superblock).into_iter().enumerate() {
            let at = start.saturating_mul(block_size);
            let length = u64::from(blocks).saturating_mul(block_size);
            if n == 0 {
                // The journal's superblock: s_start, the log's tail in blocks, at 0x1c, big-endian.
                let journal = self.read(at, 1024)?;
                let tail = u64::from(be32(&journal, 0x1c).unwrap_or(0)).saturating_mul(block_size);
                seen.push(sha256_hex(&journal));
                seen.push(self.hash(at, length, if tail < length { tail } else { 0 })?);
            } else {
                seen.push(self.hash(at, length, 0)?);
            }
        }
        Ok(seen)
    }

    /// Hash of at most [`JOURNAL_WINDOW`] bytes of a range, from `from` on and around its end.
    fn hash(&self, at: u64, length: u64, from: u64) -> Result<String> {
        let window = JOURNAL_WINDOW.min(length);
        let first = window.min(length - from);
        let mut bytes = self.read(at + from, usize::try_from(first)?)?;
        bytes.extend(self.read(at, usize::try_from(window - first)?)?);
        Ok(sha256_hex(&bytes))
    }

    /// XFS: the superblock, and where the log's cycle number changes, which is its head (the next
    /// block to be written).
    fn xfs(&self) -> Result<Vec<String>> {
        let superblock = self.read(0, 512)?;
        let mut seen = vec![sha256_hex(&superblock)];
        // An external log is not on this disk.
        if let Some((start, blocks)) = xfs_log(&superblock) {
            let first = self.xfs_cycle(start, 0)?;
            let (mut low, mut high) = (0, blocks);
            // Blocks before the head carry the cycle of block 0, those from the head on the one
            // before.
            while high - low > 1 {
                let middle = low + (high - low) / 2;
                if self.xfs_cycle(start, middle)? == first {
                    low = middle
                } else {
                    high = middle
                }
            }
            seen.push(format!("log cycle {first}, head {high}"));
            seen.push(sha256_hex(&self.read(start + low * 512, 512)?));
        }
        Ok(seen)
    }

    /// btrfs: the superblock, which every commit and every fsync (its tree of logs) writes anew.
    fn btrfs(&self) -> Result<Vec<String>> {
        Ok(vec![sha256_hex(
            &self.read(crate::disk::btrfs::OFFSET, 4096)?,
        )])
    }

    /// The cycle of one 512-byte block of the log: its first word, or the second in a record's
    /// header.
    fn xfs_cycle(&self, start: u64, block: u64) -> Result<u32> {
        const RECORD_MAGIC: u32 = 0xfeed_babe;
        let bytes = self.read(start + block * 512, 8)?;
        let word = |at| be32(&bytes, at).unwrap_or(0);
        Ok(if word(0) == RECORD_MAGIC {
            word(4)
        } else {
            word(0)
        })
    }
}

/// (first block, length in blocks) of the journal's extents, from the copy of its inode in the
/// superblock (`s_jnl_blocks`), when that is an extent tree of one level. Otherwise none: the
/// superblock alone has to do.
fn journal_extents(superblock: &[u8]) -> Vec<(u64, u32)> {
    const EXTENTS_MAGIC: u16 = 0xf30a;
    let Some(node) = superblock.get(0x10c..0x10c + 60) else {
        return Vec::new();
    };
    let count = le16(node, 2).unwrap_or(0).min(4);
    if le16(node, 0) != Some(EXTENTS_MAGIC) || le16(node, 6) != Some(0) {
        return Vec::new();
    }
    (0..usize::from(count))
        .filter_map(|n| {
            let extent = 12 + n * 12;
            let blocks = u32::from(le16(node, extent + 4)?);
            let start =
                u64::from(le16(node, extent + 6)?) << 32 | u64::from(le32(node, extent + 8)?);
            Some((start, blocks))
        })
        .collect()
}

/// First byte and length in 512-byte blocks of an internal log.
fn xfs_log(superblock: &[u8]) -> Option<(u64, u64)> {
    let block_size = u64::from(be32(superblock, 4)?);
    let start = u64::from_be_bytes(superblock.get(48..56)?.try_into().ok()?);
    let blocks = u64::from(be32(superblock, 96)?);
    let group_blocks = u64::from(be32(superblock, 84)?);
    let group_bits = u32::from(*superblock.get(124)?);
    if start == 0 || group_bits >= 64 || !(512..=65536).contains(&block_size) {
        return None;
    }
    // A block number is (allocation group, block in it), the group in the high bits.
    let block = (start >> group_bits)
        .checked_mul(group_blocks)?
        .checked_add(start & ((1 << group_bits) - 1))?;
    Some((
        block.checked_mul(block_size)?,
        blocks.checked_mul(block_size / 512)?,
    ))
}

fn le16(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn le32(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn be32(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

/// Whether the ext2/3/4 superblock says that errors were found (`EXT2_ERROR_FS`, bit 1 of
/// `s_state`).
pub fn has_error_flag(bytes: &dyn ReadAt) -> Result<bool> {
    let superblock = Look { bytes }
        .read(1024, 1024)
        .context("reading the superblock")?;
    Ok(le16(&superblock, 0x3a).is_some_and(|state| state & 2 != 0))
}
