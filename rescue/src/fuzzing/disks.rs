//! Disks: small ones made by the real tools, with some bytes changed and the checksums put right.

use std::io::{Error, ErrorKind};
use std::path::Path;
use std::sync::Arc;

use crate::disk::given::Given;
use crate::disk::image;
use crate::disk::layout::Laid;
use crate::disk::lvm::{PhysicalVolume, assemble};
use crate::disk::partition::{Slice, read_table};
use crate::disk::probe::probe;
use crate::disk::{Ext4Tree, ExtSuper, ReadAt};
use crate::tree::{FileKind, Tree};

/// A base: what is kept of it, and its length.
type Base = (&'static [u8], u64);

macro_rules! base {
    ($name:literal) => {
        include_bytes!(concat!("../../../fuzz/bases/", $name, ".img"))
    };
}

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const TABLES: [Base; 3] = [
    (base!("gpt"), 64 * KIB),
    (base!("gpt-4k"), 64 * KIB),
    (base!("mbr"), 64 * KIB),
];
const LVM: Base = (base!("lvm"), 8 * MIB);
const EXT: [Base; 4] = [
    (base!("ext4"), 128 * KIB),
    (base!("ext2"), 128 * KIB),
    (base!("ext4-csum"), 128 * KIB),
    (base!("ext4-journal"), 1536 * KIB),
];
/// qcow2 and VMDK, with the ends of their names.
const IMAGES: [Base; 4] = [
    (base!("qcow2"), 128 * KIB),
    (base!("qcow2-packed"), 128 * KIB),
    (base!("vmdk"), 128 * KIB),
    (base!("vmdk-packed"), 128 * KIB),
];
const PROBED: [Base; 9] = [
    (base!("xfs"), 320 * MIB),
    (base!("btrfs"), 128 * MIB),
    (base!("swap"), MIB),
    (base!("luks"), 20 * MIB),
    EXT[0],
    EXT[2],
    LVM,
    TABLES[0],
    TABLES[2],
];

/// What a target may look at before it must end.
const MOST_PARTITIONS: usize = 200;
const MOST_FILES: usize = 2000;
const MOST_BYTES: u64 = 4 * MIB;

/// A disk in memory: the base, zeros behind it, and the changes on top.
struct Patched {
    base: Base,
    sector_size: u32,
    patches: Vec<(u64, Vec<u8>)>,
}

impl Patched {
    /// The first byte picks the base, the second the sector size and whether checksums are put
    /// right; then changes follow: three bytes of offset, one of length, the bytes.
    fn parse(data: &[u8], bases: &[Base]) -> Option<(Self, bool)> {
        let (&which, rest) = data.split_first()?;
        let (&flags, mut rest) = rest.split_first()?;
        let base = *bases.get(usize::from(which) % bases.len())?;
        let mut patches = Vec::new();
        while let [a, b, c, length, after @ ..] = rest {
            let offset = u64::from(u32::from_le_bytes([*a, *b, *c, 0]));
            let (bytes, next) = after.split_at(usize::from(*length).min(after.len()));
            patches.push((offset, bytes.to_vec()));
            rest = next;
        }
        let sector_size = if flags & 2 == 0 { 512 } else { 4096 };
        Some((
            Self {
                base,
                sector_size,
                patches,
            },
            flags & 1 != 0,
        ))
    }

    fn get(&self, offset: u64, length: usize) -> Option<Vec<u8>> {
        let mut bytes = vec![0; length];
        self.read_exact_at(&mut bytes, offset).ok()?;
        Some(bytes)
    }

    fn put(&mut self, offset: u64, bytes: &[u8]) {
        self.patches.push((offset, bytes.to_vec()));
    }
}

impl ReadAt for Patched {
    fn len(&self) -> u64 {
        self.base.1
    }

    fn sector_size(&self) -> u32 {
        self.sector_size
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> std::io::Result<()> {
        let end = offset
            .checked_add(buffer.len() as u64)
            .filter(|end| *end <= self.len());
        let end = end.ok_or(ErrorKind::UnexpectedEof).map_err(Error::from)?;
        buffer.fill(0);
        let layers = std::iter::once((0, self.base.0))
            .chain(self.patches.iter().map(|(at, bytes)| (*at, &bytes[..])));
        for (at, bytes) in layers {
            let (from, to) = (at.max(offset), (at + bytes.len() as u64).min(end));
            if from < to {
                let (from, to, at, offset) =
                    (from as usize, to as usize, at as usize, offset as usize);
                buffer[from - offset..to - offset].copy_from_slice(&bytes[from - at..to - at]);
            }
        }
        Ok(())
    }
}

/// qcow2 and VMDK images, opened and read here and there; they name no file that may be read.
pub fn images(data: &[u8]) {
    let Some((disk, _)) = Patched::parse(data, &IMAGES) else {
        return;
    };
    let name = if usize::from(data[0]) % IMAGES.len() < 2 {
        "disk.qcow2"
    } else {
        "disk.vmdk"
    };
    match image::open(
        &Path::new("/nonexistent").join(name),
        Arc::new(disk),
        &Given::default(),
    ) {
        Ok(image) => {
            for note in &image.notes {
                super::shown::text(note);
            }
            read_here_and_there(image.bytes.as_ref());
        }
        Err(error) => super::shown::text(&format!("{error:#}")),
    }
}

fn le32(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).map_or(0, |bytes| {
        u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
    })
}

fn le64(bytes: &[u8], at: usize) -> u64 {
    u64::from(le32(bytes, at)) | u64::from(le32(bytes, at + 4)) << 32
}

/// GPT and MBR; what is in the partitions is probed.
pub fn partition_tables(data: &[u8]) {
    let Some((mut disk, right)) = Patched::parse(data, &TABLES) else {
        return;
    };
    if right {
        let sector = u64::from(disk.sector_size);
        gpt_checksums(&mut disk, sector);
        let last = disk.len() - sector;
        gpt_checksums(&mut disk, last);
    }
    let disk: Arc<dyn ReadAt> = Arc::new(disk);
    let table = match read_table(&disk) {
        Ok(table) => table,
        Err(error) => return super::shown::error(&error),
    };
    for note in &table.notes {
        super::shown::text(note);
    }
    for partition in table.partitions.iter().take(MOST_PARTITIONS) {
        if let Some(label) = &partition.label {
            super::shown::text(label);
        }
        if let Some(slice) = Slice::new(Arc::clone(&disk), partition.offset, partition.length) {
            assert!(
                partition.offset + slice.len() <= disk.len(),
                "a partition reaches past the end"
            );
            look(&slice);
        }
    }
}

fn gpt_checksums(disk: &mut Patched, at: u64) {
    const ALGORITHM: crc::Crc<u32> = crc::Crc::<u32>::new(&crc::CRC_32_ISO_HDLC);
    let Some(mut header) = disk.get(at, 92) else {
        return;
    };
    let table = le64(&header, 72).checked_mul(u64::from(disk.sector_size));
    let length = u64::from(le32(&header, 80)) * u64::from(le32(&header, 84));
    if let Some(table) = table.filter(|_| length <= 256 * KIB)
        && let Some(entries) = disk.get(table, length as usize)
    {
        header[88..92].copy_from_slice(&ALGORITHM.checksum(&entries).to_le_bytes());
    }
    header[16..20].fill(0);
    let sum = ALGORITHM.checksum(&header);
    header[16..20].copy_from_slice(&sum.to_le_bytes());
    disk.put(at, &header);
}

/// Probing of anything.
pub fn probes(data: &[u8]) {
    if let Some((disk, _)) = Patched::parse(data, &PROBED) {
        look(&disk);
    }
}

fn look(bytes: &dyn ReadAt) {
    if let Ok(Some(found)) = probe(bytes) {
        super::shown::text(&found.content.name());
        for text in [found.uuid, found.label].into_iter().flatten() {
            super::shown::text(&text);
        }
    }
}

/// LVM's checksum, written down here once more so that a mistake in ours does not hide itself
/// (lvm2, lib/misc/crc.c).
fn lvm_checksum(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0xf597_a6cf, |sum, byte| {
        (0..8).fold(sum ^ u32::from(*byte), |sum: u32, _| {
            (sum >> 1) ^ (0xedb8_8320 & (sum & 1).wrapping_neg())
        })
    })
}

