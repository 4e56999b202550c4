//! A guest opened for writing: its file systems mounted by the kernel, seen by nobody else, and
//! locked against everybody else.

use crate::base::shell;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::io::Errno;

use super::confined::Confined;
use super::kept::KeepIn;
use super::write_device::{self, Claims, Devices, WriteDevice, claim_disks};
use crate::base::refusal::Refusal;
use crate::base::ui::Ui;
use crate::disk::Backing;
use crate::disk::{ReadAt, btrfs};
use crate::fsck::Verdict;
use crate::guest::{FileSystem, Guest, RealPath};
use crate::in_use;
use crate::mount::Mount;
use crate::tree::Tree;

/// How a guest is opened for writing.
#[derive(Debug, Clone)]
pub struct OpenOptions {
    /// Time between the two looks that tell a disk in use elsewhere.
    pub between_looks: Duration,
}

impl Default for OpenOptions {
    fn default() -> Self {
        Self {
            between_looks: Duration::from_secs(1),
        }
    }
}

/// A guest that can be written to. Dropping it unmounts what was mounted for it;
/// [`WritableGuest::close`] says whether that went well.
#[derive(Debug)]
pub struct WritableGuest {
    // The order of the fields is the order of taking down: files before mounts, mounts before their
    // devices, locks last.
    guest: Guest,
    confined: Rc<Confined>,
    mounts: Vec<Mount>,
    devices: Vec<Rc<WriteDevice>>,
    claims: Claims,
    keep_in: Option<Rc<KeepIn>>,
    checked: Vec<Verdict>,
}

impl WritableGuest {
    /// With a folder of this machine for what does not fit on the guest.
    #[must_use]
    pub fn keeping_in(self, keep_in: Option<Rc<KeepIn>>) -> Self {
        Self { keep_in, ..self }
    }

    /// Where to keep what does not fit on the guest.
    pub(super) fn keep_in(&self) -> Option<Rc<KeepIn>> {
        self.keep_in.clone()
    }

    /// Opens the file systems of a guest for writing, after checking that nobody else uses them.
    /// Every "no" is a [`Refusal`] (by downcast).
    ///
    /// Take `source` and `file_systems` from the [`Guest`], then drop the guest and all its trees
    /// before calling: what was read through a whole device is not what is written through its
    /// partition, and a layer over an image must not outlive its bytes.
    pub fn open(source: &str, file_systems: &[FileSystem]) -> Result<Self> {
        Self::open_with(source, file_systems, &OpenOptions::default())
    }

    /// As [`WritableGuest::open`], with options.
    pub fn open_with(
        source: &str,
        file_systems: &[FileSystem],
        options: &OpenOptions,
    ) -> Result<Self> {
        Self::open_after(source, file_systems, options, |_| Ok(Vec::new()))
    }

    /// As [`WritableGuest::open`], after a look at each file system with its checker
    /// ([`crate::repair::before_writing::refuse_damaged`]).
    pub fn open_checked(source: &str, file_systems: &[FileSystem], ui: &dyn Ui) -> Result<Self> {
        let check = |looks: &[(&FileSystem, Arc<dyn ReadAt>)]| {
            crate::repair::before_writing::refuse_damaged(looks, ui)
        };
        Self::open_after(source, file_systems, &OpenOptions::default(), check)
    }

