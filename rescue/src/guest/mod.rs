//! The powered-off system's file tree: trees, the mount table, the one path resolver.

mod closed;
mod discover;
pub(crate) mod fstab;
mod live;
mod memo;
mod memory;
mod merged;
mod missing;
mod origin;
mod path;
mod subvolume;
mod subvolume_roots;

pub use live::is_rescue_system;
pub use merged::{MergedTree, Mounted};
pub use missing::Missing;
pub use origin::Origin;
pub use path::{GuestPath, RealPath};
pub use subvolume::{Below, SubvolumeName};

use std::path::{Path, PathBuf};
use std::rc::Rc;

use crate::base::escaping::escape;
use crate::disk::Backing;
use crate::tree::{DirEntry, FileKind, Meta, Tree, TreeError, TreeResult, Usage};

/// How many symbolic links one path may pass through before it counts as a loop; the kernel's own
/// bound (MAXSYMLINKS).
const MAX_SYMLINKS: usize = 40;

/// The largest file read whole by default: far above any manifest, certificate or unit, far below a
/// rescue system's memory.
pub const READ_LIMIT: u64 = 16 << 20;

/// One file system of the guest: where it is mounted, what it is, where its bytes are.
#[derive(Debug, Clone)]
pub struct FileSystem {
    /// Mount point inside the guest (`/`, `/var`).
    pub mount_point: GuestPath,
    /// `ext4`, `xfs`, `folder` …
    pub kind: String,
    /// How people name it: `disk.img partition 1`, `/dev/sdb1`.
    pub device: String,
    /// UUID in the superblock, lower case, with dashes.
    pub uuid: Option<String>,
    /// Bytes and inodes.
    pub usage: Usage,
    /// Where the bytes are.
    pub backing: Backing,
    /// btrfs: which of its subvolumes this is. Those of one backing share their bytes.
    pub subvolume: Option<SubvolumeName>,
    /// ext4: the error flag of superblock (`EXT4_ERROR_FS`) or journal is set, or an ext2 was not
    /// unmounted: the file system needs e2fsck before anybody writes to it.
    pub has_errors: bool,
}

/// A powered-off system: its merged file tree and the file systems under it.
#[derive(Clone)]
pub struct Guest {
    /// How people name where it came from: the image, device or folder given.
    pub source: String,
    /// File systems, root first, then by mount point.
    pub file_systems: Vec<FileSystem>,
    /// What the guest's fstab asks for that was not found on the sources given, one plain sentence
    /// each.
    pub unresolved: Vec<String>,
    /// The mount points of those that are file systems on a disk.
    pub missing: Vec<Missing>,
    /// Set where the system hibernated: a sentence that says where its memory is kept. Nobody may
    /// write to its disks.
    pub suspended: Option<String>,
    /// The newest times that the file systems themselves know: evidence of what the clock was.
    pub time_marks: Vec<TimeMark>,
    /// Whether it is the system that is running (`--root /`): its processes have files open, and
    /// read others only when they start.
    pub live: bool,
    tree: Rc<dyn Tree>,
    /// Bind mounts: what is asked for below the first path really is below the second. Both free of
    /// symbolic links.
    binds: Vec<(PathBuf, PathBuf)>,
    memo: memo::Memo,
}

/// A time that a file system's superblock holds: its last mount, write or check, whichever is
/// newest.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct TimeMark {
    /// How people name the device.
    pub device: String,
    /// Seconds since 1970.
    pub seconds: i64,
}

impl std::fmt::Debug for Guest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Guest")
            .field("source", &self.source)
            .field("file_systems", &self.file_systems)
            .finish_non_exhaustive()
    }
}

