//! Whole folders replaced, fenced and put back, on a folder of this machine. The crash tests do the
//! same on disks.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::rc::Rc;

use anyhow::{Result, bail};
use time::OffsetDateTime;

use super::{RunInfo, RunState, WritableGuest, apply, runs, undo};
use crate::base::refusal::Refusal;
use crate::base::ui::Silent;
use crate::change::Planned;
use crate::change::{BuildFolder, Change, FolderSink, Prepared, Sources};
use crate::disk::Backing;
use crate::guest::{FileSystem, Guest, GuestPath};
use crate::tree::{Tree, TreeError, Usage};

const MEMBER: &str = "/var/lib/etcd/member";

/// Keeps the database, makes a new log.
#[derive(Debug)]
struct Rebuilt {
    sound: bool,
}

impl BuildFolder for Rebuilt {
    fn build(&self, sources: &Sources<'_>, sink: &mut dyn FolderSink) -> Result<()> {
        let from = sources.get("test")?;
        sink.folder(Path::new("snap"), 0o700)?;
        sink.copy(
            Path::new("snap/db"),
            from,
            &GuestPath::new(MEMBER).join("snap/db"),
        )?;
        sink.folder(Path::new("wal"), 0o700)?;
        let mut log = sink.file(Path::new("wal/0.wal"), 0o600)?;
        log.write_all(b"a new log")?;
        Ok(())
    }

    fn bytes(&self) -> u64 {
        1 << 16
    }

    fn verify(&self, guest: &Guest, folder: &GuestPath) -> Result<()> {
        let log = guest.read(&folder.join("wal/0.wal"))?;
        if !self.sound || log != b"a new log" {
            bail!("the log is not what it should be");
        }
        Ok(())
    }
}

fn file_system(mount_point: &str, folder: &Path) -> FileSystem {
    FileSystem {
        mount_point: GuestPath::new(mount_point),
        kind: "folder".to_owned(),
        device: folder.display().to_string(),
        uuid: None,
        usage: Usage::default(),
        backing: Backing::Folder(folder.to_path_buf()),
        subvolume: None,
        has_errors: false,
    }
}

fn open(root: &Path) -> WritableGuest {
    WritableGuest::open("test", &[file_system("/", root)]).unwrap()
}

fn guest_folder() -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    let member = root.path().join(&MEMBER[1..]);
    fs::create_dir_all(member.join("snap")).unwrap();
    fs::create_dir_all(member.join("wal")).unwrap();
    fs::write(member.join("snap/db"), "the data").unwrap();
    fs::write(member.join("wal/0.wal"), "the old log").unwrap();
    fs::write(member.join("wal/0.tmp"), "").unwrap();
    fs::set_permissions(&member, fs::Permissions::from_mode(0o700)).unwrap();
    fs::set_permissions(member.join("snap/db"), fs::Permissions::from_mode(0o640)).unwrap();
    root
}

fn info(id: &str) -> RunInfo {
    RunInfo {
        id: id.to_owned(),
        ..RunInfo::new(OffsetDateTime::UNIX_EPOCH, vec!["a test".to_owned()])
    }
}

fn replaced(guest: &WritableGuest) -> Change {
    Change::replace_folder(
        guest.guest(),
        &MEMBER.into(),
        Rc::new(Rebuilt { sound: true }),
    )
    .unwrap()
}

fn fenced(guest: &WritableGuest) -> Change {
    Change::fence(
        guest.guest(),
        &MEMBER.into(),
        "this member is no longer part of the cluster",
    )
    .unwrap()
}

fn changed(guest: &WritableGuest, changes: Vec<Change>, id: &str) -> Result<super::Applied> {
    apply(
        guest,
        Prepared {
            free: vec![],
            changes,
        },
        &info(id),
        &Silent,
    )
}

/// Inode, mode, time and bytes of all files, by path.
fn all(folder: &Path) -> Vec<(String, u64, u32, i64, Vec<u8>)> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        let meta = entry.metadata().unwrap();
        let bytes = if meta.is_file() {
            fs::read(entry.path()).unwrap()
        } else {
            Vec::new()
        };
        files.push((
            entry.path().display().to_string(),
            meta.ino(),
            meta.mode(),
            meta.mtime_nsec(),
            bytes,
        ));
        if meta.is_dir() {
            files.extend(all(&entry.path()));
        }
    }
    files.sort();
    files
}

