//! Whose disk it is: the name that a kubelet's client certificate may be signed for.

use std::rc::Rc;

use super::crossing::{Permit, Unproven, trusted_or};
use super::party::Party;
use crate::etcd::read::objects::NodeObject;
use crate::node::Role;
use crate::pki::cluster_ca::shown;
use crate::pki::peer::Peer;
use crate::pki::x509::certificate::Certificate;

/// A Node object, as the etcd of a proven control plane of the run has it.
#[derive(Debug, Clone)]
pub struct Recorded {
    /// The object.
    pub object: NodeObject,
    /// Whether it is a control plane: by its role, or by the static pods that it reported.
    pub is_control_plane: bool,
    /// Whether another Node object has the same machine ID.
    pub is_shared: bool,
    /// Where it was read: `the etcd of master01`.
    pub place: String,
}

/// Whether `ca` may sign for the kubelet of `receiver` under `name`. `others` are the other disks
/// of the run, `recorded` is what proven control planes know of that name.
///
/// The name is proved by a certificate that the CA signed for it, with its private key on the disk;
/// else by the cluster's own record of the machine ID. Two disks that prove one name are copies,
/// and both are refused.
///
/// # Errors
/// [`Unproven`] says what the disk has instead.
pub fn node_signature(
    receiver: &Party,
    name: &str,
    ca: &Certificate,
    others: &[&Party],
    recorded: &[Recorded],
) -> Result<Permit, Unproven> {
    let proven = receiver.standing.nodes(ca);
    if proven.contains(name) {
        // A machine that has another name now keeps its older certificates: it is no copy.
        let is_twin =
            |other: &&&Party| other.claims(name) && other.standing.nodes(ca).contains(name);
        let twin = others.iter().find(is_twin);
        return match twin {
            None => Ok(Permit::Proved(format!(
                "its private key for node {name} is on this disk"
            ))),
            Some(twin) => by_word(receiver, || {
                format!(
                    "{} and {} both prove to be node {name}: one is a copy of the other.",
                    receiver.shown(),
                    twin.shown()
                )
            }),
        };
    }
    let claims_it = |other: &&&Party| other.claims(name) || other.standing.nodes(ca).contains(name);
    if let Some(other) = others.iter().find(claims_it) {
        return by_word(receiver, || {
            format!(
                "{} and {} both say that they are node {name}, and no private key on {0} proves \
                 it.",
                receiver.shown(),
                other.shown()
            )
        });
    }
    if let Some(other) = proven.iter().next() {
        return by_word(receiver, || {
            format!(
                "{} says that it is node {name}, but the private key on it is node {other}'s.",
                receiver.shown()
            )
        });
    }
    if receiver.standing.is_control_plane_of(ca) {
        return Ok(Permit::Proved(
            "this disk holds private keys of a control plane of its cluster".to_owned(),
        ));
    }
    match by_record(receiver, name, others, recorded) {
        Some(place) => Ok(Permit::Proved(format!(
            "{place} has this disk's machine ID for node {name}"
        ))),
        None => by_word(receiver, || {
            format!(
                "{} says that it is node {name}, but holds no private key with a certificate of {} \
                 for that name, and no etcd of this cluster in the run has its machine ID for it.",
                receiver.shown(),
                shown(ca)
            )
        }),
    }
}

/// Where the cluster's own record has the machine ID of `receiver` for `name`. A machine ID that
/// two disks or two Node objects share is no proof, and a control plane proves itself by its keys.
fn by_record<'r>(
    receiver: &Party,
    name: &str,
    others: &[&Party],
    recorded: &'r [Recorded],
) -> Option<&'r str> {
    let own = receiver.machine_id.as_deref()?;
    let is_shared = others
        .iter()
        .any(|other| other.machine_id.as_deref() == Some(own))
        || recorded
            .iter()
            .any(|one| one.is_shared && one.object.machine_id == own);
    let mut same = recorded.iter().filter(|one| one.object.name == name);
    let known = same
        .next()
        .filter(|one| one.object.machine_id == own && !one.is_control_plane)?;
    // Two control planes that know different machines by this name: one of them is older.
    let is_contradicted =
        same.any(|other| other.object.machine_id != own || other.is_control_plane);
    (!is_shared && !is_contradicted).then_some(known.place.as_str())
}

fn by_word(receiver: &Party, saw: impl FnOnce() -> String) -> Result<Permit, Unproven> {
    trusted_or(&[receiver], saw)
}

