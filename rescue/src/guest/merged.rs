//! Several trees under one root, by mount point.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use crate::tree::{AccessList, DirEntry, Meta, Tree, TreeResult};

/// One tree and where it is mounted.
#[derive(Clone)]
pub struct Mounted {
    /// Symlink-free absolute path inside the guest.
    pub mount_point: PathBuf,
    /// The tree; its own root is the mount point.
    pub tree: Rc<dyn Tree>,
}

impl std::fmt::Debug for Mounted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Mounted")
            .field("mount_point", &self.mount_point)
            .finish_non_exhaustive()
    }
}

/// A mount table of trees: a path goes to the tree with the longest mount point above it.
#[derive(Debug)]
pub struct MergedTree {
    mounts: Vec<Mounted>,
    /// Indexes by mount point where there are many: a running node has a mount for each volume of
    /// each pod.
    by_mount_point: Option<HashMap<PathBuf, usize>>,
}

/// From so many mounts on, looking them up beats going through them.
const MANY: usize = 8;

impl MergedTree {
    /// `mounts` must hold one for `/`.
    pub fn new(mut mounts: Vec<Mounted>) -> Self {
        mounts.sort_by_key(|mount| std::cmp::Reverse(mount.mount_point.components().count()));
        let index = |(index, mount): (usize, &Mounted)| (mount.mount_point.clone(), index);
        // Reversed, so that of two at one place the first counts in both ways.
        let by_mount_point =
            (mounts.len() > MANY).then(|| mounts.iter().enumerate().rev().map(index).collect());
        Self {
            mounts,
            by_mount_point,
        }
    }

    fn at(&self, path: &Path) -> (&Mounted, PathBuf) {
        let mount = match &self.by_mount_point {
            Some(table) => path
                .ancestors()
                .find_map(|above| table.get(above))
                .and_then(|index| self.mounts.get(*index)),
            None => self
                .mounts
                .iter()
                .find(|mount| path.starts_with(&mount.mount_point)),
        };
        let mount = mount
            .or(self.mounts.last())
            .expect("a merged tree has a root");
        let below = path.strip_prefix(&mount.mount_point).unwrap_or(path);
        (mount, Path::new("/").join(below))
    }
}

impl Tree for MergedTree {
    fn lstat(&self, path: &Path) -> TreeResult<Meta> {
        let (mount, below) = self.at(path);
        mount
            .tree
            .lstat(&below)
            .map_err(|error| error.below(&mount.mount_point))
    }
    fn access_list(&self, path: &Path) -> TreeResult<Option<AccessList>> {
        let (mount, below) = self.at(path);
        mount
            .tree
            .access_list(&below)
            .map_err(|error| error.below(&mount.mount_point))
    }
    fn read_range(&self, path: &Path, offset: u64, length: usize) -> TreeResult<Vec<u8>> {
        let (mount, below) = self.at(path);
        mount
            .tree
            .read_range(&below, offset, length)
            .map_err(|error| error.below(&mount.mount_point))
    }
    fn hold(&self, path: &Path) -> TreeResult<Option<std::fs::File>> {
        let (mount, below) = self.at(path);
        mount
            .tree
            .hold(&below)
            .map_err(|error| error.below(&mount.mount_point))
    }
    fn read_dir(&self, path: &Path) -> TreeResult<Vec<DirEntry>> {
        let (mount, below) = self.at(path);
        mount
            .tree
            .read_dir(&below)
            .map_err(|error| error.below(&mount.mount_point))
    }
    fn read_link(&self, path: &Path) -> TreeResult<PathBuf> {
        let (mount, below) = self.at(path);
        mount
            .tree
            .read_link(&below)
            .map_err(|error| error.below(&mount.mount_point))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::MemoryTree;

    #[test]
    fn errors_name_the_guest_s_paths() {
        let mount = |at: &str, tree: MemoryTree| Mounted {
            mount_point: at.into(),
            tree: Rc::new(tree),
        };
        let root = mount("/", MemoryTree::new().dir("/etc"));
        let merged = MergedTree::new(vec![
            root,
            mount("/var", MemoryTree::new().file("/log/x", "")),
        ]);
        let said = |path: &str| {
            merged
                .lstat(Path::new(path))
                .expect_err("nothing is there")
                .to_string()
        };
        assert_eq!(
            said("/var/lib/kubelet"),
            "/var/lib/kubelet does not exist in the guest"
        );
        assert_eq!(
            said("/etc/kubernetes"),
            "/etc/kubernetes does not exist in the guest"
        );
        let listed = merged
            .read_dir(Path::new("/var/log/x"))
            .expect_err("a file")
            .to_string();
        assert_eq!(listed, "/var/log/x is not a folder in the guest");
    }
}
