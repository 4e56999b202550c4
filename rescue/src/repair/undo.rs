//! Undo: puts back the original inodes, backwards through the record of a run. Refuses when files
//! changed since; says what has no undo.

use std::collections::BTreeSet;
use std::ops::Range;

use anyhow::{Context, Result, bail};

use super::confined::{Confined, Place};
use super::exchange::{self, Back};
use super::journal::{Journal, State, Step};
use super::kept;
use super::set;
use super::store::{DONE, Reached, Store, UNDO, UNDONE};
use super::transaction::{Drift, finished_now, open_if_there, same_inode, unreadable};
use super::undo_look;
use super::write_mount::WritableGuest;
use crate::base::fault;
use crate::base::refusal::Refusal;
use crate::base::ui::Ui;
use crate::guest::RealPath;

/// What an undo did; paths as people read them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Undone {
    /// Name of the run.
    pub run: String,
    /// Files and links that are what they were before.
    pub restored: Vec<String>,
    /// Files, links and folders of the run that are gone.
    pub removed: Vec<String>,
    /// What was left in place, one sentence each that says why.
    pub kept: Vec<String>,
    /// What was freed and has no undo.
    pub not_undoable: Vec<String>,
    /// Folders on the machine that rescue ran on that nobody needs any more.
    pub elsewhere: Vec<String>,
}

/// Undoes a run: the newest that is not undone, or the one named. A half-way run is undone as it
/// is. An interrupted undo of the same run is continued.
///
/// # Errors
/// [`Refusal`] (by downcast) when nothing was changed: no such run, a later run changed the same
/// files, files changed since.
pub fn undo(guest: &WritableGuest, run: Option<&str>, ui: &dyn Ui) -> Result<Undone> {
    let confined = guest.confined();
    let store = Store::of(guest)?;
    let open_runs = runs_to_undo(&store)?;
    let journal = choose(&store, &open_runs, run)?;
    if let Some(set) = &journal.set {
        return Err(set::others_needed(&journal.id, set).into());
    }
    refuse_out_of_order(&open_runs, journal)?;
    refuse_drifted(confined, &store, journal)?;
    kept::refuse_missing_back(confined, &store, journal)?;
    fault::point("undo: checked");
    begin(&store, journal)?;
    fault::point("undo: begun");
    put_back(confined, &store, journal, Drift::Fails, ui)
}

/// Writes down that an undo has begun.
pub(super) fn begin(store: &Store<'_>, journal: &Journal) -> Result<()> {
    if let Err(error) = store.write_record(&journal.id, UNDO, &finished_now(Vec::new())) {
        // On a full disk a finished run can be undone without saying so first: an interruption
        // leaves it finished in name, and undoing it again continues. A half-way run could be
        // rolled forward instead, so there the record must be.
        let full = matches!(
            error.downcast_ref(),
            Some(&(rustix::io::Errno::NOSPC | rustix::io::Errno::DQUOT))
        );
        let kept = journal.steps.iter().any(|step| step.kept.is_some());
        if kept || !(full && store.has_record(&journal.id, DONE)?) {
            return Err(not_begun(store, journal, error));
        }
    }
    Ok(())
}

/// An undo that could not be written down.
fn not_begun(store: &Store<'_>, journal: &Journal, cause: anyhow::Error) -> anyhow::Error {
    // In place although its folder could not be synchronised, it would let the next repair go on
    // with the undo.
    if let Err(left) = store.remove_record(&journal.id, UNDO) {
        let cause = cause.context(format!(
            "taking back the record of this undo failed ({left:#})"
        ));
        return UndoError {
            run: journal.id.clone(),
            done: 0,
            total: journal.steps.len(),
            cause,
        }
        .into();
    }
    Refusal::new(
        format!("the undo could not be written down ({cause:#})"),
        "no file of the guest was changed",
        "mend the cause, then run the same undo again",
    )
    .into()
}

/// An undo that stopped part-way. Exit code 4.
#[derive(Debug)]
pub struct UndoError {
    /// Name of the run.
    pub run: String,
    /// Steps that are undone.
    pub done: usize,
    /// Steps of the run.
    pub total: usize,
    /// Why.
    pub cause: anyhow::Error,
}

impl std::fmt::Display for UndoError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            run,
            done,
            total,
            cause,
        } = self;
        write!(
            f,
            "the undo of run {run} stopped after {done} of {total} steps: {cause:#}. Next: mend \
             the cause, then run the same undo again, which continues it"
        )
    }
}

