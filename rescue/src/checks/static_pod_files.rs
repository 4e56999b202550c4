//! static-pod-files: what a static pod mounts of the node, and the files that its flags name, as
//! the process in the container will find them.
//!
//! Certificates, keys and kubeconfigs have checks of their own; these are all the others: an audit
//! policy, the key of the encryption at rest, a webhook's kubeconfig, the CA of a login service.

use anyhow::Result;

use crate::base::severity::Severity;
use crate::finding::{Check, Context, Finding, Mode};
use crate::guest::{Guest, GuestPath};
use crate::node::{HostVolume, Reached, Role, StaticPod};
use crate::pki::inventory::{Inventory, Place};
use crate::tree::{FileKind, TreeError};

const VOLUME: Mode = Mode::stops_boot(
    "static-pod-files.volume",
    "a static pod mounts a path of the node that is missing or of another kind",
)
.why(
    "The kubelet looks at a hostPath volume with a type before it starts the pod, and does \
    not start it otherwise: \"hostPath type check failed: … is not a file\".",
)
.done(
    "Nothing by itself: what belongs there is known to its owner. It names the path and the \
    volume. Certificates and kubeconfigs among them are made anew by their own checks.",
)
.source("checkTypeInternal in pkg/volume/hostpath/host_path.go")
.logged(&["hostPath type check failed"]);
const MISSING: Mode = Mode::stops_boot(
    "static-pod-files.missing",
    "a static pod's flag names a file that is not there, empty or a folder",
)
.why(
    "The API server, the controller manager, the scheduler and etcd open the files that \
    their flags name at their start and exit where they cannot: \"open …: no such file or \
    directory\". An empty file is often what FileOrCreate made of a missing one.",
)
.done(
    "Nothing by itself: it names the flag, the file on the node's disk and what is there. \
    A lost encryption configuration must come from another control plane or a backup; without \
    it encrypted Secrets cannot be read by anybody.",
)
.source("the flags of kube-apiserver, kube-controller-manager, kube-scheduler and etcd");
const UNMOUNTED: Mode = Mode::stops_boot(
    "static-pod-files.unmounted",
    "a static pod's flag names a file of the node that no mount of the pod brings in",
)
.why(
    "The process sees its image and what is mounted, not the node's disk: the file is there, \
    and it exits with \"no such file or directory\".",
)
.done("Nothing by itself: it names the flag and the folder to mount, or where to move the file.")
.source("volumeMounts and hostPath in the Pod API");

/// See the module.
pub const CHECK: Check = Check {
    id: "static-pod-files",
    about: "files and folders of the node that a static pod mounts or its flags name",
    modes: &[VOLUME, MISSING, UNMOUNTED],
    roles: &[Role::ControlPlane, Role::Etcd],
    after: &["static-pods"],
    run,
};

/// Static pods whose flags are known.
const COMPONENTS: [&str; 4] = [
    "kube-apiserver",
    "kube-controller-manager",
    "kube-scheduler",
    "etcd",
];

/// Flags that name a file which the process opens at its start and cannot do without.
const FILES: [&str; 45] = [
    "--admission-control-config-file",
    "--audit-policy-file",
    "--audit-webhook-config-file",
    "--authentication-config",
    "--authentication-kubeconfig",
    "--authentication-token-webhook-config-file",
    "--authorization-config",
    "--authorization-kubeconfig",
    "--authorization-policy-file",
    "--authorization-webhook-config-file",
    "--cert-file",
    "--client-ca-file",
    "--client-crl-file",
    "--cloud-config",
    "--cluster-signing-cert-file",
    "--cluster-signing-key-file",
    "--config",
    "--config-file",
    "--egress-selector-config-file",
    "--encryption-provider-config",
    "--etcd-cafile",
    "--etcd-certfile",
    "--etcd-keyfile",
    "--key-file",
    "--kubeconfig",
    "--kubelet-certificate-authority",
    "--kubelet-client-certificate",
    "--kubelet-client-key",
    "--oidc-ca-file",
    "--peer-cert-file",
    "--peer-crl-file",
    "--peer-key-file",
    "--peer-trusted-ca-file",
    "--proxy-client-cert-file",
    "--proxy-client-key-file",
    "--requestheader-client-ca-file",
    "--root-ca-file",
    "--service-account-key-file",
    "--service-account-private-key-file",
    "--service-account-signing-key-file",
    "--tls-cert-file",
    "--tls-private-key-file",
    "--token-auth-file",
    "--tracing-config-file",
    "--trusted-ca-file",
];

