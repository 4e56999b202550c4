//! Members that are replaced on file systems without room for the new one beside the old one: both
//! are kept in a folder of this machine meanwhile. Stopped at every step, by killing the process
//! and by cutting the power of all disks; without that folder, and with a changed one.
//!
//! Every n-th step is tried; with `RESCUE_EXHAUSTIVE=1` all are. docs/crash-safety.md has the
//! results.

#![cfg(feature = "faulty")]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use tests::crash::old_member;
use tests::mounts::wait_until_free;
use tests::small_guest::scratch;

const DRIVER: &str = env!("CARGO_BIN_EXE_set-driver");
/// Of a member's database; a disk that is full has less than half of it left.
const DATABASE: usize = 2 << 20;
const FILLED: usize = 4_300_000;

/// Nodes `m1`, `m2` … on an ext4 each, and the folder where members are kept.
struct Nodes {
    folder: PathBuf,
    count: usize,
}

impl Nodes {
    /// `full`: which of them has no room.
    fn make(folder: &Path, count: usize, full: usize) -> Self {
        fs::create_dir_all(folder.join("keep")).unwrap();
        for n in 1..=count {
            let (name, files) = (format!("m{n}"), folder.join("files"));
            old_member(&files, &name);
            let member = files.join("var/lib/etcd/member");
            let mut database: Vec<u8> = (0..DATABASE as u64)
                .map(|at| (at.wrapping_mul(2_654_435_761) >> 13) as u8)
                .collect();
            database.extend(format!("data of {name}").bytes());
            fs::write(member.join("snap/db"), database).unwrap();
            fs::set_permissions(member.join("wal/0.wal"), fs::Permissions::from_mode(0o640))
                .unwrap();
            for path in ["", "snap", "snap/db", "wal/0.wal"] {
                std::os::unix::fs::chown(member.join(path), Some(52), Some(53)).unwrap();
                let value = format!("label of {path}");
                let flags = rustix::fs::XattrFlags::empty();
                rustix::fs::setxattr(
                    member.join(path),
                    "security.selinux",
                    value.as_bytes(),
                    flags,
                )
                .unwrap();
            }
            std::os::unix::fs::symlink("db", member.join("snap/link")).unwrap();
            if n == full {
                fs::write(files.join("var/filled"), vec![1; FILLED]).unwrap();
            }
            let mkfs = Command::new("mkfs.ext4")
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
                .arg(folder.join(format!("{name}.img")))
                .arg("8M")
                .status();
            assert!(mkfs.unwrap().success(), "mkfs.ext4");
            fs::remove_dir_all(&files).unwrap();
        }
        Self {
            folder: folder.to_path_buf(),
            count,
        }
    }

    fn copy_to(&self, folder: &Path) -> Self {
        fs::create_dir_all(folder).unwrap();
        let from = self.folder.join(".");
        let copied = Command::new("cp")
            .args(["-a", "--sparse=always"])
            .arg(from)
            .arg(folder)
            .status();
        assert!(copied.unwrap().success(), "cp");
        Self {
            folder: folder.to_path_buf(),
            count: self.count,
        }
    }

    fn images(&self) -> impl Iterator<Item = PathBuf> {
        (1..=self.count).map(|n| self.folder.join(format!("m{n}.img")))
    }

    fn keep(&self) -> PathBuf {
        self.folder.join("keep")
    }

    fn driver(&self, verb: &str, environment: &[(&str, String)]) -> Output {
        let mut command = Command::new(DRIVER);
        command.args([verb, "ext4"]);
        command.args(
            self.images()
                .enumerate()
                .map(|(n, path)| format!("m{}={}", n + 1, path.display())),
        );
        command.env("MEMBER_BYTES", (DATABASE + (64 << 10)).to_string());
        let given = environment.iter().any(|(name, _)| *name == "KEEP_IN");
        if !given {
            command.env("KEEP_IN", self.keep());
        }
        let wanted = environment.iter().filter(|(_, value)| !value.is_empty());
        let output = command.envs(wanted.cloned()).output().unwrap();
        self.images()
            .for_each(|path| wait_until_free(&path).unwrap());
        output
    }

    #[track_caller]
    fn succeed(&self, verb: &str, when: &str) -> String {
        let output = self.driver(verb, &[]);
        assert!(output.status.success(), "{verb} {when}: {}", said(&output));
        String::from_utf8(output.stdout).unwrap()
    }

