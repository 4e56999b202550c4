//! Whether anything starts a unit at boot: a link, another unit, a timer, a socket, or a script of
//! the administrator.
//!
//! Targets count as reached: which targets a boot reaches is not followed. So "not started" is
//! certain as far as units go, and "started" is the careful answer where it is not known.

use std::collections::BTreeSet;

use super::lines::{self, Assignment};
use super::search::{UNIT_PATH, locate};
use super::{is_masked, plain_words, pulled_in_by};
use crate::guest::{Guest, GuestPath};
use crate::tree::FileKind;

/// More unit files than any system has, and longer than any of them.
const MAX_FILES: usize = 5000;
const MAX_SIZE: u64 = 256 << 10;

/// Kinds of units that can start others.
const KINDS: [&str; 7] = [
    ".service", ".target", ".timer", ".socket", ".path", ".mount", ".slice",
];

/// Files and folders of the boot scripts that administrators write themselves.
const SCRIPTS: [&str; 7] = [
    "/etc/rc.local",
    "/etc/rc.d/rc.local",
    "/etc/crontab",
    "/etc/cron.d",
    "/var/spool/cron",
    "/var/spool/cron/crontabs",
    "/var/lib/cloud/scripts/per-boot",
];

/// Whether the next boot starts the unit `name` in a way that can be seen.
pub fn is_started(guest: &Guest, name: &str) -> bool {
    if is_linked(guest, &names(guest, name)) || is_first_boot(guest) {
        return true;
    }
    let units = unit_files(guest);
    let mut seen = BTreeSet::new();
    starts(guest, &units, name, &mut seen) || is_in_a_script(guest, name)
}

/// The names of the started units one of whose commands is the program `program` (`containerd`),
/// whatever the unit is called.
pub fn units_that_run(guest: &Guest, program: &str) -> Vec<String> {
    let runs = |unit: &&UnitFile| {
        unit.of("Service").any(|assignment| {
            let word = assignment.value.split_whitespace().next();
            let word = word.map(|word| word.trim_start_matches(['-', '@', ':', '+', '!']));
            assignment.key == "ExecStart"
                && word.and_then(|word| word.rsplit('/').next()) == Some(program)
        })
    };
    let units = unit_files(guest);
    let names: BTreeSet<String> = units
        .iter()
        .filter(runs)
        .map(|unit| unit.name.clone())
        .collect();
    names.into_iter().collect()
}

/// A unit file or drop-in and the unit that it belongs to.
struct UnitFile {
    name: String,
    assignments: Vec<Assignment>,
}

impl UnitFile {
    fn of<'a>(&'a self, section: &'a str) -> impl Iterator<Item = &'a Assignment> {
        self.assignments
            .iter()
            .filter(move |assignment| assignment.section == section)
    }

    /// Whether this unit, once it is started, starts one that is known by `names`.
    fn pulls_in(&self, names: &[String]) -> bool {
        self.assignments
            .iter()
            .any(|assignment| pulls_in(assignment, names))
            || self.triggers(names)
    }

    /// A timer, socket or path without a unit of its own starts the service of its name
    /// (systemd.timer(5), systemd.socket(5)).
    fn triggers(&self, names: &[String]) -> bool {
        let Some((stem, kind)) = self.name.rsplit_once('.') else {
            return false;
        };
        matches!(kind, "timer" | "socket" | "path")
            && names.iter().any(|name| *name == format!("{stem}.service"))
            && !self.assignments.iter().any(is_trigger)
    }
}

fn is_trigger(assignment: &Assignment) -> bool {
    let setting = (assignment.section.as_str(), assignment.key.as_str());
    matches!(setting, ("Timer" | "Path", "Unit") | ("Socket", "Service"))
}

fn pulls_in(assignment: &Assignment, names: &[String]) -> bool {
    let key = assignment.key.as_str();
    let is_dependency =
        assignment.section == "Unit" && matches!(key, "Wants" | "Requires" | "BindsTo" | "Upholds");
    if is_dependency || is_trigger(assignment) {
        let words = plain_words(&assignment.value);
        return words.iter().any(|word| names.contains(word));
    }
    // `ExecStartPost=/bin/systemctl start kubelet`
    key.starts_with("ExecStart") && names.iter().any(|name| is_start(&assignment.value, name))
}

