//! cni: what the network plugins left behind when the power went.
//!
//! libcni keeps the result of each attachment to a network in a file, and reads it again when the
//! sandbox is taken down. An emptied file is an error each time, so that neither the old sandbox
//! goes nor a new one comes. host-local keeps one file for each address given out; a sandbox that
//! was never taken down keeps its address, until none is left. On a node that is off no sandbox is
//! alive: whatever these files say is over.

use std::net::IpAddr;

use anyhow::Result;
use serde_json::{Map, Value, json};

use crate::base::units::count;
use crate::base::yaml;
use crate::change::{Change, Prepared};
use crate::finding::{Check, Context, Finding, Mode, Remedy};
use crate::guest::{Guest, GuestPath};
use crate::node::{Node, Role};
use crate::tree::FileKind;

const CACHE: Mode = Mode::will_break(
    "cni.cache-damaged",
    "results that the network plugins keep were emptied by the power cut",
)
.why(
    "The runtime asks the network plugin to take an old sandbox down first, and that fails: \
    \"decoding version from network config: unexpected end of JSON input\". Pods stay in \
    Terminating or ContainerCreating for ever.",
)
.done("Removes the damaged files. A missing one is no error to libcni.")
.source("getCachedInfo in libcni/api.go; https://github.com/containerd/containerd/issues/8197")
.logged(&[
    "decoding version from network config: unexpected end of JSON input",
    "cached result: decoding version",
]);
const LEASES: Mode = Mode::will_break(
    "cni.addresses-used-up",
    "more addresses of the node's pod network are reserved than the node can have pods",
)
.why(
    "Each sandbox that was never taken down keeps its address. When the range is used up no \
    pod starts: \"no IP addresses available in range set\".",
)
.done("Removes the reservations: no sandbox is alive on a node that is off.")
.source(
    "plugins/ipam/host-local/backend/disk; https://github.com/containernetworking/plugins/issues/252",
)
.logged(&["no IP addresses available in range set"]);
const PLUGIN: Mode = Mode::will_break(
    "cni.plugin-damaged",
    "a program of the network plugins was emptied by the power cut",
)
.why("No pod gets a network: \"exec format error\", or \"failed to find plugin\".")
.done("Nothing by itself: it says which package brings the file, and how to install it again.")
.source("FindInPath in pkg/invoke/find.go of CNI")
.logged(&["failed to find plugin", "exec format error"]);

/// See the module.
pub const CHECK: Check = Check {
    id: "cni",
    about: "what the network plugins left behind: emptied results and programs, addresses of dead \
            sandboxes",
    modes: &[CACHE, LEASES, PLUGIN],
    roles: &[Role::ControlPlane, Role::Worker],
    after: &[],
    run,
};

/// Folders of libcni's results: of 0.8 and later, of 0.7, and of the flannel plugin.
const RESULTS: [&str; 3] = [
    "/var/lib/cni/results",
    "/var/lib/cni/cache/results",
    "/var/lib/cni/flannel",
];

/// host-local's reservations, a folder for each network.
const NETWORKS: &str = "/var/lib/cni/networks";

const PROGRAMS: &str = "/opt/cni/bin";

/// Files that are looked at in one folder.
const MOST_FILES: usize = 5000;

/// A result is a few KiB.
const MOST_BYTES: u64 = 1 << 20;

/// `maxPods` where it is not set (SetDefaults_KubeletConfiguration).
const MAX_PODS: u64 = 110;

fn run(context: &Context<'_>) -> Result<Vec<Finding>> {
    let (guest, node) = (context.guest, context.node);
    // The sandboxes of a node that runs are alive.
    if guest.live {
        return Ok(programs(guest).into_iter().collect());
    }
    let found = [cache(guest), leases(guest, node), programs(guest)];
    Ok(found.into_iter().flatten().collect())
}

