//! The file tree of a clean ext2, ext3 or ext4: no root rights, no mount, nothing written.
//!
//! Folder listings come from the crate `ext4-view`; attributes, inode numbers and contents from
//! [`super::ext4_inode`]. Both check every checksum. The crate's own reading of contents panics
//! where a block of the map is damaged (version 1.0: `seek_to` passes over errors, `read_bytes`
//! then expects a block), and takes block 0 for a table where ext2 and ext3 have a large hole.

use std::cell::RefCell;
use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;

use ext4_view::{Ext4, Ext4Error, Ext4Read};

use super::ReadAt;
use super::ext_super::ExtSuper;
use super::ext4_inode::{Cached, Folder, Inode, InodeError, Inodes, ROOT};
use crate::tree::{AccessList, DirEntry, FileKind, Meta, Tree, TreeError, TreeResult, Usage};

/// The kernel's PATH_MAX: no link target is longer.
const MAX_LINK: u64 = 4096;
/// Names kept of folders already read.
const MAX_CACHED_NAMES: usize = 400_000;

/// A clean ext file system.
pub struct Ext4Tree {
    view: Ext4,
    inodes: Inodes,
    folders: RefCell<FolderCache>,
    usage: Usage,
}

impl std::fmt::Debug for Ext4Tree {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ext4Tree")
            .field("view", &self.view)
            .finish_non_exhaustive()
    }
}

/// A folder's inode and names. `odd` where it or a folder above is [`Inode::is_odd`].
struct Known {
    inode: Inode,
    folder: Folder,
    odd: bool,
}

#[derive(Default)]
struct FolderCache {
    by_path: HashMap<PathBuf, (u64, Rc<Known>)>,
    names: usize,
    clock: u64,
}

struct Source(Rc<Cached>);

impl Ext4Read for Source {
    fn read(
        &mut self,
        start: u64,
        buffer: &mut [u8],
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        Ok(self.0.read(start, buffer)?)
    }
}

impl Ext4Tree {
    /// Opens the file system that fills `bytes`, whose superblock is `superblock` and has no
    /// journal to replay.
    ///
    /// # Errors
    /// [`TreeError::Unsupported`] for features that only the kernel can read; the caller then
    /// mounts it.
    pub fn open(bytes: Arc<dyn ReadAt>, superblock: &ExtSuper) -> TreeResult<Self> {
        let root = Path::new("/");
        let usage_source = Arc::clone(&bytes);
        let cached = Rc::new(Cached::new(bytes));
        let inodes =
            Inodes::open(Rc::clone(&cached), superblock).map_err(|error| own_error(root, error))?;
        let view = Ext4::load(Box::new(Source(cached))).map_err(|error| view_error(root, error))?;
        let journal = match superblock.journal_inode() {
            Some(number) => {
                inodes
                    .read(number)
                    .map_err(|error| own_error(root, error))?
                    .size
            }
            None => 0,
        };
        let usage = superblock
            .usage(usage_source.as_ref(), journal)
            .map_err(|source| TreeError::Io {
                path: root.to_path_buf(),
                source,
            })?;
        Ok(Self {
            view,
            inodes,
            folders: RefCell::default(),
            usage,
        })
    }

    /// Bytes and inodes, as `statfs` on a mount would tell.
    pub fn usage(&self) -> Usage {
        self.usage
    }

    /// The inode at `path`, and whether anything on the way is [`Inode::is_odd`].
    fn lookup(&self, path: &Path) -> TreeResult<(Inode, bool)> {
        let Some((parent, name)) = split(path)? else {
            let known = self.known(Path::new("/"))?;
            return Ok((known.inode.clone(), known.odd));
        };
        let known = self.known(parent)?;
        let number = known
            .folder
            .find(name)
            .ok_or_else(|| TreeError::NotFound(path.to_path_buf()))?;
        let inode = self
            .inodes
            .read(number)
            .map_err(|error| own_error(path, error))?;
        let odd = known.odd || inode.is_odd;
        Ok((inode, odd))
    }

