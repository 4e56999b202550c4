//! The units of the container runtime that the kubelet talks to.

use super::{Node, packages, runtime};
use crate::guest::Guest;

/// One unit that must run for the kubelet's endpoint to answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RuntimeUnit {
    /// Its names in the packages that are known, the usual one first.
    pub names: &'static [&'static str],
    /// The program it runs, without its folder.
    pub program: &'static str,
    /// Packages that bring it.
    pub packages: &'static [&'static str],
    /// Its own configuration: where one is there, the runtime was installed.
    pub configs: &'static [&'static str],
}

const CONTAINERD: RuntimeUnit = RuntimeUnit {
    names: &["containerd.service"],
    program: "containerd",
    packages: &["containerd.io", "containerd"],
    configs: &["/etc/containerd/config.toml"],
};
const DOCKER: RuntimeUnit = RuntimeUnit {
    names: &["docker.service"],
    program: "dockerd",
    packages: &["docker-ce", "docker.io", "moby-engine", "docker"],
    configs: &["/etc/docker/daemon.json"],
};
const CRI_DOCKER: RuntimeUnit = RuntimeUnit {
    names: &["cri-docker.service", "cri-dockerd.service"],
    program: "cri-dockerd",
    packages: &["cri-dockerd"],
    configs: &[],
};
const CRIO: RuntimeUnit = RuntimeUnit {
    names: &["crio.service", "cri-o.service"],
    program: "crio",
    packages: &["cri-o"],
    configs: &["/etc/crio/crio.conf", "/etc/crio/crio.conf.d"],
};

/// Ends of the endpoint and the units behind it. A containerd of k3s, of a snap or of dockerd
/// itself listens elsewhere.
const BY_SOCKET: [(&str, &[RuntimeUnit]); 5] = [
    ("/run/containerd/containerd.sock", &[CONTAINERD]),
    ("/cri-dockerd.sock", &[CRI_DOCKER, DOCKER]),
    ("dockershim.sock", &[DOCKER]),
    ("docker.sock", &[DOCKER]),
    ("/run/crio/crio.sock", &[CRIO]),
];

impl RuntimeUnit {
    /// What shows that the runtime was installed: the package with its database, or its
    /// configuration.
    pub fn installed_by(&self, guest: &Guest) -> Option<(String, String)> {
        let package = self.packages.iter().find_map(|package| {
            let (version, source) = packages::version(guest, package)?;
            Some((source, format!("package {package} {version} is installed")))
        });
        let config = || {
            let config = self
                .configs
                .iter()
                .find(|path| guest.exists(&(**path).into()))?;
            Some(((*config).to_owned(), "its configuration".to_owned()))
        };
        package.or_else(config)
    }
}

/// The units behind the kubelet's endpoint, with the endpoint and where it was read. Empty where
/// the endpoint is unknown or no package's. Without an endpoint the kubelet up to 1.23 used Docker
/// by itself, and from 1.27 on it uses containerd (SetDefaults_KubeletConfiguration in
/// pkg/kubelet/apis/config/v1beta1/defaults.go).
pub fn runtime_units(guest: &Guest, node: &Node) -> (&'static [RuntimeUnit], String) {
    let kubelet = &node.kubelet;
    let (endpoint, source) = match runtime::endpoint(guest, kubelet) {
        Some((endpoint, source)) => (endpoint, source),
        None => match node.kubelet_version.value.map(|version| version.minor) {
            Some(minor) if minor <= 23 => {
                ("docker.sock".to_owned(), "kubelet's default".to_owned())
            }
            Some(minor) if minor >= 27 => (
                "/run/containerd/containerd.sock".to_owned(),
                "kubelet's default".to_owned(),
            ),
            _ => return (&[], String::new()),
        },
    };
    let path = endpoint
        .trim_start_matches("unix:")
        .replace("/var/run/", "/run/");
    let path = path.trim_start_matches('/');
    let is_of = |end: &str| {
        let end = end.trim_start_matches('/');
        path == end || (!end.starts_with("run/") && path.ends_with(end))
    };
    let units = BY_SOCKET.iter().find(|(end, _)| is_of(end));
    let units = units.map_or(&[] as &[RuntimeUnit], |(_, units)| units);
    (units, format!("{source} {}", endpoint.escape_debug()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::MemoryTree;

    fn programs(arguments: &str) -> Vec<&'static str> {
        let unit = format!("[Service]\nExecStart=/usr/bin/kubelet {arguments}\n");
        let guest = MemoryTree::new()
            .file("/usr/lib/systemd/system/kubelet.service", unit)
            .into_guest();
        let (units, _) = runtime_units(&guest, &Node::read(&guest));
        units.iter().map(|unit| unit.program).collect()
    }

    #[test]
    fn the_endpoint_names_the_units() {
        let by = |endpoint: &str| programs(&format!("--container-runtime-endpoint={endpoint}"));
        assert_eq!(by("unix:///run/containerd/containerd.sock"), ["containerd"]);
        assert_eq!(by("/var/run/containerd/containerd.sock"), ["containerd"]);
        assert_eq!(
            by("unix:///var/run/cri-dockerd.sock"),
            ["cri-dockerd", "dockerd"]
        );
        assert_eq!(by("unix:///var/run/dockershim.sock"), ["dockerd"]);
        assert_eq!(by("unix:///var/run/crio/crio.sock"), ["crio"]);
        assert_eq!(programs("--container-runtime=docker"), ["dockerd"]);
    }

    #[test]
    fn sockets_of_others_and_unknown_ones_name_none() {
        let by = |endpoint: &str| programs(&format!("--container-runtime-endpoint={endpoint}"));
        assert!(by("unix:///run/k3s/containerd/containerd.sock").is_empty());
        assert!(by("unix:///run/docker/containerd/containerd.sock").is_empty());
        assert!(by("unix:///run/own.sock").is_empty());
        assert!(programs("").is_empty());
    }
}
