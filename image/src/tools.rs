//! What the builder needs from Debian packages, checked before anything is done.

use std::path::Path;

use anyhow::{Result, bail};

/// A file and the package it comes from.
struct Need {
    file: &'static str,
    package: &'static str,
}

const fn need(file: &'static str, package: &'static str) -> Need {
    Need { file, package }
}

pub const BUSYBOX: &str = "/bin/busybox";
pub const SHIM: &str = "/usr/lib/shim/shimx64.efi.signed";
pub const MOK_MANAGER: &str = "/usr/lib/shim/mmx64.efi.signed";
pub const GRUB_EFI: &str = "/usr/lib/grub/x86_64-efi-signed/gcdx64.efi.signed";
pub const GRUB_BIOS: &str = "/usr/lib/grub/i386-pc";

/// Programs that are built against shared libraries; [`crate::programs`] brings those along. `lvm`
/// is not among them: with its libraries (systemd's, libedit, libgcrypt) it takes 2 MiB of the
/// ISO's 32, and Rescue lays out logical volumes itself.
pub const PROGRAMS: &[&str] = &[
    "/sbin/e2fsck",
    "/sbin/xfs_repair",
    "/bin/btrfs",
    "/sbin/cryptsetup",
    "/sbin/mdadm",
];
/// What starts them.
pub const LOADER: &str = "/lib64/ld-linux-x86-64.so.2";

const NEEDS: &[Need] = &[
    need(BUSYBOX, "busybox-static"),
    need("/sbin/e2fsck", "e2fsprogs"),
    need("/sbin/xfs_repair", "xfsprogs"),
    need("/bin/btrfs", "btrfs-progs"),
    need("/sbin/cryptsetup", "cryptsetup-bin"),
    need("/sbin/mdadm", "mdadm"),
    need(SHIM, "shim-signed"),
    need(MOK_MANAGER, "shim-helpers-amd64-signed"),
    need(GRUB_EFI, "grub-efi-amd64-signed"),
    need("/usr/lib/grub/i386-pc/cdboot.img", "grub-pc-bin"),
    need("/usr/bin/grub-mkimage", "grub-common"),
    need("/usr/bin/xorriso", "xorriso"),
    need("/usr/bin/mformat", "mtools"),
    need("/sbin/depmod", "kmod"),
    need("/usr/bin/xz", "xz-utils"),
    need("/usr/bin/dpkg-deb", "dpkg"),
    need("/usr/bin/apt-get", "apt"),
];

/// Fails with the one line that installs everything missing.
pub fn check() -> Result<()> {
    let mut missing: Vec<&str> = NEEDS
        .iter()
        .filter(|n| !Path::new(n.file).exists())
        .map(|n| n.package)
        .collect();
    missing.sort_unstable();
    missing.dedup();
    if !missing.is_empty() {
        bail!(
            "missing Debian packages. Next: apt-get install --no-install-recommends {}",
            missing.join(" ")
        );
    }
    Ok(())
}
