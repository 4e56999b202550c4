//! What the node is in its cluster, and whose cluster it is.

use super::{Fact, Kubelet, Role, StaticPod, os, static_pods};
use crate::guest::{Guest, GuestPath};

/// A distribution that brings nodes back by its own means.
struct Distribution {
    name: &'static str,
    /// One of these files shows it.
    signs: &'static [&'static str],
    /// What it does by itself.
    does: &'static str,
}

const DISTRIBUTIONS: [Distribution; 9] = [
    Distribution {
        name: "RKE2",
        signs: &[
            "/usr/local/lib/systemd/system/rke2-server.service",
            "/usr/local/lib/systemd/system/rke2-agent.service",
            "/usr/lib/systemd/system/rke2-server.service",
            "/usr/lib/systemd/system/rke2-agent.service",
            "/etc/rancher/rke2",
            "/var/lib/rancher/rke2/server",
            "/var/lib/rancher/rke2/agent",
        ],
        does: "it renews its certificates by itself whenever it starts and they are expired or \
            close to it: just boot it",
    },
    Distribution {
        name: "k3s",
        signs: &[
            "/etc/systemd/system/k3s.service",
            "/etc/systemd/system/k3s-agent.service",
            "/etc/init.d/k3s",
            "/etc/rancher/k3s",
            "/var/lib/rancher/k3s/server",
            "/var/lib/rancher/k3s/agent",
        ],
        does: "it renews its certificates by itself whenever it starts and they are expired or \
            close to it: just boot it",
    },
    Distribution {
        name: "MicroK8s",
        signs: &["/var/snap/microk8s", "/snap/microk8s"],
        does: "boot it and run `microk8s refresh-certs` if its certificates have expired",
    },
    Distribution {
        name: "k0s",
        signs: &[
            "/etc/systemd/system/k0scontroller.service",
            "/etc/systemd/system/k0sworker.service",
            "/var/lib/k0s/pki",
        ],
        does: "its controller renews certificates by itself when it starts: just boot it",
    },
    Distribution {
        name: "OpenShift",
        signs: &[
            "/etc/machine-config-daemon",
            "/etc/kubernetes/static-pod-resources",
        ],
        does: "its control plane recovers from expired certificates by itself after boot; pending \
            node requests then need `oc adm certificate approve`",
    },
    Distribution {
        name: "Talos",
        signs: &["/etc/talos", "/system/state/config.yaml"],
        does: "its machine configuration holds the CAs and it issues certificates at every boot: \
            just boot it",
    },
    Distribution {
        name: "RKE1",
        signs: &["/opt/rke", "/etc/kubernetes/ssl/kube-apiserver.pem"],
        does: "its certificates are renewed from outside by `rke cert rotate` with the cluster's \
            own configuration",
    },
    Distribution {
        name: "kubeasz",
        signs: &[
            "/etc/kubernetes/kubelet.kubeconfig",
            "/etc/systemd/system/kube-apiserver.service",
        ],
        does: "its components are systemd services with certificates made for decades; renew them \
            with kubeasz itself",
    },
    Distribution {
        name: "a cluster without kubeadm",
        signs: &[
            "/usr/lib/systemd/system/kube-apiserver.service",
            "/etc/kubernetes/apiserver",
        ],
        does: "its control plane runs as systemd services; this program knows kubeadm's static \
            pods only",
    },
];

/// The role, and for another distribution its name and what it does by itself.
pub(super) fn find(
    guest: &Guest,
    pods: &[StaticPod],
    manifests: &Fact<GuestPath>,
    certificates: &Fact<GuestPath>,
    kubelet: &Kubelet,
) -> (Fact<Role>, Fact<String>) {
    let kubeadm = kubeadm_role(guest, pods, manifests, certificates, kubelet);
    let other = distribution(guest);
    match (kubeadm, other) {
        // OpenShift has an API server manifest too, so it is asked first; for the others kubeadm's
        // own manifest decides.
        (_, Some(("OpenShift", fact))) => (
            Fact::known(Role::OtherDistribution, fact.source.clone()),
            fact,
        ),
        (Some(role), None) => (role, Fact::unknown("kubeadm")),
        (Some(role), Some(_)) if role.value == Some(Role::ControlPlane) => {
            (role, Fact::unknown("kubeadm"))
        }
        (_, Some((_, fact))) => (
            Fact::known(Role::OtherDistribution, fact.source.clone()),
            fact,
        ),
        (None, None) => {
            let looked =
                "no API server manifest, kubelet.conf, kubelet config or known distribution";
            (
                Fact::known(Role::NotKubernetes, looked),
                Fact::unknown(looked),
            )
        }
    }
}

