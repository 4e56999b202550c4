//! How something is laid out over several runs of bytes: pure numbers, no I/O. The same layout is
//! read through in user space ([`Laid`]) and given to the kernel as a device-mapper table.

use std::io::{Error, ErrorKind};
use std::sync::Arc;

use super::ReadAt;

/// One area of a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Area {
    /// Which of the runs below, counted from 0.
    pub below: usize,
    /// First byte there.
    pub offset: u64,
}

/// One segment: `areas` take turns, `stripe` bytes each; a single area is linear.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Segment {
    /// First byte, seen from above.
    pub start: u64,
    /// Length in bytes.
    pub length: u64,
    /// Bytes of one turn.
    pub stripe: u64,
    /// Where the bytes are.
    pub areas: Vec<Area>,
}

/// Segments that together cover everything from 0 on, each byte once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// By start, without gaps.
    segments: Vec<Segment>,
    length: u64,
}

impl Layout {
    /// `segments` in any order, over runs of these `lengths`.
    ///
    /// # Errors
    /// Why they cannot be: half a sentence for people.
    pub fn new(mut segments: Vec<Segment>, lengths: &[u64]) -> Result<Self, &'static str> {
        segments.sort_by_key(|segment| segment.start);
        let mut length = 0_u64;
        for segment in &segments {
            if segment.start != length {
                return Err("its segments overlap or leave gaps");
            }
            let each = segment.length / (segment.areas.len() as u64).max(1);
            if segment.areas.is_empty()
                || segment.stripe == 0
                || each * segment.areas.len() as u64 != segment.length
            {
                return Err("one of its segments cannot be divided among its stripes");
            }
            // The last turn would reach past the others' ends.
            if segment.areas.len() > 1 && !each.is_multiple_of(segment.stripe) {
                return Err("one of its segments ends within a stripe");
            }
            for area in &segment.areas {
                let there = lengths.get(area.below).copied().unwrap_or(0);
                if area.offset.checked_add(each).is_none_or(|end| end > there) {
                    return Err(
                        "it reaches past the end of a physical volume; the disk may have been cut \
                         off",
                    );
                }
            }
            length = length
                .checked_add(segment.length)
                .ok_or("it is larger than any disk")?;
        }
        if length == 0 {
            Err("it is empty")
        } else {
            Ok(Self { segments, length })
        }
    }

    /// Length in bytes.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// By start, without gaps.
    pub fn segments(&self) -> &[Segment] {
        &self.segments
    }

    /// The runs below that are used, ascending.
    pub fn used(&self) -> Vec<usize> {
        let mut used: Vec<usize> = self
            .segments
            .iter()
            .flat_map(|segment| &segment.areas)
            .map(|area| area.below)
            .collect();
        used.sort_unstable();
        used.dedup();
        used
    }

    /// The same layout over the runs that it uses alone: their numbers before, and the layout with
    /// new numbers.
    pub fn compact(mut self) -> (Vec<usize>, Self) {
        let used = self.used();
        for area in self
            .segments
            .iter_mut()
            .flat_map(|segment| &mut segment.areas)
        {
            area.below = used.binary_search(&area.below).unwrap_or(0);
        }
        (used, self)
    }

    /// Where everything is if it is one run of bytes in one place.
    pub fn one_run(&self) -> Option<Area> {
        let first = *self.segments.first()?.areas.first()?;
        let mut next = first.offset;
        for segment in &self.segments {
            let [area] = segment.areas.as_slice() else {
                return None;
            };
            if area.below != first.below || area.offset != next {
                return None;
            }
            next = next.checked_add(segment.length)?;
        }
        Some(first)
    }

    /// The area that holds byte `at`, the byte there, and how many bytes follow there in one run.
    fn find(&self, at: u64) -> Option<(usize, u64, u64)> {
        let index = self
            .segments
            .partition_point(|segment| segment.start <= at)
            .checked_sub(1)?;
        let segment = self.segments.get(index)?;
        let within = at - segment.start;
        if let [only] = segment.areas.as_slice() {
            return Some((
                only.below,
                only.offset + within,
                segment.length.checked_sub(within)?,
            ));
        }
        let (turn, within) = (within / segment.stripe, within % segment.stripe);
        let count = segment.areas.len() as u64;
        let area = segment.areas.get(usize::try_from(turn % count).ok()?)?;
        Some((
            area.below,
            area.offset + turn / count * segment.stripe + within,
            segment.stripe - within,
        ))
    }
}

