//! Several programs for one disk: never two at a time, and whatever the race comes to, the guest is
//! repaired once and whole. And a disk that moves to another machine takes its undo along.

#![cfg(feature = "faulty")]

use std::process::{Command, Stdio};

use tests::small_guest::{Full, Images, populate_folder, scratch};

const DRIVER: &str = env!("CARGO_BIN_EXE_transaction-driver");
const ROUNDS: usize = 5;
const RACERS: usize = 3;

/// Starts some repairs of the same at the same moment. Returns how many were refused.
fn race(argument: &str) -> usize {
    let started: Vec<_> = (0..RACERS)
        .map(|_| {
            let mut command = Command::new(DRIVER);
            command
                .args(["apply", argument])
                .stdout(Stdio::null())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap()
        })
        .collect();
    let mut refused = 0;
    for racer in started {
        let output = racer.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        match output.status.code() {
            Some(0) => {}
            Some(3) => {
                let why = [
                    "another rescue",
                    "open for writing",
                    "is shown as the block device",
                ];
                assert!(why.iter().any(|why| said.contains(why)), "{said}");
                assert!(said.contains("then run this again"), "{said}");
                refused += 1;
            }
            code => panic!("exit code {code:?}: {said}"),
        }
    }
    refused
}

#[test]
fn one_image() {
    let folder = scratch();
    let pristine = Images::make(DRIVER, folder.path(), &[("/", "ext4")], Full::No);
    let before = pristine.dump();
    let repaired = pristine.copy_to(&folder.path().join("repaired"));
    repaired.succeed("apply");
    let after = repaired.dump().but_for_new_times(&before);
    let mut refused = 0;
    for round in 0..ROUNDS {
        let images = pristine.copy_to(&folder.path().join(round.to_string()));
        refused += race(&images.arguments()[0]);
        images.check(false);
        images.succeed("apply");
        images
            .dump()
            .but_for_new_times(&before)
            .assert_same(&after, "after the race");
        assert_eq!(images.succeed("runs"), "1 Done\n");
        images.succeed("undo");
        images
            .dump()
            .but_for_freed()
            .assert_same(&before.but_for_freed(), "undone after the race");
    }
    println!(
        "{refused} of {} racers for an image were refused",
        ROUNDS * RACERS
    );
    assert!(refused > 0, "nobody was ever in the way of another");
}

#[test]
fn one_folder() {
    let mut refused = 0;
    for _ in 0..ROUNDS {
        // Not in memory: a tmpfs has no attributes of users on older kernels.
        let folder = tempfile::tempdir().unwrap();
        populate_folder(folder.path());
        let argument = format!("/=folder={}", folder.path().display());
        refused += race(&argument);
        for verb in ["apply", "runs"] {
            let output = Command::new(DRIVER)
                .args([verb, &argument])
                .output()
                .unwrap();
            assert!(
                output.status.success(),
                "{verb}: {}",
                String::from_utf8_lossy(&output.stderr)
            );
            assert!(
                verb == "apply" || output.stdout == b"1 Done\n",
                "{}",
                String::from_utf8_lossy(&output.stdout)
            );
        }
    }
    println!(
        "{refused} of {} racers for a folder were refused",
        ROUNDS * RACERS
    );
    assert!(refused > 0, "nobody was ever in the way of another");
}

/// The whole program, on a copy of the disk under another name, as on another machine: it lists the
/// runs, takes one back, and gives up what is kept of it.
#[test]
fn a_copied_disk_is_undone_and_pruned() {
    let folder = scratch();
    let images = Images::make(DRIVER, folder.path(), &[("/", "ext4")], Full::No);
    let before = images.dump();
    images.succeed("apply");
    let elsewhere = images.copy_to(&folder.path().join("elsewhere"));
    let disk = elsewhere.path(0).to_owned();
    let rescue = |arguments: &[&str]| {
        let output = Command::new(tests::programs::faulty_binary())
            .args(arguments)
            .arg(&disk)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned()
            + &String::from_utf8_lossy(&output.stderr);
        (output.status.code(), said)
    };
    let (code, listed) = rescue(&["runs"]);
    assert!(code == Some(0) && listed.contains("done"), "{listed}");
    let (code, refused) = rescue(&["runs", "--prune", "--json"]);
    assert!(code == Some(2) && refused.contains("--yes"), "{refused}");
    // The newest stays unless it is said.
    let (code, kept) = rescue(&["runs", "--prune", "--yes"]);
    assert!(
        code == Some(0) && kept.contains("nothing to remove"),
        "{kept}"
    );
    let (code, undone) = rescue(&["undo", "--yes"]);
    assert!(code == Some(0) && undone.contains("taken back"), "{undone}");
    elsewhere
        .dump()
        .but_for_freed()
        .assert_same(&before.but_for_freed(), "undone elsewhere");
    let (code, pruned) = rescue(&["runs", "--prune", "--keep", "0", "--yes"]);
    assert!(
        code == Some(0) && pruned.contains("1 run is removed"),
        "{pruned}"
    );
    let (_, listed) = rescue(&["runs"]);
    assert!(listed.contains("has not repaired"), "{listed}");
    elsewhere.check(false);
}
