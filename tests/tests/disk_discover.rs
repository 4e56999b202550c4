//! From disks to guests: partitions, roots, fstab, and every way in which people name the wrong
//! thing.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use rescue::base::refusal::Refusal;
use rescue::disk::Backing;
use rescue::disk::Source;
use rescue::guest::{Discovery, Guest, GuestPath, discover};
use rescue::tree::TreeError;
use tests::Cmd;
use tests::disk::{Disk, DiskBuilder, FileSystem, MIB, Partition, Table};

const ROOT: &str = "11111111-1111-4111-8111-111111111111";
const VAR: &str = "22222222-2222-4222-8222-222222222222";

fn on(paths: &[&Path]) -> Result<Discovery> {
    let sources: Vec<Source> = paths
        .iter()
        .map(|path| Source::Disk(path.to_path_buf()))
        .collect();
    discover(&sources)
}

fn only(disk: &Disk) -> Result<Guest> {
    let mut found = on(&[&disk.path])?;
    ensure!(found.guests.len() == 1, "{found:?}");
    found.guests.pop().context("no guest")
}

fn refusal(found: Result<Discovery>) -> Result<Refusal> {
    match found {
        Ok(found) => anyhow::bail!("not refused: {found:?}"),
        Err(error) => error.downcast::<Refusal>().context("not a refusal"),
    }
}

/// The smallest thing that counts as a root, with this fstab.
fn root(folder: &Path, name: &str, fstab: &str) -> Result<()> {
    fs::create_dir_all(folder.join("etc"))?;
    fs::create_dir_all(folder.join("usr/bin"))?;
    symlink("usr/bin", folder.join("bin"))?;
    fs::write(folder.join("etc/hostname"), name)?;
    fs::write(folder.join("etc/fstab"), fstab)?;
    Ok(())
}

fn text(guest: &Guest, path: &str) -> Result<String> {
    Ok(guest.read_text(&GuestPath::new(path))?)
}

#[test]
fn every_table_and_sector_size() -> Result<()> {
    let folder = tempfile::tempdir()?;
    for table in [Table::Gpt, Table::Mbr, Table::MbrLogical, Table::Bare] {
        // Without a table there is nothing that would tell the size of sectors.
        for sector in if table == Table::Bare {
            &[512][..]
        } else {
            &[512, 4096]
        } {
            let disk = DiskBuilder::new(100 * MIB)
                .table(table)
                .sector_size(*sector)
                .partition(Partition::new(FileSystem::Ext4, "/").uuid(ROOT))
                .build(&folder.path().join("disk.img"))?;
            disk.mounted(|at| root(at, "node1", ""))?;
            let (hash, guest) = (disk.sha256()?, only(&disk)?);
            assert_eq!(text(&guest, "/etc/hostname")?, "node1");
            let there = guest.file_systems.first().context("no file system")?;
            let volume = disk.volumes.first().context("no volume")?;
            assert_eq!(
                there.backing,
                Backing::Range {
                    path: disk.path.clone(),
                    offset: volume.offset,
                    length: volume.size,
                    sector_size: u32::try_from(*sector)?,
                    block_device: false
                }
            );
            assert_eq!(
                (there.uuid.as_deref(), there.kind.as_str(), there.has_errors),
                (Some(ROOT), "ext4", false)
            );
            let number = match table {
                Table::Gpt | Table::Mbr => " partition 1",
                Table::MbrLogical => " partition 5",
                Table::Bare => "",
            };
            assert_eq!(there.device, format!("{}{number}", disk.path.display()));
            drop(guest);
            assert_eq!(disk.sha256()?, hash, "looking changed the image");
        }
    }
    Ok(())
}