#[test]
fn a_folder_is_replaced_as_a_whole_and_put_back_as_it_was() {
    let root = guest_folder();
    let at = |path: &str| root.path().join("var/lib/etcd").join(path);
    let before = all(&at(""));
    let guest = open(root.path());
    assert_eq!(
        changed(&guest, vec![replaced(&guest)], "one")
            .unwrap()
            .changes,
        1
    );
    assert_eq!(
        fs::read_to_string(at("member/wal/0.wal")).unwrap(),
        "a new log"
    );
    assert_eq!(
        fs::read_to_string(at("member/snap/db")).unwrap(),
        "the data"
    );
    assert!(!at("member/wal/0.tmp").exists());
    let mode = |path: &str| fs::metadata(at(path)).unwrap().mode() & 0o7777;
    assert_eq!(
        (
            mode("member"),
            mode("member/snap/db"),
            mode("member/wal/0.wal")
        ),
        (0o700, 0o640, 0o600)
    );
    let run = root.path().join("var/lib/rescue/runs/one");
    assert!(!run.join("staged").exists());
    assert_eq!(
        fs::read_to_string(run.join("backup/0/wal/0.wal")).unwrap(),
        "the old log"
    );
    let database = |folder: &Path| fs::metadata(folder.join("snap/db")).unwrap().ino();
    assert_ne!(
        database(&at("member")),
        database(&run.join("backup/0")),
        "etcd writes it in place"
    );

    let undone = undo(&guest, None, &Silent).unwrap();
    assert_eq!(undone.restored, [MEMBER]);
    assert_eq!(all(&at("")), before);
    assert!(!run.join("backup").exists());
    assert_eq!(
        runs::list(guest.guest()).unwrap()[0].state,
        RunState::Undone
    );
}

#[test]
fn what_is_read_back_wrong_is_not_put_in_place() {
    let root = guest_folder();
    let before = all(&root.path().join("var/lib/etcd"));
    let guest = open(root.path());
    let change = Change::replace_folder(
        guest.guest(),
        &MEMBER.into(),
        Rc::new(Rebuilt { sound: false }),
    )
    .unwrap();
    let error = changed(&guest, vec![change], "one").unwrap_err();
    assert!(
        error.is::<Refusal>() && format!("{error:#}").contains("not what it should be"),
        "{error:#}"
    );
    assert_eq!(
        fs::read_dir(root.path().join("var/lib/rescue/runs"))
            .unwrap()
            .count(),
        0
    );
    assert_eq!(all(&root.path().join("var/lib/etcd")), before);
}

#[test]
fn a_folder_that_was_used_since_is_not_replaced_and_not_put_back() {
    let root = guest_folder();
    let log = root.path().join("var/lib/etcd/member/wal/0.wal");
    let guest = open(root.path());
    let change = replaced(&guest);
    fs::write(&log, "etcd ran").unwrap();
    let error = changed(&guest, vec![change], "one").unwrap_err();
    assert!(
        error.is::<Refusal>() && error.to_string().contains(MEMBER),
        "{error}"
    );
    changed(&guest, vec![replaced(&guest)], "two").unwrap();
    fs::write(&log, "etcd ran again").unwrap();
    let error = undo(&guest, None, &Silent).unwrap_err();
    assert!(
        error.is::<Refusal>() && error.to_string().contains(MEMBER),
        "{error}"
    );
    assert_eq!(fs::read_to_string(&log).unwrap(), "etcd ran again");
}

#[test]
fn a_fence_keeps_the_folder_and_says_why() {
    let root = guest_folder();
    let at = |path: &str| root.path().join("var/lib/etcd").join(path);
    let before = all(&at(""));
    let guest = open(root.path());
    changed(&guest, vec![fenced(&guest)], "one").unwrap();
    let text = fs::read_to_string(at("member")).unwrap();
    assert!(
        text.contains("no longer part") && text.contains("rescue undo --run one"),
        "{text}"
    );
    // There is no database to be kept.
    changed(&guest, vec![replaced(&guest)], "two").unwrap_err();
    undo(&guest, None, &Silent).unwrap();
    assert_eq!(all(&at("")), before);

    changed(&guest, vec![fenced(&guest), replaced(&guest)], "three").unwrap();
    assert_eq!(
        fs::read_to_string(at("member/wal/0.wal")).unwrap(),
        "a new log"
    );
    undo(&guest, None, &Silent).unwrap();
    assert_eq!(all(&at("")), before);
}

