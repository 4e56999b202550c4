//! Repairs from the ISO with nobody there, and with the plug pulled in the middle.

use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Result, ensure};
use tests::disk::{Disk, MIB, control_plane};
use tests::qemu::{BOOT, Controller, Firmware, Medium, Vm, iso};
use tests::{fill, judge, rescue};

/// How long a repair may take in an emulated machine.
const REPAIR: Duration = Duration::from_secs(400);
/// Everything said, the machine goes off.
const FAREWELL: Duration = Duration::from_secs(60);
const LITTLE_MEMORY: u32 = 256;

const PLAN: &str = "\nPlan\n";
const REPAIRED: &str = "\nRepaired ";

fn full_disk(path: &Path) -> Result<Disk> {
    let disk = control_plane(path, 1024 * MIB)?;
    disk.mounted(fill::to_enospc)?;
    Ok(disk)
}

fn machine(iso: &Path, disks: &[&Path]) -> Vm {
    let vm = Vm::new(Firmware::Bios, Medium::Cd, iso, LITTLE_MEMORY);
    disks
        .iter()
        .fold(vm, |vm, disk| vm.disk(Controller::VirtioBlk, disk))
}

fn assert_healthy(disk: &Disk) -> Result<()> {
    // A cut after the last change leaves nothing to repair, only a journal for the next boot to
    // replay: this is that boot.
    disk.mounted(|_| Ok(()))?;
    disk.assert_clean()?;
    let judgement = judge::disk(disk)?;
    ensure!(
        judgement.healthy(),
        "not healthy after the repair: {:#?}",
        judgement.rows()
    );
    Ok(())
}

fn modified(image: &Path) -> Result<SystemTime> {
    Ok(std::fs::metadata(image)?.modified()?)
}

/// Waits for the machine's first write to its disk, which was made at `made`.
fn wait_for_a_write(image: &Path, made: SystemTime) -> Result<()> {
    let deadline = Instant::now() + REPAIR;
    while modified(image)? == made {
        ensure!(Instant::now() < deadline, "the repair wrote nothing");
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}

#[test]
fn a_full_and_expired_control_plane_is_repaired_unattended_and_survives_five_power_cuts()
-> Result<()> {
    let folder = tempfile::tempdir()?;
    let iso = iso(&["rescue.auto=repair"])?;
    let broken = full_disk(&folder.path().join("broken.img"))?;

    let path = folder.path().join("whole.img");
    let whole = broken.copy_to(&path)?;
    let made = modified(&path)?;
    let mut vm = machine(&iso, &[&path]).start()?;
    vm.expect("=== rescue receipt", BOOT)?;
    vm.expect(PLAN, REPAIR)?;
    wait_for_a_write(&path, made)?;
    let began = vm.up();
    vm.expect(REPAIRED, REPAIR)?;
    let took = vm.up() - began;
    let said = vm.expect("rescue: exit ", FAREWELL)?;
    ensure!(said.contains("=== end of rescue receipt"), "{said}");
    vm.expect("0\n", FAREWELL)?;
    vm.wait_off(FAREWELL)?;
    eprintln!(
        "from the first write to the receipt: {:.1} s",
        took.as_secs_f64()
    );
    drop(vm);
    assert_healthy(&whole)?;

    let mut cut_in_the_middle = 0;
    for cut in 0..5 {
        let path = folder.path().join(format!("cut-{cut}.img"));
        let disk = broken.copy_to(&path)?;
        let made = modified(&path)?;
        let mut vm = machine(&iso, &[&path]).start()?;
        vm.expect(PLAN, BOOT + REPAIR)?;
        wait_for_a_write(&path, made)?;
        // Spread over the repair: while logs go, while blobs are staged, while files change.
        std::thread::sleep(took.mul_f64(f64::from(cut) / 5.0));
        vm.kill()?;
        let finished = vm.transcript().contains(REPAIRED);
        drop(vm);
        cut_in_the_middle += u32::from(!finished);
        let runs = rescue(["runs", &path.to_string_lossy()]).run()?;
        eprintln!(
            "cut {cut}: {}; {}",
            if finished {
                "too late"
            } else {
                "in the middle"
            },
            runs.stdout.trim()
        );
        if cut == 0 {
            let mut vm = machine(&iso, &[&path]).start()?;
            vm.expect("rescue: exit 0", BOOT + REPAIR)?;
            vm.wait_off(FAREWELL)?;
        } else {
            rescue(["repair", "--yes", &path.to_string_lossy()]).ok()?;
        }
        assert_healthy(&disk)?;
        std::fs::remove_file(&path)?;
    }
    ensure!(
        cut_in_the_middle >= 3,
        "only {cut_in_the_middle} of 5 cuts hit the repair while it wrote"
    );
    Ok(())
}

/// Makes another machine of a copy: its own name, machine-id and no node of the first one's
/// cluster.
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

/// Boots both disks with an unattended repair and expects it to be refused with `words`, and both
/// disks to stay as they are.
fn refused_unattended(disks: [&Disk; 2], words: &str) -> Result<()> {
    let before = disks
        .iter()
        .map(|disk| disk.sha256())
        .collect::<Result<Vec<_>>>()?;
    let mut vm = machine(
        &iso(&["rescue.auto=repair"])?,
        &disks.map(|disk| disk.path.as_path()),
    )
    .start()?;
    let said = vm.expect("rescue: exit 3", BOOT)?;
    ensure!(said.contains(words), "{said}");
    vm.wait_off(FAREWELL)?;
    ensure!(
        disks
            .iter()
            .map(|disk| disk.sha256())
            .collect::<Result<Vec<_>>>()?
            == before,
        "a refused repair changed a disk"
    );
    Ok(())
}

#[test]
fn two_systems_are_not_repaired_unattended() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let node = control_plane(&folder.path().join("node.img"), 512 * MIB)?;
    let copy = node.copy_to(&folder.path().join("copy.img"))?;
    refused_unattended([&node, &copy], "are copies of one system")?;
    copy.mounted(into_another_machine)?;
    refused_unattended([&node, &copy], "2 systems were found")
}

#[test]
fn an_argument_that_is_not_understood_stops_an_unattended_repair() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("disk.img");
    let disk = control_plane(&path, 512 * MIB)?;
    let before = disk.sha256()?;
    let mut vm = machine(
        &iso(&["rescue.auto=repair", "rescue.onyl=certificates"])?,
        &[&path],
    )
    .start()?;
    let said = vm.expect("rescue: exit 3", BOOT)?;
    ensure!(
        said.contains("rescue.onyl=certificates: there is no such setting"),
        "{said}"
    );
    vm.wait_off(FAREWELL)?;
    ensure!(
        disk.sha256()? == before,
        "a refused repair changed the disk"
    );
    Ok(())
}
