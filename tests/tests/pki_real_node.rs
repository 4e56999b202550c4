//! The certificates of a real node: renewed in a copy of its files, then judged by openssl and by
//! Debian's etcd.

mod pki_support;

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use anyhow::{Context as _, Result};
use pki_support::{inspect, open, repair, told};
use rescue::base::severity::Severity;
use rescue::settings::Settings;
use tests::{Cmd, fixtures, judge};

/// Leaves in files with the CA that signed each.
const FILES: [(&str, &str); 7] = [
    ("apiserver", "ca.crt"),
    ("apiserver-kubelet-client", "ca.crt"),
    ("front-proxy-client", "front-proxy-ca.crt"),
    ("apiserver-etcd-client", "etcd/ca.crt"),
    ("etcd/server", "etcd/ca.crt"),
    ("etcd/peer", "etcd/ca.crt"),
    ("etcd/healthcheck-client", "etcd/ca.crt"),
];

fn node() -> Result<tempfile::TempDir> {
    let folder = tempfile::tempdir()?;
    fixtures::unpack_control_plane(folder.path())
        .context("unpacking the real node (are you root?)")?;
    Ok(folder)
}

/// Subject, SANs, EKU, KU as openssl prints them: what must survive a renewal.
fn identity(certificate: &Path) -> Result<String> {
    let ran = Cmd::new("openssl")
        .args([
            "x509",
            "-noout",
            "-subject",
            "-issuer",
            "-nameopt",
            "RFC2253,show_type",
        ])
        .args([
            "-ext",
            "subjectAltName,extendedKeyUsage,keyUsage,authorityKeyIdentifier",
            "-in",
        ])
        .arg(certificate)
        .ok()?;
    Ok(ran.stdout)
}

#[test]
fn every_certificate_is_renewed_and_real_programs_accept_them() -> Result<()> {
    let node = node()?;
    let root = node.path();
    let pki = root.join("etc/kubernetes/pki");
    let old: Vec<String> = FILES
        .iter()
        .map(|(name, _)| identity(&pki.join(format!("{name}.crt"))))
        .collect::<Result<_>>()?;
    let kubelet_conf = fs::read(root.join("etc/kubernetes/kubelet.conf"))?;
    let old_pem = root.join("var/lib/kubelet/pki/kubelet-client-2023-02-23-08-02-57.pem");
    let old_pem_bytes = fs::read(&old_pem)?;
    let admin_old = fs::read_to_string(root.join("etc/kubernetes/admin.conf"))?;
    assert!(!judge::root(root)?.healthy(), "the fixture is expired");

    let settings = Settings::default();
    let (before, after) = repair(root, &settings)?;
    let with_remedy = before
        .iter()
        .filter(|finding| !finding.remedies.is_empty())
        .count();
    assert_eq!(
        with_remedy,
        13,
        "7 leaves, 3 kubeconfigs, the kubelet's two, the admin's copy:\n{}",
        told(&before)
    );
    let stops = before
        .iter()
        .filter(|finding| finding.severity == Severity::StopsBoot)
        .count();
    assert_eq!(stops, 5, "{}", told(&before));
    assert!(
        after
            .iter()
            .all(|finding| finding.severity == Severity::Note),
        "{}",
        told(&after)
    );

    // A second opinion on all of them, and etcd with mutual TLS on the node's own data.
    let judgement = judge::root(root)?;
    for leaf in &judgement.leaves {
        assert!(leaf.verdict.good, "{}: {}", leaf.name, leaf.verdict.says);
    }
    assert_eq!(judgement.leaves.len(), 12);
    assert!(judgement.kubelet.good, "{}", judgement.kubelet.says);
    assert!(judgement.etcd.good, "{}", judgement.etcd.says);

    for ((name, _), old) in FILES.iter().zip(&old) {
        assert_eq!(&identity(&pki.join(format!("{name}.crt")))?, old, "{name}");
        let key = fs::metadata(pki.join(format!("{name}.key")))?;
        assert_eq!((key.mode() & 0o7777, key.uid()), (0o600, 0), "{name}.key");
        assert_eq!(
            fs::metadata(pki.join(format!("{name}.crt")))?.mode() & 0o7777,
            0o644,
            "{name}.crt"
        );
        let text = fs::read_to_string(pki.join(format!("{name}.key")))?;
        assert!(
            text.starts_with("-----BEGIN RSA PRIVATE KEY-----\n"),
            "{name}.key"
        );
    }

    // The kubelet: a new dated file, the link, the old file still there, and kubelet.conf untouched
    // because it led there.
    let link = fs::read_link(root.join("var/lib/kubelet/pki/kubelet-client-current.pem"))?;
    assert!(
        link.starts_with("/var/lib/kubelet/pki/"),
        "{}",
        link.display()
    );
    assert_ne!(link.file_name(), old_pem.file_name());
    assert_eq!(fs::read(&old_pem)?, old_pem_bytes);
    let pem = root.join(link.strip_prefix("/")?);
    assert_eq!(fs::metadata(&pem)?.mode() & 0o7777, 0o600);
    let text = fs::read_to_string(&pem)?;
    assert_eq!(text.matches("-----BEGIN").count(), 2, "leaf and key only");
    assert!(text.contains("-----BEGIN EC PRIVATE KEY-----"));
    assert_eq!(
        fs::read(root.join("etc/kubernetes/kubelet.conf"))?,
        kubelet_conf
    );
    let identity = identity(&pem)?;
    assert!(
        identity
            .contains("CN=PRINTABLESTRING:system:node:k8s-master01,O=PRINTABLESTRING:system:nodes"),
        "{identity}"
    );

    // admin.conf: only the two values changed, and the copy holds the same two.
    let admin = fs::read_to_string(root.join("etc/kubernetes/admin.conf"))?;
    let differing = admin
        .lines()
        .zip(admin_old.lines())
        .filter(|(new, old)| new != old)
        .count();
    assert_eq!(
        (differing, admin.lines().count()),
        (2, admin_old.lines().count())
    );
    assert_eq!(fs::read_to_string(root.join("root/.kube/config"))?, admin);

    // A further run finds nothing to do.
    let writable = open(root)?;
    let (again, prepared) = pki_support::plan(writable.guest(), &settings)?;
    assert!(prepared.changes.is_empty(), "{}", told(&again));
    Ok(())
}

