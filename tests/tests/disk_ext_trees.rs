//! ext2, ext3 and ext4 as we read them against the kernel's own mount of the same image: every
//! attribute, every byte.

use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use anyhow::{Context, Result, ensure};
use nix::sys::stat::{Mode, SFlag};
use rescue::disk::Source;
use rescue::guest::{Guest, discover};
use rescue::tree::{FileKind, Meta, Tree};
use tests::disk::{DiskBuilder, FileSystem, MIB, Partition, Table};

/// What `mkfs` is told, beside the kind.
const VARIANTS: [(FileSystem, &[&str]); 15] = [
    (FileSystem::Ext4, &[]),
    (FileSystem::Ext4, &["-b", "1024"]),
    (FileSystem::Ext4, &["-b", "2048", "-I", "512"]),
    (FileSystem::Ext4, &["-O", "^64bit"]),
    (FileSystem::Ext4, &["-O", "^metadata_csum"]),
    (
        FileSystem::Ext4,
        &["-O", "^metadata_csum,^64bit,^flex_bg", "-b", "1024"],
    ),
    (FileSystem::Ext4, &["-O", "metadata_csum_seed"]),
    (FileSystem::Ext4, &["-O", "bigalloc", "-C", "16384"]),
    (FileSystem::Ext4, &["-O", "sparse_super2"]),
    (FileSystem::Ext4, &["-I", "128"]),
    (FileSystem::Ext4, &["-O", "^metadata_csum", "-I", "128"]),
    (FileSystem::Ext4, &["-O", "^has_journal"]),
    (FileSystem::Ext3, &["-b", "1024"]),
    (FileSystem::Ext3, &[]),
    (FileSystem::Ext2, &["-b", "1024"]),
];

#[test]
fn trees_and_free_space_are_those_of_the_kernel() -> Result<()> {
    let folder = tempfile::tempdir()?;
    for (kind, mkfs) in VARIANTS {
        let disk = DiskBuilder::new(160 * MIB)
            .table(Table::Bare)
            .partition(Partition::new(kind, "/").mkfs(mkfs.iter().copied()))
            .build(&folder.path().join("disk.img"))?;
        disk.mounted(populate)?;
        let hash = disk.sha256()?;
        let accessed = fs::metadata(&disk.path)?.atime_nsec();
        disk.mounted_read_only(|root| {
            let guest = guest(&disk.path).with_context(|| format!("{kind:?} {mkfs:?}"))?;
            compare(guest.tree().as_ref(), root).with_context(|| format!("{kind:?} {mkfs:?}"))?;
            compare_usage(&guest, root).with_context(|| format!("{kind:?} {mkfs:?}"))
        })?;
        assert_eq!(disk.sha256()?, hash, "looking changed the image");
        assert_eq!(
            fs::metadata(&disk.path)?.atime_nsec(),
            accessed,
            "looking changed the access time of the image"
        );
    }
    Ok(())
}

fn guest(path: &Path) -> Result<Guest> {
    let mut discovery = discover(&[Source::Disk(path.to_owned())])?;
    ensure!(discovery.guests.len() == 1, "{discovery:?}");
    discovery.guests.pop().context("no guest")
}

