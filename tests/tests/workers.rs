//! Nodes whose disk has no CA key: signed with another disk's in one run, by request and answer, or from a bundle.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use tests::command::{Cmd, Ran};
use tests::disk::{Disk, MIB, control_plane};
use tests::programs::rescue_faulty;
use tests::worker::{Authority, CURRENT, worker};

const NOW: &str = "2026-11-23T08:00:00Z";
/// The same, for openssl.
const NOW_SECONDS: &str = "1795420800";

fn rescue(words: &[&str]) -> Result<Ran> {
    rescue_faulty(0, words).run()
}

fn text(path: &Path) -> &str {
    path.to_str().expect("test paths are UTF-8")
}

fn folder() -> Result<tempfile::TempDir> {
    Ok(tempfile::Builder::new().prefix("rescue-workers-").tempdir()?)
}

fn contains(ran: &Ran, wanted: &[&str]) -> Result<()> {
    for words in wanted {
        ensure!(ran.transcript().contains(words), "{words:?} is missing\n{}", ran.transcript());
    }
    Ok(())
}

/// The kubelet of this disk has a certificate for this node that openssl verifies with the disk's own CA, its key beside it, in a
/// private file behind an absolute link, and nothing else in it.
fn is_mended(disk: &Disk, name: &str) -> Result<()> {
    disk.assert_clean()?;
    disk.mounted_read_only(|root| {
        let link = fs::read_link(root.join(CURRENT))?;
        ensure!(link.is_absolute(), "the kubelet wants an absolute link, not {}", link.display());
        let pem = root.join(link.strip_prefix("/")?);
        ensure!(pem.metadata()?.permissions().mode() & 0o777 == 0o600, "the key is readable by others");
        let verify = Cmd::new("openssl").args(["verify", "-purpose", "sslclient", "-attime", NOW_SECONDS, "-CAfile"]);
        verify.arg(root.join("etc/kubernetes/pki/ca.crt")).arg(&pem).ok()?;
        let show = Cmd::new("openssl").args(["x509", "-noout", "-subject", "-nameopt", "RFC2253", "-in"]);
        let subject = show.arg(&pem).ok()?.stdout;
        ensure!(subject.trim() == format!("subject=CN=system:node:{name},O=system:nodes"), "{subject}");
        let of_certificate = Cmd::new("openssl").args(["x509", "-noout", "-pubkey", "-in"]).arg(&pem).ok()?.stdout;
        let of_key = Cmd::new("openssl").args(["pkey", "-pubout", "-in"]).arg(&pem).ok()?.stdout;
        ensure!(of_certificate == of_key, "the key is not the certificate's");
        let blocks = fs::read_to_string(&pem)?.matches("-----BEGIN").count();
        ensure!(blocks == 2, "{blocks} blocks");
        Ok(())
    })
}

fn current(disk: &Disk) -> Result<PathBuf> {
    disk.mounted_read_only(|root| Ok(fs::read_link(root.join(CURRENT))?))
}

#[test]
fn a_control_plane_and_its_workers_in_one_run() -> Result<()> {
    let folder = folder()?;
    let at = |name: &str| folder.path().join(name);
    let authority = Authority::of_the_control_plane()?;
    let master = control_plane(&at("cp.img"), 700 * MIB)?;
    let (one, two) = (worker(&at("w1.img"), "worker1", &authority)?, worker(&at("w2.img"), "worker2", &authority)?);
    let old = current(&one)?;

    let alone = rescue(&["inspect", "--now", NOW, text(&one.path)])?;
    ensure!(alone.code == 1, "{}", alone.transcript());
    contains(&alone, &["a worker has none", &format!("rescue repair {} --ca CONTROL-PLANE", text(&one.path))])?;

    // A worker first: the order on the command line does not matter.
    let disks = [text(&one.path), text(&master.path), text(&two.path)];
    let repaired = rescue(&[&["repair", "--yes", "--now", NOW], &disks[..]].concat())?;
    ensure!(repaired.code == 0, "{}", repaired.transcript());
    contains(
        &repaired,
        &["signed with the CA key of k8s-master01", "3 nodes:", "Repaired worker1", "Repaired worker2"],
    )?;
    ensure!(!repaired.transcript().contains("PRIVATE KEY"), "key material was printed");
    let position = |words: &str| repaired.stdout.find(words).unwrap_or(usize::MAX);
    ensure!(position("Repaired k8s-master01") < position("Repaired worker1"), "the control plane comes first");
    is_mended(&master, "k8s-master01")?;
    is_mended(&one, "worker1")?;
    is_mended(&two, "worker2")?;

    let undone = rescue(&["undo", "--yes", "--now", NOW, text(&one.path)])?;
    ensure!(undone.code == 0, "{}", undone.transcript());
    ensure!(current(&one)? == old, "undo did not bring the old link back");
    Ok(())
}

