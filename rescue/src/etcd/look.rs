//! What lies in a member's data folder, without reading more than names, sizes and first pages.

use crate::guest::{DirEntry, FileKind, Guest, GuestPath, TreeError};

use super::outline::{Outline, outline};

/// The first look.
#[derive(Debug, Clone)]
pub struct Look {
    /// `--data-dir`.
    pub data_dir: GuestPath,
    /// `member/snap/db`.
    pub database: Database,
    /// `member/wal/*.wal`, in their order.
    pub wal: Vec<WalFile>,
    /// Number of `member/snap/*.snap`.
    pub snapshots: usize,
    /// `*.broken`: what etcd set aside as damaged.
    pub broken: Vec<GuestPath>,
    /// What could not be read, with the reason.
    pub unreadable: Vec<(GuestPath, String)>,
    /// Whether there is a folder `member` at all.
    pub has_member: bool,
}

/// The key-value database.
#[derive(Debug, Clone)]
pub enum Database {
    /// Not there.
    Missing,
    /// There, with its outline.
    There(Box<Outline>),
    /// There, but not readable.
    Unreadable,
}

/// One file of the write-ahead log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WalFile {
    /// Its path.
    pub path: GuestPath,
    /// The sequence number in its name; `None` where the name is not one of etcd's.
    pub sequence: Option<u64>,
    /// Bytes; etcd sets 64,000,000 aside for the last one.
    pub size: u64,
    /// Whether it begins with the record every file of the log begins with.
    pub begins_well: bool,
}

impl Look {
    /// Looks into `data_dir`; never fails, what cannot be read is part of the answer.
    pub fn at(guest: &Guest, data_dir: GuestPath) -> Self {
        let member = data_dir.join("member");
        let mut look = Self {
            has_member: guest.exists(&member),
            data_dir,
            database: Database::Missing,
            wal: Vec::new(),
            snapshots: 0,
            broken: Vec::new(),
            unreadable: Vec::new(),
        };
        let (snap, wal) = (member.join("snap"), member.join("wal"));
        for entry in look.list(guest, &snap) {
            look.snap_file(&snap, &entry);
        }
        for entry in look.list(guest, &wal) {
            look.wal_file(guest, &wal, &entry);
        }
        look.database = look.read_database(guest, &snap.join("db"));
        look
    }

    /// Sequence numbers that are missing between the first and the last file of the log.
    pub fn gaps(&self) -> Vec<u64> {
        let numbers: Vec<u64> = self.wal.iter().filter_map(|file| file.sequence).collect();
        // A crafted name may claim a gap of 2^63 files: the first missing one of each gap is enough.
        numbers.windows(2).filter_map(|pair| pair[0].checked_add(1).filter(|next| *next < pair[1])).collect()
    }

    /// Bytes of the log.
    pub fn wal_bytes(&self) -> u64 {
        self.wal.iter().fold(0, |sum, file| sum.saturating_add(file.size))
    }

    fn list(&mut self, guest: &Guest, folder: &GuestPath) -> Vec<DirEntry> {
        match guest.read_dir(folder) {
            Ok(entries) => entries.into_iter().filter(|entry| entry.kind == FileKind::Regular).collect(),
            Err(error) if error.is_not_found() => Vec::new(),
            Err(error) => {
                self.unreadable(folder, &error);
                Vec::new()
            }
        }
    }

    fn snap_file(&mut self, folder: &GuestPath, entry: &DirEntry) {
        let name = entry.name.to_string_lossy();
        if name.ends_with(".broken") {
            self.broken.push(folder.join(&entry.name));
        } else if name.ends_with(".snap") {
            self.snapshots += 1;
        }
    }

    fn wal_file(&mut self, guest: &Guest, folder: &GuestPath, entry: &DirEntry) {
        let name = entry.name.to_string_lossy();
        let path = folder.join(&entry.name);
        if name.ends_with(".broken") {
            self.broken.push(path);
            return;
        }
        let Some(stem) = name.strip_suffix(".wal") else { return };
        let sequence = stem.split_once('-').and_then(|(sequence, _)| u64::from_str_radix(sequence, 16).ok());
        let read = guest.stat(&path).and_then(|meta| {
            let real = guest.resolve(&path)?;
            Ok((meta.size, guest.tree().read_range(real.as_path(), 0, 16)?))
        });
        match read {
            Ok((size, head)) => self.wal.push(WalFile { path, sequence, size, begins_well: begins_well(&head) }),
            Err(error) => self.unreadable(&path, &error),
        }
    }

    fn read_database(&mut self, guest: &Guest, path: &GuestPath) -> Database {
        let read = guest.stat(path).and_then(|meta| {
            let real = guest.resolve(path)?;
            outline(guest.tree().as_ref(), real.as_path(), meta.size)
        });
        match read {
            Ok(outline) => Database::There(Box::new(outline)),
            Err(error) if error.is_not_found() => Database::Missing,
            Err(error) => {
                self.unreadable(path, &error);
                Database::Unreadable
            }
        }
    }

    fn unreadable(&mut self, path: &GuestPath, error: &TreeError) {
        self.unreadable.push((path.clone(), error.to_string()));
    }
}

/// A frame of a few bytes, then a record of type 4 (crc): fields 1 = 4 and 2 = the crc so far (etcd up to 3.6 always writes
/// both; 3.7 leaves out a crc of 0).
fn begins_well(head: &[u8]) -> bool {
    let Some(frame) = head.get(..8).and_then(|bytes| bytes.try_into().ok()).map(u64::from_le_bytes) else {
        return false;
    };
    let length = frame & ((1 << 56) - 1);
    (2..=16).contains(&length) && head.get(8..10) == Some(&[0x08, 0x04])
}
