//! Data folders damaged as a power cut damages them: what `rescue etcd status` says of each, real
//! etcd must confirm; and where `rescue repair` mends it, real etcd must then hold every write that
//! was acknowledged, at its revision.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use tests::etcd::files::{database, logs, snapshots, sums, write_at};
use tests::etcd::{self, Cluster, Key, Version, guest};
use tests::{Cmd, rescue_binary};

/// A killed member with a snapshot and a log of more than one file, in a guest of its own.
struct Subject {
    folder: tempfile::TempDir,
    /// What it held: keys, revision.
    held: (Vec<Key>, i64),
}

impl Subject {
    fn new(version: &Version) -> Result<Self> {
        let mut cluster = Cluster::start(version, 1, 30)?;
        cluster.put_many("k", 50, "value")?;
        for number in 0..66 {
            cluster.put_large(&format!("large{}", number % 3), 1_000_000)?;
        }
        for number in 0..45 {
            cluster.put(&format!("small{number}"), "x")?;
        }
        let folder = tempfile::tempdir()?;
        cluster.kill()?;
        // An older database, as a rolled back disk has it.
        etcd::copy(
            &database(&cluster.members[0].data_dir),
            &folder.path().join("old-db"),
        )?;
        cluster.run()?;
        for number in 0..65 {
            cluster.put(&format!("later{number}"), "x")?;
        }
        let held = cluster.keys(0)?;
        cluster.kill()?;
        etcd::copy(&cluster.members[0].data_dir, &folder.path().join("whole"))?;
        Ok(Self { folder, held })
    }

    /// A guest whose `/var/lib/etcd` is a fresh copy.
    fn guest(&self) -> Result<PathBuf> {
        let root = self.folder.path().join("guest");
        if root.exists() {
            fs::remove_dir_all(&root)?;
        }
        guest::make(&root, "m1", &[])?;
        etcd::copy(
            &self.folder.path().join("whole"),
            &root.join("var/lib/etcd"),
        )?;
        Ok(root)
    }
}

/// Where the used part of a log's file ends: behind its last byte that is not zero, whole frames.
fn used(path: &Path) -> Result<u64> {
    let bytes = fs::read(path)?;
    let end = bytes
        .iter()
        .rposition(|byte| *byte != 0)
        .context("an empty log")?
        + 1;
    Ok(end.next_multiple_of(8) as u64)
}

/// What a case may need besides the data folder: the older database.
type Damage = fn(&Path, &Path) -> Result<()>;

/// What becomes of a member.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// It starts and takes writes.
    Works,
    /// It starts and takes none.
    Breaks,
    /// It does not start.
    Stops,
    /// It does not start, or takes no writes, and `rescue repair` mends it without a loss.
    Mended,
}

