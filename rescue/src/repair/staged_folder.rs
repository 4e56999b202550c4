//! A folder that is built in the store, to be put in place as a whole: owners, labels and other
//! attributes as in the folder it replaces.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use rustix::fs::{AtFlags, FileType, Gid, Mode, Uid};

use super::confined::{Confined, Place, is_folder, sync_file};
use super::new_file::{self, NewFile};
use super::{patch, xattrs};
use crate::base::fault;
use crate::base::writeback::Early;
use crate::change::folder::{FolderSink, SinkFile};
use crate::guest::{Guest, GuestPath, RealPath};

/// Owner and group.
type Owner = (u32, u32);

/// Takes what is built for one step.
pub(super) struct StagedFolder<'a> {
    confined: &'a Confined,
    /// The guest that it is in.
    guest: &'a Guest,
    /// The new folder.
    top: RealPath,
    /// The folder that it will replace, where there is one.
    old: Option<RealPath>,
    /// Permission bits of what was made, by its path below the top.
    modes: BTreeMap<PathBuf, u32>,
}

impl<'a> StagedFolder<'a> {
    /// Into `top`, an empty folder of the store, to replace what is at `place` now.
    pub fn new(
        confined: &'a Confined,
        guest: &'a Guest,
        top: RealPath,
        place: &RealPath,
    ) -> Result<Self> {
        let old = confined
            .lstat(place)?
            .filter(is_folder)
            .map(|_| place.clone());
        Ok(Self {
            confined,
            guest,
            top,
            old,
            modes: BTreeMap::new(),
        })
    }

    fn place(&self, below: &Path) -> Result<Place> {
        let plain = below
            .components()
            .all(|component| matches!(component, Component::Normal(_)));
        ensure!(
            plain && !below.as_os_str().is_empty(),
            "{} is not a path below the new folder",
            below.display()
        );
        open(self.confined, &join(&self.top, below))
    }

    /// Gives everything its owner, attributes and mode, and synchronises it, the top folder's own
    /// last; `mode` is the top's where there is no old one.
    pub fn finish(self, mode: u32) -> Result<()> {
        let owner = self.owner_of_old()?;
        // Longest first: a folder is synchronised after all that is in it.
        for (below, mode) in self.modes.iter().rev() {
            let place = self.place(below)?;
            let old = self.old_at(below)?;
            let same = old.as_ref().is_some_and(|old| old.name() == place.name());
            dress(self.confined, &place, old.as_ref(), same, owner, *mode)?;
        }
        let top = open(self.confined, &self.top)?;
        let old = self
            .old
            .as_ref()
            .map(|old| open(self.confined, old))
            .transpose()?;
        let mode = match &old {
            Some(old) => old.lstat()?.map_or(mode, |stat| stat.st_mode & 0o7777),
            None => mode,
        };
        dress(self.confined, &top, old.as_ref(), true, owner, mode)
    }

    /// Of what is new in it.
    fn owner_of_old(&self) -> Result<Owner> {
        let from = self.old.clone().unwrap_or_else(|| self.top.parent());
        Ok(self
            .confined
            .lstat(&from)?
            .map_or((0, 0), |stat| (stat.st_uid, stat.st_gid)))
    }

    /// What a new file takes its attributes from: the old one of the same name, else one of the old
    /// ones beside it, else the folder.
    fn old_at(&self, below: &Path) -> Result<Option<Place>> {
        let Some(old) = &self.old else {
            return Ok(None);
        };
        let kind = kind_of(&self.place(below)?)?;
        let same = self.confined.place(&join(old, below)).ok();
        if let Some(same) = same
            && kind_of(&same)? == kind
        {
            return Ok(Some(same));
        }
        let folder = below
            .parent()
            .map_or_else(|| old.clone(), |parent| join(old, parent));
        let there = self
            .confined
            .lstat(&folder)?
            .is_some_and(|stat| is_folder(&stat));
        let names = if there {
            self.confined.names(&folder)?
        } else {
            Vec::new()
        };
        for name in names {
            let sibling = open(self.confined, &folder.child(&name))?;
            if kind_of(&sibling)? == kind {
                return Ok(Some(sibling));
            }
        }
        open(self.confined, old).map(Some)
    }
}

fn kind_of(place: &Place) -> Result<Option<FileType>> {
    Ok(place
        .lstat()?
        .map(|stat| FileType::from_raw_mode(stat.st_mode)))
}

fn open(confined: &Confined, path: &RealPath) -> Result<Place> {
    confined
        .place(path)
        .with_context(|| format!("opening the folder of {path}"))
}

fn join(top: &RealPath, below: &Path) -> RealPath {
    below
        .iter()
        .fold(top.clone(), |path, name| path.child(name))
}

/// Owner, attributes, mode, and all of it to the disk. Where `old` is not the `same` file it gives
/// its label only: an ACL is of the one file that somebody gave it to.
fn dress(
    confined: &Confined,
    place: &Place,
    old: Option<&Place>,
    same: bool,
    owner: Owner,
    mode: u32,
) -> Result<()> {
    let (uid, gid) = match old.map(Place::lstat).transpose()?.flatten() {
        Some(stat) => (stat.st_uid, stat.st_gid),
        None => owner,
    };
    let (uid, gid) = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
    fault::call("chown", || {
        rustix::fs::chownat(
            place.folder(),
            place.name(),
            uid,
            gid,
            AtFlags::SYMLINK_NOFOLLOW,
        )
    })
    .with_context(|| format!("giving {place} its owner"))?;
    match old {
        Some(old) if same => xattrs::copy(old, place, xattrs::List::Copy)?,
        Some(old) => xattrs::copy_label(old, place)?,
        None => xattrs::label_new(confined, place.path(), place)?,
    }
    fault::call("chmod", || {
        rustix::fs::chmodat(
            place.folder(),
            place.name(),
            Mode::from_raw_mode(mode),
            AtFlags::empty(),
        )
    })
    .with_context(|| format!("giving {place} its mode"))?;
    match kind_of(place)? {
        Some(FileType::Directory) => {
            let folder = confined
                .open_folder(place.path())
                .with_context(|| format!("opening {place}"))?;
            sync_file(&folder, place)
        }
        _ => sync_file(&place.open_file()?, place),
    }
}

impl FolderSink for StagedFolder<'_> {
    fn folder(&mut self, path: &Path, mode: u32) -> Result<()> {
        self.place(path)?.make_folder()?;
        self.modes.insert(path.to_path_buf(), mode & 0o7777);
        Ok(())
    }

    fn file(&mut self, path: &Path, mode: u32) -> Result<Box<dyn SinkFile + '_>> {
        let file = self.place(path)?.create(b"")?;
        self.modes.insert(path.to_path_buf(), mode & 0o7777);
        Ok(Box::new(Early::new(NewFile::new(file))))
    }

    fn copy(&mut self, path: &Path, from: &Guest, source: &GuestPath) -> Result<()> {
        let reading = || format!("reading {source} in the guest");
        let real = from.resolve(source).with_context(reading)?;
        let meta = from.tree().lstat(real.as_path()).with_context(reading)?;
        let staged = self.place(path)?;
        self.modes.insert(path.to_path_buf(), meta.mode & 0o7777);
        if from.source == self.guest.source {
            return patch::stage(&open(self.confined, &real)?, &staged, &[], meta.size);
        }
        new_file::copy_into(&staged, from, &real, meta.size)
    }
}
