//! `rescue certs`: every certificate of many nodes, from wherever the nodes themselves name them.

mod pki_support;

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use pki_support::cluster::{
    CA, CLIENT, Cluster, P256, P384, RSA, SERVER, Wanted, certificate, inline,
};
use serde_json::Value;
use tests::command::{Cmd, Ran};
use tests::fixtures;
use tests::programs::rescue_faulty;

const NOW: &str = "2026-11-23T08:00:00Z";

/// The words after `rescue certs`.
fn certs(words: &[&str]) -> Result<Ran> {
    rescue_faulty(0, ["certs"].iter().chain(words)).run()
}

fn text(path: &Path) -> Result<&str> {
    path.to_str().context("test paths are UTF-8")
}

fn folder(cluster: &Cluster, name: &str) -> Result<()> {
    cluster.write("etc/hostname", format!("{name}\n"))?;
    cluster.write("etc/hosts", "127.0.0.1 localhost\n")?;
    Ok(fs::create_dir(cluster.root().join("bin"))?)
}

/// Every control plane has one; a day's certificate is enough.
fn admin_conf(cluster: &Cluster) -> Result<()> {
    let pair = cluster.client("ca", P256, "/O=system:masters/CN=kubernetes-admin")?;
    cluster.write(
        "etc/kubernetes/admin.conf",
        cluster.kubeconfig("kubernetes-admin", &inline(&pair))?,
    )
}

fn row<'a>(report: &'a Value, name: &str) -> Result<&'a Value> {
    let rows = report["nodes"][0]["certificates"]
        .as_array()
        .context("certificates")?;
    rows.iter()
        .find(|row| row["name"] == name)
        .with_context(|| format!("no row {name} in {report:#}"))
}

fn stray<'a>(report: &'a Value, path: &str) -> Result<&'a Value> {
    let strays = report["nodes"][0]["unreferenced"]
        .as_array()
        .context("unreferenced")?;
    strays
        .iter()
        .find(|stray| stray["path"] == path)
        .with_context(|| format!("{path} is not in {strays:#?}"))
}

fn openssl(certificate: &Path, what: &[&str]) -> Result<String> {
    let ran = Cmd::new("openssl")
        .args(["x509", "-noout", "-in"])
        .arg(certificate)
        .args(what)
        .ok()?;
    Ok(ran
        .stdout
        .trim()
        .split_once('=')
        .map(|(_, value)| value.to_owned())
        .unwrap_or_default())
}