#[test]
fn a_disk_that_only_lends_its_ca_is_not_written_to() -> Result<()> {
    let folder = folder()?;
    let at = |name: &str| folder.path().join(name);
    let authority = Authority::of_the_control_plane()?;
    let master = control_plane(&at("cp.img"), 700 * MIB)?;
    let one = worker(&at("w1.img"), "worker1", &authority)?;
    let stranger = worker(&at("w2.img"), "worker2", &Authority::of_another_cluster()?)?;
    let hash = master.sha256()?;

    let seen = rescue(&["inspect", "--json", "--now", NOW, text(&one.path), "--ca", text(&master.path)])?;
    let report = seen.json()?;
    ensure!(report["nodes"].as_array().is_some_and(|nodes| nodes.len() == 1), "{report}");

    let both =
        ["repair", "--yes", "--json", "--now", NOW, "--ca", text(&master.path), text(&one.path), text(&stranger.path)];
    let repaired = rescue(&both)?;
    ensure!(repaired.code == 1, "{}", repaired.transcript());
    let report = repaired.json()?;
    ensure!(report["receipt"]["runs"].as_array().is_some_and(|runs| runs.len() == 1), "{report}");
    is_mended(&one, "worker1")?;
    ensure!(master.sha256()? == hash, "the disk that lent its CA was written to");

    let stranger = rescue(&["inspect", "--now", NOW, text(&stranger.path), "--ca", text(&master.path)])?;
    ensure!(stranger.code == 1, "{}", stranger.transcript());
    contains(&stranger, &["another cluster", "CN=kubernetes (sha256:", "k8s-master01"])?;

    for wrong in [text(&one.path), text(&master.path)] {
        let ran = rescue(&["repair", "--yes", "--now", NOW, text(&one.path), "--ca", wrong])?;
        let expected = if wrong == text(&one.path) { 3 } else { 0 };
        ensure!(ran.code == expected, "{}", ran.transcript());
    }
    let keyless = rescue(&["repair", "--yes", "--now", NOW, text(&master.path), "--ca", text(&one.path)])?;
    ensure!(keyless.code == 3, "{}", keyless.transcript());
    contains(&keyless, &["there is no CA key"])?;
    ensure!(master.sha256()? == hash, "a refused repair wrote to the disk");
    Ok(())
}

#[test]
fn one_node_that_fails_does_not_stop_the_others() -> Result<()> {
    let folder = folder()?;
    let at = |name: &str| folder.path().join(name);
    let authority = Authority::of_the_control_plane()?;
    let master = control_plane(&at("cp.img"), 700 * MIB)?;
    let (one, two) = (worker(&at("w1.img"), "worker1", &authority)?, worker(&at("w2.img"), "worker2", &authority)?);
    // Somebody still has the first worker's disk mounted.
    let ran = one.mounted(|_| {
        let disks = [text(&one.path), text(&two.path), "--ca", text(&master.path)];
        rescue(&[&["repair", "--yes", "--json", "--now", NOW], &disks[..]].concat())
    })?;
    ensure!(ran.code == 4, "{}", ran.transcript());
    let report = ran.json()?;
    ensure!(report["failed"][0]["name"] == "worker1" && report["failed"][0]["kind"] == "refused", "{report}");
    ensure!(report["receipt"]["runs"][0]["node"] == "worker2", "{report}");
    is_mended(&two, "worker2").context("the other worker")
}
