//! Everything before the commit record: what the changes come to, whether they can all be made, and
//! the staging of what they need. A crash or an error up to here leaves the guest as it was, with a
//! folder of ours to be removed.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use rustix::fs::{Gid, IFlags, Mode, Uid};
use rustix::io::Errno;

use super::confined::{Confined, Place, is_folder, is_not_there, sync_file};
use super::exchange;
use super::journal::{State, Step, StoredPath};
use super::shown_sink::ShownSink;
use super::staged_folder::StagedFolder;
use super::store::Store;
use super::xattrs;
use crate::base::fault;
use crate::base::refusal::Refusal;
use crate::base::ui::Ui;
use crate::base::units;
use crate::change::folder::Sources;
use crate::change::secret;
use crate::change::{Attributes, Change, Content, Edit, Recipe};
use crate::guest::{Guest, GuestPath, RealPath};
use crate::in_use::held_open::HeldOpen;
use crate::tree::{AccessList, Usage};

/// Room for the record, our folders and what the file system itself needs for new names: an inode
/// chunk of XFS is 32 KiB.
const SLACK_BYTES: u64 = 256 << 10;
/// Inodes for our folders and records.
const SLACK_INODES: u64 = 16;
/// Mode of a folder that replaces none.
const NEW_FOLDER: u32 = 0o700;
/// Inodes of a folder that is built: an etcd member has some dozen files.
const INODES_OF_A_FOLDER: u64 = 64;
/// What one small file takes at most besides its bytes: a block of extended attributes.
const PER_FILE: u64 = 4096;

/// What else can be done where a whole folder does not fit beside the old one.
const OR_ELSEWHERE: &str =
    "; or have the new folder written to this machine with --output DIR (`rescue etcd`)";

/// What is to be at a path in the end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Outcome {
    File {
        content: Content,
        attributes: Attributes,
    },
    Patched {
        edits: Vec<Edit>,
        size: u64,
        sha256: String,
    },
    Link {
        target: PathBuf,
    },
    Nothing,
    Folder {
        attributes: Attributes,
    },
    Built {
        build: Recipe,
    },
    Fence {
        content: Content,
    },
}

impl Outcome {
    fn state(&self) -> State {
        match self {
            Self::File { content, .. } => State::File {
                sha256: content.sha256(),
            },
            Self::Patched { sha256, .. } => State::File {
                sha256: sha256.clone(),
            },
            Self::Link { target } => State::Symlink {
                target: target.clone().into(),
            },
            Self::Nothing => State::Absent,
            Self::Folder { .. } => State::Directory,
            // What is in it is not known before it is built.
            Self::Built { .. } => State::Tree {
                inode: 0,
                sha256: String::new(),
            },
            Self::Fence { content } => State::File {
                sha256: content.sha256(),
            },
        }
    }

    fn is_exchange(&self) -> bool {
        matches!(self, Self::Built { .. } | Self::Fence { .. })
    }

    /// Owner and mode asked for outlive a second writing that keeps what it finds.
    fn after(self, earlier: &Self) -> Self {
        match (self, earlier) {
            (
                Self::File {
                    content,
                    attributes: Attributes::Keep,
                },
                Self::File { attributes, .. },
            ) => Self::File {
                content,
                attributes: attributes.clone(),
            },
            (later, _) => later,
        }
    }
}

/// One name with what is there before and what is to be there in the end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Goal {
    pub path: RealPath,
    pub before: State,
    pub outcome: Outcome,
    /// Whether it is made outside the guest first, because it does not fit beside the old one.
    pub elsewhere: bool,
}

impl Goal {
    /// Whether it is reached by exchanging two names: a folder is made anew, or gives way to a
    /// file.
    fn is_exchange(&self) -> bool {
        self.outcome.is_exchange() || self.before.is_tree()
    }

    fn is_secret(&self) -> bool {
        matches!(&self.outcome, Outcome::File { content, .. } if content.is_secret())
    }
}

