//! What has to be restarted on a running node before it uses the files that a repair changed. Said,
//! never done.

use crate::base::shell;
use std::collections::BTreeSet;

use serde::Serialize;

use crate::guest::{Guest, GuestPath, RealPath};
use crate::node::{Node, StaticPod};

/// A pod of the control plane that reads changed files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PodRestart {
    /// `metadata.name`.
    pub name: String,
    /// Its manifest.
    pub manifest: String,
    /// The changed files that it reads.
    pub because: Vec<String>,
}

/// What to restart, in this order.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Restart {
    /// Unit files changed: systemd has to read them again first.
    pub daemon_reload: bool,
    /// Timers that were added.
    pub timers: Vec<String>,
    /// Timers that were taken away.
    pub stopped_timers: Vec<String>,
    /// Static pods, those first that others need.
    pub static_pods: Vec<PodRestart>,
    /// Services.
    pub services: Vec<String>,
    /// What to type, one line each.
    pub commands: Vec<String>,
}

/// Where systemd reads units, as prefixes.
const UNIT_FOLDERS: [&str; 4] = [
    "/etc/systemd/system/",
    "/usr/lib/systemd/system/",
    "/lib/systemd/system/",
    "/usr/local/lib/systemd/system/",
];

/// The API server needs etcd, the others need the API server.
const ORDER: [&str; 4] = [
    "etcd",
    "kube-apiserver",
    "kube-controller-manager",
    "kube-scheduler",
];

impl Restart {
    /// For a guest as it was before, and the files that a repair changed in it.
    pub fn after<'a>(
        guest: &Guest,
        node: &Node,
        changed: impl IntoIterator<Item = &'a RealPath>,
    ) -> Self {
        let changed: BTreeSet<String> = changed.into_iter().map(ToString::to_string).collect();
        let is_unit = |path: &&String| UNIT_FOLDERS.iter().any(|folder| path.starts_with(folder));
        let units: Vec<&String> = changed.iter().filter(is_unit).collect();
        let links = units
            .iter()
            .filter_map(|path| Some((path, enabled_timer(path)?)));
        // A link that was there before is one that was taken away.
        let (gone, new): (Vec<_>, Vec<_>) =
            links.partition(|(path, _)| guest.lstat(&GuestPath::new(path)).is_ok());
        let mut restart = Self {
            daemon_reload: !units.is_empty(),
            timers: new.into_iter().map(|(_, timer)| timer).collect(),
            stopped_timers: gone.into_iter().map(|(_, timer)| timer).collect(),
            static_pods: pods(guest, node, &changed),
            services: Vec::new(),
            commands: Vec::new(),
        };
        if restart_kubelet(guest, node, &changed) {
            restart.services.push("kubelet".to_owned());
        }
        restart.commands = restart.to_type();
        restart
    }

    /// Whether nothing needs a restart.
    pub fn is_empty(&self) -> bool {
        self.commands.is_empty()
    }

    fn to_type(&self) -> Vec<String> {
        let mut lines: Vec<String> = self
            .stopped_timers
            .iter()
            .map(|timer| format!("systemctl stop {timer}"))
            .collect();
        if self.daemon_reload {
            lines.push("systemctl daemon-reload".to_owned());
        }
        lines.extend(
            self.timers
                .iter()
                .map(|timer| format!("systemctl start {timer}")),
        );
        lines.extend(self.static_pods.iter().map(PodRestart::to_type));
        lines.extend(
            self.services
                .iter()
                .map(|service| format!("systemctl restart {service}")),
        );
        lines
    }
}

impl PodRestart {
    /// The way kubeadm's documentation gives: the kubelet looks at its folder every 20 seconds
    /// (fileCheckFrequency), and ends the pod when its manifest is gone. The other folder is on the
    /// same file system, so that no half manifest is ever seen.
    fn to_type(&self) -> String {
        let path = GuestPath::new(&self.manifest);
        let (folder, name) = (
            path.parent(),
            path.as_path()
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned(),
        );
        let aside = folder.parent().join(format!("{name}.restarting"));
        let (manifest, aside) = (
            shell::quoted(path.as_path()),
            shell::quoted(aside.as_path()),
        );
        format!("mv {manifest} {aside} && sleep 25; mv {aside} {manifest}")
    }
}

/// The timer that a link in timers.target.wants enables.
fn enabled_timer(path: &str) -> Option<String> {
    let (_, name) = path.split_once("/timers.target.wants/")?;
    name.ends_with(".timer").then(|| name.to_owned())
}

fn pods(guest: &Guest, node: &Node, changed: &BTreeSet<String>) -> Vec<PodRestart> {
    let mut pods: Vec<PodRestart> = node
        .static_pods
        .iter()
        .filter_map(|pod| pod_restart(guest, pod, changed))
        .collect();
    pods.sort_by_key(|pod| {
        ORDER
            .iter()
            .position(|name| *name == pod.name)
            .unwrap_or(ORDER.len())
    });
    pods
}

fn pod_restart(guest: &Guest, pod: &StaticPod, changed: &BTreeSet<String>) -> Option<PodRestart> {
    let paths = pod
        .flags
        .iter()
        .map(|(_, value)| value.as_str())
        .filter(|value| value.starts_with('/'));
    let read: BTreeSet<String> = paths
        .filter_map(|path| changed_at(guest, &GuestPath::new(path), changed))
        .collect();
    let because: Vec<String> = read.into_iter().collect();
    (!because.is_empty()).then(|| PodRestart {
        name: pod.name.clone(),
        manifest: pod.path.to_string(),
        because,
    })
}

