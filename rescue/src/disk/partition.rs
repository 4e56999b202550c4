//! Partition tables of any kind, and one partition as a run of bytes.

use std::io::{Error, ErrorKind};
use std::sync::Arc;

use super::{ReadAt, gpt, mbr};

/// One partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Partition {
    /// Its number as the kernel counts: from 1; logical partitions from 5.
    pub number: u32,
    /// First byte on the disk.
    pub offset: u64,
    /// Length in bytes.
    pub length: u64,
    /// PARTUUID, lower case: a GUID, or `DISKSIGNATURE-NN` on MBR.
    pub uuid: Option<String>,
    /// PARTLABEL (GPT only).
    pub label: Option<String>,
    /// What the table says is inside.
    pub kind: PartitionKind,
}

/// What the partition table says is inside; what really is there is the probe's to say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PartitionKind {
    /// Boot loader code or space that never holds a file system: BIOS boot, PReP, Microsoft
    /// reserved.
    NoFileSystem,
    /// The EFI system partition.
    EfiSystem,
    /// Anything else.
    Other,
}

/// How a disk is divided.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    /// The partitions, by number. Empty: the disk has no table and may hold one file system as a
    /// whole.
    pub partitions: Vec<Partition>,
    /// What is odd about the table, one plain sentence each.
    pub notes: Vec<String>,
}

/// Why a partition table cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TableError {
    /// The disk could not be read.
    #[error("reading the partition table")]
    Io(#[from] Error),
    /// Damaged beyond its own backup.
    #[error("the partition table is damaged: {0}")]
    Damaged(String),
    /// Well-formed, but not of a kind that is read.
    #[error("the partition table is not supported yet: {0}")]
    Unsupported(String),
}

/// Reads the partition table; a disk without one gives an empty table.
pub fn read_table(disk: &Arc<dyn ReadAt>) -> Result<Table, TableError> {
    let Some(boot_sector) = mbr::BootSector::read(disk.as_ref())? else {
        return gpt::read_without_boot_sector(disk);
    };
    if boot_sector.is_protective() {
        gpt::read(disk, &boot_sector)
    } else {
        mbr::read(disk.as_ref(), &boot_sector)
    }
}

/// Says which partitions have sectors in common.
pub(super) fn note_overlaps(table: &mut Table) {
    let mut sorted: Vec<&Partition> = table.partitions.iter().collect();
    sorted.sort_by_key(|partition| partition.offset);
    let mut notes = Vec::new();
    // The one that reaches furthest so far may cover many.
    let mut furthest: Option<&Partition> = None;
    for partition in sorted {
        let end = |partition: &Partition| partition.offset.saturating_add(partition.length);
        if let Some(before) = furthest.filter(|before| end(before) > partition.offset) {
            notes.push(format!(
                "partitions {} and {} overlap",
                before.number, partition.number
            ));
        }
        if furthest.is_none_or(|before| end(partition) > end(before)) {
            furthest = Some(partition);
        }
    }
    notes.truncate(16);
    table.notes.extend(notes);
}

/// A run of bytes of something larger.
pub struct Slice {
    below: Arc<dyn ReadAt>,
    offset: u64,
    length: u64,
}

impl std::fmt::Debug for Slice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Slice")
            .field("offset", &self.offset)
            .field("length", &self.length)
            .finish_non_exhaustive()
    }
}

impl Slice {
    /// `None` when it would reach past the end of what is below.
    pub fn new(below: Arc<dyn ReadAt>, offset: u64, length: u64) -> Option<Self> {
        offset
            .checked_add(length)
            .filter(|end| *end <= below.len())?;
        Some(Self {
            below,
            offset,
            length,
        })
    }
}

