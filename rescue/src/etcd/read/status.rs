//! All members on the table: each by itself, then compared. Which holds the newest history, and
//! whether the histories agree.

use serde::Serialize;
use std::cmp::Reverse;
use std::thread;

use super::backend::{Backend, Facts, RaisedAlarm};
use super::boot::{self, Effect, Problem};
use super::launch::Launch;
use super::lease::LastWrite;
use super::member::{MemberData, Place, Stored};
use super::moved::{Moved, moved};
use super::survey::{Hash, Survey, survey};
use crate::base::ui::{Progress, Silent, Ui};
use crate::etcd::format::bbolt::Fault;
use crate::etcd::format::file::File;
use crate::etcd::format::members::{Member, Members, as_hex};
use crate::guest::Guest;

/// A member on a disk, not yet looked at.
#[derive(Debug, Clone)]
pub struct Found {
    /// What was given.
    pub source: String,
    /// The node, where it is known.
    pub node: Option<String>,
    /// The system, or the folder, that holds it.
    pub guest: Guest,
    /// Where in it.
    pub place: Place,
    /// How etcd is started there, where the node's files say it.
    pub launch: Option<Launch>,
}

/// The members and what comparing them gives.
#[derive(Debug, Serialize)]
pub struct Cluster {
    /// One for each source, in the order given.
    pub members: Vec<MemberStatus>,
    /// Which of them holds the newest history.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub newest: Option<Newest>,
    /// Each two of them compared.
    pub agreement: Vec<Agreement>,
    /// Voters of the newest member's configuration that none of the sources holds.
    pub absent_voters: Vec<Member>,
    /// Members that say to belong to others, and share no key with them or are not in their lists;
    /// sentences.
    pub left_out: Vec<String>,
}

/// One member.
#[derive(Debug, Serialize)]
pub struct MemberStatus {
    /// What was given.
    pub source: String,
    /// The node.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// `--data-dir`.
    pub data_dir: String,
    /// Whose log it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub identity: Option<IdentityStatus>,
    /// Its name in the cluster.
    pub name: String,
    /// The log.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log: Option<LogStatus>,
    /// The database.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub database: Option<DatabaseStatus>,
    /// Versions that it knows of.
    pub versions: Versions,
    /// The newest write that carries its time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_write: Option<LastWrite>,
    /// Members as it sees them.
    pub voters: Vec<Member>,
    /// Those without a vote.
    pub learners: Vec<Member>,
    /// Entries with changes of the membership that it does not know to be agreed on.
    pub pending_changes: Vec<u64>,
    /// What is wrong, the worst first.
    pub problems: Vec<Problem>,
    /// Whether etcd will start on it.
    pub boots: bool,
    /// Where the others look for it, if it surely is not there any more.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub moved: Option<Moved>,
    /// For the comparison.
    #[serde(skip)]
    pub data: MemberData,
}

/// IDs as etcd shows them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct IdentityStatus {
    /// The member.
    #[serde(serialize_with = "as_hex")]
    pub member: u64,
    /// The cluster.
    #[serde(serialize_with = "as_hex")]
    pub cluster: u64,
}

/// The log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LogStatus {
    /// The newest term that the member has seen.
    pub term: u64,
    /// Whom it voted for.
    #[serde(serialize_with = "as_hex")]
    pub vote: u64,
    /// Entries up to here are known to be agreed on.
    pub commit: u64,
    /// The snapshot that etcd begins with; 0 for none.
    pub snapshot: u64,
    /// First entry.
    pub first: u64,
    /// Last entry.
    pub last: u64,
    /// The last entry's term.
    pub last_term: u64,
    /// Files.
    pub files: usize,
    /// Their bytes.
    pub bytes: u64,
    /// Bytes behind the last good record.
    pub torn_bytes: u64,
}

/// The database.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DatabaseStatus {
    /// Its length.
    pub size: u64,
    /// Bytes in pages that hold something.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub in_use: Option<u64>,
    /// Bytes of a page.
    pub page_size: u64,
    /// Number of its last transaction.
    pub transaction: u64,
    /// The last entry of the log that is in it.
    pub consistent_index: u64,
    /// The newest revision in it; the log may hold newer ones.
    pub revision: i64,
    /// History up to here is gone; -1 where nothing was compacted.
    pub compact_revision: i64,
    /// Keys that are there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keys: Option<u64>,
    /// Entries of the keys' history.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub revisions: Option<u64>,
    /// etcd's hash of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hash: Option<Hash>,
    /// Alarms that are raised.
    pub alarms: Vec<RaisedAlarm>,
    /// Leases.
    pub leases: usize,
    /// Whether users must log in.
    pub auth_enabled: bool,
}

