//! Nodes that only run etcd, laid out as kubeadm's "Set up a High Availability etcd Cluster with
//! kubeadm" has it: a kubelet that belongs to no cluster runs etcd's static pod, and the key of
//! etcd's CA is on the first host alone.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};
use tests::command::{Cmd, Ran};
use tests::fixtures::unpack_small_control_plane;
use tests::programs::rescue_faulty;

/// The folder is on a disk of this machine, however full that is.
const NOW: [&str; 6] = [
    "--now",
    "2026-11-23T08:00:00Z",
    "--skip",
    "etcd",
    "--skip",
    "disk-full",
];
const LEAVES: [&str; 4] = [
    "etcd/server",
    "etcd/peer",
    "etcd/healthcheck-client",
    "apiserver-etcd-client",
];

/// The page's drop-ins: since 1.22 with a config file, before with flags.
const WITH_CONFIG: &str = "[Service]\n\
    Environment=\"KUBELET_CONFIG_ARGS=--config=/etc/systemd/system/kubelet.service.d/kubelet.conf\"\n\
    ExecStart=\nExecStart=/usr/bin/kubelet $KUBELET_CONFIG_ARGS\nRestart=always\n";
const WITH_FLAGS: &str = "[Service]\nExecStart=\nExecStart=/usr/bin/kubelet --address=127.0.0.1 \
    --pod-manifest-path=/etc/kubernetes/manifests --cgroup-driver=systemd\nRestart=always\n";
const CONFIG: &str = "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\n\
    authentication:\n  anonymous:\n    enabled: false\n  \
    webhook:\n    enabled: false\nauthorization:\n  mode: AlwaysAllow\ncgroupDriver: systemd\n\
    address: 127.0.0.1\n\
    staticPodPath: /etc/kubernetes/manifests\n";

struct Host(tempfile::TempDir);

impl Host {
    /// A control plane with everything taken away that such a host does not have.
    fn new(drop_in: &str, has_ca_key: bool) -> Result<Self> {
        let host = Self(tempfile::tempdir()?);
        unpack_small_control_plane(host.root())?;
        let kubernetes = host.at("etc/kubernetes");
        for name in [
            "kubelet.conf",
            "admin.conf",
            "controller-manager.conf",
            "scheduler.conf",
        ] {
            fs::remove_file(kubernetes.join(name))?;
        }
        for name in [
            "kube-apiserver",
            "kube-controller-manager",
            "kube-scheduler",
        ] {
            fs::remove_file(kubernetes.join(format!("manifests/{name}.yaml")))?;
        }
        for entry in fs::read_dir(kubernetes.join("pki"))? {
            let path = entry?.path();
            let keeps = path
                .file_stem()
                .is_some_and(|name| name == "apiserver-etcd-client" || name == "etcd");
            if !keeps {
                fs::remove_file(path)?;
            }
        }
        if !has_ca_key {
            fs::remove_file(kubernetes.join("pki/etcd/ca.key"))?;
        }
        fs::remove_file(host.at("var/lib/kubelet/config.yaml"))?;
        fs::remove_file(host.at("root/.kube/config"))?;
        for name in [
            "kubelet-client-current.pem",
            "kubelet-client-2023-02-23-08-02-57.pem",
        ] {
            fs::remove_file(host.at("var/lib/kubelet/pki").join(name))?;
        }
        let folder = host.at("etc/systemd/system/kubelet.service.d");
        fs::create_dir_all(&folder)?;
        fs::write(folder.join("20-etcd-service-manager.conf"), drop_in)?;
        if drop_in == WITH_CONFIG {
            fs::write(folder.join("kubelet.conf"), CONFIG)?;
        }
        Ok(host)
    }

    fn root(&self) -> &Path {
        self.0.path()
    }

    fn at(&self, path: &str) -> PathBuf {
        self.root().join(path)
    }

    fn rescue(&self, command: &str, more: &[&str]) -> Result<Ran> {
        let skip: &[&str] = if command == "undo" { &NOW[..2] } else { &NOW };
        rescue_faulty(0, [command])
            .args(skip)
            .args(more)
            .arg("--root")
            .arg(self.root())
            .run()
    }

    fn certificate(&self, leaf: &str) -> PathBuf {
        self.at("etc/kubernetes/pki").join(format!("{leaf}.crt"))
    }

    fn openssl(&self, words: &[&str], leaf: &str) -> Result<String> {
        Ok(Cmd::new("openssl")
            .args(words)
            .arg(self.certificate(leaf))
            .ok()?
            .stdout)
    }

