//! A node whose fstab names a disk that was not given: what lies below its mount point now is not
//! what the node sees once it has booted. Nothing is written there, and no remedy follows from what
//! is seen there.

use std::fs;
use std::path::Path;

use anyhow::{Result, ensure};
use tests::command::Ran;
use tests::fixtures::unpack_control_plane;
use tests::programs::rescue_faulty;

const NOW: &str = "2026-11-23T08:00:00Z";

fn repair(root: &Path) -> Result<Ran> {
    let root = root.to_str().expect("test paths are UTF-8");
    rescue_faulty(0, ["repair", "--yes", "--now", NOW, "--root", root]).run()
}

fn add_to_fstab(root: &Path, line: &str) -> Result<()> {
    let path = root.join("etc/fstab");
    Ok(fs::write(
        &path,
        format!("{}{line}\n", fs::read_to_string(&path)?),
    )?)
}

fn node(lines: &[&str]) -> Result<tempfile::TempDir> {
    let folder = tempfile::Builder::new()
        .prefix("rescue-missing-")
        .tempdir()?;
    unpack_control_plane(folder.path())?;
    for line in lines {
        add_to_fstab(folder.path(), line)?;
    }
    Ok(folder)
}

#[test]
fn without_its_var_nothing_is_written() -> Result<()> {
    let node = node(&["LABEL=var /var xfs defaults 0 0"])?;
    let ran = repair(node.path())?;
    ensure!(ran.code == 3, "{}", ran.transcript());
    ensure!(
        ran.stderr
            .contains("/var is not there: fstab line 2: LABEL=var on /var is not mounted"),
        "{}",
        ran.stderr
    );
    ensure!(
        ran.stderr.contains("Next: give the disk that holds it too"),
        "{}",
        ran.stderr
    );
    ensure!(!node.path().join("var/lib/rescue").exists() && !node.path().join(".rescue").exists());
    Ok(())
}

#[test]
fn without_the_kubelets_disk_all_else_is_repaired() -> Result<()> {
    let node = node(&["LABEL=kubelet /var/lib/kubelet ext4 defaults 0 0"])?;
    let pki = node.path().join("var/lib/kubelet/pki");
    let names = || -> Result<Vec<_>> {
        Ok(fs::read_dir(&pki)?
            .map(|entry| entry.map(|e| e.file_name()))
            .collect::<Result<_, _>>()?)
    };
    let before = names()?;
    let ran = repair(node.path())?;
    ensure!(ran.code == 1, "{}", ran.transcript());
    for words in [
        "not possible: issue a new kubelet client certificate",
        "would be hidden at the next boot",
        "give that disk too",
        "done  renew /etc/kubernetes/pki/apiserver.crt",
    ] {
        ensure!(
            ran.stdout.contains(words),
            "'{words}' is not in: {}",
            ran.stdout
        );
    }
    ensure!(
        names()? == before,
        "something was written below the empty mount point"
    );
    let drop_in = node
        .path()
        .join("etc/systemd/system/kubelet.service.d/90-rescue.conf");
    ensure!(
        !drop_in.exists(),
        "the kubelet's flags were changed for a certificate that nobody could see"
    );
    Ok(())
}

#[test]
fn a_unit_that_cannot_be_seen_is_not_said_to_be_missing() -> Result<()> {
    let node = node(&["PARTLABEL=usr /usr ext4 ro 0 0"])?;
    fs::remove_dir_all(node.path().join("usr/lib/systemd"))?;
    let ran = repair(node.path())?;
    ensure!(
        ran.stdout.contains(
            "kubelet.service cannot be looked for: the disk that holds /usr was not given"
        ),
        "{}",
        ran.stdout
    );
    ensure!(
        !ran.stdout.contains("Install the kubelet package again"),
        "{}",
        ran.stdout
    );
    Ok(())
}
