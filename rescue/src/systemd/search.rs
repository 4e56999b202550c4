//! Which files make up a unit: systemd's search path, aliases, masking and drop-in folders
//! (systemd.unit(5), "UNIT FILE LOAD PATH"; src/shared/unit-file.c, src/basic/conf-files.c).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::guest::{Guest, GuestPath};
use crate::tree::FileKind;

/// Folders with units, highest priority first. Those under /run are empty on a powered-off system
/// and left out.
pub const UNIT_PATH: [&str; 6] = [
    "/etc/systemd/system.control",
    "/etc/systemd/system",
    "/etc/systemd/system.attached",
    "/usr/local/lib/systemd/system",
    "/usr/lib/systemd/system",
    "/lib/systemd/system",
];

/// How many aliases may follow each other (`FOLLOW_MAX` in systemd).
const MAX_ALIASES: usize = 8;

/// Far more drop-ins than any unit has; a crafted folder must not hold us up.
const MAX_DROP_INS: usize = 1000;

/// What a name in the search path stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// A unit file.
    File(GuestPath),
    /// An empty file or a link to /dev/null: the unit is masked there.
    Masked(GuestPath),
}

/// A unit's own file and the names it is known by, its real one first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Located {
    /// The name systemd knows the unit by.
    pub id: String,
    /// All names, `id` first.
    pub names: Vec<String>,
    /// Its file.
    pub found: Option<Found>,
}

/// Finds the unit `name`.
pub fn locate(guest: &Guest, name: &str) -> Located {
    let mut id = name.to_owned();
    let mut found = None;
    for _ in 0..MAX_ALIASES {
        match entry(guest, &id).or_else(|| entry(guest, &template_of(&id)?)) {
            Some(Entry::Alias(other)) => id = other,
            Some(Entry::Found(file)) => {
                found = Some(file);
                break;
            }
            None => break,
        }
    }
    let mut names = vec![id.clone()];
    names.extend(aliases(guest, &id));
    if !names.iter().any(|known| known == name) {
        names.push(name.to_owned());
    }
    Located { id, names, found }
}

/// Drop-ins of a unit known by `names`, in the order in which they are applied. Per file name the
/// highest folder wins; then the names are sorted. An empty file or a link to /dev/null stands in
/// the list, and hides those of the same name below it.
pub fn drop_ins(guest: &Guest, names: &[String]) -> Vec<GuestPath> {
    let mut by_name: BTreeMap<std::ffi::OsString, GuestPath> = BTreeMap::new();
    for folder in drop_in_folders(names) {
        for unit_folder in UNIT_PATH {
            let folder = GuestPath::new(unit_folder).join(&folder);
            for entry in guest.read_dir(&folder).unwrap_or_default() {
                let Some(text) = entry.name.to_str() else {
                    continue;
                };
                if text.starts_with('.') || !text.ends_with(".conf") {
                    continue;
                }
                if by_name.len() < MAX_DROP_INS {
                    by_name
                        .entry(entry.name.clone())
                        .or_insert_with(|| folder.join(&entry.name));
                }
            }
        }
    }
    by_name.into_values().collect()
}

/// Folder names to look for, most specific first: `a-b@c.service.d`, `a-b@.service.d`,
/// `a-.service.d`, `service.d`.
fn drop_in_folders(names: &[String]) -> Vec<String> {
    let mut folders = Vec::new();
    for name in names {
        folders.push(format!("{name}.d"));
        folders.extend(template_of(name).map(|template| format!("{template}.d")));
        if let Some((stem, kind)) = name.rsplit_once('.') {
            let prefix = stem.split('@').next().unwrap_or(stem);
            let dashes = prefix
                .match_indices('-')
                .map(|(at, _)| at)
                .filter(|at| at + 1 < prefix.len());
            let mut dashed: Vec<_> = dashes
                .filter_map(|at| prefix.get(..=at))
                .map(|prefix| format!("{prefix}.{kind}.d"))
                .collect();
            dashed.reverse();
            folders.extend(dashed);
        }
    }
    folders.extend(
        names
            .first()
            .and_then(|name| name.rsplit_once('.'))
            .map(|(_, kind)| format!("{kind}.d")),
    );
    folders
}

