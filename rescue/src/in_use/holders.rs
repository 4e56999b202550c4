//! What the kernel has put on top of a block device: volume groups that this machine activated by
//! itself, RAID, encryption, and what a run of ours left when it was killed.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::base::escaping::escape;
use crate::base::refusal::Refusal;
use crate::disk::device_mapper::{self, UUID_PREFIX};

/// How long the kernel may take to free a loop device after its last user.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(5);

/// Where sysfs shows all block devices.
const BLOCK: &str = "/sys/block";

/// A device above another one, as sysfs shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Holder {
    /// `dm-0`, `md127`.
    device: String,
    /// Device-mapper's own names; empty for others.
    name: String,
    uuid: String,
}

impl Holder {
    fn of(folder: &Path, device: String) -> Self {
        let read = |name: &str| {
            fs::read_to_string(folder.join("dm").join(name))
                .unwrap_or_default()
                .trim()
                .to_owned()
        };
        Self {
            name: read("name"),
            uuid: read("uuid"),
            device,
        }
    }

    fn is_ours(&self) -> bool {
        self.uuid.starts_with(UUID_PREFIX)
    }

    /// Name and UUID of the volume group (libdm's `LVM-` and both UUIDs without dashes; a dash
    /// within a name is doubled).
    fn group(&self) -> Option<(String, &str)> {
        let uuid = self.uuid.strip_prefix("LVM-")?.get(..32)?;
        let apart = self.name.replace("--", "\0");
        let group = apart.split('-').next()?.replace('\0', "-");
        Some((group, uuid))
    }
}

/// What a device is part of, for people; nothing is removed.
pub fn held_by(sysfs: &Path) -> Option<String> {
    let holders = holders(sysfs);
    holders
        .iter()
        .find(|holder| !holder.is_ours())
        .map(|holder| match holder.group() {
            Some((group, _)) => format!(
                "part of the volume group {}, which this machine has activated",
                escape(&group)
            ),
            None => format!("part of /dev/{}, which is active", escape(&holder.device)),
        })
}

/// Refuses a device, by its folder in sysfs and its node, when another one is made of it. What a
/// killed run of ours left is removed: the lock on the disk, which the caller has, is held by every
/// run that lives.
pub fn refuse_held(sysfs: &Path, node: &Path) -> Result<()> {
    for holder in holders(sysfs) {
        if holder.is_ours() && device_mapper::remove_stale(&holder.device, &holder.name) {
            continue;
        }
        let next = match holder.group() {
            Some((group, uuid)) => format!(
                "`{}`, then run this again",
                deactivate(&group, uuid, &all_groups())
            ),
            None => format!(
                "deactivate {} (mdadm --stop, dmsetup remove, cryptsetup close), then run this \
                 again",
                escape(&holder.device)
            ),
        };
        let what = match holder.group() {
            Some((group, _)) => format!(
                "the volume group {}, which this machine has activated",
                escape(&group)
            ),
            None => format!("/dev/{}, which is active", escape(&holder.device)),
        };
        let saw = format!("{} is part of {what}", node.display());
        return Err(
            Refusal::new(saw, "two writers at the same time would destroy it", next).into(),
        );
    }
    Ok(())
}

