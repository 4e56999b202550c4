//! The container runtime that the kubelet talks to.

use super::{Fact, Kubelet};
use crate::base::yaml;
use crate::guest::{Guest, GuestPath};
use crate::systemd::Unit;

/// By the kubelet's endpoint (flag, config, kubeadm's instance config since 1.32), else by the
/// units that are installed.
pub(super) fn find(guest: &Guest, kubelet: &Kubelet) -> Fact<String> {
    if let Some((endpoint, source)) = endpoint(guest, kubelet)
        && let Some(name) = by_endpoint(&endpoint)
    {
        return Fact::known(
            name.to_owned(),
            format!("{source} {}", endpoint.escape_debug()),
        );
    }
    // Without an endpoint the kubelet up to 1.23 used Docker by itself.
    let units = ["containerd", "crio", "docker"];
    let installed: Vec<(&str, String)> = units
        .into_iter()
        .filter_map(|name| {
            let unit = Unit::load(guest, &format!("{name}.service")).filter(|unit| !unit.masked)?;
            Some((name, unit.fragment?.to_string()))
        })
        .collect();
    match installed.as_slice() {
        [] => Fact::unknown(
            "no endpoint in the kubelet's flags or config, and no unit of a known runtime",
        ),
        [(name, path)] => Fact::known((*name).to_owned(), path),
        // Docker brings containerd with it.
        several => match several.iter().find(|(name, _)| *name == "docker") {
            Some((name, path)) => Fact::known((*name).to_owned(), path),
            None => several.first().map_or_else(
                || Fact::unknown(""),
                |(name, path)| Fact::known((*name).to_owned(), path),
            ),
        },
    }
}

/// The socket that the kubelet is told to use, and where that was read.
pub(crate) fn endpoint(guest: &Guest, kubelet: &Kubelet) -> Option<(String, String)> {
    let flag = "--container-runtime-endpoint";
    if let Some(value) = kubelet.flag(flag).filter(|value| !value.is_empty()) {
        return Some((value.to_owned(), format!("kubelet's {flag}")));
    }
    if kubelet.flag("--container-runtime") == Some("docker") {
        return Some((
            "docker.sock".to_owned(),
            "kubelet's --container-runtime".to_owned(),
        ));
    }
    let key = "containerRuntimeEndpoint";
    if let (Some(value), Some(path)) = (
        yaml::text_at(&kubelet.config, &[key]),
        &kubelet.config_path.value,
    ) && !value.is_empty()
    {
        return Some((value.to_owned(), format!("{path} {key}")));
    }
    let path = GuestPath::new("/var/lib/kubelet/instance-config.yaml");
    let config = yaml::parse(&guest.read(&path).ok()?).ok()?;
    Some((
        yaml::text_at(&config, &[key])?.to_owned(),
        format!("{path} {key}"),
    ))
}

fn by_endpoint(endpoint: &str) -> Option<&'static str> {
    let signs = [
        ("cri-dockerd", "cri-dockerd"),
        ("dockershim", "docker"),
        ("docker.sock", "docker"),
        ("containerd", "containerd"),
        ("crio", "cri-o"),
    ];
    signs
        .iter()
        .find(|(sign, _)| endpoint.contains(sign))
        .map(|(_, name)| *name)
}
