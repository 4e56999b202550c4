//! Which links make the boot start a unit.

use std::collections::BTreeSet;

use super::search::{Found, UNIT_PATH, is_null, locate};
use crate::guest::{Guest, GuestPath};

/// The links in `*.wants` and `*.requires` folders that pull a unit in, the highest folder first
/// (systemd.unit(5)). A link that leads to /dev/null pulls nothing in. Empty: no installed unit
/// starts it, as after `systemctl disable`.
pub fn pulled_in_by(guest: &Guest, name: &str) -> Vec<GuestPath> {
    let mut links = Vec::new();
    let mut seen = BTreeSet::new();
    for unit_folder in UNIT_PATH.map(GuestPath::new) {
        // /lib is mostly a link to /usr/lib.
        if !guest
            .resolve(&unit_folder)
            .is_ok_and(|real| seen.insert(real))
        {
            continue;
        }
        for entry in guest.read_dir(&unit_folder).unwrap_or_default() {
            let folder = entry.name.to_string_lossy();
            if !folder.ends_with(".wants") && !folder.ends_with(".requires") {
                continue;
            }
            let link = unit_folder.join(&entry.name).join(name);
            if guest.lstat(&link).is_ok() && !is_null(guest, &link) {
                links.push(link);
            }
        }
    }
    links
}

/// Whether a unit is masked: systemd refuses to start it.
pub fn is_masked(guest: &Guest, name: &str) -> bool {
    matches!(locate(guest, name).found, Some(Found::Masked(_)))
}

/// The names of all unit files that end in `suffix` (`.swap`), sorted.
pub fn unit_names(guest: &Guest, suffix: &str) -> Vec<String> {
    let folders = UNIT_PATH.map(GuestPath::new);
    let entries = folders
        .iter()
        .flat_map(|folder| guest.read_dir(folder).unwrap_or_default());
    let names = entries.filter_map(|entry| entry.name.into_string().ok());
    let names: BTreeSet<String> = names.filter(|name| name.ends_with(suffix)).collect();
    names.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::MemoryTree;

    #[test]
    fn links_of_all_folders_are_found_and_dead_ones_are_not() {
        let unit = "/usr/lib/systemd/system/kubelet.service";
        let link = "/etc/systemd/system/multi-user.target.wants/kubelet.service";
        let tree = MemoryTree::new().file(unit, "[Service]\n");
        let of = |tree: MemoryTree| pulled_in_by(&tree.into_guest(), "kubelet.service").len();
        assert_eq!(of(tree.clone()), 0);
        assert_eq!(of(tree.clone().link(link, unit)), 1);
        assert_eq!(of(tree.clone().link(link, "/dev/null")), 0);
        let vendor = "/usr/lib/systemd/system/basic.target.requires/kubelet.service";
        assert_eq!(
            of(tree.link(link, unit).link(vendor, "../kubelet.service")),
            2
        );
    }
}