/// Of these another check says that they are missing.
const KEYS_OF_SERVICE_ACCOUNTS: [&str; 3] = [
    "--service-account-key-file",
    "--service-account-private-key-file",
    "--service-account-signing-key-file",
];

fn run(context: &Context<'_>) -> Result<Vec<Finding>> {
    let (guest, node) = (context.guest, context.node);
    let inventory = context.inventory();
    let judged = judged_elsewhere(&inventory);
    let mut findings = Vec::new();
    for pod in &node.static_pods {
        let is_judged = |path: &GuestPath| judged.contains(path);
        let volumes = pod.mounts.volumes.iter();
        let volumes = volumes.filter(|volume| !is_judged(&volume.path));
        findings.extend(volumes.filter_map(|volume| wrong_volume(guest, pod, volume)));
        if COMPONENTS.contains(&pod.name.as_str()) {
            findings.extend(files(pod).filter_map(|file| wrong_file(guest, pod, &file, &judged)));
        }
    }
    Ok(findings)
}

/// The files that the checks of certificates and of kubeconfigs speak of.
fn judged_elsewhere(inventory: &Inventory) -> Vec<GuestPath> {
    let authorities = inventory.authorities.values();
    let mut paths: Vec<GuestPath> = authorities
        .flat_map(|state| [state.certificate_path.clone(), state.key_path.clone()])
        .collect();
    for leaf in &inventory.leaves {
        match &leaf.place {
            Some(Place::Files {
                certificate, key, ..
            }) => paths.extend([certificate.clone(), key.clone()]),
            Some(Place::Config { path, .. }) => paths.push(path.clone()),
            // A kubeconfig that cannot be read.
            None => paths.extend(leaf.problems.iter().map(|one| GuestPath::new(&one.path))),
        }
    }
    paths
}

/// A file that a flag names.
struct NamedFile<'a> {
    flag: &'a str,
    path: &'a str,
}

/// The files that a pod's flags name and that its process must open.
fn files(pod: &StaticPod) -> impl Iterator<Item = NamedFile<'_>> {
    pod.flags
        .iter()
        .filter(|(flag, path)| FILES.contains(&flag.as_str()) && path.starts_with('/'))
        .map(|(flag, path)| NamedFile { flag, path })
}

/// What stands at a path of the node.
enum There {
    Nothing,
    File { is_empty: bool },
    Folder,
    Other,
    Unknown,
}

fn there(guest: &Guest, path: &GuestPath) -> There {
    match guest.stat(path) {
        Ok(meta) => match meta.kind {
            FileKind::Regular => There::File {
                is_empty: meta.size == 0,
            },
            FileKind::Directory => There::Folder,
            FileKind::Symlink | FileKind::Special => There::Other,
        },
        Err(TreeError::NotFound(_) | TreeError::NotADirectory(_) | TreeError::Loop(_)) => {
            There::Nothing
        }
        Err(_) => There::Unknown,
    }
}

/// What the kubelet's look at a volume with a type finds wrong.
fn wrong_volume(guest: &Guest, pod: &StaticPod, volume: &HostVolume) -> Option<Finding> {
    let path = &volume.path;
    let saw = match (volume.kind.as_str(), there(guest, path)) {
        ("File" | "Directory" | "Socket" | "CharDevice" | "BlockDevice", There::Nothing)
            if !is_made_at_boot(path) =>
        {
            "it is not there"
        }
        ("File" | "FileOrCreate", There::Folder) => "it is a folder",
        ("Directory" | "DirectoryOrCreate", There::File { .. }) => "it is a file",
        _ => return None,
    };
    let title = format!("{} does not start: {path} is not what it mounts", pod.name);
    let finding = Finding::new(VOLUME, title)
        .with_evidence(path, saw)
        .with_evidence(
            &pod.path,
            format!("volume {} with the type {}", volume.name, volume.kind),
        );
    let finding = finding.with_advice(format!(
        "Put back what belongs to {path} (another control plane has the same), or take the volume \
         and its mount out of {} if nothing needs it.",
        pod.path
    ));
    Some(weighed(finding, pod))
}

