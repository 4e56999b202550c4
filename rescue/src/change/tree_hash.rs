//! What a whole folder holds, as one hash: names, kinds, modes, owners, sizes and every byte. Equal
//! means that nobody has written to it.

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::each_chunk;
use crate::base::hash::hex;
use crate::tree::{FileKind, Meta, Tree, TreeError, TreeResult};

/// Deeper and larger than any folder that is replaced as a whole: an etcd member has three levels
/// and some dozen files.
const DEEPEST: usize = 16;
const MOST: usize = 10_000;

/// SHA-256 of the folder at `path` with all that is in it, in lower-case hexadecimal. Times do not
/// count.
///
/// # Errors
/// What the tree says; [`TreeError::Unsupported`] where something in it is neither file, folder nor
/// link, or there is too much of it.
pub fn of(tree: &dyn Tree, path: &Path) -> TreeResult<String> {
    let meta = tree.lstat(path)?;
    if meta.kind != FileKind::Directory {
        return Err(TreeError::NotADirectory(path.to_path_buf()));
    }
    let mut hash = TreeHash {
        tree,
        hasher: Sha256::new(),
        count: 0,
    };
    hash.attributes(b'd', &meta);
    hash.folder(path, 0)?;
    Ok(hex(&hash.hasher.finalize()))
}

struct TreeHash<'a> {
    tree: &'a dyn Tree,
    hasher: Sha256,
    count: usize,
}

impl TreeHash<'_> {
    fn folder(&mut self, path: &Path, depth: usize) -> TreeResult<()> {
        let mut names: Vec<OsString> = self
            .tree
            .read_dir(path)?
            .into_iter()
            .map(|entry| entry.name)
            .collect();
        names.sort();
        self.count = self.count.saturating_add(names.len());
        if depth > DEEPEST || self.count > MOST {
            return Err(unsupported(
                path,
                "there is more in it than in any folder that is replaced as a whole",
            ));
        }
        self.hasher.update((names.len() as u64).to_le_bytes());
        for name in names {
            self.bytes(name.as_bytes());
            self.entry(&path.join(&name), depth)?;
        }
        Ok(())
    }

    fn entry(&mut self, path: &Path, depth: usize) -> TreeResult<()> {
        let meta = self.tree.lstat(path)?;
        match meta.kind {
            FileKind::Directory => {
                self.attributes(b'd', &meta);
                self.folder(path, depth + 1)
            }
            FileKind::Symlink => {
                self.attributes(b'l', &meta);
                let target = self.tree.read_link(path)?;
                self.bytes(target.as_os_str().as_bytes());
                Ok(())
            }
            FileKind::Regular => {
                self.attributes(b'f', &meta);
                self.hasher.update(meta.size.to_le_bytes());
                each_chunk(self.tree, path, meta.size, &mut |_, bytes| {
                    self.hasher.update(&*bytes)
                })
            }
            FileKind::Special => Err(unsupported(path, "it is a device, FIFO or socket")),
        }
    }

    fn attributes(&mut self, kind: u8, meta: &Meta) {
        self.hasher.update([kind]);
        for number in [meta.mode, meta.uid, meta.gid] {
            self.hasher.update(number.to_le_bytes());
        }
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.hasher.update((bytes.len() as u64).to_le_bytes());
        self.hasher.update(bytes);
    }
}

fn unsupported(path: &Path, reason: &str) -> TreeError {
    TreeError::Unsupported {
        path: PathBuf::from(path),
        reason: reason.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::MemoryTree;

    fn hash(tree: MemoryTree) -> String {
        of(tree.into_guest().tree().as_ref(), Path::new("/m")).unwrap()
    }

    #[test]
    fn everything_but_time_counts() {
        let tree = || {
            MemoryTree::new()
                .dir("/m")
                .file("/m/wal/1.wal", "log")
                .file("/m/snap/db", "data")
        };
        let before = hash(tree());
        assert_eq!(hash(tree()), before);
        let others = [
            tree().file("/m/snap/db", "date"),
            tree().file("/m/snap/db", "data\0"),
            tree().file("/m/snap/new", ""),
            tree().without("/m/snap/db").file("/m/snap/dB", "data"),
            tree().without("/m/snap/db").dir("/m/snap/db"),
            tree().link("/m/link", "elsewhere"),
        ];
        for (n, other) in others.into_iter().enumerate() {
            assert_ne!(hash(other), before, "{n}");
        }
    }

    #[test]
    fn a_file_is_no_folder_and_too_much_is_refused() {
        let guest = MemoryTree::new().file("/m", "fence").into_guest();
        assert!(matches!(
            of(guest.tree().as_ref(), Path::new("/m")),
            Err(TreeError::NotADirectory(_))
        ));
        let deep = MemoryTree::new()
            .dir(format!("/m{}", "/a".repeat(30)))
            .into_guest();
        assert!(matches!(
            of(deep.tree().as_ref(), Path::new("/m")),
            Err(TreeError::Unsupported { .. })
        ));
    }
}
