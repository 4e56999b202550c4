//! The outermost of a bbolt file: its two meta pages, its length, and how many members etcd has written down.
//!
//! All numbers are little endian. Page header: u64 id, u16 flags, u16 count, u32 overflow. Meta, behind the header of pages 0
//! and 1: u32 magic, u32 version, u32 page size, u32 flags, u64 root page, u64 sequence, u64 freelist, u64 high-water mark, u64
//! transaction, u64 FNV-1a of the 56 bytes before. Transaction N writes page N % 2; a reader takes the newer one that is valid.

use std::path::Path;

use crate::guest::{Tree, TreeResult};

const MAGIC: u32 = 0xED0C_DAED;
const VERSION: u32 = 2;
const HEADER: usize = 16;
const META: usize = 64;
const ELEMENT: usize = 16;
const BRANCH_PAGE: u16 = 1;
const LEAF_PAGE: u16 = 2;
const BUCKET_ELEMENT: u32 = 1;

/// The largest page bbolt is looked for with where the first meta is damaged (bbolt tries up to 16 MiB; systems have 4 to 64 KiB).
const LARGEST_PAGE: u64 = 64 << 10;

/// The largest page that is read whole.
const READ_PAGE: u64 = 1 << 20;

/// One valid meta page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Meta {
    /// Bytes of a page.
    pub page_size: u64,
    /// The page of the root bucket.
    pub root: u64,
    /// Pages in use and free: the file must be at least so many pages long.
    pub pages: u64,
    /// Number of the transaction that wrote it.
    pub transaction: u64,
}

/// What the outermost of the file says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outline {
    /// Meta page 0, or what is wrong with it.
    pub first: Result<Meta, &'static str>,
    /// Meta page 1.
    pub second: Result<Meta, &'static str>,
    /// Length of the file.
    pub size: u64,
    /// What is wrong with the root page of the newest meta.
    pub root_fault: Option<&'static str>,
    /// Entries of the bucket `members`, where it can be reached in three reads.
    pub members: Option<u64>,
}

impl Outline {
    /// The meta that bbolt will use.
    pub fn newest(&self) -> Option<Meta> {
        [self.first, self.second].into_iter().flatten().max_by_key(|meta| meta.transaction)
    }

    /// Bytes missing at the end: etcd dies of "unexpected fault address" when it reaches there.
    pub fn missing(&self) -> u64 {
        self.newest().map_or(0, |meta| meta.pages.saturating_mul(meta.page_size).saturating_sub(self.size))
    }
}

/// Reads it from a regular file of `size` bytes.
pub fn outline(tree: &dyn Tree, path: &Path, size: u64) -> TreeResult<Outline> {
    let first = meta(&tree.read_range(path, 0, HEADER + META)?);
    let second = match first {
        Ok(meta) => self::meta(&tree.read_range(path, meta.page_size, HEADER + META)?),
        Err(_) => find_second(tree, path)?,
    };
    let mut outline = Outline { first, second, size, root_fault: None, members: None };
    if let Some(meta) = outline.newest() {
        match page(tree, path, meta, meta.root)? {
            Ok(root) => outline.members = members(tree, path, meta, &root)?,
            Err(fault) => outline.root_fault = Some(fault),
        }
    }
    Ok(outline)
}

/// Without the first meta the page size is not known, so each possible place is tried.
fn find_second(tree: &dyn Tree, path: &Path) -> TreeResult<Result<Meta, &'static str>> {
    let mut size = 1024;
    while size <= LARGEST_PAGE {
        if let Ok(meta) = meta(&tree.read_range(path, size, HEADER + META)?)
            && meta.page_size == size
        {
            return Ok(Ok(meta));
        }
        size *= 2;
    }
    Ok(Err("no meta page at any page size"))
}

fn meta(page: &[u8]) -> Result<Meta, &'static str> {
    let bytes = page.get(HEADER..HEADER + META).ok_or("the file is too short")?;
    if u32_at(bytes, 0) != Some(MAGIC) {
        return Err("wrong magic");
    }
    if u32_at(bytes, 4) != Some(VERSION) {
        return Err("unknown version");
    }
    let summed = bytes.get(..56).ok_or("the file is too short")?;
    if u64_at(bytes, 56) != Some(fnv1a(summed)) {
        return Err("wrong checksum");
    }
    let field = |at| u64_at(bytes, at).ok_or("the file is too short");
    let page_size = u64::from(u32_at(bytes, 8).ok_or("the file is too short")?);
    if !page_size.is_power_of_two() || !(1024..=READ_PAGE).contains(&page_size) {
        return Err("impossible page size");
    }
    Ok(Meta { page_size, root: field(16)?, pages: field(40)?, transaction: field(48)? })
}

/// FNV-1a, 64 bits.
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

/// One page of a bucket.
fn page(tree: &dyn Tree, path: &Path, meta: Meta, id: u64) -> TreeResult<Result<Vec<u8>, &'static str>> {
    let Some(offset) = id.checked_mul(meta.page_size).filter(|_| id < meta.pages) else {
        return Ok(Err("it is behind the end of the database"));
    };
    let header = tree.read_range(path, offset, HEADER)?;
    if u64_at(&header, 0) != Some(id) {
        return Ok(Err("the page is not what it should be"));
    }
    if !matches!(u16_at(&header, 8), Some(BRANCH_PAGE | LEAF_PAGE)) {
        return Ok(Err("the page is of a wrong type"));
    }
    let overflow = u64::from(u32_at(&header, 12).unwrap_or(0));
    let length = (overflow + 1).saturating_mul(meta.page_size).min(READ_PAGE);
    Ok(Ok(tree.read_range(path, offset, usize::try_from(length).unwrap_or(0))?))
}

