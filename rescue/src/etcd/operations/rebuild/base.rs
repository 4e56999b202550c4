//! What a member can be built upon: a log, a database that lies within it, and a snapshot that is
//! not newer than the database.
//!
//! What a database holds follows from its last entry alone, so any sound database of the cluster
//! may stand beside the best log, also an older one, as long as the log reaches back to it
//! (server/etcdserver: entries above `consistent_index` are applied at boot).

use std::rc::Rc;

use super::database::DatabaseFile;
use crate::etcd::format::members::Members;
use crate::etcd::format::raft::{ConfState, SnapshotMark};
use crate::etcd::format::wal::Log;
use crate::etcd::operations::level::Tail;
use crate::etcd::read::backend::Facts;
use crate::etcd::read::member::MemberData;
use crate::etcd::read::replay::Replay;
use crate::etcd::write::store;
use crate::etcd::write::wal::Rewrite;
use crate::guest::{Guest, GuestPath};

/// A database that is further ahead of its log is not of its history.
const MAX_MISSING: u64 = 1_000_000;

/// Where etcd begins.
#[derive(Debug, Clone)]
pub enum Start {
    /// With the first entry.
    Nothing,
    /// With a snapshot that is there, of so many bytes.
    Snapshot(GuestPath, u64),
    /// With one that is made anew: its place, and the v2 store.
    Fresh(SnapshotMark, Vec<u8>),
}

/// See the module. Holds no guest: it is kept while disks are closed and opened anew.
#[derive(Debug, Clone)]
pub struct Base {
    /// The guest that holds log and snapshots, by its source.
    pub source: String,
    /// The log.
    pub log: Log,
    /// The first file of it that is needed.
    pub from: usize,
    /// Where etcd begins.
    pub start: Start,
    /// The database.
    pub database: DatabaseFile,
    /// Members when every entry of the log counts.
    pub members: Members,
    /// Entries that the log lacks to reach the database.
    pub missing: u64,
    /// Entries behind those of log and database, from a log that is damaged before them. It may be
    /// empty: then that log ended there.
    pub tail: Option<Tail>,
}

/// Why nothing can be built, as a sentence without its full stop.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct NoBase(pub String);

/// Bounds of what is tried.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Options {
    /// Formats of etcd 3.6 and later, too: no such etcd could be had to prove it.
    pub unproven: bool,
}

impl Base {
    /// The log of `best`, whose guest is `guest`, with a database: its own, another member's
    /// (`owner`), or a copy (no owner).
    ///
    /// # Errors
    /// [`NoBase`].
    pub fn new(
        guest: &Guest,
        best: &MemberData,
        database: DatabaseFile,
        owner: Option<&MemberData>,
        options: Options,
    ) -> Result<Rc<Self>, NoBase> {
        let log = real_paths(guest, best)?;
        fits(best, &database, owner, options)?;
        let applied = database.facts.consistent_index;
        let missing = applied.saturating_sub(log.last);
        let members = members_of(best, &database, None, log.last)
            .filter(|members| members.voters().next().is_some())
            .ok_or_else(|| {
                NoBase(
                    "neither a snapshot nor the database says who belongs to the cluster"
                        .to_owned(),
                )
            })?;
        if missing > 0 && !members.list.keys().eq(database.facts.members.list.keys()) {
            return Err(NoBase(format!(
                "changes of the membership were among the entries that the log of {} has lost",
                guest.source
            )));
        }
        let (start, from) = match missing {
            0 => start(guest, best, &database, owner)?,
            _ => (behind(&log, &database, &members), log.segments.len()),
        };
        if missing == 0 {
            Rewrite::check(&log, from)
                .map_err(|why| NoBase(format!("the log of {}: {why}", guest.source)))?;
        }
        Ok(Rc::new(Self {
            source: guest.source.clone(),
            log,
            from,
            start,
            database,
            members,
            missing,
            tail: None,
        }))
    }

    /// A snapshot made anew at the database's own last entry, for a log whose snapshots are lost,
    /// and the first file of the log that is needed.
    ///
    /// # Errors
    /// [`NoBase`].
    pub fn fresh_start(
        best: &MemberData,
        database: &DatabaseFile,
    ) -> Result<(Start, usize), NoBase> {
        fresh(best, database, None)
    }

    /// The same with what follows.
    pub fn with_tail(&self, tail: Tail) -> Rc<Self> {
        let mut base = self.clone();
        if let Start::Fresh(mark, _) = &mut base.start
            && base.missing > 0
        {
            // That log says of which term the database's last entry is, also where the database
            // does not.
            mark.term = tail.term_before;
        }
        base.tail = Some(tail);
        Rc::new(base)
    }