impl std::error::Error for UndoError {}

/// Committed runs that are not undone, oldest first.
pub(super) fn runs_to_undo(store: &Store<'_>) -> Result<Vec<Journal>> {
    let mut runs = Vec::new();
    for id in store.ids()? {
        match store.journal(&id) {
            Ok(Some(journal)) if store.reached(&id)? != Reached::Undone => runs.push(journal),
            Ok(_) => {}
            Err(error) => return Err(unreadable(store, &id, &error).into()),
        }
    }
    runs.sort_by_key(|journal| journal.sequence);
    Ok(runs)
}

fn choose<'a>(store: &Store<'_>, runs: &'a [Journal], wanted: Option<&str>) -> Result<&'a Journal> {
    let Some(id) = wanted else {
        return runs.last().ok_or_else(|| {
            Refusal::new(
                "no run on this guest is left to undo",
                "nothing was repaired here, or all of it is undone already",
                "`rescue runs` with the same disks lists what was done",
            )
            .into()
        });
    };
    if let Some(journal) = runs.iter().find(|journal| journal.id == id) {
        return Ok(journal);
    }
    let known = super::journal::is_run_id(id) && store.has_record(id, UNDONE)?;
    let saw = if known {
        format!("the run {id} is undone already")
    } else {
        format!("there is no run {id:?} on this guest")
    };
    Err(Refusal::new(
        saw,
        "there is nothing to undo",
        "`rescue runs` with the same disks lists what was done",
    )
    .into())
}

pub(super) fn refuse_out_of_order(runs: &[Journal], journal: &Journal) -> Result<()> {
    let later: Vec<&Journal> = runs
        .iter()
        .filter(|run| run.sequence > journal.sequence)
        .filter(|run| {
            run.steps
                .iter()
                .any(|theirs| journal.steps.iter().any(|ours| ours.path == theirs.path))
        })
        .rev()
        .collect();
    if later.is_empty() {
        return Ok(());
    }
    let order: Vec<&str> = later
        .iter()
        .map(|run| run.id.as_str())
        .chain([journal.id.as_str()])
        .collect();
    Err(Refusal::new(
        format!("a later run changed the same files as {}", journal.id),
        "putting the older files back would mix two repairs",
        format!(
            "undo them in this order, one by one: {}",
            order.join(", then ")
        ),
    )
    .into())
}

pub(super) fn refuse_drifted(
    confined: &Confined,
    store: &Store<'_>,
    journal: &Journal,
) -> Result<()> {
    let left_alone = left_alone(store, journal)?;
    let (mut drifted, mut lost) = (Vec::new(), Vec::new());
    let mut over = BTreeSet::new();
    for (n, step) in journal.steps.iter().enumerate().rev() {
        match need(
            confined,
            store,
            journal,
            n,
            step,
            &left_alone,
            over.contains(&step.path),
        )? {
            Need::Drifted(reason) => drifted.insert(0, reason),
            Need::Lost(reason) => lost.insert(0, reason),
            Need::Nothing => continue,
            _ => {}
        }
        over.insert(&step.path);
    }
    match (drifted.is_empty(), lost.is_empty()) {
        (true, true) => Ok(()),
        (true, false) => Err(without_backup(&journal.id, &lost).into()),
        (false, _) => {
            drifted.append(&mut lost);
            Err(undo_look::refusal(&journal.id, &drifted).into())
        }
    }
}

/// An undo that has nothing to put back at some path.
fn without_backup(run: &str, lost: &[String]) -> Refusal {
    Refusal::new(
        format!("run {run} cannot be undone: {}", lost.join("; ")),
        "without the old file nothing can be put back there, and half an undo would mix two states",
        "`rescue repair` with the same disks mends what is wrong now",
    )
}

fn left_alone(store: &Store<'_>, journal: &Journal) -> Result<Vec<usize>> {
    Ok(store
        .finished(&journal.id, DONE)?
        .map(|done| done.left_alone)
        .unwrap_or_default())
}

/// What undoing one step takes.
enum Need {
    /// Not made, or undone already.
    Nothing,
    /// The original goes back.
    Restore,
    /// What was created goes.
    Remove,
    /// The created folder goes, when it is empty.
    RemoveFolder,
    /// The original folder, which is here, changes places with what replaced it.
    Exchange(Place),
    /// What was put where nothing was goes to the backups, and with them.
    PutAside,
    /// It cannot be undone: this was changed since.
    Drifted(String),
    /// It cannot be undone: what was replaced is not there.
    Lost(String),
}

