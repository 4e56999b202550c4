//! Several guests changed as one: the members of one etcd cluster.
//!
//! Never may two of the disks hold members that together are a majority of two different clusters,
//! and never may a disk be without its member (etcd would start an empty one), wherever the process
//! is killed and whichever of the machines is booted then. So:
//!
//! 1. Every guest is enlisted: `set.json` in its run's folder names all guests.
//! 2. Every guest stages all of its changes; each new folder is read back.
//! 3. Every guest commits. From here on the whole is completed, before it is discarded.
//! 4. Every guest puts its fences in place: all steps before the barrier.
//! 5. Every guest makes the rest: a new member takes a fence's place.
//!
//! Each phase ends on all guests, synchronised, before the next begins on any. So one guest that
//! has made a step proves that all have committed, and one that is past its barrier proves that all
//! are fenced. An undo goes the same way back: fences everywhere, then what was there before.
//!
//! Half a set says nothing about the other half: with some of the guests missing nothing is done at
//! all, and they are named.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, Result, ensure};

use super::confined::Confined;
use super::exchange;
use super::journal::{Enlisted, FORMAT, Journal, SetGuest, SetRecord, is_run_id};
use super::kept;
use super::stage::{self, Goal, Stage};
use super::store::{JOURNAL, Reached, SET, Store};
use super::transaction::{self, Applied, Drift, RunInfo, TransactionError, unreadable};
use super::undo::{self, UndoError, Undone};
use super::write_mount::WritableGuest;
use super::{prune, transaction::Recovered};
use crate::base::fault;
use crate::base::refusal::Refusal;
use crate::base::ui::Ui;
use crate::change::Change;
use crate::change::folder::Sources;
use crate::guest::{Guest, GuestPath};

/// What is changed on one guest of a set.
#[derive(Debug)]
pub struct Part<'a> {
    /// The guest.
    pub guest: &'a WritableGuest,
    /// How people call it.
    pub name: String,
    /// What becomes of it. A fence comes before every folder that is replaced, by itself.
    pub changes: Vec<Change>,
}

/// By what a guest is known again: machines made from one template share some of it, copies of one
/// disk all of it.
fn identity(guest: &Guest) -> String {
    let text = |path: &str| {
        guest
            .read_text(&GuestPath::new(path))
            .unwrap_or_default()
            .trim()
            .to_owned()
    };
    let (root, machine, host) = (
        guest.file_systems.first(),
        text("/etc/machine-id"),
        text("/etc/hostname"),
    );
    let uuid = root.and_then(|root| root.uuid.clone());
    // Where it is mounted says nothing, unless it is all there is.
    let place = || {
        if machine.is_empty() {
            root.map(|root| root.device.clone())
        } else {
            None
        }
    };
    format!(
        "{} {machine} {host}",
        uuid.or_else(place).unwrap_or_default()
    )
}

/// Why a guest is not touched alone.
pub(super) fn others_needed(id: &str, set: &SetRecord) -> Refusal {
    let names = set.names();
    let others: Vec<&str> = names
        .iter()
        .enumerate()
        .filter(|(n, _)| *n != set.me)
        .map(|(_, name)| name.as_str())
        .collect();
    missing(id, &names, &others)
}

fn missing(id: &str, names: &[String], others: &[&str]) -> Refusal {
    Refusal::new(
        format!(
            "run {id} changes {} as one; not given: {}",
            names.join(", "),
            others.join(", ")
        ),
        "how far it came is known only from all of their disks, and half of it could leave two \
         clusters where one was",
        format!(
            "give the disks of {} too, in one command; one that is lost for good, and will never \
             boot again, is named with --declare-dead NAME",
            others.join(" and ")
        ),
    )
}

/// One guest, its store, and what it does.
struct Place<'a> {
    guest: &'a Guest,
    confined: &'a Confined,
    store: Store<'a>,
    name: String,
}

