//! Nodes whose kubelet or container runtime nothing starts at boot.

use anyhow::{Result, ensure};

use super::case::Case;

const WANTS: &str = "W=$T/etc/systemd/system/multi-user.target.wants; \
    echo 0123456789abcdef0123456789abcdef > \"$T/etc/machine-id\"";

fn node(script: &str) -> Result<Case> {
    Case::new(&format!("healthy; {WANTS}; {script}"))
}

#[test]
fn a_kubelet_that_was_started_by_hand_only_is_enabled() -> Result<()> {
    let case = node("rm \"$W/kubelet.service\"")?;
    case.expects(
        "kubelet-unit.disabled",
        &["multi-user.target.wants/kubelet.service"],
    )?;
    let ran = case.mends("kubelet-unit.disabled")?;
    ensure!(
        ran.stdout.contains("enable kubelet.service"),
        "{}",
        ran.transcript()
    );
    ensure!(case.modes()?.is_empty(), "{:?}", case.modes()?);
    Ok(())
}

#[test]
fn a_kubelet_that_a_timer_starts_is_left_alone() -> Result<()> {
    let case = node(
        "rm \"$W/kubelet.service\"; cd \"$T/etc/systemd/system\"; \
         printf '[Timer]\\nOnBootSec=2min\\n' > kubelet.timer; \
         ln -s ../kubelet.timer timers.target.wants/kubelet.timer",
    )?;
    ensure!(case.modes()?.is_empty(), "{:?}", case.modes()?);
    Ok(())
}

#[test]
fn a_runtime_that_is_disabled_or_masked_is_started_again() -> Result<()> {
    let case = node("rm \"$W/containerd.service\"")?;
    case.expects(
        "runtime-unit.disabled",
        &["containerd.service", "containerd.sock"],
    )?;
    case.mends("runtime-unit.disabled")?;
    ensure!(case.modes()?.is_empty(), "{:?}", case.modes()?);
    for mask in ["ln -s /dev/null", "touch"] {
        let case = node(&format!(
            "{mask} \"$T/etc/systemd/system/containerd.service\""
        ))?;
        case.expects(
            "runtime-unit.masked",
            &["/etc/systemd/system/containerd.service"],
        )?;
        case.mends("runtime-unit.masked")?;
        ensure!(case.modes()?.is_empty(), "{:?}", case.modes()?);
    }
    Ok(())
}

#[test]
fn a_runtime_whose_unit_is_gone_is_named() -> Result<()> {
    let case = node("rm \"$T/usr/lib/systemd/system/containerd.service\"")?;
    case.expects(
        "runtime-unit.missing",
        &["containerd.service", "Install the package"],
    )?;
    Ok(())
}

#[test]
fn a_runtime_that_the_kubelet_does_not_use_may_be_masked() -> Result<()> {
    let case = node(
        "ln -s /dev/null \"$T/etc/systemd/system/docker.service\"; mkdir -p \"$T/etc/docker\"; \
         echo '{}' > \"$T/etc/docker/daemon.json\"",
    )?;
    ensure!(case.modes()?.is_empty(), "{:?}", case.modes()?);
    Ok(())
}

/// A copy as `kubeadm upgrade node` keeps it.
const BACKUP: &str = "B=$K/tmp/kubeadm-kubelet-config417; C=$T/var/lib/kubelet/config.yaml; \
    mkdir -p \"$B\"; cp \"$C\" \"$B/config.yaml\"";

#[test]
fn a_lost_kubelet_configuration_comes_back_from_kubeadms_backup() -> Result<()> {
    let faults = [
        ("kubelet-config.missing", "rm \"$C\""),
        ("kubelet-config.damaged", ": > \"$C\""),
        (
            "kubelet-config.damaged",
            "truncate -s 0 \"$C\"; truncate -s 880 \"$C\"",
        ),
    ];
    for (mode, fault) in faults {
        let case = node(&format!("{BACKUP}; {fault}"))?;
        case.expects(mode, &["/var/lib/kubelet/config.yaml", "failed to load"])?;
        let ran = case.mends(mode)?;
        ensure!(
            ran.stdout.contains("kubeadm-kubelet-config417"),
            "{}",
            ran.transcript()
        );
        ensure!(case.modes()?.is_empty(), "{:?}", case.modes()?);
    }
    Ok(())
}

#[test]
fn a_lost_kubelet_configuration_without_a_copy_is_named() -> Result<()> {
    let case = node("rm \"$T/var/lib/kubelet/config.yaml\"")?;
    let words = ["kubeadm init phase kubelet-start", "scp NODE:"];
    case.expects("kubelet-config.missing", &words)?;
    Ok(())
}

/// A worker of the same cluster: no manifests, no pki, a kubelet certificate of its own.
const WORKER: &str = "d=$(mktemp -d); cp \"$P\"/ca.* \"$d\"; \
    issue '/O=system:nodes/CN=system:node:k8s-worker01' \"$d/ca\" 365 \"$d/c\" \"$d/k\"; \
    store_pem 2026-09-01-10-00-00 \"$d/c\" \"$d/k\"; echo k8s-worker01 > \"$T/etc/hostname\"; \
    sed -i 's/k8s-master01/k8s-worker01/g' \"$K/kubelet.conf\"; rm -rf \"$T/var/log/pods\"; \
    rm -r \"$P\" \"$K\"/manifests/* \"$T/root/.kube\"; \
    rm -f \"$K\"/admin.conf \"$K\"/controller-manager.conf \"$K\"/scheduler.conf; mkdir -p \"$P\"; \
    rm -rf \"$T/var/lib/etcd\" \"$T/etc/systemd/system/etcd.service\" \"$T/etc/default/etcd\"";

