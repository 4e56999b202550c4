//! What a physical volume says about itself: its label in one of the first four sectors, its header
//! behind it, and the metadata areas with the text of its volume group. Layouts: lvm2's
//! lib/label/label.h, lib/format_text/layout.h.

use super::LvmError;
use super::text::MAX_TEXT;
use crate::disk::ReadAt;
use crate::disk::bytes::{has, le32, le64};

const SECTOR: usize = 512;
const LABEL_SECTORS: usize = 4;
const LABEL: &[u8] = b"LABELONE";
const LVM2: &[u8] = b"LVM2 001";
const AREA_MAGIC: &[u8] = b" LVM2 x[5A%r0N*>";
/// A metadata area begins with a header of one sector; the text goes round in the rest.
const AREA_HEADER: u64 = 512;
/// `RAW_LOCN_IGNORED`: this copy is not kept up to date.
const IGNORED: u32 = 1;
/// LVM makes at most two.
const MAX_AREAS: usize = 4;

/// LVM's checksum: CRC-32 from a start of its own, not inverted at the end (lib/misc/crc.c).
pub(super) fn checksum(parts: &[&[u8]]) -> u32 {
    const ALGORITHM: crc::Algorithm<u32> = crc::Algorithm {
        init: 0xf597_a6cf_u32.reverse_bits(),
        xorout: 0,
        ..crc::CRC_32_ISO_HDLC
    };
    static CRC: crc::Crc<u32> = crc::Crc::<u32>::new(&ALGORITHM);
    let mut digest = CRC.digest();
    for part in parts {
        digest.update(part);
    }
    digest.finalize()
}

/// One physical volume's header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Header {
    /// Its UUID: 32 characters, without the dashes that people are shown.
    pub id: String,
    /// The texts of its metadata areas that are whole; none on a volume that belongs to no group,
    /// or keeps no copy.
    pub texts: Vec<String>,
    /// What is wrong with other copies, one sentence each.
    pub notes: Vec<String>,
}

/// Reads label, header and metadata areas.
pub(super) fn read(disk: &dyn ReadAt) -> Result<Header, LvmError> {
    let sector = label(disk)?;
    let at = le32(&sector, 20) as usize;
    let header = sector
        .get(at..)
        .filter(|header| at >= 32 && header.len() >= 40);
    let header = header.ok_or_else(|| LvmError::Corrupt("its label points nowhere".into()))?;
    let id = header
        .get(..32)
        .filter(|id| id.iter().all(u8::is_ascii_alphanumeric))
        .unwrap_or_default();
    if id.is_empty() {
        return Err(LvmError::Corrupt("its UUID is none".into()));
    }
    let mut read = Header {
        id: String::from_utf8_lossy(id).into_owned(),
        texts: Vec::new(),
        notes: Vec::new(),
    };
    for (number, (offset, length)) in areas(header).into_iter().enumerate() {
        match area(disk, offset, length) {
            Ok(text) => read.texts.extend(text),
            Err(LvmError::Io(error)) => return Err(LvmError::Io(error)),
            Err(error) => read.notes.push(format!(
                "its copy {} of the metadata cannot be used: {error}",
                number + 1
            )),
        }
    }
    Ok(read)
}

/// The sector with the label whose checksum is right.
fn label(disk: &dyn ReadAt) -> Result<Vec<u8>, LvmError> {
    let mut found = false;
    for number in 0..LABEL_SECTORS {
        let at = (number * SECTOR) as u64;
        if at + SECTOR as u64 > disk.len() {
            break;
        }
        let mut sector = vec![0; SECTOR];
        disk.read_exact_at(&mut sector, at)?;
        if !(has(&sector, 0, LABEL) && has(&sector, 24, LVM2)) {
            continue;
        }
        found = true;
        let is_whole = le32(&sector, 16) == checksum(&[sector.get(20..).unwrap_or_default()]);
        if is_whole && le64(&sector, 8) == number as u64 {
            return Ok(sector);
        }
    }
    Err(LvmError::Corrupt(
        if found {
            "the checksum of its label is wrong"
        } else {
            "it has no label"
        }
        .into(),
    ))
}

/// The second list of the header; the first names the data areas, whose place the text tells too.
/// Each ends with a zero entry.
fn areas(header: &[u8]) -> Vec<(u64, u64)> {
    let mut lists = 0;
    let mut areas = Vec::new();
    for entry in header.get(40..).unwrap_or_default().chunks_exact(16) {
        let (offset, length) = (le64(entry, 0), le64(entry, 8));
        if offset == 0 {
            lists += 1;
            if lists == 2 {
                break;
            }
        } else if lists == 1 && areas.len() < MAX_AREAS {
            areas.push((offset, length));
        }
    }
    areas
}

/// The committed text of one area; `None` where there is none or it is not kept.
fn area(disk: &dyn ReadAt, offset: u64, length: u64) -> Result<Option<String>, LvmError> {
    let corrupt = |reason: &str| LvmError::Corrupt(reason.into());
    if length <= AREA_HEADER
        || offset
            .checked_add(length)
            .is_none_or(|end| end > disk.len())
    {
        return Err(corrupt("it lies past the end"));
    }
    let mut header = vec![0; SECTOR];
    disk.read_exact_at(&mut header, offset)?;
    if !has(&header, 4, AREA_MAGIC) || le32(&header, 20) != 1 {
        return Err(corrupt("its header is none"));
    }
    if le32(&header, 0) != checksum(&[header.get(4..).unwrap_or_default()]) {
        return Err(corrupt("the checksum of its header is wrong"));
    }
    if le64(&header, 24) != offset || le64(&header, 32) != length {
        return Err(corrupt("its header belongs to another place"));
    }
    let (start, size, sum, flags) = (
        le64(&header, 40),
        le64(&header, 48),
        le32(&header, 56),
        le32(&header, 60),
    );
    if start == 0 || size == 0 || flags & IGNORED != 0 {
        return Ok(None);
    }
    if start < AREA_HEADER || start >= length || size > length - AREA_HEADER || size > MAX_TEXT {
        return Err(corrupt("its text lies past the end"));
    }
    let size = usize::try_from(size).map_err(|_| corrupt("its text is too long"))?;
    let mut text = vec![0; size];
    let before_wrap = usize::try_from(length - start)
        .unwrap_or(usize::MAX)
        .min(size);
    let (first, second) = text.split_at_mut(before_wrap);
    disk.read_exact_at(first, offset + start)?;
    disk.read_exact_at(second, offset + AREA_HEADER)?;
    if checksum(&[&text]) != sum {
        return Err(corrupt("the checksum of its text is wrong"));
    }
    String::from_utf8(text)
        .map(Some)
        .map_err(|_| corrupt("its text is not text"))
}