impl<'a> Place<'a> {
    fn new(guest: &'a WritableGuest, name: &str) -> Result<Self> {
        let (name, confined) = (name.to_owned(), guest.confined());
        Ok(Self {
            guest: guest.guest(),
            confined,
            store: Store::of(guest)?,
            name,
        })
    }
}

/// A guest on the way to its commit record.
struct Planned<'a> {
    place: Place<'a>,
    goals: Vec<Goal>,
    barrier: usize,
    /// Bytes that are kept outside the guest.
    elsewhere: u64,
}

/// Changes several guests as one. Earlier sets of the same guests that were cut off are finished
/// first. `sources` are further guests that the new folders are made from and that are only read.
/// What was done to each guest, in the order of `parts`.
///
/// # Errors
/// [`Refusal`] (by downcast) when nothing was changed; [`TransactionError`] when something was, or
/// is on record.
pub fn apply(
    parts: Vec<Part<'_>>,
    sources: &[&Guest],
    info: &RunInfo,
    ui: &dyn Ui,
) -> Result<Vec<Applied>> {
    let guests: Vec<&WritableGuest> = parts.iter().map(|part| part.guest).collect();
    recover(&guests, ui)?;
    ensure!(is_run_id(&info.id), "{:?} cannot name a run", info.id);
    let several = parts.len() > 1;
    let mut planned = Vec::new();
    for Part {
        guest,
        name,
        changes,
    } in parts
    {
        let of = name.clone();
        let plan = plan_part(guest, &name, changes, several, info);
        planned.push(
            plan.with_context(|| format!("nothing was changed on any disk, because of {of}"))?,
        );
    }
    if let Some(first) = planned.first() {
        kept::refuse_without_room(
            &first.place.store,
            planned.iter().map(|part| part.elsewhere).sum(),
        )?;
    }
    fault::point("phase: checked");
    let journals = match commit(&planned, sources, info, ui) {
        Ok(journals) => journals,
        Err(cause) => return Err(take_back(&planned, info, cause)),
    };
    fault::point("phase: all committed");
    let all: Vec<(&Place<'_>, &Journal)> = planned
        .iter()
        .map(|part| &part.place)
        .zip(&journals)
        .collect();
    go_forward(&all, Drift::Now, ui)?;
    let applied = |(place, journal): &(&Place<'_>, &Journal)| Applied {
        run: Some(info.id.clone()),
        changes: journal.steps.len(),
        pruned: prune::keep_bounded(place.confined, &place.store),
        elsewhere: journal.elsewhere(),
        ..Applied::default()
    };
    Ok(all.iter().map(applied).collect())
}

/// Everything that can be refused before a disk is touched.
fn plan_part<'a>(
    guest: &'a WritableGuest,
    name: &str,
    changes: Vec<Change>,
    several: bool,
    info: &RunInfo,
) -> Result<Planned<'a>> {
    let place = Place::new(guest, name)?;
    ensure!(
        !place.store.ids()?.contains(&info.id),
        "there is a run named {} already",
        info.id
    );
    let changes = if several {
        fences_first(changes)
    } else {
        changes
    };
    let barrier = changes
        .iter()
        .filter(|change| several && matches!(change, Change::Fence { .. }))
        .count();
    let mut goals = stage::goals(changes, &info.id)?;
    stage::preflight(place.confined, &mut goals)?;
    let elsewhere = kept::make_room(place.confined, &place.store, &mut goals, &info.id)?;
    Ok(Planned {
        place,
        goals,
        barrier,
        elsewhere,
    })
}

/// The fences, those before a folder that is replaced among them, then all else.
fn fences_first(changes: Vec<Change>) -> Vec<Change> {
    let why =
        "the members of this cluster are being replaced together, and this one has not been yet";
    let mut fences = Vec::new();
    let mut rest = Vec::new();
    for change in changes {
        if let Change::ReplaceFolder { path, expect, .. } = &change {
            let (path, expect) = (path.clone(), expect.clone());
            fences.push(Change::Fence {
                path,
                why: why.to_owned(),
                expect,
            });
        }
        let side = if matches!(change, Change::Fence { .. }) {
            &mut fences
        } else {
            &mut rest
        };
        side.push(change);
    }
    fences.append(&mut rest);
    fences
}

