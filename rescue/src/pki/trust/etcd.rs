//! Whose etcd history may be laid on whose disk. Nothing is read here: the decision is a function
//! of what each disk proves and says.
//!
//! Two rules. **Keys**: a member that uses TLS exchanges history only with one that holds a private
//! key of the same etcd CA, or of a leaf that this CA signed. That is what the running etcd asks of
//! a peer. Without TLS whoever reaches the port may write, so there only the second rule counts.
//! **Lists**: a disk that holds a history of its own gets another's only where its own list of
//! members leads to the donor. IDs and URLs can be made up, so a list counts for the disk that
//! holds it, never for the one that it names: a disk that lists a healthy member and is not in that
//! member's list neither gives to it nor counts beside it.
//!
//! What follows from both are units: members that are planned as if no other disk had been given.

use std::collections::{BTreeMap, BTreeSet};

/// One entry of a member's own list.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Listed {
    /// The member's ID.
    pub id: u64,
    /// Where others reach it.
    pub urls: Vec<String>,
    /// Whether it receives the log without a vote.
    pub is_learner: bool,
}

/// What one disk with an etcd member proves, and what it says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Claim {
    /// For people: `m1 (disk1.img)`.
    pub shown: String,
    /// How `--trust` names it.
    pub trust_flag: String,
    /// Whether the user vouches for it.
    pub is_trusted: bool,
    /// Whether its etcd asks its peers or clients for certificates.
    pub uses_tls: bool,
    /// Public keys of CAs of which it holds the private key, or a member's leaf with its private
    /// key.
    pub proven: BTreeSet<Vec<u8>>,
    /// Cluster ID in its log.
    pub cluster: Option<u64>,
    /// Member ID in its log.
    pub id: Option<u64>,
    /// Its own list of members, with those whose addition it does not know to be agreed on; empty
    /// where nothing is left that says it.
    pub list: Vec<Listed>,
    /// Peer URLs that it is started with.
    pub urls: Vec<String>,
    /// Peer URLs in its `--initial-cluster`.
    pub initial_urls: Vec<String>,
    /// Whether it holds more than what every new member writes by itself, or that cannot be told.
    pub holds_writes: bool,
    /// Whether its log is whole and it starts, perhaps once it is mended in place.
    pub is_whole: bool,
    /// Term and number of its last entry.
    pub rank: (u64, u64),
}

impl Claim {
    /// Its own entry.
    fn own(&self) -> Option<&Listed> {
        self.list.iter().find(|entry| match self.id {
            Some(id) => entry.id == id,
            None => meet(&entry.urls, &self.urls),
        })
    }

    fn is_own(&self, entry: &Listed) -> bool {
        self.own().is_some_and(|own| own.id == entry.id)
    }
}

fn meet(one: &[String], other: &[String]) -> bool {
    one.iter().any(|url| other.contains(url))
}

/// Members that are planned as if no other disk had been given. Numbers are places in the claims.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Unit {
    /// Those whose history counts.
    pub lenders: Vec<usize>,
    /// Those that may get that history, and whose own does not count.
    pub receivers: Vec<usize>,
    /// Those of both that belong here on the user's word alone.
    pub on_word: Vec<usize>,
}

impl Unit {
    /// All of them.
    pub fn all(&self) -> impl Iterator<Item = usize> {
        self.lenders.iter().chain(&self.receivers).copied()
    }
}

/// Why members are not planned together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// They share no private key.
    NoKey,
    /// The one is not in the other's list.
    NotListed,
    /// They hold two histories, with writes in both.
    TwoHistories,
    /// The one makes a learner of the other, which votes by its own list; etcd never does that.
    Demoted,
    /// Several units list it, and none of them knows of the other.
    Ambiguous,
}

/// Members that say to belong to others and are left out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeftOut {
    /// Who is not believed.
    pub doubted: Vec<usize>,
    /// Beside whom.
    pub beside: Vec<usize>,
    /// Why.
    pub why: Why,
    /// Whether somebody has to look at it: something is broken, or contradicts.
    pub matters: bool,
}

/// The whole decision. Each claim is in exactly one unit.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Units {
    /// Units, the one with most members first.
    pub units: Vec<Unit>,
    /// Who is not believed by whom.
    pub left_out: Vec<LeftOut>,
}

/// Decides who may be planned with whom.
pub fn units(claims: &[Claim]) -> Units {
    let mut decided = Room::of(claims).decide();
    let vouched: Vec<usize> = (0..claims.len())
        .filter(|number| claims[*number].is_trusted)
        .collect();
    for number in vouched {
        let mut without = claims.to_vec();
        without[number].is_trusted = false;
        let alone = Room::of(&without).decide();
        let together = |units: &[Unit]| -> BTreeSet<usize> {
            units
                .iter()
                .find(|unit| unit.all().any(|one| one == number))
                .into_iter()
                .flat_map(Unit::all)
                .collect()
        };
        if together(&alone.units) == together(&decided.units) {
            continue;
        }
        if let Some(unit) = decided
            .units
            .iter_mut()
            .find(|unit| unit.all().any(|one| one == number))
        {
            unit.on_word.push(number);
        }
    }
    decided
}

/// Whether the members share a private key, or the user vouches for the one that proves nothing, or
/// for both.
pub fn share_keys(claims: &[Claim], one: usize, other: usize) -> bool {
    let group = key_groups(claims);
    let is_word = |number: usize| claims[number].is_trusted && claims[number].proven.is_empty();
    let are_both = claims[one].is_trusted && claims[other].is_trusted;
    group[one] == group[other] || is_word(one) || is_word(other) || are_both
}

