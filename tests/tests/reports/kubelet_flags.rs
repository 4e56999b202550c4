//! A kubelet that was upgraded without its flags.

use std::fs;

use anyhow::{Result, ensure};

use super::case::Case;

#[test]
fn a_flag_of_the_old_version_leaves_its_line() -> Result<()> {
    let case = Case::new(
        "healthy; printf 'KUBELET_KUBEADM_ARGS=\"--network-plugin=cni --node-ip=10.0.2.15 \
         --container-runtime=remote --container-runtime-endpoint=unix:///run/containerd/containerd.sock\"\\n' \
         > \"$T/var/lib/kubelet/kubeadm-flags.env\"; \
         printf '\\nPackage: kubelet\\nStatus: hold ok installed\\nVersion: 1.28.2-1.1\\n' \
         >> \"$T/var/lib/dpkg/status\"; rm -f \"$T/usr/bin/kubelet\"",
    )?;
    let words = ["--network-plugin", "/var/lib/kubelet/kubeadm-flags.env:1"];
    case.expects("kubelet-flags.removed", &words)?;
    case.mends("kubelet-flags.removed")?;
    let flags = fs::read_to_string(case.path("/var/lib/kubelet/kubeadm-flags.env"))?;
    ensure!(
        flags
            == "KUBELET_KUBEADM_ARGS=\"--node-ip=10.0.2.15 \
                --container-runtime-endpoint=unix:///run/containerd/containerd.sock\"\n",
        "{flags}"
    );
    Ok(())
}

#[test]
fn a_resolv_conf_that_nothing_makes_is_exchanged_for_the_usual_one() -> Result<()> {
    let case = Case::new(
        "healthy; echo 'resolvConf: /run/systemd/resolve/resolv.conf' >> \
         \"$T/var/lib/kubelet/config.yaml\"; mkdir -p \"$T/usr/lib/systemd/system\"; \
         echo '[Service]' > \"$T/usr/lib/systemd/system/systemd-journald.service\"; \
         echo 'nameserver 10.0.2.3' > \"$T/etc/resolv.conf\"",
    )?;
    case.expects(
        "resolv-conf.missing",
        &["/run/systemd/resolve/resolv.conf", "not installed"],
    )?;
    case.mends("resolv-conf.missing")?;
    let config = fs::read_to_string(case.path("/var/lib/kubelet/config.yaml"))?;
    ensure!(
        config.contains("resolvConf: /etc/resolv.conf\n"),
        "{config}"
    );
    ensure!(case.modes()?.is_empty(), "{:?}", case.modes()?);
    Ok(())
}