    /// `check` is given the bytes of each file system, once all disks are claimed and before
    /// anything is mounted.
    fn open_after(
        source: &str,
        file_systems: &[FileSystem],
        options: &OpenOptions,
        check: impl FnOnce(&[(&FileSystem, Arc<dyn ReadAt>)]) -> Result<Vec<Verdict>>,
    ) -> Result<Self> {
        let claims = claim_disks(file_systems)?;
        refuse_damaged(file_systems, &claims)?;
        refuse_moving(file_systems, &claims, options.between_looks)?;
        let checked = check(&looks(file_systems, &claims)?)?;

        let mut devices = Vec::new();
        let mut made = Devices::new(&claims);
        let mut mounts = Vec::new();
        let mut folders = Vec::new();
        for file_system in file_systems {
            match &file_system.backing {
                Backing::Folder(folder) => folders.push((file_system, open_folder(folder)?)),
                // Another subvolume of what is mounted already.
                backing if is_open(&mounts, backing) => {}
                Backing::Range { .. } | Backing::Stacked(_) => {
                    let (mount, device) = mount(file_system, &mut made)
                        .with_context(|| format!("opening {} for writing", file_system.device))?;
                    devices.push(device);
                    mounts.push((file_system, mount));
                }
            }
        }
        drop(made);
        let mut table = Vec::new();
        for (file_system, folder) in &folders {
            table.push((
                RealPath::from_mount_point(&file_system.mount_point),
                folder.as_fd(),
                file_system.kind.clone(),
            ));
        }
        let subvolumes = open_subvolumes(file_systems, &mounts)?;
        for (file_system, folder) in &subvolumes {
            table.push((
                RealPath::from_mount_point(&file_system.mount_point),
                folder.as_fd(),
                file_system.kind.clone(),
            ));
        }
        for (file_system, mount) in mounts
            .iter()
            .filter(|(file_system, _)| file_system.subvolume.is_none())
        {
            table.push((
                RealPath::from_mount_point(&file_system.mount_point),
                mount.as_fd(),
                file_system.kind.clone(),
            ));
        }
        let confined = Rc::new(Confined::new(table)?);
        lock(&confined, source)?;
        let tree: Rc<dyn Tree> = Rc::<Confined>::clone(&confined);
        let guest = Guest::new(source, tree, file_systems.to_vec());
        let mounts = mounts.into_iter().map(|(_, mount)| mount).collect();
        Ok(Self {
            guest,
            confined,
            mounts,
            devices,
            claims,
            keep_in: None,
            checked,
        })
    }

    /// The guest's files as they are now, through the same mounts. Clones of it and of its tree
    /// must be dropped before [`WritableGuest::close`].
    pub fn guest(&self) -> &Guest {
        &self.guest
    }

    /// What the checkers said of its file systems before anything was written; empty where they
    /// were not asked.
    pub fn checked(&self) -> &[Verdict] {
        &self.checked
    }

    /// The one writer.
    pub(super) fn confined(&self) -> &Confined {
        &self.confined
    }

    /// Synchronises, unmounts, and forgets what is cached of the disks, so that they can be read
    /// again.
    pub fn close(self) -> Result<()> {
        let Self {
            guest,
            confined,
            mounts,
            devices,
            claims,
            keep_in,
            checked: _,
        } = self;
        drop(keep_in);
        confined.sync_all()?;
        let is_btrfs = guest
            .file_systems
            .iter()
            .any(|file_system| file_system.kind == "btrfs");
        drop(guest);
        drop(confined);
        for mount in mounts {
            mount.unmount()?;
        }
        if is_btrfs {
            devices
                .iter()
                .filter(|device| device.is_ours())
                .for_each(|device| btrfs::forget(&device.path()));
        }
        drop(devices);
        for claim in claims.into_values() {
            claim.close()?;
        }
        Ok(())
    }
}

/// The bytes of each file system on a disk, as they are now.
fn looks<'a>(
    file_systems: &'a [FileSystem],
    claims: &Claims,
) -> Result<Vec<(&'a FileSystem, Arc<dyn ReadAt>)>> {
    let look = |file_system: &'a FileSystem| {
        let bytes = write_device::look(&file_system.backing, claims).transpose()?;
        Some(bytes.map(|bytes| (file_system, bytes)))
    };
    file_systems.iter().filter_map(look).collect()
}

