//! Mounting a guest's file system with this kernel, seen by nobody else.
//!
//! A mount made here is *detached*: it belongs to no mount namespace and has no mount point, so no
//! other process sees it, nothing is left in a folder, and the kernel unmounts it when the last
//! descriptor is closed, which a `kill -9` does too.

mod superblock;

use std::fmt::Write as _;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context;
use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags, FsPickFlags, MountAttrFlags, OpenTreeFlags};

use crate::base::refusal::Refusal;

/// How long the kernel may take to let go of a device after the last descriptor is closed.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(10);

/// What a guest's file system is always mounted with.
const ALWAYS: MountAttrFlags = MountAttrFlags::MOUNT_ATTR_NODEV
    .union(MountAttrFlags::MOUNT_ATTR_NOSUID)
    .union(MountAttrFlags::MOUNT_ATTR_NOEXEC)
    .union(MountAttrFlags::MOUNT_ATTR_NOATIME);

/// Whether a file system is mounted to be written to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Read-only for us. The kernel itself still replays the journal where the device lets it
    /// write.
    ReadOnly,
    /// For writing.
    ReadWrite,
}

/// One file system, mounted for us alone: always `nodev,nosuid,noexec,noatime`. Dropping it
/// unmounts it.
#[derive(Debug)]
pub struct Mount {
    root: OwnedFd,
    device: PathBuf,
}

impl Mount {
    /// Mounts the file system of the given kind (`ext2`, `ext3`, `ext4`, `xfs`, `btrfs`) on a block
    /// device. Needs root.
    pub fn new(device: &Path, kind: &str, access: Access) -> anyhow::Result<Self> {
        let root = mount_detached(device, kind, access)
            .with_context(|| format!("mounting {}", device.display()))?;
        Ok(Self {
            root,
            device: device.to_path_buf(),
        })
    }

    /// A path to its root folder that works in this process alone, for as long as this lives.
    pub fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.root.as_raw_fd()))
    }

    /// Makes a file system that was mounted for writing read-only: what was to be written is, and
    /// nothing more will be.
    pub fn make_read_only(&self) -> anyhow::Result<()> {
        reconfigure_read_only(&self.root)
            .with_context(|| format!("making {} read-only", self.device.display()))
    }

    /// Writes everything out and unmounts. Unlike dropping, this tells of write errors, and returns
    /// only once the kernel has let go of the device: everything opened below it must be closed
    /// before.
    pub fn unmount(self) -> anyhow::Result<()> {
        let Self { root, device } = self;
        sync(&root).with_context(|| format!("writing out {}", device.display()))?;
        drop(root);
        wait_released(&device)
    }

    /// The root folder's descriptor (`O_PATH`), which is the mount: without it the file system is
    /// unmounted.
    pub fn into_root(self) -> OwnedFd {
        self.root
    }
}

impl AsFd for Mount {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }
}

/// Mounts a block device (or our own loop device, see
/// [`crate::disk::loop_device::LoopDevice::path`]) for writing. The caller has made sure that
/// nobody else uses the disk.
pub fn mount_writable(device: &Path, kind: &str) -> anyhow::Result<Mount> {
    Mount::new(device, kind, Access::ReadWrite)
}

/// The folder that is open as `folder` once more, through a mount of our own that is read-only and
/// moves no access times, not even those of symbolic links (which `O_NOATIME` cannot do). What is
/// mounted below the folder is not part of it. `None` where that is not allowed (not root) or not
/// possible (before Linux 5.12).
pub(crate) fn read_only_view(folder: BorrowedFd<'_>) -> Option<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH;
    let view = rustix::mount::open_tree(folder, "", flags).ok()?;
    let set = ALWAYS | MountAttrFlags::MOUNT_ATTR_RDONLY;
    crate::base::sys::set_mount_attributes(
        view.as_fd(),
        set.bits(),
        MountAttrFlags::MOUNT_ATTR__ATIME.bits(),
    )
    .ok()?;
    Some(view)
}