/// File systems that live in memory: what is in them is made at boot.
fn is_made_at_boot(path: &GuestPath) -> bool {
    ["/run", "/var/run", "/dev", "/proc", "/sys", "/tmp"]
        .iter()
        .any(|top| path.as_path().starts_with(top))
}

fn wrong_file(
    guest: &Guest,
    pod: &StaticPod,
    file: &NamedFile<'_>,
    judged: &[GuestPath],
) -> Option<Finding> {
    match pod.mounts.reach(file.path) {
        Reached::Host(path) => missing_file(guest, pod, file, &path, judged),
        // Nothing is mounted at all: the manifest is not one of kubeadm's.
        Reached::Image if !pod.mounts.volumes.is_empty() => unmounted_file(guest, pod, file),
        Reached::Image | Reached::Elsewhere => None,
    }
}

fn missing_file(
    guest: &Guest,
    pod: &StaticPod,
    file: &NamedFile<'_>,
    path: &GuestPath,
    judged: &[GuestPath],
) -> Option<Finding> {
    if judged.contains(path)
        || KEYS_OF_SERVICE_ACCOUNTS.contains(&file.flag)
        || is_made_at_boot(path)
    {
        return None;
    }
    let saw = match there(guest, path) {
        There::Nothing => "it is not there",
        There::Folder => "a folder stands in its place",
        There::File { is_empty: true } => "it is empty",
        There::File { is_empty: false } | There::Other | There::Unknown => return None,
    };
    let title = format!("{} does not start: {path} cannot be used", pod.name);
    let finding = Finding::new(MISSING, title)
        .with_evidence(path, saw)
        .with_evidence(&pod.path, format!("{}={}", file.flag, file.path));
    let advice = match file.flag {
        "--encryption-provider-config" => format!(
            "It holds the keys that Secrets in etcd are encrypted with. Copy {path} from another \
             control plane of this cluster, or from a backup. Do not write a new one: with other \
             keys the Secrets cannot be read, and are lost when they are written again."
        ),
        flag => format!(
            "Copy {path} from another control plane of this cluster or from a backup, or take \
             {flag} out of {}.",
            pod.path
        ),
    };
    Some(weighed(finding.with_advice(advice), pod))
}

/// A file that is on the node's disk under that name, and not in the container.
fn unmounted_file(guest: &Guest, pod: &StaticPod, file: &NamedFile<'_>) -> Option<Finding> {
    let path = GuestPath::new(file.path);
    if !matches!(there(guest, &path), There::File { .. }) {
        return None;
    }
    let title = format!("{} does not start: it does not see {path}", pod.name);
    let finding = Finding::new(UNMOUNTED, title)
        .with_evidence(&pod.path, format!("{}={}", file.flag, file.path))
        .with_evidence(&path, "it is there, and no mount of the pod brings it in");
    let folder = path.parent();
    Some(weighed(
        finding.with_advice(format!(
            "Move the file into a folder that the pod mounts and name it there, or add a hostPath \
             volume of {folder} and its volumeMount to {}.",
            pod.path
        )),
        pod,
    ))
}

