//! Members made anew from databases: real etcd boots on what is made, and holds what the database
//! held.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use tests::etcd::files::sums;
use tests::etcd::{self, Cluster, Key, Member, Version, guest};
use tests::{Cmd, rescue_binary};

const BUMP: i64 = 1_000_000_000;

fn rescue(command: &str) -> Cmd {
    Cmd::new(rescue_binary()).args(["etcd", command])
}

fn data_dirs(cluster: &Cluster) -> impl Iterator<Item = &Path> {
    cluster
        .members
        .iter()
        .map(|member| member.data_dir.as_path())
}

fn with_data_dirs(command: Cmd, cluster: &Cluster) -> Cmd {
    data_dirs(cluster).fold(command, |command, dir| command.arg("--data-dir").arg(dir))
}

/// Long enough for what was written to be in the database: etcd writes it every 100 ms.
fn settle() {
    std::thread::sleep(Duration::from_millis(400));
}

/// Keys with deletions, many versions, leases and a compaction.
fn work(cluster: &Cluster) -> Result<()> {
    cluster.put_many("/registry/pods/default/p", 300, "one")?;
    cluster.put_many("/registry/pods/default/p", 60, "two")?;
    cluster
        .ctl(0)
        .args([
            "del",
            "/registry/pods/default/p1",
            "/registry/pods/default/p12",
        ])
        .ok()?;
    cluster.ctl(0).args(["compact", "5"]).ok()?;
    let lease = cluster.ctl(0).args(["lease", "grant", "6000"]).ok()?.stdout;
    let lease = lease
        .split_whitespace()
        .nth(1)
        .context("a lease")?
        .to_owned();
    cluster
        .ctl(0)
        .args(["put", "--lease", &lease, "/registry/events/e", "leased"])
        .ok()?;
    cluster.put_large("large", 200_000)?;
    cluster.put("last", "acknowledged")
}

/// Puts what was made in the members' places.
fn adopt(cluster: &mut Cluster, output: &Path) -> Result<()> {
    for member in &mut cluster.members {
        member.data_dir = output.join(&member.name);
    }
    cluster.run()
}

#[test]
fn a_database_alone_becomes_a_cluster() -> Result<()> {
    for version in Version::all()? {
        let mut cluster = Cluster::start(&version, 3, 10_000)?;
        work(&cluster)?;
        settle();
        let (keys, revision) = cluster.keys(0)?;
        let old_id = cluster.list()?;
        cluster.kill()?;
        let output = cluster.folder().join("rebuilt");
        let ran = with_data_dirs(rescue("rebuild"), &cluster)
            .args(["--db-only", "--json", "--output"])
            .arg(&output)
            .ok()?
            .json()?;
        ensure!(ran["plan"]["guarantee"] == "G3", "{ran:#}");
        ensure!(ran["plan"]["found"]["revision"] == revision, "{ran:#}");
        adopt(&mut cluster, &output).with_context(|| version.name.clone())?;
        let (held, at) = cluster.keys(0)?;
        ensure!(
            (held == keys, at) == (true, revision + BUMP),
            "{}: keys differ, or {at}",
            version.name
        );
        ensure!(
            cluster
                .list()?
                .iter()
                .all(|(id, ..)| old_id.iter().all(|(old, ..)| old != id)),
            "old IDs"
        );
        // Whoever goes on from an old revision is told to list anew.
        let old = cluster
            .ctl(0)
            .args(["get", "last", "--rev", &revision.to_string()])
            .run()?;
        ensure!(
            old.code != 0 && old.stderr.contains("compacted"),
            "{}",
            old.transcript()
        );
        cluster.put("after", "1")?;
        ensure!(cluster.keys(0)?.1 == revision + BUMP + 1);
        cluster
            .ctl(0)
            .args(["compact", &(revision + BUMP + 1).to_string()])
            .ok()?;
        for number in 0..3 {
            cluster.ctl(number).arg("defrag").ok()?;
        }
        let hashes = (0..3)
            .map(|number| cluster.hash(number, 0))
            .collect::<Result<BTreeSet<_>>>()?;
        ensure!(hashes.len() == 1, "{}: {hashes:?}", version.name);
        cluster.kill()?;
        cluster.run()?;
        ensure!(
            cluster.keys(2)?.0.len() == keys.len() + 1,
            "{}: something was lost by a restart",
            version.name
        );
    }
    Ok(())
}

