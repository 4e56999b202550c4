//! kubelet-config: the file that `--config` names is missing or damaged, and the kubelet exits at
//! once.
//!
//! "failed to load Kubelet config file": loadConfigFile in cmd/kubelet/app/server.go; an empty file
//! is refused by name, and one without its kind by the decoder
//! (pkg/kubelet/kubeletconfig/configfiles).

use anyhow::Result;
use serde_json::{Map, Value, json};

use crate::base::yaml;
use crate::change::Prepared;
use crate::finding::{Check, Context, Finding, Mode, Remedy};
use crate::guest::{Guest, GuestPath};
use crate::node::Role;
use crate::pki::kept_kubelet::kubelet_configuration;

const MISSING: Mode = Mode::stops_boot(
    "kubelet-config.missing",
    "the kubelet's configuration file is missing",
)
.why("The kubelet exits: \"failed to load Kubelet config file …: no such file or directory\".")
.done(
    "Writes it again from kubeadm's backup on the disk, else from the ConfigMap \
    kubelet-config in this node's etcd. Else gives the lines to type.",
)
.source("loadConfigFile in cmd/kubelet/app/server.go; pkg/kubelet/kubeletconfig/configfiles")
.logged(&[
    "failed to load Kubelet config file",
    "failed to load kubelet config file",
]);
const DAMAGED: Mode = Mode::stops_boot(
    "kubelet-config.damaged",
    "the kubelet's configuration file is empty, zeroed, or no KubeletConfiguration",
)
.why("The kubelet exits: \"kubelet config file … was empty\", or it cannot be decoded.")
.done(
    "Writes it again from kubeadm's backup on the disk, else from the ConfigMap \
    kubelet-config in this node's etcd. Else gives the lines to type.",
)
.source("pkg/kubelet/kubeletconfig/configfiles/configfiles.go")
.logged(&[
    "failed to load Kubelet config file",
    "failed to load kubelet config file",
]);

/// See the module.
pub const CHECK: Check = Check {
    id: "kubelet-config",
    about: "the kubelet's configuration file: missing or damaged; brought back from kubeadm's \
            backup or from etcd on this disk",
    modes: &[MISSING, DAMAGED],
    roles: &[Role::ControlPlane, Role::Worker],
    after: &[],
    run,
};

/// Where `kubeadm upgrade node` keeps the file as it was before (kubeadm's
/// WriteKubeletConfigFiles).
const BACKUPS: &str = "/etc/kubernetes/tmp";
const BACKUP_PREFIX: &str = "kubeadm-kubelet-config";
/// What kubeadm from 1.32 on lays over the cluster's configuration: one key.
const INSTANCE: &str = "/var/lib/kubelet/instance-config.yaml";
const ENDPOINT: &str = "containerRuntimeEndpoint";

fn run(context: &Context<'_>) -> Result<Vec<Finding>> {
    let guest = context.guest;
    let Some(path) = &context.node.kubelet.config_path.value else {
        return Ok(Vec::new());
    };
    if guest.hidden(path).is_some() {
        return Ok(Vec::new());
    }
    let (mode, title, saw) = match guest.read(path) {
        Err(error) if error.is_not_found() => (MISSING, "is missing", "missing".to_owned()),
        Err(error) => (DAMAGED, "cannot be read", error.to_string()),
        Ok(bytes) => match fault(&bytes) {
            Some(saw) => (DAMAGED, "is damaged", saw),
            None => return Ok(Vec::new()),
        },
    };
    let finding = Finding::new(mode, format!("the kubelet's configuration {title}: {path}"))
        .with_evidence(path, saw)
        .with_evidence(named_at(context), "--config names it")
        .with_advice("The kubelet exits at its start: \"failed to load Kubelet config file\".");
    Ok(vec![match copy(context) {
        Some(copy) => finding.with_remedy(WriteConfig {
            path: path.clone(),
            copy,
        }),
        None => finding.with_advice(no_copy(context, path)),
    }])
}

/// Where the command line names the file.
fn named_at(context: &Context<'_>) -> Option<crate::guest::Origin> {
    context.node.kubelet.flag_origin("--config")
}

