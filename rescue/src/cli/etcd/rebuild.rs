//! `rescue etcd rebuild` and `rescue etcd salvage`: a new cluster from a database alone.

use std::path::PathBuf;
use std::rc::Rc;

use anyhow::{Result, bail};
use argh::FromArgs;
use serde_json::{Value, json};
use time::OffsetDateTime;

use super::making::{Manner, Part, Plan};
use super::opened::Opened;
use super::sources::Sources;
use crate::cli::Outcome;
use crate::cli::args::{self, Stop};
use crate::cli::terminal::Terminal;
use crate::etcd::backend::{Backend, Facts};
use crate::etcd::guarantee::{Guarantee, Level};
use crate::etcd::member::{MemberData, Stored};
use crate::etcd::rebuild::from_db::{BUMP, FromDatabase, form};
use crate::etcd::rebuild::origin::{Origin, Trailer, trailer};
use crate::etcd::rebuild::target::{NewCluster, Target};
use crate::etcd::salvage::Salvage;
use crate::etcd::salvage::report::Report;
use crate::etcd::status::Found;
use crate::etcd::survey::{Survey, survey};
use crate::etcd::write::Form;
use crate::refusal::Refusal;
use crate::repair::folder;
use crate::repair::transaction::new_run_id;
use crate::report::raw;
use crate::ui::Ui as _;
use crate::units;

/// Keys that are named on the terminal.
const NAMED: usize = 20;
/// Bytes of names that are kept for the list.
const MAX_NAMES: usize = 64 << 20;

/// make a new etcd cluster on the disks given, from one database alone: a member's own, an old copy, or what `etcdctl snapshot save`
/// wrote. What only logs hold is lost: rescue repair with all control planes' disks keeps it, where it can
#[derive(FromArgs, Debug)]
#[argh(subcommand, name = "rebuild")]
pub struct Rebuild {
    /// disks of the machines that are to run etcd: 1, 3 or 5
    #[argh(positional)]
    pub src: Vec<PathBuf>,
    /// a folder where a guest is mounted, instead of a disk
    #[argh(option)]
    pub root: Vec<PathBuf>,
    /// a data folder, or a copy of one: what etcd's --data-dir names (with --output only)
    #[argh(option)]
    pub data_dir: Vec<PathBuf>,
    /// the database: a saved snapshot, or a copy of a member's db
    #[argh(option)]
    pub from: Option<PathBuf>,
    /// take the newest sound database on the disks, without any log
    #[argh(switch)]
    pub db_only: bool,
    /// a member as etcd's flags name it, NAME=URL; one for each disk, in their order; without disks only to be written with --output
    #[argh(option, from_str_fn(member_argument))]
    pub member: Vec<Target>,
    /// a member of the old cluster, by name or ID, that will never come back as it was; may be given several times
    #[argh(option)]
    pub declare_dead: Vec<String>,
    /// raise the revision by so much (default a billion): watchers of the old cluster must not take new revisions for ones they know
    #[argh(option, default = "BUMP", from_str_fn(bump_argument))]
    pub bump: i64,
    /// write data folders below this new folder instead of changing the disks
    #[argh(option)]
    pub output: Option<PathBuf>,
    /// show the plan and stop
    #[argh(switch)]
    pub dry_run: bool,
    /// do not ask
    #[argh(switch)]
    pub yes: bool,
    /// with --yes: writes may be lost as the plan says
    #[argh(switch)]
    pub accept_loss: bool,
    /// also for databases of etcd 3.6 and later, which has not been proved
    #[argh(switch)]
    pub unproven: bool,
    /// print one JSON object (schema rescue/v1) instead of text
    #[argh(switch)]
    pub json: bool,
    /// the time that counts as now (RFC 3339), instead of this machine's clock
    #[argh(option, from_str_fn(args::time_argument))]
    pub now: Option<OffsetDateTime>,
}

