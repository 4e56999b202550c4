//! The CAs themselves, and why one of them cannot sign.

use super::{ID, Judge, date};
use crate::checks::{Finding, Severity};
use crate::guest::GuestPath;
use crate::pki::inventory::{AuthorityState, Blocked, Signer};
use crate::pki::profile::Authority;
use crate::units;
use time::Duration;

/// CAs live for ten years; a year before their end is the time to plan.
const CA_WARNING: Duration = Duration::days(365);

/// From here on everything that it signed is about to end with it.
const CA_ALARM: Duration = Duration::days(30);

impl Judge<'_> {
    /// With what to sign: the key on this node, else the same CA's key on another node of the run.
    pub(super) fn signer(&self, authority: Authority) -> Result<&Signer, String> {
        let state = self.inventory.authorities.get(&authority);
        let own = state.map(|state| state.signer.as_ref());
        if let Some(Ok(signer)) = own {
            return Ok(signer);
        }
        if let Some(found) = self.lent(authority) {
            return Ok(found.signer);
        }
        let is_workers = authority == Authority::Cluster && !self.is_control_plane();
        match (state, own) {
            (None | Some(_), None | Some(Err(Blocked::KeyMissing))) if is_workers => Err(self.worker_advice(state)),
            (Some(state), Some(Err(blocked))) => Err(self.advice(state, blocked)),
            _ => Err(format!("Not mended: there is no {} certificate on this node.", authority.name())),
        }
    }

    /// Why nothing can be signed, and what to bring.
    fn advice(&self, state: &AuthorityState, blocked: &Blocked) -> String {
        let (certificate, key) = (&state.certificate_path, &state.key_path);
        match blocked {
            Blocked::KeyMissing if self.is_control_plane() => format!(
                "Not mended: the key of the CA is not on this node ({key}); this cluster's CA is external, or its key is kept elsewhere. \
                 Bring the key (copy it to {key}, and take it away afterwards), or have the certificate signed where the key is."
            ),
            Blocked::KeyMissing => self.worker_advice(Some(state)),
            Blocked::KeyMismatch => format!(
                "Not mended: {key} does not match {certificate}, and what it signs would be rejected. Restore the pair from a backup \
                 or copy both from another control-plane node of this cluster."
            ),
            Blocked::KeyUnreadable(why) => format!(
                "Not mended: {key} cannot be used ({why}). Restore it from a backup or from another control-plane node of this cluster."
            ),
            Blocked::Expired(end) => format!(
                "Refused: the CA {certificate} itself expired {}, and nothing signed with it is accepted any more. A new CA must reach \
                 every node and every kubeconfig of the cluster; this version does not do that.",
                date(*end)
            ),
            Blocked::NotYetValid(begin) => format!(
                "Refused: the CA {certificate} is valid only from {}: one of the clocks is wrong. Say the right time with --now.",
                units::time(*begin)
            ),
            Blocked::NotAnAuthority => format!("Not mended: {certificate} is not a CA certificate."),
            Blocked::CertificateMissing => format!(
                "Not mended: {certificate} is missing. Copy it from another control-plane node of this cluster or from a backup."
            ),
            Blocked::CertificateUnreadable(why) => format!(
                "Not mended: {certificate} cannot be read ({why}). Copy it from another control-plane node of this cluster or from a backup."
            ),
        }
    }

    pub(super) fn authorities(&self) -> Vec<Finding> {
        self.inventory.authorities.values().filter_map(|state| self.authority(state)).collect()
    }

    fn authority(&self, state: &AuthorityState) -> Option<Finding> {
        let name = state.authority.name();
        let path = &state.certificate_path;
        let finding = |severity, what: String| Finding::new(ID, severity, format!("CA {name} {what}"));
        // An expired CA stops all TLS of a control plane. A worker's kubelet only needs to be able to read it.
        let full = if self.is_control_plane() { Severity::StopsBoot } else { Severity::WillBreak };
        let blocked = match &state.signer {
            Ok(_) => return self.ends_soon(state),
            Err(Blocked::KeyMissing) if !self.is_control_plane() => return self.ends_soon(state),
            Err(blocked) => blocked,
        };
        let (found, at, saw): (Finding, &GuestPath, String) = match blocked {
            Blocked::KeyMissing => {
                let note = finding(Severity::Note, "has no key on this node (external CA)".to_owned());
                return Some(note.with_evidence(&state.key_path, "not there"));
            }
            Blocked::Expired(end) => {
                let days = (self.now() - *end).whole_days();
                (
                    finding(full, format!("expired {} ({days} days ago)", date(*end))),
                    path,
                    format!("expired {}", units::time(*end)),
                )
            }
            Blocked::NotYetValid(begin) => {
                (finding(full, "is not yet valid".to_owned()), path, format!("valid only from {}", units::time(*begin)))
            }
            Blocked::KeyMismatch => (
                finding(Severity::WillBreak, "does not match its key".to_owned()),
                &state.key_path,
                format!("its public key is not that of {path}"),
            ),
            Blocked::KeyUnreadable(why) => {
                (finding(Severity::WillBreak, "has an unreadable key".to_owned()), &state.key_path, why.clone())
            }
            Blocked::NotAnAuthority => (
                finding(full, "is not a CA certificate".to_owned()),
                path,
                "basicConstraints or key usage forbid signing".to_owned(),
            ),
            Blocked::CertificateMissing => {
                (finding(Severity::StopsBoot, "is missing".to_owned()), path, "not there".to_owned())
            }
            Blocked::CertificateUnreadable(why) => {
                (finding(Severity::StopsBoot, "is unreadable".to_owned()), path, why.clone())
            }
        };
        Some(found.with_evidence(at, saw).with_advice(self.advice(state, blocked)))
    }

    fn ends_soon(&self, state: &AuthorityState) -> Option<Finding> {
        let certificate = state.certificate()?;
        let left = certificate.not_after - self.now();
        (left < CA_WARNING).then(|| {
            let title = format!(
                "CA {} expires {} (in {} days)",
                state.authority.name(),
                date(certificate.not_after),
                left.whole_days()
            );
            let severity = if left < CA_ALARM { Severity::WillBreak } else { Severity::Note };
            Finding::new(ID, severity, title)
                .with_evidence(
                    &state.certificate_path,
                    format!("{} expires {}", certificate.subject, units::time(certificate.not_after)),
                )
                .with_advice("Nothing that it signs can live longer. kubeadm does not renew CAs: plan its replacement.")
        })
    }
}
