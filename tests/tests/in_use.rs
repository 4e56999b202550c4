//! A disk that somebody uses is refused before a byte of it is written, and the refusal says who.

#![cfg(feature = "faulty")]

use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rescue::base::refusal::Refusal;
use rescue::disk::Backing;
use rescue::disk::loop_device::{LoopDevice, LoopOptions};
use rescue::guest::{FileSystem, GuestPath};
use rescue::in_use::{Uncached, head};
use rescue::mount::mount_writable;
use rescue::repair::{OpenOptions, WritableGuest};
use rescue::tree::Usage;
use tests::disk::{self, Disk, DiskBuilder, MIB, Partition};
use tests::mounts::WholeDisk;

const WRITABLE: LoopOptions = LoopOptions {
    offset: 0,
    length: 0,
    sector_size: 512,
    read_only: false,
};

/// An image with one bare file system.
struct Image {
    folder: tempfile::TempDir,
    kind: &'static str,
}

impl Image {
    fn new(kind: &'static str) -> Self {
        let image = Self {
            folder: tempfile::tempdir().unwrap(),
            kind,
        };
        let (size, program, options): (u64, _, &[&str]) = if kind == "xfs" {
            (300 << 20, "mkfs.xfs", &["-q"])
        } else {
            (32 << 20, "mkfs.ext4", &["-q", "-F"])
        };
        File::create(image.path()).unwrap().set_len(size).unwrap();
        assert!(
            Command::new(program)
                .args(options)
                .arg(image.path())
                .status()
                .unwrap()
                .success()
        );
        image
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("disk.img")
    }

    fn open(
        &self,
        path: &Path,
        block_device: bool,
        between_looks: Duration,
    ) -> anyhow::Result<WritableGuest> {
        let length = fs::metadata(self.path()).unwrap().len();
        let file_system = FileSystem {
            mount_point: GuestPath::new("/"),
            kind: self.kind.to_owned(),
            device: path.display().to_string(),
            uuid: None,
            usage: Usage::default(),
            backing: Backing::Range {
                path: path.to_path_buf(),
                offset: 0,
                length,
                sector_size: 512,
                block_device,
            },
            subvolume: None,
            has_errors: false,
        };
        WritableGuest::open_with("the disk", &[file_system], &OpenOptions { between_looks })
    }

    /// Opens the image (or a device), which must be refused for a reason that has all these words;
    /// the bytes stay as they are.
    #[track_caller]
    fn assert_refused_at(&self, path: &Path, block_device: bool, words: &[&str]) {
        let before = rescue::base::hash::sha256_hex(&fs::read(self.path()).unwrap());
        let error = self
            .open(path, block_device, Duration::from_millis(10))
            .expect_err("it must be refused");
        let text = error.to_string();
        assert!(error.is::<Refusal>(), "{error:?}");
        assert!(words.iter().all(|word| text.contains(word)), "{text}");
        assert_eq!(
            rescue::base::hash::sha256_hex(&fs::read(self.path()).unwrap()),
            before
        );
    }

    #[track_caller]
    fn assert_refused(&self, words: &[&str]) {
        self.assert_refused_at(&self.path(), false, words);
    }

    #[track_caller]
    fn assert_opens(&self) {
        self.open(&self.path(), false, Duration::from_millis(10))
            .unwrap()
            .close()
            .unwrap();
    }
}

/// A process that is surely gone at the end.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn an_image_at_rest_opens_and_closes() {
    for kind in ["ext4", "xfs"] {
        let image = Image::new(kind);
        image.assert_opens();
        image.assert_opens();
    }
}

#[test]
fn a_second_rescue_is_refused() {
    let image = Image::new("ext4");
    let first = image.open(&image.path(), false, Duration::ZERO).unwrap();
    image.assert_refused(&["disk.img"]);
    first.close().unwrap();
    image.assert_opens();
}

#[test]
fn a_locked_image_is_refused() {
    let image = Image::new("ext4");
    let file = File::open(image.path()).unwrap();
    rustix::fs::flock(&file, rustix::fs::FlockOperation::LockShared).unwrap();
    image.assert_refused(&["locked by another program"]);
}

#[test]
fn an_image_shown_as_a_loop_device_is_refused() {
    let image = Image::new("ext4");
    let device = LoopDevice::open(&image.path(), &LoopOptions::default())
        .expect("this test needs root and loop devices");
    image.assert_refused(&["/dev/loop", "losetup -d"]);
    drop(device);
    image.assert_opens();
}

