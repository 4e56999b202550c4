//! authorities: the CAs themselves. One that is over or ends within a year is signed anew with its
//! own key when the user asks for it (`--renew-ca`), and every copy of it on the disk is exchanged.
//! kubeadm cannot do that. Where a renewed one is at hand already, on another node of the run or in
//! another file of this disk, it is taken without asking: there must be only one.

pub mod remedy;
use std::rc::Rc;
use time::{Duration, OffsetDateTime};

use super::certificates::authority::advice;
use super::certificates::date;
use crate::base::severity::Severity;
use crate::base::units;
use crate::checks::authorities::remedy::{Origin, RenewAuthority, ReplaceAuthorityCopy, Successor};
use crate::finding::{Check, Context, Finding, Mode};
use crate::guest::GuestPath;
use crate::node::Role;
use crate::pki::authority_copies::{self, CopyFile, Standing};
use crate::pki::inventory::{AuthorityState, Blocked, Signer};
use crate::pki::profile::Authority;
use crate::pki::renew_ca;
use crate::pki::x509::certificate::{Certificate, SignatureCheck};

const ID: &str = "authorities";

/// CAs live for ten years; a year before their end is the time to plan.
const CA_WARNING: Duration = Duration::days(365);

/// From here on everything that it signed is about to end with it.
const CA_ALARM: Duration = Duration::days(30);

const EXPIRED: Mode = Mode::stops_boot("authorities.expired", "a CA has expired")
    .why(
        "Every certificate that this CA has signed is refused, whatever its own time: \
    \"certificate has expired or is not yet valid\".",
    )
    .done(
        "With `--renew-ca` the CA is signed anew with its own key, so that what it has \
    signed stays good, and every copy on the disk is exchanged. Other nodes hold copies, \
    too: they are named.",
    )
    .source("crypto/x509 (Certificate.Verify); docs/certificates.md");
const EXPIRING: Mode = Mode::will_break("authorities.expiring", "a CA ends within a year")
    .why(
        "When the CA ends, every certificate that it has signed ends with it. kubeadm's CAs \
    last ten years.",
    )
    .done("With `--renew-ca` the CA is signed anew with its own key.")
    .source("cmd/kubeadm/app/phases/certs; docs/certificates.md");
const UNUSABLE: Mode = Mode::stops_boot(
    "authorities.unusable",
    "a CA certificate is missing, damaged, or no CA certificate",
)
.why(
    "The processes that trust this CA read its file at their start and exit where it \
    holds no CA certificate: \"unable to load client CA file\", \"failed to load root \
    CA\".",
)
.done(
    "Copies it from where the same certificate stands on the disk, as in a kubeconfig, \
    where a key or a signature proves that it is the cluster's. Else says from which \
    node to copy it.",
)
.source("k8s.io/client-go/util/cert (NewPool); dynamiccertificates");
const KEY: Mode = Mode::will_break(
    "authorities.key",
    "the key of a CA is missing, damaged, or belongs to another certificate",
)
.why(
    "Nothing can be signed with this CA: no certificate can be renewed on this node, and \
    kube-controller-manager signs no kubelet's request.",
)
.done(
    "Nothing is changed here. With the disk of another control plane in the same run \
    (`rescue repair A B`) the key is copied from it.",
)
.source("cmd/kubeadm/app/util/pkiutil; kube-controller-manager's --cluster-signing-key-file");
const OLDER_COPY: Mode = Mode::will_break(
    "authorities.older-copy",
    "a file holds an older certificate of a CA that was renewed",
)
.why(
    "The CA was renewed, and this copy was not exchanged: who trusts the copy fails when \
    its old time ends.",
)
.done("With `--renew-ca` the copies are exchanged together with the CA.")
.source("docs/certificates.md");
const BUNDLE: Mode = Mode::will_break(
    "authorities.bundle",
    "the CA file that kube-controller-manager signs with holds several certificates",
)
.why(
    "kube-controller-manager reads exactly one certificate to sign with. With more it \
    exits: \"error reading CA cert file\". The API server and the kubelet accept a \
    bundle.",
)
.done(
    "Names the file and the lines to type: one file to sign with, the bundle for those \
    who only trust.",
)
.source(
    "NewDynamicCASigner / pki.NewCA in pkg/controller/certificates/signer; \
    https://github.com/kubernetes/kubernetes/issues/96101",
)
.logged(&["error reading CA cert file"]);

