//! Which file of the node is named by whom: the static pods' flags and probes, the kubelet,
//! kubeconfigs, etcd outside of Kubernetes, the network plugin. What nobody names is not in use,
//! whatever it is called.

use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

use super::kubelet_serving::{self, OwnPair};
use super::profile::CONFIGS;
use super::x509::certificate::printable;
use crate::base::yaml;
use crate::guest::{Guest, GuestPath, RealPath};
use crate::kubeconfig::{Kubeconfig, Material};
use crate::node::{Node, StaticPod};
use crate::systemd::Unit;
use crate::tree::FileKind;

/// Settings of an etcd that runs as a service: kubespray's, the packages'.
const ETCD_SETTINGS: [&str; 3] = ["/etc/etcd.env", "/etc/etcd/etcd.conf", "/etc/default/etcd"];

/// Where network plugins keep their settings; Calico with etcd names the client certificate there.
const NETWORK_PLUGINS: &str = "/etc/cni/net.d";

/// More files than any such folder has.
const MAX_FILES: usize = 100;

/// More references than any node has: a hostile file may name thousands.
const MAX_REFERENCES: usize = 5_000;

/// The kubelet keeps by itself what it uses there.
pub(super) const STORE: &str = "kubelet, its certificate store";

/// Regular files that something on the node names, and who does.
#[derive(Debug, Clone, Default)]
pub(super) struct References {
    users: BTreeMap<RealPath, Named>,
    count: usize,
}

/// One file.
#[derive(Debug, Clone)]
pub(super) struct Named {
    /// As it was named first.
    pub(super) path: GuestPath,
    /// `kube-apiserver --tls-cert-file`, `kubelet.conf client-certificate`.
    pub(super) users: BTreeSet<String>,
}

impl References {
    /// Reads all of them. What cannot be read names nothing.
    pub(super) fn read(guest: &Guest, node: &Node) -> Self {
        let mut found = Self::default();
        for pod in &node.static_pods {
            found.pod(guest, pod);
        }
        found.kubelet(guest, node);
        found.kubeconfigs(guest, node);
        found.etcd_service(guest);
        found.network_plugins(guest);
        found
    }

    /// Who names the file that `path` leads to.
    pub(super) fn users(&self, guest: &Guest, path: &GuestPath) -> Vec<String> {
        let named = guest
            .resolve(path)
            .ok()
            .and_then(|real| self.users.get(&real));
        named
            .map(|named| named.users.iter().cloned().collect())
            .unwrap_or_default()
    }

    /// All files.
    pub(super) fn files(&self) -> impl Iterator<Item = (&RealPath, &Named)> {
        self.users.iter()
    }

    fn add(&mut self, guest: &Guest, path: &GuestPath, user: impl Into<String>) {
        self.count += 1;
        if self.count > MAX_REFERENCES {
            return;
        }
        let Ok(real) = guest.resolve(path) else {
            return;
        };
        if guest
            .tree()
            .lstat(real.as_path())
            .is_ok_and(|meta| meta.kind == FileKind::Regular)
        {
            let named = self.users.entry(real);
            let named = named.or_insert_with(|| Named {
                path: path.clone(),
                users: BTreeSet::new(),
            });
            named.users.insert(printable(&user.into()));
        }
    }

    fn flags(&mut self, guest: &Guest, program: &str, flags: &[(String, String)]) {
        for (flag, value) in flags {
            for path in paths_in(flag, value) {
                self.add(guest, &path, format!("{program} {flag}"));
            }
        }
    }

    fn pod(&mut self, guest: &Guest, pod: &StaticPod) {
        self.flags(guest, &pod.name, &pod.flags);
        let Some(manifest) = guest
            .read(&pod.path)
            .ok()
            .and_then(|bytes| yaml::parse(&bytes).ok())
        else {
            return;
        };
        let containers = manifest
            .pointer("/spec/containers")
            .and_then(Value::as_array);
        for container in containers.into_iter().flatten() {
            // kubeadm up to 1.16 lets etcd's probe use the health check's certificate.
            for probe in ["livenessProbe", "readinessProbe", "startupProbe"] {
                let mut lines = Vec::new();
                if let Some(command) = container
                    .get(probe)
                    .and_then(|probe| probe.pointer("/exec/command"))
                {
                    strings(command, "", &mut lines);
                }
                for (_, line) in lines {
                    self.command_line(guest, &format!("{} {probe}", pod.name), &line);
                }
            }
        }
    }

