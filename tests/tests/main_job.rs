//! The main job on the helper path, end to end: a full disk of an expired control plane, inspected,
//! repaired, judged by real programs, and undone.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use tests::command::{Cmd, Ran};
use tests::disk::{Disk, MIB, control_plane};
use tests::fill;
use tests::programs::rescue_faulty;
use tests::snapshot::snapshot;

const NOW: &str = "2026-11-23T08:00:00Z";

fn rescue(words: &[&str]) -> Result<Ran> {
    rescue_faulty(0, words).run()
}

fn full_disk(folder: &Path) -> Result<Disk> {
    let disk = control_plane(&folder.join("disk.img"), 1024 * MIB)?;
    disk.mounted(fill::to_enospc)?;
    Ok(disk)
}

fn text(path: &Path) -> &str {
    path.to_str().expect("test paths are UTF-8")
}

fn checks_with_findings(report: &Value) -> Vec<String> {
    let findings = report["nodes"][0]["findings"]
        .as_array()
        .cloned()
        .unwrap_or_default();
    let mut checks: Vec<String> = findings
        .iter()
        .filter(|finding| finding["severity"] != "note")
        .filter_map(|finding| finding["check"].as_str().map(str::to_owned))
        .collect();
    checks.dedup();
    checks
}

fn openssl_verifies(pki: &Path, leaf: &str, ca: &str) -> Result<()> {
    // At the time the repair was made for: this test must not depend on the day it runs.
    Cmd::new("openssl")
        .args(["verify", "-attime", "1795420800", "-CAfile"])
        .arg(pki.join(ca))
        .arg(pki.join(leaf))
        .ok()
        .with_context(|| format!("verifying {leaf}"))?;
    Ok(())
}

fn key_matches(pki: &Path, leaf: &str) -> Result<()> {
    let of_certificate = Cmd::new("openssl")
        .args(["x509", "-noout", "-pubkey", "-in"])
        .arg(pki.join(leaf))
        .ok()?;
    let key = pki.join(leaf).with_extension("key");
    let of_key = Cmd::new("openssl")
        .args(["pkey", "-pubout", "-in"])
        .arg(key)
        .ok()?;
    ensure!(
        of_certificate.stdout == of_key.stdout,
        "{leaf} does not match its key"
    );
    Ok(())
}

const LEAVES: [(&str, &str); 7] = [
    ("apiserver.crt", "ca.crt"),
    ("apiserver-kubelet-client.crt", "ca.crt"),
    ("front-proxy-client.crt", "front-proxy-ca.crt"),
    ("apiserver-etcd-client.crt", "etcd/ca.crt"),
    ("etcd/server.crt", "etcd/ca.crt"),
    ("etcd/peer.crt", "etcd/ca.crt"),
    ("etcd/healthcheck-client.crt", "etcd/ca.crt"),
];

