//! Block devices: mounts in any namespace, swap, device-mapper and RAID above it, exclusive
//! openers, other writers.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::{file, holders, openers};
use crate::base::refusal::Refusal;

/// A block device as sysfs shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Device {
    /// `sdb`, `sdb1`.
    name: String,
    /// `8:16`.
    number: String,
    sysfs: PathBuf,
    /// First byte on the disk, 0 for a disk.
    offset: u64,
    /// Length in bytes.
    length: u64,
}

impl Device {
    fn at(sysfs: &Path) -> Result<Self> {
        let sysfs = sysfs
            .canonicalize()
            .with_context(|| format!("looking at {}", sysfs.display()))?;
        let read =
            |name: &str| fs::read_to_string(sysfs.join(name)).map(|text| text.trim().to_owned());
        // sysfs counts in units of 512 bytes, whatever the sector size.
        let bytes = |name: &str| {
            read(name)
                .ok()
                .and_then(|text| text.parse::<u64>().ok())
                .unwrap_or(0)
                .saturating_mul(512)
        };
        let name = sysfs
            .file_name()
            .map(|name| name.to_string_lossy().into_owned())
            .unwrap_or_default();
        let number = read("dev").with_context(|| format!("reading the device number of {name}"))?;
        Ok(Self {
            name,
            number,
            offset: bytes("start"),
            length: bytes("size"),
            sysfs,
        })
    }

    /// sysfs writes `!` where the name has a slash (`cciss!c0d0`).
    fn node(&self) -> PathBuf {
        Path::new("/dev").join(self.name.replace('!', "/"))
    }

    fn is_partition(&self) -> bool {
        self.sysfs.join("partition").exists()
    }
}

/// The disk that `path` is on, with its partitions; disk first.
fn family(path: &Path) -> Result<Vec<Device>> {
    let itself = of_node(path)?;
    let disk = if itself.is_partition() {
        Device::at(
            itself
                .sysfs
                .parent()
                .context("a partition without a disk")?,
        )?
    } else {
        itself
    };
    let mut devices = vec![disk.clone()];
    for entry in fs::read_dir(&disk.sysfs)
        .with_context(|| format!("listing the partitions of {}", disk.name))?
        .flatten()
    {
        if entry.path().join("partition").exists() {
            devices.push(Device::at(&entry.path())?);
        }
    }
    Ok(devices)
}

fn of_node(path: &Path) -> Result<Device> {
    let number = fs::metadata(path)
        .with_context(|| format!("looking at {}", path.display()))?
        .rdev();
    let (major, minor) = (rustix::fs::major(number), rustix::fs::minor(number));
    Device::at(Path::new(&format!("/sys/dev/block/{major}:{minor}")))
}

/// The nodes of the disk that `path` is on and of its partitions, the disk first.
pub fn nodes(path: &Path) -> Result<Vec<PathBuf>> {
    Ok(family(path)?.iter().map(Device::node).collect())
}

/// The number of a device, `8:17`.
pub fn number(path: &Path) -> Result<String> {
    of_node(path).map(|device| device.number)
}

/// The number of the disk that `path` is on, `8:16`.
pub fn disk_number(path: &Path) -> Result<String> {
    family(path)?
        .first()
        .map(|disk| disk.number.clone())
        .context("a device without a disk")
}

/// Whether it is a disk, no partition.
pub fn is_disk(path: &Path) -> bool {
    of_node(path).is_ok_and(|device| !device.is_partition())
}

/// What tells the disk under a number from another one that has the number later: its sequence
/// number (Linux 5.15), and its length in bytes.
pub fn generation(path: &Path) -> Result<String> {
    let disk = family(path)?
        .into_iter()
        .next()
        .context("a device without a disk")?;
    let sequence = fs::read_to_string(disk.sysfs.join("diskseq")).unwrap_or_default();
    Ok(format!("{} {}", sequence.trim(), disk.length))
}

