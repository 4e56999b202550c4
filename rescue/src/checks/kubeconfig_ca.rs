//! kubeconfig-ca: a kubeconfig of a control plane trusts another CA than the one that signs the
//! API server's certificate here.
//!
//! It happens where CAs were replaced by hand: the client certificates in the kubeconfigs are new,
//! and `certificate-authority-data` still holds the old CA. The client then refuses the server:
//! "x509: certificate signed by unknown authority".
//!
//! Only what is proved to be this cluster's is mended: a client certificate in it, expired or not,
//! that this CA has signed; or, for kubeadm's own files, the CA's key beside a serving certificate
//! that this CA has signed and the old one has not.

use std::rc::Rc;

use anyhow::Result;
use serde_json::{Map, Value, json};

use crate::base::severity::Severity;
use crate::change::Prepared;
use crate::finding::{Check, Context, Finding, Mode, Remedy};
use crate::guest::{Guest, GuestPath};
use crate::kubeconfig::edit::replace_authority;
use crate::kubeconfig::homes::personal_configs;
use crate::kubeconfig::{Kubeconfig, Material};
use crate::pki::inventory::{AuthorityState, trusted_by};
use crate::pki::profile::Authority;
use crate::pki::x509::certificate::{Certificate, SignatureCheck};

const OTHER: Mode = Mode::stops_boot(
    "kubeconfig-ca.other",
    "kubeconfigs trust another CA than the one that signs the API server's certificate",
)
.why(
    "The kubelet, the controller manager, the scheduler and kubectl refuse this node's API \
    server: \"x509: certificate signed by unknown authority\". It is left behind where CAs are \
    replaced by hand.",
)
.done(
    "Puts this node's CA into `certificate-authority-data` of each, where a client \
    certificate in it, or the CA's key beside the API server's certificate, proves that it is \
    this cluster's. Everything else in the files stays.",
)
.source("crypto/x509; https://kubernetes.io/docs/tasks/tls/manual-rotation-of-ca-certificates")
.logged(&["certificate signed by unknown authority"]);

/// See the module.
pub const CHECK: Check = Check {
    id: "kubeconfig-ca",
    about: "kubeconfigs that trust another CA than the one that signs the API server's certificate",
    modes: &[OTHER],
    roles: &[crate::node::Role::ControlPlane],
    after: &["authorities"],
    run,
};

/// kubeadm's kubeconfigs, and how bad it is that one of them cannot be used.
const CONFIGS: [(&str, Severity); 4] = [
    ("/etc/kubernetes/admin.conf", Severity::WillBreak),
    ("/etc/kubernetes/super-admin.conf", Severity::WillBreak),
    (
        "/etc/kubernetes/controller-manager.conf",
        Severity::WillBreak,
    ),
    ("/etc/kubernetes/scheduler.conf", Severity::WillBreak),
];

fn run(context: &Context<'_>) -> Result<Vec<Finding>> {
    let inventory = context.inventory();
    let Some(ours) = inventory.authorities.get(&Authority::Cluster) else {
        return Ok(Vec::new());
    };
    if ours.certificates.is_empty() {
        return Ok(Vec::new());
    }
    let served = inventory.leaves.iter().find(|leaf| leaf.is("apiserver"));
    let served = served.and_then(|leaf| leaf.certificate.as_ref());
    let look = Look {
        guest: context.guest,
        ours,
        served,
    };
    let mut strangers: Vec<Stranger> = Vec::new();
    let kubelet = context.node.kubelet.kubeconfig.value.clone();
    let kubelet = kubelet.map(|path| (path, Severity::StopsBoot));
    let kubeadms = CONFIGS.map(|(path, severity)| (GuestPath::new(path), severity));
    for (path, severity) in kubelet.into_iter().chain(kubeadms) {
        strangers.extend(look.at(path, severity, true));
    }
    for config in personal_configs(context.guest) {
        if config.refused.is_none() {
            strangers.extend(look.at(config.path, Severity::WillBreak, false));
        }
    }
    Ok(finding(ours, strangers).into_iter().collect())
}

/// A kubeconfig that trusts another CA.
#[derive(Debug)]
struct Stranger {
    path: GuestPath,
    severity: Severity,
    /// The cluster entry whose CA is exchanged; `None` where the CA is a file.
    cluster: Option<String>,
    trusted: String,
    /// Why it is known to be this cluster's; `None` where it is not.
    proof: Option<&'static str>,
}

struct Look<'a> {
    guest: &'a Guest,
    ours: &'a AuthorityState,
    served: Option<&'a Certificate>,
}

