//! A new cluster from a database alone, as `snapshot restore` makes it
//! (etcdutl/snapshot/v3_snapshot.go of 3.5, clientv3/snapshot of 3.4), with the revision raised and
//! the history before it compacted: whoever watches from an old revision is told so and lists anew.
//!
//! What differs from `snapshot restore` on purpose: alarms are left out, they are of members that
//! are no more; the voters that the database names are the new ones; `term` is 1 where the database
//! is of 3.5.

use std::io::{BufWriter, Write as _};
use std::path::Path;

use anyhow::{Context as _, Result, ensure};

use super::edits::{Checked, Contents, Edits};
use super::origin::Origin;
use super::target::NewCluster;
use super::{DB, DB_MODE, FOLDER_MODE, SNAP, WAL, in_snap, read_back};
use crate::change::folder::{BuildFolder, FolderSink, Sources};
use crate::etcd::format::bbolt::{Database, Fault};
use crate::etcd::format::proto::put_number;
use crate::etcd::format::raft::Identity;
use crate::etcd::operations::salvage::Salvage;
use crate::etcd::read::backend::{
    ALARM, Facts, KEY, LEASE, MEMBERS, MEMBERS_REMOVED, META, Revision,
};
use crate::etcd::write::{Form, snap, store, wal};
use crate::guest::{Guest, GuestPath};

/// So far the revision is raised unless another number is asked for: etcd's own documentation says
/// a billion, a week of 1,500 writes a second.
pub const BUMP: i64 = 1_000_000_000;

/// What the log and the snapshot take at most.
const BESIDE: u64 = 1 << 20;

/// A lease of which only the ID is left: as long as Kubernetes keeps events, the longest it has.
const LEASE_SECONDS: u64 = 3600;

/// The recipe for one member.
#[derive(Debug, Clone)]
pub struct FromDatabase {
    /// The database.
    pub origin: Origin,
    /// Whether its tree is too damaged to be read, so that its pages are.
    pub is_salvage: bool,
    /// Who belongs to the new cluster.
    pub cluster: NewCluster,
    /// Which of them this one is.
    pub own: u64,
    /// Whose files are written.
    pub form: Form,
    /// The version that all members agreed on, where it is known.
    pub version: Option<String>,
    /// The newest revision in the database.
    pub revision: i64,
    /// So far it is raised.
    pub bump: i64,
    /// Bytes that the database takes at most.
    pub database_bytes: u64,
}

/// Whose files fit to a database: from 3.5 on it holds a term.
pub fn form(facts: &Facts) -> Form {
    if facts.term.is_some() || facts.conf_state.is_some() {
        Form::V3_5
    } else {
        Form::V3_4
    }
}

impl FromDatabase {
    /// The revision that the new cluster begins with.
    pub fn raised(&self) -> i64 {
        self.revision.saturating_add(self.bump)
    }

    fn identity(&self) -> Identity {
        Identity {
            member: self.own,
            cluster: self.cluster.id,
        }
    }

    /// The last entry of the new log: one for each member.
    fn applied(&self) -> u64 {
        self.cluster.members.list.len() as u64
    }

    fn edits(&self) -> Edits {
        let mut edits = Edits::default();
        for bucket in [ALARM, MEMBERS, MEMBERS_REMOVED] {
            edits.empty(bucket);
        }
        for member in self.cluster.members.list.values() {
            edits.set(
                MEMBERS,
                format!("{:x}", member.id).as_bytes(),
                member.to_json(),
            );
        }
        edits.set(
            META,
            b"consistent_index",
            self.applied().to_be_bytes().to_vec(),
        );
        match self.form {
            Form::V3_5 => {
                edits.set(META, b"term", 1u64.to_be_bytes().to_vec());
                edits.set(
                    META,
                    b"confState",
                    conf_state(self.cluster.members.voters()),
                );
            }
            Form::V3_4 => {
                edits.remove(META, b"term");
                edits.remove(META, b"confState");
            }
        }
        if self.bump > 0 {
            let raised = Revision {
                main: self.raised(),
                sub: 0,
            }
            .to_key();
            edits.set(KEY, &raised, Vec::new());
            edits.set(META, b"scheduledCompactRev", raised.to_vec());
        }
        edits
    }

