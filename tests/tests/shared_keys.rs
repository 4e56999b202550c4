//! What the control planes of a cluster share: compared between folders whose keys openssl made,
//! brought back from another node, or refused.

mod pki_support;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use anyhow::{Context as _, Result, ensure};
use pki_support::cluster::{CA, CLIENT, Cluster, P256, RSA, key};
use pki_support::told;
use rescue::base::severity::Severity;
use rescue::base::ui::Silent;
use rescue::change::{Attributes, Change};
use rescue::disk::Source;
use rescue::finding::Finding;
use rescue::finding::NodeReport;
use rescue::plan::Plan;
use rescue::repair::transaction::{RunInfo, apply};
use rescue::repair::undo;
use rescue::session::Session;
use rescue::settings::Settings;
use tests::Cmd;
use tests::programs::rescue_faulty;

/// All files that `kubeadm join --control-plane` copies.
const SHARED: [&str; 8] = [
    "ca.crt",
    "ca.key",
    "front-proxy-ca.crt",
    "front-proxy-ca.key",
    "etcd/ca.crt",
    "etcd/ca.key",
    "sa.key",
    "sa.pub",
];

/// A control plane without any key; `members` are the names in etcd's first list of members.
fn node(name: &str, number: u8, members: &[(&str, u8)]) -> Result<Cluster> {
    let cluster = Cluster::new()?;
    cluster.write("etc/hostname", format!("{name}\n"))?;
    cluster.write("etc/hosts", "127.0.0.1 localhost\n")?;
    fs::create_dir(cluster.root().join("bin"))?;
    let pki = "/etc/kubernetes/pki";
    cluster.manifest(
        "kube-apiserver",
        &[
            &format!("--client-ca-file={pki}/ca.crt"),
            &format!("--requestheader-client-ca-file={pki}/front-proxy-ca.crt"),
            &format!("--etcd-cafile={pki}/etcd/ca.crt"),
            &format!("--service-account-key-file={pki}/sa.pub"),
            &format!("--service-account-signing-key-file={pki}/sa.key"),
        ],
    )?;
    cluster.manifest(
        "kube-controller-manager",
        &[
            &format!("--cluster-signing-cert-file={pki}/ca.crt"),
            &format!("--cluster-signing-key-file={pki}/ca.key"),
            &format!("--service-account-private-key-file={pki}/sa.key"),
        ],
    )?;
    let url = |number: u8| format!("https://10.0.0.{number}:2380");
    let members: Vec<String> = members
        .iter()
        .map(|(name, number)| format!("{name}={}", url(*number)))
        .collect();
    cluster.manifest(
        "etcd",
        &[
            &format!("--name={name}"),
            &format!("--initial-advertise-peer-urls={}", url(number)),
            &format!("--initial-cluster={}", members.join(",")),
            &format!("--trusted-ca-file={pki}/etcd/ca.crt"),
        ],
    )?;
    Ok(cluster)
}

fn own_keys(cluster: &Cluster) -> Result<()> {
    for (base, name) in [
        ("ca", "kubernetes"),
        ("front-proxy-ca", "front-proxy-ca"),
        ("etcd/ca", "etcd-ca"),
    ] {
        cluster.ca(base, P256, &format!("/CN={name}"), CA, 3650, "1")?;
    }
    service_account_keys(cluster)
}

fn service_account_keys(cluster: &Cluster) -> Result<()> {
    key(RSA, &cluster.pki("sa.key"))?;
    Cmd::new("openssl")
        .args(["pkey", "-pubout", "-in"])
        .arg(cluster.pki("sa.key"))
        .arg("-out")
        .arg(cluster.pki("sa.pub"))
        .ok()?;
    for secret in ["sa.key", "sa.pub"] {
        fs::set_permissions(cluster.pki(secret), fs::Permissions::from_mode(0o600))?;
    }
    Ok(())
}

fn leaves(cluster: &Cluster) -> Result<()> {
    cluster.leaf(
        "apiserver-kubelet-client",
        "ca",
        P256,
        "/CN=kube-apiserver-kubelet-client",
        CLIENT,
    )?;
    cluster.leaf(
        "front-proxy-client",
        "front-proxy-ca",
        P256,
        "/CN=front-proxy-client",
        CLIENT,
    )?;
    cluster.leaf(
        "apiserver-etcd-client",
        "etcd/ca",
        P256,
        "/CN=kube-apiserver-etcd-client",
        CLIENT,
    )
}

