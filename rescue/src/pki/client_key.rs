//! The private keys on a node that are, or will be, its kubelet's: the one it authenticates with, and the one that was made for a
//! certificate request. A certificate that expired nearly always has a good key still beside it.

use anyhow::Result;
use serde_json::{Map, Value, json};
use std::fmt;
use zeroize::Zeroizing;

use super::certificate::Certificate;
use super::key::{Algorithm, PrivateKey};
use super::kubelet::KubeletClient;
use super::pem;
use super::renew::Draft;
use crate::checks::{Context, Remedy};
use crate::guest::{Guest, GuestPath};
use crate::kubeconfig::{Kubeconfig, Material};
use crate::repair::{Change, Prepared};

/// Where a key waits for its certificate, beside the kubelet's own; the kubelet knows no file of this name.
const REQUESTED: &str = "kubelet-client-requested.key";

fn pending(client: &KubeletClient) -> GuestPath {
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
        let block = pem::blocks(bytes).into_iter().find(|block| block.label.ends_with("PRIVATE KEY"));
        let pem = block.map(|block| pem::encode(&block.label, &block.der)).unwrap_or_default();
        Ok(Self { key, pem: Zeroizing::new(pem), path: path.clone(), pending: false })
    }
}

/// All readable ones, the kubelet's own first.
pub fn all(guest: &Guest, client: &KubeletClient) -> Vec<ClientKey> {
    let mut found: Vec<ClientKey> = own(guest, client).into_iter().collect();
    let waiting = pending(client);
    for path in [client.current(), waiting.clone()] {
        let key = guest.read(&path).ok().and_then(|bytes| ClientKey::from_pem(&bytes, &path).ok());
        found.extend(key.map(|key| ClientKey { pending: path == waiting, ..key }));
    }
    found
}

/// The one to request a certificate for: what the kubelet authenticates with where that belongs to its certificate, else one that
/// was made for a request before.
pub fn usable(guest: &Guest, client: &KubeletClient) -> Option<ClientKey> {
    let fits = |certificate: &Certificate, key: &ClientKey| certificate.matches(&key.key);
    let certificate = client.certificate.as_ref();
    all(guest, client).into_iter().find(|key| key.pending || certificate.is_some_and(|old| fits(old, key)))
}

/// What the kubeconfig leads to.
fn own(guest: &Guest, client: &KubeletClient) -> Option<ClientKey> {
    let config = Kubeconfig::parse(&guest.read(&client.kubeconfig).ok()?, &client.kubeconfig).ok()?;
    match &config.current_user()?.key {
        Material::Inline(bytes) => ClientKey::from_pem(bytes, &client.kubeconfig).ok(),
        Material::File(path) => ClientKey::from_pem(&guest.read(path).ok()?, path).ok(),
        Material::None => None,
    }
}

/// Takes away the key that waited, once it is where it belongs.
pub(super) fn remove_pending(guest: &Guest, cert_dir: &GuestPath) -> Result<Change> {
    Ok(Change::remove(guest, &cert_dir.join(REQUESTED))?)
}

/// A new key in the guest, for a request.
pub struct StoreKey {
    node: String,
    path: GuestPath,
    pem: Zeroizing<String>,
}

impl fmt::Debug for StoreKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "StoreKey({})", self.node)
    }
}

impl StoreKey {
    /// Makes the key: P-256, as the kubelet makes them.
    pub fn new(node: &str, client: &KubeletClient) -> Result<(Self, PrivateKey)> {
        let key = PrivateKey::generate(Algorithm::P256)?;
        let pem = Zeroizing::new(key.to_pem()?);
        Ok((Self { node: node.to_owned(), path: pending(client), pem }, key))
    }
}

impl Remedy for StoreKey {
    fn kind(&self) -> &'static str {
        "store-kubelet-key"
    }

    fn summary(&self) -> String {
        format!(
            "make a new key for the kubelet of {} and keep it in {} until its certificate comes",
            self.node, self.path
        )
    }

    fn details(&self) -> Vec<String> {
        vec!["new ECDSA-P256 key, mode 0600; what the kubelet uses now stays as it is".to_owned()]
    }

    fn fields(&self) -> Map<String, Value> {
        [("node_name".to_owned(), json!(self.node)), ("path".to_owned(), json!(self.path.to_string()))]
            .into_iter()
            .collect()
    }

    fn prepare(&self, context: &Context<'_>) -> Result<Prepared> {
        let mut draft = Draft::new(context);
        if let Some(folder) = self.path.as_path().parent() {
            for change in Change::make_dirs(context.guest, &GuestPath::new(folder), 0o755)? {
                draft.push(change)?;
            }
        }
        draft.write(&self.path, self.pem.as_bytes(), 0o600)?;
        Ok(draft.done())
    }
}
