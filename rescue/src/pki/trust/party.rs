//! One disk of a run, as a crossing sees it.

use super::standing::Standing;
use crate::base::refusal::Refusal;
use crate::guest::Guest;
use crate::node::{Node, Role};
use crate::pki::cluster_ca::cluster_authorities;
use crate::pki::inventory::Inventory;
use crate::pki::profile::Authority;
use crate::pki::x509::certificate::{Certificate, SignatureCheck};
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
    /// Whether the disk was named with `--ca`: it lends signatures for kubelets, and nothing is
    /// copied from it.
    pub only_signs: bool,
    /// What its private keys prove.
    pub standing: Standing,
    /// The certificates in its CA files. They are public.
    pub authorities: Vec<(Authority, Certificate)>,
    /// The CAs that it takes for its cluster's: by kubelet.conf, else by the CA file.
    pub cluster: Vec<Certificate>,
    /// Certificates that some CA signed for it, with a key or without.
    pub leaves: Vec<Certificate>,
    /// The name that its kubelet would be signed for, as the disk says it.
    pub kubelet_name: Option<String>,
}

impl Party {
    /// Reads it.
    pub fn read(guest: &Guest, node: &Node, inventory: &Inventory, settings: &Settings) -> Self {
        let name = node.name(&guest.source).to_owned();
        let files = inventory.authorities.iter().flat_map(|(authority, state)| {
            state
                .certificates
                .iter()
                .map(|certificate| (*authority, certificate.clone()))
        });
        let standing = Standing::read(guest, inventory);
        Self {
            is_trusted: settings.trusts(&name, &guest.source),
            only_signs: false,
            name,
            source: guest.source.clone(),
            role: node.role.value,
            machine_id: node.machine_id.value.clone().filter(|id| !id.is_empty()),
            authorities: files.collect(),
            cluster: cluster_authorities(guest, inventory),
            leaves: leaves(inventory, &standing),
            standing,
            kubelet_name: inventory
                .kubelet
                .as_ref()
                .and_then(|client| client.node_name.clone().ok()),
        }
    }

    /// The same of a guest of which nothing was read yet.
    pub fn of(guest: &Guest, settings: &Settings) -> Self {
        let node = Node::read(guest);
        Self::read(
            guest,
            &node,
            &Inventory::read(guest, &node, settings.now),
            settings,
        )
    }

    /// `master02 (disk2.img)`.
    pub fn shown(&self) -> String {
        format!("{} ({})", self.name, self.source)
    }

    /// Whether its disk says that it is the node of this name.
    pub fn claims(&self, node: &str) -> bool {
        self.name == node || self.kubelet_name.as_deref() == Some(node)
    }

    /// How `--trust` names it: by its disk, which no other disk can claim.
    pub fn trust_flag(&self) -> String {
        format!("--trust {}", self.typed_source())
    }

    /// The source, to be typed.
    pub fn typed_source(&self) -> String {
        crate::base::shell::quoted(std::path::Path::new(&self.source))
    }

    /// The CAs that it takes for its cluster's, as its disk says it: in kubelet.conf and in its
    /// files, etcd's left aside.
    pub fn carried(&self) -> impl Iterator<Item = &Certificate> {
        let files = self
            .authorities
            .iter()
            .filter(|(authority, _)| *authority != Authority::Etcd);
        self.cluster
            .iter()
            .chain(files.map(|(_, certificate)| certificate))
            .filter(|ca| ca.may_sign())
    }

    /// Whether it shows a trace of this CA: takes it for its own, or has a certificate that it
    /// signed, with a key or without.
    pub fn has_trace_of(&self, ca: &Certificate) -> bool {
        self.carried().any(|own| own.is_same_authority(ca))
            || self
                .leaves
                .iter()
                .any(|leaf| leaf.signed_by(ca) == SignatureCheck::Valid)
    }

    /// The certificates of CAs in its files whose cluster it proves to be a control plane of.
    pub fn proven_authorities(&self) -> impl Iterator<Item = &Certificate> {
        let files = self
            .authorities
            .iter()
            .filter(|(authority, _)| *authority != Authority::Etcd);
        let files = files
            .map(|(_, certificate)| certificate)
            .filter(|certificate| certificate.may_sign());
        let own = self
            .standing
            .signing
            .iter()
            .filter(|(authority, _)| *authority != Authority::Etcd);
        files
            .chain(own.map(|(_, certificate)| certificate))
            .filter(|ca| self.standing.is_control_plane_of(ca))
    }
}

fn leaves(inventory: &Inventory, standing: &Standing) -> Vec<Certificate> {
    let own = inventory
        .leaves
        .iter()
        .filter_map(|leaf| leaf.certificate.clone());
    let kubelet = inventory
        .kubelet
        .iter()
        .filter_map(|client| client.certificate.clone());
    own.chain(kubelet)
        .chain(standing.kubelet.iter().cloned())
        .collect()
}

/// `--trust` is the user's word for one disk, and another must not be able to take it by calling
/// itself the same.
///
/// # Errors
/// A [`Refusal`] where a name is nobody's, or that of several.
pub fn refuse_unclear(parties: &[&Party], trust: &[String]) -> Result<(), Refusal> {
    for trusted in trust {
        let named: Vec<&&Party> = parties
            .iter()
            .filter(|party| party.source == *trusted || party.name == *trusted)
            .collect();
        let shown = |parties: &[&Party]| {
            parties
                .iter()
                .map(|party| party.shown())
                .collect::<Vec<_>>()
        };
        let (saw, next) = match named.as_slice() {
            [_] => continue,
            [] => {
                let all = shown(parties).join(", ");
                (
                    format!("no node named {trusted} among: {all}"),
                    "name one of them, by its name or its disk".to_owned(),
                )
            }
            _ if named.iter().any(|party| party.source == *trusted) => (
                format!(
                    "{trusted} is a disk, and the name that another disk has: {}",
                    shown(parties).join(", ")
                ),
                format!(
                    "name the disk by another path, both among the disks and with --trust \
                     (./{trusted})"
                ),
            ),
            _ => {
                let all: Vec<String> = named.iter().map(|party| party.shown()).collect();
                let next =
                    "name the one that you mean by its disk, as shown in brackets".to_owned();
                (
                    format!("{} are all called {trusted}", all.join(" and ")),
                    next,
                )
            }
        };
        return Err(Refusal::new(
            saw,
            "whom --trust vouches for is not clear, and nothing was changed",
            next,
        ));
    }
    Ok(())
}
