//! What a file really is, by its first and last bytes. Only what is recognised as worthless may go,
//! so everything that is not recognised is [`Kind::Unknown`] and stays.

use std::path::Path;

use crate::tree::{Tree, TreeResult};

/// Bytes looked at from each end.
const SAMPLE: usize = 16 << 10;

/// Samples taken in between when both ends are nothing but NUL bytes.
const MIDDLE_SAMPLES: u64 = 32;

/// The largest share of lines without a time that still makes a log: stack traces run over many
/// lines.
const STAMPED_PERCENT: usize = 20;

/// The content of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// No bytes at all.
    Empty,
    /// Text whose lines carry times.
    Log,
    /// Other text.
    Text,
    /// NUL bytes wherever it was looked at: what a power cut leaves of a log.
    Nul,
    /// gzip.
    Gzip,
    /// xz, Zstandard, bzip2 or LZ4, by name.
    Compressed(&'static str),
    /// A systemd journal and its state.
    Journal(JournalState),
    /// A Debian package.
    Deb,
    /// An RPM package.
    Rpm,
    /// libsolv's cache of package metadata.
    Solv,
    /// A core dump of a process or a kernel.
    CoreDump,
    /// Records of logins (wtmp, btmp).
    LoginRecords,
    /// A database, by name.
    Database(&'static str),
    /// A dump of a database, a key, an archive, a disk image: the only copy of something, perhaps.
    Precious(&'static str),
    /// Anything else.
    Unknown,
}

/// State byte of a journal's header (systemd's journal-def.h).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum JournalState {
    /// Closed cleanly.
    Offline,
    /// Was being written when the system stopped.
    Online,
    /// Rotated away.
    Archived,
}

impl Kind {
    /// For people: "a SQLite database".
    pub fn describe(self) -> String {
        match self {
            Self::Empty => "empty".into(),
            Self::Log => "log lines".into(),
            Self::Text => "text without times".into(),
            Self::Nul => "NUL bytes only".into(),
            Self::Gzip => "gzip".into(),
            Self::Compressed(name) => name.into(),
            Self::Journal(JournalState::Archived) => "an archived journal".into(),
            Self::Journal(JournalState::Offline) => "a closed journal".into(),
            Self::Journal(JournalState::Online) => "a journal that was in use".into(),
            Self::Deb => "a Debian package".into(),
            Self::Rpm => "an RPM package".into(),
            Self::Solv => "cached package metadata".into(),
            Self::CoreDump => "a core dump".into(),
            Self::LoginRecords => "login records".into(),
            Self::Database(name) => format!("a database ({name})"),
            Self::Precious(name) => name.into(),
            Self::Unknown => "not recognised".into(),
        }
    }
}

/// Looks at a regular file of `size` bytes.
pub fn sniff(tree: &dyn Tree, path: &Path, size: u64) -> TreeResult<Kind> {
    let head = tree.read_range(path, 0, SAMPLE)?;
    let tail = if size > SAMPLE as u64 {
        tree.read_range(
            path,
            size.saturating_sub(SAMPLE as u64).max(SAMPLE as u64),
            SAMPLE,
        )?
    } else {
        Vec::new()
    };
    let found = kind(&head, &tail, size);
    if found == Kind::Nul && !middle_is_nul(tree, path, size)? {
        return Ok(Kind::Unknown);
    }
    Ok(found)
}

fn middle_is_nul(tree: &dyn Tree, path: &Path, size: u64) -> TreeResult<bool> {
    for sample in 1..MIDDLE_SAMPLES {
        let offset = size / MIDDLE_SAMPLES * sample;
        if !is_nul(&tree.read_range(path, offset, SAMPLE)?) {
            return Ok(false);
        }
    }
    Ok(true)
}

fn is_nul(bytes: &[u8]) -> bool {
    bytes.iter().all(|byte| *byte == 0)
}

/// From the first and last bytes of a file of `size` bytes; `tail` is empty where `head` is all of
/// it.
pub fn kind(head: &[u8], tail: &[u8], size: u64) -> Kind {
    if head.is_empty() {
        return if size == 0 {
            Kind::Empty
        } else {
            Kind::Unknown
        };
    }
    if let Some(name) = database(head, if tail.is_empty() { head } else { tail }) {
        return Kind::Database(name);
    }
    if let Some(kind) = by_magic(head) {
        return kind;
    }
    if is_nul(head) && is_nul(tail) {
        return Kind::Nul;
    }
    if is_login_records(head, size) {
        return Kind::LoginRecords;
    }
    text(head, tail)
}

/// Bytes at a fixed place.
type Magic = (usize, &'static [u8]);

/// Formats of databases: (place, bytes, name).
const DATABASES: [(Magic, &str); 27] = [
    ((0, b"SQLite format 3\0"), "SQLite"),
    ((0, b"\x37\x7f\x06\x82"), "SQLite write-ahead log"),
    ((0, b"\x37\x7f\x06\x83"), "SQLite write-ahead log"),
    (
        (0, b"\xd9\xd5\x05\xf9\x20\xa1\x63\xd7"),
        "SQLite rollback journal",
    ),
    // bbolt: magic 0xED0CDAED after the 16 bytes of the page header. An etcd snapshot is one too.
    (
        (16, b"\xed\xda\x0c\xed"),
        "bbolt, as of etcd and containerd",
    ),
    ((0, b"\xfebin"), "MySQL binary log"),
    ((0, b"\xfdbin"), "MySQL encrypted binary log"),
    ((16, b"MySQL "), "InnoDB redo log"),
    ((16, b"MariaDB "), "InnoDB redo log"),
    ((16, b"ibbackup"), "InnoDB redo log"),
    ((0, b"\xfe\xfe\x07"), "MyISAM"),
    ((0, b"\xfe\xfe\x08"), "MyISAM"),
    ((0, b"\xfe\xfe\x0c"), "Aria log"),
    ((0, b"\xff\xff\xff\x01"), "Aria"),
    ((0, b"\xfe\x01\x08\x0a"), "MySQL table definition"),
    ((0, b"\xfe\x01\x09"), "MySQL table definition"),
    ((0, b"\xfe\x01\x0a"), "MySQL table definition"),
    // LMDB: magic 0xBEEFC0DE after the page header.
    ((16, b"\xde\xc0\xef\xbe"), "LMDB"),
    // Berkeley DB: hash, btree, queue and log magic at byte 12, in either byte order.
    ((12, b"\x61\x15\x06\x00"), "Berkeley DB"),
    ((12, b"\x62\x31\x05\x00"), "Berkeley DB"),
    ((12, b"\x53\x22\x04\x00"), "Berkeley DB"),
    ((12, b"\x88\x09\x04\x00"), "Berkeley DB"),
    ((12, b"\x00\x06\x15\x61"), "Berkeley DB"),
    ((12, b"\x00\x05\x31\x62"), "Berkeley DB"),
    ((0, b"REDIS"), "Redis"),
    ((0, b"\x41\xd8\x01\x00"), "WiredTiger (MongoDB)"),
    ((0, b"\x3f\xd7\x6c\x17"), "Lucene (Elasticsearch)"),
];

/// Formats known by their last eight bytes.
const DATABASE_ENDS: [(&[u8], &str); 2] = [
    (b"\x57\xfb\x80\x8b\x24\x75\x47\xdb", "LevelDB table"),
    (b"\xf7\xcf\xf4\x85\xb7\x41\xe2\x88", "RocksDB table"),
];

fn database(head: &[u8], tail: &[u8]) -> Option<&'static str> {
    let by_head = DATABASES
        .iter()
        .find(|((at, magic), _)| has(head, *at, magic))
        .map(|(_, name)| *name);
    let by_end = || {
        DATABASE_ENDS
            .iter()
            .find(|(magic, _)| tail.ends_with(magic))
            .map(|(_, name)| *name)
    };
    by_head
        .or_else(by_end)
        .or_else(|| innodb(head))
        .or_else(|| postgres(head))
        .or_else(|| etcd_wal(head))
}

fn has(bytes: &[u8], at: usize, magic: &[u8]) -> bool {
    bytes.get(at..).is_some_and(|rest| rest.starts_with(magic))
}

fn be32(bytes: &[u8], at: usize) -> Option<u32> {
    bytes
        .get(at..at.checked_add(4)?)?
        .try_into()
        .ok()
        .map(u32::from_be_bytes)
}

fn le32(bytes: &[u8], at: usize) -> Option<u32> {
    bytes
        .get(at..at.checked_add(4)?)?
        .try_into()
        .ok()
        .map(u32::from_le_bytes)
}

/// Page 0 of a tablespace: page number 0, type FSP_HDR (8), a checksum before and a space number
/// behind.
fn innodb(head: &[u8]) -> Option<&'static str> {
    let page_number = be32(head, 4)?;
    let page_type = head.get(24..26)?;
    let first_page = page_number == 0 && page_type == [0, 8] && be32(head, 0)? != 0;
    first_page.then_some("InnoDB")
}

