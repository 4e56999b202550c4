//! Runs one transaction over several guests, in a process of its own that the crash tests can abort
//! at any point.
//!
//! `set-driver VERB KIND NAME=PATH...`: KIND is `ext4` (PATH is an image) or `folder`; VERB one of:
//! - `apply`: finishes what was cut off, then replaces the member of all guests but the last, which
//!   is fenced (a single guest is replaced)
//! - `undo`: takes the newest run back on all of them
//! - `look`: prints what each guest's member is (`old`, `new`, `fence`, `missing`), then every file
//!   of it, a line each
//!
//! With `KEEP_IN` set, what does not fit is kept in that folder; a new member says that it takes
//! `MEMBER_BYTES`.
//!
//! Exit codes and environment as of `transaction-driver`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use rescue::base::ui::Silent;
use rescue::change::{BuildFolder, Change, FolderSink, Sources};
use rescue::disk::Backing;
use rescue::disk::loop_device::{LoopDevice, LoopOptions};
use rescue::guest::{FileSystem, Guest, GuestPath};
use rescue::mount::mount_writable;
use rescue::repair::kept::KeepIn;
use rescue::repair::set::{self, Part};
use rescue::repair::{OpenOptions, RunInfo, RunState, WritableGuest, runs};
use rescue::settings::Settings;
use rescue::tree::{FileKind, Usage};
use tests::crash::{NotClosed, drive, dump_folder};

const MEMBER: &str = "/var/lib/etcd/member";

fn main() -> ExitCode {
    drive(run)
}

fn run() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [verb, kind, guests @ ..] = words.as_slice() else {
        bail!("a verb and a kind are missing")
    };
    let disks: Vec<(&str, PathBuf)> = guests
        .iter()
        .map(|guest| {
            guest
                .split_once('=')
                .map(|(name, path)| (name, PathBuf::from(path)))
                .context("NAME=PATH")
        })
        .collect::<Result<_>>()?;
    if verb == "look" {
        return look(kind, &disks);
    }
    let options = OpenOptions {
        between_looks: Duration::from_millis(2),
    };
    let keep_in = std::env::var_os("KEEP_IN")
        .map(|path| KeepIn::open(Path::new(&path)).map(Rc::new))
        .transpose()?;
    let open = |(name, path): &(&str, PathBuf)| -> Result<WritableGuest> {
        let guest = WritableGuest::open_with(name, &[file_system(name, kind, path)?], &options)?;
        Ok(guest.keeping_in(keep_in.clone()))
    };
    let guests: Vec<WritableGuest> = disks.iter().map(open).collect::<Result<_>>()?;
    let all: Vec<&WritableGuest> = guests.iter().collect();
    match verb.as_str() {
        "apply" => apply(&all)?,
        "undo" => {
            let mut open = Vec::new();
            for guest in &guests {
                open.extend(
                    runs::list(guest.guest())?
                        .into_iter()
                        .filter(|run| run.state != RunState::Undone),
                );
            }
            let newest = open.last().map_or("none", |run| run.id.as_str());
            match all.as_slice() {
                [one] => drop(rescue::repair::undo(one, None, &Silent)?),
                several => drop(set::undo(several, newest, &Silent)?),
            }
        }
        other => bail!("unknown verb {other}"),
    }
    guests
        .into_iter()
        .try_for_each(|guest| guest.close().context(NotClosed))
}

