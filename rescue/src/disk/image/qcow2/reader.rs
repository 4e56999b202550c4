//! The bytes of a qcow2 image: two levels of tables, clusters as they are, compressed, of zeros, or
//! left to the file below.

use std::io::{Error, ErrorKind, Read as _, Result};
use std::sync::Arc;

use super::super::ImageError;
use super::super::tables::Tables;
use super::header::{Compression, Header};
use crate::disk::ReadAt;

/// Bits 9 to 55 of an entry of either table.
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
const IS_COMPRESSED: u64 = 1 << 62;
const IS_ZERO: u64 = 1;
/// With extended entries each cluster has so many parts, each with a bit.
const SUBCLUSTERS: u64 = 32;

/// One image, on top of what is below it.
pub(super) struct Qcow2 {
    tables: Tables,
    header: Header,
    below: Option<Arc<dyn ReadAt>>,
}

/// Where some bytes are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// At this byte of the file.
    Here(u64),
    Zeros,
    /// In the file below, or zeros where there is none.
    Below,
    /// In a compressed cluster: its entry.
    Compressed(u64),
}

impl Qcow2 {
    pub fn new(
        file: Arc<dyn ReadAt>,
        header: Header,
        below: Option<Arc<dyn ReadAt>>,
    ) -> std::result::Result<Self, ImageError> {
        Ok(Self {
            tables: Tables::over(file),
            header,
            below,
        })
    }

    fn cluster(&self) -> u64 {
        1 << self.header.cluster_bits
    }

    /// Where the byte at `at` is, and how many bytes from there on are in the same place.
    fn find(&self, at: u64) -> Result<(Place, u64)> {
        let (bits, l2_bits) = (self.header.cluster_bits, self.header.l2_bits());
        let (number, within) = (at >> bits, at & (self.cluster() - 1));
        let rest = self.cluster() - within;
        let (first, second) = (number >> l2_bits, number & ((1 << l2_bits) - 1));
        let l1 = u64::from_be_bytes(self.tables.entry(self.header.l1_offset + first * 8)?);
        let table = self.aligned(l1 & OFFSET, "a table")?;
        if table == 0 {
            return Ok((Place::Below, rest));
        }
        let size = if self.header.extended { 16 } else { 8 };
        let past_end = || damaged(format!("a table is at byte {table}"));
        let entry_at = table.checked_add(second * size).ok_or_else(past_end)?;
        let entry = u64::from_be_bytes(self.tables.entry(entry_at)?);
        if entry & IS_COMPRESSED != 0 {
            return Ok((Place::Compressed(entry), rest));
        }
        let host = self.aligned(entry & OFFSET, "a cluster")?;
        if self.header.extended {
            let map = u64::from_be_bytes(self.tables.entry(entry_at + 8)?);
            return self.find_subcluster(host, map, within);
        }
        match (self.header.has_zero_flag && entry & IS_ZERO != 0, host) {
            (true, _) => Ok((Place::Zeros, rest)),
            (false, 0) => Ok((Place::Below, rest)),
            (false, host) => Ok((Place::Here(host + within), rest)),
        }
    }

    /// The low half of the map says which parts are here, the high half which are zeros.
    fn find_subcluster(&self, host: u64, map: u64, within: u64) -> Result<(Place, u64)> {
        let size = self.cluster() / SUBCLUSTERS;
        let part = within / size;
        let rest = size - within % size;
        let (is_here, is_zero) = (map >> part & 1 != 0, map >> (part + SUBCLUSTERS) & 1 != 0);
        match (is_here, is_zero, host) {
            (true, true, _) => Err(damaged(format!(
                "a part of the cluster at byte {host} is said to be zeros and not to be"
            ))),
            (true, false, 0) => Err(damaged(
                "a part of a cluster is said to be there, and the cluster is not".into(),
            )),
            (true, false, host) => Ok((Place::Here(host + within), rest)),
            (false, true, _) => Ok((Place::Zeros, rest)),
            (false, false, _) => Ok((Place::Below, rest)),
        }
    }

    fn aligned(&self, offset: u64, what: &str) -> Result<u64> {
        match offset.is_multiple_of(self.cluster()) {
            true => Ok(offset),
            false => Err(damaged(format!(
                "{what} is at byte {offset}, between two clusters"
            ))),
        }
    }

    fn read_here(&self, buffer: &mut [u8], host: u64) -> Result<()> {
        let file = self.tables.file();
        // The last cluster of a file may be cut short: what follows it is zeros, as QEMU has it.
        // One that begins behind the end was lost.
        let there = file.len().saturating_sub(host);
        if there == 0 {
            return Err(damaged(format!(
                "a cluster is at byte {host}, and the file ends before: it was cut off"
            )));
        }
        let there = usize::try_from(there)
            .unwrap_or(usize::MAX)
            .min(buffer.len());
        let (from_file, zeros) = buffer.split_at_mut(there);
        zeros.fill(0);
        file.read_exact_at(from_file, host)
    }

