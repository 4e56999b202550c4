//! A guest's files as they are, to be compared with what they are after an undo.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::Result;

/// What undo must bring back: everything about a file but its change and access times.
pub type State = (u32, u32, u32, i64, i64, Vec<u8>);

/// All files of a mounted guest under the folders that a repair may change, with mode, owner, time
/// of modification and bytes.
pub fn snapshot(root: &Path) -> Result<BTreeMap<PathBuf, State>> {
    let mut files = BTreeMap::new();
    let mut todo: Vec<PathBuf> = ["etc", "root", "home", "var/lib/kubelet", "usr/lib/systemd"]
        .iter()
        .map(|folder| root.join(folder))
        .collect();
    while let Some(path) = todo.pop() {
        let Ok(meta) = path.symlink_metadata() else {
            continue;
        };
        let bytes = if meta.is_symlink() {
            fs::read_link(&path)?.into_os_string().into_encoded_bytes()
        } else if meta.is_dir() {
            todo.extend(
                fs::read_dir(&path)?
                    .map(|entry| entry.map(|entry| entry.path()))
                    .collect::<Result<Vec<_>, _>>()?,
            );
            Vec::new()
        } else {
            fs::read(&path)?
        };
        // A folder's own time moves when a file in it is replaced and put back; its owner and mode
        // must not.
        let times = if meta.is_dir() {
            (0, 0)
        } else {
            (meta.mtime(), meta.mtime_nsec())
        };
        let state = (
            meta.permissions().mode(),
            meta.uid(),
            meta.gid(),
            times.0,
            times.1,
            bytes,
        );
        files.insert(path.strip_prefix(root)?.to_owned(), state);
    }
    Ok(files)
}
