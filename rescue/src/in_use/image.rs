//! Image files in a format of their own: which of them are written to, and through what.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::{file, openers, vmware};
use crate::base::refusal::Refusal;
use crate::disk::Disk;
use crate::disk::image::{Layout, qcow2};
use crate::disk::storage_daemon::{self, StorageDaemon};

/// A daemon of a run that was killed a moment ago still closes its image; so long is waited for
/// that.
const LAST_RUN: Duration = Duration::from_secs(10);

/// The file to be claimed, and how the disk in it is written to.
pub struct Target {
    pub path: PathBuf,
    pub through: Through,
}

/// How.
pub enum Through {
    /// Its bytes are the disk's.
    Itself,
    /// QEMU's storage daemon writes to it; the length of the disk.
    Daemon(Box<qcow2::Layout>, u64),
}

/// How the image at `path` is written to.
///
/// # Errors
/// A [`Refusal`] for what is only read.
pub fn target(path: &Path) -> Result<Target> {
    let disk = Disk::open(path)?;
    if matches!(disk.layout, Layout::Flat(_)) || has_vmware_name(path) {
        vmware::refuse_locked(path)?;
    }
    match disk.layout {
        Layout::Raw => Ok(Target {
            path: path.to_path_buf(),
            through: Through::Itself,
        }),
        Layout::Flat(flat) => Ok(Target {
            path: flat,
            through: Through::Itself,
        }),
        Layout::Vmdk(form) => Err(read_only(path, &form)),
        Layout::Qcow2(layout) => {
            if let Some(why) = layout.needs_check {
                return Err(needs_check(path, why));
            }
            storage_daemon::require(path)?;
            wait_for_last_run(path);
            Ok(Target {
                path: path.to_path_buf(),
                through: Through::Daemon(layout, disk.bytes.len()),
            })
        }
    }
}

/// Looks whether anybody uses the image, and has the daemon open it. QEMU's own locks keep all
/// others out from then on.
pub fn open(path: &Path, layout: &qcow2::Layout, length: u64) -> Result<(StorageDaemon, File)> {
    let looked_at = File::options().read(true).write(true).open(path);
    let looked_at = looked_at.with_context(|| format!("opening {} for writing", path.display()))?;
    file::refuse_in_use(&looked_at, path)?;
    // The locks that this took would keep the daemon out.
    drop(looked_at);
    StorageDaemon::start(path, layout, length)
}

/// A flat extent is raw by its content.
fn has_vmware_name(path: &Path) -> bool {
    path.extension()
        .is_some_and(|ending| ending.eq_ignore_ascii_case("vmdk"))
}

fn wait_for_last_run(path: &Path) {
    let Ok(path) = path.canonicalize() else {
        return;
    };
    let deadline = Instant::now() + LAST_RUN;
    let is_there = || {
        openers::writing(std::slice::from_ref(&path))
            .is_some_and(|opener| opener.name.starts_with("qemu-storage-d"))
    };
    while is_there() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn needs_check(path: &Path, why: &str) -> anyhow::Error {
    Refusal::new(
        format!("the qcow2 image {} {why}", path.display()),
        "clusters that are in use could be given away once more; its own checker mends that, on a \
         copy if there is room for one",
        format!(
            "qemu-img check -r all {}, then run this again",
            crate::base::shell::quoted(path)
        ),
    )
    .into()
}

fn read_only(path: &Path, form: &str) -> anyhow::Error {
    let path = crate::base::shell::quoted(path);
    let back = if form == "streamOptimized" {
        "-O vmdk -o subformat=streamOptimized"
    } else {
        "-O vmdk"
    };
    Refusal::new(
        format!(
            "{path} is a VMDK image of the kind {form}, which can be inspected here, but not be \
             written to"
        ),
        "nothing was changed",
        format!(
            "qemu-img convert -f vmdk -O raw {path} {path}.raw, then rescue repair {path}.raw, \
             then qemu-img convert -f raw {back} {path}.raw {path}.repaired"
        ),
    )
    .into()
}