impl ReadAt for Slice {
    fn len(&self) -> u64 {
        self.length
    }
    fn sector_size(&self) -> u32 {
        self.below.sector_size()
    }
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> std::io::Result<()> {
        if offset
            .checked_add(buffer.len() as u64)
            .is_none_or(|end| end > self.length)
        {
            return Err(Error::from(ErrorKind::UnexpectedEof));
        }
        self.below.read_exact_at(buffer, self.offset + offset)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::Disk;
    use crate::disk::loop_device::{LoopDevice, LoopOptions};
    use std::fs::{self, File};
    use std::os::fd::AsFd;
    use std::os::unix::fs::FileExt;
    use std::path::PathBuf;

    const MIB: u64 = 1 << 20;

    struct Image {
        path: PathBuf,
        _folder: tempfile::TempDir,
    }

    impl Image {
        /// An image divided by sfdisk as `script` says.
        fn new(size: u64, sector_size: u32, script: &str) -> Self {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("disk.img");
            File::create(&path).unwrap().set_len(size).unwrap();
            let input = folder.path().join("script");
            fs::write(&input, script).unwrap();
            // sfdisk takes the sector size from the device.
            let file = File::options().read(true).write(true).open(&path).unwrap();
            let options = LoopOptions {
                sector_size,
                read_only: false,
                ..LoopOptions::default()
            };
            let device =
                (sector_size != 512).then(|| LoopDevice::attach(file.as_fd(), &options).unwrap());
            let target = device.as_ref().map_or(path.clone(), LoopDevice::path);
            let mut sfdisk = std::process::Command::new("sfdisk");
            sfdisk
                .args(["--quiet", "--no-reread", "--no-tell-kernel"])
                .arg(target)
                .stdin(File::open(input).unwrap());
            let output = sfdisk
                .output()
                .expect("sfdisk must be installed (package fdisk)");
            assert!(
                output.status.success(),
                "{}",
                String::from_utf8_lossy(&output.stderr)
            );
            Self {
                path,
                _folder: folder,
            }
        }

        fn write(&self, offset: u64, bytes: &[u8]) {
            File::options()
                .write(true)
                .open(&self.path)
                .unwrap()
                .write_all_at(bytes, offset)
                .unwrap();
        }

        fn read(&self, offset: u64, length: usize) -> Vec<u8> {
            let mut bytes = vec![0; length];
            File::open(&self.path)
                .unwrap()
                .read_exact_at(&mut bytes, offset)
                .unwrap();
            bytes
        }

        fn table(&self) -> Result<Table, TableError> {
            read_table(&Disk::open(&self.path).unwrap().bytes)
        }

        fn spans(&self) -> Vec<(u32, u64, u64)> {
            self.table()
                .unwrap()
                .partitions
                .iter()
                .map(|p| (p.number, p.offset / MIB, p.length / MIB))
                .collect()
        }
    }

    const GPT: &str = "label: gpt\nlabel-id: 11111111-2222-3333-4444-555555555555\n\
        start=1MiB, size=1MiB, type=21686148-6449-6E6F-744E-656564454649\n\
        start=2MiB, size=5MiB, type=U, name=\"EFI\"\n\
        start=8MiB, size=20MiB, uuid=0A1B2C3D-0000-4000-8000-00000000000F, name=\"root & more\"\n";

    /// Recomputes the header's checksum after a field was changed.
    fn with_field(image: &Image, header_at: u64, field: usize, value: u32) {
        let mut header = image.read(header_at, 92);
        header[field..field + 4].copy_from_slice(&value.to_le_bytes());
        header[16..20].fill(0);
        let sum = crc::Crc::<u32>::new(&crc::CRC_32_ISO_HDLC).checksum(&header);
        header[16..20].copy_from_slice(&sum.to_le_bytes());
        image.write(header_at, &header);
    }

    #[test]
    fn gpt_with_both_sector_sizes() {
        for sector_size in [512, 4096] {
            let image = Image::new(64 * MIB, sector_size, GPT);
            assert_eq!(
                Disk::open(&image.path).unwrap().bytes.sector_size(),
                sector_size
            );
            let table = image.table().unwrap();
            assert_eq!(image.spans(), [(1, 1, 1), (2, 2, 5), (3, 8, 20)]);
            assert!(table.notes.is_empty(), "{:?}", table.notes);
            let kinds: Vec<_> = table
                .partitions
                .iter()
                .map(|partition| partition.kind)
                .collect();
            assert_eq!(
                kinds,
                [
                    PartitionKind::NoFileSystem,
                    PartitionKind::EfiSystem,
                    PartitionKind::Other
                ]
            );
            let root = &table.partitions[2];
            assert_eq!(
                root.uuid.as_deref(),
                Some("0a1b2c3d-0000-4000-8000-00000000000f")
            );
            assert_eq!(root.label.as_deref(), Some("root & more"));
        }
    }

    #[test]
    fn a_damaged_primary_gpt_is_read_from_its_backup() {
        for sector_size in [512, 4096] {
            let good = Image::new(64 * MIB, sector_size, GPT).spans();
            // Nothing left of the header; one bit of it; one bit of the table behind it.
            for (sector, at, bytes) in [
                (1, 0, vec![0; 92]),
                (1, 40, vec![0xff]),
                (2, 300, vec![0xff]),
            ] {
                let image = Image::new(64 * MIB, sector_size, GPT);
                image.write(u64::from(sector_size) * sector + at, &bytes);
                assert_eq!(image.spans(), good);
                let notes = image.table().unwrap().notes;
                assert!(notes.len() == 1 && notes[0].contains("backup"), "{notes:?}");
            }
            let image = Image::new(64 * MIB, sector_size, GPT);
            image.write(u64::from(sector_size), &[0; 92]);
            image.write(64 * MIB - u64::from(sector_size), &[0; 92]);
            assert!(matches!(image.table(), Err(TableError::Damaged(_))));
        }
    }

    #[test]
    fn a_gpt_without_its_protective_mbr_is_read_with_a_note() {
        let image = Image::new(64 * MIB, 512, GPT);
        image.write(0, &[0; 512]);
        assert_eq!(image.spans().len(), 3);
        assert!(image.table().unwrap().notes[0].contains("protective MBR"));
    }

    #[test]
    fn crafted_gpt_headers_are_refused() {
        for (field, value, expected) in [
            (84, 256, "the checksum of its table"),
            (84, 192, "192 bytes"),
            (84, 0, "0 bytes"),
            (80, u32::MAX, "4294967295 partitions"),
            (72, u32::MAX, "past the end"),
            (72, 0, "overlaps"),
            (24, 7, "sector 7"),
            (12, 512, "CRC"),
        ] {
            let image = Image::new(64 * MIB, 512, GPT);
            with_field(&image, 512, field, value);
            // Both: else the backup answers.
            with_field(&image, 64 * MIB - 512, field, value);
            if field == 12 {
                image.write(512 + 16, &[1, 2, 3, 4]);
                image.write(64 * MIB - 512 + 16, &[1, 2, 3, 4]);
            }
            let error = image.table().unwrap_err().to_string();
            assert!(error.contains(expected), "{expected}: {error}");
        }
    }

    /// The table as `image` has it, with entries of another size and number.
    fn with_entries(image: &Image, size: u32, count: u32, from: u64, header_at: u64, to: u64) {
        let old = image.read(from, 128 * 128);
        let table: Vec<u8> = (0..count as usize)
            .flat_map(|index| {
                let mut entry = old
                    .get(index * 128..(index + 1) * 128)
                    .map_or(vec![0; 128], <[u8]>::to_vec);
                entry.resize(size as usize, 0xa5);
                if entry[..16] == [0; 16] {
                    vec![0; size as usize]
                } else {
                    entry
                }
            })
            .collect();
        image.write(to, &table);
        let sum = crc::Crc::<u32>::new(&crc::CRC_32_ISO_HDLC).checksum(&table);
        for (field, value) in [(72, (to / 512) as u32), (80, count), (84, size), (88, sum)] {
            with_field(image, header_at, field, value);
        }
    }

    #[test]
    fn entries_of_other_sizes_and_numbers() {
        for (size, count) in [
            (256, 128),
            (512, 4),
            (128, 4),
            (128, 56),
            (128, 4096),
            (1024, 64),
        ] {
            let image = Image::new(64 * MIB, 512, GPT);
            let good = image.table().unwrap();
            // Behind the partitions, where there is room.
            with_entries(&image, size, count, 1024, 512, 40 * MIB);
            assert_eq!(
                image.table().unwrap(),
                good,
                "{count} entries of {size} bytes"
            );
        }
    }

    #[test]
    fn the_backup_of_a_disk_that_was_enlarged() {
        let good = Image::new(64 * MIB, 512, GPT).spans();
        for grow in [512, 10 * MIB] {
            // The primary header is there, but for its table; then the whole of it is gone, and
            // only the protective MBR tells.
            for damage in [(1024 + 300, 1), (512, 92)] {
                let image = Image::new(64 * MIB, 512, GPT);
                File::options()
                    .write(true)
                    .open(&image.path)
                    .unwrap()
                    .set_len(64 * MIB + grow)
                    .unwrap();
                assert_eq!(image.spans(), good);
                assert!(image.table().unwrap().notes.is_empty());
                image.write(damage.0, &vec![0xff; damage.1]);
                assert_eq!(image.spans(), good);
                let notes = image.table().unwrap().notes;
                assert!(
                    notes.len() == 1 && notes[0].contains("before it was enlarged"),
                    "{notes:?}"
                );
            }
        }
    }

    #[test]
    fn a_hybrid_mbr_is_a_gpt() {
        let image = Image::new(64 * MIB, 512, GPT);
        let good = image.table().unwrap();
        let sgdisk = std::process::Command::new("sgdisk")
            .args(["-h", "3"])
            .arg(&image.path)
            .output();
        assert!(
            sgdisk
                .expect("sgdisk must be installed (package gdisk)")
                .status
                .success()
        );
        assert_eq!(image.read(446 + 4, 1), [0xee]);
        assert_ne!(image.read(446 + 16 + 4, 1), [0]);
        assert_eq!(image.table().unwrap(), good);
    }

    #[test]
    fn a_gpt_for_another_sector_size_is_said_to_be_one() {
        let image = Image::new(64 * MIB, 4096, GPT);
        let device =
            LoopDevice::open(&image.path, &LoopOptions::default()).expect("this test needs root");
        let error = read_table(&Disk::open(&device.path()).unwrap().bytes)
            .unwrap_err()
            .to_string();
        assert!(error.contains("losetup --sector-size 4096"), "{error}");
    }

    #[test]
    fn overlapping_and_impossible_partitions_do_no_harm() {
        let image = Image::new(64 * MIB, 512, GPT);
        let mut table = image.read(1024, 128 * 128);
        // The second now begins inside the first, the third ends before it begins.
        table[128 + 32..128 + 40].copy_from_slice(&2049u64.to_le_bytes());
        table[256 + 40..256 + 48].copy_from_slice(&1u64.to_le_bytes());
        image.write(1024, &table);
        with_field(
            &image,
            512,
            88,
            crc::Crc::<u32>::new(&crc::CRC_32_ISO_HDLC).checksum(&table),
        );
        let table = image.table().unwrap();
        assert_eq!(table.partitions.len(), 2);
        assert!(
            table
                .notes
                .iter()
                .any(|note| note.contains("1 and 2 overlap")),
            "{:?}",
            table.notes
        );
        assert!(
            table
                .notes
                .iter()
                .any(|note| note.contains("partition 3 has impossible bounds")),
            "{:?}",
            table.notes
        );
    }

    const MBR: &str = "label: dos\nlabel-id: 0xdeadbeef\n\
        start=1MiB, size=10MiB, type=83\nstart=12MiB, size=40MiB, type=5\n\
        start=13MiB, size=5MiB, type=83\nstart=20MiB, size=6MiB, type=82\n\
        start=30MiB, size=7MiB, type=83\n";

    #[test]
    fn mbr_with_logical_partitions() {
        let image = Image::new(64 * MIB, 512, MBR);
        assert_eq!(
            image.spans(),
            [(1, 1, 10), (5, 13, 5), (6, 20, 6), (7, 30, 7)]
        );
        let table = image.table().unwrap();
        assert_eq!(table.partitions[3].uuid.as_deref(), Some("deadbeef-07"));
        assert!(table.notes.is_empty(), "{:?}", table.notes);
    }

    #[test]
    fn overlapping_primary_partitions_are_told() {
        let image = Image::new(64 * MIB, 512, MBR);
        image.write(446 + 12, &(40 * 2048_u32).to_le_bytes());
        let notes = image.table().unwrap().notes;
        let expected = [
            "partitions 1 and 5 overlap",
            "partitions 1 and 6 overlap",
            "partitions 1 and 7 overlap",
        ];
        assert_eq!(notes, expected);
    }

    #[test]
    fn two_extended_partitions_and_garbage_in_the_chain() {
        let image = Image::new(64 * MIB, 512, MBR);
        // A third entry in the first record that leads far out: the kernel takes it for garbage.
        let mut entry = [0; 16];
        entry[4] = 0x83;
        entry[8..12].copy_from_slice(&u32::MAX.to_le_bytes());
        entry[12..16].copy_from_slice(&9_u32.to_le_bytes());
        image.write(12 * MIB + 446 + 32, &entry);
        assert_eq!(
            image.spans(),
            [(1, 1, 10), (5, 13, 5), (6, 20, 6), (7, 30, 7)]
        );
        // A second extended partition, with one logical in it.
        let mut second = [0; 16];
        second[4] = 0x0f;
        second[8..12].copy_from_slice(&(54 * 2048_u32).to_le_bytes());
        second[12..16].copy_from_slice(&(8 * 2048_u32).to_le_bytes());
        image.write(446 + 32, &second);
        let mut record = vec![0; 512];
        record[446 + 4] = 0x83;
        record[446 + 8..446 + 12].copy_from_slice(&2048_u32.to_le_bytes());
        record[446 + 12..446 + 16].copy_from_slice(&4096_u32.to_le_bytes());
        record[510..].copy_from_slice(&[0x55, 0xaa]);
        image.write(54 * MIB, &record);
        assert_eq!(
            image.spans(),
            [(1, 1, 10), (5, 13, 5), (6, 20, 6), (7, 30, 7), (8, 55, 2)]
        );
    }

    #[test]
    fn a_circle_of_logical_partitions_ends() {
        let image = Image::new(64 * MIB, 512, MBR);
        // The last link of the chain, from sector 30 MiB - 1 MiB or where sfdisk put it, back to
        // the first.
        let records: Vec<u64> = (12 * 2048..64 * 2048)
            .filter(|sector| image.read(sector * 512 + 510, 2) == [0x55, 0xaa])
            .collect();
        assert!(records.len() >= 3, "{records:?}");
        for (target, expected) in [
            (0u32, "circle"),
            (u32::MAX, "past the end"),
            (9, "breaks off"),
        ] {
            let mut link = vec![0; 16];
            link[4] = 5;
            link[8..12].copy_from_slice(&target.to_le_bytes());
            link[12..16].copy_from_slice(&1u32.to_le_bytes());
            image.write(records[1] * 512 + 446 + 16, &link);
            let table = image.table().unwrap();
            assert_eq!(table.partitions.len(), 3, "{table:?}");
            assert!(
                table.notes[0].contains(expected),
                "{expected}: {:?}",
                table.notes
            );
        }
    }

    #[test]
    fn file_systems_without_a_table_are_no_table() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk.img");
        for sector in [
            vec![0; 512],
            vec![0xff; 512],
            [vec![0; 510], vec![0x55, 0xaa]].concat(),
        ] {
            fs::write(&path, [sector, vec![0; 4096]].concat()).unwrap();
            let table = read_table(&Disk::open(&path).unwrap().bytes).unwrap();
            assert!(table.partitions.is_empty() && table.notes.is_empty());
        }
        // Smaller than a sector.
        fs::write(&path, "x").unwrap();
        assert!(
            read_table(&Disk::open(&path).unwrap().bytes)
                .unwrap()
                .partitions
                .is_empty()
        );
    }

    #[test]
    fn noise_never_panics() {
        let mut state = 0x2545_f491_4f6c_dd1d_u64;
        let mut random = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state
        };
        for (script, size) in [(GPT, 34 * 512), (MBR, 512)] {
            for _ in 0..40 {
                let image = Image::new(64 * MIB, 512, script);
                let clean = image.read(0, size);
                for _ in 0..50 {
                    let mut dirty = clean.clone();
                    for _ in 0..random() % 8 {
                        let at = random() as usize % size;
                        dirty[at] = random() as u8;
                    }
                    image.write(0, &dirty);
                    // Headers with a right checksum get further.
                    if script == GPT {
                        with_field(
                            &image,
                            512,
                            72 + (random() % 5 * 4) as usize,
                            random() as u32,
                        );
                    }
                    let _ = image.table();
                }
            }
        }
    }
}