/// Whether a unit that is itself started starts `name`.
fn starts(guest: &Guest, units: &[UnitFile], name: &str, seen: &mut BTreeSet<String>) -> bool {
    if !seen.insert(name.to_owned()) {
        return false;
    }
    let names = names(guest, name);
    if name.ends_with(".target") || is_linked(guest, &names) {
        return true;
    }
    let others = units.iter().filter(|unit| !names.contains(&unit.name));
    let starters = others.filter(|unit| unit.pulls_in(&names));
    let starters: BTreeSet<&str> = starters.map(|unit| unit.name.as_str()).collect();
    starters
        .into_iter()
        .any(|starter| !is_masked(guest, starter) && starts(guest, units, starter, seen))
}

fn names(guest: &Guest, name: &str) -> Vec<String> {
    locate(guest, name).names
}

fn is_linked(guest: &Guest, names: &[String]) -> bool {
    names
        .iter()
        .any(|name| !pulled_in_by(guest, name).is_empty())
}

/// On a first boot systemd enables what the presets say (machine-id(5), "FIRST BOOT SEMANTICS"). A
/// file that is missing means so too, but a node that has joined a cluster has booted before.
fn is_first_boot(guest: &Guest) -> bool {
    let text = guest.read_text(&GuestPath::new("/etc/machine-id"));
    text.is_ok_and(|text| text.trim() == "uninitialized")
}

/// All unit files and drop-ins of the search path.
fn unit_files(guest: &Guest) -> Vec<UnitFile> {
    let mut units = Vec::new();
    let mut seen = BTreeSet::new();
    for folder in UNIT_PATH.map(GuestPath::new) {
        // /lib is mostly a link to /usr/lib.
        if !guest.resolve(&folder).is_ok_and(|real| seen.insert(real)) {
            continue;
        }
        for entry in guest.read_dir(&folder).unwrap_or_default() {
            let Ok(name) = entry.name.into_string() else {
                continue;
            };
            let path = folder.join(&name);
            match name.strip_suffix(".d") {
                Some(unit) if entry.kind == FileKind::Directory => {
                    units.extend(drop_ins_of(guest, unit, &path));
                }
                _ if KINDS.iter().any(|kind| name.ends_with(kind)) => {
                    units.extend(unit_file(guest, &name, &path));
                }
                _ => {}
            }
            if units.len() > MAX_FILES {
                return units;
            }
        }
    }
    units
}

fn drop_ins_of(guest: &Guest, unit: &str, folder: &GuestPath) -> Vec<UnitFile> {
    let entries = guest.read_dir(folder).unwrap_or_default();
    let names = entries
        .into_iter()
        .filter_map(|entry| entry.name.into_string().ok());
    names
        .filter(|name| name.ends_with(".conf"))
        .filter_map(|name| unit_file(guest, unit, &folder.join(&name)))
        .collect()
}

fn unit_file(guest: &Guest, name: &str, path: &GuestPath) -> Option<UnitFile> {
    let meta = guest.stat(path).ok()?;
    if meta.kind != FileKind::Regular || meta.size > MAX_SIZE {
        return None;
    }
    let assignments = lines::parse(&guest.read(path).ok()?).assignments;
    let name = name.to_owned();
    Some(UnitFile { name, assignments })
}

/// Whether a boot script or a cron table names the unit.
fn is_in_a_script(guest: &Guest, name: &str) -> bool {
    let paths = SCRIPTS.map(GuestPath::new).into_iter().flat_map(|path| {
        let entries = guest.read_dir(&path).unwrap_or_default();
        let inside: Vec<GuestPath> = entries.iter().map(|entry| path.join(&entry.name)).collect();
        if inside.is_empty() {
            vec![path]
        } else {
            inside
        }
    });
    let is_short = |path: &GuestPath| {
        guest
            .stat(path)
            .is_ok_and(|meta| meta.kind == FileKind::Regular && meta.size <= MAX_SIZE)
    };
    paths.filter(is_short).any(|path| {
        let text = guest.read_text(&path).unwrap_or_default();
        let mut lines = text.lines().map(str::trim);
        lines.any(|line| !line.starts_with('#') && is_start(line, name))
    })
}