impl Look<'_> {
    /// `is_kubeadms`: whether kubeadm's own, so that it can only be meant for this cluster.
    fn at(&self, path: GuestPath, severity: Severity, is_kubeadms: bool) -> Option<Stranger> {
        let config = Kubeconfig::parse(&self.guest.read(&path).ok()?, &path).ok()?;
        let trusted = trusted_by(self.guest, &config);
        let first = trusted.first()?;
        if self.ours.is_among(&trusted) {
            return None;
        }
        let proof = if self.is_ours(&config) {
            Some("this CA has signed the client certificate in it")
        } else if is_kubeadms && self.serves_only_ours(&trusted) {
            Some("this CA, whose key is here, has signed the API server's certificate")
        } else {
            None
        };
        // Somebody's own kubeconfig may be for another cluster.
        if proof.is_none() && !is_kubeadms {
            return None;
        }
        let cluster = config.current_cluster()?;
        let is_inline = matches!(cluster.certificate_authority, Material::Inline(_));
        Some(Stranger {
            severity,
            cluster: is_inline.then(|| cluster.name.clone()),
            trusted: format!("trusts {} of {}", first.subject, first.not_before.date()),
            proof,
            path,
        })
    }

    /// Whether our CA has signed the certificate that its user shows, whatever its time.
    fn is_ours(&self, config: &Kubeconfig) -> bool {
        let pem = match config.current_user().map(|user| &user.certificate) {
            Some(Material::Inline(pem)) => Some(pem.clone()),
            Some(Material::File(path)) => self.guest.read(path).ok(),
            _ => None,
        };
        let certificates = pem.and_then(|pem| Certificate::all_from_pem(&pem).ok());
        let certificates = certificates.unwrap_or_default();
        certificates
            .split_first()
            .is_some_and(|(leaf, chain)| self.ours.issued(leaf, chain) == SignatureCheck::Valid)
    }

    /// Whether the API server shows a certificate of our CA, whose key is here, and not one of the
    /// CA that the kubeconfig trusts: else ca.crt would be the stranger.
    fn serves_only_ours(&self, trusted: &[Certificate]) -> bool {
        let Some(served) = self.served.filter(|_| self.ours.pair.is_some()) else {
            return false;
        };
        let by_old = trusted
            .iter()
            .any(|old| served.signed_by(old) == SignatureCheck::Valid);
        self.ours.issued(served, &[]) == SignatureCheck::Valid && !by_old
    }
}

/// All of them together: it is one cause.
fn finding(ours: &AuthorityState, strangers: Vec<Stranger>) -> Option<Finding> {
    let worst = strangers.iter().map(|stranger| stranger.severity).max()?;
    let names: Vec<String> = strangers
        .iter()
        .map(|stranger| stranger.path.to_string())
        .collect();
    let title = format!(
        "{} {} another CA than {}",
        names.join(", "),
        if names.len() == 1 { "trusts" } else { "trust" },
        ours.certificate_path
    );
    let mut finding = Finding::new(OTHER, title).with_severity(worst);
    for stranger in &strangers {
        finding = finding.with_evidence(&stranger.path, &stranger.trusted);
    }
    let (proved, open): (Vec<Stranger>, Vec<Stranger>) = strangers
        .into_iter()
        .partition(|stranger| stranger.proof.is_some() && stranger.cluster.is_some());
    for stranger in &open {
        let why = match stranger.proof {
            None => "nothing proves which of the two CAs is this cluster's",
            Some(_) => "its CA is in a file of its own",
        };
        finding = finding.with_advice(format!(
            "Left alone: {}: {why}. If {} is right: kubectl config set-cluster NAME --kubeconfig \
             {} --embed-certs --certificate-authority {}",
            stranger.path, ours.certificate_path, stranger.path, ours.certificate_path
        ));
    }
    let remedy = TrustOurs {
        authority: ours.certificate_path.clone(),
        configs: Rc::new(proved),
    };
    Some(match remedy.configs.is_empty() {
        true => finding,
        false => finding.with_remedy(remedy),
    })
}

/// The node's own CA goes into the kubeconfigs.
#[derive(Debug)]
struct TrustOurs {
    authority: GuestPath,
    configs: Rc<Vec<Stranger>>,
}

impl Remedy for TrustOurs {
    fn kind(&self) -> &'static str {
        "trust-own-ca"
    }

    fn summary(&self) -> String {
        let count = self.configs.len();
        let files = crate::base::units::count(count, "kubeconfig", "kubeconfigs");
        format!("put {} into {files}", self.authority)
    }

    fn details(&self) -> Vec<String> {
        let line = |one: &Stranger| {
            let proof = one.proof.unwrap_or_default();
            format!("{}: {proof}", one.path)
        };
        self.configs.iter().map(line).collect()
    }

    fn fields(&self) -> Map<String, Value> {
        let paths: Vec<String> = self
            .configs
            .iter()
            .map(|one| one.path.to_string())
            .collect();
        Map::from_iter([("paths".to_owned(), json!(paths))])
    }

    fn prepare(&self, context: &Context<'_>) -> Result<Prepared> {
        let mut draft = context.draft();
        let authority = draft.guest.read(&self.authority)?;
        for config in self.configs.iter() {
            let Some(cluster) = &config.cluster else {
                continue;
            };
            let text = draft.guest.read(&config.path)?;
            let edited = replace_authority(&text, cluster, &authority)?;
            draft.write(&config.path, edited, 0o600)?;
        }
        Ok(draft.done())
    }
}