    fn read_below(&self, buffer: &mut [u8], at: u64) -> Result<()> {
        let Some(below) = &self.below else {
            buffer.fill(0);
            return Ok(());
        };
        // A disk may have grown since its base was made.
        let there = usize::try_from(below.len().saturating_sub(at))
            .unwrap_or(usize::MAX)
            .min(buffer.len());
        let (from_below, zeros) = buffer.split_at_mut(there);
        zeros.fill(0);
        if from_below.is_empty() {
            Ok(())
        } else {
            below.read_exact_at(from_below, at)
        }
    }

    /// A whole cluster, unpacked. The entry: offset in bytes, and the number of further sectors
    /// that it reaches into.
    fn unpack(&self, entry: u64) -> Result<Arc<[u8]>> {
        let size_shift = 62 - (self.header.cluster_bits - 8);
        let offset = entry & ((1 << size_shift) - 1);
        let sectors = (entry >> size_shift & ((1 << (self.header.cluster_bits - 8)) - 1)) + 1;
        let length = sectors * 512 - (offset & 511);
        self.tables.unpacked(entry, || {
            let file = self.tables.file();
            let there = file.len().checked_sub(offset).filter(|there| *there > 0);
            let there = there.ok_or_else(|| {
                damaged(format!(
                    "a compressed cluster is at byte {offset}, behind the end of the file"
                ))
            })?;
            let mut packed = vec![0; usize::try_from(length.min(there)).unwrap_or(0)];
            file.read_exact_at(&mut packed, offset)?;
            let cluster = usize::try_from(self.cluster()).unwrap_or(0);
            let unpacked = match self.header.compression {
                Compression::Deflate => inflate(&packed, cluster),
                Compression::Zstd => unpack_zstd(&packed, cluster),
            };
            unpacked.ok_or_else(|| {
                damaged(format!(
                    "the compressed cluster at byte {offset} cannot be unpacked"
                ))
            })
        })
    }
}

fn damaged(what: String) -> Error {
    Error::new(
        ErrorKind::InvalidData,
        format!("the qcow2 image is damaged: {what}"),
    )
}

/// What follows the packed bytes, up to the end of the sector, is not theirs.
fn inflate(packed: &[u8], length: usize) -> Option<Vec<u8>> {
    let mut unpacked = vec![0; length];
    let mut state = flate2::Decompress::new(false);
    // One call at most gives it all: a cluster that gives less is damaged.
    state
        .decompress(packed, &mut unpacked, flate2::FlushDecompress::Finish)
        .ok();
    (state.total_out() == length as u64).then_some(unpacked)
}

fn unpack_zstd(packed: &[u8], length: usize) -> Option<Vec<u8>> {
    let mut unpacked = vec![0; length];
    let mut decoder = zstd::stream::read::Decoder::with_buffer(packed)
        .ok()?
        .single_frame();
    // A frame may ask for a window larger than anything it can be used for here.
    decoder.window_log_max(27).ok()?;
    decoder.read_exact(&mut unpacked).ok()?;
    Some(unpacked)
}

impl ReadAt for Qcow2 {
    fn len(&self) -> u64 {
        self.header.length
    }
    fn sector_size(&self) -> u32 {
        512
    }
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> Result<()> {
        if offset
            .checked_add(buffer.len() as u64)
            .is_none_or(|end| end > self.len())
        {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        let (mut rest, mut at) = (buffer, offset);
        while !rest.is_empty() {
            let (place, mut run) = self.find(at)?;
            // Neighbours in the image are often neighbours in the file: one read for all of them.
            while run < rest.len() as u64 {
                let (next, more) = self.find(at + run)?;
                match (place, next) {
                    // What begins behind the end of the file is looked at by itself: it was lost.
                    (Place::Here(host), Place::Here(there))
                        if host.checked_add(run) == Some(there)
                            && there < self.tables.file().len() =>
                    {
                        run += more;
                    }
                    (Place::Below, Place::Below) | (Place::Zeros, Place::Zeros) => run += more,
                    _ => break,
                }
            }
            let (now, later) =
                rest.split_at_mut(usize::try_from(run).unwrap_or(usize::MAX).min(rest.len()));
            match place {
                Place::Here(host) => self.read_here(now, host)?,
                Place::Zeros => now.fill(0),
                Place::Below => self.read_below(now, at)?,
                Place::Compressed(entry) => {
                    let cluster = self.unpack(entry)?;
                    let within = usize::try_from(at & (self.cluster() - 1)).unwrap_or(0);
                    let bytes = cluster.get(within..within + now.len());
                    now.copy_from_slice(
                        bytes.ok_or_else(|| damaged("a compressed cluster is short".into()))?,
                    );
                }
            }
            at += now.len() as u64;
            rest = later;
        }
        Ok(())
    }
}
