//! containerd-config: containerd's configuration keeps it from answering the kubelet.
//!
//! Docker's package containerd.io brings a configuration that disables the plugin "cri"; where it
//! replaces kubeadm's, the kubelet ends with "unknown service runtime.v1alpha2.RuntimeService" or
//! "CRI v1 runtime API is not implemented".

use std::rc::Rc;

use anyhow::Result;
use serde_json::{Map, Value, json};

use crate::change::{Change, Prepared};
use crate::finding::{Check, Context, Finding, Mode, Remedy};
use crate::guest::{GuestPath, Origin};
use crate::node::{ContainerdFile, Role, containerd_files, runtime_units};

const CRI_DISABLED: Mode = Mode::stops_boot(
    "containerd-config.cri-disabled",
    "containerd's configuration disables the plugin that the kubelet talks to",
)
.why(
    "The kubelet talks to the plugin `cri`. The configuration that Docker's package \
    containerd.io brings disables it, and the kubelet exits with \"unknown service \
    runtime.v1alpha2.RuntimeService\" or \"CRI v1 runtime API is not implemented\".",
)
.done(
    "Takes the plugin out of `disabled_plugins`, in imported files too. The rest of the \
    file stays.",
)
.source(
    "containerd's services/server/config; \
    https://github.com/containerd/containerd/issues/4581",
)
.logged(&[
    "unknown service runtime.v1alpha2.RuntimeService",
    "unknown service runtime.v1.RuntimeService",
    "CRI v1 runtime API is not implemented",
]);
const DAMAGED: Mode = Mode::stops_boot(
    "containerd-config.damaged",
    "containerd's configuration is no TOML, and containerd does not start",
)
.why("containerd exits with \"failed to unmarshal TOML\", and no container starts.")
.done(
    "Names the line that is no TOML and what to type. An empty file is legal and means \
    all defaults.",
)
.source("LoadConfig in containerd's services/server/config/config.go")
.logged(&["failed to unmarshal TOML", "failed to load TOML"]);

/// See the module.
pub const CHECK: Check = Check {
    id: "containerd-config",
    about: "containerd's configuration, where the kubelet talks to containerd: no TOML, or the \
            plugin \"cri\" disabled",
    modes: &[CRI_DISABLED, DAMAGED],
    roles: &[Role::ControlPlane, Role::Worker],
    after: &[],
    run,
};

fn run(context: &Context<'_>) -> Result<Vec<Finding>> {
    let (units, endpoint) = runtime_units(context.guest, context.node);
    if !units.iter().any(|unit| unit.program == "containerd") {
        return Ok(Vec::new());
    }
    let files = containerd_files(context.guest);
    let findings = files.iter().filter_map(damaged).chain(cri_disabled(&files));
    Ok(findings
        .map(|finding| finding.with_evidence("", format!("the kubelet talks to it: {endpoint}")))
        .collect())
}

fn cri_disabled(files: &[ContainerdFile]) -> Option<Finding> {
    let mut finding = Finding::new(
        CRI_DISABLED,
        "containerd's plugin \"cri\" is disabled, and the kubelet talks to it",
    );
    let mut edits = Vec::new();
    for file in files {
        let (disabled, Ok(toml)) = (file.disabled_cri(), &file.toml) else {
            continue;
        };
        let Some(first) = disabled.first() else {
            continue;
        };
        let at = Origin::line(file.path.clone(), first.line);
        finding = finding.with_evidence(at, format!("disabled_plugins has \"{}\"", first.value));
        edits.push((file.path.clone(), toml.without(&disabled)));
    }
    if edits.is_empty() {
        return None;
    }
    let finding = finding.with_advice(
        "The kubelet exits at its start: \"unknown service runtime.v1alpha2.RuntimeService\" or \
         \"CRI v1 runtime API is not implemented\".",
    );
    Some(finding.with_remedy(EnableCri {
        edits: Rc::new(edits),
    }))
}

