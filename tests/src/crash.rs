//! What the drivers of the crash tests share: exit codes, a power cut from inside, and every file
//! of a file system as a line.

use std::ffi::OsStr;
use std::fmt::Write as _;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result};
use rescue::base::fault;
use rescue::base::hash::sha256_hex;
use rescue::base::refusal::Refusal;
use rescue::repair::{TransactionError, UndoError};

/// Runs a driver. Exit codes: 0 done, 3 refused, 4 stopped part-way, 5 anything else. With
/// `CUT_POWER` set, an abort cuts the power first.
pub fn drive(run: impl FnOnce() -> Result<()>) -> ExitCode {
    if std::env::var_os("CUT_POWER").is_some() {
        fault::before_abort(cut_power);
    }
    let Err(error) = run() else {
        return ExitCode::SUCCESS;
    };
    eprintln!("{error:#}");
    if error.is::<Refusal>() {
        ExitCode::from(3)
    } else if error.is::<TransactionError>() || error.is::<UndoError>() || error.is::<NotClosed>() {
        ExitCode::from(4)
    } else {
        ExitCode::from(5)
    }
}

/// All was done, but it may not be on the disk.
#[derive(Debug, Clone, Copy)]
pub struct NotClosed;

impl std::fmt::Display for NotClosed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("all is done, but unmounting failed")
    }
}

/// So that the disk keeps what it would keep when the power goes.
fn cut_power() {
    if !keep_what_btrfs_has_written() {
        shut_down();
    }
}

/// btrfs knows no FS_IOC_SHUTDOWN (before Linux 6.19). What it has handed to its device until now
/// is in the image; a copy of that (`.cut`) is what is left after a power cut, whatever is written
/// there until we are gone. The images are among the arguments (`…=btrfs…=IMAGE`). Whether there
/// are any.
fn keep_what_btrfs_has_written() -> bool {
    let arguments: Vec<String> = std::env::args().collect();
    let images = arguments
        .iter()
        .filter_map(|argument| argument.split_once("=btrfs")?.1.split_once('='));
    let images: std::collections::BTreeSet<&str> = images.map(|(_, image)| image).collect();
    for image in &images {
        let cut = Path::new(image).with_extension("cut");
        let copied = Command::new("cp")
            .args(["--sparse=always", "--reflink=never", image])
            .arg(cut)
            .status();
        assert!(
            copied.is_ok_and(|status| status.success()),
            "cannot keep a copy of {image}"
        );
    }
    !images.is_empty()
}

/// Shuts down every file system that this process has a folder of open through a loop device
/// (FS_IOC_SHUTDOWN, with or without flushing the log).
fn shut_down() {
    let late = std::env::var_os("CUT_POWER").is_some_and(|when| when == "late");
    let shutdown = if late { "shutdown -f" } else { "shutdown" };
    let mut done = Vec::new();
    let Ok(descriptors) = fs::read_dir("/proc/self/fd") else {
        return;
    };
    let folders: Vec<PathBuf> = descriptors.flatten().map(|entry| entry.path()).collect();
    for folder in folders {
        const LOOP_MAJOR: u32 = 7;
        let Ok(meta) = fs::metadata(&folder) else {
            continue;
        };
        if !meta.is_dir()
            || rustix::fs::major(meta.dev()) != LOOP_MAJOR
            || done.contains(&meta.dev())
        {
            continue;
        }
        done.push(meta.dev());
        let theirs = Path::new("/proc").join(std::process::id().to_string());
        let path = theirs
            .join(folder.strip_prefix("/proc/self").unwrap_or(&folder))
            .join(".");
        let status = Command::new("xfs_io")
            .args(["-r", "-x", "-c", shutdown])
            .arg(&path)
            .stdout(Stdio::null())
            .status();
        assert!(
            status.is_ok_and(|status| status.success()),
            "cannot shut down the file system (is xfsprogs installed?)"
        );
    }
    assert!(
        !done.is_empty(),
        "there is no file system to cut the power of"
    );
}

/// `path|kind|mode|uid|gid|mtime|content|attributes`; folders without their times, the inode number
/// of files and links.
pub fn dump_folder(here: &Path, shown: &Path, lines: &mut Vec<String>) -> Result<()> {
    for entry in fs::read_dir(here.join("."))? {
        let entry = entry?;
        let (path, shown) = (here.join(entry.file_name()), shown.join(entry.file_name()));
        let meta = fs::symlink_metadata(&path)?;
        let kind = meta.file_type();
        let (letter, content) = if kind.is_dir() {
            ('d', String::new())
        } else if kind.is_symlink() {
            ('l', fs::read_link(&path)?.display().to_string())
        } else if kind.is_file() {
            ('f', sha256_hex(&fs::read(&path)?))
        } else {
            (if kind.is_fifo() { 'p' } else { 's' }, String::new())
        };
        let time = if kind.is_dir() {
            String::new()
        } else {
            format!("{}.{:09}", meta.mtime(), meta.mtime_nsec())
        };
        let (mode, uid, gid) = (meta.mode() & 0o7777, meta.uid(), meta.gid());
        let attributes = attributes(&path)?;
        lines.push(format!(
            "{}|{letter}|{mode:04o}|{uid}|{gid}|{time}|{content}|{attributes}",
            shown.display()
        ));
        if kind.is_dir() && entry.file_name() != "lost+found" {
            dump_folder(&path, &shown, lines)?;
        }
    }
    Ok(())
}

fn attributes(path: &Path) -> Result<String> {
    let mut names = vec![0; 4096];
    let length = rustix::fs::llistxattr(path, &mut names)
        .with_context(|| format!("listing attributes of {}", path.display()))?;
    let mut text = String::new();
    let mut names: Vec<&[u8]> = names[..length]
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty())
        .collect();
    names.sort_unstable();
    for name in names {
        let mut value = vec![0; 4096];
        let length = rustix::fs::lgetxattr(path, OsStr::from_bytes(name), &mut value)?;
        write!(
            text,
            "{}={} ",
            String::from_utf8_lossy(name),
            sha256_hex(&value[..length]).get(..12).unwrap_or_default()
        )?;
    }
    Ok(text)
}

/// A node with an old member and its database, which has a hole.
///
/// # Panics
/// Where it cannot be made.
pub fn old_member(root: &Path, name: &str) {
    let member = root.join("var/lib/etcd/member");
    for folder in ["snap", "wal"] {
        fs::create_dir_all(member.join(folder)).unwrap();
    }
    fs::create_dir_all(root.join("etc")).unwrap();
    fs::write(root.join("etc/hostname"), format!("{name}\n")).unwrap();
    fs::write(member.join("wal/0.wal"), format!("old log of {name}")).unwrap();
    fs::write(member.join("wal/0.tmp"), "").unwrap();
    let mut database = vec![0; 20_000];
    database.extend(format!("data of {name}").bytes());
    fs::write(member.join("snap/db"), database).unwrap();
}
