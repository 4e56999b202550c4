//! Mending a member in place, with one guarantee: it keeps its identity, and nothing that was
//! acknowledged is lost, provided the disk kept what was synchronised to it. Where a rule below
//! does not hold, nothing is offered.
//!
//! - **Cutting the log's end** drops bytes that never became a record: a record that was
//!   acknowledged was synchronised before, whole. What is known to be agreed on, and what is in the
//!   database, must lie before the cut. A record that is there in its full length but with a wrong
//!   checksum is cut only where the member is the only voter: with others it may have promised them
//!   that entry.
//! - **Removing old files of the log** drops what lies before the newest snapshot's entry, which
//!   etcd reads but does not use.
//! - **Hiding snapshots** that are newer than the database lets etcd begin with an older one and
//!   replay the log, which must reach back to it.
//! - **Going back to the older meta page** drops the database's last transaction; the log holds its
//!   entries and etcd applies them again.
//!
//! Source of the rules: reference to etcd's start in [`crate::etcd::read::boot`]; bbolt's
//! `surgery revert-meta-page` for the last.

use crate::change::{Change, Content, Edit};
use crate::etcd::format::bbolt::{Database, meta};
use crate::etcd::format::file::File;
use crate::etcd::format::wal::behind_damage::agreed_behind_damage;
use crate::etcd::format::wal::{End, Tear};
use crate::etcd::read::boot::{self, Effect, Kind, Problem};
use crate::etcd::read::member::{MemberData, Place, Stored};
use crate::guest::{Guest, GuestPath};

/// What mends one problem.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mend {
    /// Cut the last file of the log to this many bytes.
    CutTail {
        /// The file.
        path: GuestPath,
        /// Bytes that stay.
        keep: u64,
        /// The last entry that stays.
        last: u64,
    },
    /// Remove files of the log that are not needed.
    DropOldLog {
        /// The files.
        files: Vec<GuestPath>,
    },
    /// Remove snapshots that are newer than the database.
    HideSnapshots {
        /// The files.
        files: Vec<GuestPath>,
        /// The last entry in the database.
        database: u64,
    },
    /// Overwrite the newest meta page with the older one, and hide the snapshots that are newer
    /// then.
    RevertMeta {
        /// The database.
        path: GuestPath,
        /// The page that is written, and its new bytes.
        slot: u64,
        /// Offset and bytes.
        offset: u64,
        /// The last entry in the database afterwards.
        database: u64,
        /// Snapshots that are newer.
        snapshots: Vec<GuestPath>,
    },
}

/// What mends `problem`.
///
/// # Errors
/// Why nothing does, as a sentence.
pub fn mend(guest: &Guest, data: &MemberData, problem: &Problem) -> Result<Mend, String> {
    if let Some(version) = data
        .facts()
        .and_then(|facts| facts.storage_version.as_ref())
    {
        return Err(format!(
            "The database is of format {version}: repairing etcd 3.6 and later has not been proved."
        ));
    }
    if data.log.other_identity.is_some() || data.log.identity.is_none() {
        return Err(
            "The log does not say which member it belongs to: nothing is mended on this \
            disk alone."
                .to_owned(),
        );
    }
    match problem.kind {
        Kind::TailTorn | Kind::TailDamaged => cut_tail(guest, data),
        Kind::OldLogDamaged => drop_old_log(data),
        Kind::SnapshotAhead => {
            hide_snapshots(data, data.consistent_index()).map(|files| Mend::HideSnapshots {
                files,
                database: data.consistent_index(),
            })
        }
        Kind::DatabaseDamaged => revert_meta(guest, data),
        _ => Err("This version has no repair for it.".to_owned()),
    }
}

fn cut_tail(guest: &Guest, data: &MemberData) -> Result<Mend, String> {
    let log = &data.log;
    let tail = log.tail().ok_or("There is no log.")?;
    let behind = agreed_behind_damage(guest, log)
        .map_err(|error| format!("The log cannot be read: {error}."))?;
    let needed = data.commit().max(data.snapshot_index()).max(behind);
    if log.is_empty() || log.last < needed {
        return Err(format!(
            "Cut there, the log would end with entry {}, but entries up to {needed} are agreed on: \
             one that was acknowledged would be lost. Another member's disk has it, if there is \
             one.",
            log.last
        ));
    }
    let others = data.membership().0.voters().count() > 1;
    if others && !matches!(tail.end, End::Torn(Tear::Short | Tear::Length)) {
        return Err(format!(
            "The damaged record behind entry {} is there in its full length: this member may have \
             promised it to the others before it was damaged, so it must not vote again with less. \
             Start the others without this node, then remove this member and add it again (etcdctl \
             member remove, member add).",
            log.last
        ));
    }
    Ok(Mend::CutTail {
        path: tail.segment.path.clone(),
        keep: tail.used,
        last: log.last,
    })
}