/// Name, what is done, the problem that must be told, and what etcd makes of it.
const CASES: &[(&str, Damage, Option<&str>, Fate)] = &[
    ("nothing", |_, _| Ok(()), None, Fate::Works),
    (
        "the log's end is cut within a record",
        |dir, _| {
            let last = logs(dir)?.pop().context("a log")?;
            Ok(fs::OpenOptions::new()
                .write(true)
                .open(&last)?
                .set_len(used(&last)? - 5)?)
        },
        Some("tail-torn"),
        Fate::Works,
    ),
    (
        "an entry of the log's last file is damaged",
        |dir, _| {
            let last = logs(dir)?.pop().context("a log")?;
            let bytes = fs::read(&last)?;
            let at = bytes
                .windows(7)
                .position(|bytes| bytes == b"later40")
                .context("an entry")?;
            write_at(&last, b"LATER", at as u64)
        },
        Some("tail-damaged"),
        Fate::Mended,
    ),
    (
        "an old file of the log is damaged",
        |dir, _| write_at(&logs(dir)?[0], &[0x55; 64], 20_000_000),
        Some("old-log-damaged"),
        Fate::Mended,
    ),
    (
        "the newest file of the log is gone",
        |dir, _| Ok(fs::remove_file(logs(dir)?.pop().context("a log")?)?),
        Some("database-beyond-log"),
        Fate::Breaks,
    ),
    (
        "the log is gone",
        |dir, _| Ok(fs::remove_dir_all(dir.join("member/wal"))?),
        Some("no-log"),
        Fate::Stops,
    ),
    (
        "all snapshots are gone",
        |dir, _| {
            for snapshot in snapshots(dir)? {
                fs::remove_file(snapshot)?;
            }
            // With its first file a log can be replayed from nothing.
            Ok(fs::remove_file(&logs(dir)?[0])?)
        },
        Some("snapshot-missing"),
        Fate::Mended,
    ),
    (
        "the newest snapshot is empty",
        |dir, _| Ok(fs::write(snapshots(dir)?.pop().context("a snapshot")?, "")?),
        Some("snapshot-damaged"),
        Fate::Works,
    ),
    (
        "the database is gone",
        |dir, _| Ok(fs::remove_file(database(dir))?),
        Some("no-database"),
        Fate::Mended,
    ),
    (
        "the database is cut short",
        |dir, _| {
            Ok(fs::OpenOptions::new()
                .write(true)
                .open(database(dir))?
                .set_len(1 << 20)?)
        },
        Some("database-damaged"),
        Fate::Stops,
    ),
    (
        "both meta pages are zeros",
        |dir, _| write_at(&database(dir), &[0; 8192], 0),
        Some("database-damaged"),
        Fate::Stops,
    ),
    (
        "the database's root page is zeros",
        |dir, _| {
            let bytes = fs::read(database(dir))?;
            let word = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
            let newest = if word(16 + 48) > word(4096 + 16 + 48) {
                0
            } else {
                4096
            };
            write_at(&database(dir), &[0; 4096], word(newest + 16 + 16) * 4096)
        },
        Some("database-damaged"),
        Fate::Mended,
    ),
    (
        "a record of an impossible length was begun",
        |dir, _| {
            let last = logs(dir)?.pop().context("a log")?;
            write_at(&last, &[0x41; 40], used(&last)?)
        },
        Some("tail-torn"),
        Fate::Mended,
    ),
    (
        "a record that was never whole follows the last",
        |dir, _| {
            let last = logs(dir)?.pop().context("a log")?;
            let record = [
                &[22, 0, 0, 0, 0, 0, 0, 0x82, 8, 2, 16, 1, 26, 16][..],
                &[7; 18],
            ]
            .concat();
            write_at(&last, &record, used(&last)?)
        },
        Some("tail-damaged"),
        Fate::Mended,
    ),
    (
        "the database is older than the snapshot",
        |dir, old| Ok(fs::copy(old, database(dir)).map(|_| ())?),
        Some("snapshot-ahead"),
        Fate::Mended,
    ),
];

#[test]
fn real_etcd_confirms_what_is_said_of_damage() -> Result<()> {
    for version in etcd::versions_to_damage()? {
        let subject = Subject::new(&version)?;
        for (name, damage, kind, fate) in CASES {
            case(&version, &subject, *damage, *kind, *fate)
                .with_context(|| format!("etcd {}: {name}", version.name))?;
        }
    }
    Ok(())
}