#[test]
fn an_image_open_for_writing_elsewhere_is_refused() {
    let image = Image::new("ext4");
    let writer = File::options().append(true).open(image.path()).unwrap();
    let sleeper = Running(
        Command::new("sleep")
            .arg("60")
            .stdout(Stdio::from(writer))
            .spawn()
            .unwrap(),
    );
    image.assert_refused(&["open for writing in sleep"]);
    drop(sleeper);
    image.assert_opens();
}

/// Real QEMU, stopped before its first instruction: it holds its locks all the same.
#[test]
fn the_image_of_a_running_machine_is_refused() {
    let image = Image::new("ext4");
    let drive = format!("file={},format=raw,if=virtio", image.path().display());
    let qemu = Command::new("qemu-system-x86_64")
        .args([
            "-accel",
            "tcg",
            "-display",
            "none",
            "-nodefaults",
            "-S",
            "-m",
            "64",
            "-drive",
            &drive,
        ])
        .stdin(Stdio::null())
        .spawn()
        .expect("this test needs qemu-system-x86_64");
    let qemu = Running(qemu);
    let deadline = Instant::now() + Duration::from_secs(30);
    let holds = || {
        fs::read_dir(format!("/proc/{}/fd", qemu.0.id()))
            .unwrap()
            .flatten()
            .any(|fd| fs::read_link(fd.path()).is_ok_and(|to| to == image.path()))
    };
    while !holds() {
        assert!(Instant::now() < deadline, "QEMU did not open the image");
        std::thread::sleep(Duration::from_millis(20));
    }
    // The locks are taken a moment after the file is opened.
    std::thread::sleep(Duration::from_millis(500));
    image.assert_refused(&["QEMU", "power that machine off"]);
    drop(qemu);
    image.assert_opens();
}

/// The other way round: while we write, QEMU does not start.
#[test]
fn qemu_does_not_start_on_a_disk_that_is_being_repaired() {
    let image = Image::new("ext4");
    let guest = image.open(&image.path(), false, Duration::ZERO).unwrap();
    let drive = format!("file={},format=raw,if=virtio", image.path().display());
    let output = Command::new("timeout")
        .args([
            "20",
            "qemu-system-x86_64",
            "-accel",
            "tcg",
            "-display",
            "none",
            "-nodefaults",
            "-S",
            "-m",
            "64",
            "-drive",
            &drive,
        ])
        .output()
        .expect("this test needs qemu-system-x86_64");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("lock"), "{said}");
    guest.close().unwrap();
}

#[test]
fn a_device_that_is_mounted_is_refused() {
    let image = Image::new("ext4");
    let device =
        LoopDevice::open(&image.path(), &WRITABLE).expect("this test needs root and loop devices");
    let path = device.path();
    image
        .open(&path, true, Duration::ZERO)
        .unwrap()
        .close()
        .unwrap();

    // A mount that no namespace shows: only the claim in the kernel tells.
    let mount = mount_writable(&path, "ext4").unwrap();
    image.assert_refused_at(&path, true, &["in use by the kernel"]);
    mount.unmount().unwrap();

    // A mount in somebody else's namespace.
    let point = image.folder.path().join("mnt");
    fs::create_dir(&point).unwrap();
    let script = format!(
        "mount {} {} && echo mounted && exec sleep 60",
        path.display(),
        point.display()
    );
    let child = Command::new("unshare")
        .args(["-m", "sh", "-c", &script])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut child = Running(child);
    let mut line = String::new();
    std::io::BufRead::read_line(
        &mut std::io::BufReader::new(child.0.stdout.take().unwrap()),
        &mut line,
    )
    .unwrap();
    assert_eq!(line, "mounted\n");
    image.assert_refused_at(
        &path,
        true,
        &["is mounted on", "mnt", "namespace of process"],
    );
    drop(child);
}

