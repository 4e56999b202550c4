//! Certificates in use that are none of kubeadm's or the kubelet's: those of an etcd outside of
//! Kubernetes, of a network plugin. They are not renewed here, but a node does not come back
//! without them, so nobody shall be told that nothing is left.

use super::{Judge, OTHERS, with_problems};
use crate::base::severity::Severity;
use crate::finding::Finding;
use crate::pki::inventory::Verdict;
use crate::pki::listing::{self, Manager, Row};

impl Judge<'_> {
    pub(super) fn others(&self) -> Vec<Finding> {
        // What lies on a disk that is not believed is kubeadm's or nobody's: the check claimed-role
        // speaks of it.
        if self.context.node.doubt.is_some() {
            return Vec::new();
        }
        let rows = listing::others_in_use(self.context.guest, self.context.node, self.now());
        rows.iter().filter_map(|row| self.other(row)).collect()
    }

    fn other(&self, row: &Row) -> Option<Finding> {
        let severity = match row.verdict {
            // A second user in a kubeconfig may be long forgotten.
            Verdict::Expired
                if row
                    .used_by
                    .iter()
                    .any(|user| !user.ends_with(" client-certificate")) =>
            {
                Severity::WillBreak
            }
            Verdict::Expired => Severity::Note,
            Verdict::Expiring => Severity::Note,
            _ => return None,
        };
        let title = format!("{} {}", row.name, self.phrase(row.verdict, row.expires));
        let whose = match row.managed_by {
            Manager::Kubespray => "kubespray made it: renew it with kubespray",
            _ => "it is none of kubeadm's: renew it where it comes from",
        };
        Some(
            with_problems(
                Finding::new(OTHERS, title).with_severity(severity),
                &row.problems,
            )
            .with_evidence(&row.path, format!("used by {}", row.used_by.join(", ")))
            .with_advice(format!(
                "Not mended: {whose}, with its own CA ({}), and put it to {}.",
                row.authority, row.path
            )),
        )
    }
}