fn share(from: &Cluster, to: &Cluster) -> Result<()> {
    for name in SHARED {
        fs::copy(from.pki(name), to.pki(name))?;
    }
    leaves(to)
}

/// Two control planes of one cluster.
fn pair() -> Result<(Cluster, Cluster)> {
    let one = node("master01", 1, &[("master01", 1)])?;
    own_keys(&one)?;
    leaves(&one)?;
    let two = node("master02", 2, &[("master01", 1), ("master02", 2)])?;
    share(&one, &two)?;
    Ok((one, two))
}

/// Findings of the two checks on each node, and the plan for the first.
fn look(nodes: &[&Cluster]) -> Result<(Vec<NodeReport>, Plan)> {
    let sources: Vec<Source> = nodes
        .iter()
        .map(|node| Source::Root(node.root().to_path_buf()))
        .collect();
    let only = vec!["shared-keys".to_owned(), "service-account-keys".to_owned()];
    let settings = Settings {
        only,
        ..Settings::default()
    };
    let session = Session {
        sources: &sources,
        settings: &settings,
        ui: &Silent,
    };
    let nodes = session.inspect()?.nodes;
    let plan = session.plan(&nodes[0]);
    Ok((nodes, plan))
}

/// What the plan writes in pki/: name, bytes, attributes.
fn written(plan: &Plan) -> Vec<(String, Vec<u8>, Attributes)> {
    let write = |change: &Change| match change {
        Change::Write {
            path,
            content,
            attributes,
            ..
        } => {
            let name = path.to_string().replace("/etc/kubernetes/pki/", "");
            Some((name, content.expose().to_vec(), attributes.clone()))
        }
        _ => None,
    };
    plan.prepared.changes.iter().filter_map(write).collect()
}

fn only_finding(findings: &[Finding]) -> Result<&Finding> {
    ensure!(findings.len() == 1, "{}", told(findings));
    findings.first().context("one finding")
}

#[test]
fn control_planes_that_agree_are_left_in_peace() -> Result<()> {
    let (one, two) = pair()?;
    let (nodes, plan) = look(&[&one, &two])?;
    for node in &nodes {
        ensure!(
            node.findings.is_empty(),
            "{}: {}",
            node.name(),
            told(&node.findings)
        );
    }
    ensure!(plan.is_empty());
    Ok(())
}

#[test]
fn two_clusters_on_the_table_are_two_clusters() -> Result<()> {
    let (one, two) = pair()?;
    // Made from the same plan: the same names, addresses and server.
    let (other, another) = pair()?;
    for cluster in [&one, &two, &other, &another] {
        let pair = cluster.client("ca", P256, "/O=system:masters/CN=kubernetes-admin")?;
        let config =
            cluster.kubeconfig("kubernetes-admin", &pki_support::cluster::inline(&pair))?;
        cluster.write("etc/kubernetes/admin.conf", config)?;
    }
    let (nodes, _) = look(&[&one, &two, &other, &another])?;
    for node in &nodes {
        ensure!(
            node.findings.is_empty(),
            "{}: {}",
            node.name(),
            told(&node.findings)
        );
    }
    // And nothing is copied from one to the other.
    for name in ["ca.crt", "ca.key", "sa.key", "etcd/ca.key"] {
        let bytes = fs::read(one.pki(name))?;
        fs::write(one.pki(name), "")?;
        let (_, plan) = look(&[&one, &other, &another])?;
        ensure!(
            plan.prepared.changes.is_empty(),
            "{name}: {:?}",
            written(&plan).len()
        );
        fs::write(one.pki(name), bytes)?;
    }
    Ok(())
}