/// A WAL segment's page header: magic 0xD0nn or 0xD1nn, then flags with the long-header bit in the
/// first page.
fn postgres(head: &[u8]) -> Option<&'static str> {
    let magic = u16::from_le_bytes(head.get(0..2)?.try_into().ok()?);
    let info = u16::from_le_bytes(head.get(2..4)?.try_into().ok()?);
    // Segment size in the long header: a power of two from 1 MiB to 1 GiB (xlog_internal.h).
    let segment = le32(head, 32)?;
    let plausible = segment.is_power_of_two() && (1 << 20..=1 << 30).contains(&segment);
    (matches!(magic >> 8, 0xD0 | 0xD1) && info & 2 != 0 && plausible)
        .then_some("PostgreSQL write-ahead log")
}

/// The first record of an etcd WAL file: a short frame whose record has type 4 (crc) in field 1 and
/// a crc in field 2.
fn etcd_wal(head: &[u8]) -> Option<&'static str> {
    let frame = u64::from_le_bytes(head.get(0..8)?.try_into().ok()?);
    let length = frame & ((1 << 56) - 1);
    ((1..=16).contains(&length) && head.get(8..11)? == [0x08, 0x04, 0x10])
        .then_some("etcd write-ahead log")
}

fn by_magic(head: &[u8]) -> Option<Kind> {
    const MAGICS: [(Magic, Kind); 24] = [
        ((0, b"\x1f\x8b\x08"), Kind::Gzip),
        ((0, b"\xfd7zXZ\0"), Kind::Compressed("xz")),
        ((0, b"\x28\xb5\x2f\xfd"), Kind::Compressed("zstd")),
        ((0, b"BZh"), Kind::Compressed("bzip2")),
        ((0, b"\x04\x22\x4d\x18"), Kind::Compressed("LZ4")),
        ((0, b"!<arch>\ndebian"), Kind::Deb),
        ((0, b"\xed\xab\xee\xdb"), Kind::Rpm),
        ((0, b"SOLV"), Kind::Solv),
        ((0, b"KDUMP   "), Kind::CoreDump),
        ((0, b"DISKDUMP"), Kind::CoreDump),
        ((0, b"makedumpfile\0"), Kind::CoreDump),
        ((0, b"PGDMP"), Kind::Precious("a PostgreSQL dump")),
        ((257, b"ustar"), Kind::Precious("a tar archive")),
        ((0, b"PK\x03\x04"), Kind::Precious("a zip archive")),
        ((0, b"7z\xbc\xaf\x27\x1c"), Kind::Precious("a 7z archive")),
        ((0, b"QFI\xfb"), Kind::Precious("a disk image")),
        ((0, b"KDMV"), Kind::Precious("a disk image")),
        ((0, b"hsqs"), Kind::Precious("a squashfs image")),
        ((1080, b"\x53\xef"), Kind::Precious("a file system image")),
        ((0, b"XFSB"), Kind::Precious("a file system image")),
        ((0, b"07070100"), Kind::Precious("a cpio archive")),
        ((0, b"\xd0\x0d\xfe\xed"), Kind::Precious("a device tree")),
        ((0, b"Salted__"), Kind::Precious("an encrypted file")),
        (
            (0, b"LUKS\xba\xbe"),
            Kind::Precious("an encrypted disk image"),
        ),
    ];
    if has(head, 0, b"LPKSHHRH") {
        return Some(journal(head));
    }
    if is_core(head) {
        return Some(Kind::CoreDump);
    }
    MAGICS
        .iter()
        .find(|((at, magic), _)| has(head, *at, magic))
        .map(|(_, kind)| *kind)
}

