//! LVM2, read without the kernel: labels and headers of physical volumes, the metadata text, and
//! linear and striped logical volumes as runs of bytes. Groups are told apart by UUID, never by
//! name, and copies of one disk are never mixed.

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
        format!(
            "{}-{}",
            self.group.replace('-', "--"),
            self.volume.replace('-', "--")
        )
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
    versions: Vec<Arc<Group>>,
}

/// Texts read so far. All copies of a group hold the same words, so that each is parsed, and kept,
/// once; all different ones together have a bound.
#[derive(Default)]
struct Texts {
    known: BTreeMap<String, Arc<Group>>,
    bytes: usize,
}

impl Texts {
    /// Four times what a group of 16,000 volumes takes.
    const MAX_BYTES: usize = 48 << 20;

    fn parse(&mut self, text: String) -> Result<Arc<Group>, LvmError> {
        if let Some(group) = self.known.get(&text) {
            return Ok(Arc::clone(group));
        }
        self.bytes = self.bytes.saturating_add(text.len());
        if self.bytes > Self::MAX_BYTES {
            return Err(LvmError::Corrupt(
                "there is more of it on these disks than any group has".into(),
            ));
        }
        let group = Arc::new(Group::parse(&text)?);
        self.known.insert(text, Arc::clone(&group));
        Ok(group)
    }
}

/// Reads all physical volumes and puts their groups together.
pub fn assemble(physical: &[PhysicalVolume]) -> Assembled {
    let mut all = Assembled::default();
    let mut members = Vec::new();
    let mut texts = Texts::default();
    for (index, volume) in physical.iter().enumerate() {
        match read(volume, index, &mut texts, &mut all) {
            Ok(member) => members.push(member),
            Err(error) => all.notes.push((volume.name.clone(), error.to_string())),
        }
    }
    // A volume that keeps no copy of the text belongs to the group whose text names it.
    let mut groups: BTreeMap<String, Vec<&Member>> = BTreeMap::new();
    for member in &members {
        let names_it = |group: &&Arc<Group>| group.physical_ids().any(|id| id == member.id);
        let own = member.versions.iter().max_by_key(|group| group.seqno);
        let group = own.or_else(|| {
            members
                .iter()
                .flat_map(|other| &other.versions)
                .find(names_it)
        });
        match group {
            Some(group) => groups.entry(group.id.clone()).or_default().push(member),
            None => all.notes.push((
                member.name.clone(),
                "a physical volume of no volume group".into(),
            )),
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

fn read(
    volume: &PhysicalVolume,
    index: usize,
    texts: &mut Texts,
    all: &mut Assembled,
) -> Result<Member, LvmError> {
    let header = label::read(volume.bytes.as_ref())?;
    let is_lost = header.texts.is_empty() && !header.notes.is_empty();
    let mut versions = Vec::new();
    for text in header.texts {
        versions.push(texts.parse(text)?);
    }
    all.notes.extend(
        header
            .notes
            .into_iter()
            .map(|note| (volume.name.clone(), note)),
    );
    if is_lost {
        all.notes.push((
            volume.name.clone(),
            "it has no whole copy of its metadata left".into(),
        ));
    }
    Ok(Member {
        index,
        disk: volume.disk,
        name: volume.name.clone(),
        id: header.id,
        versions,
    })
}

/// One group may be there several times: two machines cloned from one template have the same UUIDs
/// all over. Each disk whose own physical volumes are a whole group is a group of its own. So are
/// volumes that together are one and have the same text, where the other copies' text differs: lvm2
/// writes the same to all volumes of a group, and counts. Anything less cannot be told apart and is
/// refused.
fn instances<'a>(members: &[&'a Member], all: &mut Assembled) -> Vec<Vec<&'a Member>> {
    let distinct: BTreeSet<&str> = members.iter().map(|member| member.id.as_str()).collect();
    if distinct.len() == members.len() {
        return vec![members.to_vec()];
    }
    let mut by_disk: BTreeMap<usize, Vec<&Member>> = BTreeMap::new();
    for member in members {
        by_disk.entry(member.disk).or_default().push(member);
    }
    let (whole, parts): (Vec<_>, Vec<_>) =
        by_disk.into_values().partition(|members| is_whole(members));
    let (by_text, parts): (Vec<_>, Vec<_>) = same_text(parts.into_iter().flatten().collect())
        .into_iter()
        .partition(|members| is_whole(members));
    let parts: Vec<&Member> = parts.into_iter().flatten().collect();
    if !parts.is_empty() {
        let names: Vec<&str> = parts.iter().map(|member| member.name.as_str()).collect();
        let what = "copies of one volume group: their UUIDs are the same, and which parts belong \
            together cannot be told; name the disks of one machine only";
        all.notes.push((names.join(", "), what.into()));
    }
    whole.into_iter().chain(by_text).collect()
}

