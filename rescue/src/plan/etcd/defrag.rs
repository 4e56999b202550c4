//! Databases written anew without their free pages, and where the disks of all members are given
//! the history compacted and the alarm of a full database lifted.

use std::rc::Rc;

use anyhow::Result;
use serde_json::{Value, json};

use super::claims;
use super::members_plan::{MembersPlan, PlannedMember};
use crate::base::refusal::Refusal;
use crate::base::ui::Ui;
use crate::base::units;
use crate::etcd::operations::guarantee::{Guarantee, Level};
use crate::etcd::operations::rebuild::defrag::Defrag;
use crate::etcd::operations::rebuild::space::{Decision, Given};
use crate::etcd::read::backend::{Backend, Facts};
use crate::etcd::read::boot::{self, Effect, Kind};
use crate::etcd::read::launch::{DEFAULT_QUOTA, Launch};
use crate::etcd::read::member::{MemberData, Stored};
use crate::etcd::read::status::Found;
use crate::etcd::read::survey::survey;
use crate::guest::GuestPath;
use crate::pki::trust::etcd::{self as trust, Units};
use crate::settings::Settings;

/// Files that are named in the note on what etcd does not need.
const MAX_NAMED_FILES: usize = 5;

/// What the user asked for.
#[derive(Debug, Clone, Copy)]
pub struct DefragRequest<'a> {
    /// Whether the history is dropped, but for the newest value of each key.
    pub compact: bool,
    /// Whether databases of versions are taken that this has not been proved on.
    pub unproven: bool,
    /// Of the run.
    pub settings: &'a Settings,
}

/// One member, measured.
struct Measured<'a> {
    found: &'a Found,
    data: MemberData,
    /// Bytes from which etcd raises the alarm.
    quota: u64,
    /// Bytes of the database.
    size: u64,
    /// Bytes of its pages in use.
    in_use: u64,
}

/// Plans it for the members found.
///
/// # Errors
/// A [`Refusal`] where a member is damaged, or of a version that this has not been proved on.
pub fn plan(found: &[Found], request: &DefragRequest<'_>, ui: &dyn Ui) -> Result<MembersPlan> {
    let measured = found
        .iter()
        .map(|found| measure(found, request.unproven, ui))
        .collect::<Result<Vec<_>>>()?;
    let decision = decide(found, &measured, request)?;
    let members = (0..)
        .zip(&measured)
        .map(|(number, measured)| member(number, measured, &decision))
        .collect::<Result<Vec<_>>>()?;
    let names: Vec<&str> = members.iter().map(|member| member.name.as_str()).collect();
    let compacts = decision
        .compaction
        .map(|revision| format!(", compacted at revision {revision}"))
        .unwrap_or_default();
    Ok(MembersPlan {
        summary: format!(
            "write etcd's database anew without its free pages{compacts}, on {}",
            names.join(", ")
        ),
        guarantee: Guarantee::new(Level::G0),
        notes: notes(&decision, &measured, request.compact),
        facts: facts(&decision, &measured),
        members,
        uncertain_keys: Vec::new(),
    })
}

/// What members share is decided by those that are members of one another.
fn decide(
    found: &[Found],
    measured: &[Measured<'_>],
    request: &DefragRequest<'_>,
) -> Result<Decision> {
    let given: Vec<Given<'_>> = measured
        .iter()
        .map(|measured| Given {
            source: &measured.found.source,
            guest: &measured.found.guest,
            data: &measured.data,
        })
        .collect();
    let quotas = measured.iter().map(|measured| measured.quota);
    let sizes = measured.iter().map(|measured| size_after(measured.in_use));
    let claims = claims::claims_of(
        found,
        measured.iter().map(|measured| &measured.data),
        request.settings,
    )?;
    Ok(match trust::units(&claims) {
        Units { units, .. } if units.len() > 1 => {
            let why = "the disks given are not members of one cluster that prove it to one \
                another (rescue etcd status says more)";
            Decision::apart(&given, request.compact, why)
        }
        _ => Decision::of(
            &given,
            request.compact,
            quotas.min().unwrap_or(DEFAULT_QUOTA),
            sizes.max().unwrap_or(0),
        ),
    })
}

/// Bytes of the new database: its leaves are filled to nine tenths.
fn size_after(in_use: u64) -> u64 {
    in_use.saturating_add(in_use / 8)
}

fn measure<'a>(found: &'a Found, unproven: bool, ui: &dyn Ui) -> Result<Measured<'a>> {
    let data = MemberData::read(&found.guest, &found.place);
    refuse_foreign_log(found, &data)?;
    refuse_unsound(found, &data)?;
    let Stored::Open(open) = &data.stored else {
        return Err(Refusal::new(
            format!("there is no database on {}", found.source),
            "there is nothing to write anew",
            "rescue etcd status says more",
        )
        .into());
    };
    let (backend, facts) = (&open.0, &open.1);
    refuse_unproven(found, facts, unproven)?;
    let in_use = bytes_in_use(found, backend, facts, ui)?;
    let size = backend.db.size();
    let quota = found.launch.as_ref().map_or(DEFAULT_QUOTA, Launch::quota);
    Ok(Measured {
        found,
        data,
        quota,
        size,
        in_use,
    })
}

fn refuse_foreign_log(found: &Found, data: &MemberData) -> Result<(), Refusal> {
    if data.place.wal == data.place.member().join("wal") {
        return Ok(());
    }
    Err(Refusal::new(
        format!(
            "etcd on {} keeps its log in {} (--wal-dir)",
            found.source, data.place.wal
        ),
        "the folder member is replaced as a whole, and the log is not in it",
        "start etcd and use etcdctl defrag, or take --wal-dir out of its flags",
    ))
}

