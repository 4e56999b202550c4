//! `rescue repair` with the disks of three control planes, some of them broken: one command, and
//! real etcd must run on all three with every key at its revision.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use tests::etcd::files::{self, cut};
use tests::etcd::{self, Cluster, Key, Version, guest};
use tests::{Cmd, Ran, rescue_binary};

use super::members::judge;

/// Bytes of one value.
const LARGE: usize = 100_000;

/// Three guests whose etcd was killed.
pub struct Subject {
    pub cluster: Cluster,
    whole: tempfile::TempDir,
    pub held: (Vec<Key>, i64),
}

impl Subject {
    pub fn new(version: &Version) -> Result<Self> {
        Self::with_more(version, |_| Ok(()))
    }

    /// `more` is written, too.
    pub fn with_more(
        version: &Version,
        more: impl FnOnce(&mut Cluster) -> Result<()>,
    ) -> Result<Self> {
        let mut cluster = Cluster::prepare(version, 3, 40, guest::place)?;
        guest::make_all(&cluster, &[])?;
        cluster.run()?;
        cluster.put_many("k", 100, "value")?;
        cluster.put_large("large", LARGE)?;
        for number in 0..100 {
            cluster.put(&format!("small{number}"), "x")?;
        }
        more(&mut cluster)?;
        let held = cluster.keys(0)?;
        cluster.kill()?;
        let whole = tempfile::tempdir()?;
        for member in &cluster.members {
            etcd::copy(&member.data_dir, &whole.path().join(&member.name))?;
        }
        Ok(Self {
            cluster,
            whole,
            held,
        })
    }

    pub fn roots(&self) -> Vec<PathBuf> {
        self.cluster
            .members
            .iter()
            .map(|member| guest::root_of(&member.data_dir).to_owned())
            .collect()
    }

    pub fn put_back(&self) -> Result<()> {
        for member in &self.cluster.members {
            let root = guest::root_of(&member.data_dir);
            for left in [
                member.data_dir.clone(),
                root.join("var/lib/rescue"),
                root.join(".rescue"),
            ] {
                if left.exists() {
                    fs::remove_dir_all(left)?;
                }
            }
            etcd::copy(&self.whole.path().join(&member.name), &member.data_dir)?;
        }
        Ok(())
    }

    pub fn rescue(&self, command: &str, numbers: &[usize], more: &[&str]) -> Result<Ran> {
        let roots = self.roots();
        let given = numbers
            .iter()
            .flat_map(|number| [Path::new("--root").to_owned(), roots[*number].clone()]);
        Cmd::new(rescue_binary())
            .args(command.split(' '))
            .arg("--yes")
            .args(more)
            .args(given)
            .run()
    }
}

/// Damages the members' data folders.
pub type Damage = fn(&[PathBuf]) -> Result<()>;

const CASES: &[(&str, Damage, &str)] = &[
    (
        "a database is cut short",
        |dirs| cut(&dirs[0].join("member/snap/db"), 8192),
        "G0",
    ),
    ("the end of a log is lost", |dirs| lose_end(&dirs[1]), "G1"),
    (
        "a sector of a log's last entry is zeros",
        |dirs| zero_last(&dirs[0]),
        "G1",
    ),
    (
        "a member is wiped",
        |dirs| Ok(fs::remove_dir_all(dirs[2].join("member"))?),
        "G1",
    ),
    (
        "one lost its log, another its database",
        |dirs| {
            fs::remove_dir_all(dirs[0].join("member/wal"))?;
            cut(&dirs[1].join("member/snap/db"), 8192)
        },
        "G1",
    ),
    (
        "two are wiped",
        |dirs| {
            fs::remove_dir_all(dirs[0].join("member"))?;
            Ok(fs::remove_dir_all(dirs[1].join("member"))?)
        },
        "G2",
    ),
    (
        "a value is zeros in one database",
        |dirs| zero_in_value(&dirs[2]),
        "G0",
    ),
    (
        "a value is zeros where the newest log is, and another's log is lost",
        |dirs| {
            let all = dirs
                .iter()
                .map(|dir| Ok(super::members::guest(dir)?.1.log.last))
                .collect::<Result<Vec<_>>>()?;
            let newest = (0..3).max_by_key(|number| all[*number]).unwrap_or(0);
            fs::remove_dir_all(dirs[(newest + 1) % 3].join("member/wal"))?;
            zero_in_value(&dirs[newest])
        },
        "G1",
    ),
    (
        "no log is left",
        |dirs| {
            dirs.iter()
                .try_for_each(|dir| Ok(fs::remove_dir_all(dir.join("member/wal"))?))
        },
        "G3",
    ),
];

