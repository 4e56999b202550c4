//! Any stack of [`ReadAt`] shown to the kernel as a disk, under a throw-away copy-on-write layer in
//! memory.
//!
//! The kernel mounts that disk and replays the journal into the layer, so that we see exactly what
//! the guest's next boot will see, while the source keeps every byte. From below: the source, the
//! layer, one file served by FUSE, a loop device, the mount.

mod device;
mod layer;
mod memory;
mod server;
pub mod spill;

use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};

use anyhow::Context;

use super::ReadAt;
use super::loop_device::{LoopDevice, LoopOptions};
use crate::base::refusal::Refusal;
pub use crate::disk::export::device::ThrowAway;
use crate::disk::export::layer::Budget;
use crate::disk::export::server::{Export, Trouble};
use crate::mount::{Access, Mount};
use crate::tree::{AccessList, DirEntry, FolderTree, Meta, Tree, TreeResult, Usage};

/// All layers together may hold a third of the memory: a journal of 1 GiB, mke2fs's largest, must
/// fit on any helper, and a rescue system with 256 MiB must survive. What is beyond that goes into
/// the file that the user names for it ([`spill::named`]), made when the first layer is.
static BUDGET: OnceLock<Arc<Budget>> = OnceLock::new();

fn budget() -> anyhow::Result<&'static Arc<Budget>> {
    if let Some(budget) = BUDGET.get() {
        return Ok(budget);
    }
    let spill = spill::named()
        .map(|path| spill::Spill::create(&path))
        .transpose()?;
    Ok(BUDGET.get_or_init(|| Arc::new(Budget::spilling(memory::available() / 3, spill))))
}

/// Mounts what `source` holds, a file system of `kind` (`ext2`, `ext3`, `ext4`, `xfs`, `btrfs`),
/// with its journal replayed, and writes nothing to it. The tree keeps everything alive that it
/// needs and takes it down when it is dropped; both ends must stay in this process.
///
/// Needs root; without it the error is a [`Refusal`] that names the line to type. Descriptors that
/// `source` reads from must be open already.
pub fn mount_replayed(
    source: Arc<dyn ReadAt>,
    kind: &str,
) -> anyhow::Result<(ReplayedTree, Usage)> {
    crate::mount::require_root("reading a file system that only the kernel can replay")?;
    mount_within(source, kind, budget()?)
}

fn mount_within(
    source: Arc<dyn ReadAt>,
    kind: &str,
    budget: &Arc<Budget>,
) -> anyhow::Result<(ReplayedTree, Usage)> {
    match replay(&source, kind, Access::ReadWrite, budget) {
        // Features unknown to this kernel may allow reading all the same. Again with an empty
        // layer: what the failed attempt left behind is not what the disk holds.
        Err(error) if !error.is::<Refusal>() => replay(&source, kind, Access::ReadOnly, budget),
        done => done,
    }
}

/// Replays the journal; nothing is written after that.
///
/// Mounted for writing, although only read: XFS sets blocks aside for its own trees only then, so
/// that a read-only mount shows more free space than the next boot will have, and ext4's fast
/// commits are not replayed by a read-only mount (`EROFS`, seen with 6.18).
fn replay(
    source: &Arc<dyn ReadAt>,
    kind: &str,
    access: Access,
    budget: &Arc<Budget>,
) -> anyhow::Result<(ReplayedTree, Usage)> {
    let export = Export::start(Arc::clone(source), Arc::clone(budget))
        .context("showing the disk to the kernel")?;
    let (tree, usage) = mount_exported(&export, kind, source.sector_size(), access)
        .map_err(|error| explain(error, &export.trouble, budget))?;
    Ok((
        ReplayedTree {
            tree,
            _export: export,
        },
        usage,
    ))
}

fn mount_exported(
    export: &Export,
    kind: &str,
    sector_size: u32,
    access: Access,
) -> anyhow::Result<(FolderTree, Usage)> {
    let file = export.open()?;
    // The device may be written to even if the mount may not: without that the kernel replays
    // nothing.
    let options = LoopOptions {
        sector_size,
        read_only: false,
        ..LoopOptions::default()
    };
    let device = LoopDevice::attach(file.as_fd(), &options)?;
    let mount = Mount::new(&device.path(), kind, access)?;
    let root = mount
        .as_fd()
        .try_clone_to_owned()
        .context("duplicating a descriptor")?;
    let tree = FolderTree::beneath(root)?;
    let usage = tree.usage()?;
    if access == Access::ReadWrite {
        mount.make_read_only()?;
    }
    // From here on the tree alone holds the mount, the mount the loop device, and the loop device
    // the file: they end with it.
    Ok((tree, usage))
}

