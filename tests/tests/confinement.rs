//! A hostile guest: its folders are links into the machine that repairs it. Nothing outside the
//! guest may change, whether the link is there from the start, appears after the plan was made, or
//! sits where our own records should be.

#![cfg(feature = "faulty")]

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};

use rescue::base::refusal::Refusal;
use rescue::base::ui::Silent;
use rescue::change::{Change, FreeAction, Freeing, Prepared};
use rescue::disk::Backing;
use rescue::disk::loop_device::{LoopDevice, LoopOptions};
use rescue::guest::{FileSystem, GuestPath};
use rescue::mount::{Mount, mount_writable};
use rescue::repair::{OpenOptions, RunInfo, WritableGuest, apply, recover, runs, undo};
use rescue::settings::Settings;
use rescue::tree::{TreeError, Usage};

/// A guest and, outside it, the helper's own files that must not change.
struct Scene {
    _folder: tempfile::TempDir,
    decoy: PathBuf,
    backing: Backing,
    kind: &'static str,
    /// Where the guest's files can be changed behind the program's back; image guests are mounted
    /// here only while they are made.
    root: PathBuf,
}

fn decoys(decoy: &Path) {
    for (path, content) in [
        ("pki/apiserver.key", "the helper's key"),
        ("admin.conf", "the helper's kubeconfig"),
        ("messages-20240101", "the helper's log\n"),
        ("syslog", "the helper's syslog\n"),
        ("kubelet-client-current.pem", "the helper's certificate"),
        ("runs/20260101-000000-dead/staged/0", "the helper's file"),
        (
            "runs/20260101-000000-dead/backup/0",
            "the helper's other file",
        ),
    ] {
        let path = decoy.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content.repeat(5000)).unwrap();
    }
}

/// Everything about a tree that a write could change.
fn fingerprint(folder: &Path) -> Vec<String> {
    let mut lines = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let meta = fs::symlink_metadata(&path).unwrap();
        let times = (
            meta.mtime(),
            meta.mtime_nsec(),
            meta.ctime(),
            meta.ctime_nsec(),
        );
        let content = if meta.is_file() {
            rescue::base::hash::sha256_hex(&fs::read(&path).unwrap())
        } else {
            String::new()
        };
        lines.push(format!(
            "{} {} {:o} {} {times:?} {content}",
            path.display(),
            meta.ino(),
            meta.mode(),
            meta.nlink()
        ));
        if meta.is_dir() {
            lines.extend(fingerprint(&path));
        }
    }
    lines.sort();
    lines
}

fn scene(make: impl Fn(&Path, &Path)) -> Scene {
    let folder = tempfile::tempdir().unwrap();
    let decoy = folder.path().join("helper");
    decoys(&decoy);
    let root = folder.path().join("guest");
    fs::create_dir(&root).unwrap();
    make(&root, &decoy);
    Scene {
        decoy,
        backing: Backing::Folder(root.clone()),
        kind: "folder",
        root,
        _folder: folder,
    }
}

fn image_scene(make: impl Fn(&Path, &Path)) -> Scene {
    let folder = tempfile::tempdir().unwrap();
    let decoy = folder.path().join("helper");
    decoys(&decoy);
    let path = folder.path().join("guest.img");
    let length = 32 << 20;
    fs::File::create(&path).unwrap().set_len(length).unwrap();
    let made = std::process::Command::new("mkfs.ext4")
        .args(["-q", "-F"])
        .arg(&path)
        .status()
        .unwrap();
    assert!(made.success());
    let options = LoopOptions {
        read_only: false,
        ..LoopOptions::default()
    };
    let device = LoopDevice::open(&path, &options).expect("this test needs root and loop devices");
    let mount: Mount = mount_writable(&device.path(), "ext4").unwrap();
    make(&mount.path(), &decoy);
    mount.unmount().unwrap();
    drop(device);
    tests::mounts::wait_until_free(&path).unwrap();
    let backing = Backing::Range {
        path,
        offset: 0,
        length,
        sector_size: 512,
        block_device: false,
    };
    Scene {
        decoy,
        backing,
        kind: "ext4",
        root: PathBuf::new(),
        _folder: folder,
    }
}

impl Scene {
    fn open(&self) -> WritableGuest {
        let file_system = FileSystem {
            mount_point: GuestPath::new("/"),
            kind: self.kind.to_owned(),
            device: "the guest".to_owned(),
            uuid: None,
            usage: Usage::default(),
            backing: self.backing.clone(),
            subvolume: None,
            has_errors: false,
        };
        let options = OpenOptions {
            between_looks: std::time::Duration::from_millis(1),
        };
        WritableGuest::open_with("the guest", &[file_system], &options).unwrap()
    }
}

fn info() -> RunInfo {
    RunInfo::new(Settings::default().now, vec!["a hostile guest".to_owned()])
}

fn usual_folders(root: &Path) {
    for folder in ["etc", "var/lib/kubelet", "var/log", "root"] {
        fs::create_dir_all(root.join(folder)).unwrap();
    }
}

