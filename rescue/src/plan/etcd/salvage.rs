//! A new cluster from what can be read of a damaged database: which database, and what is missing
//! of it, in sentences.

use std::path::Path;

use anyhow::{Result, bail};
use serde_json::json;

use super::members_plan::MembersPlan;
use super::new_cluster::{self, ChosenDatabase, MembersAtHand, NewClusterRequest};
use crate::base::escaping;
use crate::base::refusal::Refusal;
use crate::base::ui::Ui;
use crate::base::units;
use crate::change::folder;
use crate::etcd::operations::guarantee::{Guarantee, Level};
use crate::etcd::operations::rebuild::origin::Origin;
use crate::etcd::operations::salvage::Salvage;
use crate::etcd::operations::salvage::report::Report;
use crate::etcd::read::backend::Backend;
use crate::etcd::read::status::Found;

/// Uncertain keys that are named in the plan.
const MAX_NAMED_KEYS: usize = 20;
/// Bytes of names that are kept for the list of uncertain keys.
const MAX_LIST_BYTES: usize = 64 << 20;
/// Ranges of revisions that are named in one sentence.
const MAX_NAMED_RANGES: usize = 10;

/// Plans a cluster of the members found from a damaged database: the file `from`, else that of the
/// first disk.
///
/// # Errors
/// A [`Refusal`] where the database is sound, and as of [`new_cluster`].
pub fn plan(
    found: &[Found],
    request: &NewClusterRequest<'_>,
    from: Option<&Path>,
    ui: &dyn Ui,
) -> Result<MembersPlan> {
    new_cluster::plan(found, request, |at_hand, readable| {
        let origin = origin(from, at_hand)?;
        refuse_sound(&origin, readable)?;
        salvaged_database(origin, readable, ui)
    })
}

fn origin(from: Option<&Path>, at_hand: &MembersAtHand<'_>) -> Result<Origin> {
    Ok(match (from, at_hand.found.first(), at_hand.data.first()) {
        (Some(path), ..) => Origin::Local(path.to_path_buf()),
        (None, Some(found), Some(data)) => Origin::in_guest(&found.guest, &data.place.db())?,
        _ => bail!("no database given"),
    })
}

fn refuse_sound(origin: &Origin, readable: &folder::Sources<'_>) -> Result<()> {
    let checked =
        Backend::open(origin.open(readable)?).and_then(|backend| backend.db.check(&mut |_, _| {}));
    if checked.is_err() {
        return Ok(());
    }
    Err(Refusal::new(
        format!("every page of {origin} is sound"),
        "there is nothing to salvage",
        "rescue etcd rebuild takes it as it is",
    )
    .into())
}

fn salvaged_database(
    origin: Origin,
    readable: &folder::Sources<'_>,
    ui: &dyn Ui,
) -> Result<ChosenDatabase> {
    let file = origin.open(readable)?;
    let size = file.size();
    let progress = ui.begin(&format!("looking through {origin}"), None);
    let salvage = Salvage::scan(file)?;
    let mut uncertain = UncertainKeys::default();
    let report = Report::of(&salvage, &mut |key| uncertain.push(key))?;
    drop(progress);
    let mut facts = salvage.facts.clone();
    facts.revision = report.revision;
    let guarantee = Guarantee {
        revision: Some(report.revision),
        also: sentences(&report, &uncertain.named),
        ..Guarantee::new(Level::G4)
    };
    let json = json!({
        "origin": origin.to_string(), "salvage": report, "uncertain_keys": uncertain.named,
    });
    Ok(ChosenDatabase {
        origin,
        revision: report.revision,
        facts,
        bytes: size.saturating_mul(5) / 4 + (1 << 20),
        guarantee,
        notes: Vec::new(),
        json,
        uncertain_keys: uncertain.list,
    })
}

/// Keys whose newest value is uncertain.
#[derive(Default)]
struct UncertainKeys {
    /// The first of them, readable.
    named: Vec<String>,
    /// As many as are kept, readable, one a line.
    list: Vec<u8>,
}

impl UncertainKeys {
    fn push(&mut self, key: &[u8]) {
        let shown = escaping::key(key);
        if self.list.len() < MAX_LIST_BYTES {
            self.list.extend_from_slice(shown.as_bytes());
            self.list.push(b'\n');
        }
        if self.named.len() < MAX_NAMED_KEYS {
            self.named.push(shown);
        }
    }
}

/// What was salvaged and what is missing.
fn sentences(report: &Report, named: &[String]) -> Vec<String> {
    let mut sentences = vec![found_tree(report)];
    sentences.extend(missing_history(report));
    sentences.extend(uncertain_keys(report, named));
    sentences.extend(beside_the_keys(report));
    if report.is_cut {
        sentences.push(
            "There are more pages of history than are kept: not all of them were used.".to_owned(),
        );
    }
    sentences
}

fn count(number: u64, one: &str, many: &str) -> String {
    units::count(usize::try_from(number).unwrap_or(usize::MAX), one, many)
}