    /// `--cert=/path` anywhere in a shell's line.
    fn command_line(&mut self, guest: &Guest, program: &str, line: &str) {
        for word in line.split_whitespace() {
            if let Some((flag, value)) = word
                .split_once('=')
                .filter(|(flag, _)| flag.starts_with("--"))
            {
                self.flags(guest, program, &[(flag.to_owned(), value.to_owned())]);
            }
        }
    }

    fn kubelet(&mut self, guest: &Guest, node: &Node) {
        let kubelet = &node.kubelet;
        self.flags(guest, "kubelet", &kubelet.flags);
        let mut settings = Vec::new();
        strings(&kubelet.config, "", &mut settings);
        for (key, value) in settings.iter().filter(|(_, value)| value.starts_with('/')) {
            self.add(
                guest,
                &GuestPath::new(value),
                format!("kubelet config {key}"),
            );
        }
        if let Some(folder) = &kubelet.cert_dir.value {
            self.add(guest, &folder.join("kubelet-client-current.pem"), STORE);
            if kubelet_serving::asks_the_cluster(node) {
                self.add(guest, &kubelet_serving::asked_for(node), STORE);
            }
            if let Some(pair) = OwnPair::of(node) {
                self.add(guest, &pair.certificate, "kubelet, to serve");
                self.add(guest, &pair.key, "kubelet, to serve");
            }
        }
    }

    fn kubeconfigs(&mut self, guest: &Guest, node: &Node) {
        let kubernetes = GuestPath::new("/etc/kubernetes");
        let mut configs: BTreeSet<GuestPath> = CONFIGS
            .iter()
            .map(|profile| kubernetes.join(profile.name))
            .collect();
        configs.extend(node.kubelet.kubeconfig.value.clone());
        configs.extend(node.kubelet.bootstrap_kubeconfig.value.clone());
        let flags = node
            .static_pods
            .iter()
            .flat_map(|pod| &pod.flags)
            .filter(|(flag, _)| flag.ends_with("kubeconfig"));
        configs.extend(
            flags
                .filter(|(_, path)| path.starts_with('/'))
                .map(|(_, path)| GuestPath::new(path)),
        );
        for path in configs {
            let Ok(bytes) = guest.read(&path) else {
                continue;
            };
            let Ok(config) = Kubeconfig::parse(&bytes, &path) else {
                continue;
            };
            let name = path
                .as_path()
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned();
            if path.parent() == kubernetes
                && ["admin.conf", "super-admin.conf"].contains(&name.as_str())
            {
                self.add(guest, &path, "administrators (kubectl, kubeadm)");
            }
            for user in &config.users {
                self.material(
                    guest,
                    &user.certificate,
                    &format!("{name} client-certificate"),
                );
                self.material(guest, &user.key, &format!("{name} client-key"));
            }
            for cluster in &config.clusters {
                self.material(
                    guest,
                    &cluster.certificate_authority,
                    &format!("{name} certificate-authority"),
                );
            }
        }
    }

    fn material(&mut self, guest: &Guest, material: &Material, user: &str) {
        if let Material::File(path) = material {
            self.add(guest, path, user);
        }
    }

    /// An etcd that is a service of the machine: its unit's flags, and the files with its
    /// environment.
    fn etcd_service(&mut self, guest: &Guest) {
        if let Some(unit) = Unit::load(guest, "etcd.service") {
            for word in unit.argv() {
                self.command_line(guest, "etcd.service", &word);
            }
        }
        for path in ETCD_SETTINGS.map(GuestPath::new) {
            let Ok(text) = guest.read_text(&path) else {
                continue;
            };
            let name = path
                .as_path()
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned();
            for line in text.lines() {
                let Some((key, value)) = line
                    .trim()
                    .split_once('=')
                    .filter(|(key, _)| !key.starts_with('#'))
                else {
                    continue;
                };
                let value = value.trim().trim_matches(['"', '\'']);
                if value.starts_with('/') {
                    self.add(
                        guest,
                        &GuestPath::new(value),
                        format!("{name} {}", key.trim()),
                    );
                }
            }
        }
    }

