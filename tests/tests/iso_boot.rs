//! The ISO as a machine sees it: firmwares, media, controllers, consoles, and what happens when
//! something of ours dies.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use tests::command::Cmd;
use tests::disk::{MIB, control_plane};
use tests::fixtures;
use tests::qemu::{BOOT, Controller, Firmware, Machine, Medium, Vm, iso};

/// How long the machine may take to answer a key.
const ANSWER: Duration = Duration::from_secs(60);
/// What the product promises to work with, in MiB.
const LITTLE_MEMORY: u32 = 256;
/// … and under UEFI, where firmware, GRUB and the kernel's own loader hold memory side by side
/// before the kernel runs: Debian's 6.1 and 6.12 both stop with "Failed to decompress kernel" at
/// 256 under OVMF, and start at 288.
const LITTLE_MEMORY_UEFI: u32 = 320;

const MENU: &str = "rescue> ";
const SHELL: &str = "This is a shell.";

fn empty_disk(folder: &Path, name: &str) -> Result<PathBuf> {
    let path = folder.join(name);
    File::create(&path)?
        .set_len(64 * MIB)
        .with_context(|| format!("making {}", path.display()))?;
    Ok(path)
}

/// Runs a command in the machine's shell and gives its output.
fn shell(machine: &mut Machine, command: &str) -> Result<String> {
    machine.shell(command, ANSWER)
}

#[test]
fn under_bios_with_little_memory_it_finds_disks_on_every_controller_and_survives_deaths()
-> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut vm = Vm::new(Firmware::Bios, Medium::Cd, &iso(&[])?, LITTLE_MEMORY);
    let controllers = [
        (Controller::VirtioBlk, "virtio_blk"),
        (Controller::VirtioScsi, "virtio_scsi"),
        (Controller::Ahci, "ahci"),
        (Controller::Nvme, "nvme"),
        (Controller::Pvscsi, "vmw_pvscsi"),
        (Controller::MptSas, "mptsas"),
        (Controller::MegaSas, "megaraid_sas"),
    ];
    for (controller, name) in controllers {
        vm = vm.disk(controller, &empty_disk(folder.path(), name)?);
    }
    let mut machine = vm.start()?;
    let said = machine.expect(MENU, BOOT)?;
    eprintln!(
        "from power on to the menu: {:.1} s",
        machine.up().as_secs_f64()
    );
    for (_, driver) in controllers {
        let line = said
            .lines()
            .find(|line| line.trim_start().starts_with("/dev/") && line.contains(driver));
        ensure!(
            line.is_some_and(|line| line.contains("64.0 MiB")),
            "no disk on {driver}:\n{said}"
        );
    }
    ensure!(
        said.contains("7 found") && !said.contains("/dev/sr0"),
        "the CD is no disk:\n{said}"
    );
    ensure!(said.contains("Secure Boot: no"), "{said}");

    // An end of the session that nobody planned: Ctrl-\ kills it. A shell, and from there the menu
    // again.
    machine.send("\x1c")?;
    machine.expect("ended unexpectedly", ANSWER)?;
    machine.expect(SHELL, ANSWER)?;
    let free = shell(&mut machine, "free -m; cat /proc/1/comm; date +%Y")?;
    eprintln!("{free}");
    ensure!(free.contains("init"), "PID 1 is not ours:\n{free}");
    // The death of the process that serves all consoles: PID 1 starts it again.
    machine.send("kill -9 $(pidof rescue-live || pgrep -f 'rescue-live console')\r")?;
    machine.expect(MENU, BOOT)?;
    machine.send("shell\r")?;
    machine.expect(SHELL, ANSWER)?;
    // Modules on demand, as the kernel asks for them.
    let said = shell(
        &mut machine,
        "modprobe -q -- fs-vfat && grep -c ^vfat /proc/modules",
    )?;
    ensure!(
        said.lines().any(|line| line == "1"),
        "modprobe did not load vfat:\n{said}"
    );
    brings_checkers_and_ciphers(&mut machine)?;
    machine.send("exit\r")?;
    // The disk that was encrypted just now is asked for; what is typed opens it, and is not shown.
    machine.expect("Passphrase of the encrypted volume /dev/vda", BOOT)?;
    machine.expect("alone stops): ", ANSWER)?;
    machine.send("pass\r")?;
    let said = machine.expect(MENU, BOOT)?;
    ensure!(
        !said.contains("Passphrase") && !said.trim_start().starts_with("pass"),
        "{said}"
    );
    eprintln!("{said}");
    ensure!(
        !machine.transcript().contains("Kernel panic"),
        "the kernel panicked"
    );
    machine.send("6\r")?;
    machine.wait_off(ANSWER)?;
    Ok(())
}

