//! A member with its database written anew and everything else as it is: free pages go, the file
//! shrinks. What the database says stays the same, but for two things on request: history that
//! nobody needs (a compaction), and the alarm that it was full.
//!
//! Both are state that all members share, so both are done on all of them or on none;
//! [`super::space`] decides.

use std::path::Path;

use anyhow::{Context as _, Result, ensure};

use super::edits::Edits;
use super::origin::Origin;
use super::space::Passed;
use super::{DB, DB_MODE, FOLDER_MODE, SNAP, WAL, in_snap, read_back};
use crate::change::folder::{BuildFolder, FolderSink, Sources};
use crate::etcd::format::bbolt::Database;
use crate::etcd::format::proto::put_number;
use crate::etcd::read::backend::{ALARM, META, Revision};
use crate::etcd::read::member::MemberData;
use crate::guest::{Guest, GuestPath};

/// AlarmType NOSPACE.
const NOSPACE: u64 = 1;

/// The recipe.
#[derive(Debug, Clone)]
pub struct Defrag {
    /// The guest that the member is on.
    pub source: String,
    /// Files of the log, where they really are.
    pub log: Vec<GuestPath>,
    /// Snapshots.
    pub snapshots: Vec<GuestPath>,
    /// The database.
    pub database: Origin,
    /// Of the history only what a compaction at this revision leaves.
    pub compaction: Option<i64>,
    /// Members whose alarm of a full database is taken out.
    pub lift_alarms_of: Vec<u64>,
    /// The last entry that the database is said to hold from now on, where that is a later one.
    pub passed: Option<Passed>,
    /// The last entry and the newest revision in the database afterwards.
    pub holds: (u64, i64),
    /// Whether the database says the term of its last entry (3.5).
    pub has_term: bool,
    /// Bytes that all files take at most.
    pub bytes: u64,
}

impl Defrag {
    /// For a member that is sound. Leftovers, spare files and what etcd set aside as damaged stay
    /// with the old folder.
    ///
    /// # Errors
    /// What cannot be read.
    pub fn of(guest: &Guest, data: &MemberData) -> Result<Self> {
        let facts = data.facts().context("the database cannot be read")?;
        let real =
            |path: &GuestPath| -> Result<GuestPath> { Ok(GuestPath::from(&guest.resolve(path)?)) };
        let log: Vec<GuestPath> = data
            .wal
            .segments
            .iter()
            .map(|segment| real(&segment.path))
            .collect::<Result<_>>()?;
        // A database that was received whole is of use only until its entries are in the member's
        // own.
        let received = data
            .snap
            .databases
            .iter()
            .filter(|(_, index)| *index > facts.consistent_index);
        let snapshots = data
            .snap
            .files
            .iter()
            .map(|file| &file.path)
            .chain(received.map(|(path, _)| path));
        let snapshots: Vec<GuestPath> = snapshots.map(real).collect::<Result<_>>()?;
        let mut bytes = guest.stat(&data.place.db())?.size;
        for path in log.iter().chain(&snapshots) {
            bytes = bytes.saturating_add(guest.stat(path)?.size);
        }
        Ok(Self {
            source: guest.source.clone(),
            log,
            snapshots,
            database: Origin::in_guest(guest, &data.place.db())?,
            compaction: None,
            lift_alarms_of: Vec::new(),
            passed: None,
            holds: (facts.consistent_index, facts.revision),
            has_term: facts.term.is_some(),
            bytes,
        })
    }

    fn edits(&self, db: &Database) -> Result<Edits> {
        let mut edits = Edits::default();
        if let Some(revision) = self.compaction {
            edits.compact(db, revision)?;
            let key = Revision {
                main: revision,
                sub: 0,
            }
            .to_key()
            .to_vec();
            edits.set(META, b"scheduledCompactRev", key.clone());
            edits.set(META, b"finishedCompactRev", key);
        }
        for member in &self.lift_alarms_of {
            edits.remove(ALARM, &alarm(*member));
        }
        if let Some(Passed { index, term }) = self.passed {
            edits.set(META, b"consistent_index", index.to_be_bytes().to_vec());
            if self.has_term {
                edits.set(META, b"term", term.to_be_bytes().to_vec());
            }
        }
        Ok(edits)
    }
}

/// AlarmMember {memberID, alarm}, as the bucket's key.
fn alarm(member: u64) -> Vec<u8> {
    let mut key = Vec::new();
    put_number(&mut key, 1, member);
    put_number(&mut key, 2, NOSPACE);
    key
}

fn copy(sink: &mut dyn FolderSink, guest: &Guest, folder: &str, from: &GuestPath) -> Result<()> {
    let name = from.as_path().file_name().context("a file's name")?;
    sink.copy(&Path::new(folder).join(name), guest, from)
}

impl BuildFolder for Defrag {
    fn build(&self, sources: &Sources<'_>, sink: &mut dyn FolderSink) -> Result<()> {
        let guest = sources.get(&self.source)?;
        sink.folder(Path::new(WAL), FOLDER_MODE)?;
        sink.folder(Path::new(SNAP), FOLDER_MODE)?;
        self.log
            .iter()
            .try_for_each(|path| copy(sink, guest, WAL, path))?;
        self.snapshots
            .iter()
            .try_for_each(|path| copy(sink, guest, SNAP, path))?;
        let db = Database::open(self.database.open(sources)?)
            .with_context(|| format!("reading {}", self.database))?;
        let edits = self.edits(&db)?;
        let mut out = sink.file(&in_snap(DB), DB_MODE)?;
        edits.write(&db, &mut *out).map(|_| ())
    }

    fn bytes(&self) -> u64 {
        self.bytes.saturating_add(1 << 20)
    }

    fn verify(&self, guest: &Guest, folder: &GuestPath) -> Result<()> {
        let data = read_back(guest, folder)?;
        let facts = data.facts().context("a database")?;
        let holds = (facts.consistent_index, facts.revision);
        ensure!(
            holds == self.holds,
            "what was built is at {holds:?} (entry, revision) instead of {:?}",
            self.holds
        );
        if let Some(revision) = self.compaction {
            ensure!(
                facts.compacted == revision,
                "what was built is compacted at {}, not {revision}",
                facts.compacted
            );
        }
        let lifted = |member: &u64| {
            !facts
                .alarms
                .iter()
                .any(|alarm| alarm.member == *member && alarm.is_no_space())
        };
        ensure!(
            self.lift_alarms_of.iter().all(lifted),
            "what was built still has the alarm"
        );
        Ok(())
    }
}
