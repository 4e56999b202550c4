//! The keys' history from leaves that overlap, in the order of its revisions: each once, what the
//! tree leads to before what is only there.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::rc::Rc;

use anyhow::Result;

use super::scan::{self, At, Leaf};
use super::tree::Missing;
use crate::etcd::format::bbolt::{Meta, Page, page};
use crate::etcd::format::file::File;

/// Bytes of pages that are kept decoded.
const KEPT: u64 = 32 << 20;

/// The next element of a leaf that was begun; the least comes first, and of equals the one that is
/// reached, then the page further behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Next {
    at: At,
    is_unreached: bool,
    page: Reverse<u64>,
    index: usize,
}

/// Elements of the history, merged.
#[derive(Debug)]
pub struct Merge<'a> {
    file: &'a File,
    meta: &'a Meta,
    /// In the order of their first elements.
    leaves: &'a [Leaf],
    /// What the tree does not show; elsewhere only what it leads to counts.
    missing: &'a Missing,
    /// What is newer than all that the tree leads to counts, too.
    newest: Option<At>,
    pages: Pages,
}

/// One element.
#[derive(Debug, Clone, Copy)]
pub struct Element<'e> {
    /// Its key in the bucket.
    pub key: &'e [u8],
    /// Its value.
    pub value: &'e [u8],
    /// The revision.
    pub at: At,
    /// Whether the tree does not lead to it.
    pub is_uncertain: bool,
    /// Whether two leaves differ about it.
    pub is_disputed: bool,
}

#[derive(Debug, Default)]
struct Pages {
    by_id: HashMap<u64, Rc<Page>>,
    order: VecDeque<(u64, u64)>,
    bytes: u64,
}

impl Pages {
    fn get(&mut self, file: &File, meta: &Meta, id: u64) -> Option<Rc<Page>> {
        if let Some(page) = self.by_id.get(&id) {
            return Some(Rc::clone(page));
        }
        let page = Rc::new(page::read(file, meta, id).ok()?);
        let bytes = page
            .overflow()
            .saturating_add(1)
            .saturating_mul(meta.page_size);
        self.bytes += bytes;
        self.order.push_back((id, bytes));
        self.by_id.insert(id, Rc::clone(&page));
        while self.bytes > KEPT && self.order.len() > 1 {
            if let Some((oldest, bytes)) = self.order.pop_front() {
                self.by_id.remove(&oldest);
                self.bytes -= bytes;
            }
        }
        Some(page)
    }
}

impl<'a> Merge<'a> {
    /// `leaves` are in the order of their first elements.
    pub fn new(
        file: &'a File,
        meta: &'a Meta,
        leaves: &'a [Leaf],
        missing: &'a Missing,
        newest: Option<At>,
    ) -> Self {
        Self {
            file,
            meta,
            leaves,
            missing,
            newest,
            pages: Pages::default(),
        }
    }

    /// Gives every element to `visitor`.
    ///
    /// # Errors
    /// Those of the visitor.
    pub fn run(mut self, visitor: &mut dyn FnMut(Element<'_>) -> Result<()>) -> Result<()> {
        let mut heap: BinaryHeap<Reverse<Next>> = BinaryHeap::new();
        let mut waiting = self.leaves.iter().peekable();
        let mut held: Option<Held> = None;
        loop {
            // A leaf is begun when nothing before its first element is left.
            let least = heap.peek().map(|next| next.0.at);
            if let Some(leaf) =
                waiting.next_if(|leaf| least.is_none_or(|least| leaf.first <= least))
            {
                heap.extend(self.first(leaf).map(Reverse));
                continue;
            }
            let Some(Reverse(next)) = heap.pop() else {
                break;
            };
            let Some(page) = self.pages.get(self.file, self.meta, next.page.0) else {
                continue;
            };
            if let Some((index, at)) = scan::next(&page, next.index + 1) {
                heap.push(Reverse(Next { at, index, ..next }));
            }
            let Ok(item) = page.leaf(next.index) else {
                continue;
            };
            if next.is_unreached && !self.counts(item.key, next.at) {
                continue;
            }
            match &mut held {
                Some(held) if held.at == next.at => {
                    held.is_disputed |= held.item().is_some_and(|there| there.value != item.value);
                }
                _ => {
                    held.take().map_or(Ok(()), |held| held.give(visitor))?;
                    let Next {
                        at,
                        is_unreached,
                        index,
                        ..
                    } = next;
                    held = Some(Held {
                        page,
                        index,
                        at,
                        is_uncertain: is_unreached,
                        is_disputed: false,
                    });
                }
            }
        }
        held.map_or(Ok(()), |held| held.give(visitor))
    }

    /// The first element of a leaf that can be read.
    fn first(&mut self, leaf: &Leaf) -> Option<Next> {
        let page = self.pages.get(self.file, self.meta, leaf.id)?;
        let (index, at) = scan::next(&page, 0)?;
        Some(Next {
            at,
            is_unreached: !leaf.is_reached,
            page: Reverse(leaf.id),
            index,
        })
    }

    fn counts(&self, key: &[u8], at: At) -> bool {
        self.newest.is_none_or(|newest| at > newest) || self.missing.has(key)
    }
}

/// An element that waits for others of the same revision.
struct Held {
    page: Rc<Page>,
    index: usize,
    at: At,
    is_uncertain: bool,
    is_disputed: bool,
}

impl Held {
    fn item(&self) -> Option<crate::etcd::format::bbolt::Item<'_>> {
        self.page.leaf(self.index).ok()
    }

    fn give(&self, visitor: &mut dyn FnMut(Element<'_>) -> Result<()>) -> Result<()> {
        let Some(item) = self.item() else {
            return Ok(());
        };
        visitor(Element {
            key: item.key,
            value: item.value,
            at: self.at,
            is_uncertain: self.is_uncertain,
            is_disputed: self.is_disputed,
        })
    }
}