fn drop_old_log(data: &MemberData) -> Result<Mend, String> {
    let start = data
        .wal
        .start_for(data.snapshot_index())
        .filter(|start| *start > 0);
    let start = start.ok_or("The log is needed from its first file on.")?;
    let files: Vec<GuestPath> = data
        .wal
        .segments
        .iter()
        .take(start)
        .map(|segment| segment.path.clone())
        .collect();
    let whole = |number: usize| {
        data.log
            .segments
            .get(number)
            .is_none_or(|look| look.end == End::Complete)
    };
    let last = data.log.segments.len().saturating_sub(1);
    if (start..last).any(|number| !whole(number)) {
        return Err("Files of the log that are needed are damaged, too.".to_owned());
    }
    Ok(Mend::DropOldLog { files })
}

/// The snapshots newer than entry `database`, where etcd can do without them.
fn hide_snapshots(data: &MemberData, database: u64) -> Result<Vec<GuestPath>, String> {
    let hidden: Vec<GuestPath> = data
        .snap
        .files
        .iter()
        .filter(|file| file.index > database)
        .map(|file| file.path.clone())
        .collect();
    let older = data.snapshots.iter().find_map(|(file, snapshot)| {
        let mark = &snapshot.as_ref().ok()?.mark;
        let known = data
            .log
            .valid_marks()
            .any(|there| (there.term, there.index) == (mark.term, mark.index));
        (known && file.index == mark.index && mark.index <= database).then_some(mark.index)
    });
    let from = older.unwrap_or(0);
    if data.wal.start_for(from).is_none() || data.log.first > from.saturating_add(1) {
        return Err(match older {
            Some(index) => {
                format!("The log does not reach back to the older snapshot of entry {index}.")
            }
            None => format!(
                "There is no snapshot as old as the database (entry {database}), and the log does \
                 not begin with entry 1."
            ),
        });
    }
    if database > data.log.last || data.log.state.commit > data.log.last {
        return Err("The log does not reach as far as what is agreed on.".to_owned());
    }
    Ok(hidden)
}

fn revert_meta(guest: &Guest, data: &MemberData) -> Result<Mend, String> {
    let path = data.place.db();
    let open = |path: &GuestPath| {
        File::open(guest, path).map_err(|error| format!("{path} cannot be read: {error}."))
    };
    let older = Database::open_older(open(&path)?);
    let older = match older {
        Ok(Some(older)) => older,
        Ok(None) => return Err("There is no older meta page to go back to.".to_owned()),
        Err(fault) => {
            return Err(format!(
                "As it was before its last transaction the database is damaged, too: {fault}."
            ));
        }
    };
    older.check(&mut |_, _| {}).map_err(|fault| {
        format!("As it was before its last transaction the database is damaged, too: {fault}.")
    })?;
    let older_meta = *older.meta();
    let backend = crate::etcd::read::backend::Backend { db: older };
    let facts = backend
        .facts()
        .map_err(|fault| format!("The older database cannot be read: {fault}."))?;
    if facts.storage_version.is_some() {
        return Err("Repairing etcd 3.6 and later has not been proved.".to_owned());
    }
    let database = facts.consistent_index;
    if database > data.log.last
        || data.log.first > database.saturating_add(1)
        || data.log.state.commit > data.log.last
    {
        return Err(format!(
            "Before its last transaction the database held entries up to {database}; the log ({} \
             to {}) does not cover what follows.",
            data.log.first, data.log.last
        ));
    }
    let snapshots = match data.snapshot_index() > database {
        true => hide_snapshots(data, database)?,
        false => Vec::new(),
    };
    let slot = 1 - older_meta.slot;
    Ok(Mend::RevertMeta {
        path,
        slot,
        offset: slot * older_meta.page_size,
        database,
        snapshots,
    })
}

