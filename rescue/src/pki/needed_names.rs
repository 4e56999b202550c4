//! The names that a serving certificate must carry, worked out from what its users on this disk
//! call the server, and the further ones that kubeadm puts in. Source: kubeadm's util/pkiutil
//! GetAPIServerAltNames and getAltNames (etcd), the same from 1.11 on.

use serde_json::Value;
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::inventory::{AuthorityState, trusted_by};
use super::kept::Kept;
use super::profile::{Authority, CONFIGS};
use super::x509::certificate::Certificate;
use super::x509::names::{Name, NameSource, in_order};
use crate::base::yaml;
use crate::guest::{Guest, GuestPath};
use crate::kubeconfig::Kubeconfig;
use crate::node::{Node, StaticPod};

/// Where kubespray keeps kubeadm's configuration; kubeadm itself keeps it only in the cluster.
const KUBEADM_CONFIG: &str = "/etc/kubernetes/kubeadm-config.yaml";

/// What the host part of a service account issuer begins with where it is the API server itself.
const API_SERVICE: &str = "kubernetes.default.svc";

/// A name that must be there and that nothing on the disk tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unknown {
    /// What it is, for people: "the address that the API server is reached at".
    pub what: String,
    /// Where it was looked for.
    pub looked: String,
    /// Whether it is an address; else a DNS name.
    pub is_address: bool,
}

/// Names of one serving certificate.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Needed {
    /// Something on the disk calls the server so: without it that fails.
    pub used: Vec<NameSource>,
    /// What kubeadm adds beside them, in its own order.
    pub usual: Vec<NameSource>,
    /// What a new certificate cannot do without.
    pub unknown: Vec<Unknown>,
    /// What the user asked for.
    pub asked: Vec<NameSource>,
}

impl Needed {
    /// All names, kubeadm's own first.
    pub fn all(&self) -> Vec<NameSource> {
        self.usual
            .iter()
            .chain(&self.used)
            .chain(&self.asked)
            .cloned()
            .collect()
    }

    /// What `certificate` must carry and does not.
    pub fn missing(&self, certificate: &Certificate) -> Vec<NameSource> {
        let have = certificate.alternative_names.as_ref();
        let needed: Vec<NameSource> = self.used.iter().chain(&self.asked).cloned().collect();
        in_order(&needed)
            .into_iter()
            .filter(|needed| have.is_none_or(|have| !needed.name.is_in(have)))
            .collect()
    }

    /// What neither the disk nor the user tells.
    pub fn still_unknown(&self) -> impl Iterator<Item = &Unknown> {
        let asked = |is_address| {
            self.asked
                .iter()
                .filter(|asked| matches!(asked.name, Name::Ip(_)) == is_address)
                .count()
        };
        let wanted = |is_address| {
            self.unknown
                .iter()
                .filter(|unknown| unknown.is_address == is_address)
                .count()
        };
        // Of two unknown addresses and one given nobody can say which it is.
        self.unknown
            .iter()
            .filter(move |unknown| asked(unknown.is_address) < wanted(unknown.is_address))
    }

    /// Those of another use of the same certificate.
    pub(super) fn extend(&mut self, other: Self) {
        self.used.extend(other.used);
        self.usual.extend(other.usual);
        self.asked.extend(other.asked);
        self.unknown.extend(
            other
                .unknown
                .into_iter()
                .filter(|unknown| !self.unknown.contains(unknown))
                .collect::<Vec<_>>(),
        );
    }

    fn usual(&mut self, name: Option<Name>, source: impl std::fmt::Display) {
        self.usual
            .extend(name.map(|name| NameSource::new(name, source)));
    }

    fn used(&mut self, name: Option<Name>, source: impl std::fmt::Display) {
        let name = name.filter(|name| !name.is_unspecified());
        self.used
            .extend(name.map(|name| NameSource::new(name, source)));
    }

    fn unknown(&mut self, what: &str, looked: &str, is_address: bool) {
        self.unknown.push(Unknown {
            what: what.to_owned(),
            looked: looked.to_owned(),
            is_address,
        });
    }
}

/// Reads what the node's files say about names.
#[derive(Debug)]
pub struct Names<'a> {
    guest: &'a Guest,
    node: &'a Node,
    authorities: &'a BTreeMap<Authority, AuthorityState>,
    kubeadm: Vec<Document>,
    /// This node's address by etcd.
    kept_address: Option<NameSource>,
    /// Why etcd could not say more.
    why_not: Option<String>,
}

/// A part of kubeadm's configuration, and where it was found.
#[derive(Debug)]
struct Document {
    value: Value,
    source: String,
}

