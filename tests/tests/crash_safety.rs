//! A repair stopped at every single step, on real file systems: the next repair completes it, undo puts everything back, and the
//! file system is clean. By killing the process, and by cutting the power at that step, when only what was synchronised survives.

#![cfg(feature = "faulty")]

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown, lchown, symlink};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use rescue::disk::loop_device::{LoopDevice, LoopOptions};
use rescue::mount::mount_writable;
use rustix::fs::{Timespec, Timestamps, XattrFlags};
use tests::mounts::wait_until_free;

/// More steps than any run here has: an end for a loop that would otherwise not find one.
const TOO_MANY: usize = 1000;
/// As many at once as the machine has cores.
const WORKERS: usize = 2;

const GUEST_MTIME: i64 = 1_700_000_000;

/// What the guest's root file system has none left of, for root either.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Full {
    No,
    Bytes,
    Inodes,
}

/// The file systems of one guest, as image files.
#[derive(Clone)]
struct Images(Vec<Image>);

#[derive(Clone)]
struct Image {
    mount_point: &'static str,
    kind: &'static str,
    path: PathBuf,
}

impl Images {
    /// Makes the file systems in `folder` and puts a small node on them.
    fn make(folder: &Path, layout: &[(&'static str, &'static str)], full: Full) -> Self {
        let images = layout.iter().enumerate().map(|(n, (mount_point, kind))| {
            let path = folder.join(format!("{n}.img"));
            let file = fs::File::create(&path).unwrap();
            match *kind {
                "ext4" => {
                    file.set_len(48 << 20).unwrap();
                    let inodes = if full == Full::Inodes { "256" } else { "4096" };
                    let options = ["-q", "-F", "-J", "size=4", "-E", "lazy_itable_init=0,nodiscard", "-N", inodes];
                    run("mkfs.ext4", &[&options[..], &[text(&path)]].concat());
                }
                _ => {
                    // The smallest that mkfs.xfs makes.
                    file.set_len(300 << 20).unwrap();
                    run("mkfs.xfs", &["-q", "-f", "-l", "size=64m", text(&path)]);
                }
            }
            Image { mount_point, kind, path }
        });
        let images = Self(images.collect());
        images.populate(full);
        images.check(false);
        images
    }

    fn populate(&self, full: Full) {
        let mounted: Vec<_> = self
            .0
            .iter()
            .map(|image| {
                let device = LoopDevice::open(&image.path, &LoopOptions { read_only: false, ..LoopOptions::default() })
                    .expect("these tests need root and loop devices");
                (image.mount_point, mount_writable(&device.path(), image.kind).unwrap(), device)
            })
            .collect();
        let at = |path: &str| {
            // Layouts name the root first.
            let (point, mount, _) = mounted.iter().rfind(|(point, ..)| Path::new(path).starts_with(point)).unwrap();
            mount.path().join(path.strip_prefix(point).unwrap().trim_start_matches('/'))
        };
        populate(&at);
        match full {
            Full::No => {}
            Full::Bytes => fill_bytes(&at("/."), &mounted[0].2),
            Full::Inodes => tests::fill::inodes(&at("/.")).unwrap(),
        }
        for (_, mount, _) in mounted {
            mount.unmount().unwrap();
        }
    }

    fn copy_to(&self, folder: &Path) -> Self {
        fs::create_dir_all(folder).unwrap();
        Self(
            self.0
                .iter()
                .map(|image| {
                    let path = folder.join(image.path.file_name().unwrap());
                    run("cp", &["--sparse=always", "--reflink=never", text(&image.path), text(&path)]);
                    Image { path, ..image.clone() }
                })
                .collect(),
        )
    }

    fn driver(&self, verb: &str, environment: &[(&str, String)]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_transaction-driver"));
        command.arg(verb);
        for Image { mount_point, kind, path } in &self.0 {
            command.arg(format!("{mount_point}={kind}={}", path.display()));
        }
        let output = command.envs(environment.iter().cloned()).output().unwrap();
        for image in &self.0 {
            wait_until_free(&image.path).unwrap();
        }
        output
    }

