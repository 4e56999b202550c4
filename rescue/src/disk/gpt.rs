//! The GUID partition table (UEFI specification 2.10, chapter 5). The crate `gpt` checks a header;
//! its reader of entries panics on any size other than 128 bytes, believes any count, and never
//! turns to the backup when the primary *table* is bad, so entries are read here.

use std::io::{Error, ErrorKind, Read, Seek, SeekFrom};
use std::sync::Arc;

use ::gpt::disk::LogicalBlockSize;
use ::gpt::header;

use super::ReadAt;
use super::bytes::{has, le16, le32, le64};
use super::mbr::BootSector;
use super::partition::{Partition, PartitionKind, Slice, Table, TableError, note_overlaps};
use crate::base::escaping::escape;

/// First bytes of a header.
pub(super) const SIGNATURE: &[u8] = b"EFI PART";
/// Offset of the header's own sector number.
pub(super) const MY_LBA: usize = 24;
const ALTERNATE_LBA: usize = 32;
const TABLE_LBA: usize = 72;
const ENTRY_COUNT: usize = 80;
const ENTRY_SIZE: usize = 84;
const TABLE_CHECKSUM: usize = 88;
const HEADER_LENGTH: usize = 92;

/// An entry has at least so many bytes, and 128, 256, 512 … of them.
const LEAST_ENTRY: u32 = 128;
/// Bytes of a table at most: room for 32768 entries of the usual size. Tools make 16 KiB.
const MAX_TABLE: u64 = 4 << 20;
/// Partitions read at most; the kernel's own bound is 256 (`DISK_MAX_PARTS`).
const MAX_PARTITIONS: usize = 1024;

/// Types whose content is never a file system: BIOS boot, Microsoft reserved, PowerPC PReP.
const NO_FILE_SYSTEM: [&str; 3] = [
    "21686148-6449-6e6f-744e-656564454649",
    "e3c9e316-0b5c-4db8-817d-f92df00215ae",
    "9e1a2d38-c612-4316-aa26-8b49521e5a8b",
];
const UNUSED: &str = "00000000-0000-0000-0000-000000000000";
const EFI_SYSTEM: &str = "c12a7328-f81f-11d2-ba4b-00a0c93ec93b";

/// Reads the table of a disk whose first sector announces one; from the backup where the primary is
/// damaged.
pub fn read(disk: &Arc<dyn ReadAt>, boot_sector: &BootSector) -> Result<Table, TableError> {
    let primary = match read_at(disk, 1) {
        Ok(table) => return Ok(table),
        Err(error @ (TableError::Unsupported(_) | TableError::Io(_))) => return Err(error),
        Err(TableError::Damaged(reason)) => reason,
    };
    let mut damaged = format!("the primary GPT: {primary}");
    for (lba, place) in backups(disk, boot_sector)? {
        match read_at(disk, lba) {
            Ok(mut table) => {
                let note =
                    format!("the primary GPT is damaged ({primary}); the backup {place} was read");
                table.notes.insert(0, note);
                return Ok(table);
            }
            Err(TableError::Damaged(backup)) => {
                damaged.push_str(&format!("; the backup {place}: {backup}"))
            }
            Err(error) => return Err(error),
        }
    }
    if let Some(size) = other_sector_size(disk)? {
        damaged.push_str(&format!(
            "; it was written for sectors of {size} bytes, and here they have {}: attach the disk \
             with its own sector size (losetup --sector-size {size}), or name the image file \
             itself",
            disk.sector_size()
        ));
    }
    Err(TableError::Damaged(damaged))
}

/// Where a backup may be, in sectors: at the end, where it belongs; and on a disk that was
/// enlarged, where its end was, as the primary header or the protective MBR tells.
fn backups(
    disk: &Arc<dyn ReadAt>,
    boot_sector: &BootSector,
) -> Result<Vec<(u64, &'static str)>, TableError> {
    let sector_size = u64::from(disk.sector_size());
    let last = (disk.len() / sector_size).saturating_sub(1);
    let mut found = vec![(last, "at the end of the disk")];
    let mut primary = [0; HEADER_LENGTH];
    if disk.len() >= sector_size + HEADER_LENGTH as u64 {
        disk.read_exact_at(&mut primary, sector_size)?;
    }
    let named = has(&primary, 0, SIGNATURE).then(|| le64(&primary, ALTERNATE_LBA));
    for lba in named.into_iter().chain(boot_sector.protected_end()) {
        if lba > 1 && lba < last && !found.iter().any(|(there, _)| *there == lba) {
            found.push((lba, "where the disk ended before it was enlarged"));
        }
    }
    Ok(found)
}

/// The sector size for which there is a header on a disk of another.
fn other_sector_size(disk: &Arc<dyn ReadAt>) -> Result<Option<u64>, Error> {
    for size in [512, 4096] {
        let mut header = [0; HEADER_LENGTH];
        if size == u64::from(disk.sector_size()) || disk.len() < size + HEADER_LENGTH as u64 {
            continue;
        }
        disk.read_exact_at(&mut header, size)?;
        if has(&header, 0, SIGNATURE) && le64(&header, MY_LBA) == 1 {
            return Ok(Some(size));
        }
    }
    Ok(None)
}

