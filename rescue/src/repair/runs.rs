//! The runs on a guest, read through its trees: looking never writes.

use std::path::Path;

use anyhow::{Context, Result};

use super::journal::{
    Finished, Freed, Journal, RECORD_LIMIT, SIDE_STORE, parse_enlisted, parse_journal,
};
use super::store::{DONE, JOURNAL, SET, UNDO, UNDONE, run_ids, runs_folder};
use crate::base::escaping::escape;
use crate::guest::{Guest, RealPath};
use crate::tree::{FileKind, TreeError};

/// How far a run came.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum RunState {
    /// All changes are made.
    Done,
    /// Interrupted before it was committed: nothing is changed, the next repair removes it.
    NotCommitted,
    /// Interrupted after it was committed: the next repair completes it, undo goes back.
    HalfWay,
    /// Its undo was interrupted: undo again continues it.
    HalfUndone,
    /// Undone.
    Undone,
    /// Its record cannot be read, because of this.
    Unreadable(String),
}

/// One run.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct RunSummary {
    /// Its name.
    pub id: String,
    /// How far it came.
    pub state: RunState,
    /// Its number on this guest, from 1; 0 where it was never committed or cannot be read.
    pub sequence: u64,
    /// Version of the program that made it.
    pub version: String,
    /// When it began, RFC 3339.
    pub started: String,
    /// When it was done or undone, RFC 3339.
    pub finished: Option<String>,
    /// What it was for.
    pub summary: Vec<String>,
    /// The paths it changed, as people read them.
    pub changed: Vec<String>,
    /// What it freed.
    pub freed: Vec<Freed>,
    /// Whole folders that it replaced and keeps.
    pub keeps: Vec<Kept>,
    /// The nodes that it changes together, this one among them; empty where it is alone.
    pub together: Vec<String>,
}

/// A whole folder that a run replaced and keeps.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Kept {
    /// Where it was, as people read it.
    pub path: String,
    /// Bytes that it takes.
    pub bytes: u64,
    /// Where on the machine that rescue ran on it is instead.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub elsewhere: Option<String>,
}

/// Files that are counted of a folder that is kept; an etcd member has some dozen.
const MOST_COUNTED: usize = 10_000;

/// All runs on a guest, oldest first.
pub fn list(guest: &Guest) -> Result<Vec<RunSummary>> {
    let folder = match runs_folder(guest) {
        Ok(folder) => folder,
        // A guest without /var/lib has no runs.
        Err(error) if error.is_not_found() => return Ok(Vec::new()),
        Err(error) => return Err(error).context("looking for /var/lib in the guest"),
    };
    let entries = match guest.tree().read_dir(folder.as_path()) {
        Ok(entries) => entries,
        Err(error) if error.is_not_found() => return Ok(Vec::new()),
        Err(error) => return Err(error).context("reading the runs on this guest"),
    };
    // A FIFO, a device or a file is no run. A link may lead to where a run was moved.
    let could_be_runs = entries
        .into_iter()
        .filter(|entry| matches!(entry.kind, FileKind::Directory | FileKind::Symlink));
    let mut runs: Vec<RunSummary> = run_ids(could_be_runs.map(|entry| entry.name))
        .into_iter()
        .map(|id| summary(guest, &folder.child(id.as_ref()), id))
        .collect();
    runs.sort_by(|a, b| (a.sequence, &a.id).cmp(&(b.sequence, &b.id)));
    Ok(runs)
}

fn summary(guest: &Guest, folder: &RealPath, id: String) -> RunSummary {
    let together = match record(guest, folder, SET) {
        Ok(bytes) => bytes
            .and_then(|bytes| parse_enlisted(&bytes).ok())
            .map(|set| set.names())
            .unwrap_or_default(),
        Err(error) => return without_record(id, RunState::Unreadable(format!("{error:#}"))),
    };
    let found = match read(guest, folder) {
        Ok(Some((journal, state, finished))) => RunSummary {
            id,
            together: Vec::new(),
            keeps: kept(guest, folder, &journal),
            state,
            sequence: journal.sequence,
            // A crafted record must not move the cursor of whoever lists it.
            version: escape(&journal.version),
            started: escape(&journal.started),
            finished: finished.as_deref().map(escape),
            summary: journal.summary.iter().map(|line| escape(line)).collect(),
            changed: journal
                .steps
                .iter()
                .map(|step| step.path.to_string())
                .collect(),
            freed: journal.freed,
        },
        Ok(None) => without_record(id, RunState::NotCommitted),
        Err(error) => without_record(id, RunState::Unreadable(format!("{error:#}"))),
    };
    RunSummary { together, ..found }
}

