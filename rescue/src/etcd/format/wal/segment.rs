//! One file of the log: frames with a length, padded to 8 bytes, each a record with a running
//! checksum.

use crate::etcd::format::crc;
use crate::etcd::format::file::{File, Held};
use crate::etcd::format::proto::{Malformed, fields};
use crate::tree::TreeResult;

/// A larger record is taken for damage. etcd 3.3 and 3.4 refuse 10 MiB, requests are limited to 1.5
/// MiB by default.
const MAX_RECORD: u64 = 64 << 20;
/// etcd up to 3.4 takes no longer record (maxWALEntrySizeLimit).
const OLD_LIMIT: u64 = 10 << 20;
/// etcd looks for lost writes in units of this size.
const SECTOR: u64 = 512;
const READ_AHEAD: usize = 256 << 10;
const FRAME: u64 = 8;

/// Record types (wal.go).
pub const METADATA: u64 = 1;
/// A raft entry.
pub const ENTRY: u64 = 2;
/// A hard state.
pub const STATE: u64 = 3;
/// The checksum that the file before ended with.
pub const CRC: u64 = 4;
/// A snapshot's place.
pub const SNAPSHOT: u64 = 5;

/// One record whose checksum is right.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Record<'a> {
    /// Where its frame begins.
    pub offset: u64,
    /// Its type.
    pub kind: u64,
    /// The running checksum after it.
    pub crc: u32,
    /// Its message.
    pub data: &'a [u8],
}

/// How a file of the log ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// With a length of 0 (set aside, not yet used) or with the end of the file.
    Complete,
    /// In the middle of a record, as a power cut leaves it. etcd cuts that off by itself at the end
    /// of the last file.
    Torn(Tear),
    /// With bytes that etcd takes for lost data, and refuses.
    Damaged(Damage),
}

/// Why etcd sees a torn write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tear {
    /// The record is longer than the rest of the file.
    Short,
    /// The same, and longer than etcd 3.3, 3.4 and 3.5 before 3.5.7 take a record to be: they
    /// refuse to start on it.
    Length,
    /// A sector of the record holds only zeros.
    ZeroSector,
}

/// What is wrong with a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Damage {
    /// Its checksum does not fit.
    Checksum,
    /// It is no record.
    Malformed,
    /// The file does not continue the one before it.
    Chain,
    /// A record of a type that etcd does not know.
    UnknownType,
}

impl Damage {
    /// The words of etcd's own error.
    pub fn error(self) -> &'static str {
        match self {
            Self::Checksum | Self::Chain => "walpb: crc mismatch",
            Self::Malformed => "proto: illegal record",
            Self::UnknownType => "unexpected block type",
        }
    }
}

/// Where reading a file stopped, and why.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stop {
    /// The end of the last good record.
    pub offset: u64,
    /// Why there.
    pub end: End,
    /// The running checksum there.
    pub crc: u32,
}

/// Reads a file's records one after the other.
#[derive(Debug)]
pub struct Reader<'a> {
    file: &'a File,
    /// Where it can be.
    held: Option<Held>,
    /// Of the next frame.
    offset: u64,
    buffer: Vec<u8>,
    /// Of `buffer` in the file.
    buffered_from: u64,
    crc: u32,
    is_last: bool,
}

impl<'a> Reader<'a> {
    /// `crc` is what the file before ended with; 0 takes the file's own word. Only in the last file
    /// of a log a sector of zeros is a torn write.
    pub fn new(file: &'a File, crc: u32, is_last: bool) -> Self {
        // What keeps it from being opened shows when it is read.
        let held = file.hold().unwrap_or_default();
        Self {
            file,
            held,
            offset: 0,
            buffer: Vec::new(),
            buffered_from: 0,
            crc,
            is_last,
        }
    }