/// A value loses what is in its pages. Nothing but another member's database can tell: bbolt has no
/// checksum of a page.
fn zero_in_value(data_dir: &Path) -> Result<()> {
    let db = files::database(data_dir);
    let bytes = fs::read(&db)?;
    let is_within = |page: &[u8]| page.iter().all(|byte| *byte == b'x');
    let pages = bytes
        .chunks(4096)
        .enumerate()
        .filter(|(_, page)| is_within(page))
        .map(|(number, _)| number as u64);
    // The value may lie in the file more than once: pages that were given up keep what they held.
    let all: Vec<u64> = pages.collect();
    ensure!(all.len() > 10, "the large value is not there");
    all.into_iter()
        .try_for_each(|page| files::write_at(&db, &[0; 4096], page * 4096))
}

/// The same for one of these pages.
fn zero_one_page(data_dir: &Path) -> Result<()> {
    let db = files::database(data_dir);
    let bytes = fs::read(&db)?;
    let pages = bytes
        .chunks(4096)
        .enumerate()
        .filter(|(_, page)| page.iter().all(|byte| *byte == b'x'));
    let all: Vec<usize> = pages.map(|(number, _)| number).collect();
    // In each copy of the value one: that which counts may be any.
    all.into_iter()
        .step_by(7)
        .try_for_each(|page| files::write_at(&db, &[0; 4096], page as u64 * 4096))
}

#[test]
fn three_databases_that_contradict_one_another_are_told_of_and_left() -> Result<()> {
    let subject = Subject::new(&Version::debian())?;
    let dirs: Vec<PathBuf> = subject
        .cluster
        .members
        .iter()
        .map(|member| member.data_dir.clone())
        .collect();
    zero_in_value(&dirs[0])?;
    zero_one_page(&dirs[1])?;
    let before = sums(&subject)?;
    let ran = subject.rescue("repair", &[0, 1, 2], &["--only", "etcd"])?;
    ensure!(
        ran.code == 3 && ran.stderr.contains("no majority says which one is right"),
        "{}",
        ran.transcript()
    );
    ensure!(
        ran.stderr.contains("rescue etcd rebuild --from") && sums(&subject)? == before,
        "{}",
        ran.transcript()
    );
    Ok(())
}

/// What all members have of the large value.
fn large_value_is_whole(cluster: &mut Cluster) -> Result<()> {
    cluster.run()?;
    for number in 0..3 {
        let value = cluster
            .ctl(number)
            .args(["get", "large", "--print-value-only", "--consistency=s"])
            .ok()?
            .stdout;
        ensure!(
            value.trim_end() == "x".repeat(LARGE),
            "the value of {number} is damaged"
        );
    }
    cluster.kill()
}

/// The records of the last entries that are in the database, too, as a disk loses them that lies
/// about what it has synchronised.
fn lose_end(data_dir: &Path) -> Result<()> {
    let (guest, data) = super::members::guest(data_dir)?;
    let at = super::members::offset_of(&guest, &data, data.consistent_index() - 3)?;
    let last = data.log.segments.last().context("a log")?;
    cut(
        &data_dir.join(last.segment.path.as_path().strip_prefix("/")?),
        at,
    )
}

/// The last entry's record keeps its length and loses what is in it.
fn zero_last(data_dir: &Path) -> Result<()> {
    use std::os::unix::fs::FileExt as _;
    let (guest, data) = super::members::guest(data_dir)?;
    let at = super::members::offset_of(&guest, &data, data.log.last)?;
    let last = data.log.segments.last().context("a log")?;
    let file = data_dir.join(last.segment.path.as_path().strip_prefix("/")?);
    let zeros = vec![0; usize::try_from(last.used - at - 8)?];
    Ok(fs::OpenOptions::new()
        .write(true)
        .open(file)?
        .write_all_at(&zeros, at + 8)?)
}

#[test]
fn three_disks_with_a_broken_member_come_back_with_one_command() -> Result<()> {
    for version in etcd::versions_to_damage()? {
        let mut subject = Subject::new(&version)?;
        for (name, damage, guarantee) in CASES {
            case(&mut subject, *damage, guarantee)
                .with_context(|| format!("etcd {}: {name}", version.name))?;
        }
    }
    Ok(())
}

