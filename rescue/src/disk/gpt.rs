//! The GUID partition table, read by the crate `gpt` behind our own look at the header: the crate panics on an entry size
//! other than 128, believes any entry count, and never turns to the backup when the primary *table* is bad.

use std::io::{Error, ErrorKind, Read, Seek, SeekFrom};
use std::sync::Arc;

use ::gpt::disk::LogicalBlockSize;
use ::gpt::{header, partition};

use super::ReadAt;
use super::bytes::{escape, has, le32, le64};
use super::partition::{Partition, PartitionKind, Slice, Table, TableError};

/// First bytes of a header.
pub(super) const SIGNATURE: &[u8] = b"EFI PART";
/// Offset of the header's own sector number.
pub(super) const MY_LBA: usize = 24;
const TABLE_LBA: usize = 72;
const ENTRY_COUNT: usize = 80;
const ENTRY_SIZE: usize = 84;
/// Entries read at most. Tools make 128; the kernel's own bound is far higher, but nobody numbers partitions up there.
const MAX_ENTRIES: u32 = 1024;

/// Types whose content is never a file system: BIOS boot, Microsoft reserved, PowerPC PReP.
const NO_FILE_SYSTEM: [&str; 3] = [
    "21686148-6449-6e6f-744e-656564454649",
    "e3c9e316-0b5c-4db8-817d-f92df00215ae",
    "9e1a2d38-c612-4316-aa26-8b49521e5a8b",
];
const EFI_SYSTEM: &str = "c12a7328-f81f-11d2-ba4b-00a0c93ec93b";

/// Reads the table of a disk whose first sector announces one; from the backup where the primary is damaged.
pub fn read(disk: &Arc<dyn ReadAt>) -> Result<Table, TableError> {
    let primary = match read_at(disk, 1) {
        Ok(table) => return Ok(table),
        Err(error @ (TableError::Unsupported(_) | TableError::Io(_))) => return Err(error),
        Err(TableError::Damaged(reason)) => reason,
    };
    let last = (disk.len() / u64::from(disk.sector_size())).saturating_sub(1);
    match read_at(disk, last) {
        Ok(mut table) => {
            table
                .notes
                .push(format!("the primary GPT is damaged ({primary}); the backup at the end of the disk was read"));
            Ok(table)
        }
        Err(TableError::Damaged(backup)) => {
            Err(TableError::Damaged(format!("the primary GPT: {primary}; the backup at the end of the disk: {backup}")))
        }
        Err(error) => Err(error),
    }
}

/// A disk whose first sector was overwritten may still have its GPT. One that was formatted as a whole afterwards may, too:
/// there the file system counts, so this is asked only where nothing else is recognised.
pub(super) fn read_without_boot_sector(disk: &Arc<dyn ReadAt>) -> Result<Table, TableError> {
    let empty = Table { partitions: Vec::new(), notes: Vec::new() };
    if super::probe::probe(disk.as_ref())?.is_some() {
        return Ok(empty);
    }
    match read_at(disk, 1) {
        Ok(mut table) => {
            table.notes.push("the protective MBR in the first sector is gone; the GPT behind it was read".into());
            Ok(table)
        }
        Err(TableError::Io(error)) => Err(error.into()),
        Err(_) => Ok(empty),
    }
}

