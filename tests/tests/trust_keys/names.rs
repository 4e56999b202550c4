//! Whose name is signed for whom.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use tests::command::{Cmd, Ran};
use tests::etcd::{Cluster, Version};
use tests::programs::rescue_faulty;
use tests::worker::{Authority, CURRENT, request};

use super::tables::{NOW, Node, machine_id, nothing_crossed, private_keys, run, says};

/// What the kubelet's link leads to holds only the certificate that it held.
fn unsigned(
    node: &Node,
    before: &std::collections::BTreeMap<std::path::PathBuf, Vec<u8>>,
    ran: &Ran,
    names: &[&str],
) -> Result<()> {
    let secrets = private_keys(&Node::control_plane()?.files()?);
    nothing_crossed(node, before, &secrets, names).with_context(|| ran.transcript())
}

/// A certificate for this name that nobody but its own key signed, and the key.
fn self_signed(name: &str) -> Result<String> {
    let work = tempfile::tempdir()?;
    let key = work.path().join("key");
    fs::write(&key, request("/CN=x")?.0)?;
    let subject = format!("/O=system:nodes/CN=system:node:{name}");
    let made = Cmd::new("openssl")
        .args([
            "req", "-x509", "-new", "-days", "1", "-subj", &subject, "-key",
        ])
        .arg(&key)
        .ok()?;
    Ok(made.stdout + &fs::read_to_string(&key)?)
}

#[test]
fn another_node_s_name_is_not_signed() -> Result<()> {
    let master = Node::control_plane()?;
    for name in ["k8s-master01", "worker2", "k8s-master09"] {
        let plain = Node::worker("worker1")?;
        plain.kubelet_pem(&self_signed(name)?)?;

        let by_user = Node::worker("worker1")?;
        by_user.kubelet_pem("")?;
        let config = fs::read_to_string(by_user.at("etc/kubernetes/kubelet.conf"))?;
        by_user.write(
            "etc/kubernetes/kubelet.conf",
            config.replace("default-auth", &format!("system:node:{name}")),
        )?;

        let by_host = Node::worker("worker1")?;
        by_host.kubelet_pem("")?;
        by_host.write("etc/hostname", format!("{name}\n"))?;

        // Another's public certificate, which the cluster's CA did sign, with a key of one's own.
        let by_certificate = Node::worker("worker1")?;
        let real = Authority::of_the_control_plane()?;
        let (_, signed) = request(&format!("/O=system:nodes/CN=system:node:{name}"))?;
        let signed = real.sign(
            &signed,
            "20230223090000Z",
            "20240223090000Z",
            tests::worker::CLIENT,
        )?;
        by_certificate.kubelet_pem(&(signed + &request("/CN=x")?.0))?;

        let all = [
            ("self-signed", plain),
            ("a user's name", by_user),
            ("a host name", by_host),
            ("no key", by_certificate),
        ];
        for (what, attacker) in all {
            let before = attacker.files()?;
            let run_all = || -> Result<Vec<Ran>> {
                Ok(vec![
                    run(&["repair", "--yes"], &[&attacker], &[&master])?,
                    run(
                        &["repair", "--yes", "--only", "certificates"],
                        &[&attacker, &master],
                        &[],
                    )?,
                    run(
                        &["repair", "--yes", "--only", "certificates"],
                        &[&master, &attacker],
                        &[],
                    )?,
                ])
            };
            for ran in run_all().with_context(|| format!("{what} of {name}"))? {
                ensure!(ran.code == 1, "{what} of {name}: {}", ran.transcript());
                // Where the disk contradicts itself, its name is asked for before its trust.
                let next = match ran.stdout.contains("name is in doubt") {
                    true => "--node-name",
                    false => "--trust",
                };
                says(&ran, &["Not signed", next]).with_context(|| format!("{what} of {name}"))?;
                unsigned(&attacker, &before, &ran, &[])
                    .with_context(|| format!("{what} of {name}"))?;
            }
            // To say a name is no proof of it.
            let words = ["repair", "--yes", "--node-name", name];
            let ran = run(&words, &[&attacker], &[&master])?;
            says(&ran, &["Not signed", "--trust"])
                .with_context(|| format!("{what}, --node-name {name}"))?;
            unsigned(&attacker, &before, &ran, &[])
                .with_context(|| format!("{what}, --node-name {name}"))?;
        }
    }
    Ok(())
}