/// Several changes to one name become one, at the place of the first: every step of the record then
/// stands alone.
///
/// Only a fence and the folder that replaces it stay two: other disks are changed between them.
pub(super) fn goals(changes: Vec<Change>, run: &str) -> Result<Vec<Goal>> {
    let mut goals: Vec<Goal> = Vec::new();
    let mut known: BTreeMap<RealPath, usize> = BTreeMap::new();
    for change in changes {
        let (path, expect, outcome) = match change {
            Change::Write {
                path,
                content,
                attributes,
                expect,
            } => (
                path,
                Some(State::from(&expect)),
                Outcome::File {
                    content,
                    attributes,
                },
            ),
            Change::Patch {
                path,
                edits,
                size,
                sha256,
                expect,
            } => (
                path,
                Some(State::from(&expect)),
                Outcome::Patched {
                    edits,
                    size,
                    sha256,
                },
            ),
            Change::Symlink {
                path,
                target,
                expect,
            } => (path, Some(State::from(&expect)), Outcome::Link { target }),
            Change::Remove { path, expect } => (path, Some(State::from(&expect)), Outcome::Nothing),
            Change::MakeDir { path, attributes } => (path, None, Outcome::Folder { attributes }),
            Change::ReplaceFolder {
                path,
                build,
                expect,
            } => (path, Some(State::from(&expect)), Outcome::Built { build }),
            Change::Fence { path, why, expect } => (
                path,
                Some(State::from(&expect)),
                Outcome::Fence {
                    content: fence(&why, run),
                },
            ),
        };
        let Some(goal) = known.get(&path).and_then(|at| goals.get_mut(*at)) else {
            known.insert(path.clone(), goals.len());
            goals.push(Goal {
                path,
                before: expect.unwrap_or(State::Absent),
                outcome,
                elsewhere: false,
            });
            continue;
        };
        if let (Outcome::Built { .. }, Outcome::Fence { content }) = (&outcome, &goal.outcome)
            && expect.as_ref() == Some(&goal.before)
        {
            let before = State::File {
                sha256: content.sha256(),
            };
            known.insert(path.clone(), goals.len());
            goals.push(Goal {
                path,
                before,
                outcome,
                elsewhere: false,
            });
            continue;
        }
        match (expect, &goal.outcome) {
            _ if outcome.is_exchange() || goal.outcome.is_exchange() => {
                bail!(
                    "the plan contradicts itself about {path}: it is replaced as a whole, and \
                     changed"
                )
            }
            // The original's bytes are staged, not those of another remedy.
            _ if matches!(outcome, Outcome::Patched { .. }) => {
                bail!("the plan contradicts itself about {path}: it is changed twice")
            }
            // A folder that an earlier remedy makes already.
            (None, Outcome::Folder { .. }) => continue,
            (Some(expect), earlier) if expect == earlier.state() => {}
            _ => bail!(
                "the plan contradicts itself about {path}: two remedies change it in different ways"
            ),
        }
        goal.outcome = outcome.after(&goal.outcome);
    }
    goals.retain(|goal| !(goal.before == State::Absent && goal.outcome == Outcome::Nothing));
    for Goal { path, before, .. } in &goals {
        if matches!(before, State::Directory | State::Special) {
            bail!("the plan would replace {path}, which is {before}");
        }
    }
    for replaced in goals.iter().filter(|goal| goal.is_exchange()) {
        let inside = |goal: &&Goal| {
            goal.path != replaced.path && goal.path.as_path().starts_with(replaced.path.as_path())
        };
        if let Some(inside) = goals.iter().find(inside) {
            bail!(
                "the plan contradicts itself: it changes {} and replaces {} as a whole",
                inside.path,
                replaced.path
            );
        }
    }
    Ok(goals)
}

/// What the file says that stands where a folder was.
pub(super) fn fence(why: &str, run: &str) -> Content {
    Content::new(format!(
        "rescue moved the folder of this name away, and put this file here so that nothing starts \
         from it or makes a new one.\n\
         Why: {why}\n\
         Run: {run}. The folder is kept; `rescue undo --run {run}` with all disks of that run puts \
         it back.\n"
    ))
}

