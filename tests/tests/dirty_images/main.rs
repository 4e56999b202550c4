//! Disks that lost their power: what the export shows must be what the kernel's own replay on a
//! copy shows, to the byte, and the image must stay as it is.

mod contents;
mod load;
mod variants;

use std::fs::File;
use std::io::BufRead as _;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use nix::mount::{MsFlags, mount};
use rescue::disk::ReadAt;
use rescue::disk::export::mount_replayed;
use rescue::tree::{FileKind, Tree, Usage};
use tests::Cmd;
use tests::mounts::{Loop, Mounted, in_private_namespace, wait_until_free};

use self::contents::Contents;
use self::load::Gauge;
use self::variants::{Shutdown, VARIANTS, Variant};

struct Image(File);

impl Image {
    fn open(path: &Path) -> Result<Arc<Self>> {
        Ok(Arc::new(Self(
            File::open(path).with_context(|| format!("opening {}", path.display()))?,
        )))
    }
}

impl ReadAt for Image {
    fn len(&self) -> u64 {
        self.0.metadata().map_or(0, |meta| meta.len())
    }
    fn sector_size(&self) -> u32 {
        512
    }
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> std::io::Result<()> {
        self.0.read_exact_at(buffer, offset)
    }
}

/// SHA-256 of the bytes that are there and where they are: a hole that was written to counts as a
/// change even when zeroes were written.
fn digest(path: &Path) -> Result<String> {
    use sha2::Digest as _;
    let file = File::open(path)?;
    let length = file.metadata()?.len();
    let mut hash = sha2::Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    let mut at = 0;
    while let Ok(data) = rustix::fs::seek(&file, rustix::fs::SeekFrom::Data(at)) {
        let end = rustix::fs::seek(&file, rustix::fs::SeekFrom::Hole(data))?;
        at = data;
        while at < end {
            let part = &mut buffer[..(end - at).min(1 << 20) as usize];
            file.read_exact_at(part, at)?;
            hash.update(at.to_le_bytes());
            hash.update(&*part);
            at += part.len() as u64;
        }
    }
    hash.update(length.to_le_bytes());
    Ok(hash
        .finalize()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect())
}

/// Makes a file system on `image` and shuts it down under load.
fn make_dirty(image: &Path, variant: &Variant, shutdown: Shutdown, seed: u64) -> Result<()> {
    File::create(image)?.set_len(variant.size())?;
    let quiet = if variant.is_xfs() {
        ["-q", "-f"]
    } else {
        ["-q", "-F"]
    };
    Cmd::new(format!("mkfs.{}", variant.mkfs))
        .args(quiet)
        .args(variant.arguments)
        .arg(image)
        .ok()?;
    let target = tempfile::tempdir()?;
    {
        let device = Loop::attach(image, 0, variant.size(), 512, false)?;
        let mounted = Mounted::mount(device.device(), target.path(), variant.options)?;
        shut_down_under_load(target.path(), device.device(), variant, shutdown, seed)?;
        mounted.unmount()?;
    }
    wait_until_free(image)?;
    expect_dirty(image, variant)
}

fn shut_down_under_load(
    at: &Path,
    device: &Path,
    variant: &Variant,
    shutdown: Shutdown,
    seed: u64,
) -> Result<()> {
    let folders = ["one", "two", "shared"].map(|name| at.join(name));
    for folder in &folders {
        std::fs::create_dir(folder)?;
    }
    let _deleted = delete_open_file(at)?;
    let gauge = Gauge::default();
    std::thread::scope(|scope| {
        let writers: Vec<_> = (0..2)
            .map(|n| (&folders[n], seed * 2 + n as u64))
            .map(|(own, seed)| (own, &folders[2], seed, &gauge))
            .map(|(own, shared, seed, gauge)| {
                scope.spawn(move || load::write_until_shut_down(own, shared, seed, gauge))
            })
            .collect();
        let result =
            wait_for_writes(&gauge, variant, at, device).and_then(|()| shut_down(at, shutdown));
        gauge.stop.store(result.is_err(), Ordering::Relaxed);
        for writer in writers {
            writer
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
                .context("writing")?;
        }
        result
    })
}

