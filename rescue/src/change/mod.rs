//! The closed set of primitives that a repair is made of. Only these are journaled, applied,
//! verified and undone; each names what it expects to find and is refused when the guest holds
//! something else.

mod draft;
pub mod folder;
pub mod line;
mod planned;
pub mod secret;
pub mod tree_hash;

pub use draft::Draft;
pub use folder::{BuildFolder, FolderSink, SinkFile, Sources};
pub use planned::Planned;

use crate::base::hash::{hex, sha256_hex};
use sha2::{Digest, Sha256};
use std::ffi::OsStr;
use std::fmt;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use crate::guest::{Guest, GuestPath, RealPath};
use crate::tree::{FileKind, Tree, TreeError, TreeResult};

/// Bytes of a file to be written. May hold private keys, so it is never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Content {
    bytes: Vec<u8>,
    is_secret: bool,
}

impl Content {
    /// Wraps the bytes. They are secret where a private key is found in them, so that no writer of
    /// keys can forget to say so.
    pub fn new(bytes: impl Into<Vec<u8>>) -> Self {
        let bytes = bytes.into();
        Self {
            is_secret: secret::holds_private_key(&bytes),
            bytes,
        }
    }

    /// Wraps bytes that are secret whatever they look like.
    pub fn secret(bytes: impl Into<Vec<u8>>) -> Self {
        Self {
            bytes: bytes.into(),
            is_secret: true,
        }
    }

    /// Whether the file that gets the bytes must be closed to others; see [`secret`].
    pub fn is_secret(&self) -> bool {
        self.is_secret
    }

    /// The bytes themselves, for the journal's staged blobs and for planned trees only.
    pub fn expose(&self) -> &[u8] {
        &self.bytes
    }

    /// SHA-256 in lower-case hexadecimal.
    pub fn sha256(&self) -> String {
        sha256_hex(&self.bytes)
    }
}

impl fmt::Debug for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Content({} bytes)", self.bytes.len())
    }
}

/// Read at once of a file that is only hashed.
const CHUNK: usize = 1 << 20;

/// SHA-256 of a file of any size.
fn hash_of(tree: &dyn Tree, path: &Path, size: u64) -> TreeResult<String> {
    let mut hasher = Sha256::new();
    each_chunk(tree, path, size, &mut |_, bytes| hasher.update(bytes))?;
    Ok(hex(&hasher.finalize()))
}

/// Shows a regular file of `size` bytes piece by piece, each with its place; the visitor may change
/// its own copy.
pub(super) fn each_chunk(
    tree: &dyn Tree,
    path: &Path,
    size: u64,
    visitor: &mut dyn FnMut(u64, &mut [u8]),
) -> TreeResult<()> {
    let mut at = 0;
    while at < size {
        let mut bytes = tree.read_range(
            path,
            at,
            CHUNK.min(usize::try_from(size - at).unwrap_or(CHUNK)),
        )?;
        if bytes.is_empty() {
            break;
        }
        visitor(at, &mut bytes);
        at += bytes.len() as u64;
    }
    Ok(())
}

/// Some bytes of a file, and what they become.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Edit {
    /// Where they begin.
    pub offset: u64,
    /// What is written there.
    pub bytes: Content,
}

impl Edit {
    /// Writes what of it lies in `chunk`, which begins at `at` in the file.
    pub fn apply(&self, at: u64, chunk: &mut [u8]) {
        let bytes = self.bytes.expose();
        let within =
            |from: u64, length: usize| usize::try_from(from).unwrap_or(usize::MAX).min(length);
        let (skipped, place) = (
            within(at.saturating_sub(self.offset), bytes.len()),
            within(self.offset.saturating_sub(at), chunk.len()),
        );
        let rest = chunk.get_mut(place..).unwrap_or_default();
        for (place, byte) in rest
            .iter_mut()
            .zip(bytes.get(skipped..).unwrap_or_default())
        {
            *place = *byte;
        }
    }
}

