//! What only the ISO's kernel can do, in one machine: a repair made elsewhere taken back, encrypted
//! disks written to by dm-crypt, mirrors made and written to by md, and one of two btrfs that share
//! every UUID.

mod clones;
mod encrypted;
mod mirrors;
mod taken_back;

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use tests::disk::{Disk, DiskBuilder, FileSystem, MIB, Partition, Table};
use tests::fixtures::unpack_small_control_plane;
use tests::mounts::Mounted;
use tests::qemu::{BOOT, Controller, Firmware, Machine, Medium, Vm, iso};
use tests::{fixtures, judge};

/// Making keys is what a repair spends its time with where every instruction is emulated; other
/// tests do that.
const REPAIR: &str = "rescue repair --yes --skip etcd --reuse-keys";
/// How long one command may take in an emulated machine.
const ANSWER: Duration = Duration::from_secs(600);

/// A machine that is being put together, and what its disks will be called.
struct Rack {
    vm: Vm,
    disks: u8,
}

impl Rack {
    /// Attaches an image; its name in the machine.
    fn add(&mut self, image: &Path) -> String {
        self.vm.attach(Controller::VirtioBlk, image);
        self.disks += 1;
        format!("/dev/vd{}", char::from(b'a' + self.disks - 1))
    }
}

/// A small control plane whose certificates are over, without etcd's data, on a bare ext4.
fn control_plane(path: &Path) -> Result<Disk> {
    let root = Partition::new(FileSystem::Ext4, "/")
        .uuid(fixtures::ROOT_UUID)
        .mkfs(["-b", "4096"]);
    let disk = DiskBuilder::new(72 * MIB)
        .table(Table::Bare)
        .partition(root)
        .build(path)?;
    disk.mounted(unpack_small_control_plane)?;
    Ok(disk)
}

/// Runs a command of `rescue` in the machine's shell, and insists on its exit code.
fn rescue(machine: &mut Machine, command: &str, code: u8) -> Result<String> {
    let said = machine.shell(&format!("{command}; echo code $?"), ANSWER)?;
    ensure!(said.contains(&format!("\ncode {code}\n")), "{said}");
    Ok(said)
}

/// openssl accepts every certificate of the mounted guest today.
fn assert_certificates(root: &Path) -> Result<()> {
    for leaf in judge::certificates(root)? {
        ensure!(leaf.verdict.good, "{}: {}", leaf.name, leaf.verdict.says);
    }
    Ok(())
}

/// The same of a file system's image, which must be sound, too.
fn assert_repaired(disk: &Disk) -> Result<()> {
    disk.assert_clean()?;
    disk.mounted_read_only(assert_certificates)
        .with_context(|| format!("judging {}", disk.path.display()))
}

#[test]
fn taken_back_encrypted_mirrored_and_cloned() -> Result<()> {
    let folder = tempfile::Builder::new()
        .prefix("rescue-iso-layers-")
        .tempdir()?;
    let iso = iso(&[
        "rescue.auto=undo",
        "rescue.node=/dev/vda",
        "rescue.after=shell",
    ])?;
    let mut rack = Rack {
        vm: Vm::new(Firmware::Bios, Medium::Cd, &iso, 512),
        disks: 0,
    };
    let taken_back = taken_back::Node::prepare(folder.path(), &mut rack)?;
    let encrypted = encrypted::Nodes::prepare(folder.path(), &mut rack)?;
    let mirrors = mirrors::Mirrors::prepare(folder.path(), &mut rack)?;
    let clones = clones::Clones::prepare(folder.path(), &mut rack)?;

    let mut machine = rack.vm.start()?;
    let took = |machine: &Machine, what: &str| {
        eprintln!("{what}: {:.1} s after power on", machine.up().as_secs_f64())
    };
    machine.expect("=== rescue receipt", BOOT)?;
    took(&machine, "started");
    taken_back.unattended(&mut machine)?;
    took(&machine, "undone unattended");
    encrypted.work(&mut machine)?;
    took(&machine, "encrypted disks repaired");
    mirrors.work(&mut machine)?;
    took(&machine, "mirrors made and repaired");
    clones.work(&mut machine)?;
    took(&machine, "one clone repaired");
    taken_back.in_the_menu(&mut machine, encrypted::PASSPHRASE)?;
    machine.wait_off(ANSWER)?;
    took(&machine, "undone from the menu");
    let said = machine.transcript();
    drop(machine);
    ensure!(
        !said.contains("Kernel panic") && !said.contains("panicked at"),
        "{said}"
    );

    taken_back.judge()?;
    encrypted.judge()?;
    mirrors.judge()?;
    clones.judge()?;
    Ok(())
}
