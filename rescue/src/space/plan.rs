//! From a walk to candidates: least valuable first, until enough is free.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ffi::OsStr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::change::{FreeAction, Freeing};
use crate::disk::Backing;
use crate::guest::{FileSystem, Guest, GuestPath, RealPath};
use crate::in_use::held_open::HeldOpen;
use crate::node::Node;
use crate::tree::{Meta, Tree, Usage};

use super::assess::Goal;
use super::never::Never;
use super::rules::{Class, LAST, LONG_TAIL, Newest, RULES, Rule, Verdict, Wants, judge};
use super::sniff::journal_boot_id;
use super::usage::after_freeing;
use super::walk::{Visitor, allocated};

/// Files that rules may mean, kept while walking; about 50 MiB of memory at most. More than that is
/// only counted.
const MAX_PROSPECTS: usize = 200_000;

/// Files left alone that are named.
const MAX_SPARED: usize = 50;

/// Cutting a file for less than this is not worth it.
const LEAST_CUT: u64 = 1 << 20;

/// A file is only shown as temporary when nobody wrote it for so long, in seconds.
const TEMPORARY_AGE: i64 = 30 * 86_400;

/// Blocks of a file's kept tail are whole.
const BLOCK: u64 = 4096;

/// One file to be freed, with all its names.
#[derive(Debug, Clone)]
pub struct Candidate {
    /// Its name, free of symbolic links.
    pub path: RealPath,
    /// Further names of the same inode (hard links); all of them go.
    pub other_names: Vec<RealPath>,
    /// Delete, or keep a tail.
    pub freeing: Freeing,
    /// Apparent size.
    pub size: u64,
    /// Modification time, seconds since 1970.
    pub mtime: i64,
    /// Bytes it gives back.
    pub frees: u64,
    /// Why.
    pub rule: &'static Rule,
    /// What it was found to be.
    pub saw: String,
}

impl Candidate {
    /// One action for each of its names.
    pub fn actions(&self) -> impl Iterator<Item = FreeAction> + '_ {
        let action = |path: &RealPath, frees| FreeAction {
            path: path.clone(),
            freeing: self.freeing,
            size: self.size,
            mtime: self.mtime,
            frees,
        };
        let others = self.other_names.iter().map(move |path| action(path, 0));
        std::iter::once(action(&self.path, self.frees)).chain(others)
    }

    fn inodes(&self) -> u64 {
        u64::from(self.freeing == Freeing::Delete)
    }
}

/// A file that a rule's names mean, and that stays.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spared {
    /// Which.
    pub path: GuestPath,
    /// Its allocated bytes.
    pub bytes: u64,
    /// Why it stays.
    pub why: String,
}

/// What a rule of [`Class::Show`] found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Shown {
    /// Files.
    pub files: u64,
    /// Their allocated bytes.
    pub bytes: u64,
}

/// What would be freed on one file system.
#[derive(Debug, Clone, Default)]
pub struct Plan {
    /// In the order in which they go.
    pub candidates: Vec<Candidate>,
    /// Usage after all of them.
    pub after: Usage,
    /// Whether that is enough.
    pub enough: bool,
    /// The largest files that were looked at and stay.
    pub spared: Vec<Spared>,
    /// What is only shown, by rule.
    pub shown: Vec<(&'static Rule, Shown)>,
}

/// A file that a rule's place and names mean; what it really is has not been looked at.
#[derive(Debug)]
struct Prospect {
    path: PathBuf,
    meta: Meta,
    rule: &'static Rule,
    /// Later than its rule's rank for the newest of a series.
    rank: u16,
    newest: bool,
}

/// Collects what rules may mean, during a walk.
#[derive(Debug)]
pub struct Collector {
    /// Places of rules, their links resolved.
    places: Vec<(PathBuf, &'static Rule)>,
    never: Never,
    now: i64,
    here: Vec<&'static Rule>,
    prospects: Vec<Prospect>,
    spared: Vec<Spared>,
    shown: BTreeMap<&'static str, (&'static Rule, Shown)>,
    /// Files past [`MAX_PROSPECTS`].
    left_out: u64,
}

impl Collector {
    /// For one guest; `now` in seconds since 1970.
    pub fn new(guest: &Guest, node: &Node, now: i64) -> Self {
        let never = Never::of(guest, node);
        let mut spared = Vec::new();
        let mut places = Vec::new();
        let mut refused = HashSet::new();
        for rule in RULES {
            for place in rule.places {
                let Ok(real) = guest.resolve(&GuestPath::new(place)) else {
                    continue;
                };
                let real = real.as_path().to_path_buf();
                // A link may lead logs to a data disk, and a hostile one to /etc: the never-list
                // decides.
                if real != Path::new(place) && rule.class != Class::Show && never.touches(&real) {
                    if refused.insert(*place) {
                        let why = format!(
                            "a link leads it to {}, of which nothing may go",
                            GuestPath::new(&real)
                        );
                        spared.push(Spared {
                            path: GuestPath::new(place),
                            bytes: 0,
                            why,
                        });
                    }
                    continue;
                }
                places.push((real, rule));
            }
        }
        Self {
            places,
            never,
            now,
            here: Vec::new(),
            prospects: Vec::new(),
            spared,
            shown: BTreeMap::new(),
            left_out: 0,
        }
    }