    /// Every leaf is good to its CA, today, and still for whom it was.
    fn is_good(&self, names: &[String]) -> Result<()> {
        let authority = self.certificate("etcd/ca").display().to_string();
        for (leaf, before) in LEAVES.iter().zip(names) {
            self.openssl(&["verify", "-CAfile", &authority], leaf)?;
            ensure!(
                self.names(leaf)? == *before,
                "{leaf} is for somebody else now"
            );
        }
        Ok(())
    }

    fn names(&self, leaf: &str) -> Result<String> {
        self.openssl(
            &[
                "x509",
                "-noout",
                "-subject",
                "-ext",
                "subjectAltName,extendedKeyUsage",
                "-in",
            ],
            leaf,
        )
    }

    fn all_names(&self) -> Result<Vec<String>> {
        LEAVES.iter().map(|leaf| self.names(leaf)).collect()
    }
}

#[test]
fn the_first_host_is_renewed_with_its_own_key() -> Result<()> {
    for drop_in in [WITH_CONFIG, WITH_FLAGS] {
        let host = Host::new(drop_in, true)?;
        let names = host.all_names()?;
        let seen = host.rescue("inspect", &[])?;
        ensure!(seen.code == 1, "{}", seen.transcript());
        ensure!(
            seen.stdout
                .contains("kubeadm etcd member, without a control plane"),
            "{}",
            seen.transcript()
        );
        for said in [
            "etcd-server expired",
            "etcd-peer expired",
            "etcd-healthcheck-client expired",
        ] {
            ensure!(seen.stdout.contains(said), "{said}\n{}", seen.transcript());
        }
        ensure!(
            !seen.stdout.contains("kubelet client"),
            "{}",
            seen.transcript()
        );
        let json = host.rescue("inspect", &["--json"])?.json()?;
        ensure!(json["nodes"][0]["role"] == "etcd", "{json}");

        let before = fs::read(host.certificate("etcd/server"))?;
        let repaired = host.rescue("repair", &["--yes"])?;
        ensure!(repaired.code == 0, "{}", repaired.transcript());
        host.is_good(&names)?;
        ensure!(
            !host.at("etc/kubernetes/kubelet.conf").exists(),
            "a kubeconfig was made up"
        );
        let undone = host.rescue("undo", &["--yes"])?;
        ensure!(undone.code == 0, "{}", undone.transcript());
        ensure!(fs::read(host.certificate("etcd/server"))? == before);
    }
    Ok(())
}

#[test]
fn the_others_borrow_the_key_of_the_first() -> Result<()> {
    let (first, other) = (
        Host::new(WITH_CONFIG, true)?,
        Host::new(WITH_CONFIG, false)?,
    );
    let names = other.all_names()?;
    let alone = other.rescue("repair", &["--yes"])?;
    ensure!(alone.code == 1, "{}", alone.transcript());
    for said in [
        "the key of the CA is not on this node",
        "rescue repair --node",
    ] {
        ensure!(
            alone.stdout.contains(said),
            "{said}\n{}",
            alone.transcript()
        );
    }
    let lent = first.root().display().to_string();
    // With --ca a disk signs for kubelets and for nothing else.
    let refused = other.rescue("repair", &["--yes", "--ca", &lent])?;
    ensure!(refused.code == 1, "{}", refused.transcript());
    ensure!(
        refused.stdout.contains("named with --ca") && refused.stdout.contains("--node"),
        "{}",
        refused.transcript()
    );
    let before = fs::read(first.certificate("etcd/server"))?;
    let own = other.root().display().to_string();
    let repaired = other.rescue("repair", &["--yes", "--node", &own, "--root", &lent])?;
    ensure!(repaired.code == 0, "{}", repaired.transcript());
    ensure!(
        fs::read(first.certificate("etcd/server"))? == before,
        "the other node was changed"
    );
    other.is_good(&names)?;
    ensure!(
        !other.at("etc/kubernetes/pki/etcd/ca.key").exists(),
        "the key was copied"
    );
    Ok(())
}

/// A worker that carries an etcd member as well, by hand: its kubelet is judged as a worker's, its
/// member's certificates as a member's.
#[test]
fn a_worker_with_a_member_on_it_stays_a_worker() -> Result<()> {
    let host = Host::new(WITH_CONFIG, true)?;
    fs::remove_dir_all(host.at("etc/systemd/system/kubelet.service.d"))?;
    fs::write(host.at("var/lib/kubelet/config.yaml"), CONFIG)?;
    let seen = host.rescue("inspect", &[])?;
    ensure!(
        seen.code == 1 && seen.stdout.contains("kubeadm worker"),
        "{}",
        seen.transcript()
    );
    for said in ["kubelet client certificate", "etcd-server expired"] {
        ensure!(seen.stdout.contains(said), "{said}\n{}", seen.transcript());
    }
    Ok(())
}
