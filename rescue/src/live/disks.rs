//! Which disks the machine has, without the medium we were booted from; waiting for them.

use std::fs;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use super::coldplug::Coldplug;
use crate::disk::attached::{Attached, entries, list};

/// No disk and no driver came for so long: that was all.
const QUIET: Duration = Duration::from_millis(1500);
const STEP: Duration = Duration::from_millis(100);

/// What waiting came to.
#[derive(Debug)]
pub struct Found {
    /// Sorted by name.
    pub disks: Vec<Attached>,
    /// What went wrong with drivers.
    pub problems: Vec<String>,
}

/// Loads drivers and waits until no more disks come; `changed` is told of every change. Without any
/// disk it waits up to `limit`.
pub fn wait(limit: Duration, mut changed: impl FnMut(&[Attached])) -> anyhow::Result<Found> {
    let mut coldplug = Coldplug::new()?;
    let start = Instant::now();
    let mut last_change = start;
    let mut disks = Vec::new();
    loop {
        let loaded = coldplug.walk();
        let now = list();
        if now != disks {
            changed(&now);
            disks = now;
            last_change = Instant::now();
        } else if loaded > 0 {
            last_change = Instant::now();
        }
        let quiet = last_change.elapsed() >= QUIET;
        if quiet && (!disks.is_empty() || start.elapsed() >= limit) {
            return Ok(Found {
                disks,
                problems: coldplug.problems,
            });
        }
        thread::sleep(STEP);
    }
}

/// Storage controllers and what drives them, for the message when no disk was found.
pub fn controllers() -> Vec<String> {
    let mut lines = Vec::new();
    for address in entries("/sys/bus/pci/devices") {
        let folder = Path::new("/sys/bus/pci/devices").join(&address);
        let text = |file: &str| {
            fs::read_to_string(folder.join(file))
                .map(|t| t.trim().replace("0x", ""))
                .unwrap_or_default()
        };
        // Base class 01 is mass storage.
        if !text("class").starts_with("01") {
            continue;
        }
        let driver = fs::read_link(folder.join("driver")).ok();
        let driver = driver
            .as_deref()
            .and_then(Path::file_name)
            .and_then(|name| name.to_str())
            .unwrap_or("no driver");
        lines.push(format!(
            "{address} [{}:{}] {driver}",
            text("vendor"),
            text("device")
        ));
    }
    lines
}