    /// The last entry that log or database hold.
    pub fn own_last(&self) -> u64 {
        self.log.last.saturating_add(self.missing)
    }

    /// The last entry of all.
    pub fn last(&self) -> u64 {
        self.tail.as_ref().map_or(self.own_last(), Tail::last)
    }

    /// Its term, as far as logs say.
    pub fn last_term(&self) -> u64 {
        self.tail
            .as_ref()
            .map_or(self.log.last_term(), |tail| tail.term)
    }

    /// Whether entries are lost that were in the log: it ends before the database, and nobody knows
    /// where it ended.
    pub fn lacks_entries(&self) -> bool {
        self.missing > 0 && self.tail.is_none()
    }

    /// A term in which nothing was written yet, as far as these members know.
    pub fn next_term<'a>(&self, all: impl IntoIterator<Item = &'a MemberData>) -> u64 {
        let seen = all
            .into_iter()
            .map(|data| data.log.state.term.max(data.log.last_term()));
        let own = self
            .log
            .state
            .term
            .max(self.last_term())
            .max(self.database.facts.term.unwrap_or(0));
        seen.fold(own, u64::max).saturating_add(1)
    }
}

/// The log with its files where they really are: a guest that is open for writing knows no bind
/// mounts.
fn real_paths(guest: &Guest, best: &MemberData) -> Result<Log, NoBase> {
    if best.log.is_empty() {
        return Err(NoBase(format!("{} has no log with entries", guest.source)));
    }
    if best.log.identity.is_none() || best.log.other_identity.is_some() {
        return Err(NoBase(format!(
            "the log of {} does not say whose it is",
            guest.source
        )));
    }
    let mut log = best.log.clone();
    for look in &mut log.segments {
        let real = guest
            .resolve(&look.segment.path)
            .map_err(|error| NoBase(error.to_string()))?;
        look.segment.path = GuestPath::from(&real);
    }
    Ok(log)
}

/// Whether log and database are of one history.
fn fits(
    best: &MemberData,
    database: &DatabaseFile,
    owner: Option<&MemberData>,
    options: Options,
) -> Result<(), NoBase> {
    let (log, facts) = (&best.log, &database.facts);
    if let Some(version) = facts.storage_version.as_ref().filter(|_| !options.unproven) {
        return Err(NoBase(format!(
            "the database is of format {version}, and repairing etcd 3.6 and later has not been \
             proved (--unproven tries it)"
        )));
    }
    let applied = facts.consistent_index;
    if let Some(owner) = owner {
        let cluster = |data: &MemberData| data.log.identity.map(|identity| identity.cluster);
        if cluster(owner).is_some_and(|other| Some(other) != cluster(best)) {
            return Err(NoBase(format!(
                "the database of {} belongs to another cluster",
                database.source
            )));
        }
        if let (Some(one), Some(other)) = (log.term_of(applied), owner.log.term_of(applied))
            && one != other
        {
            return Err(NoBase(format!(
                "log and database are of two histories: entry {applied} is of term {one} and of \
                 term {other}"
            )));
        }
    } else if !is_of_cluster(best, &facts.members) {
        return Err(NoBase(format!(
            "{} has no member in common with the log: it is of another cluster",
            database.path
        )));
    }
    if let (Some(one), Some(other)) = (log.term_of(applied), facts.term)
        && one != other
    {
        return Err(NoBase(format!(
            "log and database are of two histories: entry {applied} is of term {one} and of term \
             {other}"
        )));
    }
    if applied.saturating_sub(log.last) > MAX_MISSING {
        return Err(NoBase(format!(
            "the log ends {} entries before the database",
            applied - log.last
        )));
    }
    Ok(())
}

/// A copy that names no member at all is of no cluster.
fn is_of_cluster(best: &MemberData, members: &Members) -> bool {
    let (own, _) = best.membership();
    let known = |id: &u64| own.list.contains_key(id) || own.removed.contains(id);
    members.list.keys().chain(&members.removed).any(known)
}

/// A snapshot that is not newer than the database and from which on the log is whole. One is made
/// anew where none is there, and where etcd 3.6, now or after an upgrade, would replay the changes
/// behind it into other voters than the cluster has: behind the changes themselves no snapshot can
/// be laid, because the database does not hold them before etcd has run.
fn start(
    guest: &Guest,
    best: &MemberData,
    database: &DatabaseFile,
    owner: Option<&MemberData>,
) -> Result<(Start, usize), NoBase> {
    match existing(guest, best, database)? {
        Some(found) => Ok(found),
        None => fresh(best, database, owner),
    }
}

