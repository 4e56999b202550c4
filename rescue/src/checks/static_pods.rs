//! static-pods: files in the kubelet's manifest folder that are no pod, and several files of one
//! pod.
//!
//! The kubelet reads every file of the folder whose name does not begin with a dot, whatever its
//! extension, passes over those that it cannot parse, and of two pods with one name runs that of
//! the file that sorts last (pkg/kubelet/config/file.go).

use anyhow::Result;
use serde_json::{Map, Value, json};

use crate::base::severity::Severity;
use crate::base::yaml;
use crate::change::{Change, Prepared};
use crate::finding::{Check, Context, Finding, Mode, Remedy};
use crate::guest::{Guest, GuestPath};
use crate::node::{
    Manifest, ManifestBackup, Node, Role, SamePod, StaticPod, manifest_backups, version_of,
};

const DAMAGED: Mode = Mode::stops_boot(
    "static-pods.damaged",
    "a file in the kubelet's manifest folder is empty, damaged or no pod",
)
.why(
    "The kubelet reads every file of the folder and skips what is no pod: \"couldn't \
    parse as pod\". The API server, etcd or whatever it described is simply not there.",
)
.done(
    "Puts back kubeadm's own copy of the node's version from /etc/kubernetes/tmp, else \
    says what to type.",
)
.source("extractFromFile in pkg/kubelet/config/file.go")
.logged(&["couldn't parse as pod"]);
const TWICE: Mode = Mode::stops_boot(
    "static-pods.twice",
    "several files in the kubelet's manifest folder describe one pod, and a copy may run",
)
.why(
    "The kubelet reads every file whose name does not begin with a dot, whatever its \
    ending. Of two files of one pod the last in byte order wins: kube-apiserver.yaml.bak \
    beats kube-apiserver.yaml.",
)
.done("Moves a copy that would run to /etc/kubernetes/rescue-moved.")
.source(
    "listConfig in pkg/kubelet/config/file_linux.go; \
    https://github.com/kubernetes/website/issues/54427",
);

/// See the module.
pub const CHECK: Check = Check {
    id: "static-pods",
    about: "static pod manifests that are damaged, or replaced by a copy that sorts last",
    modes: &[DAMAGED, TWICE],
    roles: &[Role::ControlPlane, Role::Etcd],
    after: &[],
    run,
};

/// Pods without which the node does not come back, and what kubeadm calls them.
const COMPONENTS: [(&str, &str); 4] = [
    ("etcd", "etcd local"),
    ("kube-apiserver", "control-plane apiserver"),
    (
        "kube-controller-manager",
        "control-plane controller-manager",
    ),
    ("kube-scheduler", "control-plane scheduler"),
];

/// Where copies go that the kubelet must not read.
const MOVED_TO: &str = "/etc/kubernetes/rescue-moved";

fn run(context: &Context<'_>) -> Result<Vec<Finding>> {
    let node = context.node;
    let damaged = node
        .manifests
        .iter()
        .filter(|manifest| manifest.damage.is_some());
    let mut findings: Vec<Finding> = damaged
        .map(|manifest| damaged_file(context, manifest))
        .collect();
    let same = node.same_pods();
    findings.extend(
        same.iter()
            .filter_map(|(same, files)| twice(context, *same, files)),
    );
    Ok(findings)
}

fn phase_of(name: &str) -> Option<&'static str> {
    let found = COMPONENTS.iter().find(|(component, _)| *component == name);
    found.map(|(_, phase)| *phase)
}

/// Whether a whole file of the folder describes a pod of this name.
fn runs_from_another_file(node: &Node, name: &str) -> bool {
    let is_whole = |manifest: &&Manifest| manifest.damage.is_none();
    let mut pods = node
        .manifests
        .iter()
        .filter(is_whole)
        .filter_map(|one| one.pod.as_ref());
    pods.any(|pod| pod.name == name)
}

