//! The timer that runs `kubeadm certs renew all` every month, for one node.

use sha2::{Digest, Sha256};

use super::files::{MARK, NewFile};
use crate::base::refusal::Refusal;
use crate::base::yaml;
use crate::finding::Context;
use crate::guest::{Guest, GuestPath};
use crate::node::{self, Kubeadm, Node, Role, Version};

const SCRIPT: &str = "/usr/local/sbin/kubeadm-certs-renew";
const SERVICE: &str = "/etc/systemd/system/kubeadm-certs-renew.service";
const TIMER: &str = "/etc/systemd/system/kubeadm-certs-renew.timer";
const ENABLED: &str = "/etc/systemd/system/timers.target.wants/kubeadm-certs-renew.timer";

/// All files that belong to it, what is enabled first.
pub const FILES: [&str; 4] = [ENABLED, TIMER, SERVICE, SCRIPT];

/// kubespray's own (`auto_renew_certificates`).
const KUBESPRAY: &str = "k8s-certs-renew.timer";

const CRON: [&str; 7] = [
    "/etc/cron.d",
    "/etc/cron.daily",
    "/etc/cron.weekly",
    "/etc/cron.monthly",
    "/var/spool/cron",
    "/var/spool/cron/crontabs",
    "/etc",
];

/// What the timer will do on one node.
#[derive(Debug, Clone)]
pub struct Timer {
    kubeadm: Kubeadm,
    /// `--cert-dir`, where it is not kubeadm's default.
    certificate_dir: Option<GuestPath>,
    tool: Tool,
    /// Day of the month, 1 to 28.
    day: u8,
    minute: u8,
    kubelet_rotates: bool,
}

/// What lists and stops containers.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Tool {
    Docker(GuestPath),
    Crictl {
        program: GuestPath,
        endpoint: Option<String>,
    },
}

/// Why the certificates are renewed already, if something does that.
pub fn renewed_by(guest: &Guest) -> Option<String> {
    let there = [
        "/etc/systemd/system",
        "/usr/lib/systemd/system",
        "/lib/systemd/system",
    ]
    .iter()
    .map(|folder| GuestPath::new(folder).join(KUBESPRAY))
    .find(|path| guest.exists(path));
    if let Some(path) = there {
        return Some(format!(
            "{path}, kubespray's own timer, renews the certificates already"
        ));
    }
    CRON.iter()
        .find_map(|folder| cron_job(guest, &GuestPath::new(folder)))
}

fn cron_job(guest: &Guest, folder: &GuestPath) -> Option<String> {
    // Of /etc only crontab itself is cron's.
    let is_cron =
        |path: &GuestPath| folder.to_string() != "/etc" || path.to_string() == "/etc/crontab";
    let renews = |line: &str| {
        let line = line.trim_start();
        !line.starts_with('#') && line.contains("kubeadm") && line.contains("certs renew")
    };
    let entries = guest.read_dir(folder).unwrap_or_default();
    let mut paths = entries
        .into_iter()
        .map(|entry| folder.join(entry.name))
        .filter(is_cron);
    let path = paths.find(|path| {
        guest
            .read_text(path)
            .is_ok_and(|text| text.lines().any(renews))
    })?;
    Some(format!("{path} runs `kubeadm certs renew` already"))
}

impl Timer {
    /// Works it out.
    ///
    /// # Errors
    /// A refusal where the certificates are not kubeadm's to renew, or nothing on the node can
    /// renew or restart them.
    pub fn for_node(context: &Context<'_>) -> Result<Self, Refusal> {
        let (guest, node) = (context.guest, context.node);
        refuse_others(node)?;
        let kubeadm = node::kubeadm(guest).ok_or_else(no_kubeadm)?;
        if !guest.exists(&GuestPath::new("/etc/systemd/system")) {
            return Err(Refusal::new(
                "there is no /etc/systemd/system in the guest",
                "without systemd nothing runs a timer",
                "run `kubeadm certs renew all` from whatever this system uses instead",
            ));
        }
        let default = GuestPath::new("/etc/kubernetes/pki");
        let certificate_dir = node
            .certificate_dir
            .value
            .clone()
            .filter(|path| *path != default);
        if let Some(path) = certificate_dir
            .as_ref()
            .filter(|path| !is_plain(&path.to_string()))
        {
            return Err(Refusal::new(
                format!("the certificates are in {path}"),
                "that name cannot be put into a script safely",
                "renew them by hand",
            ));
        }
        let hash = Sha256::digest(context.node.name(&guest.source).as_bytes());
        Ok(Self {
            tool: tool(guest, node)?,
            kubeadm,
            certificate_dir,
            day: 1 + hash[0] % 28,
            minute: hash[1] % 60,
            kubelet_rotates: kubelet_rotates(node),
        })
    }