/// Checks that every goal can be reached, and drops the folders that are there already. Changes
/// nothing.
pub(super) fn preflight(confined: &Confined, goals: &mut Vec<Goal>) -> Result<()> {
    let mut made: BTreeSet<RealPath> = BTreeSet::new();
    let mut there = BTreeSet::new();
    let mut seen = BTreeSet::new();
    for goal in goals.iter_mut() {
        let path = &goal.path;
        // What stands on an earlier goal is not there yet.
        if !seen.insert(path.clone()) {
            continue;
        }
        if confined.is_read_only(path)? {
            return Err(read_only(&confined.mount_point_of(path)?).into());
        }
        let place = match confined.place(path) {
            Ok(place) => place,
            Err(error) if is_not_there(&error) && made.contains(&path.parent()) => {
                if goal.before != State::Absent {
                    return Err(changed(path, &State::Absent, &goal.before).into());
                }
                if matches!(goal.outcome, Outcome::Folder { .. }) {
                    made.insert(path.clone());
                }
                continue;
            }
            Err(error) => return Err(unreachable_folder(path, &error)),
        };
        if goal.is_exchange() {
            refuse_mounted_inside(confined, path)?;
        }
        let now = if goal.before.is_tree() {
            exchange::state(confined, path)?
        } else {
            place.state()?
        };
        if matches!(goal.outcome, Outcome::Folder { .. }) {
            made.insert(path.clone());
            if now == State::Directory {
                there.insert(path.clone());
                continue;
            }
        }
        if !now.holds_the_same_as(&goal.before) {
            return Err(changed(path, &now, &goal.before).into());
        }
        refuse_protected(&place)?;
        if now.is_tree() {
            refuse_protected_below(confined, path)?;
            // What we mounted ourselves nobody else has open.
            if confined.is_shared(path)? {
                refuse_open_below(confined, path, &HeldOpen::scan())?;
            }
        }
        goal.before = now;
    }
    goals.retain(|goal| !there.contains(&goal.path));
    Ok(())
}

fn read_only(mount_point: &RealPath) -> Refusal {
    Refusal::new(
        format!("the guest's file system for {mount_point} is mounted read-only"),
        "nothing can be repaired on it",
        "mount it writable (or give the disk itself instead of a folder), then run this again",
    )
}

fn changed(path: &RealPath, now: &State, expected: &State) -> Refusal {
    Refusal::new(
        format!("{path} in the guest holds {now} where the plan saw {expected}"),
        "something else is changing this guest, or it changed since the plan was made",
        "make sure that nobody else uses it, then run this again",
    )
}

fn unreachable_folder(path: &RealPath, error: &std::io::Error) -> anyhow::Error {
    let means = match Errno::from_io_error(error) {
        Some(Errno::NOENT | Errno::NOTDIR) => "a folder on the way to it is missing".to_owned(),
        Some(Errno::LOOP) => {
            "a folder on the way to it is a symbolic link, which could lead out of the guest"
                .to_owned()
        }
        Some(Errno::XDEV) => {
            "it is on a file system that was not given as part of this guest".to_owned()
        }
        Some(Errno::BUSY) => "it is a mount point itself".to_owned(),
        _ => format!("its folder cannot be opened: {error}"),
    };
    Refusal::new(
        format!("{path} in the guest cannot be reached for writing"),
        means,
        "look at it, then run this again",
    )
    .into()
}

fn refuse_protected(place: &Place) -> Result<()> {
    let asking = || format!("asking for the flags of {place}");
    let file = place.inode_flags().with_context(asking)?;
    let folder = place.folder_flags().with_context(asking)?;
    let protected = IFlags::IMMUTABLE | IFlags::APPEND;
    let what = match (file.intersects(protected), folder.intersects(protected)) {
        (false, false) => return Ok(()),
        (true, _) => place.path().clone(),
        (false, true) => place.path().parent(),
    };
    Err(Refusal::new(
        format!("{what} in the guest is immutable or append-only (chattr +i or +a)"),
        "somebody protected it on purpose, and the kernel refuses to change it",
        format!(
            "mount the guest and run `chattr -ia` on {what} if that is right, then run this again"
        ),
    )
    .into())
}

