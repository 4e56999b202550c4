//! A mounted folder as a file tree, confined to it.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Path, PathBuf};

use anyhow::Context;
use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;

use super::access_list::{self, AccessList};
use super::{DirEntry, FileKind, Meta, Tree, TreeError, TreeResult, Usage};
use crate::base::refusal::Refusal;

/// Nothing below the folder may lead out of it: no `..` above it, no link of any kind, no other
/// file system.
const CONFINED: ResolveFlags = ResolveFlags::BENEATH
    .union(ResolveFlags::NO_SYMLINKS)
    .union(ResolveFlags::NO_MAGICLINKS)
    .union(ResolveFlags::NO_XDEV);

/// How often a look-up is tried again when the kernel cannot rule out a rename beside it (`EAGAIN`,
/// see openat2(2)).
const RACE_RETRIES: usize = 16;

/// The kernel's bound on the value of one extended attribute (`XATTR_SIZE_MAX`).
const LARGEST_LIST: usize = 64 << 10;

/// Room that is made for bytes before they come.
const READ_AT_ONCE: usize = 1 << 20;

/// The files of one file system below a folder. Every path is resolved by the kernel beneath the
/// folder (openat2), so that a hostile tree can lead nowhere else; device nodes, FIFOs and sockets
/// are never opened, and access times stay as they are wherever the kernel lets us (owner or root).
///
/// What is mounted below the folder is not part of this tree: compose one tree per file system, see
/// [`crate::guest::MergedTree`].
#[derive(Debug)]
pub struct FolderTree {
    root: OwnedFd,
}

impl FolderTree {
    /// Opens the folder. Links in `folder` itself are followed: it is the user's own path, not the
    /// guest's.
    pub fn open(folder: &Path) -> anyhow::Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::open(folder, flags, Mode::empty())
            .with_context(|| format!("opening the folder {}", folder.display()))?;
        let view = crate::mount::read_only_view(root.as_fd());
        Self::beneath(view.unwrap_or(root))
    }

    /// The tree below a folder that is already open (`O_PATH` is enough), such as the root of a
    /// detached mount.
    pub fn beneath(root: OwnedFd) -> anyhow::Result<Self> {
        let tree = Self { root };
        match tree.open_at(Path::new("/"), OFlags::PATH) {
            Ok(_) => Ok(tree),
            Err(Errno::NOSYS) => Err(Refusal::new(
                "this system's kernel has no openat2 (older than Linux 5.6)",
                "a folder of a foreign system cannot be read here without the risk of being led \
                 out of it",
                "boot the rescue ISO instead, or use a helper with a newer kernel",
            )
            .into()),
            Err(error) => Err(error).context("opening the root folder of the guest"),
        }
    }

    /// Bytes and inodes of the file system.
    pub fn usage(&self) -> anyhow::Result<Usage> {
        let stat =
            rustix::fs::fstatvfs(&self.root).context("reading the size of the file system")?;
        Ok(Usage {
            bytes_total: stat.f_blocks.saturating_mul(stat.f_frsize),
            bytes_free: stat.f_bfree.saturating_mul(stat.f_frsize),
            bytes_available: stat.f_bavail.saturating_mul(stat.f_frsize),
            inodes_total: stat.f_files,
            inodes_free: stat.f_ffree,
        })
    }

    fn open_at(&self, path: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
        let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let below = below(path);
        for _ in 0..RACE_RETRIES {
            match rustix::fs::openat2(&self.root, &below, flags, Mode::empty(), CONFINED) {
                Err(Errno::AGAIN | Errno::INTR) => {}
                done => return done,
            }
        }
        Err(Errno::AGAIN)
    }

    /// Opens for reading without moving the access time, where that is allowed.
    fn open_to_read(&self, path: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
        // A FIFO put in the place of the file between lstat and open must not hang us.
        let flags = flags | OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
        match self.open_at(path, flags | OFlags::NOATIME) {
            Err(Errno::PERM) => self.open_at(path, flags),
            done => done,
        }
    }

    /// Opening a device node or FIFO can have effects of its own, so the kind is looked at before
    /// and after.
    fn open_regular(&self, path: &Path) -> TreeResult<File> {
        expect_regular(path, &self.look(path)?.1)?;
        let file = self
            .open_to_read(path, OFlags::empty())
            .map_err(|errno| explain(path, errno))?;
        expect_regular(
            path,
            &rustix::fs::fstat(&file).map_err(|errno| explain(path, errno))?,
        )?;
        Ok(File::from(file))
    }

    /// A descriptor that names the file without opening it, and its attributes.
    fn look(&self, path: &Path) -> TreeResult<(OwnedFd, Stat)> {
        let handle = self
            .open_at(path, OFlags::PATH)
            .map_err(|errno| explain(path, errno))?;
        let stat = rustix::fs::fstat(&handle).map_err(|errno| explain(path, errno))?;
        Ok((handle, stat))
    }
}

