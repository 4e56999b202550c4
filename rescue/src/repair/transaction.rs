//! The transaction: frees, stages, commits, changes, and finishes what an earlier run left.
//!
//! Before the commit record a crash means discard, after it roll forward. Every step is one rename
//! (or one unlink) inside one file system, so it has either happened or not, and which of the two
//! can be seen: what was staged is gone from the store when it is in place.

use std::fmt;
use std::ops::Range;

use anyhow::{Context, Result};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::confined::{Confined, Place, is_not_there};
use super::exchange::{self, Look};
use super::freeing::{self, Freeings};
use super::journal::{FORMAT, FORMAT_KEPT, Finished, Freed, Journal, State, Step, is_run_id};
use super::kept;
use super::prune;
use super::set;
use super::stage::{self, Goal};
use super::store::{DONE, JOURNAL, Store, UNDO, UNDONE};
use super::undo;
use super::write_mount::WritableGuest;
use crate::base::fault;
use crate::base::refusal::Refusal;
use crate::base::ui::Ui;
use crate::change::Prepared;
use crate::change::folder::Sources;
use crate::guest::Guest;

/// What a run writes down about itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunInfo {
    /// Name of the run; see [`new_run_id`].
    pub id: String,
    /// Version of the program.
    pub version: String,
    /// When it began, RFC 3339.
    pub started: String,
    /// What it is for, as the plan said it; never key material.
    pub summary: Vec<String>,
}

impl RunInfo {
    /// A new run at `now`.
    pub fn new(now: OffsetDateTime, summary: Vec<String>) -> Self {
        Self {
            id: new_run_id(now),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            started: now.format(&Rfc3339).unwrap_or_default(),
            summary,
        }
    }
}

/// A name for a run: the time and two random bytes, `20261123-024149-a1b2`.
pub fn new_run_id(now: OffsetDateTime) -> String {
    let mut random = [0; 2];
    // Without randomness (early boot) the time alone has to do; a name that is taken is refused
    // later.
    let _ = rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::NONBLOCK);
    format!(
        "{:04}{:02}{:02}-{:02}{:02}{:02}-{}",
        now.year(),
        u8::from(now.month()),
        now.day(),
        now.hour(),
        now.minute(),
        now.second(),
        crate::base::hash::hex(&random)
    )
}

/// What a repair did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Applied {
    /// Name of the run, for `rescue undo`; `None` when there was nothing to write down.
    pub run: Option<String>,
    /// Files that gave back their space.
    pub freed: Vec<Freed>,
    /// Files that were to give back their space and were left alone, one sentence each.
    pub left_alone: Vec<String>,
    /// Changes made.
    pub changes: usize,
    /// Old runs that gave way so that runs take a bounded space, one sentence each.
    pub pruned: Vec<String>,
    /// Folders on the machine that rescue runs on where what did not fit beside the new folder is
    /// kept.
    pub elsewhere: Vec<String>,
}

/// What earlier, interrupted runs came to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Recovered {
    /// Committed runs that are complete now.
    pub completed: Vec<String>,
    /// Runs that had not been committed; nothing of them is left.
    pub discarded: Vec<String>,
    /// Runs whose undo is complete now.
    pub undone: Vec<String>,
    /// What could not be completed because the guest had changed meanwhile, one sentence each.
    pub left_alone: Vec<String>,
}

impl Recovered {
    /// Whether there was nothing to recover.
    pub fn is_nothing(&self) -> bool {
        *self == Self::default()
    }
}

/// A repair that stopped part-way: something is changed, or on record. Exit code 4.
#[derive(Debug)]
pub struct TransactionError {
    /// Name of the run.
    pub run: String,
    /// Changes made.
    pub applied: usize,
    /// Changes wanted.
    pub total: usize,
    /// Whether the run was committed: then running it again completes it, and undo goes back.
    pub committed: bool,
    /// What was freed before, but for a file that was only begun; it has no undo.
    pub freed: Vec<Freed>,
    /// Why.
    pub cause: anyhow::Error,
    /// What to do next.
    pub next: String,
}

impl fmt::Display for TransactionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            applied,
            total,
            freed,
            cause,
            next,
            ..
        } = self;
        write!(f, "the repair stopped after {applied} of {total} changes")?;
        if !freed.is_empty() {
            let bytes: u64 = freed.iter().map(|freed| freed.bytes).sum();
            write!(
                f,
                " and after freeing {} KiB in {} files",
                bytes >> 10,
                freed.len()
            )?;
        }
        write!(f, ": {cause:#}. Next: {next}")
    }
}

