//! The kubelet's configuration as the cluster keeps it: kubeadm's ConfigMap
//! `kube-system/kubelet-config`, up to 1.23 `kubelet-config-1.N` (kubeadm's UploadKubeletConfig in
//! phases/kubelet/config.go), in the etcd member on the node's own disk.

use super::kept::{prefix, values};
use crate::etcd::read::kubernetes::config_map;
use crate::guest::Guest;
use crate::node::Node;

/// The text of the ConfigMap, and what it is called. `None` where this disk has no etcd, or no such
/// ConfigMap is in it, or it cannot be read.
pub fn kubelet_configuration(guest: &Guest, node: &Node) -> Option<(String, String)> {
    let minor = node.kubelet_version.value.map(|version| version.minor);
    let versioned = minor.map(|minor| format!("kubelet-config-1.{minor}"));
    let names: Vec<String> = versioned
        .into_iter()
        .chain(["kubelet-config".to_owned()])
        .collect();
    let key =
        |name: &String| format!("{}/configmaps/kube-system/{name}", prefix(node)).into_bytes();
    let values = values(guest, node, names.iter().map(key).collect())?.ok()?;
    names.into_iter().find_map(|name| {
        let mut map = config_map(values.get(&key(&name))?)?;
        Some((map.remove("kubelet")?, name))
    })
}