/// Programs with their libraries, and the kernel's side of LUKS, mirrors and btrfs, in little
/// memory.
fn brings_checkers_and_ciphers(machine: &mut Machine) -> Result<()> {
    let said = shell(
        machine,
        "e2fsck -V && xfs_repair -V && btrfs --version && mdadm --version && echo all-$((6*7))",
    )?;
    ensure!(said.contains("all-42"), "a program does not run:\n{said}");
    let said = shell(
        machine,
        "modprobe -q -- fs-btrfs && modprobe -q raid1 && grep -cE '^(btrfs|raid1) ' /proc/modules",
    )?;
    ensure!(
        said.lines().any(|line| line == "2"),
        "modules are missing:\n{said}"
    );
    // The key derivation with the least work; the cipher is cryptsetup's own default.
    let format = "echo -n pass | cryptsetup -q luksFormat --pbkdf-force-iterations 1000 --pbkdf \
        pbkdf2 /dev/vda -";
    let open =
        "echo -n pass | cryptsetup open --key-file - /dev/vda secret && ls -l /dev/mapper/secret";
    let said = shell(
        machine,
        &format!("{format} && {open} && cryptsetup close secret && echo closed-$((6*7))"),
    )?;
    ensure!(said.contains("closed-42"), "LUKS cannot be opened:\n{said}");
    eprintln!("{}", shell(machine, "free -m")?);
    Ok(())
}

#[test]
fn under_uefi_secure_boot_it_inspects_a_node() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let disk = control_plane(&folder.path().join("disk.img"), 512 * MIB)?;
    let before = disk.sha256()?;
    let image = folder.path().join("disk.img");
    let vm = Vm::new(
        Firmware::SecureBoot,
        Medium::Cd,
        &iso(&[])?,
        LITTLE_MEMORY_UEFI,
    );
    let mut machine = vm.disk(Controller::VirtioScsi, &image).start()?;
    let said = machine.expect(MENU, BOOT)?;
    eprintln!(
        "from power on to the findings: {:.1} s",
        machine.up().as_secs_f64()
    );
    ensure!(
        said.contains("Secure Boot: enabled (kernel lockdown: integrity)"),
        "{said}"
    );
    ensure!(
        said.contains(fixtures::NODE_NAME) && said.contains("Findings"),
        "the node was not inspected:\n{said}"
    );
    machine.send("poweroff\r")?;
    machine.expect("Type one of the numbers", ANSWER)?;
    machine.send("off\r")?;
    machine.wait_off(ANSWER)?;
    ensure!(disk.sha256()? == before, "looking changed the disk");
    Ok(())
}

#[test]
fn from_a_usb_stick_it_leaves_its_own_medium_out_and_says_that_there_is_no_disk() -> Result<()> {
    let vm = Vm::new(
        Firmware::Bios,
        Medium::Stick,
        &iso(&["rescue.wait=5"])?,
        LITTLE_MEMORY,
    );
    let mut machine = vm.start()?;
    let said = machine.expect(MENU, BOOT)?;
    ensure!(
        said.contains("No disk was found") && !said.contains("/dev/sda"),
        "{said}"
    );
    // QEMU's own IDE controller is there, and driven.
    ensure!(said.contains("[8086:7010] ata_piix"), "{said}");
    machine.send("repair\r")?;
    machine.expect("There is no disk to repair.", ANSWER)?;
    machine.send("off\r")?;
    machine.wait_off(ANSWER)?;
    Ok(())
}

#[test]
fn from_a_usb_stick_under_uefi_secure_boot_it_starts_too() -> Result<()> {
    let vm = Vm::new(
        Firmware::SecureBoot,
        Medium::Stick,
        &iso(&["rescue.wait=5", "rescue.auto=inspect"])?,
        LITTLE_MEMORY_UEFI,
    );
    let mut machine = vm.start()?;
    // Unattended without a disk: refused, and off.
    let said = machine.expect("rescue: exit 3", BOOT)?;
    ensure!(
        said.contains("Secure Boot: enabled") && said.contains("No disk was found"),
        "{said}"
    );
    machine.wait_off(ANSWER)?;
    Ok(())
}

#[test]
fn the_same_inputs_give_the_same_iso_and_it_is_small() -> Result<()> {
    let path = iso(&["rescue.wait=7"])?;
    let first = std::fs::read(&path)?;
    std::thread::sleep(Duration::from_secs(2));
    ensure!(
        first == std::fs::read(iso(&["rescue.wait=7"])?)?,
        "two builds differ"
    );
    eprintln!("ISO: {:.1} MiB", first.len() as f64 / MIB as f64);
    ensure!(
        first.len() as u64 <= 33 * MIB,
        "the ISO has {} bytes",
        first.len()
    );
    let other = std::fs::read(iso(&["rescue.wait=8"])?)?;
    ensure!(first != other, "the kernel arguments are not in the image");
    // Bootable from both firmwares, as xorriso reads it back.
    let report = Cmd::new("xorriso")
        .args([
            "-indev",
            &path.to_string_lossy(),
            "-report_el_torito",
            "plain",
        ])
        .ok()?;
    ensure!(
        report.stdout.contains("BIOS") && report.stdout.contains("UEFI"),
        "{}",
        report.stdout
    );
    Ok(())
}
