//! Sets on folders of this machine; the crash tests do the same on disks, stopped at every call.

use std::fs;
use std::path::Path;
use std::rc::Rc;

use anyhow::Result;
use time::OffsetDateTime;

use super::set::{self, Part};
use super::{RunInfo, RunState, WritableGuest, runs};
use crate::base::refusal::Refusal;
use crate::base::ui::Silent;
use crate::change::{BuildFolder, Change, FolderSink, Sources};
use crate::disk::Backing;
use crate::guest::{FileSystem, Guest, GuestPath};
use crate::tree::Usage;

const MEMBER: &str = "/var/lib/etcd/member";

/// The log of one guest for all.
#[derive(Debug)]
struct FromTheFirst;

impl BuildFolder for FromTheFirst {
    fn build(&self, sources: &Sources<'_>, sink: &mut dyn FolderSink) -> Result<()> {
        sink.copy(
            Path::new("log"),
            sources.get("m1")?,
            &GuestPath::new(MEMBER).join("log"),
        )?;
        sink.file(Path::new("new"), 0o600)?.write_all(b"new")?;
        Ok(())
    }
    fn bytes(&self) -> u64 {
        4096
    }
    fn verify(&self, guest: &Guest, folder: &GuestPath) -> Result<()> {
        anyhow::ensure!(guest.read(&folder.join("log"))? == b"the log of m1");
        Ok(())
    }
}

