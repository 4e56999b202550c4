//! Facts about the powered-off node, each with where it was read.

mod boot;
mod certificate_dir;
mod clock;
mod containerd;
pub mod flags;
mod kubeadm;
mod kubelet;
mod manifest_backups;
mod name;
mod os;
mod packages;
mod pod_mounts;
mod role;
mod runtime;
mod runtime_units;
mod static_pods;
mod version;

#[cfg(test)]
mod tests;

use time::OffsetDateTime;

use crate::guest::{Guest, GuestPath, Origin};
use crate::systemd::Unit;

pub use boot::boot_lines;
pub use clock::clock_refusal;
pub use containerd::{ContainerdFile, containerd_files};
pub use kubeadm::{Kubeadm, kubeadm};
pub use manifest_backups::{ManifestBackup, manifest_backups, version_of};
pub use name::{Names, Witness};
pub use os::os_release;
pub use packages::package_version;
pub use pod_mounts::{HostVolume, PodMounts, Reached};
pub(crate) use runtime::endpoint;
pub use runtime_units::{RuntimeUnit, runtime_units};
pub use static_pods::{Manifest, SamePod, read_one as read_manifest};

/// One fact: what is known, and where it was read. `value: None` is "unknown".
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Fact<T> {
    /// What is known.
    pub value: Option<T>,
    /// Guest path (with `:LINE` where that helps) or a short phrase such as "kubeadm's default".
    pub source: String,
}

impl<T> Fact<T> {
    /// A known fact.
    pub fn known(value: T, source: impl std::fmt::Display) -> Self {
        Self {
            value: Some(value),
            source: source.to_string(),
        }
    }

    /// An unknown one; `looked` says where it was looked for.
    pub fn unknown(looked: impl std::fmt::Display) -> Self {
        Self {
            value: None,
            source: looked.to_string(),
        }
    }
}

/// What the node is in its cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// kubeadm control plane: static pod manifests of an API server.
    ControlPlane,
    /// kubeadm worker: joined, no API server.
    Worker,
    /// An etcd member of kubeadm's and nothing else: a static pod run by a kubelet that belongs to
    /// no cluster.
    Etcd,
    /// k3s, RKE2, MicroK8s, OpenShift …: recognised by name; what they do by themselves is in the
    /// node's `distribution`.
    OtherDistribution,
    /// A Linux system without Kubernetes.
    NotKubernetes,
}

/// `major.minor.patch`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
pub struct Version {
    /// 1
    pub major: u32,
    /// 20
    pub minor: u32,
    /// 2
    pub patch: u32,
}

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

/// The kubelet as its unit will start it.
#[derive(Debug, Clone)]
pub struct Kubelet {
    /// The unit and its effective drop-ins; `None` when there is no kubelet.service.
    pub unit: Option<Unit>,
    /// Flags of the effective command line, `--name` to value, in order; a bare flag has the value
    /// `true`.
    pub flags: Vec<(String, String)>,
    /// `--config`, usually /var/lib/kubelet/config.yaml.
    pub config_path: Fact<GuestPath>,
    /// The parsed config; null where it is not there or damaged.
    pub config: serde_json::Value,
    /// `--kubeconfig`, usually /etc/kubernetes/kubelet.conf.
    pub kubeconfig: Fact<GuestPath>,
    /// `--bootstrap-kubeconfig`; unknown where the flag is absent.
    pub bootstrap_kubeconfig: Fact<GuestPath>,
    /// `--cert-dir`, usually /var/lib/kubelet/pki.
    pub cert_dir: Fact<GuestPath>,
}

impl Kubelet {
    /// Where the unit's command line has the last word of a flag (`--name`, dashes included).
    pub fn flag_origin(&self, name: &str) -> Option<Origin> {
        let words = self.unit.as_ref()?.argv_with_origins();
        let is_flag = |word: &str| {
            let rest = word.strip_prefix(name);
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('='))
        };
        let (_, at) = words.into_iter().rev().find(|(word, _)| is_flag(word))?;
        Some(Origin::line(at.path.clone(), at.line))
    }

    /// The last value of a flag (`--name`, dashes included), as the kubelet itself takes it.
    pub fn flag(&self, name: &str) -> Option<&str> {
        self.flags
            .iter()
            .rev()
            .find(|(flag, _)| flag == name)
            .map(|(_, value)| value.as_str())
    }
}

/// The newest time seen on the disk: the node was alive then.
#[derive(Debug, Clone)]
pub struct ClockEvidence {
    /// That time.
    pub newest: OffsetDateTime,
    /// Where it was seen: "modification time of /var/log/syslog", "superblock's last write time".
    pub source: String,
}

/// Everything known about one node.
#[derive(Debug, Clone)]
pub struct Node {
    /// PRETTY_NAME of os-release.
    pub os: Fact<String>,
    /// /etc/hostname.
    pub hostname: Fact<String>,
    /// /etc/machine-id.
    pub machine_id: Fact<String>,
    /// Kubelet's version.
    pub kubelet_version: Fact<Version>,
    /// Role in the cluster.
    pub role: Fact<Role>,
    /// For [`Role::OtherDistribution`]: its name and what it does by itself, one or two sentences.
    pub distribution: Fact<String>,
    /// Name of the Node object; unknown where what speaks of it contradicts itself.
    pub node_name: Fact<String>,
    /// All that speaks of it.
    pub names: Names,
    /// containerd, docker, cri-o.
    pub container_runtime: Fact<String>,
    /// kubeadm's certificatesDir, usually /etc/kubernetes/pki.
    pub certificate_dir: Fact<GuestPath>,
    /// The kubelet's staticPodPath.
    pub manifest_dir: Fact<GuestPath>,
    /// All files in it that the kubelet reads, damaged ones too, in byte order of their names.
    pub manifests: Vec<Manifest>,
    /// Static pods that it is meant to run, one of each name: path of the file and the flags of its
    /// first container. Of several files of one pod, the one that stays (see [`Node::same_pods`]);
    /// nothing may be concluded from the others.
    pub static_pods: Vec<StaticPod>,
    /// The kubelet.
    pub kubelet: Kubelet,
    /// Newest time on the disk.
    pub clock: Option<ClockEvidence>,
    /// Why its claim to be a control plane is not believed in this run; its role is that of a
    /// worker then.
    pub doubt: Option<Doubt>,
}

