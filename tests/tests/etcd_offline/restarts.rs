//! What etcd makes of a repaired cluster at every later start. etcd replays the changes of the membership that are already in its database
//! into raft, and its versions judge them by different stores, so a repair that is right at the first start may lose a voter at the second.
//! No snapshot is taken in between, as in a real cluster (`--snapshot-count` is 10,000 and more).
//!
//! `RESCUE_ETCD=DIR[:DIR…]` names folders with further versions of etcd; of 3.6 there is none in a registry.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use tests::etcd::{Cluster, Version, guest};
use tests::{Cmd, Ran, rescue_binary};

/// Far more than a test writes.
const NO_SNAPSHOT: u32 = 100_000;

/// Starts after the repair.
const STARTS: usize = 3;

fn subject(version: &Version, size: usize) -> Result<Cluster> {
    let mut cluster = Cluster::prepare(version, size, NO_SNAPSHOT, guest::place)?;
    guest::make_all(&cluster, &[])?;
    cluster.run()?;
    cluster.put_many("k", 100, "value")?;
    cluster.kill()?;
    Ok(cluster)
}

fn rescue(cluster: &Cluster, words: &str, numbers: &[usize]) -> Result<Ran> {
    let roots = numbers.iter().map(|number| guest::root_of(&cluster.members[*number].data_dir).to_owned());
    let given = roots.flat_map(|root| [Path::new("--root").to_owned(), root]);
    // Of 3.6 nothing is changed without being asked for.
    let unproven = if cluster.version().name.as_str() > "3.5" { vec!["--unproven"] } else { Vec::new() };
    Cmd::new(rescue_binary()).args(words.split(' ')).args(unproven).args(given).run()
}

fn data_dirs(cluster: &Cluster) -> Vec<PathBuf> {
    cluster.members.iter().map(|member| member.data_dir.clone()).collect()
}

fn lose_log(data_dir: &Path) -> Result<()> {
    Ok(fs::remove_dir_all(data_dir.join("member/wal"))?)
}

/// The members `numbers` start, all of them vote in the raft of each, and what is written at one start is there at the next.
fn start_again_and_again(cluster: &mut Cluster, numbers: &[usize]) -> Result<()> {
    for start in 1..=STARTS {
        start_once(cluster, numbers, start).with_context(|| format!("start {start}: {}", cluster.last_words()))?;
    }
    Ok(())
}

fn start_once(cluster: &mut Cluster, numbers: &[usize], start: usize) -> Result<()> {
    cluster.run_only(numbers)?;
    let version = cluster.version().number.clone();
    let listed = cluster.ctl(numbers[0]).args(["member", "list"]).ok()?.stdout;
    ensure!(listed.lines().count() == numbers.len(), "members: {listed}");
    let id = |line: &str| u64::from_str_radix(line.split(", ").next().unwrap_or_default(), 16);
    let mut wanted = listed.lines().map(id).collect::<Result<Vec<_>, _>>()?;
    wanted.sort_unstable();
    for number in numbers {
        let voters = cluster.raft_voters(*number)?;
        ensure!(voters == wanted, "{version}: raft of {number} has the voters {voters:x?}, not {wanted:x?}");
    }
    let key = |start: usize| format!("at-start-{version}-{start}");
    if start > 1 {
        let got = cluster.ctl(numbers[0]).args(["get", &key(start - 1), "--print-value-only"]).ok()?.stdout;
        ensure!(got.trim() == "written", "what was written at the start before is {got:?}");
    }
    cluster.ctl(numbers[0]).args(["put", &key(start), "written"]).ok()?;
    cluster.kill()
}

/// Whichever one of the members is off, the others take writes: with a voter less that raft counts, two of three would be needed that
/// are always the same two.
fn any_one_may_fail(cluster: &mut Cluster) -> Result<()> {
    let all: Vec<usize> = (0..cluster.members.len()).collect();
    for off in &all {
        let on: Vec<usize> = all.iter().copied().filter(|number| number != off).collect();
        cluster.run_only(&on).with_context(|| format!("without member {off}: {}", cluster.last_words()))?;
        cluster.ctl(on[0]).args(["put", "without", "one"]).ok()?;
        cluster.kill()?;
    }
    Ok(())
}

/// Of three members two have lost their logs: a new cluster of three at the same URLs.
fn rebuild_three(version: &Version) -> Result<Cluster> {
    let cluster = subject(version, 3)?;
    data_dirs(&cluster).iter().take(2).try_for_each(|dir| lose_log(dir))?;
    let ran = rescue(&cluster, "repair --yes --accept-loss --only etcd", &[0, 1, 2])?;
    ensure!(ran.code == 0 && ran.stdout.contains("as a new cluster"), "{}", ran.transcript());
    Ok(cluster)
}

fn three_stay_three(version: &Version) -> Result<()> {
    let mut cluster = rebuild_three(version)?;
    start_again_and_again(&mut cluster, &[0, 1, 2])?;
    any_one_may_fail(&mut cluster)
}

#[test]
fn three_members_rebuilt_stay_three_voters_on_3_4() -> Result<()> {
    three_stay_three(&Version::debian())
}

#[test]
fn three_members_rebuilt_stay_three_voters_on_3_5_1() -> Result<()> {
    three_stay_three(&Version::wheel()?)
}

#[test]
fn three_members_rebuilt_stay_three_voters_on_3_5_16() -> Result<()> {
    three_stay_three(&Version::newest()?)
}

#[test]
fn three_members_rebuilt_stay_three_voters_on_what_is_given() -> Result<()> {
    Version::given()?.iter().try_for_each(three_stay_three)
}

/// Rebuilt and started once on one version, started again on the next ones, up to those that `RESCUE_ETCD` gives.
#[test]
fn three_members_rebuilt_stay_three_voters_after_upgrades() -> Result<()> {
    let mut versions = vec![Version::debian(), Version::newest()?];
    versions.extend(Version::given()?);
    let mut cluster = rebuild_three(&versions[0])?;
    for version in &versions {
        cluster.upgrade(version);
        start_again_and_again(&mut cluster, &[0, 1, 2]).with_context(|| format!("on etcd {}", version.number))?;
    }
    Ok(())
}
