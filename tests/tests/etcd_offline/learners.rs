//! Clusters with a learner: after every repair real etcd has it as a learner, with the others'
//! history, and one that never came goes.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use tests::etcd::files::{self, cut};
use tests::etcd::{self, Cluster, Version, guest};
use tests::{Cmd, Ran, rescue_binary};

fn rescue(cluster: &Cluster, words: &str, numbers: &[usize]) -> Result<Ran> {
    let roots = numbers
        .iter()
        .map(|number| guest::root_of(&cluster.members[*number].data_dir).to_owned());
    let given = roots.flat_map(|root| [Path::new("--root").to_owned(), root]);
    Cmd::new(rescue_binary())
        .args(words.split(' '))
        .args(given)
        .run()
}

/// Three voters serve, the fourth is a learner and gets what is written now.
fn judge(cluster: &mut Cluster, key: &str) -> Result<()> {
    cluster.run()?;
    let list = cluster.ctl(0).args(["member", "list"]).ok()?.stdout;
    let learners: Vec<&str> = list
        .lines()
        .filter(|line| line.trim_end().ends_with("true"))
        .collect();
    ensure!(list.lines().count() == 4 && learners.len() == 1, "{list}");
    ensure!(
        learners[0].contains(&cluster.members[3].peer_url()),
        "{list}"
    );
    cluster.put(key, "new")?;
    let started = Instant::now();
    let got = || -> Result<String> {
        let get = cluster
            .ctl(3)
            .args(["get", key, "--print-value-only", "--consistency=s"]);
        Ok(get.run()?.stdout.trim().to_owned())
    };
    while got()? != "new" {
        ensure!(
            started.elapsed() < Duration::from_secs(30),
            "the learner gets nothing\n{}",
            cluster.last_words()
        );
        std::thread::sleep(Duration::from_millis(100));
    }
    // It answers nothing else (no hashkv), but what it has itself.
    let all = |number: usize| -> Result<String> {
        Ok(cluster
            .ctl(number)
            .args(["get", "", "--prefix", "--consistency=s", "-w", "fields"])
            .ok()?
            .stdout)
    };
    let of_keys = |listed: String| -> Vec<String> {
        let is_header = |line: &&str| {
            !["\"ClusterID", "\"MemberID", "\"RaftTerm"]
                .iter()
                .any(|name| line.starts_with(name))
        };
        listed
            .lines()
            .filter(is_header)
            .map(str::to_owned)
            .collect()
    };
    let (voter, learner) = (of_keys(all(0)?), of_keys(all(3)?));
    ensure!(
        voter == learner && voter.iter().any(|line| line.contains("\"k99\"")),
        "{voter:?}\n{learner:?}"
    );
    cluster.kill()
}

fn repaired(cluster: &Cluster, guarantee: &str, words: &str) -> Result<()> {
    let ran = rescue(
        cluster,
        "repair --yes --accept-loss --only etcd",
        &[0, 1, 2, 3],
    )?;
    let is_so = ran.code == 0 && ran.stdout.contains(guarantee) && ran.stdout.contains(words);
    ensure!(is_so, "{}", ran.transcript());
    Ok(())
}

#[test]
fn a_learner_stays_a_learner_and_goes_where_it_never_came() -> Result<()> {
    for version in etcd::versions_to_damage()? {
        tried(&version).with_context(|| format!("etcd {}", version.number))?;
    }
    Ok(())
}

