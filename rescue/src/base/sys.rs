//! The only `unsafe` of the program: system calls that no crate wraps.
#![allow(unsafe_code)]

use std::ffi::OsString;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

use nix::errno::Errno;

/// `struct loop_info64` of <linux/loop.h>.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub(crate) struct LoopInfo {
    pub device: u64,
    pub inode: u64,
    pub rdevice: u64,
    /// First byte of the file that is shown, in bytes.
    pub offset: u64,
    /// Length in bytes; 0: to the end of the file.
    pub size_limit: u64,
    pub number: u32,
    pub encrypt_type: u32,
    pub encrypt_key_size: u32,
    /// `LO_FLAGS_*`.
    pub flags: u32,
    pub file_name: [u8; 64],
    pub crypt_name: [u8; 64],
    pub encrypt_key: [u8; 32],
    pub init: [u64; 2],
}

/// `struct loop_config` of <linux/loop.h>.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub(crate) struct LoopConfig {
    pub fd: u32,
    /// Logical sector size in bytes.
    pub block_size: u32,
    pub info: LoopInfo,
    pub reserved: [u64; 8],
}

/// The bare requests. Numbers from <linux/loop.h>, which defines them without the _IO macros,
/// and <linux/btrfs.h>, whose structures are taken as bytes: all their fields are little-endian at
/// fixed places.
mod request {
    nix::ioctl_none_bad!(loop_ctl_get_free, 0x4c82);
    nix::ioctl_write_ptr_bad!(loop_configure, 0x4c0a, super::LoopConfig);
    nix::ioctl_write_ptr!(btrfs_forget_dev, 0x94, 5, [u8; 4096]);
    nix::ioctl_readwrite!(btrfs_tree_search, 0x94, 17, [u8; 4096]);
    nix::ioctl_readwrite!(btrfs_ino_lookup, 0x94, 18, [u8; 4096]);
    nix::ioctl_readwrite!(btrfs_dev_info, 0x94, 30, [u8; 4096]);
    nix::ioctl_read!(btrfs_fs_info, 0x94, 31, [u8; 1024]);
    // <linux/fs.h> defines both with _IO, though they take a pointer to an int.
    nix::ioctl_write_ptr_bad!(blkroset, nix::request_code_none!(0x12, 93), libc::c_int);
    nix::ioctl_read_bad!(blkroget, nix::request_code_none!(0x12, 94), libc::c_int);
}

/// `BTRFS_IOC_TREE_SEARCH`: `page` is a `struct btrfs_ioctl_search_args` (104 bytes of key, then
/// room for items).
pub(crate) fn btrfs_tree_search(
    folder: BorrowedFd<'_>,
    page: &mut [u8; 4096],
) -> Result<(), Errno> {
    // SAFETY: `page` is alive and as long as the structure, which has no pointers in it; other file
    // systems answer ENOTTY.
    unsafe { request::btrfs_tree_search(folder.as_raw_fd(), page) }.map(drop)
}

/// `BTRFS_IOC_INO_LOOKUP`: the path of folder `inode` inside subvolume `tree`, with a slash at its
/// end, empty for its root.
pub(crate) fn btrfs_folder_path(
    folder: BorrowedFd<'_>,
    tree: u64,
    inode: u64,
) -> Result<Vec<u8>, Errno> {
    const NAME: usize = 16;
    let mut page = [0_u8; 4096];
    page[..8].copy_from_slice(&tree.to_le_bytes());
    page[8..NAME].copy_from_slice(&inode.to_le_bytes());
    // SAFETY: as above (`struct btrfs_ioctl_ino_lookup_args`).
    unsafe { request::btrfs_ino_lookup(folder.as_raw_fd(), &raw mut page) }?;
    Ok(page[NAME..]
        .split(|byte| *byte == 0)
        .next()
        .unwrap_or_default()
        .to_vec())
}

/// `BTRFS_IOC_INO_LOOKUP` without a subvolume: the number of the one that `folder` is in.
pub(crate) fn btrfs_subvolume_of(folder: BorrowedFd<'_>) -> Result<u64, Errno> {
    const FIRST_FREE: u64 = 256;
    let mut page = [0_u8; 4096];
    page[8..16].copy_from_slice(&FIRST_FREE.to_le_bytes());
    // SAFETY: as above.
    unsafe { request::btrfs_ino_lookup(folder.as_raw_fd(), &raw mut page) }?;
    Ok(u64::from_le_bytes(std::array::from_fn(|index| page[index])))
}

/// `BTRFS_IOC_FS_INFO`: the highest number of a device of the file system, and how many there are.
pub(crate) fn btrfs_devices(folder: BorrowedFd<'_>) -> Result<(u64, u64), Errno> {
    let mut info = [0_u8; 1024];
    // SAFETY: as above (`struct btrfs_ioctl_fs_info_args`).
    unsafe { request::btrfs_fs_info(folder.as_raw_fd(), &raw mut info) }?;
    let field = |at: usize| u64::from_le_bytes(std::array::from_fn(|index| info[at + index]));
    Ok((field(0), field(8)))
}

