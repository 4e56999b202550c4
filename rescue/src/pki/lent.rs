//! What the etcd of another node of the same run says of the cluster: for a worker, and for a control plane whose own etcd is lost. A few values are
//! read while that node's disk is open, and only where some node of the run has lost something and its own etcd does not help.

use std::collections::BTreeMap;

use super::inventory::{AuthorityState, Inventory};
use super::kept::{Kept, Values, keys_for, prefix, values};
use super::profile::Authority;
use crate::guest::Guest;
use crate::node::Node;

/// The values, and whose they are.
#[derive(Debug, Clone)]
pub struct Lent {
    place: String,
    prefix: String,
    values: Values,
}

impl Lent {
    /// Reads what is of use to the nodes of these names; `None` where this node has no etcd that can be read.
    pub fn read(guest: &Guest, node: &Node, nodes: &[String]) -> Option<Self> {
        let prefix = prefix(node).to_owned();
        let values = values(guest, node, keys_for(&prefix, nodes))?.ok()?;
        Some(Self { place: format!("the etcd of {}", node.name(&guest.source)), prefix, values })
    }

    /// What it says of a node. `None` where it has no configuration of kubeadm, or is not shown to be of the node's cluster.
    pub fn kept(&self, node: &Node, authorities: &BTreeMap<Authority, AuthorityState>) -> Option<Kept> {
        let kept = Kept::of(&self.values, &self.prefix, &self.place, node, authorities)?;
        (!kept.documents.is_empty()).then_some(kept)
    }
}

/// Whether a node has lost something of which etcd may know the names.
pub fn may_need(inventory: &Inventory) -> bool {
    let leaf_is_lost = inventory.leaves.iter().any(|leaf| leaf.certificate.is_none());
    leaf_is_lost || inventory.kubelet.as_ref().is_some_and(|kubelet| kubelet.config_is_lost)
}
