//! What the cluster itself keeps about its names: kubeadm's configuration, read from the etcd
//! member on this disk, else from that of another node of the run ([`super::lent`]). It is looked
//! for only where a certificate or kubeconfig is lost, because one pass over the whole database is
//! needed (etcd's keys are in the order of their revisions). It comes after what the node's own
//! files say.
//!
//! Source: kubeadm's phases/uploadconfig (ConfigMap `kube-system/kubeadm-config`), and
//! apis/kubeadm/v1beta1 to v1beta4.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::rc::Rc;

use serde_json::Value;

use super::inventory::{AuthorityState, Inventory};
use super::needed_names::{Names, Needed};
use super::peer::Peer;
use super::profile::Authority;
use super::x509::certificate::Certificate;
use super::x509::names::Name;
use crate::base::yaml;
use crate::etcd::read::keys::{Selection, view};
use crate::etcd::read::kubernetes::{config_map, is_encrypted};
use crate::etcd::read::locate;
use crate::etcd::read::member::{MemberData, Stored};
use crate::etcd::read::objects::{NodeObject, pod_annotations};
use crate::etcd::read::troubles::holder;
use crate::guest::Guest;
use crate::node::Node;
use crate::pki::trust::Party;
use crate::pki::trust::crossing::may_lend_names;

/// `--etcd-prefix` where the flag is absent.
const PREFIX: &str = "/registry";

/// What the member on the node's own disk is called where values are shown with their source.
const OWN: &str = "etcd";

/// A server's certificate has names, and only these three of kubeadm's are servers'.
const SERVERS: [&str; 3] = ["apiserver", "etcd-server", "etcd-peer"];

/// What etcd says of this node's cluster.
#[derive(Debug, Clone, Default)]
pub struct Kept {
    /// Which etcd: "etcd" is the one on the node's own disk.
    pub place: String,
    /// ClusterConfiguration, and up to 1.21 ClusterStatus.
    pub documents: Vec<Value>,
    /// Whether the group that kubeadm from 1.29 on gives administrators is bound.
    pub binds_cluster_admins: bool,
    /// This node's address, by what its API server or etcd was started with, else by its Node
    /// object; and where that stands.
    pub address: Option<(IpAddr, String)>,
    /// Why there are no documents; `None` too where there is no etcd on this disk.
    pub why_not: Option<String>,
}

impl Kept {
    /// Reads it; never fails, what cannot be read is said.
    pub fn read(
        guest: &Guest,
        node: &Node,
        authorities: &BTreeMap<Authority, AuthorityState>,
    ) -> Self {
        let keys = Keys::below(prefix(node), node.node_name.value.as_deref());
        match values(guest, node, keys.all()) {
            None => Self {
                place: OWN.to_owned(),
                ..Self::default()
            },
            Some(Err(why)) => Self {
                place: OWN.to_owned(),
                why_not: Some(why),
                ..Self::default()
            },
            Some(Ok(values)) => keys.taken(&values, OWN, authorities),
        }
    }

    /// What these values, of the etcd called `place`, say of a node. `None` where they do not show
    /// that it is of the node's cluster.
    pub(super) fn of(
        values: &Values,
        prefix: &str,
        place: &str,
        node: &Node,
        authorities: &BTreeMap<Authority, AuthorityState>,
    ) -> Option<Self> {
        let keys = Keys::below(prefix, node.node_name.value.as_deref());
        let map = values
            .get(keys.authentication.as_bytes())
            .and_then(|value| config_map(value))?;
        trusts_the_same(&map, authorities)?.then(|| keys.taken(values, place, authorities))
    }

    /// How a value of kubeadm's configuration is shown with its source, before its name.
    pub fn source(&self) -> String {
        format!("kubeadm-config in {},", self.place)
    }

    /// The control plane's endpoint, `host:port`, as kubeadm's GetControlPlaneEndpoint makes it:
    /// without a port of its own that of the API server.
    pub fn endpoint(&self, port: u16) -> Option<String> {
        let of = |document| yaml::text_at(document, &["controlPlaneEndpoint"]);
        let endpoint = self
            .documents
            .iter()
            .find_map(of)
            .filter(|endpoint| !endpoint.is_empty())?;
        Name::of_endpoint(endpoint)?;
        let has_port = endpoint.rsplit_once(':').is_some_and(|(host, port)| {
            port.parse::<u16>().is_ok() && (!host.contains(':') || host.ends_with(']'))
        });
        let is_bare_v6 = endpoint.parse::<std::net::Ipv6Addr>().is_ok();
        Some(match (has_port, is_bare_v6) {
            (true, _) => endpoint.to_owned(),
            (false, true) => format!("[{endpoint}]:{port}"),
            (false, false) => format!("{endpoint}:{port}"),
        })
    }
}

/// Keys with their values.
pub(super) type Values = BTreeMap<Vec<u8>, Vec<u8>>;

