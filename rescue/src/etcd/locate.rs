//! Where a node keeps etcd's data: the static pod's flags, an environment file of a service, or the place of a distribution.

use super::member::Place;
use super::rebuild::target::Target;
use super::status::Found;
use crate::guest::{Guest, GuestPath};
use crate::node::Node;

/// Environment files of etcd run by systemd: kubespray's, Debian's, Red Hat's.
const ENVIRONMENTS: [&str; 3] = ["/etc/etcd.env", "/etc/default/etcd", "/etc/etcd/etcd.conf"];

/// Where data is found without anything that names it: kubeadm's and Debian's default, k3s, RKE2.
const DEFAULTS: [&str; 4] = [
    "/var/lib/etcd",
    "/var/lib/etcd/default",
    "/var/lib/rancher/k3s/server/db/etcd",
    "/var/lib/rancher/rke2/server/db/etcd",
];

/// `--quota-backend-bytes` where the flag is absent, in bytes (etcd's DefaultQuotaBytes).
pub const DEFAULT_QUOTA: u64 = 2 << 30;

/// How large etcd's database may become on a node, in bytes: `--quota-backend-bytes` of its static pod.
pub fn quota(node: &Node) -> u64 {
    let flag = node.static_pod("etcd").and_then(|pod| pod.flag("--quota-backend-bytes")?.parse().ok());
    // Zero is etcd's word for the default.
    flag.filter(|bytes| *bytes > 0).unwrap_or(DEFAULT_QUOTA)
}

/// The member on a node, if there is one or if a manifest says that there should be.
pub fn on_node(guest: &Guest, node: &Node) -> Option<Found> {
    let found = |place, image| Found {
        source: guest.source.clone(),
        node: Some(node.name(&guest.source).to_owned()),
        guest: guest.clone(),
        place,
        image,
    };
    if let Some(pod) = node.static_pod("etcd") {
        let data_dir = GuestPath::new(pod.flag("--data-dir").unwrap_or(DEFAULTS[0]));
        let image = (!pod.image.is_empty()).then(|| pod.image.clone());
        return Some(found(Place::new(data_dir, pod.flag("--wal-dir")), image));
    }
    let (data_dir, wal_dir) = from_environment(guest).or_else(|| {
        let there = |path: &&&str| guest.exists(&GuestPath::new(path).join("member"));
        DEFAULTS.iter().find(there).map(|path| (GuestPath::new(path), None))
    })?;
    Some(found(Place::new(data_dir, wal_dir.as_deref()), None))
}

/// How etcd on this node is started: `--name` and `--initial-advertise-peer-urls` of its static pod or service, where they are there.
pub fn flags(guest: &Guest) -> Option<Target> {
    let urls = |text: &str| text.split(',').map(|url| url.trim().to_owned()).collect();
    if let Some(pod) = Node::read(guest).static_pod("etcd") {
        let (name, peer_urls) = (pod.flag("--name")?, pod.flag("--initial-advertise-peer-urls")?);
        return Some(Target { name: name.to_owned(), peer_urls: urls(peer_urls) });
    }
    ENVIRONMENTS.iter().find_map(|file| {
        let text = guest.read_text(&GuestPath::new(file)).ok()?;
        let peer_urls = value(&text, "ETCD_INITIAL_ADVERTISE_PEER_URLS")?;
        Some(Target { name: value(&text, "ETCD_NAME")?, peer_urls: urls(&peer_urls) })
    })
}

fn from_environment(guest: &Guest) -> Option<(GuestPath, Option<String>)> {
    ENVIRONMENTS.iter().find_map(|file| {
        let text = guest.read_text(&GuestPath::new(file)).ok()?;
        let data_dir = GuestPath::new(value(&text, "ETCD_DATA_DIR")?);
        guest.exists(&data_dir.join("member")).then(|| (data_dir, value(&text, "ETCD_WAL_DIR")))
    })
}

fn value(text: &str, name: &str) -> Option<String> {
    let line = text.lines().rev().find_map(|line| line.trim().strip_prefix(name)?.trim_start().strip_prefix('='))?;
    let plain = line.trim().trim_matches(['"', '\'']);
    (!plain.is_empty()).then(|| plain.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guest::MemoryTree;

    #[test]
    fn finds_a_service_s_data() {
        let guest = MemoryTree::new()
            .file("/etc/etcd.env", "# ETCD_DATA_DIR=/no\nETCD_DATA_DIR=\"/data/etcd\"\nETCD_WAL_DIR=/wal\n")
            .dir("/data/etcd/member")
            .into_guest();
        let node = Node::read(&guest);
        let found = on_node(&guest, &node).unwrap();
        assert_eq!(
            (found.place.data_dir.to_string(), found.place.wal.to_string()),
            ("/data/etcd".into(), "/wal".into())
        );
        let guest = MemoryTree::new().dir("/var/lib/rancher/rke2/server/db/etcd/member").into_guest();
        let found = on_node(&guest, &Node::read(&guest)).unwrap();
        assert_eq!(found.place.wal.to_string(), "/var/lib/rancher/rke2/server/db/etcd/member/wal");
        assert!(on_node(&MemoryTree::new().into_guest(), &Node::read(&MemoryTree::new().into_guest())).is_none());
    }
}
