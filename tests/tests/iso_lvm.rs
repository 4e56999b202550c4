//! Logical volumes repaired by the kernel's device-mapper, in the ISO: the outage's own machine
//! beside a copy of its disk, a volume in stripes over two disks, and runs that are killed at the
//! worst moment.

use std::path::Path;
use std::time::Duration;

use anyhow::{Result, ensure};
use tests::disk::{DiskBuilder, FileSystem, MIB, Partition, Table};
use tests::programs::faulty_binary;
use tests::qemu::{BOOT, Controller, Firmware, Machine, Medium, Vm, iso_of};
use tests::{Cmd, Disk, centos, fill, judge, lvm, rescue};

/// How long a repair may take in an emulated machine.
const REPAIR: Duration = Duration::from_secs(600);
const ANSWER: Duration = Duration::from_secs(300);
const STRIPE: u64 = 64 << 10;

/// Runs a command in the machine's shell and gives its output.
fn shell(machine: &mut Machine, command: &str) -> Result<String> {
    machine.shell(command, ANSWER)
}

/// Makes another machine of a clone of the template: its own name and machine-id, and no node yet.
fn into_another_machine(root: &Path) -> Result<()> {
    std::fs::write(root.join("etc/hostname"), "another-machine\n")?;
    std::fs::write(
        root.join("etc/machine-id"),
        "0123456789abcdef0123456789abcdef\n",
    )?;
    for folder in ["etc/kubernetes", "var/lib/kubelet", "var/lib/etcd"] {
        std::fs::remove_dir_all(root.join(folder))?;
    }
    Ok(())
}

#[test]
fn the_outages_machine_beside_its_clone_and_a_striped_volume_killed_at_the_worst_moment()
-> Result<()> {
    let folder = tempfile::tempdir()?;
    let at = |name: &str| folder.path().join(name);
    let node = centos::control_plane(&at("node.img"), 600 * MIB)?;
    let clone = node.copy_to(&at("clone.img"))?;
    clone.mounted(into_another_machine)?;
    node.mounted(fill::to_enospc)?;
    centos::cut_power(&node, |root| {
        Ok(std::fs::write(root.join("etc/motd"), "written last\n")?)
    })?;
    let before = clone.sha256()?;

    // A control plane on a volume in stripes over two whole disks, in a group that is called
    // `centos`, too.
    let striped = [at("stripe0.img"), at("stripe1.img")];
    let file_system = at("file-system.img");
    let bare = |path: &Path| -> Result<Disk> {
        let root = Partition::new(FileSystem::Ext4, "/").uuid(tests::fixtures::ROOT_UUID);
        DiskBuilder::new(352 * MIB)
            .table(Table::Bare)
            .partition(root)
            .build(path)
    };
    bare(&file_system)?.populate_control_plane()?;
    // The bitmap forgets blocks that files use.
    Cmd::new("debugfs")
        .args(["-w", "-R", "freeb 20000 2000"])
        .arg(&file_system)
        .ok()?;
    for disk in &striped {
        std::fs::File::create(disk)?.set_len(200 * MIB)?;
    }
    let places = lvm::on(&striped, |devices, run| {
        let names: Vec<&str> = devices.iter().map(String::as_str).collect();
        run(&[&["pvcreate", "-q"], names.as_slice()].concat())?;
        run(&[&["vgcreate", "-q", "centos"], names.as_slice()].concat())?;
        let create = [
            "lvcreate", "-q", "-an", "-Zn", "-Wn", "-n", "root", "-L", "352m",
        ];
        run(&[create.as_slice(), &["-i", "2", "-I", "64k", "centos"]].concat())?;
        lvm::Places::of("centos/root", STRIPE, devices, &striped, run)
    })?;
    places.pour(&file_system)?;

    let iso = iso_of(
        &faulty_binary(),
        &[
            "rescue.auto=repair",
            "rescue.node=/dev/vdb",
            "rescue.after=shell",
        ],
    )?;
    let mut vm = Vm::new(Firmware::Bios, Medium::Cd, &iso, 512);
    for image in [&clone.path, &node.path, &striped[0], &striped[1]] {
        vm = vm.disk(Controller::VirtioBlk, image);
    }
    let mut vm = vm.start()?;
    vm.expect("=== rescue receipt", BOOT)?;
    let said = vm.expect("rescue: exit ", REPAIR)?;
    ensure!(said.contains("Repaired k8s-master01"), "{said}");
    vm.expect("0\n", ANSWER)?;
    vm.expect("This is a shell.", ANSWER)?;
    let left = shell(
        &mut vm,
        "ls /sys/block | grep dm-; grep -c dm_mod /proc/modules",
    )?;
    ensure!(!left.contains("dm-0") && left.contains("\n1\n"), "{left}");

    // Damaged: the checker mends it on the volume, and no repair would begin before.
    let said = shell(
        &mut vm,
        "rescue fsck --yes /dev/vdc /dev/vdd; echo code $?; ls /sys/block/vdc/holders",
    )?;
    ensure!(
        said.contains("DAMAGED") && said.contains("e2fsck -f -p") && said.contains("code 0\n"),
        "{said}"
    );
    ensure!(
        said.contains("no damage found") && !said.contains("\ndm-"),
        "{said}"
    );

    // Killed before the device was marked for removal: it stays, and does not stand in the way.
    let repair = "rescue repair --yes /dev/vdc /dev/vdd";
    let said = shell(
        &mut vm,
        &format!("RESCUE_ABORT_AT=1 {repair}; cat /sys/block/vdc/holders/dm-*/dm/uuid"),
    )?;
    ensure!(
        said.contains("not yet marked for removal") && said.contains("RESCUE-"),
        "{said}"
    );
    // Killed while files change: nothing stays.
    let said = shell(
        &mut vm,
        &format!("RESCUE_ABORT_AT=60 {repair}; sleep 1; ls /sys/block/vdc/holders"),
    )?;
    ensure!(
        said.contains("abort at point 60") && !said.contains("\ndm-"),
        "{said}"
    );
    let said = shell(
        &mut vm,
        &format!("{repair}; echo code $?; ls /sys/block/vdd/holders"),
    )?;
    ensure!(
        said.contains("Repaired k8s-master01")
            && said.contains("code 0")
            && !said.contains("\ndm-"),
        "{said}"
    );
    let said = shell(
        &mut vm,
        "rescue repair --yes --node /dev/vdb /dev/vda /dev/vdb; echo code $?",
    )?;
    ensure!(said.contains("code 0"), "{said}");
    vm.send("poweroff -f\r")?;
    vm.wait_off(ANSWER)?;
    drop(vm);

    ensure!(clone.sha256()? == before, "the clone was written to");
    node.assert_clean()?;
    let judgement = judge::disk(&node)?;
    ensure!(judgement.healthy(), "{:#?}", judgement.rows());
    ensure!(
        node.mounted_read_only(|root| Ok(std::fs::read_to_string(root.join("etc/motd"))?))?
            == "written last\n"
    );

    let drawn = at("drawn.img");
    places.draw(&drawn)?;
    let drawn = Disk {
        path: drawn,
        ..bare(&at("unused.img"))?
    };
    drawn.assert_clean()?;
    let judgement = judge::disk(&drawn)?;
    ensure!(judgement.healthy(), "{:#?}", judgement.rows());
    let [first, second] = striped.each_ref().map(|path| path.to_string_lossy());
    rescue(["inspect", &first, &second]).ok()?;
    Ok(())
}
