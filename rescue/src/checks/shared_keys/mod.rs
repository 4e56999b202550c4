//! shared-keys: what all control planes of a cluster must hold alike (the three CAs, the service
//! accounts' keys), compared between the disks of one run. A copy that is lost is brought back from
//! another disk, as `kubeadm join --control-plane --certificate-key` does; copies that differ are
//! reported, never overwritten. Leaves are each node's own and never copied.

pub mod copy;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use crate::base::hash::sha256_hex;
use crate::base::units;
use crate::checks::shared_keys::copy::{CopyShared, SharedFile};
use crate::finding::{Check, Context, Finding, Mode};
use crate::guest::GuestPath;
use crate::node::Role;
use crate::pki::inventory::{AuthorityState, Blocked};
use crate::pki::membership::{Kinship, kinship};
use crate::pki::peer::{AuthorityFiles, Encryption, Peer};
use crate::pki::profile::Authority;
use crate::pki::trust::{Permit, Unproven, crossing};
use crate::pki::x509::certificate::Certificate;
use crate::pki::x509::key::PrivateKey;

const ID: &str = "shared-keys";

/// Beside advice to do something by hand with what a disk says of itself.
const NO_PROOF: &str = "Nothing on these disks proves that they are of one cluster: a disk can say \
    so of itself. Be sure of it before you copy a key in either direction (kubectl get nodes on a \
    control plane that works, or who made the disk).";

const CA_LOST: Mode = Mode::stops_boot(
    "shared-keys.ca-lost",
    "a CA is lost on this control plane, and another one has it",
)
.why(
    "All control planes of a cluster hold the same CAs. Without it the API server, the \
    controller manager or etcd exits.",
)
.done(
    "Copies the file from the other control plane's disk, as `kubeadm join \
    --control-plane` would.",
)
.source("cmd/kubeadm/app/phases/copycerts/copycerts.go");
const CA_KEY_LOST: Mode = Mode::will_break(
    "shared-keys.ca-key-lost",
    "the key of a CA is lost on this control plane, and another one has it",
)
.why("Nothing can be signed on this control plane.")
.done("Copies the key from the other control plane's disk.")
.source("cmd/kubeadm/app/phases/copycerts/copycerts.go");
const CA_MISMATCH: Mode = Mode::will_break(
    "shared-keys.ca-mismatch",
    "certificate and key of a CA do not match, and another control plane shows which is wrong",
)
.why(
    "Certificates that are signed with this key are trusted by nobody: they do not \
    belong to the CA certificate.",
)
.done("Copies the pair's wrong half from the other control plane, which has a pair that fits.")
.source("cmd/kubeadm/app/util/pkiutil; crypto/x509");
const CA_DIFFERS: Mode = Mode::will_break(
    "shared-keys.ca-differs",
    "the control planes of one cluster have different CAs",
)
.why("Control planes of one cluster that trust different CAs refuse each other's certificates.")
.done(
    "Says who agrees with whom. Nothing is overwritten: only a person knows which one is \
    right.",
)
.source("cmd/kubeadm/app/phases/copycerts/copycerts.go");
const CA_OLDER: Mode = Mode::note(
    "shared-keys.ca-older",
    "another control plane has a renewed certificate of the same CA",
)
.why(
    "The CA was renewed on one control plane with the same key. The older certificate is \
    good until its own end.",
)
.done("Names both. `rescue repair --renew-ca` with all disks brings them level.")
.source("docs/certificates.md");
const ENCRYPTION: Mode = Mode::will_break(
    "shared-keys.encryption",
    "the control planes encrypt stored Secrets differently",
)
.why(
    "A Secret that one API server has encrypted cannot be read by another one with other \
    keys.",
)
.done(
    "Says which files differ. Nothing is overwritten: a wrong key makes Secrets \
    unreadable for good.",
)
.source("https://kubernetes.io/docs/tasks/administer-cluster/encrypt-data/");
const SERVICE_ACCOUNTS: Mode = Mode::will_break(
    "shared-keys.service-accounts",
    "the control planes sign the tokens of service accounts with different keys",
)
.why(
    "A token that one control plane has signed is refused by another one: pods get \
    \"Unauthorized\" now and then.",
)
.done("Says who agrees with whom. Nothing is overwritten.")
.source("pkg/serviceaccount/jwt.go");

