//! CAs that are over: signed anew with their own keys, and exchanged wherever the disk holds a
//! copy. OpenSSL made them and judges them.

mod pki_support;

use anyhow::{Context as _, Result, ensure};
use base64::Engine as _;
use pki_support::cluster::{
    CA, CA_WITHOUT_SKI, CLIENT, Cluster, P256, P384, RSA, SERVER, Wanted, base64, certificate,
    inline, openssl_x509, text,
};
use pki_support::told;
use rescue::base::severity::Severity;
use rescue::base::ui::Silent;
use rescue::finding::{Context, Facts, Finding};
use rescue::node::Node;
use rescue::pki::peer::Peer;
use rescue::plan::{self, Plan};
use rescue::repair::transaction::{RunInfo, apply};
use rescue::repair::undo::undo;
use rescue::settings::Settings;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::rc::Rc;
use tests::Cmd;
use time::{Duration, OffsetDateTime};

const ONLY: [&str; 3] = ["authorities", "certificates", "admin-kubeconfig"];

/// The CAs of these tests live for 20 days; this is 30 days later.
fn later() -> Settings {
    let now = OffsetDateTime::now_utc() + Duration::days(30);
    Settings {
        now,
        now_given: true,
        only: ONLY.map(str::to_owned).to_vec(),
        ..Settings::default()
    }
}

fn renewing() -> Settings {
    Settings {
        renew_ca: true,
        ..later()
    }
}

fn peer(cluster: &Cluster, settings: &Settings) -> Result<Rc<Peer>> {
    let guest = cluster.guest()?;
    Ok(Rc::new(Peer::read(&guest, &Node::read(&guest), settings)))
}

fn planned(
    cluster: &Cluster,
    settings: &Settings,
    peers: &[Rc<Peer>],
) -> Result<(Vec<Finding>, Plan)> {
    let guest = cluster.guest()?;
    let node = Node::read(&guest);
    let context = Context {
        guest: &guest,
        node: &node,
        settings,
        peers,
        ui: &Silent,
        facts: &Facts::default(),
    };
    Ok((plan::findings(&context), plan::plan(&context, &[])))
}

/// Plans, insists that the plan is proved, and carries it out on the folder.
fn mended(cluster: &Cluster, settings: &Settings, peers: &[Rc<Peer>]) -> Result<Vec<String>> {
    let (findings, plan) = planned(cluster, settings, peers)?;
    ensure!(plan.dropped.is_empty(), "{:?}", plan.dropped);
    let left: Vec<Finding> = plan
        .left
        .iter()
        .filter(|left| left.severity > Severity::Note && left.mode.id != "authorities.bundle")
        .cloned()
        .collect();
    ensure!(
        left.is_empty(),
        "left:\n{}\nof:\n{}",
        told(&left),
        told(&findings)
    );
    let steps = plan
        .steps
        .iter()
        .map(|step| step.remedy.summary())
        .collect();
    let writable = pki_support::open(cluster.root())?;
    apply(
        &writable,
        plan.prepared,
        &RunInfo::new(settings.now, Vec::new()),
        &Silent,
    )?;
    writable.close()?;
    Ok(steps)
}

fn finding<'a>(findings: &'a [Finding], words: &str) -> Result<&'a Finding> {
    let found = findings
        .iter()
        .find(|finding| finding.title.contains(words));
    found.with_context(|| format!("no finding says {words:?}:\n{}", told(findings)))
}

/// The renewal is refused, nothing is planned, and the user is told `words`.
fn refused(cluster: &Cluster, title: &str, words: &[&str]) -> Result<()> {
    let (findings, plan) = planned(cluster, &renewing(), &[])?;
    let found = finding(&findings, title)?;
    let advice = found.advice.join(" ");
    ensure!(
        plan.is_empty() && found.remedies.is_empty(),
        "{}",
        told(&findings)
    );
    for word in words {
        ensure!(advice.contains(word), "{word:?} is not in {advice:?}");
    }
    Ok(())
}

