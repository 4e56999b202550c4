//! What is said about content that is recognised, but not read.

use super::probe::Content;
use super::source::shown;
use super::volume::Volume;

/// Something that cannot be read: what it means, and what to type instead.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NotRead {
    /// "LVM is not supported yet".
    pub means: String,
    /// The next line to type.
    pub next: String,
}

/// What to say about a volume that holds no readable file system. `None` for swap, boot loader
/// space and the like, of which nothing is missing.
pub fn not_read(volume: &Volume) -> Option<NotRead> {
    let content = &volume.probe.as_ref()?.content;
    let path = shown(volume.backing.first_path());
    let on_helper = "on a helper VM";
    let (means, next): (&str, String) = match content {
        Content::Ext(_) | Content::Xfs(_) | Content::Swap { .. } => return None,
        Content::DamagedExt(reason) => {
            return Some(NotRead {
                means: format!("{reason}"),
                next: "check it with e2fsck, which knows the backup superblocks".into(),
            });
        }
        Content::ExtJournal => (
            "a journal kept apart from its file system is not supported yet",
            mount_it(on_helper),
        ),
        Content::Btrfs(superblock) => {
            let next = match superblock.checksum_fits {
                true => mount_btrfs(on_helper),
                false => {
                    "put one of its copies in its place with `btrfs rescue super-recover`".into()
                }
            };
            return superblock
                .unsupported()
                .map(|means| NotRead { means, next });
        }
        Content::LvmPhysicalVolume => (
            "no volume group could be put together from it",
            format!(
                "{on_helper}: vgchange -ay, then rescue inspect /dev/VOLUME_GROUP/LOGICAL_VOLUME"
            ),
        ),
        Content::Luks(_) => (
            "it is encrypted, and no passphrase was given",
            "run this again on a terminal, which asks for it, or with --luks-key-file FILE, or \
             with the passphrase in $RESCUE_LUKS_PASSPHRASE"
                .into(),
        ),
        Content::BitLocker => (
            "it is an encrypted Windows volume; rescue repairs Linux nodes",
            "name another disk".into(),
        ),
        Content::Ntfs => (
            "it belongs to Windows; rescue repairs Linux nodes",
            "name another disk".into(),
        ),
        Content::MdRaid(_) => (
            "software RAID is not supported yet",
            format!("{on_helper}: mdadm --assemble --scan, then rescue inspect /dev/md127"),
        ),
        Content::Zfs => (
            "ZFS is not supported yet",
            format!("{on_helper}: zpool import, then rescue inspect --root MOUNT_POINT"),
        ),
        Content::Bcache => ("bcache is not supported yet", mount_it(on_helper)),
        Content::Vfat(_) | Content::Exfat | Content::Squashfs | Content::Iso9660 => (
            "it is not supported yet, and a node's root is never on it",
            "name the node's own disk".into(),
        ),
        // On a block device, or inside another disk: what a guest can write is never taken for an
        // image.
        Content::Image(format @ ("qcow2" | "vmdk")) => (
            "images are only read from files, and only where the file's name or --image-format \
             says so",
            format!(
                "if it is one: qemu-nbd --connect=/dev/nbd0 -f {format} {path}, then rescue \
                 inspect /dev/nbd0"
            ),
        ),
        Content::Image(format) => (
            "disk images in this format are not read",
            format!(
                "qemu-img convert -f {format} -O raw {path} {path}.raw, then rescue inspect \
                 {path}.raw"
            ),
        ),
        Content::VmdkDescriptor(_) => (
            "it only describes a VMware disk, and is no disk itself",
            "name the .vmdk file that it was copied from".into(),
        ),
        Content::Compressed(tool) => (
            "compressed images are not supported yet",
            format!("{tool} -dk {path}, then rescue inspect the raw image"),
        ),
    };
    Some(NotRead {
        means: means.into(),
        next,
    })
}

fn mount_btrfs(on_helper: &str) -> String {
    format!(
        "{on_helper} with all its devices: btrfs device scan, mount it, then rescue inspect --root \
         MOUNT_POINT"
    )
}

fn mount_it(on_helper: &str) -> String {
    format!("{on_helper}: mount it, then rescue inspect --root MOUNT_POINT")
}