/// What is wrong with the bytes of a configuration file.
fn fault(bytes: &[u8]) -> Option<String> {
    if bytes.trim_ascii().is_empty() {
        return Some("empty".to_owned());
    }
    if bytes.iter().all(|byte| *byte == 0) {
        return Some(format!("{} zero bytes", bytes.len()));
    }
    match yaml::parse(bytes) {
        Err(error) => Some(format!("{error:#}")),
        Ok(config) => match yaml::text_at(&config, &["kind"]) {
            Some("KubeletConfiguration") => None,
            Some(other) => Some(format!("its kind is {}", other.escape_debug())),
            None => Some("it has no kind, so it is no KubeletConfiguration".to_owned()),
        },
    }
}

/// A configuration to write, and what it was taken from.
#[derive(Debug)]
struct KeptConfig {
    text: String,
    source: String,
    other_sources: Vec<String>,
}

/// This node's own backup comes before the cluster's ConfigMap: it holds what was set for this node
/// alone.
fn copy(context: &Context<'_>) -> Option<KeptConfig> {
    let guest = context.guest;
    let mut found: Vec<(String, String)> = backups(guest);
    let kept = kubelet_configuration(guest, context.node);
    let is_whole = |text: &str| fault(text.as_bytes()).is_none();
    if let Some((text, name)) = kept.filter(|(text, _)| is_whole(text)) {
        let text = with_endpoint(guest, text);
        found.push((text, format!("ConfigMap {name} in this node's etcd")));
    }
    let mut found = found.into_iter();
    let (text, source) = found.next()?;
    Some(KeptConfig {
        text,
        source,
        other_sources: found.map(|(_, source)| source).collect(),
    })
}

/// Whole configurations that kubeadm kept, the newest first.
fn backups(guest: &Guest) -> Vec<(String, String)> {
    let folder = GuestPath::new(BACKUPS);
    let entries = guest.read_dir(&folder).unwrap_or_default().into_iter();
    let names = entries.filter_map(|entry| entry.name.into_string().ok());
    let mut files: Vec<(i64, String, String)> = names
        .filter(|name| name.starts_with(BACKUP_PREFIX))
        .filter_map(|name| {
            let path = folder.join(&name).join("config.yaml");
            let text = guest.read_text(&path).ok()?;
            let time = guest.stat(&path).ok()?.mtime;
            fault(text.as_bytes())
                .is_none()
                .then(|| (time, text, path.to_string()))
        })
        .collect();
    files.sort_by_key(|(time, _, _)| std::cmp::Reverse(*time));
    let pair = |(_, text, path): (i64, String, String)| (text, path);
    files.into_iter().map(pair).collect()
}

/// The cluster's configuration with the runtime's socket of this node, as kubeadm from 1.32 on
/// writes it.
fn with_endpoint(guest: &Guest, text: String) -> String {
    let instance = guest.read(&GuestPath::new(INSTANCE)).unwrap_or_default();
    let instance = yaml::parse(&instance).unwrap_or_default();
    let Some(endpoint) = yaml::text_at(&instance, &[ENDPOINT]) else {
        return text;
    };
    let key = format!("{ENDPOINT}:");
    let others = text.lines().filter(|line| !line.starts_with(&key));
    let mut lines: Vec<String> = others.map(str::to_owned).collect();
    lines.push(format!("{key} {}", json!(endpoint)));
    lines.join("\n") + "\n"
}

/// Where to take the file from, with the lines to type.
fn no_copy(context: &Context<'_>, path: &GuestPath) -> String {
    let node = context.node;
    let version = node.kubelet_version.value.map_or_else(
        || "the same version".to_owned(),
        |version| format!("version 1.{}", version.minor),
    );
    let phase = if node.role.value == Some(Role::ControlPlane) {
        "On this node after boot: kubeadm init phase kubelet-start --config FILE (with the \
         ClusterConfiguration), or while another API server answers: kubeadm upgrade node phase \
         kubelet-config"
    } else {
        "On this node after boot: kubeadm upgrade node phase kubelet-config"
    };
    format!(
        "No copy of it is on this disk. Take it from another node of {version}: scp \
         NODE:{path} {path}\n{phase}"
    )
}

