//! Kubernetes' own files: kubeconfigs, other YAML, certificates and keys.

use crate::base::yaml;
use crate::guest::GuestPath;
use crate::kubeconfig::{Kubeconfig, Material, edit};
use crate::pki::csr;
use crate::pki::x509::certificate::Certificate;
use crate::pki::x509::key::PrivateKey;
use crate::pki::x509::pem;

/// A user's name, then a kubeconfig: what is edited holds the new credentials, and everything else
/// as it was.
pub fn kubeconfig_edits(data: &[u8]) {
    let [text, name] = super::parts(data);
    let path = GuestPath::new("/etc/kubernetes/admin.conf");
    let before = Kubeconfig::parse(text, &path).ok();
    let asked = std::str::from_utf8(name).unwrap_or_default().to_owned();
    let current = before
        .as_ref()
        .and_then(Kubeconfig::current_user)
        .map(|user| user.name.clone());
    let file = GuestPath::new("/var/lib/kubelet/pki/kubelet-client-current.pem");
    for user in current.into_iter().chain([asked]) {
        let (certificate, key) = (b"a new certificate".as_slice(), b"a new key".as_slice());
        let inline = edit::replace_credentials(
            text,
            &user,
            edit::NewMaterial::Inline(certificate),
            edit::NewMaterial::Inline(key),
        );
        let by_file = edit::replace_credentials(
            text,
            &user,
            edit::NewMaterial::File(&file),
            edit::NewMaterial::File(&file),
        );
        for edited in [inline, by_file].into_iter().flatten() {
            check(before.as_ref(), &edited, &user, &path);
        }
        let _ = edit::replace_authority(text, &user, certificate);
    }
}

fn check(before: Option<&Kubeconfig>, edited: &[u8], user: &str, path: &GuestPath) {
    let Some(before) = before else { return };
    let after = Kubeconfig::parse(edited, path).expect("what was edited can be read");
    assert_eq!(before.users.len(), after.users.len(), "users came or went");
    assert_eq!(
        (&before.contexts, &before.current_context),
        (&after.contexts, &after.current_context)
    );
    let entry = after
        .users
        .iter()
        .find(|entry| entry.name == user)
        .expect("the user is there still");
    assert!(!entry.both_specified, "clientcmd refuses this");
    assert!(
        !matches!(entry.certificate, Material::None),
        "the new certificate is not there"
    );
}

/// YAML: one document and several.
pub fn yaml_documents(data: &[u8]) {
    let _ = yaml::parse(data);
    let _ = yaml::parse_all(data);
}

/// PEM, certificates, requests, keys. Never a word of a key in an error.
pub fn certificates(data: &[u8]) {
    for (block, range) in pem::located(data) {
        assert!(
            range.end <= data.len() && !block.label.contains('\n'),
            "a block out of bounds"
        );
        if let Err(error) = Certificate::from_der(&block.der) {
            super::shown::text(&format!("{error:#}"));
        }
    }
    for certificate in Certificate::all_from_pem(data).into_iter().flatten() {
        for text in [&certificate.subject, &certificate.issuer] {
            super::shown::text(text);
        }
        let again = Certificate::all_from_pem(certificate.to_pem().as_bytes())
            .expect("what was written is read");
        assert_eq!(
            again.first().map(|again| &again.der),
            Some(&certificate.der)
        );
        let _ = (
            certificate.signed_by(&certificate),
            certificate.is_self_signed(),
            certificate.may_sign(),
        );
    }
    // DER without its coat: mutations then reach the parser more often.
    let _ = Certificate::from_der(data);
    if let Err(error) = csr::read(data) {
        super::shown::text(&format!("{error:#}"));
    }
    if let Err(error) = PrivateKey::from_pem(data) {
        super::shown::text(&format!("{error:#}"));
    }
}
