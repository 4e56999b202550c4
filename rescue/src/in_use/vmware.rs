//! VMware's locks beside a virtual disk, where they are files. VMFS keeps its locks inside itself,
//! and shows them as `EBUSY` on the disk's file.
//!
//! - ESXi on NFS: `.lck-` and the number of the locked file (its inode), for every open file of a
//!   running machine, in the machine's folder.
//! - Workstation, Player, Fusion: the folder `NAME.vmdk.lck` (or `NAME.vmx.lck`) with a file in it
//!   for each process that holds the lock.

use std::fs;
use std::path::Path;

use crate::base::escaping::escape;
use crate::base::refusal::Refusal;

/// Refuses a disk beside which there is a lock: a folder holds one machine.
pub fn refuse_locked(disk: &Path) -> Result<(), Refusal> {
    let folder = disk
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    let Some(lock) = lock_in(folder) else {
        return Ok(());
    };
    let lock = escape(&lock);
    let moved = crate::base::shell::quoted(&folder.join(lock.trim_start_matches('.')));
    Err(Refusal::new(
        format!("VMware's lock {lock} lies beside {}", disk.display()),
        "the machine whose disk this is is running, or the host that ran it died without taking \
         the lock away; writing to the disk of a running machine destroys it",
        format!(
            "look whether the machine is on (also on other hosts), and power it off; if it is off \
             everywhere, move the lock away (mv {} {moved}.old), then run this again",
            crate::base::shell::quoted(&folder.join(&lock))
        ),
    ))
}

/// The name of the first lock, in order.
fn lock_in(folder: &Path) -> Option<String> {
    let entries = fs::read_dir(folder).ok()?.flatten();
    let locks = entries.filter(|entry| {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        let is_folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
        match is_folder {
            true => {
                is_lock_folder(&name)
                    && fs::read_dir(entry.path()).is_ok_and(|mut held| held.next().is_some())
            }
            false => is_lock_file(&name),
        }
    });
    locks
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .min()
}

fn is_lock_file(name: &str) -> bool {
    name.strip_prefix(".lck-")
        .is_some_and(|number| !number.is_empty() && number.bytes().all(|c| c.is_ascii_hexdigit()))
}

/// An empty one is what a machine that was shut down properly may leave.
fn is_lock_folder(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    name.ends_with(".vmdk.lck") || name.ends_with(".vmx.lck")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locks_beside_a_disk_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let disk = folder.path().join("node.vmdk");
        for other in [".lck-", ".lck-old", "node.vmdk", "notes.lck"] {
            fs::write(folder.path().join(other), "").unwrap();
        }
        fs::create_dir(folder.path().join("node.vmdk.lck")).unwrap();
        assert_eq!(refuse_locked(&disk), Ok(()), "nothing of this is held");

        fs::write(folder.path().join("node.vmdk.lck/M12345.lck"), "node 1234").unwrap();
        let refusal = refuse_locked(&disk).unwrap_err();
        assert!(refusal.saw.contains("node.vmdk.lck"), "{refusal}");
        let line = refusal
            .next
            .split("(mv ")
            .nth(1)
            .unwrap()
            .split(')')
            .next()
            .unwrap();
        let (from, to) = line.split_once(' ').unwrap();
        fs::rename(from, to).unwrap();
        assert_eq!(refuse_locked(&disk), Ok(()), "moved away as it said");

        fs::write(folder.path().join(".lck-61bd0c0000000000"), "").unwrap();
        let refusal = refuse_locked(&disk).unwrap_err();
        assert!(
            refusal.saw.contains(".lck-61bd0c0000000000") && refusal.next.contains("power it off"),
            "{refusal}"
        );
        let line = refusal
            .next
            .split("(mv ")
            .nth(1)
            .unwrap()
            .split(')')
            .next()
            .unwrap();
        let (from, to) = line.split_once(' ').unwrap();
        fs::rename(from, to).unwrap();
        assert_eq!(refuse_locked(&disk), Ok(()), "moved away as it said");
    }
}