impl Mend {
    /// One line for the plan, beginning with a verb.
    pub fn summary(&self) -> String {
        match self {
            Self::CutTail { path, last, .. } => {
                format!("cut the damaged end of etcd's log {path} behind entry {last}")
            }
            Self::DropOldLog { files } => {
                format!(
                    "move {} of etcd's log away that {} not needed",
                    count(files),
                    if files.len() == 1 { "is" } else { "are" }
                )
            }
            Self::HideSnapshots { files, database } => {
                format!(
                    "move etcd's {} away that are newer than its database (entry {database})",
                    snapshots(files)
                )
            }
            Self::RevertMeta { database, .. } => {
                format!(
                    "take etcd's database back to before its last transaction (entry {database}); \
                     the log has what follows"
                )
            }
        }
    }

    /// What is guaranteed, and what becomes of the old files.
    pub fn details(&self) -> Vec<String> {
        let mut details = vec![
            "guarantee: the member keeps its identity and loses no write that was acknowledged, \
             provided the disk kept what etcd had synchronised"
                .to_owned(),
        ];
        if let Self::RevertMeta { path, .. } = self {
            details.push(format!(
                "{path} is copied, the copy is changed; the damaged one is kept for undo"
            ));
        }
        details
    }

    /// The name for programs.
    pub fn name(&self) -> &'static str {
        match self {
            Self::CutTail { .. } => "cut-etcd-log",
            Self::DropOldLog { .. } => "drop-old-etcd-log",
            Self::HideSnapshots { .. } => "hide-etcd-snapshots",
            Self::RevertMeta { .. } => "revert-etcd-meta",
        }
    }

    /// The changes it comes to.
    ///
    /// # Errors
    /// What cannot be read.
    pub fn changes(&self, guest: &Guest) -> anyhow::Result<Vec<Change>> {
        match self {
            Self::CutTail { path, keep, .. } => {
                Ok(vec![Change::patch(guest, path, Vec::new(), *keep)?])
            }
            Self::DropOldLog { files } | Self::HideSnapshots { files, .. } => remove(guest, files),
            Self::RevertMeta {
                path,
                slot,
                offset,
                snapshots,
                ..
            } => {
                let file = File::open(guest, path)?;
                let older = Database::open_older(File::open(guest, path)?)?;
                let older = older
                    .ok_or_else(|| anyhow::anyhow!("{path} has no older meta page any more"))?;
                let from = older.meta().slot * older.meta().page_size;
                let mut page = file.read(from, meta::PAGE_BYTES)?;
                anyhow::ensure!(
                    page.len() == meta::PAGE_BYTES,
                    "{path} is shorter than its meta pages"
                );
                // The page says its own number first.
                page[..8].copy_from_slice(&slot.to_le_bytes());
                let edit = Edit {
                    offset: *offset,
                    bytes: Content::new(page),
                };
                let mut changes = vec![Change::patch(guest, path, vec![edit], file.size())?];
                changes.extend(remove(guest, snapshots)?);
                Ok(changes)
            }
        }
    }
}

fn remove(guest: &Guest, files: &[GuestPath]) -> anyhow::Result<Vec<Change>> {
    files
        .iter()
        .map(|file| Ok(Change::remove(guest, file)?))
        .collect()
}

fn count(files: &[GuestPath]) -> String {
    crate::base::units::count(files.len(), "file", "files")
}

fn snapshots(files: &[GuestPath]) -> String {
    crate::base::units::count(files.len(), "snapshot", "snapshots")
}

/// Whether a member will start after what is planned, with what it had before.
///
/// # Errors
/// What would still be wrong, as a sentence.
pub fn prove(
    guest: &Guest,
    place: &Place,
    before: &MemberData,
    mended: Kind,
) -> Result<(), String> {
    let after = MemberData::read(guest, place);
    if let Some(left) = boot::problems(&after)
        .iter()
        .find(|problem| problem.kind == mended && problem.effect != Effect::Harmless)
    {
        return Err(format!("it would still be wrong afterwards: {}", left.saw));
    }
    if let Stored::Damaged(fault) = &after.stored
        && mended == Kind::DatabaseDamaged
    {
        return Err(format!("the database would still be damaged: {fault}"));
    }
    let same = after.log.identity == before.log.identity && after.log.last >= before.log.last;
    let voters = |data: &MemberData| data.membership().0.voters().collect::<Vec<_>>();
    if !same || (matches!(before.stored, Stored::Open(_)) && voters(&after) != voters(before)) {
        return Err("the member would not be what it was".to_owned());
    }
    Ok(())
}
