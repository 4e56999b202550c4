//! Clusters whose files are not where kubeadm puts them, or serve more than one purpose.

mod pki_support;

use anyhow::{Context as _, Result, ensure};
use pki_support::cluster::{CA, CLIENT, Cluster, P256, SERVER, inline, openssl_x509, text, verify};
use pki_support::{repair, told};
use rescue::base::severity::Severity;
use rescue::finding::Finding;
use rescue::node::Node;
use rescue::pki::listing::{Listing, Manager};
use rescue::settings::Settings;
use std::fs;
use time::{Duration, OffsetDateTime};

/// Leaves live for a day; this is a month later.
fn later() -> Settings {
    Settings {
        now: OffsetDateTime::now_utc() + Duration::days(30),
        now_given: true,
        ..Settings::default()
    }
}

fn finding<'a>(findings: &'a [Finding], words: &str) -> Result<&'a Finding> {
    let found = findings
        .iter()
        .find(|finding| finding.title.contains(words));
    found.with_context(|| format!("no finding says {words:?}:\n{}", told(findings)))
}

/// Built by hand: etcd serves, meets its peers and lets the API server in with one and the same
/// certificate.
#[test]
fn one_certificate_for_three_purposes_stays_good_for_all() -> Result<()> {
    let cluster = Cluster::new()?;
    cluster.ca("ca", P256, "/CN=kubernetes", CA, 3650, "1")?;
    cluster.ca("etcd/ca", P256, "/CN=etcd-ca", CA, 3650, "1")?;
    let names = format!("{SERVER}subjectAltName=DNS:node1,IP:10.0.0.5,IP:127.0.0.1\n")
        .replace("serverAuth", "serverAuth,clientAuth");
    cluster.leaf("etcd/all", "etcd/ca", P256, "/CN=node1", &names)?;
    let (certificate, key) = (
        "/etc/kubernetes/pki/etcd/all.crt",
        "/etc/kubernetes/pki/etcd/all.key",
    );
    cluster.manifest(
        "kube-apiserver",
        &[
            "--client-ca-file=/etc/kubernetes/pki/ca.crt",
            "--etcd-cafile=/etc/kubernetes/pki/etcd/ca.crt",
            &format!("--etcd-certfile={certificate}"),
            &format!("--etcd-keyfile={key}"),
        ],
    )?;
    cluster.manifest(
        "etcd",
        &[
            "--trusted-ca-file=/etc/kubernetes/pki/etcd/ca.crt",
            &format!("--cert-file={certificate}"),
            &format!("--key-file={key}"),
            &format!("--peer-cert-file={certificate}"),
            &format!("--peer-key-file={key}"),
            "--initial-advertise-peer-urls=https://10.0.0.5:2380,https://10.7.0.5:2380",
        ],
    )?;
    let settings = Settings {
        san: vec!["etcd-peer=peer.example.org".to_owned()],
        ..later()
    };
    let (before, after) = repair(cluster.root(), &settings)?;
    ensure!(after.is_empty(), "{}", told(&after));
    let details = finding(&before, "apiserver-etcd-client")?
        .remedies
        .first()
        .context("a remedy")?
        .details()
        .join("\n");
    ensure!(
        details.contains("one file for apiserver-etcd-client and etcd-server and etcd-peer"),
        "{details}"
    );
    let guest = cluster.guest()?;
    let new = text(&guest, certificate)?;
    let shown = openssl_x509(&new, &["-ext", "extendedKeyUsage,subjectAltName"])?;
    for words in [
        "TLS Web Server Authentication, TLS Web Client Authentication",
        // Only the peers' addresses and the user's word ask for these two.
        "IP Address:10.7.0.5",
        "DNS:peer.example.org",
    ] {
        ensure!(shown.contains(words), "{words}: {shown}");
    }
    ensure!(!details.contains("extended key usage becomes"), "{details}");
    verify(
        &guest,
        "/etc/kubernetes/pki/etcd/ca.crt",
        &new,
        &text(&guest, key)?,
    )
}

