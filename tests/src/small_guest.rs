//! A small node on file systems of its own, for the tests that stop and disturb a repair at every
//! step: its disks are made, copied, checked and compared whole.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown, lchown, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use rescue::disk::loop_device::{LoopDevice, LoopOptions};
use rescue::mount::mount_writable;
use rustix::fs::{Timespec, Timestamps, XattrFlags};

use crate::mounts::wait_until_free;

const GUEST_MTIME: i64 = 1_700_000_000;

/// What the guest's root file system has none left of, for root either.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Full {
    /// There is room.
    No,
    /// No block is free.
    Bytes,
    /// No inode is free.
    Inodes,
    /// Only so many of `blocks` or `inodes` are free, beyond what ext4 keeps for itself.
    AllBut {
        /// Which of the two.
        what: &'static str,
        /// How many.
        amount: u64,
    },
}

/// The file systems of one guest, as image files.
#[derive(Debug, Clone)]
pub struct Images {
    images: Vec<Image>,
    driver: PathBuf,
}

#[derive(Debug, Clone)]
struct Image {
    mount_point: &'static str,
    kind: &'static str,
    path: PathBuf,
}

impl Image {
    /// As the kernel calls it.
    fn file_system(&self) -> &'static str {
        self.kind.split(':').next().unwrap_or_default()
    }

    /// Its folder below the top level; empty where it is the whole file system.
    fn subvolume(&self) -> &'static str {
        self.kind.split(':').nth(1).unwrap_or_default()
    }
}

/// The kinds of two subvolumes of one btrfs, as the driver takes them: `btrfs:NAME:NUMBER`. They
/// are made in this order.
pub const BTRFS: [&str; 2] = ["btrfs:@:256", "btrfs:@var:257"];

impl Images {
    /// Makes the file systems in `folder` and puts a small node on them; `driver` is the program
    /// `transaction-driver`.
    ///
    /// # Panics
    /// Here and below: where a tool is missing, the test is not run by root, or what is checked
    /// does not hold.
    pub fn make(
        driver: &str,
        folder: &Path,
        layout: &[(&'static str, &'static str)],
        full: Full,
    ) -> Self {
        let images = layout.iter().enumerate().map(|(n, (mount_point, kind))| {
            // All subvolumes are in the first image.
            let n = if kind.starts_with("btrfs") { 0 } else { n };
            let path = folder.join(format!("{n}.img"));
            let file = fs::File::create(&path).unwrap();
            match *kind {
                kind if kind.starts_with("btrfs") => {
                    file.set_len(128 << 20).unwrap();
                    run("mkfs.btrfs", &["-q", "-f", text(&path)]);
                }
                "ext4" => {
                    file.set_len(48 << 20).unwrap();
                    let few = matches!(full, Full::Inodes | Full::AllBut { what: "inodes", .. });
                    let inodes = if few { "256" } else { "4096" };
                    let options = [
                        "-q",
                        "-F",
                        "-J",
                        "size=4",
                        "-E",
                        "lazy_itable_init=0,nodiscard",
                        "-N",
                        inodes,
                    ];
                    run("mkfs.ext4", &[&options[..], &[text(&path)]].concat());
                }
                _ => {
                    // The smallest that mkfs.xfs makes.
                    file.set_len(300 << 20).unwrap();
                    run("mkfs.xfs", &["-q", "-f", "-l", "size=64m", text(&path)]);
                }
            }
            Image {
                mount_point,
                kind,
                path,
            }
        });
        let images = Self {
            images: images.collect(),
            driver: PathBuf::from(driver),
        };
        images.populate(full);
        images.check(false);
        images
    }

