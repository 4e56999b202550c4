//! Why a CA cannot sign, and what to bring.

use crate::base::shell;
use std::path::Path;

use super::worker::Signing;
use super::{Judge, date};
use crate::base::units;
use crate::pki::inventory::{AuthorityState, Blocked, Signer};
use crate::pki::kubelet::KubeletClient;
use crate::pki::profile::Authority;
use crate::pki::x509::pem;
use crate::settings::Settings;
use crate::typed;

impl Judge<'_> {
    /// With what to sign a leaf: the key on this node, else the same CA's key on another node of
    /// the run.
    pub(super) fn leaf_signer(&self, authority: Authority) -> Result<Signing<'_>, String> {
        match self.own_signer(authority) {
            Some(signer) => Ok(Signing::own(signer)),
            None => self
                .lent_for_leaf(authority)
                .unwrap_or_else(|| Err(self.no_signer(authority))),
        }
    }

    /// With what to sign the kubelet's client certificate.
    ///
    /// # Errors
    /// Why not; `None` where a key is at hand and the node's name is not known.
    pub(super) fn kubelet_signer(
        &self,
        client: &KubeletClient,
    ) -> Result<Signing<'_>, Option<String>> {
        if let Some(signer) = self.own_signer(Authority::Cluster) {
            return Ok(Signing::own(signer));
        }
        if client.node_name.is_err() && !self.lenders(Authority::Cluster).is_empty() {
            return Err(None);
        }
        let lent = self.lent_for_kubelet(client);
        lent.unwrap_or_else(|| Err(self.no_signer(Authority::Cluster)))
            .map_err(Some)
    }

    fn own_signer(&self, authority: Authority) -> Option<&Signer> {
        self.inventory
            .authorities
            .get(&authority)?
            .signer
            .as_ref()
            .ok()
    }

    pub(super) fn no_signer(&self, authority: Authority) -> String {
        let state = self.inventory.authorities.get(&authority);
        let own = state.map(|state| state.signer.as_ref());
        let is_workers = authority == Authority::Cluster && !self.is_control_plane();
        match (state, own) {
            (None | Some(_), None | Some(Err(Blocked::KeyMissing))) if is_workers => {
                self.worker_advice(state)
            }
            (Some(state), Some(Err(blocked @ Blocked::KeyMissing))) => format!(
                "{}\nWith the disk of a node of this cluster that has the key, which is only read: \
                 rescue repair --node {} {} DISK",
                advice(state, blocked, self.context.settings),
                shell::quoted(Path::new(&self.context.guest.source)),
                typed::guest(self.context.guest)
            ),
            (Some(state), Some(Err(blocked))) => advice(state, blocked, self.context.settings),
            _ => format!(
                "Not mended: there is no {} certificate on this node.",
                authority.name()
            ),
        }
    }
}

/// Why nothing can be signed, and what to bring.
pub(in crate::checks) fn advice(
    state: &AuthorityState,
    blocked: &Blocked,
    settings: &Settings,
) -> String {
    let (certificate, key) = (&state.certificate_path, &state.key_path);
    let (path, why) = match blocked {
        Blocked::CertificateUnreadable(why) => (certificate, why.as_str()),
        Blocked::KeyUnreadable(why) => (key, why.as_str()),
        _ => (key, ""),
    };
    if let Some(line) = pem::cure(why, path) {
        return format!(
            "Not mended: {path} cannot be used ({why}). Mount the disk (or use the node itself) \
             and type there, with the folder of the mount before the path: {line}\n\
             Then run this again."
        );
    }
    match blocked {
        Blocked::KeyMissing => format!(
            "Not mended: the key of the CA is not on this node ({key}); this cluster's CA is \
             external, or its key is kept elsewhere. Bring the key (copy it to {key}, and take it \
             away afterwards), or have the certificate signed where the key is."
        ),
        Blocked::KeyMismatch => format!(
            "Not mended: {key} does not match {certificate}, and what it signs would be rejected. \
             Restore the pair from a backup or copy both from another control-plane node of this \
             cluster."
        ),
        Blocked::KeyUnreadable(why) => format!(
            "Not mended: {key} cannot be used ({why}). Restore it from a backup, or give the disk \
             of another control-plane node of this cluster in the same run: it is copied from \
             there."
        ),
        Blocked::Expired(_) if settings.renew_ca && state.pair.is_some() => {
            "Renewed after its CA, in the same plan.".to_owned()
        }
        Blocked::Expired(end) => format!(
            "Refused: the CA {certificate} itself expired {}, and nothing signed with it is \
             accepted any more. Once that CA is renewed this is mended with it: see the finding \
             about the CA.",
            date(*end)
        ),
        Blocked::NotYetValid(begin) => format!(
            "Refused: the CA {certificate} is valid only from {}. Either this machine's clock is \
             behind, or the CA was made with a clock that was ahead. Say the right time with --now, \
             or wait until then.",
            units::time(*begin)
        ),
        Blocked::NotAnAuthority => format!(
            "Not mended: {certificate} is not a CA certificate: it lacks basicConstraints CA:TRUE, \
             or its key usage lacks keyCertSign, and kubeadm and every TLS client refuse what such \
             a certificate signs. Bring the cluster's real CA from a backup or from another \
             control-plane node."
        ),
        Blocked::CertificateMissing => format!(
            "Not mended: {certificate} is missing. Restore it from a backup, or give the disk of \
             another control-plane node of this cluster in the same run: it is copied from there."
        ),
        Blocked::CertificateUnreadable(why) => format!(
            "Not mended: {certificate} cannot be read ({why}). Restore it from a backup, or give \
             the disk of another control-plane node of this cluster in the same run: it is copied \
             from there."
        ),
    }
}
