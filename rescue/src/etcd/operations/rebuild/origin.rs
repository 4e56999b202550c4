//! Where a database comes from that a member is built from: a guest's file, an old copy of one, or
//! what `snapshot save` wrote.

use std::path::{Path, PathBuf};
use std::rc::Rc;

use anyhow::{Context as _, Result};
use aws_lc_rs::digest::{Context as Digest, SHA256};

use crate::change::folder::Sources;
use crate::etcd::format::file::File;
use crate::guest::{Guest, GuestPath};
use crate::tree::{FolderTree, TreeResult};

/// `snapshot save` appends a SHA-256 to the database, whose own length is a multiple of this.
const SECTOR: u64 = 512;
/// Bytes of that checksum.
pub const TRAILER_BYTES: u64 = 32;
const READ_AT_ONCE: usize = 1 << 20;

/// A database, named so that it can be opened again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// In a guest.
    Guest {
        /// Which guest.
        source: String,
        /// Where the file really is.
        path: GuestPath,
    },
    /// On the machine that rescue runs on.
    Local(PathBuf),
}

impl std::fmt::Display for Origin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Guest { source, path } => write!(f, "{path} of {source}"),
            Self::Local(path) => write!(f, "{}", path.display()),
        }
    }
}

impl Origin {
    /// A file of a guest.
    ///
    /// # Errors
    /// As the tree gives them.
    pub fn in_guest(guest: &Guest, path: &GuestPath) -> TreeResult<Self> {
        Ok(Self::Guest {
            source: guest.source.clone(),
            path: GuestPath::from(&guest.resolve(path)?),
        })
    }

    /// Opens it.
    ///
    /// # Errors
    /// What keeps it from being read, with its name.
    pub fn open(&self, sources: &Sources<'_>) -> Result<File> {
        match self {
            Self::Guest { source, path } => {
                File::open(sources.get(source)?, path).with_context(|| format!("opening {self}"))
            }
            Self::Local(path) => local(path).with_context(|| format!("opening {}", path.display())),
        }
    }
}

fn local(path: &Path) -> Result<File> {
    let path = std::fs::canonicalize(path)?;
    let (folder, name) = (
        path.parent().context("it is a folder")?,
        path.file_name().context("it is a folder")?,
    );
    let guest = Guest::new(
        folder.display().to_string(),
        Rc::new(FolderTree::open(folder)?),
        Vec::new(),
    );
    Ok(File::open(&guest, &GuestPath::new("/").join(name))?)
}

/// What follows a database in its file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trailer {
    /// Nothing: it is a member's own, or a copy of one.
    None,
    /// The checksum of `snapshot save`, which fits.
    Sound,
    /// That checksum does not fit.
    Wrong,
}

/// Looks for the checksum that `snapshot save` appends (etcdutl/snapshot/v3_snapshot.go: `saveDB`);
/// reads the file once where there is one.
///
/// # Errors
/// As the tree gives them.
pub fn trailer(file: &File) -> TreeResult<Trailer> {
    let Some(length) = file
        .size()
        .checked_sub(TRAILER_BYTES)
        .filter(|length| length % SECTOR == 0 && *length > 0)
    else {
        return Ok(Trailer::None);
    };
    let mut digest = Digest::new(&SHA256);
    let mut at = 0;
    while at < length {
        let wanted = usize::try_from(length - at)
            .unwrap_or(usize::MAX)
            .min(READ_AT_ONCE);
        let bytes = file.read_once(at, wanted)?;
        if bytes.is_empty() {
            return Ok(Trailer::Wrong);
        }
        digest.update(&bytes);
        at += bytes.len() as u64;
    }
    let there = file.read_once(length, TRAILER_BYTES as usize)?;
    Ok(if digest.finish().as_ref() == there {
        Trailer::Sound
    } else {
        Trailer::Wrong
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::MemoryTree;

    #[test]
    fn a_saved_snapshot_s_checksum_is_seen() {
        let bytes = vec![7; 4096];
        let sum = aws_lc_rs::digest::digest(&SHA256, &bytes);
        let saved = [&bytes, sum.as_ref()].concat();
        let mut damaged = saved.clone();
        damaged[100] ^= 1;
        for (bytes, seen) in [
            (&bytes, Trailer::None),
            (&saved, Trailer::Sound),
            (&damaged, Trailer::Wrong),
        ] {
            let guest = MemoryTree::new().file("/db", bytes).into_guest();
            let file = Origin::in_guest(&guest, &GuestPath::new("/db"))
                .unwrap()
                .open(&Sources::new([&guest]))
                .unwrap();
            assert_eq!(trailer(&file).unwrap(), seen);
        }
    }
}