/// Members by the words of their newest text; those without any are nobody's.
fn same_text(members: Vec<&Member>) -> Vec<Vec<&Member>> {
    let mut classes: Vec<(Option<&Arc<Group>>, Vec<&Member>)> = Vec::new();
    for member in members {
        let newest = member.versions.iter().max_by_key(|group| group.seqno);
        let is_it = |there: &Option<&Arc<Group>>| match (there, newest) {
            (Some(there), Some(newest)) => {
                there.seqno == newest.seqno && there.is_same_text(newest)
            }
            _ => false,
        };
        match classes.iter_mut().find(|(there, _)| is_it(there)) {
            Some((_, members)) => members.push(member),
            None => classes.push((newest, vec![member])),
        }
    }
    classes.into_iter().map(|(_, members)| members).collect()
}

/// Whether these are all physical volumes of their group, each once.
fn is_whole(members: &[&Member]) -> bool {
    let there: BTreeSet<&str> = members.iter().map(|member| member.id.as_str()).collect();
    let newest = members
        .iter()
        .flat_map(|member| &member.versions)
        .max_by_key(|group| group.seqno);
    there.len() == members.len()
        && newest.is_some_and(|group| group.physical_ids().collect::<BTreeSet<_>>() == there)
}

/// Lays out the newest version of the group.
fn open(
    members: &[&Member],
    physical: &[PhysicalVolume],
    all: &mut Assembled,
) -> Result<(), LvmError> {
    let versions = || members.iter().flat_map(|member| &member.versions);
    let Some(newest) = versions().max_by_key(|group| group.seqno) else {
        return Ok(());
    };
    if versions().any(|other| other.seqno == newest.seqno && !other.is_same_text(newest)) {
        let what = "two different texts have the same number; these disks may belong to two copies \
            of one machine";
        return Err(LvmError::Corrupt(what.into()));
    }
    let on: Vec<usize> = members.iter().map(|member| member.index).collect();
    let length = |index: usize| physical.get(index).map_or(0, |volume| volume.bytes.len());
    let there = members
        .iter()
        .zip(0..)
        .map(|(member, number)| (member.id.clone(), (number, length(member.index))));
    for found in newest.volumes(&there.collect())? {
        let uuid = format!("{}{}", newest.id, found.id);
        let name = LogicalName {
            group: newest.name.clone(),
            volume: found.name,
            uuid,
        };
        all.volumes.push(Logical {
            name,
            layout: found.layout,
            writable: found.writable,
            on: on.clone(),
        });
    }
    all.used.extend(on);
    Ok(())
}

