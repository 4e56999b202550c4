//! A database that bbolt finds sound and that holds something else than the others'. bbolt has no checksums: a page of zeros within a value, a
//! database of another history, or an entry that etcd 3.5.0 to 3.5.2 lost (etcd#13766) show only beside the other members'. They are compared as
//! etcd's own corruption check does it, by `hashkv` at one revision. Where a majority of the voters agrees, the odd one is taken for damaged,
//! whatever its log is like. A compaction that a kill cut off can make a hash differ although the keys are the same (before 3.4.26 and 3.5.9); then
//! the member gets an equal database, which is no loss.

use std::collections::BTreeMap;

use super::seen::{CHECKED_WHOLE, Seen};
use crate::etcd::boot::Problem;
use crate::etcd::member::Stored;
use crate::etcd::survey::survey;
use crate::ui::{Silent, Ui as _};

/// Marks those of `seen` whose database is the odd one out of their cluster. What remains open, one sentence each.
pub fn mark(seen: &mut [Seen<'_>]) -> Vec<String> {
    let mut doubts = Vec::new();
    let mut clusters: Vec<Option<u64>> = super::plan::clusters(seen).into_iter().map(Some).collect();
    if clusters.is_empty() {
        clusters.push(None);
    }
    for cluster in clusters {
        let voters = voters(seen, cluster);
        let mut alike: BTreeMap<i64, Vec<usize>> = BTreeMap::new();
        for (number, one) in seen.iter().enumerate() {
            // A disk without a log does not say whose it is; its database may well be a witness.
            let belongs = one.cluster().is_none() || one.cluster() == cluster;
            if let Some(facts) = one.data.facts().filter(|_| belongs && !one.is_odd) {
                alike.entry(facts.compacted).or_default().push(number);
            }
        }
        for numbers in alike.into_values() {
            doubts.extend(compare(seen, &numbers, voters));
        }
    }
    doubts
}

/// How many voters there are: a majority of these must agree.
fn voters(seen: &[Seen<'_>], cluster: Option<u64>) -> usize {
    let own: Vec<&Seen<'_>> = seen.iter().filter(|seen| seen.cluster() == cluster).collect();
    super::plan::newest_members(&own).map_or(seen.len(), |members| members.voters().count())
}

/// `numbers`: databases that are compacted at the same revision.
fn compare(seen: &mut [Seen<'_>], numbers: &[usize], voters: usize) -> Option<String> {
    let majority = voters / 2 + 1;
    let is_large =
        |number: &usize| matches!(&seen[*number].data.stored, Stored::Open(open) if open.0.db.size() > CHECKED_WHOLE);
    let is_quiet = seen.iter().all(Seen::is_mended_in_place);
    if numbers.len() < 2 || (is_quiet && numbers.iter().any(is_large)) {
        return None;
    }
    let revisions = numbers.iter().filter_map(|number| seen[*number].data.facts()).map(|facts| facts.revision);
    let revision = revisions.min()?;
    let mut hashes: BTreeMap<u32, Vec<usize>> = BTreeMap::new();
    for number in numbers {
        if let Some(hash) = hash(&seen[*number], revision) {
            hashes.entry(hash).or_default().push(*number);
        }
    }
    if hashes.len() < 2 {
        return None;
    }
    let names =
        |numbers: &[usize]| numbers.iter().map(|number| seen[*number].name.as_str()).collect::<Vec<_>>().join(", ");
    let Some(agreed) = hashes.values().find(|numbers| numbers.len() >= majority).cloned() else {
        let all: Vec<usize> = hashes.into_values().flatten().collect();
        return Some(format!(
            "The databases of {} differ at revision {revision}, and no majority says which one is right: what real etcd holds afterwards should \
             be compared with what is expected.",
            names(&all)
        ));
    };
    let saw = format!("at revision {revision} the database holds something else than that of {}", names(&agreed));
    for number in hashes.into_values().flatten().filter(|number| !agreed.contains(number)) {
        let one = &mut seen[number];
        one.is_odd = true;
        one.problems.push(Problem::differs(&one.place.db(), saw.clone()));
    }
    None
}

/// `None` where it is not sound, or has no hash there.
fn hash(seen: &Seen<'_>, revision: i64) -> Option<u32> {
    let Stored::Open(open) = &seen.data.stored else { return None };
    let (backend, facts) = open.as_ref();
    let progress = Silent.begin("comparing databases", None);
    survey(backend, facts, revision, &*progress).ok()?.hash.map(|hash| hash.hash)
}
