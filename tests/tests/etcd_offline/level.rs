//! Entries that one disk alone holds: `rescue repair` gives them to the others, and real etcd must
//! have them when only those start.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use tests::etcd::files::cut;
use tests::etcd::{self, Cluster, Version, guest};
use tests::{Cmd, Ran, rescue_binary};

use super::members::judge;

/// Writes that the leader alone gets.
const MORE: usize = 5;

fn cluster(version: &Version, size: usize) -> Result<Cluster> {
    let mut cluster = Cluster::prepare(version, size, 40, guest::place)?;
    guest::make_all(&cluster, &[])?;
    cluster.run()?;
    cluster.put_many("k", 100, "value")?;
    for number in 0..60 {
        cluster.put(&format!("small{number}"), "x")?;
    }
    // All databases get what is agreed on.
    std::thread::sleep(Duration::from_millis(400));
    Ok(cluster)
}

/// Who leads of those that run.
fn leader(cluster: &Cluster, running: &[usize]) -> Result<usize> {
    for number in running {
        let status = cluster
            .ctl(*number)
            .args(["endpoint", "status", "-w", "json"])
            .ok()?
            .json()?;
        let status = &status[0]["Status"];
        if status["leader"].is_u64() && status["leader"] == status["header"]["member_id"] {
            return Ok(*number);
        }
    }
    anyhow::bail!("nobody leads")
}

/// Ends all but the leader of those that run, and writes through it: it keeps the entries in its
/// log, which nobody else gets.
fn write_alone(cluster: &mut Cluster, running: &[usize], prefix: &str) -> Result<usize> {
    let leader = leader(cluster, running)?;
    for number in running.iter().filter(|number| **number != leader) {
        cluster.members[*number].kill()?;
    }
    std::thread::scope(|scope| {
        for number in 0..MORE {
            let put = cluster.ctl(leader).args([
                "--command-timeout=900ms",
                "put",
                &format!("{prefix}{number}"),
                "x",
            ]);
            scope.spawn(move || put.run());
        }
    });
    cluster.kill()?;
    Ok(leader)
}

fn repair(cluster: &Cluster, command: &str) -> Result<Ran> {
    with_roots(
        cluster,
        Cmd::new(rescue_binary())
            .args(command.split(' '))
            .arg("--yes"),
    )
    .run()
}

fn with_roots(cluster: &Cluster, command: Cmd) -> Cmd {
    let members = cluster.members.iter();
    members.fold(command, |command, member| {
        command.arg("--root").arg(guest::root_of(&member.data_dir))
    })
}

fn sums(cluster: &Cluster) -> Result<String> {
    let sums = cluster
        .members
        .iter()
        .map(|member| etcd::files::sums(&member.data_dir));
    sums.collect::<Result<Vec<_>>>().map(|sums| sums.concat())
}

/// How many keys begin so.
fn count(cluster: &Cluster, number: usize, prefix: &str) -> Result<usize> {
    Ok(cluster
        .keys(number)?
        .0
        .iter()
        .filter(|key| key.key.starts_with(prefix))
        .count())
}

/// Repairs, and starts only those that had not held the entries; at last all, which must be the
/// same.
fn level(cluster: &mut Cluster, newest: usize, says: &[&str]) -> Result<()> {
    let before = sums(cluster)?;
    let one = Cmd::new(rescue_binary()).args(["repair", "--only", "etcd", "--dry-run", "--root"]);
    let one = one
        .arg(guest::root_of(&cluster.members[newest].data_dir))
        .run()?;
    ensure!(
        !one.stdout.contains("level etcd"),
        "with one disk nothing is levelled: {}",
        one.transcript()
    );
    let inspect = Cmd::new(rescue_binary()).args(["inspect", "--only", "etcd"]);
    let inspected = with_roots(cluster, inspect).run()?;
    let is_shown = inspected.stdout.contains("For all nodes together")
        && inspected.stdout.contains("Next: rescue repair");
    ensure!(
        inspected.code == 1 && is_shown && inspected.stdout.contains("G0: "),
        "{}",
        inspected.transcript()
    );
    let ran = repair(cluster, "repair --only etcd")?;
    let is_told = says.iter().all(|says| ran.stdout.contains(says));
    ensure!(
        ran.code == 0 && ran.stdout.contains("G0: ") && is_told,
        "{}",
        ran.transcript()
    );
    let undone = repair(cluster, "undo")?;
    ensure!(
        undone.code == 0 && sums(cluster)? == before,
        "{}",
        undone.transcript()
    );
    let ran = repair(cluster, "repair --only etcd --json")?;
    let done = &ran.json()?["receipt"]["together"][0];
    let summary = done["summary"].as_str().unwrap_or_default();
    let is_levelled =
        summary.starts_with("level etcd's logs") == says[0].starts_with("level etcd's logs");
    ensure!(
        ran.code == 0 && done["guarantee"] == "G0" && is_levelled,
        "{}",
        ran.transcript()
    );
    let again = repair(cluster, "repair --only etcd")?;
    ensure!(
        again.code == 0 && again.stdout.contains("othing to"),
        "a second time: {}",
        again.transcript()
    );
    let inspect = Cmd::new(rescue_binary()).args(["inspect", "--only", "etcd", "--json"]);
    let inspected = with_roots(cluster, inspect).run()?;
    ensure!(
        inspected.code == 0 && inspected.json()?["together"] == serde_json::json!([]),
        "{}",
        inspected.transcript()
    );
    let all: Vec<usize> = (0..cluster.members.len()).collect();
    let others: Vec<usize> = all
        .iter()
        .copied()
        .filter(|number| *number != newest)
        .take(all.len() / 2 + 1)
        .collect();
    cluster.run_only(&others)?;
    let held = cluster.keys(others[0])?;
    let more = count(cluster, others[0], "more")?;
    ensure!(
        more == MORE,
        "{more} of {MORE} writes are there\n{}",
        cluster.last_words()
    );
    ensure!(
        count(cluster, others[0], "ghost")? == 0,
        "what was overwritten came back"
    );
    cluster.kill()?;
    judge(cluster, &all, &held)
}