/// Reads the header in sector `lba` and the table it points to.
fn read_at(disk: &Arc<dyn ReadAt>, lba: u64) -> Result<Table, TableError> {
    let damaged = |reason: &str| TableError::Damaged(reason.into());
    let sector_size = u64::from(disk.sector_size());
    let block_size = LogicalBlockSize::try_from(sector_size)?;
    let offset = lba
        .checked_mul(sector_size)
        .filter(|at| *at != 0)
        .filter(|at| at.checked_add(sector_size).is_some_and(|end| end <= disk.len()));
    let offset = offset.ok_or_else(|| damaged("the disk is too small to hold it"))?;
    let mut raw = [0; 92];
    disk.read_exact_at(&mut raw, offset)?;
    check_header(&raw, lba)?;

    // The crate reads a header only from sector 1: show it the disk from one sector before ours.
    let window = Slice::new(Arc::clone(disk), offset - sector_size, 2 * sector_size)
        .ok_or_else(|| damaged("the disk is too small to hold it"))?;
    let header = header::read_header_from_arbitrary_device(&mut Cursor { bytes: Arc::new(window), at: 0 }, block_size)
        .map_err(|error| damaged(&format!("its header does not check out ({error})")))?;
    let entries = partition::file_read_partitions(&mut Cursor { bytes: Arc::clone(disk), at: 0 }, &header, block_size)
        .map_err(|error| match error.kind() {
            ErrorKind::Other => damaged(&error.to_string()),
            ErrorKind::UnexpectedEof => damaged("its table lies past the end of the disk"),
            _ => TableError::Io(error),
        })?;

    let mut table = Table { partitions: Vec::new(), notes: Vec::new() };
    for (number, entry) in &entries {
        if !entry.is_used() {
            continue;
        }
        let (Ok(offset), Ok(length)) = (entry.bytes_start(block_size), entry.bytes_len(block_size)) else {
            table.notes.push(format!("partition {number} has impossible bounds and was left out"));
            continue;
        };
        let kind = entry.part_type_guid.guid.to_string().to_ascii_lowercase();
        table.partitions.push(Partition {
            number: *number,
            offset,
            length,
            uuid: Some(entry.part_guid.to_string().to_ascii_lowercase()),
            label: (!entry.name.is_empty()).then(|| escape(&entry.name)),
            kind: match kind.as_str() {
                EFI_SYSTEM => PartitionKind::EfiSystem,
                kind if NO_FILE_SYSTEM.contains(&kind) => PartitionKind::NoFileSystem,
                _ => PartitionKind::Other,
            },
        });
    }
    note_overlaps(&mut table);
    Ok(table)
}

/// What the crate takes on trust.
fn check_header(raw: &[u8], lba: u64) -> Result<(), TableError> {
    if !has(raw, 0, SIGNATURE) {
        return Err(TableError::Damaged("its signature is missing".into()));
    }
    if le64(raw, MY_LBA) != lba {
        return Err(TableError::Damaged(format!("its header says sector {}, but stands in {lba}", le64(raw, MY_LBA))));
    }
    if le64(raw, TABLE_LBA) < 2 && lba == 1 {
        return Err(TableError::Damaged("its table overlaps the header".into()));
    }
    let (size, count) = (le32(raw, ENTRY_SIZE), le32(raw, ENTRY_COUNT));
    if size != 128 {
        return Err(TableError::Unsupported(format!("GPT entries of {size} bytes")));
    }
    if count > MAX_ENTRIES {
        return Err(TableError::Unsupported(format!("a GPT with room for {count} partitions")));
    }
    Ok(())
}

fn note_overlaps(table: &mut Table) {
    let mut sorted: Vec<&Partition> = table.partitions.iter().collect();
    sorted.sort_by_key(|partition| partition.offset);
    let overlaps: Vec<String> = sorted
        .windows(2)
        .filter_map(|pair| match pair {
            [a, b] if a.offset.saturating_add(a.length) > b.offset => {
                Some(format!("partitions {} and {} overlap", a.number, b.number))
            }
            _ => None,
        })
        .collect();
    table.notes.extend(overlaps);
}

/// `ReadAt` as the crate wants it.
struct Cursor {
    bytes: Arc<dyn ReadAt>,
    at: u64,
}

impl Read for Cursor {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let left = self.bytes.len().saturating_sub(self.at);
        let length = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
        let Some(part) = buffer.get_mut(..length) else {
            return Ok(0);
        };
        self.bytes.read_exact_at(part, self.at)?;
        self.at += length as u64;
        Ok(length)
    }
}

impl Seek for Cursor {
    fn seek(&mut self, to: SeekFrom) -> std::io::Result<u64> {
        let target = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::End(by) => self.bytes.len().checked_add_signed(by),
            SeekFrom::Current(by) => self.at.checked_add_signed(by),
        };
        self.at = target.ok_or_else(|| Error::from(ErrorKind::InvalidInput))?;
        Ok(self.at)
    }
}