#[test]
fn a_file_system_with_an_error_flag_needs_a_check_first() {
    let image = Image::new("ext4");
    // s_state: EXT4_VALID_FS | EXT4_ERROR_FS
    let flagged = Command::new("debugfs")
        .args(["-w", "-R", "ssv state 3"])
        .arg(image.path())
        .output()
        .unwrap();
    assert!(flagged.status.success());
    let error = image
        .open(&image.path(), false, Duration::ZERO)
        .unwrap_err();
    let refusal = error.downcast_ref::<Refusal>().unwrap();
    let line = refusal.next.split('`').nth(1).unwrap();
    let path = line
        .strip_prefix("rescue fsck ")
        .unwrap_or_else(|| panic!("{line}"));
    // The line to type does what it says.
    let mended = tests::programs::rescue_faulty(0, ["fsck", "--yes", path])
        .run()
        .unwrap();
    assert_eq!(mended.code, 0, "{}", mended.transcript());
    image.assert_opens();
}

/// Another host writes: here a thread of this process, which none of the other looks sees.
#[test]
fn a_disk_that_moves_by_itself_is_refused() {
    let image = Image::new("ext4");
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let file = File::options().write(true).open(image.path()).unwrap();
            let mut n = 0u32;
            while !stop.load(Ordering::Relaxed) {
                n += 1;
                // s_wtime
                file.write_all_at(&n.to_le_bytes(), 1024 + 0x30).unwrap();
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        std::thread::sleep(Duration::from_millis(20));
        let error = image
            .open(&image.path(), false, Duration::from_millis(200))
            .unwrap_err();
        stop.store(true, Ordering::Relaxed);
        assert!(
            error.is::<Refusal>() && error.to_string().contains("another host has the disk"),
            "{error:?}"
        );
    });
}

/// The head of the journal of a file system that is really in use moves with every commit, and
/// rests when nobody writes.
#[test]
fn the_journal_head_moves_with_every_commit() {
    for kind in ["ext4", "xfs"] {
        let image = Image::new(kind);
        let device = LoopDevice::open(&image.path(), &WRITABLE)
            .expect("this test needs root and loop devices");
        let mount = mount_writable(&device.path(), kind).unwrap();
        let disk = Uncached::new(File::open(image.path()).unwrap(), 512).unwrap();
        let mut last = head(&disk, kind).unwrap();
        for n in 0..20 {
            let mut file = File::create(mount.path().join(n.to_string())).unwrap();
            file.write_all(b"x").unwrap();
            file.sync_all().unwrap();
            let now = head(&disk, kind).unwrap();
            assert_ne!(now, last, "{kind}: commit {n}");
            last = now;
        }
        mount.unmount().unwrap();
        let rest = head(&disk, kind).unwrap();
        std::thread::sleep(Duration::from_millis(100));
        assert_eq!(head(&disk, kind).unwrap(), rest, "{kind} at rest");
    }
}

/// A disk with a partition of swap and one with the file system, as nodes of their own.
fn partitioned(folder: &Path, read_only: bool) -> (PathBuf, WholeDisk) {
    let path = folder.join("whole.img");
    let root = Partition::unmounted(disk::FileSystem::Ext4);
    let swap = Partition::unmounted(disk::FileSystem::Swap).size(4 * MIB);
    DiskBuilder::new(40 * MIB)
        .partition(swap)
        .partition(root)
        .build(&path)
        .unwrap();
    let disk = WholeDisk::attach(&path, read_only).expect("this test needs root and loop devices");
    (path, disk)
}

/// Opens the second partition of a disk for writing, through the disk's own node.
fn open_second(image: &Path, device: &Path) -> anyhow::Result<WritableGuest> {
    let built = Disk::open(image, 512)?;
    let volume = &built.volumes[1];
    let file_system = FileSystem {
        mount_point: GuestPath::new("/"),
        kind: "ext4".to_owned(),
        device: device.display().to_string(),
        uuid: None,
        usage: Usage::default(),
        backing: Backing::Range {
            path: device.to_path_buf(),
            offset: volume.offset,
            length: volume.size,
            sector_size: 512,
            block_device: true,
        },
        subvolume: None,
        has_errors: false,
    };
    WritableGuest::open_with(
        "the disk",
        &[file_system],
        &OpenOptions {
            between_looks: Duration::ZERO,
        },
    )
}

#[track_caller]
fn refused_with(opened: anyhow::Result<WritableGuest>, words: &[&str]) {
    let error = opened.expect_err("it must be refused");
    let text = error.to_string();
    assert!(
        error.is::<Refusal>() && words.iter().all(|word| text.contains(word)),
        "{text}"
    );
}

