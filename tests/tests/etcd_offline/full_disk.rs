//! A member is replaced on a disk that has no room for the new folder beside the old one:
//! `--keep-in`.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use tests::disk::MIB;
use tests::etcd::{Version, files};
use tests::{FileSystem, rescue_binary};

use super::disks::{Machines, some_keys};
use super::members::judge;

/// Left on the disk of the broken member, beside what its new folder needs more than its old one
/// gives back: etcd grows a database by what its timing asks for, so that members with the same
/// keys differ in size.
const FREE: u64 = 700 << 10;

/// Bytes that the files of a member take on its disk.
fn allocated(data_dir: &Path) -> Result<u64> {
    let used = tests::Cmd::new("du")
        .args(["--summarize", "--block-size=1"])
        .arg(data_dir)
        .ok()?
        .stdout;
    Ok(used.split_whitespace().next().context("a size")?.parse()?)
}

fn fill(member: &Path, left: u64) -> Result<()> {
    let stat = rustix::fs::statvfs(member)?;
    // What ext4 keeps for its own extents nobody can write to.
    let free = (stat.f_bfree - (stat.f_blocks / 50).min(4096)) * stat.f_frsize;
    Ok(fs::write(
        member.join("filled"),
        vec![1; usize::try_from(free - left)?],
    )?)
}

#[test]
fn one_of_three_has_no_room_for_both() -> Result<()> {
    let (mut machines, held) = Machines::new(
        &Version::debian(),
        3,
        (FileSystem::Ext4, 128 * MIB),
        |cluster| {
            (0..8).try_for_each(|number| cluster.put_large(&format!("large{number}"), 300_000))?;
            some_keys(cluster)
        },
    )?;
    let (mut own, mut largest) = (0, 0);
    machines.damage(0, |data_dir| allocated(&data_dir).map(|size| own = size))?;
    for number in [1, 2] {
        machines.damage(number, |data_dir| {
            allocated(&data_dir).map(|size| largest = size.max(largest))
        })?;
    }
    let left = FREE + largest.saturating_sub(own);
    ensure!(
        left < largest,
        "there is room for both: {left} of {largest}"
    );
    // No root is left of its database.
    machines.damage(0, |data_dir| {
        files::write_at(&files::database(&data_dir), &[0; 8192], 0)?;
        fill(&data_dir, left)
    })?;
    let before = machines.sums()?;
    let repair = ["repair", "--only", "etcd"];
    let refused = machines.rescue(&repair)?;
    ensure!(
        refused.code == 3 && refused.stderr.contains("add --keep-in DIR"),
        "{}",
        refused.transcript()
    );
    ensure!(machines.sums()? == before, "a refusal changed something");

    let keep = tempfile::tempdir()?;
    let keep_in = keep.path().display().to_string();
    let kept_there = [&repair[..], &["--keep-in", &keep_in]].concat();
    let ran = machines.rescue(&kept_there)?;
    ensure!(
        ran.code == 0 && ran.stdout.contains(&format!("is kept in {keep_in}/")),
        "{}",
        ran.transcript()
    );
    // Only this one was changed. The record knows the folder.
    let undone = machines.rescue(&["undo", "--node", "m1"])?;
    ensure!(
        undone.code == 0 && machines.sums()? == before,
        "{}",
        undone.transcript()
    );
    ensure!(
        undone.stdout.contains("not needed any more"),
        "{}",
        undone.transcript()
    );
    let ran = machines.rescue(&kept_there)?;
    ensure!(ran.code == 0, "{}", ran.transcript());
    // One folder for each of the two runs; only the node that was full is in them.
    let kept: Vec<_> = fs::read_dir(keep.path())?
        .map(|run| Ok(fs::read_dir(run?.path())?.count()))
        .collect::<Result<_>>()?;
    ensure!(kept == [1, 1], "{kept:?}");
    let listed = tests::Cmd::new(rescue_binary())
        .arg("runs")
        .args(machines.images())
        .ok()?;
    ensure!(
        listed.stdout.contains(&format!("in {keep_in}/")),
        "{}",
        listed.transcript()
    );
    machines.damage(0, |data_dir| Ok(fs::remove_file(data_dir.join("filled"))?))?;
    machines.fetch()?;
    judge(&mut machines.cluster, &[0, 1, 2], &held)
}