/// Our own restore of a saved snapshot and etcd's own: the same hash of everything.
#[test]
fn a_saved_snapshot_is_restored_as_etcd_does_it() -> Result<()> {
    for version in Version::all()? {
        let mut cluster = Cluster::start(&version, 1, 10_000)?;
        work(&cluster)?;
        let saved = cluster.folder().join("saved.db");
        cluster.ctl(0).args(["snapshot", "save"]).arg(&saved).ok()?;
        let (keys, revision) = cluster.keys(0)?;
        cluster.kill()?;
        let member = format!("m1={}", cluster.members[0].peer_url());
        let rebuild = |file: &Path, output: &Path| {
            rescue("rebuild")
                .args(["--bump", "0", "--member", &member, "--from"])
                .arg(file)
                .arg("--output")
                .arg(output)
        };
        let (ours, theirs) = (
            cluster.folder().join("ours"),
            cluster.folder().join("theirs"),
        );
        let said = rebuild(&saved, &ours).ok()?.stdout;
        ensure!(said.contains("its checksum is right"), "{said}");
        let tool = if version.name == "3.4" {
            "etcdctl"
        } else {
            "etcdutl"
        };
        Cmd::new(version.program(tool))
            .env("ETCDCTL_API", "3")
            .args([
                "snapshot",
                "restore",
                "--name",
                "m1",
                "--initial-cluster",
                &member,
            ])
            .args([
                "--initial-advertise-peer-urls",
                &cluster.members[0].peer_url(),
                "--data-dir",
            ])
            .arg(&theirs)
            .arg(&saved)
            .ok()?;
        let ask = |dir: &Path| -> Result<(u64, String)> {
            let answer = etcd::serve(&version, dir, |ctl| {
                let hash = ctl()
                    .args(["endpoint", "hashkv", "-w", "json"])
                    .ok()?
                    .json()?;
                let leases = ctl().args(["lease", "list"]).ok()?.stdout;
                Ok((
                    hash[0]["HashKV"]["hash"].as_u64().context("a hash")?,
                    leases,
                ))
            })?;
            answer.map_err(|says| anyhow::anyhow!("{}: {says}", dir.display()))
        };
        ensure!(
            ask(&ours.join("m1"))? == ask(&theirs)?,
            "{}: what is restored differs",
            version.name
        );
        let held =
            etcd::holds(&version, &ours.join("m1"))?.map_err(|says| anyhow::anyhow!(says))?;
        ensure!(held == (keys, revision), "{}: keys differ", version.name);
        if version.name == "3.5" {
            let db = cluster.folder().join("rebuilt.db");
            fs::copy(ours.join("m1/member/snap/db"), &db)?;
            Cmd::new(version.program("etcdutl"))
                .args(["snapshot", "status"])
                .arg(&db)
                .ok()?;
        }
        // One bit of it changed.
        let mut bytes = fs::read(&saved)?;
        bytes[20_000] ^= 1;
        fs::write(&saved, bytes)?;
        let refused = rebuild(&saved, &cluster.folder().join("none")).run()?;
        ensure!(
            refused.code == 3 && refused.stderr.contains("does not fit"),
            "{}",
            refused.transcript()
        );
    }
    Ok(())
}

fn word(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap_or_default())
}

fn zero(path: &Path, page: u64) -> Result<()> {
    Ok(fs::OpenOptions::new()
        .write(true)
        .open(path)?
        .write_all_at(&[0; 4096], page * 4096)?)
}

/// Both roots, or the metas that lead to them.
fn lose_roots(path: &Path, metas_too: bool) -> Result<()> {
    let bytes = fs::read(path)?;
    for page in 0..2 {
        zero(path, word(&bytes, page * 4096 + 16 + 16))?;
        if metas_too {
            zero(path, page as u64)?;
        }
    }
    Ok(())
}

struct Salvaged {
    report: Value,
    uncertain: BTreeSet<String>,
    keys: BTreeMap<String, Key>,
}

fn salvage(version: &Version, member: &str, db: &Path, output: &Path) -> Result<Salvaged> {
    let ran = rescue("salvage")
        .args(["--json", "--member", member, "--from"])
        .arg(db)
        .arg("--output")
        .arg(output)
        .ok()?
        .json()?;
    ensure!(ran["plan"]["guarantee"] == "G4", "{ran:#}");
    let listed = fs::read_to_string(output.join("uncertain-keys")).unwrap_or_default();
    let (keys, _) =
        etcd::holds(version, &output.join("m1"))?.map_err(|says| anyhow::anyhow!(says))?;
    Ok(Salvaged {
        report: ran["plan"]["found"]["salvage"].clone(),
        uncertain: listed.lines().map(str::to_owned).collect(),
        keys: keys.into_iter().map(|key| (key.key.clone(), key)).collect(),
    })
}

