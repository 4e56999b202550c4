//! What travels between a worker and the place where the CA's key is: requests there, certificates
//! back. Neither holds a secret; only a bundle does, and that travels encrypted.

use anyhow::{Context as _, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use std::rc::Rc;
use time::OffsetDateTime;
use zeroize::Zeroizing;

use super::cluster_ca;
use super::csr::{self, NODES};
use super::inventory::Signer;
use super::kubelet::NODE_PREFIX;
use super::peer::Peer;
use super::profile::{Authority, CLIENT};
use super::x509::certificate::{Certificate, SignatureCheck, printable};
use super::x509::issue::{Issuer, Request, Validity, issue, subject};
use super::x509::key::{Algorithm, PrivateKey};
use crate::base::schema::SCHEMA;
use crate::base::units;
use crate::pki::trust::standing::node_of;

/// A CA, as a file names it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CaName {
    /// Its subject, for people.
    pub subject: String,
    /// [`cluster_ca::public_key_hash`]; what is compared.
    pub public_key: String,
}

impl CaName {
    /// Of a certificate.
    pub fn of(certificate: &Certificate) -> Self {
        Self {
            subject: certificate.subject.clone(),
            public_key: cluster_ca::public_key_hash(certificate),
        }
    }

    /// For people, shortened as [`cluster_ca::shown`]. It comes from a file: nothing in it may
    /// control a terminal.
    pub fn shown(&self) -> String {
        let hash: String = self.public_key.chars().take("sha256:".len() + 16).collect();
        printable(&format!("{} ({hash}…)", self.subject))
    }
}

/// What a worker asks for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RequestFile {
    /// `rescue/v1`.
    pub schema: String,
    /// [`REQUEST`].
    pub kind: String,
    /// The node's name.
    pub node: String,
    /// When it was made, RFC 3339.
    pub created: String,
    /// Of the node, where it is known.
    pub kubelet_version: Option<String>,
    /// Whether this kubelet asks for keyEncipherment itself.
    pub key_encipherment: bool,
    /// [`cluster_ca::hash_of`] the key that the certificate will be for.
    pub public_key: String,
    /// What the node takes for its cluster's CA.
    pub ca: Vec<CaName>,
    /// PKCS#10 in PEM.
    pub csr: String,
    /// The certificate that the cluster's CA signed for this node and this key before, in PEM: it
    /// proves the name. None with a new key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate: Option<String>,
}

/// What comes back, and what a bundle holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CertificateFile {
    /// `rescue/v1`.
    pub schema: String,
    /// [`SIGNED`] or [`BUNDLE`].
    pub kind: String,
    /// When it was made, RFC 3339.
    pub created: String,
    /// One per node.
    pub certificates: Vec<Entry>,
}

/// One node's certificate.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// The node's name.
    pub node: String,
    /// [`cluster_ca::hash_of`] its key.
    pub public_key: String,
    /// Its last moment, RFC 3339.
    pub valid_to: String,
    /// Who signed it.
    pub ca: CaName,
    /// PEM.
    pub certificate: String,
    /// Its private key, PEM; only in a bundle.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<Zeroizing<String>>,
}

impl std::fmt::Debug for Entry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Entry")
            .field("node", &self.node)
            .finish_non_exhaustive()
    }
}

/// [`RequestFile::kind`].
pub const REQUEST: &str = "certificate-request";
/// [`CertificateFile::kind`] of what was signed.
pub const SIGNED: &str = "signed-certificates";
/// [`CertificateFile::kind`] of a bundle.
pub const BUNDLE: &str = "certificate-bundle";

impl RequestFile {
    /// A request for this node, signed with `key`. `key_encipherment`: kubelets before 1.27 ask for
    /// it, and all do for RSA keys.
    pub fn new(
        node: &str,
        key: &PrivateKey,
        own: &[Certificate],
        version: Option<String>,
        old_kubelet: bool,
        now: OffsetDateTime,
    ) -> Result<Self> {
        Ok(Self {
            schema: SCHEMA.to_owned(),
            kind: REQUEST.to_owned(),
            node: node.to_owned(),
            created: units::rfc3339(now),
            kubelet_version: version,
            key_encipherment: old_kubelet || matches!(key.algorithm(), Algorithm::Rsa(_)),
            public_key: cluster_ca::hash_of(&key.public_key_info()),
            ca: own.iter().map(CaName::of).collect(),
            csr: csr::make(node, key)?,
            certificate: None,
        })
    }

    /// The same with the certificate that the key had before, where it is that key's.
    #[must_use]
    pub fn with_proof(mut self, old: Option<&Certificate>, key: &PrivateKey) -> Self {
        self.certificate = old.filter(|old| old.matches(key)).map(Certificate::to_pem);
        self
    }