/// Files that somebody protected must not be moved out of sight with the folder they are in.
fn refuse_protected_below(confined: &Confined, folder: &RealPath) -> Result<()> {
    for name in confined.names(folder)? {
        let path = folder.child(&name);
        let place = confined
            .place(&path)
            .with_context(|| format!("opening {folder}"))?;
        refuse_protected(&place)?;
        if place.lstat()?.is_some_and(|stat| is_folder(&stat)) {
            refuse_protected_below(confined, &path)?;
        }
    }
    Ok(())
}

/// A process that goes on writing into the folder that was moved away: etcd that runs.
fn refuse_open_below(confined: &Confined, folder: &RealPath, held: &HeldOpen) -> Result<()> {
    for name in confined.names(folder)? {
        let path = folder.child(&name);
        let Some(stat) = confined.lstat(&path)? else {
            continue;
        };
        if let Some(holder) = held.holder(stat.st_dev, stat.st_ino) {
            return Err(Refusal::new(
                format!("{holder} has {path} open"),
                format!(
                    "{folder} is to be replaced as a whole, and whoever uses it would go on with \
                     the old one"
                ),
                "stop it (etcd: move its static pod's manifest away), or power the node off, then \
                 run this again",
            )
            .into());
        }
        if is_folder(&stat) {
            refuse_open_below(confined, &path, held)?;
        }
    }
    Ok(())
}

fn refuse_mounted_inside(confined: &Confined, folder: &RealPath) -> Result<()> {
    let Some(inside) = confined
        .mount_points()
        .find(|point| point.as_path().starts_with(folder.as_path()))
    else {
        return Ok(());
    };
    Err(Refusal::new(
        format!("a file system of its own is mounted at {inside} in the guest"),
        format!("{folder} is exchanged as a whole, and what is mounted in it cannot go with it"),
        "have that folder on the file system around it, or build the new one with --output DIR and \
         put it in place by hand",
    )
    .into())
}

/// What the staged files and records need on each file system: bytes and inodes.
fn needs(
    confined: &Confined,
    store: &Store<'_>,
    goals: &[Goal],
    id: &str,
) -> Result<BTreeMap<RealPath, (u64, u64)>> {
    let mut needs: BTreeMap<RealPath, (u64, u64)> = BTreeMap::new();
    needs.insert(
        confined.mount_point_of(&store.run(id))?,
        (SLACK_BYTES, SLACK_INODES),
    );
    for goal in goals {
        let need = needs
            .entry(confined.mount_point_of(&goal.path)?)
            .or_insert((SLACK_BYTES, SLACK_INODES));
        match &goal.outcome {
            Outcome::File { content, .. } => {
                need.0 += (content.expose().len() as u64).next_multiple_of(PER_FILE)
            }
            Outcome::Patched { size, .. } => {
                need.0 = need.0.saturating_add(size.next_multiple_of(PER_FILE))
            }
            Outcome::Built { build } if !goal.elsewhere => {
                need.0 = need.0.saturating_add(build.build_folder().bytes());
                need.1 += INODES_OF_A_FOLDER;
            }
            _ => {}
        }
        // The name of the step in the record is longer than its path only by hashes.
        need.0 += PER_FILE + goal.path.as_path().as_os_str().len() as u64 + 512;
        need.1 += 1;
    }
    Ok(needs)
}

/// The first file system that has too little room, by its mount point; `is_exact`: without what
/// only seems to be free.
pub(super) fn short_of_space(
    confined: &Confined,
    store: &Store<'_>,
    goals: &[Goal],
    id: &str,
    is_exact: bool,
) -> Result<Option<RealPath>> {
    for (mount_point, (bytes, inodes)) in needs(confined, store, goals, id)? {
        let Usage {
            bytes_available,
            inodes_total,
            inodes_free,
            ..
        } = confined.usage(&mount_point)?;
        let aside = if is_exact {
            confined.set_aside(&mount_point)?
        } else {
            0
        };
        if bytes_available.saturating_sub(aside) < bytes
            || (inodes_total != 0 && inodes_free < inodes)
        {
            return Ok(Some(mount_point));
        }
    }
    Ok(None)
}

