//! A folder that is built outside the guest, with what its files will be on it: as
//! [`crate::repair::staged_folder`] does it in place.

use std::path::{Component, Path, PathBuf};

use anyhow::{Context as _, Result, ensure};

use super::keep_in::KeepIn;
use super::list::{Entries, Entry, Kind};
use crate::base::writeback::Early;
use crate::change::folder::{FolderSink, SinkFile};
use crate::guest::{Guest, GuestPath, RealPath};
use crate::repair::confined::Place;
use crate::repair::new_file::{self, NewFile};
use crate::repair::xattrs;

/// Takes what is built.
pub(super) struct MadeFolder<'a> {
    keep: &'a KeepIn,
    top: RealPath,
    old: &'a Entries,
    made: Vec<(PathBuf, Kind, u32)>,
}

impl<'a> MadeFolder<'a> {
    /// Into `top`, which is empty; it will replace what `old` lists.
    pub fn new(keep: &'a KeepIn, top: RealPath, old: &'a Entries) -> Self {
        Self {
            keep,
            top,
            old,
            made: Vec::new(),
        }
    }

    fn place(&mut self, below: &Path, kind: Kind, mode: u32) -> Result<Place> {
        let plain = below
            .components()
            .all(|component| matches!(component, Component::Normal(_)));
        ensure!(
            plain && !below.as_os_str().is_empty(),
            "{} is not a path below the new folder",
            below.display()
        );
        self.made.push((below.to_path_buf(), kind, mode & 0o7777));
        self.keep.place(&super::moving::join(&self.top, below))
    }

    /// What everything in it will be on the guest.
    pub fn entries(self) -> Result<Entries> {
        let top = self
            .old
            .get(Path::new(""))
            .context("the old folder is not known")?;
        let mut entries = Entries::from([(
            PathBuf::new(),
            fitting(Path::new(""), Kind::Folder, top.mode, top, true)?,
        )]);
        for (below, kind, mode) in self.made {
            let like = like(self.old, &below, kind).unwrap_or(top);
            let same = like.path.as_path().file_name() == below.file_name();
            entries.insert(below.clone(), fitting(&below, kind, mode, like, same)?);
        }
        Ok(entries)
    }
}

/// What a new file takes its attributes from: the old one of the same name, else one of its kind
/// beside it.
fn like<'a>(old: &'a Entries, below: &Path, kind: Kind) -> Option<&'a Entry> {
    let beside = old
        .iter()
        .filter(|(path, _)| !path.as_os_str().is_empty() && path.parent() == below.parent());
    let same = old.get(below).filter(|entry| entry.kind == kind);
    same.or_else(|| {
        beside
            .map(|(_, entry)| entry)
            .find(|entry| entry.kind == kind)
    })
}

fn fitting(below: &Path, kind: Kind, mode: u32, like: &Entry, same: bool) -> Result<Entry> {
    let mut entry = Entry::new(below, kind, mode, (like.uid, like.gid));
    entry.set_attributes(&xattrs::that_fit(&like.values()?, same));
    Ok(entry)
}

impl FolderSink for MadeFolder<'_> {
    fn folder(&mut self, path: &Path, mode: u32) -> Result<()> {
        self.place(path, Kind::Folder, mode)?.make_folder()
    }

    fn file(&mut self, path: &Path, mode: u32) -> Result<Box<dyn SinkFile + '_>> {
        let file = self.place(path, Kind::File, mode)?.create(b"")?;
        Ok(Box::new(Early::new(NewFile::new(file))))
    }

    fn copy(&mut self, path: &Path, from: &Guest, source: &GuestPath) -> Result<()> {
        let reading = || format!("reading {source} in the guest");
        let real = from.resolve(source).with_context(reading)?;
        let meta = from.tree().lstat(real.as_path()).with_context(reading)?;
        let place = self.place(path, Kind::File, meta.mode)?;
        new_file::copy_into(&place, from, &real, meta.size)
    }
}
