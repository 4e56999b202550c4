//! The way out of the guest and back onto it.

use std::path::{Component, Path};
use std::rc::Rc;

use anyhow::{Context as _, Result, bail, ensure};
use rustix::fs::{AtFlags, FileType, Gid, Mode, Timespec, Timestamps, UTIME_OMIT, Uid};

use super::keep_in::{KeepIn, top};
use super::list::{Entries, Entry, Kind, LIST_LIMIT, List};
use super::made::MadeFolder;
use super::tree::{KeptTree, SHOWN};
use super::{room, sparse};
use crate::base::fault;
use crate::base::hash::sha256_hex;
use crate::base::refusal::Refusal;
use crate::change::tree_hash;
use crate::guest::{Guest, GuestPath, RealPath};
use crate::repair::confined::{Confined, Place, is_folder, sync_file};
use crate::repair::exchange::{self, Look};
use crate::repair::journal::{Journal, KeptAt, State, Step, StoredPath};
use crate::repair::shown_sink::ShownSink;
use crate::repair::stage::{Goal, Outcome, Stage};
use crate::repair::store::Store;
use crate::repair::transaction::{finished_now, open_if_there};
use crate::repair::xattrs;
use crate::tree::TreeResult;

/// The old folder, or the new one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Which {
    Old,
    New,
}

impl Which {
    fn folder(self) -> &'static str {
        match self {
            Self::Old => "old",
            Self::New => "new",
        }
    }

    fn list(self) -> &'static str {
        match self {
            Self::Old => "old.json",
            Self::New => "new.json",
        }
    }
}

pub(super) fn join(top: &RealPath, below: &Path) -> RealPath {
    below
        .iter()
        .fold(top.clone(), |path, name| path.child(name))
}

/// Keeps the old folder and builds the new one beside it, outside the guest; both are read back.
/// Returns what the new one will be, and where they are. `staged` is what it will be put into.
pub(in crate::repair) fn stage(
    on: &Stage<'_>,
    goals: &[Goal],
    n: usize,
    id: &str,
    staged: &Place,
) -> Result<(State, KeptAt)> {
    let keep = on
        .store
        .keep_in
        .clone()
        .context("nothing was named to keep the folder in")?;
    let goal = goals.get(n).context("no such goal")?;
    let Outcome::Built { build } = &goal.outcome else {
        bail!("{} is not built", goal.path)
    };
    let build = build.build_folder();
    let fenced = goals
        .iter()
        .take(n)
        .rfind(|earlier| earlier.path == goal.path);
    let Some(State::Tree { sha256, .. }) = fenced.map(|fenced| &fenced.before) else {
        bail!("{} does not replace a folder", goal.path)
    };
    let folder = keep.make(
        id,
        &on.guest
            .read_text(&GuestPath::new("/etc/hostname"))
            .unwrap_or_default(),
    )?;
    let path = StoredPath::from(&goal.path);

    let progress = on.ui.begin(
        &format!("{}: keeping the old {}", on.guest.source, goal.path),
        None,
    );
    let mut entries = Entries::new();
    let to = folder.child(Which::Old.folder().as_ref());
    keep_folder(
        on.confined,
        &goal.path,
        &keep,
        (&to, Path::new("")),
        &mut entries,
    )?;
    keep.confined().sync_all()?;
    let tree = KeptTree {
        confined: Rc::clone(keep.confined()),
        folder: to,
        entries,
    };
    ensure!(
        hash(&tree)? == *sha256,
        "the copy of {} in {} is not what it was",
        goal.path,
        keep.shown(&folder)
    );
    let old = write_list(
        &keep,
        &folder,
        Which::Old,
        &List::new(id, path.clone(), sha256.clone(), &tree.entries),
    )?;
    drop(progress);

    let progress = on.ui.begin(
        &format!("{}: making the new {}", on.guest.source, goal.path),
        Some(build.bytes()),
    );
    let to = folder.child(Which::New.folder().as_ref());
    keep.place(&to)?.make_folder()?;
    let mut sink = MadeFolder::new(&keep, to.clone(), &tree.entries);
    let built = build.build(on.sources, &mut ShownSink::new(&mut sink, &*progress));
    built.with_context(|| format!("making the new {}", goal.path))?;
    let entries = sink.entries()?;
    drop(progress);
    let _progress = on
        .ui
        .begin(&format!("{}: reading it back", on.guest.source), None);
    keep.confined().sync_all()?;
    fault::point("phase: built");
    let tree = KeptTree {
        confined: Rc::clone(keep.confined()),
        folder: to,
        entries: entries.clone(),
    };
    let sha256 = hash(&tree)?;
    let shown = Guest::new(keep.shown(&folder), Rc::new(tree), Vec::new());
    let reading = || {
        format!(
            "the new {} was read back, and is not what was planned",
            goal.path
        )
    };
    build
        .verify(&shown, &GuestPath::new(SHOWN))
        .with_context(reading)?;
    let new = write_list(
        &keep,
        &folder,
        Which::New,
        &List::new(id, path, sha256.clone(), &entries),
    )?;
    write(
        &keep,
        &folder,
        "README.txt",
        readme(on.guest, goal, id).as_bytes(),
    )?;
    keep.confined().sync_all()?;
    room::refuse_without_return(
        on.confined,
        &goal.path,
        &keep,
        &folder.child(Which::New.folder().as_ref()),
    )?;

    let inode = staged
        .lstat()?
        .context("what was just made is gone")?
        .st_ino;
    let below = folder
        .as_path()
        .strip_prefix("/")
        .unwrap_or(folder.as_path())
        .to_path_buf();
    let at = KeptAt {
        keep_in: keep.path().to_path_buf().into(),
        folder: below.into(),
        old,
        new,
    };
    Ok((State::Tree { inode, sha256 }, at))
}

