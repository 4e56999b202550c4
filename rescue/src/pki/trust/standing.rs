//! What the private keys on a disk prove about it.

use std::collections::BTreeSet;

use crate::guest::{Guest, GuestPath};
use crate::pki::client_key;
use crate::pki::csr::NODES;
use crate::pki::inventory::{Inventory, Leaf};
use crate::pki::kubelet::{KubeletClient, NODE_PREFIX};
use crate::pki::profile::{Authority, Usage};
use crate::pki::x509::certificate::{Certificate, SignatureCheck};
use crate::pki::x509::key::PrivateKey;

/// Common names of the leaves that kubeadm gives to control planes alone, by the CA that signs them
/// (kubeadm's phases/certs/certlist.go, phases/kubeconfig/kubeconfig.go). Administrators'
/// certificates are left out: people carry copies of admin.conf about.
const CONTROL_PLANE: [(Authority, &str); 5] = [
    (Authority::Cluster, "kube-apiserver"),
    (Authority::Cluster, "kube-apiserver-kubelet-client"),
    (Authority::Cluster, "system:kube-controller-manager"),
    (Authority::Cluster, "system:kube-scheduler"),
    (Authority::FrontProxy, "front-proxy-client"),
];

/// The leaves that only an etcd member has. Clients of etcd are left out: network plugins carry
/// them to workers.
const ETCD_MEMBER: [&str; 2] = ["etcd-server", "etcd-peer"];

/// Dated certificates of the kubelet that are looked at, newest first; it keeps all that it ever
/// had, one a year.
const MOST_DATED: usize = 64;

/// What the private keys on a disk prove, whatever else is on it. Dates do not count: an expired
/// certificate proves as much here.
#[derive(Debug, Clone, Default)]
pub struct Standing {
    /// CA certificates whose private key is on the disk.
    pub signing: Vec<(Authority, Certificate)>,
    /// Leaves that only control planes have, each with its private key on the disk.
    pub control_plane: Vec<(Authority, Certificate)>,
    /// Leaves that only etcd members have, each with its private key on the disk.
    pub etcd_member: Vec<Certificate>,
    /// Client certificates of the kubelet, each with its private key on the disk.
    pub kubelet: Vec<Certificate>,
}

impl Standing {
    /// Reads the keys that `inventory` found, and tries each.
    pub fn read(guest: &Guest, inventory: &Inventory) -> Self {
        let pairs = inventory
            .authorities
            .iter()
            .filter_map(|(authority, state)| Some((*authority, state.pair.as_ref()?)));
        let signing = pairs.filter(|(_, pair)| {
            pair.certificate.may_sign() && pair.certificate.is_proved_by(&pair.key)
        });
        let with_key = |leaf: &&Leaf| leaf.has_key;
        let certificates = |leaf: &Leaf| {
            leaf.certificate
                .clone()
                .map(|certificate| (leaf.authority, certificate))
        };
        let is_control_planes = |(authority, certificate): &(Authority, Certificate)| {
            let name = certificate.common_name.as_deref();
            CONTROL_PLANE
                .iter()
                .any(|(by, known)| by == authority && Some(*known) == name)
        };
        let is_etcds = |leaf: &&Leaf| ETCD_MEMBER.iter().any(|name| leaf.is(name));
        let leaves = || inventory.leaves.iter().filter(with_key);
        Self {
            signing: signing
                .map(|(authority, pair)| (authority, pair.certificate.clone()))
                .collect(),
            control_plane: leaves()
                .filter_map(certificates)
                .filter(is_control_planes)
                .collect(),
            etcd_member: leaves()
                .filter(is_etcds)
                .filter_map(|leaf| leaf.certificate.clone())
                .filter(is_members)
                .collect(),
            kubelet: inventory
                .kubelet
                .as_ref()
                .map(|client| kubelet(guest, client))
                .unwrap_or_default(),
        }
    }

    /// Whether the private key of this CA is on the disk.
    pub fn holds(&self, authority: &Certificate) -> bool {
        self.signing
            .iter()
            .any(|(_, own)| own.public_key_info == authority.public_key_info)
    }

