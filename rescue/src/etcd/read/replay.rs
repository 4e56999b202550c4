//! The voters that raft counts with once etcd 3.6 has started: they may be others than
//! `member list` shows.
//!
//! At each start etcd 3.6 takes the members from its database, raft's voters from the newest
//! `.snap`, and replays the log's changes behind that into raft and into the v2 store that the
//! `.snap` holds (server/etcdserver/server.go: `apply`, `applyConfChange`):
//!
//! - A change that the database does not hold yet is validated against the database, and changes
//!   both.
//! - A change that the database holds is validated against the v2 store, and changes that alone. So
//!   it may be refused although it was accepted when it was new: the v2 store differs where the
//!   update of a member was skipped that the database does not know any more
//!   (server/etcdserver/api/membership/cluster.go: `UpdateRaftAttributes`).
//! - A change that is refused does not reach raft. The `.snap` that etcd writes later holds raft's
//!   voters: one that was lost so stays lost.
//!
//! Up to 3.5 members and changes both come from the v2 store, and 3.7 takes raft's voters from its
//! database (bootstrap.go: `buildConfStateFromV3store`). A disk of 3.4 or 3.5 may come to 3.6 with
//! its `.snap` and its log as they are.

use std::collections::{BTreeMap, BTreeSet};

use super::backend::Facts;
use super::member::MemberData;
use crate::etcd::format::members::{Member, Members};
use crate::etcd::format::raft::{ConfChange, ConfChangeKind, ConfState, SnapshotMark};

/// What a member's disk holds of the membership, as etcd 3.6 begins with it.
#[derive(Debug, Clone)]
pub struct Replay<'a> {
    /// Voters and learners in the `.snap`; none where there is no `.snap` and the log begins with
    /// entry 1.
    raft: ConfState,
    /// The v2 store in the `.snap`.
    store: Members,
    /// Members in the database.
    database: Members,
    /// The last entry that is in the database.
    applied: u64,
    /// Changes behind the `.snap` that are agreed on, with their entries.
    changes: Vec<(u64, &'a ConfChange)>,
}

/// What a start makes of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Started {
    /// IDs of raft's voters.
    pub voters: BTreeSet<u64>,
    /// IDs of raft's learners.
    pub learners: BTreeSet<u64>,
    /// Members in the database: what `member list` shows.
    pub members: Members,
    /// The entry at which etcd ends with a panic, because a change that the database accepts does
    /// not fit to the v2 store (membership/storev2.go: `mustSaveMemberToStore`,
    /// `mustDeleteMemberFromStore`).
    pub panics_at: Option<u64>,
}

impl Started {
    /// Whether raft's voters and learners are those of the database.
    pub fn agrees(&self) -> bool {
        let is = |learner: bool| {
            let list = self
                .members
                .list
                .values()
                .filter(move |member| member.is_learner == learner);
            list.map(|member| member.id).collect::<BTreeSet<u64>>()
        };
        self.panics_at.is_none() && self.voters == is(false) && self.learners == is(true)
    }
}

impl<'a> Replay<'a> {
    /// Of a member that is off. `None` where log, snapshot or database do not say it, or where the
    /// database is of 3.7 or later.
    pub fn of(data: &'a MemberData) -> Option<Self> {
        let snapshot = data.snapshot().map(|(_, snapshot)| snapshot);
        let (mark, store) = match snapshot {
            Some(snapshot) => (snapshot.mark.clone(), snapshot.members.clone()?),
            None => (SnapshotMark::default(), Members::default()),
        };
        Self::behind(data, &mark, store, data.facts()?)
    }

    /// The same with this `.snap` (its place and its v2 store) and this database beside the log of
    /// `data`.
    pub fn behind(
        data: &'a MemberData,
        mark: &SnapshotMark,
        store: Members,
        database: &Facts,
    ) -> Option<Self> {
        let applied = database.consistent_index;
        // A snapshot that is newer than the database was received with another one.
        let is_readable = mark.index <= applied && data.log.first <= mark.index.saturating_add(1);
        if !is_readable || (mark.index > 0 && mark.conf_state.is_none()) {
            return None;
        }
        let commit = data.commit().max(applied);
        let changes = data
            .log
            .changes
            .iter()
            .filter(|(index, _)| *index > mark.index && *index <= commit);
        let changes: Vec<(u64, &ConfChange)> =
            changes.map(|(index, change)| (*index, change)).collect();
        let database = match database.storage_version.as_deref() {
            Some(version) if version.starts_with("3.6") => database.members.clone(),
            Some(_) => return None,
            // Of 3.5 and older, whose database may still show members that were removed: 3.5 keeps
            // what its v2 store says.
            None => {
                let mut members = store.clone();
                let there = changes.iter().filter(|(index, _)| *index <= applied);
                there.for_each(|(_, change)| members.apply(change));
                members
            }
        };
        Some(Self {
            raft: mark.conf_state.clone().unwrap_or_default(),
            store,
            database,
            applied,
            changes,
        })
    }