/// A disk whose first sector was overwritten may still have its GPT. One that was formatted as a
/// whole afterwards may, too: there the file system counts, so this is asked only where nothing
/// else is recognised.
pub(super) fn read_without_boot_sector(disk: &Arc<dyn ReadAt>) -> Result<Table, TableError> {
    let empty = Table {
        partitions: Vec::new(),
        notes: Vec::new(),
    };
    if super::probe::probe(disk.as_ref())?.is_some() {
        return Ok(empty);
    }
    match read_at(disk, 1) {
        Ok(mut table) => {
            table.notes.push(
                "the protective MBR in the first sector is gone; the GPT behind it was read".into(),
            );
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
        .filter(|at| {
            at.checked_add(sector_size)
                .is_some_and(|end| end <= disk.len())
        });
    let offset = offset.ok_or_else(|| damaged("the disk is too small to hold it"))?;
    let mut raw = [0; HEADER_LENGTH];
    disk.read_exact_at(&mut raw, offset)?;
    check_header(&raw, lba)?;

    // The crate reads a header only from sector 1: show it the disk from one sector before ours.
    let window = Slice::new(Arc::clone(disk), offset - sector_size, 2 * sector_size)
        .ok_or_else(|| damaged("the disk is too small to hold it"))?;
    header::read_header_from_arbitrary_device(
        &mut Cursor {
            bytes: Arc::new(window),
            at: 0,
        },
        block_size,
    )
    .map_err(|error| damaged(&format!("its header does not check out ({error})")))?;
    let entries = entries(disk, &raw)?;

    let mut table = Table {
        partitions: Vec::new(),
        notes: Vec::new(),
    };
    for (number, entry) in (1..).zip(entries.chunks_exact(le32(&raw, ENTRY_SIZE) as usize)) {
        let kind = guid(entry, 0);
        if kind == UNUSED {
            continue;
        }
        if table.partitions.len() == MAX_PARTITIONS {
            table.notes.push(format!(
                "more than {MAX_PARTITIONS} partitions; the rest was not read"
            ));
            break;
        }
        // Both ends count (inclusive), in sectors.
        let (first, last) = (le64(entry, 32), le64(entry, 40));
        let bounds = last
            .checked_sub(first)
            .and_then(|length| length.checked_add(1))
            .and_then(|sectors| {
                Some((
                    first.checked_mul(sector_size)?,
                    sectors.checked_mul(sector_size)?,
                ))
                .filter(|_| first > lba.min(1))
            });
        let Some((offset, length)) = bounds else {
            table.notes.push(format!(
                "partition {number} has impossible bounds and was left out"
            ));
            continue;
        };
        table.partitions.push(Partition {
            number,
            offset,
            length,
            uuid: Some(guid(entry, 16)),
            label: Some(escape(&name(entry))).filter(|name| !name.is_empty()),
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

/// All entries, their checksum checked.
fn entries(disk: &Arc<dyn ReadAt>, header: &[u8]) -> Result<Vec<u8>, TableError> {
    let damaged = |reason: &str| TableError::Damaged(reason.into());
    let length = u64::from(le32(header, ENTRY_COUNT)) * u64::from(le32(header, ENTRY_SIZE));
    let offset = le64(header, TABLE_LBA).checked_mul(u64::from(disk.sector_size()));
    let offset = offset
        .filter(|at| at.checked_add(length).is_some_and(|end| end <= disk.len()))
        .ok_or_else(|| damaged("its table lies past the end of the disk"))?;
    let mut bytes =
        vec![0; usize::try_from(length).map_err(|_| damaged("its table is too large"))?];
    disk.read_exact_at(&mut bytes, offset)?;
    if crc::Crc::<u32>::new(&crc::CRC_32_ISO_HDLC).checksum(&bytes) != le32(header, TABLE_CHECKSUM)
    {
        return Err(damaged("the checksum of its table does not fit"));
    }
    Ok(bytes)
}

/// A GUID as text, lower case; its first three fields are little-endian.
fn guid(entry: &[u8], at: usize) -> String {
    let tail: String = (8..16)
        .map(|byte| format!("{:02x}", entry.get(at + byte).copied().unwrap_or(0)))
        .collect();
    let (middle, end) = tail.split_at(4);
    format!(
        "{:08x}-{:04x}-{:04x}-{middle}-{end}",
        le32(entry, at),
        le16(entry, at + 4),
        le16(entry, at + 6)
    )
}

/// The name: 36 characters of UTF-16 at most, up to the first that is zero.
fn name(entry: &[u8]) -> String {
    let units = (0..36)
        .map(|index| le16(entry, 56 + index * 2))
        .take_while(|unit| *unit != 0);
    char::decode_utf16(units)
        .map(|unit| unit.unwrap_or(char::REPLACEMENT_CHARACTER))
        .collect()
}

/// What the crate takes on trust.
fn check_header(raw: &[u8], lba: u64) -> Result<(), TableError> {
    if !has(raw, 0, SIGNATURE) {
        return Err(TableError::Damaged("its signature is missing".into()));
    }
    if le64(raw, MY_LBA) != lba {
        return Err(TableError::Damaged(format!(
            "its header says sector {}, but stands in {lba}",
            le64(raw, MY_LBA)
        )));
    }
    if le64(raw, TABLE_LBA) < 2 && lba == 1 {
        return Err(TableError::Damaged("its table overlaps the header".into()));
    }
    let (size, count) = (le32(raw, ENTRY_SIZE), le32(raw, ENTRY_COUNT));
    if size < LEAST_ENTRY || !size.is_power_of_two() {
        return Err(TableError::Unsupported(format!(
            "GPT entries of {size} bytes"
        )));
    }
    if u64::from(count) * u64::from(size) > MAX_TABLE {
        return Err(TableError::Unsupported(format!(
            "a GPT with room for {count} partitions"
        )));
    }
    Ok(())
}

/// `ReadAt` as the crate wants it.
struct Cursor {
    bytes: Arc<dyn ReadAt>,
    at: u64,
}

impl Read for Cursor {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let left = self.bytes.len().saturating_sub(self.at);
        let length = usize::try_from(left)
            .unwrap_or(usize::MAX)
            .min(buffer.len());
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
