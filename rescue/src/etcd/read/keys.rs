//! The keys that a member holds: its database, and on top of it what its log has beyond. The log's
//! requests are applied as etcd applies them (server/etcdserver/apply, mvcc, lease), so that keys
//! and revisions are those that etcd itself has after its next start.

use std::collections::{BTreeMap, HashSet};
use std::ops::ControlFlow;
use std::rc::Rc;

use super::backend::{AlarmKind, Facts, KeyValue, RaisedAlarm, Revision};
use super::kubernetes;
use super::member::{MemberData, Stored};
use crate::etcd::format::bbolt::Fault;
use crate::etcd::format::request::{
    Compare, Comparison, Operation, Put, Range, Request, Target, Txn,
};
use crate::guest::Guest;
use crate::tree::TreeError;

/// More keys of interest than any tail of a log has.
const MAX_INTEREST: usize = 2_000_000;

/// Which keys are asked for.
#[derive(Debug, Clone)]
pub enum Selection {
    /// All that begin so, without their values.
    Prefix(Vec<u8>),
    /// One, with its value.
    Key(Vec<u8>),
    /// Some few, with their values.
    Keys(Vec<Vec<u8>>),
    /// Many small ones.
    Trimmed(Trimmed),
}

/// All keys that begin in one of some ways, and of each value only what is wanted of it.
#[derive(Debug, Clone)]
pub struct Trimmed {
    /// How the keys begin.
    pub prefixes: Vec<Vec<u8>>,
    /// Key and value to what is kept of the value.
    pub trim: fn(&[u8], &[u8]) -> Vec<u8>,
    /// No more keys than these are taken.
    pub limit: usize,
}

impl Selection {
    fn contains(&self, key: &[u8]) -> bool {
        match self {
            Self::Prefix(prefix) => key.starts_with(prefix),
            Self::Key(wanted) => key == wanted,
            Self::Keys(wanted) => wanted.iter().any(|wanted| key == wanted),
            Self::Trimmed(trimmed) => trimmed
                .prefixes
                .iter()
                .any(|prefix| key.starts_with(prefix)),
        }
    }

    fn wants_values(&self) -> bool {
        matches!(self, Self::Key(_) | Self::Keys(_))
    }

    /// What is to be kept of a value that is not compared with anything.
    fn trimmed(&self, key: &[u8], value: &[u8]) -> Option<Vec<u8>> {
        match self {
            Self::Trimmed(trimmed) => Some((trimmed.trim)(key, value)),
            _ => None,
        }
    }

    fn is_full(&self, keys: usize) -> bool {
        matches!(self, Self::Trimmed(trimmed) if keys > trimmed.limit)
    }
}

/// A key as it is now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    /// Revision of its creation.
    pub create: i64,
    /// Revision of its last change.
    pub modified: i64,
    /// How often it was written since its creation.
    pub version: i64,
    /// The lease it hangs on; 0 for none.
    pub lease: i64,
    /// Bytes of its value.
    pub size: usize,
    /// What kind of object Kubernetes keeps there, where the value says so.
    pub kind: Option<Rc<str>>,
    /// The value, where it was asked for.
    pub value: Option<Vec<u8>>,
}

/// What a member holds.
#[derive(Debug)]
pub struct View {
    /// The keys asked for.
    pub keys: BTreeMap<Vec<u8>, Held>,
    /// The newest revision, the log included.
    pub revision: i64,
    /// History up to here is gone; -1 where nothing was compacted.
    pub compacted: i64,
    /// The last entry that is in it.
    pub applied: u64,
    /// Entries at the end that this disk does not know to be agreed on: another member may have
    /// dropped them.
    pub uncertain: u64,
    /// What keeps it from being what etcd will have: whole sentences.
    pub doubts: Vec<String>,
}

