//! One page of a bucket's tree: branches to other pages, or a leaf with keys and values.

use super::{Fault, Item, Meta};
use crate::etcd::file::File;

const HEADER: usize = 16;
const ELEMENT: usize = 16;
const BRANCH: u16 = 1;
const LEAF: u16 = 2;
const BUCKET: u32 = 1;

/// A leaf holds two elements at least, whatever their size; etcd's requests are limited to 1.5 MiB, and to 10 where that was raised.
const MAX_LEAF: u64 = 64 << 20;
/// Keys are at most 32 KiB.
const MAX_BRANCH: u64 = 1 << 20;

/// A branch or leaf page with what overflows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    id: u64,
    is_leaf: bool,
    count: usize,
    /// Pages that it spans beyond the first.
    overflow: u64,
    bytes: Vec<u8>,
}

/// Reads page `id` and checks what its header says.
///
/// # Errors
/// A [`Fault`] that names the page.
pub fn read(file: &File, meta: &Meta, id: u64) -> Result<Page, Fault> {
    let fault = |what| Err(Fault::Page { page: id, what });
    if !(2..meta.pages).contains(&id) {
        return fault("out of bounds");
    }
    let offset = id.saturating_mul(meta.page_size);
    let first = file.read(offset, usize::try_from(meta.page_size).unwrap_or(0))?;
    let (Some(own), Some(flags), Some(overflow)) = (u64_at(&first, 0), u16_at(&first, 8), u32_at(&first, 12)) else {
        return fault("behind the end of the file");
    };
    if own != id {
        return fault("it identifies as another page");
    }
    if !matches!(flags, BRANCH | LEAF) {
        return fault("invalid page type");
    }
    let (overflow, is_leaf) = (u64::from(overflow), flags == LEAF);
    if id.saturating_add(overflow) >= meta.pages {
        return fault("it spans more pages than there are");
    }
    let length = overflow.saturating_add(1).saturating_mul(meta.page_size);
    if length > if is_leaf { MAX_LEAF } else { MAX_BRANCH } {
        return Err(Fault::Implausible(id));
    }
    let bytes = match overflow {
        0 => first,
        _ => file.read(offset, usize::try_from(length).unwrap_or(0))?,
    };
    if (bytes.len() as u64) < length {
        return fault("behind the end of the file");
    }
    let count = usize::from(u16_at(&bytes, 10).unwrap_or(0));
    Ok(Page { id, is_leaf, count, overflow, bytes })
}

impl Page {
    /// The page within the value of a small bucket. What its header says of itself is not used by bbolt but for the count.
    pub fn inline(bytes: Vec<u8>) -> Self {
        let count = usize::from(u16_at(&bytes, 10).unwrap_or(0));
        Self { id: 0, is_leaf: true, count, overflow: 0, bytes }
    }

    /// Its number; 0 for an inline page.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Whether it holds keys and values.
    pub fn is_leaf(&self) -> bool {
        self.is_leaf
    }

    /// Number of elements.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Pages that it spans beyond the first.
    pub fn overflow(&self) -> u64 {
        self.overflow
    }

    /// Element `index` of a leaf: u32 flags, u32 position counted from the element, u32 key size, u32 value size.
    ///
    /// # Errors
    /// [`Fault::Page`] where it leads out of the page.
    pub fn leaf(&self, index: usize) -> Result<Item<'_>, Fault> {
        let item = || {
            let at = HEADER + index * ELEMENT;
            let word = |offset| u32_at(&self.bytes, at + offset).and_then(|word| usize::try_from(word).ok());
            let key_at = at.checked_add(word(4)?)?;
            let value_at = key_at.checked_add(word(8)?)?;
            let key = self.bytes.get(key_at..value_at)?;
            let value = self.bytes.get(value_at..value_at.checked_add(word(12)?)?)?;
            Some(Item { key, value, is_bucket: u32_at(&self.bytes, at)? & BUCKET != 0 })
        };
        item().ok_or(Fault::Page { page: self.id, what: "an element leads out of the page" })
    }

    /// Element `index` of a branch: u32 position, u32 key size, u64 page. The child's first key, and the child.
    ///
    /// # Errors
    /// [`Fault::Page`] where it leads out of the page.
    pub fn branch(&self, index: usize) -> Result<(&[u8], u64), Fault> {
        let element = || {
            let at = HEADER + index * ELEMENT;
            let word = |offset| u32_at(&self.bytes, at + offset).and_then(|word| usize::try_from(word).ok());
            let key_at = at.checked_add(word(0)?)?;
            let key = self.bytes.get(key_at..key_at.checked_add(word(4)?)?)?;
            Some((key, u64_at(&self.bytes, at + 8)?))
        };
        element().ok_or(Fault::Page { page: self.id, what: "an element leads out of the page" })
    }
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..at.checked_add(2)?)?.try_into().ok().map(u16::from_le_bytes)
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at.checked_add(4)?)?.try_into().ok().map(u32::from_le_bytes)
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..at.checked_add(8)?)?.try_into().ok().map(u64::from_le_bytes)
}
