//! Logs merged: the newest that can be built upon goes on with what a log, another member's or its
//! own, holds behind its damage ([`crate::etcd::format::wal::behind_damage`]).

use super::levelled::entries;
use super::plan::Table;
use crate::etcd::operations::level::Tail;
use crate::etcd::operations::rebuild::Base;

impl Table<'_> {
    /// Takes what damaged logs still hold behind the newest entry that can be built upon: it may be
    /// acknowledged.
    pub(super) fn look_behind_damage(&mut self) {
        let rank = |number: &usize| {
            let base = self.bases.get(*number)?.as_ref().ok()?;
            let (seen, member) = &self.seen[*number];
            let order = (
                self.is_whole(seen),
                !member.is_learner,
                std::cmp::Reverse(*number),
            );
            (seen.cluster() == Some(self.cluster)).then(|| (base.last_term(), base.last(), order))
        };
        let newest = (0..self.seen.len())
            .filter(|number| rank(number).is_some())
            .max_by_key(rank);
        let Some((best, Some(Ok(base)))) = newest.map(|best| (best, self.bases.get(best))) else {
            return;
        };
        let Some((number, tail)) = self.tail_for(best, base) else {
            return;
        };
        let (whose, to) = (self.name(number), self.name(best));
        let saw = match tail.entries.is_empty() {
            true => {
                format!(
                    "ends with entry {}, which the database holds: nothing of it is lost.",
                    tail.last()
                )
            }
            false => format!(
                "goes on with {}, which follow what {to} has: they are taken over.",
                entries(tail.first, tail.last())
            ),
        };
        self.found_behind_damage
            .push(format!("Behind its damage the log of {whose} {saw}"));
        let base = base.with_tail(tail);
        self.bases[best] = Ok(base);
    }

    /// Whose log goes on behind the last entry of `base`, and with what.
    fn tail_for(&self, best: usize, base: &Base) -> Option<(usize, Tail)> {
        // Where the log ends before the database, that says which entry is its last one, and from
        // 3.5 on its term. What a member has applied is in its own log, in whatever term.
        let is_behind = base.missing > 0;
        let term = if is_behind {
            base.database.facts.term
        } else {
            Some(base.last_term())
        };
        let damaged = (0..self.seen.len()).filter(|number| {
            let (seen, member) = &self.seen[*number];
            let is_proved = term.is_some() || base.database.source == seen.guest.source;
            (*number != best || is_behind)
                && seen.is(self.cluster, member.id)
                && seen.data.log.other_identity.is_none()
                && (!seen.is_log_whole() || seen.has_lost_sector())
                && is_proved
        });
        let tails = damaged.filter_map(|number| {
            let seen = self.seen[number].0;
            let tail = Tail::behind_damage(seen.guest, &seen.data.log, base.last(), term)
                .ok()
                .flatten()?;
            (is_behind || !tail.entries.is_empty()).then_some((number, tail))
        });
        tails.max_by_key(|(_, tail)| (tail.term, tail.last()))
    }
}
