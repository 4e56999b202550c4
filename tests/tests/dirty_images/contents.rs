//! Everything a file tree holds, to be compared: once as the kernel shows a mounted folder, once as
//! a [`Tree`] does.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use rescue::tree::{FileKind, Meta, Tree};
use sha2::{Digest as _, Sha256};

/// One file: its attributes, and the hash of its bytes or the target of its link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    meta: Meta,
    bytes: Option<[u8; 32]>,
    target: Option<PathBuf>,
}

/// By path.
pub type Contents = BTreeMap<PathBuf, Entry>;

/// The truth: plain system calls on a folder that the kernel has mounted. All attributes come
/// before the first byte is read: on Linux 6.1 closing a file, even one opened for reading, gives
/// back what XFS had allocated beyond its end.
pub fn of_folder(root: &Path) -> Result<Contents> {
    let mut contents = Contents::new();
    let mut todo = vec![PathBuf::from("/")];
    while let Some(path) = todo.pop() {
        let real = root.join(path.strip_prefix("/")?);
        let meta = truth(&fs::symlink_metadata(&real)?);
        if meta.kind == FileKind::Directory {
            for name in fs::read_dir(&real)? {
                todo.push(path.join(name?.file_name()));
            }
        }
        contents.insert(
            path,
            Entry {
                bytes: None,
                target: None,
                meta,
            },
        );
    }
    for (path, entry) in &mut contents {
        let real = root.join(path.strip_prefix("/")?);
        match entry.meta.kind {
            FileKind::Regular => entry.bytes = Some(Sha256::digest(fs::read(&real)?).into()),
            FileKind::Symlink => entry.target = Some(fs::read_link(&real)?),
            FileKind::Directory | FileKind::Special => {}
        }
    }
    Ok(contents)
}

fn truth(stat: &fs::Metadata) -> Meta {
    let kind = stat.file_type();
    let special =
        kind.is_fifo() || kind.is_socket() || kind.is_char_device() || kind.is_block_device();
    Meta {
        kind: match () {
            () if kind.is_file() => FileKind::Regular,
            () if kind.is_dir() => FileKind::Directory,
            () if kind.is_symlink() => FileKind::Symlink,
            () => {
                assert!(special, "a kind of file that is none: {stat:?}");
                FileKind::Special
            }
        },
        mode: stat.mode() & 0o7777,
        uid: stat.uid(),
        gid: stat.gid(),
        size: stat.size(),
        mtime: stat.mtime(),
        allocated: Some(stat.blocks() * 512),
        nlink: Some(stat.nlink()),
        ino: Some(stat.ino()),
    }
}

/// The same by way of a tree.
pub fn of_tree(tree: &dyn Tree) -> Result<Contents> {
    let mut contents = Contents::new();
    let mut todo = vec![(PathBuf::from("/"), FileKind::Directory)];
    while let Some((path, kind)) = todo.pop() {
        let meta = tree.lstat(&path)?;
        anyhow::ensure!(
            meta.kind == kind,
            "{}: {kind:?} in its folder, {:?} by itself",
            path.display(),
            meta.kind
        );
        let mut entry = Entry {
            bytes: None,
            target: None,
            meta,
        };
        match kind {
            FileKind::Directory => {
                todo.extend(
                    tree.read_dir(&path)?
                        .into_iter()
                        .map(|name| (path.join(&name.name), name.kind)),
                );
            }
            FileKind::Regular => {
                let bytes = tree
                    .read(&path, 1 << 30)
                    .with_context(|| format!("reading {}", path.display()))?;
                entry.bytes = Some(Sha256::digest(bytes).into());
            }
            FileKind::Symlink => entry.target = Some(tree.read_link(&path)?),
            FileKind::Special => {}
        }
        contents.insert(path, entry);
    }
    Ok(contents)
}

/// Some times are the replay's own, and no two replays agree on them: replaying a fast commit
/// makes, links and unlinks names anew in their folders, and truncating an orphan
/// (ext4_orphan_cleanup) stamps the file. Times before the replay stay.
pub fn forget_times_from(contents: &mut Contents, replay: i64) {
    for entry in contents
        .values_mut()
        .filter(|entry| entry.meta.mtime >= replay)
    {
        entry.meta.mtime = replay;
    }
}

/// The first few differences, one line each.
pub fn differences(truth: &Contents, ours: &Contents) -> Vec<String> {
    let paths: std::collections::BTreeSet<_> = truth.keys().chain(ours.keys()).collect();
    let differing = paths
        .into_iter()
        .filter(|path| truth.get(*path) != ours.get(*path));
    differing
        .take(5)
        .map(|path| {
            format!(
                "{}: {:?} but {:?}",
                path.display(),
                truth.get(path),
                ours.get(path)
            )
        })
        .collect()
}
