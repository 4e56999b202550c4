//! What remains of a guest whose sources have been closed.

use std::path::{Path, PathBuf};

use crate::tree::{DirEntry, Meta, Tree, TreeError, TreeResult};

/// A tree whose sources are closed: nothing can be read from it. A disk must be closed before it is
/// mounted for writing, because a descriptor on a disk does not see what is written through its
/// partition.
#[derive(Debug, Clone, Copy)]
pub(super) struct ClosedTree;

impl ClosedTree {
    fn refuse<T>(path: &Path) -> TreeResult<T> {
        let source = std::io::Error::other("the source has been closed");
        Err(TreeError::Io {
            path: path.to_path_buf(),
            source,
        })
    }
}

impl Tree for ClosedTree {
    fn lstat(&self, path: &Path) -> TreeResult<Meta> {
        Self::refuse(path)
    }
    fn read_range(&self, path: &Path, _offset: u64, _length: usize) -> TreeResult<Vec<u8>> {
        Self::refuse(path)
    }
    fn read_dir(&self, path: &Path) -> TreeResult<Vec<DirEntry>> {
        Self::refuse(path)
    }
    fn read_link(&self, path: &Path) -> TreeResult<PathBuf> {
        Self::refuse(path)
    }
}