/// The kernel only says "I/O error" where we know better.
fn explain(error: anyhow::Error, trouble: &Trouble, budget: &Budget) -> anyhow::Error {
    if trouble.overflowed.load(Ordering::Relaxed) {
        let mebibytes = budget.limit >> 20;
        if budget.spills() {
            return Refusal::new(
                format!(
                    "replaying the file system's journal needs more than {mebibytes} MiB of memory \
                     and what the file of --spill took"
                ),
                "the file system on which it lies is full",
                "the same command with --spill FILE on one with more room",
            )
            .into();
        }
        return Refusal::new(
            format!(
                "replaying the file system's journal needs more than {mebibytes} MiB of memory"
            ),
            "what the journal changes is kept in memory, a third of it at most, so that the disk \
             keeps every byte",
            "run this again with --spill FILE, a new file on a file system of this machine with \
             room for the rest, or with more memory",
        )
        .into();
    }
    match trouble
        .unreadable
        .lock()
        .ok()
        .and_then(|first| first.clone())
    {
        Some(reason) => error.context(format!("the disk cannot be read {reason}")),
        None => error,
    }
}

/// A mounted folder and the disk below it; the fields' order is the order of taking down.
#[derive(Debug)]
pub struct ReplayedTree {
    tree: FolderTree,
    _export: Export,
}

impl ReplayedTree {
    /// The root folder (`O_PATH`), for questions to the kernel about the file system.
    pub fn root(&self) -> BorrowedFd<'_> {
        self.tree.as_fd()
    }
}

