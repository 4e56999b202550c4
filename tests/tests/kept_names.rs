//! What kubeadm's configuration in etcd adds where certificates are lost: the names that a real
//! node's API server wrote there, values that only real etcd's log holds, and what is said where
//! etcd is no help. Judged by openssl.

mod pki_support;

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use pki_support::{cluster, inspect, open, repair, told};
use rescue::finding::Finding;
use rescue::settings::Settings;
use tests::etcd::{Cluster, Version};
use tests::{Cmd, fixtures};

const PKI: &str = "etc/kubernetes/pki";
const LOST: [&str; 10] = [
    "etc/kubernetes/pki/apiserver.crt",
    "etc/kubernetes/pki/apiserver.key",
    "etc/kubernetes/pki/etcd/server.crt",
    "etc/kubernetes/pki/etcd/server.key",
    "etc/kubernetes/pki/etcd/peer.crt",
    "etc/kubernetes/pki/etcd/peer.key",
    "etc/kubernetes/admin.conf",
    "etc/kubernetes/kubelet.conf",
    "etc/kubernetes/controller-manager.conf",
    "etc/kubernetes/scheduler.conf",
];

/// The real node without what carried its names.
fn robbed(unpack: impl Fn(&Path) -> Result<()>) -> Result<tempfile::TempDir> {
    let folder = tempfile::tempdir()?;
    unpack(folder.path()).context("unpacking the real node (are you root?)")?;
    for file in LOST {
        fs::remove_file(folder.path().join(file)).with_context(|| file.to_owned())?;
    }
    fs::remove_dir_all(folder.path().join("root/.kube"))?;
    Ok(folder)
}

fn names(root: &Path, leaf: &str) -> Result<String> {
    let file = root.join(PKI).join(format!("{leaf}.crt"));
    Ok(Cmd::new("openssl")
        .args(["x509", "-noout", "-ext", "subjectAltName", "-in"])
        .arg(file)
        .ok()?
        .stdout)
}

/// What the remedies say, with the findings.
fn plan(findings: &[Finding]) -> String {
    let details = findings
        .iter()
        .flat_map(|finding| &finding.remedies)
        .flat_map(|remedy| remedy.details());
    format!(
        "{}\n{}",
        told(findings),
        details.collect::<Vec<_>>().join("\n")
    )
}

fn said(root: &Path) -> Result<String> {
    let writable = open(root)?;
    Ok(plan(&inspect(writable.guest(), &Settings::default())?))
}

#[test]
fn a_real_node_gets_back_the_names_that_only_etcd_knows() -> Result<()> {
    let node = robbed(fixtures::unpack_control_plane)?;
    let root = node.path();
    let (before, after) = repair(root, &Settings::default())?;
    let plan = plan(&before);
    for words in [
        "IP:172.20.5.10 (kubeadm-config in etcd, apiServer.certSANs)",
        "DNS:k8s-vip.example.internal (kubeadm-config in etcd, controlPlaneEndpoint)",
        "server https://k8s-vip.example.internal:6443 (kubeadm-config in etcd, \
         controlPlaneEndpoint)",
    ] {
        ensure!(plan.contains(words), "{words} is not in\n{plan}");
    }
    let api = names(root, "apiserver")?;
    for name in [
        "DNS:k8s-vip.example.internal",
        "IP Address:172.20.5.10",
        "IP Address:10.96.0.1",
        "DNS:k8s-master01",
    ] {
        ensure!(api.contains(name), "{name} is not in {api}");
    }
    // What kubeadm itself had given it, no more and no less.
    let original = tempfile::tempdir()?;
    fixtures::unpack_small_control_plane(original.path())?;
    for leaf in ["apiserver", "etcd/server", "etcd/peer"] {
        assert_eq!(names(root, leaf)?, names(original.path(), leaf)?, "{leaf}");
    }
    let admin = fs::read_to_string(root.join("etc/kubernetes/admin.conf"))?;
    ensure!(
        admin.contains("server: https://k8s-vip.example.internal:6443"),
        "{admin}"
    );
    let scheduler = fs::read_to_string(root.join("etc/kubernetes/scheduler.conf"))?;
    ensure!(
        scheduler.contains("server: https://10.0.2.15:6443"),
        "{scheduler}"
    );
    let lost = LOST.iter().find(|file| !root.join(file).exists());
    ensure!(
        lost.is_none() && !told(&after).contains("missing"),
        "{lost:?}: {}",
        told(&after)
    );
    Ok(())
}

