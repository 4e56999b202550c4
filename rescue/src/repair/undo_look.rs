//! The look before an undo, through the read-only view of the guest: an undo that must be refused
//! is refused before a file system is mounted for writing, because mounting alone changes a disk.
//!
//! It refuses only what is certain. Whatever it cannot read or is not sure of is left to
//! [`super::undo::undo`], which looks again before it changes anything.

use std::collections::BTreeSet;
use std::path::Path;

use sha2::{Digest, Sha256};

use super::journal::{Finished, Journal, State, Step, StoredPath, parse_journal};
use super::runs::record;
use super::store::{DONE, JOURNAL, UNDO, UNDONE, run_ids, runs_folder};
use crate::base::hash;
use crate::base::refusal::Refusal;
use crate::change::tree_hash;
use crate::guest::{Guest, RealPath};
use crate::tree::{FileKind, Tree, TreeError, TreeResult};

/// Bytes of a file that are read at a time.
const CHUNK: usize = 1 << 20;

/// Refuses the undo of the newest run, or of the one named, where the node itself changed what the
/// run left.
///
/// # Errors
/// The refusal that [`super::undo::undo`] would give, and nothing else.
pub fn refuse_drifted(guest: &Guest, run: Option<&str>) -> Result<(), Refusal> {
    let Some((journal, finished)) = finished_run(guest, run) else {
        return Ok(());
    };
    match drifted(guest.tree().as_ref(), &journal, &finished.left_alone) {
        reasons if reasons.is_empty() => Ok(()),
        reasons => Err(refusal(&journal.id, &reasons)),
    }
}

/// Says what the node itself changed since a run, and that the state before it is lost.
/// `reasons`: one clause for each file.
pub(super) fn refusal(run: &str, reasons: &[String]) -> Refusal {
    let files = match reasons.len() {
        1 => "a file that this run changed was changed again since, by the node itself".to_owned(),
        count => format!(
            "{count} files that this run changed were changed again since, by the node itself"
        ),
    };
    Refusal::new(
        format!(
            "run {run} cannot be undone: {files}: {}",
            reasons.join("; ")
        ),
        "the node has run since the repair, and its state from before is gone for good: putting \
         the old files back would lose what the node wrote, and mix two states",
        format!(
            "where the node works, there is nothing to do. To mend what is wrong now: `rescue \
             repair` with the same disks. The old files can still be read in the guest, in \
             /var/lib/rescue/runs/{run}/backup"
        ),
    )
}

/// The run that an undo would take back, where it is done and no undo of it has begun.
fn finished_run(guest: &Guest, run: Option<&str>) -> Option<(Journal, Finished)> {
    let folder = runs_folder(guest).ok()?;
    let entries = guest.tree().read_dir(folder.as_path()).ok()?;
    let open_runs = run_ids(entries.into_iter().map(|entry| entry.name))
        .into_iter()
        .filter(|id| run.is_none_or(|wanted| wanted == id))
        .filter_map(|id| open_run(guest, &folder.child(id.as_ref())));
    let (journal, done) = open_runs.max_by_key(|(journal, _)| journal.sequence)?;
    Some((journal, done?))
}

/// A committed run that is not undone, with its record of being done where it has one and no undo
/// has begun.
fn open_run(guest: &Guest, folder: &RealPath) -> Option<(Journal, Option<Finished>)> {
    let read = |name| record(guest, folder, name).ok().flatten();
    let journal = parse_journal(&read(JOURNAL)?).ok()?;
    if read(UNDONE).is_some() {
        return None;
    }
    let done = match read(UNDO) {
        Some(_) => None,
        None => read(DONE).and_then(|bytes| serde_json::from_slice(&bytes).ok()),
    };
    Some((journal, done))
}

/// One clause for each path that holds neither what the run left there nor what was there before.
fn drifted(tree: &dyn Tree, journal: &Journal, left_alone: &[usize]) -> Vec<String> {
    let mut reasons = Vec::new();
    // What a later step of the run put over an earlier one says nothing of that one.
    let mut seen: BTreeSet<&StoredPath> = BTreeSet::new();
    let made = journal.steps.iter().enumerate().rev();
    for (_, step) in made.filter(|(n, _)| !left_alone.contains(n)) {
        if seen.insert(&step.path)
            && let Some(now) = changed_since(tree, step)
        {
            reasons.insert(
                0,
                format!(
                    "{} holds {now} where the run left {}",
                    step.path, step.after
                ),
            );
        }
    }
    reasons
}

/// What is at the path of a step, where that is certainly not of the run's making.
fn changed_since(tree: &dyn Tree, step: &Step) -> Option<State> {
    let path = step.path.to_real().ok()?;
    let now = state(tree, path.as_path(), step.is_exchange()).ok()?;
    // Folders are known by their inode number, which a tree may not have.
    let is_as = |then: &State| now.holds_the_same_as(then);
    (!is_as(&step.after) && !is_as(&step.before)).then_some(now)
}

