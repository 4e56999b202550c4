//! Runs one transaction on images, in a process of its own that the crash tests can abort at any
//! point.
//!
//! `transaction-driver VERB MOUNT_POINT=KIND=IMAGE...`, VERB one of:
//! - `apply`: recovers, plans what is still to be done of [`plan`], applies it
//! - `undo`: undoes the newest run
//! - `runs`: prints the runs' states
//! - `dump`: prints every file with its attributes, one line each, from a read-only mount
//!
//! Exit codes: 0 done, 3 refused, 4 stopped part-way, 5 anything else. With `CUT_POWER` set, an
//! abort cuts the power of the file systems first: what was not synchronised is lost.
//! `CUT_POWER=late` lets their journals commit right before, so that names and sizes are there but
//! no bytes that nobody synchronised. With `FREE_NOTHING` set, `apply` frees nothing.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, Result};
use rescue::base::hash::sha256_hex;
use rescue::base::ui::Silent;
use rescue::change::Planned;
use rescue::change::{Change, Expect, FreeAction, Freeing, Prepared};
use rescue::disk::Backing;
use rescue::disk::loop_device::{LoopDevice, LoopOptions};
use rescue::guest::{FileSystem, Guest, GuestPath, SubvolumeName};
use rescue::mount::{Access, Mount};
use rescue::repair::{OpenOptions, RunInfo, WritableGuest, apply, recover, runs, undo};
use rescue::settings::Settings;
use rescue::tree::Usage;
use tests::crash::{NotClosed, drive, dump_folder};

fn main() -> ExitCode {
    drive(run)
}

fn run() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let verb = arguments.next().context("a verb is missing")?;
    let file_systems: Vec<FileSystem> = arguments
        .map(|argument| file_system(&argument))
        .collect::<Result<_>>()?;
    if verb == "dump" {
        return dump(&file_systems);
    }
    let options = OpenOptions {
        between_looks: Duration::from_millis(5),
    };
    let guest = WritableGuest::open_with("the image", &file_systems, &options)?;
    match verb.as_str() {
        "apply" => {
            let recovered = recover(&guest, &Silent)?;
            anyhow::ensure!(
                recovered.left_alone.is_empty(),
                "nobody else was here: {recovered:?}"
            );
            let prepared = plan(guest.guest())?;
            if prepared != Prepared::default() {
                let info = RunInfo::new(
                    Settings::default().now,
                    vec!["the tests' repair".to_owned()],
                );
                let applied = apply(&guest, prepared, &info, &Silent)?;
                // A call that a test lets fail may well be one that frees.
                let disturbed = std::env::var_os("RESCUE_FAIL_AT").is_some();
                anyhow::ensure!(disturbed || applied.left_alone.is_empty(), "{applied:?}");
            }
        }
        "undo" => {
            let undone = undo(&guest, None, &Silent)?;
            anyhow::ensure!(undone.kept.is_empty(), "{undone:?}");
        }
        "runs" => {
            for run in runs::list(guest.guest())? {
                println!("{} {:?}", run.sequence, run.state);
            }
        }
        other => anyhow::bail!("unknown verb {other}"),
    }
    guest.close().context(NotClosed)
}

fn file_system(argument: &str) -> Result<FileSystem> {
    let mut parts = argument.splitn(3, '=');
    let (Some(mount_point), Some(kind), Some(path)) = (parts.next(), parts.next(), parts.next())
    else {
        anyhow::bail!("{argument:?} is not MOUNT_POINT=KIND=IMAGE");
    };
    let path = PathBuf::from(path);
    let backing = if kind == "folder" {
        Backing::Folder(path.clone())
    } else {
        let length = fs::metadata(&path)
            .with_context(|| format!("looking at {}", path.display()))?
            .len();
        Backing::Range {
            path: path.clone(),
            offset: 0,
            length,
            sector_size: 512,
            block_device: false,
        }
    };
    // `btrfs:NAME:NUMBER`: a subvolume.
    let (kind, subvolume) = match kind.split_once(':') {
        None => (kind, None),
        Some((kind, subvolume)) => {
            let (name, id) = subvolume
                .split_once(':')
                .context("a subvolume without a number")?;
            (
                kind,
                Some(SubvolumeName {
                    id: id.parse()?,
                    path: name.into(),
                    snapshots: 0,
                }),
            )
        }
    };
    Ok(FileSystem {
        mount_point: GuestPath::new(mount_point),
        kind: kind.to_owned(),
        device: path.display().to_string(),
        uuid: None,
        usage: Usage::default(),
        backing,
        subvolume,
        has_errors: false,
    })
}

