//! The decision table: from what each member at hand is like to the smallest repair that suffices,
//! and why nothing smaller does. Nothing is read here.
//!
//! - A member whose own log is whole keeps it: at most a database or a snapshot is laid beside it.
//!   Nothing that it has promised to the others is forgotten, so this is safe by itself.
//! - A member whose log is gone or has lost what it promised must never vote under its old ID again
//!   while another member may start with a log of its own. Where a majority is whole, it is taken
//!   in anew: the member with the newest log removes its old ID and adds a new one, and both get
//!   that history. It is safe as long as the members that are left alone are no majority of the old
//!   ones: then nobody can become leader who does not hold those changes.
//! - A learner has promised nothing that counts. Where a majority of the voters is whole it gets
//!   the newest history under its own ID, and nobody else is touched.
//! - A member that came back with another address than the others know is taken in anew at it. Its
//!   log is whole, and counts.
//! - Otherwise all disks get the newest history, as a new cluster. That needs every voter's disk,
//!   or the word that a member is given up: those left out could go on by themselves.

/// What one member at hand is like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// It starts, or it does once it is mended in place.
    Fine,
    /// Its log is whole, but it needs another database or snapshot beside it.
    Relaid,
    /// Its log is whole, but the others look for it at an address where it no longer is.
    Moved,
    /// Its log is not what it was.
    Lost,
}

/// One member at hand.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct View {
    /// For people.
    pub name: String,
    /// Which member of the configuration it is.
    pub id: u64,
    /// Whether that one votes.
    pub votes: bool,
    /// What it is like.
    pub state: State,
    /// Term and number of the last entry that can be read of its log; none where nothing can be
    /// built upon it.
    pub rank: Option<(u64, u64)>,
    /// The last entry that its own disk holds: without what it would get of another's log.
    pub own_last: Option<u64>,
    /// Whether that log ends with a whole record. One that does not has lost nothing that it
    /// promised, as long as its disk keeps its word.
    pub is_clean: bool,
    /// Whether its log is another member's, or of another cluster, so that nothing of it counts
    /// here.
    pub is_foreign: bool,
    /// Entries up to here are known to be agreed on.
    pub agreed: u64,
}

/// All that counts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Situation {
    /// Members at hand.
    pub members: Vec<View>,
    /// All voters of the configuration: ID and name.
    pub voters: Vec<(u64, String)>,
    /// Those that are given up.
    pub dead: Vec<u64>,
    /// The entry of the newest change of the membership.
    pub changed_at: u64,
}

/// What is done. Numbers are those of [`Situation::members`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Repair {
    /// Nothing for several members together.
    Nothing,
    /// These get a database or snapshot beside their own log.
    Relay(Vec<usize>),
    /// These learners get the history of the voter `from` under their own IDs; `relaid` get a
    /// database or snapshot beside their own log.
    Refill {
        /// Whose.
        from: usize,
        /// Who.
        learners: Vec<usize>,
        /// Who else is not fine.
        relaid: Vec<usize>,
    },
    /// `again` are taken in anew by `keeper`; `relaid` get a database or snapshot beside their own
    /// log.
    Readmit {
        /// Who holds the newest log and is among those that are whole.
        keeper: usize,
        /// Who gets a new ID and the keeper's history.
        again: Vec<usize>,
        /// Who else is not fine.
        relaid: Vec<usize>,
        /// As for [`Repair::Clone`].
        is_majority: bool,
    },
    /// All get the history of `best`, as a new cluster.
    Clone {
        /// Whose.
        best: usize,
        /// Who.
        members: Vec<usize>,
        /// Whether a majority of the voters' logs is whole beyond doubt, so that nothing that was
        /// acknowledged is lost.
        is_majority: bool,
    },
    /// The only voter's log ends before its database: it begins anew behind that.
    Extend(usize),
    /// No log can be built upon.
    NoLog(Vec<usize>),
    /// Disks that are not at hand are needed first.
    Needs(Vec<String>),
}

/// A repair, and why it is not a smaller one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    /// What is done.
    pub repair: Repair,
    /// Why nothing smaller suffices, one sentence each.
    pub why: Vec<String>,
}

/// Decides.
pub fn decide(situation: &Situation) -> Decision {
    let table = Table { situation };
    let (repair, why) = table.decide();
    Decision { repair, why }
}

struct Table<'a> {
    situation: &'a Situation,
}

