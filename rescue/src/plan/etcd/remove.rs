//! One member, or all but one, leave the cluster: what that takes on the disks of all voters.
//!
//! A change that nobody voted for is safe only when no majority of the old voters can start without
//! it. So every voter's disk must be at hand, or be given up by name: those that leave are fenced,
//! and those that stay either are too few to go on alone, or get the change, too.

use anyhow::{Context as _, Result};

use super::plan::{JOIN_AS_SERVICE, Table, decided, members_of, refused_beside, with_notes};
use super::seen::Seen;
use super::{claims, odd};
use crate::base::refusal::Refusal;
use crate::base::ui::Ui;
use crate::change::Change;
use crate::etcd::format::members::Member;
use crate::etcd::operations::rebuild::{Recipe, changes};
use crate::finding::NodeReport;
use crate::plan::set::{SetPart, SetPlan, SetWishes};

/// Plans that the member called `name` (or of this ID) leaves, and whoever is declared dead with
/// it.
///
/// # Errors
/// A [`Refusal`] where it cannot be done.
pub fn plan_removal(
    nodes: &[NodeReport],
    name: &str,
    wishes: &SetWishes,
    ui: &dyn Ui,
) -> Result<SetPlan> {
    let seen: Vec<Seen<'_>> = nodes
        .iter()
        .filter_map(|node| Seen::look(node, ui))
        .collect();
    for seen in &seen {
        if let Some(holder) = &seen.holder {
            return Err(Refusal::new(
                format!("{holder} has the database of {} open", seen.name),
                "etcd is running, and members of a running cluster are removed by itself",
                format!(
                    "etcdctl member remove, or stop etcd on all members and run this again \
                    for {name}"
                ),
            )
            .into());
        }
    }
    let (claims, decided) = decided(&seen);
    let mut all: Vec<Option<Seen<'_>>> = seen.into_iter().map(Some).collect();
    let mut told = Vec::new();
    for unit in &decided.units {
        let mut members = members_of(unit, &mut all);
        if !knows(&members, name) {
            continue;
        }
        odd::mark(&mut members, ui);
        told.push((members, claims::notes(unit, &decided, &claims)));
    }
    let [(members, notes)] = told.as_slice() else {
        return Err(which(&told, name).into());
    };
    let planned = plan_among(members, name, wishes);
    planned
        .map(|plan| with_notes(plan, notes.clone()))
        .map_err(|error| refused_beside(error, notes))
}