#[test]
fn what_is_left_of_a_damaged_database_is_salvaged() -> Result<()> {
    for version in etcd::versions_to_damage()? {
        let mut cluster = Cluster::start(&version, 1, 10_000)?;
        for round in 0..4 {
            cluster.put_many(
                "/registry/configmaps/default/c",
                400,
                &"x".repeat(100 + round),
            )?;
        }
        work(&cluster)?;
        settle();
        let (keys, revision) = cluster.keys(0)?;
        cluster.kill()?;
        let member = format!("m1={}", cluster.members[0].peer_url());
        let db = cluster.members[0].data_dir.join("member/snap/db");
        let original = fs::read(&db)?;
        let run = |name: &str, damage: &dyn Fn(&Path) -> Result<()>| -> Result<Salvaged> {
            let (copy, output) = (
                cluster.folder().join(format!("{name}.db")),
                cluster.folder().join(name),
            );
            fs::copy(&db, &copy)?;
            damage(&copy)?;
            salvage(&version, &member, &copy, &output)
                .with_context(|| format!("{}: {name}", version.name))
        };
        let whole: BTreeMap<String, Key> = keys
            .iter()
            .map(|key| (key.key.clone(), key.clone()))
            .collect();

        // The newest root is found again, and nothing is missing or uncertain.
        let found = run("metas", &|db| zero(db, 0).and_then(|()| zero(db, 1)))?;
        ensure!(
            found.report["is_whole"] == true && found.uncertain.is_empty(),
            "{:#}",
            found.report
        );
        ensure!(found.keys == whole, "keys differ");
        ensure!(found.report["revision"] == revision, "{:#}", found.report);

        // Without any current root: everything is still there, on pages that an old root or none
        // leads to.
        for (name, metas_too) in [("roots", false), ("roots-and-metas", true)] {
            let found = run(name, &|db| lose_roots(db, metas_too))?;
            compare(&whole, &found, name)?;
        }

        // Pages lost at random, the metas with them.
        let pages = original.len() as u64 / 4096;
        let found = run("random", &|db| {
            zero(db, 0)?;
            zero(db, 1)?;
            let mut state = 7u64;
            for _ in 0..pages / 12 {
                zero(db, 2 + step(&mut state) % (pages - 2))?;
            }
            Ok(())
        })?;
        ensure!(
            found.report["is_whole"] == false,
            "nothing was lost: {:#}",
            found.report
        );
        compare(&whole, &found, "random")?;
    }
    Ok(())
}

fn step(state: &mut u64) -> u64 {
    *state = state
        .wrapping_mul(6_364_136_223_846_793_005)
        .wrapping_add(1);
    *state >> 33
}

/// Every key is as it was, or its newest revision is one that is said to be missing; what is there
/// and should not be is said to be uncertain.
fn compare(whole: &BTreeMap<String, Key>, found: &Salvaged, name: &str) -> Result<()> {
    let mut gaps: Vec<(i64, i64)> = serde_json::from_value(found.report["gaps"].clone())?;
    gaps.extend(serde_json::from_value::<Vec<(i64, i64)>>(
        found.report["unread"].clone(),
    )?);
    gaps.extend(
        serde_json::from_value::<Vec<i64>>(found.report["partial"].clone())?
            .iter()
            .map(|main| (*main, *main)),
    );
    let last = found.report["revision"].as_i64().context("a revision")?;
    let compacted = found.report["compact_revision"].as_i64().unwrap_or(-1);
    let may_be_missing = |revision: i64| {
        revision > last
            || revision <= compacted
            || gaps
                .iter()
                .any(|(from, to)| (*from..=*to).contains(&revision))
    };
    let mut lost = 0;
    for (key, there) in whole {
        match found.keys.get(key) {
            Some(now) if now.modified == there.modified => {}
            _ if may_be_missing(there.modified) => lost += 1,
            now => anyhow::bail!(
                "{name}: {key} at {} is {now:?}, and its revision is not said to be missing",
                there.modified
            ),
        }
    }
    for (key, now) in &found.keys {
        let is_right = whole
            .get(key)
            .is_some_and(|there| there.modified == now.modified);
        // A later deletion or change may be among what is missing.
        let explained = found.uncertain.contains(key) || !gaps.is_empty();
        ensure!(
            is_right || explained,
            "{name}: {key} came back and is not said to be uncertain"
        );
    }
    ensure!(
        lost * 2 < whole.len(),
        "{name}: {lost} of {} keys lost",
        whole.len()
    );
    Ok(())
}