/// An empty file is whole: every default holds then.
fn damaged(file: &ContainerdFile) -> Option<Finding> {
    let why = file.toml.as_ref().err()?;
    let path = &file.path;
    let finding = Finding::new(
        DAMAGED,
        format!("containerd cannot read its configuration: {path}"),
    )
    .with_evidence(path, crate::pki::x509::certificate::printable(why))
    .with_advice(format!(
        "Take {path} from another node with the same containerd: scp NODE:{path} {path}\n\
         Or on this node: containerd config default > {path}, then set SystemdCgroup to true where \
         the kubelet's cgroupDriver is systemd."
    ));
    Some(finding)
}

/// The plugin leaves the lists; everything else in the files stays.
#[derive(Debug)]
struct EnableCri {
    edits: Rc<Vec<(GuestPath, String)>>,
}

impl EnableCri {
    fn paths(&self) -> Vec<String> {
        self.edits
            .iter()
            .map(|(path, _)| path.to_string())
            .collect()
    }
}

impl Remedy for EnableCri {
    fn kind(&self) -> &'static str {
        "enable-cri-plugin"
    }

    fn summary(&self) -> String {
        let paths = self.paths().join(", ");
        format!("take \"cri\" out of disabled_plugins in {paths}")
    }

    fn fields(&self) -> Map<String, Value> {
        Map::from_iter([("paths".to_owned(), json!(self.paths()))])
    }

    fn prepare(&self, context: &Context<'_>) -> Result<Prepared> {
        let mut draft = context.draft();
        for (path, text) in self.edits.iter() {
            let change = Change::write(&draft.guest, path, text.as_bytes(), 0o644)?;
            draft.push(change)?;
        }
        Ok(draft.done())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checks::bench::{Bench, worker};
    use crate::tree::MemoryTree;

    const FILE: &str = "/etc/containerd/config.toml";
    const IMPORT: &str = "/etc/containerd/conf.d/docker.toml";

    fn node(endpoint: &str, config: &str) -> MemoryTree {
        let flags = format!("KUBELET_KUBEADM_ARGS=\"--container-runtime-endpoint={endpoint}\"\n");
        worker()
            .file("/var/lib/kubelet/kubeadm-flags.env", flags)
            .file(FILE, config)
    }

    fn containerd(config: &str) -> MemoryTree {
        node("unix:///run/containerd/containerd.sock", config)
    }

    #[test]
    fn the_plugin_leaves_the_lists_of_all_files() {
        let bench = Bench::new(CHECK);
        let config = "version = 2\n# ours\n\
                      disabled_plugins = [\"io.containerd.grpc.v1.cri\", \"a\"]\n\
                      imports = [\"/etc/containerd/conf.d/*.toml\"]\n";
        let tree = containerd(config).file(IMPORT, "disabled_plugins = ['cri']\n");
        let found = bench.found(tree.clone());
        assert_eq!(found[0].evidence[0].place(), format!("{FILE}:3"));
        let mended = bench.mended(tree);
        let text = |path: &str| mended.read_text(&GuestPath::new(path)).unwrap();
        let expected = config.replace("\"io.containerd.grpc.v1.cri\", ", "");
        assert_eq!(text(FILE), expected);
        assert_eq!(text(IMPORT), "disabled_plugins = []\n");
    }

    #[test]
    fn a_file_that_is_no_toml_is_named() {
        let bench = Bench::new(CHECK);
        for config in ["\0\0\0\0", "version = 2\n[plugins\n"] {
            assert_eq!(
                bench.modes(containerd(config)),
                ["containerd-config.damaged"]
            );
        }
    }

    #[test]
    fn whole_files_and_other_runtimes_are_no_finding() {
        let bench = Bench::new(CHECK);
        bench.silent(containerd(""));
        bench.silent(containerd("disabled_plugins = [\"restart\"]\n"));
        bench.silent(containerd("# disabled_plugins = [\"cri\"]\n"));
        let disabled = "disabled_plugins = [\"cri\"]\n";
        // Docker brings containerd, and the kubelet does not talk to it.
        bench.silent(node("unix:///var/run/cri-dockerd.sock", disabled));
        bench.silent(node("unix:///run/crio/crio.sock", disabled));
    }
}