fn need(
    confined: &Confined,
    store: &Store<'_>,
    journal: &Journal,
    n: usize,
    step: &Step,
    left_alone: &[usize],
    over: bool,
) -> Result<Need> {
    if left_alone.contains(&n) {
        return Ok(Need::Nothing);
    }
    if step.is_exchange() {
        return Ok(
            match exchange::back(confined, store, journal, n, step, over)? {
                Back::Nothing => Need::Nothing,
                Back::Exchange(old) => Need::Exchange(old),
                Back::PutAside => Need::PutAside,
                Back::Not(Some(now)) => {
                    let left = format!(
                        "{} holds {now} where the run left {}",
                        step.path, step.after
                    );
                    match step.before.is_tree() {
                        true => Need::Drifted(format!(
                            "{left} (what it replaced is kept in {})",
                            store.run(&journal.id)
                        )),
                        false => Need::Drifted(left),
                    }
                }
                Back::Not(None) => Need::Lost(format!("the backup of {} is missing", step.path)),
            },
        );
    }
    let id = &journal.id;
    // Still staged means never put in place.
    if step.after != State::Absent
        && open_if_there(confined, &store.staged(step, id, n)?)?.is_some()
    {
        return Ok(Need::Nothing);
    }
    // What a later step of this run put over it says nothing.
    if over {
        return Ok(Need::Remove);
    }
    let path = step.path.to_real()?;
    let place = open_if_there(confined, &path)?;
    let now = place.as_ref().map_or(Ok(State::Absent), Place::state)?;
    let drifted = || {
        Ok(Need::Drifted(format!(
            "{path} holds {now} where the run left {}",
            step.after
        )))
    };
    if step.before == State::Absent {
        return match &now {
            State::Absent => Ok(Need::Nothing),
            State::Directory if step.after == State::Directory => Ok(Need::RemoveFolder),
            now if *now == step.after => Ok(Need::Remove),
            _ => drifted(),
        };
    }
    let Some(backup) = open_if_there(confined, &store.backup(step, id, n)?)? else {
        return match now == step.before {
            true => Ok(Need::Nothing),
            false if now == step.after => {
                Ok(Need::Lost(format!("the backup of {path} is missing")))
            }
            false => drifted(),
        };
    };
    match &place {
        Some(place) if same_inode(place, &backup)? => Ok(Need::Nothing),
        _ if now == step.after => Ok(Need::Restore),
        _ => drifted(),
    }
}

/// Undoes all steps, last first, and marks the run undone. Can be interrupted anywhere and done
/// again.
///
/// # Errors
/// [`UndoError`] (by downcast).
pub(super) fn put_back(
    confined: &Confined,
    store: &Store<'_>,
    journal: &Journal,
    drift: Drift,
    ui: &dyn Ui,
) -> Result<Undone> {
    let mut done = 0;
    put_all_back(confined, store, journal, drift, ui, &mut done).map_err(|cause| {
        UndoError {
            run: journal.id.clone(),
            done,
            total: journal.steps.len(),
            cause,
        }
        .into()
    })
}

fn put_all_back(
    confined: &Confined,
    store: &Store<'_>,
    journal: &Journal,
    drift: Drift,
    ui: &dyn Ui,
    done: &mut usize,
) -> Result<Undone> {
    let mut undone = Undone {
        run: journal.id.clone(),
        elsewhere: journal.elsewhere(),
        ..Undone::default()
    };
    let kept = put_steps_back(
        confined,
        store,
        journal,
        0..journal.steps.len(),
        drift,
        ui,
        (&mut undone, done),
    )?;
    if !kept.is_empty() {
        undone.elsewhere.clear();
    }
    finish(confined, store, journal, kept)?;
    Ok(undone)
}