/// Numbers of members by what became of them.
struct Losses {
    /// Those that cannot keep what they have.
    lost: Vec<usize>,
    /// Those that are started at another address, where all members are at hand.
    moved: Vec<usize>,
    /// Both, sorted: they get a new ID.
    renewed: Vec<usize>,
    /// Those that lack a database or snapshot beside a whole log.
    relaid: Vec<usize>,
    /// Names of those whose disks are needed first.
    absent: Vec<String>,
    /// How many voters at hand keep their ID.
    kept: usize,
    /// How many voters at hand have a log that is whole beyond doubt.
    clean: usize,
}

impl Table<'_> {
    fn decide(&self) -> (Repair, Vec<String>) {
        let losses = self.losses();
        let can_move = !losses.moved.is_empty() && self.holding() >= self.majority();
        if losses.lost.is_empty() && !can_move {
            return self.without_loss(losses.relaid);
        }
        let mut why = self.why_lost(&losses.lost);
        why.extend(self.why_moved(&losses.moved));
        if let ([only], [_]) = (losses.lost.as_slice(), self.situation.voters.as_slice())
            && self.view(*only).votes
        {
            return match self.view(*only).rank {
                Some(_) => (Repair::Extend(*only), why),
                None => (Repair::NoLog(losses.lost), why),
            };
        }
        self.with_loss(losses, why)
    }

    fn losses(&self) -> Losses {
        let lost = self.of(State::Lost);
        let absent = self.absent();
        // A new address is for all members to learn, so it waits for all of them.
        let moved = if absent.is_empty() {
            self.of(State::Moved)
        } else {
            Vec::new()
        };
        let mut renewed = [lost.as_slice(), moved.as_slice()].concat();
        renewed.sort_unstable();
        let kept = self
            .voters_at_hand()
            .filter(|number| !renewed.contains(number))
            .count();
        // Where a disk has lost something, another's torn end is no longer taken for what was never
        // promised.
        let clean = self
            .voters_at_hand()
            .filter(|number| !lost.contains(number) && self.view(*number).is_clean)
            .count();
        Losses {
            lost,
            moved,
            renewed,
            relaid: self.of(State::Relaid),
            absent,
            kept,
            clean,
        }
    }

    /// The smallest repair where some cannot keep what they have, or have moved.
    fn with_loss(&self, losses: Losses, mut why: Vec<String>) -> (Repair, Vec<String>) {
        let best = self.best();
        // Only a voter becomes the leader that the others learn of the change from.
        let keeps = |best: &usize| {
            self.view(*best).votes && !losses.renewed.contains(best) && self.holds_agreed(*best)
        };
        let has_majority = losses.kept >= self.majority();
        let keeper = best.filter(|best| has_majority && keeps(best));
        if let Some(from) = keeper
            && self.has_learners_only(&losses)
            && self.holding() >= self.majority()
        {
            why.push("It is a learner, whose word counts nowhere, so it keeps its ID.".to_owned());
            let Losses { lost, relaid, .. } = losses;
            let repair = Repair::Refill {
                from,
                learners: lost,
                relaid,
            };
            return (repair, why);
        }
        if let Some(keeper) = keeper {
            if losses.kept - 1 + losses.absent.len() < self.majority() {
                why.extend(self.why_new_id(&losses.lost));
                return (self.readmit(keeper, losses), why);
            }
            if losses.absent.is_empty() {
                why.push(
                    "The members that would be left alone are a majority: they could go on \
                     without the change."
                        .to_owned(),
                );
            }
        } else if losses.absent.is_empty() {
            why.push(self.why_none_keeps(best, &losses));
        }
        if !losses.absent.is_empty() {
            return (Repair::Needs(losses.absent), why);
        }
        self.clone_all(best, losses.clean, why)
    }

    fn has_learners_only(&self, losses: &Losses) -> bool {
        let mut lost = losses.lost.iter();
        losses.moved.is_empty() && lost.all(|number| !self.view(*number).votes)
    }

    fn readmit(&self, keeper: usize, losses: Losses) -> Repair {
        let others = losses.relaid.into_iter().filter(|number| *number != keeper);
        Repair::Readmit {
            keeper,
            again: losses.renewed,
            relaid: others.collect(),
            is_majority: losses.clean >= self.majority() && self.is_plausible(),
        }
    }

    fn why_moved(&self, moved: &[usize]) -> Option<String> {
        (!moved.is_empty()).then(|| {
            format!(
                "{}: the others look for it where it no longer is, so it is taken in under a new \
                 ID, at the address that it is started with.",
                self.names(moved)
            )
        })
    }

    fn why_new_id(&self, lost: &[usize]) -> Option<String> {
        (!lost.is_empty()).then(|| {
            format!(
                "With its old ID {} could have promised what it no longer holds, so it gets a new \
                 one; the others keep theirs.",
                self.names(lost)
            )
        })
    }

    /// Why no member can take the others in anew.
    fn why_none_keeps(&self, best: Option<usize>, losses: &Losses) -> String {
        let (kept, voters) = (losses.kept, self.situation.voters.len());
        let has_majority = kept >= self.majority();
        match (has_majority, losses.lost.is_empty()) {
            _ if best.is_some_and(|best| has_majority && !self.view(best).votes) => {
                "The newest log is on a learner.".to_owned()
            }
            (true, false) => {
                "What is known to be agreed on is on none of the members that are whole.".to_owned()
            }
            (false, false) => {
                format!(
                    "Only {kept} of {voters} voters still have what they promised: no majority."
                )
            }
            (true, true) => "The newest log is on a member that has moved.".to_owned(),
            (false, true) => {
                format!("Only {kept} of {voters} voters are where they were: no majority.")
            }
        }
    }

    /// Why these cannot keep what they have.
    fn why_lost(&self, lost: &[usize]) -> Vec<String> {
        let (foreign, damaged): (Vec<usize>, Vec<usize>) = lost
            .iter()
            .partition(|number| self.view(**number).is_foreign);
        let says = [
            (
                damaged,
                "what is left of the log cannot be mended in place.",
            ),
            (
                foreign,
                "the log is not that of this member of this cluster: its IDs are others than \
                 those in the list of members.",
            ),
        ];
        let says = says.into_iter().filter(|(numbers, _)| !numbers.is_empty());
        says.map(|(numbers, why)| format!("{}: {why}", self.names(&numbers)))
            .collect()
    }

    fn without_loss(&self, relaid: Vec<usize>) -> (Repair, Vec<String>) {
        let all_at_hand = self.voters_at_hand().count() == self.situation.voters.len();
        let (agreed, holding) = (self.agreed(), self.holding());
        if all_at_hand && holding < self.majority() && !self.is_changed_beyond_one() {
            let why = format!(
                "Entries up to {agreed} are agreed on, which takes {} members, but only {holding} \
                 still hold them: others have lost the end of \
                 their log.",
                self.majority()
            );
            return self.clone_all(self.best(), holding, vec![why]);
        }
        match relaid.is_empty() {
            true => (Repair::Nothing, Vec::new()),
            false => {
                let why = format!(
                    "{}: with the database and the snapshots that are there it does not start, or \
                     does not work.",
                    self.names(&relaid)
                );
                (Repair::Relay(relaid), vec![why])
            }
        }
    }

    /// `whole`: how many voters have lost nothing, as far as that shows.
    fn clone_all(
        &self,
        best: Option<usize>,
        whole: usize,
        why: Vec<String>,
    ) -> (Repair, Vec<String>) {
        let members: Vec<usize> = (0..self.situation.members.len()).collect();
        let Some(best) = best else {
            return (Repair::NoLog(members), why);
        };
        let is_majority =
            whole >= self.majority() && self.holds_agreed(best) && self.is_plausible();
        (
            Repair::Clone {
                best,
                members,
                is_majority,
            },
            why,
        )
    }

    fn view(&self, number: usize) -> &View {
        &self.situation.members[number]
    }

    fn of(&self, state: State) -> Vec<usize> {
        (0..self.situation.members.len())
            .filter(|number| self.view(*number).state == state)
            .collect()
    }

    fn voters_at_hand(&self) -> impl Iterator<Item = usize> {
        (0..self.situation.members.len()).filter(|number| self.view(*number).votes)
    }

    fn majority(&self) -> usize {
        self.situation.voters.len() / 2 + 1
    }

    /// Everything up to here is agreed on, as far as anybody at hand knows.
    fn agreed(&self) -> u64 {
        self.situation
            .members
            .iter()
            .map(|view| view.agreed)
            .max()
            .unwrap_or(0)
    }

    /// How many voters at hand hold all of that by themselves.
    fn holding(&self) -> usize {
        self.voters_at_hand()
            .filter(|number| self.holds_itself(*number))
            .count()
    }

    /// Who has lost its log may have held what is agreed on; where even that does not make a
    /// majority, others have lost it, too.
    fn is_plausible(&self) -> bool {
        let has_lost_it =
            |number: &usize| self.view(*number).state == State::Lost && !self.holds_itself(*number);
        self.holding() + self.voters_at_hand().filter(has_lost_it).count() >= self.majority()
    }

    fn holds_itself(&self, number: usize) -> bool {
        self.view(number)
            .own_last
            .is_some_and(|last| last >= self.agreed())
    }

    /// Whether a change of the membership lies beyond some voter's log. It is agreed on by a
    /// majority of those that were members before it, of whom some may have left with it, so how
    /// many hold it now says nothing.
    fn is_changed_beyond_one(&self) -> bool {
        let last = |number: usize| self.view(number).own_last.unwrap_or(0);
        self.voters_at_hand()
            .any(|number| last(number) < self.situation.changed_at)
    }

    fn holds_agreed(&self, number: usize) -> bool {
        self.view(number)
            .rank
            .is_some_and(|rank| rank.1 >= self.agreed())
    }

    /// By the last entry's term, then its number (Raft, 5.4.1); between equals one that is whole.
    fn best(&self) -> Option<usize> {
        let ranked =
            (0..self.situation.members.len()).filter(|number| self.view(*number).rank.is_some());
        ranked.max_by_key(|number| {
            let view = self.view(*number);
            let order = match view.state {
                State::Fine => 2,
                State::Relaid | State::Moved => 1,
                State::Lost => 0,
            };
            (view.rank, order, view.votes, std::cmp::Reverse(*number))
        })
    }

    /// Voters that are neither at hand nor given up.
    fn absent(&self) -> Vec<String> {
        let there = |id: u64| {
            self.situation.members.iter().any(|view| view.id == id)
                || self.situation.dead.contains(&id)
        };
        let absent = self.situation.voters.iter().filter(|(id, _)| !there(*id));
        let mut names: Vec<String> = absent.map(|(_, name)| name.clone()).collect();
        names.sort();
        names
    }

    fn names(&self, numbers: &[usize]) -> String {
        numbers
            .iter()
            .map(|number| self.view(*number).name.as_str())
            .collect::<Vec<_>>()
            .join(", ")
    }
}