/// Files of every shape that a block map can take, and names that a folder can hold.
fn populate(root: &Path) -> Result<()> {
    for folder in ["etc", "bin", "deep/er/and/deeper", "empty", "many", "gone"] {
        fs::create_dir_all(root.join(folder))?;
    }
    fs::write(root.join("etc/hosts"), "127.0.0.1 localhost\n")?;
    for number in 0..1500 {
        fs::write(
            root.join(format!(
                "many/a rather long name, so that the folder needs many blocks {number}"
            )),
            "x",
        )?;
        fs::write(root.join(format!("gone/{number}")), "x")?;
    }
    for number in 0..1490 {
        fs::remove_file(root.join(format!("gone/{number}")))?;
    }
    fs::write(root.join("deep/er/and/deeper/file"), vec![b'd'; 100_000])?;
    fs::write(root.join("nothing"), "")?;
    let pattern: Vec<u8> = (0..6 * MIB).map(|at| (at / 511) as u8).collect();
    fs::write(root.join("large"), &pattern)?;

    // Every second block of two files in turn: many extents, several levels of them or of indirect
    // blocks.
    let (one, other) = (
        File::create(root.join("torn1"))?,
        File::create(root.join("torn2"))?,
    );
    for block in 0..400u64 {
        one.write_all_at(&[block as u8; 4096], block * 8192)?;
        one.sync_data()?;
        other.write_all_at(&[!(block as u8); 4096], block * 4096)?;
    }
    let sparse = File::create(root.join("sparse"))?;
    sparse.set_len(5 << 30)?;
    sparse.write_all_at(b"in the middle", 3 << 30)?;
    sparse.write_all_at(b"near the end", (5 << 30) - 100)?;
    let reserved = File::create(root.join("reserved"))?;
    if nix::fcntl::fallocate(&reserved, nix::fcntl::FallocateFlags::empty(), 0, 300_000).is_ok() {
        reserved.write_all_at(b"written", 150_000)?;
    }

    fs::hard_link(root.join("large"), root.join("deep/large too"))?;
    for length in [1, 58, 59, 60, 61, 1000] {
        std::os::unix::fs::symlink("t".repeat(length), root.join(format!("link{length}")))?;
    }
    std::os::unix::fs::symlink("/etc", root.join("deep/etc"))?;
    std::os::unix::fs::symlink("../../../../../../etc/shadow", root.join("deep/out"))?;
    fs::write(
        root.join(std::ffi::OsStr::from_bytes(b"latin-\xe9 and\nnew line")),
        "name",
    )?;
    nix::unistd::mkfifo(&root.join("fifo"), Mode::from_bits_truncate(0o600))?;
    nix::sys::stat::mknod(
        &root.join("device"),
        SFlag::S_IFBLK,
        Mode::from_bits_truncate(0o660),
        nix::sys::stat::makedev(8, 1),
    )?;
    fs::set_permissions(root.join("nothing"), fs::Permissions::from_mode(0o4711))?;
    std::os::unix::fs::chown(root.join("nothing"), Some(100_000), Some(70_000))?;
    // Times that ext4-view calls damage: before 1970 and after 2038, on a file and on a folder
    // above others.
    fs::create_dir_all(root.join("odd/below"))?;
    fs::write(root.join("odd/below/file"), &pattern[..50_000])?;
    std::os::unix::fs::symlink("l".repeat(70), root.join("odd/link"))?;
    fs::write(root.join("future"), "far")?;
    set_time(&root.join("future"), 2_500_000_000)?;
    set_time(&root.join("odd/below"), -86_400)?;
    set_time(&root.join("odd"), 3_000_000_000)?;
    let mut log = File::create(root.join("log"))?;
    for line in 0..20_000 {
        writeln!(log, "line {line}")?;
    }
    Ok(())
}

fn set_time(path: &Path, seconds: i64) -> Result<()> {
    let time = nix::sys::time::TimeSpec::new(seconds, 5);
    Ok(nix::sys::stat::utimensat(
        nix::fcntl::AT_FDCWD,
        path,
        &time,
        &time,
        nix::sys::stat::UtimensatFlags::NoFollowSymlink,
    )?)
}

fn expected(path: &Path) -> Result<Meta> {
    let metadata = fs::symlink_metadata(path)?;
    let kind = metadata.file_type();
    let special =
        kind.is_fifo() || kind.is_block_device() || kind.is_char_device() || kind.is_socket();
    Ok(Meta {
        kind: match (kind.is_file(), kind.is_dir(), special) {
            (true, _, _) => FileKind::Regular,
            (_, true, _) => FileKind::Directory,
            (_, _, true) => FileKind::Special,
            _ => FileKind::Symlink,
        },
        mode: metadata.mode() & 0o7777,
        uid: metadata.uid(),
        gid: metadata.gid(),
        size: metadata.size(),
        mtime: metadata.mtime(),
        allocated: Some(metadata.blocks() * 512),
        nlink: Some(metadata.nlink()),
        ino: Some(metadata.ino()),
    })
}

/// Walks the kernel's mount at `root` and the tree side by side.
fn compare(tree: &dyn Tree, root: &Path) -> Result<()> {
    let mut todo = vec![PathBuf::from("/")];
    let mut seen = 0;
    while let Some(path) = todo.pop() {
        seen += 1;
        let there = root.join(path.strip_prefix("/")?);
        let meta = tree.lstat(&path)?;
        ensure!(
            meta == expected(&there)?,
            "{}: {meta:?}, but the kernel says {:?}",
            path.display(),
            expected(&there)?
        );
        match meta.kind {
            FileKind::Directory => {
                let mut names: Vec<_> = tree
                    .read_dir(&path)?
                    .into_iter()
                    .map(|entry| (entry.name, entry.kind))
                    .collect();
                names.sort_by(|a, b| a.0.cmp(&b.0));
                let mut kernels = Vec::new();
                for entry in fs::read_dir(&there)? {
                    let entry = entry?;
                    kernels.push((entry.file_name(), expected(&entry.path())?.kind));
                }
                kernels.sort_by(|a, b| a.0.cmp(&b.0));
                ensure!(
                    names == kernels,
                    "{}: other names than the kernel's",
                    path.display()
                );
                todo.extend(names.iter().map(|(name, _)| path.join(name)));
                ensure!(tree.read_range(&path, 0, 1).is_err() && tree.read_link(&path).is_err());
            }
            FileKind::Symlink => {
                ensure!(
                    tree.read_link(&path)? == fs::read_link(&there)?,
                    "{}: another target",
                    path.display()
                );
                ensure!(
                    tree.read_dir(&path).is_err() && tree.read_range(&path, 0, 1).is_err(),
                    "a link was followed"
                );
                ensure!(
                    tree.lstat(&path.join("hosts")).is_err(),
                    "a link was followed"
                );
            }
            FileKind::Regular => compare_content(tree, &path, &there, meta.size)?,
            FileKind::Special => {
                ensure!(tree.read_range(&path, 0, 1).is_err(), "a device was opened")
            }
        }
    }
    ensure!(seen > 1500, "only {seen} files were compared");
    Ok(())
}

