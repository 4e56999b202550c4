//! The certificate that the kubelet serves with.

use super::serving_pair::RemakeServingPair;
use super::{Judge, SERVING_ASKED, SERVING_BROKEN, SERVING_EXPIRED, with_problems};
use crate::base::units;
use crate::finding::Finding;
use crate::pki::kubelet_serving::{OwnPair, asked_for, asks_the_cluster};
use crate::pki::x509::certificate::{Certificate, printable};

impl Judge<'_> {
    /// A pair that cannot be loaded ends the kubelet. An expired one does not: nothing verifies it
    /// in a stock cluster, and the kubelet never renews it.
    pub(super) fn serving(&self) -> Option<Finding> {
        if asks_the_cluster(self.context.node) {
            return self.asked_serving();
        }
        self.broken_serving().or_else(|| self.expired_serving())
    }

    /// What the cluster signs the kubelet asks for by itself, as soon as it runs; but kubeadm's
    /// cluster approves no such request.
    fn asked_serving(&self) -> Option<Finding> {
        let path = asked_for(self.context.node);
        let (title, saw) = match self
            .context
            .guest
            .read(&path)
            .map(|bytes| Certificate::all_from_pem(&bytes))
        {
            Err(error) => ("is missing", error.to_string()),
            Ok(Err(error)) => ("is unreadable", format!("{error:#}")),
            Ok(Ok(all)) => {
                let over = all
                    .iter()
                    .find(|certificate| certificate.not_after < self.now())?;
                (
                    "expired",
                    format!("{} expired {}", over.subject, units::time(over.not_after)),
                )
            }
        };
        Some(
            Finding::new(
                SERVING_ASKED,
                format!("kubelet serving certificate {title}"),
            )
            .with_evidence(path, printable(&saw))
            .with_advice(
                "This kubelet has it signed by the cluster (serverTLSBootstrap): it asks for a new \
                 one when it starts, and until somebody approves that, logs, exec and metrics of \
                 this node fail. After boot: kubectl get csr, then kubectl certificate approve \
                 NAME for the one of this node with the signer kubernetes.io/kubelet-serving.",
            ),
        )
    }

    fn broken_serving(&self) -> Option<Finding> {
        let pair = OwnPair::of(self.context.node)?;
        let fault = pair.fault(self.context.guest)?;
        let title = format!(
            "kubelet serving certificate {}",
            self.phrase(fault.verdict, None)
        );
        let finding = with_problems(Finding::new(SERVING_BROKEN, title), &[fault]);
        Some(
            finding
                .with_advice("The kubelet exits with it.")
                .with_remedy(RemakeServingPair {
                    pair,
                    is_only_expired: false,
                }),
        )
    }

    fn expired_serving(&self) -> Option<Finding> {
        let pair = OwnPair::of(self.context.node)?;
        let (path, certificate) = self.inventory.kubelet_serving.as_ref()?;
        if certificate.not_after >= self.now() {
            return None;
        }
        let saw = format!(
            "{} expired {}",
            certificate.subject,
            units::time(certificate.not_after)
        );
        let finding = Finding::new(SERVING_EXPIRED, "kubelet serving certificate expired")
            .with_evidence(path, saw)
            .with_advice(
                "In a stock kubeadm cluster nothing verifies it, and the kubelet never renews it \
                 by itself.",
            );
        Some(finding.with_remedy(RemakeServingPair {
            pair,
            is_only_expired: true,
        }))
    }
}