fn readme(guest: &Guest, goal: &Goal, id: &str) -> String {
    format!(
        "rescue run {id} on {}\n\n\
         old/ is what was {} on that node. There was no room for it beside the new one. It holds \
         every Secret of the cluster.\n\
         `rescue undo --run {id} --keep-in DIR` with that node's disk puts it back; DIR is the \
         folder two levels above this one.\n\
         By hand: mount the disk, remove {} there, copy old/ to that name, and give every file the \
         owner (uid, gid), mode (decimal) and\n\
         attributes that old.json names.\n\
         Nobody needs this folder any more once the node has run, or where `rescue runs` with its \
         disk does not list the run.\n",
        guest.source, goal.path, goal.path
    )
}

fn write(keep: &KeepIn, folder: &RealPath, name: &str, bytes: &[u8]) -> Result<()> {
    let place = keep.place(&folder.child(name.as_ref()))?;
    sync_file(&place.create(bytes)?, &place)
}

fn write_list(keep: &KeepIn, folder: &RealPath, which: Which, list: &List) -> Result<String> {
    let bytes = serde_json::to_vec_pretty(list).context("writing the list of what is kept")?;
    write(keep, folder, which.list(), &bytes)?;
    Ok(sha256_hex(&bytes))
}

fn hash(tree: &KeptTree) -> TreeResult<String> {
    tree_hash::of(tree, Path::new(SHOWN))
}

/// Copies a folder of the guest out. The caller synchronises.
fn keep_folder(
    from: &Confined,
    folder: &RealPath,
    keep: &KeepIn,
    (to, below): (&RealPath, &Path),
    entries: &mut Entries,
) -> Result<()> {
    let reading = || format!("opening the folder of {folder}");
    let place = from.place(folder).with_context(reading)?;
    entries.insert(below.to_path_buf(), entry(&place, below, Kind::Folder)?);
    keep.place(to)?.make_folder()?;
    for name in from.names(folder)? {
        let (path, to, below) = (folder.child(&name), to.child(&name), below.join(&name));
        let place = from
            .place(&path)
            .with_context(|| format!("opening the folder of {path}"))?;
        let stat = place.lstat()?.with_context(|| format!("{path} is gone"))?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => keep_folder(from, &path, keep, (&to, &below), entries)?,
            FileType::RegularFile => {
                let size = u64::try_from(stat.st_size).unwrap_or(0);
                sparse::copy(&place, &keep.place(&to)?, size)?;
                entries.insert(below.clone(), entry(&place, &below, Kind::File)?);
            }
            FileType::Symlink => {
                let entry = entry(&place, &below, Kind::Link)?;
                entries.insert(
                    below.clone(),
                    Entry {
                        target: Some(place.read_link()?.into()),
                        ..entry
                    },
                );
            }
            _ => bail!("{path} is neither file, folder nor link"),
        }
    }
    Ok(())
}

fn entry(place: &Place, below: &Path, kind: Kind) -> Result<Entry> {
    let stat = place.lstat()?.with_context(|| format!("{place} is gone"))?;
    let mut entry = Entry::new(
        below,
        kind,
        stat.st_mode & 0o7777,
        (stat.st_uid, stat.st_gid),
    );
    entry.set_attributes(&xattrs::read(place)?);
    Ok(Entry {
        seconds: stat.st_mtime as _,
        nanoseconds: stat.st_mtime_nsec as _,
        ..entry
    })
}

