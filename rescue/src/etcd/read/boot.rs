//! Whether etcd will start on what a member's disk holds, and with which words it will not. The
//! rules are those of etcd's own start: server/etcdserver (bootstrap.go, raft.go, backend.go),
//! server/storage/wal, raft's newRaft.

use super::member::{MemberData, Stored};
use super::replay::{Replay, Started, names};
use crate::base::units;
use crate::etcd::format::bbolt::Fault;
use crate::etcd::format::snap::SnapFault;
use crate::etcd::format::wal::{End, SegmentLook, Tear};
use crate::guest::GuestPath;

/// What a problem does to the member.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Effect {
    /// Nothing: etcd mends it itself, or it is only worth knowing.
    Harmless,
    /// etcd starts but does not work as it should.
    Breaks,
    /// etcd does not start.
    Stops,
}

/// What kind of problem, for programs and for what mends it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// No folder `member`.
    NoMember,
    /// No log.
    NoLog,
    /// A file of the log that is needed is damaged, in its middle.
    LogDamaged,
    /// The end of the last file is damaged in a way that etcd does not mend.
    TailDamaged,
    /// The end of the last file is torn; etcd cuts it.
    TailTorn,
    /// A file of the log that is not needed is damaged; etcd reads it all the same.
    OldLogDamaged,
    /// A file of the log is missing.
    LogMissing,
    /// Files of the log belong to different members.
    LogMixed,
    /// Bytes behind the end of the log.
    LogFollowed,
    /// No database.
    NoDatabase,
    /// The database is damaged.
    DatabaseDamaged,
    /// The database holds something else than those of a majority of the members.
    DatabaseDiffers,
    /// The snapshot is newer than the database.
    SnapshotAhead,
    /// A snapshot file is damaged.
    SnapshotDamaged,
    /// The log begins later than what the snapshot or nothing ends with.
    SnapshotMissing,
    /// More is agreed on than the log holds.
    CommitBeyondLog,
    /// More is in the database than the log holds.
    DatabaseBeyondLog,
    /// The member was removed from the cluster.
    Removed,
    /// The membership that the disk holds does not know the member.
    Unknown,
    /// raft has, or will have after an upgrade to 3.6, other voters than `member list` shows.
    VotersDiffer,
    /// An alarm is raised.
    Alarm,
    /// Something could not be read.
    Unreadable,
    /// Files that etcd set aside or did not finish.
    Leftover,
}

/// One problem.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Problem {
    /// Which.
    pub kind: Kind,
    /// What it does.
    pub effect: Effect,
    /// The file or folder.
    pub path: GuestPath,
    /// What was seen, as a sentence without its full stop.
    pub saw: String,
    /// The words of etcd's error, where it has some.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub etcd_says: Option<String>,
}

impl Problem {
    /// A database that is the odd one out.
    pub fn differs(path: &GuestPath, saw: String) -> Self {
        Self::new(Kind::DatabaseDiffers, Effect::Breaks, path, saw)
    }

    fn new(kind: Kind, effect: Effect, path: &GuestPath, saw: impl Into<String>) -> Self {
        Self {
            kind,
            effect,
            path: path.clone(),
            saw: saw.into(),
            etcd_says: None,
        }
    }

    fn says(mut self, words: impl Into<String>) -> Self {
        self.etcd_says = Some(words.into());
        self
    }

    /// Whether it is an alarm that etcd itself has raised: it starts all the same.
    pub fn is_alarm(&self) -> bool {
        self.kind == Kind::Alarm
    }

    /// A database that does not open, or that a check of all its pages found damaged.
    pub fn database(path: &GuestPath, fault: &Fault) -> Self {
        let words = match fault {
            Fault::Metas(..) => "invalid database",
            Fault::Short(_) => "unexpected fault address",
            Fault::Page { .. } | Fault::Implausible(_) => {
                "freepages: failed to get all reachable pages"
            }
            Fault::Tree(_) => {
                return Self::new(
                    Kind::Unreadable,
                    Effect::Stops,
                    path,
                    format!("the database cannot be read: {fault}"),
                );
            }
        };
        Self::new(
            Kind::DatabaseDamaged,
            Effect::Stops,
            path,
            format!("the database is damaged: {fault}"),
        )
        .says(words)
    }
}