/// Undoes those of the steps that are made, last first. Returns which of them leave a whole folder
/// in the store, because it cannot be put back.
pub(super) fn put_steps_back(
    confined: &Confined,
    store: &Store<'_>,
    journal: &Journal,
    steps: Range<usize>,
    drift: Drift,
    ui: &dyn Ui,
    (undone, done): (&mut Undone, &mut usize),
) -> Result<Vec<usize>> {
    let id = &journal.id;
    let mut kept = Vec::new();
    let left_alone = left_alone(store, journal)?;
    undone.not_undoable = journal
        .freed
        .iter()
        .map(|freed| freed.path.to_string())
        .collect();
    let progress = ui.begin("Putting files back", Some(steps.len() as u64));
    for (n, step) in journal
        .steps
        .iter()
        .enumerate()
        .rev()
        .filter(|(n, _)| steps.contains(n))
    {
        progress.message(&step.path.to_string());
        let doing = || format!("while putting back {}", step.path);
        let need =
            need(confined, store, journal, n, step, &left_alone, false).with_context(doing)?;
        if matches!(need, Need::Drifted(_) | Need::Lost(_)) && step.is_exchange() {
            kept.push(n);
        }
        if let Need::Exchange(old) = &need {
            kept::bring_back(confined, store, journal, n, step, old).with_context(doing)?;
        }
        put_one_back(confined, store, id, (n, step), need, drift, undone).with_context(doing)?;
        *done += 1;
        progress.advance(1);
    }
    Ok(kept)
}

/// Removes what an undone run does not need any more: all but whole folders that could not be put
/// back.
pub(super) fn tidy(store: &Store<'_>, id: &str) -> Result<()> {
    if store
        .finished(id, UNDONE)?
        .is_none_or(|undone| undone.left_alone.is_empty())
    {
        store.remove_staged(id)?;
        store.remove_backups(id)?;
    }
    Ok(())
}

/// Marks a run undone and removes what is not needed any more: where a whole folder could not be
/// put back, it is still needed.
pub(super) fn finish(
    confined: &Confined,
    store: &Store<'_>,
    journal: &Journal,
    kept: Vec<usize>,
) -> Result<()> {
    let id = &journal.id;
    fault::point("undo: put back");
    if !kept.is_empty() {
        store.write_record(id, UNDONE, &finished_now(kept))?;
        return confined.sync_all();
    }
    if let Err(error) = store.write_record(id, UNDONE, &finished_now(Vec::new())) {
        // On a full disk the backups' folders have to go first; they are empty but for what was not
        // needed.
        store.remove_staged(id)?;
        store
            .write_record(id, UNDONE, &finished_now(Vec::new()))
            .map_err(|_| error)?;
    }
    fault::point("undo: done");
    store.remove_staged(id)?;
    store.remove_backups(id)?;
    confined.sync_all()
}

fn put_one_back(
    confined: &Confined,
    store: &Store<'_>,
    id: &str,
    (n, step): (usize, &Step),
    need: Need,
    drift: Drift,
    undone: &mut Undone,
) -> Result<()> {
    let path = step.path.to_real()?;
    match need {
        Need::Nothing => {}
        Need::Restore => {
            restore(confined, &path, &store.backup(step, id, n)?, step)?;
            undone.restored.push(path.to_string());
        }
        Need::Remove => {
            let place = place(confined, &path)?;
            place.unlink()?;
            place.sync_folder()?;
            undone.removed.push(path.to_string());
        }
        Need::RemoveFolder => {
            let place = place(confined, &path)?;
            if place.remove_folder()? {
                place.sync_folder()?;
                undone.removed.push(path.to_string());
            } else {
                undone
                    .kept
                    .push(format!("{path} was kept: it is not empty"));
            }
        }
        Need::Exchange(old) => {
            exchange::restore(confined, &path, &old)?;
            undone.restored.push(path.to_string());
        }
        Need::PutAside => {
            exchange::put_aside(confined, store, id, n, step)?;
            undone.removed.push(path.to_string());
        }
        Need::Drifted(reason) | Need::Lost(reason) if drift == Drift::IsLeftAlone => {
            undone.kept.push(reason)
        }
        Need::Drifted(reason) | Need::Lost(reason) => bail!("{reason}"),
    }
    Ok(())
}

fn restore(confined: &Confined, path: &RealPath, backup: &RealPath, step: &Step) -> Result<()> {
    let (place, backup) = (place(confined, path)?, place(confined, backup)?);
    if step.after == State::Absent {
        backup.rename_to_free_name(&place)?;
    } else {
        backup.rename_over(&place)?;
    }
    place.sync_folder()?;
    backup.sync_folder()
}

fn place(confined: &Confined, path: &RealPath) -> Result<Place> {
    confined
        .place(path)
        .with_context(|| format!("opening the folder of {path}"))
}
