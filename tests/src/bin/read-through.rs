//! How fast a root file system is read through what it lies on, for scripts/bench: the same file
//! system on a plain partition and in a logical volume, in turn, in one process. Prints
//! `SOURCE RAW FILE` each: the best in MiB/s, which other work on the machine disturbs least, of
//! reading the volume's bytes in order, and of reading one file of it through the guest's tree.

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use argh::FromArgs;
use rescue::disk::ReadAt;
use rescue::guest::{Discovery, look_over};

/// Compares reading through disks that hold the same file system.
#[derive(FromArgs)]
struct Arguments {
    /// disks
    #[argh(positional)]
    disks: Vec<PathBuf>,
    /// a file of the guest, absolute
    #[argh(option)]
    file: PathBuf,
    /// how many times (default 9)
    #[argh(option, default = "9")]
    rounds: usize,
}

const PIECE: usize = 1 << 20;

fn main() -> Result<()> {
    let arguments: Arguments = argh::from_env();
    let all = arguments
        .disks
        .iter()
        .map(|disk| look_over(std::slice::from_ref(disk), &[]))
        .collect::<Result<Vec<_>>>()?;
    let mut figures = vec![(Vec::new(), Vec::new()); all.len()];
    // One round more than is counted, which fills the caches.
    for round in 0..=arguments.rounds {
        for (found, (raw, file)) in all.iter().zip(&mut figures) {
            let (one, other) = (read_raw(found)?, read_file(found, &arguments.file)?);
            if round > 0 {
                raw.push(one);
                file.push(other);
            }
        }
    }
    for (disk, (raw, file)) in arguments.disks.iter().zip(&figures) {
        println!("{} {:.0} {:.0}", disk.display(), best(raw), best(file));
    }
    Ok(())
}

fn read_raw(found: &Discovery) -> Result<f64> {
    let device = &found
        .guests
        .first()
        .context("no system")?
        .file_systems
        .first()
        .context("no root")?
        .device;
    let volume = found
        .volumes
        .iter()
        .find(|volume| volume.name == *device)
        .context("no volume")?;
    timed(|| read_all(volume.bytes.as_ref()))
}

fn read_all(bytes: &dyn ReadAt) -> Result<u64> {
    let mut buffer = vec![0; PIECE];
    let pieces = bytes.len() / PIECE as u64;
    for piece in 0..pieces {
        bytes.read_exact_at(&mut buffer, piece * PIECE as u64)?;
    }
    Ok(pieces * PIECE as u64)
}

fn read_file(found: &Discovery, path: &Path) -> Result<f64> {
    let tree = found.guests.first().context("no system")?.tree();
    timed(|| {
        let mut at = 0;
        loop {
            let bytes = tree.read_range(path, at, PIECE)?;
            if bytes.is_empty() {
                return Ok(at);
            }
            at += bytes.len() as u64;
        }
    })
}

/// MiB/s.
fn timed(read: impl FnOnce() -> Result<u64>) -> Result<f64> {
    let start = Instant::now();
    let bytes = read()?;
    ensure!(bytes > 0, "nothing was read");
    Ok(bytes as f64 / f64::from(1 << 20) / start.elapsed().as_secs_f64())
}

fn best(figures: &[f64]) -> f64 {
    figures.iter().copied().fold(0.0, f64::max)
}
