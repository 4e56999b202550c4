//! Static pods: the manifests in the kubelet's folder.

use std::collections::BTreeMap;

use anyhow::anyhow;
use serde_json::Value;

use super::{Fact, Kubelet, PodMounts, StaticPod, flags};
use crate::base::yaml;
use crate::guest::{Guest, GuestPath};
use crate::tree::{FileKind, TreeError};

/// More files than any manifest folder has.
const MAX_FILES: usize = 500;

/// A manifest is a few KiB.
const MAX_MANIFEST: u64 = 1 << 20;

/// The kubelet's folder: `--pod-manifest-path`, `staticPodPath`, else kubeadm's default if it is
/// there.
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

/// One file that the kubelet reads as a static pod's manifest.
#[derive(Debug, Clone)]
pub struct Manifest {
    /// The file.
    pub path: GuestPath,
    /// The pod's namespace; `default` where the file names none.
    pub namespace: String,
    /// What could be read of the pod; a damaged file may still show some of it.
    pub pod: Option<StaticPod>,
    /// Why the kubelet makes no pod of the file, as a clause: "is empty".
    pub damage: Option<String>,
}

impl Manifest {
    /// The file's name.
    pub fn file_name(&self) -> String {
        let name = self.path.as_path().file_name().unwrap_or_default();
        name.to_string_lossy().into_owned()
    }

    /// The file's name up to its first dot: `kube-apiserver` of `kube-apiserver.yaml.bak`.
    pub fn stem(&self) -> String {
        let name = self.file_name();
        name.split('.').next().unwrap_or_default().to_owned()
    }

    /// Whether the file's name says that it is a copy that somebody or a package manager left:
    /// `.bak`, `~`, `-old`, a date.
    pub fn is_named_as_a_copy(&self) -> bool {
        const MARKS: [&str; 13] = [
            "bak", "bkp", "backup", "old", "orig", "save", "rpmsave", "rpmnew", "rpmorig", "tmp",
            "copy", "prev", "swp",
        ];
        let name = self.file_name().to_lowercase();
        let words = || name.split(|character: char| !character.is_ascii_alphanumeric());
        let is_mark = |word: &str| {
            let letters = word.trim_end_matches(|character: char| character.is_ascii_digit());
            MARKS.contains(&letters) || word.starts_with("dpkg") || word.starts_with("ucf")
        };
        let is_date =
            |word: &str| word.len() >= 6 && word.bytes().all(|byte| byte.is_ascii_digit());
        let goes_on = [".yaml.", ".yml.", ".json."]
            .iter()
            .any(|inner| name.contains(inner));
        goes_on || name.ends_with('~') || words().any(|word| is_mark(word) || is_date(word))
    }
}

/// Files of one pod: same name, same namespace. The kubelet runs one of them.
#[derive(Debug, Clone, Copy)]
pub struct SamePod<'a> {
    /// The file whose pod the kubelet runs: the last in byte order (listConfig and extractFromDir
    /// in pkg/kubelet/config/file.go sort the names; the last pod of one full name stays).
    pub runs: &'a Manifest,
    /// The file that is meant: `runs`, but for a copy that was left beside the true one.
    pub meant: &'a Manifest,
}

/// All files that the kubelet reads, in byte order of their names.
pub(super) fn read(guest: &Guest, folder: &GuestPath) -> Vec<Manifest> {
    let paths = names(guest, folder).into_iter();
    paths.filter_map(|path| read_one(guest, path)).collect()
}

/// The pods that the node is meant to run, one of each name.
pub(super) fn meant(manifests: &[Manifest]) -> Vec<StaticPod> {
    let same = same_pods(manifests);
    let pods = same
        .iter()
        .filter_map(|files| choose(files)?.meant.pod.clone());
    let mut pods: Vec<StaticPod> = pods.collect();
    pods.sort_by(|a, b| a.path.cmp(&b.path));
    pods
}

/// The files in groups of one pod, in byte order. Damaged files stand in no group where a whole
/// one has their pod.
pub(super) fn same_pods(manifests: &[Manifest]) -> Vec<Vec<&Manifest>> {
    let mut groups: BTreeMap<(&str, &str), Vec<&Manifest>> = BTreeMap::new();
    for manifest in manifests {
        if let Some(pod) = &manifest.pod {
            let key = (manifest.namespace.as_str(), pod.name.as_str());
            groups.entry(key).or_default().push(manifest);
        }
    }
    let mut groups: Vec<Vec<&Manifest>> = groups.into_values().collect();
    for group in &mut groups {
        if group.iter().any(|manifest| manifest.damage.is_none()) {
            group.retain(|manifest| manifest.damage.is_none());
        }
    }
    groups
}

