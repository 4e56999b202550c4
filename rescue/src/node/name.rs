//! The name of the Node object.

use x509_parser::pem::Pem;

use super::{Fact, Kubelet};
use crate::guest::{Guest, GuestPath};
use crate::kubeconfig::{Kubeconfig, Material};

/// The name in the kubelet's client certificate, else `--hostname-override`, else the host name in
/// lower case, as the kubelet itself takes it.
pub(super) fn find(guest: &Guest, kubelet: &Kubelet, hostname: &Fact<String>) -> Fact<String> {
    if let Some(fact) = from_certificate(guest, kubelet) {
        return fact;
    }
    if let Some(name) = kubelet
        .flag("--hostname-override")
        .filter(|name| !name.is_empty())
    {
        return Fact::known(
            crate::base::escaping::escape(&name.trim().to_lowercase()),
            "kubelet's --hostname-override",
        );
    }
    match &hostname.value {
        Some(name) => Fact::known(
            crate::base::escaping::escape(&name.trim().to_lowercase()),
            format!("{}, in lower case", hostname.source),
        ),
        None => {
            Fact::unknown("no kubelet client certificate, no --hostname-override, no /etc/hostname")
        }
    }
}

fn from_certificate(guest: &Guest, kubelet: &Kubelet) -> Option<Fact<String>> {
    let (pem, source) =
        inline_or_referenced(guest, kubelet).or_else(|| current_pem(guest, kubelet))?;
    let block = Pem::iter_from_buffer(&pem)
        .flatten()
        .find(|block| block.label == "CERTIFICATE")?;
    let certificate = block.parse_x509().ok()?;
    let name = certificate
        .subject()
        .iter_common_name()
        .filter_map(|name| name.as_str().ok())
        .find_map(|name| name.strip_prefix("system:node:"))?;
    (!name.is_empty()).then(|| Fact::known(name.to_owned(), source))
}

fn inline_or_referenced(guest: &Guest, kubelet: &Kubelet) -> Option<(Vec<u8>, String)> {
    let path = kubelet.kubeconfig.value.as_ref()?;
    let kubeconfig = Kubeconfig::parse(&guest.read(path).ok()?, path).ok()?;
    match &kubeconfig.current_user()?.certificate {
        Material::Inline(pem) => Some((pem.clone(), format!("{path} client-certificate-data"))),
        Material::File(file) => Some((guest.read(file).ok()?, file.to_string())),
        Material::None => None,
    }
}

fn current_pem(guest: &Guest, kubelet: &Kubelet) -> Option<(Vec<u8>, String)> {
    let path: GuestPath = kubelet
        .cert_dir
        .value
        .as_ref()?
        .join("kubelet-client-current.pem");
    Some((guest.read(&path).ok()?, path.to_string()))
}