/// Whether this process may mount.
pub fn require_root(doing: &str) -> Result<(), Refusal> {
    if nix::unistd::geteuid().is_root() {
        Ok(())
    } else {
        Err(needs_root(doing))
    }
}

/// The refusal that names the line to type.
pub(crate) fn needs_root(doing: &str) -> Refusal {
    Refusal::new(
        format!("{doing} needs root"),
        "only the kernel can mount a file system and replay its journal",
        as_root(std::env::args_os()),
    )
}

/// The command line again, with sudo before it, quoted for a shell.
fn as_root(arguments: impl Iterator<Item = std::ffi::OsString>) -> String {
    let mut line = "sudo".to_owned();
    for argument in arguments {
        let argument = argument.to_string_lossy();
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:,+@%".contains(c);
        if !argument.is_empty() && argument.chars().all(plain) {
            let _ = write!(line, " {argument}");
        } else {
            let _ = write!(line, " '{}'", argument.replace('\'', "'\\''"));
        }
    }
    line
}

fn mount_detached(device: &Path, kind: &str, access: Access) -> anyhow::Result<OwnedFd> {
    let driver = driver(kind);
    if driver == "ext4" {
        expect_standing_alone(device)?;
    }
    let context = rustix::mount::fsopen(driver, FsOpenFlags::FSOPEN_CLOEXEC)
        .map_err(|errno| no_driver(driver, errno))?;
    configure(context.as_fd(), device, driver, access)
        .map_err(|errno| refused_by_kernel(context.as_fd(), driver, errno))?;
    let mut attributes = ALWAYS;
    if access == Access::ReadOnly {
        attributes |= MountAttrFlags::MOUNT_ATTR_RDONLY;
    }
    let root = rustix::mount::fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)
        .context("opening what was mounted")?;
    Ok(root)
}

fn expect_standing_alone(device: &Path) -> anyhow::Result<()> {
    let mut bytes = [0; superblock::LENGTH];
    let device = File::open(device).context("opening it")?;
    device
        .read_exact_at(&mut bytes, superblock::OFFSET)
        .context("reading its superblock")?;
    Ok(superblock::check(&bytes)?)
}

fn configure(
    context: BorrowedFd<'_>,
    device: &Path,
    driver: &str,
    access: Access,
) -> Result<(), Errno> {
    rustix::mount::fsconfig_set_string(context, "source", device)?;
    for (key, value) in options(driver) {
        match value {
            Some(value) => rustix::mount::fsconfig_set_string(context, *key, *value)?,
            None => rustix::mount::fsconfig_set_flag(context, *key)?,
        }
    }
    if access == Access::ReadOnly {
        rustix::mount::fsconfig_set_flag(context, "ro")?;
    }
    rustix::mount::fsconfig_create(context)
}

fn reconfigure_read_only(root: &OwnedFd) -> Result<(), Errno> {
    let context = rustix::mount::fspick(
        root,
        "",
        FsPickFlags::FSPICK_EMPTY_PATH | FsPickFlags::FSPICK_CLOEXEC,
    )?;
    rustix::mount::fsconfig_set_flag(&context, "ro")?;
    rustix::mount::fsconfig_reconfigure(&context)
}

/// What the guest's own superblock may not decide for the machine that repairs it.
fn options(driver: &str) -> &'static [(&'static str, Option<&'static str>)] {
    match driver {
        // A superblock can ask for a kernel panic when the file system is found damaged, and for
        // discards. Inode tables are not zeroed in the background: the guest's own next mount does
        // that.
        "ext4" => &[
            ("errors", Some("remount-ro")),
            ("nodiscard", None),
            ("noinit_itable", None),
        ],
        // Clones of one disk carry the same UUID.
        "xfs" => &[("nouuid", None)],
        // The top level, which holds all subvolumes, whatever the guest's default is. A rebalancing
        // that was cut off is the guest's to go on with.
        "btrfs" => &[
            ("subvolid", Some("5")),
            ("skip_balance", None),
            ("nodiscard", None),
        ],
        _ => &[],
    }
}

