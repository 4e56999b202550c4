//! What real programs say of a node's disk: openssl of its certificates, etcd of its data and its
//! mutual TLS, the kernel of its space.
//!
//! Nothing here uses Rescue: it is the second opinion that tests and the demo compare with.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use nix::sched::{CloneFlags, unshare};

use crate::command::Cmd;
use crate::disk::Disk;
use crate::fill;
use crate::fixtures::{MARKER_KEY, MARKER_WORD};

/// All opinions on one disk.
#[derive(Debug, Clone)]
pub struct Judgement {
    /// Bytes and inodes of the root file system.
    pub space: Space,
    /// Every leaf a kubeadm control plane has, in the order of `kubeadm certs check-expiration`,
    /// then the kubelet's.
    pub leaves: Vec<Leaf>,
    /// What the kubelet will do with its client certificate.
    pub kubelet: Verdict,
    /// What etcd served over mutual TLS.
    pub etcd: Verdict,
    /// How many of the look-alikes ([`crate::fill::TRAPS`]) are there, byte for byte.
    pub kept: usize,
}

/// Free space.
#[derive(Debug, Clone, Copy)]
pub struct Space {
    /// Size of the file system in bytes.
    pub size: u64,
    /// Bytes an ordinary user may still write; what the kubelet compares with its eviction
    /// threshold.
    pub available: u64,
    /// All inodes.
    pub inodes: u64,
    /// Inodes left.
    pub inodes_free: u64,
}

/// One certificate.
#[derive(Debug, Clone)]
pub struct Leaf {
    /// `apiserver`, `etcd/peer`, `admin.conf`, `kubelet client`.
    pub name: String,
    /// Its end, as openssl prints it in ISO 8601.
    pub not_after: String,
    /// What `openssl verify` says today with the guest's CA, and whether the key belongs to it.
    pub verdict: Verdict,
}

/// Good or not, and in which words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// Whether it works.
    pub good: bool,
    /// One line.
    pub says: String,
}

impl Verdict {
    fn good(says: impl Into<String>) -> Self {
        Self {
            good: true,
            says: says.into(),
        }
    }
    fn bad(says: impl Into<String>) -> Self {
        Self {
            good: false,
            says: says.into(),
        }
    }
}

impl Space {
    /// Available bytes in per cent of the size.
    pub fn percent(&self) -> f64 {
        self.available as f64 * 100.0 / self.size.max(1) as f64
    }

    /// Free inodes in per cent; 100 for a file system without a fixed number.
    pub fn inodes_percent(&self) -> f64 {
        if self.inodes == 0 {
            100.0
        } else {
            self.inodes_free as f64 * 100.0 / self.inodes as f64
        }
    }
}

impl Judgement {
    /// Whether nothing is left to mend: the kubelet's own limits for space (15 % of bytes, 5 % of
    /// inodes), every leaf, both programs.
    pub fn healthy(&self) -> bool {
        self.space.percent() >= 15.0
            && self.space.inodes_percent() >= 5.0
            && self.leaves.iter().all(|leaf| leaf.verdict.good)
            && self.kubelet.good
            && self.etcd.good
    }

    /// Lines of a name and a value, for the demo's table.
    pub fn rows(&self) -> Vec<(String, String)> {
        let mib = |bytes: u64| format!("{} MiB", bytes >> 20);
        let space = &self.space;
        let mut rows = vec![
            (
                "space free".into(),
                format!(
                    "{} of {} ({:.1} %)",
                    mib(space.available),
                    mib(space.size),
                    space.percent()
                ),
            ),
            (
                "inodes free".into(),
                format!("{:.1} %", space.inodes_percent()),
            ),
        ];
        for leaf in &self.leaves {
            let day = leaf.not_after.get(..10).unwrap_or(&leaf.not_after);
            rows.push((leaf.name.clone(), format!("{day} {}", leaf.verdict.says)));
        }
        rows.push(("kubelet".into(), self.kubelet.says.clone()));
        rows.push(("etcd, mutual TLS".into(), self.etcd.says.clone()));
        rows.push((
            "look-alikes of logs".into(),
            format!("{} of {} kept", self.kept, fill::TRAPS.len()),
        ));
        rows
    }
}

