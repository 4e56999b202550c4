//! A guest made of a tree in memory.

use std::path::PathBuf;
use std::rc::Rc;

use super::{FileSystem, Guest, GuestPath};
use crate::disk::Backing;
use crate::tree::{MemoryTree, Usage};

impl MemoryTree {
    /// A guest with one file system `memory` of 100 GiB, half of it free.
    pub fn into_guest(self) -> Guest {
        let gib = 1 << 30;
        let usage = Usage {
            bytes_total: 100 * gib,
            bytes_free: 50 * gib,
            bytes_available: 50 * gib,
            inodes_total: 1_000_000,
            inodes_free: 500_000,
        };
        let root = FileSystem {
            mount_point: GuestPath::new("/"),
            kind: "memory".to_owned(),
            device: "memory".to_owned(),
            uuid: None,
            usage,
            backing: Backing::Folder(PathBuf::from("/nonexistent")),
            subvolume: None,
            has_errors: false,
        };
        Guest::new("memory", Rc::new(self), vec![root])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolves_links_and_makes_folders() {
        let guest = MemoryTree::new()
            .file("/usr/lib/os-release", "ID=debian\n")
            .link("/etc/os-release", "../usr/lib/os-release")
            .mode("/usr/lib/os-release", 0o600)
            .into_guest();
        let path = GuestPath::new("/etc/os-release");
        assert_eq!(guest.read_text(&path).expect("readable"), "ID=debian\n");
        assert_eq!(guest.stat(&path).expect("there").mode, 0o600);
        assert!(!guest.exists(&GuestPath::new("/etc/os-release/below")));
        assert_eq!(
            guest
                .read_dir(&GuestPath::new("/usr"))
                .expect("a folder")
                .len(),
            1
        );
    }
}