/// Counts the entries of `members` where root bucket and `members` are one leaf each, as they are in practice.
fn members(tree: &dyn Tree, path: &Path, meta: Meta, root: &[u8]) -> TreeResult<Option<u64>> {
    let Some(bucket) = find_bucket(root, b"members") else { return Ok(None) };
    let Some(page_id) = u64_at(bucket, 0) else { return Ok(None) };
    if page_id == 0 {
        return Ok(bucket.get(16..).and_then(leaf_count));
    }
    Ok(page(tree, path, meta, page_id)?.ok().and_then(|page| leaf_count(&page)))
}

fn leaf_count(page: &[u8]) -> Option<u64> {
    (u16_at(page, 8)? == LEAF_PAGE).then(|| u16_at(page, 10).map(u64::from))?
}

/// The value of a bucket's element in a leaf page: u64 root page, u64 sequence, then an inline page where the root is 0.
fn find_bucket<'a>(page: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    let count = usize::try_from(leaf_count(page)?).ok()?;
    (0..count).find_map(|index| {
        let at = HEADER + index * ELEMENT;
        let word = |offset| u32_at(page, at + offset).and_then(|word| usize::try_from(word).ok());
        let (position, key_size, value_size) = (at.checked_add(word(4)?)?, word(8)?, word(12)?);
        let key_end = position.checked_add(key_size)?;
        let key = page.get(position..key_end)?;
        let value = page.get(key_end..key_end.checked_add(value_size)?)?;
        (u32_at(page, at) == Some(BUCKET_ELEMENT) && key == name).then_some(value)
    })
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

#[cfg(test)]
pub(crate) use tests::sample;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guest::MemoryTree;

    /// A database of four pages: two metas, a root leaf with an inline bucket `members` of `members` entries, and a free one.
    pub fn sample(members: u16) -> Vec<u8> {
        let mut file = vec![0u8; 4 * 4096];
        for page in 0..2u64 {
            let at = usize::try_from(page).unwrap() * 4096;
            file[at..at + 8].copy_from_slice(&page.to_le_bytes());
            file[at + 8] = 4;
            let meta = &mut file[at + 16..at + 80];
            meta[..4].copy_from_slice(&MAGIC.to_le_bytes());
            meta[4] = 2;
            meta[8..12].copy_from_slice(&4096u32.to_le_bytes());
            meta[16] = 2;
            meta[32..40].fill(0xff);
            meta[40] = 4;
            meta[48] = 10 + u8::try_from(page).unwrap();
            let sum = fnv1a(&meta[..56]);
            meta[56..64].copy_from_slice(&sum.to_le_bytes());
        }
        let root = &mut file[2 * 4096..3 * 4096];
        root[0] = 2;
        root[8] = 2;
        root[10] = 1;
        // One element: a bucket, key 16 bytes behind the element, value of root 0, sequence and an inline page header.
        root[16] = 1;
        root[20] = 16;
        root[24] = 7;
        root[28] = 32;
        root[32..39].copy_from_slice(b"members");
        root[39 + 16 + 8] = 2;
        root[39 + 16 + 10..39 + 16 + 12].copy_from_slice(&members.to_le_bytes());
        file
    }

    fn outline_of(file: &[u8]) -> Outline {
        outline(&MemoryTree::new().file("/db", file), Path::new("/db"), file.len() as u64).unwrap()
    }

    #[test]
    fn reads_metas_and_members() {
        let outline = outline_of(&sample(3));
        assert_eq!(outline.newest().unwrap().transaction, 11);
        assert_eq!((outline.members, outline.root_fault, outline.missing()), (Some(3), None, 0));
    }

    #[test]
    fn one_damaged_meta_leaves_the_other() {
        for damaged in [20, 4096 + 20, 16 + 50, 4096 + 16 + 50] {
            let mut file = sample(1);
            file[damaged] ^= 0xff;
            let outline = outline_of(&file);
            assert!(outline.first.is_err() != outline.second.is_err(), "{damaged}");
            assert_eq!(outline.members, Some(1));
        }
    }

    #[test]
    fn damage_is_named() {
        let mut file = sample(1);
        file[16] ^= 1;
        file[4096 + 16] ^= 1;
        assert_eq!(outline_of(&file).newest(), None);
        assert_eq!(outline_of(&sample(1)[..3 * 4096]).missing(), 4096);
        let mut file = sample(1);
        file[2 * 4096] = 7;
        assert!(outline_of(&file).root_fault.is_some());
        assert_eq!(outline_of(b"").newest(), None);
    }

    #[test]
    fn no_single_byte_panics() {
        let good = sample(2);
        for at in (0..80).chain(4096..4176).chain(8192..8300) {
            for value in [0, 1, 0x7f, 0xff] {
                let mut file = good.clone();
                file[at] = value;
                let _ = outline_of(&file);
            }
        }
        for length in (0..good.len()).step_by(97) {
            let _ = outline_of(&good[..length]);
        }
    }
}