#[cfg(test)]
mod tests {
    use super::State::{Fine, Lost, Moved, Relaid};
    use super::*;

    /// Members 1, 2, … of `voters`; each with its state and its last entry, all of term 2, all
    /// agreed on up to 90.
    fn situation(voters: u64, members: &[(State, Option<u64>)]) -> Situation {
        let view = |(number, (state, last)): (u64, &(State, Option<u64>))| View {
            name: format!("m{number}"),
            id: number,
            votes: true,
            state: *state,
            rank: last.map(|last| (2, last)),
            own_last: *last,
            is_clean: true,
            is_foreign: false,
            agreed: 90,
        };
        Situation {
            members: (1..).zip(members).map(view).collect(),
            voters: (1..=voters).map(|id| (id, format!("m{id}"))).collect(),
            dead: Vec::new(),
            changed_at: 3,
        }
    }

    fn repair(situation: &Situation) -> Repair {
        let decision = decide(situation);
        assert_eq!(
            decision.why.is_empty(),
            decision.repair == Repair::Nothing,
            "{decision:?}"
        );
        decision.repair
    }

    #[test]
    fn the_smallest_that_suffices() {
        let whole = (Fine, Some(100));
        assert_eq!(repair(&situation(3, &[whole; 3])), Repair::Nothing);
        assert_eq!(
            repair(&situation(
                3,
                &[whole, (Fine, Some(95)), (Relaid, Some(100))]
            )),
            Repair::Relay(vec![2])
        );
        assert_eq!(
            repair(&situation(3, &[(Lost, None), (Fine, Some(99)), whole])),
            Repair::Readmit {
                keeper: 2,
                again: vec![0],
                relaid: vec![],
                is_majority: true
            }
        );
        assert_eq!(
            repair(&situation(
                3,
                &[(Lost, Some(80)), (Relaid, Some(99)), whole]
            )),
            Repair::Readmit {
                keeper: 2,
                again: vec![0],
                relaid: vec![1],
                is_majority: true
            }
        );
        // The newest is among those that lost something.
        assert_eq!(
            repair(&situation(3, &[(Lost, Some(101)), (Fine, Some(99)), whole])),
            Repair::Clone {
                best: 0,
                members: vec![0, 1, 2],
                is_majority: true
            }
        );
        assert_eq!(
            repair(&situation(3, &[(Lost, None), (Lost, Some(99)), whole])),
            Repair::Clone {
                best: 2,
                members: vec![0, 1, 2],
                is_majority: false
            }
        );
        assert_eq!(
            repair(&situation(3, &[(Lost, None); 3])),
            Repair::NoLog(vec![0, 1, 2])
        );
    }