    /// One line for the plan.
    pub fn summary(&self) -> String {
        let version = self
            .kubeadm
            .version
            .map(|version| format!(" {version}"))
            .unwrap_or_default();
        format!(
            "add a timer that runs `kubeadm {} renew all` (kubeadm{version}) on the {}. of every \
             month and restarts the static pods",
            if self.is_alpha() {
                "alpha certs"
            } else {
                "certs"
            },
            self.day
        )
    }

    /// Lines below it.
    pub fn details(&self) -> Vec<String> {
        let kubelet = match self.kubelet_rotates {
            true => {
                "The kubelet's own client certificate is not part of it: the kubelet renews that \
                 by itself (rotateCertificates)."
            }
            false => {
                "The kubelet's own client certificate is not part of it, and rotateCertificates is \
                 off on this node: set it in the kubelet's config, or that one ends after a year."
            }
        };
        let mut lines = vec![
            format!(
                "At 03:{:02} or up to 4 hours later, so that the control planes of one cluster do \
                 not restart at once; what was missed while the node was off is made up for.",
                self.minute
            ),
            "etcd, API server, controller manager and scheduler are restarted one after the other; \
             the kubelet starts them again."
                .to_owned(),
            "/root/.kube/config is refreshed where it is a copy of admin.conf.".to_owned(),
            kubelet.to_owned(),
        ];
        lines.extend([SCRIPT, SERVICE, TIMER].map(|path| format!("writes {path}")));
        lines
    }

    /// The files to be laid down.
    pub fn files(&self) -> Vec<NewFile> {
        vec![
            NewFile::text(SCRIPT, self.script(), 0o755),
            NewFile::text(SERVICE, service(), 0o644),
            NewFile::text(TIMER, self.timer(), 0o644),
            NewFile::link(ENABLED, TIMER),
        ]
    }

    fn is_alpha(&self) -> bool {
        self.kubeadm
            .version
            .is_some_and(|version| version < CERTS_SINCE)
    }

    fn script(&self) -> String {
        include_str!("renew.sh")
            .replace("@MARK@", MARK)
            .replace("@RENEW@", &self.renew())
            .replace("@LIST@", &self.tool.list())
            .replace("@STOP@", &self.tool.stop())
    }

    /// The sub-command left "alpha" in 1.20. The program is asked, where it is not known to be past
    /// that: an upgrade of kubeadm must not break the timer.
    fn renew(&self) -> String {
        let kubeadm = &self.kubeadm.path;
        let folder = self
            .certificate_dir
            .as_ref()
            .map(|path| format!(" --cert-dir {path}"))
            .unwrap_or_default();
        if self
            .kubeadm
            .version
            .is_some_and(|version| version >= CERTS_SINCE)
        {
            return format!("{kubeadm} certs renew all{folder}");
        }
        format!(
            "case $({kubeadm} version -o short) in\n    \
             v1.?.* | v1.1?.*) {kubeadm} alpha certs renew all{folder} ;;\n    \
             *) {kubeadm} certs renew all{folder} ;;\nesac"
        )
    }

    fn timer(&self) -> String {
        let Self { day, minute, .. } = self;
        format!(
            "# {MARK}\n[Unit]\nDescription=Renew the certificates of this Kubernetes control plane \
             every month\n\n[Timer]\n\
             # Another day on each node, by its name.\nOnCalendar=*-*-{day:02} 03:{minute:02}:00\n\
             RandomizedDelaySec=4h\n\
             Persistent=true\n\n[Install]\nWantedBy=timers.target\n"
        )
    }
}

/// `kubeadm certs`, kubernetes/kubernetes#94938.
const CERTS_SINCE: Version = Version {
    major: 1,
    minor: 20,
    patch: 0,
};

fn service() -> String {
    format!(
        "# {MARK}\n[Unit]\nDescription=Renew the certificates of this Kubernetes control plane and \
         restart its static pods\n\
         Documentation=https://kubernetes.io/docs/tasks/administer-cluster/kubeadm/kubeadm-certs/\n\
         After=kubelet.service\n\n\
         [Service]\nType=oneshot\nExecStart={SCRIPT}\nTimeoutStartSec=30min\n"
    )
}

