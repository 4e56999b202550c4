//! One walk over one file system: every inode once, allocated blocks as `du -x` counts them,
//! bounded memory.

use std::collections::{BinaryHeap, HashMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use crate::base::ui::Progress;
use crate::guest::{Guest, GuestPath};
use crate::tree::{FileKind, Meta, Tree, TreeError};

/// Inode numbers of hard-linked files that are remembered, so that each is counted once: 4 M take
/// about 64 MiB. Past it every name counts.
const MAX_LINKED_INODES: usize = 4 << 20;

/// Unreadable folders and files that are named; the rest is counted.
const MAX_UNREADABLE: usize = 20;

/// Largest files that are named.
const LARGEST_FILES: usize = 10;

/// A folder is named when it holds at least this share of what is in use, in per cent.
const ROW_PERCENT: u64 = 1;

/// Inode number of the root folder of every subvolume of a btrfs (`BTRFS_FIRST_FREE_OBJECTID`), and
/// of no other folder.
const SUBVOLUME_ROOT: u64 = 256;

/// How often progress is shown, in files.
const PROGRESS_STEP: u64 = 1024;

/// Bytes and inodes of some files together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize)]
pub struct Total {
    /// Allocated bytes.
    pub bytes: u64,
    /// Inodes: files, folders, links.
    pub inodes: u64,
}

impl Total {
    fn add(&mut self, other: Self) {
        self.bytes = self.bytes.saturating_add(other.bytes);
        self.inodes = self.inodes.saturating_add(other.inodes);
    }

    fn minus(self, other: Self) -> Self {
        Self {
            bytes: self.bytes.saturating_sub(other.bytes),
            inodes: self.inodes.saturating_sub(other.inodes),
        }
    }
}

/// A folder that holds much, without what is told of folders below it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// The folder.
    pub path: GuestPath,
    /// What it is, where that is known: "container images".
    pub label: Option<&'static str>,
    /// What it holds.
    pub total: Total,
}

/// What one walk saw.
#[derive(Debug, Clone, Default)]
pub struct Walked {
    /// Everything on the file system that has a name.
    pub total: Total,
    /// Folders that hold much, most bytes first; no byte is in two rows.
    pub rows: Vec<Row>,
    /// The largest files with their allocated bytes, largest first.
    pub largest: Vec<(GuestPath, u64)>,
    /// What could not be read, and why; at most some are named.
    pub unreadable: Vec<(GuestPath, String)>,
    /// How many could not be read.
    pub unreadable_count: u64,
}

/// Is shown every folder and regular file of a walk; `folder` is free of symbolic links.
pub trait Visitor {
    /// A folder begins.
    fn enter(&mut self, folder: &Path);
    /// A regular file in the folder that began last.
    fn file(&mut self, folder: &Path, name: &OsStr, meta: &Meta);
}

/// Bytes a file really takes. Where a tree cannot tell, whole blocks of its size.
pub fn allocated(meta: &Meta) -> u64 {
    meta.allocated.unwrap_or_else(|| match meta.kind {
        FileKind::Regular => meta
            .size
            .checked_next_multiple_of(4096)
            .unwrap_or(meta.size),
        _ => 0,
    })
}