#[test]
fn every_shared_file_comes_back_from_the_other_node() -> Result<()> {
    let (one, two) = pair()?;
    for name in SHARED {
        let path = one.pki(name);
        let whole = fs::read(&path)?;
        let garbage = b"\x00\x17garbage".to_vec();
        for damage in [
            None,
            Some(Vec::new()),
            Some(garbage),
            Some(whole[..whole.len() / 2].to_vec()),
        ] {
            match &damage {
                None => fs::remove_file(&path)?,
                Some(bytes) => fs::write(&path, bytes)?,
            }
            let (nodes, plan) = look(&[&one, &two])?;
            let files = written(&plan);
            let what = format!(
                "{name} {:?}: {}",
                damage.as_ref().map(Vec::len),
                told(&nodes[0].findings)
            );
            ensure!(files.len() == 1 && files[0].0 == name, "{what}");
            ensure!(files[0].1 == whole, "{what}: other bytes");
            ensure!(plan.left.is_empty(), "{what}: left {}", told(&plan.left));
            let secret = !name.ends_with(".crt");
            if let (Attributes::Set { mode, .. }, true) = (&files[0].2, secret) {
                ensure!(*mode == 0o600, "{what}: mode {mode:o}");
            }
            ensure!(nodes[1].findings.is_empty(), "{}", told(&nodes[1].findings));
            fs::write(&path, &whole)?;
        }
    }
    Ok(())
}

#[test]
fn a_whole_ca_is_copied_only_where_a_leaf_proves_it() -> Result<()> {
    let (one, two) = pair()?;
    fs::remove_dir_all(one.pki("etcd"))?;
    let (nodes, plan) = look(&[&one, &two])?;
    let names: Vec<String> = written(&plan).into_iter().map(|(name, ..)| name).collect();
    ensure!(
        names == ["etcd/ca.crt", "etcd/ca.key"],
        "{names:?} {}",
        told(&nodes[0].findings)
    );
    ensure!(plan.left.is_empty(), "{}", told(&plan.left));
    // The one certificate that it signed is gone too: nothing says whose it was.
    fs::remove_file(one.pki("apiserver-etcd-client.crt"))?;
    let (nodes, plan) = look(&[&one, &two])?;
    ensure!(plan.prepared.changes.is_empty());
    let finding = only_finding(&nodes[0].findings)?;
    ensure!(
        finding.advice[0].contains("Not copied") && finding.advice[0].contains("master02"),
        "{:?}",
        finding.advice
    );
    Ok(())
}

#[test]
fn of_an_odd_pair_the_wrong_half_is_replaced() -> Result<()> {
    let (one, two) = pair()?;
    let (certificate, right) = (
        fs::read(one.pki("front-proxy-ca.crt"))?,
        fs::read(one.pki("front-proxy-ca.key"))?,
    );
    key(P256, &one.pki("front-proxy-ca.key"))?;
    let (_, plan) = look(&[&one, &two])?;
    ensure!(matches!(
        written(&plan).as_slice(),
        [(name, bytes, _)] if name == "front-proxy-ca.key" && *bytes == right
    ));
    fs::write(one.pki("front-proxy-ca.key"), &right)?;
    let stranger = Cluster::new()?;
    own_keys(&stranger)?;
    fs::copy(
        stranger.pki("front-proxy-ca.crt"),
        one.pki("front-proxy-ca.crt"),
    )?;
    let (_, plan) = look(&[&one, &two])?;
    ensure!(matches!(
        written(&plan).as_slice(),
        [(name, bytes, _)] if name == "front-proxy-ca.crt" && *bytes == certificate
    ));
    fs::copy(stranger.pki("ca.key"), one.pki("front-proxy-ca.key"))?;
    let (nodes, plan) = look(&[&one, &two])?;
    ensure!(
        plan.prepared.changes.is_empty(),
        "{}",
        told(&nodes[0].findings)
    );
    ensure!(
        only_finding(&nodes[0].findings)?.advice[0].contains("neither"),
        "{}",
        told(&nodes[0].findings)
    );
    Ok(())
}