/// A file that is deleted but open when the power goes, like a log that was removed under its
/// writer: the replay must free its space.
fn delete_open_file(at: &Path) -> Result<File> {
    let path = at.join("deleted");
    std::fs::write(&path, vec![7; 8 << 20])?;
    let open = File::open(&path)?;
    rustix::fs::syncfs(&open)?;
    std::fs::remove_file(path)?;
    rustix::fs::syncfs(&open)?;
    Ok(open)
}

fn wait_for_writes(gauge: &Gauge, variant: &Variant, at: &Path, device: &Path) -> Result<()> {
    let started = Instant::now();
    let enough = || gauge.done.load(Ordering::Relaxed) >= variant.writes;
    while !enough() || (variant.wraps && journal_rounds(at, device)? < 1.5) {
        ensure!(
            started.elapsed() < Duration::from_secs(60),
            "{}: the load is too slow",
            variant.name
        );
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}

/// How many times over the journal (4 MiB where it matters) has been filled, by jbd2's own
/// statistics.
fn journal_rounds(at: &Path, device: &Path) -> Result<f64> {
    let name = device
        .file_name()
        .context("the device's name")?
        .to_string_lossy()
        .into_owned();
    let info = std::fs::read_to_string(format!("/proc/fs/jbd2/{name}-8/info"))
        .context("reading jbd2's statistics")?;
    let number = |line: &str| {
        line.split_whitespace()
            .next()
            .and_then(|word| word.parse::<f64>().ok())
            .unwrap_or(0.0)
    };
    let find = |what: &str| {
        info.lines()
            .find(|line| line.contains(what))
            .map_or(0.0, number)
    };
    let block = rustix::fs::statvfs(at)?.f_bsize as f64;
    Ok(find("transactions (") * find("logged blocks per transaction") * block / f64::from(4 << 20))
}

fn shut_down(at: &Path, shutdown: Shutdown) -> Result<()> {
    let command = match shutdown {
        Shutdown::FlushLog => "shutdown -f",
        Shutdown::Abruptly => "shutdown",
    };
    Cmd::new("xfs_io")
        .args(["-x", "-c", command])
        .arg(at)
        .ok()
        .map(drop)
}

/// A test on images that are clean would prove nothing.
fn expect_dirty(image: &Path, variant: &Variant) -> Result<()> {
    let (said, sign) = if variant.is_xfs() {
        (
            Cmd::new("xfs_logprint").arg("-t").arg(image).run()?.stdout,
            "<DIRTY>",
        )
    } else {
        (
            Cmd::new("dumpe2fs").arg("-h").arg(image).ok()?.stdout,
            "needs_recovery",
        )
    };
    ensure!(
        said.contains(sign),
        "{}: it was shut down and is not dirty\n{said}",
        variant.name
    );
    Ok(())
}

/// What the kernel makes of a copy.
fn truth(image: &Path) -> Result<(Contents, Usage)> {
    let copy = image.with_extension("copy");
    Cmd::new("cp")
        .arg("--sparse=auto")
        .arg(image)
        .arg(&copy)
        .ok()?;
    let target = tempfile::tempdir()?;
    let result = {
        let device = Loop::attach(&copy, 0, copy.metadata()?.len(), 512, false)?;
        let mounted = Mounted::mount(device.device(), target.path(), "nodiscard")?;
        // Before anything is read, see there.
        let usage = rescue::tree::FolderTree::open(target.path())?.usage()?;
        let contents = contents::of_folder(target.path())?;
        mounted.unmount()?;
        (contents, usage)
    };
    wait_until_free(&copy)?;
    std::fs::remove_file(copy)?;
    Ok(result)
}

/// Makes one image and compares: how many files there were.
fn compare_one(folder: &Path, variant: &Variant, shutdown: Shutdown, seed: u64) -> Result<usize> {
    let image = folder.join("disk.img");
    make_dirty(&image, variant, shutdown, seed).context("making the image")?;
    let before = digest(&image)?;
    let replayed_from = next_second()?;
    let (mut truth, true_usage) = truth(&image).context("mounting a copy")?;
    let mut ours = {
        let (tree, usage) = mount_replayed(Image::open(&image)?, variant.mkfs)?;
        ensure!(
            usage == true_usage,
            "usage {usage:?}, in truth {true_usage:?}"
        );
        contents::of_tree(&tree)?
    };
    ensure!(digest(&image)? == before, "the image changed");
    if !variant.is_xfs() {
        for contents in [&mut truth, &mut ours] {
            contents::forget_times_from(contents, replayed_from);
        }
    }
    let differences = contents::differences(&truth, &ours);
    ensure!(
        differences.is_empty(),
        "differs from the kernel's own replay:\n{}",
        differences.join("\n")
    );
    std::fs::remove_file(image)?;
    Ok(ours.len())
}

/// Waits for the next whole second, so that times before it are not the replay's; gives it in
/// seconds since 1970.
fn next_second() -> Result<i64> {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?;
    std::thread::sleep(Duration::from_secs(now.as_secs() + 1).saturating_sub(now));
    Ok(now.as_secs() as i64 + 1)
}

/// In a private namespace with a tmpfs for the images: making them is then bound by the processor,
/// not by this machine's disk.
fn with_memory_folder<T: Send>(work: impl FnOnce(&Path) -> Result<T> + Send) -> Result<T> {
    in_private_namespace(|| {
        let folder = tempfile::tempdir()?;
        mount(
            Some("tmpfs"),
            folder.path(),
            Some("tmpfs"),
            MsFlags::empty(),
            Some("size=2g"),
        )?;
        let result = work(folder.path());
        nix::mount::umount2(folder.path(), nix::mount::MntFlags::MNT_DETACH)?;
        result
    })
}

fn kernel_mounts_xfs_v4() -> Result<bool> {
    with_memory_folder(|folder| {
        let (image, target) = (folder.join("v4.img"), folder.join("v4"));
        File::create(&image)?.set_len(320 << 20)?;
        Cmd::new("mkfs.xfs")
            .args(["-q", "-m", "crc=0"])
            .arg(&image)
            .ok()?;
        std::fs::create_dir(&target)?;
        let device = Loop::attach(&image, 0, 320 << 20, 512, false)?;
        let ran = Cmd::new("mount").arg(device.device()).arg(&target).run()?;
        if ran.code == 0 {
            Cmd::new("umount").arg(&target).ok()?;
        }
        Ok(ran.code == 0)
    })
}

/// Every variant three times: shut down with the log flushed, and twice without.
const SHUTDOWNS: [Shutdown; 3] = [Shutdown::FlushLog, Shutdown::Abruptly, Shutdown::Abruptly];

#[test]
fn the_export_shows_what_the_next_boot_will_see() -> Result<()> {
    let started = Instant::now();
    let only = std::env::var("DIRTY_ONLY").unwrap_or_default();
    let mut variants: Vec<_> = VARIANTS
        .iter()
        .filter(|variant| variant.name.contains(&only))
        .collect();
    if !kernel_mounts_xfs_v4()? {
        println!(
            "NOTE: this kernel is built without XFS v4 (CONFIG_XFS_SUPPORT_V4): those variants are \
             NOT compared here"
        );
        variants.retain(|variant| !variant.name.starts_with("xfs v4"));
    }
    let cases: Vec<_> = (0..SHUTDOWNS.len())
        .flat_map(|round| variants.iter().map(move |v| (*v, round)))
        .collect();
    let (next, files) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let failures = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while let Some((variant, round)) = cases.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let seed = 1000 + *round as u64;
                    let at = Instant::now();
                    match with_memory_folder(|folder| {
                        compare_one(folder, variant, SHUTDOWNS[*round], seed)
                    }) {
                        Ok(count) => {
                            files.fetch_add(count, Ordering::Relaxed);
                            println!(
                                "{}, {:?}: {count} files, {:?}",
                                variant.name,
                                SHUTDOWNS[*round],
                                at.elapsed()
                            );
                        }
                        Err(error) => failures.lock().unwrap().push(format!(
                            "{}, {:?}, seed {seed}: {error:#}",
                            variant.name, SHUTDOWNS[*round]
                        )),
                    }
                }
            });
        }
    });
    let failures = failures.into_inner().unwrap();
    ensure!(
        failures.is_empty(),
        "{} of {} images:\n{}",
        failures.len(),
        cases.len(),
        failures.join("\n")
    );
    let files = files.into_inner();
    println!(
        "{} images, {files} files, the same in all; {:?}",
        cases.len(),
        started.elapsed()
    );
    Ok(())
}