/// Judges the root file system of an image without changing a byte of it.
pub fn disk(disk: &Disk) -> Result<Judgement> {
    disk.mounted_read_only(root)
}

/// Judges a mounted control plane.
pub fn root(root: &Path) -> Result<Judgement> {
    let free = rustix::fs::statvfs(root)?;
    let space = Space {
        size: free.f_blocks * free.f_frsize,
        available: free.f_bavail * free.f_frsize,
        inodes: free.f_files,
        inodes_free: free.f_ffree,
    };
    let work = tempfile::tempdir()?;
    let leaves = leaves(root, work.path())?;
    let kubelet = kubelet(root, &leaves);
    let kept = fill::TRAPS
        .iter()
        .filter(|t| fs::read(root.join(t)).is_ok_and(|bytes| bytes == fill::trap(t)))
        .count();
    Ok(Judgement {
        space,
        leaves,
        kubelet,
        etcd: etcd(root)?,
        kept,
    })
}

/// What openssl says of every certificate of a mounted control plane, today.
pub fn certificates(root: &Path) -> Result<Vec<Leaf>> {
    leaves(root, tempfile::tempdir()?.path())
}

/// Name, file of the certificate, file of the key, CA; kubeconfigs carry the first two inside.
fn leaves(root: &Path, work: &Path) -> Result<Vec<Leaf>> {
    let pki = root.join("etc/kubernetes/pki");
    let mut leaves = Vec::new();
    for name in ["admin.conf", "controller-manager.conf", "scheduler.conf"] {
        let (certificate, key) = inline(&root.join("etc/kubernetes").join(name), &work.join(name))?;
        leaves.push(judge(name, &certificate, &key, &pki.join("ca.crt"))?);
    }
    for (name, ca) in [
        ("apiserver", "ca.crt"),
        ("apiserver-etcd-client", "etcd/ca.crt"),
        ("apiserver-kubelet-client", "ca.crt"),
        ("etcd/healthcheck-client", "etcd/ca.crt"),
        ("etcd/peer", "etcd/ca.crt"),
        ("etcd/server", "etcd/ca.crt"),
        ("front-proxy-client", "front-proxy-ca.crt"),
    ] {
        leaves.push(judge(
            name,
            &pki.join(format!("{name}.crt")),
            &pki.join(format!("{name}.key")),
            &pki.join(ca),
        )?);
    }
    let (certificate, key) = inline(&root.join("root/.kube/config"), &work.join("user"))?;
    leaves.push(judge(
        "/root/.kube/config",
        &certificate,
        &key,
        &pki.join("ca.crt"),
    )?);

    // The link is relative in a kubeadm node, but an absolute one would lead out of the mounted
    // guest.
    let link = root.join("var/lib/kubelet/pki/kubelet-client-current.pem");
    let target =
        fs::read_link(&link).with_context(|| format!("reading the link {}", link.display()))?;
    let name = target
        .file_name()
        .context("the kubelet's link names no file")?;
    let pem = link.with_file_name(name);
    leaves.push(judge("kubelet client", &pem, &pem, &pki.join("ca.crt"))?);
    Ok(leaves)
}

