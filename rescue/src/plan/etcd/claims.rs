//! What the disks say and prove about their etcd members, for the room that decides which of them
//! may be planned together ([`crate::pki::trust::etcd`]), and what it decided in words.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use crate::base::refusal::Refusal;
use crate::etcd::format::members::{Member, Members};
use crate::etcd::format::raft::{ConfChangeKind, EntryKind};
use crate::etcd::format::request::Request;
use crate::etcd::read::boot::{self, Effect};
use crate::etcd::read::launch::Launch;
use crate::etcd::read::member::{MemberData, Stored};
use crate::etcd::read::status::Found;
use crate::guest::Guest;
use crate::pki::trust::Party;
use crate::pki::trust::etcd::{Claim, LeftOut, Listed, Unit, Units, Why};
use crate::pki::trust::etcd_keys::{EtcdKeys, proven};
use crate::pki::trust::party::refuse_unclear;
use crate::settings::Settings;

/// One member at hand.
#[derive(Debug, Clone, Copy)]
pub struct AtHand<'a> {
    /// The system that holds it.
    pub guest: &'a Guest,
    /// How its etcd is started; `None` for a copy of a data folder, which can hold no key.
    pub launch: Option<&'a Launch>,
    /// What is there.
    pub data: &'a MemberData,
    /// What its disk proves.
    pub party: &'a Party,
    /// Whether its log is whole and it starts.
    pub is_whole: bool,
}

/// What each of them says and proves.
pub fn claims(all: &[AtHand<'_>]) -> Vec<Claim> {
    let keys: Vec<EtcdKeys> = all.iter().map(keys).collect();
    let proven = proven(&keys);
    all.iter()
        .zip(keys)
        .zip(proven)
        .map(|((one, keys), proven)| Claim {
            uses_tls: keys.uses_tls,
            proven,
            ..claim(one)
        })
        .collect()
}

/// The same of members that a command of `rescue etcd` has found.
pub fn claims_of<'a>(
    found: &[Found],
    data: impl IntoIterator<Item = &'a MemberData>,
    settings: &Settings,
) -> Result<Vec<Claim>, Refusal> {
    let parties: Vec<Party> = found
        .iter()
        .map(|found| Party::of(&found.guest, settings))
        .collect();
    refuse_unclear(&parties.iter().collect::<Vec<_>>(), &settings.trust)?;
    let at_hand = found
        .iter()
        .zip(data)
        .zip(&parties)
        .map(|((found, data), party)| AtHand {
            guest: &found.guest,
            launch: found.launch.as_ref(),
            data,
            party,
            is_whole: boot::problems(data)
                .iter()
                .all(|problem| problem.effect == Effect::Harmless || problem.is_alarm()),
        });
    Ok(claims(&at_hand.collect::<Vec<_>>()))
}

fn keys(one: &AtHand<'_>) -> EtcdKeys {
    let Some(launch) = one.launch else {
        return EtcdKeys::default();
    };
    let own = list(one.data)
        .into_iter()
        .filter(|entry| Some(entry.id) == id(one.data))
        .flat_map(|entry| entry.urls);
    let urls: Vec<String> = launch.peer_urls().into_iter().chain(own).collect();
    EtcdKeys::read(one.guest, launch, one.party, &urls)
}

fn id(data: &MemberData) -> Option<u64> {
    data.log.identity.map(|identity| identity.member)
}

fn claim(one: &AtHand<'_>) -> Claim {
    let (data, party) = (one.data, one.party);
    let list = list(data);
    let mut urls = one.launch.map(Launch::peer_urls).unwrap_or_default();
    urls.extend(
        list.iter()
            .filter(|entry| Some(entry.id) == id(data))
            .flat_map(|entry| entry.urls.clone()),
    );
    let initial = one
        .launch
        .and_then(|launch| launch.option("--initial-cluster"))
        .unwrap_or_default();
    let initial = initial
        .split(',')
        .filter_map(|member| Some(member.split_once('=')?.1.trim().to_owned()));
    Claim {
        shown: party.shown(),
        trust_flag: party.trust_flag(),
        is_trusted: party.is_trusted,
        uses_tls: false,
        proven: Default::default(),
        cluster: data.log.identity.map(|identity| identity.cluster),
        id: id(data),
        list,
        urls,
        initial_urls: initial.collect(),
        holds_writes: holds_writes(one.guest, data),
        is_whole: one.is_whole,
        rank: (data.log.last_term(), data.log.last),
    }
}

/// Its own list: with members that its log adds and that it does not know to be agreed on, so that
/// a list that ends early is not taken for one that knows nobody.
fn list(data: &MemberData) -> Vec<Listed> {
    let (members, _) = data.membership();
    let mut known: BTreeMap<u64, Member> = members.list;
    let added = [ConfChangeKind::AddNode, ConfChangeKind::AddLearner];
    for (_, change) in data
        .log
        .changes
        .iter()
        .filter(|(_, change)| added.contains(&change.kind))
    {
        let mut alone = Members::default();
        alone.apply(change);
        for (id, member) in alone
            .list
            .into_iter()
            .filter(|(id, _)| !members.removed.contains(id))
        {
            known.entry(id).or_insert(member);
        }
    }
    if let (true, Some(facts)) = (known.is_empty(), data.facts()) {
        let stored = facts.members.list.clone().into_iter();
        known.extend(stored.filter(|(id, _)| !facts.members.removed.contains(id)));
    }
    let listed = |member: Member| Listed {
        id: member.id,
        urls: member.peer_urls,
        is_learner: member.is_learner,
    };
    known.into_values().map(listed).collect()
}