/// Whether a command starts the unit, or its program itself.
fn is_start(command: &str, name: &str) -> bool {
    let stem = stem(name);
    let starts = [" start", " restart", " enable"];
    let is_told = command.contains("systemctl") || command.contains("service ");
    let is_program = |word: &str| {
        word.strip_suffix(stem)
            .is_some_and(|path| path.ends_with("bin/"))
    };
    is_told && command.contains(stem) && starts.iter().any(|verb| command.contains(verb))
        || command.split_whitespace().any(is_program)
}

fn stem(name: &str) -> &str {
    name.rsplit_once('.').map_or(name, |(stem, _)| stem)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::MemoryTree;

    const FOLDER: &str = "/usr/lib/systemd/system";

    fn tree() -> MemoryTree {
        MemoryTree::new().file("/etc/machine-id", "1\n").file(
            format!("{FOLDER}/kubelet.service"),
            "[Service]\nExecStart=/x\n",
        )
    }

    fn started(tree: MemoryTree) -> bool {
        is_started(&tree.into_guest(), "kubelet.service")
    }

    #[test]
    fn a_unit_that_nothing_pulls_in_is_not_started() {
        assert!(!started(tree()));
        // A timer that is off, a unit that is off, and two that want each other.
        let timer = tree().file(
            format!("{FOLDER}/kubelet.timer"),
            "[Timer]\nOnBootSec=1min\n",
        );
        assert!(!started(timer));
        let other = tree()
            .file(
                format!("{FOLDER}/a.service"),
                "[Unit]\nWants=kubelet.service b.service\n",
            )
            .file(format!("{FOLDER}/b.service"), "[Unit]\nWants=a.service\n");
        assert!(!started(other));
        let stops = "[Service]\nExecStart=/bin/systemctl stop kubelet\n";
        assert!(!started(tree().file(
            "/etc/systemd/system/multi-user.target.wants/a.service",
            stops
        )));
        assert!(!started(tree().file(
            "/etc/crontab",
            "@daily root find /var/log/kubelet\n#start kubelet\n"
        )));
    }

    #[test]
    fn links_units_timers_and_scripts_start_it() {
        let wants = "/etc/systemd/system/multi-user.target.wants";
        assert!(started(
            tree().link(format!("{wants}/kubelet.service"), "/x")
        ));
        let alias = tree()
            .link(
                "/etc/systemd/system/node.service",
                format!("{FOLDER}/kubelet.service"),
            )
            .link(format!("{wants}/node.service"), "/x");
        assert!(started(alias));
        let timer = tree()
            .file(
                format!("{FOLDER}/late.timer"),
                "[Timer]\nUnit=kubelet.service\n",
            )
            .link("/etc/systemd/system/timers.target.wants/late.timer", "/x");
        assert!(started(timer));
        let drop_in = format!("{FOLDER}/multi-user.target.d/k.conf");
        assert!(started(
            tree().file(drop_in, "[Unit]\nWants=kubelet.service\n")
        ));
        assert!(started(
            tree().file("/etc/rc.local", "systemctl start kubelet\n")
        ));
        assert!(started(tree().file("/etc/machine-id", "uninitialized\n")));
    }

    #[test]
    fn a_command_is_found_under_any_name_of_its_unit() {
        let unit = "[Service]\nExecStart=-/opt/bin/containerd --config /x\n";
        let guest = tree()
            .file(format!("{FOLDER}/own.service"), unit)
            .into_guest();
        assert_eq!(units_that_run(&guest, "containerd"), ["own.service"]);
        assert!(units_that_run(&guest, "own").is_empty());
    }
}
