//! The crossings, and the proof that each of them needs.

use super::party::Party;
use crate::pki::cluster_ca::shown;
use crate::pki::profile::Authority;
use crate::pki::x509::certificate::Certificate;

/// Why something may cross.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Permit {
    /// Private keys on the disks prove it; in words.
    Proved(String),
    /// The user vouches for a disk that proves nothing; in words.
    Trusted(String),
}

impl Permit {
    /// The reason, for a plan.
    pub fn words(&self) -> &str {
        match self {
            Self::Proved(words) | Self::Trusted(words) => words,
        }
    }

    /// Whether it is the user's word and no proof.
    pub fn is_trusted(&self) -> bool {
        matches!(self, Self::Trusted(_))
    }
}

/// What is missing for something to cross, as whole sentences.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unproven {
    /// What the disks do not prove.
    pub saw: String,
    /// What to type where the user knows better.
    pub next: String,
}

impl Unproven {
    /// For a finding: what was not done, and why. `what` is a verb in the passive voice: "copied".
    pub fn advice(&self, what: &str) -> String {
        format!("Not {what}: {}\n{}", self.saw, self.next)
    }
}

/// Whether two disks prove to be control planes of one cluster: what all its control planes share
/// may cross then, in either direction. Each must hold the private key of one CA, or a control
/// plane's leaf that this CA signed, with its private key.
///
/// # Errors
/// [`Unproven`] names the disk that proves nothing.
pub fn control_planes(receiver: &Party, donor: &Party) -> Result<Permit, Unproven> {
    if donor.only_signs {
        return Err(Unproven {
            saw: format!(
                "{} was named with --ca, and such a disk lends signatures for kubelets and nothing \
                 else.",
                donor.shown()
            ),
            next: format!(
                "To have more from it, name it as a disk without --ca; with --node {} no other \
                 node is changed.",
                receiver.typed_source()
            ),
        });
    }
    let is_shared = |ca: &&Certificate| {
        donor.standing.is_control_plane_of(ca) && receiver.standing.is_control_plane_of(ca)
    };
    if let Some(ca) = receiver
        .proven_authorities()
        .chain(donor.proven_authorities())
        .find(is_shared)
    {
        return Ok(Permit::Proved(format!(
            "both disks hold private keys of control planes of the CA {}",
            shown(ca)
        )));
    }
    // A CA of one's own making proves nothing to the other: it must be one that the other takes for
    // its cluster's.
    let unproven: Vec<&Party> = match (proves_to(receiver, donor), proves_to(donor, receiver)) {
        (false, true) => vec![receiver],
        (true, false) => vec![donor],
        (true, true) | (false, false) => vec![receiver, donor],
    };
    trusted_or(&unproven, || {
        let names: Vec<String> = unproven.iter().map(|party| party.shown()).collect();
        let verb = if names.len() == 1 { "holds" } else { "hold" };
        format!(
            "{} {verb} no private key that only a control plane of the same cluster has, and what \
             a disk says of itself proves nothing.",
            names.join(" and ")
        )
    })
}

/// Whether `party` proves to be a control plane of a cluster that `other` takes for its own.
fn proves_to(party: &Party, other: &Party) -> bool {
    other
        .carried()
        .any(|ca| party.standing.is_control_plane_of(ca))
}

/// Whether `receiver` may get leaves that the etcd CA signed: it is a member of that etcd, or a
/// control plane of the donor's cluster.
///
/// # Errors
/// [`Unproven`], as of [`control_planes`].
pub fn etcd_members(
    receiver: &Party,
    donor: &Party,
    authority: &Certificate,
) -> Result<Permit, Unproven> {
    // Where one CA signs for etcd and for the cluster, a member's leaf would open both.
    let is_clusters = |(kind, own): &(Authority, Certificate)| {
        *kind != Authority::Etcd && own.public_key_info == authority.public_key_info
    };
    let is_shared = donor
        .authorities
        .iter()
        .chain(&donor.standing.signing)
        .any(is_clusters);
    let both = !is_shared
        && receiver.standing.is_etcd_member_of(authority)
        && donor.standing.is_etcd_member_of(authority);
    if both && !donor.only_signs {
        return Ok(Permit::Proved(format!(
            "both disks hold private keys of members of the CA {}",
            shown(authority)
        )));
    }
    control_planes(receiver, donor)
}

/// Whether leaves of `authority` may be signed for `receiver` with the donor's key, the kubelet's
/// own left aside.
///
/// # Errors
/// [`Unproven`], as of [`control_planes`].
pub fn leaf_signature(
    receiver: &Party,
    donor: &Party,
    authority: Authority,
    certificate: &Certificate,
) -> Result<Permit, Unproven> {
    match authority {
        Authority::Etcd => etcd_members(receiver, donor, certificate),
        Authority::Cluster | Authority::FrontProxy => control_planes(receiver, donor),
    }
}

/// Whether `receiver` may take names and addresses from `lender`: what it says of the cluster goes
/// into certificates and kubeconfigs. The lender must be a control plane of the cluster whose CA
/// the receiver trusts.
pub fn may_lend_names(receiver: &Party, lender: &Party) -> bool {
    proves_to(lender, receiver)
}

/// The user's word for all of `unproven`, else what is missing.
pub(super) fn trusted_or(
    unproven: &[&Party],
    saw: impl FnOnce() -> String,
) -> Result<Permit, Unproven> {
    let doubted: Vec<&&Party> = unproven.iter().filter(|party| !party.is_trusted).collect();
    if doubted.is_empty() {
        let names: Vec<String> = unproven.iter().map(|party| party.shown()).collect();
        return Ok(Permit::Trusted(format!(
            "on your word alone (--trust): no key on {} proves it",
            names.join(" and ")
        )));
    }
    let flags: Vec<String> = doubted.iter().map(|party| party.trust_flag()).collect();
    Err(Unproven {
        saw: saw(),
        next: format!(
            "If you know for certain that it is what it says, run the same command again with {}",
            flags.join(" ")
        ),
    })
}
