//! Messages of raft as gogo/protobuf encodes them up to etcd 3.6: fields that are zero are written,
//! too.

use serde::Serialize;

use super::store::go_json;
use crate::etcd::format::members::Member;
use crate::etcd::format::proto::{put_bytes, put_number};
use crate::etcd::format::raft::{
    ConfChange, ConfChangeKind, ConfState, Entry, EntryKind, HardState, Identity, SnapshotMark,
};

impl Entry<'_> {
    /// raftpb.Entry. No data is left out: a leader's first entry has none.
    pub fn encode(&self) -> Vec<u8> {
        let kind = match self.kind {
            EntryKind::Normal => 0,
            EntryKind::ConfChange => 1,
            EntryKind::ConfChangeV2 => 2,
        };
        let mut message = Vec::with_capacity(self.data.len() + 24);
        put_number(&mut message, 1, kind);
        put_number(&mut message, 2, self.term);
        put_number(&mut message, 3, self.index);
        if !self.data.is_empty() {
            put_bytes(&mut message, 4, self.data);
        }
        message
    }
}

impl HardState {
    /// raftpb.HardState.
    pub fn encode(&self) -> Vec<u8> {
        numbers(&[self.term, self.vote, self.commit])
    }
}

impl Identity {
    /// etcdserverpb.Metadata.
    pub fn encode(&self) -> Vec<u8> {
        numbers(&[self.member, self.cluster])
    }
}

impl ConfState {
    /// raftpb.ConfState. No joint consensus leaves itself: etcd's server does not use it.
    pub fn encode(&self) -> Vec<u8> {
        let mut message = Vec::new();
        let lists = [
            &self.voters,
            &self.learners,
            &self.voters_outgoing,
            &self.learners_next,
        ];
        for (field, list) in (1..).zip(lists) {
            for id in list {
                put_number(&mut message, field, *id);
            }
        }
        put_number(&mut message, 5, 0);
        message
    }
}

impl ConfChange {
    /// raftpb.ConfChange. Its own ID is 0, as `snapshot restore` has it: only a running server
    /// tells its waiting clients apart by it.
    pub fn encode(&self) -> Vec<u8> {
        let kind = match self.kind {
            ConfChangeKind::AddNode => 0,
            ConfChangeKind::RemoveNode => 1,
            ConfChangeKind::UpdateNode => 2,
            ConfChangeKind::AddLearner => 3,
        };
        let mut message = numbers(&[0, kind, self.node]);
        if !self.context.is_empty() {
            put_bytes(&mut message, 4, &self.context);
        }
        message
    }
}

impl SnapshotMark {
    /// walpb.Snapshot, as in the log.
    pub fn encode_record(&self) -> Vec<u8> {
        let mut message = numbers(&[self.index, self.term]);
        if let Some(state) = &self.conf_state {
            put_bytes(&mut message, 3, &state.encode());
        }
        message
    }

    /// raftpb.SnapshotMetadata, as in a `.snap` file.
    pub fn encode_metadata(&self) -> Vec<u8> {
        let mut message = Vec::new();
        put_bytes(
            &mut message,
            1,
            &self.conf_state.clone().unwrap_or_default().encode(),
        );
        put_number(&mut message, 2, self.index);
        put_number(&mut message, 3, self.term);
        message
    }
}

/// membership.Member, as configuration changes carry it.
#[derive(Serialize)]
struct Json<'a> {
    id: u64,
    #[serde(rename = "peerURLs")]
    peer_urls: &'a [String],
    #[serde(rename = "isLearner", skip_serializing_if = "std::ops::Not::not")]
    is_learner: bool,
    #[serde(skip_serializing_if = "str::is_empty")]
    name: &'a str,
    #[serde(rename = "clientURLs", skip_serializing_if = "<[String]>::is_empty")]
    client_urls: &'a [String],
}

impl Member {
    /// As configuration changes and the bucket `members` hold it.
    pub fn to_json(&self) -> Vec<u8> {
        let Self {
            id,
            name,
            peer_urls,
            client_urls,
            is_learner,
        } = self;
        go_json(&Json {
            id: *id,
            peer_urls,
            is_learner: *is_learner,
            name,
            client_urls,
        })
        .into_bytes()
    }
}

/// Integer fields 1, 2, …
fn numbers(values: &[u64]) -> Vec<u8> {
    let mut message = Vec::new();
    for (field, value) in (1..).zip(values) {
        put_number(&mut message, field, *value);
    }
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_encoded_is_read_back() {
        let change = ConfChange {
            kind: ConfChangeKind::AddLearner,
            node: u64::MAX,
            context: b"{}".to_vec(),
        };
        let data = change.encode();
        let entry = Entry {
            term: 3,
            index: 700,
            kind: EntryKind::ConfChange,
            data: &data,
        };
        let message = entry.encode();
        let read = Entry::parse(&message).unwrap();
        assert_eq!(read, entry);
        assert_eq!(ConfChange::parse(read.data).unwrap(), change);
        let state = HardState {
            term: 4,
            vote: 0,
            commit: 9,
        };
        assert_eq!(HardState::parse(&state.encode()).unwrap(), state);
        let voters = ConfState {
            voters: vec![1, 300],
            learners: vec![7],
            ..ConfState::default()
        };
        let mark = SnapshotMark {
            index: 5,
            term: 2,
            conf_state: Some(voters),
        };
        assert_eq!(
            SnapshotMark::parse_record(&mark.encode_record()).unwrap(),
            mark
        );
        assert_eq!(
            SnapshotMark::parse_metadata(&mark.encode_metadata()).unwrap(),
            mark
        );
        let identity = Identity {
            member: 1,
            cluster: u64::MAX,
        };
        assert_eq!(Identity::parse(&identity.encode()).unwrap(), identity);
    }
}