    fn populate(&self, full: Full) {
        let mounted: Vec<_> = self
            .file_systems()
            .map(|image| {
                let device = LoopDevice::open(
                    &image.path,
                    &LoopOptions {
                        read_only: false,
                        ..LoopOptions::default()
                    },
                )
                .expect("these tests need root and loop devices");
                (
                    &image.path,
                    mount_writable(&device.path(), image.file_system()).unwrap(),
                    device,
                )
            })
            .collect();
        let top = |image: &Image| {
            mounted
                .iter()
                .find(|(path, ..)| **path == image.path)
                .unwrap()
                .1
                .path()
        };
        for image in self
            .images
            .iter()
            .filter(|image| !image.subvolume().is_empty())
        {
            // Another process has to find it, too.
            let top =
                text(&top(image)).replace("/proc/self/", &format!("/proc/{}/", std::process::id()));
            run(
                "btrfs",
                &[
                    "-q",
                    "subvolume",
                    "create",
                    &format!("{top}/{}", image.subvolume()),
                ],
            );
        }
        let at = |path: &str| {
            // Layouts name the root first.
            let image = self
                .images
                .iter()
                .rfind(|image| Path::new(path).starts_with(image.mount_point))
                .unwrap();
            let below = path
                .strip_prefix(image.mount_point)
                .unwrap()
                .trim_start_matches('/');
            top(image).join(image.subvolume()).join(below)
        };
        populate(&at);
        match full {
            Full::No => {}
            Full::Bytes => drop(fill_bytes(&at("/."), &mounted[0].2)),
            Full::Inodes => crate::fill::inodes(&at("/.")).unwrap(),
            Full::AllBut {
                what: "blocks",
                amount,
            } => {
                let (filler, reserve) = fill_bytes(&at("/."), &mounted[0].2);
                let block = rustix::fs::fstatvfs(&filler).unwrap().f_frsize;
                let length = filler.metadata().unwrap().len();
                filler.set_len(length - (amount + reserve) * block).unwrap();
            }
            Full::AllBut { amount, .. } => {
                crate::fill::inodes(&at("/.")).unwrap();
                for n in 1..=amount {
                    fs::remove_file(at(&crate::fill::rotated_log(n))).unwrap();
                }
            }
        }
        for (_, mount, _) in mounted {
            mount.unmount().unwrap();
        }
    }

    /// One image for each file system: subvolumes share theirs.
    fn file_systems(&self) -> impl Iterator<Item = &Image> {
        let is_first = |n: usize| {
            !self.images[..n]
                .iter()
                .any(|earlier| earlier.path == self.images[n].path)
        };
        self.images
            .iter()
            .enumerate()
            .filter(move |(n, _)| is_first(*n))
            .map(|(_, image)| image)
    }

    /// The kernel remembers each btrfs that it has seen, and would take an older copy for one that
    /// missed something.
    fn forget_btrfs(&self) {
        if self.is_btrfs() {
            run("btrfs", &["-q", "device", "scan", "--forget"]);
        }
    }

    /// Whether it lies on subvolumes.
    pub fn is_btrfs(&self) -> bool {
        self.images
            .iter()
            .any(|image| image.file_system() == "btrfs")
    }

    /// A copy in another folder.
    pub fn copy_to(&self, folder: &Path) -> Self {
        fs::create_dir_all(folder).unwrap();
        let to = |image: &Image| folder.join(image.path.file_name().unwrap());
        for image in self.file_systems() {
            run(
                "cp",
                &[
                    "--sparse=always",
                    "--reflink=never",
                    text(&image.path),
                    text(&to(image)),
                ],
            );
        }
        let images = self
            .images
            .iter()
            .map(|image| Image {
                path: to(image),
                ..image.clone()
            })
            .collect();
        Self {
            images,
            driver: self.driver.clone(),
        }
    }

    /// `MOUNT_POINT=KIND=IMAGE`, as the driver takes them.
    pub fn arguments(&self) -> Vec<String> {
        let argument = |image: &Image| {
            format!(
                "{}={}={}",
                image.mount_point,
                image.kind,
                image.path.display()
            )
        };
        self.images.iter().map(argument).collect()
    }

    /// Where the `n`-th image is.
    pub fn path(&self, n: usize) -> &Path {
        &self.images[n].path
    }

    /// Runs `transaction-driver VERB` on it.
    pub fn driver(&self, verb: &str, environment: &[(&str, String)]) -> Output {
        self.driver_under(&[], verb, environment)
    }

