//! Extended attributes of ext2, ext3 and ext4 inodes. Layout: the kernel's fs/ext4/xattr.h.
//!
//! A large inode holds attributes behind its fields (`i_extra_isize`); one block (`i_file_acl`)
//! holds what does not fit, and all of a small inode's. Entries grow from the front, values from
//! the end.

use super::bytes::{le16, le32};

/// `EXT4_XATTR_MAGIC`, of the inode's own area and of the block.
const MAGIC: u32 = 0xea02_0000;
/// `struct ext4_xattr_header`, in front of a block's entries.
const BLOCK_HEADER: usize = 32;
/// `struct ext4_xattr_entry` without the name.
const ENTRY: usize = 16;
/// Fields of every inode (`EXT4_GOOD_OLD_INODE_SIZE`); what `i_extra_isize` counts comes after
/// them.
const OLD_INODE: usize = 128;

/// `EXT4_XATTR_INDEX_POSIX_ACL_ACCESS`: the attribute `system.posix_acl_access`, whose own name is
/// empty.
pub(super) const POSIX_ACL_ACCESS: u8 = 2;

/// The block that holds more attributes of the inode; 0 for none.
pub(super) fn block_of(inode: &[u8]) -> u64 {
    u64::from(le32(inode, 0x68)) | (u64::from(le16(inode, 0x76)) << 32)
}

/// Value of the nameless attribute of kind `index` within the inode.
pub(super) fn in_inode(inode: &[u8], index: u8) -> Result<Option<Vec<u8>>, &'static str> {
    if inode.len() <= OLD_INODE {
        return Ok(None);
    }
    let at = OLD_INODE + usize::from(le16(inode, 0x80));
    match inode.get(at + 4..) {
        // Offsets of values count from the first entry.
        Some(area) if le32(inode, at) == MAGIC => find(area, area, index),
        _ => Ok(None),
    }
}

/// Value of the nameless attribute of kind `index` in the inode's block.
pub(super) fn in_block(block: &[u8], index: u8) -> Result<Option<Vec<u8>>, &'static str> {
    match block.get(BLOCK_HEADER..) {
        // Offsets of values count from the beginning of the block.
        Some(entries) if le32(block, 0) == MAGIC => find(entries, block, index),
        _ => Err("the block with its extended attributes is damaged"),
    }
}

fn find(entries: &[u8], values: &[u8], index: u8) -> Result<Option<Vec<u8>>, &'static str> {
    let mut rest = entries;
    while le32(rest, 0) != 0 {
        let Some(entry) = rest.get(..ENTRY) else {
            return Err("its extended attributes are damaged");
        };
        let name_length = usize::from(entry[0]);
        if (name_length, entry[1]) == (0, index) {
            return value(entry, values).map(Some);
        }
        let next = (ENTRY + name_length).next_multiple_of(4);
        rest = rest
            .get(next..)
            .ok_or("its extended attributes are damaged")?;
    }
    Ok(None)
}

fn value(entry: &[u8], values: &[u8]) -> Result<Vec<u8>, &'static str> {
    if le32(entry, 4) != 0 {
        return Err("an extended attribute is stored in an inode of its own (ea_inode)");
    }
    let (at, size) = (usize::from(le16(entry, 2)), le32(entry, 8) as usize);
    let end = at
        .checked_add(size)
        .ok_or("its extended attributes are damaged")?;
    values
        .get(at..end)
        .map(<[u8]>::to_vec)
        .ok_or("its extended attributes are damaged")
}