    /// The same where a `.snap` that is made anew at the database's last entry says what the
    /// database says.
    #[must_use]
    pub fn with_new_snapshot(&self) -> Self {
        let learners = self
            .database
            .list
            .values()
            .filter(|member| member.is_learner)
            .map(|member| member.id);
        let raft = ConfState {
            voters: self.database.voters().collect(),
            learners: learners.collect(),
            ..ConfState::default()
        };
        let mut changes = self.changes.clone();
        changes.retain(|(index, _)| *index > self.applied);
        Self {
            raft,
            store: self.database.clone(),
            changes,
            ..self.clone()
        }
    }

    /// What the next start makes of it.
    pub fn next_start(&self) -> Started {
        let mut run = Run {
            voters: self.raft.voters.iter().copied().collect(),
            learners: self.raft.learners.iter().copied().collect(),
            store: self.store.clone(),
            database: self.database.clone(),
        };
        run.sync_promotions();
        let apply = |(index, change): &(u64, &ConfChange)| {
            let fits = run.apply(change, *index > self.applied);
            (!fits).then_some(*index)
        };
        let panics_at = self.changes.iter().find_map(apply);
        Started {
            voters: run.voters,
            learners: run.learners,
            members: run.database,
            panics_at,
        }
    }

    /// What the start after the next makes of it, when no `.snap` is written before: by then the
    /// database holds all of the changes.
    pub fn later_start(&self) -> Started {
        let database = self.next_start().members;
        Self {
            database,
            applied: u64::MAX,
            ..self.clone()
        }
        .next_start()
    }

    /// Whether raft's voters are those of the database at each start.
    pub fn keeps_voters(&self) -> bool {
        self.next_start().agrees() && self.later_start().agrees()
    }
}

/// One start.
struct Run {
    voters: BTreeSet<u64>,
    learners: BTreeSet<u64>,
    store: Members,
    database: Members,
}

impl Run {
    /// A member that votes by the v2 store votes by the database, too
    /// (`SyncLearnerPromotionIfNeeded`).
    fn sync_promotions(&mut self) {
        for (id, member) in &mut self.database.list {
            member.is_learner &= self
                .store
                .list
                .get(id)
                .is_none_or(|stored| stored.is_learner);
        }
    }

    /// One change. `is_new`: the database does not hold it yet. Whether the v2 store can take what
    /// is accepted.
    fn apply(&mut self, change: &ConfChange, is_new: bool) -> bool {
        let judge = if is_new { &self.database } else { &self.store };
        if !judge.accepts(change) {
            return true;
        }
        self.apply_to_raft(change);
        let fits = self.apply_to_store(change);
        if is_new {
            self.database.apply(change);
        }
        fits
    }

    /// As raft/confchange does for one change (`Changer.Simple`).
    fn apply_to_raft(&mut self, change: &ConfChange) {
        let id = change.node;
        match change.kind {
            ConfChangeKind::AddNode => {
                self.learners.remove(&id);
                self.voters.insert(id);
            }
            ConfChangeKind::AddLearner => {
                self.voters.remove(&id);
                self.learners.insert(id);
            }
            ConfChangeKind::RemoveNode => {
                self.learners.remove(&id);
                self.voters.remove(&id);
            }
            ConfChangeKind::UpdateNode => {}
        }
    }