/// OpenSSL accepts `leaf` with the root `ca` at `at`; strict about nothing but what it checks by
/// itself.
fn verify_at(ca: &Path, leaf: &Path, at: OffsetDateTime) -> Result<()> {
    let at = at.unix_timestamp().to_string();
    Cmd::new("openssl")
        .args(["verify", "-attime", &at, "-CAfile"])
        .arg(ca)
        .arg(leaf)
        .ok()?;
    Ok(())
}

/// What a renewal keeps: everything that OpenSSL shows but serial number, end and signature.
fn kept(pem: &str) -> Result<String> {
    let shown = openssl_x509(
        pem,
        &[
            "-text",
            "-nameopt",
            "RFC2253,show_type",
            "-certopt",
            "no_serial,no_signame,no_sigdump,no_validity",
        ],
    )?;
    Ok(shown + &openssl_x509(pem, &["-startdate", "-pubkey"])?)
}

const CA_WITH_SAN: &str = "keyUsage=critical,digitalSignature,keyEncipherment,keyCertSign\n\
    basicConstraints=critical,CA:TRUE,pathlen:2\nsubjectKeyIdentifier=hash\n\
    subjectAltName=DNS:kubernetes\nnsComment=made by hand\n";
const CA_CFSSL: &str = "keyUsage=critical,keyCertSign,cRLSign\nbasicConstraints=critical,CA:TRUE\n\
    subjectKeyIdentifier=hash\nauthorityKeyIdentifier=keyid\n";
const CA_EASYRSA: &str = "basicConstraints=CA:TRUE\nsubjectKeyIdentifier=hash\n\
    authorityKeyIdentifier=keyid:always,issuer:always\n";

#[test]
fn any_ca_is_renewed_with_its_own_key_and_what_it_signed_stays_good() -> Result<()> {
    for (name, key, subject, extensions, serial) in [
        (
            "kubeadm from 1.22 on, and more",
            RSA,
            "/CN=kubernetes",
            CA_WITH_SAN,
            "0",
        ),
        (
            "kubeadm up to 1.18",
            RSA,
            "/CN=kubernetes",
            CA_WITHOUT_SKI,
            "0",
        ),
        (
            "cfssl",
            P384,
            "/C=DE/O=Übung+OU=x/CN=kubernetes",
            CA_CFSSL,
            "0x7fffffffffffffffff",
        ),
        ("easyrsa", P256, "/CN=kubernetes", CA_EASYRSA, "4711"),
    ] {
        let cluster = Cluster::control_plane(key, subject, extensions, 20, serial)?;
        // As the makers of such CAs sign leaves; OpenSSL by itself would name issuer and serial
        // number of a CA without identifier.
        let with_issuer = match extensions {
            CA_EASYRSA => "authorityKeyIdentifier=keyid,issuer:always\n",
            CA_WITHOUT_SKI => "authorityKeyIdentifier=none\n",
            _ => "authorityKeyIdentifier=keyid\n",
        };
        let base = cluster.root().join("old");
        let extensions = format!("{CLIENT}{with_issuer}");
        let wanted = Wanted {
            base: &base,
            key: P256,
            subject: "/CN=x",
            extensions: &extensions,
            days: 900,
        };
        certificate(&wanted, Some(&cluster.pki("ca")), None)?;
        cluster.leaf("apiserver", "ca", P256, "/CN=kube-apiserver", SERVER)?;
        let (old, key) = (
            fs::read_to_string(cluster.pki("ca.crt"))?,
            fs::read(cluster.pki("ca.key"))?,
        );
        let settings = renewing();
        let steps = mended(&cluster, &settings, &[])?;
        ensure!(
            steps.len() == 2
                && steps[0].starts_with("renew the CA ca in /etc/kubernetes/pki/ca.crt"),
            "{steps:?}"
        );
        let new = fs::read_to_string(cluster.pki("ca.crt"))?;
        ensure!(
            kept(&new)? == kept(&old)?,
            "{name}:\n{}\n{}",
            kept(&old)?,
            kept(&new)?
        );
        ensure!(
            fs::read(cluster.pki("ca.key"))? == key,
            "{name}: the key stays"
        );
        let serial = |pem: &str| openssl_x509(pem, &["-serial"]);
        ensure!(
            (serial(&new)? == serial(&old)?) == (name == "easyrsa"),
            "{name}: {}",
            serial(&new)?
        );
        ensure!(
            !serial(&new)?.contains("serial=-")
                && (name == "easyrsa" || serial(&new)?.trim() != "serial=00")
        );
        let end = (settings.now + Duration::days(3650)).date().to_string();
        ensure!(
            openssl_x509(&new, &["-enddate", "-dateopt", "iso_8601"])?.contains(&end),
            "{name}"
        );
        // Old leaf and new leaf, after the old CA's end; the new leaf to its own end.
        let (ca, after) = (cluster.pki("ca.crt"), settings.now);
        verify_at(&ca, &base.with_extension("crt"), after).with_context(|| name.to_owned())?;
        verify_at(
            &ca,
            &cluster.pki("apiserver.crt"),
            after + Duration::days(360),
        )
        .with_context(|| name.to_owned())?;
        let again = planned(&cluster, &settings, &[])?;
        ensure!(
            again.1.is_empty() && again.0.is_empty(),
            "{name}: {}",
            told(&again.0)
        );
    }
    Ok(())
}