fn tried(version: &Version) -> Result<()> {
    let mut cluster = Cluster::prepare(version, 3, 40, guest::place)?;
    cluster.run()?;
    cluster.put_many("k", 100, "value")?;
    cluster.add_learner(guest::place(cluster.folder(), "m4"))?;
    // So that the disks know of the change that it is agreed on.
    for number in 0..50 {
        cluster.put(&format!("small{number}"), "x")?;
    }
    guest::make_all(&cluster, &[])?;
    let id = never_came(&mut cluster)?;
    // Now it comes.
    cluster.run()?;
    let joined = cluster.ctl(0).args(["member", "list"]).ok()?.stdout;
    ensure!(joined.contains(&id), "{joined}");
    judge(&mut cluster, "joined")?;

    // It alone has lost its log: it has promised nothing, and the voters are not touched.
    fs::remove_dir_all(cluster.members[3].data_dir.join("member/wal"))?;
    let before = files::sums(&cluster.members[0].data_dir)?;
    repaired(&cluster, "G0: ", "it stays the learner")?;
    ensure!(
        files::sums(&cluster.members[0].data_dir)? == before,
        "a voter was changed"
    );
    judge(&mut cluster, "refilled")?;

    // A voter, too, has lost its end, so that one is taken in anew; the learner with it.
    fs::remove_dir_all(cluster.members[1].data_dir.join("member/wal"))?;
    fs::remove_dir_all(cluster.members[3].data_dir.join("member"))?;
    repaired(&cluster, "G1: ", "into the etcd cluster anew")?;
    judge(&mut cluster, "readmitted")?;

    // The voters lost what makes a new cluster of all.
    for number in [0, 1] {
        fs::remove_dir_all(cluster.members[number].data_dir.join("member/wal"))?;
    }
    repaired(&cluster, "G2: ", "as a new cluster")?;
    judge(&mut cluster, "cloned")?;

    // A database that another's replaces.
    cut(&cluster.members[3].data_dir.join("member/snap/db"), 8192)?;
    repaired(&cluster, "G0: ", "what it lacks beside its own log")?;
    judge(&mut cluster, "relaid")
}

/// On a copy: removed with three disks, and alone with one of them. Gives its ID.
fn never_came(cluster: &mut Cluster) -> Result<String> {
    let url = cluster.members[3].peer_url();
    let list = cluster.ctl(0).args(["member", "list"]).ok()?.stdout;
    let line = list
        .lines()
        .find(|line| line.contains(&url))
        .context("the learner")?;
    let id = line.split(", ").next().context("an ID")?.to_owned();
    cluster.kill()?;
    let kept = tempfile::tempdir()?;
    for number in 0..3 {
        etcd::copy(
            &cluster.members[number].data_dir,
            &kept.path().join(number.to_string()),
        )?;
    }
    let status = rescue(cluster, "etcd status", &[0, 1, 2])?;
    ensure!(
        status
            .stdout
            .contains(&format!("rescue etcd remove-member {id}")),
        "{}",
        status.transcript()
    );
    let dry = rescue(
        cluster,
        &format!("etcd remove-member {id} --dry-run"),
        &[0, 1, 2],
    )?;
    ensure!(
        dry.stdout
            .contains(&format!("remove {id}, which has never joined")),
        "{}",
        dry.transcript()
    );
    let removed = rescue(
        cluster,
        &format!("etcd remove-member {id} --yes"),
        &[0, 1, 2],
    )?;
    ensure!(
        removed.code == 0 && removed.stdout.contains("G1: "),
        "{}",
        removed.transcript()
    );
    cluster.run_only(&[0, 1, 2])?;
    let list = cluster.ctl(0).args(["member", "list"]).ok()?.stdout;
    ensure!(list.lines().count() == 3 && !list.contains(&id), "{list}");
    cluster.put("without", "it")?;
    cluster.kill()?;
    for number in 0..3 {
        let data_dir = &cluster.members[number].data_dir;
        fs::remove_dir_all(data_dir)?;
        etcd::copy(&kept.path().join(number.to_string()), data_dir)?;
        let runs = guest::root_of(data_dir).join("var/lib/rescue");
        if runs.exists() {
            fs::remove_dir_all(runs)?;
        }
    }
    // Only one voter is left, and the learner goes with the two others.
    let alone = format!("etcd remove-member {id} --dry-run --declare-dead m2 --declare-dead m3");
    let alone = rescue(cluster, &alone, &[0])?;
    ensure!(
        alone.stdout.contains("goes on with m1"),
        "{}",
        alone.transcript()
    );
    Ok(id)
}