/// What a step's folders are kept in.
struct Kept {
    confined: Rc<Confined>,
    folder: RealPath,
    at: KeptAt,
    run: String,
}

impl Kept {
    /// In the folder that was named, else in the one that the record names.
    fn find(store: &Store<'_>, journal: &Journal, step: &Step, at: &KeptAt) -> Result<Self> {
        let below = at.folder.as_path();
        let is_plain = below
            .components()
            .all(|component| matches!(component, Component::Normal(_)));
        ensure!(
            is_plain && below.components().count() == 2,
            "the record of run {} names no folder of ours",
            journal.id
        );
        let recorded = KeepIn::at(at.keep_in.as_path()).ok().map(Rc::new);
        let folder = join(&top(), below);
        let is_there = |keep: &Rc<KeepIn>| {
            let list = folder.child(Which::Old.list().as_ref());
            keep.confined().lstat(&list).ok().flatten().is_some()
        };
        let found = store
            .keep_in
            .clone()
            .into_iter()
            .chain(recorded)
            .find(is_there);
        let Some(keep) = found else {
            return Err(missing(journal, step, at).into());
        };
        let confined = Rc::clone(keep.confined());
        Ok(Self {
            confined,
            folder,
            at: at.clone(),
            run: journal.id.clone(),
        })
    }

    /// One of the folders, whole: by the list that the record knows, and the hash in that.
    fn whole(&self, which: Which) -> Result<KeptTree> {
        self.look(which).map_err(|error| {
            Refusal::new(
                format!(
                    "what run {} keeps in {} is not as it left it ({error:#})",
                    self.run,
                    self.at.shown()
                ),
                "it would be put in the place of a member that etcd trusts; nothing is deleted and \
                 nothing put in place from it",
                "name the folder that it was copied to whole with --keep-in DIR, if there is one; \
                 until then etcd stays stopped there",
            )
            .into()
        })
    }

    /// The list that the record knows.
    fn list(&self, which: Which) -> Result<List> {
        let list = self.folder.child(which.list().as_ref());
        let bytes = self.confined.place(&list)?.read(LIST_LIMIT)?;
        let wanted = match which {
            Which::Old => &self.at.old,
            Which::New => &self.at.new,
        };
        ensure!(
            sha256_hex(&bytes) == *wanted,
            "{} has changed",
            which.list()
        );
        let list = List::parse(&bytes)?;
        ensure!(
            list.run == self.run,
            "{} is of run {:?}",
            which.list(),
            list.run
        );
        Ok(list)
    }

    fn look(&self, which: Which) -> Result<KeptTree> {
        let list = self.list(which)?;
        let folder = self.folder.child(which.folder().as_ref());
        let tree = KeptTree {
            confined: Rc::clone(&self.confined),
            folder,
            entries: list.entries()?,
        };
        ensure!(
            hash(&tree)? == list.sha256,
            "a file in {}/ has changed",
            which.folder()
        );
        Ok(tree)
    }
}

fn missing(journal: &Journal, step: &Step, at: &KeptAt) -> Refusal {
    Refusal::new(
        format!(
            "run {} keeps the old {} in {} on the machine that rescue ran on, which is not here",
            journal.id,
            step.path,
            at.shown()
        ),
        "without it neither of the two folders can be put in place; where a file stands in their \
         place, etcd does not start",
        format!(
            "attach what holds {}, or copy it here, and add --keep-in DIR with the folder that has \
             {} in it",
            at.keep_in, at.folder
        ),
    )
}

/// What is in its place is not needed any more beside the old one. Where it cannot be removed it
/// stays.
pub(in crate::repair) fn give_up_new(store: &Store<'_>, journal: &Journal) {
    for step in &journal.steps {
        let Some(at) = &step.kept else { continue };
        let Ok(kept) = Kept::find(store, journal, step, at) else {
            continue;
        };
        if kept.list(Which::New).is_ok() {
            let _ = kept
                .confined
                .remove_tree(&kept.folder.child(Which::New.folder().as_ref()));
        }
    }
}

/// The step of the same run that fenced what step `n` replaces.
fn fence_of(journal: &Journal, n: usize) -> Result<(usize, &Step)> {
    let path = journal.steps.get(n).map(|step| &step.path);
    let mut earlier = journal.steps.iter().enumerate().take(n);
    let fence = earlier.rfind(|(_, step)| Some(&step.path) == path && step.before.is_tree());
    fence.with_context(|| {
        format!(
            "the record of run {} keeps a folder that it never fenced",
            journal.id
        )
    })
}

