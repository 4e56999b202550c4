//! The remedy `free-space`: candidates shown as a table, then freed.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde_json::{Map, Value, json};

use crate::change::{Freeing, Prepared};
use crate::finding::{Context, Remedy};
use crate::guest::GuestPath;
use crate::tree::Usage;

use crate::base::units;
use crate::space::plan::{Candidate, Plan};
use crate::space::rules::Rule;

/// Rows of the table, the files that give back most; the rest is counted, and all of them are in
/// the JSON.
const ROWS: usize = 20;

/// Files left alone that the table names.
const SPARED_ROWS: usize = 5;

/// Frees space on one file system. Not undoable.
#[derive(Debug, Clone)]
pub struct FreeSpace {
    /// Where it is mounted in the guest.
    pub mount_point: GuestPath,
    /// Usage before.
    pub before: Usage,
    /// What goes, and usage after.
    pub plan: Plan,
    /// The time that counts as now, seconds since 1970, for ages.
    pub now: i64,
    /// btrfs: how many snapshots there are of what is freed from.
    pub snapshots: usize,
}

/// Why freeing may give back less than it seems.
pub fn held_by_snapshots(count: usize) -> String {
    let snapshots = if count == 1 {
        "1 snapshot".to_owned()
    } else {
        format!("{count} snapshots")
    };
    format!(
        "The btrfs has {snapshots} of what is mounted here: what they share with it becomes free \
         only when they are deleted, too."
    )
}

impl FreeSpace {
    fn candidates(&self) -> &[Candidate] {
        &self.plan.candidates
    }

    fn freed(&self) -> u64 {
        self.candidates()
            .iter()
            .fold(0, |sum, candidate| sum.saturating_add(candidate.frees))
    }

    /// A row for each file, in the order in which they go; of many files only those that give back
    /// most.
    fn rows(&self) -> Vec<String> {
        if self.candidates().len() <= ROWS + 1 {
            return self
                .candidates()
                .iter()
                .map(|candidate| self.row(candidate))
                .collect();
        }
        let mut largest: Vec<&Candidate> = self.candidates().iter().collect();
        largest.sort_by_key(|candidate| std::cmp::Reverse(candidate.frees));
        let (shown, rest) = largest.split_at(ROWS);
        let bytes = rest
            .iter()
            .fold(0_u64, |sum, candidate| sum.saturating_add(candidate.frees));
        let folders: BTreeSet<&Path> = rest
            .iter()
            .filter_map(|candidate| candidate.path.as_path().parent())
            .collect();
        let folders = units::count(folders.len(), "folder", "folders");
        let rest = format!(
            "and {} more files in {folders} (all of them: --dry-run --json)",
            rest.len()
        );
        let mut rows: Vec<String> = shown.iter().map(|candidate| self.row(candidate)).collect();
        rows.push(format!("{:>10}  {rest}", units::bytes(bytes)));
        rows
    }

    fn row(&self, candidate: &Candidate) -> String {
        let verb = match candidate.freeing {
            Freeing::Delete => "delete".to_owned(),
            Freeing::KeepTail(keep) => format!("keep the last {} of", units::bytes(keep)),
        };
        let names = match candidate.other_names.len() {
            0 => String::new(),
            more => format!(" and {more} more of its names"),
        };
        format!(
            "{:>10}  {:>7}  {verb} {}{names} ({}: {})",
            units::bytes(candidate.frees),
            age(self.now, candidate.mtime),
            candidate.path,
            candidate.rule.id,
            candidate.saw
        )
    }
}

