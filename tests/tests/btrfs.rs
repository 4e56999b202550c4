//! btrfs made by btrfs-progs and the kernel: subvolumes by fstab, snapshots that are no roots,
//! copies with one UUID, a log that waits, and repairs across subvolumes.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use rescue::base::refusal::Refusal;
use rescue::disk::Source;
use rescue::guest::{Discovery, Guest, GuestPath, discover};
use serde_json::Value;
use tests::command::{Cmd, Ran};
use tests::disk::{Disk, DiskBuilder, FileSystem, MIB, Partition};
use tests::fixtures::unpack_small_control_plane;
use tests::programs::rescue_faulty;

const NOW: &str = "2026-11-23T08:00:00Z";
/// Not by UUID: mkfs.btrfs wants each to be new, and the tests run side by side.
const LABEL: &str = "system";

fn rescue(words: &[&str]) -> Result<Ran> {
    rescue_faulty(0, words).run()
}

fn text(path: &Path) -> &str {
    path.to_str().expect("test paths are UTF-8")
}

fn btrfs(words: &[&str], path: &Path) -> Result<()> {
    Cmd::new("btrfs").args(words).arg(path).ok()?;
    Ok(())
}

fn empty(path: &Path) -> Result<Disk> {
    DiskBuilder::new(160 * MIB)
        .partition(
            Partition::new(FileSystem::Btrfs, "/")
                .label(LABEL)
                .mkfs(["--mixed"]),
        )
        .build(path)
}

/// The smallest thing that counts as a root, with this fstab.
fn root(folder: &Path, name: &str, fstab: &str) -> Result<()> {
    for below in ["etc", "usr/bin", "var/lib"] {
        fs::create_dir_all(folder.join(below))?;
    }
    symlink("usr/bin", folder.join("bin"))?;
    fs::write(folder.join("etc/hostname"), name)?;
    fs::write(folder.join("etc/fstab"), fstab)?;
    Ok(())
}

fn on(paths: &[&Path]) -> Result<Discovery> {
    discover(
        &paths
            .iter()
            .map(|path| Source::Disk(path.to_path_buf()))
            .collect::<Vec<_>>(),
    )
}

fn only(path: &Path) -> Result<Guest> {
    let mut found = on(&[path])?;
    ensure!(found.guests.len() == 1, "{found:?}");
    found.guests.pop().context("no guest")
}

fn read(guest: &Guest, path: &str) -> Result<String> {
    Ok(guest.read_text(&GuestPath::new(path))?)
}

/// (mount point, subvolume) of each file system.
fn mounts(guest: &Guest) -> Vec<(String, String)> {
    let name = |fs: &rescue::guest::FileSystem| {
        let subvolume = fs
            .subvolume
            .as_ref()
            .map(|there| there.path.display().to_string());
        (
            fs.mount_point.to_string(),
            subvolume.unwrap_or_else(|| "none".into()),
        )
    };
    guest.file_systems.iter().map(name).collect()
}

fn pairs(expected: &[(&str, &str)]) -> Vec<(String, String)> {
    expected
        .iter()
        .map(|(at, subvolume)| ((*at).to_owned(), (*subvolume).to_owned()))
        .collect()
}

