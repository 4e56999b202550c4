//! What may be done about a full database on which disks: a compaction and the lifting of the alarm
//! are done on all members alike or not at all, because what the members hold must stay the same
//! for each entry of the log.
//!
//! Both are normally entries of the log. Doing them outside is the same only where no entry that
//! they would have acted upon differently is applied by one member before and by another after:
//! between the oldest and the newest database of them nothing may have been written.
//!
//! Under the alarm etcd refuses writes also where their entry is in the log already
//! (applierV3Capped: put, transactions that put, lease grants), and often does not note in its
//! database that it has done so. Such an entry must stay refused when the alarm is lifted, on all
//! members.

use std::collections::BTreeSet;
use std::ops::ControlFlow;

use super::defrag::Defrag;
use crate::etcd::format::raft::{Entry, EntryKind};
use crate::etcd::format::request::{Operation, Request, Txn};
use crate::etcd::read::member::MemberData;
use crate::guest::Guest;

/// AlarmType NOSPACE.
const NO_SPACE: u64 = 1;

/// One member of those given.
#[derive(Debug, Clone, Copy)]
pub struct Given<'a> {
    /// What was named.
    pub source: &'a str,
    /// The guest.
    pub guest: &'a Guest,
    /// The member.
    pub data: &'a MemberData,
}

/// What is decided, for all alike.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Decision {
    /// The revision to compact at.
    pub compaction: Option<i64>,
    /// Why not, where it was asked for.
    pub not_compacted: Option<String>,
    /// Members whose alarm is lifted.
    pub lift_alarms_of: Vec<u64>,
    /// Why not, where there is one.
    pub not_lifted: Option<String>,
    /// For each member: the entry that its database is said to hold from now on, where the log has
    /// entries behind that one which raise the alarm, or were refused under it.
    pub passed: Vec<Option<Passed>>,
}

/// An entry of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Passed {
    /// Its index.
    pub index: u64,
    /// Its term.
    pub term: u64,
}

