//! What a lost leaf said, put together from what is left on the disk: its subject, its names, its
//! kind of key. Source for the subjects: kubeadm's phases/certs/certlist.go before and after 1.29.

use std::fmt;

use super::inventory::{Inventory, Leaf, Place, Verdict};
use super::needed_names::Unknown;
use super::x509::certificate::Certificate;
use super::x509::issue::subject;
use super::x509::key::Algorithm;
use super::x509::names::{Name, NameSource, in_order};
use crate::guest::Guest;
use crate::node::{Node, Version};

/// The group that RBAC grants everything without any binding.
const MASTERS: &str = "system:masters";

/// What kubeadm from 1.29 on puts in its place; it needs a ClusterRoleBinding of that name in the
/// cluster.
const CLUSTER_ADMINS: &str = "kubeadm:cluster-admins";

/// kubeadm 1.29 changed the organizations of clients.
const CHANGED: Version = Version {
    major: 1,
    minor: 29,
    patch: 0,
};

/// What to make in place of a lost leaf.
#[derive(Debug, Clone)]
pub struct Blueprint {
    /// Subject, DER.
    pub subject_raw: Vec<u8>,
    /// The same for people, with its source.
    pub subject: String,
    /// All names, in kubeadm's order, each with its source.
    pub names: Vec<NameSource>,
    /// Kind of key.
    pub algorithm: Algorithm,
    /// Things to say.
    pub remarks: Vec<String>,
}

/// A common name with organizations, and where they are from.
struct Identity {
    organization: Option<&'static str>,
    common_name: String,
    source: String,
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(organization) = self.organization {
            write!(f, "O={organization}, ")?;
        }
        write!(f, "CN={} ({})", self.common_name, self.source)
    }
}

/// The blueprint of one of kubeadm's leaves in files; else why it cannot be known, with what to do.
pub fn blueprint(
    leaf: &Leaf,
    inventory: &Inventory,
    guest: &Guest,
    node: &Node,
) -> Result<Blueprint, Vec<String>> {
    let from = Evidence {
        leaf,
        inventory,
        guest,
        node,
    };
    let unknown: Vec<String> = leaf
        .needed
        .still_unknown()
        .map(|unknown| from.refusal(unknown))
        .collect();
    if !unknown.is_empty() {
        return Err(unknown);
    }
    let identity = from.identity().ok_or_else(|| {
        vec![
            "Not mended: whom the lost certificate stood for is said nowhere on this disk. Restore \
             it from a backup."
                .to_owned(),
        ]
    })?;
    let organizations: Vec<&str> = identity.organization.into_iter().collect();
    let subject_raw = subject(&organizations, &identity.common_name)
        .map_err(|error| vec![format!("Not mended: {}: {error:#}", identity.common_name)])?;
    let (algorithm, like) = from.algorithm();
    let names = in_order(&from.names());
    let mut remarks = vec![format!("new {algorithm} key, {like}")];
    if !names.is_empty() {
        remarks.extend(from.what_may_be_lost());
    }
    Ok(Blueprint {
        subject_raw,
        subject: identity.to_string(),
        names,
        algorithm,
        remarks,
    })
}

/// How `--san` names a leaf other than the API server's.
pub fn prefix(leaf: &str) -> String {
    if leaf == "apiserver" {
        String::new()
    } else {
        format!("{leaf}=")
    }
}

struct Evidence<'a> {
    leaf: &'a Leaf,
    inventory: &'a Inventory,
    guest: &'a Guest,
    node: &'a Node,
}