#[test]
fn the_layout_of_suse_with_its_snapshots() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let disk = empty(&folder.path().join("disk.img"))?;
    let fstab = format!(
        "LABEL={LABEL} / btrfs defaults 0 0\nLABEL={LABEL} /var btrfs subvol=/@/var 0 0\n\
         LABEL={LABEL} /.snapshots btrfs subvol=/@/.snapshots 0 0\n\
         LABEL={LABEL} /gone btrfs subvol=@/gone 0 0\n"
    );
    disk.mounted(|top| {
        btrfs(&["subvolume", "create"], &top.join("@"))?;
        btrfs(&["subvolume", "create"], &top.join("@/var"))?;
        btrfs(&["subvolume", "create"], &top.join("@/.snapshots"))?;
        for number in ["1", "2", "3"] {
            fs::create_dir(top.join("@/.snapshots").join(number))?;
        }
        let first = top.join("@/.snapshots/1/snapshot");
        btrfs(&["subvolume", "create"], &first)?;
        root(&first, "suse", &fstab)?;
        fs::create_dir(first.join(".snapshots"))?;
        fs::create_dir_all(top.join("@/var/lib/kubelet"))?;
        fs::write(top.join("@/var/lib/kubelet/here"), "in var")?;
        btrfs(
            &["subvolume", "snapshot", "-r", text(&first)],
            &top.join("@/.snapshots/2/snapshot"),
        )?;
        btrfs(
            &["subvolume", "snapshot", text(&first)],
            &top.join("@/.snapshots/3/snapshot"),
        )?;
        btrfs(&["subvolume", "set-default"], &first)
    })?;
    let hash = disk.sha256()?;
    let guest = only(&disk.path)?;
    assert_eq!(read(&guest, "/etc/hostname")?, "suse");
    assert_eq!(read(&guest, "/var/lib/kubelet/here")?, "in var");
    assert_eq!(
        mounts(&guest),
        pairs(&[
            ("/", "@/.snapshots/1/snapshot"),
            ("/.snapshots", "@/.snapshots"),
            ("/var", "@/var")
        ])
    );
    let root = guest.file_systems[0]
        .subvolume
        .as_ref()
        .context("no subvolume")?;
    assert_eq!(root.snapshots, 2);
    assert!(
        guest.file_systems[0]
            .device
            .ends_with("disk.img partition 1[/@/.snapshots/1/snapshot]")
    );
    assert!(
        guest.unresolved.len() == 1 && guest.unresolved[0].contains("@/gone, which is not there"),
        "{guest:?}"
    );
    assert_eq!(guest.sharing_bytes(2), [0, 1, 2]);
    drop(guest);
    assert_eq!(disk.sha256()?, hash, "looking changed the image");
    // After `snapper rollback` another snapshot is the root.
    disk.mounted(|top| {
        fs::write(top.join("etc/hostname"), "old")?;
        let all = tempfile::tempdir()?;
        let device = Cmd::new("findmnt")
            .args(["-no", "SOURCE"])
            .arg(top)
            .ok()?
            .stdout;
        let device = device
            .trim()
            .split('[')
            .next()
            .unwrap_or_default()
            .to_owned();
        Cmd::new("mount")
            .args(["-o", "subvolid=5", &device])
            .arg(all.path())
            .ok()?;
        let third = all.path().join("@/.snapshots/3/snapshot");
        fs::write(third.join("etc/hostname"), "rolled back")?;
        btrfs(&["subvolume", "set-default"], &third)?;
        Cmd::new("umount").arg(all.path()).ok().map(drop)
    })?;
    assert_eq!(read(&only(&disk.path)?, "/etc/hostname")?, "rolled back");
    Ok(())
}

#[test]
fn two_systems_are_two_and_many_snapshots_are_none() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let disk = empty(&folder.path().join("disk.img"))?;
    disk.mounted(|top| {
        for name in ["@", "fedora"] {
            btrfs(&["subvolume", "create"], &top.join(name))?;
            root(
                &top.join(name),
                name,
                &format!("LABEL={LABEL} / btrfs subvol=/{name} 0 0\n"),
            )?;
        }
        fs::create_dir_all(top.join("timeshift-btrfs/snapshots"))?;
        for number in 0..40 {
            let to = top.join(format!("timeshift-btrfs/snapshots/{number}"));
            btrfs(&["subvolume", "snapshot", text(&top.join("@"))], &to)?;
        }
        Ok(())
    })?;
    let found = on(&[&disk.path])?;
    let names: Vec<String> = found
        .guests
        .iter()
        .map(|guest| read(guest, "/etc/hostname"))
        .collect::<Result<_>>()?;
    assert_eq!(names, ["@", "fedora"]);
    Ok(())
}

/// A control plane on Ubuntu's layout: `@`, `@var` mounted by fstab, and a subvolume inside that
/// nobody mounts.
fn control_plane(path: &Path) -> Result<Disk> {
    let disk = empty(path)?;
    disk.mounted(|top| {
        for name in ["@", "@var", "@/etc"] {
            btrfs(&["subvolume", "create"], &top.join(name))?;
        }
        unpack_small_control_plane(&top.join("@"))?;
        let fstab = format!(
            "LABEL={LABEL} / btrfs defaults,subvol=@ 0 1\n\
             LABEL={LABEL} /var btrfs defaults,subvol=@var 0 2\n"
        );
        fs::write(top.join("@/etc/fstab"), fstab)?;
        Cmd::new("sh")
            .args(["-ec", "cp -a @/var/. @var/ && rm -r @/var && mkdir @/var"])
            .dir(top)
            .ok()?;
        btrfs(
            &["subvolume", "snapshot", "-r", text(&top.join("@"))],
            &top.join("@snapshot"),
        )
    })?;
    Ok(disk)
}

/// All files with their bytes, owner and mode.
fn tree(disk: &Disk, below: &[&str]) -> Result<String> {
    disk.mounted_read_only(|top| {
        let script = "find \"$@\" -not -path '*/rescue*' -printf '%p %m %U %G %l\\n' | sort; \
                      find \"$@\" -type f -not -path '*/rescue/*' -exec sha256sum {} + | sort";
        Ok(Cmd::new("sh")
            .args(["-ec", script, "sh"])
            .args(below)
            .dir(top)
            .ok()?
            .stdout)
    })
}