impl std::fmt::Debug for PhysicalVolume {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PhysicalVolume")
            .field("name", &self.name)
            .field("disk", &self.disk)
            .finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Logical {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Logical")
            .field("name", &self.name)
            .field("on", &self.on)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fmt::Write as _;

    const ID: &str = "KdQOZD-c08s-ASZ8-fmHT-H3sb-OSQ9-qKFrE0";

    struct Zeros(u64);

    impl ReadAt for Zeros {
        fn len(&self) -> u64 {
            self.0
        }
        fn sector_size(&self) -> u32 {
            512
        }
        fn read_exact_at(&self, buffer: &mut [u8], _: u64) -> std::io::Result<()> {
            buffer.fill(0);
            Ok(())
        }
    }

    /// A group on one physical volume of 1 TiB, with these logical volumes.
    fn group(volumes: &str) -> String {
        format!(
            "vg {{ id = \"{ID}\" seqno = 1 extent_size = 8192 status = [\"READ\", \"WRITE\"]
             physical_volumes {{ pv0 {{ id = \"{ID}\" pe_start = 2048 pe_count = 250000 }} }}
             logical_volumes {{ {volumes} }} }}"
        )
    }

    fn volume(name: &str, segments: &str) -> String {
        format!(
            "{name} {{ id = \"{ID}\" status = [\"READ\", \"WRITE\", \"VISIBLE\"] {segments} }}\n"
        )
    }

    fn segment(
        number: u64,
        start: u64,
        count: u64,
        kind: &str,
        stripes: &str,
        stripe_count: u64,
    ) -> String {
        format!(
            "segment{number} {{ start_extent = {start} extent_count = {count} type = \"{kind}\" stripe_count = {stripe_count}
             stripe_size = 128 stripes = [{stripes}] }} "
        )
    }

    fn outcome(volumes: &str) -> String {
        let one = PhysicalVolume {
            name: "disk".into(),
            disk: 0,
            bytes: Arc::new(Zeros(1 << 40)),
        };
        let group = match Group::parse(&group(volumes)) {
            Ok(group) => Arc::new(group),
            Err(error) => return error.to_string(),
        };
        let id = ID.replace('-', "");
        let member = Member {
            index: 0,
            disk: 0,
            name: "disk".into(),
            id,
            versions: vec![group],
        };
        let mut all = Assembled::default();
        match open(&[&member], &[one], &mut all) {
            Err(error) => error.to_string(),
            Ok(()) => {
                let one = |logical: &Logical| match &logical.layout {
                    Ok(layout) => format!("{} bytes", layout.length()),
                    Err(error) => error.to_string(),
                };
                all.volumes.iter().map(one).collect::<Vec<_>>().join("; ")
            }
        }
    }

    #[test]
    fn layouts_that_cannot_be_are_told_and_never_read() {
        let linear = |start, count, stripes: &str| segment(1, start, count, "striped", stripes, 1);
        for (volumes, expected) in [
            (
                volume("root", &linear(0, 10, "\"pv0\", 0")),
                "41943040 bytes",
            ),
            // Loops: a volume over itself, and two over each other.
            (
                volume("root", &linear(0, 10, "\"root\", 0")),
                "over another one",
            ),
            (
                volume("a", &linear(0, 1, "\"b\", 0")) + &volume("b", &linear(0, 1, "\"a\", 0")),
                "over another one",
            ),
            (
                volume("a", &linear(0, 9, "\"pv0\", 0"))
                    + &volume("b", &linear(0, 9, "\"pv0\", 8")),
                "the same extents",
            ),
            (
                volume(
                    "root",
                    &(linear(0, 9, "\"pv0\", 0") + &segment(2, 9, 9, "striped", "\"pv0\", 8", 1)),
                ),
                "the same extents",
            ),
            (
                volume("root", &linear(0, 10, "\"pv1\", 0")),
                "does not have",
            ),
            (volume("root", &linear(5, 10, "\"pv0\", 0")), "leave gaps"),
            (volume("root", &linear(0, 0, "\"pv0\", 0")), "empty"),
            (volume("root", ""), "empty"),
            (
                volume("root", &linear(0, 250_001, "\"pv0\", 0")),
                "outside its physical volume",
            ),
            (
                volume("root", &linear(0, 1, "\"pv0\", 9223372036854775807")),
                "outside its physical volume",
            ),
            (
                volume("root", &linear(0, i64::MAX as u64, "\"pv0\", 0")),
                "outside its physical volume",
            ),
            (
                volume("root", &linear(i64::MAX as u64, 1, "\"pv0\", 0")),
                "absurd",
            ),
            (volume("root", &linear(0, 1, "\"pv0\", -1")), "absurd"),
            (
                volume("root", &linear(0, 1, "\"pv0\"")),
                "not as many as it says",
            ),
            (
                volume("root", &linear(0, 1, "0, \"pv0\"")),
                "a stripe that is none",
            ),
            (
                volume(
                    "root",
                    &segment(1, 0, 10, "striped", "\"pv0\", 0, \"pv0\", 5", 3),
                ),
                "not as many as it says",
            ),
            (
                volume(
                    "root",
                    &segment(1, 0, 9, "striped", "\"pv0\", 0, \"pv0\", 5", 2),
                ),
                "divided among its stripes",
            ),
            (
                volume("root", &segment(1, 0, 10, "raid1", "", 1)),
                "a raid1 volume",
            ),
            (
                volume("root", &segment(1, 0, 10, "thin", "", 1)),
                "a thin volume",
            ),
            (
                volume("root", &segment(1, 0, 10, "no\u{1b}such", "", 1)),
                "of the kind",
            ),
        ] {
            let outcome = outcome(&volumes);
            assert!(outcome.contains(expected), "{volumes}: {outcome}");
            assert!(!outcome.contains('\u{1b}'), "{outcome:?}");
        }
        let twice = group("").replace(
            "pv0 {",
            &format!("pv1 {{ id = \"{ID}\" pe_start = 1 pe_count = 1 }} pv0 {{"),
        );
        assert!(
            Group::parse(&twice)
                .unwrap_err()
                .to_string()
                .contains("one physical volume twice")
        );
    }

    #[test]
    fn huge_counts_take_seconds_and_not_hours() {
        // Quadratic work would not end within the test's time.
        let mut many = String::new();
        for number in 0..8_000 {
            let stripes = format!("\"pv0\", {}", number * 2);
            many.push_str(&volume(
                &format!("lv{number}"),
                &segment(1, 0, 2, "striped", &stripes, 1),
            ));
        }
        assert!(outcome(&many).starts_with("8388608 bytes; "));
        // One volume in 20,000 pieces; every one names a volume that is not there.
        for there in ["pv0", "nowhere"] {
            let mut pieces = String::new();
            for number in 0..20_000 {
                let _ = write!(
                    pieces,
                    "s{number} {{start_extent={number} extent_count=1 type=striped stripe_count=1 \
                     stripes=[{there:?},{number}]}} "
                );
            }
            outcome(&volume("root", &pieces));
        }
    }

    #[test]
    fn different_texts_have_a_bound_together() {
        let mut texts = Texts::default();
        let long = |number: usize| group(&format!("# {number}\n# {}\n", "x".repeat(1 << 20)));
        for _ in 0..100 {
            texts.parse(long(0)).unwrap();
        }
        let error = (0..100)
            .find_map(|number| texts.parse(long(number)).err())
            .unwrap();
        assert!(error.to_string().contains("more of it"), "{error}");
    }
}
