//! Disk images made by the real tools: sfdisk, mkfs and the kernel's own mounts.

use std::fs::{self, OpenOptions};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};

use crate::command::Cmd;
use crate::mounts::{Loop, Mounted, in_private_namespace, wait_until_free};

/// Bytes in a MiB.
pub const MIB: u64 = 1 << 20;
/// Bytes in a GiB.
pub const GIB: u64 = 1 << 30;

/// How the image is divided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Table {
    /// GUID partition table.
    Gpt,
    /// Primary partitions.
    Mbr,
    /// One extended partition holding all of them as logical ones.
    MbrLogical,
    /// None: the file system begins at byte 0. Exactly one partition is allowed.
    Bare,
}

/// What a partition is formatted with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileSystem {
    /// mkfs.ext4
    Ext4,
    /// mkfs.ext3
    Ext3,
    /// mkfs.ext2
    Ext2,
    /// mkfs.xfs
    Xfs,
    /// mkfs.btrfs
    Btrfs,
    /// mkswap
    Swap,
    /// Left as zeros.
    Nothing,
}

/// One partition to be made.
#[derive(Debug, Clone)]
pub struct Partition {
    file_system: FileSystem,
    size: Option<u64>,
    uuid: Option<String>,
    label: Option<String>,
    mkfs: Vec<String>,
    mount_point: Option<String>,
}

impl Partition {
    /// A file system mounted at `mount_point` (`/`, `/var`) whenever the disk is mounted.
    pub fn new(file_system: FileSystem, mount_point: &str) -> Self {
        let mount_point = Some(mount_point.to_owned());
        Self {
            file_system,
            size: None,
            uuid: None,
            label: None,
            mkfs: Vec::new(),
            mount_point,
        }
    }

    /// A partition that is never mounted.
    pub fn unmounted(file_system: FileSystem) -> Self {
        Self {
            mount_point: None,
            ..Self::new(file_system, "")
        }
    }

    /// Its size in bytes, a multiple of 1 MiB; one partition, the last, may take the rest of the
    /// disk instead.
    #[must_use]
    pub fn size(mut self, bytes: u64) -> Self {
        self.size = Some(bytes);
        self
    }

    /// UUID of the file system.
    #[must_use]
    pub fn uuid(mut self, uuid: &str) -> Self {
        self.uuid = Some(uuid.to_owned());
        self
    }

    /// Label of the file system.
    #[must_use]
    pub fn label(mut self, label: &str) -> Self {
        self.label = Some(label.to_owned());
        self
    }

    /// More arguments for mkfs.
    #[must_use]
    pub fn mkfs<I: IntoIterator<Item = S>, S: Into<String>>(mut self, arguments: I) -> Self {
        self.mkfs.extend(arguments.into_iter().map(Into::into));
        self
    }
}

/// A disk image to be made.
#[derive(Debug, Clone)]
pub struct DiskBuilder {
    size: u64,
    sector: u64,
    table: Table,
    partitions: Vec<Partition>,
}

impl DiskBuilder {
    /// A sparse image of so many bytes with 512-byte sectors and a GPT.
    pub fn new(size: u64) -> Self {
        Self {
            size,
            sector: 512,
            table: Table::Gpt,
            partitions: Vec::new(),
        }
    }

    /// 512 or 4096.
    #[must_use]
    pub fn sector_size(mut self, bytes: u64) -> Self {
        self.sector = bytes;
        self
    }

    /// See [`Table`].
    #[must_use]
    pub fn table(mut self, table: Table) -> Self {
        self.table = table;
        self
    }

    /// One more partition, in order.
    #[must_use]
    pub fn partition(mut self, partition: Partition) -> Self {
        self.partitions.push(partition);
        self
    }

    /// Makes the image, replacing what is there, and formats its partitions.
    pub fn build(self, path: &Path) -> Result<Disk> {
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .open(path);
        file.and_then(|f| f.set_len(self.size))
            .with_context(|| format!("making {}", path.display()))?;
        let spans = match self.table {
            Table::Bare => {
                ensure!(
                    self.partitions.len() == 1,
                    "a bare image holds exactly one file system"
                );
                vec![(0, self.size)]
            }
            _ => self.divide(path)?,
        };
        let mut volumes = Vec::new();
        for (partition, (offset, size)) in self.partitions.iter().zip(spans) {
            format(path, partition, offset, size, self.sector)?;
            volumes.push(Volume {
                offset,
                size,
                mount_point: partition.mount_point.clone(),
            });
        }
        wait_until_free(path)?;
        Ok(Disk {
            path: path.to_owned(),
            sector: self.sector,
            volumes,
        })
    }

