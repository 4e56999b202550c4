//! Steps that replace a whole folder: made and taken back by exchanging two names, so that neither
//! is ever missing.
//!
//! Making step N: `staged/N` and the place are exchanged, then `staged/N`, which is the old one
//! now, is renamed to `backup/N`. Taking it back: `backup/N` and the place are exchanged. Whatever
//! an interruption leaves is told by what is where: a folder is known by its inode number, a file
//! (a fence) by what it says. Whether somebody wrote into a folder meanwhile is told by the hash of
//! all that is in it.

use anyhow::{Context as _, Result};

use super::confined::{Confined, Place, is_folder, is_not_there};
use super::journal::{Journal, State, Step};
use super::store::Store;
use super::transaction::{Made, open_if_there};
use crate::change::tree_hash;
use crate::guest::RealPath;

/// How far a look at a folder goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Look {
    /// It is the same one.
    Inode,
    /// And nobody has written into it.
    Whole,
}

/// What is at `path`, a folder by all that is in it.
pub(super) fn state(confined: &Confined, path: &RealPath) -> Result<State> {
    let stat = confined
        .lstat(path)
        .with_context(|| format!("looking at {path}"))?;
    match stat.filter(is_folder) {
        Some(stat) => {
            let sha256 = tree_hash::of(confined, path.as_path())?;
            Ok(State::Tree {
                inode: stat.st_ino,
                sha256,
            })
        }
        None => confined.state(path),
    }
}

/// Whether `wanted` is at `place`.
pub(super) fn holds(
    confined: &Confined,
    place: &Place,
    wanted: &State,
    look: Look,
) -> Result<bool> {
    let State::Tree { inode, .. } = wanted else {
        return Ok(place.state()? == *wanted);
    };
    let stat = place
        .lstat()
        .with_context(|| format!("looking at {place}"))?;
    let same = stat.is_some_and(|stat| is_folder(&stat) && stat.st_ino == *inode);
    Ok(same && (look == Look::Inode || state(confined, place.path())? == *wanted))
}

/// Makes a step that is not made yet.
pub(super) fn make(
    confined: &Confined,
    store: &Store<'_>,
    id: &str,
    n: usize,
    step: &Step,
    look: Look,
) -> Result<Made> {
    let path = step.path.to_real()?;
    let place = match confined.place(&path) {
        Ok(place) => place,
        Err(error) if is_not_there(&error) => return Ok(Made::Not(State::Absent)),
        Err(error) => return Err(error).with_context(|| format!("opening the folder of {path}")),
    };
    let Some(staged) = open_if_there(confined, &store.staged(step, id, n)?)? else {
        return Ok(Made::Before);
    };
    if holds(confined, &staged, &step.after, Look::Inode)? {
        if !holds(confined, &place, &step.before, look)? {
            return Ok(Made::Not(state(confined, &path)?));
        }
        if step.before == State::Absent {
            staged.rename_to_free_name(&place)?;
            place.sync_folder()?;
            staged.sync_folder()?;
            return Ok(Made::Now);
        }
        staged.exchange(&place)?;
        // Another step of this run may stand on this one on another disk: it must be there before
        // that begins.
        place.sync_folder()?;
        staged.sync_folder()?;
    }
    let backup = confined
        .place(&store.backup(step, id, n)?)
        .with_context(|| format!("opening the backup of {path}"))?;
    staged.rename_to_free_name(&backup)?;
    backup.sync_folder()?;
    staged.sync_folder()?;
    Ok(Made::Now)
}

/// Whether a step of a committed run has been made, or begun.
pub(super) fn is_made(
    confined: &Confined,
    store: &Store<'_>,
    id: &str,
    n: usize,
    step: &Step,
) -> Result<bool> {
    match open_if_there(confined, &store.staged(step, id, n)?)? {
        Some(staged) => Ok(!holds(confined, &staged, &step.after, Look::Inode)?),
        None => Ok(true),
    }
}

/// What taking back a step takes.
#[derive(Debug)]
pub(super) enum Back {
    /// It was not made, or is taken back already.
    Nothing,
    /// What was there before is here now, to be exchanged with the place.
    Exchange(Place),
    /// Nothing was there before: what was put there moves to the backups, to be removed with them.
    PutAside,
    /// It cannot be taken back, because this is there now; `None`: the backup is missing.
    Not(Option<State>),
}

/// Finds out what taking back a step takes. With `over` a later step of the same run put something
/// in this place, and that is taken back first: what is there now says nothing.
pub(super) fn back(
    confined: &Confined,
    store: &Store<'_>,
    journal: &Journal,
    n: usize,
    step: &Step,
    over: bool,
) -> Result<Back> {
    let id = &journal.id;
    let path = step.path.to_real()?;
    let staged = open_if_there(confined, &store.staged(step, id, n)?)?;
    let backup = open_if_there(confined, &store.backup(step, id, n)?)?;
    // Still staged: never put in place. In the backups: taken back already.
    for there in staged.iter().chain(&backup) {
        if holds(confined, there, &step.after, Look::Inode)? {
            return Ok(Back::Nothing);
        }
    }
    let unchanged = || -> Result<Option<State>> {
        let now = state(confined, &path)?;
        Ok((!over && now != step.after).then_some(now))
    };
    if step.before == State::Absent {
        return Ok(match state(confined, &path)? {
            State::Absent => Back::Nothing,
            _ => unchanged()?.map_or(Back::PutAside, |now| Back::Not(Some(now))),
        });
    }
    for there in [backup, staged].into_iter().flatten() {
        if holds(confined, &there, &step.before, Look::Inode)? {
            return Ok(unchanged()?.map_or(Back::Exchange(there), |now| Back::Not(Some(now))));
        }
    }
    match open_if_there(confined, &path)? {
        Some(place) if holds(confined, &place, &step.before, Look::Inode)? => Ok(Back::Nothing),
        _ => Ok(Back::Not(unchanged()?)),
    }
}

/// Takes back a step by exchanging the old one, which is at `old`, with what the run put in its
/// place.
pub(super) fn restore(confined: &Confined, path: &RealPath, old: &Place) -> Result<()> {
    let place = confined
        .place(path)
        .with_context(|| format!("opening the folder of {path}"))?;
    old.exchange(&place)?;
    place.sync_folder()?;
    old.sync_folder()
}

/// Takes away what a step put where nothing was.
pub(super) fn put_aside(
    confined: &Confined,
    store: &Store<'_>,
    id: &str,
    n: usize,
    step: &Step,
) -> Result<()> {
    let path = step.path.to_real()?;
    let place = confined
        .place(&path)
        .with_context(|| format!("opening the folder of {path}"))?;
    let backup = confined
        .place(&store.backup(step, id, n)?)
        .with_context(|| format!("opening the backup of {path}"))?;
    place.rename_to_free_name(&backup)?;
    place.sync_folder()?;
    backup.sync_folder()
}