/// Runs of bytes read through a layout. Reading costs one search, no copy.
pub struct Laid {
    layout: Layout,
    below: Vec<Arc<dyn ReadAt>>,
    sector_size: u32,
}

impl Laid {
    /// `below` are the runs that the layout counts.
    pub fn new(layout: Layout, below: Vec<Arc<dyn ReadAt>>) -> Self {
        let used = layout.used();
        let sizes = used
            .iter()
            .filter_map(|index| below.get(*index))
            .map(|run| run.sector_size());
        let sector_size = sizes.max().unwrap_or(512);
        Self {
            layout,
            below,
            sector_size,
        }
    }
}

impl std::fmt::Debug for Laid {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Laid")
            .field("layout", &self.layout)
            .finish_non_exhaustive()
    }
}

impl ReadAt for Laid {
    fn len(&self) -> u64 {
        self.layout.length
    }
    fn sector_size(&self) -> u32 {
        self.sector_size
    }
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> std::io::Result<()> {
        let past_end = || Error::from(ErrorKind::UnexpectedEof);
        if offset
            .checked_add(buffer.len() as u64)
            .is_none_or(|end| end > self.layout.length)
        {
            return Err(past_end());
        }
        let (mut rest, mut at) = (buffer, offset);
        while !rest.is_empty() {
            let (below, from, run) = self
                .layout
                .find(at)
                .filter(|(_, _, run)| *run > 0)
                .ok_or_else(past_end)?;
            let length = usize::try_from(run).unwrap_or(usize::MAX).min(rest.len());
            let (now, later) = rest.split_at_mut(length);
            self.below
                .get(below)
                .ok_or_else(past_end)?
                .read_exact_at(now, from)?;
            at += length as u64;
            rest = later;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn linear(start: u64, length: u64, below: usize, offset: u64) -> Segment {
        Segment {
            start,
            length,
            stripe: 512,
            areas: vec![Area { below, offset }],
        }
    }

    #[test]
    fn only_what_lies_in_one_piece_is_one_run() {
        let layout = |segments| Layout::new(segments, &[10_000, 10_000]).unwrap();
        let run = layout(vec![linear(0, 1024, 1, 512), linear(1024, 512, 1, 1536)]);
        assert_eq!(
            run.one_run(),
            Some(Area {
                below: 1,
                offset: 512
            })
        );
        let (used, compact) = run.compact();
        assert_eq!(
            (used, compact.one_run()),
            (
                vec![1],
                Some(Area {
                    below: 0,
                    offset: 512
                })
            )
        );
        assert_eq!(
            layout(vec![linear(0, 1024, 0, 512), linear(1024, 512, 1, 1536)]).one_run(),
            None
        );
        assert_eq!(
            layout(vec![linear(0, 1024, 0, 512), linear(1024, 512, 0, 2048)]).one_run(),
            None
        );
        let areas = vec![
            Area {
                below: 0,
                offset: 0,
            },
            Area {
                below: 1,
                offset: 0,
            },
        ];
        assert_eq!(
            layout(vec![Segment {
                start: 0,
                length: 2048,
                stripe: 512,
                areas
            }])
            .one_run(),
            None
        );
    }

    #[test]
    fn what_cannot_be_is_refused() {
        for segments in [
            vec![],
            vec![linear(0, 0, 0, 0)],
            vec![linear(512, 512, 0, 0)],
            vec![linear(0, 1024, 0, 0), linear(512, 512, 0, 4096)],
            vec![linear(0, 1024, 0, 9_999)],
            vec![linear(0, 1024, 7, 0)],
            vec![linear(0, u64::MAX, 0, 1)],
            vec![Segment {
                start: 0,
                length: 1,
                stripe: 512,
                areas: Vec::new(),
            }],
            vec![Segment {
                start: 0,
                length: 1,
                stripe: 0,
                areas: vec![Area {
                    below: 0,
                    offset: 0,
                }],
            }],
        ] {
            assert!(
                Layout::new(segments.clone(), &[10_000]).is_err(),
                "{segments:?}"
            );
        }
    }
}