/// The control planes of a cluster, as the disks named with `--ca` know them.
#[derive(Debug, Default)]
pub struct ControlPlanes {
    /// Name, and how it is known.
    known: Vec<(String, String)>,
}

impl ControlPlanes {
    /// From those disks: their own names, their etcd members' and, where etcd can be read, its Node
    /// objects.
    pub fn of(lenders: &[Rc<Peer>]) -> Self {
        let mut known = Vec::new();
        for peer in lenders
            .iter()
            .filter(|peer| peer.role == Some(Role::ControlPlane))
        {
            let shown = peer.shown();
            known.push((
                peer.name.clone(),
                format!("it is the control plane {shown} itself"),
            ));
            known.extend(
                peer.party
                    .kubelet_name
                    .iter()
                    .map(|name| (name.clone(), format!("it is the kubelet of {shown}"))),
            );
            let named = peer.control_planes.iter();
            known.extend(named.map(|name| {
                (
                    name.clone(),
                    format!("the etcd of {shown} lists it as a control plane"),
                )
            }));
        }
        Self { known }
    }

    /// How it is known that `node` is a control plane.
    pub fn why(&self, node: &str) -> Option<String> {
        self.known
            .iter()
            .find(|(name, _)| name == node)
            .map(|(_, why)| why.clone())
    }
}

/// Why a control plane is signed for only where it is named.
pub fn named_only(node: &str, why: &str) -> String {
    format!(
        "{node} is a control plane ({why}); its own disk renews it, and whoever holds this \
         certificate speaks in its name. If it is meant: --trust {node}"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A CA, and a party of that name and machine without any key.
    fn party(name: &str, machine_id: &str) -> Party {
        let (name, machine_id) = (name.to_owned(), Some(machine_id.to_owned()));
        Party {
            source: format!("{name}.img"),
            kubelet_name: Some(name.clone()),
            name,
            machine_id,
            ..Party::default()
        }
    }

    fn ca() -> Certificate {
        let pair = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
        let mut parameters = rcgen::CertificateParams::new(Vec::new()).unwrap();
        parameters.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        Certificate::from_der(parameters.self_signed(&pair).unwrap().der()).unwrap()
    }

    fn recorded(name: &str, machine_id: &str, is_control_plane: bool) -> Recorded {
        let object = NodeObject {
            name: name.to_owned(),
            machine_id: machine_id.to_owned(),
            ..NodeObject::default()
        };
        Recorded {
            object,
            is_control_plane,
            is_shared: false,
            place: "the etcd of m1".to_owned(),
        }
    }

    #[test]
    fn the_record_proves_a_worker_and_one_disk_only() {
        let (ca, own) = (ca(), party("w1", "a1"));
        let by = |others: &[&Party], recorded: &[Recorded]| {
            node_signature(&own, "w1", &ca, others, recorded).is_ok()
        };
        assert!(by(&[], &[recorded("w1", "a1", false)]));
        assert!(by(
            &[&party("w2", "a2")],
            &[recorded("w1", "a1", false), recorded("w1", "a1", false)]
        ));
        // Nothing there; another machine; a control plane; two that contradict each other; one
        // machine ID for two nodes.
        assert!(!by(&[], &[]));
        assert!(!by(&[], &[recorded("w1", "a9", false)]));
        assert!(!by(&[], &[recorded("w1", "a1", true)]));
        assert!(!by(
            &[],
            &[recorded("w1", "a1", false), recorded("w1", "a9", false)]
        ));
        assert!(!by(
            &[],
            &[Recorded {
                is_shared: true,
                ..recorded("w1", "a1", false)
            }]
        ));
        // Another disk with that machine ID, or that name.
        assert!(!by(&[&party("w2", "a1")], &[recorded("w1", "a1", false)]));
        assert!(!by(&[&party("w1", "a2")], &[recorded("w1", "a1", false)]));
    }

    #[test]
    fn the_user_s_word_is_the_last_resort_and_called_so() {
        let (ca, mut own) = (ca(), party("w1", "a1"));
        let refused = node_signature(&own, "w1", &ca, &[], &[]).unwrap_err();
        assert!(refused.next.ends_with("--trust w1.img"), "{refused:?}");
        own.is_trusted = true;
        assert!(
            node_signature(&own, "w1", &ca, &[], &[])
                .unwrap()
                .is_trusted()
        );
    }
}
