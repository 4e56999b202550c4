//! A repair of several nodes as one, stopped at every single step. The disks as they are then never
//! hold two clusters (a new member on one of them, an old one that nobody fenced on another) and
//! never lack a member, which etcd would start empty; the next repair completes it; undo puts
//! everything back, byte for byte. By killing the process, and by cutting the power of all disks at
//! once.
//!
//! Every [`THINNED`]th step is tried; with `RESCUE_EXHAUSTIVE=1` all are. docs/crash-safety.md has
//! the results.

#![cfg(feature = "faulty")]

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicUsize, Ordering};

use rescue::disk::loop_device::{LoopDevice, LoopOptions};
use rescue::mount::mount_writable;
use tests::crash::old_member;
use tests::mounts::wait_until_free;
use tests::small_guest::scratch;

const DRIVER: &str = env!("CARGO_BIN_EXE_set-driver");
const THINNED: usize = 6;
const WORKERS: usize = 2;

/// Some nodes, each on a disk or in a folder of its own.
#[derive(Debug)]
struct Nodes {
    kind: &'static str,
    disks: Vec<(String, PathBuf)>,
}

impl Nodes {
    fn make(folder: &Path, kind: &'static str, count: usize) -> Self {
        fs::create_dir_all(folder).unwrap();
        let disks = (1..=count).map(|n| {
            let (name, files) = (format!("m{n}"), folder.join(format!("m{n}")));
            old_member(&files, &name);
            if kind == "folder" {
                return (name, files);
            }
            let image = folder.join(format!("m{n}.img"));
            if kind == "xfs" {
                make_xfs(&image, &files);
                return (name, image);
            }
            let status = Command::new("mkfs.ext4")
                .args([
                    "-q",
                    "-F",
                    "-b",
                    "1024",
                    "-J",
                    "size=1",
                    "-N",
                    "256",
                    "-E",
                    "lazy_itable_init=0,nodiscard",
                ])
                .arg("-d")
                .arg(&files)
                .arg(&image)
                .arg("8M")
                .status();
            assert!(status.unwrap().success(), "mkfs.ext4");
            fs::remove_dir_all(&files).unwrap();
            (name, image)
        });
        Self {
            kind,
            disks: disks.collect(),
        }
    }

    fn copy_to(&self, folder: &Path) -> Self {
        fs::create_dir_all(folder).unwrap();
        let disks = self.disks.iter().map(|(name, path)| {
            let to = folder.join(path.file_name().unwrap());
            assert!(
                Command::new("cp")
                    .args(["-a", "--sparse=always"])
                    .arg(path)
                    .arg(&to)
                    .status()
                    .unwrap()
                    .success()
            );
            (name.clone(), to)
        });
        Self {
            kind: self.kind,
            disks: disks.collect(),
        }
    }

    fn driver(&self, verb: &str, environment: &[(&str, String)]) -> Output {
        self.driver_of(&self.disks, verb, environment)
    }

    fn driver_of(
        &self,
        disks: &[(String, PathBuf)],
        verb: &str,
        environment: &[(&str, String)],
    ) -> Output {
        let mut command = Command::new(DRIVER);
        command.args([verb, self.kind]);
        command.args(
            disks
                .iter()
                .map(|(name, path)| format!("{name}={}", path.display())),
        );
        let output = command.envs(environment.iter().cloned()).output().unwrap();
        if self.kind != "folder" {
            self.disks
                .iter()
                .for_each(|(_, path)| wait_until_free(path).unwrap());
        }
        output
    }

