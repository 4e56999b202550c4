//! What the other nodes of the same run hold: their CAs, with which a worker's certificate can be
//! signed, and the keys that all control planes of a cluster share.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use super::inventory::{AuthorityState, Inventory};
use super::lent::{self, Lent};
use super::membership::Membership;
use super::profile::Authority;
use super::service_account::ServiceAccounts;
use super::x509::certificate::Certificate;
use super::x509::key::PrivateKey;
use crate::base::hash::sha256_hex;
use crate::base::yaml;
use crate::change::Content;
use crate::guest::{Guest, GuestPath};
use crate::node::{Node, Role};
use crate::pki::trust::Party;
use crate::settings::Settings;

/// One other node of the run.
#[derive(Debug, Clone)]
pub struct Peer {
    /// How people call it.
    pub name: String,
    /// Where it was found: the source as given, with the partition.
    pub source: String,
    /// Whether it is a control plane or a worker.
    pub role: Option<Role>,
    /// Its CAs.
    pub authorities: BTreeMap<Authority, AuthorityState>,
    /// The files of those CAs whose key is here and belongs to the certificate, byte for byte; over
    /// or not.
    pub authority_files: BTreeMap<Authority, AuthorityFiles>,
    /// The keys of the service accounts.
    pub service_accounts: ServiceAccounts,
    /// How its API server encrypts what it stores in etcd.
    pub encryption: Option<Encryption>,
    /// What says which cluster it belongs to.
    pub membership: Membership,
    /// What its etcd says of the cluster, where another node of the run needs it.
    pub lent: Option<Rc<Lent>>,
    /// Whether it has lost something of which etcd may know the names.
    pub may_need_lent: bool,
    /// Names of control planes that its etcd knows; read only where kubelets of other nodes are
    /// signed for without their disks.
    pub control_planes: BTreeSet<String>,
    /// What it proves, and what it merely says.
    pub party: Party,
}

/// The API server's `--encryption-provider-config`. It holds keys; only a hash of it is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Encryption {
    /// The file.
    pub path: GuestPath,
    /// SHA-256 of what it says, comments and layout aside; `None` where it cannot be read.
    pub meaning: Option<String>,
}

impl Encryption {
    fn read(guest: &Guest, node: &Node) -> Option<Self> {
        let api = node.static_pod("kube-apiserver")?;
        // The flag had another name up to 1.12.
        let flags = [
            "--encryption-provider-config",
            "--experimental-encryption-provider-config",
        ];
        let path = flags
            .iter()
            .find_map(|flag| api.flag(flag))
            .filter(|path| path.starts_with('/'))?;
        let path = GuestPath::new(path);
        let parsed = guest
            .read(&path)
            .ok()
            .and_then(|bytes| yaml::parse(&bytes).ok());
        Some(Self {
            path,
            meaning: parsed.map(|value| sha256_hex(value.to_string().as_bytes())),
        })
    }
}

/// A CA's files. The key is never shown.
#[derive(Debug, Clone)]
pub struct AuthorityFiles {
    /// `ca.crt`, bundles included.
    pub certificate: Content,
    /// `ca.key`.
    pub key: Content,
    /// Of the certificates in `ca.crt`, the key's.
    pub pair: Certificate,
}

impl AuthorityFiles {
    fn read(guest: &Guest, state: &AuthorityState) -> Option<Self> {
        let certificate = guest.read(&state.certificate_path).ok()?;
        let key = guest.read(&state.key_path).ok()?;
        let private = PrivateKey::from_pem(&key).ok()?;
        let pair = state
            .certificates
            .iter()
            .find(|certificate| certificate.matches(&private) && certificate.may_sign());
        Some(Self {
            certificate: Content::new(certificate),
            key: Content::new(key),
            pair: pair?.clone(),
        })
    }
}

impl Peer {
    /// Reads what a node holds.
    pub fn read(guest: &Guest, node: &Node, settings: &Settings) -> Self {
        let inventory = Inventory::read(guest, node, settings.now);
        let party = Party::read(guest, node, &inventory, settings);
        Self {
            name: node.name(&guest.source).to_owned(),
            source: guest.source.clone(),
            role: node.role.value,
            membership: Membership::read(guest, node, &inventory),
            service_accounts: ServiceAccounts::read(guest, node),
            encryption: Encryption::read(guest, node),
            lent: None,
            control_planes: BTreeSet::new(),
            may_need_lent: lent::may_need(&inventory, &party),
            party,
            authority_files: inventory
                .authorities
                .iter()
                .filter_map(|(authority, state)| {
                    Some((*authority, AuthorityFiles::read(guest, state)?))
                })
                .collect(),
            authorities: inventory.authorities,
        }
    }

    /// `master02 (disk2.img)`.
    pub fn shown(&self) -> String {
        format!("{} ({})", self.name, self.source)
    }
}

/// The peers of the node at `index`: all but itself.
pub fn others(all: &[Rc<Peer>], index: usize) -> Vec<Rc<Peer>> {
    all.iter()
        .enumerate()
        .filter(|(other, _)| *other != index)
        .map(|(_, peer)| Rc::clone(peer))
        .collect()
}
