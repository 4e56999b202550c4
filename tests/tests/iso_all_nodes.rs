//! Three control planes' disks in one machine that boots from the ISO, and nobody there:
//! `rescue.auto=repair rescue.all-nodes` brings their etcd back, on ext4, btrfs and XFS by the
//! ISO's own kernel, as one change. Real etcd judges what is on the disks then; undo puts every
//! byte back.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use tests::Cmd;
use tests::disk::{Disk, DiskBuilder, FileSystem, MIB, Partition};
use tests::etcd::{self, Cluster, Version};
use tests::qemu::{BOOT, Controller, Firmware, Medium, Vm, iso};
use tests::snapshot::{State, snapshot};

/// How long one command may take in an emulated machine.
const ANSWER: Duration = Duration::from_secs(400);
/// Room for a member of some 125 MiB and the one that is built beside it.
const SIZE: u64 = 512 * MIB;

/// What one file of the log is as long as before anything is in it; a member has it twice.
const LOG_FILE: u64 = 60 * MIB;

/// Three members with the little of a control plane that etcd's repair asks for, killed.
fn cluster() -> Result<Cluster> {
    let mut cluster = Cluster::prepare(&Version::debian(), 3, 40, |folder, name| {
        folder.join(name).join("var/lib/etcd")
    })?;
    for member in &cluster.members {
        let root = root(&member.data_dir);
        for folder in ["bin", "var/lib", "etc/kubernetes/manifests"] {
            fs::create_dir_all(root.join(folder))?;
        }
        fs::write(root.join("etc/hostname"), format!("{}\n", member.name))?;
        fs::write(
            root.join("etc/os-release"),
            "ID=debian\nPRETTY_NAME=Debian\n",
        )?;
        fs::write(
            root.join("etc/fstab"),
            format!("LABEL={} / auto defaults 0 1\n", member.name),
        )?;
        let manifest = format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: etcd, namespace: kube-system}}\nspec:\n  \
             containers:\n  - name: etcd\n    \
             image: k8s.gcr.io/etcd:3.4.13-0\n    command: [etcd, --data-dir=/var/lib/etcd, \
             --name={}, --initial-advertise-peer-urls={}]\n",
            member.name,
            member.peer_url()
        );
        fs::write(root.join("etc/kubernetes/manifests/etcd.yaml"), manifest)?;
    }
    cluster.run()?;
    cluster.put_many("k", 200, &"value".repeat(200))?;
    for number in 0..60 {
        cluster.put(&format!("small{number}"), "x")?;
    }
    Ok(cluster)
}

/// The guest that holds a data folder.
fn root(data_dir: &Path) -> &Path {
    data_dir.ancestors().nth(3).unwrap_or(data_dir)
}

/// A disk with a member's guest on it.
fn disk(path: &Path, kind: FileSystem, name: &str, root: &Path) -> Result<Disk> {
    let disk = DiskBuilder::new(SIZE)
        .partition(Partition::new(kind, "/").label(name))
        .build(path)?;
    disk.mounted(|to| etcd::copy(&root.join("."), to))?;
    Ok(disk)
}

/// Everything of a guest that a repair may change, and every byte of etcd's.
fn state(root: &Path) -> Result<(BTreeMap<PathBuf, State>, String)> {
    let list = "find . -printf '%p %y %m %u %s\\n' | sort; find . -type f -print0 | sort -z | \
        xargs -0 -r sha256sum";
    let etcd = Cmd::new("sh")
        .args(["-c", list])
        .dir(root.join("var/lib/etcd"))
        .ok()?
        .stdout;
    Ok((snapshot(root)?, etcd))
}

/// What the disks hold in the members' places, and real etcd on it: all keys, on all three, and new
/// writes.
fn judge(cluster: &mut Cluster, disks: &[Disk], held: &(Vec<etcd::Key>, i64)) -> Result<()> {
    for (disk, member) in disks.iter().zip(&cluster.members) {
        disk.assert_clean()?;
        fs::remove_dir_all(&member.data_dir)?;
        disk.mounted_read_only(|root| etcd::copy(&root.join("var/lib/etcd"), &member.data_dir))?;
    }
    cluster.run().context("starting what was repaired")?;
    for number in 0..disks.len() {
        let now = cluster.keys(number)?;
        ensure!(
            now == *held,
            "m{}: revision {} instead of {}, or other keys",
            number + 1,
            now.1,
            held.1
        );
        ensure!(
            cluster.hash(number, held.1)? == cluster.hash(0, held.1)?,
            "hashes differ"
        );
    }
    ensure!(
        cluster.list()?.len() == disks.len(),
        "{:?}",
        cluster.list()?
    );
    cluster.put("new", "write")?;
    for number in 0..disks.len() {
        let got = cluster
            .ctl(number)
            .args(["get", "new", "--print-value-only"])
            .ok()?
            .stdout;
        ensure!(
            got.trim() == "write",
            "m{} does not have the new write: {got}",
            number + 1
        );
    }
    cluster.kill()
}