    #[track_caller]
    fn succeed(&self, verb: &str, when: &str) -> String {
        let output = self.driver(verb, &[]);
        assert!(
            output.status.success(),
            "{verb} {when}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).unwrap()
    }

    /// What each member is, and every file but our own records.
    #[track_caller]
    fn look(&self, when: &str) -> Seen {
        let text = self.succeed("look", when);
        if self.kind != "folder" {
            let program = if self.kind == "xfs" {
                ["xfs_repair", "-n"]
            } else {
                ["e2fsck", "-fn"]
            };
            for (name, path) in &self.disks {
                let check = Command::new(program[0])
                    .arg(program[1])
                    .arg(path)
                    .output()
                    .unwrap();
                assert!(
                    check.status.success(),
                    "{name} {when}: {}",
                    String::from_utf8_lossy(&check.stdout)
                );
            }
        }
        let mut seen = Seen::default();
        for line in text.lines() {
            if let Some(state) = line.strip_prefix("state ") {
                seen.members
                    .push(state.split(' ').nth(1).unwrap().to_owned());
            } else if line.contains(" /var/lib/rescue") {
                seen.ours.push(line.to_owned());
            } else {
                seen.files.push(line.to_owned());
            }
        }
        seen
    }
}

#[derive(Debug, Default, PartialEq)]
struct Seen {
    members: Vec<String>,
    files: Vec<String>,
    ours: Vec<String>,
}

impl Seen {
    fn any(&self, state: &str) -> bool {
        self.members.iter().any(|member| member == state)
    }

    #[track_caller]
    fn assert_safe(&self, when: &str) {
        assert!(
            !self.any("missing"),
            "{when}: etcd would start empty: {:?}",
            self.members
        );
        assert!(
            !(self.any("old") && self.any("new")),
            "{when}: two clusters: {:?}",
            self.members
        );
    }

    #[track_caller]
    fn assert_nothing_kept(&self, what: &[&str], when: &str) {
        let kept: Vec<&String> = self
            .ours
            .iter()
            .filter(|line| what.iter().any(|what| line.contains(what)))
            .collect();
        assert!(kept.is_empty(), "{when}: {kept:?}");
    }
}

/// The smallest that mkfs.xfs makes, with `files` moved into it.
fn make_xfs(image: &Path, files: &Path) {
    fs::File::create(image).unwrap().set_len(300 << 20).unwrap();
    let status = Command::new("mkfs.xfs")
        .args(["-q", "-f", "-l", "size=64m"])
        .arg(image)
        .status();
    assert!(status.unwrap().success(), "mkfs.xfs");
    let options = LoopOptions {
        read_only: false,
        ..LoopOptions::default()
    };
    let device = LoopDevice::open(image, &options).expect("these tests need root and loop devices");
    let mount = mount_writable(&device.path(), "xfs").unwrap();
    // As another process names it.
    let own = Path::new("/proc").join(std::process::id().to_string());
    let to = own
        .join(mount.path().strip_prefix("/proc/self").unwrap())
        .join(".");
    for folder in ["etc", "var"] {
        assert!(
            Command::new("cp")
                .arg("-a")
                .arg(files.join(folder))
                .arg(&to)
                .status()
                .unwrap()
                .success(),
            "cp"
        );
    }
    mount.unmount().unwrap();
    drop(device);
    wait_until_free(image).unwrap();
    fs::remove_dir_all(files).unwrap();
}

fn wanted(count: usize) -> Vec<String> {
    let state = |n| {
        if n == count && count > 1 {
            "fence"
        } else {
            "new"
        }
    };
    (1..=count).map(|n| state(n).to_owned()).collect()
}

/// How many steps a verb takes when nobody stops it.
fn count_steps(start: &Nodes, verb: &str) -> usize {
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

/// Tries `step` for all steps, or some.
fn for_each_step(total: usize, thinned: usize, salt: usize, step: impl Fn(usize) + Sync) -> usize {
    let all = std::env::var_os("RESCUE_EXHAUSTIVE").is_some();
    let steps: Vec<usize> = (1..=total)
        .filter(|step| all || step % thinned == salt % thinned)
        .collect();
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..WORKERS {
            scope.spawn(|| {
                while let Some(&number) = steps.get(next.fetch_add(1, Ordering::Relaxed)) {
                    step(number);
                }
            });
        }
    });
    steps.len()
}

/// `start`, stopped in `verb` at `step`. Always the same, however often it is done.
fn stopped(start: &Nodes, folder: &Path, verb: &str, step: usize, power: Option<&str>) -> Nodes {
    let nodes = start.copy_to(folder);
    let mut environment = vec![("RESCUE_ABORT_AT", step.to_string())];
    environment.extend(power.map(|when| ("CUT_POWER", when.to_owned())));
    let output = nodes.driver(verb, &environment);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(
        output.status.signal(),
        Some(6),
        "{verb} at step {step}: {said}"
    );
    nodes
}

