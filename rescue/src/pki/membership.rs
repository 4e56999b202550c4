//! Which nodes of a run belong to one cluster. Two clusters may lie on the table at once, so a
//! likeness is not enough: either a key that only one cluster has is on both disks, or the nodes
//! name each other.

use std::collections::{BTreeMap, BTreeSet};

use super::inventory::{Inventory, trusted_by};
use super::peer::Peer;
use super::profile::Authority;
use super::x509::certificate::{Certificate, SignatureCheck};
use crate::guest::{Guest, GuestPath};
use crate::kubeconfig::Kubeconfig;
use crate::node::Node;

/// What a node's own files say about its cluster.
#[derive(Debug, Clone, Default)]
pub struct Membership {
    /// The CA certificates that its kubeconfigs trust.
    pub trusted: Vec<Certificate>,
    /// Its own certificates, by the CA that should have signed them.
    pub leaves: BTreeMap<Authority, Vec<Certificate>>,
    /// `server` of its kubeconfigs, loopback left out.
    pub servers: BTreeSet<String>,
    /// etcd's `--name` with each of its `--initial-advertise-peer-urls`.
    pub member: BTreeSet<String>,
    /// The members of etcd's `--initial-cluster`, `NAME=URL` each.
    pub initial_cluster: BTreeSet<String>,
    /// `--etcd-servers`, where etcd is no static pod of this node.
    pub external_etcd: BTreeSet<String>,
}

/// Why two nodes are taken to be of one cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kinship {
    /// The evidence in words.
    pub words: String,
    /// Whether it is a key that both hold, which no two clusters do.
    pub by_key: bool,
}

impl Membership {
    /// Reads it.
    pub fn read(guest: &Guest, node: &Node, inventory: &Inventory) -> Self {
        let mut found = Self::default();
        found.kubeconfigs(guest, node);
        for leaf in &inventory.leaves {
            found
                .leaves
                .entry(leaf.authority)
                .or_default()
                .extend(leaf.certificate.clone());
        }
        let kubelet = inventory
            .kubelet
            .as_ref()
            .and_then(|client| client.certificate.clone());
        found
            .leaves
            .entry(Authority::Cluster)
            .or_default()
            .extend(kubelet);
        found.etcd(node);
        found
    }

    fn kubeconfigs(&mut self, guest: &Guest, node: &Node) {
        let mut paths: BTreeSet<GuestPath> = ["admin.conf", "super-admin.conf"]
            .iter()
            .map(|name| GuestPath::new("/etc/kubernetes").join(name))
            .collect();
        paths.extend(node.kubelet.kubeconfig.value.clone());
        for path in paths {
            let Ok(bytes) = guest.read(&path) else {
                continue;
            };
            let Ok(config) = Kubeconfig::parse(&bytes, &path) else {
                continue;
            };
            self.trusted.extend(trusted_by(guest, &config));
            let server = config
                .current_cluster()
                .and_then(|cluster| cluster.server.clone());
            self.servers
                .extend(server.filter(|server| !is_loopback(server)));
        }
    }

    fn etcd(&mut self, node: &Node) {
        let list = |value: &str| -> BTreeSet<String> {
            value
                .split(',')
                .map(str::trim)
                .filter(|url| !url.is_empty() && !is_loopback(url))
                .map(str::to_owned)
                .collect()
        };
        if let Some(etcd) = node.static_pod("etcd") {
            let urls = etcd
                .flag("--initial-advertise-peer-urls")
                .map(list)
                .unwrap_or_default();
            if let Some(name) = etcd.flag("--name") {
                self.member = urls
                    .into_iter()
                    .map(|url| format!("{name}={url}"))
                    .collect();
            }
            self.initial_cluster = etcd.flag("--initial-cluster").map(list).unwrap_or_default();
        } else if let Some(api) = node.static_pod("kube-apiserver") {
            self.external_etcd = api.flag("--etcd-servers").map(list).unwrap_or_default();
        }
    }

    /// Whether `ca` signed one of this node's certificates, or its kubeconfigs trust it; in words.
    pub fn knows(&self, authority: Authority, ca: &Certificate) -> Option<String> {
        let signed = |leaf: &&Certificate| leaf.signed_by(ca) == SignatureCheck::Valid;
        if let Some(leaf) = self
            .leaves
            .get(&authority)
            .and_then(|leaves| leaves.iter().find(signed))
        {
            return Some(format!(
                "it signed this node's certificate {}",
                leaf.subject
            ));
        }
        let trusts = authority == Authority::Cluster
            && self.trusted.iter().any(|other| {
                other.public_key == ca.public_key && other.subject_raw == ca.subject_raw
            });
        trusts.then(|| "this node's kubeconfigs trust it".to_owned())
    }
}

