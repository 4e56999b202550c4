//! Volume groups made by lvm2 itself on image files, without a kernel's help. Where a volume's
//! bytes go is asked of lvm2, never of Rescue's own reader.

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};

use crate::command::Cmd;
use crate::disk::MIB;
use crate::mounts::Loop;

/// lvm2's own default.
const EXTENT: u64 = 4 * MIB;

/// Runs one command of lvm2, which then sees these devices and no others.
pub fn run(devices: &[impl AsRef<str>], arguments: &[&str]) -> Result<String> {
    let (command, rest) = arguments.split_first().context("no command")?;
    let devices: Vec<&str> = devices.iter().map(AsRef::as_ref).collect();
    let lvm = Cmd::new("lvm").args([
        *command,
        "--driverloaded",
        "n",
        "--devices",
        &devices.join(","),
    ]);
    Ok(lvm
        .args([
            "--config",
            "backup{backup=0 archive=0} activation{udev_sync=0}",
        ])
        .args(rest)
        .ok()?
        .stdout)
}

/// Attaches images as loop devices and works on them with lvm2 alone: `work` gets their names and
/// [`run`].
pub fn on<T>(
    images: &[PathBuf],
    work: impl FnOnce(&[String], &dyn Fn(&[&str]) -> Result<String>) -> Result<T>,
) -> Result<T> {
    let loops = images
        .iter()
        .map(|image| Loop::attach(image, 0, fs::metadata(image)?.len(), 512, false));
    let loops = loops.collect::<Result<Vec<_>>>()?;
    let devices: Vec<String> = loops
        .iter()
        .map(|device| device.device().display().to_string())
        .collect();
    work(&devices, &|arguments| run(&devices, arguments))
}

/// A number of bytes or extents as lvm2 prints it.
pub fn number(text: &str) -> Result<u64> {
    text.trim()
        .trim_end_matches('B')
        .parse()
        .with_context(|| format!("no number: {text:?}"))
}

/// Where a volume's bytes are.
#[derive(Debug, Clone)]
pub struct Places {
    /// Image, first byte, length, in order.
    runs: Vec<(PathBuf, u64, u64)>,
    /// Bytes of one turn; 0 where the runs follow each other.
    stripe: u64,
}

impl Places {
    /// Image, first byte and length, where it is one piece.
    pub fn one_run(&self) -> Option<(&Path, u64, u64)> {
        match self.runs.as_slice() {
            [(image, at, length)] => Some((image, *at, *length)),
            _ => None,
        }
    }

    /// Asks lvm2 for the places of a volume (`group/volume`), one segment, `stripe` bytes in turn.
    pub fn of(
        volume: &str,
        stripe: u64,
        devices: &[String],
        images: &[PathBuf],
        run: &dyn Fn(&[&str]) -> Result<String>,
    ) -> Result<Self> {
        // `/dev/loop0:0-9 /dev/loop1:0-9`
        let ranges = run(&["lvs", "--noheadings", "-o", "seg_pe_ranges", volume])?;
        let mut runs = Vec::new();
        for range in ranges.split_whitespace() {
            let (device, extents) = range.split_once(':').context("no range")?;
            let (first, last) = extents.split_once('-').context("no extents")?;
            let index = devices
                .iter()
                .position(|there| there == device)
                .context("another device")?;
            let start = number(&run(&[
                "pvs",
                "--noheadings",
                "--units",
                "b",
                "-o",
                "pe_start",
                device,
            ])?)?;
            let length = (number(last)? + 1 - number(first)?) * EXTENT;
            runs.push((
                images[index].clone(),
                start + number(first)? * EXTENT,
                length,
            ));
        }
        ensure!(
            stripe == 0 || runs.windows(2).all(|two| two[0].2 == two[1].2),
            "stripes of different lengths"
        );
        Ok(Self { runs, stripe })
    }

    /// Calls `each` with image, place there, place in the volume and length of every piece.
    fn pieces(&self, mut each: impl FnMut(&File, u64, u64, u64) -> Result<()>) -> Result<()> {
        let files = self
            .runs
            .iter()
            .map(|(image, ..)| File::options().read(true).write(true).open(image));
        let files = files.collect::<Result<Vec<_>, _>>()?;
        let mut at = 0;
        if self.stripe == 0 {
            for ((_, from, length), file) in self.runs.iter().zip(&files) {
                each(file, *from, at, *length)?;
                at += length;
            }
            return Ok(());
        }
        let length = self.runs.first().map_or(0, |(.., length)| *length);
        for turn in 0..length / self.stripe {
            for ((_, from, _), file) in self.runs.iter().zip(&files) {
                each(file, from + turn * self.stripe, at, self.stripe)?;
                at += self.stripe;
            }
        }
        Ok(())
    }

    /// Copies a file system into the volume.
    pub fn pour(&self, from: &Path) -> Result<()> {
        let bytes = fs::read(from)?;
        self.pieces(|file, there, at, length| {
            let (at, length) = (usize::try_from(at)?, usize::try_from(length)?);
            let piece = bytes
                .get(at..bytes.len().min(at + length))
                .unwrap_or_default();
            if piece.iter().any(|byte| *byte != 0) {
                file.write_all_at(piece, there)?;
            }
            Ok(())
        })
    }

    /// Copies the volume into a file.
    pub fn draw(&self, into: &Path) -> Result<()> {
        let target = File::create(into)?;
        target.set_len(self.runs.iter().map(|(.., length)| length).sum())?;
        self.pieces(|file, there, at, length| {
            let mut piece = vec![0; usize::try_from(length)?];
            file.read_exact_at(&mut piece, there)?;
            if piece.iter().any(|byte| *byte != 0) {
                target.write_all_at(&piece, at)?;
            }
            Ok(())
        })
    }
}
