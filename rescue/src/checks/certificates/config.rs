//! Kubeconfigs of the control plane that are lost: not there, empty, cut off, garbage.

use super::Judge;
use crate::checks::Finding;
use crate::guest::GuestPath;
use crate::kubeconfig::is_lost;
use crate::pki::config_evidence::ConfigEvidence;
use crate::pki::inventory::{Leaf, Signer};
use crate::pki::rebuild_config::RebuildKubeconfig;

impl Judge<'_> {
    /// `finding` with what mends it, for a leaf without a place.
    pub(super) fn lost_config(&self, leaf: &Leaf, finding: Finding, signer: &Signer) -> Finding {
        let Some(path) = leaf.problems.first().map(|problem| GuestPath::new(&problem.path)) else { return finding };
        let context = self.context;
        if !is_lost(context.guest, &path) {
            return finding.with_advice(format!(
                "Not mended: {path} holds more than kubeadm wrote, and that would be lost with a new one. Mend it by hand (kubectl \
                 config view --kubeconfig {path}), or move it away and run this again."
            ));
        }
        let evidence = ConfigEvidence::read(context.guest, context.node, self.inventory);
        match RebuildKubeconfig::new(leaf, path.clone(), &evidence, signer, &self.keys, context.settings) {
            Ok(remedy) => finding.with_remedy(remedy),
            Err(why) => finding.with_advice(format!(
                "Not mended: {why}. Restore {path} from a backup, or, once the rest of the node runs: kubeadm init phase kubeconfig {}",
                leaf.name.trim_end_matches(".conf")
            )),
        }
    }
}
