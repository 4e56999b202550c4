//! The log, written as streams: one anew, as `snapshot restore` makes it, or one that is there with
//! another identity and more at its end. Memory is bounded by the longest record.

use std::fmt;
use std::io::{self, BufWriter, Write};
use std::path::Path;
use std::rc::Rc;

use anyhow::{Context as _, Result, ensure};

use super::Form;
use crate::change::folder::FolderSink;
use crate::etcd::format::crc;
use crate::etcd::format::file::File;
use crate::etcd::format::members::{Member, Members};
use crate::etcd::format::proto::{put_bytes, put_number};
use crate::etcd::format::raft::{
    ConfChange, ConfChangeKind, ConfState, Entry, EntryKind, HardState, Identity, SnapshotMark,
};
use crate::etcd::format::wal::segment::{self, Reader};
use crate::etcd::format::wal::{End, Log};
use crate::guest::Guest;

/// Permissions that etcd gives its files.
pub const MODE: u32 = 0o600;

/// The name of a file of the log, by its number and the first entry that it is for.
pub fn file_name(sequence: u64, index: u64) -> String {
    format!("{sequence:016x}-{index:016x}.wal")
}

/// Writes records as etcd's encoder does: framed, padded to 8 bytes, each with the checksum of all
/// before it.
#[derive(Debug, Clone)]
pub struct LogWriter<W> {
    out: W,
    crc: u32,
    frame: Vec<u8>,
}

impl<W: Write> LogWriter<W> {
    /// Begins a file that follows one which ended with this running checksum; 0 for the first.
    pub fn following(out: W, crc: u32) -> Self {
        Self {
            out,
            crc,
            frame: Vec::new(),
        }
    }

    /// Appends a record of any kind.
    ///
    /// # Errors
    /// As the output gives them.
    pub fn record(&mut self, kind: u64, data: &[u8]) -> io::Result<()> {
        self.crc = crc::append(self.crc, data);
        let frame = &mut self.frame;
        frame.clear();
        frame.extend_from_slice(&[0; 8]);
        put_number(frame, 1, kind);
        put_number(frame, 2, u64::from(self.crc));
        if kind != segment::CRC {
            put_bytes(frame, 3, data);
        }
        let length = frame.len() - 8;
        let padding = (8 - length % 8) % 8;
        let mut field = length as u64;
        if padding != 0 {
            field |= (0x80 | padding as u64) << 56;
        }
        frame.resize(8 + length + padding, 0);
        frame[..8].copy_from_slice(&field.to_le_bytes());
        self.out.write_all(frame)
    }

    /// What every file begins with: the checksum so far, and whose log it is.
    ///
    /// # Errors
    /// As the output gives them.
    pub fn begin(&mut self, identity: &Identity) -> io::Result<()> {
        self.record(segment::CRC, b"")?;
        self.record(segment::METADATA, &identity.encode())
    }

    /// An entry.
    ///
    /// # Errors
    /// As the output gives them.
    pub fn entry(&mut self, entry: &Entry<'_>) -> io::Result<()> {
        self.record(segment::ENTRY, &entry.encode())
    }

    /// A hard state.
    ///
    /// # Errors
    /// As the output gives them.
    pub fn state(&mut self, state: &HardState) -> io::Result<()> {
        self.record(segment::STATE, &state.encode())
    }

    /// A snapshot's place.
    ///
    /// # Errors
    /// As the output gives them.
    pub fn mark(&mut self, mark: &SnapshotMark) -> io::Result<()> {
        self.record(segment::SNAPSHOT, &mark.encode_record())
    }

    /// The running checksum.
    pub fn crc(&self) -> u32 {
        self.crc
    }

    /// The output, flushed.
    ///
    /// # Errors
    /// As the output gives them.
    pub fn finish(mut self) -> io::Result<W> {
        self.out.flush()?;
        Ok(self.out)
    }
}

