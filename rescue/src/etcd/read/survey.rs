//! A database read from end to end: checked page by page, its keys counted, and the hash that etcd
//! compares members by (server/storage/mvcc/hash.go, index.go).

use std::ops::ControlFlow;

use super::backend::{Backend, Facts, KEY, KeyValue, Revision};
use super::history::History;
use super::lease::{self, LastWrite};
use crate::base::ui::Progress;
use crate::etcd::format::bbolt::{Bucket, Check, Fault, Item};
use crate::etcd::format::crc;

/// What reading all of it gives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Survey {
    /// Pages in use and free.
    pub check: Check,
    /// Keys that are there now; `None` where there are more entries than are numbered.
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

/// Reads the whole database, `progress` being told of the bytes that were gone through. `revision`
/// is where the hash is to be taken; lower than the compaction, there is none.
///
/// # Errors
/// The first [`Fault`].
pub fn survey(
    backend: &Backend,
    facts: &Facts,
    revision: i64,
    progress: &dyn Progress,
) -> Result<Survey, Fault> {
    let mut meter = Meter::new(progress);
    let mut history = History::new(facts.compacted, revision);
    // Where nothing was ever compacted nothing is left out of the hash, so it need not wait for
    // what later entries say.
    let is_simple = facts.compacted < 0 && revision > 0;
    let mut sum = crc::append(0, KEY);
    let check = backend.db.check(&mut |bucket, item| {
        meter.count(item);
        if bucket == KEY {
            history.add(item.key, item.value);
            if is_simple && Revision::parse(item.key).is_some_and(|(at, _)| at.main <= revision) {
                sum = crc::append(crc::append(sum, item.key), item.value);
            }
        }
    })?;
    let bucket = backend.keys()?;
    while history.needs_another_pass() {
        let Some(bucket) = &bucket else { break };
        backend.db.walk(bucket, None, &mut |item| {
            history.add(item.key, item.value);
            ControlFlow::Continue(())
        })?;
    }
    let hash = match &bucket {
        Some(_) if is_simple => Some(Hash {
            revision,
            compact_revision: facts.compacted,
            hash: sum,
        }),
        Some(bucket) if history.is_whole() && revision > facts.compacted.max(0) => Some(hash(
            backend,
            bucket,
            &history,
            (facts.compacted, revision),
            &mut meter,
        )?),
        _ => None,
    };
    Ok(Survey {
        check,
        keys: history.is_whole().then_some(history.keys()),
        revisions: history.entries,
        hash,
        last_write: history.last_write,
    })
}

/// Newest revisions among which a write with its time is looked for; each node renews a Lease every
/// ten seconds.
const NEWEST: [i64; 4] = [16, 256, 4096, 65_536];
/// Entries that are read for that at most, each time.
const MOST_ENTRIES: u32 = 50_000;

/// The newest write that carries its time, where there is one among the last few; reads no more
/// than these.
///
/// # Errors
/// The first [`Fault`].
pub fn last_written(backend: &Backend, facts: &Facts) -> Result<Option<LastWrite>, Fault> {
    let Some(bucket) = backend.keys()? else {
        return Ok(None);
    };
    for newest in NEWEST {
        let from = facts.revision.saturating_sub(newest).max(0);
        let (mut last, mut count) = (None, 0);
        backend.db.walk(
            &bucket,
            Some(&Revision { main: from, sub: 0 }.to_key()),
            &mut |item| {
                count += 1;
                if let Ok(kv) = KeyValue::parse(item.value) {
                    last = lease::in_value(kv.key, kv.value).or_else(|| last.take());
                }
                if count > MOST_ENTRIES {
                    ControlFlow::Break(())
                } else {
                    ControlFlow::Continue(())
                }
            },
        )?;
        if count > MOST_ENTRIES {
            return Ok(None);
        }
        if last.is_some() || from == 0 {
            return Ok(last);
        }
    }
    Ok(None)
}

/// Bytes at once that are worth a word.
const STEP: u64 = 4 << 20;