#[test]
fn drift_is_told_from_every_side_and_nothing_is_overwritten() -> Result<()> {
    let (one, two) = pair()?;
    // Somebody made all of master03's keys anew; only etcd's list of members still says where it
    // belongs.
    let three = node(
        "master03",
        3,
        &[("master01", 1), ("master02", 2), ("master03", 3)],
    )?;
    own_keys(&three)?;
    leaves(&three)?;
    let (nodes, plan) = look(&[&three, &one, &two])?;
    ensure!(plan.prepared.changes.is_empty());
    ensure!(
        nodes[0].findings.len() == 4,
        "three CAs and the service accounts: {}",
        told(&nodes[0].findings)
    );
    let ca = nodes[0]
        .findings
        .iter()
        .find(|finding| finding.title.contains("CA ca "))
        .context("the cluster's CA")?;
    ensure!(
        ca.evidence
            .iter()
            .any(|line| line.saw.contains("initial-cluster")),
        "{:?}",
        ca.evidence
    );
    ensure!(
        ca.advice[1].contains("this node is the odd one") && ca.advice[1].contains("master01"),
        "{:?}",
        ca.advice
    );
    let seen_from_one = nodes[1]
        .findings
        .iter()
        .find(|finding| finding.title.contains("CA ca "))
        .context("from master01")?;
    ensure!(
        seen_from_one.advice[1].contains("master03")
            && seen_from_one.advice[1].contains("agrees with 1"),
        "{:?}",
        seen_from_one.advice
    );
    // The same three nodes, where only the service accounts' keys differ.
    share(&one, &three)?;
    service_account_keys(&three)?;
    let (nodes, plan) = look(&[&three, &one, &two])?;
    ensure!(plan.prepared.changes.is_empty());
    let finding = only_finding(&nodes[0].findings)?;
    ensure!(
        finding.check() == "shared-keys" && finding.title.contains("service account"),
        "{}",
        told(&nodes[0].findings)
    );
    Ok(())
}

#[test]
fn where_two_disagree_the_place_to_ask_is_one_that_has_an_answer() -> Result<()> {
    let (one, two) = pair()?;
    // Workers have the cluster's own CA and no other.
    for (base, words) in [
        ("front-proxy-ca", "extension-apiserver-authentication"),
        ("etcd/ca", "quorum"),
    ] {
        two.ca(
            base,
            P256,
            &format!("/CN={}", base.replace('/', "-")),
            CA,
            3650,
            "1",
        )?;
        let (nodes, _) = look(&[&one, &two])?;
        let title = format!("CA {} is not the same", base.replace('/', "-"));
        let drift = nodes[0]
            .findings
            .iter()
            .find(|finding| finding.title.contains(&title))
            .context("drift")?;
        let advice = drift.advice.join("\n");
        ensure!(
            advice.contains(words) && !advice.contains("workers"),
            "{advice}"
        );
    }
    Ok(())
}

#[test]
fn a_lost_private_key_is_never_made_anew() -> Result<()> {
    let one = node("master01", 1, &[("master01", 1)])?;
    own_keys(&one)?;
    let public = fs::read(one.pki("sa.pub"))?;
    fs::write(one.pki("sa.key"), "")?;
    let (nodes, plan) = look(&[&one])?;
    ensure!(plan.prepared.changes.is_empty());
    let finding = only_finding(&nodes[0].findings)?;
    let advice = finding.advice.join(" ");
    for words in ["Every token", "Refused", "backup", "another control plane"] {
        ensure!(advice.contains(words), "{words}: {advice}");
    }
    // Both gone, and a node that holds another key: still nothing.
    let (other, _) = pair()?;
    fs::remove_file(one.pki("sa.pub"))?;
    let (nodes, plan) = look(&[&one, &other])?;
    ensure!(
        plan.prepared.changes.is_empty() && nodes[0].findings.len() == 2,
        "{}",
        told(&nodes[0].findings)
    );
    // A node of the same cluster whose key is not this public key's: still nothing.
    fs::write(one.pki("sa.pub"), public)?;
    let two = node("master02", 2, &[("master01", 1), ("master02", 2)])?;
    for name in SHARED.iter().filter(|name| !name.starts_with("sa.")) {
        fs::copy(one.pki(name), two.pki(name))?;
    }
    service_account_keys(&two)?;
    let (nodes, plan) = look(&[&one, &two])?;
    ensure!(
        plan.prepared.changes.is_empty(),
        "{}",
        told(&nodes[0].findings)
    );
    ensure!(
        told(&nodes[0].findings).contains("does not belong to the public key"),
        "{}",
        told(&nodes[0].findings)
    );
    Ok(())
}

