//! Free bytes and inodes, now and after files have gone.

use std::collections::HashMap;

use crate::change::{FreeAction, Freeing};
use crate::guest::{FileSystem, Guest};
use crate::tree::Usage;

use super::eviction::percent_of;

/// ext4 keeps 5 % of its blocks for root unless told otherwise (mke2fs(8), `-m`). It counts all
/// blocks, `statfs` those without the file system's own, so a little more.
const EXT_RESERVED_PERCENT: f64 = 5.5;

/// And 2 % of its blocks, at most 4096, for its own delayed work (ext4_calculate_resv_clusters).
const EXT_HIDDEN_PERCENT: f64 = 2.0;
const EXT_HIDDEN_MOST: u64 = 4096 * 4096;

/// Bytes that only root may write. They refill first: the kubelet sees nothing of what is freed
/// until they are whole.
///
/// `statfs` shows the reserve only while it is whole; on a disk filled by root it is taken to be
/// mke2fs's default.
pub fn reserved(fs: &FileSystem) -> u64 {
    let usage = &fs.usage;
    let seen = usage.bytes_free.saturating_sub(usage.bytes_available);
    if usage.bytes_available == 0 && may_reserve(&fs.kind) {
        let hidden = percent_of(usage.bytes_total, EXT_HIDDEN_PERCENT).min(EXT_HIDDEN_MOST);
        return seen
            .max(percent_of(usage.bytes_total, EXT_RESERVED_PERCENT).saturating_add(hidden));
    }
    seen
}

/// A mounted folder may lie on ext4, so it is counted as if it did.
fn may_reserve(kind: &str) -> bool {
    kind.starts_with("ext") || kind == "folder"
}

/// `fs.usage` after so many bytes and inodes have been given back.
pub fn after_freeing(fs: &FileSystem, bytes: u64, inodes: u64) -> Usage {
    let usage = fs.usage;
    let bytes_free = usage
        .bytes_free
        .saturating_add(bytes)
        .min(usage.bytes_total);
    Usage {
        bytes_free,
        bytes_available: bytes_free
            .saturating_sub(reserved(fs))
            .max(usage.bytes_available),
        inodes_free: usage
            .inodes_free
            .saturating_add(inodes)
            .min(usage.inodes_total),
        ..usage
    }
}

/// The usage of each of `guest.file_systems`, in their order, after `actions`. `guest` is the
/// system before them: whether an inode becomes free depends on how many names it has there.
pub fn usage_after(guest: &Guest, actions: &[FreeAction]) -> Vec<Usage> {
    let tree = guest.tree();
    let mut freed: HashMap<usize, (u64, u64)> = HashMap::new();
    let mut names_gone: HashMap<(usize, u64), u64> = HashMap::new();
    for action in actions {
        let Some(index) = position(guest, action) else {
            continue;
        };
        let (bytes, inodes) = freed.entry(index).or_default();
        *bytes = bytes.saturating_add(action.frees);
        if action.freeing != Freeing::Delete {
            continue;
        }
        let Ok(meta) = tree.lstat(action.path.as_path()) else {
            continue;
        };
        let last_name = match (meta.ino, meta.nlink.unwrap_or(1)) {
            (Some(ino), nlink) if nlink > 1 => {
                let gone = names_gone.entry((index, ino)).or_default();
                *gone += 1;
                *gone == nlink
            }
            _ => true,
        };
        *inodes += u64::from(last_name);
    }
    guest
        .file_systems
        .iter()
        .enumerate()
        .map(|(index, fs)| {
            let counted_at = guest.sharing_bytes(index).first().copied().unwrap_or(index);
            let (bytes, inodes) = freed.get(&counted_at).copied().unwrap_or_default();
            after_freeing(fs, bytes, inodes)
        })
        .collect()
}

fn position(guest: &Guest, action: &FreeAction) -> Option<usize> {
    let found = guest.file_system_of(&action.path)?;
    let index = guest
        .file_systems
        .iter()
        .position(|fs| fs.mount_point == found.mount_point)?;
    guest.sharing_bytes(index).first().copied()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::Backing;
    use crate::guest::GuestPath;

    fn fs(kind: &str, usage: Usage) -> FileSystem {
        FileSystem {
            mount_point: GuestPath::new("/"),
            kind: kind.into(),
            device: "disk".into(),
            uuid: None,
            usage,
            backing: Backing::Folder("/".into()),
            subvolume: None,
            has_errors: false,
        }
    }

    #[test]
    fn the_reserve_of_a_disk_filled_by_root_refills_first() {
        let usage = Usage {
            bytes_total: 1000,
            ..Usage::default()
        };
        assert_eq!(
            after_freeing(&fs("ext4", usage), 175, 0).bytes_available,
            100
        );
        assert_eq!(
            after_freeing(&fs("xfs", usage), 100, 0).bytes_available,
            100
        );
        let partly = Usage {
            bytes_total: 1000,
            bytes_free: 70,
            ..usage
        };
        assert_eq!(
            after_freeing(&fs("ext4", partly), 100, 0).bytes_available,
            95
        );
    }

    #[test]
    fn a_reserve_that_is_seen_is_taken_as_it_is() {
        let usage = Usage {
            bytes_total: 1000,
            bytes_free: 30,
            bytes_available: 20,
            ..Usage::default()
        };
        assert_eq!(
            after_freeing(&fs("ext4", usage), 100, 0).bytes_available,
            120
        );
    }
}
