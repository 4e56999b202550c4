//! Boot loaders: GRUB for BIOS, and shim with Debian's signed GRUB for UEFI, both reading one
//! grub.cfg.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::{command, tools};

/// What the BIOS GRUB carries inside; the signed one for UEFI has all of these but biosdisk and
/// chain.
const BIOS_MODULES: &[&str] = &[
    "biosdisk",
    "iso9660",
    "part_msdos",
    "part_gpt",
    "search",
    "search_fs_file",
    "linux",
    "normal",
    "configfile",
    "serial",
    "terminal",
    "terminfo",
    "test",
    "regexp",
    "echo",
    "chain",
    "all_video",
    "reboot",
    "halt",
    "minicmd",
];

/// GRUB would read these as its own syntax, or the kernel as two arguments.
pub fn check_kernel_arguments(arguments: &[String]) -> Result<()> {
    for argument in arguments {
        let fine = |c: char| c.is_ascii_graphic() && !matches!(c, '\'' | '"' | '\\' | '$' | '@');
        if argument.is_empty() || !argument.chars().all(fine) {
            bail!(
                "--kernel-arg {argument:?}: only visible ASCII without spaces, quotes, $, @ and \
                 backslash"
            );
        }
    }
    Ok(())
}

/// The menu, with the user's kernel arguments in every entry.
pub fn menu(arguments: &[String]) -> String {
    let quoted: String = arguments
        .iter()
        .map(|argument| format!(" '{argument}'"))
        .collect();
    let title = if arguments.is_empty() {
        String::new()
    } else {
        format!(" ({})", arguments.join(" "))
    };
    include_str!("../grub.cfg")
        .replace("@ARGS@", &quoted)
        .replace("@TITLE@", &title)
}

/// Writes `boot/grub/i386-pc/eltorito.img`: GRUB as a CD's BIOS boot image.
pub fn bios(tree: &Path, work: &Path) -> Result<()> {
    let early = work.join("early.cfg");
    fs::write(&early, include_str!("../early.cfg"))?;
    let core = work.join("core.img");
    command::run(
        Command::new("grub-mkimage")
            .args(["-O", "i386-pc", "--prefix=/boot/grub", "-c"])
            .arg(&early)
            .arg("-o")
            .arg(&core)
            .args(BIOS_MODULES),
    )
    .context("making GRUB for BIOS")?;
    let mut image = fs::read(Path::new(tools::GRUB_BIOS).join("cdboot.img"))?;
    image.extend(fs::read(&core)?);
    let folder = tree.join("boot/grub/i386-pc");
    fs::create_dir_all(&folder)?;
    fs::write(folder.join("eltorito.img"), image).context("writing eltorito.img")
}

/// Writes `boot/efi.img`: a FAT file system with shim and the signed GRUB, which finds the ISO by
/// `/.disk/info`.
pub fn efi(tree: &Path, epoch: u64) -> Result<()> {
    let files = [
        (tools::SHIM, "BOOTX64.EFI"),
        (tools::GRUB_EFI, "grubx64.efi"),
        (tools::MOK_MANAGER, "mmx64.efi"),
    ];
    let bytes = files
        .iter()
        .map(|(path, _)| Ok(fs::metadata(path)?.len()))
        .sum::<Result<u64>>()?;
    // Room for FATs, folders and partly filled clusters; whole 64 KiB.
    let kib = (bytes / 1024 + 256).next_multiple_of(64);
    let image = tree.join("boot/efi.img");
    fs::File::create(&image)?.set_len(kib * 1024)?;

    let mtools = |name: &str| {
        let mut command = Command::new(name);
        command
            .env("SOURCE_DATE_EPOCH", epoch.to_string())
            .env("MTOOLS_SKIP_CHECK", "1")
            .arg("-i")
            .arg(&image);
        command
    };
    command::run(mtools("mformat").args([
        "-N",
        "52455343",
        "-v",
        "RESCUE-EFI",
        "-T",
        &(kib * 2).to_string(),
        "::",
    ]))
    .context("making the EFI system partition")?;
    command::run(mtools("mmd").args(["::/EFI", "::/EFI/BOOT"]))?;
    for (path, name) in files {
        // Copied first: mcopy -m takes the time of the file, and the package's own must not matter.
        let copy = tree.join(name);
        fs::copy(path, &copy).with_context(|| format!("copying {path}"))?;
        set_time(&copy, epoch)?;
        command::run(
            mtools("mcopy")
                .arg("-m")
                .arg(&copy)
                .arg(format!("::/EFI/BOOT/{name}")),
        )
        .with_context(|| format!("copying {name} to the EFI system partition"))?;
        fs::remove_file(&copy)?;
    }
    Ok(())
}

/// Sets a file's modification time.
pub fn set_time(path: &Path, epoch: u64) -> Result<()> {
    let time = std::time::UNIX_EPOCH + std::time::Duration::from_secs(epoch);
    let file = fs::File::open(path)?;
    file.set_times(fs::FileTimes::new().set_modified(time).set_accessed(time))
        .with_context(|| format!("setting the time of {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn menu_carries_the_arguments_in_every_rescue_entry() {
        let menu = menu(&[
            "rescue.auto=repair".into(),
            "rescue.only=disk-full,certificates".into(),
        ]);
        assert!(!menu.contains('@'), "{menu}");
        let lines: Vec<&str> = menu
            .lines()
            .filter(|l| l.trim_start().starts_with("linux "))
            .collect();
        assert_eq!(lines.len(), 3);
        assert!(
            lines
                .iter()
                .all(|l| l.contains(" 'rescue.auto=repair' 'rescue.only=disk-full,certificates'"))
        );
    }

    #[test]
    fn refuses_arguments_that_are_syntax() {
        for bad in [
            "", "a b", "a'b", "a\"b", "$root", "a\\b", "a\nb", "é", "@ARGS@",
        ] {
            assert!(
                check_kernel_arguments(&[bad.to_owned()]).is_err(),
                "{bad:?}"
            );
        }
        check_kernel_arguments(&[
            "rescue.now=2024-01-01T00:00:00Z".into(),
            "console=ttyS1,9600".into(),
        ])
        .unwrap();
    }
}