fn linked_folders(root: &Path, decoy: &Path) {
    usual_folders(root);
    fs::remove_dir(root.join("var/log")).unwrap();
    symlink(decoy, root.join("etc/kubernetes")).unwrap();
    let up = "../".repeat(30);
    symlink(
        Path::new(&up).join(decoy.strip_prefix("/").unwrap()),
        root.join("var/log"),
    )
    .unwrap();
    symlink(
        Path::new("/proc/1/root").join(decoy.strip_prefix("/").unwrap()),
        root.join("var/lib/kubelet/pki"),
    )
    .unwrap();
}

/// Links that are there from the start are the guest's own: they lead nowhere, or to the guest's
/// own files of that name.
#[test]
fn links_out_of_the_guest_stay_in_it() {
    for scene in [scene(linked_folders), image_scene(linked_folders)] {
        let before = fingerprint(&scene.decoy);
        let guest = scene.open();
        for path in [
            "/etc/kubernetes/pki/apiserver.key",
            "/var/log/syslog",
            "/var/lib/kubelet/pki/kubelet-client-current.pem",
        ] {
            let error = guest.guest().resolve(&path.into()).unwrap_err();
            assert!(matches!(error, TreeError::NotFound(_)), "{path}: {error:?}");
            assert!(Change::write(guest.guest(), &path.into(), "x", 0o600).is_err());
        }
        // The guest has such a folder itself: that is what its links mean.
        let shown = scene.decoy.display().to_string();
        let mut changes = Change::make_dirs(
            guest.guest(),
            &GuestPath::new(&scene.decoy).join("pki"),
            0o755,
        )
        .unwrap();
        apply(
            &guest,
            Prepared {
                free: vec![],
                changes: std::mem::take(&mut changes),
            },
            &info(),
            &Silent,
        )
        .unwrap();
        let change = Change::write(
            guest.guest(),
            &"/etc/kubernetes/pki/apiserver.key".into(),
            "the guest's key",
            0o600,
        )
        .unwrap();
        assert_eq!(
            change.path().to_string(),
            format!("{shown}/pki/apiserver.key")
        );
        apply(
            &guest,
            Prepared {
                free: vec![],
                changes: vec![change],
            },
            &info(),
            &Silent,
        )
        .unwrap();
        let inside = guest
            .guest()
            .read(&GuestPath::new(&scene.decoy).join("pki/apiserver.key"))
            .unwrap();
        assert_eq!(inside, b"the guest's key");
        guest.close().unwrap();
        assert_eq!(fingerprint(&scene.decoy), before);
    }
}

/// The folders become links between the plan and the writing.
#[test]
fn links_that_appear_after_the_plan_are_refused() {
    let scene = scene(|root, _| {
        usual_folders(root);
        fs::create_dir_all(root.join("etc/kubernetes/pki")).unwrap();
        fs::write(
            root.join("etc/kubernetes/pki/apiserver.key"),
            "the helper's key".repeat(5000),
        )
        .unwrap();
        for log in ["messages-20240101", "syslog"] {
            fs::write(root.join("var/log").join(log), "x".repeat(100)).unwrap();
        }
    });
    let before = fingerprint(&scene.decoy);
    let guest = scene.open();
    let changes = vec![
        Change::write(
            guest.guest(),
            &"/etc/kubernetes/pki/apiserver.key".into(),
            "new",
            0o600,
        )
        .unwrap(),
        Change::remove(guest.guest(), &"/etc/kubernetes/pki/apiserver.key".into()).unwrap(),
    ];
    let free: Vec<FreeAction> = [
        ("messages-20240101", Freeing::Delete),
        ("syslog", Freeing::KeepTail(10)),
    ]
    .into_iter()
    .map(|(log, freeing)| {
        let path = guest
            .guest()
            .resolve(&GuestPath::new("/var/log").join(log))
            .unwrap();
        // As the file outside is, so that only the link itself protects it.
        let theirs = fs::metadata(scene.decoy.join(log)).unwrap();
        FreeAction {
            path,
            freeing,
            size: theirs.len(),
            mtime: theirs.mtime(),
            frees: 100,
        }
    })
    .collect();
    for folder in ["etc/kubernetes", "var/log"] {
        fs::rename(
            scene.root.join(folder),
            scene.root.join(folder).with_extension("away"),
        )
        .unwrap();
        symlink(&scene.decoy, scene.root.join(folder)).unwrap();
    }
    for change in changes {
        let error = apply(
            &guest,
            Prepared {
                free: vec![],
                changes: vec![change],
            },
            &info(),
            &Silent,
        )
        .unwrap_err();
        assert!(
            error.is::<Refusal>() && error.to_string().contains("symbolic link"),
            "{error:?}"
        );
    }
    let applied = apply(
        &guest,
        Prepared {
            free: free.clone(),
            changes: vec![],
        },
        &info(),
        &Silent,
    )
    .unwrap();
    assert_eq!(
        (applied.freed.len(), applied.left_alone.len()),
        (0, 2),
        "{applied:?}"
    );

    // The file itself becomes a link.
    fs::remove_file(scene.root.join("var/log")).unwrap();
    fs::create_dir(scene.root.join("var/log")).unwrap();
    for log in ["messages-20240101", "syslog"] {
        symlink(scene.decoy.join(log), scene.root.join("var/log").join(log)).unwrap();
    }
    let applied = apply(
        &guest,
        Prepared {
            free,
            changes: vec![],
        },
        &info(),
        &Silent,
    )
    .unwrap();
    assert_eq!(
        (applied.freed.len(), applied.left_alone.len()),
        (0, 2),
        "{applied:?}"
    );
    assert_eq!(fingerprint(&scene.decoy), before);
}

