//! The two meta pages. Behind the header of pages 0 and 1: u32 magic, u32 version, u32 page size,
//! u32 flags, u64 root page, u64 sequence, u64 freelist, u64 high-water mark, u64 transaction, u64
//! FNV-1a of the 56 bytes before. Transaction N writes page N % 2; a reader takes the newer one
//! that is valid.

use crate::etcd::format::file::File;
use crate::tree::TreeResult;

/// What a meta begins with.
pub const MAGIC: u32 = 0xED0C_DAED;
/// The format.
pub const VERSION: u32 = 2;
/// A meta page by its header.
pub const FLAG: u16 = 4;
const HEADER: usize = 16;
/// Bytes of a meta behind its page's header.
pub const LENGTH: usize = 64;

/// Bytes of a meta page that mean something: header and meta.
pub const PAGE_BYTES: usize = HEADER + LENGTH;

/// The largest page size: arm64 has 64 KiB; nothing has more.
pub const LARGEST_PAGE: u64 = 64 << 10;

/// `freelist` where the free pages are not stored, as etcd has it on Linux.
pub const NO_FREELIST: u64 = u64::MAX;

/// One valid meta page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Meta {
    /// Its page: 0 or 1.
    pub slot: u64,
    /// Bytes of a page.
    pub page_size: u64,
    /// The page of the root bucket.
    pub root: u64,
    /// The page of the freelist, or [`NO_FREELIST`].
    pub freelist: u64,
    /// Pages in use and free: the file must be at least so many pages long.
    pub pages: u64,
    /// Number of the transaction that wrote it.
    pub transaction: u64,
}

/// What is wrong with a meta page.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum MetaFault {
    /// The file ends before it.
    #[error("the file is too short")]
    Short,
    /// It is none.
    #[error("wrong magic")]
    Magic,
    /// Of another format.
    #[error("unknown version")]
    Version,
    /// Written in part.
    #[error("wrong checksum")]
    Checksum,
    /// Right in itself but senseless.
    #[error("impossible numbers")]
    Impossible,
}

/// Both meta pages.
///
/// # Errors
/// As the tree gives them.
pub fn read_both(file: &File) -> TreeResult<[Result<Meta, MetaFault>; 2]> {
    let first = parse(&file.read(0, HEADER + LENGTH)?, 0);
    let second = match first {
        Ok(meta) => parse(&file.read(meta.page_size, HEADER + LENGTH)?, 1),
        Err(_) => find_second(file)?,
    };
    Ok([first, second])
}

/// Without the first meta the page size is not known, so each possible place is tried.
fn find_second(file: &File) -> TreeResult<Result<Meta, MetaFault>> {
    let mut fault = MetaFault::Short;
    let mut size = 1024;
    while size <= LARGEST_PAGE {
        match parse(&file.read(size, HEADER + LENGTH)?, 1) {
            Ok(meta) if meta.page_size == size => return Ok(Ok(meta)),
            Err(other) if size == 4096 => fault = other,
            _ => {}
        }
        size *= 2;
    }
    Ok(Err(fault))
}

fn parse(page: &[u8], slot: u64) -> Result<Meta, MetaFault> {
    let bytes: &[u8; LENGTH] = page
        .get(HEADER..HEADER + LENGTH)
        .and_then(|bytes| bytes.try_into().ok())
        .ok_or(MetaFault::Short)?;
    let u32_at = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap_or_default());
    let u64_at = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap_or_default());
    if u32_at(0) != MAGIC {
        return Err(MetaFault::Magic);
    }
    if u32_at(4) != VERSION {
        return Err(MetaFault::Version);
    }
    if u64_at(56) != fnv1a(&bytes[..56]) {
        return Err(MetaFault::Checksum);
    }
    let page_size = u64::from(u32_at(8));
    let (root, pages) = (u64_at(16), u64_at(40));
    if !page_size.is_power_of_two()
        || !(1024..=LARGEST_PAGE).contains(&page_size)
        || !(2..pages).contains(&root)
    {
        return Err(MetaFault::Impossible);
    }
    Ok(Meta {
        slot,
        page_size,
        root,
        freelist: u64_at(32),
        pages,
        transaction: u64_at(48),
    })
}

/// FNV-1a, 64 bits.
pub fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}
