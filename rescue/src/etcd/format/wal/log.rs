//! Replaying the log: what entries there are in the end, which term each has, and what else the
//! records say.
//!
//! The rule (records in physical order; an entry always drops every entry of its own number and
//! above, also below the newest snapshot; a snapshot beyond the end starts the log anew) is
//! stricter than etcd's own ReadAll, which can bring back entries that were overwritten (etcd pull
//! request 22443).
//!
//! Entries themselves are not kept: a second pass ([`Log::visit`]) gives those that count. So
//! memory is bounded whatever the size.

use std::ops::ControlFlow;

use super::segment::{self, Damage, End, Reader, Stop, Tear};
use super::{Folder, Segment};
use crate::etcd::format::file::File;
use crate::etcd::format::raft::{ConfChange, Entry, EntryKind, HardState, Identity, SnapshotMark};
use crate::guest::Guest;
use crate::tree::{TreeError, TreeResult};

/// Bounds on what is kept of a crafted log.
const MAX_KEPT: usize = 100_000;

/// A place in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    /// Number of the file, counted from 0.
    pub segment: usize,
    /// Offset within it.
    pub offset: u64,
}

/// One file as it was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SegmentLook {
    /// Its name.
    pub segment: Segment,
    /// Its length.
    pub size: u64,
    /// Where its good records end.
    pub used: u64,
    /// The running checksum there.
    pub crc: u32,
    /// How they end.
    pub end: End,
    /// The highest entry in it.
    pub last_entry: Option<u64>,
}

/// A snapshot's record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mark {
    /// Where it is.
    pub position: Position,
    /// What it says.
    pub mark: SnapshotMark,
}

/// What replaying gives.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Log {
    /// All files, in order.
    pub segments: Vec<SegmentLook>,
    /// Whose log it is.
    pub identity: Option<Identity>,
    /// A file that says otherwise.
    pub other_identity: Option<Segment>,
    /// The last hard state.
    pub state: HardState,
    /// All snapshots' records.
    pub marks: Vec<Mark>,
    /// How many of `marks`, and which commit, etcd sees when it looks for snapshots: its look ends
    /// where a file ends torn.
    pub seen: Option<(usize, u64)>,
    /// First entry of the unbroken run at the end; `last + 1` where there is none.
    pub first: u64,
    /// Last entry.
    pub last: u64,
    /// From which entry on which term; ascending.
    pub terms: Vec<(u64, u64)>,
    /// The term before `first`, where a snapshot tells.
    pub term_before: Option<u64>,
    /// Changes of the membership that count, with their entries.
    pub changes: Vec<(u64, ConfChange)>,
    /// Places where entries are missing: last before, first after.
    pub gaps: Vec<(u64, u64)>,
    /// Entries overwritten by later ones: where, and from which number on.
    cuts: Vec<(Position, u64)>,
}

impl Log {
    /// Reads all files of the log.
    ///
    /// # Errors
    /// As the tree gives them; damage is part of the answer. [`TreeError::Unsupported`] for a log
    /// that no etcd writes.
    pub fn read(guest: &Guest, folder: &Folder) -> TreeResult<Self> {
        let mut log = Self {
            first: 1,
            ..Self::default()
        };
        let mut crc = 0;
        let mut follows: Option<u64> = None;
        for (number, segment) in folder.segments.iter().enumerate() {
            let is_last = number + 1 == folder.segments.len();
            let contiguous =
                follows.is_some_and(|before| before.checked_add(1) == Some(segment.sequence));
            log.begin(number, segment);
            let mut stop = log.read_segment(guest, number, segment, crc, is_last)?;
            if stop.offset == 0 && stop.end == End::Damaged(Damage::Chain) {
                // Its own checksums can be right though it does not continue the file before: then
                // it is read by them.
                stop = log.read_segment(guest, number, segment, 0, is_last)?;
                if contiguous && let Some(before) = log.segments.iter_mut().rev().nth(1) {
                    // Where the file before is damaged that is known already; else records are
                    // missing at its end.
                    before.end = if before.end == End::Complete {
                        End::Damaged(Damage::Chain)
                    } else {
                        before.end
                    };
                }
            }
            crc = if stop.end == End::Complete {
                stop.crc
            } else {
                0
            };
            follows = Some(segment.sequence);
            if matches!(stop.end, End::Torn(_)) && !is_last && log.seen.is_none() {
                log.seen = Some((log.marks.len(), log.state.commit));
            }
        }
        Ok(log)
    }

    /// The name of a file says which entry comes first in it.
    fn begin(&mut self, number: usize, segment: &Segment) {
        let before = segment.index.saturating_sub(1);
        if number == 0 {
            (self.first, self.last) = (before + 1, before);
        } else if self.last < before {
            self.missing(before + 1);
        }
    }

