//! What is never freed, whatever a rule says. Rules only reach into a few folders; this is the
//! second wall.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::path::{Component, Path, PathBuf};

use crate::guest::{Guest, GuestPath};
use crate::node::Node;

/// Folders of which nothing goes, and why.
pub const FOLDERS: [(&str, &str); 49] = [
    ("/var/lib/rescue", "this program's own runs and undo"),
    ("/var/lib/etcd", "the cluster's data"),
    ("/var/lib/etcd-backup", "backups of the cluster's data"),
    ("/etc", "configuration, certificates and keys"),
    (
        "/var/lib/kubelet",
        "pods' volumes (which may be mounts of real data), the kubelet's certificates and state",
    ),
    (
        "/var/lib/containerd",
        "images and containers; a part of the store breaks the rest",
    ),
    (
        "/var/lib/docker",
        "images and containers; a part of the store breaks the rest",
    ),
    ("/var/lib/dockershim", "state of pods"),
    ("/var/lib/cri-dockerd", "state of pods"),
    (
        "/var/lib/containers",
        "images and containers; a part of the store breaks the rest",
    ),
    ("/var/lib/crio", "state of the container runtime"),
    ("/var/lib/cni", "addresses given to pods"),
    ("/var/lib/calico", "state of the network"),
    ("/var/lib/cilium", "state of the network"),
    ("/var/lib/rancher", "K3s, RKE2 and volumes of local-path"),
    ("/opt", "programs, and volumes of local-path-provisioner"),
    ("/var/lib/longhorn", "volumes of Longhorn"),
    ("/var/openebs", "volumes of OpenEBS"),
    ("/var/lib/rook", "Ceph under Rook"),
    ("/var/lib/ceph", "Ceph"),
    ("/var/lib/dpkg", "the package database"),
    ("/var/lib/rpm", "the package database"),
    ("/var/lib/apt", "the package manager's state"),
    ("/var/lib/mysql", "a database"),
    ("/var/lib/postgresql", "a database"),
    ("/var/lib/pgsql", "a database"),
    ("/var/lib/mongodb", "a database"),
    ("/var/lib/redis", "a database"),
    ("/var/lib/elasticsearch", "a database"),
    ("/var/lib/prometheus", "a database"),
    ("/var/lib/influxdb", "a database"),
    ("/var/lib/libvirt", "virtual machines"),
    ("/var/lib/machines", "containers of systemd"),
    ("/var/backups", "backups"),
    ("/var/mail", "mail"),
    ("/var/spool/mail", "mail"),
    ("/var/spool/cron", "users' schedules"),
    ("/mnt", "other file systems and volumes"),
    ("/media", "other file systems"),
    ("/srv", "served data"),
    ("/home", "people's files"),
    ("/root", "root's files"),
    ("/boot", "what the machine boots from"),
    ("/usr", "programs"),
    ("/bin", "programs"),
    ("/sbin", "programs"),
    ("/lib", "programs"),
    ("/lib64", "programs"),
    ("/run", "state that the next boot makes anew"),
];

/// Names of files that never go, wherever they are.
pub const FILES: [(&str, &str); 7] = [
    ("wtmp", "who logged in"),
    ("btmp", "who failed to log in"),
    ("lastlog", "who logged in last"),
    ("faillog", "who failed to log in"),
    ("tallylog", "who failed to log in"),
    ("wtmp.db", "who logged in"),
    ("lastlog2.db", "who logged in last"),
];

/// Pieces of a path that mean a store of data, wherever it is mounted or linked: (consecutive
/// names, why).
pub const STORES: [(&[&str], &str); 6] = [
    (&["member", "wal"], "etcd's write-ahead log"),
    (&["member", "snap"], "etcd's data"),
    (
        &["io.containerd.*"],
        "containerd's store; a part of it breaks the rest",
    ),
    (&["kubernetes.io~*"], "a pod's volume"),
    (&["volumes"], "volumes"),
    (&["pki"], "certificates and keys"),
];

/// The never-list of one guest: the fixed one, where its links lead, and the folders its own
/// settings name.
#[derive(Debug, Clone)]
pub struct Never {
    folders: Vec<(PathBuf, String)>,
}

impl Never {
    /// Reads it; `node` names the guest's own folders.
    pub fn of(guest: &Guest, node: &Node) -> Self {
        let mut folders: Vec<(PathBuf, String)> = Vec::new();
        let mut seen = BTreeSet::new();
        let mut add = |path: GuestPath, why: &str| {
            let real = guest
                .resolve(&path)
                .map(|real| real.as_path().to_path_buf())
                .ok();
            for path in [Some(path.as_path().to_path_buf()), real]
                .into_iter()
                .flatten()
            {
                // A link to the root would forbid everything, which is safe but says nothing.
                if seen.insert(path.clone()) {
                    folders.push((path, why.to_owned()));
                }
            }
        };
        for (path, why) in FOLDERS {
            add(GuestPath::new(path), why);
        }
        for (path, why) in own_folders(node) {
            add(path, why);
        }
        Self { folders }
    }

