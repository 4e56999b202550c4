//! Entries that too few logs hold. Of a cluster under load the last entries are often on one disk
//! alone. If another disk had them, too, and lost them without a trace, they are writes that were
//! acknowledged; and those without them are a majority, may elect one another and drop them. As
//! long as one disk still holds them nobody has to tell which it is: the logs that lag are given
//! what they lack.
//!
//! It is what the member with the newest log would do as the leader. With every voter's log on the
//! table it may become the leader: its log is at least as new as any (Raft, 5.4.1), so all would
//! vote for it; and a leader sends the others what they lack, in the place of what contradicts it
//! (5.3, AppendEntries), whatever of its entries is agreed on. No member forgets its term or its
//! vote. Entries that are known to be agreed on are never replaced.

use std::ops::ControlFlow;

use anyhow::{Result, ensure};

use crate::etcd::format::raft::{Entry, EntryKind, HardState};
use crate::etcd::format::wal::Log;
use crate::etcd::format::wal::behind_damage::entries_behind_damage;
use crate::etcd::write::wal::{Entries, LogWriter};
use crate::guest::Guest;

/// A log that lags by more than this is left to etcd.
const MOST_ENTRIES: u64 = 10_000;
/// Entries that are held in memory, in bytes.
const MOST_BYTES: usize = 32 << 20;

/// A voter's log, which is whole.
#[derive(Debug, Clone, Copy)]
pub struct Voter<'a> {
    /// For the caller.
    pub number: usize,
    /// The log.
    pub log: &'a Log,
    /// Entries up to here are known to be agreed on, or are in the database.
    pub agreed: u64,
}

/// A log that lags.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lag {
    /// Whose.
    pub number: usize,
    /// Up to here it is the same as the newest one.
    pub same: u64,
    /// How many of its entries behind that contradict the newest one.
    pub replaced: u64,
}

/// Whose entries go to whom.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Levelling {
    /// Who holds the newest log.
    pub newest: usize,
    /// Who gets what.
    pub lagging: Vec<Lag>,
}

/// Whether the newest log's last entries are on fewer voters' disks than a majority, and whose logs
/// can be extended by them. `None` also where those that can are too few. `voters`: of the
/// configuration.
pub fn needed(at_hand: &[Voter<'_>], voters: usize) -> Option<Levelling> {
    let rank = |voter: &&Voter<'_>| {
        (
            voter.log.last_term(),
            voter.log.last,
            std::cmp::Reverse(voter.number),
        )
    };
    let newest = at_hand.iter().max_by_key(rank)?;
    let (term, last) = (newest.log.last_term(), newest.log.last);
    // While the membership changes it is not known whose majority counts.
    if newest.log.is_empty()
        || newest
            .log
            .changes
            .iter()
            .any(|(index, _)| *index > newest.agreed)
    {
        return None;
    }
    let majority = voters / 2 + 1;
    let (holding, lagging): (Vec<&Voter<'_>>, Vec<_>) = at_hand
        .iter()
        .partition(|voter| voter.log.term_of(last) == Some(term) && voter.log.last == last);
    if at_hand.len() < majority || holding.len() >= majority {
        return None;
    }
    let lag = |voter: &&Voter<'_>| {
        let same = same(newest.log, voter.log).filter(|same| *same >= voter.agreed)?;
        Some(Lag {
            number: voter.number,
            same,
            replaced: voter.log.last.saturating_sub(same),
        })
    };
    let lagging: Vec<Lag> = lagging.iter().filter_map(lag).collect();
    (holding.len() + lagging.len() >= majority).then_some(Levelling {
        newest: newest.number,
        lagging,
    })
}

/// The last entry that both hold: of one number and one term (log matching; Raft, 5.3). `None`
/// where there is none near the newest one's end.
fn same(newest: &Log, other: &Log) -> Option<u64> {
    let top = newest.last.min(other.last);
    let bottom = newest
        .first
        .max(other.first)
        .saturating_sub(1)
        .max(newest.last.saturating_sub(MOST_ENTRIES));
    (bottom..=top).rev().find(|index| {
        let term = newest.term_of(*index);
        term.is_some() && term == other.term_of(*index)
    })
}

/// What a log is given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tail {
    /// Number of the first entry.
    pub first: u64,
    /// The entries.
    pub entries: Entries,
    /// Term of the last one.
    pub term: u64,
    /// Term of the entry before the first one.
    pub term_before: u64,
}

