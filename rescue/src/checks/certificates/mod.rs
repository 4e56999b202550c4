//! certificates: every leaf and CA that kubeadm lays down, and the kubelet's own client
//! certificate, which `kubeadm certs renew` never touches. Expired and broken leaves are made anew
//! with the CA keys on the disk. The CAs themselves: `authorities`.

pub(super) mod authority;
mod config;
pub mod install;
mod kubelet;
pub mod kubelet_files;
mod leaf;
mod others;
pub mod rebuild_config;
pub mod renew;
mod serving;
mod serving_pair;
pub mod store_key;
mod worker;

use std::rc::Rc;
use time::{Duration, OffsetDateTime};

use crate::base::severity::Severity;
use crate::base::units;
use crate::finding::{Check, Context, Finding, Mode};
use crate::node::Role;
use crate::pki::inventory::{Inventory, Leaf, Problem, Signer, Verdict};
use crate::pki::profile::Authority;
use crate::pki::trust::Party;
use crate::pki::x509::certificate::Certificate;
use crate::pki::x509::key_pool::KeyPool;

const ID: &str = "certificates";

/// A certificate that begins within a day stops nothing for longer than that, and time zones alone
/// make such a difference.
const CLOCK_DIFFERENCE: Duration = Duration::DAY;

const KUBELET_CLIENT: Mode = Mode::stops_boot(
    "certificates.kubelet-client",
    "the kubelet's client certificate or its kubeconfig is unusable or ends soon",
)
.why(
    "The kubelet proves who it is with this certificate. `kubeadm certs renew` never \
    touches it; the kubelet renews it itself, and only while it is valid. After a long \
    outage it has expired: the kubelet then tries to bootstrap and exits with \"unable \
    to load bootstrap kubeconfig\".",
)
.done(
    "With the cluster's CA key (on this disk, or `--ca SRC`) a new certificate for the \
    node's own name is issued, laid into /var/lib/kubelet/pki as the kubelet itself \
    would, and kubelet.conf leads to it. Without the key the request is written out, to \
    be signed elsewhere.",
)
.source(
    "isClientConfigStillValid in pkg/kubelet/certificate/bootstrap/bootstrap.go; \
    certificate_store.go in k8s.io/client-go/util/certificate",
)
.logged(&[
    "unable to load bootstrap kubeconfig",
    "part of the existing bootstrap client certificate is expired",
]);
const LEAF: Mode = Mode::stops_boot(
    "certificates.leaf",
    "a certificate or kubeconfig of the control plane is unusable or ends soon",
)
.why(
    "The API server, its clients and etcd refuse a certificate outside its time, and \
    exit where a file cannot be loaded. kubeadm's certificates last one year, and a node \
    that is off cannot renew them.",
)
.done(
    "Renews each with the CA keys on the disk: same names, same key type, same rights as \
    before. A lost or damaged one is made again from the names that other files on the \
    disk prove.",
)
.source(
    "cmd/kubeadm/app/phases/certs/certlist.go and renewal/; `kubeadm certs \
    check-expiration`",
);
const OTHERS: Mode = Mode::stops_boot(
    "certificates.others",
    "a certificate that kubeadm did not make is unusable or ends soon",
)
.why(
    "A manifest or unit names this certificate, so a process opens it, but kubeadm did \
    not make it and does not renew it.",
)
.done("Renews it where its CA's key is on the disk. Else it is named, with who uses it.")
.source("the manifests and units of the node itself");
const SERVING_BROKEN: Mode = Mode::stops_boot(
    "certificates.serving-broken",
    "the kubelet's serving certificate or key cannot be loaded, and the kubelet exits",
)
.why("The kubelet loads its serving pair at its start and exits where it cannot.")
.done(
    "Takes the broken pair away, so that the kubelet makes a new one itself, or issues \
    it anew where the configuration names it.",
)
.source("initializeTLS in cmd/kubelet/app/server.go");
const SERVING_EXPIRED: Mode = Mode::note(
    "certificates.serving-expired",
    "the kubelet's own serving certificate has expired",
)
.why(
    "The kubelet's own serving certificate is signed by itself or by nobody whom the API \
    server checks; the API server does not verify it by default. Logs and exec still \
    work.",
)
.done("Nothing needs to be done: the kubelet makes a new one, or keeps the old one.")
.source("pkg/kubelet/certificate/kubelet.go; kube-apiserver's --kubelet-certificate-authority");
const SERVING_ASKED: Mode = Mode::note(
    "certificates.serving-asked",
    "the kubelet's serving certificate has to be signed by the cluster",
)
.why(
    "With serverTLSBootstrap the kubelet asks the cluster for its serving certificate, \
    and somebody has to approve the request. Until then `kubectl logs` and `exec` fail \
    on this node.",
)
.done(
    "Names the lines to type once the cluster is up: `kubectl get csr`, `kubectl \
    certificate approve NAME`.",
)
.source(
    "https://kubernetes.io/docs/tasks/administer-cluster/kubeadm/kubeadm-certs/ (kubelet \
    serving certs)",
);

