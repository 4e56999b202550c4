//! A repair stopped at every single step, on real file systems: the next repair completes it, undo
//! puts everything back, and the file system is clean. By killing the process, and by cutting the
//! power at that step, when only what was synchronised survives.
//!
//! Every [`THINNED`]th step is tried (on btrfs, whose checks take longest, every
//! [`THINNED_ON_BTRFS`]th); with `RESCUE_EXHAUSTIVE=1` all are. docs/crash-safety.md has the
//! results.

#![cfg(feature = "faulty")]

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use tests::small_guest::{BTRFS, Dump, Full, Images, scratch};

const DRIVER: &str = env!("CARGO_BIN_EXE_transaction-driver");

/// One in so many steps is tried, another one by each test.
const THINNED: usize = 4;
const THINNED_ON_BTRFS: usize = 16;
/// As many at once as the machine has cores.
const WORKERS: usize = 2;

/// See [`THINNED`].
fn thinned(images: &Images) -> usize {
    if images.is_btrfs() {
        THINNED_ON_BTRFS
    } else {
        THINNED
    }
}

/// Two copies of one btrfs are not mounted at the same time by every kernel.
fn workers(images: &Images) -> usize {
    if images.is_btrfs() { 1 } else { WORKERS }
}

/// How a repair is stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stop {
    /// The process dies; the kernel still writes everything out.
    Killed,
    /// The power goes: what was not synchronised is lost.
    PowerCut,
    /// The power goes right after the file system's own journal has committed: names and sizes are
    /// there, bytes that nobody synchronised are not.
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

/// How many steps `verb` takes when nobody stops it.
fn count_steps(start: &Images, verb: &str) -> usize {
    let folder = scratch();
    let count = folder.path().join("calls");
    let output = start
        .copy_to(folder.path())
        .driver(verb, &[("RESCUE_COUNT_CALLS", count.display().to_string())]);
    assert!(
        output.status.success(),
        "{verb}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    fs::read_to_string(count)
        .unwrap()
        .lines()
        .filter(|line| line.starts_with("point "))
        .count()
}

/// Runs `verb` on copies of `start`, stopped at each step in turn; `then` judges what is left each
/// time. Returns how many were tried and how many there are.
fn at_every_step(
    start: &Images,
    verb: &str,
    stop: Stop,
    salt: usize,
    then: impl Fn(&Images, usize, &Path) + Sync,
) -> (usize, usize) {
    let folder = scratch();
    let total = count_steps(start, verb);
    let all = std::env::var_os("RESCUE_EXHAUSTIVE").is_some();
    let thinned = thinned(start);
    let steps: Vec<usize> = (1..=total)
        .filter(|step| all || step % thinned == salt % thinned)
        .collect();
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..workers(start) {
            scope.spawn(|| {
                while let Some(&step) = steps.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let here = folder.path().join(step.to_string());
                    let images = start.copy_to(&here);
                    let mut environment = vec![("RESCUE_ABORT_AT", step.to_string())];
                    environment.extend(stop.environment());
                    let output = images.driver(verb, &environment);
                    let said = String::from_utf8_lossy(&output.stderr);
                    assert_eq!(output.status.signal(), Some(6), "step {step}: {said}");
                    images.check(stop != Stop::Killed);
                    then(&images, step, &here);
                    fs::remove_dir_all(&here).unwrap();
                }
            });
        }
    });
    (steps.len(), total)
}

