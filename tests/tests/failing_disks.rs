//! A disk that fails or fills up in the middle: every system call that changes the guest fails in
//! turn, once or from then on. What the program says must be what happened, and the next repair, or
//! undo, must put everything right.
//!
//! Every [`THINNED`]th call is tried; with `RESCUE_EXHAUSTIVE=1` all are. docs/crash-safety.md has
//! the results.

#![cfg(feature = "faulty")]

use std::fs;
use std::path::Path;
use std::process::Output;
use std::sync::atomic::{AtomicUsize, Ordering};

use tests::small_guest::{Dump, Full, Images, scratch};

const DRIVER: &str = env!("CARGO_BIN_EXE_transaction-driver");

/// One in so many calls is tried, another one by each test.
const THINNED: usize = 8;
/// As many at once as the machine has cores.
const WORKERS: usize = 2;
/// Files, links and folders that the driver's repair changes.
const CHANGES: usize = 10;

/// How a call fails.
#[derive(Debug, Clone, Copy)]
struct Failure {
    with: &'static str,
    /// Whether all calls after it fail too.
    lasts: bool,
}

const ONCE_EIO: Failure = Failure {
    with: "EIO",
    lasts: false,
};
const EIO: Failure = Failure {
    with: "EIO",
    lasts: true,
};
const ONCE_ENOSPC: Failure = Failure {
    with: "ENOSPC",
    lasts: false,
};
const ENOSPC: Failure = Failure {
    with: "ENOSPC",
    lasts: true,
};