#[test]
fn a_full_and_expired_control_plane_comes_back_and_the_repair_can_be_undone() -> Result<()> {
    let folder = tempfile::Builder::new().prefix("rescue-main-").tempdir()?;
    let disk = full_disk(folder.path())?;
    let image = text(&disk.path).to_owned();
    let before = disk.mounted_read_only(snapshot)?;
    let hash = disk.sha256()?;

    let seen = rescue(&["inspect", "--json", "--now", NOW, &image])?;
    ensure!(seen.code == 1, "{}", seen.transcript());
    let checks = checks_with_findings(&seen.json()?);
    for check in [
        "disk-full",
        "certificates",
        "admin-kubeconfig",
        "kubelet-bootstrap",
    ] {
        ensure!(
            checks.iter().any(|found| found == check),
            "{check} is missing in {checks:?}"
        );
    }
    let dry = rescue(&["repair", "--dry-run", "--now", NOW, &image])?;
    ensure!(
        dry.code == 1 && dry.stdout.contains("dry run"),
        "{}",
        dry.transcript()
    );
    ensure!(disk.sha256()? == hash, "looking changed the image");

    let repaired = rescue(&["repair", "--yes", "--json", "--now", NOW, &image])?;
    ensure!(repaired.code == 0, "{}", repaired.transcript());
    let report = repaired.json()?;
    ensure!(
        report["schema"] == "rescue/v1" && report["receipt"]["runs"][0]["run"].is_string(),
        "{report}"
    );
    ensure!(
        !repaired.transcript().contains("PRIVATE KEY"),
        "key material was printed"
    );
    disk.assert_clean()?;

    disk.mounted_read_only(|root| {
        let pki = root.join("etc/kubernetes/pki");
        for (leaf, ca) in LEAVES {
            openssl_verifies(&pki, leaf, ca)?;
            key_matches(&pki, leaf)?;
        }
        let link = fs::read_link(root.join("var/lib/kubelet/pki/kubelet-client-current.pem"))?;
        ensure!(
            link.is_absolute(),
            "the kubelet wants an absolute link, not {}",
            link.display()
        );
        let pem = root.join(link.strip_prefix("/")?);
        ensure!(
            pem.metadata()?.permissions().mode() & 0o777 == 0o600,
            "the kubelet's key is readable by others"
        );
        openssl_verifies(&pki, text(&pem), "ca.crt")?;
        let dropin = root.join("etc/systemd/system/kubelet.service.d/90-rescue.conf");
        ensure!(
            !dropin.exists(),
            "a usable client certificate makes the drop-in needless"
        );
        ensure!(
            !root.join("var/log/vmware-vmsvc-root.1.log").exists(),
            "rotated logs are still there"
        );
        Ok(())
    })?;

    let again = rescue(&["inspect", "--now", NOW, &image])?;
    ensure!(again.code == 0, "{}", again.transcript());
    let runs = rescue(&["runs", "--now", NOW, &image])?;
    ensure!(
        runs.code == 0 && runs.stdout.contains("done"),
        "{}",
        runs.transcript()
    );

    let undone = rescue(&["undo", "--yes", "--now", NOW, &image])?;
    ensure!(undone.code == 0, "{}", undone.transcript());
    disk.assert_clean()?;
    let after = disk.mounted_read_only(snapshot)?;
    for (path, state) in &before {
        ensure!(
            after.get(path) == Some(state),
            "undo did not restore {}",
            path.display()
        );
    }
    let added: Vec<_> = after
        .keys()
        .filter(|path| !before.contains_key(*path))
        .collect();
    ensure!(added.is_empty(), "undo left {added:?}");
    Ok(())
}

#[test]
fn an_undo_on_a_node_that_has_booted_is_refused_and_leaves_the_disk_as_it_was() -> Result<()> {
    let folder = tempfile::Builder::new().prefix("rescue-main-").tempdir()?;
    let disk = control_plane(&folder.path().join("disk.img"), 700 * MIB)?;
    let image = text(&disk.path);
    let ran = rescue(&["repair", "--yes", "--now", NOW, image])?;
    ensure!(ran.code == 0, "{}", ran.transcript());
    disk.mounted(|root| {
        let conf = root.join("etc/kubernetes/admin.conf");
        let rotated = fs::read_to_string(&conf)? + "# the node wrote this\n";
        Ok(fs::write(conf, rotated)?)
    })?;
    let hash = disk.sha256()?;
    let refused = rescue(&["undo", "--yes", "--now", NOW, image])?;
    for words in [
        "/etc/kubernetes/admin.conf",
        "gone for good",
        "rescue repair",
        "/var/lib/rescue/runs/",
    ] {
        let is_said = refused.stderr.contains(words);
        ensure!(refused.code == 3 && is_said, "{}", refused.transcript());
    }
    ensure!(disk.sha256()? == hash, "a refused undo changed the disk");
    Ok(())
}

#[test]
fn no_free_inode_at_all() -> Result<()> {
    let folder = tempfile::Builder::new().prefix("rescue-main-").tempdir()?;
    let disk = control_plane(&folder.path().join("disk.img"), 700 * MIB)?;
    disk.mounted(fill::inodes)?;
    let ran = rescue(&["repair", "--yes", "--now", NOW, text(&disk.path)])?;
    ensure!(ran.code == 0, "{}", ran.transcript());
    disk.assert_clean()
}

#[test]
fn a_mounted_folder_is_repaired_like_a_disk() -> Result<()> {
    let folder = tempfile::Builder::new().prefix("rescue-main-").tempdir()?;
    let disk = control_plane(&folder.path().join("disk.img"), 700 * MIB)?;
    disk.mounted(|root| {
        let ran = rescue(&["repair", "--yes", "--now", NOW, "--root", text(root)])?;
        ensure!(ran.code == 0, "{}", ran.transcript());
        let undone = rescue(&["undo", "--yes", "--now", NOW, "--root", text(root)])?;
        ensure!(undone.code == 0, "{}", undone.transcript());
        Ok(())
    })
}