/// What must be at a path before a change touches it.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Expect {
    /// Nothing.
    Absent,
    /// A regular file with this SHA-256 (lower-case hexadecimal).
    File {
        /// Hash of its bytes.
        sha256: String,
    },
    /// A symbolic link with this target.
    Symlink {
        /// The target as stored.
        target: PathBuf,
    },
    /// A folder.
    Directory,
    /// A folder with exactly this in it.
    Tree {
        /// See [`tree_hash::of`].
        sha256: String,
    },
}

impl Expect {
    /// What is at `path` in `guest` now (with what is planned so far).
    pub fn now(guest: &Guest, path: &RealPath) -> TreeResult<Self> {
        let tree = guest.tree();
        let meta = match tree.lstat(path.as_path()) {
            Ok(meta) => meta,
            Err(TreeError::NotFound(_)) => return Ok(Self::Absent),
            Err(error) => return Err(error),
        };
        Ok(match meta.kind {
            FileKind::Regular => Self::File {
                sha256: hash_of(tree.as_ref(), path.as_path(), meta.size)?,
            },
            FileKind::Symlink => Self::Symlink {
                target: tree.read_link(path.as_path())?,
            },
            FileKind::Directory => Self::Directory,
            FileKind::Special => {
                return Err(TreeError::NotARegularFile(path.as_path().to_path_buf()));
            }
        })
    }
}

/// What makes a folder anew. Two are equal only where they are the same one.
#[derive(Debug, Clone)]
pub struct Recipe(Rc<dyn BuildFolder>);

impl Recipe {
    /// The recipe itself.
    pub fn build_folder(&self) -> &dyn BuildFolder {
        self.0.as_ref()
    }
}

impl PartialEq for Recipe {
    fn eq(&self, other: &Self) -> bool {
        Rc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Recipe {}

/// Owner and mode of what a change leaves behind. Extended attributes (`security.selinux`, ACLs)
/// are copied from the file that is replaced, else `security.selinux` alone from a sibling in the
/// same folder, else from the folder.
///
/// Where the content is [secret](Content::is_secret), [`secret`] takes away what would open it to
/// others: bits of the mode, the access list.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Attributes {
    /// Owner, group, mode of the file that is replaced.
    Keep,
    /// These.
    Set {
        /// Permission bits.
        mode: u32,
        /// Owner.
        uid: u32,
        /// Group.
        gid: u32,
    },
}

/// One step of a repair.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// Create or replace a regular file, by a temporary file and rename.
    Write {
        /// Where.
        path: RealPath,
        /// The new bytes.
        content: Content,
        /// Owner and mode.
        attributes: Attributes,
        /// What is there before.
        expect: Expect,
    },
    /// Replace a regular file, which may be of any size, by a copy of its first `size` bytes in
    /// which some are others. Owner, mode and all else stay.
    Patch {
        /// Where.
        path: RealPath,
        /// What is written over.
        edits: Vec<Edit>,
        /// Length afterwards, at most what it is now.
        size: u64,
        /// SHA-256 afterwards.
        sha256: String,
        /// What is there before.
        expect: Expect,
    },
    /// Create or replace a symbolic link, by a temporary link and rename.
    Symlink {
        /// Where.
        path: RealPath,
        /// The target as the guest will see it.
        target: PathBuf,
        /// What is there before.
        expect: Expect,
    },
    /// Remove a file or link; undo puts it back.
    Remove {
        /// Where.
        path: RealPath,
        /// What is there before.
        expect: Expect,
    },
    /// Create a folder; its parent must be there.
    MakeDir {
        /// Where.
        path: RealPath,
        /// Owner and mode; `Keep` means 0755 and the parent's owner.
        attributes: Attributes,
    },
    /// Put a folder that is made anew in the place of what is there, with one exchange of the two
    /// names. The old one is kept whole.
    ReplaceFolder {
        /// Where.
        path: RealPath,
        /// What makes the new one.
        build: Recipe,
        /// What is there before: a folder, a fence or nothing.
        expect: Expect,
    },
    /// Put a file in the place of a folder, with one exchange of the two names: who would make the
    /// folder anew where it is missing (etcd starts a new, empty member) then stops instead.
    Fence {
        /// Where.
        path: RealPath,
        /// What the file says, one sentence; the run and how to take it back are added.
        why: String,
        /// What is there before.
        expect: Expect,
    },
}