pub fn case(subject: &mut Subject, damage: Damage, guarantee: &str) -> Result<()> {
    subject.put_back()?;
    let dirs: Vec<PathBuf> = subject
        .cluster
        .members
        .iter()
        .map(|member| member.data_dir.clone())
        .collect();
    damage(&dirs)?;
    let loses = guarantee > "G1";
    if loses {
        let ran = subject.rescue("repair", &[0, 1, 2], &["--only", "etcd"])?;
        ensure!(
            ran.code == 3 && ran.stderr.contains("--accept-loss"),
            "{}",
            ran.transcript()
        );
    }
    let ran = subject.rescue("repair", &[0, 1, 2], &["--only", "etcd", "--accept-loss"])?;
    ensure!(
        ran.code == 0 && ran.stdout.contains(&format!("{guarantee}: ")),
        "{}",
        ran.transcript()
    );
    let ran = subject.rescue("repair", &[0, 1, 2], &["--only", "etcd"])?;
    ensure!(
        ran.code == 0 && ran.stdout.contains("othing to"),
        "a second time: {}",
        ran.transcript()
    );
    if loses {
        // What the two that are wiped held alone is gone; here the third may hold everything.
        subject.cluster.run()?;
        let held = subject.cluster.keys(0)?;
        // From a database alone, revisions begin above all that were ever given out.
        let is_raised = guarantee > "G2" && held.1 > subject.held.1 + 1_000_000;
        ensure!(
            held.1 <= subject.held.1 || is_raised,
            "revision {} after {}",
            held.1,
            subject.held.1
        );
        ensure!(
            held.0.iter().all(|key| subject.held.0.contains(key)),
            "a key that was never written"
        );
        ensure!(
            held.0.len() + 20 > subject.held.0.len(),
            "{} of {} keys",
            held.0.len(),
            subject.held.0.len()
        );
        return subject.cluster.kill();
    }
    judge(&mut subject.cluster, &[0, 1, 2], &subject.held).with_context(|| ran.transcript())?;
    large_value_is_whole(&mut subject.cluster)
}

/// Hashes of databases that were compacted otherwise cannot be compared; what they hold at the
/// revisions that both have can.
#[test]
fn a_database_from_before_a_compaction_is_a_witness() -> Result<()> {
    let mut subject = Subject::new(&Version::debian())?;
    subject.cluster.run()?;
    subject
        .cluster
        .ctl(0)
        .args(["compact", &subject.held.1.to_string()])
        .ok()?;
    std::thread::sleep(std::time::Duration::from_millis(700));
    subject.cluster.kill()?;
    let dirs: Vec<PathBuf> = subject
        .cluster
        .members
        .iter()
        .map(|member| member.data_dir.clone())
        .collect();
    zero_in_value(&dirs[0])?;
    fs::copy(
        files::database(&subject.whole.path().join(&subject.cluster.members[2].name)),
        files::database(&dirs[2]),
    )?;
    let ran = subject.rescue("repair", &[0, 1, 2], &["--only", "etcd"])?;
    ensure!(
        ran.code == 0 && ran.stdout.contains("G0: ") && ran.stdout.contains("m2, m3"),
        "{}",
        ran.transcript()
    );
    large_value_is_whole(&mut subject.cluster)
}

#[test]
fn with_one_of_three_disks_it_says_what_the_others_are_for() -> Result<()> {
    let subject = Subject::new(&Version::debian())?;
    for (listens, is_told) in [
        ("http://127.0.0.1:1", true),
        ("http://0.0.0.0:1", true),
        (&*subject.cluster.members[1].peer_url(), false),
    ] {
        let member = &subject.cluster.members[1];
        let flags = [
            format!("--listen-peer-urls={listens}"),
            "--initial-advertise-peer-urls=http://127.0.0.1:1".to_owned(),
        ];
        guest::make(guest::root_of(&member.data_dir), &member.name, &flags)?;
        let root = &subject.roots()[1];
        let ran = Cmd::new(rescue_binary())
            .args(["inspect", "--only", "etcd", "--root"])
            .arg(root)
            .run()?;
        ensure!(
            ran.stdout.contains("does not listen any more") == is_told,
            "{listens}: {}",
            ran.transcript()
        );
        let status = Cmd::new(rescue_binary())
            .args(["etcd", "status", "--root"])
            .arg(root)
            .run()?;
        ensure!(
            status.stdout.contains("MOVED: ") == is_told,
            "{listens}: {}",
            status.transcript()
        );
        let status = Cmd::new(rescue_binary())
            .args(["etcd", "status", "--json", "--root"])
            .arg(root)
            .run()?
            .json()?;
        ensure!(
            status["etcd"]["members"][0]["moved"].is_object() == is_told,
            "{listens}: {status}"
        );
    }
    lose_end(&subject.cluster.members[0].data_dir)?;
    let ran = subject.rescue("repair", &[0], &["--only", "etcd"])?;
    ensure!(
        ran.code == 3 && ran.stderr.contains("m2, m3") && ran.stderr.contains("--declare-dead"),
        "{}",
        ran.transcript()
    );
    Ok(())
}

/// SHA-256 of every file of all members.
pub fn sums(subject: &Subject) -> Result<String> {
    let sums = subject
        .cluster
        .members
        .iter()
        .map(|member| files::sums(&member.data_dir));
    sums.collect::<Result<Vec<_>>>().map(|sums| sums.concat())
}

