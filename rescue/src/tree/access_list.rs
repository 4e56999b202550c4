//! A file's POSIX access list (`setfacl`): who else than owner, group and others may use it.
//!
//! Layouts: include/uapi/linux/posix_acl_xattr.h (what `getxattr` gives) and fs/ext4/acl.h (what
//! ext4 stores).

use std::fmt;

/// Name of the extended attribute that holds the list.
pub const ACCESS: &str = "system.posix_acl_access";
/// Name of the extended attribute of a folder with the list that new files in it inherit.
pub const DEFAULT: &str = "system.posix_acl_default";

const TAG_USER: u16 = 0x02;
const TAG_OWNING_GROUP: u16 = 0x04;
const TAG_GROUP: u16 = 0x08;
const TAG_MASK: u16 = 0x10;

/// Version of the list that `getxattr` gives; every entry has 8 bytes.
const XATTR_VERSION: u32 = 2;
/// Version of the list that ext4 stores; only entries with an ID have 8 bytes, the others 4.
const EXT4_VERSION: u32 = 1;

/// A user or group beside the owner and the owning group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Named {
    /// User by ID.
    User(u32),
    /// Group by ID.
    Group(u32),
}

impl fmt::Display for Named {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::User(id) => write!(f, "user {id}"),
            Self::Group(id) => write!(f, "group {id}"),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Entry {
    tag: u16,
    /// Read 4, write 2, execute 1.
    permissions: u32,
    id: u32,
}

/// The entries of one file's access list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccessList {
    entries: Vec<Entry>,
}

impl AccessList {
    /// From the value of [`ACCESS`] as the kernel gives it; `None` where it is no such list.
    pub fn from_xattr(value: &[u8]) -> Option<Self> {
        let (version, mut rest) = value.split_first_chunk::<4>()?;
        if u32::from_le_bytes(*version) != XATTR_VERSION {
            return None;
        }
        let mut entries = Vec::new();
        while let Some((raw, after)) = rest.split_first_chunk::<8>() {
            entries.push(entry(*raw));
            rest = after;
        }
        rest.is_empty().then_some(Self { entries })
    }

    /// From the value that ext4 stores; `None` where it is no such list.
    pub fn from_ext4(value: &[u8]) -> Option<Self> {
        let (version, mut rest) = value.split_first_chunk::<4>()?;
        if u32::from_le_bytes(*version) != EXT4_VERSION {
            return None;
        }
        let mut entries = Vec::new();
        while let Some((&[a, b, c, d], after)) = rest.split_first_chunk::<4>() {
            let has_id = matches!(u16::from_le_bytes([a, b]), TAG_USER | TAG_GROUP);
            let id = if has_id {
                *after.first_chunk::<4>()?
            } else {
                [0xff; 4]
            };
            entries.push(entry([a, b, c, d, id[0], id[1], id[2], id[3]]));
            rest = if has_id { after.get(4..)? } else { after };
        }
        rest.is_empty().then_some(Self { entries })
    }

    /// Whom the list gives something, each with the permissions that are left after the mask (read
    /// 4, write 2, execute 1).
    pub fn named(&self) -> Vec<(Named, u32)> {
        let effective = |entry: &Entry| entry.permissions & self.mask();
        let named = self.entries.iter().filter_map(|entry| match entry.tag {
            TAG_USER => Some((Named::User(entry.id), effective(entry))),
            TAG_GROUP => Some((Named::Group(entry.id), effective(entry))),
            _ => None,
        });
        named.filter(|(_, permissions)| *permissions != 0).collect()
    }

    /// What the owning group may do (read 4, write 2, execute 1). The mode cannot tell: its group
    /// bits are the mask.
    pub fn owning_group(&self) -> u32 {
        let group = self
            .entries
            .iter()
            .find(|entry| entry.tag == TAG_OWNING_GROUP);
        group.map_or(0, |entry| entry.permissions & self.mask())
    }

    fn mask(&self) -> u32 {
        self.entries
            .iter()
            .find(|entry| entry.tag == TAG_MASK)
            .map_or(7, |entry| entry.permissions)
    }
}

fn entry([tag_low, tag_high, low, high, a, b, c, d]: [u8; 8]) -> Entry {
    Entry {
        tag: u16::from_le_bytes([tag_low, tag_high]),
        permissions: u32::from(u16::from_le_bytes([low, high])) & 7,
        id: u32::from_le_bytes([a, b, c, d]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// user::rw-, user:1000:rw-, group::---, mask::r--, other::---
    const ENTRIES: [(u16, u16, u32); 5] = [
        (0x01, 6, u32::MAX),
        (0x02, 6, 1000),
        (0x04, 0, u32::MAX),
        (0x10, 4, u32::MAX),
        (0x20, 0, u32::MAX),
    ];

    fn value(version: u32, with_id: impl Fn(u16) -> bool) -> Vec<u8> {
        let mut bytes = version.to_le_bytes().to_vec();
        for (tag, permissions, id) in ENTRIES {
            bytes.extend(tag.to_le_bytes());
            bytes.extend(permissions.to_le_bytes());
            if with_id(tag) {
                bytes.extend(id.to_le_bytes());
            }
        }
        bytes
    }

    #[test]
    fn both_layouts_tell_the_same() {
        let kernel = value(2, |_| true);
        let ext4 = value(1, |tag| tag == 0x02);
        for list in [
            AccessList::from_xattr(&kernel),
            AccessList::from_ext4(&ext4),
        ] {
            let list = list.expect("a list");
            assert_eq!(list.named(), [(Named::User(1000), 4)]);
            assert_eq!(list.owning_group(), 0);
        }
        assert_eq!(AccessList::from_xattr(&ext4), None);
        assert_eq!(AccessList::from_ext4(&kernel), None);
    }

    #[test]
    fn what_is_cut_off_is_no_list() {
        let (kernel, ext4) = (value(2, |_| true), value(1, |tag| tag == 0x02));
        for length in 0..kernel.len() {
            assert!(
                length % 8 == 4 || AccessList::from_xattr(&kernel[..length]).is_none(),
                "{length}"
            );
        }
        // Before, within and behind the ID of the second entry.
        for length in [0, 3, 6, 10, 14] {
            assert_eq!(AccessList::from_ext4(&ext4[..length]), None, "{length}");
        }
    }
}