impl std::error::Error for TransactionError {}

/// Applies what all remedies come to, as one transaction. An unfinished earlier run is finished
/// first.
///
/// # Errors
/// [`Refusal`] (by downcast) when nothing was changed; [`TransactionError`] when something was.
pub fn apply(
    guest: &WritableGuest,
    prepared: Prepared,
    info: &RunInfo,
    ui: &dyn Ui,
) -> Result<Applied> {
    recover(guest, ui)?;
    let confined = guest.confined();
    let store = Store::of(guest)?;
    anyhow::ensure!(is_run_id(&info.id), "{:?} cannot name a run", info.id);
    anyhow::ensure!(
        !store.ids()?.contains(&info.id),
        "there is a run named {} already",
        info.id
    );

    let mut goals = stage::goals(prepared.changes, &info.id)?;
    // Once before freeing, because that has no undo: what is refused anyway should be refused with
    // the logs still there.
    stage::preflight(confined, &mut goals)?;
    fault::point("phase: checked");
    let freed = freeing::free(confined, &prepared.free, ui);
    fault::point("phase: freed");

    let total = goals.len();
    // Freed blocks can be used again only once the file system's own journal has committed.
    if !prepared.free.is_empty()
        && let Err(cause) = confined.sync_all()
    {
        return Err(not_committed(&store, info, total, freed, cause));
    }
    if goals.is_empty() && freed.freed.is_empty() {
        return Ok(Applied {
            left_alone: freed.left_alone,
            ..Applied::default()
        });
    }
    let journal = match prepare(
        guest.guest(),
        confined,
        &store,
        &mut goals,
        info,
        &freed,
        ui,
    ) {
        Ok(journal) => journal,
        Err(cause) => return Err(not_committed(&store, info, total, freed, cause)),
    };
    fault::point("phase: committed");
    let mut applied = 0;
    let finished = roll_forward(confined, &store, &journal, Drift::Now, &mut applied, ui);
    match finished {
        Ok(_) => Ok(Applied {
            run: Some(info.id.clone()),
            freed: freed.freed,
            left_alone: freed.left_alone,
            changes: applied,
            pruned: prune::keep_bounded(confined, &store),
            elsewhere: journal.elsewhere(),
        }),
        Err(cause) => Err(part_way(&journal, applied, cause).into()),
    }
}

/// Everything between freeing and the commit record, the record included.
fn prepare(
    guest: &Guest,
    confined: &Confined,
    store: &Store<'_>,
    goals: &mut Vec<Goal>,
    info: &RunInfo,
    freed: &Freeings,
    ui: &dyn Ui,
) -> Result<Journal> {
    stage::preflight(confined, goals)?;
    let elsewhere = kept::make_room(confined, store, goals, &info.id)?;
    kept::refuse_without_room(store, elsewhere)?;
    let sources = Sources::new([guest]);
    let steps = stage::stage(
        &stage::Stage {
            guest,
            sources: &sources,
            confined,
            store,
            ui,
        },
        goals,
        &info.id,
    )?;
    fault::point("phase: staged");
    let journal = Journal {
        freed: freed.freed.clone(),
        ..record(store, info, steps)?
    };
    store.write_record(&info.id, JOURNAL, &journal)?;
    Ok(journal)
}

/// What is to be committed.
pub(super) fn record(store: &Store<'_>, info: &RunInfo, steps: Vec<Step>) -> Result<Journal> {
    Ok(Journal {
        format: if steps.iter().any(|step| step.kept.is_some()) {
            FORMAT_KEPT
        } else {
            FORMAT
        }
        .to_owned(),
        id: info.id.clone(),
        sequence: 1 + store
            .committed()?
            .last()
            .map_or(0, |journal| journal.sequence),
        version: info.version.clone(),
        started: info.started.clone(),
        summary: info.summary.clone(),
        freed: Vec::new(),
        steps,
        set: None,
    })
}

