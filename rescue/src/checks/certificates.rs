//! certificates: every leaf and CA that kubeadm lays down, and the kubelet's own client certificate, which `kubeadm certs renew`
//! never touches. Expired and broken leaves are made anew with the CA keys on the disk; a CA is never made anew.

use std::rc::Rc;
use time::{Duration, OffsetDateTime};

use super::{Check, Context, Finding, Severity};
use crate::guest::GuestPath;
use crate::node::{Role, Version};
use crate::pki::certificate::Certificate;
use crate::pki::inventory::{AuthorityState, Blocked, Inventory, Leaf, Problem, Signer, Verdict};
use crate::pki::key_pool::KeyPool;
use crate::pki::kubelet::KubeletClient;
use crate::pki::profile::Authority;
use crate::pki::renew::{RenewCertificate, RenewKubeletClient};
use crate::units;

const ID: &str = "certificates";

/// A certificate that begins within a day is a matter of time zones, not a fault.
const CLOCK_DIFFERENCE: Duration = Duration::DAY;

/// CAs live for ten years; a year before their end is the time to plan.
const CA_WARNING: Duration = Duration::days(365);

/// From here on everything that it signed is about to end with it.
const CA_ALARM: Duration = Duration::days(30);

/// See the module.
#[derive(Debug, Clone, Copy)]
pub struct Certificates;

impl Check for Certificates {
    fn id(&self) -> &'static str {
        ID
    }

    fn about(&self) -> &'static str {
        "expired, expiring, unreadable or mismatched certificates of kubeadm and of the kubelet; issues new leaves offline with \
         the CA keys on the disk"
    }

    fn run(&self, context: &Context<'_>) -> anyhow::Result<Vec<Finding>> {
        if let Some(Role::OtherDistribution | Role::NotKubernetes) = context.node.role.value {
            return Ok(Vec::new());
        }
        let now = context.settings.now;
        let inventory = Inventory::read(context.guest, context.node, now);
        let judge = Judge { context, inventory: &inventory, keys: Rc::new(KeyPool::default()) };
        let mut findings = judge.authorities();
        findings.extend(inventory.kubelet.as_ref().and_then(|client| judge.kubelet(client)));
        findings.extend(inventory.leaves.iter().filter_map(|leaf| judge.leaf(leaf)));
        findings.extend(judge.serving());
        // Worst first; the order within a severity stays.
        findings.sort_by_key(|finding| std::cmp::Reverse(finding.severity));
        Ok(findings)
    }
}

struct Judge<'a> {
    context: &'a Context<'a>,
    inventory: &'a Inventory,
    keys: Rc<KeyPool>,
}