const KILLED_CHILD_IMAGE: &str = "RESCUE_TEST_KILLED_CHILD_IMAGE";

fn walk(tree: &dyn Tree, folder: &Path, files: &mut usize) -> Result<()> {
    for entry in tree.read_dir(folder)? {
        let path = folder.join(&entry.name);
        match entry.kind {
            FileKind::Directory => walk(tree, &path, files)?,
            FileKind::Regular => {
                tree.read(&path, 1 << 30)?;
                *files += 1;
            }
            _ => {}
        }
    }
    Ok(())
}

/// Not a test: the process that `a_killed_run_leaves_nothing_behind` kills.
#[test]
#[ignore = "started and killed by a_killed_run_leaves_nothing_behind"]
fn child_that_looks_until_it_is_killed() {
    let image = std::env::var_os(KILLED_CHILD_IMAGE).expect("only started by another test");
    loop {
        println!("starting");
        let (tree, _) = mount_replayed(Image::open(image.as_ref()).unwrap(), "ext4").unwrap();
        walk(&tree, Path::new("/"), &mut 0).unwrap();
    }
}

fn loops_of(process: u32) -> usize {
    let name = format!("/rescue-{process}");
    let all = (0..256).map(|number| format!("/sys/block/loop{number}/loop/backing_file"));
    all.filter(|path| {
        std::fs::read_to_string(path).is_ok_and(|file| file.trim_end().ends_with(&name))
    })
    .count()
}