impl Change {
    /// The path it changes.
    pub fn path(&self) -> &RealPath {
        match self {
            Self::Write { path, .. }
            | Self::Patch { path, .. }
            | Self::Symlink { path, .. }
            | Self::Remove { path, .. }
            | Self::MakeDir { path, .. }
            | Self::ReplaceFolder { path, .. }
            | Self::Fence { path, .. } => path,
        }
    }

    /// Writes `content` where `path` leads (through links), keeping owner and mode; a new file gets
    /// `mode` and root's ownership. An empty folder there, as a container runtime makes one where a
    /// file that it is to mount is missing, changes places with the file and is kept.
    pub fn write(
        guest: &Guest,
        path: &GuestPath,
        content: impl Into<Vec<u8>>,
        mode: u32,
    ) -> TreeResult<Self> {
        let real = match guest.resolve(path) {
            Ok(real) => real,
            Err(TreeError::NotFound(_)) => guest.resolve_parent(path)?,
            Err(error) => return Err(error),
        };
        let expect = match Expect::now(guest, &real)? {
            Expect::Directory if guest.tree().read_dir(real.as_path())?.is_empty() => {
                whole(guest, path)?.1
            }
            other => other,
        };
        let attributes = match expect {
            Expect::File { .. } => Attributes::Keep,
            _ => Attributes::Set {
                mode,
                uid: 0,
                gid: 0,
            },
        };
        Ok(Self::Write {
            path: real,
            content: Content::new(content),
            attributes,
            expect,
        })
    }

    /// Cuts the file at `path` to its first `size` bytes and writes `edits` into it; reads it once
    /// from end to end.
    pub fn patch(guest: &Guest, path: &GuestPath, edits: Vec<Edit>, size: u64) -> TreeResult<Self> {
        let real = guest.resolve(path)?;
        let tree = guest.tree();
        let meta = tree.lstat(real.as_path())?;
        if meta.kind != FileKind::Regular {
            return Err(TreeError::NotARegularFile(real.as_path().to_path_buf()));
        }
        let size = size.min(meta.size);
        let (mut before, mut after) = (Sha256::new(), Sha256::new());
        each_chunk(
            tree.as_ref(),
            real.as_path(),
            meta.size,
            &mut |at, bytes| {
                before.update(&*bytes);
                edits.iter().for_each(|edit| edit.apply(at, bytes));
                let kept = usize::try_from(size.saturating_sub(at))
                    .unwrap_or(usize::MAX)
                    .min(bytes.len());
                after.update(bytes.get(..kept).unwrap_or_default());
            },
        )?;
        let expect = Expect::File {
            sha256: hex(&before.finalize()),
        };
        Ok(Self::Patch {
            path: real,
            edits,
            size,
            sha256: hex(&after.finalize()),
            expect,
        })
    }

    /// Points the link at `path` (its parent resolved, itself not followed) to `target`.
    pub fn symlink(
        guest: &Guest,
        path: &GuestPath,
        target: impl Into<PathBuf>,
    ) -> TreeResult<Self> {
        let real = guest.resolve_parent(path)?;
        let expect = Expect::now(guest, &real)?;
        Ok(Self::Symlink {
            path: real,
            target: target.into(),
            expect,
        })
    }

    /// Removes what is at `path` itself.
    pub fn remove(guest: &Guest, path: &GuestPath) -> TreeResult<Self> {
        let real = guest.resolve_parent(path)?;
        let expect = Expect::now(guest, &real)?;
        Ok(Self::Remove { path: real, expect })
    }

    /// Puts what `build` makes where `path` leads (through links). Reads what is there once from
    /// end to end.
    ///
    /// # Errors
    /// What cannot be read; [`TreeError::Unsupported`] where another file system is mounted in it,
    /// or would be at boot.
    pub fn replace_folder(
        guest: &Guest,
        path: &GuestPath,
        build: Rc<dyn BuildFolder>,
    ) -> TreeResult<Self> {
        let (path, expect) = whole(guest, path)?;
        Ok(Self::ReplaceFolder {
            path,
            build: Recipe(build),
            expect,
        })
    }

