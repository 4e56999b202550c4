//! Which subvolumes of a btrfs a guest mounts, and which of them it boots from.
//!
//! Snapshots of a root look like roots: snapper keeps them in `.snapshots/N/snapshot` (SUSE boots
//! from one of them), timeshift in `timeshift-btrfs`, and the layers of container images look like
//! roots, too. Two roots are refused unattended, so they must not be mistaken for any. The guest
//! itself says which is the one: its fstab names the subvolume, or it is the default one.

use std::ffi::OsStr;
use std::path::Path;
use std::rc::Rc;

use super::discover::is_root;
use super::fstab::{self, Entry};
use super::subvolume::{Below, SubvolumeName};
use crate::disk::btrfs::{Subvolume, Subvolumes};
use crate::disk::volume::Opened;
use crate::tree::{Tree, TreeError};

/// Folders whose subvolumes are no part of the running system: snapshots, and the stores of
/// container runtimes, which make one for each layer of an image.
const APART: [&str; 6] = [
    ".snapshots",
    "timeshift-btrfs",
    "lib/docker",
    "lib/containers",
    "lib/containerd",
    "lib/machines",
];

/// So many nested subvolumes are part of a guest at most.
const MAX_NESTED: usize = 64;

/// One file system that may be a guest's root: the whole of what was opened, or one subvolume of
/// it.
pub(super) type RootOf = Option<u64>;

impl Opened {
    /// One of its subvolumes alone.
    pub(super) fn subvolume(&self, subvolume: &Subvolume) -> Self {
        Self {
            tree: Rc::new(Below::new(Rc::clone(&self.tree), &subvolume.path)),
            ..self.clone()
        }
    }
}

impl From<&Subvolume> for SubvolumeName {
    fn from(there: &Subvolume) -> Self {
        Self {
            id: there.id,
            path: there.path.clone(),
            snapshots: there.snapshots,
        }
    }
}

/// The roots in what was opened.
pub(super) fn roots(opened: &Opened) -> Result<Vec<RootOf>, TreeError> {
    let Some(subvolumes) = &opened.subvolumes else {
        return Ok(if is_root(opened.tree.as_ref())? {
            vec![None]
        } else {
            Vec::new()
        });
    };
    let mut candidates = Vec::new();
    for subvolume in &subvolumes.all {
        let tree = opened.subvolume(subvolume).tree;
        // A damaged snapshot says nothing about the others.
        if is_root(tree.as_ref()).unwrap_or(false) {
            candidates.push(Candidate {
                says: own_line(tree.as_ref()),
                subvolume,
            });
        }
    }
    Ok(chosen(&candidates, subvolumes)
        .into_iter()
        .map(Some)
        .collect())
}

/// A subvolume that looks like a root.
struct Candidate<'a> {
    subvolume: &'a Subvolume,
    /// The line of its own fstab for `/`.
    says: Option<Entry>,
}

fn own_line(tree: &dyn Tree) -> Option<Entry> {
    let text = tree.read(Path::new("/etc/fstab"), super::READ_LIMIT).ok()?;
    fstab::parse(&text)
        .into_iter()
        .flatten()
        .find(Entry::is_root)
}

fn chosen(candidates: &[Candidate<'_>], subvolumes: &Subvolumes) -> Vec<u64> {
    let ids = |chosen: Vec<&Candidate<'_>>| {
        chosen
            .iter()
            .map(|one| one.subvolume.id)
            .collect::<Vec<_>>()
    };
    // The fstab of a snapshot names what it is a snapshot of; only that of the root names itself.
    let names_itself = |one: &&Candidate<'_>| {
        let asked = one.says.as_ref().map(|line| asked_for(line, subvolumes));
        matches!(asked, Some(Ok(asked)) if asked.id == one.subvolume.id)
    };
    let named: Vec<_> = candidates.iter().filter(names_itself).collect();
    if !named.is_empty() {
        return ids(named);
    }
    if let Some(default) = candidates
        .iter()
        .find(|one| one.subvolume.id == subvolumes.default)
    {
        return vec![default.subvolume.id];
    }
    // Booted by `rootflags=subvol=` alone: what is no snapshot and not inside another.
    let inside = |one: &Candidate<'_>| {
        candidates.iter().any(|other| {
            other.subvolume.id != one.subvolume.id
                && one.subvolume.path.starts_with(&other.subvolume.path)
        })
    };
    let plain: Vec<_> = candidates
        .iter()
        .filter(|one| {
            !(one.subvolume.is_snapshot
                || one.subvolume.read_only
                || is_apart(&one.subvolume.path, 0)
                || inside(one))
        })
        .collect();
    if plain.is_empty() {
        ids(candidates.iter().collect())
    } else {
        ids(plain)
    }
}