/// See the module.
pub const CHECK: Check = Check {
    id: ID,
    about: "with several control planes of one cluster in a run: CAs and service account keys that \
        differ between them; copies lost CA files from another one's disk",
    modes: &[
        CA_LOST,
        CA_KEY_LOST,
        CA_MISMATCH,
        CA_DIFFERS,
        CA_OLDER,
        ENCRYPTION,
        SERVICE_ACCOUNTS,
    ],
    roles: &[Role::ControlPlane],
    after: &["claimed-role"],
    run,
};

fn run(context: &Context<'_>) -> anyhow::Result<Vec<Finding>> {
    if context.node.role.value != Some(Role::ControlPlane) || context.peers.is_empty() {
        return Ok(Vec::new());
    }
    let own = Peer::read(context.guest, context.node, context.settings);
    let comparison = Comparison {
        context,
        siblings: siblings(&own, context.peers),
        own: &own,
    };
    let mut findings: Vec<Finding> = Authority::ALL
        .into_iter()
        .filter_map(|authority| comparison.authority(authority))
        .collect();
    findings.extend(comparison.service_accounts());
    findings.extend(comparison.encryption());
    Ok(findings)
}

/// Another control plane of the same cluster.
pub(super) struct Sibling {
    pub(super) peer: Rc<Peer>,
    pub(super) kinship: Kinship,
    /// Whether what all control planes share may cross between the two disks.
    pub(super) permit: Result<Permit, Unproven>,
}

/// The control planes among `peers` that are proved to be of the same cluster as `own`.
pub(super) fn siblings(own: &Peer, peers: &[Rc<Peer>]) -> Vec<Sibling> {
    let all: Vec<&Peer> = peers.iter().map(Rc::as_ref).chain([own]).collect();
    let control_planes = peers
        .iter()
        .filter(|peer| peer.role == Some(Role::ControlPlane));
    control_planes
        .filter_map(|peer| {
            let permit = crossing::control_planes(&own.party, &peer.party);
            Some(Sibling {
                peer: Rc::clone(peer),
                kinship: kinship(own, peer, &all)?,
                permit,
            })
        })
        .collect()
}

struct Comparison<'a> {
    context: &'a Context<'a>,
    own: &'a Peer,
    siblings: Vec<Sibling>,
}

/// A sibling with both halves of a CA.
struct Holder<'a> {
    sibling: &'a Sibling,
    certificate: &'a Certificate,
    files: &'a AuthorityFiles,
    permit: Result<Permit, Unproven>,
}

impl Holder<'_> {
    /// Where the user vouches for this disk: what else shows that the two are of one cluster.
    fn by_word(&self) -> Option<String> {
        let is_trusted = matches!(&self.permit, Ok(permit) if permit.is_trusted());
        (is_trusted && self.sibling.kinship.by_key)
            .then(|| format!("one cluster: {}", self.sibling.kinship.words))
    }

    /// `finding` with the files as its remedy, where they may cross.
    fn mend(&self, finding: Finding, files: Vec<SharedFile>, proof: String) -> Finding {
        copy(finding, &self.sibling.peer, files, proof, &self.permit)
    }
}

/// Those whose keys prove that they may give; where there are none, those that the user vouches
/// for; else all. A disk without proof never competes with one that has it.
pub(super) fn best_permitted<T>(
    all: impl IntoIterator<Item = T>,
    permit: impl Fn(&T) -> &Result<Permit, Unproven>,
) -> Vec<T> {
    let rank = |one: &T| match permit(one) {
        Ok(Permit::Proved(_)) => 2,
        Ok(Permit::Trusted(_)) => 1,
        Err(_) => 0,
    };
    let all: Vec<T> = all.into_iter().collect();
    let best = all.iter().map(&rank).max().unwrap_or_default();
    all.into_iter().filter(|one| rank(one) == best).collect()
}

