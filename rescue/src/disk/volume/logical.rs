//! Logical volumes of LVM2 as volumes like any other.

use std::collections::BTreeSet;
use std::sync::Arc;

use anyhow::{Context, Result};

use super::Volume;
use crate::disk::ReadAt;
use crate::disk::layout::Laid;
use crate::disk::lvm::{self, LvmError, PhysicalVolume};
use crate::disk::partition::PartitionKind;
use crate::disk::probe::{self, Content};
use crate::disk::stack::{Layer, Stack};
use crate::disk::{Backing, Leftover};

/// What the physical volumes among some volumes hold.
#[derive(Debug, Default)]
pub struct Survey {
    /// The logical volumes.
    pub volumes: Vec<Volume>,
    /// What is odd about them, and those that cannot be read.
    pub notes: Vec<Leftover>,
    /// Names of the physical volumes whose group was read.
    pub used: BTreeSet<String>,
    /// The groups that were read.
    pub groups: Vec<VolumeGroup>,
}

/// A volume group that was read: one of perhaps several of this name, and even of this UUID.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeGroup {
    /// Its name.
    pub name: String,
    /// Its UUID, without dashes.
    pub uuid: String,
    /// Names of its physical volumes that are there.
    pub physical: Vec<String>,
    /// Names of its logical volumes, as in [`Volume::name`].
    pub logical: Vec<String>,
}

impl VolumeGroup {
    fn add(groups: &mut Vec<Self>, logical: &lvm::LogicalName, physical: &[&str], volume: &str) {
        let uuid = logical.uuid.get(..32).unwrap_or_default();
        let index = groups
            .iter()
            .position(|group| group.uuid == uuid && group.physical == physical);
        let index = index.unwrap_or_else(|| {
            let physical = physical.iter().map(|name| (*name).to_owned()).collect();
            groups.push(Self {
                name: logical.group.clone(),
                uuid: uuid.to_owned(),
                physical,
                logical: Vec::new(),
            });
            groups.len() - 1
        });
        if let Some(group) = groups.get_mut(index) {
            group.logical.push(volume.to_owned());
        }
    }
}

/// Puts the volume groups together that lie on `volumes`, and looks into every logical volume.
///
/// # Errors
/// I/O errors only; what is damaged or not supported becomes a note.
pub fn survey(volumes: &[Volume]) -> Result<Survey> {
    let is_physical = |volume: &&Volume| {
        matches!(
            volume.probe.as_ref().map(|probe| &probe.content),
            Some(Content::LvmPhysicalVolume)
        )
    };
    let below: Vec<&Volume> = volumes.iter().filter(is_physical).collect();
    let physical: Vec<PhysicalVolume> = below
        .iter()
        .map(|volume| PhysicalVolume {
            name: volume.name.clone(),
            disk: volume.disk,
            bytes: Arc::clone(&volume.bytes),
        })
        .collect();
    let assembled = lvm::assemble(&physical);
    let mut survey = Survey::default();
    survey.notes.extend(
        assembled
            .notes
            .into_iter()
            .map(|(device, what)| Leftover { device, what }),
    );
    survey.used.extend(
        assembled
            .used
            .iter()
            .filter_map(|index| below.get(*index))
            .map(|volume| volume.name.clone()),
    );
    for logical in assembled.volumes {
        let on: Vec<&Volume> = logical
            .on
            .iter()
            .filter_map(|index| below.get(*index).copied())
            .collect();
        let first = on
            .first()
            .context("a volume group without physical volumes")?;
        let places: Vec<&str> = on.iter().map(|volume| volume.name.as_str()).collect();
        // With where it lies: clones have the same names.
        let name = format!(
            "{}/{} on {}",
            logical.name.group,
            logical.name.volume,
            places.join(" and ")
        );
        VolumeGroup::add(&mut survey.groups, &logical.name, &places, &name);
        let layout = match logical.layout {
            Ok(layout) => layout,
            Err(error) => {
                let (group, volume) = (&logical.name.group, &logical.name.volume);
                let next = match &error {
                    LvmError::Unsupported(_) => {
                        format!(
                            "; next, on a helper VM: vgchange -ay {group}, then rescue inspect \
                             /dev/{group}/{volume}"
                        )
                    }
                    _ => String::new(),
                };
                let what = format!("a logical volume that is not read: {error}{next}");
                survey.notes.push(Leftover { device: name, what });
                continue;
            }
        };
        let (used, layout) = layout.compact();
        let used: Vec<&Volume> = used
            .into_iter()
            .filter_map(|index| on.get(index).copied())
            .collect();
        let below = used
            .iter()
            .map(|volume| Arc::clone(&volume.bytes))
            .collect();
        let bytes: Arc<dyn ReadAt> = Arc::new(Laid::new(layout.clone(), below));
        let layer = Layer::Logical {
            name: logical.name.clone(),
            layout,
            writable: logical.writable,
        };
        let below = used
            .into_iter()
            .map(|volume| volume.backing.clone())
            .collect();
        let probe =
            probe::probe(bytes.as_ref()).with_context(|| format!("looking what {name} holds"))?;
        survey.volumes.push(Volume {
            name,
            disk: first.disk,
            number: None,
            part_uuid: None,
            part_label: None,
            partition_kind: PartitionKind::Other,
            probe,
            bytes,
            backing: Backing::Stacked(Box::new(Stack { below, layer })),
            logical: Some(logical.name),
            luks_uuid: None,
        });
    }
    Ok(survey)
}
