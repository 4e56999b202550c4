//! What the other nodes of the same run hold: their CAs, with which a worker's certificate can be signed, and the keys that all
//! control planes of a cluster share.

use std::collections::BTreeMap;
use std::rc::Rc;

use super::inventory::{AuthorityState, Inventory};
use super::profile::Authority;
use crate::guest::Guest;
use crate::node::{Node, Role};
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
}

impl Peer {
    /// Reads what a node holds.
    pub fn read(guest: &Guest, node: &Node, settings: &Settings) -> Self {
        Self {
            name: node.name(&guest.source).to_owned(),
            source: guest.source.clone(),
            role: node.role.value,
            authorities: Inventory::read(guest, node, settings.now).authorities,
        }
    }
}

/// The peers of the node at `index`: all but itself.
pub fn others(all: &[Rc<Peer>], index: usize) -> Vec<Rc<Peer>> {
    all.iter().enumerate().filter(|(other, _)| *other != index).map(|(_, peer)| Rc::clone(peer)).collect()
}