impl Tree for ReplayedTree {
    fn lstat(&self, path: &Path) -> TreeResult<Meta> {
        self.tree.lstat(path)
    }
    fn access_list(&self, path: &Path) -> TreeResult<Option<AccessList>> {
        self.tree.access_list(path)
    }
    fn read_range(&self, path: &Path, offset: u64, length: usize) -> TreeResult<Vec<u8>> {
        self.tree.read_range(path, offset, length)
    }
    fn hold(&self, path: &Path) -> TreeResult<Option<std::fs::File>> {
        self.tree.hold(path)
    }
    fn read_dir(&self, path: &Path) -> TreeResult<Vec<DirEntry>> {
        self.tree.read_dir(path)
    }
    fn read_link(&self, path: &Path) -> TreeResult<PathBuf> {
        self.tree.read_link(path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::os::unix::fs::FileExt;
    use std::process::Command;
    use std::sync::atomic::AtomicU64;

    use crate::tree::TreeError;

    /// An image file; everything from `broken` on cannot be read.
    struct Image {
        file: File,
        broken: AtomicU64,
    }

    impl ReadAt for Image {
        fn len(&self) -> u64 {
            self.file.metadata().map_or(0, |meta| meta.len())
        }
        fn sector_size(&self) -> u32 {
            512
        }
        fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> std::io::Result<()> {
            if offset + buffer.len() as u64 > self.broken.load(Ordering::Relaxed) {
                return Err(std::io::Error::from_raw_os_error(libc::EIO));
            }
            self.file.read_exact_at(buffer, offset)
        }
    }

    fn run(program: &str, arguments: &[&str]) {
        let ran = Command::new(program)
            .args(arguments)
            .output()
            .unwrap_or_else(|error| panic!("{program}: {error}"));
        assert!(ran.status.success(), "{program} {arguments:?}: {ran:?}");
    }

    /// A file system that was shut down with `files` files in its journal only.
    fn dirty(kind: &str, files: usize) -> tempfile::NamedTempFile {
        let image = tempfile::NamedTempFile::new().unwrap();
        let path = image.path().to_str().unwrap();
        image
            .as_file()
            .set_len(if kind == "xfs" { 320 } else { 64 } << 20)
            .unwrap();
        match kind {
            "xfs" => run("mkfs.xfs", &["-q", "-f", path]),
            _ => run("mkfs.ext4", &["-q", "-F", path]),
        }
        let options = LoopOptions {
            read_only: false,
            ..LoopOptions::default()
        };
        let device = LoopDevice::open(image.path(), &options).expect("this test needs root");
        let mount = crate::mount::mount_writable(&device.path(), kind).unwrap();
        for number in 0..files {
            std::fs::write(
                mount.path().join(format!("file-{number}")),
                number.to_string(),
            )
            .unwrap();
        }
        // The data and the log reach the disk, what the log describes does not.
        run_below(
            &mount,
            "xfs_io",
            &["-x", "-c", "syncfs", "-c", "shutdown -f", "."],
        );
        drop(mount);
        drop(device);
        image
    }

    fn run_below(mount: &Mount, program: &str, arguments: &[&str]) {
        // The mount's own path means something in this process only.
        let folder = format!(
            "/proc/{}/fd/{}",
            std::process::id(),
            std::os::fd::AsRawFd::as_raw_fd(&mount.as_fd())
        );
        let ran = Command::new(program)
            .args(arguments)
            .current_dir(folder)
            .output()
            .unwrap();
        assert!(ran.status.success(), "{program} {arguments:?}: {ran:?}");
    }

    fn source(image: &tempfile::NamedTempFile) -> Arc<Image> {
        Arc::new(Image {
            file: image.reopen().unwrap(),
            broken: AtomicU64::new(u64::MAX),
        })
    }

    fn expect_all_files(kind: &str) {
        let image = dirty(kind, 500);
        let before = std::fs::read(image.path()).unwrap();
        let image_source = source(&image);
        let (tree, usage) = mount_replayed(image_source.clone(), kind).unwrap();
        assert_eq!(tree.read(Path::new("/file-499"), 99).unwrap(), b"499");
        let files = tree
            .read_dir(Path::new("/"))
            .unwrap()
            .iter()
            .filter(|entry| entry.name != "lost+found")
            .count();
        assert_eq!(files, 500);
        assert!(
            usage.bytes_free < usage.bytes_total && usage.inodes_free < usage.inodes_total,
            "{usage:?}"
        );
        drop(tree);
        assert_eq!(
            Arc::strong_count(&image_source),
            1,
            "nothing holds the source any more"
        );
        assert!(
            before == std::fs::read(image.path()).unwrap(),
            "the image changed"
        );
    }

    #[test]
    fn a_dirty_ext4_is_seen_replayed_and_stays_as_it_is() {
        expect_all_files("ext4");
    }

    #[test]
    fn a_dirty_xfs_is_seen_replayed_and_stays_as_it_is() {
        expect_all_files("xfs");
    }

    #[test]
    fn several_at_once_and_the_same_disk_twice() {
        let image = dirty("xfs", 20);
        let (one, _) = mount_replayed(source(&image), "xfs").unwrap();
        let (two, _) = mount_replayed(source(&image), "xfs").unwrap();
        drop(one);
        assert_eq!(two.read(Path::new("/file-7"), 99).unwrap(), b"7");
    }

    #[test]
    fn a_journal_too_large_for_memory_is_refused() {
        let image = dirty("ext4", 500);
        let error = mount_within(source(&image), "ext4", &Arc::new(Budget::new(64 << 10)))
            .map(drop)
            .unwrap_err();
        let refusal = error
            .downcast_ref::<Refusal>()
            .unwrap_or_else(|| panic!("{error:#}"));
        assert!(
            refusal.saw.contains("more than 0 MiB of memory")
                && refusal.next.contains("--spill FILE"),
            "{refusal}"
        );
        // The rest goes into a file.
        let folder = tempfile::tempdir().unwrap();
        let spill = spill::Spill::create(&folder.path().join("spill")).unwrap();
        let budget = Arc::new(Budget::spilling(64 << 10, Some(spill)));
        let (tree, _) = mount_within(source(&image), "ext4", &budget).unwrap();
        assert_eq!(tree.read(Path::new("/file-499"), 99).unwrap(), b"499");
    }

    #[test]
    fn a_disk_that_cannot_be_read_is_said_to_be() {
        let image = dirty("ext4", 5);
        let broken = source(&image);
        broken.broken.store(0, Ordering::Relaxed);
        let error = mount_replayed(broken, "ext4").map(drop).unwrap_err();
        assert!(
            format!("{error:#}").contains("the disk cannot be read at byte"),
            "{error:#}"
        );

        let dying = source(&image);
        let (tree, _) = mount_replayed(dying.clone(), "ext4").unwrap();
        dying.broken.store(0, Ordering::Relaxed);
        assert!(matches!(
            tree.read(Path::new("/file-3"), 99),
            Err(TreeError::Io { .. })
        ));
    }
}
