//! Whether a file system is sound, by the checker that its makers wrote for it, without writing to
//! the disk.
//!
//! A checker that looks at a file system with a dirty journal sees damage where there is none: what
//! the journal holds is missing. So it is shown the file system as the kernel leaves it after
//! replaying the journal, on a throw-away layer in memory; the disk keeps every byte. What is clean
//! on disk is shown as it is.

mod checker;
mod run;

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use serde::Serialize;

pub use checker::{Checker, Judgement};
pub use run::{Ran, run};

use crate::base::refusal::Refusal;
use crate::base::ui::Ui;
use crate::disk::export::ThrowAway;
use crate::disk::probe::{Content, Probe};
use crate::disk::volume::{Volume, logical, survey};
use crate::disk::{Backing, Leftover};
use crate::disk::{Disk, ReadAt, btrfs};

/// What is known of one file system after a look.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "state")]
pub enum Condition {
    /// The checker found nothing wrong.
    Clean,
    /// It found damage.
    Damaged,
    /// It was not checked.
    NotChecked {
        /// Why.
        why: String,
        /// What to type, where something can be done.
        next: Option<String>,
    },
}

/// What became of the journal before the checker looked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Journal {
    /// It was empty.
    Clean,
    /// It was replayed in memory; on the disk that is still to be done, by the next mount.
    Replayed,
    /// The kernel could not replay it, and said so.
    NotReplayable(String),
}

/// One file system, checked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Verdict {
    /// How people name what holds it: `/dev/sdb1`.
    pub device: String,
    /// `ext4`, `xfs`, `btrfs`.
    pub kind: String,
    /// Its UUID.
    pub uuid: Option<String>,
    /// What the checker found.
    #[serde(flatten)]
    pub condition: Condition,
    /// Its journal.
    pub journal: Journal,
    /// ext: whether the superblock says that errors were found while it was in use.
    pub error_flag: bool,
    /// The command line of the checker, without the device.
    pub checker: Option<String>,
    /// What the checker said, shortened.
    pub said: Vec<String>,
    /// How long the checker took.
    #[serde(serialize_with = "seconds", rename = "seconds")]
    pub took: Duration,
}

fn seconds<S: serde::Serializer>(took: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(took.as_secs_f64())
}

impl Verdict {
    /// Whether something has to be mended before anybody writes.
    pub fn needs_mending(&self) -> bool {
        self.condition == Condition::Damaged
            || self.error_flag
            || matches!(self.journal, Journal::NotReplayable(_))
    }

    /// The first line of the checker that is not about itself.
    pub fn first_complaint(&self) -> &str {
        const ABOUT_ITSELF: [&str; 5] = [
            "e2fsck ",
            "Pass ",
            "Phase ",
            "Opening filesystem",
            "Checking filesystem",
        ];
        let is_complaint = |line: &&String| {
            let line = line.trim_start();
            !ABOUT_ITSELF.iter().any(|start| line.starts_with(start))
                && !line.starts_with(['-', '['])
        };
        self.said
            .iter()
            .find(is_complaint)
            .map_or("nothing", |line| line.trim())
    }
}

/// A file system that a checker exists for.
#[derive(Clone)]
pub struct Checkable {
    /// How people name what holds it: `/dev/sdb1`.
    pub device: String,
    /// The kernel's name for it.
    pub kind: &'static str,
    /// Its UUID.
    pub uuid: Option<String>,
    /// Its bytes.
    pub bytes: Arc<dyn ReadAt>,
    /// Where they are.
    pub backing: Backing,
    /// ext: whether it says of itself that it has errors.
    pub error_flag: bool,
    /// Whether its journal is, or may be, dirty.
    dirty: bool,
}

impl std::fmt::Debug for Checkable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Checkable")
            .field("device", &self.device)
            .field("kind", &self.kind)
            .finish_non_exhaustive()
    }
}

/// What can be checked on some disks, and what cannot be read of them.
#[derive(Debug, Default)]
pub struct Found {
    /// In the order of the disks and their partitions, logical volumes last.
    pub file_systems: Vec<Checkable>,
    /// What is odd.
    pub notes: Vec<Leftover>,
}

/// Finds the file systems on the disks.
pub fn find(disks: &[Disk]) -> Result<Found> {
    let mut found = Found::default();
    let mut volumes = Vec::new();
    for (index, disk) in disks.iter().enumerate() {
        let on_it = survey(disk, index)?;
        found.notes.extend(on_it.notes);
        volumes.extend(on_it.volumes);
    }
    let logical = logical::survey(&volumes)?;
    found.notes.extend(logical.notes);
    volumes.extend(logical.volumes);
    found.file_systems = volumes.into_iter().filter_map(checkable).collect();
    Ok(found)
}

