//! The builder's own promises; every other test on disks rests on them.

use anyhow::Result;
use tests::disk::{DiskBuilder, FileSystem, MIB, Partition, Table, control_plane};
use tests::{fill, fixtures};

#[test]
fn every_table_and_sector_size_holds_a_mountable_system() -> Result<()> {
    let folder = tempfile::tempdir()?;
    for table in [Table::Gpt, Table::Mbr, Table::MbrLogical, Table::Bare] {
        for sector in [512, 4096] {
            for file_system in [FileSystem::Ext4, FileSystem::Xfs] {
                let path = folder.path().join("disk.img");
                let disk = DiskBuilder::new(400 * MIB)
                    .table(table)
                    .sector_size(sector)
                    .partition(Partition::new(file_system, "/"))
                    .build(&path)?;
                disk.mounted(|root| Ok(std::fs::write(root.join("hello"), "there")?))?;
                let read = disk
                    .mounted_read_only(|root| Ok(std::fs::read_to_string(root.join("hello"))?))?;
                assert_eq!(read, "there", "{table:?} {sector} {file_system:?}");
                disk.assert_clean()?;
            }
        }
    }
    Ok(())
}

#[test]
fn partitions_are_mounted_where_they_belong() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let disk = DiskBuilder::new(256 * MIB)
        .partition(Partition::new(FileSystem::Ext4, "/var").size(64 * MIB))
        .partition(Partition::unmounted(FileSystem::Swap).size(16 * MIB))
        .partition(Partition::new(FileSystem::Ext4, "/").uuid(fixtures::ROOT_UUID))
        .build(&folder.path().join("disk.img"))?;
    disk.mounted(|root| Ok(std::fs::write(root.join("var/inner"), "x")?))?;
    let hash = disk.sha256()?;
    assert!(disk.mounted_read_only(|root| Ok(root.join("var/inner").exists()))?);
    assert_eq!(disk.sha256()?, hash, "looking changed the image");
    Ok(())
}

#[test]
fn a_full_control_plane_has_not_one_block_left_and_is_still_clean() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let disk = control_plane(&folder.path().join("disk.img"), 640 * MIB)?;
    disk.mounted(fill::to_enospc)?;
    disk.assert_clean()?;
    disk.mounted(|root| {
        for trap in fill::TRAPS {
            assert!(root.join(trap).exists(), "{trap}");
        }
        assert!(root.join("var/lib/etcd/member/snap/db").exists());
        Ok(())
    })
}

#[test]
fn a_file_system_without_inodes_is_made() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let root = Partition::new(FileSystem::Ext4, "/")
        .uuid(fixtures::ROOT_UUID)
        .mkfs(["-N", "4096"]);
    let disk = DiskBuilder::new(512 * MIB)
        .partition(root)
        .build(&folder.path().join("disk.img"))?;
    disk.populate_control_plane()?;
    disk.mounted(fill::inodes)?;
    disk.assert_clean()
}
