//! What the etcd on a control plane's disk knows of the cluster's other control planes.

use std::collections::BTreeSet;

use crate::etcd::read::locate;
use crate::etcd::read::member::MemberData;
use crate::etcd::read::node_list::NodeList;
use crate::etcd::read::objects::NodeObject;
use crate::etcd::read::troubles::holder;
use crate::guest::Guest;
use crate::node::Node;

/// Whether the cluster calls a node a control plane (kubeadm's labels, before and since 1.20).
pub fn is_control_plane(object: &NodeObject) -> bool {
    object
        .roles
        .iter()
        .any(|role| role == "control-plane" || role == "master")
}

/// The names of the control planes: Node objects with that role, and etcd's members, which kubeadm
/// names after their nodes. What cannot be read is left out. Reads the whole database once.
pub fn control_planes(guest: &Guest, node: &Node) -> BTreeSet<String> {
    let Some(found) = locate::on_node(guest, node) else {
        return BTreeSet::new();
    };
    if holder(guest, &found.place).is_some() {
        return BTreeSet::new();
    }
    let data = MemberData::read(guest, &found.place);
    let (members, _) = data.membership();
    let members = members
        .list
        .into_values()
        .map(|member| member.name)
        .filter(|name| !name.is_empty());
    let listed = NodeList::read(guest, &data)
        .map(|list| list.nodes)
        .unwrap_or_default();
    let nodes = listed
        .into_iter()
        .filter(|node| is_control_plane(&node.object))
        .map(|node| node.object.name);
    members.chain(nodes).collect()
}

/// The Node objects that share a machine ID with another: machines made from one template, whose
/// machine ID proves nothing. Reads the whole database once.
pub fn shared_machine_ids(guest: &Guest, node: &Node) -> BTreeSet<String> {
    let Some(found) =
        locate::on_node(guest, node).filter(|found| holder(guest, &found.place).is_none())
    else {
        return BTreeSet::new();
    };
    let listed =
        NodeList::read(guest, &MemberData::read(guest, &found.place)).map(|list| list.nodes);
    let (mut seen, mut shared) = (BTreeSet::new(), BTreeSet::new());
    for node in listed.unwrap_or_default() {
        if !seen.insert(node.object.machine_id.clone()) {
            shared.insert(node.object.machine_id);
        }
    }
    shared
}
