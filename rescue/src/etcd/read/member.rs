//! A member as its disk shows it: log, snapshots and database together, and what etcd will make of
//! them at its next start.

use std::ops::ControlFlow;

use super::backend::{Backend, Facts};
use super::lease::{self, LastWrite};
use crate::etcd::format::bbolt::Fault;
use crate::etcd::format::file::File;
use crate::etcd::format::members::Members;
use crate::etcd::format::request::Request;
use crate::etcd::format::snap::{self, SnapFault, SnapFile, Snapshot};
use crate::etcd::format::wal::{self, Log};
use crate::guest::{Guest, GuestPath};
use crate::tree::TreeError;

/// Snapshots that are read; etcd keeps 5.
const MAX_SNAPSHOTS: usize = 20;

/// Where a member's data is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// `--data-dir`.
    pub data_dir: GuestPath,
    /// `--wal-dir`, or where the log is without it.
    pub wal: GuestPath,
    /// Where snapshots and database are.
    pub snap: GuestPath,
}

impl Place {
    /// From etcd's own flags.
    pub fn new(data_dir: GuestPath, wal_dir: Option<&str>) -> Self {
        let member = data_dir.join("member");
        let wal = wal_dir
            .filter(|dir| !dir.is_empty())
            .map_or_else(|| member.join("wal"), GuestPath::new);
        Self {
            wal,
            snap: member.join("snap"),
            data_dir,
        }
    }

    /// The database.
    pub fn db(&self) -> GuestPath {
        self.snap.join("db")
    }

    /// The folder that etcd makes first and that says whether there is a member at all.
    pub fn member(&self) -> GuestPath {
        self.data_dir.join("member")
    }
}

/// The database as far as it can be read.
#[derive(Debug)]
pub enum Stored {
    /// There is none.
    Missing,
    /// It cannot be opened, or a page on the way to what is needed is damaged.
    Damaged(Fault),
    /// It opens, and its small buckets were read.
    Open(Box<(Backend, Facts)>),
}

/// Everything of a member but the contents of its database.
#[derive(Debug)]
pub struct MemberData {
    /// Where it is.
    pub place: Place,
    /// Whether there is a folder `member`.
    pub is_there: bool,
    /// Names in the log's folder.
    pub wal: wal::Folder,
    /// The log.
    pub log: Log,
    /// Names beside the database.
    pub snap: snap::Folder,
    /// Snapshots, newest first.
    pub snapshots: Vec<(SnapFile, Result<Snapshot, SnapFault>)>,
    /// The database.
    pub stored: Stored,
    /// What could not be read, and why.
    pub unreadable: Vec<(GuestPath, String)>,
}

impl MemberData {
    /// Reads it; never fails, what cannot be read is part of the answer.
    pub fn read(guest: &Guest, place: &Place) -> Self {
        let mut data = Self {
            place: place.clone(),
            is_there: guest.exists(&place.member()),
            wal: wal::Folder::default(),
            log: Log::default(),
            snap: snap::Folder::default(),
            snapshots: Vec::new(),
            stored: Stored::Missing,
            unreadable: Vec::new(),
        };
        data.wal = data.or_default(&place.wal, wal::Folder::list(guest, &place.wal));
        data.log = data.or_default(&place.wal, Log::read(guest, &data.wal));
        data.snap = data.or_default(&place.snap, snap::Folder::list(guest, &place.snap));
        for file in data.snap.files.clone().into_iter().take(MAX_SNAPSHOTS) {
            match snap::read(guest, &file.path) {
                Ok(snapshot) => data.snapshots.push((file, snapshot)),
                Err(error) => data.unreadable.push((file.path, error.to_string())),
            }
        }
        data.stored = data.open_database(guest);
        data
    }

    fn or_default<T: Default>(&mut self, path: &GuestPath, read: Result<T, TreeError>) -> T {
        read.unwrap_or_else(|error| {
            if !error.is_not_found() {
                self.unreadable.push((path.clone(), error.to_string()));
            }
            T::default()
        })
    }

    fn open_database(&mut self, guest: &Guest) -> Stored {
        let file = match File::open(guest, &self.place.db()) {
            Ok(file) => file,
            Err(error) if error.is_not_found() => return Stored::Missing,
            Err(error) => return Stored::Damaged(error.into()),
        };
        let opened =
            Backend::open(file).and_then(|backend| backend.facts().map(|facts| (backend, facts)));
        match opened {
            Ok(open) => Stored::Open(Box::new(open)),
            Err(fault) => Stored::Damaged(fault),
        }
    }

