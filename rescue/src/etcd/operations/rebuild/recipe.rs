//! A member's new folder: a [`Base`], whose it becomes, and what is appended.

use std::io::BufWriter;
use std::path::Path;
use std::rc::Rc;

use anyhow::{Context as _, Result, ensure};

use super::base::{Base, Start};
use super::changes;
use crate::change::folder::{BuildFolder, FolderSink, Sources};
use crate::etcd::format::members::Member;
use crate::etcd::format::raft::{ConfChange, HardState, Identity, SnapshotMark};
use crate::etcd::operations::level::Tail;
use crate::etcd::read::boot::{self, Effect};
use crate::etcd::read::member::{MemberData, Place};
use crate::etcd::write::identity::{cluster_id, member_id};
use crate::etcd::write::snap;
use crate::etcd::write::wal::{Addition, MODE, Rewrite, add, behind, file_name};
use crate::guest::{Guest, GuestPath};

/// Permissions that etcd gives folders.
const FOLDER: u32 = 0o700;

/// Builds the folder `member`.
#[derive(Debug, Clone)]
pub struct Recipe {
    /// Out of what.
    pub base: Rc<Base>,
    /// Whose it becomes.
    pub identity: Identity,
    /// What is appended to the log.
    pub addition: Addition,
    /// Who votes afterwards, as a check of what was built.
    pub voters: Vec<u64>,
}

impl Recipe {
    /// The member keeps its identity and its log: only a snapshot or a database is laid beside it.
    /// To the log nothing is added but what it lacks of the newest one, if that is given; it must
    /// begin behind the log's end.
    pub fn in_place(base: &Rc<Base>, identity: Identity, tail: Option<&Tail>) -> Self {
        let log = &base.log;
        let commit = log
            .state
            .commit
            .max(base.database.facts.consistent_index)
            .min(log.last);
        let state = HardState {
            commit,
            ..log.state
        };
        let addition = Addition {
            mark: None,
            entries: tail.map(|tail| tail.entries.clone()).unwrap_or_default(),
            term: log.state.term,
            first: log.last.saturating_add(1),
            changes: Vec::new(),
            state: tail.map_or(state, |tail| tail.state(state)),
        };
        Self::new(base, identity, addition)
    }

    /// The member `identity` of the same cluster: with the base's history, these changes, and a
    /// term that nobody has used yet. Safe only where all other voters get the same, are fenced, or
    /// are too few without it.
    pub fn agreed(
        base: &Rc<Base>,
        identity: Identity,
        term: u64,
        changes: Vec<ConfChange>,
    ) -> Self {
        // A vote for itself: nobody else becomes a leader in the term of these entries.
        let addition = Addition::agreed(base.last(), term, identity.member, changes);
        Self::new(base, identity, addition)
    }

    /// Members of the same cluster that are taken in anew: `gone` lose their place, and `new`, who
    /// carry new IDs, come. The first recipe is that of `keeper`, who stays; then one for each of
    /// `new`. Safe as [`Recipe::agreed`] is.
    pub fn readmit(
        base: &Rc<Base>,
        keeper: Identity,
        gone: &[u64],
        new: &[Member],
        term: u64,
    ) -> Vec<Self> {
        let mut changes = changes::remove(gone.iter().copied());
        changes.extend(new.iter().map(add));
        // All have voted for the keeper: nobody else becomes a leader in this term.
        let addition = Addition::agreed(base.last(), term, keeper.member, changes);
        let identities = new.iter().map(|member| Identity {
            member: member.id,
            ..keeper
        });
        std::iter::once(keeper)
            .chain(identities)
            .map(|identity| Self::new(base, identity, addition.clone()))
            .collect()
    }

    /// Members of a new cluster with new IDs, all with the base's history, in the order of
    /// `members`: names and peer URLs count. Whoever is left of the old cluster, copies and backups
    /// among them, is refused by them ("cluster ID mismatch"). `token` must never have been used. A
    /// learner stays one, unless there are only learners: then all of them vote.
    pub fn clones(base: &Rc<Base>, members: &[Member], token: &str, term: u64) -> Vec<Self> {
        let has_voter = members.iter().any(|member| !member.is_learner);
        let new: Vec<Member> = members
            .iter()
            .map(|member| Member {
                is_learner: member.is_learner && has_voter,
                id: member_id(&member.peer_urls, token),
                name: member.name.clone(),
                peer_urls: member.peer_urls.clone(),
                ..Member::default()
            })
            .collect();
        let cluster = cluster_id(new.iter().map(|member| member.id));
        let changes = changes::replace(&base.members, &new, token);
        let addition = Addition::agreed(base.last(), term, 0, changes);
        new.iter()
            .map(|member| {
                Self::new(
                    base,
                    Identity {
                        member: member.id,
                        cluster,
                    },
                    addition.clone(),
                )
            })
            .collect()
    }

