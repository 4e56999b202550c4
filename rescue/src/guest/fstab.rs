//! The guest's own fstab: which file systems it mounts where. Parsing only; finding the devices is
//! [`super::discover`]'s.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use crate::disk::mountinfo::unescape;

/// One line of fstab.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    /// Line number, from 1.
    pub line: usize,
    /// First field as written, for people.
    pub what: String,
    /// What to mount.
    pub spec: Spec,
    /// Where; not meaningful for swap.
    pub mount_point: PathBuf,
    /// Third field: `ext4`, `auto` …
    pub kind: String,
    /// Fourth field, split at commas.
    pub options: Vec<String>,
}

/// The ways to name a file system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Spec {
    /// `UUID=`, `/dev/disk/by-uuid/`; lower case.
    Uuid(String),
    /// `LABEL=`, `/dev/disk/by-label/`.
    Label(String),
    /// `PARTUUID=`, `/dev/disk/by-partuuid/`; lower case.
    PartUuid(String),
    /// `PARTLABEL=`, `/dev/disk/by-partlabel/`.
    PartLabel(String),
    /// A disk or partition by the kernel's name: `sda` is disk 0, `/dev/vdb3` partition 3 of
    /// disk 1.
    Device {
        /// Which disk, from 0.
        disk: usize,
        /// Which partition; `None` for the whole disk.
        partition: Option<u32>,
    },
    /// A partition of a disk named by bus path or serial number, which only the hypervisor knows.
    PartitionOfNamedDisk(u32),
    /// `/dev/VG/LV`.
    Logical {
        /// Name of the volume group.
        group: String,
        /// Name of the logical volume.
        volume: String,
    },
    /// A name in /dev/mapper; dashes within the names of a group and its volume are doubled.
    Mapper(String),
    /// What device-mapper has as UUID after `LVM-`.
    MapperUuid(String),
    /// RAID and the like.
    Stacked,
    /// A path in the guest: bind mounts, swap files, loop images.
    Path(PathBuf),
    /// Anything else: network shares, pseudo file systems.
    Other,
}

/// Whether a line matters for a powered-off system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// A file system on a disk.
    Disk,
    /// A folder shown in a second place.
    Bind,
    /// Swap space.
    Swap,
    /// Kernel, memory, network, removable media: nothing of it is on the guest's disks.
    Elsewhere,
}

/// A line that is no fstab line, by number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct NotUnderstood(pub usize);

/// Splits fstab as libmount does: blank and `#` lines are skipped, fields are separated by blanks,
/// `\040` is an octal escape.
pub(crate) fn parse(bytes: &[u8]) -> Vec<Result<Entry, NotUnderstood>> {
    let lines = bytes.split(|byte| *byte == b'\n').enumerate();
    lines
        .filter_map(|(index, line)| parse_line(index + 1, line))
        .collect()
}

fn parse_line(number: usize, line: &[u8]) -> Option<Result<Entry, NotUnderstood>> {
    let mut fields = line
        .split(|byte| matches!(byte, b' ' | b'\t' | b'\r'))
        .filter(|field| !field.is_empty());
    let first = fields.next().filter(|field| !field.starts_with(b"#"))?;
    let Some(second) = fields.next().filter(|field| !field.starts_with(b"#")) else {
        return Some(Err(NotUnderstood(number)));
    };
    let text = |field: &[u8]| String::from_utf8_lossy(&unescape(field)).into_owned();
    let kind = fields.next().map_or_else(|| "auto".into(), text);
    let options = fields.next().map_or_else(|| "defaults".into(), text);
    let what = unescape(first);
    Some(Ok(Entry {
        line: number,
        what: crate::base::escaping::escape(&String::from_utf8_lossy(&what)),
        spec: spec(&what),
        mount_point: PathBuf::from(OsString::from_vec(unescape(second))),
        kind,
        options: options.split(',').map(str::to_owned).collect(),
    }))
}