    /// The same, started by another program, whose words come first.
    pub fn driver_under(&self, by: &[&str], verb: &str, environment: &[(&str, String)]) -> Output {
        let mut words = by.iter().copied().chain([text(&self.driver)]);
        let mut command = Command::new(words.next().unwrap());
        command.args(words).arg(verb).args(self.arguments());
        self.forget_btrfs();
        let output = command.envs(environment.iter().cloned()).output().unwrap();
        for image in self.file_systems() {
            wait_until_free(&image.path).unwrap();
            // What the driver kept when it cut the power.
            let cut = image.path.with_extension("cut");
            if cut.exists() {
                fs::rename(cut, &image.path).unwrap();
            }
        }
        output
    }

    /// The same, which must go well. Returns what it printed.
    #[track_caller]
    pub fn succeed(&self, verb: &str) -> String {
        let output = self.driver(verb, &[]);
        assert!(
            output.status.success(),
            "{verb}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).unwrap()
    }

    /// Clean by the file systems' own tools. After a power cut the log must be replayed first, by a
    /// mount.
    #[track_caller]
    pub fn check(&self, replay: bool) {
        if replay {
            self.mount_and_unmount();
        }
        for image in self.file_systems() {
            let path = &image.path;
            match image.file_system() {
                "ext4" => run("e2fsck", &["-fn", text(path)]),
                "btrfs" => run("btrfs", &["check", "--readonly", text(path)]),
                _ => run("xfs_repair", &["-n", text(path)]),
            }
        }
    }

    fn mount_and_unmount(&self) {
        self.forget_btrfs();
        for image in self.file_systems() {
            let device = LoopDevice::open(
                &image.path,
                &LoopOptions {
                    read_only: false,
                    ..LoopOptions::default()
                },
            )
            .unwrap();
            mount_writable(&device.path(), image.file_system())
                .unwrap()
                .unmount()
                .unwrap();
            drop(device);
            wait_until_free(&image.path).unwrap();
        }
    }

    /// What an ended run must not leave behind: staged files, half-written records, folders of runs
    /// that were never committed.
    pub fn leftovers(&self) -> Vec<String> {
        let all = self.succeed("dump");
        let paths: Vec<&str> = all
            .lines()
            .filter_map(|line| line.split('|').next())
            .collect();
        let ours = paths
            .iter()
            .filter(|path| path.contains("/.rescue") || path.contains("/var/lib/rescue"));
        let left = ours.filter(|path| {
            let run = path.rsplit('/').next().unwrap_or_default();
            let is_store = path.contains("/.rescue/")
                && path.matches('/').count() <= 3
                && !path.ends_with("/backup");
            let is_run = path
                .strip_prefix("/var/lib/rescue/runs/")
                .is_some_and(|rest| !rest.contains('/'));
            let record = format!("/var/lib/rescue/runs/{run}/journal.json");
            path.contains("/staged")
                || path.ends_with(".tmp")
                || ((is_run || is_store) && !paths.contains(&&*record))
        });
        left.map(|path| (*path).to_owned()).collect()
    }

    /// Everything that is on it.
    pub fn dump(&self) -> Dump {
        Dump::parse(&self.succeed("dump"))
    }
}

/// What is on the guest besides our own records, one line for each path.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Dump(pub Vec<String>);

impl Dump {
    fn parse(text: &str) -> Self {
        let ours =
            |line: &&str| line.starts_with("/var/lib/rescue") || line.starts_with("/.rescue");
        Self(
            text.lines()
                .filter(|line| !ours(line))
                .map(str::to_owned)
                .collect(),
        )
    }

    /// Without what was freed, which has no undo.
    pub fn but_for_freed(&self) -> Self {
        let freed = [
            "/var/log/messages-20240101|",
            "/var/log/vmware-vmsvc.1.log|",
            "/var/log/syslog",
            "/var/log/audit-agent/",
        ];
        Self(
            self.0
                .iter()
                .filter(|line| !freed.iter().any(|freed| line.starts_with(freed)))
                .cloned()
                .collect(),
        )
    }

