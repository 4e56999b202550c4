//! Going through a tree of which pages are damaged: what can be read is given on, what cannot is
//! named by the range of its keys.

use crate::etcd::format::bbolt::walk::MAX_DEPTH;
use crate::etcd::format::bbolt::{Bucket, Item, Meta, Page, Seen, page};
use crate::etcd::format::file::File;

/// Keys from the first to before the second; none is without end.
pub type Span = (Option<Vec<u8>>, Option<Vec<u8>>);

/// More ranges than these are taken for one.
const MAX_SPANS: usize = 100_000;

/// What could not be read of a bucket.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Missing {
    /// In the order of the keys.
    pub spans: Vec<Span>,
}

impl Missing {
    fn add(&mut self, bounds: (Option<&[u8]>, Option<&[u8]>)) {
        let owned = |bound: Option<&[u8]>| bound.map(<[u8]>::to_vec);
        let is_full = self.spans.len() >= MAX_SPANS;
        match self.spans.last_mut() {
            Some(last) if last.1.as_deref() == bounds.0 || is_full => last.1 = owned(bounds.1),
            _ => self.spans.push((owned(bounds.0), owned(bounds.1))),
        }
    }

    /// Whether one of the ranges lies, in part at least, between two keys.
    pub fn touches(&self, after: &[u8], before: &[u8]) -> bool {
        let first = self
            .spans
            .partition_point(|(_, to)| to.as_deref().is_some_and(|to| to <= after));
        self.spans
            .get(first)
            .is_some_and(|(from, _)| from.as_deref().is_none_or(|from| from <= before))
    }

    /// Whether `key` lies in one of the ranges.
    pub fn has(&self, key: &[u8]) -> bool {
        let after = self
            .spans
            .partition_point(|(from, _)| from.as_deref().is_none_or(|from| from <= key));
        let span = after.checked_sub(1).and_then(|at| self.spans.get(at));
        span.is_some_and(|(_, to)| to.as_deref().is_none_or(|to| key < to))
    }
}

/// Takes the leaves that are sound.
pub type Leaves<'v> = dyn FnMut(&Page) + 'v;

/// Goes through trees of one file; each page is read once, so that no loop holds it up.
#[derive(Debug)]
pub struct Look<'a> {
    file: &'a File,
    meta: &'a Meta,
    /// Pages that were read and are sound.
    pub seen: Seen,
    /// What a leaf must be beside sound: a page that was freed and used again looks as good in
    /// another place.
    fits: fn(&Page) -> bool,
}

type Bounds<'b> = (Option<&'b [u8]>, Option<&'b [u8]>);

/// What a tree gives: its sound leaves, and the ranges that could not be read.
struct TreeContents<'l, 'v> {
    leaves: &'l mut Leaves<'v>,
    missing: Missing,
}

impl<'a> Look<'a> {
    /// `meta` says the size of the pages and how many there are.
    pub fn new(file: &'a File, meta: &'a Meta) -> Self {
        Self {
            file,
            meta,
            seen: Seen::new(meta.pages),
            fits: |_| true,
        }
    }

    /// All of a bucket, of leaves that fit.
    pub fn bucket(
        &mut self,
        bucket: &Bucket,
        fits: fn(&Page) -> bool,
        leaves: &mut Leaves<'_>,
    ) -> Missing {
        self.fits = fits;
        let mut contents = TreeContents {
            leaves,
            missing: Missing::default(),
        };
        match bucket {
            Bucket::Page(id) => self.subtree(*id, (None, None), 0, &mut contents),
            Bucket::Inline(bytes) => {
                let page = Page::inline(bytes.clone());
                if is_sound_leaf(&page, (None, None)) && fits(&page) {
                    (contents.leaves)(&page);
                } else {
                    contents.missing.add((None, None));
                }
            }
        }
        contents.missing
    }

    fn subtree(
        &mut self,
        id: u64,
        bounds: Bounds<'_>,
        depth: usize,
        contents: &mut TreeContents<'_, '_>,
    ) {
        let page = page::read(self.file, self.meta, id)
            .ok()
            .filter(|page| depth < MAX_DEPTH && self.is_new(page));
        match page {
            Some(page) if page.is_leaf() && is_sound_leaf(&page, bounds) && (self.fits)(&page) => {
                self.mark(&page);
                (contents.leaves)(&page);
            }
            Some(page) if !page.is_leaf() && is_sound_branch(&page, bounds) => {
                self.mark(&page);
                for index in 0..page.count() {
                    let Ok((key, child)) = page.branch(index) else {
                        continue;
                    };
                    let next = page
                        .branch(index + 1)
                        .ok()
                        .filter(|_| index + 1 < page.count())
                        .map(|(key, _)| key);
                    // The first child holds what is lower than its key, too: its bound is its
                    // parent's.
                    let from = if index == 0 { bounds.0 } else { Some(key) };
                    self.subtree(child, (from, next.or(bounds.1)), depth + 1, contents);
                }
            }
            _ => contents.missing.add(bounds),
        }
    }

    fn is_new(&self, page: &Page) -> bool {
        (page.id()..=page.id().saturating_add(page.overflow())).all(|id| !self.seen.has(id))
    }

    fn mark(&mut self, page: &Page) {
        for id in page.id()..=page.id().saturating_add(page.overflow()) {
            self.seen.mark(id);
        }
    }
}

fn within(key: &[u8], bounds: Bounds<'_>) -> bool {
    bounds.0.is_none_or(|low| low <= key) && bounds.1.is_none_or(|high| key < high)
}

/// Whether all elements can be read, ascend, and lie within the bounds.
pub fn is_sound_leaf(page: &Page, bounds: Bounds<'_>) -> bool {
    let mut last: Option<&[u8]> = None;
    (0..page.count()).all(|index| {
        let Ok(Item { key, .. }) = page.leaf(index) else {
            return false;
        };
        let fits = last.is_none_or(|last| last < key) && within(key, bounds);
        last = Some(key);
        fits
    })
}

fn is_sound_branch(page: &Page, bounds: Bounds<'_>) -> bool {
    let mut last: Option<&[u8]> = None;
    page.count() > 0
        && (0..page.count()).all(|index| {
            let Ok((key, _)) = page.branch(index) else {
                return false;
            };
            let fits = last.is_none_or(|last| last < key) && within(key, bounds);
            last = Some(key);
            fits
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_joined_and_searched() {
        let mut missing = Missing::default();
        missing.add((Some(b"b"), Some(b"d")));
        missing.add((Some(b"d"), Some(b"f")));
        missing.add((Some(b"m"), None));
        assert_eq!(missing.spans.len(), 2);
        for (key, is_missing) in [
            ("a", false),
            ("b", true),
            ("e", true),
            ("f", false),
            ("l", false),
            ("z", true),
        ] {
            assert_eq!(missing.has(key.as_bytes()), is_missing, "{key}");
        }
        assert!(
            missing.touches(b"a", b"c")
                && missing.touches(b"e", b"k")
                && missing.touches(b"k", b"z")
        );
        assert!(!missing.touches(b"f", b"l") && !missing.touches(b"", b"a"));
        let mut all = Missing::default();
        all.add((None, None));
        assert!(all.has(b"") && !Missing::default().has(b"x"));
    }
}
