//! Debian's own programs for checking file systems and opening what they lie in, with the libraries
//! they need.
//!
//! The loader itself is asked which libraries those are, with nothing but Debian's own folders to
//! look in, so that neither this machine's cache nor its processor has a say in what goes into the
//! image.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::cpio::{Archive, Entry};
use crate::{command, tools};

/// Where Debian's loader looks without a cache, on this machine and in the image.
const LIBRARIES: &str = "lib/x86_64-linux-gnu";

/// Where the image's programs go; its `PATH` has it.
const FOLDER: &str = "sbin";

/// Opened at run time, so no program's header names it: glibc wants it to end a thread, which
/// `btrfs check` does.
const OPENED_LATER: &[&str] = &["libgcc_s.so.1"];

/// Adds the programs, their libraries and the loader.
pub fn add(archive: &mut Archive) -> Result<()> {
    let mut libraries: BTreeSet<String> =
        OPENED_LATER.iter().map(|name| (*name).to_owned()).collect();
    for program in tools::PROGRAMS {
        let program = Path::new(program);
        libraries.extend(libraries_of(program)?);
        archive.add(&format!("{FOLDER}/{}", name(program)?), content(program)?)?;
    }
    for library in libraries {
        let inside = format!("{LIBRARIES}/{library}");
        archive.add(&inside, content(&Path::new("/").join(&inside))?)?;
    }
    archive.add(
        tools::LOADER.trim_start_matches('/'),
        content(Path::new(tools::LOADER))?,
    )
}

/// The file names of the libraries that a program needs, directly and indirectly.
fn libraries_of(program: &Path) -> Result<Vec<String>> {
    let said = command::text(
        Command::new(tools::LOADER)
            // The library path of an empty environment, and no variants for one kind of processor.
            .env_clear()
            .args([
                "--inhibit-cache",
                "--glibc-hwcaps-mask",
                "",
                "--library-path",
                &format!("/{LIBRARIES}"),
                "--list",
            ])
            .arg(program),
    )
    .with_context(|| format!("asking which libraries {} needs", program.display()))?;
    parse(&said).with_context(|| format!("reading which libraries {} needs", program.display()))
}

/// Lines of the loader: `libz.so.1 => /lib/x86_64-linux-gnu/libz.so.1 (0x…)`; the kernel's own and
/// the loader have no arrow.
fn parse(said: &str) -> Result<Vec<String>> {
    let mut libraries = Vec::new();
    for line in said.lines() {
        let Some((name, found)) = line.split_once(" => ") else {
            continue;
        };
        let name = name.trim();
        let path = found.split(" (").next().unwrap_or_default();
        if path != format!("/{LIBRARIES}/{name}") {
            bail!("{name} is not in /{LIBRARIES}: {}", found.trim());
        }
        libraries.push(name.to_owned());
    }
    Ok(libraries)
}

fn name(program: &Path) -> Result<&str> {
    program
        .file_name()
        .and_then(|name| name.to_str())
        .with_context(|| format!("{} has no name", program.display()))
}

/// Links are followed: what a link of this machine points to is what is meant.
fn content(path: &Path) -> Result<Entry> {
    Ok(Entry::File(
        0o755,
        fs::read(path).with_context(|| format!("reading {}", path.display()))?,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_the_loader_says() {
        let said = "\tlinux-vdso.so.1 (0x00007fb8f3ad7000)\n\
            \tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007fb8f37dc000)\n\
            \t/lib64/ld-linux-x86-64.so.2 (0x00007fb8f3ad9000)\n";
        assert_eq!(parse(said).unwrap(), ["libc.so.6"]);
        let error = parse("\tlibz.so.1 => not found\n").unwrap_err().to_string();
        assert!(
            error.contains("libz.so.1") && error.contains("not found"),
            "{error}"
        );
        assert!(parse("\tlibz.so.1 => /usr/local/lib/libz.so.1 (0x0)\n").is_err());
    }

    #[test]
    fn a_real_program_is_closed_over_its_libraries() {
        let libraries = libraries_of(Path::new("/sbin/xfs_repair")).unwrap();
        assert!(
            libraries.contains(&"libc.so.6".to_owned()) && libraries.len() >= 4,
            "{libraries:?}"
        );
    }

    /// What is put together must run where nothing else is.
    #[test]
    fn the_programs_run_in_an_empty_system() {
        let root = tempfile::tempdir().unwrap();
        let mut archive = Archive::default();
        add(&mut archive).unwrap();
        let mut cpio = Command::new("cpio")
            .args(["--extract", "--quiet", "--make-directories"])
            .current_dir(root.path())
            .stdin(std::process::Stdio::piped())
            .spawn()
            .expect("cpio (apt-get install cpio)");
        std::io::Write::write_all(&mut cpio.stdin.take().unwrap(), &archive.bytes().unwrap())
            .unwrap();
        assert!(cpio.wait().unwrap().success());
        for (program, flag) in [
            ("xfs_repair", "-V"),
            ("btrfs", "--version"),
            ("cryptsetup", "--version"),
            ("mdadm", "--version"),
        ] {
            let ran = Command::new("chroot")
                .arg(root.path())
                .args([&format!("/{FOLDER}/{program}"), flag])
                .output()
                .unwrap();
            let said = String::from_utf8_lossy(&ran.stdout).into_owned()
                + &String::from_utf8_lossy(&ran.stderr);
            assert!(
                ran.status.success() && said.contains('.'),
                "{program} (this test needs root): {said}"
            );
        }
    }
}