    fn missing(&mut self, next: u64) {
        if self.last >= self.first || self.gaps.is_empty() {
            self.gaps.push((self.last, next));
        }
        self.restart(next, None);
    }

    fn restart(&mut self, next: u64, term_before: Option<u64>) {
        (self.first, self.last) = (next, next.saturating_sub(1));
        self.terms.clear();
        self.term_before = term_before;
    }

    fn read_segment(
        &mut self,
        guest: &Guest,
        number: usize,
        segment: &Segment,
        crc: u32,
        is_last: bool,
    ) -> TreeResult<Stop> {
        let file = File::open(guest, &segment.path)?;
        let mut reader = Reader::new(&file, crc, is_last);
        let mut last_entry = None;
        let stop = loop {
            let record = match reader.next_record()? {
                Ok(record) => record,
                Err(stop) => break stop,
            };
            let position = Position {
                segment: number,
                offset: record.offset,
            };
            let taken =
                match record.kind {
                    segment::ENTRY => Entry::parse(record.data).map(|entry| {
                        last_entry = last_entry.max(Some(entry.index));
                        self.entry(position, &entry);
                    }),
                    segment::STATE => HardState::parse(record.data).map(|state| self.state = state),
                    segment::METADATA => Identity::parse(record.data)
                        .map(|identity| self.identity(identity, segment)),
                    segment::SNAPSHOT => SnapshotMark::parse_record(record.data)
                        .map(|mark| self.mark(position, mark)),
                    _ => Ok(()),
                };
            if taken.is_err() {
                // Its checksum is right: etcd panics on it.
                break Stop {
                    offset: record.offset,
                    end: End::Damaged(Damage::Malformed),
                    crc: record.crc,
                };
            }
            if self.is_implausible() {
                let reason =
                    "it holds more overwritten entries and snapshots than any log has".to_owned();
                return Err(TreeError::Unsupported {
                    path: segment.path.as_path().to_path_buf(),
                    reason,
                });
            }
        };
        let look = SegmentLook {
            segment: segment.clone(),
            size: file.size(),
            used: stop.offset,
            crc: stop.crc,
            end: stop.end,
            last_entry,
        };
        self.segments.truncate(number);
        self.segments.push(look);
        Ok(stop)
    }

    fn is_implausible(&self) -> bool {
        [
            self.cuts.len(),
            self.marks.len(),
            self.changes.len(),
            self.terms.len(),
            self.gaps.len(),
        ]
        .iter()
        .any(|kept| *kept > MAX_KEPT)
    }

    fn identity(&mut self, identity: Identity, segment: &Segment) {
        match self.identity {
            None => self.identity = Some(identity),
            Some(known) if known != identity => self.other_identity = Some(segment.clone()),
            Some(_) => {}
        }
    }

    fn mark(&mut self, position: Position, mark: SnapshotMark) {
        if mark.index > self.last {
            self.restart(mark.index.saturating_add(1), Some(mark.term));
        } else if mark.index == 0 && self.first == 1 {
            self.term_before = Some(0);
        }
        self.marks.push(Mark { position, mark });
    }

    fn entry(&mut self, position: Position, entry: &Entry<'_>) {
        let index = entry.index;
        if index > self.last.saturating_add(1) {
            self.missing(index);
        } else if index <= self.last {
            self.cuts.push((position, index));
            self.terms.retain(|(from, _)| *from < index);
            self.changes.retain(|(at, _)| *at < index);
            self.first = self.first.min(index);
        }
        self.last = index;
        if self
            .terms
            .last()
            .is_none_or(|(_, term)| *term != entry.term)
        {
            self.terms.push((index, entry.term));
        }
        if entry.kind == EntryKind::ConfChange
            && let Ok(change) = ConfChange::parse(entry.data)
        {
            self.changes.push((index, change));
        }
    }

    /// Whether there is any entry.
    pub fn is_empty(&self) -> bool {
        self.last < self.first
    }

    /// The term of an entry of the unbroken run at the end, or of the one before it where that is
    /// known.
    pub fn term_of(&self, index: u64) -> Option<u64> {
        if index.checked_add(1) == Some(self.first) {
            return self.term_before;
        }
        if index < self.first || index > self.last {
            return None;
        }
        let after = self.terms.partition_point(|(from, _)| *from <= index);
        self.terms.get(after.checked_sub(1)?).map(|(_, term)| *term)
    }

    /// Term of the last entry: with [`Log::last`] what raft compares logs by.
    pub fn last_term(&self) -> u64 {
        self.term_of(self.last).unwrap_or(0)
    }

    /// The last file.
    pub fn tail(&self) -> Option<&SegmentLook> {
        self.segments.last()
    }