fn counting(report: &Value) -> usize {
    let findings = report["nodes"][0]["findings"]
        .as_array()
        .cloned()
        .unwrap_or_default();
    findings
        .iter()
        .filter(|finding| finding["severity"] != "note")
        .count()
}

#[test]
fn a_repair_across_subvolumes_and_its_undo() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let disk = control_plane(&folder.path().join("disk.img"))?;
    let image = text(&disk.path).to_owned();
    let (before, hash) = (tree(&disk, &["@", "@var", "@snapshot"])?, disk.sha256()?);
    let seen = rescue(&["inspect", "--json", "--now", NOW, &image])?;
    ensure!(
        seen.code == 1 && counting(&seen.json()?) > 0,
        "{}",
        seen.transcript()
    );
    let shown = rescue(&["inspect", "--skip", "etcd", "--now", NOW, &image])?.stdout;
    ensure!(
        shown.contains("no limit of inodes") && shown.contains("[/@var]"),
        "{shown}"
    );
    ensure!(disk.sha256()? == hash, "looking changed the image");
    ensure!(
        mounts(&only(&disk.path)?) == pairs(&[("/", "@"), ("/etc", "@/etc"), ("/var", "@var")]),
        "{shown}"
    );

    let repaired = rescue(&["repair", "--yes", "--skip", "etcd", "--now", NOW, &image])?;
    ensure!(repaired.code == 0, "{}", repaired.transcript());
    disk.assert_clean()?;
    let snapshot = tree(&disk, &["@snapshot"])?;
    ensure!(
        before.contains(snapshot.lines().next().unwrap_or("-")),
        "{snapshot}"
    );
    disk.mounted_read_only(|top| {
        let pki = top.join("@/etc/kubernetes/pki");
        Cmd::new("openssl")
            .args(["verify", "-attime", "1795420800", "-CAfile"])
            .args([pki.join("ca.crt"), pki.join("apiserver.crt")])
            .ok()?;
        ensure!(
            top.join("@var/lib/rescue/runs").is_dir() && !top.join("@/var/lib").exists(),
            "the run's place"
        );
        ensure!(
            top.join("@/etc/.rescue").is_dir(),
            "what was replaced stays in its subvolume"
        );
        Ok(())
    })?;
    ensure!(rescue(&["inspect", "--skip", "etcd", "--now", NOW, &image])?.code == 0);
    let undone = rescue(&["undo", "--yes", "--now", NOW, &image])?;
    ensure!(undone.code == 0, "{}", undone.transcript());
    disk.assert_clean()?;
    ensure!(
        tree(&disk, &["@", "@var", "@snapshot"])? == before,
        "undo did not restore everything"
    );
    Ok(())
}

#[test]
fn of_two_copies_the_right_one_is_repaired() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let first = control_plane(&folder.path().join("first.img"))?;
    let second = first.copy_to(&folder.path().join("second.img"))?;
    // Both at once: one UUID, two systems.
    let found = on(&[&first.path, &second.path])?;
    ensure!(found.guests.len() == 2, "{found:?}");
    // The other one mounted by the helper, and the helper's kernel knows it.
    let hash = second.sha256()?;
    second.mounted_read_only(|_| {
        let repaired = rescue(&[
            "repair",
            "--yes",
            "--skip",
            "etcd",
            "--now",
            NOW,
            text(&first.path),
        ])?;
        match repaired.code {
            0 => Ok(()),
            // Before Linux 6.7 the kernel mounts only one of them.
            3 if repaired
                .transcript()
                .contains("the kernel knows another disk by the btrfs UUID") =>
            {
                Ok(())
            }
            _ => anyhow::bail!("{}", repaired.transcript()),
        }
    })?;
    ensure!(second.sha256()? == hash, "the other copy was written to");
    drop(found);
    let repaired = rescue(&[
        "repair",
        "--yes",
        "--skip",
        "etcd",
        "--now",
        NOW,
        text(&second.path),
    ])?;
    ensure!(repaired.code == 0, "{}", repaired.transcript());
    ensure!(
        rescue(&[
            "inspect",
            "--skip",
            "etcd",
            "--now",
            NOW,
            text(&second.path)
        ])?
        .code
            == 0
    );
    first.assert_clean()?;
    second.assert_clean()
}