/// Below what a control plane's API server keeps its objects.
pub(super) fn prefix(node: &Node) -> &str {
    let flag = node
        .static_pod("kube-apiserver")
        .and_then(|pod| pod.flag("--etcd-prefix"));
    flag.unwrap_or(PREFIX).trim_end_matches('/')
}

/// The values of some keys in the etcd member on a node's disk, log included. `None` where there is
/// none; else why they cannot be read.
pub(super) fn values(
    guest: &Guest,
    node: &Node,
    keys: Vec<Vec<u8>>,
) -> Option<Result<Values, String>> {
    let found = locate::on_node(guest, node)?;
    if let Some(holder) = holder(guest, &found.place) {
        return Some(Err(format!(
            "etcd is running: {holder} has its database open"
        )));
    }
    let data = MemberData::read(guest, &found.place);
    if let Stored::Damaged(fault) = &data.stored {
        return Some(Err(format!("its database is damaged: {fault}")));
    }
    let seen = match view(guest, &data, &Selection::Keys(keys)) {
        Ok(seen) => seen,
        Err(error) => return Some(Err(error.to_string())),
    };
    let held = seen
        .keys
        .into_iter()
        .filter_map(|(key, held)| Some((key, held.value?.to_vec())));
    Some(Ok(held.collect()))
}

/// The keys that are of use to some nodes.
pub(super) fn keys_for(prefix: &str, nodes: &[String]) -> Vec<Vec<u8>> {
    let all: BTreeSet<Vec<u8>> = nodes
        .iter()
        .flat_map(|node| Keys::below(prefix, Some(node)).all())
        .chain(Keys::below(prefix, None).all())
        .collect();
    all.into_iter().collect()
}

/// The keys that are of use.
struct Keys {
    kubeadm: String,
    authentication: String,
    binding: String,
    /// This node's API server, its etcd, and the node itself.
    own: Option<[String; 3]>,
}

impl Keys {
    fn below(prefix: &str, node: Option<&str>) -> Self {
        let pod = |name: &str, node: &str| format!("{prefix}/pods/kube-system/{name}-{node}");
        let own = node.map(|node| {
            [
                pod("kube-apiserver", node),
                pod("etcd", node),
                format!("{prefix}/minions/{node}"),
            ]
        });
        let map = |name| format!("{prefix}/configmaps/kube-system/{name}");
        Self {
            kubeadm: map("kubeadm-config"),
            // The API server writes its client CA into it at each start.
            authentication: map("extension-apiserver-authentication"),
            binding: format!("{prefix}/clusterrolebindings/kubeadm:cluster-admins"),
            own,
        }
    }

    fn all(&self) -> Vec<Vec<u8>> {
        let fixed = [&self.kubeadm, &self.authentication, &self.binding];
        fixed
            .into_iter()
            .chain(self.own.iter().flatten())
            .map(|key| key.clone().into_bytes())
            .collect()
    }

    fn taken(
        &self,
        values: &Values,
        place: &str,
        authorities: &BTreeMap<Authority, AuthorityState>,
    ) -> Kept {
        let value = |key: &String| values.get(key.as_bytes()).map(Vec::as_slice);
        let place = place.to_owned();
        let not = |why: &str| Kept {
            place: place.clone(),
            why_not: Some(why.to_owned()),
            ..Kept::default()
        };
        let map = |key| value(key).and_then(config_map);
        if map(&self.authentication).and_then(|map| trusts_the_same(&map, authorities))
            == Some(false)
        {
            return not("it holds another cluster: the client CA in it is not this node's");
        }
        let binds_cluster_admins = value(&self.binding).is_some();
        let (documents, why_not) = match value(&self.kubeadm) {
            None => (Vec::new(), Some(format!("it holds no {}", self.kubeadm))),
            Some(value) if is_encrypted(value) => (
                Vec::new(),
                Some(format!(
                    "{} is encrypted at rest there (k8s:enc:)",
                    self.kubeadm
                )),
            ),
            Some(value) => match config_map(value).map(|map| documents(&map)) {
                Some(documents) if !documents.is_empty() => (documents, None),
                _ => (
                    Vec::new(),
                    Some(format!("{} cannot be read there", self.kubeadm)),
                ),
            },
        };
        let address = self.address(values, &place);
        Kept {
            place,
            documents,
            binds_cluster_admins,
            address,
            why_not,
        }
    }