/// A snapshot that is there, or nothing where the log is there from its first entry.
fn existing(
    guest: &Guest,
    best: &MemberData,
    database: &DatabaseFile,
) -> Result<Option<(Start, usize)>, NoBase> {
    let (log, applied) = (&best.log, database.facts.consistent_index);
    for (file, snapshot) in &best.snapshots {
        let Ok(snapshot) = snapshot else { continue };
        let mark = &snapshot.mark;
        let known = |there: &&SnapshotMark| (there.term, there.index) == (mark.term, mark.index);
        let is_valid = log.valid_marks().any(|there| known(&there)) && file.index == mark.index;
        if !is_valid
            || mark.index > applied.min(log.last)
            || log.first > mark.index.saturating_add(1)
        {
            continue;
        }
        // etcd looks for the snapshot's record in the files that are there.
        let recorded = log
            .marks
            .iter()
            .rfind(|there| known(&&there.mark))
            .map(|there| there.position.segment);
        if let (Some(from), Some(recorded)) = (best.wal.start_for(mark.index), recorded) {
            if changes_voters(best, mark, snapshot.members.as_ref(), &database.facts) {
                return Ok(None);
            }
            let real = guest
                .resolve(&file.path)
                .map_err(|error| NoBase(error.to_string()))?;
            let size = guest
                .tree()
                .lstat(real.as_path())
                .map_err(|error| NoBase(error.to_string()))?
                .size;
            return Ok(Some((
                Start::Snapshot(GuestPath::from(&real), size),
                from.min(recorded),
            )));
        }
    }
    let is_whole = log.first == 1 && best.wal.start_for(0).is_some();
    let (mark, store) = (SnapshotMark::default(), Members::default());
    let is_kept = is_whole && !changes_voters(best, &mark, Some(&store), &database.facts);
    Ok(is_kept.then_some((Start::Nothing, 0)))
}

/// Whether what etcd 3.6 replays of the log behind this snapshot gives raft other voters than the
/// database has, and a new one prevents it.
fn changes_voters(
    best: &MemberData,
    mark: &SnapshotMark,
    store: Option<&Members>,
    database: &Facts,
) -> bool {
    let replay = store.and_then(|store| Replay::behind(best, mark, store.clone(), database));
    replay.is_some_and(|replay| !replay.keeps_voters() && replay.with_new_snapshot().keeps_voters())
}

/// A new snapshot at the database's own last entry.
fn fresh(
    best: &MemberData,
    database: &DatabaseFile,
    owner: Option<&MemberData>,
) -> Result<(Start, usize), NoBase> {
    let (log, facts) = (&best.log, &database.facts);
    let index = facts.consistent_index;
    let reach = |index: u64| (log.first.saturating_sub(1)..=log.last).contains(&index);
    if !reach(index) {
        return Err(NoBase(format!(
            "the database ends with entry {index}, and the log, from {} to {}, does not reach it",
            log.first, log.last
        )));
    }
    let Some(term) = log.term_of(index).or(facts.term) else {
        return Err(NoBase(format!(
            "nothing says of which term entry {index} is"
        )));
    };
    let from = best
        .wal
        .start_for(index)
        .ok_or_else(|| NoBase("the log begins after the database".to_owned()))?;
    let members = members_of(best, database, owner, index)
        .ok_or_else(|| NoBase("nothing says who belonged to the cluster then".to_owned()))?;
    Ok((snapshot(index, term, &members, facts), from))
}

/// A snapshot at the database's end, which lies behind the log's: etcd goes on from there. With
/// entries made up for those that are lost, an older database would replay them, get nothing for
/// them, and look sound. So the log begins behind them, and such a database is refused.
fn behind(log: &Log, database: &DatabaseFile, members: &Members) -> Start {
    let facts = &database.facts;
    snapshot(
        facts.consistent_index,
        facts.term.unwrap_or(0).max(log.last_term()),
        members,
        facts,
    )
}

fn snapshot(index: u64, term: u64, members: &Members, facts: &Facts) -> Start {
    let learners = members
        .list
        .values()
        .filter(|member| member.is_learner)
        .map(|member| member.id)
        .collect();
    let conf_state = ConfState {
        voters: members.voters().collect(),
        learners,
        ..ConfState::default()
    };
    let store = store::store(members, facts.cluster_version.as_deref());
    Start::Fresh(
        SnapshotMark {
            index,
            term,
            conf_state: Some(conf_state),
        },
        store,
    )
}