/// What is at `path`. `whole`: a folder by all that is in it.
fn state(tree: &dyn Tree, path: &Path, whole: bool) -> TreeResult<State> {
    let meta = match tree.lstat(path) {
        Err(error) if error.is_not_found() => return Ok(State::Absent),
        found => found?,
    };
    Ok(match meta.kind {
        FileKind::Regular => State::File {
            sha256: file_hash(tree, path, meta.size)?,
        },
        FileKind::Symlink => State::Symlink {
            target: tree.read_link(path)?.into(),
        },
        FileKind::Directory if whole => State::Tree {
            inode: meta.ino.unwrap_or_default(),
            sha256: tree_hash::of(tree, path)?,
        },
        FileKind::Directory => State::Directory,
        FileKind::Special => State::Special,
    })
}

/// SHA-256 of a regular file of `size` bytes, lower-case hexadecimal.
fn file_hash(tree: &dyn Tree, path: &Path, size: u64) -> TreeResult<String> {
    let mut hasher = Sha256::new();
    let mut offset = 0;
    while offset < size {
        let bytes = tree.read_range(path, offset, CHUNK)?;
        if bytes.is_empty() {
            return Err(TreeError::Corrupt {
                path: path.to_path_buf(),
                reason: format!("it ends at byte {offset} of {size}"),
            });
        }
        hasher.update(&bytes);
        offset += bytes.len() as u64;
    }
    Ok(hash::hex(&hasher.finalize()))
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
    use crate::repair::{RunInfo, WritableGuest, apply, undo};
    use crate::tree::Usage;

    fn open(root: &Path) -> WritableGuest {
        let file_system = FileSystem {
            mount_point: GuestPath::new("/"),
            kind: "folder".to_owned(),
            device: root.display().to_string(),
            uuid: None,
            usage: Usage::default(),
            backing: Backing::Folder(root.to_path_buf()),
            subvolume: None,
            has_errors: false,
        };
        WritableGuest::open("test", &[file_system]).unwrap()
    }

    /// A guest on which a run called `one` replaced, created and removed a file, and changed a
    /// link.
    fn repaired() -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for folder in ["var/lib", "etc"] {
            fs::create_dir_all(root.path().join(folder)).unwrap();
        }
        for file in ["etc/old", "etc/gone"] {
            fs::write(root.path().join(file), file).unwrap();
        }
        std::os::unix::fs::symlink("old", root.path().join("etc/link")).unwrap();
        let writable = open(root.path());
        let guest = writable.guest();
        let changes = vec![
            Change::write(guest, &"/etc/old".into(), "new", 0o600).unwrap(),
            Change::symlink(guest, &"/etc/link".into(), "elsewhere").unwrap(),
            Change::remove(guest, &"/etc/gone".into()).unwrap(),
            Change::write(guest, &"/etc/fresh".into(), "fresh", 0o644).unwrap(),
        ];
        let prepared = Prepared {
            free: vec![],
            changes,
        };
        let info = RunInfo {
            id: "one".to_owned(),
            ..RunInfo::new(OffsetDateTime::UNIX_EPOCH, vec!["a test".to_owned()])
        };
        apply(&writable, prepared, &info, &Silent).unwrap();
        root
    }

    /// What the look says, and that the undo itself says the same.
    fn said(root: &Path, run: Option<&str>) -> Option<String> {
        let writable = open(root);
        let looked = refuse_drifted(writable.guest(), run)
            .err()
            .map(|refusal| refusal.to_string());
        let undone = undo(&writable, run, &Silent).err();
        assert_eq!(looked, undone.map(|error| error.to_string()));
        looked
    }

    #[test]
    fn a_node_that_did_not_run_since_is_not_refused() {
        let root = repaired();
        assert_eq!(said(root.path(), None), None);
    }

    #[test]
    fn a_change_of_each_kind_is_named_as_the_undo_names_it() {
        type Change = fn(&Path);
        let changes: [(&str, Change); 4] = [
            ("/etc/old", |etc| {
                fs::write(etc.join("old"), "newer").unwrap()
            }),
            ("/etc/fresh", |etc| {
                fs::remove_file(etc.join("fresh")).unwrap();
                fs::create_dir(etc.join("fresh")).unwrap();
            }),
            ("/etc/gone", |etc| {
                fs::write(etc.join("gone"), "again").unwrap()
            }),
            ("/etc/link", |etc| {
                fs::remove_file(etc.join("link")).unwrap();
                std::os::unix::fs::symlink("third", etc.join("link")).unwrap();
            }),
        ];
        for (path, change) in changes {
            let root = repaired();
            change(&root.path().join("etc"));
            for run in [None, Some("one")] {
                let said = said(root.path(), run).unwrap();
                assert!(
                    said.contains(path) && said.contains("gone for good"),
                    "{said}"
                );
            }
        }
    }

    #[test]
    fn a_damaged_record_is_left_to_the_undo_itself() {
        let root = repaired();
        let record = root.path().join("var/lib/rescue/runs/one/done.json");
        fs::write(root.path().join("etc/old"), "newer").unwrap();
        fs::write(record, "{").unwrap();
        let guest = open(root.path());
        assert!(refuse_drifted(guest.guest(), None).is_ok());
        assert!(undo(&guest, None, &Silent).is_err());
    }
}
