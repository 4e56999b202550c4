//! Messages of etcd's raft: entries, the hard state, configuration changes, snapshots. Field
//! numbers from raft/raftpb/raft.proto.

use super::proto::{Malformed, Value, fields, push_repeated};

/// More members than any configuration has; etcd advises 7 at most.
const MAX_MEMBERS: usize = 1000;

/// What an entry carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EntryKind {
    /// A request, or nothing: a new leader's first entry.
    Normal,
    /// A [`ConfChange`].
    ConfChange,
    /// A change in the form for joint consensus; etcd's server does not write it.
    ConfChangeV2,
}

/// One entry of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry<'a> {
    /// Term of the leader that made it.
    pub term: u64,
    /// Its number.
    pub index: u64,
    /// What `data` is.
    pub kind: EntryKind,
    /// The request.
    pub data: &'a [u8],
}

impl<'a> Entry<'a> {
    /// Reads one.
    ///
    /// # Errors
    /// [`Malformed`].
    pub fn parse(message: &'a [u8]) -> Result<Self, Malformed> {
        let mut entry = Self {
            term: 0,
            index: 0,
            kind: EntryKind::Normal,
            data: &[],
        };
        for field in fields(message) {
            match field? {
                (1, value) => {
                    entry.kind = match value.number()? {
                        0 => EntryKind::Normal,
                        1 => EntryKind::ConfChange,
                        2 => EntryKind::ConfChangeV2,
                        _ => return Err(Malformed),
                    }
                }
                (2, value) => entry.term = value.number()?,
                (3, value) => entry.index = value.number()?,
                (4, value) => entry.data = value.bytes()?,
                _ => {}
            }
        }
        Ok(entry)
    }
}

/// What a member must never forget.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct HardState {
    /// The newest term it has seen.
    pub term: u64,
    /// Whom it voted for in that term; 0 for nobody.
    pub vote: u64,
    /// All entries up to here are agreed on by a majority. Written without waiting for the disk, so
    /// the newest value is often lost.
    pub commit: u64,
}

impl HardState {
    /// Reads one.
    ///
    /// # Errors
    /// [`Malformed`].
    pub fn parse(message: &[u8]) -> Result<Self, Malformed> {
        let mut state = Self::default();
        for field in fields(message) {
            match field? {
                (1, value) => state.term = value.number()?,
                (2, value) => state.vote = value.number()?,
                (3, value) => state.commit = value.number()?,
                _ => {}
            }
        }
        Ok(state)
    }
}

/// Who votes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ConfState {
    /// Member IDs.
    pub voters: Vec<u64>,
    /// Members that receive the log without a vote.
    pub learners: Vec<u64>,
    /// Voters of the old configuration while two are in force.
    pub voters_outgoing: Vec<u64>,
    /// Voters that will be learners afterwards.
    pub learners_next: Vec<u64>,
}

impl ConfState {
    /// Reads one.
    ///
    /// # Errors
    /// [`Malformed`].
    pub fn parse(message: &[u8]) -> Result<Self, Malformed> {
        let mut state = Self::default();
        for field in fields(message) {
            let (number, value) = field?;
            let list = match number {
                1 => &mut state.voters,
                2 => &mut state.learners,
                3 => &mut state.voters_outgoing,
                4 => &mut state.learners_next,
                _ => continue,
            };
            push_repeated(list, value, MAX_MEMBERS)?;
        }
        Ok(state)
    }
}

/// What a configuration change does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConfChangeKind {
    /// A voter comes, or a learner becomes one.
    AddNode,
    /// A member goes.
    RemoveNode,
    /// A member's URLs change.
    UpdateNode,
    /// A learner comes.
    AddLearner,
}

/// One change of the membership.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfChange {
    /// What it does.
    pub kind: ConfChangeKind,
    /// The member.
    pub node: u64,
    /// JSON of the member, for additions and updates.
    pub context: Vec<u8>,
}

