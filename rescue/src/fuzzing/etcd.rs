//! etcd's files: its log, snapshots, database and messages, and what a salvage makes of a damaged
//! database.

use std::io::Cursor;
use std::ops::ControlFlow;
use std::sync::OnceLock;

use crate::base::ui::Silent;
use crate::etcd::format::bbolt::meta::{PAGE_BYTES, fnv1a};
use crate::etcd::format::bbolt::{Database, Fault};
use crate::etcd::format::file::File;
use crate::etcd::format::members::Member;
use crate::etcd::format::proto::{fields, put_bytes, put_number};
use crate::etcd::format::raft::{ConfChange, ConfState, Entry, HardState, Identity, SnapshotMark};
use crate::etcd::format::request::Request;
use crate::etcd::format::wal::behind_damage::entries_behind_damage;
use crate::etcd::format::wal::{Folder, Log};
use crate::etcd::format::{snap, v2store};
use crate::etcd::operations::rebuild::edits::{Contents, Edits};
use crate::etcd::operations::salvage::Salvage;
use crate::etcd::operations::salvage::report::Report;
use crate::etcd::read::backend::{Backend, KEY, KeyValue, META, Revision};
use crate::etcd::read::objects::NodeObject;
use crate::etcd::read::survey::survey;
use crate::etcd::read::{kubernetes, lease, objects};
use crate::etcd::write::bbolt::DatabaseWriter;
use crate::etcd::write::wal::LogWriter;
use crate::guest::GuestPath;
use crate::tree::MemoryTree;

/// Small, so that a tree of three levels is.
const PAGE: u64 = 1024;

/// The first byte says how the rest is to be taken.
fn flags(data: &[u8]) -> (u8, &[u8]) {
    data.split_first()
        .map_or((0, data), |(flags, rest)| (*flags, rest))
}

/// Changes of two bytes for where and one for what.
fn patch(bytes: &mut [u8], changes: &[u8]) {
    for change in changes.chunks_exact(3) {
        let at = usize::from(u16::from_le_bytes([change[0], change[1]]));
        if let Some(byte) = bytes.get_mut(at) {
            *byte = change[2];
        }
    }
}

/// Records with right checksums: a kind, a length, that many bytes; or (flag 1) the bytes of a file
/// as they are. Flag 2 takes the rest for a second file from the middle on.
pub fn etcd_log(data: &[u8]) {
    let (flags, rest) = flags(data);
    let file = |rest: &[u8], crc: u32| -> (Vec<u8>, u32) {
        if flags & 1 != 0 {
            return (rest.to_vec(), 0);
        }
        let mut writer = LogWriter::following(Vec::new(), crc);
        let _ = writer.begin(&Identity {
            member: 7,
            cluster: 9,
        });
        let mut rest = rest;
        while let [kind, length, behind @ ..] = rest {
            let (data, behind) = behind.split_at(behind.len().min(usize::from(*length)));
            let _ = writer.record(u64::from(*kind % 7), data);
            rest = behind;
        }
        let crc = writer.crc();
        (writer.finish().unwrap_or_default(), crc)
    };
    let (one, two) = if flags & 2 != 0 {
        rest.split_at(rest.len() / 2)
    } else {
        (rest, &[][..])
    };
    let (first, crc) = file(one, 0);
    let mut tree = MemoryTree::new().file("/wal/0000000000000000-0000000000000000.wal", first);
    if flags & 2 != 0 {
        tree = tree.file(
            "/wal/0000000000000001-0000000000000002.wal",
            file(two, crc).0,
        );
    }
    let guest = tree.into_guest();
    let Ok(folder) = Folder::list(&guest, &GuestPath::new("/wal")) else {
        return;
    };
    let Ok(log) = Log::read(&guest, &folder) else {
        return;
    };
    assert!(log.segments.iter().all(|look| look.used <= look.size));
    let mut before = None;
    let _ = log.visit(&guest, 0, u64::MAX, &mut |entry| {
        assert!(
            (log.first..=log.last).contains(&entry.index),
            "an entry outside the log"
        );
        assert!(
            before.is_none_or(|before: u64| before.checked_add(1) == Some(entry.index)),
            "entries do not follow"
        );
        before = Some(entry.index);
        let _ = Request::parse(entry.data).map(|request| lease::in_request(&request));
        ControlFlow::Continue(())
    });
    for index in [0, 1, log.first, log.last, log.last.saturating_add(2)] {
        let Ok(Some((term, kept))) = entries_behind_damage(&guest, &log, index) else {
            continue;
        };
        for (number, (own, entry)) in (1..).zip(&kept) {
            let entry = Entry::parse(entry);
            assert!(entry.is_ok_and(
                |entry| entry.term == *own && entry.index == index.saturating_add(number)
            ));
        }
        // Nothing is made up where there is no damage.
        assert!(
            index != log.last
                || log.tail().is_none_or(|tail| tail.used < tail.size)
                || kept.is_empty(),
            "{term}"
        );
    }
}

