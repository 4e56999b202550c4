//! What is still on the disk about the values of a lost kubeconfig: its server, the name of its
//! cluster, whom it stood for. Each value comes with where it was found.
//!
//! kubeadm's rules (phases/kubeconfig/kubeconfig.go): administrators and kubelets are sent to the
//! control plane's endpoint, and from 1.19.1 on controller manager and scheduler to this node's own
//! API server.

use std::rc::Rc;

use super::inventory::{AuthorityState, Inventory, trusted_by};
use super::kept::Kept;
use super::peer::Peer;
use super::profile::Authority;
use super::x509::certificate::{Certificate, SignatureCheck};
use super::x509::key::Algorithm;
use super::x509::names::Name;
use crate::guest::{Guest, GuestPath};
use crate::kubeconfig::{Kubeconfig, Material};
use crate::node::{Node, Version};
use crate::pki::trust::Party;
use crate::pki::trust::crossing::may_lend_names;

/// A value and where it was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found<T> {
    /// The value.
    pub value: T,
    /// Guest path or a short phrase.
    pub source: String,
}

impl<T> Found<T> {
    fn new(value: T, source: impl std::fmt::Display) -> Self {
        Self {
            value,
            source: source.to_string(),
        }
    }
}

/// Which API server a kubeconfig leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Endpoint {
    /// The one of the whole control plane: for administrators and kubelets.
    Shared,
    /// This node's own: for the controller manager and the scheduler.
    Local,
}

/// Another kubeconfig of this cluster on the same disk.
#[derive(Debug)]
struct Witness {
    path: GuestPath,
    endpoint: Endpoint,
    server: String,
    cluster: String,
    client: Option<Certificate>,
}

/// The evidence of one node.
#[derive(Debug)]
pub struct ConfigEvidence<'a> {
    guest: &'a Guest,
    node: &'a Node,
    inventory: &'a Inventory,
    witnesses: Vec<Witness>,
}

/// From here on controller manager and scheduler use the local API server (kubernetes#94398).
const LOCAL_SINCE: Version = Version {
    major: 1,
    minor: 19,
    patch: 1,
};

/// What the kubelet's own TLS bootstrap calls the cluster; no other kubeconfig does.
const BOOTSTRAP_CLUSTER: &str = "default-cluster";

impl<'a> ConfigEvidence<'a> {
    /// Reads the other kubeconfigs; those of other clusters are no witnesses.
    pub fn read(guest: &'a Guest, node: &'a Node, inventory: &'a Inventory) -> Self {
        let local = match node.kubelet_version.value {
            Some(version) if version < LOCAL_SINCE => Endpoint::Shared,
            _ => Endpoint::Local,
        };
        let authority = inventory.authorities.get(&Authority::Cluster);
        let witnesses = paths(guest, node)
            .into_iter()
            .filter_map(|(path, is_local)| {
                let endpoint = if is_local { local } else { Endpoint::Shared };
                witness(guest, authority?, path, endpoint)
            })
            .collect();
        Self {
            guest,
            node,
            inventory,
            witnesses,
        }
    }

    /// `https://host:port`; `None` where nothing says it.
    pub fn server(&self, endpoint: Endpoint) -> Option<Found<String>> {
        let of = |endpoint| {
            self.witnesses
                .iter()
                .find(|witness| witness.endpoint == endpoint)
        };
        let read = |witness: &Witness| Found::new(witness.server.clone(), &witness.path);
        match endpoint {
            Endpoint::Shared => of(Endpoint::Shared)
                .map(read)
                .or_else(|| self.configured_server())
                .or_else(|| {
                    let local = self
                        .own_server()
                        .or_else(|| of(Endpoint::Local).map(read))?;
                    let source = format!(
                        "{}: this node's own API server, the control plane's endpoint is not known",
                        local.source
                    );
                    Some(Found { source, ..local })
                }),
            Endpoint::Local => of(Endpoint::Local)
                .map(read)
                .or_else(|| self.own_server())
                .or_else(|| of(Endpoint::Shared).map(read)),
        }
    }

