//! What a damaged log still holds behind its damage. Each record's checksum runs on from the one
//! before it, so two records in a row prove one another wherever they are found; and what follows
//! them up to the log's end is what the member had, as if nothing had happened.
//!
//! Only what reaches the log's end is taken: a value within a damaged record may itself look like
//! records, but other bytes follow it.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use super::Log;
use super::segment::{self, End, Reader, Record, bytes_behind};
use crate::etcd::format::file::File;
use crate::etcd::format::raft::{Entry, HardState, Identity, SnapshotMark};
use crate::guest::Guest;
use crate::tree::TreeResult;

/// Entries that are held in memory, in bytes, with what keeping one of them takes.
const MOST_BYTES: usize = 32 << 20;
const ONE: usize = 96;
/// A longer log is none of etcd's, which begins a new file every 64 MiB and keeps five: a sparse
/// file of any length costs nothing to make.
const MOST_SEARCHED: u64 = 4 << 30;
/// Bytes of what may be records that are looked at in vain.
const PATIENCE: u64 = 2 << 30;

/// An entry's term, and the entry as it is in the log.
pub type Kept = (u64, Vec<u8>);

/// Entries that follow one another.
#[derive(Debug)]
struct Run {
    /// Lower numbers are not kept.
    from: u64,
    entries: BTreeMap<u64, Kept>,
    bytes: usize,
    /// Whose log it is.
    identity: Option<Identity>,
    patience: u64,
}

impl Run {
    fn clear(&mut self) {
        self.entries.clear();
        self.bytes = 0;
    }

    /// An entry drops those of its own number and above.
    fn add(&mut self, entry: &Entry<'_>) {
        let dropped = self.entries.split_off(&entry.index);
        self.bytes = self
            .bytes
            .saturating_sub(dropped.values().map(|(_, bytes)| bytes.len() + ONE).sum());
        let last = self.entries.keys().next_back();
        if last.is_some_and(|last| last.checked_add(1) != Some(entry.index)) {
            self.clear();
        }
        if entry.index >= self.from {
            let encoded = entry.encode();
            self.bytes = self.bytes.saturating_add(encoded.len() + ONE);
            self.entries.insert(entry.index, (entry.term, encoded));
        }
    }

    /// A snapshot that the member was sent drops the entries that contradict it, and those behind
    /// its own end.
    fn mark(&mut self, mark: &SnapshotMark) {
        let contradicts = self
            .entries
            .get(&mark.index)
            .is_none_or(|(term, _)| *term != mark.term);
        if mark.index >= self.from && contradicts {
            self.clear();
        }
    }

    /// Takes a file's records, those behind damage too. `before`: the running checksum that it
    /// continues. Gives that at its end; `None` where the run does not reach it.
    fn file(&mut self, file: &File, before: Option<u32>, is_last: bool) -> TreeResult<Option<u32>> {
        let mut patience = self.patience;
        let end = go_through(file, is_last, &mut patience, &mut |step| {
            match step {
                Step::Damage => self.clear(),
                Step::Record(record) => return self.record(&record, before),
            }
            ControlFlow::Continue(())
        });
        self.patience = patience;
        end
    }