/// Whole when small; in parts from both ends, the middle and at random-looking offsets when not.
fn compare_content(tree: &dyn Tree, path: &Path, there: &Path, size: u64) -> Result<()> {
    let file = File::open(there)?;
    let same = |offset: u64, length: usize| -> Result<()> {
        let mut kernels = vec![0; length.min(usize::try_from(size.saturating_sub(offset))?)];
        file.read_exact_at(&mut kernels, offset)?;
        ensure!(
            tree.read_range(path, offset, length)? == kernels,
            "{}: other bytes at {offset}",
            path.display()
        );
        Ok(())
    };
    if size <= 64 * MIB {
        same(0, usize::try_from(size)? + 10)?;
        // On and on, as a reader of a log does.
        for step in 0..4u64 {
            same(step * 5000, 5000)?;
        }
    }
    for offset in [
        3 << 30,
        (3 << 30) - 4096,
        size.saturating_sub(4097),
        size / 2,
        size / 3 * 2 + 1,
        size,
        size + 5,
    ] {
        same(offset, 10_000)?;
    }
    Ok(())
}

fn compare_usage(guest: &Guest, root: &Path) -> Result<()> {
    let kernel = rustix::fs::statvfs(root)?;
    let ours = guest.file_systems.first().context("no file system")?.usage;
    let theirs = (
        kernel.f_blocks * kernel.f_frsize,
        kernel.f_bfree * kernel.f_frsize,
        kernel.f_bavail * kernel.f_frsize,
    );
    ensure!(
        (ours.bytes_total, ours.bytes_free, ours.bytes_available) == theirs,
        "{ours:?}, but the kernel says {theirs:?}"
    );
    ensure!(
        (ours.inodes_total, ours.inodes_free) == (kernel.f_files, kernel.f_ffree),
        "{ours:?}: other inodes"
    );
    Ok(())
}

#[test]
fn a_walk_of_many_files_is_fast() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let disk = DiskBuilder::new(700 * MIB)
        .table(Table::Bare)
        .partition(Partition::new(FileSystem::Ext4, "/").mkfs(["-N", "260000"]))
        .build(&folder.path().join("disk.img"))?;
    disk.mounted(|root| {
        for folder in ["etc", "bin"] {
            fs::create_dir(root.join(folder))?;
        }
        fs::write(root.join("etc/hosts"), "")?;
        for folder in 0..100 {
            let folder = root.join(format!("data/{folder}"));
            fs::create_dir_all(&folder)?;
            for file in 0..2000 {
                File::create(folder.join(format!("file-{file}")))?;
            }
        }
        Ok(())
    })?;
    let (begun, cpu) = (std::time::Instant::now(), cpu_time()?);
    let guest = guest(&disk.path)?;
    let opened = begun.elapsed();
    let files = walk(guest.tree())?;
    let (walked, cpu) = (begun.elapsed() - opened, cpu_time()? - cpu);
    println!(
        "opened in {opened:?}; {files} files walked in {walked:?}, {cpu:?} of it on the processor"
    );
    assert_eq!(files, 200_000 + 100 + 6);
    // On the processor, because the machine may be busy. A quadratic walk would take minutes.
    assert!(cpu.as_secs() < 10, "{cpu:?}");
    Ok(())
}

fn cpu_time() -> Result<std::time::Duration> {
    let time = nix::time::clock_gettime(nix::time::ClockId::CLOCK_THREAD_CPUTIME_ID)?;
    Ok(time.into())
}

fn walk(tree: Rc<dyn Tree>) -> Result<usize> {
    let mut todo = vec![PathBuf::from("/")];
    let mut files = 0;
    while let Some(folder) = todo.pop() {
        files += 1;
        for entry in tree.read_dir(&folder)? {
            let path = folder.join(entry.name);
            if tree.lstat(&path)?.kind == FileKind::Directory {
                todo.push(path)
            } else {
                files += 1
            }
        }
    }
    Ok(files)
}
