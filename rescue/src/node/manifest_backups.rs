//! Manifests that kubeadm kept when it upgraded the node.
//!
//! `kubeadm upgrade` moves the manifests that it replaces to
//! /etc/kubernetes/tmp/kubeadm-backup-manifests-TIME and renders the new ones in
//! kubeadm-upgraded-manifestsTIME (CreateTempDirForKubeadm, CreateTimestampDirForKubeadm in
//! cmd/kubeadm/app/constants).

use super::{Manifest, Node, StaticPod, Version, read_manifest, version};
use crate::guest::{Guest, GuestPath};

/// kubeadm's constants.TempDirForKubeadm, below /etc/kubernetes since 1.12.
const KEPT_IN: &str = "/etc/kubernetes/tmp";

const PREFIXES: [&str; 2] = ["kubeadm-backup-manifests", "kubeadm-upgraded-manifests"];

/// Programs whose images carry the cluster's version; etcd's does not.
const VERSIONED: [&str; 3] = [
    "kube-apiserver",
    "kube-controller-manager",
    "kube-scheduler",
];

/// A whole manifest that kubeadm kept.
#[derive(Debug, Clone)]
pub struct ManifestBackup {
    /// The file.
    pub path: GuestPath,
    /// Version of Kubernetes that the manifests of its folder are of.
    pub version: Option<Version>,
    /// Absolute paths in its flags that are missing on the node.
    pub missing: Vec<String>,
    mtime: i64,
}

impl ManifestBackup {
    /// Whether it is certain that the file can take the place of the damaged one.
    pub fn fits(&self, node: &Node) -> bool {
        self.version.is_some() && self.version == version_of(node) && self.missing.is_empty()
    }
}

/// The version that the whole manifests of the node run, else the kubelet's.
pub fn version_of(node: &Node) -> Option<Version> {
    let whole = |manifest: &&Manifest| manifest.damage.is_none();
    let pods = node
        .manifests
        .iter()
        .filter(whole)
        .filter_map(|manifest| manifest.pod.as_ref());
    let mut pods = pods.filter(|pod| node.static_pods.iter().any(|meant| meant.path == pod.path));
    pods.find_map(image_version).or(node.kubelet_version.value)
}

fn image_version(pod: &StaticPod) -> Option<Version> {
    let is_versioned = VERSIONED.contains(&pod.name.as_str());
    is_versioned
        .then(|| version::of_image(&pod.image))
        .flatten()
}

/// The whole manifests with the name of a file that kubeadm kept, newest first.
pub fn manifest_backups(guest: &Guest, file_name: &str) -> Vec<ManifestBackup> {
    let kept_in = GuestPath::new(KEPT_IN);
    let entries = guest.read_dir(&kept_in).unwrap_or_default().into_iter();
    let folders = entries.filter(|entry| {
        let name = entry.name.to_string_lossy();
        PREFIXES.iter().any(|prefix| name.starts_with(prefix))
    });
    let backup = |folder: GuestPath| one(guest, &folder, file_name);
    let mut found: Vec<ManifestBackup> = folders
        .filter_map(|entry| backup(kept_in.join(&entry.name)))
        .collect();
    found.sort_by(|a, b| (b.mtime, &b.path).cmp(&(a.mtime, &a.path)));
    found
}

fn one(guest: &Guest, folder: &GuestPath, file_name: &str) -> Option<ManifestBackup> {
    let path = folder.join(file_name);
    let mtime = guest.stat(&path).ok()?.mtime;
    let manifest = read_manifest(guest, path.clone())?;
    let pod = manifest.pod.filter(|_| manifest.damage.is_none())?;
    let beside = |name: &&str| {
        let beside = read_manifest(guest, folder.join(format!("{name}.yaml")))?;
        image_version(&beside.pod?)
    };
    let version = image_version(&pod).or_else(|| VERSIONED.iter().find_map(&beside));
    let missing = missing_files(guest, &pod);
    Some(ManifestBackup {
        path,
        version,
        missing,
        mtime,
    })
}

/// Files that the flags of a pod name and that do not exist.
fn missing_files(guest: &Guest, pod: &StaticPod) -> Vec<String> {
    const ENDS: [&str; 3] = ["file", "kubeconfig", "-cafile"];
    let is_file = |(flag, value): &&(String, String)| {
        value.starts_with('/') && ENDS.iter().any(|end| flag.ends_with(end))
    };
    let files = pod.flags.iter().filter(is_file).map(|(_, value)| value);
    let missing = files.filter(|value| !guest.exists(&GuestPath::new(value)));
    missing.cloned().collect()
}
