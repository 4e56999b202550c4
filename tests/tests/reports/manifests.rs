//! Static pod manifests: emptied by a power cut, or copied in place before an edit.

use std::fs;

use anyhow::{Result, ensure};

use super::case::Case;

/// The copies sort last, so the kubelet runs them: another address, another version, certificates
/// in a folder that is missing.
const COPIES_WIN: &str = "healthy; M=$K/manifests; \
    cp \"$M/kube-apiserver.yaml\" \"$M/kube-apiserver.yaml.bak\"; \
    cp \"$M/kube-controller-manager.yaml\" \"$M/kube-controller-manager.yaml_20230101\"; \
    sed -i 's/10\\.0\\.2\\.15/10.0.2.99/g; s/:v1\\.20\\.2/:v1.19.7/; \
    s#pki/apiserver-etcd-client#pki/old/apiserver-etcd-client#' \"$M/kube-apiserver.yaml.bak\"";

#[test]
fn empty_manifests_of_a_control_plane_are_named_and_its_certificates_renewed() -> Result<()> {
    let case =
        Case::new(": > \"$K/manifests/kube-apiserver.yaml\"; : > \"$K/manifests/etcd.yaml\"")?;
    let words = [
        "/etc/kubernetes/manifests/",
        "is empty",
        "kubeadm init phase",
    ];
    let finding = case.expects("static-pods.damaged", &words)?;
    ensure!(finding["severity"] == "stops-boot", "{finding}");
    let damaged = case.findings("static-pods")?;
    ensure!(damaged.len() == 2, "{damaged:#?}");
    let ran = case.rescue(&["repair", "--yes"])?;
    ensure!(!ran.stdout.contains("nothing left"), "{}", ran.transcript());
    ensure!(case.findings("static-pods")?.len() == 2, "still damaged");
    let left = case.modes()?;
    let others: Vec<_> = left
        .iter()
        .filter(|mode| *mode != "static-pods.damaged")
        .collect();
    ensure!(others.is_empty(), "{left:?} {}", ran.transcript());
    Ok(())
}

#[test]
fn kubeadms_own_copy_of_the_same_version_is_put_back() -> Result<()> {
    let case = Case::new(
        "healthy; B=$K/tmp/kubeadm-backup-manifests-2023-01-01-10-00-00; mkdir -p \"$B\"; \
         cp \"$K/manifests/\"*.yaml \"$B/\"; truncate -s 0 \"$K/manifests/etcd.yaml\"; \
         head -c 300 /dev/zero > \"$K/manifests/kube-apiserver.yaml\"",
    )?;
    case.expects("static-pods.damaged", &["kubeadm-backup-manifests"])?;
    let found = case.findings("static-pods")?;
    let text = serde_json::Value::from(found.clone()).to_string();
    ensure!(found.len() == 2 && text.contains("NUL"), "{text}");
    case.mends("static-pods.damaged")?;
    for name in ["etcd.yaml", "kube-apiserver.yaml"] {
        let kept = "/etc/kubernetes/tmp/kubeadm-backup-manifests-2023-01-01-10-00-00";
        let restored = fs::read(case.path(&format!("/etc/kubernetes/manifests/{name}")))?;
        ensure!(
            restored == fs::read(case.path(&format!("{kept}/{name}")))?,
            "{name}"
        );
    }
    ensure!(case.modes()?.is_empty(), "{:?}", case.modes()?);
    Ok(())
}

#[test]
fn copies_that_win_are_moved_away_and_nothing_is_taken_from_them() -> Result<()> {
    let case = Case::new(COPIES_WIN)?;
    let words = [
        "kube-apiserver.yaml.bak",
        "manifests/kube-apiserver.yaml",
        "10.0.2.99",
    ];
    let finding = case.expects("static-pods.twice", &words)?;
    ensure!(finding["severity"] == "stops-boot", "{finding}");
    let modes = case.modes()?;
    ensure!(
        modes.iter().all(|mode| mode == "static-pods.twice"),
        "{modes:?}"
    );
    let ran = case.mends("static-pods.twice")?;
    ensure!(ran.stdout.contains("rescue-moved"), "{}", ran.transcript());
    ensure!(!case.path("/etc/kubernetes/pki/old").exists());
    ensure!(
        case.path("/etc/kubernetes/rescue-moved/kube-apiserver.yaml.bak")
            .exists()
    );
    ensure!(
        !case
            .path("/etc/kubernetes/manifests/kube-apiserver.yaml.bak")
            .exists()
    );
    ensure!(case.modes()?.is_empty(), "{:?}", case.modes()?);
    Ok(())
}

#[test]
fn a_copy_that_loses_is_a_note() -> Result<()> {
    let case = Case::new(
        "healthy; M=$K/manifests; sed 's/10\\.0\\.2\\.15/10.0.2.99/g; s/:v1\\.20\\.2/:v1.19.7/' \
         \"$M/kube-apiserver.yaml\" > \"$M/kube-apiserver-old.yaml\"",
    )?;
    let words = ["kube-apiserver-old.yaml", "kube-apiserver.yaml"];
    let finding = case.expects("static-pods.twice", &words)?;
    ensure!(finding["severity"] == "note", "{finding}");
    ensure!(case.modes()?.is_empty(), "{:?}", case.modes()?);
    Ok(())
}

#[test]
fn a_healthy_folder_with_hidden_files_is_left_alone() -> Result<()> {
    let case = Case::new(
        "healthy; : > \"$K/manifests/.kube-apiserver.yaml.swp\"; mkdir \"$K/manifests/old\"",
    )?;
    ensure!(case.findings("static-pods")?.is_empty());
    Ok(())
}