/// Everything about one layout.
fn survives(layout: &[(&'static str, &'static str)], full: Full, stop: Stop, salt: usize) {
    let folder = scratch();
    let pristine = Images::make(DRIVER, folder.path(), layout, full);
    let before = pristine.dump();
    let repaired = pristine.copy_to(&folder.path().join("repaired"));
    repaired.succeed("apply");
    let after = repaired.dump();
    assert_ne!(after, before);
    let after = after.but_for_new_times(&before);

    let (tried, steps) = at_every_step(&pristine, "apply", stop, salt, |images, step, here| {
        let other = images.copy_to(&here.join("undo"));
        images.succeed("apply");
        images.check(false);
        images
            .dump()
            .but_for_new_times(&before)
            .assert_same(&after, &format!("repaired after step {step}"));

        let undone = other.driver("undo", &[]);
        // Refused where nothing was committed: there is nothing to undo, and everything must be as
        // before.
        assert!(
            matches!(undone.status.code(), Some(0 | 3)),
            "{step}: {}",
            String::from_utf8_lossy(&undone.stderr)
        );
        other.check(false);
        let what = format!("undone after step {step}");
        other
            .dump()
            .but_for_freed()
            .assert_same(&before.but_for_freed(), &what);
    });
    println!(
        "{layout:?}, full: {full:?}, {stop:?}: {tried} of {steps} steps of repair, all recovered \
         and undone"
    );
    assert!(
        steps > 120 && tried > steps / thinned(&pristine) - 1,
        "only {tried} of {steps} steps were tried"
    );

    let (tried, steps) = at_every_step(&repaired, "undo", stop, salt, |images, step, here| {
        let other = images.copy_to(&here.join("repair"));
        let again = images.driver("undo", &[]);
        // Refused where the undo was complete but for its own clean-up.
        assert!(
            matches!(again.status.code(), Some(0 | 3)),
            "{step}: {}",
            String::from_utf8_lossy(&again.stderr)
        );
        images.check(false);
        let what = format!("undone again after step {step} of an undo");
        images
            .dump()
            .but_for_freed()
            .assert_same(&before.but_for_freed(), &what);

        other.succeed("apply");
        other.check(false);
        let what = format!("repaired after step {step} of an undo");
        other
            .dump()
            .but_for_new_times(&before)
            .assert_same(&after, &what);
    });
    println!(
        "{layout:?}, full: {full:?}, {stop:?}: {tried} of {steps} steps of undo, all continued and \
         repaired again"
    );
    assert!(
        steps > 40 && tried > steps / thinned(&pristine) - 1,
        "only {tried} of {steps} steps were tried"
    );
}

#[test]
fn killed_on_ext4() {
    survives(&[("/", "ext4")], Full::No, Stop::Killed, 0);
}

#[test]
fn power_cut_with_var_on_a_file_system_of_its_own() {
    survives(
        &[("/", "ext4"), ("/var", "ext4")],
        Full::No,
        Stop::PowerCut,
        1,
    );
}

#[test]
fn power_cut_after_commit_on_ext4_without_a_free_byte() {
    survives(&[("/", "ext4")], Full::Bytes, Stop::PowerCutAfterCommit, 2);
}

#[test]
fn power_cut_on_ext4_without_a_free_inode() {
    survives(&[("/", "ext4")], Full::Inodes, Stop::PowerCut, 3);
}

#[test]
fn power_cut_after_commit_on_xfs() {
    survives(&[("/", "xfs")], Full::No, Stop::PowerCutAfterCommit, 4);
}

#[test]
fn killed_on_btrfs_with_var_in_a_subvolume_of_its_own() {
    survives(
        &[("/", BTRFS[0]), ("/var", BTRFS[1])],
        Full::No,
        Stop::Killed,
        5,
    );
}

#[test]
fn power_cut_on_btrfs_with_var_in_a_subvolume_of_its_own() {
    survives(
        &[("/", BTRFS[0]), ("/var", BTRFS[1])],
        Full::No,
        Stop::PowerCut,
        13,
    );
}

#[test]
fn a_full_xfs_is_repaired_and_undone() {
    let folder = scratch();
    let images = Images::make(DRIVER, folder.path(), &[("/", "xfs")], Full::Bytes);
    let before = images.dump();
    images.succeed("apply");
    images.check(false);
    assert_ne!(images.dump().but_for_freed(), before.but_for_freed());
    images.succeed("undo");
    images.check(false);
    images
        .dump()
        .but_for_freed()
        .assert_same(&before.but_for_freed(), "undone");
}

#[test]
fn a_full_disk_where_nothing_may_be_freed_is_refused_and_stays_as_it_is() {
    for (kind, full) in [
        ("ext4", Full::Bytes),
        ("ext4", Full::Inodes),
        ("xfs", Full::Bytes),
    ] {
        let folder = scratch();
        let images = Images::make(DRIVER, folder.path(), &[("/", kind)], full);
        let before = images.dump();
        let output = images.driver("apply", &[("FREE_NOTHING", "1".to_owned())]);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(3), "{kind} {full:?}: {said}");
        assert!(said.contains("free some space"), "{kind} {full:?}: {said}");
        images.check(false);
        images.dump().assert_same(&before, "refused");
    }
}

/// Replaced files keep owner, mode and attributes; new ones take a sibling's SELinux label, else
/// the folder's.
#[test]
fn attributes_are_kept_and_labels_found() {
    let folder = scratch();
    let images = Images::make(DRIVER, folder.path(), &[("/", "ext4")], Full::No);
    let before = images.dump();
    images.succeed("apply");
    let after = images.dump();
    // mode, uid, gid and the attributes, without time and content
    let of = |dump: &Dump, path: &str| -> Vec<String> {
        let line = dump
            .0
            .iter()
            .find(|line| line.starts_with(&format!("{path}|")))
            .unwrap_or_else(|| panic!("no {path}"));
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