/// See the module.
pub const CHECK: Check = Check {
    id: ID,
    about: "CAs that are over, end within a year, or cannot sign; with --renew-ca signs them anew \
        with their own keys and exchanges every copy on the disk",
    modes: &[EXPIRED, EXPIRING, UNUSABLE, KEY, OLDER_COPY, BUNDLE],
    roles: &[],
    after: &["shared-keys"],
    run,
};

fn run(context: &Context<'_>) -> anyhow::Result<Vec<Finding>> {
    if let Some(Role::OtherDistribution | Role::NotKubernetes) = context.node.role.value {
        return Ok(Vec::new());
    }
    let inventory = context.inventory();
    let copies = authority_copies::find(context.guest, context.node);
    let is_control_plane =
        context.node.role.value == Some(Role::ControlPlane) || !inventory.leaves.is_empty();
    let judge = Judge {
        context,
        copies: &copies,
        is_control_plane,
    };
    let mut findings: Vec<Finding> = inventory
        .authorities
        .values()
        .flat_map(|state| judge.authority(state))
        .collect();
    findings.sort_by_key(|finding| std::cmp::Reverse(finding.severity));
    Ok(findings)
}

struct Judge<'a> {
    context: &'a Context<'a>,
    copies: &'a [CopyFile],
    is_control_plane: bool,
}