fn journal(head: &[u8]) -> Kind {
    match head.get(16) {
        Some(0) => Kind::Journal(JournalState::Offline),
        Some(1) => Kind::Journal(JournalState::Online),
        Some(2) => Kind::Journal(JournalState::Archived),
        _ => Kind::Unknown,
    }
}

/// The boot that wrote a journal's last entry: `tail_entry_boot_id` of its header.
pub fn journal_boot_id(head: &[u8]) -> Option<[u8; 16]> {
    if !has(head, 0, b"LPKSHHRH") {
        return None;
    }
    head.get(56..72)?.try_into().ok()
}

/// ELF with `e_type` ET_CORE (4), in its own byte order.
fn is_core(head: &[u8]) -> bool {
    let kind = match (head.starts_with(b"\x7fELF"), head.get(5)) {
        (true, Some(1)) => head.get(16..18).map(|b| [b[0], b[1]]),
        (true, Some(2)) => head.get(16..18).map(|b| [b[1], b[0]]),
        _ => None,
    };
    kind == Some([4, 0])
}

/// `struct utmp` of glibc: 384 bytes each, beginning with a type of 1..=9 and two bytes of padding.
fn is_login_records(head: &[u8], size: u64) -> bool {
    const RECORD: usize = 384;
    let plausible = |record: &[u8]| matches!(record, [1..=9, 0, 0, 0, ..]) || is_nul(record);
    size.is_multiple_of(RECORD as u64)
        && head.len() >= RECORD
        && head.chunks_exact(RECORD).all(plausible)
        && head.chunks_exact(RECORD).any(|record| !is_nul(record))
}