/// A physical volume with label, header and metadata area.
pub fn lvm_disk(data: &[u8]) {
    let Some((mut disk, right)) = Patched::parse(data, &[LVM]) else {
        return;
    };
    if right {
        lvm_area_checksums(&mut disk, 4096);
        if let Some(mut label) = disk.get(512, 512) {
            let sum = lvm_checksum(&label[20..]);
            label[16..20].copy_from_slice(&sum.to_le_bytes());
            disk.put(512, &label);
        }
    }
    volumes(vec![disk]);
}

/// The metadata text alone, on a physical volume whose checksums are right; two of them after a
/// separator.
pub fn lvm_text(data: &[u8]) {
    let [first, second] = super::parts(data);
    let disks: Vec<Patched> = [first, second]
        .iter()
        .filter(|text| !text.is_empty())
        .map(|text| lvm_with(text))
        .collect();
    volumes(disks);
}

fn lvm_with(text: &[u8]) -> Patched {
    const AREA: u64 = 4096;
    let mut disk = Patched {
        base: LVM,
        sector_size: 512,
        patches: Vec::new(),
    };
    if let Some(mut header) = disk.get(AREA, 512) {
        header[40..48].copy_from_slice(&512u64.to_le_bytes());
        header[48..56].copy_from_slice(&(text.len() as u64).to_le_bytes());
        disk.put(AREA, &header);
    }
    disk.put(AREA + 512, text);
    lvm_area_checksums(&mut disk, AREA);
    disk
}