    /// Chooses until `goal` is met on `fs`.
    pub fn choose(mut self, tree: &dyn Tree, fs: &FileSystem, goal: Goal) -> Plan {
        mark_newest(&mut self.prospects);
        mark_last_boot(tree, &mut self.prospects);
        self.prospects.sort_by(|a, b| {
            (a.rank, a.meta.mtime, a.path.as_path()).cmp(&(b.rank, b.meta.mtime, b.path.as_path()))
        });
        let names = names_by_inode(&self.prospects);
        let mut chosen = Chosen {
            fs,
            goal: with_margin(goal, &fs.usage),
            bytes: 0,
            inodes: 0,
            candidates: Vec::new(),
        };
        let mut inodes_done = HashSet::new();
        let held = Held::on(fs);
        for prospect in &std::mem::take(&mut self.prospects) {
            if chosen.is_enough() {
                break;
            }
            if prospect.meta.nlink.unwrap_or(1) > 1
                && prospect
                    .meta
                    .ino
                    .is_some_and(|ino| !inodes_done.insert(ino))
            {
                continue;
            }
            if let Some(holder) = held.as_ref().and_then(|held| held.holder(&prospect.meta)) {
                self.spare(
                    &prospect.path,
                    allocated(&prospect.meta),
                    format!("{holder} holds it open"),
                );
                continue;
            }
            match candidate(tree, prospect, &names) {
                Ok(Some(candidate)) => chosen.add(candidate),
                Ok(None) => {}
                Err(why) => self.spare(&prospect.path, allocated(&prospect.meta), why),
            }
        }
        if self.left_out > 0 {
            let why = format!(
                "{} further files were not looked at in this run",
                self.left_out
            );
            self.spare(fs.mount_point.as_path(), 0, why);
        }
        self.keep_largest_spared();
        let after = after_freeing(fs, chosen.bytes, chosen.inodes);
        Plan {
            enough: goal.is_met_by(&after),
            after,
            candidates: chosen.candidates,
            spared: self.spared,
            shown: self.shown.into_values().collect(),
        }
    }
}

impl Collector {
    fn spare(&mut self, path: &Path, bytes: u64, why: String) {
        self.spared.push(Spared {
            path: GuestPath::new(path),
            bytes,
            why,
        });
        if self.spared.len() > 4 * MAX_SPARED {
            self.keep_largest_spared();
        }
    }

    fn keep_largest_spared(&mut self) {
        self.spared
            .sort_by(|a, b| b.bytes.cmp(&a.bytes).then_with(|| a.path.cmp(&b.path)));
        self.spared.truncate(MAX_SPARED);
    }
}

impl Visitor for Collector {
    fn enter(&mut self, folder: &Path) {
        self.here.clear();
        for (place, rule) in &self.places {
            let Ok(below) = folder.strip_prefix(place) else {
                continue;
            };
            let first = below
                .components()
                .next()
                .map(|first| first.as_os_str().to_string_lossy());
            if rule.reaches(below.components().count(), first.as_deref()) {
                self.here.push(rule);
            }
        }
    }

