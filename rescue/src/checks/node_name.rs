//! node-name: the name that the kubelet will register with, against the name that its certificate
//! and everything else on the disk speak of.
//!
//! The API server lets a kubelet act for the node of its certificate only (node authorizer,
//! NodeRestriction): registered under another name it is refused, and the node stays NotReady.

use anyhow::Result;
use serde_json::{Map, Value, json};

use crate::change::Prepared;
use crate::finding::{Check, Context, Finding, Mode, Remedy};
use crate::guest::{Guest, GuestPath};
use crate::node::{Names, Role, Witness};

const DIFFERS: Mode = Mode::stops_boot(
    "node-name.differs",
    "the kubelet registers under another name than its certificate is for",
)
.why(
    "The kubelet calls itself by --hostname-override, else by the host name in lower case. The \
    API server lets it act only for the node of its certificate: \"node \\\"a\\\" is not allowed \
    to modify node \\\"b\\\"\", and the node stays NotReady. Host names change with DHCP and \
    cloud-init, often from the short to the full form.",
)
.done(
    "Shows every name on the disk with its place, and issues certificates for the old name. \
    Puts the old name into /etc/hostname after asking (`--allow node-name.differs`), where \
    something else on the disk says it too; cloud-init is told to leave it. `--node-name NAME` \
    decides otherwise.",
)
.source("GetHostname in pkg/util/node/node.go; plugin/pkg/auth/authorizer/node/node_authorizer.go")
.logged(&[
    "is not allowed to modify node",
    "is not allowed to access node",
]);
const DOUBTFUL: Mode = Mode::stops_boot(
    "node-name.doubtful",
    "what the disk says of the node's name contradicts itself",
)
.why(
    "A certificate for a wrong name is refused, and a node that registers as another one takes \
    over that one's pods. A disk that was cloned, or a file that was copied, says such things.",
)
.done("Issues nothing for a doubtful name. `--node-name NAME` decides.")
.source("docs of the node authorizer; kubeadm names node, etcd member and certificates alike");

/// See the module.
pub const CHECK: Check = Check {
    id: "node-name",
    about: "the name that the kubelet registers with, against its certificate and the rest",
    modes: &[DIFFERS, DOUBTFUL],
    roles: &[Role::ControlPlane, Role::Worker],
    after: &[],
    run,
};

const HOSTNAME: &str = "/etc/hostname";

/// Where cloud-init is told to leave the host name (cc_set_hostname, cc_update_hostname).
const PRESERVE: &str = "/etc/cloud/cloud.cfg.d/99-rescue-hostname.cfg";

fn run(context: &Context<'_>) -> Result<Vec<Finding>> {
    let names = &context.node.names;
    let agreed = match names.agreed() {
        Ok(agreed) => agreed,
        Err(_) => return Ok(vec![doubtful(names)]),
    };
    let (Some(agreed), Some(registers)) = (agreed, &names.registers) else {
        return Ok(Vec::new());
    };
    let differs = registers.name != agreed.name;
    let found = differs.then(|| differing(context.guest, names, &agreed, registers));
    Ok(found.into_iter().collect())
}

/// Each of them with its place.
fn with_witnesses(finding: Finding, names: &Names) -> Finding {
    let all = names.certified.iter().chain(&names.registers);
    all.chain(&names.others).fold(finding, |finding, witness| {
        finding.with_evidence(
            &witness.path,
            format!("{} ({})", witness.name, witness.source),
        )
    })
}

fn doubtful(names: &Names) -> Finding {
    let finding = Finding::new(
        DOUBTFUL,
        "the node's name is in doubt: nothing is issued for it",
    );
    let mut said: Vec<&str> = Vec::new();
    let all = names.certified.iter().chain(&names.registers);
    for witness in all.chain(&names.others) {
        if !said.contains(&witness.name.as_str()) {
            said.push(&witness.name);
        }
    }
    let next: Vec<String> = said
        .iter()
        .map(|name| format!("--node-name {name}"))
        .collect();
    with_witnesses(finding, names).with_advice(format!(
        "kubectl get nodes on another control plane shows the true name. Run this again with {}.",
        next.join(" or ")
    ))
}

fn differing(guest: &Guest, names: &Names, agreed: &Witness, registers: &Witness) -> Finding {
    let title = format!(
        "the kubelet registers as {}, and its certificate is for {}",
        registers.name, agreed.name
    );
    let finding = with_witnesses(Finding::new(DIFFERS, title), names).with_advice(format!(
        "The kubelet will call itself {} ({}); the API server accepts it as {} only.",
        registers.name, registers.source, agreed.name
    ));
    let is_hostname = registers.path == GuestPath::new(HOSTNAME);
    let is_supported = names.decided.is_some() || !names.supporters(&agreed.name).is_empty();
    if is_hostname && is_supported {
        let preserves = cloud_init_renames(guest);
        return finding.with_remedy(SetHostname {
            name: agreed.name.clone(),
            preserves,
        });
    }
    finding.with_advice(match is_hostname {
        true => format!(
            "Nothing else on this disk says {}. If that is the node's name: write it into \
             {HOSTNAME}, or run this again with --node-name {} --allow node-name.differs. If the \
             new name is meant: --node-name {}.",
            agreed.name, agreed.name, registers.name
        ),
        false => format!(
            "Put {} into --hostname-override in {}.",
            agreed.name, registers.path
        ),
    })
}

