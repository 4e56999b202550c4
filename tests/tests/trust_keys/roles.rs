//! Disks that say they are control planes.

use std::collections::BTreeSet;
use std::fs;

use anyhow::{Context as _, Result, ensure};
use base64::Engine as _;
use tests::command::Cmd;
use tests::disk::{DiskBuilder, FileSystem, MIB, Partition, control_plane};
use tests::programs::rescue_faulty;
use tests::worker::{Authority, request};

use super::tables::{NOW, Node, PKI, no_key_crossed, nothing_crossed, private_keys, run, says};

/// One more lie each; all of it without any key that only a control plane has.
const MANIFESTS: &str = "etc/kubernetes/manifests/*";
const PUBLIC: [&str; 2] = ["etc/kubernetes/pki/*.crt", "etc/kubernetes/pki/sa.pub"];

/// How a worker's disk may say that it is a control plane.
fn claims() -> Result<Vec<(&'static str, Node)>> {
    let worker = || Node::worker("worker1");
    let real = Authority::of_the_control_plane()?;
    let mut all = Vec::new();

    let node = worker()?;
    node.write("etc/kubernetes/manifests/kube-apiserver.yaml", "")?;
    all.push(("an empty manifest", node));

    let node = worker()?;
    node.take(&[MANIFESTS])?;
    node.take(&PUBLIC)?;
    all.push(("all manifests and certificates", node));

    let node = worker()?;
    node.take(&[MANIFESTS])?;
    node.take(&PUBLIC)?;
    for key in [
        "apiserver",
        "apiserver-kubelet-client",
        "front-proxy-client",
        "etcd/peer",
        "etcd/server",
        "sa",
    ] {
        node.write(&format!("{PKI}/{key}.key"), request("/CN=x")?.0)?;
    }
    all.push(("keys that do not fit", node));

    let node = worker()?;
    node.take(&[MANIFESTS])?;
    node.take(&PUBLIC)?;
    let made = Authority::of_another_cluster()?;
    for (file, subject) in [
        ("apiserver", "/CN=kube-apiserver"),
        (
            "apiserver-kubelet-client",
            "/O=system:masters/CN=kube-apiserver-kubelet-client",
        ),
    ] {
        node.leaf(&made, file, subject)?;
    }
    all.push(("leaves of a CA made for it, with their keys", node));

    let node = worker()?;
    node.take(&[MANIFESTS])?;
    node.take(&PUBLIC)?;
    for file in ["ca.crt", "ca.key"] {
        fs::copy(made.path().join(file), node.at(&format!("{PKI}/{file}")))?;
    }
    node.leaf(
        &made,
        "apiserver-kubelet-client",
        "/CN=kube-apiserver-kubelet-client",
    )?;
    all.push(("a CA made for it, with its key", node));

    // What the cluster's CA really signs for workers and for people.
    for (what, subject) in [
        (
            "its own kubelet's leaf",
            "/O=system:nodes/CN=system:node:worker1",
        ),
        ("a person's leaf", "/O=dev/CN=jane"),
        (
            "an administrator's leaf",
            "/O=system:masters/CN=kubernetes-admin",
        ),
    ] {
        let node = worker()?;
        node.take(&[MANIFESTS])?;
        node.take(&PUBLIC)?;
        for file in ["apiserver", "apiserver-kubelet-client"] {
            node.leaf(&real, file, subject)?;
        }
        all.push((what, node));
    }
    Ok(all)
}

#[test]
fn what_a_disk_says_of_itself_gets_it_no_key() -> Result<()> {
    for (what, attacker) in claims()? {
        let master = Node::control_plane()?;
        let secrets = private_keys(&master.files()?);
        let before = attacker.files()?;
        let check = |ran: &tests::command::Ran| -> Result<()> {
            ensure!(ran.code == 1, "{}", ran.transcript());
            ensure!(
                !ran.transcript().contains("PRIVATE KEY"),
                "a key was printed"
            );
            says(ran, &["--trust"])?;
            nothing_crossed(&attacker, &before, &secrets, &["worker1"])
        };
        let everything = private_keys(&master.files()?);
        for words in [
            &["repair", "--yes"][..],
            &[
                "repair",
                "--yes",
                "--skip",
                "shared-keys",
                "--skip",
                "service-account-keys",
            ],
            &["repair", "--yes", "--skip", "claimed-role", "--renew-ca"],
        ] {
            let signs = run(words, &[&attacker], &[&master]).with_context(|| what)?;
            if words.len() == 2 {
                check(&signs).with_context(|| format!("{what}: {words:?} with --ca"))?;
            }
            nothing_crossed(&attacker, &before, &everything, &["worker1"])
                .with_context(|| format!("{what}: {words:?}"))?;
        }
        let files = master.files()?;
        ensure!(
            private_keys(&files) == everything,
            "{what}: a disk that only lends was written to"
        );
        for order in [[&attacker, &master], [&master, &attacker]] {
            let ran = run(&["repair", "--yes"], &order, &[]).with_context(|| what)?;
            let now = private_keys(&master.files()?);
            // What it says of its etcd may be refused, after the real node was repaired or without.
            ensure!(
                matches!(ran.code, 1 | 3 | 4),
                "{what}: {}",
                ran.transcript()
            );
            says(&ran, &["--trust"]).with_context(|| what)?;
            let all: BTreeSet<Vec<u8>> = secrets.union(&now).cloned().collect();
            nothing_crossed(&attacker, &before, &all, &["worker1"])
                .with_context(|| format!("{what}, as two sources"))?;
        }
    }
    Ok(())
}

