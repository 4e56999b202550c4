//! A volume group as its metadata text tells it, and its logical volumes laid over the physical
//! volumes that are there.

use std::collections::{HashMap, HashSet};

use super::LvmError;
use super::text::{self, Section, Value};
use crate::base::escaping::escape;
use crate::disk::layout::{Area, Layout, Segment};

/// Extents are counted in sectors of this many bytes, whatever the disk's own sectors are.
const SECTOR: u64 = 512;

/// One version of a volume group's metadata.
#[derive(Debug, Clone)]
pub(super) struct Group {
    /// UUID without dashes.
    pub id: String,
    pub name: String,
    pub seqno: u64,
    extent_size: u64,
    /// By name.
    physical: HashMap<String, Physical>,
    /// Names of all logical volumes, those that people do not see included.
    volumes: HashSet<String>,
    body: Section,
}

/// What snapshots make of other volumes, by name.
struct Snapshots<'a> {
    stores: HashSet<&'a str>,
    merging_into: HashSet<&'a str>,
}

#[derive(Debug, Clone)]
struct Physical {
    id: String,
    /// First byte of the first extent.
    start: u64,
    extents: u64,
}

/// A logical volume that people see, with how it is laid out or why that cannot be used.
pub(super) struct Found {
    pub id: String,
    pub name: String,
    pub layout: Result<Layout, LvmError>,
    /// Whether its own permission (`lvchange -p`) lets anybody write.
    pub writable: bool,
}

/// The physical volumes that are there, by UUID: their number and their length in bytes.
pub(super) type There = HashMap<String, (usize, u64)>;

fn corrupt(reason: impl Into<String>) -> LvmError {
    LvmError::Corrupt(reason.into())
}

fn field(section: &Section, key: &str) -> Result<u64, LvmError> {
    section
        .number(key)
        .ok_or_else(|| corrupt(format!("its text lacks a proper {key}")))
}

/// Letters and digits of a UUID.
fn id(section: &Section) -> Result<String, LvmError> {
    let id: String = section
        .text("id")
        .unwrap_or_default()
        .chars()
        .filter(|c| *c != '-')
        .collect();
    let is_good = id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_alphanumeric());
    if is_good {
        Ok(id)
    } else {
        Err(corrupt("its text has an id that is no UUID"))
    }
}

impl Group {
    /// Reads one copy of the text.
    pub fn parse(text: &str) -> Result<Self, LvmError> {
        let mut top = text::parse(text)?.sections;
        let Some((name, body)) = top.pop().filter(|_| top.is_empty()) else {
            return Err(corrupt("its text does not hold one volume group"));
        };
        let bytes = |sectors: u64| {
            sectors
                .checked_mul(SECTOR)
                .ok_or_else(|| corrupt("its text has an absurd size"))
        };
        let extent_size = bytes(field(&body, "extent_size")?)?;
        if extent_size == 0 {
            return Err(corrupt("its extents are empty"));
        }
        let mut physical = HashMap::new();
        for (name, section) in body
            .section("physical_volumes")
            .map_or(&[][..], |all| all.sections.as_slice())
        {
            let start = bytes(field(section, "pe_start")?)?;
            let one = Physical {
                id: id(section)?,
                start,
                extents: field(section, "pe_count")?,
            };
            physical.insert(name.clone(), one);
        }
        let distinct: HashSet<&str> = physical
            .values()
            .map(|physical| physical.id.as_str())
            .collect();
        if distinct.len() != physical.len() {
            return Err(corrupt("its text has one physical volume twice"));
        }
        let volumes = body
            .section("logical_volumes")
            .map_or(&[][..], |all| all.sections.as_slice());
        let volumes = volumes.iter().map(|(name, _)| name.clone()).collect();
        let (id, seqno) = (id(&body)?, field(&body, "seqno")?);
        Ok(Self {
            id,
            name: escape(&name),
            seqno,
            extent_size,
            physical,
            volumes,
            body,
        })
    }

    /// UUIDs of its physical volumes.
    pub fn physical_ids(&self) -> impl Iterator<Item = &str> {
        self.physical.values().map(|physical| physical.id.as_str())
    }

    /// Whether both are the same words: two copies of one version must be.
    pub fn is_same_text(&self, other: &Self) -> bool {
        self.name == other.name && self.body == other.body
    }

    fn logical(&self) -> &[(String, Section)] {
        self.body
            .section("logical_volumes")
            .map_or(&[], |all| all.sections.as_slice())
    }

    /// All logical volumes that people see, over the physical volumes given by UUID.
    ///
    /// # Errors
    /// When one extent belongs to two volumes: then nothing of the group can be believed.
    pub fn volumes(&self, there: &There) -> Result<Vec<Found>, LvmError> {
        self.refuse_overlaps()?;
        let snapshots = self.snapshots();
        let mut found = Vec::new();
        for (name, section) in self.logical() {
            if section.has("status", "VISIBLE") {
                let layout = snapshots
                    .refuse(name)
                    .and_then(|()| self.map(section, there));
                let writable = section.has("status", "WRITE") && self.body.has("status", "WRITE");
                found.push(Found {
                    id: id(section)?,
                    name: escape(name),
                    layout,
                    writable,
                });
            }
        }
        Ok(found)
    }

