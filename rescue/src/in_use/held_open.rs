//! Files that processes of this machine have open or mapped. Freeing such a file gives back nothing
//! until the process ends, and takes the file from under it.

use std::collections::HashMap;
use std::fmt;
use std::fs;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, StatxFlags, makedev};
use rustix::io::Errno;

/// A process that has a file open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// Process id.
    pub pid: u32,
    /// Name of its program, as the kernel shows it.
    pub name: String,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (process {})", self.name, self.pid)
    }
}

/// Which files were open at one moment, by device number and inode: their names differ from
/// container to container.
#[derive(Debug, Default)]
pub struct HeldOpen {
    files: HashMap<(u64, u64), Holder>,
}

/// Of each mount of a namespace by its id: whether its file system may wait for an answer from a
/// network or another process.
type Remote = HashMap<u64, bool>;

impl HeldOpen {
    /// Looks at all processes but this one. Processes that end meanwhile, and those that cannot be
    /// looked into, are left out: ask [`is_open_elsewhere`] before something is destroyed.
    pub fn scan() -> Self {
        let mut held = Self::default();
        let mut namespaces: HashMap<PathBuf, Remote> = HashMap::new();
        let own = std::process::id();
        for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
            let Some(pid) = entry
                .file_name()
                .to_str()
                .and_then(|name| name.parse().ok())
            else {
                continue;
            };
            if pid != own {
                held.add_process(pid, &entry.path(), &mut namespaces);
            }
        }
        held
    }

    /// Who has the file open: one of perhaps several.
    pub fn holder(&self, device: u64, inode: u64) -> Option<&Holder> {
        self.files.get(&(device, inode))
    }

    fn add_process(&mut self, pid: u32, folder: &Path, namespaces: &mut HashMap<PathBuf, Remote>) {
        let mut files = mapped(folder);
        let namespace = fs::read_link(folder.join("ns/mnt")).unwrap_or_default();
        let remote = namespaces
            .entry(namespace)
            .or_insert_with(|| remote_mounts(folder));
        files.extend(open(folder, remote));
        if files.is_empty() {
            return;
        }
        let name = fs::read_to_string(folder.join("comm")).unwrap_or_default();
        let holder = Holder {
            pid,
            name: name.trim().replace(|c: char| c.is_control(), "?"),
        };
        for file in files {
            self.files.entry(file).or_insert_with(|| holder.clone());
        }
    }
}

/// Files behind descriptors.
fn open(folder: &Path, remote: &Remote) -> Vec<(u64, u64)> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder.join("fd"))
        .into_iter()
        .flatten()
        .flatten()
    {
        let descriptor = entry.path();
        let Ok(target) = fs::read_link(&descriptor) else {
            continue;
        };
        // Pipes, sockets and the kernel's own files hold nothing on a disk.
        if !target.is_absolute()
            || ["/dev", "/proc", "/sys"]
                .iter()
                .any(|kernel| target.starts_with(kernel))
        {
            continue;
        }
        let info =
            fs::read_to_string(folder.join("fdinfo").join(entry.file_name())).unwrap_or_default();
        let mount = info
            .lines()
            .find_map(|line| line.strip_prefix("mnt_id:")?.trim().parse().ok());
        // Asking a network share that is gone would hang us.
        if mount.is_some_and(|mount| remote.get(&mount) == Some(&true)) {
            continue;
        }
        if let Ok(stat) =
            rustix::fs::statx(CWD, &descriptor, AtFlags::STATX_DONT_SYNC, StatxFlags::INO)
        {
            files.push((
                makedev(stat.stx_dev_major, stat.stx_dev_minor),
                stat.stx_ino,
            ));
        }
    }
    files
}

fn remote_mounts(folder: &Path) -> Remote {
    const LOCAL: [&str; 11] = [
        "ext2", "ext3", "ext4", "xfs", "btrfs", "f2fs", "jfs", "vfat", "tmpfs", "ramfs", "overlay",
    ];
    let text = fs::read_to_string(folder.join("mountinfo")).unwrap_or_default();
    let of_line = |line: &str| {
        let id = line.split(' ').next()?.parse().ok()?;
        let kind = line.split_once(" - ")?.1.split(' ').next()?.to_owned();
        Some((id, !LOCAL.contains(&kind.as_str())))
    };
    text.lines().filter_map(of_line).collect()
}

/// Files mapped into memory whose descriptor may be closed: journald's journals, databases,
/// programs.
fn mapped(folder: &Path) -> Vec<(u64, u64)> {
    let maps = fs::read(folder.join("maps")).unwrap_or_default();
    let mut files: Vec<(u64, u64)> = String::from_utf8_lossy(&maps)
        .lines()
        .filter_map(mapped_file)
        .collect();
    files.sort_unstable();
    files.dedup();
    files
}

/// `7f…-7f… r--s 00000000 08:01 1234    /var/log/journal/…`: device numbers are hexadecimal; inode
/// 0 is no file (proc_pid_maps(5)).
fn mapped_file(line: &str) -> Option<(u64, u64)> {
    let mut fields = line.split_ascii_whitespace().skip(3);
    let (major, minor) = fields.next()?.split_once(':')?;
    let inode: u64 = fields.next()?.parse().ok()?;
    let number = |text: &str| u32::from_str_radix(text, 16).ok();
    (inode != 0).then_some((makedev(number(major)?, number(minor)?), inode))
}

/// Asks the kernel whether the file is open anywhere else, in whatever process or container: only
/// then is a write lease refused. `None` where the file system has no leases.
pub fn is_open_elsewhere(file: BorrowedFd<'_>) -> Option<bool> {
    match crate::base::sys::write_lease_is_free(file)
        .map_err(|errno| Errno::from_raw_os_error(errno as i32))
    {
        Ok(()) => Some(false),
        Err(Errno::AGAIN | Errno::BUSY) => Some(true),
        Err(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;
    use std::os::unix::fs::MetadataExt;
    use std::process::{Command, Stdio};

    #[test]
    fn sees_who_has_a_file_open() {
        // Not in memory: a lease is a disk's.
        let file = tempfile::NamedTempFile::new_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let metadata = file.as_file().metadata().unwrap();
        let holder = || {
            HeldOpen::scan()
                .holder(metadata.dev(), metadata.ino())
                .cloned()
        };
        assert_eq!(holder(), None, "our own descriptor does not count");
        let mut reader = Command::new("sleep")
            .arg("30")
            .stdin(fs::File::open(file.path()).unwrap())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let found = holder().unwrap();
        assert_eq!((found.pid, found.name.as_str()), (reader.id(), "sleep"));
        assert_ne!(is_open_elsewhere(file.as_file().as_fd()), Some(false));
        reader.kill().unwrap();
        reader.wait().unwrap();
        assert_eq!(holder(), None);
        assert_ne!(is_open_elsewhere(file.as_file().as_fd()), Some(true));
    }

    #[test]
    fn reads_maps() {
        let line = "7f1c2a000000-7f1c2a800000 r--s 00000000 fe:10 263201                     \
            /var/log/journal/x/system.journal";
        assert_eq!(mapped_file(line), Some((makedev(0xfe, 0x10), 263_201)));
        assert_eq!(
            mapped_file("7ffc9b1d6000-7ffc9b1f7000 rw-p 00000000 00:00 0      [stack]"),
            None
        );
        assert_eq!(mapped_file("nonsense"), None);
    }
}
