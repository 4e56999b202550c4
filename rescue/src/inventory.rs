//! What is on all these disks and to which machine each piece belongs: disk, partition, volume
//! group, file system, role, node.

use std::path::{Path, PathBuf};

use anyhow::Result;
use serde::Serialize;

use crate::base::escaping::escape;
use crate::disk::partition::PartitionKind;
use crate::disk::volume::Volume;
use crate::disk::{Backing, Leftover};
use crate::guest::{Discovery, Guest, look_over};
use crate::in_use;
use crate::node::Node;

/// Everything, as it is shown.
#[derive(Debug, Serialize)]
pub struct Inventory {
    /// The disks, in the order given.
    pub disks: Vec<DiskItem>,
    /// The volume groups on them.
    pub volume_groups: Vec<GroupItem>,
    /// The systems.
    pub nodes: Vec<NodeItem>,
    /// What belongs to none of them, and what could not be looked into.
    pub leftovers: Vec<Leftover>,
}

/// A disk.
#[derive(Debug, Serialize)]
pub struct DiskItem {
    /// Device or image file.
    pub path: String,
    /// In bytes; 0 where it could not be opened.
    pub size: u64,
    /// Bytes of a sector.
    pub sector_size: u32,
    /// How this machine itself uses it; it is then not looked into.
    pub in_use: Option<String>,
    /// Its pieces.
    pub volumes: Vec<VolumeItem>,
}

/// A partition, a disk without partitions, or a logical volume.
#[derive(Debug, Serialize)]
pub struct VolumeItem {
    /// How people name it.
    pub device: String,
    /// Number of the partition.
    pub number: Option<u32>,
    /// First byte on the disk; `null` for a logical volume.
    pub offset: Option<u64>,
    /// In bytes.
    pub size: u64,
    /// What it holds.
    pub content: Option<String>,
    /// Of the file system, the swap or the physical volume.
    pub uuid: Option<String>,
    /// Of the file system.
    pub label: Option<String>,
    /// Of the partition.
    pub part_uuid: Option<String>,
    /// Of the partition.
    pub part_label: Option<String>,
    /// Index in `volume_groups` of the group whose physical volume it is.
    pub volume_group: Option<usize>,
    /// What it is to whom: mount points, `swap`, `esp`.
    pub roles: Vec<Role>,
}

/// What a volume is to a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Role {
    /// Index in `nodes`.
    pub node: usize,
    /// A mount point, `swap` or `esp`.
    pub role: String,
}

/// A volume group.
#[derive(Debug, Serialize)]
pub struct GroupItem {
    /// Its name.
    pub name: String,
    /// Its UUID, without dashes.
    pub uuid: String,
    /// Devices of its physical volumes.
    pub physical_volumes: Vec<String>,
    /// Its logical volumes that can be read.
    pub volumes: Vec<VolumeItem>,
}

/// A system.
#[derive(Debug, Serialize)]
pub struct NodeItem {
    /// The Node object's name, else the host name, else the source.
    pub name: String,
    /// What `--node` takes, too.
    pub source: String,
    /// Its disks, root first: what to give to the other commands.
    pub disks: Vec<String>,
    /// Its operating system.
    pub os: Option<String>,
    /// Its machine-id.
    pub machine_id: Option<String>,
    /// Lines of its fstab whose device was not found.
    pub unresolved_fstab: Vec<String>,
}

/// Looks at these disks and image files, reading only. Block devices that this machine itself uses
/// are named and not looked into.
pub fn take(paths: &[PathBuf]) -> Result<Inventory> {
    let mut closed = Vec::new();
    for path in paths.iter().filter(|path| is_block_device(path)) {
        // A device that vanishes meanwhile is told of when it is opened.
        if let Ok(Some(use_)) = in_use::used_here(path) {
            closed.push((
                path.clone(),
                format!("in use by this machine ({use_}): not looked into"),
            ));
        }
    }
    let found = look_over(paths, &closed)?;
    Ok(arrange(paths, &closed, &found))
}

/// The whole disks of this machine.
pub fn all_disks() -> Vec<PathBuf> {
    crate::disk::attached::list()
        .iter()
        .map(|disk| PathBuf::from(disk.path()))
        .collect()
}

fn is_block_device(path: &Path) -> bool {
    use std::os::unix::fs::FileTypeExt;
    std::fs::metadata(path).is_ok_and(|metadata| metadata.file_type().is_block_device())
}