/// An older certificate with its key still says whose disk it is; what the newest says beside it is
/// not signed.
#[test]
fn a_dated_certificate_proves_the_name_and_no_other() -> Result<()> {
    let master = Node::control_plane()?;
    let node = Node::worker("worker1")?;
    let link = fs::read_link(node.at(CURRENT))?;
    let old = fs::read(node.at(&link.to_string_lossy()[1..]))?;
    node.kubelet_pem("")?;
    node.write(
        "var/lib/kubelet/pki/kubelet-client-2022-01-01-00-00-00.pem",
        &old,
    )?;
    let ran = run(&["repair", "--yes"], &[&node], &[&master])?;
    says(
        &ran,
        &[
            "issue a new kubelet client certificate for node worker1",
            "its private key for node worker1 is on this disk",
        ],
    )?;

    let node = Node::worker("worker1")?;
    node.kubelet_pem(&self_signed("worker2")?)?;
    node.write(
        "var/lib/kubelet/pki/kubelet-client-2022-01-01-00-00-00.pem",
        &old,
    )?;
    let before = node.files()?;
    let ran = run(&["repair", "--yes"], &[&node], &[&master])?;
    says(&ran, &["the private key on it is node worker1's"])?;
    unsigned(&node, &before, &ran, &[])
}

#[test]
fn of_two_disks_of_one_name_the_proven_one_is_signed_for_and_of_two_proven_none() -> Result<()> {
    let (master, real) = (Node::control_plane()?, Node::worker("worker1")?);
    let forged = Node::worker("worker1")?;
    forged.kubelet_pem("")?;
    forged.write("etc/machine-id", "99999999999999999999999999999999\n")?;
    let before = forged.files()?;
    let ran = run(&["repair", "--yes"], &[&forged, &real], &[&master])?;
    says(
        &ran,
        &[
            "both say that they are node worker1",
            "its private key for node worker1 is on this disk",
        ],
    )?;
    unsigned(&forged, &before, &ran, &[])?;

    // A copy that was given a machine ID of its own: which of the two is to live, a person has to
    // say.
    let (one, copy) = (Node::worker("worker1")?, Node::worker("worker1")?);
    for path in ["var/lib/kubelet/pki", "etc/kubernetes"] {
        Cmd::new("rm").arg("-rf").arg(copy.at(path)).ok()?;
        Cmd::new("cp")
            .arg("-a")
            .arg(one.at(path))
            .arg(copy.at(path))
            .ok()?;
    }
    copy.write("etc/machine-id", "99999999999999999999999999999999\n")?;
    let (before_one, before_copy) = (one.files()?, copy.files()?);
    let ran = run(&["repair", "--yes"], &[&one, &copy], &[&master])?;
    ensure!(ran.code == 1, "{}", ran.transcript());
    says(&ran, &["one is a copy of the other", "--trust"])?;
    unsigned(&one, &before_one, &ran, &[])?;
    unsigned(&copy, &before_copy, &ran, &[])?;
    let source = one.root().display().to_string();
    let ran = run(
        &["repair", "--yes", "--trust", &source],
        &[&one, &copy],
        &[&master],
    )?;
    says(&ran, &["on your word alone (--trust)"])?;
    unsigned(&one, &before_one, &ran, &["worker1"])?;
    unsigned(&copy, &before_copy, &ran, &[])
}

