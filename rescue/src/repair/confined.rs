//! The one confined writer. Every operation names a [`RealPath`]; its parent folder is opened
//! beneath the mount that holds it, with the kernel refusing symbolic links, magic links, `..` out
//! of the mount and crossings into other mounts (openat2), and the operation then works on one name
//! inside that folder. A hostile guest has no link to lead it outside.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use rustix::fs::{
    AtFlags, Dir, FileType, IFlags, Mode, OFlags, RenameFlags, ResolveFlags, Stat, Timespec,
    Timestamps,
};
use rustix::io::Errno;
use sha2::{Digest, Sha256};

use super::journal::State;
use crate::base::fault;
use crate::guest::RealPath;
use crate::tree::Usage;

/// The kernel's own guard on the way to a folder.
const CONFINED: ResolveFlags = ResolveFlags::BENEATH
    .union(ResolveFlags::NO_SYMLINKS)
    .union(ResolveFlags::NO_MAGICLINKS)
    .union(ResolveFlags::NO_XDEV);

/// Without `O_NOFOLLOW`, which would make a link in the last place look like any other file
/// (ENOTDIR); NO_SYMLINKS says ELOOP.
const FOLDER: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::CLOEXEC);

/// Never blocks on a FIFO, never follows a link; the kind is checked after opening.
const FILE: OFlags = OFlags::NOFOLLOW
    .union(OFlags::NONBLOCK)
    .union(OFlags::NOCTTY)
    .union(OFlags::CLOEXEC)
    .union(OFlags::NOATIME);

/// One mounted file system of the guest.
#[derive(Debug)]
struct Mount {
    point: PathBuf,
    root: OwnedFd,
    device: u64,
    /// `ext4`, `xfs`, `folder` …
    kind: String,
}

/// The guest's mounts, open for writing.
#[derive(Debug)]
pub struct Confined {
    /// Longest mount point first, so that the first match is the right one.
    mounts: Vec<Mount>,
}

impl Confined {
    /// A mount table: (mount point inside the guest, open folder, file system kind). One of them
    /// must be `/`.
    pub fn new(mounts: Vec<(RealPath, BorrowedFd<'_>, String)>) -> Result<Self> {
        let mut table = Vec::with_capacity(mounts.len());
        for (point, root, kind) in mounts {
            // The folder may have come as a path-only descriptor (a detached mount); synchronising
            // needs a real one.
            let root = rustix::fs::openat(root, ".", FOLDER, Mode::empty())
                .with_context(|| format!("opening the file system for {point}"))?;
            let device = rustix::fs::fstat(&root)
                .with_context(|| format!("looking at {point}"))?
                .st_dev;
            table.push(Mount {
                point: point.as_path().to_path_buf(),
                root,
                device,
                kind,
            });
        }
        table.sort_by_key(|mount| std::cmp::Reverse(mount.point.components().count()));
        if table
            .last()
            .is_none_or(|mount| mount.point != Path::new("/"))
        {
            bail!("the guest has no root file system to write to");
        }
        Ok(Self { mounts: table })
    }

    /// The mount points, root last.
    pub fn mount_points(&self) -> impl Iterator<Item = RealPath> + '_ {
        self.mounts
            .iter()
            .map(|mount| RealPath::new(mount.point.clone()))
    }

    /// The folders at the mount points, for locks and synchronising.
    pub(super) fn roots(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.mounts.iter().map(|mount| mount.root.as_fd())
    }

    fn mount_of(&self, path: &Path) -> Result<(&Mount, PathBuf)> {
        self.mounts
            .iter()
            .find_map(|mount| {
                path.strip_prefix(&mount.point)
                    .ok()
                    .map(|below| (mount, below.to_path_buf()))
            })
            .with_context(|| "a path that is not absolute inside the guest".to_owned())
    }