#[test]
fn a_sha1_signature_becomes_sha256() -> Result<()> {
    let cluster = Cluster::control_plane(RSA, "/CN=kubernetes", CA, 20, "1")?;
    let (crt, key) = (cluster.pki("ca.crt"), cluster.pki("ca.key"));
    fs::write(cluster.root().join("ext"), CA)?;
    Cmd::new("openssl")
        .args(["x509", "-sha1", "-days", "20", "-in"])
        .arg(&crt)
        .arg("-signkey")
        .arg(&key)
        .arg("-extfile")
        .arg(cluster.root().join("ext"))
        .arg("-out")
        .arg(&crt)
        .ok()?;
    ensure!(openssl_x509(&fs::read_to_string(&crt)?, &["-text"])?.contains("sha1WithRSA"));
    mended(&cluster, &renewing(), &[])?;
    ensure!(openssl_x509(&fs::read_to_string(&crt)?, &["-text"])?.contains("sha256WithRSA"));
    Ok(())
}

#[test]
fn a_pkcs8_key_signs_and_stays_as_it_is() -> Result<()> {
    let cluster = Cluster::control_plane(P384, "/CN=kubernetes", CA, 20, "1")?;
    let key = cluster.pki("ca.key");
    let pkcs8 = Cmd::new("openssl")
        .args(["pkcs8", "-topk8", "-nocrypt", "-in"])
        .arg(&key)
        .ok()?
        .stdout;
    ensure!(pkcs8.starts_with("-----BEGIN PRIVATE KEY-----"));
    fs::write(&key, &pkcs8)?;
    mended(&cluster, &renewing(), &[])?;
    ensure!(fs::read_to_string(&key)? == pkcs8);
    let new = fs::read_to_string(cluster.pki("ca.crt"))?;
    ensure!(openssl_x509(&new, &["-text"])?.contains("ecdsa-with-SHA384"));
    verify_at(
        &cluster.pki("ca.crt"),
        &cluster.pki("ca.crt"),
        renewing().now,
    )
}

/// The CA certificates of a kubeconfig's text, decoded.
fn trusted(config: &str) -> Result<Vec<String>> {
    let data = config.lines().filter_map(|line| {
        line.trim()
            .trim_start_matches("- ")
            .strip_prefix("certificate-authority-data: ")
    });
    data.map(|data| {
        let bytes =
            base64::engine::general_purpose::STANDARD.decode(data.trim().trim_matches('"'))?;
        Ok(String::from_utf8(bytes)?)
    })
    .collect()
}

