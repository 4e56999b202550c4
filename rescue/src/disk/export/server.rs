//! A layered source served to the kernel as one file, by FUSE.
//!
//! Two threads: the *server* talks to /dev/fuse and owns a descriptor table in which there is
//! nothing else; the *keeper* owns the layer and reads the source. The rest of the process uses the
//! file through the kernel and would wait for ever, unkillable, if the process were killed while
//! /dev/fuse stayed open: one table for all threads is only closed when the last of them is gone,
//! and that one waits. With a table of its own the server's end closes /dev/fuse, the kernel fails
//! what is waiting, and everything goes.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::atomic::AtomicBool;
use std::sync::mpsc::{self, Receiver, Sender, SyncSender};
use std::sync::{Arc, Mutex};
use std::time::{Duration, UNIX_EPOCH};

use anyhow::Context;
use fuser::{
    Errno, FileAttr, FileHandle, FileType, FopenFlags, Generation, INodeNo, LockOwner, OpenFlags,
    ReplyAttr, ReplyData, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyWrite, Request, WriteFlags,
};
use rustix::fs::{Mode, OFlags};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags};

use super::layer::{Budget, Layer};
use crate::base::refusal::Refusal;
use crate::base::sys;
use crate::disk::ReadAt;

const DEVICE: &str = "/dev/fuse";
const FILE: INodeNo = INodeNo(2);
/// Nothing ever changes behind the kernel's back.
const FOR_EVER: Duration = Duration::from_secs(u32::MAX as u64);

/// How long an unmounted file system's threads may take to end before they are left to themselves.
const END_TIMEOUT: Duration = Duration::from_secs(10);

/// What went wrong below the kernel, which itself only ever says "I/O error".
#[derive(Debug, Default)]
pub(super) struct Trouble {
    /// The layer reached its bound.
    pub overflowed: Arc<AtomicBool>,
    /// First failed read of the source.
    pub unreadable: Mutex<Option<String>>,
}

impl Trouble {
    fn note_unreadable(&self, offset: u64, error: &io::Error) {
        if let Ok(mut first) = self.unreadable.lock() {
            first.get_or_insert_with(|| format!("at byte {offset}: {error}"));
        }
    }
}

/// A source served as a file. Dropping it ends the file system; whoever still has the file open
/// gets I/O errors.
#[derive(Debug)]
pub(super) struct Export {
    /// The detached FUSE mount: `None` only while dropping.
    root: Option<OwnedFd>,
    ended: Receiver<()>,
    pub trouble: Arc<Trouble>,
}

impl Export {
    /// Starts serving `source` under an empty layer. Needs root and /dev/fuse.
    pub fn start(source: Arc<dyn ReadAt>, budget: Arc<Budget>) -> anyhow::Result<Self> {
        let device = open_device()?;
        let root = mount(&device).context("mounting a FUSE file system")?;
        let trouble = Arc::new(Trouble::default());
        let layer = Layer::over(source, budget, Arc::clone(&trouble.overflowed));
        let (ended_sender, ended) = mpsc::channel();
        let disk = Disk {
            length: layer.len(),
            keeper: spawn_keeper(layer, Arc::clone(&trouble), ended_sender)?,
        };
        spawn_server(disk, device)?;
        Ok(Self {
            root: Some(root),
            ended,
            trouble,
        })
    }

    /// The file, for reading and writing.
    pub fn open(&self) -> anyhow::Result<OwnedFd> {
        let root = self.root.as_ref().context("the export has ended")?;
        rustix::fs::openat(root, name(), OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
            .context("opening the exported disk")
    }
}

impl Drop for Export {
    fn drop(&mut self) {
        // Unmounts; the server sees that the device is gone and ends, then the keeper.
        drop(self.root.take());
        // A timeout means that someone (udev, looking at the loop device) still holds on; nothing
        // here depends on it.
        let _ = self.ended.recv_timeout(END_TIMEOUT);
    }
}

fn open_device() -> anyhow::Result<File> {
    File::options()
        .read(true)
        .write(true)
        .open(DEVICE)
        .map_err(|error| {
            match error.kind() {
        io::ErrorKind::NotFound => Refusal::new(
            format!("there is no {DEVICE}"),
            "without it the disk cannot be shown to the kernel under a throw-away layer, and its \
             journal not be replayed",
            "modprobe fuse, or boot the rescue ISO",
        )
        .into(),
        io::ErrorKind::PermissionDenied => crate::mount::needs_root("reading a disk that was not \
            shut down cleanly").into(),
        _ => anyhow::Error::new(error).context(format!("opening {DEVICE}")),
    }
        })
}

/// The one name in the file system's root: who looks at `losetup` sees whose device it is.
fn name() -> String {
    format!("rescue-{}", std::process::id())
}

/// Detached, like every mount of ours, see [`crate::mount`].
fn mount(device: &File) -> Result<OwnedFd, rustix::io::Errno> {
    let context = rustix::mount::fsopen("fuse", FsOpenFlags::FSOPEN_CLOEXEC)?;
    let set = |key: &str, value: &str| rustix::mount::fsconfig_set_string(&context, key, value);
    set("source", "rescue")?;
    set("fd", &device.as_raw_fd().to_string())?;
    // A folder, nobody else's.
    set("rootmode", "40000")?;
    set("user_id", "0")?;
    set("group_id", "0")?;
    rustix::mount::fsconfig_create(&context)?;
    let attributes = MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    rustix::mount::fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)
}

