//! What holds the space, and freeing it, on real disks.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, symlink};
use std::path::Path;

use anyhow::{Context, Result, ensure};
use rescue::base::severity::Severity;
use rescue::base::ui::Silent;
use rescue::change::Freeing;
use rescue::disk::Source;
use rescue::finding::{Context as Looking, Facts};
use rescue::guest::{Guest, discover};
use rescue::node::Node;
use rescue::settings::Settings;
use rescue::space::walk::{Visitor, Walked, walk};
use rescue::tree::Meta;
use tests::command::Cmd;
use tests::disk::{DiskBuilder, FileSystem, MIB, Partition, Table};
use tests::fill;

const LOG_UUID: &str = "5e5c8b0e-3b0c-4a53-9c5a-0d3a2f1f7a11";

struct Nothing;
impl Visitor for Nothing {
    fn enter(&mut self, _folder: &Path) {}
    fn file(&mut self, _folder: &Path, _name: &std::ffi::OsStr, _meta: &Meta) {}
}

fn guest(path: &Path) -> Result<Guest> {
    let mut discovery = discover(&[Source::Disk(path.to_owned())])?;
    ensure!(discovery.guests.len() == 1, "{discovery:?}");
    discovery.guests.pop().context("no guest")
}

fn walked(path: &Path) -> Result<Walked> {
    Ok(walk(&guest(path)?, 0, &[], &mut Nothing, &Silent))
}

/// Files whose length says nothing of the blocks they take.
fn populate(root: &Path) -> Result<()> {
    for folder in ["etc", "bin", "a/b/c", "many"] {
        fs::create_dir_all(root.join(folder))?;
    }
    fs::write(root.join("etc/hosts"), "127.0.0.1 localhost\n")?;
    fs::write(root.join("a/one"), vec![7; 300_000])?;
    fs::hard_link(root.join("a/one"), root.join("a/b/two"))?;
    fs::hard_link(root.join("a/one"), root.join("three"))?;
    let sparse = File::create(root.join("sparse"))?;
    sparse.set_len(1 << 34)?;
    for hole in 0..200 {
        sparse.write_all_at(&[1; 3000], hole * 50_000_000)?;
    }
    let reserved = File::create(root.join("preallocated"))?;
    match rustix::fs::fallocate(
        &reserved,
        rustix::fs::FallocateFlags::KEEP_SIZE,
        0,
        5_000_000,
    ) {
        // ext2 has no extents to preallocate.
        Ok(()) | Err(rustix::io::Errno::OPNOTSUPP) => {}
        Err(error) => return Err(error.into()),
    }
    symlink("short", root.join("a/short"))?;
    symlink("x".repeat(900), root.join("a/long"))?;
    for number in 0..2000 {
        fs::write(
            root.join(format!(
                "many/a name that makes the folder large, number {number}"
            )),
            "x",
        )?;
    }
    rustix::fs::setxattr(
        root.join("a/one"),
        "user.note",
        &[b'n'; 700],
        rustix::fs::XattrFlags::empty(),
    )?;
    Ok(())
}

#[test]
fn a_walk_counts_what_du_counts_on_the_kernel_s_mount() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let variants: [(FileSystem, &[&str]); 4] = [
        (FileSystem::Ext4, &[]),
        (FileSystem::Ext4, &["-b", "1024", "-I", "128"]),
        (FileSystem::Ext4, &["-O", "bigalloc", "-C", "16384"]),
        (FileSystem::Ext2, &["-b", "1024"]),
    ];
    for (kind, mkfs) in variants {
        let disk = DiskBuilder::new(160 * MIB)
            .table(Table::Bare)
            .partition(Partition::new(kind, "/").mkfs(mkfs.iter().copied()))
            .build(&folder.path().join("disk.img"))?;
        disk.mounted(populate)?;
        let walked = walked(&disk.path)?;
        assert_eq!(walked.unreadable_count, 0, "{:?}", walked.unreadable);
        disk.mounted_read_only(|root| {
            let count = |arguments: &[&str]| -> Result<u64> {
                let ran = Cmd::new("du").args(arguments).arg(root).ok()?;
                Ok(ran
                    .stdout
                    .split_whitespace()
                    .next()
                    .context("du says nothing")?
                    .parse()?)
            };
            assert_eq!(
                walked.total.bytes,
                count(&["-sx", "--block-size=1"])?,
                "{kind:?} {mkfs:?}"
            );
            assert_eq!(
                walked.total.inodes,
                count(&["-sx", "--inodes"])?,
                "{kind:?} {mkfs:?}"
            );
            Ok(())
        })?;
    }
    Ok(())
}