/// The cluster's own record: a worker whose certificate is lost is known by its machine ID.
#[test]
fn the_cluster_s_record_proves_a_worker_s_name() -> Result<()> {
    let master = Node::control_plane()?;
    with_nodes(
        master.root(),
        &[
            ("worker1", &machine_id("worker1")),
            ("worker2", &machine_id("worker2")),
        ],
    )?;
    let lost = Node::worker("worker1")?;
    lost.kubelet_pem("")?;
    let before = lost.files()?;
    // Another machine's name, and a machine ID that another disk of the run has, too.
    let stranger = Node::worker("worker2")?;
    stranger.kubelet_pem("")?;
    stranger.write("etc/machine-id", "99999999999999999999999999999999\n")?;
    let before_stranger = stranger.files()?;
    let ran = run(&["repair", "--yes"], &[&stranger], &[&master])?;
    says(
        &ran,
        &["no etcd of this cluster in the run has its machine ID for it"],
    )?;
    unsigned(&stranger, &before_stranger, &ran, &[])?;
    stranger.write("etc/machine-id", format!("{}\n", machine_id("worker1")))?;
    let ran = run(&["repair", "--yes"], &[&lost, &stranger], &[&master])?;
    unsigned(&lost, &before, &ran, &[])?;

    let ran = run(&["repair", "--yes"], &[&lost], &[&master])?;
    says(
        &ran,
        &[
            "issue a new kubelet client certificate for node worker1",
            "has this disk's machine ID for node worker1",
        ],
    )?;
    unsigned(&lost, &before, &ran, &["worker1"])
}

/// Puts Node objects into the etcd of a control plane's folder, with real etcd.
fn with_nodes(root: &Path, nodes: &[(&str, &str)]) -> Result<()> {
    fs::create_dir_all(root.join("var/lib"))?;
    Cmd::new("rm")
        .arg("-rf")
        .arg(root.join("var/lib/etcd"))
        .ok()?;
    let mut cluster = Cluster::prepare(&Version::debian(), 1, 100_000, |_, _| {
        root.join("var/lib/etcd")
    })?;
    cluster.run()?;
    for (name, machine_id) in nodes {
        let status = json!({"nodeInfo": {"machineID": machine_id, "kubeletVersion": "v1.20.2"}});
        let node = json!({
            "kind": "Node", "apiVersion": "v1", "metadata": {"name": name}, "spec": {},
            "status": status
        });
        cluster.put(&format!("/registry/minions/{name}"), &node.to_string())?;
    }
    cluster.kill()
}

#[test]
fn the_ferry_and_the_bundle_ask_for_the_same_proof() -> Result<()> {
    let master = Node::control_plane()?;
    let out = tempfile::tempdir()?;
    let at = |name: &str| out.path().join(name).display().to_string();
    let rescue = |words: &[&str]| {
        rescue_faulty(0, words)
            .env("RESCUE_PASSPHRASE", "correct horse")
            .run()
    };
    let cp = master.root().display().to_string();

    let attacker = Node::worker("worker1")?;
    attacker.kubelet_pem(&self_signed("worker2")?)?;
    let before = attacker.files()?;
    let w = attacker.root().display().to_string();
    let asked = rescue(&["certs", "request", "--now", NOW, &w, "-o", &at("req.json")])?;
    ensure!(asked.code == 0, "{}", asked.transcript());
    let signed = rescue(&[
        "certs",
        "sign",
        "--now",
        NOW,
        "--ca",
        &cp,
        &at("req.json"),
        "-o",
        &at("signed.json"),
    ])?;
    ensure!(
        signed.code == 3 && !Path::new(&at("signed.json")).exists(),
        "{}",
        signed.transcript()
    );
    says(
        &signed,
        &["nothing in the request proves", "--trust worker2"],
    )?;

    let made = rescue(&[
        "certs",
        "bundle",
        "--now",
        NOW,
        "--ca",
        &cp,
        "--workers",
        "worker1,worker2",
        "-o",
        &at("bundle.age"),
    ])?;
    ensure!(made.code == 0, "{}", made.transcript());
    let install = [
        "certs",
        "install",
        "--yes",
        "--now",
        NOW,
        &w,
        &at("bundle.age"),
    ];
    let refused = rescue(&install)?;
    ensure!(refused.code == 3, "{}", refused.transcript());
    says(&refused, &["so it is not put there", "--trust"])?;
    unsigned(&attacker, &before, &refused, &[])?;
    let honest = Node::worker("worker1")?;
    let w = honest.root().display().to_string();
    let installed = rescue(&[
        "certs",
        "install",
        "--yes",
        "--now",
        NOW,
        &w,
        &at("bundle.age"),
    ])?;
    ensure!(installed.code == 0, "{}", installed.transcript());
    let lost = Node::worker("worker2")?;
    lost.kubelet_pem("")?;
    let w = lost.root().display().to_string();
    let refused = rescue(&[
        "certs",
        "install",
        "--yes",
        "--now",
        NOW,
        &w,
        &at("bundle.age"),
    ])?;
    ensure!(refused.code == 3, "{}", refused.transcript());
    let installed = rescue(&[
        "certs",
        "install",
        "--yes",
        "--now",
        NOW,
        &w,
        &at("bundle.age"),
        "--trust",
        "worker2",
    ])?;
    ensure!(installed.code == 0, "{}", installed.transcript());
    says(&installed, &["on your word alone (--trust)"])
}

