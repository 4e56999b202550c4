//! Going through a large bucket with two threads: one descends the tree and reads its leaves in
//! large pieces, the other looks at them. What is given, and which fault comes first, is the same
//! as with one.

use std::ops::{ControlFlow, Range};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

use super::page::{self, Head};
use super::walk::{self, Bounds, Child, MAX_DEPTH, Seen, Visitor};
use super::{Fault, Meta, Page};
use crate::etcd::format::file::Held;

/// Bytes of leaves that are handed over at once: few enough for a processor's own cache.
const BATCH: usize = 256 << 10;
/// Batches under way; one only grows where a single leaf is larger.
const BATCHES: usize = 3;
/// Pages between two leaves that are read with them: no dearer than a further call.
const GAP: u64 = 4;

/// Leaves, one behind the other as they come in the tree.
#[derive(Debug)]
struct Batch {
    bytes: Vec<u8>,
    used: usize,
    leaves: Vec<Leaf>,
    /// The leaves' bounds.
    keys: Vec<u8>,
}

#[derive(Debug)]
struct Leaf {
    head: Head,
    at: usize,
    low: Range<usize>,
    high: Option<Range<usize>>,
}

impl Batch {
    fn new() -> Self {
        Self {
            bytes: vec![0; BATCH],
            used: 0,
            leaves: Vec::new(),
            keys: Vec::new(),
        }
    }

    fn clear(&mut self) {
        self.used = 0;
        self.leaves.clear();
        self.keys.clear();
        if self.bytes.len() > BATCH {
            self.bytes = vec![0; BATCH];
        }
    }

    fn key(&mut self, key: &[u8]) -> Range<usize> {
        let from = self.keys.len();
        self.keys.extend_from_slice(key);
        from..self.keys.len()
    }

    fn room(&self) -> usize {
        self.bytes.len() - self.used
    }

    fn visit(&self, visitor: &mut Visitor<'_>) -> Result<ControlFlow<()>, Fault> {
        for leaf in &self.leaves {
            let bytes = self
                .bytes
                .get(leaf.at..leaf.at + leaf.head.length)
                .unwrap_or_default();
            let high = leaf.high.clone().and_then(|high| self.keys.get(high));
            let bounds = (self.keys.get(leaf.low.clone()), high);
            if walk::leaf(&leaf.head.page(bytes), bounds, None, visitor)?.is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
        Ok(ControlFlow::Continue(()))
    }
}

/// Gives every element below `root`, a branch, to `visitor`. `None` where there is no second thread
/// to be had.
pub(super) fn walk(
    held: &Held,
    meta: Meta,
    root: &Page,
    seen: Option<&mut Seen>,
    visitor: &mut Visitor<'_>,
) -> Option<Result<ControlFlow<()>, Fault>> {
    let (full, filled) = channel();
    let (empty, emptied) = channel();
    (0..BATCHES).for_each(|_| drop(empty.send(Batch::new())));
    // What ends the other thread goes with this closure, before that thread is waited for.
    thread::scope(move |scope| {
        let read = move || {
            let Ok(batch) = emptied.recv() else { return };
            let mut reader = Reader {
                held,
                meta,
                seen,
                batch,
                full,
                emptied,
            };
            let last = match reader
                .branch(root, (None, None), 0)
                .and_then(|()| reader.hand_over())
            {
                Ok(()) | Err(Stop::NobodyListens) => return,
                Err(Stop::Fault(fault)) => fault,
            };
            // What comes before the fault is looked at first.
            if reader.hand_over().is_ok() {
                let _ = reader.full.send(Err(last));
            }
        };
        thread::Builder::new()
            .name("pages".to_owned())
            .spawn_scoped(scope, read)
            .ok()?;
        for batch in filled {
            let mut batch: Batch = match batch {
                Ok(batch) => batch,
                Err(fault) => return Some(Err(fault)),
            };
            match batch.visit(visitor) {
                Ok(ControlFlow::Continue(())) => {}
                done => return Some(done),
            }
            batch.clear();
            let _ = empty.send(batch);
        }
        Some(Ok(ControlFlow::Continue(())))
    })
}

enum Stop {
    Fault(Fault),
    NobodyListens,
}

impl<F: Into<Fault>> From<F> for Stop {
    fn from(fault: F) -> Self {
        Self::Fault(fault.into())
    }
}

/// A piece of the file in the batch.
struct Piece {
    offset: u64,
    at: usize,
    length: usize,
}

impl Piece {
    /// Where in the batch it has the file's bytes from `offset` on, and how many.
    fn from(&self, offset: u64) -> Option<(usize, usize)> {
        let skip = usize::try_from(offset.checked_sub(self.offset)?).ok()?;
        Some((self.at.checked_add(skip)?, self.length.checked_sub(skip)?))
    }
}

struct Reader<'a> {
    held: &'a Held,
    meta: Meta,
    seen: Option<&'a mut Seen>,
    batch: Batch,
    full: Sender<Result<Batch, Fault>>,
    emptied: Receiver<Batch>,
}

