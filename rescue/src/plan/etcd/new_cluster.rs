//! A new cluster from one database: who its members are, whether the disks given may share what is
//! in the database, and what is promised. Which database it is, [`super::rebuild`] and
//! [`super::salvage`] choose.

use std::rc::Rc;

use anyhow::Result;
use serde_json::Value;

use super::claims;
use super::members_plan::{MembersPlan, PlannedMember};
use crate::base::escaping;
use crate::base::refusal::Refusal;
use crate::base::units;
use crate::change::folder;
use crate::etcd::operations::guarantee::Guarantee;
use crate::etcd::operations::rebuild::from_db::{FromDatabase, form};
use crate::etcd::operations::rebuild::origin::Origin;
use crate::etcd::operations::rebuild::target::{NewCluster, Target};
use crate::etcd::read::backend::Facts;
use crate::etcd::read::member::MemberData;
use crate::etcd::read::status::Found;
use crate::etcd::write::Form;
use crate::guest::Guest;
use crate::pki::trust::etcd::{self as trust, Claim, LeftOut, Why};
use crate::repair::transaction::new_run_id;
use crate::settings::Settings;

/// What the user asked for.
#[derive(Debug, Clone, Copy)]
pub struct NewClusterRequest<'a> {
    /// Names and peer URLs of the members, one for each disk in their order; empty where the disks
    /// are to say them.
    pub targets: &'a [Target],
    /// Members of the old cluster, by name or ID, that will never start again as they were.
    pub declare_dead: &'a [String],
    /// By how much the revision is raised.
    pub bump: i64,
    /// Whether databases of versions are taken that no rebuild has been proved on.
    pub unproven: bool,
    /// Whether the database is too damaged to be read as a tree, so that its pages are.
    pub is_salvage: bool,
    /// Whether the folders are written beside, and the disks stay as they are.
    pub is_written_beside: bool,
    /// Whether the plan is only shown.
    pub dry_run: bool,
    /// Of the run.
    pub settings: &'a Settings,
}

/// The members found, what their disks hold, and who they become.
pub(super) struct MembersAtHand<'a> {
    pub found: &'a [Found],
    /// In the order of `found`.
    pub data: Vec<MemberData>,
    /// In the order of `found`, where anything was found.
    targets: Vec<Target>,
}

/// A database, and what was learned of it.
pub(super) struct ChosenDatabase {
    pub origin: Origin,
    /// What it says of itself.
    pub facts: Facts,
    /// Its newest revision.
    pub revision: i64,
    /// Bytes that the new database takes at most.
    pub bytes: u64,
    /// What is promised.
    pub guarantee: Guarantee,
    /// What else should be known, in sentences.
    pub notes: Vec<String>,
    /// What was found, for programs.
    pub json: Value,
    /// Keys whose newest value is uncertain, one a line.
    pub uncertain_keys: Vec<u8>,
}

/// Plans a cluster from the database that `choose` takes.
///
/// # Errors
/// A [`Refusal`] where it cannot be made, or must not.
pub(super) fn plan(
    found: &[Found],
    request: &NewClusterRequest<'_>,
    choose: impl FnOnce(&MembersAtHand<'_>, &folder::Sources<'_>) -> Result<ChosenDatabase>,
) -> Result<MembersPlan> {
    let at_hand = MembersAtHand::read(found, request)?;
    let guests: Vec<&Guest> = found.iter().map(|found| &found.guest).collect();
    let readable = folder::Sources::new(guests);
    let mut chosen = choose(&at_hand, &readable)?;
    let trusted = refuse_strangers(request, &at_hand, &chosen.origin)?;
    chosen.notes.extend(trusted);
    refuse_unproven(request, &chosen.facts)?;
    let absent = at_hand.absent(&chosen.facts);
    refuse_absent(request, &absent)?;
    chosen.guarantee.raises_revision = request.bump > 0;
    chosen.guarantee.missing = absent.iter().map(|(id, name)| shown(*id, name)).collect();
    let notes = notes(request, &at_hand, &chosen);
    chosen.notes.extend(notes);
    members_plan(request, &at_hand, chosen)
}

impl<'a> MembersAtHand<'a> {
    fn read(found: &'a [Found], request: &NewClusterRequest<'_>) -> Result<Self> {
        let data: Vec<MemberData> = found
            .iter()
            .map(|found| MemberData::read(&found.guest, &found.place))
            .collect();
        for (found, data) in found.iter().zip(&data) {
            refuse_foreign_log(found, data)?;
        }
        let count = if found.is_empty() {
            request.targets.len()
        } else {
            found.len()
        };
        refuse_count(count)?;
        let targets = match request.targets {
            [] => found
                .iter()
                .zip(&data)
                .map(|(found, data)| Target::of(found, data))
                .collect::<Result<_>>()?,
            named if named.len() == count => named.to_vec(),
            named => return Err(other_count(named.len(), count).into()),
        };
        Ok(Self {
            found,
            data,
            targets,
        })
    }