impl Judge<'_> {
    fn now(&self) -> OffsetDateTime {
        self.context.settings.now
    }

    fn authority(&self, state: &AuthorityState) -> Vec<Finding> {
        let mut findings: Vec<Finding> = self.is_bundle_for_signing(state).into_iter().collect();
        match &state.signer {
            Ok(_) => {}
            Err(Blocked::Expired(_)) => {}
            Err(Blocked::KeyMissing) if !self.is_control_plane => {}
            Err(blocked) => findings.push(self.blocked(state, blocked)),
        }
        if matches!(
            state.signer,
            Ok(_) | Err(Blocked::Expired(_) | Blocked::KeyMissing)
        ) {
            findings.extend(self.dates(state).or_else(|| self.older_copies(state)));
        }
        findings
    }

    /// What has nothing to do with the CA's end.
    fn blocked(&self, state: &AuthorityState, blocked: &Blocked) -> Finding {
        let path = &state.certificate_path;
        // A CA that nobody accepts stops all TLS of a control plane. A worker's kubelet only needs
        // to be able to read it.
        let full = if self.is_control_plane {
            Severity::StopsBoot
        } else {
            Severity::WillBreak
        };
        let (severity, what, at, saw) = match blocked {
            Blocked::KeyMissing => {
                let what = "has no key on this node (external CA)";
                return finding(KEY, state, Severity::Note, what)
                    .with_evidence(&state.key_path, "not there");
            }
            Blocked::Expired(end) => (
                full,
                "is over",
                path,
                format!("expired {}", units::time(*end)),
            ),
            Blocked::NotYetValid(begin) => (
                full,
                "is not yet valid",
                path,
                format!("valid only from {}", units::time(*begin)),
            ),
            Blocked::KeyMismatch => {
                let saw = format!("its public key is not that of {path}");
                (
                    Severity::WillBreak,
                    "does not match its key",
                    &state.key_path,
                    saw,
                )
            }
            Blocked::KeyUnreadable(why) => (
                Severity::WillBreak,
                "has an unreadable key",
                &state.key_path,
                why.clone(),
            ),
            Blocked::NotAnAuthority => {
                let saw = "basicConstraints or key usage forbid signing".to_owned();
                (full, "is not a CA certificate", path, saw)
            }
            Blocked::CertificateMissing => (
                Severity::StopsBoot,
                "is missing",
                path,
                "not there".to_owned(),
            ),
            Blocked::CertificateUnreadable(why) => {
                (Severity::StopsBoot, "is unreadable", path, why.clone())
            }
        };
        let advice = advice(state, blocked, self.context.settings);
        let mode = match blocked {
            Blocked::KeyMissing | Blocked::KeyMismatch | Blocked::KeyUnreadable(_) => KEY,
            Blocked::Expired(_) => EXPIRED,
            _ => UNUSABLE,
        };
        finding(mode, state, severity, what)
            .with_evidence(at, saw)
            .with_advice(advice)
    }

    /// The CA's own end, and what can be done about it.
    fn dates(&self, state: &AuthorityState) -> Option<Finding> {
        let own = own(state);
        let old = own
            .iter()
            .find(|old| self.ends_soon(old) && self.later(old).is_some());
        let old = *old.or(own.first()).filter(|old| self.ends_soon(old))?;
        let left = old.not_after - self.now();
        let end = date(old.not_after);
        let full = if self.is_control_plane {
            Severity::StopsBoot
        } else {
            Severity::WillBreak
        };
        let (severity, what) = if old.not_after < self.now() {
            (
                full,
                format!("expired {end} ({} days ago)", -left.whole_days()),
            )
        } else {
            let severity = if left < CA_ALARM {
                Severity::WillBreak
            } else {
                Severity::Note
            };
            (
                severity,
                format!("expires {end} (in {} days)", left.whole_days()),
            )
        };
        let mode = if old.not_after < self.now() {
            EXPIRED
        } else {
            EXPIRING
        };
        let found = finding(mode, state, severity, &what).with_evidence(
            &state.certificate_path,
            format!("{} ends {}", old.subject, units::time(old.not_after)),
        );
        Some(match self.successor(state, old) {
            Ok(successor) => self.with_remedies(found, successor),
            Err(advice) => found.with_advice(advice),
        })
    }

    fn ends_soon(&self, certificate: &Certificate) -> bool {
        certificate.not_after - self.now() < CA_WARNING
    }

    /// Copies of a CA that was renewed in its own file only.
    fn older_copies(&self, state: &AuthorityState) -> Option<Finding> {
        let certificate = own(state)
            .into_iter()
            .find(|own| !self.copies_older_than(state, own).is_empty())?;
        let successor = Successor {
            authority: state.authority,
            path: state.certificate_path.clone(),
            old: certificate.clone(),
            origin: Origin::Found {
                certificate: Box::new(certificate.clone()),
                at: state.certificate_path.to_string(),
            },
        };
        let older = self.copies_older_than(state, certificate);
        let ages = || {
            older.iter().flat_map(|copy| {
                copy.certificates
                    .iter()
                    .filter(|old| old.is_same_authority(certificate))
            })
        };
        let is_over = ages().any(|old| old.not_after < self.now());
        let severity = if is_over {
            Severity::WillBreak
        } else {
            Severity::Note
        };
        let mut found = finding(
            OLDER_COPY,
            state,
            severity,
            "was renewed, but not every copy of it on this disk",
        );
        for copy in &older {
            let oldest = copy
                .certificates
                .iter()
                .filter(|old| old.is_same_authority(certificate))
                .map(|old| old.not_after);
            let end = oldest.min().map_or_else(String::new, |end| {
                format!("holds the one that ends {}", units::time(end))
            });
            found = found.with_evidence(&copy.path, end);
        }
        Some(self.with_remedies(found, successor))
    }

    fn copies_older_than(&self, state: &AuthorityState, new: &Certificate) -> Vec<&CopyFile> {
        let own = self.context.guest.resolve(&state.certificate_path).ok();
        let is_older =
            |old: &Certificate| old.is_same_authority(new) && old.not_after < new.not_after;
        self.copies
            .iter()
            .filter(|copy| {
                copy.standing == Standing::InUse
                    && self.context.guest.resolve(&copy.path).ok() != own
            })
            .filter(|copy| {
                copy.certificates
                    .iter()
                    .any(|old| is_older(old) && self.ends_soon(old))
            })
            .collect()
    }

    fn with_remedies(&self, mut found: Finding, successor: Successor) -> Finding {
        let guest = self.context.guest;
        let successor = Rc::new(successor);
        let own = guest.resolve(&successor.path).ok();
        let is_own = matches!(
            &successor.origin,
            Origin::Found { certificate, .. } if **certificate == successor.old
        );
        if !is_own {
            found = found.with_remedy(RenewAuthority {
                successor: Rc::clone(&successor),
                now: self.now(),
            });
        }
        let mut left: Vec<String> = Vec::new();
        for copy in self.copies {
            let older = |old: &&Certificate| {
                old.is_same_authority(&successor.old) && old.not_after < successor.not_after()
            };
            if guest.resolve(&copy.path).ok() == own
                || copy.certificates.iter().find(older).is_none()
            {
                continue;
            }
            match copy.standing {
                Standing::InUse => {
                    let (successor, path) = (Rc::clone(&successor), copy.path.clone());
                    found = found.with_remedy(ReplaceAuthorityCopy { successor, path });
                }
                Standing::Backup => left.push(format!("{} (a backup)", copy.path)),
                Standing::Generated => left.push(format!(
                    "{} (made by update-ca-certificates or update-ca-trust: run it after boot)",
                    copy.path
                )),
            }
        }
        if !left.is_empty() {
            found = found.with_advice(format!("Left as it is: {}.", left.join(", ")));
        }
        found
    }

    /// A later certificate of the same authority that somebody made already, the latest of several;
    /// of two that end together always the same one, whatever the order of the disks.
    fn later(&self, old: &Certificate) -> Option<(&Certificate, String)> {
        let peers = self.context.peers.iter().flat_map(|peer| {
            let at = format!("node {} ({})", peer.name, peer.source);
            let certificates = peer
                .authorities
                .values()
                .flat_map(|other| other.certificates.iter().chain(&other.trusted));
            certificates.map(move |certificate| (certificate, at.clone()))
        });
        let copies = self.copies.iter().flat_map(|copy| {
            copy.certificates
                .iter()
                .map(|certificate| (certificate, copy.path.to_string()))
        });
        peers
            .chain(copies)
            .filter(|(new, _)| {
                new.is_same_authority(old) && new.not_after > old.not_after && !self.ends_soon(new)
            })
            // A hostile disk can bring no such certificate without the CA's key.
            .filter(|(new, _)| new.signed_by(new) == SignatureCheck::Valid && new.may_sign())
            .filter(|(new, _)| {
                new.subject_key_id == old.subject_key_id && new.not_before <= self.now()
            })
            .max_by(|(a, _), (b, _)| (a.not_after, &b.der).cmp(&(b.not_after, &a.der)))
    }

    /// What replaces `old`, or why nothing does and what to bring.
    fn successor(&self, state: &AuthorityState, old: &Certificate) -> Result<Successor, String> {
        let successor = |origin| Successor {
            authority: state.authority,
            path: state.certificate_path.clone(),
            old: old.clone(),
            origin,
        };
        if let Some((new, at)) = self.later(old) {
            return Ok(successor(Origin::Found {
                certificate: Box::new(new.clone()),
                at,
            }));
        }
        let (certificate, key) = (&state.certificate_path, &state.key_path);
        if !old.is_self_signed() {
            return Err(format!(
                "Not renewed here: {certificate} was issued by {}, not by itself. Only that CA can \
                 renew it: have it sign a new certificate for the same key and the same subject, \
                 put it into {certificate}, and run this again; its copies are then exchanged.",
                old.issuer
            ));
        }
        if !self.is_control_plane {
            return Err(self.worker_advice(old));
        }
        let Some(ca) = &state.pair else {
            return Err(format!(
                "Not renewed: its key is not on this node ({key}). Bring the key (copy it to \
                 {key}, and take it away afterwards), or have the CA renewed where the key is \
                 (same key, same subject), put the new certificate into {certificate}, and run \
                 this again: its copies are then exchanged. The disk of a control plane that has \
                 the key may also be given in the same run."
            ));
        };
        if !self.context.settings.renew_ca {
            return Err(format!(
                "kubeadm does not renew CAs. `rescue repair SRC --renew-ca` signs it anew with its \
                 own key (same key, same name, a later end), so that all it signed stays good, and \
                 exchanges every copy on this disk ({} found); every other node needs it too, so \
                 give all disks in that run.",
                self.copies_of(old)
            ));
        }
        let end = renew_ca::end(self.now(), self.context.settings.ca_days)
            .filter(|end| *end > old.not_after);
        let Some(not_after) = end else {
            return Err(
                "Not renewed: it would not end later. Give more days with --ca-days.".to_owned(),
            );
        };
        Ok(successor(Origin::Made {
            ca: Box::new(ca.clone()),
            not_after,
            made: Box::default(),
        }))
    }

    fn copies_of(&self, old: &Certificate) -> usize {
        let is_copy = |copy: &&CopyFile| {
            copy.certificates
                .iter()
                .any(|other| other.is_same_authority(old))
        };
        self.copies
            .iter()
            .filter(|copy| copy.standing == Standing::InUse)
            .filter(is_copy)
            .count()
    }

    fn worker_advice(&self, old: &Certificate) -> String {
        let holder = self.context.peers.iter().find(|peer| {
            let mut pairs = peer
                .authorities
                .values()
                .filter_map(|other| other.pair.as_ref());
            pairs.any(|pair| pair.certificate.is_same_authority(old))
        });
        match holder {
            Some(peer) if self.context.settings.renew_ca => {
                format!(
                    "Exchanged here as soon as node {} ({}) is repaired in this run.",
                    peer.name, peer.source
                )
            }
            Some(peer) => format!(
                "Its key is on node {} ({}): add --renew-ca to the repair of both, and this node \
                 gets the renewed CA too.",
                peer.name, peer.source
            ),
            None => "A worker has no CA key. Give the disk of a control plane of its cluster in \
                the same run, before or after its CA was renewed: `rescue repair CONTROL-PLANE \
                WORKER --renew-ca`."
                .to_owned(),
        }
    }

    /// kube-controller-manager insists on one certificate in the file that it signs with ("expected
    /// 1 certificate, found N": pkg/controller/certificates/signer/ca_provider.go), though
    /// everybody else reads bundles.
    fn is_bundle_for_signing(&self, state: &AuthorityState) -> Option<Finding> {
        let pod = self.context.node.static_pod("kube-controller-manager")?;
        let file = pod.flag("--cluster-signing-cert-file")?;
        let number = state.certificates.len();
        let is_this =
            state.authority == Authority::Cluster && state.certificate_path.to_string() == file;
        (is_this && number > 1).then(|| {
            let what = format!("is a bundle of {number} certificates");
            finding(BUNDLE, state, Severity::WillBreak, &what)
                .with_evidence(&pod.path, format!("--cluster-signing-cert-file={file}"))
                .with_advice(format!(
                    "kube-controller-manager from 1.19 on exits at its start (\"expected 1 \
                     certificate, found {number}\"): no controller of this node runs.",
                ))
                .with_advice(signing_file_by_hand(state, &pod.path))
        })
    }
}