/// Reads the flag afresh: what was seen while inspecting may be a while ago.
fn refuse_damaged(file_systems: &[FileSystem], claims: &Claims) -> Result<()> {
    for file_system in file_systems {
        let Some(bytes) = write_device::look(&file_system.backing, claims)? else {
            continue;
        };
        let flagged =
            file_system.kind.starts_with("ext") && in_use::has_error_flag(bytes.as_ref())?;
        if !(flagged || file_system.has_errors) {
            continue;
        }
        return Err(Refusal::new(
            format!("{} says of itself that it has errors", file_system.device),
            "writing to a damaged file system damages it further; it needs a check first",
            format!(
                "`rescue fsck {}`, which mends after asking what can be mended without loss, then \
                 run this again",
                shell::quoted(file_system.backing.first_path())
            ),
        )
        .into());
    }
    Ok(())
}

/// Two looks at each file system, with one pause for all of them.
fn refuse_moving(file_systems: &[FileSystem], claims: &Claims, pause: Duration) -> Result<()> {
    let mut first = Vec::new();
    for file_system in file_systems {
        if let Some(bytes) = write_device::look(&file_system.backing, claims)? {
            let seen = in_use::head(bytes.as_ref(), &file_system.kind)?;
            first.push((file_system, bytes, seen));
        }
    }
    if first.is_empty() {
        return Ok(());
    }
    std::thread::sleep(pause);
    for (file_system, bytes, seen) in first {
        if in_use::head(bytes.as_ref(), &file_system.kind)? != seen {
            return Err(Refusal::new(
                format!(
                    "{} changed while nobody on this machine writes to it",
                    file_system.device
                ),
                "the machine it belongs to is running, or another host has the disk: two writers \
                 would destroy it",
                "power that machine off and detach the disk from other hosts, then run this again",
            )
            .into());
        }
    }
    Ok(())
}

/// Mounts one file system for writing.
fn mount(file_system: &FileSystem, devices: &mut Devices<'_>) -> Result<(Mount, Rc<WriteDevice>)> {
    crate::mount::require_root("repairing a disk")?;
    let device = devices.open(&file_system.backing)?;
    let mount = mount_device(&device.path(), file_system)?;
    Ok((mount, device))
}

fn mount_device(device: &Path, file_system: &FileSystem) -> Result<Mount> {
    if file_system.kind != "btrfs" {
        return crate::mount::mount_writable(device, &file_system.kind);
    }
    let mount = crate::mount::mount_writable(device, &file_system.kind)
        .map_err(|error| btrfs::explain_known(error, device, file_system.uuid.as_deref()))?;
    btrfs::expect_on_device(&mount, device)?;
    Ok(mount)
}

fn is_open(mounts: &[(&FileSystem, Mount)], backing: &Backing) -> bool {
    mounts
        .iter()
        .any(|(there, _)| there.backing == *backing && there.subvolume.is_some())
}

/// The folders of all subvolumes, below the one mount of their file system. To the writer each is a
/// file system of its own: neither a rename nor a hard link leads from one into another.
fn open_subvolumes<'a>(
    file_systems: &'a [FileSystem],
    mounts: &[(&FileSystem, Mount)],
) -> Result<Vec<(&'a FileSystem, OwnedFd)>> {
    let mut folders = Vec::new();
    for file_system in file_systems {
        let Some(subvolume) = &file_system.subvolume else {
            continue;
        };
        let (_, mount) = mounts
            .iter()
            .find(|(there, _)| there.backing == file_system.backing)
            .with_context(|| format!("{} was not mounted", file_system.device))?;
        let folder = btrfs::open_subvolume(mount, &subvolume.path, subvolume.id)
            .with_context(|| format!("opening {} for writing", file_system.device))?;
        folders.push((file_system, folder));
    }
    Ok(folders)
}

fn open_folder(folder: &Path) -> Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(folder, flags, Mode::empty())
        .with_context(|| format!("opening the folder {}", folder.display()))
}

/// One repair at a time. The lock is on the guest's root folder itself: it needs no inode on a full
/// disk, and dies with us.
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