    fn known(&self, path: &Path) -> TreeResult<Rc<Known>> {
        if let Some(known) = self.folders.borrow_mut().get(path) {
            return Ok(known);
        }
        let (inode, odd) = if split(path)?.is_none() {
            let root = self
                .inodes
                .read(ROOT)
                .map_err(|error| own_error(path, error))?;
            let odd = root.is_odd;
            (root, odd)
        } else {
            self.lookup(path)?
        };
        if inode.kind != FileKind::Directory {
            return Err(TreeError::NotADirectory(path.to_path_buf()));
        }
        let folder = self
            .inodes
            .folder(&inode)
            .map_err(|error| own_error(path, error))?;
        let known = Rc::new(Known { inode, folder, odd });
        self.folders.borrow_mut().put(path, &known);
        Ok(known)
    }
}

impl FolderCache {
    fn get(&mut self, path: &Path) -> Option<Rc<Known>> {
        self.clock += 1;
        let now = self.clock;
        let (used, known) = self.by_path.get_mut(path)?;
        *used = now;
        Some(Rc::clone(known))
    }

    fn put(&mut self, path: &Path, known: &Rc<Known>) {
        // An empty folder costs something, too.
        let cost = |known: &Known| known.folder.len() + 16;
        if self.names > MAX_CACHED_NAMES {
            // A walk needs the folders it came through, which are the youngest.
            let mut ages: Vec<u64> = self.by_path.values().map(|(used, _)| *used).collect();
            ages.sort_unstable();
            let middle = ages.get(ages.len() / 2).copied().unwrap_or(self.clock);
            self.by_path.retain(|_, (used, _)| *used > middle);
            self.names = self.by_path.values().map(|(_, known)| cost(known)).sum();
        }
        self.names += cost(known);
        self.by_path
            .insert(path.to_path_buf(), (self.clock, Rc::clone(known)));
    }
}

/// Parent and last name; `None` for the root. Trees are asked only with absolute, plain paths.
fn split(path: &Path) -> TreeResult<Option<(&Path, &OsStr)>> {
    match (path.components().next_back(), path.parent()) {
        (Some(Component::RootDir), _) => Ok(None),
        (Some(Component::Normal(name)), Some(parent)) if path.is_absolute() => {
            Ok(Some((parent, name)))
        }
        _ => Err(TreeError::NotFound(path.to_path_buf())),
    }
}

impl Tree for Ext4Tree {
    fn lstat(&self, path: &Path) -> TreeResult<Meta> {
        let (inode, _) = self.lookup(path)?;
        Ok(Meta {
            kind: inode.kind,
            mode: inode.mode,
            uid: inode.uid,
            gid: inode.gid,
            size: inode.size,
            mtime: inode.mtime,
            allocated: Some(inode.sectors.saturating_mul(512)),
            nlink: Some(inode.links),
            ino: Some(u64::from(inode.number)),
        })
    }

    fn access_list(&self, path: &Path) -> TreeResult<Option<AccessList>> {
        let (inode, _) = self.lookup(path)?;
        let Some(value) = self
            .inodes
            .access_list(inode.number)
            .map_err(|error| own_error(path, error))?
        else {
            return Ok(None);
        };
        AccessList::from_ext4(&value)
            .map(Some)
            .ok_or_else(|| TreeError::Corrupt {
                path: path.to_path_buf(),
                reason: "its access list is damaged".to_owned(),
            })
    }

    fn read_range(&self, path: &Path, offset: u64, length: usize) -> TreeResult<Vec<u8>> {
        let (inode, _) = self.lookup(path)?;
        if inode.kind != FileKind::Regular {
            return Err(TreeError::NotARegularFile(path.to_path_buf()));
        }
        if inode.is_encrypted() {
            return Err(TreeError::Unsupported {
                path: path.to_path_buf(),
                reason: "it is encrypted (fscrypt)".into(),
            });
        }
        let left = usize::try_from(inode.size.saturating_sub(offset)).unwrap_or(usize::MAX);
        let mut buffer = vec![0; left.min(length)];
        let done = self
            .inodes
            .read_data(&inode, offset, &mut buffer)
            .map_err(|error| own_error(path, error))?;
        buffer.truncate(done);
        Ok(buffer)
    }

