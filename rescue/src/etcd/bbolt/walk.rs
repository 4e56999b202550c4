//! Going through a bucket's tree in the order of its keys, and the check that bbolt does of a whole database (tx_check.go): every page
//! is what it should be and is reached once, keys ascend and lie where their parent says.

use std::ops::ControlFlow;

use super::meta::NO_FREELIST;
use super::{Bucket, Database, Fault, Page};

/// A tree of 2^63 keys is not so deep.
pub const MAX_DEPTH: usize = 40;
/// etcd has 10 buckets, none of them nested.
const MAX_BUCKETS: usize = 10_000;

/// One element of a leaf.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Item<'a> {
    /// The key.
    pub key: &'a [u8],
    /// The value, or a bucket's root.
    pub value: &'a [u8],
    /// Whether it is a bucket.
    pub is_bucket: bool,
}

/// What a check of a whole database counts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Check {
    /// Pages in use, without the two meta pages.
    pub pages: u64,
    /// Pages that are free.
    pub free: u64,
}

/// Pages that were reached.
#[derive(Debug)]
pub struct Seen {
    bits: Vec<u64>,
    count: u64,
}

impl Seen {
    /// `pages` is bounded by the length of the file.
    pub fn new(pages: u64) -> Self {
        Self { bits: vec![0; usize::try_from(pages.div_ceil(64)).unwrap_or(0)], count: 0 }
    }

    /// Whether it is marked.
    pub fn has(&self, page: u64) -> bool {
        let word = usize::try_from(page / 64).ok().and_then(|at| self.bits.get(at));
        word.is_some_and(|word| word & (1 << (page % 64)) != 0)
    }

    /// Marks it. Whether it was not marked before.
    pub fn mark(&mut self, page: u64) -> bool {
        let word = usize::try_from(page / 64).ok().and_then(|at| self.bits.get_mut(at));
        let Some(word) = word else { return false };
        let bit = 1 << (page % 64);
        let is_new = *word & bit == 0;
        *word |= bit;
        self.count += u64::from(is_new);
        is_new
    }
}

/// A walk through one or more buckets.
#[derive(Debug)]
pub struct Walk<'a> {
    pub(super) db: &'a Database,
    pub(super) seen: Option<Seen>,
    /// Keys below it are passed over without reading their pages.
    pub(super) from: Option<&'a [u8]>,
}

type Visitor<'v> = dyn FnMut(Item<'_>) -> ControlFlow<()> + 'v;

impl Walk<'_> {
    pub(super) fn bucket(&mut self, bucket: &Bucket, visitor: &mut Visitor<'_>) -> Result<(), Fault> {
        match bucket {
            Bucket::Page(id) => self.subtree(*id, (None, None), 0, visitor).map(|_| ()),
            Bucket::Inline(bytes) => self.leaf(&Page::inline(bytes.clone()), (None, None), visitor).map(|_| ()),
        }
    }

    /// `bounds`: the first key that may be in it, and the first that may not.
    fn subtree(
        &mut self,
        id: u64,
        bounds: (Option<&[u8]>, Option<&[u8]>),
        depth: usize,
        visitor: &mut Visitor<'_>,
    ) -> Result<ControlFlow<()>, Fault> {
        if depth > MAX_DEPTH {
            return Err(Fault::Implausible(id));
        }
        let page = self.db.page(id)?;
        if let Some(seen) = &mut self.seen {
            for page in id..=id.saturating_add(page.overflow()) {
                if !seen.mark(page) {
                    return Err(Fault::Page { page, what: "multiple references" });
                }
            }
        }
        if page.is_leaf() {
            return self.leaf(&page, bounds, visitor);
        }
        if page.count() == 0 {
            return Err(Fault::Page { page: id, what: "a branch without children" });
        }
        for index in 0..page.count() {
            let (key, child) = page.branch(index)?;
            let next = match index + 1 < page.count() {
                true => Some(page.branch(index + 1)?.0),
                false => bounds.1,
            };
            // The first branch may be lower than what was asked for only by its own page's bounds.
            let low = bounds.0.is_some_and(|low| key < low);
            if low || next.is_some_and(|next| next <= key) {
                return Err(Fault::Page { page: id, what: "its keys are out of order" });
            }
            if self.from.is_some_and(|from| next.is_some_and(|next| next <= from)) {
                continue;
            }
            if self.subtree(child, (Some(key), next), depth + 1, visitor)?.is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    fn leaf(
        &mut self,
        page: &Page,
        bounds: (Option<&[u8]>, Option<&[u8]>),
        visitor: &mut Visitor<'_>,
    ) -> Result<ControlFlow<()>, Fault> {
        let mut last: Option<&[u8]> = None;
        for index in 0..page.count() {
            let item = page.leaf(index)?;
            let ascends = last.is_none_or(|last| last < item.key);
            let low = bounds.0.is_some_and(|low| item.key < low);
            let high = bounds.1.is_some_and(|high| item.key >= high);
            if !ascends || low || high {
                return Err(Fault::Page { page: page.id(), what: "its keys are out of order" });
            }
            last = Some(item.key);
            if self.from.is_some_and(|from| item.key < from) {
                continue;
            }
            if visitor(item).is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
        Ok(ControlFlow::Continue(()))
    }
}

pub(super) fn check(db: &Database, visitor: &mut dyn FnMut(&[u8], Item<'_>)) -> Result<Check, Fault> {
    let meta = *db.meta();
    let mut walk = Walk { db, seen: Some(Seen::new(meta.pages)), from: None };
    // Buckets within buckets are checked, too, though etcd has none.
    let mut buckets: Vec<(Vec<u8>, Bucket)> = Vec::new();
    let mut queue = vec![(Vec::new(), Bucket::Page(meta.root))];
    let mut too_many = false;
    while let Some((name, bucket)) = queue.pop() {
        walk.bucket(&bucket, &mut |item| {
            if !item.is_bucket {
                visitor(&name, item);
                return ControlFlow::Continue(());
            }
            match Bucket::from_value(item.value) {
                Some(below) if buckets.len() < MAX_BUCKETS => {
                    let name = if name.is_empty() { item.key.to_vec() } else { [&name, &b"/"[..], item.key].concat() };
                    buckets.push((name, below));
                }
                _ => too_many = true,
            }
            if too_many { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })?;
        if too_many {
            return Err(Fault::Page { page: meta.root, what: "a bucket that is none" });
        }
        queue.extend(buckets.drain(..).rev());
        if queue.len() > MAX_BUCKETS {
            return Err(Fault::Implausible(meta.root));
        }
    }
    let mut seen = walk.seen.unwrap_or(Seen::new(0));
    if meta.freelist != NO_FREELIST && (2..meta.pages).contains(&meta.freelist) {
        seen.mark(meta.freelist);
    }
    Ok(Check { pages: seen.count, free: meta.pages.saturating_sub(2).saturating_sub(seen.count) })
}
