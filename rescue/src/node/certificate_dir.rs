//! kubeadm's certificatesDir, from what the node itself uses.

use super::{Fact, Kubelet, StaticPod};
use crate::base::yaml;
use crate::guest::{Guest, GuestPath};

/// From the API server's flags, else from the other manifests, else from the kubelet's config, else
/// kubeadm's default.
pub(super) fn find(guest: &Guest, pods: &[StaticPod], kubelet: &Kubelet) -> Fact<GuestPath> {
    from_manifests(pods)
        .or_else(|| from_kubelet(kubelet))
        .unwrap_or_else(|| {
            let default = GuestPath::new("/etc/kubernetes/pki");
            if guest.exists(&default) {
                Fact::known(default, "kubeadm's default")
            } else {
                Fact::unknown(
                    "no manifest or kubelet config names it, and /etc/kubernetes/pki is not there",
                )
            }
        })
}

/// Flags that name a file directly in the folder, per static pod, best first.
const SIGNS: [(&str, &str); 5] = [
    ("kube-apiserver", "--client-ca-file"),
    ("kube-apiserver", "--tls-cert-file"),
    ("kube-controller-manager", "--root-ca-file"),
    ("kube-controller-manager", "--cluster-signing-cert-file"),
    ("kube-controller-manager", "--client-ca-file"),
];

fn from_manifests(pods: &[StaticPod]) -> Option<Fact<GuestPath>> {
    let value = |name: &str, flag: &str| {
        let pod = pods.iter().rev().find(|pod| pod.name == name)?;
        Some((pod, pod.flag(flag).filter(|value| value.starts_with('/'))?))
    };
    let direct = SIGNS.iter().find_map(|(name, flag)| {
        let (pod, file) = value(name, flag)?;
        Some(Fact::known(
            GuestPath::new(file).parent(),
            format!("{} {flag}", pod.path),
        ))
    });
    // etcd's certificates are one folder deeper.
    direct.or_else(|| {
        let (pod, file) = value("etcd", "--trusted-ca-file")?;
        let folder = GuestPath::new(file).parent();
        folder
            .as_path()
            .ends_with("etcd")
            .then(|| Fact::known(folder.parent(), format!("{} --trusted-ca-file", pod.path)))
    })
}

fn from_kubelet(kubelet: &Kubelet) -> Option<Fact<GuestPath>> {
    if let Some(file) = kubelet.flag("--client-ca-file") {
        return Some(Fact::known(
            GuestPath::new(file).parent(),
            "kubelet's --client-ca-file",
        ));
    }
    let file = yaml::text_at(&kubelet.config, &["authentication", "x509", "clientCAFile"])?;
    let config = kubelet.config_path.value.as_ref()?;
    Some(Fact::known(
        GuestPath::new(file).parent(),
        format!("{config} clientCAFile"),
    ))
}
