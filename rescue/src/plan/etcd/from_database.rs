//! The last way: no log is left that could be built upon, so the newest sound database becomes a
//! new cluster on all disks.

use anyhow::{Context as _, Result};

use super::plan::{dead, token};
use super::seen::Seen;
use crate::base::refusal::Refusal;
use crate::etcd::format::members::{Member, Members};
use crate::etcd::operations::guarantee::{Guarantee, Level};
use crate::etcd::operations::rebuild::DatabaseFile;
use crate::etcd::operations::rebuild::from_db::{BUMP, FromDatabase, form};
use crate::etcd::operations::rebuild::origin::Origin;
use crate::etcd::operations::rebuild::target::{NewCluster, Target};
use crate::etcd::read::backend::Facts;
use crate::plan::set::{SetPart, SetPlan, SetWishes};

/// What a new database takes beside what the old one took.
const MORE: u64 = 1 << 20;

/// Where no disk has a log: who belongs to the cluster is what the newest database says. `None`
/// where no database is sound.
///
/// # Errors
/// A [`Refusal`] where members are missing.
pub fn without_any_log(seen: &[Seen<'_>], wishes: &SetWishes) -> Result<Option<SetPlan>> {
    let all: Vec<&Seen<'_>> = seen.iter().collect();
    let Some((_, database)) = newest(&all) else {
        return Ok(None);
    };
    let members = &database.facts.members;
    let mut known: Vec<(&Seen<'_>, Member)> = Vec::new();
    for one in seen {
        let is_own = |member: &&Member| {
            one.flag_name.as_ref() == Some(&member.name)
                || member
                    .peer_urls
                    .iter()
                    .any(|url| one.flag_urls.contains(url))
        };
        if let Some(member) = members.list.values().find(is_own) {
            known.push((one, member.clone()));
        }
    }
    let dead = dead(wishes, members, &known)?;
    let there = |id: u64| known.iter().any(|(_, member)| member.id == id) || dead.contains(&id);
    let absent: Vec<&str> = members
        .list
        .values()
        .filter(|member| !there(member.id))
        .map(|member| member.name.as_str())
        .collect();
    if !absent.is_empty() {
        return Err(Refusal::new(
            format!(
                "no log of etcd is left here, and the disks of {} are not at hand",
                absent.join(", ")
            ),
            "they may hold a log, and with it writes that the databases here lack",
            "give the disks of all members in one run; one that is lost for good is named with \
             --declare-dead NAME",
        )
        .into());
    }
    plan(&known, members, &dead, wishes)
}

/// The database that reaches furthest, and whose it is.
fn newest<'s>(seen: &[&'s Seen<'s>]) -> Option<(&'s Seen<'s>, DatabaseFile)> {
    let sound = seen
        .iter()
        .filter_map(|seen| Some((*seen, seen.database()?)));
    sound.max_by_key(|(_, database)| database.facts.consistent_index)
}

fn refuse_unproven(facts: &Facts, wishes: &SetWishes) -> Result<(), Refusal> {
    let Some(version) = facts.storage_version.as_ref().filter(|_| !wishes.unproven) else {
        return Ok(());
    };
    Err(Refusal::new(
        format!("the database is of format {version}"),
        "rebuilding etcd 3.6 and later has not been proved on a real one",
        "etcdutl snapshot restore of that version, or --unproven",
    ))
}

/// One for each member: a folder made of the database of `owner`.
fn parts(
    seen: &[(&Seen<'_>, Member)],
    owner: &Seen<'_>,
    database: &DatabaseFile,
) -> Result<Vec<SetPart>> {
    let facts = &database.facts;
    let target = |(seen, known): &(&Seen<'_>, Member)| Target {
        name: seen.flag_name.clone().unwrap_or_else(|| known.name.clone()),
        peer_urls: if seen.flag_urls.is_empty() {
            known.peer_urls.clone()
        } else {
            seen.flag_urls.clone()
        },
    };
    let targets: Vec<Target> = seen.iter().map(target).collect();
    let cluster = NewCluster::new(&targets, &token()?)?;
    let origin =
        Origin::in_guest(owner.guest, &owner.place.db()).context("finding the database")?;
    let mut parts = Vec::new();
    for ((seen, _), own) in seen.iter().zip(&cluster.order) {
        let recipe = FromDatabase {
            origin: origin.clone(),
            is_salvage: false,
            cluster: cluster.clone(),
            own: *own,
            form: form(facts),
            version: facts.cluster_version.clone(),
            revision: facts.revision,
            bump: BUMP,
            database_bytes: database.length.saturating_mul(5) / 4 + MORE,
        };
        let details = format!(
            "give etcd the database of {}, with its revision raised to {}, and a new member ID, \
             {own:x}",
            owner.name,
            recipe.raised()
        );
        parts.push(seen.part(recipe, vec![details])?);
    }
    Ok(parts)
}

/// A new cluster of these members. `None` where no database is sound.
///
/// # Errors
/// A [`Refusal`] where it cannot be done.
pub fn plan(
    seen: &[(&Seen<'_>, Member)],
    members: &Members,
    dead: &[u64],
    wishes: &SetWishes,
) -> Result<Option<SetPlan>> {
    let all: Vec<&Seen<'_>> = seen.iter().map(|(seen, _)| *seen).collect();
    let Some((owner, database)) = newest(&all) else {
        return Ok(None);
    };
    let facts = &database.facts;
    refuse_unproven(facts, wishes)?;
    let parts = parts(seen, owner, &database)?;
    let mut guarantee = Guarantee {
        revision: Some(facts.revision),
        raises_revision: true,
        ..Guarantee::new(Level::G3)
    };
    let absent = members
        .list
        .values()
        .filter(|member| dead.contains(&member.id));
    guarantee.missing = absent.map(|member| member.name.clone()).collect();
    let names: Vec<&str> = seen.iter().map(|(seen, _)| seen.name.as_str()).collect();
    Ok(Some(SetPlan {
        summary: format!(
            "make a new etcd cluster on {} from the database of {}",
            names.join(", "),
            owner.name
        ),
        guarantee,
        why: vec!["No log is left on any of the disks that could be built upon.".to_owned()],
        notes: Vec::new(),
        parts,
        afterwards: Vec::new(),
    }))
}