/// A snapshot's file as it is, or (flag 1) what is behind its checksum, or (flag 2) the store in it
/// alone.
pub fn etcd_snap(data: &[u8]) {
    let (flags, rest) = flags(data);
    if flags & 2 != 0 {
        let _ = v2store::members(rest);
        return;
    }
    let file = match flags & 1 {
        0 => rest.to_vec(),
        _ => {
            let mut file = Vec::new();
            put_number(
                &mut file,
                1,
                u64::from(crate::etcd::format::crc::append(0, rest)),
            );
            put_bytes(&mut file, 2, rest);
            file
        }
    };
    let guest = MemoryTree::new().file("/snap", file).into_guest();
    let _ = snap::read(&guest, &GuestPath::new("/snap"));
}

/// Every message that is read anywhere, from the same bytes.
pub fn etcd_messages(data: &[u8]) {
    let count = fields(data).count();
    assert!(count <= data.len());
    let _ = Request::parse(data).map(|request| lease::in_request(&request));
    let _ = (
        Entry::parse(data),
        HardState::parse(data),
        Identity::parse(data),
        KeyValue::parse(data),
    );
    let _ = (
        SnapshotMark::parse_record(data),
        SnapshotMark::parse_metadata(data),
        Member::from_json(data),
    );
    if let Ok(state) = ConfState::parse(data) {
        assert_eq!(ConfState::parse(&state.encode()), Ok(state));
    }
    if let Ok(change) = ConfChange::parse(data) {
        assert_eq!(ConfChange::parse(&change.encode()), Ok(change));
    }
    let _ = (
        kubernetes::kind(data),
        lease::in_value(b"/registry/leases/a/b", data),
    );
    if let Some((revision, _)) = Revision::parse(data) {
        assert_eq!(data.get(..17), Some(revision.to_key().as_slice()));
    }
    kubernetes_object(data);
    ["Node", "Pod", "ConfigMap"]
        .iter()
        .for_each(|kind| kubernetes_object(&in_protobuf(kind, data)));
}

/// As the API server keeps it: runtime.Unknown {1: TypeMeta {1: apiVersion, 2: kind}, 2: raw}
/// behind its mark.
fn in_protobuf(kind: &str, raw: &[u8]) -> Vec<u8> {
    let (mut meta, mut object) = (Vec::new(), b"k8s\0".to_vec());
    put_bytes(&mut meta, 1, b"v1");
    put_bytes(&mut meta, 2, kind.as_bytes());
    put_bytes(&mut object, 1, &meta);
    put_bytes(&mut object, 2, raw);
    object
}

/// What is taken of one is no more than is given.
fn kubernetes_object(value: &[u8]) {
    if let Some(node) = NodeObject::parse(value) {
        assert!(!node.name.is_empty() && node.name.len() <= 253);
        assert!(
            node.internal_ips.len() <= 16 && node.pod_cidrs.len() <= 16 && node.roles.len() <= 16
        );
    }
    for texts in [
        objects::pod_annotations(value),
        kubernetes::config_map(value),
    ]
    .into_iter()
    .flatten()
    {
        let bytes: usize = texts.iter().map(|(key, text)| key.len() + text.len()).sum();
        assert!(bytes <= value.len());
    }
    let _ = kubernetes::is_encrypted(value);
}

/// 600 writes to 200 keys, some of them deletions, and a page's worth of history beside it that was
/// freed.
fn base() -> &'static [u8] {
    static BASE: OnceLock<Vec<u8>> = OnceLock::new();
    BASE.get_or_init(|| {
        let mut out = Cursor::new(Vec::new());
        let made = (|| -> anyhow::Result<()> {
            let mut writer = DatabaseWriter::new(&mut out, PAGE)?;
            for bucket in [b"freed".as_slice(), KEY] {
                writer.bucket(bucket)?;
                for main in 2..602i64 {
                    let mut value = Vec::new();
                    put_bytes(
                        &mut value,
                        1,
                        format!("/registry/{}", main % 200).as_bytes(),
                    );
                    let is_deletion = main % 50 == 0;
                    if !is_deletion {
                        put_number(&mut value, 3, main.cast_unsigned());
                        put_number(&mut value, 6, main.cast_unsigned() % 3);
                    }
                    let mut key = Revision { main, sub: 0 }.to_key().to_vec();
                    key.extend(is_deletion.then_some(b't'));
                    writer.put(&key, &value)?;
                }
            }
            writer.bucket(META)?;
            writer.put(b"consistent_index", &600u64.to_be_bytes())?;
            writer.finish().map(|_| ())
        })();
        assert!(made.is_ok());
        out.into_inner()
    })
}