    /// Annotations as kubeadm's GetAPIEndpoint and etcd's getRawEtcdEndpointsFromPodAnnotation read
    /// them from 1.22 on, then the Node's InternalIP.
    fn address(&self, values: &Values, place: &str) -> Option<(IpAddr, String)> {
        let value = |key: &String| values.get(key.as_bytes()).map(Vec::as_slice);
        let usable = |name: Option<Name>| match name {
            Some(Name::Ip(address)) if !address.is_unspecified() && !address.is_loopback() => {
                Some(address)
            }
            _ => None,
        };
        let [api, etcd, node] = self.own.as_ref()?;
        let annotated = |key: &String, annotation: &str| {
            let annotations = pod_annotations(value(key)?)?;
            let url = annotations
                .get(annotation)?
                .split(',')
                .find_map(|url| usable(Name::of_url(url.trim())));
            Some((url?, format!("{key} in {place}, {annotation}")))
        };
        let of_node = || {
            let object = NodeObject::parse(value(node)?)?;
            let address = object
                .internal_ips
                .iter()
                .find_map(|address| usable(Name::parse(address)));
            Some((address?, format!("{node} in {place}, InternalIP")))
        };
        annotated(
            api,
            "kubeadm.kubernetes.io/kube-apiserver.advertise-address.endpoint",
        )
        .or_else(|| annotated(etcd, "kubeadm.kubernetes.io/etcd.advertise-client-urls"))
        .or_else(of_node)
    }
}

fn documents(map: &BTreeMap<String, String>) -> Vec<Value> {
    let parse = |name: &str| yaml::parse(map.get(name)?.as_bytes()).ok();
    ["ClusterConfiguration", "ClusterStatus"]
        .into_iter()
        .filter_map(parse)
        .collect()
}

/// Whether the client CA that the API server wrote down is this node's; `None` where there is
/// nothing to compare.
fn trusts_the_same(
    map: &BTreeMap<String, String>,
    authorities: &BTreeMap<Authority, AuthorityState>,
) -> Option<bool> {
    let own = authorities
        .get(&Authority::Cluster)
        .filter(|own| !own.certificates.is_empty())?;
    let theirs = Certificate::all_from_pem(map.get("client-ca-file")?.as_bytes()).ok()?;
    (!theirs.is_empty()).then(|| own.is_among(&theirs))
}

impl Inventory {
    /// What etcd says of the cluster: the one on this disk, else another node's of the run; read
    /// the first time that somebody asks.
    pub fn kept(&self, guest: &Guest, node: &Node) -> &Kept {
        self.kept.get_or_init(|| {
            let own = Kept::read(guest, node, &self.authorities);
            match own.documents.is_empty() {
                true => self
                    .lent
                    .iter()
                    .find_map(|lent| lent.kept(node, &self.authorities))
                    .unwrap_or(own),
                false => own,
            }
        })
    }

    /// With what the etcd of other nodes of the run says, where they prove to be control planes of
    /// this node's cluster.
    #[must_use]
    pub fn with_lent(mut self, party: &Party, peers: &[Rc<Peer>]) -> Self {
        let lenders = peers
            .iter()
            .filter(|peer| may_lend_names(party, &peer.party));
        self.lent = lenders.filter_map(|peer| peer.lent.clone()).collect();
        // Whatever the order of the disks on the command line.
        self.lent
            .sort_by(|one, other| one.place().cmp(other.place()));
        self
    }

    /// With the names that kubeadm's configuration in etcd adds, where a server's certificate is
    /// lost.
    #[must_use]
    pub fn with_kept_names(mut self, guest: &Guest, node: &Node) -> Self {
        let is_server = |name: &str| SERVERS.contains(&name);
        let is_lost = |leaf: &super::inventory::Leaf| {
            leaf.certificate.is_none()
                && (is_server(leaf.name) || leaf.also.iter().any(|name| is_server(name)))
        };
        if !self.leaves.iter().any(is_lost) {
            return self;
        }
        let kept = self.kept(guest, node).clone();
        let names = Names::new(guest, node, &self.authorities).with_kept(&kept);
        for leaf in self.leaves.iter_mut().filter(|leaf| is_lost(leaf)) {
            let mut needed = Needed {
                asked: std::mem::take(&mut leaf.needed.asked),
                ..Needed::default()
            };
            for name in std::iter::once(leaf.name).chain(leaf.also.iter().copied()) {
                needed.extend(names.of(name));
            }
            leaf.needed = needed;
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_gets_the_port_that_kubeadm_gives_it() {
        let endpoint = |text: &str| {
            let document =
                serde_json::json!({"kind": "ClusterConfiguration", "controlPlaneEndpoint": text});
            Kept {
                documents: vec![document],
                ..Kept::default()
            }
            .endpoint(6443)
        };
        assert_eq!(
            endpoint("vip.example.org").as_deref(),
            Some("vip.example.org:6443")
        );
        assert_eq!(
            endpoint("vip.example.org:8443").as_deref(),
            Some("vip.example.org:8443")
        );
        assert_eq!(endpoint("10.0.0.1").as_deref(), Some("10.0.0.1:6443"));
        assert_eq!(endpoint("fd00::1").as_deref(), Some("[fd00::1]:6443"));
        assert_eq!(
            endpoint("[fd00::1]:8443").as_deref(),
            Some("[fd00::1]:8443")
        );
        assert_eq!(endpoint(""), None);
        assert_eq!(endpoint("a b"), None);
    }
}
