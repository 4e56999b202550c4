//! The ISO 9660 image itself: one file that boots from a CD and from a stick, under BIOS and UEFI.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::{boot, command, epoch};

/// How the running system recognises the medium it came from (live/disks.rs).
const VOLUME: &str = "RESCUE";

/// What goes in.
#[derive(Debug)]
pub struct Parts<'a> {
    pub kernel: &'a Path,
    pub release: &'a str,
    pub initrd: &'a [u8],
    pub kernel_arguments: &'a [String],
    pub work: &'a Path,
    pub output: &'a Path,
}

/// Writes the ISO and gives its size in bytes. The file appears whole or not at all.
pub fn write(parts: &Parts) -> Result<u64> {
    let epoch = epoch()?;
    let tree = parts.work.join("iso");
    fs::create_dir_all(tree.join("boot/grub"))?;
    fs::create_dir_all(tree.join(".disk"))?;
    // Debian's signed GRUB looks for this file to find us.
    fs::write(
        tree.join(".disk/info"),
        format!("Rescue {} {}\n", env!("CARGO_PKG_VERSION"), parts.release),
    )?;
    fs::write(
        tree.join("boot/grub/grub.cfg"),
        boot::menu(parts.kernel_arguments),
    )?;
    fs::copy(parts.kernel, tree.join("boot/vmlinuz")).context("copying the kernel")?;
    fs::write(tree.join("boot/initrd.img"), parts.initrd)?;
    boot::bios(&tree, parts.work)?;
    boot::efi(&tree, epoch)?;
    level(&tree, epoch)?;

    let new = temporary(parts.output)?;
    command::run(xorriso(epoch).arg("-o").arg(new.path()).arg(&tree)).context("writing the ISO")?;
    let size = fs::metadata(new.path())?.len();
    let readable = std::os::unix::fs::PermissionsExt::from_mode(0o644);
    fs::set_permissions(new.path(), readable)?;
    new.persist(parts.output)
        .with_context(|| format!("writing {}", parts.output.display()))?;
    Ok(size)
}

/// Layout of Debian's own live media: El Torito for both firmwares, and partition tables over the
/// same bytes for sticks.
fn xorriso(epoch: u64) -> Command {
    let mut command = Command::new("xorriso");
    // Fixes the times, the GPT's GUIDs and the volume's UUID.
    command.env("SOURCE_DATE_EPOCH", epoch.to_string());
    command.args(["-as", "mkisofs", "-quiet", "-V", VOLUME, "-l", "-r", "-J"]);
    command.args([
        "-b",
        "boot/grub/i386-pc/eltorito.img",
        "-no-emul-boot",
        "-boot-load-size",
        "4",
        "-boot-info-table",
    ]);
    command.args([
        "--grub2-boot-info",
        "--grub2-mbr",
        "/usr/lib/grub/i386-pc/boot_hybrid.img",
    ]);
    command.args([
        "-eltorito-alt-boot",
        "-e",
        "boot/efi.img",
        "-no-emul-boot",
        "-isohybrid-gpt-basdat",
    ]);
    command
}

/// A temporary file beside the output, so that the last step is a rename.
fn temporary(output: &Path) -> Result<tempfile::NamedTempFile> {
    let folder = match output.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    };
    tempfile::NamedTempFile::new_in(&folder)
        .with_context(|| format!("writing to {}", folder.display()))
}

/// Gives every file and folder the same time.
fn level(folder: &Path, epoch: u64) -> Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            level(&entry.path(), epoch)?;
        } else {
            boot::set_time(&entry.path(), epoch)?;
        }
    }
    boot::set_time(folder, epoch)
}
