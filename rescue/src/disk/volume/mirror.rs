//! Mirrors of Linux's software RAID as volumes like any other, each read through the one of its
//! legs that knows best.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use anyhow::{Context, Result};

use super::Volume;
use crate::disk::ReadAt;
use crate::disk::partition::{PartitionKind, Slice};
use crate::disk::probe::{self, Content};
use crate::disk::raid::Member;
use crate::disk::stack::{Layer, Mirror, Stack};
use crate::disk::{Backing, Leftover};

/// What the members among some volumes hold.
#[derive(Debug, Default)]
pub struct Survey {
    /// One for each mirror.
    pub volumes: Vec<Volume>,
    /// What is odd about them, and the arrays that are not read.
    pub notes: Vec<Leftover>,
    /// Names of the members that something was said about, or that are read.
    pub used: BTreeSet<String>,
}

/// Puts the arrays together that lie on `volumes`.
///
/// # Errors
/// I/O errors only.
pub fn survey(volumes: &[Volume]) -> Result<Survey> {
    let mut survey = Survey::default();
    let mut arrays: BTreeMap<String, Vec<(&Volume, Member)>> = BTreeMap::new();
    for volume in volumes {
        let Some(Content::MdRaid(version)) = volume.probe.as_ref().map(|probe| &probe.content)
        else {
            continue;
        };
        survey.used.insert(volume.name.clone());
        match Member::read(volume.bytes.as_ref(), version) {
            Ok(member) => arrays
                .entry(member.array.clone())
                .or_default()
                .push((volume, member)),
            Err(why) => survey.note(
                &volume.name,
                format!("a member of a software RAID that is damaged: {why}"),
            ),
        }
    }
    for members in arrays.into_values() {
        survey.array(&members)?;
    }
    Ok(survey)
}

impl Survey {
    fn note(&mut self, device: &str, what: String) {
        self.notes.push(Leftover {
            device: device.to_owned(),
            what,
        });
    }

    fn array(&mut self, members: &[(&Volume, Member)]) -> Result<()> {
        let names: Vec<&str> = members
            .iter()
            .map(|(volume, _)| volume.name.as_str())
            .collect();
        let places = names.join(" and ");
        let Some((_, newest)) = members.iter().max_by_key(|(_, member)| member.events) else {
            return Ok(());
        };
        if newest.level != 1 || newest.reshaping {
            let state = if newest.reshaping {
                ", which is being given another form"
            } else {
                ""
            };
            let what = format!(
                "{}{state}, by Linux's software RAID; only mirrors (RAID1) are read: boot the \
                 machine from the rescue ISO and `mdadm --assemble --scan` there, then rescue \
                 inspect /dev/md127",
                newest.what()
            );
            self.note(&places, what);
            return Ok(());
        }
        let roles: BTreeSet<u32> = members
            .iter()
            .filter_map(|(_, member)| member.role)
            .collect();
        if roles.len()
            != members
                .iter()
                .filter(|(_, member)| member.role.is_some())
                .count()
        {
            let what = "copies of one mirror: their UUIDs are the same, and which of them belong \
                together cannot be told; name the disks of one machine only";
            self.note(&places, what.into());
            return Ok(());
        }
        // One leg that is whole and as new as any.
        let best = members
            .iter()
            .find(|(_, member)| member.role.is_some() && member.events == newest.events);
        let Some((leg, member)) = best else {
            self.note(
                &places,
                "members of a mirror, none of which is whole; its other disk was not given".into(),
            );
            return Ok(());
        };
        for (volume, other) in members {
            if other.role.is_none() {
                self.note(
                    &volume.name,
                    "a spare of a mirror, or a leg that failed or was never filled; it is not read"
                        .into(),
                );
            } else if other.events < member.events {
                self.note(
                    &volume.name,
                    "an older leg of a mirror, left out of it some time ago; it is not read".into(),
                );
            }
        }
        if roles.len() < member.disks as usize {
            let what = format!(
                "a mirror of {} disks, of which {} were given; it is read through this one",
                member.disks,
                roles.len()
            );
            self.note(&leg.name, what);
        }
        if !member.clean && roles.len() > 1 {
            let what =
                "a mirror that was not shut down cleanly: its legs may differ; it is read through \
                 this one"
                    .into();
            self.note(&leg.name, what);
        }
        let volume = volume(leg, member, &names)?;
        self.volumes.push(volume);
        Ok(())
    }
}

fn volume(leg: &Volume, member: &Member, names: &[&str]) -> Result<Volume> {
    let name = format!("mirror on {}", names.join(" and "));
    let slice = Slice::new(Arc::clone(&leg.bytes), member.offset, member.length)
        .context("a leg shorter than its data")?;
    let bytes: Arc<dyn ReadAt> = Arc::new(slice);
    let probe =
        probe::probe(bytes.as_ref()).with_context(|| format!("looking what {name} holds"))?;
    let legs = names.iter().map(|name| (*name).to_owned()).collect();
    let mirror = Mirror {
        offset: member.offset,
        length: member.length,
        legs,
        disks: member.disks,
    };
    Ok(Volume {
        name,
        disk: leg.disk,
        number: None,
        part_uuid: None,
        part_label: None,
        partition_kind: PartitionKind::Other,
        probe,
        bytes,
        backing: Backing::Stacked(Box::new(Stack {
            below: vec![leg.backing.clone()],
            layer: Layer::Mirror(mirror),
        })),
        logical: None,
        luks_uuid: None,
    })
}
