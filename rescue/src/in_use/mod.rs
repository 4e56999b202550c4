//! Whether anybody else uses a disk. Writing beside a mounted file system, a running machine or
//! another host destroys it, so any sign of use is a refusal that says who, and what to type.

mod device;
mod file;
mod heads;
pub mod held_open;
mod holders;
mod image;
pub mod keeper;
mod openers;
pub mod read_only;
mod vmware;

use std::fs::File;
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::fs::FlockOperation;
use rustix::io::Errno;

pub use device::used_here;
pub use heads::{Head, Uncached, has_error_flag, head};

use crate::base::refusal::Refusal;
use crate::disk::storage_daemon::StorageDaemon;

/// udev locks a device for a moment while it looks at it; so long is waited for that.
const LOCK_PATIENCE: Duration = Duration::from_secs(5);

/// A disk that is ours to write to, for as long as this lives.
#[derive(Debug)]
pub struct Claim {
    path: PathBuf,
    /// Holds the locks: they die with the process.
    file: File,
    block_device: bool,
    /// For an image in a format of its own.
    shown: Option<Shown>,
}

/// The disk in an image; the file must be closed before the daemon is ended.
#[derive(Debug)]
struct Shown {
    disk: File,
    daemon: StorageDaemon,
}

impl Claim {
    /// Locks the disk against other runs of this program (and, for images, against QEMU) and looks
    /// for everybody else.
    ///
    /// # Errors
    /// [`Refusal`] (by downcast) when somebody uses it.
    pub fn take(path: &Path, block_device: bool) -> Result<Self> {
        let itself = || image::Target {
            path: path.to_path_buf(),
            through: image::Through::Itself,
        };
        let image::Target { path, through } = if block_device {
            itself()
        } else {
            image::target(path)?
        };
        let path = path
            .canonicalize()
            .with_context(|| format!("looking for {}", path.display()))?;
        if block_device {
            read_only::give_back(&path);
        }
        // A device open for writing could not be mounted on kernels that guard mounted devices
        // (CONFIG_BLK_DEV_WRITE_MOUNTED=n).
        let write = !block_device;
        let file = File::options()
            .read(true)
            .write(write)
            .open(&path)
            .map_err(|error| cannot_write(&path, error))?;
        lock(
            &file,
            &path,
            if block_device {
                LOCK_PATIENCE
            } else {
                Duration::ZERO
            },
        )?;
        let mut shown = None;
        match through {
            image::Through::Itself if block_device => device::refuse_in_use(&path)?,
            image::Through::Itself => file::refuse_in_use(&file, &path)?,
            image::Through::Daemon(layout, length) => {
                let (daemon, disk) = image::open(&path, &layout, length)?;
                shown = Some(Shown { disk, daemon });
            }
        }
        Ok(Self {
            path,
            file,
            block_device,
            shown,
        })
    }

    /// The disk's own path, links resolved.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The open disk, for reading.
    pub fn file(&self) -> &File {
        self.shown.as_ref().map_or(&self.file, |shown| &shown.disk)
    }

    /// The disk opened once more, for writing.
    pub fn open_for_writing(&self) -> Result<File> {
        let path = match &self.shown {
            Some(shown) => PathBuf::from(format!("/proc/self/fd/{}", shown.disk.as_raw_fd())),
            None => self.path.clone(),
        };
        File::options()
            .read(true)
            .write(true)
            .open(&path)
            .map_err(|error| cannot_write(&self.path, error))
    }

    /// The block device node for a range of it, where the kernel has one: the partition, or the
    /// device as a whole.
    pub fn node_of(&self, offset: u64, length: u64) -> Result<Option<PathBuf>> {
        if self.block_device {
            device::node_of(&self.path, offset, length)
        } else {
            Ok(None)
        }
    }

    /// Synchronises the disk and drops what is cached of it, so that the next look sees what was
    /// written through a partition; has an image closed by whoever wrote to it.
    pub fn close(self) -> Result<()> {
        rustix::fs::fsync(self.file())
            .with_context(|| format!("synchronising {}", self.path.display()))?;
        rustix::fs::fadvise(self.file(), 0, None, rustix::fs::Advice::DontNeed)
            .with_context(|| format!("dropping what is cached of {}", self.path.display()))?;
        let Some(Shown { disk, daemon }) = self.shown else {
            return Ok(());
        };
        drop(disk);
        daemon.stop()
    }
}

fn cannot_write(path: &Path, error: std::io::Error) -> anyhow::Error {
    let (means, next) = match Errno::from_io_error(&error) {
        Some(Errno::ROFS | Errno::PERM) => {
            ("it is read-only", "attach it writable, then run this again")
        }
        Some(Errno::ACCESS) => ("this needs more rights", "run this again as root"),
        Some(Errno::BUSY | Errno::TXTBSY) => (
            "somebody uses it",
            "find out who (fuser, lsof), then run this again",
        ),
        _ => {
            return anyhow::Error::new(error)
                .context(format!("opening {} for writing", path.display()));
        }
    };
    Refusal::new(
        format!("{} cannot be opened for writing", path.display()),
        means,
        next,
    )
    .into()
}

fn lock(file: &File, path: &Path, patience: Duration) -> Result<()> {
    let deadline = std::time::Instant::now() + patience;
    loop {
        match rustix::fs::flock(file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(()),
            Err(Errno::WOULDBLOCK) if std::time::Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(100));
            }
            Err(Errno::WOULDBLOCK) => return Err(locked(path).into()),
            // Network file systems without locks: the other looks have to do.
            Err(Errno::OPNOTSUPP | Errno::NOLCK | Errno::NOSYS) => return Ok(()),
            Err(error) => return Err(error).with_context(|| format!("locking {}", path.display())),
        }
    }
}

fn locked(path: &Path) -> Refusal {
    Refusal::new(
        format!(
            "{} is locked by another program, perhaps another rescue",
            path.display()
        ),
        "two writers at the same time would destroy it",
        format!(
            "wait for it to end (`fuser {}` names it), then run this again",
            path.display()
        ),
    )
}