/// The prepared nodes; a set that is done lies on disks, or is made again in folders: copying those
/// gives other inodes.
struct Start {
    kind: &'static str,
    count: usize,
    old: Nodes,
    done: Option<Nodes>,
    _folder: tempfile::TempDir,
}

impl Start {
    fn new(kind: &'static str, count: usize) -> Self {
        let folder = scratch();
        let old = Nodes::make(&folder.path().join("old"), kind, count);
        let done = (kind != "folder").then(|| {
            let done = old.copy_to(&folder.path().join("done"));
            done.succeed("apply", "at first");
            done
        });
        Self {
            kind,
            count,
            old,
            done,
            _folder: folder,
        }
    }

    fn stopped(&self, folder: &Path, verb: &str, step: usize, power: Option<&str>) -> Nodes {
        match (verb, &self.done) {
            ("undo", Some(done)) => stopped(done, folder, verb, step, power),
            ("undo", None) => {
                let nodes = self.old.copy_to(folder);
                nodes.succeed("apply", "before its undo");
                let output = nodes.driver("undo", &[("RESCUE_ABORT_AT", step.to_string())]);
                assert_eq!(
                    output.status.signal(),
                    Some(6),
                    "{step}: {}",
                    String::from_utf8_lossy(&output.stderr)
                );
                nodes
            }
            _ => stopped(&self.old, folder, verb, step, power),
        }
    }

    fn steps(&self, verb: &str) -> usize {
        match (verb, &self.done) {
            ("undo", Some(done)) => count_steps(done, verb),
            ("undo", None) => {
                let folder = scratch();
                let nodes = self.old.copy_to(folder.path());
                nodes.succeed("apply", "before its undo");
                let count = folder.path().join("calls");
                let output = nodes.driver(
                    "undo",
                    &[("RESCUE_COUNT_CALLS", count.display().to_string())],
                );
                assert!(
                    output.status.success(),
                    "{}",
                    String::from_utf8_lossy(&output.stderr)
                );
                fs::read_to_string(count)
                    .unwrap()
                    .lines()
                    .filter(|line| line.starts_with("point "))
                    .count()
            }
            _ => count_steps(&self.old, verb),
        }
    }
}

fn survives(kind: &'static str, count: usize, power: Option<&str>, thinned: usize, salt: usize) {
    let start = Start::new(kind, count);
    let old = start.old.look("at first");
    for verb in ["apply", "undo"] {
        let total = start.steps(verb);
        let tried = for_each_step(total, thinned, salt, |step| {
            let folder = scratch();
            let here = |what: &str| folder.path().join(what);
            let when = &format!("{verb} stopped at step {step}");
            let nodes = start.stopped(&here("repair"), verb, step, power);
            // On disks a copy is the same state; in folders it has to be made again.
            let other = match start.kind {
                "folder" => start.stopped(&here("undo"), verb, step, power),
                _ => nodes.copy_to(&here("undo")),
            };
            nodes.look(when).assert_safe(when);

            nodes.succeed("apply", when);
            let repaired = nodes.look(when);
            assert_eq!(
                repaired.members,
                wanted(start.count),
                "{when}, then repaired"
            );
            repaired.assert_nothing_kept(&["/staged"], when);

            let undone = other.driver("undo", &[]);
            // Refused where nothing was committed, or all is undone: everything must be as before.
            let said = String::from_utf8_lossy(&undone.stderr);
            assert!(
                matches!(undone.status.code(), Some(0 | 3)),
                "{when}: {said}"
            );
            let back = other.look(when);
            assert_eq!(back.files, old.files, "{when}, then undone: {said}");
            if undone.status.success() {
                back.assert_nothing_kept(&["/staged", "/backup"], when);
            }
        });
        println!(
            "{count} on {kind}, {power:?}: {tried} of {total} steps of {verb}, all safe, recovered \
             and undone"
        );
        assert!(
            total > 15 * count && tried >= total / thinned,
            "only {tried} of {total} steps were tried"
        );
    }
}