/// Logs on a partition of their own, without a free block: only that partition is freed, and what
/// the plan says is what comes.
#[test]
fn a_full_partition_of_logs_is_freed_by_itself() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let disk = DiskBuilder::new(700 * MIB)
        .partition(
            Partition::new(FileSystem::Ext4, "/")
                .size(480 * MIB)
                .uuid(tests::fixtures::ROOT_UUID),
        )
        .partition(Partition::new(FileSystem::Ext4, "/var/log").uuid(LOG_UUID))
        .build(&folder.path().join("disk.img"))?;
    disk.populate_control_plane()?;
    disk.mounted(|root| {
        let fstab = format!(
            "UUID={} / ext4 defaults 0 1\nUUID={LOG_UUID} /var/log ext4 defaults 0 2\n",
            tests::fixtures::ROOT_UUID
        );
        fs::write(root.join("etc/fstab"), fstab)?;
        // The names of rotated logs, outside the places that rules reach.
        fs::create_dir_all(root.join("var/lib/app"))?;
        fs::write(
            root.join("var/lib/app/app.log.2"),
            "Feb 20 06:25:01 host app: x\n".repeat(1000),
        )?;
        fill::traps(root)?;
        let free = rustix::fs::statvfs(root.join("var/log"))?;
        fill::logs(root, free.f_bfree * free.f_frsize / 100 * 80)?;
        fill::last_block(root)
    })
    .or_else(|error| {
        // `last_block` makes sure that the root is full; here it is the logs' partition that must
        // be.
        ensure!(format!("{error:#}").contains("still free"), "{error:#}");
        Ok::<_, anyhow::Error>(())
    })?;

    let guest = guest(&disk.path)?;
    let node = Node::read(&guest);
    let settings = Settings::default();
    let context = Looking {
        guest: &guest,
        node: &node,
        settings: &settings,
        peers: &[],
        ui: &Silent,
        facts: &Facts::default(),
    };
    let check = rescue::checks::disk_full::CHECK;
    let findings = (check.run)(&context)?;
    ensure!(findings.len() == 1, "{findings:?}");
    assert_eq!(findings[0].severity, Severity::StopsBoot);
    assert!(
        findings[0].title.starts_with("/var/log is too full"),
        "{}",
        findings[0].title
    );
    let planned = findings[0]
        .remedies
        .first()
        .context("no remedy")?
        .prepare(&context)?
        .free;
    ensure!(!planned.is_empty());
    for action in &planned {
        assert!(
            action.path.as_path().starts_with("/var/log"),
            "{}",
            action.path
        );
        assert!(
            !fill::TRAPS
                .iter()
                .any(|trap| action.path.as_path() == Path::new("/").join(trap)),
            "{}",
            action.path
        );
    }

    let expected = rescue::space::usage_after(&guest, &planned);
    let after = disk.mounted(|root| {
        for action in planned
            .iter()
            .filter(|action| action.freeing == Freeing::Delete)
        {
            fs::remove_file(root.join(action.path.as_path().strip_prefix("/")?))?;
        }
        for action in &planned {
            if let Freeing::KeepTail(keep) = action.freeing {
                File::options()
                    .write(true)
                    .open(root.join(action.path.as_path().strip_prefix("/")?))?
                    .set_len(keep)?;
            }
        }
        rustix::fs::sync();
        Ok(rustix::fs::statvfs(root.join("var/log"))?)
    })?;
    let index = guest
        .file_systems
        .iter()
        .position(|fs| fs.mount_point.as_path() == Path::new("/var/log"));
    let expected = expected
        .get(index.context("no /var/log")?)
        .context("no usage")?;
    // Within a few blocks of folders and extent trees.
    let found = after.f_bfree * after.f_frsize;
    assert!(
        found.abs_diff(expected.bytes_free) < 256 << 10,
        "{found} free, {} expected",
        expected.bytes_free
    );
    assert_eq!(after.f_ffree, expected.inodes_free);
    let guest = self::guest(&disk.path)?;
    let node = Node::read(&guest);
    let context = Looking {
        guest: &guest,
        node: &node,
        ..context
    };
    let left = (check.run)(&context)?;
    assert!(left.is_empty(), "{left:?}");
    Ok(())
}