#[test]
fn a_log_that_waits_is_replayed_in_memory() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let disk = empty(&folder.path().join("disk.img"))?;
    let cut = folder.path().join("cut.img");
    disk.mounted(|top| {
        btrfs(&["subvolume", "create"], &top.join("@"))?;
        root(
            &top.join("@"),
            "before",
            &format!("LABEL={LABEL} / btrfs subvol=@ 0 0\n"),
        )?;
        Cmd::new("sync").arg("-f").arg(top).ok()?;
        // fsync writes to the tree of logs alone; then the power goes.
        let file = top.join("@/etc/hostname");
        fs::write(&file, "after the fsync")?;
        fs::File::open(&file)?.sync_all()?;
        Cmd::new("cp")
            .args(["--sparse=always"])
            .arg(&disk.path)
            .arg(&cut)
            .ok()
            .map(drop)
    })?;
    let dump = Cmd::new("btrfs")
        .args(["inspect-internal", "dump-super"])
        .arg(&part(&cut, &disk, folder.path())?)
        .ok()?
        .stdout;
    let log = dump
        .lines()
        .find(|line| line.starts_with("log_root\t"))
        .context("no log_root")?;
    ensure!(
        !log.ends_with("\t0"),
        "the log is empty: the test does not test it"
    );
    let before = fs::read(&cut)?;
    assert_eq!(read(&only(&cut)?, "/etc/hostname")?, "after the fsync");
    assert!(before == fs::read(&cut)?, "looking changed the image");
    Ok(())
}

/// The first partition as a file of its own.
fn part(image: &Path, disk: &Disk, folder: &Path) -> Result<PathBuf> {
    let (volume, to) = (&disk.volumes[0], folder.join("part.img"));
    let copy = |what: String| {
        Cmd::new("dd")
            .arg(format!("if={}", image.display()))
            .arg(what)
    };
    copy(format!("of={}", to.display()))
        .args([
            "bs=1M",
            &format!("skip={}", volume.offset / MIB),
            &format!("count={}", volume.size / MIB),
        ])
        .args(["conv=sparse", "status=none"])
        .ok()?;
    Ok(to)
}

#[test]
fn several_devices_are_recognised_and_refused() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let paths: Vec<PathBuf> = (0..2)
        .map(|number| folder.path().join(format!("disk{number}.img")))
        .collect();
    for path in &paths {
        fs::File::create(path)?.set_len(128 * MIB)?;
    }
    Cmd::new("mkfs.btrfs")
        .args(["-q", "-d", "raid1", "-m", "raid1"])
        .args(&paths)
        .ok()?;
    for given in [&paths[..1], &paths[..]] {
        let given: Vec<&Path> = given.iter().map(PathBuf::as_path).collect();
        let error = on(&given).err().context("not refused")?;
        let refusal = error
            .downcast_ref::<Refusal>()
            .with_context(|| format!("{error:#}"))?
            .to_string();
        ensure!(
            refusal.contains("one of 2 devices of one btrfs")
                && refusal.contains("btrfs device scan"),
            "{refusal}"
        );
    }
    Ok(())
}

#[test]
fn a_full_btrfs_is_freed_and_its_snapshots_are_told_of() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let disk = control_plane(&folder.path().join("disk.img"))?;
    disk.mounted(|top| {
        let log = top.join("@var/log");
        for (name, megabytes) in [("app.log.1", 40), ("app.log.2", 40)] {
            let lines = "Feb 23 08:01:02 master01 app[1]: something happened again\n"
                .repeat(megabytes * 18_000);
            fs::write(log.join(name), lines)?;
        }
        Cmd::new("touch")
            .args(["-d", "2024-02-01 UTC"])
            .arg(log.join("app.log.2"))
            .ok()?;
        btrfs(
            &["subvolume", "snapshot", "-r", text(&top.join("@var"))],
            &top.join("@var-snapshot"),
        )?;
        // To the last byte.
        let full = Cmd::new("dd")
            .args(["if=/dev/zero", "bs=64k", "status=none"])
            .arg(format!("of={}", log.join("full").display()))
            .run()?;
        ensure!(full.code != 0, "the file system did not fill up");
        Ok(())
    })?;
    let image = text(&disk.path).to_owned();
    let seen = rescue(&[
        "inspect",
        "--now",
        NOW,
        "--details",
        "--only",
        "disk-full",
        &image,
    ])?;
    ensure!(seen.code == 1, "{}", seen.transcript());
    ensure!(
        seen.stdout.matches("is too full").count() == 1,
        "shared bytes are counted once\n{}",
        seen.stdout
    );
    ensure!(
        seen.stdout.contains("2 snapshots of what is mounted here"),
        "{}",
        seen.stdout
    );
    disk.mounted(|top| {
        btrfs(
            &["subvolume", "delete", "--commit-after"],
            &top.join("@var-snapshot"),
        )
    })?;
    let repaired = rescue(&["repair", "--yes", "--skip", "etcd", "--now", NOW, &image])?;
    ensure!(
        repaired.code <= 1 && repaired.stdout.contains("app.log.2"),
        "{}",
        repaired.transcript()
    );
    disk.mounted_read_only(|top| {
        ensure!(
            !top.join("@var/log/app.log.2").exists(),
            "nothing was freed"
        );
        Ok(())
    })?;
    disk.assert_clean()
}