/// A guest of the member's with a copy of its data folder.
fn guest_of(member: &Member, folder: &Path, data_dir: &Path, flags: &[&str]) -> Result<PathBuf> {
    let root = folder.join("guest");
    let flags: Vec<String> = flags.iter().map(|flag| (*flag).to_owned()).collect();
    guest::make(
        &root,
        &member.name,
        &[guest::addresses(member), flags].concat(),
    )?;
    etcd::copy(data_dir, &root.join(guest::DATA_DIR))?;
    Ok(root)
}

#[test]
fn a_rebuild_in_place_asks_for_its_losses_and_can_be_taken_back() -> Result<()> {
    let version = Version::debian();
    let mut cluster = Cluster::start(&version, 1, 10_000)?;
    work(&cluster)?;
    settle();
    let (keys, revision) = cluster.keys(0)?;
    cluster.kill()?;
    let root = guest_of(
        &cluster.members[0],
        cluster.folder(),
        &cluster.members[0].data_dir,
        &[],
    )?;
    let data_dir = root.join("var/lib/etcd");
    let before = sums(&data_dir)?;
    let rebuild = || {
        rescue("rebuild")
            .args(["--db-only", "--yes", "--root"])
            .arg(&root)
    };
    let refused = rebuild().run()?;
    ensure!(
        refused.code == 3 && refused.stderr.contains("--accept-loss"),
        "{}",
        refused.transcript()
    );
    ensure!(sums(&data_dir)? == before, "a refusal changed something");
    rebuild().arg("--accept-loss").ok()?;
    let held = etcd::holds(&version, &data_dir)?.map_err(|says| anyhow::anyhow!(says))?;
    ensure!(held == (keys, revision + BUMP), "keys differ");
    // etcd has run meanwhile: taking it back would lose what it wrote.
    let undo = || {
        Cmd::new(rescue_binary())
            .args(["undo", "--yes", "--root"])
            .arg(&root)
    };
    let drifted = undo().run()?;
    ensure!(drifted.code == 3, "{}", drifted.transcript());
    fs::remove_dir_all(&data_dir)?;
    fs::remove_dir_all(root.join("var/lib/rescue"))?;
    etcd::copy(&cluster.members[0].data_dir, &data_dir)?;
    rebuild().arg("--accept-loss").ok()?;
    ensure!(sums(&data_dir)? != before);
    undo().ok()?;
    ensure!(sums(&data_dir)? == before, "undo left something");
    Ok(())
}

/// Three nodes as one change: all boot as one new cluster, and one undo with all three disks brings
/// all back.
#[test]
fn three_nodes_are_rebuilt_as_one() -> Result<()> {
    let version = Version::debian();
    let mut cluster = Cluster::start(&version, 3, 10_000)?;
    work(&cluster)?;
    settle();
    let (keys, revision) = cluster.keys(0)?;
    cluster.kill()?;
    let mut roots = Vec::new();
    for (number, member) in cluster.members.iter().enumerate() {
        let root = guest_of(
            member,
            &cluster.folder().join(format!("node{number}")),
            &member.data_dir,
            &[],
        )?;
        roots.push(root);
    }
    let all = |command: Cmd| {
        roots
            .iter()
            .fold(command, |command, root| command.arg("--root").arg(root))
    };
    let before = roots
        .iter()
        .map(|root| sums(&root.join("var/lib/etcd")))
        .collect::<Result<Vec<_>>>()?;
    // One of the three left out could start again beside the new cluster.
    let alone = rescue("rebuild")
        .args(["--db-only", "--yes", "--accept-loss", "--root"])
        .arg(&roots[0])
        .run()?;
    ensure!(
        alone.code == 3 && alone.stderr.contains("--declare-dead"),
        "{}",
        alone.transcript()
    );
    let rebuild = || all(rescue("rebuild").args(["--db-only", "--yes", "--accept-loss"])).ok();
    rebuild()?;
    all(Cmd::new(rescue_binary()).args(["undo", "--yes"])).ok()?;
    let after = roots
        .iter()
        .map(|root| sums(&root.join("var/lib/etcd")))
        .collect::<Result<Vec<_>>>()?;
    ensure!(after == before, "undo left something");
    rebuild()?;
    for (member, root) in cluster.members.iter_mut().zip(&roots) {
        member.data_dir = root.join("var/lib/etcd");
    }
    cluster.run()?;
    ensure!(cluster.keys(2)? == (keys, revision + BUMP), "keys differ");
    let hashes = (0..3)
        .map(|number| cluster.hash(number, 0))
        .collect::<Result<BTreeSet<_>>>()?;
    ensure!(hashes.len() == 1, "{hashes:?}");
    cluster.put("after", "1")
}