fn refuse_others(node: &Node) -> Result<(), Refusal> {
    match node.role.value {
        Some(Role::ControlPlane) => Ok(()),
        Some(Role::Worker) => Err(Refusal::new(
            "this node is a worker",
            "kubeadm renews nothing on a worker: the kubelet's certificate is its only one, and \
             the kubelet renews that by itself",
            "run this for the control planes; --logs-only adds just the log rotation",
        )),
        Some(Role::Etcd) => Err(Refusal::new(
            "this node runs only an etcd member",
            "`kubeadm certs renew all` would stop at the certificates that it does not have",
            "kubeadm certs renew etcd-server (and etcd-peer, etcd-healthcheck-client) from a timer \
             of your own; --logs-only adds just the log rotation",
        )),
        _ => Err(Refusal::new(
            "this node is no kubeadm control plane",
            "its certificates are not kubeadm's to renew",
            "see what its own distribution offers; --logs-only adds just the log rotation",
        )),
    }
}

fn no_kubeadm() -> Refusal {
    Refusal::new(
        "there is no kubeadm on this node (/usr/bin, /usr/local/bin, /opt/bin)",
        "nothing on it could renew the certificates",
        "install the kubeadm of the cluster's version on it, then run this again; --logs-only adds \
         just the log rotation",
    )
}

fn tool(guest: &Guest, node: &Node) -> Result<Tool, Refusal> {
    let find = |name: &str| {
        let places = ["/usr/bin", "/usr/local/bin", "/opt/bin"];
        places
            .iter()
            .map(|folder| GuestPath::new(folder).join(name))
            .find(|path| guest.exists(path))
    };
    let runtime = node.container_runtime.value.as_deref().unwrap_or("unknown");
    let (name, package) = match runtime {
        "docker" | "cri-dockerd" => ("docker", "docker's command line"),
        _ => ("crictl", "cri-tools"),
    };
    let program = find(name).ok_or_else(|| {
        Refusal::new(
            format!("there is no {name} on this node, and its container runtime is {runtime}"),
            "the static pods could not be restarted after a renewal",
            format!("install {package} on it, then run this again"),
        )
    })?;
    if name == "docker" {
        return Ok(Tool::Docker(program));
    }
    let endpoint = node::endpoint(guest, &node.kubelet)
        .map(|(endpoint, _)| endpoint)
        .or(match runtime {
            "containerd" => Some("/run/containerd/containerd.sock".to_owned()),
            "cri-o" => Some("/var/run/crio/crio.sock".to_owned()),
            _ => None,
        });
    let endpoint = endpoint
        .filter(|endpoint| is_plain(endpoint))
        .map(|endpoint| match endpoint.contains("://") {
            true => endpoint,
            false => format!("unix://{endpoint}"),
        });
    Ok(Tool::Crictl { program, endpoint })
}

/// Nothing that a shell or systemd reads in a way of its own.
fn is_plain(text: &str) -> bool {
    text.chars()
        .all(|c| c.is_ascii_alphanumeric() || "/._-:".contains(c))
}

impl Tool {
    /// The kubelet labels its containers (kuberuntime/labels.go), dockershim too.
    fn list(&self) -> String {
        let (namespace, container) = (
            "io.kubernetes.pod.namespace=kube-system",
            "\"io.kubernetes.container.name=$1\"",
        );
        match self {
            Self::Docker(program) => {
                format!("{program} ps -q --filter label={namespace} --filter label={container}")
            }
            Self::Crictl { .. } => format!(
                "{} ps -q --label {namespace} --label {container}",
                self.call()
            ),
        }
    }

    fn stop(&self) -> String {
        format!("{} stop -t 60", self.call())
    }

    fn call(&self) -> String {
        match self {
            Self::Docker(program)
            | Self::Crictl {
                program,
                endpoint: None,
            } => program.to_string(),
            Self::Crictl {
                program,
                endpoint: Some(endpoint),
            } => format!("{program} --runtime-endpoint {endpoint}"),
        }
    }
}

/// `rotateCertificates` of its config, which kubeadm sets, or the flag.
fn kubelet_rotates(node: &Node) -> bool {
    let config = yaml::at(&node.kubelet.config, &["rotateCertificates"])
        .and_then(serde_json::Value::as_bool);
    match node.kubelet.flag("--rotate-certificates") {
        Some(flag) => flag == "true",
        None => config.unwrap_or(false),
    }
}
