//! Whether anybody else uses a disk. Writing beside a mounted file system, a running machine or another host destroys it, so any
//! sign of use is a refusal that says who, and what to type.

mod device;
mod file;
mod heads;
pub mod held_open;
mod holders;
mod image;
mod openers;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::fs::FlockOperation;
use rustix::io::Errno;

pub use heads::{Head, Uncached, has_error_flag, head};

use crate::refusal::Refusal;

/// udev locks a device for a moment while it looks at it; so long is waited for that.
const LOCK_PATIENCE: Duration = Duration::from_secs(5);

/// A disk that is ours to write to, for as long as this lives.
#[derive(Debug)]
pub struct Claim {
    path: PathBuf,
    /// Holds the locks: they die with the process.
    file: File,
    block_device: bool,
}

impl Claim {
    /// Locks the disk against other runs of this program (and, for images, against QEMU) and looks for everybody else.
    ///
    /// # Errors
    /// [`Refusal`] (by downcast) when somebody uses it.
    pub fn take(path: &Path, block_device: bool) -> Result<Self> {
        let path = if block_device { path.to_path_buf() } else { image::file_to_write(path)? };
        let path = path.canonicalize().with_context(|| format!("looking for {}", path.display()))?;
        // A device open for writing could not be mounted on kernels that guard mounted devices (CONFIG_BLK_DEV_WRITE_MOUNTED=n).
        let write = !block_device;
        let file = File::options().read(true).write(write).open(&path).map_err(|error| cannot_write(&path, error))?;
        lock(&file, &path, if block_device { LOCK_PATIENCE } else { Duration::ZERO })?;
        if block_device {
            device::refuse_in_use(&path)?;
        } else {
            file::refuse_in_use(&file, &path)?;
        }
        Ok(Self { path, file, block_device })
    }

    /// The disk's own path, links resolved.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The open disk, for reading.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// The disk opened once more, for writing.
    pub fn open_for_writing(&self) -> Result<File> {
        File::options().read(true).write(true).open(&self.path).map_err(|error| cannot_write(&self.path, error))
    }

    /// The block device node for a range of it, where the kernel has one: the partition, or the device as a whole.
    pub fn node_of(&self, offset: u64, length: u64) -> Result<Option<PathBuf>> {
        if self.block_device { device::node_of(&self.path, offset, length) } else { Ok(None) }
    }

    /// Synchronises the disk and drops what is cached of it, so that the next look sees what was written through a partition.
    pub fn forget_cached(&self) -> Result<()> {
        rustix::fs::fsync(&self.file).with_context(|| format!("synchronising {}", self.path.display()))?;
        rustix::fs::fadvise(&self.file, 0, None, rustix::fs::Advice::DontNeed)
            .with_context(|| format!("dropping what is cached of {}", self.path.display()))
    }
}

fn cannot_write(path: &Path, error: std::io::Error) -> anyhow::Error {
    let (means, next) = match Errno::from_io_error(&error) {
        Some(Errno::ROFS | Errno::PERM) => ("it is read-only", "attach it writable, then run this again"),
        Some(Errno::ACCESS) => ("this needs more rights", "run this again as root"),
        Some(Errno::BUSY | Errno::TXTBSY) => ("somebody uses it", "find out who (fuser, lsof), then run this again"),
        _ => return anyhow::Error::new(error).context(format!("opening {} for writing", path.display())),
    };
    Refusal::new(format!("{} cannot be opened for writing", path.display()), means, next).into()
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
        format!("{} is locked by another program, perhaps another rescue", path.display()),
        "two writers at the same time would destroy it",
        format!("wait for it to end (`fuser {}` names it), then run this again", path.display()),
    )
}