/// Whether `path` leads through such a folder, below its first `within` components or in the last
/// of them.
fn is_apart(path: &Path, within: usize) -> bool {
    APART.iter().any(|apart| {
        let (wanted, parts): (Vec<&OsStr>, Vec<&OsStr>) =
            (Path::new(apart).iter().collect(), path.iter().collect());
        let mut windows = parts.windows(wanted.len()).enumerate();
        windows.any(|(at, window)| window == wanted && at + wanted.len() >= within)
    })
}

/// The subvolume that a line of fstab mounts (`subvol=`, `subvolid=`, else the default one); `Err`
/// says why there is none, as the end of a sentence that begins with the line.
pub(super) fn asked_for<'a>(
    line: &Entry,
    subvolumes: &'a Subvolumes,
) -> Result<&'a Subvolume, String> {
    let option = |name: &str| {
        line.options
            .iter()
            .rev()
            .find_map(|option| option.strip_prefix(name)?.strip_prefix('='))
    };
    let unquoted = |value: &str| value.trim_matches('"').to_owned();
    let (path, id) = (
        option("subvol").map(unquoted),
        option("subvolid").map(unquoted),
    );
    let by_path = path.as_ref().map(|path| {
        let found = subvolumes.by_path(Path::new(path));
        found.ok_or_else(|| {
            format!(
                "names the subvolume {}, which is not there",
                crate::base::escaping::escape(path)
            )
        })
    });
    let by_id = id.as_ref().map(|id| {
        // 0 is the top level, too (btrfs(5)).
        let number = id
            .parse()
            .ok()
            .map(|number: u64| if number == 0 { 5 } else { number });
        let found = number.and_then(|number| subvolumes.by_id(number));
        found.ok_or_else(|| {
            format!(
                "names the subvolume with the number {}, which is not there",
                crate::base::escaping::escape(id)
            )
        })
    });
    match (by_path.transpose()?, by_id.transpose()?) {
        (Some(path), Some(id)) if path.id != id.id => Err(format!(
            "names the subvolume /{} and the number {}, which is another one's: the guest's kernel \
             refuses to mount it",
            crate::disk::shown(&path.path),
            id.id
        )),
        (Some(one), _) | (None, Some(one)) => Ok(one),
        (None, None) => subvolumes
            .default()
            .ok_or_else(|| "mounts the default subvolume, which is not there".to_owned()),
    }
}

