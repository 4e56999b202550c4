//! Where a node keeps etcd's data: what it is started with, or the place where it usually lies.

use std::path::Path;
use std::rc::Rc;

use anyhow::{Context as _, Result};

use super::launch::{By, Launch};
use super::member::Place;
use super::status::Found;
use crate::base::refusal::Refusal;
use crate::guest::{Guest, GuestPath};
use crate::node::Node;
use crate::tree::FolderTree;

/// Where data is found without anything that names it: kubeadm's and Debian's default.
const DEFAULTS: [&str; 2] = ["/var/lib/etcd", "/var/lib/etcd/default"];

/// The member on a node, if there is one, or if a manifest or a service says that there should be.
pub fn on_node(guest: &Guest, node: &Node) -> Option<Found> {
    let launch = Launch::of(guest, node);
    let is_there = |data_dir: &GuestPath| guest.exists(&data_dir.join("member"));
    let named = launch
        .as_ref()
        .and_then(|launch| launch.option("--data-dir"))
        .map(GuestPath::new);
    let default = || DEFAULTS.map(GuestPath::new).into_iter().find(is_there);
    let data_dir = match &launch {
        Some(Launch {
            by: By::StaticPod | By::Embedded(_),
            ..
        }) => named.unwrap_or_else(|| GuestPath::new(DEFAULTS[0])),
        // A package brings a unit for a member that nobody ever made.
        Some(launch) if !launch.peer_urls().is_empty() && launch.option("--name").is_some() => {
            named.or_else(default)?
        }
        _ => named.filter(is_there).or_else(default)?,
    };
    let wal_dir = launch
        .as_ref()
        .and_then(|launch| launch.option("--wal-dir"));
    Some(Found {
        source: guest.source.clone(),
        node: Some(node.name(&guest.source).to_owned()),
        guest: guest.clone(),
        place: Place::new(data_dir, wal_dir),
        launch,
    })
}

/// The member in a data folder of this machine, or in a copy of one: what etcd's `--data-dir`
/// names.
///
/// # Errors
/// A [`Refusal`] (by downcast) where there is no folder `member` in it; those of opening it.
pub fn in_folder(data_dir: &Path) -> Result<Found> {
    let source = data_dir.display().to_string();
    let tree = FolderTree::open(data_dir).with_context(|| format!("looking at {source}"))?;
    let guest = Guest::new(source.clone(), Rc::new(tree), Vec::new());
    let place = Place::new(GuestPath::new("/"), None);
    if !guest.exists(&place.member()) {
        return Err(Refusal::new(
            format!("{source} holds no folder member"),
            "--data-dir takes what etcd's --data-dir names",
            format!("ls {source}"),
        )
        .into());
    }
    Ok(Found {
        source,
        node: None,
        guest,
        place,
        launch: None,
    })
}

/// Whether a systemd service, and not a kubelet or another program, starts the member of this node.
pub fn is_started_by_service(guest: &Guest, node: &Node) -> bool {
    on_node(guest, node)
        .and_then(|found| found.launch)
        .is_some_and(|launch| matches!(launch.by, By::Service(_)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::MemoryTree;

    #[test]
    fn finds_a_service_s_data() {
        let guest = MemoryTree::new()
            .file(
                "/etc/etcd.env",
                "# ETCD_DATA_DIR=/no\nETCD_DATA_DIR=\"/data/etcd\"\nETCD_WAL_DIR=/wal\n",
            )
            .dir("/data/etcd/member")
            .into_guest();
        let node = Node::read(&guest);
        let found = on_node(&guest, &node).unwrap();
        assert_eq!(
            (
                found.place.data_dir.to_string(),
                found.place.wal.to_string()
            ),
            ("/data/etcd".into(), "/wal".into())
        );
        let guest = MemoryTree::new()
            .dir("/var/lib/rancher/rke2/server/db/etcd/member")
            .into_guest();
        let found = on_node(&guest, &Node::read(&guest)).unwrap();
        assert_eq!(
            found.place.wal.to_string(),
            "/var/lib/rancher/rke2/server/db/etcd/member/wal"
        );
        assert!(
            on_node(
                &MemoryTree::new().into_guest(),
                &Node::read(&MemoryTree::new().into_guest())
            )
            .is_none()
        );
    }
}
