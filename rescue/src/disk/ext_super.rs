//! The superblock of ext2, ext3 and ext4, and the free counts the kernel would report for it.
//!
//! Field offsets: the kernel's `struct ext4_super_block` (fs/ext4/ext4.h).

use std::io::{Error, ErrorKind, Result};

use super::ReadAt;
use super::bytes::{has, le16, le32, text, uuid};
use crate::tree::Usage;

/// Where the superblock stands, whatever the block size.
pub(super) const OFFSET: u64 = 1024;
/// Its length.
pub(super) const SIZE: usize = 1024;

const COMPAT_HAS_JOURNAL: u32 = 0x4;
const COMPAT_SPARSE_SUPER2: u32 = 0x200;
const INCOMPAT_FILETYPE: u32 = 0x2;
const INCOMPAT_RECOVER: u32 = 0x4;
const INCOMPAT_JOURNAL_DEV: u32 = 0x8;
const INCOMPAT_META_BG: u32 = 0x10;
pub(super) const INCOMPAT_EXTENTS: u32 = 0x40;
const INCOMPAT_64BIT: u32 = 0x80;
const INCOMPAT_CSUM_SEED: u32 = 0x2000;
pub(super) const INCOMPAT_LARGE_DIR: u32 = 0x4000;
const RO_COMPAT_SPARSE_SUPER: u32 = 0x1;
const RO_COMPAT_LARGE_FILE: u32 = 0x2;
const RO_COMPAT_BTREE_DIR: u32 = 0x4;
pub(super) const RO_COMPAT_HUGE_FILE: u32 = 0x8;
const RO_COMPAT_BIGALLOC: u32 = 0x200;
pub(super) const RO_COMPAT_METADATA_CSUM: u32 = 0x400;
const RO_COMPAT_ORPHAN_PRESENT: u32 = 0x1_0000;
/// What ext3 knows; one bit more makes it ext4 (as in libblkid).
const EXT3_INCOMPAT: u32 = INCOMPAT_FILETYPE | INCOMPAT_RECOVER | INCOMPAT_META_BG;
const EXT3_RO_COMPAT: u32 = RO_COMPAT_SPARSE_SUPER | RO_COMPAT_LARGE_FILE | RO_COMPAT_BTREE_DIR;

const STATE_VALID: u16 = 0x1;
const STATE_ERRORS: u16 = 0x2;

/// Group descriptors read at most, in bytes: a file system of 128 TiB has 64 MiB of them.
const MAX_DESCRIPTORS: u64 = 64 << 20;

/// What a superblock says. Counts are as stored; [`ExtSuper::parse`] has checked that they fit
/// together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExtSuper {
    /// `ext2`, `ext3` or `ext4`, by its features.
    pub kind: &'static str,
    /// UUID, lower case, with dashes.
    pub uuid: Option<String>,
    /// Volume label.
    pub label: Option<String>,
    /// Block size in bytes, 1024 to 65536.
    pub block_size: u32,
    /// Number of blocks.
    pub blocks: u64,
    /// Blocks only root may use.
    pub reserved_blocks: u64,
    /// Number of inodes.
    pub inodes: u32,
    /// Inodes in each block group.
    pub inodes_per_group: u32,
    /// Size of an inode on disk in bytes.
    pub inode_size: u16,
    /// Number of block groups.
    pub groups: u32,
    /// Size of a group descriptor in bytes.
    pub descriptor_size: u16,
    /// First block of group 0: 1 with blocks of 1 KiB, else 0.
    pub first_data_block: u32,
    /// The journal waits to be replayed: what the blocks say now is not what the next boot will
    /// see.
    pub needs_replay: bool,
    /// The kernel met an inconsistency, or an ext2 was not unmounted: `e2fsck` has to look before
    /// anybody writes.
    pub has_errors: bool,
    /// The newest time in the superblock (mount, write, check, error), seconds since 1970.
    pub newest_time: i64,
    /// Incompatible features.
    pub incompat: u32,
    /// Read-only compatible features.
    pub ro_compat: u32,
    /// Seed of all metadata checksums.
    pub checksum_seed: u32,
    compat: u32,
    blocks_per_cluster: u64,
    overhead_clusters: u32,
    reserved_gdt_blocks: u16,
    journal_inode: u32,
    backup_groups: [u32; 2],
}