    #[track_caller]
    fn look(&self, when: &str) -> Seen {
        let text = self.succeed("look", when);
        for path in self.images() {
            let check = Command::new("e2fsck")
                .arg("-fn")
                .arg(&path)
                .output()
                .unwrap();
            assert!(
                check.status.success(),
                "{when}: {}",
                String::from_utf8_lossy(&check.stdout)
            );
        }
        let mut seen = Seen::default();
        for line in text.lines() {
            match line.strip_prefix("state ") {
                Some(state) => seen
                    .members
                    .push(state.split(' ').nth(1).unwrap().to_owned()),
                None if line.contains(" /var/lib/rescue") => seen.ours.push(line.to_owned()),
                None => seen.files.push(line.to_owned()),
            }
        }
        seen
    }

    fn points(&self, verb: &str) -> usize {
        let count = self.folder.join("calls");
        let output = self.driver(verb, &[("RESCUE_COUNT_CALLS", count.display().to_string())]);
        assert!(output.status.success(), "{verb}: {}", said(&output));
        let lines = fs::read_to_string(&count).unwrap();
        fs::remove_file(count).unwrap();
        lines
            .lines()
            .filter(|line| line.starts_with("point "))
            .count()
    }

    fn stop(&self, verb: &str, step: usize, power: &str) {
        let environment = [
            ("RESCUE_ABORT_AT", step.to_string()),
            ("CUT_POWER", power.to_owned()),
        ];
        let output = self.driver(verb, &environment);
        assert_eq!(
            output.status.signal(),
            Some(6),
            "{verb} at step {step}: {}",
            said(&output)
        );
    }

