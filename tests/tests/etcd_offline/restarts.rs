//! What etcd makes of a repaired cluster at every later start. etcd replays the changes of the
//! membership that are already in its database into raft, and its versions judge them by different
//! stores, so a repair that is right at the first start may lose a voter at the second. No snapshot
//! is taken in between, as in a real cluster (`--snapshot-count` is 10,000 and more).
//!
//! `RESCUE_ETCD=DIR[:DIR…]` names folders with further versions of etcd; of 3.6 there is none in a
//! registry.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use rescue::etcd::format::members::Member;
use rescue::etcd::format::raft::{ConfChange, Identity};
use rescue::etcd::operations::rebuild::{Base, DatabaseFile, Recipe, base, changes};
use rescue::etcd::write::identity::{cluster_id, member_id};
use rescue::etcd::write::wal::add;
use tests::etcd::{self, Cluster, Version, files, guest};
use tests::{Cmd, Ran, rescue_binary};

use super::members::place;

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
    let roots = numbers
        .iter()
        .map(|number| guest::root_of(&cluster.members[*number].data_dir).to_owned());
    let given = roots.flat_map(|root| [Path::new("--root").to_owned(), root]);
    // Of 3.6 nothing is changed without being asked for.
    let unproven = if cluster.version().name.as_str() > "3.5" {
        vec!["--unproven"]
    } else {
        Vec::new()
    };
    Cmd::new(rescue_binary())
        .args(words.split(' '))
        .args(unproven)
        .args(given)
        .run()
}

fn data_dirs(cluster: &Cluster) -> Vec<PathBuf> {
    cluster
        .members
        .iter()
        .map(|member| member.data_dir.clone())
        .collect()
}

fn lose_log(data_dir: &Path) -> Result<()> {
    Ok(fs::remove_dir_all(data_dir.join("member/wal"))?)
}

/// The members `numbers` start, all of them vote in the raft of each, and what is written at one
/// start is there at the next.
fn start_again_and_again(cluster: &mut Cluster, numbers: &[usize]) -> Result<()> {
    for start in 1..=STARTS {
        start_once(cluster, numbers, start)
            .with_context(|| format!("start {start}: {}", cluster.last_words()))?;
    }
    Ok(())
}

fn start_once(cluster: &mut Cluster, numbers: &[usize], start: usize) -> Result<()> {
    cluster.run_only(numbers)?;
    let version = cluster.version().number.clone();
    let listed = cluster
        .ctl(numbers[0])
        .args(["member", "list"])
        .ok()?
        .stdout;
    ensure!(listed.lines().count() == numbers.len(), "members: {listed}");
    let id = |line: &str| u64::from_str_radix(line.split(", ").next().unwrap_or_default(), 16);
    let mut wanted = listed.lines().map(id).collect::<Result<Vec<_>, _>>()?;
    wanted.sort_unstable();
    for number in numbers {
        let voters = cluster.raft_voters(*number)?;
        ensure!(
            voters == wanted,
            "{version}: raft of {number} has the voters {voters:x?}, not {wanted:x?}"
        );
    }
    let key = |start: usize| format!("at-start-{version}-{start}");
    if start > 1 {
        let got = cluster
            .ctl(numbers[0])
            .args(["get", &key(start - 1), "--print-value-only"])
            .ok()?
            .stdout;
        ensure!(
            got.trim() == "written",
            "what was written at the start before is {got:?}"
        );
    }
    cluster
        .ctl(numbers[0])
        .args(["put", &key(start), "written"])
        .ok()?;
    if start % 2 == 1 {
        // etcd writes its database every 100 ms: the next start finds all entries there, or else a
        // part of them.
        std::thread::sleep(std::time::Duration::from_millis(400));
    }
    cluster.kill()
}

/// Whichever one of the members is off, the others take writes: with a voter less that raft counts,
/// two of three would be needed that are always the same two.
fn any_one_may_fail(cluster: &mut Cluster) -> Result<()> {
    let all: Vec<usize> = (0..cluster.members.len()).collect();
    for off in &all {
        let on: Vec<usize> = all.iter().copied().filter(|number| number != off).collect();
        cluster
            .run_only(&on)
            .with_context(|| format!("without member {off}: {}", cluster.last_words()))?;
        cluster.ctl(on[0]).args(["put", "without", "one"]).ok()?;
        cluster.kill()?;
    }
    Ok(())
}