/// What the staged files and records need on each file system, against what is free there.
pub(super) fn refuse_without_space(
    confined: &Confined,
    store: &Store<'_>,
    goals: &[Goal],
    id: &str,
) -> Result<()> {
    if fault::skips_space_check() {
        return Ok(());
    }
    // Small things fit into what the file system holds back; a whole folder would run out of it
    // half-way.
    let builds = goals
        .iter()
        .any(|goal| matches!(goal.outcome, Outcome::Built { .. }) && !goal.elsewhere);
    let Some(mount_point) = short_of_space(confined, store, goals, id, builds)? else {
        return Ok(());
    };
    let (bytes, inodes) = needs(confined, store, goals, id)?
        .get(&mount_point)
        .copied()
        .unwrap_or_default();
    let Usage {
        bytes_available,
        inodes_total,
        inodes_free,
        ..
    } = confined.usage(&mount_point)?;
    let aside = if builds {
        confined.set_aside(&mount_point)?
    } else {
        0
    };
    let bytes_available = bytes_available.saturating_sub(aside);
    let whole = goals
        .iter()
        .any(|goal| goal.outcome.is_exchange() && !goal.elsewhere);
    let (has, needs) = match inodes_total != 0 && inodes_free < inodes {
        true => (format!("{inodes_free} inodes"), format!("{inodes} inodes")),
        false if whole => (units::bytes(bytes_available), units::bytes(bytes)),
        false => (
            format!("{} KiB", bytes_available >> 10),
            format!("{} KiB", bytes.div_ceil(1024)),
        ),
    };
    let free = "free some space on it by hand or give it a larger disk, then run this again";
    let (why, next) = match whole && store.keep_in.is_none() {
        true => (
            "the old folder is kept whole until it is known that the new one is good",
            format!(
                "add --keep-in DIR, a folder of this machine with {} free, where both are kept \
                 meanwhile; or {free}{OR_ELSEWHERE}",
                units::bytes(super::kept::needed(confined, goals)?)
            ),
        ),
        false => ("nothing more may be freed", free.to_owned()),
    };
    Err(Refusal::new(
        format!("the guest's file system for {mount_point} has {has} free"),
        format!("the changes and their undo need {needs}, and {why}"),
        next,
    )
    .into())
}

/// Where things are staged, and what they are made from.
pub(super) struct Stage<'a> {
    pub guest: &'a Guest,
    pub sources: &'a Sources<'a>,
    pub confined: &'a Confined,
    pub store: &'a Store<'a>,
    pub ui: &'a dyn Ui,
}

/// Stages everything in the run's stores: what is to be put in place, ready for one rename each,
/// and the backups. All of it is synchronised. Returns the steps of the record.
pub(super) fn stage(on: &Stage<'_>, goals: &[Goal], id: &str) -> Result<Vec<Step>> {
    let Stage {
        confined, store, ..
    } = *on;
    store.create()?;
    store.make_folder(&store.run(id))?;
    let mut mount_points = BTreeSet::new();
    for goal in goals {
        mount_points.insert(confined.mount_point_of(&goal.path)?);
    }
    for mount_point in &mount_points {
        let on = store.on(mount_point, id);
        if on != store.run(id) {
            store.make_folder(&on.parent())?;
            store.make_folder(&on)?;
        }
        store.make_folder(&store.staged_folder(mount_point, id))?;
        store.make_folder(&store.backup_folder(mount_point, id))?;
    }
    let mut steps = Vec::with_capacity(goals.len());
    let mut probed = BTreeSet::new();
    for (n, goal) in goals.iter().enumerate() {
        let mut step = Step {
            path: StoredPath::from(&goal.path),
            before: goal.before.clone(),
            after: goal.outcome.state(),
            mount_point: StoredPath::from(&confined.mount_point_of(&goal.path)?),
            kept: None,
        };
        let staged = open(confined, &store.staged(&step, id, n)?)?;
        let original = match confined.place(&goal.path) {
            Ok(place) => Some(place),
            Err(error) if is_not_there(&error) => None,
            Err(error) => return Err(unreachable_folder(&goal.path, &error)),
        };
        let original = original.filter(|_| goal.before != State::Absent);
        if goal.is_exchange() {
            let mount_point = confined.mount_point_of(&goal.path)?;
            if probed.insert(mount_point.clone()) {
                refuse_without_exchange(
                    confined,
                    &store.staged_folder(&mount_point, id),
                    &goal.path,
                )?;
            }
        } else if let Some(original) = &original {
            original.hard_link_to(&open(confined, &store.backup(&step, id, n)?)?)?;
        }
        match &goal.outcome {
            Outcome::Built { .. } if goal.elsewhere => {
                staged.make_folder()?;
                let (after, at) = super::kept::stage(on, goals, n, id, &staged)?;
                (step.after, step.kept) = (after, Some(at));
            }
            Outcome::Built { build } => step.after = stage_folder(on, goal, build, &staged)?,
            _ => stage_one(confined, goal, original.as_ref(), &staged)?,
        }
        steps.push(step);
    }
    for mount_point in &mount_points {
        for folder in [
            store.staged_folder(mount_point, id),
            store.backup_folder(mount_point, id),
        ] {
            let open = confined
                .open_folder(&folder)
                .with_context(|| format!("opening {folder}"))?;
            sync_file(&open, &folder)?;
        }
    }
    Ok(steps)
}