/// `finding` with these files of `peer` as its remedy; without `permit`, with what is missing.
pub(super) fn copy(
    finding: Finding,
    peer: &Peer,
    files: Vec<SharedFile>,
    proof: String,
    permit: &Result<Permit, Unproven>,
) -> Finding {
    match permit {
        Ok(permit) => finding.with_remedy(CopyShared {
            from: peer.shown(),
            files,
            proof,
            permit: permit.clone(),
        }),
        Err(unproven) => finding.with_advice(unproven.advice("copied")),
    }
}

impl Comparison<'_> {
    fn authority(&self, authority: Authority) -> Option<Finding> {
        let state = self.own.authorities.get(&authority)?;
        match &state.signer {
            Err(
                Blocked::CertificateMissing
                | Blocked::CertificateUnreadable(_)
                | Blocked::NotAnAuthority,
            ) => self.lost_certificate(state),
            Err(Blocked::KeyMissing | Blocked::KeyUnreadable(_)) => {
                self.lost_key(state).or_else(|| self.drift(state))
            }
            // A CA that is over is above all over, whatever became of its key.
            Err(Blocked::Expired(_) | Blocked::NotYetValid(_))
                if self.key(&state.key_path).is_none() =>
            {
                self.lost_key(state).or_else(|| self.drift(state))
            }
            Err(Blocked::KeyMismatch) => self.mismatch(state),
            _ => self.drift(state),
        }
    }

    /// The siblings that have it: those that it may be copied from, where there are any. What
    /// another disk holds counts for nothing then.
    fn holders<'s>(&'s self, authority: Authority) -> Vec<Holder<'s>> {
        let holder = |sibling: &'s Sibling| {
            let files = sibling.peer.authority_files.get(&authority)?;
            Some(Holder {
                sibling,
                certificate: &files.pair,
                files,
                permit: sibling.permit.clone(),
            })
        };
        best_permitted(self.siblings.iter().filter_map(holder), |holder| {
            &holder.permit
        })
    }

    /// The one that all siblings hold; `None` where they have none or differ.
    fn agreed(&self, authority: Authority) -> Option<Holder<'_>> {
        let holders = self.holders(authority);
        let keys: BTreeSet<&[u8]> = holders
            .iter()
            .map(|holder| holder.certificate.public_key.as_slice())
            .collect();
        holders.into_iter().next().filter(|_| keys.len() == 1)
    }

    /// The CA's certificate is gone: what is left on this node must prove whose it was.
    fn lost_certificate(&self, state: &AuthorityState) -> Option<Finding> {
        let holder = self.agreed(state.authority)?;
        let from = holder.sibling.peer.shown();
        let key = self.key(&state.key_path);
        let by_key = key
            .as_ref()
            .is_some_and(|key| holder.certificate.matches(key));
        let proof = match by_key {
            true => Some(format!("{} is the key of that certificate", state.key_path)),
            false => self
                .own
                .membership
                .knows(state.authority, holder.certificate)
                .or_else(|| holder.by_word()),
        };
        let title = format!(
            "CA {} is lost here, and {} has it",
            state.authority.name(),
            holder.sibling.peer.name
        );
        let finding = Finding::new(CA_LOST, title)
            .with_evidence(&state.certificate_path, blocked_words(state))
            .with_evidence(
                &state.certificate_path,
                format!("{from}: {}", fingerprint(holder.certificate)),
            );
        if let Err(unproven) = &holder.permit {
            return Some(finding.with_advice(unproven.advice("copied")));
        }
        let Some(proof) = proof else {
            return Some(finding.with_advice(format!(
                "Not copied: nothing that is left on this node was signed by that CA or trusts it. \
                 If it is this cluster's, copy it from {from} yourself."
            )));
        };
        let mut files = vec![certificate_file(state, &holder)];
        if !by_key {
            files.push(key_file(state, &holder));
        }
        Some(holder.mend(finding, files, proof))
    }

    /// The certificate is here and says which key is missing.
    fn lost_key(&self, state: &AuthorityState) -> Option<Finding> {
        let own = state.certificate()?;
        let holders = self.holders(state.authority);
        let holder = holders
            .into_iter()
            .find(|holder| holder.certificate.public_key == own.public_key)?;
        let title = format!(
            "the key of CA {} is lost here, and {} has it",
            state.authority.name(),
            holder.sibling.peer.name
        );
        let finding = Finding::new(CA_KEY_LOST, title)
            .with_evidence(&state.key_path, blocked_words(state))
            .with_advice(format!(
                "Without it no certificate of {} can be renewed on this node. Where it is kept off \
                 this node on purpose, --skip {ID}.",
                state.authority.name()
            ));
        let proof = format!("it is the key of {} on this node", state.certificate_path);
        Some(holder.mend(finding, vec![key_file(state, &holder)], proof))
    }

    /// Of certificate and key one is wrong; the siblings' pair says which.
    fn mismatch(&self, state: &AuthorityState) -> Option<Finding> {
        let holder = self.agreed(state.authority)?;
        let from = holder.sibling.peer.shown();
        let key = self.key(&state.key_path)?;
        let finding = |wrong: &GuestPath, saw: String| {
            let title = format!(
                "CA {}: certificate and key do not match",
                state.authority.name()
            );
            Finding::new(CA_MISMATCH, title).with_evidence(wrong, saw)
        };
        let certified = state
            .certificates
            .iter()
            .any(|own| own.public_key == holder.certificate.public_key);
        let wrong = match (certified, holder.certificate.matches(&key)) {
            (true, _) => (
                key_file(state, &holder),
                &state.key_path,
                &state.certificate_path,
            ),
            (false, true) => (
                certificate_file(state, &holder),
                &state.certificate_path,
                &state.key_path,
            ),
            (false, false) => {
                let advice = "Not mended: neither of the two belongs to the CA that the other \
                    control planes hold.";
                return Some(
                    finding(&state.certificate_path, fingerprint_of(state))
                        .with_evidence(
                            &state.certificate_path,
                            format!("{from}: {}", fingerprint(holder.certificate)),
                        )
                        .with_advice(advice),
                );
            }
        };
        let (file, wrong, right) = wrong;
        let saw = format!("not what {} has; {right} is", holder.sibling.peer.name);
        let proof = format!("{right} on this node is the other half of the pair on {from}");
        Some(holder.mend(finding(wrong, saw), vec![file], proof))
    }

    fn drift(&self, state: &AuthorityState) -> Option<Finding> {
        let own = state.certificate()?;
        let of = |sibling: &Sibling| {
            let there = sibling
                .peer
                .authorities
                .get(&state.authority)?
                .certificate()?;
            Some((
                sibling.peer.shown(),
                there.public_key.clone(),
                fingerprint(there),
                sibling.kinship.words.clone(),
            ))
        };
        let others: Vec<_> = self.siblings.iter().filter_map(of).collect();
        let (same, differ): (Vec<_>, Vec<_>) = others
            .into_iter()
            .partition(|(_, key, ..)| *key == own.public_key);
        if differ.is_empty() {
            return self.other_end(state, own);
        }
        let title = format!(
            "CA {} is not the same on all control planes",
            state.authority.name()
        );
        let path = &state.certificate_path;
        let mut finding = Finding::new(CA_DIFFERS, title)
            .with_evidence(path, format!("this node: {}", fingerprint(own)));
        for (name, ..) in &same {
            finding = finding.with_evidence(path, format!("{name}: the same as this node"));
        }
        for (name, _, print, kinship) in &differ {
            finding =
                finding.with_evidence(path, format!("{name}: {print} (one cluster: {kinship})"));
        }
        let mut camps: BTreeMap<&[u8], Vec<&str>> = BTreeMap::new();
        for (name, key, ..) in &differ {
            camps.entry(key).or_default().push(name);
        }
        let camps: Vec<Vec<&str>> = camps.into_values().collect();
        let is_doubtful = self.siblings.iter().any(|sibling| sibling.permit.is_err());
        finding = finding
            .with_advice(means(state.authority))
            .with_advice(what_to_do(state, same.len() + 1, &camps));
        Some(if is_doubtful {
            finding.with_advice(NO_PROOF)
        } else {
            finding
        })
    }

    /// One key, but a certificate that was renewed on some nodes only.
    fn other_end(&self, state: &AuthorityState, own: &Certificate) -> Option<Finding> {
        let newer = |sibling: &&Sibling| {
            let there = sibling
                .peer
                .authorities
                .get(&state.authority)
                .and_then(AuthorityState::certificate);
            there.is_some_and(|there| there.not_after > own.not_after)
        };
        let sibling = self.siblings.iter().find(newer)?;
        let there = sibling
            .peer
            .authorities
            .get(&state.authority)?
            .certificate()?;
        let title = format!(
            "CA {} was renewed on {}, not here",
            state.authority.name(),
            sibling.peer.name
        );
        Some(
            Finding::new(CA_OLDER, title)
                .with_evidence(
                    &state.certificate_path,
                    format!("ends {} here", units::time(own.not_after)),
                )
                .with_evidence(
                    &state.certificate_path,
                    format!(
                        "ends {} on {}",
                        units::time(there.not_after),
                        sibling.peer.shown()
                    ),
                )
                .with_advice(
                    "The key is the same, so both work until the earlier end. Renew it here too \
                     before then, with --renew-ca.",
                ),
        )
    }

    /// What one API server wrote encrypted, the others must be able to read.
    fn encryption(&self) -> Option<Finding> {
        let own = self.own.encryption.as_ref();
        let differs = |sibling: &&Sibling| {
            let there = sibling.peer.encryption.as_ref();
            there.map(|there| &there.meaning) != own.map(|own| &own.meaning)
        };
        let differ: Vec<&Sibling> = self.siblings.iter().filter(differs).collect();
        let path = own
            .or_else(|| differ.first()?.peer.encryption.as_ref())
            .map(|encryption| &encryption.path)?;
        let say = |encryption: Option<&Encryption>| match encryption {
            None => "the API server has no --encryption-provider-config".to_owned(),
            Some(Encryption {
                meaning: None,
                path,
            }) => format!("{path} is missing or damaged"),
            Some(Encryption { path, .. }) => format!("{path} says something else than the others"),
        };
        if differ.is_empty() {
            return None;
        }
        let title = "encryption of stored Secrets is not set up alike on all control planes";
        let mut finding =
            Finding::new(ENCRYPTION, title).with_evidence(path, format!("this node: {}", say(own)));
        for sibling in differ {
            let there = say(sibling.peer.encryption.as_ref());
            finding = finding.with_evidence(path, format!("{}: {there}", sibling.peer.shown()));
        }
        Some(finding.with_advice(
            "An API server cannot read a Secret that another one encrypted with a key that its own \
             file does not have. Not mended: make the              files alike by hand, with all \
             keys that were ever used in each of them.",
        ))
    }

    fn service_accounts(&self) -> Option<Finding> {
        let own = &self.own.service_accounts;
        let signing: Vec<&[u8]> = own.signing_keys().collect();
        let verifying = own.verifying.first()?;
        // A pair that does not even agree with itself is the other check's business.
        if signing.is_empty() || !signing.iter().all(|key| own.accepts(key)) {
            return None;
        }
        let disagrees = |sibling: &&Sibling| {
            let there = &sibling.peer.service_accounts;
            let sound = there.signing_keys().next().is_some()
                && there.signing_keys().all(|key| there.accepts(key));
            sound
                && !(signing.iter().all(|key| there.accepts(key))
                    && there.signing_keys().all(|key| own.accepts(key)))
        };
        let differ: Vec<&Sibling> = self.siblings.iter().filter(disagrees).collect();
        let first = differ.first()?;
        let print = |key: Option<&[u8]>| {
            key.map_or_else(String::new, |key| format!("sha256:{}", short(key)))
        };
        let title = "service account keys are not the same on all control planes";
        let mut finding = Finding::new(SERVICE_ACCOUNTS, title).with_evidence(
            &verifying.file.path,
            format!("this node signs with {}", print(signing.first().copied())),
        );
        for sibling in &differ {
            let key = print(sibling.peer.service_accounts.signing_keys().next());
            let saw = format!(
                "{} signs with {key} (one cluster: {})",
                sibling.peer.shown(),
                sibling.kinship.words
            );
            finding = finding.with_evidence(&verifying.file.path, saw);
        }
        Some(
            finding
                .with_advice(
                    "A token that one API server issues is rejected by the other: pods fail at \
                     random, depending on which one answers.",
                )
                .with_advice(format!(
                    "Not mended: which pair signed the tokens that are in use cannot be seen from \
                     the disks. Find the control plane whose pods worked last; copy sa.key and \
                     sa.pub from it to the others (for example from {} to this node, or the other \
                     way round), or give every API server both public keys \
                     (--service-account-key-file twice).",
                    first.peer.shown()
                )),
        )
    }

    fn key(&self, path: &GuestPath) -> Option<PrivateKey> {
        PrivateKey::from_pem(&self.context.guest.read(path).ok()?).ok()
    }
}