/// The old folders that are still there: beside the record, or on the file system that they belong
/// to.
fn kept(guest: &Guest, folder: &RealPath, journal: &Journal) -> Vec<Kept> {
    let steps = journal
        .steps
        .iter()
        .enumerate()
        .filter(|(_, step)| step.before.is_tree());
    let kept = steps.filter_map(|(n, step)| {
        let side = step
            .mount_point
            .to_real()
            .ok()?
            .child(SIDE_STORE.as_ref())
            .child(journal.id.as_ref());
        let stores = [folder.clone(), side];
        let backup =
            |store: &RealPath| store.child("backup".as_ref()).child(n.to_string().as_ref());
        let bytes = stores
            .iter()
            .find_map(|store| bytes_below(guest, backup(store).as_path(), &mut 0))?;
        let later = journal.steps.iter().filter(|later| later.path == step.path);
        let elsewhere = later
            .filter_map(|step| step.kept.as_ref())
            .map(|kept| escape(&kept.shown()))
            .next();
        Some(Kept {
            path: step.path.to_string(),
            bytes,
            elsewhere,
        })
    });
    kept.collect()
}

/// `None` where there is no such folder.
fn bytes_below(guest: &Guest, folder: &Path, counted: &mut usize) -> Option<u64> {
    let tree = guest.tree();
    let entries = tree.read_dir(folder).ok()?;
    let mut bytes = 0;
    for entry in entries {
        *counted += 1;
        let path = folder.join(&entry.name);
        if *counted > MOST_COUNTED {
            break;
        }
        bytes += match entry.kind {
            FileKind::Directory => bytes_below(guest, &path, counted).unwrap_or(0),
            _ => tree
                .lstat(&path)
                .map_or(0, |meta| meta.allocated.unwrap_or(meta.size)),
        };
    }
    Some(bytes)
}

fn without_record(id: String, state: RunState) -> RunSummary {
    RunSummary {
        id,
        state,
        sequence: 0,
        version: String::new(),
        started: String::new(),
        finished: None,
        summary: Vec::new(),
        changed: Vec::new(),
        freed: Vec::new(),
        keeps: Vec::new(),
        together: Vec::new(),
    }
}

fn read(guest: &Guest, folder: &RealPath) -> Result<Option<(Journal, RunState, Option<String>)>> {
    let Some(bytes) = record(guest, folder, JOURNAL)? else {
        return Ok(None);
    };
    let journal = parse_journal(&bytes)?;
    let finished = |bytes: &[u8]| {
        serde_json::from_slice::<Finished>(bytes)
            .ok()
            .map(|record| record.finished)
    };
    if let Some(bytes) = record(guest, folder, UNDONE)? {
        return Ok(Some((journal, RunState::Undone, finished(&bytes))));
    }
    if record(guest, folder, UNDO)?.is_some() {
        return Ok(Some((journal, RunState::HalfUndone, None)));
    }
    if let Some(bytes) = record(guest, folder, DONE)? {
        return Ok(Some((journal, RunState::Done, finished(&bytes))));
    }
    Ok(Some((journal, RunState::HalfWay, None)))
}

/// The bytes of a record of a run; `None` where it has none of that name.
pub(super) fn record(guest: &Guest, folder: &RealPath, name: &str) -> Result<Option<Vec<u8>>> {
    match guest
        .tree()
        .read(folder.child(name.as_ref()).as_path(), RECORD_LIMIT)
    {
        Ok(bytes) => Ok(Some(bytes)),
        Err(TreeError::NotFound(_)) => Ok(None),
        Err(error) => Err(error.into()),
    }
}
