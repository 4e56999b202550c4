//! The DOS partition table: four primary entries, and logical partitions as a chain inside an
//! extended one.

use std::collections::HashSet;

use super::ReadAt;
use super::bytes::{has, le32};
use super::partition::{Partition, PartitionKind, Table, TableError, note_overlaps};

/// Type of the entry that guards a GPT.
const PROTECTIVE: u8 = 0xee;
/// Longest chain of logical partitions followed; the kernel stops at 100 links.
const MAX_LOGICAL: u32 = 100;
const TABLE_AT: usize = 446;
const ENTRY_SIZE: usize = 16;
const SIGNATURE_AT: usize = 510;

/// The first sector, when it holds a partition table.
#[derive(Debug, Clone)]
pub struct BootSector {
    disk_signature: u32,
    entries: Vec<Entry>,
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    kind: u8,
    start: u64,
    sectors: u64,
}

impl Entry {
    fn is_used(&self) -> bool {
        self.kind != 0 && self.sectors != 0
    }
    fn is_extended(&self) -> bool {
        matches!(self.kind, 0x05 | 0x0f | 0x85)
    }
}

impl BootSector {
    /// `None` where the first sector is no partition table. File systems put `55 aa` there too
    /// (FAT, NTFS, a boot loader inside ext4), so the entries must make sense as the kernel checks
    /// them.
    pub fn read(disk: &dyn ReadAt) -> std::io::Result<Option<Self>> {
        let mut sector = [0; 512];
        if disk.len() < sector.len() as u64 {
            return Ok(None);
        }
        disk.read_exact_at(&mut sector, 0)?;
        Ok(Self::parse(&sector))
    }

    fn parse(sector: &[u8; 512]) -> Option<Self> {
        if !has(sector, SIGNATURE_AT, &[0x55, 0xaa]) || looks_like_file_system(sector) {
            return None;
        }
        let entries = entries(sector)?;
        if !entries.iter().any(Entry::is_used) {
            return None;
        }
        Some(Self {
            disk_signature: le32(sector, 440),
            entries,
        })
    }

    /// The last sector that it guards: where the disk ended when the GPT was made. `None` where it
    /// does not say.
    pub fn protected_end(&self) -> Option<u64> {
        // 0xffffffff stands for "too large to say".
        let guard = self
            .entries
            .iter()
            .find(|entry| entry.kind == PROTECTIVE && entry.sectors != u64::from(u32::MAX))?;
        (guard.start + guard.sectors).checked_sub(1)
    }

    /// Whether it guards a GPT.
    pub fn is_protective(&self) -> bool {
        self.entries.iter().any(|entry| entry.kind == PROTECTIVE)
    }
}

/// FAT and NTFS begin with a jump and carry their name; their boot code may look like partition
/// entries.
fn looks_like_file_system(sector: &[u8]) -> bool {
    [
        (3, b"NTFS    ".as_slice()),
        (54, b"FAT".as_slice()),
        (82, b"FAT32".as_slice()),
        (3, b"-FVE-FS-".as_slice()),
    ]
    .iter()
    .any(|(at, magic)| has(sector, *at, magic))
}

/// The four entries of a table sector; `None` when a boot indicator is neither 0 nor 0x80, as in
/// the kernel.
fn entries(sector: &[u8]) -> Option<Vec<Entry>> {
    let mut entries = Vec::with_capacity(4);
    for raw in sector.get(TABLE_AT..SIGNATURE_AT)?.chunks_exact(ENTRY_SIZE) {
        if !matches!(raw.first(), Some(0 | 0x80)) {
            return None;
        }
        let kind = raw.get(4).copied().unwrap_or(0);
        entries.push(Entry {
            kind,
            start: u64::from(le32(raw, 8)),
            sectors: u64::from(le32(raw, 12)),
        });
    }
    Some(entries)
}

/// Reads primary and logical partitions.
pub fn read(disk: &dyn ReadAt, boot_sector: &BootSector) -> Result<Table, TableError> {
    let sector_size = u64::from(disk.sector_size());
    let mut table = Table {
        partitions: Vec::new(),
        notes: Vec::new(),
    };
    let partition = |number: u32, entry: &Entry, start: u64| Partition {
        number,
        // Both factors are below 2^34 and 2^12.
        offset: start * sector_size,
        length: entry.sectors * sector_size,
        uuid: (boot_sector.disk_signature != 0)
            .then(|| format!("{:08x}-{number:02x}", boot_sector.disk_signature)),
        label: None,
        kind: match entry.kind {
            0xef => PartitionKind::EfiSystem,
            0x41 => PartitionKind::NoFileSystem,
            _ => PartitionKind::Other,
        },
    };
    for (number, entry) in (1..).zip(&boot_sector.entries) {
        if entry.is_used() && !entry.is_extended() {
            table.partitions.push(partition(number, entry, entry.start));
        }
    }
    // As the kernel counts: through all extended partitions, from 5.
    let mut number = 5;
    for extended in boot_sector
        .entries
        .iter()
        .filter(|entry| entry.is_used() && entry.is_extended())
    {
        for (start, entry) in logical(disk, extended, &mut table.notes)? {
            table.partitions.push(partition(number, &entry, start));
            number += 1;
        }
    }
    note_overlaps(&mut table);
    Ok(table)
}

/// Follows the chain of extended boot records: each holds one partition (relative to itself) and a
/// link to the next (relative to the extended partition).
fn logical(
    disk: &dyn ReadAt,
    extended: &Entry,
    notes: &mut Vec<String>,
) -> Result<Vec<(u64, Entry)>, TableError> {
    let sector_size = u64::from(disk.sector_size());
    let mut found = Vec::new();
    let mut seen = HashSet::new();
    let mut record = extended.start;
    for _ in 0..MAX_LOGICAL {
        if !seen.insert(record) {
            notes.push(
                "the chain of logical partitions runs in a circle; those before the circle were \
                 read"
                    .into(),
            );
            return Ok(found);
        }
        let mut sector = [0; 512];
        let offset = record * sector_size;
        if offset.checked_add(512).is_none_or(|end| end > disk.len()) {
            notes.push("the chain of logical partitions leads past the end of the disk".into());
            return Ok(found);
        }
        disk.read_exact_at(&mut sector, offset)?;
        let Some(entries) = entries(&sector).filter(|_| has(&sector, SIGNATURE_AT, &[0x55, 0xaa]))
        else {
            if !found.is_empty() || record != extended.start {
                notes.push("the chain of logical partitions breaks off".into());
            }
            return Ok(found);
        };
        for (index, entry) in entries
            .iter()
            .enumerate()
            .filter(|(_, entry)| entry.is_used() && !entry.is_extended())
        {
            // The third and fourth entries may be garbage (msdos.c of the kernel): they count only
            // inside the extended partition.
            let end = record + entry.start + entry.sectors;
            if index < 2 || end <= extended.start + extended.sectors {
                found.push((record + entry.start, *entry));
            }
        }
        match entries
            .iter()
            .find(|entry| entry.is_used() && entry.is_extended())
        {
            Some(next) => record = extended.start + next.start,
            None => return Ok(found),
        }
    }
    notes.push(format!(
        "more than {MAX_LOGICAL} logical partitions; the rest was not read"
    ));
    Ok(found)
}
