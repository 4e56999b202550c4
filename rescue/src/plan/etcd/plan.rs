//! From the members on the table to one plan for all their nodes.

use std::collections::BTreeMap;
use std::rc::Rc;

use anyhow::{Context as _, Result};
use aws_lc_rs::rand;

use super::claims::AtHand;
use super::odd::Doubt;
use super::seen::Seen;
use super::table::{self, Decision, Repair, Situation, State, View};
use super::{claims, from_database, odd};
use crate::base::refusal::Refusal;
use crate::base::ui::Ui;
use crate::etcd::format::members::{Member, Members};
use crate::etcd::format::raft::Identity;
use crate::etcd::operations::guarantee::{Guarantee, Level};
use crate::etcd::operations::level::Tail;
use crate::etcd::operations::rebuild::base::{Options, Start};
use crate::etcd::operations::rebuild::{Base, Recipe};
use crate::etcd::read::boot::Kind;
use crate::etcd::read::launch::By;
use crate::etcd::read::status::{Verdict, compare_logs};
use crate::etcd::write::identity::member_id;
use crate::finding::NodeReport;
use crate::pki::trust::etcd::{Claim, Unit, Units};
use crate::plan::set::{SetPart, SetPlan, SetWishes};

/// What the members of each cluster need together: a plan, or why there can be none. Nothing where
/// each starts by itself, or does once its own node's plan has mended it in place. Members that
/// share no keys, or are not in one another's lists, are planned apart.
pub fn plan_sets(nodes: &[NodeReport], wishes: &SetWishes, ui: &dyn Ui) -> Vec<Result<SetPlan>> {
    let seen: Vec<Seen<'_>> = nodes
        .iter()
        .filter_map(|node| Seen::look(node, ui))
        .collect();
    let (seen, _running): (Vec<_>, Vec<_>) =
        seen.into_iter().partition(|seen| seen.holder.is_none());
    let (claims, decided) = decided(&seen);
    let mut plans = Vec::new();
    let mut all: Vec<Option<Seen<'_>>> = seen.into_iter().map(Some).collect();
    for unit in &decided.units {
        let members = members_of(unit, &mut all);
        let notes = claims::notes(unit, &decided, &claims);
        plans.extend(match plan_set(members, wishes, ui) {
            Ok(plan) => plan.map(|plan| Ok(with_notes(plan, notes))),
            Err(error) => Some(Err(refused_beside(error, &notes))),
        });
    }
    let left_out = decided.left_out.iter().filter(|left| left.matters);
    plans.extend(left_out.map(|left| Err(claims::refusal(left, &claims).into())));
    plans
}

/// What the disks say and prove, and who may be planned together by that.
pub(super) fn decided(seen: &[Seen<'_>]) -> (Vec<Claim>, Units) {
    let at_hand: Vec<AtHand<'_>> = seen.iter().map(Seen::at_hand).collect();
    let claims = claims::claims(&at_hand);
    let decided = crate::pki::trust::etcd::units(&claims);
    (claims, decided)
}

/// The members of a unit; those that only receive are marked.
pub(super) fn members_of<'a>(unit: &Unit, all: &mut [Option<Seen<'a>>]) -> Vec<Seen<'a>> {
    let mut numbers: Vec<usize> = unit.all().collect();
    // In the order of the disks, as they were given.
    numbers.sort_unstable();
    let take = |number: usize| {
        let seen = all.get_mut(number)?.take()?;
        Some(Seen {
            lends: unit.lenders.contains(&number),
            ..seen
        })
    };
    numbers.into_iter().filter_map(take).collect()
}

/// Who is left out may be what is missing.
pub(super) fn refused_beside(error: anyhow::Error, notes: &[String]) -> anyhow::Error {
    match error.downcast::<Refusal>() {
        Ok(refusal) if !notes.is_empty() => {
            let saw = format!(
                "{}. {}",
                refusal.saw.trim_end_matches('.'),
                notes.join(". ")
            );
            Refusal { saw, ..refusal }.into()
        }
        Ok(refusal) => refusal.into(),
        Err(error) => error,
    }
}

/// With what is to be said of those that are left out.
pub(super) fn with_notes(mut plan: SetPlan, notes: Vec<String>) -> SetPlan {
    plan.notes.splice(0..0, notes);
    plan
}