impl Guest {
    /// A guest over a merged tree (mount points already dispatched).
    pub fn new(
        source: impl Into<String>,
        tree: Rc<dyn Tree>,
        file_systems: Vec<FileSystem>,
    ) -> Self {
        Self {
            source: source.into(),
            file_systems,
            unresolved: Vec::new(),
            missing: Vec::new(),
            suspended: None,
            time_marks: Vec::new(),
            live: false,
            tree,
            binds: Vec::new(),
            memo: memo::Memo::default(),
        }
    }

    /// The same guest with bind mounts. They are resolved like links, so that a [`RealPath`] always
    /// names the file where it really is: on the file system that holds it.
    pub(super) fn with_binds(self, binds: Vec<(PathBuf, PathBuf)>) -> Self {
        Self { binds, ..self }
    }

    /// The same guest seen through another tree, usually [`Planned`] over this one's.
    pub fn with_tree(&self, tree: Rc<dyn Tree>) -> Self {
        Self {
            tree,
            memo: memo::Memo::default(),
            ..self.clone()
        }
    }

    /// The same guest with its sources closed: its file systems can still be named and mounted,
    /// nothing can be read.
    pub fn close(self) -> Self {
        Self {
            tree: Rc::new(closed::ClosedTree),
            memo: memo::Memo::default(),
            ..self
        }
    }

    /// The merged tree itself; its paths must be symlink-free, see [`Guest::resolve`].
    pub fn tree(&self) -> Rc<dyn Tree> {
        Rc::clone(&self.tree)
    }

    /// Resolves every symbolic link of `path` inside the guest, the last one included. An absolute
    /// link means the guest's root; `..` never climbs above it. A path whose last component is
    /// missing is [`TreeError::NotFound`].
    pub fn resolve(&self, path: &GuestPath) -> TreeResult<RealPath> {
        self.walk(path, true)
    }

    /// Like [`Guest::resolve`], but the last component is left as it is: a link, or a file that is
    /// not there yet.
    pub fn resolve_parent(&self, path: &GuestPath) -> TreeResult<RealPath> {
        self.walk(path, false)
    }

    fn walk(&self, path: &GuestPath, follow_last: bool) -> TreeResult<RealPath> {
        let mut todo: Vec<std::ffi::OsString> = path.components_reversed();
        let mut real = PathBuf::from("/");
        let mut links = 0;
        while let Some(name) = todo.pop() {
            if name == ".." {
                real.pop();
                continue;
            }
            let next = self.behind_bind(real.join(&name));
            if todo.is_empty() && !follow_last {
                // The parent must be a folder even when the last name is not looked at.
                self.expect_folder(&real)?;
                return Ok(RealPath::new(next));
            }
            let meta = self.tree.lstat(&next)?;
            match meta.kind {
                FileKind::Symlink => {
                    links += 1;
                    if links > MAX_SYMLINKS {
                        return Err(TreeError::Loop(path.as_path().to_path_buf()));
                    }
                    let target = self.tree.read_link(&next)?;
                    if target.is_absolute() {
                        real = PathBuf::from("/");
                    }
                    todo.extend(path::components_reversed(&target));
                }
                FileKind::Directory => real = next,
                _ if todo.is_empty() => real = next,
                _ => return Err(TreeError::NotADirectory(next)),
            }
        }
        Ok(RealPath::new(real))
    }

    fn behind_bind(&self, path: PathBuf) -> PathBuf {
        self.binds
            .iter()
            .find(|(at, _)| *at == path)
            .map_or(path, |(_, source)| source.clone())
    }

    fn expect_folder(&self, real: &Path) -> TreeResult<()> {
        match self.tree.lstat(real)?.kind {
            FileKind::Directory => Ok(()),
            _ => Err(TreeError::NotADirectory(real.to_path_buf())),
        }
    }

    /// Attributes after following links.
    pub fn stat(&self, path: &GuestPath) -> TreeResult<Meta> {
        self.tree.lstat(self.resolve(path)?.as_path())
    }

    /// Attributes of the last component itself (a link stays a link).
    pub fn lstat(&self, path: &GuestPath) -> TreeResult<Meta> {
        self.tree.lstat(self.resolve_parent(path)?.as_path())
    }

