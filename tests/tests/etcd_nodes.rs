//! `rescue etcd nodes`: a real node's own Node object and Lease, and nodes that only real etcd's
//! log holds, each with the disk that is its.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use tests::etcd::{Cluster, Version};
use tests::{Cmd, fixtures, rescue_binary};

const OF_OTHER: &str = "11111111111111111111111111111111";

fn nodes(roots: &[&Path]) -> Cmd {
    let arguments = roots.iter().flat_map(|root| [Path::new("--root"), *root]);
    Cmd::new(rescue_binary())
        .args(["etcd", "nodes"])
        .args(arguments)
}

#[test]
fn a_real_node_is_listed_with_its_lease_and_disk() -> Result<()> {
    let folder = tempfile::tempdir()?;
    fixtures::unpack_control_plane(folder.path())
        .context("unpacking the real node (are you root?)")?;
    let answer = nodes(&[folder.path()]).arg("--json").ok()?.json()?;
    let node = &answer["nodes"][0];
    ensure!(
        answer["nodes"].as_array().map(Vec::len) == Some(1) && answer["remarks"] == json!([]),
        "{answer}"
    );
    let expected = json!({
        "name": "k8s-master01", "roles": [], "internal_ips": ["10.0.2.15"],
        "hostname": "k8s-master01", "kubelet_version": "v1.20.2",
        "machine_id": "48ac18b487514229975ebcbf998b9997", "pod_cidrs": ["10.244.0.0/24"],
        "unschedulable": false,
        "last_heartbeat": "2023-02-23T08:07:25Z", "disks": [folder.path()],
    });
    assert_eq!(*node, expected);
    let text = nodes(&[folder.path()]).ok()?.stdout;
    ensure!(
        text.contains("k8s-master01  -     10.0.2.15    v1.20.2  2023-02-23 08:07 UTC"),
        "{text}"
    );
    Ok(())
}

/// A Node as an API server with `--storage-media-type=application/json` keeps it.
fn node(name: &str, machine_id: &str) -> String {
    let labels = json!({"node-role.kubernetes.io/worker": ""});
    let status = json!({"addresses": [{"type": "InternalIP", "address": "10.0.0.7"}],
        "nodeInfo": {"machineID": machine_id, "kubeletVersion": "v1.29.3"}});
    json!({
        "kind": "Node", "apiVersion": "v1", "metadata": {"name": name, "labels": labels},
        "spec": {}, "status": status
    })
    .to_string()
}

fn machine(root: &Path, name: &str, machine_id: &str) -> Result<()> {
    for folder in ["bin", "etc", "var/lib"] {
        fs::create_dir_all(root.join(folder))?;
    }
    fs::write(root.join("etc/hostname"), format!("{name}\n"))?;
    fs::write(root.join("etc/machine-id"), format!("{machine_id}\n"))?;
    Ok(fs::write(root.join("etc/hosts"), "127.0.0.1 localhost\n")?)
}

#[test]
fn what_only_the_log_holds_counts_and_renamed_machines_are_told() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let (control, renamed, stranger) = (
        folder.path().join("cp"),
        folder.path().join("renamed"),
        folder.path().join("stranger"),
    );
    let mut cluster = Cluster::prepare(&Version::debian(), 1, 100_000, |_, _| {
        control.join("var/lib/etcd")
    })?;
    cluster.run()?;
    cluster.put("/registry/minions/w1", &node("w1", OF_OTHER))?;
    cluster.put(
        "/registry/minions/gone",
        &node("gone", "2".repeat(32).as_str()),
    )?;
    cluster
        .ctl(0)
        .args(["del", "/registry/minions/gone"])
        .ok()?;
    // Cloned machines: their ID tells nothing.
    cluster.put("/registry/minions/c1", &node("c1", &"3".repeat(32)))?;
    cluster.put("/registry/minions/c2", &node("c2", &"3".repeat(32)))?;
    cluster.put(
        "/registry/minions/secret",
        "k8s:enc:aescbc:v1:key1:xxxxxxxxxxxxxxxx",
    )?;
    // Within the 100 ms after which etcd writes its database.
    cluster.kill()?;
    tests::etcd::guest::make(&control, "m1", &[])?;
    machine(&renamed, "w1-new", OF_OTHER)?;
    machine(&stranger, "somebody", &"3".repeat(32))?;

    let roots = [control.as_path(), &renamed, &stranger];
    let answer = nodes(&roots).arg("--json").ok()?.json()?;
    let list = answer["nodes"].as_array().context("nodes")?;
    let names: Vec<&str> = list
        .iter()
        .filter_map(|node| node["name"].as_str())
        .collect();
    assert_eq!(names, ["c1", "c2", "w1"]);
    assert_eq!(answer["unreadable"], json!(["secret"]));
    assert_eq!(list[2]["disks"], json!([renamed]));
    ensure!(
        list[2]["roles"] == json!(["worker"]) && list[0]["disks"] == json!([]),
        "{answer}"
    );
    let remarks: Vec<&str> = answer["remarks"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    ensure!(
        remarks
            .iter()
            .any(|one| one.contains("calls itself w1-new") && one.contains("machine ID of w1")),
        "{remarks:?}"
    );
    ensure!(
        remarks.iter().any(|one| one.starts_with("somebody (")),
        "{remarks:?}"
    );

    // A database whose pages are no pages, and no other member: refused.
    let db = control.join("var/lib/etcd/member/snap/db");
    let mut bytes = fs::read(&db)?;
    bytes[..8192].fill(0);
    fs::write(&db, bytes)?;
    let refused = nodes(&roots).run()?;
    ensure!(
        refused.code == 3 && refused.stderr.contains("database is damaged"),
        "{refused:?}"
    );
    Ok(())
}

#[test]
fn a_machine_that_only_runs_etcd_is_called_so() -> Result<()> {
    let folder = tempfile::tempdir()?;
    machine(folder.path(), "db1", OF_OTHER)?;
    let role = || -> Result<String> {
        Ok(Cmd::new(rescue_binary())
            .args(["inspect", "--root"])
            .arg(folder.path())
            .run()?
            .stdout)
    };
    let without = role()?;
    ensure!(
        without.contains("a Linux system without Kubernetes"),
        "{without}"
    );
    let environment = "ETCD_DATA_DIR=/var/lib/etcd\nETCD_NAME=db1\n\
        ETCD_INITIAL_ADVERTISE_PEER_URLS=http://10.0.0.1:2380\n";
    fs::write(folder.path().join("etc/etcd.env"), environment)?;
    let with = role()?;
    ensure!(
        with.contains("etcd, run by systemd, without Kubernetes")
            && !with.contains("a Linux system"),
        "{with}"
    );
    Ok(())
}
