//! One round: load, kill, damage, repair, start, compare.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use fastrand::Rng;
use serde_json::Value;
use tests::etcd::{self, Cluster, Version, guest};
use tests::{Cmd, Ran, rescue_binary};

use crate::damage::{self, Damage, Disk};
use crate::load::{self, Book, Client, Held, Load};
use crate::peers;
use crate::record::Line;
use crate::witness::Witness;

/// How a round ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Every acknowledged write is there.
    Whole,
    /// Some are not, as the plan had said.
    LostAsAnnounced,
    /// Some are not, although none was to be lost, because disks had dropped synchronised bytes
    /// without a trace: no log held them any more.
    Silent,
    /// Nothing was repaired.
    Refused,
    /// The members hold different things, and so they do when they are started as they were killed,
    /// without damage and repair: etcd 3.5.0 to 3.5.2 can lose an entry of one member by itself
    /// (etcd#13766). Where the undamaged ones agree, it is a fault of ours.
    Diverged,
    /// Some are not, and that is a fault of ours.
    LostMore,
}

/// A cluster on three disks, between rounds.
pub struct State {
    version: Version,
    cluster: Cluster,
    roots: Vec<PathBuf>,
    book: Book,
    /// Whether it has ever been compacted.
    compacted: bool,
}

/// A new cluster that has been written to and stopped once, so that every disk has an earlier
/// state.
pub fn start(version: &Version, seed: u64) -> Result<State> {
    // Short snapshots' distances: the log's beginning is given up soon, as on a cluster of some
    // age.
    let mut cluster = Cluster::prepare(version, 3, 150, guest::place)?;
    let all: Vec<String> = cluster
        .members
        .iter()
        .map(|member| format!("{}={}", member.name, member.peer_url()))
        .collect();
    let roots = guest::make_all(&cluster, &[format!("--initial-cluster={}", all.join(","))])?;
    cluster.run()?;
    let mut state = State {
        version: version.clone(),
        cluster,
        roots,
        book: Book::default(),
        compacted: false,
    };
    let mut random = Rng::with_seed(seed);
    load_and_kill(&mut state, "start/", &mut random)?;
    for number in 0..3 {
        keep(
            &state.cluster.members[number].data_dir,
            &earlier(&state, number),
        )?;
    }
    state.cluster.run()?;
    Ok(state)
}

fn earlier(state: &State, number: usize) -> PathBuf {
    state.cluster.folder().join(format!("earlier-{number}"))
}

fn keep(from: &Path, to: &Path) -> Result<()> {
    if to.exists() {
        fs::remove_dir_all(to)?;
    }
    etcd::copy(from, to)
}

/// Writes for a moment, then ends all members, sometimes one of them a moment before.
fn load_and_kill(state: &mut State, prefix: &str, random: &mut Rng) -> Result<()> {
    let urls: Vec<String> = state
        .cluster
        .members
        .iter()
        .map(etcd::Member::client_url)
        .collect();
    let large = if random.u32(0..8) == 0 { 900_000 } else { 3000 };
    let load = Load {
        prefix: prefix.to_owned(),
        large,
        seed: random.u64(..),
    };
    let (first, second) = (random.u64(200..1500), random.u64(0..400));
    let straggler = (random.u32(0..3) == 0).then(|| random.usize(0..3));
    let at_least = random.usize(20..300);
    let compaction = (random.u32(0..4) == 0).then(|| Client::new(&urls[0]));
    state.compacted |= compaction.is_some();
    let cluster = &mut state.cluster;
    let book = load::run(&urls, &load, |count| {
        std::thread::sleep(Duration::from_millis(first));
        let mut patience = 200;
        while count.load(Ordering::SeqCst) < at_least && patience > 0 {
            std::thread::sleep(Duration::from_millis(50));
            patience -= 1;
        }
        if let Some(client) = compaction {
            let (_, revision) = client.all()?;
            client.compact(revision - 20)?;
        }
        if let Some(number) = straggler {
            cluster.members[number].kill()?;
            std::thread::sleep(Duration::from_millis(second));
        }
        cluster.kill()
    })?;
    state.book.add(book);
    Ok(())
}

/// What is done to which disk.
fn choose(random: &mut Rng) -> Vec<Vec<&'static Damage>> {
    let mut disks: Vec<Vec<&'static Damage>> = vec![Vec::new(); 3];
    let how_many = [1, 1, 1, 1, 1, 2, 2, 2, 3, 3][random.usize(0..10)];
    let mut order = [0, 1, 2];
    random.shuffle(&mut order);
    for number in &order[..how_many] {
        disks[*number].push(&damage::ALL[random.usize(0..damage::ALL.len())]);
    }
    disks
}

