//! kubelet-flags: flags that the installed kubelet does not know any more.
//!
//! A package that was upgraded without `kubeadm upgrade node` leaves the flags of the old version
//! in kubeadm-flags.env; the kubelet shows it at its next start only, which may be the one after
//! the outage.

use anyhow::{Context as _, Result};
use serde_json::{Map, Value, json};

use crate::change::{Prepared, line};
use crate::finding::{Check, Context, Finding, Mode, Remedy};
use crate::guest::Origin;
use crate::node::{Role, Version};

const REMOVED: Mode = Mode::stops_boot(
    "kubelet-flags.removed",
    "the kubelet is given a flag that its version has no more",
)
.why(
    "The kubelet exits at its start: \"failed to parse kubelet flag: unknown flag\". A package \
    that was upgraded without `kubeadm upgrade node` leaves the flags of the version before.",
)
.done(
    "Takes the flag out of the line that gives it. Where it gave a value that matters in \
    another form now (the runtime of the dockershim), the finding says so.",
)
.source(
    "CHANGELOG-1.24, 1.26, 1.27, 1.31 and 1.35 of Kubernetes: kubernetes/kubernetes#106907, \
    #112120, #114017, #122082, #133779",
)
.logged(&["failed to parse kubelet flag", "unknown flag: --"]);

/// See the module.
pub const CHECK: Check = Check {
    id: "kubelet-flags",
    about: "flags that the installed version of the kubelet has no more",
    modes: &[REMOVED],
    roles: &[Role::ControlPlane, Role::Worker],
    after: &["kubelet-unit"],
    run,
};

/// The minor version that has a flag no more, and the flags.
const GONE: [(u32, &[&str]); 5] = [
    (
        24,
        &[
            "--network-plugin",
            "--cni-conf-dir",
            "--cni-bin-dir",
            "--cni-cache-dir",
            "--network-plugin-mtu",
            "--docker-endpoint",
            "--image-pull-progress-deadline",
            "--experimental-dockershim-root-directory",
        ],
    ),
    (
        26,
        &[
            "--log-dir",
            "--log-file",
            "--log-file-max-size",
            "--logtostderr",
            "--alsologtostderr",
            "--stderrthreshold",
            "--one-output",
            "--skip-headers",
            "--skip-log-headers",
            "--add-dir-header",
            "--log-backtrace-at",
        ],
    ),
    (27, &["--container-runtime"]),
    (31, &["--keep-terminated-pod-volumes"]),
    (35, &["--pod-infra-container-image"]),
];

fn run(context: &Context<'_>) -> Result<Vec<Finding>> {
    let node = context.node;
    let Some(version) = node.kubelet_version.value else {
        return Ok(Vec::new());
    };
    let mut findings = Vec::new();
    let mut seen: Vec<&str> = Vec::new();
    for (flag, value) in &node.kubelet.flags {
        let since = gone_since(flag, version);
        if let Some(minor) = since.filter(|_| !seen.contains(&flag.as_str())) {
            seen.push(flag);
            findings.push(finding(context, flag, value, minor));
        }
    }
    Ok(findings)
}

/// The minor version from which on this kubelet lacks a flag.
fn gone_since(flag: &str, version: Version) -> Option<u32> {
    let (minor, _) = GONE.iter().find(|(_, flags)| flags.contains(&flag))?;
    (version.major == 1 && version.minor >= *minor).then_some(*minor)
}

fn finding(context: &Context<'_>, flag: &str, value: &str, minor: u32) -> Finding {
    let title = format!("the kubelet does not start: it has no flag {flag} from 1.{minor} on");
    let at = context.node.kubelet.flag_origin(flag);
    let finding = Finding::new(REMOVED, title).with_evidence(at.clone(), format!("{flag}={value}"));
    let finding = match (flag, value) {
        ("--container-runtime", "docker") | ("--network-plugin" | "--docker-endpoint", _) => {
            finding.with_advice(
                "The flag is of the time when the kubelet spoke to docker itself. From 1.24 on it \
                 needs a runtime of its own: containerd, or docker with cri-dockerd.",
            )
        }
        _ => finding,
    };
    let line = at.as_ref().and_then(|at| {
        let text = context.guest.read_text(&at.path).ok()?;
        let line = text.split('\n').nth(at.line?.checked_sub(1)?)?.to_owned();
        without_flag(&line, flag).map(|new| (line, new))
    });
    match (at, line) {
        (Some(at), Some((old, new))) => finding.with_remedy(RemoveFlag {
            flag: flag.to_owned(),
            at,
            old,
            new,
        }),
        _ => finding.with_advice(format!("Take {flag} out of the kubelet's command line.")),
    }
}