fn lvm_area_checksums(disk: &mut Patched, at: u64) {
    let Some(mut header) = disk.get(at, 512) else {
        return;
    };
    let (start, length) = (le64(&header, 40), le64(&header, 48));
    if let Some(from) = at.checked_add(start).filter(|_| length < MIB)
        && let Some(text) = disk.get(from, length as usize)
    {
        header[56..60].copy_from_slice(&lvm_checksum(&text).to_le_bytes());
    }
    let sum = lvm_checksum(&header[4..]);
    header[..4].copy_from_slice(&sum.to_le_bytes());
    disk.put(at, &header);
}

fn volumes(disks: Vec<Patched>) {
    let physical: Vec<PhysicalVolume> = disks
        .into_iter()
        .enumerate()
        .map(|(disk, bytes)| PhysicalVolume {
            name: format!("disk {disk}"),
            disk,
            bytes: Arc::new(bytes),
        })
        .collect();
    let assembled = assemble(&physical);
    for (name, note) in &assembled.notes {
        super::shown::text(name);
        super::shown::text(note);
    }
    for volume in assembled.volumes.iter().take(MOST_PARTITIONS) {
        super::shown::text(&volume.name.mapper());
        match &volume.layout {
            Ok(layout) => {
                let below = volume
                    .on
                    .iter()
                    .map(|index| Arc::clone(&physical[*index].bytes))
                    .collect();
                read_here_and_there(&Laid::new(layout.clone(), below));
            }
            Err(error) => super::shown::error(error),
        }
    }
}

fn read_here_and_there(bytes: &dyn ReadAt) {
    let mut buffer = [0; 4096];
    let last = bytes.len().saturating_sub(buffer.len() as u64);
    for offset in [
        0,
        1,
        511,
        65_000,
        last / 2,
        last,
        bytes.len(),
        u64::MAX - 10,
    ] {
        let read = bytes.read_exact_at(&mut buffer, offset);
        let inside = offset
            .checked_add(buffer.len() as u64)
            .is_some_and(|end| end <= bytes.len());
        assert!(inside || read.is_err(), "bytes past the end");
    }
}

/// An ext file system, walked and read whole.
pub fn ext_tree(data: &[u8]) {
    let Some((mut disk, right)) = Patched::parse(data, &EXT) else {
        return;
    };
    if right && let Some(mut superblock) = disk.get(1024, 1024) {
        let sum = !crc::Crc::<u32>::new(&crc::CRC_32_ISCSI).checksum(&superblock[..1020]);
        superblock[1020..].copy_from_slice(&sum.to_le_bytes());
        disk.put(1024, &superblock);
    }
    let Some(raw) = disk.get(1024, 1024) else {
        return;
    };
    let superblock = match ExtSuper::parse(&raw) {
        Some(Ok(superblock)) => superblock,
        Some(Err(error)) => return super::shown::error(&error),
        None => return,
    };
    let tree = match Ext4Tree::open(Arc::new(disk), &superblock) {
        Ok(tree) => tree,
        Err(error) => return super::shown::error(&error),
    };
    let mut left = Left {
        files: MOST_FILES,
        bytes: MOST_BYTES,
    };
    walk(&tree, Path::new("/"), &mut left);
}

struct Left {
    files: usize,
    bytes: u64,
}

fn walk(tree: &dyn Tree, folder: &Path, left: &mut Left) {
    let entries = match tree.read_dir(folder) {
        Ok(entries) => entries,
        Err(error) => return super::shown::error(&error),
    };
    for entry in entries {
        let Some(files) = left.files.checked_sub(1) else {
            return;
        };
        left.files = files;
        let path = folder.join(&entry.name);
        let Ok(meta) = tree.lstat(&path) else {
            continue;
        };
        match meta.kind {
            FileKind::Directory => walk(tree, &path, left),
            FileKind::Symlink => drop(tree.read_link(&path)),
            FileKind::Regular => read_file(tree, &path, meta.size, left),
            FileKind::Special => {}
        }
    }
}

fn read_file(tree: &dyn Tree, path: &Path, size: u64, left: &mut Left) {
    const PIECE: usize = 64 << 10;
    for offset in [0, PIECE as u64, size / 2, size.saturating_sub(PIECE as u64)] {
        if left.bytes < PIECE as u64 {
            return;
        }
        if let Ok(bytes) = tree.read_range(path, offset, PIECE) {
            assert!(
                bytes.len() <= PIECE && offset + bytes.len() as u64 <= size.max(offset),
                "bytes past the end"
            );
            left.bytes -= bytes.len() as u64;
        }
    }
}