    fn new(base: &Rc<Base>, identity: Identity, mut addition: Addition) -> Self {
        let mut members = base.members.clone();
        addition
            .changes
            .iter()
            .for_each(|change| members.apply(change));
        if let Some(tail) = base
            .tail
            .as_ref()
            .filter(|tail| addition.first == tail.last().saturating_add(1))
        {
            addition.entries = tail.entries.clone();
        }
        if let Start::Fresh(mark, _) = &base.start {
            // As the version writes it that the database is of.
            let conf_state = mark
                .conf_state
                .clone()
                .filter(|_| base.database.facts.term.is_some());
            addition.mark = Some(SnapshotMark {
                conf_state,
                ..mark.clone()
            });
        }
        Self {
            base: Rc::clone(base),
            identity,
            addition,
            voters: members.voters().collect(),
        }
    }

    fn rewrite<'a>(&'a self, guest: &'a Guest) -> Rewrite<'a> {
        let base = &self.base;
        Rewrite {
            guest,
            log: &base.log,
            from: base.from,
            identity: self.identity,
            addition: Some(&self.addition),
        }
    }
}

impl BuildFolder for Recipe {
    fn build(&self, sources: &Sources<'_>, sink: &mut dyn FolderSink) -> Result<()> {
        let guest = sources.get(&self.base.source)?;
        let (wal, snaps) = (Path::new("wal"), Path::new("snap"));
        sink.folder(snaps, FOLDER)?;
        self.base.database.copy(sources, sink, &snaps.join("db"))?;
        match &self.base.start {
            Start::Nothing => {}
            Start::Snapshot(path, _) => {
                let name = path.as_path().file_name().context("a snapshot's name")?;
                sink.copy(&snaps.join(name), guest, path)?;
            }
            Start::Fresh(mark, store) => {
                let mut file = sink.file(&snaps.join(snap::file_name(mark)), snap::MODE)?;
                let mut bytes = Vec::new();
                snap::write(&mut bytes, mark, store)?;
                file.write_all(&bytes).context("writing a snapshot")?;
            }
        }
        sink.folder(wal, FOLDER)?;
        if self.base.missing > 0 {
            let out = sink.file(&wal.join(file_name(0, self.base.own_last())), MODE)?;
            return behind(BufWriter::new(out), &self.identity, &self.addition)
                .context("writing a log");
        }
        self.rewrite(guest).write(sink, wal)
    }

    fn bytes(&self) -> u64 {
        let base = &self.base;
        let snapshot = match &base.start {
            Start::Nothing => 0,
            Start::Snapshot(_, size) => *size,
            Start::Fresh(_, store) => store.len() as u64 + 4096,
        };
        let log = Rewrite::bytes_of(&base.log, base.from, Some(&self.addition));
        log.saturating_add(snapshot)
            .saturating_add(base.database.length)
    }

    fn verify(&self, guest: &Guest, folder: &GuestPath) -> Result<()> {
        // `folder` will be the data folder's `member`, whatever its name is now.
        let place = Place {
            data_dir: folder.clone(),
            wal: folder.join("wal"),
            snap: folder.join("snap"),
        };
        let data = MemberData {
            is_there: true,
            ..MemberData::read(guest, &place)
        };
        if let Some(problem) = boot::problems(&data)
            .iter()
            .find(|problem| problem.effect != Effect::Harmless && !problem.is_alarm())
        {
            anyhow::bail!("what was built would not start: {}", problem.saw);
        }
        ensure!(
            data.log.identity == Some(self.identity),
            "what was built does not carry its own identity"
        );
        ensure!(
            data.log.state == self.addition.state,
            "what was built does not end as planned"
        );
        let voters: Vec<u64> = data.membership().0.voters().collect();
        let agreed = data.log.state.commit >= data.log.last;
        ensure!(
            !agreed || voters == self.voters,
            "what was built does not have the members that were planned"
        );
        Ok(())
    }
}