    /// The next record, or where and why there is none.
    ///
    /// # Errors
    /// As the tree gives them.
    pub fn next_record(&mut self) -> TreeResult<Result<Record<'_>, Stop>> {
        let stop = |end, reader: &Self| {
            Ok(Err(Stop {
                offset: reader.offset,
                end,
                crc: reader.crc,
            }))
        };
        let Some(frame) = self.bytes(self.offset, FRAME)? else {
            let left = self.file.size().saturating_sub(self.offset);
            return stop(
                if left == 0 {
                    End::Complete
                } else {
                    End::Torn(Tear::Short)
                },
                self,
            );
        };
        let field = u64::from_le_bytes(frame.try_into().unwrap_or_default());
        if field == 0 {
            return stop(End::Complete, self);
        }
        let length = field & ((1 << 56) - 1);
        // The padding's length is in the low bits of the highest byte, behind its sign.
        let padding = if field >> 63 == 1 {
            (field >> 56) & 7
        } else {
            0
        };
        let body = length + padding;
        let start = self.offset.saturating_add(FRAME);
        if body > self.file.size().saturating_sub(start) || body > MAX_RECORD {
            return stop(
                End::Torn(if length >= OLD_LIMIT {
                    Tear::Length
                } else {
                    Tear::Short
                }),
                self,
            );
        }
        let (offset, is_last, before) = (self.offset, self.is_last, self.crc);
        let Some(bytes) = self.bytes(start, body)? else {
            return stop(End::Torn(Tear::Short), self);
        };
        let torn = is_last && has_zero_sector(bytes, start);
        let payload = bytes
            .get(..usize::try_from(length).unwrap_or(0))
            .unwrap_or_default();
        let verdict = parse(payload)
            .map_err(|Malformed| Damage::Malformed)
            .and_then(|record| check(&record, before));
        match verdict {
            Err(_) if torn => stop(End::Torn(Tear::ZeroSector), self),
            Err(damage) => stop(End::Damaged(damage), self),
            Ok((kind, crc)) => {
                self.offset = start.saturating_add(body);
                self.crc = crc;
                let at = usize::try_from(start - self.buffered_from).unwrap_or(usize::MAX);
                let to = at.saturating_add(usize::try_from(length).unwrap_or(usize::MAX));
                let record = self
                    .buffer
                    .get(at..to)
                    .and_then(|payload| parse(payload).ok());
                let data = record.map(|raw| raw.data).unwrap_or_default();
                Ok(Ok(Record {
                    offset,
                    kind,
                    crc,
                    data,
                }))
            }
        }
    }

    /// Goes on behind damage: with the next two records of which the second continues the first
    /// one's checksum, and from that second one on. Whether there are any. `patience`: how many
    /// bytes of what is none may still be looked at.
    ///
    /// # Errors
    /// As the tree gives them.
    pub fn resume(&mut self, patience: &mut u64) -> TreeResult<bool> {
        let mut at = self.offset.next_multiple_of(FRAME);
        while at < self.file.size() {
            if let Some((next, crc)) = self.record_at(at, patience)?
                && self.record_at(next, patience)?.is_some()
            {
                (self.offset, self.crc) = (next, crc);
                let proves = |record: Record<'_>| record.kind != CRC && !record.data.is_empty();
                if self.next_record()?.is_ok_and(proves) {
                    (self.offset, self.crc) = (next, crc);
                    return Ok(true);
                }
            }
            at = at.saturating_add(FRAME);
        }
        Ok(false)
    }

    /// Where the record that may be at `at` ends, and the running checksum that it says is there.
    fn record_at(&mut self, at: u64, patience: &mut u64) -> TreeResult<Option<(u64, u32)>> {
        let Some(bytes) = self.bytes(at, FRAME + 3)? else {
            return Ok(None);
        };
        let (frame, head) = bytes.split_at(8);
        let field = u64::from_le_bytes(frame.try_into().unwrap_or_default());
        let length = field & ((1 << 56) - 1);
        let padding = (FRAME - length % FRAME) % FRAME;
        let expected = length
            | if padding == 0 {
                0
            } else {
                (0x80 | padding) << 56
            };
        let is_head =
            matches!(head, [0x08, kind, 0x10] if (METADATA..=SNAPSHOT).contains(&u64::from(*kind)));
        let (start, body) = (at.saturating_add(FRAME), length.saturating_add(padding));
        let fits = body
            <= self
                .file
                .size()
                .saturating_sub(start)
                .min(MAX_RECORD)
                .min(*patience);
        if field != expected || !is_head || !fits {
            return Ok(None);
        }
        *patience -= body;
        let Some(bytes) = self.bytes(start, body)? else {
            return Ok(None);
        };
        let payload = bytes
            .get(..usize::try_from(length).unwrap_or(0))
            .unwrap_or_default();
        Ok(parse(payload)
            .ok()
            .map(|raw| (start.saturating_add(body), raw.crc)))
    }

    /// `None` where the file ends before.
    fn bytes(&mut self, offset: u64, length: u64) -> TreeResult<Option<&[u8]>> {
        if self.file.size().saturating_sub(offset) < length {
            return Ok(None);
        }
        let wanted = usize::try_from(length).unwrap_or(usize::MAX);
        let from = offset
            .checked_sub(self.buffered_from)
            .and_then(|from| usize::try_from(from).ok());
        let there = from
            .and_then(|from| self.buffer.get(from..))
            .is_some_and(|rest| rest.len() >= wanted);
        if !there {
            // A frame and its record must lie in the buffer together.
            self.read(offset, wanted.max(READ_AHEAD))?;
        }
        let from = usize::try_from(offset - self.buffered_from).unwrap_or(usize::MAX);
        Ok(self.buffer.get(from..from.saturating_add(wanted)))
    }
}