#[test]
fn block_devices_by_the_kernels_names() -> Result<()> {
    let folder = tempfile::tempdir()?;
    for (sector, table) in [(512, Table::Gpt), (4096, Table::Gpt), (4096, Table::Mbr)] {
        let disk = DiskBuilder::new(100 * MIB)
            .table(table)
            .sector_size(sector)
            .partition(Partition::new(FileSystem::Ext4, "/"))
            .build(&folder.path().join("disk.img"))?;
        disk.mounted(|at| root(at, "node1", ""))?;
        let device = tests::mounts::Loop::attach(&disk.path, 0, 100 * MIB, sector, true)?;
        let found = on(&[device.device()])?;
        let there = found
            .guests
            .first()
            .and_then(|guest| guest.file_systems.first())
            .context("no file system")?;
        assert_eq!(there.device, format!("{}p1", device.device().display()));
        assert!(
            matches!(&there.backing, Backing::Range { path, block_device: true, sector_size, .. }
                if path == device.device() && u64::from(*sector_size) == sector),
            "{there:?}"
        );
    }
    Ok(())
}

/// Two partitions: the root, whose fstab is `fstab`, and one labelled `var` that holds the folder
/// `log`.
fn with_var(path: &Path, table: Table, fstab: &str) -> Result<Disk> {
    let disk = DiskBuilder::new(120 * MIB)
        .table(table)
        .partition(
            Partition::new(FileSystem::Ext4, "/")
                .uuid(ROOT)
                .size(50 * MIB),
        )
        .partition(
            Partition::new(FileSystem::Ext4, "/var")
                .uuid(VAR)
                .label("my var")
                .size(40 * MIB),
        )
        .build(path)?;
    disk.mounted(|at| {
        root(at, "node1", fstab)?;
        fs::create_dir(at.join("var/log"))?;
        Ok(fs::write(
            at.join("var/log/syslog"),
            "on the other partition",
        )?)
    })?;
    Ok(disk)
}

fn partition_table_value(disk: &Path, number: u32, what: &str) -> Result<String> {
    let ran = Cmd::new("sfdisk")
        .arg(format!("--part-{what}"))
        .arg(disk)
        .arg(number.to_string())
        .ok()?;
    Ok(ran.stdout.trim().to_owned())
}

#[test]
fn var_is_found_by_every_name_that_fstab_may_use() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("disk.img");
    for spec in [
        "UUID=22222222-2222-4222-8222-222222222222",
        "UUID=\"22222222-2222-4222-8222-222222222222\"",
        "LABEL=my\\040var",
        "/dev/disk/by-uuid/22222222-2222-4222-8222-222222222222",
        "/dev/disk/by-label/my\\134x20var",
        "/dev/disk/by-id/scsi-36000c2900-part2",
        "/dev/disk/by-path/pci-0000:03:00.0-scsi-0:0:0:0-part2",
        "/dev/sda2",
        "/dev/vda2",
        "/dev/xvda2",
        "/dev/nvme0n1p2",
    ] {
        let disk = with_var(
            &path,
            Table::Gpt,
            &format!("{spec} /var ext4 defaults 0 2\n"),
        )?;
        let guest = only(&disk)?;
        assert_eq!(
            text(&guest, "/var/log/syslog")?,
            "on the other partition",
            "{spec}"
        );
        assert_eq!(guest.unresolved, Vec::<String>::new(), "{spec}");
        let points: Vec<_> = guest
            .file_systems
            .iter()
            .map(|there| there.mount_point.to_string())
            .collect();
        assert_eq!(points, ["/", "/var"]);
        let real = guest.resolve(&GuestPath::new("/var/log/syslog"))?;
        let device = &guest
            .file_system_of(&real)
            .context("no file system")?
            .device;
        assert!(device.ends_with("partition 2"), "{device}");
    }
    Ok(())
}