#[test]
fn a_real_node_is_listed_with_users_and_leftovers() -> Result<()> {
    let node = tempfile::tempdir()?;
    fixtures::unpack_control_plane(node.path())
        .context("unpacking the real node (are you root?)")?;
    let kubernetes = node.path().join("etc/kubernetes");
    let pki = kubernetes.join("pki");
    fs::copy(pki.join("apiserver.crt"), pki.join("apiserver.crt.old"))?;
    fs::copy(pki.join("apiserver.key"), pki.join("etcd/spare.key"))?;
    fs::copy(
        kubernetes.join("admin.conf"),
        kubernetes.join("admin.conf.bak"),
    )?;
    fs::write(pki.join("ca.srl"), "9C5A\n")?;
    let ran = certs(&["--json", "--now", NOW, "--root", text(node.path())?])?;
    ensure!(
        ran.code == 1 && !ran.stdout.contains("PRIVATE KEY"),
        "{}",
        ran.transcript()
    );
    let report = ran.json()?;
    // The rows of `kubeadm certs check-expiration`, in its order, then the kubelet's and the CAs.
    let rows = report["nodes"][0]["certificates"]
        .as_array()
        .context("certificates")?;
    let names: Vec<&str> = rows.iter().filter_map(|row| row["name"].as_str()).collect();
    let expected = [
        "admin.conf",
        "apiserver",
        "apiserver-etcd-client",
        "apiserver-kubelet-client",
        "controller-manager.conf",
        "etcd-healthcheck-client",
        "etcd-peer",
        "etcd-server",
        "front-proxy-client",
        "scheduler.conf",
        "kubelet.conf",
        "kubelet.crt",
        "ca",
        "front-proxy-ca",
        "etcd-ca",
    ];
    ensure!(names == expected, "{names:?}");
    let api = row(&report, "apiserver")?;
    let file = pki.join("apiserver.crt");
    let serial = openssl(&file, &["-serial"])?.to_lowercase();
    ensure!(
        api["serial"]
            .as_str()
            .map(|serial| serial.trim_start_matches('0'))
            == Some(serial.trim_start_matches('0')),
        "{api}"
    );
    ensure!(
        openssl(&file, &["-enddate", "-dateopt", "iso_8601"])?.replace(' ', "T") == api["expires"],
        "{api}"
    );
    ensure!(
        openssl(&file, &["-startdate", "-dateopt", "iso_8601"])?.replace(' ', "T")
            == api["not_before"],
        "{api}"
    );
    ensure!(
        api["alternative_names"]
            .as_array()
            .is_some_and(|names| names.len() == 9),
        "{api}"
    );
    ensure!(
        api["used_by"] == serde_json::json!(["kube-apiserver --tls-cert-file"]),
        "{api}"
    );
    ensure!(
        (&api["key_type"], &api["verdict"]) == (&"RSA-2048".into(), &"expired".into()),
        "{api}"
    );
    ensure!(
        api["residual_seconds"]
            .as_i64()
            .is_some_and(|left| left < -86_400 * 365),
        "{api}"
    );
    let kubelet = row(&report, "kubelet.conf")?;
    ensure!(
        kubelet["managed_by"] == "kubelet"
            && kubelet["subject"].to_string().contains("system:node:"),
        "{kubelet}"
    );
    ensure!(
        kubelet["used_by"]
            .to_string()
            .contains("kubelet.conf client-certificate"),
        "{kubelet}"
    );
    let users = row(&report, "etcd-ca")?["used_by"].to_string();
    for user in [
        "kube-apiserver --etcd-cafile",
        "etcd --trusted-ca-file",
        "etcd --peer-trusted-ca-file",
    ] {
        ensure!(users.contains(user), "{user}: {users}");
    }
    let strays = report["nodes"][0]["unreferenced"]
        .as_array()
        .context("unreferenced")?;
    ensure!(strays.len() == 4, "{strays:#?}");
    let old = stray(&report, "/etc/kubernetes/pki/apiserver.crt.old")?;
    ensure!(
        old["kind"] == "certificate"
            && old["subject"] == "CN=kube-apiserver"
            && old["expires"] == api["expires"],
        "{old}"
    );
    ensure!(stray(&report, "/etc/kubernetes/pki/etcd/spare.key")?["kind"] == "key");
    ensure!(stray(&report, "/etc/kubernetes/admin.conf.bak")?["kind"] == "kubeconfig");
    ensure!(stray(&report, "/etc/kubernetes/pki/ca.srl")?["kind"] == "other");

    let table = certs(&["--now", NOW, "--root", text(node.path())?])?;
    let widest = table
        .stdout
        .lines()
        .take(16)
        .map(|line| line.chars().count())
        .max();
    ensure!(widest.is_some_and(|width| width <= 80), "{}", table.stdout);
    ensure!(
        table.stdout.contains("15 certificates: 12 expired, 3 ok"),
        "{}",
        table.stdout
    );
    let details = certs(&["--details", "--now", NOW, "--root", text(node.path())?])?;
    ensure!(
        !details.stdout.contains("PRIVATE KEY")
            && details.stdout.contains("used by     etcd --cert-file"),
        "{}",
        details.stdout
    );
    // The same node a month before the leaves end.
    let early = certs(&[
        "--now",
        "2024-02-01T00:00:00Z",
        "--root",
        text(node.path())?,
    ])?;
    ensure!(
        early.stdout.contains("12 expiring, 3 ok") && early.stdout.contains("22d"),
        "{}",
        early.transcript()
    );
    let good = certs(&[
        "--now",
        "2023-06-01T00:00:00Z",
        "--root",
        text(node.path())?,
    ])?;
    ensure!(good.code == 0, "{}", good.transcript());
    Ok(())
}