    /// Writes the partition table through a loop device of the right sector size and reads back
    /// where the partitions came to lie.
    fn divide(&self, path: &Path) -> Result<Vec<(u64, u64)>> {
        let device = Loop::attach(path, 0, self.size, self.sector, false)?;
        Cmd::new("sfdisk")
            .args([
                "--quiet",
                "--no-reread",
                "--no-tell-kernel",
                "--wipe=always",
            ])
            .arg(device.device())
            .stdin(self.sfdisk_script())
            .ok()?;
        let spans = spans(device.device(), self.sector)?;
        ensure!(
            spans.len() == self.partitions.len(),
            "sfdisk made {} partitions",
            spans.len()
        );
        Ok(spans)
    }

    fn sfdisk_script(&self) -> String {
        let mut script = String::new();
        match self.table {
            Table::Gpt => script.push_str("label: gpt\n"),
            Table::Mbr => script.push_str("label: dos\n"),
            Table::MbrLogical => script.push_str("label: dos\nsize=+, type=5\n"),
            Table::Bare => {}
        }
        for partition in &self.partitions {
            let kind = if partition.file_system == FileSystem::Swap {
                "S"
            } else {
                "L"
            };
            match partition.size {
                Some(bytes) => script.push_str(&format!("size={}MiB, type={kind}\n", bytes / MIB)),
                None => script.push_str(&format!("type={kind}\n")),
            }
        }
        script
    }
}

/// Offset and length of every partition but the extended one, in bytes.
fn spans(device: &Path, sector: u64) -> Result<Vec<(u64, u64)>> {
    let table = Cmd::new("sfdisk").arg("--json").arg(device).ok()?.json()?;
    let rows = table["partitiontable"]["partitions"]
        .as_array()
        .context("sfdisk shows no partitions")?;
    let mut spans = Vec::new();
    for row in rows {
        let number = |key: &str| {
            row[key]
                .as_u64()
                .with_context(|| format!("sfdisk shows no {key}"))
        };
        // The extended partition is only a container.
        if row["type"].as_str() != Some("5") {
            spans.push((number("start")? * sector, number("size")? * sector));
        }
    }
    Ok(spans)
}

fn format(path: &Path, partition: &Partition, offset: u64, size: u64, sector: u64) -> Result<()> {
    let (program, uuid_flag) = match partition.file_system {
        FileSystem::Ext4 => ("mkfs.ext4", "-U"),
        FileSystem::Ext3 => ("mkfs.ext3", "-U"),
        FileSystem::Ext2 => ("mkfs.ext2", "-U"),
        FileSystem::Xfs => ("mkfs.xfs", "-m"),
        FileSystem::Btrfs => ("mkfs.btrfs", "-U"),
        FileSystem::Swap => ("mkswap", "-U"),
        FileSystem::Nothing => return Ok(()),
    };
    let device = Loop::attach(path, offset, size, sector, false)?;
    let mut command = Cmd::new(program);
    if matches!(
        partition.file_system,
        FileSystem::Ext2 | FileSystem::Ext3 | FileSystem::Ext4
    ) {
        // Never ask, and leave nothing for the kernel to initialise later: the image should not
        // change by itself.
        command = command.args(["-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0"]);
    }
    if matches!(partition.file_system, FileSystem::Xfs | FileSystem::Btrfs) {
        command = command.args(["-q", "-f"]);
    }
    if let Some(uuid) = &partition.uuid {
        let value = if uuid_flag == "-m" {
            format!("uuid={uuid}")
        } else {
            uuid.clone()
        };
        command = command.args([uuid_flag.to_owned(), value]);
    }
    if let Some(label) = &partition.label {
        command = command.args(["-L", label]);
    }
    command.args(&partition.mkfs).arg(device.device()).ok()?;
    Ok(())
}

/// Where one partition lies in the image.
#[derive(Debug, Clone)]
pub struct Volume {
    /// First byte.
    pub offset: u64,
    /// Length in bytes.
    pub size: u64,
    /// Where it is mounted in the guest.
    pub mount_point: Option<String>,
}

/// A finished image.
#[derive(Debug, Clone)]
pub struct Disk {
    /// The file.
    pub path: PathBuf,
    /// Its sector size in bytes.
    pub sector: u64,
    /// Its partitions, in order.
    pub volumes: Vec<Volume>,
}

impl Disk {
    /// An image made earlier: its first partition is taken for the root file system, the others are
    /// never mounted.
    pub fn open(path: &Path, sector: u64) -> Result<Self> {
        let size = fs::metadata(path)
            .with_context(|| format!("opening {}", path.display()))?
            .len();
        let device = Loop::attach(path, 0, size, sector, true)?;
        let mount_point = |index| (index == 0).then(|| String::from("/"));
        let spans = spans(device.device(), sector)?.into_iter().enumerate();
        let volumes = spans
            .map(|(index, (offset, size))| Volume {
                offset,
                size,
                mount_point: mount_point(index),
            })
            .collect();
        Ok(Self {
            path: path.to_owned(),
            sector,
            volumes,
        })
    }