fn judge(name: &str, certificate: &Path, key: &Path, ca: &Path) -> Result<Leaf> {
    let openssl =
        |arguments: &[&str], file: &Path| Cmd::new("openssl").args(arguments).arg(file).run();
    let end = openssl(
        &["x509", "-noout", "-enddate", "-dateopt", "iso_8601", "-in"],
        certificate,
    )?;
    let not_after = end.stdout.trim().trim_start_matches("notAfter=").to_owned();
    let verified = Cmd::new("openssl")
        .args(["verify", "-CAfile"])
        .arg(ca)
        .arg(certificate)
        .run()?;
    let public = openssl(&["x509", "-noout", "-pubkey", "-in"], certificate)?;
    let own = openssl(&["pkey", "-pubout", "-in"], key)?;
    let verdict = if end.code != 0 {
        Verdict::bad("unreadable")
    } else if verified.code != 0 {
        // "error 10 at 0 depth lookup: certificate has expired"
        let lines = verified.stderr.lines().chain(verified.stdout.lines());
        let reason = lines
            .filter_map(|l| l.split_once("lookup: "))
            .map(|(_, r)| r.to_owned())
            .next();
        Verdict::bad(reason.unwrap_or_else(|| "not verified".into()))
    } else if own.code != 0 || public.stdout != own.stdout {
        Verdict::bad("the key does not match")
    } else {
        Verdict::good("OK")
    };
    Ok(Leaf {
        name: name.to_owned(),
        not_after,
        verdict,
    })
}

/// Takes the certificate and key out of a kubeconfig that has exactly one user.
fn inline(kubeconfig: &Path, into: &Path) -> Result<(PathBuf, PathBuf)> {
    let text = fs::read_to_string(kubeconfig)
        .with_context(|| format!("reading {}", kubeconfig.display()))?;
    let take = |field: &str| -> Result<Vec<u8>> {
        let line = text
            .lines()
            .find_map(|l| l.trim().strip_prefix(field))
            .context("no such field")?;
        let plain = Cmd::new("base64").arg("-d").stdin(line.trim()).ok()?;
        Ok(plain.stdout.into_bytes())
    };
    fs::create_dir_all(into)?;
    let (certificate, key) = (into.join("client.crt"), into.join("client.key"));
    fs::write(
        &certificate,
        take("client-certificate-data:").context("reading the client's certificate")?,
    )?;
    fs::write(
        &key,
        take("client-key-data:").context("reading the client's key")?,
    )?;
    Ok((certificate, key))
}

/// The kubelet's own rule (bootstrap.go): with a client certificate that is still valid the
/// bootstrap kubeconfig is not even opened.
fn kubelet(root: &Path, leaves: &[Leaf]) -> Verdict {
    let bootstrap = root.join("etc/kubernetes/bootstrap-kubelet.conf");
    match leaves.iter().find(|leaf| leaf.name == "kubelet client") {
        Some(leaf) if leaf.verdict.good => Verdict::good("starts, client certificate valid"),
        _ if bootstrap.exists() => Verdict::bad("must bootstrap anew"),
        _ => Verdict::bad("exits, no bootstrap-kubelet.conf"),
    }
}

/// Starts Debian's etcd on a copy of the disk's data with the flags of the disk's own manifest, at
/// the node's own address inside a network namespace, and asks for the marker as each client that
/// the API server's host has.
pub fn etcd(root: &Path) -> Result<Verdict> {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET)
                .context("making a network namespace (are you root?)")?;
            Cmd::new("ip").args(["link", "set", "lo", "up"]).ok()?;
            serve(root)
        });
        thread
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