/// See the module.
pub const CHECK: Check = Check {
    id: ID,
    about: "expired, expiring, unreadable or mismatched certificates of kubeadm and of the \
        kubelet; issues new leaves offline with the CA keys on the disk",
    modes: &[
        KUBELET_CLIENT,
        LEAF,
        OTHERS,
        SERVING_BROKEN,
        SERVING_EXPIRED,
        SERVING_ASKED,
    ],
    roles: &[],
    after: &["authorities", "service-account-keys"],
    run,
};

fn run(context: &Context<'_>) -> anyhow::Result<Vec<Finding>> {
    if let Some(Role::OtherDistribution | Role::NotKubernetes) = context.node.role.value {
        return Ok(Vec::new());
    }
    let inventory = context.inventory();
    let party = Party::read(context.guest, context.node, &inventory, context.settings);
    let inventory = Inventory::clone(&inventory)
        .with_lent(&party, context.peers)
        .with_kept_names(context.guest, context.node)
        .with_asked_names(&context.settings.san);
    let judge = Judge {
        context,
        inventory: &inventory,
        party: &party,
        keys: Rc::new(KeyPool::default()),
    };
    let mut findings = Vec::new();
    findings.extend(
        inventory
            .kubelet
            .as_ref()
            .and_then(|client| judge.kubelet(client)),
    );
    findings.extend(inventory.leaves.iter().filter_map(|leaf| judge.leaf(leaf)));
    findings.extend(judge.serving());
    findings.extend(judge.others());
    // Worst first; the order within a severity stays.
    findings.sort_by_key(|finding| std::cmp::Reverse(finding.severity));
    Ok(findings)
}

struct Judge<'a> {
    context: &'a Context<'a>,
    inventory: &'a Inventory,
    /// What this node's disk proves to the others.
    party: &'a Party,
    keys: Rc<KeyPool>,
}

impl Judge<'_> {
    fn now(&self) -> OffsetDateTime {
        self.context.settings.now
    }

    fn severity(
        &self,
        worst: &Problem,
        full: Severity,
        not_before: Option<OffsetDateTime>,
    ) -> Severity {
        match worst.verdict {
            Verdict::Ok => Severity::Note,
            Verdict::Expiring | Verdict::Misplaced | Verdict::OtherIdentity => Severity::WillBreak,
            Verdict::NotYetValid
                if not_before.is_some_and(|begin| begin - self.now() <= CLOCK_DIFFERENCE) =>
            {
                Severity::WillBreak
            }
            _ => full,
        }
    }

    /// A certificate from the future says that one of two clocks is wrong, and `--now` says which.
    fn is_clock_matter(&self, worst: Verdict) -> bool {
        worst == Verdict::NotYetValid && !self.context.settings.now_given
    }

    fn phrase(&self, verdict: Verdict, not_after: Option<OffsetDateTime>) -> String {
        match (verdict, not_after) {
            (Verdict::Expired, Some(end)) if end < self.now() => {
                format!(
                    "expired {} ({} days ago)",
                    date(end),
                    (self.now() - end).whole_days()
                )
            }
            (Verdict::Expiring, Some(end)) => {
                format!(
                    "expires {} (in {} days)",
                    date(end),
                    (end - self.now()).whole_days()
                )
            }
            (Verdict::WrongIssuer, _) => "was issued by another authority".to_owned(),
            (Verdict::KeyMismatch, _) => "does not match its key".to_owned(),
            (Verdict::KeyUnusable, _) => "has no usable key".to_owned(),
            (Verdict::OtherIdentity, _) => "is not the node's own".to_owned(),
            (Verdict::NamesMissing, _) => "lacks names that its clients use".to_owned(),
            (Verdict::WrongUsage, _) => "has the wrong extended key usage".to_owned(),
            (Verdict::Misplaced, _) => "is not stored the way the kubelet expects".to_owned(),
            (verdict, _) => format!("is {}", verdict.words()),
        }
    }

    fn is_control_plane(&self) -> bool {
        // An etcd member may have no more of kubeadm's than etcd's.
        let is_clusters = |leaf: &Leaf| leaf.authority != Authority::Etcd;
        self.context.node.role.value == Some(Role::ControlPlane)
            || self.inventory.leaves.iter().any(is_clusters)
    }
}

const CLOCK_ADVICE: &str = "Either this rescue system's clock or the one that dated the \
    certificate is wrong. Say the right time with --now to have it renewed.";

const ENDS_WITH_CA: &str = "A new one would end as soon: its CA ends then. Renew the CA first: \
    `rescue repair SRC --renew-ca`.";

/// A certificate that is good but for ending soon gains nothing from a CA that ends with it.
fn ends_with_ca(worst: Verdict, old: Option<&Certificate>, signer: &Signer) -> bool {
    let gain = old.map(|old| signer.certificate.not_after - old.not_after);
    worst == Verdict::Expiring && gain.is_some_and(|gain| gain < Duration::DAY)
}

fn with_problems(mut finding: Finding, problems: &[Problem]) -> Finding {
    for problem in problems {
        finding = finding.with_evidence(&problem.path, problem.saw.clone());
    }
    finding
}

pub(super) fn date(time: OffsetDateTime) -> String {
    units::time(time).chars().take(10).collect()
}

/// The sub-command of `kubeadm init phase` that makes a leaf.
fn phase(name: &str) -> String {
    match name.strip_suffix(".conf") {
        Some(config) => format!("kubeconfig {config}"),
        None => format!("certs {name}"),
    }
}