    /// The control plane's endpoint by kubeadm's configuration in etcd.
    fn configured_server(&self) -> Option<Found<String>> {
        let port = self
            .node
            .static_pod("kube-apiserver")
            .and_then(|pod| pod.flag("--secure-port")?.parse().ok());
        let endpoint = self.kept().endpoint(port.unwrap_or(6443))?;
        Some(Found::new(
            format!("https://{endpoint}"),
            format!("{} controlPlaneEndpoint", self.kept().source()),
        ))
    }

    fn kept(&self) -> &Kept {
        self.inventory.kept(self.guest, self.node)
    }

    /// This node's API server by its own flags.
    fn own_server(&self) -> Option<Found<String>> {
        let pod = self.node.static_pod("kube-apiserver")?;
        let address: std::net::IpAddr = pod.flag("--advertise-address")?.parse().ok()?;
        let port: u16 = pod.flag("--secure-port").unwrap_or("6443").parse().ok()?;
        let address = if address.is_ipv6() {
            format!("[{address}]")
        } else {
            address.to_string()
        };
        Some(Found::new(
            format!("https://{address}:{port}"),
            format!("{} --advertise-address", pod.path),
        ))
    }

    /// The name of the cluster entry.
    pub fn cluster_name(&self) -> Found<String> {
        let named = self
            .witnesses
            .iter()
            .find(|witness| witness.cluster != BOOTSTRAP_CLUSTER);
        if let Some(witness) = named {
            return Found::new(witness.cluster.clone(), &witness.path);
        }
        let pod = self.node.static_pod("kube-controller-manager");
        match pod.and_then(|pod| Some((pod.flag("--cluster-name")?, &pod.path))) {
            Some((name, path)) => Found::new(name.to_owned(), format!("{path} --cluster-name")),
            None => Found::new("kubernetes".to_owned(), "kubeadm's default"),
        }
    }

    /// A certificate of this cluster for `common_name` in another kubeconfig: its subject says
    /// which groups it had.
    pub fn client(&self, common_name: &str) -> Option<Found<&Certificate>> {
        self.witnesses.iter().find_map(|witness| {
            let client = witness.client.as_ref()?;
            (client.common_name.as_deref() == Some(common_name))
                .then(|| Found::new(client, &witness.path))
        })
    }

    /// The group of the administrator. Who is in a group that the cluster does not bind is locked
    /// out, so kubeadm 1.29's new one is taken only where something on the disk shows that the
    /// cluster has it.
    pub fn administrators(&self) -> Found<&'static str> {
        const MASTERS: &str = "system:masters";
        const BOUND: &str = "kubeadm:cluster-admins";
        let has_bound = |leaf: &&super::inventory::Leaf| {
            leaf.certificate
                .as_ref()
                .is_some_and(|old| old.organizations.iter().any(|group| group == BOUND))
        };
        if let Some(leaf) = self.inventory.leaves.iter().find(has_bound) {
            return Found::new(BOUND, format!("the group of {}", leaf.name));
        }
        if self
            .inventory
            .leaves
            .iter()
            .any(|leaf| leaf.name == "super-admin.conf")
        {
            return Found::new(BOUND, "kubeadm 1.29 and later, which made super-admin.conf");
        }
        if self.kept().binds_cluster_admins {
            return Found::new(
                BOUND,
                format!("{} holds the binding {BOUND}", self.kept().place),
            );
        }
        Found::new(
            MASTERS,
            "what every cluster binds; nothing here shows the group of kubeadm 1.29 and later",
        )
    }

    /// CA certificates, PEM: all of ca.crt, so that a bundle stays one.
    pub fn authority(&self) -> Option<Found<String>> {
        let state = self.inventory.authorities.get(&Authority::Cluster)?;
        let pem: String = state.certificates.iter().map(Certificate::to_pem).collect();
        (!pem.is_empty()).then(|| Found::new(pem, &state.certificate_path))
    }

    /// The server that control planes of this cluster in the run are sent to, where they agree.
    pub fn servers_of(&self, party: &Party, peers: &[Rc<Peer>]) -> Option<Found<String>> {
        let own = self.inventory.authorities.get(&Authority::Cluster)?;
        let same = |peer: &&Rc<Peer>| {
            peer.authorities
                .get(&Authority::Cluster)
                .is_some_and(|theirs| own.is_among(&theirs.certificates))
        };
        let mut found: Option<Found<String>> = None;
        for peer in peers
            .iter()
            .filter(same)
            .filter(|peer| may_lend_names(party, &peer.party))
        {
            for server in peer
                .membership
                .servers
                .iter()
                .filter(|server| server.starts_with("https://"))
            {
                if found.as_ref().is_some_and(|found| found.value != *server) {
                    return None;
                }
                found = Some(Found::new(server.clone(), peer.shown()));
            }
        }
        found
    }

    /// The kind of key that the other kubeconfigs have; kubeadm's default else.
    pub fn algorithm(&self) -> Algorithm {
        let of_config = |leaf: &super::inventory::Leaf| {
            leaf.name
                .ends_with(".conf")
                .then(|| leaf.certificate.as_ref()?.algorithm)
                .flatten()
        };
        self.inventory
            .leaves
            .iter()
            .find_map(of_config)
            .unwrap_or(Algorithm::Rsa(2048))
            .renewed()
    }
}

