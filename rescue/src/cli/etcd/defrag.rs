//! `rescue etcd defrag SRC…`: databases written anew without their free pages, and where all members are at hand the history compacted and
//! the alarm of a full database lifted.

use std::rc::Rc;

use anyhow::Result;
use serde_json::json;

use super::making::{Manner, Part, Plan, sizes};
use super::opened::Opened;
use super::sources::Sources;
use crate::base::refusal::Refusal;
use crate::base::ui::Ui as _;
use crate::base::units;
use crate::cli::Outcome;
use crate::cli::args::Stop;
use crate::cli::shared_flags::arguments;
use crate::cli::terminal::Terminal;
use crate::etcd::operations::guarantee::{Guarantee, Level};
use crate::etcd::operations::rebuild::defrag::Defrag;
use crate::etcd::operations::rebuild::space::{Decision, Given};
use crate::etcd::read::boot::{self, Effect, Kind};
use crate::etcd::read::launch::{DEFAULT_QUOTA, Launch};
use crate::etcd::read::member::{MemberData, Stored};
use crate::etcd::read::status::Found;
use crate::etcd::read::survey::survey;
use crate::guest::GuestPath;
use crate::pki::trust::etcd::{self as trust, Units};
use crate::plan::etcd::claims;

arguments! {
    /// write etcd's databases anew without their free pages; with the disks of all members also
    /// --compact, and the lifting of the alarm that a database is full
    #[argh(subcommand, name = "defrag")]
    pub struct DefragCommand {
        etcd_disks, roots, data_dir_for_output,
        own {
            /// drop all history but the newest value of each key, on all members alike
            #[argh(switch)]
            pub compact: bool,
        }
        output_folder, dry_run, keep_in, trust_member, yes, unproven, json, now,
    }
}

/// Plans and does it.
pub fn run(command: &DefragCommand) -> Result<Result<Outcome>, Stop> {
    let sources = Sources::new(&command.src, &command.root, &command.data_dir, "defrag")?;
    let manner = Manner {
        output: command.output.as_deref(),
        yes: command.yes,
        accept_loss: false,
        dry_run: command.dry_run,
        json: command.json,
        keep_in: command.keep_in.as_deref(),
        trust: &command.trust,
        now: command.now,
    };
    manner.check()?;
    Ok(defrag(command, &sources, &manner))
}

/// One member, measured.
struct Measured {
    data: MemberData,
    quota: u64,
    size: u64,
    in_use: u64,
}

fn defrag(command: &DefragCommand, sources: &Sources, manner: &Manner<'_>) -> Result<Outcome> {
    let opened = Opened::look(sources, manner)?;
    let found = &opened.found;
    let measured = found
        .iter()
        .map(|found| measure(found, command.unproven))
        .collect::<Result<Vec<_>>>()?;
    let given: Vec<Given<'_>> = found
        .iter()
        .zip(&measured)
        .map(|(found, measured)| Given {
            source: &found.source,
            guest: &found.guest,
            data: &measured.data,
        })
        .collect();
    let quota = measured
        .iter()
        .map(|measured| measured.quota)
        .min()
        .unwrap_or(DEFAULT_QUOTA);
    let largest = measured
        .iter()
        .map(|measured| after(measured.in_use))
        .max()
        .unwrap_or(0);
    let claims = claims::claims_of(
        found,
        measured.iter().map(|measured| &measured.data),
        &manner.settings(),
    )?;
    let decision = match trust::units(&claims) {
        // What members share is decided by those that are members of one another.
        Units { units, .. } if units.len() > 1 => {
            let why = "the disks given are not members of one cluster that prove it to one another (rescue etcd status says more)";
            Decision::apart(&given, command.compact, why)
        }
        _ => Decision::of(&given, command.compact, quota, largest),
    };
    let parts = found
        .iter()
        .zip(&measured)
        .enumerate()
        .map(|(number, (found, measured))| part(number, found, measured, &decision))
        .collect::<Result<Vec<_>>>()?;
    let facts: Vec<_> = found
        .iter()
        .zip(&measured)
        .map(|(found, measured)| json!({ "source": found.source, "size": measured.size, "in_use": measured.in_use }))
        .collect();
    let names: Vec<&str> = parts.iter().map(|part| part.name.as_str()).collect();
    let compacts = decision
        .compaction
        .map(|revision| format!(", compacted at revision {revision}"))
        .unwrap_or_default();
    let plan = Plan {
        summary: format!(
            "write etcd's database anew without its free pages{compacts}, on {}",
            names.join(", ")
        ),
        guarantee: Guarantee::new(Level::G0),
        notes: notes(&decision, found.iter().zip(&measured), command.compact),
        parts,
        facts: json!({
            "members": facts,
            "compact_at": decision.compaction,
            "not_compacted": decision.not_compacted,
            "alarm_lifted": !decision.lift_alarms_of.is_empty(),
            "alarm_not_lifted": decision.not_lifted,
        }),
        uncertain: Vec::new(),
    };
    drop(given);
    drop(measured);
    plan.carry_out(opened, &sources.disks, manner)
}

/// Leaves are filled to nine tenths.
fn after(in_use: u64) -> u64 {
    in_use.saturating_add(in_use / 8)
}