    fn snapshots(&self) -> Snapshots<'_> {
        let mut found = Snapshots {
            stores: HashSet::new(),
            merging_into: HashSet::new(),
        };
        for (_, segment) in self
            .logical()
            .iter()
            .flat_map(|(_, section)| &section.sections)
        {
            let merging = segment.text("merging_store");
            found.stores.extend(segment.text("cow_store"));
            found.stores.extend(merging);
            found
                .merging_into
                .extend(merging.and_then(|_| segment.text("origin")));
        }
        found
    }

    fn map(&self, section: &Section, there: &There) -> Result<Layout, LvmError> {
        let mut segments = Vec::new();
        for (_, segment) in &section.sections {
            let (start, extents) = (
                field(segment, "start_extent")?,
                field(segment, "extent_count")?,
            );
            let areas = self
                .areas(segment, extents)?
                .into_iter()
                .map(|(physical, from, _)| {
                    let (below, _) = *there
                        .get(&physical.id)
                        .ok_or_else(|| LvmError::Missing(physical.id.clone()))?;
                    Ok(Area {
                        below,
                        offset: self
                            .bytes(from)?
                            .checked_add(physical.start)
                            .ok_or_else(absurd)?,
                    })
                });
            let areas = areas.collect::<Result<Vec<_>, LvmError>>()?;
            let stripe = if areas.len() > 1 {
                field(segment, "stripe_size")?
            } else {
                1
            };
            segments.push(Segment {
                start: self.bytes(start)?,
                length: self.bytes(extents)?,
                stripe: stripe.checked_mul(SECTOR).ok_or_else(absurd)?,
                areas,
            });
        }
        let mut lengths = vec![0; there.len()];
        for (index, length) in there.values() {
            if let Some(slot) = lengths.get_mut(*index) {
                *slot = *length;
            }
        }
        Layout::new(segments, &lengths).map_err(corrupt)
    }

    fn bytes(&self, extents: u64) -> Result<u64, LvmError> {
        extents.checked_mul(self.extent_size).ok_or_else(absurd)
    }

    /// Physical volume, first extent and number of extents of each stripe of a segment.
    fn areas(
        &self,
        segment: &Section,
        extents: u64,
    ) -> Result<Vec<(&Physical, u64, u64)>, LvmError> {
        let kind = segment.text("type").unwrap_or_default();
        if !matches!(kind, "striped" | "linear") {
            return Err(LvmError::Unsupported(kind_in_words(kind)));
        }
        let mut areas = Vec::new();
        let (pairs, rest) = segment.list("stripes").as_chunks::<2>();
        let each = extents / (pairs.len() as u64).max(1);
        for [name, first] in pairs {
            let (Value::Text(name), Value::Number(first)) = (name, first) else {
                return Err(corrupt("its text has a stripe that is none"));
            };
            let Some(physical) = self.physical.get(name) else {
                // pvmove puts a volume of its own between.
                let is_volume = self.volumes.contains(name);
                let what = "a volume over another one (a pvmove that has not ended)";
                let dangling =
                    || corrupt("a segment is on a physical volume that the group does not have");
                return Err(if is_volume {
                    LvmError::Unsupported(what.into())
                } else {
                    dangling()
                });
            };
            let first = u64::try_from(*first).map_err(|_| absurd())?;
            if first
                .checked_add(each)
                .is_none_or(|end| end > physical.extents)
            {
                return Err(corrupt("a segment lies outside its physical volume"));
            }
            areas.push((physical, first, each));
        }
        if !extents.is_multiple_of((areas.len() as u64).max(1)) {
            return Err(corrupt(
                "one of its segments cannot be divided among its stripes",
            ));
        }
        let count = field(segment, "stripe_count")?;
        if areas.len() as u64 == count && count > 0 && rest.is_empty() {
            Ok(areas)
        } else {
            Err(corrupt("a segment's stripes are not as many as it says"))
        }
    }

    fn refuse_overlaps(&self) -> Result<(), LvmError> {
        let mut used: Vec<(&str, u64, u64)> = Vec::new();
        for segment in self
            .logical()
            .iter()
            .flat_map(|(_, section)| &section.sections)
            .map(|(_, segment)| segment)
        {
            // Segments that cannot be read are the business of the volume they are in.
            let Ok(areas) =
                field(segment, "extent_count").and_then(|extents| self.areas(segment, extents))
            else {
                continue;
            };
            used.extend(
                areas
                    .into_iter()
                    .map(|(physical, first, count)| (physical.id.as_str(), first, count)),
            );
        }
        used.sort_unstable();
        let overlap = used.windows(2).any(|pair| match pair {
            [(one, first, count), (other, next, _)] => one == other && first + count > *next,
            _ => false,
        });
        if overlap {
            Err(corrupt("two of its volumes use the same extents"))
        } else {
            Ok(())
        }
    }
}

impl Snapshots<'_> {
    /// The store of a snapshot is written like a plain volume, but holds only differences; an
    /// origin with a merge pending will be something else at the next boot.
    fn refuse(&self, name: &str) -> Result<(), LvmError> {
        if self.stores.contains(name) {
            return Err(LvmError::Unsupported("a snapshot".into()));
        }
        if self.merging_into.contains(name) {
            return Err(LvmError::Unsupported(
                "a volume that a snapshot is being merged into".into(),
            ));
        }
        Ok(())
    }
}

fn absurd() -> LvmError {
    corrupt("its text has an absurd size")
}

fn kind_in_words(kind: &str) -> String {
    match kind {
        "thin" => "a thin volume".into(),
        "thin-pool" => "a thin pool".into(),
        "cache" | "cache-pool" => "a cached volume".into(),
        "vdo" | "vdo-pool" => "a VDO volume".into(),
        "mirror" => "a mirror".into(),
        "snapshot" => "a snapshot".into(),
        "writecache" | "integrity" => format!("a volume with {kind}"),
        raid if raid.starts_with("raid") => format!("a {} volume", escape(raid)),
        other => format!("of the kind {:?}", escape(other)),
    }
}
