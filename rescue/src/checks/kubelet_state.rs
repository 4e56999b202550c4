//! kubelet-state: a state file of the kubelet that it cannot restore, and it exits: "could not
//! restore state from checkpoint".
//!
//! After a power cut nothing that these files describe is running, so the kubelet may begin with
//! new ones, as its own message says ("please drain this node and delete the CPU manager checkpoint
//! file"). The checksum inside is one of Go objects (pkg/kubelet/checkpointmanager/checksum) and is
//! not looked at.

use anyhow::Result;
use serde_json::{Map, Value, json};

use crate::base::yaml;
use crate::change::{Change, Prepared};
use crate::finding::{Check, Context, Finding, Mode, Remedy};
use crate::guest::GuestPath;
use crate::node::{Kubelet, Node, Role};

const DAMAGED: Mode = Mode::stops_boot(
    "kubelet-state.damaged",
    "a state file of the kubelet is empty, zeroed, or no JSON",
)
.why(
    "The kubelet restores its managers from these files and exits where it cannot: \
    \"could not restore state from checkpoint: …, please drain this node and delete the \
    CPU manager checkpoint file\".",
)
.done(
    "Takes the file away; the kubelet makes a new one. After a power cut nothing that it \
    describes is running.",
)
.source("pkg/kubelet/cm/cpumanager/state/state_checkpoint.go and its siblings")
.logged(&[
    "could not restore state from checkpoint",
    "failed to initialize checkpoint manager",
    "checkpoint is corrupted",
]);
const POLICY: Mode = Mode::stops_boot(
    "kubelet-state.policy",
    "a state file of the kubelet is of another policy than the configured one",
)
.why(
    "The file was written under another policy than the configured one: \"configured \
    policy 'static' differs from state checkpoint policy 'none'\".",
)
.done("Takes the file away; the kubelet makes a new one.")
.source("pkg/kubelet/cm/cpumanager/state/state_checkpoint.go")
.logged(&["differs from state checkpoint policy"]);

/// See the module.
pub const CHECK: Check = Check {
    id: "kubelet-state",
    about: "state files of the kubelet (cpu_manager_state and others) that it cannot restore, \
            and exits; they are removed",
    modes: &[DAMAGED, POLICY],
    roles: &[Role::ControlPlane, Role::Worker],
    after: &[],
    run,
};

/// One state file, and which kubelets open it.
struct StateFile {
    name: &'static str,
    /// First minor version that opens it.
    since: u32,
    /// First minor version that opens it without its feature gate.
    by_default: u32,
    gate: &'static str,
    /// Flag and configuration key of the policy that stands in it, and that policy's default.
    policy: Option<(&'static str, &'static str, &'static str)>,
}

/// NewManager and Start in pkg/kubelet/cm/{cpumanager,memorymanager,dra}, and
/// pkg/kubelet/allocation since 1.33.
const FILES: [StateFile; 5] = [
    StateFile {
        name: "cpu_manager_state",
        since: 10,
        by_default: 10,
        gate: "CPUManager",
        policy: Some(("--cpu-manager-policy", "cpuManagerPolicy", "none")),
    },
    StateFile {
        name: "memory_manager_state",
        since: 21,
        by_default: 22,
        gate: "MemoryManager",
        policy: Some(("--memory-manager-policy", "memoryManagerPolicy", "None")),
    },
    StateFile {
        name: "dra_manager_state",
        since: 26,
        by_default: 34,
        gate: "DynamicResourceAllocation",
        policy: None,
    },
    StateFile {
        name: "allocated_pods_state",
        since: 33,
        by_default: 33,
        gate: "InPlacePodVerticalScaling",
        policy: None,
    },
    StateFile {
        name: "actuated_pods_state",
        since: 33,
        by_default: 33,
        gate: "InPlacePodVerticalScaling",
        policy: None,
    },
];

fn run(context: &Context<'_>) -> Result<Vec<Finding>> {
    let folder = root_folder(&context.node.kubelet);
    if context.guest.hidden(&folder).is_some() {
        return Ok(Vec::new());
    }
    let opened = FILES.iter().filter(|file| is_opened(file, context.node));
    Ok(opened
        .filter_map(|file| fault(context, file, &folder.join(file.name)))
        .collect())
}

fn root_folder(kubelet: &Kubelet) -> GuestPath {
    let flag = kubelet
        .flag("--root-dir")
        .filter(|path| path.starts_with('/'));
    GuestPath::new(flag.unwrap_or("/var/lib/kubelet"))
}

/// Whether this kubelet opens the file. One of unknown version is taken to open what is there.
fn is_opened(file: &StateFile, node: &Node) -> bool {
    let gate = yaml::at(&node.kubelet.config, &["featureGates", file.gate]);
    let gate = gate.and_then(Value::as_bool);
    match node.kubelet_version.value {
        Some(version) if version.minor < file.since => false,
        Some(version) if version.minor < file.by_default => gate == Some(true),
        _ => gate != Some(false),
    }
}

fn fault(context: &Context<'_>, file: &StateFile, path: &GuestPath) -> Option<Finding> {
    let bytes = context.guest.read_if_there(path).ok()??;
    let (mode, title, saw) = match state(&bytes) {
        Err(saw) => (DAMAGED, "is damaged", saw),
        Ok(state) => {
            let saw = other_policy(file, &context.node.kubelet, &state)?;
            (POLICY, "is of another policy", saw)
        }
    };
    let finding = Finding::new(
        mode,
        format!(
            "{} {title}: the kubelet cannot restore it and exits",
            file.name
        ),
    )
    .with_evidence(path, saw)
    .with_advice("The kubelet makes a new one at its start.");
    Some(finding.with_remedy(RemoveState { path: path.clone() }))
}

fn state(bytes: &[u8]) -> Result<Value, String> {
    if bytes.trim_ascii().is_empty() {
        return Err("empty".to_owned());
    }
    if bytes.iter().all(|byte| *byte == 0) {
        return Err(format!("{} zero bytes", bytes.len()));
    }
    let value: Value =
        serde_json::from_slice(bytes).map_err(|error| format!("no JSON: {error}"))?;
    match value {
        Value::Object(_) => Ok(value),
        _ => Err("no JSON object".to_owned()),
    }
}

/// "configured policy … differs from state checkpoint policy" (restoreState in
/// cpumanager/state/state_checkpoint.go).
fn other_policy(file: &StateFile, kubelet: &Kubelet, state: &Value) -> Option<String> {
    let (flag, key, default) = file.policy?;
    let configured = kubelet
        .flag(flag)
        .or_else(|| yaml::text_at(&kubelet.config, &[key]))
        .filter(|policy| !policy.is_empty())
        .unwrap_or(default);
    let stored = yaml::text_at(state, &["policyName"]).unwrap_or_default();
    (stored != configured).then(|| {
        format!(
            "policyName is \"{}\", and the kubelet's {key} is \"{}\"",
            stored.escape_debug(),
            configured.escape_debug()
        )
    })
}

/// The file goes; undo puts it back.
#[derive(Debug)]
struct RemoveState {
    path: GuestPath,
}

impl Remedy for RemoveState {
    fn kind(&self) -> &'static str {
        "remove-kubelet-state"
    }