/// The base with changes, or (flag 1) the bytes as they are. Flag 2 puts the checksums of the metas
/// right, flag 4 takes the metas away, flag 8 cuts the file at the first change.
fn database(data: &[u8]) -> Vec<u8> {
    let (flags, rest) = flags(data);
    let mut bytes = if flags & 1 != 0 {
        rest.to_vec()
    } else {
        base().to_vec()
    };
    if flags & 1 == 0 {
        patch(&mut bytes, rest);
        if let (true, [low, high, ..]) = (flags & 8 != 0, rest) {
            bytes.truncate(usize::from(u16::from_le_bytes([*low, *high])));
        }
    }
    for page in [0, PAGE as usize] {
        let Some(meta) = bytes.get_mut(page..page + PAGE_BYTES) else {
            continue;
        };
        if flags & 4 != 0 {
            meta.fill(0);
        } else if flags & 2 != 0 {
            let sum = fnv1a(&meta[16..72]);
            meta[72..80].copy_from_slice(&sum.to_le_bytes());
        }
    }
    bytes
}

fn open(bytes: &[u8]) -> Option<File> {
    let guest = MemoryTree::new().file("/db", bytes).into_guest();
    File::open(&guest, &GuestPath::new("/db")).ok()
}

/// Bucket, key and value.
type Triple = (Vec<u8>, Vec<u8>, Vec<u8>);

fn read_all(contents: &dyn Contents) -> anyhow::Result<Vec<Triple>> {
    let mut all = Vec::new();
    for bucket in contents.buckets()? {
        contents.each(&bucket, &mut |key, value| {
            all.push((bucket.clone(), key.to_vec(), value.to_vec()));
            Ok(())
        })?;
    }
    Ok(all)
}

/// A database whose check finds nothing can be read, and written anew with the same contents.
pub fn etcd_database(data: &[u8]) {
    let bytes = database(data);
    let Some(file) = open(&bytes) else { return };
    let Ok(backend) = Backend::open(file) else {
        return;
    };
    let facts = backend.facts();
    if let Ok(facts) = &facts {
        let _: Result<_, Fault> = survey(&backend, facts, facts.revision, &Silent);
    }
    let Ok(check) = backend.db.check(&mut |_, _| {}) else {
        return;
    };
    assert!(check.pages.saturating_add(check.free) <= backend.db.meta().pages);
    assert!(facts.is_ok(), "sound, and cannot be read");
    let Ok(all) = read_all(&backend.db) else {
        return;
    };
    let mut out = Cursor::new(Vec::new());
    if Edits::default().write(&backend.db, &mut out).is_ok() {
        let again = open(&out.into_inner()).and_then(|file| Database::open(file).ok());
        let again = again.and_then(|db| {
            db.check(&mut |_, _| {})
                .ok()
                .and_then(|_| read_all(&db).ok())
        });
        assert!(again.as_ref() == Some(&all), "written anew it is another");
    }
}

/// What is salvaged is in order, counted right, and makes a sound database.
pub fn etcd_salvage(data: &[u8]) {
    let bytes = database(data);
    let Some(Ok(salvage)) = open(&bytes).map(Salvage::scan) else {
        return;
    };
    let mut named = 0u64;
    let report = Report::of(&salvage, &mut |_| named += 1).unwrap_or_default();
    assert!(report.keys <= report.revisions && report.uncertain_revisions <= report.revisions);
    assert!(report.uncertain_keys == named && named <= report.keys);
    let mut last = None;
    let _ = salvage.history(&mut |element| {
        assert!(last.is_none_or(|last| last < element.at), "out of order");
        last = Some(element.at);
        Ok(())
    });
    let mut out = Cursor::new(Vec::new());
    if Edits::default().write(&salvage, &mut out).is_ok() {
        let made = open(&out.into_inner()).and_then(|file| Database::open(file).ok());
        assert!(
            made.is_some_and(|db| db.check(&mut |_, _| {}).is_ok()),
            "what was made is damaged"
        );
    }
}