/// The plan for members that belong together.
fn plan_set(mut seen: Vec<Seen<'_>>, wishes: &SetWishes, ui: &dyn Ui) -> Result<Option<SetPlan>> {
    let doubts = odd::mark(&mut seen, ui);
    let clusters = clusters(&seen);
    if clusters.is_empty() && seen.len() > 1 {
        return Ok(
            from_database::without_any_log(&seen, wishes)?.map(|plan| with_doubts(plan, doubts))
        );
    }
    for cluster in clusters {
        if let Some(table) = Table::lay(cluster, &seen, wishes, false)?
            && let Some(plan) = table.plan()?
        {
            return Ok(Some(with_doubts(plan, doubts)));
        }
    }
    match doubts.into_iter().find(|doubt| doubt.is_certain) {
        Some(doubt) => Err(contradicting(&doubt).into()),
        None => Ok(None),
    }
}

fn with_doubts(mut plan: SetPlan, doubts: Vec<Doubt>) -> SetPlan {
    plan.why.extend(doubts.into_iter().map(|doubt| doubt.saw));
    plan
}

/// Each would start, and which key has which value would depend on who is asked.
fn contradicting(doubt: &Doubt) -> Refusal {
    Refusal::new(
        doubt.saw.trim_end_matches('.').to_owned(),
        "each of them starts by itself, and what a key holds would then depend on which member is \
         asked; none is replaced, because that could \
         drop the right one",
        "compare them: `rescue etcd keys` and `rescue etcd get` with one disk at a time; then \
         `rescue etcd rebuild --from FILE` with all disks and a copy of the \
         database that is right makes all of them from that one",
    )
}

/// IDs of the clusters, the one with most members first.
pub(super) fn clusters(seen: &[Seen<'_>]) -> Vec<u64> {
    let mut count: BTreeMap<u64, usize> = BTreeMap::new();
    for cluster in seen.iter().filter_map(Seen::cluster) {
        *count.entry(cluster).or_default() += 1;
    }
    let mut clusters: Vec<u64> = count.keys().copied().collect();
    clusters.sort_by_key(|cluster| std::cmp::Reverse(count.get(cluster).copied()));
    clusters
}

/// How a member that systemd starts comes back with nothing (etcd's runtime reconfiguration).
pub(super) const JOIN_AS_SERVICE: &str =
    "remove its data folder; etcdctl member add; start it with --initial-cluster-state existing";

/// One cluster's members at hand.
pub(super) struct Table<'a> {
    pub(super) cluster: u64,
    pub(super) wishes: &'a SetWishes,
    pub(super) members: Members,
    /// Which of the configuration's members each is.
    pub(super) seen: Vec<(&'a Seen<'a>, Member)>,
    pub(super) bases: Vec<Result<Rc<Base>, Vec<String>>>,
    /// Sentences.
    pub(super) found_behind_damage: Vec<String>,
    pub(super) dead: Vec<u64>,
}

/// What a repair comes to.
struct Outline {
    /// One line that begins with a verb.
    summary: String,
    parts: Vec<SetPart>,
    guarantee: Guarantee,
}

