//! A database that bbolt finds sound and that holds something else than the others'. bbolt has no
//! checksums: a page of zeros within a value, a database of another history, or an entry that etcd
//! 3.5.0 to 3.5.2 lost (etcd#13766) show only beside the other members'. Databases that were
//! compacted alike are compared as etcd's own corruption check does it, by `hashkv` at one
//! revision; others by the entries that both hold: what was written at one revision is the same
//! everywhere. Where a majority of the voters agrees, the odd one is taken for damaged, whatever
//! its log is like. A compaction that a kill cut off can make a hash differ although the keys are
//! the same (before 3.4.26 and 3.5.9); then the member gets an equal database, which is no loss.

use std::collections::{BTreeMap, VecDeque};
use std::ops::ControlFlow;

use super::seen::Seen;
use crate::base::ui::Ui;
use crate::etcd::format::bbolt::Bucket;
use crate::etcd::format::crc;
use crate::etcd::read::backend::Backend;
use crate::etcd::read::boot::Problem;
use crate::etcd::read::member::Stored;
use crate::etcd::read::survey::survey;

/// Entries of a database that are held in memory at once.
const WINDOW: usize = 4096;
/// Bytes of a key that are its revision (mvcc/revision.go); a mark for a deletion may follow.
const REVISION: usize = 17;

/// What no majority decides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Doubt {
    /// A sentence.
    pub saw: String,
    /// Whether two hold different things at one revision. Else only hashes differ, which a
    /// compaction that was cut off can do, too.
    pub is_certain: bool,
}