/// The file is written again from a copy.
#[derive(Debug)]
struct WriteConfig {
    path: GuestPath,
    copy: KeptConfig,
}

impl Remedy for WriteConfig {
    fn kind(&self) -> &'static str {
        "write-kubelet-config"
    }

    fn summary(&self) -> String {
        format!("write {} again from {}", self.path, self.copy.source)
    }

    fn details(&self) -> Vec<String> {
        let other = |source: &String| format!("not taken, because it comes after it: {source}");
        self.copy.other_sources.iter().map(other).collect()
    }

    fn fields(&self) -> Map<String, Value> {
        let field = |name: &str, value: &str| (name.to_owned(), json!(value));
        Map::from_iter([
            field("path", &self.path.to_string()),
            field("from", &self.copy.source),
        ])
    }

    fn prepare(&self, context: &Context<'_>) -> Result<Prepared> {
        let mut draft = context.draft();
        draft.write_like(&self.path, self.copy.text.as_bytes(), 0o644, &self.path)?;
        Ok(draft.done())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checks::bench::{Bench, control_plane, worker};

    const FILE: &str = "/var/lib/kubelet/config.yaml";
    const WHOLE: &str = "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\n\
        staticPodPath: /etc/kubernetes/manifests\n";
    const BACKUP: &str = "/etc/kubernetes/tmp/kubeadm-kubelet-config123/config.yaml";

    #[test]
    fn a_lost_file_comes_back_from_the_newest_whole_backup() {
        let bench = Bench::new(CHECK);
        let older = "/etc/kubernetes/tmp/kubeadm-kubelet-config9/config.yaml";
        let newest = "/etc/kubernetes/tmp/kubeadm-kubelet-config8/config.yaml";
        for (tree, mode) in [
            (control_plane().without(FILE), "kubelet-config.missing"),
            (worker().file(FILE, ""), "kubelet-config.damaged"),
            (worker().file(FILE, [0; 64]), "kubelet-config.damaged"),
            (worker().file(FILE, "kind: Pod\n"), "kubelet-config.damaged"),
            (worker().file(FILE, "a: [\n"), "kubelet-config.damaged"),
        ] {
            let tree = tree
                .file(BACKUP, WHOLE)
                .mtime(BACKUP, 20)
                .file(older, "kind: KubeletConfiguration\n")
                .mtime(older, 10)
                .file(newest, "")
                .mtime(newest, 30);
            assert_eq!(bench.modes(tree.clone()), [mode]);
            let mended = bench.mended(tree);
            assert_eq!(mended.read_text(&GuestPath::new(FILE)).unwrap(), WHOLE);
        }
    }

    #[test]
    fn without_a_copy_the_lines_to_type_are_given() {
        let found = Bench::new(CHECK).found(worker().without(FILE));
        assert!(found[0].remedies.is_empty());
        let advice = found[0].advice.join("\n");
        assert!(
            advice.contains("kubeadm upgrade node phase kubelet-config"),
            "{advice}"
        );
        assert!(
            advice.contains("scp NODE:/var/lib/kubelet/config.yaml"),
            "{advice}"
        );
    }

    #[test]
    fn the_socket_of_this_node_replaces_the_clusters() {
        let instance = "containerRuntimeEndpoint: unix:///run/crio/crio.sock\n";
        let guest = worker().file(INSTANCE, instance).into_guest();
        let text = format!("{WHOLE}containerRuntimeEndpoint: \"\"\n");
        let expected = format!("{WHOLE}containerRuntimeEndpoint: \"unix:///run/crio/crio.sock\"\n");
        assert_eq!(with_endpoint(&guest, text), expected);
    }

    #[test]
    fn a_whole_file_and_a_kubelet_without_one_are_no_finding() {
        let bench = Bench::new(CHECK);
        bench.silent(control_plane());
        bench.silent(worker());
        let flags = "[Service]\nExecStart=\nExecStart=/usr/bin/kubelet \
                     --kubeconfig=/etc/kubernetes/kubelet.conf\n";
        let drop_in = "/etc/systemd/system/kubelet.service.d/20.conf";
        bench.silent(control_plane().without(FILE).file(drop_in, flags));
    }
}
