//! What a static pod's process will open is judged, and not what is usual; a folder where a file
//! belongs blocks nothing else.

use std::fs;

use anyhow::{Result, ensure};
use tests::Cmd;

use super::case::Case;

#[test]
fn a_pair_that_the_manifest_names_elsewhere_is_issued_there() -> Result<()> {
    let case = Case::new(
        "healthy; sed -i 's#pki/apiserver-etcd-client#pki/etcd/apiserver-etcd-client#' \
         \"$K/manifests/kube-apiserver.yaml\"",
    )?;
    case.expects(
        "certificates.leaf",
        &[
            "apiserver-etcd-client is missing",
            "/etc/kubernetes/pki/etcd/apiserver-etcd-client.crt",
        ],
    )?;
    case.mends("certificates.leaf")?;
    let pair = "/etc/kubernetes/pki/etcd/apiserver-etcd-client";
    let verified = Cmd::new("openssl")
        .args(["verify", "-purpose", "sslclient", "-CAfile"])
        .arg(case.path("/etc/kubernetes/pki/etcd/ca.crt"))
        .arg(case.path(&format!("{pair}.crt")))
        .run()?;
    ensure!(verified.code == 0, "{}", verified.transcript());
    ensure!(case.path(&format!("{pair}.key")).exists());
    Ok(())
}

#[test]
fn an_empty_folder_gives_way_to_the_kubeconfig_and_undo_puts_it_back() -> Result<()> {
    let case = Case::new("rm -f \"$K/scheduler.conf\"; mkdir \"$K/scheduler.conf\"")?;
    case.expects("certificates.leaf", &["scheduler.conf", "an empty folder"])?;
    case.mends("certificates.leaf")?;
    let text = fs::read_to_string(case.path("/etc/kubernetes/scheduler.conf"))?;
    ensure!(text.contains("system:kube-scheduler"), "{text}");
    ensure!(case.modes()?.is_empty(), "{:?}", case.modes()?);
    Ok(())
}

#[test]
fn empty_folders_in_the_place_of_every_kind_of_file_give_way() -> Result<()> {
    for file in [
        "$P/apiserver.crt",
        "$P/etcd/peer.key",
        "$P/front-proxy-client.crt",
        "$K/controller-manager.conf",
        "$K/admin.conf",
        "$T/var/lib/kubelet/config.yaml",
        "$P/ca.crt",
    ] {
        let case = Case::new(&format!("healthy; rm -f \"{file}\"; mkdir \"{file}\""))?;
        ensure!(!case.modes()?.is_empty(), "{file}: nothing is found");
        let before = case.sums()?;
        let ran = case.rescue(&["repair", "--yes"])?;
        let path = case.path(
            &file
                .replace("$P", "/etc/kubernetes/pki")
                .replace("$K", "/etc/kubernetes")
                .replace("$T", ""),
        );
        let is_file = fs::metadata(&path)?.is_file();
        // A kubelet's configuration without a copy on the disk is named, not made up.
        if !file.ends_with("config.yaml") {
            ensure!(
                is_file && case.modes()?.is_empty(),
                "{file}: {}",
                ran.transcript()
            );
            let undone = case.rescue(&["undo", "--yes"])?;
            ensure!(case.sums()? == before, "{file}: {}", undone.transcript());
            ensure!(fs::metadata(&path)?.is_dir(), "{file}");
        }
    }
    Ok(())
}

#[test]
fn a_folder_with_something_in_it_is_named_and_blocks_nothing_else() -> Result<()> {
    let case = Case::new(
        "rm -f \"$K/scheduler.conf\"; mkdir \"$K/scheduler.conf\"; \
         echo mine > \"$K/scheduler.conf/notes.txt\"",
    )?;
    case.expects("certificates.leaf", &["scheduler.conf", "notes.txt"])?;
    let ran = case.rescue(&["repair", "--yes"])?;
    let left = case.findings("certificates")?;
    let is_of = |finding: &&serde_json::Value| finding["severity"] != "note";
    let left: Vec<_> = left.iter().filter(is_of).collect();
    ensure!(left.len() == 1, "{left:#?} {}", ran.transcript());
    ensure!(
        left[0]["title"]
            .as_str()
            .is_some_and(|title| title.contains("scheduler.conf"))
    );
    ensure!(
        case.path("/etc/kubernetes/scheduler.conf/notes.txt")
            .exists()
    );
    Ok(())
}

#[test]
fn a_lost_encryption_configuration_is_never_made_up() -> Result<()> {
    let case = Case::new(
        "healthy; sed -i 's#- --etcd-cafile#- \
         --encryption-provider-config=/etc/kubernetes/pki/enc.yaml\\n    - --etcd-cafile#' \
         \"$K/manifests/kube-apiserver.yaml\"",
    )?;
    let words = [
        "--encryption-provider-config",
        "/etc/kubernetes/pki/enc.yaml",
        "another",
    ];
    case.expects("static-pod-files.missing", &words)?;
    let ran = case.rescue(&["repair", "--yes"])?;
    ensure!(ran.code == 1, "{}", ran.transcript());
    ensure!(!case.path("/etc/kubernetes/pki/enc.yaml").exists());
    Ok(())
}
