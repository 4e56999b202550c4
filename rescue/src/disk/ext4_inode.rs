//! Inodes, folders and block maps of ext2, ext3 and ext4, read straight from the disk.
//!
//! The crate `ext4-view` reads contents and checks every checksum on the way, but tells no inode
//! numbers, link counts or allocated blocks, refuses files whose times lie before 1970 or after
//! 2038, and seeks by walking a file from its beginning. This reader supplies what is missing.
//! Layouts: the kernel's fs/ext4/ext4.h and ext4_extents.h.

use std::cell::RefCell;
use std::collections::HashMap;
use std::ffi::OsStr;
use std::io::{Error, ErrorKind};
use std::os::unix::ffi::OsStrExt;
use std::rc::Rc;
use std::sync::Arc;

use super::ReadAt;
use super::bytes::{be32, le16, le32};
use super::ext_super::{self, ExtSuper};
use super::ext4_xattr;
use crate::tree::FileKind;

/// The root folder's inode.
pub(super) const ROOT: u32 = 2;
const FLAG_ENCRYPTED: u32 = 0x800;
const FLAG_HUGE_FILE: u32 = 0x4_0000;
const FLAG_EXTENTS: u32 = 0x8_0000;
const FLAG_INLINE_DATA: u32 = 0x1000_0000;
const EXTENT_MAGIC: u16 = 0xf30a;
/// The kernel's EXT4_MAX_EXTENT_DEPTH.
const MAX_EXTENT_DEPTH: u16 = 5;
/// Longer extents are allocated, but not written yet: they read as zeros.
const MAX_WRITTEN_EXTENT: u32 = 32768;
/// A folder larger than this is refused; one million names take about 40 MiB.
const MAX_FOLDER: u64 = 512 << 20;