impl Judge<'_> {
    fn now(&self) -> OffsetDateTime {
        self.context.settings.now
    }

    fn leaf(&self, leaf: &Leaf) -> Option<Finding> {
        let worst = leaf.problems.first()?;
        let severity = match worst.verdict {
            Verdict::WrongIssuer if leaf.foreign.is_some() => Severity::Note,
            _ => self.severity(worst, leaf.severity, leaf.certificate.as_ref().map(|old| old.not_before)),
        };
        let mut finding = Finding::new(
            ID,
            severity,
            format!("{} {}", leaf.name, self.phrase(worst.verdict, leaf.certificate.as_ref().map(|old| old.not_after))),
        );
        finding = with_problems(finding, &leaf.problems);
        if severity > Severity::Note {
            finding = finding.with_advice(format!("Without it {}.", leaf.consequence));
        }
        if self.is_clock_matter(worst.verdict) {
            return Some(finding.with_advice(CLOCK_ADVICE));
        }
        if let Some(why) = &leaf.foreign {
            return Some(finding.with_advice(format!("Left alone: {why}. Renew it where it comes from.")));
        }
        let signer = match self.signer(leaf.authority) {
            Ok(signer) => signer,
            Err(advice) => return Some(finding.with_advice(advice)),
        };
        if let Some(crate::pki::inventory::Place::Files { keep_key: Some(why), key, .. }) = &leaf.place
            && leaf.problems.iter().any(|problem| problem.verdict == Verdict::KeyUnusable)
        {
            return Some(
                finding.with_advice(format!(
                    "Not mended: {key} cannot be used, and {why}. Restore that key from a backup."
                )),
            );
        }
        if ends_with_ca(worst.verdict, leaf.certificate.as_ref(), signer) {
            return Some(finding.with_advice(ENDS_WITH_CA));
        }
        let settings = self.context.settings;
        match RenewCertificate::new(leaf, signer, &self.keys, settings.now, settings.days) {
            Some(remedy) => Some(finding.with_remedy(remedy)),
            None => Some(finding.with_advice(format!(
                "Not mended by this version: its names and groups stood only in what is lost. Restore the file from a backup, or, once the \
                 rest of the node runs, delete it and run `kubeadm init phase {}` with the cluster's own configuration.",
                phase(leaf.name)
            ))),
        }
    }

    fn kubelet(&self, client: &KubeletClient) -> Option<Finding> {
        let worst = client.problems.first()?;
        let certificate = client.certificate.as_ref();
        let severity = match worst.verdict {
            // Both data and file, or nothing at all: the kubelet exits.
            Verdict::Misplaced if worst.path == client.kubeconfig.to_string() => Severity::StopsBoot,
            _ => self.severity(worst, Severity::StopsBoot, certificate.map(|old| old.not_before)),
        };
        let phrase = self.phrase(worst.verdict, certificate.map(|old| old.not_after));
        let mut finding = Finding::new(ID, severity, format!("kubelet client certificate {phrase}"));
        finding = with_problems(finding, &client.problems);
        if severity == Severity::StopsBoot {
            finding = finding.with_advice(
                "The kubelet cannot authenticate with it: it exits at start where it has --bootstrap-kubeconfig, and is rejected by the \
                 API server otherwise.",
            );
        }
        if self.is_clock_matter(worst.verdict) {
            return Some(finding.with_advice(CLOCK_ADVICE));
        }
        if let Some(why) = &client.foreign {
            return Some(finding.with_advice(format!(
                "Left alone: {why}, so a certificate from here would be rejected. Join the node to its cluster again."
            )));
        }
        let signer = match self.signer(Authority::Cluster) {
            Ok(signer) => signer,
            Err(advice) => return Some(finding.with_advice(advice)),
        };
        if let Err(why) = &client.node_name {
            return Some(finding.with_advice(format!("Not mended: {why}.")));
        }
        if ends_with_ca(worst.verdict, certificate, signer) {
            return Some(finding.with_advice(ENDS_WITH_CA));
        }
        // kubelets ask for keyEncipherment up to 1.26 (kubernetes#111660).
        let version = self.context.node.kubelet_version.value;
        let key_encipherment = version.is_none_or(|version| version < Version { major: 1, minor: 27, patch: 0 });
        let remedy = RenewKubeletClient::new(client, signer, &self.keys, self.context.settings, key_encipherment);
        Some(match remedy {
            Some(remedy) => finding.with_remedy(remedy),
            None => finding.with_advice(format!(
                "Not mended by this version: {} must first be a kubeconfig whose current-context leads to a user. Restore it from a \
                 backup, or take another node's and change the node's name in it.",
                client.kubeconfig
            )),
        })
    }

    /// Nothing verifies it in a stock cluster, and the kubelet never renews it.
    fn serving(&self) -> Option<Finding> {
        let (path, certificate) = self.inventory.kubelet_serving.as_ref()?;
        (certificate.not_after < self.now()).then(|| {
            Finding::new(ID, Severity::Note, "kubelet serving certificate expired")
                .with_evidence(path, format!("{} expired {}", certificate.subject, units::time(certificate.not_after)))
                .with_advice(
                    "In a stock kubeadm cluster nothing verifies it. To have the kubelet make a new one, delete kubelet.crt and \
                     kubelet.key beside it and restart the kubelet.",
                )
        })
    }

    fn severity(&self, worst: &Problem, full: Severity, not_before: Option<OffsetDateTime>) -> Severity {
        match worst.verdict {
            Verdict::Ok => Severity::Note,
            Verdict::Expiring | Verdict::Misplaced => Severity::WillBreak,
            Verdict::NotYetValid if not_before.is_some_and(|begin| begin - self.now() <= CLOCK_DIFFERENCE) => {
                Severity::Note
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
                format!("expired {} ({} days ago)", date(end), (self.now() - end).whole_days())
            }
            (Verdict::Expiring, Some(end)) => {
                format!("expires {} (in {} days)", date(end), (end - self.now()).whole_days())
            }
            (Verdict::WrongIssuer, _) => "was issued by another authority".to_owned(),
            (Verdict::KeyMismatch, _) => "does not match its key".to_owned(),
            (Verdict::KeyUnusable, _) => "has no usable key".to_owned(),
            (Verdict::Misplaced, _) => "is not stored the way the kubelet expects".to_owned(),
            (verdict, _) => format!("is {}", verdict.words()),
        }
    }

    fn signer(&self, authority: Authority) -> Result<&Signer, String> {
        let Some(state) = self.inventory.authorities.get(&authority) else {
            if !self.is_control_plane() {
                return Err(worker_advice("/etc/kubernetes/pki/ca.key"));
            }
            return Err(format!("Not mended: there is no {} certificate on this node.", authority.name()));
        };
        state.signer.as_ref().map_err(|blocked| self.advice(state, blocked))
    }

    /// Why nothing can be signed, and what to bring.
    fn advice(&self, state: &AuthorityState, blocked: &Blocked) -> String {
        let (certificate, key) = (&state.certificate_path, &state.key_path);
        match blocked {
            Blocked::KeyMissing if self.is_control_plane() => format!(
                "Not mended: the key of the CA is not on this node ({key}); this cluster's CA is external, or its key is kept elsewhere. \
                 Bring the key (copy it to {key}, and take it away afterwards), or have the certificate signed where the key is."
            ),
            Blocked::KeyMissing => worker_advice(key),
            Blocked::KeyMismatch => format!(
                "Not mended: {key} does not match {certificate}, and what it signs would be rejected. Restore the pair from a backup \
                 or copy both from another control-plane node of this cluster."
            ),
            Blocked::KeyUnreadable(why) => format!(
                "Not mended: {key} cannot be used ({why}). Restore it from a backup or from another control-plane node of this cluster."
            ),
            Blocked::Expired(end) => format!(
                "Refused: the CA {certificate} itself expired {}, and nothing signed with it is accepted any more. A new CA must reach \
                 every node and every kubeconfig of the cluster; this version does not do that.",
                date(*end)
            ),
            Blocked::NotYetValid(begin) => format!(
                "Refused: the CA {certificate} is valid only from {}: one of the clocks is wrong. Say the right time with --now.",
                units::time(*begin)
            ),
            Blocked::NotAnAuthority => format!("Not mended: {certificate} is not a CA certificate."),
            Blocked::CertificateMissing => format!(
                "Not mended: {certificate} is missing. Copy it from another control-plane node of this cluster or from a backup."
            ),
            Blocked::CertificateUnreadable(why) => format!(
                "Not mended: {certificate} cannot be read ({why}). Copy it from another control-plane node of this cluster or from a backup."
            ),
        }
    }

    fn is_control_plane(&self) -> bool {
        self.context.node.role.value == Some(Role::ControlPlane) || !self.inventory.leaves.is_empty()
    }

    fn authorities(&self) -> Vec<Finding> {
        self.inventory.authorities.values().filter_map(|state| self.authority(state)).collect()
    }

    fn authority(&self, state: &AuthorityState) -> Option<Finding> {
        let name = state.authority.name();
        let path = &state.certificate_path;
        let finding = |severity, what: String| Finding::new(ID, severity, format!("CA {name} {what}"));
        // An expired CA stops all TLS of a control plane. A worker's kubelet only needs to be able to read it.
        let full = if self.is_control_plane() { Severity::StopsBoot } else { Severity::WillBreak };
        let blocked = match &state.signer {
            Ok(_) => return self.ends_soon(state),
            Err(Blocked::KeyMissing) if !self.is_control_plane() => return self.ends_soon(state),
            Err(blocked) => blocked,
        };
        let (found, at, saw): (Finding, &GuestPath, String) = match blocked {
            Blocked::KeyMissing => {
                let note = finding(Severity::Note, "has no key on this node (external CA)".to_owned());
                return Some(note.with_evidence(&state.key_path, "not there"));
            }
            Blocked::Expired(end) => {
                let days = (self.now() - *end).whole_days();
                (
                    finding(full, format!("expired {} ({days} days ago)", date(*end))),
                    path,
                    format!("expired {}", units::time(*end)),
                )
            }
            Blocked::NotYetValid(begin) => {
                (finding(full, "is not yet valid".to_owned()), path, format!("valid only from {}", units::time(*begin)))
            }
            Blocked::KeyMismatch => (
                finding(Severity::WillBreak, "does not match its key".to_owned()),
                &state.key_path,
                format!("its public key is not that of {path}"),
            ),
            Blocked::KeyUnreadable(why) => {
                (finding(Severity::WillBreak, "has an unreadable key".to_owned()), &state.key_path, why.clone())
            }
            Blocked::NotAnAuthority => (
                finding(full, "is not a CA certificate".to_owned()),
                path,
                "basicConstraints or key usage forbid signing".to_owned(),
            ),
            Blocked::CertificateMissing => {
                (finding(Severity::StopsBoot, "is missing".to_owned()), path, "not there".to_owned())
            }
            Blocked::CertificateUnreadable(why) => {
                (finding(Severity::StopsBoot, "is unreadable".to_owned()), path, why.clone())
            }
        };
        Some(found.with_evidence(at, saw).with_advice(self.advice(state, blocked)))
    }

    fn ends_soon(&self, state: &AuthorityState) -> Option<Finding> {
        let certificate = state.certificate()?;
        let left = certificate.not_after - self.now();
        (left < CA_WARNING).then(|| {
            let title = format!(
                "CA {} expires {} (in {} days)",
                state.authority.name(),
                date(certificate.not_after),
                left.whole_days()
            );
            let severity = if left < CA_ALARM { Severity::WillBreak } else { Severity::Note };
            Finding::new(ID, severity, title)
                .with_evidence(
                    &state.certificate_path,
                    format!("{} expires {}", certificate.subject, units::time(certificate.not_after)),
                )
                .with_advice("Nothing that it signs can live longer. kubeadm does not renew CAs: plan its replacement.")
        })
    }
}

