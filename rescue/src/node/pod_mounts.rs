//! Which files of the node a static pod's container sees, and under which names.

use std::path::Path;

use serde_json::Value;

use crate::base::yaml;
use crate::guest::GuestPath;

/// A folder or file of the node that a pod wants (`spec.volumes[].hostPath`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostVolume {
    /// Its name in the pod.
    pub name: String,
    /// Where it is on the node.
    pub path: GuestPath,
    /// `hostPath.type`: `Directory`, `DirectoryOrCreate`, `File`, `FileOrCreate`, `Socket` and so
    /// on; empty where the kubelet does not look.
    pub kind: String,
}

/// Where a container sees something (`volumeMounts[]`).
#[derive(Debug, Clone, PartialEq, Eq)]
struct Mount {
    /// The place in the container.
    at: String,
    /// The place on the node; `None` where it is no part of it (a projected volume, an emptyDir).
    from: Option<GuestPath>,
}

/// The volumes of a pod and the mounts of its first container.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PodMounts {
    /// What it wants of the node.
    pub volumes: Vec<HostVolume>,
    mounts: Vec<Mount>,
}

/// What a path in a container leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reached {
    /// A file of the node.
    Host(GuestPath),
    /// Something of a mount that is no part of the node's disk.
    Elsewhere,
    /// The container's image: no mount brings anything there.
    Image,
}

impl PodMounts {
    /// Of a manifest, parsed; `container`: its first one.
    pub(super) fn read(manifest: &Value, container: &Value) -> Self {
        let list = |value: Option<&Value>| value.and_then(Value::as_array).cloned();
        let volumes = list(manifest.pointer("/spec/volumes")).unwrap_or_default();
        let volumes: Vec<HostVolume> = volumes.iter().filter_map(host_volume).collect();
        let mounts = list(container.get("volumeMounts")).unwrap_or_default();
        let mounts = mounts.iter().filter_map(|mount| mounted(mount, &volumes));
        Self {
            mounts: mounts.collect(),
            volumes,
        }
    }

    /// What `path`, as the container names it, leads to: the mount with the longest place wins.
    pub fn reach(&self, path: &str) -> Reached {
        let inside = |mount: &&Mount| Path::new(path).starts_with(&mount.at);
        let longest = |mount: &&Mount| Path::new(&mount.at).components().count();
        let Some(mount) = self.mounts.iter().filter(inside).max_by_key(longest) else {
            return Reached::Image;
        };
        let Some(from) = &mount.from else {
            return Reached::Elsewhere;
        };
        match Path::new(path).strip_prefix(&mount.at) {
            Ok(rest) if rest.as_os_str().is_empty() => Reached::Host(from.clone()),
            Ok(rest) => Reached::Host(from.join(rest)),
            Err(_) => Reached::Image,
        }
    }
}

fn host_volume(volume: &Value) -> Option<HostVolume> {
    let path = yaml::text_at(volume, &["hostPath", "path"])?;
    let kind = yaml::text_at(volume, &["hostPath", "type"]);
    path.starts_with('/').then(|| HostVolume {
        name: yaml::text_at(volume, &["name"])
            .unwrap_or_default()
            .to_owned(),
        path: GuestPath::new(path),
        kind: kind.unwrap_or_default().to_owned(),
    })
}

fn mounted(mount: &Value, volumes: &[HostVolume]) -> Option<Mount> {
    let at = yaml::text_at(mount, &["mountPath"])?.to_owned();
    let name = yaml::text_at(mount, &["name"])?;
    let volume = volumes.iter().find(|volume| volume.name == name);
    let below = yaml::text_at(mount, &["subPath"]);
    let from = volume.map(|volume| match below {
        Some(below) => volume.path.join(below),
        None => volume.path.clone(),
    });
    Some(Mount { at, from })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mounts(text: &str) -> PodMounts {
        let manifest = yaml::parse(text.as_bytes()).unwrap();
        let container = manifest.pointer("/spec/containers/0").unwrap().clone();
        PodMounts::read(&manifest, &container)
    }

    #[test]
    fn the_longest_mount_decides() {
        let mounts = mounts(
            "spec:\n  containers:\n  - volumeMounts:\n    \
             - {mountPath: /etc/kubernetes/pki, name: certs}\n    \
             - {mountPath: /etc/kubernetes/pki/etcd, name: etcd}\n    \
             - {mountPath: /tmp/x, name: scratch}\n    \
             - {mountPath: /one, name: certs, subPath: a/b}\n  volumes:\n  \
             - {name: certs, hostPath: {path: /srv/pki}}\n  \
             - {name: etcd, hostPath: {path: /srv/etcd, type: Directory}}\n  \
             - {name: scratch, emptyDir: {}}\n",
        );
        let host = |path: &str| Reached::Host(GuestPath::new(path));
        assert_eq!(
            mounts.reach("/etc/kubernetes/pki/ca.crt"),
            host("/srv/pki/ca.crt")
        );
        assert_eq!(
            mounts.reach("/etc/kubernetes/pki/etcd/ca.crt"),
            host("/srv/etcd/ca.crt")
        );
        assert_eq!(mounts.reach("/etc/kubernetes/pki"), host("/srv/pki"));
        assert_eq!(mounts.reach("/one/c"), host("/srv/pki/a/b/c"));
        assert_eq!(mounts.reach("/tmp/x/file"), Reached::Elsewhere);
        assert_eq!(mounts.reach("/etc/kubernetes/pkix/ca.crt"), Reached::Image);
        assert_eq!(mounts.volumes[1].kind, "Directory");
    }
}