impl Tail {
    /// The newest log's entries behind `same`. `None` where they are more than is held in memory.
    ///
    /// # Errors
    /// What cannot be read; entries that no leader has written so.
    pub fn read(guest: &Guest, newest: &Log, same: u64) -> Result<Option<Self>> {
        let first = same.saturating_add(1);
        let mut entries = Vec::new();
        let term_before = newest.term_of(same).unwrap_or(0);
        let (mut bytes, mut next, mut term) = (0usize, first, term_before);
        let mut in_order = true;
        newest.visit(guest, first, newest.last, &mut |entry| {
            in_order &= entry.index == next && entry.term >= term;
            (next, term) = (entry.index.saturating_add(1), entry.term);
            let encoded = entry.encode();
            bytes = bytes.saturating_add(encoded.len());
            entries.push(encoded);
            if in_order && bytes <= MOST_BYTES {
                ControlFlow::Continue(())
            } else {
                ControlFlow::Break(())
            }
        })?;
        if bytes > MOST_BYTES {
            return Ok(None);
        }
        let is_whole =
            in_order && next == newest.last.saturating_add(1) && term == newest.last_term();
        ensure!(
            is_whole,
            "entries {first} to {} of {} do not follow one another",
            newest.last,
            guest.source
        );
        Ok(Some(Self {
            first,
            entries: Entries::new(entries),
            term,
            term_before,
        }))
    }

    /// What a log holds behind damage and behind entry `index` of `term`, if that is known. `None`
    /// where nothing proves that it follows that entry, or where the membership changes in it.
    ///
    /// # Errors
    /// What cannot be read.
    pub fn behind_damage(
        guest: &Guest,
        damaged: &Log,
        index: u64,
        term: Option<u64>,
    ) -> Result<Option<Self>> {
        let Some((known, kept)) = entries_behind_damage(guest, damaged, index)? else {
            return Ok(None);
        };
        if term.is_some_and(|term| term != known) {
            return Ok(None);
        }
        let (mut entries, mut term) = (Vec::new(), known);
        for (own, entry) in kept {
            let is_change = Entry::parse(&entry).is_ok_and(|entry| entry.kind != EntryKind::Normal);
            if is_change || own < term {
                return Ok(None);
            }
            term = own;
            entries.push(entry);
        }
        Ok(Some(Self {
            first: index.saturating_add(1),
            entries: Entries::new(entries),
            term,
            term_before: known,
        }))
    }

    /// The last entry.
    pub fn last(&self) -> u64 {
        self.first
            .saturating_add(self.entries.len() as u64)
            .saturating_sub(1)
    }

    /// Of the member that gets it, which had `state`: a term that it has not seen begins, and it
    /// has no vote in it yet. What is agreed on it hears from the next leader.
    pub fn state(&self, state: HardState) -> HardState {
        if self.term > state.term {
            HardState {
                term: self.term,
                vote: 0,
                ..state
            }
        } else {
            state
        }
    }