/// Why there is nothing to show.
#[derive(Debug, thiserror::Error)]
pub enum NoView {
    /// The database is damaged.
    #[error("the database is damaged: {0}")]
    Fault(#[from] Fault),
    /// The log cannot be read.
    #[error(transparent)]
    Tree(#[from] TreeError),
    /// There is no database.
    #[error("there is no database")]
    Missing,
    /// A crafted log.
    #[error("its log touches more keys than any log does")]
    Implausible,
    /// A crafted database.
    #[error("it holds more of these keys than any cluster does")]
    TooMany,
}

/// Keys that the log's tail asks about or changes, for which the database's word is needed.
#[derive(Default)]
struct Interest {
    keys: HashSet<Vec<u8>>,
    ranges: Vec<(Vec<u8>, Vec<u8>)>,
    /// Whose values are compared.
    values: Vec<(Vec<u8>, Vec<u8>)>,
    leases: HashSet<i64>,
}

impl Interest {
    fn request(&mut self, request: &Request<'_>) {
        match request {
            Request::Put(put) => self.key(put.key),
            Request::Delete(range) => self.range(range),
            Request::Txn(txn) => self.txn(txn),
            Request::LeaseRevoke(id) => {
                self.leases.insert(*id);
            }
            _ => {}
        }
    }

    fn txn(&mut self, txn: &Txn<'_>) {
        for compare in &txn.compare {
            self.range(&compare.range);
            if matches!(compare.target, Target::Value(_)) {
                self.values
                    .push((compare.range.key.to_vec(), compare.range.end.to_vec()));
            }
        }
        for operation in txn.success.iter().chain(&txn.failure) {
            match operation {
                Operation::Put(put) => self.key(put.key),
                Operation::Delete(range) => self.range(range),
                Operation::Txn(txn) => self.txn(txn),
                Operation::Range { .. } => {}
            }
        }
    }

    fn key(&mut self, key: &[u8]) {
        if !self.keys.contains(key) {
            self.keys.insert(key.to_vec());
        }
    }

    fn range(&mut self, range: &Range<'_>) {
        if range.end.is_empty() {
            self.key(range.key);
        } else if !self
            .ranges
            .iter()
            .any(|(key, end)| key == range.key && end == range.end)
        {
            self.ranges.push((range.key.to_vec(), range.end.to_vec()));
        }
    }

    fn contains(&self, key: &[u8]) -> bool {
        self.keys.contains(key) || in_any(&self.ranges, key)
    }

    fn is_too_large(&self) -> bool {
        self.keys.len() + self.leases.len() > MAX_INTEREST
            || self.ranges.len() + self.values.len() > 10_000
    }
}

fn in_any(ranges: &[(Vec<u8>, Vec<u8>)], key: &[u8]) -> bool {
    ranges
        .iter()
        .any(|(from, end)| Range { key: from, end }.contains(key))
}

/// Reads what a member holds.
///
/// # Errors
/// [`NoView`] where its database cannot be read.
pub fn view(guest: &Guest, data: &MemberData, selection: &Selection) -> Result<View, NoView> {
    let empty = Facts {
        compacted: -1,
        revision: 1,
        ..Facts::default()
    };
    let facts = match &data.stored {
        Stored::Open(open) => &open.1,
        // etcd makes it anew from a log that is there from its first entry.
        Stored::Missing if data.log.first == 1 && !data.log.is_empty() => &empty,
        Stored::Missing => return Err(NoView::Missing),
        Stored::Damaged(fault) => {
            return Err(NoView::Fault(Fault::Page {
                page: 0,
                what: shown(fault),
            }));
        }
    };
    let mut machine = Machine::new(facts, selection);
    let from = facts.consistent_index.saturating_add(1);
    let continues = data.log.first <= from;
    let mut failed = None;
    if continues {
        data.log.visit(guest, from, u64::MAX, &mut |entry| {
            // Changes of the membership are messages of another kind.
            if entry.kind == crate::etcd::format::raft::EntryKind::Normal {
                match Request::parse(entry.data) {
                    Ok(request) => machine.interest.request(&request),
                    Err(_) => failed = Some(entry.index),
                }
            }
            if machine.interest.is_too_large() || failed.is_some() {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        })?;
        if machine.interest.is_too_large() {
            return Err(NoView::Implausible);
        }
    }
    if let Stored::Open(open) = &data.stored
        && let Some(bucket) = open.0.keys()?
    {
        open.0.db.walk(&bucket, None, &mut |item| {
            machine.load(item.key, item.value);
            if machine.is_full() {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        })?;
    }
    let mut applied = facts.consistent_index;
    if continues {
        let to = failed.map_or(u64::MAX, |index| index.saturating_sub(1));
        data.log.visit(guest, from, to, &mut |entry| {
            if entry.kind == crate::etcd::format::raft::EntryKind::Normal
                && let Ok(request) = Request::parse(entry.data)
            {
                machine.apply(&request);
            }
            applied = entry.index;
            if machine.is_full() {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        })?;
    }
    if machine.is_full() {
        return Err(NoView::TooMany);
    }
    let mut doubts = Vec::new();
    if !continues && !data.log.is_empty() {
        doubts.push(format!(
            "The log begins with entry {}, the database ends with {}: only the database is shown.",
            data.log.first, facts.consistent_index
        ));
    }
    if let Some(index) = failed {
        doubts.push(format!(
            "Entry {index} of the log is none that etcd writes: it and what follows is not shown."
        ));
    }
    if facts.auth_enabled {
        doubts.push(
            "Authentication is on: permissions of writes in the log's tail were not looked at."
                .to_owned(),
        );
    }
    Ok(machine.finish(applied, data.commit(), doubts))
}

/// A fault for a second time: the database was not opened when the member was read.
fn shown(fault: &Fault) -> &'static str {
    match fault {
        Fault::Page { what, .. } => what,
        Fault::Metas(..) => "both of its meta pages are damaged",
        Fault::Short(_) => "it is cut short",
        Fault::Implausible(_) => "a page is larger than any that bbolt writes",
        Fault::Tree(_) => "it cannot be read",
    }
}

/// etcd's state machine, for the keys that matter.
struct Machine<'a> {
    selection: &'a Selection,
    interest: Interest,
    keys: BTreeMap<Vec<u8>, Held>,
    /// Selected keys that came in, those that were deleted again too.
    taken: usize,
    leases: std::collections::BTreeSet<i64>,
    alarms: Vec<RaisedAlarm>,
    revision: i64,
    compacted: i64,
    kinds: HashSet<Rc<str>>,
}

impl<'a> Machine<'a> {
    fn new(facts: &Facts, selection: &'a Selection) -> Self {
        Self {
            selection,
            interest: Interest::default(),
            keys: BTreeMap::new(),
            taken: 0,
            leases: facts.leases.clone(),
            alarms: facts.alarms.clone(),
            revision: facts.revision,
            compacted: facts.compacted,
            kinds: HashSet::new(),
        }
    }

    /// One entry of the database's history; they come in the order of their revisions.
    fn load(&mut self, key: &[u8], value: &[u8]) {
        let (Some((_, is_deletion)), Ok(kv)) = (Revision::parse(key), KeyValue::parse(value))
        else {
            return;
        };
        let wanted = self.selection.contains(kv.key)
            || self.interest.contains(kv.key)
            || (kv.lease != 0 && self.interest.leases.contains(&kv.lease))
            || self.keys.contains_key(kv.key);
        if !wanted {
            return;
        }
        if is_deletion {
            self.keys.remove(kv.key);
            return;
        }
        let held = self.held(&kv);
        self.insert(kv.key, held);
    }

    fn insert(&mut self, key: &[u8], held: Held) {
        let is_new = self.keys.insert(key.to_vec(), held).is_none();
        self.taken += usize::from(is_new && self.selection.contains(key));
    }

    fn held(&mut self, kv: &KeyValue<'_>) -> Held {
        let selected = self.selection.contains(kv.key);
        let keep =
            (selected && self.selection.wants_values()) || in_any(&self.interest.values, kv.key);
        let kind = if selected {
            kubernetes::kind(kv.value)
        } else {
            None
        };
        let trimmed = if selected && !keep {
            self.selection.trimmed(kv.key, kv.value)
        } else {
            None
        };
        Held {
            create: kv.create,
            modified: kv.modified,
            version: kv.version,
            lease: kv.lease,
            size: kv.value.len(),
            kind: kind.map(|kind| self.interned(kind)),
            value: if keep {
                Some(kv.value.to_vec())
            } else {
                trimmed
            },
        }
    }

    /// A cluster has some hundred kinds and a million objects.
    fn interned(&mut self, kind: String) -> Rc<str> {
        if let Some(known) = self.kinds.get(kind.as_str()) {
            return Rc::clone(known);
        }
        let kind: Rc<str> = kind.into();
        self.kinds.insert(Rc::clone(&kind));
        kind
    }

    fn is_full(&self) -> bool {
        self.selection.is_full(self.taken)
    }

    fn has_alarm(&self, kind: AlarmKind) -> bool {
        self.alarms.iter().any(|alarm| alarm.kind == kind)
    }

    fn apply(&mut self, request: &Request<'_>) {
        let corrupt = self.has_alarm(AlarmKind::Corrupt);
        let full = self.has_alarm(AlarmKind::NoSpace);
        match request {
            Request::Alarm(alarm) => {
                let raised = RaisedAlarm {
                    member: alarm.member,
                    kind: alarm.kind.into(),
                };
                self.alarms.retain(|known| *known != raised);
                if alarm.raise {
                    self.alarms.push(raised);
                }
            }
            _ if corrupt => {}
            Request::Put(put) if !full && self.may_put(put) => {
                self.revision += 1;
                self.put(put);
            }
            Request::Delete(range) => self.revision += i64::from(self.delete(range)),
            Request::Txn(txn) if !(full && writes(txn)) => self.txn(txn),
            Request::Compact(revision)
                if *revision > self.compacted && *revision <= self.revision =>
            {
                self.compacted = *revision;
            }
            Request::LeaseGrant(id) if !full => {
                self.leases.insert(*id);
            }
            Request::LeaseRevoke(id) => {
                let before = self.keys.len();
                if self.leases.remove(id) {
                    self.keys.retain(|_, held| held.lease != *id);
                }
                self.revision += i64::from(self.keys.len() != before);
            }
            _ => {}
        }
    }

    /// etcd refuses a write that hangs on a lease that is gone, or that keeps what is not there.
    fn may_put(&self, put: &Put<'_>) -> bool {
        let keeps = put.ignore_value || put.ignore_lease;
        (put.lease == 0 || self.leases.contains(&put.lease))
            && (!keeps || self.keys.contains_key(put.key))
    }

    /// At the revision that was just begun.
    fn put(&mut self, put: &Put<'_>) {
        let old = self.keys.get(put.key).cloned();
        let lease = if put.ignore_lease {
            old.as_ref().map_or(0, |old| old.lease)
        } else {
            put.lease
        };
        let kv = KeyValue {
            key: put.key,
            create: old.as_ref().map_or(self.revision, |old| old.create),
            modified: self.revision,
            version: old.as_ref().map_or(0, |old| old.version) + 1,
            value: put.value,
            lease,
        };
        let mut held = self.held(&kv);
        if let Some(old) = old.filter(|_| put.ignore_value) {
            (held.size, held.kind, held.value) = (old.size, old.kind, old.value);
        }
        self.insert(put.key, held);
    }

    fn delete(&mut self, range: &Range<'_>) -> bool {
        if range.end.is_empty() {
            return self.keys.remove(range.key).is_some();
        }
        let gone: Vec<Vec<u8>> = self.within(range).map(|(key, _)| key.clone()).collect();
        for key in &gone {
            self.keys.remove(key);
        }
        !gone.is_empty()
    }

    fn within<'s>(&'s self, range: &Range<'_>) -> impl Iterator<Item = (&'s Vec<u8>, &'s Held)> {
        let (from, end) = (range.key.to_vec(), range.end.to_vec());
        self.keys.range(from.clone()..).take_while(move |(key, _)| {
            Range {
                key: &from,
                end: &end,
            }
            .contains(key)
        })
    }

    fn txn(&mut self, txn: &Txn<'_>) {
        let mut operations = Vec::new();
        self.chosen(txn, &mut operations);
        let allowed = operations.iter().all(|operation| match operation {
            Operation::Put(put) => self.may_put(put),
            _ => true,
        });
        if !allowed {
            return;
        }
        self.revision += 1;
        let mut changed = false;
        for operation in operations {
            changed |= match operation {
                Operation::Put(put) => {
                    self.put(put);
                    true
                }
                Operation::Delete(range) => self.delete(range),
                Operation::Range { .. } | Operation::Txn(_) => false,
            };
        }
        if !changed {
            self.revision -= 1;
        }
    }

    /// Conditions, those of transactions within too, are looked at before anything is done.
    fn chosen<'t>(&self, txn: &'t Txn<'t>, into: &mut Vec<&'t Operation<'t>>) {
        let holds = txn.compare.iter().all(|compare| self.holds(compare));
        for operation in if holds { &txn.success } else { &txn.failure } {
            match operation {
                Operation::Txn(within) => self.chosen(within, into),
                operation => into.push(operation),
            }
        }
    }

    fn holds(&self, compare: &Compare<'_>) -> bool {
        let one;
        let many: Vec<&Held>;
        let held: &[&Held] = if compare.range.end.is_empty() {
            one = self.keys.get(compare.range.key);
            one.as_slice()
        } else {
            many = self.within(&compare.range).map(|(_, held)| held).collect();
            &many
        };
        match (held, compare.target) {
            ([], Target::Value(_)) => false,
            ([], target) => matches(compare.result, compared(target, None)),
            (held, target) => held
                .iter()
                .all(|held| matches(compare.result, compared(target, Some(held)))),
        }
    }

    fn finish(mut self, applied: u64, commit: u64, doubts: Vec<String>) -> View {
        let selection = self.selection;
        self.keys.retain(|key, _| selection.contains(key));
        View {
            keys: self.keys,
            revision: self.revision,
            compacted: self.compacted,
            applied,
            uncertain: applied.saturating_sub(commit),
            doubts,
        }
    }
}

/// Whether either branch writes: with a full database such a transaction is refused whatever its
/// conditions.
fn writes(txn: &Txn<'_>) -> bool {
    txn.success
        .iter()
        .chain(&txn.failure)
        .any(|operation| matches!(operation, Operation::Put(_)))
}

fn compared(target: Target<'_>, held: Option<&Held>) -> std::cmp::Ordering {
    let number = |of: fn(&Held) -> i64| held.map_or(0, of);
    match target {
        Target::Version(wanted) => number(|held| held.version).cmp(&wanted),
        Target::Create(wanted) => number(|held| held.create).cmp(&wanted),
        Target::Mod(wanted) => number(|held| held.modified).cmp(&wanted),
        Target::Lease(wanted) => number(|held| held.lease).cmp(&wanted),
        Target::Value(wanted) => held
            .and_then(|held| held.value.as_deref())
            .unwrap_or_default()
            .cmp(wanted),
    }
}

fn matches(result: Comparison, ordering: std::cmp::Ordering) -> bool {
    match result {
        Comparison::Equal => ordering.is_eq(),
        Comparison::NotEqual => ordering.is_ne(),
        Comparison::Greater => ordering.is_gt(),
        Comparison::Less => ordering.is_lt(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put<'a>(key: &'a [u8], value: &'a [u8]) -> Put<'a> {
        Put {
            key,
            value,
            ..Put::default()
        }
    }

    fn key(key: &[u8]) -> Range<'_> {
        Range { key, end: b"" }
    }

    #[test]
    fn requests_are_applied_as_etcd_does() {
        let facts = Facts {
            revision: 1,
            compacted: -1,
            ..Facts::default()
        };
        let selection = Selection::Prefix(Vec::new());
        let mut machine = Machine::new(&facts, &selection);
        machine.apply(&Request::Put(put(b"a", b"1")));
        machine.apply(&Request::Put(put(b"a", b"2")));
        machine.apply(&Request::Delete(key(b"nothing")));
        machine.apply(&Request::Put(Put {
            lease: 7,
            ..put(b"b", b"")
        }));
        assert_eq!((machine.revision, machine.keys.len()), (3, 1));
        assert_eq!(
            (
                machine.keys[&b"a"[..]].create,
                machine.keys[&b"a"[..]].version
            ),
            (2, 2)
        );
        machine.apply(&Request::LeaseGrant(7));
        machine.apply(&Request::Put(Put {
            lease: 7,
            ..put(b"b", b"")
        }));
        let compare = |modified| Compare {
            range: key(b"a"),
            target: Target::Mod(modified),
            result: Comparison::Equal,
        };
        let txn = |modified| {
            let success = vec![Operation::Put(put(b"c", b"")), Operation::Delete(key(b"a"))];
            Request::Txn(Txn {
                compare: vec![compare(modified)],
                success,
                failure: vec![Operation::Range { revision: 0 }],
            })
        };
        machine.apply(&txn(2));
        assert_eq!(machine.revision, 4);
        machine.apply(&txn(3));
        assert_eq!((machine.revision, machine.keys.len()), (5, 2));
        machine.apply(&Request::LeaseRevoke(7));
        assert_eq!(
            (
                machine.revision,
                machine.keys.keys().next().unwrap().as_slice()
            ),
            (6, &b"c"[..])
        );
        machine.apply(&Request::Alarm(crate::etcd::format::request::Alarm {
            raise: true,
            member: 1,
            kind: 1,
        }));
        machine.apply(&Request::Put(put(b"d", b"")));
        assert_eq!(machine.revision, 6);
    }
}
