//! Has the kernel begin to write what was written to a large file, so that little is left to wait
//! for when it is synchronised.

use std::io::{self, Seek, SeekFrom, Write};
use std::os::fd::AsFd;

/// Bytes after which the disk is given its work.
const STEP: u64 = 8 << 20;

/// A file around another one. Only a hint is given: what counts is the synchronising later.
#[derive(Debug)]
pub struct Early<F> {
    file: F,
    at: u64,
    begun: u64,
}

impl<F: AsFd> Early<F> {
    /// `file` is at its beginning.
    pub fn new(file: F) -> Self {
        Self {
            file,
            at: 0,
            begun: 0,
        }
    }

    fn begin(&mut self) {
        crate::base::sys::begin_writing(self.file.as_fd(), self.begun, self.at - self.begun);
        self.begun = self.at;
    }
}

impl<F: AsFd + Write> Write for Early<F> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(bytes)?;
        self.at = self.at.saturating_add(written as u64);
        if self.at - self.begun >= STEP {
            self.begin();
        }
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl<F: AsFd + Seek> Seek for Early<F> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.begin();
        self.at = self.file.seek(to)?;
        self.begun = self.at;
        Ok(self.at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_there() {
        let file = tempfile::tempfile().unwrap();
        let mut early = Early::new(file.try_clone().unwrap());
        let piece: Vec<u8> = (0..3 << 20).map(|n: u32| n as u8).collect();
        (0..4).for_each(|_| early.write_all(&piece).unwrap());
        early.seek(SeekFrom::Start(1)).unwrap();
        early.write_all(b"changed").unwrap();
        let mut bytes = vec![0; 12 << 20];
        std::os::unix::fs::FileExt::read_exact_at(&file, &mut bytes, 0).unwrap();
        let mut expected = piece.repeat(4);
        expected[1..8].copy_from_slice(b"changed");
        assert!(bytes == expected && file.metadata().unwrap().len() == 12 << 20);
    }
}
