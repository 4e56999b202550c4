//! The folder that was named with --keep-in.

use std::cell::Cell;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use anyhow::{Context as _, Result, ensure};
use rustix::fs::{Mode, OFlags};

use crate::base::refusal::Refusal;
use crate::base::units;
use crate::guest::RealPath;
use crate::repair::confined::{Confined, Place};

/// Its records and what a file system needs beside the bytes.
const SLACK: u64 = 1 << 20;

/// A folder of the machine that rescue runs on.
#[derive(Debug)]
pub struct KeepIn {
    path: PathBuf,
    folder: OwnedFd,
    confined: Rc<Confined>,
    /// Whether this process made the run's folder.
    is_begun: Cell<bool>,
}

impl KeepIn {
    /// Opens it.
    ///
    /// # Errors
    /// A [`Refusal`] (by downcast) where it is not a folder that is there.
    pub fn open(path: &Path) -> Result<Self> {
        Self::at(path).map_err(|error| {
            Refusal::new(
                format!("{} cannot be used as a folder ({error:#})", path.display()),
                "--keep-in names a folder of this machine, which must be there",
                "make it (mkdir), or name another one, then run this again",
            )
            .into()
        })
    }

    pub(super) fn at(path: &Path) -> Result<Self> {
        let path = std::fs::canonicalize(path)?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let folder = rustix::fs::open(&path, flags, Mode::empty())?;
        let confined = Confined::new(vec![(
            RealPath::new("/".into()),
            folder.as_fd(),
            "kept".to_owned(),
        )])?;
        Ok(Self {
            path,
            folder,
            confined: Rc::new(confined),
            is_begun: Cell::new(false),
        })
    }

    /// Its absolute path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn confined(&self) -> &Rc<Confined> {
        &self.confined
    }

    /// What lies on the disk that is to be repaired makes no room on it.
    pub(super) fn refuse_on(&self, guest: &Confined) -> Result<()> {
        if !guest.holds(self.folder.as_fd())? {
            return Ok(());
        }
        Err(Refusal::new(
            format!(
                "{} is on the guest that is to be repaired",
                self.path.display()
            ),
            "what is kept there takes the room that is missing, and could not be read while the \
             guest is being changed",
            "name a folder of the machine that rescue runs on with --keep-in DIR",
        )
        .into())
    }

    /// Whether so many bytes fit.
    pub(in crate::repair) fn refuse_without_room(&self, bytes: u64) -> Result<()> {
        let (needed, has) = (
            bytes.saturating_add(SLACK),
            self.confined.usage(&top())?.bytes_available,
        );
        if has >= needed {
            return Ok(());
        }
        Err(Refusal::new(
            format!("{} has {} free", self.path.display(), units::bytes(has)),
            format!(
                "the old and the new folder need {} there: {} are missing",
                units::bytes(needed),
                units::bytes(needed - has)
            ),
            "free some space there, or name another folder with --keep-in DIR, then run this again",
        )
        .into())
    }

    /// Makes the folder of a node below that of the run. Returns it.
    pub(super) fn make(&self, run: &str, node: &str) -> Result<RealPath> {
        let folder = top().child(run.as_ref());
        if !self.is_begun.get() {
            ensure!(
                self.confined.lstat(&folder)?.is_none(),
                "{}/{run} is there already: it is of another run",
                self.path.display()
            );
            self.make_folder(&folder)?;
            self.is_begun.set(true);
        }
        let mut name = plain(node);
        let mut count = 1;
        while self.confined.lstat(&folder.child(name.as_ref()))?.is_some() {
            count += 1;
            name = format!("{}-{count}", plain(node));
        }
        let made = folder.child(name.as_ref());
        self.make_folder(&made)?;
        Ok(made)
    }

    fn make_folder(&self, folder: &RealPath) -> Result<()> {
        let place = self.place(folder)?;
        place.make_folder()?;
        place.sync_folder()
    }

    pub(super) fn place(&self, path: &RealPath) -> Result<Place> {
        self.confined
            .place(path)
            .with_context(|| format!("opening the folder of {}", self.shown(path)))
    }

    /// A path below it as people read it.
    pub(super) fn shown(&self, path: &RealPath) -> String {
        let below = path.as_path().strip_prefix("/").unwrap_or(path.as_path());
        self.path.join(below).display().to_string()
    }

    /// Removes what this process put there for a run that is not committed after all.
    pub(in crate::repair) fn take_back(&self, run: &str) -> Result<()> {
        if self.is_begun.replace(false) {
            let what = || format!("removing {}/{run}", self.path.display());
            self.confined
                .remove_tree(&top().child(run.as_ref()))
                .with_context(what)?;
        }
        Ok(())
    }
}

pub(super) fn top() -> RealPath {
    RealPath::new("/".into())
}

/// A guest says how it is called; that must not name another folder.
fn plain(name: &str) -> String {
    let is_plain =
        |letter: &char| letter.is_ascii_alphanumeric() || matches!(letter, '-' | '_' | '.');
    let name: String = name.trim().chars().filter(is_plain).take(64).collect();
    let name = name.trim_start_matches('.');
    if name.is_empty() {
        "node".to_owned()
    } else {
        name.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_stays_below_its_folder() {
        for (name, wanted) in [
            ("m1\n", "m1"),
            ("../../etc", "etc"),
            ("", "node"),
            ("..", "node"),
            ("a/b", "ab"),
        ] {
            assert_eq!(plain(name), wanted);
        }
    }

    /// A plain folder given as the guest shares its file system with this machine; what is below it
    /// is the guest's.
    #[test]
    fn what_is_the_guest_s_is_refused() {
        let (guest, beside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        std::fs::create_dir_all(guest.path().join("a/b")).unwrap();
        let root = std::fs::File::open(guest.path()).unwrap();
        let confined = Confined::new(vec![(top(), root.as_fd(), "folder".to_owned())]).unwrap();
        for inside in ["", "a", "a/b"] {
            let error = KeepIn::open(&guest.path().join(inside))
                .unwrap()
                .refuse_on(&confined)
                .unwrap_err();
            assert!(
                error.is::<Refusal>() && error.to_string().contains("is on the guest"),
                "{error}"
            );
        }
        KeepIn::open(beside.path())
            .unwrap()
            .refuse_on(&confined)
            .unwrap();
        // Its own disk, mounted by us, and somewhere else on this machine.
        let confined = Confined::new(vec![(top(), root.as_fd(), "ext4".to_owned())]).unwrap();
        KeepIn::open(beside.path())
            .unwrap()
            .refuse_on(&confined)
            .unwrap_err();
    }

    #[test]
    fn what_is_no_folder_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let error = KeepIn::open(&folder.path().join("missing")).unwrap_err();
        assert!(
            error.is::<Refusal>() && error.to_string().contains("mkdir"),
            "{error}"
        );
        let keep = KeepIn::open(folder.path()).unwrap();
        let error = keep.refuse_without_room(1 << 60).unwrap_err().to_string();
        assert!(error.contains("are missing"), "{error}");
    }
}