/// kubespray's etcd: openssl's names for the CA's key, and a member's certificate that no kubeadm
/// knows of.
#[test]
fn the_key_of_kubesprays_etcd_ca_is_found_and_its_member_is_not_forgotten() -> Result<()> {
    let cluster = Cluster::new()?;
    cluster.ca("ca", P256, "/CN=kubernetes", CA, 3650, "1")?;
    cluster.ca("kubespray", P256, "/CN=etcd-ca", CA, 3650, "1")?;
    let folder = cluster.root().join("etc/ssl/etcd/ssl");
    fs::create_dir_all(&folder)?;
    for name in ["node-node1", "member-node1"] {
        let both = CLIENT.replace("clientAuth", "serverAuth,clientAuth");
        cluster.leaf(name, "kubespray", P256, &format!("/CN=etcd-{name}"), &both)?;
    }
    for (from, to) in [
        ("kubespray", "ca"),
        ("node-node1", "node-node1"),
        ("member-node1", "member-node1"),
    ] {
        fs::rename(
            cluster.pki(&format!("{from}.crt")),
            folder.join(format!("{to}.pem")),
        )?;
        fs::rename(
            cluster.pki(&format!("{from}.key")),
            folder.join(format!("{to}-key.pem")),
        )?;
    }
    cluster.write(
        "etc/etcd.env",
        "ETCD_CERT_FILE=/etc/ssl/etcd/ssl/member-node1.pem\n",
    )?;
    cluster.manifest(
        "kube-apiserver",
        &[
            "--client-ca-file=/etc/kubernetes/pki/ca.crt",
            "--etcd-cafile=/etc/ssl/etcd/ssl/ca.pem",
            "--etcd-certfile=/etc/ssl/etcd/ssl/node-node1.pem",
            "--etcd-keyfile=/etc/ssl/etcd/ssl/node-node1-key.pem",
        ],
    )?;
    let member = fs::read(folder.join("member-node1.pem"))?;
    let (before, after) = repair(cluster.root(), &later())?;
    ensure!(
        !told(&before).contains("no key on this node"),
        "{}",
        told(&before)
    );
    let guest = cluster.guest()?;
    let at = |name: &str| format!("/etc/ssl/etcd/ssl/{name}.pem");
    verify(
        &guest,
        &at("ca"),
        &text(&guest, &at("node-node1"))?,
        &text(&guest, &at("node-node1-key"))?,
    )?;
    // What is left is said, and counts.
    let left = finding(&after, "member-node1.pem expired")?;
    ensure!(
        after.len() == 1 && left.severity == Severity::WillBreak,
        "{}",
        told(&after)
    );
    ensure!(
        told(&after).contains("used by etcd.env ETCD_CERT_FILE")
            && told(&after).contains("renew it with kubespray")
    );
    ensure!(fs::read(folder.join("member-node1.pem"))? == member);
    Ok(())
}

/// `serverTLSBootstrap`: the kubelet asks the cluster for what it serves with, and kubeadm's
/// cluster approves no such request.
#[test]
fn what_a_kubelet_asks_the_cluster_for_is_named_and_its_old_pair_is_nobodys() -> Result<()> {
    let cluster = Cluster::control_plane(P256, "/CN=kubernetes", CA, 3650, "1")?;
    let pair = cluster.client("ca", P256, "/O=system:nodes/CN=system:node:node1")?;
    cluster.write(
        "etc/kubernetes/kubelet.conf",
        cluster.kubeconfig("system:node:node1", &inline(&pair))?,
    )?;
    let asked = "/var/lib/kubelet/pki/kubelet-server-current.pem";
    cluster.write(asked.trim_start_matches('/'), pair.0.clone() + &pair.1)?;
    for name in ["kubelet.crt", "kubelet.key"] {
        cluster.write(
            &format!("var/lib/kubelet/pki/{name}"),
            if name == "kubelet.crt" {
                &pair.0
            } else {
                &pair.1
            },
        )?;
    }
    for (config, flag) in [
        ("serverTLSBootstrap: true\n", ""),
        ("", "--rotate-server-certificates"),
    ] {
        cluster.write(
            "var/lib/kubelet/config.yaml",
            format!("kind: KubeletConfiguration\n{config}"),
        )?;
        cluster.write(
            "etc/systemd/system/kubelet.service",
            format!(
                "[Service]\nExecStart=/usr/bin/kubelet --config=/var/lib/kubelet/config.yaml \
                 --kubeconfig=/etc/kubernetes/kubelet.conf {flag}\n"
            ),
        )?;
        let guest = cluster.guest()?;
        let found = pki_support::inspect(&guest, &later())?;
        let serving = finding(&found, "kubelet serving certificate expired")?;
        ensure!(
            serving.severity == Severity::Note && serving.remedies.is_empty(),
            "{}",
            told(&found)
        );
        let said = told(std::slice::from_ref(serving));
        ensure!(
            said.contains(asked) && said.contains("kubectl certificate approve"),
            "{said}"
        );
        ensure!(
            !said.contains("kubelet.crt") && !told(&found).contains("none of kubeadm's"),
            "{}",
            told(&found)
        );
        let listing = Listing::read(&guest, &Node::read(&guest), later().now);
        let row = listing
            .rows
            .iter()
            .find(|row| row.path == asked)
            .context("a row")?;
        ensure!(
            row.managed_by == Manager::Kubelet
                && row
                    .remark
                    .iter()
                    .any(|text| text.contains("serverTLSBootstrap"))
        );
        ensure!(
            listing
                .unreferenced
                .iter()
                .any(|stray| stray.path.ends_with("kubelet.crt")),
            "{:?}",
            listing.unreferenced
        );
    }
    Ok(())
}

