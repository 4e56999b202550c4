//! Under which UUID the kernel sees a btrfs.
//!
//! The kernel knows the devices of a btrfs by its UUID alone, in one table for the whole machine.
//! Two disks cloned from one template, or the helper's own disk and its copy, have the same: before
//! Linux 6.7 only one of them can be mounted, and a device with a known UUID may be taken for
//! another's. So a file system that is only looked at is shown under a UUID of its own, made for
//! the moment, in the throw-away layer; one that is written to keeps its UUID, and is looked at
//! again after mounting.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result};
use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::superblock::{
    self, FSID, HAS_METADATA_UUID, INCOMPATIBLE, LENGTH, METADATA_UUID, OFFSET,
};
use crate::base::refusal::Refusal;
use crate::base::sys;
use crate::disk::ReadAt;
use crate::disk::bytes::{le64, uuid};

/// The same bytes but for the superblock, which carries another UUID (as `btrfstune -m` makes it:
/// the blocks' own UUID moves to `metadata_uuid`, Linux 5.0).
pub struct UnderOwnUuid {
    below: Arc<dyn ReadAt>,
    superblock: Vec<u8>,
}

impl UnderOwnUuid {
    /// Over a btrfs. One whose checksum is of a kind that is not computed here keeps its UUID: it
    /// is returned as it is.
    pub fn over(below: Arc<dyn ReadAt>) -> Result<Arc<dyn ReadAt>> {
        let mut raw = vec![0; LENGTH];
        below
            .read_exact_at(&mut raw, OFFSET)
            .context("reading the btrfs superblock")?;
        let mut own = [0; 16];
        let filled = rustix::rand::getrandom(&mut own, rustix::rand::GetRandomFlags::empty());
        anyhow::ensure!(
            filled.is_ok_and(|length| length == own.len()),
            "making a UUID: no random numbers"
        );
        match with_uuid(&raw, &own) {
            Some(superblock) => Ok(Arc::new(Self { below, superblock })),
            None => Ok(below),
        }
    }
}

/// `None` where the checksum cannot be made, or was not right before: what is damaged must stay so
/// for the kernel to see.
fn with_uuid(raw: &[u8], own: &[u8; 16]) -> Option<Vec<u8>> {
    let sum = superblock::checksum(raw)?;
    if raw.get(..sum.len())? != sum.as_slice() || !superblock::is_in_place(raw) {
        return None;
    }
    let mut changed = raw.to_vec();
    let features = le64(raw, INCOMPATIBLE);
    if features & HAS_METADATA_UUID == 0 {
        let was = raw.get(FSID..FSID + 16)?;
        changed
            .get_mut(METADATA_UUID..METADATA_UUID + 16)?
            .copy_from_slice(was);
        let features = (features | HAS_METADATA_UUID).to_le_bytes();
        changed
            .get_mut(INCOMPATIBLE..INCOMPATIBLE + 8)?
            .copy_from_slice(&features);
    }
    changed.get_mut(FSID..FSID + 16)?.copy_from_slice(own);
    let sum = superblock::checksum(&changed)?;
    changed.get_mut(..sum.len())?.copy_from_slice(&sum);
    Some(changed)
}

impl ReadAt for UnderOwnUuid {
    fn len(&self) -> u64 {
        self.below.len()
    }
    fn sector_size(&self) -> u32 {
        self.below.sector_size()
    }
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.below.read_exact_at(buffer, offset)?;
        let end = offset.saturating_add(buffer.len() as u64);
        let from = offset.max(OFFSET);
        let to = end.min(OFFSET + LENGTH as u64);
        if from < to {
            let (into, of) = ((from - offset) as usize, (from - OFFSET) as usize);
            let length = (to - from) as usize;
            buffer[into..into + length].copy_from_slice(&self.superblock[of..of + length]);
        }
        Ok(())
    }
}

impl std::fmt::Debug for UnderOwnUuid {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("UnderOwnUuid")
            .field("uuid", &uuid(&self.superblock, FSID))
            .finish_non_exhaustive()
    }
}

/// Makes sure that the btrfs mounted at `root` lies on `device` and on nothing else: the kernel
/// goes by UUID, and may know another disk by the same one.
///
/// # Errors
/// [`Refusal`] (by downcast) where it does not.
pub fn expect_on_device(root: impl AsFd, device: &Path) -> Result<()> {
    let wanted = rustix::fs::stat(device)
        .with_context(|| format!("looking at {}", device.display()))?
        .st_rdev;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::openat(root, ".", flags, Mode::empty())
        .context("opening the top level of the btrfs")?;
    let (highest, count) = sys::btrfs_devices(root.as_fd())
        .context("asking the kernel for the devices of the btrfs")?;
    let mut others = Vec::new();
    let mut found = 0;
    // Numbers of devices begin at 1 and are not reused; a file system that was converted or mended
    // has gaps.
    for number in 0..=highest.min(1024) {
        let Ok(path) = sys::btrfs_device_path(root.as_fd(), number) else {
            continue;
        };
        found += 1;
        let path = std::path::PathBuf::from(path);
        if rustix::fs::stat(&path).map(|stat| stat.st_rdev) != Ok(wanted) {
            others.push(crate::disk::shown(&path));
        }
    }
    if others.is_empty() && found == 1 && count == 1 {
        return Ok(());
    }
    let others = if others.is_empty() {
        format!("{count} devices")
    } else {
        others.join(" and ")
    };
    Err(Refusal::new(
        format!(
            "the kernel mounted {others} in the place of {}",
            device.display()
        ),
        "another disk with the same btrfs UUID is attached to this machine; the wrong one might be \
         written to; nothing was changed",
        "detach the other disk (or `btrfs device scan --forget`), then run this again",
    )
    .into())
}