#[test]
fn extensions_stand_in_gos_order() -> Result<()> {
    let node = node()?;
    repair(node.path(), &Settings::default())?;
    for (name, _) in FILES {
        let file = node.path().join(format!("etc/kubernetes/pki/{name}.crt"));
        let parsed = Cmd::new("openssl")
            .args(["asn1parse", "-in"])
            .arg(&file)
            .ok()?
            .stdout;
        let order: Vec<&str> = parsed
            .lines()
            .filter_map(|line| line.split_once("OBJECT            :X509v3 "))
            .map(|(_, name)| name.trim())
            .collect();
        let mut expected = vec![
            "Key Usage",
            "Extended Key Usage",
            "Basic Constraints",
            "Authority Key Identifier",
            "Subject Alternative Name",
        ];
        if !["apiserver", "etcd/server", "etcd/peer"].contains(&name) {
            expected.pop();
        }
        assert_eq!(order, expected, "{name}");
        let dates = Cmd::new("openssl")
            .args(["x509", "-noout", "-text", "-in"])
            .arg(&file)
            .ok()?
            .stdout;
        // From the CA's own beginning, so that a wrong clock at the next boot does no harm.
        assert!(
            dates.contains("Not Before: Feb 23 08:02:"),
            "{name}: {dates}"
        );
    }
    Ok(())
}

#[test]
fn looking_changes_nothing() -> Result<()> {
    let node = node()?;
    // Size, owner, mode, content and inode change times of everything: even a write that restores a
    // file would show.
    let listing = |root: &Path| {
        Cmd::new("find")
            .arg(root)
            .args(["-printf", "%p %s %U %m %T@ %C@\\n"])
            .ok()
    };
    let before = listing(node.path())?.stdout;
    let writable = open(node.path())?;
    let findings = inspect(writable.guest(), &Settings::default())?;
    assert!(findings.len() >= 12, "{}", told(&findings));
    assert_eq!(listing(node.path())?.stdout, before);
    Ok(())
}
