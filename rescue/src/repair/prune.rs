//! Old runs do not pile up on a guest: a repair gives up the oldest finished ones beyond a bound,
//! and the user all but the newest. Never the newest that can still be undone, unless the user says
//! so, and never one that is not finished.
//!
//! A whole folder that was replaced (an etcd member) may be larger than any bound, and the run that
//! replaced it keeps all that is left of it. The newest such run of each folder goes only when the
//! user says so, and does not count.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use anyhow::{Context, Result};
use rustix::fs::FileType;

use super::confined::{Confined, is_folder};
use super::journal::{Journal, StoredPath};
use super::store::{DONE, Store, UNDO, UNDONE};
use super::transaction::unreadable;
use super::write_mount::WritableGuest;
use crate::guest::RealPath;

/// Finished runs that a repair leaves on the guest.
pub const MOST_RUNS: usize = 32;
/// Bytes that they may take together: records, and replaced files that nothing else holds.
pub const MOST_BYTES: u64 = 64 << 20;

/// What pruning came to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pruned {
    /// Runs that are gone; they cannot be undone any more.
    pub removed: Vec<String>,
    /// Finished runs that are still there.
    pub kept: Vec<String>,
    /// Bytes that their going gave back.
    pub bytes: u64,
    /// Folders on the machine that rescue ran on that nobody needs any more.
    pub elsewhere: Vec<String>,
}

/// A run that is done or undone.
struct Finished {
    id: String,
    sequence: u64,
    can_be_undone: bool,
    bytes: u64,
    /// Whole folders that it replaced and keeps.
    keeps: Vec<StoredPath>,
    /// Where it keeps folders outside the guest.
    elsewhere: Vec<String>,
}

/// Removes all finished runs but the newest `keep`.
pub fn prune(guest: &WritableGuest, keep: usize) -> Result<Pruned> {
    let confined = guest.confined();
    let store = Store::of(guest)?;
    let runs = finished(confined, &store)?;
    let mut pruned = Pruned::default();
    let gone = runs.len().saturating_sub(keep);
    for (n, run) in runs.iter().enumerate() {
        if n >= gone {
            pruned.kept.push(run.id.clone());
            continue;
        }
        store.take_back(&run.id).with_context(|| {
            let mut done = format!("removing the run {}", run.id);
            if !pruned.removed.is_empty() {
                let _ = write!(done, " (gone already: {})", pruned.removed.join(", "));
            }
            done
        })?;
        pruned.removed.push(run.id.clone());
        pruned.bytes += run.bytes;
        pruned.elsewhere.extend(run.elsewhere.iter().cloned());
    }
    confined.sync_all()?;
    Ok(pruned)
}

/// Removes the oldest finished runs until the bounds hold; one sentence for each.
pub(super) fn keep_bounded(confined: &Confined, store: &Store<'_>) -> Vec<String> {
    keep_within(confined, store, MOST_RUNS, MOST_BYTES)
        .unwrap_or_else(|error| vec![format!("earlier runs could not be counted: {error:#}")])
}

fn keep_within(
    confined: &Confined,
    store: &Store<'_>,
    most_runs: usize,
    most_bytes: u64,
) -> Result<Vec<String>> {
    let runs = finished(confined, store)?;
    let newest = runs
        .iter()
        .rfind(|run| run.can_be_undone)
        .map(|run| run.sequence);
    let mut kept = BTreeSet::new();
    let mut runs: Vec<Finished> = runs
        .into_iter()
        .rev()
        .filter(|run| !keeps_the_last(run, &mut kept))
        .collect();
    runs.reverse();
    let (mut count, mut bytes) = (runs.len(), runs.iter().map(|run| run.bytes).sum::<u64>());
    let mut said = Vec::new();
    for run in runs.iter().filter(|run| Some(run.sequence) != newest) {
        if count <= most_runs && bytes <= most_bytes {
            break;
        }
        store
            .take_back(&run.id)
            .with_context(|| format!("removing the run {}", run.id))?;
        count -= 1;
        bytes = bytes.saturating_sub(run.bytes);
        let undo = if run.can_be_undone {
            "cannot be undone any more"
        } else {
            "is no longer listed"
        };
        said.push(format!(
            "the old run {} {undo}: at most {most_runs} runs of {} MiB together are kept",
            run.id,
            most_bytes >> 20
        ));
    }
    Ok(said)
}