    /// Whether something is there after following links; errors other than "not found" count as
    /// there.
    pub fn exists(&self, path: &GuestPath) -> bool {
        !matches!(
            self.stat(path),
            Err(TreeError::NotFound(_) | TreeError::NotADirectory(_))
        )
    }

    /// The whole regular file, at most [`READ_LIMIT`] bytes; FIFOs and devices are refused by the
    /// tree.
    pub fn read(&self, path: &GuestPath) -> TreeResult<Vec<u8>> {
        let real = self.resolve(path)?;
        match self.tree.read(real.as_path(), READ_LIMIT) {
            Err(error @ TreeError::NotARegularFile(_)) => Err(self.explain_folder(&real, error)),
            read => read,
        }
    }

    /// What an error says more exactly where a folder has the file's name.
    fn explain_folder(&self, real: &RealPath, error: TreeError) -> TreeError {
        const NAMED: usize = 3;
        let is_folder = |meta: Meta| meta.kind == FileKind::Directory;
        let Ok(true) = self.tree.lstat(real.as_path()).map(is_folder) else {
            return error;
        };
        let Ok(mut entries) = self.tree.read_dir(real.as_path()) else {
            return error;
        };
        let path = real.as_path().to_path_buf();
        if entries.is_empty() {
            return TreeError::EmptyFolder(path);
        }
        entries.sort_by(|a, b| a.name.cmp(&b.name));
        let names = entries.iter().take(NAMED);
        let mut names: Vec<String> = names
            .map(|entry| escape(&entry.name.to_string_lossy()))
            .collect();
        if entries.len() > NAMED {
            names.push(format!("{} more", entries.len() - NAMED));
        }
        let entries = names.join(", ");
        TreeError::FolderInPlace { path, entries }
    }

    /// The whole file as text; invalid UTF-8 is replaced, as people's configs sometimes carry
    /// Latin-1 comments.
    pub fn read_text(&self, path: &GuestPath) -> TreeResult<String> {
        Ok(String::from_utf8_lossy(&self.read(path)?).into_owned())
    }

    /// `None` where the file is not there; errors for everything else.
    pub fn read_if_there(&self, path: &GuestPath) -> TreeResult<Option<Vec<u8>>> {
        match self.read(path) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Entries of a folder after following links, sorted by name bytes.
    pub fn read_dir(&self, path: &GuestPath) -> TreeResult<Vec<DirEntry>> {
        let mut entries = self.tree.read_dir(self.resolve(path)?.as_path())?;
        entries.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(entries)
    }

    /// The link's own target, unresolved.
    pub fn read_link(&self, path: &GuestPath) -> TreeResult<PathBuf> {
        self.tree.read_link(self.resolve_parent(path)?.as_path())
    }

    /// Those of [`Guest::file_systems`] that have their bytes in common with the `index`th, itself
    /// included, in their order: subvolumes of one btrfs. What is free on one of them is free on
    /// all, and must be counted once.
    pub fn sharing_bytes(&self, index: usize) -> Vec<usize> {
        let Some(this) = self.file_systems.get(index) else {
            return Vec::new();
        };
        let is_shared = |fs: &FileSystem| fs.backing == this.backing && fs.subvolume.is_some();
        let all = self.file_systems.iter().enumerate();
        all.filter(|(at, fs)| *at == index || (this.subvolume.is_some() && is_shared(fs)))
            .map(|(at, _)| at)
            .collect()
    }

    /// The file system that holds `real`: the longest mount point that is a prefix of it.
    pub fn file_system_of(&self, real: &RealPath) -> Option<&FileSystem> {
        self.file_systems
            .iter()
            .filter(|fs| real.as_path().starts_with(fs.mount_point.as_path()))
            .max_by_key(|fs| fs.mount_point.as_path().components().count())
    }
}

pub use discover::{Discovery, discover, look_over};
