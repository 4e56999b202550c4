//! Files of a real node; where they come from is in tests/fixtures/README.md.

use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::command::Cmd;

/// UUID of the root file system in the node's fstab.
pub const ROOT_UUID: &str = "7da1d924-1bd3-4b44-baae-16340bfc8a53";

/// The node's name.
pub const NODE_NAME: &str = "k8s-master01";

/// The key in etcd of the ConfigMap that was written before the node was powered off.
pub const MARKER_KEY: &str = "/registry/configmaps/default/marker";

/// A word of the marker's value, to be found in etcd's answer after a repair.
pub const MARKER_WORD: &str = "blood-on-the-memory-stick";

/// The packed control-plane node.
pub fn control_plane_archive() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/control-plane-2023.tar.zst")
}

/// Unpacks the control-plane node into an existing folder, with owners and extended attributes;
/// needs root.
///
/// The archive has no /boot, /home or /tmp: the empty folders of a Debian system are added.
pub fn unpack_control_plane(into: &Path) -> Result<()> {
    Cmd::new("tar")
        .args([
            "--extract",
            "--xattrs",
            "--xattrs-include=*",
            "--numeric-owner",
            "--zstd",
            "--file",
        ])
        .arg(control_plane_archive())
        .arg("--directory")
        .arg(into)
        .ok()?;
    for folder in [
        "boot", "dev", "home", "mnt", "opt", "proc", "run", "srv", "sys", "tmp", "usr/bin",
        "usr/sbin",
    ] {
        std::fs::create_dir_all(into.join(folder))?;
    }
    clamp_times(into)
}

/// As [`unpack_control_plane`], without etcd's data: 2 MiB instead of 125.
pub fn unpack_small_control_plane(into: &Path) -> Result<()> {
    Cmd::new("tar")
        .args([
            "--extract",
            "--xattrs",
            "--xattrs-include=*",
            "--numeric-owner",
            "--zstd",
        ])
        .args([
            "--exclude=./var/lib/etcd/member",
            "--exclude=var/lib/etcd/member",
            "--file",
        ])
        .arg(control_plane_archive())
        .arg("--directory")
        .arg(into)
        .ok()?;
    for folder in [
        "boot", "dev", "home", "mnt", "opt", "proc", "run", "srv", "sys", "tmp", "usr/bin",
        "usr/sbin",
    ] {
        std::fs::create_dir_all(into.join(folder))?;
    }
    clamp_times(into)
}

/// Makes nothing on a guest newer than the day its machine died, 2024-02-25: folders just made and
/// the fixture's files of the day it was packed would otherwise contradict the clock of a machine
/// that runs the tests on an earlier day.
pub fn clamp_times(root: &Path) -> Result<()> {
    // From within: `root` may lead through a descriptor of this process that `find` does not
    // inherit.
    Cmd::new("find")
        .dir(root)
        .arg(".")
        .args([
            "-xdev",
            "-newermt",
            "2024-02-26 00:00 UTC",
            "-exec",
            "touch",
            "--no-dereference",
            "--date=2024-02-25 06:25 UTC",
        ])
        .args(["{}", "+"])
        .ok()?;
    Ok(())
}