impl<'a> Names<'a> {
    /// On one node with its CAs.
    pub fn new(
        guest: &'a Guest,
        node: &'a Node,
        authorities: &'a BTreeMap<Authority, AuthorityState>,
    ) -> Self {
        let bytes = guest.read(&GuestPath::new(KUBEADM_CONFIG)).ok();
        let parsed = bytes
            .map(|bytes| yaml::parse_all(&bytes))
            .unwrap_or_default();
        let kubeadm = parsed
            .into_iter()
            .map(|value| Document {
                value,
                source: KUBEADM_CONFIG.to_owned(),
            })
            .collect();
        Self {
            guest,
            node,
            authorities,
            kubeadm,
            kept_address: None,
            why_not: None,
        }
    }

    /// With what etcd has, which counts after the node's own files.
    #[must_use]
    pub fn with_kept(mut self, kept: &Kept) -> Self {
        self.kubeadm
            .extend(kept.documents.iter().map(|value| Document {
                value: value.clone(),
                source: kept.source(),
            }));
        let address = kept.address.as_ref();
        self.kept_address =
            address.map(|(address, source)| NameSource::new(Name::Ip(*address), source));
        self.why_not.clone_from(&kept.why_not);
        self
    }

    /// The names of the leaf with this profile; none for clients.
    pub fn of(&self, profile: &str) -> Needed {
        let mut needed = match profile {
            "apiserver" => self.api_server(),
            "etcd-server" => self.etcd_server(),
            "etcd-peer" => self.etcd_peer(),
            _ => Needed::default(),
        };
        if let Some(why) = &self.why_not {
            needed
                .unknown
                .iter_mut()
                .for_each(|unknown| unknown.looked.push_str(&format!("; etcd: {why}")));
        }
        needed
    }

    fn api_server(&self) -> Needed {
        let mut needed = Needed::default();
        for name in ["kubernetes", "kubernetes.default", API_SERVICE] {
            needed.usual(
                Name::parse(name),
                "kubeadm puts it into every API server certificate",
            );
        }
        self.node_name(&mut needed);
        let (service, source) = self.service_address();
        match service {
            Some(address) => {
                needed.usual(Some(Name::Ip(address)), &source);
                needed.used(Some(Name::Ip(address)), &source);
                needed.used(
                    Name::parse(API_SERVICE),
                    "what pods in the cluster call the API server",
                );
            }
            None => needed.unknown("the first address of the service network", &source, true),
        }
        let advertised = self.advertise_address();
        match &advertised {
            Some(found) => needed.usual.push(found.clone()),
            None => needed.unknown(
                "the address of this node's API server",
                "--advertise-address of kube-apiserver, --advertise-client-urls of etcd",
                true,
            ),
        }
        let flagged = self.flag("kube-apiserver", "--advertise-address");
        if let Some((value, source)) = flagged {
            needed.used(Name::parse(value), source);
        }
        self.cluster_domain(&mut needed);
        let has_further_certificates = self.flag("kube-apiserver", "--tls-sni-cert-key").is_some();
        for server in self.servers() {
            // A name may be served by another certificate, which is chosen by name only.
            if has_further_certificates && matches!(server.name, Name::Dns(_)) {
                needed.usual.push(server);
            } else {
                needed.used.push(server);
            }
        }
        if let Some((endpoint, source)) =
            self.kubeadm_text("ClusterConfiguration", &["controlPlaneEndpoint"])
        {
            needed.usual(Name::of_endpoint(endpoint), source);
        }
        self.listed(&mut needed, &["apiServer", "certSANs"]);
        needed
    }

    fn etcd_server(&self) -> Needed {
        let mut needed = self.etcd();
        let own = |name: &Name, needed: &Needed| {
            name.is_loopback()
                || needed
                    .usual
                    .iter()
                    .chain(&needed.used)
                    .any(|have| have.name == *name)
        };
        for flag in ["--advertise-client-urls", "--listen-client-urls"] {
            self.urls(&mut needed, "etcd", flag, |_, _| true);
        }
        // The API server of a node may know all members; the others' names are no concern of this
        // certificate.
        self.urls(&mut needed, "kube-apiserver", "--etcd-servers", own);
        self.listed(&mut needed, &["etcd", "local", "serverCertSANs"]);
        needed
    }

    fn etcd_peer(&self) -> Needed {
        let mut needed = self.etcd();
        for flag in ["--initial-advertise-peer-urls", "--listen-peer-urls"] {
            self.urls(&mut needed, "etcd", flag, |_, _| true);
        }
        self.listed(&mut needed, &["etcd", "local", "peerCertSANs"]);
        needed
    }