/// Versions that a member's disk knows of.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Versions {
    /// The version all members agreed on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cluster: Option<String>,
    /// The database's format, from 3.6 on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub storage: Option<String>,
    /// The image of the node's manifest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
}

/// The newest history.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Newest {
    /// Index in the list of members.
    pub member: usize,
    /// Its source.
    pub source: String,
    /// Why, as a sentence without its full stop.
    pub why: String,
}

/// Two members compared.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Agreement {
    /// Sources.
    pub between: (String, String),
    /// What comparing gave.
    pub verdict: Verdict,
}

/// Whether two histories are one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// All entries that both hold and know to be agreed on have the same terms.
    Same {
        /// First entry compared.
        from: u64,
        /// Last entry compared.
        to: u64,
    },
    /// Two histories: this entry, agreed on in both, is of different terms.
    Fork {
        /// The entry.
        entry: u64,
        /// Its term in the first.
        first: u64,
        /// Its term in the second.
        second: u64,
    },
    /// The databases differ at the same revision.
    Differ,
    /// Members of different clusters.
    OtherCluster,
    /// They have no entry in common.
    NotComparable,
}

/// Looks at all members. `deep` reads the databases from end to end.
pub fn status(found: &[Found], deep: bool) -> Cluster {
    status_shown(found, deep, &Silent)
}

/// [`status`], with what takes long shown.
pub fn status_shown(found: &[Found], deep: bool, ui: &dyn Ui) -> Cluster {
    let data: Vec<MemberData> = found
        .iter()
        .map(|found| MemberData::read(&found.guest, &found.place))
        .collect();
    let revision = common_revision(&data);
    let members: Vec<MemberStatus> = found
        .iter()
        .zip(data)
        .map(|(found, data)| member(found, data, revision, deep, ui))
        .collect();
    let newest = newest(&members);
    let mut agreement = Vec::new();
    for (number, one) in members.iter().enumerate() {
        for other in members.iter().skip(number + 1) {
            agreement.push(Agreement {
                between: (one.source.clone(), other.source.clone()),
                verdict: compare(one, other),
            });
        }
    }
    let absent_voters = newest
        .as_ref()
        .map(|newest| absent(&members, newest.member))
        .unwrap_or_default();
    Cluster {
        members,
        newest,
        agreement,
        absent_voters,
        left_out: Vec::new(),
    }
}

/// The newest revision that all databases hold: there the hashes can be compared.
fn common_revision(data: &[MemberData]) -> Option<i64> {
    let clusters: Vec<u64> = data
        .iter()
        .filter_map(|data| Some(data.log.identity?.cluster))
        .collect();
    let one_cluster = clusters.windows(2).all(|pair| pair[0] == pair[1]);
    one_cluster.then(|| {
        data.iter()
            .filter_map(MemberData::facts)
            .map(|facts| facts.revision)
            .min()
    })?
}