    /// Why nothing at `path` (free of symbolic links) may go; `None` where the list does not know
    /// it.
    pub fn forbids(&self, path: &Path) -> Option<String> {
        let folder = self
            .folders
            .iter()
            .find(|(folder, _)| path.starts_with(folder));
        if let Some((folder, why)) = folder {
            return Some(format!("{} holds {why}", GuestPath::new(folder)));
        }
        let name = path.file_name().unwrap_or_default();
        if let Some((_, why)) = FILES.iter().find(|(file, _)| name == *file) {
            return Some(format!("it records {why}"));
        }
        if is_active_journal(path) {
            return Some("it is the journal that was written last".into());
        }
        let names: Vec<&OsStr> = path.components().filter_map(normal).collect();
        STORES
            .iter()
            .find(|(store, _)| {
                names
                    .windows(store.len())
                    .any(|window| matches_all(window, store))
            })
            .map(|(_, why)| format!("it is part of {why}"))
    }

    /// Whether `folder` holds, or lies in, something of the list: a place that no rule may be led
    /// to by a link.
    pub fn touches(&self, folder: &Path) -> bool {
        self.forbids(folder).is_some()
            || self
                .folders
                .iter()
                .any(|(listed, _)| listed.starts_with(folder))
    }
}

/// Folders that this node's own settings name.
fn own_folders(node: &Node) -> Vec<(GuestPath, &'static str)> {
    let mut folders = Vec::new();
    if let Some(path) = node
        .static_pod("etcd")
        .and_then(|pod| pod.flag("--data-dir"))
    {
        folders.push((
            GuestPath::new(path),
            "the cluster's data (--data-dir of etcd)",
        ));
    }
    if let Some(path) = node
        .static_pod("etcd")
        .and_then(|pod| pod.flag("--wal-dir"))
    {
        folders.push((
            GuestPath::new(path),
            "the cluster's data (--wal-dir of etcd)",
        ));
    }
    if let Some(path) = node.kubelet.flag("--root-dir") {
        folders.push((GuestPath::new(path), "the kubelet's state (--root-dir)"));
    }
    let facts = [
        (&node.certificate_dir.value, "certificates and keys"),
        (&node.kubelet.cert_dir.value, "the kubelet's certificates"),
        (&node.manifest_dir.value, "static pods"),
    ];
    folders.extend(
        facts
            .into_iter()
            .filter_map(|(path, what)| Some((path.clone()?, what))),
    );
    // A setting of "/" is nobody's intention, and would forbid everything.
    folders.retain(|(path, _)| path.as_path() != Path::new("/"));
    folders
}

fn normal(component: Component<'_>) -> Option<&OsStr> {
    match component {
        Component::Normal(name) => Some(name),
        _ => None,
    }
}

fn matches_all(names: &[&OsStr], store: &[&str]) -> bool {
    names
        .iter()
        .zip(store)
        .all(|(name, wanted)| match wanted.strip_suffix('*') {
            Some(prefix) => name.as_encoded_bytes().starts_with(prefix.as_bytes()),
            None => *name == *wanted,
        })
}

/// `system.journal`, `user-1000.journal`: no `@` in the name.
fn is_active_journal(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().as_encoded_bytes();
    name.ends_with(b".journal") && !name.contains(&b'@')
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::MemoryTree;

    fn never(tree: MemoryTree) -> Never {
        let guest = tree.into_guest();
        Never::of(&guest, &Node::read(&guest))
    }

    #[test]
    fn every_folder_of_the_list_is_kept_with_all_below() {
        let never = never(MemoryTree::new());
        for (folder, _) in FOLDERS {
            for below in ["app.log.1", "a/b/c/app.log.1"] {
                let path = Path::new(folder).join(below);
                assert!(never.forbids(&path).is_some(), "{}", path.display());
            }
            assert!(never.touches(Path::new(folder)), "{folder}");
        }
    }

    #[test]
    fn every_file_of_the_list_is_kept() {
        let never = never(MemoryTree::new());
        for (file, _) in FILES {
            assert!(
                never.forbids(&Path::new("/var/log").join(file)).is_some(),
                "{file}"
            );
        }
    }

    #[test]
    fn stores_are_known_wherever_they_are() {
        let never = never(MemoryTree::new());
        for path in [
            "/var/log/x/member/wal/0-0.wal",
            "/var/log/x/member/snap/db",
            "/var/log/io.containerd.metadata.v1.bolt/meta.db",
            "/var/log/io.containerd.snapshotter.v1.overlayfs/snapshots/1/fs/var/log/a.log.1",
            "/var/log/pods-x/kubernetes.io~local-volume/pv/app.log.1",
            "/var/log/volumes/app.log.1",
            "/var/log/pki/app.log.1",
            "/var/log/journal/abc/system.journal",
            "/var/log/journal/abc/user-1000.journal",
        ] {
            assert!(never.forbids(Path::new(path)).is_some(), "{path}");
        }
    }

    #[test]
    fn logs_are_not_on_the_list() {
        let never = never(MemoryTree::new());
        for path in [
            "/var/log/syslog.1",
            "/var/log/wtmp.1",
            "/var/log/pods/ns_pod_uid/c/0.log",
            "/var/log/journal/abc/system@1-2-3.journal",
            "/var/lib/systemd/coredump/core.x",
            "/var/cache/apt/archives/x.deb",
        ] {
            assert_eq!(never.forbids(Path::new(path)), None, "{path}");
        }
    }

    #[test]
    fn where_a_link_leads_is_kept_too() {
        let never = never(
            MemoryTree::new()
                .link("/var/lib/etcd", "/var/log/etcd-data")
                .dir("/var/log/etcd-data"),
        );
        assert!(
            never
                .forbids(Path::new("/var/log/etcd-data/app.log.1"))
                .is_some()
        );
        assert!(never.touches(Path::new("/var")));
    }
}
