//! Certificates in use that are none of kubeadm's or the kubelet's: those of an etcd outside of
//! Kubernetes, of a network plugin. They are not renewed here, but a node does not come back
//! without them, so nobody shall be told that nothing is left.

use super::{Judge, OTHERS, with_problems};
use crate::base::severity::Severity;
use crate::finding::Finding;
use crate::node::Role;
use crate::pki::inventory::{Verdict, certificate_directory, dates};
use crate::pki::listing::{self, Manager, Row};
use crate::pki::profile::LEAVES;
use crate::pki::x509::certificate::Certificate;

/// As `kubeadm certs check-expiration` calls it.
const ETCD_CLIENT: &str = "apiserver-etcd-client";

impl Judge<'_> {
    pub(super) fn others(&self) -> Vec<Finding> {
        // What lies on a disk that is not believed is kubeadm's or nobody's: the check claimed-role
        // speaks of it.
        if self.context.node.doubt.is_some() {
            return Vec::new();
        }
        let rows = listing::others_in_use(self.context.guest, self.context.node, self.now());
        let mut found: Vec<Finding> = rows.iter().filter_map(|row| self.other(row)).collect();
        found.extend(self.workers_etcd_client(&rows));
        found
    }

    /// etcd's client certificate on a worker: kubeadm makes none there, so that somebody copied it
    /// for a program that speaks to etcd, a network plugin most of all. Which one is in its pods'
    /// settings, on no disk.
    fn workers_etcd_client(&self, rows: &[Row]) -> Option<Finding> {
        let (guest, node) = (self.context.guest, self.context.node);
        if node.role.value != Some(Role::Worker) {
            return None;
        }
        let profile = LEAVES.iter().find(|leaf| leaf.name == ETCD_CLIENT)?;
        let path = certificate_directory(node).join(format!("{}.crt", profile.base));
        let is_known = rows.iter().any(|row| row.path == path.to_string());
        let bytes = guest.read(&path).ok().filter(|_| !is_known)?;
        let certificate = Certificate::all_from_pem(&bytes).ok()?.into_iter().next()?;
        let problem = dates(&certificate, &path, self.now())?;
        let phrase = self.phrase(problem.verdict, Some(certificate.not_after));
        let finding = Finding::new(OTHERS, format!("{ETCD_CLIENT} on this worker {phrase}"))
            .with_severity(match problem.verdict {
                Verdict::Expired => Severity::WillBreak,
                _ => Severity::Note,
            });
        Some(
            with_problems(finding, &[problem]).with_advice(format!(
                "kubeadm makes none on a worker: it was copied for a program that speaks to etcd, \
                 often the network plugin (calico, cilium).\nCopy the new one and its key from a \
                 control plane once that is repaired: scp CONTROL-PLANE:{path} {path} (and the .key \
                 beside it)."
            )),
        )
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