impl Failure {
    fn environment(self, call: usize) -> [(&'static str, String); 2] {
        let at = if self.lasts {
            format!("{call}+")
        } else {
            call.to_string()
        };
        [
            ("RESCUE_FAIL_AT", at),
            ("RESCUE_FAIL_WITH", self.with.to_owned()),
        ]
    }
}

/// What the driver said and did.
struct Said {
    code: i32,
    text: String,
}

impl Said {
    fn of(output: &Output) -> Self {
        let code = output.status.code().expect("it must live");
        Self {
            code,
            text: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

/// How many calls `verb` makes when none fails.
fn count_calls(start: &Images, verb: &str) -> usize {
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
        .filter(|line| line.starts_with("call "))
        .count()
}

/// Lets each call of `verb` fail in turn, on copies of `start`. Returns how many were tried and how
/// many there are.
fn at_every_call(
    start: &Images,
    verb: &str,
    failure: Failure,
    salt: usize,
    then: impl Fn(&Images, Said, &str, &Path) + Sync,
) -> (usize, usize) {
    let folder = scratch();
    let total = count_calls(start, verb);
    let all = std::env::var_os("RESCUE_EXHAUSTIVE").is_some();
    let calls: Vec<usize> = (1..=total)
        .filter(|call| all || call % THINNED == salt % THINNED)
        .collect();
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..WORKERS {
            scope.spawn(|| {
                while let Some(&call) = calls.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let here = folder.path().join(call.to_string());
                    let images = start.copy_to(&here);
                    let said = Said::of(&images.driver(verb, &failure.environment(call)));
                    assert!(
                        said.text.contains("fault injection"),
                        "call {call} was not reached: {}",
                        said.text
                    );
                    images.check(false);
                    let what = format!("{verb}, {failure:?} at call {call}: {}", said.text);
                    then(&images, said, &what, &here);
                    fs::remove_dir_all(&here).unwrap();
                }
            });
        }
    });
    (calls.len(), total)
}

/// Paths whose line is other than before, freed files and folders' own lines apart.
fn changed(now: &Dump, before: &Dump) -> Vec<String> {
    let (now, before) = (now.but_for_freed(), before.but_for_freed());
    let path = |line: &String| line.split('|').next().unwrap_or_default().to_owned();
    let one_way = |a: &Dump, b: &Dump| {
        a.0.iter()
            .filter(|line| !b.0.contains(line))
            .map(path)
            .collect::<Vec<_>>()
    };
    let mut paths = one_way(&now, &before);
    paths.extend(one_way(&before, &now));
    paths.sort();
    paths.dedup();
    paths
}

/// The number after `words` in what was said.
fn number_after(text: &str, words: &str) -> Option<usize> {
    text.split(words)
        .nth(1)?
        .split_whitespace()
        .next()?
        .parse()
        .ok()
}

/// A repair that failed: exit code and message against what is on the disk.
fn judge_repair(said: &Said, now: &Dump, before: &Dump, what: &str) {
    let paths = changed(now, before);
    match said.code {
        // What failed was only a file to be freed, or nothing that the repair needs.
        0 => assert_eq!(paths.len(), CHANGES, "{what}: {paths:?}"),
        3 => {
            now.assert_same(before, what);
            assert!(
                said.text.contains("no file of the guest was changed"),
                "{what}"
            );
        }
        4 if said.text.contains("unmounting failed") => {}
        4 => {
            let applied = number_after(&said.text, "stopped after ")
                .unwrap_or_else(|| panic!("no number: {what}"));
            // The step that failed may have come into effect; then it is named.
            let in_the_middle = paths
                .iter()
                .any(|path| said.text.contains(&format!("while changing {path}")));
            let most = applied + usize::from(in_the_middle);
            assert!((applied..=most).contains(&paths.len()), "{what}: {paths:?}");
            assert!(
                said.text.contains(&format!(" of {CHANGES} changes")),
                "{what}"
            );
            assert!(said.text.contains("Next: "), "{what}");
        }
        code => panic!("{what}: exit code {code}"),
    }
}

fn survives(layout: &[(&'static str, &'static str)], failure: Failure, salt: usize) {
    let folder = scratch();
    let pristine = Images::make(DRIVER, folder.path(), layout, Full::No);
    let before = pristine.dump();
    let repaired = pristine.copy_to(&folder.path().join("repaired"));
    repaired.succeed("apply");
    let after = repaired.dump().but_for_new_times(&before);

    let (tried, calls) = at_every_call(
        &pristine,
        "apply",
        failure,
        salt,
        |images, said, what, here| {
            judge_repair(&said, &images.dump(), &before, what);
            let other = images.copy_to(&here.join("undo"));
            images.succeed("apply");
            images.check(false);
            images
                .dump()
                .but_for_new_times(&before)
                .assert_same(&after, what);
            assert!(
                images.leftovers().is_empty(),
                "{what}: {:?}",
                images.leftovers()
            );

            let undone = Said::of(&other.driver("undo", &[]));
            assert!(
                matches!(undone.code, 0 | 3),
                "{what}, then undo: {}",
                undone.text
            );
            other.check(false);
            other
                .dump()
                .but_for_freed()
                .assert_same(&before.but_for_freed(), &format!("{what}, then undo"));
        },
    );
    println!(
        "{layout:?}, {failure:?}: {tried} of {calls} calls of a repair failed, all recovered and \
         undone"
    );
    assert!(
        calls > 120 && tried > calls / THINNED - 1,
        "only {tried} of {calls} calls were tried"
    );

    let (tried, calls) = at_every_call(
        &repaired,
        "undo",
        failure,
        salt,
        |images, said, what, here| {
            let now = images.dump();
            match said.code {
                0 => now
                    .but_for_freed()
                    .assert_same(&before.but_for_freed(), what),
                3 => {
                    now.but_for_new_times(&before).assert_same(&after, what);
                    assert!(
                        said.text.contains("no file of the guest was changed"),
                        "{what}"
                    );
                }
                4 if said.text.contains("unmounting failed") => {}
                4 => {
                    let done = number_after(&said.text, "stopped after ")
                        .unwrap_or_else(|| panic!("no number: {what}"));
                    let left = changed(&now, &before).len();
                    let middle = usize::from(said.text.contains("while putting back "));
                    assert!(
                        (CHANGES - done - middle..=CHANGES - done).contains(&left),
                        "{what}: {left} are left"
                    );
                }
                code => panic!("{what}: exit code {code}"),
            }
            let other = images.copy_to(&here.join("repair"));
            let again = Said::of(&images.driver("undo", &[]));
            assert!(
                matches!(again.code, 0 | 3),
                "{what}, then undo: {}",
                again.text
            );
            images.check(false);
            images
                .dump()
                .but_for_freed()
                .assert_same(&before.but_for_freed(), &format!("{what}, then undo"));

            other.succeed("apply");
            other.check(false);
            other
                .dump()
                .but_for_new_times(&before)
                .assert_same(&after, &format!("{what}, then repair"));
        },
    );
    println!(
        "{layout:?}, {failure:?}: {tried} of {calls} calls of an undo failed, all continued and \
         repaired again"
    );
    assert!(
        calls > 40 && tried > calls / THINNED - 1,
        "only {tried} of {calls} calls were tried"
    );
}

#[test]
fn one_call_fails_on_ext4() {
    survives(&[("/", "ext4")], ONCE_EIO, 0);
}

#[test]
fn the_disk_fails_for_good() {
    survives(&[("/", "ext4"), ("/var", "ext4")], EIO, 1);
}

#[test]
fn the_disk_is_full_for_a_moment() {
    survives(&[("/", "ext4")], ONCE_ENOSPC, 2);
}

#[test]
fn the_disk_becomes_full() {
    survives(&[("/", "ext4")], ENOSPC, 3);
}

/// Real file systems with little room left, from none to enough: the repair is made, or refused
/// with the guest as it was. Once as it is, once without the look at the free space, so that the
/// file system really gets full in the middle of staging.
#[test]
fn a_little_room_is_enough_or_nothing_happens() {
    let mut outcomes = [0, 0];
    for (what, amounts) in [
        ("blocks", vec![0, 2, 4, 8, 12, 16, 24, 48]),
        ("inodes", (0..=28).step_by(4).collect()),
    ] {
        for amount in amounts {
            let folder = scratch();
            let images = Images::make(
                DRIVER,
                folder.path(),
                &[("/", "ext4")],
                Full::AllBut { what, amount },
            );
            let before = images.dump();
            for skip in [false, true] {
                let mut environment = vec![("FREE_NOTHING", "1".to_owned())];
                if skip {
                    environment.push(("RESCUE_SKIP_SPACE_CHECK", "1".to_owned()));
                }
                let here = images.copy_to(&folder.path().join(skip.to_string()));
                let said = Said::of(&here.driver("apply", &environment));
                here.check(false);
                let what = format!("{amount} {what} free, skip {skip}: {}", said.text);
                match said.code {
                    0 => {
                        outcomes[0] += 1;
                        assert_eq!(changed(&here.dump(), &before).len(), CHANGES, "{what}");
                        here.succeed("undo");
                    }
                    3 => {
                        outcomes[1] += 1;
                        assert!(
                            said.text.contains("no file of the guest was changed")
                                || said.text.contains("nothing more may be freed"),
                            "{what}"
                        );
                        assert!(
                            here.leftovers().is_empty(),
                            "{what}: {:?}",
                            here.leftovers()
                        );
                    }
                    code => panic!("exit code {code}: {what}"),
                }
                here.check(false);
                here.dump().assert_same(&before, &what);
            }
        }
    }
    println!(
        "repaired {} times, refused {} times",
        outcomes[0], outcomes[1]
    );
    assert!(outcomes.iter().all(|times| *times > 3), "{outcomes:?}");
}