/// Whether there is more than what a new member writes by itself. A member that came up with an
/// empty folder holds no more, and loses nothing with it; where it cannot be told it counts as
/// more.
pub(super) fn holds_writes(guest: &Guest, data: &MemberData) -> bool {
    let from = match &data.stored {
        // The first write of a cluster is its revision 2 (server/mvcc/kvstore.go).
        Stored::Open(open) if open.1.revision > 1 => return true,
        Stored::Open(open) => open.1.consistent_index.saturating_add(1),
        Stored::Damaged(_) if data.log.is_empty() => return true,
        Stored::Missing if data.log.is_empty() => return false,
        Stored::Damaged(_) | Stored::Missing if data.log.first > 1 => return true,
        Stored::Damaged(_) | Stored::Missing => 1,
    };
    let mut is_written = false;
    let visited = data.log.visit(guest, from, u64::MAX, &mut |entry| {
        let request = Request::parse(entry.data);
        is_written |= entry.kind == EntryKind::Normal
            && matches!(
                request,
                Ok(Request::Put(_)
                    | Request::Delete(_)
                    | Request::Txn(_)
                    | Request::Compact(_)
                    | Request::LeaseGrant(_))
            );
        if is_written {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    });
    is_written || visited.is_err()
}

/// Names of some of them, for people.
fn names(claims: &[Claim], numbers: &[usize]) -> String {
    numbers
        .iter()
        .map(|number| claims[*number].shown.as_str())
        .collect::<Vec<_>>()
        .join(" and ")
}

fn flags(claims: &[Claim], numbers: &[usize]) -> String {
    let doubted = numbers.iter().filter(|number| !claims[**number].is_trusted);
    doubted
        .map(|number| claims[*number].trust_flag.as_str())
        .collect::<Vec<_>>()
        .join(" ")
}

/// Why some are left out: what was seen, what it means, and what to type, each without its full
/// stop.
pub fn words(left: &LeftOut, claims: &[Claim]) -> [String; 3] {
    let LeftOut {
        doubted, beside, ..
    } = left;
    let (who, others) = (names(claims, doubted), names(claims, beside));
    let is_one = doubted.len() == 1;
    let (says, holds) = if is_one {
        ("says that it is a member", "holds")
    } else {
        ("say that they are members", "hold")
    };
    // Where the word for one side is there already, that for the other is what is missing.
    let trust = Some(flags(claims, doubted)).filter(|flags| !flags.is_empty());
    let trust = trust.unwrap_or_else(|| flags(claims, beside));
    let known = format!(
        "if you know for certain that {}: {trust}",
        if is_one { "it is" } else { "they are" }
    );
    let left_out = String::from(if is_one {
        "left out: nothing is taken from it for the others, and it gets nothing of theirs"
    } else {
        "left out: nothing is taken from them for the others, and they get nothing of theirs"
    });
    match left.why {
        Why::NoKey => [
            format!("{who} {says} of the etcd of {others}, but {holds} no private key of its CA"),
            left_out,
            known,
        ],
        Why::NotListed => {
            let does = if beside.len() == 1 { "does" } else { "do" };
            let it = if is_one { "it" } else { "them" };
            [
                format!(
                    "{who} {says} of the etcd of {others}, which {does} not list {it} as a member"
                ),
                left_out,
                known,
            ]
        }
        Why::Demoted => [
            format!(
                "the list of members of {who} makes a learner of a voter among {others}, which \
                 etcd never does"
            ),
            left_out,
            known,
        ],
        Why::TwoHistories => {
            two_histories(&who, &others, beside.len() == 1, &flags(claims, beside))
        }
        Why::Ambiguous => [
            format!(
                "{who} has no list of members left, and several that know nothing of one another \
                 list it: {others}"
            ),
            "which of them it belongs to cannot be told, so it gets nothing of theirs".to_owned(),
            "give only the disks that belong together, or name those that you know with --trust"
                .to_owned(),
        ],
    }
}

fn two_histories(who: &str, others: &str, is_one_other: bool, trust: &str) -> [String; 3] {
    [
        format!(
            "{who} and {others} list one another, but hold two histories with writes that the \
             other one lacks"
        ),
        "neither is laid over the other".to_owned(),
        format!(
            "give only the disks that count; or, if what {who} wrote may be lost for what \
             {others} hold{}: {trust}",
            if is_one_other { "s" } else { "" },
        ),
    ]
}

/// The same as one sentence for a plan.
pub fn note(left: &LeftOut, claims: &[Claim]) -> String {
    let [saw, means, next] = words(left, claims);
    format!("{}: {means}; {next}", capitalised(&saw))
}

/// The same as a refusal.
pub fn refusal(left: &LeftOut, claims: &[Claim]) -> Refusal {
    let [saw, means, next] = words(left, claims);
    Refusal::new(saw, means, next)
}

/// Notes for the plan of one unit: who belongs to it on the user's word, and who is left out of it.
pub fn notes(unit: &Unit, units: &Units, claims: &[Claim]) -> Vec<String> {
    let on_word = unit.on_word.iter().map(|number| {
        format!(
            "On your word alone, without any proof, {} counts as a member of this etcd (--trust).",
            claims[*number].shown
        )
    });
    let is_here = |number: &usize| unit.all().any(|own| own == *number);
    let left = units
        .left_out
        .iter()
        .filter(|left| left.beside.iter().chain(&left.doubted).any(is_here));
    on_word.chain(left.map(|left| note(left, claims))).collect()
}

fn capitalised(text: &str) -> String {
    let mut letters = text.chars();
    // A node's name stays as it is.
    match text.starts_with("the ") {
        true => letters
            .next()
            .map(|first| first.to_uppercase().collect::<String>() + letters.as_str())
            .unwrap_or_default(),
        false => text.to_owned(),
    }
}
