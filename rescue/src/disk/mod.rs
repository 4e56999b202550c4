//! Disks and what is on them, read-only: sources, partition tables, probing, copy-on-write export.

pub mod attached;
mod backing;
pub mod btrfs;
mod bytes;
pub mod device_mapper;
pub mod export;
mod ext4_inode;
mod ext4_tree;
mod ext4_xattr;
mod ext_super;
mod fat;
pub mod given;
mod gpt;
pub mod image;
pub mod layout;
pub mod loop_device;
pub mod luks;
pub mod lvm;
mod mbr;
pub(crate) mod mountinfo;
pub mod partition;
pub mod probe;
pub mod raid;
mod source;
pub mod stack;
pub mod storage_daemon;
pub mod volume;
pub mod words;

pub use backing::{Backing, Leftover};
pub use ext_super::{BadSuperblock, ExtSuper};
pub use ext4_tree::Ext4Tree;
pub use fat::FatSuper;
pub use source::Disk;
pub(crate) use source::shown;

use std::path::PathBuf;

/// What the user named: where a powered-off system may be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// A block device or an image file.
    Disk(PathBuf),
    /// A folder under which the guest is already mounted.
    Root(PathBuf),
}

/// The seam at the bottom: a run of bytes that can be read at any offset. Devices, image files,
/// partitions (and later logical volumes, image formats, LUKS) stack on it; everything above reads
/// through it.
pub trait ReadAt: Send + Sync {
    /// Length in bytes.
    fn len(&self) -> u64;

    /// Whether there are no bytes at all.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Logical sector size in bytes: 512 or 4096.
    fn sector_size(&self) -> u32;

    /// Fills `buffer` from `offset`; reading past the end is `UnexpectedEof`.
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> std::io::Result<()>;
}
