//! `rescue disks`: many disks of several machines at once, drawn and grouped.

use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use tests::disk::MIB;
use tests::{Cmd, lvm, rescue};

const VAR: &str = "5f0c6b1e-8a54-4b0e-9d3c-2f6f2f0f8f11";

/// An ext4 of these files, made by mkfs.ext4.
fn ext4(image: &Path, uuid: Option<&str>, files: &[(&str, &str)]) -> Result<()> {
    let tree = tempfile::tempdir()?;
    for (name, text) in files {
        let path = tree.path().join(name);
        fs::create_dir_all(path.parent().context("a file in a folder")?)?;
        fs::write(path, text)?;
    }
    if files.iter().any(|(name, _)| *name == "etc/hostname") {
        fs::create_dir_all(tree.path().join("usr/bin"))?;
        symlink("usr/bin", tree.path().join("bin"))?;
        fs::create_dir_all(tree.path().join("var"))?;
    }
    File::create(image)?.set_len(16 * MIB)?;
    let mut mkfs = Cmd::new("mkfs.ext4")
        .args(["-q", "-F", "-E", "lazy_itable_init=0", "-d"])
        .arg(tree.path());
    if let Some(uuid) = uuid {
        mkfs = mkfs.args(["-U", uuid]);
    }
    mkfs.arg(image).ok()?;
    Ok(())
}

fn disks(paths: &[PathBuf]) -> Result<Value> {
    let words = ["disks", "--json"].map(PathBuf::from);
    rescue(words.iter().chain(paths)).ok()?.json()
}

fn node<'a>(all: &'a Value, name: &str) -> Result<(usize, &'a Value)> {
    let nodes = all["nodes"].as_array().context("no nodes")?;
    let found = nodes
        .iter()
        .enumerate()
        .find(|(_, node)| node["name"] == name);
    found.with_context(|| format!("no node {name}: {nodes:?}"))
}

/// Machines cloned from one template, each with a /var of its own on another disk whose UUID is the
/// same: journald's folder tells whose each is.
#[test]
fn clones_find_their_own_data_disks_by_their_machine_id() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let at = |name: String| folder.path().join(name);
    let mut paths = Vec::new();
    for number in 1..=6 {
        let (name, id) = (format!("worker{number}"), format!("{number}").repeat(32));
        let fstab = format!("UUID={VAR} /var ext4 defaults 0 2\n");
        let root = at(format!("{name}.img"));
        let files = [
            ("etc/hostname", name.as_str()),
            ("etc/machine-id", id.as_str()),
            ("etc/fstab", fstab.as_str()),
        ];
        ext4(&root, None, &files)?;
        let var = at(format!("{name}_1.img"));
        ext4(
            &var,
            Some(VAR),
            &[(&format!("log/journal/{id}/system.journal"), "LPKSHHRH")],
        )?;
        paths.push(root);
        // The data disks come in the other order.
        paths.insert(0, var);
    }
    let all = disks(&paths)?;
    ensure!(all["disks"].as_array().map(Vec::len) == Some(12), "{all:#}");
    for number in 1..=6 {
        let name = format!("worker{number}");
        let (index, worker) = node(&all, &name)?;
        let own = [at(format!("{name}.img")), at(format!("{name}_1.img"))]
            .map(|path| path.display().to_string());
        ensure!(worker["disks"] == serde_json::json!(own), "{worker:#}");
        ensure!(
            worker["unresolved_fstab"] == serde_json::json!([]),
            "{worker:#}"
        );
        let disk = all["disks"]
            .as_array()
            .and_then(|disks| disks.iter().find(|disk| disk["path"] == own[1]));
        let disk = disk.context("no data disk")?;
        ensure!(
            disk["volumes"][0]["roles"] == serde_json::json!([{"node": index, "role": "/var"}]),
            "{disk:#}"
        );
    }
    let text = rescue([PathBuf::from("disks")].iter().chain(&paths))
        .ok()?
        .stdout;
    ensure!(
        text.contains("worker6_1.img") && text.contains("/var") && text.contains("Nodes"),
        "{text}"
    );

    // A data disk that nothing tells whose it is stays one that cannot be guessed.
    for number in 1..=6 {
        ext4(
            &at(format!("worker{number}_1.img")),
            Some(VAR),
            &[("log/messages", "")],
        )?;
    }
    let all = disks(&paths)?;
    let (_, worker) = node(&all, "worker1")?;
    ensure!(
        worker["unresolved_fstab"][0]
            .as_str()
            .is_some_and(|line| line.contains("cannot be guessed")),
        "{all:#}"
    );
    ensure!(
        all["leftovers"].as_array().map(Vec::len) == Some(6),
        "{all:#}"
    );
    Ok(())
}

