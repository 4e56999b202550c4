//! Mounts and loop devices that surely go away again.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};

use crate::command::Cmd;

/// Runs `work` in a thread with a mount namespace of its own: what it mounts is seen by nobody
/// else, and dies with it. Programs it starts see the mounts too. A panic in `work` goes on in the
/// caller.
pub fn in_private_namespace<T: Send>(work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNS)
                .context("making a private mount namespace (are you root?)")?;
            let none: Option<&str> = None;
            mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)
                .context("making mounts private")?;
            work()
        });
        thread
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// A loop device over (a part of) a file; gone when dropped, and by the kernel when the process
/// dies.
#[derive(Debug)]
pub struct Loop {
    device: PathBuf,
    // Keeps the device alive: it is marked to be cleared at its last close.
    _open: File,
}

impl Loop {
    /// Shows `size` bytes of `file` from `offset` as a block device with the given sector size.
    pub fn attach(
        file: &Path,
        offset: u64,
        size: u64,
        sector: u64,
        read_only: bool,
    ) -> Result<Self> {
        let mut command = Cmd::new("losetup").args(["--find", "--show"]);
        command = command
            .arg(format!("--offset={offset}"))
            .arg(format!("--sizelimit={size}"));
        command = command.arg(format!("--sector-size={sector}"));
        if read_only {
            command = command.arg("--read-only");
        }
        let device = PathBuf::from(command.arg(file).ok()?.stdout.trim());
        let open = File::open(&device).with_context(|| format!("opening {}", device.display()))?;
        // With a descriptor open this does not detach, it only sets the autoclear flag.
        Cmd::new("losetup").arg("--detach").arg(&device).ok()?;
        Ok(Self {
            device,
            _open: open,
        })
    }

    /// Its path.
    pub fn device(&self) -> &Path {
        &self.device
    }
}

/// A whole disk as a block device, with its partitions as nodes of their own; gone when dropped.
#[derive(Debug)]
pub struct WholeDisk {
    disk: Loop,
}

impl WholeDisk {
    /// Shows the image; its partitions are read by partx, as not every kernel knows every table.
    pub fn attach(image: &Path, read_only: bool) -> Result<Self> {
        let disk = Loop::attach(image, 0, image.metadata()?.len(), 512, read_only)?;
        // Not `--add`: a device that was cleared keeps its partitions.
        Cmd::new("partx").arg("--update").arg(disk.device()).ok()?;
        Ok(Self { disk })
    }

    /// The disk's path.
    pub fn device(&self) -> &Path {
        self.disk.device()
    }

    /// The path of one partition.
    pub fn partition(&self, number: u32) -> PathBuf {
        PathBuf::from(format!("{}p{number}", self.device().display()))
    }
}

impl Drop for WholeDisk {
    fn drop(&mut self) {
        let _ = Cmd::new("partx").arg("--delete").arg(self.device()).run();
    }
}

/// Waits until no loop device shows `file` any more, so that its bytes can be compared or handed
/// on.
pub fn wait_until_free(file: &Path) -> Result<()> {
    let started = Instant::now();
    loop {
        let users = Cmd::new("losetup")
            .arg("--associated")
            .arg(file)
            .ok()?
            .stdout;
        if users.trim().is_empty() {
            return Ok(());
        }
        ensure!(
            started.elapsed() < Duration::from_secs(20),
            "{} is still in use: {users}",
            file.display()
        );
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// One mounted file system; unmounted when dropped.
#[derive(Debug)]
pub struct Mounted {
    target: PathBuf,
    done: bool,
}

impl Mounted {
    /// Mounts a device. `options` is what `mount -o` takes.
    pub fn mount(device: &Path, target: &Path, options: &str) -> Result<Self> {
        Cmd::new("mount")
            .arg("-o")
            .arg(options)
            .arg(device)
            .arg(target)
            .ok()?;
        Ok(Self {
            target: target.to_owned(),
            done: false,
        })
    }

    /// Unmounts, and says so when that fails (a busy file system is a fault in the test).
    pub fn unmount(mut self) -> Result<()> {
        self.done = true;
        let started = Instant::now();
        loop {
            match umount2(&self.target, MntFlags::empty()) {
                Ok(()) => return Ok(()),
                Err(nix::errno::Errno::EBUSY) if started.elapsed() < Duration::from_secs(5) => {
                    std::thread::sleep(Duration::from_millis(20));
                }
                Err(error) => bail!("unmounting {}: {error}", self.target.display()),
            }
        }
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if !self.done {
            // Only after a failure: the namespace takes it down anyhow.
            let _ = umount2(&self.target, MntFlags::MNT_DETACH);
        }
    }
}