impl<'a> Table<'a> {
    /// `may_be_dead`: a disk that is at hand may be declared dead: its member leaves, and is
    /// fenced.
    pub(super) fn lay(
        cluster: u64,
        all: &'a [Seen<'a>],
        wishes: &'a SetWishes,
        may_be_dead: bool,
    ) -> Result<Option<Self>> {
        let own: Vec<&Seen<'_>> = all
            .iter()
            .filter(|seen| seen.cluster() == Some(cluster))
            .collect();
        refuse_forks(&own)?;
        let Some(members) = newest_members(&own) else {
            return Ok(None);
        };
        let mut seen: Vec<(&Seen<'_>, Member)> = Vec::new();
        for one in all {
            let Some(member) = one.whose(cluster, &members) else {
                continue;
            };
            // A disk of another cluster belongs here only where it is the odd one out: two whole
            // clusters may be on the table.
            let of_its_own = all
                .iter()
                .filter(|other| one.cluster().is_some() && other.cluster() == one.cluster())
                .count();
            if one.cluster() != Some(cluster) && of_its_own >= own.len() {
                continue;
            }
            if let Some((twin, _)) = seen.iter().find(|(_, known)| known.id == member.id) {
                return Err(Refusal::new(
                    format!(
                        "{} and {} hold the same etcd member, {:x}",
                        twin.guest.source, one.guest.source, member.id
                    ),
                    "one of them is a copy, and only one may ever start again",
                    "give only the disk that this member is to start from",
                )
                .into());
            }
            seen.push((one, member.clone()));
        }
        let dead = dead(wishes, &members, if may_be_dead { &[] } else { &seen })?;
        Ok(Some(Self {
            cluster,
            wishes,
            members,
            seen,
            bases: Vec::new(),
            found_behind_damage: Vec::new(),
            dead,
        }))
    }

    fn plan(mut self) -> Result<Option<SetPlan>> {
        let is_quiet = self.is_quiet();
        if !is_quiet {
            self.find_bases();
        }
        let situation = self.situation(is_quiet);
        let Decision { repair, mut why } = table::decide(&situation);
        if self.bases.is_empty() && repair != Repair::Nothing {
            self.find_bases();
        }
        let notes = self.notes(&repair);
        let outline = match repair {
            Repair::Nothing => return self.level(),
            Repair::Needs(disks) => return Err(self.needs(&disks, &why)),
            Repair::NoLog(members) => return self.new_cluster(&members).map(Some),
            Repair::Relay(members) => {
                let members = self.relaid_with_all_voters(members);
                if members.is_empty() {
                    return self.level();
                }
                self.relay(&members, &mut why)?
            }
            Repair::Refill {
                from,
                learners,
                relaid,
            } => self.refill(from, &learners, &relaid, &mut why)?,
            Repair::Readmit {
                keeper,
                again,
                relaid,
                is_majority,
            } => self.readmit(keeper, &again, &relaid, is_majority)?,
            Repair::Clone {
                best,
                members,
                is_majority,
            } => self.clone_from(best, &members, is_majority)?,
            Repair::Extend(only) => self.extend(only)?,
        };
        let Outline {
            summary,
            guarantee,
            parts,
        } = outline;
        let afterwards = self.afterwards();
        Ok(Some(SetPlan {
            summary,
            guarantee,
            why,
            notes,
            parts,
            afterwards,
        }))
    }

    /// Whether every member starts as it is, with the others.
    fn is_quiet(&self) -> bool {
        self.seen.iter().all(|(seen, _)| {
            seen.cluster() == Some(self.cluster)
                && seen.is_mended_in_place()
                && !seen.is_moved
                && !self.may_have_forgotten(seen)
        })
    }

    /// What else should be known. Only a repair that takes the newest history takes what was found
    /// behind damage.
    fn notes(&mut self, repair: &Repair) -> Vec<String> {
        let takes_newest = matches!(
            repair,
            Repair::Readmit { .. } | Repair::Clone { .. } | Repair::Extend(_)
        );
        let mut notes = if takes_newest {
            std::mem::take(&mut self.found_behind_damage)
        } else {
            Vec::new()
        };
        notes.extend(self.voters_before());
        notes
    }

    fn new_cluster(&self, members: &[usize]) -> Result<SetPlan> {
        self.refuse_unproven()?;
        let plan = from_database::plan(&self.seen, &self.members, &self.dead, self.wishes)?;
        plan.ok_or_else(|| self.no_log(members))
    }

    fn relay(&self, members: &[usize], why: &mut Vec<String>) -> Result<Outline> {
        let level = self.levelled(members)?;
        let relaid = members
            .iter()
            .map(|number| self.relaid(*number, level.tail_of(*number)));
        let mut parts = relaid.collect::<Result<Vec<_>>>()?;
        parts.extend(level.parts);
        why.extend(level.why);
        Ok(Outline {
            summary: format!(
                "give etcd on {} what it lacks beside its own log",
                self.names(members)
            ),
            guarantee: Guarantee::new(Level::G0),
            parts,
        })
    }

    fn refill(
        &self,
        from: usize,
        learners: &[usize],
        relaid: &[usize],
        why: &mut Vec<String>,
    ) -> Result<Outline> {
        let level = self.levelled(relaid)?;
        let refilled = learners.iter().map(|number| self.refilled(from, *number));
        let relays = relaid
            .iter()
            .map(|number| self.relaid(*number, level.tail_of(*number)));
        let mut parts = refilled.chain(relays).collect::<Result<Vec<_>>>()?;
        parts.extend(level.parts);
        why.extend(level.why);
        let all = [learners, relaid].concat();
        Ok(Outline {
            summary: format!("give etcd on {} what it lacks", self.names(&all)),
            guarantee: self.promise(Level::G0, self.dropped(from)?),
            parts,
        })
    }

    fn readmit(
        &self,
        keeper: usize,
        again: &[usize],
        relaid: &[usize],
        is_majority: bool,
    ) -> Result<Outline> {
        let mut parts = self.readmitted(keeper, again)?;
        for number in relaid {
            parts.push(self.relaid(*number, None)?);
        }
        Ok(Outline {
            summary: format!(
                "take {} into the etcd cluster anew, with the history of {}",
                self.names(again),
                self.name(keeper)
            ),
            parts,
            guarantee: self.guarantee(keeper, is_majority)?,
        })
    }

    fn clone_from(&self, best: usize, members: &[usize], is_majority: bool) -> Result<Outline> {
        Ok(Outline {
            summary: format!(
                "rebuild etcd on {} as a new cluster from the log of {}",
                self.names(members),
                self.name(best)
            ),
            parts: self.cloned(best, members)?,
            guarantee: self.guarantee(best, is_majority)?,
        })
    }

    fn extend(&self, only: usize) -> Result<Outline> {
        let base = self.base(only)?;
        let identity = self.seen[only].0.data.log.identity.context("an identity")?;
        let recipe = Recipe::agreed(base, identity, self.next_term(base), Vec::new());
        let (last, name) = (base.own_last(), self.name(only));
        let (details, summary) = match base.missing {
            0 => (
                format!("end etcd's log with entry {last}, the last before its damage"),
                format!("end the log of etcd on {name} before its damage"),
            ),
            _ => (
                format!(
                    "begin etcd's log, which has lost its end, anew behind entry {last}, the \
                     database's last"
                ),
                format!("begin the log of etcd on {name} anew behind its database"),
            ),
        };
        Ok(Outline {
            summary,
            parts: vec![self.part(only, recipe, details)?],
            guarantee: self.guarantee(only, base.tail.is_some())?,
        })
    }

    /// Those that vote by their own list, and are learners by the one that counts.
    fn voters_before(&self) -> Vec<String> {
        let votes = |seen: &Seen<'_>| {
            let own = seen.data.log.identity?.member;
            let (members, _) = seen.data.membership();
            members.list.get(&own).map(|member| !member.is_learner)
        };
        let before = self
            .seen
            .iter()
            .filter(|(seen, member)| member.is_learner && votes(seen) == Some(true));
        before
            .map(|(seen, _)| {
                format!(
                    "{} votes by its own list of members; by the newest one it is a learner, and \
                     will be one.",
                    seen.name
                )
            })
            .collect()
    }

    /// Whether a member may have promised an entry to the others that it no longer holds, and all
    /// others are at hand to make up for it. Alone, it is left to etcd, which copes with it by
    /// itself.
    fn may_have_forgotten(&self, seen: &Seen<'_>) -> bool {
        let there = |id: u64| self.seen.iter().any(|(_, known)| known.id == id);
        seen.has_lost_sector()
            && self.members.voters().count() > 1
            && self.members.voters().all(there)
    }

    /// What can be built upon each one's log. Databases of another cluster are refused by the base
    /// itself.
    pub(super) fn find_bases(&mut self) {
        let options = Options {
            unproven: self.wishes.unproven,
        };
        let sources: Vec<&Seen<'_>> = self.seen.iter().map(|(seen, _)| *seen).collect();
        self.bases = sources
            .iter()
            .map(|seen| seen.base(&sources, options))
            .collect();
        self.look_behind_damage();
    }

    /// Whose log is newest of those that can be built upon.
    pub(super) fn best(&self) -> Option<usize> {
        self.best_of(&(0..self.seen.len()).collect::<Vec<_>>())
    }

    /// The same among some.
    pub(super) fn best_of(&self, numbers: &[usize]) -> Option<usize> {
        let rank = |number: &usize| {
            let base = self.bases.get(*number)?.as_ref().ok()?;
            (self.seen[*number].0.cluster() == Some(self.cluster))
                .then(|| (base.last_term(), base.last()))
        };
        numbers
            .iter()
            .copied()
            .filter(|number| rank(number).is_some())
            .max_by_key(|number| (rank(number), std::cmp::Reverse(*number)))
    }

    /// Whether its log holds whatever is known to be agreed on.
    pub(super) fn holds_agreed(&self, number: usize) -> bool {
        let own = self
            .seen
            .iter()
            .map(|(seen, _)| *seen)
            .filter(|seen| seen.cluster() == Some(self.cluster));
        let agreed = own.map(|seen| seen.data.commit()).max().unwrap_or(0);
        self.seen[number].0.data.log.last >= agreed
    }

    /// Whether a member has lost nothing, and starts with what it has.
    pub(super) fn is_whole(&self, seen: &Seen<'_>) -> bool {
        seen.cluster() == Some(self.cluster) && seen.is_log_whole() && seen.is_mended_in_place()
    }

    fn situation(&self, is_quiet: bool) -> Situation {
        let members = (0..self.seen.len())
            .map(|number| self.view(number, is_quiet))
            .collect();
        let name = |member: &Member| {
            if member.name.is_empty() {
                format!("{:x}", member.id)
            } else {
                member.name.clone()
            }
        };
        let voters = self
            .members
            .list
            .values()
            .filter(|member| !member.is_learner);
        let voters = voters.map(|member| (member.id, name(member))).collect();
        let own = self
            .seen
            .iter()
            .map(|(seen, _)| *seen)
            .filter(|seen| seen.cluster() == Some(self.cluster));
        let changed_at = own
            .filter_map(|seen| seen.data.log.changes.last())
            .map(|(entry, _)| *entry)
            .max();
        Situation {
            members,
            voters,
            dead: self.dead.clone(),
            changed_at: changed_at.unwrap_or(0),
        }
    }

    fn view(&self, number: usize, is_quiet: bool) -> View {
        let (seen, member) = &self.seen[number];
        let (name, log) = (seen.name.clone(), &seen.data.log);
        let view = View {
            name,
            id: member.id,
            votes: !member.is_learner,
            state: State::Lost,
            rank: None,
            own_last: None,
            is_clean: seen.is_clean(),
            is_foreign: false,
            agreed: 0,
        };
        if !seen.is(self.cluster, member.id) {
            return View {
                is_foreign: !log.is_empty(),
                ..view
            };
        }
        let rank = Some((log.last_term(), log.last));
        let agreed = seen.data.commit();
        if is_quiet {
            return View {
                state: State::Fine,
                rank,
                own_last: Some(log.last),
                agreed,
                ..view
            };
        }
        let base = self.bases[number].as_ref().ok();
        let rank = base.map(|base| (base.last_term(), base.last()));
        let own_last = base.map(|base| base.own_last());
        let state = match base {
            _ if self.may_have_forgotten(seen) => State::Lost,
            Some(base) if seen.is_moved && seen.is_log_whole() && base.missing == 0 => State::Moved,
            _ if seen.is_mended_in_place() => State::Fine,
            Some(base) if seen.is_log_whole() && base.missing == 0 => State::Relaid,
            _ => State::Lost,
        };
        View {
            state,
            rank,
            own_last,
            agreed,
            ..view
        }
    }

    pub(super) fn name(&self, number: usize) -> &str {
        &self.seen[number].0.name
    }

    pub(super) fn names(&self, numbers: &[usize]) -> String {
        numbers
            .iter()
            .map(|number| self.name(*number))
            .collect::<Vec<_>>()
            .join(", ")
    }

    pub(super) fn base(&self, number: usize) -> Result<&Rc<Base>> {
        self.bases[number].as_ref().map_err(|why| {
            Refusal::new(
                format!(
                    "nothing can be built upon the log of {}: {}",
                    self.name(number),
                    why.join(" ")
                ),
                "another member's disk, or a copy of the database, is needed",
                "rescue etcd status with the disks of all members shows what each holds",
            )
            .into()
        })
    }

    pub(super) fn next_term(&self, base: &Base) -> u64 {
        let own = self
            .seen
            .iter()
            .map(|(seen, _)| *seen)
            .filter(|seen| seen.cluster() == Some(self.cluster));
        base.next_term(own.map(|seen| &seen.data))
    }

    /// Of `members`, which get a snapshot or a database beside their own log, those that may with
    /// the disks at hand: raft's voters are set right on all voters at once, so that no majority of
    /// the old ones goes on beside a majority of the new ones.
    fn relaid_with_all_voters(&self, members: Vec<usize>) -> Vec<usize> {
        let is_known = |id: u64| {
            self.dead.contains(&id) || self.seen.iter().any(|(_, member)| member.id == id)
        };
        let has_all = self.members.voters().all(is_known);
        let is_only_about_voters = |number: &usize| {
            self.seen[*number]
                .0
                .problems
                .iter()
                .all(|problem| problem.kind == Kind::VotersDiffer)
        };
        members
            .into_iter()
            .filter(|number| has_all || !is_only_about_voters(number))
            .collect()
    }

    /// Logs that are whole are not given up for a database alone only because of its format.
    fn refuse_unproven(&self) -> Result<()> {
        let format = |seen: &Seen<'_>| {
            seen.data
                .facts()
                .and_then(|facts| facts.storage_version.clone())
        };
        let whole = self
            .seen
            .iter()
            .map(|(seen, _)| *seen)
            .find(|seen| seen.is_log_whole() && format(seen).is_some());
        let Some(seen) = whole.filter(|_| !self.wishes.unproven) else {
            return Ok(());
        };
        let problem = seen
            .problems
            .first()
            .map(|problem| format!(": {}", problem.saw))
            .unwrap_or_default();
        Err(Refusal::new(
            format!(
                "the database of {} is of format {}{problem}",
                seen.name,
                format(seen).unwrap_or_default()
            ),
            "its log is whole and can be built upon, but repairing etcd 3.6 and later has to be \
             asked for",
            "add --unproven",
        )
        .into())
    }

    fn relaid(&self, number: usize, tail: Option<&Tail>) -> Result<SetPart> {
        let base = self.base(number)?;
        let identity = self.seen[number]
            .0
            .data
            .log
            .identity
            .context("an identity")?;
        let from = if base.database.source == base.source {
            "its own database"
        } else {
            "another member's database"
        };
        let snapshot = match base.start {
            Start::Fresh(..) => " and a snapshot made anew that names the voters",
            Start::Nothing | Start::Snapshot(..) => "",
        };
        let mut details = format!(
            "lay {from} (entry {}){snapshot} beside etcd's own log, which is whole and stays",
            base.database.facts.consistent_index
        );
        if let Some(tail) = tail {
            details.push_str(&format!(
                "; append entries {} to {} to it",
                tail.first,
                tail.last()
            ));
        }
        self.part(number, Recipe::in_place(base, identity, tail), details)
    }

    /// A learner under its own ID.
    fn refilled(&self, from: usize, number: usize) -> Result<SetPart> {
        let base = self.base(from)?;
        let identity = Identity {
            cluster: self.cluster,
            member: self.seen[number].1.id,
        };
        let details = format!(
            "give etcd the history of {}; it stays the learner {:x}",
            self.name(from),
            identity.member
        );
        self.part(number, Recipe::in_place(base, identity, None), details)
    }

    fn readmitted(&self, keeper: usize, again: &[usize]) -> Result<Vec<SetPart>> {
        let base = self.base(keeper)?;
        let identity = self.seen[keeper]
            .0
            .data
            .log
            .identity
            .context("an identity")?;
        let token = token()?;
        let new: Vec<Member> = again
            .iter()
            .map(|number| self.anew(*number, &token))
            .collect();
        let gone: Vec<u64> = again.iter().map(|number| self.seen[*number].1.id).collect();
        let mut recipes =
            Recipe::readmit(base, identity, &gone, &new, self.next_term(base)).into_iter();
        let own = recipes.next().context("the keeper's recipe")?;
        let mut parts = vec![self.part(
            keeper,
            own,
            format!(
                "append to etcd's log that {} {} taken in anew",
                self.names(again),
                if again.len() == 1 { "is" } else { "are" }
            ),
        )?];
        for (number, recipe) in again.iter().zip(recipes) {
            let details = format!(
                "give etcd the history of {} and a new member ID, {:x}",
                self.name(keeper),
                recipe.identity.member
            );
            parts.push(self.part(*number, recipe, details)?);
        }
        Ok(parts)
    }

    pub(super) fn cloned(&self, best: usize, members: &[usize]) -> Result<Vec<SetPart>> {
        let base = self.base(best)?;
        let token = token()?;
        let new: Vec<Member> = members
            .iter()
            .map(|number| self.anew(*number, &token))
            .collect();
        let recipes = Recipe::clones(base, &new, &token, self.next_term(base));
        let part = |(number, recipe): (&usize, Recipe)| {
            let identity = recipe.identity;
            let details = format!(
                "give etcd the history of {} and new IDs: member {:x} of cluster {:x}",
                self.name(best),
                identity.member,
                identity.cluster
            );
            self.part(*number, recipe, details)
        };
        members.iter().zip(recipes).map(part).collect()
    }

    /// A member under a new ID, where it is reached by what it is started with.
    fn anew(&self, number: usize, token: &str) -> Member {
        let (seen, known) = &self.seen[number];
        let peer_urls = if seen.flag_urls.is_empty() {
            known.peer_urls.clone()
        } else {
            seen.flag_urls.clone()
        };
        let name = seen.flag_name.clone().unwrap_or_else(|| known.name.clone());
        Member {
            id: member_id(&peer_urls, token),
            name,
            peer_urls,
            is_learner: known.is_learner,
            ..Member::default()
        }
    }

    pub(super) fn part(&self, number: usize, recipe: Recipe, details: String) -> Result<SetPart> {
        let seen = self.seen[number].0;
        let mut all = vec![details];
        all.extend(
            seen.problems
                .iter()
                .map(|problem| format!("now: {}", problem.saw)),
        );
        seen.part(recipe, all)
    }

    /// What members at hand hold as agreed on and the history of `best` does not, a sentence each.
    /// Every plan of which a part replaces a history asks for it, so that a promise is one for what
    /// was acknowledged by those members too.
    pub(super) fn dropped(&self, best: usize) -> Result<Vec<String>> {
        let base = self.base(best)?;
        let mut dropped = Vec::new();
        for (seen, _) in &self.seen {
            let log = &seen.data.log;
            let (Some(own), agreed) = (log.identity, seen.data.commit()) else {
                continue;
            };
            let is_known = self.members.list.contains_key(&own.member)
                || self.members.removed.contains(&own.member);
            let is_same = own.cluster == self.cluster
                && is_known
                && agreed <= base.last()
                && log
                    .term_of(agreed)
                    .zip(base.log.term_of(agreed))
                    .is_none_or(|(one, other)| one == other);
            if !is_same && claims::holds_writes(seen.guest, &seen.data) {
                dropped.push(format!(
                    "{} holds writes of a history that is not that of {}: they are lost.",
                    seen.name,
                    self.name(best)
                ));
            }
        }
        Ok(dropped)
    }

    /// A promise of this level, or what is left of it where something is dropped.
    fn promise(&self, level: Level, dropped: Vec<String>) -> Guarantee {
        let level = if dropped.is_empty() {
            level
        } else {
            level.max(Level::G2)
        };
        Guarantee {
            also: dropped,
            ..Guarantee::new(level)
        }
    }

    pub(super) fn guarantee(&self, best: usize, is_majority: bool) -> Result<Guarantee> {
        let base = self.base(best)?;
        let level = match (base.lacks_entries(), is_majority) {
            (false, true) => Level::G1,
            (false, false) if self.members.voters().count() > 1 => Level::G2,
            _ => Level::G3,
        };
        let mut guarantee = self.promise(level, self.dropped(best)?);
        if guarantee.level == Level::G1 {
            return Ok(guarantee);
        }
        guarantee.revision = Some(base.database.facts.revision);
        let seen = self.seen[best].0;
        let last = seen
            .data
            .look_through_log(seen.guest, &mut self.members.clone());
        guarantee.newest_write = last.ok().flatten().map(|write| write.time);
        let absent = self
            .members
            .list
            .values()
            .filter(|member| self.dead.contains(&member.id));
        guarantee.missing = absent
            .map(|member| format!("{} ({:x})", member.name, member.id))
            .collect();
        Ok(guarantee)
    }

    fn afterwards(&self) -> Vec<String> {
        let gone = self
            .members
            .list
            .values()
            .filter(|member| self.dead.contains(&member.id));
        gone.map(|member| {
            format!(
                "Never start {} with its old disk: wipe it and let it join again ({}).",
                member.name,
                if self.are_services() {
                    JOIN_AS_SERVICE
                } else {
                    "kubeadm reset, kubeadm join --control-plane"
                }
            )
        })
        .collect()
    }

    /// Whether systemd starts etcd here, and not a kubelet.
    pub(super) fn are_services(&self) -> bool {
        self.seen
            .iter()
            .all(|(seen, _)| matches!(seen.launch.by, By::Service(_)))
    }

    fn needs(&self, disks: &[String], why: &[String]) -> anyhow::Error {
        let broken: Vec<String> = self
            .seen
            .iter()
            .filter_map(|(seen, _)| Some(format!("{}: {}", seen.name, seen.problems.first()?.saw)))
            .collect();
        Refusal::new(
            format!(
                "etcd cannot be repaired with what is at hand ({}). {}",
                broken.join("; "),
                why.join(" ").trim_end_matches('.')
            ),
            format!(
                "{} may hold newer writes, and could go on with them alone: only with {} disk is \
                 it known what was acknowledged",
                disks.join(", "),
                if disks.len() == 1 {
                    "its"
                } else {
                    "each one's"
                }
            ),
            format!(
                "power {} off and give the disks of all members in one run; one that is lost for \
                 good is named with --declare-dead NAME",
                disks.join(", ")
            ),
        )
        .into()
    }

    fn no_log(&self, members: &[usize]) -> anyhow::Error {
        let why: Vec<String> = members
            .iter()
            .filter_map(|number| self.bases.get(*number)?.as_ref().err())
            .flatten()
            .cloned()
            .collect();
        Refusal::new(
            format!(
                "no log on {} can be built upon. {}",
                self.names(members),
                why.join(" ").trim_end_matches('.')
            ),
            "what is left are databases alone, and with them the last writes are lost",
            "rescue etcd rebuild --db-only, with the disks of all members, makes a new cluster \
             from the newest database",
        )
        .into()
    }
}

