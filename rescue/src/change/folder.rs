//! A folder that is built anew by streams: what an etcd member becomes when it is rebuilt.

use std::fmt;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{Seek, Write};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::thread;

use anyhow::{Context as _, Result, ensure};

use crate::base::writeback::Early;
use crate::guest::{Guest, GuestPath};

/// Bytes that a copy holds in memory.
const COPIED_AT_ONCE: usize = 1 << 20;

/// A file that is being written, by any thread. Positions are those of the file.
pub trait SinkFile: Write + Seek + Send {}

impl<T: Write + Seek + Send> SinkFile for T {}

/// Takes what a [`BuildFolder`] makes. Paths are relative to the new folder and have no `..`;
/// parents are made first.
pub trait FolderSink {
    /// Makes a folder with these permission bits.
    ///
    /// # Errors
    /// What the disk says, with the path.
    fn folder(&mut self, path: &Path, mode: u32) -> Result<()>;

    /// Makes a file with these permission bits; it is synchronised before the whole folder is used.
    ///
    /// # Errors
    /// What the disk says, with the path.
    fn file(&mut self, path: &Path, mode: u32) -> Result<Box<dyn SinkFile + '_>>;

    /// Copies a file of a guest, this one or another, shared by the file system where it can
    /// (reflink). Never a hard link: etcd writes its database in place, and the original is the
    /// backup.
    ///
    /// # Errors
    /// What either disk says, with the path.
    fn copy(&mut self, path: &Path, from: &Guest, source: &GuestPath) -> Result<()>;
}

/// The guests that a folder is built from. A recipe names them and never keeps one: before a disk
/// is written to, all that was opened of it for reading is closed, and the recipe then reads
/// through what is open for writing.
#[derive(Debug, Clone, Default)]
pub struct Sources<'a>(Vec<&'a Guest>);

impl<'a> Sources<'a> {
    /// These guests, each known by its [`Guest::source`].
    pub fn new(guests: impl IntoIterator<Item = &'a Guest>) -> Self {
        Self(guests.into_iter().collect())
    }

    /// The guest that came from `source`.
    ///
    /// # Errors
    /// Where it is not among those that are open.
    pub fn get(&self, source: &str) -> Result<&'a Guest> {
        let guest = self.0.iter().find(|guest| guest.source == source);
        guest
            .copied()
            .with_context(|| format!("{source} is needed and not open"))
    }
}

/// Makes the contents of a folder: a recipe, which is planned, shown and then carried out. It must
/// give the same every time. Paths in guests are to be those where the files really are (a
/// [`crate::guest::RealPath`]): a guest that is open for writing knows no bind mounts.
pub trait BuildFolder: fmt::Debug {
    /// Writes everything into `sink`, the top folder itself apart. Nothing buffers between it and
    /// the disk.
    ///
    /// # Errors
    /// What cannot be read or written.
    fn build(&self, sources: &Sources<'_>, sink: &mut dyn FolderSink) -> Result<()>;

    /// Bytes that it takes at most, for the check of free space.
    fn bytes(&self) -> u64;

    /// Reads back what was built, which is `folder` in `guest`; called before anything is
    /// committed. This is the proof of the plan: a planned tree cannot show gigabytes that nobody
    /// has written yet.
    ///
    /// # Errors
    /// What is wrong with it. Then nothing is changed.
    fn verify(&self, guest: &Guest, folder: &GuestPath) -> Result<()>;
}

/// Builds into a folder of the machine that rescue runs on: `--output DIR`.
#[derive(Debug)]
pub struct DirectorySink {
    top: PathBuf,
}

impl DirectorySink {
    /// Makes `top`, which must not be there yet; its parent must.
    ///
    /// # Errors
    /// What the system says, with the path.
    pub fn create(top: &Path) -> Result<Self> {
        make_folder(top, 0o700)?;
        Ok(Self {
            top: top.to_owned(),
        })
    }

    /// Synchronises everything that was written.
    ///
    /// # Errors
    /// What the system says.
    pub fn finish(self) -> Result<()> {
        let top =
            File::open(&self.top).with_context(|| format!("opening {}", self.top.display()))?;
        rustix::fs::syncfs(&top).with_context(|| format!("synchronising {}", self.top.display()))
    }

    /// Does `meanwhile` while the disk writes, and gives what it gives.
    ///
    /// # Errors
    /// What the system says.
    pub fn finish_beside<T>(self, meanwhile: impl FnOnce() -> T) -> Result<T> {
        thread::scope(|scope| {
            let finishing = thread::Builder::new()
                .name("synchronising".to_owned())
                .spawn_scoped(scope, || self.finish());
            let done = meanwhile();
            match finishing.context("starting a thread")?.join() {
                Ok(finished) => finished.map(|()| done),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    }
}

fn make_folder(path: &Path, mode: u32) -> Result<()> {
    DirBuilder::new()
        .mode(mode)
        .create(path)
        .with_context(|| format!("making {}", path.display()))
}

impl FolderSink for DirectorySink {
    fn folder(&mut self, path: &Path, mode: u32) -> Result<()> {
        make_folder(&self.top.join(path), mode)
    }

    fn file(&mut self, path: &Path, mode: u32) -> Result<Box<dyn SinkFile + '_>> {
        let path = self.top.join(path);
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(mode)
            .open(&path);
        Ok(Box::new(Early::new(
            file.with_context(|| format!("making {}", path.display()))?,
        )))
    }

    fn copy(&mut self, path: &Path, from: &Guest, source: &GuestPath) -> Result<()> {
        let reading = || format!("reading {source} in the guest");
        let real = from.resolve(source).with_context(reading)?;
        let tree = from.tree();
        let meta = tree.lstat(real.as_path()).with_context(reading)?;
        let mut file = self.file(path, meta.mode & 0o7777)?;
        let mut at = 0;
        while at < meta.size {
            let bytes = tree
                .read_range(real.as_path(), at, COPIED_AT_ONCE)
                .with_context(reading)?;
            ensure!(
                !bytes.is_empty(),
                "{source} in the guest ended at {at} of {} bytes",
                meta.size
            );
            file.write_all(&bytes)
                .with_context(|| format!("writing {}", path.display()))?;
            at += bytes.len() as u64;
        }
        Ok(())
    }
}
