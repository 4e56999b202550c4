//! A cluster whose databases are full (NOSPACE), made small offline on all members at once: real
//! etcd must take writes again, for good.

use std::collections::BTreeSet;
use std::fs;

use anyhow::{Context as _, Result, ensure};
use tests::etcd::{self, Cluster, Version, files, guest};
use tests::{Cmd, rescue_binary};

const QUOTA: &str = "--quota-backend-bytes=25000000";

/// Three guests whose etcd has raised the alarm and takes no writes.
fn full(version: &Version) -> Result<Cluster> {
    let mut cluster = Cluster::prepare(version, 3, 10_000, guest::place)?;
    cluster.flags = vec![QUOTA.to_owned()];
    guest::make_all(&cluster, &cluster.flags)?;
    cluster.run()?;
    cluster.put_many("kept", 50, "value")?;
    let mut written = 0;
    while written < 60
        && cluster
            .put_large(&format!("large{}", written % 2), 1_000_000)
            .is_ok()
    {
        written += 1;
    }
    ensure!((10..60).contains(&written), "{written} large values fit");
    ensure!(alarms(&cluster)?.contains("NOSPACE"), "no alarm");
    Ok(cluster)
}

/// Writes that etcd refuses; some of them are in its log.
fn refused(cluster: &Cluster) -> Result<()> {
    for number in 0..3 {
        let put = cluster.ctl(number).args(["put", "refused", "y"]).run()?;
        ensure!(
            put.code != 0 && put.stderr.contains("space exceeded"),
            "{}",
            put.transcript()
        );
    }
    Ok(())
}

fn alarms(cluster: &Cluster) -> Result<String> {
    cluster
        .ctl(0)
        .args(["alarm", "list"])
        .ok()
        .map(|ran| ran.stdout)
}

#[test]
fn three_full_members_take_writes_again() -> Result<()> {
    let mut versions = vec![Version::debian(), Version::newest()?];
    if etcd::long() {
        versions.push(Version::wheel()?);
    }
    for version in versions {
        for settled in [true, false] {
            case(&version, settled)
                .with_context(|| format!("etcd {}, settled: {settled}", version.number))?;
        }
    }
    Ok(())
}

/// `settled`: whether all members were left alone for a moment before they were killed, so that
/// their logs are the same.
fn case(version: &Version, settled: bool) -> Result<()> {
    let mut cluster = full(version)?;
    let (keys, revision) = cluster.keys(0)?;
    refused(&cluster)?;
    if settled {
        std::thread::sleep(std::time::Duration::from_millis(700));
    }
    cluster.kill()?;
    let size = |cluster: &Cluster, number: usize| {
        Ok::<_, anyhow::Error>(
            fs::metadata(files::database(&cluster.members[number].data_dir))?.len(),
        )
    };
    let before = size(&cluster, 0)?;
    let roots = cluster
        .members
        .iter()
        .map(|member| guest::root_of(&member.data_dir));
    let defrag = Cmd::new(rescue_binary()).args(["etcd", "defrag", "--compact", "--yes", "--json"]);
    let ran = roots
        .fold(defrag, |defrag, root| defrag.arg("--root").arg(root))
        .ok()?;
    let found = ran.json()?["plan"]["found"].clone();
    let lifted = found["alarm_lifted"] == true;
    ensure!(
        !settled || lifted && found["compact_at"] == revision,
        "{}",
        ran.transcript()
    );
    ensure!(
        lifted || found["alarm_not_lifted"].is_string(),
        "{}",
        ran.transcript()
    );
    for number in 0..3 {
        let now = size(&cluster, number)?;
        ensure!(
            found["compact_at"] != revision || now * 4 < before,
            "{before} bytes became {now}"
        );
        etcd::check_database(version, &files::database(&cluster.members[number].data_dir))?;
    }
    // Twice: an alarm that is still in a log would be back after the second start.
    for start in 1..=2 {
        cluster.run()?;
        ensure!(
            alarms(&cluster)?.trim().is_empty() == (lifted || start > 1),
            "start {start}: {}",
            ran.transcript()
        );
        if !lifted && start == 1 {
            cluster.ctl(0).args(["alarm", "disarm"]).ok()?;
        }
        let (held, _) = cluster.keys(1)?;
        let old: Vec<_> = held
            .into_iter()
            .filter(|key| !key.key.starts_with("after"))
            .collect();
        let differ: Vec<_> = old
            .iter()
            .filter(|key| !keys.contains(key))
            .chain(keys.iter().filter(|key| !old.contains(key)))
            .collect();
        ensure!(
            differ.is_empty(),
            "start {start}: {differ:?} differ, {}",
            ran.transcript()
        );
        cluster.put(&format!("after{start}"), "1")?;
        let at = cluster.keys(2)?.1;
        let hashes = (0..3)
            .map(|number| cluster.hash(number, at))
            .collect::<Result<BTreeSet<_>>>()?;
        ensure!(hashes.len() == 1, "start {start}: {hashes:?}");
        cluster.kill()?;
    }
    Ok(())
}