/// A control plane with the CA in every place that is searched.
fn with_copies() -> Result<Cluster> {
    let cluster = Cluster::control_plane(P256, "/CN=kubernetes", CA, 20, "1")?;
    cluster.ca("front-proxy-ca", P256, "/CN=front-proxy-ca", CA, 20, "1")?;
    cluster.ca("etcd/ca", P256, "/CN=etcd-ca", CA, 20, "1")?;
    cluster.ca("other", P256, "/CN=other-ca", CA, 3650, "1")?;
    let other = fs::read_to_string(cluster.pki("other.crt"))?;
    for gone in ["other.crt", "other.key"] {
        fs::remove_file(cluster.pki(gone))?;
    }
    let ca = fs::read_to_string(cluster.pki("ca.crt"))?;
    cluster.manifest(
        "kube-apiserver",
        &[
            "--client-ca-file=/srv/clients.pem",
            "--requestheader-client-ca-file=/etc/kubernetes/pki/front-proxy-ca.crt",
            "--etcd-cafile=/etc/kubernetes/pki/etcd/ca.crt",
        ],
    )?;
    cluster.manifest(
        "kube-controller-manager",
        &[
            "--cluster-signing-cert-file=/etc/kubernetes/pki/ca.crt",
            "--cluster-signing-key-file=/etc/kubernetes/pki/ca.key",
            "--root-ca-file=/etc/kubernetes/root-ca.crt",
        ],
    )?;
    cluster.write(
        "srv/clients.pem",
        format!(
            "# clients\r\n{}# ours\n{ca}# end",
            other.replace('\n', "\r\n")
        ),
    )?;
    cluster.write("etc/kubernetes/root-ca.crt", format!("text before\n{ca}"))?;
    let der = cluster.root().join("etc/kubernetes/ca.der");
    Cmd::new("openssl")
        .args(["x509", "-outform", "DER", "-out"])
        .arg(der)
        .stdin(ca.clone())
        .ok()?;
    let pair = cluster.client("ca", P256, "/O=system:masters/CN=kubernetes-admin")?;
    let admin = cluster.kubeconfig("kubernetes-admin", &inline(&pair))?;
    cluster.write("etc/kubernetes/admin.conf", &admin)?;
    cluster.write("root/.kube/config", &admin)?;
    cluster.write(
        "home/anna/.kube/config",
        two_clusters(&ca, &other, &inline(&pair)),
    )?;
    cluster.write(
        "etc/cni/net.d/calico-kubeconfig",
        cluster.kubeconfig("calico", "    token: x\n")?,
    )?;
    cluster.write("etc/kubernetes/pki.bak/ca.crt", &ca)?;
    cluster.write("etc/ssl/certs/ca-certificates.crt", format!("{other}{ca}"))?;
    cluster.write("usr/local/share/ca-certificates/kubernetes.crt", &ca)?;
    cluster.write("var/lib/kubelet/pods/1/volumes/ca.crt", &ca)?;
    cluster.write("etc/kubernetes/stranger.crt", &other)?;
    Ok(cluster)
}

/// A person's own file: comments, two clusters, one of them another's.
fn two_clusters(ca: &str, other: &str, user: &str) -> String {
    let both = base64(format!("{other}{ca}").as_bytes());
    let (ca, other) = (base64(ca.as_bytes()), base64(other.as_bytes()));
    format!(
        "# mine\nclusters:\n- name: work # here\n  cluster:\n    \
         certificate-authority-data: \"{ca}\"\n    server: https://vip:6443\n\
         - name: else\n  cluster:\n    certificate-authority-data: {other}\n- name: bundle\n  \
         cluster:\n    certificate-authority-data: {both}\n\
         contexts:\n- context: {{cluster: work, user: me}}\n  name: c\ncurrent-context: c\nusers:\n\
         - name: me\n  user:\n{user}"
    )
}

fn snapshot(root: &Path) -> Result<BTreeMap<String, Vec<u8>>> {
    let listed = Cmd::new("find")
        .arg(root)
        .args(["-type", "f", "-not", "-path", "*/var/lib/rescue/*"])
        .ok()?
        .stdout;
    listed
        .lines()
        .map(|path| Ok((path.to_owned(), fs::read(path)?)))
        .collect()
}