/// Folders given with --root may lie on a file system that cannot exchange two names; every one
/// that we mount can.
fn refuse_without_exchange(confined: &Confined, staged: &RealPath, path: &RealPath) -> Result<()> {
    if !confined.is_shared(path)? {
        return Ok(());
    }
    let [a, b] = ["probe-a", "probe-b"].map(|name| confined.place(&staged.child(name.as_ref())));
    let (a, b) = (a?, b?);
    a.make_folder()?;
    b.create(b"")?;
    if let Err(error) = a.exchange(&b) {
        return Err(Refusal::new(
            format!("the file system of {path} cannot exchange two names ({error:#})"),
            "the folder could not be replaced without being missing for a moment",
            "give the disk itself instead of a folder, then run this again",
        )
        .into());
    }
    a.unlink()?;
    b.remove_folder()?;
    Ok(())
}

/// Builds a folder and has it read back. Returns what it is then.
fn stage_folder(on: &Stage<'_>, goal: &Goal, build: &Recipe, staged: &Place) -> Result<State> {
    staged.make_folder()?;
    let build = build.build_folder();
    let mut sink = StagedFolder::new(on.confined, on.guest, staged.path().clone(), &goal.path)?;
    let progress = on.ui.begin(
        &format!("{}: making the new {}", on.guest.source, goal.path),
        Some(build.bytes()),
    );
    let built = build.build(on.sources, &mut ShownSink::new(&mut sink, &*progress));
    built.with_context(|| format!("making the new {}", goal.path))?;
    drop(progress);
    let _progress = on
        .ui
        .begin(&format!("{}: reading it back", on.guest.source), None);
    sink.finish(NEW_FOLDER)?;
    fault::point("phase: built");
    let reading = || {
        format!(
            "the new {} was read back, and is not what was planned",
            goal.path
        )
    };
    build
        .verify(on.guest, &GuestPath::from(staged.path()))
        .with_context(reading)?;
    exchange::state(on.confined, staged.path())
}

fn open(confined: &Confined, path: &RealPath) -> Result<Place> {
    confined
        .place(path)
        .with_context(|| format!("opening the folder of {path}"))
}