    /// Snapshots' records that etcd finds at boot: not beyond what is committed.
    pub fn valid_marks(&self) -> impl Iterator<Item = &SnapshotMark> {
        let (count, commit) = self.seen.unwrap_or((self.marks.len(), self.state.commit));
        self.marks
            .iter()
            .take(count)
            .map(|mark| &mark.mark)
            .filter(move |mark| mark.index <= commit)
    }

    /// Gives the entries `from..=to` that count, in order, to `visitor`.
    ///
    /// # Errors
    /// As the tree gives them.
    pub fn visit(
        &self,
        guest: &Guest,
        from: u64,
        to: u64,
        visitor: &mut dyn FnMut(&Entry<'_>) -> ControlFlow<()>,
    ) -> TreeResult<()> {
        let from = from.max(self.first);
        let to = to.min(self.last);
        // For each cut the lowest entry that it or a later one drops.
        let mut lowest: Vec<(Position, u64)> = self.cuts.clone();
        for at in (0..lowest.len().saturating_sub(1)).rev() {
            let later = lowest[at + 1].1;
            lowest[at].1 = lowest[at].1.min(later);
        }
        for (number, look) in self.segments.iter().enumerate() {
            let next = self.segments.get(number + 1).map(|next| next.segment.index);
            if next.is_some_and(|next| next <= from) {
                continue;
            }
            let file = File::open(guest, &look.segment.path)?;
            let mut reader = Reader::new(&file, 0, number + 1 == self.segments.len());
            while let Ok(record) = reader.next_record()? {
                if record.offset >= look.used {
                    break;
                }
                if record.kind != segment::ENTRY {
                    continue;
                }
                let Ok(entry) = Entry::parse(record.data) else {
                    break;
                };
                if entry.index < from || entry.index > to {
                    continue;
                }
                let position = Position {
                    segment: number,
                    offset: record.offset,
                };
                let later = lowest.partition_point(|(cut, _)| *cut <= position);
                let dropped = lowest
                    .get(later)
                    .is_some_and(|(_, index)| *index <= entry.index);
                if !dropped && visitor(&entry).is_break() {
                    return Ok(());
                }
            }
        }
        Ok(())
    }
}

impl SegmentLook {
    /// Bytes behind the last good record, for a file that does not end well.
    pub fn torn_bytes(&self) -> u64 {
        match self.end {
            End::Complete => 0,
            End::Torn(_) | End::Damaged(_) => self.size.saturating_sub(self.used),
        }
    }

