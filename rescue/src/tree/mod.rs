//! What every file tree can do, wherever its bytes come from.

mod access_list;
mod folder;
mod memory;

pub use access_list::{ACCESS, AccessList, DEFAULT, Named};
pub use folder::FolderTree;
pub use memory::MemoryTree;

use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// The kinds of file a tree can hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileKind {
    /// A regular file.
    Regular,
    /// A folder.
    Directory,
    /// A symbolic link.
    Symlink,
    /// A device node, FIFO or socket: never opened.
    Special,
}

/// Attributes of one file, as `lstat` gives them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Meta {
    /// What it is.
    pub kind: FileKind,
    /// Permission bits (`07777`).
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Apparent size in bytes.
    pub size: u64,
    /// Modification time, seconds since 1970.
    pub mtime: i64,
    /// Bytes really allocated (`st_blocks * 512`); `None` for files that exist only in a plan.
    pub allocated: Option<u64>,
    /// Number of hard links; `None` for files that exist only in a plan.
    pub nlink: Option<u64>,
    /// Inode number within its file system; `None` for files that exist only in a plan.
    pub ino: Option<u64>,
}

/// One name in a folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirEntry {
    /// The name, never `.` or `..`.
    pub name: OsString,
    /// What the name points to.
    pub kind: FileKind,
}

/// Why a tree could not answer. "Not there", "broken" and "not readable" are different news for the
/// user.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TreeError {
    /// Nothing of that name.
    #[error("{} does not exist in the guest", GuestDisplay(.0))]
    NotFound(PathBuf),
    /// A component that should be a folder is something else.
    #[error("{} is not a folder in the guest", GuestDisplay(.0))]
    NotADirectory(PathBuf),
    /// A regular file was wanted.
    #[error("{} is not a regular file in the guest", GuestDisplay(.0))]
    NotARegularFile(PathBuf),
    /// A regular file was wanted, and an empty folder has its name: a container runtime makes one
    /// where a file that it is to mount is missing.
    #[error("{} is an empty folder in the guest, and a file belongs there", GuestDisplay(.0))]
    EmptyFolder(PathBuf),
    /// A regular file was wanted, and a folder has its name.
    #[error(
        "{} is a folder in the guest, and a file belongs there (in it: {entries})",
        GuestDisplay(.path)
    )]
    FolderInPlace {
        /// The folder.
        path: PathBuf,
        /// The first names in it.
        entries: String,
    },
    /// A symbolic link was wanted.
    #[error("{} is not a symbolic link in the guest", GuestDisplay(.0))]
    NotASymlink(PathBuf),
    /// Too many symbolic links.
    #[error("{} passes through too many symbolic links", GuestDisplay(.0))]
    Loop(PathBuf),
    /// Larger than the caller allows.
    #[error("{} is {size} bytes, more than the {limit} that are read whole", GuestDisplay(.path))]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Its size.
        size: u64,
        /// The limit.
        limit: u64,
    },
    /// The file system is damaged here.
    #[error("{} cannot be read: the file system is damaged: {reason}", GuestDisplay(.path))]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What was wrong.
        reason: String,
    },
    /// A feature that this program does not read.
    #[error("{} cannot be read: {reason}", GuestDisplay(.path))]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// What it is.
        reason: String,
    },
    /// The disk or the kernel failed.
    #[error("reading {} in the guest", GuestDisplay(.path))]
    Io {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
}

impl TreeError {
    /// Whether the file is simply not there; an empty folder of its name gives way to it.
    pub fn is_not_found(&self) -> bool {
        matches!(
            self,
            Self::NotFound(_) | Self::NotADirectory(_) | Self::EmptyFolder(_)
        )
    }

    /// What reading a file that is [held](Tree::hold) gives.
    pub fn of_held(path: &Path, error: std::io::Error) -> Self {
        folder::explain_io(path, error)
    }

    /// The same error of a tree that is mounted at `mount_point`: its paths become the guest's.
    pub(super) fn below(mut self, mount_point: &Path) -> Self {
        let (Self::NotFound(path)
        | Self::NotADirectory(path)
        | Self::NotARegularFile(path)
        | Self::EmptyFolder(path)
        | Self::FolderInPlace { path, .. }
        | Self::NotASymlink(path)
        | Self::Loop(path)
        | Self::TooLarge { path, .. }
        | Self::Corrupt { path, .. }
        | Self::Unsupported { path, .. }
        | Self::Io { path, .. }) = &mut self;
        *path = mount_point.join(path.strip_prefix("/").unwrap_or(path));
        self
    }
}

struct GuestDisplay<'a>(&'a PathBuf);
impl std::fmt::Display for GuestDisplay<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        crate::base::escaping::write_path(f, self.0)
    }
}

/// Result of looking into a tree.
pub type TreeResult<T> = Result<T, TreeError>;

/// A read-only file tree. Paths are absolute and free of symbolic links in all but the last
/// component; nothing here follows a link, nothing here writes.
pub trait Tree {
    /// Attributes of `path` itself.
    fn lstat(&self, path: &Path) -> TreeResult<Meta>;

    /// The POSIX access list of a regular file; `None` where it has none, or the file system keeps
    /// none.
    fn access_list(&self, _path: &Path) -> TreeResult<Option<AccessList>> {
        Ok(None)
    }

    /// Up to `length` bytes of a regular file from `offset`; short only at the end of the file.
    fn read_range(&self, path: &Path, offset: u64, length: usize) -> TreeResult<Vec<u8>>;

    /// A regular file held open for reading much of it, by another thread too; `None` where files
    /// can only be read through the tree. Whoever holds it keeps its file system in use.
    fn hold(&self, _path: &Path) -> TreeResult<Option<std::fs::File>> {
        Ok(None)
    }

    /// Names in a folder, in any order.
    fn read_dir(&self, path: &Path) -> TreeResult<Vec<DirEntry>>;

    /// Target of a symbolic link, as stored.
    fn read_link(&self, path: &Path) -> TreeResult<PathBuf>;

    /// A whole regular file of at most `limit` bytes.
    fn read(&self, path: &Path, limit: u64) -> TreeResult<Vec<u8>> {
        let meta = self.lstat(path)?;
        if meta.kind != FileKind::Regular {
            return Err(TreeError::NotARegularFile(path.to_path_buf()));
        }
        if meta.size > limit {
            return Err(TreeError::TooLarge {
                path: path.to_path_buf(),
                size: meta.size,
                limit,
            });
        }
        let length = usize::try_from(meta.size).unwrap_or(usize::MAX);
        self.read_range(path, 0, length)
    }
}

/// Bytes and inodes of one file system, as `statfs` reports them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize)]
pub struct Usage {
    /// Size in bytes.
    pub bytes_total: u64,
    /// Bytes free, reserved blocks included (`f_bfree`).
    pub bytes_free: u64,
    /// Bytes an unprivileged process can still write (`f_bavail`); the kubelet calls this
    /// "available".
    pub bytes_available: u64,
    /// Number of inodes; 0 where the file system has no fixed number.
    pub inodes_total: u64,
    /// Inodes not in use.
    pub inodes_free: u64,
}
