//! What the etcd of another node of the same run says of the cluster: for a worker, and for a
//! control plane whose own etcd is lost. A few values are read while that node's disk is open, and
//! only where some node of the run has lost something and its own etcd does not help.

use std::collections::{BTreeMap, BTreeSet};

use super::inventory::{AuthorityState, Inventory};
use super::kept::{Kept, Values, keys_for, prefix, values};
use super::profile::Authority;
use crate::etcd::read::objects::NodeObject;
use crate::guest::Guest;
use crate::node::Node;
use crate::pki::trust::Party;
use crate::pki::trust::names::Recorded;
use crate::pki::trust::record::{is_control_plane, shared_machine_ids};

/// The values, and whose they are.
#[derive(Debug, Clone)]
pub struct Lent {
    place: String,
    prefix: String,
    values: Values,
    /// Machine IDs that several Node objects have.
    shared_machine_ids: BTreeSet<String>,
}

impl Lent {
    /// Reads what is of use to the nodes of these names; `None` where this node has no etcd that
    /// can be read.
    pub fn read(guest: &Guest, node: &Node, nodes: &[String]) -> Option<Self> {
        let prefix = prefix(node).to_owned();
        let values = values(guest, node, keys_for(&prefix, nodes))?.ok()?;
        let place = format!("the etcd of {}", node.name(&guest.source));
        let shared_machine_ids = if nodes.is_empty() {
            BTreeSet::new()
        } else {
            shared_machine_ids(guest, node)
        };
        Some(Self {
            place,
            prefix,
            values,
            shared_machine_ids,
        })
    }

    /// Whose etcd it is, for people.
    pub fn place(&self) -> &str {
        &self.place
    }

    /// What it says of a node. `None` where it has no configuration of kubeadm, or is not shown to
    /// be of the node's cluster.
    pub fn kept(
        &self,
        node: &Node,
        authorities: &BTreeMap<Authority, AuthorityState>,
    ) -> Option<Kept> {
        let kept = Kept::of(&self.values, &self.prefix, &self.place, node, authorities)?;
        (!kept.documents.is_empty()).then_some(kept)
    }
}

impl Lent {
    /// The Node object of this name, if it is among what was read.
    pub fn node(&self, name: &str) -> Option<Recorded> {
        let value = |key: String| self.values.get(format!("{}/{key}", self.prefix).as_bytes());
        let object = NodeObject::parse(value(format!("minions/{name}"))?)?;
        let runs = |pod: &str| value(format!("pods/kube-system/{pod}-{name}")).is_some();
        let is_control_plane = is_control_plane(&object) || runs("kube-apiserver") || runs("etcd");
        let is_shared = self.shared_machine_ids.contains(&object.machine_id);
        Some(Recorded {
            object,
            is_control_plane,
            is_shared,
            place: self.place.clone(),
        })
    }
}

/// Whether a node has lost something of which etcd may know the names, or cannot prove its own.
pub fn may_need(inventory: &Inventory, party: &Party) -> bool {
    let leaf_is_lost = inventory
        .leaves
        .iter()
        .any(|leaf| leaf.certificate.is_none());
    let has_no_name = |name: &String| {
        !party
            .cluster
            .iter()
            .any(|ca| party.standing.nodes(ca).contains(name))
    };
    leaf_is_lost
        || inventory
            .kubelet
            .as_ref()
            .is_some_and(|kubelet| kubelet.config_is_lost)
        || party.kubelet_name.as_ref().is_some_and(has_no_name)
}
