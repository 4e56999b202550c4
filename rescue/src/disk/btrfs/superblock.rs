//! The superblock. Offsets are those of `struct btrfs_super_block` in the
//! kernel's <uapi/linux/btrfs_tree.h>.

use sha2::Digest;

use crate::disk::bytes::{has, le16, le32, le64, uuid};

/// Where it stands in the file system, in bytes; its copies at 64 MiB and 256 GiB are read by
/// nobody but tools.
pub const OFFSET: u64 = 0x1_0000;
/// Its length in bytes; the checksum at its beginning is over the rest.
pub const LENGTH: usize = 4096;

const CHECKSUM_LENGTH: usize = 32;
pub(super) const FSID: usize = 0x20;
const MAGIC: usize = 0x40;
const FLAGS: usize = 0x38;
const GENERATION: usize = 0x48;
const LOG_ROOT: usize = 0x60;
const DEVICES: usize = 0x88;
pub(super) const INCOMPATIBLE: usize = 0xbc;
const CHECKSUM_KIND: usize = 0xc4;
/// `dev_item.total_bytes`: how much of this device it uses.
const DEVICE_BYTES: usize = 0xc9 + 8;
pub(super) const METADATA_UUID: usize = 0x23b;

/// `BTRFS_FEATURE_INCOMPAT_METADATA_UUID`: the blocks carry [`METADATA_UUID`], not the UUID that
/// the file system is known by.
pub(super) const HAS_METADATA_UUID: u64 = 1 << 10;
/// `BTRFS_SUPER_FLAG_SEEDING`: others build on it, and it is never written to.
const SEEDING: u64 = 1 << 32;

/// What a btrfs superblock says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BtrfsSuper {
    /// How many devices the file system lies on.
    pub devices: u64,
    /// Bytes of this device that it uses.
    pub length: u64,
    /// Number of the last transaction.
    pub generation: u64,
    /// Whether a log of fsyncs waits to be replayed: it was not unmounted.
    pub has_log: bool,
    /// Whether it is the seed of others.
    pub is_seed: bool,
    /// Whether the superblock's own checksum is right; `true` where its kind is not computed here.
    pub checksum_fits: bool,
}

impl BtrfsSuper {
    /// From the bytes at [`OFFSET`]; `None` when they are none.
    pub fn parse(raw: &[u8]) -> Option<Self> {
        has(raw, MAGIC, b"_BHRfS_M").then(|| Self {
            devices: le64(raw, DEVICES),
            length: le64(raw, DEVICE_BYTES),
            generation: le64(raw, GENERATION),
            has_log: le64(raw, LOG_ROOT) != 0,
            is_seed: le64(raw, FLAGS) & SEEDING != 0,
            checksum_fits: checksum(raw).is_none_or(|sum| {
                raw.get(..sum.len())
                    .is_some_and(|there| there == sum.as_slice())
            }),
        })
    }

    /// The UUID that fstab names it by.
    pub fn uuid(raw: &[u8]) -> Option<String> {
        uuid(raw, FSID)
    }

    /// Why it is not opened, where that is so: what it is, and what that means.
    pub fn unsupported(&self) -> Option<String> {
        if !self.checksum_fits {
            return Some("its superblock is damaged: its checksum does not fit".into());
        }
        if self.is_seed {
            return Some(
                "it is a seed device, which only belongs to a file system on other devices".into(),
            );
        }
        if self.devices != 1 {
            return Some(format!(
                "it is one of {} devices of one btrfs, and such a file system is not put together \
                 here",
                self.devices
            ));
        }
        None
    }
}

/// Checksum of a superblock by the algorithm that it names (`btrfs_csum_type`): CRC-32C and
/// SHA-256; `None` for the others.
pub(super) fn checksum(raw: &[u8]) -> Option<Vec<u8>> {
    let body = raw.get(CHECKSUM_LENGTH..LENGTH)?;
    match le16(raw, CHECKSUM_KIND) {
        0 => Some(
            crc::Crc::<u32>::new(&crc::CRC_32_ISCSI)
                .checksum(body)
                .to_le_bytes()
                .to_vec(),
        ),
        2 => Some(sha2::Sha256::digest(body).to_vec()),
        _ => None,
    }
}

/// Whether it stands where it says (`bytenr`), which a stray copy does not.
pub(super) fn is_in_place(raw: &[u8]) -> bool {
    le64(raw, 0x30) == OFFSET && le32(raw, 0x90).is_power_of_two()
}
