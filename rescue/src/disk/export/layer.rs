//! The throw-away copy-on-write layer: what the kernel writes stays in memory (and past its bound
//! in a file, where the user named one); the source keeps every byte.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::spill::Spill;
use crate::disk::ReadAt;

/// Grain of the layer in bytes: the usual block size of ext4 and XFS, so that most writes need no
/// read before.
pub(super) const BLOCK: usize = 4096;

/// What all layers of the process may hold together, in bytes: several dirty file systems of one
/// guest share one memory.
#[derive(Debug)]
pub(super) struct Budget {
    /// Of memory, in bytes.
    pub limit: u64,
    used: AtomicU64,
    /// Where what is beyond that goes.
    spill: Option<Arc<Spill>>,
}

impl Budget {
    pub fn new(limit: u64) -> Self {
        Self {
            limit,
            used: AtomicU64::new(0),
            spill: None,
        }
    }

    /// With a file for what is beyond the limit.
    pub fn spilling(limit: u64, spill: Option<Spill>) -> Self {
        Self {
            spill: spill.map(Arc::new),
            ..Self::new(limit)
        }
    }

    /// Whether there is such a file.
    pub fn spills(&self) -> bool {
        self.spill.is_some()
    }

    fn take(&self) -> bool {
        let take = |used: u64| {
            used.checked_add(BLOCK as u64)
                .filter(|used| *used <= self.limit)
        };
        self.used
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, take)
            .is_ok()
    }

    fn give_back_memory(&self, blocks: usize) {
        self.used
            .fetch_sub((blocks * BLOCK) as u64, Ordering::Relaxed);
    }
}

/// Where a written block is.
enum Kept {
    Memory(Box<[u8; BLOCK]>),
    /// Its slot in the file.
    File(u64),
}

/// A source with a layer on top.
pub(super) struct Layer {
    source: Arc<dyn ReadAt>,
    blocks: HashMap<u64, Kept>,
    budget: Arc<Budget>,
    overflowed: Arc<AtomicBool>,
}

impl Layer {
    /// An empty layer; `overflowed` tells others when the budget was too small.
    pub fn over(source: Arc<dyn ReadAt>, budget: Arc<Budget>, overflowed: Arc<AtomicBool>) -> Self {
        Self {
            source,
            blocks: HashMap::new(),
            budget,
            overflowed,
        }
    }

    /// Length in bytes.
    pub fn len(&self) -> u64 {
        self.source.len()
    }

    /// Up to `length` bytes from `offset`; fewer only at the end.
    pub fn read(&self, offset: u64, length: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; clamp(length, self.len().saturating_sub(offset))];
        let mut done = 0;
        while done < bytes.len() {
            let at = offset + done as u64;
            let run = self.run(at, bytes.len() - done);
            let target = &mut bytes[done..done + run];
            match self.blocks.get(&(at / BLOCK as u64)) {
                Some(Kept::Memory(block)) => {
                    target.copy_from_slice(&block[within(at)..within(at) + run])
                }
                Some(Kept::File(slot)) => self.spill()?.read(*slot, within(at), target)?,
                None => self.source.read_exact_at(target, at)?,
            }
            done += run;
        }
        Ok(bytes)
    }

    /// How many bytes from `at` can be served in one go: within one block of ours, or until the
    /// next block of ours.
    fn run(&self, at: u64, wanted: usize) -> usize {
        let first = at / BLOCK as u64;
        let mut run = (BLOCK - within(at)).min(wanted);
        if self.blocks.contains_key(&first) {
            return run;
        }
        let mut next = first + 1;
        while run < wanted && !self.blocks.contains_key(&next) {
            run = (run + BLOCK).min(wanted);
            next += 1;
        }
        run
    }

    fn spill(&self) -> io::Result<&Spill> {
        self.budget
            .spill
            .as_deref()
            .ok_or_else(|| io::ErrorKind::StorageFull.into())
    }

    /// Keeps `data`. Past the budget, and without a file for more or room in it, nothing more is
    /// taken (`StorageFull`).
    pub fn write(&mut self, offset: u64, data: &[u8]) -> io::Result<()> {
        if offset
            .checked_add(data.len() as u64)
            .is_none_or(|end| end > self.len())
        {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let mut done = 0;
        while done < data.len() {
            let at = offset + done as u64;
            let run = (BLOCK - within(at)).min(data.len() - done);
            let part = &data[done..done + run];
            let number = at / BLOCK as u64;
            if !self.blocks.contains_key(&number) {
                let block = self.block_below(number, run)?;
                self.keep(number, block)
                    .inspect_err(|_| self.overflowed.store(true, Ordering::Relaxed))?;
            }
            match self.blocks.get_mut(&number) {
                Some(Kept::Memory(block)) => {
                    block[within(at)..within(at) + run].copy_from_slice(part)
                }
                Some(Kept::File(slot)) => {
                    let slot = *slot;
                    self.spill()?.write(slot, within(at), part)?;
                }
                None => return Err(io::ErrorKind::StorageFull.into()),
            }
            done += run;
        }
        Ok(())
    }

    /// What is below the block; nothing of it is needed where all of it is written.
    fn block_below(&self, number: u64, bytes_written: usize) -> io::Result<Box<[u8; BLOCK]>> {
        let mut block = Box::new([0; BLOCK]);
        if bytes_written < BLOCK {
            let start = number * BLOCK as u64;
            let there = clamp(BLOCK, self.source.len().saturating_sub(start));
            self.source.read_exact_at(&mut block[..there], start)?;
        }
        Ok(block)
    }

    fn keep(&mut self, number: u64, block: Box<[u8; BLOCK]>) -> io::Result<()> {
        let kept = match (self.budget.take(), &self.budget.spill) {
            (true, _) => Kept::Memory(block),
            (false, Some(spill)) => Kept::File(spill.put(&block)?),
            (false, None) => return Err(io::ErrorKind::StorageFull.into()),
        };
        self.blocks.insert(number, kept);
        Ok(())
    }
}

