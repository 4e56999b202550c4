//! Several trees under one root, by mount point.

use std::path::{Path, PathBuf};
use std::rc::Rc;

use super::{DirEntry, Meta, Tree, TreeResult};

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
        f.debug_struct("Mounted").field("mount_point", &self.mount_point).finish_non_exhaustive()
    }
}

/// A mount table of trees: a path goes to the tree with the longest mount point above it.
#[derive(Debug)]
pub struct MergedTree {
    mounts: Vec<Mounted>,
}

impl MergedTree {
    /// `mounts` must hold one for `/`.
    pub fn new(mut mounts: Vec<Mounted>) -> Self {
        mounts.sort_by_key(|mount| std::cmp::Reverse(mount.mount_point.components().count()));
        Self { mounts }
    }

    fn at(&self, path: &Path) -> (&dyn Tree, PathBuf) {
        let mount = self
            .mounts
            .iter()
            .find(|mount| path.starts_with(&mount.mount_point))
            .or(self.mounts.last())
            .expect("a merged tree has a root");
        let below = path.strip_prefix(&mount.mount_point).unwrap_or(path);
        (mount.tree.as_ref(), Path::new("/").join(below))
    }
}

impl Tree for MergedTree {
    fn lstat(&self, path: &Path) -> TreeResult<Meta> {
        let (tree, below) = self.at(path);
        tree.lstat(&below)
    }
    fn read_range(&self, path: &Path, offset: u64, length: usize) -> TreeResult<Vec<u8>> {
        let (tree, below) = self.at(path);
        tree.read_range(&below, offset, length)
    }
    fn read_dir(&self, path: &Path) -> TreeResult<Vec<DirEntry>> {
        let (tree, below) = self.at(path);
        tree.read_dir(&below)
    }
    fn read_link(&self, path: &Path) -> TreeResult<PathBuf> {
        let (tree, below) = self.at(path);
        tree.read_link(&below)
    }
}