/// The subvolumes inside `outer` that are folders of it like any other for the guest, parents
/// first, with their paths in it: systemd makes /var and its like so. Snapshots, read-only ones and
/// the stores of container runtimes are left out.
pub(super) fn nested<'a>(
    outer: &Subvolume,
    subvolumes: &'a Subvolumes,
) -> Vec<(&'a Path, &'a Subvolume)> {
    let mut found: Vec<(&Path, &Subvolume)> = subvolumes
        .all
        .iter()
        .filter(|one| one.id != outer.id && !one.read_only)
        .filter_map(|one| Some((one.path.strip_prefix(&outer.path).ok()?, one)))
        .filter(|(_, one)| !is_apart(&one.path, outer.path.components().count()))
        .collect();
    found.sort_by_key(|(inside, _)| inside.components().count());
    found.truncate(MAX_NESTED);
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subvolume(id: u64, path: &str, is_snapshot: bool, read_only: bool) -> Subvolume {
        Subvolume {
            id,
            path: path.into(),
            is_snapshot,
            read_only,
            snapshots: 0,
        }
    }

    fn line(text: &str) -> Option<Entry> {
        (!text.is_empty()).then(|| fstab::parse(text.as_bytes()).remove(0).unwrap())
    }

    /// Candidates with the fstab line of each; which are roots?
    fn roots(default: u64, there: &[(u64, &str, bool, bool, &str)]) -> Vec<u64> {
        let mut all = vec![subvolume(5, "", false, false)];
        all.extend(
            there
                .iter()
                .filter(|one| one.0 != 5)
                .map(|one| subvolume(one.0, one.1, one.2, one.3)),
        );
        let subvolumes = Subvolumes { all, default };
        let candidates: Vec<Candidate<'_>> = there
            .iter()
            .map(|one| Candidate {
                subvolume: subvolumes.by_id(one.0).unwrap(),
                says: line(one.4),
            })
            .collect();
        chosen(&candidates, &subvolumes)
    }

    #[test]
    fn the_layouts_of_distributions() {
        let ubuntu = "UUID=a / btrfs defaults,subvol=@ 0 1";
        let by_id = "UUID=a / btrfs subvolid=256,subvol=/@ 0 1";
        let plain = "UUID=a / btrfs defaults 0 0";
        for (name, default, there, expected) in [
            (
                "Ubuntu with timeshift",
                5,
                vec![
                    (256, "@", false, false, ubuntu),
                    (300, "timeshift-btrfs/snapshots/2024/@", true, false, ubuntu),
                ],
                vec![256],
            ),
            (
                "Ubuntu after going back to a snapshot",
                5,
                vec![
                    (
                        256,
                        "timeshift-btrfs/snapshots/2024/@",
                        false,
                        false,
                        ubuntu,
                    ),
                    (300, "@", true, false, ubuntu),
                ],
                vec![300],
            ),
            (
                "SUSE",
                266,
                vec![
                    (266, "@/.snapshots/1/snapshot", false, false, plain),
                    (280, "@/.snapshots/2/snapshot", true, true, plain),
                    (281, "@/.snapshots/3/snapshot", true, false, plain),
                ],
                vec![266],
            ),
            (
                "SUSE after snapper rollback",
                281,
                vec![
                    (266, "@/.snapshots/1/snapshot", false, false, plain),
                    (281, "@/.snapshots/3/snapshot", true, false, plain),
                ],
                vec![281],
            ),
            (
                "Fedora",
                5,
                vec![(256, "root", false, false, "UUID=a / btrfs subvol=root 0 0")],
                vec![256],
            ),
            (
                "no subvolumes, snapper inside",
                5,
                vec![
                    (5, "", false, false, plain),
                    (257, ".snapshots/1/snapshot", true, true, plain),
                ],
                vec![5],
            ),
            (
                "only the kernel command line knows",
                5,
                vec![
                    (256, "@", false, false, ""),
                    (257, "@/.snapshots/1/snapshot", true, true, ""),
                    (
                        258,
                        "@/var/lib/docker/btrfs/subvolumes/abc",
                        false,
                        false,
                        "",
                    ),
                ],
                vec![256],
            ),
            (
                "number and path",
                5,
                vec![
                    (256, "@", false, false, by_id),
                    (257, "old", true, false, by_id),
                ],
                vec![256],
            ),
            (
                "the number is another's",
                5,
                vec![(258, "@", false, false, by_id)],
                vec![258],
            ),
            (
                "two systems",
                5,
                vec![
                    (256, "@", false, false, ubuntu),
                    (257, "root", false, false, "UUID=a / btrfs subvol=root 0 0"),
                ],
                vec![256, 257],
            ),
            (
                "snapshots alone",
                5,
                vec![
                    (256, "a", true, true, ubuntu),
                    (257, "b", true, true, ubuntu),
                ],
                vec![256, 257],
            ),
        ] {
            assert_eq!(roots(default, &there), expected, "{name}");
        }
    }

    #[test]
    fn what_a_line_asks_for() {
        let subvolumes = Subvolumes {
            all: vec![
                subvolume(5, "", false, false),
                subvolume(256, "@", false, false),
                subvolume(257, "@/var", false, false),
            ],
            default: 256,
        };
        for (options, expected) in [
            ("defaults", Ok(256)),
            ("subvol=@", Ok(256)),
            ("subvol=/@/var", Ok(257)),
            ("subvol=/", Ok(5)),
            ("subvolid=5", Ok(5)),
            ("subvolid=0", Ok(5)),
            ("subvolid=257", Ok(257)),
            ("subvol=@,subvolid=256", Ok(256)),
            ("subvol=@,subvolid=257", Err("another one's")),
            (
                "subvol=@home",
                Err("names the subvolume @home, which is not there"),
            ),
            ("subvolid=999", Err("number 999")),
            ("subvolid=x", Err("number x")),
        ] {
            let line = line(&format!("UUID=a / btrfs {options} 0 0")).unwrap();
            let asked = asked_for(&line, &subvolumes).map(|there| there.id);
            match (asked, expected) {
                (Ok(id), Ok(expected)) => assert_eq!(id, expected, "{options}"),
                (Err(why), Err(expected)) => assert!(why.contains(expected), "{options}: {why}"),
                (asked, _) => panic!("{options}: {asked:?}"),
            }
        }
    }

    #[test]
    fn nested_subvolumes_that_belong_to_the_guest() {
        let subvolumes = Subvolumes {
            all: vec![
                subvolume(5, "", false, false),
                subvolume(256, "@", false, false),
                subvolume(257, "@/var/log/app", false, false),
                subvolume(258, "@/var", false, false),
                subvolume(259, "@/.snapshots/7/snapshot", true, false),
                subvolume(260, "@/var/lib/docker/btrfs/subvolumes/abc", false, false),
                subvolume(261, "@home", false, false),
                subvolume(262, "@/srv", false, true),
            ],
            default: 5,
        };
        let root = subvolumes.by_id(256).unwrap();
        let paths: Vec<&str> = nested(root, &subvolumes)
            .iter()
            .map(|(path, _)| path.to_str().unwrap())
            .collect();
        assert_eq!(paths, ["var", "var/log/app"]);
        // The folder of snapshots mounted for itself, and a root that is a snapshot.
        let outer = Subvolume {
            path: "@/.snapshots".into(),
            ..root.clone()
        };
        assert_eq!(nested(&outer, &subvolumes), []);
        let outer = Subvolume {
            path: "@/.snapshots/1/snapshot".into(),
            id: 300,
            ..root.clone()
        };
        let inside = Subvolumes {
            all: vec![subvolume(301, "@/.snapshots/1/snapshot/srv", false, false)],
            default: 5,
        };
        assert_eq!(nested(&outer, &inside).len(), 1);
    }
}
