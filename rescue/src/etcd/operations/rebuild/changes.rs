//! Changes of the membership, in an order that every version of etcd accepts, also when it replays
//! them at a later start.
//!
//! etcd replays the entries behind its newest `.snap` at each start, those that are already in the
//! database included, and only entries whose change it accepts reach raft. Until it writes the next
//! `.snap` (10,000 entries on 3.6, 100,000 before) the same changes must therefore be accepted
//! again and again:
//!
//! - Up to 3.5 etcd validates a change against its v2 store, which the replay builds up step by
//!   step (server/etcdserver/api/membership/cluster.go: `ValidateConfigurationChange`).
//! - 3.6 does the same for entries that the database holds, but its v2 store may show an outdated
//!   URL: an update of a member that the database does not know any more is skipped
//!   (`UpdateRaftAttributes`), because that member is removed later. An addition with a URL that an
//!   old member has in the v2 store is then refused ("peerURL exists"), and raft lacks the new
//!   member for good.
//! - 3.7 takes raft's voters from the database and replays no change that it holds.
//!
//! So no old member may be left when the first new one is added, whatever URLs either has. raft in
//! turn panics where the last voter goes (raft/confchange: "removed all voters"). A placeholder,
//! whose URL nobody else has, is the voter in between.

use crate::etcd::format::members::{Member, Members};
use crate::etcd::format::raft::{ConfChange, ConfChangeKind};
use crate::etcd::write::identity::member_id;
use crate::etcd::write::wal::add;

/// Peer URL of the placeholder. `.invalid` never resolves (RFC 6761).
const PLACEHOLDER_URL: &str = "http://placeholder.invalid:2380";

/// These members go.
pub fn remove(ids: impl IntoIterator<Item = u64>) -> Vec<ConfChange> {
    ids.into_iter()
        .map(|node| ConfChange {
            kind: ConfChangeKind::RemoveNode,
            node,
            context: Vec::new(),
        })
        .collect()
}

/// A member is reached elsewhere from now on. Only for a member that stays: etcd 3.6 skips the
/// update of one that is removed later.
pub fn update(member: &Member, peer_urls: Vec<String>) -> ConfChange {
    let moved = Member {
        peer_urls,
        ..member.clone()
    };
    ConfChange {
        kind: ConfChangeKind::UpdateNode,
        node: member.id,
        context: moved.to_json(),
    }
}

/// All members go and others come in their place, perhaps with the same URLs. `token` makes the
/// placeholder's ID; it must never have been used, as for the new members. Voters come first: etcd
/// takes a learner only where there is a voter.
pub fn replace(old: &Members, new: &[Member], token: &str) -> Vec<ConfChange> {
    let placeholder = placeholder(token);
    let (learners, voters): (Vec<&Member>, Vec<&Member>) =
        new.iter().partition(|member| member.is_learner);
    let mut changes = vec![add(&placeholder)];
    changes.extend(remove(old.list.keys().copied()));
    changes.extend(voters.into_iter().chain(learners).map(add));
    changes.extend(remove([placeholder.id]));
    changes
}

fn placeholder(token: &str) -> Member {
    let peer_urls = vec![PLACEHOLDER_URL.to_owned()];
    Member {
        id: member_id(&peer_urls, token),
        peer_urls,
        ..Member::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn members(ids: &[u64]) -> Members {
        let mut members = Members::default();
        for id in ids {
            let peer_urls = vec![format!("https://10.0.0.{}:2380", id % 10)];
            members.list.insert(
                *id,
                Member {
                    id: *id,
                    peer_urls,
                    ..Member::default()
                },
            );
        }
        members
    }

    #[test]
    fn replacing_never_leaves_nobody_and_nobody_is_passed_over() {
        for (old, new) in [
            (vec![1], vec![11]),
            (vec![1, 2, 3], vec![11, 12, 13]),
            (vec![1, 2, 3], vec![13]),
            (vec![2], vec![11, 12, 13]),
        ] {
            let mut now = members(&old);
            let wanted = members(&new);
            let added: Vec<Member> = wanted.list.values().cloned().collect();
            for change in replace(&now, &added, "token") {
                now.apply(&change);
                assert!(now.voters().count() > 0);
            }
            assert_eq!(now.list, wanted.list);
        }
    }

    #[test]
    fn a_learner_is_replaced_by_a_learner_behind_the_voters() {
        let mut now = members(&[1, 2]);
        now.list.insert(
            3,
            Member {
                id: 3,
                is_learner: true,
                ..Member::default()
            },
        );
        let mut wanted = members(&[11, 12, 13]);
        wanted
            .list
            .entry(11)
            .and_modify(|member| member.is_learner = true);
        let added: Vec<Member> = wanted.list.values().cloned().collect();
        for change in replace(&now, &added, "token") {
            now.apply(&change);
            assert!(now.voters().count() > 0);
            assert!(now.list.values().filter(|member| member.is_learner).count() < 2);
        }
        assert_eq!(now.list, wanted.list);
    }

    #[test]
    fn a_member_moves() {
        let mut now = members(&[1, 2]);
        let change = update(&now.list[&1], vec!["https://10.9.9.9:2380".to_owned()]);
        now.apply(&change);
        assert_eq!(now.list[&1].peer_urls, ["https://10.9.9.9:2380"]);
    }
}