/// The words of the finding, the exit code, and that a worker is still mended as the worker that it
/// is.
#[test]
fn a_worker_stays_a_worker_and_is_told_of() -> Result<()> {
    let (attacker, master) = (Node::worker("worker1")?, Node::control_plane()?);
    attacker.write("etc/kubernetes/manifests/kube-apiserver.yaml", "")?;
    let seen = run(&["inspect"], &[&attacker, &master], &[])?;
    says(
        &seen,
        &[
            "worker1 says that it is a control plane, and nothing on its disk proves it",
            "--trust",
        ],
    )?;
    let ran = run(&["repair", "--yes"], &[&attacker], &[&master])?;
    ensure!(ran.code == 1, "{}", ran.transcript());
    says(
        &ran,
        &[
            "issue a new kubelet client certificate for node worker1",
            "kube-apiserver.yaml",
            "taken for a worker",
        ],
    )?;
    // Alone it is what it says: nothing can cross, and a control plane with a damaged manifest is
    // mended as one.
    let alone = run(&["inspect", "--json"], &[&attacker], &[])?.json()?;
    ensure!(alone["nodes"][0]["role"] == "control-plane", "{alone}");
    Ok(())
}

#[test]
fn the_user_s_word_is_shown_and_names_one_disk() -> Result<()> {
    let (lost, master) = (Node::second_control_plane()?, Node::control_plane()?);
    // A control plane that has lost every key, by a slip of the hand.
    for path in [
        "etc/kubernetes/pki",
        "etc/kubernetes/admin.conf",
        "etc/kubernetes/scheduler.conf",
        "etc/kubernetes/controller-manager.conf",
    ] {
        Cmd::new("rm").arg("-rf").arg(lost.at(path)).ok()?;
    }
    let roots = [&lost, &master];
    let refused = run(&["repair", "--yes"], &roots, &[])?;
    says(
        &refused,
        &["k8s-master02 says that it is a control plane", "--trust"],
    )?;
    ensure!(
        !lost.at(&format!("{PKI}/ca.key")).exists(),
        "a key crossed without proof"
    );
    let nobody = run(&["repair", "--yes", "--trust", "nobody"], &roots, &[])?;
    ensure!(
        nobody.code == 3 && nobody.stderr.contains("no node named nobody"),
        "{}",
        nobody.transcript()
    );
    // The line that the finding gives, typed.
    let line = refused
        .stdout
        .split("--trust ")
        .nth(1)
        .context("a line to type")?;
    let name = line
        .split([':', ' ', '\n'])
        .next()
        .unwrap_or_default()
        .trim_end_matches('.');
    let ran = run(&["repair", "--yes", "--trust", name], &roots, &[])?;
    says(&ran, &["on your word alone (--trust)"])?;
    for file in ["ca.key", "ca.crt"] {
        ensure!(
            fs::read(lost.at(&format!("{PKI}/{file}")))?
                == fs::read(master.at(&format!("{PKI}/{file}")))?,
            "{file}\n{}",
            ran.transcript()
        );
    }
    // Two disks of one name: only a source is clear.
    let twin = Node::worker("k8s-master02")?;
    let unclear = run(
        &["repair", "--yes", "--trust", "k8s-master02"],
        &[&lost, &master, &twin],
        &[],
    )?;
    ensure!(
        unclear.code == 3 && unclear.stderr.contains("all called k8s-master02"),
        "{}",
        unclear.transcript()
    );
    Ok(())
}

