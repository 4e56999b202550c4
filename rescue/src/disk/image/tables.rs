//! Tables of an image, read piece by piece, and pieces that had to be unpacked: a bounded memory of
//! both. A crafted header may claim tables of any size; only what is looked at is ever read.

use std::collections::HashMap;
use std::io::{Error, ErrorKind, Result};
use std::sync::{Arc, Mutex, PoisonError};

use crate::disk::ReadAt;

/// Grain in bytes: 512 entries of a qcow2 table describe 32 MiB.
const PAGE: u64 = 4096;
/// Pages kept per image: 4 MiB.
const PAGES: usize = 1024;
/// Unpacked clusters kept per image; a qcow2 cluster has at most 2 MiB.
const UNPACKED: usize = 8;

fn past_end(at: u64) -> Error {
    Error::new(
        ErrorKind::InvalidData,
        format!("a table of the image reaches past the end of the file, to byte {at}"),
    )
}

/// A file whose tables are looked up.
pub(super) struct Tables {
    file: Arc<dyn ReadAt>,
    pages: Mutex<HashMap<u64, Arc<[u8]>>>,
    unpacked: Mutex<Vec<(u64, Arc<[u8]>)>>,
}

impl Tables {
    pub fn over(file: Arc<dyn ReadAt>) -> Self {
        Self {
            file,
            pages: Mutex::default(),
            unpacked: Mutex::default(),
        }
    }

    pub fn file(&self) -> &dyn ReadAt {
        self.file.as_ref()
    }

    /// The `N` bytes at `at`, which must not cross a multiple of [`PAGE`]: an entry of an aligned
    /// table never does.
    pub fn entry<const N: usize>(&self, at: u64) -> Result<[u8; N]> {
        let page = self.page(at / PAGE)?;
        let within = (at % PAGE) as usize;
        let bytes = page.get(within..within + N).ok_or_else(|| past_end(at))?;
        bytes.try_into().map_err(|_| past_end(at))
    }

    fn page(&self, number: u64) -> Result<Arc<[u8]>> {
        let mut pages = self.pages.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(page) = pages.get(&number) {
            return Ok(Arc::clone(page));
        }
        let start = number * PAGE;
        if start >= self.file.len() {
            return Err(past_end(start));
        }
        let mut bytes = vec![0; self.file.len().saturating_sub(start).min(PAGE) as usize];
        self.file.read_exact_at(&mut bytes, start)?;
        if pages.len() >= PAGES {
            pages.clear();
        }
        let page: Arc<[u8]> = bytes.into();
        pages.insert(number, Arc::clone(&page));
        Ok(page)
    }

    /// What `unpack` makes of the piece known as `key`, kept for the next few reads.
    pub fn unpacked(
        &self,
        key: u64,
        unpack: impl FnOnce() -> Result<Vec<u8>>,
    ) -> Result<Arc<[u8]>> {
        let mut kept = self.unpacked.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, bytes)) = kept.iter().find(|(there, _)| *there == key) {
            return Ok(Arc::clone(bytes));
        }
        let bytes: Arc<[u8]> = unpack()?.into();
        if kept.len() >= UNPACKED {
            kept.remove(0);
        }
        kept.push((key, Arc::clone(&bytes)));
        Ok(bytes)
    }
}