/// make a new etcd cluster on the disks given from what can still be read of a damaged database, page by page; what is missing is
/// counted, keys whose newest value is uncertain are named
#[derive(FromArgs, Debug)]
#[argh(subcommand, name = "salvage")]
pub struct SalvageCommand {
    /// disks of the machines that are to run etcd: 1, 3 or 5
    #[argh(positional)]
    pub src: Vec<PathBuf>,
    /// a folder where a guest is mounted, instead of a disk
    #[argh(option)]
    pub root: Vec<PathBuf>,
    /// a data folder, or a copy of one: what etcd's --data-dir names (with --output only)
    #[argh(option)]
    pub data_dir: Vec<PathBuf>,
    /// the damaged database, where it is not that of the first disk
    #[argh(option)]
    pub from: Option<PathBuf>,
    /// a member as etcd's flags name it, NAME=URL; one for each disk, in their order; without disks only to be written with --output
    #[argh(option, from_str_fn(member_argument))]
    pub member: Vec<Target>,
    /// a member of the old cluster, by name or ID, that will never come back as it was; may be given several times
    #[argh(option)]
    pub declare_dead: Vec<String>,
    /// raise the revision by so much (default a billion): watchers of the old cluster must not take new revisions for ones they know
    #[argh(option, default = "BUMP", from_str_fn(bump_argument))]
    pub bump: i64,
    /// write data folders, and a list of all uncertain keys, below this new folder instead of changing the disks
    #[argh(option)]
    pub output: Option<PathBuf>,
    /// show the plan and stop
    #[argh(switch)]
    pub dry_run: bool,
    /// do not ask
    #[argh(switch)]
    pub yes: bool,
    /// with --yes: writes may be lost as the plan says
    #[argh(switch)]
    pub accept_loss: bool,
    /// also for databases of etcd 3.6 and later, which has not been proved
    #[argh(switch)]
    pub unproven: bool,
    /// print one JSON object (schema rescue/v1) instead of text
    #[argh(switch)]
    pub json: bool,
    /// the time that counts as now (RFC 3339), instead of this machine's clock
    #[argh(option, from_str_fn(args::time_argument))]
    pub now: Option<OffsetDateTime>,
}

fn member_argument(text: &str) -> Result<Target, String> {
    Target::parse(text)
}

fn bump_argument(text: &str) -> Result<i64, String> {
    match text.parse() {
        // A revision is a signed number of 64 bits, and the cluster is to go on counting.
        Ok(bump @ 0..=1_000_000_000_000_000) => Ok(bump),
        _ => Err(format!("{text} is no number from 0 to 1000000000000000")),
    }
}

/// What both commands are given.
struct Asked<'a> {
    sources: Option<Sources>,
    from: Option<&'a PathBuf>,
    db_only: bool,
    member: &'a [Target],
    declare_dead: &'a [String],
    bump: i64,
    unproven: bool,
    is_salvage: bool,
    manner: Manner<'a>,
}

/// From a sound database.
pub fn run(command: &Rebuild) -> Result<Result<Outcome>, Stop> {
    if command.from.is_some() && command.db_only {
        return Err(Stop::Usage(
            "--from names the database; --db-only takes one from the disks: give one of them".to_owned(),
        ));
    }
    let asked = Asked {
        sources: sources(
            (&command.src, &command.root, &command.data_dir),
            &command.member,
            command.from.as_ref(),
            "rebuild --db-only",
        )?,
        from: command.from.as_ref(),
        db_only: command.db_only,
        member: &command.member,
        declare_dead: &command.declare_dead,
        bump: command.bump,
        unproven: command.unproven,
        is_salvage: false,
        manner: Manner {
            output: command.output.as_deref(),
            yes: command.yes,
            accept_loss: command.accept_loss,
            dry_run: command.dry_run,
            json: command.json,
            now: command.now,
        },
    };
    asked.manner.check()?;
    Ok(make(&asked))
}