/// The node for a range of the device at `path`.
pub fn node_of(path: &Path, offset: u64, length: u64) -> Result<Option<PathBuf>> {
    let itself = of_node(path)?;
    if offset == 0 && length == itself.length {
        return Ok(Some(path.to_path_buf()));
    }
    // A partition that the kernel knows must be used through its node, even when the file system on
    // it is shorter: writing the same bytes through two devices would let the caches disagree.
    let from = itself.offset.saturating_add(offset);
    let found = family(path)?.into_iter().find(|device| {
        device.is_partition()
            && device.offset == from
            && length <= device.length
            && device.node().exists()
    });
    Ok(found
        .map(|device| device.node())
        .or_else(|| (offset == 0).then(|| path.to_path_buf())))
}

/// Refuses a device when it, its disk or a partition of that disk is used by anything.
pub fn refuse_in_use(path: &Path) -> Result<()> {
    let devices = family(path)?;
    for device in &devices {
        if fs::read_to_string(device.sysfs.join("ro")).is_ok_and(|ro| ro.trim() == "1") {
            return Err(Refusal::new(
                format!("{} is read-only", device.node().display()),
                "nothing can be repaired on it",
                "attach it writable (`blockdev --setrw` where only this system set it so), then \
                 run this again",
            )
            .into());
        }
        if let Some((mount_point, whose)) = mounted(device) {
            return Err(is_mounted(device, &mount_point, &whose).into());
        }
        if is_swap(device) {
            let node = device.node();
            return Err(used(
                format!("{} is used as swap", node.display()),
                format!("`swapoff {}`, then run this again", node.display()),
            ));
        }
        holders::refuse_held(&device.sysfs, &device.node())?;
        if let Some(above) =
            loop_device_over(device).filter(|above| !holders::is_ours_and_gone(above))
        {
            return Err(file::shown_as(&device.node(), &above).into());
        }
    }
    let nodes: Vec<PathBuf> = devices.iter().map(Device::node).collect();
    if let Some(opener) = openers::writing(&nodes) {
        return Err(used(
            format!(
                "{} is open for writing in {} (process {})",
                opener.path.display(),
                opener.name,
                opener.pid
            ),
            "power that machine off or end that program, then run this again".to_owned(),
        ));
    }
    refuse_exclusively_open(&devices)
}

/// How this machine itself uses a disk, half a sentence; `None` where it does not.
pub fn used_here(path: &Path) -> Result<Option<String>> {
    for device in family(path)? {
        let node = device.node();
        if let Some((mount_point, whose)) = mounted(&device) {
            return Ok(Some(format!(
                "{} is mounted on {mount_point}{whose}",
                node.display()
            )));
        }
        if is_swap(&device) {
            return Ok(Some(format!("{} is used as swap", node.display())));
        }
        if let Some(what) = holders::held_by(&device.sysfs) {
            return Ok(Some(format!("{} is {what}", node.display())));
        }
        if let Some(above) = loop_device_over(&device) {
            return Ok(Some(format!(
                "{} is shown as {}",
                node.display(),
                above.display()
            )));
        }
    }
    Ok(None)
}

/// A loop device over this one: it claims nothing.
fn loop_device_over(device: &Device) -> Option<PathBuf> {
    file::loop_device_over(&fs::metadata(device.node()).ok()?)
}

fn used(saw: String, next: String) -> anyhow::Error {
    Refusal::new(saw, "two writers at the same time would destroy it", next).into()
}

fn is_mounted(device: &Device, mount_point: &str, whose: &str) -> Refusal {
    let node = device.node();
    if mount_point == "/" && whose.is_empty() {
        return Refusal::new(
            format!(
                "{} holds the root of the system that is running here",
                node.display()
            ),
            "a system cannot be repaired from itself",
            "attach the broken machine's disk to this one, or boot the rescue ISO, and name that \
             disk",
        );
    }
    Refusal::new(
        format!("{} is mounted on {mount_point}{whose}", node.display()),
        "writing beside a mounted file system would destroy it",
        format!("`umount {mount_point}`, then run this again"),
    )
}

