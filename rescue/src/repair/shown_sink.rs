//! A sink that tells how much was written.

use std::io::{self, Seek, SeekFrom, Write};
use std::path::Path;

use anyhow::Result;

use crate::base::ui::Progress;
use crate::change::folder::{FolderSink, SinkFile};
use crate::guest::{Guest, GuestPath};

/// Around another sink.
pub struct ShownSink<'a> {
    below: &'a mut dyn FolderSink,
    progress: &'a dyn Progress,
}

impl std::fmt::Debug for ShownSink<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ShownSink").finish_non_exhaustive()
    }
}

impl<'a> ShownSink<'a> {
    /// `progress` counts bytes.
    pub fn new(below: &'a mut dyn FolderSink, progress: &'a dyn Progress) -> Self {
        Self { below, progress }
    }
}

impl FolderSink for ShownSink<'_> {
    fn folder(&mut self, path: &Path, mode: u32) -> Result<()> {
        self.below.folder(path, mode)
    }

    fn file(&mut self, path: &Path, mode: u32) -> Result<Box<dyn SinkFile + '_>> {
        let file = self.below.file(path, mode)?;
        Ok(Box::new(Shown {
            file,
            progress: self.progress,
        }))
    }

    fn copy(&mut self, path: &Path, from: &Guest, source: &GuestPath) -> Result<()> {
        self.below.copy(path, from, source)?;
        self.progress.advance(from.stat(source)?.size);
        Ok(())
    }
}

struct Shown<'a> {
    file: Box<dyn SinkFile + 'a>,
    progress: &'a dyn Progress,
}

impl Write for Shown<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(bytes)?;
        self.progress.advance(written as u64);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Seek for Shown<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.file.seek(to)
    }
}
