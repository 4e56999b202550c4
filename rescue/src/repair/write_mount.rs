//! A guest opened for writing: its file systems mounted by the kernel, seen by nobody else, and locked against everybody else.

use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::io::Errno;

use super::confined::Confined;
use super::in_use::{self, Claim};
use crate::disk::loop_device::{LoopDevice, LoopOptions};
use crate::guest::{Backing, FileSystem, Guest, RealPath, Tree};
use crate::mount::Mount;
use crate::refusal::Refusal;

/// How a guest is opened for writing.
#[derive(Debug, Clone)]
pub struct OpenOptions {
    /// Time between the two looks that tell a disk in use elsewhere.
    pub between_looks: Duration,
}

impl Default for OpenOptions {
    fn default() -> Self {
        Self { between_looks: Duration::from_secs(1) }
    }
}

/// A guest that can be written to. Dropping it unmounts what was mounted for it; [`WritableGuest::close`] says whether that
/// went well.
#[derive(Debug)]
pub struct WritableGuest {
    // The order of the fields is the order of taking down: files before mounts, mounts before loop devices, locks last.
    guest: Guest,
    confined: Rc<Confined>,
    mounts: Vec<Mount>,
    loops: Vec<LoopDevice>,
    claims: BTreeMap<PathBuf, Claim>,
}

impl WritableGuest {
    /// Opens the file systems of a guest for writing, after checking that nobody else uses them. Every "no" is a [`Refusal`] (by
    /// downcast).
    ///
    /// Take `source` and `file_systems` from the [`Guest`], then drop the guest and all its trees before calling: what was read
    /// through a whole device is not what is written through its partition, and a layer over an image must not outlive its bytes.
    pub fn open(source: &str, file_systems: &[FileSystem]) -> Result<Self> {
        Self::open_with(source, file_systems, &OpenOptions::default())
    }

    /// As [`WritableGuest::open`], with options.
    pub fn open_with(source: &str, file_systems: &[FileSystem], options: &OpenOptions) -> Result<Self> {
        let claims = claim_disks(file_systems)?;
        refuse_damaged(file_systems, &claims)?;
        refuse_moving(file_systems, &claims, options.between_looks)?;

        let mut loops = Vec::new();
        let mut mounts = Vec::new();
        let mut folders = Vec::new();
        for file_system in file_systems {
            match &file_system.backing {
                Backing::Folder(folder) => folders.push((file_system, open_folder(folder)?)),
                Backing::Logical { group, volume, .. } => return Err(logical(file_system, group, volume).into()),
                Backing::Range { .. } => {
                    let (mount, device) = mount(file_system, &claims)
                        .with_context(|| format!("opening {} for writing", file_system.device))?;
                    loops.extend(device);
                    mounts.push((file_system, mount));
                }
            }
        }
        let mut table = Vec::new();
        for (file_system, folder) in &folders {
            table.push((
                RealPath::from_mount_point(&file_system.mount_point),
                folder.as_fd(),
                file_system.kind.clone(),
            ));
        }
        for (file_system, mount) in &mounts {
            table.push((RealPath::from_mount_point(&file_system.mount_point), mount.as_fd(), file_system.kind.clone()));
        }
        let confined = Rc::new(Confined::new(table)?);
        lock(&confined, source)?;
        let tree: Rc<dyn Tree> = Rc::<Confined>::clone(&confined);
        let guest = Guest::new(source, tree, file_systems.to_vec());
        let mounts = mounts.into_iter().map(|(_, mount)| mount).collect();
        Ok(Self { guest, confined, mounts, loops, claims })
    }

    /// The guest's files as they are now, through the same mounts. Clones of it and of its tree must be dropped before
    /// [`WritableGuest::close`].
    pub fn guest(&self) -> &Guest {
        &self.guest
    }

    /// The one writer.
    pub(super) fn confined(&self) -> &Confined {
        &self.confined
    }

    /// Synchronises, unmounts, and forgets what is cached of the disks, so that they can be read again.
    pub fn close(self) -> Result<()> {
        let Self { guest, confined, mounts, loops, claims } = self;
        confined.sync_all()?;
        drop(guest);
        drop(confined);
        for mount in mounts {
            mount.unmount()?;
        }
        drop(loops);
        for claim in claims.into_values() {
            claim.forget_cached()?;
        }
        Ok(())
    }
}

/// Claims each disk once, however many of its file systems are opened, and before any of them is: our own mounts must not be
/// taken for somebody else's.
fn claim_disks(file_systems: &[FileSystem]) -> Result<BTreeMap<PathBuf, Claim>> {
    let mut claims = BTreeMap::new();
    for file_system in file_systems {
        if let Backing::Logical { group, volume, .. } = &file_system.backing {
            return Err(logical(file_system, group, volume).into());
        }
        if let Backing::Range { path, block_device, .. } = &file_system.backing
            && !claims.contains_key(path)
        {
            claims.insert(path.clone(), Claim::take(path, *block_device)?);
        }
    }
    Ok(claims)
}

