//! Where a layer goes on when memory is used up: a file that the user names.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use anyhow::Context;

use super::layer::BLOCK;
use crate::base::refusal::Refusal;
use crate::disk::given::Given;

/// Names the file where `--spill` does not.
const VARIABLE: &str = "RESCUE_SPILL";

/// The file that the user named, by flag or variable.
pub fn named() -> Option<PathBuf> {
    let variable = || {
        std::env::var_os(VARIABLE)
            .filter(|path| !path.is_empty())
            .map(PathBuf::from)
    };
    Given::get().spill.or_else(variable)
}

/// Blocks of all layers that did not fit into memory. Their file has no name any more: it is gone
/// with this process.
#[derive(Debug)]
pub struct Spill {
    file: File,
    slots: Mutex<Slots>,
}

#[derive(Debug, Default)]
struct Slots {
    /// How many the file has.
    made: u64,
    /// Those of layers that are gone.
    free: Vec<u64>,
}

impl Spill {
    /// Makes the file, 0600 from the first byte (what spills is a guest's), and takes its name away
    /// again.
    ///
    /// # Errors
    /// [`Refusal`] (by downcast) when the file is there already or cannot be made.
    pub fn create(path: &Path) -> anyhow::Result<Self> {
        let shown = crate::disk::shown(path);
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)
            .map_err(|error| {
                let means = match error.kind() {
                    io::ErrorKind::AlreadyExists => {
                        "it is there already, and nothing is overwritten".to_owned()
                    }
                    _ => format!("it cannot be made: {error}"),
                };
                Refusal::new(
                    format!("{shown} cannot take what does not fit into memory"),
                    means,
                    "--spill FILE, a new file on a file system of this machine with room",
                )
            })?;
        std::fs::remove_file(path).with_context(|| format!("taking the name of {shown} away"))?;
        Ok(Self {
            file,
            slots: Mutex::default(),
        })
    }

    /// Keeps a block; returns where.
    pub fn put(&self, block: &[u8; BLOCK]) -> io::Result<u64> {
        let slot = {
            let mut slots = self.slots.lock().map_err(|_| io::ErrorKind::Other)?;
            slots.free.pop().unwrap_or_else(|| {
                slots.made += 1;
                slots.made - 1
            })
        };
        self.write(slot, 0, block)?;
        Ok(slot)
    }

    /// Fills `bytes` from a block, from `within` on.
    pub fn read(&self, slot: u64, within: usize, bytes: &mut [u8]) -> io::Result<()> {
        self.file
            .read_exact_at(bytes, slot * BLOCK as u64 + within as u64)
    }

    /// Replaces a part of a block.
    pub fn write(&self, slot: u64, within: usize, bytes: &[u8]) -> io::Result<()> {
        self.file
            .write_all_at(bytes, slot * BLOCK as u64 + within as u64)
    }

    /// Slots of a layer that is gone.
    pub fn give_back(&self, freed: impl Iterator<Item = u64>) {
        if let Ok(mut slots) = self.slots.lock() {
            slots.free.extend(freed);
        }
    }

    #[cfg(test)]
    pub(super) fn length(&self) -> u64 {
        self.file.metadata().map_or(0, |metadata| metadata.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn never_overwrites_and_leaves_nothing_behind() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("spill");
        std::fs::write(&path, "mine").unwrap();
        let error = Spill::create(&path).unwrap_err();
        assert!(
            error
                .downcast_ref::<Refusal>()
                .unwrap()
                .means
                .contains("there already"),
            "{error}"
        );
        assert_eq!(std::fs::read(&path).unwrap(), b"mine");
        std::fs::remove_file(&path).unwrap();
        let spill = Spill::create(&path).unwrap();
        assert!(!path.exists());
        assert_eq!(spill.put(&[7; BLOCK]).unwrap(), 0);
        assert_eq!(spill.put(&[8; BLOCK]).unwrap(), 1);
        spill.write(0, 10, b"hello").unwrap();
        let mut bytes = [0; 7];
        spill.read(0, 9, &mut bytes).unwrap();
        assert_eq!(&bytes, b"\x07hello\x07");
        spill.give_back([0].into_iter());
        assert_eq!(spill.put(&[9; BLOCK]).unwrap(), 0, "used again");
        assert!(Spill::create(&folder.path().join("no/such")).is_err());
    }
}
