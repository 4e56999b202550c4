//! The subvolumes of a mounted btrfs, as the kernel tells them (`BTRFS_IOC_TREE_SEARCH` over the
//! tree of tree roots; structures from <uapi/linux/btrfs_tree.h>).

use std::collections::{BTreeMap, HashMap};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, Result, ensure};
use nix::errno::Errno;
use rustix::fs::{Mode, OFlags};

use crate::base::sys;
use crate::disk::bytes::{le16, le32, le64};

/// The subvolume that holds all others (`BTRFS_FS_TREE_OBJECTID`).
pub const TOP_LEVEL: u64 = 5;

const ROOT_TREE: u64 = 1;
const FIRST_FREE: u64 = 256;
const LAST_FREE: u64 = u64::MAX - 255;
const ROOT_TREE_FOLDER: u64 = 6;
const ROOT_ITEM: u32 = 132;
const ROOT_BACKREF: u32 = 144;
const DIR_ITEM: u32 = 84;

/// More than any system has; a crafted one must not fill the memory.
const MAX_SUBVOLUMES: usize = 100_000;
/// As deep as subvolumes are followed into each other.
const MAX_DEPTH: usize = 64;

/// One subvolume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subvolume {
    /// Its number, as `subvolid=` names it.
    pub id: u64,
    /// Its path below the top level, without a leading slash; empty for the top level itself.
    pub path: PathBuf,
    /// Whether it was made as a snapshot of another.
    pub is_snapshot: bool,
    /// Whether it is marked read-only.
    pub read_only: bool,
    /// How many snapshots of it there are.
    pub snapshots: usize,
}

/// All subvolumes of one file system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subvolumes {
    /// By number, the top level first.
    pub all: Vec<Subvolume>,
    /// What is mounted where nothing is asked for.
    pub default: u64,
}

impl Subvolumes {
    /// Asks the kernel; `root` is the top level of a mounted btrfs (`O_PATH` is enough). Subvolumes
    /// that are being deleted are left out.
    pub fn read(root: impl AsFd) -> Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::openat(root, ".", flags, Mode::empty())
            .context("opening the top level of the btrfs")?;
        let roots = Roots::read(root.as_fd()).context("listing the subvolumes of the btrfs")?;
        Ok(roots.into_subvolumes(|tree, folder| folder_path(root.as_fd(), tree, folder)))
    }

    /// By number.
    pub fn by_id(&self, id: u64) -> Option<&Subvolume> {
        self.all.iter().find(|subvolume| subvolume.id == id)
    }

    /// By path, as `subvol=` writes it: with or without a leading slash.
    pub fn by_path(&self, path: &Path) -> Option<&Subvolume> {
        let wanted: PathBuf = path
            .components()
            .filter(|part| matches!(part, Component::Normal(_)))
            .collect();
        self.all.iter().find(|subvolume| subvolume.path == wanted)
    }

    /// The one that is mounted where nothing is asked for.
    pub fn default(&self) -> Option<&Subvolume> {
        self.by_id(self.default)
    }
}

/// What the tree of roots holds.
#[derive(Debug, Default)]
struct Roots {
    items: BTreeMap<u64, Root>,
    /// By subvolume: the subvolume above it, the folder in that, its name.
    places: HashMap<u64, (u64, u64, Vec<u8>)>,
    default: Option<u64>,
}

#[derive(Debug, Clone)]
struct Root {
    uuid: [u8; 16],
    parent: [u8; 16],
    read_only: bool,
}

impl Roots {
    fn read(root: BorrowedFd<'_>) -> Result<Self> {
        let mut roots = Self::default();
        search(
            root,
            (ROOT_TREE_FOLDER, DIR_ITEM),
            (ROOT_TREE_FOLDER, DIR_ITEM),
            |item| roots.add(item),
        )?;
        search(
            root,
            (FIRST_FREE, ROOT_ITEM),
            (LAST_FREE, ROOT_BACKREF),
            |item| roots.add(item),
        )?;
        // The top level has no place, but an own UUID that its snapshots name.
        search(
            root,
            (TOP_LEVEL, ROOT_ITEM),
            (TOP_LEVEL, ROOT_ITEM),
            |item| roots.add(item),
        )?;
        ensure!(
            roots.items.len() <= MAX_SUBVOLUMES,
            "it has more than {MAX_SUBVOLUMES} subvolumes"
        );
        Ok(roots)
    }

