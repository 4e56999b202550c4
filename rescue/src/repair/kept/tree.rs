//! A kept folder seen as it was, or will be, on the guest.

use std::path::{Path, PathBuf};
use std::rc::Rc;

use super::list::{Entries, Entry, Kind};
use crate::guest::{GuestPath, RealPath};
use crate::repair::confined::Confined;
use crate::tree::{DirEntry, FileKind, Meta, Tree, TreeError, TreeResult};

/// Where it is in this tree.
pub(super) const SHOWN: &str = "/member";

/// The bytes of the kept files with the attributes of the list.
pub(super) struct KeptTree {
    pub confined: Rc<Confined>,
    pub folder: RealPath,
    pub entries: Entries,
}

impl KeptTree {
    fn entry(&self, path: &Path) -> TreeResult<(&Path, &Entry)> {
        let below = path
            .strip_prefix(SHOWN)
            .map_err(|_| TreeError::NotFound(path.to_path_buf()));
        let (below, entry) = self
            .entries
            .get_key_value(below?)
            .ok_or_else(|| TreeError::NotFound(path.to_path_buf()))?;
        Ok((below, entry))
    }

    fn file(&self, path: &Path) -> TreeResult<PathBuf> {
        let (below, entry) = self.entry(path)?;
        match entry.kind {
            Kind::File => Ok(super::moving::join(&self.folder, below)
                .as_path()
                .to_path_buf()),
            _ => Err(TreeError::NotARegularFile(path.to_path_buf())),
        }
    }
}

impl Tree for KeptTree {
    fn lstat(&self, path: &Path) -> TreeResult<Meta> {
        let root = Entry::new(Path::new(""), Kind::Folder, 0o755, (0, 0));
        let (below, entry) = if path == Path::new("/") {
            (Path::new(""), &root)
        } else {
            self.entry(path)?
        };
        let size = match entry.kind {
            Kind::File => {
                Tree::lstat(
                    &*self.confined,
                    super::moving::join(&self.folder, below).as_path(),
                )?
                .size
            }
            _ => 0,
        };
        let Entry {
            mode,
            uid,
            gid,
            seconds,
            ..
        } = *entry;
        let kind = FileKind::from(entry.kind);
        Ok(Meta {
            kind,
            mode,
            uid,
            gid,
            size,
            mtime: seconds,
            allocated: None,
            nlink: None,
            ino: None,
        })
    }

    fn read_range(&self, path: &Path, offset: u64, length: usize) -> TreeResult<Vec<u8>> {
        self.confined.read_range(&self.file(path)?, offset, length)
    }

    fn hold(&self, path: &Path) -> TreeResult<Option<std::fs::File>> {
        self.confined.hold(&self.file(path)?)
    }

    fn read_dir(&self, path: &Path) -> TreeResult<Vec<DirEntry>> {
        if path == Path::new("/") {
            let name = GuestPath::new(SHOWN)
                .as_path()
                .file_name()
                .unwrap_or_default()
                .to_os_string();
            return Ok(vec![DirEntry {
                name,
                kind: FileKind::Directory,
            }]);
        }
        let (below, entry) = self.entry(path)?;
        if entry.kind != Kind::Folder {
            return Err(TreeError::NotADirectory(path.to_path_buf()));
        }
        let inside = self
            .entries
            .iter()
            .filter(|(path, _)| path.parent() == Some(below));
        let named = inside.filter_map(|(path, entry)| {
            Some((path.file_name()?.to_os_string(), entry.kind.into()))
        });
        Ok(named.map(|(name, kind)| DirEntry { name, kind }).collect())
    }

    fn read_link(&self, path: &Path) -> TreeResult<PathBuf> {
        let (_, entry) = self.entry(path)?;
        let target = entry
            .target
            .as_ref()
            .map(|target| target.as_path().to_path_buf());
        target.ok_or_else(|| TreeError::NotASymlink(path.to_path_buf()))
    }
}