/// The changed file that `path` leads to; one that was missing before leads to itself.
fn changed_at(guest: &Guest, path: &GuestPath, changed: &BTreeSet<String>) -> Option<String> {
    let real = guest
        .resolve(path)
        .or_else(|_| guest.resolve_parent(path))
        .ok()?
        .to_string();
    changed.contains(&real).then_some(real)
}

/// The kubelet reads its kubeconfig, config and flags when it starts. It looks at its client
/// certificate's file at start too, and after that only at those it got itself
/// (certificate_manager.go).
fn restart_kubelet(guest: &Guest, node: &Node, changed: &BTreeSet<String>) -> bool {
    let kubelet = &node.kubelet;
    let files = [
        &kubelet.kubeconfig.value,
        &kubelet.config_path.value,
        &kubelet.bootstrap_kubeconfig.value,
    ];
    let reads = files
        .into_iter()
        .flatten()
        .any(|path| changed_at(guest, path, changed).is_some());
    let folder = kubelet
        .cert_dir
        .value
        .as_ref()
        .and_then(|path| guest.resolve(path).ok());
    let in_folder = |path: &String| {
        folder
            .as_ref()
            .is_some_and(|folder| path.starts_with(&format!("{folder}/")))
    };
    let of_unit =
        |path: &String| path.contains("/kubelet.service") || path.ends_with("/kubelet.env");
    let others = [
        "/var/lib/kubelet/kubeadm-flags.env",
        "/etc/default/kubelet",
        "/etc/sysconfig/kubelet",
    ];
    reads
        || changed
            .iter()
            .any(|path| in_folder(path) || of_unit(path) || others.contains(&path.as_str()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::MemoryTree;

    const APISERVER: &str = "apiVersion: v1\nkind: Pod\nmetadata: {name: kube-apiserver}\n\
        spec: {containers: [{command: [kube-apiserver, \
        --tls-cert-file=/etc/kubernetes/pki/apiserver.crt, \
        --etcd-certfile=/etc/kubernetes/pki/apiserver-etcd-client.crt]}]}\n";
    const ETCD: &str = "apiVersion: v1\nkind: Pod\nmetadata: {name: etcd}\n\
        spec: {containers: [{command: [etcd, --cert-file=/etc/kubernetes/pki/etcd/server.crt]}]}\n";

    fn after(paths: &[&str]) -> Restart {
        let guest = MemoryTree::new()
            .file("/etc/kubernetes/manifests/etcd.yaml", ETCD)
            .file("/etc/kubernetes/manifests/kube-apiserver.yaml", APISERVER)
            .file("/etc/kubernetes/ssl/apiserver.crt", "")
            .link("/etc/kubernetes/pki", "ssl")
            .file("/etc/kubernetes/ssl/etcd/server.crt", "")
            .dir("/var/lib/kubelet/pki")
            .into_guest();
        let node = Node::read(&guest);
        let changed: Vec<RealPath> = paths
            .iter()
            .map(|path| RealPath::new((*path).into()))
            .collect();
        Restart::after(&guest, &node, &changed)
    }

    #[test]
    fn pods_whose_files_changed_in_the_order_they_need_each_other() {
        let restart = after(&[
            "/etc/kubernetes/ssl/apiserver.crt",
            "/etc/kubernetes/ssl/etcd/server.crt",
        ]);
        let names: Vec<&str> = restart
            .static_pods
            .iter()
            .map(|pod| pod.name.as_str())
            .collect();
        assert_eq!(names, ["etcd", "kube-apiserver"]);
        assert_eq!(
            restart.static_pods[1].because,
            ["/etc/kubernetes/ssl/apiserver.crt"]
        );
        assert_eq!(
            restart.commands[0],
            "mv /etc/kubernetes/manifests/etcd.yaml /etc/kubernetes/etcd.yaml.restarting && sleep \
             25; mv /etc/kubernetes/etcd.yaml.restarting /etc/kubernetes/manifests/etcd.yaml"
        );
        assert!(restart.services.is_empty() && !restart.daemon_reload);
    }

    #[test]
    fn a_file_that_was_missing_counts() {
        let restart = after(&["/etc/kubernetes/ssl/apiserver-etcd-client.crt"]);
        assert_eq!(restart.static_pods.len(), 1);
    }

    #[test]
    fn the_kubelet_s_files_and_units() {
        assert_eq!(
            after(&["/var/lib/kubelet/pki/kubelet-client-current.pem"]).commands,
            ["systemctl restart kubelet"]
        );
        let drop_in = after(&["/etc/systemd/system/kubelet.service.d/90-rescue.conf"]);
        assert_eq!(
            drop_in.commands,
            ["systemctl daemon-reload", "systemctl restart kubelet"]
        );
        let timer = after(&["/etc/systemd/system/timers.target.wants/kubeadm-certs-renew.timer"]);
        assert_eq!(
            timer.commands,
            [
                "systemctl daemon-reload",
                "systemctl start kubeadm-certs-renew.timer"
            ]
        );
        assert!(after(&["/root/.kube/config"]).is_empty());
    }
}