    /// getAltNames: node name and localhost, the advertise address and both loopbacks.
    fn etcd(&self) -> Needed {
        let mut needed = Needed::default();
        self.node_name(&mut needed);
        let always = "kubeadm puts it into every etcd certificate";
        needed.usual(Name::parse("localhost"), always);
        match self.advertise_address() {
            Some(found) => needed.usual.push(found),
            None => needed.unknown(
                "the address of this etcd member",
                "--advertise-client-urls of etcd, --advertise-address of kube-apiserver",
                true,
            ),
        }
        needed.usual(Some(Name::Ip(IpAddr::V4(Ipv4Addr::LOCALHOST))), always);
        needed.usual(Some(Name::Ip(IpAddr::V6(Ipv6Addr::LOCALHOST))), always);
        needed
    }

    fn urls(
        &self,
        needed: &mut Needed,
        pod: &str,
        flag: &str,
        wanted: impl Fn(&Name, &Needed) -> bool,
    ) {
        let Some((value, source)) = self.flag(pod, flag) else {
            return;
        };
        for name in value.split(',').filter_map(|url| Name::of_url(url.trim())) {
            if wanted(&name, needed) {
                needed.used(Some(name), &source);
            }
        }
    }

    fn node_name(&self, needed: &mut Needed) {
        let fact = &self.node.node_name;
        let member = self.flag("etcd", "--name");
        match (&fact.value, member) {
            (Some(name), _) if Name::parse(name).is_some() => {
                needed.usual(
                    Name::parse(name),
                    format!("the node's name: {}", fact.source),
                );
            }
            (_, Some((name, source))) => needed.usual(Name::parse(name), source),
            _ => needed.unknown("the node's name", &fact.source, false),
        }
    }

    fn listed(&self, needed: &mut Needed, keys: &[&str]) {
        for (list, source) in self.kubeadm("ClusterConfiguration", keys) {
            for name in list
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(Value::as_str)
            {
                needed.usual(Name::parse(name), &source);
            }
        }
    }

    /// kubeadm gives both the API server and etcd the same address.
    fn advertise_address(&self) -> Option<NameSource> {
        let flags = [
            ("kube-apiserver", "--advertise-address"),
            ("etcd", "--advertise-client-urls"),
            ("etcd", "--initial-advertise-peer-urls"),
        ];
        let flagged = flags.into_iter().find_map(|(pod, flag)| {
            let (value, source) = self.flag(pod, flag)?;
            let usable = |name: &Name| {
                matches!(name, Name::Ip(_)) && !name.is_unspecified() && !name.is_loopback()
            };
            let name = value
                .split(',')
                .filter_map(|url| Name::of_url(url.trim()))
                .find(usable)?;
            Some(NameSource::new(name, source))
        });
        let written = |kind, keys: &[&str]| {
            let (address, source) = self.kubeadm_text(kind, keys)?;
            Some(NameSource::new(Name::parse(address)?, source))
        };
        flagged
            .or_else(|| {
                written(
                    "InitConfiguration",
                    &["localAPIEndpoint", "advertiseAddress"],
                )
            })
            .or_else(|| self.kept_address.clone())
            .or_else(|| {
                // Up to 1.21 kubeadm wrote down the address of each control plane.
                let name = self.node.node_name.value.as_deref()?;
                written("ClusterStatus", &["apiEndpoints", name, "advertiseAddress"])
            })
    }

    /// The first address of the first service network, as kubeadm's GetAPIServerVirtualIP; else
    /// where it was looked for.
    fn service_address(&self) -> (Option<IpAddr>, String) {
        let flag = "--service-cluster-ip-range";
        let flagged = ["kube-apiserver", "kube-controller-manager"]
            .into_iter()
            .find_map(|pod| self.flag(pod, flag));
        let configured =
            || self.kubeadm_text("ClusterConfiguration", &["networking", "serviceSubnet"]);
        match flagged.or_else(configured) {
            Some((range, source)) => (
                first_address(range),
                format!("first address of {range}: {source}"),
            ),
            None => (
                None,
                format!("{flag} of kube-apiserver and kube-controller-manager"),
            ),
        }
    }

    /// kubernetes.default.svc.DOMAIN. The issuer of service account tokens names it, and whoever
    /// checks them asks it there.
    fn cluster_domain(&self, needed: &mut Needed) {
        if let Some((issuer, source)) = self.flag("kube-apiserver", "--service-account-issuer")
            && let Some(Name::Dns(host)) = Name::of_url(issuer)
            && host.starts_with(&format!("{API_SERVICE}."))
        {
            needed.used(Some(Name::Dns(host)), source);
            return;
        }
        let kubelet = yaml::text_at(&self.node.kubelet.config, &["clusterDomain"]);
        let configured = self.kubeadm_text("ClusterConfiguration", &["networking", "dnsDomain"]);
        let domain =
            kubelet.map(|domain| (domain, "clusterDomain of the kubelet's config".to_owned()));
        let domain = domain.or(configured);
        if let Some((domain, source)) = domain {
            needed.usual(Name::parse(&format!("{API_SERVICE}.{domain}")), source);
        }
    }