#[test]
fn var_is_found_by_what_the_partition_table_says() -> Result<()> {
    let folder = tempfile::tempdir()?;
    for (table, tag, what) in [
        (Table::Gpt, "PARTUUID", "uuid"),
        (Table::Gpt, "PARTLABEL", "label"),
        (Table::Mbr, "PARTUUID", ""),
    ] {
        let disk = with_var(&folder.path().join("disk.img"), table, "")?;
        if what == "label" {
            Cmd::new("sfdisk")
                .args(["-q", "--part-label"])
                .arg(&disk.path)
                .args(["2", "the var"])
                .ok()?;
        }
        let value = match what {
            "" => {
                let signature = Cmd::new("sfdisk")
                    .arg("--disk-id")
                    .arg(&disk.path)
                    .ok()?
                    .stdout;
                format!("{}-02", signature.trim().trim_start_matches("0x"))
            }
            _ => partition_table_value(&disk.path, 2, what)?.replace(' ', "\\040"),
        };
        let fstab = format!("{tag}={value} /var auto defaults 0 2\n");
        disk.mounted(|at| Ok(fs::write(at.join("etc/fstab"), &fstab)?))?;
        let guest = only(&disk)?;
        assert_eq!(
            text(&guest, "/var/log/syslog")?,
            "on the other partition",
            "{fstab}"
        );
    }
    Ok(())
}

#[test]
fn what_fstab_asks_for_and_is_not_there_is_said() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let fstab = "UUID=11111111-1111-4111-8111-111111111111 / ext4 defaults 0 1\n\
        UUID=33333333-3333-4333-8333-333333333333 /data ext4 nofail 0 2\n\
        /dev/sdb1 /backup xfs defaults 0 2\n\
        /dev/mapper/vg-etcd /var/lib/etcd ext4 defaults 0 2\n\
        LABEL=my\\040var /etc/hostname ext4 defaults 0 2\n\
        UUID=22222222-2222-4222-8222-222222222222 /a/b/c ext4 defaults 0 2\n\
        PARTLABEL=evil\\033[2J /srv ext4 defaults 0 2\n\
        /nowhere /bound none bind 0 0\n\
        LABEL=x /y ext4 noauto 0 0\n\
        tmpfs /tmp tmpfs defaults 0 0\n10.0.0.1:/x /nfs nfs4 _netdev 0 0\n\
        proc /proc proc defaults 0 0\n\
        lonely\n";
    let guest = only(&with_var(
        &folder.path().join("disk.img"),
        Table::Gpt,
        fstab,
    )?)?;
    let mut said = guest.unresolved.clone();
    said.sort();
    let expected = [
        "fstab line 13 is not understood",
        "fstab line 2: UUID=33333333-3333-4333-8333-333333333333 on /data was not found",
        "fstab line 3: /dev/sdb1 on /backup was not found: that disk was not given",
        "fstab line 4: /dev/mapper/vg-etcd on /var/lib/etcd was not found on the disks given",
        "fstab line 5: LABEL=my var on /etc/hostname has a mount point that is no folder",
        "fstab line 6: UUID=22222222-2222-4222-8222-222222222222 on /a/b/c has a mount point that \
         does not exist",
        "fstab line 7: PARTLABEL=evil\\u{1b}[2J on /srv was not found",
        "fstab line 8: /nowhere on /bound binds what is not there",
    ];
    assert_eq!(said.len(), expected.len(), "{said:#?}");
    for (said, expected) in said.iter().zip(expected) {
        assert!(said.starts_with(expected), "{said} | {expected}");
    }
    Ok(())
}

