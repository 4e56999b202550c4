//! Builds the bootable rescue ISO from Debian's signed packages and our own static binary.
//!
//! ```text
//! kernel package ─► modules (trimmed, closed) ─┐
//! rescue, busybox, checkers, cryptsetup, mdadm ┴► initramfs ─┐
//! shim + GRUB (signed) ─► EFI system partition ──────────────┼► ISO 9660, bootable from CD and stick
//! GRUB (BIOS) ───────────────────────────────────────────────┘
//! ```

mod boot;
mod command;
mod cpio;
mod initramfs;
mod iso;
mod kernel;
mod modules;
mod programs;
mod tools;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use argh::FromArgs;

/// Build the bootable rescue ISO.
#[derive(FromArgs, Debug)]
struct Arguments {
    #[argh(subcommand)]
    command: Command,
}

#[derive(FromArgs, Debug)]
#[argh(subcommand)]
enum Command {
    Build(Build),
}

/// Build the ISO: the same inputs give the same bytes.
#[derive(FromArgs, Debug)]
#[argh(subcommand, name = "build")]
struct Build {
    /// where to write the ISO
    #[argh(option, short = 'o', default = "PathBuf::from(\"rescue.iso\")")]
    output: PathBuf,

    /// the static rescue binary (default: target/x86_64-unknown-linux-gnu/release/rescue)
    #[argh(option)]
    binary: Option<PathBuf>,

    /// a kernel argument for every entry, such as rescue.auto=repair (may be repeated)
    #[argh(option)]
    kernel_arg: Vec<String>,

    /// where downloaded and unpacked packages are kept (default: target/image-cache)
    #[argh(option)]
    cache: Option<PathBuf>,

    /// a signed kernel package to use instead of downloading one
    #[argh(option)]
    kernel_deb: Option<PathBuf>,
}

fn main() -> ExitCode {
    let Command::Build(arguments) = argh::from_env::<Arguments>().command;
    match build(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("image: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn build(arguments: &Build) -> Result<()> {
    tools::check()?;
    boot::check_kernel_arguments(&arguments.kernel_arg)?;
    let target = workspace().join("target");
    let binary = arguments
        .binary
        .clone()
        .unwrap_or_else(|| target.join("x86_64-unknown-linux-gnu/release/rescue"));
    initramfs::check_binary(&binary)?;
    let cache = arguments
        .cache
        .clone()
        .unwrap_or_else(|| target.join("image-cache"));
    std::fs::create_dir_all(&cache).with_context(|| format!("creating {}", cache.display()))?;

    let package = match &arguments.kernel_deb {
        Some(deb) => deb.clone(),
        None => kernel::download(&cache)?,
    };
    let kernel = kernel::unpack(&package, &cache)?;
    println!("kernel      {}", kernel.release);

    let work = tempfile::Builder::new()
        .prefix("work-")
        .tempdir_in(&cache)
        .context("creating a work folder")?;
    let modules = modules::select(&kernel, include_str!("../modules.list"), work.path())?;
    println!(
        "modules     {} files, {} KiB",
        modules.count,
        modules.bytes / 1024
    );

    let initrd = initramfs::build(&kernel, &modules, &binary, &cache)?;
    println!("initramfs   {} KiB", initrd.len() / 1024);

    let size = iso::write(&iso::Parts {
        kernel: &kernel.image,
        release: &kernel.release,
        initrd: &initrd,
        kernel_arguments: &arguments.kernel_arg,
        work: work.path(),
        output: &arguments.output,
    })?;
    println!("{}  {} KiB", arguments.output.display(), size / 1024);
    Ok(())
}

/// The workspace when run by cargo, else the current folder.
fn workspace() -> PathBuf {
    match std::env::var_os("CARGO_MANIFEST_DIR").map(PathBuf::from) {
        Some(package) => package.parent().map(PathBuf::from).unwrap_or(package),
        None => PathBuf::from("."),
    }
}

/// Seconds since 1970 that every file of the image carries: `SOURCE_DATE_EPOCH`, else a fixed day,
/// never the time of the build.
fn epoch() -> Result<u64> {
    // 2025-01-01T00:00:00Z
    const FIXED: u64 = 1_735_689_600;
    match std::env::var("SOURCE_DATE_EPOCH") {
        Err(_) => Ok(FIXED),
        Ok(text) => match text.parse() {
            // FAT and ISO 9660 count from 1980.
            Ok(seconds) if seconds >= 315_532_800 => Ok(seconds),
            _ => bail!("SOURCE_DATE_EPOCH={text}: not a number of seconds after 1980"),
        },
    }
}