/// Makes one round; afterwards the cluster runs again, unless nothing was repaired.
pub fn run(state: &mut State, number: u64, compare: bool) -> Result<Line> {
    let mut random = Rng::with_seed(number);
    load_and_kill(state, &format!("r{number:04}/"), &mut random)?;
    let chosen = choose(&mut random);
    let whole: Vec<PathBuf> = (0..3)
        .map(|disk| state.cluster.folder().join(format!("whole-{disk}")))
        .collect();
    for (disk, whole) in whole.iter().enumerate() {
        keep(&state.cluster.members[disk].data_dir, whole)?;
    }
    for (disk, damages) in chosen.iter().enumerate() {
        let on = Disk {
            data_dir: &state.cluster.members[disk].data_dir,
            earlier: &earlier(state, disk),
            other: &whole[(disk + 1) % 3],
        };
        for damage in damages {
            (damage.make)(&on, &mut random)
                .with_context(|| format!("{} on disk {disk}", damage.name))?;
        }
    }
    for (disk, whole) in whole.iter().enumerate() {
        keep(whole, &earlier(state, disk))?;
    }
    let peers = if compare {
        Some(compared(state)?)
    } else {
        None
    };
    let names = |(disk, damages): (usize, &Vec<&Damage>)| {
        let names: Vec<&str> = damages.iter().map(|damage| damage.name).collect();
        format!(
            "m{}: {}",
            disk + 1,
            if names.is_empty() {
                "whole".to_owned()
            } else {
                names.join(", ")
            }
        )
    };
    let mut line = Line {
        round: number,
        version: state.version.number.clone(),
        damages: chosen.iter().enumerate().map(names).collect(),
        acknowledged: state.book.acknowledged.len(),
        outcome: Outcome::Refused,
        guarantee: String::new(),
        lost: 0,
        words: String::new(),
        peers,
    };
    let mut witness = Witness::default();
    for member in &state.cluster.members {
        witness
            .hear(&member.data_dir)
            .with_context(|| format!("reading what {} holds", member.name))?;
    }
    // The newest writes are in the log of a disk that nothing was done to; a witness that hears
    // none of them is deaf.
    let is_whole = chosen.iter().any(Vec::is_empty);
    let of_round = |(key, _): &(&String, &Held)| key.starts_with(&format!("r{number:04}/"));
    let mut written = state.book.acknowledged.iter().filter(of_round);
    let heard = written.any(|(key, held)| witness.has(key, held.value.as_deref()));
    ensure!(
        heard || !is_whole,
        "{}: no log holds any of the writes",
        line.sentence()
    );
    let repair = repair(state)?;
    if repair.code != 0 {
        ensure!(
            repair.code == 1 || repair.code == 2,
            "{}: {}",
            line.sentence(),
            repair.transcript()
        );
        line.words = refusal(&repair);
        println!("{}", repair.transcript());
        return Ok(line);
    }
    line.guarantee = guarantee(&repair)?;
    let is_levelled = is_levelled(&repair)?;
    let (now, differ) =
        serve(state).with_context(|| format!("{}: {}", line.sentence(), repair.transcript()))?;
    if let Some(differ) = differ {
        let alone = undamaged(state, &whole)?;
        line.outcome = if alone.is_some() {
            Outcome::Diverged
        } else {
            Outcome::LostMore
        };
        line.words = format!(
            "{differ}; undamaged: {}",
            alone.as_deref().unwrap_or("all hold the same")
        );
        return Ok(line);
    }
    let lost = state.book.lost(&now);
    line.lost = lost.len();
    let words = lost.first().map(String::as_str);
    line.words = words
        .unwrap_or(if is_levelled { "logs levelled" } else { "" })
        .to_owned();
    line.outcome = match line.guarantee.as_str() {
        _ if lost.is_empty() => Outcome::Whole,
        "G2" | "G3" | "G4" => Outcome::LostAsAnnounced,
        _ if let Some(still) = state.book.squandered(&now, &witness) => {
            line.words = format!("a log held it: {still}");
            Outcome::LostMore
        }
        // No log holds it, even where one disk alone is damaged: another lagged behind.
        _ if chosen.iter().flatten().any(|damage| damage.silent) => Outcome::Silent,
        _ => Outcome::LostMore,
    };
    if !lost.is_empty() {
        state.book.restart_from(now);
    }
    Ok(line)
}

fn compared(state: &State) -> Result<peers::Lost> {
    let disks: Vec<PathBuf> = state
        .cluster
        .members
        .iter()
        .map(|member| member.data_dir.clone())
        .collect();
    peers::lost(&state.version, &disks, &state.book)
}

fn repair(state: &State) -> Result<Ran> {
    let repair = Cmd::new(rescue_binary()).args([
        "repair",
        "--yes",
        "--json",
        "--only",
        "etcd",
        "--accept-loss",
    ]);
    state
        .roots
        .iter()
        .fold(repair, |repair, root| repair.arg("--root").arg(root))
        .run()
}

