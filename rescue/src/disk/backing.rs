//! Where the bytes of a file system are, and what belongs to no system.

use std::path::PathBuf;

use super::stack::Stack;

/// Where a file system's bytes are, so that it can be mounted for writing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Backing {
    /// A folder that is already mounted (`--root DIR`, or something mounted below it).
    Folder(PathBuf),
    /// A byte range of a block device or image file. A whole-device file system has offset 0.
    Range {
        /// The device or image file.
        path: PathBuf,
        /// First byte of the file system.
        offset: u64,
        /// Length in bytes.
        length: u64,
        /// Logical sector size of the disk: 512 or 4096.
        sector_size: u32,
        /// Whether `path` is a block device (else an image file).
        block_device: bool,
    },
    /// Put together from other backings: a logical volume, for instance.
    Stacked(Box<Stack>),
}

/// Something on the sources that is not part of a guest, and what to say about it.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Leftover {
    /// Where: `disk.img partition 2`.
    pub device: String,
    /// What was found there and what it means, one plain sentence.
    pub what: String,
}