fn refuse_unsound(found: &Found, data: &MemberData) -> Result<(), Refusal> {
    let counts = |problem: &boot::Problem| match problem.kind {
        // These are what this command is for, or harmless.
        Kind::Alarm | Kind::Leftover | Kind::LogFollowed => false,
        _ => problem.effect != Effect::Harmless,
    };
    match boot::problems(data).into_iter().find(counts) {
        None => Ok(()),
        Some(problem) => Err(Refusal::new(
            format!("{} on {}: {}", problem.path, found.source, problem.saw),
            "only a member that is sound otherwise is written anew",
            "rescue repair mends what can be mended; rescue etcd status says more",
        )),
    }
}

fn refuse_unproven(found: &Found, facts: &Facts, unproven: bool) -> Result<(), Refusal> {
    let Some(version) = facts.storage_version.as_ref().filter(|_| !unproven) else {
        return Ok(());
    };
    Err(Refusal::new(
        format!("the database on {} is of format {version}", found.source),
        "etcd 3.6 and later has not been proved on what is written here",
        "use etcdutl defrag of that version, or add --unproven",
    ))
}

fn bytes_in_use(
    found: &Found,
    backend: &Backend,
    facts: &Facts,
    ui: &dyn Ui,
) -> Result<u64, Refusal> {
    let progress = ui.begin(
        &format!("checking {}", found.source),
        Some(backend.db.size()),
    );
    let survey = survey(backend, facts, facts.compacted, &*progress).map_err(|fault| {
        Refusal::new(
            format!("the database on {}: {fault}", found.source),
            "it is damaged, and what cannot be read cannot be written anew",
            "rescue repair, with the disks of all control planes",
        )
    })?;
    // Each of the two pages at the beginning is a meta page.
    let pages = survey.check.pages.saturating_add(2);
    Ok(pages.saturating_mul(backend.db.meta().page_size))
}

fn member(number: usize, measured: &Measured<'_>, decision: &Decision) -> Result<PlannedMember> {
    let mut recipe = Defrag::of(&measured.found.guest, &measured.data)?;
    decision.apply(number, &mut recipe);
    let own = measured
        .data
        .log
        .identity
        .and_then(|own| measured.data.membership().0.list.get(&own.member).cloned());
    // A name becomes a folder's.
    let name = own
        .map(|member| member.name)
        .filter(|name| !name.is_empty() && !name.starts_with('.') && !name.contains('/'));
    Ok(PlannedMember {
        name: name.unwrap_or_else(|| format!("member{}", number + 1)),
        found: Some(number),
        recipe: Rc::new(recipe),
        details: vec![format!("its database has {}", sizes(measured))],
    })
}

/// "1.2 GiB, of which 0.3 GiB are free pages".
fn sizes(measured: &Measured<'_>) -> String {
    format!(
        "{}, of which {} are free pages",
        units::bytes(measured.size),
        units::bytes(measured.size.saturating_sub(measured.in_use))
    )
}

fn facts(decision: &Decision, measured: &[Measured<'_>]) -> Value {
    let member = |measured: &Measured<'_>| {
        json!({
            "source": measured.found.source, "size": measured.size, "in_use": measured.in_use,
        })
    };
    json!({
        "members": measured.iter().map(member).collect::<Vec<_>>(),
        "compact_at": decision.compaction,
        "not_compacted": decision.not_compacted,
        "alarm_lifted": !decision.lift_alarms_of.is_empty(),
        "alarm_not_lifted": decision.not_lifted,
    })
}

fn notes(decision: &Decision, measured: &[Measured<'_>], compact: bool) -> Vec<String> {
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
            "The alarm that the database is full (NOSPACE) stays: {why}. Once etcd runs: etcdctl \
             alarm disarm."
        ));
    }
    notes.extend(left_out(measured));
    notes
}

/// Which files the new folder does not have, and what they take.
fn left_out(measured: &[Measured<'_>]) -> Option<String> {
    let files: Vec<(String, u64)> = measured.iter().flat_map(unneeded_files).collect();
    if files.is_empty() {
        return None;
    }
    let bytes = files.iter().map(|(_, bytes)| bytes).sum();
    let names: Vec<&str> = files
        .iter()
        .map(|(name, _)| name.as_str())
        .take(MAX_NAMED_FILES)
        .collect();
    let more = if files.len() > names.len() {
        ", …"
    } else {
        ""
    };
    Some(format!(
        "Not needed, and left out of the new folder: {} ({}{more}). Where the disk is too full \
         for the new folder they may be moved away first.",
        units::bytes(bytes),
        names.join(", ")
    ))
}

/// Files that etcd does not need, and the bytes that each takes: what it set aside as damaged, what
/// it did not finish, and space that it set aside for its log.
fn unneeded_files(measured: &Measured<'_>) -> Vec<(String, u64)> {
    let (found, data) = (measured.found, &measured.data);
    let size = |path: &GuestPath| {
        found
            .guest
            .stat(path)
            .map_or(0, |meta| meta.allocated.unwrap_or(meta.size))
    };
    data.wal
        .broken
        .iter()
        .chain(&data.snap.broken)
        .chain(&data.snap.leftovers)
        .chain(&data.wal.spares)
        .map(|path| (format!("{path} on {}", found.source), size(path)))
        .collect()
}
