//! What an ext4 superblock may not make the kernel do. A superblock is the guest's, and the kernel
//! obeys it.

use crate::base::refusal::Refusal;

/// Where the superblock is on the disk, in bytes, and how long it is.
pub(super) const OFFSET: u64 = 1024;
pub(super) const LENGTH: usize = 1024;

// Offsets from the kernel's Documentation/filesystems/ext4/super.rst.
const MAGIC: usize = 0x38;
const FEATURE_COMPAT: usize = 0x5c;
const JOURNAL_INODE: usize = 0xe0;
const JOURNAL_DEVICE: usize = 0xe4;
const MOUNT_OPTIONS: usize = 0x200;
const MOUNT_OPTIONS_LENGTH: usize = 64;

const HAS_JOURNAL: u32 = 4;

/// Refuses what leads out of the disk: a journal on another device, which the kernel would look up
/// by its number on *this* machine and write to. Whether it is an ext4 at all is for the kernel to
/// say.
pub(super) fn check(superblock: &[u8; LENGTH]) -> Result<(), Refusal> {
    if superblock[MAGIC..MAGIC + 2] != [0x53, 0xef] {
        return Ok(());
    }
    let has_journal = number(superblock, FEATURE_COMPAT) & HAS_JOURNAL != 0;
    let inside = number(superblock, JOURNAL_INODE) != 0 && number(superblock, JOURNAL_DEVICE) == 0;
    if has_journal && !inside {
        return Err(refusal("its journal is on another device"));
    }
    let options = &superblock[MOUNT_OPTIONS..MOUNT_OPTIONS + MOUNT_OPTIONS_LENGTH];
    // `journal_path` and `journal_dev`, set with tune2fs -E mount_opts.
    if options.windows(8).any(|word| word == b"journal_") {
        return Err(refusal(
            "its superblock asks for a journal elsewhere (tune2fs -E mount_opts)",
        ));
    }
    Ok(())
}

fn number(superblock: &[u8; LENGTH], at: usize) -> u32 {
    u32::from_le_bytes([
        superblock[at],
        superblock[at + 1],
        superblock[at + 2],
        superblock[at + 3],
    ])
}

fn refusal(saw: &str) -> Refusal {
    Refusal::new(
        format!("the file system cannot stand alone: {saw}"),
        "a journal outside the disk is not supported, and on this machine its device number may be \
         someone else's disk",
        "boot this guest, or mount it by hand with both its devices, and then: rescue inspect \
         FOLDER",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn superblock() -> [u8; LENGTH] {
        let mut bytes = [0; LENGTH];
        bytes[MAGIC..MAGIC + 2].copy_from_slice(&[0x53, 0xef]);
        bytes[FEATURE_COMPAT] = HAS_JOURNAL as u8;
        bytes[JOURNAL_INODE] = 8;
        bytes
    }

    #[test]
    fn a_journal_of_its_own_is_fine() {
        assert_eq!(check(&superblock()), Ok(()));
        let mut without = superblock();
        without[FEATURE_COMPAT] = 0;
        without[JOURNAL_INODE] = 0;
        assert_eq!(check(&without), Ok(()));
        let mut other = superblock();
        other[MOUNT_OPTIONS..MOUNT_OPTIONS + 3].copy_from_slice(b"acl");
        assert_eq!(check(&other), Ok(()));
    }

    #[test]
    fn a_journal_elsewhere_is_refused() {
        let mut device = superblock();
        device[JOURNAL_INODE] = 0;
        device[JOURNAL_DEVICE] = 1;
        assert!(
            check(&device)
                .unwrap_err()
                .saw
                .contains("on another device")
        );
        let mut both = superblock();
        both[JOURNAL_DEVICE] = 1;
        assert!(check(&both).is_err());
        let mut options = superblock();
        options[MOUNT_OPTIONS..MOUNT_OPTIONS + 25].copy_from_slice(b"acl,journal_path=/dev/sda");
        assert!(check(&options).unwrap_err().saw.contains("mount_opts"));
    }
}