    fn add(&mut self, item: &Item<'_>) {
        match item.kind {
            ROOT_ITEM => {
                const FLAGS: usize = 208;
                const REFERENCES: usize = 216;
                const READ_ONLY: u64 = 1;
                let field = |at: usize| {
                    item.data
                        .get(at..at + 16)
                        .and_then(|field| field.try_into().ok())
                };
                // Without references it is being deleted; before Linux 3.6 the item ended before
                // the UUIDs.
                if le32(item.data, REFERENCES) == 0 {
                    return;
                }
                let (uuid, parent) = (field(247).unwrap_or([0; 16]), field(263).unwrap_or([0; 16]));
                let read_only = le64(item.data, FLAGS) & READ_ONLY != 0;
                self.items.insert(
                    item.object,
                    Root {
                        uuid,
                        parent,
                        read_only,
                    },
                );
            }
            ROOT_BACKREF => {
                const NAME: usize = 18;
                let length = usize::from(le16(item.data, 16));
                let Some(name) = item.data.get(NAME..NAME + length) else {
                    return;
                };
                self.places.insert(
                    item.object,
                    (item.offset, le64(item.data, 0), name.to_vec()),
                );
            }
            DIR_ITEM => {
                const NAME: usize = 30;
                if item.data.get(NAME..NAME + usize::from(le16(item.data, 27))) == Some(b"default")
                {
                    self.default = Some(le64(item.data, 0));
                }
            }
            _ => {}
        }
    }

    /// `folder` tells the path of a folder inside a subvolume.
    fn into_subvolumes(self, folder: impl Fn(u64, u64) -> Option<PathBuf>) -> Subvolumes {
        let mut snapshots: HashMap<[u8; 16], usize> = HashMap::new();
        for root in self.items.values().filter(|root| root.parent != [0; 16]) {
            *snapshots.entry(root.parent).or_default() += 1;
        }
        let describe = |id: u64, path: PathBuf, root: Option<&Root>| Subvolume {
            id,
            path,
            is_snapshot: root.is_some_and(|root| root.parent != [0; 16]),
            read_only: root.is_some_and(|root| root.read_only),
            snapshots: root.filter(|root| root.uuid != [0; 16]).map_or(0, |root| {
                snapshots.get(&root.uuid).copied().unwrap_or_default()
            }),
        };
        let mut all = vec![describe(
            TOP_LEVEL,
            PathBuf::new(),
            self.items.get(&TOP_LEVEL),
        )];
        let mut known: HashMap<u64, Option<PathBuf>> =
            HashMap::from([(TOP_LEVEL, Some(PathBuf::new()))]);
        for (id, root) in self.items.iter().filter(|(id, _)| **id != TOP_LEVEL) {
            if let Some(path) = self.path(*id, &folder, &mut known, 0) {
                all.push(describe(*id, path, Some(root)));
            }
        }
        Subvolumes {
            all,
            default: self.default.unwrap_or(TOP_LEVEL),
        }
    }

    fn path(
        &self,
        id: u64,
        folder: &impl Fn(u64, u64) -> Option<PathBuf>,
        known: &mut HashMap<u64, Option<PathBuf>>,
        depth: usize,
    ) -> Option<PathBuf> {
        if let Some(path) = known.get(&id) {
            return path.clone();
        }
        let path =
            self.places
                .get(&id)
                .filter(|_| depth < MAX_DEPTH)
                .and_then(|(above, at, name)| {
                    let above_path = self.path(*above, folder, known, depth + 1)?;
                    let name = Path::new(std::ffi::OsStr::from_bytes(name));
                    // A crafted name could be a path of its own.
                    let mut parts = name.components();
                    if !matches!(
                        (parts.next(), parts.next()),
                        (Some(Component::Normal(part)), None) if part == name.as_os_str()
                    ) {
                        return None;
                    }
                    Some(above_path.join(folder(*above, *at)?).join(name))
                });
        known.insert(id, path.clone());
        path
    }
}

/// Where a folder lies inside its subvolume; `None` when the kernel cannot tell, or what it says is
/// no plain path.
fn folder_path(root: BorrowedFd<'_>, tree: u64, folder: u64) -> Option<PathBuf> {
    let bytes = sys::btrfs_folder_path(root, tree, folder).ok()?;
    let path = PathBuf::from(std::ffi::OsStr::from_bytes(&bytes));
    path.components()
        .all(|part| matches!(part, Component::Normal(_)))
        .then_some(path)
}