/// The regular files of a folder, links apart.
fn files(guest: &Guest, folder: &GuestPath) -> Vec<GuestPath> {
    let entries = guest.read_dir(folder).unwrap_or_default();
    let regular = entries
        .into_iter()
        .filter(|entry| entry.kind == FileKind::Regular);
    let paths = regular.map(|entry| folder.join(&entry.name));
    paths.take(MOST_FILES).collect()
}

fn cache(guest: &Guest) -> Option<Finding> {
    let folders = RESULTS.iter().map(GuestPath::new);
    let damaged: Vec<GuestPath> = folders
        .flat_map(|folder| files(guest, &folder))
        .filter(|path| is_damaged(guest, path))
        .collect();
    let first = damaged.first()?;
    let number = count(damaged.len(), "result", "results");
    let title = format!("{number} of the network plugins cannot be read: pods are not taken down");
    let finding = Finding::new(CACHE, title).with_evidence(first, "empty, or no JSON");
    let finding = damaged.iter().skip(1).fold(finding, |finding, path| {
        finding.with_evidence(path, "the same")
    });
    Some(finding.with_remedy(RemoveFiles {
        kind: "remove-cni-results",
        what: "damaged results of the network plugins",
        paths: damaged,
    }))
}

/// Whether no JSON object can be read from a result.
fn is_damaged(guest: &Guest, path: &GuestPath) -> bool {
    let is_small = guest.stat(path).is_ok_and(|meta| meta.size <= MOST_BYTES);
    let Some(bytes) = is_small.then(|| guest.read(path).ok()).flatten() else {
        return false;
    };
    let is_object = |value: Value| value.is_object();
    !serde_json::from_slice(&bytes).is_ok_and(is_object)
}

fn leases(guest: &Guest, node: &Node) -> Option<Finding> {
    let top = GuestPath::new(NETWORKS);
    let networks = guest.read_dir(&top).unwrap_or_default();
    let networks = networks.into_iter().map(|entry| top.join(&entry.name));
    let reserved: Vec<GuestPath> = networks
        .flat_map(|network| files(guest, &network))
        .filter(is_address)
        .collect();
    let most = yaml::at(&node.kubelet.config, &["maxPods"]).and_then(Value::as_u64);
    let most = most.filter(|most| *most > 0).unwrap_or(MAX_PODS);
    if reserved.len() as u64 <= most {
        return None;
    }
    let title = format!(
        "{} addresses of pods are reserved, and the node has at most {most} pods",
        reserved.len()
    );
    let finding = Finding::new(LEASES, title)
        .with_evidence(&top, "reservations of sandboxes that were never taken down");
    Some(finding.with_remedy(RemoveFiles {
        kind: "remove-cni-reservations",
        what: "reservations of addresses whose sandboxes are gone",
        paths: reserved,
    }))
}

/// host-local names its files after the address; `last_reserved_ip.0` and `lock` stay.
fn is_address(path: &GuestPath) -> bool {
    let name = path.as_path().file_name().unwrap_or_default();
    // An address of version 6 is written with dashes where a file system forbids colons.
    let name = name.to_string_lossy().replace('-', ":");
    name.parse::<IpAddr>().is_ok()
}

/// Programs without a byte of a program in them. A folder that is not there says nothing.
fn programs(guest: &Guest) -> Option<Finding> {
    let folder = GuestPath::new(PROGRAMS);
    let is_no_program = |path: &GuestPath| {
        let Ok(real) = guest.resolve(path) else {
            return false;
        };
        let begin = guest.tree().read_range(real.as_path(), 0, 64);
        begin.is_ok_and(|begin| begin.iter().all(|byte| *byte == 0))
    };
    let all = files(guest, &folder);
    let damaged: Vec<&GuestPath> = all.iter().filter(|path| is_no_program(path)).collect();
    let first = *damaged.first()?;
    let number = count(damaged.len(), "program", "programs");
    let title = format!("{number} of the network plugins are empty: pods get no network");
    let finding = Finding::new(PLUGIN, title).with_evidence(first, "empty, or only NUL bytes");
    let finding = damaged.iter().skip(1).fold(finding, |finding, path| {
        finding.with_evidence(*path, "the same")
    });
    Some(finding.with_advice(format!(
        "Copy {folder} from a node with the same version: scp -rp NODE:{folder} /opt/cni/\nOr, once \
         the node runs: apt-get install --reinstall kubernetes-cni (dnf reinstall kubernetes-cni). \
         What calico, cilium or flannel install there comes back with their own pods."
    )))
}

