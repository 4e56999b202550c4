//! A tree with pending changes on top, so that a plan can be proved before a disk is touched.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use crate::change::secret;
use crate::change::{Attributes, Change, Edit, Expect, FreeAction, Freeing};
use crate::tree::{AccessList, DirEntry, FileKind, Meta, Tree, TreeError, TreeResult};

#[derive(Clone)]
enum Entry {
    Gone,
    File {
        bytes: Rc<[u8]>,
        meta: Meta,
        list: Option<AccessList>,
    },
    /// The beginning of the file below with other bytes in it.
    Patched {
        meta: Meta,
        edits: Rc<[Edit]>,
    },
    /// The last `size` bytes of the file below.
    Tail {
        meta: Meta,
        skip: u64,
    },
    Link {
        target: PathBuf,
        meta: Meta,
    },
    Folder {
        meta: Meta,
    },
    /// A folder that is made anew only when the plan is carried out: what will be in it cannot be
    /// shown.
    Built {
        meta: Meta,
    },
}

/// `base` as it will be after some changes. A copy shares the contents of planned files.
#[derive(Clone)]
pub struct Planned {
    base: Rc<dyn Tree>,
    overlay: BTreeMap<PathBuf, Entry>,
    /// Folders that are not what they are in `base`: nothing below them shows through.
    replaced: Vec<PathBuf>,
    now: i64,
}

impl std::fmt::Debug for Planned {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Planned")
            .field("paths", &self.overlay.keys())
            .finish_non_exhaustive()
    }
}

impl Planned {
    /// Nothing planned yet; `now` (seconds since 1970) becomes the modification time of planned
    /// files.
    pub fn over(base: Rc<dyn Tree>, now: i64) -> Self {
        Self {
            base,
            overlay: BTreeMap::new(),
            replaced: Vec::new(),
            now,
        }
    }

    /// Adds a freeing step.
    pub fn free(&mut self, action: &FreeAction) -> TreeResult<()> {
        let path = action.path.as_path();
        let entry = match action.freeing {
            Freeing::Delete => Entry::Gone,
            Freeing::KeepTail(keep) => {
                let meta = self.lstat(path)?;
                let size = meta.size.min(keep);
                let skip = meta.size - size;
                Entry::Tail {
                    meta: Meta {
                        size,
                        allocated: Some(size.next_multiple_of(4096)),
                        ..meta
                    },
                    skip,
                }
            }
        };
        self.overlay.insert(path.to_path_buf(), entry);
        Ok(())
    }

    /// Adds a change.
    pub fn apply(&mut self, change: &Change) -> TreeResult<()> {
        let path = change.path().as_path().to_path_buf();
        let entry = match change {
            Change::Write {
                content,
                attributes,
                ..
            } => {
                let mut meta = self.meta(&path, FileKind::Regular, attributes, 0o644);
                meta.size = content.expose().len() as u64;
                // What cannot be read of an old file is no reason not to replace it.
                let mut list = self.access_list(&path).unwrap_or_default();
                if content.is_secret() {
                    let old = list.take().filter(|_| *attributes == Attributes::Keep);
                    meta.mode = secret::mode(meta.mode, meta.gid, old.as_ref());
                }
                Entry::File {
                    bytes: content.expose().into(),
                    meta,
                    list,
                }
            }
            Change::Patch { edits, size, .. } => {
                if self.overlay.contains_key(&path) {
                    let reason = "two remedies would change it".to_owned();
                    return Err(TreeError::Unsupported { path, reason });
                }
                let mut meta = self.meta(&path, FileKind::Regular, &Attributes::Keep, 0o600);
                meta.size = *size;
                Entry::Patched {
                    meta,
                    edits: edits.as_slice().into(),
                }
            }
            Change::Symlink { target, .. } => {
                let meta = self.meta(
                    &path,
                    FileKind::Symlink,
                    &Attributes::Set {
                        mode: 0o777,
                        uid: 0,
                        gid: 0,
                    },
                    0o777,
                );
                Entry::Link {
                    target: target.clone(),
                    meta,
                }
            }
            Change::Remove { .. } => Entry::Gone,
            Change::MakeDir { attributes, .. } => Entry::Folder {
                meta: self.meta(&path, FileKind::Directory, attributes, 0o755),
            },
            Change::ReplaceFolder { .. } => Entry::Built {
                meta: self.meta(&path, FileKind::Directory, &Attributes::Keep, 0o700),
            },
            Change::Fence { why, .. } => {
                let mut meta = self.meta(
                    &path,
                    FileKind::Regular,
                    &Attributes::Set {
                        mode: 0o644,
                        uid: 0,
                        gid: 0,
                    },
                    0,
                );
                meta.size = why.len() as u64;
                Entry::File {
                    bytes: why.as_bytes().into(),
                    meta,
                    list: None,
                }
            }
        };
        let replaces_folder = matches!(
            change,
            Change::ReplaceFolder { .. }
                | Change::Fence { .. }
                | Change::Write {
                    expect: Expect::Tree { .. },
                    ..
                }
        );
        if replaces_folder {
            self.overlay
                .retain(|planned, _| !planned.starts_with(&path));
            self.replaced.push(path.clone());
        }
        self.overlay.insert(path, entry);
        Ok(())
    }

    /// Whether `path` lies in a folder that is replaced as a whole.
    fn refuse_replaced(&self, path: &Path) -> TreeResult<()> {
        let Some(top) = self
            .replaced
            .iter()
            .find(|top| path.starts_with(top) && path != top.as_path())
        else {
            return Ok(());
        };
        match self.overlay.get(top) {
            Some(Entry::Built { .. }) => Err(unbuilt(path)),
            _ => Err(TreeError::NotADirectory(path.to_path_buf())),
        }
    }