#[test]
fn keys_that_do_not_belong_together() -> Result<()> {
    let (one, two) = pair()?;
    let (private, public) = (fs::read(one.pki("sa.key"))?, fs::read(one.pki("sa.pub"))?);
    let stranger = Cluster::new()?;
    service_account_keys(&stranger)?;
    // The public key is the wrong one.
    fs::copy(stranger.pki("sa.pub"), one.pki("sa.pub"))?;
    let (nodes, plan) = look(&[&one])?;
    ensure!(
        plan.prepared.changes.is_empty() && told(&nodes[0].findings).contains("Refused"),
        "{}",
        told(&nodes[0].findings)
    );
    let (_, plan) = look(&[&one, &two])?;
    ensure!(matches!(
        written(&plan).as_slice(),
        [(name, bytes, _)] if name == "sa.pub" && *bytes == public
    ));
    // The private key is.
    fs::write(one.pki("sa.pub"), &public)?;
    fs::copy(stranger.pki("sa.key"), one.pki("sa.key"))?;
    let (_, plan) = look(&[&one, &two])?;
    ensure!(matches!(
        written(&plan).as_slice(),
        [(name, bytes, _)] if name == "sa.key" && *bytes == private
    ));
    Ok(())
}

#[test]
fn several_public_keys_while_a_key_is_being_replaced() -> Result<()> {
    let (one, two) = pair()?;
    let stranger = Cluster::new()?;
    service_account_keys(&stranger)?;
    for cluster in [&one, &two] {
        let path = cluster
            .root()
            .join("etc/kubernetes/manifests/kube-apiserver.yaml");
        let text = fs::read_to_string(&path)?;
        let flag = "    - --service-account-key-file=/etc/kubernetes/pki/sa.pub\n";
        fs::write(
            &path,
            text.replace(
                flag,
                &format!("{flag}{}", flag.replace("sa.pub", "sa-old.pub")),
            ),
        )?;
        fs::copy(stranger.pki("sa.pub"), cluster.pki("sa-old.pub"))?;
    }
    ensure!(look(&[&one])?.0[0].findings.is_empty());
    let old = fs::read(one.pki("sa-old.pub"))?;
    fs::remove_file(one.pki("sa-old.pub"))?;
    let (nodes, plan) = look(&[&one])?;
    ensure!(
        plan.prepared.changes.is_empty() && told(&nodes[0].findings).contains("an earlier one"),
        "{}",
        told(&nodes[0].findings)
    );
    let (_, plan) = look(&[&one, &two])?;
    ensure!(matches!(
        written(&plan).as_slice(),
        [(name, bytes, _)] if name == "sa-old.pub" && *bytes == old
    ));
    // With the current one lost as well, that one is known from the private key, the earlier one is
    // not.
    let public = fs::read(one.pki("sa.pub"))?;
    fs::write(one.pki("sa.pub"), "")?;
    let (_, plan) = look(&[&one])?;
    ensure!(matches!(
        written(&plan).as_slice(),
        [(name, bytes, _)] if name == "sa.pub" && *bytes == public
    ));
    Ok(())
}

#[test]
fn repaired_on_the_disk_and_taken_back_without_a_word_of_a_key() -> Result<()> {
    let (one, two) = pair()?;
    let wanted = fs::read(one.pki("sa.key"))?;
    fs::remove_file(one.pki("sa.key"))?;
    fs::write(one.pki("sa.pub"), "")?;
    fs::remove_file(one.pki("ca.key"))?;
    let roots = [
        one.root().to_str().context("UTF-8")?,
        two.root().to_str().context("UTF-8")?,
    ];
    let words = [
        "repair", "--yes", "--json", "--root", roots[0], "--root", roots[1], "--node", "master01",
    ];
    let checks = ["--only", "shared-keys", "--only", "service-account-keys"];
    let ran = rescue_faulty(0, words.iter().chain(&checks)).run()?;
    ensure!(ran.code == 0, "{}", ran.transcript());
    ensure!(
        !ran.transcript().contains("PRIVATE KEY"),
        "{}",
        ran.transcript()
    );
    let secret: String = String::from_utf8(wanted.clone())?
        .lines()
        .nth(3)
        .context("a line of the key")?
        .to_owned();
    ensure!(!ran.transcript().contains(&secret));
    for name in ["sa.key", "sa.pub", "ca.key"] {
        ensure!(
            fs::read(one.pki(name))? == fs::read(two.pki(name))?,
            "{name} differs"
        );
        ensure!(
            fs::metadata(one.pki(name))?.permissions().mode() & 0o777 == 0o600,
            "{name}"
        );
    }
    let undone = rescue_faulty(0, ["undo", "--yes", "--root", roots[0]]).run()?;
    ensure!(undone.code == 0, "{}", undone.transcript());
    ensure!(
        !one.pki("sa.key").exists()
            && !one.pki("ca.key").exists()
            && fs::read(one.pki("sa.pub"))?.is_empty()
    );
    Ok(())
}