fn certificate_file(state: &AuthorityState, holder: &Holder<'_>) -> SharedFile {
    SharedFile {
        path: state.certificate_path.clone(),
        content: holder.files.certificate.clone(),
        is_secret: false,
    }
}

fn key_file(state: &AuthorityState, holder: &Holder<'_>) -> SharedFile {
    SharedFile {
        path: state.key_path.clone(),
        content: holder.files.key.clone(),
        is_secret: true,
    }
}

fn blocked_words(state: &AuthorityState) -> String {
    match &state.signer {
        Err(Blocked::CertificateUnreadable(why) | Blocked::KeyUnreadable(why)) => why.clone(),
        Err(Blocked::NotAnAuthority) => "not a CA certificate".to_owned(),
        _ => "not there".to_owned(),
    }
}

/// What drift of a CA breaks.
fn means(authority: Authority) -> &'static str {
    match authority {
        Authority::Cluster => {
            "Components that trust one CA reject what the other signed: kubelets, kubectl and \
             controllers fail against one of the API servers."
        }
        Authority::FrontProxy => {
            "Aggregated API servers (metrics-server) accept requests from one API server and \
             reject the other's."
        }
        Authority::Etcd => {
            "etcd members with different CAs do not accept each other, and the API server does not \
             reach all of them."
        }
    }
}

