//! The confined writer seen as a file tree: what a guest opened for writing holds now.

use std::path::{Path, PathBuf};

use rustix::fs::FileType;
use rustix::io::Errno;

use super::confined::{Confined, Place, names_in};
use super::xattrs;
use crate::guest::RealPath;
use crate::tree::{AccessList, DirEntry, FileKind, Meta, Tree, TreeError, TreeResult};

impl Tree for Confined {
    fn lstat(&self, path: &Path) -> TreeResult<Meta> {
        let stat = Self::lstat(self, &RealPath::new(path.to_path_buf()))
            .map_err(|error| tree_error(path, error))?
            .ok_or_else(|| TreeError::NotFound(path.to_path_buf()))?;
        Ok(Meta {
            kind: kind(stat.st_mode),
            mode: stat.st_mode & 0o7777,
            uid: stat.st_uid,
            gid: stat.st_gid,
            size: u64::try_from(stat.st_size).unwrap_or(0),
            mtime: stat.st_mtime,
            allocated: Some(
                u64::try_from(stat.st_blocks)
                    .unwrap_or(0)
                    .saturating_mul(512),
            ),
            nlink: Some(stat.st_nlink),
            ino: Some(stat.st_ino),
        })
    }

    fn access_list(&self, path: &Path) -> TreeResult<Option<AccessList>> {
        let place = place(self, path)?;
        match xattrs::access_list(&place) {
            Ok(Some(value)) => {
                AccessList::from_xattr(&value)
                    .map(Some)
                    .ok_or_else(|| TreeError::Corrupt {
                        path: path.to_path_buf(),
                        reason: "its access list is damaged".to_owned(),
                    })
            }
            Ok(None) => Ok(None),
            Err(errno) => Err(TreeError::Io {
                path: path.to_path_buf(),
                source: errno.into(),
            }),
        }
    }

    fn read_range(&self, path: &Path, offset: u64, length: usize) -> TreeResult<Vec<u8>> {
        use std::os::unix::fs::FileExt;
        let (file, size) = open(self, path)?;
        let left = usize::try_from(size.saturating_sub(offset)).unwrap_or(usize::MAX);
        let mut bytes = vec![0; length.min(left)];
        let mut done = 0;
        while let Some(rest) = bytes.get_mut(done..).filter(|rest| !rest.is_empty()) {
            match file
                .read_at(rest, offset + done as u64)
                .map_err(|error| tree_error(path, error))?
            {
                0 => break,
                read => done += read,
            }
        }
        bytes.truncate(done);
        Ok(bytes)
    }

    fn hold(&self, path: &Path) -> TreeResult<Option<std::fs::File>> {
        open(self, path).map(|(file, _)| Some(file))
    }

    fn read_dir(&self, path: &Path) -> TreeResult<Vec<DirEntry>> {
        let real = RealPath::new(path.to_path_buf());
        let folder =
            self.open_folder(&real)
                .map_err(|error| match Errno::from_io_error(&error) {
                    Some(Errno::NOTDIR | Errno::LOOP) => {
                        TreeError::NotADirectory(path.to_path_buf())
                    }
                    _ => tree_error(path, error),
                })?;
        let mut entries = Vec::new();
        for name in names_in(&folder).map_err(|error| tree_error(path, error))? {
            match rustix::fs::statat(&folder, &name, rustix::fs::AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) => entries.push(DirEntry {
                    name,
                    kind: kind(stat.st_mode),
                }),
                Err(Errno::NOENT) => {}
                Err(error) => return Err(tree_error(&path.join(&name), error.into())),
            }
        }
        Ok(entries)
    }

    fn read_link(&self, path: &Path) -> TreeResult<PathBuf> {
        if Tree::lstat(self, path)?.kind != FileKind::Symlink {
            return Err(TreeError::NotASymlink(path.to_path_buf()));
        }
        place(self, path)?
            .read_link()
            .map_err(|error| tree_error(path, std::io::Error::other(error)))
    }
}

fn place(confined: &Confined, path: &Path) -> TreeResult<Place> {
    confined
        .place(&RealPath::new(path.to_path_buf()))
        .map_err(|error| tree_error(path, error))
}

/// A regular file and its length.
fn open(confined: &Confined, path: &Path) -> TreeResult<(std::fs::File, u64)> {
    let meta = Tree::lstat(confined, path)?;
    if meta.kind != FileKind::Regular {
        return Err(TreeError::NotARegularFile(path.to_path_buf()));
    }
    let file = place(confined, path)?
        .open_file()
        .map_err(|error| tree_error(path, std::io::Error::other(error)))?;
    Ok((file.into(), meta.size))
}

fn tree_error(path: &Path, source: std::io::Error) -> TreeError {
    let path = path.to_path_buf();
    match Errno::from_io_error(&source) {
        Some(Errno::NOENT) => TreeError::NotFound(path),
        Some(Errno::NOTDIR) => TreeError::NotADirectory(path),
        Some(Errno::UCLEAN | Errno::BADMSG) => TreeError::Corrupt {
            path,
            reason: "the kernel found the file system damaged".to_owned(),
        },
        _ => TreeError::Io { path, source },
    }
}

fn kind(mode: u32) -> FileKind {
    match FileType::from_raw_mode(mode) {
        FileType::RegularFile => FileKind::Regular,
        FileType::Directory => FileKind::Directory,
        FileType::Symlink => FileKind::Symlink,
        _ => FileKind::Special,
    }
}