    fn file(&mut self, folder: &Path, name: &OsStr, meta: &Meta) {
        if self.here.is_empty() {
            return;
        }
        let shown = name.to_string_lossy();
        let Some(rule) = self.here.iter().find(|rule| (rule.matches)(&shown)) else {
            return;
        };
        let rule: &'static Rule = rule;
        if rule.class == Class::Show {
            if rule.id != "temporary-files" || meta.mtime < self.now.saturating_sub(TEMPORARY_AGE) {
                let entry = &mut self
                    .shown
                    .entry(rule.id)
                    .or_insert((rule, Shown::default()))
                    .1;
                entry.files += 1;
                entry.bytes = entry.bytes.saturating_add(allocated(meta));
            }
            return;
        }
        let path = folder.join(name);
        if let Some(why) = self.never.forbids(&path) {
            self.spare(&path, allocated(meta), why);
            return;
        }
        if self.prospects.len() >= MAX_PROSPECTS {
            self.left_out += 1;
            return;
        }
        self.prospects.push(Prospect {
            path,
            meta: meta.clone(),
            rule,
            rank: rule.rank,
            newest: false,
        });
    }
}

/// Files of one folder guest that processes of this machine have open.
struct Held {
    open: HeldOpen,
    device: u64,
}

impl Held {
    /// `None` for disks: nobody but us opens their files.
    fn on(fs: &FileSystem) -> Option<Self> {
        let Backing::Folder(folder) = &fs.backing else {
            return None;
        };
        let device = std::fs::metadata(folder).ok()?.dev();
        Some(Self {
            open: HeldOpen::scan(),
            device,
        })
    }

    fn holder(&self, meta: &Meta) -> Option<String> {
        self.open
            .holder(self.device, meta.ino?)
            .map(ToString::to_string)
    }
}

/// What was chosen so far.
struct Chosen<'a> {
    fs: &'a FileSystem,
    goal: Goal,
    bytes: u64,
    inodes: u64,
    candidates: Vec<Candidate>,
}

impl Chosen<'_> {
    fn after(&self) -> Usage {
        after_freeing(self.fs, self.bytes, self.inodes)
    }

    fn is_enough(&self) -> bool {
        self.goal.is_met_by(&self.after())
    }

    /// Leaves out what does not bring the goal nearer.
    fn add(&mut self, candidate: Candidate) {
        let after = self.after();
        let needs_bytes = after.bytes_available < self.goal.bytes;
        let needs_inodes = after.inodes_total > 0 && after.inodes_free < self.goal.inodes;
        let helps =
            (needs_bytes && candidate.frees > 0) || (needs_inodes && candidate.inodes() > 0);
        if helps {
            self.bytes = self.bytes.saturating_add(candidate.frees);
            self.inodes = self.inodes.saturating_add(candidate.inodes());
            self.candidates.push(candidate);
        }
    }
}

/// A little more than the goal: the repair itself writes its journal, backups and new files to the
/// same disk.
fn with_margin(goal: Goal, usage: &Usage) -> Goal {
    let bytes = goal
        .bytes
        .saturating_add((usage.bytes_total / 500).min(64 << 20))
        .min(usage.bytes_total);
    Goal {
        bytes,
        inodes: goal.inodes.saturating_add(64).min(usage.inodes_total),
    }
}

/// `Err` says why the file stays; `None` where cutting it is not worth it.
fn candidate(
    tree: &dyn Tree,
    prospect: &Prospect,
    names: &HashMap<u64, Vec<PathBuf>>,
) -> Result<Option<Candidate>, String> {
    let (rule, meta) = (prospect.rule, &prospect.meta);
    if prospect.newest && rule.newest == Newest::Stays {
        return Err("it is the newest of its kind".into());
    }
    let keeps_tail = match rule.class {
        Class::KeepTail(keep) => Some(keep),
        _ => None,
    };
    let held = allocated(meta);
    if keeps_tail.is_some_and(|keep| cut_frees(held, meta.size, keep) < LEAST_CUT) {
        return Ok(None);
    }
    let other_names = further_names(prospect, names, keeps_tail.is_some())?;
    let saw = match judge(rule, tree, &prospect.path, meta.size) {
        Ok(Verdict::Goes(saw)) => saw,
        Ok(Verdict::Stays(why)) => return Err(why),
        Err(error) => return Err(format!("it cannot be read: {error}")),
    };
    // Text of the newest generation is cut, not deleted: it may tell how the outage began.
    let is_text = ["log lines", "text without times"].contains(&saw.as_str());
    let keep =
        keeps_tail.or((prospect.newest && is_text && other_names.is_empty()).then_some(LONG_TAIL));
    let (freeing, frees) = match keep {
        Some(keep) => (Freeing::KeepTail(keep), cut_frees(held, meta.size, keep)),
        None => (Freeing::Delete, held),
    };
    if keep.is_some() && frees < LEAST_CUT {
        return Ok(None);
    }
    Ok(Some(Candidate {
        path: RealPath::new(prospect.path.clone()),
        other_names,
        freeing,
        size: meta.size,
        mtime: meta.mtime,
        frees,
        rule,
        saw,
    }))
}

