//! All files of a system with everything that counts, as the kernel and as rescue see them.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use rescue::guest::{Guest, GuestPath};
use rescue::tree::FileKind;
use sha2::Digest as _;

/// By path: kind, mode, owner, group, and the hash of the content or the target of the link.
pub type Files = BTreeMap<PathBuf, String>;

/// The kernel's own places, what mkfs makes, and what rescue keeps.
fn is_left_out(path: &Path) -> bool {
    let out = ["/proc", "/sys", "/dev", "/run", "/var/lib/rescue"]
        .iter()
        .any(|out| path == Path::new(out));
    out || path
        .file_name()
        .is_some_and(|name| name == "lost+found" || name == ".rescue")
}

fn hash(bytes: &[u8]) -> String {
    sha2::Sha256::digest(bytes)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

/// What is mounted below `root`, as the kernel has it.
pub fn of_folder(root: &Path) -> Result<Files> {
    let mut files = Files::new();
    let mut todo = vec![PathBuf::from("/")];
    while let Some(folder) = todo.pop() {
        let real = root.join(folder.strip_prefix("/")?);
        for entry in fs::read_dir(&real).with_context(|| format!("listing {}", real.display()))? {
            let (entry, path) =
                entry.map(|entry| (entry.path(), folder.join(entry.file_name())))?;
            if is_left_out(&path) {
                continue;
            }
            let meta = entry.symlink_metadata()?;
            let content = if meta.is_symlink() {
                format!("link {}", fs::read_link(&entry)?.display())
            } else if meta.is_dir() {
                todo.push(path.clone());
                "folder".to_owned()
            } else {
                hash(&fs::read(&entry)?)
            };
            let mode = meta.permissions().mode() & 0o7777;
            files.insert(
                path,
                format!("{mode:o} {} {} {content}", meta.uid(), meta.gid()),
            );
        }
    }
    Ok(files)
}

/// What rescue shows.
pub fn of_guest(guest: &Guest) -> Result<Files> {
    let mut files = Files::new();
    let mut todo = vec![PathBuf::from("/")];
    while let Some(folder) = todo.pop() {
        for entry in guest.read_dir(&GuestPath::new(&folder))? {
            let path = folder.join(&entry.name);
            if is_left_out(&path) {
                continue;
            }
            let at = GuestPath::new(&path);
            let meta = guest.lstat(&at)?;
            let content = match meta.kind {
                FileKind::Symlink => format!("link {}", guest.read_link(&at)?.display()),
                FileKind::Directory => {
                    todo.push(path.clone());
                    "folder".to_owned()
                }
                _ => hash(&guest.read(&at)?),
            };
            files.insert(
                path,
                format!("{:o} {} {} {content}", meta.mode, meta.uid, meta.gid),
            );
        }
    }
    Ok(files)
}

pub fn compare(expected: &Files, seen: &Files) -> Result<()> {
    ensure!(
        expected.len() > 100,
        "only {} files: nothing is compared",
        expected.len()
    );
    for (path, state) in expected {
        let there = seen.get(path).map_or("nothing", String::as_str);
        ensure!(
            there == state,
            "{}: {there} instead of {state}",
            path.display()
        );
    }
    let more: Vec<_> = seen
        .keys()
        .filter(|path| !expected.contains_key(*path))
        .collect();
    ensure!(more.is_empty(), "there is more: {more:?}");
    Ok(())
}
