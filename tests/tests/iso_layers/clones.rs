//! btrfs under the ISO's own kernel: with a disk and its clone attached, which share every UUID,
//! both are looked at, and the one that is meant is repaired.

use std::fs;
use std::path::Path;

use anyhow::{Result, ensure};
use tests::Cmd;
use tests::disk::{DiskBuilder, FileSystem, MIB, Partition};
use tests::fixtures::unpack_small_control_plane;
use tests::mounts::in_private_namespace;
use tests::qemu::Machine;

use crate::{Disk, Mounted, REPAIR, Rack, assert_certificates, rescue};

pub struct Clones {
    untouched: Disk,
    hash: String,
    meant: Disk,
    /// Both, the one that is meant second.
    names: [String; 2],
}

/// Ubuntu's layout, with a snapshot of the root beside it.
fn node(path: &Path) -> Result<Disk> {
    let root = Partition::new(FileSystem::Btrfs, "/")
        .label("root")
        .mkfs(["--mixed"]);
    let disk = DiskBuilder::new(160 * MIB).partition(root).build(path)?;
    disk.mounted(|top| {
        let root = top.join("@");
        Cmd::new("btrfs")
            .args(["subvolume", "create"])
            .arg(&root)
            .ok()?;
        unpack_small_control_plane(&root)?;
        fs::write(root.join("etc/fstab"), "LABEL=root / btrfs subvol=@ 0 1\n")?;
        fs::create_dir(root.join(".snapshots"))?;
        let snapshot = root.join(".snapshots/1");
        Cmd::new("btrfs")
            .args(["subvolume", "snapshot", "-r"])
            .arg(&root)
            .arg(snapshot)
            .ok()
            .map(drop)
    })?;
    Ok(disk)
}

impl Clones {
    pub fn prepare(folder: &Path, rack: &mut Rack) -> Result<Self> {
        let untouched = node(&folder.join("btrfs.img"))?;
        let meant = untouched.copy_to(&folder.join("btrfs-clone.img"))?;
        let names = [&untouched, &meant].map(|disk| rack.add(&disk.path));
        Ok(Self {
            hash: untouched.sha256()?,
            untouched,
            meant,
            names,
        })
    }

    pub fn work(&self, machine: &mut Machine) -> Result<()> {
        let [other, meant] = &self.names;
        let said = rescue(
            machine,
            &format!("{REPAIR} --node {meant} {other} {meant}"),
            0,
        )?;
        ensure!(
            said.contains("Repaired k8s-master01") && said.contains(&format!("{meant}1[/@]")),
            "{said}"
        );
        Ok(())
    }

    pub fn judge(&self) -> Result<()> {
        ensure!(
            self.untouched.sha256()? == self.hash,
            "the other clone was written to"
        );
        self.meant.assert_clean()?;
        in_private_namespace(|| {
            let device = self.meant.attach(0, true)?;
            let at = tempfile::tempdir()?;
            let mount = Mounted::mount(device.device(), at.path(), "ro,subvol=@")?;
            assert_certificates(at.path())?;
            mount.unmount()
        })
    }
}