/// From a damaged one.
pub fn run_salvage(command: &SalvageCommand) -> Result<Result<Outcome>, Stop> {
    let asked = Asked {
        sources: sources(
            (&command.src, &command.root, &command.data_dir),
            &command.member,
            command.from.as_ref(),
            "salvage",
        )?,
        from: command.from.as_ref(),
        db_only: true,
        member: &command.member,
        declare_dead: &command.declare_dead,
        bump: command.bump,
        unproven: command.unproven,
        is_salvage: true,
        manner: Manner {
            output: command.output.as_deref(),
            yes: command.yes,
            accept_loss: command.accept_loss,
            dry_run: command.dry_run,
            json: command.json,
            now: command.now,
        },
    };
    asked.manner.check()?;
    Ok(make(&asked))
}

/// With a file and the members named no disk is needed.
fn sources(
    (src, root, data_dir): (&[PathBuf], &[PathBuf], &[PathBuf]),
    member: &[Target],
    from: Option<&PathBuf>,
    typed: &str,
) -> Result<Option<Sources>, Stop> {
    let none = src.is_empty() && root.is_empty() && data_dir.is_empty();
    if none && from.is_some() && !member.is_empty() {
        return Ok(None);
    }
    Sources::new(src, root, data_dir, typed).map(Some)
}

/// The members found and what is on their disks.
struct Disks {
    opened: Opened,
    data: Vec<MemberData>,
    targets: Vec<Target>,
}

impl Disks {
    fn look(asked: &Asked<'_>) -> Result<Self> {
        let opened = match &asked.sources {
            Some(sources) => Opened::look(sources, &asked.manner)?,
            None => Opened::default(),
        };
        let found = &opened.found;
        let data: Vec<MemberData> = found.iter().map(|found| MemberData::read(&found.guest, &found.place)).collect();
        for (found, data) in found.iter().zip(&data) {
            refuse_foreign_log(found, data)?;
        }
        let count = if found.is_empty() { asked.member.len() } else { found.len() };
        if !matches!(count, 1 | 3 | 5 | 7) {
            return Err(Refusal::new(
                format!("{} to be members", units::count(count, "machine is", "machines are")),
                "with an even number the failure of half of them stops etcd, and more than seven are slow",
                "give the disks of 1, 3 or 5 machines; more can join once the cluster runs",
            )
            .into());
        }
        let targets = match asked.member {
            [] => found.iter().zip(&data).map(|(found, data)| Target::of(found, data)).collect::<Result<_>>()?,
            named if named.len() == count => named.to_vec(),
            named => {
                return Err(Refusal::new(
                    format!(
                        "{} named with --member for {count} disks",
                        units::count(named.len(), "member is", "members are")
                    ),
                    "which is which would be a guess",
                    "name one for each disk, in their order, or none",
                )
                .into());
            }
        };
        Ok(Self { opened, data, targets })
    }

    /// Voters that none of the disks holds.
    fn absent(&self, known: &Facts) -> Vec<(u64, String)> {
        let there: Vec<u64> = self.data.iter().filter_map(|data| Some(data.log.identity?.member)).collect();
        let listed = self.data.iter().map(|data| data.membership().0).chain([known.members.clone()]);
        let mut absent: Vec<(u64, String)> = Vec::new();
        for member in listed.flat_map(|members| members.list.into_values()) {
            let is_here = there.contains(&member.id) || self.targets.iter().any(|target| target.name == member.name);
            if !is_here && !member.is_learner && absent.iter().all(|(id, _)| *id != member.id) {
                absent.push((member.id, member.name));
            }
        }
        absent
    }
}

/// A log outside the folder that is replaced would stay, and belong to nobody.
fn refuse_foreign_log(found: &Found, data: &MemberData) -> Result<()> {
    if data.place.wal == data.place.member().join("wal") {
        return Ok(());
    }
    Err(Refusal::new(
        format!("etcd on {} keeps its log in {} (--wal-dir)", found.source, data.place.wal),
        "only the folder member is made anew, and a log elsewhere would not fit to it",
        "take --wal-dir out of etcd's flags, or add --output DIR and place what is written yourself",
    )
    .into())
}