    #[test]
    fn a_member_that_left_may_have_held_what_was_agreed_on() {
        let mut two = situation(2, &[(Fine, Some(100)), (Fine, Some(89))]);
        assert!(matches!(
            repair(&two),
            Repair::Clone {
                best: 0,
                is_majority: false,
                ..
            }
        ));
        two.changed_at = 90;
        assert_eq!(repair(&two), Repair::Nothing);
    }

    #[test]
    fn who_has_moved_is_taken_in_where_it_is() {
        let (whole, moved) = ((Fine, Some(100)), (Moved, Some(100)));
        assert_eq!(
            repair(&situation(3, &[moved, whole, (Relaid, Some(99))])),
            Repair::Readmit {
                keeper: 1,
                again: vec![0],
                relaid: vec![2],
                is_majority: true
            }
        );
        assert_eq!(
            repair(&situation(5, &[moved, (Lost, None), whole, whole, whole])),
            Repair::Readmit {
                keeper: 2,
                again: vec![0, 1],
                relaid: vec![],
                is_majority: true
            }
        );
        // Its log counts all the same, so nothing is lost.
        for members in [
            [moved, moved, whole],
            [moved; 3],
            [(Moved, Some(101)), whole, whole],
        ] {
            let repair = repair(&situation(3, &members));
            assert!(
                matches!(
                    repair,
                    Repair::Clone {
                        best: 0 | 2,
                        is_majority: true,
                        ..
                    }
                ),
                "{repair:?}"
            );
        }
        let lost = repair(&situation(3, &[moved, (Lost, None), (Lost, Some(40))]));
        assert_eq!(
            lost,
            Repair::Clone {
                best: 0,
                members: vec![0, 1, 2],
                is_majority: false
            }
        );
        // With a disk missing its address is only told of.
        assert_eq!(repair(&situation(3, &[moved, whole])), Repair::Nothing);
        // Logs that end before what is agreed on are noticed here, too.
        let short = repair(&situation(3, &[(Moved, Some(80)), (Fine, Some(85)), whole]));
        assert_eq!(
            short,
            Repair::Clone {
                best: 2,
                members: vec![0, 1, 2],
                is_majority: false
            }
        );
    }