    /// Without the times of the files that the repair writes: they are those of the repair.
    pub fn but_for_new_times(&self, before: &Self) -> Self {
        Self(
            self.0
                .iter()
                .map(|line| {
                    if before.0.contains(line) {
                        return line.clone();
                    }
                    let mut fields: Vec<&str> = line.split('|').collect();
                    fields[5] = "new";
                    fields.join("|")
                })
                .collect(),
        )
    }

    /// Fails with the difference.
    #[track_caller]
    pub fn assert_same(&self, other: &Self, what: &str) {
        let missing: Vec<_> = other
            .0
            .iter()
            .filter(|line| !self.0.contains(line))
            .collect();
        let surplus: Vec<_> = self
            .0
            .iter()
            .filter(|line| !other.0.contains(line))
            .collect();
        assert!(
            missing.is_empty() && surplus.is_empty(),
            "{what}:\nmissing {missing:#?}\nsurplus {surplus:#?}"
        );
    }
}

/// Puts the small node below a folder.
pub fn populate_folder(root: &Path) {
    populate(&|path| root.join(path.trim_start_matches('/')));
}

fn populate(at: &dyn Fn(&str) -> PathBuf) {
    for folder in [
        "/bin",
        "/etc/kubernetes/pki",
        "/etc/kubernetes/manifests",
        "/etc/systemd/system",
        "/home/me/.kube",
        "/root",
        "/var/lib/kubelet/pki",
        "/var/log",
    ] {
        fs::create_dir_all(at(folder)).unwrap();
    }
    let line = "Jan  1 00:00:00 node kubelet: an old line of a log, and then some more of it\n";
    for (path, content, mode, owner) in [
        ("/etc/hosts", "127.0.0.1 localhost\n".to_owned(), 0o644, 0),
        (
            "/etc/kubernetes/pki/apiserver.key",
            "an old key".to_owned(),
            0o600,
            0,
        ),
        (
            "/etc/kubernetes/pki/apiserver.crt",
            "an old certificate".to_owned(),
            0o644,
            0,
        ),
        (
            "/etc/kubernetes/manifests/etcd.yaml",
            "an old manifest".to_owned(),
            0o640,
            0,
        ),
        (
            "/etc/kubernetes/kubelet.conf.real",
            "an old kubelet.conf".to_owned(),
            0o600,
            7,
        ),
        (
            "/etc/kubernetes/bootstrap-kubelet.conf",
            "stale".to_owned(),
            0o604,
            3,
        ),
        (
            "/etc/systemd/system/kubelet.service",
            "[Service]\n".to_owned(),
            0o644,
            0,
        ),
        (
            "/home/me/.kube/config",
            "an old kubeconfig".to_owned(),
            0o640,
            1000,
        ),
        (
            "/var/lib/kubelet/pki/kubelet-client-2023.pem",
            "old".to_owned(),
            0o600,
            0,
        ),
        ("/var/log/messages-20240101", line.repeat(3000), 0o640, 4),
        ("/var/log/vmware-vmsvc.1.log", line.repeat(500), 0o644, 0),
        ("/var/log/syslog.1", line.to_owned(), 0o644, 0),
        ("/var/log/syslog", line.repeat(20_000), 0o640, 104),
    ] {
        fs::write(at(path), content).unwrap();
        chown(at(path), Some(owner), Some(owner)).unwrap();
        fs::set_permissions(at(path), fs::Permissions::from_mode(mode)).unwrap();
        set_time(&at(path));
    }
    for (link, target) in [
        (
            "/etc/kubernetes/kubelet.conf",
            "/etc/kubernetes/kubelet.conf.real",
        ),
        (
            "/var/lib/kubelet/pki/kubelet-client-current.pem",
            "/var/lib/kubelet/pki/kubelet-client-2023.pem",
        ),
    ] {
        symlink(target, at(link)).unwrap();
        lchown(at(link), Some(42), Some(42)).unwrap();
        set_time(&at(link));
    }
    let attribute = |path: &str, name: &str, value: &[u8]| {
        rustix::fs::lsetxattr(at(path), name, value, XattrFlags::empty()).unwrap();
    };
    for path in [
        "/etc/kubernetes/pki/apiserver.key",
        "/etc/kubernetes/manifests/etcd.yaml",
        "/home/me/.kube/config",
    ] {
        attribute(path, "user.note", b"kept");
    }
    for path in [
        "/etc/kubernetes/pki/apiserver.crt",
        "/etc/systemd/system/kubelet.service",
        "/etc/systemd/system",
        "/var/lib/kubelet/pki/kubelet-client-current.pem",
        "/var/lib/kubelet/pki/kubelet-client-2023.pem",
        "/var/log/syslog",
    ] {
        attribute(path, "security.selinux", b"system_u:object_r:test_t:s0\0");
    }
    // user 1001 may read: version 2; user::rw-, user:1001:r--, group::r--, mask::r--, other::---
    let acl = [
        &[2u8, 0, 0, 0][..],
        &acl_entry(0x01, 6, u32::MAX),
        &acl_entry(0x02, 4, 1001),
        &acl_entry(0x04, 4, u32::MAX),
        &acl_entry(0x10, 4, u32::MAX),
        &acl_entry(0x20, 0, u32::MAX),
    ]
    .concat();
    attribute("/home/me/.kube/config", "system.posix_acl_access", &acl);
}

/// Takes every last block, the ones that ext4 keeps hidden even from root too. Returns the file
/// that takes them, and how many blocks ext4 will hide again.
fn fill_bytes(root: &Path, device: &LoopDevice) -> (fs::File, u64) {
    // What is still to be written may need the hidden blocks.
    rustix::fs::syncfs(fs::File::open(root).unwrap()).unwrap();
    let name = device.path().file_name().unwrap().to_owned();
    let hidden = Path::new("/sys/fs/ext4")
        .join(name)
        .join("reserved_clusters");
    let mut reserve = 0;
    if hidden.exists() {
        reserve = fs::read_to_string(&hidden).unwrap().trim().parse().unwrap();
        fs::write(&hidden, "0").unwrap();
    }
    let filler = fs::File::create(root.join("filler")).unwrap();
    let mut length = 0;
    // Twice, because writing everything out may give blocks back.
    for piece in [1 << 20, 1 << 16, 4096, 4096] {
        while rustix::fs::fallocate(&filler, rustix::fs::FallocateFlags::empty(), length, piece)
            .is_ok()
        {
            length += piece;
        }
        rustix::fs::syncfs(&filler).unwrap();
    }
    let probe = root.join("probe");
    let written = fs::write(&probe, [7; 4096]).and_then(|()| fs::File::open(&probe)?.sync_all());
    assert!(written.is_err(), "there is still a block free");
    fs::remove_file(probe).unwrap_or_default();
    (filler, reserve)
}

fn acl_entry(tag: u16, permissions: u16, id: u32) -> Vec<u8> {
    [
        &tag.to_le_bytes()[..],
        &permissions.to_le_bytes(),
        &id.to_le_bytes(),
    ]
    .concat()
}

fn set_time(path: &Path) {
    let time = Timespec {
        tv_sec: GUEST_MTIME,
        tv_nsec: 123_456_789,
    };
    let times = Timestamps {
        last_access: time,
        last_modification: time,
    };
    rustix::fs::utimensat(
        rustix::fs::CWD,
        path,
        &times,
        rustix::fs::AtFlags::SYMLINK_NOFOLLOW,
    )
    .unwrap();
}

/// In memory where there is some: thousands of fsyncs on a disk would take most of the time.
pub fn scratch() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() {
        tempfile::tempdir_in(memory).unwrap()
    } else {
        tempfile::tempdir().unwrap()
    }
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[track_caller]
fn run(program: &str, arguments: &[&str]) {
    let output = Command::new(program)
        .args(arguments)
        .output()
        .unwrap_or_else(|error| panic!("{program}: {error}"));
    let (out, err) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    assert!(
        output.status.success(),
        "{program} {arguments:?}: {out}{err}"
    );
}