fn damaged_file(context: &Context<'_>, manifest: &Manifest) -> Finding {
    let (stem, path) = (manifest.stem(), &manifest.path);
    let damage = manifest.damage.as_deref().unwrap_or_default();
    let finding = |title: String| Finding::new(DAMAGED, title).with_evidence(path, damage);
    let Some(phase) = phase_of(&stem) else {
        let title = format!("{path} is no pod, and the kubelet passes over it");
        let advice = "If a pod of this node was in it, write the file anew; else remove it.";
        return finding(title)
            .with_severity(other_severity(manifest))
            .with_advice(advice);
    };
    if runs_from_another_file(context.node, &stem) {
        let title = format!("{path} is no pod; {stem} runs from another file");
        let advice = format!("Remove {path} if it is not needed.");
        return finding(title)
            .with_severity(Severity::Note)
            .with_advice(advice);
    }
    let title = format!("{stem} does not start: its manifest {path} is damaged");
    restore(context, finding(title), manifest, phase)
}

/// A damaged copy or a note of somebody's harms nobody; a damaged NAME.yaml was a pod.
fn other_severity(manifest: &Manifest) -> Severity {
    let name = manifest.file_name();
    let is_manifest = [".yaml", ".yml", ".json"]
        .iter()
        .any(|end| name.ends_with(end));
    if is_manifest && !manifest.is_named_as_a_copy() {
        Severity::WillBreak
    } else {
        Severity::Note
    }
}

fn restore(
    context: &Context<'_>,
    finding: Finding,
    manifest: &Manifest,
    phase: &'static str,
) -> Finding {
    let backups = manifest_backups(context.guest, &manifest.file_name());
    if let Some(backup) = backups.iter().find(|backup| backup.fits(context.node)) {
        let saw = format!("kubeadm's copy, {}", of_version(backup));
        let (to, from) = (manifest.path.clone(), backup.path.clone());
        let of = of_version(backup);
        let finding = finding.with_evidence(&backup.path, saw);
        return finding.with_remedy(Restore { from, to, of });
    }
    let finding = backups.iter().fold(finding, |finding, backup| {
        finding.with_evidence(&backup.path, unfit(context.node, backup))
    });
    finding.with_advice(by_hand(phase))
}

fn of_version(backup: &ManifestBackup) -> String {
    match backup.version {
        Some(version) => format!("of version {version}"),
        None => "of an unknown version".to_owned(),
    }
}

fn unfit(node: &Node, backup: &ManifestBackup) -> String {
    if let Some(missing) = backup.missing.first() {
        return format!("kubeadm's copy is not used: it names {missing}, which is missing");
    }
    let runs = version_of(node).map_or("unknown".to_owned(), |version| version.to_string());
    let of = of_version(backup);
    format!("kubeadm's copy is not used: it is {of}, the node's version is {runs}")
}

fn by_hand(phase: &str) -> String {
    format!(
        "The configuration of the cluster is on every other control plane:\n\
         kubectl -n kube-system get configmap kubeadm-config \
         -o jsonpath='{{.data.ClusterConfiguration}}' > kubeadm.yaml\n\
         Then, on this node: kubeadm init phase {phase} --config kubeadm.yaml"
    )
}

/// kubeadm's own copy takes the place of the damaged file.
#[derive(Debug)]
struct Restore {
    from: GuestPath,
    to: GuestPath,
    of: String,
}

impl Remedy for Restore {
    fn kind(&self) -> &'static str {
        "restore-manifest"
    }

    fn summary(&self) -> String {
        format!("restore {} from {} ({})", self.to, self.from, self.of)
    }

    fn fields(&self) -> Map<String, Value> {
        Map::from_iter([
            ("path".to_owned(), json!(self.to.to_string())),
            ("source".to_owned(), json!(self.from.to_string())),
        ])
    }

    fn prepare(&self, context: &Context<'_>) -> Result<Prepared> {
        let mut draft = context.draft();
        let bytes = context.guest.read(&self.from)?;
        draft.write_like(&self.to, bytes, 0o600, &self.from)?;
        Ok(draft.done())
    }
}