/// Nothing but freeing happened: takes back what was staged.
fn not_committed(
    store: &Store<'_>,
    info: &RunInfo,
    total: usize,
    freed: Freeings,
    cause: anyhow::Error,
) -> anyhow::Error {
    let left = store
        .take_back(&info.id)
        .and_then(|()| kept::take_back(store, &info.id))
        .err();
    // Only when the disk fails again and again: then what the next run will see is not known.
    let committed = left.is_some() && store.has_record(&info.id, JOURNAL).unwrap_or(true);
    let cause = match left {
        None => cause,
        Some(left) if committed => {
            cause.context(format!("the run could not be taken back ({left:#})"))
        }
        Some(left) => cause.context(format!(
            "what was prepared could not be removed from {} ({left:#}), which the next repair does",
            store.run(&info.id)
        )),
    };
    let next = match committed {
        false => "mend the cause, then run the same repair again".to_owned(),
        true => complete_or_undo(&info.id),
    };
    if !committed && freed.changed_nothing() {
        if cause.is::<Refusal>() {
            return cause.context("no file of the guest was changed");
        }
        let saw = format!("the changes could not be prepared ({cause:#})");
        return Refusal::new(saw, "no file of the guest was changed", next).into();
    }
    let run = info.id.clone();
    TransactionError {
        run,
        applied: 0,
        total,
        committed,
        freed: freed.freed,
        cause,
        next,
    }
    .into()
}

fn complete_or_undo(run: &str) -> String {
    format!(
        "mend the cause and run the same repair again, which completes it; or `rescue undo --run \
         {run}` with the same disks, which puts everything back"
    )
}

fn part_way(journal: &Journal, applied: usize, cause: anyhow::Error) -> TransactionError {
    TransactionError {
        run: journal.id.clone(),
        applied,
        total: journal.steps.len(),
        committed: true,
        freed: journal.freed.clone(),
        cause,
        next: complete_or_undo(&journal.id),
    }
}

/// What to do about a file that is neither as before nor as wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Drift {
    /// Stop: nobody else should be here, and what was planned a moment ago still holds.
    Now,
    /// Stop: nobody else should have been here since the interruption.
    Fails,
    /// Leave it alone and say so: the guest was used since the interruption.
    IsLeftAlone,
}

/// Makes all changes of a committed run that are not made yet, and marks it done. Returns what was
/// left alone.
fn roll_forward(
    confined: &Confined,
    store: &Store<'_>,
    journal: &Journal,
    drift: Drift,
    applied: &mut usize,
    ui: &dyn Ui,
) -> Result<Vec<String>> {
    let all = 0..journal.steps.len();
    let (sentences, left_alone) = make_steps(confined, store, journal, all, drift, applied, ui)?
        .into_iter()
        .unzip();
    finish(confined, store, journal, left_alone)?;
    Ok(sentences)
}

/// Makes those of the steps that are not made yet. Returns what was left alone, and which step that
/// is.
pub(super) fn make_steps(
    confined: &Confined,
    store: &Store<'_>,
    journal: &Journal,
    steps: Range<usize>,
    drift: Drift,
    applied: &mut usize,
    ui: &dyn Ui,
) -> Result<Vec<(String, usize)>> {
    let mut left_alone = Vec::new();
    let progress = ui.begin("Changing files", Some(steps.len() as u64));
    for (n, step) in journal
        .steps
        .iter()
        .enumerate()
        .filter(|(n, _)| steps.contains(n))
    {
        progress.message(&step.path.to_string());
        // On the way from the plan nobody else was here; after an interruption the guest may have
        // been used.
        let look = if drift == Drift::Now {
            Look::Inode
        } else {
            Look::Whole
        };
        let made = match step.is_exchange() {
            true => kept::ready(confined, store, journal, n, step)
                .and_then(|()| exchange::make(confined, store, &journal.id, n, step, look)),
            false => make_step(confined, store, &journal.id, n, step),
        };
        match made.with_context(|| format!("while changing {}", step.path))? {
            Made::Now | Made::Before => *applied += 1,
            Made::Not(now) => {
                let sentence = format!(
                    "{} holds {now} where {} was expected",
                    step.path, step.before
                );
                anyhow::ensure!(drift == Drift::IsLeftAlone, "{sentence}");
                left_alone.push((format!("{sentence}; it was left alone"), n));
            }
        }
        progress.advance(1);
    }
    Ok(left_alone)
}

/// Marks a run done.
pub(super) fn finish(
    confined: &Confined,
    store: &Store<'_>,
    journal: &Journal,
    left_alone: Vec<usize>,
) -> Result<()> {
    fault::point("phase: changed");
    store.write_record(&journal.id, DONE, &finished_now(left_alone))?;
    fault::point("phase: done");
    store.remove_staged(&journal.id)?;
    kept::give_up_new(store, journal);
    confined.sync_all()
}

