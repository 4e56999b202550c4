//! Going through a bucket's tree in the order of its keys, and the check that bbolt does of a whole
//! database (tx_check.go): every page is what it should be and is reached once, keys ascend and lie
//! where their parent says.

use std::ops::ControlFlow;

use super::meta::NO_FREELIST;
use super::{Bucket, Database, Fault, Page, stream};

/// A tree of 2^63 keys is not so deep.
pub const MAX_DEPTH: usize = 40;
/// From this size on a second thread is worth its while.
pub(super) const LARGE: u64 = 8 << 20;
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
        Self {
            bits: vec![0; usize::try_from(pages.div_ceil(64)).unwrap_or(0)],
            count: 0,
        }
    }

    /// Whether it is marked.
    pub fn has(&self, page: u64) -> bool {
        let word = usize::try_from(page / 64)
            .ok()
            .and_then(|at| self.bits.get(at));
        word.is_some_and(|word| word & (1 << (page % 64)) != 0)
    }

    /// Marks it. Whether it was not marked before.
    pub fn mark(&mut self, page: u64) -> bool {
        let word = usize::try_from(page / 64)
            .ok()
            .and_then(|at| self.bits.get_mut(at));
        let Some(word) = word else { return false };
        let bit = 1 << (page % 64);
        let is_new = *word & bit == 0;
        *word |= bit;
        self.count += u64::from(is_new);
        is_new
    }

    /// Marks a page and those that it spans beyond the first.
    ///
    /// # Errors
    /// [`Fault::Page`] where one is marked already.
    pub fn mark_all(&mut self, id: u64, overflow: u64) -> Result<(), Fault> {
        match (id..=id.saturating_add(overflow)).find(|page| !self.mark(*page)) {
            Some(page) => Err(Fault::Page {
                page,
                what: "multiple references",
            }),
            None => Ok(()),
        }
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

/// Takes elements until it breaks.
pub(super) type Visitor<'v> = dyn FnMut(Item<'_>) -> ControlFlow<()> + 'v;

/// The first key that may be in a page, and the first that may not.
pub(super) type Bounds<'k> = (Option<&'k [u8]>, Option<&'k [u8]>);

impl Walk<'_> {
    pub(super) fn bucket(
        &mut self,
        bucket: &Bucket,
        visitor: &mut Visitor<'_>,
    ) -> Result<(), Fault> {
        match bucket {
            Bucket::Page(id) => self.tree(*id, visitor).map(|_| ()),
            Bucket::Inline(bytes) => leaf(
                &Page::inline(bytes.clone()),
                (None, None),
                self.from,
                visitor,
            )
            .map(|_| ()),
        }
    }

    /// The whole of a large tree is gone through with two threads, where the file can be held open.
    fn tree(&mut self, id: u64, visitor: &mut Visitor<'_>) -> Result<ControlFlow<()>, Fault> {
        let root = self.page(id)?;
        if self.from.is_none()
            && !root.is_leaf()
            && self.db.size() >= LARGE
            && let Some(held) = self.db.file.hold()?
            && let Some(done) =
                stream::walk(&held, *self.db.meta(), &root, self.seen.as_mut(), visitor)
        {
            return done;
        }
        self.subtree(&root, (None, None), 0, visitor)
    }

    fn page(&mut self, id: u64) -> Result<Page, Fault> {
        let page = self.db.page(id)?;
        if let Some(seen) = &mut self.seen {
            seen.mark_all(id, page.overflow())?;
        }
        Ok(page)
    }

    fn subtree(
        &mut self,
        page: &Page,
        bounds: Bounds<'_>,
        depth: usize,
        visitor: &mut Visitor<'_>,
    ) -> Result<ControlFlow<()>, Fault> {
        if page.is_leaf() {
            return leaf(page, bounds, self.from, visitor);
        }
        if page.count() == 0 {
            return Err(Fault::Page {
                page: page.id(),
                what: "a branch without children",
            });
        }
        for index in 0..page.count() {
            let Child {
                key,
                page: id,
                next,
            } = child(page, index, bounds)?;
            if self
                .from
                .is_some_and(|from| next.is_some_and(|next| next <= from))
            {
                continue;
            }
            if depth + 1 > MAX_DEPTH {
                return Err(Fault::Implausible(id));
            }
            let below = self.page(id)?;
            if self
                .subtree(&below, (Some(key), next), depth + 1, visitor)?
                .is_break()
            {
                return Ok(ControlFlow::Break(()));
            }
        }
        Ok(ControlFlow::Continue(()))
    }
}

/// A child of a branch.
pub(super) struct Child<'k> {
    /// Its first key.
    pub key: &'k [u8],
    /// Its page.
    pub page: u64,
    /// The first key behind it.
    pub next: Option<&'k [u8]>,
}

/// Child `index` of a branch, whose keys are to lie where its parent says.
pub(super) fn child<'k>(
    page: &'k Page,
    index: usize,
    bounds: Bounds<'k>,
) -> Result<Child<'k>, Fault> {
    let (key, child) = page.branch(index)?;
    let next = match index + 1 < page.count() {
        true => Some(page.branch(index + 1)?.0),
        false => bounds.1,
    };
    // The first branch may be lower than what was asked for only by its own page's bounds.
    let low = bounds.0.is_some_and(|low| key < low);
    if low || next.is_some_and(|next| next <= key) {
        return Err(Fault::Page {
            page: page.id(),
            what: "its keys are out of order",
        });
    }
    Ok(Child {
        key,
        page: child,
        next,
    })
}

/// Checks a leaf's elements and gives those from `from` on.
pub(super) fn leaf<B: AsRef<[u8]>>(
    page: &Page<B>,
    bounds: Bounds<'_>,
    from: Option<&[u8]>,
    visitor: &mut Visitor<'_>,
) -> Result<ControlFlow<()>, Fault> {
    let mut last: Option<&[u8]> = None;
    for index in 0..page.count() {
        let item = page.leaf(index)?;
        let ascends = last.is_none_or(|last| last < item.key);
        let low = bounds.0.is_some_and(|low| item.key < low);
        let high = bounds.1.is_some_and(|high| item.key >= high);
        if !ascends || low || high {
            return Err(Fault::Page {
                page: page.id(),
                what: "its keys are out of order",
            });
        }
        last = Some(item.key);
        if from.is_some_and(|from| item.key < from) {
            continue;
        }
        if visitor(item).is_break() {
            return Ok(ControlFlow::Break(()));
        }
    }
    Ok(ControlFlow::Continue(()))
}

pub(super) fn check(
    db: &Database,
    visitor: &mut dyn FnMut(&[u8], Item<'_>),
) -> Result<Check, Fault> {
    let meta = *db.meta();
    let mut walk = Walk {
        db,
        seen: Some(Seen::new(meta.pages)),
        from: None,
    };
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
                    let name = if name.is_empty() {
                        item.key.to_vec()
                    } else {
                        [&name, &b"/"[..], item.key].concat()
                    };
                    buckets.push((name, below));
                }
                _ => too_many = true,
            }
            if too_many {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        })?;
        if too_many {
            return Err(Fault::Page {
                page: meta.root,
                what: "a bucket that is none",
            });
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
    Ok(Check {
        pages: seen.count,
        free: meta.pages.saturating_sub(2).saturating_sub(seen.count),
    })
}
