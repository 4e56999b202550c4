//! What kubelet.conf authenticates with.

use std::fs;

use anyhow::{Result, ensure};
use tests::Cmd;

use super::case::Case;

#[test]
fn an_administrators_certificate_in_kubelet_conf_is_named_and_a_nodes_put_there() -> Result<()> {
    // In an emergency somebody copied admin.conf over it; the kubelet's own store is over.
    let case = Case::new(
        "old=$(readlink -f \"$KP\"/kubelet-client-2023*.pem); healthy; \
         cp \"$K/admin.conf\" \"$K/kubelet.conf\"; rm -f \"$KP\"/kubelet-client-2026*; \
         ln -sfn \"/var/lib/kubelet/pki/$(basename \"$old\")\" \"$KP/kubelet-client-current.pem\"",
    )?;
    let found = case.expects(
        "certificates.kubelet-client",
        &[
            "O=system:masters, CN=kubernetes-admin",
            "not the node's own",
        ],
    )?;
    ensure!(found["severity"] == "will-break", "{found:#}");
    case.mends("certificates.kubelet-client")?;
    let conf = fs::read_to_string(case.path("/etc/kubernetes/kubelet.conf"))?;
    let current = "client-certificate: /var/lib/kubelet/pki/kubelet-client-current.pem";
    ensure!(
        conf.contains(current) && !conf.contains("client-key-data"),
        "{conf}"
    );
    let link = fs::read_link(case.path("/var/lib/kubelet/pki/kubelet-client-current.pem"))?;
    let subject = Cmd::new("openssl")
        .args(["x509", "-noout", "-subject", "-in"])
        .arg(case.path(&link.to_string_lossy()))
        .ok()?;
    let is_node = ["O = system:nodes", "CN = system:node:k8s-master01"];
    ensure!(
        is_node.iter().all(|part| subject.stdout.contains(part)),
        "{}",
        subject.stdout
    );
    ensure!(case.modes()?.is_empty(), "{:?}", case.modes()?);
    Ok(())
}