/// Which file of a group runs, and which is meant.
pub(super) fn choose<'a>(group: &[&'a Manifest]) -> Option<SamePod<'a>> {
    let runs = group.last().copied()?;
    let mut others = group.iter().rev().copied();
    let original = others.find(|manifest| !manifest.is_named_as_a_copy());
    let meant = if runs.is_named_as_a_copy() {
        original.unwrap_or(runs)
    } else {
        runs
    };
    Some(SamePod { runs, meant })
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

/// Reads one manifest from anywhere; `None` for what the kubelet passes over in silence: folders,
/// sockets, devices.
pub fn read_one(guest: &Guest, path: GuestPath) -> Option<Manifest> {
    let damaged = |path: GuestPath, damage: &str| Manifest {
        path,
        namespace: String::new(),
        pod: None,
        damage: Some(damage.to_owned()),
    };
    let real = match guest.resolve(&path) {
        Ok(real) => real,
        Err(TreeError::NotFound(_)) => {
            return Some(damaged(path, "is a link to a file that is missing"));
        }
        Err(error) => return Some(damaged(path, &format!("cannot be read: {error}"))),
    };
    if guest.stat(&path).ok()?.kind != FileKind::Regular {
        return None;
    }
    Some(match guest.tree().read(real.as_path(), MAX_MANIFEST) {
        Ok(bytes) => parse(path, &bytes),
        Err(error) => damaged(path, &format!("cannot be read: {error}")),
    })
}

fn parse(path: GuestPath, bytes: &[u8]) -> Manifest {
    let manifest = without_text(bytes).map_or_else(|| yaml::parse(bytes), |why| Err(anyhow!(why)));
    let (manifest, unparsed) = match manifest {
        Ok(manifest) => (manifest, None),
        Err(error) => (Value::Null, Some(format!("{error:#}"))),
    };
    let namespace = yaml::text_at(&manifest, &["metadata", "namespace"]);
    Manifest {
        namespace: namespace.unwrap_or("default").to_owned(),
        damage: unparsed.or_else(|| no_pod(&manifest).map(str::to_owned)),
        pod: pod(path.clone(), &manifest),
        path,
    }
}

/// What a power cut leaves: a name without bytes, or blocks that were never written.
fn without_text(bytes: &[u8]) -> Option<&'static str> {
    if bytes.iter().all(u8::is_ascii_whitespace) {
        return Some("is empty");
    }
    if bytes.iter().all(|byte| *byte == 0) {
        return Some("holds only NUL bytes");
    }
    bytes.contains(&0).then_some("holds NUL bytes")
}

/// Why the kubelet refuses what was parsed (tryDecodeSinglePod in pkg/kubelet/config/common.go,
/// ValidatePodCreate). A mount without its volume is what is left of a file that was cut: kubeadm
/// writes the volumes last.
fn no_pod(manifest: &Value) -> Option<&'static str> {
    if manifest.get("kind").and_then(Value::as_str) != Some("Pod") {
        return Some("holds no Pod");
    }
    if yaml::text_at(manifest, &["metadata", "name"]).is_none() {
        return Some("holds a Pod without a name");
    }
    if manifest.pointer("/spec/containers/0").is_none() {
        return Some("holds a Pod without containers (the file is cut)");
    }
    let names = |list: &Value, key: &str| -> Vec<String> {
        let list = list.get(key).and_then(Value::as_array);
        let names = list.into_iter().flatten();
        let names = names.filter_map(|entry| yaml::text_at(entry, &["name"]));
        names.map(str::to_owned).collect()
    };
    let volumes = manifest.get("spec").map(|spec| names(spec, "volumes"));
    let volumes = volumes.unwrap_or_default();
    let containers = manifest.pointer("/spec/containers");
    let containers = containers.and_then(Value::as_array);
    let mut mounts = containers
        .into_iter()
        .flatten()
        .flat_map(|one| names(one, "volumeMounts"));
    let is_cut = mounts.any(|mount| !volumes.contains(&mount));
    is_cut.then_some("mounts a volume that it does not declare (the file is cut)")
}

fn pod(path: GuestPath, manifest: &Value) -> Option<StaticPod> {
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
        name: yaml::text_at(manifest, &["metadata", "name"])?.to_owned(),
        image: yaml::text_at(container, &["image"])
            .unwrap_or_default()
            .to_owned(),
        flags: flags::parse(&words),
        mounts: PodMounts::read(manifest, container),
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
