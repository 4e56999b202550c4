//! The kernel's command line still asks for cgroup v1, and the kubelet was upgraded to 1.35.

use anyhow::{Result, ensure};

use super::case::Case;

const UPGRADED: &str = "healthy; mkdir -p \"$T/var/lib/dpkg\" \"$T/boot/grub\"; \
    printf 'Package: kubelet\\nStatus: hold ok installed\\nVersion: 1.35.1-1.1\\n\\n' \
    > \"$T/var/lib/dpkg/status\"; rm -f \"$T/etc/os-release\"; \
    printf 'ID=ubuntu\\nVERSION_ID=\"22.04\"\\n' > \"$T/etc/os-release\"; \
    printf \"menuentry 'Ubuntu' {\\n\\tlinux\\t/boot/vmlinuz-5.15.0-91-generic root=/dev/sda1 ro \
    $ARGUMENT\\n\\tinitrd\\t/boot/initrd.img-5.15.0-91-generic\\n}\\n\" > \"$T/boot/grub/grub.cfg\"";

fn node(argument: &str) -> Result<Case> {
    Case::new(&format!("ARGUMENT={argument}; {UPGRADED}"))
}

#[test]
fn a_boot_with_cgroup_v1_is_named_and_the_kubelet_is_let_run_when_allowed() -> Result<()> {
    let case = node("systemd.unified_cgroup_hierarchy=0")?;
    case.expects(
        "cgroup-v1.refused",
        &["/boot/grub/grub.cfg:2", "failCgroupV1"],
    )?;
    case.mends_when_allowed("cgroup-v1.refused")?;
    let config = std::fs::read_to_string(case.path("/var/lib/kubelet/config.yaml"))?;
    ensure!(config.ends_with("\nfailCgroupV1: false\n"), "{config}");
    Ok(())
}

#[test]
fn the_same_node_with_cgroup_v2_is_left_alone() -> Result<()> {
    let found = node("quiet")?.findings("cgroup-v1")?;
    ensure!(found.is_empty(), "{found:#?}");
    Ok(())
}