fn member(
    found: &Found,
    data: MemberData,
    revision: Option<i64>,
    deep: bool,
    ui: &dyn Ui,
) -> MemberStatus {
    let mut problems = boot::problems(&data);
    let mut last_write = None;
    let mut database = None;
    let mut log = None;
    if let Stored::Open(open) = &data.stored {
        let (backend, facts) = open.as_ref();
        let at = revision
            .filter(|at| *at > facts.compacted)
            .unwrap_or(facts.revision);
        let surveyed = deep.then(|| {
            // What was compacted is gone through twice: for its pages and for its hash.
            let passes = if facts.compacted < 0 { 1 } else { 2 };
            let progress = ui.begin(
                &format!("checking {}", found.source),
                Some(backend.db.size() * passes),
            );
            survey_beside(backend, facts, at, &*progress, || {
                log = Some(look_through_log(found, &data))
            })
        });
        let survey = match surveyed {
            Some(Err(fault)) => {
                problems.insert(0, Problem::database(&data.place.db(), &fault));
                None
            }
            Some(Ok(survey)) => Some(survey),
            None => None,
        };
        last_write = survey.as_ref().and_then(|survey| survey.last_write.clone());
        database = Some(database_status(
            backend.db.size(),
            backend.db.meta(),
            facts,
            survey.as_ref(),
        ));
    }
    if deep && log.is_none() {
        log = Some(look_through_log(found, &data));
    }
    let (members, pending_changes, written) = log.unwrap_or_else(|| {
        let (members, pending) = data.membership();
        (members, pending, None)
    });
    if let Some(write) = written {
        let newer = last_write.is_none()
            || write
                .index
                .is_some_and(|index| index > data.consistent_index());
        last_write = if newer { Some(write) } else { last_write };
    }
    let own = data
        .log
        .identity
        .and_then(|identity| members.list.get(&identity.member));
    let facts = data.facts();
    MemberStatus {
        source: found.source.clone(),
        node: found.node.clone(),
        data_dir: found.place.data_dir.to_string(),
        identity: data.log.identity.map(|id| IdentityStatus {
            member: id.member,
            cluster: id.cluster,
        }),
        name: own.map(|member| member.name.clone()).unwrap_or_default(),
        log: log_status(&data),
        database,
        versions: Versions {
            cluster: facts.and_then(|facts| facts.cluster_version.clone()),
            storage: facts.and_then(|facts| facts.storage_version.clone()),
            image: found
                .launch
                .as_ref()
                .and_then(|launch| launch.image.clone()),
        },
        last_write,
        voters: members
            .list
            .values()
            .filter(|member| !member.is_learner)
            .cloned()
            .collect(),
        learners: members
            .list
            .values()
            .filter(|member| member.is_learner)
            .cloned()
            .collect(),
        pending_changes,
        moved: found
            .launch
            .as_ref()
            .and_then(|launch| moved(launch, &data)),
        boots: problems
            .iter()
            .all(|problem| problem.effect != Effect::Stops),
        problems,
        data,
    }
}

/// Members as the log's end has them, changes that may not count, and the newest write that carries
/// its time.
fn look_through_log(found: &Found, data: &MemberData) -> (Members, Vec<u64>, Option<LastWrite>) {
    let (mut members, pending) = data.membership();
    let written = data
        .look_through_log(&found.guest, &mut members)
        .unwrap_or_default();
    (members, pending, written)
}

/// Surveys the database while `meanwhile` is done, where another thread can read it.
fn survey_beside(
    backend: &Backend,
    facts: &Facts,
    at: i64,
    progress: &dyn Progress,
    meanwhile: impl FnOnce(),
) -> Result<Survey, Fault> {
    if let Some(held) = backend.db.hold()? {
        let surveyed = thread::scope(|scope| {
            let look = move || {
                Backend::open(File::held(held)).and_then(|own| survey(&own, facts, at, progress))
            };
            let looking = thread::Builder::new()
                .name("database".to_owned())
                .spawn_scoped(scope, look)
                .ok()?;
            meanwhile();
            Some(looking.join())
        });
        match surveyed {
            Some(Ok(surveyed)) => return surveyed,
            Some(Err(panic)) => std::panic::resume_unwind(panic),
            None => {}
        }
    }
    survey(backend, facts, at, progress)
}

fn log_status(data: &MemberData) -> Option<LogStatus> {
    let log = &data.log;
    if log.segments.is_empty() {
        return None;
    }
    Some(LogStatus {
        term: log.state.term,
        vote: log.state.vote,
        commit: log.state.commit,
        snapshot: data.snapshot_index(),
        first: log.first,
        last: log.last,
        last_term: log.last_term(),
        files: log.segments.len(),
        bytes: log
            .segments
            .iter()
            .fold(0, |sum, look| sum.saturating_add(look.size)),
        torn_bytes: data.torn_bytes(),
    })
}

fn database_status(
    size: u64,
    meta: &crate::etcd::format::bbolt::Meta,
    facts: &Facts,
    survey: Option<&Survey>,
) -> DatabaseStatus {
    DatabaseStatus {
        size,
        in_use: survey.map(|survey| {
            survey
                .check
                .pages
                .saturating_add(2)
                .saturating_mul(meta.page_size)
        }),
        page_size: meta.page_size,
        transaction: meta.transaction,
        consistent_index: facts.consistent_index,
        revision: facts.revision,
        compact_revision: facts.compacted,
        keys: survey.and_then(|survey| survey.keys),
        revisions: survey.map(|survey| survey.revisions),
        hash: survey.and_then(|survey| survey.hash),
        alarms: facts.alarms.clone(),
        leases: facts.leases.len(),
        auth_enabled: facts.auth_enabled,
    }
}

