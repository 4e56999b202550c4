//! The kubelet and containerd are set to different cgroup drivers.

use anyhow::{Result, ensure};

use super::case::Case;

#[test]
fn two_cgroup_drivers_are_named_with_both_files() -> Result<()> {
    let case = Case::new(
        "healthy; printf '  [plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.runc]\\n    \
         runtime_type = \"io.containerd.runc.v2\"\\n    \
         [plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.runc.options]\\n      \
         SystemdCgroup = true\\n' >> \"$T/etc/containerd/config.toml\"",
    )?;
    case.expects(
        "cgroup-driver.differs",
        &[
            "/etc/containerd/config.toml",
            "/var/lib/kubelet/config.yaml",
            "cgroupfs",
            "systemd",
        ],
    )?;
    case.mends_when_allowed("cgroup-driver.differs")?;
    ensure!(case.modes()?.is_empty(), "{:?}", case.modes()?);
    Ok(())
}