/// A line without a flag and its value; `None` where the two are words of their own, or the flag is
/// not found as a word of the line.
fn without_flag(text: &str, flag: &str) -> Option<String> {
    let starts = text.match_indices(flag).map(|(start, _)| start);
    let is_end = |c: char| c.is_whitespace() || c == '"' || c == '\'';
    for start in starts {
        let (before, rest) = text.split_at(start);
        let after = rest.get(flag.len()..)?;
        let is_word = before
            .chars()
            .next_back()
            .is_none_or(|c| is_end(c) || c == '=');
        let (value, is_joined) = match after.strip_prefix('=') {
            Some(value) => (value, true),
            None => (after, false),
        };
        if !is_word || !(is_joined || after.chars().next().is_none_or(is_end)) {
            continue;
        }
        let length = match is_joined {
            true => value.find(is_end).unwrap_or(value.len()),
            false => 0,
        };
        let rest = value.get(length..)?;
        // A word that is no flag behind a bare one would be its value.
        let next = rest.trim_start_matches([' ', '\t']);
        let is_value = |c: char| !(is_end(c) || c == '-' || c == '\\' || c == '$');
        if !is_joined && next.chars().next().is_some_and(is_value) {
            return None;
        }
        return Some(format!("{before}{}", rest.trim_start_matches(' ')));
    }
    None
}

/// The flag leaves its line; the rest of the file stays.
#[derive(Debug)]
struct RemoveFlag {
    flag: String,
    at: Origin,
    old: String,
    new: String,
}

impl Remedy for RemoveFlag {
    fn kind(&self) -> &'static str {
        "remove-kubelet-flag"
    }

    fn summary(&self) -> String {
        format!("take {} out of {}", self.flag, self.at)
    }

    fn fields(&self) -> Map<String, Value> {
        Map::from_iter([
            ("path".to_owned(), json!(self.at.to_string())),
            ("flag".to_owned(), json!(self.flag)),
        ])
    }

    fn prepare(&self, context: &Context<'_>) -> Result<Prepared> {
        let mut draft = context.draft();
        // Another flag may have left the same line before.
        let text = draft.guest.read_text(&self.at.path)?;
        let index = self.at.line.and_then(|line| line.checked_sub(1));
        let now = index.and_then(|index| text.split('\n').nth(index));
        let now = now.with_context(|| format!("{} is not there any more", self.at))?;
        let (old, new) = match now == self.old {
            true => (self.old.clone(), self.new.clone()),
            false => {
                let new = without_flag(now, &self.flag);
                (
                    now.to_owned(),
                    new.context("the flag is not there any more")?,
                )
            }
        };
        let change = line::replace_line(&draft.guest, &self.at, &old, &new)?;
        draft.push(change)?;
        Ok(draft.done())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checks::bench::{Bench, control_plane};
    use crate::guest::GuestPath;
    use crate::tree::MemoryTree;

    const FLAGS: &str = "/var/lib/kubelet/kubeadm-flags.env";

    fn node(version: &str, flags: &str) -> MemoryTree {
        control_plane()
            .file(FLAGS, format!("KUBELET_KUBEADM_ARGS=\"{flags}\"\n"))
            .file(
                "/var/lib/dpkg/status",
                format!("Package: kubelet\nStatus: install ok installed\nVersion: {version}\n"),
            )
    }

    #[test]
    fn flags_that_are_gone_leave_their_line() {
        let flags = "--network-plugin=cni --node-ip=10.0.0.1 --container-runtime=remote";
        let bench = Bench::new(CHECK);
        assert_eq!(
            bench.modes(node("1.27.4-1.1", flags)),
            ["kubelet-flags.removed"; 2]
        );
        let mended = bench.mended(node("1.27.4-1.1", flags));
        let text = mended.read_text(&GuestPath::new(FLAGS)).unwrap();
        assert_eq!(text, "KUBELET_KUBEADM_ARGS=\"--node-ip=10.0.0.1 \"\n");
        // 1.24 still has --container-runtime.
        assert_eq!(bench.modes(node("1.24.0-00", flags)).len(), 1);
    }

    #[test]
    fn what_the_version_knows_and_unknown_versions_are_no_finding() {
        let bench = Bench::new(CHECK);
        bench.silent(control_plane());
        bench.silent(node(
            "1.23.9-00",
            "--network-plugin=cni --container-runtime=remote",
        ));
        bench.silent(node(
            "1.34.1-1.1",
            "--pod-infra-container-image=registry.k8s.io/pause:3.9",
        ));
        bench.silent(node(
            "1.31.0-1.1",
            "--container-runtime-endpoint=unix:///run/x.sock",
        ));
    }

    #[test]
    fn only_whole_words_leave_a_line() {
        let without = |text: &str, flag: &str| without_flag(text, flag);
        assert_eq!(
            without("A=\"--log-dir=/x --log-file=/y\"", "--log-dir").as_deref(),
            Some("A=\"--log-file=/y\"")
        );
        assert_eq!(
            without("A=\"--log-file-max-size=1 --log-file=/y\"", "--log-file").as_deref(),
            Some("A=\"--log-file-max-size=1 \"")
        );
        assert_eq!(
            without("A=--logtostderr", "--logtostderr").as_deref(),
            Some("A=")
        );
        assert_eq!(without("A=\"--log-dir /x\"", "--log-dir"), None);
        assert_eq!(without("A=\"--v=2\"", "--log-dir"), None);
    }
}