/// All problems, the worst first.
pub fn problems(data: &MemberData) -> Vec<Problem> {
    let mut found = Vec::new();
    if !data.is_there {
        let saw =
            "there is no member: a first control-plane node would found an empty cluster here";
        found.push(Problem::new(
            Kind::NoMember,
            Effect::Stops,
            &data.place.data_dir,
            saw,
        ));
        return found;
    }
    for (path, why) in &data.unreadable {
        found.push(Problem::new(
            Kind::Unreadable,
            Effect::Stops,
            path,
            format!("it cannot be read: {why}"),
        ));
    }
    log(data, &mut found);
    database(data, &mut found);
    snapshots(data, &mut found);
    if !data.log.segments.is_empty() {
        indexes(data, &mut found);
        membership(data, &mut found);
        found.extend(voters(data));
    }
    alarms(data, &mut found);
    leftovers(data, &mut found);
    found.sort_by_key(|problem| std::cmp::Reverse(problem.effect));
    found
}

fn log(data: &MemberData, found: &mut Vec<Problem>) {
    let wal = &data.place.wal;
    if data.wal.segments.is_empty() {
        let saw = "the write-ahead log is empty: etcd takes this for a new member";
        found.push(Problem::new(Kind::NoLog, Effect::Stops, wal, saw));
        return;
    }
    let start = data.wal.start_for(data.snapshot_index()).unwrap_or(0);
    for (number, look) in data.log.segments.iter().enumerate() {
        found.extend(segment(
            look,
            number < start,
            number + 1 == data.log.segments.len(),
        ));
    }
    if let Some(missing) = data.wal.gap_after(start) {
        let saw = format!("a file of the log is missing before {}", missing.path);
        found.push(
            Problem::new(Kind::LogMissing, Effect::Stops, wal, saw).says("wal: file not found"),
        );
    } else if start > 0
        && let Some(missing) = data.wal.gap_after(0)
    {
        let saw = format!(
            "a file of the log is missing before {}, which is not needed",
            missing.path
        );
        found.push(
            Problem::new(Kind::OldLogDamaged, Effect::Stops, wal, saw).says("walpb: crc mismatch"),
        );
    }
    if let Some(other) = &data.log.other_identity {
        let saw = "it belongs to another member or cluster than the files before it";
        let problem = Problem::new(Kind::LogMixed, Effect::Stops, &other.path, saw);
        found.push(problem.says("wal: conflicting metadata found"));
    }
}

fn segment(look: &SegmentLook, is_old: bool, is_last: bool) -> Option<Problem> {
    let what = look.says()?;
    let path = &look.segment.path;
    let size = units::bytes(look.torn_bytes());
    let saw = format!(
        "the log {what}; {size} lie behind its last good record at byte {}",
        look.used
    );
    Some(match (look.end, is_old, is_last) {
        (End::Complete, ..) => return None,
        (End::Torn(Tear::Length), _, true) => {
            let saw = format!("{saw}; etcd cuts it off itself only from 3.5.7 on");
            Problem::new(Kind::TailTorn, Effect::Stops, path, saw)
                .says("wal: max entry size limit exceeded")
        }
        (End::Torn(_), _, true) => Problem::new(
            Kind::TailTorn,
            Effect::Harmless,
            path,
            format!("{saw}; etcd cuts it off itself"),
        ),
        (end, true, false) => {
            let saw = format!("{saw}; the file is not needed, but etcd reads it");
            Problem::new(Kind::OldLogDamaged, Effect::Stops, path, saw).says(words(end))
        }
        (end, false, false) => {
            Problem::new(Kind::LogDamaged, Effect::Stops, path, saw).says(words(end))
        }
        (end, _, true) => {
            Problem::new(Kind::TailDamaged, Effect::Stops, path, saw).says(words(end))
        }
    })
}