    /// The mount point of the file system that holds `path`.
    pub fn mount_point_of(&self, path: &RealPath) -> Result<RealPath> {
        Ok(RealPath::new(
            self.mount_of(path.as_path())?.0.point.clone(),
        ))
    }

    /// Whether `path` lies in a folder that was mounted by others (`--root`), who may have its
    /// files open.
    pub(super) fn is_shared(&self, path: &RealPath) -> Result<bool> {
        Ok(self.mount_of(path.as_path())?.0.kind == "folder")
    }

    /// Opens a folder of the guest.
    pub fn open_folder(&self, path: &RealPath) -> io::Result<OwnedFd> {
        let (mount, below) = self.mount_of(path.as_path()).map_err(io::Error::other)?;
        let below = if below.as_os_str().is_empty() {
            Path::new(".")
        } else {
            &below
        };
        Ok(rustix::fs::openat2(
            &mount.root,
            below,
            FOLDER,
            Mode::empty(),
            CONFINED,
        )?)
    }

    /// The place of one name: its parent folder opened, the name itself not looked at.
    pub fn place(&self, path: &RealPath) -> io::Result<Place> {
        let (mount, below) = self.mount_of(path.as_path()).map_err(io::Error::other)?;
        let name = below.file_name().ok_or(Errno::BUSY)?.to_os_string();
        let parent = match below.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let folder = rustix::fs::openat2(&mount.root, parent, FOLDER, Mode::empty(), CONFINED)?;
        Ok(Place {
            folder,
            name,
            path: path.clone(),
            device: mount.device,
        })
    }