/// Beginnings and marks of text that is no log: dumps, keys, scripts, configurations.
const PRECIOUS_TEXT: [(&str, &str); 13] = [
    ("-----BEGIN ", "keys or certificates"),
    ("-- MySQL dump", "a database dump"),
    ("-- MariaDB dump", "a database dump"),
    ("-- PostgreSQL database dump", "a database dump"),
    ("-- phpMyAdmin SQL Dump", "a database dump"),
    ("INSERT INTO ", "a database dump"),
    ("CREATE TABLE ", "a database dump"),
    ("PRAGMA foreign_keys", "a database dump"),
    ("COPY public.", "a database dump"),
    ("dn: dc=", "a directory dump"),
    ("apiVersion: ", "Kubernetes objects"),
    ("client-key-data:", "a kubeconfig"),
    ("ssh-rsa AAAA", "keys"),
];

/// Text may end, or have holes, in NUL bytes where a power cut lost its last blocks.
fn text(head: &[u8], tail: &[u8]) -> Kind {
    if !is_text(head) || !is_text(tail) || is_nul(head) {
        return Kind::Unknown;
    }
    let shown = String::from_utf8_lossy(head);
    let starts = |mark: &str| {
        shown
            .lines()
            .take(200)
            .any(|line| line.trim_start().starts_with(mark))
    };
    if shown.starts_with("#!") {
        return Kind::Precious("a script");
    }
    if let Some((_, what)) = PRECIOUS_TEXT.iter().find(|(mark, _)| starts(mark)) {
        return Kind::Precious(what);
    }
    if is_stamped(head) && (is_stamped(tail) || is_nul(tail)) {
        Kind::Log
    } else {
        Kind::Text
    }
}

fn is_text(sample: &[u8]) -> bool {
    let mut odd = 0usize;
    for byte in sample {
        match byte {
            b'\t' | b'\n' | b'\r' | 0x1b | 0x20..=0x7e | 0x80..=0xff | 0 => {}
            _ => odd += 1,
        }
    }
    // Bytes above 0x7f must be UTF-8 or rare (Latin-1): a compressed or encrypted stream has half
    // of its bytes there.
    let nul = sample.iter().filter(|byte| **byte == 0).count();
    let high = sample.iter().filter(|byte| **byte >= 0x80).count();
    // Cutting a sample splits at most one character at each end.
    let invalid: usize = sample
        .utf8_chunks()
        .map(|chunk| chunk.invalid().len())
        .sum();
    odd * 50 <= sample.len()
        && invalid * 20 <= sample.len() + 80
        && high * 10 <= sample.len() * 9
        && nul_is_trailing(sample, nul)
}

/// NUL bytes only in runs of whole lost pieces: a binary format sprinkles them.
fn nul_is_trailing(sample: &[u8], nul: usize) -> bool {
    if nul == 0 {
        return true;
    }
    let runs = sample
        .split(|byte| *byte != 0)
        .filter(|run| !run.is_empty())
        .count();
    runs <= 2 && (nul >= 64 || runs == 1)
}

