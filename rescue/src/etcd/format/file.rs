//! A file of the guest read at any offset with bounded memory: several GiB are read through a cache
//! of a few MiB.

use std::cell::RefCell;
use std::collections::HashMap;
use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use crate::guest::{Guest, GuestPath, RealPath};
use crate::tree::{DirEntry, FileKind, Meta, Tree, TreeError, TreeResult};

/// Bytes fetched at once: pages of a database that are used together were mostly written together.
const CHUNK: u64 = 64 << 10;
/// 8 MiB in all.
const MAX_CHUNKS: usize = 128;
/// Chunks fetched together where the one before was read, too: whoever goes through a file from its
/// beginning goes on.
const AHEAD: u64 = 8;

/// One regular file, opened for reading at any place.
pub struct File {
    tree: Rc<dyn Tree>,
    path: RealPath,
    size: u64,
    chunks: RefCell<Chunks>,
}

impl std::fmt::Debug for File {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("File")
            .field("path", &self.path)
            .field("size", &self.size)
            .finish_non_exhaustive()
    }
}

/// A [`File`] held open.
#[derive(Debug)]
pub struct Held {
    file: fs::File,
    path: RealPath,
    size: u64,
}

impl Held {
    /// Fills `buffer` from `offset` on as far as the file goes. Gives the number of bytes.
    ///
    /// # Errors
    /// What the disk says.
    pub fn read(&self, offset: u64, buffer: &mut [u8]) -> TreeResult<usize> {
        let left = usize::try_from(self.size.saturating_sub(offset)).unwrap_or(usize::MAX);
        let wanted = buffer.len().min(left);
        let mut done = 0;
        while let Some(rest) = buffer.get_mut(done..wanted).filter(|rest| !rest.is_empty()) {
            match self.file.read_at(rest, offset.saturating_add(done as u64)) {
                Ok(0) => break,
                Ok(read) => done += read,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(TreeError::of_held(self.path.as_path(), error)),
            }
        }
        Ok(done)
    }
}

/// The only file of its tree: what another thread reads by itself.
impl Tree for Held {
    fn lstat(&self, path: &Path) -> TreeResult<Meta> {
        Err(TreeError::NotFound(path.to_path_buf()))
    }

    fn read_range(&self, _path: &Path, offset: u64, length: usize) -> TreeResult<Vec<u8>> {
        let left = usize::try_from(self.size.saturating_sub(offset)).unwrap_or(usize::MAX);
        let mut bytes = vec![0; length.min(left)];
        let read = self.read(offset, &mut bytes)?;
        bytes.truncate(read);
        Ok(bytes)
    }

    fn hold(&self, path: &Path) -> TreeResult<Option<fs::File>> {
        self.file
            .try_clone()
            .map(Some)
            .map_err(|error| TreeError::of_held(path, error))
    }

    fn read_dir(&self, path: &Path) -> TreeResult<Vec<DirEntry>> {
        Err(TreeError::NotADirectory(path.to_path_buf()))
    }

    fn read_link(&self, path: &Path) -> TreeResult<PathBuf> {
        Err(TreeError::NotASymlink(path.to_path_buf()))
    }
}

#[derive(Default)]
struct Chunks {
    by_number: HashMap<u64, (u64, Rc<Vec<u8>>)>,
    clock: u64,
}

impl File {
    /// The regular file that `path` leads to.
    ///
    /// # Errors
    /// As the tree gives them; [`TreeError::NotARegularFile`] for anything else.
    pub fn open(guest: &Guest, path: &GuestPath) -> TreeResult<Self> {
        let real = guest.resolve(path)?;
        let tree = guest.tree();
        let meta = tree.lstat(real.as_path())?;
        if meta.kind != FileKind::Regular {
            return Err(TreeError::NotARegularFile(real.as_path().to_path_buf()));
        }
        Ok(Self {
            tree,
            path: real,
            size: meta.size,
            chunks: RefCell::default(),
        })
    }

    /// What another thread held open.
    pub fn held(held: Held) -> Self {
        let (path, size) = (held.path.clone(), held.size);
        Self {
            tree: Rc::new(held),
            path,
            size,
            chunks: RefCell::default(),
        }
    }