fn stage_one(
    confined: &Confined,
    goal: &Goal,
    original: Option<&Place>,
    staged: &Place,
) -> Result<()> {
    match &goal.outcome {
        Outcome::Nothing => return Ok(()),
        Outcome::File { content, .. } => drop(staged.create(content.expose())?),
        Outcome::Patched { edits, size, .. } => {
            let original =
                original.with_context(|| format!("{} is not there any more", goal.path))?;
            super::patch::stage(original, staged, edits, *size)?;
        }
        Outcome::Link { target } => staged.make_link(target)?,
        Outcome::Folder { .. } => staged.make_folder()?,
        Outcome::Fence { content } => drop(staged.create(content.expose())?),
        Outcome::Built { .. } => bail!("{} is made anew, not staged as one file", goal.path),
    }
    let (mode, uid, gid) = attributes(confined, goal, original)?;
    let list = if goal.is_secret() {
        xattrs::List::LeaveOut
    } else {
        xattrs::List::Copy
    };
    let no_follow = rustix::fs::AtFlags::SYMLINK_NOFOLLOW;
    let (owner, group) = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
    fault::call("chown", || {
        rustix::fs::chownat(staged.folder(), staged.name(), owner, group, no_follow)
    })
    .with_context(|| format!("giving the new {} its owner", goal.path))?;
    // Links and files are replaced by their like or by each other; only a like's attributes fit.
    match original {
        Some(original) if same_kind(original, staged)? => xattrs::copy(original, staged, list)?,
        _ => xattrs::label_new(confined, &goal.path, staged)?,
    }
    if matches!(goal.outcome, Outcome::Link { .. }) {
        return Ok(());
    }
    // After the attributes: an ACL's mask is the group's permission bits. Until then the file
    // is 0600.
    let (mode, no_flags) = (Mode::from_raw_mode(mode), rustix::fs::AtFlags::empty());
    fault::call("chmod", || {
        rustix::fs::chmodat(staged.folder(), staged.name(), mode, no_flags)
    })
    .with_context(|| format!("giving the new {} its mode", goal.path))?;
    if matches!(
        goal.outcome,
        Outcome::File { .. } | Outcome::Patched { .. } | Outcome::Fence { .. }
    ) {
        sync_file(&staged.open_file()?, staged)?;
    }
    Ok(())
}

fn same_kind(a: &Place, b: &Place) -> Result<bool> {
    let kind = |place: &Place| -> Result<Option<rustix::fs::FileType>> {
        Ok(place
            .lstat()?
            .map(|stat| rustix::fs::FileType::from_raw_mode(stat.st_mode)))
    };
    Ok(kind(a)? == kind(b)?)
}

/// Mode, owner, group.
fn attributes(
    confined: &Confined,
    goal: &Goal,
    original: Option<&Place>,
) -> Result<(u32, u32, u32)> {
    let (mode, uid, gid) = attributes_asked_for(confined, goal, original)?;
    if !goal.is_secret() {
        return Ok((mode, uid, gid));
    }
    let is_kept = matches!(
        goal.outcome,
        Outcome::File {
            attributes: Attributes::Keep,
            ..
        }
    );
    let value = match original.filter(|_| is_kept && goal.before.is_file()) {
        Some(original) => xattrs::access_list(original)
            .with_context(|| format!("reading the access list of {original}"))?,
        None => None,
    };
    let mode = match value.as_deref().map(AccessList::from_xattr) {
        None => secret::mode(mode, gid, None),
        Some(Some(list)) => secret::mode(mode, gid, Some(&list)),
        // Of a list that makes no sense nobody can say what the group may do.
        Some(None) => secret::mode(mode & 0o600, gid, None),
    };
    Ok((mode, uid, gid))
}

fn attributes_asked_for(
    confined: &Confined,
    goal: &Goal,
    original: Option<&Place>,
) -> Result<(u32, u32, u32)> {
    let kept = original.map(Place::lstat).transpose()?.flatten();
    Ok(match (&goal.outcome, kept) {
        (
            Outcome::File {
                attributes: Attributes::Set { mode, uid, gid },
                ..
            }
            | Outcome::Folder {
                attributes: Attributes::Set { mode, uid, gid },
            },
            _,
        ) => (mode & 0o7777, *uid, *gid),
        (Outcome::File { .. } | Outcome::Patched { .. }, Some(stat)) if goal.before.is_file() => {
            (stat.st_mode & 0o7777, stat.st_uid, stat.st_gid)
        }
        // Nothing to keep: what is least seen. A key may be in it.
        (Outcome::File { .. } | Outcome::Patched { .. }, _) => (0o600, 0, 0),
        (Outcome::Fence { .. }, _) => (0o644, 0, 0),
        (Outcome::Folder { .. } | Outcome::Built { .. }, _) => {
            let parent = confined.lstat(&goal.path.parent())?;
            parent.map_or((0o755, 0, 0), |stat| (0o755, stat.st_uid, stat.st_gid))
        }
        (Outcome::Link { .. } | Outcome::Nothing, Some(stat)) => (0o777, stat.st_uid, stat.st_gid),
        (Outcome::Link { .. } | Outcome::Nothing, None) => (0o777, 0, 0),
    })
}