    /// IDs and names of the voters that none of the disks holds.
    fn absent(&self, known: &Facts) -> Vec<(u64, String)> {
        let at_hand: Vec<u64> = self
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
            let is_here = at_hand.contains(&member.id)
                || self.targets.iter().any(|target| target.name == member.name);
            if !is_here && !member.is_learner && absent.iter().all(|(id, _)| *id != member.id) {
                absent.push((member.id, member.name));
            }
        }
        absent
    }
}

fn refuse_count(count: usize) -> Result<(), Refusal> {
    if matches!(count, 1 | 3 | 5 | 7) {
        return Ok(());
    }
    Err(Refusal::new(
        format!(
            "{} to be members",
            units::count(count, "machine is", "machines are")
        ),
        "with an even number the failure of half of them stops etcd, and more than seven are slow",
        "give the disks of 1, 3 or 5 machines; more can join once the cluster runs",
    ))
}

fn other_count(named: usize, disks: usize) -> Refusal {
    Refusal::new(
        format!(
            "{} named with --member for {disks} disks",
            units::count(named, "member is", "members are")
        ),
        "which is which would be a guess",
        "name one for each disk, in their order, or none",
    )
}

/// A log outside the folder that is replaced would stay, and belong to nobody.
fn refuse_foreign_log(found: &Found, data: &MemberData) -> Result<(), Refusal> {
    if data.place.wal == data.place.member().join("wal") {
        return Ok(());
    }
    Err(Refusal::new(
        format!(
            "etcd on {} keeps its log in {} (--wal-dir)",
            found.source, data.place.wal
        ),
        "only the folder member is made anew, and a log elsewhere would not fit to it",
        "take --wal-dir out of etcd's flags, or add --output DIR and place what is written \
         yourself",
    ))
}

fn refuse_unproven(request: &NewClusterRequest<'_>, facts: &Facts) -> Result<(), Refusal> {
    let Some(version) = facts.storage_version.as_ref().filter(|_| !request.unproven) else {
        return Ok(());
    };
    Err(Refusal::new(
        format!("the database is of format {version}"),
        "rebuilding etcd 3.6 and later has not been proved on a real one",
        "use etcdutl snapshot restore of that version, or add --unproven and keep a copy of \
         everything",
    ))
}

/// A disk that shares no key with the others gets nothing of this cluster, and gives nothing to it;
/// nor does one whose database replaces a history that knows nothing of it. A file that the user
/// names is the user's own word, but whoever gets it must belong together. Returns a sentence for
/// each member that counts on the user's word alone.
fn refuse_strangers(
    request: &NewClusterRequest<'_>,
    at_hand: &MembersAtHand<'_>,
    origin: &Origin,
) -> Result<Vec<String>> {
    let found = at_hand.found;
    let claims = claims::claims_of(found, &at_hand.data, request.settings)?;
    let donor = match origin {
        Origin::Guest { source, .. } => {
            found.iter().position(|found| found.guest.source == *source)
        }
        Origin::Local(_) => None,
    };
    // What is written elsewhere from the user's own file takes nothing from one disk to another.
    let reference = match donor {
        Some(donor) => donor,
        None if request.is_written_beside => return Ok(Vec::new()),
        None => (0..claims.len())
            .find(|number| !claims[*number].proven.is_empty())
            .unwrap_or(0),
    };
    let judged = |receiver: usize| match donor {
        Some(donor) => trust::lends(&claims, donor, receiver),
        None if trust::share_keys(&claims, reference, receiver) => Ok(()),
        None => Err(Why::NoKey),
    };
    for receiver in (0..claims.len()).filter(|number| *number != reference) {
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
        return Err(stranger(&claims, doubted, beside, why).into());
    }
    Ok(trusted_by_the_user(&claims))
}

fn stranger(claims: &[Claim], doubted: usize, beside: usize, why: Why) -> Refusal {
    let left_out = LeftOut {
        doubted: vec![doubted],
        beside: vec![beside],
        why,
        matters: true,
    };
    let Refusal { saw, next, .. } = claims::refusal(&left_out, claims);
    Refusal {
        saw,
        means: "the new cluster would carry what is on one of them to the other".to_owned(),
        next: format!("leave its disk out; {next}"),
    }
}

fn trusted_by_the_user(claims: &[Claim]) -> Vec<String> {
    claims
        .iter()
        .filter(|claim| claim.is_trusted && claims.len() > 1)
        .map(|claim| {
            format!(
                "{} counts as a member of this etcd on your word (--trust).",
                claim.shown
            )
        })
        .collect()
}

