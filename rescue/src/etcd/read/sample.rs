//! Small members built by hand, for tests of what only looks.

use crate::etcd::format::bbolt::meta::fnv1a;
use crate::etcd::format::proto::{put_bytes, put_number};
use crate::etcd::format::wal::segment::{CRC, ENTRY, METADATA, SNAPSHOT, STATE};
use crate::etcd::write::wal::LogWriter;
use crate::tree::MemoryTree;

/// Bytes of a page.
const PAGE: usize = 4096;

/// A file of the log in memory.
#[derive(Debug, Clone)]
pub struct Writer(LogWriter<Vec<u8>>);

impl Default for Writer {
    fn default() -> Self {
        Self::continuing(0)
    }
}

impl Writer {
    /// Continues a file that ended with this running checksum.
    pub fn continuing(crc: u32) -> Self {
        Self(LogWriter::following(Vec::new(), crc))
    }

    /// Appends a record.
    pub fn record(&mut self, kind: u64, data: &[u8]) {
        self.0.record(kind, data).unwrap();
    }

    /// The running checksum.
    pub fn crc(&self) -> u32 {
        self.0.crc()
    }

    /// What was written.
    pub fn into_bytes(self) -> Vec<u8> {
        self.0.finish().unwrap()
    }
}

/// Key and value.
type Entry<'a> = (&'a [u8], &'a [u8]);

/// A database of four pages: two metas, a root leaf, and a free one. `buckets` lie inline in the
/// root: name, entries.
pub fn database(buckets: &[(&str, &[Entry<'_>])]) -> Vec<u8> {
    let mut file = vec![0u8; 4 * PAGE];
    for slot in 0..2u8 {
        let page = &mut file[usize::from(slot) * PAGE..];
        page[0] = slot;
        page[8] = 4;
        let meta = &mut page[16..80];
        meta[..4].copy_from_slice(&0xED0C_DAEDu32.to_le_bytes());
        meta[4] = 2;
        meta[8..12].copy_from_slice(&4096u32.to_le_bytes());
        meta[16] = 2;
        meta[32..40].fill(0xff);
        meta[40] = 4;
        meta[48] = 10 + slot;
        let sum = fnv1a(&meta[..56]);
        meta[56..64].copy_from_slice(&sum.to_le_bytes());
    }
    let values: Vec<Vec<u8>> = buckets
        .iter()
        .map(|(_, entries)| [vec![0; 16], leaf(0, 0, entries)].concat())
        .collect();
    let items: Vec<Entry<'_>> = buckets
        .iter()
        .zip(&values)
        .map(|((name, _), value)| (name.as_bytes(), value.as_slice()))
        .collect();
    let root = leaf(2, 1, &items);
    file[2 * PAGE..2 * PAGE + root.len()].copy_from_slice(&root);
    file
}

fn leaf(id: u8, flags: u8, items: &[Entry<'_>]) -> Vec<u8> {
    let mut page = vec![0u8; 16 + 16 * items.len()];
    page[0] = id;
    page[8] = 2;
    page[10] = items.len() as u8;
    for (index, (key, value)) in items.iter().enumerate() {
        let at = 16 + 16 * index;
        let position = (page.len() - at) as u32;
        page[at] = flags;
        page[at + 4..at + 8].copy_from_slice(&position.to_le_bytes());
        page[at + 8..at + 12].copy_from_slice(&(key.len() as u32).to_le_bytes());
        page[at + 12..at + 16].copy_from_slice(&(value.len() as u32).to_le_bytes());
        page.extend_from_slice(key);
        page.extend_from_slice(value);
    }
    page
}

/// A member with one key, whose database holds the log up to `applied`.
pub fn sound_database(applied: u64) -> Vec<u8> {
    let revision = super::backend::Revision { main: 2, sub: 0 }.to_key();
    let mut kv = Vec::new();
    put_bytes(&mut kv, 1, b"/registry/a");
    put_number(&mut kv, 2, 2);
    put_number(&mut kv, 3, 2);
    put_number(&mut kv, 4, 1);
    let index = applied.to_be_bytes();
    database(&[
        ("key", &[(&revision, &kv)]),
        ("meta", &[(b"consistent_index", &index)]),
    ])
}

/// A log of entries `1..=last`, the first of which adds the member.
pub fn log(last: u64) -> Vec<u8> {
    let pair = |one, two| {
        let mut message = Vec::new();
        put_number(&mut message, 1, one);
        put_number(&mut message, 2, two);
        message
    };
    let entry = |kind, index, data: &[u8]| {
        let mut message = Vec::new();
        put_number(&mut message, 1, kind);
        put_number(&mut message, 2, 2);
        put_number(&mut message, 3, index);
        put_bytes(&mut message, 4, data);
        message
    };
    let mut change = Vec::new();
    put_number(&mut change, 2, 0);
    put_number(&mut change, 3, 7);
    put_bytes(
        &mut change,
        4,
        br#"{"id":7,"peerURLs":["https://10.0.0.1:2380"],"name":"master01"}"#,
    );
    let mut writer = Writer::default();
    writer.record(CRC, b"");
    writer.record(METADATA, &pair(7, 9));
    writer.record(SNAPSHOT, &pair(0, 0));
    for index in 1..=last {
        writer.record(
            ENTRY,
            &if index == 1 {
                entry(1, 1, &change)
            } else {
                entry(0, index, b"")
            },
        );
    }
    let mut state = pair(2, 7);
    put_number(&mut state, 3, last);
    writer.record(STATE, &state);
    writer.into_bytes()
}

/// A sound member below `data_dir`.
pub fn member(data_dir: &str) -> MemoryTree {
    MemoryTree::new()
        .file(format!("{data_dir}/member/snap/db"), sound_database(8))
        .file(
            format!("{data_dir}/member/wal/0000000000000000-0000000000000000.wal"),
            log(8),
        )
        .file(format!("{data_dir}/member/wal/0.tmp"), "")
}