/// `BTRFS_IOC_DEV_INFO`: the path by which the kernel knows device `number` of the file system.
pub(crate) fn btrfs_device_path(folder: BorrowedFd<'_>, number: u64) -> Result<OsString, Errno> {
    const PATH: usize = 4096 - 1024;
    let mut info = [0_u8; 4096];
    info[..8].copy_from_slice(&number.to_le_bytes());
    // SAFETY: as above (`struct btrfs_ioctl_dev_info_args`).
    unsafe { request::btrfs_dev_info(folder.as_raw_fd(), &raw mut info) }?;
    Ok(OsString::from_vec(
        info[PATH..]
            .split(|byte| *byte == 0)
            .next()
            .unwrap_or_default()
            .to_vec(),
    ))
}

/// `BTRFS_IOC_FORGET_DEV`: `control` is /dev/btrfs-control. Mounted devices are not forgotten.
pub(crate) fn btrfs_forget(control: BorrowedFd<'_>, device: &Path) -> Result<(), Errno> {
    const NAME: usize = 8;
    let path = device.as_os_str().as_bytes();
    let mut volume = [0_u8; 4096];
    // One byte stays zero: the end of the name.
    volume[..4095]
        .get_mut(NAME..NAME + path.len())
        .ok_or(Errno::ENAMETOOLONG)?
        .copy_from_slice(path);
    // SAFETY: as above (`struct btrfs_ioctl_vol_args`), only read by the kernel.
    unsafe { request::btrfs_forget_dev(control.as_raw_fd(), &raw const volume) }.map(drop)
}

/// `BLKROSET`: whether the kernel refuses to write to a block device.
pub(crate) fn set_read_only(device: BorrowedFd<'_>, read_only: bool) -> Result<(), Errno> {
    let flag = libc::c_int::from(read_only);
    // SAFETY: the kernel reads one int, which is alive; descriptors of other kinds answer ENOTTY.
    unsafe { request::blkroset(device.as_raw_fd(), &raw const flag) }.map(drop)
}

/// `BLKROGET`: whether it does.
pub(crate) fn is_read_only(device: BorrowedFd<'_>) -> Result<bool, Errno> {
    let mut flag = 0;
    // SAFETY: the kernel writes one int, which is alive; descriptors of other kinds answer ENOTTY.
    unsafe { request::blkroget(device.as_raw_fd(), &raw mut flag) }?;
    Ok(flag != 0)
}

/// Number of a loop device that was free a moment ago (`LOOP_CTL_GET_FREE`).
pub(crate) fn loop_ctl_get_free(control: BorrowedFd<'_>) -> Result<u32, Errno> {
    // SAFETY: the request takes no argument; a descriptor of another kind answers ENOTTY.
    let number = unsafe { request::loop_ctl_get_free(control.as_raw_fd()) }?;
    u32::try_from(number).map_err(|_| Errno::ERANGE)
}

/// Sets up a free loop device over `file` in one step (`LOOP_CONFIGURE`, Linux 5.8). `config.fd` is
/// filled in here.
pub(crate) fn loop_configure(
    device: BorrowedFd<'_>,
    file: BorrowedFd<'_>,
    mut config: LoopConfig,
) -> Result<(), Errno> {
    config.fd = u32::try_from(file.as_raw_fd()).map_err(|_| Errno::EBADF)?;
    // SAFETY: `config` is a live `struct loop_config` that the kernel only reads; both descriptors
    // are open for the whole call, and the kernel takes its own reference to `file`.
    unsafe { request::loop_configure(device.as_raw_fd(), &raw const config) }?;
    Ok(())
}

/// Bytes of `struct dm_ioctl` of <linux/dm-ioctl.h>, with which every message to and from
/// device-mapper begins.
pub(crate) const DM_HEADER: usize = 312;

/// Sends a command (`DM_…_CMD`) to device-mapper; `message` is a `struct dm_ioctl` with what
/// follows it, and holds the answer afterwards. Its `data_size` is filled in here.
pub(crate) fn device_mapper(
    control: BorrowedFd<'_>,
    command: u8,
    message: &mut [u8],
) -> Result<(), Errno> {
    let length = u32::try_from(message.len()).map_err(|_| Errno::EINVAL)?;
    let size = message
        .get_mut(12..16)
        .filter(|_| length as usize >= DM_HEADER)
        .ok_or(Errno::EINVAL)?;
    size.copy_from_slice(&length.to_ne_bytes());
    let request = nix::request_code_readwrite!(0xfd, command, DM_HEADER);
    // SAFETY: the kernel reads and writes at most `data_size` bytes of the message, which is its
    // length; it copies them, so that they need no alignment. A descriptor of another kind answers
    // ENOTTY.
    Errno::result(unsafe { libc::ioctl(control.as_raw_fd(), request, message.as_mut_ptr()) })
        .map(drop)
}