#[test]
fn a_full_database_is_made_small_and_takes_writes_again() -> Result<()> {
    let version = Version::debian();
    let mut cluster = Cluster::start(&version, 1, 10_000)?;
    cluster.put_many("kept", 50, "value")?;
    for number in 0..30 {
        cluster.put_large(&format!("large{}", number % 2), 1_000_000)?;
    }
    settle();
    cluster.kill()?;
    let folder = tempfile::tempdir()?;
    let data_dir = folder.path().join("data");
    etcd::copy(&cluster.members[0].data_dir, &data_dir)?;
    // With a quota below its size etcd raises the alarm at the first write.
    let quota = ["--quota-backend-bytes=25000000"];
    let full = etcd::serve_with(&version, &data_dir, &quota, |ctl| {
        ctl().args(["put", "x", "y"]).run()?;
        settle();
        let refused = ctl().args(["put", "x", "y"]).run()?;
        ensure!(
            refused.code != 0 && refused.stderr.contains("space exceeded"),
            "{}",
            refused.transcript()
        );
        settle();
        Ok(())
    })?;
    full.map_err(|says| anyhow::anyhow!(says))?;
    let root = guest_of(&cluster.members[0], folder.path(), &data_dir, &quota)?;
    let data_dir = root.join("var/lib/etcd");
    let size = |dir: &Path| Ok::<_, anyhow::Error>(fs::metadata(dir.join("member/snap/db"))?.len());
    let before = size(&data_dir)?;
    let said = rescue("defrag")
        .args(["--compact", "--yes", "--json", "--root"])
        .arg(&root)
        .ok()?
        .json()?;
    ensure!(
        said["plan"]["guarantee"] == "G0" && said["plan"]["found"]["alarm_lifted"] == true,
        "{said:#}"
    );
    ensure!(
        size(&data_dir)? * 4 < before,
        "{before} bytes became {}",
        size(&data_dir)?
    );
    let held = etcd::serve_with(&version, &data_dir, &quota, |ctl| {
        ctl().args(["put", "after", "1"]).ok()?;
        let keys = ctl()
            .args(["get", "", "--prefix", "--keys-only"])
            .ok()?
            .stdout;
        ensure!(
            keys.lines().filter(|line| line.starts_with("kept")).count() == 50
                && keys.contains("large1"),
            "{keys}"
        );
        ctl().args(["get", "large0"]).ok()?;
        Ok(())
    })?;
    held.map_err(|says| anyhow::anyhow!(says))
}

#[test]
fn three_databases_are_compacted_alike() -> Result<()> {
    for version in Version::all()? {
        let mut cluster = Cluster::start(&version, 3, 10_000)?;
        work(&cluster)?;
        settle();
        let (keys, revision) = cluster.keys(0)?;
        cluster.kill()?;
        let output = cluster.folder().join("small");
        let one = cluster.folder().join("one");
        let alone = rescue("defrag")
            .args(["--compact", "--json", "--data-dir"])
            .arg(&cluster.members[0].data_dir)
            .arg("--output")
            .arg(&one)
            .ok()?
            .json()?;
        let why = alone["plan"]["found"]["not_compacted"]
            .as_str()
            .unwrap_or_default();
        ensure!(
            why.contains("m2, m3") || why.contains("m3, m2"),
            "{alone:#}"
        );
        let said = with_data_dirs(rescue("defrag"), &cluster)
            .args(["--compact", "--json", "--output"])
            .arg(&output)
            .ok()?;
        ensure!(
            said.json()?["plan"]["found"]["compact_at"] == revision,
            "{}",
            said.transcript()
        );
        adopt(&mut cluster, &output)?;
        ensure!(
            cluster.keys(1)? == (keys, revision),
            "{}: keys differ",
            version.name
        );
        cluster.put("after", "1")?;
        let hashes = (0..3)
            .map(|number| cluster.hash(number, 0))
            .collect::<Result<BTreeSet<_>>>()?;
        ensure!(
            hashes.len() == 1 && hashes.iter().all(|(_, compacted)| *compacted == revision),
            "{hashes:?}"
        );
        cluster.kill()?;
        cluster.run()?;
    }
    Ok(())
}