    /// Whether it is a control plane of the cluster that this CA is of.
    pub fn is_control_plane_of(&self, authority: &Certificate) -> bool {
        self.holds(authority)
            || self
                .control_plane
                .iter()
                .any(|(_, leaf)| leaf.signed_by(authority) == SignatureCheck::Valid)
    }

    /// Whether it is a member of the etcd cluster that this CA is of.
    pub fn is_etcd_member_of(&self, authority: &Certificate) -> bool {
        self.holds(authority)
            || self
                .etcd_member
                .iter()
                .any(|leaf| leaf.signed_by(authority) == SignatureCheck::Valid)
    }

    /// The nodes that this CA signed a kubelet's client certificate for whose key is on the disk.
    pub fn nodes(&self, authority: &Certificate) -> BTreeSet<String> {
        let signed = self
            .kubelet
            .iter()
            .filter(|leaf| leaf.signed_by(authority) == SignatureCheck::Valid);
        signed.filter_map(node_of).map(str::to_owned).collect()
    }
}

/// The node that a kubelet's client certificate is for: `O=system:nodes`, `CN=system:node:NAME`
/// (the API server's node authorizer).
pub fn node_of(certificate: &Certificate) -> Option<&str> {
    let is_nodes = certificate.organizations == [NODES];
    certificate
        .common_name
        .as_deref()?
        .strip_prefix(NODE_PREFIX)
        .filter(|_| is_nodes && !certificate.is_ca)
}

/// kubespray gives each node of the cluster, worker or not, such a leaf of the etcd CA with both
/// usages, for clients of etcd. Its members have others, `etcd-member-NAME` (kubespray's
/// roles/etcd/templates/make-ssl-etcd.sh.j2).
const NODES_OF_KUBESPRAY: &str = "etcd-node-";

/// Whether an etcd member may serve its peers with it, as no client's certificate and no kubespray
/// node's may.
pub(super) fn is_members(leaf: &Certificate) -> bool {
    let is_nodes = leaf
        .common_name
        .as_deref()
        .is_some_and(|name| name.starts_with(NODES_OF_KUBESPRAY));
    serves(leaf) && !leaf.is_ca && !is_nodes
}

/// Whether it may be used by a server, as a member's certificates are and a client's are not.
pub(super) fn serves(certificate: &Certificate) -> bool {
    let server = Usage::Server.oid();
    certificate
        .extended_key_usage
        .as_ref()
        .is_some_and(|usages| usages.iter().any(|usage| usage == server))
}

/// What the kubeconfig leads to, and the dated files beside `kubelet-client-current.pem`: where the
/// newest is damaged an older one still says whose disk this is.
fn kubelet(guest: &Guest, client: &KubeletClient) -> Vec<Certificate> {
    let mut found: Vec<Certificate> = Vec::new();
    let keys = client_key::all(guest, client);
    let own = client
        .certificate
        .iter()
        .filter(|certificate| keys.iter().any(|key| certificate.is_proved_by(&key.key)));
    found.extend(own.cloned());
    for path in dated(guest, &client.cert_dir) {
        let Ok(bytes) = guest.read(&path) else {
            continue;
        };
        let Ok(key) = PrivateKey::from_pem(&bytes) else {
            continue;
        };
        let certificates = Certificate::all_from_pem(&bytes).unwrap_or_default();
        found.extend(
            certificates
                .into_iter()
                .take(1)
                .filter(|certificate| certificate.is_proved_by(&key)),
        );
    }
    found
}

/// `kubelet-client-2026-11-23-09-30-00.pem` and its like, newest first.
fn dated(guest: &Guest, folder: &GuestPath) -> Vec<GuestPath> {
    let entries = guest.read_dir(folder).unwrap_or_default();
    let names = entries
        .into_iter()
        .filter_map(|entry| entry.name.into_string().ok());
    let mut names: Vec<String> = names
        .filter(|name| {
            (name.starts_with("kubelet-client-") || name.starts_with("kubelet-server-"))
                && name.ends_with(".pem")
        })
        .collect();
    names.sort_unstable_by(|one, other| other.cmp(one));
    names
        .into_iter()
        .take(MOST_DATED)
        .map(|name| folder.join(name))
        .collect()
}
