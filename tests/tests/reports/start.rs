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
