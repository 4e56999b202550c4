//! A logical volume as a run of bytes: which piece of which physical volume each part is. Reading costs one search, no copy.

use std::io::{Error, ErrorKind};
use std::sync::Arc;

use super::LvmError;
use crate::disk::ReadAt;

/// One area of a segment: its bytes on a physical volume.
#[derive(Clone)]
pub(super) struct Area {
    pub disk: Arc<dyn ReadAt>,
    pub offset: u64,
}

/// One segment: `areas` take turns, `stripe` bytes each; a single area is linear.
pub(super) struct Segment {
    /// First byte in the logical volume.
    pub start: u64,
    pub length: u64,
    pub stripe: u64,
    pub areas: Vec<Area>,
}

/// A logical volume.
pub(super) struct LogicalVolume {
    /// By start, without gaps.
    segments: Vec<Segment>,
    length: u64,
    sector_size: u32,
}

impl LogicalVolume {
    /// `segments` in any order; together they cover everything from 0 on, each byte once.
    pub fn new(mut segments: Vec<Segment>) -> Result<Self, LvmError> {
        let corrupt = |reason: &str| Err(LvmError::Corrupt(reason.into()));
        segments.sort_by_key(|segment| segment.start);
        let (mut length, mut sector_size) = (0_u64, 512);
        for segment in &segments {
            if segment.start != length {
                return corrupt("its segments overlap or leave gaps");
            }
            let each = segment.length / (segment.areas.len() as u64).max(1);
            if segment.areas.is_empty() || segment.stripe == 0 || each * segment.areas.len() as u64 != segment.length {
                return corrupt("one of its segments cannot be divided among its stripes");
            }
            // The last turn would reach past the others' ends.
            if segment.areas.len() > 1 && !each.is_multiple_of(segment.stripe) {
                return corrupt("one of its segments ends within a stripe");
            }
            for area in &segment.areas {
                if area.offset.checked_add(each).is_none_or(|end| end > area.disk.len()) {
                    return corrupt("it reaches past the end of a physical volume; the disk may have been cut off");
                }
                sector_size = sector_size.max(area.disk.sector_size());
            }
            let Some(end) = length.checked_add(segment.length) else {
                return corrupt("it is larger than any disk");
            };
            length = end;
        }
        if length == 0 { corrupt("it is empty") } else { Ok(Self { segments, length, sector_size }) }
    }

    /// The area that holds byte `at`, where in it, and how many bytes follow there in one run.
    fn find(&self, at: u64) -> Option<(&Area, u64, u64)> {
        let index = self.segments.partition_point(|segment| segment.start <= at).checked_sub(1)?;
        let segment = self.segments.get(index)?;
        let within = at - segment.start;
        if let [only] = segment.areas.as_slice() {
            return Some((only, only.offset + within, segment.length.checked_sub(within)?));
        }
        let (turn, within) = (within / segment.stripe, within % segment.stripe);
        let count = segment.areas.len() as u64;
        let area = segment.areas.get(usize::try_from(turn % count).ok()?)?;
        Some((area, area.offset + turn / count * segment.stripe + within, segment.stripe - within))
    }
}

impl ReadAt for LogicalVolume {
    fn len(&self) -> u64 {
        self.length
    }
    fn sector_size(&self) -> u32 {
        self.sector_size
    }
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> std::io::Result<()> {
        let past_end = || Error::from(ErrorKind::UnexpectedEof);
        if offset.checked_add(buffer.len() as u64).is_none_or(|end| end > self.length) {
            return Err(past_end());
        }
        let (mut rest, mut at) = (buffer, offset);
        while !rest.is_empty() {
            let (area, from, run) = self.find(at).filter(|(_, _, run)| *run > 0).ok_or_else(past_end)?;
            let length = usize::try_from(run).unwrap_or(usize::MAX).min(rest.len());
            let (now, later) = rest.split_at_mut(length);
            area.disk.read_exact_at(now, from)?;
            at += length as u64;
            rest = later;
        }
        Ok(())
    }
}
