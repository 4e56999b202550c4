//! Changes of the membership, in an order that etcd takes: it passes over an addition whose URL another member still has, and panics when
//! the last voter goes.

use crate::etcd::members::{Member, Members};
use crate::etcd::raft::{ConfChange, ConfChangeKind};
use crate::etcd::write::wal::add;

/// A URL that no member has, for one that is about to go. `.invalid` never resolves (RFC 6761).
const NOWHERE: &str = "http://removed.invalid:2380";

/// These members go.
pub fn remove(ids: impl IntoIterator<Item = u64>) -> Vec<ConfChange> {
    ids.into_iter().map(|node| ConfChange { kind: ConfChangeKind::RemoveNode, node, context: Vec::new() }).collect()
}

/// A member is reached elsewhere from now on.
pub fn update(member: &Member, peer_urls: Vec<String>) -> ConfChange {
    let moved = Member { peer_urls, ..member.clone() };
    ConfChange { kind: ConfChangeKind::UpdateNode, node: member.id, context: moved.to_json() }
}

/// All members go and others come in their place, perhaps with the same URLs. One of the old stays until a new one is there, under a URL
/// that is in nobody's way. Voters come first: etcd takes a learner only where there is a voter.
pub fn replace(old: &Members, new: &[Member]) -> Vec<ConfChange> {
    let (learners, voters): (Vec<&Member>, Vec<&Member>) = new.iter().partition(|member| member.is_learner);
    let added = || voters.iter().chain(&learners).map(|member| add(member));
    let Some(stays) = old.voters().next() else { return added().collect() };
    let mut changes = remove(old.list.keys().copied().filter(|id| *id != stays));
    if let Some(member) = old.list.get(&stays) {
        changes.push(update(member, vec![NOWHERE.to_owned()]));
    }
    changes.extend(added());
    changes.extend(remove([stays]));
    changes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn members(ids: &[u64]) -> Members {
        let mut members = Members::default();
        for id in ids {
            let peer_urls = vec![format!("https://10.0.0.{}:2380", id % 10)];
            members.list.insert(*id, Member { id: *id, peer_urls, ..Member::default() });
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
            for change in replace(&now, &added) {
                now.apply(&change);
                assert!(now.voters().count() > 0);
            }
            assert_eq!(now.list, wanted.list);
        }
    }

    #[test]
    fn a_learner_is_replaced_by_a_learner_behind_the_voters() {
        let mut now = members(&[1, 2]);
        now.list.insert(3, Member { id: 3, is_learner: true, ..Member::default() });
        let mut wanted = members(&[11, 12, 13]);
        wanted.list.entry(11).and_modify(|member| member.is_learner = true);
        let added: Vec<Member> = wanted.list.values().cloned().collect();
        for change in replace(&now, &added) {
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
