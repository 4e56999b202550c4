//! etcd's buckets in its database (server/storage/schema, mvcc).

use std::collections::BTreeSet;
use std::ops::ControlFlow;

use serde::Deserialize;

use crate::etcd::format::bbolt::{Bucket, Database, Fault};
use crate::etcd::format::file::File;
use crate::etcd::format::members::{Member, Members};
use crate::etcd::format::proto::{Malformed, fields};
use crate::etcd::format::raft::ConfState;

/// Keys and their history.
pub const KEY: &[u8] = b"key";
/// The log's place, the compaction, the voters.
pub const META: &[u8] = b"meta";
/// Leases.
pub const LEASE: &[u8] = b"lease";
/// Alarms that are raised.
pub const ALARM: &[u8] = b"alarm";
/// The version that all members agreed on.
pub const CLUSTER: &[u8] = b"cluster";
/// Members.
pub const MEMBERS: &[u8] = b"members";
/// IDs that never come back.
pub const MEMBERS_REMOVED: &[u8] = b"members_removed";
/// Whether users must log in.
pub const AUTH: &[u8] = b"auth";

/// Bounds on what is kept of a crafted database.
const MAX_KEPT: usize = 1_000_000;

/// A revision: `main` counts writing transactions, `sub` the operations in one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Revision {
    /// Number of the transaction.
    pub main: i64,
    /// Number within it.
    pub sub: i64,
}

impl Revision {
    /// From a key of the bucket `key`, and whether it marks a deletion: u64 main, `_`, u64 sub, all
    /// big endian; then perhaps `t`.
    pub fn parse(key: &[u8]) -> Option<(Self, bool)> {
        let (revision, mark) = key.split_at_checked(17)?;
        let (main, rest) = revision.split_at_checked(8)?;
        let sub = rest.strip_prefix(b"_")?;
        let number = |bytes: &[u8]| Some(i64::from_be_bytes(bytes.try_into().ok()?));
        let is_deletion = match mark {
            [] => false,
            [b't'] => true,
            _ => return None,
        };
        Some((
            Self {
                main: number(main)?,
                sub: number(sub)?,
            },
            is_deletion,
        ))
    }

    /// The first 17 bytes of such a key.
    pub fn to_key(self) -> [u8; 17] {
        let mut key = [b'_'; 17];
        key[..8].copy_from_slice(&self.main.to_be_bytes());
        key[9..].copy_from_slice(&self.sub.to_be_bytes());
        key
    }
}

/// A value of the bucket `key` (mvccpb.KeyValue).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct KeyValue<'a> {
    /// The key.
    pub key: &'a [u8],
    /// Revision of its creation.
    pub create: i64,
    /// Revision of this change.
    pub modified: i64,
    /// How often it was written since its creation.
    pub version: i64,
    /// The value.
    pub value: &'a [u8],
    /// The lease it hangs on; 0 for none.
    pub lease: i64,
}

impl<'a> KeyValue<'a> {
    /// Reads one.
    ///
    /// # Errors
    /// [`Malformed`].
    pub fn parse(message: &'a [u8]) -> Result<Self, Malformed> {
        let mut kv = Self::default();
        for field in fields(message) {
            match field? {
                (1, value) => kv.key = value.bytes()?,
                (2, value) => kv.create = value.signed()?,
                (3, value) => kv.modified = value.signed()?,
                (4, value) => kv.version = value.signed()?,
                (5, value) => kv.value = value.bytes()?,
                (6, value) => kv.lease = value.signed()?,
                _ => {}
            }
        }
        Ok(kv)
    }
}

/// An alarm that is raised.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
pub struct RaisedAlarm {
    /// Whose.
    #[serde(serialize_with = "crate::etcd::format::members::as_hex")]
    pub member: u64,
    /// Which.
    pub kind: AlarmKind,
}