    fn summary(&self) -> String {
        format!("remove {}, which the kubelet makes anew", self.path)
    }

    fn fields(&self) -> Map<String, Value> {
        Map::from_iter([("path".to_owned(), json!(self.path.to_string()))])
    }

    fn prepare(&self, context: &Context<'_>) -> Result<Prepared> {
        Ok(Prepared {
            changes: vec![Change::remove(context.guest, &self.path)?],
            ..Prepared::default()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checks::bench::{Bench, worker};
    use crate::tree::MemoryTree;

    const CPU: &str = "/var/lib/kubelet/cpu_manager_state";
    const WHOLE: &str = "{\"policyName\":\"none\",\"defaultCpuSet\":\"\",\"checksum\":1353318690}";

    fn config(text: &str) -> MemoryTree {
        let config = format!("kind: KubeletConfiguration\n{text}\n");
        worker().file("/var/lib/kubelet/config.yaml", config)
    }

    #[test]
    fn a_damaged_file_is_removed() {
        let bench = Bench::new(CHECK);
        let memory = "/var/lib/kubelet/memory_manager_state";
        for (path, bytes) in [
            (CPU, b"".to_vec()),
            (CPU, vec![0; 62]),
            (CPU, b"{\"policyName\":\"no".to_vec()),
            (CPU, [WHOLE.as_bytes(), b"}"].concat()),
            (memory, b"[]".to_vec()),
            ("/var/lib/kubelet/actuated_pods_state", b"\n".to_vec()),
        ] {
            let tree = worker().file(path, bytes);
            assert_eq!(bench.modes(tree.clone()), ["kubelet-state.damaged"]);
            let mended = bench.mended(tree);
            assert!(!mended.exists(&GuestPath::new(path)), "{path}");
        }
    }

    #[test]
    fn a_file_of_another_policy_is_removed() {
        let bench = Bench::new(CHECK);
        let tree = config("cpuManagerPolicy: static").file(CPU, WHOLE);
        assert_eq!(bench.modes(tree.clone()), ["kubelet-state.policy"]);
        let evidence = &bench.found(tree.clone())[0].evidence[0].saw;
        assert!(evidence.contains("\"none\"") && evidence.contains("\"static\""));
        bench.mended(tree);
    }

    #[test]
    fn whole_files_and_files_that_nobody_opens_are_no_finding() {
        let bench = Bench::new(CHECK);
        bench.silent(worker());
        bench.silent(worker().file(CPU, WHOLE));
        let of_static = WHOLE.replace("none", "static");
        bench.silent(config("cpuManagerPolicy: static").file(CPU, of_static));
        let memory = "{\"policyName\":\"None\",\"machineState\":{},\"checksum\":1}";
        bench.silent(worker().file("/var/lib/kubelet/memory_manager_state", memory));
        let off = config("featureGates:\n  DynamicResourceAllocation: false");
        bench.silent(off.file("/var/lib/kubelet/dra_manager_state", ""));
        // The kubelet only warns of this one.
        let plugins = "/var/lib/kubelet/device-plugins/kubelet_internal_checkpoint";
        bench.silent(worker().file(plugins, ""));
    }
}
