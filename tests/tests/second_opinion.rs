//! A repaired disk before a court that shares no code with Rescue: openssl, the kernel, and
//! Debian's etcd on the disk's own data.

use anyhow::Result;
use tests::disk::{DiskBuilder, FileSystem, MIB, Partition, Table};
use tests::{fill, fixtures, judge, rescue};

/// A dead control plane: bytes or inodes used up, certificates expired. Repaired, judged, judged
/// again after undo.
fn comes_back(builder: DiskBuilder, fill: fn(&std::path::Path) -> Result<()>) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("disk.img");
    let disk = builder.build(&path)?;
    disk.mounted(|root| {
        fixtures::unpack_control_plane(root)?;
        fill::traps(root)?;
        fill(root)
    })?;
    let before = judge::disk(&disk)?;
    assert!(
        !before.healthy() && !before.kubelet.good && !before.etcd.good,
        "{before:#?}"
    );
    assert!(
        !before.leaves.iter().any(|leaf| leaf.verdict.good),
        "{before:#?}"
    );

    let repaired = rescue(["repair", "--yes"]).arg(&path).run()?;
    assert_eq!(repaired.code, 0, "{}", repaired.transcript());
    disk.assert_clean()?;
    let after = judge::disk(&disk)?;
    assert!(after.healthy(), "{after:#?}\n{}", repaired.transcript());
    assert_eq!(
        after.kept,
        fill::TRAPS.len(),
        "a file that only looks like a log is gone"
    );

    let undone = rescue(["undo", "--yes"]).arg(&path).run()?;
    assert_eq!(undone.code, 0, "{}", undone.transcript());
    disk.assert_clean()?;
    let back = judge::disk(&disk)?;
    for (was, is) in before.leaves.iter().zip(&back.leaves) {
        assert_eq!((&was.name, &was.not_after), (&is.name, &is.not_after));
    }
    Ok(())
}

fn root(file_system: FileSystem) -> Partition {
    Partition::new(file_system, "/").uuid(fixtures::ROOT_UUID)
}

#[test]
fn ext4_without_one_free_byte() -> Result<()> {
    comes_back(
        DiskBuilder::new(1024 * MIB).partition(root(FileSystem::Ext4)),
        fill::to_enospc,
    )
}

#[test]
fn ext4_without_one_free_inode() -> Result<()> {
    let root = root(FileSystem::Ext4).mkfs(["-N", "4096"]);
    comes_back(DiskBuilder::new(768 * MIB).partition(root), fill::inodes)
}

#[test]
fn xfs_in_a_logical_partition_without_one_free_byte() -> Result<()> {
    comes_back(
        DiskBuilder::new(1024 * MIB)
            .table(Table::MbrLogical)
            .partition(root(FileSystem::Xfs)),
        fill::to_enospc,
    )
}

#[test]
fn ext4_on_4096_byte_sectors_without_one_free_byte() -> Result<()> {
    comes_back(
        DiskBuilder::new(1024 * MIB)
            .sector_size(4096)
            .partition(root(FileSystem::Ext4)),
        fill::to_enospc,
    )
}
