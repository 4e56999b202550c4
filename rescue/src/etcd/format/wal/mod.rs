//! etcd's write-ahead log: its files, their frames and records, and the raft log that replaying
//! them gives.
//!
//! Rules from server/storage/wal (encoder.go, decoder.go, wal.go, repair.go) of etcd 3.3 to 3.7.

pub mod behind_damage;
pub mod log;
pub mod segment;

pub use log::{Log, Mark, Position, SegmentLook};
pub use segment::{Damage, End, Record, Tear};

use crate::guest::{Guest, GuestPath};
use crate::tree::{DirEntry, FileKind, TreeResult};

/// More files than any log has: etcd keeps 5 of 64 MB by default.
const MAX_FILES: usize = 100_000;

/// One file of the log, by its name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Segment {
    /// Where it is.
    pub path: GuestPath,
    /// Its number.
    pub sequence: u64,
    /// The index of the first entry that it was made for.
    pub index: u64,
}

/// What the folder of a log holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Folder {
    /// Files of the log, in order.
    pub segments: Vec<Segment>,
    /// `0.tmp`, `1.tmp`: files set aside for later.
    pub spares: Vec<GuestPath>,
    /// Copies that etcd made before it cut a torn tail.
    pub broken: Vec<GuestPath>,
    /// Names that are none of etcd's; it warns of them and passes over.
    pub strange: Vec<GuestPath>,
}

impl Folder {
    /// Lists `path`.
    ///
    /// # Errors
    /// As the tree gives them, also where there is no such folder.
    pub fn list(guest: &Guest, path: &GuestPath) -> TreeResult<Self> {
        let mut folder = Self::default();
        for entry in guest.read_dir(path)?.into_iter().take(MAX_FILES) {
            folder.add(path, &entry);
        }
        folder
            .segments
            .sort_by_key(|segment| (segment.sequence, segment.index));
        Ok(folder)
    }

    fn add(&mut self, above: &GuestPath, entry: &DirEntry) {
        let name = entry.name.to_string_lossy();
        let path = above.join(&entry.name);
        if entry.kind == FileKind::Directory {
            return;
        }
        match (parse_name(&name), name.rsplit_once('.').map(|(_, end)| end)) {
            (Some((sequence, index)), _) => self.segments.push(Segment {
                path,
                sequence,
                index,
            }),
            (None, Some("tmp")) => self.spares.push(path),
            (None, Some("broken")) => self.broken.push(path),
            _ => self.strange.push(path),
        }
    }

    /// The file that etcd begins to replay from after a snapshot of `index`: the last whose name is
    /// not beyond it.
    pub fn start_for(&self, index: u64) -> Option<usize> {
        self.segments
            .iter()
            .rposition(|segment| segment.index <= index)
    }

    /// The first file after `start` whose number does not follow the one before.
    pub fn gap_after(&self, start: usize) -> Option<&Segment> {
        let pairs = self.segments.get(start..)?.windows(2);
        pairs
            .filter(|pair| pair[0].sequence.checked_add(1) != Some(pair[1].sequence))
            .map(|pair| &pair[1])
            .next()
    }
}

/// `%016x-%016x.wal`, as etcd's `parseWALName` takes it.
pub(crate) fn parse_name(name: &str) -> Option<(u64, u64)> {
    let (sequence, index) = name.strip_suffix(".wal")?.split_once('-')?;
    let number = |text: &str| {
        let plain = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        if plain {
            u64::from_str_radix(text, 16).ok()
        } else {
            None
        }
    };
    Some((number(sequence)?, number(index)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::MemoryTree;

    #[test]
    fn sorts_names_into_what_they_are() {
        let mut tree = MemoryTree::new();
        for name in [
            "0000000000000001-0000000000000100.wal",
            "0000000000000000-0000000000000000.wal",
            "0000000000000003-0000000000000200.wal",
            "0000000000000001-0000000000000100.wal.broken",
            "0.tmp",
            "notes.txt",
            "+1-1.wal",
        ] {
            tree = tree.file(format!("/wal/{name}"), "");
        }
        let folder = Folder::list(&tree.into_guest(), &GuestPath::new("/wal")).unwrap();
        let numbers: Vec<_> = folder
            .segments
            .iter()
            .map(|segment| (segment.sequence, segment.index))
            .collect();
        assert_eq!(numbers, [(0, 0), (1, 0x100), (3, 0x200)]);
        assert_eq!(
            (
                folder.spares.len(),
                folder.broken.len(),
                folder.strange.len()
            ),
            (1, 1, 2)
        );
        assert_eq!(
            (
                folder.start_for(0),
                folder.start_for(0x1ff),
                folder.start_for(0x300)
            ),
            (Some(0), Some(1), Some(2))
        );
        assert_eq!(folder.gap_after(0).map(|segment| segment.sequence), Some(3));
        assert_eq!(folder.gap_after(2), None);
    }
}