/// Where else it stands which CA the cluster uses. Workers have the cluster's own only.
fn witness(state: &AuthorityState) -> String {
    let certificate = &state.certificate_path;
    match state.authority {
        Authority::Cluster => format!("The workers' {certificate} shows which CA the cluster uses"),
        Authority::FrontProxy => {
            "Where the cluster still answers, requestheader-client-ca-file in the ConfigMap \
             kube-system/extension-apiserver-authentication shows which CA it uses"
                .to_owned()
        }
        Authority::Etcd => {
            format!(
                "{certificate} of the members that etcd still has a quorum of shows which CA the \
                 cluster uses"
            )
        }
    }
}

/// `with_us`: control planes that hold what this one holds, itself included. `camps`: the others,
/// by what they hold.
fn what_to_do(state: &AuthorityState, with_us: usize, camps: &[Vec<&str>]) -> String {
    let (certificate, key) = (&state.certificate_path, &state.key_path);
    let steps = |names: &str| {
        format!(
            "copy {certificate} and {key} from {names} to the odd one by hand, then repair that \
             one: its leaves must be made anew"
        )
    };
    let largest = camps.iter().max_by_key(|camp| camp.len());
    match largest {
        Some(camp) if camp.len() > with_us => format!(
            "Not mended: a CA is never overwritten. {} agree, this node is the odd one: if the \
             cluster worked with theirs, {}.",
            camp.join(", "),
            steps(camp.first().copied().unwrap_or_default())
        ),
        Some(camp) if camp.len() < with_us && camps.len() == 1 => format!(
            "Not mended: a CA is never overwritten. This node agrees with {} others, {} is the odd \
             one: if the cluster worked with this one's, {}.",
            with_us - 1,
            camp.join(", "),
            steps("this node")
        ),
        _ => format!(
            "Not mended: a CA is never overwritten, and the disks do not say which is right. {}; \
             {}.",
            witness(state),
            steps("a control plane that has it")
        ),
    }
}

/// As `kubeadm join --discovery-token-ca-cert-hash` has it, shortened.
fn fingerprint(certificate: &Certificate) -> String {
    format!(
        "{}, sha256:{}",
        certificate.subject,
        short(&certificate.public_key_info)
    )
}

fn fingerprint_of(state: &AuthorityState) -> String {
    state.certificate().map(fingerprint).unwrap_or_default()
}

fn short(bytes: &[u8]) -> String {
    sha256_hex(bytes).chars().take(16).collect()
}