/// Adds a flag to the API server's manifest.
fn api_flag(cluster: &Cluster, flag: &str) -> Result<()> {
    let path = cluster
        .root()
        .join("etc/kubernetes/manifests/kube-apiserver.yaml");
    let text = fs::read_to_string(&path)?;
    Ok(fs::write(
        &path,
        text.replace("    image:", &format!("    - {flag}\n    image:")),
    )?)
}

#[test]
fn secrets_must_be_encrypted_alike() -> Result<()> {
    let (one, two) = pair()?;
    let config = "kind: EncryptionConfiguration\nresources:\n- resources: [secrets]\n  \
        providers:\n  - aescbc: {keys: [{name: k, secret: SECRETSECRET}]}\n";
    api_flag(
        &one,
        "--encryption-provider-config=/etc/kubernetes/enc.yaml",
    )?;
    one.write("etc/kubernetes/enc.yaml", config)?;
    let (nodes, _) = look(&[&one, &two])?;
    let finding = only_finding(&nodes[0].findings)?;
    ensure!(
        finding.title.contains("Secrets") && finding.remedies.is_empty(),
        "{}",
        told(&nodes[0].findings)
    );
    only_finding(&nodes[1].findings)?;
    // The same in other words.
    api_flag(
        &two,
        "--encryption-provider-config=/etc/kubernetes/enc.yaml",
    )?;
    two.write("etc/kubernetes/enc.yaml", format!("# ours\n{config}"))?;
    ensure!(
        look(&[&one, &two])?
            .0
            .iter()
            .all(|node| node.findings.is_empty())
    );
    two.write(
        "etc/kubernetes/enc.yaml",
        config.replace("SECRETSECRET", "OTHERSECRET"),
    )?;
    let (nodes, plan) = look(&[&one, &two])?;
    ensure!(plan.prepared.changes.is_empty());
    let words = told(&nodes[0].findings);
    ensure!(
        words.contains("says something else") && !words.contains("SECRETSECRET"),
        "{words}"
    );
    Ok(())
}

#[test]
fn a_ca_that_was_renewed_on_one_node_only_is_worth_a_note() -> Result<()> {
    let (one, two) = pair()?;
    let (request, extensions) = (two.root().join("tmp-csr"), two.root().join("tmp-ext"));
    fs::write(&extensions, CA)?;
    let openssl = |words: &[&str]| Cmd::new("openssl").args(words);
    openssl(&["x509", "-x509toreq", "-in"])
        .arg(two.pki("ca.crt"))
        .arg("-signkey")
        .arg(two.pki("ca.key"))
        .arg("-out")
        .arg(&request)
        .ok()?;
    openssl(&["x509", "-req", "-days", "7300", "-set_serial", "2", "-in"])
        .arg(&request)
        .arg("-extfile")
        .arg(&extensions)
        .arg("-signkey")
        .arg(two.pki("ca.key"))
        .arg("-out")
        .arg(two.pki("ca.crt"))
        .ok()?;
    let (nodes, plan) = look(&[&one, &two])?;
    ensure!(plan.prepared.changes.is_empty());
    let finding = only_finding(&nodes[0].findings)?;
    ensure!(
        finding.title == "CA ca was renewed on master02, not here"
            && finding.severity == Severity::Note,
        "{finding:?}"
    );
    ensure!(nodes[1].findings.is_empty(), "{}", told(&nodes[1].findings));
    Ok(())
}