fn twice(context: &Context<'_>, same: SamePod<'_>, files: &[&Manifest]) -> Option<Finding> {
    let (runs, meant) = (same.runs, same.meant);
    let pod = runs.pod.as_ref()?;
    let title = format!("{} files describe the pod {}", files.len(), pod.name);
    let title = format!("{title}; the kubelet runs {}", runs.path);
    let others = files.iter().filter(|file| file.path != runs.path);
    let finding = Finding::new(TWICE, title).with_evidence(
        &runs.path,
        "sorts last in byte order: the kubelet runs this one",
    );
    let finding = others.fold(finding, |finding, other| {
        let differs = other.pod.as_ref().map(|other| differences(other, pod));
        finding.with_evidence(&other.path, differs.unwrap_or_default())
    });
    Some(judged(context, finding, runs, meant, files))
}

/// What the kubelet does not run, against what it runs.
fn differences(other: &StaticPod, runs: &StaticPod) -> String {
    let mut found = Vec::new();
    if other.image != runs.image {
        found.push(format!("image {} (it runs {})", other.image, runs.image));
    }
    for (flag, value) in &other.flags {
        match runs.flag(flag) {
            Some(same) if same == value => {}
            Some(by) => found.push(format!("{flag}={value} (it runs {by})")),
            None => found.push(format!("{flag}={value} (it runs without)")),
        }
    }
    let added = runs
        .flags
        .iter()
        .filter(|(flag, _)| other.flag(flag).is_none());
    found.extend(added.map(|(flag, value)| format!("no {flag} (it runs {value})")));
    if found.is_empty() {
        return "has the same image and flags".to_owned();
    }
    found.join(", ")
}

fn judged(
    context: &Context<'_>,
    finding: Finding,
    runs: &Manifest,
    meant: &Manifest,
    files: &[&Manifest],
) -> Finding {
    let is_copy = |file: &&&Manifest| file.is_named_as_a_copy() && file.path != meant.path;
    if runs.path != meant.path {
        let same_pod = parsed(context, runs) == parsed(context, meant);
        let copies = files.iter().filter(is_copy).map(|file| file.path.clone());
        let copies: Vec<GuestPath> = copies.collect();
        let severity = match &runs.pod {
            _ if same_pod => Severity::Note,
            Some(pod) if phase_of(&pod.name).is_some() => Severity::StopsBoot,
            _ => Severity::WillBreak,
        };
        let finding = finding.with_severity(severity);
        let (copies, stays) = (copies, meant.path.clone());
        return finding.with_remedy(MoveAway { copies, stays });
    }
    let folder = runs.path.parent();
    if files
        .iter()
        .all(|file| file.path == meant.path || file.is_named_as_a_copy())
    {
        return finding.with_severity(Severity::Note).with_advice(format!(
            "Move the copies out of {folder}: an edit can make one run."
        ));
    }
    finding
        .with_severity(Severity::WillBreak)
        .with_advice(format!(
            "Keep the file that is meant in {folder} and move the others out of it."
        ))
}

fn parsed(context: &Context<'_>, manifest: &Manifest) -> Option<Value> {
    yaml::parse(&context.guest.read(&manifest.path).ok()?).ok()
}

/// Copies go where the kubelet does not read them.
#[derive(Debug)]
struct MoveAway {
    copies: Vec<GuestPath>,
    stays: GuestPath,
}