#[test]
fn images_are_no_other_matter() -> Result<()> {
    let folder = tempfile::Builder::new().prefix("rescue-trust-").tempdir()?;
    let master = control_plane(&folder.path().join("cp.img"), 700 * MIB)?;
    let files = Node::worker("worker1")?;
    files.write("etc/kubernetes/manifests/kube-apiserver.yaml", "")?;
    let root = Partition::new(FileSystem::Ext4, "/");
    let attacker = DiskBuilder::new(192 * MIB)
        .partition(root)
        .build(&folder.path().join("w.img"))?;
    attacker.mounted(|to| {
        Cmd::new("cp")
            .arg("-a")
            .arg(files.root().join("."))
            .arg(to)
            .ok()
            .map(drop)
    })?;
    let real = Node::control_plane()?;
    let secrets = private_keys(&real.files()?);
    let (cp, w) = (
        master.path.display().to_string(),
        attacker.path.display().to_string(),
    );
    let hash = master.sha256()?;
    // The fixture's own kubelet's serving key is on both.
    let had = private_keys(&files.files()?);
    let patterns = folder.path().join("patterns");
    fs::write(
        &patterns,
        pieces(&secrets.difference(&had).cloned().collect()),
    )?;
    for words in [vec![w.as_str(), "--ca", &cp], vec![&w, &cp], vec![&cp, &w]] {
        let ran =
            rescue_faulty(0, [&["repair", "--yes", "--now", NOW], &words[..]].concat()).run()?;
        ensure!(ran.code == 1, "{}", ran.transcript());
        says(&ran, &["nothing on its disk proves it", "--trust"])?;
        if words.contains(&"--ca") {
            ensure!(
                master.sha256()? == hash,
                "the disk that lends was written to"
            );
        }
        // Byte by byte, freed blocks included.
        let found = Cmd::new("grep")
            .args(["-a", "-c", "-F", "-f"])
            .arg(&patterns)
            .arg(&attacker.path)
            .run()?;
        ensure!(
            found.code == 1,
            "{words:?}: a key is on the disk: {}",
            found.transcript()
        );
    }
    // The search finds what it looks for.
    let found = Cmd::new("grep")
        .args(["-a", "-c", "-F", "-f"])
        .arg(&patterns)
        .arg(&master.path)
        .run()?;
    ensure!(
        found.code == 0,
        "the search finds nothing where the keys are"
    );
    Ok(())
}

/// Pieces of each key as a PEM file has them, and as a kubeconfig has that PEM file, one a line.
fn pieces(secrets: &BTreeSet<Vec<u8>>) -> String {
    let encode = |bytes: &[u8]| base64::engine::general_purpose::STANDARD.encode(bytes);
    let lines = secrets
        .iter()
        .map(|der| encode(der))
        .filter(|text| text.len() > 192);
    let lines: Vec<String> = lines.map(|text| text[64..128].to_owned()).collect();
    let within = lines
        .iter()
        .flat_map(|line| (0..3).map(move |skip| encode(&line.as_bytes()[skip..skip + 48])));
    lines
        .iter()
        .cloned()
        .chain(within)
        .map(|piece| piece + "\n")
        .collect()
}

/// A worker's disk that has made itself a CA, in whatever way: its own kubelet.conf trusts it, its
/// leaves are signed with it, and all the cluster's public certificates lie beside.
fn with_own_ca(name: &str, keeps_trace: bool) -> Result<Node> {
    let node = Node::worker(name)?;
    node.take(&[MANIFESTS])?;
    node.take(&["etc/kubernetes/pki/etcd/ca.crt"])?;
    let made = Authority::of_another_cluster()?;
    for file in ["ca.crt", "ca.key"] {
        fs::copy(made.path().join(file), node.at(&format!("{PKI}/{file}")))?;
    }
    node.leaf(
        &made,
        "apiserver-kubelet-client",
        "/CN=kube-apiserver-kubelet-client",
    )?;
    let ca =
        base64::engine::general_purpose::STANDARD.encode(fs::read(made.path().join("ca.crt"))?);
    let config = fs::read_to_string(node.at("etc/kubernetes/kubelet.conf"))?;
    let lines = config.lines().map(
        |line| match line.split_once("certificate-authority-data: ") {
            Some((before, _)) => format!("{before}certificate-authority-data: {ca}\n"),
            None => format!("{line}\n"),
        },
    );
    node.write("etc/kubernetes/kubelet.conf", lines.collect::<String>())?;
    if !keeps_trace {
        node.kubelet(&made, name)?;
    }
    Ok(node)
}

