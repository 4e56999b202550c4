//! The header of a qcow2 image. All numbers are big endian.

use super::super::ImageError;
use crate::base::escaping::escape;
use crate::disk::ReadAt;
use crate::disk::bytes::{be32, be64};

/// QEMU's own bound (block/qcow2.h, QCOW_MAX_L1_SIZE), in bytes.
const MAX_L1_SIZE: u64 = 32 << 20;
/// Longest name of a backing file (block/qcow2.c: 1023, of which the specification knows).
const MAX_NAME: u64 = 1023;

/// Bits of the incompatible features.
const DIRTY: u64 = 1;
const CORRUPT: u64 = 1 << 1;
const EXTERNAL_DATA: u64 = 1 << 2;
const COMPRESSION: u64 = 1 << 3;
const EXTENDED_ENTRIES: u64 = 1 << 4;

/// Header extensions.
const BACKING_FORMAT: u32 = 0xe279_2aca;

/// How clusters are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Compression {
    Deflate,
    Zstd,
}

/// The file below.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Backing {
    /// As the header has it.
    pub name: String,
    pub format: Option<String>,
}

/// What is needed of it, checked.
#[derive(Debug, Clone)]
pub(super) struct Header {
    /// Size of the disk in bytes.
    pub length: u64,
    pub cluster_bits: u32,
    /// Number of entries.
    pub l1_entries: u64,
    pub l1_offset: u64,
    pub compression: Compression,
    /// 16-byte entries that map each of 32 subclusters.
    pub extended: bool,
    /// Version 2 has no clusters of zeros.
    pub has_zero_flag: bool,
    pub backing: Option<Backing>,
    incompatible: u64,
}

impl Header {
    pub fn read(file: &dyn ReadAt) -> Result<Self, ImageError> {
        let mut raw = vec![0; usize::try_from(file.len().min(112)).unwrap_or(112)];
        file.read_exact_at(&mut raw, 0)?;
        if !raw.starts_with(super::MAGIC) {
            return Err(ImageError::corrupt("it does not begin like a qcow2 image"));
        }
        let version = be32(&raw, 4);
        let incompatible = if version >= 3 { be64(&raw, 72) } else { 0 };
        let cluster_bits = be32(&raw, 20);
        refuse_unsupported(version, be32(&raw, 32), incompatible)?;
        if raw.len() < 72 || !(9..=21).contains(&cluster_bits) {
            return Err(ImageError::corrupt(format!(
                "its clusters have 2^{cluster_bits} bytes"
            )));
        }
        let header_length = if version >= 3 { be32(&raw, 100) } else { 72 };
        let mut header = Self {
            length: be64(&raw, 24),
            cluster_bits,
            l1_entries: be32(&raw, 36).into(),
            l1_offset: be64(&raw, 40),
            compression: compression(&raw, header_length, incompatible)?,
            extended: incompatible & EXTENDED_ENTRIES != 0,
            has_zero_flag: version >= 3,
            backing: None,
            incompatible,
        };
        header.check_tables(file)?;
        header.backing = backing(
            file,
            be64(&raw, 8),
            be32(&raw, 16).into(),
            header_length,
            cluster_bits,
        )?;
        Ok(header)
    }

    /// log2 of the number of entries of an L2 table.
    pub fn l2_bits(&self) -> u32 {
        self.cluster_bits - if self.extended { 4 } else { 3 }
    }

    /// Why it must be checked before anybody writes to it, as the end of a sentence.
    pub fn needs_check(&self) -> Option<&'static str> {
        if self.incompatible & CORRUPT != 0 {
            return Some("is marked as corrupt by QEMU");
        }
        (self.incompatible & DIRTY != 0)
            .then_some("was not closed by QEMU (a crash of the host), and its counts may be old")
    }

    fn check_tables(&self, file: &dyn ReadAt) -> Result<(), ImageError> {
        let corrupt = |what: String| Err(ImageError::Corrupt(what));
        if self.length == 0 || self.length > i64::MAX.cast_unsigned() {
            return corrupt(format!("a disk of {} bytes", self.length));
        }
        if self.extended && self.cluster_bits < 14 {
            return corrupt(format!(
                "clusters of 2^{} bytes cannot be divided",
                self.cluster_bits
            ));
        }
        let covered_by_one = 1_u64
            .checked_shl(self.cluster_bits + self.l2_bits())
            .unwrap_or(u64::MAX);
        if self
            .l1_entries
            .checked_mul(8)
            .is_none_or(|size| size > MAX_L1_SIZE)
            || self.l1_entries < self.length.div_ceil(covered_by_one)
        {
            return corrupt(format!(
                "a table of {} entries for {} bytes",
                self.l1_entries, self.length
            ));
        }
        let is_aligned =
            self.l1_offset.is_multiple_of(1 << self.cluster_bits) && self.l1_offset != 0;
        let end = self.l1_offset.checked_add(self.l1_entries * 8);
        if !is_aligned || end.is_none_or(|end| end > file.len()) {
            return corrupt(format!(
                "its first table is at byte {} of a file of {} bytes",
                self.l1_offset,
                file.len()
            ));
        }
        Ok(())
    }
}