    /// Puts a file where `path` leads (through links). Reads what is there once from end to end.
    ///
    /// # Errors
    /// As of [`Change::replace_folder`].
    pub fn fence(guest: &Guest, path: &GuestPath, why: impl Into<String>) -> TreeResult<Self> {
        let (path, expect) = whole(guest, path)?;
        Ok(Self::Fence {
            path,
            why: why.into(),
            expect,
        })
    }

    /// The folders that are missing on the way to `path`, outermost first, then nothing. `..` in
    /// the missing part is refused by the resolver.
    pub fn make_dirs(guest: &Guest, path: &GuestPath, mode: u32) -> TreeResult<Vec<Self>> {
        let mut missing: Vec<&OsStr> = Vec::new();
        let mut there = path.as_path();
        let real = loop {
            match guest.resolve(&GuestPath::new(there)) {
                Ok(real) => break real,
                Err(TreeError::NotFound(_)) => {
                    missing.push(
                        there
                            .file_name()
                            .ok_or_else(|| TreeError::NotFound(there.to_path_buf()))?,
                    );
                    there = there
                        .parent()
                        .ok_or_else(|| TreeError::NotFound(there.to_path_buf()))?;
                }
                Err(error) => return Err(error),
            }
        };
        let mut at = real;
        Ok(missing
            .into_iter()
            .rev()
            .map(|name| {
                at = at.child(name);
                Self::MakeDir {
                    path: at.clone(),
                    attributes: Attributes::Set {
                        mode,
                        uid: 0,
                        gid: 0,
                    },
                }
            })
            .collect())
    }
}

/// Where `path` leads and all that is there.
fn whole(guest: &Guest, path: &GuestPath) -> TreeResult<(RealPath, Expect)> {
    let real = match guest.resolve(path) {
        Ok(real) => real,
        Err(TreeError::NotFound(_)) => guest.resolve_parent(path)?,
        Err(error) => return Err(error),
    };
    let mounted = guest
        .file_systems
        .iter()
        .map(|file_system| &file_system.mount_point);
    let missing = guest.missing.iter().map(|missing| &missing.at);
    if let Some(inside) = mounted
        .chain(missing)
        .find(|at| at.as_path().starts_with(real.as_path()))
    {
        let reason = format!(
            "{inside} is a mount point, and what is mounted there cannot be exchanged with the \
             folder"
        );
        return Err(TreeError::Unsupported {
            path: real.as_path().to_path_buf(),
            reason,
        });
    }
    let expect = match Expect::now(guest, &real)? {
        Expect::Directory => Expect::Tree {
            sha256: tree_hash::of(guest.tree().as_ref(), real.as_path())?,
        },
        other => other,
    };
    Ok((real, expect))
}

/// How one file gives back its space. Freed bytes have no undo; the plan says so before asking.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Freeing {
    /// Unlink it.
    Delete,
    /// Keep the inode and the last so many bytes, cut at the start of a line; never more than half
    /// of the file, because the tail is copied over the beginning and an interruption must leave
    /// one of the two whole.
    KeepTail(u64),
}

/// One file to be freed. Idempotent: a file that is already gone, or already short, is done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FreeAction {
    /// Which file; never a link.
    pub path: RealPath,
    /// How.
    pub freeing: Freeing,
    /// Apparent size when it was looked at; a file of another size is left alone and reported.
    pub size: u64,
    /// Modification time when it was looked at, seconds since 1970; as `size`.
    pub mtime: i64,
    /// Bytes it is expected to give back (0 for a further name of a file counted before).
    pub frees: u64,
}

/// What a remedy comes down to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Prepared {
    /// Runs first, least valuable first: everything after needs the space.
    pub free: Vec<FreeAction>,
    /// Journaled, in this order.
    pub changes: Vec<Change>,
}

impl Prepared {
    /// Whether there is nothing to be done.
    pub fn is_empty(&self) -> bool {
        self.free.is_empty() && self.changes.is_empty()
    }
}