/// The user's word for one disk is no word for another, whatever that other has signed for itself.
#[test]
fn a_ca_of_one_s_own_making_opens_nothing_beside_a_trusted_disk() -> Result<()> {
    for keeps_trace in [true, false] {
        let (lost, master) = (Node::second_control_plane()?, Node::control_plane()?);
        let attacker = with_own_ca("worker1", keeps_trace)?;
        let all = private_keys(&lost.files()?)
            .union(&private_keys(&master.files()?))
            .cloned()
            .collect();
        for key in [
            "apiserver",
            "apiserver-kubelet-client",
            "front-proxy-client",
            "ca",
            "front-proxy-ca",
        ] {
            fs::remove_file(lost.at(&format!("{PKI}/{key}.key")))?;
        }
        for config in ["admin", "scheduler", "controller-manager"] {
            fs::remove_file(lost.at(&format!("etc/kubernetes/{config}.conf")))?;
        }
        let before = attacker.files()?;
        let trusted = lost.root().display().to_string();
        for order in [[&lost, &attacker, &master], [&attacker, &master, &lost]] {
            let ran = run(&["repair", "--yes", "--trust", &trusted], &order, &[])?;
            // What it signs with its own CA for itself is its own.
            no_key_crossed(&attacker, &before, &all).with_context(|| ran.transcript())?;
            let copied =
                fs::read(lost.at(&format!("{PKI}/ca.key"))).with_context(|| ran.transcript())?;
            ensure!(
                copied == fs::read(master.at(&format!("{PKI}/ca.key")))?,
                "the trusted disk got another key"
            );
        }
    }
    Ok(())
}

/// The other way round: what the attacker made for itself does not get onto a disk that the user
/// vouches for.
#[test]
fn a_trusted_disk_takes_nothing_from_one_without_proof() -> Result<()> {
    let (lost, attacker) = (
        Node::second_control_plane()?,
        with_own_ca("worker1", false)?,
    );
    for file in ["sa.key", "sa.pub"] {
        fs::remove_file(lost.at(&format!("{PKI}/{file}")))?;
    }
    attacker.service_account_keys()?;
    let trusted = lost.root().display().to_string();
    let ran = run(
        &["repair", "--yes", "--trust", &trusted],
        &[&lost, &attacker],
        &[],
    )?;
    ensure!(
        !lost.at(&format!("{PKI}/sa.key")).exists(),
        "{}",
        ran.transcript()
    );
    // Beside a real control plane the real key comes, and the attacker's does not stand in its way.
    let master = Node::control_plane()?;
    let ran = run(
        &["repair", "--yes", "--trust", &trusted],
        &[&lost, &attacker, &master],
        &[],
    )?;
    let copied = fs::read(lost.at(&format!("{PKI}/sa.key"))).with_context(|| ran.transcript())?;
    ensure!(
        copied == fs::read(master.at(&format!("{PKI}/sa.key")))?,
        "{}",
        ran.transcript()
    );
    Ok(())
}

/// kubespray gives every worker a leaf of the etcd CA that may serve.
#[test]
fn a_leaf_of_the_etcd_ca_gets_no_ca_key() -> Result<()> {
    let etcd = tempfile::tempdir()?;
    let real = Node::control_plane()?;
    for (from, to) in [("etcd/ca.crt", "ca.crt"), ("etcd/ca.key", "ca.key")] {
        fs::copy(real.at(&format!("{PKI}/{from}")), etcd.path().join(to))?;
    }
    for name in ["etcd-node-worker1", "etcd-member-worker1"] {
        let (attacker, master) = (Node::worker("worker1")?, Node::control_plane()?);
        attacker.take(&[MANIFESTS])?;
        attacker.take(&["etc/kubernetes/pki/etcd/ca.crt"])?;
        let (key, request) = request(&format!("/CN={name}"))?;
        let usages = "extendedKeyUsage=clientAuth,serverAuth\nbasicConstraints=CA:FALSE\n";
        let signed = Authority::at(etcd.path())?.sign(
            &request,
            "20230223090000Z",
            "20240223090000Z",
            usages,
        )?;
        for file in ["server", "peer"] {
            attacker.write(&format!("{PKI}/etcd/{file}.crt"), &signed)?;
            attacker.write(&format!("{PKI}/etcd/{file}.key"), &key)?;
        }
        let (before, secrets) = (attacker.files()?, private_keys(&master.files()?));
        let ran = run(
            &["repair", "--yes", "--skip", "etcd"],
            &[&attacker, &master],
            &[],
        )?;
        ensure!(
            !attacker.at(&format!("{PKI}/etcd/ca.key")).exists(),
            "{name}: {}",
            ran.transcript()
        );
        if name.starts_with("etcd-node") {
            nothing_crossed(&attacker, &before, &secrets, &["worker1"])
                .with_context(|| ran.transcript())?;
        }
    }
    Ok(())
}
