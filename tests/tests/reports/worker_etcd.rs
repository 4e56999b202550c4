//! A worker whose network plugin speaks to etcd.

use anyhow::{Result, ensure};

use super::case::Case;

/// A worker of the same cluster with etcd's client certificate, whose dates `etcd` decides.
fn worker(etcd: &str) -> String {
    format!(
        "healthy; {etcd} d=$(mktemp -d); cp \"$P\"/ca.* \"$d\"; \
         issue '/O=system:nodes/CN=system:node:k8s-worker01' \"$d/ca\" 365 \"$d/c\" \"$d/k\"; \
         store_pem 2026-09-01-10-00-00 \"$d/c\" \"$d/k\"; echo k8s-worker01 > \"$T/etc/hostname\"; \
         sed -i 's/k8s-master01/k8s-worker01/g' \"$K/kubelet.conf\"; \
         rm -rf \"$T/var/log/pods\" \"$T/var/lib/etcd\" \"$T/root/.kube\" \"$K\"/manifests/* \
         \"$K\"/admin.conf \"$K\"/controller-manager.conf \"$K\"/scheduler.conf \"$P\"/sa.* \
         \"$P\"/front-proxy* \"$P\"/ca.key \"$P\"/apiserver.* \"$P\"/apiserver-kubelet* \
         \"$P\"/etcd/*.key \"$P\"/etcd/server.crt \"$P\"/etcd/peer.crt \"$P\"/etcd/health*.crt"
    )
}

#[test]
fn etcds_client_certificate_that_is_over_is_named() -> Result<()> {
    let keep = "cp \"$P/apiserver-etcd-client.crt\" \"$T/good\"; ";
    let old = "zstd -q -dc \"$LIB/../../fixtures/control-plane-2023.tar.zst\" | \
        tar -xf - -C \"$T/root\" --wildcards '*pki/apiserver-etcd-client.crt'; \
        cp \"$T\"/root/etc/kubernetes/pki/apiserver-etcd-client.crt \"$P/\"; rm -r \"$T/root/etc\";";
    let case = Case::new(&worker(&format!("{keep}{old}")))?;
    let words = [
        "apiserver-etcd-client on this worker expired",
        "network plugin",
        "scp",
    ];
    let found = case.expects("certificates.others", &words)?;
    ensure!(found["severity"] == "will-break", "{found:#}");
    ensure!(
        case.modes()? == ["certificates.others"],
        "{:?}",
        case.modes()?
    );
    // Its advice, followed.
    case.change("mv \"$T/good\" \"$P/apiserver-etcd-client.crt\"")?;
    ensure!(case.modes()?.is_empty(), "{:?}", case.modes()?);
    Ok(())
}
