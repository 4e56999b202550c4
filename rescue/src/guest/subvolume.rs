//! One subvolume of a btrfs as a tree of its own.

use std::path::{Path, PathBuf};
use std::rc::Rc;

use crate::tree::{AccessList, DirEntry, Meta, Tree, TreeError, TreeResult};

/// Which part of a btrfs a guest mounts.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct SubvolumeName {
    /// Its number (`subvolid=`).
    pub id: u64,
    /// Its path from the top level, without a leading slash; empty for the top level itself.
    pub path: PathBuf,
    /// How many snapshots of it there are: each keeps what it shares with them when it is deleted
    /// here.
    pub snapshots: usize,
}

/// The files below one folder of another tree.
pub struct Below {
    tree: Rc<dyn Tree>,
    folder: PathBuf,
}

impl std::fmt::Debug for Below {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Below")
            .field("folder", &self.folder)
            .finish_non_exhaustive()
    }
}

impl Below {
    /// `folder` is free of symbolic links; a leading slash makes no difference.
    pub fn new(tree: Rc<dyn Tree>, folder: &Path) -> Self {
        Self {
            tree,
            folder: Path::new("/").join(folder),
        }
    }

    fn at(&self, path: &Path) -> PathBuf {
        self.folder.join(path.strip_prefix("/").unwrap_or(path))
    }

    /// Errors name the file as it is called here, not in the tree below.
    fn renamed(&self, error: TreeError, path: &Path) -> TreeError {
        let path = path.to_path_buf();
        match error {
            TreeError::NotFound(_) => TreeError::NotFound(path),
            TreeError::NotADirectory(_) => TreeError::NotADirectory(path),
            TreeError::EmptyFolder(_) => TreeError::EmptyFolder(path),
            TreeError::FolderInPlace { entries, .. } => TreeError::FolderInPlace { path, entries },
            TreeError::NotARegularFile(_) => TreeError::NotARegularFile(path),
            TreeError::NotASymlink(_) => TreeError::NotASymlink(path),
            TreeError::Loop(_) => TreeError::Loop(path),
            TreeError::TooLarge { size, limit, .. } => TreeError::TooLarge { path, size, limit },
            TreeError::Corrupt { reason, .. } => TreeError::Corrupt { path, reason },
            TreeError::Unsupported { reason, .. } => TreeError::Unsupported { path, reason },
            TreeError::Io { source, .. } => TreeError::Io { path, source },
        }
    }
}

impl Tree for Below {
    fn lstat(&self, path: &Path) -> TreeResult<Meta> {
        self.tree
            .lstat(&self.at(path))
            .map_err(|error| self.renamed(error, path))
    }
    fn access_list(&self, path: &Path) -> TreeResult<Option<AccessList>> {
        self.tree
            .access_list(&self.at(path))
            .map_err(|error| self.renamed(error, path))
    }
    fn read_range(&self, path: &Path, offset: u64, length: usize) -> TreeResult<Vec<u8>> {
        self.tree
            .read_range(&self.at(path), offset, length)
            .map_err(|error| self.renamed(error, path))
    }
    fn hold(&self, path: &Path) -> TreeResult<Option<std::fs::File>> {
        self.tree
            .hold(&self.at(path))
            .map_err(|error| self.renamed(error, path))
    }
    fn read_dir(&self, path: &Path) -> TreeResult<Vec<DirEntry>> {
        self.tree
            .read_dir(&self.at(path))
            .map_err(|error| self.renamed(error, path))
    }
    fn read_link(&self, path: &Path) -> TreeResult<PathBuf> {
        self.tree
            .read_link(&self.at(path))
            .map_err(|error| self.renamed(error, path))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::MemoryTree;

    #[test]
    fn paths_and_errors_are_its_own() {
        let tree = MemoryTree::new()
            .file("/@/etc/hosts", "x")
            .file("/other", "y");
        let below = Below::new(Rc::new(tree), Path::new("@"));
        assert_eq!(below.read(Path::new("/etc/hosts"), 9).unwrap(), b"x");
        assert_eq!(
            below.lstat(Path::new("/")).unwrap().kind,
            crate::tree::FileKind::Directory
        );
        let error = below.lstat(Path::new("/other")).unwrap_err();
        assert!(
            error.is_not_found() && error.to_string().starts_with("/other does not exist"),
            "{error}"
        );
    }
}