#[test]
fn an_address_that_no_flag_says_comes_from_the_node_s_own_pods() -> Result<()> {
    let node = robbed(fixtures::unpack_control_plane)?;
    let root = node.path();
    for (pod, flags) in [
        ("kube-apiserver", "advertise-address"),
        ("etcd", "advertise-client-urls\\|advertise-peer-urls"),
    ] {
        let file = root.join(format!("etc/kubernetes/manifests/{pod}.yaml"));
        Cmd::new("sed")
            .arg("-i")
            .arg(format!("/^ *- --.*\\({flags}\\)=/d"))
            .arg(&file)
            .ok()?;
    }
    let plan = said(root)?;
    let source = "IP:10.0.2.15 (/registry/pods/kube-system/kube-apiserver-k8s-master01 in etcd, \
        kubeadm.kubernetes.io/kube-apiserver.advertise-address.endpoint)";
    ensure!(plan.contains(source), "{plan}");
    Ok(())
}

#[test]
fn where_etcd_is_no_help_it_is_said_why() -> Result<()> {
    let node = robbed(fixtures::unpack_control_plane)?;
    let root = node.path();

    // Of another cluster: nothing of it may get into this one's certificates.
    let (pki, ours) = (root.join(PKI), ["ca.crt", "ca.key"]);
    let saved = ours.map(|name| fs::read(pki.join(name)));
    cluster::key(cluster::P256, &pki.join("ca.key"))?;
    let wanted = [
        "req",
        "-x509",
        "-new",
        "-days",
        "3650",
        "-subj",
        "/CN=kubernetes",
        "-key",
    ];
    Cmd::new("openssl")
        .args(wanted)
        .arg(pki.join("ca.key"))
        .arg("-out")
        .arg(pki.join("ca.crt"))
        .ok()?;
    let strange = said(root)?;
    ensure!(
        strange.contains("it holds another cluster") && !strange.contains("172.20.5.10"),
        "{strange}"
    );
    for (name, bytes) in ours.iter().zip(saved) {
        fs::write(pki.join(name), bytes?)?;
    }
    ensure!(said(root)?.contains("172.20.5.10"));

    // A database whose pages are no pages: it goes on without it, and says so.
    let db = root.join("var/lib/etcd/member/snap/db");
    let mut bytes = fs::read(&db)?;
    bytes[..8192].fill(0);
    fs::write(&db, bytes)?;
    let (before, after) = repair(root, &Settings::default())?;
    let plan = plan(&before);
    ensure!(
        plan.contains("kubeadm-config in etcd is no help: its database is damaged"),
        "{plan}"
    );
    let api = names(root, "apiserver")?;
    ensure!(
        !api.contains("172.20.5.10") && api.contains("IP Address:10.0.2.15"),
        "{api}"
    );
    ensure!(!told(&after).contains("missing"), "{}", told(&after));
    Ok(())
}

/// A ConfigMap as an API server with `--storage-media-type=application/json` keeps it.
fn kubeadm_config(configuration: &str) -> String {
    let metadata = serde_json::json!({"name": "kubeadm-config", "namespace": "kube-system"});
    let data = serde_json::json!({ "ClusterConfiguration": configuration });
    serde_json::json!({"kind": "ConfigMap", "apiVersion": "v1", "metadata": metadata, "data": data})
        .to_string()
}

