//! The certificate that the kubelet serves with.

use super::{ID, Judge, with_problems};
use crate::checks::{Finding, Severity};
use crate::pki::kubelet_serving::{OwnPair, RemakeServingPair};
use crate::units;

impl Judge<'_> {
    /// A pair that cannot be loaded ends the kubelet. An expired one does not: nothing verifies it in a stock cluster, and the
    /// kubelet never renews it.
    pub(super) fn serving(&self) -> Option<Finding> {
        self.broken_serving().or_else(|| self.expired_serving())
    }

    fn broken_serving(&self) -> Option<Finding> {
        let pair = OwnPair::of(self.context.node)?;
        let fault = pair.fault(self.context.guest)?;
        let title = format!("kubelet serving certificate {}", self.phrase(fault.verdict, None));
        let finding = with_problems(Finding::new(ID, Severity::StopsBoot, title), &[fault]);
        Some(
            finding
                .with_advice("The kubelet exits with it.")
                .with_remedy(RemakeServingPair { pair, is_only_expired: false }),
        )
    }

    fn expired_serving(&self) -> Option<Finding> {
        let (path, certificate) = self.inventory.kubelet_serving.as_ref()?;
        if certificate.not_after >= self.now() {
            return None;
        }
        let saw = format!("{} expired {}", certificate.subject, units::time(certificate.not_after));
        let finding = Finding::new(ID, Severity::Note, "kubelet serving certificate expired")
            .with_evidence(path, saw)
            .with_advice("In a stock kubeadm cluster nothing verifies it, and the kubelet never renews it by itself.");
        Some(match OwnPair::of(self.context.node) {
            Some(pair) => finding.with_remedy(RemakeServingPair { pair, is_only_expired: true }),
            None => finding,
        })
    }
}
