//! What `systemctl enable` would do: the links that the [Install] section of a unit asks for.

use std::collections::BTreeSet;
use std::path::PathBuf;

use super::search::{Found, drop_ins, locate};
use super::{lines, plain_words};
use crate::guest::{Guest, GuestPath};

/// Where `systemctl enable` puts links.
const FOLDER: &str = "/etc/systemd/system";

/// A link that enables a unit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InstallLink {
    /// The link itself, in a `.wants` or `.requires` folder of [`FOLDER`].
    pub path: GuestPath,
    /// The unit's own file.
    pub target: PathBuf,
}

/// The links of `WantedBy=` and `RequiredBy=` (systemd.unit(5), "[Install] SECTION OPTIONS"). Empty
/// where the unit has no file, is masked, or asks for none: such a unit is "static", and something
/// else starts it. Words with specifiers are left out.
pub fn install_links(guest: &Guest, name: &str) -> Vec<InstallLink> {
    let located = locate(guest, name);
    let Some(Found::File(fragment)) = located.found else {
        return Vec::new();
    };
    let mut files = vec![fragment.clone()];
    files.extend(drop_ins(guest, &located.names));
    let folders: BTreeSet<String> = files
        .iter()
        .flat_map(|file| wanted_in(guest, file))
        .collect();
    let link = |folder: String| InstallLink {
        path: GuestPath::new(FOLDER).join(folder).join(&located.id),
        target: fragment.as_path().to_path_buf(),
    };
    folders.into_iter().map(link).collect()
}

/// Names of the folders, `multi-user.target.wants`, that one file asks for.
fn wanted_in(guest: &Guest, file: &GuestPath) -> Vec<String> {
    let parsed = lines::parse(&guest.read(file).unwrap_or_default());
    let install = parsed.assignments.into_iter();
    install
        .filter(|assignment| assignment.section == "Install")
        .filter_map(|assignment| {
            let suffix = match assignment.key.as_str() {
                "WantedBy" => "wants",
                "RequiredBy" => "requires",
                _ => return None,
            };
            let words = plain_words(&assignment.value).into_iter();
            let plain = words.filter(|word| !word.contains(['%', '/']));
            let folders: Vec<String> = plain.map(|word| format!("{word}.{suffix}")).collect();
            Some(folders)
        })
        .flatten()
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::MemoryTree;

    const UNIT: &str = "/usr/lib/systemd/system/kubelet.service";

    fn paths(tree: MemoryTree) -> Vec<String> {
        let links = install_links(&tree.into_guest(), "kubelet.service");
        let path = |link: InstallLink| link.path.to_string();
        links.into_iter().map(path).collect()
    }

    #[test]
    fn links_stand_where_install_asks_for_them() {
        let unit = "[Service]\nExecStart=/x\n[Install]\nWantedBy=multi-user.target a%i.target\n";
        let more = "[Install]\nRequiredBy=node.target\n";
        let tree = MemoryTree::new()
            .file(UNIT, unit)
            .file(format!("{UNIT}.d/20.conf"), more);
        assert_eq!(
            paths(tree),
            [
                "/etc/systemd/system/multi-user.target.wants/kubelet.service",
                "/etc/systemd/system/node.target.requires/kubelet.service"
            ]
        );
    }

    #[test]
    fn a_static_masked_or_missing_unit_asks_for_none() {
        assert!(paths(MemoryTree::new()).is_empty());
        assert!(paths(MemoryTree::new().file(UNIT, "[Service]\nExecStart=/x\n")).is_empty());
        assert!(paths(MemoryTree::new().file(UNIT, "")).is_empty());
    }
}
