//! Repairs in place on disk images, the disks of several nodes as one change: real etcd is started
//! on what is on them afterwards.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

use anyhow::{Result, ensure};
use tests::disk::MIB;
use tests::etcd::{self, Cluster, Key, Version, files, guest};
use tests::{Cmd, Disk, DiskBuilder, FileSystem, Partition, Ran, rescue_binary};

use super::members::judge;

/// What a rebuild from a database alone adds to the revision.
const BUMP: i64 = 1_000_000_000;

/// Control planes that are off, each with a disk of its own.
pub struct Machines {
    pub cluster: Cluster,
    disks: Vec<Disk>,
    images: Vec<PathBuf>,
}

impl Machines {
    /// Writes what `load` does to new members, kills them, and moves them to disks of this size.
    pub fn new(
        version: &Version,
        count: usize,
        (kind, size): (FileSystem, u64),
        load: impl FnOnce(&Cluster) -> Result<()>,
    ) -> Result<(Self, (Vec<Key>, i64))> {
        let mut cluster = Cluster::prepare(version, count, 1000, guest::place)?;
        let roots = guest::make_all(&cluster, &[])?;
        cluster.run()?;
        load(&cluster)?;
        // Long enough for all of it to be in the databases: etcd writes them every 100 ms.
        std::thread::sleep(std::time::Duration::from_millis(500));
        let held = cluster.keys(0)?;
        cluster.kill()?;
        let (mut disks, mut images) = (Vec::new(), Vec::new());
        for (number, root) in roots.iter().enumerate() {
            let image = cluster.folder().join(format!("disk{number}.img"));
            let disk = DiskBuilder::new(size)
                .partition(Partition::new(kind, "/"))
                .build(&image)?;
            disk.mounted(|mounted| {
                Cmd::new("cp")
                    .args(["-a", "--sparse=always"])
                    .arg(root.join("."))
                    .arg(mounted)
                    .ok()
                    .map(|_| ())
            })?;
            fs::remove_dir_all(root)?;
            disks.push(disk);
            images.push(image);
        }
        Ok((
            Self {
                cluster,
                disks,
                images,
            },
            held,
        ))
    }

    /// The disks.
    pub fn images(&self) -> &[PathBuf] {
        &self.images
    }

    /// Does something to the data folder on one disk.
    pub fn damage(
        &self,
        number: usize,
        damage: impl FnOnce(PathBuf) -> Result<()> + Send,
    ) -> Result<()> {
        self.disks[number].mounted(|root| damage(root.join(guest::DATA_DIR)))
    }

    pub fn rescue(&self, words: &[&str]) -> Result<Ran> {
        Cmd::new(rescue_binary())
            .args(words)
            .arg("--yes")
            .args(&self.images)
            .run()
    }

    /// SHA-256 of every file of all members.
    pub fn sums(&self) -> Result<Vec<String>> {
        self.disks
            .iter()
            .map(|disk| disk.mounted_read_only(|root| files::sums(&root.join(guest::DATA_DIR))))
            .collect()
    }

    /// Runs a command, takes it back, which must bring back every byte, and runs it again.
    pub fn change_undo_and_change(&self, words: &[&str]) -> Result<()> {
        let before = self.sums()?;
        let ran = self.rescue(words)?;
        ensure!(ran.code == 0, "{}", ran.transcript());
        let undone = self.rescue(&["undo"])?;
        ensure!(
            undone.code == 0 && self.sums()? == before,
            "{}",
            undone.transcript()
        );
        let ran = self.rescue(words)?;
        ensure!(ran.code == 0, "{}", ran.transcript());
        Ok(())
    }

    /// Puts what is on the disks where the members start from; the disks' file systems must be
    /// sound.
    pub fn fetch(&self) -> Result<()> {
        for (disk, member) in self.disks.iter().zip(&self.cluster.members) {
            disk.assert_clean()?;
            if member.data_dir.exists() {
                fs::remove_dir_all(&member.data_dir)?;
            }
            fs::create_dir_all(guest::root_of(&member.data_dir).join("var/lib"))?;
            disk.mounted_read_only(|root| {
                etcd::copy(&root.join(guest::DATA_DIR), &member.data_dir)
            })?;
            etcd::check_database(self.cluster.version(), &files::database(&member.data_dir))?;
        }
        Ok(())
    }

