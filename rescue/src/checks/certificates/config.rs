//! Kubeconfigs of the control plane that are lost: not there, empty, cut off, garbage.

use super::Judge;
use crate::checks::certificates::rebuild_config::{RebuildKubeconfig, user_of_config};
use crate::finding::Finding;
use crate::guest::GuestPath;
use crate::kubeconfig::{Kubeconfig, is_lost};
use crate::pki::config_evidence::ConfigEvidence;
use crate::pki::inventory::{Leaf, Place, Signer, trusted_by};
use crate::pki::profile::Authority;

impl Judge<'_> {
    /// Whether the certificate in it cannot be read, and all that the file says is what kubeadm
    /// would write: cut off within the certificate, most of all.
    pub(super) fn is_cut_config(&self, leaf: &Leaf) -> bool {
        let kubeadms = user_of_config(leaf.name);
        leaf.certificate.is_none()
            && matches!(
                &leaf.place,
                Some(Place::Config { user, .. }) if kubeadms == Some(user.as_str())
            )
    }

    /// Whether it leads to another cluster: it trusts CAs, and ours is not among them.
    fn is_of_another_cluster(&self, path: &GuestPath) -> bool {
        let guest = self.context.guest;
        let config = guest
            .read(path)
            .ok()
            .and_then(|bytes| Kubeconfig::parse(&bytes, path).ok());
        let trusted = config
            .map(|config| trusted_by(guest, &config))
            .unwrap_or_default();
        let ours = self
            .inventory
            .authorities
            .get(&Authority::Cluster)
            .filter(|state| !state.certificates.is_empty());
        !trusted.is_empty() && ours.is_some_and(|state| !state.is_among(&trusted))
    }

    /// `finding` with what mends it, for a leaf without a place.
    pub(super) fn lost_config(&self, leaf: &Leaf, finding: Finding, signer: &Signer) -> Finding {
        let Some(path) = leaf
            .problems
            .first()
            .map(|problem| GuestPath::new(&problem.path))
        else {
            return finding;
        };
        let context = self.context;
        if self.is_of_another_cluster(&path) {
            return finding.with_advice(format!(
                "Left alone: {path} trusts another cluster's CA. If it belongs to this one, move \
                 it away and run this again: it is written anew."
            ));
        }
        if !is_lost(context.guest, &path) {
            return finding.with_advice(format!(
                "Not mended: {path} holds more than kubeadm wrote, and that would be lost with a \
                 new one. Mend it by hand (kubectl config view --kubeconfig {path}), or move it \
                 away and run this again."
            ));
        }
        let evidence = ConfigEvidence::read(context.guest, context.node, self.inventory);
        match RebuildKubeconfig::new(
            leaf,
            path.clone(),
            &evidence,
            signer,
            &self.keys,
            context.settings,
        ) {
            Ok(remedy) => finding.with_remedy(remedy),
            Err(why) => finding.with_advice(format!(
                "Not mended: {why}. Restore {path} from a backup, or, once the rest of the node \
                 runs: kubeadm init phase kubeconfig {}",
                leaf.name.trim_end_matches(".conf")
            )),
        }
    }
}