#[test]
fn control_planes_are_signed_for_only_by_name() -> Result<()> {
    let master = Node::control_plane()?;
    let out = tempfile::tempdir()?;
    let at = |name: &str| out.path().join(name).display().to_string();
    let cp = master.root().display().to_string();
    let rescue = |words: &[&str]| {
        rescue_faulty(0, words)
            .env("RESCUE_PASSPHRASE", "correct horse")
            .run()
    };
    let asked = rescue(&["certs", "request", "--now", NOW, &cp, "-o", &at("req.json")])?;
    ensure!(asked.code == 0, "{}", asked.transcript());
    let sign = [
        "certs",
        "sign",
        "--now",
        NOW,
        "--ca",
        &cp,
        &at("req.json"),
        "-o",
        &at("signed.json"),
    ];
    let refused = rescue(&sign)?;
    ensure!(refused.code == 3, "{}", refused.transcript());
    says(
        &refused,
        &["k8s-master01 is a control plane", "--trust k8s-master01"],
    )?;
    let signed = rescue(&[&sign[..], &["--trust", "k8s-master01"]].concat())?;
    ensure!(signed.code == 0, "{}", signed.transcript());
    let bundle = [
        "certs",
        "bundle",
        "--now",
        NOW,
        "--ca",
        &cp,
        "--workers",
        "w1,k8s-master01",
        "-o",
        &at("b.age"),
    ];
    let refused = rescue(&bundle)?;
    ensure!(
        refused.code == 3 && !Path::new(&at("b.age")).exists(),
        "{}",
        refused.transcript()
    );
    let made = rescue(&[&bundle[..], &["--trust", "k8s-master01"]].concat())?;
    ensure!(made.code == 0, "{}", made.transcript());
    Ok(())
}

/// Where a kubelet.conf is lost, its server comes from control planes that prove themselves, and
/// from nobody else.
#[test]
fn addresses_are_lent_by_proven_control_planes_alone() -> Result<()> {
    let master = Node::control_plane()?;
    let (lost, liar) = (Node::worker("worker1")?, Node::worker("worker3")?);
    fs::remove_file(lost.at("etc/kubernetes/kubelet.conf"))?;
    let config = fs::read_to_string(liar.at("etc/kubernetes/kubelet.conf"))?;
    liar.write(
        "etc/kubernetes/kubelet.conf",
        config.replace("k8s-vip.example.internal", "evil.example.org"),
    )?;
    let ran = run(&["repair", "--yes"], &[&liar, &lost], &[&master])?;
    let written = fs::read_to_string(lost.at("etc/kubernetes/kubelet.conf"))
        .with_context(|| ran.transcript())?;
    ensure!(
        !written.contains("evil") && written.contains("server: https://"),
        "{written}"
    );
    // Without a control plane that says it, nothing is written.
    let alone = Node::worker("worker1")?;
    fs::remove_file(alone.at("etc/kubernetes/kubelet.conf"))?;
    let ran = run(&["repair", "--yes"], &[&liar, &alone], &[])?;
    ensure!(
        !alone.at("etc/kubernetes/kubelet.conf").exists(),
        "{}",
        ran.transcript()
    );
    Ok(())
}