impl RaisedAlarm {
    /// Whether it says that the database is full.
    pub fn is_no_space(&self) -> bool {
        self.kind == AlarmKind::NoSpace
    }
}

/// etcd's alarms.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum AlarmKind {
    /// The database has reached its quota: no writes until it is smaller and the alarm is lifted.
    NoSpace,
    /// Members do not hold the same.
    Corrupt,
    /// One that this program does not know.
    Unknown,
}

impl From<u64> for AlarmKind {
    fn from(kind: u64) -> Self {
        match kind {
            1 => Self::NoSpace,
            2 => Self::Corrupt,
            _ => Self::Unknown,
        }
    }
}

#[derive(Deserialize)]
struct JsonConfState {
    #[serde(default)]
    voters: Option<Vec<u64>>,
    #[serde(default)]
    learners: Option<Vec<u64>>,
}

/// The database of a member.
#[derive(Debug)]
pub struct Backend {
    /// The file.
    pub db: Database,
}

/// What the small buckets say.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Facts {
    /// The last entry of the log that is in it.
    pub consistent_index: u64,
    /// That entry's term, from 3.5 on.
    pub term: Option<u64>,
    /// The newest revision.
    pub revision: i64,
    /// History up to here is gone; -1 where nothing was compacted.
    pub compacted: i64,
    /// A compaction that was begun and not finished; etcd finishes it at its start.
    pub compacting: bool,
    /// Voters and learners, from 3.5 on.
    pub conf_state: Option<ConfState>,
    /// From 3.6 on: the version of the format.
    pub storage_version: Option<String>,
    /// The version all members agreed on.
    pub cluster_version: Option<String>,
    /// Members as the database has them; etcd up to 3.5 does not rely on it.
    pub members: Members,
    /// Alarms that are raised.
    pub alarms: Vec<RaisedAlarm>,
    /// Leases.
    pub leases: BTreeSet<i64>,
    /// Whether users must log in.
    pub auth_enabled: bool,
}

impl Backend {
    /// Opens it by its newest meta page.
    ///
    /// # Errors
    /// As [`Database::open`].
    pub fn open(file: File) -> Result<Self, Fault> {
        Ok(Self {
            db: Database::open(file)?,
        })
    }

    /// What the small buckets and the end of the large one say; reads few pages.
    ///
    /// # Errors
    /// The first [`Fault`] on the way.
    pub fn facts(&self) -> Result<Facts, Fault> {
        let mut facts = Facts::read(&mut |bucket, visitor| self.each(bucket, visitor))?;
        facts.revision = match self.db.bucket(KEY)? {
            Some(bucket) => {
                let last = self.db.last_key(&bucket)?;
                last.and_then(|key| Revision::parse(&key))
                    .map_or(1, |(revision, _)| revision.main)
            }
            None => 1,
        };
        // All revisions up to a compaction may be deletions, which are gone with it.
        facts.revision = facts.revision.max(facts.compacted);
        Ok(facts)
    }

    fn each(&self, name: &[u8], visitor: &mut dyn FnMut(&[u8], &[u8])) -> Result<(), Fault> {
        let Some(bucket) = self.db.bucket(name)? else {
            return Ok(());
        };
        let mut kept = 0;
        self.db.walk(&bucket, None, &mut |item| {
            kept += 1;
            if !item.is_bucket {
                visitor(item.key, item.value);
            }
            if kept < MAX_KEPT {
                ControlFlow::Continue(())
            } else {
                ControlFlow::Break(())
            }
        })
    }

    /// The bucket with the keys' history.
    ///
    /// # Errors
    /// A [`Fault`] on the way to it.
    pub fn keys(&self) -> Result<Option<Bucket>, Fault> {
        self.db.bucket(KEY)
    }
}

/// Gives the elements of a small bucket to a visitor.
type Each<'e> = dyn FnMut(&[u8], &mut dyn FnMut(&[u8], &[u8])) -> Result<(), Fault> + 'e;