/// The kernel's ext4 driver reads and writes ext2 and ext3 too, and is the only one Debian builds.
fn driver(kind: &str) -> &str {
    match kind {
        "ext2" | "ext3" => "ext4",
        kind => kind,
    }
}

fn no_driver(driver: &str, errno: Errno) -> anyhow::Error {
    match errno {
        Errno::NODEV => Refusal::new(
            format!("this system's kernel does not know the file system {driver}"),
            "without it the disk cannot be read as the guest would read it",
            format!("modprobe {driver}, or boot the rescue ISO"),
        )
        .into(),
        Errno::NOSYS => Refusal::new(
            "this system's kernel cannot mount in private (older than Linux 5.2)",
            "a mount that others see is not made here",
            "boot the rescue ISO instead, or use a helper with a newer kernel",
        )
        .into(),
        Errno::PERM => needs_root("mounting").into(),
        errno => anyhow::Error::new(errno)
            .context(format!("asking the kernel for the file system {driver}")),
    }
}

/// The kernel's error number with what it wrote into the mount's own log.
fn refused_by_kernel(context: BorrowedFd<'_>, driver: &str, errno: Errno) -> anyhow::Error {
    let said = kernel_log(context);
    let reason = match errno {
        Errno::BUSY => "it is in use, perhaps mounted",
        Errno::EXIST => "another device with the same UUID is known to this kernel",
        Errno::INVAL => "this kernel finds no such file system there, or not one that it supports",
        Errno::UCLEAN | Errno::BADMSG => {
            "it is damaged and needs a check (e2fsck, xfs_repair, btrfs check) first"
        }
        Errno::IO => "reading or writing failed",
        Errno::ACCESS | Errno::ROFS => {
            "it needs its journal replayed, and the device cannot be written to"
        }
        Errno::PERM => "mounting is not allowed here",
        _ => "the kernel refused",
    };
    let error = anyhow::Error::new(errno).context(format!("{driver}: {reason}"));
    if said.is_empty() {
        error
    } else {
        error.context(format!("the kernel says: {}", said.join("; ")))
    }
}

/// The lines that the kernel has for this attempt (see fsopen(2)); printable characters only, a
/// guest may have a say in them.
fn kernel_log(context: BorrowedFd<'_>) -> Vec<String> {
    let mut lines = Vec::new();
    let mut buffer = [0; 1024];
    while let Ok(length) = rustix::io::read(context, &mut buffer) {
        let line = String::from_utf8_lossy(buffer.get(..length).unwrap_or_default()).into_owned();
        // "e ", "w ", "i ": the kind of message.
        let line = line
            .get(2..)
            .unwrap_or(&line)
            .trim()
            .replace(|c: char| c.is_control(), " ");
        lines.push(line);
        if lines.len() == 8 {
            break;
        }
    }
    lines
}

fn sync(root: &OwnedFd) -> Result<(), Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let folder = rustix::fs::openat(root, ".", flags, Mode::empty())?;
    rustix::fs::syncfs(&folder)
}