fn arrange(paths: &[PathBuf], closed: &[(PathBuf, String)], found: &Discovery) -> Inventory {
    let mut disks: Vec<DiskItem> = Vec::new();
    for (index, disk) in found.disks.iter().enumerate() {
        let pieces = found
            .volumes
            .iter()
            .filter(|volume| volume.disk == index && volume.logical.is_none());
        disks.push(DiskItem {
            path: disk.name(),
            size: disk.bytes.len(),
            sector_size: disk.bytes.sector_size(),
            in_use: None,
            volumes: pieces.map(|volume| item(volume, found)).collect(),
        });
    }
    for (path, why) in closed {
        let path = escape(&path.to_string_lossy());
        disks.push(DiskItem {
            path,
            size: 0,
            sector_size: 0,
            in_use: Some(why.clone()),
            volumes: Vec::new(),
        });
    }
    let place = |path: &str| {
        paths
            .iter()
            .position(|there| escape(&there.to_string_lossy()) == path)
    };
    disks.sort_by_key(|disk| place(&disk.path));
    let volume_groups = found.groups.iter().map(|group| GroupItem {
        name: group.name.clone(),
        uuid: group.uuid.clone(),
        physical_volumes: group.physical.clone(),
        volumes: found
            .volumes
            .iter()
            .filter(|v| group.logical.contains(&v.name))
            .map(|v| item(v, found))
            .collect(),
    });
    let closed: Vec<String> = closed
        .iter()
        .map(|(path, _)| escape(&path.to_string_lossy()))
        .collect();
    let leftovers = found
        .leftovers
        .iter()
        .filter(|leftover| !closed.contains(&leftover.device))
        .cloned();
    Inventory {
        disks,
        volume_groups: volume_groups.collect(),
        nodes: found
            .guests
            .iter()
            .map(|guest| node(guest, found))
            .collect(),
        leftovers: leftovers.collect(),
    }
}

fn item(volume: &Volume, found: &Discovery) -> VolumeItem {
    VolumeItem {
        device: volume.name.clone(),
        number: volume.number,
        offset: match &volume.backing {
            Backing::Range { offset, .. } => Some(*offset),
            _ => None,
        },
        size: volume.bytes.len(),
        content: volume.probe.as_ref().map(|probe| probe.content.name()),
        uuid: volume.uuid().map(str::to_owned),
        label: volume.label().map(str::to_owned),
        part_uuid: volume.part_uuid.clone(),
        part_label: volume.part_label.clone(),
        volume_group: found
            .groups
            .iter()
            .position(|group| group.physical.contains(&volume.name)),
        roles: roles(volume, found),
    }
}

fn roles(volume: &Volume, found: &Discovery) -> Vec<Role> {
    let mut roles = Vec::new();
    for (node, guest) in found.guests.iter().enumerate() {
        // Subvolumes of btrfs are named `/dev/sda1[/@]`.
        let is_it = |device: &str| {
            device
                .strip_prefix(&volume.name)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('['))
        };
        for there in guest
            .file_systems
            .iter()
            .filter(|there| is_it(&there.device))
        {
            roles.push(Role {
                node,
                role: there.mount_point.to_string(),
            });
        }
    }
    roles.extend(
        found
            .swaps
            .iter()
            .filter(|(device, _)| *device == volume.name)
            .map(|(_, node)| Role {
                node: *node,
                role: "swap".into(),
            }),
    );
    // The firmware's own: whose disk it is on.
    if volume.partition_kind == PartitionKind::EfiSystem && roles.is_empty() {
        let owners = found.guests.iter().enumerate().filter(|(_, guest)| {
            let root = guest
                .file_systems
                .first()
                .map(|root| root.backing.first_path());
            root.is_some_and(|root| root == volume.backing.first_path())
        });
        roles.extend(owners.map(|(node, _)| Role {
            node,
            role: "esp".into(),
        }));
    }
    roles
}

fn node(guest: &Guest, found: &Discovery) -> NodeItem {
    let facts = Node::read(guest);
    let mut disks: Vec<String> = Vec::new();
    let mut add = |path: &Path| {
        let path = escape(&path.to_string_lossy());
        if !disks.contains(&path) {
            disks.push(path);
        }
    };
    for file_system in &guest.file_systems {
        file_system
            .backing
            .disks()
            .into_iter()
            .for_each(|(path, _)| add(path));
        // The rest of its group, which it needs to be activated.
        let group = found
            .groups
            .iter()
            .find(|group| group.logical.contains(&file_system.device));
        for physical in group.iter().flat_map(|group| &group.physical) {
            let volume = found.volumes.iter().find(|volume| volume.name == *physical);
            volume
                .into_iter()
                .flat_map(|volume| volume.backing.disks())
                .for_each(|(path, _)| add(path));
        }
    }
    NodeItem {
        name: facts.name(&guest.source).to_owned(),
        source: guest.source.clone(),
        disks,
        os: facts.os.value.clone(),
        machine_id: facts.machine_id.value.clone(),
        unresolved_fstab: guest.unresolved.clone(),
    }
}