fn words(end: End) -> &'static str {
    match end {
        End::Damaged(damage) => damage.error(),
        End::Torn(_) => "unexpected EOF",
        End::Complete => "",
    }
}

fn database(data: &MemberData, found: &mut Vec<Problem>) {
    match &data.stored {
        Stored::Open(_) => {}
        Stored::Damaged(fault) => found.push(Problem::database(&data.place.db(), fault)),
        Stored::Missing => {
            // etcd makes an empty one and fills it from the log; that is enough only where the log
            // is there from its first entry.
            let from_log =
                data.snapshot_index() == 0 && data.log.first == 1 && !data.log.is_empty();
            let (effect, saw) = match from_log {
                true => (
                    Effect::Harmless,
                    "there is no database; etcd makes it anew from the log, which is whole",
                ),
                false => (Effect::Stops, "there is no database"),
            };
            found.push(Problem::new(
                Kind::NoDatabase,
                effect,
                &data.place.db(),
                saw,
            ));
        }
    }
}

fn snapshots(data: &MemberData, found: &mut Vec<Problem>) {
    let chosen = data.snapshot_index();
    for (file, snapshot) in &data.snapshots {
        let Err(fault) = snapshot else { continue };
        let what = match fault {
            SnapFault::Empty => "the snapshot file is empty",
            SnapFault::Checksum => "the snapshot file's checksum is wrong",
            SnapFault::Malformed => "the snapshot file is no snapshot",
        };
        let saw = format!("{what}; etcd sets it aside and takes an older one");
        found.push(
            Problem::new(Kind::SnapshotDamaged, Effect::Harmless, &file.path, saw)
                .says(what_etcd_says(*fault)),
        );
    }
    let log = &data.log;
    if !log.segments.is_empty() && data.wal.start_for(chosen).is_none() {
        let saw = match chosen {
            0 => format!(
                "no snapshot counts, and the log begins with entry {} only",
                log.first
            ),
            chosen => format!(
                "the log begins with entry {}, after snapshot {chosen}",
                log.first
            ),
        };
        let says = if chosen == 0 {
            "No snapshot found. Recovering WAL from scratch!; wal: file not found"
        } else {
            "wal: file not found"
        };
        found.push(
            Problem::new(Kind::SnapshotMissing, Effect::Stops, &data.place.snap, saw).says(says),
        );
    }
}

fn what_etcd_says(fault: SnapFault) -> &'static str {
    match fault {
        SnapFault::Empty => "snap: empty snapshot",
        SnapFault::Checksum => "snap: crc mismatch",
        SnapFault::Malformed => "failed to unmarshal snappb.Snapshot",
    }
}

fn indexes(data: &MemberData, found: &mut Vec<Problem>) {
    let (snapshot, consistent, last) = (
        data.snapshot_index(),
        data.consistent_index(),
        data.log.last,
    );
    let readable = matches!(data.stored, Stored::Open(_) | Stored::Missing);
    let received = data
        .snap
        .databases
        .iter()
        .any(|(_, index)| *index == snapshot);
    if readable && snapshot > consistent && !received {
        let saw = format!(
            "the snapshot is newer (entry {snapshot}) than the database (entry {consistent})"
        );
        let says = "failed to recover v3 backend from snapshot: failed to find database snapshot \
            file (snap: snapshot file doesn't exist)";
        found.push(
            Problem::new(Kind::SnapshotAhead, Effect::Stops, &data.place.snap, saw).says(says),
        );
    }
    let commit = data.log.state.commit;
    if commit > last || commit < snapshot {
        let saw = format!("entries up to {commit} are agreed on, but the log ends with {last}");
        let says = format!("state.commit {commit} is out of range [{snapshot}, {last}]");
        found.push(
            Problem::new(Kind::CommitBeyondLog, Effect::Stops, &data.place.wal, saw).says(says),
        );
    }
    if consistent > last.max(snapshot) {
        let saw = format!(
            "the database holds entries up to {consistent}, but the log ends with {last}: etcd \
             would start, look healthy, and lose every write until the log has caught up"
        );
        found.push(Problem::new(
            Kind::DatabaseBeyondLog,
            Effect::Breaks,
            &data.place.wal,
            saw,
        ));
    }
    if data.log.first > snapshot.saturating_add(1) && data.wal.start_for(snapshot).is_some() {
        let saw = format!(
            "entries {} to {} are missing in the log",
            snapshot + 1,
            data.log.first - 1
        );
        let known = found
            .iter()
            .any(|problem| matches!(problem.kind, Kind::LogDamaged | Kind::LogMissing));
        if !known {
            let problem = Problem::new(Kind::LogMissing, Effect::Stops, &data.place.wal, saw);
            found.push(problem.says("wal: slice bounds out of range"));
        }
    }
}