    /// Attributes of `path` itself, `None` when nothing is there. Works on mount points too.
    pub fn lstat(&self, path: &RealPath) -> io::Result<Option<Stat>> {
        let (mount, below) = self.mount_of(path.as_path()).map_err(io::Error::other)?;
        if below.as_os_str().is_empty() {
            return Ok(Some(rustix::fs::fstat(&mount.root)?));
        }
        match self.place(path) {
            Ok(place) => place.lstat(),
            Err(error) if is_not_there(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// What is at `path`: nothing where a folder on the way is missing.
    pub fn state(&self, path: &RealPath) -> Result<State> {
        match self.place(path) {
            Ok(place) => place.state(),
            Err(error) if is_not_there(&error) => Ok(State::Absent),
            Err(error) => {
                Err(error).with_context(|| format!("opening the folder of {path} in the guest"))
            }
        }
    }

    /// Space of the file system that holds `path`. `bytes_available` is what root can write: on
    /// ext2/3/4 the reserved blocks count, elsewhere the reserve is the file system's own.
    pub fn usage(&self, path: &RealPath) -> Result<Usage> {
        let (mount, _) = self.mount_of(path.as_path())?;
        let stat = rustix::fs::fstatvfs(&mount.root)
            .with_context(|| format!("asking for the free space of {path}"))?;
        let writable = if mount.kind.starts_with("ext") {
            stat.f_bfree
        } else {
            stat.f_bavail
        };
        Ok(Usage {
            bytes_total: stat.f_blocks.saturating_mul(stat.f_frsize),
            bytes_free: stat.f_bfree.saturating_mul(stat.f_frsize),
            bytes_available: writable.saturating_mul(stat.f_frsize),
            inodes_total: stat.f_files,
            inodes_free: stat.f_ffree,
        })
    }

    /// Bytes that the file system counts as free and gives to nobody: ext4 sets aside 2 % of its
    /// clusters, at most 4096, for its own extents (`ext4_calculate_resv_clusters`).
    pub(super) fn set_aside(&self, path: &RealPath) -> Result<u64> {
        let (mount, _) = self.mount_of(path.as_path())?;
        let stat = rustix::fs::fstatvfs(&mount.root)
            .with_context(|| format!("asking for the free space of {path}"))?;
        let blocks = if mount.kind.starts_with("ext") {
            (stat.f_blocks / 50).min(4096)
        } else {
            0
        };
        Ok(blocks.saturating_mul(stat.f_frsize))
    }

    /// Whether the file system that holds `path` is mounted read-only.
    pub fn is_read_only(&self, path: &RealPath) -> Result<bool> {
        let (mount, _) = self.mount_of(path.as_path())?;
        let stat = rustix::fs::fstatvfs(&mount.root)
            .with_context(|| format!("asking for the mount options of {path}"))?;
        Ok(stat.f_flag.contains(rustix::fs::StatVfsMountFlags::RDONLY))
    }

    /// Everything written so far reaches the disk.
    pub fn sync_all(&self) -> Result<()> {
        for mount in &self.mounts {
            fault::call("syncfs", || rustix::fs::syncfs(&mount.root))
                .with_context(|| format!("synchronising {}", mount.point.display()))?;
        }
        Ok(())
    }

    /// Names in a folder, sorted, without `.` and `..`; empty where the folder is missing.
    pub fn names(&self, folder: &RealPath) -> Result<Vec<OsString>> {
        match self.open_folder(folder) {
            Ok(open) => names_in(&open).with_context(|| format!("reading the folder {folder}")),
            Err(error) if is_not_there(&error) => Ok(Vec::new()),
            Err(error) => Err(error).with_context(|| format!("opening the folder {folder}")),
        }
    }

    /// Whether an open folder of this machine is on a file system of the guest, or below a folder
    /// that was given as the guest.
    pub(super) fn holds(&self, folder: BorrowedFd<'_>) -> io::Result<bool> {
        let device = rustix::fs::fstat(folder)?.st_dev;
        let machine = rustix::fs::stat("/")?;
        for mount in &self.mounts {
            let root = rustix::fs::fstat(&mount.root)?;
            let is_machine = (root.st_dev, root.st_ino) == (machine.st_dev, machine.st_ino);
            // A plain folder shares its file system with this machine; one where something is
            // mounted does not.
            let is_mounted =
                mount.kind != "folder" || is_machine || is_mount_root(mount.root.as_fd())?;
            if (is_mounted && root.st_dev == device) || (!is_machine && is_below(folder, &root)?) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Removes a folder of ours with everything in it, bottom up. Links are removed, never
    /// followed; so is what has the folder's name and is none.
    pub fn remove_tree(&self, folder: &RealPath) -> Result<()> {
        let place = match self.place(folder) {
            Ok(place) => place,
            Err(error) if is_not_there(&error) => return Ok(()),
            Err(error) => {
                return Err(error).with_context(|| format!("opening the parent of {folder}"));
            }
        };
        match place
            .lstat()
            .with_context(|| format!("looking at {place}"))?
        {
            Some(stat) if is_folder(&stat) => {
                self.empty_tree(folder)?;
                place.remove_folder().map(|_| ())
            }
            Some(_) => place.unlink(),
            None => Ok(()),
        }
    }

    /// Removes everything in a folder of ours; the folder itself stays.
    pub fn empty_tree(&self, folder: &RealPath) -> Result<()> {
        for name in self.names(folder)? {
            let place = self
                .place(&folder.child(&name))
                .with_context(|| format!("opening {folder}"))?;
            match place
                .lstat()
                .with_context(|| format!("looking at {place}"))?
            {
                Some(stat) if is_folder(&stat) => self.remove_tree(&place.path)?,
                Some(_) => place.unlink()?,
                None => {}
            }
        }
        Ok(())
    }
}

fn is_mount_root(folder: BorrowedFd<'_>) -> io::Result<bool> {
    let above = rustix::fs::statat(folder, "..", AtFlags::empty())?;
    let here = rustix::fs::fstat(folder)?;
    Ok(above.st_dev != here.st_dev || above.st_ino == here.st_ino)
}

/// Whether `folder` is `top` or below it, across mounts.
fn is_below(folder: BorrowedFd<'_>, top: &Stat) -> io::Result<bool> {
    let mut at = folder.try_clone_to_owned()?;
    loop {
        let here = rustix::fs::fstat(&at)?;
        if (here.st_dev, here.st_ino) == (top.st_dev, top.st_ino) {
            return Ok(true);
        }
        let above = rustix::fs::openat(&at, "..", FOLDER, Mode::empty())?;
        let next = rustix::fs::fstat(&above)?;
        if (here.st_dev, here.st_ino) == (next.st_dev, next.st_ino) {
            return Ok(false);
        }
        at = above;
    }
}

/// One name in an open folder of the guest. Operations carry their own crash points.
#[derive(Debug)]
pub struct Place {
    folder: OwnedFd,
    name: OsString,
    path: RealPath,
    device: u64,
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.path.fmt(f)
    }
}

impl Place {
    /// The path it was opened for.
    pub fn path(&self) -> &RealPath {
        &self.path
    }

    /// The folder that holds the name.
    pub fn folder(&self) -> BorrowedFd<'_> {
        self.folder.as_fd()
    }

    /// The name itself.
    pub fn name(&self) -> &OsStr {
        &self.name
    }

    /// Attributes of the name itself; `None` when nothing is there. A different file system mounted
    /// over it is an error.
    pub fn lstat(&self) -> io::Result<Option<Stat>> {
        match rustix::fs::statat(&self.folder, &self.name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) if stat.st_dev == self.device => Ok(Some(stat)),
            Ok(_) => Err(Errno::XDEV.into()),
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// What is there, regular files by their hash.
    pub fn state(&self) -> Result<State> {
        let Some(stat) = self.lstat().with_context(|| format!("looking at {self}"))? else {
            return Ok(State::Absent);
        };
        Ok(match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => State::File {
                sha256: self.sha256()?,
            },
            FileType::Symlink => State::Symlink {
                target: self.read_link()?.into(),
            },
            FileType::Directory => State::Directory,
            _ => State::Special,
        })
    }

    /// Opens the regular file for reading.
    pub fn open_file(&self) -> Result<OwnedFd> {
        self.open_regular(OFlags::RDONLY)
    }

    /// Opens the regular file for reading and writing in place; only freeing does that.
    pub fn open_file_for_truncation(&self) -> Result<OwnedFd> {
        self.open_regular(OFlags::RDWR)
    }

    fn open_regular(&self, access: OFlags) -> Result<OwnedFd> {
        let file = rustix::fs::openat(&self.folder, &self.name, access | FILE, Mode::empty())
            .with_context(|| format!("opening {self}"))?;
        let stat = rustix::fs::fstat(&file).with_context(|| format!("looking at {self}"))?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            bail!("{self} is not a regular file");
        }
        if stat.st_dev != self.device {
            bail!("{self} is on another file system than its folder");
        }
        Ok(file)
    }

    /// SHA-256 of the regular file in lower-case hexadecimal.
    pub fn sha256(&self) -> Result<String> {
        let mut file = std::fs::File::from(self.open_file()?);
        let mut hasher = Sha256::new();
        let mut buffer = vec![0; 1 << 16];
        loop {
            let read = io::Read::read(&mut file, &mut buffer)
                .with_context(|| format!("reading {self}"))?;
            if read == 0 {
                break;
            }
            hasher.update(buffer.get(..read).unwrap_or_default());
        }
        Ok(crate::base::hash::hex(&hasher.finalize()))
    }

    /// The whole regular file, at most `limit` bytes.
    pub fn read(&self, limit: u64) -> Result<Vec<u8>> {
        let file = std::fs::File::from(self.open_file()?);
        let mut bytes = Vec::new();
        let mut limited = io::Read::take(file, limit.saturating_add(1));
        io::Read::read_to_end(&mut limited, &mut bytes)
            .with_context(|| format!("reading {self}"))?;
        if bytes.len() as u64 > limit {
            bail!("{self} is larger than {limit} bytes");
        }
        Ok(bytes)
    }

    /// Target of the symbolic link.
    pub fn read_link(&self) -> Result<PathBuf> {
        let target = rustix::fs::readlinkat(&self.folder, &self.name, Vec::new())
            .with_context(|| format!("reading the link {self}"))?;
        Ok(PathBuf::from(OsStr::from_bytes(target.as_bytes())))
    }

    /// Inode flags (`chattr`); empty where the file system has none.
    pub fn inode_flags(&self) -> io::Result<IFlags> {
        let access = OFlags::RDONLY | FILE;
        let file = match rustix::fs::openat(&self.folder, &self.name, access, Mode::empty()) {
            Ok(file) => file,
            Err(Errno::LOOP | Errno::NOENT | Errno::NXIO) => return Ok(IFlags::empty()),
            Err(error) => return Err(error.into()),
        };
        inode_flags(file.as_fd())
    }

    /// Inode flags of the folder that holds the name.
    pub fn folder_flags(&self) -> io::Result<IFlags> {
        inode_flags(self.folder.as_fd())
    }

    /// Creates a regular file, 0600, that must not be there, with these bytes.
    pub fn create(&self, bytes: &[u8]) -> Result<OwnedFd> {
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mode = Mode::RUSR | Mode::WUSR;
        let file = fault::call("create", || {
            rustix::fs::openat(&self.folder, &self.name, flags, mode)
        })
        .with_context(|| format!("creating {self}"))?;
        let mut rest = bytes;
        while !rest.is_empty() {
            let piece = fault::piece(rest, rest.len() == bytes.len());
            match fault::call("write", || rustix::io::write(&file, piece)) {
                Ok(0) => bail!("writing {self}: the file takes no more bytes"),
                Ok(written) => rest = rest.get(written..).unwrap_or_default(),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error).with_context(|| format!("writing {self}")),
            }
        }
        Ok(file)
    }

    /// Creates a folder, 0700; one that is there already is fine.
    pub fn make_folder(&self) -> Result<()> {
        match fault::call("mkdir", || {
            rustix::fs::mkdirat(&self.folder, &self.name, Mode::RWXU)
        }) {
            Ok(()) => {}
            Err(Errno::EXIST) if self.lstat()?.is_some_and(|stat| is_folder(&stat)) => {}
            Err(error) => return Err(error).with_context(|| format!("creating the folder {self}")),
        }
        Ok(())
    }

    /// Creates a symbolic link that must not be there.
    pub fn make_link(&self, target: &Path) -> Result<()> {
        fault::call("symlink", || {
            rustix::fs::symlinkat(target, &self.folder, &self.name)
        })
        .with_context(|| format!("creating the link {self}"))
    }

    /// Gives the inode here a further name; a link itself is linked, not its target.
    pub fn hard_link_to(&self, other: &Self) -> Result<()> {
        let no_flags = AtFlags::empty();
        fault::call("link", || {
            rustix::fs::linkat(
                &self.folder,
                &self.name,
                &other.folder,
                &other.name,
                no_flags,
            )
        })
        .with_context(|| format!("keeping {self} as {other}"))
    }

    /// Moves the name over `other`, replacing what is there.
    pub fn rename_over(&self, other: &Self) -> Result<()> {
        fault::call("rename", || {
            rustix::fs::renameat(&self.folder, &self.name, &other.folder, &other.name)
        })
        .with_context(|| format!("moving {self} to {other}"))
    }

    /// Moves the name to `other`, where nothing may be.
    pub fn rename_to_free_name(&self, other: &Self) -> Result<()> {
        let flags = RenameFlags::NOREPLACE;
        let renamed = fault::call("rename", || {
            rustix::fs::renameat_with(&self.folder, &self.name, &other.folder, &other.name, flags)
        });
        match renamed {
            // Folders given with --root may lie on a file system without this flag (NFS, 9p): look
            // first instead.
            Err(Errno::INVAL | Errno::NOSYS) if other.lstat()?.is_none() => self.rename_over(other),
            renamed => renamed.with_context(|| format!("moving {self} to {other}")),
        }
    }

    /// Exchanges the two names, whatever each of them is: at no time is one of them missing.
    pub fn exchange(&self, other: &Self) -> Result<()> {
        let flags = RenameFlags::EXCHANGE;
        fault::call("rename", || {
            rustix::fs::renameat_with(&self.folder, &self.name, &other.folder, &other.name, flags)
        })
        .with_context(|| format!("exchanging {self} and {other}"))
    }

    /// Removes the name; one that is already gone is fine.
    pub fn unlink(&self) -> Result<()> {
        match fault::call("unlink", || {
            rustix::fs::unlinkat(&self.folder, &self.name, AtFlags::empty())
        }) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(error) => return Err(error).with_context(|| format!("removing {self}")),
        }
        Ok(())
    }

