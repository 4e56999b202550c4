//! The leaves in pki/ and in the kubeconfigs.

use super::worker::Signing;
use super::{CLOCK_ADVICE, ENDS_WITH_CA, Judge, LEAF, ends_with_ca, phase, with_problems};
use crate::base::severity::Severity;
use crate::checks::certificates::renew::RenewCertificate;
use crate::finding::Finding;
use crate::pki::inventory::{Leaf, Problem, Verdict};
use crate::pki::profile::LEAVES;
use crate::pki::rebuild::{Blueprint, blueprint};

impl Judge<'_> {
    pub(super) fn leaf(&self, leaf: &Leaf) -> Option<Finding> {
        let worst = leaf.problems.first()?;
        let severity = match worst.verdict {
            Verdict::WrongIssuer if leaf.foreign.is_some() => Severity::Note,
            Verdict::WrongUsage | Verdict::NamesMissing if still_works(leaf) => Severity::WillBreak,
            _ => self.severity(
                worst,
                leaf.severity,
                leaf.certificate.as_ref().map(|old| old.not_before),
            ),
        };
        let mut finding = Finding::new(
            LEAF,
            format!(
                "{} {}",
                leaf.name,
                self.phrase(
                    worst.verdict,
                    leaf.certificate.as_ref().map(|old| old.not_after)
                )
            ),
        )
        .with_severity(severity);
        finding = with_problems(finding, &leaf.problems);
        if severity > Severity::Note && !still_works(leaf) {
            finding = finding.with_advice(format!("Without it {}.", leaf.consequence));
        }
        if self.is_clock_matter(worst.verdict) {
            return Some(finding.with_advice(CLOCK_ADVICE));
        }
        if let Some(why) = &leaf.foreign {
            return Some(
                finding.with_advice(format!("Left alone: {why}. Renew it where it comes from.")),
            );
        }
        let Signing { signer, remarks } = match self.leaf_signer(leaf.authority) {
            Ok(signing) => signing,
            Err(advice) => return Some(finding.with_advice(advice)),
        };
        if leaf.place.is_none() || self.is_cut_config(leaf) {
            return Some(self.lost_config(leaf, finding, signer));
        }
        if let Some(crate::pki::inventory::Place::Files {
            keep_key: Some(why),
            key,
            ..
        }) = &leaf.place
            && leaf
                .problems
                .iter()
                .any(|problem| problem.verdict == Verdict::KeyUnusable)
        {
            return Some(finding.with_advice(format!(
                "Not mended: {key} cannot be used, and {why}. Restore that key from a backup."
            )));
        }
        if ends_with_ca(worst.verdict, leaf.certificate.as_ref(), signer) {
            return Some(finding.with_advice(ENDS_WITH_CA));
        }
        let blueprint = match self.blueprint(leaf) {
            Ok(blueprint) => blueprint,
            Err(advice) => return Some(advice.into_iter().fold(finding, Finding::with_advice)),
        };
        match RenewCertificate::new(
            leaf,
            signer,
            &self.keys,
            self.context.settings,
            blueprint,
            remarks,
        ) {
            Some(remedy) => Some(finding.with_remedy(remedy)),
            None => Some(finding.with_advice(format!(
                "Not mended: its names and groups stood only in what is lost. Restore the file \
                 from a backup, or, once the rest of the node runs, delete it and run `kubeadm \
                 init phase {}` with the cluster's own configuration.",
                phase(leaf.name)
            ))),
        }
    }

    /// What to make in place of a lost pair of files.
    fn blueprint(&self, leaf: &Leaf) -> Result<Option<Blueprint>, Vec<String>> {
        let is_kubeadms = LEAVES.iter().any(|profile| profile.name == leaf.name);
        if leaf.certificate.is_some() || !is_kubeadms {
            return Ok(None);
        }
        blueprint(leaf, self.inventory, self.context.guest, self.context.node).map(Some)
    }
}

/// Wrong, but not so that anything on the disk fails: no extended key usage at all, or only names
/// that the user asks for.
fn still_works(leaf: &Leaf) -> bool {
    let Some(certificate) = &leaf.certificate else {
        return false;
    };
    let harmless = |problem: &Problem| match problem.verdict {
        Verdict::WrongUsage => certificate
            .extended_key_usage
            .as_ref()
            .is_none_or(Vec::is_empty),
        Verdict::NamesMissing => {
            let missing = leaf.needed.missing(certificate);
            missing.iter().all(|missing| {
                !leaf
                    .needed
                    .used
                    .iter()
                    .any(|used| used.name == missing.name)
            })
        }
        _ => false,
    };
    leaf.problems.iter().all(harmless)
}