/// Why `one` and `other` are of one cluster; `None` where nothing proves it. `all` are the nodes of
/// the run: where two of them have the same name, names prove nothing.
pub fn kinship(one: &Peer, other: &Peer, all: &[&Peer]) -> Option<Kinship> {
    if let Some(words) = by_key(one, other) {
        return Some(Kinship {
            words,
            by_key: true,
        });
    }
    let namesakes = |node: &Peer| all.iter().filter(|there| there.name == node.name).count() > 1;
    if namesakes(one) || namesakes(other) || one.name == other.name {
        return None;
    }
    by_name(one, other).map(|words| Kinship {
        words,
        by_key: false,
    })
}

fn by_key(one: &Peer, other: &Peer) -> Option<String> {
    for authority in Authority::ALL {
        // One etcd beside Kubernetes, and its CA, may serve several clusters.
        let shared_etcd =
            !one.membership.external_etcd.is_empty() || !other.membership.external_etcd.is_empty();
        if authority == Authority::Etcd && shared_etcd {
            continue;
        }
        // A CA whose key is on neither disk may be a company's, with many clusters under it.
        let held = |node: &Peer| {
            node.authorities
                .get(&authority)
                .is_some_and(|state| !state.is_external())
        };
        let signing = |node: &Peer| {
            node.authorities
                .get(&authority)
                .and_then(|state| state.certificate().cloned())
        };
        let (of_one, of_other) = (signing(one), signing(other));
        if let (Some(a), Some(b)) = (&of_one, &of_other)
            && a.public_key == b.public_key
            && (held(one) || held(other))
        {
            return Some(format!("both hold the CA {}", authority.name()));
        }
        let (of_one, of_other) = (
            of_one.filter(|_| held(one)),
            of_other.filter(|_| held(other)),
        );
        let knows = |node: &Peer, ca: &Option<Certificate>| {
            ca.as_ref()
                .is_some_and(|ca| node.membership.knows(authority, ca).is_some())
        };
        if knows(one, &of_other) || knows(other, &of_one) {
            return Some(format!(
                "the CA {} of one signed certificates of the other, or is trusted there",
                authority.name()
            ));
        }
    }
    let (one, other) = (&one.service_accounts, &other.service_accounts);
    let accepts = other.signing_keys().any(|key| one.accepts(key))
        || one.signing_keys().any(|key| other.accepts(key));
    accepts.then(|| "both accept the same service account tokens".to_owned())
}

fn by_name(one: &Peer, other: &Peer) -> Option<String> {
    let names =
        |a: &Membership, b: &Membership| a.initial_cluster.intersection(&b.member).next().is_some();
    let (a, b) = (&one.membership, &other.membership);
    if names(a, b) || names(b, a) {
        return Some("etcd's --initial-cluster of one names the other".to_owned());
    }
    let same_etcd = !a.external_etcd.is_empty() && a.external_etcd == b.external_etcd;
    let server = a
        .servers
        .intersection(&b.servers)
        .next()
        .filter(|_| same_etcd)?;
    Some(format!("both use the same etcd servers and {server}"))
}

fn is_loopback(url: &str) -> bool {
    let host = url.split_once("://").map_or(url, |(_, rest)| rest);
    host.starts_with("127.") || host.starts_with("[::1]") || host.starts_with("localhost")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::Settings;
    use crate::tree::MemoryTree;

    fn peer(name: &str, url: &str, members: &str) -> Peer {
        let guest = MemoryTree::new()
            .file("/etc/hostname", name)
            .file(
                "/etc/kubernetes/manifests/etcd.yaml",
                format!(
                    "kind: Pod\nmetadata: {{name: etcd}}\nspec: {{containers: [{{command: [etcd, \
                     --name={name}, --initial-advertise-peer-urls={url}, \
                     '--initial-cluster={members}']}}]}}\n"
                ),
            )
            .into_guest();
        Peer::read(&guest, &Node::read(&guest), &Settings::default())
    }

    #[test]
    fn names_prove_something_only_while_they_are_unique() {
        let one = peer("a", "https://10.0.0.1:2380", "a=https://10.0.0.1:2380");
        let two = peer(
            "b",
            "https://10.0.0.2:2380",
            "a=https://10.0.0.1:2380,b=https://10.0.0.2:2380",
        );
        let elsewhere = peer("a", "https://10.9.0.1:2380", "a=https://10.9.0.1:2380");
        let kin = kinship(&one, &two, &[&one, &two]).unwrap();
        assert!(
            !kin.by_key && kin.words.contains("--initial-cluster"),
            "{kin:?}"
        );
        assert_eq!(kinship(&two, &elsewhere, &[&two, &elsewhere]), None);
        assert_eq!(kinship(&one, &two, &[&one, &two, &elsewhere]), None);
    }

    #[test]
    fn every_node_has_a_loopback() {
        let one = peer("a", "https://127.0.0.1:2380", "b=https://localhost:2380");
        let two = peer("b", "https://localhost:2380", "a=https://127.0.0.1:2380");
        assert_eq!(kinship(&one, &two, &[&one, &two]), None);
    }
}