#[test]
fn mount_points_may_be_links_or_missing_and_binds_lead_to_the_real_file() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let fstab =
        "LABEL=my\\040var /linked/var ext4 defaults 0 2\n/linked/var/log /srv/logs none bind 0 0\n";
    let disk = with_var(&folder.path().join("disk.img"), Table::Gpt, fstab)?;
    disk.mounted(|at| {
        fs::create_dir(at.join("data"))?;
        fs::create_dir(at.join("srv"))?;
        Ok(symlink("/data", at.join("linked"))?)
    })?;
    let guest = only(&disk)?;
    assert_eq!(guest.unresolved, Vec::<String>::new());
    assert_eq!(
        guest
            .file_systems
            .get(1)
            .context("no second file system")?
            .mount_point
            .to_string(),
        "/data/var"
    );
    assert_eq!(text(&guest, "/srv/logs/syslog")?, "on the other partition");
    // The writer must end up on the partition that holds the file, not on the folder that is hidden
    // below the bind mount.
    let real = guest.resolve(&GuestPath::new("/srv/logs/new"));
    assert!(matches!(real, Err(TreeError::NotFound(_))));
    let real = guest.resolve_parent(&GuestPath::new("/srv/logs/new"))?;
    assert_eq!(real.as_path(), Path::new("/data/var/log/new"));
    assert!(
        guest
            .file_system_of(&real)
            .context("no file system")?
            .device
            .ends_with("partition 2")
    );
    Ok(())
}

#[test]
fn links_of_a_hostile_guest_stay_inside() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let secret = folder.path().join("secret");
    fs::write(&secret, "of the helper")?;
    let disk = with_var(
        &folder.path().join("disk.img"),
        Table::Gpt,
        "LABEL=my\\040var /var ext4 defaults 0 2\n",
    )?;
    disk.mounted(|at| {
        symlink(&secret, at.join("etc/absolute"))?;
        symlink(
            format!("../../../../../../../..{}", secret.display()),
            at.join("var/log/relative"),
        )?;
        symlink("/proc/self/root/etc/passwd", at.join("etc/proc"))?;
        symlink("loop", at.join("etc/loop"))?;
        // Across partitions, and back by "..": the guest's own files.
        Ok(symlink("../../etc/hostname", at.join("var/log/back"))?)
    })?;
    let guest = only(&disk)?;
    for outside in ["/etc/absolute", "/var/log/relative", "/etc/proc"] {
        assert!(
            matches!(
                guest.read(&GuestPath::new(outside)),
                Err(TreeError::NotFound(_))
            ),
            "{outside}"
        );
    }
    assert!(matches!(
        guest.read(&GuestPath::new("/etc/loop")),
        Err(TreeError::Loop(_))
    ));
    assert_eq!(text(&guest, "/var/log/back")?, "node1");
    Ok(())
}

#[test]
fn two_roots_are_two_guests_and_copies_are_not_mixed_up() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let fstab = "LABEL=my\\040var /var ext4 defaults 0 2\n";
    let one = with_var(&folder.path().join("one.img"), Table::Gpt, fstab)?;
    let two = one.copy_to(&folder.path().join("two.img"))?;
    two.mounted(|at| {
        fs::write(at.join("etc/hostname"), "node2")?;
        Ok(fs::write(at.join("var/log/syslog"), "of the second")?)
    })?;
    let found = on(&[&one.path, &two.path])?;
    assert_eq!(found.guests.len(), 2, "{found:?}");
    for (guest, disk, name, log) in [
        (&found.guests[0], &one, "node1", "on the other partition"),
        (&found.guests[1], &two, "node2", "of the second"),
    ] {
        assert_eq!(guest.source, disk.path.display().to_string());
        assert_eq!(
            (
                text(guest, "/etc/hostname")?.as_str(),
                text(guest, "/var/log/syslog")?.as_str()
            ),
            (name, log)
        );
        assert!(guest.unresolved.is_empty(), "{:?}", guest.unresolved);
    }
    assert!(found.leftovers.is_empty(), "{:?}", found.leftovers);
    // One disk under two names is one disk.
    let link = folder.path().join("link.img");
    symlink(&one.path, &link)?;
    assert_eq!(on(&[&one.path, &link])?.guests.len(), 1);
    Ok(())
}

