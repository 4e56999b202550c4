//! A database that is taken over as it is: a member's, an older copy, or what
//! `etcdctl snapshot save` wrote.

use std::io::Write as _;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};

use super::origin::{TRAILER_BYTES, Trailer, trailer};
use crate::base::ui::Silent;
use crate::change::folder::{FolderSink, Sources};
use crate::etcd::format::bbolt::Fault;
use crate::etcd::format::file::File;
use crate::etcd::read::backend::{Backend, Facts};
use crate::etcd::read::soundness::soundness;
use crate::guest::{Guest, GuestPath};
use crate::tree::TreeError;

/// Permissions that etcd gives it.
const MODE: u32 = 0o600;
const READ_AT_ONCE: usize = 1 << 20;

/// Which file, and what it holds.
#[derive(Debug, Clone)]
pub struct DatabaseFile {
    /// The guest that holds it, by its source.
    pub source: String,
    /// Where in it.
    pub path: GuestPath,
    /// Bytes that count: without the checksum of a saved snapshot.
    pub length: u64,
    /// Whether such a checksum follows.
    pub is_saved: bool,
    /// What its small buckets say.
    pub facts: Facts,
}

/// Why a file cannot be taken.
#[derive(Debug, thiserror::Error)]
pub enum Unfit {
    /// It cannot be read.
    #[error(transparent)]
    Tree(#[from] TreeError),
    /// It is damaged.
    #[error("the database is damaged: {0}")]
    Fault(#[from] Fault),
    /// A page of it is.
    #[error("the database is damaged: {0}")]
    Unsound(String),
    /// The checksum at the end of a saved snapshot is wrong.
    #[error("its checksum is wrong: it was not copied whole, or was changed")]
    Checksum,
}

impl DatabaseFile {
    /// Looks at it from end to end.
    ///
    /// # Errors
    /// [`Unfit`].
    pub fn examine(guest: &Guest, path: &GuestPath) -> Result<Self, Unfit> {
        let resolved = guest.resolve(path)?;
        let real = GuestPath::from(&resolved);
        let file = File::open(guest, &real)?;
        let (is_saved, length) = match trailer(&file)? {
            Trailer::None => (false, file.size()),
            Trailer::Sound => (true, file.size() - TRAILER_BYTES),
            Trailer::Wrong => return Err(Unfit::Checksum),
        };
        let backend = Backend::open(file)?;
        if let Err(fault) = soundness(guest, &resolved, &backend.db, &Silent).as_ref() {
            return Err(Unfit::Unsound(fault.to_string()));
        }
        let facts = backend.facts()?;
        Ok(Self {
            source: guest.source.clone(),
            path: real,
            length,
            is_saved,
            facts,
        })
    }

    /// Copies it, without the checksum of a saved snapshot.
    ///
    /// # Errors
    /// What cannot be read or written.
    pub fn copy(&self, sources: &Sources<'_>, sink: &mut dyn FolderSink, to: &Path) -> Result<()> {
        let guest = sources.get(&self.source)?;
        if !self.is_saved {
            return sink.copy(to, guest, &self.path);
        }
        let file = File::open(guest, &self.path)?;
        let mut out = sink.file(to, MODE)?;
        let mut at = 0;
        while at < self.length {
            let left = usize::try_from(self.length - at).unwrap_or(usize::MAX);
            let bytes = file.read_once(at, left.min(READ_AT_ONCE))?;
            ensure!(
                !bytes.is_empty(),
                "{} ended at {at} of {} bytes",
                self.path,
                self.length
            );
            out.write_all(&bytes)
                .with_context(|| format!("writing a copy of {}", self.path))?;
            at += bytes.len() as u64;
        }
        Ok(())
    }
}