/// `a@b.service` is also looked for as `a@.service`.
fn template_of(name: &str) -> Option<String> {
    let (stem, kind) = name.rsplit_once('.')?;
    let (prefix, instance) = stem.split_once('@')?;
    (!instance.is_empty()).then(|| format!("{prefix}@.{kind}"))
}

enum Entry {
    Found(Found),
    Alias(String),
}

/// The first folder that has `name` decides, whatever it holds.
fn entry(guest: &Guest, name: &str) -> Option<Entry> {
    UNIT_PATH.iter().find_map(|folder| {
        let path = GuestPath::new(folder).join(name);
        let meta = guest.lstat(&path).ok()?;
        match meta.kind {
            FileKind::Symlink => linked(guest, path, name),
            FileKind::Regular if meta.size == 0 => Some(Entry::Found(Found::Masked(path))),
            FileKind::Regular => Some(Entry::Found(Found::File(path))),
            FileKind::Special => Some(Entry::Found(Found::Masked(path))),
            FileKind::Directory => None,
        }
    })
}

/// A link to a unit in the search path is an alias; any other is the unit's file by another way.
fn linked(guest: &Guest, path: GuestPath, name: &str) -> Option<Entry> {
    if is_null(guest, &path) {
        return Some(Entry::Found(Found::Masked(path)));
    }
    if let Some(other) = alias_target(guest, &path)
        && other != name
    {
        return Some(Entry::Alias(other));
    }
    let empty = guest
        .stat(&path)
        .is_ok_and(|meta| meta.kind == FileKind::Regular && meta.size == 0);
    Some(Entry::Found(if empty {
        Found::Masked(path)
    } else {
        Found::File(path)
    }))
}

/// Whether the link at `path` leads to /dev/null, possibly over other links. The guest's /dev is
/// empty while it is off.
pub fn is_null(guest: &Guest, path: &GuestPath) -> bool {
    let mut path = path.clone();
    for _ in 0..MAX_ALIASES {
        let Some(target) = link_target(guest, &path) else {
            return false;
        };
        if target.as_path().starts_with("/dev") {
            return true;
        }
        path = target;
    }
    false
}

/// Where a link points, as a path from the root.
fn link_target(guest: &Guest, path: &GuestPath) -> Option<GuestPath> {
    let meta = guest
        .lstat(path)
        .ok()
        .filter(|meta| meta.kind == FileKind::Symlink)?;
    debug_assert_eq!(meta.kind, FileKind::Symlink);
    let target = guest.read_link(path).ok()?;
    let absolute = if target.is_absolute() {
        target
    } else {
        path.parent().as_path().join(target)
    };
    Some(GuestPath::new(lexical(&absolute)))
}

/// `..` taken out by the names alone, so that a link to a file that is not there still has a name.
fn lexical(path: &Path) -> PathBuf {
    let mut out = PathBuf::from("/");
    for component in path.components() {
        match component {
            std::path::Component::Normal(name) => out.push(name),
            std::path::Component::ParentDir => {
                out.pop();
            }
            _ => {}
        }
    }
    out
}

/// The name of the unit a link stands for, when its target is in the search path.
fn alias_target(guest: &Guest, path: &GuestPath) -> Option<String> {
    let target = link_target(guest, path)?;
    let parent = target.parent();
    let same_folder = |folder: &str| {
        let folder = GuestPath::new(folder);
        folder == parent
            || matches!((guest.resolve(&folder), guest.resolve(&parent)), (Ok(a), Ok(b)) if a == b)
    };
    UNIT_PATH
        .iter()
        .any(|folder| same_folder(folder))
        .then_some(())?;
    target.as_path().file_name()?.to_str().map(str::to_owned)
}