/// Whether the history of `donor` may be laid on the disk of `receiver` where the user asks for
/// just that (`rescue etcd rebuild`): then the donor's list need not know the receiver, which may
/// be a new machine.
///
/// # Errors
/// Why not.
pub fn lends(claims: &[Claim], donor: usize, receiver: usize) -> Result<(), Why> {
    if !share_keys(claims, donor, receiver) {
        return Err(Why::NoKey);
    }
    let room = Room::of(claims);
    let (from, to) = (&claims[donor], &claims[receiver]);
    let is_same = from.cluster.is_none() || to.cluster.is_none() || from.cluster == to.cluster;
    let is_together = || {
        room.decide_again()
            .units
            .iter()
            .any(|unit| unit.lenders.contains(&donor) && unit.all().any(|one| one == receiver))
    };
    let may = from.is_trusted
        || to.list.is_empty()
        || !to.holds_writes
        || (is_same && room.names(receiver, donor));
    if may || is_together() {
        Ok(())
    } else {
        Err(Why::NotListed)
    }
}

struct Room<'a> {
    claims: &'a [Claim],
    /// For each claim the number of the group that it shares keys with.
    group: Vec<usize>,
    /// Voters, each with the member whose list makes a learner of it.
    demoted: Vec<(usize, usize)>,
    /// Receivers that must not get what a lender holds.
    barred: Vec<(usize, usize)>,
    /// Disks without a list of their own that several units list.
    ambiguous: Vec<(usize, Vec<usize>)>,
}

impl<'a> Room<'a> {
    fn of(claims: &'a [Claim]) -> Self {
        Self {
            claims,
            group: key_groups(claims),
            demoted: Vec::new(),
            barred: Vec::new(),
            ambiguous: Vec::new(),
        }
    }

    fn decide_again(&self) -> Units {
        Self::of(self.claims).decide()
    }

    fn decide(mut self) -> Units {
        let mut units = self.histories();
        self.receive(&mut units);
        self.silent(&mut units);
        units.retain(|unit| !unit.lenders.is_empty());
        units.sort_by_key(|unit| std::cmp::Reverse(unit.all().count()));
        let left_out = self.left_out(&units);
        Units { units, left_out }
    }