impl Remedy for MoveAway {
    fn kind(&self) -> &'static str {
        "move-manifest-copy"
    }

    fn summary(&self) -> String {
        let copies: Vec<String> = self.copies.iter().map(GuestPath::to_string).collect();
        let (copies, stays) = (copies.join(" and "), &self.stays);
        format!("move {copies} to {MOVED_TO}, so that {stays} runs")
    }

    fn fields(&self) -> Map<String, Value> {
        let copies: Vec<String> = self.copies.iter().map(GuestPath::to_string).collect();
        Map::from_iter([
            ("paths".to_owned(), json!(copies)),
            ("stays".to_owned(), json!(self.stays.to_string())),
        ])
    }

    fn prepare(&self, context: &Context<'_>) -> Result<Prepared> {
        let mut draft = context.draft();
        for copy in &self.copies {
            let to = free_name(&draft.guest, copy);
            let bytes = context.guest.read(copy)?;
            draft.write_like(&to, bytes, 0o600, copy)?;
            let remove = Change::remove(&draft.guest, copy)?;
            draft.push(remove)?;
        }
        Ok(draft.done())
    }
}

/// A name in the folder of moved files that nothing has yet.
fn free_name(guest: &Guest, copy: &GuestPath) -> GuestPath {
    let name = copy
        .as_path()
        .file_name()
        .unwrap_or_default()
        .to_string_lossy();
    let plain = GuestPath::new(MOVED_TO).join(name.as_ref());
    let numbered = (2..1000).map(|number| GuestPath::new(format!("{plain}.{number}")));
    let mut names = std::iter::once(plain.clone()).chain(numbered);
    let free = names.find(|path| guest.lstat(path).is_err());
    free.unwrap_or(plain)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checks::bench::{Bench, control_plane, worker};
    use crate::tree::MemoryTree;

    const FOLDER: &str = "/etc/kubernetes/manifests";
    const BACKUP: &str = "/etc/kubernetes/tmp/kubeadm-backup-manifests-2024-01-01-10-00-00";

    fn pod(name: &str, version: &str) -> String {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata:\n  name: {name}\nspec:\n  containers:\n  \
             - command: [{name}]\n    image: k8s.gcr.io/{name}:v{version}\n    volumeMounts:\n    \
             - {{mountPath: /x, name: x}}\n  volumes:\n  - {{hostPath: {{path: /x}}, name: x}}\n"
        )
    }

    fn node() -> MemoryTree {
        let tree = control_plane().file(
            format!("{FOLDER}/kube-apiserver.yaml"),
            pod("kube-apiserver", "1.20.2"),
        );
        tree.file(
            format!("{FOLDER}/kube-scheduler.yaml"),
            pod("kube-scheduler", "1.20.2"),
        )
    }

    fn with(name: &str, bytes: impl AsRef<[u8]>) -> MemoryTree {
        node().file(format!("{FOLDER}/{name}"), bytes)
    }

    #[test]
    fn every_damage_of_a_component_stops_the_node() {
        let whole = pod("kube-apiserver", "1.20.2");
        let cut_in_mounts = whole.split("  volumes:").next().unwrap().to_owned();
        let cut_in_metadata = whole.split("spec:").next().unwrap().to_owned();
        for bytes in [
            String::new(),
            "\n".to_owned(),
            "\0".repeat(4096),
            format!("{whole}\0\0"),
            "kind: [".to_owned(),
            "kind: ConfigMap\nmetadata: {name: kube-apiserver}\n".to_owned(),
            cut_in_mounts,
            cut_in_metadata,
        ] {
            let found = Bench::new(CHECK).found(with("kube-apiserver.yaml", &bytes));
            assert_eq!(found.len(), 1, "{bytes:?} {found:#?}");
            assert_eq!(found[0].mode, DAMAGED, "{bytes:?}");
            assert_eq!(found[0].severity, Severity::StopsBoot, "{bytes:?}");
            let advice = found[0].advice.join("\n");
            assert!(
                advice.contains("kubeadm init phase control-plane apiserver"),
                "{advice}"
            );
        }
        let dangling = node().link(format!("{FOLDER}/etcd.yaml"), "/gone");
        assert_eq!(Bench::new(CHECK).modes(dangling), ["static-pods.damaged"]);
    }

    #[test]
    fn kubeadms_copy_of_the_nodes_version_is_put_back() {
        let copy = pod("kube-apiserver", "1.20.2");
        let tree =
            with("kube-apiserver.yaml", "").file(format!("{BACKUP}/kube-apiserver.yaml"), &copy);
        let mended = Bench::new(CHECK).mended(tree);
        let path = GuestPath::new(format!("{FOLDER}/kube-apiserver.yaml"));
        assert_eq!(mended.read_text(&path).unwrap(), copy);
    }

    #[test]
    fn a_copy_of_another_version_or_with_missing_files_is_named_and_not_used() {
        let old = pod("kube-apiserver", "1.19.7");
        let lost = pod("kube-apiserver", "1.20.2").replace(
            "[kube-apiserver]",
            "[kube-apiserver, --client-ca-file=/gone]",
        );
        for (copy, word) in [(old, "1.19.7"), (lost, "/gone")] {
            let path = format!("{BACKUP}/kube-apiserver.yaml");
            let found = Bench::new(CHECK).found(with("kube-apiserver.yaml", "").file(path, copy));
            assert!(found[0].remedies.is_empty());
            assert!(found[0].evidence[1].saw.contains(word), "{found:#?}");
        }
    }

    #[test]
    fn what_is_no_component_does_not_stop_the_node() {
        let severity = |name: &str| Bench::new(CHECK).found(with(name, ""))[0].severity;
        assert_eq!(severity("haproxy.yaml"), Severity::WillBreak);
        assert_eq!(severity("README"), Severity::Note);
        assert_eq!(severity("kube-apiserver.yaml.bak"), Severity::Note);
    }

    #[test]
    fn a_copy_that_wins_is_moved_away() {
        for name in [
            "kube-apiserver.yaml.bak",
            "kube-apiserver.yaml~",
            "kube-apiserver.yaml_20230101",
        ] {
            let tree = with(name, pod("kube-apiserver", "1.19.7"));
            let found = Bench::new(CHECK).found(tree.clone());
            assert_eq!(found[0].severity, Severity::StopsBoot, "{name}");
            assert!(
                found[0].evidence[1].saw.contains("v1.20.2 (it runs"),
                "{found:#?}"
            );
            let mended = Bench::new(CHECK).mended(tree);
            assert!(!mended.exists(&GuestPath::new(FOLDER).join(name)));
            assert!(mended.exists(&GuestPath::new(MOVED_TO).join(name)));
        }
    }

    #[test]
    fn a_copy_that_loses_is_a_note_and_two_names_without_marks_are_the_users_choice() {
        let old = || pod("kube-apiserver", "1.19.7");
        let found = |name: &str| Bench::new(CHECK).found(with(name, old())).remove(0);
        let loser = found("kube-apiserver-old.yaml");
        assert_eq!((loser.mode, loser.severity), (TWICE, Severity::Note));
        let open = found("kube-apiserver2.yaml");
        assert_eq!(open.severity, Severity::WillBreak);
        assert!(open.remedies.is_empty());
        let same = Bench::new(CHECK).found(with(
            "kube-apiserver.yaml.bak",
            pod("kube-apiserver", "1.20.2"),
        ));
        assert_eq!(same[0].severity, Severity::Note);
    }

    #[test]
    fn a_whole_folder_hidden_files_and_other_namespaces_are_no_finding() {
        let bench = Bench::new(CHECK);
        bench.silent(control_plane());
        bench.silent(node());
        bench.silent(worker());
        bench.silent(with(".kube-apiserver.yaml.swp", ""));
        bench.silent(
            node()
                .dir(format!("{FOLDER}/old"))
                .file(format!("{FOLDER}/old/etcd.yaml"), ""),
        );
        let elsewhere = pod("kube-apiserver", "1.19.7")
            .replace("metadata:\n", "metadata:\n  namespace: test\n");
        bench.silent(with("zz.yaml", elsewhere));
    }
}