impl Reader<'_> {
    /// Has up to `length` bytes from `offset` on in the buffer.
    fn read(&mut self, offset: u64, length: usize) -> TreeResult<()> {
        match &self.held {
            Some(held) => {
                self.buffer.resize(length, 0);
                let read = held.read(offset, &mut self.buffer)?;
                self.buffer.truncate(read);
            }
            None => self.buffer = self.file.read_once(offset, length)?,
        }
        self.buffered_from = offset;
        Ok(())
    }
}

#[derive(Debug, Clone, Copy)]
struct Raw<'a> {
    kind: u64,
    crc: u32,
    data: &'a [u8],
}

fn parse(payload: &[u8]) -> Result<Raw<'_>, Malformed> {
    let mut raw = Raw {
        kind: 0,
        crc: 0,
        data: &[],
    };
    for field in fields(payload) {
        match field? {
            (1, value) => raw.kind = value.number()?,
            // gogo/protobuf drops what does not fit into a uint32.
            (2, value) => raw.crc = value.number()? as u32,
            (3, value) => raw.data = value.bytes()?,
            _ => {}
        }
    }
    Ok(raw)
}

/// The record's type and the running checksum after it.
fn check(record: &Raw<'_>, before: u32) -> Result<(u64, u32), Damage> {
    match record.kind {
        CRC if before != 0 && before != record.crc => Err(Damage::Chain),
        CRC => Ok((CRC, record.crc)),
        kind => {
            let crc = crc::append(before, record.data);
            match (crc == record.crc, (METADATA..=SNAPSHOT).contains(&kind)) {
                (false, _) => Err(Damage::Checksum),
                (true, false) => Err(Damage::UnknownType),
                (true, true) => Ok((kind, crc)),
            }
        }
    }
}

/// Whether one of the sectors that `bytes` (from `offset` on in the file) lie in is all zeros, as
/// decoder.go's isTornEntry sees it.
fn has_zero_sector(bytes: &[u8], offset: u64) -> bool {
    let first = usize::try_from(SECTOR - offset % SECTOR)
        .unwrap_or(0)
        .min(bytes.len());
    let (head, rest) = bytes.split_at(first);
    let is_zero = |sector: &[u8]| sector.iter().all(|byte| *byte == 0);
    (!head.is_empty() && is_zero(head)) || rest.chunks(SECTOR as usize).any(is_zero)
}