/// Members at an entry: up to 3.5 as snapshots and logs say, of the member itself or of the
/// database's `owner`, else as the database says. From 3.6 on the database counts, whatever raft's
/// voters in a snapshot are.
fn members_of(
    best: &MemberData,
    database: &DatabaseFile,
    owner: Option<&MemberData>,
    index: u64,
) -> Option<Members> {
    let by_log =
        || members_at(best, index).or_else(|| owner.and_then(|owner| members_at(owner, index)));
    let by_database = || from_database(database, best, index);
    match database.facts.storage_version {
        Some(_) => by_database().or_else(by_log),
        None => by_log().or_else(by_database),
    }
}

/// Members at an entry, by the newest snapshot before it or the log's beginning, and the log's
/// changes.
fn members_at(data: &MemberData, index: u64) -> Option<Members> {
    let older = data
        .snapshots
        .iter()
        .filter_map(|(_, snapshot)| snapshot.as_ref().ok());
    let known = |mark: &SnapshotMark| {
        data.log
            .valid_marks()
            .any(|there| (there.term, there.index) == (mark.term, mark.index))
    };
    let snapshot = older
        .filter(|snapshot| snapshot.mark.index <= index && known(&snapshot.mark))
        .max_by_key(|s| s.mark.index);
    let (mut members, from) = match snapshot {
        Some(snapshot) => (snapshot.members.clone()?, snapshot.mark.index),
        None if data.log.first == 1 => (Members::default(), 0),
        None => return None,
    };
    if data.log.first > from.saturating_add(1) {
        return None;
    }
    apply(&mut members, data, from, index);
    if let Some(facts) = data.facts() {
        name(&mut members, &facts.members);
    }
    Some(members)
}

/// The same by the database, which holds them as of its last entry. Up to 3.4 it may still hold
/// members that were removed.
fn from_database(database: &DatabaseFile, best: &MemberData, index: u64) -> Option<Members> {
    let facts = &database.facts;
    let mut members = facts.members.clone();
    members
        .list
        .retain(|id, _| !facts.members.removed.contains(id));
    // From 3.6 on raft may have lost a voter that the database has ([`Replay`]).
    if let Some(state) = facts
        .conf_state
        .as_ref()
        .filter(|_| facts.storage_version.is_none())
    {
        members
            .list
            .retain(|id, _| state.voters.contains(id) || state.learners.contains(id));
    }
    if members.list.is_empty() {
        return None;
    }
    apply(&mut members, best, facts.consistent_index, index);
    Some(members)
}

fn apply(members: &mut Members, data: &MemberData, from: u64, to: u64) {
    for (_, change) in data
        .log
        .changes
        .iter()
        .filter(|(index, _)| *index > from && *index <= to)
    {
        members.apply(change);
    }
}

/// Names are published later than members are added.
fn name(members: &mut Members, named: &Members) {
    for member in members
        .list
        .values_mut()
        .filter(|member| member.client_urls.is_empty())
    {
        if let Some(known) = named
            .list
            .get(&member.id)
            .filter(|known| !known.name.is_empty())
        {
            (member.name, member.client_urls) = (known.name.clone(), known.client_urls.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::etcd::read::member::Place;
    use crate::etcd::read::sample;

    fn based(database: Vec<u8>, options: Options) -> Result<Rc<Base>, String> {
        let guest = sample::member("")
            .file("/member/snap/db", database)
            .into_guest();
        let place = Place::new(GuestPath::new("/"), None);
        let data = MemberData::read(&guest, &place);
        let database = DatabaseFile::examine(&guest, &place.db()).unwrap();
        Base::new(&guest, &data, database, Some(&data), options).map_err(|no| no.to_string())
    }

    #[test]
    fn a_database_within_the_log_is_built_upon() {
        for applied in [3, 8] {
            let base = based(sample::sound_database(applied), Options::default()).unwrap();
            assert_eq!((base.missing, base.from, base.log.last), (0, 0, 8));
            assert_eq!(base.members.voters().collect::<Vec<_>>(), [7]);
            assert!(matches!(base.start, Start::Nothing));
            assert_eq!(base.next_term([]), 3);
        }
    }

    #[test]
    fn far_beyond_the_log_nothing_is_made_up() {
        let why = based(sample::sound_database(5_000_000), Options::default()).unwrap_err();
        assert!(why.contains("before the database"), "{why}");
    }

    #[test]
    fn what_is_not_proved_must_be_asked_for() {
        let index = 8u64.to_be_bytes();
        let entries: &[(&[u8], &[u8])] =
            &[(b"consistent_index", &index), (b"storageVersion", b"3.6.0")];
        let database = sample::database(&[("meta", entries)]);
        let why = based(database.clone(), Options::default()).unwrap_err();
        assert!(why.contains("3.6.0") && why.contains("--unproven"), "{why}");
        assert!(based(database, Options { unproven: true }).is_ok());
    }
}
