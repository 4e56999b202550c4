//! What all control planes share: into a control plane that lost it, out of a disk that is none.

use std::fs;

use anyhow::{Result, ensure};
use tests::worker::{Authority, request};

use super::tables::{Node, PKI, run, says};

/// A worker that says it is a control plane of the cluster, with service account keys of its own.
fn with_own_keys() -> Result<Node> {
    let node = Node::worker("worker1")?;
    node.take(&["etc/kubernetes/manifests/*", "etc/kubernetes/pki/*.crt"])?;
    let made = Authority::of_another_cluster()?;
    node.leaf(
        &made,
        "apiserver-kubelet-client",
        "/CN=kube-apiserver-kubelet-client",
    )?;
    node.service_account_keys()?;
    Ok(node)
}

#[test]
fn a_foreign_service_account_key_is_not_installed() -> Result<()> {
    let (attacker, master) = (with_own_keys()?, Node::control_plane()?);
    for file in ["sa.key", "sa.pub"] {
        fs::remove_file(master.at(&format!("{PKI}/{file}")))?;
    }
    for order in [[&attacker, &master], [&master, &attacker]] {
        let ran = run(&["repair", "--yes"], &order, &[])?;
        ensure!(matches!(ran.code, 1 | 3 | 4), "{}", ran.transcript());
        for file in ["sa.key", "sa.pub"] {
            ensure!(
                !master.at(&format!("{PKI}/{file}")).exists(),
                "{file} came from the attacker\n{}",
                ran.transcript()
            );
        }
    }
    // A real control plane's comes back.
    let second = Node::second_control_plane()?;
    let ran = run(&["repair", "--yes"], &[&attacker, &master, &second], &[])?;
    for file in ["sa.key", "sa.pub"] {
        let (here, there) = (
            master.at(&format!("{PKI}/{file}")),
            second.at(&format!("{PKI}/{file}")),
        );
        ensure!(
            fs::read(here)? == fs::read(there)?,
            "{file}\n{}",
            ran.transcript()
        );
    }
    Ok(())
}

#[test]
fn a_foreign_ca_is_not_installed() -> Result<()> {
    let (attacker, master) = (with_own_keys()?, Node::control_plane()?);
    let made = Authority::of_another_cluster()?;
    for base in ["front-proxy-ca", "etcd/ca"] {
        for file in ["crt", "key"] {
            fs::remove_file(master.at(&format!("{PKI}/{base}.{file}")))?;
            attacker.write(
                &format!("{PKI}/{base}.{file}"),
                fs::read(made.path().join(format!("ca.{file}")))?,
            )?;
        }
    }
    let ran = run(&["repair", "--yes"], &[&attacker, &master], &[])?;
    for base in [
        "front-proxy-ca.crt",
        "front-proxy-ca.key",
        "etcd/ca.crt",
        "etcd/ca.key",
    ] {
        ensure!(
            !master.at(&format!("{PKI}/{base}")).exists(),
            "{base}\n{}",
            ran.transcript()
        );
    }
    Ok(())
}

#[test]
fn a_disk_that_only_signs_is_not_copied_from() -> Result<()> {
    let (one, two) = (Node::second_control_plane()?, Node::control_plane()?);
    for file in ["ca.key", "sa.key", "front-proxy-ca.key", "etcd/ca.key"] {
        fs::remove_file(one.at(&format!("{PKI}/{file}")))?;
    }
    let ran = run(&["repair", "--yes"], &[&one], &[&two])?;
    ensure!(ran.code == 1, "{}", ran.transcript());
    for file in ["ca.key", "sa.key", "front-proxy-ca.key", "etcd/ca.key"] {
        ensure!(
            !one.at(&format!("{PKI}/{file}")).exists(),
            "{file} was copied from a disk named with --ca"
        );
    }
    // Its kubelet's certificate is what --ca is for.
    says(
        &ran,
        &[
            "issue a new kubelet client certificate for node k8s-master02",
            "named with --ca",
            "--node",
        ],
    )?;
    let source = one.root().display().to_string();
    let leaf = fs::read(two.at(&format!("{PKI}/apiserver.crt")))?;
    let ran = run(&["repair", "--yes", "--node", &source], &[&one, &two], &[])?;
    for file in ["ca.key", "sa.key", "front-proxy-ca.key", "etcd/ca.key"] {
        let copied = fs::read(one.at(&format!("{PKI}/{file}"))).unwrap_or_default();
        ensure!(
            copied == fs::read(two.at(&format!("{PKI}/{file}")))?,
            "{file}\n{}",
            ran.transcript()
        );
    }
    says(
        &ran,
        &["this disk may have it: both disks hold private keys of control planes"],
    )?;
    ensure!(
        fs::read(two.at(&format!("{PKI}/apiserver.crt")))? == leaf,
        "--node did not keep to one node"
    );
    Ok(())
}

/// Each key that only a control plane has is enough by itself, and without the last one nothing
/// comes.
#[test]
fn each_proof_is_enough_and_none_is_not() -> Result<()> {
    const PROOFS: [&str; 3] = [
        "etc/kubernetes/pki/apiserver-kubelet-client.key",
        "etc/kubernetes/scheduler.conf",
        "etc/kubernetes/pki/front-proxy-client.key",
    ];
    let strip = |node: &Node, kept: Option<&str>| -> Result<()> {
        let keys = [
            "apiserver",
            "apiserver-kubelet-client",
            "front-proxy-client",
            "sa",
            "ca",
            "front-proxy-ca",
            "etcd/ca",
        ];
        let keys = keys.iter().map(|key| format!("{PKI}/{key}.key"));
        let configs = ["admin", "scheduler", "controller-manager"]
            .iter()
            .map(|name| format!("etc/kubernetes/{name}.conf"));
        for path in keys
            .chain(configs)
            .filter(|path| Some(path.as_str()) != kept)
        {
            fs::remove_file(node.at(&path))?;
        }
        Ok(())
    };
    let master = Node::control_plane()?;
    for proof in PROOFS {
        let node = Node::second_control_plane()?;
        strip(&node, Some(proof))?;
        let ran = run(&["repair", "--yes"], &[&node, &master], &[])?;
        ensure!(
            node.at(&format!("{PKI}/ca.key")).exists(),
            "with {proof} alone nothing came\n{}",
            ran.transcript()
        );
    }
    let node = Node::second_control_plane()?;
    strip(&node, None)?;
    let ran = run(&["repair", "--yes"], &[&node, &master], &[])?;
    for key in ["ca", "sa", "front-proxy-ca", "etcd/ca"] {
        ensure!(
            !node.at(&format!("{PKI}/{key}.key")).exists(),
            "{key}.key\n{}",
            ran.transcript()
        );
    }
    // A key that was made for the certificate's file and is not its key.
    node.write(
        &format!("{PKI}/apiserver-kubelet-client.key"),
        request("/CN=x")?.0,
    )?;
    let ran = run(&["repair", "--yes"], &[&node, &master], &[])?;
    ensure!(
        !node.at(&format!("{PKI}/ca.key")).exists(),
        "{}",
        ran.transcript()
    );
    Ok(())
}