/// Bytes that cutting gives back for certain; of a file with holes perhaps more.
fn cut_frees(held: u64, size: u64, keep: u64) -> u64 {
    if size <= keep {
        return 0;
    }
    held.saturating_sub(keep.next_multiple_of(BLOCK).saturating_add(BLOCK))
}

fn further_names(
    prospect: &Prospect,
    names: &HashMap<u64, Vec<PathBuf>>,
    keeps_tail: bool,
) -> Result<Vec<RealPath>, String> {
    let (nlink, ino) = (prospect.meta.nlink.unwrap_or(1), prospect.meta.ino);
    let Some(ino) = ino.filter(|_| nlink > 1) else {
        return Ok(Vec::new());
    };
    let known = names.get(&ino).map_or(&[][..], Vec::as_slice);
    if keeps_tail || (known.len() as u64) < nlink {
        return Err(format!(
            "it has {nlink} names (hard links), and not all of them may go"
        ));
    }
    Ok(known
        .iter()
        .filter(|path| **path != prospect.path)
        .map(|path| RealPath::new(path.clone()))
        .collect())
}

fn names_by_inode(prospects: &[Prospect]) -> HashMap<u64, Vec<PathBuf>> {
    let mut names: HashMap<u64, Vec<PathBuf>> = HashMap::new();
    for prospect in prospects
        .iter()
        .filter(|prospect| prospect.meta.nlink.unwrap_or(1) > 1 && !prospect.newest)
    {
        if let (Some(ino), Class::Delete) = (prospect.meta.ino, prospect.rule.class) {
            names.entry(ino).or_default().push(prospect.path.clone());
        }
    }
    names
}

/// Finds the newest file of each series. One that stands alone is the newest.
fn mark_newest(prospects: &mut [Prospect]) {
    let mut newest: HashMap<(PathBuf, &'static str, String), usize> = HashMap::new();
    for (index, prospect) in prospects.iter().enumerate() {
        if prospect.rule.newest == Newest::Goes {
            continue;
        }
        let name = prospect
            .path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy();
        let folder = match prospect.rule.wants {
            // Each kernel dump has a folder of its own.
            Wants::CrashDump => PathBuf::new(),
            _ => prospect
                .path
                .parent()
                .unwrap_or(Path::new("/"))
                .to_path_buf(),
        };
        let key = (folder, prospect.rule.id, prospect.rule.series(&name));
        let best = newest.entry(key).or_insert(index);
        // Of two written in the same second, `x.1` is newer than `x.2`.
        let is_newer = prospects.get(*best).is_some_and(|best| {
            let (a, b) = (prospect, best);
            (a.meta.mtime, std::cmp::Reverse(&a.path)) > (b.meta.mtime, std::cmp::Reverse(&b.path))
        });
        if is_newer {
            *best = index;
        }
    }
    for index in newest.into_values() {
        if let Some(prospect) = prospects.get_mut(index) {
            prospect.newest = true;
            prospect.rank = LAST + prospect.rule.rank / 10;
        }
    }
}

/// Journals of the boot that wrote last are evidence of the outage: they go last as well.
fn mark_last_boot(tree: &dyn Tree, prospects: &mut [Prospect]) {
    let mut last_boot: HashMap<PathBuf, Option<[u8; 16]>> = HashMap::new();
    let boot_of = |path: &Path| journal_boot_id(&tree.read_range(path, 0, 256).ok()?);
    for prospect in prospects
        .iter_mut()
        .filter(|prospect| prospect.rule.wants == Wants::OldJournal)
    {
        let Some(folder) = prospect.path.parent() else {
            continue;
        };
        let last = *last_boot
            .entry(folder.to_path_buf())
            .or_insert_with(|| boot_of(&folder.join("system.journal")));
        if last.is_some() && boot_of(&prospect.path) == last {
            prospect.rank = LAST + prospect.rule.rank / 10;
        }
    }
}
