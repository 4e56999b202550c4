//! What stands on the command line of `rescue etcd`: disks, mounted guests, data folders.

use std::path::PathBuf;

use crate::cli::args::Stop;
use crate::disk::Source;

/// Sources by kind.
#[derive(Debug, Default)]
pub struct EtcdSources {
    /// Disks, and folders where a guest is mounted.
    pub disks: Vec<Source>,
    /// Data folders, or copies of them.
    pub data_dirs: Vec<PathBuf>,
}

impl EtcdSources {
    /// At least one is needed; `command` as the user would type it, for the example where there is
    /// none.
    pub fn new(
        disks: &[PathBuf],
        roots: &[PathBuf],
        data_dirs: &[PathBuf],
        command: &str,
    ) -> Result<Self, Stop> {
        let disks = disks.iter().cloned().map(Source::Disk);
        let sources = Self {
            disks: disks
                .chain(roots.iter().cloned().map(Source::Root))
                .collect(),
            data_dirs: data_dirs.to_vec(),
        };
        if sources.is_empty() {
            return Err(Stop::Usage(format!(
                "no disk given. Name the disks of control planes (rescue etcd {command} /dev/sdb \
                 /dev/sdc /dev/sdd), a mounted guest \
                 (--root /mnt) or a copy of a data folder (--data-dir /backup/etcd)."
            )));
        }
        Ok(sources)
    }

    /// Whether nothing was named.
    pub fn is_empty(&self) -> bool {
        self.disks.is_empty() && self.data_dirs.is_empty()
    }
}
