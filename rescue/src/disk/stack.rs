//! What is put together from pieces of disks before a file system appears: a logical volume over
//! its physical volumes, and whatever else comes between. Only names and numbers: `disk` reads
//! through them, `repair` makes block devices of them.

use std::path::Path;

use super::layout::Layout;
use super::luks::Crypt;
use super::lvm::LogicalName;
use crate::disk::Backing;

/// One layer over others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stack {
    /// What it is made of, in the order that the layer counts.
    pub below: Vec<Backing>,
    /// How.
    pub layer: Layer,
}

/// Kinds of layers. A new kind needs an arm where it is read for the last look before writing
/// (`repair::look`) and one where it becomes a block device (`repair::write_device`); the compiler
/// names both.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Layer {
    /// A logical volume of LVM2, linear or striped.
    Logical {
        /// Its names.
        name: LogicalName,
        /// Where its bytes are.
        layout: Layout,
        /// Whether its own permission lets anybody write.
        writable: bool,
    },
    /// The data behind a LUKS header, with its key.
    Encrypted(Crypt),
    /// A mirror of Linux's software RAID, read through one leg.
    Mirror(Mirror),
}

/// One leg, and the others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mirror {
    /// First byte of the data on the leg.
    pub offset: u64,
    /// Length of the data.
    pub length: u64,
    /// How people name the legs that were given.
    pub legs: Vec<String>,
    /// How many there are when it is whole.
    pub disks: u32,
}

impl Backing {
    /// The devices and image files at the bottom, each once, and whether it is a block device; none
    /// for a folder.
    pub fn disks(&self) -> Vec<(&Path, bool)> {
        let mut disks = Vec::new();
        self.collect_disks(&mut disks);
        disks
    }

    fn collect_disks<'a>(&'a self, disks: &mut Vec<(&'a Path, bool)>) {
        match self {
            Self::Folder(_) => {}
            Self::Range {
                path, block_device, ..
            } => {
                if !disks.iter().any(|(there, _)| *there == path) {
                    disks.push((path, *block_device));
                }
            }
            Self::Stacked(stack) => stack
                .below
                .iter()
                .for_each(|below| below.collect_disks(disks)),
        }
    }

    /// The first device, image file or folder: what people typed to name it.
    pub fn first_path(&self) -> &Path {
        match self {
            Self::Folder(path) | Self::Range { path, .. } => path,
            Self::Stacked(stack) => stack.below.first().map_or(Path::new(""), Self::first_path),
        }
    }
}