    fn hashes(&self) -> Result<BTreeSet<(u64, i64)>> {
        (0..self.cluster.members.len())
            .map(|number| self.cluster.hash(number, 0))
            .collect()
    }
}

pub fn some_keys(cluster: &Cluster) -> Result<()> {
    cluster.put_many("/registry/pods/default/p", 300, "one")?;
    cluster.put_many("/registry/pods/default/p", 60, "two")?;
    cluster
        .ctl(0)
        .args(["del", "/registry/pods/default/p1"])
        .ok()?;
    cluster.put_large("large", 200_000)?;
    cluster.put("last", "acknowledged")
}

#[test]
fn five_disks_are_rebuilt_as_one() -> Result<()> {
    let (mut machines, (keys, revision)) = Machines::new(
        &Version::debian(),
        5,
        (FileSystem::Ext4, 128 * MIB),
        some_keys,
    )?;
    for number in 0..5 {
        machines.damage(number, |data_dir| {
            Ok(fs::remove_dir_all(data_dir.join("member/wal"))?)
        })?;
    }
    machines.change_undo_and_change(&["etcd", "rebuild", "--db-only", "--accept-loss"])?;
    machines.fetch()?;
    let cluster = &mut machines.cluster;
    cluster.run()?;
    for number in 0..5 {
        ensure!(
            cluster.keys(number)? == (keys.clone(), revision + BUMP),
            "keys of {number} differ"
        );
    }
    cluster.put("after", "1")?;
    cluster.kill()?;
    cluster.run()?;
    ensure!(
        cluster.keys(4)?.0.len() == keys.len() + 1,
        "a restart lost something"
    );
    ensure!(machines.hashes()?.len() == 1, "{:?}", machines.hashes()?);
    Ok(())
}

/// Both meta pages are zeros, so that etcd and bbolt's own tools see no database at all: everything
/// is found again, on the disk itself.
#[test]
fn a_database_is_salvaged_on_its_disk() -> Result<()> {
    for version in etcd::versions_to_damage()? {
        let (mut machines, (keys, revision)) =
            Machines::new(&version, 1, (FileSystem::Ext4, 128 * MIB), some_keys)?;
        machines.damage(0, |data_dir| {
            files::write_at(&files::database(&data_dir), &[0; 8192], 0)
        })?;
        let before = machines.sums()?;
        let refused = machines.rescue(&["etcd", "salvage"])?;
        ensure!(
            refused.code == 3 && refused.stderr.contains("--accept-loss"),
            "{}",
            refused.transcript()
        );
        ensure!(machines.sums()? == before, "a refusal changed something");
        let ran = machines.rescue(&["etcd", "salvage", "--accept-loss"])?;
        ensure!(
            ran.code == 0,
            "etcd {}: {}",
            version.number,
            ran.transcript()
        );
        machines.fetch()?;
        let cluster = &mut machines.cluster;
        cluster.run()?;
        ensure!(
            cluster.keys(0)? == (keys.clone(), revision + BUMP),
            "etcd {}: keys differ",
            version.number
        );
        cluster.put("after", "1")?;
        cluster.kill()?;
        cluster.run()?;
        ensure!(
            cluster.keys(0)?.0.len() == keys.len() + 1,
            "etcd {}: a restart lost something",
            version.number
        );
    }
    Ok(())
}

/// Members of more than 200 MB on btrfs, one without its log, another without half of its database.
#[test]
fn large_members_on_btrfs_are_repaired_as_one() -> Result<()> {
    if !etcd::long() {
        return Ok(());
    }
    let fill = |cluster: &Cluster| {
        (0..220).try_for_each(|number| cluster.put_large(&format!("large{number}"), 1_000_000))?;
        some_keys(cluster)
    };
    let (mut machines, held) = Machines::new(
        &Version::newest()?,
        3,
        (FileSystem::Btrfs, 2048 * MIB),
        fill,
    )?;
    machines.damage(0, |data_dir| {
        Ok(fs::remove_dir_all(data_dir.join("member/wal"))?)
    })?;
    machines.damage(1, |data_dir| {
        let db = files::database(&data_dir);
        let size = fs::metadata(&db)?.len();
        ensure!(size > 200_000_000, "{size} bytes are not many");
        files::cut(&db, size / 2)
    })?;
    machines.change_undo_and_change(&["repair", "--only", "etcd", "--accept-loss"])?;
    machines.fetch()?;
    judge(&mut machines.cluster, &[0, 1, 2], &held)
}
