//! Every page of a file looked at for itself: leaves with the keys' history, and roots. bbolt never
//! writes over a page that is in use, so those that were freed are there, too, until they are used
//! again.

use super::tree::is_sound_leaf;
use crate::etcd::format::bbolt::{Item, Meta, Page, page};
use crate::etcd::format::file::File;
use crate::etcd::read::backend::{KeyValue, Revision};
use crate::tree::TreeResult;

/// Names of etcd's buckets: a leaf that holds only these is, or was, a root.
const BUCKETS: [&[u8]; 10] = [
    b"alarm",
    b"auth",
    b"authRoles",
    b"authUsers",
    b"cluster",
    b"key",
    b"lease",
    b"members",
    b"members_removed",
    b"meta",
];

/// Leaves that are kept in memory, 64 bytes each.
const MAX_LEAVES: usize = 2_000_000;
/// Old roots are soon written over.
const MAX_ROOTS: usize = 100_000;
const READ_AT_ONCE: usize = 1 << 20;
/// Pages looked at to tell how large they are.
const SAMPLES: u64 = 2000;

/// Where an element stands in the keys' history: revision, and whether it is a deletion.
pub type At = (Revision, bool);

/// A leaf of the keys' history.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Leaf {
    /// Its page.
    pub id: u64,
    /// Its first element.
    pub first: At,
    /// Its last.
    pub last: At,
    /// Whether the tree leads to it.
    pub is_reached: bool,
}

/// What looking at every page gives.
#[derive(Debug, Default)]
pub struct Scan {
    /// Leaves of the keys' history, in the order of their pages.
    pub leaves: Vec<Leaf>,
    /// Leaves that are, or were, the root.
    pub roots: Vec<u64>,
    /// Whether there were more than are kept.
    pub is_cut: bool,
}

/// The size of the pages of a file whose meta pages do not say it: what most pages agree with by
/// their own number.
///
/// # Errors
/// As the tree gives them.
pub fn page_size(file: &File) -> TreeResult<u64> {
    let (mut best, mut most) = (4096, 0);
    for size in [4096, 65_536, 16_384, 8192, 2048, 1024] {
        let pages = file.size() / size;
        let step = (pages / SAMPLES).max(1);
        let mut fits = 0;
        for id in (2..pages).step_by(usize::try_from(step).unwrap_or(usize::MAX)) {
            fits += u64::from(is_own(&file.read(id * size, 16)?, id));
        }
        // Of 4 KiB pages every second is one of 8 KiB at half the number: that number is never its
        // own.
        if fits > most {
            (best, most) = (size, fits);
        }
    }
    Ok(best)
}

/// Whether a header is that of a branch or leaf with this number.
fn is_own(header: &[u8], id: u64) -> bool {
    let number = header
        .get(..8)
        .and_then(|bytes| bytes.try_into().ok())
        .map(u64::from_le_bytes);
    number == Some(id) && matches!(header.get(8..10), Some([1 | 2, 0]))
}

/// Looks at every page.
///
/// # Errors
/// As the tree gives them.
pub fn scan(file: &File, meta: &Meta) -> TreeResult<Scan> {
    let mut scan = Scan::default();
    let size = usize::try_from(meta.page_size).unwrap_or(4096).max(16);
    let at_once = (READ_AT_ONCE / size).max(1);
    let mut id = 0;
    while id < meta.pages {
        let bytes = file.read_once(id.saturating_mul(meta.page_size), at_once * size)?;
        for header in bytes.chunks(size) {
            if id >= 2 && is_own(header, id) && header.get(8) == Some(&2) {
                scan.look(file, meta, id);
            }
            id += 1;
        }
        if bytes.len() < at_once * size {
            break;
        }
    }
    Ok(scan)
}

impl Scan {
    fn look(&mut self, file: &File, meta: &Meta, id: u64) {
        let Ok(page) = page::read(file, meta, id) else {
            return;
        };
        if page.count() == 0 || !is_sound_leaf(&page, (None, None)) {
            return;
        }
        if is_root(&page) {
            self.is_cut |= self.roots.len() >= MAX_ROOTS;
            if self.roots.len() < MAX_ROOTS {
                self.roots.push(id);
            }
        } else if let Some(leaf) = history(&page) {
            self.is_cut |= self.leaves.len() >= MAX_LEAVES;
            if self.leaves.len() < MAX_LEAVES {
                self.leaves.push(leaf);
            }
        }
    }
}

fn is_root(page: &Page) -> bool {
    let is_key = |index| page.leaf(index).is_ok_and(|item| item.key == b"key");
    holds_buckets(page) && (0..page.count()).any(is_key)
}

/// Whether all elements of a leaf are etcd's buckets.
pub fn holds_buckets(page: &Page) -> bool {
    let is_bucket = |item: Item<'_>| item.is_bucket && BUCKETS.contains(&item.key);
    (0..page.count()).all(|index| page.leaf(index).is_ok_and(is_bucket))
}

/// Whether no element of a leaf is a bucket.
pub fn holds_values(page: &Page) -> bool {
    (0..page.count()).all(|index| page.leaf(index).is_ok_and(|item| !item.is_bucket))
}

/// Whether a leaf holds the keys' history: a few of its elements may be damaged.
pub fn holds_history(page: &Page) -> bool {
    let good = (0..page.count())
        .filter(|index| at(page, *index).is_some())
        .count();
    good * 2 >= page.count()
}

/// A leaf all of whose elements are of the keys' history.
fn history(page: &Page) -> Option<Leaf> {
    let all = (0..page.count()).all(|index| at(page, index).is_some());
    Leaf::of(page).filter(|_| all)
}

impl Leaf {
    /// From the elements that are of the keys' history; `None` where there is none.
    pub fn of(page: &Page) -> Option<Self> {
        let (_, first) = next(page, 0)?;
        let (_, last) = (0..page.count())
            .rev()
            .find_map(|index| Some((index, at(page, index)?)))?;
        Some(Self {
            id: page.id(),
            first,
            last,
            is_reached: false,
        })
    }
}

/// The first element from `index` on that is of the keys' history, and where it stands.
pub fn next(page: &Page, index: usize) -> Option<(usize, At)> {
    (index..page.count()).find_map(|index| Some((index, at(page, index)?)))
}

/// Where element `index` stands, if it is of the keys' history.
pub fn at(page: &Page, index: usize) -> Option<At> {
    let item = page.leaf(index).ok().filter(|item| !item.is_bucket)?;
    element(item.key, item.value)
}

/// Where an element stands, if it is one that etcd writes: its value must say the same as its key.
/// The empty value is what raises a revision when a cluster is restored.
pub fn element(key: &[u8], value: &[u8]) -> Option<At> {
    let (revision, is_deletion) = Revision::parse(key)?;
    let kv = KeyValue::parse(value).ok()?;
    let fits = match is_deletion {
        true => kv.modified == 0 || kv.modified == revision.main,
        false => kv.modified == revision.main || value.is_empty(),
    };
    (fits && revision.main > 0 && revision.sub >= 0).then_some((revision, is_deletion))
}