    /// Removes an empty folder; false when it is not empty. One that is already gone is fine.
    pub fn remove_folder(&self) -> Result<bool> {
        match fault::call("rmdir", || {
            rustix::fs::unlinkat(&self.folder, &self.name, AtFlags::REMOVEDIR)
        }) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(Errno::NOTEMPTY | Errno::EXIST) => return Ok(false),
            Err(error) => return Err(error).with_context(|| format!("removing the folder {self}")),
        }
        Ok(true)
    }

    /// Names made, renamed and removed in the folder reach the disk.
    pub fn sync_folder(&self) -> Result<()> {
        fault::call("fsync", || rustix::fs::fsync(&self.folder))
            .with_context(|| format!("synchronising the folder of {self}"))
    }

    /// A path that the kernel follows to the name itself, for the calls that have no `at` form
    /// (extended attributes).
    pub(super) fn proc_path(&self) -> PathBuf {
        use std::os::fd::AsRawFd;
        Path::new("/proc/self/fd")
            .join(self.folder.as_raw_fd().to_string())
            .join(&self.name)
    }
}

/// Synchronises a file.
pub fn sync_file(file: &OwnedFd, what: &dyn std::fmt::Display) -> Result<()> {
    fault::call("fsync", || rustix::fs::fsync(file))
        .with_context(|| format!("synchronising {what}"))
}