/// Says what it means where the kernel would not mount `device` because it knows another one by the
/// same UUID.
pub fn explain_known(error: anyhow::Error, device: &Path, uuid: Option<&str>) -> anyhow::Error {
    let known = |cause: &(dyn std::error::Error + 'static)| {
        matches!(cause.downcast_ref(), Some(&(Errno::EXIST | Errno::BUSY)))
    };
    if !error.chain().any(known) {
        return error;
    }
    Refusal::new(
        format!(
            "the kernel knows another disk by the btrfs UUID of {}, {}",
            device.display(),
            uuid.unwrap_or("unknown")
        ),
        "this disk and that one are copies of each other, and this kernel can mount only one of \
         them; nothing was changed",
        "detach or unmount the other disk (`btrfs filesystem show` lists them), or `btrfs device \
         scan --forget`, then run this again",
    )
    .into()
}

/// The folder of one subvolume of the btrfs mounted at `top_level`, looked up afresh.
///
/// # Errors
/// [`Refusal`] (by downcast) where another subvolume is in its place.
pub fn open_subvolume(top_level: impl AsFd, path: &Path, id: u64) -> Result<OwnedFd> {
    let confined = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let relative = if path.as_os_str().is_empty() {
        Path::new(".")
    } else {
        path
    };
    let shown = crate::disk::shown(path);
    let folder = rustix::fs::openat2(top_level, relative, flags, Mode::empty(), confined)
        .with_context(|| format!("opening the subvolume /{shown}"))?;
    let there = sys::btrfs_subvolume_of(folder.as_fd())
        .with_context(|| format!("looking at the subvolume /{shown}"))?;
    if there != id {
        return Err(Refusal::new(
            format!("/{shown} is subvolume {there} now, and was {id} when the disk was looked at"),
            "somebody else changes this file system",
            "make sure that nobody else uses it, then run this again",
        )
        .into());
    }
    Ok(folder)
}

/// Makes the kernel forget a device of ours that is unmounted and about to go. What cannot be
/// forgotten is replaced at the next look.
pub fn forget(device: &Path) {
    if let Ok(control) = std::fs::File::options()
        .read(true)
        .write(true)
        .open("/dev/btrfs-control")
    {
        let _ = sys::btrfs_forget(control.as_fd(), device);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::Disk;
    use crate::disk::btrfs::BtrfsSuper;
    use std::process::Command;

    #[test]
    fn another_uuid_that_btrfs_itself_takes() {
        for kind in ["crc32c", "sha256", "xxhash"] {
            let image = tempfile::NamedTempFile::new().unwrap();
            image.as_file().set_len(112 << 20).unwrap();
            let made = Command::new("mkfs.btrfs")
                .args(["-q", "--csum", kind])
                .arg(image.path())
                .output()
                .unwrap();
            assert!(made.status.success(), "{made:?}");
            let bytes = Disk::open(image.path()).unwrap().bytes;
            let shown = UnderOwnUuid::over(Arc::clone(&bytes)).unwrap();
            let read = |from: &Arc<dyn ReadAt>| {
                let mut raw = vec![0; 3 * LENGTH];
                from.read_exact_at(&mut raw, OFFSET - LENGTH as u64)
                    .unwrap();
                raw
            };
            let (before, after) = (read(&bytes), read(&shown));
            if kind == "xxhash" {
                assert_eq!(before, after, "kept as it is");
                continue;
            }
            assert_eq!(before[..LENGTH], after[..LENGTH]);
            assert_eq!(before[2 * LENGTH..], after[2 * LENGTH..]);
            let (before, after) = (&before[LENGTH..2 * LENGTH], &after[LENGTH..2 * LENGTH]);
            assert_ne!(BtrfsSuper::uuid(before), BtrfsSuper::uuid(after));
            assert!(
                BtrfsSuper::parse(before).unwrap().checksum_fits
                    && BtrfsSuper::parse(after).unwrap().checksum_fits
            );
            // In pieces, as the kernel reads.
            let mut piece = [0; 100];
            shown
                .read_exact_at(&mut piece, OFFSET + FSID as u64 - 10)
                .unwrap();
            assert_eq!(piece[10..26], after[FSID..FSID + 16]);
            // btrfs's own checker walks every tree with it.
            let copy = tempfile::NamedTempFile::new().unwrap();
            std::fs::copy(image.path(), copy.path()).unwrap();
            std::os::unix::fs::FileExt::write_all_at(
                &std::fs::File::options()
                    .write(true)
                    .open(copy.path())
                    .unwrap(),
                after,
                OFFSET,
            )
            .unwrap();
            let check = Command::new("btrfs")
                .args(["check", "--super", "0"])
                .arg(copy.path())
                .output()
                .unwrap();
            assert!(check.status.success(), "{check:?}");
        }
    }

    #[test]
    fn a_damaged_superblock_stays_damaged() {
        let mut raw = vec![0; LENGTH];
        raw[0x40..0x48].copy_from_slice(b"_BHRfS_M");
        assert_eq!(with_uuid(&raw, &[1; 16]), None);
        assert!(!BtrfsSuper::parse(&raw).unwrap().checksum_fits);
        assert_eq!(BtrfsSuper::parse(&raw[..0x30]), None);
    }
}
