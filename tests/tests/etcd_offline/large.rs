//! Databases of the size that clusters of some age have: damage that no start reads, in the midst
//! of a hundred MiB, is found without being asked for.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};
use tests::etcd::{Version, files};
use tests::{Cmd, rescue_binary};

use super::members::judge;
use super::together::Subject;

const PAGE: u64 = 4096;
/// Bytes of each large value.
const VALUE: usize = 1_200_000;

/// Pages that begin a value of more than a MiB: leaves (bbolt's flag 2) with that many pages of
/// overflow.
fn heads_of_large_values(db: &Path) -> Result<Vec<u64>> {
    let bytes = fs::read(db)?;
    let word = |page: &[u8], at: usize, length: usize| {
        page[at..at + length]
            .iter()
            .rev()
            .fold(0u64, |sum, byte| (sum << 8) | u64::from(*byte))
    };
    let is_head = |(number, page): &(u64, &[u8])| {
        word(page, 0, 8) == *number && word(page, 8, 2) == 2 && word(page, 12, 4) > 256
    };
    Ok((0u64..)
        .zip(bytes.chunks_exact(4096))
        .filter(is_head)
        .map(|(number, _)| number)
        .collect())
}

/// The check is done while the new database is written: nothing of that stays.
fn refuses_to_build_from(db: &Path) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let output = folder.path().join("made");
    let rebuild = Cmd::new(rescue_binary()).args([
        "etcd",
        "rebuild",
        "--member",
        "m1=http://127.0.0.1:2380",
        "--from",
    ]);
    let refused = rebuild.arg(db).arg("--output").arg(&output).run()?;
    let is_told = refused.stderr.contains("the database is damaged")
        && refused.stderr.contains("rescue etcd salvage");
    ensure!(
        refused.code == 3 && is_told && !output.exists(),
        "{}",
        refused.transcript()
    );
    Ok(())
}

#[test]
fn damage_within_a_large_database_is_found_and_mended() -> Result<()> {
    let mut subject = Subject::with_more(&Version::debian(), |cluster| {
        (0..70).try_for_each(|number| cluster.put_large(&format!("bulk{number}"), VALUE))
    })?;
    let dirs: Vec<PathBuf> = subject
        .cluster
        .members
        .iter()
        .map(|member| member.data_dir.clone())
        .collect();
    let db = files::database(&dirs[1]);
    ensure!(
        fs::metadata(&db)?.len() > 80 << 20,
        "the database is no large one"
    );
    let root = subject.roots()[1].clone();
    let inspect = || {
        Cmd::new(rescue_binary())
            .args(["inspect", "--root"])
            .arg(&root)
            .run()
    };
    let well = inspect()?;
    ensure!(
        well.stdout.contains("it will start"),
        "{}",
        well.transcript()
    );

    // Some are of values that were moved within the file since.
    let heads = heads_of_large_values(&db)?;
    ensure!(
        heads.len() >= 30,
        "{} large values in {}",
        heads.len(),
        db.display()
    );
    for head in &heads[..15] {
        files::write_at(&db, &[0; 4096], head * PAGE)?;
    }
    let ill = inspect()?;
    ensure!(
        ill.stdout.contains("the database is damaged: page"),
        "{}",
        ill.transcript()
    );
    refuses_to_build_from(&db)?;
    let ran = subject.rescue("repair", &[0, 1, 2], &["--only", "etcd"])?;
    ensure!(
        ran.code == 0 && ran.stdout.contains("G0: "),
        "{}",
        ran.transcript()
    );
    judge(&mut subject.cluster, &[0, 1, 2], &subject.held)?;

    // A value that is another: only the others' databases can tell, and nothing else is broken.
    subject.put_back()?;
    for head in &heads[..15] {
        files::write_at(&db, &[b'y'; 4096], (head + 20) * PAGE)?;
    }
    ensure!(
        inspect()?.stdout.contains("it will start"),
        "a value counts as damage"
    );
    let ran = subject.rescue("repair", &[0, 1, 2], &[])?;
    ensure!(
        ran.stdout
            .contains("the database holds something else than those of"),
        "{}",
        ran.transcript()
    );
    ensure!(ran.stdout.contains("G0: "), "{}", ran.transcript());
    judge(&mut subject.cluster, &[0, 1, 2], &subject.held)
}