#[test]
fn what_one_disk_alone_holds_is_given_to_the_others() -> Result<()> {
    for version in [Version::debian(), Version::newest()?] {
        for size in [3, 5] {
            let mut cluster = cluster(&version, size)?;
            let all: Vec<usize> = (0..size).collect();
            let newest = write_alone(&mut cluster, &all, "more")?;
            if size == 3 {
                // Without a repair the two elect one another, and drop what the third holds.
                let kept = tempfile::tempdir()?;
                let dirs: Vec<PathBuf> = cluster
                    .members
                    .iter()
                    .map(|member| member.data_dir.clone())
                    .collect();
                for (number, dir) in dirs.iter().enumerate() {
                    etcd::copy(dir, &kept.path().join(number.to_string()))?;
                }
                let others: Vec<usize> = all
                    .iter()
                    .copied()
                    .filter(|number| *number != newest)
                    .collect();
                cluster.run_only(&others)?;
                ensure!(
                    count(&cluster, others[0], "more")? == 0,
                    "the others had it already"
                );
                cluster.kill()?;
                for (number, dir) in dirs.iter().enumerate() {
                    fs::remove_dir_all(dir)?;
                    etcd::copy(&kept.path().join(number.to_string()), dir)?;
                }
            }
            level(&mut cluster, newest, &["level etcd's logs"])
                .with_context(|| format!("etcd {}, {size} members", version.number))?;
        }
    }
    Ok(())
}

/// A leader of an older term wrote what nobody else got; then the others went on without it.
#[test]
fn what_contradicts_the_newest_log_is_replaced() -> Result<()> {
    for version in [Version::debian(), Version::newest()?] {
        let mut cluster = cluster(&version, 3)?;
        let old = write_alone(&mut cluster, &[0, 1, 2], "ghost")?;
        let others: Vec<usize> = (0..3).filter(|number| *number != old).collect();
        cluster.run_only(&others)?;
        cluster.ctl(others[0]).args(["put", "kept", "x"]).ok()?;
        std::thread::sleep(Duration::from_millis(400));
        let newest = write_alone(&mut cluster, &others, "more")?;
        level(
            &mut cluster,
            newest,
            &["level etcd's logs", "in the place of"],
        )
        .with_context(|| format!("etcd {}", version.number))?;
    }
    Ok(())
}

/// One of the members that lag needs another database as well.
#[test]
fn a_member_that_is_relaid_gets_the_entries_too() -> Result<()> {
    for version in [Version::debian(), Version::newest()?] {
        let mut cluster = cluster(&version, 3)?;
        let newest = write_alone(&mut cluster, &[0, 1, 2], "more")?;
        cut(
            &cluster.members[(newest + 1) % 3]
                .data_dir
                .join("member/snap/db"),
            8192,
        )?;
        level(&mut cluster, newest, &["beside its own log", "append"])
            .with_context(|| format!("etcd {}", version.number))?;
    }
    Ok(())
}