#[test]
fn every_copy_is_exchanged_and_nothing_else_and_undo_restores_all() -> Result<()> {
    let cluster = with_copies()?;
    let before = snapshot(cluster.root())?;
    let settings = renewing();
    let steps = mended(&cluster, &settings, &[])?;
    for path in [
        "/etc/kubernetes/pki/front-proxy-ca.crt",
        "/etc/kubernetes/pki/etcd/ca.crt",
        "/etc/kubernetes/admin.conf",
        "/root/.kube/config",
        "/home/anna/.kube/config",
        "/etc/cni/net.d/calico-kubeconfig",
        "/srv/clients.pem",
        "/etc/kubernetes/root-ca.crt",
        "/etc/kubernetes/ca.der",
        "/usr/local/share/ca-certificates/kubernetes.crt",
    ] {
        ensure!(
            steps.iter().any(|step| step.contains(path)),
            "{path} is not in {steps:#?}"
        );
    }
    let guest = cluster.guest()?;
    let (new, old) = (
        text(&guest, "/etc/kubernetes/pki/ca.crt")?,
        &before[&cluster.pki("ca.crt").display().to_string()],
    );
    let old = String::from_utf8(old.clone())?;
    ensure!(new != old);
    let was = |path: &str| -> Result<String> {
        Ok(String::from_utf8(
            before[&cluster.root().join(&path[1..]).display().to_string()].clone(),
        )?)
    };
    for path in [
        "/srv/clients.pem",
        "/etc/kubernetes/root-ca.crt",
        "/usr/local/share/ca-certificates/kubernetes.crt",
    ] {
        ensure!(
            text(&guest, path)? == was(path)?.replace(&old, &new),
            "{path}"
        );
    }
    let swapped = |path: &str| -> Result<String> {
        let text = was(path)?;
        trusted(&text)?.iter().try_fold(text.clone(), |text, data| {
            Ok(text.replace(
                &base64(data.as_bytes()),
                &base64(data.replace(&old, &new).as_bytes()),
            ))
        })
    };
    ensure!(
        text(&guest, "/etc/cni/net.d/calico-kubeconfig")?
            == swapped("/etc/cni/net.d/calico-kubeconfig")?
    );
    // The users' certificates are renewed too, so only what is before them is compared.
    for path in [
        "/etc/kubernetes/admin.conf",
        "/root/.kube/config",
        "/home/anna/.kube/config",
    ] {
        let head = |text: &str| text.split("users:").next().map(str::to_owned);
        ensure!(
            head(&text(&guest, path)?) == head(&swapped(path)?),
            "{path}:\n{}",
            text(&guest, path)?
        );
    }
    for untouched in [
        "/etc/kubernetes/pki.bak/ca.crt",
        "/etc/ssl/certs/ca-certificates.crt",
        "/var/lib/kubelet/pods/1/volumes/ca.crt",
        "/etc/kubernetes/stranger.crt",
    ] {
        ensure!(text(&guest, untouched)? == was(untouched)?, "{untouched}");
    }
    let der = fs::read(cluster.root().join("etc/kubernetes/ca.der"))?;
    ensure!(rescue::pki::x509::pem::certificates(new.as_bytes()) == [der]);
    drop(guest);
    let writable = pki_support::open(cluster.root())?;
    undo(&writable, None, &Silent)?;
    writable.close()?;
    ensure!(
        snapshot(cluster.root())? == before,
        "undo brings every byte back"
    );
    Ok(())
}

#[test]
fn without_the_flag_nothing_happens_and_the_line_to_type_is_told() -> Result<()> {
    let cluster = with_copies()?;
    let (findings, plan) = planned(&cluster, &later(), &[])?;
    ensure!(
        plan.is_empty(),
        "{:?}",
        plan.steps
            .iter()
            .map(|step| step.remedy.summary())
            .collect::<Vec<_>>()
    );
    let found = finding(&findings, "CA ca expired")?;
    ensure!(found.severity == Severity::StopsBoot);
    ensure!(
        found
            .advice
            .iter()
            .any(|line| line.contains("rescue repair SRC --renew-ca")),
        "{}",
        told(&findings)
    );
    // Within a year of its end it may be renewed too; with more than a year left the flag changes
    // nothing.
    let young = Cluster::control_plane(P256, "/CN=kubernetes", CA, 300, "1")?;
    ensure!(planned(&young, &renewing(), &[])?.1.steps.len() == 1);
    let good = Cluster::control_plane(P256, "/CN=kubernetes", CA, 3650, "1")?;
    ensure!(planned(&good, &renewing(), &[])?.1.is_empty());
    Ok(())
}

