//! One disk of a run, as a crossing sees it.

use super::standing::Standing;
use crate::guest::Guest;
use crate::node::{Node, Role};
use crate::pki::certificate::Certificate;
use crate::pki::inventory::Inventory;
use crate::pki::profile::Authority;
use crate::pki::trust::cluster_authorities;
use crate::settings::Settings;

/// What a disk proves, and what it merely says.
#[derive(Debug, Clone, Default)]
pub struct Party {
    /// The node's name, as the disk says it.
    pub name: String,
    /// Where the disk was found: the source as given, with the partition.
    pub source: String,
    /// What the disk says the node is.
    pub role: Option<Role>,
    /// `/etc/machine-id`, as the disk says it.
    pub machine_id: Option<String>,
    /// Whether the user vouches for the disk (`--trust`).
    pub is_trusted: bool,
    /// Whether the disk was named with `--ca`: it lends signatures for kubelets, and nothing is copied from it.
    pub only_signs: bool,
    /// What its private keys prove.
    pub standing: Standing,
    /// The certificates in its CA files. They are public.
    pub authorities: Vec<(Authority, Certificate)>,
    /// The CAs that it takes for its cluster's: by kubelet.conf, else by the CA file.
    pub cluster: Vec<Certificate>,
    /// The name that its kubelet would be signed for, as the disk says it.
    pub kubelet_name: Option<String>,
}

impl Party {
    /// Reads it.
    pub fn read(guest: &Guest, node: &Node, inventory: &Inventory, settings: &Settings) -> Self {
        let name = node.name(&guest.source).to_owned();
        let files = inventory.authorities.iter().flat_map(|(authority, state)| {
            state.certificates.iter().map(|certificate| (*authority, certificate.clone()))
        });
        Self {
            is_trusted: settings.trusts(&name, &guest.source),
            only_signs: false,
            name,
            source: guest.source.clone(),
            role: node.role.value,
            machine_id: node.machine_id.value.clone().filter(|id| !id.is_empty()),
            standing: Standing::read(guest, inventory),
            authorities: files.collect(),
            cluster: cluster_authorities(guest, inventory),
            kubelet_name: inventory.kubelet.as_ref().and_then(|client| client.node_name.clone().ok()),
        }
    }

    /// The same of a guest of which nothing was read yet.
    pub fn of(guest: &Guest, settings: &Settings) -> Self {
        let node = Node::read(guest);
        Self::read(guest, &node, &Inventory::read(guest, &node, settings.now), settings)
    }

    /// `master02 (disk2.img)`.
    pub fn shown(&self) -> String {
        format!("{} ({})", self.name, self.source)
    }

    /// How `--trust` names it: by its disk, which no other disk can claim.
    pub fn trust_flag(&self) -> String {
        format!("--trust {}", self.typed_source())
    }

    /// The source, to be typed.
    pub fn typed_source(&self) -> String {
        crate::typed::path(std::path::Path::new(&self.source))
    }

    /// The certificates of CAs in its files whose cluster it proves to be a control plane of.
    pub fn proven_authorities(&self) -> impl Iterator<Item = &Certificate> {
        let files = self.authorities.iter().filter(|(authority, _)| *authority != Authority::Etcd);
        let files = files.map(|(_, certificate)| certificate).filter(|certificate| certificate.may_sign());
        let own = self.standing.signing.iter().filter(|(authority, _)| *authority != Authority::Etcd);
        files.chain(own.map(|(_, certificate)| certificate)).filter(|ca| self.standing.is_control_plane_of(ca))
    }
}