/// By the last entry's term, then its index, as raft compares logs (Raft, 5.4.1); commit and
/// revisions are only lower bounds. Between equals the one whose disk is in the better state.
fn newest(members: &[MemberStatus]) -> Option<Newest> {
    let logs = members
        .iter()
        .enumerate()
        .filter(|(_, member)| !member.data.log.is_empty());
    let rank = |member: &MemberStatus| (member.data.log.last_term(), member.data.log.last);
    let mut ranked: Vec<(usize, &MemberStatus)> = logs.collect();
    ranked.sort_by_key(|(_, member)| {
        Reverse((
            rank(member),
            member.boots,
            Reverse(member.data.torn_bytes()),
            member.data.consistent_index(),
        ))
    });
    let (at, best) = *ranked.first()?;
    let (term, last) = rank(best);
    let why = match ranked.get(1).map(|(_, second)| (*second, rank(second))) {
        None => format!("it is the only one with a log: entry {last} of term {term} is its last"),
        Some((second, (other_term, other_last))) if (other_term, other_last) == (term, last) => {
            let why = match (best.boots, second.boots) {
                (true, false) => "and only this one is whole",
                _ => "and so is the next one",
            };
            format!("its last entry is {last} of term {term}, {why}")
        }
        Some((second, (other_term, other_last))) if other_term == term => format!(
            "its last entry is {last} of term {term}; {} ends {} earlier",
            second.source,
            crate::base::units::count(
                usize::try_from(last - other_last).unwrap_or(usize::MAX),
                "entry",
                "entries"
            )
        ),
        Some((second, (other_term, other_last))) => format!(
            "its last entry ({last}) is of term {term}; that of {} ({other_last}) is of the older \
             term {other_term}",
            second.source
        ),
    };
    Some(Newest {
        member: at,
        source: best.source.clone(),
        why,
    })
}

fn compare(one: &MemberStatus, other: &MemberStatus) -> Verdict {
    let hashes =
        |member: &MemberStatus| member.database.as_ref().and_then(|database| database.hash);
    match (
        compare_logs(&one.data, &other.data),
        hashes(one),
        hashes(other),
    ) {
        (Verdict::Same { .. }, Some(one), Some(other))
            if (one.revision, one.compact_revision) == (other.revision, other.compact_revision)
                && one.hash != other.hash =>
        {
            Verdict::Differ
        }
        (verdict, ..) => verdict,
    }
}

/// Whether two logs are of one history: entries that both know to be agreed on have the same terms.
pub fn compare_logs(one: &MemberData, other: &MemberData) -> Verdict {
    let (a, b) = (&one.log, &other.log);
    let (Some(first), Some(second)) = (a.identity, b.identity) else {
        return Verdict::NotComparable;
    };
    if first.cluster != second.cluster {
        return Verdict::OtherCluster;
    }
    let from = a.first.max(b.first);
    let to = a.last.min(b.last).min(one.commit().min(other.commit()));
    if from > to {
        return Verdict::NotComparable;
    }
    // Terms change only where one of the two begins a new one.
    let changes = a.terms.iter().chain(&b.terms).map(|(index, _)| *index);
    for entry in changes
        .filter(|index| (from..=to).contains(index))
        .chain([from, to])
    {
        let (Some(first), Some(second)) = (a.term_of(entry), b.term_of(entry)) else {
            continue;
        };
        if first != second {
            return Verdict::Fork {
                entry,
                first,
                second,
            };
        }
    }
    Verdict::Same { from, to }
}

/// Voters of the newest configuration that no source holds.
fn absent(members: &[MemberStatus], newest: usize) -> Vec<Member> {
    let there: Vec<u64> = members
        .iter()
        .filter_map(|member| Some(member.identity?.member))
        .collect();
    let voters = members
        .get(newest)
        .map(|member| member.voters.clone())
        .unwrap_or_default();
    voters
        .into_iter()
        .filter(|voter| !there.contains(&voter.id))
        .collect()
}

impl Cluster {
    /// Whether all start where the others look for them, and none contradicts another.
    pub fn is_healthy(&self) -> bool {
        let agree = |agreement: &Agreement| {
            matches!(
                agreement.verdict,
                Verdict::Same { .. } | Verdict::NotComparable
            )
        };
        let well = |member: &MemberStatus| {
            member.moved.is_none()
                && member
                    .problems
                    .iter()
                    .all(|problem| problem.effect == Effect::Harmless)
        };
        self.members.iter().all(well)
            && self.agreement.iter().all(agree)
            && self.left_out.is_empty()
    }
}