    /// Length in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Up to `length` bytes from `offset`; short only at the end of the file. The caller bounds
    /// `length`.
    ///
    /// # Errors
    /// As the tree gives them.
    pub fn read(&self, offset: u64, length: usize) -> TreeResult<Vec<u8>> {
        let left = usize::try_from(self.size.saturating_sub(offset)).unwrap_or(usize::MAX);
        let length = length.min(left);
        let mut bytes = Vec::with_capacity(length);
        while bytes.len() < length {
            let at = offset.saturating_add(bytes.len() as u64);
            let chunk = self.chunk(at / CHUNK)?;
            let from = usize::try_from(at % CHUNK).unwrap_or(usize::MAX);
            let there = chunk.get(from..).unwrap_or_default();
            let there = there
                .get(..there.len().min(length - bytes.len()))
                .unwrap_or_default();
            if there.is_empty() {
                break;
            }
            bytes.extend_from_slice(there);
        }
        Ok(bytes)
    }

    /// Like [`File::read`], but past the cache: for reading once from beginning to end.
    ///
    /// # Errors
    /// As the tree gives them.
    pub fn read_once(&self, offset: u64, length: usize) -> TreeResult<Vec<u8>> {
        let left = usize::try_from(self.size.saturating_sub(offset)).unwrap_or(usize::MAX);
        match length.min(left) {
            0 => Ok(Vec::new()),
            length => self.tree.read_range(self.path.as_path(), offset, length),
        }
    }

    /// Holds it open past the tree, where that can be done: then another thread can read it, too.
    /// Whoever holds it keeps its file system in use.
    ///
    /// # Errors
    /// As the tree gives them.
    pub fn hold(&self) -> TreeResult<Option<Held>> {
        let held = self.tree.hold(self.path.as_path())?;
        Ok(held.map(|file| Held {
            file,
            path: self.path.clone(),
            size: self.size,
        }))
    }

    fn chunk(&self, number: u64) -> TreeResult<Rc<Vec<u8>>> {
        let mut chunks = self.chunks.borrow_mut();
        chunks.clock += 1;
        let now = chunks.clock;
        if let Some((used, chunk)) = chunks.by_number.get_mut(&number) {
            *used = now;
            return Ok(Rc::clone(chunk));
        }
        let before = number.checked_sub(1);
        let goes_on = before.is_some_and(|before| chunks.by_number.contains_key(&before));
        let wanted = if goes_on { AHEAD } else { 1 };
        let length = usize::try_from(wanted * CHUNK).unwrap_or(usize::MAX);
        let bytes =
            self.tree
                .read_range(self.path.as_path(), number.saturating_mul(CHUNK), length)?;
        if chunks.by_number.len() >= MAX_CHUNKS {
            // Dropping the older half at once keeps the look for the oldest rare.
            let mut ages: Vec<u64> = chunks.by_number.values().map(|(used, _)| *used).collect();
            ages.sort_unstable();
            let middle = ages.get(ages.len() / 2).copied().unwrap_or(now);
            chunks.by_number.retain(|_, (used, _)| *used > middle);
        }
        let (first, ahead) = bytes.split_at(bytes.len().min(CHUNK as usize));
        for (next, part) in (number + 1..).zip(ahead.chunks(CHUNK as usize)) {
            chunks
                .by_number
                .entry(next)
                .or_insert_with(|| (now, Rc::new(part.to_vec())));
        }
        let chunk = Rc::new(first.to_vec());
        chunks.by_number.insert(number, (now, Rc::clone(&chunk)));
        Ok(chunk)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::MemoryTree;

    #[test]
    fn reads_across_chunks_and_at_the_end() {
        let bytes: Vec<u8> = (0..300_000u32).map(|n| (n % 251) as u8).collect();
        let guest = MemoryTree::new().file("/db", &bytes).into_guest();
        let file = File::open(&guest, &GuestPath::new("/db")).unwrap();
        for (offset, length) in [
            (0, 10),
            (65_530, 20),
            (60_000, 200_000),
            (299_990, 100),
            (300_000, 5),
            (1 << 40, 5),
        ] {
            let from = usize::try_from(offset).unwrap().min(bytes.len());
            let expected = &bytes[from..(from + length).min(bytes.len())];
            assert_eq!(file.read(offset, length).unwrap(), expected);
            assert_eq!(file.read_once(offset, length).unwrap(), expected);
        }
    }
}