impl AsFd for FolderTree {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }
}

impl Tree for FolderTree {
    fn lstat(&self, path: &Path) -> TreeResult<Meta> {
        Ok(meta(&self.look(path)?.1))
    }

    fn access_list(&self, path: &Path) -> TreeResult<Option<AccessList>> {
        let (handle, stat) = self.look(path)?;
        expect_regular(path, &stat)?;
        // A descriptor that names a file has no attributes of its own to ask for; the kernel's link
        // to the file has.
        let at = format!("/proc/self/fd/{}", handle.as_raw_fd());
        let mut value = Vec::with_capacity(LARGEST_LIST);
        match rustix::fs::getxattr(
            at,
            access_list::ACCESS,
            rustix::buffer::spare_capacity(&mut value),
        ) {
            Ok(_) => AccessList::from_xattr(&value)
                .map(Some)
                .ok_or_else(|| damaged_list(path)),
            Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(None),
            Err(errno) => Err(TreeError::Io {
                path: path.to_path_buf(),
                source: errno.into(),
            }),
        }
    }

    fn read_range(&self, path: &Path, offset: u64, length: usize) -> TreeResult<Vec<u8>> {
        read_some(self.open_regular(path)?, offset, length).map_err(|error| explain_io(path, error))
    }

    fn hold(&self, path: &Path) -> TreeResult<Option<File>> {
        self.open_regular(path).map(Some)
    }

    fn read_dir(&self, path: &Path) -> TreeResult<Vec<DirEntry>> {
        let folder = self
            .open_to_read(path, OFlags::DIRECTORY)
            .map_err(|errno| explain(path, errno))?;
        let mut entries = Vec::new();
        for entry in rustix::fs::Dir::new(folder).map_err(|errno| explain(path, errno))? {
            let entry = entry.map_err(|errno| explain(path, errno))?;
            let name = OsStr::from_bytes(entry.file_name().to_bytes());
            if name == "." || name == ".." {
                continue;
            }
            let kind = match entry.file_type() {
                // XFS without ftype (v4) does not keep the kind in the folder.
                FileType::Unknown => self.lstat(&path.join(name))?.kind,
                kind => file_kind(kind),
            };
            entries.push(DirEntry {
                name: name.to_os_string(),
                kind,
            });
        }
        Ok(entries)
    }

    fn read_link(&self, path: &Path) -> TreeResult<PathBuf> {
        let (link, stat) = self.look(path)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::Symlink {
            return Err(TreeError::NotASymlink(path.to_path_buf()));
        }
        let target =
            rustix::fs::readlinkat(&link, "", Vec::new()).map_err(|errno| explain(path, errno))?;
        Ok(std::ffi::OsString::from_vec(target.into_bytes()).into())
    }
}

fn damaged_list(path: &Path) -> TreeError {
    TreeError::Corrupt {
        path: path.to_path_buf(),
        reason: "its access list is damaged".to_owned(),
    }
}

/// `/etc/hosts` as the kernel wants it beneath the root: `etc/hosts`. `..` is kept: the kernel
/// refuses it where it climbs.
fn below(path: &Path) -> PathBuf {
    let relative: PathBuf = path
        .components()
        .filter(|part| !matches!(part, Component::RootDir | Component::CurDir))
        .collect();
    if relative.as_os_str().is_empty() {
        PathBuf::from(".")
    } else {
        relative
    }
}