fn apply(guests: &[&WritableGuest]) -> Result<()> {
    let recovered = set::recover(guests, &Silent)?;
    ensure!(
        recovered.left_alone.is_empty(),
        "nobody else was here: {recovered:?}"
    );
    let last = guests.len() - 1;
    let wanted = |n: usize| {
        if n == last && last > 0 {
            "fence"
        } else {
            "new"
        }
    };
    let now: Vec<&str> = guests
        .iter()
        .map(|guest| state(guest.guest()))
        .collect::<Result<_>>()?;
    if now.iter().enumerate().all(|(n, state)| *state == wanted(n)) {
        return Ok(());
    }
    ensure!(
        now.iter().all(|state| *state == "old"),
        "half of it was left: {now:?}"
    );
    let part = |(n, guest): (usize, &&'_ WritableGuest)| -> Result<Part<'_>> {
        let change = match wanted(n) {
            "fence" => Change::fence(guest.guest(), &MEMBER.into(), "it is no longer a member")?,
            _ => Change::replace_folder(guest.guest(), &MEMBER.into(), Rc::new(FromTheFirst))?,
        };
        Ok(Part {
            guest: guests[n],
            name: guest.guest().source.clone(),
            changes: vec![change],
        })
    };
    let parts = guests.iter().enumerate().map(part).collect::<Result<_>>()?;
    let info = RunInfo::new(
        Settings::default().now,
        vec!["the tests' repair".to_owned()],
    );
    set::apply(parts, &[], &info, &Silent).map(|_| ())
}

/// The first one's database for all, and a log of their own.
#[derive(Debug)]
struct FromTheFirst;

impl BuildFolder for FromTheFirst {
    fn build(&self, sources: &Sources<'_>, sink: &mut dyn FolderSink) -> Result<()> {
        sink.folder(Path::new("snap"), 0o700)?;
        sink.copy(
            Path::new("snap/db"),
            sources.get("m1")?,
            &GuestPath::new(MEMBER).join("snap/db"),
        )?;
        sink.folder(Path::new("wal"), 0o700)?;
        sink.file(Path::new("wal/0.wal"), 0o600)?
            .write_all(b"new log, the same for all")?;
        Ok(())
    }

    fn bytes(&self) -> u64 {
        std::env::var("MEMBER_BYTES")
            .ok()
            .and_then(|bytes| bytes.parse().ok())
            .unwrap_or(64 << 10)
    }

    fn verify(&self, guest: &Guest, folder: &GuestPath) -> Result<()> {
        ensure!(
            guest
                .read(&folder.join("snap/db"))?
                .ends_with(b"data of m1"),
            "the database is not that of m1"
        );
        ensure!(
            guest
                .read_text(&folder.join("wal/0.wal"))?
                .starts_with("new log"),
            "the log is not new"
        );
        Ok(())
    }
}

fn state(guest: &Guest) -> Result<&'static str> {
    let member = GuestPath::new(MEMBER);
    if !guest.exists(&member) {
        return Ok("missing");
    }
    if guest.stat(&member)?.kind == FileKind::Regular {
        return Ok("fence");
    }
    let log = guest.read_text(&member.join("wal/0.wal"))?;
    Ok(match log.split(' ').next() {
        Some("old") => "old",
        Some("new") => "new",
        _ => bail!("the log says {log:?}"),
    })
}

fn file_system(name: &str, kind: &str, path: &Path) -> Result<FileSystem> {
    let backing = match kind {
        "folder" => Backing::Folder(path.to_path_buf()),
        _ => {
            let length = fs::metadata(path)
                .with_context(|| format!("looking at {}", path.display()))?
                .len();
            Backing::Range {
                path: path.to_path_buf(),
                offset: 0,
                length,
                sector_size: 512,
                block_device: false,
            }
        }
    };
    Ok(FileSystem {
        mount_point: GuestPath::new("/"),
        kind: kind.to_owned(),
        device: path.display().to_string(),
        uuid: Some(format!("uuid of {name}")),
        usage: Usage::default(),
        backing,
        subvolume: None,
        has_errors: false,
    })
}

/// As the next boot would see it: mounting replays the file system's own journal.
fn look(kind: &str, disks: &[(&str, PathBuf)]) -> Result<()> {
    for (name, path) in disks {
        if kind == "folder" {
            look_at(name, path)?;
            continue;
        }
        let device = LoopDevice::open(
            path,
            &LoopOptions {
                read_only: false,
                ..LoopOptions::default()
            },
        )?;
        let mount = mount_writable(&device.path(), kind)?;
        look_at(name, &mount.path().join("."))?;
        mount.unmount()?;
    }
    Ok(())
}

fn look_at(name: &str, root: &Path) -> Result<()> {
    let plain = Guest::new(
        name,
        Rc::new(rescue::tree::FolderTree::open(root)?),
        Vec::new(),
    );
    println!("state {name} {}", state(&plain)?);
    let mut lines = Vec::new();
    dump_folder(root, Path::new("/"), &mut lines)?;
    lines.sort();
    lines.iter().for_each(|line| println!("{name} {line}"));
    Ok(())
}
