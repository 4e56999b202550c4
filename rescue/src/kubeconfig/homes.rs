//! Where people keep their kubeconfigs, and which of those files may be written.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};

use crate::guest::{Guest, GuestPath, RealPath};
use crate::tree::{FileKind, Meta, TreeResult};

/// Folders that are the system's with all below them: /etc/passwd names some as homes of services,
/// and what lies in them is no person's.
const SYSTEM: [&str; 14] = [
    "/bin", "/boot", "/dev", "/etc", "/lib", "/lib32", "/lib64", "/proc", "/run", "/sbin", "/sys",
    "/tmp", "/usr", "/var/tmp",
];
/// Folders that homes may lie in, but that are none themselves.
const NO_HOMES: [&str; 7] = ["/", "/home", "/media", "/mnt", "/opt", "/srv", "/var"];

/// `.kube/config` in one home folder.
#[derive(Debug, Clone)]
pub struct PersonalConfig {
    /// `/home/ann/.kube/config`.
    pub path: GuestPath,
    /// Where that leads.
    pub real: RealPath,
    /// Attributes of the file that it leads to.
    pub meta: Meta,
    /// User ID of the home folder's owner.
    pub home_uid: u32,
    /// Why no credentials may be written there, in words that follow "because"; `None` where they
    /// may.
    pub refused: Option<String>,
}

/// The kubeconfigs of everybody who has one, those that may be written first. Two names of one home
/// folder count once.
pub fn personal_configs(guest: &Guest) -> Vec<PersonalConfig> {
    let all = homes(guest)
        .into_iter()
        .filter_map(|home| personal_config(guest, &home).ok());
    let (mut configs, refused): (Vec<_>, Vec<_>) = all.partition(|config| config.refused.is_none());
    let mut seen = BTreeSet::new();
    configs.retain(|config| seen.insert(config.real.clone()));
    configs.extend(refused);
    configs
}

fn personal_config(guest: &Guest, home: &GuestPath) -> TreeResult<PersonalConfig> {
    let path = home.join(".kube/config");
    let real = guest.resolve(&path)?;
    let meta = guest.tree().lstat(real.as_path())?;
    let home_uid = guest.stat(home)?.uid;
    let refused = refusal(guest, home, &real, &meta)?;
    Ok(PersonalConfig {
        path,
        real,
        meta,
        home_uid,
        refused,
    })
}

/// The owner of a home folder decides what its names lead to. A key must not follow: neither out of
/// the folder nor into another person's file.
fn refusal(
    guest: &Guest,
    home: &GuestPath,
    real: &RealPath,
    meta: &Meta,
) -> TreeResult<Option<String>> {
    if home
        .as_path()
        .components()
        .any(|part| part.as_os_str() == "..")
    {
        return Ok(Some(format!(
            "/etc/passwd names the home folder as {home}, with .. in it"
        )));
    }
    let (home_real, home_uid) = (guest.resolve(home)?, guest.stat(home)?.uid);
    if is_system(home.as_path()) || is_system(home_real.as_path()) {
        return Ok(Some(format!(
            "{home_real} is the system's, not a person's home folder"
        )));
    }
    for below in [".kube", ".kube/config"] {
        let name = GuestPath::from(&home_real).join(below);
        let there = guest.lstat(&name)?;
        if there.kind == FileKind::Symlink {
            return Ok(Some(format!(
                "{name} is a symbolic link, and leads to {real}"
            )));
        }
        if there.uid != home_uid && there.uid != 0 {
            return Ok(Some(format!(
                "{name} belongs to user {}, and the home folder to user {home_uid}",
                there.uid
            )));
        }
    }
    // A bind mount.
    if !real.as_path().starts_with(home_real.as_path()) {
        return Ok(Some(format!(
            "{home}/.kube/config leads out of the home folder, to {real}"
        )));
    }
    Ok((meta.kind != FileKind::Regular).then(|| format!("{real} is not a regular file")))
}

fn is_system(folder: &Path) -> bool {
    SYSTEM.iter().any(|system| folder.starts_with(system))
        || NO_HOMES.iter().any(|other| folder == Path::new(other))
}