#[test]
fn the_backup_and_the_system_bundle_are_named_as_left() -> Result<()> {
    let (findings, _) = planned(&with_copies()?, &renewing(), &[])?;
    let advice = finding(&findings, "CA ca expired")?.advice.join(" ");
    for word in [
        "/etc/kubernetes/pki.bak/ca.crt (a backup)",
        "/etc/ssl/certs/ca-certificates.crt",
        "update-ca-certificates",
    ] {
        ensure!(advice.contains(word), "{word}: {advice}");
    }
    let remedies = &finding(&findings, "CA ca expired")?.remedies;
    let details = remedies.first().context("a remedy")?.details().join(" ");
    for word in [
        "kube-root-ca.crt",
        "cluster-info",
        "extension-apiserver-authentication",
        "caBundle",
        "service accounts",
    ] {
        ensure!(details.contains(word), "{word}: {details}");
    }
    Ok(())
}

#[test]
fn only_the_matching_certificate_of_a_bundle_is_renewed() -> Result<()> {
    let cluster = Cluster::control_plane(P256, "/CN=kubernetes", CA, 20, "1")?;
    cluster.ca("old", P256, "/CN=kubernetes", CA, 20, "1")?;
    let old = fs::read_to_string(cluster.pki("old.crt"))?;
    fs::remove_file(cluster.pki("old.key"))?;
    fs::remove_file(cluster.pki("old.crt"))?;
    let ca = fs::read_to_string(cluster.pki("ca.crt"))?;
    fs::write(cluster.pki("ca.crt"), format!("{old}{ca}"))?;
    cluster.manifest(
        "kube-controller-manager",
        &["--cluster-signing-cert-file=/etc/kubernetes/pki/ca.crt"],
    )?;
    let (findings, _) = planned(&cluster, &renewing(), &[])?;
    let bundle = finding(&findings, "is a bundle of 2")?;
    ensure!(
        bundle.severity == Severity::WillBreak
            && bundle
                .advice
                .join(" ")
                .contains("expected 1 certificate, found 2")
    );
    mended(&cluster, &renewing(), &[])?;
    let new = fs::read_to_string(cluster.pki("ca.crt"))?;
    ensure!(
        new.starts_with(&old)
            && !new.contains(&ca)
            && new.matches("BEGIN CERTIFICATE").count() == 2,
        "{new}"
    );
    Ok(())
}

#[test]
fn what_cannot_be_renewed_is_refused_with_the_reason() -> Result<()> {
    let make = || Cluster::control_plane(P256, "/CN=kubernetes", CA, 20, "1");

    let external = make()?;
    fs::remove_file(external.pki("ca.key"))?;
    refused(
        &external,
        "CA ca expired",
        &[
            "its key is not on this node (/etc/kubernetes/pki/ca.key)",
            "Bring the key",
        ],
    )?;

    let mismatch = make()?;
    pki_support::cluster::key(P256, &mismatch.pki("ca.key"))?;
    refused(
        &mismatch,
        "CA ca does not match its key",
        &["does not match", "Restore the pair"],
    )?;

    let encrypted = make()?;
    let key = encrypted.pki("ca.key");
    let locked = Cmd::new("openssl")
        .args(["pkcs8", "-topk8", "-passout", "pass:secret", "-in"])
        .arg(&key)
        .ok()?
        .stdout;
    fs::write(&key, locked)?;
    refused(
        &encrypted,
        "CA ca has an unreadable key",
        &["encrypted with a passphrase"],
    )?;

    let intermediate = make()?;
    intermediate.ca("root", P256, "/CN=company root", CA, 3650, "1")?;
    let wanted = Wanted {
        base: &intermediate.pki("ca"),
        key: P256,
        subject: "/CN=kubernetes",
        extensions: CA,
        days: 20,
    };
    certificate(&wanted, Some(&intermediate.pki("root")), None)?;
    refused(
        &intermediate,
        "CA ca expired",
        &["issued by CN=company root", "Only that CA can renew it"],
    )?;

    let no_constraints = Cluster::control_plane(
        P256,
        "/CN=kubernetes",
        "subjectKeyIdentifier=hash\n",
        20,
        "1",
    )?;
    refused(
        &no_constraints,
        "CA ca is not a CA certificate",
        &["basicConstraints CA:TRUE"],
    )?;

    let future = make()?;
    let early = Settings {
        now: OffsetDateTime::now_utc() - Duration::days(30),
        ..renewing()
    };
    let (findings, plan) = planned(&future, &early, &[])?;
    ensure!(
        plan.is_empty()
            && finding(&findings, "CA ca is not yet valid")?
                .advice
                .join(" ")
                .contains("--now")
    );
    Ok(())
}