/// Of three members two have lost their logs: a new cluster of three at the same URLs.
fn rebuild_three(version: &Version) -> Result<Cluster> {
    let cluster = subject(version, 3)?;
    data_dirs(&cluster)
        .iter()
        .take(2)
        .try_for_each(|dir| lose_log(dir))?;
    let ran = rescue(
        &cluster,
        "repair --yes --accept-loss --only etcd",
        &[0, 1, 2],
    )?;
    ensure!(
        ran.code == 0 && ran.stdout.contains("as a new cluster"),
        "{}",
        ran.transcript()
    );
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

/// Rebuilt and started once on one version, started again on the next ones, up to those that
/// `RESCUE_ETCD` gives.
#[test]
fn three_members_rebuilt_stay_three_voters_after_upgrades() -> Result<()> {
    let mut versions = vec![Version::debian(), Version::newest()?];
    versions.extend(Version::given()?);
    let mut cluster = rebuild_three(&versions[0])?;
    for version in &versions {
        cluster.upgrade(version);
        start_again_and_again(&mut cluster, &[0, 1, 2])
            .with_context(|| format!("on etcd {}", version.number))?;
    }
    Ok(())
}

/// 3.4.23, 3.5.16, and those that `RESCUE_ETCD` gives.
fn versions() -> Result<Vec<Version>> {
    let mut versions = vec![Version::debian(), Version::newest()?];
    versions.extend(Version::given()?);
    Ok(versions)
}

/// One of three has lost its log, and is taken in anew at its URL.
#[test]
fn a_member_taken_in_anew_stays_a_voter() -> Result<()> {
    for version in versions()? {
        let mut cluster = subject(&version, 3)?;
        lose_log(&cluster.members[1].data_dir)?;
        let ran = rescue(&cluster, "repair --yes --only etcd", &[0, 1, 2])?;
        ensure!(
            ran.code == 0 && ran.stdout.contains("into the etcd cluster anew"),
            "{}",
            ran.transcript()
        );
        start_again_and_again(&mut cluster, &[0, 1, 2])?;
    }
    Ok(())
}

/// Of three members one is left, at its URL.
#[test]
fn one_member_that_is_left_stays_the_voter() -> Result<()> {
    for version in versions()? {
        let mut cluster = subject(&version, 3)?;
        let dead = "etcd remove-member m2 --yes --accept-loss --declare-dead m2 --declare-dead m3";
        let ran = rescue(&cluster, dead, &[0])?;
        ensure!(ran.code == 0, "{}", ran.transcript());
        start_again_and_again(&mut cluster, &[0])?;
    }
    Ok(())
}

/// A cluster whose members are built anew by these changes: what they are called, and where they
/// are reached, stays. `changes` makes them of the old members and the new ones.
fn replaced(
    cluster: &Cluster,
    changes: impl Fn(&Base, &[Member]) -> Vec<ConfChange>,
) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let copy = folder.path().join("copy");
    etcd::copy(&cluster.members[0].data_dir, &copy)?;
    let (guest, data) = super::members::guest(&copy)?;
    let database = DatabaseFile::examine(&guest, &data.place.db())?;
    let base = Base::new(
        &guest,
        &data,
        database,
        Some(&data),
        base::Options { unproven: true },
    )?;
    let new = |member: &etcd::Member| {
        let peer_urls = vec![member.peer_url()];
        Member {
            id: member_id(&peer_urls, TOKEN),
            name: member.name.clone(),
            peer_urls,
            ..Member::default()
        }
    };
    let members: Vec<Member> = cluster.members.iter().map(new).collect();
    let changes = changes(&base, &members);
    let cluster_id = cluster_id(members.iter().map(|member| member.id));
    for (member, own) in cluster.members.iter().zip(&members) {
        let identity = Identity {
            member: own.id,
            cluster: cluster_id,
        };
        let recipe = Recipe::agreed(&base, identity, base.next_term([&data]), changes.clone());
        place(&recipe, &[&guest], &member.data_dir)?;
    }
    Ok(())
}

/// Of the new members' IDs.
const TOKEN: &str = "rescue-restarts";

/// An only member gets a new ID at its old URL: no voter of the old cluster can stay until it is
/// there.
#[test]
fn an_only_member_rebuilt_stays_the_voter() -> Result<()> {
    for version in versions()? {
        let mut cluster = subject(&version, 1)?;
        replaced(&cluster, |base, new| {
            changes::replace(&base.members, new, TOKEN)
        })?;
        start_again_and_again(&mut cluster, &[0])?;
    }
    Ok(())
}

/// As an earlier rescue did it, which 3.6 does not understand at its second start: the voter that
/// it loses is the last new member.
fn with_update(base: &Base, new: &[Member]) -> Vec<ConfChange> {
    let has_url = |old: &&Member| {
        new.last()
            .is_some_and(|last| last.peer_urls == old.peer_urls)
    };
    let (stays, go): (Vec<&Member>, Vec<&Member>) = base.members.list.values().partition(has_url);
    let mut all = changes::remove(go.iter().map(|member| member.id));
    all.extend(
        stays
            .iter()
            .map(|old| changes::update(old, vec!["http://removed.invalid:2380".to_owned()])),
    );
    all.extend(new.iter().map(add));
    all.extend(changes::remove(stays.iter().map(|member| member.id)));
    all
}