pub(super) fn finished_now(left_alone: Vec<usize>) -> Finished {
    let finished = OffsetDateTime::now_utc()
        .format(&Rfc3339)
        .unwrap_or_default();
    Finished {
        format: FORMAT.to_owned(),
        finished,
        left_alone,
    }
}

/// What became of a step.
pub(super) enum Made {
    /// It was made.
    Now,
    /// It had been made before.
    Before,
    /// Not made, because this is there.
    Not(State),
}

fn make_step(
    confined: &Confined,
    store: &Store<'_>,
    id: &str,
    n: usize,
    step: &Step,
) -> Result<Made> {
    let path = step.path.to_real()?;
    let place = match confined.place(&path) {
        Ok(place) => place,
        Err(error) if is_not_there(&error) => return Ok(Made::Not(State::Absent)),
        Err(error) => return Err(error).with_context(|| format!("opening the folder of {path}")),
    };
    let backup = open_if_there(confined, &store.backup(step, id, n)?)?;
    if step.after == State::Absent {
        if place.lstat()?.is_none() {
            return Ok(Made::Before);
        }
        if !backup.is_some_and(|backup| same_inode(&place, &backup).unwrap_or(false)) {
            return Ok(Made::Not(place.state()?));
        }
        place.unlink()?;
        place.sync_folder()?;
        return Ok(Made::Now);
    }
    let Some(staged) = open_if_there(confined, &store.staged(step, id, n)?)? else {
        return Ok(Made::Before);
    };
    let now = place.state()?;
    if now != step.before {
        return Ok(Made::Not(now));
    }
    if step.before == State::Absent {
        staged.rename_to_free_name(&place)?;
    } else {
        // The same bytes in another inode would leave undo with a backup that is not what was
        // replaced.
        if !backup.is_some_and(|backup| same_inode(&place, &backup).unwrap_or(false)) {
            return Ok(Made::Not(now));
        }
        staged.rename_over(&place)?;
    }
    place.sync_folder()?;
    staged.sync_folder()?;
    Ok(Made::Now)
}

/// The place, when something is there.
pub(super) fn open_if_there(
    confined: &Confined,
    path: &crate::guest::RealPath,
) -> Result<Option<Place>> {
    let place = match confined.place(path) {
        Ok(place) => place,
        Err(error) if is_not_there(&error) => return Ok(None),
        Err(error) => return Err(error).with_context(|| format!("opening the folder of {path}")),
    };
    let there = place
        .lstat()
        .with_context(|| format!("looking at {path}"))?
        .is_some();
    Ok(there.then_some(place))
}

/// Whether two names are the same file.
pub(super) fn same_inode(a: &Place, b: &Place) -> Result<bool> {
    let (a, b) = (a.lstat()?, b.lstat()?);
    Ok(matches!((a, b), (Some(a), Some(b)) if (a.st_dev, a.st_ino) == (b.st_dev, b.st_ino)))
}

/// Finishes what an interruption left: discards what was not committed, completes what was,
/// continues an undo. Does not write when there is nothing to recover.
pub fn recover(guest: &WritableGuest, ui: &dyn Ui) -> Result<Recovered> {
    let confined = guest.confined();
    let store = Store::of(guest)?;
    let mut recovered = Recovered::default();
    for id in store.ids()? {
        refuse_part_of_set(&store, &id)?;
        let journal = match store.journal(&id) {
            Ok(Some(journal)) => journal,
            Ok(None) => {
                store
                    .discard(&id)
                    .with_context(|| format!("removing the run {id}, which was never committed"))?;
                recovered.discarded.push(id);
                continue;
            }
            Err(error) => return Err(unreadable(&store, &id, &error).into()),
        };
        if store.has_record(&id, UNDONE)? {
            undo::tidy(&store, &id)?;
        } else if store.has_record(&id, UNDO)? {
            kept::refuse_missing_back(confined, &store, &journal)?;
            let undone = undo::put_back(confined, &store, &journal, Drift::IsLeftAlone, ui);
            let undone = undone.with_context(|| format!("continuing the undo of run {id}"))?;
            recovered.left_alone.extend(undone.kept);
            recovered.undone.push(id);
        } else if store.has_record(&id, DONE)? {
            store.remove_staged(&id)?;
        } else {
            kept::refuse_missing_forward(confined, &store, &journal)?;
            let mut applied = 0;
            let left = roll_forward(
                confined,
                &store,
                &journal,
                Drift::IsLeftAlone,
                &mut applied,
                ui,
            )
            .map_err(|cause| part_way(&journal, applied, cause))?;
            recovered.left_alone.extend(left);
            recovered.completed.push(id);
        }
    }
    Ok(recovered)
}