    fn claim(&self, number: usize) -> &'a Claim {
        &self.claims[number]
    }

    /// Whether it says which members there are.
    fn speaks(&self, number: usize) -> bool {
        !self.claim(number).list.is_empty()
    }

    /// Whether the list of `one` names `other`: by its ID, or at its URL where no disk has that ID.
    fn names(&self, one: usize, other: usize) -> bool {
        let (own, other_claim) = (self.claim(one), self.claim(other));
        one != other
            && own
                .list
                .iter()
                .filter(|entry| !own.is_own(entry))
                .any(|entry| {
                    let is_taken = || {
                        (0..self.claims.len()).any(|number| {
                            self.group[number] == self.group[one]
                                && self.claim(number).id == Some(entry.id)
                        })
                    };
                    other_claim.id == Some(entry.id)
                        || (meet(&entry.urls, &other_claim.urls) && !is_taken())
                })
    }

    /// Whether the list of `one` has a place for `other`, be it under another ID.
    fn has_place_for(&self, one: usize, other: usize) -> bool {
        let (own, other) = (self.claim(one), self.claim(other));
        let is_other =
            |entry: &Listed| other.id == Some(entry.id) || meet(&entry.urls, &other.urls);
        own.list
            .iter()
            .filter(|entry| !own.is_own(entry))
            .any(is_other)
    }

    /// Members of each group and cluster that lead to one another by their own lists. Each is a
    /// unit that lends.
    fn histories(&mut self) -> Vec<Unit> {
        let mut units = Vec::new();
        let mut is_placed = vec![false; self.claims.len()];
        let groups: BTreeSet<usize> = self.group.iter().copied().collect();
        for group in groups {
            let speaking: Vec<usize> = (0..self.claims.len())
                .filter(|number| self.group[*number] == group && self.speaks(*number))
                .collect();
            let clusters: BTreeSet<Option<u64>> = speaking
                .iter()
                .map(|number| self.claim(*number).cluster)
                .collect();
            // A disk without a log does not say of which cluster it is, so it comes with those that
            // do.
            let mut clusters: Vec<Option<u64>> = clusters.into_iter().collect();
            clusters.sort_by_key(|cluster| {
                let of_it = speaking
                    .iter()
                    .filter(|number| self.claim(**number).cluster == *cluster)
                    .count();
                (cluster.is_none(), std::cmp::Reverse(of_it), *cluster)
            });
            for cluster in clusters {
                let there = |number: &usize| {
                    let own = self.claim(*number).cluster;
                    !is_placed[*number] && (own == cluster || own.is_none())
                };
                let there: Vec<usize> = speaking.iter().copied().filter(there).collect();
                for unit in self.connected(&there) {
                    // Alone, one without a log waits for a cluster that it belongs to.
                    if cluster.is_some()
                        && unit
                            .iter()
                            .all(|number| self.claim(*number).cluster.is_none())
                    {
                        continue;
                    }
                    unit.iter().for_each(|number| is_placed[*number] = true);
                    units.extend(self.without_demoted(unit));
                }
            }
        }
        units
    }

    /// Sets whose members all lead to one another.
    fn connected(&self, numbers: &[usize]) -> Vec<Vec<usize>> {
        let count = numbers.len();
        let leads = |one: usize, other: usize| {
            let (one, other) = (numbers[one], numbers[other]);
            one == other || self.names(one, other) || self.claim(other).is_trusted
        };
        let mut reach: Vec<Vec<bool>> = (0..count)
            .map(|one| (0..count).map(|other| leads(one, other)).collect())
            .collect();
        for by in 0..count {
            for one in 0..count {
                if reach[one][by] {
                    let onward = reach[by].clone();
                    reach[one]
                        .iter_mut()
                        .zip(onward)
                        .for_each(|(known, more)| *known |= more);
                }
            }
        }
        let mut sets: Vec<Vec<usize>> = Vec::new();
        let mut is_done = vec![false; count];
        for one in 0..count {
            if is_done[one] {
                continue;
            }
            let set: Vec<usize> = (0..count)
                .filter(|other| reach[one][*other] && reach[*other][one])
                .collect();
            set.iter().for_each(|member| is_done[*member] = true);
            sets.push(set.into_iter().map(|member| numbers[member]).collect());
        }
        sets
    }

    /// Who of them holds the newest log.
    fn newest(&self, numbers: &[usize]) -> Option<usize> {
        numbers
            .iter()
            .copied()
            .max_by_key(|number| (self.claim(*number).rank, std::cmp::Reverse(*number)))
    }

    /// Whether the list of `newest` makes a learner of a member that votes by its own, without the
    /// user's word for it.
    fn demotes(&self, newest: usize, number: usize) -> bool {
        let votes = self
            .claim(number)
            .own()
            .filter(|own| !own.is_learner)
            .map(|own| own.id);
        let newest_claim = self.claim(newest);
        let learns = |id: u64| {
            newest_claim
                .list
                .iter()
                .any(|entry| entry.id == id && entry.is_learner)
        };
        newest != number && !newest_claim.is_trusted && votes.is_some_and(learns)
    }

    /// Takes those out of a set that the newest list leaves out, or makes learners of while they
    /// vote by their own. Among themselves they may be several that agree, and such are never
    /// replaced: a majority that lacks the change has not agreed on it.
    fn without_demoted(&mut self, set: Vec<usize>) -> Vec<Unit> {
        let Some(newest) = self
            .newest(&set)
            .filter(|newest| !self.claim(*newest).is_trusted)
        else {
            return vec![Unit {
                lenders: set,
                ..Unit::default()
            }];
        };
        let list = &self.claim(newest).list;
        let is_left_out = |number: &usize| {
            self.claim(*number)
                .id
                .is_some_and(|id| list.iter().all(|entry| entry.id != id))
                && *number != newest
        };
        let is_demoted = |number: &usize| self.demotes(newest, *number);
        let (out, rest): (Vec<usize>, Vec<usize>) = set
            .into_iter()
            .partition(|number| is_left_out(number) || is_demoted(number));
        if out.is_empty() {
            return vec![Unit {
                lenders: rest,
                ..Unit::default()
            }];
        }
        // Vouched for, one belongs here; but the newest list does not know it, so what it holds
        // does not count.
        let (vouched, out): (Vec<usize>, Vec<usize>) = out
            .into_iter()
            .partition(|number| self.claim(*number).is_trusted && is_left_out(number));
        let demoted: Vec<usize> = out.iter().copied().filter(is_demoted).collect();
        self.demoted
            .extend(demoted.iter().map(|number| (*number, newest)));
        self.barred
            .extend(demoted.into_iter().map(|number| (number, newest)));
        // Who holds the newest log never gets an older one from those that it leaves out.
        self.barred.extend(
            rest.iter()
                .flat_map(|receiver| out.iter().map(|lender| (*receiver, *lender))),
        );
        // Those that are left may have led to one another by way of the others.
        let sets = [self.connected(&rest), self.connected(&out)].concat();
        let mut units: Vec<Unit> = sets
            .into_iter()
            .flat_map(|set| self.without_demoted(set))
            .collect();
        if let Some(unit) = units.iter_mut().find(|unit| unit.lenders.contains(&newest)) {
            unit.receivers.extend(vouched);
        }
        units
    }

    /// Whether `receiver`, which has a list, may get the history of `unit`: it holds nothing of its
    /// own, its list leads there, or the user says so.
    fn may_receive(&self, receiver: usize, unit: &Unit) -> bool {
        let claim = self.claim(receiver);
        let cluster = unit
            .lenders
            .iter()
            .find_map(|lender| self.claim(*lender).cluster);
        let is_same = claim.cluster.is_none() || cluster.is_none() || claim.cluster == cluster;
        let is_barred = self
            .barred
            .iter()
            .any(|(one, lender)| *one == receiver && unit.lenders.contains(lender))
            || self
                .newest(&unit.lenders)
                .is_some_and(|newest| self.demotes(newest, receiver));
        let leads = unit
            .lenders
            .iter()
            .any(|lender| self.names(receiver, *lender));
        let is_word = unit
            .lenders
            .iter()
            .all(|lender| self.claim(*lender).is_trusted);
        !is_barred && (is_word || !claim.holds_writes || (is_same && leads))
    }

    /// Members of the group that the unit has a place for.
    fn is_wanted(&self, number: usize, unit: &Unit) -> bool {
        let shares = |lender: &usize| self.group[*lender] == self.group[number];
        !unit.lenders.is_empty()
            && unit.lenders.iter().all(shares)
            && unit
                .lenders
                .iter()
                .any(|lender| self.has_place_for(*lender, number))
            && (self.speaks(number) || self.is_started_beside(number, unit))
    }

    /// Where a disk has lost its list, what its etcd is started with may still name others: then
    /// one of the unit must be among them. The first control plane of a kubeadm cluster names
    /// itself alone.
    fn is_started_beside(&self, number: usize, unit: &Unit) -> bool {
        let own = self.claim(number);
        let others: Vec<String> = own
            .initial_urls
            .iter()
            .filter(|url| !own.urls.contains(url))
            .cloned()
            .collect();
        let is_named = |lender: &usize| {
            let lender = self.claim(*lender);
            lender.is_trusted || meet(&others, &lender.urls)
        };
        others.is_empty() || own.is_trusted || unit.lenders.iter().any(is_named)
    }

    /// Who lends to nobody else gets the history of a unit that has a place for it, where its own
    /// list allows that.
    fn receive(&self, units: &mut [Unit]) {
        let writes = |unit: &Unit| {
            unit.lenders
                .iter()
                .filter(|number| self.claim(**number).holds_writes)
                .count()
        };
        units.sort_by_key(|unit| {
            (
                std::cmp::Reverse((writes(unit), unit.lenders.len())),
                unit.lenders.first().copied(),
            )
        });
        for at in 0..units.len() {
            for from in (0..units.len()).rev() {
                let [only] = units[from].lenders[..] else {
                    continue;
                };
                if from != at
                    && units[from].receivers.is_empty()
                    && self.is_wanted(only, &units[at])
                    && self.may_receive(only, &units[at])
                {
                    units[from].lenders.clear();
                    units[at].receivers.push(only);
                }
            }
        }
    }

    /// Places those that have no list: with the only unit that has a place for them. Where nobody
    /// at all has one, all of a group are one unit.
    fn silent(&mut self, units: &mut Vec<Unit>) {
        let silent: Vec<usize> = (0..self.claims.len())
            .filter(|number| !self.speaks(*number))
            .collect();
        for number in silent {
            let wanting: Vec<usize> = (0..units.len())
                .filter(|at| self.is_wanted(number, &units[*at]))
                .collect();
            let trusted = |at: &usize| {
                units[*at]
                    .lenders
                    .iter()
                    .all(|lender| self.claim(*lender).is_trusted)
            };
            let vouched: Vec<usize> = wanting.iter().copied().filter(trusted).collect();
            let wanting = if vouched.is_empty() { wanting } else { vouched };
            // Who names another's members without being named back is no rival of them.
            let is_outdone = |at: &usize| {
                wanting.iter().any(|other| {
                    other != at
                        && self.claims_of(&units[*at], &units[*other])
                        && !self.claims_of(&units[*other], &units[*at])
                })
            };
            let rivals: Vec<usize> = wanting
                .iter()
                .copied()
                .filter(|at| !is_outdone(at))
                .collect();
            match rivals[..] {
                [only] if self.is_known_in(number, &units[only]) => {
                    units[only].lenders.push(number)
                }
                [only] => units[only].receivers.push(number),
                [] => {
                    let is_silent_too = |unit: &&mut Unit| {
                        unit.lenders.iter().all(|lender| {
                            !self.speaks(*lender) && self.group[*lender] == self.group[number]
                        }) && !unit.lenders.is_empty()
                    };
                    match units.iter_mut().find(is_silent_too) {
                        Some(unit) => unit.lenders.push(number),
                        None => units.push(Unit {
                            lenders: vec![number],
                            ..Unit::default()
                        }),
                    }
                }
                _ => {
                    let lenders = rivals
                        .iter()
                        .flat_map(|at| units[*at].lenders.clone())
                        .collect();
                    self.ambiguous.push((number, lenders));
                    units.push(Unit {
                        lenders: vec![number],
                        ..Unit::default()
                    });
                }
            }
        }
    }

    /// Whether its log is that of a member of the unit, under its ID there.
    fn is_known_in(&self, number: usize, unit: &Unit) -> bool {
        let own = self.claim(number);
        own.id.is_some()
            && unit.lenders.iter().any(|lender| {
                let lender = self.claim(*lender);
                lender.cluster == own.cluster
                    && lender.list.iter().any(|entry| Some(entry.id) == own.id)
            })
    }

    /// Whether members of `unit` say that they belong to those of `other`.
    fn claims_of(&self, unit: &Unit, other: &Unit) -> bool {
        unit.all()
            .any(|one| other.lenders.iter().any(|lender| self.says(one, *lender)))
    }

    /// Whether `one` says of itself that `other` is a member of its cluster, or that it is the same
    /// member.
    fn says(&self, one: usize, other: usize) -> bool {
        let (own, known) = (self.claim(one), self.claim(other));
        let is_twin = own.cluster.is_some() && (own.cluster, own.id) == (known.cluster, known.id);
        let listed = || {
            let is_other =
                |entry: &&Listed| known.id == Some(entry.id) || meet(&entry.urls, &known.urls);
            own.list
                .iter()
                .filter(|entry| !own.is_own(entry))
                .any(|entry| is_other(&entry))
        };
        // One that has lost everything says nothing but how it is started; with the keys of another
        // cluster it belongs to that.
        let started = || {
            !self.speaks(one)
                && own.proven.is_empty()
                && (meet(&own.initial_urls, &known.urls) || self.has_place_for(other, one))
        };
        is_twin || listed() || started()
    }

    fn left_out(&self, units: &[Unit]) -> Vec<LeftOut> {
        let mut left_out: Vec<LeftOut> = Vec::new();
        for (at, one) in units.iter().enumerate() {
            for other in &units[at + 1..] {
                left_out.extend(self.between(one, other));
            }
        }
        for (number, lenders) in &self.ambiguous {
            // The units say it of one another.
            left_out.retain(|left| left.doubted != [*number]);
            left_out.push(LeftOut {
                doubted: vec![*number],
                beside: lenders.clone(),
                why: Why::Ambiguous,
                matters: true,
            });
        }
        left_out
    }

    /// Who of two units is not believed by the other.
    fn between(&self, one: &Unit, other: &Unit) -> Option<LeftOut> {
        let (forth, back) = (self.claims_of(one, other), self.claims_of(other, one));
        if !forth && !back {
            return None;
        }
        let demotes = |voters: &Unit, newest: &Unit| {
            self.demoted.iter().any(|(voter, by)| {
                voters.lenders.contains(voter) && newest.all().any(|number| number == *by)
            })
        };
        let left = |doubted: &Unit, beside: &Unit, why: Why, matters: bool| {
            let (doubted, beside) = (doubted.all().collect(), beside.all().collect());
            Some(LeftOut {
                doubted,
                beside,
                why,
                matters,
            })
        };
        if demotes(one, other) {
            return left(other, one, Why::Demoted, true);
        }
        if demotes(other, one) {
            return left(one, other, Why::Demoted, true);
        }
        let group = |unit: &Unit| unit.lenders.first().map(|number| self.group[*number]);
        if group(one) == group(other) {
            return match (forth, back) {
                (true, false) => left(one, other, Why::NotListed, true),
                (false, true) => left(other, one, Why::NotListed, true),
                // The units come by their size.
                _ => left(other, one, Why::TwoHistories, true),
            };
        }
        let is_proven = |unit: &Unit| {
            unit.all()
                .any(|number| !self.claim(number).proven.is_empty())
        };
        let (doubted, beside) = match (is_proven(one), is_proven(other)) {
            (true, false) => (other, one),
            (false, true) => (one, other),
            _ if forth && !back => (one, other),
            _ => (other, one),
        };
        let is_whole = doubted
            .all()
            .chain(beside.all())
            .all(|number| self.claim(number).is_whole);
        left(doubted, beside, Why::NoKey, !(forth && back && is_whole))
    }
}

