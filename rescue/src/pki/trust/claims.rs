//! A disk that says it is a control plane, and holds nothing that only a control plane has.

use super::party::Party;
use crate::node::Role;

/// The proven control plane that makes the claim of `party` doubtful: the disk shows a trace of its
/// CA (trusts it, or has a certificate that it signed) and proves none of its CAs. `None` where
/// nothing does. A disk alone is believed: nothing crosses then.
pub fn doubted_by<'p>(party: &Party, others: &[&'p Party]) -> Option<&'p Party> {
    if party.role != Some(Role::ControlPlane) || party.is_trusted {
        return None;
    }
    let is_same_cluster =
        |other: &&&Party| other.proven_authorities().any(|ca| party.has_trace_of(ca));
    let proves_it = |other: &Party| {
        other
            .proven_authorities()
            .any(|ca| party.standing.is_control_plane_of(ca))
    };
    others
        .iter()
        .filter(is_same_cluster)
        .find(|other| !proves_it(other))
        .copied()
}
