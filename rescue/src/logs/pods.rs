//! The logs of the static pods' containers, below /var/log/pods.

use super::gather::{Gatherer, Line};
use super::{LastWords, container, message, tail};
use crate::guest::{Guest, GuestPath};

const FOLDER: &str = "/var/log/pods";

/// The control plane of kubeadm, looked for also where a manifest is gone.
const CONTROL_PLANE: [&str; 4] = [
    "etcd",
    "kube-apiserver",
    "kube-controller-manager",
    "kube-scheduler",
];

/// Logs that are read of each container: that of its last start, and the one before it.
const NEWEST: usize = 2;

/// Bytes that are read of each, from its end.
const TAIL: u64 = 256 << 10;

/// Pods that are looked into; a pod has a folder for each version of its manifest.
const MOST_PODS: usize = 64;

/// Reads their words. `names`: the static pods of the node.
pub(super) fn read(guest: &Guest, names: &[&str], found: &mut LastWords) {
    let top = GuestPath::new(FOLDER);
    let names: Vec<&str> = names.iter().copied().chain(CONTROL_PLANE).collect();
    let is_static = |folder: &str| {
        let mut parts = folder.split('_').skip(1);
        let pod = parts.next().unwrap_or_default();
        // The pod's name is the manifest's with the node's behind it.
        let begins = |name: &&str| {
            pod.strip_prefix(*name)
                .is_some_and(|rest| rest.starts_with('-'))
        };
        names.iter().any(begins)
    };
    let pods = names_in(guest, &top).filter(|name| is_static(name));
    for pod in pods.take(MOST_PODS) {
        let pod = top.join(&pod);
        for name in names_in(guest, &pod) {
            read_container(guest, &pod.join(&name), &name, found);
        }
    }
}

/// The last starts of one container, newest first.
fn read_container(guest: &Guest, folder: &GuestPath, name: &str, found: &mut LastWords) {
    let mut starts: Vec<(u64, String)> = names_in(guest, folder)
        .filter_map(|file| Some((file.strip_suffix(".log")?.parse().ok()?, file)))
        .collect();
    starts.sort_unstable();
    let mut gatherer = Gatherer::default();
    for (_, file) in starts.iter().rev().take(NEWEST) {
        let path = folder.join(file);
        let Some(tail) = tail::read(guest, &path, TAIL) else {
            continue;
        };
        found.files.push(path.clone());
        found.is_cut |= tail.is_cut;
        // The last line before a container ends may be why it ended, without saying how bad it is.
        let mut is_last = true;
        for line in tail.lines().rev() {
            let Some((at, text)) = container::parse(line) else {
                continue;
            };
            gatherer.add(&Line {
                at,
                boot: None,
                source: name,
                text: &text,
                is_error: message::is_error(&text, None) || is_last && !message::has_level(&text),
                file: &path,
            });
            is_last = false;
        }
    }
    found.is_cut |= starts.len() > NEWEST;
    gatherer.finish(found);
}

/// The names in a folder, in order; none where it cannot be read.
fn names_in(guest: &Guest, folder: &GuestPath) -> impl Iterator<Item = String> {
    let entries = guest.read_dir(folder).unwrap_or_default();
    let mut names: Vec<String> = entries
        .into_iter()
        .filter_map(|entry| entry.name.into_string().ok())
        .collect();
    names.sort_unstable();
    names.into_iter()
}