/// A mounted block device cannot be opened exclusively, so being able to means that it is
/// unmounted.
fn wait_released(device: &Path) -> anyhow::Result<()> {
    let flags = OFlags::RDONLY | OFlags::EXCL | OFlags::CLOEXEC;
    let is_device = rustix::fs::stat(device)
        .is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::BlockDevice);
    let deadline = Instant::now() + RELEASE_TIMEOUT;
    while is_device
        && rustix::fs::open(device, flags, Mode::empty()).is_err_and(|errno| errno == Errno::BUSY)
    {
        anyhow::ensure!(
            Instant::now() < deadline,
            "{} is still in use after unmounting it",
            device.display()
        );
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::loop_device::{LoopDevice, LoopOptions};
    use crate::tree::{FolderTree, Tree};

    fn ext4() -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(16 << 20).unwrap();
        let made = std::process::Command::new("mkfs.ext4")
            .args(["-q", "-F"])
            .arg(file.path())
            .status()
            .unwrap();
        assert!(made.success());
        file
    }

    fn attach(file: &tempfile::NamedTempFile, read_only: bool) -> LoopDevice {
        LoopDevice::open(
            file.path(),
            &LoopOptions {
                read_only,
                ..LoopOptions::default()
            },
        )
        .expect("this test needs root")
    }

    #[test]
    fn writes_unmounts_and_is_seen_by_nobody() {
        let file = ext4();
        let device = attach(&file, false);
        let mount = mount_writable(&device.path(), "ext4").unwrap();
        std::fs::write(mount.path().join("hello"), b"there").unwrap();
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!mounts.contains(device.path().to_str().unwrap()));
        let again = rustix::fs::open(device.path(), OFlags::RDONLY | OFlags::EXCL, Mode::empty());
        assert_eq!(again.unwrap_err(), Errno::BUSY);
        mount.unmount().unwrap();
        drop(device);

        let device = attach(&file, true);
        let mount = Mount::new(&device.path(), "ext4", Access::ReadOnly).unwrap();
        assert!(std::fs::write(mount.path().join("more"), b"").is_err());
        let tree = FolderTree::beneath(mount.into_root()).unwrap();
        assert_eq!(tree.read(Path::new("/hello"), 99).unwrap(), b"there");
        drop((tree, device));
        let check = std::process::Command::new("e2fsck")
            .args(["-fn"])
            .arg(file.path())
            .output()
            .unwrap();
        assert!(check.status.success(), "{check:?}");
    }

    #[test]
    fn what_is_no_such_file_system_is_said_plainly() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(16 << 20).unwrap();
        let device = attach(&file, true);
        let error = Mount::new(&device.path(), "ext4", Access::ReadOnly).unwrap_err();
        assert!(
            format!("{error:#}").contains("finds no such file system"),
            "{error:#}"
        );
        let error = Mount::new(&device.path(), "nonesuchfs", Access::ReadOnly).unwrap_err();
        assert!(
            format!("{error:#}").contains("does not know the file system nonesuchfs"),
            "{error:#}"
        );
    }

    /// The value that the kernel uses for a mount option of ext4.
    fn effective(device: &LoopDevice, option: &str) -> bool {
        let name = device
            .path()
            .file_name()
            .unwrap()
            .to_str()
            .unwrap()
            .to_owned();
        let options = std::fs::read_to_string(format!("/proc/fs/ext4/{name}/options")).unwrap();
        options.lines().any(|line| line == option)
    }

    #[test]
    fn the_superblock_cannot_ask_for_a_panic() {
        let file = ext4();
        let tune = |arguments: &[&str]| {
            let ran = std::process::Command::new("tune2fs")
                .args(arguments)
                .arg(file.path())
                .output()
                .unwrap();
            assert!(ran.status.success(), "{ran:?}");
        };
        tune(&["-e", "panic", "-o", "discard"]);
        for access in [Access::ReadOnly, Access::ReadWrite] {
            let device = attach(&file, false);
            let mount = Mount::new(&device.path(), "ext4", access).unwrap();
            assert!(effective(&device, "errors=remount-ro"));
            assert!(!effective(&device, "errors=panic") && !effective(&device, "discard"));
            drop(mount);
        }
        tune(&["-E", "mount_opts=journal_path=/dev/null"]);
        let device = attach(&file, false);
        let error = Mount::new(&device.path(), "ext4", Access::ReadOnly).unwrap_err();
        assert!(error.is::<Refusal>(), "{error:#}");
    }

    #[test]
    fn quotes_the_line_to_type() {
        let line = as_root(
            ["rescue", "inspect", "my disk's.img"]
                .map(Into::into)
                .into_iter(),
        );
        assert_eq!(line, r"sudo rescue inspect 'my disk'\''s.img'");
    }
}