fn emptied(m: usize) -> String {
    format!("emptied-{m}.json")
}

/// Whether a step is still to be made: what it puts in place is still staged, and what it replaces
/// is there.
fn is_to_be_made(
    confined: &Confined,
    store: &Store<'_>,
    id: &str,
    n: usize,
    step: &Step,
) -> Result<Option<Place>> {
    let staged = open_if_there(confined, &store.staged(step, id, n)?)?;
    let Some(staged) = staged else {
        return Ok(None);
    };
    let is_staged = exchange::holds(confined, &staged, &step.after, Look::Inode)?;
    Ok(is_staged.then_some(staged))
}

/// Before a step is made whose folders are kept elsewhere: empties the old one, and fills what will
/// be the new one.
pub(in crate::repair) fn ready(
    confined: &Confined,
    store: &Store<'_>,
    journal: &Journal,
    n: usize,
    step: &Step,
) -> Result<()> {
    let (id, Some(at)) = (&journal.id, &step.kept) else {
        return Ok(());
    };
    let Some(staged) = is_to_be_made(confined, store, id, n, step)? else {
        return Ok(());
    };
    // Where the fence does not stand, the step is not made, which is told by whoever makes it.
    if confined.state(&step.path.to_real()?)? != step.before {
        return Ok(());
    }
    let (m, fenced) = fence_of(journal, n)?;
    let kept = Kept::find(store, journal, step, at)?;
    let new = kept.whole(Which::New)?;
    if !store.has_record(id, &emptied(m))? {
        kept.whole(Which::Old)?;
        store.write_record(id, &emptied(m), &finished_now(Vec::new()))?;
    }
    fault::point("phase: both copies read back");
    if let Some(old) = open_if_there(confined, &store.backup(fenced, id, m)?)?
        && exchange::holds(confined, &old, &fenced.before, Look::Inode)?
    {
        confined.empty_tree(old.path())?;
    }
    fill(confined, &new, staged.path())?;
    let made = exchange::state(confined, staged.path())?;
    ensure!(
        made == step.after,
        "the new {} holds {made} where {} was expected",
        step.path,
        step.after
    );
    Ok(())
}

/// Before a folder is put back that is kept elsewhere: empties the new one, and fills the old one.
pub(in crate::repair) fn bring_back(
    confined: &Confined,
    store: &Store<'_>,
    journal: &Journal,
    m: usize,
    step: &Step,
    old: &Place,
) -> Result<()> {
    let id = &journal.id;
    if !(step.before.is_tree() && store.has_record(id, &emptied(m))?) {
        return Ok(());
    }
    let (n, replaced, at) = replaced_by(journal, m)?;
    let kept = Kept::find(store, journal, step, at)?.whole(Which::Old)?;
    for there in [
        store.staged(replaced, id, n)?,
        store.backup(replaced, id, n)?,
    ] {
        if let Some(new) = open_if_there(confined, &there)?
            && exchange::holds(confined, &new, &replaced.after, Look::Inode)?
        {
            confined.empty_tree(new.path())?;
        }
    }
    fill(confined, &kept, old.path())?;
    let made = exchange::state(confined, old.path())?;
    ensure!(
        made == step.before,
        "the old {} holds {made} where {} was expected",
        step.path,
        step.before
    );
    store.remove_record(id, &emptied(m))
}

/// The later step that put the new folder in the place that step `m` fenced.
fn replaced_by(journal: &Journal, m: usize) -> Result<(usize, &Step, &KeptAt)> {
    let path = journal.steps.get(m).map(|step| &step.path);
    let mut later = journal.steps.iter().enumerate().skip(m + 1);
    let found = later.find_map(|(n, step)| {
        Some((
            n,
            step,
            step.kept.as_ref().filter(|_| Some(&step.path) == path)?,
        ))
    });
    found.with_context(|| {
        format!(
            "the record of run {} does not say where the old folder is kept",
            journal.id
        )
    })
}

/// Refuses to complete a run without what it needs from elsewhere.
pub(in crate::repair) fn refuse_missing_forward(
    confined: &Confined,
    store: &Store<'_>,
    journal: &Journal,
) -> Result<()> {
    for (n, step) in journal.steps.iter().enumerate() {
        let Some(at) = &step.kept else { continue };
        if is_to_be_made(confined, store, &journal.id, n, step)?.is_none() {
            continue;
        }
        let kept = Kept::find(store, journal, step, at)?;
        kept.whole(Which::New)?;
        if !store.has_record(&journal.id, &emptied(fence_of(journal, n)?.0))? {
            kept.whole(Which::Old)?;
        }
    }
    Ok(())
}

