//! The kubelet's client certificate, which `kubeadm certs renew` never touches.

use super::worker::Signing;
use super::{CLOCK_ADVICE, ENDS_WITH_CA, Judge, KUBELET_CLIENT, ends_with_ca, with_problems};
use crate::base::severity::Severity;
use crate::checks::certificates::rebuild_config::{RebuildKubeletConfig, user_of};
use crate::checks::certificates::renew::RenewKubeletClient;
use crate::finding::Finding;
use crate::node::Role;
use crate::node::Version;
use crate::pki::config_evidence::ConfigEvidence;
use crate::pki::inventory::{Verdict, dates};
use crate::pki::kubelet::KubeletClient;
use crate::pki::profile::Authority;
use crate::pki::x509::certificate::SignatureCheck;

impl Judge<'_> {
    pub(super) fn kubelet(&self, client: &KubeletClient) -> Option<Finding> {
        let worst = client.problems.first()?;
        let certificate = client.certificate.as_ref();
        let severity = match worst.verdict {
            // Both data and file, or nothing at all: the kubelet exits.
            Verdict::Misplaced if worst.path == client.kubeconfig.to_string() => {
                Severity::StopsBoot
            }
            _ => self.severity(
                worst,
                Severity::StopsBoot,
                certificate.map(|old| old.not_before),
            ),
        };
        let phrase = self.phrase(worst.verdict, certificate.map(|old| old.not_after));
        let mut finding = Finding::new(
            KUBELET_CLIENT,
            format!("kubelet client certificate {phrase}"),
        )
        .with_severity(severity);
        finding = with_problems(finding, &client.problems);
        if severity == Severity::StopsBoot {
            finding = finding.with_advice(
                "The kubelet cannot authenticate with it: it exits at start where it has \
                 --bootstrap-kubeconfig, and is rejected by the API server otherwise.",
            );
        }
        if self.is_clock_matter(worst.verdict) {
            return Some(finding.with_advice(CLOCK_ADVICE));
        }
        if let Some(why) = &client.foreign {
            // A control plane is its cluster: there is nothing to join.
            let next = match self.context.node.role.value {
                Some(Role::ControlPlane) => "The finding about that CA says what mends it.",
                _ => "Join the node to its cluster again.",
            };
            return Some(finding.with_advice(format!(
                "Left alone: {why}, so a certificate from here would be rejected. {next}"
            )));
        }
        if client.user.is_none() && client.config_is_lost && self.store_is_good(client) {
            return Some(self.rebuilt(finding, client, None));
        }
        let is_in_doubt = self.context.node.names.agreed().is_err();
        let no_name = |why: &String| match is_in_doubt {
            true => format!("Not signed: {why}."),
            false => format!(
                "Not mended: {why}. Put it right there (the user in {}, or the name in \
                 /etc/hostname) and run this again, or join the node again.",
                client.kubeconfig
            ),
        };
        let Signing { signer, remarks } = match (self.kubelet_signer(client), &client.node_name) {
            (Ok(_) | Err(None), Err(why)) => return Some(finding.with_advice(no_name(why))),
            (Ok(signing), Ok(_)) => signing,
            (Err(advice), _) => {
                let advice = advice.unwrap_or_else(|| self.no_signer(Authority::Cluster));
                return Some(finding.with_advice(advice));
            }
        };
        if ends_with_ca(worst.verdict, certificate, signer) {
            return Some(finding.with_advice(ENDS_WITH_CA));
        }
        // kubelets ask for keyEncipherment up to 1.26 (kubernetes#111660).
        let version = self.context.node.kubelet_version.value;
        let key_encipherment = version.is_none_or(|version| {
            version
                < Version {
                    major: 1,
                    minor: 27,
                    patch: 0,
                }
        });
        let mut client = client.clone();
        client.remarks.extend(remarks);
        let client = &client;
        if client.user.is_none()
            && client.config_is_lost
            && let Ok(user) = user_of(client)
        {
            let led = KubeletClient {
                user: Some(user),
                points_to_current: true,
                ..client.clone()
            };
            let settings = self.context.settings;
            let renewal =
                RenewKubeletClient::new(&led, signer, &self.keys, settings, key_encipherment);
            return Some(self.rebuilt(finding, client, renewal));
        }
        let remedy = RenewKubeletClient::new(
            client,
            signer,
            &self.keys,
            self.context.settings,
            key_encipherment,
        );
        Some(match remedy {
            Some(remedy) => finding.with_remedy(remedy),
            None => finding.with_advice(format!(
                "Not mended by this version: {} must first be a kubeconfig whose current-context \
                 leads to a user. Restore it from a backup, or take another node's and change the \
                 node's name in it.",
                client.kubeconfig
            )),
        })
    }

    /// Whether `kubelet-client-current.pem` can be used as it is: only the file that leads to it is
    /// lost.
    fn store_is_good(&self, client: &KubeletClient) -> bool {
        let config = client.kubeconfig.to_string();
        let Some(stored) = &client.certificate else {
            return false;
        };
        let state = self.inventory.authorities.get(&Authority::Cluster);
        let is_ours =
            state.is_some_and(|state| state.issued(stored, &client.chain) == SignatureCheck::Valid);
        let problems_elsewhere = client.problems.iter().any(|problem| problem.path != config);
        is_ours && !problems_elsewhere && dates(stored, &client.current(), self.now()).is_none()
    }

    fn rebuilt(
        &self,
        finding: Finding,
        client: &KubeletClient,
        renewal: Option<RenewKubeletClient>,
    ) -> Finding {
        let evidence = ConfigEvidence::read(self.context.guest, self.context.node, self.inventory);
        match RebuildKubeletConfig::new(
            client,
            &evidence,
            (self.party, self.context.peers),
            renewal,
        ) {
            Ok(remedy) => finding.with_remedy(remedy),
            Err(why) => finding.with_advice(format!(
                "Not mended: {why}. Restore {} from a backup, or run this again with the disk of a \
                 control plane of the same cluster beside it (--ca CONTROL-PLANE).",
                client.kubeconfig
            )),
        }
    }
}