fn eventually(what: &str, mut done: impl FnMut() -> bool) -> Result<()> {
    let started = Instant::now();
    while !done() {
        ensure!(
            started.elapsed() < Duration::from_secs(10),
            "still not after 10 s: {what}"
        );
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// Starts the child, lets it work for a while, kills it: how many loop devices it had.
fn start_and_kill(image: &Path, after: Duration) -> Result<usize> {
    let mut child = Command::new(std::env::current_exe()?)
        .args([
            "--ignored",
            "--exact",
            "--nocapture",
            "child_that_looks_until_it_is_killed",
        ])
        .env(KILLED_CHILD_IMAGE, image)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    let mut lines =
        std::io::BufReader::new(child.stdout.take().context("the child's output")?).lines();
    ensure!(
        lines.any(|line| line.is_ok_and(|line| line.contains("starting"))),
        "the child did not start"
    );
    std::thread::sleep(after);
    let loops = loops_of(child.id());
    child.kill()?;
    let mut ended = false;
    let reaped = eventually("the killed process is gone", || {
        ended = ended || child.try_wait().is_ok_and(|status| status.is_some());
        ended
    });
    reaped.with_context(|| format!("killed after {after:?}"))?;
    eventually("its loop devices are gone", || loops_of(child.id()) == 0)?;
    Ok(loops)
}

#[test]
fn a_killed_run_leaves_nothing_behind() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let image = folder.path().join("disk.img");
    in_private_namespace(|| make_dirty(&image, &VARIANTS[0], Shutdown::FlushLog, 1))?;
    let before = digest(&image)?;

    let mut at_work = 0;
    for round in 0..40 {
        at_work += usize::from(start_and_kill(&image, Duration::from_millis(round * 7 % 300))? > 0);
    }
    ensure!(
        at_work >= 20,
        "only {at_work} of 40 were killed while the disk was mounted"
    );

    let (tree, _) = mount_replayed(Image::open(&image)?, "ext4")?;
    let mut files = 0;
    walk(&tree, Path::new("/"), &mut files)?;
    drop(tree);
    ensure!(files > 100, "the next run sees {files} files");
    assert_eq!(digest(&image)?, before, "the image changed");
    println!("killed 40 times, {at_work} of them with the disk mounted");
    Ok(())
}