/// For each claim the number of its group: those that share a private key's CA, or that all use no
/// TLS. One that uses TLS and proves nothing is alone, unless the user vouches for it: then it is
/// with the only group that it says to belong to.
fn key_groups(claims: &[Claim]) -> Vec<usize> {
    let mut group: Vec<Option<usize>> = vec![None; claims.len()];
    let mut next = 0;
    let mut authorities: Vec<&Vec<u8>> = claims
        .iter()
        .flat_map(|claim| &claim.proven)
        .collect::<BTreeSet<_>>()
        .into_iter()
        .collect();
    let members = |authority: &Vec<u8>| {
        claims
            .iter()
            .filter(|claim| claim.proven.contains(authority))
            .count()
    };
    authorities.sort_by_key(|authority| std::cmp::Reverse(members(authority)));
    for authority in authorities {
        let there: Vec<usize> = (0..claims.len())
            .filter(|at| {
                group[*at].is_none()
                    && claims[*at].uses_tls
                    && claims[*at].proven.contains(authority)
            })
            .collect();
        if !there.is_empty() {
            there.into_iter().for_each(|at| group[at] = Some(next));
            next += 1;
        }
    }
    let plain: Vec<usize> = (0..claims.len())
        .filter(|at| !claims[*at].uses_tls)
        .collect();
    if !plain.is_empty() {
        plain.into_iter().for_each(|at| group[at] = Some(next));
        next += 1;
    }
    let mut group: Vec<usize> = group
        .into_iter()
        .map(|known| {
            known.unwrap_or_else(|| {
                next += 1;
                next - 1
            })
        })
        .collect();
    join_vouched(claims, &mut group);
    group
}

