//! LVM2, read without the kernel: labels and headers of physical volumes, the metadata text, and linear and striped logical volumes
//! as runs of bytes. Groups are told apart by UUID, never by name, and copies of one disk are never mixed.

mod group;
mod label;
mod text;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::ReadAt;
use super::layout::Layout;
use group::Group;

/// Why something of LVM cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum LvmError {
    /// A disk could not be read.
    #[error(transparent)]
    Io(#[from] std::io::Error),
    /// What is written there cannot be.
    #[error("the LVM metadata is damaged: {0}")]
    Corrupt(String),
    /// Well-formed, but not of a kind that is read.
    #[error("it is {0}, which is not supported yet")]
    Unsupported(String),
    /// A part of it is on a disk that was not given; the physical volume's UUID.
    #[error("a part of it is on a disk that was not given (physical volume {0})")]
    Missing(String),
}

/// A physical volume to be read.
#[derive(Clone)]
pub struct PhysicalVolume {
    /// How people name it: `/dev/sda2`.
    pub name: String,
    /// Which of the disks it is on.
    pub disk: usize,
    /// Its bytes.
    pub bytes: Arc<dyn ReadAt>,
}

/// How a logical volume is named; parts of its identity for fstab.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogicalName {
    /// Name of the volume group.
    pub group: String,
    /// Name of the logical volume.
    pub volume: String,
    /// Both UUIDs as device-mapper has them after `LVM-`: 64 characters.
    pub uuid: String,
}

impl LogicalName {
    /// Its name in /dev/mapper: a dash within a name is doubled.
    pub fn mapper(&self) -> String {
        format!("{}-{}", self.group.replace('-', "--"), self.volume.replace('-', "--"))
    }
}

/// One logical volume that people see.
pub struct Logical {
    /// Its names.
    pub name: LogicalName,
    /// Where its bytes are on the volumes of `on`, or why they cannot be had.
    pub layout: Result<Layout, LvmError>,
    /// Whether its own permission lets anybody write.
    pub writable: bool,
    /// The physical volumes of its group, as indices into those given.
    pub on: Vec<usize>,
}

/// What the physical volumes hold together.
#[derive(Debug, Default)]
pub struct Assembled {
    /// The logical volumes of all groups.
    pub volumes: Vec<Logical>,
    /// What is wrong, by name of the physical volume.
    pub notes: Vec<(String, String)>,
    /// The physical volumes that a group was read from.
    pub used: BTreeSet<usize>,
}

struct Member {
    index: usize,
    disk: usize,
    name: String,
    id: String,
    versions: Vec<Group>,
}

/// Reads all physical volumes and puts their groups together.
pub fn assemble(physical: &[PhysicalVolume]) -> Assembled {
    let mut all = Assembled::default();
    let mut members = Vec::new();
    for (index, volume) in physical.iter().enumerate() {
        match read(volume, index, &mut all) {
            Ok(member) => members.push(member),
            Err(error) => all.notes.push((volume.name.clone(), error.to_string())),
        }
    }
    // A volume that keeps no copy of the text belongs to the group whose text names it.
    let mut groups: BTreeMap<String, Vec<&Member>> = BTreeMap::new();
    for member in &members {
        let names_it = |group: &&Group| group.physical_ids().any(|id| id == member.id);
        let own = member.versions.iter().max_by_key(|group| group.seqno);
        let group = own.or_else(|| members.iter().flat_map(|other| &other.versions).find(names_it));
        match group {
            Some(group) => groups.entry(group.id.clone()).or_default().push(member),
            None => all.notes.push((member.name.clone(), "a physical volume of no volume group".into())),
        }
    }
    for members in groups.into_values() {
        for instance in instances(&members, &mut all) {
            if let Err(error) = open(&instance, physical, &mut all) {
                let names: Vec<&str> = instance.iter().map(|member| member.name.as_str()).collect();
                all.notes.push((names.join(", "), error.to_string()));
            }
        }
    }
    all
}

fn read(volume: &PhysicalVolume, index: usize, all: &mut Assembled) -> Result<Member, LvmError> {
    let header = label::read(volume.bytes.as_ref())?;
    let is_lost = header.texts.is_empty() && !header.notes.is_empty();
    let mut versions = Vec::new();
    for text in &header.texts {
        versions.push(Group::parse(text)?);
    }
    all.notes.extend(header.notes.into_iter().map(|note| (volume.name.clone(), note)));
    if is_lost {
        all.notes.push((volume.name.clone(), "it has no whole copy of its metadata left".into()));
    }
    Ok(Member { index, disk: volume.disk, name: volume.name.clone(), id: header.id, versions })
}

/// One group may be there several times: two machines cloned from one template have the same UUIDs all over. Each disk whose own
/// physical volumes are a whole group is a group of its own; anything less cannot be told apart and is refused.
fn instances<'a>(members: &[&'a Member], all: &mut Assembled) -> Vec<Vec<&'a Member>> {
    let distinct: BTreeSet<&str> = members.iter().map(|member| member.id.as_str()).collect();
    if distinct.len() == members.len() {
        return vec![members.to_vec()];
    }
    let mut by_disk: BTreeMap<usize, Vec<&Member>> = BTreeMap::new();
    for member in members {
        by_disk.entry(member.disk).or_default().push(member);
    }
    let (whole, parts): (Vec<_>, Vec<_>) = by_disk.into_values().partition(|members| is_whole(members));
    let parts: Vec<&Member> = parts.into_iter().flatten().collect();
    if !parts.is_empty() {
        let names: Vec<&str> = parts.iter().map(|member| member.name.as_str()).collect();
        let what = "copies of one volume group: their UUIDs are the same, and which parts belong together cannot be told; \
                    name the disks of one machine only";
        all.notes.push((names.join(", "), what.into()));
    }
    whole
}

/// Whether these are all physical volumes of their group, each once.
fn is_whole(members: &[&Member]) -> bool {
    let there: BTreeSet<&str> = members.iter().map(|member| member.id.as_str()).collect();
    let newest = members.iter().flat_map(|member| &member.versions).max_by_key(|group| group.seqno);
    there.len() == members.len() && newest.is_some_and(|group| group.physical_ids().collect::<BTreeSet<_>>() == there)
}

/// Lays out the newest version of the group.
fn open(members: &[&Member], physical: &[PhysicalVolume], all: &mut Assembled) -> Result<(), LvmError> {
    let versions = || members.iter().flat_map(|member| &member.versions);
    let Some(newest) = versions().max_by_key(|group| group.seqno) else {
        return Ok(());
    };
    if versions().any(|other| other.seqno == newest.seqno && !other.is_same_text(newest)) {
        let what = "two different texts have the same number; these disks may belong to two copies of one machine";
        return Err(LvmError::Corrupt(what.into()));
    }
    let on: Vec<usize> = members.iter().map(|member| member.index).collect();
    let length = |index: usize| physical.get(index).map_or(0, |volume| volume.bytes.len());
    let there = members.iter().zip(0..).map(|(member, number)| (member.id.clone(), (number, length(member.index))));
    for found in newest.volumes(&there.collect())? {
        let uuid = format!("{}{}", newest.id, found.id);
        let name = LogicalName { group: newest.name.clone(), volume: found.name, uuid };
        all.volumes.push(Logical { name, layout: found.layout, writable: found.writable, on: on.clone() });
    }
    all.used.extend(on);
    Ok(())
}

impl std::fmt::Debug for PhysicalVolume {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PhysicalVolume").field("name", &self.name).field("disk", &self.disk).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Logical {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Logical").field("name", &self.name).field("on", &self.on).finish_non_exhaustive()
    }
}
