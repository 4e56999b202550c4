//! Loads the drivers of the devices that are there, as udev would.
//!
//! Devices come in chains (bus, host, disk): each loaded driver may show new ones, so the walk is
//! repeated until nothing new comes.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use super::modules::Modules;

/// Not asked for by any device, but needed to look at disks. Loaded first, so that a missing one is
/// seen early.
const ALWAYS: &[&str] = &[
    "loop",
    "fuse",
    "ext4",
    "xfs",
    "nls_cp437",
    "nls_ascii",
    "dm_mod",
];

/// Remembers what was seen, so that a repeated walk costs little.
#[derive(Debug)]
pub struct Coldplug {
    modules: Modules,
    seen: BTreeSet<String>,
    /// What went wrong, for people.
    pub problems: Vec<String>,
}

impl Coldplug {
    /// Loads what is always needed.
    pub fn new() -> anyhow::Result<Self> {
        let mut coldplug = Self {
            modules: Modules::open()?,
            seen: BTreeSet::new(),
            problems: Vec::new(),
        };
        for name in ALWAYS {
            coldplug.load(name);
        }
        Ok(coldplug)
    }

    /// Loads the drivers of all devices not seen before. Gives how many modules that took.
    pub fn walk(&mut self) -> usize {
        let mut fresh = Vec::new();
        collect(Path::new("/sys/devices"), &mut |alias| {
            if self.seen.insert(alias.to_owned()) {
                fresh.push(alias.to_owned());
            }
        });
        let mut loaded = 0;
        for alias in fresh {
            for name in self.modules.resolve(&alias) {
                loaded += usize::from(self.load(&name));
            }
        }
        loaded
    }

    fn load(&mut self, name: &str) -> bool {
        self.modules.load(name).unwrap_or_else(|error| {
            self.problems.push(format!("{error:#}"));
            false
        })
    }
}

/// Calls `found` for every `modalias` below a folder of sysfs.
fn collect(folder: &Path, found: &mut impl FnMut(&str)) {
    let Ok(entries) = fs::read_dir(folder) else {
        return;
    };
    for entry in entries.flatten() {
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => collect(&entry.path(), found),
            Ok(_) if entry.file_name() == "modalias" => {
                if let Ok(alias) = fs::read_to_string(entry.path()) {
                    found(alias.trim());
                }
            }
            _ => {}
        }
    }
}
