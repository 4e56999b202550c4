//! One file of systemd's journal, read from its newest entry backwards.
//!
//! Format: systemd's docs/JOURNAL_FILE_FORMAT.md and src/libsystemd/sd-journal/journal-def.h. A file
//! may be damaged or cut off anywhere: what cannot be read is left out, and nothing here loops or
//! grows with what a crafted file claims.

use std::collections::HashMap;
use std::rc::Rc;

use super::compression::{Compression, LIMIT};
use super::window::Window;

const SIGNATURE: &[u8] = b"LPKSHHRH";

/// `HEADER_INCOMPATIBLE_COMPACT`: offsets of 32 bits.
const COMPACT: u32 = 16;

/// Features that change nothing for a reader of entries: XZ, LZ4, keyed hashes, Zstandard.
const KNOWN: u32 = 1 | 2 | 4 | 8 | COMPACT;

const DATA: u8 = 1;
const ENTRY: u8 = 3;
const ENTRY_ARRAY: u8 = 6;

/// Bytes of an object's header.
const OBJECT_HEADER: u64 = 16;

/// Bytes before the items of an entry.
const ENTRY_HEADER: u64 = 64;

/// Bytes before the items of an entry array.
const ARRAY_HEADER: u64 = 24;

/// Arrays that are followed: each is twice as long as the one before it.
const MOST_ARRAYS: usize = 4096;

/// Fields of one entry that are looked at; journald's own limit is 1024.
const MOST_FIELDS: u64 = 1024;

/// Values that are remembered; those of units and identifiers are few.
const MOST_REMEMBERED: usize = 100_000;

/// When an entry was written, and in which boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stamp {
    /// Microseconds since 1970, by the node's clock.
    pub realtime: u64,
    /// The boot's identifier.
    pub boot: [u8; 16],
}

/// One entry, as far as anybody here wants to know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    /// When.
    pub stamp: Stamp,
    /// `_SYSTEMD_UNIT`: `kubelet.service`.
    pub unit: Option<Rc<str>>,
    /// `SYSLOG_IDENTIFIER`: `kubelet`, `systemd`, `kernel`.
    pub identifier: Option<Rc<str>>,
    /// `PRIORITY`: 0 to 7, 3 is an error.
    pub priority: Option<u8>,
    /// `MESSAGE`.
    pub message: String,
}

/// What a value at some offset says.
#[derive(Clone)]
enum Value {
    Unit(Rc<str>),
    Identifier(Rc<str>),
    Priority(u8),
    Message,
    Other,
}

/// An open file.
pub(super) struct JournalFile {
    bytes: Window,
    is_compact: bool,
    /// The newest entry, by the header.
    newest: u64,
    arrays: Vec<(u64, u64)>,
    values: HashMap<u64, Value>,
}

impl JournalFile {
    /// `None` where it is no journal, or one of a newer format.
    pub fn over(bytes: Window) -> Option<Self> {
        if bytes.read(0, SIGNATURE.len())? != SIGNATURE {
            return None;
        }
        let flags = bytes.u32(12)?;
        if flags & !KNOWN != 0 {
            return None;
        }
        let is_compact = flags & COMPACT != 0;
        let newest = bytes.u64(192)?;
        let first_array = bytes.u64(176)?;
        let mut file = Self {
            bytes,
            is_compact,
            newest,
            arrays: Vec::new(),
            values: HashMap::new(),
        };
        file.arrays = file.find_arrays(first_array);
        Some(file)
    }

    /// When its newest entry was written, microseconds since 1970, by its header; 0 for an empty
    /// one.
    pub fn newest(&self) -> u64 {
        self.newest
    }

    /// Gives the entries to `take`, newest first, for as long as it returns true. `is_wanted` tells
    /// by when, unit and identifier whether an entry's message is to be read at all.
    pub fn backwards(
        &mut self,
        is_wanted: impl Fn(Option<&str>, Option<&str>) -> bool,
        mut take: impl FnMut(Read) -> bool,
    ) {
        for (array, count) in std::mem::take(&mut self.arrays).into_iter().rev() {
            for index in (0..count).rev() {
                let Some(offset) = self.item(array, index).filter(|offset| *offset != 0) else {
                    continue;
                };
                let Some(read) = self.entry(offset, &is_wanted) else {
                    continue;
                };
                if !take(read) {
                    return;
                }
            }
        }
    }