    /// What the kubeconfigs of this cluster on this node call the API server.
    fn servers(&self) -> Vec<NameSource> {
        let kubernetes = GuestPath::new("/etc/kubernetes");
        let mut paths: Vec<GuestPath> = CONFIGS
            .iter()
            .map(|config| kubernetes.join(config.name))
            .collect();
        let kubelet = self.node.kubelet.kubeconfig.value.clone();
        paths.insert(
            0,
            kubelet.unwrap_or_else(|| kubernetes.join("kubelet.conf")),
        );
        paths.extend(CONFIGS.iter().filter_map(|config| {
            let (path, _) = self.flag(config.pod?, "--kubeconfig")?;
            path.starts_with('/').then(|| GuestPath::new(path))
        }));
        let mut found: Vec<NameSource> = Vec::new();
        for path in paths {
            if let Some(name) = self.server(&path)
                && !found.iter().any(|have| have.name == name)
            {
                found.push(NameSource::new(name, format!("{path} server")));
            }
        }
        found
    }

    /// `None` where the client checks no name, or trusts another CA than this cluster's: then
    /// another certificate is served there.
    fn server(&self, path: &GuestPath) -> Option<Name> {
        let config = Kubeconfig::parse(&self.guest.read(path).ok()?, path).ok()?;
        let cluster = config.current_cluster()?;
        if cluster.insecure {
            return None;
        }
        let trusted = trusted_by(self.guest, &config);
        if !self
            .authorities
            .get(&Authority::Cluster)?
            .is_among(&trusted)
        {
            return None;
        }
        match &cluster.tls_server_name {
            Some(name) => Name::parse(name),
            None => Name::of_url(cluster.server.as_ref()?).filter(|name| !name.is_unspecified()),
        }
    }

    fn pod(&self, name: &str) -> Option<&StaticPod> {
        self.node.static_pod(name)
    }

    /// A flag's value and where it stands.
    fn flag(&self, pod: &str, flag: &str) -> Option<(&str, String)> {
        let pod = self.pod(pod)?;
        Some((pod.flag(flag)?, format!("{} {flag}", pod.path)))
    }

    /// The values of a key of kubeadm's configuration with their sources, the most trusted first.
    fn kubeadm<'s>(
        &'s self,
        kind: &str,
        keys: &[&str],
    ) -> impl Iterator<Item = (&'s Value, String)> {
        let of_kind = self
            .kubeadm
            .iter()
            .filter(move |one| yaml::text_at(&one.value, &["kind"]) == Some(kind));
        of_kind.filter_map(move |one| {
            Some((
                yaml::at(&one.value, keys)?,
                format!("{} {}", one.source, keys.join(".")),
            ))
        })
    }

    fn kubeadm_text(&self, kind: &str, keys: &[&str]) -> Option<(&str, String)> {
        let texts = self
            .kubeadm(kind, keys)
            .filter_map(|(value, source)| Some((value.as_str()?, source)));
        texts.into_iter().find(|(text, _)| !text.is_empty())
    }
}

/// `10.96.0.0/12,fd00::/108` → 10.96.0.1.
fn first_address(ranges: &str) -> Option<IpAddr> {
    let (address, bits) = ranges.split(',').next()?.trim().split_once('/')?;
    let bits: u32 = bits.parse().ok()?;
    match address.parse::<IpAddr>().ok()? {
        IpAddr::V4(address) => {
            let host = u32::MAX.checked_shr(bits).filter(|_| bits < 32)?;
            Some(IpAddr::V4(Ipv4Addr::from_bits(
                (address.to_bits() & !host) + 1,
            )))
        }
        IpAddr::V6(address) => {
            let host = u128::MAX.checked_shr(bits).filter(|_| bits < 128)?;
            Some(IpAddr::V6(Ipv6Addr::from_bits(
                (address.to_bits() & !host) + 1,
            )))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_the_first_address_of_the_first_network() {
        let first = |range: &str| first_address(range).map(|address| address.to_string());
        assert_eq!(first("10.96.0.0/12").as_deref(), Some("10.96.0.1"));
        assert_eq!(first("10.100.7.9/12").as_deref(), Some("10.96.0.1"));
        assert_eq!(
            first("fd00:10:96::/112,10.96.0.0/12").as_deref(),
            Some("fd00:10:96::1")
        );
        assert_eq!(first("0.0.0.0/0").as_deref(), Some("0.0.0.1"));
        for bad in [
            "",
            "10.96.0.0",
            "10.96.0.0/33",
            "10.96.0.0/32",
            "::/128",
            "x/12",
            "10.96.0.0/-1",
        ] {
            assert_eq!(first(bad), None, "{bad}");
        }
    }
}