#[test]
fn what_only_the_log_holds_counts_and_what_is_encrypted_does_not() -> Result<()> {
    const KEY: &str = "/registry/configmaps/kube-system/kubeadm-config";
    let node = robbed(fixtures::unpack_small_control_plane)?;
    let root = node.path();
    let place = root.join("var/lib/etcd");
    let mut cluster = Cluster::prepare(&Version::debian(), 1, 100_000, |_, _| place.clone())?;
    cluster.run()?;
    cluster.put(
        KEY,
        &kubeadm_config("kind: ClusterConfiguration\napiServer: {certSANs: [old.example.org]}\n"),
    )?;
    let configuration = "kind: ClusterConfiguration\napiServer: {certSANs: [new.example.org, 'a \
        b']}\ncontrolPlaneEndpoint: '10.9.9.9'\n\
        etcd: {local: {serverCertSANs: [etcd.example.org], peerCertSANs: [192.0.2.7]}}\n";
    cluster.put(KEY, &kubeadm_config(configuration))?;
    // Within the 100 ms after which etcd writes its database.
    cluster.kill()?;

    let copy = said(root)?;
    for words in [
        "DNS:new.example.org (kubeadm-config in etcd, apiServer.certSANs)",
        "DNS:etcd.example.org (kubeadm-config in etcd, etcd.local.serverCertSANs)",
        "IP:192.0.2.7 (kubeadm-config in etcd, etcd.local.peerCertSANs)",
        "server https://10.9.9.9:6443 (kubeadm-config in etcd, controlPlaneEndpoint)",
    ] {
        ensure!(copy.contains(words), "{words} is not in\n{copy}");
    }
    ensure!(!copy.contains("old.example.org"), "{copy}");

    cluster.run()?;
    cluster.put(KEY, "k8s:enc:aescbc:v1:key1:xxxxxxxxxxxxxxxx")?;
    cluster.kill()?;
    let (before, _) = repair(root, &Settings::default())?;
    let plan = plan(&before);
    ensure!(
        plan.contains("is encrypted at rest there (k8s:enc:)"),
        "{plan}"
    );
    ensure!(!names(root, "apiserver")?.contains("example.org"));
    Ok(())
}

/// What is planned for two nodes at once.
fn said_of_both(one: &Path, other: &Path) -> Result<String> {
    let ran = Cmd::new(tests::rescue_binary())
        .args(["repair", "--dry-run", "--only", "certificates", "--root"])
        .arg(one)
        .arg("--root")
        .arg(other)
        .run()?;
    ensure!(ran.code == 1, "{}", ran.transcript());
    Ok(ran.stdout)
}

#[test]
fn another_control_plane_s_etcd_tells_what_the_own_one_cannot() -> Result<()> {
    const NAMES: [&str; 2] = [
        "DNS:k8s-vip.example.internal (kubeadm-config in the etcd of k8s-master01, \
         controlPlaneEndpoint)",
        "server https://k8s-vip.example.internal:6443 (kubeadm-config in the etcd of k8s-master01, \
         controlPlaneEndpoint)",
    ];
    let whole = tempfile::tempdir()?;
    fixtures::unpack_control_plane(whole.path())?;
    let node = robbed(fixtures::unpack_control_plane)?;
    let root = node.path();
    // A node of its own: by its name, its machine ID, and what its kubelet and its pods are called.
    fs::write(root.join("etc/hostname"), "k8s-master02\n")?;
    fs::write(
        root.join("etc/machine-id"),
        "58ac18b487514229975ebcbf998b9998\n",
    )?;
    fs::remove_dir_all(root.join("var/lib/kubelet/pki"))?;
    Cmd::new("sed")
        .args(["-i", "s/k8s-master01/k8s-master02/g"])
        .arg(root.join("etc/kubernetes/manifests/etcd.yaml"))
        .ok()?;
    fs::remove_dir_all(root.join("var/lib/etcd/member"))?;
    let said = said_of_both(whole.path(), root)?;
    for words in NAMES {
        ensure!(said.contains(words), "{words} is not in\n{said}");
    }

    // Of a cluster with another CA nothing is taken.
    cluster::key(cluster::P256, &root.join(PKI).join("ca.key"))?;
    let wanted = [
        "req",
        "-x509",
        "-new",
        "-days",
        "3650",
        "-subj",
        "/CN=kubernetes",
        "-key",
    ];
    let (ca, key) = (root.join(PKI).join("ca.crt"), root.join(PKI).join("ca.key"));
    Cmd::new("openssl")
        .args(wanted)
        .arg(key)
        .arg("-out")
        .arg(ca)
        .ok()?;
    let strange = said_of_both(whole.path(), root)?;
    ensure!(!strange.contains("the etcd of"), "{strange}");
    Ok(())
}
