//! The process that sets block devices read-only and takes that away again when the one that
//! started it says so or ends, also by `kill -9`.
//!
//! It is this program under the name [`PROGRAM`]: `rescue-keeper DEVICE…`. It answers one line when
//! it has done what it can, takes the number of a device per line on its standard input, answers
//! each, and ends with its input.
//!
//! A device is only touched when nothing on this machine uses it, and held exclusively from before
//! the flag is set until after it is gone: nothing can mount it, or build anything on it, that the
//! flag would then hurt. What holds it needs to be seen: not in a PID namespace that hides
//! processes of the machine. Should this process be killed as well, a record in /run tells the next
//! run that the flag was ours.

use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use nix::sys::signal::SigSet;
use rustix::fs::{FlockOperation, Mode, OFlags};

use super::{device, openers};
use crate::base::sys;

/// The name that this program has as the keeper.
pub const PROGRAM: &str = "rescue-keeper";

/// One record for each device: gone with the machine's memory, as the flags are.
const RECORDS: &str = "/run/rescue";

/// `PROC_PID_INIT_INO` of <linux/proc_ns.h>: the namespace in which all processes of the machine
/// are seen.
const FIRST_PID_NAMESPACE: &str = "pid:[4026531836]";

/// The keeper, if that is what this process is.
pub fn dispatch() -> Option<ExitCode> {
    let mut arguments = std::env::args_os();
    let is_keeper = Path::new(&arguments.next()?).file_name()? == PROGRAM;
    is_keeper.then(|| keep(arguments.map(PathBuf::from).collect()))
}

/// Whether flags may be set at all: as root, where every process of the machine is seen.
pub(super) fn may_be_used() -> bool {
    let namespace = fs::read_link("/proc/self/ns/pid");
    rustix::process::geteuid().is_root()
        && namespace.is_ok_and(|name| name == Path::new(FIRST_PID_NAMESPACE))
}

fn keep(devices: Vec<PathBuf>) -> ExitCode {
    // Ctrl-C and a closed terminal are for the one that started this; its end is all that counts
    // here.
    let _ = nix::unistd::setsid();
    let _ = SigSet::all().thread_block();
    let mut flags: Vec<Option<Flag>> = devices.iter().map(|path| Flag::set(path)).collect();
    let mut answers = std::io::stdout();
    let mut answer = || writeln!(answers, "done").and_then(|()| answers.flush());
    let mut is_heard = answer().is_ok();
    let mut requests = std::io::stdin().lock().lines().map_while(Result::ok);
    while let Some(request) = requests.next().filter(|_| is_heard) {
        if let Some(flag) = request
            .parse()
            .ok()
            .and_then(|number: usize| flags.get_mut(number))
        {
            drop(flag.take());
        }
        is_heard = answer().is_ok();
    }
    drop(flags);
    ExitCode::SUCCESS
}

/// A device that was set read-only, and is held for as long. Dropping it makes it as it was.
#[derive(Debug)]
struct Flag {
    /// Those set, the device itself first; partitions have flags of their own before Linux 5.11.
    set: Vec<OwnedFd>,
    /// Keeps mounts and others away until the flags are gone.
    _held: OwnedFd,
    record: Record,
}

impl Flag {
    /// `None` where that is not safe, not allowed, or was so before.
    fn set(path: &Path) -> Option<Self> {
        take_away_stale(path);
        if is_used(path) {
            return None;
        }
        let held = rustix::fs::open(
            path,
            OFlags::RDONLY | OFlags::EXCL | OFlags::CLOEXEC,
            Mode::empty(),
        )
        .ok()?;
        if sys::is_read_only(held.as_fd()).ok()? {
            return None;
        }
        let record = Record::make(path)?;
        let mut flag = Self {
            set: Vec::new(),
            _held: held,
            record,
        };
        let itself =
            rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok()?;
        for device in std::iter::once(itself).chain(partitions(path)) {
            if !sys::is_read_only(device.as_fd()).unwrap_or(true)
                && sys::set_read_only(device.as_fd(), true).is_ok()
            {
                flag.set.push(device);
            }
        }
        // Whoever opened it for writing without claiming it, in between.
        (!flag.set.is_empty() && !is_used(path)).then_some(flag)
    }
}

impl Drop for Flag {
    fn drop(&mut self) {
        for device in &self.set {
            let _ = sys::set_read_only(device.as_fd(), false);
        }
        let _ = fs::remove_file(&self.record.path);
    }
}

/// Mounted, part of something, or open for writing.
fn is_used(path: &Path) -> bool {
    let nodes = device::nodes(path).unwrap_or_default();
    nodes.is_empty()
        || !matches!(device::used_here(path), Ok(None))
        || openers::writing(&nodes).is_some()
}

/// The partitions of the device at `path`, open; none where it is one itself.
fn partitions(path: &Path) -> impl Iterator<Item = OwnedFd> {
    let nodes = match device::is_disk(path) {
        true => device::nodes(path).unwrap_or_default(),
        false => Vec::new(),
    };
    // The first is the disk itself.
    let open = |node: PathBuf| {
        rustix::fs::open(node, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok()
    };
    nodes.into_iter().skip(1).filter_map(open)
}

/// What says that the flag of a device is ours; locked for as long as its keeper lives.
#[derive(Debug)]
struct Record {
    path: PathBuf,
    _locked: File,
}

impl Record {
    fn make(device: &Path) -> Option<Self> {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(RECORDS)
            .ok()?;
        let path = record_of(device)?;
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)
            .ok()?;
        rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).ok()?;
        file.write_all(device::generation(device).ok()?.as_bytes())
            .ok()?;
        Some(Self {
            path,
            _locked: file,
        })
    }
}

fn record_of(device: &Path) -> Option<PathBuf> {
    Some(Path::new(RECORDS).join(format!(
        "read-only-{}",
        device::number(device).ok()?.replace(':', "-")
    )))
}

/// Makes the device at `path`, its disk and its partitions writable again where a keeper set the
/// flag and was killed.
pub(super) fn take_away_stale(path: &Path) {
    for node in device::nodes(path).unwrap_or_default() {
        let _ = take_away_one(&node);
    }
}

fn take_away_one(node: &Path) -> Option<()> {
    let record = record_of(node)?;
    let file = File::open(&record).ok()?;
    rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).ok()?;
    // Another disk under the same number keeps its flag.
    if fs::read_to_string(&record).ok()? == device::generation(node).ok()? {
        let itself =
            rustix::fs::open(node, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok()?;
        for device in std::iter::once(itself).chain(partitions(node)) {
            let _ = sys::set_read_only(device.as_fd(), false);
        }
    }
    fs::remove_file(&record).ok()
}