/// What has lost a voter, or will lose it after an upgrade, is named by status and inspect, and
/// mended by repair.
fn is_named_and_mended(cluster: &Cluster, says: &str) -> Result<()> {
    let status = rescue_looks(cluster, "etcd status")?;
    ensure!(
        status.code == 1 && status.stdout.contains(says),
        "{}",
        status.transcript()
    );
    let inspect = rescue_looks(cluster, "inspect --only etcd")?;
    ensure!(
        inspect.code == 1 && inspect.stdout.contains(says),
        "{}",
        inspect.transcript()
    );
    // Not on one voter without the others.
    let before = files::sums(&cluster.members[0].data_dir)?;
    rescue(cluster, "repair --yes --only etcd", &[0])?;
    ensure!(
        files::sums(&cluster.members[0].data_dir)? == before,
        "one voter was changed alone"
    );
    let ran = rescue(cluster, "repair --yes --only etcd", &[0, 1, 2])?;
    ensure!(
        ran.code == 0 && ran.stdout.contains("G0: "),
        "{}",
        ran.transcript()
    );
    let again = rescue(cluster, "repair --yes --only etcd", &[0, 1, 2])?;
    ensure!(
        again.code == 0 && again.stdout.contains("othing to"),
        "{}",
        again.transcript()
    );
    let status = rescue_looks(cluster, "etcd status")?;
    ensure!(
        status.code == 0 && !status.stdout.contains("raft has"),
        "{}",
        status.transcript()
    );
    Ok(())
}

fn rescue_looks(cluster: &Cluster, words: &str) -> Result<Ran> {
    let roots = cluster
        .members
        .iter()
        .map(|member| guest::root_of(&member.data_dir).to_owned());
    Cmd::new(rescue_binary())
        .args(words.split(' '))
        .args(roots.flat_map(|root| ["--root".into(), root]))
        .run()
}

/// Built by an earlier rescue and started once on 3.4 or 3.5: the voter would be lost after an
/// upgrade to 3.6.
#[test]
fn a_voter_that_an_upgrade_would_lose_is_named_and_kept() -> Result<()> {
    let mut versions = vec![Version::newest()?];
    versions.extend(etcd::long().then(Version::debian));
    for version in versions {
        let mut cluster = subject(&version, 3)?;
        replaced(&cluster, with_update)?;
        let early = rescue_looks(&cluster, "etcd status")?;
        ensure!(
            early.stdout.contains("after an upgrade to etcd 3.6"),
            "{}",
            early.transcript()
        );
        start_once(&mut cluster, &[0, 1, 2], 1)?;
        is_named_and_mended(
            &cluster,
            "after an upgrade to etcd 3.6 its raft has the voters m1, m2, but `member list` shows \
             m1, m2, m3",
        )?;
        let mut next = vec![Version::newest()?];
        next.extend(Version::given()?);
        for version in next {
            cluster.upgrade(&version);
            start_again_and_again(&mut cluster, &[0, 1, 2])?;
            any_one_may_fail(&mut cluster)?;
        }
    }
    Ok(())
}

/// 3.6 has lost the voter: at its second start two of three count, and always the same two.
#[test]
fn a_voter_that_was_lost_is_named_and_comes_back() -> Result<()> {
    for version in Version::given()?
        .iter()
        .filter(|version| version.name == "3.6")
    {
        let mut cluster = subject(version, 3)?;
        replaced(&cluster, with_update)?;
        start_once(&mut cluster, &[0, 1, 2], 1)?;
        // The third serves nobody, because it is no voter.
        cluster.run_only(&[0, 1])?;
        ensure!(cluster.raft_voters(0)?.len() == 2, "no voter was lost");
        let listed = cluster.ctl(0).args(["member", "list"]).ok()?.stdout;
        ensure!(listed.lines().count() == 3, "{listed}");
        cluster.put("with", "two")?;
        cluster.kill()?;
        let refused = rescue_looks(&cluster, "repair --yes --only etcd")?;
        ensure!(
            refused.code == 3 && refused.stderr.contains("add --unproven"),
            "{}",
            refused.transcript()
        );
        is_named_and_mended(
            &cluster,
            "etcd's raft has the voters m1, m2, but `member list` shows m1, m2, m3",
        )?;
        start_again_and_again(&mut cluster, &[0, 1, 2])?;
        any_one_may_fail(&mut cluster)?;
    }
    Ok(())
}