/// Tells of bytes that were gone through, in steps.
pub(super) struct Meter<'a> {
    progress: &'a dyn Progress,
    bytes: u64,
}

impl<'a> Meter<'a> {
    pub(super) fn new(progress: &'a dyn Progress) -> Self {
        Self { progress, bytes: 0 }
    }

    /// One more element.
    pub(super) fn count(&mut self, item: Item<'_>) {
        self.bytes += (item.key.len() + item.value.len()) as u64;
        if self.bytes >= STEP {
            self.progress.advance(std::mem::take(&mut self.bytes));
        }
    }
}

fn hash(
    backend: &Backend,
    bucket: &Bucket,
    history: &History,
    (compacted, revision): (i64, i64),
    meter: &mut Meter<'_>,
) -> Result<Hash, Fault> {
    let mut sum = crc::append(0, KEY);
    let mut number = 0;
    let filters = history.any_at_revision();
    backend.db.walk(bucket, None, &mut |item| {
        meter.count(item);
        let this = number;
        number += 1;
        let Some((at, is_deletion)) = Revision::parse(item.key) else {
            return ControlFlow::Continue(());
        };
        if at.main > revision {
            return ControlFlow::Break(());
        }
        let dropped = at.main <= compacted && filters && history.is_superfluous(this);
        let left_by_newer = is_deletion && at.main == compacted;
        if !dropped && !left_by_newer {
            sum = crc::append(crc::append(sum, item.key), item.value);
        }
        ControlFlow::Continue(())
    })?;
    Ok(Hash {
        revision,
        compact_revision: compacted,
        hash: sum,
    })
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;
    use crate::etcd::format::file::File;
    use crate::etcd::format::proto::put_bytes;
    use crate::etcd::read::backend::META;
    use crate::etcd::write::bbolt::DatabaseWriter;
    use crate::guest::GuestPath;
    use crate::tree::MemoryTree;

    /// The second of the newest Lease, one of which is written at each of `leases`, among
    /// `revisions` of `each` keys.
    fn last_second(revisions: i64, each: i64, leases: &[i64]) -> Option<u8> {
        let mut out = Cursor::new(Vec::new());
        let mut writer = DatabaseWriter::new(&mut out, 4096).unwrap();
        writer.bucket(META).unwrap();
        writer
            .put(b"consistent_index", &9u64.to_be_bytes())
            .unwrap();
        writer.bucket(KEY).unwrap();
        for main in 2..=revisions {
            for sub in 0..each {
                let (mut value, is_lease) = (Vec::new(), leases.contains(&main));
                put_bytes(
                    &mut value,
                    1,
                    if is_lease {
                        b"/registry/leases/n/one"
                    } else {
                        b"/registry/pods/n/one"
                    },
                );
                let second = leases.iter().position(|lease| *lease == main).unwrap_or(0);
                let object =
                    format!(r#"{{"spec":{{"renewTime":"2026-11-25T10:00:0{second}.000000Z"}}}}"#);
                put_bytes(&mut value, 5, object.as_bytes());
                writer
                    .put(&Revision { main, sub }.to_key(), &value)
                    .unwrap();
            }
        }
        writer.finish().unwrap();
        let guest = MemoryTree::new().file("/db", out.into_inner()).into_guest();
        let backend = Backend::open(File::open(&guest, &GuestPath::new("/db")).unwrap()).unwrap();
        let facts = backend.facts().unwrap();
        assert_eq!(facts.revision, revisions);
        last_written(&backend, &facts)
            .unwrap()
            .map(|write| write.time.second())
    }

    #[test]
    fn the_time_of_the_last_write_is_looked_for_at_the_end() {
        assert_eq!(last_second(10, 1, &[3, 5]), Some(1), "of a young cluster");
        assert_eq!(last_second(600, 1, &[100, 500, 590]), Some(2));
        assert_eq!(last_second(600, 1, &[100]), Some(0), "further back");
        assert_eq!(last_second(600, 1, &[]), None);
        assert_eq!(last_second(200, 1000, &[5]), None, "so much is not read");
        assert_eq!(last_second(200, 1000, &[5, 199]), Some(1));
    }
}