/// Whether a loop device was a killed run's, below a device-mapper device of ours, and is gone now.
pub fn is_ours_and_gone(loop_device: &Path) -> bool {
    let Some(name) = loop_device.file_name() else {
        return false;
    };
    let sysfs = Path::new(BLOCK).join(name);
    let holders = holders(&sysfs);
    if holders.is_empty()
        || !holders.iter().all(|holder| {
            holder.is_ours() && device_mapper::remove_stale(&holder.device, &holder.name)
        })
    {
        return false;
    }
    let deadline = Instant::now() + RELEASE_TIMEOUT;
    while sysfs.join("loop/backing_file").exists() {
        if Instant::now() > deadline {
            return false;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    true
}

fn holders(sysfs: &Path) -> Vec<Holder> {
    let entries = fs::read_dir(sysfs.join("holders"))
        .into_iter()
        .flatten()
        .flatten();
    entries
        .map(|entry| {
            Holder::of(
                &entry.path(),
                entry.file_name().to_string_lossy().into_owned(),
            )
        })
        .collect()
}

/// All volume groups that are active here.
fn all_groups() -> BTreeSet<(String, String)> {
    let devices = fs::read_dir(BLOCK).into_iter().flatten().flatten();
    let holder = |entry: fs::DirEntry| Holder::of(&entry.path(), String::new());
    devices
        .map(holder)
        .filter_map(|holder| holder.group().map(|(group, uuid)| (group, uuid.to_owned())))
        .collect()
}

/// The line that deactivates one group and not another one of the same name.
fn deactivate(group: &str, uuid: &str, all: &BTreeSet<(String, String)>) -> String {
    let is_alone = all
        .iter()
        .all(|(name, other)| name != group || other == uuid);
    // lvm2 shows a UUID in seven groups, and compares it as it shows it.
    let cuts = [0, 6, 10, 14, 18, 22, 26, 32];
    let shown: Vec<&str> = cuts
        .windows(2)
        .filter_map(|cut| uuid.get(cut[0]..cut[1]))
        .collect();
    match is_alone
        && group
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"_.+-".contains(&byte))
    {
        true => format!("vgchange -an {group}"),
        false => format!("vgchange -an --select vg_uuid={}", shown.join("-")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn holder(name: &str, uuid: &str) -> Holder {
        Holder {
            device: "dm-0".into(),
            name: name.into(),
            uuid: uuid.into(),
        }
    }

    #[test]
    fn names_the_line_that_deactivates_just_this_group() {
        let uuid = "KdQOZDc08sASZ8fmHTH3sbOSQ9qKFrE0";
        let one = holder("my--vg-root--lv", &format!("LVM-{uuid}{uuid}"));
        assert_eq!(one.group(), Some(("my-vg".to_owned(), uuid)));
        let mut all = BTreeSet::from([
            ("my-vg".to_owned(), uuid.to_owned()),
            ("other".to_owned(), "x".repeat(32)),
        ]);
        assert_eq!(deactivate("my-vg", uuid, &all), "vgchange -an my-vg");
        // The helper's own group has the same name.
        all.insert(("my-vg".to_owned(), "y".repeat(32)));
        let line = "vgchange -an --select vg_uuid=KdQOZD-c08s-ASZ8-fmHT-H3sb-OSQ9-qKFrE0";
        assert_eq!(deactivate("my-vg", uuid, &all), line);
        assert_eq!(holder("luks-1", "CRYPT-LUKS2-1").group(), None);
        assert!(holder("rescue-1", "RESCUE-1").is_ours());
    }

    /// As sysfs shows a disk whose volume group udev has activated.
    #[test]
    fn a_group_that_was_activated_by_itself_is_refused_with_the_line() {
        let sysfs = tempfile::tempdir().unwrap();
        let dm = |device: &str, name: &str, uuid: &str| {
            let folder = sysfs.path().join("holders").join(device).join("dm");
            fs::create_dir_all(&folder).unwrap();
            fs::write(folder.join("name"), format!("{name}\n")).unwrap();
            fs::write(folder.join("uuid"), format!("{uuid}\n")).unwrap();
        };
        let node = Path::new("/dev/sdb2");
        assert!(
            refuse_held(sysfs.path(), node).is_ok() && held_by(sysfs.path()).is_none(),
            "nothing above it"
        );
        dm(
            "dm-3",
            "k8s--vg-root",
            &format!("LVM-{}", "KdQOZDc08sASZ8fmHTH3sbOSQ9qKFrE0".repeat(2)),
        );
        let refused = refuse_held(sysfs.path(), node).unwrap_err();
        let refusal = refused.downcast_ref::<Refusal>().unwrap();
        assert!(
            refusal
                .saw
                .contains("/dev/sdb2 is part of the volume group k8s-vg"),
            "{refusal}"
        );
        assert!(
            refusal.next.starts_with("`vgchange -an k8s-vg`"),
            "{refusal}"
        );
        assert!(held_by(sysfs.path()).unwrap().contains("k8s-vg"));

        fs::remove_dir_all(sysfs.path().join("holders")).unwrap();
        dm("dm-4", "luks-x", "CRYPT-LUKS2-0123");
        let refused = refuse_held(sysfs.path(), node).unwrap_err().to_string();
        assert!(
            refused.contains("/dev/dm-4") && refused.contains("cryptsetup close"),
            "{refused}"
        );
    }
}