fn shown(id: u64, name: &str) -> String {
    if name.is_empty() {
        format!("{id:x}")
    } else {
        name.to_owned()
    }
}

/// Old members that are still somewhere are a majority of the old cluster, whatever is made here.
fn refuse_absent(request: &NewClusterRequest<'_>, absent: &[(u64, String)]) -> Result<(), Refusal> {
    let is_dead = |id: u64, name: &String| {
        let mut dead = request.declare_dead.iter();
        dead.any(|dead| dead == name || *dead == format!("{id:x}"))
    };
    let alive: Vec<String> = absent
        .iter()
        .filter(|(id, name)| !is_dead(*id, name))
        .map(|(id, name)| shown(*id, name))
        .collect();
    if alive.is_empty() || request.is_written_beside || request.dry_run {
        return Ok(());
    }
    let flags: Vec<String> = alive
        .iter()
        .map(|name| format!("--declare-dead {name}"))
        .collect();
    Err(Refusal::new(
        format!(
            "{} of the old cluster not given",
            units::count(alive.len(), "member is", "members are")
        ),
        format!(
            "{} may start again as a member of the old cluster, beside the new one, and serve old \
             data to whoever asks it",
            alive.join(" or ")
        ),
        format!(
            "give their disks too, or, where they will never start again as they are: {}",
            flags.join(" ")
        ),
    ))
}

/// What should be known beside the promise, in sentences.
fn notes(
    request: &NewClusterRequest<'_>,
    at_hand: &MembersAtHand<'_>,
    chosen: &ChosenDatabase,
) -> Vec<String> {
    let mut notes = Vec::new();
    if chosen.facts.auth_enabled {
        notes.push("Authentication is on in it and stays on, with its users and roles.".to_owned());
    }
    notes.extend(later_logs(at_hand, &chosen.facts, request.is_salvage));
    if request.bump > 0 {
        notes.push(format!(
            "The new cluster begins at revision {}, all history before is compacted: clients that \
             watched the old one list anew.",
            chosen.revision.saturating_add(request.bump)
        ));
    }
    notes
}

/// What logs hold beyond the database.
fn later_logs(at_hand: &MembersAtHand<'_>, facts: &Facts, is_salvage: bool) -> Vec<String> {
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
    at_hand
        .found
        .iter()
        .zip(&at_hand.data)
        .filter_map(later)
        .collect()
}

fn members_plan(
    request: &NewClusterRequest<'_>,
    at_hand: &MembersAtHand<'_>,
    chosen: ChosenDatabase,
) -> Result<MembersPlan> {
    let token = format!("rescue-{}", new_run_id(request.settings.now));
    let cluster = NewCluster::new(&at_hand.targets, &token)?;
    let members: Vec<PlannedMember> = (0..)
        .zip(at_hand.targets.iter().zip(&cluster.order))
        .map(|(number, (target, own))| PlannedMember {
            name: target.name.clone(),
            found: (number < at_hand.found.len()).then_some(number),
            recipe: Rc::new(recipe(request, &chosen, &cluster, *own)),
            details: vec![
                format!("becomes member {own:x} of the new cluster {:x}", cluster.id),
                target.peer_urls.join(","),
            ],
        })
        .collect();
    for member in &members {
        refuse_odd_name(&member.name)?;
    }
    let names: Vec<&str> = members.iter().map(|member| member.name.as_str()).collect();
    let verb = if request.is_salvage {
        "make a new etcd cluster from what is left of"
    } else {
        "make a new etcd cluster from"
    };
    Ok(MembersPlan {
        summary: format!("{verb} {}, on {}", chosen.origin, names.join(", ")),
        guarantee: chosen.guarantee,
        notes: chosen.notes,
        members,
        facts: chosen.json,
        uncertain_keys: chosen.uncertain_keys,
    })
}

/// `own`: the ID of the member that gets the folder.
fn recipe(
    request: &NewClusterRequest<'_>,
    chosen: &ChosenDatabase,
    cluster: &NewCluster,
    own: u64,
) -> FromDatabase {
    let form = if chosen.facts.consistent_index == 0 {
        Form::V3_5
    } else {
        form(&chosen.facts)
    };
    FromDatabase {
        origin: chosen.origin.clone(),
        is_salvage: request.is_salvage,
        cluster: cluster.clone(),
        own,
        form,
        version: chosen.facts.cluster_version.clone(),
        revision: chosen.revision,
        bump: request.bump,
        database_bytes: chosen.bytes,
    }
}

/// A name becomes a folder's.
fn refuse_odd_name(name: &str) -> Result<(), Refusal> {
    if !name.starts_with('.') && !name.contains(['/', '\0']) {
        return Ok(());
    }
    Err(Refusal::new(
        format!("a member is named {}", escaping::key(name.as_bytes())),
        "no member's name looks like a path",
        "say who is who with --member NAME=URL",
    ))
}