impl ConfChange {
    /// Reads one.
    ///
    /// # Errors
    /// [`Malformed`].
    pub fn parse(message: &[u8]) -> Result<Self, Malformed> {
        let mut change = Self {
            kind: ConfChangeKind::AddNode,
            node: 0,
            context: Vec::new(),
        };
        for field in fields(message) {
            match field? {
                (2, value) => {
                    change.kind = match value.number()? {
                        0 => ConfChangeKind::AddNode,
                        1 => ConfChangeKind::RemoveNode,
                        2 => ConfChangeKind::UpdateNode,
                        3 => ConfChangeKind::AddLearner,
                        _ => return Err(Malformed),
                    }
                }
                (3, value) => change.node = value.number()?,
                (4, value) => change.context = value.bytes()?.to_vec(),
                _ => {}
            }
        }
        Ok(change)
    }
}

/// A snapshot's place in the log; the same fields in raft's metadata and in the log's own record
/// have other numbers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SnapshotMark {
    /// The last entry that is part of it.
    pub index: u64,
    /// That entry's term.
    pub term: u64,
    /// Who voted then; in the log only from 3.5 on.
    pub conf_state: Option<ConfState>,
}

impl SnapshotMark {
    /// The log's record of type 5 (walpb.Snapshot: index, term, conf_state).
    ///
    /// # Errors
    /// [`Malformed`].
    pub fn parse_record(message: &[u8]) -> Result<Self, Malformed> {
        Self::parse(message, [1, 2, 3])
    }

    /// The metadata within a raftpb.Snapshot (conf_state, index, term).
    ///
    /// # Errors
    /// [`Malformed`].
    pub fn parse_metadata(message: &[u8]) -> Result<Self, Malformed> {
        Self::parse(message, [2, 3, 1])
    }

    fn parse(message: &[u8], [index, term, conf_state]: [u32; 3]) -> Result<Self, Malformed> {
        let mut mark = Self::default();
        for field in fields(message) {
            let (number, value) = field?;
            if number == index {
                mark.index = value.number()?;
            } else if number == term {
                mark.term = value.number()?;
            } else if number == conf_state {
                mark.conf_state = Some(ConfState::parse(value.bytes()?)?);
            }
        }
        Ok(mark)
    }
}

/// Whose log it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Identity {
    /// The member's ID.
    pub member: u64,
    /// The cluster's ID.
    pub cluster: u64,
}

impl Identity {
    /// etcdserverpb.Metadata.
    ///
    /// # Errors
    /// [`Malformed`].
    pub fn parse(message: &[u8]) -> Result<Self, Malformed> {
        let mut identity = Self {
            member: 0,
            cluster: 0,
        };
        for field in fields(message) {
            match field? {
                (1, Value::Varint(id)) => identity.member = id,
                (2, Value::Varint(id)) => identity.cluster = id,
                _ => {}
            }
        }
        Ok(identity)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::etcd::format::proto::{put_bytes, put_number};

    #[test]
    fn reads_an_entry_and_a_change() {
        let mut change = Vec::new();
        put_number(&mut change, 2, 1);
        put_number(&mut change, 3, u64::MAX);
        let mut message = Vec::new();
        put_number(&mut message, 1, 1);
        put_number(&mut message, 2, 7);
        put_number(&mut message, 3, 4711);
        put_bytes(&mut message, 4, &change);
        let entry = Entry::parse(&message).unwrap();
        assert_eq!(
            (entry.kind, entry.term, entry.index),
            (EntryKind::ConfChange, 7, 4711)
        );
        let change = ConfChange::parse(entry.data).unwrap();
        assert_eq!(
            (change.kind, change.node),
            (ConfChangeKind::RemoveNode, u64::MAX)
        );
    }

    #[test]
    fn marks_are_read_with_their_own_numbers() {
        let record = [8, 5, 16, 2];
        let mark = SnapshotMark::parse_record(&record).unwrap();
        assert_eq!((mark.index, mark.term, mark.conf_state), (5, 2, None));
        let metadata = [10, 4, 8, 1, 8, 2, 16, 5, 24, 2];
        let mark = SnapshotMark::parse_metadata(&metadata).unwrap();
        assert_eq!((mark.index, mark.term), (5, 2));
        assert_eq!(mark.conf_state.unwrap().voters, [1, 2]);
    }
}