#[test]
fn kubesprays_folders_and_an_etcd_outside_of_kubernetes() -> Result<()> {
    let cluster = Cluster::new()?;
    folder(&cluster, "node1")?;
    let root = cluster.root();
    fs::remove_dir_all(root.join("etc/kubernetes/pki"))?;
    fs::create_dir_all(root.join("etc/kubernetes/ssl"))?;
    // Relative while this machine's openssl works through it.
    cluster.link("etc/kubernetes/pki", "ssl")?;
    let ssl = root.join("etc/kubernetes/ssl");
    let make = |base: &Path, subject: &str, extensions: &str, signer: Option<&Path>| {
        certificate(
            &Wanted {
                base,
                key: P256,
                subject,
                extensions,
                days: 400,
            },
            signer,
            None,
        )
    };
    let (ca, etcd) = (ssl.join("ca"), root.join("etc/ssl/etcd/ssl"));
    make(&ca, "/CN=kubernetes", CA, None)?;
    make(
        &ssl.join("apiserver"),
        "/CN=kube-apiserver",
        &format!("{SERVER}\nsubjectAltName=DNS:vip"),
        Some(&ca),
    )?;
    make(&etcd.join("ca"), "/CN=etcd-ca", CA, None)?;
    for name in ["member-node1", "admin-node1", "node-node1"] {
        make(
            &etcd.join(name),
            &format!("/CN=etcd-{name}"),
            CLIENT,
            Some(&etcd.join("ca")),
        )?;
        fs::rename(
            etcd.join(format!("{name}.crt")),
            etcd.join(format!("{name}.pem")),
        )?;
        fs::rename(
            etcd.join(format!("{name}.key")),
            etcd.join(format!("{name}-key.pem")),
        )?;
    }
    fs::rename(etcd.join("ca.crt"), etcd.join("ca.pem"))?;
    fs::rename(etcd.join("ca.key"), etcd.join("ca-key.pem"))?;
    cluster.write(
        "etc/etcd.env",
        "ETCD_NAME=etcd1\nETCD_CERT_FILE=/etc/ssl/etcd/ssl/member-node1.pem\n\
         ETCD_KEY_FILE=/etc/ssl/etcd/ssl/member-node1-key.pem\n",
    )?;
    cluster.manifest(
        "kube-apiserver",
        &[
            "--client-ca-file=/etc/kubernetes/ssl/ca.crt",
            "--tls-cert-file=/etc/kubernetes/ssl/apiserver.crt",
            "--tls-private-key-file=/etc/kubernetes/ssl/apiserver.key",
            "--etcd-cafile=/etc/ssl/etcd/ssl/ca.pem",
            "--etcd-certfile=/etc/ssl/etcd/ssl/node-node1.pem",
            "--etcd-keyfile=/etc/ssl/etcd/ssl/node-node1-key.pem",
        ],
    )?;
    admin_conf(&cluster)?;
    fs::remove_file(root.join("etc/kubernetes/pki"))?;
    cluster.link("etc/kubernetes/pki", "/etc/kubernetes/ssl")?;
    let ran = certs(&["--json", "--root", text(root)?])?;
    let report = ran.json()?;
    ensure!(ran.code == 0, "{}", ran.transcript());
    ensure!(row(&report, "apiserver")?["path"] == "/etc/kubernetes/ssl/apiserver.crt");
    let client = row(&report, "apiserver-etcd-client")?;
    ensure!(
        client["path"] == "/etc/ssl/etcd/ssl/node-node1.pem" && client["managed_by"] == "kubespray",
        "{client}"
    );
    let member = row(&report, "member-node1.pem")?;
    ensure!(
        member["kind"] == "other" && member["authority"] == "etcd-ca",
        "{member}"
    );
    ensure!(
        member["used_by"] == serde_json::json!(["etcd.env ETCD_CERT_FILE"]),
        "{member}"
    );
    for name in ["member-node1.pem", "admin-node1.pem", "etcd-ca"] {
        let remark = row(&report, name)?["remark"].to_string();
        ensure!(
            remark.contains("not kubeadm's: renewed by kubespray"),
            "{name}: {remark}"
        );
    }
    // Neither the link nor any key is taken for a leftover, and no file is listed twice.
    ensure!(
        report["nodes"][0]["unreferenced"] == serde_json::json!([]),
        "{report:#}"
    );
    let rows = report["nodes"][0]["certificates"]
        .as_array()
        .context("certificates")?;
    let mut paths: Vec<&str> = rows.iter().filter_map(|row| row["path"].as_str()).collect();
    paths.sort_unstable();
    paths.dedup();
    ensure!(paths.len() == rows.len(), "{rows:#?}");
    Ok(())
}