/// Two histories are never mixed.
fn refuse_forks(own: &[&Seen<'_>]) -> Result<()> {
    for (number, one) in own.iter().enumerate() {
        for other in own.iter().skip(number + 1) {
            if let Verdict::Fork {
                entry,
                first,
                second,
            } = compare_logs(&one.data, &other.data)
            {
                return Err(Refusal::new(
                    format!(
                        "{} and {} hold two histories: entry {entry}, agreed on in both, is of \
                         term {first} here and of term {second} there",
                        one.name, other.name
                    ),
                    "one of them was taken back to an older state and went on from there; which \
                     one counts cannot be told from the disks",
                    "look at both (rescue etcd keys), and give only the disks that count; the \
                     others are named with --declare-dead",
                )
                .into());
            }
        }
    }
    Ok(())
}

/// Who belongs to the cluster, by the newest log that says it.
pub(super) fn newest_members(own: &[&Seen<'_>]) -> Option<Members> {
    let mut ranked: Vec<&Seen<'_>> = own.to_vec();
    ranked.sort_by_key(|seen| std::cmp::Reverse((seen.data.log.last_term(), seen.data.log.last)));
    let lists = ranked.into_iter().map(|seen| seen.data.membership().0);
    lists
        .into_iter()
        .find(|members| members.voters().next().is_some())
}

/// IDs of the members that are given up, by name or ID. Names that this cluster does not know may
/// be another's.
pub(super) fn dead(
    wishes: &SetWishes,
    members: &Members,
    seen: &[(&Seen<'_>, Member)],
) -> Result<Vec<u64>> {
    let mut dead = Vec::new();
    for name in &wishes.declare_dead {
        let known = members
            .list
            .values()
            .find(|member| member.name == *name || format!("{:x}", member.id) == *name);
        let Some(member) = known else { continue };
        if let Some((there, _)) = seen.iter().find(|(_, known)| known.id == member.id) {
            return Err(Refusal::new(
                format!(
                    "{name} is declared dead, and its disk is at hand ({})",
                    there.guest.source
                ),
                "a member whose disk is there is not given up for good",
                "leave out --declare-dead, or the disk",
            )
            .into());
        }
        dead.push(member.id);
    }
    Ok(dead)
}

/// Never used before, so that the IDs made with it are new.
pub(super) fn token() -> Result<String> {
    let mut bytes = [0; 8];
    rand::fill(&mut bytes).map_err(|_| anyhow::anyhow!("the system gives no random numbers"))?;
    Ok(format!("rescue-{:x}", u64::from_be_bytes(bytes)))
}