/// Puts each disk that the user vouches for into the only group that it says to belong to, or,
/// where it has lost its list, whose members have a place for it. The word for one disk is none for
/// those that claim to be its peers: a group that proves nothing, and is not vouched for itself, is
/// not joined; nor does a disk with keys of its own join one with other keys that names it as well.
fn join_vouched(claims: &[Claim], group: &mut [usize]) {
    let room = Room {
        claims,
        group: Vec::new(),
        demoted: Vec::new(),
        barred: Vec::new(),
        ambiguous: Vec::new(),
    };
    for number in (0..claims.len()).filter(|number| claims[*number].is_trusted) {
        let mut groups: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        group
            .iter()
            .enumerate()
            .for_each(|(member, of)| groups.entry(*of).or_default().push(member));
        let from = &groups[&group[number]];
        let is_vouched = |members: &[usize]| members.iter().all(|other| claims[*other].is_trusted);
        let is_said = |members: &[usize]| members.iter().any(|other| room.says(number, *other));
        let is_placed = |members: &[usize]| {
            !room.speaks(number)
                && members
                    .iter()
                    .any(|other| room.has_place_for(*other, number))
        };
        let is_joinable = |members: &[usize]| {
            let is_known = members
                .iter()
                .any(|other| !claims[*other].uses_tls || !claims[*other].proven.is_empty());
            let names_it = members.iter().any(|other| room.says(*other, number));
            is_vouched(members) || (is_known && (claims[number].proven.is_empty() || !names_it))
        };
        let others = || {
            groups
                .iter()
                .filter(|(of, members)| **of != group[number] && is_joinable(members))
        };
        let said: Vec<usize> = others()
            .filter(|(_, members)| is_said(members))
            .map(|(of, _)| *of)
            .collect();
        let placed: Vec<usize> = others()
            .filter(|(_, members)| is_placed(members))
            .map(|(of, _)| *of)
            .collect();
        let wanted = if said.is_empty() { placed } else { said };
        // Several are joined one after the other where the user vouches for all of them.
        let first = wanted.first().copied();
        let Some(to) =
            first.filter(|_| wanted.len() == 1 || wanted.iter().all(|of| is_vouched(&groups[of])))
        else {
            continue;
        };
        let moved = if is_vouched(from) {
            from.clone()
        } else {
            vec![number]
        };
        moved.into_iter().for_each(|member| group[member] = to);
    }
}

/// The first rule that `decided` breaks, for tests that make claims at random: written without a
/// look at how the decision is made.
pub fn broken_rule(claims: &[Claim], decided: &Units) -> Option<String> {
    let all: Vec<usize> = decided.units.iter().flat_map(Unit::all).collect();
    let each: BTreeSet<usize> = all.iter().copied().collect();
    if all.len() != claims.len() || each.len() != claims.len() {
        return Some(format!("{all:?} are not {} claims once each", claims.len()));
    }
    decided.units.iter().find_map(|unit| {
        unit.lenders.iter().find_map(|lender| {
            unit.all()
                .find_map(|other| broken_between(claims, unit, *lender, other))
        })
    })
}

