//! The key pair that signs and verifies every service account's token. It has no certificate and no end, and it is never made
//! anew: every token in the cluster would stop being accepted.

use crate::guest::GuestPath;
use crate::node::Node;

use super::inventory::certificate_directory;

/// Who names a file with one of the keys, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyFile {
    /// Guest path.
    pub path: GuestPath,
    /// `kube-apiserver --service-account-key-file`; "kubeadm's default" where no manifest says it.
    pub named_by: Vec<String>,
}

/// The files as the manifests name them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KeyFiles {
    /// With which tokens are signed. Several only where API server and controller manager differ.
    pub signing: Vec<KeyFile>,
    /// With which the API server verifies them, in order.
    pub verifying: Vec<KeyFile>,
}

/// The flags that name the private key.
const SIGNING: [(&str, &str); 2] = [
    ("kube-apiserver", "--service-account-signing-key-file"),
    ("kube-controller-manager", "--service-account-private-key-file"),
];

/// The flag that names a public key; it may be given several times.
const VERIFYING: [(&str, &str); 1] = [("kube-apiserver", "--service-account-key-file")];

impl KeyFiles {
    /// From the manifests' flags; kubeadm's own names where they are silent.
    pub fn of(node: &Node) -> Self {
        let or_default = |files: Vec<KeyFile>, name: &str| match files.is_empty() {
            true => vec![KeyFile {
                path: certificate_directory(node).join(name),
                named_by: vec!["kubeadm's default".to_owned()],
            }],
            false => files,
        };
        Self {
            signing: or_default(named(node, &SIGNING), "sa.key"),
            verifying: or_default(named(node, &VERIFYING), "sa.pub"),
        }
    }
}

/// All files with such a key.
pub fn paths(node: &Node) -> Vec<GuestPath> {
    let KeyFiles { signing, verifying } = KeyFiles::of(node);
    signing.into_iter().chain(verifying).map(|file| file.path).collect()
}

fn named(node: &Node, flags: &[(&str, &str)]) -> Vec<KeyFile> {
    let mut files: Vec<KeyFile> = Vec::new();
    for (pod, flag) in flags {
        let values = node.static_pod(pod).into_iter().flat_map(|pod| &pod.flags);
        for (_, value) in values.filter(|(name, value)| name == flag && value.starts_with('/')) {
            let (path, user) = (GuestPath::new(value), format!("{pod} {flag}"));
            match files.iter_mut().find(|file| file.path == path) {
                Some(file) => file.named_by.push(user),
                None => files.push(KeyFile { path, named_by: vec![user] }),
            }
        }
    }
    files
}