impl Reader<'_> {
    fn hand_over(&mut self) -> Result<(), Stop> {
        let next = self.emptied.recv().map_err(|_| Stop::NobodyListens)?;
        let full = std::mem::replace(&mut self.batch, next);
        self.full.send(Ok(full)).map_err(|_| Stop::NobodyListens)
    }

    fn branch(&mut self, page: &Page, bounds: Bounds<'_>, depth: usize) -> Result<(), Stop> {
        if page.count() == 0 {
            return Err(Fault::Page {
                page: page.id(),
                what: "a branch without children",
            }
            .into());
        }
        let mut piece = None;
        // Children of one branch are all leaves or all branches; only leaves are read many at once.
        let mut among_leaves = false;
        for index in 0..page.count() {
            let Child {
                key,
                page: child,
                next,
            } = walk::child(page, index, bounds)?;
            if depth + 1 > MAX_DEPTH {
                return Err(Fault::Implausible(child).into());
            }
            let wanted = if among_leaves {
                self.span(page, index, child)
            } else {
                1
            };
            let (head, at) = self.load(child, wanted, &mut piece)?;
            if let Some(seen) = &mut self.seen {
                seen.mark_all(child, head.overflow)?;
            }
            among_leaves = head.is_leaf;
            if head.is_leaf {
                let (low, high) = (self.batch.key(key), next.map(|next| self.batch.key(next)));
                self.batch.leaves.push(Leaf {
                    head,
                    at,
                    low,
                    high,
                });
            } else {
                let bytes = self
                    .batch
                    .bytes
                    .get(at..at + head.length)
                    .unwrap_or_default()
                    .to_vec();
                piece = None;
                self.branch(&head.page(bytes), (Some(key), next), depth + 1)?;
            }
        }
        Ok(())
    }

    /// Pages from `child` on that hold it and the children behind it, as far as they lie close
    /// together.
    fn span(&self, page: &Page, index: usize, child: u64) -> u64 {
        let most = BATCH as u64 / self.meta.page_size;
        let (mut last, mut step) = (child, 1);
        for index in index + 1..page.count() {
            let Ok((_, next)) = page.branch(index) else {
                break;
            };
            match next.checked_sub(last) {
                Some(gap @ 1..=GAP) if next - child < most => (last, step) = (next, gap),
                _ => break,
            }
        }
        // What the last one's overflow takes is likely what that of the one before took.
        (last - child + step).min(most)
    }

    /// Has a page in the batch: where it is there, and its header. `piece` is what was read last.
    fn load(
        &mut self,
        id: u64,
        pages: u64,
        piece: &mut Option<Piece>,
    ) -> Result<(Head, usize), Stop> {
        let offset = page::offset(&self.meta, id)?;
        let page_size = usize::try_from(self.meta.page_size).unwrap_or(usize::MAX);
        let there = piece.as_ref().and_then(|piece| piece.from(offset));
        if let Some((at, length)) = there.filter(|(_, length)| *length >= page_size) {
            let head = self.head(at, length, id)?;
            if head.length <= length {
                return Ok((head, at));
            }
        }
        let wanted = usize::try_from(pages)
            .unwrap_or(1)
            .saturating_mul(page_size);
        let (at, length) = self.read(offset, page_size, wanted)?;
        let head = self.head(at, length, id)?;
        if head.length <= length {
            *piece = Some(Piece { offset, at, length });
            return Ok((head, at));
        }
        self.batch.used = at;
        let (at, length) = self.read(offset, head.length, head.length)?;
        if length < head.length {
            return Err(Fault::Page {
                page: id,
                what: "behind the end of the file",
            }
            .into());
        }
        *piece = Some(Piece { offset, at, length });
        Ok((head, at))
    }

    fn head(&self, at: usize, length: usize, id: u64) -> Result<Head, Fault> {
        Head::parse(
            self.batch.bytes.get(at..at + length).unwrap_or_default(),
            &self.meta,
            id,
        )
    }

    /// Reads `wanted` bytes into the batch, or as many as there is room for, but `least`; short
    /// only at the end of the file.
    fn read(&mut self, offset: u64, least: usize, wanted: usize) -> Result<(usize, usize), Stop> {
        if self.batch.room() < least {
            if !self.batch.leaves.is_empty() {
                self.hand_over()?;
            }
            self.batch.used = 0;
            if self.batch.room() < least {
                self.batch.bytes = vec![0; least];
            }
        }
        let at = self.batch.used;
        let to = at + wanted.min(self.batch.room());
        let length = self
            .held
            .read(offset, self.batch.bytes.get_mut(at..to).unwrap_or_default())?;
        self.batch.used = at + length;
        Ok((at, length))
    }
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use crate::etcd::format::bbolt::{Check, Database, Fault};
    use crate::etcd::format::file::File;
    use crate::etcd::write::bbolt::DatabaseWriter;
    use crate::guest::{Guest, GuestPath};
    use crate::tree::{FolderTree, MemoryTree};

    const PAGE: usize = 4096;

    /// 12 MiB in a tree of three levels, with leaves of one page and of many.
    fn database() -> Vec<u8> {
        let mut out = Cursor::new(Vec::new());
        let mut writer = DatabaseWriter::new(&mut out, PAGE as u64).unwrap();
        for (bucket, count) in [("a", 3000u32), ("b", 10), ("c", 9000)] {
            writer.bucket(bucket.as_bytes()).unwrap();
            for number in 0..count {
                let length = if number % 100 == 0 {
                    30_000
                } else {
                    number as usize % 1500
                };
                let key = [&number.to_be_bytes()[..], &[7; 60]].concat();
                writer.put(&key, &vec![number as u8; length]).unwrap();
            }
        }
        writer.finish().unwrap();
        out.into_inner()
    }

    /// What a check counts, and all that it gave.
    fn checked(guest: &Guest) -> (Result<Check, String>, u32, usize) {
        let (mut sum, mut count) = (0, 0);
        let opened = Database::open(File::open(guest, &GuestPath::new("/db")).unwrap());
        let check = opened.and_then(|db| {
            db.check(&mut |bucket, item| {
                count += 1;
                sum = [bucket, item.key, item.value]
                    .iter()
                    .fold(sum, |sum, bytes| {
                        crate::etcd::format::crc::append(sum, bytes)
                    });
            })
        });
        (check.map_err(|fault: Fault| fault.to_string()), sum, count)
    }

    #[test]
    fn two_threads_give_what_one_gives_and_the_same_fault() {
        let good = database();
        assert!(
            good.len() as u64 > super::super::walk::LARGE,
            "{}",
            good.len()
        );
        let folder = tempfile::tempdir().unwrap();
        let mut state = 11u64;
        let mut random = |below: usize| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            (state >> 33) as usize % below
        };
        for round in 0..40 {
            let mut bytes = good.clone();
            for _ in 0..round {
                // Headers and elements of any page, a branch among them now and then.
                let at = random(bytes.len() / PAGE) * PAGE + random(40);
                bytes[at] = random(256) as u8;
            }
            std::fs::write(folder.path().join("db"), &bytes).unwrap();
            let tree = FolderTree::open(folder.path()).unwrap();
            let two = checked(&Guest::new("folder", std::rc::Rc::new(tree), Vec::new()));
            let one = checked(&MemoryTree::new().file("/db", &bytes).into_guest());
            assert_eq!(two, one, "round {round}");
            assert!(round > 0 || one.0.is_ok() && one.2 == 12_010, "{one:?}");
        }
    }

    #[test]
    fn a_visitor_that_breaks_ends_both_threads() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("db"), database()).unwrap();
        let guest = Guest::new(
            "folder",
            std::rc::Rc::new(FolderTree::open(folder.path()).unwrap()),
            Vec::new(),
        );
        let db = Database::open(File::open(&guest, &GuestPath::new("/db")).unwrap()).unwrap();
        let bucket = db.bucket(b"c").unwrap().unwrap();
        for wanted in [1, 5000] {
            let mut left = wanted;
            db.walk(&bucket, None, &mut |_| {
                left -= 1;
                if left == 0 {
                    super::ControlFlow::Break(())
                } else {
                    super::ControlFlow::Continue(())
                }
            })
            .unwrap();
            assert_eq!(left, 0);
        }
    }
}
