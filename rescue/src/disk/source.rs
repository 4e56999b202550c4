//! Opening what the user named, read-only.

use std::fs::{File, OpenOptions};
use std::io::{Error, ErrorKind, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;

use super::bytes::{has, le64};
use super::given::Given;
use super::image::{self, Layout};
use super::partition::{self, Slice};
use super::{ReadAt, gpt, probe};
use crate::base::escaping::escape;
use crate::base::refusal::Refusal;

/// A block device or image file, open for reading only.
#[derive(Clone)]
pub struct Disk {
    /// As the user named it.
    pub path: PathBuf,
    /// Whether it is a block device (else an image file).
    pub block_device: bool,
    /// Its bytes.
    pub bytes: Arc<dyn ReadAt>,
    /// How an image file holds them.
    pub layout: Layout,
    /// What is odd about the image file, one plain sentence each.
    pub notes: Vec<String>,
}

impl std::fmt::Debug for Disk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Disk")
            .field("path", &self.path)
            .field("length", &self.bytes.len())
            .finish_non_exhaustive()
    }
}

impl Disk {
    /// Opens `path` without writing to it, and without changing its access time where the kernel
    /// allows that.
    ///
    /// # Errors
    /// A [`Refusal`] for what cannot be a disk: nothing there, a folder, an empty file, a device of
    /// another kind.
    pub fn open(path: &Path) -> anyhow::Result<Self> {
        let shown = shown(path);
        let metadata = match std::fs::metadata(path) {
            Ok(metadata) => metadata,
            Err(error) if error.kind() == ErrorKind::NotFound => {
                return Err(refuse(
                    format!("{shown} does not exist"),
                    "there is no disk to look at",
                    "check the name; lsblk shows the disks of this machine",
                ));
            }
            Err(error) => return Err(error).with_context(|| format!("looking at {shown}")),
        };
        let kind = metadata.file_type();
        if kind.is_dir() {
            return Err(refuse(
                format!("{shown} is a folder"),
                "a disk or a raw image was expected here",
                format!("rescue inspect --root {shown} if the guest is mounted there"),
            ));
        }
        if !kind.is_file() && !kind.is_block_device() {
            return Err(refuse(
                format!("{shown} is neither a block device nor a file"),
                "it holds no disk",
                "name the disk (/dev/sdb) or its raw image",
            ));
        }
        let block_device = kind.is_block_device();
        let file = FileBytes::open(path)?;
        if file.is_empty() {
            return Err(refuse(
                format!("{shown} is empty"),
                "there is no system on it",
                "check that this is the right disk and that the copy finished",
            ));
        }
        if block_device {
            return Self::device(path, file);
        }
        let image = image::open(path, Arc::new(file), &Given::get())?;
        let sector_size = sector_size_of_image(&image.bytes);
        let bytes: Arc<dyn ReadAt> = match sector_size == image.bytes.sector_size() {
            true => image.bytes,
            false => Arc::new(WithSectors {
                below: image.bytes,
                sector_size,
            }),
        };
        Ok(Self {
            path: path.to_path_buf(),
            block_device,
            bytes,
            layout: image.layout,
            notes: image.notes,
        })
    }

    fn device(path: &Path, file: FileBytes) -> anyhow::Result<Self> {
        let shown = shown(path);
        let sector_size = rustix::fs::ioctl_blksszget(&file.file)
            .with_context(|| format!("asking for the sector size of {shown}"))?;
        if !matches!(sector_size, 512 | 4096) {
            return Err(refuse(
                format!("{shown} has sectors of {sector_size} bytes"),
                "only 512 and 4096 are read",
                "copy the disk to a raw image and name that",
            ));
        }
        let bytes = Arc::new(FileBytes {
            sector_size,
            ..file
        });
        Ok(Self {
            path: path.to_path_buf(),
            block_device: true,
            bytes,
            layout: Layout::Raw,
            notes: Vec::new(),
        })
    }

    /// How people name the whole disk.
    pub fn name(&self) -> String {
        shown(&self.path)
    }

    /// How people name one partition: `/dev/sdb1`, `/dev/nvme0n1p1`, `disk.img partition 1`.
    pub fn partition_name(&self, number: u32) -> String {
        if !self.block_device {
            return format!("{} partition {number}", self.name());
        }
        // The kernel's rule, for the kernel's name: /dev/disk/by-id/… is a link to it.
        let kernel_name = std::fs::canonicalize(&self.path).unwrap_or_else(|_| self.path.clone());
        let name = shown(&kernel_name);
        let separator = if name.ends_with(|last: char| last.is_ascii_digit()) {
            "p"
        } else {
            ""
        };
        format!("{name}{separator}{number}")
    }
}

