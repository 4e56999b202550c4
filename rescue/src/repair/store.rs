//! Where runs, staged files and backups lie on the guest; see [`super::journal`] for the picture.

use crate::base::shell;
use std::rc::Rc;

use anyhow::{Context, Result};
use rustix::fs::{FileType, Stat};
use serde::Serialize;

use super::confined::{Confined, Place, is_folder, sync_file};
use super::journal::{
    Finished, Journal, RECORD_LIMIT, RUNS, SIDE_STORE, SetRecord, Step, parse_enlisted,
    parse_journal,
};
use super::kept::KeepIn;
use super::write_mount::WritableGuest;
use super::xattrs;
use crate::base::refusal::Refusal;
use crate::guest::{Guest, GuestPath, RealPath};
use crate::tree::{TreeError, TreeResult};

/// The commit record.
pub(super) const JOURNAL: &str = "journal.json";
/// The guests that are changed as one.
pub(super) const SET: &str = "set.json";
/// All steps are done.
pub(super) const DONE: &str = "done.json";
/// An undo has begun.
pub(super) const UNDO: &str = "undo.json";
/// An undo is complete.
pub(super) const UNDONE: &str = "undone.json";

const STAGED: &str = "staged";
const BACKUP: &str = "backup";

/// How far a run came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reached {
    /// Nothing is committed.
    Begun,
    /// Committed; perhaps part-way.
    Committed,
    /// All steps are done.
    Done,
    /// Its undo has begun.
    Undoing,
    /// Undone.
    Undone,
}

impl Reached {
    /// Whether nothing is left to be completed.
    pub fn is_finished(self) -> bool {
        matches!(self, Self::Done | Self::Undone)
    }
}

/// The places of runs on one guest.
#[derive(Debug)]
pub(super) struct Store<'a> {
    confined: &'a Confined,
    /// `/var/lib/rescue/runs`, its links resolved.
    runs: RealPath,
    runs_mount: RealPath,
    /// Where to keep, or to look for, what does not fit on the guest.
    pub keep_in: Option<Rc<KeepIn>>,
}

impl<'a> Store<'a> {
    /// Those of a guest that is open for writing.
    pub fn of(guest: &'a WritableGuest) -> Result<Self> {
        Ok(Self {
            keep_in: guest.keep_in(),
            ..Self::find(guest.guest(), guest.confined())?
        })
    }

    /// Finds them, creates nothing. Our own folders must not be links: nobody but us makes them.
    pub fn find(guest: &Guest, confined: &'a Confined) -> Result<Self> {
        let runs = runs_folder(guest).map_err(no_var_lib)?;
        let ours = runs.parent();
        let side_stores = confined
            .mount_points()
            .map(|mount_point| mount_point.child(SIDE_STORE.as_ref()));
        for folder in [ours.parent(), ours, runs.clone()]
            .into_iter()
            .chain(side_stores)
        {
            if let Some(stat) = confined.lstat(&folder)?.filter(|stat| !is_folder(stat)) {
                return Err(not_of_rescue(&folder, &stat, "a folder").into());
            }
        }
        let runs_mount = confined.mount_point_of(&runs)?;
        Ok(Self {
            confined,
            runs,
            runs_mount,
            keep_in: None,
        })
    }

    /// Creates the folders of runs, and those above that are missing, synchronised.
    pub fn create(&self) -> Result<()> {
        let mut missing = Vec::new();
        let mut folder = self.runs.clone();
        while self.confined.lstat(&folder)?.is_none() {
            missing.push(folder.clone());
            folder = folder.parent();
        }
        for folder in missing.iter().rev() {
            self.make_folder(folder)?;
        }
        Ok(())
    }

    /// Creates one folder, 0700, without the access lists of the folder around it, synchronised.
    pub fn make_folder(&self, folder: &RealPath) -> Result<()> {
        let place = self.place(folder)?;
        place.make_folder()?;
        xattrs::drop_lists(&place)?;
        place.sync_folder()
    }

    /// The folder of a run.
    pub fn run(&self, id: &str) -> RealPath {
        self.runs.child(id.as_ref())
    }

