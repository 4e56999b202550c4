//! A new key for a kubelet, kept in the guest until the certificate that was asked for comes.

use std::fmt;

use anyhow::Result;
use serde_json::{Map, Value, json};
use zeroize::Zeroizing;

use crate::change::{Change, Prepared};
use crate::finding::{Context, Mode, Remedy};
use crate::guest::GuestPath;
use crate::pki::client_key::pending;
use crate::pki::kubelet::KubeletClient;
use crate::pki::x509::key::{Algorithm, PrivateKey};

/// Not found by a check: what `rescue certs request --new-key` is for.
pub const NEW_KEY: Mode = Mode::note("certificates.new-key", "a new key was asked for")
    .why(
        "`rescue certs key` was asked for a new private key on the disk, to have a \
    certificate signed for it elsewhere.",
    )
    .done("Makes the key and writes the request out. The private key never leaves the disk.")
    .source("docs/certificates.md");

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
        Ok((
            Self {
                node: node.to_owned(),
                path: pending(client),
                pem,
            },
            key,
        ))
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
        [
            ("node_name".to_owned(), json!(self.node)),
            ("path".to_owned(), json!(self.path.to_string())),
        ]
        .into_iter()
        .collect()
    }

    fn prepare(&self, context: &Context<'_>) -> Result<Prepared> {
        let mut draft = context.draft();
        if let Some(folder) = self.path.as_path().parent() {
            for change in Change::make_dirs(context.guest, &GuestPath::new(folder), 0o755)? {
                draft.push(change)?;
            }
        }
        draft.write(&self.path, self.pem.as_bytes(), 0o600)?;
        Ok(draft.done())
    }
}