    fn meta(
        &self,
        path: &Path,
        kind: FileKind,
        attributes: &Attributes,
        default_mode: u32,
    ) -> Meta {
        let (mode, uid, gid) = match attributes {
            Attributes::Set { mode, uid, gid } => (*mode, *uid, *gid),
            Attributes::Keep => self
                .lstat(path)
                .map_or((default_mode, 0, 0), |old| (old.mode, old.uid, old.gid)),
        };
        Meta {
            kind,
            mode,
            uid,
            gid,
            size: 0,
            mtime: self.now,
            allocated: None,
            nlink: None,
            ino: None,
        }
    }
}

fn unbuilt(path: &Path) -> TreeError {
    let reason =
        "it is made only when the plan is carried out, and read back before it is put in place"
            .to_owned();
    TreeError::Unsupported {
        path: path.to_path_buf(),
        reason,
    }
}

impl Tree for Planned {
    fn lstat(&self, path: &Path) -> TreeResult<Meta> {
        match self.overlay.get(path) {
            Some(Entry::Gone) => Err(TreeError::NotFound(path.to_path_buf())),
            Some(
                Entry::File { meta, .. }
                | Entry::Patched { meta, .. }
                | Entry::Tail { meta, .. }
                | Entry::Link { meta, .. }
                | Entry::Folder { meta }
                | Entry::Built { meta },
            ) => Ok(meta.clone()),
            None => {
                self.refuse_replaced(path)?;
                self.base.lstat(path)
            }
        }
    }

    fn access_list(&self, path: &Path) -> TreeResult<Option<AccessList>> {
        match self.overlay.get(path) {
            Some(Entry::File { list, .. }) => Ok(list.clone()),
            None | Some(Entry::Patched { .. } | Entry::Tail { .. }) => {
                self.refuse_replaced(path)?;
                self.base.access_list(path)
            }
            Some(_) => Ok(None),
        }
    }

    fn read_range(&self, path: &Path, offset: u64, length: usize) -> TreeResult<Vec<u8>> {
        match self.overlay.get(path) {
            Some(Entry::Gone) => Err(TreeError::NotFound(path.to_path_buf())),
            Some(Entry::File { bytes, .. }) => {
                let from = usize::try_from(offset)
                    .unwrap_or(usize::MAX)
                    .min(bytes.len());
                let to = from.saturating_add(length).min(bytes.len());
                Ok(bytes[from..to].to_vec())
            }
            Some(Entry::Patched { meta, edits }) => {
                let left = usize::try_from(meta.size.saturating_sub(offset)).unwrap_or(usize::MAX);
                let mut bytes = self.base.read_range(path, offset, length.min(left))?;
                edits.iter().for_each(|edit| edit.apply(offset, &mut bytes));
                Ok(bytes)
            }
            Some(Entry::Tail { skip, .. }) => {
                self.base
                    .read_range(path, offset.saturating_add(*skip), length)
            }
            Some(Entry::Link { .. } | Entry::Folder { .. } | Entry::Built { .. }) => {
                Err(TreeError::NotARegularFile(path.to_path_buf()))
            }
            None => {
                self.refuse_replaced(path)?;
                self.base.read_range(path, offset, length)
            }
        }
    }

    fn hold(&self, path: &Path) -> TreeResult<Option<std::fs::File>> {
        match self.overlay.get(path) {
            Some(_) => Ok(None),
            None => {
                self.refuse_replaced(path)?;
                self.base.hold(path)
            }
        }
    }

    fn read_dir(&self, path: &Path) -> TreeResult<Vec<DirEntry>> {
        let mut entries = match self.overlay.get(path) {
            Some(Entry::Folder { .. }) => match self.base.read_dir(path) {
                Ok(entries) => entries,
                Err(TreeError::NotFound(_)) => Vec::new(),
                Err(error) => return Err(error),
            },
            Some(Entry::Gone) => return Err(TreeError::NotFound(path.to_path_buf())),
            Some(Entry::Built { .. }) => return Err(unbuilt(path)),
            Some(_) => return Err(TreeError::NotADirectory(path.to_path_buf())),
            None => {
                self.refuse_replaced(path)?;
                self.base.read_dir(path)?
            }
        };
        for (planned, entry) in &self.overlay {
            if planned.parent() != Some(path) {
                continue;
            }
            let Some(name) = planned.file_name() else {
                continue;
            };
            entries.retain(|there| there.name != name);
            let kind = match entry {
                Entry::Gone => continue,
                Entry::File { .. } | Entry::Patched { .. } | Entry::Tail { .. } => {
                    FileKind::Regular
                }
                Entry::Link { .. } => FileKind::Symlink,
                Entry::Folder { .. } | Entry::Built { .. } => FileKind::Directory,
            };
            entries.push(DirEntry {
                name: name.to_os_string(),
                kind,
            });
        }
        Ok(entries)
    }

    fn read_link(&self, path: &Path) -> TreeResult<PathBuf> {
        match self.overlay.get(path) {
            Some(Entry::Link { target, .. }) => Ok(target.clone()),
            Some(Entry::Gone) => Err(TreeError::NotFound(path.to_path_buf())),
            Some(_) => Err(TreeError::NotASymlink(path.to_path_buf())),
            None => {
                self.refuse_replaced(path)?;
                self.base.read_link(path)
            }
        }
    }
}