/// The database and what was learned of it.
struct Chosen {
    origin: Origin,
    facts: Facts,
    revision: i64,
    bytes: u64,
    guarantee: Guarantee,
    notes: Vec<String>,
    json: Value,
    uncertain: Vec<u8>,
}

fn make(asked: &Asked<'_>) -> Result<Outcome> {
    let disks = Disks::look(asked)?;
    let guests: Vec<_> = disks.opened.found.iter().map(|found| &found.guest).collect();
    let readable = folder::Sources::new(guests);
    let mut chosen = match asked.is_salvage {
        true => salvaged(asked, &disks, &readable)?,
        false => sound(asked, &disks, &readable)?,
    };
    if let Some(version) = chosen.facts.storage_version.as_ref().filter(|_| !asked.unproven) {
        return Err(Refusal::new(
            format!("the database is of format {version}"),
            "rebuilding etcd 3.6 and later has not been proved on a real one",
            "use etcdutl snapshot restore of that version, or add --unproven and keep a copy of everything",
        )
        .into());
    }
    let absent = disks.absent(&chosen.facts);
    refuse_absent(asked, &absent)?;
    if chosen.facts.auth_enabled {
        chosen.notes.push("Authentication is on in it and stays on, with its users and roles.".to_owned());
    }
    chosen.guarantee.raises_revision = asked.bump > 0;
    chosen.guarantee.missing = absent.iter().map(|(id, name)| shown(*id, name)).collect();
    chosen.notes.extend(later_logs(&disks, &chosen.facts, asked.is_salvage));
    if asked.bump > 0 {
        chosen.notes.push(format!(
            "The new cluster begins at revision {}, all history before is compacted: clients that watched the old one list anew.",
            chosen.revision.saturating_add(asked.bump)
        ));
    }
    let plan = plan(asked, &disks, chosen)?;
    let Disks { opened, data, .. } = disks;
    // They hold files of the disks open.
    drop(data);
    plan.carry_out(opened, asked.sources.as_ref().map_or(&[], |sources| &sources.disks), &asked.manner)
}

fn shown(id: u64, name: &str) -> String {
    if name.is_empty() { format!("{id:x}") } else { name.to_owned() }
}

/// Old members that are still somewhere are a majority of the old cluster, whatever is made here.
fn refuse_absent(asked: &Asked<'_>, absent: &[(u64, String)]) -> Result<()> {
    let alive: Vec<String> = absent
        .iter()
        .filter(|(id, name)| !asked.declare_dead.iter().any(|dead| dead == name || *dead == format!("{id:x}")))
        .map(|(id, name)| shown(*id, name))
        .collect();
    if alive.is_empty() || asked.manner.output.is_some() || asked.manner.dry_run {
        return Ok(());
    }
    let flags: Vec<String> = alive.iter().map(|name| format!("--declare-dead {name}")).collect();
    Err(Refusal::new(
        format!("{} of the old cluster not given", units::count(alive.len(), "member is", "members are")),
        format!(
            "{} may start again as a member of the old cluster, beside the new one, and serve old data to whoever asks it",
            alive.join(" or ")
        ),
        format!("give their disks too, or, where they will never start again as they are: {}", flags.join(" ")),
    )
    .into())
}

/// What logs hold beyond the database.
fn later_logs(disks: &Disks, facts: &Facts, is_salvage: bool) -> Vec<String> {
    let later = |(found, data): (&Found, &MemberData)| {
        let more =
            data.log.last.checked_sub(facts.consistent_index).filter(|more| *more > 0 && !data.log.is_empty())?;
        Some(format!(
            "The log on {} holds {} more than the database; they are not taken over{}.",
            found.source,
            units::count(usize::try_from(more).unwrap_or(usize::MAX), "entry", "entries"),
            if is_salvage { "" } else { " (rescue repair, given all disks, takes them over where it can)" }
        ))
    };
    disks.opened.found.iter().zip(&disks.data).filter_map(later).collect()
}