impl Evidence<'_> {
    /// Names that nothing tells any more, and why etcd does not tell them either.
    fn what_may_be_lost(&self) -> Vec<String> {
        let kept = self.inventory.kept(self.guest, self.node);
        let elsewhere = if kept.documents.is_empty() {
            ""
        } else {
            ", and kubeadm-config in etcd did not,"
        };
        let lost = format!(
            "names that only the lost certificate carried{elsewhere} are lost: add them with --san \
             {}NAME",
            prefix(self.leaf.name)
        );
        let why = kept
            .why_not
            .as_ref()
            .map(|why| format!("kubeadm-config in etcd is no help: {why}"));
        why.into_iter().chain([lost]).collect()
    }

    fn refusal(&self, unknown: &Unknown) -> String {
        let value = if unknown.is_address {
            "ADDRESS"
        } else {
            "NAME"
        };
        format!(
            "Not mended: {} must be in the new certificate and is not known (looked at {}). Say it \
             with --san {}{value}, or restore {} from a backup.",
            unknown.what,
            unknown.looked,
            prefix(self.leaf.name),
            self.leaf
                .place
                .as_ref()
                .map_or_else(String::new, |place| place.path().to_string())
        )
    }

    fn identity(&self) -> Option<Identity> {
        let version = self.node.kubelet_version.value;
        let plain = |name: &str| Identity {
            organization: None,
            common_name: name.to_owned(),
            source: "as kubeadm makes it".to_owned(),
        };
        Some(match self.leaf.name {
            "apiserver" => plain("kube-apiserver"),
            "front-proxy-client" => self.front_proxy_client(),
            "apiserver-kubelet-client" => {
                let (organization, source) = self.administrators(version);
                Identity {
                    organization: Some(organization),
                    source,
                    ..plain("kube-apiserver-kubelet-client")
                }
            }
            "apiserver-etcd-client" | "etcd-healthcheck-client" => {
                let (organization, source) = self.etcd_clients(version);
                let name = if self.leaf.name == "apiserver-etcd-client" {
                    "kube-apiserver-etcd-client"
                } else {
                    "kube-etcd-healthcheck-client"
                };
                Identity {
                    organization,
                    source,
                    ..plain(name)
                }
            }
            "etcd-server" | "etcd-peer" => self.etcd_member()?,
            _ => return None,
        })
    }

    /// The API server accepts only the names of `--requestheader-allowed-names`, where it has any.
    fn front_proxy_client(&self) -> Identity {
        let usual = "front-proxy-client";
        let pod = self.node.static_pod("kube-apiserver");
        let allowed: Vec<&str> = pod
            .and_then(|pod| pod.flag("--requestheader-allowed-names"))
            .map(|names| {
                names
                    .split(',')
                    .map(str::trim)
                    .filter(|name| !name.is_empty())
                    .collect()
            })
            .unwrap_or_default();
        let (name, source) = match (allowed.first(), pod) {
            (Some(first), Some(pod)) if !allowed.contains(&usual) => (
                *first,
                format!("{} --requestheader-allowed-names", pod.path),
            ),
            _ => (usual, "as kubeadm makes it".to_owned()),
        };
        Identity {
            organization: None,
            common_name: name.to_owned(),
            source,
        }
    }

    /// Whoever is in a group that the cluster does not bind is locked out, so the new group is
    /// taken only where another certificate shows that the cluster has it.
    fn administrators(&self, version: Option<Version>) -> (&'static str, String) {
        let admin = self.good("admin.conf");
        let has = |group: &str| {
            admin.is_some_and(|admin| admin.organizations.iter().any(|own| own == group))
        };
        if has(CLUSTER_ADMINS) {
            return (
                CLUSTER_ADMINS,
                "the group of the administrator in admin.conf".to_owned(),
            );
        }
        match version {
            Some(version) if version < CHANGED => {
                (MASTERS, format!("as kubeadm {version} makes it"))
            }
            _ if has(MASTERS) => (
                MASTERS,
                "the group of the administrator in admin.conf".to_owned(),
            ),
            _ if self
                .inventory
                .kept(self.guest, self.node)
                .binds_cluster_admins =>
            {
                let place = &self.inventory.kept(self.guest, self.node).place;
                (
                    CLUSTER_ADMINS,
                    format!("{place} holds the binding {CLUSTER_ADMINS}"),
                )
            }
            _ => (
                MASTERS,
                format!(
                    "nothing on this disk shows that the cluster has the binding {CLUSTER_ADMINS} \
                     of kubeadm 1.29 and later"
                ),
            ),
        }
    }

    /// etcd does not look at organizations.
    fn etcd_clients(&self, version: Option<Version>) -> (Option<&'static str>, String) {
        let sibling = ["apiserver-etcd-client", "etcd-healthcheck-client"]
            .into_iter()
            .find_map(|name| Some((name, self.good(name)?)));
        match (sibling, version) {
            (Some((name, sibling)), _) => {
                let is_master = sibling.organizations.iter().any(|own| own == MASTERS);
                (
                    is_master.then_some(MASTERS),
                    format!("organization as {name} has it"),
                )
            }
            (None, Some(version)) => (
                (version < CHANGED).then_some(MASTERS),
                format!("as kubeadm {version} makes it"),
            ),
            (None, None) => (Some(MASTERS), "as kubeadm before 1.29 makes it".to_owned()),
        }
    }

    /// kubeadm gives both the node's name; etcd insists on it only where it is told to.
    fn etcd_member(&self) -> Option<Identity> {
        let identity = |name: &str, source: String| {
            Some(Identity {
                organization: None,
                common_name: name.to_owned(),
                source,
            })
        };
        let pod = self.node.static_pod("etcd");
        let flag = |flag: &str| {
            let pod = pod?;
            Some((
                pod.flag(flag).filter(|value| !value.is_empty())?,
                format!("{} {flag}", pod.path),
            ))
        };
        if self.leaf.name == "etcd-peer"
            && let Some((name, source)) = flag("--peer-cert-allowed-cn")
        {
            return identity(name, source);
        }
        if let Some((path, sibling)) = self.etcd_sibling()
            && let Some(name) = &sibling.common_name
        {
            return identity(name, format!("as {path}"));
        }
        if let Some((name, source)) = flag("--name") {
            return identity(name, source);
        }
        let fact = &self.node.node_name;
        identity(
            fact.value.as_deref()?,
            format!("the node's name: {}", fact.source),
        )
    }

    fn names(&self) -> Vec<NameSource> {
        let mut names = self.leaf.needed.all();
        if let Some((path, sibling)) = self.etcd_sibling() {
            let shown = sibling
                .alternative_names
                .iter()
                .flat_map(|names| &names.names);
            let known = shown.filter_map(|name| {
                name.strip_prefix("DNS:")
                    .or_else(|| name.strip_prefix("IP:"))
            });
            names.extend(
                known
                    .filter_map(Name::parse)
                    .map(|name| NameSource::new(name, format!("as {path}"))),
            );
        }
        names
    }

    /// The other of etcd's two serving certificates: kubeadm gives them the same names.
    fn etcd_sibling(&self) -> Option<(String, &Certificate)> {
        let other = match self.leaf.name {
            "etcd-server" => "etcd-peer",
            "etcd-peer" => "etcd-server",
            _ => return None,
        };
        let leaf = self
            .inventory
            .leaves
            .iter()
            .find(|leaf| leaf.name == other)?;
        Some((leaf.place.as_ref()?.path().to_string(), self.good(other)?))
    }

    /// A readable certificate of this cluster; expired is good enough as a witness.
    fn good(&self, name: &str) -> Option<&Certificate> {
        let leaf = self
            .inventory
            .leaves
            .iter()
            .find(|leaf| leaf.name == name)?;
        let strange = leaf.foreign.is_some()
            || leaf
                .problems
                .iter()
                .any(|problem| problem.verdict == Verdict::WrongIssuer);
        leaf.certificate.as_ref().filter(|_| !strange)
    }

    /// As a sibling in files has it: the same authority's first. kubeadm's default else.
    fn algorithm(&self) -> (Algorithm, String) {
        let of = |same: bool| {
            self.inventory.leaves.iter().find_map(|leaf| {
                let in_files = matches!(leaf.place, Some(Place::Files { .. }));
                let wanted = in_files && (leaf.authority == self.leaf.authority || !same);
                let algorithm = leaf.certificate.as_ref()?.algorithm.filter(|_| wanted)?;
                Some((algorithm.renewed(), format!("as {} has", leaf.name)))
            })
        };
        of(true)
            .or_else(|| of(false))
            .unwrap_or((Algorithm::Rsa(2048), "kubeadm's default".to_owned()))
    }
}