/// A disk says that it is a control plane, and holds none of the keys that only control planes
/// have.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Doubt {
    /// Where it says so.
    pub claim: String,
    /// The control plane of the run whose cluster it says it is of.
    pub by: String,
}

/// One static pod manifest.
#[derive(Debug, Clone)]
pub struct StaticPod {
    /// The file.
    pub path: GuestPath,
    /// `metadata.name`.
    pub name: String,
    /// `image` of the first container.
    pub image: String,
    /// Command-line flags of the first container (command and args), `--name` to value.
    pub flags: Vec<(String, String)>,
    /// What the first container sees of the node's files.
    pub mounts: PodMounts,
}

impl StaticPod {
    /// The last value of a flag (`--name`, dashes included).
    pub fn flag(&self, name: &str) -> Option<&str> {
        self.flags
            .iter()
            .rev()
            .find(|(flag, _)| flag == name)
            .map(|(_, value)| value.as_str())
    }
}

impl Node {
    /// How people call it: the Node object's name, else the hostname, else `source`.
    pub fn name<'a>(&'a self, source: &'a str) -> &'a str {
        self.node_name
            .value
            .as_deref()
            .or(self.hostname.value.as_deref())
            .unwrap_or(source)
    }

    /// Reads the facts. Never fails: what cannot be read is unknown, with the reason as its source.
    pub fn read(guest: &Guest) -> Self {
        Self::read_keeping(guest, None)
    }

    /// Reads them again on the same guest with planned changes. Version and clock evidence stay: no
    /// remedy changes them, and they are dear to read (a whole binary, many folders).
    #[must_use]
    pub fn read_again(&self, guest: &Guest) -> Self {
        Self::read_keeping(guest, Some(self))
    }

    fn read_keeping(guest: &Guest, known: Option<&Self>) -> Self {
        let hostname = os::hostname(guest);
        let kubelet = kubelet::read(guest);
        let manifest_dir = static_pods::folder(guest, &kubelet);
        let manifests = manifest_dir
            .value
            .as_ref()
            .map(|folder| static_pods::read(guest, folder))
            .unwrap_or_default();
        let static_pods = static_pods::meant(&manifests);
        let certificate_dir = certificate_dir::find(guest, &static_pods, &kubelet);
        let (role, distribution) = role::find(
            guest,
            &static_pods,
            &manifest_dir,
            &certificate_dir,
            &kubelet,
        );
        let decided = known.and_then(|known| known.names.decided.as_deref());
        let names = name::read(guest, &kubelet, &hostname, &static_pods, decided);
        Self {
            os: os::name(guest),
            machine_id: os::machine_id(guest),
            kubelet_version: known.map_or_else(
                || version::find(guest, kubelet.unit.as_ref(), &static_pods),
                |known| known.kubelet_version.clone(),
            ),
            role,
            distribution,
            node_name: name::find(&names),
            names,
            hostname,
            container_runtime: runtime::find(guest, &kubelet),
            certificate_dir,
            manifest_dir,
            clock: known.map_or_else(
                || clock::evidence(guest, &static_pods, &kubelet),
                |known| known.clock.clone(),
            ),
            manifests,
            static_pods,
            kubelet,
            doubt: None,
        }
        .doubted_as(known)
    }

    /// The same with the name that the user decided on.
    #[must_use]
    pub fn named(mut self, name: &str) -> Self {
        self.names.decided = Some(name.to_owned());
        self.node_name = name::find(&self.names);
        self
    }

    /// A doubt stays, whatever was planned since.
    fn doubted_as(self, known: Option<&Self>) -> Self {
        match known.and_then(|known| known.doubt.as_ref()) {
            Some(doubt) if self.role.value == Some(Role::ControlPlane) => self.doubted(&doubt.by),
            _ => self,
        }
    }

    /// The same, its claim to be a control plane not believed because of `by`.
    #[must_use]
    pub fn doubted(mut self, by: &str) -> Self {
        self.doubt = Some(Doubt {
            claim: self.role.source,
            by: by.to_owned(),
        });
        self.role = Fact::known(
            Role::Worker,
            "no private key of a control plane is on this disk",
        );
        self
    }

    /// The static pod whose `metadata.name` is `name` (`kube-apiserver`, `etcd` …).
    pub fn static_pod(&self, name: &str) -> Option<&StaticPod> {
        self.static_pods.iter().rev().find(|pod| pod.name == name)
    }

    /// Whole manifests of pods that several files describe: which file runs, which is meant, and
    /// all of them in byte order.
    pub fn same_pods(&self) -> Vec<(SamePod<'_>, Vec<&Manifest>)> {
        let groups = static_pods::same_pods(&self.manifests).into_iter();
        groups
            .filter(|group| group.len() > 1 && group.iter().all(|file| file.damage.is_none()))
            .filter_map(|group| Some((static_pods::choose(&group)?, group)))
            .collect()
    }
}
