//! The crash tests stop a repair at every call that the program counts. Here the kernel counts:
//! strace sees every system call that can change a guest, and there are no others.

#![cfg(feature = "faulty")]

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use tests::small_guest::{Full, Images, scratch};

/// System calls that change a file system, and the name that the program counts each by; `None`: it
/// must make none of these.
const CHANGING: [(&str, Option<&str>); 36] = [
    ("ioctl", Some("clone")),
    ("write", Some("write")),
    ("pwrite64", Some("pwrite")),
    ("mkdirat", Some("mkdir")),
    ("symlinkat", Some("symlink")),
    ("linkat", Some("link")),
    ("renameat", Some("rename")),
    ("renameat2", Some("rename")),
    ("unlinkat", Some("unlink")),
    ("fsync", Some("fsync")),
    ("syncfs", Some("syncfs")),
    ("fchownat", Some("chown")),
    ("fchmodat", Some("chmod")),
    ("lsetxattr", Some("setxattr")),
    ("lremovexattr", Some("removexattr")),
    ("ftruncate", Some("ftruncate")),
    ("utimensat", Some("futimens")),
    ("writev", None),
    ("pwritev", None),
    ("mkdir", None),
    ("symlink", None),
    ("link", None),
    ("rename", None),
    ("unlink", None),
    ("rmdir", None),
    ("fdatasync", None),
    ("sync", None),
    ("chown", None),
    ("fchown", None),
    ("chmod", None),
    ("fchmod", None),
    ("setxattr", None),
    ("fsetxattr", None),
    ("truncate", None),
    ("fallocate", None),
    ("mknodat", None),
];

type Counts = BTreeMap<String, usize>;

fn counted_by_the_program(file: &Path) -> Counts {
    let mut counts = Counts::new();
    for name in fs::read_to_string(file)
        .unwrap()
        .lines()
        .filter_map(|line| line.strip_prefix("call "))
    {
        *counts.entry(name.to_owned()).or_default() += 1;
    }
    counts
}

fn counted_by_the_kernel(trace: &str) -> Counts {
    let mut counts = Counts::new();
    for line in trace.lines() {
        let line = line
            .trim_start_matches(|character: char| character.is_ascii_digit() || character == ' ');
        let Some((call, arguments)) = line.split_once('(') else {
            continue;
        };
        // The list of calls itself, and the image as a whole, which is synchronised when all is
        // done.
        if arguments.contains("/calls") || arguments.contains(".img>)") {
            continue;
        }
        // All others only ask, or are about loop devices.
        if call == "ioctl" && !arguments.contains("FICLONE") {
            continue;
        }
        let known = CHANGING.iter().find(|(name, _)| *name == call);
        let name = match (call, known) {
            ("openat" | "openat2" | "open", _) if arguments.contains("O_CREAT") => "create",
            ("unlinkat", _) if arguments.contains("AT_REMOVEDIR") => "rmdir",
            (_, Some((_, Some(name)))) => name,
            (_, Some((name, None))) => name,
            _ => continue,
        };
        *counts.entry(name.to_owned()).or_default() += 1;
    }
    counts
}

#[test]
fn the_program_counts_every_call_that_the_kernel_sees() {
    let folder = scratch();
    let driver = env!("CARGO_BIN_EXE_transaction-driver");
    let images = Images::make(
        driver,
        folder.path(),
        &[("/", "ext4"), ("/var", "ext4")],
        Full::No,
    );
    for verb in ["apply", "undo"] {
        let driver = |strace: &[&str], calls: String| {
            images.driver_under(strace, verb, &[("RESCUE_COUNT_CALLS", calls)])
        };
        compare(folder.path(), verb, images.arguments().len(), driver);
    }
}

/// Three nodes as one: a whole folder replaced, with its database copied, fences, exchanges.
#[test]
fn every_call_of_a_repair_of_several_nodes_is_counted_too() {
    let folder = scratch();
    let nodes: Vec<String> = ["m1", "m2", "m3"]
        .into_iter()
        .map(|name| {
            let root = folder.path().join(name);
            tests::crash::old_member(&root, name);
            format!("{name}={}", root.display())
        })
        .collect();
    for verb in ["apply", "undo"] {
        let driver = |strace: &[&str], calls: String| {
            let mut command = Command::new(strace[0]);
            command
                .args(&strace[1..])
                .arg(env!("CARGO_BIN_EXE_set-driver"))
                .args([verb, "folder"])
                .args(&nodes);
            command.env("RESCUE_COUNT_CALLS", calls).output().unwrap()
        };
        let kernel = compare(folder.path(), verb, 0, driver);
        assert!(
            verb != "apply" || kernel.get("clone") == Some(&1),
            "{kernel:?}"
        );
    }
}

/// Runs `driver` under strace; what it counts must be what the kernel saw, but for one `syncfs` of
/// each of so many file systems, which are synchronised once more to be unmounted.
fn compare(
    folder: &Path,
    verb: &str,
    file_systems: usize,
    driver: impl Fn(&[&str], String) -> Output,
) -> Counts {
    let (calls, trace) = (
        folder.join(format!("{verb}/calls")),
        folder.join(format!("{verb}.trace")),
    );
    fs::create_dir(calls.parent().unwrap()).unwrap();
    let names: Vec<&str> = CHANGING
        .iter()
        .map(|(name, _)| *name)
        .chain(["open", "openat", "openat2"])
        .collect();
    let traced = format!("trace={}", names.join(","));
    let strace = [
        "strace",
        "-f",
        "-qq",
        "-y",
        "-s",
        "8",
        "-e",
        &traced,
        "-o",
        trace.to_str().unwrap(),
    ];
    let output = driver(&strace, calls.display().to_string());
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "{verb} under strace (is it installed, may it trace?): {said}"
    );
    let mut program = counted_by_the_program(&calls);
    let kernel = counted_by_the_kernel(&fs::read_to_string(&trace).unwrap());
    *program.entry("syncfs".to_owned()).or_default() += file_systems;
    println!("{verb}: {kernel:?}");
    assert_eq!(program, kernel, "{verb}");
    assert!(kernel.values().sum::<usize>() > 40, "{verb}: {kernel:?}");
    kernel
}
