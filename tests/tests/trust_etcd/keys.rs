//! A worker's disk beside the only control plane's, whose etcd uses TLS: whatever the worker's disk
//! says, without a private key of the etcd CA it gives and gets nothing.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use tests::etcd::files::{self, cut};
use tests::etcd::forge::{Authority, MEMBER};

use super::parties::{
    FORGED, Honest, PKI, copy, give_keys, hostile, hostile_roots, is_clean, rescue, sums, tls,
};

/// What the worker's disk has of certificates.
type Keys = fn(&Path, &Authority) -> Result<()>;

const KEYS: [(&str, Keys); 6] = [
    ("nothing", |_, _| Ok(())),
    ("the CA's certificate", |pki, authority| {
        Ok(fs::copy(authority.certificate(), pki.join("ca.crt")).map(|_| ())?)
    }),
    ("a CA of its own", |pki, _| {
        give_keys(
            pki.ancestors().nth(4).context("a root")?,
            &Authority::new()?,
            "worker1",
        )
    }),
    ("a leaf without its key", |pki, authority| {
        fs::copy(authority.certificate(), pki.join("ca.crt"))?;
        authority.leaf(pki, "peer", "/CN=m2", MEMBER)?;
        authority.leaf(pki, "server", "/CN=m2", MEMBER)?;
        // Keys of its own in their place.
        authority.leaf(pki, "other", "/CN=m2", MEMBER)?;
        fs::copy(pki.join("other.key"), pki.join("peer.key"))?;
        Ok(fs::remove_file(pki.join("server.key"))?)
    }),
    ("a client's leaf", |pki, authority| {
        fs::copy(authority.certificate(), pki.join("ca.crt"))?;
        authority.leaf(pki, "peer", "/CN=calico", "clientAuth")?;
        authority.leaf(pki, "server", "/CN=calico", "clientAuth")
    }),
    ("kubespray's leaf of a node", |pki, authority| {
        fs::copy(authority.certificate(), pki.join("ca.crt"))?;
        authority.leaf(pki, "peer", "/CN=etcd-node-worker1", MEMBER)?;
        authority.leaf(pki, "server", "/CN=etcd-node-worker1", MEMBER)
    }),
];

/// Damages a data folder.
type Damage = fn(&Path) -> Result<()>;

const STATES: [(&str, Damage); 4] = [
    ("healthy", |_| Ok(())),
    ("its database is cut short", |dir| {
        cut(&files::database(dir), 8192)
    }),
    ("its log is lost", |dir| {
        Ok(fs::remove_dir_all(dir.join("member/wal"))?)
    }),
    ("all is lost", |dir| Ok(fs::remove_dir_all(dir)?)),
];

struct Pair {
    work: tempfile::TempDir,
    honest: Honest,
    worker: PathBuf,
    _hostile: tests::etcd::Cluster,
}

impl Pair {
    fn new() -> Result<Self> {
        let honest = Honest::new(1, true)?;
        let cluster = hostile(&honest, &["worker1"], true, false)?;
        let worker = hostile_roots(&cluster, &tls())?.pop().context("a worker")?;
        Ok(Self {
            work: tempfile::tempdir()?,
            honest,
            worker,
            _hostile: cluster,
        })
    }

    /// Copies of both guests, the control plane's and the worker's.
    fn guests(&self, damage: Damage, keys: Keys) -> Result<(PathBuf, PathBuf)> {
        let master = copy(&self.honest.root(0), &self.work.path().join("master"))?;
        let worker = copy(&self.worker, &self.work.path().join("worker"))?;
        damage(&master.join("var/lib/etcd"))?;
        fs::create_dir_all(worker.join(PKI))?;
        keys(&worker.join(PKI), &self.honest.authority)?;
        Ok((master, worker))
    }
}

#[test]
fn a_worker_s_disk_replaces_no_control_plane_s_etcd() -> Result<()> {
    let pair = Pair::new()?;
    for (state, damage) in STATES {
        for (proof, keys) in KEYS {
            let what = || format!("{state}, {proof}");
            let (master, worker) = pair.guests(damage, keys).with_context(what)?;
            let before = [sums(&master)?, sums(&worker)?];
            for order in [[&*master, &*worker], [&*worker, &*master]] {
                let ran = rescue(&["repair", "--yes", "--only", "etcd"], &order)?;
                let is_named = ran.stderr.contains("worker1 (")
                    && ran.stderr.contains("no private key of its CA");
                ensure!(
                    ran.code == 3 && is_named,
                    "{}: {}",
                    what(),
                    ran.transcript()
                );
                ensure!(
                    ran.stderr
                        .contains(&format!("--trust {}", worker.display())),
                    "{}: {}",
                    what(),
                    ran.transcript()
                );
                ensure!(
                    [sums(&master)?, sums(&worker)?] == before,
                    "{}: changed: {}",
                    what(),
                    ran.transcript()
                );
                ensure!(is_clean(&master)?, "{}", what());
            }
            let ran = rescue(&["inspect", "--only", "etcd"], &[&master, &worker])?;
            ensure!(
                ran.stdout.contains("no private key of its CA")
                    && !ran.stdout.contains("give etcd"),
                "{}: {}",
                what(),
                ran.transcript()
            );
        }
    }
    Ok(())
}

