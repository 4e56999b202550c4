//! A database that bbolt does not open, read for what is left of it.
//!
//! Every page is looked at for itself. Roots are among them: the newest whose tree is whole is as
//! good as a meta page that leads to it. Where none is whole the newest is gone through as far as
//! it can be read, and what is missing is named by its range of revisions. Leaves that no tree
//! leads to, freed ones among them, fill those ranges and add what is newer than the tree;
//! elsewhere the tree's word counts, so that nothing comes back that was compacted. What comes from
//! such leaves is uncertain, and is named: a later change of the same key may have been on a page
//! that is lost.
//!
//! bbolt has no checksums but those of the meta pages: a value that was changed in place and still
//! parses cannot be told from a good one.

pub mod merge;
pub mod report;
pub mod scan;
pub mod tree;

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Result, ensure};

use super::rebuild::edits::{Contents, Visitor};
use crate::etcd::format::bbolt::meta::{self, NO_FREELIST};
use crate::etcd::format::bbolt::{Bucket, Meta, Page, Seen};
use crate::etcd::format::file::File;
use crate::etcd::operations::salvage::merge::{Element, Merge};
use crate::etcd::operations::salvage::scan::{
    At, Leaf, Scan, holds_buckets, holds_history, holds_values,
};
use crate::etcd::operations::salvage::tree::{Look, Missing};
use crate::etcd::read::backend::{Facts, KEY, KeyValue, LEASE, META, Revision};
use crate::tree::TreeResult;

/// Roots that are looked at, the newest first.
const MAX_CANDIDATES: usize = 16;
/// One revision in so many may be missing from a tree without an unreadable page.
const TOLERATED: i64 = 50;
/// More gaps than a damaged tree of any size has.
const MAX_GAPS: usize = 1_000_000;
/// Leases that are made anew, at most.
const MAX_LEASES: usize = 1_000_000;

/// What could be found in a file.
#[derive(Debug)]
pub struct Salvage {
    file: File,
    meta: Meta,
    tree: Option<Candidate>,
    /// Leaves that may count, in the order of their first elements.
    leaves: Vec<Leaf>,
    /// What the tree does not show of the history; everything where there is no tree.
    missing: Missing,
    newest: Option<At>,
    /// What the small buckets say, as far as they are there.
    pub facts: Facts,
    /// Whether there were more leaves than are kept.
    pub is_cut: bool,
}

/// A root and what can be read below it.
#[derive(Debug)]
struct Candidate {
    buckets: BTreeMap<Vec<u8>, Bucket>,
    consistent_index: u64,
    leaves: Vec<Leaf>,
    missing: Missing,
    /// Other buckets of which something is missing.
    damaged: BTreeSet<Vec<u8>>,
    seen: Seen,
}

impl Candidate {
    fn is_whole(&self) -> bool {
        self.missing.spans.is_empty() && self.damaged.is_empty()
    }
}

impl Salvage {
    /// Looks through a file. Reads it some times from end to end.
    ///
    /// # Errors
    /// As the tree gives them, and where nothing of etcd's is found at all.
    pub fn scan(file: File) -> Result<Self> {
        let metas = meta::read_both(&file)?;
        let page_size = match metas.iter().flatten().next() {
            Some(meta) => meta.page_size,
            None => scan::page_size(&file)?,
        };
        let pages = file.size() / page_size;
        let meta = Meta {
            slot: 0,
            page_size,
            root: 0,
            freelist: NO_FREELIST,
            pages,
            transaction: 0,
        };
        let Scan {
            mut leaves,
            mut roots,
            is_cut,
        } = scan::scan(&file, &meta)?;
        roots.extend(metas.iter().flatten().map(|meta| meta.root));
        let tree = best(&file, &meta, roots)?;
        ensure!(
            tree.is_some() || !leaves.is_empty(),
            "no page of an etcd database was found in it"
        );
        let (missing, newest) = match &tree {
            Some(tree) => (
                tree.missing.clone(),
                tree.leaves.iter().map(|leaf| leaf.last).max(),
            ),
            None => (everything(), None),
        };
        if let Some(tree) = &tree {
            leaves.retain(|leaf| !tree.seen.has(leaf.id) && may_count(leaf, &missing, newest));
            leaves.extend(&tree.leaves);
        }
        leaves.sort_unstable_by_key(|leaf| leaf.first);
        let mut salvage = Self {
            file,
            meta,
            tree,
            leaves,
            missing,
            newest,
            facts: Facts::default(),
            is_cut,
        };
        salvage.facts = Facts::read(&mut |bucket, visitor| {
            salvage.small(bucket, visitor);
            Ok(())
        })?;
        Ok(salvage)
    }