fn refuse(saw: String, means: &str, next: impl Into<String>) -> anyhow::Error {
    Refusal::new(saw, means, next).into()
}

pub(crate) fn shown(path: &Path) -> String {
    escape(&path.to_string_lossy())
}

/// `O_NOATIME` is the owner's and root's right only; others read as everybody does.
fn open_without_access_time(path: &Path) -> std::io::Result<File> {
    // O_NONBLOCK: a FIFO swapped in between must not hang us; it does nothing for files and disks.
    let flags =
        |extra: rustix::fs::OFlags| (extra | rustix::fs::OFlags::NONBLOCK).bits().cast_signed();
    let quiet = OpenOptions::new()
        .read(true)
        .custom_flags(flags(rustix::fs::OFlags::NOATIME))
        .open(path);
    match quiet {
        Err(error) if error.kind() == ErrorKind::PermissionDenied => OpenOptions::new()
            .read(true)
            .custom_flags(flags(rustix::fs::OFlags::empty()))
            .open(path),
        other => other,
    }
}

/// An image file does not say how large its disk's sectors were. A GPT does, by where its header
/// stands; an MBR counts in sectors, so the right size is the one with which its partitions hold
/// something.
fn sector_size_of_image(disk: &Arc<dyn ReadAt>) -> u32 {
    let length = disk.len();
    let header_at = |offset: u64, lba: u64| {
        let mut header = [0; 92];
        disk.read_exact_at(&mut header, offset).is_ok()
            && has(&header, 0, gpt::SIGNATURE)
            && le64(&header, gpt::MY_LBA) == lba
    };
    let at_end = |size: u64| {
        let last = length
            .checked_sub(size)
            .filter(|_| length.is_multiple_of(size));
        last.is_some_and(|offset| header_at(offset, offset / size))
    };
    if header_at(512, 1) {
        return 512;
    }
    if header_at(4096, 1) || (!at_end(512) && at_end(4096)) {
        return 4096;
    }
    let holds_something = |sector_size: u32| {
        let disk: Arc<dyn ReadAt> = Arc::new(WithSectors {
            below: Arc::clone(disk),
            sector_size,
        });
        let table = partition::read_table(&disk)
            .map(|table| table.partitions)
            .unwrap_or_default();
        let mut slices = table
            .iter()
            .filter_map(|part| Slice::new(Arc::clone(&disk), part.offset, part.length));
        slices.any(|slice| matches!(probe::probe(&slice), Ok(Some(_))))
    };
    if !holds_something(512) && holds_something(4096) {
        4096
    } else {
        512
    }
}

/// The same bytes, divided into other sectors.
struct WithSectors {
    below: Arc<dyn ReadAt>,
    sector_size: u32,
}

impl ReadAt for WithSectors {
    fn len(&self) -> u64 {
        self.below.len()
    }
    fn sector_size(&self) -> u32 {
        self.sector_size
    }
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> std::io::Result<()> {
        self.below.read_exact_at(buffer, offset)
    }
}

/// An open file or device.
pub(super) struct FileBytes {
    file: File,
    length: u64,
    sector_size: u32,
}

impl FileBytes {
    /// Opens it for reading, without changing its access time where the kernel allows that. As if
    /// its sectors had 512 bytes.
    pub fn open(path: &Path) -> anyhow::Result<Self> {
        let shown = shown(path);
        let mut file = open_without_access_time(path).map_err(|error| not_opened(&shown, error))?;
        // The end of a block device is its size (BLKGETSIZE64 says the same), that of a file its
        // length.
        let length = file
            .seek(SeekFrom::End(0))
            .with_context(|| format!("asking for the size of {shown}"))?;
        Ok(Self {
            file,
            length,
            sector_size: 512,
        })
    }
}

/// Refused where more rights help, else a failure.
fn not_opened(shown: &str, error: Error) -> anyhow::Error {
    if error.kind() == ErrorKind::PermissionDenied {
        let saw = format!("{shown} cannot be opened for reading");
        return Refusal::new(
            saw,
            "this takes more rights",
            "run the same command again as root",
        )
        .into();
    }
    anyhow::Error::new(error).context(format!("opening {shown} for reading"))
}

impl ReadAt for FileBytes {
    fn len(&self) -> u64 {
        self.length
    }
    fn sector_size(&self) -> u32 {
        self.sector_size
    }
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> std::io::Result<()> {
        if offset
            .checked_add(buffer.len() as u64)
            .is_none_or(|end| end > self.length)
        {
            return Err(Error::from(ErrorKind::UnexpectedEof));
        }
        self.file.read_exact_at(buffer, offset)
    }
}
