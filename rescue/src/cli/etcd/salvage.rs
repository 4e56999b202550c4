//! `rescue etcd salvage`: a new cluster from what can be read of a damaged database.

use crate::base::escaping;
use std::path::PathBuf;

use anyhow::{Result, bail};
use serde_json::json;

use super::new_cluster::{Chosen, Disks, asked, make};
use crate::base::refusal::Refusal;
use crate::base::ui::Ui as _;
use crate::base::units;
use crate::change::folder;
use crate::cli::Outcome;
use crate::cli::args::Stop;
use crate::cli::shared_flags::arguments;
use crate::cli::terminal::Terminal;
use crate::etcd::operations::guarantee::{Guarantee, Level};
use crate::etcd::operations::rebuild::origin::Origin;
use crate::etcd::operations::salvage::Salvage;
use crate::etcd::operations::salvage::report::Report;
use crate::etcd::read::backend::Backend;

/// Keys that are named on the terminal.
const NAMED: usize = 20;
/// Bytes of names that are kept for the list.
const MAX_NAMES: usize = 64 << 20;

arguments! {
    /// make a new etcd cluster on the disks given from what can still be read of a damaged
    /// database, page by page; what is missing is counted, keys whose newest value is uncertain are
    /// named
    #[argh(subcommand, name = "salvage")]
    pub struct SalvageCommand {
        new_member_disks, roots, data_dir_for_output,
        own {
            /// the damaged database, where it is not that of the first disk
            #[argh(option)]
            pub from: Option<PathBuf>,
        }
        members, dead_members, bump,
        own {
            /// write data folders, and a list of all uncertain keys, below this new folder instead
            /// of changing the disks
            #[argh(option)]
            pub output: Option<PathBuf>,
        }
        dry_run, keep_in, trust_member, yes, accept_loss, unproven, json, now,
    }
}

/// Plans and does it.
pub fn run(command: &SalvageCommand) -> Result<Result<Outcome>, Stop> {
    let asked = asked!(command, true, "salvage");
    asked.manner.check()?;
    Ok(make(&asked, |disks, readable| {
        salvaged(command, disks, readable)
    }))
}

fn salvaged(
    command: &SalvageCommand,
    disks: &Disks,
    readable: &folder::Sources<'_>,
) -> Result<Chosen> {
    let origin = match (
        &command.from,
        disks.opened.found.first(),
        disks.data.first(),
    ) {
        (Some(path), ..) => Origin::Local(path.clone()),
        (None, Some(found), Some(data)) => Origin::in_guest(&found.guest, &data.place.db())?,
        _ => bail!("no database given"),
    };
    let sound =
        Backend::open(origin.open(readable)?).and_then(|backend| backend.db.check(&mut |_, _| {}));
    if sound.is_ok() {
        return Err(Refusal::new(
            format!("every page of {origin} is sound"),
            "there is nothing to salvage",
            "rescue etcd rebuild takes it as it is",
        )
        .into());
    }
    let file = origin.open(readable)?;
    let size = file.size();
    let progress = Terminal.begin(&format!("looking through {origin}"), None);
    let salvage = Salvage::scan(file)?;
    let mut uncertain = Vec::new();
    let mut named = Vec::new();
    let report = Report::of(&salvage, &mut |key| {
        if named.len() < NAMED {
            named.push(escaping::key(key));
        }
        if uncertain.len() < MAX_NAMES {
            uncertain.extend_from_slice(escaping::key(key).as_bytes());
            uncertain.push(b'\n');
        }
    })?;
    drop(progress);
    let mut facts = salvage.facts.clone();
    facts.revision = report.revision;
    let mut guarantee = Guarantee {
        revision: Some(report.revision),
        ..Guarantee::new(Level::G4)
    };
    guarantee.also = told(&report, &named);
    let json = json!({ "origin": origin.to_string(), "salvage": report, "uncertain_keys": named });
    let bytes = size.saturating_mul(5) / 4 + (1 << 20);
    Ok(Chosen {
        origin,
        revision: report.revision,
        facts,
        bytes,
        guarantee,
        notes: Vec::new(),
        json,
        uncertain,
    })
}

/// What was salvaged, in sentences.
fn told(report: &Report, named: &[String]) -> Vec<String> {
    let count = |number: u64, one, many| {
        units::count(usize::try_from(number).unwrap_or(usize::MAX), one, many)
    };
    let mut lines = vec![match (report.is_whole, report.has_tree) {
        (true, _) => format!(
            "A root was found whose tree is whole, at entry {}: {}.",
            report.consistent_index.unwrap_or(0),
            count(report.keys, "key", "keys")
        ),
        (false, true) => format!(
            "The newest root's tree is damaged in {}; with what lies on other pages there are {}.",
            units::count(report.unread_ranges, "place", "places"),
            count(report.keys, "key", "keys")
        ),
        (false, false) => format!(
            "No root was found; the pages hold {}. Keys that were deleted long ago may be among them.",
            count(report.keys, "key", "keys")
        ),
    }];
    if !report.unread.is_empty() {
        lines.push(format!(
            "Could not be read: the pages of revisions {}. Their changes are missing, but for what was found elsewhere; any key may have \
             had a newer value, or may have been deleted.",
            ranges(&report.unread)
        ));
    }
    if report.missing_revisions > 0 {
        lines.push(format!(
            "Missing: {} ({}). Each was a write: any key may have had a newer value, or may have been deleted.",
            count(report.missing_revisions, "revision", "revisions"),
            ranges(&report.gaps)
        ));
    }
    if report.partial_revisions > 0 {
        let partial: Vec<(i64, i64)> = report.partial.iter().map(|main| (*main, *main)).collect();
        lines.push(format!(
            "In part: {} of several changes each ({}).",
            count(report.partial_revisions, "revision", "revisions"),
            ranges(&partial)
        ));
    }
    if report.compact_revision < 0 && !report.has_tree {
        lines.push("Up to where the history was compacted is not known, so missing revisions are counted from the first that is there.".to_owned());
    }
    if report.uncertain_keys > 0 {
        let more = report.uncertain_keys.saturating_sub(named.len() as u64);
        let more = if more > 0 {
            format!(", and {more} more (all are listed with --output)")
        } else {
            String::new()
        };
        lines.push(format!(
            "Uncertain: {}, whose newest value lies on no page that the tree leads to: {}{more}.",
            count(report.uncertain_keys, "key", "keys"),
            named.join(", ")
        ));
    }
    if !report.damaged_buckets.is_empty() {
        lines.push(format!(
            "Damaged or lost beside the keys: {}.",
            report.damaged_buckets.join(", ")
        ));
    }
    if report
        .damaged_buckets
        .iter()
        .any(|bucket| bucket.starts_with("auth"))
    {
        lines
            .push("Users and roles may be lost: whoever can reach etcd may then read and write everything.".to_owned());
    }
    if report.leases_made > 0 {
        lines.push(format!(
            "{} made anew, for an hour: keys hang on them.",
            units::count(report.leases_made, "lease is", "leases are")
        ));
    }
    if report.is_cut {
        lines.push(
            "There are more pages of history than are kept: not all of them were used.".to_owned(),
        );
    }
    lines
}

/// "3, 7 to 9, and more".
fn ranges(all: &[(i64, i64)]) -> String {
    let shown: Vec<String> = all
        .iter()
        .take(10)
        .map(|(from, to)| {
            if from == to {
                from.to_string()
            } else {
                format!("{from} to {to}")
            }
        })
        .collect();
    format!(
        "{}{}",
        shown.join(", "),
        if all.len() > shown.len() {
            ", and more"
        } else {
            ""
        }
    )
}
