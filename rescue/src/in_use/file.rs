//! Image files: loop devices, QEMU's locks, other writers.

use std::fs::{self, File, Metadata};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use nix::fcntl::{FcntlArg, fcntl};

use super::{holders, openers};
use crate::base::refusal::Refusal;

/// QEMU's image locks: a byte for each permission held and for each one not shared
/// (block/file-posix.c: RAW_LOCK_PERM_BASE 100, RAW_LOCK_SHARED_BASE 200;
/// include/block/block-common.h: BLK_PERM_ALL is four bits).
const QEMU_BYTES: [i64; 2] = [100, 200];
const QEMU_BYTES_EACH: i64 = 4;

/// Refuses an image that somebody uses, and locks it the way QEMU understands.
pub fn refuse_in_use(file: &File, path: &Path) -> Result<()> {
    let metadata = file.metadata().context("looking at the image")?;
    if let Some(device) =
        loop_device_over(&metadata).filter(|device| !holders::is_ours_and_gone(device))
    {
        return Err(shown_as(path, &device).into());
    }
    for start in QEMU_BYTES {
        if qemu_holds(file, start)? {
            return Err(Refusal::new(
                format!(
                    "{} is locked the way QEMU locks the disks of running machines",
                    path.display()
                ),
                "writing to the disk of a running machine destroys it",
                "power that machine off, then run this again",
            )
            .into());
        }
    }
    for start in QEMU_BYTES {
        // Where locks are not supported the other looks have to do.
        let _ = fcntl(
            file.as_fd(),
            FcntlArg::F_OFD_SETLK(&lock(start, libc::F_RDLCK)),
        );
    }
    if let Some(opener) = openers::writing(&[path.to_path_buf()]) {
        return Err(Refusal::new(
            format!(
                "{} is open for writing in {} (process {})",
                path.display(),
                opener.name,
                opener.pid
            ),
            "two writers at the same time would destroy it",
            "power that machine off or end that program, then run this again",
        )
        .into());
    }
    Ok(())
}

fn lock(start: i64, kind: libc::c_int) -> libc::flock {
    libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: start,
        l_len: QEMU_BYTES_EACH,
        l_pid: 0,
    }
}

fn qemu_holds(file: &File, start: i64) -> Result<bool> {
    let mut asked = lock(start, libc::F_WRLCK);
    match fcntl(file.as_fd(), FcntlArg::F_OFD_GETLK(&mut asked)) {
        Ok(_) => Ok(i32::from(asked.l_type) != libc::F_UNLCK),
        Err(
            nix::errno::Errno::EINVAL | nix::errno::Errno::ENOLCK | nix::errno::Errno::EOPNOTSUPP,
        ) => Ok(false),
        Err(error) => Err(error).context("asking for locks on the image"),
    }
}

/// The refusal of what a loop device shows.
pub fn shown_as(path: &Path, device: &Path) -> Refusal {
    Refusal::new(
        format!(
            "{} is shown as the block device {}",
            path.display(),
            device.display()
        ),
        "something on this machine uses it, or did not clean up",
        format!(
            "umount what is mounted from it, `losetup -d {}`, then run this again",
            device.display()
        ),
    )
}

/// The loop device that shows this file or block device, if any.
pub fn loop_device_over(ours: &Metadata) -> Option<PathBuf> {
    for device in fs::read_dir("/sys/block").ok()?.flatten() {
        let Ok(backing) = fs::read_to_string(device.path().join("loop/backing_file")) else {
            continue;
        };
        let backing = Path::new(backing.trim_end_matches('\n'));
        if fs::metadata(backing).is_ok_and(|theirs| is_same(&theirs, ours)) {
            return Some(Path::new("/dev").join(device.file_name()));
        }
    }
    None
}

/// A device may have several nodes.
fn is_same(theirs: &Metadata, ours: &Metadata) -> bool {
    match ours.file_type().is_block_device() {
        true => theirs.file_type().is_block_device() && theirs.rdev() == ours.rdev(),
        false => (theirs.dev(), theirs.ino()) == (ours.dev(), ours.ino()),
    }
}