    /// `AddMember`, `PromoteMember`, `RemoveMember`, `UpdateRaftAttributes` for the v2 store.
    /// Whether it fits: else etcd panics.
    fn apply_to_store(&mut self, change: &ConfChange) -> bool {
        let id = change.node;
        let is_stored = self.store.list.contains_key(&id);
        match change.kind {
            ConfChangeKind::AddNode if change.is_promotion() => {
                // Also in a database whose own promotion was lost (etcd#19557).
                let stored = self.store.list.get_mut(&id).into_iter();
                stored
                    .chain(self.database.list.get_mut(&id))
                    .for_each(|member| member.is_learner = false);
                true
            }
            // Not through `Members::apply`: the store itself looks at no URL.
            ConfChangeKind::AddNode | ConfChangeKind::AddLearner => {
                let is_learner = change.kind == ConfChangeKind::AddLearner;
                let added = Member::from_json(&change.context).unwrap_or_default();
                self.store.list.entry(id).or_insert(Member {
                    id,
                    is_learner,
                    ..added
                });
                !is_stored
            }
            ConfChangeKind::RemoveNode => {
                self.store.list.remove(&id);
                self.store.removed.insert(id) && is_stored
            }
            ConfChangeKind::UpdateNode => {
                // 3.6 looks the member up in the database's list, which knows nobody who is removed
                // later.
                let Some(known) = self.database.list.get(&id) else {
                    return true;
                };
                let urls = Member::from_json(&change.context)
                    .unwrap_or_default()
                    .peer_urls;
                if let Some(member) = self.store.list.get_mut(&id) {
                    *member = Member {
                        peer_urls: urls,
                        is_learner: known.is_learner,
                        ..member.clone()
                    };
                }
                is_stored
            }
        }
    }
}

