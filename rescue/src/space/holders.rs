//! Folders known to hold much on a node, and what they are.

use std::path::PathBuf;

use crate::guest::{Guest, GuestPath};
use crate::node::Node;

const KNOWN: [(&str, &str); 25] = [
    ("/var/lib/containerd", "container images and containers"),
    ("/var/lib/docker", "container images and containers"),
    ("/var/lib/containers", "container images and containers"),
    ("/var/lib/rancher", "K3s or RKE2, its images and volumes"),
    ("/var/lib/etcd", "etcd's data"),
    ("/var/lib/kubelet", "pods' volumes and the kubelet's state"),
    ("/var/log", "logs"),
    ("/var/log/pods", "container logs"),
    ("/var/log/journal", "journals"),
    ("/var/log/audit", "audit logs"),
    ("/var/cache", "caches"),
    ("/var/lib/systemd/coredump", "crash dumps"),
    ("/var/crash", "crash dumps"),
    ("/var/spool", "mail and other queues"),
    ("/var/tmp", "temporary files"),
    ("/tmp", "temporary files"),
    ("/etc/kubernetes/tmp", "backups made by kubeadm upgrade"),
    ("/var/lib/longhorn", "volumes of Longhorn"),
    ("/var/lib/rook", "Ceph under Rook"),
    ("/home", "people's files"),
    ("/root", "root's files"),
    ("/opt", "programs and volumes"),
    ("/usr", "programs"),
    ("/boot", "kernels"),
    ("/var/lib/rescue", "undo of this program"),
];

/// Known folders of this guest, their links resolved.
pub fn known(guest: &Guest, node: &Node) -> Vec<(PathBuf, &'static str)> {
    let etcd = node
        .static_pod("etcd")
        .and_then(|pod| pod.flag("--data-dir"))
        .map(|path| (path, "etcd's data"));
    KNOWN
        .into_iter()
        .chain(etcd)
        .filter_map(|(path, label)| {
            Some((
                guest
                    .resolve(&GuestPath::new(path))
                    .ok()?
                    .as_path()
                    .to_path_buf(),
                label,
            ))
        })
        .filter(|(path, _)| path.parent().is_some())
        .collect()
}