/// Why the disk's structures could not be followed.
#[derive(Debug, thiserror::Error)]
pub(super) enum InodeError {
    #[error("{0}")]
    Corrupt(String),
    #[error("{0}")]
    Unsupported(&'static str),
    #[error(transparent)]
    Io(#[from] Error),
}

type Result<T> = std::result::Result<T, InodeError>;

fn corrupt<T>(reason: impl Into<String>) -> Result<T> {
    Err(InodeError::Corrupt(reason.into()))
}

/// CRC-32C as ext4 chains it: from a seed, not inverted at the end.
pub(super) fn crc32c(seed: u32, bytes: &[u8]) -> u32 {
    const CHAINED: crc::Algorithm<u32> = crc::Algorithm {
        xorout: 0,
        ..crc::CRC_32_ISCSI
    };
    static CRC: crc::Crc<u32> = crc::Crc::<u32>::new(&CHAINED);
    // The crate wants the register as it was before reflection.
    let mut digest = CRC.digest_with_initial(seed.reverse_bits());
    digest.update(bytes);
    digest.finalize()
}

/// One inode's fields.
#[derive(Debug, Clone)]
pub(super) struct Inode {
    pub number: u32,
    pub kind: FileKind,
    /// Permission bits.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub size: u64,
    pub mtime: i64,
    pub links: u64,
    /// `st_blocks`: allocated space in units of 512 bytes.
    pub sectors: u64,
    /// `ext4-view` calls such a file damaged, the kernel does not: a time outside 1970 to 2038, or
    /// a checksum of 16 bits.
    pub is_odd: bool,
    flags: u32,
    /// Where the checksums of its own blocks start from: over file system seed, inode number,
    /// generation.
    checksum_seed: u32,
    /// `i_block`: the extent tree's root or the block map.
    map: [u8; 60],
}

impl Inode {
    pub fn is_encrypted(&self) -> bool {
        self.flags & FLAG_ENCRYPTED != 0
    }
    fn has_extents(&self) -> bool {
        self.flags & FLAG_EXTENTS != 0
    }
}

/// Names of a folder, sorted, in two allocations: folders of a million files must fit.
#[derive(Debug)]
pub(super) struct Folder {
    names: Vec<u8>,
    entries: Vec<Entry>,
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    name_at: u32,
    name_length: u8,
    inode: u32,
}

impl Folder {
    fn name(&self, entry: &Entry) -> &[u8] {
        let at = entry.name_at as usize;
        self.names
            .get(at..at + usize::from(entry.name_length))
            .unwrap_or_default()
    }

    /// Inode number behind a name.
    pub fn find(&self, name: &OsStr) -> Option<u32> {
        let at = self
            .entries
            .binary_search_by(|entry| self.name(entry).cmp(name.as_bytes()))
            .ok()?;
        self.entries.get(at).map(|entry| entry.inode)
    }

    /// Number of names.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// All names with their inodes.
    pub fn iter(&self) -> impl Iterator<Item = (&OsStr, u32)> {
        self.entries
            .iter()
            .map(|entry| (OsStr::from_bytes(self.name(entry)), entry.inode))
    }
}

/// Reads inodes of one file system.
pub(super) struct Inodes {
    bytes: Rc<Cached>,
    superblock: ExtSuper,
    /// First block of each group's inode table.
    tables: Vec<u64>,
}

impl Inodes {
    pub fn open(bytes: Rc<Cached>, superblock: &ExtSuper) -> Result<Self> {
        let size = usize::from(superblock.descriptor_size);
        let length = u64::from(superblock.groups) * u64::from(superblock.descriptor_size);
        // Also keeps a crafted count from taking all memory: the descriptors must really be there.
        if superblock
            .descriptors_at()
            .checked_add(length)
            .is_none_or(|end| end > bytes.len())
        {
            return corrupt("the block group descriptors lie past the end");
        }
        let mut tables = Vec::with_capacity(superblock.groups as usize);
        let mut raw = vec![0; size];
        for group in 0..u64::from(superblock.groups) {
            bytes.read(superblock.descriptors_at() + group * size as u64, &mut raw)?;
            let high = if size >= 64 {
                u64::from(le32(&raw, 0x28)) << 32
            } else {
                0
            };
            tables.push(u64::from(le32(&raw, 0x8)) | high);
        }
        Ok(Self {
            bytes,
            superblock: superblock.clone(),
            tables,
        })
    }

    fn block_size(&self) -> u64 {
        u64::from(self.superblock.block_size)
    }

    /// Reads inode `number` and, where the file system has them, checks its checksum.
    pub fn read(&self, number: u32) -> Result<Inode> {
        self.parse(number, &self.raw(number)?)
    }

    /// The access list of inode `number` as ext4 stores it. The kernel looks into the inode first
    /// (`ext4_xattr_get`).
    pub fn access_list(&self, number: u32) -> Result<Option<Vec<u8>>> {
        let raw = self.raw(number)?;
        let damaged = |reason: &'static str| InodeError::Corrupt(reason.to_owned());
        if let Some(value) =
            ext4_xattr::in_inode(&raw, ext4_xattr::POSIX_ACL_ACCESS).map_err(damaged)?
        {
            return Ok(Some(value));
        }
        match ext4_xattr::block_of(&raw) {
            0 => Ok(None),
            block => ext4_xattr::in_block(&self.block(block)?, ext4_xattr::POSIX_ACL_ACCESS)
                .map_err(damaged),
        }
    }

    fn raw(&self, number: u32) -> Result<Vec<u8>> {
        let index = number
            .checked_sub(1)
            .filter(|_| number <= self.superblock.inodes);
        let Some(index) = index else {
            return corrupt(format!("inode {number} does not exist"));
        };
        let group = index / self.superblock.inodes_per_group;
        let Some(table) = self.tables.get(group as usize) else {
            return corrupt(format!("inode {number} lies in no block group"));
        };
        let within = u64::from(index % self.superblock.inodes_per_group)
            * u64::from(self.superblock.inode_size);
        let at = table
            .checked_mul(self.block_size())
            .and_then(|start| start.checked_add(within));
        let Some(at) = at else {
            return corrupt(format!(
                "the inode table of group {group} lies past the end"
            ));
        };
        let mut raw = vec![0; usize::from(self.superblock.inode_size)];
        self.bytes.read(at, &mut raw)?;
        self.check(number, &raw)?;
        Ok(raw)
    }

    /// Checksum over file system seed, inode number, generation and the inode with its two checksum
    /// fields as zeros.
    fn check(&self, number: u32, raw: &[u8]) -> Result<()> {
        if self.superblock.ro_compat & ext_super::RO_COMPAT_METADATA_CSUM == 0 {
            return Ok(());
        }
        let mut blank = raw.to_vec();
        let wide = has_wide_checksum(raw);
        for (at, there) in [(0x7c, true), (0x82, wide)] {
            if let Some(field) = blank.get_mut(at..at + 2).filter(|_| there) {
                field.fill(0);
            }
        }
        let sum = crc32c(self.inode_seed(number, raw), &blank);
        let stored = u32::from(le16(raw, 0x7c))
            | if wide {
                u32::from(le16(raw, 0x82)) << 16
            } else {
                0
            };
        let expected = if wide { sum } else { sum & 0xffff };
        if stored == expected {
            Ok(())
        } else {
            corrupt(format!("the checksum of inode {number} is wrong"))
        }
    }

    fn inode_seed(&self, number: u32, raw: &[u8]) -> u32 {
        let seed = crc32c(self.superblock.checksum_seed, &number.to_le_bytes());
        crc32c(seed, raw.get(0x64..0x68).unwrap_or_default())
    }

    fn parse(&self, number: u32, raw: &[u8]) -> Result<Inode> {
        let mode = u32::from(le16(raw, 0));
        let kind = match mode & 0o170_000 {
            0o100_000 => FileKind::Regular,
            0o040_000 => FileKind::Directory,
            0o120_000 => FileKind::Symlink,
            0o010_000 | 0o020_000 | 0o060_000 | 0o140_000 => FileKind::Special,
            _ => return corrupt(format!("inode {number} is of no known kind")),
        };
        let flags = le32(raw, 0x20);
        let join = |low: u16, high: u16| u32::from(low) | (u32::from(high) << 16);
        let wide_size = kind == FileKind::Regular
            || (kind == FileKind::Directory
                && self.superblock.incompat & ext_super::INCOMPAT_LARGE_DIR != 0);
        let size = u64::from(le32(raw, 4))
            | if wide_size {
                u64::from(le32(raw, 0x6c)) << 32
            } else {
                0
            };
        let (mtime, has_odd_times) = times(raw);
        let has_checksum = self.superblock.ro_compat & ext_super::RO_COMPAT_METADATA_CSUM != 0;
        let mut map = [0; 60];
        map.copy_from_slice(raw.get(0x28..0x64).unwrap_or(&[0; 60]));
        Ok(Inode {
            number,
            kind,
            mode: mode & 0o7777,
            uid: join(le16(raw, 2), le16(raw, 0x78)),
            gid: join(le16(raw, 0x18), le16(raw, 0x7a)),
            size,
            mtime,
            links: u64::from(le16(raw, 0x1a)),
            sectors: self.sectors(raw, flags),
            is_odd: has_odd_times || (has_checksum && !has_wide_checksum(raw)),
            flags,
            checksum_seed: self.inode_seed(number, raw),
            map,
        })
    }

    /// `ext4_inode_blocks`: 32 bits of sectors; 48 with huge_file, and then in blocks where the
    /// inode's flag says so.
    fn sectors(&self, raw: &[u8], flags: u32) -> u64 {
        let low = u64::from(le32(raw, 0x1c));
        if self.superblock.ro_compat & ext_super::RO_COMPAT_HUGE_FILE == 0 {
            return low;
        }
        let count = low | (u64::from(le16(raw, 0x74)) << 32);
        if flags & FLAG_HUGE_FILE != 0 {
            count * (self.block_size() / 512)
        } else {
            count
        }
    }

    /// Up to `buffer.len()` bytes from `offset`, holes as zeros; short only at the end of the file.
    pub fn read_data(&self, inode: &Inode, offset: u64, buffer: &mut [u8]) -> Result<usize> {
        if inode.flags & FLAG_INLINE_DATA != 0 {
            return Err(InodeError::Unsupported(
                "its content is stored inside its inode (inline_data)",
            ));
        }
        let block_size = self.block_size();
        let length = usize::try_from(inode.size.saturating_sub(offset))
            .unwrap_or(usize::MAX)
            .min(buffer.len());
        let mut done = 0;
        while done < length {
            let at = offset + done as u64;
            let Ok(logical) = u32::try_from(at / block_size) else {
                return corrupt(format!(
                    "inode {} is larger than a file can be",
                    inode.number
                ));
            };
            let run = self.run_at(inode, logical)?;
            let within = at % block_size;
            let left = (u64::from(run.length) * block_size).saturating_sub(within);
            let step = usize::try_from(left)
                .unwrap_or(usize::MAX)
                .min(length - done);
            let Some(part) = buffer.get_mut(done..done + step) else {
                break;
            };
            match run.physical {
                Some(block) => {
                    let start = block
                        .checked_mul(block_size)
                        .and_then(|start| start.checked_add(within));
                    let inside = start.filter(|start| {
                        start
                            .checked_add(step as u64)
                            .is_some_and(|end| end <= self.bytes.len())
                    });
                    let Some(start) = inside else {
                        return corrupt(format!("inode {} has blocks past the end", inode.number));
                    };
                    self.bytes.read(start, part)?;
                }
                None => part.fill(0),
            }
            done += step;
        }
        Ok(length)
    }

    /// Where the content from block `logical` on lies, and for how many blocks; at least one.
    fn run_at(&self, inode: &Inode, logical: u32) -> Result<Run> {
        if inode.has_extents() {
            self.extent_at(inode, logical)
        } else {
            self.mapped_block(inode, logical)
        }
    }

    fn extent_at(&self, inode: &Inode, logical: u32) -> Result<Run> {
        let bad = || {
            corrupt(format!(
                "the extent tree of inode {} is damaged",
                inode.number
            ))
        };
        let mut node = inode.map.to_vec();
        let mut expected_depth = None;
        // Where the next branch to the right begins: a hole ends there at the latest.
        let mut limit = u32::MAX;
        loop {
            let (entries, depth) = (usize::from(le16(&node, 2)), le16(&node, 6));
            let fits = entries <= (node.len() / 12).saturating_sub(1);
            if le16(&node, 0) != EXTENT_MAGIC
                || !fits
                || depth > expected_depth.unwrap_or(MAX_EXTENT_DEPTH)
            {
                return bad();
            }
            if expected_depth.is_some_and(|expected| expected != depth) {
                return bad();
            }
            let entry = |index: usize| {
                node.get(12 * (index + 1)..12 * (index + 2))
                    .unwrap_or_default()
            };
            // The last entry that begins at or before `logical`.
            let first = |index: &usize| le32(entry(*index), 0);
            let after = (0..entries)
                .take_while(|index| first(index) <= logical)
                .count();
            if after < entries {
                limit = limit.min(le32(entry(after), 0));
            }
            let hole = Run {
                physical: None,
                length: limit.saturating_sub(logical).max(1),
            };
            let Some(index) = after.checked_sub(1) else {
                return Ok(hole);
            };
            let found = entry(index);
            if depth == 0 {
                let (first, raw_length) = (le32(found, 0), u32::from(le16(found, 4)));
                let written = raw_length <= MAX_WRITTEN_EXTENT;
                let length = if written {
                    raw_length
                } else {
                    raw_length - MAX_WRITTEN_EXTENT
                };
                let into = logical - first;
                if into >= length {
                    return Ok(hole);
                }
                let start = u64::from(le32(found, 8)) | (u64::from(le16(found, 6)) << 32);
                return Ok(Run {
                    physical: written.then_some(start + u64::from(into)),
                    length: length - into,
                });
            }
            let child = u64::from(le32(found, 4)) | (u64::from(le16(found, 8)) << 32);
            expected_depth = Some(depth - 1);
            node = self.block(child)?;
            if !self.has_right_checksum(inode, &node) {
                return bad();
            }
        }
    }

    /// An extent block's checksum stands behind the room for its entries
    /// (`ext4_extent_block_csum`).
    fn has_right_checksum(&self, inode: &Inode, node: &[u8]) -> bool {
        if self.superblock.ro_compat & ext_super::RO_COMPAT_METADATA_CSUM == 0 {
            return true;
        }
        let at = 12 * (usize::from(le16(node, 4)) + 1);
        match (node.get(..at), node.get(at..at + 4)) {
            (Some(covered), Some(stored)) => {
                crc32c(inode.checksum_seed, covered) == le32(stored, 0)
            }
            _ => false,
        }
    }

    /// The classic map: 12 direct blocks, then one, two and three levels of tables.
    fn mapped_block(&self, inode: &Inode, logical: u32) -> Result<Run> {
        let per_block = self.block_size() / 4;
        let mut index = u64::from(logical);
        let run = |block: u32| Run {
            physical: (block != 0).then_some(u64::from(block)),
            length: 1,
        };
        if index < 12 {
            return Ok(run(le32(&inode.map, index as usize * 4)));
        }
        index -= 12;
        for level in 1..=3u32 {
            let covered = per_block.pow(level);
            if index >= covered {
                index -= covered;
                continue;
            }
            let mut block = le32(&inode.map, (11 + level as usize) * 4);
            for below in (0..level).rev() {
                if block == 0 {
                    return Ok(run(0));
                }
                let slot = index / per_block.pow(below) % per_block;
                let mut raw = [0; 4];
                let at = u64::from(block)
                    .checked_mul(self.block_size())
                    .map(|start| start + slot * 4);
                self.bytes.read(at.unwrap_or(u64::MAX), &mut raw)?;
                block = u32::from_le_bytes(raw);
            }
            return Ok(run(block));
        }
        corrupt(format!(
            "inode {} is larger than its block map",
            inode.number
        ))
    }

    /// A link's target: in the inode up to 59 bytes, in a block of its own beyond.
    pub fn link_target(&self, inode: &Inode) -> Result<Vec<u8>> {
        let length = usize::try_from(inode.size).unwrap_or(usize::MAX);
        if let Some(target) = inode.map.get(..length).filter(|_| length < inode.map.len()) {
            return Ok(target.to_vec());
        }
        let mut target = vec![0; length];
        let read = self.read_data(inode, 0, &mut target)?;
        target.truncate(read);
        Ok(target)
    }

    fn block(&self, number: u64) -> Result<Vec<u8>> {
        let mut raw = vec![0; self.superblock.block_size as usize];
        let at = number.checked_mul(self.block_size()).filter(|at| *at != 0);
        let Some(at) = at else {
            return corrupt("a block number makes no sense");
        };
        self.bytes.read(at, &mut raw)?;
        Ok(raw)
    }

    /// All names of a folder but `.` and `..`. The nodes of a hash tree look like unused entries
    /// and are skipped as such.
    pub fn folder(&self, inode: &Inode) -> Result<Folder> {
        if inode.is_encrypted() {
            return Err(InodeError::Unsupported("the folder is encrypted (fscrypt)"));
        }
        if inode.size > MAX_FOLDER {
            return Err(InodeError::Unsupported("the folder is larger than 512 MiB"));
        }
        let mut folder = Folder {
            names: Vec::new(),
            entries: Vec::new(),
        };
        let mut block = vec![0; self.superblock.block_size as usize];
        for number in 0..inode.size.div_ceil(self.block_size()) {
            self.read_data(inode, number * self.block_size(), &mut block)?;
            self.collect(inode, &block, &mut folder)?;
        }
        let Folder { names, mut entries } = folder;
        let name = |entry: &Entry| {
            let at = entry.name_at as usize;
            names
                .get(at..at + usize::from(entry.name_length))
                .unwrap_or_default()
        };
        entries.sort_unstable_by(|a, b| name(a).cmp(name(b)));
        Ok(Folder { names, entries })
    }

    fn collect(&self, inode: &Inode, block: &[u8], folder: &mut Folder) -> Result<()> {
        let mut at = 0;
        while at + 8 <= block.len() {
            let record = match usize::from(le16(block, at + 4)) {
                // A record over a whole block of 64 KiB does not fit into 16 bits.
                0 | 0xffff if block.len() == 0x1_0000 => 0x1_0000,
                length => length,
            };
            let name_length = block.get(at + 6).copied().unwrap_or(0);
            let number = le32(block, at);
            let name = block
                .get(at + 8..at + 8 + usize::from(name_length))
                .filter(|_| at + record <= block.len());
            let (true, Some(name)) = (
                record >= 8 && (number == 0 || record >= 8 + usize::from(name_length)),
                name,
            ) else {
                return corrupt(format!("folder {} is damaged", inode.number));
            };
            at += record;
            if number == 0 || name == b"." || name == b".." {
                continue;
            }
            if name.is_empty() || name.contains(&b'/') || name.contains(&0) {
                return corrupt(format!("folder {} holds an impossible name", inode.number));
            }
            let name_at = folder.names.len() as u32;
            folder.names.extend_from_slice(name);
            folder.entries.push(Entry {
                name_at,
                name_length,
                inode: number,
            });
        }
        Ok(())
    }
}

/// Whether the journal holds an error (`s_errno`): the kernel met one, stopped the journal, and
/// would mark the file system at the next mount. What cannot be read says nothing here.
pub(super) fn journal_has_error(bytes: Arc<dyn ReadAt>, superblock: &ExtSuper) -> bool {
    const MAGIC: u32 = 0xc03b_3998;
    let head = superblock.journal_inode().and_then(|number| {
        let inodes = Inodes::open(Rc::new(Cached::new(bytes)), superblock).ok()?;
        let mut head = [0; 64];
        inodes
            .read_data(&inodes.read(number).ok()?, 0, &mut head)
            .ok()?;
        Some(head)
    });
    head.is_some_and(|head| be32(&head, 0) == MAGIC && be32(&head, 0x20) != 0)
}

/// A run of blocks; `physical` is `None` for holes and for space that is allocated but not written.
struct Run {
    physical: Option<u64>,
    length: u32,
}

/// Inodes without (much) extra space have room for the lower half of their checksum only.
fn has_wide_checksum(raw: &[u8]) -> bool {
    raw.len() > 128 && le16(raw, 0x80) >= 4
}

/// Modification time, and whether any time is one that `ext4-view` cannot take. The extra field of
/// each time holds two more bits of seconds and the nanoseconds (`ext4_decode_extra_time`).
fn times(raw: &[u8]) -> (i64, bool) {
    let extra_size = if raw.len() > 128 {
        usize::from(le16(raw, 0x80))
    } else {
        0
    };
    let extra = |at: usize| {
        if at + 4 <= 128 + extra_size {
            le32(raw, at)
        } else {
            0
        }
    };
    let seconds = |at: usize, extra: u32| {
        i64::from(le32(raw, at).cast_signed()) + (i64::from(extra & 3) << 32)
    };
    let odd = |at: usize, extra_at: usize| {
        le32(raw, at) > i32::MAX as u32 || le32(raw, extra_at) >> 2 >= 1_000_000_000
    };
    let times = [(0x8, 0x8c), (0xc, 0x84), (0x10, 0x88), (0x90, 0x94)];
    // Inodes of 128 bytes end before the extra fields; le32 reads those as zero, and creation time
    // is not there at all.
    (
        seconds(0x10, extra(0x88)),
        times.iter().any(|(at, extra_at)| odd(*at, *extra_at)),
    )
}

/// A small read cache over a file system: a walk reads neighbouring inodes and folder blocks again
/// and again.
pub(super) struct Cached {
    below: Arc<dyn ReadAt>,
    chunks: RefCell<Chunks>,
}

#[derive(Default)]
struct Chunks {
    by_number: HashMap<u64, (u64, Rc<[u8]>)>,
    clock: u64,
}

const CHUNK: u64 = 32 << 10;
/// 8 MiB in all.
const MAX_CHUNKS: usize = 256;
/// Longer reads go past the cache.
const MAX_CACHED_READ: usize = 16 << 10;

impl Cached {
    pub fn new(below: Arc<dyn ReadAt>) -> Self {
        Self {
            below,
            chunks: RefCell::default(),
        }
    }

    pub fn len(&self) -> u64 {
        self.below.len()
    }

    /// Fills `buffer` from `offset`.
    pub fn read(&self, offset: u64, buffer: &mut [u8]) -> std::io::Result<()> {
        if buffer.len() > MAX_CACHED_READ {
            return self.below.read_exact_at(buffer, offset);
        }
        let mut done = 0;
        while done < buffer.len() {
            let at = offset
                .checked_add(done as u64)
                .ok_or(ErrorKind::UnexpectedEof)?;
            let chunk = self.chunk(at / CHUNK)?;
            let from = (at % CHUNK) as usize;
            let there = chunk
                .get(from..)
                .filter(|there| !there.is_empty())
                .ok_or(ErrorKind::UnexpectedEof)?;
            let step = there.len().min(buffer.len() - done);
            if let (Some(to), Some(from)) = (buffer.get_mut(done..done + step), there.get(..step)) {
                to.copy_from_slice(from);
            }
            done += step;
        }
        Ok(())
    }

    fn chunk(&self, number: u64) -> std::io::Result<Rc<[u8]>> {
        let mut chunks = self.chunks.borrow_mut();
        chunks.clock += 1;
        let now = chunks.clock;
        if let Some((used, chunk)) = chunks.by_number.get_mut(&number) {
            *used = now;
            return Ok(Rc::clone(chunk));
        }
        let start = number
            .checked_mul(CHUNK)
            .filter(|start| *start < self.below.len())
            .ok_or(ErrorKind::UnexpectedEof)?;
        let length = CHUNK.min(self.below.len() - start) as usize;
        let mut bytes = vec![0; length];
        self.below.read_exact_at(&mut bytes, start)?;
        if chunks.by_number.len() >= MAX_CHUNKS {
            // Dropping the older half at once keeps the look for the oldest rare.
            let mut ages: Vec<u64> = chunks.by_number.values().map(|(used, _)| *used).collect();
            ages.sort_unstable();
            let middle = ages.get(ages.len() / 2).copied().unwrap_or(now);
            chunks.by_number.retain(|_, (used, _)| *used > middle);
        }
        let chunk: Rc<[u8]> = bytes.into();
        chunks.by_number.insert(number, (now, Rc::clone(&chunk)));
        Ok(chunk)
    }
}