/// Other names of the unit `id`: links to it in the search path.
fn aliases(guest: &Guest, id: &str) -> Vec<String> {
    let mut names = Vec::new();
    for folder in UNIT_PATH {
        let folder = GuestPath::new(folder);
        for entry in guest.read_dir(&folder).unwrap_or_default() {
            let Some(name) = entry.name.to_str() else {
                continue;
            };
            if entry.kind == FileKind::Symlink
                && name != id
                && !names.iter().any(|known| known == name)
                && alias_target(guest, &folder.join(name)).as_deref() == Some(id)
                && matches!(
                    crate::systemd::search::entry(guest, name),
                    Some(Entry::Alias(target)) if target == id
                )
            {
                names.push(name.to_owned());
            }
        }
    }
    names.sort();
    names
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::MemoryTree;

    #[test]
    fn the_highest_folder_wins_per_name() {
        let guest = MemoryTree::new()
            .file("/usr/lib/systemd/system/kubelet.service", "[Service]")
            .file(
                "/usr/lib/systemd/system/kubelet.service.d/10-kubeadm.conf",
                "usr",
            )
            .file("/usr/lib/systemd/system/kubelet.service.d/20-x.conf", "usr")
            .file("/usr/lib/systemd/system/service.d/20-x.conf", "generic")
            .file("/etc/systemd/system/service.d/05-all.conf", "generic")
            .link(
                "/etc/systemd/system/kubelet.service.d/20-x.conf",
                "/dev/null",
            )
            .file("/etc/systemd/system/kubelet.service.d/ignored.txt", "")
            .file("/etc/systemd/system/kubelet.service.d/.hidden.conf", "")
            .link("/lib", "usr/lib")
            .into_guest();
        let located = locate(&guest, "kubelet.service");
        assert_eq!(
            located.found,
            Some(Found::File(GuestPath::new(
                "/usr/lib/systemd/system/kubelet.service"
            )))
        );
        let names: Vec<String> = drop_ins(&guest, &located.names)
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(
            names,
            [
                "/etc/systemd/system/service.d/05-all.conf",
                "/usr/lib/systemd/system/kubelet.service.d/10-kubeadm.conf",
                "/etc/systemd/system/kubelet.service.d/20-x.conf",
            ]
        );
    }

    #[test]
    fn masks_and_aliases() {
        let guest = MemoryTree::new()
            .file("/usr/lib/systemd/system/real.service", "[Service]")
            .link(
                "/etc/systemd/system/kubelet.service",
                "../../../usr/lib/systemd/system/real.service",
            )
            .link("/etc/systemd/system/other.service", "/opt/other.service")
            .file("/opt/other.service", "[Service]")
            .link("/etc/systemd/system/off.service", "/dev/null")
            .file("/usr/lib/systemd/system/off.service", "[Service]")
            .file("/etc/systemd/system/empty.service", "")
            .into_guest();
        let located = locate(&guest, "kubelet.service");
        assert_eq!(
            (located.id.as_str(), located.names.len()),
            ("real.service", 2)
        );
        assert!(matches!(
            locate(&guest, "other.service").found,
            Some(Found::File(_))
        ));
        assert!(matches!(
            locate(&guest, "off.service").found,
            Some(Found::Masked(_))
        ));
        assert!(matches!(
            locate(&guest, "empty.service").found,
            Some(Found::Masked(_))
        ));
        assert_eq!(locate(&guest, "missing.service").found, None);
    }

    #[test]
    fn dashes_name_folders() {
        assert_eq!(
            drop_in_folders(&["a-b-c@d.service".to_owned()]),
            [
                "a-b-c@d.service.d",
                "a-b-c@.service.d",
                "a-b-.service.d",
                "a-.service.d",
                "service.d"
            ]
        );
    }
}
