//! Guests for these tests: members of one etcd with kubeadm's certificates, and disks that claim to
//! belong to it.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use tests::etcd::forge::{Authority, MEMBER, name_cluster};
use tests::etcd::{self, Cluster, Version, files, guest};
use tests::{Cmd, Ran, rescue_binary};

/// Where kubeadm keeps etcd's certificates.
pub const PKI: &str = "etc/kubernetes/pki/etcd";

/// What kubeadm's manifest has of them.
pub fn tls() -> Vec<String> {
    let flags = [
        ("cert-file", "server.crt"),
        ("key-file", "server.key"),
        ("trusted-ca-file", "ca.crt"),
        ("peer-cert-file", "peer.crt"),
        ("peer-key-file", "peer.key"),
        ("peer-trusted-ca-file", "ca.crt"),
    ];
    flags
        .iter()
        .map(|(flag, file)| format!("--{flag}=/{PKI}/{file}"))
        .collect()
}

/// Gives a guest a control plane's certificates for etcd.
pub fn give_keys(root: &Path, authority: &Authority, name: &str) -> Result<()> {
    let pki = root.join(PKI);
    fs::create_dir_all(&pki)?;
    fs::copy(authority.certificate(), pki.join("ca.crt"))?;
    authority.leaf(&pki, "server", &format!("/CN={name}"), MEMBER)?;
    authority.leaf(&pki, "peer", &format!("/CN={name}"), MEMBER)
}

/// Members of one etcd, which is off, each with its guest. Their etcd is started without TLS here,
/// which their data does not show.
pub struct Honest {
    pub cluster: Cluster,
    pub authority: Authority,
    /// IDs of member and cluster of the first one.
    pub cluster_id: u64,
}

impl Honest {
    pub fn new(size: usize, uses_tls: bool) -> Result<Self> {
        let mut cluster = Cluster::prepare(&Version::debian(), size, 1000, guest::place)?;
        let authority = Authority::new()?;
        guest::make_all(&cluster, &if uses_tls { tls() } else { Vec::new() })?;
        if uses_tls {
            for member in &cluster.members {
                give_keys(guest::root_of(&member.data_dir), &authority, &member.name)?;
            }
        }
        cluster.run()?;
        cluster.put_many("/registry/honest/", 20, "true")?;
        let cluster_id = cluster_id(&cluster)?;
        cluster.kill()?;
        Ok(Self {
            cluster,
            authority,
            cluster_id,
        })
    }

    pub fn root(&self, number: usize) -> PathBuf {
        guest::root_of(&self.cluster.members[number].data_dir).to_owned()
    }
}

fn cluster_id(cluster: &Cluster) -> Result<u64> {
    let status = cluster
        .ctl(0)
        .args(["endpoint", "status", "-w", "json"])
        .ok()?
        .stdout;
    // The number does not fit into a double, so the text counts.
    let digits = status
        .split("\"cluster_id\":")
        .nth(1)
        .context("a cluster ID")?;
    Ok(digits
        .chars()
        .take_while(char::is_ascii_digit)
        .collect::<String>()
        .parse()?)
}

/// A key that only hostile disks hold.
pub const FORGED: &str = "/registry/clusterrolebindings/pwned";

/// Members of an etcd of their own, which say to be of the cluster of `honest` and name its first
/// member: `is_learner` as a learner. Their log is longer. `keeps_id`: with their own cluster's ID.
pub fn hostile(
    honest: &Honest,
    names: &[&str],
    is_learner: bool,
    keeps_id: bool,
) -> Result<Cluster> {
    hostile_to(
        &honest.cluster.members[0].peer_url(),
        honest.cluster_id,
        names,
        is_learner,
        keeps_id,
    )
}

/// The same against the member at a peer URL in a cluster of this ID.
pub fn hostile_to(
    url: &str,
    cluster_id: u64,
    names: &[&str],
    is_learner: bool,
    keeps_id: bool,
) -> Result<Cluster> {
    let place = |folder: &Path, name: &str| {
        let number: usize = name.trim_start_matches('m').parse().unwrap_or(1);
        guest::place(folder, names[number - 1])
    };
    let mut cluster = Cluster::prepare(&Version::debian(), names.len(), 100_000, place)?;
    for (member, name) in cluster.members.iter_mut().zip(names) {
        member.name = (*name).to_owned();
    }
    cluster.run()?;
    let own = self::cluster_id(&cluster)?;
    cluster.put(FORGED, "evil")?;
    (0..60).try_for_each(|number| cluster.put(&format!("/registry/filler{number}"), "x"))?;
    let peer = format!("--peer-urls={url}");
    let learner: &[&str] = if is_learner { &["--learner"] } else { &[] };
    let add = || {
        cluster
            .ctl(0)
            .args(["member", "add", "m1"])
            .args(learner)
            .arg(&peer)
    };
    // etcd adds nobody before all have been connected for five seconds.
    for attempt in 0.. {
        let ran = add().run()?;
        if ran.code == 0 {
            break;
        }
        anyhow::ensure!(attempt < 60, "{}", ran.transcript());
        std::thread::sleep(std::time::Duration::from_millis(500));
    }
    cluster.kill()?;
    for member in &cluster.members {
        if !keeps_id {
            for log in files::logs(&member.data_dir)? {
                name_cluster(&log, own, cluster_id)?;
            }
        }
    }
    Ok(cluster)
}

/// Makes the guests of such members; `flags` beside the addresses.
pub fn hostile_roots(cluster: &Cluster, flags: &[String]) -> Result<Vec<PathBuf>> {
    guest::make_all(cluster, flags)
}

/// Runs the program on guests in folders.
pub fn rescue(words: &[&str], roots: &[&Path]) -> Result<Ran> {
    let given = roots
        .iter()
        .flat_map(|root| [OsString::from("--root"), root.as_os_str().to_owned()]);
    Cmd::new(rescue_binary()).args(words).args(given).run()
}

/// A copy of a guest's folder.
pub fn copy(root: &Path, to: &Path) -> Result<PathBuf> {
    if to.exists() {
        fs::remove_dir_all(to)?;
    }
    etcd::copy(root, to)?;
    Ok(to.to_owned())
}

/// SHA-256 of every file of a guest's etcd.
pub fn sums(root: &Path) -> Result<String> {
    let data = root.join(guest::DATA_DIR);
    if data.exists() {
        files::sums(&data)
    } else {
        Ok(String::new())
    }
}

/// Whether anything that only hostile disks hold is in a guest's etcd.
pub fn is_clean(root: &Path) -> Result<bool> {
    let found = Cmd::new("grep")
        .args(["-rlaF", FORGED])
        .arg(root.join("var/lib/etcd"))
        .run()?;
    Ok(found.stdout.is_empty())
}