#[test]
fn a_worker_gets_its_ca_back_from_kubelet_conf() -> Result<()> {
    for fault in ["rm -r \"$P\"", "echo > \"$P/ca.crt\""] {
        let case = node(&format!("{WORKER}; {fault}"))?;
        let words = ["/etc/kubernetes/pki/ca.crt", "unable to load client CA"];
        case.expects("kubelet-files.client-ca", &words)?;
        let ran = case.mends("kubelet-files.client-ca")?;
        ensure!(ran.stdout.contains("kubelet.conf"), "{}", ran.transcript());
        ensure!(case.modes()?.is_empty(), "{:?}", case.modes()?);
    }
    Ok(())
}

#[test]
fn a_ca_that_signed_nothing_on_the_disk_is_not_taken() -> Result<()> {
    let other = "openssl req -x509 -newkey rsa:2048 -nodes -keyout \"$d.k\" -out \"$d.c\" -subj \
        /CN=kubernetes 2> /dev/null; \
        conf_set \"$K/kubelet.conf\" certificate-authority-data \"$d.c\"";
    let case = node(&format!("{WORKER}; rm -r \"$P\"; {other}"))?;
    let finding = case.expects("kubelet-files.client-ca", &["scp NODE:"])?;
    let remedies = finding["remedies"].as_array().map_or(0, Vec::len);
    ensure!(remedies == 0, "{finding}");
    Ok(())
}

#[test]
fn a_worker_with_its_ca_is_left_alone() -> Result<()> {
    let keep = "conf_get \"$K/kubelet.conf\" certificate-authority-data > \"$P/ca.crt\"";
    let case = node(&format!("{WORKER}; {keep}"))?;
    ensure!(case.modes()?.is_empty(), "{:?}", case.modes()?);
    Ok(())
}

#[test]
fn the_plugin_that_the_kubelet_needs_is_enabled_again() -> Result<()> {
    let config =
        "printf '# Docker\\ndisabled_plugins = [\"cri\"]\\n' > \"$T/etc/containerd/config.toml\"";
    let case = node(config)?;
    case.expects(
        "containerd-config.cri-disabled",
        &["/etc/containerd/config.toml:2"],
    )?;
    case.mends("containerd-config.cri-disabled")?;
    let text = std::fs::read_to_string(case.path("/etc/containerd/config.toml"))?;
    ensure!(text == "# Docker\ndisabled_plugins = []\n", "{text}");
    ensure!(case.modes()?.is_empty(), "{:?}", case.modes()?);
    Ok(())
}

#[test]
fn a_containerd_that_only_docker_uses_may_disable_it() -> Result<()> {
    let case = node(
        "echo 'disabled_plugins = [\"cri\"]' > \"$T/etc/containerd/config.toml\"; \
         sed -i 's#/run/containerd/containerd.sock#unix:///var/run/cri-dockerd.sock#' \
         \"$T/var/lib/kubelet/kubeadm-flags.env\"",
    )?;
    ensure!(case.modes()?.is_empty(), "{:?}", case.modes()?);
    Ok(())
}

#[test]
fn a_state_file_that_the_kubelet_cannot_restore_is_removed() -> Result<()> {
    let state = "S=$T/var/lib/kubelet/cpu_manager_state";
    for (mode, fault) in [
        ("kubelet-state.damaged", ": > \"$S\""),
        (
            "kubelet-state.damaged",
            "truncate -s 0 \"$S\"; truncate -s 62 \"$S\"",
        ),
        (
            "kubelet-state.policy",
            "sed -i 's/\"none\"/\"static\"/' \"$S\"",
        ),
    ] {
        let case = node(&format!("{state}; {fault}"))?;
        case.expects(mode, &["/var/lib/kubelet/cpu_manager_state"])?;
        case.mends(mode)?;
        ensure!(case.modes()?.is_empty(), "{:?}", case.modes()?);
    }
    Ok(())
}

#[test]
fn a_state_file_of_the_configured_policy_stays() -> Result<()> {
    let case = node(
        "sed -i 's/\"none\"/\"static\"/' \"$T/var/lib/kubelet/cpu_manager_state\"; \
         echo 'cpuManagerPolicy: static' >> \"$T/var/lib/kubelet/config.yaml\"",
    )?;
    ensure!(case.modes()?.is_empty(), "{:?}", case.modes()?);
    Ok(())
}

#[test]
fn unit_files_that_a_power_cut_emptied_are_read_from_the_package_again() -> Result<()> {
    let own = "U=$T/etc/systemd/system; D=$U/kubelet.service.d";
    for (emptied, mode) in [
        (
            "truncate -s 0 \"$U/kubelet.service\"",
            "kubelet-unit.masked",
        ),
        (
            "head -c 300 /dev/zero > \"$U/kubelet.service\"",
            "kubelet-unit.emptied",
        ),
        (
            "mkdir -p \"$D\"; truncate -s 0 \"$D/10-kubeadm.conf\"",
            "kubelet-unit.bare",
        ),
        (
            "mkdir -p \"$D\"; head -c 900 /dev/zero > \"$D/10-kubeadm.conf\"",
            "kubelet-unit.bare",
        ),
    ] {
        let case = node(&format!("{own}; {emptied}"))?;
        ensure!(case.modes()? == [mode], "{emptied}: {:?}", case.modes()?);
        case.mends(mode)?;
        ensure!(case.modes()?.is_empty(), "{emptied}: {:?}", case.modes()?);
    }
    Ok(())
}