    fn small(&self, name: &[u8], visitor: &mut dyn FnMut(&[u8], &[u8])) {
        let Some(bucket) = self.tree.as_ref().and_then(|tree| tree.buckets.get(name)) else {
            return;
        };
        Look::new(&self.file, &self.meta)
            .bucket(bucket, holds_values, &mut |page| elements(page, visitor));
    }

    /// Whether a root was found whose tree is whole.
    pub fn is_whole(&self) -> bool {
        self.tree.as_ref().is_some_and(Candidate::is_whole)
    }

    /// Whether any root was found.
    pub fn has_tree(&self) -> bool {
        self.tree.is_some()
    }

    /// Buckets beside the history of which something or everything is missing.
    pub fn damaged(&self) -> Vec<&[u8]> {
        match &self.tree {
            Some(tree) => tree.damaged.iter().map(Vec::as_slice).collect(),
            None => vec![
                LEASE,
                crate::etcd::read::backend::AUTH,
                crate::etcd::read::backend::CLUSTER,
                META,
            ],
        }
    }

    /// What is missing of the history, as keys of the bucket.
    pub fn missing(&self) -> &Missing {
        &self.missing
    }

    /// Every element of the history, in order.
    ///
    /// # Errors
    /// Those of the visitor.
    pub fn history(&self, visitor: &mut dyn FnMut(Element<'_>) -> Result<()>) -> Result<()> {
        if self.leaves.is_empty() {
            return self.inline(visitor);
        }
        Merge::new(
            &self.file,
            &self.meta,
            &self.leaves,
            &self.missing,
            self.newest,
        )
        .run(visitor)
    }

    /// The history of a database that was hardly used: it lies in the root's own page.
    fn inline(&self, visitor: &mut dyn FnMut(Element<'_>) -> Result<()>) -> Result<()> {
        let bucket = self.tree.as_ref().and_then(|tree| tree.buckets.get(KEY));
        let Some(Bucket::Inline(bytes)) = bucket else {
            return Ok(());
        };
        let page = Page::inline(bytes.clone());
        for index in 0..page.count() {
            let (Some(at), Ok(item)) = (scan::at(&page, index), page.leaf(index)) else {
                continue;
            };
            visitor(Element {
                key: item.key,
                value: item.value,
                at,
                is_uncertain: false,
                is_disputed: false,
            })?;
        }
        Ok(())
    }

    /// Leases that keys hang on and that are not there any more, where the bucket of leases is
    /// damaged. Without one a key that should go by itself (an event, an API server's own lease)
    /// would stay for ever.
    ///
    /// # Errors
    /// As [`Salvage::history`].
    pub fn lost_leases(&self) -> Result<BTreeSet<i64>> {
        let mut lost = BTreeSet::new();
        if self.damaged().contains(&LEASE) {
            self.history(&mut |element| {
                let lease = KeyValue::parse(element.value).map_or(0, |kv| kv.lease);
                if lease != 0 && !self.facts.leases.contains(&lease) && lost.len() < MAX_LEASES {
                    lost.insert(lease);
                }
                Ok(())
            })?;
        }
        Ok(lost)
    }
}

impl Contents for Salvage {
    fn page_size(&self) -> u64 {
        self.meta.page_size
    }

    fn buckets(&self) -> Result<Vec<Vec<u8>>> {
        let there = self
            .tree
            .iter()
            .flat_map(|tree| tree.buckets.keys().cloned());
        Ok(there
            .chain([KEY.to_vec()])
            .collect::<BTreeSet<_>>()
            .into_iter()
            .collect())
    }

    fn each(&self, bucket: &[u8], visitor: &mut Visitor<'_>) -> Result<()> {
        if bucket == KEY {
            return self.history(&mut |element| visitor(element.key, element.value));
        }
        let mut failed = Ok(());
        self.small(bucket, &mut |key, value| {
            if failed.is_ok() {
                failed = visitor(key, value);
            }
        });
        failed
    }
}

/// The elements of a leaf that are no buckets.
fn elements(page: &Page, visitor: &mut dyn FnMut(&[u8], &[u8])) {
    for index in 0..page.count() {
        if let Ok(item) = page.leaf(index)
            && !item.is_bucket
            && !item.key.is_empty()
        {
            visitor(item.key, item.value);
        }
    }
}

fn everything() -> Missing {
    Missing {
        spans: vec![(None, None)],
    }
}

/// Whether anything in a leaf that the tree does not lead to can be of use.
fn may_count(leaf: &Leaf, missing: &Missing, newest: Option<At>) -> bool {
    let (first, last) = (leaf.first.0.to_key(), leaf.last.0.to_key());
    let touches = |(from, to): &tree::Span| {
        // A deletion's key is one byte longer: the comparison errs on the side of keeping.
        from.as_deref()
            .is_none_or(|from| from.get(..17).unwrap_or(from) <= last.as_slice())
            && to.as_deref().is_none_or(|to| first.as_slice() < to)
    };
    newest.is_none_or(|newest| leaf.last > newest) || missing.spans.iter().any(touches)
}

/// The newest whole tree, else the newest of those of which most can be read. Of a root whose tree
/// cannot be right only the small buckets are taken, and only where there is no better one.
fn best(file: &File, meta: &Meta, roots: Vec<u64>) -> TreeResult<Option<Candidate>> {
    let roots: BTreeSet<u64> = roots.into_iter().collect();
    let mut ranked: Vec<(u64, u64)> = roots
        .into_iter()
        .map(|root| {
            (
                facts(file, meta, &buckets(file, meta, root)).consistent_index,
                root,
            )
        })
        .collect();
    ranked.sort_unstable_by(|a, b| b.cmp(a));
    let mut best: Option<Candidate> = None;
    for (_, root) in ranked.into_iter().take(MAX_CANDIDATES) {
        let candidate = look(file, meta, root);
        if candidate.is_whole() {
            return Ok(Some(candidate));
        }
        // An older one must show clearly more.
        let has_more = |best: &Candidate| candidate.leaves.len() * 9 / 10 > best.leaves.len();
        if best.as_ref().is_none_or(has_more) {
            best = Some(candidate);
        }
    }
    Ok(best.filter(|best| !best.buckets.is_empty()))
}

/// The buckets below a root.
fn buckets(file: &File, meta: &Meta, root: u64) -> BTreeMap<Vec<u8>, Bucket> {
    let mut buckets = BTreeMap::new();
    Look::new(file, meta).bucket(&Bucket::Page(root), holds_buckets, &mut |page| {
        for index in 0..page.count() {
            if let Ok(item) = page.leaf(index)
                && item.is_bucket
                && let Some(bucket) = Bucket::from_value(item.value)
            {
                buckets.insert(item.key.to_vec(), bucket);
            }
        }
    });
    buckets
}

/// What the small buckets say.
fn facts(file: &File, meta: &Meta, buckets: &BTreeMap<Vec<u8>, Bucket>) -> Facts {
    let read = Facts::read(&mut |name, visitor| {
        if let Some(bucket) = buckets.get(name).filter(|_| name == META) {
            Look::new(file, meta).bucket(bucket, holds_values, &mut |page| elements(page, visitor));
        }
        Ok(())
    });
    read.unwrap_or_default()
}

/// How far the history that a tree leads to is without gaps. Revisions after a compaction are all
/// there, and so are the changes of each: a tree that shows it otherwise, where nothing of it is
/// unreadable, leads to a page that was freed and used again.
struct Density {
    compacted: i64,
    before: Revision,
    /// Both sides of each gap.
    gaps: Vec<(Revision, Revision)>,
}

impl Density {
    fn new(compacted: i64) -> Self {
        // The first write of all has revision 2.
        let before = Revision {
            main: compacted.max(1),
            sub: i64::MAX,
        };
        Self {
            compacted,
            before,
            gaps: Vec::new(),
        }
    }

    fn add(&mut self, page: &Page) {
        for (at, _) in (0..page.count()).filter_map(|index| scan::at(page, index)) {
            let follows = match at.main == self.before.main {
                true => self.before.sub.checked_add(1) == Some(at.sub),
                false => self.before.main.checked_add(1) == Some(at.main) && at.sub == 0,
            };
            if at.main > self.compacted && !follows && self.gaps.len() < MAX_GAPS {
                self.gaps.push((self.before, at));
            }
            if at.main > self.compacted {
                self.before = at;
            }
        }
    }

    /// Whether what cannot be read explains the gaps, but for a few: an element that is damaged by
    /// itself is not there either.
    fn is_explained(&self, missing: &Missing) -> bool {
        let explained =
            |after: Revision, before: Revision| missing.touches(&after.to_key(), &before.to_key());
        let unexplained = self
            .gaps
            .iter()
            .filter(|(after, before)| !explained(*after, *before));
        let lost = unexplained.fold(0i64, |sum, (after, before)| {
            sum.saturating_add(before.main.saturating_sub(after.main).max(1))
        });
        let all = self.before.main.saturating_sub(self.compacted.max(1));
        self.gaps.len() < MAX_GAPS && lost <= all / TOLERATED
    }
}

fn look(file: &File, meta: &Meta, root: u64) -> Candidate {
    let mut look = Look::new(file, meta);
    let mut buckets = BTreeMap::new();
    let mut damaged = BTreeSet::new();
    let above = look.bucket(&Bucket::Page(root), holds_buckets, &mut |page| {
        for index in 0..page.count() {
            let Ok(item) = page.leaf(index) else { continue };
            match Bucket::from_value(item.value) {
                Some(bucket) => drop(buckets.insert(item.key.to_vec(), bucket)),
                None => drop(damaged.insert(item.key.to_vec())),
            }
        }
    });
    let Facts {
        compacted,
        consistent_index,
        ..
    } = facts(file, meta, &buckets);
    let mut leaves = Vec::new();
    let mut missing = everything();
    for (name, bucket) in &buckets {
        if name == KEY {
            let mut density = Density::new(compacted);
            missing = look.bucket(bucket, holds_history, &mut |page| {
                density.add(page);
                // An inline page has no number; it is read with its root only.
                leaves.extend(Leaf::of(page).map(|leaf| Leaf {
                    is_reached: true,
                    ..leaf
                }));
            });
            if !density.is_explained(&missing) || leaves.iter().any(|leaf| leaf.id == 0) {
                leaves.clear();
                missing = everything();
            }
        } else if !look
            .bucket(bucket, holds_values, &mut |_| {})
            .spans
            .is_empty()
        {
            damaged.insert(name.clone());
        }
    }
    if !above.spans.is_empty() {
        damaged.insert(META.to_vec());
    }
    let seen = if leaves.is_empty() {
        Seen::new(meta.pages)
    } else {
        look.seen
    };
    Candidate {
        buckets,
        consistent_index,
        leaves,
        missing,
        damaged,
        seen,
    }
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::report::Report;
    use super::*;
    use crate::etcd::format::proto::{put_bytes, put_number};
    use crate::etcd::read::backend::Revision;
    use crate::etcd::read::sample::sound_database;
    use crate::etcd::write::bbolt::DatabaseWriter;
    use crate::guest::GuestPath;
    use crate::tree::MemoryTree;

    const PAGE: usize = 4096;

    /// 3000 writes to 1000 keys.
    fn database() -> Vec<u8> {
        let mut out = Cursor::new(Vec::new());
        let mut writer = DatabaseWriter::new(&mut out, PAGE as u64).unwrap();
        writer.bucket(KEY).unwrap();
        for main in 2..3002i64 {
            let mut value = Vec::new();
            put_bytes(
                &mut value,
                1,
                format!("/registry/{}", main % 1000).as_bytes(),
            );
            put_number(&mut value, 3, main as u64);
            put_bytes(&mut value, 5, &[7; 60]);
            writer
                .put(&Revision { main, sub: 0 }.to_key(), &value)
                .unwrap();
        }
        writer.bucket(META).unwrap();
        writer
            .put(b"consistent_index", &9u64.to_be_bytes())
            .unwrap();
        writer.finish().unwrap();
        out.into_inner()
    }

    fn salvage(bytes: &[u8]) -> Result<Salvage> {
        let guest = MemoryTree::new().file("/db", bytes).into_guest();
        Salvage::scan(File::open(&guest, &GuestPath::new("/db")).unwrap())
    }

    fn report(bytes: &[u8]) -> (Report, usize) {
        let mut named = 0;
        let report = Report::of(&salvage(bytes).unwrap(), &mut |_| named += 1).unwrap();
        (report, named)
    }

    #[test]
    fn without_metas_the_root_is_found() {
        for (mut bytes, keys) in [(database(), 1000), (sound_database(8), 1)] {
            bytes[..2 * PAGE].fill(0);
            let (report, named) = report(&bytes);
            assert_eq!(
                (report.has_tree, report.keys, named),
                (true, keys, 0),
                "{report:?}"
            );
            assert_eq!(
                (report.missing_revisions, report.uncertain_revisions),
                (0, 0)
            );
        }
    }

    #[test]
    fn without_any_root_all_is_there_and_uncertain() {
        let mut bytes = database();
        bytes[..2 * PAGE].fill(0);
        let root = bytes.len() - PAGE;
        bytes[root..].fill(0);
        let (report, named) = report(&bytes);
        assert_eq!(
            (report.has_tree, report.keys, report.revisions, named),
            (false, 1000, 3000, 1000)
        );
        assert_eq!((report.missing_revisions, report.revision), (0, 3001));
    }

    #[test]
    fn lost_leaves_are_named_by_their_revisions() {
        let mut bytes = database();
        for page in [5, 6, 9] {
            bytes[page * PAGE..(page + 1) * PAGE].fill(0);
        }
        let (report, _) = report(&bytes);
        assert_eq!(
            (report.has_tree, report.is_whole, report.unread_ranges),
            (true, false, 2),
            "{report:?}"
        );
        assert_eq!(
            report.missing_revisions as usize + report.revisions as usize,
            3000
        );
        let within = |gap: &(i64, i64)| {
            report
                .unread
                .iter()
                .any(|unread| unread.0 <= gap.0 && gap.1 <= unread.1)
        };
        assert!(report.gaps.iter().all(within), "{report:?}");
    }

    #[test]
    fn random_damage_neither_panics_nor_hangs() {
        let good = database();
        let mut state = 5u64;
        let mut random = || {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            (state >> 33) as usize
        };
        for _ in 0..60 {
            let mut bytes = good.clone();
            for _ in 0..1 + random() % 200 {
                let at = random() % bytes.len();
                bytes[at] = random() as u8;
            }
            if random() % 2 == 0 {
                bytes[..2 * PAGE].fill(0);
            }
            let (report, _) = report(&bytes);
            // A key's own bytes may be damaged, too.
            assert!(
                report.keys <= report.revisions && report.revisions <= 3000,
                "{report:?}"
            );
        }
        assert!(salvage(&[0; 20_000]).is_err() && salvage(b"").is_err());
    }
}