/// What to type for a file with only the certificate that the CA's key belongs to.
fn signing_file_by_hand(state: &AuthorityState, manifest: &GuestPath) -> String {
    let (file, key) = (&state.certificate_path, &state.key_path);
    let signing = file.parent().join("ca-signing.crt");
    let is_own = |pair: &Signer| {
        let mut certificates = state.certificates.iter();
        certificates.position(|certificate| *certificate == pair.certificate)
    };
    let Some(index) = state.pair.as_ref().and_then(is_own) else {
        return format!(
            "Put the certificate that {key} belongs to alone into {signing}, and set \
             --cluster-signing-cert-file={signing} in {manifest}."
        );
    };
    let number = index + 1;
    format!(
        "{key} belongs to certificate {number} of {file}. Put it alone into a file:\n\
         awk '/BEGIN CERT/{{n++}} n=={number}' {file} > {signing}\n\
         Then set --cluster-signing-cert-file={signing} in {manifest}."
    )
}

/// The certificate that the key belongs to; where there is no key, all that the file holds.
fn own(state: &AuthorityState) -> Vec<&Certificate> {
    match &state.pair {
        Some(pair) => vec![&pair.certificate],
        None => state.certificates.iter().collect(),
    }
}

fn finding(mode: Mode, state: &AuthorityState, severity: Severity, what: &str) -> Finding {
    Finding::new(mode, format!("CA {} {what}", state.authority.name())).with_severity(severity)
}