fn membership(data: &MemberData, found: &mut Vec<Problem>) {
    let Some(identity) = data.log.identity else {
        return;
    };
    let (members, _) = data.membership();
    let id = identity.member;
    if members.removed.contains(&id) {
        let saw = format!("this member ({id:x}) was removed from its cluster");
        let says = "the member has been permanently removed from the cluster";
        found
            .push(Problem::new(Kind::Removed, Effect::Stops, &data.place.member(), saw).says(says));
    } else if !members.list.contains_key(&id) && !members.list.is_empty() {
        let saw = format!("the membership that this disk holds does not know this member ({id:x})");
        found.push(Problem::new(
            Kind::Unknown,
            Effect::Breaks,
            &data.place.member(),
            saw,
        ));
    }
}

/// What etcd 3.6 replays at its starts gives raft other voters than the database has.
fn voters(data: &MemberData) -> Option<Problem> {
    let replay = Replay::of(data)?;
    let (next, later) = (replay.next_start(), replay.later_start());
    let (started, is_next) = if next.agrees() {
        (later, false)
    } else {
        (next, true)
    };
    if started.agrees() {
        return None;
    }
    let is_3_6 = data
        .facts()
        .is_some_and(|facts| facts.storage_version.is_some());
    let raft = match (is_3_6, is_next) {
        (true, true) => "etcd's raft",
        (true, false) => "from its second start on etcd's raft",
        (false, _) => "after an upgrade to etcd 3.6 its raft",
    };
    let saw = voters_saw(&started, raft);
    let path = &data.place.member();
    if replay.with_new_snapshot().keeps_voters() {
        return Some(Problem::new(Kind::VotersDiffer, Effect::Breaks, path, saw));
    }
    // No snapshot can be newer than the database, and that does not hold the changes yet.
    let saw =
        format!("{saw}; start etcd once and power it off again: then `rescue repair` prevents it");
    Some(Problem::new(
        Kind::VotersDiffer,
        Effect::Harmless,
        path,
        saw,
    ))
}

/// `raft`: whose, and when, as a subject.
fn voters_saw(started: &Started, raft: &str) -> String {
    let listed = names(&started.members.voters().collect(), &started.members.list);
    let voters = names(&started.voters, &started.members.list);
    match started.panics_at {
        Some(entry) => {
            format!(
                "{raft} ends at entry {entry}: a .snap and the log give other members than the \
                 database, {listed}"
            )
        }
        None => format!("{raft} has the voters {voters}, but `member list` shows {listed}"),
    }
}

fn alarms(data: &MemberData, found: &mut Vec<Problem>) {
    let Some(facts) = data.facts() else { return };
    for alarm in &facts.alarms {
        use super::backend::AlarmKind;
        let (what, says) = match alarm.kind {
            AlarmKind::NoSpace => (
                "NOSPACE: no writes are taken",
                "etcdserver: mvcc: database space exceeded",
            ),
            AlarmKind::Corrupt => (
                "CORRUPT: no requests are answered",
                "etcdserver: corrupt cluster",
            ),
            AlarmKind::Unknown => ("of an unknown kind", ""),
        };
        let saw = format!("member {:x} has raised an alarm, {what}", alarm.member);
        found.push(Problem::new(Kind::Alarm, Effect::Breaks, &data.place.db(), saw).says(says));
    }
}

