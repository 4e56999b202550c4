//! The disks that this machine has, without the medium it was booted from.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// The volume name of our ISO (image/src/iso.rs).
const OUR_VOLUME: &[u8] = b"RESCUE";

/// A disk that may hold a powered-off system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attached {
    /// `vda`.
    pub name: String,
    /// In bytes.
    pub size: u64,
    /// What it says of itself, or an empty string.
    pub model: String,
    /// The driver of the controller it hangs on, or an empty string.
    pub driver: String,
}

impl Attached {
    /// `/dev/vda`.
    pub fn path(&self) -> String {
        format!("/dev/{}", self.name)
    }
}

/// The disks that are there now.
pub fn list() -> Vec<Attached> {
    let mut disks: Vec<Attached> = entries("/sys/block")
        .into_iter()
        .filter(|name| may_be_a_disk(name))
        .filter_map(read)
        .collect();
    disks.sort_by(|a, b| natural(&a.name).cmp(&natural(&b.name)));
    disks
}

/// Everything else in /sys/block is no disk or stands on one.
fn may_be_a_disk(name: &str) -> bool {
    const NOT: &[&str] = &["loop", "ram", "zram", "sr", "fd", "dm-", "md", "nbd", "mtd"];
    !NOT.iter().any(|prefix| {
        name.strip_prefix(prefix)
            .is_some_and(|rest| !rest.is_empty() && rest.bytes().all(|b| b.is_ascii_digit()))
    })
}

/// `sdb` before `sdaa`, `vda2` before `vda10`.
fn natural(name: &str) -> (usize, &str) {
    (name.len(), name)
}

fn read(name: String) -> Option<Attached> {
    let folder = Path::new("/sys/block").join(&name);
    let text = |file: &str| {
        fs::read_to_string(folder.join(file))
            .map(|text| text.trim().to_owned())
            .unwrap_or_default()
    };
    // In units of 512 bytes, whatever the disk's own sectors are; 0 is a drive without a medium.
    let size = text("size").parse::<u64>().ok()?.saturating_mul(512);
    // NVMe multipath shows each path as a hidden twin.
    if size == 0 || text("hidden") == "1" || is_ours(&name) {
        return None;
    }
    Some(Attached {
        size,
        model: text("device/model"),
        driver: driver(&folder),
        name,
    })
}

/// The driver of the nearest PCI, VMBus or Xen device above the disk.
fn driver(folder: &Path) -> String {
    // Drivers of the disk itself, not of what it hangs on.
    const GENERIC: &[&str] = &["sd", "sr", "usb", "usb-storage", "nvme"];
    let Ok(device) = fs::canonicalize(folder) else {
        return String::new();
    };
    device
        .ancestors()
        .filter_map(|folder| fs::read_link(folder.join("driver")).ok())
        .filter_map(|link| Some(link.file_name()?.to_str()?.to_owned()))
        .find(|name| name == "nvme" || !GENERIC.contains(&name.as_str()))
        .unwrap_or_default()
}

/// Whether the disk is our own ISO, written to a stick.
fn is_ours(name: &str) -> bool {
    // The primary volume descriptor is in the 17th sector of 2048 bytes.
    let mut descriptor = [0; 2048];
    let read = fs::File::open(format!("/dev/{name}"))
        .and_then(|disk| disk.read_exact_at(&mut descriptor, 16 * 2048));
    read.is_ok() && is_our_volume(&descriptor)
}

fn is_our_volume(descriptor: &[u8]) -> bool {
    descriptor.get(1..6) == Some(b"CD001")
        && descriptor
            .get(40..72)
            .is_some_and(|name| name.trim_ascii_end() == OUR_VOLUME)
}

/// The names in a folder of this machine, sorted; none where it cannot be read.
pub(crate) fn entries(folder: &str) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(folder)
        .map(|entries| {
            entries
                .flatten()
                .filter_map(|entry| entry.file_name().into_string().ok())
                .collect()
        })
        .unwrap_or_default();
    names.sort();
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leaves_out_what_is_no_disk() {
        for name in [
            "loop0", "ram1", "sr0", "fd0", "dm-3", "md127", "zram0", "nbd1",
        ] {
            assert!(!may_be_a_disk(name), "{name}");
        }
        for name in ["sda", "vdb", "xvda", "nvme0n1", "mmcblk0", "sdaa"] {
            assert!(may_be_a_disk(name), "{name}");
        }
    }

    #[test]
    fn sorts_as_people_count() {
        let mut names = ["sdaa", "vda", "sdb", "sda"];
        names.sort_by(|a, b| natural(a).cmp(&natural(b)));
        assert_eq!(names, ["sda", "sdb", "vda", "sdaa"]);
    }

    #[test]
    fn knows_our_own_medium() {
        let mut descriptor = vec![0; 2048];
        descriptor[1..6].copy_from_slice(b"CD001");
        descriptor[40..72].copy_from_slice(b"RESCUE                          ");
        assert!(is_our_volume(&descriptor));
        descriptor[40..72].copy_from_slice(b"RESCUE2                         ");
        assert!(!is_our_volume(&descriptor));
        assert!(!is_our_volume(&[]));
    }
}
