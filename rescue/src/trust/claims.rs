//! A disk that says it is a control plane, and holds nothing that only a control plane has.

use super::party::Party;
use crate::node::Role;

/// The proven control plane of its cluster that makes the claim of `party` doubtful; `None` where nothing does. A disk alone is believed:
/// nothing crosses then.
pub fn doubted_by<'p>(party: &Party, others: &[&'p Party]) -> Option<&'p Party> {
    if party.role != Some(Role::ControlPlane) || party.is_trusted {
        return None;
    }
    let is_same_cluster = |other: &Party| {
        other.proven_authorities().any(|ca| {
            party
                .cluster
                .iter()
                .chain(party.authorities.iter().map(|(_, own)| own))
                .any(|own| own.is_same_authority(ca))
        })
    };
    let proves_it = |other: &Party| other.proven_authorities().any(|ca| party.standing.is_control_plane_of(ca));
    let same: Vec<&&Party> = others.iter().filter(|other| is_same_cluster(other)).collect();
    if same.iter().any(|other| proves_it(other)) {
        return None;
    }
    same.first().map(|other| **other)
}
