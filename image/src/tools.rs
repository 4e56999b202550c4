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
pub const E2FSCK: &str = "/sbin/e2fsck.static";
pub const SHIM: &str = "/usr/lib/shim/shimx64.efi.signed";
pub const MOK_MANAGER: &str = "/usr/lib/shim/mmx64.efi.signed";
pub const GRUB_EFI: &str = "/usr/lib/grub/x86_64-efi-signed/gcdx64.efi.signed";
pub const GRUB_BIOS: &str = "/usr/lib/grub/i386-pc";

const NEEDS: &[Need] = &[
    need(BUSYBOX, "busybox-static"),
    need(E2FSCK, "e2fsck-static"),
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
    let mut missing: Vec<&str> = NEEDS.iter().filter(|n| !Path::new(n.file).exists()).map(|n| n.package).collect();
    missing.sort_unstable();
    missing.dedup();
    if !missing.is_empty() {
        bail!("missing Debian packages. Next: apt-get install --no-install-recommends {}", missing.join(" "));
    }
    Ok(())
}