    fn network_plugins(&mut self, guest: &Guest) {
        let folder = GuestPath::new(NETWORK_PLUGINS);
        for entry in guest
            .read_dir(&folder)
            .unwrap_or_default()
            .into_iter()
            .take(MAX_FILES)
        {
            let path = folder.join(&entry.name);
            let Some(settings) = guest
                .read(&path)
                .ok()
                .and_then(|bytes| yaml::parse(&bytes).ok())
            else {
                continue;
            };
            let mut found = Vec::new();
            strings(&settings, "", &mut found);
            let name = entry.name.to_string_lossy().into_owned();
            for (key, value) in found.iter().filter(|(_, value)| value.starts_with('/')) {
                self.add(
                    guest,
                    &GuestPath::new(value),
                    format!("network plugin {name} {key}"),
                );
            }
        }
    }
}

/// The files in a flag's value. Lists are comma-separated; `--tls-sni-cert-key` is
/// `certificate,key:names`.
fn paths_in(flag: &str, value: &str) -> Vec<GuestPath> {
    let words = value.split(',').filter(|word| word.starts_with('/'));
    let file = |word: &str| match flag {
        "--tls-sni-cert-key" => word.split(':').next().unwrap_or_default().to_owned(),
        _ => word.to_owned(),
    };
    words.map(|word| GuestPath::new(file(word))).collect()
}

/// All strings of a document, each with the nearest key above it.
fn strings(value: &Value, key: &str, found: &mut Vec<(String, String)>) {
    match value {
        Value::String(text) => found.push((key.to_owned(), text.clone())),
        Value::Array(list) => list.iter().for_each(|value| strings(value, key, found)),
        Value::Object(map) => map
            .iter()
            .for_each(|(key, value)| strings(value, key, found)),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::MemoryTree;

    fn users(guest: &Guest, path: &str) -> Vec<String> {
        References::read(guest, &Node::read(guest)).users(guest, &GuestPath::new(path))
    }

    #[test]
    fn one_file_with_many_users_through_links() {
        let guest = MemoryTree::new()
            .link("/etc/kubernetes/pki", "ssl")
            .file("/etc/kubernetes/ssl/apiserver-etcd-client.crt", "x")
            .file(
                "/etc/kubernetes/manifests/kube-apiserver.yaml",
                "kind: Pod\nmetadata: {name: kube-apiserver}\n\
                 spec: {containers: [{command: [kube-apiserver, \
                 --etcd-certfile=/etc/kubernetes/pki/apiserver-etcd-client.crt]}]}\n",
            )
            .file(
                "/etc/cni/net.d/10-calico.conflist",
                r#"{"plugins": [{"type": "calico", "etcd_cert_file": "/etc/kubernetes/ssl/apiserver-etcd-client.crt"}]}"#,
            )
            .file("/etc/etcd.env", "# ETCD_KEY_FILE=/etc/kubernetes/ssl/apiserver-etcd-client.crt\n\
                ETCD_CERT_FILE=\"/etc/kubernetes/ssl/apiserver-etcd-client.crt\"\n")
            .into_guest();
        let expected = [
            "etcd.env ETCD_CERT_FILE",
            "kube-apiserver --etcd-certfile",
            "network plugin 10-calico.conflist etcd_cert_file",
        ];
        assert_eq!(
            users(&guest, "/etc/kubernetes/ssl/apiserver-etcd-client.crt"),
            expected
        );
        assert_eq!(
            users(&guest, "/etc/kubernetes/pki/apiserver-etcd-client.crt"),
            expected
        );
    }

    #[test]
    fn probes_and_server_name_pairs() {
        let guest = MemoryTree::new()
            .file("/pki/health.crt", "x")
            .file("/pki/sni.key", "x")
            .file(
                "/etc/kubernetes/manifests/etcd.yaml",
                "kind: Pod\nmetadata: {name: etcd}\nspec: {containers: [{command: [etcd, \
                 '--tls-sni-cert-key=/pki/sni.crt,/pki/sni.key:*.a.b'], livenessProbe: {exec: \
                 {command: [/bin/sh, -ec, 'etcdctl --cert=/pki/health.crt get foo']}}}]}\n",
            )
            .into_guest();
        assert_eq!(
            users(&guest, "/pki/health.crt"),
            ["etcd livenessProbe --cert"]
        );
        assert_eq!(users(&guest, "/pki/sni.key"), ["etcd --tls-sni-cert-key"]);
    }
}