/// Whether it keeps a folder that none of the newer runs keeps; asked of the newest first.
fn keeps_the_last(run: &Finished, kept: &mut BTreeSet<StoredPath>) -> bool {
    let before = kept.len();
    kept.extend(run.keeps.iter().cloned());
    kept.len() > before
}

/// The folders that a run replaced and still has.
fn kept_folders(
    confined: &Confined,
    store: &Store<'_>,
    journal: &Journal,
) -> Result<Vec<StoredPath>> {
    let mut kept = Vec::new();
    for (n, step) in journal
        .steps
        .iter()
        .enumerate()
        .filter(|(_, step)| step.before.is_tree())
    {
        if confined
            .lstat(&store.backup(step, &journal.id, n)?)?
            .is_some_and(|stat| is_folder(&stat))
        {
            kept.push(step.path.clone());
        }
    }
    Ok(kept)
}

/// Oldest first.
fn finished(confined: &Confined, store: &Store<'_>) -> Result<Vec<Finished>> {
    let mut runs = Vec::new();
    for id in store.ids()? {
        let journal = store
            .journal(&id)
            .map_err(|error| unreadable(store, &id, &error))?;
        let Some(journal) = journal else { continue };
        let undone = store.has_record(&id, UNDONE)?;
        let done = store.has_record(&id, DONE)? && !store.has_record(&id, UNDO)?;
        if !(undone || done) {
            continue;
        }
        let mut bytes = 0;
        for mount_point in confined.mount_points() {
            bytes += bytes_below(confined, &store.on(&mount_point, &id))?;
        }
        let keeps = kept_folders(confined, store, &journal)?;
        runs.push(Finished {
            id,
            sequence: journal.sequence,
            can_be_undone: !undone,
            bytes,
            keeps,
            elsewhere: journal.elsewhere(),
        });
    }
    runs.sort_by_key(|run| run.sequence);
    Ok(runs)
}