    /// The one folder of a node below that of the run.
    fn kept(&self) -> PathBuf {
        let only = |folder: &Path| {
            fs::read_dir(folder)
                .unwrap()
                .next()
                .unwrap()
                .unwrap()
                .path()
        };
        only(&only(&self.keep()))
    }
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[derive(Debug, Default, PartialEq)]
struct Seen {
    members: Vec<String>,
    files: Vec<String>,
    ours: Vec<String>,
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

fn survives(count: usize, full: usize, power: &str, thinned: usize) {
    let folder = scratch();
    let start = Nodes::make(&folder.path().join("old"), count, full);
    let old = start.look("at first");
    let done = start.copy_to(&folder.path().join("done"));
    done.succeed("apply", "at first");
    assert!(
        done.kept().join("old/snap/db").exists(),
        "it was to be kept elsewhere"
    );
    let all = std::env::var_os("RESCUE_EXHAUSTIVE").is_some();
    for (verb, from) in [("apply", &start), ("undo", &done)] {
        let total = from.copy_to(&folder.path().join(verb)).points(verb);
        let steps = (1..=total).filter(|step| all || step % thinned == 1);
        let mut tried = 0;
        for step in steps {
            tried += 1;
            let here = tempfile::tempdir_in(folder.path()).unwrap();
            let when = &format!("{verb} stopped at step {step}");
            let nodes = from.copy_to(&here.path().join("repair"));
            nodes.stop(verb, step, power);
            let other = nodes.copy_to(&here.path().join("undo"));
            let seen = nodes.look(when);
            let any = |state: &str| seen.members.iter().any(|member| member == state);
            assert!(
                !any("missing"),
                "{when}: etcd would start empty: {:?}",
                seen.members
            );
            assert!(
                !(any("old") && any("new")),
                "{when}: two clusters: {:?}",
                seen.members
            );

            nodes.succeed("apply", when);
            let repaired = nodes.look(when);
            assert_eq!(repaired.members, wanted(count), "{when}, then repaired");
            assert!(
                !repaired.ours.iter().any(|line| line.contains("/staged")),
                "{when}: {:?}",
                repaired.ours
            );

            let undone = other.driver("undo", &[]);
            assert!(
                matches!(undone.status.code(), Some(0 | 3)),
                "{when}: {}",
                said(&undone)
            );
            let back = other.look(when);
            assert_eq!(
                back.files,
                old.files,
                "{when}, then undone: {}",
                said(&undone)
            );
        }
        println!(
            "{count} nodes, power {power:?}: {tried} of {total} steps of {verb}, all safe, \
             recovered and undone"
        );
        assert!(
            total > 60 && tried >= total / thinned,
            "only {tried} of {total} steps were tried"
        );
    }
}

#[test]
fn one_killed() {
    survives(1, 1, "", 9);
}

#[test]
fn power_cut_of_one() {
    survives(1, 1, "now", 11);
}

#[test]
fn power_cut_of_three_of_which_one_is_full() {
    survives(3, 2, "late", 29);
}

/// Cut off with the fence in place: without the folder, or with a changed one, nothing is done, and
/// the fence stands.
#[test]
fn without_what_is_kept_nothing_is_done() {
    let folder = scratch();
    let start = Nodes::make(&folder.path().join("old"), 1, 1);
    let old = start.look("at first");
    let count = start.copy_to(&folder.path().join("count"));
    let calls = folder.path().join("calls");
    let counted = count.driver(
        "apply",
        &[("RESCUE_COUNT_CALLS", calls.display().to_string())],
    );
    assert!(counted.status.success());
    let lines = fs::read_to_string(calls).unwrap();
    let points: Vec<&str> = lines
        .lines()
        .filter_map(|line| line.strip_prefix("point "))
        .collect();
    let at = |name: &str| points.iter().position(|point| *point == name).unwrap() + 1;
    let emptied = points
        .iter()
        .rposition(|point| *point == "phase: filled")
        .unwrap()
        + 1;
    let path = "/var/lib/etcd/member";
    for (step, is_emptied) in [
        (at("phase: both copies read back") - 6, false),
        (emptied, true),
    ] {
        let nodes = start.copy_to(&folder.path().join(format!("stopped-{step}")));
        nodes.stop("apply", step, "");
        let before = nodes.look("stopped");
        assert_eq!(before.members, ["fence"], "{step}");
        let refused = |verb: &str, saying: &str, keep_in: &str| {
            let output = nodes.driver(verb, &[("KEEP_IN", keep_in.to_owned())]);
            assert_eq!(
                output.status.code(),
                Some(3),
                "{verb} at {step}: {}",
                said(&output)
            );
            assert!(said(&output).contains(saying), "{}", said(&output));
            assert_eq!(nodes.look("refused"), before, "{verb} at {step}");
        };
        let keep = nodes.keep().display().to_string();
        let aside = folder.path().join(format!("aside-{step}"));
        fs::rename(nodes.keep(), &aside).unwrap();
        refused("apply", &format!("keeps the old {path} in {keep}"), "");
        if is_emptied {
            refused("undo", "--keep-in DIR", "");
        }
        // Wherever it is now.
        let moved = nodes.copy_to(&folder.path().join(format!("moved-{step}")));
        let output = moved.driver("apply", &[("KEEP_IN", aside.display().to_string())]);
        assert!(output.status.success(), "{}", said(&output));
        assert_eq!(moved.look("moved").members, ["new"]);
        let output = moved.driver("undo", &[("KEEP_IN", aside.display().to_string())]);
        assert!(output.status.success(), "{}", said(&output));
        assert_eq!(moved.look("moved back").files, old.files);

        let again = folder.path().join(format!("again-{step}"));
        let again = start.copy_to(&again);
        again.stop("apply", step, "");
        let changed = if is_emptied {
            "new/snap/db"
        } else {
            "old/wal/0.wal"
        };
        let file = again.kept().join(changed);
        let mut bytes = fs::read(&file).unwrap();
        bytes[7] ^= 1;
        fs::write(&file, &bytes).unwrap();
        let before = again.look("changed");
        let output = again.driver("apply", &[]);
        assert_eq!(output.status.code(), Some(3), "{}", said(&output));
        assert!(
            said(&output).contains("is not as it left it"),
            "{}",
            said(&output)
        );
        assert_eq!(again.look("refused"), before);
        again.succeed("undo", "from the old one");
        assert_eq!(again.look("undone").files, old.files);
    }
}

/// What is said before anything is done.
#[test]
fn refused_before_anything_is_changed() {
    let folder = scratch();
    let nodes = Nodes::make(&folder.path().join("old"), 1, 1);
    let before = nodes.look("at first");
    let output = nodes.driver("apply", &[("KEEP_IN", String::new())]);
    assert_eq!(output.status.code(), Some(3), "{}", said(&output));
    assert!(
        said(&output).contains("add --keep-in DIR, a folder of this machine with 6."),
        "{}",
        said(&output)
    );
    let missing = folder.path().join("missing").display().to_string();
    let output = nodes.driver("apply", &[("KEEP_IN", missing)]);
    assert_eq!(output.status.code(), Some(3), "{}", said(&output));
    // A new folder that does not even fit in the old one's place.
    let large = [("MEMBER_BYTES", (1_u64 << 60).to_string())];
    let output = nodes.driver("apply", &large);
    assert_eq!(output.status.code(), Some(3), "{}", said(&output));
    assert!(said(&output).contains("are missing"), "{}", said(&output));
    assert_eq!(nodes.look("refused"), before);
    assert_eq!(fs::read_dir(nodes.keep()).unwrap().count(), 0);

    nodes.succeed("apply", "at last");
    let kept = nodes.kept();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(
        (
            mode(kept.parent().unwrap()),
            mode(&kept),
            mode(&kept.join("old/snap"))
        ),
        (0o700, 0o700, 0o700)
    );
    assert_eq!(
        (
            mode(&kept.join("old/snap/db")),
            mode(&kept.join("old.json"))
        ),
        (0o600, 0o600)
    );
    assert!(!kept.join("new").exists(), "it is in its place");
    assert!(
        fs::read_to_string(kept.join("README.txt"))
            .unwrap()
            .contains("--keep-in DIR")
    );
}
