//! A file tree in memory, for tests of everything that only looks.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::{DirEntry, FileKind, Meta, Tree, TreeError, TreeResult};

/// Modification time of everything that was not given one: 2023-02-23 08:00 UTC.
const DEFAULT_MTIME: i64 = 1_677_139_200;

#[derive(Debug, Clone)]
enum Node {
    File(Vec<u8>),
    Link(PathBuf),
    Folder,
    Special,
}

#[derive(Debug, Clone)]
struct Entry {
    node: Node,
    mode: u32,
    owner: (u32, u32),
    mtime: i64,
    ino: u64,
}

/// A tree built by hand:
/// `MemoryTree::new().file("/etc/hostname", "node1\n").link("/lib", "usr/lib").into_guest()`.
/// Folders on the way are made by themselves; a path given twice keeps the last.
#[derive(Debug, Clone, Default)]
pub struct MemoryTree {
    entries: BTreeMap<PathBuf, Entry>,
    next_ino: u64,
}

impl MemoryTree {
    /// Holds the root folder only.
    pub fn new() -> Self {
        Self::default().put("/", Node::Folder, 0o755)
    }

    /// A regular file, mode 0644, owned by root.
    #[must_use]
    pub fn file(self, path: impl AsRef<Path>, bytes: impl AsRef<[u8]>) -> Self {
        self.put(path, Node::File(bytes.as_ref().to_vec()), 0o644)
    }

    /// A symbolic link.
    #[must_use]
    pub fn link(self, path: impl AsRef<Path>, target: impl AsRef<Path>) -> Self {
        self.put(path, Node::Link(target.as_ref().to_path_buf()), 0o777)
    }

    /// A folder.
    #[must_use]
    pub fn dir(self, path: impl AsRef<Path>) -> Self {
        self.put(path, Node::Folder, 0o755)
    }

    /// A FIFO, socket or device.
    #[must_use]
    pub fn special(self, path: impl AsRef<Path>) -> Self {
        self.put(path, Node::Special, 0o644)
    }

    /// Takes a file, link or folder with all below it away again.
    #[must_use]
    pub fn without(mut self, path: impl AsRef<Path>) -> Self {
        let path = normal(path.as_ref());
        self.entries.retain(|there, _| !there.starts_with(&path));
        self
    }

    /// Sets the permission bits of something that is there.
    #[must_use]
    pub fn mode(self, path: impl AsRef<Path>, mode: u32) -> Self {
        self.edit(path, |entry| entry.mode = mode)
    }

    /// Sets the owner and group of something that is there.
    #[must_use]
    pub fn owner(self, path: impl AsRef<Path>, uid: u32, gid: u32) -> Self {
        self.edit(path, |entry| entry.owner = (uid, gid))
    }

    /// Sets the modification time (seconds since 1970) of something that is there.
    #[must_use]
    pub fn mtime(self, path: impl AsRef<Path>, mtime: i64) -> Self {
        self.edit(path, |entry| entry.mtime = mtime)
    }

    fn put(mut self, path: impl AsRef<Path>, node: Node, mode: u32) -> Self {
        let path = normal(path.as_ref());
        let missing: Vec<PathBuf> = path
            .ancestors()
            .skip(1)
            .filter(|above| !self.entries.contains_key(*above))
            .map(PathBuf::from)
            .collect();
        for above in missing {
            self.insert(above, Node::Folder, 0o755);
        }
        self.insert(path, node, mode);
        self
    }

    fn insert(&mut self, path: PathBuf, node: Node, mode: u32) {
        self.next_ino += 1;
        let entry = Entry {
            node,
            mode,
            owner: (0, 0),
            mtime: DEFAULT_MTIME,
            ino: self.next_ino,
        };
        self.entries.insert(path, entry);
    }

    fn edit(mut self, path: impl AsRef<Path>, change: impl FnOnce(&mut Entry)) -> Self {
        let path = normal(path.as_ref());
        let entry = self.entries.get_mut(&path);
        assert!(
            entry.is_some(),
            "{} was not put into the tree before",
            path.display()
        );
        if let Some(entry) = entry {
            change(entry);
        }
        self
    }

    fn get(&self, path: &Path) -> TreeResult<&Entry> {
        if let Some(above) = path.parent()
            && let Some(entry) = self.entries.get(above)
            && !matches!(entry.node, Node::Folder)
        {
            return Err(TreeError::NotADirectory(above.to_path_buf()));
        }
        self.entries
            .get(path)
            .ok_or_else(|| TreeError::NotFound(path.to_path_buf()))
    }
}

fn normal(path: &Path) -> PathBuf {
    Path::new("/").join(path)
}

impl Tree for MemoryTree {
    fn lstat(&self, path: &Path) -> TreeResult<Meta> {
        let entry = self.get(path)?;
        let (kind, size) = match &entry.node {
            Node::File(bytes) => (FileKind::Regular, bytes.len()),
            Node::Link(target) => (FileKind::Symlink, target.as_os_str().len()),
            Node::Folder => (FileKind::Directory, 4096),
            Node::Special => (FileKind::Special, 0),
        };
        let size = size as u64;
        Ok(Meta {
            kind,
            mode: entry.mode,
            uid: entry.owner.0,
            gid: entry.owner.1,
            size,
            mtime: entry.mtime,
            allocated: Some(size.next_multiple_of(4096)),
            nlink: Some(1),
            ino: Some(entry.ino),
        })
    }

    fn read_range(&self, path: &Path, offset: u64, length: usize) -> TreeResult<Vec<u8>> {
        let Node::File(bytes) = &self.get(path)?.node else {
            return Err(TreeError::NotARegularFile(path.to_path_buf()));
        };
        let from = usize::try_from(offset)
            .unwrap_or(usize::MAX)
            .min(bytes.len());
        let to = from.saturating_add(length).min(bytes.len());
        Ok(bytes.get(from..to).unwrap_or_default().to_vec())
    }

    fn read_dir(&self, path: &Path) -> TreeResult<Vec<DirEntry>> {
        if !matches!(self.get(path)?.node, Node::Folder) {
            return Err(TreeError::NotADirectory(path.to_path_buf()));
        }
        let below = self
            .entries
            .iter()
            .filter(|(there, _)| there.parent() == Some(path));
        Ok(below
            .filter_map(|(there, entry)| {
                let kind = match entry.node {
                    Node::File(_) => FileKind::Regular,
                    Node::Link(_) => FileKind::Symlink,
                    Node::Folder => FileKind::Directory,
                    Node::Special => FileKind::Special,
                };
                Some(DirEntry {
                    name: there.file_name()?.to_os_string(),
                    kind,
                })
            })
            .collect())
    }

    fn read_link(&self, path: &Path) -> TreeResult<PathBuf> {
        match &self.get(path)?.node {
            Node::Link(target) => Ok(target.clone()),
            _ => Err(TreeError::NotASymlink(path.to_path_buf())),
        }
    }
}