/// A volume group over two disks, a disk with nothing on it, a file that is no disk and one that is
/// not there: all are named, none is in the way.
#[test]
fn what_cannot_be_read_is_named_beside_what_can() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let at = |name: &str| folder.path().join(name);
    let group = [at("one.img"), at("two.img")];
    for disk in &group {
        File::create(disk)?.set_len(24 * MIB)?;
    }
    let root = at("root.ext4");
    let fstab = "/dev/vg/root / ext4 defaults 0 1\n/dev/mapper/vg-swap none swap sw 0 0\n";
    ext4(
        &root,
        None,
        &[("etc/hostname", "node\x1b[31m1"), ("etc/fstab", fstab)],
    )?;
    lvm::on(&group, |devices, run| {
        let names: Vec<&str> = devices.iter().map(String::as_str).collect();
        run(&[&["pvcreate", "-q"], names.as_slice()].concat())?;
        run(&[&["vgcreate", "-q", "vg"], names.as_slice()].concat())?;
        run(&[
            "lvcreate", "-q", "-an", "-Zn", "-Wn", "-n", "root", "-L", "16m", "vg", names[1],
        ])?;
        run(&[
            "lvcreate", "-q", "-an", "-Zn", "-Wn", "-n", "swap", "-L", "4m", "vg", names[0],
        ])?;
        lvm::Places::of("vg/root", 0, devices, &group, run)?.pour(&root)?;
        let swap = at("swap");
        File::create(&swap)?.set_len(4 * MIB)?;
        Cmd::new("mkswap").arg(&swap).ok()?;
        lvm::Places::of("vg/swap", 0, devices, &group, run)?.pour(&swap)
    })?;
    let (nothing, missing) = (at("nothing.img"), at("missing.img"));
    File::create(&nothing)?.set_len(MIB)?;
    let paths = [
        group[0].clone(),
        group[1].clone(),
        nothing,
        missing,
        folder.path().to_owned(),
    ];
    let all = disks(&paths)?;
    let on = [0, 1].map(|index: usize| group[index].display().to_string());
    ensure!(
        all["volume_groups"][0]["physical_volumes"] == serde_json::json!(on),
        "{all:#}"
    );
    // The swap alone is on the first disk, but the group needs both.
    let mut its = all["nodes"][0]["disks"]
        .as_array()
        .context("no disks")?
        .clone();
    its.sort_by_key(|disk| disk.as_str().map(str::to_owned));
    ensure!(its == on.map(Value::from), "{its:?}");
    let roles: Vec<&Value> = all["volume_groups"][0]["volumes"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|v| &v["roles"][0]["role"])
        .collect();
    ensure!(roles == ["/", "swap"], "{all:#}");
    ensure!(
        all["disks"][0]["volumes"][0]["volume_group"] == 0,
        "{all:#}"
    );
    ensure!(
        all["leftovers"].as_array().map(Vec::len) == Some(3),
        "{all:#}"
    );
    let text = rescue([PathBuf::from("disks")].iter().chain(&paths))
        .ok()?
        .stdout;
    for words in [
        "LVM2 physical volume 2 of 2 of vg",
        "└─ vg/swap",
        "does not exist",
        "is a folder",
    ] {
        ensure!(text.contains(words), "{words}: {text}");
    }
    ensure!(
        !text.contains('\x1b'),
        "a name from the disk reached the terminal as it is: {text:?}"
    );
    Ok(())
}
