//! The certificate that the kubelet serves with.

use super::{ID, Judge};
use crate::checks::{Finding, Severity};
use crate::units;

impl Judge<'_> {
    /// Nothing verifies it in a stock cluster, and the kubelet never renews it.
    pub(super) fn serving(&self) -> Option<Finding> {
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
}