    /// The arrays of entries with the number of items each has room for, oldest first.
    fn find_arrays(&self, first: u64) -> Vec<(u64, u64)> {
        let mut arrays = Vec::new();
        let mut at = first;
        while at != 0 && arrays.len() < MOST_ARRAYS {
            let Some((_, size)) = self.object(at, ENTRY_ARRAY) else {
                break;
            };
            arrays.push((at, size.saturating_sub(ARRAY_HEADER) / self.item_size()));
            let Some(next) = self.bytes.u64(at + OBJECT_HEADER).filter(|next| *next > at) else {
                break;
            };
            at = next;
        }
        arrays
    }

    fn item_size(&self) -> u64 {
        if self.is_compact { 4 } else { 8 }
    }

    fn item(&self, array: u64, index: u64) -> Option<u64> {
        let at = array + ARRAY_HEADER + index * self.item_size();
        match self.is_compact {
            true => self.bytes.u32(at).map(u64::from),
            false => self.bytes.u64(at),
        }
    }

    /// Flags and size of the object at `offset`, where it is of that type and within the file.
    fn object(&self, offset: u64, wanted: u8) -> Option<(u8, u64)> {
        let header = self.bytes.read(offset, 2)?;
        let size = self.bytes.u64(offset + 8)?;
        let is_inside = size >= OBJECT_HEADER && offset.checked_add(size)? <= self.bytes.size();
        match header.as_slice() {
            [kind, flags] if *kind == wanted && is_inside => Some((*flags, size)),
            _ => None,
        }
    }

    fn entry(
        &mut self,
        offset: u64,
        is_wanted: &impl Fn(Option<&str>, Option<&str>) -> bool,
    ) -> Option<Read> {
        let (_, size) = self.object(offset, ENTRY)?;
        let stamp = Stamp {
            realtime: self.bytes.u64(offset + 24)?,
            boot: self.bytes.read(offset + 40, 16)?.try_into().ok()?,
        };
        let step = if self.is_compact { 4 } else { 16 };
        let count = (size.saturating_sub(ENTRY_HEADER) / step).min(MOST_FIELDS);
        let (mut unit, mut identifier, mut priority, mut message) = (None, None, None, None);
        for index in 0..count {
            let at = offset + ENTRY_HEADER + index * step;
            let value = match self.is_compact {
                true => self.bytes.u32(at).map(u64::from),
                false => self.bytes.u64(at),
            };
            let Some(value) = value else { continue };
            match self.value(value) {
                Value::Unit(name) => unit = Some(name),
                Value::Identifier(name) => identifier = Some(name),
                Value::Priority(number) => priority = Some(number),
                Value::Message => message = Some(value),
                Value::Other => {}
            }
        }
        if !is_wanted(unit.as_deref(), identifier.as_deref()) {
            return Some(Read::Other(stamp));
        }
        let Some(message) = message.and_then(|at| self.text(at, "MESSAGE=")) else {
            return Some(Read::Other(stamp));
        };
        Some(Read::Entry(Entry {
            stamp,
            unit,
            identifier,
            priority,
            message,
        }))
    }

    /// What the value at `offset` is; remembered, because most entries share most of theirs.
    fn value(&mut self, offset: u64) -> Value {
        if let Some(known) = self.values.get(&offset) {
            return known.clone();
        }
        let value = self.read_value(offset);
        if self.values.len() < MOST_REMEMBERED {
            self.values.insert(offset, value.clone());
        }
        value
    }

    fn read_value(&self, offset: u64) -> Value {
        // The longest name of a field that matters, and the value of a short one.
        let Some(bytes) = self.payload(offset, 300) else {
            return Value::Other;
        };
        let text = String::from_utf8_lossy(&bytes);
        match text.split_once('=') {
            Some(("_SYSTEMD_UNIT", unit)) => Value::Unit(unit.into()),
            Some(("SYSLOG_IDENTIFIER", name)) => Value::Identifier(name.into()),
            Some(("PRIORITY", number)) => number.parse().map_or(Value::Other, Value::Priority),
            Some(("MESSAGE", _)) => Value::Message,
            _ => Value::Other,
        }
    }

    /// The text of a value after `name`.
    fn text(&self, offset: u64, name: &str) -> Option<String> {
        let bytes = self.payload(offset, LIMIT)?;
        let text = String::from_utf8_lossy(bytes.strip_prefix(name.as_bytes())?).into_owned();
        Some(text)
    }