    /// Where it is the database's own fault, so that it can be told from those of what is written.
    fn blame(&self, error: anyhow::Error) -> anyhow::Error {
        let origin = self.origin.to_string();
        match error.downcast::<Fault>() {
            Ok(fault) => Damaged { origin, fault }.into(),
            Err(error) => error.context(format!("building from {origin}")),
        }
    }

    fn log_and_snapshot(&self, sink: &mut dyn FolderSink) -> Result<()> {
        let name = Path::new(WAL).join(wal::file_name(0, 0));
        let log = BufWriter::new(sink.file(&name, wal::MODE)?);
        let mark = wal::create(log, &self.identity(), &self.cluster.members, self.form)
            .context("writing the log")?;
        let mut out = BufWriter::new(sink.file(&in_snap(&snap::file_name(&mark)), snap::MODE)?);
        let store = store::store(&self.cluster.members, self.version.as_deref());
        snap::write(&mut out, &mark, &store).context("writing the snapshot")?;
        out.flush().context("writing the snapshot")
    }
}

/// What a member was to be built from is damaged.
#[derive(Debug, thiserror::Error)]
#[error("{origin}: {fault}")]
pub struct Damaged {
    /// Which database.
    pub origin: String,
    /// In what.
    pub fault: Fault,
}

fn database(edits: &Edits, contents: &dyn Contents, sink: &mut dyn FolderSink) -> Result<()> {
    let mut out = sink.file(&in_snap(DB), DB_MODE)?;
    edits.write(contents, &mut *out).map(|_| ())
}

/// leasepb.Lease {ID, TTL} of an hour.
fn lease_of(id: i64) -> Vec<u8> {
    let mut lease = Vec::new();
    put_number(&mut lease, 1, id.cast_unsigned());
    put_number(&mut lease, 2, LEASE_SECONDS);
    lease
}

/// `confState` as 3.5 keeps it.
fn conf_state(voters: impl Iterator<Item = u64>) -> Vec<u8> {
    let voters: Vec<String> = voters.map(|voter| voter.to_string()).collect();
    format!("{{\"voters\":[{}],\"auto_leave\":false}}", voters.join(",")).into_bytes()
}

impl BuildFolder for FromDatabase {
    fn build(&self, sources: &Sources<'_>, sink: &mut dyn FolderSink) -> Result<()> {
        let file = self.origin.open(sources)?;
        sink.folder(Path::new(WAL), FOLDER_MODE)?;
        sink.folder(Path::new(SNAP), FOLDER_MODE)?;
        self.log_and_snapshot(sink)?;
        let reading = || format!("reading {}", self.origin);
        let mut edits = self.edits();
        if self.is_salvage {
            let salvage = Salvage::scan(file).with_context(reading)?;
            for lease in salvage.lost_leases()? {
                edits.set(LEASE, &lease.to_be_bytes(), lease_of(lease));
            }
            database(&edits, &salvage, sink)
        } else {
            let checked = Database::open(file).map_err(anyhow::Error::from);
            let written = checked.and_then(|db| database(&edits, &Checked::new(&db), sink));
            written.map_err(|error| self.blame(error))
        }
    }

    fn bytes(&self) -> u64 {
        self.database_bytes.saturating_add(BESIDE)
    }

    fn verify(&self, guest: &Guest, folder: &GuestPath) -> Result<()> {
        let data = read_back(guest, folder)?;
        ensure!(
            data.log.identity == Some(self.identity()),
            "the log that was built belongs to somebody else"
        );
        let facts = data.facts().context("a database")?;
        let expected = (self.applied(), self.raised());
        let seen = (facts.consistent_index, facts.revision);
        ensure!(
            seen == expected,
            "what was built is at {seen:?} (entry, revision) instead of {expected:?}"
        );
        let voters: Vec<u64> = data.membership().0.voters().collect();
        let wanted: Vec<u64> = self.cluster.members.voters().collect();
        ensure!(
            voters == wanted,
            "what was built has other voters than planned"
        );
        Ok(())
    }
}
