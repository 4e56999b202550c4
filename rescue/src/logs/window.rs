//! A file of the guest read at any offset, in blocks of which the last few are kept.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::path::PathBuf;
use std::rc::Rc;

use crate::tree::{Tree, TreeResult};

/// Bytes of one block.
const BLOCK: u64 = 256 << 10;

/// Blocks that are kept: 2 MiB.
const KEPT: usize = 8;

/// A regular file of a tree.
pub(super) struct Window {
    tree: Rc<dyn Tree>,
    path: PathBuf,
    size: u64,
    blocks: RefCell<VecDeque<(u64, Rc<Vec<u8>>)>>,
}

impl Window {
    /// The file at `path`.
    ///
    /// # Errors
    /// What the tree says of the file.
    pub fn open(tree: Rc<dyn Tree>, path: PathBuf) -> TreeResult<Self> {
        let size = tree.lstat(&path)?.size;
        Ok(Self {
            tree,
            path,
            size,
            blocks: RefCell::default(),
        })
    }

    /// Its size in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// `length` bytes from `offset`; `None` where the file does not have them, or cannot be read.
    pub fn read(&self, offset: u64, length: usize) -> Option<Vec<u8>> {
        let end = offset.checked_add(length as u64)?;
        if end > self.size {
            return None;
        }
        let mut bytes = Vec::with_capacity(length);
        let mut at = offset;
        while at < end {
            let block = self.block(at / BLOCK)?;
            let from = usize::try_from(at % BLOCK).ok()?;
            let wanted = usize::try_from(end - at).ok()?;
            let there = block.get(from..)?;
            let part = there.get(..wanted.min(there.len()))?;
            if part.is_empty() {
                return None;
            }
            bytes.extend_from_slice(part);
            at += part.len() as u64;
        }
        Some(bytes)
    }

    /// A little-endian number of 32 bits.
    pub fn u32(&self, offset: u64) -> Option<u32> {
        let bytes = self.read(offset, 4)?;
        Some(u32::from_le_bytes(bytes.try_into().ok()?))
    }

    /// A little-endian number of 64 bits.
    pub fn u64(&self, offset: u64) -> Option<u64> {
        let bytes = self.read(offset, 8)?;
        Some(u64::from_le_bytes(bytes.try_into().ok()?))
    }

    fn block(&self, number: u64) -> Option<Rc<Vec<u8>>> {
        let mut blocks = self.blocks.borrow_mut();
        if let Some(at) = blocks.iter().position(|(kept, _)| *kept == number) {
            let found = blocks.remove(at)?;
            let bytes = Rc::clone(&found.1);
            blocks.push_back(found);
            return Some(bytes);
        }
        let offset = number.checked_mul(BLOCK)?;
        let length = usize::try_from(BLOCK).ok()?;
        let bytes = self.tree.read_range(&self.path, offset, length).ok()?;
        let bytes = Rc::new(bytes);
        if blocks.len() >= KEPT {
            blocks.pop_front();
        }
        blocks.push_back((number, Rc::clone(&bytes)));
        Some(bytes)
    }
}