impl Drop for Layer {
    fn drop(&mut self) {
        let in_file = |kept: &Kept| match kept {
            Kept::Memory(_) => None,
            Kept::File(slot) => Some(*slot),
        };
        let slots: Vec<u64> = self.blocks.values().filter_map(in_file).collect();
        self.budget
            .give_back_memory(self.blocks.len() - slots.len());
        if let Some(spill) = &self.budget.spill {
            spill.give_back(slots.into_iter());
        }
    }
}

fn within(at: u64) -> usize {
    (at % BLOCK as u64) as usize
}

fn clamp(length: usize, available: u64) -> usize {
    usize::try_from(available).map_or(length, |available| length.min(available))
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Bytes(Vec<u8>);

    impl ReadAt for Bytes {
        fn len(&self) -> u64 {
            self.0.len() as u64
        }
        fn sector_size(&self) -> u32 {
            512
        }
        fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
            let from = offset as usize;
            let there = self
                .0
                .get(from..from + buffer.len())
                .ok_or(io::ErrorKind::UnexpectedEof)?;
            buffer.copy_from_slice(there);
            Ok(())
        }
    }

    /// A length that is no multiple of the layer's block.
    const LENGTH: usize = 9 * BLOCK + 1536;

    fn layer(blocks: u64) -> (Layer, Vec<u8>) {
        layer_within(Budget::new(blocks * BLOCK as u64))
    }

    fn layer_within(budget: Budget) -> (Layer, Vec<u8>) {
        let bytes: Vec<u8> = (0..LENGTH).map(|at| (at * 7 / 5) as u8).collect();
        let budget = Arc::new(budget);
        (
            Layer::over(Arc::new(Bytes(bytes.clone())), budget, Arc::default()),
            bytes,
        )
    }

    #[test]
    fn behaves_like_a_plain_buffer() {
        like_a_plain_buffer(layer(99));
    }

    #[test]
    fn behaves_so_when_it_spills() {
        let folder = tempfile::tempdir().unwrap();
        let spill = Spill::create(&folder.path().join("spill")).unwrap();
        let budget = Arc::new(Budget::spilling(3 * BLOCK as u64, Some(spill)));
        for _ in 0..2 {
            let (mut layer, model) = layer(99);
            layer.budget = Arc::clone(&budget);
            like_a_plain_buffer((layer, model));
        }
        // The second used the first's slots.
        let length = budget.spill.as_ref().unwrap().length();
        assert!(length > 0 && length <= LENGTH as u64, "{length}");
    }

    fn like_a_plain_buffer((mut layer, mut model): (Layer, Vec<u8>)) {
        let mut seed = 1_u64;
        let mut random = |below: usize| {
            seed = seed
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (seed >> 33) as usize % below
        };
        for round in 0..2000 {
            let from = random(LENGTH);
            let length = random(3 * BLOCK).min(LENGTH - from);
            if round % 3 == 0 {
                let data: Vec<u8> = (0..length).map(|_| random(256) as u8).collect();
                layer.write(from as u64, &data).unwrap();
                model[from..from + length].copy_from_slice(&data);
            }
            assert_eq!(
                layer.read(from as u64, length).unwrap(),
                model[from..from + length],
                "{from}+{length}"
            );
        }
        assert_eq!(
            layer.read(0, LENGTH * 2).unwrap(),
            model,
            "short at the end"
        );
    }

    #[test]
    fn stops_at_its_bound_and_says_so() {
        let (mut layer, bytes) = layer(2);
        layer.write(0, &[1; BLOCK]).unwrap();
        layer.write(4 * BLOCK as u64, &[2; 10]).unwrap();
        layer.write(100, &[3; 10]).unwrap();
        assert!(!layer.overflowed.load(Ordering::Relaxed));
        let error = layer.write(6 * BLOCK as u64, &[4; 10]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        assert!(layer.overflowed.load(Ordering::Relaxed));
        assert_eq!(
            layer.read(6 * BLOCK as u64, 10).unwrap(),
            bytes[6 * BLOCK..6 * BLOCK + 10]
        );
    }

    #[test]
    fn a_dropped_layer_gives_its_budget_back() {
        let (mut one, _) = layer(2);
        one.write(0, &[1; 2 * BLOCK]).unwrap();
        let mut two = Layer::over(
            Arc::clone(&one.source),
            Arc::clone(&one.budget),
            Arc::default(),
        );
        assert!(two.write(0, &[1]).is_err());
        drop(one);
        two.write(0, &[1]).unwrap();
    }

    #[test]
    fn writes_past_the_end_are_refused() {
        let (mut layer, _) = layer(99);
        assert!(layer.write(LENGTH as u64 - 1, &[0; 2]).is_err());
        assert!(layer.write(u64::MAX, &[0; 2]).is_err());
        assert_eq!(layer.read(u64::MAX, 5).unwrap(), b"");
    }
}