impl Facts {
    /// What the small buckets say; the newest revision is not among it.
    ///
    /// # Errors
    /// Those of `each`.
    pub fn read(each: &mut Each<'_>) -> Result<Self, Fault> {
        let mut facts = Self {
            compacted: -1,
            ..Self::default()
        };
        facts.meta(each)?;
        each(CLUSTER, &mut |key, value| {
            if key == b"clusterVersion" {
                facts.cluster_version = text(value);
            }
        })?;
        each(MEMBERS, &mut |_, value| {
            if let Some(member) = Member::from_json(value) {
                facts.members.list.insert(member.id, member);
            }
        })?;
        each(MEMBERS_REMOVED, &mut |key, _| {
            let id = std::str::from_utf8(key)
                .ok()
                .and_then(|id| u64::from_str_radix(id, 16).ok());
            facts.members.removed.extend(id);
        })?;
        each(ALARM, &mut |key, _| facts.alarms.extend(alarm(key)))?;
        each(LEASE, &mut |key, _| {
            facts
                .leases
                .extend(key.try_into().ok().map(i64::from_be_bytes));
        })?;
        each(AUTH, &mut |key, value| {
            facts.auth_enabled |= key == b"authEnabled" && value == [1];
        })?;
        Ok(facts)
    }

    fn meta(&mut self, each: &mut Each<'_>) -> Result<(), Fault> {
        let (mut scheduled, mut finished) = (-1, -1);
        each(META, &mut |key, value| {
            let number = || Some(u64::from_be_bytes(value.try_into().ok()?));
            match key {
                b"consistent_index" => self.consistent_index = number().unwrap_or(0),
                b"term" => self.term = number(),
                b"confState" => self.conf_state = conf_state(value),
                b"storageVersion" => self.storage_version = text(value),
                b"scheduledCompactRev" => {
                    scheduled = Revision::parse(value).map_or(-1, |(revision, _)| revision.main)
                }
                b"finishedCompactRev" => {
                    finished = Revision::parse(value).map_or(-1, |(revision, _)| revision.main)
                }
                _ => {}
            }
        })?;
        self.compacted = scheduled.max(finished);
        self.compacting = scheduled > finished;
        Ok(())
    }
}

fn text(value: &[u8]) -> Option<String> {
    std::str::from_utf8(value).ok().map(str::to_owned)
}

fn conf_state(json: &[u8]) -> Option<ConfState> {
    let state: JsonConfState = serde_json::from_slice(json).ok()?;
    Some(ConfState {
        voters: state.voters.unwrap_or_default(),
        learners: state.learners.unwrap_or_default(),
        ..ConfState::default()
    })
}

/// AlarmMember as a key: member ID, alarm.
fn alarm(key: &[u8]) -> Option<RaisedAlarm> {
    let (mut member, mut kind) = (0, 0);
    for field in fields(key) {
        match field.ok()? {
            (1, value) => member = value.number().ok()?,
            (2, value) => kind = value.number().ok()?,
            _ => {}
        }
    }
    Some(RaisedAlarm {
        member,
        kind: kind.into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn revisions_are_keys_and_back() {
        let revision = Revision { main: 4711, sub: 2 };
        let mut key = revision.to_key().to_vec();
        assert_eq!(Revision::parse(&key), Some((revision, false)));
        key.push(b't');
        assert_eq!(Revision::parse(&key), Some((revision, true)));
        key.push(b't');
        assert_eq!(Revision::parse(&key), None);
        assert_eq!(Revision::parse(b"short"), None);
    }

    #[test]
    fn alarms_and_voters_are_read() {
        let raised = alarm(&[8, 5, 16, 1]).unwrap();
        assert_eq!((raised.member, raised.kind), (5, AlarmKind::NoSpace));
        let state = conf_state(br#"{"voters":[17900966112634108180],"auto_leave":false}"#).unwrap();
        assert_eq!(state.voters, [17_900_966_112_634_108_180]);
    }
}
