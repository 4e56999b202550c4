//! What is mounted where in this thread's mount namespace, from /proc/thread-self/mountinfo
//! (format: proc_pid_mountinfo(5)).

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::base::escaping::escape;

/// One mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mount {
    /// Where, in this machine's own tree.
    pub mount_point: PathBuf,
    /// The kernel's name of the file system.
    pub kind: String,
    /// What is mounted: `/dev/sdb2`.
    pub device: String,
    /// The kernel's number of the file system, `8:2`: the same for all mounts of it.
    pub number: String,
    /// Which of its folders is shown; `/` unless this is a bind mount (or a subvolume).
    pub root: PathBuf,
}

/// File systems mounted below (not on) `folder`, parents first.
pub(crate) fn below(folder: &Path) -> Result<Vec<Mount>> {
    let mut mounts: Vec<Mount> = read()?
        .into_iter()
        .filter(|mount| mount.mount_point != folder && mount.mount_point.starts_with(folder))
        .collect();
    mounts.sort_by_key(|mount| mount.mount_point.components().count());
    Ok(mounts)
}

/// What is mounted on `folder` itself.
pub(crate) fn at(folder: &Path) -> Result<Option<Mount>> {
    Ok(read()?
        .into_iter()
        .find(|mount| mount.mount_point == folder))
}

fn read() -> Result<Vec<Mount>> {
    let text = std::fs::read("/proc/thread-self/mountinfo")
        .context("reading /proc/thread-self/mountinfo")?;
    Ok(parse(&text))
}

/// A later mount on the same place hides the earlier one.
fn parse(text: &[u8]) -> Vec<Mount> {
    let mut mounts: Vec<Mount> = Vec::new();
    for mount in text.split(|byte| *byte == b'\n').filter_map(parse_line) {
        mounts.retain(|there| there.mount_point != mount.mount_point);
        mounts.push(mount);
    }
    mounts
}

fn parse_line(line: &[u8]) -> Option<Mount> {
    let fields: Vec<&[u8]> = line.split(|byte| *byte == b' ').collect();
    // A variable number of optional fields ends with a lone dash.
    let dash = fields.iter().skip(6).position(|field| *field == b"-")? + 6;
    let text = |index: usize| fields.get(index).map(|field| unescape(field));
    Some(Mount {
        mount_point: PathBuf::from(OsString::from_vec(text(4)?)),
        kind: String::from_utf8_lossy(&text(dash + 1)?).into_owned(),
        device: escape(&String::from_utf8_lossy(&text(dash + 2)?)),
        number: String::from_utf8_lossy(&text(2)?).into_owned(),
        root: PathBuf::from(OsString::from_vec(text(3)?)),
    })
}

/// Blank, tab, line feed, backslash and `#` are written in octal, like fstab's.
pub(crate) fn unescape(field: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, after)) = rest.split_first() {
        let octal = after.get(..3).filter(|digits| {
            *first == b'\\' && digits.iter().all(|digit| matches!(digit, b'0'..=b'7'))
        });
        let digits = octal.and_then(|digits| std::str::from_utf8(digits).ok());
        match digits.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => {
                plain.push(byte);
                rest = after.get(3..).unwrap_or_default();
            }
            None => {
                plain.push(*first);
                rest = after;
            }
        }
    }
    plain
}

impl Mount {
    /// Whether it keeps files on a disk of this machine. Networks, memory and layers of containers
    /// do not.
    pub fn is_on_disk(&self) -> bool {
        const ON_DISK: [&str; 7] = ["ext2", "ext3", "ext4", "xfs", "btrfs", "f2fs", "jfs"];
        ON_DISK.contains(&self.kind.as_str())
    }

    /// Whether it is one of the kernel's own, as a chroot has them below the guest's root: nothing
    /// in it is the guest's.
    pub fn is_pseudo(&self) -> bool {
        const PSEUDO: [&str; 20] = [
            "autofs",
            "binfmt_misc",
            "bpf",
            "cgroup",
            "cgroup2",
            "configfs",
            "debugfs",
            "devpts",
            "devtmpfs",
            "efivarfs",
            "fusectl",
            "hugetlbfs",
            "mqueue",
            "nsfs",
            "proc",
            "pstore",
            "securityfs",
            "sysfs",
            "tmpfs",
            "tracefs",
        ];
        PSEUDO.contains(&self.kind.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn optional_fields_escapes_and_hidden_mounts() {
        let text =
            b"36 35 98:0 / /mnt/a\\040b rw,noatime master:1 propagate_from:2 - ext3 /dev/root rw,errors=continue\n\
                     37 35 98:1 / /mnt/a\\040b rw - xfs /dev/sdb1 rw\nnonsense\n";
        let expected = Mount {
            mount_point: "/mnt/a b".into(),
            kind: "xfs".into(),
            device: "/dev/sdb1".into(),
            number: "98:1".into(),
            root: "/".into(),
        };
        assert_eq!(parse(text), [expected]);
    }
}