fn broken_between(claims: &[Claim], unit: &Unit, lender: usize, other: usize) -> Option<String> {
    let (from, to) = (&claims[lender], &claims[other]);
    if lender == other || from.is_trusted || to.is_trusted {
        return None;
    }
    let shares =
        from.uses_tls == to.uses_tls && (!from.uses_tls || !from.proven.is_disjoint(&to.proven));
    if !shares {
        return Some(format!(
            "{lender} lends to {other}, which shares no key with it"
        ));
    }
    if to.list.is_empty() || !to.holds_writes {
        return None;
    }
    let others = || {
        unit.lenders
            .iter()
            .map(|number| &claims[*number])
            .filter(|claim| !std::ptr::eq(*claim, to))
    };
    let names = |claim: &Claim| {
        let is_claim =
            |entry: &Listed| claim.id == Some(entry.id) || meet(&entry.urls, &claim.urls);
        claim.is_trusted
            || to
                .list
                .iter()
                .filter(|entry| !to.is_own(entry))
                .any(is_claim)
    };
    if !others().any(names) {
        return Some(format!(
            "{other} gets the history of {lender}, and its list leads to none of its unit"
        ));
    }
    // One without a list only adds to what the others hold.
    let says = |number: &&usize| !claims[**number].list.is_empty();
    let is_word = unit
        .lenders
        .iter()
        .filter(says)
        .all(|number| claims[*number].is_trusted);
    if !is_word && from.cluster.is_some() && to.cluster.is_some() && from.cluster != to.cluster {
        return Some(format!("{lender} and {other} are of two clusters"));
    }
    let newest = unit
        .lenders
        .iter()
        .max_by_key(|number| (claims[**number].rank, std::cmp::Reverse(**number)));
    let votes = to.own().filter(|own| !own.is_learner).map(|own| own.id);
    let is_demoted = newest.is_some_and(|number| {
        let newest = &claims[*number];
        !newest.is_trusted
            && newest
                .list
                .iter()
                .any(|entry| Some(entry.id) == votes && entry.is_learner)
    });
    is_demoted.then(|| format!("{other} votes and becomes a learner"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Peer URL of a member.
    fn url(number: u64) -> String {
        format!("https://10.0.0.{number}:2380")
    }

    /// Member `id` of cluster 9 with the voters `list`, which proves to be of the etcd CA.
    fn member(id: u64, list: &[u64]) -> Claim {
        let listed = |id: &u64| Listed {
            id: *id,
            urls: vec![url(*id)],
            is_learner: false,
        };
        Claim {
            shown: format!("m{id}"),
            trust_flag: format!("--trust m{id}"),
            uses_tls: true,
            proven: BTreeSet::from([b"etcd CA".to_vec()]),
            cluster: Some(9),
            id: Some(id),
            list: list.iter().map(listed).collect(),
            urls: vec![url(id)],
            holds_writes: true,
            is_whole: true,
            rank: (2, 100),
            ..Claim::default()
        }
    }

    /// A disk that lists itself as the only voter and member 1, by its URL, as a learner, with the
    /// newest log.
    fn forged(id: u64) -> Claim {
        let mut claim = member(id, &[id, 1]);
        claim.list[1] = Listed {
            id: 77,
            urls: vec![url(1)],
            is_learner: true,
        };
        Claim {
            proven: BTreeSet::new(),
            rank: (2, 1000),
            ..claim
        }
    }

    fn lost(id: u64) -> Claim {
        let claim = member(id, &[]);
        Claim {
            cluster: None,
            id: None,
            holds_writes: false,
            is_whole: false,
            rank: (0, 0),
            ..claim
        }
    }

    /// Members of each unit, those that only receive as negative numbers less one.
    fn planned(claims: &[Claim]) -> Vec<Vec<i64>> {
        let decided = units(claims);
        assert_eq!(broken_rule(claims, &decided), None);
        let numbers = |unit: &Unit| {
            let lenders = unit.lenders.iter().map(|number| *number as i64);
            let mut all: Vec<i64> = lenders
                .chain(unit.receivers.iter().map(|number| -1 - *number as i64))
                .collect();
            all.sort_unstable();
            all
        };
        let mut all: Vec<Vec<i64>> = decided.units.iter().map(numbers).collect();
        all.sort();
        all
    }

    fn left_out(claims: &[Claim]) -> Vec<(Vec<usize>, Why, bool)> {
        units(claims)
            .left_out
            .into_iter()
            .map(|left| (left.doubted, left.why, left.matters))
            .collect()
    }

    #[test]
    fn members_that_list_one_another_are_planned_together() {
        let three = [
            member(1, &[1, 2, 3]),
            member(2, &[1, 2, 3]),
            member(3, &[1, 2, 3]),
        ];
        assert_eq!(planned(&three), [[0, 1, 2]]);
        assert!(left_out(&three).is_empty());
        // One that has lost everything but its keys gets the others' history.
        let wiped = [lost(1), member(2, &[1, 2, 3]), member(3, &[1, 2, 3])];
        assert_eq!(planned(&wiped), [vec![-1, 1, 2]]);
        // Only databases are left, which do not say whose they are.
        let databases: Vec<Claim> = three
            .iter()
            .map(|claim| Claim {
                cluster: None,
                id: None,
                ..claim.clone()
            })
            .collect();
        assert_eq!(planned(&databases), [[0, 1, 2]]);
    }

    #[test]
    fn who_holds_no_key_is_left_out_whatever_it_says() {
        for first in [
            member(1, &[1]),
            lost(1),
            Claim {
                is_whole: false,
                ..member(1, &[1])
            },
        ] {
            for claims in [[first.clone(), forged(6)], [forged(6), first.clone()]] {
                assert_eq!(planned(&claims), [[0], [1]]);
                let at = claims
                    .iter()
                    .position(|claim| claim.urls == [url(6)])
                    .unwrap();
                assert_eq!(left_out(&claims), [(vec![at], Why::NoKey, true)]);
            }
        }
        // Its own CA proves nothing to anybody else.
        let own = Claim {
            proven: BTreeSet::from([b"own CA".to_vec()]),
            ..forged(6)
        };
        assert_eq!(planned(&[member(1, &[1]), own.clone()]), [[0], [1]]);
        assert_eq!(
            left_out(&[member(1, &[1]), own]),
            [(vec![1], Why::NoKey, true)]
        );
        // Nor does it help to use no TLS.
        assert_eq!(
            planned(&[
                member(1, &[1]),
                Claim {
                    uses_tls: false,
                    ..forged(6)
                }
            ]),
            [[0], [1]]
        );
    }

    #[test]
    fn a_shared_key_is_not_enough_where_the_list_leads_elsewhere() {
        let shared = |claim: Claim| Claim {
            proven: BTreeSet::from([b"etcd CA".to_vec()]),
            ..claim
        };
        let plain = |claim: Claim| Claim {
            uses_tls: false,
            ..claim
        };
        let hostile = [forged(6), forged(7)].map(|mut claim| {
            claim.list = [6, 7]
                .map(|id| Listed {
                    id,
                    urls: vec![url(id)],
                    is_learner: false,
                })
                .to_vec();
            claim.list.push(Listed {
                id: 1,
                urls: vec![url(1)],
                is_learner: false,
            });
            claim
        });
        for with in [&shared as &dyn Fn(Claim) -> Claim, &plain] {
            let mut claims = vec![with(member(1, &[1])), with(forged(6))];
            assert_eq!(planned(&claims), [[0], [1]]);
            assert_eq!(left_out(&claims), [(vec![1], Why::NotListed, true)]);
            // Two that outnumber it, of its cluster's ID and of another.
            for cluster in [9, 8] {
                claims = hostile
                    .iter()
                    .map(|claim| {
                        with(Claim {
                            cluster: Some(cluster),
                            ..claim.clone()
                        })
                    })
                    .collect();
                claims.push(with(member(1, &[1])));
                assert_eq!(planned(&claims), [vec![0, 1], vec![2]], "{cluster}");
                assert_eq!(left_out(&claims), [(vec![0, 1], Why::NotListed, true)]);
            }
        }
    }

    #[test]
    fn a_voter_is_not_made_a_learner_by_another_s_list() {
        let mut newer = member(2, &[1, 2]);
        newer.list[0].is_learner = true;
        newer.rank = (3, 200);
        let claims = [member(1, &[1, 2]), newer.clone()];
        assert_eq!(planned(&claims), [[0], [1]]);
        assert_eq!(left_out(&claims), [(vec![1], Why::Demoted, true)]);
        // An older list may not know of a promotion.
        newer.rank = (2, 50);
        assert_eq!(planned(&[member(1, &[1, 2]), newer]), [[0, 1]]);
    }

    #[test]
    fn two_that_agree_are_not_replaced_by_a_newer_list_that_leaves_them_out() {
        let mut newest = member(1, &[1]);
        newest.list.extend([21, 31].map(|id| Listed {
            id,
            urls: vec![url(id / 10)],
            is_learner: false,
        }));
        newest.rank = (9, 900);
        let claims = [newest, member(2, &[1, 2, 3]), member(3, &[1, 2, 3])];
        assert_eq!(planned(&claims), [vec![0], vec![1, 2]]);
    }

    #[test]
    fn a_disk_from_before_a_change_gets_the_newest_history() {
        // Member 3 was taken in anew as 31; this disk still has the old ID.
        let newer = [1, 2].map(|id| {
            let mut claim = member(id, &[1, 2]);
            claim.list.push(Listed {
                id: 31,
                urls: vec![url(3)],
                is_learner: false,
            });
            Claim {
                rank: (3, 200),
                ..claim
            }
        });
        let claims = [newer[0].clone(), newer[1].clone(), member(3, &[1, 2, 3])];
        assert_eq!(planned(&claims), [vec![-3, 0, 1]]);
        // It is as old, and member 2 was taken in anew.
        let renewed = |id: u64| {
            let mut claim = member(id, &[1, 3]);
            claim.list.push(Listed {
                id: 21,
                urls: vec![url(2)],
                is_learner: false,
            });
            Claim {
                rank: (3, 200),
                ..claim
            }
        };
        let second = Claim {
            id: Some(21),
            urls: vec![url(2)],
            ..renewed(2)
        };
        assert_eq!(
            planned(&[renewed(1), second, member(3, &[1, 2, 3])]),
            [[0, 1, 2]]
        );
    }

    #[test]
    fn one_that_came_up_empty_is_taken_in_and_one_with_writes_is_not() {
        let two = [member(1, &[1, 2, 3]), member(2, &[1, 2, 3])];
        let fresh = Claim {
            cluster: Some(5),
            holds_writes: false,
            rank: (2, 5),
            ..member(3, &[3])
        };
        let claims = [two[0].clone(), two[1].clone(), fresh.clone()];
        assert_eq!(planned(&claims), [vec![-3, 0, 1]]);
        let used = Claim {
            holds_writes: true,
            ..fresh
        };
        let claims = [two[0].clone(), two[1].clone(), used.clone()];
        assert_eq!(planned(&claims), [vec![0, 1], vec![2]]);
        assert_eq!(left_out(&claims), [(vec![0, 1], Why::NotListed, true)]);
        let word = two.map(|claim| Claim {
            is_trusted: true,
            ..claim
        });
        assert_eq!(
            planned(&[word[0].clone(), word[1].clone(), used]),
            [vec![-3, 0, 1]]
        );
    }

    #[test]
    fn the_user_s_word_counts_and_is_told() {
        let claims = [
            member(1, &[1]),
            Claim {
                is_trusted: true,
                ..forged(6)
            },
        ];
        assert_eq!(planned(&claims), [[0, 1]]);
        assert_eq!(units(&claims).units[0].on_word, [1]);
        let without_keys = Claim {
            proven: BTreeSet::new(),
            ..lost(1)
        };
        let two = [member(2, &[1, 2, 3]), member(3, &[1, 2, 3])];
        let claims = |is_trusted| {
            [
                Claim {
                    is_trusted,
                    ..without_keys.clone()
                },
                two[0].clone(),
                two[1].clone(),
            ]
        };
        assert_eq!(planned(&claims(false)), [vec![0], vec![1, 2]]);
        assert_eq!(left_out(&claims(false)), [(vec![0], Why::NoKey, true)]);
        assert_eq!(planned(&claims(true)), [vec![-1, 1, 2]]);
        assert_eq!(units(&claims(true)).units[0].on_word, [0]);
        // Where proof is there nothing is taken on anybody's word.
        let proven = [
            Claim {
                is_trusted: true,
                ..lost(1)
            },
            two[0].clone(),
            two[1].clone(),
        ];
        assert!(units(&proven).units[0].on_word.is_empty());
    }

    #[test]
    fn the_word_for_one_disk_is_none_for_those_that_claim_to_be_its_peers() {
        // Member 2's disk is not given; another claims its URL and ID, without a key or with a CA
        // of its own.
        let mut claimed = Claim {
            rank: (9, 900),
            ..member(2, &[1, 2, 3])
        };
        for proven in [BTreeSet::new(), BTreeSet::from([b"own CA".to_vec()])] {
            claimed.proven = proven;
            let own = Claim {
                is_trusted: true,
                ..member(1, &[1, 2, 3])
            };
            assert_eq!(planned(&[own.clone(), claimed.clone()]), [[0], [1]]);
            let both = [
                own,
                Claim {
                    is_trusted: true,
                    ..claimed.clone()
                },
            ];
            assert_eq!(planned(&both), [[0, 1]]);
        }
        // A whole cluster that has lost its keys, on the user's word for each.
        let mut three = [
            member(1, &[1, 2, 3]),
            member(2, &[1, 2, 3]),
            member(3, &[1, 2, 3]),
        ];
        three.iter_mut().for_each(|claim| claim.proven.clear());
        assert_eq!(planned(&three), [[0], [1], [2]]);
        three.iter_mut().for_each(|claim| claim.is_trusted = true);
        assert_eq!(planned(&three), [[0, 1, 2]]);
    }

    #[test]
    fn one_that_is_vouched_for_may_hold_an_older_history() {
        let older = Claim {
            is_trusted: true,
            rank: (1, 5),
            ..forged(6)
        };
        assert_eq!(planned(&[member(1, &[1]), older.clone()]), [[-2, 0]]);
        assert!(left_out(&[member(1, &[1]), older]).is_empty());
    }

    #[test]
    fn healthy_members_without_keys_are_no_trouble() {
        let mut three = [
            member(1, &[1, 2, 3]),
            member(2, &[1, 2, 3]),
            member(3, &[1, 2, 3]),
        ];
        three[2].proven.clear();
        assert_eq!(planned(&three), [vec![0, 1], vec![2]]);
        assert_eq!(left_out(&three), [(vec![2], Why::NoKey, false)]);
    }

    #[test]
    fn what_is_lost_goes_to_nobody_by_guess() {
        let mut rivals = [member(1, &[1, 3]), member(2, &[2, 3])];
        rivals[1].cluster = Some(8);
        let claims = [rivals[0].clone(), rivals[1].clone(), lost(3)];
        assert_eq!(planned(&claims), [[0], [1], [2]]);
        assert!(left_out(&claims).contains(&(vec![2], Why::Ambiguous, true)));
        // What it is started with tells.
        let started = Claim {
            initial_urls: vec![url(1), url(3)],
            ..lost(3)
        };
        assert_eq!(
            planned(&[rivals[0].clone(), rivals[1].clone(), started]),
            [vec![-3, 0], vec![1]]
        );
    }

    #[test]
    fn no_mixture_of_true_and_forged_claims_breaks_a_rule() {
        let mut state = 1u64;
        let mut below = move |bound: u64| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % bound
        };
        for round in 0..50_000 {
            let count = 1 + below(6);
            let claims: Vec<Claim> = (0..count)
                .map(|_| {
                    let id = 1 + below(5);
                    let list: Vec<u64> = (1..6).filter(|_| below(2) == 0).collect();
                    let mut claim = member(id, &list);
                    claim.uses_tls = below(4) > 0;
                    claim.proven = (0..below(3)).map(|_| vec![below(3) as u8]).collect();
                    claim.cluster = [None, Some(8), Some(9), Some(9)][below(4) as usize];
                    claim.id = claim.cluster.is_some().then_some(id);
                    claim.holds_writes = below(4) > 0;
                    claim.is_trusted = below(8) == 0;
                    claim.rank = (below(3), below(5));
                    for entry in &mut claim.list {
                        entry.is_learner = below(4) == 0;
                        if below(4) == 0 {
                            entry.urls = vec![url(1 + below(5))];
                        }
                    }
                    claim
                })
                .collect();
            let decided = units(&claims);
            assert_eq!(
                broken_rule(&claims, &decided),
                None,
                "round {round}: {claims:#?}\n{decided:#?}"
            );
        }
    }
}