#[test]
fn the_user_s_word_lets_it_happen_and_is_shown() -> Result<()> {
    let pair = Pair::new()?;
    let (master, worker) = pair.guests(|_| Ok(()), |_, _| Ok(()))?;
    let trust = worker.display().to_string();
    let before = sums(&master)?;
    let ran = rescue(
        &["repair", "--yes", "--only", "etcd", "--trust", &trust],
        &[&master, &worker],
    )?;
    ensure!(
        ran.code == 3 && ran.stderr.contains("--accept-loss"),
        "{}",
        ran.transcript()
    );
    ensure!(
        ran.stdout.contains("On your word alone") && ran.stdout.contains("they are lost"),
        "{}",
        ran.transcript()
    );
    ensure!(
        !ran.stdout.contains("cannot be mended in place"),
        "{}",
        ran.transcript()
    );
    ensure!(sums(&master)? == before, "{}", ran.transcript());
    let ran = rescue(
        &[
            "repair",
            "--yes",
            "--accept-loss",
            "--only",
            "etcd",
            "--trust",
            &trust,
        ],
        &[&worker, &master],
    )?;
    ensure!(
        ran.code == 0 && ran.stdout.contains("On your word alone"),
        "{}",
        ran.transcript()
    );
    ensure!(!is_clean(&master)?, "{}", ran.transcript());
    Ok(())
}

#[test]
fn no_command_of_etcd_s_takes_it_for_a_member() -> Result<()> {
    let pair = Pair::new()?;
    let (master, worker) = pair.guests(|_| Ok(()), |_, _| Ok(()))?;
    let both = [&*master, &*worker];
    let before = sums(&master)?;
    let ran = rescue(&["etcd", "status", "--quick"], &both)?;
    ensure!(
        ran.code == 1
            && ran.stdout.contains("worker1 (")
            && ran.stdout.contains("no private key of its CA"),
        "{}",
        ran.transcript()
    );
    let commands: [&[&str]; 3] = [
        &[
            "etcd",
            "rebuild",
            "--db-only",
            "--yes",
            "--accept-loss",
            "--member",
            "a=http://a:2380",
            "--member",
            "b=http://b:2380",
        ],
        &["etcd", "defrag", "--compact", "--dry-run"],
        &["etcd", "remove-member", "worker1", "--yes"],
    ];
    for command in commands {
        let ran = rescue(command, &both)?;
        ensure!(
            ran.code != 0 && sums(&master)? == before,
            "{}",
            ran.transcript()
        );
        ensure!(
            !ran.stdout.contains("compacted at revision"),
            "{}",
            ran.transcript()
        );
    }
    // Three disks, as a new cluster is made of: the database of the worker is the newest.
    let third = copy(&master, &pair.work.path().join("third"))?;
    fs::write(third.join("etc/hostname"), "m3\n")?;
    let three = [&*master, &*worker, &*third];
    for from in [vec!["--db-only"], vec!["--from", "SNAPSHOT"]] {
        let snapshot = files::database(&worker.join("var/lib/etcd"))
            .display()
            .to_string();
        let from: Vec<&str> = from
            .into_iter()
            .map(|word| {
                if word == "SNAPSHOT" {
                    snapshot.as_str()
                } else {
                    word
                }
            })
            .collect();
        let words = [&["etcd", "rebuild", "--yes", "--accept-loss"][..], &from].concat();
        let members = [
            "--member",
            "a=http://a:2380",
            "--member",
            "b=http://b:2380",
            "--member",
            "c=http://c:2380",
        ];
        let ran = rescue(&[&words[..], &members].concat(), &three)?;
        ensure!(
            ran.code == 3 && ran.stderr.contains("worker1 (") && ran.stderr.contains("--trust"),
            "{}",
            ran.transcript()
        );
        ensure!(sums(&master)? == before, "{}", ran.transcript());
    }
    let keys = rescue(&["etcd", "keys"], &[&master])?;
    ensure!(!keys.stdout.contains(FORGED), "{}", keys.transcript());
    Ok(())
}