fn sound(asked: &Asked<'_>, disks: &Disks, readable: &folder::Sources<'_>) -> Result<Chosen> {
    let origin = match asked.from {
        Some(path) => Origin::Local(path.clone()),
        None if asked.db_only => newest_database(disks)?,
        None => {
            return Err(Refusal::new(
                "it was not said what to make the new cluster from",
                "a database alone lacks what only the logs hold",
                "rescue repair with all control planes' disks, which keeps every acknowledged write where it can; or add --db-only, or --from FILE",
            )
            .into());
        }
    };
    let file = origin.open(readable)?;
    let size = file.size();
    let mut notes = Vec::new();
    match trailer(&file)? {
        Trailer::Sound => notes.push(format!("{origin} is a saved snapshot, and its checksum is right.")),
        Trailer::None => {}
        Trailer::Wrong => {
            return Err(Refusal::new(
                format!("the checksum at the end of {origin} does not fit"),
                "the saved snapshot was cut short or has changed since it was saved",
                "take another copy of it; or salvage what is in it: rescue etcd salvage",
            )
            .into());
        }
    }
    let checked = Backend::open(file).and_then(|backend| {
        let facts = backend.facts()?;
        let progress = Terminal.begin(&format!("checking {origin}"), Some(size));
        let survey = survey(&backend, &facts, facts.compacted, &*progress)?;
        Ok((facts, survey, backend.db.meta().page_size))
    });
    let (facts, survey, page_size) = checked.map_err(|fault| {
        Refusal::new(
            format!("{origin}: {fault}"),
            "the database is damaged",
            "take that of another member, or a saved snapshot; the last resort is rescue etcd salvage",
        )
    })?;
    let Survey { check, keys, revisions, last_write, .. } = survey;
    let guarantee = Guarantee {
        revision: Some(facts.revision),
        newest_write: last_write.as_ref().map(|write| write.time),
        ..Guarantee::new(Level::G3)
    };
    let json = json!({
        "origin": origin.to_string(),
        "revision": facts.revision,
        "compact_revision": facts.compacted,
        "consistent_index": facts.consistent_index,
        "keys": keys,
        "revisions": revisions,
        "last_write": last_write,
    });
    let bytes = check.pages.saturating_mul(page_size).saturating_mul(5) / 4 + (1 << 20);
    Ok(Chosen { origin, revision: facts.revision, facts, bytes, guarantee, notes, json, uncertain: Vec::new() })
}

/// By the last entry that is in it.
fn newest_database(disks: &Disks) -> Result<Origin> {
    let open = disks.opened.found.iter().zip(&disks.data).filter(|(_, data)| matches!(data.stored, Stored::Open(_)));
    let Some((found, data)) = open.max_by_key(|(_, data)| data.consistent_index()) else {
        return Err(Refusal::new(
            "no database on the disks can be opened",
            "there is nothing to make a cluster from",
            "give a saved snapshot with --from FILE; the last resort is rescue etcd salvage",
        )
        .into());
    };
    Ok(Origin::in_guest(&found.guest, &data.place.db())?)
}

fn salvaged(asked: &Asked<'_>, disks: &Disks, readable: &folder::Sources<'_>) -> Result<Chosen> {
    let origin = match (asked.from, disks.opened.found.first(), disks.data.first()) {
        (Some(path), ..) => Origin::Local(path.clone()),
        (None, Some(found), Some(data)) => Origin::in_guest(&found.guest, &data.place.db())?,
        _ => bail!("no database given"),
    };
    let sound = Backend::open(origin.open(readable)?).and_then(|backend| backend.db.check(&mut |_, _| {}));
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
            named.push(raw::name(key));
        }
        if uncertain.len() < MAX_NAMES {
            uncertain.extend_from_slice(raw::name(key).as_bytes());
            uncertain.push(b'\n');
        }
    })?;
    drop(progress);
    let mut facts = salvage.facts.clone();
    facts.revision = report.revision;
    let mut guarantee = Guarantee { revision: Some(report.revision), ..Guarantee::new(Level::G4) };
    guarantee.also = told(&report, &named);
    let json = json!({ "origin": origin.to_string(), "salvage": report, "uncertain_keys": named });
    let bytes = size.saturating_mul(5) / 4 + (1 << 20);
    Ok(Chosen { origin, revision: report.revision, facts, bytes, guarantee, notes: Vec::new(), json, uncertain })
}

