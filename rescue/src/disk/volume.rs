//! The pieces of a disk: what each partition (or the disk as a whole) holds, and how its files are
//! opened.

pub mod encrypted;
pub mod logical;
pub mod mirror;

use std::rc::Rc;
use std::sync::Arc;

use anyhow::{Context, Result};

use super::ext4_tree::Ext4Tree;
use super::partition::{self, Partition, PartitionKind, Slice, TableError};
use super::probe::{self, Content, Probe};
use super::source::{Disk, shown};
use super::{ExtSuper, ReadAt, btrfs, lvm};
use crate::base::refusal::Refusal;
use crate::base::units::bytes;
use crate::disk::{Backing, Leftover};
use crate::tree::{Tree, TreeError, Usage};

/// A partition, or a disk without partitions.
#[derive(Clone)]
pub struct Volume {
    /// How people name it: `disk.img partition 1`, `/dev/sdb1`.
    pub name: String,
    /// Which of the disks it is on.
    pub disk: usize,
    /// Its partition number; `None` for a whole disk.
    pub number: Option<u32>,
    /// PARTUUID, lower case.
    pub part_uuid: Option<String>,
    /// PARTLABEL.
    pub part_label: Option<String>,
    /// What the partition table says is inside.
    pub partition_kind: PartitionKind,
    /// What really is inside; `None`: nothing recognised.
    pub probe: Option<Probe>,
    /// Its bytes.
    pub bytes: Arc<dyn ReadAt>,
    /// Where its bytes are.
    pub backing: Backing,
    /// Its names, if it is a logical volume.
    pub logical: Option<lvm::LogicalName>,
    /// UUID of the LUKS header that it was behind, lower case.
    pub luks_uuid: Option<String>,
}

impl std::fmt::Debug for Volume {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Volume")
            .field("name", &self.name)
            .field("probe", &self.probe)
            .finish_non_exhaustive()
    }
}

/// A file system opened for looking.
#[derive(Clone)]
pub struct Opened {
    /// Its files.
    pub tree: Rc<dyn Tree>,
    /// Its bytes and inodes.
    pub usage: Usage,
    /// btrfs: its subvolumes; the tree is that of the top level, which holds them all.
    pub subvolumes: Option<Rc<btrfs::Subvolumes>>,
}

impl std::fmt::Debug for Opened {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Opened")
            .field("usage", &self.usage)
            .finish_non_exhaustive()
    }
}

/// What is on one disk.
#[derive(Debug)]
pub struct Survey {
    /// Its volumes, by partition number.
    pub volumes: Vec<Volume>,
    /// What is odd about the disk itself.
    pub notes: Vec<Leftover>,
}

/// Divides `disk`, the `index`th of those given, and looks into every piece.
///
/// # Errors
/// I/O errors only; damaged and unknown tables become notes.
pub fn survey(disk: &Disk, index: usize) -> Result<Survey> {
    let mut survey = Survey {
        volumes: Vec::new(),
        notes: Vec::new(),
    };
    let mut note = |device: String, what: String| survey.notes.push(Leftover { device, what });
    for what in &disk.notes {
        note(disk.name(), what.clone());
    }
    let table = match partition::read_table(&disk.bytes) {
        Ok(table) => table,
        Err(TableError::Io(error)) => {
            return Err(error)
                .with_context(|| format!("reading the partition table of {}", disk.name()));
        }
        Err(error) => {
            note(disk.name(), format!("{error}; nothing on it was read"));
            return Ok(survey);
        }
    };
    for what in &table.notes {
        note(disk.name(), what.clone());
    }
    let mut volumes = Vec::new();
    if table.partitions.is_empty() {
        volumes.push(volume(disk, index, None)?);
    }
    for partition in &table.partitions {
        let end = partition.offset.checked_add(partition.length);
        if end.is_none_or(|end| end > disk.bytes.len()) {
            let (ends, length) = (
                end.map_or_else(|| "nowhere".into(), in_bytes),
                in_bytes(disk.bytes.len()),
            );
            let what = format!(
                "ends at {ends}, but {} has only {length}: it is truncated, copy it again",
                disk.name()
            );
            note(disk.partition_name(partition.number), what);
            continue;
        }
        volumes.push(volume(disk, index, Some(partition))?);
    }
    survey.volumes = volumes;
    Ok(survey)
}

fn volume(disk: &Disk, index: usize, partition: Option<&Partition>) -> Result<Volume> {
    let (offset, length) = partition.map_or((0, disk.bytes.len()), |partition| {
        (partition.offset, partition.length)
    });
    let name = partition.map_or_else(
        || disk.name(),
        |partition| disk.partition_name(partition.number),
    );
    let slice = Slice::new(Arc::clone(&disk.bytes), offset, length)
        .context("a partition reaches past its disk")?;
    let bytes: Arc<dyn ReadAt> = Arc::new(slice);
    let probe =
        probe::probe(bytes.as_ref()).with_context(|| format!("looking what {name} holds"))?;
    Ok(Volume {
        name,
        disk: index,
        number: partition.map(|partition| partition.number),
        part_uuid: partition.and_then(|partition| partition.uuid.clone()),
        part_label: partition.and_then(|partition| partition.label.clone()),
        partition_kind: partition.map_or(PartitionKind::Other, |partition| partition.kind),
        probe,
        bytes,
        backing: Backing::Range {
            path: disk.path.clone(),
            offset,
            length,
            sector_size: disk.bytes.sector_size(),
            block_device: disk.block_device,
        },
        logical: None,
        luks_uuid: None,
    })
}