    /// What the database's small buckets say.
    pub fn facts(&self) -> Option<&Facts> {
        match &self.stored {
            Stored::Open(open) => Some(&open.1),
            _ => None,
        }
    }

    /// The last entry that is in the database; 0 without one.
    pub fn consistent_index(&self) -> u64 {
        self.facts().map_or(0, |facts| facts.consistent_index)
    }

    /// All entries up to here are certainly agreed on: the hard state's word may be older than what
    /// was applied.
    pub fn commit(&self) -> u64 {
        self.log.state.commit.max(self.consistent_index())
    }

    /// The snapshot that etcd will begin with: the newest readable one that the log knows.
    pub fn snapshot(&self) -> Option<(&SnapFile, &Snapshot)> {
        self.snapshots.iter().find_map(|(file, snapshot)| {
            let snapshot = snapshot.as_ref().ok()?;
            let known = |mark: &crate::etcd::format::raft::SnapshotMark| {
                (mark.term, mark.index) == (snapshot.mark.term, snapshot.mark.index)
            };
            self.log
                .valid_marks()
                .any(known)
                .then_some((file, snapshot))
        })
    }

    /// That snapshot's index; 0 where etcd begins from nothing.
    pub fn snapshot_index(&self) -> u64 {
        self.snapshot()
            .map_or(0, |(_, snapshot)| snapshot.mark.index)
    }

    /// Members as this member sees them, and the changes that it does not know to be agreed on.
    pub fn membership(&self) -> (Members, Vec<u64>) {
        let stored = self.facts().filter(|facts| facts.storage_version.is_some());
        let (mut members, from) = match (stored, self.snapshot()) {
            // From 3.6 on the database counts.
            (Some(facts), _) => (facts.members.clone(), facts.consistent_index),
            (None, Some((_, snapshot))) => (
                snapshot.members.clone().unwrap_or_default(),
                snapshot.mark.index,
            ),
            (None, None) if self.log.first == 1 => (Members::default(), 0),
            // No snapshot that counts and no beginning: the database has a copy.
            (None, None) => {
                let facts = self.facts();
                (
                    facts.map(|facts| facts.members.clone()).unwrap_or_default(),
                    self.consistent_index(),
                )
            }
        };
        let commit = self.commit();
        let mut pending = Vec::new();
        for (index, change) in self.log.changes.iter().filter(|(index, _)| *index > from) {
            if *index <= commit {
                members.apply(change);
            } else {
                pending.push(*index);
            }
        }
        // Names are published later than members are added; the database has them, too.
        let named = self.facts().map(|facts| &facts.members.list);
        for member in members
            .list
            .values_mut()
            .filter(|member| member.name.is_empty())
        {
            if let Some(known) = named.and_then(|named| named.get(&member.id)) {
                (member.name, member.client_urls) = (known.name.clone(), known.client_urls.clone());
            }
        }
        (members, pending)
    }

    /// The newest write in the log that carries its time, and names that members published there.
    ///
    /// # Errors
    /// As the tree gives them.
    pub fn look_through_log(
        &self,
        guest: &Guest,
        members: &mut Members,
    ) -> Result<Option<LastWrite>, TreeError> {
        let mut newest = None;
        self.log.visit(guest, 0, u64::MAX, &mut |entry| {
            match Request::parse(entry.data) {
                Ok(Request::MemberAttributes { id, json }) => members.publish(id, json),
                Ok(Request::MemberAttributesSet {
                    id,
                    name,
                    client_urls,
                }) => members.publish_as(id, name, client_urls),
                Ok(request) => {
                    if let Some(write) = lease::in_request(&request) {
                        newest = Some(LastWrite {
                            index: Some(entry.index),
                            ..write
                        });
                    }
                }
                Err(_) => {}
            }
            ControlFlow::Continue(())
        })?;
        Ok(newest)
    }

    /// Bytes behind the last good record of the log.
    pub fn torn_bytes(&self) -> u64 {
        self.log.tail().map_or(0, wal::SegmentLook::torn_bytes)
    }
}
