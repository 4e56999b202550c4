//! Several runs of bytes one after the other.

use std::io::{Error, ErrorKind};
use std::sync::Arc;

use crate::disk::ReadAt;

/// A part: its bytes, or zeros.
#[derive(Clone)]
pub(super) enum Part {
    Bytes(Arc<dyn ReadAt>),
    Zeros(u64),
}

impl Part {
    fn len(&self) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes.len(),
            Self::Zeros(length) => *length,
        }
    }
}

/// The parts with their starts.
pub(super) struct Concat {
    parts: Vec<(u64, Part)>,
    length: u64,
}

impl Concat {
    /// `None` when together they are longer than any disk.
    pub fn new(parts: Vec<Part>) -> Option<Self> {
        let mut all = Self {
            parts: Vec::new(),
            length: 0,
        };
        for part in parts.into_iter().filter(|part| part.len() > 0) {
            let start = all.length;
            all.length = start.checked_add(part.len())?;
            all.parts.push((start, part));
        }
        Some(all)
    }
}

impl ReadAt for Concat {
    fn len(&self) -> u64 {
        self.length
    }
    fn sector_size(&self) -> u32 {
        512
    }
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> std::io::Result<()> {
        let past_end = || Error::from(ErrorKind::UnexpectedEof);
        if offset
            .checked_add(buffer.len() as u64)
            .is_none_or(|end| end > self.length)
        {
            return Err(past_end());
        }
        let (mut rest, mut at) = (buffer, offset);
        while !rest.is_empty() {
            let index = self
                .parts
                .partition_point(|(start, _)| *start <= at)
                .checked_sub(1)
                .ok_or_else(past_end)?;
            let (start, part) = self.parts.get(index).ok_or_else(past_end)?;
            let run = usize::try_from(part.len() - (at - start))
                .unwrap_or(usize::MAX)
                .min(rest.len());
            let (now, later) = rest.split_at_mut(run);
            match part {
                Part::Bytes(bytes) => bytes.read_exact_at(now, at - start)?,
                Part::Zeros(_) => now.fill(0),
            }
            at += run as u64;
            rest = later;
        }
        Ok(())
    }
}
