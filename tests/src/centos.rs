//! A disk as CentOS 7's installer divides it, the kind that the outage was about: MBR, /boot on
//! XFS, and a volume group `centos` with swap and the root file system (XFS).

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};

use crate::command::Cmd;
use crate::disk::{Disk, DiskBuilder, FileSystem, MIB, Partition, Table, Volume};
use crate::lvm;
use crate::mounts::{Loop, wait_until_free};

/// mkfs.xfs makes nothing smaller than 300 MB.
const BOOT: u64 = 304 * MIB;
const SWAP_MIB: u64 = 16;

/// The whole disk, with a root of about `root` bytes that is empty. Its third volume is the root;
/// /boot is the first.
pub fn empty(path: &Path, root: u64) -> Result<Disk> {
    let size = BOOT + root + (SWAP_MIB + 8) * MIB;
    let builder = DiskBuilder::new(size).table(Table::Mbr);
    let mut disk = builder
        .partition(Partition::new(FileSystem::Xfs, "/boot").size(BOOT))
        .partition(Partition::unmounted(FileSystem::Nothing))
        .build(path)?;
    let physical = disk
        .volumes
        .get(1)
        .cloned()
        .context("no second partition")?;
    let (start, swap, root) = {
        let device = disk.attach(1, false)?;
        let name = device.device().to_string_lossy().into_owned();
        let lvm = |arguments: &[&str]| lvm::run(&[&name], arguments);
        let at = |field: &str, of: &str| lvm(&["lvs", "--noheadings", "-o", field, of]);
        lvm(&["pvcreate", "-q", &name])?;
        lvm(&["vgcreate", "-q", "centos", &name])?;
        let create = ["lvcreate", "-q", "-an", "-Zn", "-Wn", "-n"];
        let size = format!("{SWAP_MIB}m");
        lvm(&[create.as_slice(), &["swap", "-L", &size, "centos"]].concat())?;
        lvm(&[create.as_slice(), &["root", "-l", "100%FREE", "centos"]].concat())?;
        let start = lvm(&[
            "pvs",
            "--noheadings",
            "--units",
            "b",
            "--nosuffix",
            "-o",
            "pe_start",
        ])?;
        (
            start.trim().parse::<u64>()?,
            at("seg_pe_ranges", "centos/swap")?,
            at("seg_pe_ranges", "centos/root")?,
        )
    };
    // `/dev/loop0:4-228`, in extents of 4 MiB.
    for (ranges, mount_point, program) in [(swap, None, "mkswap"), (root, Some("/"), "mkfs.xfs")] {
        let (_, extents) = ranges.trim().split_once(':').context("no range")?;
        let (first, last) = extents.split_once('-').context("more than one range")?;
        let (first, last): (u64, u64) = (first.parse()?, last.parse()?);
        let (offset, size) = (
            physical.offset + start + first * 4 * MIB,
            (last + 1 - first) * 4 * MIB,
        );
        let device = Loop::attach(path, offset, size, 512, false)?;
        Cmd::new(program).arg("-f").arg(device.device()).ok()?;
        disk.volumes.push(Volume {
            offset,
            size,
            mount_point: mount_point.map(str::to_owned),
        });
    }
    wait_until_free(path)?;
    Ok(disk)
}

/// The same with the files of the real control-plane node on it, as CentOS lays them out. Its
/// kubelet's drop-in is below /usr/lib, where Kubernetes' own RPM puts it.
pub fn control_plane(path: &Path, root: u64) -> Result<Disk> {
    let disk = empty(path, root)?;
    disk.populate_control_plane()?;
    let boot = {
        let device = disk.attach(0, true)?;
        Cmd::new("blkid")
            .args(["-p", "-o", "value", "-s", "UUID"])
            .arg(device.device())
            .ok()?
            .stdout
    };
    disk.mounted(|root| {
        let drop_in = "usr/lib/systemd/system/kubelet.service.d/10-kubeadm.conf";
        ensure!(
            root.join(drop_in).is_file()
                && !root.join("etc/systemd/system/kubelet.service.d").exists()
        );
        let fstab = format!(
            "/dev/mapper/centos-root /     xfs  defaults 0 0\nUUID={} /boot xfs  defaults 0 0\n\
             /dev/mapper/centos-swap swap  swap defaults 0 0\n",
            boot.trim()
        );
        fs::write(root.join("etc/fstab"), fstab)?;
        let release = "NAME=\"CentOS Linux\"\nVERSION=\"7 (Core)\"\nID=\"centos\"\n\
            ID_LIKE=\"rhel fedora\"\nVERSION_ID=\"7\"\n\
            PRETTY_NAME=\"CentOS Linux 7 (Core)\"\n";
        fs::write(root.join("usr/lib/os-release"), release)?;
        crate::fixtures::clamp_times(root)
    })?;
    Ok(disk)
}

/// Pulls the plug on a mounted root: what `last` does to it is only in its log.
pub fn cut_power(disk: &Disk, last: impl FnOnce(&Path) -> Result<()> + Send) -> Result<()> {
    disk.mounted(|root| {
        last(root)?;
        Cmd::new("xfs_io")
            .args(["-x", "-c", "syncfs", "-c", "shutdown -f", "."])
            .dir(root)
            .ok()?;
        Ok(())
    })
}
