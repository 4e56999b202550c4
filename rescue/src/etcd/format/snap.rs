//! `.snap` files: a checksum around a raft snapshot, whose data is the v2 store in JSON
//! (server/etcdserver/api/snap).

use super::crc;
use super::members::Members;
use super::proto::{Malformed, fields};
use super::raft::SnapshotMark;
use super::v2store;
use crate::guest::{Guest, GuestPath};
use crate::tree::{FileKind, TreeError, TreeResult};

/// A larger file is not read. A kubeadm cluster's has some KiB; only users of the v2 API have more.
const MAX_SIZE: u64 = 48 << 20;

/// A `.snap` file, by its name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapFile {
    /// Where it is.
    pub path: GuestPath,
    /// Term in its name.
    pub term: u64,
    /// Index in its name.
    pub index: u64,
}

/// What `member/snap` holds beside the database.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Folder {
    /// Snapshots, newest first, as etcd tries them.
    pub files: Vec<SnapFile>,
    /// `%016x.snap.db`: whole databases received from a leader, with the index of their snapshot.
    pub databases: Vec<(GuestPath, u64)>,
    /// Files that etcd set aside as damaged.
    pub broken: Vec<GuestPath>,
    /// `tmp*` and `db.tmp*`: what an interrupted snapshot or defragmentation left; etcd removes
    /// them itself at its start.
    pub leftovers: Vec<GuestPath>,
}

impl Folder {
    /// Lists `path`.
    ///
    /// # Errors
    /// As the tree gives them.
    pub fn list(guest: &Guest, path: &GuestPath) -> TreeResult<Self> {
        let mut folder = Self::default();
        for entry in guest
            .read_dir(path)?
            .into_iter()
            .filter(|entry| entry.kind != FileKind::Directory)
        {
            let name = entry.name.to_string_lossy();
            let file = path.join(&entry.name);
            if name.ends_with(".broken") {
                folder.broken.push(file);
            } else if let Some(index) = name.strip_suffix(".snap.db") {
                folder
                    .databases
                    .extend(hex(index).map(|index| (file, index)));
            } else if let Some((term, index)) = name
                .strip_suffix(".snap")
                .and_then(|stem| stem.split_once('-'))
            {
                if let (Some(term), Some(index)) = (hex(term), hex(index)) {
                    folder.files.push(SnapFile {
                        path: file,
                        term,
                        index,
                    });
                }
            } else if name.starts_with("tmp") || name.starts_with("db.tmp") {
                folder.leftovers.push(file);
            }
        }
        // etcd sorts the names and goes from the end.
        folder.files.sort_by(|a, b| b.path.cmp(&a.path));
        Ok(folder)
    }
}

fn hex(text: &str) -> Option<u64> {
    let plain = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    if plain {
        u64::from_str_radix(text, 16).ok()
    } else {
        None
    }
}

/// What is wrong with a snapshot file; etcd renames it to `.broken` and takes the one before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SnapFault {
    /// Nothing in it, as a full disk leaves it.
    #[error("it is empty")]
    Empty,
    /// The checksum does not fit.
    #[error("its checksum is wrong")]
    Checksum,
    /// It is no snapshot.
    #[error("it is no snapshot")]
    Malformed,
}

impl From<Malformed> for SnapFault {
    fn from(_: Malformed) -> Self {
        Self::Malformed
    }
}

/// A snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// Where it stands in the log, and who voted then.
    pub mark: SnapshotMark,
    /// Members by the v2 store, where that could be read.
    pub members: Option<Members>,
}

/// Reads a snapshot file.
///
/// # Errors
/// As the tree gives them, [`TreeError::TooLarge`] among them; what is wrong with the file is part
/// of the answer.
pub fn read(guest: &Guest, path: &GuestPath) -> TreeResult<Result<Snapshot, SnapFault>> {
    let real = guest.resolve(path)?;
    let bytes = guest.tree().read(real.as_path(), MAX_SIZE)?;
    Ok(parse(&bytes))
}

/// Whether an error only says that the file is larger than is read.
pub fn is_too_large(error: &TreeError) -> bool {
    matches!(error, TreeError::TooLarge { .. })
}

fn parse(bytes: &[u8]) -> Result<Snapshot, SnapFault> {
    if bytes.is_empty() {
        return Err(SnapFault::Empty);
    }
    let (mut sum, mut data) = (0, &[][..]);
    for field in fields(bytes) {
        match field? {
            (1, value) => sum = value.number()? as u32,
            (2, value) => data = value.bytes()?,
            _ => {}
        }
    }
    // etcd calls both empty, too.
    if data.is_empty() || sum == 0 {
        return Err(SnapFault::Empty);
    }
    if crc::append(0, data) != sum {
        return Err(SnapFault::Checksum);
    }
    let (mut mark, mut store) = (SnapshotMark::default(), &[][..]);
    for field in fields(data) {
        match field? {
            (1, value) => store = value.bytes()?,
            (2, value) => mark = SnapshotMark::parse_metadata(value.bytes()?)?,
            _ => {}
        }
    }
    Ok(Snapshot {
        mark,
        members: v2store::members(store),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::etcd::format::proto::{put_bytes, put_number};
    use crate::tree::MemoryTree;

    fn sample() -> Vec<u8> {
        let mut metadata = Vec::new();
        put_bytes(&mut metadata, 1, &[8, 7]);
        put_number(&mut metadata, 2, 11);
        put_number(&mut metadata, 3, 2);
        let mut snapshot = Vec::new();
        put_bytes(&mut snapshot, 1, br#"{"Root":{"Children":{}}}"#);
        put_bytes(&mut snapshot, 2, &metadata);
        let mut file = Vec::new();
        put_number(&mut file, 1, u64::from(crc::append(0, &snapshot)));
        put_bytes(&mut file, 2, &snapshot);
        file
    }

    #[test]
    fn reads_a_snapshot_and_names_faults() {
        let good = sample();
        let snapshot = parse(&good).unwrap();
        assert_eq!((snapshot.mark.index, snapshot.mark.term), (11, 2));
        assert_eq!(snapshot.mark.conf_state.unwrap().voters, [7]);
        assert_eq!(parse(b""), Err(SnapFault::Empty));
        for at in 0..good.len() {
            let mut bytes = good.clone();
            bytes[at] ^= 0x40;
            // Bits of the checksum's varint beyond 32 are dropped, by etcd too.
            assert!(at == 5 || parse(&bytes).is_err(), "{at}");
            assert!(parse(&good[..at]).is_err(), "{at}");
        }
    }

    #[test]
    fn names_are_told_apart() {
        let tree = MemoryTree::new()
            .file("/snap/db", "")
            .file("/snap/0000000000000002-0000000000000064.snap", "")
            .file("/snap/0000000000000002-00000000000000c8.snap", "")
            .file("/snap/00000000000000c8.snap.db", "")
            .file("/snap/0000000000000002-0000000000000032.snap.broken", "")
            .file("/snap/db.tmp.123", "")
            .file("/snap/tmp123", "");
        let folder = Folder::list(&tree.into_guest(), &GuestPath::new("/snap")).unwrap();
        assert_eq!(
            folder
                .files
                .iter()
                .map(|file| file.index)
                .collect::<Vec<_>>(),
            [200, 100]
        );
        assert_eq!(
            (
                folder.databases[0].1,
                folder.broken.len(),
                folder.leftovers.len()
            ),
            (200, 1, 2)
        );
    }
}