fn read_some(mut file: File, offset: u64, length: usize) -> std::io::Result<Vec<u8>> {
    // Grows as bytes come: a huge length or a lying size allocates nothing by itself.
    let mut bytes = Vec::with_capacity(length.min(READ_AT_ONCE));
    file.seek(SeekFrom::Start(offset))?;
    file.take(length as u64).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn expect_regular(path: &Path, stat: &Stat) -> TreeResult<()> {
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => Ok(()),
        _ => Err(TreeError::NotARegularFile(path.to_path_buf())),
    }
}

fn file_kind(kind: FileType) -> FileKind {
    match kind {
        FileType::RegularFile => FileKind::Regular,
        FileType::Directory => FileKind::Directory,
        FileType::Symlink => FileKind::Symlink,
        _ => FileKind::Special,
    }
}

fn meta(stat: &Stat) -> Meta {
    Meta {
        kind: file_kind(FileType::from_raw_mode(stat.st_mode)),
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
    }
}

/// What a kernel's error number says about the guest's file.
fn explain(path: &Path, errno: Errno) -> TreeError {
    let path = path.to_path_buf();
    match errno {
        Errno::NOENT => TreeError::NotFound(path),
        Errno::NOTDIR => TreeError::NotADirectory(path),
        Errno::LOOP => TreeError::Loop(path),
        Errno::XDEV => TreeError::Unsupported {
            path,
            reason: "it is outside this file system".to_owned(),
        },
        // EUCLEAN and EBADMSG are EFSCORRUPTED and EFSBADCRC in ext4 and XFS.
        Errno::UCLEAN => TreeError::Corrupt {
            path,
            reason: "the kernel found its structure damaged".to_owned(),
        },
        Errno::BADMSG => TreeError::Corrupt {
            path,
            reason: "a checksum does not match".to_owned(),
        },
        errno => TreeError::Io {
            path,
            source: errno.into(),
        },
    }
}