/// What was salvaged, in sentences.
fn told(report: &Report, named: &[String]) -> Vec<String> {
    let count = |number: u64, one, many| units::count(usize::try_from(number).unwrap_or(usize::MAX), one, many);
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
        let more = if more > 0 { format!(", and {more} more (all are listed with --output)") } else { String::new() };
        lines.push(format!(
            "Uncertain: {}, whose newest value lies on no page that the tree leads to: {}{more}.",
            count(report.uncertain_keys, "key", "keys"),
            named.join(", ")
        ));
    }
    if !report.damaged_buckets.is_empty() {
        lines.push(format!("Damaged or lost beside the keys: {}.", report.damaged_buckets.join(", ")));
    }
    if report.damaged_buckets.iter().any(|bucket| bucket.starts_with("auth")) {
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
        lines.push("There are more pages of history than are kept: not all of them were used.".to_owned());
    }
    lines
}

/// "3, 7 to 9, and more".
fn ranges(all: &[(i64, i64)]) -> String {
    let shown: Vec<String> = all
        .iter()
        .take(10)
        .map(|(from, to)| if from == to { from.to_string() } else { format!("{from} to {to}") })
        .collect();
    format!("{}{}", shown.join(", "), if all.len() > shown.len() { ", and more" } else { "" })
}

fn plan(asked: &Asked<'_>, disks: &Disks, chosen: Chosen) -> Result<Plan> {
    let token = format!("rescue-{}", new_run_id(args::with_now(asked.manner.now).now));
    let cluster = NewCluster::new(&disks.targets, &token)?;
    let form = if chosen.facts.consistent_index == 0 { Form::V3_5 } else { form(&chosen.facts) };
    let parts: Vec<Part> = disks
        .targets
        .iter()
        .zip(&cluster.order)
        .enumerate()
        .map(|(number, (target, own))| Part {
            name: target.name.clone(),
            found: (number < disks.opened.found.len()).then_some(number),
            recipe: Rc::new(FromDatabase {
                origin: chosen.origin.clone(),
                is_salvage: asked.is_salvage,
                cluster: cluster.clone(),
                own: *own,
                form,
                version: chosen.facts.cluster_version.clone(),
                revision: chosen.revision,
                bump: asked.bump,
                database_bytes: chosen.bytes,
            }),
            details: vec![
                format!("becomes member {own:x} of the new cluster {:x}", cluster.id),
                target.peer_urls.join(","),
            ],
        })
        .collect();
    for part in &parts {
        refuse_odd_name(&part.name)?;
    }
    let names: Vec<&str> = disks.targets.iter().map(|target| target.name.as_str()).collect();
    let verb =
        if asked.is_salvage { "make a new etcd cluster from what is left of" } else { "make a new etcd cluster from" };
    Ok(Plan {
        summary: format!("{verb} {}, on {}", chosen.origin, names.join(", ")),
        guarantee: chosen.guarantee,
        notes: chosen.notes,
        parts,
        facts: chosen.json,
        uncertain: chosen.uncertain,
    })
}

/// A name becomes a folder's.
fn refuse_odd_name(name: &str) -> Result<()> {
    if !name.starts_with('.') && !name.contains(['/', '\0']) {
        return Ok(());
    }
    Err(Refusal::new(
        format!("a member is named {}", raw::name(name.as_bytes())),
        "no member's name looks like a path",
        "say who is who with --member NAME=URL",
    )
    .into())
}