    #[test]
    fn a_learner_is_taken_in_again_and_takes_nobody_in() {
        let whole = (Fine, Some(100));
        let with_learner = |members: &[(State, Option<u64>)]| {
            let mut situation = situation(3, members);
            situation.members[3].votes = false;
            situation
        };
        let wiped = repair(&with_learner(&[whole, whole, whole, (Lost, None)]));
        assert_eq!(
            wiped,
            Repair::Refill {
                from: 0,
                learners: vec![3],
                relaid: vec![]
            }
        );
        let short = repair(&with_learner(&[
            (Fine, Some(80)),
            (Fine, Some(80)),
            whole,
            (Lost, None),
        ]));
        assert_eq!(
            short,
            Repair::Clone {
                best: 2,
                members: vec![0, 1, 2, 3],
                is_majority: false
            }
        );
        // Equal logs: the voter's. The newest on the learner alone: nobody would lead.
        let equal = repair(&with_learner(&[
            (Lost, None),
            (Fine, Some(99)),
            whole,
            whole,
        ]));
        assert_eq!(
            equal,
            Repair::Readmit {
                keeper: 2,
                again: vec![0],
                relaid: vec![],
                is_majority: true
            }
        );
        let newest = repair(&with_learner(&[
            (Lost, None),
            whole,
            whole,
            (Fine, Some(101)),
        ]));
        assert_eq!(
            newest,
            Repair::Clone {
                best: 3,
                members: vec![0, 1, 2, 3],
                is_majority: true
            }
        );
    }