    /// Mounts all file systems read-write as the guest would, in a private namespace, and runs
    /// `work` with the guest's root. All is unmounted and detached afterwards.
    pub fn mounted<T: Send>(&self, work: impl FnOnce(&Path) -> Result<T> + Send) -> Result<T> {
        self.with_mounts(false, "defaults", work)
    }

    /// As [`Disk::mounted`], through read-only devices: not a byte of the image changes, and a
    /// dirty file system does not mount.
    pub fn mounted_read_only<T: Send>(
        &self,
        work: impl FnOnce(&Path) -> Result<T> + Send,
    ) -> Result<T> {
        self.with_mounts(true, "ro", work)
    }

    /// Adds files of a real control-plane node to the (empty) root file system.
    pub fn populate_control_plane(&self) -> Result<()> {
        self.mounted(crate::fixtures::unpack_control_plane)
    }

    /// Attaches one partition as a loop device.
    pub fn attach(&self, index: usize, read_only: bool) -> Result<Loop> {
        let volume = self.volumes.get(index).context("no such partition")?;
        Loop::attach(
            &self.path,
            volume.offset,
            volume.size,
            self.sector,
            read_only,
        )
    }

    /// SHA-256 of the whole image, as lower-case hexadecimal.
    pub fn sha256(&self) -> Result<String> {
        use sha2::Digest as _;
        let mut hasher = sha2::Sha256::new();
        let mut file = fs::File::open(&self.path)?;
        let mut buffer = vec![0_u8; 1 << 20];
        loop {
            let read = std::io::Read::read(&mut file, &mut buffer)?;
            if read == 0 {
                break;
            }
            hasher.update(&buffer[..read]);
        }
        Ok(hasher
            .finalize()
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect())
    }

    /// A copy that stays sparse.
    pub fn copy_to(&self, path: &Path) -> Result<Self> {
        Cmd::new("cp")
            .args(["--sparse=always", "--reflink=auto"])
            .arg(&self.path)
            .arg(path)
            .ok()?;
        Ok(Self {
            path: path.to_owned(),
            ..self.clone()
        })
    }

    /// Checks every file system with `e2fsck -fn`, `xfs_repair -n` or `btrfs check`; changes
    /// nothing.
    pub fn assert_clean(&self) -> Result<()> {
        for index in 0..self.volumes.len() {
            let device = self.attach(index, true)?;
            let kind = Cmd::new("blkid")
                .args(["-p", "-o", "value", "-s", "TYPE"])
                .arg(device.device())
                .run()?
                .stdout;
            match kind.trim() {
                "ext2" | "ext3" | "ext4" => Cmd::new("e2fsck")
                    .args(["-f", "-n"])
                    .arg(device.device())
                    .ok()?,
                "btrfs" => Cmd::new("btrfs")
                    .args(["check", "--readonly"])
                    .arg(device.device())
                    .ok()?,
                "xfs" => Cmd::new("xfs_repair").arg("-n").arg(device.device()).ok()?,
                _ => continue,
            };
        }
        wait_until_free(&self.path)
    }

    fn with_mounts<T: Send>(
        &self,
        read_only: bool,
        options: &str,
        work: impl FnOnce(&Path) -> Result<T> + Send,
    ) -> Result<T> {
        let folder = tempfile::Builder::new().prefix("rescue-guest-").tempdir()?;
        let root = folder.path();
        let mut volumes: Vec<(usize, &str)> = self
            .volumes
            .iter()
            .enumerate()
            .filter_map(|(i, v)| Some((i, v.mount_point.as_deref()?)))
            .collect();
        volumes.sort_by_key(|(_, mount_point)| mount_point.len());
        let result = in_private_namespace(|| {
            let mut mounts = Vec::new();
            for (index, mount_point) in volumes {
                let device = self.attach(index, read_only)?;
                let target = root.join(mount_point.trim_start_matches('/'));
                if !read_only {
                    fs::create_dir_all(&target)?;
                }
                mounts.push(Mounted::mount(device.device(), &target, options)?);
            }
            let result = work(root);
            for mount in mounts.into_iter().rev() {
                mount.unmount()?;
            }
            result
        });
        wait_until_free(&self.path)?;
        result
    }
}

/// The disk of the outage: GPT and one ext4 with the files of a real control-plane node, and room
/// to spare.
pub fn control_plane(path: &Path, size: u64) -> Result<Disk> {
    let root = Partition::new(FileSystem::Ext4, "/").uuid(crate::fixtures::ROOT_UUID);
    let disk = DiskBuilder::new(size).partition(root).build(path)?;
    disk.populate_control_plane()?;
    Ok(disk)
}