fn checkable(volume: Volume) -> Option<Checkable> {
    Checkable::of(
        volume.name.clone(),
        volume.probe.as_ref()?,
        &volume.bytes,
        &volume.backing,
    )
}

impl Checkable {
    /// What `bytes` hold, if there is a checker for it.
    pub fn of(
        device: String,
        probe: &Probe,
        bytes: &Arc<dyn ReadAt>,
        backing: &Backing,
    ) -> Option<Self> {
        let (kind, dirty) = match &probe.content {
            Content::Ext(superblock) => (superblock.kind, superblock.needs_replay),
            // e2fsck looks for the copies of the superblock by itself.
            Content::DamagedExt(_) => ("ext4", false),
            // Only the kernel can say whether an XFS log is clean; replaying a clean one does
            // nothing.
            Content::Xfs(_) => ("xfs", true),
            Content::Btrfs(superblock) => ("btrfs", superblock.has_log),
            _ => return None,
        };
        let error_flag = match &probe.content {
            Content::Ext(superblock) => superblock.is_flagged(Arc::clone(bytes)),
            _ => false,
        };
        let (bytes, backing) = (Arc::clone(bytes), backing.clone());
        Some(Self {
            device,
            kind,
            uuid: probe.uuid.clone(),
            bytes,
            backing,
            error_flag,
            dirty,
        })
    }
}

/// Checks one file system; the disk keeps every byte.
///
/// # Errors
/// [`Refusal`]s: not root, no FUSE, a journal too large for memory.
pub fn look(found: &Checkable, ui: &dyn Ui) -> Result<Verdict> {
    let mut verdict = Verdict {
        device: found.device.clone(),
        kind: found.kind.to_owned(),
        uuid: found.uuid.clone(),
        condition: Condition::Damaged,
        journal: Journal::Clean,
        error_flag: found.error_flag,
        checker: None,
        said: Vec::new(),
        took: Duration::ZERO,
    };
    let checker = Checker::of(found.kind).context("a file system without a checker")?;
    let Some(program) = checker.find() else {
        let why = format!("{} is not installed", checker.program);
        verdict.condition = Condition::NotChecked {
            why,
            next: Some(checker.install()),
        };
        return Ok(verdict);
    };
    verdict.checker = Some(checker.line());
    let device = shown(found, &mut verdict.journal)?;
    let what = format!("checking {} ({})", found.device, checker.line());
    let ran = run(&program, checker.look, &device.path(), ui, &what)?;
    verdict.condition = condition(checker, &ran, device.unreadable());
    verdict.said = ran.said;
    verdict.took = ran.took;
    Ok(verdict)
}

/// The file system as the next boot will find it.
fn shown(found: &Checkable, journal: &mut Journal) -> Result<ThrowAway> {
    let doing = || format!("showing {} to the checker", found.device);
    // `btrfs check` and the kernel look for a file system's devices by its UUID: a copy that is
    // attached too must not be taken for one.
    let bytes = match found.kind {
        "btrfs" => btrfs::UnderOwnUuid::over(Arc::clone(&found.bytes)).with_context(doing)?,
        _ => Arc::clone(&found.bytes),
    };
    let as_it_is = || ThrowAway::over(&bytes).with_context(doing);
    if !found.dirty {
        return as_it_is();
    }
    match ThrowAway::replayed(&bytes, found.kind) {
        Ok(device) => {
            *journal = Journal::Replayed;
            Ok(device)
        }
        Err(error) if error.is::<Refusal>() => Err(error),
        Err(error) => {
            *journal = Journal::NotReplayable(format!("{error:#}"));
            as_it_is()
        }
    }
}

fn condition(checker: &Checker, ran: &Ran, unreadable: Option<String>) -> Condition {
    let not_checked = |why: String| Condition::NotChecked { why, next: None };
    if let Some(reason) = unreadable {
        return not_checked(format!(
            "the disk cannot be read {reason}; copy what can be read (ddrescue) and work on the \
             copy"
        ));
    }
    match checker.judge(ran.code, &ran.said) {
        Judgement::Clean => Condition::Clean,
        Judgement::Damaged => Condition::Damaged,
        Judgement::Unable => not_checked(match ran.code {
            None => format!("{} was ended by a signal (out of memory?)", checker.program),
            Some(code) => {
                let words = ran.said.last().map_or("nothing", String::as_str);
                format!("{} ended with {code} and said: {words}", checker.program)
            }
        }),
    }
}

#[cfg(test)]
mod tests;