/// The first log of a new cluster, as `snapshot restore` makes it (etcdutl/snapshot/v3_snapshot.go:
/// `saveWALAndSnap`): an entry of term 1 for each member, all agreed on, and a snapshot behind
/// them. All members vote. Gives the snapshot's mark for the `.snap` file, which names the voters
/// in either form.
///
/// # Errors
/// As the output gives them.
pub fn create(
    out: impl Write,
    identity: &Identity,
    members: &Members,
    form: Form,
) -> io::Result<SnapshotMark> {
    let mut writer = LogWriter::following(out, 0);
    writer.begin(identity)?;
    writer.mark(&SnapshotMark::default())?;
    let voters: Vec<u64> = members.list.keys().copied().collect();
    for (index, member) in (1..).zip(members.list.values()) {
        let data = add(member).encode();
        writer.entry(&Entry {
            term: 1,
            index,
            kind: EntryKind::ConfChange,
            data: &data,
        })?;
    }
    let last = voters.len() as u64;
    writer.state(&HardState {
        term: 1,
        vote: voters.first().copied().unwrap_or(0),
        commit: last,
    })?;
    let conf_state = Some(ConfState {
        voters,
        ..ConfState::default()
    });
    let mark = SnapshotMark {
        index: last,
        term: 1,
        conf_state,
    };
    match form {
        Form::V3_4 => writer.mark(&SnapshotMark {
            conf_state: None,
            ..mark.clone()
        })?,
        Form::V3_5 => writer.mark(&mark)?,
    }
    writer.finish()?;
    Ok(mark)
}

/// The change that brings a member in: as a voter, or as a learner if it is one.
pub fn add(member: &Member) -> ConfChange {
    let kind = if member.is_learner {
        ConfChangeKind::AddLearner
    } else {
        ConfChangeKind::AddNode
    };
    ConfChange {
        kind,
        node: member.id,
        context: member.to_json(),
    }
}

/// Entries as a log has them, in their order. They hold what users wrote, so they are never shown.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Entries(Rc<[Vec<u8>]>);

impl Entries {
    /// Encoded ones.
    pub fn new(entries: Vec<Vec<u8>>) -> Self {
        Self(entries.into())
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn bytes(&self) -> u64 {
        self.0.iter().map(|entry| entry.len() as u64 + 32).sum()
    }

    /// Appends them to a log.
    ///
    /// # Errors
    /// As the output gives them.
    pub fn write<W: Write>(&self, writer: &mut LogWriter<W>) -> io::Result<()> {
        self.0
            .iter()
            .try_for_each(|entry| writer.record(segment::ENTRY, entry))
    }
}

impl fmt::Debug for Entries {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Entries({})", self.len())
    }
}

/// What comes behind a log's last entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Addition {
    /// A snapshot's record, for a `.snap` file that the log does not know yet.
    pub mark: Option<SnapshotMark>,
    /// Entries of another member's log that come first, as they are there.
    pub entries: Entries,
    /// Term of the new entries.
    pub term: u64,
    /// Number of the first new entry.
    pub first: u64,
    /// Changes of the membership, one entry each.
    pub changes: Vec<ConfChange>,
    /// The hard state that counts from now on.
    pub state: HardState,
}

impl Addition {
    /// Entries of a term that all before it come to an end in, behind the entry `last`: everything
    /// is agreed on afterwards. `vote` is whom the member has voted for in it; 0 for nobody.
    pub fn agreed(last: u64, term: u64, vote: u64, changes: Vec<ConfChange>) -> Self {
        let commit = last.saturating_add(changes.len() as u64);
        let (entries, state) = (Entries::default(), HardState { term, vote, commit });
        Self {
            mark: None,
            entries,
            term,
            first: last.saturating_add(1),
            changes,
            state,
        }
    }

    fn write<W: Write>(&self, writer: &mut LogWriter<W>) -> io::Result<()> {
        if let Some(mark) = &self.mark {
            writer.mark(mark)?;
        }
        self.entries.write(writer)?;
        for (index, change) in (self.first..).zip(&self.changes) {
            let data = change.encode();
            writer.entry(&Entry {
                term: self.term,
                index,
                kind: EntryKind::ConfChange,
                data: &data,
            })?;
        }
        writer.state(&self.state)
    }
}