#[test]
fn copies_follow_a_ca_that_was_renewed_elsewhere() -> Result<()> {
    // External: the key is somewhere else, and somebody brought the renewed certificate.
    let cluster = Cluster::control_plane(P256, "/CN=kubernetes", CA, 20, "1")?;
    let conf = cluster.kubeconfig("calico", "    token: x\n")?;
    cluster.write("etc/cni/net.d/calico-kubeconfig", &conf)?;
    Cmd::new("openssl")
        .args(["x509", "-days", "3650", "-set_serial", "99", "-in"])
        .arg(cluster.pki("ca.crt"))
        .arg("-signkey")
        .arg(cluster.pki("ca.key"))
        .arg("-out")
        .arg(cluster.pki("new.crt"))
        .ok()?;
    fs::rename(cluster.pki("new.crt"), cluster.pki("ca.crt"))?;
    fs::remove_file(cluster.pki("ca.key"))?;
    let (findings, _) = planned(&cluster, &later(), &[])?;
    let found = finding(&findings, "CA ca was renewed, but not every copy")?;
    ensure!(found.severity == Severity::WillBreak, "{}", told(&findings));
    let steps = mended(&cluster, &later(), &[])?;
    ensure!(
        steps == ["put the renewed CA ca into /etc/cni/net.d/calico-kubeconfig"],
        "{steps:?}"
    );
    let config = fs::read_to_string(cluster.root().join("etc/cni/net.d/calico-kubeconfig"))?;
    ensure!(trusted(&config)? == [fs::read_to_string(cluster.pki("ca.crt"))?]);
    Ok(())
}

/// Another node of the same cluster: its CA files, with or without the keys.
fn sibling(of: &Cluster, with_key: bool) -> Result<Cluster> {
    let cluster = Cluster::new()?;
    fs::copy(of.pki("ca.crt"), cluster.pki("ca.crt"))?;
    if with_key {
        fs::copy(of.pki("ca.key"), cluster.pki("ca.key"))?;
        cluster.manifest(
            "kube-apiserver",
            &["--client-ca-file=/etc/kubernetes/pki/ca.crt"],
        )?;
    } else {
        let pair = of.client("ca", P256, "/O=system:nodes/CN=system:node:node1")?;
        let current = "/var/lib/kubelet/pki/kubelet-client-current.pem";
        cluster.write("var/lib/kubelet/pki/kubelet-client-1.pem", pair.0 + &pair.1)?;
        cluster.link(&current[1..], "/var/lib/kubelet/pki/kubelet-client-1.pem")?;
        let body = format!("    client-certificate: {current}\n    client-key: {current}\n");
        cluster.write(
            "etc/kubernetes/kubelet.conf",
            cluster.kubeconfig("default-auth", &body)?,
        )?;
        cluster.write(
            "var/lib/kubelet/config.yaml",
            "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\n\
             authentication:\n  x509:\n    clientCAFile: /etc/kubernetes/pki/ca.crt\n",
        )?;
    }
    Ok(cluster)
}