fn in_bytes(count: u64) -> String {
    format!("{count} bytes")
}

impl Volume {
    /// UUID in its superblock.
    pub fn uuid(&self) -> Option<&str> {
        self.probe.as_ref()?.uuid.as_deref()
    }

    /// Label in its superblock.
    pub fn label(&self) -> Option<&str> {
        self.probe.as_ref()?.label.as_deref()
    }

    /// A short name of what it holds.
    pub fn what(&self) -> String {
        match self.probe.as_ref().map(|probe| &probe.content) {
            // Its files are never needed, so its free space is told nowhere else.
            Some(content @ Content::Vfat(fat)) => match fat.free {
                Some(free) => format!(
                    "{}, {} of {} free",
                    content.name(),
                    bytes(free),
                    bytes(fat.length)
                ),
                None => content.name(),
            },
            Some(content) => content.name(),
            None => "nothing recognised".into(),
        }
    }

    /// The ext superblock, where it holds one.
    pub fn ext(&self) -> Option<&ExtSuper> {
        match &self.probe.as_ref()?.content {
            Content::Ext(superblock) => Some(superblock),
            _ => None,
        }
    }

    /// `ext4`, `xfs` …: the kernel's name, for the file systems that can be opened.
    pub fn file_system(&self) -> Option<&'static str> {
        match &self.probe.as_ref()?.content {
            Content::Ext(superblock) => Some(superblock.kind),
            Content::Xfs(_) => Some("xfs"),
            Content::Btrfs(superblock) if superblock.unsupported().is_none() => Some("btrfs"),
            _ => None,
        }
    }

    /// Whether `e2fsck` has to look at it before anybody writes: the superblock or the journal says
    /// so.
    pub fn has_errors(&self) -> bool {
        self.ext()
            .is_some_and(|superblock| superblock.is_flagged(Arc::clone(&self.bytes)))
    }

    /// Opens its files: a clean ext in user space, everything else by the kernel over a throw-away
    /// layer.
    pub fn open(&self) -> Result<Opened> {
        let kind = self
            .file_system()
            .with_context(|| format!("{} holds {}", self.name, self.what()))?;
        self.check_length()?;
        let Some(superblock) = self.ext().filter(|superblock| !superblock.needs_replay) else {
            return self.replay(kind);
        };
        match Ext4Tree::open(Arc::clone(&self.bytes), superblock) {
            Ok(tree) => Ok(Opened {
                usage: tree.usage(),
                tree: Rc::new(tree),
                subvolumes: None,
            }),
            Err(TreeError::Unsupported { .. }) => self.replay(kind),
            Err(TreeError::Corrupt { reason, .. }) => Err(anyhow::anyhow!(
                "the {kind} file system is damaged ({reason}); {}",
                self.check_line()
            )),
            Err(error) => Err(error).with_context(|| format!("opening {} ({kind})", self.name)),
        }
    }

    /// The line that checks this file system.
    fn check_line(&self) -> String {
        format!(
            "next: rescue fsck {}",
            crate::base::shell::quoted(self.backing.first_path())
        )
    }

    fn replay(&self, kind: &str) -> Result<Opened> {
        if !nix::unistd::geteuid().is_root() {
            let why = if self.ext().is_some_and(|superblock| superblock.needs_replay) {
                "was not shut down cleanly"
            } else {
                "can only be read by the kernel"
            };
            let source = shown(self.backing.first_path());
            return Err(Refusal::new(
                format!("{} ({kind}) {why}", self.name),
                "the kernel has to replay its journal into memory to show what the next boot will \
                 see, and that takes root",
                format!("run the same command as root, for instance sudo rescue inspect {source}"),
            )
            .into());
        }
        let opening = || format!("opening {} ({kind}) through a throw-away layer", self.name);
        if kind == "btrfs" {
            let bytes = btrfs::UnderOwnUuid::over(Arc::clone(&self.bytes)).with_context(opening)?;
            let (tree, usage) = super::export::mount_replayed(bytes, kind).with_context(opening)?;
            let subvolumes = btrfs::Subvolumes::read(tree.root()).with_context(opening)?;
            return Ok(Opened {
                tree: Rc::new(tree),
                usage,
                subvolumes: Some(Rc::new(subvolumes)),
            });
        }
        let (tree, usage) =
            super::export::mount_replayed(Arc::clone(&self.bytes), kind).with_context(opening)?;
        Ok(Opened {
            tree: Rc::new(tree),
            usage,
            subvolumes: None,
        })
    }

    /// A file system larger than what holds it was cut off while it was copied.
    fn check_length(&self) -> Result<()> {
        let wanted = match self.probe.as_ref().map(|probe| &probe.content) {
            Some(Content::Ext(superblock)) => superblock.length(),
            Some(Content::Xfs(superblock)) => superblock.length(),
            Some(Content::Btrfs(superblock)) => Some(superblock.length),
            _ => return Ok(()),
        };
        match wanted {
            Some(wanted) if wanted <= self.bytes.len() => Ok(()),
            _ => anyhow::bail!(
                "it is a file system of {} in {}: truncated, copy the disk again",
                wanted.map_or_else(|| "impossible size".into(), in_bytes),
                in_bytes(self.bytes.len())
            ),
        }
    }
}