/// A log that begins behind a snapshot, as etcd's does that has received one, with nothing but what
/// is added: its mark comes first.
///
/// # Errors
/// As the output gives them.
pub fn behind(out: impl Write, identity: &Identity, addition: &Addition) -> io::Result<()> {
    let mut writer = LogWriter::following(out, 0);
    writer.begin(identity)?;
    addition.write(&mut writer)?;
    writer.finish().map(drop)
}

/// A log that is there, written with an identity and with more at its end. Without either the good
/// records come out as they went in, byte by byte, those of overwritten entries among them: what
/// etcd might bring back of them (see [`crate::etcd::format::wal::log`]) ends at the first entry
/// that is added.
#[derive(Debug, Clone, Copy)]
pub struct Rewrite<'a> {
    /// Where the log is.
    pub guest: &'a Guest,
    /// What it is.
    pub log: &'a Log,
    /// The first file that is taken over; those before are not needed.
    pub from: usize,
    /// Whose it becomes.
    pub identity: Identity,
    /// What is appended.
    pub addition: Option<&'a Addition>,
}

impl Rewrite<'_> {
    /// Whether the files from `from` on are whole and follow each other.
    ///
    /// # Errors
    /// What keeps the log from being rewritten, as a sentence without its full stop.
    pub fn check(log: &Log, from: usize) -> Result<()> {
        let kept = log.segments.get(from..).unwrap_or_default();
        let (last, before) = kept.split_last().context("the log is empty")?;
        for look in before {
            ensure!(
                look.end == End::Complete,
                "{} is damaged",
                look.segment.path
            );
        }
        ensure!(
            last.used > 0,
            "nothing of {} can be read",
            last.segment.path
        );
        for pair in kept.windows(2) {
            let follows = pair[0].segment.sequence.checked_add(1) == Some(pair[1].segment.sequence);
            ensure!(
                follows,
                "a file of the log is missing before {}",
                pair[1].segment.path
            );
        }
        Ok(())
    }

    /// Bytes that it takes at most: a record grows by its longer checksum and identity.
    pub fn bytes_of(log: &Log, from: usize, addition: Option<&Addition>) -> u64 {
        let kept = log.segments.get(from..).unwrap_or_default();
        let there = kept
            .iter()
            .fold(0u64, |sum, look| sum.saturating_add(look.used));
        let added = addition.map_or(0, |addition| {
            let contexts: u64 = addition
                .changes
                .iter()
                .map(|change| change.context.len() as u64 + 96)
                .sum();
            contexts
                .saturating_add(addition.entries.bytes())
                .saturating_add(4096)
        });
        // The shortest record takes 24 bytes, and a checksum 4 more at most.
        there
            .saturating_add(there / 6)
            .saturating_add(added)
            .saturating_add(4096)
    }

    /// Writes all files into the folder `wal` of `sink`.
    ///
    /// # Errors
    /// What cannot be read or written.
    pub fn write(&self, sink: &mut dyn FolderSink, folder: &Path) -> Result<()> {
        Self::check(self.log, self.from)?;
        let mut crc = None;
        for number in self.from..self.log.segments.len() {
            let segment = &self.log.segments[number].segment;
            let name = folder.join(file_name(segment.sequence, segment.index));
            let out = BufWriter::with_capacity(1 << 20, sink.file(&name, MODE)?);
            crc = Some(
                self.file(number, crc, out)
                    .with_context(|| format!("rewriting {}", segment.path))?,
            );
        }
        Ok(())
    }

    /// One file; gives the running checksum at its end.
    fn file(&self, number: usize, before: Option<u32>, out: impl Write) -> Result<u32> {
        let look = &self.log.segments[number];
        let is_last = number + 1 == self.log.segments.len();
        let file = File::open(self.guest, &look.segment.path)?;
        let mut reader = Reader::new(&file, 0, is_last);
        let mut writer: Option<LogWriter<_>> = None;
        let mut out = Some(out);
        while let Ok(record) = reader.next_record()? {
            if record.offset >= look.used {
                break;
            }
            let Some(writer) = &mut writer else {
                // The first file kept says itself what the one before it ended with.
                ensure!(
                    record.kind == segment::CRC,
                    "it does not begin with a checksum"
                );
                let mut begun = LogWriter::following(
                    out.take().context("one output")?,
                    before.unwrap_or(record.crc),
                );
                begun.begin(&self.identity)?;
                writer = Some(begun);
                continue;
            };
            match record.kind {
                segment::CRC | segment::METADATA => {}
                kind => writer.record(kind, record.data)?,
            }
        }
        let mut writer = writer.context("it holds no record")?;
        if let Some(addition) = self.addition.filter(|_| is_last) {
            addition.write(&mut writer)?;
        }
        let crc = writer.crc();
        writer.finish()?;
        Ok(crc)
    }
}