/// /root, every folder of /home, and the homes of /etc/passwd.
pub fn homes(guest: &Guest) -> BTreeSet<GuestPath> {
    let mut homes: BTreeSet<GuestPath> = BTreeSet::from([GuestPath::new("/root")]);
    let home = GuestPath::new("/home");
    homes.extend(
        guest
            .read_dir(&home)
            .unwrap_or_default()
            .iter()
            .map(|entry| home.join(&entry.name)),
    );
    let passwd = guest
        .read(&GuestPath::new("/etc/passwd"))
        .unwrap_or_default();
    for line in passwd.split(|byte| *byte == b'\n') {
        if let Some(folder) = line
            .split(|byte| *byte == b':')
            .nth(5)
            .filter(|folder| folder.starts_with(b"/"))
        {
            homes.insert(GuestPath::new(PathBuf::from(OsString::from_vec(
                folder.to_vec(),
            ))));
        }
    }
    homes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::MemoryTree;

    const ANN: &str = "/home/ann/.kube/config";

    fn ann() -> MemoryTree {
        let tree = MemoryTree::new()
            .file("/root/.kube/config", "")
            .file(ANN, "");
        ["/home/ann", "/home/ann/.kube", ANN]
            .iter()
            .fold(tree, |tree, path| tree.owner(path, 1000, 1000))
    }

    /// Why the file of this name is refused, among all of them.
    fn refused(tree: MemoryTree, path: &str) -> Option<String> {
        let configs = personal_configs(&tree.into_guest());
        let config = configs
            .into_iter()
            .find(|config| config.path == path.into())
            .expect("it is there");
        config.refused
    }

    #[test]
    fn a_file_of_its_own_in_a_home_may_be_written() {
        assert_eq!(refused(ann(), ANN), None);
        assert_eq!(refused(ann(), "/root/.kube/config"), None);
        assert_eq!(refused(ann().owner(ANN, 0, 0), ANN), None);
        assert_eq!(refused(ann().owner("/home/ann/.kube", 0, 0), ANN), None);
    }

    #[test]
    fn links_below_a_home_are_refused_wherever_they_lead() {
        for target in [
            "/root/.kube/config",
            "/etc/motd",
            "other",
            "../../../root/.kube/config",
        ] {
            let tree = ann()
                .file("/etc/motd", "")
                .file("/home/ann/.kube/other", "")
                .link(ANN, target);
            let why = refused(tree, ANN).expect("refused");
            assert!(
                why.starts_with("/home/ann/.kube/config is a symbolic link"),
                "{target}: {why}"
            );
        }
        for target in ["/root/.kube", "real"] {
            let tree = ann()
                .without("/home/ann/.kube")
                .file("/home/ann/real/config", "")
                .link("/home/ann/.kube", target);
            let why = refused(tree, ANN).expect("refused");
            assert!(
                why.starts_with("/home/ann/.kube is a symbolic link"),
                "{target}: {why}"
            );
        }
    }

    #[test]
    fn a_link_to_somebodys_file_does_not_hide_it() {
        let guest = ann().link(ANN, "/root/.kube/config").into_guest();
        let configs = personal_configs(&guest);
        let shown: Vec<_> = configs
            .iter()
            .map(|config| (config.path.to_string(), config.refused.is_none()))
            .collect();
        assert_eq!(
            shown,
            [
                ("/root/.kube/config".to_owned(), true),
                (ANN.to_owned(), false)
            ]
        );
    }

    #[test]
    fn files_and_folders_of_strangers_are_refused() {
        for path in [ANN, "/home/ann/.kube"] {
            let why = refused(ann().owner(path, 1001, 1001), ANN).expect("refused");
            assert_eq!(
                why,
                format!("{path} belongs to user 1001, and the home folder to user 1000")
            );
        }
    }

    #[test]
    fn homes_that_are_no_persons_are_refused() {
        for home in [
            "/",
            "/etc",
            "/etc/x",
            "/var",
            "/home",
            "/tmp",
            "/usr/share/x",
            "/home/ann/../bob",
            "/home/../root",
        ] {
            let path = GuestPath::new(home).join(".kube/config");
            let tree = ann()
                .file("/root/.kube/config", "")
                .file("/home/bob/.kube/config", "");
            let tree = if home.contains("..") {
                tree
            } else {
                tree.file(path.as_path(), "")
            };
            let tree = tree.file("/etc/passwd", format!("eve:x:1000:1000::{home}:/bin/sh\n"));
            assert!(refused(tree, &path.to_string()).is_some(), "{home}");
        }
        for home in ["/var/lib/jenkins", "/srv/op", "/opt/ann", "/data/ann"] {
            let path = format!("{home}/.kube/config");
            let tree = ann()
                .file(&path, "")
                .file("/etc/passwd", format!("op:x:0:0::{home}/:/bin/sh\n"));
            assert_eq!(refused(tree, &path), None, "{home}");
        }
    }

    #[test]
    fn a_link_to_the_home_folder_itself_is_no_trick() {
        let tree = MemoryTree::new()
            .file("/data/home/ann/.kube/config", "")
            .link("/home", "/data/home");
        assert_eq!(refused(tree.clone(), ANN), None);
        let passwd = "ann:x:0:0::/data/home/ann:/bin/sh\n";
        assert_eq!(
            personal_configs(&tree.file("/etc/passwd", passwd).into_guest()).len(),
            1
        );
        let system = MemoryTree::new()
            .file("/etc/.kube/config", "")
            .link("/home/ann", "/etc");
        assert_eq!(
            refused(system, ANN),
            Some("/etc is the system's, not a person's home folder".to_owned())
        );
    }
}
