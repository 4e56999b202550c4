//! Static pods: the manifests in the kubelet's folder.

use serde_json::Value;

use super::{Fact, Kubelet, StaticPod, flags};
use crate::base::yaml;
use crate::guest::{Guest, GuestPath};
use crate::tree::FileKind;

/// More files than any manifest folder has.
const MAX_FILES: usize = 500;

/// A manifest is a few KiB.
const MAX_MANIFEST: u64 = 1 << 20;

/// The kubelet's folder: `--pod-manifest-path`, `staticPodPath`, else kubeadm's default if it is there.
pub(super) fn folder(guest: &Guest, kubelet: &Kubelet) -> Fact<GuestPath> {
    if let Some(path) = kubelet.flag("--pod-manifest-path") {
        return Fact::known(GuestPath::new(path), "kubelet's --pod-manifest-path");
    }
    let default = GuestPath::new("/etc/kubernetes/manifests");
    match (
        yaml::text_at(&kubelet.config, &["staticPodPath"]),
        &kubelet.config_path.value,
    ) {
        (Some(path), Some(config)) if !path.is_empty() => {
            Fact::known(GuestPath::new(path), format!("{config} staticPodPath"))
        }
        _ if guest.exists(&default) => Fact::known(default, "kubeadm's default"),
        _ => Fact::unknown("neither in the kubelet's flags nor in its config"),
    }
}

/// All manifests that parse, in the order of their file names. The kubelet reads every file that does not begin with a dot,
/// whatever its extension.
pub(super) fn read(guest: &Guest, folder: &GuestPath) -> Vec<StaticPod> {
    names(guest, folder)
        .into_iter()
        .filter_map(|path| read_one(guest, path))
        .collect()
}

/// Files that the kubelet reads.
pub(super) fn names(guest: &Guest, folder: &GuestPath) -> Vec<GuestPath> {
    guest
        .read_dir(folder)
        .unwrap_or_default()
        .into_iter()
        .filter(|entry| {
            entry.kind != FileKind::Directory && !entry.name.as_encoded_bytes().starts_with(b".")
        })
        .take(MAX_FILES)
        .map(|entry| folder.join(&entry.name))
        .collect()
}

fn read_one(guest: &Guest, path: GuestPath) -> Option<StaticPod> {
    let real = guest.resolve(&path).ok()?;
    let bytes = guest.tree().read(real.as_path(), MAX_MANIFEST).ok()?;
    let manifest = yaml::parse(&bytes).ok()?;
    if manifest.get("kind").and_then(Value::as_str) != Some("Pod") {
        return None;
    }
    let container = manifest.pointer("/spec/containers/0")?;
    let words: Vec<String> = ["command", "args"]
        .iter()
        .flat_map(|key| text_list(container, key))
        .collect();
    Some(StaticPod {
        path,
        name: yaml::text_at(&manifest, &["metadata", "name"])?.to_owned(),
        image: yaml::text_at(container, &["image"])
            .unwrap_or_default()
            .to_owned(),
        flags: flags::parse(&words),
    })
}

fn text_list(container: &Value, key: &str) -> Vec<String> {
    let list = container.get(key).and_then(Value::as_array);
    list.into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .map(str::to_owned)
        .collect()
}