#[test]
fn the_key_of_a_ca_that_is_over_still_comes_back() -> Result<()> {
    let (one, two) = pair()?;
    let key = fs::read(one.pki("ca.key"))?;
    fs::remove_file(one.pki("ca.key"))?;
    let sources = [&one, &two].map(|node| Source::Root(node.root().to_path_buf()));
    let now = time::OffsetDateTime::now_utc() + time::Duration::days(4000);
    let only = vec!["shared-keys".to_owned()];
    let settings = Settings {
        only,
        now,
        now_given: true,
        ..Settings::default()
    };
    let session = Session {
        sources: &sources,
        settings: &settings,
        ui: &Silent,
    };
    let nodes = session.inspect()?.nodes;
    let plan = session.plan(&nodes[0]);
    ensure!(
        matches!(
            written(&plan).as_slice(),
            [(name, bytes, _)] if name == "ca.key" && *bytes == key
        ),
        "{}",
        told(&nodes[0].findings)
    );
    Ok(())
}

#[test]
fn a_companys_root_does_not_make_two_clusters_one() -> Result<()> {
    let (one, _) = pair()?;
    let (other, _) = pair()?;
    // Both trust one root, whose key is on neither disk.
    let company = Cluster::new()?;
    company.ca("ca", P256, "/CN=Company root", CA, 3650, "1")?;
    for cluster in [&one, &other] {
        fs::copy(company.pki("ca.crt"), cluster.pki("ca.crt"))?;
        fs::remove_file(cluster.pki("ca.key"))?;
    }
    let (nodes, plan) = look(&[&one, &other])?;
    ensure!(
        plan.prepared.changes.is_empty() && nodes[0].findings.is_empty(),
        "{}",
        told(&nodes[0].findings)
    );
    Ok(())
}

/// A CA's key comes back into a file that somebody had opened to others: it does not stay open.
#[test]
fn a_copied_key_is_closed_whatever_was_there() -> Result<()> {
    let (one, two) = pair()?;
    let key = one.pki("ca.key");
    let whole = fs::read(&key)?;
    for (bits, entry, expected) in [
        (0o777, None, 0o600),
        (0o4755, None, 0o600),
        (0o640, None, 0o640),
        (0o660, None, 0o640),
        (0o600, Some("user:1000:rw"), 0o600),
    ] {
        fs::write(&key, "")?;
        fs::set_permissions(&key, fs::Permissions::from_mode(bits))?;
        Cmd::new("setfacl")
            .args(["-m", "default:user:1000:rwx"])
            .arg(one.pki(""))
            .ok()?;
        if let Some(entry) = entry {
            Cmd::new("setfacl").args(["-m", entry]).arg(&key).ok()?;
        }
        let list = || -> Result<String> {
            Ok(Cmd::new("getfacl")
                .args(["-n", "-p"])
                .arg(&key)
                .ok()?
                .stdout)
        };
        let before = list()?;
        let (_, plan) = look(&[&one, &two])?;
        let writable = pki_support::open(one.root())?;
        let run = RunInfo::new(Settings::default().now, Vec::new());
        apply(&writable, plan.prepared.clone(), &run, &Silent)?;
        let what = format!("{bits:04o} {entry:?}");
        ensure!(fs::read(&key)? == whole, "{what}");
        let mode = fs::metadata(&key)?.permissions().mode() & 0o7777;
        ensure!(
            mode == expected && !list()?.contains("user:1000"),
            "{what}: {mode:04o}\n{}",
            list()?
        );
        let remarks: Vec<&String> = plan.steps.iter().flat_map(|step| &step.remarks).collect();
        ensure!(
            remarks.is_empty() == (bits == expected && entry.is_none()),
            "{what}: {remarks:?}"
        );
        undo(&writable, None, &Silent)?;
        writable.close()?;
        ensure!(
            list()? == before && fs::read(&key)?.is_empty(),
            "{what}: undo left\n{}",
            list()?
        );
        Cmd::new("setfacl").arg("-b").arg(&key).ok()?;
    }
    Ok(())
}
