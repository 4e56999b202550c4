//! The kubelet's client certificate, which `kubeadm certs renew` never touches.

use super::{CLOCK_ADVICE, ENDS_WITH_CA, ID, Judge, ends_with_ca, with_problems};
use crate::checks::{Finding, Severity};
use crate::node::Version;
use crate::pki::inventory::Verdict;
use crate::pki::kubelet::KubeletClient;
use crate::pki::profile::Authority;
use crate::pki::renew::RenewKubeletClient;

impl Judge<'_> {
    pub(super) fn kubelet(&self, client: &KubeletClient) -> Option<Finding> {
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
        let mut client = client.clone();
        client.remarks.extend(self.lent_by(Authority::Cluster));
        let client = &client;
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
}
