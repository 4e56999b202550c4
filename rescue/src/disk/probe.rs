//! What is in a run of bytes: file systems, containers around them, image formats. By magic numbers
//! and a few fields each; offsets as in libblkid's probes.

use std::io::Result;

use super::ReadAt;
use super::btrfs::BtrfsSuper;
use super::bytes::{be16, be32, be64, has, le16, le32, le64, text, uuid};
use super::ext_super::{self, BadSuperblock, ExtSuper};
use super::fat::FatSuper;
use crate::base::escaping::escape;

/// Something recognised.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Probe {
    /// What it is.
    pub content: Content,
    /// Its UUID as fstab would name it, lower case (vfat: `XXXX-XXXX`, upper case).
    pub uuid: Option<String>,
    /// Its label.
    pub label: Option<String>,
}

/// The kinds of content that are told apart.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Content {
    /// ext2, ext3 or ext4.
    Ext(Box<ExtSuper>),
    /// The ext magic number over a superblock that cannot be right.
    DamagedExt(BadSuperblock),
    /// Journal of an ext file system elsewhere.
    ExtJournal,
    /// XFS.
    Xfs(XfsSuper),
    /// btrfs.
    Btrfs(BtrfsSuper),
    /// A physical volume of LVM2.
    LvmPhysicalVolume,
    /// LUKS, with its version.
    Luks(u16),
    /// Swap space; whether a suspended system's memory is in it.
    Swap {
        /// `S1SUSPEND` and its like: the system hibernated and will go on from here.
        suspended: bool,
    },
    /// FAT of any width.
    Vfat(FatSuper),
    /// exFAT.
    Exfat,
    /// NTFS.
    Ntfs,
    /// NTFS under BitLocker.
    BitLocker,
    /// squashfs.
    Squashfs,
    /// A CD.
    Iso9660,
    /// Member of a Linux software RAID, with the metadata's version.
    MdRaid(&'static str),
    /// Member of a ZFS pool.
    Zfs,
    /// A bcache device.
    Bcache,
    /// A disk image in a format of its own; how `qemu-img` calls it.
    Image(&'static str),
    /// The text half of a VMware disk; the raw half beside it, where it names one.
    VmdkDescriptor(Option<String>),
    /// A compressed file; the tool that unpacks it.
    Compressed(&'static str),
}

/// What an XFS superblock says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct XfsSuper {
    /// 4 or 5.
    pub version: u16,
    /// Block size in bytes.
    pub block_size: u32,
    /// Number of data blocks.
    pub blocks: u64,
    /// Free data blocks as last written; the log may know better.
    pub free_blocks: u64,
}

impl XfsSuper {
    /// Length of the data section in bytes; `None` when absurd.
    pub fn length(&self) -> Option<u64> {
        self.blocks.checked_mul(u64::from(self.block_size))
    }
}

impl Content {
    /// A short name: `ext4`, `LVM2 physical volume`.
    pub fn name(&self) -> String {
        match self {
            Self::Ext(superblock) => superblock.kind.into(),
            Self::DamagedExt(_) => "damaged ext file system".into(),
            Self::ExtJournal => "external ext journal".into(),
            Self::Xfs(_) => "xfs".into(),
            Self::Btrfs(_) => "btrfs".into(),
            Self::LvmPhysicalVolume => "LVM2 physical volume".into(),
            Self::Luks(version) => format!("LUKS{version} encrypted volume"),
            Self::Swap { .. } => "swap".into(),
            Self::Vfat(_) => "vfat".into(),
            Self::Exfat => "exfat".into(),
            Self::Ntfs => "NTFS (Windows)".into(),
            Self::BitLocker => "BitLocker encrypted volume (Windows)".into(),
            Self::Squashfs => "squashfs".into(),
            Self::Iso9660 => "iso9660 (CD or DVD)".into(),
            Self::MdRaid(version) => {
                format!("member of a Linux software RAID (metadata {version})")
            }
            Self::Zfs => "member of a ZFS pool".into(),
            Self::Bcache => "bcache device".into(),
            Self::Image(format) => format!("{format} disk image"),
            Self::VmdkDescriptor(_) => "VMware disk descriptor".into(),
            Self::Compressed(tool) => format!("file compressed with {tool}"),
        }
    }
}

fn plain(content: Content) -> Option<Probe> {
    Some(Probe {
        content,
        uuid: None,
        label: None,
    })
}

/// Looks at the beginning and the end of `bytes`. `None`: nothing recognised.
pub fn probe(bytes: &dyn ReadAt) -> Result<Option<Probe>> {
    let head = read_up_to(bytes, 0, 0x1_1000)?;
    // Containers first: a RAID member with its metadata at the end looks like the file system
    // inside, but must not be written to alone.
    Ok(at_end(bytes)?
        .or_else(|| containers(&head))
        .or_else(|| file_systems(&head))
        .or_else(|| files(&head)))
}

fn read_up_to(bytes: &dyn ReadAt, offset: u64, length: usize) -> Result<Vec<u8>> {
    let left = usize::try_from(bytes.len().saturating_sub(offset)).unwrap_or(usize::MAX);
    let mut buffer = vec![0; length.min(left)];
    bytes.read_exact_at(&mut buffer, offset)?;
    Ok(buffer)
}

/// Linux RAID 0.90 and 1.0 keep their superblock near the end, VHD its footer and VMDK streams a
/// copy.
fn at_end(bytes: &dyn ReadAt) -> Result<Option<Probe>> {
    const MD_MAGIC: u32 = 0xa92b_4efc;
    let length = bytes.len();
    if length >= 0x2_0000 {
        let old = (length & !0xffff) - 0x1_0000;
        let superblock = read_up_to(bytes, old, 64)?;
        // 0.90 is in the byte order of the machine that made it.
        if le32(&superblock, 0) == MD_MAGIC && le32(&superblock, 4) == 0 {
            return Ok(plain(Content::MdRaid("0.90")));
        }
        let new = (length / 512 - 16) / 8 * 8 * 512;
        let superblock = read_up_to(bytes, new, 64)?;
        if le32(&superblock, 0) == MD_MAGIC && le32(&superblock, 4) == 1 {
            return Ok(Some(Probe {
                content: Content::MdRaid("1.0"),
                uuid: uuid(&superblock, 16),
                label: text(&superblock, 32, 32),
            }));
        }
    }
    if length >= 512 {
        let footer = read_up_to(bytes, length - 512, 512)?;
        // VHD: fixed images have the footer only; its version is 1.0.
        if has(&footer, 0, b"conectix") && be32(&footer, 12) == 0x1_0000 {
            return Ok(plain(Content::Image("vpc")));
        }
    }
    Ok(None)
}

fn containers(head: &[u8]) -> Option<Probe> {
    luks(head)
        .or_else(|| lvm(head))
        .or_else(|| md_raid(head))
        .or_else(|| bcache(head))
        .or_else(|| zfs(head))
}

fn luks(head: &[u8]) -> Option<Probe> {
    let version = be16(head, 6);
    if !(has(head, 0, b"LUKS\xba\xbe") && matches!(version, 1 | 2)) {
        return None;
    }
    let label = if version == 2 {
        text(head, 24, 48)
    } else {
        None
    };
    Some(Probe {
        content: Content::Luks(version),
        uuid: text(head, 168, 40),
        label,
    })
}

fn lvm(head: &[u8]) -> Option<Probe> {
    // The label may stand in any of the first four sectors.
    (0..4)
        .map(|sector| sector * 512)
        .find(|at| has(head, *at, b"LABELONE") && has(head, at + 24, b"LVM2 001"))
        .map(|at| {
            let id = head
                .get(at + 32..at + 64)
                .map(|id| escape(&String::from_utf8_lossy(id)));
            Probe {
                content: Content::LvmPhysicalVolume,
                uuid: id,
                label: None,
            }
        })
}

fn md_raid(head: &[u8]) -> Option<Probe> {
    const MAGIC: [u8; 4] = [0xfc, 0x4e, 0x2b, 0xa9];
    [(0, "1.1"), (4096, "1.2")]
        .iter()
        .find(|(at, _)| has(head, *at, &MAGIC) && le32(head, at + 4) == 1)
        .map(|(at, version)| Probe {
            content: Content::MdRaid(version),
            uuid: uuid(head, at + 16),
            label: text(head, at + 32, 32),
        })
}

fn bcache(head: &[u8]) -> Option<Probe> {
    const MAGIC: [u8; 16] = [
        0xc6, 0x85, 0x73, 0xf6, 0x4e, 0x1a, 0x45, 0xca, 0x82, 0x65, 0xf5, 0x7f, 0x48, 0xba, 0x6d,
        0x81,
    ];
    has(head, 4096 + 24, &MAGIC).then(|| Probe {
        content: Content::Bcache,
        uuid: uuid(head, 4096 + 40),
        label: None,
    })
}

/// Uberblocks stand 1 KiB apart from 128 KiB into each label; the name/value list of the label
/// begins at 16 KiB and opens with its encoding (XDR, big endian) and the flag for unique names,
/// then names "version".
fn zfs(head: &[u8]) -> Option<Probe> {
    let list = head.get(0x4000..0x4100)?;
    let is_label =
        has(list, 0, &[1, 1, 0, 0]) && list.windows(7).any(|window| window == b"version");
    if is_label { plain(Content::Zfs) } else { None }
}

fn file_systems(head: &[u8]) -> Option<Probe> {
    xfs(head)
        .or_else(|| ext(head))
        .or_else(|| swap(head))
        .or_else(|| btrfs(head))
        .or_else(|| windows(head))
        .or_else(|| {
            if has(head, 0, b"hsqs") {
                plain(Content::Squashfs)
            } else {
                None
            }
        })
        .or_else(|| iso9660(head))
}

fn xfs(head: &[u8]) -> Option<Probe> {
    let block_size = be32(head, 4);
    let version = be16(head, 100) & 0xf;
    if !(has(head, 0, b"XFSB") && block_size.is_power_of_two() && matches!(version, 4 | 5)) {
        return None;
    }
    let superblock = XfsSuper {
        version,
        block_size,
        blocks: be64(head, 8),
        free_blocks: be64(head, 144),
    };
    Some(Probe {
        content: Content::Xfs(superblock),
        uuid: uuid(head, 32),
        label: text(head, 108, 12),
    })
}

fn ext(head: &[u8]) -> Option<Probe> {
    let at = ext_super::OFFSET as usize;
    let raw = head.get(at..at + ext_super::SIZE)?;
    let superblock = match ExtSuper::parse(raw)? {
        Ok(superblock) => superblock,
        // An external journal has a superblock of its own shape.
        Err(_) if le32(raw, 0x60) & 0x8 != 0 => return plain(Content::ExtJournal),
        Err(error) => return plain(Content::DamagedExt(error)),
    };
    if superblock.is_external_journal() {
        return Some(Probe {
            content: Content::ExtJournal,
            uuid: superblock.uuid,
            label: superblock.label,
        });
    }
    let (uuid, label) = (superblock.uuid.clone(), superblock.label.clone());
    Some(Probe {
        content: Content::Ext(Box::new(superblock)),
        uuid,
        label,
    })
}

/// Swap signs the end of its first page; the page size is the guest's. A suspended system replaces
/// the signature.
fn swap(head: &[u8]) -> Option<Probe> {
    [4096, 8192, 16384, 65536]
        .into_iter()
        .find_map(|page| swap_page(head.get(..page)?))
}

fn swap_page(page: &[u8]) -> Option<Probe> {
    const SUSPENDED: [&[u8]; 5] = [
        b"S1SUSPEND\0",
        b"S2SUSPEND\0",
        b"ULSUSPEND\0",
        b"LINHIB0001",
        b"\xed\xc3\x02\xe9\x98\x56\xe5\x0c",
    ];
    let signature = page.get(page.len().checked_sub(10)?..)?;
    let active = signature == b"SWAPSPACE2" || signature == b"SWAP-SPACE";
    let suspended = SUSPENDED.iter().any(|magic| signature.starts_with(magic));
    (active || suspended).then(|| Probe {
        content: Content::Swap { suspended },
        uuid: uuid(page, 1036),
        label: text(page, 1052, 16),
    })
}

/// Whether the first page of a swap file or partition says that a system's memory is kept there.
pub fn is_suspended_swap(first_page: &[u8]) -> bool {
    swap_page(first_page).is_some_and(|probe| probe.content == Content::Swap { suspended: true })
}

fn btrfs(head: &[u8]) -> Option<Probe> {
    let superblock = head.get(0x1_0000..)?;
    let content = Content::Btrfs(BtrfsSuper::parse(superblock)?);
    Some(Probe {
        content,
        uuid: BtrfsSuper::uuid(superblock),
        label: text(superblock, 0x12b, 256),
    })
}

fn windows(head: &[u8]) -> Option<Probe> {
    if has(head, 3, b"-FVE-FS-") {
        return plain(Content::BitLocker);
    }
    if has(head, 3, b"NTFS    ") {
        let serial = format!("{:016X}", le64(head, 72));
        return Some(Probe {
            content: Content::Ntfs,
            uuid: Some(serial),
            label: None,
        });
    }
    if has(head, 3, b"EXFAT   ") {
        return plain(Content::Exfat);
    }
    let signed = has(head, 510, &[0x55, 0xaa]);
    let (serial_at, label_at) = if has(head, 82, b"FAT32   ") {
        (67, 71)
    } else if has(head, 54, b"FAT16   ") || has(head, 54, b"FAT12   ") || has(head, 54, b"FAT     ")
    {
        (39, 43)
    } else {
        return None;
    };
    if !signed || !le16(head, 11).is_power_of_two() {
        return None;
    }
    let serial = le32(head, serial_at);
    let label = text(head, label_at, 11).map(|label| label.trim_end().to_string());
    Some(Probe {
        content: Content::Vfat(FatSuper::parse(head)),
        uuid: Some(format!("{:04X}-{:04X}", serial >> 16, serial & 0xffff)),
        label: label.filter(|label| !label.is_empty() && label != "NO NAME"),
    })
}

fn iso9660(head: &[u8]) -> Option<Probe> {
    has(head, 0x8001, b"CD001").then(|| Probe {
        content: Content::Iso9660,
        uuid: None,
        label: text(head, 0x8028, 32).map(|label| label.trim_end().to_string()),
    })
}

/// `RW 20971520 FLAT "node1-flat.vmdk" 0` (ESXi: `VMFS`): the disk itself is the raw file named
/// there.
fn vmdk_descriptor(head: &[u8]) -> Option<Content> {
    let text = String::from_utf8_lossy(head.get(..head.len().min(20 << 10))?);
    if !text.contains("# Disk DescriptorFile") {
        return None;
    }
    let extents: Vec<&str> = text
        .lines()
        .filter(|line| line.starts_with("RW "))
        .collect();
    let flat = match extents.as_slice() {
        [only] => only
            .split_once(" FLAT \"")
            .or_else(|| only.split_once(" VMFS \"")),
        _ => None,
    };
    Some(Content::VmdkDescriptor(
        flat.and_then(|(_, rest)| rest.split('"').next())
            .map(escape),
    ))
}

/// Things that are files, not disks: image formats and compressed copies.
fn files(head: &[u8]) -> Option<Probe> {
    let formats: [(usize, &[u8], &'static str); 6] = [
        (0, b"QFI\xfb", "qcow2"),
        (0, b"KDMV", "vmdk"),
        (0, b"COWD", "vmdk"),
        (0, b"vhdxfile", "vhdx"),
        (0x40, b"\x7f\x10\xda\xbe", "vdi"),
        (0, b"conectix", "vpc"),
    ];
    if let Some((_, _, format)) = formats.iter().find(|(at, magic, _)| has(head, *at, magic)) {
        return plain(Content::Image(format));
    }
    if let Some(descriptor) = vmdk_descriptor(head) {
        return plain(descriptor);
    }
    let compressed: [(&[u8], &'static str); 4] = [
        (b"\x1f\x8b\x08", "gzip"),
        (b"\xfd7zXZ\0", "xz"),
        (b"\x28\xb5\x2f\xfd", "zstd"),
        (b"BZh", "bzip2"),
    ];
    compressed
        .iter()
        .find(|(magic, _)| has(head, 0, magic))
        .and_then(|(_, tool)| plain(Content::Compressed(tool)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::Disk;
    use std::process::Command;

    /// So many bytes with pieces written into them.
    fn image(length: usize, pieces: &[(usize, &[u8])]) -> Vec<u8> {
        let mut bytes = vec![0; length];
        for (at, piece) in pieces {
            bytes[*at..*at + piece.len()].copy_from_slice(piece);
        }
        bytes
    }

    struct Memory(Vec<u8>);
    impl ReadAt for Memory {
        fn len(&self) -> u64 {
            self.0.len() as u64
        }
        fn sector_size(&self) -> u32 {
            512
        }
        fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> Result<()> {
            let at = usize::try_from(offset).unwrap();
            let there = self
                .0
                .get(at..at + buffer.len())
                .ok_or(std::io::ErrorKind::UnexpectedEof)?;
            buffer.copy_from_slice(there);
            Ok(())
        }
    }

    fn name(bytes: Vec<u8>) -> String {
        probe(&Memory(bytes))
            .unwrap()
            .map_or_else(|| "nothing".into(), |probe| probe.content.name())
    }

    #[test]
    fn known_by_their_magic_numbers() {
        let mib = 1 << 20;
        let raid = [0xfc, 0x4e, 0x2b, 0xa9, 1, 0, 0, 0];
        let old_raid = [0xfc, 0x4e, 0x2b, 0xa9, 0, 0, 0, 0, 90, 0, 0, 0];
        let ext_inside = (1080, b"\x53\xef".as_slice());
        let fat = (0, b"\xeb\x58\x90mkfs.fat\0\x02".as_slice());
        let signed = (510, b"\x55\xaa".as_slice());
        for (expected, length, pieces) in [
            ("nothing", mib, vec![]),
            ("nothing", 0, vec![]),
            ("nothing", 100, vec![(0, b"text".as_slice())]),
            (
                "LUKS1 encrypted volume",
                mib,
                vec![(0, b"LUKS\xba\xbe\0\x01")],
            ),
            (
                "LUKS2 encrypted volume",
                mib,
                vec![(0, b"LUKS\xba\xbe\0\x02")],
            ),
            ("nothing", mib, vec![(0, b"LUKS\xba\xbe\0\x09")]),
            (
                "LVM2 physical volume",
                mib,
                vec![(512, b"LABELONE"), (536, b"LVM2 001")],
            ),
            ("btrfs", mib, vec![(0x1_0040, b"_BHRfS_M")]),
            (
                "member of a Linux software RAID (metadata 1.2)",
                mib,
                vec![(4096, &raid)],
            ),
            (
                "member of a Linux software RAID (metadata 1.1)",
                mib,
                vec![(0, &raid)],
            ),
            // What is inside looks like a file system of its own; it must not win.
            (
                "member of a Linux software RAID (metadata 1.0)",
                mib,
                vec![(mib - 8192, &raid), ext_inside],
            ),
            (
                "member of a Linux software RAID (metadata 0.90)",
                mib,
                vec![(mib - 65536, &old_raid), ext_inside],
            ),
            ("damaged ext file system", mib, vec![ext_inside]),
            ("swap", mib, vec![(4086, b"SWAPSPACE2")]),
            ("swap", mib, vec![(65526, b"SWAPSPACE2")]),
            ("vfat", mib, vec![fat, (82, b"FAT32   "), signed]),
            ("NTFS (Windows)", mib, vec![(3, b"NTFS    "), signed]),
            (
                "BitLocker encrypted volume (Windows)",
                mib,
                vec![(3, b"-FVE-FS-"), signed],
            ),
            ("squashfs", mib, vec![(0, b"hsqs")]),
            ("iso9660 (CD or DVD)", mib, vec![(0x8001, b"CD001")]),
            (
                "member of a ZFS pool",
                mib,
                vec![(0x4000, b"\x01\x01\0\0"), (0x4030, b"version")],
            ),
            (
                "bcache device",
                mib,
                vec![(
                    4120,
                    b"\xc6\x85\x73\xf6\x4e\x1a\x45\xca\x82\x65\xf5\x7f\x48\xba\x6d\x81",
                )],
            ),
            ("qcow2 disk image", mib, vec![(0, b"QFI\xfb\0\0\0\x03")]),
            ("vmdk disk image", mib, vec![(0, b"KDMV\x01")]),
            (
                "VMware disk descriptor",
                400,
                vec![(0, b"# Disk DescriptorFile\nversion=1\n")],
            ),
            ("vhdx disk image", mib, vec![(0, b"vhdxfile")]),
            (
                "vdi disk image",
                mib,
                vec![
                    (0, b"<<< Oracle VM VirtualBox Disk Image >>>\n"),
                    (0x40, b"\x7f\x10\xda\xbe"),
                ],
            ),
            (
                "vpc disk image",
                mib,
                vec![(mib - 512, b"conectix\0\0\0\x02\0\x01\0\0")],
            ),
        ] {
            assert_eq!(name(image(length, &pieces)), expected, "{pieces:?}");
        }
    }

    #[test]
    fn suspended_systems_are_seen_in_their_swap() {
        for signature in [b"S1SUSPEND\0", b"ULSUSPEND\0", b"LINHIB0001"] {
            let page = image(4096, &[(4086, signature)]);
            assert!(is_suspended_swap(&page));
        }
        assert!(!is_suspended_swap(&image(4096, &[(4086, b"SWAPSPACE2")])));
        assert!(!is_suspended_swap(b"short"));
    }

    /// Runs a tool on a new file and looks at the result.
    fn made_by(length: u64, program: &str, arguments: &[&str]) -> Probe {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("made");
        std::fs::File::create(&path)
            .unwrap()
            .set_len(length)
            .unwrap();
        let output = Command::new(program).args(arguments).arg(&path).output();
        let output = output
            .unwrap_or_else(|error| panic!("{program} must be installed (scripts/setup): {error}"));
        assert!(
            output.status.success(),
            "{program}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        probe(Disk::open(&path).unwrap().bytes.as_ref())
            .unwrap()
            .expect("nothing recognised")
    }

    #[test]
    fn made_by_the_real_tools() {
        let uuid = "0a1b2c3d-1111-4222-8333-444455556666";
        let swap = made_by(1 << 20, "mkswap", &["-q", "-U", uuid, "-L", "paging"]);
        assert_eq!(
            swap,
            Probe {
                content: Content::Swap { suspended: false },
                uuid: Some(uuid.into()),
                label: Some("paging".into())
            }
        );

        let uuid_option = format!("uuid={uuid}");
        for (version, options) in [(5, "crc=1"), (4, "crc=0")] {
            let arguments = [
                "-q",
                "-f",
                "-m",
                if version == 5 {
                    uuid_option.as_str()
                } else {
                    options
                },
                "-L",
                "data",
            ];
            let xfs = made_by(400 << 20, "mkfs.xfs", &arguments);
            let Content::Xfs(superblock) = &xfs.content else {
                panic!("{xfs:?}");
            };
            assert_eq!(
                (superblock.version, superblock.length()),
                (version, Some(400 << 20))
            );
            assert_eq!(xfs.label.as_deref(), Some("data"));
            assert!(version == 4 || xfs.uuid.as_deref() == Some(uuid));
            assert!(superblock.free_blocks > 0 && superblock.free_blocks < superblock.blocks);
        }

        for kind in ["ext2", "ext3", "ext4"] {
            let ext = made_by(
                32 << 20,
                "mke2fs",
                &["-q", "-F", "-t", kind, "-U", uuid, "-L", "root\x1bfs"],
            );
            let Content::Ext(superblock) = &ext.content else {
                panic!("{ext:?}");
            };
            assert_eq!(
                (superblock.kind, superblock.length()),
                (kind, Some(32 << 20))
            );
            assert!(!superblock.needs_replay && !superblock.has_errors);
            assert_eq!(
                (ext.uuid.as_deref(), ext.label.as_deref()),
                (Some(uuid), Some("root\\u{1b}fs"))
            );
        }

        let fat = made_by(4 << 20, "mformat", &["-v", "EFI", "-N", "1234abcd", "-i"]);
        assert_eq!(
            (fat.content.name().as_str(), fat.uuid.as_deref()),
            ("vfat", Some("1234-ABCD"))
        );
        assert_eq!(
            made_by(0, "sh", &["-c", "echo x | gzip > $0"]).content,
            Content::Compressed("gzip")
        );
        assert_eq!(
            made_by(0, "sh", &["-c", "echo x | xz > $0"]).content,
            Content::Compressed("xz")
        );
        assert_eq!(
            made_by(0, "sh", &["-c", "echo x | zstd -q > $0"]).content,
            Content::Compressed("zstd")
        );
    }

    #[test]
    fn crafted_superblocks_are_damaged_not_believed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ext4");
        std::fs::File::create(&path)
            .unwrap()
            .set_len(8 << 20)
            .unwrap();
        assert!(
            Command::new("mke2fs")
                .args(["-q", "-F", "-t", "ext4"])
                .arg(&path)
                .status()
                .unwrap()
                .success()
        );
        let good = std::fs::read(&path).unwrap();
        for (field, value) in [
            (0x0, u32::MAX), // inodes
            (0x4, 0),        // blocks
            (0x14, 5),       // first data block
            (0x18, 31),      // block size
            (0x20, 0),       // blocks per group
            (0x20, 1),
            (0x20, u32::MAX),
            (0x28, 0), // inodes per group
            (0x28, u32::MAX),
            (0x58, 3), // inode size
            (0x58, 0xffff),
            (0xfe, 1), // descriptor size
            (0xfe, 0xffff),
        ] {
            let mut bytes = good.clone();
            bytes[1024 + field..1024 + field + 4].copy_from_slice(&value.to_le_bytes());
            assert_eq!(
                name(bytes),
                "damaged ext file system",
                "{field:#x} = {value}"
            );
        }
    }
}