/// Why bytes with the right magic number are no usable superblock.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the ext superblock is damaged: {0}")]
pub struct BadSuperblock(&'static str);

impl ExtSuper {
    /// Whether it, or its journal on the same `bytes`, says that errors were found.
    pub fn is_flagged(&self, bytes: std::sync::Arc<dyn ReadAt>) -> bool {
        self.has_errors || super::ext4_inode::journal_has_error(bytes, self)
    }

    /// `None` where there is no ext magic number.
    pub fn parse(raw: &[u8]) -> Option<std::result::Result<Self, BadSuperblock>> {
        (raw.len() >= SIZE && has(raw, 0x38, &[0x53, 0xef])).then(|| Self::parse_valid(raw))
    }

    fn parse_valid(raw: &[u8]) -> std::result::Result<Self, BadSuperblock> {
        let high = |at: usize| u64::from(le32(raw, at)) << 32;
        let check = |fine: bool, what: &'static str| {
            if fine {
                Ok(())
            } else {
                Err(BadSuperblock(what))
            }
        };
        let (compat, incompat, ro_compat) = (le32(raw, 0x5c), le32(raw, 0x60), le32(raw, 0x64));
        let wide = incompat & INCOMPAT_64BIT != 0;
        let count = |low: usize, upper: usize| {
            u64::from(le32(raw, low)) | if wide { high(upper) } else { 0 }
        };

        check(le32(raw, 0x18) <= 6, "the block size")?;
        let block_size = 1024u32 << le32(raw, 0x18);
        let blocks = count(0x4, 0x150);
        let first_data_block = le32(raw, 0x14);
        let blocks_per_group = le32(raw, 0x20);
        let inodes_per_group = le32(raw, 0x28);
        let bits_per_block = block_size.saturating_mul(8);
        let blocks_per_cluster = if ro_compat & RO_COMPAT_BIGALLOC != 0 {
            let log = le32(raw, 0x1c)
                .checked_sub(le32(raw, 0x18))
                .filter(|log| *log <= 20);
            1u64 << log.ok_or(BadSuperblock("the cluster size"))?
        } else {
            1
        };
        check(
            first_data_block <= 1 && blocks > u64::from(first_data_block),
            "the number of blocks",
        )?;
        check(
            blocks_per_group != 0
                && u64::from(blocks_per_group) <= u64::from(bits_per_block) * blocks_per_cluster,
            "the size of block groups",
        )?;
        check(
            inodes_per_group != 0 && inodes_per_group <= bits_per_block,
            "the number of inodes in a group",
        )?;
        let groups = (blocks - u64::from(first_data_block)).div_ceil(u64::from(blocks_per_group));
        let groups =
            u32::try_from(groups).map_err(|_| BadSuperblock("the number of block groups"))?;
        check(
            groups.checked_mul(inodes_per_group) == Some(le32(raw, 0x0)),
            "the number of inodes",
        )?;
        let inode_size = if le32(raw, 0x4c) == 0 {
            128
        } else {
            le16(raw, 0x58)
        };
        check(
            inode_size >= 128
                && inode_size.is_power_of_two()
                && u32::from(inode_size) <= block_size,
            "the size of inodes",
        )?;
        let descriptor_size = if wide { le16(raw, 0xfe) } else { 32 };
        check(
            descriptor_size.is_power_of_two()
                && (if wide { 64 } else { 32 }..=1024).contains(&descriptor_size),
            "the size of group descriptors",
        )?;

        let uuid = uuid(raw, 0x68);
        let has_journal = compat & COMPAT_HAS_JOURNAL != 0;
        let state = le16(raw, 0x3a);
        Ok(Self {
            kind: if incompat & !EXT3_INCOMPAT != 0 || ro_compat & !EXT3_RO_COMPAT != 0 {
                "ext4"
            } else if has_journal {
                "ext3"
            } else {
                "ext2"
            },
            label: text(raw, 0x78, 16),
            block_size,
            blocks,
            reserved_blocks: count(0x8, 0x154),
            inodes: le32(raw, 0x0),
            inodes_per_group,
            inode_size,
            groups,
            descriptor_size,
            first_data_block,
            // Orphans (files unlinked while open) are freed at the next mount, so they are part of
            // the replay.
            needs_replay: incompat & INCOMPAT_RECOVER != 0
                || ro_compat & RO_COMPAT_ORPHAN_PRESENT != 0
                || le32(raw, 0xe8) != 0,
            has_errors: state & STATE_ERRORS != 0 || (state & STATE_VALID == 0 && !has_journal),
            newest_time: newest_time(raw),
            incompat,
            ro_compat,
            checksum_seed: if incompat & INCOMPAT_CSUM_SEED != 0 {
                le32(raw, 0x270)
            } else {
                super::ext4_inode::crc32c(!0, raw.get(0x68..0x78).unwrap_or_default())
            },
            uuid,
            compat,
            blocks_per_cluster,
            overhead_clusters: le32(raw, 0x248),
            reserved_gdt_blocks: le16(raw, 0xce),
            journal_inode: le32(raw, 0xe0),
            backup_groups: [le32(raw, 0x24c), le32(raw, 0x250)],
        })
    }

    /// Length of the file system in bytes; `None` when absurd.
    pub fn length(&self) -> Option<u64> {
        self.blocks.checked_mul(u64::from(self.block_size))
    }

    /// Whether this is a journal of another file system, not a file system.
    pub fn is_external_journal(&self) -> bool {
        self.incompat & INCOMPAT_JOURNAL_DEV != 0
    }

    /// Byte offset of the group descriptor table: the block after the one that holds the
    /// superblock. (With blocks of 1 KiB that is block 2, also where bigalloc counts data blocks
    /// from 0.)
    pub(super) fn descriptors_at(&self) -> u64 {
        let block_size = u64::from(self.block_size);
        (OFFSET / block_size + 1) * block_size
    }

    /// Bytes and inodes as the kernel's `statfs` would report them (fs/ext4/super.c,
    /// `ext4_statfs`): free counts are the sums over the group descriptors; the superblock's own
    /// are only brought up to date now and then. `journal_length` is the size in bytes of the
    /// journal's inode.
    pub(super) fn usage(&self, bytes: &dyn ReadAt, journal_length: u64) -> Result<Usage> {
        let descriptors = self.read_descriptors(bytes)?;
        let wide = self.incompat & INCOMPAT_64BIT != 0;
        let field = |raw: &[u8], low: usize, high: usize| {
            u64::from(le16(raw, low))
                | if wide {
                    u64::from(le16(raw, high)) << 16
                } else {
                    0
                }
        };
        let (mut free_clusters, mut free_inodes) = (0u64, 0u64);
        for raw in descriptors.chunks_exact(usize::from(self.descriptor_size)) {
            free_clusters += field(raw, 0xc, 0x2c);
            free_inodes += field(raw, 0xe, 0x2e);
        }
        let block_size = u64::from(self.block_size);
        let free_blocks = free_clusters
            .saturating_mul(self.blocks_per_cluster)
            .min(self.blocks);
        let withheld = self.reserved_blocks.saturating_add(self.emergency_blocks());
        let total = self
            .blocks
            .saturating_sub(self.overhead_blocks(journal_length));
        Ok(Usage {
            bytes_total: total.saturating_mul(block_size),
            bytes_free: free_blocks.saturating_mul(block_size),
            bytes_available: free_blocks
                .saturating_sub(withheld)
                .saturating_mul(block_size),
            inodes_total: u64::from(self.inodes),
            inodes_free: free_inodes.min(u64::from(self.inodes)),
        })
    }

    fn read_descriptors(&self, bytes: &dyn ReadAt) -> Result<Vec<u8>> {
        let length = u64::from(self.groups) * u64::from(self.descriptor_size);
        if length > MAX_DESCRIPTORS || self.incompat & INCOMPAT_META_BG != 0 {
            return Err(Error::new(
                ErrorKind::Unsupported,
                "block group descriptors of this size or layout",
            ));
        }
        let mut descriptors = vec![0; usize::try_from(length).map_err(Error::other)?];
        bytes.read_exact_at(&mut descriptors, self.descriptors_at())?;
        Ok(descriptors)
    }

    /// What the kernel sets aside for itself (`ext4_set_resv_clusters`): 2 %, at most 4096
    /// clusters, with extents only.
    fn emergency_blocks(&self) -> u64 {
        if self.incompat & INCOMPAT_EXTENTS == 0 {
            return 0;
        }
        (self.blocks / self.blocks_per_cluster / 50).min(4096) * self.blocks_per_cluster
    }

    /// Blocks that hold the file system's own structures (`ext4_calculate_overhead`).
    fn overhead_blocks(&self, journal_length: u64) -> u64 {
        // With bigalloc the kernel believes the stored figure, too.
        if self.ro_compat & RO_COMPAT_BIGALLOC != 0
            && u64::from(self.overhead_clusters) <= self.blocks
        {
            return u64::from(self.overhead_clusters) * self.blocks_per_cluster;
        }
        let block_size = u64::from(self.block_size);
        let inode_table =
            (u64::from(self.inodes_per_group) * u64::from(self.inode_size)).div_ceil(block_size);
        let table_blocks =
            (u64::from(self.groups) * u64::from(self.descriptor_size)).div_ceil(block_size);
        let with_superblock = (0..self.groups)
            .filter(|group| self.has_superblock(*group))
            .count() as u64;
        let journal = if self.compat & COMPAT_HAS_JOURNAL != 0 {
            journal_length / block_size
        } else {
            0
        };
        u64::from(self.first_data_block)
            + u64::from(self.groups) * (inode_table + 2)
            + with_superblock * (1 + table_blocks + u64::from(self.reserved_gdt_blocks))
            + journal
    }

    /// Whether a group carries a copy of the superblock (`ext4_bg_has_super`).
    fn has_superblock(&self, group: u32) -> bool {
        if group == 0 {
            return true;
        }
        if self.compat & COMPAT_SPARSE_SUPER2 != 0 {
            return self.backup_groups.contains(&group);
        }
        if group == 1 || self.ro_compat & RO_COMPAT_SPARSE_SUPER == 0 {
            return true;
        }
        [3, 5, 7].iter().any(|root| is_power_of(group, *root))
    }

    /// Number of the journal's inode, where the journal is inside.
    pub(super) fn journal_inode(&self) -> Option<u32> {
        (self.compat & COMPAT_HAS_JOURNAL != 0 && self.journal_inode != 0)
            .then_some(self.journal_inode)
    }
}

fn is_power_of(mut number: u32, root: u32) -> bool {
    while number > 1 && number.is_multiple_of(root) {
        number /= root;
    }
    number == 1
}

/// Mount, write and check times, each with 8 more bits for the years after 2106, and the last
/// error's.
fn newest_time(raw: &[u8]) -> i64 {
    [(0x2c, 0x275), (0x30, 0x274), (0x40, 0x277), (0x1cc, 0x279)]
        .iter()
        .map(|(low, high)| {
            i64::from(le32(raw, *low)) | (i64::from(raw.get(*high).copied().unwrap_or(0)) << 32)
        })
        .max()
        .unwrap_or(0)
}