#[test]
fn swap_on_another_partition_of_the_disk_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let (image, disk) = partitioned(folder.path(), false);
    let swap = disk.partition(1);
    tests::command::Cmd::new("swapon")
        .args(["--priority", "0"])
        .arg(&swap)
        .ok()
        .unwrap();
    let opened = open_second(&image, disk.device());
    tests::command::Cmd::new("swapoff").arg(&swap).ok().unwrap();
    let swap = swap.display().to_string();
    refused_with(
        opened,
        &[
            &format!("{swap} is used as swap"),
            &format!("swapoff {swap}"),
        ],
    );
    open_second(&image, disk.device()).unwrap().close().unwrap();
}

#[test]
fn a_read_only_device_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let (image, disk) = partitioned(folder.path(), true);
    refused_with(
        open_second(&image, disk.device()),
        &["is read-only", "attach it writable"],
    );
}

/// It claims nothing in the kernel.
#[test]
fn a_loop_device_over_a_partition_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let (image, disk) = partitioned(folder.path(), false);
    let above = LoopDevice::open(&disk.partition(2), &LoopOptions::default()).unwrap();
    let node = disk.partition(2).display().to_string();
    refused_with(
        open_second(&image, disk.device()),
        &[
            &node,
            "is shown as the block device /dev/loop",
            "losetup -d",
        ],
    );
    drop(above);
    open_second(&image, disk.device()).unwrap().close().unwrap();
}

/// QEMU's own programs beside a machine: each takes the locks of a running machine, in its own way.
/// (A storage daemon that holds a qcow2 image is waited for: it could be that of a killed run.)
#[test]
fn images_that_qemus_programs_serve_are_refused() {
    for (format, program) in [("raw", "nbd"), ("qcow2", "nbd"), ("raw", "daemon")] {
        let image = Image::new("ext4");
        let served = image.folder.path().join(format!("served.{format}"));
        let mut convert = Command::new("qemu-img");
        convert
            .args(["convert", "-f", "raw", "-O", format])
            .arg(image.path())
            .arg(&served);
        assert!(convert.status().unwrap().success());
        let socket = image.folder.path().join("socket");
        let mut command = match program {
            "nbd" => {
                let mut command = Command::new("qemu-nbd");
                command
                    .args(["--persistent", "--format", format, "--socket"])
                    .arg(&socket)
                    .arg(&served);
                command
            }
            _ => {
                let mut command = Command::new("qemu-storage-daemon");
                let file = format!("driver=file,node-name=file,filename={}", served.display());
                command.args(["--blockdev", &file]);
                command.args([
                    "--blockdev",
                    &format!("driver={format},node-name=disk,file=file"),
                ]);
                command.args([
                    "--nbd-server",
                    &format!("addr.type=unix,addr.path={}", socket.display()),
                ]);
                command.args(["--export", "type=nbd,id=disk,node-name=disk,writable=on"]);
                command
            }
        };
        let server = Running(
            command
                .stdout(Stdio::null())
                .spawn()
                .expect("this test needs qemu-utils"),
        );
        let deadline = Instant::now() + Duration::from_secs(30);
        while !socket.exists() {
            assert!(
                Instant::now() < deadline,
                "{program} does not serve {format}"
            );
            std::thread::sleep(Duration::from_millis(20));
        }
        std::thread::sleep(Duration::from_millis(200));
        let words = ["is locked the way QEMU locks", "power that machine off"];
        image.assert_refused_at(&served, false, &words);
        drop(server);
        image
            .open(&served, false, Duration::ZERO)
            .unwrap()
            .close()
            .unwrap();
    }
}

/// VMware's locks, as they lie beside the disk of a running machine.
#[test]
fn a_disk_that_vmware_has_locked_is_refused() {
    let image = Image::new("ext4");
    let flat = image.folder.path().join("node-flat.vmdk");
    fs::copy(image.path(), &flat).unwrap();
    image
        .open(&flat, false, Duration::ZERO)
        .unwrap()
        .close()
        .unwrap();
    let lock = image.folder.path().join(".lck-61bd0c0000000000");
    fs::write(&lock, "").unwrap();
    image.assert_refused_at(
        &flat,
        false,
        &["VMware's lock .lck-61bd0c0000000000", "power it off", "mv "],
    );
    fs::remove_file(lock).unwrap();
    image
        .open(&flat, false, Duration::ZERO)
        .unwrap()
        .close()
        .unwrap();
}
