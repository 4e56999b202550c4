//! Which cluster a node belongs to, by the CA that it trusts, and which other node of the run holds
//! that CA's key. Names prove nothing here: every kubeadm cluster's CA is called `kubernetes`, so
//! CAs are compared by public key and raw subject.

use std::rc::Rc;

use super::inventory::{AuthorityState, Blocked, Inventory, Signer, trusted_by};
use super::peer::Peer;
use super::profile::Authority;
use super::x509::certificate::Certificate;
use crate::base::hash::sha256_hex;
use crate::base::refusal::Refusal;
use crate::base::units;
use crate::guest::Guest;
use crate::kubeconfig::Kubeconfig;

/// Digits of a public key's hash that people are shown; enough to tell two CAs apart.
const SHOWN: usize = 16;

/// The hash of a certificate's SubjectPublicKeyInfo, as
/// `kubeadm join --discovery-token-ca-cert-hash` takes it: `sha256:` and 64 hexadecimal digits. It
/// stays when a CA is renewed with its own key.
pub fn public_key_hash(certificate: &Certificate) -> String {
    hash_of(&certificate.public_key_info)
}

/// The same for a SubjectPublicKeyInfo.
pub fn hash_of(public_key_info: &[u8]) -> String {
    format!("sha256:{}", sha256_hex(public_key_info))
}

/// A CA for people: its subject and the beginning of its public key's hash.
pub fn shown(certificate: &Certificate) -> String {
    let hash: String = public_key_hash(certificate)
        .chars()
        .take("sha256:".len() + SHOWN)
        .collect();
    format!("{} ({hash}…)", certificate.subject)
}

/// The same for several.
pub fn all_shown<'a>(certificates: impl IntoIterator<Item = &'a Certificate>) -> String {
    let mut all: Vec<String> = certificates.into_iter().map(shown).collect();
    all.dedup();
    if all.is_empty() {
        "no CA that can be read".to_owned()
    } else {
        all.join(", ")
    }
}

/// What a node takes for its cluster's CA: what kubelet.conf trusts, which is what the kubelet
/// joined with; where that says nothing, the CA file. Empty where neither can be read.
pub fn cluster_authorities(guest: &Guest, inventory: &Inventory) -> Vec<Certificate> {
    let config = inventory.kubelet.as_ref().map(|client| &client.kubeconfig);
    let trusted = config
        .and_then(|path| Some(Kubeconfig::parse(&guest.read(path).ok()?, path).ok()))
        .flatten()
        .map(|config| trusted_by(guest, &config))
        .unwrap_or_default();
    if !trusted.is_empty() {
        return trusted;
    }
    inventory
        .authorities
        .get(&Authority::Cluster)
        .map(|state| state.certificates.clone())
        .unwrap_or_default()
}

/// Whether two certificates are the same CA: the same key under the same name, whatever their
/// dates.
pub fn is_same(one: &Certificate, other: &Certificate) -> bool {
    one.public_key_info == other.public_key_info && one.subject_raw == other.subject_raw
}

/// A CA key found on another node of the run.
#[derive(Debug, Clone, Copy)]
pub struct Found<'a> {
    /// With what to sign.
    pub signer: &'a Signer,
    /// Whose it is.
    pub peer: &'a Peer,
}

/// The peers that hold the key of a CA of this kind.
pub fn holders(authority: Authority, peers: &[Rc<Peer>]) -> impl Iterator<Item = Found<'_>> {
    peers.iter().filter_map(move |peer| {
        let signer = peer.authorities.get(&authority)?.signer.as_ref().ok()?;
        Some(Found { signer, peer })
    })
}

/// Whether any of them holds the key of a CA.
pub fn has_key(peers: &[Rc<Peer>]) -> bool {
    Authority::ALL
        .into_iter()
        .any(|authority| holders(authority, peers).next().is_some())
}

/// Why the nodes on `sources`, named for their CA keys, cannot lend one.
pub fn no_key(peers: &[Rc<Peer>], sources: &str) -> Refusal {
    let saw: Vec<String> = peers
        .iter()
        .map(|peer| match peer.authorities.get(&Authority::Cluster) {
            Some(state) => format!("{} ({}): {}", peer.name, peer.source, why_not(state)),
            None => format!("{} ({}) has no CA certificate", peer.name, peer.source),
        })
        .collect();
    Refusal::new(
        saw.join("; "),
        "nothing can be signed with what is there",
        format!(
            "give --ca the disk of a control plane that has its CA key; rescue inspect {sources} \
             says more about this one"
        ),
    )
}

/// Why nothing can be signed with a CA, as the end of a sentence.
fn why_not(state: &AuthorityState) -> String {
    let (certificate, key) = (&state.certificate_path, &state.key_path);
    match &state.signer {
        Ok(_) => format!("{key} is usable"),
        Err(Blocked::CertificateMissing) => format!("{certificate} is not there"),
        Err(Blocked::CertificateUnreadable(why)) => format!("{certificate} cannot be read ({why})"),
        Err(Blocked::NotAnAuthority) => format!("{certificate} is no CA certificate"),
        Err(Blocked::KeyMissing) => format!("there is no CA key ({key})"),
        Err(Blocked::KeyUnreadable(why)) => format!("{key} cannot be used ({why})"),
        Err(Blocked::KeyMismatch) => format!("{key} does not belong to {certificate}"),
        Err(Blocked::Expired(end)) => format!("the CA {certificate} expired {}", units::time(*end)),
        Err(Blocked::NotYetValid(begin)) => format!(
            "the CA {certificate} is valid only from {}",
            units::time(*begin)
        ),
    }
}