#[test]
fn a_member_leaves_and_its_fence_holds() -> Result<()> {
    let mut subject = Subject::new(&Version::debian())?;
    let before = sums(&subject)?;
    let refused = subject.rescue("etcd remove-member m3", &[0, 1], &[])?;
    ensure!(
        refused.code == 3 && refused.stderr.contains("--declare-dead m3"),
        "{}",
        refused.transcript()
    );
    let dry = subject.rescue("etcd remove-member m3", &[0, 1, 2], &["--dry-run"])?;
    ensure!(
        dry.code == 1 && dry.stdout.contains("G1: ") && sums(&subject)? == before,
        "{}",
        dry.transcript()
    );
    let ran = subject.rescue("etcd remove-member m3", &[0, 1, 2], &[])?;
    let told = ran.stdout.matches("etcd will start: revision").count() == 2
        && ran.stdout.contains("Now m3: fenced");
    ensure!(ran.code == 0 && told, "{}", ran.transcript());

    // As the first master of a cluster is started: alone in --initial-cluster, and its state is
    // new.
    let fenced = &subject.cluster.members[2].data_dir;
    for version in Version::all()? {
        let copy = subject.whole.path().join("fenced");
        etcd::copy(fenced, &copy)?;
        let says = etcd::starts(&version, &copy)?
            .err()
            .context("a fenced etcd starts")?;
        ensure!(says.contains("not a directory"), "{}: {says}", version.name);
        // What a fence is for: where the folder is only renamed, etcd starts, and is empty.
        fs::remove_file(copy.join("member"))?;
        let held = etcd::holds(&version, &copy)?.map_err(anyhow::Error::msg)?;
        ensure!(held.0.is_empty(), "{}: {held:?}", version.name);
        fs::remove_dir_all(&copy)?;
    }

    // Undone as one, byte by byte; and done again.
    let undone = subject.rescue("undo", &[0, 1, 2], &[])?;
    ensure!(
        undone.code == 0 && sums(&subject)? == before,
        "{}",
        undone.transcript()
    );
    let ran = subject.rescue("etcd remove-member m3", &[0, 1, 2], &[])?;
    ensure!(ran.code == 0, "{}", ran.transcript());
    // Who left held what was agreed on with it: those that stay have lost nothing.
    let again = subject.rescue("repair", &[0, 1], &["--only", "etcd"])?;
    ensure!(
        again.code == 0 && !again.stdout.contains("new cluster"),
        "{}",
        again.transcript()
    );
    judge(&mut subject.cluster, &[0, 1], &subject.held)?;

    // All but one, whose disks are lost.
    subject.put_back()?;
    let ran = subject.rescue(
        "etcd remove-member m1",
        &[1],
        &["--declare-dead", "m1", "--declare-dead", "m3"],
    )?;
    ensure!(
        ran.code == 3 && ran.stderr.contains("--accept-loss"),
        "{}",
        ran.transcript()
    );
    let ran = subject.rescue("etcd remove-member m1", &[0, 1], &["--declare-dead", "m3"])?;
    ensure!(
        ran.code == 0 && ran.stdout.contains("G1: "),
        "{}",
        ran.transcript()
    );
    judge(&mut subject.cluster, &[1], &subject.held).with_context(|| ran.transcript())
}

/// Machines that came back with another address: first one of three, whose cluster then goes on,
/// then two, which are a majority.
#[test]
fn members_with_new_addresses_are_found_again() -> Result<()> {
    for version in etcd::versions_to_damage()? {
        for moved in [1..2, 1..3] {
            let mut subject = Subject::new(&version)?;
            for number in moved.clone() {
                subject.cluster.move_peer(number)?;
            }
            // As a person would write it into the manifest.
            for member in &subject.cluster.members {
                let listen = format!("--listen-peer-urls={}", member.peer_url());
                let flags = [guest::addresses(member), vec![listen]].concat();
                guest::make(guest::root_of(&member.data_dir), &member.name, &flags)?;
            }
            let alone = subject.rescue("repair", &[1], &["--only", "etcd"])?;
            ensure!(
                alone.stdout.contains("does not listen any more"),
                "{}",
                alone.transcript()
            );
            let ran = subject.rescue("repair", &[0, 1, 2], &["--only", "etcd"])?;
            ensure!(
                ran.code == 0 && ran.stdout.contains("G1: "),
                "{}",
                ran.transcript()
            );
            let is_clone = ran.stdout.contains("as a new cluster");
            ensure!(is_clone == (moved.len() == 2), "{}", ran.transcript());
            let again = subject.rescue("repair", &[0, 1, 2], &["--only", "etcd"])?;
            ensure!(
                again.code == 0 && again.stdout.contains("othing to"),
                "{}",
                again.transcript()
            );
            judge(&mut subject.cluster, &[0, 1, 2], &subject.held)
                .with_context(|| ran.transcript())?;
        }
    }
    Ok(())
}