/// Names of members for people, in their order: "7fd8bbd609f19519, m1, m2".
pub fn names(ids: &BTreeSet<u64>, members: &BTreeMap<u64, Member>) -> String {
    let name = |id: &u64| {
        members
            .get(id)
            .map_or_else(|| format!("{id:x}"), Member::handle)
    };
    let mut names: Vec<String> = ids.iter().map(name).collect();
    names.sort();
    names.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::etcd::operations::rebuild::changes;
    use crate::etcd::write::wal::add;

    fn member(id: u64, url: u64) -> Member {
        Member {
            id,
            peer_urls: vec![format!("http://10.0.0.{url}:2380")],
            ..Member::default()
        }
    }

    fn learner(id: u64, url: u64) -> Member {
        Member {
            is_learner: true,
            ..member(id, url)
        }
    }

    /// The members `ids` of a log's first entries, at URLs of the same numbers.
    fn founded(ids: &[u64]) -> Vec<ConfChange> {
        ids.iter().map(|id| add(&member(*id, *id))).collect()
    }

    fn after(changes: &[ConfChange]) -> Members {
        let mut members = Members::default();
        changes.iter().for_each(|change| members.apply(change));
        members
    }

    /// A log from its first entry on whose changes a database up to the entry `applied` holds.
    fn replay(changes: &[ConfChange], applied: usize) -> Replay<'_> {
        Replay {
            raft: ConfState::default(),
            store: Members::default(),
            database: after(&changes[..applied]),
            applied: applied as u64,
            changes: (1..).zip(changes).collect(),
        }
    }

    /// As rescue did it once: the last old member is updated, and removed later.
    fn with_update_of_a_member_that_goes() -> Vec<ConfChange> {
        let mut changes = founded(&[1, 2, 3]);
        changes.extend(changes::remove([1, 2]));
        changes.push(changes::update(
            &member(3, 3),
            vec!["http://removed.invalid:2380".to_owned()],
        ));
        changes.extend(
            [member(11, 1), member(12, 2), member(13, 3)]
                .iter()
                .map(add),
        );
        changes.extend(changes::remove([3]));
        changes
    }

    #[test]
    fn an_update_of_a_member_that_goes_loses_a_voter_at_the_second_start() {
        // Seen with etcd 3.6.14: "Skipped updating non-existent member in v2store", "Validation on
        // configuration change failed".
        let changes = with_update_of_a_member_that_goes();
        let new = replay(&changes, 3);
        assert!(new.next_start().agrees() && !new.keeps_voters());
        let later = new.later_start();
        assert_eq!((later.voters, later.panics_at), ([11, 12].into(), None));
        assert_eq!(later.members.voters().collect::<Vec<_>>(), [11, 12, 13]);
        // Before etcd has run no snapshot helps, afterwards it does.
        assert!(!new.with_new_snapshot().keeps_voters());
        let run = replay(&changes, changes.len());
        assert_eq!(run.next_start().voters, [11, 12].into());
        assert!(run.with_new_snapshot().keeps_voters());
    }

    #[test]
    fn removing_a_member_that_only_the_database_has_ends_etcd() {
        let mut changes = with_update_of_a_member_that_goes();
        let applied = changes.len();
        changes.extend(changes::remove([13]));
        let replay = replay(&changes, applied);
        assert_eq!(replay.next_start().panics_at, Some(applied as u64 + 1));
        assert!(replay.with_new_snapshot().keeps_voters());
    }

    /// Wherever the database ends, also in the midst of the changes.
    fn assert_kept(before: &[ConfChange], changes: &[ConfChange], wanted: &[Member]) {
        let all = [before, changes].concat();
        let listed = after(&all).list;
        assert_eq!(
            listed,
            wanted
                .iter()
                .map(|member| (member.id, member.clone()))
                .collect()
        );
        for applied in before.len()..=all.len() {
            let replay = replay(&all, applied);
            assert!(
                replay.keeps_voters(),
                "with {applied} of {all:?}: {:?}",
                replay.later_start()
            );
        }
    }

    #[test]
    fn a_new_cluster_keeps_its_voters_at_each_start() {
        let learner_last = vec![member(11, 1), member(12, 2), learner(13, 3)];
        for (old, new) in [
            (vec![1], vec![member(11, 1)]),
            (vec![1, 2], vec![member(11, 1), member(12, 2)]),
            (
                vec![1, 2, 3],
                vec![member(11, 1), member(12, 2), member(13, 3)],
            ),
            (vec![1, 2, 3], vec![member(13, 3)]),
            (vec![1, 2, 3], vec![member(11, 3), member(12, 9)]),
            (vec![2], vec![member(11, 1), member(12, 2), member(13, 3)]),
            (
                vec![1, 2, 3, 4, 5],
                (1..=5).map(|url| member(10 + url, url)).collect(),
            ),
            (vec![1, 2, 3], learner_last),
        ] {
            let before = founded(&old);
            let changes = changes::replace(&after(&before), &new, "token");
            assert_kept(&before, &changes, &new);
        }
    }

    #[test]
    fn a_new_cluster_keeps_its_voters_where_old_members_have_moved_or_learn() {
        let new = [member(11, 1), member(12, 2), member(13, 3)];
        // Each old member is where another was.
        let mut before = founded(&[1, 2, 3]);
        for (id, url) in [(1, 9), (2, 1), (3, 2), (1, 3)] {
            let urls = member(id, url).peer_urls;
            before.push(changes::update(&member(id, id), urls));
        }
        before.push(add(&learner(4, 4)));
        let changes = changes::replace(&after(&before), &new, "token");
        assert_kept(&before, &changes, &new);
        // And a second time.
        let before = [before, changes].concat();
        let new = [member(21, 1), member(22, 2), member(23, 3)];
        assert_kept(
            &before,
            &changes::replace(&after(&before), &new, "other"),
            &new,
        );
    }

    #[test]
    fn a_rebuild_over_a_log_that_loses_a_voter_has_the_right_ones() {
        let before = with_update_of_a_member_that_goes();
        let new = [member(21, 1), member(22, 2), member(23, 3)];
        let changes = changes::replace(&after(&before), &new, "token");
        // Where the database holds nothing of either: etcd has not run in between.
        let all = [before, changes].concat();
        assert!(replay(&all, 3).keeps_voters());
    }

    #[test]
    fn members_that_are_taken_in_anew_or_leave_change_no_other_voter() {
        let before = founded(&[1, 2, 3]);
        let mut changes = changes::remove([2]);
        changes.push(add(&member(12, 2)));
        assert_kept(
            &before,
            &changes,
            &[member(1, 1), member(3, 3), member(12, 2)],
        );
        let mut changes = changes::remove([2, 3]);
        changes.extend([add(&member(12, 3)), add(&learner(13, 2))]);
        assert_kept(
            &before,
            &changes,
            &[member(1, 1), member(12, 3), learner(13, 2)],
        );
        assert_kept(&before, &changes::remove([1, 3]), &[member(2, 2)]);
        let moved = vec![changes::update(&member(2, 2), member(2, 9).peer_urls)];
        assert_kept(&before, &moved, &[member(1, 1), member(2, 9), member(3, 3)]);
    }

    #[test]
    fn a_promotion_is_replayed() {
        let mut changes = founded(&[1]);
        changes.push(add(&learner(2, 2)));
        let context = br#"{"id":2,"peerURLs":["http://10.0.0.2:2380"],"isPromote":true}"#.to_vec();
        changes.push(ConfChange {
            kind: ConfChangeKind::AddNode,
            node: 2,
            context,
        });
        assert!(replay(&changes, 2).keeps_voters() && replay(&changes, 3).keeps_voters());
        assert_eq!(replay(&changes, 3).next_start().voters, [1, 2].into());
    }
}
