//! `rescue repair` of three control planes killed between two of their disks. Real etcd, started on
//! the disks as they are with the flags of a cluster's first master (which start an empty member
//! where none is), must not start where a fence stands; the next repair completes it, and real etcd
//! runs on all three with every key; undo puts back what was there.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};
use tests::etcd::{self, Version};
use tests::{Cmd, Ran, rescue_faulty};

use super::members::judge;
use super::together::Subject;

const NUMBERS: [usize; 3] = [0, 1, 2];

/// One lost its log, another its database: all three become a new cluster.
fn damaged(subject: &Subject) -> Result<Vec<PathBuf>> {
    subject.put_back()?;
    let dirs: Vec<PathBuf> = subject
        .cluster
        .members
        .iter()
        .map(|member| member.data_dir.clone())
        .collect();
    fs::remove_dir_all(dirs[0].join("member/wal"))?;
    fs::OpenOptions::new()
        .write(true)
        .open(dirs[1].join("member/snap/db"))?
        .set_len(8192)?;
    Ok(dirs)
}

fn repair(subject: &Subject, at: u64, count: &Path) -> Result<Ran> {
    let roots = subject.roots();
    let given = roots
        .iter()
        .flat_map(|root| ["--root".into(), root.clone().into_os_string()]);
    let words = ["repair", "--yes", "--only", "etcd"].map(Into::into);
    rescue_faulty(at, words.into_iter().chain(given))
        .env("RESCUE_COUNT_CALLS", count)
        .run()
}

/// The steps at which the phases end, of a repair that nobody stops: the first guest fenced, all
/// fenced, the first one done.
fn moments(subject: &Subject) -> Result<[u64; 3]> {
    damaged(subject)?;
    let folder = tempfile::tempdir()?;
    let count = folder.path().join("calls");
    let ran = repair(subject, 0, &count)?;
    ensure!(ran.code == 0, "{}", ran.transcript());
    let text = fs::read_to_string(&count)?;
    let points: Vec<&str> = text
        .lines()
        .filter_map(|line| line.strip_prefix("point "))
        .collect();
    let first = |name: &str| {
        points
            .iter()
            .position(|point| *point == name)
            .map_or(0, |at| at as u64 + 1)
    };
    let moments = ["phase: fenced", "phase: all fenced", "phase: done"].map(first);
    ensure!(moments[0] > 0 && moments.is_sorted(), "{points:?}");
    Ok(moments)
}

#[test]
fn killed_between_two_disks_nothing_starts_that_must_not() -> Result<()> {
    let version = Version::debian();
    let mut subject = Subject::new(&version)?;
    let moments = moments(&subject)?;
    for (number, at) in moments.into_iter().enumerate() {
        let dirs = damaged(&subject)?;
        let before = tempfile::tempdir()?;
        for dir in &dirs {
            Cmd::new("cp")
                .arg("-a")
                .arg(dir)
                .arg(before.path().join(name(dir)))
                .ok()?;
        }
        let killed = repair(&subject, at, &before.path().join("calls"))?;
        ensure!(killed.code == -1, "{}", killed.transcript());

        let fenced: Vec<&PathBuf> = dirs
            .iter()
            .filter(|dir| dir.join("member").is_file())
            .collect();
        ensure!(fenced.len() == [1, 3, 2][number], "{fenced:?} at {at}");
        for dir in fenced {
            let text = fs::read(dir.join("member"))?;
            let started = etcd::starts(&version, dir)?;
            ensure!(
                started.is_err(),
                "etcd started on {} at {at}",
                dir.display()
            );
            ensure!(
                fs::read(dir.join("member"))? == text,
                "etcd changed {} at {at}",
                dir.display()
            );
        }
        if number == 1 {
            let undone = subject.rescue("undo", &NUMBERS, &[])?;
            ensure!(undone.code == 0, "{}", undone.transcript());
            for dir in &dirs {
                Cmd::new("diff")
                    .arg("-r")
                    .arg(dir)
                    .arg(before.path().join(name(dir)))
                    .ok()?;
            }
        }
        let ran = subject.rescue("repair", &NUMBERS, &["--only", "etcd"])?;
        ensure!(ran.code == 0, "{}", ran.transcript());
        judge(&mut subject.cluster, &NUMBERS, &subject.held)?;
    }
    Ok(())
}

/// The member's, which is the folder of the guest.
fn name(data_dir: &Path) -> String {
    data_dir
        .ancestors()
        .nth(3)
        .and_then(Path::file_name)
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned()
}
