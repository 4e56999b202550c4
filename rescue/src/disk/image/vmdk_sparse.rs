//! A sparse extent of a VMware disk: grains found through a directory and tables; in a stream each
//! grain is compressed. All numbers are little endian, and count sectors of 512 bytes.

use std::io::{Error, ErrorKind, Result};
use std::sync::Arc;

use super::ImageError;
use super::tables::Tables;
use crate::disk::ReadAt;
use crate::disk::bytes::{le16, le32, le64};

/// First bytes of an extent.
pub(super) const MAGIC: &[u8] = b"KDMV";

const SECTOR: u64 = 512;
/// The directory is where the footer says, at the end of the stream.
const AT_END: u64 = u64::MAX;
/// Flags.
const ZERO_GRAINS: u32 = 1 << 2;
const COMPRESSED: u32 = 1 << 16;
const MARKERS: u32 = 1 << 17;
/// By the specification a table has 512 entries; QEMU reads no others.
const ENTRIES: u64 = 512;
/// VMware's grains have 64 KiB; so many sectors are the most that is read, 2 MiB.
const MAX_GRAIN: u64 = 4096;
/// The text inside an extent.
const MAX_DESCRIPTOR: u64 = 64 << 10;

/// One extent.
pub(super) struct Sparse {
    tables: Tables,
    /// Length in bytes.
    length: u64,
    /// Bytes in a grain.
    grain: u64,
    /// Byte where the directory is.
    directory: u64,
    has_zero_grains: bool,
    compressed: bool,
}

impl Sparse {
    /// Reads the header; gives the text in it as well, where there is one.
    pub fn open(file: Arc<dyn ReadAt>) -> std::result::Result<(Self, Option<Vec<u8>>), ImageError> {
        let mut header = header_at(file.as_ref(), 0)?;
        let text = descriptor(file.as_ref(), &header)?;
        if le64(&header, 56) == AT_END {
            // Behind the footer there is one more sector, the end of the stream.
            let at = file
                .len()
                .checked_sub(2 * SECTOR)
                .ok_or_else(|| ImageError::corrupt("it was cut off"))?;
            header = header_at(file.as_ref(), at)
                .map_err(|_| ImageError::corrupt("its footer is missing: it was cut off"))?;
        }
        let (flags, capacity, grain) = (le32(&header, 8), le64(&header, 12), le64(&header, 20));
        let corrupt = |what: String| Err(ImageError::Corrupt(what));
        if !grain.is_power_of_two() || grain > MAX_GRAIN {
            return corrupt(format!("a grain of {grain} sectors"));
        }
        if u64::from(le32(&header, 44)) != ENTRIES {
            return corrupt(format!("tables of {} entries", le32(&header, 44)));
        }
        let compressed = flags & COMPRESSED != 0;
        if compressed && (flags & MARKERS == 0 || le16(&header, 77) != 1) {
            return Err(ImageError::Unsupported(
                "it is compressed in an unknown way".into(),
            ));
        }
        let Some(length) = capacity
            .checked_mul(SECTOR)
            .filter(|length| *length > 0 && *length <= i64::MAX.cast_unsigned())
        else {
            return corrupt(format!("a disk of {capacity} sectors"));
        };
        let directory = le64(&header, 56).saturating_mul(SECTOR);
        let tables = capacity.div_ceil(grain * ENTRIES);
        if directory == 0
            || directory
                .checked_add(tables * 4)
                .is_none_or(|end| end > file.len())
        {
            return corrupt(format!(
                "its directory is at byte {directory} of a file of {} bytes: it was cut off",
                file.len()
            ));
        }
        let sparse = Self {
            tables: Tables::over(file),
            length,
            grain: grain * SECTOR,
            directory,
            has_zero_grains: flags & ZERO_GRAINS != 0,
            compressed,
        };
        Ok((sparse, text))
    }

    /// Whether it is a stream, which is never changed once it is written.
    pub fn is_compressed(&self) -> bool {
        self.compressed
    }

    /// Sector of the grain that holds the byte at `at`; `None`: zeros.
    fn find(&self, at: u64) -> Result<Option<u64>> {
        let number = at / self.grain;
        let table = u32::from_le_bytes(self.tables.entry(self.directory + number / ENTRIES * 4)?);
        if table == 0 {
            return Ok(None);
        }
        let entry_at = u64::from(table) * SECTOR + number % ENTRIES * 4;
        match u32::from_le_bytes(self.tables.entry(entry_at)?) {
            0 => Ok(None),
            1 if self.has_zero_grains => Ok(None),
            sector => Ok(Some(sector.into())),
        }
    }

