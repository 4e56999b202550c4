//! Loop devices: a file, or a part of one, shown as a block device.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use anyhow::Context;
use nix::errno::Errno;
use rustix::fs::{Mode, OFlags};

use crate::base::refusal::Refusal;
use crate::base::sys;

const CONTROL: &str = "/dev/loop-control";

/// `LO_FLAGS_*` of <linux/loop.h>.
const READ_ONLY: u32 = 1;
/// The kernel frees the device when the last opener, a mount or we, is gone: also after a kill.
const AUTOCLEAR: u32 = 4;

/// Another process may take the free device before we do; so many times in a row is something else.
const RACE_RETRIES: usize = 64;

/// Which part of a file to show, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LoopOptions {
    /// First byte of the file that is shown.
    pub offset: u64,
    /// Length in bytes; 0: to the end of the file.
    pub length: u64,
    /// Logical sector size: 512 or 4096.
    pub sector_size: u32,
    /// Whether the kernel refuses writes to the device.
    pub read_only: bool,
}

impl Default for LoopOptions {
    fn default() -> Self {
        Self {
            offset: 0,
            length: 0,
            sector_size: 512,
            read_only: true,
        }
    }
}

/// A loop device of ours. It is gone when this is dropped and nothing is mounted from it any more,
/// and when the process dies.
#[derive(Debug)]
pub struct LoopDevice {
    device: OwnedFd,
    number: u32,
}

impl LoopDevice {
    /// Shows (a part of) an open file, which must be open for writing unless `options.read_only`.
    /// Needs root.
    pub fn attach(file: BorrowedFd<'_>, options: &LoopOptions) -> anyhow::Result<Self> {
        let control = open_control()?;
        for _ in 0..RACE_RETRIES {
            let number = sys::loop_ctl_get_free(control.as_fd())
                .context("asking the kernel for a free loop device")?;
            let device = open_device(number, options.read_only)?;
            match sys::loop_configure(device.as_fd(), file, config(options)) {
                Ok(()) => return Ok(Self { device, number }),
                Err(Errno::EBUSY) => {}
                Err(Errno::ENOTTY | Errno::ENOSYS) => return Err(old_kernel().into()),
                Err(errno) => {
                    return Err(errno).with_context(|| format!("setting up /dev/loop{number}"));
                }
            }
        }
        anyhow::bail!(
            "setting up a loop device: other programs took every free one, {RACE_RETRIES} times in \
             a row"
        )
    }

    /// Shows (a part of) an image file. Needs root.
    pub fn open(image: &Path, options: &LoopOptions) -> anyhow::Result<Self> {
        let file = File::options()
            .read(true)
            .write(!options.read_only)
            .open(image)
            .with_context(|| format!("opening {}", image.display()))?;
        Self::attach(file.as_fd(), options)
            .with_context(|| format!("showing {} as a block device", image.display()))
    }

    /// A path that opens this device, for as long as this lives: `/dev/loop3`, or our own
    /// descriptor where /dev has no such node.
    pub fn path(&self) -> PathBuf {
        let node = node(self.number);
        if node.exists() {
            node
        } else {
            PathBuf::from(format!("/proc/self/fd/{}", self.device.as_raw_fd()))
        }
    }
}

impl AsFd for LoopDevice {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.device.as_fd()
    }
}

fn open_control() -> anyhow::Result<File> {
    File::options()
        .read(true)
        .write(true)
        .open(CONTROL)
        .map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => Refusal::new(
                format!("there is no {CONTROL}"),
                "this kernel shows no loop devices",
                "modprobe loop",
            )
            .into(),
            std::io::ErrorKind::PermissionDenied => {
                crate::mount::needs_root("setting up a loop device").into()
            }
            _ => anyhow::Error::new(error).context(format!("opening {CONTROL}")),
        })
}

fn node(number: u32) -> PathBuf {
    PathBuf::from(format!("/dev/loop{number}"))
}

/// Opens the device, over a passing node of our own where nobody (no devtmpfs, no udev) has made
/// one.
fn open_device(number: u32, read_only: bool) -> anyhow::Result<OwnedFd> {
    let flags = OFlags::CLOEXEC
        | if read_only {
            OFlags::RDONLY
        } else {
            OFlags::RDWR
        };
    let path = node(number);
    match rustix::fs::open(&path, flags, Mode::empty()) {
        Err(rustix::io::Errno::NOENT) => {
            make_node(number, &path)?;
            let device = rustix::fs::open(&path, flags, Mode::empty());
            let _ = std::fs::remove_file(&path);
            device
        }
        device => device,
    }
    .with_context(|| format!("opening {}", path.display()))
}

