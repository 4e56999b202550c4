//! Repairs of several nodes as one, cut off, as the command line meets them: completed or discarded
//! with all disks, refused with some, listed, undone on all.

#![cfg(feature = "faulty")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use tests::crash::old_member;
use tests::{Ran, rescue};

const NAMES: [&str; 3] = ["m1", "m2", "m3"];

struct Nodes(tempfile::TempDir);

impl Nodes {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        for name in NAMES {
            let root = folder.path().join(name);
            old_member(&root, name);
            fs::create_dir(root.join("bin")).unwrap();
            fs::write(root.join("etc/hosts"), "127.0.0.1 localhost\n").unwrap();
        }
        Self(folder)
    }

    fn root(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Runs the set, stopped at a step where one is given. Returns how many steps there are.
    fn apply(&self, step: Option<usize>) -> usize {
        self.drive("apply", step)
    }

    fn drive(&self, verb: &str, step: Option<usize>) -> usize {
        let count = self.0.path().join("calls");
        let _ = fs::remove_file(&count);
        let mut command = Command::new(env!("CARGO_BIN_EXE_set-driver"));
        command.args([verb, "folder"]);
        command.args(NAMES.map(|name| format!("{name}={}", self.root(name).display())));
        command
            .env("RESCUE_COUNT_CALLS", &count)
            .envs(step.map(|step| ("RESCUE_ABORT_AT", step.to_string())));
        let output = command.output().unwrap();
        assert_eq!(
            output.status.success(),
            step.is_none(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        fs::read_to_string(&count)
            .unwrap()
            .lines()
            .filter(|line| line.starts_with("point "))
            .count()
    }

    fn rescue(&self, words: &[&str], names: &[&str]) -> Ran {
        let roots = names
            .iter()
            .flat_map(|name| ["--root".into(), self.root(name).into_os_string()]);
        rescue(words.iter().map(Into::into).chain(roots))
            .run()
            .unwrap()
    }

    fn members(&self) -> Vec<&'static str> {
        let state = |name| match fs::read_to_string(
            self.root(name).join("var/lib/etcd/member/wal/0.wal"),
        ) {
            Ok(log) if log.starts_with("new") => "new",
            Ok(log) if log.starts_with("old") => "old",
            _ if Path::is_file(&self.root(name).join("var/lib/etcd/member")) => "fence",
            other => panic!("{name}: {other:?}"),
        };
        NAMES.map(state).to_vec()
    }
}

const REPAIR: [&str; 4] = ["repair", "--yes", "--only", "kubelet-bootstrap"];

#[test]
fn a_set_that_was_cut_off_is_completed_with_all_disks_and_undone_on_all() {
    let steps = Nodes::new().apply(None);
    let nodes = Nodes::new();
    nodes.apply(Some(steps * 3 / 4));
    let before = nodes.members();
    let few = nodes.rescue(&REPAIR, &NAMES[..2]);
    assert_eq!(few.code, 3, "{few:?}");
    assert!(
        few.stderr.contains("give the disks of m3 too"),
        "{}",
        few.stderr
    );
    assert_eq!(nodes.members(), before);
    // A new repair of one of them is no way around it.
    let alone = nodes.rescue(&["undo", "--yes"], &NAMES[1..2]);
    assert_eq!(alone.code, 3, "{alone:?}");
    // Nor is any command of etcd's.
    for words in [
        ["etcd", "rebuild", "--db-only"],
        ["etcd", "defrag", "--compact"],
    ] {
        let other = nodes.rescue(&[&words[..], &["--yes"]].concat(), &NAMES);
        assert_eq!(other.code, 3, "{other:?}");
        assert!(
            other.stderr.contains("was cut off") && nodes.members() == before,
            "{other:?}"
        );
    }

    let listed = nodes.rescue(&["runs"], &NAMES);
    assert!(
        listed.stdout.contains("of m1, m2, m3 together"),
        "{}",
        listed.stdout
    );
    let dry = nodes.rescue(&["repair", "--dry-run"], &NAMES);
    assert!(
        dry.stderr.contains("was cut off") && nodes.members() == before,
        "{dry:?}"
    );

    let done = nodes.rescue(&REPAIR, &NAMES);
    assert_eq!(done.code, 0, "{done:?}");
    assert!(done.stdout.contains(": completed."), "{}", done.stdout);
    assert_eq!(nodes.members(), ["new", "new", "fence"]);
    let listed = nodes.rescue(&["runs", "--json"], &NAMES).json().unwrap();
    let run = &listed["nodes"][0]["runs"][0];
    assert_eq!(
        (
            run["keeps"][0]["path"].as_str(),
            run["together"][2].as_str()
        ),
        (Some("/var/lib/etcd/member"), Some("m3"))
    );

    let undone = nodes.rescue(&["undo", "--yes", "--json"], &NAMES);
    assert_eq!(undone.code, 0, "{undone:?}");
    assert_eq!(
        undone.json().unwrap()["undone_together"][2]["restored"][0],
        "/var/lib/etcd/member"
    );
    assert_eq!(nodes.members(), ["old", "old", "old"]);
}

#[test]
fn a_set_that_never_was_committed_is_discarded() {
    let steps = Nodes::new().apply(None);
    let nodes = Nodes::new();
    nodes.apply(Some(steps / 3));
    let done = nodes.rescue(&REPAIR, &NAMES);
    assert_eq!(done.code, 0, "{done:?}");
    assert!(done.stdout.contains("discarded"), "{}", done.stdout);
    assert_eq!(nodes.members(), ["old", "old", "old"]);
    for name in NAMES {
        assert_eq!(
            fs::read_dir(nodes.root(name).join("var/lib/rescue/runs"))
                .unwrap()
                .count(),
            0
        );
    }
}

#[test]
fn a_member_that_has_run_since_is_not_put_back() {
    let nodes = Nodes::new();
    nodes.apply(None);
    fs::write(
        nodes.root("m2").join("var/lib/etcd/member/wal/1.wal"),
        "etcd ran",
    )
    .unwrap();
    let undone = nodes.rescue(&["undo", "--yes"], &NAMES);
    assert_eq!(undone.code, 3, "{undone:?}");
    assert!(
        undone.stderr.contains("because of m2") && undone.stderr.contains("has run since"),
        "{}",
        undone.stderr
    );
    assert_eq!(nodes.members(), ["new", "new", "fence"]);
}

#[test]
fn an_undo_that_was_cut_off_goes_on_without_a_member_that_has_run_since() {
    let whole = Nodes::new();
    whole.apply(None);
    let steps = whole.drive("undo", None);
    let cut_off = |step| {
        let nodes = Nodes::new();
        nodes.apply(None);
        nodes.drive("undo", Some(step));
        nodes
    };
    // The last step at which the second is what the run made it; the first is fenced already.
    let (mut new, mut fenced) = (1, steps);
    while fenced - new > 1 {
        let middle = new.midpoint(fenced);
        match cut_off(middle).members()[1] {
            "new" => new = middle,
            _ => fenced = middle,
        }
    }
    let nodes = cut_off(new);
    assert_eq!(nodes.members()[..2], ["fence", "new"]);
    fs::write(
        nodes.root("m2").join("var/lib/etcd/member/wal/1.wal"),
        "etcd ran",
    )
    .unwrap();
    let before = nodes.members();
    for words in [&["undo", "--yes"][..], &REPAIR] {
        let refused = nodes.rescue(words, &NAMES);
        assert_eq!(refused.code, 3, "{refused:?}");
        assert!(
            refused.stderr.contains("m2 was started since"),
            "{}",
            refused.stderr
        );
        assert!(
            refused.stderr.contains("--declare-dead m2"),
            "{}",
            refused.stderr
        );
        assert_eq!(nodes.members(), before);
    }
    let undone = nodes.rescue(&["undo", "--yes", "--declare-dead", "m2"], &["m1", "m3"]);
    assert_eq!(undone.code, 0, "{undone:?}");
    assert_eq!(nodes.members(), ["old", "new", "old"]);
}