fn spec(what: &[u8]) -> Spec {
    let text = String::from_utf8_lossy(what);
    if let Some((tag, value)) = text.split_once('=') {
        let value = value.trim_matches(|quote| matches!(quote, '"' | '\''));
        let by_tag = tagged(&tag.to_ascii_lowercase(), value);
        if let Some(spec) = by_tag {
            return spec;
        }
        // util-linux 2.39: a name in /dev/disk/by-id.
        if tag.eq_ignore_ascii_case("id") {
            return named_disk(value);
        }
    }
    if let Some(below) = text.strip_prefix("/dev/disk/by-") {
        return match below.split_once('/') {
            Some((directory, name)) => {
                tagged(directory, &udev_unescape(name)).unwrap_or_else(|| named_disk(name))
            }
            None => Spec::Other,
        };
    }
    if let Some(name) = text.strip_prefix("/dev/") {
        return device(name).unwrap_or_else(|| stacked(name));
    }
    if what.starts_with(b"/") {
        return Spec::Path(PathBuf::from(OsString::from_vec(what.to_vec())));
    }
    Spec::Other
}

fn stacked(name: &str) -> Spec {
    match name.split_once('/') {
        Some(("mapper", name)) => Spec::Mapper(name.to_owned()),
        Some(("md", _)) => Spec::Stacked,
        Some((group, volume)) => Spec::Logical {
            group: group.to_owned(),
            volume: volume.to_owned(),
        },
        None if name.starts_with("loop") => Spec::Other,
        None => Spec::Stacked,
    }
}

fn tagged(tag: &str, value: &str) -> Option<Spec> {
    match tag {
        "uuid" => Some(Spec::Uuid(value.to_ascii_lowercase())),
        "label" => Some(Spec::Label(value.to_owned())),
        "partuuid" => Some(Spec::PartUuid(value.to_ascii_lowercase())),
        "partlabel" => Some(Spec::PartLabel(value.to_owned())),
        _ => None,
    }
}

/// udev writes odd characters of a label as `\x20`.
fn udev_unescape(name: &str) -> String {
    let mut plain = Vec::with_capacity(name.len());
    let mut rest = name;
    while let Some(at) = rest.find("\\x") {
        let (before, escaped) = rest.split_at(at);
        plain.extend_from_slice(before.as_bytes());
        match escaped
            .get(2..4)
            .and_then(|digits| u8::from_str_radix(digits, 16).ok())
        {
            Some(byte) => {
                plain.push(byte);
                rest = escaped.get(4..).unwrap_or_default();
            }
            None => {
                plain.extend_from_slice(b"\\x");
                rest = escaped.get(2..).unwrap_or_default();
            }
        }
    }
    plain.extend_from_slice(rest.as_bytes());
    String::from_utf8_lossy(&plain).into_owned()
}

/// `scsi-36000c29…-part2`, `pci-0000:03:00.0-scsi-0:0:0:0-part1`; device-mapper names have no
/// partition.
fn named_disk(name: &str) -> Spec {
    if let Some(uuid) = name.strip_prefix("dm-uuid-LVM-") {
        return Spec::MapperUuid(uuid.to_owned());
    }
    if let Some(name) = name.strip_prefix("dm-name-") {
        return Spec::Mapper(udev_unescape(name));
    }
    if name.starts_with("dm-") || name.starts_with("md-") || name.starts_with("lvm-") {
        return Spec::Stacked;
    }
    let number = name
        .rsplit_once("-part")
        .and_then(|(_, number)| number.parse().ok());
    number.map_or(Spec::Other, Spec::PartitionOfNamedDisk)
}

/// `sda1`, `vdb`, `xvda2`, `nvme0n1p3`, `mmcblk0p1`.
fn device(name: &str) -> Option<Spec> {
    for family in ["xvd", "sd", "vd", "hd"] {
        let Some(rest) = name.strip_prefix(family) else {
            continue;
        };
        let letters = rest.trim_end_matches(|digit: char| digit.is_ascii_digit());
        if letters.is_empty()
            || letters.len() > 3
            || !letters.bytes().all(|letter| letter.is_ascii_lowercase())
        {
            continue;
        }
        let index = letters.bytes().fold(0, |index, letter| {
            index * 26 + usize::from(letter - b'a') + 1
        });
        return Some(Spec::Device {
            disk: index - 1,
            partition: partition(rest.get(letters.len()..)?)?,
        });
    }
    if let Some(rest) = name.strip_prefix("nvme") {
        // Namespace 1 is what every hypervisor gives; its disks differ by controller.
        let (controller, rest) = rest.split_once("n1")?;
        let number = if rest.is_empty() {
            ""
        } else {
            rest.strip_prefix('p')?
        };
        return Some(Spec::Device {
            disk: controller.parse().ok()?,
            partition: partition(number)?,
        });
    }
    let (disk, number) = name
        .strip_prefix("mmcblk")?
        .split_once('p')
        .unwrap_or((name.strip_prefix("mmcblk")?, ""));
    Some(Spec::Device {
        disk: disk.parse().ok()?,
        partition: partition(number)?,
    })
}