    /// What etcd says of it, for people.
    pub fn says(&self) -> Option<&'static str> {
        match self.end {
            End::Complete => None,
            End::Torn(Tear::Short) => Some("ends in the middle of a record"),
            End::Torn(Tear::Length) => Some("ends with a record of an impossible length"),
            End::Torn(Tear::ZeroSector) => Some("ends with a record of which a sector is zeros"),
            End::Damaged(Damage::Checksum) => Some("holds a record whose checksum is wrong"),
            End::Damaged(Damage::Malformed) => Some("holds something that is no record"),
            End::Damaged(Damage::Chain) => {
                Some("does not continue the file before or is not continued by the next")
            }
            End::Damaged(Damage::UnknownType) => Some("holds a record of an unknown type"),
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::super::segment::{CRC, ENTRY, METADATA, SNAPSHOT, STATE};
    use super::*;
    use crate::etcd::format::proto::{put_bytes, put_number};
    use crate::etcd::read::sample::Writer;
    use crate::guest::GuestPath;
    use crate::tree::MemoryTree;

    pub fn entry(term: u64, index: u64, data: &[u8]) -> Vec<u8> {
        let mut message = Vec::new();
        put_number(&mut message, 1, 0);
        put_number(&mut message, 2, term);
        put_number(&mut message, 3, index);
        put_bytes(&mut message, 4, data);
        message
    }

    pub fn pair(one: u64, two: u64) -> Vec<u8> {
        let mut message = Vec::new();
        put_number(&mut message, 1, one);
        put_number(&mut message, 2, two);
        message
    }

    pub fn begin(writer: &mut Writer) {
        writer.record(CRC, b"");
        writer.record(METADATA, &pair(7, 9));
    }

    fn log_of(files: &[(&str, Vec<u8>)]) -> (Guest, Log) {
        let mut tree = MemoryTree::new().dir("/wal");
        for (name, bytes) in files {
            tree = tree.file(format!("/wal/{name}"), bytes);
        }
        let guest = tree.into_guest();
        let folder = Folder::list(&guest, &GuestPath::new("/wal")).unwrap();
        let log = Log::read(&guest, &folder).unwrap();
        (guest, log)
    }

    const FIRST: &str = "0000000000000000-0000000000000000.wal";
    const SECOND: &str = "0000000000000001-0000000000000006.wal";

    fn visited(guest: &Guest, log: &Log) -> Vec<(u64, u64)> {
        let mut seen = Vec::new();
        log.visit(guest, 0, u64::MAX, &mut |entry| {
            seen.push((entry.index, entry.term));
            ControlFlow::Continue(())
        })
        .unwrap();
        seen
    }

    #[test]
    fn later_entries_drop_earlier_ones() {
        let mut writer = Writer::default();
        begin(&mut writer);
        writer.record(SNAPSHOT, &pair(0, 0));
        for index in 1..=6 {
            writer.record(ENTRY, &entry(1, index, b""));
        }
        for index in 4..=5 {
            writer.record(ENTRY, &entry(2, index, b""));
        }
        writer.record(STATE, &pair(2, 7));
        let (guest, log) = log_of(&[(FIRST, writer.into_bytes())]);
        assert_eq!((log.first, log.last, log.last_term()), (1, 5, 2));
        assert_eq!(
            (
                log.term_of(3),
                log.term_of(4),
                log.term_of(6),
                log.term_of(0)
            ),
            (Some(1), Some(2), None, Some(0))
        );
        assert_eq!(
            visited(&guest, &log),
            [(1, 1), (2, 1), (3, 1), (4, 2), (5, 2)]
        );
        assert_eq!(
            log.identity,
            Some(Identity {
                member: 7,
                cluster: 9
            })
        );
    }

    #[test]
    fn a_received_snapshot_starts_the_log_anew() {
        let mut writer = Writer::default();
        begin(&mut writer);
        writer.record(SNAPSHOT, &pair(0, 0));
        writer.record(ENTRY, &entry(1, 1, b""));
        writer.record(SNAPSHOT, &pair(100, 3));
        writer.record(ENTRY, &entry(3, 101, b""));
        let (guest, log) = log_of(&[(FIRST, writer.into_bytes())]);
        assert_eq!((log.first, log.last, log.term_of(100)), (101, 101, Some(3)));
        assert!(log.gaps.is_empty());
        assert_eq!(visited(&guest, &log), [(101, 3)]);
    }

    fn two_files() -> (Vec<u8>, Vec<u8>) {
        let mut writer = Writer::default();
        begin(&mut writer);
        writer.record(SNAPSHOT, &pair(0, 0));
        for index in 1..=5 {
            writer.record(ENTRY, &entry(1, index, &[9; 100]));
        }
        let crc = {
            let (_, log) = log_of(&[(FIRST, writer.clone().into_bytes())]);
            log.tail().unwrap().crc
        };
        let mut second = Writer::continuing(crc);
        begin(&mut second);
        for index in 6..=8 {
            second.record(ENTRY, &entry(1, index, b""));
        }
        (writer.into_bytes(), second.into_bytes())
    }

    #[test]
    fn damage_in_an_old_file_leaves_the_newer() {
        let (mut first, second) = two_files();
        let (_, log) = log_of(&[(FIRST, first.clone()), (SECOND, second.clone())]);
        assert_eq!((log.first, log.last), (1, 8));
        assert!(log.segments.iter().all(|look| look.end == End::Complete));
        let at = first.len() / 2;
        first[at] ^= 1;
        let (guest, log) = log_of(&[(FIRST, first.clone()), (SECOND, second.clone())]);
        assert_eq!(log.segments[0].end, End::Damaged(Damage::Checksum));
        assert_eq!((log.first, log.last, log.gaps.len()), (6, 8, 1));
        assert_eq!(visited(&guest, &log), [(6, 1), (7, 1), (8, 1)]);
    }

    #[test]
    fn a_file_that_lost_its_end_is_not_continued() {
        let (first, second) = two_files();
        let mut stop = first.len() - 8;
        while first[stop + 7] & 0x80 == 0 || first[stop..stop + 6].iter().any(|byte| *byte > 150) {
            stop -= 8;
        }
        let (_, whole) = log_of(&[(FIRST, first.clone())]);
        let (_, log) = log_of(&[(FIRST, first[..stop].to_vec()), (SECOND, second)]);
        assert!(
            whole.last >= 5 && log.segments[0].end != End::Complete,
            "{:?}",
            log.segments[0]
        );
    }

    #[test]
    fn random_damage_neither_panics_nor_hangs() {
        let (first, second) = two_files();
        let mut state = 3u64;
        let mut random = || {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            (state >> 33) as usize
        };
        for round in 0..2000 {
            let (mut a, mut b) = (first.clone(), second.clone());
            for _ in 0..=round % 4 {
                let at = random() % a.len();
                a[at] = random() as u8;
                let at = random() % b.len();
                b[at] = random() as u8;
            }
            a.truncate(random() % (a.len() * 2));
            let (guest, log) = log_of(&[(FIRST, a), (SECOND, b)]);
            let _ = visited(&guest, &log);
        }
    }
}