#[test]
fn one_folder_killed() {
    survives("folder", 1, None, 3, 0);
}

#[test]
fn two_folders_killed() {
    survives("folder", 2, None, 4, 1);
}

#[test]
fn three_folders_killed() {
    survives("folder", 3, None, THINNED, 2);
}

#[test]
fn power_cut_of_two_disks() {
    survives("ext4", 2, Some("now"), 2 * THINNED, 3);
}

#[test]
fn power_cut_of_one_xfs_after_its_log_committed() {
    survives("xfs", 1, Some("late"), THINNED, 5);
}

#[test]
fn power_cut_of_three_disks_after_their_journals_committed() {
    survives("ext4", 3, Some("late"), 3 * THINNED, 4);
}

/// With any of the three missing nothing is completed and nothing put back.
#[test]
fn two_of_three_are_refused_and_stay_as_they_are() {
    let start = Start::new("folder", 3);
    let total = start.steps("apply");
    for step in [total / 2, total * 5 / 8, total * 3 / 4] {
        let folder = scratch();
        let nodes = start.stopped(folder.path(), "apply", step, None);
        let before = nodes.look("stopped");
        for without in 0..3 {
            let mut few = nodes.disks.clone();
            let (missing, _) = few.remove(without);
            for verb in ["apply", "undo"] {
                let output = nodes.driver_of(&few, verb, &[]);
                let said = String::from_utf8_lossy(&output.stderr);
                assert_eq!(
                    output.status.code(),
                    Some(3),
                    "{verb} without {missing} at step {step}: {said}"
                );
                assert!(
                    said.contains(&format!("disks of {missing} too")) || verb == "undo",
                    "{said}"
                );
                assert_eq!(nodes.look("refused"), before, "{verb} without {missing}");
            }
        }
        nodes.succeed("apply", "with all of them");
    }
}

/// Calls that fail instead: what is said is so. Exit code 3: nothing is changed on any of the
/// nodes.
#[test]
fn failing_calls_are_told_truly() {
    let start = Start::new("folder", 2);
    let folder = scratch();
    let count = folder.path().join("calls");
    let nodes = start.old.copy_to(&folder.path().join("count"));
    assert!(
        nodes
            .driver(
                "apply",
                &[("RESCUE_COUNT_CALLS", count.display().to_string())]
            )
            .status
            .success()
    );
    let total = fs::read_to_string(count)
        .unwrap()
        .lines()
        .filter(|line| line.starts_with("call "))
        .count();
    let old = start.old.look("at first");
    for (n, (lasts, with)) in [("", "EIO"), ("+", "EIO"), ("", "ENOSPC")]
        .into_iter()
        .enumerate()
    {
        let tried = for_each_step(total, 2 * THINNED, 5 * n, |call| {
            let folder = scratch();
            let nodes = start.old.copy_to(folder.path());
            let fault = [
                ("RESCUE_FAIL_AT", format!("{call}{lasts}")),
                ("RESCUE_FAIL_WITH", with.to_owned()),
            ];
            let output = nodes.driver("apply", &fault);
            let said = String::from_utf8_lossy(&output.stderr);
            let when = &format!("call {call}{lasts} failed with {with}: {said}");
            let seen = nodes.look(when);
            seen.assert_safe(when);
            match output.status.code() {
                Some(0) => assert_eq!(seen.members, wanted(2), "{when}"),
                Some(3) => assert_eq!(seen.files, old.files, "{when}"),
                Some(4) => {}
                other => panic!("exit code {other:?}: {when}"),
            }
            nodes.succeed("apply", when);
            assert_eq!(nodes.look(when).members, wanted(2), "{when}");
            nodes.succeed("undo", when);
            assert_eq!(nodes.look(when).files, old.files, "{when}");
        });
        println!(
            "{tried} of {total} calls failed with {with}{lasts}, all told truly and recovered"
        );
        assert!(
            total > 60 && tried >= total / (2 * THINNED),
            "{tried} of {total}"
        );
    }
}