fn refuse_unsupported(version: u32, encryption: u32, incompatible: u64) -> Result<(), ImageError> {
    let unsupported = |what: String| Err(ImageError::Unsupported(what));
    if !matches!(version, 2 | 3) {
        return unsupported(format!(
            "it is of version {version}, and only 2 and 3 are known"
        ));
    }
    if encryption != 0 {
        return unsupported(
            "it is encrypted, which only QEMU can undo (--object secret,id=key,file=FILE with \
             --image-opts)"
                .into(),
        );
    }
    if incompatible & EXTERNAL_DATA != 0 {
        return unsupported("its data is in another file (data_file)".into());
    }
    let known = DIRTY | CORRUPT | EXTERNAL_DATA | COMPRESSION | EXTENDED_ENTRIES;
    if incompatible & !known != 0 {
        return unsupported(format!(
            "it has features of a later QEMU (bits {:#x})",
            incompatible & !known
        ));
    }
    Ok(())
}

fn compression(
    raw: &[u8],
    header_length: u32,
    incompatible: u64,
) -> Result<Compression, ImageError> {
    let kind = if header_length > 104 {
        raw.get(104).copied().unwrap_or(0)
    } else {
        0
    };
    match (kind, incompatible & COMPRESSION != 0) {
        (0, false) => Ok(Compression::Deflate),
        (1, true) => Ok(Compression::Zstd),
        (kind, _) => Err(ImageError::Unsupported(format!(
            "it is compressed in an unknown way ({kind})"
        ))),
    }
}

/// The name stands anywhere in the first cluster, what it is in an extension behind the header.
fn backing(
    file: &dyn ReadAt,
    at: u64,
    length: u64,
    header_length: u32,
    cluster_bits: u32,
) -> Result<Option<Backing>, ImageError> {
    if at == 0 {
        return Ok(None);
    }
    let first_cluster = 1_u64 << cluster_bits;
    if length == 0
        || length > MAX_NAME
        || at
            .checked_add(length)
            .is_none_or(|end| end > first_cluster.min(file.len()))
    {
        return Err(ImageError::corrupt(format!(
            "the name of its backing file has {length} bytes at byte {at}"
        )));
    }
    let mut name = vec![0; usize::try_from(length).unwrap_or(0)];
    file.read_exact_at(&mut name, at)?;
    let name = String::from_utf8(name)
        .map_err(|_| ImageError::corrupt("the name of its backing file is no text"))?;
    if name.contains('\0') {
        return Err(ImageError::corrupt(
            "the name of its backing file has a NUL in it",
        ));
    }
    let mut head = vec![0; usize::try_from(first_cluster.min(file.len())).unwrap_or(0)];
    file.read_exact_at(&mut head, 0)?;
    Ok(Some(Backing {
        name,
        format: extension(&head, header_length, BACKING_FORMAT),
    }))
}

/// Extensions: type, length, data padded to eight bytes; type 0 ends them.
fn extension(head: &[u8], header_length: u32, wanted: u32) -> Option<String> {
    let mut at = usize::try_from(header_length).ok()?;
    loop {
        let kind = head
            .get(at..at + 8)
            .map(|_| be32(head, at))
            .filter(|kind| *kind != 0)?;
        let length = usize::try_from(be32(head, at + 4)).ok()?;
        let data = head.get(at + 8..)?.get(..length)?;
        if kind == wanted {
            return Some(escape(&String::from_utf8_lossy(data)));
        }
        at += 8 + length.next_multiple_of(8);
    }
}