/// Whether enough lines carry a time.
fn is_stamped(sample: &[u8]) -> bool {
    let lines: Vec<&[u8]> = sample
        .split(|byte| *byte == b'\n')
        .filter(|line| line.len() > 1 && !is_nul(line))
        .take(400)
        .collect();
    let stamped = lines
        .iter()
        .filter(|line| has_time(line.get(..160).unwrap_or(line)))
        .count();
    !lines.is_empty() && stamped * 100 >= lines.len() * STAMPED_PERCENT
}

/// How an event of the API server's audit log begins; its times stand at its end, often thousands
/// of bytes behind.
const AUDIT_EVENT: &[u8] = b"{\"kind\":\"Event\",\"apiVersion\":\"audit.k8s.io/";

/// `08:01:02`, `2023-02-23T08`, `[   12.345678]`, `audit(1677139200.123:45)`, `I0223 08:01`.
fn has_time(line: &[u8]) -> bool {
    if line.starts_with(AUDIT_EVENT) {
        return true;
    }
    let shape: Vec<u8> = line
        .iter()
        .map(|byte| if byte.is_ascii_digit() { b'0' } else { *byte })
        .collect();
    const SHAPES: [&[u8]; 6] = [
        b"00:00:00",
        b"0000-00-00",
        b"0000/00/00",
        b"00/Jan",
        b"(0000000000.",
        b"\"ts\":0000000000",
    ];
    SHAPES
        .iter()
        .any(|wanted| shape.windows(wanted.len()).any(|window| window == *wanted))
        || is_kernel_time(&shape)
}