/// Walks the file system `guest.file_systems[index]` within itself, all of its subvolumes that the
/// guest mounts included; what else is mounted below it is left out. `known` names folders that
/// become one row each, however little they hold.
pub fn walk(
    guest: &Guest,
    index: usize,
    known: &[(PathBuf, &'static str)],
    visitor: &mut dyn Visitor,
    progress: &dyn Progress,
) -> Walked {
    let Some(fs) = guest.file_systems.get(index) else {
        return Walked::default();
    };
    let usage = &fs.usage;
    let used_bytes = usage.bytes_total.saturating_sub(usage.bytes_free);
    let used_inodes = usage.inodes_total.saturating_sub(usage.inodes_free);
    let tree = guest.tree();
    let mut walker = Walker {
        tree: tree.as_ref(),
        others: guest
            .file_systems
            .iter()
            .map(|fs| fs.mount_point.as_path().to_path_buf())
            .collect(),
        known: known
            .iter()
            .map(|(path, label)| (path.as_path(), *label))
            .collect(),
        row_bytes: (used_bytes / 100 * ROW_PERCENT).max(1 << 20),
        row_inodes: (used_inodes / 100 * ROW_PERCENT).max(1000),
        // No file system has more folders than inodes; a damaged or crafted one may show the same
        // folder again and again.
        folders_left: if usage.inodes_total > 0 {
            usage.inodes_total.saturating_add(1)
        } else {
            u64::MAX
        },
        linked: HashSet::new(),
        largest: BinaryHeap::new(),
        since_progress: 0,
        visitor,
        progress,
        is_btrfs: fs.kind == "btrfs",
        walked: Walked::default(),
    };
    for shared in guest
        .sharing_bytes(index)
        .into_iter()
        .filter_map(|index| guest.file_systems.get(index))
    {
        match guest.resolve(&shared.mount_point) {
            Ok(real) => walker.run(real.as_path().to_path_buf()),
            Err(error) => {
                walker.unreadable::<()>(shared.mount_point.as_path(), &error);
            }
        }
        // Each subvolume numbers its inodes from the beginning.
        walker.linked.clear();
    }
    let mut walked = walker.walked;
    walked.rows.sort_by(|a, b| {
        b.total
            .bytes
            .cmp(&a.total.bytes)
            .then_with(|| a.path.cmp(&b.path))
    });
    let largest = std::mem::take(&mut walker.largest).into_sorted_vec();
    walked.largest = largest
        .into_iter()
        .map(|(bytes, path)| (GuestPath::new(path), bytes.0))
        .collect();
    walked
}

/// A folder under way.
struct Frame {
    name_was_pushed: bool,
    ino: Option<u64>,
    subfolders: Vec<OsString>,
    total: Total,
    /// What of `total` is in rows already.
    told: Total,
    label: Option<&'static str>,
}

struct Walker<'a> {
    tree: &'a dyn Tree,
    others: HashSet<PathBuf>,
    known: HashMap<&'a Path, &'static str>,
    row_bytes: u64,
    row_inodes: u64,
    folders_left: u64,
    linked: HashSet<u64>,
    largest: BinaryHeap<(std::cmp::Reverse<u64>, PathBuf)>,
    since_progress: u64,
    visitor: &'a mut dyn Visitor,
    progress: &'a dyn Progress,
    /// Inode numbers then are those of a subvolume only.
    is_btrfs: bool,
    walked: Walked,
}

impl Walker<'_> {
    /// Depth first with a stack of its own: a guest's folders may be nested deeper than a thread's
    /// stack is large.
    fn run(&mut self, start: PathBuf) {
        let mut path = start;
        let mut stack: Vec<Frame> = Vec::new();
        if let Some(frame) = self.enter(&path, &stack, false) {
            stack.push(frame);
        }
        while let Some(top) = stack.last_mut() {
            let Some(name) = top.subfolders.pop() else {
                self.leave(&mut path, &mut stack);
                continue;
            };
            path.push(&name);
            if self.others.contains(&path) {
                path.pop();
                continue;
            }
            match self.enter(&path, &stack, true) {
                Some(frame) => stack.push(frame),
                None => {
                    path.pop();
                }
            }
        }
        self.progress.advance(self.since_progress);
    }

    fn enter(&mut self, path: &Path, stack: &[Frame], name_was_pushed: bool) -> Option<Frame> {
        let meta = match self.tree.lstat(path) {
            Ok(meta) if meta.kind == FileKind::Directory => meta,
            Ok(_) => return None,
            Err(error) => return self.unreadable(path, &error),
        };
        // A subvolume of its own that is not part of the guest's mount table: a snapshot, a layer
        // of an image.
        if self.is_btrfs && !stack.is_empty() && meta.ino == Some(SUBVOLUME_ROOT) {
            return None;
        }
        if self.folders_left == 0
            || (meta.ino.is_some() && stack.iter().any(|frame| frame.ino == meta.ino))
        {
            let reason = "the folder is inside itself: the file system is damaged".to_owned();
            return self.unreadable(
                path,
                &TreeError::Corrupt {
                    path: path.to_path_buf(),
                    reason,
                },
            );
        }
        self.folders_left -= 1;
        let mut frame = Frame {
            name_was_pushed,
            ino: meta.ino,
            subfolders: Vec::new(),
            total: Total {
                bytes: allocated(&meta),
                inodes: 1,
            },
            told: Total::default(),
            label: self.known.get(path).copied(),
        };
        // A folder that cannot be listed still takes its own blocks.
        let entries = self.tree.read_dir(path).unwrap_or_else(|error| {
            self.unreadable::<()>(path, &error);
            Vec::new()
        });
        self.visitor.enter(path);
        let mut file = path.to_path_buf();
        for entry in entries {
            if entry.kind == FileKind::Directory {
                frame.subfolders.push(entry.name);
                continue;
            }
            file.push(&entry.name);
            match self.tree.lstat(&file) {
                Ok(meta) => self.file(path, &file, &entry.name, &meta, &mut frame.total),
                Err(error) => {
                    self.unreadable::<()>(&file, &error);
                }
            }
            file.pop();
        }
        Some(frame)
    }

    fn file(&mut self, folder: &Path, path: &Path, name: &OsStr, meta: &Meta, total: &mut Total) {
        self.since_progress += 1;
        if self.since_progress == PROGRESS_STEP {
            self.progress.advance(self.since_progress);
            self.since_progress = 0;
        }
        if self.seen_before(meta) {
            if meta.kind == FileKind::Regular {
                self.visitor.file(folder, name, meta);
            }
            return;
        }
        let bytes = allocated(meta);
        total.add(Total { bytes, inodes: 1 });
        if meta.kind == FileKind::Regular {
            self.remember_large(path, bytes);
            self.visitor.file(folder, name, meta);
        }
    }

    /// Whether another name of the same inode was counted already.
    fn seen_before(&mut self, meta: &Meta) -> bool {
        match (meta.nlink, meta.ino) {
            (Some(nlink), Some(ino)) if nlink > 1 => {
                if self.linked.len() >= MAX_LINKED_INODES {
                    return self.linked.contains(&ino);
                }
                !self.linked.insert(ino)
            }
            _ => false,
        }
    }

    fn remember_large(&mut self, path: &Path, bytes: u64) {
        let smallest = self.largest.peek().map_or(0, |(bytes, _)| bytes.0);
        if bytes < 1 << 20 || (self.largest.len() >= LARGEST_FILES && bytes <= smallest) {
            return;
        }
        self.largest
            .push((std::cmp::Reverse(bytes), path.to_path_buf()));
        if self.largest.len() > LARGEST_FILES {
            self.largest.pop();
        }
    }

    fn leave(&mut self, path: &mut PathBuf, stack: &mut Vec<Frame>) {
        let Some(mut frame) = stack.pop() else { return };
        let inside_known = stack.iter().any(|frame| frame.label.is_some());
        let rest = frame.total.minus(frame.told);
        let large = rest.bytes >= self.row_bytes || rest.inodes >= self.row_inodes;
        // Within a folder that is known as a whole only other known ones are told apart.
        if frame.label.is_some() || stack.is_empty() || (large && !inside_known) {
            self.walked.rows.push(Row {
                path: GuestPath::new(&*path),
                label: frame.label,
                total: rest,
            });
            frame.told = frame.total;
        }
        match stack.last_mut() {
            Some(above) => {
                above.total.add(frame.total);
                above.told.add(frame.told);
            }
            None => self.walked.total = frame.total,
        }
        if frame.name_was_pushed {
            path.pop();
        }
    }

    fn unreadable<T>(&mut self, path: &Path, error: &TreeError) -> Option<T> {
        self.walked.unreadable_count += 1;
        if self.walked.unreadable.len() < MAX_UNREADABLE {
            self.walked
                .unreadable
                .push((GuestPath::new(path), error_chain(error)));
        }
        None
    }
}