/// Starts the server thread and returns once it, and nobody else, holds /dev/fuse open.
fn spawn_server(disk: Disk, device: File) -> anyhow::Result<()> {
    let (ready_sender, ready) = mpsc::channel();
    let number = device.as_raw_fd();
    std::thread::Builder::new()
        .name("rescue-fuse".to_owned())
        .spawn(move || match own_table(number) {
            Ok(device) => {
                let _ = ready_sender.send(Ok(()));
                // An error here means that the kernel took the device away, which ends the session
                // all the same.
                let _ = serve(disk, device);
            }
            Err(errno) => {
                let _ = ready_sender.send(Err(errno));
            }
        })
        .context("starting a thread")?;
    let ready = ready.recv().context("starting the FUSE server")?;
    drop(device);
    ready.context("giving the FUSE server a descriptor table of its own")
}

fn own_table(device: RawFd) -> Result<OwnedFd, nix::errno::Errno> {
    // Answering must not wait for memory that is only freed by writing to what we serve. Linux 5.6;
    // it is a precaution only.
    let _ = rustix::process::configure_io_flusher_behavior(true);
    sys::private_descriptors(device)
}

fn serve(disk: Disk, device: OwnedFd) -> io::Result<()> {
    fuser::Session::from_fd(
        disk,
        device,
        fuser::SessionACL::Owner,
        fuser::Config::default(),
    )?
    .run()
}

/// A question to the keeper, with where to send the answer.
enum Ask {
    Read {
        offset: u64,
        length: usize,
        answer: SyncSender<io::Result<Vec<u8>>>,
    },
    Write {
        offset: u64,
        data: Vec<u8>,
        answer: SyncSender<io::Result<()>>,
    },
}

/// The keeper ends, and frees the layer, when the last sender of questions is gone.
fn spawn_keeper(
    mut layer: Layer,
    trouble: Arc<Trouble>,
    ended: Sender<()>,
) -> anyhow::Result<Sender<Ask>> {
    let (sender, questions) = mpsc::channel();
    std::thread::Builder::new()
        .name("rescue-layer".to_owned())
        .spawn(move || {
            let _ = rustix::process::configure_io_flusher_behavior(true);
            for ask in questions {
                match ask {
                    Ask::Read {
                        offset,
                        length,
                        answer,
                    } => {
                        let bytes = layer.read(offset, length);
                        if let Err(error) = &bytes {
                            trouble.note_unreadable(offset, error);
                        }
                        let _ = answer.send(bytes);
                    }
                    Ask::Write {
                        offset,
                        data,
                        answer,
                    } => {
                        let _ = answer.send(layer.write(offset, &data));
                    }
                }
            }
            drop(layer);
            let _ = ended.send(());
        })
        .context("starting a thread")?;
    Ok(sender)
}

/// The file system: a root folder with one file in it.
struct Disk {
    length: u64,
    keeper: Sender<Ask>,
}

impl Disk {
    fn attributes(&self, ino: INodeNo) -> Option<FileAttr> {
        let (kind, size, perm) = match ino {
            INodeNo::ROOT => (FileType::Directory, 0, 0o700),
            FILE => (FileType::RegularFile, self.length, 0o600),
            _ => return None,
        };
        Some(FileAttr {
            ino,
            size,
            blocks: size / 512,
            atime: UNIX_EPOCH,
            mtime: UNIX_EPOCH,
            ctime: UNIX_EPOCH,
            crtime: UNIX_EPOCH,
            kind,
            perm,
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        })
    }

    fn ask<T>(&self, question: impl FnOnce(SyncSender<io::Result<T>>) -> Ask) -> Result<T, Errno> {
        let (answer, wait) = mpsc::sync_channel(1);
        self.keeper.send(question(answer)).map_err(|_| Errno::EIO)?;
        match wait.recv() {
            Ok(Ok(done)) => Ok(done),
            Ok(Err(error)) if error.kind() == io::ErrorKind::StorageFull => Err(Errno::ENOSPC),
            Ok(Err(_)) | Err(_) => Err(Errno::EIO),
        }
    }
}

impl fuser::Filesystem for Disk {
    fn lookup(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match self.attributes(FILE) {
            Some(attributes)
                if parent == INodeNo::ROOT
                    && name == crate::disk::export::server::name().as_str() =>
            {
                reply.entry(&FOR_EVER, &attributes, Generation(0));
            }
            _ => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(
        &self,
        _request: &Request,
        ino: INodeNo,
        _handle: Option<FileHandle>,
        reply: ReplyAttr,
    ) {
        match self.attributes(ino) {
            Some(attributes) => reply.attr(&FOR_EVER, &attributes),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn open(&self, _request: &Request, _ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        // Cached here too, although the block device on top has a cache: the journal is read block
        // by block, and this cache reads ahead (20 times fewer requests in a replay). The pages can
        // be reclaimed.
        reply.opened(FileHandle(0), FopenFlags::FOPEN_KEEP_CACHE);
    }

    fn read(
        &self,
        _request: &Request,
        _ino: INodeNo,
        _handle: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        match self.ask(|answer| Ask::Read {
            offset,
            length: size as usize,
            answer,
        }) {
            Ok(bytes) => reply.data(&bytes),
            Err(errno) => reply.error(errno),
        }
    }

    fn write(
        &self,
        _request: &Request,
        _ino: INodeNo,
        _handle: FileHandle,
        offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        match self.ask(|answer| Ask::Write {
            offset,
            data: data.to_vec(),
            answer,
        }) {
            Ok(()) => reply.written(u32::try_from(data.len()).unwrap_or(u32::MAX)),
            Err(errno) => reply.error(errno),
        }
    }

    fn flush(
        &self,
        _request: &Request,
        _ino: INodeNo,
        _handle: FileHandle,
        _owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        reply.ok();
    }

    fn fsync(
        &self,
        _request: &Request,
        _ino: INodeNo,
        _handle: FileHandle,
        _data_only: bool,
        reply: ReplyEmpty,
    ) {
        reply.ok();
    }
}