#[cfg(test)]
mod tests {
    use std::ops::ControlFlow;

    use super::*;
    use crate::change::folder::DirectorySink;
    use crate::etcd::format::wal::Folder;
    use crate::etcd::read::sample::Writer;
    use crate::etcd::write::identity::{cluster_id, member_id};
    use crate::guest::GuestPath;
    use crate::tree::{FolderTree, MemoryTree};

    const US: Identity = Identity {
        member: 7,
        cluster: 9,
    };

    fn entry(term: u64, index: u64) -> Vec<u8> {
        Entry {
            term,
            index,
            kind: EntryKind::Normal,
            data: b"something that is written",
        }
        .encode()
    }

    /// Two files; the second begins with an entry that overwrites two.
    fn sample(overwrites: bool) -> [Vec<u8>; 2] {
        let mut first = Writer::default();
        first.record(segment::CRC, b"");
        first.record(segment::METADATA, &US.encode());
        first.record(segment::SNAPSHOT, &SnapshotMark::default().encode_record());
        for index in 1..=5 {
            first.record(segment::ENTRY, &entry(1, index));
        }
        first.record(
            segment::STATE,
            &HardState {
                term: 1,
                vote: 7,
                commit: 3,
            }
            .encode(),
        );
        let first = first.into_bytes();
        let guest = MemoryTree::new()
            .file("/wal/0000000000000000-0000000000000000.wal", &first)
            .into_guest();
        let log = Log::read(
            &guest,
            &Folder::list(&guest, &GuestPath::new("/wal")).unwrap(),
        )
        .unwrap();
        let mut second = Writer::continuing(log.segments[0].crc);
        second.record(segment::CRC, b"");
        second.record(segment::METADATA, &US.encode());
        for index in if overwrites { 4..=7 } else { 6..=7 } {
            second.record(segment::ENTRY, &entry(2, index));
        }
        second.record(
            segment::STATE,
            &HardState {
                term: 2,
                vote: 8,
                commit: 6,
            }
            .encode(),
        );
        [first, second.into_bytes()]
    }

    fn guest(files: &[Vec<u8>; 2]) -> (Guest, Log) {
        // etcd sets space aside.
        let mut second = files[1].clone();
        second.resize(second.len() + 10_000, 0);
        let guest = MemoryTree::new()
            .file("/wal/0000000000000000-0000000000000000.wal", &files[0])
            .file("/wal/0000000000000001-0000000000000006.wal", &second)
            .into_guest();
        let log = Log::read(
            &guest,
            &Folder::list(&guest, &GuestPath::new("/wal")).unwrap(),
        )
        .unwrap();
        (guest, log)
    }

    fn rewritten(rewrite: &Rewrite<'_>) -> (Log, Vec<Vec<u8>>, Vec<(u64, u64)>) {
        let folder = tempfile::tempdir().unwrap();
        let top = folder.path().join("new");
        let mut sink = DirectorySink::create(&top).unwrap();
        sink.folder(Path::new("wal"), 0o700).unwrap();
        rewrite.write(&mut sink, Path::new("wal")).unwrap();
        sink.finish().unwrap();
        let guest = Guest::new("new", Rc::new(FolderTree::open(&top).unwrap()), Vec::new());
        let list = Folder::list(&guest, &GuestPath::new("/wal")).unwrap();
        let log = Log::read(&guest, &list).unwrap();
        let read = |segment: &crate::etcd::format::wal::Segment| {
            std::fs::read(
                top.join("wal")
                    .join(segment.path.as_path().file_name().unwrap()),
            )
            .unwrap()
        };
        let files = list.segments.iter().map(read).collect::<Vec<_>>();
        let most = Rewrite::bytes_of(rewrite.log, rewrite.from, rewrite.addition);
        assert!(files.iter().map(Vec::len).sum::<usize>() as u64 <= most);
        let mut entries = Vec::new();
        log.visit(&guest, 0, u64::MAX, &mut |entry| {
            entries.push((entry.index, entry.term));
            ControlFlow::Continue(())
        })
        .unwrap();
        (log, files, entries)
    }