fn kubeadm_role(
    guest: &Guest,
    pods: &[StaticPod],
    manifests: &Fact<GuestPath>,
    certificates: &Fact<GuestPath>,
    kubelet: &Kubelet,
) -> Option<Fact<Role>> {
    if let Some(pod) = pods.iter().find(|pod| pod.name == "kube-apiserver") {
        return Some(Fact::known(Role::ControlPlane, &pod.path));
    }
    // A damaged manifest does not make a control plane a worker.
    let files = manifests
        .value
        .as_ref()
        .map(|folder| static_pods::names(guest, folder))
        .unwrap_or_default();
    if let Some(path) = files.iter().find(|path| {
        path.as_path()
            .file_name()
            .is_some_and(|name| name == "kube-apiserver.yaml")
    }) {
        return Some(Fact::known(
            Role::ControlPlane,
            format!("{path} (which cannot be read as a pod)"),
        ));
    }
    if let Some(folder) = &certificates.value {
        let certificate = folder.join("apiserver.crt");
        if guest.exists(&certificate) && guest.exists(&folder.join("apiserver.key")) {
            return Some(Fact::known(
                Role::ControlPlane,
                format!("{certificate} (the API server's manifest is missing)"),
            ));
        }
    }
    if let Some(sign) = etcd_alone(pods, &files, kubelet) {
        return Some(Fact::known(Role::Etcd, sign));
    }
    [&kubelet.kubeconfig.value, &kubelet.config_path.value]
        .into_iter()
        .flatten()
        .find(|path| guest.exists(path))
        .map(|path| Fact::known(Role::Worker, format!("{path}, and no API server manifest")))
        .or_else(|| joined(guest))
}

/// What kubeadm leaves of a node that has joined, where the kubelet's unit does not name it any
/// more: a drop-in that a power cut emptied does not make a node a stranger.
fn joined(guest: &Guest) -> Option<Fact<Role>> {
    let left = [
        "/etc/kubernetes/kubelet.conf",
        "/var/lib/kubelet/config.yaml",
    ];
    let is_there = |path: &&str| guest.exists(&GuestPath::new(path));
    left.iter().all(is_there).then(|| {
        let sign = format!("{} and {}, and no API server manifest", left[0], left[1]);
        Fact::known(Role::Worker, sign)
    })
}

/// What shows that the node only runs etcd, as "Set up a High Availability etcd Cluster with
/// kubeadm" has it: etcd's manifest, and a kubelet that is started without any kubeconfig.
fn etcd_alone(pods: &[StaticPod], manifests: &[GuestPath], kubelet: &Kubelet) -> Option<String> {
    if kubelet.kubeconfig.value.is_some() || kubelet.bootstrap_kubeconfig.value.is_some() {
        return None;
    }
    let by_pod = pods
        .iter()
        .find(|pod| pod.name == "etcd")
        .map(|pod| pod.path.to_string());
    let by_name = || {
        let is_etcds = |path: &&GuestPath| {
            path.as_path()
                .file_name()
                .is_some_and(|name| name == "etcd.yaml")
        };
        manifests
            .iter()
            .find(is_etcds)
            .map(|path| format!("{path} (which cannot be read as a pod)"))
    };
    let manifest = by_pod.or_else(by_name)?;
    Some(format!(
        "{manifest}, no API server manifest, and a kubelet without a kubeconfig"
    ))
}

fn distribution(guest: &Guest) -> Option<(&'static str, Fact<String>)> {
    let by_file = DISTRIBUTIONS.iter().find_map(|distribution| {
        let sign = distribution
            .signs
            .iter()
            .map(GuestPath::new)
            .find(|path| guest.lstat(path).is_ok())?;
        Some((distribution, sign.to_string()))
    });
    let by_os = || {
        let (path, pairs) = os::os_release(guest)?;
        let id = pairs
            .iter()
            .rev()
            .find(|(name, _)| name == "ID")
            .map(|(_, value)| value.as_str())?;
        let name = match id {
            "rhcos" | "scos" => "OpenShift",
            "talos" => "Talos",
            _ => return None,
        };
        let distribution = DISTRIBUTIONS
            .iter()
            .find(|distribution| distribution.name == name)?;
        Some((distribution, format!("{path} ID={id}")))
    };
    let (distribution, sign) = by_file.or_else(by_os)?;
    let text = format!("{}: {}", distribution.name, distribution.does);
    Some((distribution.name, Fact::known(text, sign)))
}
