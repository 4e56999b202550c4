//! A database read from end to end: checked page by page, its keys counted, and the hash that etcd compares members by
//! (server/storage/mvcc/hash.go, index.go).

use std::collections::HashMap;
use std::hash::{BuildHasher, BuildHasherDefault, Hasher, RandomState};
use std::ops::ControlFlow;

use super::backend::{Backend, Facts, KEY, KeyValue, Revision};
use super::bbolt::{Bucket, Check, Fault, Item};
use super::crc;
use super::lease::{self, LastWrite};

/// More keys than this are not counted: the table of those seen takes 16 bytes each.
const MAX_KEYS: usize = 3_500_000;

/// What reading all of it gives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Survey {
    /// Pages in use and free.
    pub check: Check,
    /// Keys that are there now; `None` where there are more than are counted.
    pub keys: Option<u64>,
    /// Entries of the keys' history.
    pub revisions: u64,
    /// The hash of all members' history up to the same revision.
    pub hash: Option<Hash>,
    /// The newest write that carries its time.
    pub last_write: Option<LastWrite>,
}

/// etcd's `hashkv`. Comparable between members where both revisions are the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct Hash {
    /// It covers history up to here.
    pub revision: i64,
    /// And from here on whole; before it only what is still needed.
    pub compact_revision: i64,
    /// The hash.
    pub hash: u32,
}

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

/// Which keys are there, and which entries up to the compaction are needed no more.
struct Index {
    state: RandomState,
    /// By the key's hash: the number of its last entry.
    keys: HashMap<u64, u32, BuildHasherDefault<Same>>,
    /// Entries counted so far.
    count: u64,
    too_many: bool,
    /// One bit for each entry up to the compaction.
    dropped: Vec<u64>,
    compacted: i64,
    revision: i64,
    /// Whether there is any key at `revision`; etcd filters nothing where there is none.
    any_at_revision: bool,
    last_write: Option<LastWrite>,
}

impl Index {
    fn new(compacted: i64, revision: i64) -> Self {
        Self {
            state: RandomState::new(),
            keys: HashMap::default(),
            count: 0,
            too_many: false,
            dropped: Vec::new(),
            compacted,
            revision,
            any_at_revision: false,
            last_write: None,
        }
    }

    fn add(&mut self, item: Item<'_>) {
        let number = self.count;
        self.count += 1;
        let Some((revision, is_deletion)) = Revision::parse(item.key) else { return };
        let Ok(kv) = KeyValue::parse(item.value) else { return };
        if let Some(write) = lease::in_value(kv.key, kv.value) {
            self.last_write = Some(write);
        }
        let (Ok(number), false) = (u32::try_from(number), self.too_many) else { return };
        let key = self.state.hash_one(kv.key);
        let before = if is_deletion { self.keys.remove(&key) } else { self.keys.insert(key, number) };
        if revision.main <= self.revision {
            if let Some(before) = before {
                self.drop_entry(before);
            }
            if is_deletion && revision.main <= self.compacted {
                self.drop_entry(number);
            }
            self.any_at_revision = !self.keys.is_empty();
        }
        if self.keys.len() > MAX_KEYS {
            self.too_many = true;
            self.keys = HashMap::default();
        }
    }

    /// Only entries up to the compaction are asked for later; marking others costs nothing but a bit.
    fn drop_entry(&mut self, number: u32) {
        let word = number as usize / 64;
        if word >= self.dropped.len() {
            self.dropped.resize(word + 1, 0);
        }
        if let Some(word) = self.dropped.get_mut(word) {
            *word |= 1 << (number % 64);
        }
    }

    fn is_dropped(&self, number: u64) -> bool {
        let word = usize::try_from(number / 64).ok().and_then(|at| self.dropped.get(at));
        word.is_some_and(|word| word & (1 << (number % 64)) != 0)
    }
}

/// Reads the whole database. `revision` is where the hash is to be taken; lower than the compaction, there is none.
///
/// # Errors
/// The first [`Fault`].
pub fn survey(backend: &Backend, facts: &Facts, revision: i64) -> Result<Survey, Fault> {
    let mut index = Index::new(facts.compacted, revision);
    let check = backend.db.check(&mut |bucket, item| {
        if bucket == KEY {
            index.add(item);
        }
    })?;
    let hash = match backend.keys()? {
        Some(bucket) if !index.too_many && revision > facts.compacted.max(0) => {
            Some(hash(backend, &bucket, &index, facts.compacted, revision)?)
        }
        _ => None,
    };
    Ok(Survey {
        check,
        keys: (!index.too_many).then_some(index.keys.len() as u64),
        revisions: index.count,
        hash,
        last_write: index.last_write,
    })
}

fn hash(backend: &Backend, bucket: &Bucket, index: &Index, compacted: i64, revision: i64) -> Result<Hash, Fault> {
    let mut sum = crc::append(0, KEY);
    let mut number = 0;
    backend.db.walk(bucket, None, &mut |item| {
        let this = number;
        number += 1;
        let Some((at, is_deletion)) = Revision::parse(item.key) else { return ControlFlow::Continue(()) };
        if at.main > revision {
            return ControlFlow::Break(());
        }
        let dropped = at.main <= compacted && index.any_at_revision && index.is_dropped(this);
        let left_by_newer = is_deletion && at.main == compacted;
        if !dropped && !left_by_newer {
            sum = crc::append(crc::append(sum, item.key), item.value);
        }
        ControlFlow::Continue(())
    })?;
    Ok(Hash { revision, compact_revision: compacted, hash: sum })
}
