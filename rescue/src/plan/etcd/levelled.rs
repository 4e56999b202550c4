//! Levelling as a part of the plan: the logs that lag get what they lack of the newest one
//! ([`crate::etcd::operations::level`]).

use anyhow::{Context as _, Result};

use super::plan::Table;
use super::seen::Seen;
use crate::change::{Change, Content, Edit};
use crate::etcd::format::file::File;
use crate::etcd::operations::guarantee::{Guarantee, Level};
use crate::etcd::operations::level::{Lag, Levelling, Tail, Voter, needed};
use crate::etcd::operations::mend::{self, Mend};
use crate::etcd::write::wal::MODE;
use crate::plan::set::{SetPart, SetPlan};

/// What becomes of the logs that lag.
#[derive(Debug, Default)]
pub(super) struct Levelled {
    /// Members that are not changed otherwise.
    pub parts: Vec<SetPart>,
    /// Of members that get a new folder: what their log gets, too.
    tails: Vec<(usize, Tail)>,
    /// Why, as sentences.
    pub why: Vec<String>,
    /// In short: what goes to whom.
    summary: String,
}

impl Levelled {
    /// What the log of a member with a new folder gets.
    pub fn tail_of(&self, number: usize) -> Option<&Tail> {
        self.tails
            .iter()
            .find(|(whose, _)| *whose == number)
            .map(|(_, tail)| tail)
    }
}

impl Table<'_> {
    /// The plan where nothing else is to be done.
    pub(super) fn level(&self) -> Result<Option<SetPlan>> {
        let level = self.levelled(&[])?;
        if level.parts.is_empty() {
            return Ok(None);
        }
        Ok(Some(SetPlan {
            summary: level.summary,
            guarantee: Guarantee::new(Level::G0),
            why: level.why,
            notes: Vec::new(),
            parts: level.parts,
            afterwards: Vec::new(),
        }))
    }

    /// What is given to whom. `relaid`: who gets a new folder in the same plan.
    pub(super) fn levelled(&self, relaid: &[usize]) -> Result<Levelled> {
        let Some(levelling) = self.levelling(relaid) else {
            return Ok(Levelled::default());
        };
        let newest = self.seen[levelling.newest].0;
        let mut level = Levelled::default();
        let (mut first, mut names) = (u64::MAX, Vec::new());
        for lag in &levelling.lagging {
            let Some(tail) = Tail::read(newest.guest, &newest.data.log, lag.same)? else {
                continue;
            };
            first = first.min(tail.first);
            names.push(self.name(lag.number).to_owned());
            if relaid.contains(&lag.number) {
                level.tails.push((lag.number, tail));
            } else {
                level.parts.push(self.extended(lag, &tail, &newest.name)?);
            }
        }
        if names.is_empty() {
            return Ok(level);
        }
        let last = newest.data.log.last;
        let (names, what) = (names.join(", "), entries(first, last));
        level.summary = format!(
            "level etcd's logs: give {names} {what} from the log of {}",
            newest.name
        );
        level.why.push(format!(
            "{}'s log ends with {what}, which fewer than a majority hold. If another disk had \
             them and has lost them, they are acknowledged \
             writes, and the members without them could elect one another and drop them; so all \
             get them. If they were never acknowledged, \
             they become valid.",
            newest.name
        ));
        Ok(level)
    }

    fn levelling(&self, relaid: &[usize]) -> Option<Levelling> {
        let there = |id: u64| {
            self.seen.iter().any(|(_, member)| member.id == id) || self.dead.contains(&id)
        };
        let voters: Vec<u64> = self.members.voters().collect();
        if voters.len() < 2 || !voters.iter().copied().all(there) {
            return None;
        }
        let mut at_hand = Vec::new();
        for (number, (seen, member)) in self
            .seen
            .iter()
            .enumerate()
            .filter(|(_, (_, member))| !member.is_learner)
        {
            let log = &seen.data.log;
            let is_own = seen.is(self.cluster, member.id);
            let is_proved = self.wishes.unproven
                || seen
                    .data
                    .facts()
                    .is_none_or(|facts| facts.storage_version.is_none());
            if !is_own || !is_proved || !seen.is_log_whole() {
                return None;
            }
            at_hand.push(Voter {
                number,
                log,
                agreed: seen.data.commit(),
            });
        }
        let mut levelling = needed(&at_hand, voters.len())?;
        // A log that is taken over into a new folder is only appended to.
        levelling
            .lagging
            .retain(|lag| lag.replaced == 0 || !relaid.contains(&lag.number));
        Some(levelling)
    }

    /// The end of the log's last file is written anew: behind its last good record comes what is
    /// appended.
    fn extended(&self, lag: &Lag, tail: &Tail, newest: &str) -> Result<SetPart> {
        let seen = self.seen[lag.number].0;
        let log = &seen.data.log;
        let file = log.tail().context("a file of the log")?;
        let records = tail.records(file.crc, log.state)?;
        let end = file.used.saturating_add(records.len() as u64);
        let path = &file.segment.path;
        let change = if end <= file.size {
            let edit = Edit {
                offset: file.used,
                bytes: Content::new(records),
            };
            Change::patch(seen.guest, path, vec![edit], end)?
        } else {
            // Nothing was set aside in it.
            let length =
                usize::try_from(file.used).context("a file of the log that fits into memory")?;
            let mut bytes = File::open(seen.guest, path)?.read(0, length)?;
            bytes.extend(records);
            Change::write(seen.guest, path, bytes, MODE)?
        };
        let what = entries(tail.first, tail.last());
        let mut details = vec![match lag.replaced {
            0 => format!("append {what} of {newest} to etcd's log {path}"),
            _ => format!(
                "append {what} of {newest} to etcd's log {path}, in the place of {}, which \
                 contradict them and were never agreed on",
                entries(tail.first, log.last)
            ),
        }];
        let mut changes = vec![change];
        for mend in mends(seen) {
            details.push(mend.summary());
            changes.extend(mend.changes(seen.guest)?);
        }
        Ok(SetPart {
            source: seen.guest.source.clone(),
            name: seen.name.clone(),
            details,
            changes,
        })
    }
}

/// What mends the member in place beside that: a plan for all nodes takes the place of its own
/// node's. The log's end is written anew anyway.
fn mends(seen: &Seen<'_>) -> Vec<Mend> {
    let mends = seen
        .problems
        .iter()
        .filter_map(|problem| mend::mend(seen.guest, &seen.data, problem).ok());
    mends
        .filter(|mend| !matches!(mend, Mend::CutTail { .. }))
        .collect()
}

/// For people.
pub(super) fn entries(first: u64, last: u64) -> String {
    if first == last {
        format!("entry {last}")
    } else {
        format!("entries {first} to {last}")
    }
}
