//! What etcd's own ways back keep of the same damage, each given the best of all disks.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::Result;
use tests::etcd::{self, Version};

use crate::load::{Book, Held, listed};

/// Acknowledged writes that each way loses; `None` where it does not start from any disk.
#[derive(Debug, Clone, Copy)]
pub struct Lost {
    pub force_new_cluster: Option<usize>,
    pub snapshot_restore: Option<usize>,
}

/// Every key after a way back was gone from one disk, copied to the work folder; `None` where etcd
/// does not start.
type Way = fn(&Version, &Path, &Path) -> Result<Option<Keys>>;
type Keys = BTreeMap<String, Held>;

/// `disks`: data folders as the damage left them; they stay as they are.
pub fn lost(version: &Version, disks: &[PathBuf], book: &Book) -> Result<Lost> {
    let best = |way: Way| -> Result<Option<usize>> {
        let mut least = None;
        for disk in disks {
            let work = tempfile::tempdir()?;
            let lost = way(version, disk, work.path())?.map(|now| book.lost(&now).len());
            least = match (least, lost) {
                (Some(least), Some(lost)) => Some(usize::min(least, lost)),
                (least, lost) => least.or(lost),
            };
            if least == Some(0) {
                break;
            }
        }
        Ok(least)
    };
    Ok(Lost {
        force_new_cluster: best(force_new_cluster)?,
        snapshot_restore: best(snapshot_restore)?,
    })
}

fn keys(version: &Version, data_dir: &Path, flags: &[&str]) -> Result<Option<Keys>> {
    let served = etcd::serve_with(version, data_dir, flags, |ctl| {
        listed(
            &ctl()
                .args(["get", "", "--prefix", "-w", "json"])
                .ok()?
                .json()?,
        )
    })?;
    Ok(served.ok())
}

fn force_new_cluster(version: &Version, disk: &Path, work: &Path) -> Result<Option<Keys>> {
    let copy = work.join("data");
    if !disk.join("member/wal").exists() {
        // It would start empty.
        return Ok(None);
    }
    etcd::copy(disk, &copy)?;
    keys(version, &copy, &["--force-new-cluster"])
}

fn snapshot_restore(version: &Version, disk: &Path, work: &Path) -> Result<Option<Keys>> {
    let (db, data_dir) = (disk.join("member/snap/db"), work.join("data"));
    let ran = version
        .ctl()
        .args(["snapshot", "restore"])
        .arg(&db)
        .arg("--skip-hash-check=true")
        .arg("--data-dir")
        .arg(&data_dir)
        .run()?;
    if ran.code != 0 {
        return Ok(None);
    }
    keys(version, &data_dir, &[])
}
