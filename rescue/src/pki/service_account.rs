//! The key pair that signs and verifies every service account's token. It has no certificate and no
//! end, and it is never made anew: every token in the cluster would stop being accepted.

use anyhow::{Context as _, Result};
use std::rc::Rc;
use x509_parser::prelude::FromDer as _;
use x509_parser::x509::SubjectPublicKeyInfo;

use super::inventory::certificate_directory;
use super::x509::certificate::Certificate;
use super::x509::key::PrivateKey;
use super::x509::pem;
use crate::change::Content;
use crate::guest::{Guest, GuestPath};
use crate::node::Node;

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

/// Says that no manifest names a file.
const DEFAULT: &str = "kubeadm's default";

/// The flags that name the private key.
const SIGNING: [(&str, &str); 2] = [
    ("kube-apiserver", "--service-account-signing-key-file"),
    (
        "kube-controller-manager",
        "--service-account-private-key-file",
    ),
];

/// The flag that names a public key; it may be given several times.
const VERIFYING: [(&str, &str); 1] = [("kube-apiserver", "--service-account-key-file")];

impl KeyFiles {
    /// From the manifests' flags; kubeadm's own names where they are silent.
    pub fn of(node: &Node) -> Self {
        let or_default = |files: Vec<KeyFile>, name: &str| match files.is_empty() {
            true => vec![KeyFile {
                path: certificate_directory(node).join(name),
                named_by: vec![DEFAULT.to_owned()],
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
    signing
        .into_iter()
        .chain(verifying)
        .map(|file| file.path)
        .collect()
}

fn named(node: &Node, flags: &[(&str, &str)]) -> Vec<KeyFile> {
    let mut files: Vec<KeyFile> = Vec::new();
    for (pod, flag) in flags {
        let values = node.static_pod(pod).into_iter().flat_map(|pod| &pod.flags);
        for (_, value) in values.filter(|(name, value)| name == flag && value.starts_with('/')) {
            let (path, user) = (GuestPath::new(value), format!("{pod} {flag}"));
            match files.iter_mut().find(|file| file.path == path) {
                Some(file) => file.named_by.push(user),
                None => files.push(KeyFile {
                    path,
                    named_by: vec![user],
                }),
            }
        }
    }
    files
}

/// Why a key file is of no use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trouble {
    /// It is not there; else it is empty or garbage.
    pub missing: bool,
    /// What was seen.
    pub saw: String,
}

/// A file with the private key, as it is.
#[derive(Debug, Clone)]
pub struct SigningKey {
    /// Which.
    pub file: KeyFile,
    /// The key and its file's bytes, or why not.
    pub key: Result<(Rc<PrivateKey>, Content), Trouble>,
}

/// A file with public keys, as it is.
#[derive(Debug, Clone)]
pub struct VerifyingKeys {
    /// Which.
    pub file: KeyFile,
    /// The bits of each public key in it, and its bytes, or why not.
    pub keys: Result<(Vec<Vec<u8>>, Content), Trouble>,
}

/// The service accounts' keys of one node.
#[derive(Debug, Clone, Default)]
pub struct ServiceAccounts {
    /// With which tokens are signed.
    pub signing: Vec<SigningKey>,
    /// With which they are verified.
    pub verifying: Vec<VerifyingKeys>,
}

impl ServiceAccounts {
    /// Reads the files; none where the node is no control plane and has none.
    pub fn read(guest: &Guest, node: &Node) -> Self {
        let files = KeyFiles::of(node);
        let expected = |file: &KeyFile| !file.is_default() || guest.exists(&file.path);
        let signing = files
            .signing
            .into_iter()
            .filter(expected)
            .map(|file| SigningKey {
                key: read(guest, &file.path, |bytes| {
                    PrivateKey::from_pem(bytes).map(Rc::new)
                }),
                file,
            });
        let verifying = files
            .verifying
            .into_iter()
            .filter(expected)
            .map(|file| VerifyingKeys {
                keys: read(guest, &file.path, public_keys),
                file,
            });
        Self {
            signing: signing.collect(),
            verifying: verifying.collect(),
        }
    }

    /// The public keys of all that tokens are signed with.
    pub fn signing_keys(&self) -> impl Iterator<Item = &[u8]> {
        self.signing
            .iter()
            .filter_map(|signing| signing.key.as_ref().ok())
            .map(|(key, _)| key.public_key())
    }

    /// Whether tokens signed by the key with these public bits are accepted.
    pub fn accepts(&self, public_key: &[u8]) -> bool {
        let keys = self
            .verifying
            .iter()
            .filter_map(|file| file.keys.as_ref().ok());
        keys.flat_map(|(keys, _)| keys).any(|key| key == public_key)
    }
}

impl KeyFile {
    /// Whether no manifest names it.
    pub fn is_default(&self) -> bool {
        self.named_by == [DEFAULT]
    }

    /// Whether the API server reads it, and exits where it cannot.
    pub fn is_api_servers(&self) -> bool {
        self.named_by
            .iter()
            .any(|user| user.starts_with("kube-apiserver "))
    }
}

fn read<T>(
    guest: &Guest,
    path: &GuestPath,
    parse: impl Fn(&[u8]) -> Result<T>,
) -> Result<(T, Content), Trouble> {
    let bytes = guest.read(path).map_err(|error| Trouble {
        missing: error.is_not_found(),
        saw: if error.is_not_found() {
            "not there".to_owned()
        } else {
            error.to_string()
        },
    })?;
    let parsed = parse(&bytes).map_err(|error| Trouble {
        missing: false,
        saw: if bytes.is_empty() {
            "empty".to_owned()
        } else {
            format!("{error:#}")
        },
    })?;
    Ok((parsed, Content::new(bytes)))
}

/// The bits of every public key in a PEM file. As the API server reads it (client-go's
/// keyutil.ParsePublicKeysPEM): public keys, certificates and private keys count.
pub fn public_keys(bytes: &[u8]) -> Result<Vec<Vec<u8>>> {
    let keys: Vec<Vec<u8>> = pem::blocks(bytes).iter().filter_map(public_key).collect();
    (!keys.is_empty())
        .then_some(keys)
        .context("no public key in PEM was found in it")
}

fn public_key(block: &pem::Block) -> Option<Vec<u8>> {
    match block.label.as_str() {
        "CERTIFICATE" => Some(Certificate::from_der(&block.der).ok()?.public_key),
        label if label.ends_with("PRIVATE KEY") => {
            let key = PrivateKey::from_pem(pem::encode(label, &block.der).as_bytes()).ok()?;
            Some(key.public_key().to_vec())
        }
        _ => {
            let (rest, info) = SubjectPublicKeyInfo::from_der(&block.der).ok()?;
            info.parsed().ok().filter(|_| rest.is_empty())?;
            Some(info.subject_public_key.data.to_vec())
        }
    }
}

/// `sa.pub` as kubeadm writes it (pkiutil.WritePublicKey): PKIX in a `PUBLIC KEY` block.
pub fn public_pem(key: &PrivateKey) -> String {
    pem::encode("PUBLIC KEY", &key.public_key_info())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pki::x509::key::Algorithm;
    use crate::tree::MemoryTree;

    #[test]
    fn public_keys_come_back_in_every_form() {
        let key = PrivateKey::generate(Algorithm::Rsa(2048)).unwrap();
        let public = public_pem(&key);
        assert!(public.starts_with("-----BEGIN PUBLIC KEY-----\n"));
        assert_eq!(public_keys(public.as_bytes()).unwrap(), [key.public_key()]);
        assert_eq!(
            public_keys(key.to_pem().unwrap().as_bytes()).unwrap(),
            [key.public_key()]
        );
        let other = PrivateKey::generate(Algorithm::P256).unwrap();
        let both = format!("{public}{}", public_pem(&other));
        assert_eq!(
            public_keys(both.as_bytes()).unwrap(),
            [key.public_key(), other.public_key()]
        );
        assert!(public_keys(b"").is_err());
        assert!(public_keys(&public.as_bytes()[..200]).is_err());
        assert!(public_keys(pem::encode("PUBLIC KEY", b"0123").as_bytes()).is_err());
    }

    #[test]
    fn several_flags_and_kubeadms_defaults() {
        let guest = MemoryTree::new()
            .file(
                "/etc/kubernetes/manifests/a.yaml",
                "kind: Pod\nmetadata: {name: kube-apiserver}\n\
                 spec: {containers: [{command: [kube-apiserver, \
                 --service-account-key-file=/k/new.pub, --service-account-key-file=/k/old.pub, \
                 --client-ca-file=/k/ca.crt]}]}\n",
            )
            .file("/k/sa.key", "garbage")
            .into_guest();
        let node = Node::read(&guest);
        let found = ServiceAccounts::read(&guest, &node);
        let names: Vec<String> = found
            .verifying
            .iter()
            .map(|file| file.file.path.to_string())
            .collect();
        assert_eq!(names, ["/k/new.pub", "/k/old.pub"]);
        assert!(
            found
                .verifying
                .iter()
                .all(|file| file.keys.as_ref().is_err_and(|trouble| trouble.missing))
        );
        assert_eq!(found.signing[0].file.path, GuestPath::new("/k/sa.key"));
        assert!(
            found.signing[0]
                .key
                .as_ref()
                .is_err_and(|trouble| !trouble.missing)
        );
        let silent = MemoryTree::new()
            .file("/etc/hostname", "worker\n")
            .into_guest();
        let none = ServiceAccounts::read(&silent, &Node::read(&silent));
        assert!(none.signing.is_empty() && none.verifying.is_empty());
    }
}