#[test]
fn var_may_be_on_another_disk() -> Result<()> {
    let folder = tempfile::tempdir()?;
    // The guest calls the root's disk sdb; the order on the command line does not matter.
    let fstab = "/dev/sdb1 / ext4 defaults 0 1\n/dev/sda1 /var ext4 defaults 0 2\n";
    let system = DiskBuilder::new(64 * MIB)
        .partition(Partition::new(FileSystem::Ext4, "/"))
        .build(&folder.path().join("system.img"))?;
    system.mounted(|at| {
        fs::create_dir(at.join("var"))?;
        root(at, "node1", fstab)
    })?;
    let data = DiskBuilder::new(64 * MIB)
        .table(Table::Mbr)
        .partition(Partition::new(FileSystem::Ext4, "/"))
        .build(&folder.path().join("data.img"))?;
    data.mounted(|at| Ok(fs::write(at.join("marker"), "data")?))?;
    for order in [[&system.path, &data.path], [&data.path, &system.path]] {
        let found = on(&order.map(PathBuf::as_path))?;
        let guest = found.guests.first().context("no guest")?;
        assert_eq!(text(guest, "/var/marker")?, "data");
        assert!(
            guest.unresolved.is_empty() && found.leftovers.is_empty(),
            "{found:?}"
        );
    }
    let alone = on(&[&system.path])?;
    assert!(
        alone.guests[0].unresolved[0].contains("was not given"),
        "{alone:?}"
    );
    let refused = refusal(on(&[&data.path]))?;
    assert!(refused.means.contains("ext4, no root"), "{refused}");
    Ok(())
}

#[test]
fn a_dirty_file_system_is_replayed_for_root_and_refused_to_others() -> Result<()> {
    let folder = tempfile::tempdir()?;
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755))?;
    for kind in [FileSystem::Ext4, FileSystem::Xfs] {
        let disk = DiskBuilder::new(400 * MIB)
            .partition(Partition::new(kind, "/"))
            .build(&folder.path().join("disk.img"))?;
        disk.mounted(|at| root(at, "old name", ""))?;
        disk.mounted(|at| {
            fs::write(at.join("etc/hostname"), "new name")?;
            File::open(at.join("etc/hostname"))?.sync_all()?;
            shut_down(at)
        })?;
        fs::set_permissions(&disk.path, fs::Permissions::from_mode(0o644))?;
        let hash = disk.sha256()?;
        let guest = only(&disk)?;
        assert_eq!(text(&guest, "/etc/hostname")?, "new name", "{kind:?}");
        assert!(guest.file_systems[0].usage.bytes_total > 0);
        drop(guest);
        assert_eq!(disk.sha256()?, hash, "looking changed the image");

        let binary = folder.path().join("rescue");
        // By cp: a descriptor of our own, open for writing and inherited by another test's child,
        // would make it "text busy".
        Cmd::new("cp")
            .arg(tests::programs::faulty_binary())
            .arg(&binary)
            .ok()?;
        let ran = Cmd::new("setpriv")
            .args(["--reuid", "65534", "--regid", "65534", "--clear-groups"])
            .arg(&binary)
            .env("RESCUE_ABORT_AT", "0")
            .arg("inspect")
            .arg(&disk.path)
            .run()?;
        assert_eq!(ran.code, 3, "{}", ran.transcript());
        assert!(
            ran.stderr
                .contains(&format!("sudo rescue inspect {}", disk.path.display())),
            "{}",
            ran.transcript()
        );
    }
    Ok(())
}

/// Stops the file system as a power cut would, its journal written (`FS_IOC_SHUTDOWN`,
/// EXT4_GOING_FLAGS_LOGFLUSH).
fn shut_down(folder: &Path) -> Result<()> {
    Cmd::new("xfs_io")
        .args(["-x", "-c", "shutdown -f"])
        .arg(folder)
        .ok()?;
    Ok(())
}