/// Marks those of `seen` whose database is the odd one out of their cluster. What remains open is
/// given.
pub fn mark(seen: &mut [Seen<'_>], ui: &dyn Ui) -> Vec<Doubt> {
    let mut clusters: Vec<Option<u64>> =
        super::plan::clusters(seen).into_iter().map(Some).collect();
    if clusters.is_empty() {
        clusters.push(None);
    }
    let mut doubts = Vec::new();
    for cluster in clusters {
        let voters = voters(seen, cluster);
        // A disk without a log does not say whose it is; its database may well be a witness.
        let belongs =
            |one: &Seen<'_>| one.lends && (one.cluster().is_none() || one.cluster() == cluster);
        let there = seen
            .iter()
            .enumerate()
            .filter(|(_, one)| belongs(one) && !one.is_odd && one.data.facts().is_some());
        let numbers: Vec<usize> = there.map(|(number, _)| number).collect();
        doubts.extend(compare(seen, &numbers, voters, ui));
    }
    doubts
}

/// How many voters there are: a majority of these must agree.
fn voters(seen: &[Seen<'_>], cluster: Option<u64>) -> usize {
    let own: Vec<&Seen<'_>> = seen
        .iter()
        .filter(|seen| seen.lends && seen.cluster() == cluster)
        .collect();
    super::plan::newest_members(&own).map_or(seen.len(), |members| members.voters().count())
}

fn compare(seen: &mut [Seen<'_>], numbers: &[usize], voters: usize, ui: &dyn Ui) -> Option<Doubt> {
    if numbers.len() < 2 {
        return None;
    }
    let same = same_databases(seen, numbers, ui);
    if same.values().all(|same| *same) {
        return None;
    }
    let with = |one: &usize| -> Vec<usize> {
        numbers
            .iter()
            .copied()
            .filter(|other| other == one || same.get(&(*one, *other)) == Some(&true))
            .collect()
    };
    let agreed = numbers
        .iter()
        .map(with)
        .max_by_key(Vec::len)
        .unwrap_or_default();
    let contradicts = |one: usize| {
        agreed
            .iter()
            .any(|other| same.get(&(one, *other)) == Some(&false))
    };
    if agreed.len() <= voters / 2 || agreed.iter().any(|one| contradicts(*one)) {
        return Some(doubt(seen, numbers, &same));
    }
    let saw = format!(
        "the database holds something else than those of {}, which agree",
        names(seen, &agreed)
    );
    let odd: Vec<usize> = numbers
        .iter()
        .copied()
        .filter(|one| contradicts(*one))
        .collect();
    for number in odd {
        let one = &mut seen[number];
        one.is_odd = true;
        one.problems
            .push(Problem::differs(&one.place.db(), saw.clone()));
    }
    None
}

/// Of each two whose databases can be compared: whether they hold the same.
fn same_databases(
    seen: &[Seen<'_>],
    numbers: &[usize],
    ui: &dyn Ui,
) -> BTreeMap<(usize, usize), bool> {
    let hashes = hashes(seen, numbers, ui);
    let mut same = BTreeMap::new();
    for (at, one) in numbers.iter().enumerate() {
        for other in &numbers[at + 1..] {
            let verdict = match (hashes.get(one), hashes.get(other)) {
                (Some(a), Some(b)) if a.0 == b.0 => Some(a == b),
                _ => agree(&seen[*one], &seen[*other]),
            };
            if let Some(verdict) = verdict {
                same.insert((*one, *other), verdict);
                same.insert((*other, *one), verdict);
            }
        }
    }
    same
}

/// What no majority resolves.
fn doubt(seen: &[Seen<'_>], numbers: &[usize], same: &BTreeMap<(usize, usize), bool>) -> Doubt {
    let mut differ = same
        .iter()
        .filter(|(pair, same)| pair.0 < pair.1 && !**same)
        .map(|(pair, _)| *pair);
    let is_certain = differ.any(|(one, other)| agree(&seen[one], &seen[other]) == Some(false));
    let saw = format!(
        "The databases of {} hold different things, and no majority says which one is right: \
         compare what etcd holds afterwards with what is \
         expected.",
        names(seen, numbers)
    );
    Doubt { saw, is_certain }
}

fn names(seen: &[Seen<'_>], numbers: &[usize]) -> String {
    let names = numbers.iter().map(|number| seen[*number].name.as_str());
    names.collect::<Vec<_>>().join(", ")
}

fn opened<'s>(seen: &'s Seen<'_>) -> Option<&'s Backend> {
    match &seen.data.stored {
        Stored::Open(open) => Some(&open.0),
        _ => None,
    }
}

/// By number: where the hash was taken (compaction, revision), and the hash. None where a database
/// is not sound, or has none there.
fn hashes(seen: &[Seen<'_>], numbers: &[usize], ui: &dyn Ui) -> BTreeMap<usize, ((i64, i64), u32)> {
    let facts = |number: &usize| seen[*number].data.facts();
    let mut alike: BTreeMap<i64, i64> = BTreeMap::new();
    for facts in numbers.iter().filter_map(facts) {
        let revision = alike.entry(facts.compacted).or_insert(facts.revision);
        *revision = facts.revision.min(*revision);
    }
    let hash = |number: &usize| {
        let (backend, facts) = (opened(&seen[*number])?, facts(number)?);
        let revision = *alike.get(&facts.compacted)?;
        let what = format!(
            "comparing the database of {} with the others'",
            seen[*number].name
        );
        let progress = ui.begin(&what, Some(backend.db.size()));
        let hash = survey(backend, facts, revision, &*progress).ok()?.hash?;
        Some((*number, ((facts.compacted, revision), hash.hash)))
    };
    numbers.iter().filter_map(hash).collect()
}

/// Whether two hold the same at each revision that both hold. `None` where there is none, or one
/// cannot be read.
fn agree(one: &Seen<'_>, other: &Seen<'_>) -> Option<bool> {
    let (mut one, mut other) = (Entries::of(one)?, Entries::of(other)?);
    let mut have_met = false;
    loop {
        one.fill()?;
        other.fill()?;
        let (Some(a), Some(b)) = (one.window.front(), other.window.front()) else {
            break;
        };
        let order = a.revision().cmp(b.revision());
        if order.is_eq() && a != b {
            return Some(false);
        }
        have_met |= order.is_eq();
        if order.is_le() {
            one.window.pop_front();
        }
        if order.is_ge() {
            other.window.pop_front();
        }
    }
    have_met.then_some(true)
}

/// An entry of the bucket `key`.
#[derive(PartialEq, Eq)]
struct Entry {
    key: Vec<u8>,
    sum: u32,
}

impl Entry {
    fn revision(&self) -> &[u8] {
        self.key.get(..REVISION).unwrap_or(&self.key)
    }
}

/// All entries of a database in their order, some at a time.
struct Entries<'a> {
    backend: &'a Backend,
    bucket: Bucket,
    window: VecDeque<Entry>,
    /// Where it goes on; `None` at its end.
    next: Option<Vec<u8>>,
}

impl<'a> Entries<'a> {
    fn of(seen: &'a Seen<'_>) -> Option<Self> {
        let backend = opened(seen)?;
        let bucket = backend.keys().ok()??;
        Some(Self {
            backend,
            bucket,
            window: VecDeque::new(),
            next: Some(Vec::new()),
        })
    }

    /// Reads on where the window is empty, which it stays at the end. `None` where it cannot be
    /// read.
    fn fill(&mut self) -> Option<()> {
        if let (true, Some(from)) = (self.window.is_empty(), self.next.take()) {
            let window = &mut self.window;
            let walked = self
                .backend
                .db
                .walk(&self.bucket, Some(&from), &mut |item| {
                    window.push_back(Entry {
                        key: item.key.to_vec(),
                        sum: crc::append(0, item.value),
                    });
                    if window.len() < WINDOW {
                        ControlFlow::Continue(())
                    } else {
                        ControlFlow::Break(())
                    }
                });
            walked.ok()?;
            if self.window.len() == WINDOW {
                // The first key behind the last one.
                self.next = self
                    .window
                    .back()
                    .map(|last| [last.key.as_slice(), &[0]].concat());
            }
        }
        Some(())
    }
}