/// Enlists, stages, commits: each on all guests before the next.
fn commit(
    planned: &[Planned<'_>],
    sources: &[&Guest],
    info: &RunInfo,
    ui: &dyn Ui,
) -> Result<Vec<Journal>> {
    let guests = planned.iter().map(|part| {
        let Place { name, guest, .. } = &part.place;
        SetGuest {
            name: name.clone(),
            identity: identity(guest),
        }
    });
    let guests: Vec<SetGuest> = guests.collect();
    let set = |me: usize, barrier: usize| {
        (planned.len() > 1).then(|| SetRecord {
            me,
            guests: guests.clone(),
            barrier,
        })
    };
    let of = |part: &Planned<'_>| format!("on {}", part.place.name);
    for (me, part) in planned.iter().enumerate() {
        enlist(&part.place.store, info, set(me, part.barrier)).with_context(|| of(part))?;
    }
    fault::point("phase: enlisted");
    let all = Sources::new(
        planned
            .iter()
            .map(|part| part.place.guest)
            .chain(sources.iter().copied()),
    );
    let mut journals = Vec::new();
    for (me, part) in planned.iter().enumerate() {
        let Place {
            guest,
            confined,
            store,
            ..
        } = &part.place;
        let steps = stage::stage(
            &Stage {
                guest,
                sources: &all,
                confined,
                store,
                ui,
            },
            &part.goals,
            &info.id,
        );
        let steps = steps.with_context(|| of(part))?;
        let record = transaction::record(store, info, steps).with_context(|| of(part))?;
        journals.push(Journal {
            set: set(me, part.barrier),
            ..record
        });
    }
    fault::point("phase: staged");
    for (part, journal) in planned.iter().zip(&journals) {
        part.place
            .store
            .write_record(&info.id, JOURNAL, journal)
            .with_context(|| of(part))?;
        fault::point("phase: committed");
    }
    Ok(journals)
}

fn enlist(store: &Store<'_>, info: &RunInfo, set: Option<SetRecord>) -> Result<()> {
    store.create()?;
    store.make_folder(&store.run(&info.id))?;
    match set {
        Some(set) => store.write_record(
            &info.id,
            SET,
            &Enlisted {
                format: FORMAT.to_owned(),
                set,
            },
        ),
        None => Ok(()),
    }
}

/// Nobody has gone on to the fences: takes everything back. No commit record may outlive what says
/// that the others were enlisted.
fn take_back(planned: &[Planned<'_>], info: &RunInfo, cause: anyhow::Error) -> anyhow::Error {
    let places: Vec<&Place<'_>> = planned.iter().map(|part| &part.place).collect();
    let kept = || {
        places
            .iter()
            .try_for_each(|place| kept::take_back(&place.store, &info.id))
    };
    let Err(left) = discard(&places, &info.id).and_then(|()| kept()) else {
        if cause.is::<Refusal>() {
            return cause.context("nothing was changed on any disk");
        }
        let saw = format!("the changes could not be prepared ({cause:#})");
        let next = "mend the cause, then run the same repair again";
        return Refusal::new(saw, "nothing was changed on any disk", next).into();
    };
    let cause = cause.context(format!(
        "what was prepared could not be taken back ({left:#})"
    ));
    let total = planned.iter().map(|part| part.goals.len()).sum();
    stopped(
        &info.id,
        places.iter().map(|place| place.name.as_str()),
        (0, total),
        cause,
    )
    .into()
}

/// Takes a run back that nobody has gone on with, on all guests.
fn discard(places: &[&Place<'_>], id: &str) -> Result<()> {
    let of = |place: &Place<'_>| format!("removing run {id} from {}", place.name);
    for place in places {
        if place.confined.lstat(&place.store.run(id))?.is_some() {
            place
                .store
                .remove_record(id, JOURNAL)
                .with_context(|| of(place))?;
        }
    }
    fault::point("phase: no longer committed");
    for place in places {
        place.store.take_back(id).with_context(|| of(place))?;
    }
    Ok(())
}

fn stopped<'a>(
    id: &str,
    names: impl Iterator<Item = &'a str>,
    (applied, total): (usize, usize),
    cause: anyhow::Error,
) -> TransactionError {
    let names: Vec<&str> = names.collect();
    let next = format!(
        "mend the cause and run the same repair again with the disks of {}, which completes it; or \
         `rescue undo --run {id}` with the same disks, which puts everything back. Boot none of \
         them before",
        names.join(", ")
    );
    TransactionError {
        run: id.to_owned(),
        applied,
        total,
        committed: true,
        freed: Vec::new(),
        cause,
        next,
    }
}

/// All steps before the barrier everywhere, then all others everywhere.
fn go_forward(all: &[(&Place<'_>, &Journal)], drift: Drift, ui: &dyn Ui) -> Result<()> {
    let mut applied = 0;
    let total = all.iter().map(|(_, journal)| journal.steps.len()).sum();
    let Some((_, first)) = all.first() else {
        return Ok(());
    };
    go(all, drift, ui, &mut applied).map_err(|cause| {
        let names = all.iter().map(|(place, _)| place.name.as_str());
        stopped(&first.id, names, (applied, total), cause).into()
    })
}

fn go(
    all: &[(&Place<'_>, &Journal)],
    drift: Drift,
    ui: &dyn Ui,
    applied: &mut usize,
) -> Result<()> {
    let of = |place: &Place<'_>| format!("on {}", place.name);
    for (place, journal) in all {
        let first = 0..barrier(journal);
        let Place {
            confined, store, ..
        } = place;
        transaction::make_steps(confined, store, journal, first, drift, applied, ui)
            .with_context(|| of(place))?;
        fault::point("phase: fenced");
    }
    fault::point("phase: all fenced");
    for (place, journal) in all {
        let rest = barrier(journal)..journal.steps.len();
        let Place {
            confined, store, ..
        } = place;
        // A guest that is done has nothing staged any more, and may have been used since.
        if store.reached(&journal.id)? == Reached::Done {
            *applied += rest.len();
            continue;
        }
        transaction::make_steps(confined, store, journal, rest, drift, applied, ui)
            .with_context(|| of(place))?;
        transaction::finish(confined, store, journal, Vec::new()).with_context(|| of(place))?;
    }
    Ok(())
}

fn barrier(journal: &Journal) -> usize {
    journal.set.as_ref().map_or(0, |set| set.barrier)
}

/// The guests of one run, as far as they are here.
struct Gathered<'a> {
    id: String,
    /// By their number in the set.
    members: BTreeMap<usize, (Place<'a>, Reached)>,
    set: SetRecord,
}

impl Gathered<'_> {
    /// Those that are not here; and whether any is here that never came as far as to record the
    /// set.
    fn missing(&self, identities: &BTreeSet<String>) -> (Vec<String>, bool) {
        let names = self.set.names();
        let absent = (0..names.len()).filter(|n| !self.members.contains_key(n));
        let (unrecorded, missing): (Vec<usize>, Vec<usize>) = absent.partition(|n| {
            self.set
                .guests
                .get(*n)
                .is_some_and(|guest| identities.contains(&guest.identity))
        });
        let missing = missing
            .into_iter()
            .filter_map(|n| names.get(n).cloned())
            .collect();
        (missing, !unrecorded.is_empty())
    }

    fn refuse_missing(&self, absent: &[String], dead: &[String]) -> Result<()> {
        let names: Vec<&str> = absent
            .iter()
            .filter(|name| !dead.contains(name))
            .map(String::as_str)
            .collect();
        match names.is_empty() {
            true => Ok(()),
            false => Err(missing(&self.id, &self.set.names(), &names).into()),
        }
    }

    fn journals(&self) -> Result<Vec<(&Place<'_>, Journal)>> {
        let mut journals = Vec::new();
        for (place, _) in self.members.values() {
            let journal = place
                .store
                .journal(&self.id)
                .map_err(|error| unreadable(&place.store, &self.id, &error))?;
            journals.push((
                place,
                journal.with_context(|| format!("{} has no commit record", place.name))?,
            ));
        }
        Ok(journals)
    }

    /// Whether any guest has made a step, which proves that all had committed.
    fn has_begun(&self) -> Result<bool> {
        for (place, reached) in self.members.values() {
            if *reached == Reached::Begun {
                continue;
            }
            if *reached != Reached::Committed {
                return Ok(true);
            }
            let Some(journal) = place.store.journal(&self.id)? else {
                continue;
            };
            for (n, step) in journal.steps.iter().enumerate().take(barrier(&journal)) {
                if exchange::is_made(place.confined, &place.store, &self.id, n, step)? {
                    return Ok(true);
                }
            }
        }
        Ok(false)
    }
}

/// All sets that any of the guests is part of.
fn gather<'a>(guests: &[&'a WritableGuest]) -> Result<Vec<Gathered<'a>>> {
    let mut sets: BTreeMap<String, Gathered<'a>> = BTreeMap::new();
    for guest in guests {
        let look = Place::new(guest, "")?;
        for id in look.store.ids()? {
            let set = look
                .store
                .set(&id)
                .map_err(|error| unreadable(&look.store, &id, &error))?;
            let Some(set) = set else { continue };
            let reached = look.store.reached(&id)?;
            let name = set.names().get(set.me).cloned().unwrap_or_default();
            let place = Place::new(guest, &name)?;
            let me = set.me;
            let gathered = sets.entry(id.clone()).or_insert_with(|| Gathered {
                id,
                members: BTreeMap::new(),
                set: set.clone(),
            });
            ensure!(
                gathered.set.guests == set.guests
                    && gathered.members.insert(me, (place, reached)).is_none(),
                Refusal::new(
                    format!(
                        "two of the disks say that they are {name} in run {}",
                        gathered.id
                    ),
                    "one of them is a copy of the other, and which is to be repaired cannot be \
                     guessed",
                    "give only one of the two",
                )
            );
        }
    }
    Ok(sets.into_values().collect())
}

/// Finishes every set of these guests that was cut off, then whatever else was cut off on each of
/// them.
///
/// # Errors
/// [`Refusal`] (by downcast) where guests of such a set are missing; [`TransactionError`] and
/// [`UndoError`] where it could not be finished.
pub fn recover(guests: &[&WritableGuest], ui: &dyn Ui) -> Result<Recovered> {
    recover_without(guests, &[], ui)
}

/// The same without the guests of these names, which are lost and will never boot again: what they
/// would have done does not count.
///
/// # Errors
/// As of [`recover`].
pub fn recover_without(
    guests: &[&WritableGuest],
    dead: &[String],
    ui: &dyn Ui,
) -> Result<Recovered> {
    let identities: BTreeSet<String> = guests.iter().map(|guest| identity(guest.guest())).collect();
    let mut recovered = Recovered::default();
    for gathered in gather(guests)? {
        if gathered
            .members
            .values()
            .all(|(_, reached)| reached.is_finished())
        {
            let undone = |wanted: Reached| {
                gathered
                    .members
                    .values()
                    .filter(|(_, reached)| *reached == wanted)
                    .count()
            };
            // Some done and some undone: an undo that had not begun everywhere.
            if undone(Reached::Done) == 0 || undone(Reached::Undone) == 0 {
                continue;
            }
        }
        let (absent, any_unrecorded) = gathered.missing(&identities);
        gathered.refuse_missing(&absent, dead)?;
        // Whether a lost one had committed cannot be known.
        recover_one(
            &gathered,
            any_unrecorded || !absent.is_empty(),
            &mut recovered,
            ui,
        )?;
    }
    for guest in guests {
        let own = transaction::recover(guest, ui)?;
        recovered.completed.extend(own.completed);
        recovered.discarded.extend(own.discarded);
        recovered.undone.extend(own.undone);
        recovered.left_alone.extend(own.left_alone);
    }
    Ok(recovered)
}

fn recover_one(
    set: &Gathered<'_>,
    any_unrecorded: bool,
    recovered: &mut Recovered,
    ui: &dyn Ui,
) -> Result<()> {
    let id = set.id.clone();
    let reached = |wanted: Reached| set.members.values().any(|(_, reached)| *reached == wanted);
    if reached(Reached::Undoing) || reached(Reached::Undone) {
        put_all_back(set, ui)?;
        recovered.undone.push(id);
        return Ok(());
    }
    let all_committed = !any_unrecorded && !reached(Reached::Begun);
    if all_committed || set.has_begun()? {
        let journals = set.journals()?;
        let all: Vec<(&Place<'_>, &Journal)> = journals
            .iter()
            .map(|(place, journal)| (*place, journal))
            .collect();
        for (place, journal) in &all {
            kept::refuse_missing_forward(place.confined, &place.store, journal).with_context(
                || {
                    format!(
                        "nothing more is done on any disk, because of {}",
                        place.name
                    )
                },
            )?;
        }
        go_forward(&all, Drift::Fails, ui)?;
        recovered.completed.push(id);
    } else {
        let places: Vec<&Place<'_>> = set.members.values().map(|(place, _)| place).collect();
        discard(&places, &id)?;
        recovered.discarded.push(id);
    }
    Ok(())
}

/// Undoes a run of several guests on all of them: the one named, or the newest of each, which must
/// be the same. What was done on each, by its name.
///
/// # Errors
/// [`Refusal`] (by downcast) when nothing was changed: no such run, guests missing, files changed
/// since. [`UndoError`] after that.
pub fn undo(guests: &[&WritableGuest], run: &str, ui: &dyn Ui) -> Result<Vec<(String, Undone)>> {
    undo_without(guests, &[], run, ui)
}

/// The same without the guests of these names, which are lost and will never boot again.
///
/// # Errors
/// As of [`undo`].
pub fn undo_without(
    guests: &[&WritableGuest],
    dead: &[String],
    run: &str,
    ui: &dyn Ui,
) -> Result<Vec<(String, Undone)>> {
    let identities: BTreeSet<String> = guests.iter().map(|guest| identity(guest.guest())).collect();
    let Some(set) = gather(guests)?
        .into_iter()
        .find(|gathered| gathered.id == run)
    else {
        let next = "`rescue runs` with the same disks lists what was done";
        return Err(Refusal::new(
            format!("no run {run} of several nodes is on these disks"),
            "nothing was changed",
            next,
        )
        .into());
    };
    let (absent, any_unrecorded) = set.missing(&identities);
    set.refuse_missing(&absent, dead)?;
    let any = |wanted: Reached| set.members.values().any(|(_, reached)| *reached == wanted);
    if any_unrecorded || any(Reached::Begun) {
        return Err(Refusal::new(
            format!("run {run} is not on record on all of its nodes"),
            "it was never committed on all of them, and changed nothing; or it was removed from \
             one with `rescue runs --prune`, and the old files with it",
            "`rescue runs` with the same disks lists what is there; `rescue repair` removes what \
             was never committed",
        )
        .into());
    }
    if set
        .members
        .values()
        .all(|(_, reached)| *reached == Reached::Undone)
    {
        let next = "`rescue runs` with the same disks lists what was done";
        return Err(Refusal::new(
            format!("the run {run} is undone already"),
            "there is nothing to undo",
            next,
        )
        .into());
    }
    put_all_back(&set, ui)
}

/// Fences everywhere, then what was there before.
fn put_all_back(set: &Gathered<'_>, ui: &dyn Ui) -> Result<Vec<(String, Undone)>> {
    let is_under_way = set
        .members
        .values()
        .any(|(_, reached)| matches!(reached, Reached::Undoing | Reached::Undone));
    let mut left = Vec::new();
    for (place, journal) in set.journals()? {
        if place.store.reached(&set.id)? == Reached::Undone {
            undo::tidy(&place.store, &set.id)?;
            continue;
        }
        let of = || {
            format!(
                "nothing more is put back on any disk, because of {}",
                place.name
            )
        };
        let runs = undo::runs_to_undo(&place.store)?;
        undo::refuse_out_of_order(&runs, &journal).with_context(of)?;
        let drifted = undo::refuse_drifted(place.confined, &place.store, &journal);
        drifted
            .map_err(|why| {
                if is_under_way {
                    has_run_since(&set.id, &place.name, why)
                } else {
                    why
                }
            })
            .with_context(of)?;
        kept::refuse_missing_back(place.confined, &place.store, &journal).with_context(of)?;
        let elsewhere = journal.elsewhere();
        left.push((
            place,
            journal,
            Undone {
                run: set.id.clone(),
                elsewhere,
                ..Undone::default()
            },
        ));
    }
    fault::point("undo: checked");
    let total = left.iter().map(|(_, journal, _)| journal.steps.len()).sum();
    let mut done = 0;
    let ended = put_back(&mut left, &mut done, ui);
    ended.map_err(|cause| UndoError {
        run: set.id.clone(),
        done,
        total,
        cause,
    })?;
    Ok(left
        .into_iter()
        .map(|(place, _, undone)| (place.name.clone(), undone))
        .collect())
}

/// An undo was cut off, and then one of the nodes was started as it was. It can go on only without
/// that one: what it holds belongs to the cluster that the others are leaving.
fn has_run_since(id: &str, name: &str, why: anyhow::Error) -> anyhow::Error {
    match why.downcast::<Refusal>() {
        Ok(Refusal { saw, .. }) => Refusal::new(
            format!("the undo of run {id} was cut off, and {name} was started since: {saw}"),
            format!(
                "what {name} wrote belongs to the cluster that the others are leaving; both must \
                 never run at the same time"
            ),
            format!(
                "boot none of them; copy etcd's folder on {name} away; then, to give up what it \
                 wrote: `rescue undo --run {id} --declare-dead {name}` with the disks of all \
                 others, without its own. Before {name} boots again, empty its etcd folder, and \
                 let it join anew"
            ),
        )
        .into(),
        Err(other) => other,
    }
}

fn put_back(
    left: &mut [(&Place<'_>, Journal, Undone)],
    done: &mut usize,
    ui: &dyn Ui,
) -> Result<()> {
    let of = |place: &Place<'_>| format!("on {}", place.name);
    for (place, journal, _) in &*left {
        undo::begin(&place.store, journal).with_context(|| of(place))?;
        fault::point("undo: begun");
    }
    for (place, journal, undone) in &mut *left {
        let Place {
            confined, store, ..
        } = place;
        let rest = barrier(journal)..journal.steps.len();
        undo::put_steps_back(
            confined,
            store,
            journal,
            rest,
            Drift::Fails,
            ui,
            (undone, done),
        )
        .with_context(|| of(place))?;
        fault::point("undo: fenced");
    }
    for (place, journal, undone) in left {
        let Place {
            confined, store, ..
        } = place;
        let first = 0..barrier(journal);
        undo::put_steps_back(
            confined,
            store,
            journal,
            first,
            Drift::Fails,
            ui,
            (undone, done),
        )
        .with_context(|| of(place))?;
        undo::finish(confined, store, journal, Vec::new()).with_context(|| of(place))?;
    }
    Ok(())
}