fn found_tree(report: &Report) -> String {
    let keys = count(report.keys, "key", "keys");
    match (report.is_whole, report.has_tree) {
        (true, _) => format!(
            "A root was found whose tree is whole, at entry {}: {keys}.",
            report.consistent_index.unwrap_or(0),
        ),
        (false, true) => format!(
            "The newest root's tree is damaged in {}; with what lies on other pages there are \
             {keys}.",
            units::count(report.unread_ranges, "place", "places"),
        ),
        (false, false) => format!(
            "No root was found; the pages hold {keys}. Keys that were deleted long ago may be \
             among them.",
        ),
    }
}

fn missing_history(report: &Report) -> Vec<String> {
    let mut sentences = Vec::new();
    if !report.unread.is_empty() {
        sentences.push(format!(
            "Could not be read: the pages of revisions {}. Their changes are missing, but for \
             what was found elsewhere; any key may have \
             had a newer value, or may have been deleted.",
            ranges(&report.unread)
        ));
    }
    if report.missing_revisions > 0 {
        sentences.push(format!(
            "Missing: {} ({}). Each was a write: any key may have had a newer value, or may have \
             been deleted.",
            count(report.missing_revisions, "revision", "revisions"),
            ranges(&report.gaps)
        ));
    }
    if report.partial_revisions > 0 {
        let partial: Vec<(i64, i64)> = report.partial.iter().map(|main| (*main, *main)).collect();
        sentences.push(format!(
            "In part: {} of several changes each ({}).",
            count(report.partial_revisions, "revision", "revisions"),
            ranges(&partial)
        ));
    }
    if report.compact_revision < 0 && !report.has_tree {
        sentences.push(
            "Up to where the history was compacted is not known, so missing revisions are counted \
             from the first that is there."
                .to_owned(),
        );
    }
    sentences
}

fn uncertain_keys(report: &Report, named: &[String]) -> Option<String> {
    if report.uncertain_keys == 0 {
        return None;
    }
    let more = report.uncertain_keys.saturating_sub(named.len() as u64);
    let more = if more > 0 {
        format!(", and {more} more (all are listed with --output)")
    } else {
        String::new()
    };
    Some(format!(
        "Uncertain: {}, whose newest value lies on no page that the tree leads to: {}{more}.",
        count(report.uncertain_keys, "key", "keys"),
        named.join(", ")
    ))
}

fn beside_the_keys(report: &Report) -> Vec<String> {
    let mut sentences = Vec::new();
    let buckets = &report.damaged_buckets;
    if !buckets.is_empty() {
        sentences.push(format!(
            "Damaged or lost beside the keys: {}.",
            buckets.join(", ")
        ));
    }
    if buckets.iter().any(|bucket| bucket.starts_with("auth")) {
        sentences.push(
            "Users and roles may be lost: whoever can reach etcd may then read and write \
             everything."
                .to_owned(),
        );
    }
    if report.leases_made > 0 {
        sentences.push(format!(
            "{} made anew, for an hour: keys hang on them.",
            units::count(report.leases_made, "lease is", "leases are")
        ));
    }
    sentences
}

/// "3, 7 to 9, and more".
fn ranges(all: &[(i64, i64)]) -> String {
    let named: Vec<String> = all
        .iter()
        .take(MAX_NAMED_RANGES)
        .map(|(from, to)| {
            if from == to {
                from.to_string()
            } else {
                format!("{from} to {to}")
            }
        })
        .collect();
    let more = if all.len() > named.len() {
        ", and more"
    } else {
        ""
    };
    format!("{}{more}", named.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_few_ranges_and_says_that_there_are_more() {
        assert_eq!(ranges(&[(3, 3), (7, 9)]), "3, 7 to 9");
        let many: Vec<(i64, i64)> = (1..=11).map(|number| (number, number)).collect();
        assert_eq!(ranges(&many), "1, 2, 3, 4, 5, 6, 7, 8, 9, 10, and more");
    }

    #[test]
    fn a_whole_tree_has_one_sentence_and_a_damaged_one_says_what_is_missing() {
        let whole = Report {
            is_whole: true,
            has_tree: true,
            keys: 2,
            consistent_index: Some(7),
            ..Report::default()
        };
        assert_eq!(
            sentences(&whole, &[]),
            ["A root was found whose tree is whole, at entry 7: 2 keys."]
        );
        let damaged = Report {
            is_whole: false,
            unread_ranges: 1,
            uncertain_keys: 22,
            damaged_buckets: vec!["authUsers".to_owned()],
            ..whole
        };
        let said = sentences(&damaged, &["/a".to_owned()]);
        assert!(said[0].contains("damaged in 1 place"), "{said:?}");
        assert!(said[1].contains("/a, and 21 more"), "{said:?}");
        assert!(
            said[3].starts_with("Users and roles may be lost"),
            "{said:?}"
        );
    }

    #[test]
    fn keeps_all_uncertain_keys_for_the_list_and_names_the_first() {
        let mut keys = UncertainKeys::default();
        (0..25).for_each(|number| keys.push(format!("/key/{number}").as_bytes()));
        assert_eq!(keys.named.len(), MAX_NAMED_KEYS);
        assert_eq!(keys.list.split(|byte| *byte == b'\n').count(), 26);
    }
}