/// Everything a repair can do: freeing, replacing, creating, links, folders, removing. Only what is
/// not done yet.
fn plan(guest: &Guest) -> Result<Prepared> {
    let mut prepared = Prepared::default();
    let may_free = std::env::var_os("FREE_NOTHING").is_none();
    for (path, freeing) in [
        ("/var/log/messages-20240101", Freeing::Delete),
        ("/var/log/vmware-vmsvc.1.log", Freeing::Delete),
        ("/var/log/syslog.1", Freeing::Delete),
        ("/var/log/syslog", Freeing::KeepTail(64 << 10)),
    ] {
        prepared.free.extend(free(guest, path, freeing)?);
    }
    // Where all inodes are taken, these hold them.
    for n in 1..=30 {
        prepared
            .free
            .extend(free(guest, &tests::fill::rotated_log(n), Freeing::Delete)?);
    }
    if !may_free {
        prepared.free.clear();
    }
    for (path, content, mode) in [
        ("/etc/kubernetes/pki/apiserver.key", "a new key", 0o600),
        (
            "/etc/kubernetes/pki/apiserver.crt",
            "a new certificate",
            0o644,
        ),
        (
            "/var/lib/kubelet/pki/kubelet-client-2026.pem",
            "a new certificate and its key",
            0o600,
        ),
        (
            "/etc/kubernetes/manifests/etcd.yaml",
            "a new manifest",
            0o600,
        ),
        ("/home/me/.kube/config", "a new kubeconfig", 0o600),
        ("/etc/kubernetes/kubelet.conf", "a new kubelet.conf", 0o600),
    ] {
        prepared
            .changes
            .extend(write(guest, path, content.as_bytes(), mode)?);
    }
    let current = GuestPath::new("/var/lib/kubelet/pki/kubelet-client-current.pem");
    let link = Change::symlink(guest, &current, "kubelet-client-2026.pem")?;
    if !matches!(
        &link,
        Change::Symlink { target, expect: Expect::Symlink { target: now }, .. } if target == now
    ) {
        prepared.changes.push(link);
    }
    let folder = GuestPath::new("/etc/systemd/system/kubelet.service.d");
    let made = Change::make_dirs(guest, &folder, 0o755)?;
    let mut planned = Planned::over(guest.tree(), 0);
    for change in &made {
        planned.apply(change)?;
    }
    prepared.changes.extend(made);
    let planned = guest.with_tree(Rc::new(planned));
    prepared.changes.extend(write(
        &planned,
        "/etc/systemd/system/kubelet.service.d/90-rescue.conf",
        b"[Service]\n",
        0o644,
    )?);
    let stale = GuestPath::new("/etc/kubernetes/bootstrap-kubelet.conf");
    if guest.exists(&stale) {
        prepared.changes.push(Change::remove(guest, &stale)?);
    }
    Ok(prepared)
}

fn free(guest: &Guest, path: &str, freeing: Freeing) -> Result<Option<FreeAction>> {
    let path = GuestPath::new(path);
    if !guest.exists(&path) {
        return Ok(None);
    }
    let meta = guest.lstat(&path)?;
    if matches!(freeing, Freeing::KeepTail(keep) if meta.size <= keep) {
        return Ok(None);
    }
    let frees = meta.allocated.unwrap_or(0);
    Ok(Some(FreeAction {
        path: guest.resolve(&path)?,
        freeing,
        size: meta.size,
        mtime: meta.mtime,
        frees,
    }))
}

/// `None` where the file already holds the content.
fn write(guest: &Guest, path: &str, content: &[u8], mode: u32) -> Result<Option<Change>> {
    let change = Change::write(guest, &GuestPath::new(path), content, mode)?;
    let wanted = sha256_hex(content);
    Ok(match &change {
        Change::Write {
            expect: Expect::File { sha256 },
            ..
        } if *sha256 == wanted => None,
        _ => Some(change),
    })
}

fn dump(file_systems: &[FileSystem]) -> Result<()> {
    let mut lines = Vec::new();
    for file_system in file_systems {
        let Backing::Range { path, .. } = &file_system.backing else {
            anyhow::bail!("only images are dumped")
        };
        let device = LoopDevice::open(path, &LoopOptions::default())?;
        let mount = Mount::new(&device.path(), &file_system.kind, Access::ReadOnly)?;
        let below = file_system
            .subvolume
            .as_ref()
            .map(|subvolume| subvolume.path.as_path());
        let root = mount.path().join(below.unwrap_or(Path::new("")));
        dump_folder(&root, file_system.mount_point.as_path(), &mut lines)?;
        mount.unmount()?;
    }
    lines.sort();
    lines.iter().for_each(|line| println!("{line}"));
    Ok(())
}