/// Files whose owners make them anew go; undo puts them back.
#[derive(Debug)]
struct RemoveFiles {
    kind: &'static str,
    what: &'static str,
    paths: Vec<GuestPath>,
}

impl Remedy for RemoveFiles {
    fn kind(&self) -> &'static str {
        self.kind
    }

    fn summary(&self) -> String {
        format!("remove {} {}", self.paths.len(), self.what)
    }

    fn fields(&self) -> Map<String, Value> {
        let paths: Vec<String> = self.paths.iter().map(GuestPath::to_string).collect();
        Map::from_iter([("paths".to_owned(), json!(paths))])
    }

    fn prepare(&self, context: &Context<'_>) -> Result<Prepared> {
        let remove = |path: &GuestPath| Ok(Change::remove(context.guest, path)?);
        let changes = self.paths.iter().map(remove).collect::<Result<_>>()?;
        Ok(Prepared {
            changes,
            ..Prepared::default()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checks::bench::{Bench, control_plane, worker};

    const RESULT: &str = "/var/lib/cni/results/cbr0-0a1b2c-eth0";
    const WHOLE: &str = r#"{"kind":"cniCacheV1","containerId":"0a1b2c","ifName":"eth0"}"#;

    #[test]
    fn emptied_results_go_and_whole_ones_stay() {
        for damaged in ["", "\0\0\0\0", "{\"kind\":", "[]"] {
            let tree = worker()
                .file(RESULT, damaged)
                .file("/var/lib/cni/results/cbr0-ffffff-eth0", WHOLE);
            let mended = Bench::new(CHECK).mended(tree);
            assert!(!mended.exists(&GuestPath::new(RESULT)), "{damaged:?}");
            let other = GuestPath::new("/var/lib/cni/results/cbr0-ffffff-eth0");
            assert!(mended.exists(&other), "{damaged:?}");
        }
    }

    #[test]
    fn more_reservations_than_pods_are_a_leak() {
        let reserved = |number: u8| {
            (1..=number).fold(worker(), |tree, host| {
                tree.file(format!("{NETWORKS}/cbr0/10.244.1.{host}"), "0a1b2c\r\neth0")
            })
        };
        let with_rest = |tree: crate::tree::MemoryTree| {
            tree.file(format!("{NETWORKS}/cbr0/last_reserved_ip.0"), "10.244.1.9")
                .file(format!("{NETWORKS}/cbr0/lock"), "")
        };
        Bench::new(CHECK).silent(with_rest(reserved(110)));
        let mended = Bench::new(CHECK).mended(with_rest(reserved(200)));
        let left = mended
            .read_dir(&GuestPath::new(NETWORKS).join("cbr0"))
            .unwrap();
        assert_eq!(left.len(), 2);
    }

    #[test]
    fn emptied_programs_are_named() {
        let elf = "\x7fELF and more";
        let tree = control_plane()
            .file(format!("{PROGRAMS}/loopback"), "")
            .file(format!("{PROGRAMS}/bridge"), "\0".repeat(4096))
            .file(format!("{PROGRAMS}/portmap"), elf);
        let found = Bench::new(CHECK).found(tree);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].evidence.len(), 2);
        assert!(found[0].advice[0].contains("scp"));
    }

    #[test]
    fn a_healthy_node_is_silent() {
        let bench = Bench::new(CHECK);
        bench.silent(control_plane());
        bench.silent(worker().file(RESULT, WHOLE));
        bench.silent(control_plane().file(format!("{PROGRAMS}/loopback"), "\x7fELF"));
        // No files of the plugins': what lies elsewhere is not theirs.
        bench.silent(control_plane().file("/var/lib/cni/other", ""));
    }
}