#[test]
fn suspended_systems_are_recognised() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let disk = DiskBuilder::new(120 * MIB)
        .partition(Partition::new(FileSystem::Ext4, "/").size(60 * MIB))
        .partition(Partition::unmounted(FileSystem::Swap).size(20 * MIB))
        .build(&folder.path().join("disk.img"))?;
    disk.mounted(|at| {
        fs::write(at.join("swap.img"), vec![0; 40960])?;
        root(at, "node1", "/swap.img none swap sw 0 0\n")
    })?;
    assert_eq!(only(&disk)?.suspended, None);
    let image = File::options().write(true).open(&disk.path)?;
    let swap = disk.volumes[1].offset;
    image.write_all_at(b"S1SUSPEND\0", swap + 4086)?;
    let said = only(&disk)?.suspended.context("not recognised")?;
    assert!(said.contains("partition 2"), "{said}");
    image.write_all_at(b"SWAPSPACE2", swap + 4086)?;
    disk.mounted(|at| {
        let file = File::options().write(true).open(at.join("swap.img"))?;
        Ok(file.write_all_at(b"S1SUSPEND\0", 4086)?)
    })?;
    let said = only(&disk)?.suspended.context("not recognised")?;
    assert!(said.contains("/swap.img"), "{said}");
    Ok(())
}

#[test]
fn the_superblock_tells_of_errors_and_times() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let disk = DiskBuilder::new(64 * MIB)
        .table(Table::Bare)
        .partition(Partition::new(FileSystem::Ext4, "/"))
        .build(&folder.path().join("disk.img"))?;
    disk.mounted(|at| root(at, "node1", ""))?;
    let marks = only(&disk)?.time_marks;
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)?
        .as_secs();
    let mark = u64::try_from(marks.first().context("no time")?.seconds)?;
    assert!(now - mark < 600, "{mark} {now}");
    Cmd::new("debugfs")
        .args(["-w", "-R", "ssv state 2"])
        .arg(&disk.path)
        .ok()?;
    assert!(only(&disk)?.file_systems[0].has_errors);
    Ok(())
}

#[test]
fn the_wrong_thing_is_answered_with_one_clear_line() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let at = |name: &str| folder.path().join(name);
    let saw = |path: &Path, expected: &str| -> Result<()> {
        let refused = refusal(on(&[path]))
            .with_context(|| expected.to_owned())?
            .to_string();
        ensure!(
            refused.contains(expected) && !refused.contains('\n'),
            "{expected} is not in: {refused}"
        );
        Ok(())
    };
    saw(&at("missing"), "does not exist")?;
    saw(folder.path(), "is a folder")?;
    File::create(at("empty"))?;
    saw(&at("empty"), "is empty")?;
    saw(Path::new("/dev/null"), "neither a block device nor a file")?;
    fs::write(at("zeros"), vec![0; 1 << 20])?;
    saw(&at("zeros"), "nothing that is recognised")?;
    fs::write(at("text"), "hello")?;
    saw(&at("text"), "no Linux system")?;
    let descriptor = "# Disk DescriptorFile\nversion=1\ncreateType=\"vmfs\"\n\
        RW 20971520 VMFS \"node1-flat.vmdk\"\n";
    fs::write(at("node1.vmdk"), descriptor)?;
    saw(&at("node1.vmdk"), "node1-flat.vmdk cannot be found")?;

    let piece = |name: &str, offset: u64, bytes: &[u8]| -> Result<()> {
        let file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(at(name))?;
        file.set_len(4 << 20)?;
        Ok(file.write_all_at(bytes, offset)?)
    };
    piece("luks", 0, b"LUKS\xba\xbe\0\x02")?;
    saw(&at("luks"), "encrypted")?;
    piece("windows", 3, b"NTFS    ")?;
    saw(&at("windows"), "Windows")?;
    piece("qcow2", 0, b"QFI\xfb\0\0\0\x03")?;
    saw(
        &at("qcow2"),
        &format!("qemu-img check {}", at("qcow2").display()),
    )?;
    piece("vdi", 0x40, b"\x7f\x10\xda\xbe")?;
    saw(
        &at("vdi"),
        &format!(
            "qemu-img convert -f vdi -O raw {0} {0}.raw",
            at("vdi").display()
        ),
    )?;
    piece("lvm", 512, b"LABELONE")?;
    piece("lvm", 536, b"LVM2 001")?;
    saw(&at("lvm"), "checksum of its label")?;
    piece("btrfs", 0x1_0040, b"_BHRfS_M")?;
    saw(&at("btrfs"), "its superblock is damaged")?;

    let refused = refusal(discover(&[]))?;
    assert!(refused.saw.contains("no disk"), "{refused}");
    Ok(())
}