/// What removing a folder of ours gives back; a file that has another name gives nothing.
fn bytes_below(confined: &Confined, folder: &RealPath) -> Result<u64> {
    let mut bytes = 0;
    for name in confined.names(folder)? {
        let path = folder.child(&name);
        let Some(stat) = confined.lstat(&path)? else {
            continue;
        };
        if is_folder(&stat) {
            bytes += bytes_below(confined, &path)?;
        } else if FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile
            && stat.st_nlink == 1
        {
            bytes += u64::try_from(stat.st_blocks)
                .unwrap_or(0)
                .saturating_mul(512);
        }
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use time::OffsetDateTime;

    use super::*;
    use crate::base::ui::Silent;
    use crate::change::{Change, Prepared};
    use crate::disk::Backing;
    use crate::guest::{FileSystem, GuestPath};
    use crate::repair::{RunInfo, RunState, apply, runs, undo};
    use crate::tree::Usage;

    fn open(root: &Path) -> WritableGuest {
        let file_system = FileSystem {
            mount_point: GuestPath::new("/"),
            kind: "folder".to_owned(),
            device: root.display().to_string(),
            uuid: None,
            subvolume: None,
            usage: Usage::default(),
            backing: Backing::Folder(root.to_path_buf()),
            has_errors: false,
        };
        WritableGuest::open("test", &[file_system]).unwrap()
    }

    fn guest_with_runs(names: &[&str]) -> (tempfile::TempDir, WritableGuest) {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("var/lib")).unwrap();
        fs::write(root.path().join("file"), "before").unwrap();
        let guest = open(root.path());
        for name in names {
            let change =
                Change::write(guest.guest(), &"/file".into(), name.repeat(100), 0o600).unwrap();
            let info = RunInfo {
                id: (*name).to_owned(),
                ..RunInfo::new(OffsetDateTime::UNIX_EPOCH, vec![])
            };
            apply(
                &guest,
                Prepared {
                    free: vec![],
                    changes: vec![change],
                },
                &info,
                &Silent,
            )
            .unwrap();
        }
        (root, guest)
    }

    fn ids(guest: &WritableGuest) -> Vec<String> {
        runs::list(guest.guest())
            .unwrap()
            .into_iter()
            .map(|run| run.id)
            .collect()
    }

    #[test]
    fn the_newest_stay() {
        let (root, guest) = guest_with_runs(&["a", "b", "c"]);
        let pruned = prune(&guest, 1).unwrap();
        assert_eq!(
            (pruned.removed, pruned.kept),
            (vec!["a".to_owned(), "b".to_owned()], vec!["c".to_owned()])
        );
        assert!(pruned.bytes > 0);
        assert_eq!(ids(&guest), ["c"]);
        undo(&guest, None, &Silent).unwrap();
        assert_eq!(
            fs::read_to_string(root.path().join("file")).unwrap(),
            "b".repeat(100)
        );
        assert_eq!(prune(&guest, 0).unwrap().removed, ["c"]);
        assert_eq!(
            fs::read_dir(root.path().join("var/lib/rescue/runs"))
                .unwrap()
                .count(),
            0
        );
    }

    #[test]
    fn a_bound_never_takes_the_last_undo() {
        let (_root, guest) = guest_with_runs(&["a", "b", "c", "d"]);
        undo(&guest, Some("d"), &Silent).unwrap();
        let store = Store::find(guest.guest(), guest.confined()).unwrap();
        assert!(
            keep_within(guest.confined(), &store, 4, 1 << 20)
                .unwrap()
                .is_empty()
        );
        let said = keep_within(guest.confined(), &store, 3, 1 << 20).unwrap();
        assert!(
            said.len() == 1 && said[0].contains("run a cannot be undone any more"),
            "{said:?}"
        );
        // c is the newest that can be undone; d is only a record.
        keep_within(guest.confined(), &store, 0, 0).unwrap();
        assert_eq!(ids(&guest), ["c"]);
    }

    /// A folder that was replaced, with a kept byte more than any bound allows.
    #[test]
    fn the_last_of_a_replaced_folder_stays_until_the_user_gives_it_up() {
        let (root, guest) = guest_with_runs(&[]);
        let member = root.path().join("member");
        fs::create_dir(&member).unwrap();
        fs::write(member.join("db"), "data").unwrap();
        for id in ["a", "b"] {
            let fence = Change::fence(guest.guest(), &"/member".into(), "why").unwrap();
            let info = RunInfo {
                id: id.to_owned(),
                ..RunInfo::new(OffsetDateTime::UNIX_EPOCH, vec![])
            };
            apply(
                &guest,
                Prepared {
                    free: vec![],
                    changes: vec![fence],
                },
                &info,
                &Silent,
            )
            .unwrap();
            fs::remove_file(&member).unwrap();
            fs::create_dir(&member).unwrap();
        }
        for id in ["c", "d"] {
            let change = Change::write(guest.guest(), &"/file".into(), id, 0o600).unwrap();
            let info = RunInfo {
                id: id.to_owned(),
                ..RunInfo::new(OffsetDateTime::UNIX_EPOCH, vec![])
            };
            apply(
                &guest,
                Prepared {
                    free: vec![],
                    changes: vec![change],
                },
                &info,
                &Silent,
            )
            .unwrap();
        }
        let store = Store::find(guest.guest(), guest.confined()).unwrap();
        keep_within(guest.confined(), &store, 0, 0).unwrap();
        // b keeps the newest folder of that name; d is the newest of all.
        assert_eq!(ids(&guest), ["b", "d"]);
        assert_eq!(
            runs::list(guest.guest()).unwrap()[0].keeps[0].path,
            "/member"
        );
        prune(&guest, 0).unwrap();
        assert!(ids(&guest).is_empty());
    }

    #[test]
    fn what_is_not_finished_stays() {
        let (root, guest) = guest_with_runs(&["a", "b"]);
        fs::remove_file(root.path().join("var/lib/rescue/runs/a/done.json")).unwrap();
        assert_eq!(prune(&guest, 0).unwrap().removed, ["b"]);
        assert_eq!(
            runs::list(guest.guest()).unwrap()[0].state,
            RunState::HalfWay
        );
    }

    /// A hundred repairs leave no more than the bound, and the newest can be undone.
    #[test]
    fn many_repairs_take_a_bounded_space() {
        let names: Vec<String> = (0..100).map(|n| format!("run-{n:03}")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let (root, guest) = guest_with_runs(&names);
        let left = ids(&guest);
        assert_eq!(left.len(), MOST_RUNS);
        assert_eq!(left.last().map(String::as_str), Some("run-099"));
        undo(&guest, None, &Silent).unwrap();
        assert_eq!(
            fs::read_to_string(root.path().join("file")).unwrap(),
            "run-098".repeat(100)
        );
    }
}