impl Decision {
    /// What can be done on these members. `quota` is the size from which etcd raises the alarm;
    /// `size_after` what the largest database will have at most.
    pub fn of(given: &[Given<'_>], compact: bool, quota: u64, size_after: u64) -> Self {
        let mut decision = Self::default();
        let alarmed: Vec<Alarmed> = given.iter().map(Alarmed::of).collect();
        if compact {
            match may_compact(given) {
                Ok(revision) => decision.compaction = revision,
                Err(why) => decision.not_compacted = Some(why),
            }
        }
        let alarms: BTreeSet<u64> = alarmed
            .iter()
            .flat_map(|alarmed| &alarmed.raised)
            .copied()
            .collect();
        if !alarms.is_empty() {
            // A compaction may free more than is known before.
            let is_small = size_after < quota || decision.compaction.is_some();
            let may = match is_small {
                true => may_lift(given, &alarmed, &alarms),
                false => Err(
                    "the database is as large as the quota even without its free pages".to_owned(),
                ),
            };
            match may {
                Ok(()) => {
                    decision.lift_alarms_of = alarms.into_iter().collect();
                    decision.passed = alarmed.into_iter().map(|alarmed| alarmed.last).collect();
                }
                Err(why) => decision.not_lifted = Some(why),
            }
        }
        decision
    }

    /// Of members that do not share their state, because of `why`: nothing of it is changed.
    pub fn apart(given: &[Given<'_>], compact: bool, why: &str) -> Self {
        let is_full = given
            .iter()
            .any(|given| !Alarmed::of(given).raised.is_empty());
        let why = |is_asked: bool| is_asked.then(|| why.to_owned());
        Self {
            not_compacted: why(compact),
            not_lifted: why(is_full),
            ..Self::default()
        }
    }

    /// Into the recipe of one of the members, by its number.
    pub fn apply(&self, number: usize, recipe: &mut Defrag) {
        recipe.compaction = self.compaction;
        recipe.lift_alarms_of.clone_from(&self.lift_alarms_of);
        if let Some(Some(passed)) = self.passed.get(number) {
            recipe.passed = Some(*passed);
            recipe.holds.0 = passed.index;
        }
    }
}

/// The alarm as a member has it. etcd before 3.5.5 writes it into the database without saying that
/// it has applied the entry, and applies it again at its next start (etcd-io/etcd#14382).
struct Alarmed {
    /// By database and log.
    raised: BTreeSet<u64>,
    /// The last entry beyond the database that is about it, or that etcd refused because of it.
    last: Option<Passed>,
    /// An entry up to that one which must not be passed over, or 0 for none.
    needed: u64,
}

impl Alarmed {
    fn of(given: &Given<'_>) -> Self {
        let facts = given.data.facts();
        let alarms = facts
            .map(|facts| facts.alarms.as_slice())
            .unwrap_or_default();
        let raised = alarms
            .iter()
            .filter(|alarm| alarm.is_no_space())
            .map(|alarm| alarm.member)
            .collect();
        let mut alarmed = Self {
            raised,
            last: None,
            needed: 0,
        };
        let mut first_needed = 0;
        let from = given.data.consistent_index().saturating_add(1);
        let visited = given
            .data
            .log
            .visit(given.guest, from, u64::MAX, &mut |entry| {
                let request = Request::parse(entry.data);
                match request {
                    Ok(Request::Alarm(alarm))
                        if entry.kind == EntryKind::Normal && alarm.kind == NO_SPACE =>
                    {
                        match alarm.raise {
                            true => alarmed.raised.insert(alarm.member),
                            false => alarmed.raised.remove(&alarm.member),
                        };
                        alarmed.pass(entry, first_needed);
                    }
                    Ok(request)
                        if entry.kind == EntryKind::Normal
                            && !alarmed.raised.is_empty()
                            && is_write(&request) =>
                    {
                        alarmed.pass(entry, first_needed);
                    }
                    // What is not in the keys: etcd applies these from its snapshot on, whatever
                    // the database says, or they do nothing.
                    Ok(
                        Request::Nothing
                        | Request::MemberAttributes { .. }
                        | Request::MemberAttributesSet { .. }
                        | Request::ClusterVersion(_),
                    ) if entry.kind == EntryKind::Normal => {}
                    _ if first_needed == 0 => first_needed = entry.index,
                    _ => {}
                }
                ControlFlow::Continue(())
            });
        if visited.is_err() {
            alarmed.needed = from;
        }
        alarmed
    }

    fn pass(&mut self, entry: &Entry<'_>, first_needed: u64) {
        self.last = Some(Passed {
            index: entry.index,
            term: entry.term,
        });
        self.needed = first_needed;
    }
}

/// What etcd refuses under the alarm.
fn is_write(request: &Request<'_>) -> bool {
    match request {
        Request::Put(_) | Request::LeaseGrant(_) => true,
        Request::Txn(txn) => writes(txn),
        _ => false,
    }
}

/// All voters that any of them knows must be given.
fn all_there(given: &[Given<'_>]) -> Result<(), String> {
    let there: BTreeSet<u64> = given
        .iter()
        .filter_map(|given| Some(given.data.log.identity?.member))
        .collect();
    for one in given {
        let members = one.data.membership().0;
        let absent: Vec<String> = members
            .list
            .values()
            .filter(|member| !there.contains(&member.id))
            .map(|member| {
                if member.name.is_empty() {
                    format!("{:x}", member.id)
                } else {
                    member.name.clone()
                }
            })
            .collect();
        if !absent.is_empty() {
            return Err(format!(
                "it is done on all members or on none, and {} was not given",
                absent.join(", ")
            ));
        }
    }
    Ok(())
}

/// The newest revision that all hold.
fn may_compact(given: &[Given<'_>]) -> Result<Option<i64>, String> {
    all_there(given)?;
    let facts: Vec<_> = given
        .iter()
        .filter_map(|given| given.data.facts())
        .collect();
    let revision = facts.iter().map(|facts| facts.revision).min();
    let compacted = facts
        .iter()
        .map(|facts| facts.compacted)
        .max()
        .unwrap_or(-1);
    let newest = facts
        .iter()
        .map(|facts| facts.consistent_index)
        .max()
        .unwrap_or(0);
    for one in given {
        let reads_old = in_tail(one, &mut |index, request| {
            index <= newest && matches!(request, Request::Txn(txn) if reads_history(txn))
        });
        if let Some(index) = reads_old {
            return Err(format!(
                "entry {index} of the log on {} reads old revisions, and not all databases hold it \
                 yet",
                one.source
            ));
        }
    }
    all_reach(given, newest)?;
    Ok(revision.filter(|revision| *revision > compacted))
}

/// Without the alarm writes are applied that with it are not.
fn may_lift(
    given: &[Given<'_>],
    alarmed: &[Alarmed],
    alarms: &BTreeSet<u64>,
) -> Result<(), String> {
    all_there(given)?;
    let reached = |one: &Given<'_>, alarmed: &Alarmed| {
        one.data
            .consistent_index()
            .max(alarmed.last.map_or(0, |last| last.index))
    };
    let newest = given
        .iter()
        .zip(alarmed)
        .map(|(one, alarmed)| reached(one, alarmed))
        .max()
        .unwrap_or(0);
    for (one, alarmed) in given.iter().zip(alarmed) {
        if alarmed.raised != *alarms {
            return Err(format!(
                "not all members have the same alarms; {} has others",
                one.source
            ));
        }
        if alarmed.needed > 0 {
            return Err(format!(
                "entry {} of the log on {} is not in its database yet, and behind it are entries \
                 that raise the alarm or were refused under it",
                alarmed.needed, one.source
            ));
        }
        let from = reached(one, alarmed);
        let differs = in_tail(one, &mut |index, request| {
            index > from && index <= newest && is_write(request)
        });
        if let Some(index) = differs {
            return Err(format!(
                "entry {index} of the log on {} is not in its database yet, and would not be \
                 applied as the others applied it",
                one.source
            ));
        }
    }
    all_reach(given, newest)
}

/// Up to what any of them has applied, or passes over, the entries must be in the logs of all: what
/// one got only later it would apply as the others did not, and what only one has may yet be given
/// up.
fn all_reach(given: &[Given<'_>], index: u64) -> Result<(), String> {
    let terms: BTreeSet<u64> = given
        .iter()
        .filter_map(|one| one.data.log.term_of(index))
        .collect();
    match given.iter().find(|one| one.data.log.last < index) {
        Some(one) => Err(format!(
            "the log on {} does not reach entry {index}, which others have applied",
            one.source
        )),
        None if terms.len() > 1 => Err(format!("entry {index} is not the same on all of them")),
        None => Ok(()),
    }
}

/// The first entry beyond the database of which `is_one` holds; also one that cannot be read.
fn in_tail(one: &Given<'_>, is_one: &mut dyn FnMut(u64, &Request<'_>) -> bool) -> Option<u64> {
    let from = one.data.consistent_index().saturating_add(1);
    let mut found = None;
    let visited = one.data.log.visit(one.guest, from, u64::MAX, &mut |entry| {
        let differs = entry.kind == EntryKind::Normal
            && Request::parse(entry.data).map_or(true, |request| is_one(entry.index, &request));
        if differs {
            found = Some(entry.index);
            return ControlFlow::Break(());
        }
        ControlFlow::Continue(())
    });
    match visited {
        Ok(_) => found,
        Err(_) => Some(from),
    }
}

fn operations<'t>(txn: &'t Txn<'t>) -> impl Iterator<Item = &'t Operation<'t>> {
    txn.success.iter().chain(&txn.failure)
}

fn writes(txn: &Txn<'_>) -> bool {
    operations(txn).any(|operation| match operation {
        Operation::Put(_) => true,
        Operation::Txn(within) => writes(within),
        Operation::Delete(_) | Operation::Range { .. } => false,
    })
}

fn reads_history(txn: &Txn<'_>) -> bool {
    operations(txn).any(|operation| match operation {
        Operation::Range { revision } => *revision > 0,
        Operation::Txn(within) => reads_history(within),
        Operation::Put(_) | Operation::Delete(_) => false,
    })
}