    fn record(&mut self, record: &Record<'_>, before: Option<u32>) -> ControlFlow<()> {
        match record.kind {
            segment::CRC if before != Some(record.crc) => self.clear(),
            segment::ENTRY => match Entry::parse(record.data) {
                Ok(entry) => self.add(&entry),
                Err(_) => self.clear(),
            },
            segment::SNAPSHOT => match SnapshotMark::parse_record(record.data) {
                Ok(mark) => self.mark(&mark),
                Err(_) => self.clear(),
            },
            segment::METADATA if Identity::parse(record.data).ok() != self.identity => {
                return ControlFlow::Break(());
            }
            _ => {}
        }
        if self.bytes > MOST_BYTES {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    }
}

/// What is met on the way through a damaged file.
enum Step<'a> {
    /// A record whose checksum is right.
    Record(Record<'a>),
    /// Something between two of these.
    Damage,
}

/// Gives a file's records, those behind damage too, to `visitor`. Gives the running checksum at the
/// file's end; `None` where that is not reached.
fn go_through(
    file: &File,
    is_last: bool,
    patience: &mut u64,
    visitor: &mut dyn FnMut(Step<'_>) -> ControlFlow<()>,
) -> TreeResult<Option<u32>> {
    let mut reader = Reader::new(file, 0, is_last);
    loop {
        let step = match reader.next_record()? {
            Ok(record) => visitor(Step::Record(record)),
            Err(stop) if stop.end == End::Complete && !bytes_behind(file, stop.offset)? => {
                return Ok(Some(stop.crc));
            }
            Err(_) => {
                if !reader.resume(patience)? {
                    return Ok(None);
                }
                visitor(Step::Damage)
            }
        };
        if step.is_break() {
            return Ok(None);
        }
    }
}

/// What follows entry `index` in a log that is damaged somewhere before it: that entry's term, and
/// the entries behind it up to the log's end, in their order. `None` where the log does not hold
/// that entry behind its damage.
///
/// # Errors
/// As the tree gives them.
pub fn entries_behind_damage(
    guest: &Guest,
    log: &Log,
    index: u64,
) -> TreeResult<Option<(u64, Vec<Kept>)>> {
    let length = log
        .segments
        .iter()
        .fold(0u64, |sum, look| sum.saturating_add(look.size));
    if length > MOST_SEARCHED {
        return Ok(None);
    }
    let mut run = Run {
        from: index,
        entries: BTreeMap::new(),
        bytes: 0,
        identity: log.identity,
        patience: PATIENCE,
    };
    let (mut crc, mut next) = (None, None);
    for (number, look) in log.segments.iter().enumerate() {
        if next != Some(look.segment.sequence) {
            crc = None;
        }
        let file = File::open(guest, &look.segment.path)?;
        crc = run.file(&file, crc, number + 1 == log.segments.len())?;
        if crc.is_none() {
            run.clear();
        }
        next = look.segment.sequence.checked_add(1);
    }
    Ok(run
        .entries
        .remove(&index)
        .map(|(term, _)| (term, run.entries.into_values().collect())))
}

/// Up to which entry those records of the log's last file say that entries are agreed on which lie
/// behind its damage; 0 where none does. What is damaged before them is then no torn end: it was
/// whole once.
///
/// # Errors
/// As the tree gives them.
pub fn agreed_behind_damage(guest: &Guest, log: &Log) -> TreeResult<u64> {
    let Some(look) = log.tail().filter(|look| look.size <= MOST_SEARCHED) else {
        return Ok(0);
    };
    let file = File::open(guest, &look.segment.path)?;
    let (mut agreed, mut is_behind, mut patience) = (0, false, PATIENCE);
    go_through(&file, true, &mut patience, &mut |step| {
        match step {
            Step::Damage => is_behind = true,
            Step::Record(record) if is_behind && record.kind == segment::STATE => {
                agreed =
                    HardState::parse(record.data).map_or(agreed, |state| agreed.max(state.commit));
            }
            Step::Record(_) => {}
        }
        ControlFlow::Continue(())
    })?;
    Ok(agreed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::etcd::format::raft::EntryKind;
    use crate::etcd::format::wal::Folder;
    use crate::etcd::read::sample::Writer;
    use crate::guest::GuestPath;
    use crate::tree::MemoryTree;

    fn name(sequence: u64, index: u64) -> String {
        format!("/wal/{sequence:016x}-{index:016x}.wal")
    }

    fn entry(writer: &mut Writer, index: u64, term: u64) {
        let data = format!("value of {index}");
        writer.record(
            segment::ENTRY,
            &Entry {
                term,
                index,
                kind: EntryKind::Normal,
                data: data.as_bytes(),
            }
            .encode(),
        );
    }

    /// Entries 1 to 40: 21 of them in a second file. Where each file's entries begin.
    fn files() -> [(Vec<u8>, Vec<usize>); 2] {
        let (mut writer, mut starts, mut files) = (Writer::default(), Vec::new(), Vec::new());
        writer.record(segment::CRC, b"");
        for index in 1..=40 {
            if index == 21 {
                let following = Writer::continuing(writer.crc());
                let bytes = std::mem::replace(&mut writer, following).into_bytes();
                files.push((bytes, std::mem::take(&mut starts)));
                writer.record(segment::CRC, b"");
            }
            starts.push(writer.clone().into_bytes().len());
            entry(&mut writer, index, 2 + index / 30);
        }
        let mut bytes = writer.into_bytes();
        bytes.resize(16 << 10, 0);
        files.push((bytes, starts));
        files.try_into().unwrap()
    }

    /// Numbers and terms of what is found behind an entry, if that is found.
    fn found(files: &[Vec<u8>], (index, term): (u64, u64)) -> Option<Vec<(u64, u64)>> {
        let mut tree = MemoryTree::new();
        for (number, bytes) in files.iter().enumerate() {
            tree = tree.file(name(number as u64, number as u64 * 20 + 1), bytes);
        }
        let guest = tree.into_guest();
        let log = Log::read(
            &guest,
            &Folder::list(&guest, &GuestPath::new("/wal")).unwrap(),
        )
        .unwrap();
        let (known, kept) = entries_behind_damage(&guest, &log, index).unwrap()?;
        assert_eq!(known, term);
        Some(
            kept.iter()
                .map(|(term, bytes)| (Entry::parse(bytes).unwrap().index, *term))
                .collect(),
        )
    }

    fn upto_40(from: u64) -> Option<Vec<(u64, u64)>> {
        Some((from..=40).map(|index| (index, 2 + index / 30)).collect())
    }

    #[test]
    fn records_behind_damage_are_found_from_the_second_on() {
        let [first, second] = files();
        for damaged in [0, 7, 15] {
            for length in [1, 30, 64] {
                let mut bytes = second.0.clone();
                let at = second.1[damaged] + 10;
                bytes[at..at + length].fill(0x55);
                let files = [first.0.clone(), bytes];
                let index = 21 + damaged as u64;
                assert_eq!(
                    found(&files, (36, 3)),
                    if index < 34 { upto_40(37) } else { None }
                );
                assert_eq!(found(&files, (40, 3)), Some(Vec::new()));
                assert_eq!(found(&files, (39, 3)), upto_40(40));
                assert_eq!(
                    found(&files, (index, 2 + index / 30)),
                    None,
                    "the damaged one itself"
                );
            }
        }
        // In the file before: what is behind goes on in the next one.
        let mut bytes = first.0.clone();
        bytes[first.1[10] + 10..first.1[10] + 70].fill(0);
        assert_eq!(found(&[bytes, second.0.clone()], (15, 2)), upto_40(16));
    }

    #[test]
    fn what_does_not_reach_the_end_is_left() {
        let [first, second] = files();
        let mut bytes = second.0.clone();
        for damaged in [3, 12] {
            bytes[second.1[damaged] + 20] ^= 1;
        }
        assert_eq!(
            found(&[first.0.clone(), bytes.clone()], (36, 3)),
            upto_40(37)
        );
        assert_eq!(
            found(&[first.0.clone(), bytes], (28, 2)),
            None,
            "between two damages"
        );
        let mut garbage = second.0.clone();
        let end = garbage.len() - 5;
        garbage[end] = 1;
        garbage[second.1[3] + 20] ^= 1;
        assert_eq!(found(&[first.0, garbage], (36, 3)), None);
    }

    #[test]
    fn a_snapshot_that_was_sent_drops_what_contradicts_it() {
        let after = |mark: (u64, u64), last: u64| {
            let mut writer = Writer::default();
            writer.record(segment::CRC, b"");
            let at = writer.clone().into_bytes().len();
            (1..=10).for_each(|index| entry(&mut writer, index, 1));
            let mark = SnapshotMark {
                index: mark.0,
                term: mark.1,
                conf_state: None,
            };
            writer.record(segment::SNAPSHOT, &mark.encode_record());
            (9..=last).for_each(|index| entry(&mut writer, index, 2));
            let mut bytes = writer.into_bytes();
            bytes[at + 20] ^= 1;
            bytes.resize(4096, 0);
            found(&[bytes], (5, 1))
        };
        let all = |to: u64| {
            (6..=to)
                .map(|index| (index, if index < 9 { 1 } else { 2 }))
                .collect::<Vec<_>>()
        };
        assert_eq!(after((8, 1), 12), Some(all(12)), "its own");
        assert_eq!(after((3, 7), 12), Some(all(12)), "what is not asked for");
        assert_eq!(after((8, 2), 12), None);
        assert_eq!(
            after((8, 2), 0),
            None,
            "what was there before it does not count any more"
        );
        assert_eq!(after((20, 2), 0), None);
    }

    #[test]
    fn what_is_agreed_on_is_heard_behind_damage() {
        let mut writer = Writer::default();
        let mut starts = Vec::new();
        writer.record(segment::CRC, b"");
        for index in 1..=10 {
            starts.push(writer.clone().into_bytes().len());
            entry(&mut writer, index, 1);
            writer.record(
                segment::STATE,
                &HardState {
                    term: 1,
                    vote: 7,
                    commit: index - 1,
                }
                .encode(),
            );
        }
        let whole = writer.into_bytes();
        let agreed = |damaged: usize| {
            let mut bytes = whole.clone();
            bytes[starts[damaged] + 20] ^= 1;
            let guest = MemoryTree::new().file(name(0, 1), bytes).into_guest();
            let log = Log::read(
                &guest,
                &Folder::list(&guest, &GuestPath::new("/wal")).unwrap(),
            )
            .unwrap();
            (log.last, agreed_behind_damage(&guest, &log).unwrap())
        };
        assert_eq!(agreed(5), (5, 9));
        assert_eq!(
            agreed(9),
            (9, 9),
            "its own state is behind it, and says nothing of it"
        );
    }

    #[test]
    fn another_member_s_file_gives_nothing() {
        let damaged = |second: u64| {
            let (mut files, mut at) = (Vec::new(), 0);
            for (member, first) in [(7, 1), (second, 11)] {
                let mut writer = Writer::default();
                writer.record(segment::CRC, b"");
                writer.record(segment::METADATA, &Identity { member, cluster: 9 }.encode());
                at = writer.clone().into_bytes().len();
                (first..first + 10).for_each(|index| entry(&mut writer, index, 1));
                let mut bytes = writer.into_bytes();
                bytes.resize(4096, 0);
                files.push(bytes);
            }
            files[1][at + 20] ^= 1;
            found(&files, (15, 1)).map(|entries| entries.len())
        };
        assert_eq!(damaged(7), Some(5));
        assert_eq!(damaged(8), None);
    }

    #[test]
    fn an_entry_that_was_written_again_counts_once() {
        let mut writer = Writer::default();
        writer.record(segment::CRC, b"");
        let mut at = 0;
        for (index, term) in [
            (1, 1),
            (2, 1),
            (3, 1),
            (4, 1),
            (5, 1),
            (6, 1),
            (4, 2),
            (5, 2),
        ] {
            if index == 2 {
                at = writer.clone().into_bytes().len();
            }
            entry(&mut writer, index, term);
        }
        let mut bytes = writer.into_bytes();
        bytes[at + 20] ^= 1;
        bytes.resize(4096, 0);
        assert_eq!(found(&[bytes.clone()], (3, 1)), Some(vec![(4, 2), (5, 2)]));
        assert_eq!(found(&[bytes], (5, 2)), Some(Vec::new()));
    }
}