/// The findings that are left, or the error.
fn refusal(repair: &Ran) -> String {
    let titles = |json: &Value| -> Vec<String> {
        let left = json["nodes"]
            .as_array()
            .into_iter()
            .flatten()
            .flat_map(|node| node["findings"].as_array().into_iter().flatten());
        left.filter(|finding| finding["severity"] != "note")
            .filter_map(|finding| finding["title"].as_str().map(str::to_owned))
            .collect()
    };
    match repair.json() {
        Ok(json) if !titles(&json).is_empty() => titles(&json).join("; "),
        _ => repair.stderr.lines().next().unwrap_or_default().to_owned(),
    }
}

/// The worst guarantee that the receipt names.
fn guarantee(repair: &Ran) -> Result<String> {
    fn all(value: &Value, found: &mut Vec<String>) {
        match value {
            Value::Object(fields) => {
                found.extend(
                    fields
                        .get("guarantee")
                        .and_then(Value::as_str)
                        .map(str::to_owned),
                );
                fields.values().for_each(|value| all(value, found));
            }
            Value::Array(values) => values.iter().for_each(|value| all(value, found)),
            _ => {}
        }
    }
    let mut found = Vec::new();
    all(&repair.json()?, &mut found);
    Ok(found.into_iter().max().unwrap_or_else(|| "G0".to_owned()))
}

/// Whether logs were levelled, and nothing else done to several members as one.
fn is_levelled(repair: &Ran) -> Result<bool> {
    let json = repair.json()?;
    let summary = |plan: &Value| {
        plan["summary"]
            .as_str()
            .is_some_and(|summary| summary.starts_with("level etcd's logs"))
    };
    Ok(json["receipt"]["together"]
        .as_array()
        .into_iter()
        .flatten()
        .any(summary))
}

/// Starts everything, which must take writes; what is held, and in what members differ.
fn serve(state: &mut State) -> Result<(BTreeMap<String, Held>, Option<String>)> {
    state.cluster.run()?;
    let client = Client::new(&state.cluster.members[0].client_url());
    let (mut now, revision) = client.all()?;
    now.remove(load::PROBE);
    let probe = client.put(load::PROBE, "1")?;
    ensure!(probe > revision, "no new revision");
    let differ = difference(state, &now, probe)?;
    Ok((now, differ))
}

/// The control: the members as they were killed, started without damage and repair; in what they
/// differ. The cluster is off afterwards.
fn undamaged(state: &mut State, whole: &[PathBuf]) -> Result<Option<String>> {
    state.cluster.kill()?;
    let swap = |state: &mut State, places: &[PathBuf]| {
        let members = state.cluster.members.iter_mut().zip(places);
        members
            .map(|(member, place)| std::mem::replace(&mut member.data_dir, place.clone()))
            .collect::<Vec<_>>()
    };
    let own = swap(state, whole);
    let served = serve(state);
    state.cluster.kill()?;
    swap(state, &own);
    Ok(served.context("starting the undamaged members")?.1)
}

/// In what a member differs from `first`, which is what the first holds before the probe was
/// written.
fn difference(state: &State, first: &BTreeMap<String, Held>, probe: i64) -> Result<Option<String>> {
    for member in &state.cluster.members[1..] {
        let mut theirs = Client::new(&member.client_url()).all()?.0;
        theirs.remove(load::PROBE);
        let differ = first
            .iter()
            .find(|(key, held)| theirs.get(*key) != Some(held));
        if &theirs != first {
            let (name, number, m1) = (&member.name, theirs.len(), first.len());
            let what = differ.map(|(key, held)| {
                format!(
                    ", {key} of revision {}: {:?}",
                    held.revision,
                    theirs.get(key).map(|theirs| theirs.revision)
                )
            });
            return Ok(Some(format!(
                "{name} holds {number} keys, m1 {m1}{}",
                what.unwrap_or_default()
            )));
        }
    }
    // A compaction that a kill interrupts leaves deletions behind on one member and not on the
    // other, before 3.4.26 and 3.5.9: the keys are the same, the hashes are not.
    if state.compacted {
        return Ok(None);
    }
    let mut hashes = Vec::new();
    for member in 0..3 {
        // All of them have applied the probe: a moment ago each answered a read that goes through
        // raft.
        hashes.push(state.cluster.hash(member, probe)?);
    }
    Ok(hashes
        .iter()
        .any(|hash| hash != &hashes[0])
        .then(|| format!("hashes differ: {hashes:?}")))
}

/// Load, kill and a new start without damage or repair; in what members differ afterwards.
pub fn without_damage(state: &mut State, number: u64) -> Result<Option<String>> {
    let mut random = Rng::with_seed(number);
    load_and_kill(state, &format!("r{number:04}/"), &mut random)?;
    let (now, differ) = serve(state)?;
    let lost = state.book.lost(&now);
    Ok(differ.or_else(|| {
        lost.first()
            .map(|first| format!("{} acknowledged writes are lost: {first}", lost.len()))
    }))
}