    fn read_dir(&self, path: &Path) -> TreeResult<Vec<DirEntry>> {
        let known = self.known(path)?;
        if known.odd {
            return known
                .folder
                .iter()
                .map(|(name, number)| {
                    let inode = self
                        .inodes
                        .read(number)
                        .map_err(|error| own_error(&path.join(name), error))?;
                    Ok(DirEntry {
                        name: name.to_os_string(),
                        kind: inode.kind,
                    })
                })
                .collect();
        }
        let mut entries = Vec::with_capacity(known.folder.len());
        for entry in self
            .view
            .read_dir(path.as_os_str().as_bytes())
            .map_err(|error| view_error(path, error))?
        {
            let entry = entry.map_err(|error| view_error(path, error))?;
            let name = entry.file_name();
            if name == "." || name == ".." {
                continue;
            }
            let kind = match entry.file_type().map_err(|error| view_error(path, error))? {
                ext4_view::FileType::Regular => FileKind::Regular,
                ext4_view::FileType::Directory => FileKind::Directory,
                ext4_view::FileType::Symlink => FileKind::Symlink,
                _ => FileKind::Special,
            };
            entries.push(DirEntry {
                name: OsStr::from_bytes(name.as_ref()).to_os_string(),
                kind,
            });
        }
        Ok(entries)
    }

    fn read_link(&self, path: &Path) -> TreeResult<PathBuf> {
        let (inode, _) = self.lookup(path)?;
        if inode.kind != FileKind::Symlink {
            return Err(TreeError::NotASymlink(path.to_path_buf()));
        }
        if inode.is_encrypted() {
            return Err(TreeError::Unsupported {
                path: path.to_path_buf(),
                reason: "it is encrypted (fscrypt)".into(),
            });
        }
        if inode.size == 0 || inode.size >= MAX_LINK {
            let reason = format!("a symbolic link of {} bytes", inode.size);
            return Err(TreeError::Corrupt {
                path: path.to_path_buf(),
                reason,
            });
        }
        // Not by `ext4-view`: it calls a target damaged that no path could be (a part longer than
        // 255 bytes), and the kernel does not.
        let target = self
            .inodes
            .link_target(&inode)
            .map_err(|error| own_error(path, error))?;
        Ok(PathBuf::from(OsString::from_vec(target)))
    }
}

fn own_error(path: &Path, error: InodeError) -> TreeError {
    let path = path.to_path_buf();
    match error {
        InodeError::Corrupt(reason) => TreeError::Corrupt { path, reason },
        InodeError::Unsupported(reason) => TreeError::Unsupported {
            path,
            reason: reason.into(),
        },
        InodeError::Io(source) if source.kind() == std::io::ErrorKind::UnexpectedEof => {
            TreeError::Corrupt {
                path,
                reason: "it points past the end of the disk".into(),
            }
        }
        InodeError::Io(source) => TreeError::Io { path, source },
    }
}

