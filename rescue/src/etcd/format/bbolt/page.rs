//! One page of a bucket's tree: branches to other pages, or a leaf with keys and values.

use super::{Fault, Item, Meta};
use crate::etcd::format::file::File;

const HEADER: usize = 16;
const ELEMENT: usize = 16;
const BRANCH: u16 = 1;
const LEAF: u16 = 2;
const BUCKET: u32 = 1;

/// A leaf holds two elements at least, whatever their size; etcd's requests are limited to 1.5 MiB,
/// and to 10 where that was raised.
const MAX_LEAF: u64 = 64 << 20;
/// Keys are at most 32 KiB.
const MAX_BRANCH: u64 = 1 << 20;

/// A branch or leaf page with what overflows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page<B = Vec<u8>> {
    id: u64,
    is_leaf: bool,
    count: usize,
    /// Pages that it spans beyond the first.
    overflow: u64,
    bytes: B,
}

/// What a page's header says, where it can be right.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    /// Its number.
    pub id: u64,
    /// Whether it holds keys and values.
    pub is_leaf: bool,
    /// Pages that it spans beyond the first.
    pub overflow: u64,
    /// Bytes of them all, 64 MiB at most.
    pub length: usize,
    count: usize,
}

impl Head {
    /// Checks the header of page `id`, which `bytes` begin with.
    ///
    /// # Errors
    /// A [`Fault`] that names the page.
    pub fn parse(bytes: &[u8], meta: &Meta, id: u64) -> Result<Self, Fault> {
        let fault = |what| Err(Fault::Page { page: id, what });
        let (Some(own), Some(flags), Some(count), Some(overflow)) = (
            u64_at(bytes, 0),
            u16_at(bytes, 8),
            u16_at(bytes, 10),
            u32_at(bytes, 12),
        ) else {
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
        match usize::try_from(length) {
            Ok(bytes) if length <= if is_leaf { MAX_LEAF } else { MAX_BRANCH } => Ok(Self {
                id,
                is_leaf,
                overflow,
                length: bytes,
                count: usize::from(count),
            }),
            _ => Err(Fault::Implausible(id)),
        }
    }

    /// The page, whose `bytes` are [`Head::length`] long.
    pub fn page<B: AsRef<[u8]>>(self, bytes: B) -> Page<B> {
        Page {
            id: self.id,
            is_leaf: self.is_leaf,
            count: self.count,
            overflow: self.overflow,
            bytes,
        }
    }
}

/// Where page `id` is; pages 0 and 1 are the metas.
///
/// # Errors
/// A [`Fault`] that names the page.
pub fn offset(meta: &Meta, id: u64) -> Result<u64, Fault> {
    match (2..meta.pages).contains(&id) {
        true => Ok(id.saturating_mul(meta.page_size)),
        false => Err(Fault::Page {
            page: id,
            what: "out of bounds",
        }),
    }
}

/// Reads page `id` and checks what its header says.
///
/// # Errors
/// A [`Fault`] that names the page.
pub fn read(file: &File, meta: &Meta, id: u64) -> Result<Page, Fault> {
    let offset = offset(meta, id)?;
    let first = file.read(offset, usize::try_from(meta.page_size).unwrap_or(0))?;
    let head = Head::parse(&first, meta, id)?;
    let bytes = match head.overflow {
        0 => first,
        _ => file.read(offset, head.length)?,
    };
    if bytes.len() < head.length {
        return Err(Fault::Page {
            page: id,
            what: "behind the end of the file",
        });
    }
    Ok(head.page(bytes))
}

impl Page {
    /// The page within the value of a small bucket. What its header says of itself is not used by
    /// bbolt but for the count.
    pub fn inline(bytes: Vec<u8>) -> Self {
        let count = usize::from(u16_at(&bytes, 10).unwrap_or(0));
        Self {
            id: 0,
            is_leaf: true,
            count,
            overflow: 0,
            bytes,
        }
    }
}

impl<B: AsRef<[u8]>> Page<B> {
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

    /// Element `index` of a leaf: u32 flags, u32 position counted from the element, u32 key size,
    /// u32 value size.
    ///
    /// # Errors
    /// [`Fault::Page`] where it leads out of the page.
    pub fn leaf(&self, index: usize) -> Result<Item<'_>, Fault> {
        let bytes = self.bytes.as_ref();
        let item = || {
            let at = HEADER + index * ELEMENT;
            let word =
                |offset| u32_at(bytes, at + offset).and_then(|word| usize::try_from(word).ok());
            let key_at = at.checked_add(word(4)?)?;
            let value_at = key_at.checked_add(word(8)?)?;
            let key = bytes.get(key_at..value_at)?;
            let value = bytes.get(value_at..value_at.checked_add(word(12)?)?)?;
            Some(Item {
                key,
                value,
                is_bucket: u32_at(bytes, at)? & BUCKET != 0,
            })
        };
        item().ok_or(Fault::Page {
            page: self.id,
            what: "an element leads out of the page",
        })
    }

    /// Element `index` of a branch: u32 position, u32 key size, u64 page. The child's first key,
    /// and the child.
    ///
    /// # Errors
    /// [`Fault::Page`] where it leads out of the page.
    pub fn branch(&self, index: usize) -> Result<(&[u8], u64), Fault> {
        let bytes = self.bytes.as_ref();
        let element = || {
            let at = HEADER + index * ELEMENT;
            let word =
                |offset| u32_at(bytes, at + offset).and_then(|word| usize::try_from(word).ok());
            let key_at = at.checked_add(word(0)?)?;
            let key = bytes.get(key_at..key_at.checked_add(word(4)?)?)?;
            Some((key, u64_at(bytes, at + 8)?))
        };
        element().ok_or(Fault::Page {
            page: self.id,
            what: "an element leads out of the page",
        })
    }
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes
        .get(at..at.checked_add(2)?)?
        .try_into()
        .ok()
        .map(u16::from_le_bytes)
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes
        .get(at..at.checked_add(4)?)?
        .try_into()
        .ok()
        .map(u32::from_le_bytes)
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    bytes
        .get(at..at.checked_add(8)?)?
        .try_into()
        .ok()
        .map(u64::from_le_bytes)
}
