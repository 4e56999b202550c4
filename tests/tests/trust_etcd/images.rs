//! The same on disk images, with the etcd of a real control plane.

use std::fs;

use anyhow::{Context as _, Result, ensure};
use tests::disk::{MIB, control_plane};
use tests::etcd::{self, guest};
use tests::{Cmd, DiskBuilder, FileSystem, Partition, rescue_binary};

use super::parties::{FORGED, hostile_roots, hostile_to, sums, tls};

#[test]
fn a_real_control_plane_keeps_its_etcd_beside_a_worker_s_image() -> Result<()> {
    let work = tempfile::tempdir()?;
    let (master, worker) = (
        work.path().join("master.img"),
        work.path().join("worker.img"),
    );
    let disk = control_plane(&master, 700 * MIB)?;
    let status = Cmd::new(rescue_binary())
        .args(["etcd", "status", "--quick", "--json"])
        .arg(&master)
        .run()?
        .json()?;
    let member = &status["etcd"]["members"][0];
    let cluster = u64::from_str_radix(
        member["identity"]["cluster"]
            .as_str()
            .context("a cluster ID")?,
        16,
    )?;
    let url = member["voters"][0]["peer_urls"][0]
        .as_str()
        .context("a peer URL")?;
    let hostile = hostile_to(url, cluster, &["worker1"], true, false)?;
    let root = hostile_roots(&hostile, &tls())?.pop().context("a worker")?;
    let image = DiskBuilder::new(256 * MIB)
        .partition(Partition::new(FileSystem::Ext4, "/"))
        .build(&worker)?;
    image.mounted(|at| {
        fs::create_dir_all(at.join("var/lib"))?;
        etcd::copy(&root.join("etc"), &at.join("etc"))?;
        fs::create_dir_all(at.join("bin"))?;
        etcd::copy(&root.join(guest::DATA_DIR), &at.join(guest::DATA_DIR))
    })?;
    let before = disk.mounted_read_only(sums)?;
    for order in [[&master, &worker], [&worker, &master]] {
        let ran = Cmd::new(rescue_binary())
            .args(["repair", "--yes", "--only", "etcd"])
            .args(order)
            .run()?;
        let is_named =
            ran.stderr.contains("worker1 (") && ran.stderr.contains("no private key of its CA");
        ensure!(ran.code == 3 && is_named, "{}", ran.transcript());
        ensure!(
            ran.stderr.contains("--trust") && !ran.stdout.contains("cannot be mended in place"),
            "{}",
            ran.transcript()
        );
        ensure!(
            disk.mounted_read_only(sums)? == before,
            "{}",
            ran.transcript()
        );
    }
    let keys = Cmd::new(rescue_binary())
        .args(["etcd", "keys"])
        .arg(&master)
        .run()?;
    ensure!(
        keys.code == 0 && !keys.stdout.contains(FORGED),
        "{}",
        keys.transcript()
    );
    // Vouched for it counts as a member, and the control plane's history is the newer one all the
    // same.
    let trust = [
        "--trust",
        "worker1",
        "--yes",
        "--accept-loss",
        "--only",
        "etcd",
    ];
    let ran = Cmd::new(rescue_binary())
        .arg("repair")
        .args(trust)
        .args([&master, &worker])
        .run()?;
    ensure!(
        ran.code == 0 && disk.mounted_read_only(sums)? == before,
        "{}",
        ran.transcript()
    );
    Ok(())
}