/// Access and modification times of a file, to be put back after it was changed in place.
pub fn times_of(stat: &Stat) -> Timestamps {
    Timestamps {
        last_access: Timespec {
            tv_sec: stat.st_atime as _,
            tv_nsec: stat.st_atime_nsec as _,
        },
        last_modification: Timespec {
            tv_sec: stat.st_mtime as _,
            tv_nsec: stat.st_mtime_nsec as _,
        },
    }
}

/// Whether the error says that the name, or a folder on the way to it, is not there.
pub fn is_not_there(error: &io::Error) -> bool {
    matches!(
        Errno::from_io_error(error),
        Some(Errno::NOENT | Errno::NOTDIR)
    )
}

/// Whether it is a folder.
pub fn is_folder(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::Directory
}

/// Names in an open folder, sorted, without `.` and `..`.
pub(super) fn names_in(folder: &OwnedFd) -> io::Result<Vec<OsString>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(folder)? {
        let name = OsStr::from_bytes(entry?.file_name().to_bytes()).to_os_string();
        if name != "." && name != ".." {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

fn inode_flags(file: BorrowedFd<'_>) -> io::Result<IFlags> {
    match rustix::fs::ioctl_getflags(file) {
        Ok(flags) => Ok(flags),
        Err(Errno::NOTTY | Errno::OPNOTSUPP | Errno::INVAL | Errno::NOSYS) => Ok(IFlags::empty()),
        Err(error) => Err(error.into()),
    }
}