/// Refuses to take a run back without what it needs from elsewhere, or the room for it.
pub(in crate::repair) fn refuse_missing_back(
    confined: &Confined,
    store: &Store<'_>,
    journal: &Journal,
) -> Result<()> {
    let trees = journal
        .steps
        .iter()
        .enumerate()
        .filter(|(_, step)| step.before.is_tree());
    for (m, step) in trees {
        if !store.has_record(&journal.id, &emptied(m))? {
            continue;
        }
        let (n, replaced, at) = replaced_by(journal, m)?;
        let kept = Kept::find(store, journal, step, at)?.whole(Which::Old)?;
        let new = [
            store.staged(replaced, &journal.id, n)?,
            store.backup(replaced, &journal.id, n)?,
            step.path.to_real()?,
        ];
        let mut gives = 0;
        for path in new {
            if confined.lstat(&path)?.is_some_and(|stat| is_folder(&stat)) {
                gives += room::allocated(confined, &path)?.0;
            }
        }
        // What a cut-off undo has filled already is filled again.
        gives += room::allocated(confined, &store.backup(step, &journal.id, m)?)?.0;
        room::refuse_without_room(
            confined,
            &step.path.to_real()?,
            (gives, 0),
            sparse::needed(&kept.confined, &kept.folder)?,
        )?;
    }
    Ok(())
}

/// Fills a folder, whatever is in it now, with what is kept; all of it is synchronised.
fn fill(confined: &Confined, kept: &KeptTree, top: &RealPath) -> Result<()> {
    confined.empty_tree(top)?;
    // Blocks that were given up are free once the file system's own journal has committed.
    confined.sync_all()?;
    fault::point("phase: emptied");
    let place = |below: &Path| {
        let path = join(top, below);
        confined
            .place(&path)
            .with_context(|| format!("opening the folder of {path}"))
    };
    for (below, entry) in kept
        .entries
        .iter()
        .filter(|(below, _)| !below.as_os_str().is_empty())
    {
        let to = place(below)?;
        match entry.kind {
            Kind::Folder => to.make_folder()?,
            Kind::Link => to.make_link(
                entry
                    .target
                    .as_ref()
                    .context("a link without a target")?
                    .as_path(),
            )?,
            Kind::File => {
                let from = kept
                    .confined
                    .place(&join(&kept.folder, below))
                    .context("opening what is kept")?;
                let size = from.lstat()?.context("what is kept is gone")?.st_size;
                sparse::copy(&from, &to, u64::try_from(size).unwrap_or(0))?;
            }
        }
    }
    // What is in a folder before the folder.
    for (below, entry) in kept.entries.iter().rev() {
        dress(confined, &place(below)?, entry)?;
    }
    fault::point("phase: filled");
    Ok(())
}

fn dress(confined: &Confined, place: &Place, entry: &Entry) -> Result<()> {
    let (uid, gid) = (
        Some(Uid::from_raw(entry.uid)),
        Some(Gid::from_raw(entry.gid)),
    );
    let no_follow = AtFlags::SYMLINK_NOFOLLOW;
    fault::call("chown", || {
        rustix::fs::chownat(place.folder(), place.name(), uid, gid, no_follow)
    })
    .with_context(|| format!("giving {place} its owner"))?;
    xattrs::write(place, &entry.values()?)?;
    if entry.kind != Kind::Link {
        let mode = Mode::from_raw_mode(entry.mode);
        fault::call("chmod", || {
            rustix::fs::chmodat(place.folder(), place.name(), mode, AtFlags::empty())
        })
        .with_context(|| format!("giving {place} its mode"))?;
    }
    let times = Timestamps {
        last_access: Timespec {
            tv_sec: 0,
            tv_nsec: UTIME_OMIT as _,
        },
        last_modification: Timespec {
            tv_sec: entry.seconds as _,
            tv_nsec: entry.nanoseconds as _,
        },
    };
    fault::call("futimens", || {
        rustix::fs::utimensat(place.folder(), place.name(), &times, no_follow)
    })
    .with_context(|| format!("giving {place} its time"))?;
    match entry.kind {
        Kind::Folder => {
            let folder = confined
                .open_folder(place.path())
                .with_context(|| format!("opening {place}"))?;
            sync_file(&folder, place)
        }
        Kind::File => sync_file(&place.open_file()?, place),
        Kind::Link => Ok(()),
    }
}
