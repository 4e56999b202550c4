//! `.snap` files: a checksum around a raft snapshot (server/etcdserver/api/snap: `save`).

use std::io::{self, Write};

use crate::etcd::format::crc;
use crate::etcd::format::proto::{put_bytes, put_number, put_varint};
use crate::etcd::format::raft::SnapshotMark;

/// Permissions that etcd gives it.
pub const MODE: u32 = 0o644;

/// Its name, by the entry it stands for.
pub fn file_name(mark: &SnapshotMark) -> String {
    format!("{:016x}-{:016x}.snap", mark.term, mark.index)
}

/// Writes a snapshot that holds `store`, a v2 store in JSON.
///
/// # Errors
/// As `out` gives them.
pub fn write(out: &mut dyn Write, mark: &SnapshotMark, store: &[u8]) -> io::Result<()> {
    let metadata = mark.encode_metadata();
    let mut before = Vec::new();
    put_varint(&mut before, (1 << 3) | 2);
    put_varint(&mut before, store.len() as u64);
    let mut after = Vec::new();
    put_bytes(&mut after, 2, &metadata);
    let parts = [before.as_slice(), store, after.as_slice()];
    let sum = parts.iter().fold(0, |sum, part| crc::append(sum, part));
    let mut head = Vec::new();
    put_number(&mut head, 1, u64::from(sum));
    put_varint(&mut head, (2 << 3) | 2);
    put_varint(&mut head, parts.iter().map(|part| part.len() as u64).sum());
    out.write_all(&head)?;
    parts.iter().try_for_each(|part| out.write_all(part))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::etcd::format::members::{Member, Members};
    use crate::etcd::format::raft::ConfState;
    use crate::etcd::format::snap;
    use crate::etcd::write::store;
    use crate::guest::GuestPath;
    use crate::tree::MemoryTree;

    #[test]
    fn a_snapshot_is_read_back() {
        let mut members = Members::default();
        let urls = vec!["https://10.0.0.1:2380".to_owned()];
        members.list.insert(
            7,
            Member {
                id: 7,
                peer_urls: urls,
                ..Member::default()
            },
        );
        let voters = ConfState {
            voters: vec![7],
            ..ConfState::default()
        };
        let mark = SnapshotMark {
            index: 4711,
            term: 2,
            conf_state: Some(voters),
        };
        let mut file = Vec::new();
        write(&mut file, &mark, &store::store(&members, None)).unwrap();
        assert_eq!(file_name(&mark), "0000000000000002-0000000000001267.snap");
        let guest = MemoryTree::new().file("/snap", file).into_guest();
        let read = snap::read(&guest, &GuestPath::new("/snap"))
            .unwrap()
            .unwrap();
        assert_eq!((read.mark, read.members), (mark, Some(members)));
    }
}
