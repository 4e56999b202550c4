//! What `rescue etcd rebuild` and `salvage` share: who the new cluster consists of, and the plan for it.

use crate::base::escaping;
use std::path::PathBuf;
use std::rc::Rc;

use anyhow::Result;
use serde_json::Value;

use super::making::{Manner, Part, Plan};
use super::opened::Opened;
use super::sources::Sources;
use crate::base::refusal::Refusal;
use crate::base::units;
use crate::change::folder;
use crate::cli::Outcome;
use crate::cli::args::{self, Stop};
use crate::etcd::operations::guarantee::Guarantee;
use crate::etcd::operations::rebuild::from_db::{FromDatabase, form};
use crate::etcd::operations::rebuild::origin::Origin;
use crate::etcd::operations::rebuild::target::{NewCluster, Target};
use crate::etcd::read::backend::Facts;
use crate::etcd::read::member::MemberData;
use crate::etcd::read::status::Found;
use crate::etcd::write::Form;
use crate::pki::trust::etcd::{self as trust, LeftOut, Why};
use crate::plan::etcd::claims;
use crate::repair::transaction::new_run_id;

/// What both commands are given.
pub(super) struct Asked<'a> {
    /// The disks; none where a file and the members are named.
    pub sources: Option<Sources>,
    /// `--member`.
    pub member: &'a [Target],
    /// `--declare-dead`.
    pub declare_dead: &'a [String],
    /// `--bump`.
    pub bump: i64,
    /// `--unproven`.
    pub unproven: bool,
    /// Whether the database may be damaged.
    pub is_salvage: bool,
    /// How it is to be done.
    pub manner: Manner<'a>,
}

/// Reads what both commands are given off one of them: argh has no way to put one set of flags into two commands.
macro_rules! asked {
    ($command:expr, $is_salvage:expr, $typed:expr) => {
        $crate::cli::etcd::new_cluster::Asked {
            sources: $crate::cli::etcd::new_cluster::sources(
                (&$command.src, &$command.root, &$command.data_dir),
                &$command.member,
                $command.from.as_ref(),
                $typed,
            )?,
            member: &$command.member,
            declare_dead: &$command.declare_dead,
            bump: $command.bump,
            unproven: $command.unproven,
            is_salvage: $is_salvage,
            manner: $crate::cli::etcd::making::Manner {
                output: $command.output.as_deref(),
                yes: $command.yes,
                accept_loss: $command.accept_loss,
                dry_run: $command.dry_run,
                json: $command.json,
                keep_in: $command.keep_in.as_deref(),
                trust: &$command.trust,
                now: $command.now,
            },
        }
    };
}
pub(super) use asked;