fn case(
    version: &Version,
    subject: &Subject,
    damage: Damage,
    kind: Option<&str>,
    fate: Fate,
) -> Result<()> {
    let root = subject.guest()?;
    let data_dir = root.join("var/lib/etcd");
    damage(&data_dir, &subject.folder.path().join("old-db")).context("damaging")?;
    let ran = Cmd::new(rescue_binary())
        .args(["etcd", "status", "--json", "--data-dir"])
        .arg(&data_dir)
        .run()?;
    let status = ran.json()?;
    let member = &status["etcd"]["members"][0];
    let problems = &member["problems"];
    let kinds: Vec<&str> = problems
        .as_array()
        .context("problems")?
        .iter()
        .filter_map(|p| p["kind"].as_str())
        .collect();
    match kind {
        Some(kind) => ensure!(kinds.contains(&kind), "{problems:#}"),
        None => ensure!(kinds.is_empty(), "{problems:#}"),
    }
    ensure!(
        member["boots"] == matches!(fate, Fate::Works | Fate::Breaks),
        "{problems:#}"
    );
    if fate != Fate::Works {
        // On a copy: etcd may change what it refuses.
        let copy = subject.folder.path().join("judged");
        etcd::copy(&data_dir, &copy)?;
        let real = etcd::starts(version, &copy)?;
        fs::remove_dir_all(&copy)?;
        ensure!(real.is_err(), "etcd itself starts");
    }
    let repair = repair(&root)?;
    match fate {
        Fate::Works | Fate::Mended => {
            ensure!(repair.code == 0, "{}", repair.transcript());
            let held = etcd::holds(version, &data_dir)?;
            let held = held.map_err(|says| anyhow::anyhow!("etcd does not start: {says}"))?;
            ensure!(
                held.1 == subject.held.1,
                "revision {} instead of {}",
                held.1,
                subject.held.1
            );
            ensure!(held.0 == subject.held.0, "keys differ");
        }
        // Nothing mends it without a loss; where something is left to build upon, that is offered.
        Fate::Breaks | Fate::Stops => {
            ensure!(matches!(repair.code, 1 | 3), "{}", repair.transcript());
            if repair.stderr.contains("--accept-loss") {
                let args = [
                    "repair",
                    "--yes",
                    "--only",
                    "etcd",
                    "--accept-loss",
                    "--root",
                ];
                let repair = Cmd::new(rescue_binary()).args(args).arg(&root).run()?;
                ensure!(
                    repair.code == 0 && repair.stdout.contains("G3: "),
                    "{}",
                    repair.transcript()
                );
                let held = etcd::holds(version, &data_dir)?;
                let held = held.map_err(|says| anyhow::anyhow!("etcd does not start: {says}"))?;
                ensure!(
                    held.1 <= subject.held.1,
                    "revision {} after {}",
                    held.1,
                    subject.held.1
                );
            }
        }
    }
    Ok(())
}

fn repair(root: &Path) -> Result<tests::Ran> {
    Cmd::new(rescue_binary())
        .args(["repair", "--yes", "--only", "etcd", "--root"])
        .arg(root)
        .run()
}

#[test]
fn a_mended_member_can_be_taken_back() -> Result<()> {
    let version = Version::debian();
    let mut cluster = Cluster::start(&version, 1, 10_000)?;
    cluster.put_many("k", 30, "value")?;
    cluster.kill()?;
    let folder = tempfile::tempdir()?;
    etcd::copy(&cluster.members[0].data_dir, &folder.path().join("whole"))?;
    let subject = Subject {
        folder,
        held: (Vec::new(), 0),
    };
    let root = subject.guest()?;
    let data_dir = root.join("var/lib/etcd");
    let last = logs(&data_dir)?.pop().context("a log")?;
    write_at(&last, &[0x41; 40], used(&last)?)?;
    let before = sums(&data_dir)?;
    let repaired = repair(&root)?;
    ensure!(repaired.code == 0, "{}", repaired.transcript());
    ensure!(sums(&data_dir)? != before);
    Cmd::new(rescue_binary())
        .args(["undo", "--yes", "--root"])
        .arg(&root)
        .ok()?;
    ensure!(sums(&data_dir)? == before, "undo left something");
    Ok(())
}

#[test]
fn one_of_three_is_not_cut_where_it_may_have_promised() -> Result<()> {
    let version = Version::debian();
    let mut cluster = Cluster::start(&version, 3, 10_000)?;
    cluster.put_many("k", 30, "value")?;
    cluster.kill()?;
    let folder = tempfile::tempdir()?;
    etcd::copy(&cluster.members[0].data_dir, &folder.path().join("whole"))?;
    let subject = Subject {
        folder,
        held: (Vec::new(), 0),
    };
    let root = subject.guest()?;
    let data_dir = root.join("var/lib/etcd");
    let last = logs(&data_dir)?.pop().context("a log")?;
    let record = [
        &[22, 0, 0, 0, 0, 0, 0, 0x82, 8, 2, 16, 1, 26, 16][..],
        &[7; 18],
    ]
    .concat();
    write_at(&last, &record, used(&last)?)?;
    let before = sums(&data_dir)?;
    let repaired = repair(&root)?;
    let told = repaired.stdout.contains("may have promised") && repaired.stderr.contains("m2, m3");
    ensure!(repaired.code == 3 && told, "{}", repaired.transcript());
    ensure!(sums(&data_dir)? == before, "something was changed");
    Ok(())
}