/// One item of a tree.
struct Item<'a> {
    object: u64,
    kind: u32,
    offset: u64,
    data: &'a [u8],
}

/// Shows `each` item between two keys (object, kind).
fn search(
    root: BorrowedFd<'_>,
    from: (u64, u32),
    to: (u64, u32),
    mut each: impl FnMut(&Item<'_>),
) -> Result<(), Errno> {
    const KEY: usize = 104;
    const HEADER: usize = 32;
    let (mut object, mut kind, mut offset) = (from.0, from.1, 0);
    // Far more rounds than so many subvolumes take.
    for _ in 0..MAX_SUBVOLUMES {
        let mut page = Box::new([0_u8; 4096]);
        let mut put =
            |at: usize, value: u64| page[at..at + 8].copy_from_slice(&value.to_le_bytes());
        put(0, ROOT_TREE);
        put(8, object);
        put(16, to.0);
        put(24, offset);
        put(32, u64::MAX);
        put(48, u64::MAX);
        let mut put =
            |at: usize, value: u32| page[at..at + 4].copy_from_slice(&value.to_le_bytes());
        put(56, kind);
        put(60, to.1);
        put(64, u32::MAX);
        sys::btrfs_tree_search(root, &mut page)?;
        let count = le32(page.as_slice(), 64);
        let mut at = KEY;
        for _ in 0..count {
            let Some(header) = page.get(at..at + HEADER) else {
                return Ok(());
            };
            let length = le32(header, 28) as usize;
            let Some(data) = page.get(at + HEADER..at + HEADER + length) else {
                return Ok(());
            };
            (object, offset, kind) = (le64(header, 8), le64(header, 16), le32(header, 24));
            each(&Item {
                object,
                kind,
                offset,
                data,
            });
            at += HEADER + length;
        }
        // The next key after the last one seen.
        (object, kind, offset) = match (
            offset.checked_add(1),
            kind.checked_add(1),
            object.checked_add(1),
        ) {
            _ if count == 0 => return Ok(()),
            (Some(next), _, _) => (object, kind, next),
            (None, Some(next), _) => (object, next, 0),
            (None, None, Some(next)) => (next, 0, 0),
            (None, None, None) => return Ok(()),
        };
        if (object, kind) > to {
            return Ok(());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn root(uuid: u8, parent: u8, read_only: bool) -> Root {
        Root {
            uuid: [uuid; 16],
            parent: [parent; 16],
            read_only,
        }
    }

    #[test]
    fn paths_and_snapshots() {
        let roots = Roots {
            items: BTreeMap::from([
                (5, root(1, 0, false)),
                (256, root(2, 0, false)),
                (257, root(3, 0, false)),
                (258, root(4, 2, true)),
                (259, root(5, 0, false)),
                (300, root(6, 0, false)),
            ]),
            places: HashMap::from([
                (256, (5, 256, b"@".to_vec())),
                (257, (256, 256, b".snapshots".to_vec())),
                (258, (257, 400, b"snapshot".to_vec())),
                // A loop, and a name that is a path.
                (259, (259, 256, b"loop".to_vec())),
                (300, (5, 256, b"../../etc".to_vec())),
            ]),
            default: Some(258),
        };
        let subvolumes = roots.into_subvolumes(|tree, folder| match (tree, folder) {
            (_, 256) => Some(PathBuf::new()),
            (257, 400) => Some("1".into()),
            _ => None,
        });
        let seen: Vec<(u64, &str)> = subvolumes
            .all
            .iter()
            .map(|there| (there.id, there.path.to_str().unwrap()))
            .collect();
        assert_eq!(
            seen,
            [
                (5, ""),
                (256, "@"),
                (257, "@/.snapshots"),
                (258, "@/.snapshots/1/snapshot")
            ]
        );
        let at = subvolumes.by_path(Path::new("/@")).unwrap();
        assert_eq!(
            (at.snapshots, at.is_snapshot, at.read_only),
            (1, false, false)
        );
        let default = subvolumes.default().unwrap();
        assert!(default.is_snapshot && default.read_only);
        assert_eq!(subvolumes.by_path(Path::new("/")).unwrap().id, 5);
    }
}