#[test]
fn three_control_planes_are_repaired_unattended_as_one() -> Result<()> {
    let folder = tempfile::Builder::new()
        .prefix("rescue-iso-all-nodes-")
        .tempdir()?;
    let arguments = [
        "rescue.auto=repair",
        "rescue.all-nodes",
        "rescue.only=etcd",
        "rescue.after=shell",
    ];
    let iso = iso(&arguments)?;
    let mut cluster = cluster()?;
    let held = cluster.keys(0)?;
    cluster.kill()?;
    // One lost its database's end, one everything.
    let dirs: Vec<_> = cluster
        .members
        .iter()
        .map(|member| member.data_dir.clone())
        .collect();
    let database = fs::OpenOptions::new()
        .write(true)
        .open(dirs[1].join("member/snap/db"))?;
    database.set_len(8192)?;
    fs::remove_dir_all(dirs[2].join("member"))?;
    let logs = fs::read_dir(dirs[0].join("member/wal"))?.map(|file| Ok(file?.metadata()?.len()));
    let logs: u64 = logs.sum::<Result<u64>>()?;
    ensure!(
        logs > LOG_FILE,
        "{logs} bytes of logs are no member of a usual size"
    );

    let kinds = [FileSystem::Ext4, FileSystem::Btrfs, FileSystem::Xfs];
    let mut disks = Vec::new();
    for (kind, member) in kinds.into_iter().zip(&cluster.members) {
        let image = folder.path().join(format!("{}.img", member.name));
        disks.push(disk(&image, kind, &member.name, root(&member.data_dir))?);
    }
    let before = disks
        .iter()
        .map(|disk| disk.mounted_read_only(state))
        .collect::<Result<Vec<_>>>()?;

    let vm = Vm::new(Firmware::Bios, Medium::Cd, &iso, 512);
    let vm = disks
        .iter()
        .fold(vm, |vm, disk| vm.disk(Controller::VirtioBlk, &disk.path));
    let mut machine = vm.start()?;
    machine.expect("=== rescue receipt", BOOT)?;
    eprintln!("started {:.1} s after power on", machine.up().as_secs_f64());
    let said = machine.expect("rescue: exit ", ANSWER)?;
    machine
        .expect("0\n", ANSWER)
        .with_context(|| said.clone())?;
    eprintln!(
        "repaired {:.1} s after power on",
        machine.up().as_secs_f64()
    );
    ensure!(said.contains("G1"), "{said}");
    machine.expect("This is a shell.", ANSWER)?;
    // Nothing of the guests is mounted any more: this is what the next boot would see.
    let repaired = disks.iter().zip(&cluster.members);
    let repaired = repaired.map(|(disk, member)| {
        disk.copy_to(&folder.path().join(format!("{}-repaired.img", member.name)))
    });
    let repaired = repaired.collect::<Result<Vec<_>>>()?;

    let undone = machine.shell(
        "rescue undo --yes /dev/vda /dev/vdb /dev/vdc; echo code $?",
        ANSWER,
    )?;
    ensure!(undone.contains("\ncode 0\n"), "{undone}");
    machine.send("poweroff -f\r")?;
    machine.wait_off(ANSWER)?;
    eprintln!(
        "undone and off {:.1} s after power on",
        machine.up().as_secs_f64()
    );
    let said = machine.transcript();
    drop(machine);
    ensure!(
        !said.contains("Kernel panic") && !said.contains("panicked at"),
        "{said}"
    );

    judge(&mut cluster, &repaired, &held)?;
    for (disk, before) in disks.iter().zip(&before) {
        disk.assert_clean()?;
        ensure!(
            disk.mounted_read_only(state)? == *before,
            "{} is not what it was",
            disk.path.display()
        );
    }
    Ok(())
}
