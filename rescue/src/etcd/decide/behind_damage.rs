//! Logs merged: the newest one that can be built upon goes on with what another member's log holds behind its damage
//! ([`crate::etcd::wal::behind_damage`]).

use super::level::Tail;
use super::levelled::entries;
use super::plan::Table;

impl Table<'_> {
    /// Takes what damaged logs still hold behind the newest one's end: it is theirs, and may be acknowledged.
    pub(super) fn look_behind_damage(&mut self) {
        let rank = |number: &usize| {
            let base = self.bases.get(*number)?.as_ref().ok().filter(|base| base.missing == 0)?;
            let (seen, member) = &self.seen[*number];
            let order = (self.is_whole(seen), !member.is_learner, std::cmp::Reverse(*number));
            (seen.cluster() == Some(self.cluster)).then(|| (base.last_term(), base.last(), order))
        };
        let newest = (0..self.seen.len()).filter(|number| rank(number).is_some()).max_by_key(rank);
        if let Some(best) = newest
            && let Some((number, tail)) = self.tail_for(best)
        {
            let (first, last) = (tail.first, tail.last());
            self.found_behind_damage.push(format!(
                "Behind its damage the log of {} goes on with {}, which {} lacks: they are taken over.",
                self.name(number),
                entries(first, last),
                self.name(best)
            ));
            if let Some(Ok(base)) = self.bases.get_mut(best) {
                *base = base.with_tail(tail);
            }
        }
    }

    fn tail_for(&self, best: usize) -> Option<(usize, Tail)> {
        let base = self.bases.get(best)?.as_ref().ok()?;
        let newest = (base.last(), base.last_term());
        let damaged = self.seen.iter().enumerate().filter(|(number, (seen, member))| {
            let own = seen.data.log.identity.map(|own| (own.cluster, own.member));
            *number != best
                && own == Some((self.cluster, member.id))
                && (!seen.is_log_whole() || seen.has_lost_sector())
        });
        let tails = damaged.filter_map(|(number, (seen, _))| {
            let tail = Tail::behind_damage(seen.guest, &seen.data.log, newest).ok().flatten()?;
            Some((number, tail))
        });
        tails.max_by_key(|(_, tail)| (tail.term, tail.last()))
    }
}