/// Nothing is the whole disk; anything but a number is no device name.
fn partition(number: &str) -> Option<Option<u32>> {
    if number.is_empty() {
        Some(None)
    } else {
        number.parse().ok().map(Some)
    }
}

impl Entry {
    pub fn has_option(&self, name: &str) -> bool {
        self.options.iter().any(|option| option == name)
    }

    /// Whether the next boot mounts it, at once or on first use.
    pub fn is_mounted_at_boot(&self) -> bool {
        !self.has_option("noauto") || self.has_option("x-systemd.automount")
    }

    pub fn role(&self) -> Role {
        const ELSEWHERE: [&str; 40] = [
            "9p",
            "autofs",
            "binfmt_misc",
            "bpf",
            "ceph",
            "cgroup",
            "cgroup2",
            "cifs",
            "configfs",
            "davfs",
            "debugfs",
            "devpts",
            "devtmpfs",
            "efivarfs",
            "fuse",
            "fusectl",
            "gfs2",
            "glusterfs",
            "hugetlbfs",
            "iso9660",
            "lustre",
            "mqueue",
            "ncpfs",
            "nfs",
            "nfs4",
            "nfsd",
            "ocfs2",
            "overlay",
            "proc",
            "pstore",
            "ramfs",
            "rpc_pipefs",
            "securityfs",
            "smb3",
            "smbfs",
            "sshfs",
            "sysfs",
            "tmpfs",
            "tracefs",
            "virtiofs",
        ];
        let kind = self.kind.as_str();
        if kind == "swap" {
            Role::Swap
        } else if ["bind", "rbind"]
            .iter()
            .any(|option| self.has_option(option))
        {
            Role::Bind
        } else if ELSEWHERE.contains(&kind)
            || kind.starts_with("fuse.")
            || kind
                .split(',')
                .any(|kind| matches!(kind, "udf" | "iso9660"))
            || ["/dev/cdrom", "/dev/sr", "/dev/fd"]
                .iter()
                .any(|device| self.what.starts_with(device))
        {
            Role::Elsewhere
        } else {
            Role::Disk
        }
    }

    /// Mount points are mounted parents first.
    pub fn depth(&self) -> usize {
        self.mount_point.components().count()
    }

    pub fn is_root(&self) -> bool {
        self.mount_point == Path::new("/")
    }

