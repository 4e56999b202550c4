//! systemd's journal of a node: its newest files, back to the beginning of the third last boot.

use time::OffsetDateTime;

use super::gather::{Gatherer, Line};
use super::journal_file::{Entry, JournalFile, Read, Stamp};
use super::window::Window;
use super::{Boot, LastWords, message};
use crate::guest::{Guest, GuestPath};
use crate::tree::{DirEntry, FileKind};

const FOLDER: &str = "/var/log/journal";

/// Entries that are looked at. A kubelet that fails every ten seconds writes some 50,000 a day.
const MOST_ENTRIES: u64 = 60_000;

/// Boots that are looked at.
const MOST_BOOTS: usize = 3;

/// Files that are opened, newest first; a journal rotates at 128 MiB, and after each power cut.
const MOST_FILES: usize = 200;

/// Services whose words count.
const SERVICES: [&str; 8] = [
    "kubelet.service",
    "containerd.service",
    "docker.service",
    "cri-docker.service",
    "crio.service",
    "cri-o.service",
    "etcd.service",
    "kubeadm.service",
];

/// What systemd says of these words is about one of the services.
const NAMES: [&str; 6] = [
    "kubelet",
    "containerd",
    "docker",
    "crio",
    "etcd",
    "Kubernetes",
];

/// Reads the journal's words; does nothing where there is none.
pub(super) fn read(guest: &Guest, found: &mut LastWords) {
    let mut files = files(guest);
    files.sort_by_key(|(_, file)| std::cmp::Reverse(file.newest()));
    let mut reader = Reader {
        gatherer: Gatherer::default(),
        boots: Vec::new(),
        entries: 0,
    };
    for (path, mut file) in files {
        found.files.push(path.clone());
        file.backwards(is_wanted, |read| reader.take(&path, &read));
        if reader.is_full() {
            found.is_cut = true;
            break;
        }
    }
    found.boots = reader.boots.into_iter().map(|(_, boot)| boot).collect();
    reader.gatherer.finish(found);
}

/// The system's files below each machine's folder. `*.journal~` is what journald put aside after a
/// power cut: the last words before it stand there.
fn files(guest: &Guest) -> Vec<(GuestPath, JournalFile)> {
    let top = GuestPath::new(FOLDER);
    let folders = entries(guest, &top)
        .into_iter()
        .filter(|entry| entry.kind == FileKind::Directory);
    let mut paths: Vec<GuestPath> = Vec::new();
    for folder in folders {
        let folder = top.join(&folder.name);
        let names = entries(guest, &folder).into_iter().filter(is_journal);
        paths.extend(names.map(|entry| folder.join(&entry.name)));
    }
    paths.truncate(MOST_FILES);
    let open = |path: GuestPath| {
        let real = guest.resolve(&path).ok()?;
        let window = Window::open(guest.tree(), real.as_path().to_path_buf()).ok()?;
        Some((path, JournalFile::over(window)?))
    };
    paths.into_iter().filter_map(open).collect()
}

fn entries(guest: &Guest, folder: &GuestPath) -> Vec<DirEntry> {
    guest.read_dir(folder).unwrap_or_default()
}

fn is_journal(entry: &DirEntry) -> bool {
    let name = entry.name.to_string_lossy();
    entry.kind == FileKind::Regular
        && name.starts_with("system")
        && (name.ends_with(".journal") || name.ends_with(".journal~"))
}

fn is_wanted(unit: Option<&str>, identifier: Option<&str>) -> bool {
    unit.is_some_and(|unit| SERVICES.contains(&unit))
        || identifier.is_some_and(|name| ["systemd", "kernel", "kubelet"].contains(&name))
}

/// Takes the entries of all files, newest first.
struct Reader {
    gatherer: Gatherer,
    boots: Vec<([u8; 16], Boot)>,
    entries: u64,
}

impl Reader {
    fn is_full(&self) -> bool {
        self.entries >= MOST_ENTRIES || self.boots.len() > MOST_BOOTS
    }

    /// Whether there is to be more.
    fn take(&mut self, file: &GuestPath, read: &Read) -> bool {
        self.entries += 1;
        let Some(boot) = self.boot(read.stamp()) else {
            return false;
        };
        if let Read::Entry(entry) = read {
            self.add(file, entry, boot);
        }
        !self.is_full()
    }

    fn add(&mut self, file: &GuestPath, entry: &Entry, boot: usize) {
        let by_unit = entry.unit.as_deref().filter(|unit| SERVICES.contains(unit));
        let source = by_unit
            .and_then(|unit| unit.split('.').next())
            .or(entry.identifier.as_deref())
            .unwrap_or_default();
        let text = entry.message.as_str();
        let is_error = match (by_unit, source) {
            (None, "systemd") => {
                let is_ours = NAMES.iter().any(|name| text.contains(name));
                is_ours && message::is_failed_unit(text)
            }
            // The kernel warns of much that is nothing.
            (None, "kernel") => entry.priority.is_some_and(|priority| priority <= 3),
            _ => message::is_error(text, entry.priority),
        };
        // Of those who speak of everything, only what failed matters.
        if by_unit.is_none() && !is_error {
            return;
        }
        self.gatherer.add(&Line {
            at: time_of(entry.stamp),
            boot: Some(boot),
            source,
            text,
            is_error,
            file,
        });
    }

    /// The number of an entry's boot, counted back from the newest; `None` for one too far back.
    fn boot(&mut self, stamp: Stamp) -> Option<usize> {
        let at = time_of(stamp);
        if let Some(known) = self.boots.iter().position(|(id, _)| *id == stamp.boot) {
            let (_, boot) = self.boots.get_mut(known)?;
            boot.first = [boot.first, at].into_iter().flatten().min();
            return Some(known);
        }
        if self.boots.len() >= MOST_BOOTS {
            // One more tells that the range ends here.
            self.boots.truncate(MOST_BOOTS);
            self.entries = MOST_ENTRIES;
            return None;
        }
        self.boots.push((
            stamp.boot,
            Boot {
                first: at,
                last: at,
            },
        ));
        Some(self.boots.len() - 1)
    }
}

fn time_of(stamp: Stamp) -> Option<OffsetDateTime> {
    let nanoseconds = i128::from(stamp.realtime).checked_mul(1000)?;
    OffsetDateTime::from_unix_timestamp_nanos(nanoseconds).ok()
}
