//! Data folders damaged as a power cut damages them: what `rescue etcd status` says of each, real etcd must confirm.

use std::fs;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use tests::etcd::{self, Cluster, Version};
use tests::{Cmd, rescue_binary};

/// A killed member with a snapshot and a log of more than one file.
struct Subject {
    folder: tempfile::TempDir,
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
        cluster.kill()?;
        let folder = tempfile::tempdir()?;
        etcd::copy(&cluster.members[0].data_dir, &folder.path().join("whole"))?;
        Ok(Self { folder })
    }

    /// A fresh copy.
    fn copy(&self) -> Result<PathBuf> {
        let copy = self.folder.path().join("copy");
        if copy.exists() {
            fs::remove_dir_all(&copy)?;
        }
        etcd::copy(&self.folder.path().join("whole"), &copy)?;
        Ok(copy)
    }
}

fn names(folder: &Path, end: &str) -> Result<Vec<PathBuf>> {
    let mut names: Vec<PathBuf> = fs::read_dir(folder)?
        .map(|entry| Ok(entry?.path()))
        .collect::<Result<Vec<_>>>()?
        .into_iter()
        .filter(|path| path.to_string_lossy().ends_with(end))
        .collect();
    names.sort();
    Ok(names)
}

fn logs(data_dir: &Path) -> Result<Vec<PathBuf>> {
    names(&data_dir.join("member/wal"), ".wal")
}

fn snapshots(data_dir: &Path) -> Result<Vec<PathBuf>> {
    names(&data_dir.join("member/snap"), ".snap")
}

fn database(data_dir: &Path) -> PathBuf {
    data_dir.join("member/snap/db")
}

/// Where the used part of a log's file ends: behind its last byte that is not zero, whole frames.
fn used(path: &Path) -> Result<u64> {
    let bytes = fs::read(path)?;
    let end = bytes.iter().rposition(|byte| *byte != 0).context("an empty log")? + 1;
    Ok(end.next_multiple_of(8) as u64)
}

fn write_at(path: &Path, bytes: &[u8], offset: u64) -> Result<()> {
    Ok(fs::OpenOptions::new().write(true).open(path)?.write_all_at(bytes, offset)?)
}

type Damage = fn(&Path) -> Result<()>;

/// What becomes of a member.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// It starts and takes writes.
    Works,
    /// It starts and takes none.
    Breaks,
    /// It does not start.
    Stops,
}

/// Name, what is done, the problem that must be told, and what etcd makes of it.
const CASES: &[(&str, Damage, Option<&str>, Fate)] = &[
    ("nothing", |_| Ok(()), None, Fate::Works),
    (
        "the log's end is cut within a record",
        |dir| {
            let last = logs(dir)?.pop().context("a log")?;
            Ok(fs::OpenOptions::new().write(true).open(&last)?.set_len(used(&last)? - 5)?)
        },
        Some("tail-torn"),
        Fate::Works,
    ),
    (
        "a bit of the log's last record is flipped",
        |dir| {
            let last = logs(dir)?.pop().context("a log")?;
            let at = used(&last)? - 9;
            let byte = fs::read(&last)?[at as usize];
            write_at(&last, &[byte ^ 1], at)
        },
        Some("tail-damaged"),
        Fate::Stops,
    ),
    (
        "an old file of the log is damaged",
        |dir| write_at(&logs(dir)?[0], &[0x55; 64], 20_000_000),
        Some("old-log-damaged"),
        Fate::Stops,
    ),
    (
        "the newest file of the log is gone",
        |dir| Ok(fs::remove_file(logs(dir)?.pop().context("a log")?)?),
        Some("database-beyond-log"),
        Fate::Breaks,
    ),
    ("the log is gone", |dir| Ok(fs::remove_dir_all(dir.join("member/wal"))?), Some("no-log"), Fate::Stops),
    (
        "all snapshots are gone",
        |dir| {
            for snapshot in snapshots(dir)? {
                fs::remove_file(snapshot)?;
            }
            // With its first file a log can be replayed from nothing.
            Ok(fs::remove_file(&logs(dir)?[0])?)
        },
        Some("snapshot-missing"),
        Fate::Stops,
    ),
    (
        "the newest snapshot is empty",
        |dir| Ok(fs::write(snapshots(dir)?.pop().context("a snapshot")?, "")?),
        Some("snapshot-damaged"),
        Fate::Works,
    ),
    ("the database is gone", |dir| Ok(fs::remove_file(database(dir))?), Some("no-database"), Fate::Stops),
    (
        "the database is cut short",
        |dir| Ok(fs::OpenOptions::new().write(true).open(database(dir))?.set_len(1 << 20)?),
        Some("database-damaged"),
        Fate::Stops,
    ),
    ("both meta pages are zeros", |dir| write_at(&database(dir), &[0; 8192], 0), Some("database-damaged"), Fate::Stops),
    (
        "the database's root page is zeros",
        |dir| {
            let bytes = fs::read(database(dir))?;
            let word = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
            let newest = if word(16 + 48) > word(4096 + 16 + 48) { 0 } else { 4096 };
            write_at(&database(dir), &[0; 4096], word(newest + 16 + 16) * 4096)
        },
        Some("database-damaged"),
        Fate::Stops,
    ),
];

#[test]
fn real_etcd_confirms_what_is_said_of_damage() -> Result<()> {
    for version in etcd::versions_to_damage()? {
        let subject = Subject::new(&version)?;
        for (name, damage, kind, fate) in CASES {
            let copy = subject.copy()?;
            damage(&copy).with_context(|| format!("damaging: {name}"))?;
            let ran = Cmd::new(rescue_binary()).args(["etcd", "status", "--json", "--data-dir"]).arg(&copy).run()?;
            let status = ran.json()?;
            let member = &status["etcd"]["members"][0];
            let kinds: Vec<&str> =
                member["problems"].as_array().context("problems")?.iter().filter_map(|p| p["kind"].as_str()).collect();
            match kind {
                Some(kind) => ensure!(kinds.contains(kind), "{} {name}: {:#}", version.name, member["problems"]),
                None => ensure!(kinds.is_empty(), "{} {name}: {:#}", version.name, member["problems"]),
            }
            ensure!(member["boots"] == (*fate != Fate::Stops), "{} {name}: {:#}", version.name, member["problems"]);
            let real = etcd::starts(&version, &copy)?;
            ensure!(real.is_ok() == (*fate == Fate::Works), "{} {name}: etcd itself: {real:?}", version.name);
        }
    }
    Ok(())
}