    /// How messages name the line. Names come from the guest: control characters are escaped.
    pub fn shown(&self) -> String {
        let at = crate::base::escaping::escape(&String::from_utf8_lossy(
            self.mount_point.as_os_str().as_bytes(),
        ));
        format!("fstab line {}: {} on {at}", self.line, self.what)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(line: &str) -> Entry {
        let mut entries = parse(line.as_bytes());
        assert_eq!(entries.len(), 1, "{line}");
        entries
            .remove(0)
            .unwrap_or_else(|_| panic!("{line} was not understood"))
    }

    #[test]
    fn specs() {
        let device = |disk, partition| Spec::Device { disk, partition };
        for (written, expected) in [
            (
                "UUID=5D9C1B2A-0000-4000-8000-000000000001",
                Spec::Uuid("5d9c1b2a-0000-4000-8000-000000000001".into()),
            ),
            ("UUID=\"ab-cd\"", Spec::Uuid("ab-cd".into())),
            ("LABEL=My\\040Disk", Spec::Label("My Disk".into())),
            ("LABEL=a=b", Spec::Label("a=b".into())),
            ("PARTUUID=1234ABCD-02", Spec::PartUuid("1234abcd-02".into())),
            (
                "PARTLABEL=Linux\\040filesystem",
                Spec::PartLabel("Linux filesystem".into()),
            ),
            ("/dev/disk/by-uuid/AB", Spec::Uuid("ab".into())),
            ("/dev/disk/by-label/a\\x20b", Spec::Label("a b".into())),
            ("/dev/disk/by-partlabel/var", Spec::PartLabel("var".into())),
            (
                "/dev/disk/by-id/scsi-36000c29-part2",
                Spec::PartitionOfNamedDisk(2),
            ),
            (
                "/dev/disk/by-path/pci-0000:03:00.0-scsi-0:0:0:0-part1",
                Spec::PartitionOfNamedDisk(1),
            ),
            (
                "/dev/disk/by-id/dm-uuid-LVM-abc",
                Spec::MapperUuid("abc".into()),
            ),
            ("ID=scsi-36000c29-part2", Spec::PartitionOfNamedDisk(2)),
            ("/dev/sda1", device(0, Some(1))),
            ("/dev/sdb", device(1, None)),
            ("/dev/sdaa12", device(26, Some(12))),
            ("/dev/vdc3", device(2, Some(3))),
            ("/dev/xvda2", device(0, Some(2))),
            ("/dev/nvme1n1p3", device(1, Some(3))),
            ("/dev/nvme0n1", device(0, None)),
            ("/dev/mmcblk0p2", device(0, Some(2))),
            ("/dev/mapper/vg0-root", Spec::Mapper("vg0-root".into())),
            (
                "/dev/disk/by-id/dm-name-a--b-c",
                Spec::Mapper("a--b-c".into()),
            ),
            (
                "/dev/vg0/root",
                Spec::Logical {
                    group: "vg0".into(),
                    volume: "root".into(),
                },
            ),
            ("/dev/md0", Spec::Stacked),
            ("/data/kubelet", Spec::Path("/data/kubelet".into())),
            ("tmpfs", Spec::Other),
            ("10.0.0.1:/export", Spec::Other),
        ] {
            assert_eq!(
                one(&format!("{written}\t/mnt ext4 defaults 0 2")).spec,
                expected,
                "{written}"
            );
        }
    }

    #[test]
    fn fields_comments_and_escapes() {
        let text = b"# static\n\n  \t# indented\nUUID=a / ext4 errors=remount-ro 0 1\r\n/dev/sda2 /mnt/a\\040b\n lonely\nUUID=b /c # no type\n";
        let entries = parse(text);
        assert_eq!(entries.len(), 4);
        let root = entries[0].as_ref().unwrap();
        assert!(root.is_root() && root.has_option("errors=remount-ro") && root.line == 4);
        let second = entries[1].as_ref().unwrap();
        assert_eq!(
            (second.mount_point.as_path(), second.kind.as_str()),
            (Path::new("/mnt/a b"), "auto")
        );
        assert_eq!(entries[2], Err(NotUnderstood(6)));
        assert_eq!(
            one("/x\\0 /a\\9b").mount_point,
            Path::new("/a\\9b"),
            "what is no escape stays"
        );
    }

    #[test]
    fn roles() {
        for (line, role) in [
            ("UUID=a /var ext4 defaults 0 2", Role::Disk),
            ("UUID=a none swap sw 0 0", Role::Swap),
            ("/swap.img swap swap defaults 0 0", Role::Swap),
            ("/data/etcd /var/lib/etcd none bind 0 0", Role::Bind),
            ("/data /srv ext4 rbind", Role::Bind),
            ("proc /proc proc defaults 0 0", Role::Elsewhere),
            ("10.0.0.1:/x /x nfs4 _netdev 0 0", Role::Elsewhere),
            ("//server/share /x cifs guest", Role::Elsewhere),
            ("s3fs#bucket /x fuse.s3fs _netdev", Role::Elsewhere),
            (
                "/dev/sr0 /media/cdrom0 udf,iso9660 user,noauto 0 0",
                Role::Elsewhere,
            ),
            ("/dev/sdb1 /data xfs _netdev", Role::Disk),
        ] {
            assert_eq!(one(line).role(), role, "{line}");
        }
        assert!(!one("UUID=a /x ext4 noauto").is_mounted_at_boot());
        assert!(one("UUID=a /x ext4 noauto,x-systemd.automount").is_mounted_at_boot());
    }
}
