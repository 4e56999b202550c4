//! The history in bucket `key` gone through once or more: how many keys are there, and which
//! entries a newer one has made superfluous. Memory is bounded whatever the size: a table of keys
//! that grows too large is halved, and what was left out is gone through in a further pass.

use std::collections::HashMap;
use std::hash::{BuildHasher, BuildHasherDefault, Hasher, RandomState};

use super::backend::{KeyValue, Revision};
use super::lease::{self, LastWrite};

/// Keys in the table at once, 16 bytes each and their control bytes: 70 MiB.
const MAX_KEYS: usize = 3_500_000;
/// More entries than a database of 200 GiB holds are not numbered.
const MAX_ENTRIES: u64 = u32::MAX as u64;

/// Keys are known by a hash of 64 bits, which needs no second one.
#[derive(Debug, Default)]
struct Same(u64);

impl Hasher for Same {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }
    fn write_u64(&mut self, number: u64) {
        self.0 = number;
    }
}

/// One bit for each entry, by its number.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Bits(Vec<u64>);

impl Bits {
    /// Sets it.
    pub fn set(&mut self, number: u32) {
        let word = number as usize / 64;
        if word >= self.0.len() {
            self.0.resize(word + 1, 0);
        }
        if let Some(word) = self.0.get_mut(word) {
            *word |= 1 << (number % 64);
        }
    }

    /// Whether it is set.
    pub fn has(&self, number: u64) -> bool {
        let word = usize::try_from(number / 64)
            .ok()
            .and_then(|at| self.0.get(at));
        word.is_some_and(|word| word & (1 << (number % 64)) != 0)
    }
}

/// Keys whose hash ends so.
#[derive(Debug, Clone, Copy)]
struct Part {
    mask: u64,
    end: u64,
}

impl Part {
    fn has(self, hash: u64) -> bool {
        hash & self.mask == self.end
    }

    /// Without the keys whose next bit is set, and only those.
    fn halves(self) -> (Self, Self) {
        let mask = self.mask << 1 | 1;
        (
            Self {
                mask,
                end: self.end,
            },
            Self {
                mask,
                end: self.end | (mask ^ self.mask),
            },
        )
    }
}

/// What going through the history gives.
#[derive(Debug)]
pub struct History {
    state: RandomState,
    /// By the key's hash: the number of its last entry.
    table: HashMap<u64, u32, BuildHasherDefault<Same>>,
    limit: usize,
    part: Part,
    /// Parts that are left for further passes.
    later: Vec<Part>,
    is_first: bool,
    /// Number of the next entry.
    next: u64,
    live: u64,
    compacted: i64,
    revision: i64,
    any_of_part: bool,
    any: bool,
    superfluous: Bits,
    /// Entries in all.
    pub entries: u64,
    /// The newest write that carries its time.
    pub last_write: Option<LastWrite>,
}

impl History {
    /// Up to `revision`, seen from a compaction at `compacted`: of older entries only the last of
    /// each key is needed, and none of a key that was deleted by then.
    pub fn new(compacted: i64, revision: i64) -> Self {
        Self::with_limit(compacted, revision, MAX_KEYS)
    }

    fn with_limit(compacted: i64, revision: i64, limit: usize) -> Self {
        Self {
            state: RandomState::new(),
            table: HashMap::default(),
            limit,
            part: Part { mask: 0, end: 0 },
            later: Vec::new(),
            is_first: true,
            next: 0,
            live: 0,
            compacted,
            revision,
            any_of_part: false,
            any: false,
            superfluous: Bits::default(),
            entries: 0,
            last_write: None,
        }
    }