/// Logical volumes are only read: the kernel has to lay them out for writing.
fn logical(file_system: &FileSystem, group: &str, volume: &str) -> Refusal {
    Refusal::new(
        format!("{} is a logical volume of LVM", file_system.device),
        "it can be inspected here, but not be written to yet; nothing was changed",
        format!(
            "on a helper VM whose own volume groups have other names, with no copy of this disk attached: `vgchange -ay {group}`, \
             then name /dev/{group}/{volume} (and its other volumes) instead of the disk"
        ),
    )
}

fn claim_of<'a>(claims: &'a BTreeMap<PathBuf, Claim>, path: &Path) -> Result<&'a Claim> {
    claims.get(path).with_context(|| format!("{} was not claimed", path.display()))
}

/// Reads the flag afresh: what was seen while inspecting may be a while ago.
fn refuse_damaged(file_systems: &[FileSystem], claims: &BTreeMap<PathBuf, Claim>) -> Result<()> {
    for file_system in file_systems {
        let Backing::Range { path, offset, length, .. } = &file_system.backing else { continue };
        let claim = claim_of(claims, path)?;
        let flagged = file_system.kind.starts_with("ext") && in_use::has_error_flag(claim.file(), *offset)?;
        if !(flagged || file_system.has_errors) {
            continue;
        }
        let next = match claim.node_of(*offset, *length)? {
            Some(node) => format!("`e2fsck -f {}`, then run this again", node.display()),
            None if *offset == 0 => format!("`e2fsck -f {}`, then run this again", path.display()),
            // util-linux takes both, and prints the device that it made.
            None => format!(
                "`L=$(losetup -f --show -o {offset} --sizelimit {length} '{}') && e2fsck -f $L; losetup -d $L`, then run this again",
                path.display()
            ),
        };
        return Err(Refusal::new(
            format!("{} says of itself that it has errors", file_system.device),
            "writing to a damaged file system damages it further; it needs a check first",
            next,
        )
        .into());
    }
    Ok(())
}

/// Two looks at each file system, with one pause for all of them.
fn refuse_moving(file_systems: &[FileSystem], claims: &BTreeMap<PathBuf, Claim>, pause: Duration) -> Result<()> {
    let mut first = Vec::new();
    for file_system in file_systems {
        if let Backing::Range { path, offset, .. } = &file_system.backing {
            let file = claim_of(claims, path)?.file();
            first.push((file_system, file, *offset, in_use::head(file, *offset, &file_system.kind)?));
        }
    }
    if first.is_empty() {
        return Ok(());
    }
    std::thread::sleep(pause);
    for (file_system, file, offset, seen) in first {
        if in_use::head(file, offset, &file_system.kind)? != seen {
            return Err(Refusal::new(
                format!("{} changed while nobody on this machine writes to it", file_system.device),
                "the machine it belongs to is running, or another host has the disk: two writers would destroy it",
                "power that machine off and detach the disk from other hosts, then run this again",
            )
            .into());
        }
    }
    Ok(())
}

/// Mounts one file system for writing, through the kernel's own partition node where there is one, else through a loop device.
fn mount(file_system: &FileSystem, claims: &BTreeMap<PathBuf, Claim>) -> Result<(Mount, Option<LoopDevice>)> {
    let Backing::Range { path, offset, length, sector_size, .. } = &file_system.backing else {
        anyhow::bail!("{} is no range of a disk", file_system.device);
    };
    crate::mount::require_root("repairing a disk")?;
    let claim = claim_of(claims, path)?;
    if let Some(node) = claim.node_of(*offset, *length)? {
        return Ok((crate::mount::mount_writable(&node, &file_system.kind)?, None));
    }
    let options = LoopOptions { offset: *offset, length: *length, sector_size: *sector_size, read_only: false };
    let device = LoopDevice::attach(claim.open_for_writing()?.as_fd(), &options)?;
    let mount = crate::mount::mount_writable(&device.path(), &file_system.kind)?;
    Ok((mount, Some(device)))
}

fn open_folder(folder: &Path) -> Result<std::os::fd::OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(folder, flags, Mode::empty()).with_context(|| format!("opening the folder {}", folder.display()))
}

/// One repair at a time. The lock is on the guest's root folder itself: it needs no inode on a full disk, and dies with us.
fn lock(confined: &Confined, source: &str) -> Result<()> {
    for root in confined.roots() {
        match rustix::fs::flock(root, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => {
                return Err(Refusal::new(
                    format!("another rescue is working on {source}"),
                    "two repairs at the same time would undo each other",
                    "wait for it to end, then run this again",
                )
                .into());
            }
            Err(error) => return Err(error).with_context(|| format!("locking {source}")),
        }
    }
    Ok(())
}