/// A power cut may leave any first part of a file. Base64 that ends after whole words is no error
/// by itself.
#[test]
fn a_kubeconfig_that_was_cut_off_anywhere_is_written_anew() -> Result<()> {
    let cluster = Cluster::control_plane(P256, "/CN=kubernetes", CA, 3650, "1")?;
    cluster.manifest(
        "kube-controller-manager",
        &["--kubeconfig=/etc/kubernetes/controller-manager.conf"],
    )?;
    cluster.write(
        "etc/systemd/system/kubelet.service",
        "[Service]\nExecStart=/usr/bin/kubelet --kubeconfig=/etc/kubernetes/kubelet.conf\n",
    )?;
    let settings = Settings {
        now: OffsetDateTime::now_utc() + Duration::minutes(10),
        now_given: true,
        ..Settings::default()
    };
    let whole = [
        (
            "etc/kubernetes/admin.conf",
            "kubernetes-admin",
            "/O=system:masters/CN=kubernetes-admin",
        ),
        (
            "etc/kubernetes/controller-manager.conf",
            "system:kube-controller-manager",
            "/CN=system:kube-controller-manager",
        ),
        (
            "etc/kubernetes/kubelet.conf",
            "system:node:node1",
            "/O=system:nodes/CN=system:node:node1",
        ),
    ]
    .map(|(path, user, subject)| -> Result<(&str, String)> {
        Ok((
            path,
            cluster.kubeconfig(user, &inline(&cluster.client("ca", P256, subject)?))?,
        ))
    });
    let whole = whole.into_iter().collect::<Result<Vec<_>>>()?;
    whole
        .iter()
        .try_for_each(|(path, text)| cluster.write(path, text))?;
    for (path, text) in whole {
        let users = text.find("users:").context("users")?;
        // Many lengths of the small parts, and a few in the long ones, of each remainder of four.
        let cuts =
            (users..text.len()).filter(|at| ((at - users) < 70 && at % 3 == 0) || at % 293 < 4);
        for cut in cuts.chain([0, 1, 40, 300, users - 30]) {
            cluster.write(path, &text[..cut])?;
            let (findings, _) = pki_support::plan(&cluster.guest()?, &settings)
                .with_context(|| format!("{path} cut off after {cut} bytes"))?;
            let lost = findings
                .iter()
                .find(|found| told(std::slice::from_ref(found)).contains(path));
            ensure!(
                lost.is_some_and(|lost| !lost.remedies.is_empty()),
                "{path} {cut}:\n{}",
                told(&findings)
            );
        }
        cluster.write(path, &text)?;
    }
    // What trusts another cluster is not ours to write anew, whatever it lacks.
    let other = Cluster::control_plane(P256, "/CN=kubernetes", CA, 3650, "1")?;
    let pair = other.client("ca", P256, "/O=system:masters/CN=kubernetes-admin")?;
    let foreign = other.kubeconfig("kubernetes-admin", &inline(&pair))?;
    let cut = foreign
        .find("client-certificate-data: ")
        .context("a certificate")?
        + 25
        + 400;
    cluster.write("etc/kubernetes/admin.conf", &foreign[..cut])?;
    let (findings, prepared) = pki_support::plan(&cluster.guest()?, &settings)?;
    ensure!(
        told(&findings).contains("trusts another cluster's CA") && prepared.changes.is_empty(),
        "{}",
        told(&findings)
    );
    Ok(())
}

/// A kind of key that is not made here is replaced by another, and that is said.
#[test]
fn a_key_of_another_kind_is_never_made_in_silence() -> Result<()> {
    let cluster = Cluster::control_plane(P256, "/CN=kubernetes", CA, 3650, "1")?;
    for (kind, words) in [
        (
            &["-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:1024"][..],
            "new RSA-2048 key (the old one was RSA-1024",
        ),
        (
            &["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-224"],
            "new RSA-2048 key (the old one was of a kind",
        ),
        (P256, "new ECDSA-P256 key"),
    ] {
        cluster.leaf(
            "apiserver-kubelet-client",
            "ca",
            kind,
            "/CN=kube-apiserver-kubelet-client",
            CLIENT,
        )?;
        let (findings, _) = pki_support::plan(&cluster.guest()?, &later())?;
        let details = finding(&findings, "apiserver-kubelet-client")?
            .remedies
            .first()
            .context("a remedy")?
            .details();
        let line = details
            .iter()
            .find(|line| line.starts_with("new "))
            .context("a line about the key")?;
        ensure!(
            line.starts_with(words) && (kind != P256 || line == words),
            "{line}"
        );
    }
    Ok(())
}