struct Disk(&'static str, tempfile::TempDir);

impl Disk {
    fn new(name: &'static str) -> Self {
        let root = tempfile::tempdir().unwrap();
        let member = root.path().join(&MEMBER[1..]);
        fs::create_dir_all(&member).unwrap();
        fs::create_dir_all(root.path().join("etc")).unwrap();
        fs::write(root.path().join("etc/hostname"), name).unwrap();
        fs::write(member.join("log"), format!("the log of {name}")).unwrap();
        Self(name, root)
    }

    fn open(&self) -> WritableGuest {
        let file_system = FileSystem {
            mount_point: GuestPath::new("/"),
            kind: "folder".to_owned(),
            device: self.0.to_owned(),
            uuid: None,
            usage: Usage::default(),
            backing: Backing::Folder(self.1.path().to_path_buf()),
            subvolume: None,
            has_errors: false,
        };
        WritableGuest::open(self.0, &[file_system]).unwrap()
    }

    fn member(&self) -> std::path::PathBuf {
        self.1.path().join(&MEMBER[1..])
    }

    fn log(&self) -> String {
        fs::read_to_string(self.member().join("log")).unwrap()
    }

    fn record(&self, name: &str) -> std::path::PathBuf {
        self.1.path().join("var/lib/rescue/runs/one").join(name)
    }
}

fn info() -> RunInfo {
    RunInfo {
        id: "one".to_owned(),
        ..RunInfo::new(OffsetDateTime::UNIX_EPOCH, vec!["a test".to_owned()])
    }
}

/// The first two get a new member, the third stays out.
fn applied(guests: &[WritableGuest]) -> Result<Vec<super::Applied>> {
    let part = |(n, guest)| {
        let guest: &WritableGuest = guest;
        let change = match n {
            2 => Change::fence(guest.guest(), &MEMBER.into(), "it is no longer a member"),
            _ => Change::replace_folder(guest.guest(), &MEMBER.into(), Rc::new(FromTheFirst)),
        };
        Part {
            guest,
            name: guest.guest().source.clone(),
            changes: vec![change.unwrap()],
        }
    };
    set::apply(
        guests.iter().enumerate().map(part).collect(),
        &[],
        &info(),
        &Silent,
    )
}

fn disks() -> [Disk; 3] {
    ["m1", "m2", "m3"].map(Disk::new)
}

fn open(disks: &[Disk]) -> Vec<WritableGuest> {
    disks.iter().map(Disk::open).collect()
}

fn all(guests: &[WritableGuest]) -> Vec<&WritableGuest> {
    guests.iter().collect()
}

#[test]
fn three_guests_are_changed_and_put_back_as_one() {
    let disks = disks();
    let guests = open(&disks);
    let done = applied(&guests).unwrap();
    assert_eq!(
        done.iter().map(|one| one.changes).collect::<Vec<_>>(),
        [2, 2, 1]
    );
    assert!(
        disks[..2]
            .iter()
            .all(|disk| disk.log() == "the log of m1" && disk.member().join("new").exists())
    );
    assert!(
        fs::read_to_string(disks[2].member())
            .unwrap()
            .contains("no longer a member")
    );
    for guest in &guests {
        assert_eq!(runs::list(guest.guest()).unwrap()[0].state, RunState::Done);
    }
    // None of them alone, and not two of three.
    let error = super::undo(&guests[0], None, &Silent).unwrap_err();
    assert!(
        error.is::<Refusal>() && error.to_string().contains("m2, m3"),
        "{error}"
    );
    let error = set::undo(&all(&guests)[..2], "one", &Silent).unwrap_err();
    assert!(
        error.is::<Refusal>() && error.to_string().contains("not given: m3"),
        "{error}"
    );

    let undone = set::undo(&all(&guests), "one", &Silent).unwrap();
    assert_eq!(undone.len(), 3);
    for disk in &disks {
        assert_eq!(disk.log(), format!("the log of {}", disk.0));
        assert!(!disk.member().join("new").exists() && !disk.record("backup").exists());
    }
    assert!(
        set::undo(&all(&guests), "one", &Silent)
            .unwrap_err()
            .is::<Refusal>()
    );
}

#[test]
fn what_cannot_be_done_on_one_is_done_on_none() {
    let disks = disks();
    let guests = open(&disks);
    let later = fs::read(disks[1].member().join("log")).unwrap();
    let part = |n: usize| Part {
        guest: &guests[n],
        name: disks[n].0.to_owned(),
        changes: vec![
            Change::replace_folder(guests[n].guest(), &MEMBER.into(), Rc::new(FromTheFirst))
                .unwrap(),
        ],
    };
    let parts = vec![part(0), part(1)];
    fs::write(disks[1].member().join("log"), "etcd ran").unwrap();
    let error = set::apply(parts, &[], &info(), &Silent).unwrap_err();
    assert!(
        error.is::<Refusal>() && format!("{error:#}").contains("because of m2"),
        "{error:#}"
    );
    fs::write(disks[1].member().join("log"), later).unwrap();
    // Read back wrong on the last: the log of m1 is not what was planned.
    fs::write(disks[0].member().join("log"), "other").unwrap();
    let error = applied(&guests).unwrap_err();
    assert!(error.is::<Refusal>(), "{error:#}");
    for disk in &disks {
        assert!(disk.member().join("log").exists() && !disk.record("").exists());
    }
}

#[test]
fn half_a_set_is_left_alone_and_a_whole_one_completed() {
    let disks = disks();
    let guests = open(&disks);
    applied(&guests).unwrap();
    // As after a kill between the first guest and the second.
    let changed = fs::read(disks[0].record("journal.json")).unwrap();
    fs::remove_file(disks[1].record("done.json")).unwrap();
    fs::create_dir(disks[1].record("staged")).unwrap();
    let step = disks[1].record("staged/1");
    fs::rename(disks[1].member(), &step).unwrap();
    fs::rename(disks[1].record("backup/1"), disks[1].member()).unwrap();
    for few in [&all(&guests)[1..2], &all(&guests)[1..]] {
        let error = set::recover(few, &Silent).unwrap_err();
        assert!(
            error.is::<Refusal>() && error.to_string().contains("m1"),
            "{error}"
        );
    }
    assert!(
        super::recover(&guests[1], &Silent)
            .unwrap_err()
            .is::<Refusal>()
    );
    // The finished ones are free to be repaired alone.
    assert!(super::recover(&guests[0], &Silent).unwrap().is_nothing());
    let recovered = set::recover(&all(&guests), &Silent).unwrap();
    assert_eq!(recovered.completed, ["one"]);
    assert_eq!(disks[1].log(), "the log of m1");
    assert_eq!(fs::read(disks[0].record("journal.json")).unwrap(), changed);
}

/// A disk that is lost for good must not hold up the others for ever.
#[test]
fn without_a_lost_guest_the_others_are_put_back_or_completed() {
    let disks = disks();
    let guests = open(&disks);
    applied(&guests).unwrap();
    let dead = ["m3".to_owned()];
    let few = &all(&guests)[..2];
    assert!(
        set::undo_without(few, &["m1".to_owned()], "one", &Silent)
            .unwrap_err()
            .is::<Refusal>()
    );
    let undone = set::undo_without(few, &dead, "one", &Silent).unwrap();
    assert_eq!(undone.len(), 2);
    assert!(
        disks[..2]
            .iter()
            .all(|disk| disk.log() == format!("the log of {}", disk.0))
    );

    // Committed, and nobody has begun: whether the lost one had committed is not known, so it is
    // discarded.
    for disk in &disks[..2] {
        for record in ["undone.json", "undo.json", "done.json"] {
            fs::remove_file(disk.record(record)).unwrap();
        }
        let why = "the members of this cluster are being replaced together, and this one has not \
            been yet";
        fs::create_dir_all(disk.record("staged")).unwrap();
        fs::write(
            disk.record("staged/0"),
            super::stage::fence(why, "one").expose(),
        )
        .unwrap();
    }
    assert!(set::recover(few, &Silent).unwrap_err().is::<Refusal>());
    assert_eq!(
        set::recover_without(few, &dead, &Silent).unwrap().discarded,
        ["one"]
    );
    assert!(disks[..2].iter().all(|disk| !disk.record("").exists()));
}

#[test]
fn a_set_that_one_guest_never_committed_is_discarded_on_all() {
    let disks = disks();
    let guests = open(&disks);
    applied(&guests).unwrap();
    set::undo(&all(&guests), "one", &Silent).unwrap();
    for (n, disk) in disks.iter().enumerate() {
        fs::remove_file(disk.record("undone.json")).unwrap();
        fs::remove_file(disk.record("undo.json")).unwrap();
        fs::remove_file(disk.record("done.json")).unwrap();
        // As right after staging: nothing is made. One guest has no commit record, another was
        // never enlisted.
        fs::create_dir_all(disk.record("staged")).unwrap();
        fs::write(disk.record("staged/0"), "").unwrap();
        if n == 1 {
            fs::remove_file(disk.record("journal.json")).unwrap();
        }
    }
    fs::remove_dir_all(disks[2].record("")).unwrap();
    // The fence that the first has staged says so.
    let journal: super::journal::Journal =
        serde_json::from_slice(&fs::read(disks[0].record("journal.json")).unwrap()).unwrap();
    let super::journal::State::File { .. } = journal.steps[0].after else {
        panic!("a fence comes first")
    };
    let why =
        "the members of this cluster are being replaced together, and this one has not been yet";
    fs::write(
        disks[0].record("staged/0"),
        super::stage::fence(why, "one").expose(),
    )
    .unwrap();
    let recovered = set::recover(&all(&guests), &Silent).unwrap();
    assert_eq!(recovered.discarded, ["one"]);
    for disk in &disks {
        assert!(!disk.record("").exists());
        assert_eq!(disk.log(), format!("the log of {}", disk.0));
    }
}

#[test]
fn copies_of_one_disk_are_told() {
    let disks = disks();
    let guests = open(&disks);
    applied(&guests).unwrap();
    let copy = Disk::new("m1");
    assert!(
        std::process::Command::new("cp")
            .arg("-a")
            .arg(disks[0].1.path().join("var"))
            .arg(copy.1.path())
            .status()
            .unwrap()
            .success()
    );
    let copied = copy.open();
    let mut given = all(&guests);
    given.push(&copied);
    let error = set::undo(&given, "one", &Silent).unwrap_err();
    assert!(
        error.is::<Refusal>() && error.to_string().contains("copy"),
        "{error}"
    );
}