const CLOCK_ADVICE: &str = "Either this rescue system's clock or the one that dated the certificate is wrong. Say the right time with --now to have it renewed.";

const ENDS_WITH_CA: &str = "A new one would end as soon: its CA ends then. Replace the CA of the whole cluster; this version does not do that.";

/// A certificate that is good but for ending soon gains nothing from a CA that ends with it.
fn ends_with_ca(worst: Verdict, old: Option<&Certificate>, signer: &Signer) -> bool {
    let gain = old.map(|old| signer.certificate.not_after - old.not_after);
    worst == Verdict::Expiring && gain.is_some_and(|gain| gain < Duration::DAY)
}

fn worker_advice(key: impl std::fmt::Display) -> String {
    format!(
        "Not mended by this version: a worker has no CA key ({key}), and only that can sign its certificate. What it needs is the disk \
         of a control-plane node of the same cluster (its {key}); signing with that comes in a later version. Until then, once a \
         control plane runs: `kubeadm token create --print-join-command` there, `kubeadm reset` and the printed line here."
    )
}

fn with_problems(mut finding: Finding, problems: &[Problem]) -> Finding {
    for problem in problems {
        finding = finding.with_evidence(&problem.path, problem.saw.clone());
    }
    finding
}

fn date(time: OffsetDateTime) -> String {
    units::time(time).chars().take(10).collect()
}

/// The sub-command of `kubeadm init phase` that makes a leaf.
fn phase(name: &str) -> String {
    match name.strip_suffix(".conf") {
        Some(config) => format!("kubeconfig {config}"),
        None => format!("certs {name}"),
    }
}