/// An error with its causes on one line.
fn error_chain(error: &TreeError) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(next) = cause {
        text.push_str(": ");
        text.push_str(&next.to_string());
        cause = next.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::ui::Silent;
    use crate::tree::{DirEntry, FolderTree, MemoryTree, TreeResult, Usage};
    use std::rc::Rc;

    struct Nothing;
    impl Visitor for Nothing {
        fn enter(&mut self, _folder: &Path) {}
        fn file(&mut self, _folder: &Path, _name: &OsStr, _meta: &Meta) {}
    }

    fn walk_all(guest: &Guest, known: &[(PathBuf, &'static str)]) -> Walked {
        walk(guest, 0, known, &mut Nothing, &Silent)
    }

    fn folder_guest(path: &Path) -> Guest {
        let mut guest = MemoryTree::new().into_guest();
        guest.file_systems[0].usage = Usage::default();
        guest.with_tree(Rc::new(FolderTree::open(path).unwrap()))
    }

    /// Allocated bytes as du(1) counts them.
    fn du(path: &Path) -> u64 {
        let output = std::process::Command::new("du")
            .args(["-sx", "--block-size=1"])
            .arg(path)
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout)
            .unwrap()
            .split_whitespace()
            .next()
            .unwrap()
            .parse()
            .unwrap()
    }

    #[test]
    fn counts_what_du_counts() {
        let base = tempfile::tempdir().unwrap();
        let root = base.path().join("root");
        std::fs::create_dir_all(root.join("a/b/c")).unwrap();
        std::fs::write(root.join("a/one"), vec![7; 100_000]).unwrap();
        std::fs::hard_link(root.join("a/one"), root.join("a/b/two")).unwrap();
        std::fs::hard_link(root.join("a/one"), root.join("three")).unwrap();
        let sparse = std::fs::File::create(root.join("sparse")).unwrap();
        sparse.set_len(1 << 32).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&sparse, &[1; 5000], 1 << 20).unwrap();
        sparse.sync_all().unwrap();
        std::os::unix::fs::symlink("/etc", root.join("a/b/c/link")).unwrap();
        std::os::unix::fs::symlink("x".repeat(3000), root.join("a/b/c/long")).unwrap();
        for n in 0..300 {
            std::fs::write(root.join("a/b/c").join(format!("{n}\n\x1b[31m")), b"x").unwrap();
        }
        let walked = walk_all(&folder_guest(&root), &[]);
        assert_eq!(walked.total.bytes, du(&root));
        assert_eq!(walked.unreadable_count, 0);
        // root, a, b, c, one inode of three names, sparse, two links, 300 files.
        assert_eq!(walked.total.inodes, 4 + 1 + 1 + 2 + 300);
    }

    /// Folders named `d` inside each other.
    struct Nested {
        levels: usize,
    }
    impl Tree for Nested {
        fn lstat(&self, _path: &Path) -> TreeResult<Meta> {
            let kind = FileKind::Directory;
            let (allocated, nlink) = (Some(4096), Some(2));
            Ok(Meta {
                kind,
                mode: 0o755,
                uid: 0,
                gid: 0,
                size: 4096,
                mtime: 0,
                allocated,
                nlink,
                ino: None,
            })
        }
        fn read_range(&self, path: &Path, _offset: u64, _length: usize) -> TreeResult<Vec<u8>> {
            Err(TreeError::NotARegularFile(path.to_path_buf()))
        }
        fn read_dir(&self, path: &Path) -> TreeResult<Vec<DirEntry>> {
            let there = path.as_os_str().len() / 2 < self.levels;
            Ok(there
                .then(|| DirEntry {
                    name: "d".into(),
                    kind: FileKind::Directory,
                })
                .into_iter()
                .collect())
        }
        fn read_link(&self, path: &Path) -> TreeResult<PathBuf> {
            Err(TreeError::NotASymlink(path.to_path_buf()))
        }
    }

    fn nested(levels: usize, inodes_total: u64) -> Walked {
        let mut guest = MemoryTree::new().into_guest();
        guest.file_systems[0].usage = Usage {
            inodes_total,
            inodes_free: 0,
            ..Usage::default()
        };
        walk_all(&guest.with_tree(Rc::new(Nested { levels })), &[])
    }

    #[test]
    fn deep_folders_need_no_deep_stack() {
        assert_eq!(nested(4096, 0).total.inodes, 4097);
    }

    #[test]
    fn a_folder_without_end_ends() {
        let walked = nested(usize::MAX, 1000);
        assert_eq!(walked.total.inodes, 1001);
        assert_eq!(walked.unreadable_count, 1);
    }

    #[test]
    fn real_folders_below_the_longest_path_are_reported_not_fatal() {
        let base = tempfile::tempdir().unwrap();
        let mut at = std::fs::File::open(base.path()).unwrap();
        for _ in 0..2100 {
            rustix::fs::mkdirat(&at, "d", rustix::fs::Mode::RWXU).unwrap();
            let flags = rustix::fs::OFlags::DIRECTORY | rustix::fs::OFlags::RDONLY;
            at = rustix::fs::openat(&at, "d", flags, rustix::fs::Mode::empty())
                .unwrap()
                .into();
        }
        let walked = walk_all(&folder_guest(base.path()), &[]);
        assert!(walked.total.inodes > 2000, "{}", walked.total.inodes);
        assert_eq!(walked.unreadable_count, 1);
    }

    #[test]
    fn other_file_systems_are_left_out() {
        let mut guest = MemoryTree::new()
            .file("/a", [0; 4096])
            .file("/var/big", [0; 8192])
            .into_guest();
        let mut var = guest.file_systems[0].clone();
        var.mount_point = GuestPath::new("/var");
        guest.file_systems.push(var);
        assert_eq!(walk_all(&guest, &[]).total.inodes, 2);
        assert_eq!(
            walk(&guest, 1, &[], &mut Nothing, &Silent).total.bytes,
            4096 + 8192
        );
    }

    #[test]
    fn no_byte_is_in_two_rows() {
        let guest = MemoryTree::new()
            .file("/var/lib/containerd/x/y/blob", vec![0; 6 << 20])
            .file("/var/lib/containerd/meta.db", vec![0; 2 << 20])
            .file("/data/big", vec![0; 4 << 20])
            .file("/data/small/file", b"x")
            .into_guest();
        let mut guest = guest;
        guest.file_systems[0].usage.bytes_free = guest.file_systems[0].usage.bytes_total;
        let walked = walk_all(
            &guest,
            &[("/var/lib/containerd".into(), "container images")],
        );
        let sum: u64 = walked.rows.iter().map(|row| row.total.bytes).sum();
        assert_eq!(sum, walked.total.bytes);
        let names: Vec<String> = walked.rows.iter().map(|row| row.path.to_string()).collect();
        assert_eq!(names, ["/var/lib/containerd", "/data", "/"]);
        assert_eq!(walked.rows[0].label, Some("container images"));
        assert_eq!(
            walked.largest[0].0.to_string(),
            "/var/lib/containerd/x/y/blob"
        );
    }
}