pub(super) fn explain_io(path: &Path, error: std::io::Error) -> TreeError {
    match Errno::from_io_error(&error) {
        Some(errno) => explain(path, errno),
        None => TreeError::Io {
            path: path.to_path_buf(),
            source: error,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

    fn fixture() -> (tempfile::TempDir, FolderTree) {
        let base = tempfile::tempdir().unwrap();
        let root = base.path().join("guest");
        std::fs::create_dir_all(root.join("etc/deep")).unwrap();
        std::fs::write(base.path().join("secret"), b"outside").unwrap();
        std::fs::write(root.join("etc/hosts"), b"127.0.0.1 localhost\n").unwrap();
        std::fs::hard_link(root.join("etc/hosts"), root.join("etc/hosts2")).unwrap();
        symlink("/etc/hosts", root.join("link")).unwrap();
        symlink("../secret", root.join("out")).unwrap();
        symlink("..", root.join("up")).unwrap();
        rustix::fs::mknodat(
            rustix::fs::CWD,
            root.join("fifo"),
            FileType::Fifo,
            Mode::from_raw_mode(0o600),
            0,
        )
        .unwrap();
        let tree = FolderTree::open(&root).unwrap();
        (base, tree)
    }

    #[test]
    fn attributes_are_the_kernel_s() {
        let (base, tree) = fixture();
        let meta = tree.lstat(Path::new("/etc/hosts")).unwrap();
        let real = std::fs::symlink_metadata(base.path().join("guest/etc/hosts")).unwrap();
        assert_eq!(meta.kind, FileKind::Regular);
        assert_eq!(meta.mode, real.permissions().mode() & 0o7777);
        assert_eq!(
            (meta.uid, meta.gid, meta.size, meta.mtime),
            (real.uid(), real.gid(), real.size(), real.mtime())
        );
        assert_eq!((meta.nlink, meta.ino), (Some(2), Some(real.ino())));
        assert_eq!(meta.allocated, Some(real.blocks() * 512));
        assert_eq!(
            tree.lstat(Path::new("/")).unwrap().kind,
            FileKind::Directory
        );
        assert!(matches!(
            tree.lstat(Path::new("/nothing")),
            Err(TreeError::NotFound(_))
        ));
        assert!(matches!(
            tree.lstat(Path::new("/etc/hosts/x")),
            Err(TreeError::NotADirectory(_))
        ));
    }

    #[test]
    fn reads_ranges() {
        let (_base, tree) = fixture();
        assert_eq!(
            tree.read_range(Path::new("/etc/hosts"), 4, 5).unwrap(),
            b"0.0.1"
        );
        assert_eq!(
            tree.read_range(Path::new("/etc/hosts"), 10, usize::MAX)
                .unwrap(),
            b"localhost\n"
        );
        assert_eq!(
            tree.read_range(Path::new("/etc/hosts"), 1 << 40, 5)
                .unwrap(),
            b""
        );
        assert!(matches!(
            tree.read_range(Path::new("/etc"), 0, 1),
            Err(TreeError::NotARegularFile(_))
        ));
    }

    #[test]
    fn lists_names_with_their_kind() {
        let (_base, tree) = fixture();
        let mut names: Vec<_> = tree
            .read_dir(Path::new("/"))
            .unwrap()
            .into_iter()
            .map(|e| (e.name, e.kind))
            .collect();
        names.sort_by(|a, b| a.0.cmp(&b.0));
        let expected = [
            ("etc", FileKind::Directory),
            ("fifo", FileKind::Special),
            ("link", FileKind::Symlink),
            ("out", FileKind::Symlink),
            ("up", FileKind::Symlink),
        ];
        assert_eq!(names, expected.map(|(name, kind)| (name.into(), kind)));
        assert!(matches!(
            tree.read_dir(Path::new("/etc/hosts")),
            Err(TreeError::NotADirectory(_))
        ));
    }

    #[test]
    fn follows_no_link_and_climbs_nowhere() {
        let (_base, tree) = fixture();
        assert_eq!(
            tree.read_link(Path::new("/link")).unwrap(),
            Path::new("/etc/hosts")
        );
        assert!(matches!(
            tree.read_link(Path::new("/etc/hosts")),
            Err(TreeError::NotASymlink(_))
        ));
        for path in ["/link", "/out"] {
            assert!(
                matches!(
                    tree.read_range(Path::new(path), 0, 9),
                    Err(TreeError::NotARegularFile(_))
                ),
                "{path}"
            );
        }
        for path in ["/up/secret", "/../secret", "/etc/../../secret"] {
            let error = tree.read_range(Path::new(path), 0, 9).unwrap_err();
            assert!(!error.is_not_found(), "{path}: {error}");
        }
        assert!(tree.read_dir(Path::new("/up")).is_err());
    }

    #[test]
    fn never_opens_a_fifo() {
        let (_base, tree) = fixture();
        assert_eq!(
            tree.lstat(Path::new("/fifo")).unwrap().kind,
            FileKind::Special
        );
        assert!(matches!(
            tree.read_range(Path::new("/fifo"), 0, 1),
            Err(TreeError::NotARegularFile(_))
        ));
    }

    #[test]
    fn leaves_access_times_alone() {
        let (base, tree) = fixture();
        let file = base.path().join("guest/etc/hosts");
        let past = rustix::fs::Timespec {
            tv_sec: 1,
            tv_nsec: 0,
        };
        let times = rustix::fs::Timestamps {
            last_access: past,
            last_modification: past,
        };
        let link = base.path().join("guest/link");
        for path in [&file, &base.path().join("guest/etc"), &link] {
            rustix::fs::utimensat(
                rustix::fs::CWD,
                path,
                &times,
                rustix::fs::AtFlags::SYMLINK_NOFOLLOW,
            )
            .unwrap();
        }
        tree.read_range(Path::new("/etc/hosts"), 0, 9).unwrap();
        tree.read_dir(Path::new("/etc")).unwrap();
        assert_eq!(std::fs::metadata(&file).unwrap().atime(), 1);
        assert_eq!(
            std::fs::metadata(file.parent().unwrap()).unwrap().atime(),
            1
        );
        if nix::unistd::geteuid().is_root() {
            tree.read_link(Path::new("/link")).unwrap();
            assert_eq!(std::fs::symlink_metadata(&link).unwrap().atime(), 1);
        }
    }

    #[test]
    fn usage_is_the_file_system_s() {
        let (base, tree) = fixture();
        let stat = rustix::fs::statvfs(base.path()).unwrap();
        let usage = tree.usage().unwrap();
        assert_eq!(usage.bytes_total, stat.f_blocks * stat.f_frsize);
        assert_eq!(usage.inodes_total, stat.f_files);
    }
}