    /// The first `limit` bytes of a value, `NAME=VALUE`, unpacked.
    fn payload(&self, offset: u64, limit: usize) -> Option<Vec<u8>> {
        let (flags, size) = self.object(offset, DATA)?;
        let start = if self.is_compact { 72 } else { 64 };
        let length = usize::try_from(size.checked_sub(start)?).ok()?;
        let at = offset.checked_add(start)?;
        let mut bytes = match Compression::of(flags) {
            Some(how) => how.unpack(&self.bytes.read(at, length.min(LIMIT))?)?,
            None => self.bytes.read(at, length.min(limit))?,
        };
        bytes.truncate(limit);
        Some(bytes)
    }
}

/// What was read of an entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Read {
    /// All that matters of one that is wanted.
    Entry(Entry),
    /// When one was written that is not.
    Other(Stamp),
}

impl Read {
    /// When it was written.
    pub fn stamp(&self) -> Stamp {
        match self {
            Self::Entry(entry) => entry.stamp,
            Self::Other(stamp) => *stamp,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::tree::MemoryTree;

    const REGULAR: &[u8] = include_bytes!("../../../tests/fixtures/journal/regular.journal.zst");
    const COMPACT: &[u8] = include_bytes!("../../../tests/fixtures/journal/compact.journal.zst");

    fn unpacked(fixture: &[u8]) -> Vec<u8> {
        let mut bytes = zstd::stream::decode_all(fixture).unwrap();
        // journald makes room in steps of 8 MiB; what lies behind the last object is zeros.
        let end = bytes.iter().rposition(|byte| *byte != 0).unwrap();
        bytes.truncate((end + 9) & !7);
        bytes
    }

    fn read(bytes: &[u8]) -> Option<Vec<Read>> {
        let tree = MemoryTree::new().file("/j", bytes);
        let window = Window::open(Rc::new(tree), PathBuf::from("/j")).ok()?;
        let mut file = JournalFile::over(window)?;
        let mut entries = Vec::new();
        file.backwards(
            |unit, _| unit != Some("ssh.service"),
            |read| {
                entries.push(read);
                true
            },
        );
        Some(entries)
    }

    #[test]
    fn both_forms_are_read_backwards() {
        let regular = read(&unpacked(REGULAR)).unwrap();
        assert_eq!(regular, read(&unpacked(COMPACT)).unwrap());
        assert_eq!(regular.len(), 162);
        let others = regular.iter().filter(|read| matches!(read, Read::Other(_)));
        assert_eq!(others.count(), 40);
        let Some(Read::Entry(newest)) = regular.first() else {
            panic!("{:?}", regular.first());
        };
        assert!(
            newest
                .message
                .starts_with("time=\"2026-11-25T08:00:00Z\" level=fatal")
        );
        assert_eq!(newest.message.matches("that is packed").count(), 40);
        assert_eq!(newest.unit.as_deref(), Some("containerd.service"));
        assert_eq!(newest.priority, Some(6));
        let Some(Read::Entry(oldest)) = regular.last() else {
            panic!("{:?}", regular.last());
        };
        assert_eq!(oldest.stamp.realtime, 1_795_507_200_000_000);
        assert_eq!(oldest.identifier.as_deref(), Some("kubelet"));
        assert_ne!(oldest.stamp.boot, newest.stamp.boot);
    }

    #[test]
    fn a_file_cut_off_gives_what_is_left() {
        let whole = unpacked(COMPACT);
        for part in [0, 7, 100, 271, whole.len() / 2, whole.len() - 1] {
            let found = read(&whole[..part]).unwrap_or_default();
            assert!(found.len() <= 162, "{part}");
        }
        assert!(!read(&whole[..whole.len() - 1]).unwrap().is_empty());
    }

    #[test]
    fn damage_anywhere_neither_panics_nor_loops() {
        let mut random = fastrand::Rng::with_seed(7);
        for fixture in [REGULAR, COMPACT] {
            let whole = unpacked(fixture);
            for _ in 0..200 {
                let mut damaged = whole.clone();
                for _ in 0..8 {
                    let at = random.usize(..damaged.len());
                    damaged[at] = random.u8(..);
                }
                let found = read(&damaged).unwrap_or_default();
                assert!(found.len() < 100_000, "{}", found.len());
            }
        }
    }
}