fn measure(found: &Found, unproven: bool) -> Result<Measured> {
    let data = MemberData::read(&found.guest, &found.place);
    if data.place.wal != data.place.member().join("wal") {
        return Err(Refusal::new(
            format!(
                "etcd on {} keeps its log in {} (--wal-dir)",
                found.source, data.place.wal
            ),
            "the folder member is replaced as a whole, and the log is not in it",
            "start etcd and use etcdctl defrag, or take --wal-dir out of its flags",
        )
        .into());
    }
    let problem = boot::problems(&data)
        .into_iter()
        .find(|problem| match problem.kind {
            // These are what this command is for, or harmless.
            Kind::Alarm | Kind::Leftover | Kind::LogFollowed => false,
            _ => problem.effect != Effect::Harmless,
        });
    if let Some(problem) = problem {
        return Err(Refusal::new(
            format!("{} on {}: {}", problem.path, found.source, problem.saw),
            "only a member that is sound otherwise is written anew",
            "rescue repair mends what can be mended; rescue etcd status says more",
        )
        .into());
    }
    let Stored::Open(open) = &data.stored else {
        return Err(Refusal::new(
            format!("there is no database on {}", found.source),
            "there is nothing to write anew",
            "rescue etcd status says more",
        )
        .into());
    };
    if let Some(version) = open.1.storage_version.as_ref().filter(|_| !unproven) {
        return Err(Refusal::new(
            format!("the database on {} is of format {version}", found.source),
            "etcd 3.6 and later has not been proved on what is written here",
            "use etcdutl defrag of that version, or add --unproven",
        )
        .into());
    }
    let size = open.0.db.size();
    let progress = Terminal.begin(&format!("checking {}", found.source), Some(size));
    let survey = survey(&open.0, &open.1, open.1.compacted, &*progress).map_err(|fault| {
        Refusal::new(
            format!("the database on {}: {fault}", found.source),
            "it is damaged, and what cannot be read cannot be written anew",
            "rescue repair, with the disks of all control planes",
        )
    })?;
    drop(progress);
    let in_use = survey
        .check
        .pages
        .saturating_add(2)
        .saturating_mul(open.0.db.meta().page_size);
    let quota = found.launch.as_ref().map_or(DEFAULT_QUOTA, Launch::quota);
    Ok(Measured {
        data,
        quota,
        size,
        in_use,
    })
}

fn part(number: usize, found: &Found, measured: &Measured, decision: &Decision) -> Result<Part> {
    let mut recipe = Defrag::of(&found.guest, &measured.data)?;
    decision.apply(number, &mut recipe);
    let own = measured
        .data
        .log
        .identity
        .and_then(|own| measured.data.membership().0.list.get(&own.member).cloned());
    let name = own
        .map(|member| member.name)
        .filter(|name| !name.is_empty() && !name.starts_with('.') && !name.contains('/'));
    Ok(Part {
        name: name.unwrap_or_else(|| format!("member{}", number + 1)),
        found: Some(number),
        recipe: Rc::new(recipe),
        details: vec![format!(
            "its database has {}",
            sizes(measured.size, measured.in_use)
        )],
    })
}

fn notes<'a>(
    decision: &Decision,
    members: impl Iterator<Item = (&'a Found, &'a Measured)>,
    compact: bool,
) -> Vec<String> {
    let mut notes = Vec::new();
    if let Some(why) = &decision.not_compacted {
        notes.push(format!("Not compacted: {why}."));
    } else if compact && decision.compaction.is_none() {
        notes.push(
            "Not compacted: there is no history beyond what was compacted before.".to_owned(),
        );
    }
    if !decision.lift_alarms_of.is_empty() {
        notes.push(
            "The alarm that the database is full (NOSPACE) is lifted on all members.".to_owned(),
        );
    }
    if let Some(why) = &decision.not_lifted {
        notes.push(format!(
            "The alarm that the database is full (NOSPACE) stays: {why}. Once etcd runs: etcdctl alarm disarm."
        ));
    }
    let movable: Vec<(String, u64)> = members
        .flat_map(|(found, measured)| movable(found, &measured.data))
        .collect();
    if !movable.is_empty() {
        let bytes = movable.iter().map(|(_, bytes)| bytes).sum();
        let names: Vec<&str> = movable
            .iter()
            .map(|(name, _)| name.as_str())
            .take(5)
            .collect();
        let more = if movable.len() > names.len() {
            ", …"
        } else {
            ""
        };
        notes.push(format!(
            "Not needed, and left out of the new folder: {} ({}{more}). Where the disk is too full for the new folder they may be moved away first.",
            units::bytes(bytes),
            names.join(", ")
        ));
    }
    notes
}

/// Files that etcd does not need: what it set aside as damaged, what it did not finish, and space that it set aside for its log.
fn movable(found: &Found, data: &MemberData) -> Vec<(String, u64)> {
    let aside = data
        .wal
        .broken
        .iter()
        .chain(&data.snap.broken)
        .chain(&data.snap.leftovers)
        .chain(&data.wal.spares);
    let size = |path: &GuestPath| {
        found
            .guest
            .stat(path)
            .map_or(0, |meta| meta.allocated.unwrap_or(meta.size))
    };
    aside
        .map(|path| (format!("{path} on {}", found.source), size(path)))
        .collect()
}