    #[track_caller]
    fn succeed(&self, verb: &str) -> String {
        let output = self.driver(verb, &[]);
        assert!(output.status.success(), "{verb}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// Clean by the file systems' own tools. After a power cut the log must be replayed first, by a mount.
    #[track_caller]
    fn check(&self, replay: bool) {
        if replay {
            self.mount_and_unmount();
        }
        for Image { kind, path, .. } in &self.0 {
            match *kind {
                "ext4" => run("e2fsck", &["-fn", text(path)]),
                _ => run("xfs_repair", &["-n", text(path)]),
            }
        }
    }

    fn mount_and_unmount(&self) {
        for image in &self.0 {
            let device =
                LoopDevice::open(&image.path, &LoopOptions { read_only: false, ..LoopOptions::default() }).unwrap();
            mount_writable(&device.path(), image.kind).unwrap().unmount().unwrap();
            drop(device);
            wait_until_free(&image.path).unwrap();
        }
    }

    fn dump(&self) -> Dump {
        Dump::parse(&self.succeed("dump"))
    }
}

/// What is on the guest besides our own records, one line for each path.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Dump(Vec<String>);

impl Dump {
    fn parse(text: &str) -> Self {
        let ours = |line: &&str| line.starts_with("/var/lib/rescue") || line.starts_with("/.rescue");
        Self(text.lines().filter(|line| !ours(line)).map(str::to_owned).collect())
    }

    /// Without what was freed, which has no undo.
    fn but_for_freed(&self) -> Self {
        let freed =
            ["/var/log/messages-20240101|", "/var/log/vmware-vmsvc.1.log|", "/var/log/syslog", "/var/log/audit-agent/"];
        Self(self.0.iter().filter(|line| !freed.iter().any(|freed| line.starts_with(freed))).cloned().collect())
    }

    /// Without the times of the files that the repair writes: they are those of the repair.
    fn but_for_new_times(&self, before: &Self) -> Self {
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

    #[track_caller]
    fn assert_same(&self, other: &Self, what: &str) {
        let missing: Vec<_> = other.0.iter().filter(|line| !self.0.contains(line)).collect();
        let surplus: Vec<_> = self.0.iter().filter(|line| !other.0.contains(line)).collect();
        assert!(missing.is_empty() && surplus.is_empty(), "{what}:\nmissing {missing:#?}\nsurplus {surplus:#?}");
    }
}

fn populate(at: &dyn Fn(&str) -> PathBuf) {
    for folder in [
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
        ("/etc/kubernetes/pki/apiserver.key", "an old key".to_owned(), 0o600, 0),
        ("/etc/kubernetes/pki/apiserver.crt", "an old certificate".to_owned(), 0o644, 0),
        ("/etc/kubernetes/manifests/etcd.yaml", "an old manifest".to_owned(), 0o640, 0),
        ("/etc/kubernetes/kubelet.conf.real", "an old kubelet.conf".to_owned(), 0o600, 7),
        ("/etc/kubernetes/bootstrap-kubelet.conf", "stale".to_owned(), 0o604, 3),
        ("/etc/systemd/system/kubelet.service", "[Service]\n".to_owned(), 0o644, 0),
        ("/home/me/.kube/config", "an old kubeconfig".to_owned(), 0o640, 1000),
        ("/var/lib/kubelet/pki/kubelet-client-2023.pem", "old".to_owned(), 0o600, 0),
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
        ("/etc/kubernetes/kubelet.conf", "/etc/kubernetes/kubelet.conf.real"),
        ("/var/lib/kubelet/pki/kubelet-client-current.pem", "/var/lib/kubelet/pki/kubelet-client-2023.pem"),
    ] {
        symlink(target, at(link)).unwrap();
        lchown(at(link), Some(42), Some(42)).unwrap();
        set_time(&at(link));
    }
    let attribute = |path: &str, name: &str, value: &[u8]| {
        rustix::fs::lsetxattr(at(path), name, value, XattrFlags::empty()).unwrap();
    };
    for path in ["/etc/kubernetes/pki/apiserver.key", "/etc/kubernetes/manifests/etcd.yaml", "/home/me/.kube/config"] {
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

/// Takes every last block, the ones that ext4 keeps hidden even from root too.
fn fill_bytes(root: &Path, device: &LoopDevice) {
    // What is still to be written may need the hidden blocks.
    rustix::fs::syncfs(fs::File::open(root).unwrap()).unwrap();
    let name = device.path().file_name().unwrap().to_owned();
    let hidden = Path::new("/sys/fs/ext4").join(name).join("reserved_clusters");
    if hidden.exists() {
        fs::write(&hidden, "0").unwrap();
    }
    let filler = fs::File::create(root.join("filler")).unwrap();
    let mut length = 0;
    // Twice, because writing everything out may give blocks back.
    for piece in [1 << 20, 1 << 16, 4096, 4096] {
        while rustix::fs::fallocate(&filler, rustix::fs::FallocateFlags::empty(), length, piece).is_ok() {
            length += piece;
        }
        rustix::fs::syncfs(&filler).unwrap();
    }
    let probe = root.join("probe");
    let written = fs::write(&probe, [7; 4096]).and_then(|()| fs::File::open(&probe)?.sync_all());
    assert!(written.is_err(), "there is still a block free");
    fs::remove_file(probe).unwrap_or_default();
}

fn acl_entry(tag: u16, permissions: u16, id: u32) -> Vec<u8> {
    [&tag.to_le_bytes()[..], &permissions.to_le_bytes(), &id.to_le_bytes()].concat()
}

fn set_time(path: &Path) {
    let time = Timespec { tv_sec: GUEST_MTIME, tv_nsec: 123_456_789 };
    let times = Timestamps { last_access: time, last_modification: time };
    rustix::fs::utimensat(rustix::fs::CWD, path, &times, rustix::fs::AtFlags::SYMLINK_NOFOLLOW).unwrap();
}

/// In memory where there is some: thousands of fsyncs on a disk would take most of the time.
fn scratch() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { tempfile::tempdir_in(memory).unwrap() } else { tempfile::tempdir().unwrap() }
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[track_caller]
fn run(program: &str, arguments: &[&str]) {
    let output = Command::new(program).args(arguments).output().unwrap_or_else(|error| panic!("{program}: {error}"));
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{program} {arguments:?}: {out}{err}");
}

/// How a repair is stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stop {
    /// The process dies; the kernel still writes everything out.
    Killed,
    /// The power goes: what was not synchronised is lost.
    PowerCut,
    /// The power goes right after the file system's own journal has committed: names and sizes are there, bytes that nobody
    /// synchronised are not.
    PowerCutAfterCommit,
}

impl Stop {
    fn environment(self) -> Option<(&'static str, String)> {
        let when = match self {
            Self::Killed => return None,
            Self::PowerCut => "now",
            Self::PowerCutAfterCommit => "late",
        };
        Some(("CUT_POWER", when.to_owned()))
    }
}

/// Runs `verb` on copies of `start`, stopped at its first step, its second and so on, until it is not stopped any more; `then` judges
/// what is left each time. Returns how many steps there were.
fn at_every_step(start: &Images, verb: &str, stop: Stop, then: impl Fn(&Images, usize, &Path) + Sync) -> usize {
    let folder = scratch();
    let next = AtomicUsize::new(1);
    let finished = Mutex::new(None::<usize>);
    std::thread::scope(|scope| {
        for _ in 0..WORKERS {
            scope.spawn(|| {
                loop {
                    let step = next.fetch_add(1, Ordering::Relaxed);
                    if finished.lock().unwrap().is_some_and(|end| step >= end) {
                        break;
                    }
                    assert!(step < TOO_MANY, "{verb} never ends");
                    let here = folder.path().join(step.to_string());
                    let images = start.copy_to(&here);
                    let mut environment = vec![("RESCUE_ABORT_AT", step.to_string())];
                    environment.extend(stop.environment());
                    let output = images.driver(verb, &environment);
                    if output.status.success() {
                        let mut end = finished.lock().unwrap();
                        *end = Some(end.map_or(step, |end| end.min(step)));
                        break;
                    }
                    let said = String::from_utf8_lossy(&output.stderr);
                    assert_eq!(output.status.signal(), Some(6), "step {step}: {said}");
                    images.check(stop != Stop::Killed);
                    then(&images, step, &here);
                    fs::remove_dir_all(&here).unwrap();
                }
            });
        }
    });
    finished.into_inner().unwrap().unwrap() - 1
}

/// Everything about one layout.
fn survives(layout: &[(&'static str, &'static str)], full: Full, stop: Stop) {
    let folder = scratch();
    let pristine = Images::make(folder.path(), layout, full);
    let before = pristine.dump();
    let repaired = pristine.copy_to(&folder.path().join("repaired"));
    repaired.succeed("apply");
    let after = repaired.dump();
    assert_ne!(after, before);
    let after = after.but_for_new_times(&before);

    let steps = at_every_step(&pristine, "apply", stop, |images, step, here| {
        let other = images.copy_to(&here.join("undo"));
        images.succeed("apply");
        images.check(false);
        images.dump().but_for_new_times(&before).assert_same(&after, &format!("repaired after step {step}"));

        let undone = other.driver("undo", &[]);
        // Refused where nothing was committed: there is nothing to undo, and everything must be as before.
        assert!(matches!(undone.status.code(), Some(0 | 3)), "{step}: {}", String::from_utf8_lossy(&undone.stderr));
        other.check(false);
        let what = format!("undone after step {step}");
        other.dump().but_for_freed().assert_same(&before.but_for_freed(), &what);
    });
    println!("{layout:?}, full: {full:?}, {stop:?}: {steps} steps of repair, all recovered and undone");
    assert!(steps > 100, "only {steps} steps were tried");

    let steps = at_every_step(&repaired, "undo", stop, |images, step, here| {
        let other = images.copy_to(&here.join("repair"));
        let again = images.driver("undo", &[]);
        // Refused where the undo was complete but for its own clean-up.
        assert!(matches!(again.status.code(), Some(0 | 3)), "{step}: {}", String::from_utf8_lossy(&again.stderr));
        images.check(false);
        let what = format!("undone again after step {step} of an undo");
        images.dump().but_for_freed().assert_same(&before.but_for_freed(), &what);

        other.succeed("apply");
        other.check(false);
        let what = format!("repaired after step {step} of an undo");
        other.dump().but_for_new_times(&before).assert_same(&after, &what);
    });
    println!("{layout:?}, full: {full:?}, {stop:?}: {steps} steps of undo, all continued and repaired again");
    assert!(steps > 40, "only {steps} steps were tried");
}

#[test]
fn killed_on_ext4() {
    survives(&[("/", "ext4")], Full::No, Stop::Killed);
}

#[test]
fn power_cut_with_var_on_a_file_system_of_its_own() {
    survives(&[("/", "ext4"), ("/var", "ext4")], Full::No, Stop::PowerCut);
}

#[test]
fn power_cut_after_commit_on_ext4_without_a_free_byte() {
    survives(&[("/", "ext4")], Full::Bytes, Stop::PowerCutAfterCommit);
}

#[test]
fn power_cut_on_ext4_without_a_free_inode() {
    survives(&[("/", "ext4")], Full::Inodes, Stop::PowerCut);
}

#[test]
fn power_cut_after_commit_on_xfs() {
    survives(&[("/", "xfs")], Full::No, Stop::PowerCutAfterCommit);
}

#[test]
fn a_full_xfs_is_repaired_and_undone() {
    let folder = scratch();
    let images = Images::make(folder.path(), &[("/", "xfs")], Full::Bytes);
    let before = images.dump();
    images.succeed("apply");
    images.check(false);
    assert_ne!(images.dump().but_for_freed(), before.but_for_freed());
    images.succeed("undo");
    images.check(false);
    images.dump().but_for_freed().assert_same(&before.but_for_freed(), "undone");
}

#[test]
fn a_full_disk_where_nothing_may_be_freed_is_refused_and_stays_as_it_is() {
    for (kind, full) in [("ext4", Full::Bytes), ("ext4", Full::Inodes), ("xfs", Full::Bytes)] {
        let folder = scratch();
        let images = Images::make(folder.path(), &[("/", kind)], full);
        let before = images.dump();
        let output = images.driver("apply", &[("FREE_NOTHING", "1".to_owned())]);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(3), "{kind} {full:?}: {said}");
        assert!(said.contains("free some space"), "{kind} {full:?}: {said}");
        images.check(false);
        images.dump().assert_same(&before, "refused");
    }
}

/// Replaced files keep owner, mode and attributes; new ones take a sibling's SELinux label, else the folder's.
#[test]
fn attributes_are_kept_and_labels_found() {
    let folder = scratch();
    let images = Images::make(folder.path(), &[("/", "ext4")], Full::No);
    let before = images.dump();
    images.succeed("apply");
    let after = images.dump();
    // mode, uid, gid and the attributes, without time and content
    let of = |dump: &Dump, path: &str| -> Vec<String> {
        let line =
            dump.0.iter().find(|line| line.starts_with(&format!("{path}|"))).unwrap_or_else(|| panic!("no {path}"));
        let fields: Vec<&str> = line.split('|').collect();
        [2, 3, 4, 7].map(|field| fields[field].to_owned()).to_vec()
    };
    for path in [
        "/etc/kubernetes/pki/apiserver.key",
        "/etc/kubernetes/pki/apiserver.crt",
        "/etc/kubernetes/manifests/etcd.yaml",
        "/etc/kubernetes/kubelet.conf.real",
        "/home/me/.kube/config",
        "/var/lib/kubelet/pki/kubelet-client-current.pem",
        "/var/log/syslog",
    ] {
        assert_eq!(of(&after, path), of(&before, path), "{path}");
    }
    assert!(of(&after, "/home/me/.kube/config")[3].contains("system.posix_acl_access="));
    let label = of(&before, "/etc/systemd/system")[3].clone();
    assert!(label.starts_with("security.selinux="));
    for path in [
        "/var/lib/kubelet/pki/kubelet-client-2026.pem",
        "/etc/systemd/system/kubelet.service.d",
        "/etc/systemd/system/kubelet.service.d/90-rescue.conf",
    ] {
        assert_eq!(of(&after, path)[3], label, "{path}");
    }
}