/// Whether anything but zeros lies behind `offset`: what etcd does not read, and overwrites.
///
/// # Errors
/// As the tree gives them.
pub fn bytes_behind(file: &File, offset: u64) -> TreeResult<bool> {
    let mut at = offset;
    while at < file.size() {
        let bytes = file.read_once(at, 1 << 20)?;
        if bytes.is_empty() {
            break;
        }
        if bytes.iter().any(|byte| *byte != 0) {
            return Ok(true);
        }
        at = at.saturating_add(bytes.len() as u64);
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::etcd::read::sample::Writer;
    use crate::guest::GuestPath;
    use crate::tree::MemoryTree;

    fn read(bytes: &[u8], is_last: bool) -> (Vec<(u64, Vec<u8>)>, Stop) {
        let guest = MemoryTree::new().file("/wal", bytes).into_guest();
        let file = File::open(&guest, &GuestPath::new("/wal")).unwrap();
        let mut reader = Reader::new(&file, 0, is_last);
        let mut records = Vec::new();
        loop {
            match reader.next_record().unwrap() {
                Ok(record) => records.push((record.kind, record.data.to_vec())),
                Err(stop) => return (records, stop),
            }
        }
    }

    fn sample() -> Vec<u8> {
        let mut writer = Writer::default();
        writer.record(CRC, b"");
        writer.record(METADATA, b"who");
        for number in 0..40u8 {
            writer.record(ENTRY, &vec![number + 1; usize::from(number) * 40]);
        }
        writer.into_bytes()
    }

    #[test]
    fn reads_what_it_writes_with_zeros_behind() {
        let good = sample();
        let mut preallocated = good.clone();
        preallocated.resize(1 << 20, 0);
        for bytes in [&good, &preallocated] {
            let (records, stop) = read(bytes, true);
            assert_eq!(records.len(), 42);
            assert_eq!(records[41], (ENTRY, vec![40; 39 * 40]));
            assert_eq!((stop.offset, stop.end), (good.len() as u64, End::Complete));
        }
    }

    #[test]
    fn every_cut_is_torn_or_complete_and_keeps_whole_records() {
        let good = sample();
        for length in 0..good.len() {
            let (_, stop) = read(&good[..length], true);
            assert!(stop.offset as usize <= length);
            assert!(
                matches!(stop.end, End::Complete | End::Torn(Tear::Short)),
                "{length}: {stop:?}"
            );
            assert_eq!(
                stop.offset as usize == length,
                stop.end == End::Complete,
                "{length}"
            );
        }
    }

    #[test]
    fn every_flipped_bit_is_seen_and_none_panics() {
        let good = sample();
        let (whole, _) = read(&good, true);
        for at in 0..good.len() {
            let mut bytes = good.clone();
            bytes[at] ^= 1 << (at % 8);
            let (records, stop) = read(&bytes, true);
            // Padding and a record's type are under no checksum; whatever data is read must be what
            // was written.
            let same = records
                .iter()
                .zip(&whole)
                .all(|((_, read), (_, written))| read == written);
            assert!(
                same && stop.offset as usize <= bytes.len() && records.len() <= whole.len(),
                "{at}"
            );
        }
    }

    #[test]
    fn a_lost_sector_is_torn_only_in_the_last_file() {
        let mut bytes = sample();
        let end = bytes.len();
        bytes[end / 512 * 512 - 512..end / 512 * 512].fill(0);
        assert_eq!(read(&bytes, true).1.end, End::Torn(Tear::ZeroSector));
        assert_eq!(read(&bytes, false).1.end, End::Damaged(Damage::Checksum));
    }
}