    #[test]
    fn with_its_own_identity_a_log_stays_byte_by_byte() {
        let files = sample(false);
        let (guest, log) = guest(&files);
        for from in [0, 1] {
            let rewrite = Rewrite {
                guest: &guest,
                log: &log,
                from,
                identity: US,
                addition: None,
            };
            assert_eq!(rewritten(&rewrite).1, files[from..]);
        }
    }

    #[test]
    fn with_another_identity_all_entries_stay_and_more_follow() {
        for overwrites in [false, true] {
            let (guest, log) = guest(&sample(overwrites));
            let identity = Identity {
                member: u64::MAX,
                cluster: 1,
            };
            let change = ConfChange {
                kind: ConfChangeKind::RemoveNode,
                node: 8,
                context: Vec::new(),
            };
            let addition = Addition::agreed(log.last, 3, 0, vec![change.clone()]);
            let rewrite = Rewrite {
                guest: &guest,
                log: &log,
                from: 0,
                identity,
                addition: Some(&addition),
            };
            let (new, _, entries) = rewritten(&rewrite);
            assert_eq!(new.identity, Some(identity));
            assert_eq!(new.other_identity, None);
            assert!(
                new.segments
                    .iter()
                    .all(|look| look.end == End::Complete && look.used == look.size)
            );
            let terms: Vec<u64> = if overwrites {
                vec![1, 1, 1, 2, 2, 2, 2, 3]
            } else {
                vec![1, 1, 1, 1, 1, 2, 2, 3]
            };
            assert_eq!(entries, (1..=8).zip(terms).collect::<Vec<_>>());
            assert_eq!(
                new.state,
                HardState {
                    term: 3,
                    vote: 0,
                    commit: 8
                }
            );
            assert_eq!(new.changes, [(8, change)]);
        }
    }

    #[test]
    fn a_new_log_is_that_of_a_restored_snapshot() {
        // As `etcdctl snapshot restore` 3.4.23 and `etcdutl snapshot restore` 3.5.1 write it,
        // without the zeros behind.
        let real = [
            (Form::V3_4, include_bytes!("restored-3.4.wal").as_slice()),
            (Form::V3_5, include_bytes!("restored-3.5.wal").as_slice()),
        ];
        let mut members = Members::default();
        for number in 1..=3 {
            let peer_urls = vec![format!("http://127.0.0.1:{number}")];
            let id = member_id(&peer_urls, "etcd-cluster");
            members.list.insert(
                id,
                Member {
                    id,
                    name: format!("m{number}"),
                    peer_urls,
                    ..Member::default()
                },
            );
        }
        let member = 0x58a8_8bf9_7839_8f80;
        let identity = Identity {
            member,
            cluster: cluster_id(members.voters()),
        };
        for (form, bytes) in real {
            let mut written = Vec::new();
            let mark = create(&mut written, &identity, &members, form).unwrap();
            assert_eq!(written, bytes, "{form:?}");
            assert_eq!(mark.conf_state.unwrap().voters.len(), 3);
        }
    }

    #[test]
    fn a_log_with_a_damaged_file_is_not_rewritten() {
        let mut files = sample(false);
        let at = files[0].len() - 20;
        files[0][at] ^= 1;
        let (_, log) = guest(&files);
        assert!(Rewrite::check(&log, 0).is_err());
        assert!(Rewrite::check(&log, 1).is_ok());
    }
}