    /// The next element of the bucket; they come in its order, in every pass all of them.
    pub fn add(&mut self, key: &[u8], value: &[u8]) {
        let number = self.next;
        self.next += 1;
        let Some((revision, is_deletion)) = Revision::parse(key) else {
            return;
        };
        let Ok(kv) = KeyValue::parse(value) else {
            return;
        };
        if self.is_first
            && let Some(write) = lease::in_value(kv.key, kv.value)
        {
            self.last_write = Some(write);
        }
        let hash = self.state.hash_one(kv.key);
        let (Ok(number), true) = (u32::try_from(number), self.part.has(hash)) else {
            return;
        };
        let before = if is_deletion {
            self.table.remove(&hash)
        } else {
            self.table.insert(hash, number)
        };
        if revision.main <= self.revision {
            if let Some(before) = before {
                self.superfluous.set(before);
            }
            if is_deletion && revision.main <= self.compacted {
                self.superfluous.set(number);
            }
        }
        if self.table.len() > self.limit {
            let (kept, left) = self.part.halves();
            self.table.retain(|hash, _| kept.has(*hash));
            self.part = kept;
            self.later.push(left);
        }
        if revision.main <= self.revision {
            self.any_of_part = !self.table.is_empty();
        }
    }

    /// Ends a pass. Whether there must be another one over the same elements.
    pub fn needs_another_pass(&mut self) -> bool {
        if self.is_first {
            self.entries = self.next;
            self.is_first = false;
        }
        self.next = 0;
        self.any |= std::mem::take(&mut self.any_of_part);
        self.live += self.table.len() as u64;
        self.table.clear();
        let next = self.later.pop();
        self.part = next.unwrap_or(self.part);
        next.is_some()
    }

    /// Keys that are there after the last entry.
    pub fn keys(&self) -> u64 {
        self.live
    }

    /// Whether the numbers of all entries were kept.
    pub fn is_whole(&self) -> bool {
        self.entries <= MAX_ENTRIES
    }

    /// Whether etcd would skip entries at all: it does not where no key is left at the revision.
    pub fn any_at_revision(&self) -> bool {
        self.any
    }

    /// Whether a newer entry (up to the revision), or its being a deletion before the compaction,
    /// has made this one superfluous.
    pub fn is_superfluous(&self, number: u64) -> bool {
        self.superfluous.has(number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::etcd::format::proto::{put_bytes, put_number};

    /// Keys 0 to 99 written four times, every third deleted afterwards.
    fn sample() -> Vec<(Vec<u8>, Vec<u8>)> {
        let mut all = Vec::new();
        let mut add = |main: i64, key: u32, is_deletion: bool| {
            let mut value = Vec::new();
            put_bytes(&mut value, 1, &key.to_be_bytes());
            put_number(&mut value, 3, main as u64);
            let mut revision = Revision { main, sub: 0 }.to_key().to_vec();
            revision.extend(is_deletion.then_some(b't'));
            all.push((revision, value));
        };
        for main in 0..400 {
            add(main + 2, main as u32 % 100, false);
        }
        for number in 0..33 {
            add(402 + number, number as u32 * 3, true);
        }
        all
    }

    fn gone_through(limit: usize, compacted: i64, revision: i64) -> (u64, Vec<u64>, bool, u32) {
        let mut history = History::with_limit(compacted, revision, limit);
        let mut passes = 0;
        loop {
            passes += 1;
            sample()
                .iter()
                .for_each(|(key, value)| history.add(key, value));
            if !history.needs_another_pass() {
                break;
            }
        }
        assert_eq!(history.entries, 433);
        let superfluous = (0..433)
            .filter(|number| history.is_superfluous(*number))
            .collect();
        (
            history.keys(),
            superfluous,
            history.any_at_revision(),
            passes,
        )
    }

    #[test]
    fn a_small_table_gives_the_same_in_more_passes() {
        for (compacted, revision) in [(434, 434), (250, 434), (250, 300), (-1, 434), (410, 420)] {
            let whole = gone_through(1000, compacted, revision);
            assert_eq!((whole.0, whole.3), (67, 1));
            for limit in [60, 20, 7] {
                let parts = gone_through(limit, compacted, revision);
                assert_eq!(
                    (parts.0, &parts.1, parts.2),
                    (whole.0, &whole.1, whole.2),
                    "{limit}"
                );
                assert!(parts.3 > 1);
            }
        }
    }

    #[test]
    fn only_the_last_of_each_key_is_needed() {
        let (_, superfluous, any, _) = gone_through(1000, 434, 434);
        assert_eq!(433 - superfluous.len(), 67);
        assert!(any && !superfluous.contains(&301) && superfluous.contains(&300));
    }
}
