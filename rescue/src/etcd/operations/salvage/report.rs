//! What a salvage brings back, counted: keys, revisions that are missing, keys whose newest value
//! is uncertain.

use anyhow::Result;
use serde::Serialize;

use super::Salvage;
use super::tree::Span;
use crate::etcd::read::backend::{KeyValue, Revision};
use crate::etcd::read::history::History;

/// Ranges that are kept for the report.
const MAX_GAPS: usize = 1000;

/// Counts of what is there and what is not.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Whether a root was found whose tree is whole: then nothing of it is missing, and nothing is
    /// uncertain but what is newer than it.
    pub is_whole: bool,
    /// Whether a root was found at all.
    pub has_tree: bool,
    /// The last entry of the log that the root found says it holds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub consistent_index: Option<u64>,
    /// Keys that are there.
    pub keys: u64,
    /// Of these, keys whose newest value was found only on a page that no tree leads to.
    pub uncertain_keys: u64,
    /// Entries of the history.
    pub revisions: u64,
    /// Of these, entries that no tree leads to.
    pub uncertain_revisions: u64,
    /// The newest revision.
    pub revision: i64,
    /// History up to here was compacted, where that is known; -1 otherwise.
    pub compact_revision: i64,
    /// Revisions after the compaction that are nowhere: each was a write.
    pub missing_revisions: u64,
    /// They, from and to, as far as they are listed.
    pub gaps: Vec<(i64, i64)>,
    /// Revisions of several changes of which some are nowhere, as far as that shows: their last
    /// ones may be missing without a trace.
    pub partial_revisions: u64,
    /// They, as far as they are listed.
    pub partial: Vec<i64>,
    /// Ranges of the tree that could not be read.
    pub unread_ranges: usize,
    /// They, as revisions from and to; of the first and last of each only some changes. What lay on
    /// other pages was filled in.
    pub unread: Vec<(i64, i64)>,
    /// Buckets beside the history of which something is missing.
    pub damaged_buckets: Vec<String>,
    /// Leases that are made anew, for an hour: those that keys hang on.
    pub leases_made: usize,
    /// Whether there were more pages with history than are kept.
    pub is_cut: bool,
}

impl Report {
    /// Goes through all of it. `uncertain` is told the keys, in the order of their revisions.
    ///
    /// # Errors
    /// Those of the guest's file system.
    pub fn of(salvage: &Salvage, uncertain: &mut dyn FnMut(&[u8])) -> Result<Self> {
        let compacted = salvage.facts.compacted;
        let mut report = Self {
            is_whole: salvage.is_whole(),
            has_tree: salvage.has_tree(),
            consistent_index: salvage.tree.as_ref().map(|tree| tree.consistent_index),
            compact_revision: compacted,
            unread_ranges: if salvage.has_tree() {
                salvage.missing().spans.len()
            } else {
                0
            },
            damaged_buckets: salvage
                .damaged()
                .iter()
                .map(|name| name.escape_ascii().to_string())
                .collect(),
            leases_made: salvage.lost_leases()?.len(),
            is_cut: salvage.is_cut,
            ..Self::default()
        };
        report.count_revisions(salvage)?;
        if salvage.has_tree() {
            let spans = salvage.missing().spans.iter().take(MAX_GAPS);
            let newest = report.revision;
            report.unread = spans.map(|span| revisions(span, newest)).collect();
        }
        let history = report.count_keys(salvage)?;
        if report.uncertain_revisions > 0 {
            report.count_uncertain_keys(salvage, &history, uncertain)?;
        }
        Ok(report)
    }

    fn count_revisions(&mut self, salvage: &Salvage) -> Result<()> {
        let compacted = salvage.facts.compacted;
        // After a compaction the next revision is there from its first change on.
        let mut before = (compacted >= 0).then_some(Revision {
            main: compacted,
            sub: i64::MAX,
        });
        salvage.history(&mut |element| {
            self.uncertain_revisions += u64::from(element.is_uncertain || element.is_disputed);
            let at = element.at.0;
            if at.main > compacted {
                if let Some(before) = before {
                    self.gap(before, at);
                }
                before = Some(at);
            }
            self.revision = at.main;
            Ok(())
        })?;
        self.revision = self.revision.max(compacted);
        Ok(())
    }

    fn count_keys(&mut self, salvage: &Salvage) -> Result<History> {
        let mut history = History::new(self.revision, self.revision);
        loop {
            salvage.history(&mut |element| {
                history.add(element.key, element.value);
                Ok(())
            })?;
            if !history.needs_another_pass() {
                break;
            }
        }
        (self.keys, self.revisions) = (history.keys(), history.entries);
        Ok(history)
    }

    fn count_uncertain_keys(
        &mut self,
        salvage: &Salvage,
        history: &History,
        uncertain: &mut dyn FnMut(&[u8]),
    ) -> Result<()> {
        let mut number = 0;
        salvage.history(&mut |element| {
            let is_last = !history.is_superfluous(number) && !element.at.1;
            number += 1;
            if is_last && (element.is_uncertain || element.is_disputed) {
                self.uncertain_keys += 1;
                uncertain(
                    KeyValue::parse(element.value)
                        .map(|kv| kv.key)
                        .unwrap_or_default(),
                );
            }
            Ok(())
        })
    }

    fn gap(&mut self, before: Revision, at: Revision) {
        let missing = at.main.saturating_sub(before.main).saturating_sub(1);
        if missing > 0 {
            self.missing_revisions = self
                .missing_revisions
                .saturating_add(missing.unsigned_abs());
            if self.gaps.len() < MAX_GAPS {
                self.gaps.push((before.main + 1, at.main - 1));
            }
        }
        let expected = if at.main == before.main {
            before.sub.saturating_add(1)
        } else {
            0
        };
        if at.sub != expected && self.partial.last() != Some(&at.main) {
            self.partial_revisions += 1;
            if self.partial.len() < MAX_GAPS {
                self.partial.push(at.main);
            }
        }
    }
}

/// A range of keys as revisions.
fn revisions((from, to): &Span, newest: i64) -> (i64, i64) {
    let parse = |key: &Option<Vec<u8>>| Some(Revision::parse(key.as_deref()?.get(..17)?)?.0);
    let last = match parse(to) {
        Some(to) if to.sub == 0 => to.main.saturating_sub(1),
        Some(to) => to.main,
        None => newest,
    };
    (parse(from).map_or(0, |from| from.main), last)
}