    /// The folders in the runs folder. A FIFO, a device, a socket or a file there is no run, and is
    /// left alone unopened.
    ///
    /// # Errors
    /// [`Refusal`] (by downcast) for a link: a run may have been moved to where it leads, and could
    /// be unfinished.
    pub fn ids(&self) -> Result<Vec<String>> {
        let mut ids = Vec::new();
        for id in run_ids(self.confined.names(&self.runs)?) {
            let run = self.run(&id);
            match self.confined.lstat(&run)? {
                Some(stat) if is_folder(&stat) => ids.push(id),
                Some(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Symlink => {
                    return Err(not_of_rescue(&run, &stat, "a folder").into());
                }
                _ => {}
            }
        }
        Ok(ids)
    }

    /// The folder on the file system at `mount_point` that holds a run's staged files and backups.
    pub fn on(&self, mount_point: &RealPath, id: &str) -> RealPath {
        if *mount_point == self.runs_mount {
            self.run(id)
        } else {
            mount_point.child(SIDE_STORE.as_ref()).child(id.as_ref())
        }
    }

    /// What step `n` puts in place.
    pub fn staged(&self, step: &Step, id: &str, n: usize) -> Result<RealPath> {
        Ok(self
            .staged_folder(&step.mount_point.to_real()?, id)
            .child(n.to_string().as_ref()))
    }

    /// What step `n` replaced.
    pub fn backup(&self, step: &Step, id: &str, n: usize) -> Result<RealPath> {
        Ok(self
            .backup_folder(&step.mount_point.to_real()?, id)
            .child(n.to_string().as_ref()))
    }

    /// The folder of all that a run puts in place on one file system.
    pub fn staged_folder(&self, mount_point: &RealPath, id: &str) -> RealPath {
        self.on(mount_point, id).child(STAGED.as_ref())
    }

    /// The folder of all that a run replaced on one file system.
    pub fn backup_folder(&self, mount_point: &RealPath, id: &str) -> RealPath {
        self.on(mount_point, id).child(BACKUP.as_ref())
    }

    /// Removes what a run staged, on all file systems.
    pub fn remove_staged(&self, id: &str) -> Result<()> {
        for mount_point in self.confined.mount_points() {
            self.confined
                .remove_tree(&self.staged_folder(&mount_point, id))?;
        }
        Ok(())
    }

    /// Removes what a run replaced and its stores; the run's own folder with its records stays.
    pub fn remove_backups(&self, id: &str) -> Result<()> {
        for mount_point in self.confined.mount_points() {
            self.confined
                .remove_tree(&self.backup_folder(&mount_point, id))?;
            if mount_point != self.runs_mount {
                self.remove_side_store(&mount_point, id)?;
            }
        }
        Ok(())
    }

    fn remove_side_store(&self, mount_point: &RealPath, id: &str) -> Result<()> {
        let store = self.on(mount_point, id);
        if self.confined.lstat(&store)?.is_some() {
            self.confined.remove_tree(&store)?;
            // Runs of others may still be in it; then it stays.
            self.place(&store.parent())?.remove_folder()?;
        }
        Ok(())
    }

    /// Removes a run that was never committed. Its own folder goes last, so that an interruption is
    /// noticed.
    pub fn discard(&self, id: &str) -> Result<()> {
        self.remove_staged(id)?;
        self.remove_backups(id)?;
        self.confined.remove_tree(&self.run(id))?;
        self.place(&self.run(id))?.sync_folder()
    }

    /// Writes a record of a run: whole or not at all.
    pub fn write_record(&self, id: &str, name: &str, record: &impl Serialize) -> Result<()> {
        let bytes =
            serde_json::to_vec_pretty(record).context("writing the record of this run as JSON")?;
        let folder = self.run(id);
        let temporary = self.place(&folder.child(format!(".{name}.tmp").as_ref()))?;
        let place = self.place(&folder.child(name.as_ref()))?;
        temporary.unlink()?;
        let written = temporary
            .create(&bytes)
            .and_then(|file| sync_file(&file, &place));
        if let Err(error) = written.and_then(|()| temporary.rename_over(&place)) {
            // On a full disk it may hold the last inode.
            let _ = temporary.unlink();
            return Err(error);
        }
        place.sync_folder()
    }

    /// Takes a record away again that was just written, or could not be synchronised.
    pub fn remove_record(&self, id: &str, name: &str) -> Result<()> {
        let place = self.place(&self.run(id).child(name.as_ref()))?;
        if place.lstat()?.is_some() {
            place.unlink()?;
            place.sync_folder()?;
        }
        Ok(())
    }

    /// Takes back a run that is not to be committed after all. Its record goes first, in case it is
    /// in place although its folder could not be synchronised: a record without what it stages
    /// would be completed with nothing.
    pub fn take_back(&self, id: &str) -> Result<()> {
        if self.confined.lstat(&self.run(id))?.is_none() {
            return Ok(());
        }
        self.remove_record(id, JOURNAL)?;
        self.discard(id)
    }

    /// Whether a run has a record of that name.
    ///
    /// # Errors
    /// [`Refusal`] (by downcast) where something else than a file has the name: how far the run
    /// came is not known then.
    pub fn has_record(&self, id: &str, name: &str) -> Result<bool> {
        let record = self.run(id).child(name.as_ref());
        match self.confined.lstat(&record)? {
            Some(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile => {
                Ok(true)
            }
            Some(stat) => Err(not_of_rescue(&record, &stat, "a file").into()),
            None => Ok(false),
        }
    }

    /// The commit record; `None` when the run was never committed.
    pub fn journal(&self, id: &str) -> Result<Option<Journal>> {
        if !self.has_record(id, JOURNAL)? {
            return Ok(None);
        }
        let place = self.place(&self.run(id).child(JOURNAL.as_ref()))?;
        let journal = parse_journal(&place.read(RECORD_LIMIT)?)
            .with_context(|| format!("reading {place}"))?;
        anyhow::ensure!(journal.id == id, "{place} is the record of another run");
        self.refuse_strange_folders(id)?;
        Ok(Some(journal))
    }

    /// What a committed run staged and keeps lies in folders; through anything else neither
    /// completing it nor its undo can go.
    fn refuse_strange_folders(&self, id: &str) -> Result<()> {
        for mount_point in self.confined.mount_points() {
            let folders = [
                self.on(&mount_point, id),
                self.staged_folder(&mount_point, id),
                self.backup_folder(&mount_point, id),
            ];
            for folder in folders {
                if let Some(stat) = self
                    .confined
                    .lstat(&folder)?
                    .filter(|stat| !is_folder(stat))
                {
                    return Err(not_of_rescue(&folder, &stat, "a folder").into());
                }
            }
        }
        Ok(())
    }

    /// The guests that are changed together with this one, committed or not; `None` where it is
    /// alone.
    pub fn set(&self, id: &str) -> Result<Option<SetRecord>> {
        if !self.has_record(id, SET)? {
            return Ok(None);
        }
        let place = self.place(&self.run(id).child(SET.as_ref()))?;
        parse_enlisted(&place.read(RECORD_LIMIT)?)
            .map(Some)
            .with_context(|| format!("reading {place}"))
    }

    /// How far a run came.
    pub fn reached(&self, id: &str) -> Result<Reached> {
        Ok(match () {
            () if !self.has_record(id, JOURNAL)? => Reached::Begun,
            () if self.has_record(id, UNDONE)? => Reached::Undone,
            () if self.has_record(id, UNDO)? => Reached::Undoing,
            () if self.has_record(id, DONE)? => Reached::Done,
            () => Reached::Committed,
        })
    }

    /// `done.json` or `undone.json`.
    pub fn finished(&self, id: &str, name: &str) -> Result<Option<Finished>> {
        if !self.has_record(id, name)? {
            return Ok(None);
        }
        let place = self.place(&self.run(id).child(name.as_ref()))?;
        let record = place
            .read(RECORD_LIMIT)
            .and_then(|bytes| Ok(serde_json::from_slice(&bytes)?));
        let record = record.with_context(|| format!("reading {place}"));
        record
            .map(Some)
            .map_err(|error| super::transaction::unreadable(self, id, &error).into())
    }

    /// All committed runs with their records, oldest first.
    pub fn committed(&self) -> Result<Vec<Journal>> {
        let mut journals = Vec::new();
        for id in self.ids()? {
            journals.extend(self.journal(&id)?);
        }
        journals.sort_by_key(|journal| journal.sequence);
        Ok(journals)
    }

    fn place(&self, path: &RealPath) -> Result<Place> {
        self.confined
            .place(path)
            .with_context(|| format!("opening the folder of {path}"))
    }
}

/// The names that can be runs of ours.
pub(super) fn run_ids(names: impl IntoIterator<Item = std::ffi::OsString>) -> Vec<String> {
    names
        .into_iter()
        .filter_map(|name| name.into_string().ok())
        .filter(|name| super::journal::is_run_id(name))
        .collect()
}

/// `/var/lib/rescue/runs` with the links above `rescue` resolved; it need not be there yet.
pub(super) fn runs_folder(guest: &Guest) -> TreeResult<RealPath> {
    let ours = GuestPath::new(RUNS);
    let above = guest.resolve(&ours.parent().parent())?;
    Ok(above.child("rescue".as_ref()).child("runs".as_ref()))
}

/// Something at a place of rescue's own that no rescue made. `belongs`: what belongs there.
fn not_of_rescue(path: &RealPath, stat: &Stat, belongs: &str) -> Refusal {
    let there = match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => "a file",
        FileType::Directory => "a folder",
        FileType::Symlink => "a symbolic link",
        FileType::Fifo => "a FIFO",
        FileType::Socket => "a socket",
        _ => "a device",
    };
    let at = shell::quoted(path.as_path());
    Refusal::new(
        format!("{path} in the guest is {there}, and {belongs} of rescue's own belongs there"),
        "no rescue made it, so nothing is written beside it and no record is read through it",
        format!(
            "with the node's file systems mounted below /mnt, look at it (`ls -ld /mnt{at}`), move \
             it away (`mv /mnt{at} /mnt/root/`), umount them, and run this again"
        ),
    )
}

/// A node without it is no node: its /var is on a disk that was not given, and a record below its
/// empty mount point would be lost from sight at the next boot.
fn no_var_lib(error: TreeError) -> anyhow::Error {
    if !error.is_not_found() {
        return anyhow::Error::new(error).context("looking for /var/lib in the guest");
    }
    Refusal::new(
        "there is no /var/lib in the guest",
        "its /var is probably on a disk that was not given, and the record of this repair belongs \
         there",
        "give that disk too, then run this again",
    )
    .into()
}
