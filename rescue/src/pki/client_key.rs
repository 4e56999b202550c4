//! The private keys on a node that are, or will be, its kubelet's: the one it authenticates with,
//! and the one that was made for a certificate request. A certificate that expired nearly always
//! has a good key still beside it.

use anyhow::Result;
use std::fmt;
use zeroize::Zeroizing;

use super::kubelet::KubeletClient;
use super::x509::certificate::Certificate;
use super::x509::key::PrivateKey;
use super::x509::pem;
use crate::change::Change;
use crate::guest::{Guest, GuestPath};
use crate::kubeconfig::{Kubeconfig, Material};

/// Where a key waits for its certificate, beside the kubelet's own; the kubelet knows no file of
/// this name.
const REQUESTED: &str = "kubelet-client-requested.key";

/// The file in which a new key waits for its certificate.
pub fn pending(client: &KubeletClient) -> GuestPath {
    client.cert_dir.join(REQUESTED)
}

/// A key with the bytes of its own PEM block, which a reused key keeps.
pub struct ClientKey {
    /// The key.
    pub key: PrivateKey,
    /// Its PEM block.
    pub pem: Zeroizing<String>,
    /// The file it is in.
    pub path: GuestPath,
    /// Whether it waits in a file of its own for its certificate.
    pub pending: bool,
}

impl fmt::Debug for ClientKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ClientKey({}, {:?})", self.path, self.key)
    }
}

impl ClientKey {
    /// The first key in some PEM.
    pub fn from_pem(bytes: &[u8], path: &GuestPath) -> Result<Self> {
        let key = PrivateKey::from_pem(bytes)?;
        let block = pem::blocks(bytes)
            .into_iter()
            .find(|block| block.label.ends_with("PRIVATE KEY"));
        let pem = block
            .map(|block| pem::encode(&block.label, &block.der))
            .unwrap_or_default();
        Ok(Self {
            key,
            pem: Zeroizing::new(pem),
            path: path.clone(),
            pending: false,
        })
    }
}

/// All readable ones, the kubelet's own first.
pub fn all(guest: &Guest, client: &KubeletClient) -> Vec<ClientKey> {
    let mut found: Vec<ClientKey> = own(guest, client).into_iter().collect();
    let waiting = pending(client);
    for path in [client.current(), waiting.clone()] {
        let key = guest
            .read(&path)
            .ok()
            .and_then(|bytes| ClientKey::from_pem(&bytes, &path).ok());
        found.extend(key.map(|key| ClientKey {
            pending: path == waiting,
            ..key
        }));
    }
    found
}

/// The one to request a certificate for: what the kubelet authenticates with where that belongs to
/// its certificate, else one that was made for a request before.
pub fn usable(guest: &Guest, client: &KubeletClient) -> Option<ClientKey> {
    let fits = |certificate: &Certificate, key: &ClientKey| certificate.matches(&key.key);
    let certificate = client.certificate.as_ref();
    all(guest, client)
        .into_iter()
        .find(|key| key.pending || certificate.is_some_and(|old| fits(old, key)))
}

/// What the kubeconfig leads to.
fn own(guest: &Guest, client: &KubeletClient) -> Option<ClientKey> {
    let config =
        Kubeconfig::parse(&guest.read(&client.kubeconfig).ok()?, &client.kubeconfig).ok()?;
    match &config.current_user()?.key {
        Material::Inline(bytes) => ClientKey::from_pem(bytes, &client.kubeconfig).ok(),
        Material::File(path) => ClientKey::from_pem(&guest.read(path).ok()?, path).ok(),
        Material::None => None,
    }
}

/// Takes away the key that waited, once it is where it belongs.
pub fn remove_pending(guest: &Guest, cert_dir: &GuestPath) -> Result<Change> {
    Ok(Change::remove(guest, &cert_dir.join(REQUESTED))?)
}