#[test]
fn certificates_that_only_the_node_itself_knows_of() -> Result<()> {
    let cluster = Cluster::control_plane(P256, "/CN=kubernetes", CA, 3650, "1")?;
    folder(&cluster, "node1")?;
    let root = cluster.root();
    for (base, key) in [("serving", P384), ("sni", RSA)] {
        let base = root.join("srv/tls").join(base);
        let extensions =
            format!("{SERVER}subjectAltName=DNS:api.example.org,IP:10.1.2.3,email:a@b.c\n");
        certificate(
            &Wanted {
                base: &base,
                key,
                subject: "/CN=own",
                extensions: &extensions,
                days: 400,
            },
            None,
            None,
        )?;
    }
    cluster.write(
        "var/lib/kubelet/config.yaml",
        "tlsCertFile: /srv/tls/serving.crt\ntlsPrivateKeyFile: /srv/tls/serving.key\n",
    )?;
    cluster.manifest(
        "kube-apiserver",
        &[
            "--client-ca-file=/etc/kubernetes/pki/ca.crt",
            "'--tls-sni-cert-key=/srv/tls/sni.crt,/srv/tls/sni.key:*.example.org'",
        ],
    )?;
    let pair = cluster.client("ca", P256, "/CN=system:kube-scheduler")?;
    cluster.write(
        "etc/kubernetes/scheduler.conf",
        cluster.kubeconfig("system:kube-scheduler", &inline(&pair))?,
    )?;
    let report = certs(&["--json", "--root", text(root)?])?.json()?;
    let sni = row(&report, "sni.crt")?;
    ensure!(
        sni["used_by"] == serde_json::json!(["kube-apiserver --tls-sni-cert-key"])
            && sni["authority"] == "self",
        "{sni}"
    );
    ensure!(
        sni["alternative_names"]
            == serde_json::json!(["DNS:api.example.org", "IP:10.1.2.3", "email:a@b.c"]),
        "{sni}"
    );
    let users: Vec<&Value> = report["nodes"][0]["certificates"]
        .as_array()
        .context("certificates")?
        .iter()
        .filter(|row| row["path"] == "/srv/tls/serving.crt")
        .collect();
    ensure!(
        users.len() == 1
            && users[0]["used_by"] == serde_json::json!(["kubelet config tlsCertFile"]),
        "{users:?}"
    );
    ensure!(users[0]["key_type"] == "ECDSA-P384");
    // A day's client certificate is good although a month would be "soon".
    ensure!(
        row(&report, "scheduler.conf")?["verdict"] == "ok",
        "{report:#}"
    );
    Ok(())
}

#[test]
fn many_nodes_and_one_that_cannot_be_read() -> Result<()> {
    let nodes: Vec<Cluster> = (0..3)
        .map(|_| Cluster::control_plane(P256, "/CN=kubernetes", CA, 3650, "1"))
        .collect::<Result<_>>()?;
    for (number, node) in nodes.iter().enumerate() {
        folder(node, &format!("node{number}"))?;
        admin_conf(node)?;
    }
    let roots: Vec<&str> = nodes
        .iter()
        .map(|node| text(node.root()))
        .collect::<Result<_>>()?;
    let missing = format!("{}/no-such-disk.img", roots[0]);
    let all = ["--root", roots[0], "--root", roots[1], "--root", roots[2]];
    let good = certs(&all)?;
    ensure!(
        good.code == 0 && good.stdout.contains("3 nodes, 6 certificates: 6 ok"),
        "{}",
        good.transcript()
    );
    let words: Vec<&str> = all.into_iter().chain([missing.as_str()]).collect();
    let ran = certs(&words)?;
    ensure!(ran.code == 1, "{}", ran.transcript());
    for name in [
        "node0",
        "node1",
        "node2",
        "Could not be read",
        "no-such-disk.img",
    ] {
        ensure!(ran.stdout.contains(name), "{name}: {}", ran.transcript());
    }
    let json = certs(&words.iter().copied().chain(["--json"]).collect::<Vec<_>>())?.json()?;
    ensure!(
        json["unreadable"][0]["source"] == missing.as_str()
            && json["nodes"].as_array().map(Vec::len) == Some(3),
        "{json}"
    );
    let one = certs(
        &all.into_iter()
            .chain(["--node", "node1"])
            .collect::<Vec<_>>(),
    )?;
    ensure!(
        one.code == 0 && one.stdout.contains("1 node,") && !one.stdout.contains("node2"),
        "{}",
        one.transcript()
    );
    let none = certs(
        &all.into_iter()
            .chain(["--node", "node9"])
            .collect::<Vec<_>>(),
    )?;
    ensure!(
        none.code == 3 && none.stderr.contains("node0 ("),
        "{}",
        none.transcript()
    );
    ensure!(certs(&[&missing])?.code == 3);
    Ok(())
}