/// Whether members that belong together have one of this name or ID.
fn knows(members: &[Seen<'_>], name: &str) -> bool {
    let lenders = members.iter().filter(|seen| seen.lends);
    let list = |seen: &Seen<'_>| seen.data.membership().0.list.into_values();
    let mut listed = lenders.flat_map(list);
    listed.any(|member| is_named(&member, name)) || members.iter().any(|seen| seen.name == name)
}

fn is_named(member: &Member, name: &str) -> bool {
    member.name == name || format!("{:x}", member.id) == name.trim_start_matches("0x")
}

/// No cluster, or several, have a member of this name.
fn which(told: &[(Vec<Seen<'_>>, Vec<String>)], name: &str) -> Refusal {
    match told {
        [] => Refusal::new(
            format!("no etcd cluster on these disks has a member {name}"),
            "there is nothing that could be removed",
            "rescue etcd status with the same disks shows the members; name one of them, or its ID",
        ),
        _ => Refusal::new(
            format!(
                "{} etcd clusters that do not belong together have a member {name}",
                told.len()
            ),
            "a member is removed from one",
            "give the disks of all members of one cluster; rescue etcd status shows which belong \
             together",
        ),
    }
}

fn plan_among(seen: &[Seen<'_>], name: &str, wishes: &SetWishes) -> Result<SetPlan> {
    let clusters = super::plan::clusters(seen);
    let [cluster] = clusters.as_slice() else {
        return Err(Refusal::new(
            format!("{} etcd clusters were found", clusters.len()),
            "a member is removed from one",
            "give the disks of all members of one cluster; rescue etcd status shows which belong \
             together",
        )
        .into());
    };
    let table = Table::lay(*cluster, seen, wishes, true)?
        .context("no log or database says who belongs to the cluster")?;
    Removal::of(table, name)?.plan()
}

struct Removal<'a> {
    table: Table<'a>,
    /// Everybody who leaves.
    gone: Vec<Member>,
    /// Numbers of those that stay.
    stays: Vec<usize>,
    /// Numbers of those that leave and whose disks are at hand.
    fenced: Vec<usize>,
}

impl<'a> Removal<'a> {
    fn of(mut table: Table<'a>, name: &str) -> Result<Self> {
        let by_node = table
            .seen
            .iter()
            .find(|(seen, _)| seen.name == name)
            .map(|(_, member)| member.clone());
        let Some(named) = table
            .members
            .list
            .values()
            .find(|member| is_named(member, name))
            .cloned()
            .or(by_node)
        else {
            let known: Vec<String> = table.members.list.values().map(Member::shown).collect();
            return Err(Refusal::new(
                format!("the cluster has no member {name}"),
                format!("its members are {}", known.join(", ")),
                "name one of them, or its ID",
            )
            .into());
        };
        let leaves =
            |member: &Member, dead: &[u64]| member.id == named.id || dead.contains(&member.id);
        let gone: Vec<Member> = table
            .members
            .list
            .values()
            .filter(|member| leaves(member, &table.dead))
            .cloned()
            .collect();
        let all: Vec<usize> = (0..table.seen.len()).collect();
        let (fenced, stays): (Vec<usize>, Vec<usize>) = all.into_iter().partition(|number| {
            gone.iter()
                .any(|member| member.id == table.seen[*number].1.id)
        });
        table.find_bases();
        let removal = Self {
            table,
            gone,
            stays,
            fenced,
        };
        removal.refuse_absent()?;
        if !removal
            .stays
            .iter()
            .any(|number| !removal.table.seen[*number].1.is_learner)
        {
            return Err(Refusal::new(
                "no voter would be left",
                "a cluster needs one at least",
                "leave out the one that is to stay, and give its disk",
            )
            .into());
        }
        Ok(removal)
    }

    /// Voters whose disks are neither at hand nor given up: they could start with what they have.
    fn refuse_absent(&self) -> Result<()> {
        let at_hand = |member: &Member| {
            self.table
                .seen
                .iter()
                .any(|(_, known)| known.id == member.id)
        };
        let absent: Vec<&Member> = self
            .table
            .members
            .list
            .values()
            .filter(|member| {
                !member.is_learner && !at_hand(member) && !self.table.dead.contains(&member.id)
            })
            .collect();
        if absent.is_empty() {
            return Ok(());
        }
        let names: Vec<String> = absent.iter().map(|member| member.handle()).collect();
        let dead: Vec<String> = names
            .iter()
            .map(|name| format!("--declare-dead {name}"))
            .collect();
        Err(Refusal::new(
            format!("the disks of {} are not at hand", names.join(", ")),
            "started with them, such a member could go on with the old cluster, or hold newer \
             writes than those that are here",
            format!(
                "give their disks, too: whoever leaves is fenced; or, if they never come \
                back, add {}",
                dead.join(" ")
            ),
        )
        .into())
    }

    fn plan(self) -> Result<SetPlan> {
        let table = &self.table;
        let best = table.best().context("no log can be built upon")?;
        let whole = table
            .seen
            .iter()
            .filter(|(seen, member)| !member.is_learner && table.is_whole(seen))
            .count();
        let majority = table.members.voters().count() / 2 + 1;
        let guarantee = table.guarantee(best, whole >= majority && table.holds_agreed(best))?;
        let (mut parts, why) = self.kept(best, majority)?;
        for number in &self.fenced {
            parts.push(self.fence(*number)?);
        }
        let gone: Vec<String> = self.gone.iter().map(Member::shown).collect();
        let summary = format!(
            "remove {} from the etcd cluster, which goes on with {}",
            gone.join(", "),
            table.names(&self.stays)
        );
        let afterwards = self
            .gone
            .iter()
            .filter(|member| member.has_joined())
            .map(|member| match table.are_services() {
                true => format!(
                    "{}: never start it as it is; to come back it joins anew \
                    ({JOIN_AS_SERVICE}).",
                    member.name
                ),
                false => format!(
                    "{}: kubectl delete node, then wipe its machine (kubeadm reset) before it \
                     joins again; never start it as it is.",
                    member.name
                ),
            })
            .collect();
        let notes = table.found_behind_damage.clone();
        Ok(SetPlan {
            summary,
            guarantee,
            why,
            notes,
            parts,
            afterwards,
        })
    }

    /// What those get that stay.
    fn kept(&self, best: usize, majority: usize) -> Result<(Vec<SetPart>, Vec<String>)> {
        let table = &self.table;
        if self
            .stays
            .iter()
            .any(|number| !table.is_whole(table.seen[*number].0))
        {
            let why =
                "One that stays has lost what it had promised, so all that stay begin anew with \
                 the newest history."
                    .to_owned();
            return Ok((table.cloned(best, &self.stays)?, vec![why]));
        }
        let base = table.base(best)?;
        let term = table.next_term(base);
        let leave = changes::remove(self.gone.iter().map(|member| member.id));
        // Who has the newest log of those that stay, the best itself if it does.
        // A learner cannot lead, so the others would never learn of the change from one.
        let voters: Vec<usize> = self
            .stays
            .iter()
            .copied()
            .filter(|number| !table.seen[*number].1.is_learner)
            .collect();
        let keeper = table
            .best_of(&voters)
            .context("none of those that stay has a log that can be built upon")?;
        let voters_alone = voters.iter().filter(|number| **number != keeper).count();
        let (changed, why) = self.changed(keeper, voters_alone, majority);
        let part = |number: &usize| {
            let identity = table.seen[*number]
                .0
                .data
                .log
                .identity
                .context("an identity")?;
            let recipe = Recipe::agreed(base, identity, term, leave.clone());
            let from = if *number == best {
                String::new()
            } else {
                format!(", with the history of {}", table.name(best))
            };
            table.part(
                *number,
                recipe,
                format!("append to etcd's log that it leaves{from}"),
            )
        };
        Ok((changed.iter().map(part).collect::<Result<_>>()?, why))
    }

    /// Who of those that stay gets the change, and why. `voters_alone`: how many voters stay beside
    /// the keeper.
    fn changed(
        &self,
        keeper: usize,
        voters_alone: usize,
        majority: usize,
    ) -> (Vec<usize>, Vec<String>) {
        if voters_alone >= majority {
            let why = "Those that stay are a majority of the old cluster without each other's \
                word, so all of them get the change.";
            return (self.stays.clone(), vec![why.to_owned()]);
        }
        let why = "Those that stay and are not changed are too few to go on without the change, \
            and take it over when they start.";
        let why = (voters_alone > 0).then(|| why.to_owned());
        (vec![keeper], why.into_iter().collect())
    }

    fn fence(&self, number: usize) -> Result<SetPart> {
        let (seen, member) = &self.table.seen[number];
        let path = seen.place.member();
        let why = format!(
            "etcd member {} was removed from its cluster",
            member.shown()
        );
        let change = Change::fence(seen.guest, &path, why)
            .with_context(|| format!("planning a fence on {}", seen.name))?;
        let details = vec![
            format!(
                "put a file in the place of {path}: etcd then stops instead of starting, empty or \
                 with what it had"
            ),
            format!("keep {path} as it is, whole, for undo"),
        ];
        Ok(SetPart {
            source: seen.guest.source.clone(),
            name: seen.name.clone(),
            details,
            changes: vec![change],
        })
    }
}