/// Gives the calling thread a descriptor table of its own that holds `kept` and the standard
/// streams and nothing else, and returns this table's own copy of `kept`. Threads started from here
/// share the new table; all others keep theirs.
///
/// For a thread that serves the rest of the process through the kernel: when the process is killed
/// while another thread waits inside the kernel for an answer, this table still dies with the
/// serving thread, and the kernel gives up waiting.
pub(crate) fn private_descriptors(kept: RawFd) -> Result<OwnedFd, Errno> {
    let number = u32::try_from(kept).map_err(|_| Errno::EBADF)?;
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_FILES)?;
    const AFTER_STANDARD_STREAMS: u32 = 3;
    if number > AFTER_STANDARD_STREAMS {
        close_range(AFTER_STANDARD_STREAMS, number - 1)?;
    }
    close_range(number + 1, u32::MAX)?;
    // SAFETY: F_GETFD takes no argument and fails where the number is not open.
    Errno::result(unsafe { libc::fcntl(kept, libc::F_GETFD) })?;
    // SAFETY: the descriptor is open, as just seen, in a table that only this thread can change,
    // and as that table's own copy it has no owner yet.
    Ok(unsafe { OwnedFd::from_raw_fd(kept) })
}

/// Only for the table made by [`private_descriptors`].
fn close_range(first: u32, last: u32) -> Result<(), Errno> {
    // SAFETY: the calling thread's table is its own since unshare(CLONE_FILES), so every number in
    // it is a mere copy: whoever owns such a number owns it in another table, where it stays open.
    Errno::result(unsafe { libc::close_range(first, last, 0) }).map(drop)
}

/// Takes a write lease on the file and gives it back at once. The kernel grants one only while no
/// other descriptor of the file is open (`EAGAIN` otherwise; `EINVAL` where the file system has no
/// leases).
pub(crate) fn write_lease_is_free(file: BorrowedFd<'_>) -> Result<(), Errno> {
    // SAFETY: installs "ignore" for one signal; no handler code is involved. Without it somebody
    // who opens the file in the moment between the two calls below would have the kernel end us
    // with SIGIO.
    unsafe { libc::signal(libc::SIGIO, libc::SIG_IGN) };
    // SAFETY: both calls take an integer and no memory; the descriptor is open for the whole call.
    Errno::result(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETLEASE, libc::F_WRLCK) })?;
    // SAFETY: as above.
    Errno::result(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETLEASE, libc::F_UNLCK) })
        .map(drop)
}

/// Rust ignores SIGPIPE; a command in a pipe should die of it quietly, as others do.
pub fn restore_default_sigpipe() {
    // SAFETY: installs the default disposition for one signal before any thread is started; no
    // handler code is involved.
    unsafe {
        libc::signal(libc::SIGPIPE, libc::SIG_DFL);
    }
}

/// `struct mount_attr` of <linux/mount.h>.
#[repr(C)]
struct MountAttr {
    set: u64,
    clear: u64,
    propagation: u64,
    user_namespace: u64,
}

/// Sets and clears `MOUNT_ATTR_*` of a mount whose root is open (`mount_setattr`, Linux 5.12).
/// Clearing comes first.
pub(crate) fn set_mount_attributes(
    root: BorrowedFd<'_>,
    set: u32,
    clear: u32,
) -> Result<(), Errno> {
    let attributes = MountAttr {
        set: set.into(),
        clear: clear.into(),
        propagation: 0,
        user_namespace: 0,
    };
    let size = size_of::<MountAttr>();
    // SAFETY: the path is an empty C string, `attributes` is a live `struct mount_attr` of the size
    // given, and the kernel only reads them.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            root.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const attributes,
            size,
        )
    };
    Errno::result(result).map(drop)
}

/// Has the kernel begin to write a range of a file to the disk, without waiting for it
/// (`sync_file_range`). A hint: file systems that cannot do it leave everything to fsync.
pub(crate) fn begin_writing(file: BorrowedFd<'_>, offset: u64, length: u64) {
    let (Ok(offset), Ok(length)) = (
        libc::off64_t::try_from(offset),
        libc::off64_t::try_from(length),
    ) else {
        return;
    };
    // A length of 0 would mean everything behind.
    if length > 0 {
        // SAFETY: the call takes integers and no memory; the descriptor is open for the whole call.
        unsafe {
            libc::sync_file_range(
                file.as_raw_fd(),
                offset,
                length,
                libc::SYNC_FILE_RANGE_WRITE,
            )
        };
    }
}