/// Without its own pods kubeadm's control plane does not come back; what another pod is for is not
/// known.
fn weighed(finding: Finding, pod: &StaticPod) -> Finding {
    match COMPONENTS.contains(&pod.name.as_str()) {
        true => finding,
        false => finding.with_severity(Severity::WillBreak),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checks::bench::{Bench, control_plane};
    use crate::tree::MemoryTree;

    const MANIFEST: &str = "/etc/kubernetes/manifests/kube-apiserver.yaml";
    const POLICY: &str = "/etc/kubernetes/audit/policy.yaml";

    /// An API server with an audit policy; `kind`: of the volume that brings it in.
    fn node(kind: &str) -> MemoryTree {
        let text = format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: kube-apiserver}}\nspec:\n  containers:\n\
             \x20 - command: [kube-apiserver, --audit-policy-file={POLICY}]\n    volumeMounts:\n\
             \x20   - {{mountPath: /etc/kubernetes/audit, name: audit}}\n  volumes:\n\
             \x20 - {{name: audit, hostPath: {{path: /etc/kubernetes/audit, type: {kind}}}}}\n"
        );
        control_plane().file(MANIFEST, text)
    }

    fn text_of(tree: &MemoryTree) -> String {
        let guest = tree.clone().into_guest();
        guest.read_text(&GuestPath::new(MANIFEST)).unwrap()
    }

    fn silent(tree: MemoryTree) {
        Bench::new(CHECK).silent(tree);
    }

    #[test]
    fn what_a_flag_names_must_be_there_and_hold_something() {
        silent(node("DirectoryOrCreate").file(POLICY, "kind: Policy\n"));
        for tree in [
            node("DirectoryOrCreate"),
            node("DirectoryOrCreate").file(POLICY, ""),
            node("DirectoryOrCreate").dir(POLICY),
            node("DirectoryOrCreate").link(POLICY, "/gone"),
        ] {
            let found = Bench::new(CHECK).found(tree);
            assert_eq!(found.len(), 1, "{found:#?}");
            assert_eq!(found[0].mode, MISSING);
            assert!(found[0].evidence[1].saw.contains("--audit-policy-file"));
        }
    }

    #[test]
    fn the_kind_of_a_volume_is_judged_as_the_kubelet_judges_it() {
        let modes = |tree: MemoryTree| Bench::new(CHECK).modes(tree);
        assert_eq!(
            modes(node("Directory")),
            ["static-pod-files.volume", "static-pod-files.missing"]
        );
        let file = node("DirectoryOrCreate").file("/etc/kubernetes/audit", "x");
        assert_eq!(modes(file)[0], "static-pod-files.volume");
        let folder = node("FileOrCreate").file(POLICY, "kind: Policy\n");
        assert_eq!(modes(folder), ["static-pod-files.volume"]);
        // Without a type nobody looks.
        silent(node("\"\"").file(POLICY, "kind: Policy\n"));
    }

    #[test]
    fn a_file_that_no_mount_brings_in_is_named() {
        let tree = node("DirectoryOrCreate").file(POLICY, "kind: Policy\n");
        let text = text_of(&tree).replace(
            "[kube-apiserver,",
            "[kube-apiserver, --oidc-ca-file=/etc/ssl/login.pem,",
        );
        let tree = tree.file(MANIFEST, text);
        // In the image, for all that anybody knows.
        silent(tree.clone());
        let found = Bench::new(CHECK).found(tree.file("/etc/ssl/login.pem", "PEM"));
        assert_eq!(found.len(), 1, "{found:#?}");
        assert_eq!(found[0].mode, UNMOUNTED);
        assert!(found[0].advice[0].contains("/etc/ssl"));
    }

    #[test]
    fn encryption_keys_are_never_to_be_written_anew() {
        let tree = node("DirectoryOrCreate").file(POLICY, "kind: Policy\n");
        let text = text_of(&tree).replace(
            "[kube-apiserver,",
            "[kube-apiserver, --encryption-provider-config=/etc/kubernetes/audit/enc.yaml,",
        );
        let found = Bench::new(CHECK).found(tree.file(MANIFEST, text));
        assert!(
            found[0].advice[0].contains("Do not write a new one"),
            "{found:#?}"
        );
        assert!(found[0].remedies.is_empty());
    }

    #[test]
    fn what_is_made_at_boot_and_manifests_without_volumes_are_no_finding() {
        silent(control_plane());
        let text = "kind: Pod\nmetadata: {name: kube-apiserver}\nspec:\n  containers:\n  - command: \
            [kube-apiserver]\n    volumeMounts: [{mountPath: /run/x, name: x}]\n  volumes:\n  - \
            {name: x, hostPath: {path: /run/x.sock, type: Socket}}\n";
        silent(control_plane().file(MANIFEST, text));
    }
}