/// Our own folders are links, or hold links: no record is written through them, nothing is removed
/// through them.
#[test]
fn our_own_folders_may_be_hostile_too() {
    for hostile in ["var/lib/rescue", "var/lib/rescue/runs"] {
        let make = |root: &Path, decoy: &Path| {
            usual_folders(root);
            fs::write(root.join("etc/file"), "old").unwrap();
            fs::create_dir_all(root.join(hostile).parent().unwrap()).unwrap();
            symlink(decoy, root.join(hostile)).unwrap();
        };
        for scene in [scene(make), image_scene(make)] {
            let before = fingerprint(&scene.decoy);
            let guest = scene.open();
            let change = Change::write(guest.guest(), &"/etc/file".into(), "new", 0o600).unwrap();
            let error = apply(
                &guest,
                Prepared {
                    free: vec![],
                    changes: vec![change],
                },
                &info(),
                &Silent,
            )
            .unwrap_err();
            assert!(error.is::<Refusal>(), "{error:?}");
            assert!(recover(&guest, &Silent).is_err() && undo(&guest, None, &Silent).is_err());
            assert!(
                runs::list(guest.guest()).is_ok_and(|runs| runs.is_empty())
                    || runs::list(guest.guest()).is_err()
            );
            drop(guest);
            assert_eq!(fingerprint(&scene.decoy), before);
        }
    }
}

/// A run that was never committed is removed; the links in it lead out.
#[test]
fn removing_an_unfinished_run_follows_no_link() {
    let make = |root: &Path, decoy: &Path| {
        usual_folders(root);
        let run = root.join("var/lib/rescue/runs/20260101-000000-dead");
        fs::create_dir_all(run.join("staged/deeper")).unwrap();
        symlink(decoy, run.join("staged/0")).unwrap();
        symlink(decoy.join("admin.conf"), run.join("staged/deeper/1")).unwrap();
        symlink(decoy, run.join("link")).unwrap();
        symlink(decoy, run.join("backup")).unwrap();
    };
    for scene in [scene(make), image_scene(make)] {
        let before = fingerprint(&scene.decoy);
        let guest = scene.open();
        // A link where a folder of ours should be is not ours: it is not followed, whether that
        // ends in an error or not.
        let _ = recover(&guest, &Silent);
        drop(guest);
        assert_eq!(fingerprint(&scene.decoy), before);
    }
}

/// A committed run made up by the guest: its paths lead out.
#[test]
fn a_made_up_record_cannot_name_files_outside() {
    let run = "20260101-000000-dead";
    for path in [
        "/../../../../../../../../../../../..DECOY/admin.conf",
        "..DECOY/admin.conf",
        "/etc/out/admin.conf",
    ] {
        let make = |root: &Path, decoy: &Path| {
            usual_folders(root);
            symlink(decoy, root.join("etc/out")).unwrap();
            let folder = root.join("var/lib/rescue/runs").join(run);
            fs::create_dir_all(folder.join("staged")).unwrap();
            fs::create_dir_all(folder.join("backup")).unwrap();
            fs::write(folder.join("staged/0"), "hostile").unwrap();
            let path = path.replace("DECOY", &decoy.display().to_string());
            let helper =
                rescue::base::hash::sha256_hex("the helper's kubeconfig".repeat(5000).as_bytes());
            let step = |after: serde_json::Value| {
                serde_json::json!({
                    "path": path, "before": {"file": {"sha256": helper}}, "after": after,
                    "mount_point": "/"
                })
            };
            let record = serde_json::json!({
                "format": "rescue-run/1", "id": run, "sequence": 1, "version": "0", "started": "",
                "summary": [], "freed": [],
                "steps": [step(serde_json::json!({
                    "file": {"sha256": "00"}
                })), step(serde_json::json!("absent"))],
            });
            fs::write(folder.join("journal.json"), record.to_string()).unwrap();
        };
        for scene in [scene(make), image_scene(make)] {
            let before = fingerprint(&scene.decoy);
            let guest = scene.open();
            assert_eq!(
                runs::list(guest.guest()).unwrap().len(),
                1,
                "the record must be read for this test to mean something"
            );
            let _ = recover(&guest, &Silent);
            let _ = undo(&guest, Some(run), &Silent);
            drop(guest);
            assert_eq!(fingerprint(&scene.decoy), before, "{path}");
        }
    }
}