/// Half a set is neither completed nor taken back on its own: only all of its guests together tell
/// how far it came.
fn refuse_part_of_set(store: &Store<'_>, id: &str) -> Result<()> {
    let set = match store.set(id) {
        Ok(Some(set)) => set,
        Ok(None) => return Ok(()),
        Err(error) => return Err(unreadable(store, id, &error).into()),
    };
    if store.reached(id)?.is_finished() {
        return Ok(());
    }
    Err(set::others_needed(id, &set).into())
}

/// A record that this program cannot read.
pub(super) fn unreadable(store: &Store<'_>, id: &str, error: &anyhow::Error) -> Refusal {
    // It says what stands in the way, and what to type.
    if let Some(refusal) = error.downcast_ref::<Refusal>() {
        return refusal.clone();
    }
    Refusal::new(
        format!("the record of the earlier run {id} on this guest cannot be read ({error:#})"),
        "what it was doing is not known, so nothing is done on top of it",
        format!(
            "use the version that wrote it, or move {} in the guest out of the way",
            store.run(id)
        ),
    )
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    use std::path::Path;

    use super::*;
    use crate::base::ui::Silent;
    use crate::change::{Change, FreeAction, Freeing};
    use crate::disk::Backing;
    use crate::guest::{FileSystem, GuestPath};
    use crate::repair::{RunState, runs};
    use crate::tree::Usage;

    fn open(root: &Path) -> WritableGuest {
        let file_system = FileSystem {
            mount_point: GuestPath::new("/"),
            kind: "folder".to_owned(),
            device: root.display().to_string(),
            uuid: None,
            usage: Usage::default(),
            backing: Backing::Folder(root.to_path_buf()),
            subvolume: None,
            has_errors: false,
        };
        WritableGuest::open("test", &[file_system]).unwrap()
    }

    fn guest_folder() -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("var/lib")).unwrap();
        fs::create_dir_all(root.path().join("etc")).unwrap();
        fs::write(root.path().join("etc/old"), "old").unwrap();
        fs::set_permissions(
            root.path().join("etc/old"),
            fs::Permissions::from_mode(0o640),
        )
        .unwrap();
        fs::write(root.path().join("etc/gone"), "gone").unwrap();
        std::os::unix::fs::symlink("old", root.path().join("etc/link")).unwrap();
        root
    }

    fn info(id: &str) -> RunInfo {
        RunInfo {
            id: id.to_owned(),
            ..RunInfo::new(OffsetDateTime::UNIX_EPOCH, vec!["a test".to_owned()])
        }
    }

    fn changes(guest: &WritableGuest) -> Vec<Change> {
        let guest = guest.guest();
        let mut changes = vec![
            Change::write(guest, &"/etc/old".into(), "new", 0o600).unwrap(),
            Change::symlink(guest, &"/etc/link".into(), "elsewhere").unwrap(),
            Change::remove(guest, &"/etc/gone".into()).unwrap(),
        ];
        changes.extend(Change::make_dirs(guest, &"/etc/a/b".into(), 0o711).unwrap());
        changes.push(Change::write(guest, &"/etc/fresh".into(), "fresh", 0o644).unwrap());
        changes
    }

    #[test]
    fn applies_and_undoes() {
        let root = guest_folder();
        let at = |path: &str| root.path().join(path);
        let before = fs::metadata(at("etc/old")).unwrap();
        let guest = open(root.path());
        let changes = changes(&guest);
        let applied = apply(
            &guest,
            Prepared {
                free: vec![],
                changes,
            },
            &info("one"),
            &Silent,
        )
        .unwrap();
        assert_eq!(applied.changes, 6);
        assert_eq!(fs::read_to_string(at("etc/old")).unwrap(), "new");
        assert_eq!(fs::metadata(at("etc/old")).unwrap().mode() & 0o7777, 0o640);
        assert_eq!(
            fs::read_link(at("etc/link")).unwrap(),
            Path::new("elsewhere")
        );
        assert_eq!(fs::metadata(at("etc/a/b")).unwrap().mode() & 0o7777, 0o711);
        assert!(!at("etc/gone").exists() && at("etc/fresh").exists());
        assert!(
            !at("var/lib/rescue/runs/one/staged").exists(),
            "no copy of a key may stay"
        );
        assert_eq!(runs::list(guest.guest()).unwrap()[0].state, RunState::Done);

        let undone = undo(&guest, None, &Silent).unwrap();
        assert_eq!(undone.restored.len(), 3, "{undone:?}");
        let after = fs::metadata(at("etc/old")).unwrap();
        assert_eq!(
            (before.ino(), before.mtime_nsec()),
            (after.ino(), after.mtime_nsec())
        );
        assert_eq!(fs::read_to_string(at("etc/gone")).unwrap(), "gone");
        assert!(!at("etc/a").exists() && !at("etc/fresh").exists());
        assert_eq!(
            runs::list(guest.guest()).unwrap()[0].state,
            RunState::Undone
        );
        assert!(undo(&guest, None, &Silent).unwrap_err().is::<Refusal>());
    }

    #[test]
    fn refuses_what_changed_since_the_plan() {
        let root = guest_folder();
        let guest = open(root.path());
        let changes = changes(&guest);
        fs::write(root.path().join("etc/old"), "someone else").unwrap();
        let error = apply(
            &guest,
            Prepared {
                free: vec![],
                changes,
            },
            &info("one"),
            &Silent,
        )
        .unwrap_err();
        assert!(error.is::<Refusal>(), "{error:?}");
        assert!(!root.path().join("var/lib/rescue").exists());
    }

    #[test]
    fn undo_names_the_files_that_drifted() {
        let root = guest_folder();
        let guest = open(root.path());
        let changes = changes(&guest);
        apply(
            &guest,
            Prepared {
                free: vec![],
                changes,
            },
            &info("one"),
            &Silent,
        )
        .unwrap();
        fs::write(root.path().join("etc/fresh"), "the node wrote this").unwrap();
        let error = undo(&guest, None, &Silent).unwrap_err();
        assert!(
            error.is::<Refusal>() && error.to_string().contains("/etc/fresh"),
            "{error}"
        );
        assert_eq!(
            fs::read_to_string(root.path().join("etc/old")).unwrap(),
            "new",
            "nothing is undone by halves"
        );
    }

    #[test]
    fn undo_of_an_earlier_run_names_the_order() {
        let root = guest_folder();
        let guest = open(root.path());
        for id in ["first", "second"] {
            let change = Change::write(guest.guest(), &"/etc/old".into(), id, 0o600).unwrap();
            apply(
                &guest,
                Prepared {
                    free: vec![],
                    changes: vec![change],
                },
                &info(id),
                &Silent,
            )
            .unwrap();
        }
        let error = undo(&guest, Some("first"), &Silent).unwrap_err();
        assert!(error.to_string().contains("second, then first"), "{error}");
        undo(&guest, None, &Silent).unwrap();
        assert_eq!(
            fs::read_to_string(root.path().join("etc/old")).unwrap(),
            "first"
        );
        undo(&guest, Some("first"), &Silent).unwrap();
        assert_eq!(
            fs::read_to_string(root.path().join("etc/old")).unwrap(),
            "old"
        );
    }

    #[test]
    fn the_second_last_run_is_undone_alone_where_the_last_left_its_files() {
        let root = guest_folder();
        let guest = open(root.path());
        for (id, path) in [("first", "/etc/old"), ("second", "/etc/gone")] {
            let change = Change::write(guest.guest(), &path.into(), "changed", 0o600).unwrap();
            apply(
                &guest,
                Prepared {
                    free: vec![],
                    changes: vec![change],
                },
                &info(id),
                &Silent,
            )
            .unwrap();
        }
        undo(&guest, Some("first"), &Silent).unwrap();
        assert_eq!(
            fs::read_to_string(root.path().join("etc/old")).unwrap(),
            "old"
        );
        assert_eq!(
            fs::read_to_string(root.path().join("etc/gone")).unwrap(),
            "changed"
        );
        undo(&guest, None, &Silent).unwrap();
        assert_eq!(
            fs::read_to_string(root.path().join("etc/gone")).unwrap(),
            "gone"
        );
    }

    #[test]
    fn several_changes_to_one_file_are_one() {
        let root = guest_folder();
        let guest = open(root.path());
        let first = Change::write(guest.guest(), &"/etc/old".into(), "first", 0o600).unwrap();
        let Change::Write { path, .. } = &first else {
            unreachable!()
        };
        let second = Change::Write {
            path: path.clone(),
            content: crate::change::Content::new("second"),
            attributes: crate::change::Attributes::Keep,
            expect: crate::change::Expect::File {
                sha256: crate::base::hash::sha256_hex(b"first"),
            },
        };
        let contradicting = vec![first.clone(), first.clone()];
        let error = apply(
            &guest,
            Prepared {
                free: vec![],
                changes: contradicting,
            },
            &info("bad"),
            &Silent,
        )
        .unwrap_err();
        assert!(error.to_string().contains("contradicts"), "{error}");
        let applied = apply(
            &guest,
            Prepared {
                free: vec![],
                changes: vec![first, second],
            },
            &info("one"),
            &Silent,
        )
        .unwrap();
        assert_eq!(applied.changes, 1);
        assert_eq!(
            fs::read_to_string(root.path().join("etc/old")).unwrap(),
            "second"
        );
        undo(&guest, None, &Silent).unwrap();
        assert_eq!(
            fs::read_to_string(root.path().join("etc/old")).unwrap(),
            "old"
        );
    }

    /// What a guest may put where something of ours belongs.
    const STRANGE: [&str; 5] = [
        "a FIFO",
        "a socket",
        "a file",
        "a folder",
        "a symbolic link",
    ];

    fn make_strange(what: &str, at: &Path) {
        use rustix::fs::{CWD, FileType, Mode, mknodat};
        match what {
            "a FIFO" => mknodat(CWD, at, FileType::Fifo, Mode::RUSR, 0).unwrap(),
            "a socket" => mknodat(CWD, at, FileType::Socket, Mode::RUSR, 0).unwrap(),
            "a file" => fs::write(at, "not ours").unwrap(),
            "a folder" => fs::create_dir(at).unwrap(),
            _ => std::os::unix::fs::symlink("/dev/zero", at).unwrap(),
        }
    }

    fn repair(root: &Path, id: &str) -> Result<Applied> {
        let guest = open(root);
        let change = Change::write(guest.guest(), &"/etc/fresh".into(), "fresh", 0o600)?;
        let _ = runs::list(guest.guest());
        apply(
            &guest,
            Prepared {
                free: vec![],
                changes: vec![change],
            },
            &info(id),
            &Silent,
        )
    }

    #[test]
    fn what_is_no_folder_is_no_run() {
        for what in STRANGE {
            let root = guest_folder();
            let lock = root.path().join("var/lib/rescue/runs/lock");
            fs::create_dir_all(lock.parent().unwrap()).unwrap();
            make_strange(what, &lock);
            let listed = runs::list(open(root.path()).guest()).unwrap();
            match (what, repair(root.path(), "one")) {
                ("a symbolic link", Err(error)) => {
                    let refusal = error.downcast_ref::<Refusal>().unwrap();
                    assert!(
                        refusal
                            .saw
                            .contains("runs/lock in the guest is a symbolic link"),
                        "{refusal}"
                    );
                    assert!(
                        refusal
                            .next
                            .contains("mv /mnt/var/lib/rescue/runs/lock /mnt/root/"),
                        "{refusal}"
                    );
                    assert!(matches!(listed[0].state, RunState::Unreadable(_)));
                }
                // It looks like a run that was never committed.
                ("a folder", Ok(_)) => {
                    assert!(!lock.exists() && listed[0].state == RunState::NotCommitted)
                }
                (_, Ok(_)) => assert!(
                    lock.symlink_metadata().is_ok() && listed.is_empty(),
                    "{what}"
                ),
                (_, Err(error)) => panic!("{what}: {error:#}"),
            }
        }
    }

    #[test]
    fn strange_things_at_the_places_of_rescue_are_refused_by_name() {
        for place in ["var/lib", "var/lib/rescue", "var/lib/rescue/runs"] {
            for what in STRANGE.into_iter().filter(|what| *what != "a folder") {
                let root = guest_folder();
                let at = root.path().join(place);
                fs::create_dir_all(root.path().join("var/lib/rescue/runs")).unwrap();
                fs::remove_dir_all(&at).unwrap();
                make_strange(what, &at);
                let error = repair(root.path(), "one").unwrap_err();
                let refusal = error
                    .downcast_ref::<Refusal>()
                    .unwrap_or_else(|| panic!("{place}, {what}: {error:#}"));
                let named = refusal.saw.contains(place) && refusal.saw.contains(what)
                    || refusal.saw.contains("no /var/lib");
                assert!(named, "{place}, {what}: {refusal}");
                assert!(!root.path().join("etc/fresh").exists());
            }
        }
    }

    #[test]
    fn strange_things_in_a_run_are_refused_or_removed() {
        for name in [
            JOURNAL,
            super::super::store::SET,
            DONE,
            UNDO,
            UNDONE,
            "staged",
            "backup",
        ] {
            for what in STRANGE {
                let root = guest_folder();
                let guest = open(root.path());
                let change =
                    Change::write(guest.guest(), &"/etc/old".into(), "new", 0o600).unwrap();
                apply(
                    &guest,
                    Prepared {
                        free: vec![],
                        changes: vec![change],
                    },
                    &info("one"),
                    &Silent,
                )
                .unwrap();
                drop(guest);
                let at = root.path().join("var/lib/rescue/runs/one").join(name);
                let _ = fs::remove_dir_all(&at);
                let _ = fs::remove_file(&at);
                make_strange(what, &at);
                for done in [
                    repair(root.path(), "two").map(drop),
                    undo(&open(root.path()), Some("one"), &Silent).map(drop),
                ] {
                    let Err(error) = done else { continue };
                    let refusal = error
                        .downcast_ref::<Refusal>()
                        .unwrap_or_else(|| panic!("{name}, {what}: {error:#}"));
                    // An empty record is as good as a full one that says that an undo has begun, or
                    // is complete.
                    let named = [
                        format!("runs/one/{name}"),
                        "/etc/old".into(),
                        "run one is undone already".into(),
                    ];
                    assert!(
                        named.iter().any(|path| refusal.saw.contains(path)),
                        "{name}, {what}: {refusal}"
                    );
                }
            }
        }
    }

    #[test]
    fn frees_and_keeps_tails() {
        let root = guest_folder();
        let at = |path: &str| root.path().join(path);
        let lines: String = (0..10_000).map(|n| format!("line {n}\n")).collect();
        fs::write(at("var/big.log"), &lines).unwrap();
        fs::write(at("var/old.log.1"), &lines).unwrap();
        fs::write(at("var/grew.log.1"), &lines).unwrap();
        fs::create_dir(at("var/folder")).unwrap();
        let guest = open(root.path());
        let action = |path: &str, freeing, size| FreeAction {
            path: guest.guest().resolve(&GuestPath::new(path)).unwrap(),
            freeing,
            size,
            mtime: fs::metadata(at(&path[1..])).unwrap().mtime(),
            frees: size,
        };
        let size = lines.len() as u64;
        let before = fs::metadata(at("var/big.log")).unwrap();
        let free = vec![
            action("/var/old.log.1", Freeing::Delete, size),
            action("/var/grew.log.1", Freeing::Delete, size - 1),
            action("/var/big.log", Freeing::KeepTail(1000), size),
            action("/var/folder", Freeing::Delete, 4096),
        ];
        let applied = apply(
            &guest,
            Prepared {
                free: free.clone(),
                changes: vec![],
            },
            &info("one"),
            &Silent,
        )
        .unwrap();
        assert_eq!(
            (applied.freed.len(), applied.left_alone.len()),
            (2, 2),
            "{applied:?}"
        );
        assert!(
            !at("var/old.log.1").exists()
                && at("var/grew.log.1").exists()
                && at("var/folder").exists()
        );
        let after = fs::metadata(at("var/big.log")).unwrap();
        assert_eq!(
            (before.ino(), before.mtime(), before.mtime_nsec()),
            (after.ino(), after.mtime(), after.mtime_nsec())
        );
        let tail = fs::read_to_string(at("var/big.log")).unwrap();
        assert!(
            tail.len() <= 1000
                && tail.len() > 980
                && tail.starts_with("line ")
                && lines.ends_with(&tail),
            "{tail}"
        );

        let again = apply(
            &guest,
            Prepared {
                free,
                changes: vec![],
            },
            &info("two"),
            &Silent,
        )
        .unwrap();
        assert_eq!(again.freed, vec![], "freeing again is nothing");
    }
}
