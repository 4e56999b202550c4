//! What runs from memory: our binary as `/init` and `/sbin/modprobe`, a shell, the checkers of file
//! systems, the kernel's modules.
//!
//! Two archives, one after the other, as the kernel allows: the big constant one (modules and
//! tools) is compressed once and kept in the cache, the small one carries our binary.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};

use crate::cpio::{Archive, Entry};
use crate::kernel::Kernel;
use crate::modules::{INDEXES, Modules};
use crate::{command, programs, tools};

/// zstd's level 19 needs a window of 8 MiB to unpack; higher levels would need more memory than a
/// small machine has.
const ZSTD_LEVEL: i32 = 19;

/// busybox programs that are ours instead.
const NOT_BUSYBOX: &[&str] = &[
    "busybox", "depmod", "init", "insmod", "linuxrc", "lsmod", "modinfo", "modprobe", "rmmod",
];

/// The compressed initramfs.
pub fn build(kernel: &Kernel, modules: &Modules, binary: &Path, cache: &Path) -> Result<Vec<u8>> {
    let mut initrd = compress(&system(kernel, modules)?.bytes()?, cache)?;
    // The kernel looks for the next archive after zero padding to four bytes.
    initrd.resize(initrd.len().next_multiple_of(4), 0);
    initrd.extend(compress(&program(binary)?.bytes()?, cache)?);
    Ok(initrd)
}

/// Everything but our binary.
fn system(kernel: &Kernel, modules: &Modules) -> Result<Archive> {
    let mut archive = Archive::default();
    for folder in ["proc", "sys", "run", "mnt", "root", "etc", "var", "dev/pts"] {
        archive.add(folder, Entry::Folder(0o755))?;
    }
    archive.add("tmp", Entry::Folder(0o1777))?;
    // The kernel opens it for /init before devtmpfs is mounted.
    archive.add("dev/console", Entry::Character(0o600, 5, 1))?;
    archive.add("dev/null", Entry::Character(0o666, 1, 3))?;
    archive.add(
        "etc/passwd",
        Entry::File(0o644, b"root:x:0:0:root:/root:/bin/sh\n".to_vec()),
    )?;
    archive.add("etc/mtab", Entry::Link("/proc/self/mounts".into()))?;
    archive.add("etc/group", Entry::File(0o644, b"root:x:0:\n".to_vec()))?;

    archive.add("bin/busybox", file(Path::new(tools::BUSYBOX), 0o755)?)?;
    for applet in command::text(Command::new(tools::BUSYBOX).arg("--list"))?.lines() {
        if !NOT_BUSYBOX.contains(&applet) {
            archive.add(&format!("bin/{applet}"), Entry::Link("busybox".into()))?;
        }
    }
    programs::add(&mut archive)?;

    let inside = format!("lib/modules/{}", kernel.release);
    for name in INDEXES {
        archive.add(
            &format!("{inside}/{name}"),
            file(&modules.folder.join(name), 0o644)?,
        )?;
    }
    add_modules(
        &mut archive,
        &modules.folder.join("kernel"),
        &format!("{inside}/kernel"),
    )?;
    Ok(archive)
}

/// Our binary and the names it answers to.
fn program(binary: &Path) -> Result<Archive> {
    let mut archive = Archive::default();
    archive.add("init", file(binary, 0o755)?)?;
    for name in ["sbin/modprobe", "bin/rescue"] {
        archive.add(name, Entry::Link("/init".into()))?;
    }
    Ok(archive)
}

fn add_modules(archive: &mut Archive, folder: &Path, inside: &str) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| format!("reading {}", folder.display()))? {
        let entry = entry?;
        let name = entry
            .file_name()
            .into_string()
            .map_err(|name| anyhow::anyhow!("odd module name {name:?}"))?;
        let inside = format!("{inside}/{name}");
        if entry.file_type()?.is_dir() {
            add_modules(archive, &entry.path(), &inside)?;
        } else {
            archive.add(&inside, file(&entry.path(), 0o644)?)?;
        }
    }
    Ok(())
}

fn file(path: &Path, mode: u32) -> Result<Entry> {
    Ok(Entry::File(
        mode,
        fs::read(path).with_context(|| format!("reading {}", path.display()))?,
    ))
}

/// Compresses, or takes the result from the cache: level 19 takes its time.
fn compress(plain: &[u8], cache: &Path) -> Result<Vec<u8>> {
    let digest: String = Sha256::digest(plain)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let kept = cache.join(format!("{digest}.cpio.zst{ZSTD_LEVEL}"));
    if let Ok(compressed) = fs::read(&kept) {
        return Ok(compressed);
    }
    let compressed =
        zstd::bulk::compress(plain, ZSTD_LEVEL).context("compressing the initramfs")?;
    let new = tempfile::NamedTempFile::new_in(cache)?;
    fs::write(new.path(), &compressed)?;
    new.persist(&kept)
        .with_context(|| format!("writing {}", kept.display()))?;
    Ok(compressed)
}

/// The binary must exist and be static: the libraries in the image are for others, and a kernel
/// without /init panics.
pub fn check_binary(path: &Path) -> Result<()> {
    let Ok(content) = fs::read(path) else {
        bail!(
            "no binary at {}. Next: cargo build --release",
            path.display()
        );
    };
    match wants_loader(&content) {
        Some(false) => Ok(()),
        Some(true) => bail!(
            "{} is not static. Next: cargo build --release in this repository",
            path.display()
        ),
        None => bail!("{} is not a 64-bit ELF program", path.display()),
    }
}

/// Whether an ELF program names a loader (PT_INTERP), `None` for anything else than 64-bit
/// little-endian ELF.
fn wants_loader(elf: &[u8]) -> Option<bool> {
    const PT_INTERP: u32 = 3;
    if !elf.starts_with(b"\x7fELF\x02\x01") {
        return None;
    }
    let bytes = |at: usize, size: usize| elf.get(at..at.checked_add(size)?);
    let table = usize::try_from(u64::from_le_bytes(bytes(0x20, 8)?.try_into().ok()?)).ok()?;
    let size = usize::from(u16::from_le_bytes(bytes(0x36, 2)?.try_into().ok()?));
    let count = usize::from(u16::from_le_bytes(bytes(0x38, 2)?.try_into().ok()?));
    for number in 0..count {
        let at = table.checked_add(number.checked_mul(size)?)?;
        if u32::from_le_bytes(bytes(at, 4)?.try_into().ok()?) == PT_INTERP {
            return Some(true);
        }
    }
    Some(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tells_static_from_dynamic() {
        assert_eq!(wants_loader(&fs::read("/bin/true").unwrap()), Some(true));
        assert_eq!(
            wants_loader(&fs::read(tools::BUSYBOX).unwrap()),
            Some(false)
        );
        assert_eq!(wants_loader(b"#!/bin/sh"), None);
        assert_eq!(wants_loader(b"\x7fELF\x02\x01"), None);
    }
}