    #[test]
    fn beside_an_only_voter_a_learner_is_refilled() {
        let mut two = situation(1, &[(Fine, Some(100)), (Lost, None)]);
        two.members[1].votes = false;
        assert_eq!(
            repair(&two),
            Repair::Refill {
                from: 0,
                learners: vec![1],
                relaid: vec![]
            }
        );
    }

    #[test]
    fn what_another_log_lends_is_not_held_by_oneself() {
        // The third one's database is at 105, and its damaged log goes on to 110: the others have
        // lost what was agreed on.
        let mut lent = situation(
            3,
            &[(Fine, Some(100)), (Fine, Some(100)), (Lost, Some(110))],
        );
        (lent.members[2].agreed, lent.members[2].own_last) = (105, Some(105));
        assert_eq!(
            repair(&lent),
            Repair::Clone {
                best: 2,
                members: vec![0, 1, 2],
                is_majority: false
            }
        );
        // Lent to one of them: it takes the third one in, but is one of one that held it.
        (lent.members[2].rank, lent.members[0].rank) = (Some((1, 60)), Some((2, 110)));
        let readmit = repair(&lent);
        assert!(
            !matches!(
                readmit,
                Repair::Readmit {
                    is_majority: true,
                    ..
                } | Repair::Clone {
                    is_majority: true,
                    ..
                }
            ),
            "{readmit:?}"
        );
    }

    #[test]
    fn a_torn_end_beside_a_lost_log_is_no_proof() {
        let whole = (Fine, Some(100));
        let mut torn = situation(3, &[(Lost, Some(50)), (Fine, Some(99)), whole]);
        torn.members[1].is_clean = false;
        assert_eq!(
            repair(&torn),
            Repair::Readmit {
                keeper: 2,
                again: vec![0],
                relaid: vec![],
                is_majority: false
            }
        );
    }

    #[test]
    fn with_one_of_three_nothing_is_guessed() {
        let names =
            |names: &[&str]| Repair::Needs(names.iter().map(|name| (*name).to_owned()).collect());
        assert_eq!(
            repair(&situation(3, &[(Lost, Some(50))])),
            names(&["m2", "m3"])
        );
        assert_eq!(
            repair(&situation(3, &[(Lost, Some(50)), (Fine, Some(100))])),
            names(&["m3"])
        );
        // What can be done beside its own log needs nobody.
        assert_eq!(
            repair(&situation(3, &[(Relaid, Some(100))])),
            Repair::Relay(vec![0])
        );
        let mut given_up = situation(3, &[(Lost, Some(50)), (Fine, Some(100))]);
        given_up.dead = vec![3];
        assert_eq!(
            repair(&given_up),
            Repair::Clone {
                best: 1,
                members: vec![0, 1],
                is_majority: false
            }
        );
    }

    #[test]
    fn of_five_the_others_may_go_on_alone() {
        let whole = (Fine, Some(100));
        assert_eq!(
            repair(&situation(5, &[(Lost, None), whole, whole, whole, whole])),
            Repair::Clone {
                best: 1,
                members: vec![0, 1, 2, 3, 4],
                is_majority: true
            }
        );
        assert_eq!(
            repair(&situation(
                5,
                &[(Lost, None), (Lost, None), whole, whole, whole]
            )),
            Repair::Readmit {
                keeper: 2,
                again: vec![0, 1],
                relaid: vec![],
                is_majority: true
            }
        );
        assert_eq!(
            repair(&situation(5, &[(Lost, None), whole, whole, whole])),
            Repair::Needs(vec!["m5".to_owned()])
        );
    }

    #[test]
    fn what_is_agreed_on_and_nowhere_is_noticed() {
        // Two ends are cut so cleanly that each looks whole by itself.
        assert_eq!(
            repair(&situation(
                3,
                &[(Fine, Some(80)), (Fine, Some(85)), (Fine, Some(100))]
            )),
            Repair::Clone {
                best: 2,
                members: vec![0, 1, 2],
                is_majority: false
            }
        );
    }

    #[test]
    fn an_only_member_is_extended_or_made_from_its_database() {
        assert_eq!(
            repair(&situation(1, &[(Lost, Some(80))])),
            Repair::Extend(0)
        );
        assert_eq!(
            repair(&situation(1, &[(Lost, None)])),
            Repair::NoLog(vec![0])
        );
        assert_eq!(
            repair(&situation(1, &[(Relaid, Some(100))])),
            Repair::Relay(vec![0])
        );
    }
}