    /// Whether it brings a certificate that `ca` signed for this node and the key of the request.
    /// That the key is there, the request's own signature proves.
    pub fn proves_its_name(&self, request: &csr::NodeRequest, ca: &Certificate) -> bool {
        let old = self
            .certificate
            .as_ref()
            .and_then(|pem| Certificate::all_from_pem(pem.as_bytes()).ok());
        old.and_then(|all| all.into_iter().next())
            .is_some_and(|old| {
                old.public_key_info == request.public_key_info
                    && node_of(&old) == Some(request.node.as_str())
                    && old.signed_by(ca) == SignatureCheck::Valid
            })
    }

    /// Reads one and proves its request.
    pub fn read(bytes: &[u8]) -> Result<(Self, csr::NodeRequest)> {
        let file: Self = parse(bytes, REQUEST)?;
        let request = csr::read(file.csr.as_bytes())?;
        ensure!(
            request.node == file.node,
            "the file says node {:?}, the request in it is for {:?}",
            printable(&file.node),
            request.node
        );
        ensure!(
            cluster_ca::hash_of(&request.public_key_info) == file.public_key,
            "the file names another key than the request in it"
        );
        Ok((file, request))
    }
}

impl CertificateFile {
    /// With these certificates.
    pub fn new(kind: &str, certificates: Vec<Entry>, now: OffsetDateTime) -> Self {
        let (schema, kind, created) = (SCHEMA.to_owned(), kind.to_owned(), units::rfc3339(now));
        Self {
            schema,
            kind,
            created,
            certificates,
        }
    }

    /// Reads one of the kind.
    pub fn read(bytes: &[u8], kind: &str) -> Result<Self> {
        parse(bytes, kind)
    }

    /// The names in it, for a message.
    pub fn names(&self) -> String {
        let names: Vec<String> = self
            .certificates
            .iter()
            .map(|entry| printable(&entry.node))
            .collect();
        if names.is_empty() {
            "none at all".to_owned()
        } else {
            names.join(", ")
        }
    }
}

/// serde's own words may quote what the file holds, which may be a key.
fn not_ours(error: &serde_json::Error) -> anyhow::Error {
    anyhow::anyhow!(
        "it is not a file that rescue wrote, or it was cut off (line {})",
        error.line()
    )
}

/// What every file says of itself.
#[derive(Deserialize)]
struct Header {
    schema: String,
    kind: String,
}

fn parse<T: serde::de::DeserializeOwned>(bytes: &[u8], wanted: &str) -> Result<T> {
    let Header { schema, kind } =
        serde_json::from_slice(bytes).map_err(|error| not_ours(&error))?;
    if schema != SCHEMA {
        bail!(
            "its schema is {:?}, not {SCHEMA:?}: another version wrote it",
            printable(&schema)
        );
    }
    if kind != wanted {
        bail!("it is a {}, not a {wanted} file", printable(&kind));
    }
    serde_json::from_slice(bytes).map_err(|error| not_ours(&error))
}

/// The CA that a request is for, among those whose keys are there.
pub fn signer<'a>(request: &RequestFile, lenders: &'a [Rc<Peer>]) -> Option<&'a Signer> {
    cluster_ca::holders(Authority::Cluster, lenders)
        .map(|found| found.signer)
        .find(|signer| {
            let public_key = cluster_ca::public_key_hash(&signer.certificate);
            request.ca.iter().any(|ca| ca.public_key == public_key)
        })
}

/// What to sign for one node.
#[derive(Debug, Clone, Copy)]
pub struct Order<'a> {
    /// The node's name, already checked.
    pub node: &'a str,
    /// SubjectPublicKeyInfo, DER.
    pub public_key_info: &'a [u8],
    /// See [`RequestFile::key_encipherment`].
    pub key_encipherment: bool,
}

/// Signs a kubelet's client certificate. Names and usages are ours, whatever was asked for.
pub fn sign(order: Order<'_>, signer: &Signer, now: OffsetDateTime, days: u32) -> Result<Entry> {
    let validity = Validity::kubelet(&signer.certificate, now, days);
    let request = Request {
        subject_raw: &subject(&[NODES], &format!("{NODE_PREFIX}{}", order.node))?,
        alternative_names: None,
        public_key_info: order.public_key_info,
        key_encipherment: order.key_encipherment,
        usages: CLIENT,
        validity,
    };
    let issuer = Issuer {
        certificate: &signer.certificate,
        key: &signer.key,
    };
    let certificate =
        issue(issuer, request).with_context(|| format!("signing for {}", order.node))?;
    Ok(Entry {
        node: order.node.to_owned(),
        public_key: cluster_ca::hash_of(order.public_key_info),
        valid_to: units::rfc3339(validity.not_after),
        ca: CaName::of(&signer.certificate),
        certificate: certificate.to_pem(),
        key: None,
    })
}