/// The device as a whole cannot be opened exclusively while it or a partition of it is claimed by
/// anything in the kernel.
fn refuse_exclusively_open(devices: &[Device]) -> Result<()> {
    for node in devices
        .iter()
        .map(Device::node)
        .filter(|node| node.exists())
    {
        match rustix::fs::open(
            &node,
            OFlags::RDONLY | OFlags::EXCL | OFlags::CLOEXEC,
            Mode::empty(),
        ) {
            Ok(_) => {}
            Err(Errno::BUSY) => {
                return Err(used(
                    format!(
                        "{} is in use by the kernel or by another program that claims it for \
                         itself",
                        node.display()
                    ),
                    format!(
                        "find out who (`lsblk {}`, `fuser -v {0}`), then run this again",
                        node.display()
                    ),
                ));
            }
            // An extended partition is too short to be opened, a CD without a medium cannot be:
            // neither is in use.
            Err(Errno::NXIO | Errno::NOMEDIUM | Errno::NODEV) => {}
            Err(error) => return Err(error).with_context(|| format!("opening {}", node.display())),
        }
    }
    Ok(())
}

fn is_swap(device: &Device) -> bool {
    let swaps = fs::read_to_string("/proc/swaps").unwrap_or_default();
    let mut lines = swaps
        .lines()
        .skip(1)
        .filter_map(|line| line.split_whitespace().next());
    lines.any(|swap| fs::metadata(swap).is_ok_and(|meta| is_number(meta.rdev(), &device.number)))
}

fn is_number(number: u64, text: &str) -> bool {
    format!(
        "{}:{}",
        rustix::fs::major(number),
        rustix::fs::minor(number)
    ) == text
}

/// Where a device is mounted in any mount namespace that can be seen from here, and whose that is
/// (empty: ours).
fn mounted(device: &Device) -> Option<(String, String)> {
    let mut namespaces = BTreeSet::new();
    let mut processes = vec!["self".to_owned(), "1".to_owned()];
    processes.extend(
        fs::read_dir("/proc")
            .ok()?
            .flatten()
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .filter(|name| name.bytes().all(|byte| byte.is_ascii_digit())),
    );
    for process in processes {
        let folder = Path::new("/proc").join(&process);
        let Ok(namespace) = fs::read_link(folder.join("ns/mnt")) else {
            continue;
        };
        if !namespaces.insert(namespace) {
            continue;
        }
        let Ok(table) = fs::read_to_string(folder.join("mountinfo")) else {
            continue;
        };
        if let Some(mount_point) = find_mount(&table, device) {
            let whose = if process == "self" {
                String::new()
            } else {
                format!(" in the namespace of process {process}")
            };
            return Some((mount_point, whose));
        }
    }
    None
}

/// Third field: device number, fifth: mount point, the second after ` - `: source
/// (proc_pid_mountinfo(5)). btrfs has a number of its own, so the source counts too.
fn find_mount(table: &str, device: &Device) -> Option<String> {
    let node = device.node();
    table.lines().find_map(|line| {
        let (left, right) = line.split_once(" - ")?;
        let mut fields = left.split(' ');
        let number = fields.nth(2)?;
        let mount_point = fields.nth(1)?;
        let source = right.split(' ').nth(1)?;
        let found = number == device.number || Path::new(source) == node;
        found.then(|| {
            mount_point
                .replace("\\040", " ")
                .replace(|c: char| c.is_control(), "?")
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_mounts_by_number_and_by_source() {
        let device = Device {
            name: "sdb1".to_owned(),
            number: "8:17".to_owned(),
            sysfs: PathBuf::new(),
            offset: 1 << 20,
            length: 1 << 30,
        };
        let ext4 = "36 35 8:17 / /mnt/a\\040b rw,noatime shared:1 - ext4 /dev/disk/by-id/x rw\n";
        assert_eq!(find_mount(ext4, &device).as_deref(), Some("/mnt/a b"));
        let btrfs = "36 35 0:44 /@ /srv rw - btrfs /dev/sdb1 rw\n";
        assert_eq!(find_mount(btrfs, &device).as_deref(), Some("/srv"));
        let other = "36 35 8:1 / / rw shared:1 - ext4 /dev/sda1 rw\nbroken line\n36 35 8:18 - x\n";
        assert_eq!(find_mount(other, &device), None);
    }
}