#[test]
fn truncated_images_are_recognised() -> Result<()> {
    let folder = tempfile::tempdir()?;
    for table in [Table::Gpt, Table::Mbr, Table::MbrLogical, Table::Bare] {
        for kind in [FileSystem::Ext4, FileSystem::Xfs] {
            let disk = DiskBuilder::new(400 * MIB)
                .table(table)
                .partition(Partition::new(kind, "/"))
                .build(&folder.path().join("disk.img"))?;
            disk.mounted(|at| root(at, "node1", ""))?;
            File::options()
                .write(true)
                .open(&disk.path)?
                .set_len(300 * MIB)?;
            let refused = refusal(on(&[&disk.path]))?.to_string();
            assert!(
                refused.contains("truncated"),
                "{table:?} {kind:?}: {refused}"
            );
        }
    }
    Ok(())
}

#[test]
fn folders() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let open = |path: &Path| discover(&[Source::Root(path.to_owned())]);
    let saw = |path: &Path, expected: &str| -> Result<()> {
        let refused = refusal(open(path))?.to_string();
        ensure!(
            refused.contains(expected),
            "{expected} is not in: {refused}"
        );
        Ok(())
    };
    saw(&folder.path().join("missing"), "does not exist")?;
    saw(folder.path(), "no Linux root")?;
    fs::write(folder.path().join("file"), "")?;
    saw(&folder.path().join("file"), "is no folder")?;

    let fstab = "LABEL=my\\040var /var ext4 defaults 0 2\n\
        UUID=44444444-4444-4444-8444-444444444444 /data ext4 defaults 0 2\n\
        /var/log /logs none bind 0 0\n";
    let disk = with_var(&folder.path().join("disk.img"), Table::Gpt, fstab)?;
    disk.mounted(|at| {
        fs::create_dir(at.join("logs"))?;
        fs::create_dir(at.join("data"))?;
        Ok(fs::create_dir(at.join("proc"))?)
    })?;
    disk.mounted_read_only(|at| {
        Cmd::new("mount")
            .args(["-t", "tmpfs", "helper"])
            .arg(at.join("proc"))
            .ok()?;
        fs::write(at.join("proc/secret"), "of the helper")?;
        let found = discover(&[Source::Root(at.to_owned())])?;
        let guest = found.guests.first().context("no guest")?;
        assert_eq!(text(guest, "/var/log/syslog")?, "on the other partition");
        assert_eq!(text(guest, "/logs/syslog")?, "on the other partition");
        let backing: Vec<_> = guest
            .file_systems
            .iter()
            .map(|there| there.backing.clone())
            .collect();
        assert_eq!(
            backing,
            [
                Backing::Folder(at.to_owned()),
                Backing::Folder(at.join("var"))
            ]
        );
        assert!(guest.read_dir(&GuestPath::new("/proc"))?.is_empty());
        Cmd::new("umount").arg(at.join("proc")).ok()?;
        assert_eq!(guest.unresolved.len(), 1, "{:?}", guest.unresolved);
        assert!(
            guest.unresolved[0].contains("/data is not mounted below"),
            "{:?}",
            guest.unresolved
        );
        Ok(())
    })
}