/// A database that has reached `--quota-backend-bytes`: etcd raises an alarm with the next write.
pub fn over_quota(data: &MemberData, quota: u64) -> Option<Problem> {
    let Stored::Open(open) = &data.stored else {
        return None;
    };
    let size = open.0.db.size();
    (size >= quota).then(|| {
        let saw = format!(
            "the database has reached its quota ({} of {})",
            units::bytes(size),
            units::bytes(quota)
        );
        Problem::new(Kind::Alarm, Effect::Breaks, &data.place.db(), saw)
            .says("etcdserver: mvcc: database space exceeded")
    })
}

fn leftovers(data: &MemberData, found: &mut Vec<Problem>) {
    for path in data.wal.broken.iter().chain(&data.snap.broken) {
        found.push(Problem::new(
            Kind::Leftover,
            Effect::Harmless,
            path,
            "set aside by etcd as damaged",
        ));
    }
}

/// What can be done about it, as one or two sentences.
pub fn advice(problem: &Problem) -> Option<&'static str> {
    if problem.effect == Effect::Harmless {
        return None;
    }
    Some(match problem.kind {
        Kind::NoMember | Kind::NoLog => {
            "Do not start this node as it is. Where other members are left, `rescue repair` with \
             the disks of all control planes takes it into their cluster again; where none is: \
             rescue etcd rebuild --from FILE, with a saved snapshot."
        }
        Kind::OldLogDamaged => "The file is not needed: moving it out of the folder loses nothing.",
        Kind::TailDamaged => {
            "etcd reads nothing behind the last good record; where other members are whole they \
             still have it, and what can be proved of it here is taken over."
        }
        Kind::LogDamaged | Kind::LogMissing => {
            "Entries that this member needs are gone. Take them from another member: give all \
             control planes' disks."
        }
        Kind::SnapshotAhead => {
            "The database is older than the snapshot. Where the log reaches back to the database, \
             moving the newer snapshot away loses nothing: etcd replays the log."
        }
        Kind::NoDatabase | Kind::DatabaseDamaged => {
            "`rescue repair` with the disks of all control planes makes it anew from another \
             member, where one is whole; where it was the only one: a saved snapshot (rescue etcd \
             rebuild --from FILE), or what is left (rescue etcd salvage)."
        }
        Kind::DatabaseDiffers => {
            "Take the database from a member that agrees with the others: give all control planes' \
             disks."
        }
        Kind::SnapshotMissing => {
            "Do not remove more files; an older snapshot or a copy of the database brings the \
             member back."
        }
        Kind::CommitBeyondLog | Kind::DatabaseBeyondLog => {
            "The end of the log is lost. Never start it beside other members; where it is the only \
             one, its log must be extended."
        }
        Kind::Removed => "Wipe the member's data and let the node join again.",
        Kind::Unknown => "Compare with the other members' disks before starting it.",
        Kind::VotersDiffer => {
            "Writes then need other members than you count on: with one voter lost of three, one \
             certain member may not fail. `rescue repair` with the disks of all control planes \
             (etcd 3.6: and --unproven) lays a snapshot beside each log that names the voters as \
             the database does; log, database and IDs stay."
        }
        Kind::LogMixed => "Files of two members lie in one folder: sort them out by their dates.",
        Kind::Alarm => {
            "Compact and defragment every member, then lift the alarm: etcdctl alarm disarm."
        }
        Kind::Unreadable => "Check the disk and the file system first.",
        Kind::TailTorn | Kind::LogFollowed | Kind::SnapshotDamaged | Kind::Leftover => return None,
    })
}