impl Remedy for FreeSpace {
    fn kind(&self) -> &'static str {
        "free-space"
    }

    fn summary(&self) -> String {
        let deleted = self
            .candidates()
            .iter()
            .filter(|candidate| candidate.freeing == Freeing::Delete)
            .count();
        let cut = self.candidates().len() - deleted;
        let files = |number| units::count(number, "file", "files");
        let how = match (deleted, cut) {
            (deleted, 0) => format!("deleting {}", files(deleted)),
            (0, cut) => format!("truncating {}", files(cut)),
            (deleted, cut) => format!("deleting {} and truncating {cut}", files(deleted)),
        };
        let (before, after) = (&self.before, &self.plan.after);
        let mut change = format!(
            "{} -> {} available",
            units::bytes(before.bytes_available),
            units::bytes(after.bytes_available)
        );
        if after.inodes_total > 0 && before.inodes_free < after.inodes_total / 10 {
            change.push_str(&format!(
                ", {} -> {} inodes free",
                before.inodes_free, after.inodes_free
            ));
        }
        format!(
            "free {} on {} ({change}) by {how}",
            units::bytes(self.freed()),
            self.mount_point
        )
    }

    fn details(&self) -> Vec<String> {
        let mut rules: BTreeMap<(u16, &str), (&Rule, usize, u64)> = BTreeMap::new();
        for candidate in self.candidates() {
            let key = (candidate.rule.rank, candidate.rule.id);
            let (_, count, bytes) = rules.entry(key).or_insert((candidate.rule, 0, 0));
            *count += 1;
            *bytes = bytes.saturating_add(candidate.frees);
        }
        let mut lines = vec!["What is freed cannot be brought back by undo.".to_owned()];
        if self.snapshots > 0 {
            lines.push(held_by_snapshots(self.snapshots));
        }
        lines.extend(rules.into_values().map(|(rule, count, bytes)| {
            let files = units::count(count, "file", "files");
            format!(
                "{}: {files}, {}: {}",
                rule.id,
                units::bytes(bytes),
                rule.why
            )
        }));
        lines.extend(self.rows());
        lines.extend(self.plan.spared.iter().take(SPARED_ROWS).map(|spared| {
            format!(
                "left alone: {} ({}): {}",
                spared.path,
                units::bytes(spared.bytes),
                spared.why
            )
        }));
        lines
    }

    fn can_be_undone(&self) -> bool {
        false
    }

    fn fields(&self) -> Map<String, Value> {
        let candidates: Vec<Value> = self
            .candidates()
            .iter()
            .map(|candidate| {
                json!({
                    "path": candidate.path.to_string(),
                    "other_names": candidate.other_names.iter().map(ToString::to_string).collect::<Vec<_>>(),
                    "action": candidate.freeing,
                    "bytes": candidate.frees,
                    "size": candidate.size,
                    "mtime": candidate.mtime,
                    "rule": candidate.rule.id,
                    "saw": candidate.saw,
                })
            })
            .collect();
        let spared: Vec<Value> = self
            .plan
            .spared
            .iter()
            .map(|spared| json!({"path": spared.path, "bytes": spared.bytes, "why": spared.why}))
            .collect();
        let fields = json!({
            "mount_point": self.mount_point,
            "before": self.before,
            "after": self.plan.after,
            "enough": self.plan.enough,
            "frees": self.freed(),
            "candidates": candidates,
            "left_alone": spared,
        });
        match fields {
            Value::Object(map) => map,
            _ => Map::new(),
        }
    }

    /// Nothing is looked for again: what was shown is what is freed. The writer leaves alone a file
    /// that changed since.
    fn prepare(&self, _context: &Context<'_>) -> anyhow::Result<Prepared> {
        Ok(Prepared {
            free: self
                .candidates()
                .iter()
                .flat_map(Candidate::actions)
                .collect(),
            changes: Vec::new(),
        })
    }
}

/// Age for people: `3 h`, `12 d`, `2.7 y`; a time in the future is "new".
fn age(now: i64, mtime: i64) -> String {
    let seconds = now.saturating_sub(mtime);
    match seconds {
        ..=0 => "new".into(),
        1..=172_799 => format!("{} h", seconds / 3600),
        172_800..=63_071_999 => format!("{} d", seconds / 86_400),
        _ => format!("{:.1} y", seconds as f64 / 31_557_600.0),
    }
}
