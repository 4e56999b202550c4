//! What the private keys on a disk prove about its etcd member: the files that its etcd is started
//! with, and kubeadm's.

use std::collections::{BTreeMap, BTreeSet};

use super::Party;
use super::standing::is_members;
use crate::etcd::read::launch::Launch;
use crate::guest::{Guest, GuestPath};
use crate::pki::profile::Authority;
use crate::pki::x509::certificate::{Certificate, SignatureCheck};
use crate::pki::x509::key::PrivateKey;

/// etcd's options for a leaf and its private key.
const LEAVES: [(&str, &str); 2] = [
    ("--peer-cert-file", "--peer-key-file"),
    ("--cert-file", "--key-file"),
];

/// Its options for the CAs that it believes.
const TRUSTED: [&str; 2] = ["--peer-trusted-ca-file", "--trusted-ca-file"];

/// CAs of one disk that are looked at; each costs a verification for each leaf of the run.
const MOST_AUTHORITIES: usize = 16;

/// What is on one disk.
#[derive(Debug, Clone, Default)]
pub struct EtcdKeys {
    /// Whether its etcd asks for certificates.
    pub uses_tls: bool,
    /// CA certificates that it believes.
    authorities: Vec<Certificate>,
    /// CA certificates whose private key is on the disk.
    signing: Vec<Certificate>,
    /// Leaves that a member serves with, each with its private key on the disk.
    leaves: Vec<Certificate>,
}

impl EtcdKeys {
    /// Reads and tries them. `peer_urls`: all that the member is known by.
    pub fn read(guest: &Guest, launch: &Launch, party: &Party, peer_urls: &[String]) -> Self {
        let is_named = LEAVES
            .iter()
            .any(|(certificate, _)| launch.option(certificate).is_some());
        // Certificates that etcd makes for itself are asked of nobody.
        let is_automatic = launch.option("--peer-auto-tls") == Some("true");
        let uses_tls =
            is_named || (!is_automatic && peer_urls.iter().any(|url| url.starts_with("https:")));
        let paths: BTreeSet<&str> = TRUSTED
            .iter()
            .filter_map(|name| launch.option(name))
            .collect();
        let mut keys = Self {
            uses_tls,
            ..Self::default()
        };
        for path in paths.into_iter().map(GuestPath::new) {
            let named = certificates(guest, &path)
                .into_iter()
                .filter(Certificate::may_sign);
            let named: Vec<Certificate> = named.take(MOST_AUTHORITIES).collect();
            keys.signing.extend(beside(guest, &path, &named));
            keys.authorities.extend(named);
        }
        let known = party
            .authorities
            .iter()
            .filter(|(authority, _)| *authority == Authority::Etcd);
        keys.authorities.extend(
            known
                .map(|(_, certificate)| certificate.clone())
                .filter(Certificate::may_sign),
        );
        let signing = party
            .standing
            .signing
            .iter()
            .filter(|(authority, _)| *authority == Authority::Etcd);
        keys.signing
            .extend(signing.map(|(_, certificate)| certificate.clone()));
        keys.authorities.extend(keys.signing.iter().cloned());
        keys.authorities.truncate(MOST_AUTHORITIES);
        keys.leaves = LEAVES
            .iter()
            .filter_map(|(certificate, key)| {
                leaf(guest, launch.option(certificate)?, launch.option(key)?)
            })
            .chain(party.standing.etcd_member.iter().cloned())
            .filter(is_members)
            .collect();
        keys
    }

    /// Whether it holds the private key of this CA, or of a member's leaf that the CA signed.
    fn proves(&self, authority: &Certificate) -> bool {
        let is_own = |own: &Certificate| own.public_key_info == authority.public_key_info;
        self.signing.iter().any(is_own)
            || self
                .leaves
                .iter()
                .any(|leaf| leaf.signed_by(authority) == SignatureCheck::Valid)
    }
}

/// For each disk of a run the public keys of the CAs that it proves to belong to. A CA that one
/// disk has lost is known from another's: it is public, and what proves something is the key that
/// fits it.
pub fn proven(all: &[EtcdKeys]) -> Vec<BTreeSet<Vec<u8>>> {
    let authorities: BTreeMap<(&[u8], &[u8]), &Certificate> = all
        .iter()
        .flat_map(|keys| &keys.authorities)
        .map(|certificate| {
            (
                (
                    certificate.public_key_info.as_slice(),
                    certificate.subject_raw.as_slice(),
                ),
                certificate,
            )
        })
        .collect();
    let of = |keys: &EtcdKeys| {
        let proven = authorities
            .values()
            .filter(|authority| keys.proves(authority));
        proven
            .map(|authority| authority.public_key_info.clone())
            .collect()
    };
    all.iter().map(of).collect()
}

fn certificates(guest: &Guest, path: &GuestPath) -> Vec<Certificate> {
    let bytes = guest.read(path).unwrap_or_default();
    Certificate::all_from_pem(&bytes).unwrap_or_default()
}

/// Those of `authorities`, which are in the file `path`, whose private key lies beside it: `ca.key`
/// beside `ca.crt` (kubeadm), `ca-key.pem` beside `ca.pem` (kubespray, cfssl).
fn beside(guest: &Guest, path: &GuestPath, authorities: &[Certificate]) -> Vec<Certificate> {
    let name = path.to_string();
    let stem = name
        .rsplit_once('.')
        .map_or(name.as_str(), |(stem, _)| stem);
    let keys = [format!("{stem}.key"), format!("{stem}-key.pem")];
    let keys = keys
        .iter()
        .filter_map(|key| PrivateKey::from_pem(&guest.read(&GuestPath::new(key)).ok()?).ok());
    let keys: Vec<PrivateKey> = keys.collect();
    authorities
        .iter()
        .filter(|authority| keys.iter().any(|key| authority.is_proved_by(key)))
        .cloned()
        .collect()
}

/// The first certificate of a file, if its private key is there.
fn leaf(guest: &Guest, certificate: &str, key: &str) -> Option<Certificate> {
    let certificate = certificates(guest, &GuestPath::new(certificate))
        .into_iter()
        .next()?;
    let key = PrivateKey::from_pem(&guest.read(&GuestPath::new(key)).ok()?).ok()?;
    certificate.is_proved_by(&key).then_some(certificate)
}