/// Copied through Windows: Kubernetes cannot read it, but what it said is not lost.
#[test]
fn a_byte_order_mark_is_named_and_no_name_is_lost() -> Result<()> {
    let cluster = Cluster::control_plane(P256, "/CN=kubernetes", CA, 3650, "1")?;
    let names = format!("{SERVER}subjectAltName=DNS:only-here.example.org,IP:10.0.0.9\n");
    cluster.leaf("apiserver", "ca", P256, "/O=acme/CN=kube-apiserver", &names)?;
    let marked = |path: std::path::PathBuf| -> Result<()> {
        Ok(fs::write(
            &path,
            [&[0xef, 0xbb, 0xbf], &fs::read(&path)?[..]].concat(),
        )?)
    };
    marked(cluster.pki("apiserver.crt"))?;
    let settings = Settings {
        now: OffsetDateTime::now_utc() + Duration::minutes(10),
        ..Settings::default()
    };
    let (before, after) = repair(cluster.root(), &settings)?;
    ensure!(
        told(&before).contains("byte order mark") && after.is_empty(),
        "{}\n{}",
        told(&before),
        told(&after)
    );
    let guest = cluster.guest()?;
    let new = text(&guest, "/etc/kubernetes/pki/apiserver.crt")?;
    let said = openssl_x509(&new, &["-subject", "-ext", "subjectAltName"])?;
    ensure!(
        said.contains("acme")
            && said.contains("only-here.example.org")
            && said.contains("10.0.0.9"),
        "{said}"
    );
    verify(
        &guest,
        "/etc/kubernetes/pki/ca.crt",
        &new,
        &text(&guest, "/etc/kubernetes/pki/apiserver.key")?,
    )?;
    // A CA's files are never rewritten for it; the reason is said.
    for file in ["ca.key", "ca.crt"] {
        marked(cluster.pki(file))?;
        let (found, prepared) = pki_support::plan(&cluster.guest()?, &later())?;
        ensure!(
            told(&found).contains("byte order mark") && prepared.changes.is_empty(),
            "{file}: {}",
            told(&found)
        );
        // The line to type does what it says.
        let mut lines = found
            .iter()
            .flat_map(|finding| &finding.advice)
            .flat_map(|advice| advice.lines());
        let line = lines
            .find_map(|line| line.split_once("sed -i "))
            .context("no line to type")?
            .1;
        let (expression, path) = line.rsplit_once(' ').context("no path")?;
        let path = cluster.root().join(path.trim_start_matches('/'));
        tests::command::Cmd::new("sed")
            .arg("-i")
            .arg(expression.trim_matches('\''))
            .arg(path)
            .ok()?;
        let (found, _) = pki_support::plan(&cluster.guest()?, &later())?;
        ensure!(
            !told(&found).contains("byte order mark"),
            "{file}: {}",
            told(&found)
        );
    }
    Ok(())
}

/// Whoever is asked whether a certificate shall be made anew sees all its names, each with where it
/// was found.
#[test]
fn no_name_of_a_certificate_made_anew_is_folded_away() -> Result<()> {
    let cluster = Cluster::control_plane(P256, "/CN=kubernetes", CA, 3650, "1")?;
    cluster.manifest(
        "kube-apiserver",
        &[
            "--client-ca-file=/etc/kubernetes/pki/ca.crt",
            "--tls-cert-file=/etc/kubernetes/pki/apiserver.crt",
            "--tls-private-key-file=/etc/kubernetes/pki/apiserver.key",
            "--advertise-address=10.0.0.5",
            "--service-cluster-ip-range=10.96.0.0/12",
            "--service-account-issuer=https://kubernetes.default.svc.cluster.local",
        ],
    )?;
    for (path, text) in [("etc/fstab", ""), ("etc/hosts", ""), ("bin/sh", "")] {
        cluster.write(path, text)?;
    }
    let root = cluster.root().to_str().context("a path in UTF-8")?;
    let words = [
        "repair",
        "--yes",
        "--only",
        "certificates",
        "--san",
        "vip.example.org",
        "--root",
        root,
    ];
    let plan = tests::programs::rescue_faulty(0, words).run()?.stdout;
    for name in [
        "vip.example.org",
        "kubernetes.default.svc.cluster.local",
        "node1",
        "IP:10.96.0.1",
        "IP:10.0.0.5",
    ] {
        ensure!(
            plan.lines()
                .any(|line| line.contains("name ") && line.contains(name) && line.contains('(')),
            "{name}: {plan}"
        );
    }
    ensure!(!plan.contains("more lines"), "{plan}");
    Ok(())
}