fn make_node(number: u32, path: &Path) -> anyhow::Result<()> {
    let shown = format!("/sys/block/loop{number}/dev");
    let numbers = std::fs::read_to_string(&shown).with_context(|| format!("reading {shown}"))?;
    let (major, minor) = numbers
        .trim()
        .split_once(':')
        .with_context(|| format!("reading {shown}: {numbers:?}"))?;
    let device = rustix::fs::makedev(major.parse()?, minor.parse()?);
    let mode = Mode::RUSR | Mode::WUSR;
    match rustix::fs::mknodat(
        rustix::fs::CWD,
        path,
        rustix::fs::FileType::BlockDevice,
        mode,
        device,
    ) {
        Ok(()) | Err(rustix::io::Errno::EXIST) => Ok(()),
        Err(errno) => Err(errno).with_context(|| format!("making {}", path.display())),
    }
}

fn config(options: &LoopOptions) -> sys::LoopConfig {
    sys::LoopConfig {
        fd: 0,
        block_size: options.sector_size,
        info: sys::LoopInfo {
            device: 0,
            inode: 0,
            rdevice: 0,
            offset: options.offset,
            size_limit: options.length,
            number: 0,
            encrypt_type: 0,
            encrypt_key_size: 0,
            flags: AUTOCLEAR | if options.read_only { READ_ONLY } else { 0 },
            file_name: [0; 64],
            crypt_name: [0; 64],
            encrypt_key: [0; 32],
            init: [0; 2],
        },
        reserved: [0; 8],
    }
}

fn old_kernel() -> Refusal {
    Refusal::new(
        "this system's kernel cannot set up a loop device in one step (older than Linux 5.8)",
        "doing it in several could show another program's file for a moment",
        "boot the rescue ISO instead, or use a helper with a newer kernel",
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::unix::fs::FileExt;

    fn image() -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        let bytes: Vec<u8> = (0..64u32 * 4096).map(|at| (at / 4096) as u8).collect();
        file.write_all(&bytes).unwrap();
        file
    }

    fn backing(number: u32) -> Option<String> {
        std::fs::read_to_string(format!("/sys/block/loop{number}/loop/backing_file")).ok()
    }

    #[test]
    fn shows_a_part_of_a_file_and_goes_away() {
        let file = image();
        let options = LoopOptions {
            offset: 8192,
            length: 16384,
            sector_size: 4096,
            ..LoopOptions::default()
        };
        let device = LoopDevice::open(file.path(), &options).expect("this test needs root");
        let shown = File::open(device.path()).unwrap();
        let mut bytes = vec![0; 16384];
        shown.read_exact_at(&mut bytes, 0).unwrap();
        assert_eq!((bytes[0], bytes[16383]), (2, 5));
        assert_eq!(
            shown.read_at(&mut bytes, 16384).unwrap(),
            0,
            "the length bounds it"
        );
        let path = format!("/sys/block/loop{}/queue/logical_block_size", device.number);
        assert_eq!(std::fs::read_to_string(path).unwrap().trim(), "4096");
        let writing = File::options()
            .write(true)
            .open(device.path())
            .and_then(|file| file.write_all_at(b"x", 0));
        assert!(writing.is_err(), "read-only");
        let number = device.number;
        assert!(
            backing(number)
                .unwrap()
                .contains(file.path().to_str().unwrap())
        );
        drop(shown);
        drop(device);
        assert!(
            !backing(number)
                .unwrap_or_default()
                .contains(file.path().to_str().unwrap())
        );
    }

    #[test]
    fn writes_reach_the_file() {
        let file = image();
        let options = LoopOptions {
            offset: 4096,
            read_only: false,
            ..LoopOptions::default()
        };
        let device = LoopDevice::open(file.path(), &options).expect("this test needs root");
        let shown = File::options().write(true).open(device.path()).unwrap();
        shown.write_all_at(b"hello", 512).unwrap();
        shown.sync_all().unwrap();
        let mut bytes = [0; 5];
        file.as_file()
            .read_exact_at(&mut bytes, 4096 + 512)
            .unwrap();
        assert_eq!(&bytes, b"hello");
    }

    #[test]
    fn many_at_once_do_not_collide() {
        let threads: Vec<_> = (0..4)
            .map(|_| {
                std::thread::spawn(|| {
                    for _ in 0..8 {
                        let file = image();
                        let device = LoopDevice::open(file.path(), &LoopOptions::default())
                            .expect("this test needs root");
                        assert!(
                            backing(device.number)
                                .unwrap()
                                .contains(file.path().to_str().unwrap())
                        );
                    }
                })
            })
            .collect();
        for thread in threads {
            thread.join().unwrap();
        }
    }
}