/// dmesg: `[   12.345678] text`, Xorg: `[    12.345] text`.
fn is_kernel_time(shape: &[u8]) -> bool {
    let Some(rest) = shape.strip_prefix(b"[") else {
        return false;
    };
    let Some(end) = rest.iter().position(|byte| *byte == b']') else {
        return false;
    };
    let inside = rest.get(..end).unwrap_or_default().trim_ascii();
    inside.contains(&b'.') && inside.iter().all(|byte| matches!(byte, b'0' | b'.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(bytes: &[u8]) -> Kind {
        kind(bytes, b"", bytes.len() as u64)
    }

    #[test]
    fn log_lines_of_many_programs() {
        let audit = "{\"kind\":\"Event\",\"apiVersion\":\"audit.k8s.io/v1\",\"level\":\"Metadata\",\
            \"auditID\":\"0c5c1c5e-1d0e-4a44-8a3c-1c2d3e4f5a6b\",\
            \"stage\":\"ResponseComplete\",\
            \"requestURI\":\"/api/v1/namespaces/kube-system/endpoints/kube-scheduler?timeout=10s\",\
            \"verb\":\"get\",\
            \"requestReceivedTimestamp\":\"2023-02-23T08:01:02.123456Z\"}\n";
        let logs: [&str; 10] = [
            audit,
            "Feb 23 08:01:02 master01 kubelet[812]: I0223 08:01:02.1 server.go:1] hello\n",
            "2023-02-23T08:01:02.123456+00:00 host sshd[1]: Accepted\n",
            "[2023-02-23T08:01:02.123Z] [ warning] [guestinfo] GetDiskInfo: ERROR: Partition name \
             buffer too small\n",
            "type=SYSCALL msg=audit(1677139200.123:45): arch=c000003e\n",
            "[    0.000000] Linux version 5.10.0\n[    1.000000] x\n",
            "10.0.0.1 - - [23/Feb/2023:08:01:02 +0000] \"GET / HTTP/1.1\" 200\n",
            "{\"log\":\"x\",\"stream\":\"stderr\",\"time\":\"2023-02-23T08:01:02.1Z\"}\n",
            "2023-02-23 08:01:02 status installed kubelet:amd64 1.18.0\n",
            "2023-02-23T08:01:02.1Z stderr F Grüße, naïve\n",
        ];
        for log in logs {
            assert_eq!(of(log.repeat(40).as_bytes()), Kind::Log, "{log}");
        }
        assert_eq!(of(b"hello\nworld\n"), Kind::Text);
    }

    #[test]
    fn a_log_cut_by_a_power_failure_is_still_a_log() {
        let mut bytes = b"Feb 23 08:01:02 host x: y\n".repeat(20);
        bytes.extend([0; 4096]);
        assert_eq!(of(&bytes), Kind::Log);
        assert_eq!(of(&[0; 4096]), Kind::Nul);
    }

    #[test]
    fn databases_whatever_their_name() {
        let at = |offset: usize, magic: &[u8]| {
            let mut bytes = vec![1u8; 4096];
            bytes[offset..offset + magic.len()].copy_from_slice(magic);
            bytes
        };
        for ((offset, magic), name) in DATABASES {
            assert_eq!(of(&at(offset, magic)), Kind::Database(name), "{name}");
        }
        for (end, name) in DATABASE_ENDS {
            assert_eq!(
                of(&at(4096 - end.len(), end)),
                Kind::Database(name),
                "{name}"
            );
        }
        let mut ibd = vec![0u8; 16384];
        ibd[..4].copy_from_slice(&[1, 2, 3, 4]);
        ibd[25] = 8;
        assert_eq!(of(&ibd), Kind::Database("InnoDB"));
    }

    #[test]
    fn the_only_copy_of_something_is_precious() {
        for text in [
            "-----BEGIN RSA PRIVATE KEY-----\nabc\n",
            "-- MySQL dump 10.13\n-- 2023-02-23 08:01:02\n",
            "#!/bin/sh\necho 08:01:02\n",
            "CREATE TABLE x (t timestamp);\nINSERT INTO x VALUES ('2023-02-23 08:01:02');\n",
            "apiVersion: v1\nkind: Secret\n",
        ] {
            assert!(matches!(of(text.as_bytes()), Kind::Precious(_)), "{text}");
        }
        let mut tar = vec![0u8; 1024];
        tar[257..262].copy_from_slice(b"ustar");
        tar[0] = b'a';
        assert_eq!(of(&tar), Kind::Precious("a tar archive"));
    }

    #[test]
    fn journals_and_their_states() {
        let mut header = vec![0u8; 300];
        header[..8].copy_from_slice(b"LPKSHHRH");
        header[56..72].fill(7);
        let states = [
            (0, JournalState::Offline),
            (1, JournalState::Online),
            (2, JournalState::Archived),
        ];
        for (byte, state) in states {
            header[16] = byte;
            assert_eq!(of(&header), Kind::Journal(state));
        }
        header[16] = 9;
        assert_eq!(of(&header), Kind::Unknown);
        assert_eq!(journal_boot_id(&header), Some([7; 16]));
    }

    #[test]
    fn core_dumps_but_not_programs() {
        let elf = |class_order: u8, kind: [u8; 2]| {
            let mut bytes = vec![0u8; 64];
            bytes[..4].copy_from_slice(b"\x7fELF");
            bytes[4] = 2;
            bytes[5] = class_order;
            bytes[16..18].copy_from_slice(&kind);
            bytes
        };
        assert_eq!(of(&elf(1, [4, 0])), Kind::CoreDump);
        assert_eq!(of(&elf(2, [0, 4])), Kind::CoreDump);
        assert_eq!(of(&elf(1, [3, 0])), Kind::Unknown);
    }

    #[test]
    fn binary_noise_is_unknown() {
        let noise: Vec<u8> = (0..8192u32)
            .map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8)
            .collect();
        assert_eq!(of(&noise), Kind::Unknown);
        assert_eq!(of(b"\x00\x01\x02\x03abc"), Kind::Unknown);
        let mut sprinkled = b"key\0value\0key\0value\0".repeat(50);
        sprinkled.extend(b"08:01:02\n");
        assert_eq!(of(&sprinkled), Kind::Unknown);
    }

    #[test]
    fn no_bytes_panic() {
        // Every prefix of every magic, so that each bounds check is met.
        for ((offset, magic), _) in DATABASES {
            for length in 0..offset + magic.len() {
                let mut bytes = vec![0u8; length];
                for (at, byte) in magic.iter().enumerate() {
                    if let Some(slot) = bytes.get_mut(offset + at) {
                        *slot = *byte;
                    }
                }
                let _ = kind(&bytes, &bytes, length as u64);
            }
        }
    }

    #[test]
    fn a_program_is_not_recognised() {
        let program = std::env::current_exe().unwrap();
        let tree = crate::tree::FolderTree::open(program.parent().unwrap()).unwrap();
        let size = std::fs::metadata(&program).unwrap().len();
        let name = Path::new("/").join(program.file_name().unwrap());
        assert_eq!(sniff(&tree, &name, size).unwrap(), Kind::Unknown);
    }
}