#[test]
fn all_nodes_of_a_cluster_get_the_same_certificate() -> Result<()> {
    let first = Cluster::control_plane(P256, "/CN=kubernetes", CA, 20, "1")?;
    let (second, worker) = (sibling(&first, true)?, sibling(&first, false)?);
    let settings = renewing();
    // Before: the worker is told who will bring it; alone it is told what to bring.
    let (findings, _) = planned(&worker, &settings, &[peer(&first, &settings)?])?;
    ensure!(
        finding(&findings, "CA ca expired")?
            .advice
            .join(" ")
            .contains("as soon as node"),
        "{}",
        told(&findings)
    );
    refused(
        &worker,
        "CA ca expired",
        &["Give the disk of a control plane"],
    )?;

    mended(
        &first,
        &settings,
        &[peer(&second, &settings)?, peer(&worker, &settings)?],
    )?;
    let new = fs::read_to_string(first.pki("ca.crt"))?;
    // A day later, in another run: the certificate that is there already is taken, not one more
    // made.
    let day_after = Settings {
        now: settings.now + Duration::days(1),
        ..renewing()
    };
    let steps = mended(&second, &day_after, &[peer(&first, &day_after)?])?;
    ensure!(
        steps
            .first()
            .is_some_and(|step| step.starts_with("take the renewed CA ca from node")),
        "{steps:?}"
    );
    ensure!(fs::read_to_string(second.pki("ca.crt"))? == new);
    // The worker needs no flag: the decision was taken when the first was renewed.
    let steps = mended(&worker, &later(), &[peer(&first, &later())?])?;
    ensure!(fs::read_to_string(worker.pki("ca.crt"))? == new);
    let conf = fs::read_to_string(worker.root().join("etc/kubernetes/kubelet.conf"))?;
    ensure!(trusted(&conf)? == [new.clone()], "{steps:?}");
    let pem = worker
        .root()
        .join("var/lib/kubelet/pki/kubelet-client-current.pem");
    let pem = fs::read_link(&pem)?;
    verify_at(
        &worker.pki("ca.crt"),
        &worker.root().join(pem.strip_prefix("/")?),
        settings.now,
    )?;
    Ok(())
}

#[test]
fn a_ca_of_the_same_name_but_another_key_is_never_taken() -> Result<()> {
    let ours = Cluster::control_plane(P256, "/CN=kubernetes", CA, 20, "1")?;
    let theirs = Cluster::control_plane(P256, "/CN=kubernetes", CA, 3650, "1")?;
    let (findings, plan) = planned(&ours, &later(), &[peer(&theirs, &later())?])?;
    ensure!(
        plan.is_empty() && finding(&findings, "CA ca expired")?.remedies.is_empty(),
        "{}",
        told(&findings)
    );
    // Nor one with our name and key that somebody else signed.
    let forged = sibling(&ours, true)?;
    let other = Cluster::control_plane(P256, "/CN=kubernetes", CA, 3650, "1")?;
    let request = forged.root().join("csr");
    fs::write(forged.root().join("ext"), CA)?;
    Cmd::new("openssl")
        .args(["req", "-new", "-subj", "/CN=kubernetes", "-key"])
        .arg(ours.pki("ca.key"))
        .arg("-out")
        .arg(&request)
        .ok()?;
    Cmd::new("openssl")
        .args(["x509", "-req", "-days", "3650", "-in"])
        .arg(&request)
        .arg("-CA")
        .arg(other.pki("ca.crt"))
        .arg("-CAkey")
        .arg(other.pki("ca.key"))
        .args(["-set_serial", "7", "-extfile"])
        .arg(forged.root().join("ext"))
        .arg("-out")
        .arg(forged.pki("ca.crt"))
        .ok()?;
    let (findings, plan) = planned(&ours, &later(), &[peer(&forged, &later())?])?;
    ensure!(
        plan.is_empty() && finding(&findings, "CA ca expired")?.remedies.is_empty(),
        "{}",
        told(&findings)
    );
    Ok(())
}