/// Whether cloud-init runs at boot and nothing tells it to leave the host name.
fn cloud_init_renames(guest: &Guest) -> bool {
    let config = GuestPath::new("/etc/cloud/cloud.cfg");
    let is_off = guest.exists(&GuestPath::new("/etc/cloud/cloud-init.disabled"));
    if is_off || !guest.exists(&config) {
        return false;
    }
    let folder = GuestPath::new("/etc/cloud/cloud.cfg.d");
    let parts = guest.read_dir(&folder).unwrap_or_default();
    let parts = parts.into_iter().map(|entry| folder.join(&entry.name));
    let keeps = |path: GuestPath| {
        let text = guest.read_text(&path).unwrap_or_default();
        let mut lines = text.lines().map(|line| line.replace(' ', ""));
        lines.any(|line| line == "preserve_hostname:true")
    };
    !std::iter::once(config).chain(parts).any(keeps)
}

/// The old name goes back into /etc/hostname.
#[derive(Debug)]
struct SetHostname {
    name: String,
    /// Whether cloud-init must be told to leave it.
    preserves: bool,
}

impl Remedy for SetHostname {
    fn kind(&self) -> &'static str {
        "set-hostname"
    }

    fn summary(&self) -> String {
        format!("write {} into {HOSTNAME}", self.name)
    }

    fn details(&self) -> Vec<String> {
        let cloud_init = format!("{PRESERVE}: cloud-init leaves the host name from now on");
        self.preserves.then_some(cloud_init).into_iter().collect()
    }

    fn asks_first(&self) -> bool {
        true
    }

    fn fields(&self) -> Map<String, Value> {
        Map::from_iter([("name".to_owned(), json!(self.name))])
    }

    fn prepare(&self, context: &Context<'_>) -> Result<Prepared> {
        let mut draft = context.draft();
        let text = format!("{}\n", self.name);
        draft.write(&GuestPath::new(HOSTNAME), text, 0o644)?;
        if self.preserves {
            let like = GuestPath::new("/etc/cloud/cloud.cfg");
            let text = "# by rescue: the kubelet's certificate is for this host name\n\
                preserve_hostname: true\n";
            draft.write_like(&GuestPath::new(PRESERVE), text, 0o644, &like)?;
        }
        Ok(draft.done())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checks::bench::{Bench, control_plane, worker};
    use crate::tree::MemoryTree;

    const CONF: &str = "apiVersion: v1\nkind: Config\nclusters: [{name: c, cluster: {server: x}}]\n\
        contexts: [{name: c, context: {cluster: c, user: 'system:node:master1'}}]\n\
        current-context: c\nusers: [{name: 'system:node:master1', user: {}}]\n";
    const ETCD: &str = "kind: Pod\nmetadata: {name: etcd}\nspec: {containers: [{command: [etcd, \
        --name=master1]}]}\n";

    fn node(hostname: &str) -> MemoryTree {
        control_plane()
            .file("/etc/kubernetes/kubelet.conf", CONF)
            .file("/etc/kubernetes/manifests/etcd.yaml", ETCD)
            .file(HOSTNAME, hostname)
    }

    #[test]
    fn one_name_everywhere_is_no_finding() {
        Bench::new(CHECK).silent(node("master1\n"));
        Bench::new(CHECK).silent(node("# a comment\n\n  MASTER1  \n"));
        // DHCP names it.
        Bench::new(CHECK).silent(node("localhost\n"));
        Bench::new(CHECK).silent(node("").without(HOSTNAME));
        Bench::new(CHECK).silent(worker().file(HOSTNAME, "worker1\n"));
        // The flag counts, not the host name.
        Bench::new(CHECK).silent(node("other\n").file(
            "/var/lib/kubelet/kubeadm-flags.env",
            "KUBELET_KUBEADM_ARGS=\"--hostname-override=master1\"\n",
        ));
    }

    #[test]
    fn without_a_certificate_a_contradiction_is_doubtful() {
        for hostname in ["master1.example.org\n", "placeholder\n"] {
            let found = Bench::new(CHECK).found(node(hostname));
            assert_eq!(found.len(), 1, "{found:#?}");
            assert_eq!(found[0].mode, DOUBTFUL);
            let advice = found[0].advice.join(" ");
            assert!(advice.contains("--node-name master1"), "{advice}");
        }
    }

    #[test]
    fn cloud_init_is_asked_to_keep_a_name_only_where_it_would_not() {
        let renames = |tree: MemoryTree| cloud_init_renames(&tree.into_guest());
        assert!(!renames(control_plane()));
        let with = |text: &str| control_plane().file("/etc/cloud/cloud.cfg", text);
        assert!(renames(with("preserve_hostname: false\n")));
        assert!(!renames(with("preserve_hostname: true\n")));
        assert!(!renames(
            with("").file("/etc/cloud/cloud-init.disabled", "")
        ));
        assert!(!renames(with("").file(
            "/etc/cloud/cloud.cfg.d/10.cfg",
            "preserve_hostname:   true\n"
        )));
    }
}