    fn read_grain(&self, buffer: &mut [u8], sector: u64, within: u64) -> Result<()> {
        let start = sector * SECTOR;
        let file = self.tables.file();
        if start >= file.len() {
            return Err(damaged(format!(
                "a grain is at byte {start}, and the file ends before: it was cut off"
            )));
        }
        if self.compressed {
            let grain = self.tables.unpacked(sector, || self.unpack(start))?;
            let from = usize::try_from(within).unwrap_or(usize::MAX);
            // The last grain may be short.
            let there = grain.get(from..).unwrap_or_default();
            let count = there.len().min(buffer.len());
            let (now, zeros) = buffer.split_at_mut(count);
            now.copy_from_slice(&there[..count]);
            zeros.fill(0);
            return Ok(());
        }
        let at = start + within;
        let there = usize::try_from(file.len().saturating_sub(at))
            .unwrap_or(usize::MAX)
            .min(buffer.len());
        let (now, zeros) = buffer.split_at_mut(there);
        zeros.fill(0);
        if now.is_empty() {
            Ok(())
        } else {
            file.read_exact_at(now, at)
        }
    }

    /// A marker (sector of the disk, bytes that follow), then zlib's bytes.
    fn unpack(&self, start: u64) -> Result<Vec<u8>> {
        let file = self.tables.file();
        let mut marker = [0; 12];
        file.read_exact_at(&mut marker, start)?;
        let size = u64::from(le32(&marker, 8));
        // Deflate makes nothing much larger than it was.
        let end = start.checked_add(12 + size);
        if size == 0
            || size > self.grain + (self.grain >> 4) + 1024
            || end.is_none_or(|end| end > file.len())
        {
            return Err(damaged(format!(
                "a compressed grain at byte {start} of {size} bytes: it may have been cut off"
            )));
        }
        let mut packed = vec![0; usize::try_from(size).unwrap_or(0)];
        file.read_exact_at(&mut packed, start + 12)?;
        let mut unpacked = vec![0; usize::try_from(self.grain).unwrap_or(0)];
        let mut state = flate2::Decompress::new(true);
        let done = state.decompress(&packed, &mut unpacked, flate2::FlushDecompress::Finish);
        match done {
            Ok(flate2::Status::StreamEnd) => {
                unpacked.truncate(usize::try_from(state.total_out()).unwrap_or(0));
                Ok(unpacked)
            }
            _ => Err(damaged(format!(
                "the compressed grain at byte {start} cannot be unpacked"
            ))),
        }
    }
}

fn damaged(what: String) -> Error {
    Error::new(
        ErrorKind::InvalidData,
        format!("the VMDK image is damaged: {what}"),
    )
}

fn header_at(file: &dyn ReadAt, at: u64) -> std::result::Result<[u8; 512], ImageError> {
    let mut header = [0; 512];
    if file.read_exact_at(&mut header, at).is_err() || !header.starts_with(MAGIC) {
        return Err(ImageError::corrupt("it has no header"));
    }
    let version = le32(&header, 4);
    if !(1..=3).contains(&version) {
        return Err(ImageError::Unsupported(format!(
            "it is of version {version}"
        )));
    }
    // These show a copy that was made as text.
    if header.get(73..77) != Some(b"\n \r\n") {
        return Err(ImageError::corrupt(
            "line ends in it were changed while it was copied; copy it again as binary",
        ));
    }
    Ok(header)
}

fn descriptor(
    file: &dyn ReadAt,
    header: &[u8],
) -> std::result::Result<Option<Vec<u8>>, ImageError> {
    let (at, length) = (le64(header, 28), le64(header, 36));
    if at == 0 || length == 0 {
        return Ok(None);
    }
    let (Some(start), Some(length)) = (at.checked_mul(SECTOR), length.checked_mul(SECTOR)) else {
        return Err(ImageError::corrupt("its descriptor is nowhere"));
    };
    let length = length.min(MAX_DESCRIPTOR);
    if start.checked_add(length).is_none_or(|end| end > file.len()) {
        return Err(ImageError::corrupt(
            "its descriptor reaches past the end of the file",
        ));
    }
    let mut text = vec![0; usize::try_from(length).unwrap_or(0)];
    file.read_exact_at(&mut text, start)?;
    Ok(Some(text))
}

impl ReadAt for Sparse {
    fn len(&self) -> u64 {
        self.length
    }
    fn sector_size(&self) -> u32 {
        512
    }
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> Result<()> {
        if offset
            .checked_add(buffer.len() as u64)
            .is_none_or(|end| end > self.length)
        {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        let (mut rest, mut at) = (buffer, offset);
        while !rest.is_empty() {
            let within = at % self.grain;
            let run = usize::try_from(self.grain - within)
                .unwrap_or(usize::MAX)
                .min(rest.len());
            let (now, later) = rest.split_at_mut(run);
            match self.find(at)? {
                None => now.fill(0),
                Some(sector) => self.read_grain(now, sector, within)?,
            }
            at += run as u64;
            rest = later;
        }
        Ok(())
    }
}