    /// The records behind a log whose running checksum is `crc`.
    ///
    /// # Errors
    /// None where memory can be had.
    pub fn records(&self, crc: u32, state: HardState) -> Result<Vec<u8>> {
        let mut writer = LogWriter::following(Vec::new(), crc);
        self.entries.write(&mut writer)?;
        let now = self.state(state);
        if now != state {
            writer.state(&now)?;
        }
        Ok(writer.finish()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::etcd::format::raft::{ConfChange, ConfChangeKind};

    /// From entry 1 on; `terms`: from which entry on which term.
    fn log(terms: &[(u64, u64)], last: u64) -> Log {
        let mut log = Log::default();
        (log.first, log.last, log.terms, log.term_before) = (1, last, terms.to_vec(), Some(0));
        log
    }

    /// Of a [`Lag`]: whose, up to where the same, how many replaced.
    type Given = (usize, u64, u64);

    fn decided(logs: &[Log], agreed: u64, voters: usize) -> Option<(usize, Vec<Given>)> {
        let at_hand: Vec<Voter<'_>> = logs
            .iter()
            .enumerate()
            .map(|(number, log)| Voter {
                number,
                log,
                agreed,
            })
            .collect();
        let levelling = needed(&at_hand, voters)?;
        Some((
            levelling.newest,
            levelling
                .lagging
                .iter()
                .map(|lag| (lag.number, lag.same, lag.replaced))
                .collect(),
        ))
    }

    #[test]
    fn what_one_disk_alone_holds_goes_to_all_that_lag() {
        let of = |last| log(&[(1, 1), (50, 2)], last);
        assert_eq!(
            decided(&[of(100), of(98), of(99)], 90, 3),
            Some((0, vec![(1, 98, 0), (2, 99, 0)]))
        );
        assert_eq!(
            decided(&[of(98), of(98), of(100), of(100), of(99)], 90, 5),
            Some((2, vec![(0, 98, 0), (1, 98, 0), (4, 99, 0)]))
        );
        // Declared dead: two of three.
        assert_eq!(
            decided(&[of(100), of(98)], 90, 3),
            Some((0, vec![(1, 98, 0)]))
        );
    }

    #[test]
    fn what_a_majority_holds_is_left_alone() {
        let of = |last| log(&[(1, 1), (50, 2)], last);
        for logs in [
            vec![of(100), of(100), of(40)],
            vec![of(100); 3],
            vec![of(7)],
        ] {
            assert_eq!(decided(&logs, 0, logs.len()), None);
        }
        assert_eq!(decided(&[of(100)], 90, 3), None);
        assert_eq!(decided(&[], 90, 3), None);
    }

    #[test]
    fn the_newest_is_who_has_the_newest_term() {
        // A leader of term 3 has written its first entry; the others hold more of term 2, which it
        // did not have.
        let new = log(&[(1, 2), (96, 3)], 96);
        let old = |last| log(&[(1, 2)], last);
        assert_eq!(
            decided(&[old(99), new.clone(), old(93)], 90, 3),
            Some((1, vec![(0, 95, 4), (2, 93, 0)])),
            "what contradicts it is replaced"
        );
        // What is agreed on is never replaced; nor is anything given then, where the rest is no
        // majority.
        assert_eq!(decided(&[old(99), new.clone(), old(93)], 97, 3), None);
        let at = |number, log, agreed| Voter {
            number,
            log,
            agreed,
        };
        let (long, short) = (old(99), old(93));
        let one = needed(&[at(0, &long, 97), at(1, &new, 90), at(2, &short, 90)], 3);
        assert_eq!(
            one,
            Some(Levelling {
                newest: 1,
                lagging: vec![Lag {
                    number: 2,
                    same: 93,
                    replaced: 0
                }]
            })
        );
    }

    #[test]
    fn a_log_that_has_nothing_in_common_is_left_alone() {
        let mut late = log(&[(80, 2)], 100);
        (late.first, late.term_before) = (80, None);
        let early = log(&[(1, 2)], 70);
        assert_eq!(decided(&[late.clone(), early.clone(), early], 60, 3), None);
        // Its last entry is where the newest one begins, of which the snapshot tells the term.
        late.term_before = Some(2);
        let met = log(&[(1, 2)], 79);
        assert_eq!(
            decided(&[late, met.clone(), met], 60, 3),
            Some((0, vec![(1, 79, 0), (2, 79, 0)]))
        );
        let far = log(&[(1, 1)], 50_000);
        assert_eq!(
            decided(
                &[far, log(&[(1, 1)], 30_000), log(&[(1, 1)], 30_000)],
                100,
                3
            ),
            None
        );
    }

    #[test]
    fn while_members_change_nothing_is_given() {
        let mut newest = log(&[(1, 2)], 100);
        newest.changes.push((
            95,
            ConfChange {
                kind: ConfChangeKind::RemoveNode,
                node: 3,
                context: Vec::new(),
            },
        ));
        let logs = [newest, log(&[(1, 2)], 98), log(&[(1, 2)], 98)];
        assert_eq!(decided(&logs, 90, 3), None);
        assert!(decided(&logs, 95, 3).is_some());
    }

    #[test]
    fn a_vote_is_kept_in_its_own_term_and_no_longer() {
        let tail = Tail {
            first: 5,
            entries: Entries::new(vec![Vec::new(); 3]),
            term: 4,
            term_before: 4,
        };
        assert_eq!(tail.last(), 7);
        let state = |term, vote| HardState {
            term,
            vote,
            commit: 3,
        };
        assert_eq!(tail.state(state(3, 9)), state(4, 0));
        assert_eq!(tail.state(state(4, 9)), state(4, 9));
        assert_eq!(tail.state(state(6, 9)), state(6, 9));
    }
}