fn serve(root: &Path) -> Result<Verdict> {
    let work = tempfile::tempdir()?;
    let (pki, data) = (work.path().join("pki"), work.path().join("data"));
    for (from, to) in [("etc/kubernetes/pki", &pki), ("var/lib/etcd", &data)] {
        Cmd::new("cp")
            .args(["-r", "--sparse=always"])
            .arg(root.join(from))
            .arg(to)
            .ok()?;
    }
    fs::set_permissions(&data, std::os::unix::fs::PermissionsExt::from_mode(0o700))?;
    let manifest = fs::read_to_string(root.join("etc/kubernetes/manifests/etcd.yaml"))?;
    let here = |flag: &str| {
        let moved = flag.replace("/etc/kubernetes/pki", &pki.to_string_lossy());
        moved.replace("/var/lib/etcd", &data.to_string_lossy())
    };
    let flags: Vec<String> = manifest
        .lines()
        .filter_map(|line| line.trim().strip_prefix("- "))
        .filter(|f| f.starts_with("--"))
        .map(here)
        .collect();
    let peer = flags
        .iter()
        .find_map(|f| f.strip_prefix("--listen-peer-urls=https://"))
        .context("no peer address")?;
    let address = peer
        .rsplit_once(':')
        .context("no port in the peer address")?
        .0;
    Cmd::new("ip")
        .args(["address", "add", &format!("{address}/32"), "dev", "lo"])
        .ok()?;

    let log = fs::File::create(work.path().join("log"))?;
    let mut command = Command::new("etcd");
    command
        .args(&flags)
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log);
    let _server = Server(
        command
            .spawn()
            .context("starting etcd (is etcd-server installed?)")?,
    );

    let ask = |client: &str, endpoint: &str| {
        Cmd::new("etcdctl")
            .env("ETCDCTL_API", "3")
            .args(["--dial-timeout=3s", "--command-timeout=5s"])
            .arg(format!("--endpoints=https://{endpoint}:2379"))
            .arg(format!("--cacert={}", pki.join("etcd/ca.crt").display()))
            .arg(format!(
                "--cert={}",
                pki.join(format!("{client}.crt")).display()
            ))
            .arg(format!(
                "--key={}",
                pki.join(format!("{client}.key")).display()
            ))
            .args(["get", MARKER_KEY])
            .run()
    };
    let started = Instant::now();
    loop {
        let answer = ask("etcd/healthcheck-client", "127.0.0.1")?;
        if answer.code == 0 {
            break;
        }
        let log = fs::read_to_string(work.path().join("log"))?;
        if let Some(reason) = tls_reason(&log).or_else(|| tls_reason(&answer.stderr)) {
            return Ok(Verdict::bad(reason));
        }
        ensure!(
            started.elapsed() < Duration::from_secs(60),
            "etcd does not answer: {}\n{log}",
            answer.stderr
        );
        std::thread::sleep(Duration::from_millis(300));
    }
    for (client, endpoint) in [
        ("etcd/healthcheck-client", "127.0.0.1"),
        ("apiserver-etcd-client", address),
        ("etcd/peer", address),
        ("etcd/server", address),
    ] {
        let answer = ask(client, endpoint)?;
        if answer.code != 0 {
            return Ok(Verdict::bad(format!(
                "{client} is turned away: {}",
                answer.stderr.trim()
            )));
        }
        if !answer.stdout.contains(MARKER_WORD) {
            return Ok(Verdict::bad("serves, but the marker is gone"));
        }
    }
    if !peer_answers(peer, &pki)? {
        return Ok(Verdict::bad("the peer port refuses the peer's certificate"));
    }
    Ok(Verdict::good("clients and peers served, marker found"))
}

/// A full mutual handshake with the peer port.
fn peer_answers(peer: &str, pki: &Path) -> Result<bool> {
    let file = |name: &str| pki.join("etcd").join(name);
    let answer = Cmd::new("openssl")
        .args([
            "s_client",
            "-verify_return_error",
            "-quiet",
            "-connect",
            peer,
            "-CAfile",
        ])
        .arg(file("ca.crt"))
        .arg("-cert")
        .arg(file("peer.crt"))
        .arg("-key")
        .arg(file("peer.key"))
        .stdin("GET /version HTTP/1.0\r\n\r\n")
        .timeout(Duration::from_secs(20));
    let answer = match answer.run() {
        Ok(answer) => answer,
        Err(error) => bail!("asking the peer port: {error:#}"),
    };
    Ok(answer.stdout.contains("etcdserver"))
}

fn tls_reason(text: &str) -> Option<String> {
    [
        "certificate has expired",
        "bad certificate",
        "unknown authority",
        "certificate is valid for",
        "private key does not match",
    ]
    .into_iter()
    .find(|reason| text.contains(reason))
    .map(|reason| format!("TLS fails: {reason}"))
}

/// A running etcd, killed at the end.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        // It may have died by itself; either way it must be gone before its folder is.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