#[test]
fn a_folder_takes_the_place_of_nothing_and_of_a_fence() {
    let root = guest_folder();
    let etcd = root.path().join("var/lib/etcd");
    fs::rename(etcd.join("member"), etcd.join("kept")).unwrap();
    let guest = open(root.path());
    #[derive(Debug)]
    struct Empty;
    impl BuildFolder for Empty {
        fn build(&self, _: &Sources<'_>, sink: &mut dyn FolderSink) -> Result<()> {
            sink.folder(Path::new("wal"), 0o700)
        }
        fn bytes(&self) -> u64 {
            0
        }
        fn verify(&self, _: &Guest, _: &GuestPath) -> Result<()> {
            Ok(())
        }
    }
    let empty = |guest: &WritableGuest| {
        Change::replace_folder(guest.guest(), &MEMBER.into(), Rc::new(Empty)).unwrap()
    };
    changed(&guest, vec![empty(&guest)], "one").unwrap();
    assert!(etcd.join("member/wal").is_dir());
    undo(&guest, None, &Silent).unwrap();
    assert!(!etcd.join("member").exists());

    changed(&guest, vec![fenced(&guest)], "two").unwrap();
    changed(&guest, vec![empty(&guest)], "three").unwrap();
    assert!(etcd.join("member/wal").is_dir());
    undo(&guest, None, &Silent).unwrap();
    assert!(etcd.join("member").is_file());
    undo(&guest, None, &Silent).unwrap();
    assert!(!etcd.join("member").exists());
}

#[test]
fn what_is_mounted_inside_stays_where_it_is() {
    let root = guest_folder();
    let log = tempfile::tempdir().unwrap();
    let inside = format!("{MEMBER}/wal");
    let guest = WritableGuest::open(
        "test",
        &[
            file_system("/", root.path()),
            file_system(&inside, log.path()),
        ],
    );
    let guest = guest.unwrap();
    let error = Change::fence(guest.guest(), &MEMBER.into(), "why").unwrap_err();
    assert!(error.to_string().contains("mount point"), "{error}");
    // A plan that did not know of it.
    let path = guest.guest().resolve(&MEMBER.into()).unwrap();
    let expect = crate::change::Expect::Tree {
        sha256: String::new(),
    };
    let error = changed(
        &guest,
        vec![Change::Fence {
            path,
            why: "why".to_owned(),
            expect,
        }],
        "one",
    )
    .unwrap_err();
    assert!(error.to_string().contains(&inside), "{error}");
}

#[test]
fn one_thing_is_changed_in_one_way() {
    let root = guest_folder();
    let guest = open(root.path());
    let inside = Change::write(
        guest.guest(),
        &format!("{MEMBER}/snap/db").as_str().into(),
        "x",
        0o600,
    )
    .unwrap();
    for changes in [
        vec![replaced(&guest), inside],
        vec![replaced(&guest), replaced(&guest)],
        vec![replaced(&guest), fenced(&guest)],
    ] {
        let error = changed(&guest, changes, "one").unwrap_err();
        assert!(error.to_string().contains("contradicts"), "{error}");
    }
}

#[test]
fn a_plan_shows_the_fence_but_not_what_is_not_made_yet() {
    let root = guest_folder();
    let guest = open(root.path());
    let log = format!("{MEMBER}/wal/0.wal");
    let mut tree = Planned::over(guest.guest().tree(), 0);
    tree.apply(&fenced(&guest)).unwrap();
    assert!(matches!(
        tree.lstat(Path::new(&log)),
        Err(TreeError::NotADirectory(_))
    ));
    assert!(tree.read(Path::new(MEMBER), 1 << 10).is_ok());
    let mut tree = Planned::over(guest.guest().tree(), 0);
    tree.apply(&replaced(&guest)).unwrap();
    assert!(matches!(
        tree.lstat(Path::new(&log)),
        Err(TreeError::Unsupported { .. })
    ));
    assert!(matches!(
        tree.read_dir(Path::new(MEMBER)),
        Err(TreeError::Unsupported { .. })
    ));
    assert_eq!(tree.lstat(Path::new(MEMBER)).unwrap().mode, 0o700);
}

/// A file that some process has open is not moved away with its folder: etcd runs.
#[test]
fn a_folder_in_use_is_not_replaced() {
    let root = guest_folder();
    let database = fs::File::open(root.path().join("var/lib/etcd/member/snap/db")).unwrap();
    let mut user = std::process::Command::new("sleep")
        .arg("60")
        .stdin(database)
        .spawn()
        .unwrap();
    let guest = open(root.path());
    let error = changed(&guest, vec![fenced(&guest)], "one").unwrap_err();
    user.kill().unwrap();
    user.wait().unwrap();
    assert!(
        error.is::<Refusal>() && error.to_string().contains("sleep (process"),
        "{error}"
    );
    changed(&guest, vec![fenced(&guest)], "two").unwrap();
}