fn view_error(path: &Path, error: Ext4Error) -> TreeError {
    let path = path.to_path_buf();
    match error {
        Ext4Error::NotFound => TreeError::NotFound(path),
        Ext4Error::NotADirectory => TreeError::NotADirectory(path),
        Ext4Error::IsADirectory | Ext4Error::IsASpecialFile => TreeError::NotARegularFile(path),
        Ext4Error::NotASymlink => TreeError::NotASymlink(path),
        Ext4Error::TooManySymlinks => TreeError::Loop(path),
        Ext4Error::Encrypted => TreeError::Unsupported {
            path,
            reason: "it is encrypted (fscrypt)".into(),
        },
        Ext4Error::Incompatible(what) => TreeError::Unsupported {
            path,
            reason: what.to_string(),
        },
        Ext4Error::Corrupt(what) => TreeError::Corrupt {
            path,
            reason: what.to_string(),
        },
        Ext4Error::Io(source) => match source.downcast::<std::io::Error>() {
            Ok(source) => own_error(&path, InodeError::Io(*source)),
            Err(source) => TreeError::Io {
                path,
                source: std::io::Error::other(source),
            },
        },
        other => TreeError::Unsupported {
            path,
            reason: other.to_string(),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::probe::{self, Content};
    use crate::tree::Named;
    use std::fs;
    use std::process::Command;

    struct Memory(Vec<u8>);
    impl ReadAt for Memory {
        fn len(&self) -> u64 {
            self.0.len() as u64
        }
        fn sector_size(&self) -> u32 {
            512
        }
        fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> std::io::Result<()> {
            let at = usize::try_from(offset).map_err(|_| std::io::ErrorKind::UnexpectedEof)?;
            let end = at
                .checked_add(buffer.len())
                .ok_or(std::io::ErrorKind::UnexpectedEof)?;
            buffer.copy_from_slice(
                self.0
                    .get(at..end)
                    .ok_or(std::io::ErrorKind::UnexpectedEof)?,
            );
            Ok(())
        }
    }

    fn image(mkfs: &[&str]) -> Vec<u8> {
        let folder = tempfile::tempdir().unwrap();
        let (content, path) = (folder.path().join("content"), folder.path().join("image"));
        fs::create_dir_all(content.join("a/b")).unwrap();
        for number in 0..200 {
            fs::write(
                content.join(format!("a/some file with a name of some length {number}")),
                "x",
            )
            .unwrap();
        }
        fs::write(content.join("a/b/large"), vec![7; 300_000]).unwrap();
        std::os::unix::fs::symlink("t".repeat(200), content.join("link")).unwrap();
        fs::File::create(&path).unwrap().set_len(4 << 20).unwrap();
        let mut command = Command::new("mke2fs");
        command
            .args(["-q", "-F", "-b", "1024", "-N", "512", "-d"])
            .arg(&content)
            .args(mkfs)
            .arg(&path);
        assert!(command.status().unwrap().success());
        fs::read(&path).unwrap()
    }

    fn open(bytes: Vec<u8>) -> Option<Ext4Tree> {
        let bytes: Arc<dyn ReadAt> = Arc::new(Memory(bytes));
        match probe::probe(bytes.as_ref()).unwrap()?.content {
            Content::Ext(superblock) => Ext4Tree::open(bytes, &superblock).ok(),
            _ => None,
        }
    }

    /// Looks at everything, bounded: a crafted tree may be endless.
    fn look_at_all(tree: &Ext4Tree) -> usize {
        let (mut todo, mut seen) = (vec![PathBuf::from("/")], 0);
        while let Some(path) = todo.pop() {
            seen += 1;
            let _ = tree.read_range(&path, 0, 400_000);
            let _ = tree.read_range(&path, 5 << 20, 1000);
            let _ = tree.read_link(&path);
            let _ = tree.access_list(&path);
            for entry in tree
                .read_dir(&path)
                .unwrap_or_default()
                .into_iter()
                .take(300)
            {
                let _ = tree.lstat(&path.join(&entry.name));
                if seen + todo.len() < 1000 && path.components().count() < 10 {
                    todo.push(path.join(entry.name));
                }
            }
        }
        seen
    }

    /// Bytes that are not file contents are where a crafted image differs; every mutation is of the
    /// first 700 KiB or so.
    #[test]
    fn noise_never_panics() {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut random = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state
        };
        let kinds: [&[&str]; 3] = [
            &["-t", "ext4", "-O", "^metadata_csum"],
            &["-t", "ext4"],
            &["-t", "ext2"],
        ];
        for mkfs in kinds {
            let clean = image(mkfs);
            assert!(look_at_all(&open(clean.clone()).unwrap()) > 200);
            let used: Vec<usize> = (1024..clean.len())
                .filter(|at| clean[*at] != 0 && clean[*at] != 7)
                .collect();
            let mut opened = 0;
            for _ in 0..150 {
                let mut dirty = clean.clone();
                for _ in 0..1 + random() % 12 {
                    let at = used[random() as usize % used.len()];
                    dirty[at] = if random() % 2 == 0 {
                        random() as u8
                    } else {
                        dirty[at] ^ (1 << (random() % 8))
                    };
                }
                if let Some(tree) = open(dirty) {
                    opened += 1;
                    look_at_all(&tree);
                }
            }
            assert!(
                opened > 20,
                "{mkfs:?}: only {opened} damaged images could be opened at all"
            );
        }
    }

    /// mke2fs copies access lists: a short one into a large inode, a long one (or any of a small
    /// inode) into a block of its own.
    #[test]
    fn access_lists_are_read_where_ext4_keeps_them() {
        let folder = tempfile::tempdir().unwrap();
        let (content, path) = (folder.path().join("content"), folder.path().join("image"));
        fs::create_dir(&content).unwrap();
        let many: Vec<u32> = (1000..1060).collect();
        for (name, users) in [
            ("none", &many[..0]),
            ("one", &many[..1]),
            ("many", &many[..]),
        ] {
            fs::write(content.join(name), "x").unwrap();
            let entries: Vec<String> = users.iter().map(|user| format!("u:{user}:rw")).collect();
            let entries = if entries.is_empty() {
                "u::rw".to_owned()
            } else {
                entries.join(",") + ",g:7:r,m::r"
            };
            let set = Command::new("setfacl")
                .args(["-m", &entries])
                .arg(content.join(name))
                .status()
                .unwrap();
            assert!(set.success());
        }
        for mkfs in [
            &["-t", "ext4", "-I", "256"],
            &["-t", "ext4", "-I", "128"],
            &["-t", "ext2", "-I", "128"],
        ] {
            fs::File::create(&path).unwrap().set_len(4 << 20).unwrap();
            let mut command = Command::new("mke2fs");
            command
                .args(["-q", "-F", "-b", "1024", "-d"])
                .arg(&content)
                .args(mkfs)
                .arg(&path);
            assert!(command.status().unwrap().success());
            let tree = open(fs::read(&path).unwrap()).unwrap();
            let list = |name: &str| tree.access_list(&Path::new("/").join(name)).unwrap();
            assert_eq!(list("none"), None, "{mkfs:?}");
            for (name, users) in [("one", &many[..1]), ("many", &many[..])] {
                let mut named: Vec<(Named, u32)> =
                    users.iter().map(|user| (Named::User(*user), 4)).collect();
                named.push((Named::Group(7), 4));
                assert_eq!(list(name).unwrap().named(), named, "{mkfs:?} {name}");
                let kernel = crate::tree::FolderTree::open(&content).unwrap();
                assert_eq!(
                    list(name),
                    kernel.access_list(&Path::new("/").join(name)).unwrap(),
                    "{mkfs:?} {name}"
                );
            }
        }
    }

    #[test]
    fn an_error_in_the_journal_is_seen() {
        let mut bytes = image(&["-t", "ext4"]);
        let has_error = |bytes: &[u8]| {
            let superblock = ExtSuper::parse(&bytes[1024..]).unwrap().unwrap();
            super::super::ext4_inode::journal_has_error(
                Arc::new(Memory(bytes.to_vec())),
                &superblock,
            )
        };
        assert!(!has_error(&bytes));
        let journal = bytes
            .windows(8)
            .position(|window| window == b"\xc0\x3b\x39\x98\0\0\0\x04")
            .expect("no journal");
        bytes[journal + 0x23] = 5;
        assert!(has_error(&bytes));
    }

    #[test]
    fn a_giant_size_does_no_harm() {
        let clean = image(&["-t", "ext4", "-O", "^metadata_csum"]);
        let tree = open(clean.clone()).unwrap();
        let number = tree.lstat(Path::new("/a/b/large")).unwrap().ino.unwrap();
        // The size of every inode in the table that has the large file's size becomes gigantic:
        // holes, not memory.
        let mut crafted = clean;
        let size = 300_000u32.to_le_bytes();
        let at = crafted
            .windows(4)
            .position(|window| window == size)
            .expect("the inode is somewhere");
        crafted[at + 0x6c - 4..at + 0x6c].copy_from_slice(&0x0fff_ffffu32.to_le_bytes());
        let tree = open(crafted).unwrap();
        let meta = tree.lstat(Path::new("/a/b/large")).unwrap();
        assert_eq!((meta.ino, meta.size > 1 << 50), (Some(number), true));
        assert!(matches!(
            tree.read(Path::new("/a/b/large"), 1 << 20),
            Err(TreeError::TooLarge { .. })
        ));
        let start = tree
            .inodes
            .read_data(
                &tree.lookup(Path::new("/a/b/large")).unwrap().0,
                0,
                &mut [0; 100],
            )
            .unwrap();
        assert_eq!(start, 100);
        let past = tree.read_range(Path::new("/a/b/large"), 1 << 50, 100);
        assert!(matches!(past, Err(TreeError::Corrupt { .. })), "{past:?}");
    }
}