/// The only log that holds the last entries is damaged before them.
#[test]
fn what_lies_behind_damage_is_taken_over() -> Result<()> {
    for version in [Version::debian(), Version::newest()?] {
        let mut cluster = cluster(&version, 3)?;
        let newest = write_alone(&mut cluster, &[0, 1, 2], "more")?;
        let dir = cluster.members[newest].data_dir.clone();
        let (guest, data) = super::members::guest(&dir)?;
        let last = data.log.tail().context("a log")?;
        let at = super::members::offset_of(&guest, &data, data.log.last - 15)?;
        etcd::files::write_at(
            &dir.join(last.segment.path.as_path().strip_prefix("/")?),
            &[0x55; 64],
            at,
        )?;
        let before = sums(&cluster)?;
        let ran = repair(&cluster, "repair --only etcd")?;
        let is_told =
            ran.stdout.contains("Behind its damage the log of") && ran.stdout.contains("G1: ");
        ensure!(
            ran.code == 0 && is_told,
            "etcd {}: {}",
            version.number,
            ran.transcript()
        );
        let undone = repair(&cluster, "undo")?;
        ensure!(
            undone.code == 0 && sums(&cluster)? == before,
            "{}",
            undone.transcript()
        );
        ensure!(
            repair(&cluster, "repair --only etcd")?.code == 0,
            "a second time"
        );
        cluster.run()?;
        let held = cluster.keys(newest)?;
        let more = count(&cluster, newest, "more")?;
        ensure!(
            more == MORE,
            "etcd {}: {more} of {MORE} writes are there",
            version.number
        );
        cluster.kill()?;
        judge(&mut cluster, &[0, 1, 2], &held)?;
    }
    Ok(())
}

/// The only log that is left is damaged before the database's last entry: what follows that is in
/// neither of the two parts that can be read alone.
#[test]
fn a_log_that_is_damaged_before_its_database_goes_on_behind_it() -> Result<()> {
    for version in [Version::debian(), Version::newest()?] {
        for size in [1, 3] {
            let mut cluster = cluster(&version, size)?;
            let dir = cluster.members[0].data_dir.clone();
            let db = etcd::files::database(&dir);
            let earlier = fs::read(&db)?;
            for number in 0..MORE {
                cluster.put(&format!("more{number}"), "x")?;
            }
            // So that it has them all.
            std::thread::sleep(Duration::from_millis(400));
            cluster.kill()?;
            fs::write(&db, earlier)?;
            for member in &cluster.members[1..] {
                fs::remove_dir_all(member.data_dir.join("member"))?;
            }
            let (guest, data) = super::members::guest(&dir)?;
            let last = data.log.tail().context("a log")?;
            let at = super::members::offset_of(&guest, &data, data.log.last - 15)?;
            etcd::files::write_at(
                &dir.join(last.segment.path.as_path().strip_prefix("/")?),
                &[0x55; 64],
                at,
            )?;
            ensure!(
                super::members::guest(&dir)?.1.log.last < data.consistent_index(),
                "the log does not end before"
            );
            let ran = repair(&cluster, "repair --only etcd --accept-loss")?;
            let promised = if size == 1 { "G1: " } else { "G2: " };
            let is_told = ran.stdout.contains("Behind its damage the log of")
                && ran.stdout.contains(promised);
            ensure!(
                ran.code == 0 && is_told,
                "etcd {}: {}",
                version.number,
                ran.transcript()
            );
            cluster.run()?;
            let held = cluster.keys(0)?;
            let more = count(&cluster, 0, "more")?;
            ensure!(
                more == MORE,
                "etcd {}: {more} of {MORE} writes are there",
                version.number
            );
            cluster.kill()?;
            judge(&mut cluster, &(0..size).collect::<Vec<_>>(), &held)?;
        }
    }
    Ok(())
}

/// An only member answers when an entry is on its own disk. What says behind a damaged one that it
/// was agreed on proves that it was no torn write, and it is not cut off as one.
#[test]
fn an_only_member_s_log_is_not_cut_where_it_was_whole_once() -> Result<()> {
    for version in [Version::debian(), Version::newest()?] {
        let mut cluster = cluster(&version, 1)?;
        let dir = cluster.members[0].data_dir.clone();
        let db = etcd::files::database(&dir);
        let earlier = fs::read(&db)?;
        for number in 0..MORE {
            cluster.put(&format!("more{number}"), "x")?;
        }
        cluster.kill()?;
        fs::write(&db, earlier)?;
        let (guest, data) = super::members::guest(&dir)?;
        let last = data.log.tail().context("a log")?;
        let at = super::members::offset_of(&guest, &data, data.log.last - 3)?;
        etcd::files::write_at(
            &dir.join(last.segment.path.as_path().strip_prefix("/")?),
            &[0x55; 4],
            at + 20,
        )?;
        let before = sums(&cluster)?;
        let refused = repair(&cluster, "repair --only etcd")?;
        let is_told = refused.stderr.contains("--accept-loss") && refused.stdout.contains("G3: ");
        ensure!(
            refused.code == 3 && is_told && sums(&cluster)? == before,
            "{}",
            refused.transcript()
        );
        let ran = repair(&cluster, "repair --only etcd --accept-loss")?;
        ensure!(
            ran.code == 0 && ran.stdout.contains("before its damage"),
            "{}",
            ran.transcript()
        );
        cluster.run()?;
        let more = count(&cluster, 0, "more")?;
        ensure!(
            (1..MORE).contains(&more),
            "etcd {}: {more} of {MORE} writes are there",
            version.number
        );
        cluster.kill()?;
    }
    Ok(())
}