/// With a file and the members named no disk is needed.
pub(super) fn sources(
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
pub(super) struct Disks {
    /// Where each is.
    pub opened: Opened,
    /// What each holds.
    pub data: Vec<MemberData>,
    targets: Vec<Target>,
}

impl Disks {
    fn look(asked: &Asked<'_>) -> Result<Self> {
        let opened = match &asked.sources {
            Some(sources) => Opened::look(sources, &asked.manner)?,
            None => Opened::default(),
        };
        let found = &opened.found;
        let data: Vec<MemberData> = found
            .iter()
            .map(|found| MemberData::read(&found.guest, &found.place))
            .collect();
        for (found, data) in found.iter().zip(&data) {
            refuse_foreign_log(found, data)?;
        }
        let count = if found.is_empty() {
            asked.member.len()
        } else {
            found.len()
        };
        if !matches!(count, 1 | 3 | 5 | 7) {
            return Err(Refusal::new(
                format!("{} to be members", units::count(count, "machine is", "machines are")),
                "with an even number the failure of half of them stops etcd, and more than seven are slow",
                "give the disks of 1, 3 or 5 machines; more can join once the cluster runs",
            )
            .into());
        }
        let targets = match asked.member {
            [] => found
                .iter()
                .zip(&data)
                .map(|(found, data)| Target::of(found, data))
                .collect::<Result<_>>()?,
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
        Ok(Self {
            opened,
            data,
            targets,
        })
    }

    /// Voters that none of the disks holds.
    fn absent(&self, known: &Facts) -> Vec<(u64, String)> {
        let there: Vec<u64> = self
            .data
            .iter()
            .filter_map(|data| Some(data.log.identity?.member))
            .collect();
        let listed = self
            .data
            .iter()
            .map(|data| data.membership().0)
            .chain([known.members.clone()]);
        let mut absent: Vec<(u64, String)> = Vec::new();
        for member in listed.flat_map(|members| members.list.into_values()) {
            let is_here = there.contains(&member.id)
                || self.targets.iter().any(|target| target.name == member.name);
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
pub(super) struct Chosen {
    /// Which.
    pub origin: Origin,
    /// What it says of itself.
    pub facts: Facts,
    /// Its newest revision.
    pub revision: i64,
    /// How large the new one may become.
    pub bytes: u64,
    /// What is promised.
    pub guarantee: Guarantee,
    /// What else should be known, in sentences.
    pub notes: Vec<String>,
    /// The same for programs.
    pub json: Value,
    /// Keys whose newest value is uncertain, one a line.
    pub uncertain: Vec<u8>,
}

/// Makes the cluster from the database that `choose` takes.
///
/// # Errors
/// A [`Refusal`] where it cannot be made, or must not.
pub(super) fn make(
    asked: &Asked<'_>,
    choose: impl FnOnce(&Disks, &folder::Sources<'_>) -> Result<Chosen>,
) -> Result<Outcome> {
    let disks = Disks::look(asked)?;
    let guests: Vec<_> = disks
        .opened
        .found
        .iter()
        .map(|found| &found.guest)
        .collect();
    let readable = folder::Sources::new(guests);
    let mut chosen = choose(&disks, &readable)?;
    chosen
        .notes
        .extend(refuse_strangers(asked, &disks, &chosen.origin)?);
    if let Some(version) = chosen
        .facts
        .storage_version
        .as_ref()
        .filter(|_| !asked.unproven)
    {
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
        chosen
            .notes
            .push("Authentication is on in it and stays on, with its users and roles.".to_owned());
    }
    chosen.guarantee.raises_revision = asked.bump > 0;
    chosen.guarantee.missing = absent.iter().map(|(id, name)| shown(*id, name)).collect();
    chosen
        .notes
        .extend(later_logs(&disks, &chosen.facts, asked.is_salvage));
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
    plan.carry_out(
        opened,
        asked.sources.as_ref().map_or(&[], |sources| &sources.disks),
        &asked.manner,
    )
}

/// A disk that shares no key with the others gets nothing of this cluster, and gives nothing to it; nor does one whose database replaces a
/// history that knows nothing of it. A file that the user names is the user's own word, but whoever gets it must belong together. Gives
/// what is done on the user's word alone.
fn refuse_strangers(asked: &Asked<'_>, disks: &Disks, origin: &Origin) -> Result<Vec<String>> {
    let found = &disks.opened.found;
    let claims = claims::claims_of(found, &disks.data, &asked.manner.settings())?;
    let donor = match origin {
        Origin::Guest { source, .. } => {
            found.iter().position(|found| found.guest.source == *source)
        }
        Origin::Local(_) => None,
    };
    let others = 0..claims.len();
    // What is written elsewhere from the user's own file takes nothing from one disk to another.
    let reference = match donor {
        Some(donor) => donor,
        None if asked.manner.output.is_some() => return Ok(Vec::new()),
        None => (0..claims.len())
            .find(|number| !claims[*number].proven.is_empty())
            .unwrap_or(0),
    };
    let judged = |receiver: usize| match donor {
        Some(donor) => trust::lends(&claims, donor, receiver),
        None if trust::share_keys(&claims, reference, receiver) => Ok(()),
        None => Err(Why::NoKey),
    };
    for receiver in others.filter(|number| *number != reference) {
        let Err(why) = judged(receiver) else { continue };
        let is_receivers = donor.is_none()
            || (why == Why::NoKey
                && claims[receiver].proven.is_empty()
                && !claims[reference].proven.is_empty());
        let (doubted, beside) = if is_receivers {
            (receiver, reference)
        } else {
            (reference, receiver)
        };
        let left = LeftOut {
            doubted: vec![doubted],
            beside: vec![beside],
            why,
            matters: true,
        };
        let Refusal { saw, next, .. } = claims::refusal(&left, &claims);
        let means = "the new cluster would carry what is on one of them to the other".to_owned();
        let next = format!("leave its disk out; {next}");
        return Err(Refusal { saw, means, next }.into());
    }
    let trusted = claims
        .iter()
        .filter(|claim| claim.is_trusted && claims.len() > 1);
    Ok(trusted
        .map(|claim| {
            format!(
                "{} counts as a member of this etcd on your word (--trust).",
                claim.shown
            )
        })
        .collect())
}

fn shown(id: u64, name: &str) -> String {
    if name.is_empty() {
        format!("{id:x}")
    } else {
        name.to_owned()
    }
}

/// Old members that are still somewhere are a majority of the old cluster, whatever is made here.
fn refuse_absent(asked: &Asked<'_>, absent: &[(u64, String)]) -> Result<()> {
    let alive: Vec<String> = absent
        .iter()
        .filter(|(id, name)| {
            !asked
                .declare_dead
                .iter()
                .any(|dead| dead == name || *dead == format!("{id:x}"))
        })
        .map(|(id, name)| shown(*id, name))
        .collect();
    if alive.is_empty() || asked.manner.output.is_some() || asked.manner.dry_run {
        return Ok(());
    }
    let flags: Vec<String> = alive
        .iter()
        .map(|name| format!("--declare-dead {name}"))
        .collect();
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
        let more = data
            .log
            .last
            .checked_sub(facts.consistent_index)
            .filter(|more| *more > 0 && !data.log.is_empty())?;
        Some(format!(
            "The log on {} holds {} more than the database; they are not taken over{}.",
            found.source,
            units::count(
                usize::try_from(more).unwrap_or(usize::MAX),
                "entry",
                "entries"
            ),
            if is_salvage {
                ""
            } else {
                " (rescue repair, given all disks, takes them over where it can)"
            }
        ))
    };
    disks
        .opened
        .found
        .iter()
        .zip(&disks.data)
        .filter_map(later)
        .collect()
}

fn plan(asked: &Asked<'_>, disks: &Disks, chosen: Chosen) -> Result<Plan> {
    let token = format!(
        "rescue-{}",
        new_run_id(args::with_now(asked.manner.now).now)
    );
    let cluster = NewCluster::new(&disks.targets, &token)?;
    let form = if chosen.facts.consistent_index == 0 {
        Form::V3_5
    } else {
        form(&chosen.facts)
    };
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
    let names: Vec<&str> = disks
        .targets
        .iter()
        .map(|target| target.name.as_str())
        .collect();
    let verb = if asked.is_salvage {
        "make a new etcd cluster from what is left of"
    } else {
        "make a new etcd cluster from"
    };
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
        format!("a member is named {}", escaping::key(name.as_bytes())),
        "no member's name looks like a path",
        "say who is who with --member NAME=URL",
    )
    .into())
}