/// etcd's data on a file system of its own: everything stays on that.
#[test]
fn a_folder_on_another_file_system_is_exchanged_there() {
    let root = tempfile::tempdir().unwrap();
    fs::create_dir_all(root.path().join("var/lib/etcd")).unwrap();
    let data = tempfile::tempdir().unwrap();
    fs::create_dir_all(data.path().join("member/snap")).unwrap();
    fs::create_dir_all(data.path().join("member/wal")).unwrap();
    fs::write(data.path().join("member/snap/db"), "the data").unwrap();
    let before = all(data.path());
    let guest = WritableGuest::open(
        "test",
        &[
            file_system("/", root.path()),
            file_system("/var/lib/etcd", data.path()),
        ],
    );
    let guest = guest.unwrap();
    changed(&guest, vec![replaced(&guest)], "one").unwrap();
    assert_eq!(
        fs::read_to_string(data.path().join("member/wal/0.wal")).unwrap(),
        "a new log"
    );
    assert!(data.path().join(".rescue/one/backup/0/snap/db").exists());
    assert_eq!(runs::list(guest.guest()).unwrap()[0].keeps[0].path, MEMBER);
    undo(&guest, None, &Silent).unwrap();
    assert_eq!(all(data.path()), before);
}

/// Owner, label and other attributes come from the old file of the same name, else from its
/// neighbour.
#[test]
fn what_is_new_looks_like_what_was_there() {
    let root = guest_folder();
    let member = root.path().join("var/lib/etcd/member");
    let set = |path: &str, name: &str, value: &str| {
        let flags = rustix::fs::XattrFlags::empty();
        rustix::fs::setxattr(member.join(path), name, value.as_bytes(), flags).unwrap();
    };
    let get = |path: &str, name: &str| {
        let mut value = vec![0; 64];
        let length = rustix::fs::getxattr(member.join(path), name, &mut value).ok()?;
        Some(String::from_utf8_lossy(&value[..length]).into_owned())
    };
    const LABEL: &str = "security.selinux";
    for path in ["", "snap", "wal", "snap/db", "wal/0.wal", "wal/0.tmp"] {
        set(path, LABEL, &format!("label of {path}"));
        std::os::unix::fs::chown(member.join(path), Some(52), Some(53)).unwrap();
    }
    set("snap/db", "security.note", "of the database");
    set("wal/0.wal", "security.note", "of the log");
    fs::rename(member.join("wal/0.wal"), member.join("wal/1.wal")).unwrap();
    let guest = open(root.path());
    changed(&guest, vec![replaced(&guest)], "one").unwrap();
    let owner = |path: &str| {
        fs::metadata(member.join(path))
            .map(|meta| (meta.uid(), meta.gid()))
            .unwrap()
    };
    for path in ["", "snap", "wal", "snap/db", "wal/0.wal"] {
        assert_eq!(owner(path), (52, 53), "{path}");
    }
    for path in ["", "snap", "wal", "snap/db"] {
        assert_eq!(get(path, LABEL), Some(format!("label of {path}")), "{path}");
    }
    assert_eq!(
        get("snap/db", "security.note"),
        Some("of the database".to_owned())
    );
    // New in name: a neighbour's label, nothing else of it.
    assert_eq!(
        (get("wal/0.wal", LABEL), get("wal/0.wal", "security.note")),
        (Some("label of wal/0.tmp".to_owned()), None)
    );
}

/// An immutable file in the folder; and a folder that does not fit beside the old one.
#[test]
fn protected_files_and_want_of_room_are_refused() {
    let root = guest_folder();
    let database = fs::File::open(root.path().join("var/lib/etcd/member/snap/db")).unwrap();
    let guest = open(root.path());
    let set = |flags| rustix::fs::ioctl_setflags(&database, flags);
    match set(rustix::fs::IFlags::IMMUTABLE) {
        Ok(()) => {
            let error = changed(&guest, vec![replaced(&guest)], "one").unwrap_err();
            set(rustix::fs::IFlags::empty()).unwrap();
            assert!(
                error.is::<Refusal>() && error.to_string().contains("chattr"),
                "{error}"
            );
        }
        Err(error) => println!("this file system has no such flag: {error}"),
    }
    #[derive(Debug)]
    struct Huge;
    impl BuildFolder for Huge {
        fn build(&self, _: &Sources<'_>, _: &mut dyn FolderSink) -> Result<()> {
            bail!("nobody asks for it")
        }
        fn bytes(&self) -> u64 {
            1 << 60
        }
        fn verify(&self, _: &Guest, _: &GuestPath) -> Result<()> {
            Ok(())
        }
    }
    let huge = Change::replace_folder(guest.guest(), &MEMBER.into(), Rc::new(Huge)).unwrap();
    let error = changed(&guest, vec![huge], "two").unwrap_err();
    assert!(error.is::<Refusal>(), "{error}");
    let said = format!("{error:#}");
    assert!(
        said.contains("need 1024.0 PiB") && said.contains("--output DIR"),
        "{said}"
    );
    assert!(!root.path().join("var/lib/rescue/runs/two").exists());
}