/// Kubeconfigs that may be there, best witnesses first, and whether kubeadm gives them the local
/// endpoint.
fn paths(guest: &Guest, node: &Node) -> Vec<(GuestPath, bool)> {
    let folder = GuestPath::new("/etc/kubernetes");
    let mut paths: Vec<(GuestPath, bool)> = ["admin.conf", "super-admin.conf"]
        .iter()
        .map(|name| (folder.join(name), false))
        .collect();
    let kubelet = node.kubelet.kubeconfig.value.clone();
    paths.extend(
        kubelet
            .or_else(|| Some(folder.join("kubelet.conf")))
            .map(|path| (path, false)),
    );
    paths.extend(
        node.kubelet
            .bootstrap_kubeconfig
            .value
            .clone()
            .map(|path| (path, false)),
    );
    // People's own copies last: one may lead through a tunnel.
    let homes = crate::kubeconfig::homes::homes(guest);
    paths.extend(homes.iter().map(|home| (home.join(".kube/config"), false)));
    for (pod, name) in [
        ("kube-controller-manager", "controller-manager.conf"),
        ("kube-scheduler", "scheduler.conf"),
    ] {
        let flagged = node
            .static_pod(pod)
            .and_then(|pod| pod.flag("--kubeconfig"))
            .filter(|path| path.starts_with('/'));
        paths.push((
            flagged.map_or_else(|| folder.join(name), GuestPath::new),
            true,
        ));
    }
    paths
}

fn witness(
    guest: &Guest,
    authority: &AuthorityState,
    path: GuestPath,
    endpoint: Endpoint,
) -> Option<Witness> {
    let config = Kubeconfig::parse(&guest.read(&path).ok()?, &path).ok()?;
    if !authority.is_among(&trusted_by(guest, &config)) {
        return None;
    }
    let cluster = config.current_cluster()?;
    let server = cluster
        .server
        .clone()
        .filter(|server| server.starts_with("https://"))?;
    // The near end of somebody's tunnel, or of a proxy that is only there.
    if Name::of_url(&server).is_none_or(|host| host.is_loopback()) {
        return None;
    }
    // A file that was cut off among its users still says where it led.
    let pem = match config.current_user().map(|user| &user.certificate) {
        Some(Material::Inline(bytes)) => Some(bytes.clone()),
        Some(Material::File(file)) => guest.read(file).ok(),
        Some(Material::None) | None => None,
    };
    let client = pem.and_then(|pem| Certificate::all_from_pem(&pem).ok()?.into_iter().next());
    let client = client.filter(|client| authority.issued(client, &[]) == SignatureCheck::Valid);
    Some(Witness {
        endpoint,
        server,
        cluster: cluster.name.clone(),
        client,
        path,
    })
}
