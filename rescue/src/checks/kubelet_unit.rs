//! kubelet-unit: systemd does not start the kubelet, or starts it without its configuration.

use super::kubelet_enabled;
use crate::finding::{Check, Context, Finding, Mode};
use crate::guest::{Guest, GuestPath};
use crate::node::{Node, Role};
use crate::systemd::Unit;

const MASKED: Mode = Mode::stops_boot("kubelet-unit.masked", "kubelet.service is masked")
    .why(
        "A masked unit is never started, and without the kubelet nothing of Kubernetes is. A \
    unit file of 0 bytes, as a power cut leaves it, counts as masked.",
    )
    .done(
        "Names the file and the line to type: rescue does not unmask what somebody may have \
    masked.",
    )
    .source("systemd.unit(5); https://github.com/systemd/systemd/issues/4436");
const REFUSED: Mode = Mode::stops_boot(
    "kubelet-unit.refused",
    "systemd refuses kubelet.service or a drop-in of it",
)
.why(
    "systemd does not load a unit with a bad setting: \"Unit kubelet.service has a bad \
    unit file setting\".",
)
.done("Names the file, the line and what systemd says of it.")
.source("systemd's src/core/load-fragment.c; systemd-analyze verify");
const MISSING: Mode = Mode::stops_boot("kubelet-unit.missing", "there is no kubelet.service")
    .why("There is nothing that systemd could start as the kubelet.")
    .done("Names the package to install.")
    .source("systemd.unit(5), the unit search path");
const BARE: Mode = Mode::stops_boot(
    "kubelet-unit.bare",
    "the kubelet is started without its configuration, mostly because a drop-in was emptied",
)
.why(
    "kubeadm's drop-in 10-kubeadm.conf gives the kubelet its kubeconfig and its \
    configuration. Emptied, as a power cut leaves it, the kubelet starts without them, \
    stand-alone, and never joins the cluster.",
)
.done(
    "Names the drop-in and what to put back. A drop-in in /etc replaces the one of the \
    same name in /usr/lib.",
)
.source("systemd.unit(5); kubeadm's 10-kubeadm.conf");
const UNSEEN: Mode = Mode::will_break(
    "kubelet-unit.unseen",
    "kubelet.service is on a disk that was not given",
)
.why("The unit file is behind a mount whose disk was not given, so that it cannot be judged.")
.done("Names the disk to give as well.")
.source("the guest's own fstab");
const EXTENSION: Mode = Mode::note(
    "kubelet-unit.extension",
    "kubelet.service may come from a system extension, which is not read",
)
.why(
    "On systems with /var/lib/extensions the unit can come from an image that is merged \
    at boot.",
)
.done("Nothing: such an image is not read.")
.source("systemd-sysext(8)");

/// Where packages and administrators put units.
const FOLDERS: [&str; 2] = ["/etc/systemd/system", "/usr/lib/systemd/system"];

/// See the module.
pub const CHECK: Check = Check {
    id: "kubelet-unit",
    about: "the kubelet's unit: not started at boot, masked, missing, refused by systemd, or \
        without the kubelet's configuration",
    modes: &[
        MASKED,
        REFUSED,
        MISSING,
        BARE,
        kubelet_enabled::DISABLED,
        kubelet_enabled::BOOT_TARGET,
        UNSEEN,
        EXTENSION,
    ],
    roles: &[Role::ControlPlane, Role::Worker],
    after: &[],
    run,
};

fn run(context: &Context<'_>) -> anyhow::Result<Vec<Finding>> {
    let mut findings: Vec<Finding> = fault(context.guest, context.node).into_iter().collect();
    if findings.is_empty() {
        findings.extend(kubelet_enabled::disabled(context.guest));
    }
    findings.extend(kubelet_enabled::boot_target(context.guest));
    Ok(findings)
}

/// A unit that systemd will not start at all.
pub(super) fn fault(guest: &Guest, node: &Node) -> Option<Finding> {
    let Some(unit) = &node.kubelet.unit else {
        return Some(no_unit(guest));
    };
    let path = unit.fragment.clone();
    if unit.masked {
        let at = path
            .as_ref()
            .map_or_else(|| "kubelet.service".to_owned(), GuestPath::to_string);
        return Some(
            Finding::new(
                MASKED,
                "kubelet.service is masked: systemd refuses to start it",
            )
            .with_evidence(path, "empty, or a link to /dev/null")
            .with_advice(format!(
                "If nobody masked it on purpose, remove {at} (after a power cut an empty unit file \
                 looks like a mask), or run `systemctl unmask kubelet` on the node."
            )),
        );
    }
    if let Some(refusal) = unit.refusals.first() {
        return Some(
            Finding::new(REFUSED, "systemd refuses to start kubelet.service")
                .with_evidence(path, refusal.clone())
                .with_advice("Correct the unit or the drop-in named here."),
        );
    }
    bare_command(guest, node, unit)
}

/// A kubelet without `--config` and `--pod-manifest-path` runs no static pod, and without
/// `--kubeconfig` it knows no cluster. The usual cause is a drop-in that a power cut left empty: it
/// then hides the package's of the same name.
fn bare_command(guest: &Guest, node: &Node, unit: &Unit) -> Option<Finding> {
    let command = unit.command()?;
    let argv = unit.argv();
    let is_kubelet = argv
        .first()
        .is_some_and(|program| program.rsplit('/').next() == Some("kubelet"));
    let configured = [
        "--config",
        "--config-dir",
        "--pod-manifest-path",
        "--kubeconfig",
    ]
    .iter()
    .any(|flag| node.kubelet.flag(flag).is_some());
    if node.role.value != Some(Role::ControlPlane) || !is_kubelet || configured {
        return None;
    }
    let mut finding = Finding::new(
        BARE,
        "the kubelet is started without its configuration: it runs none of the control plane's \
         static pods",
    )
    .with_evidence(
        &command.origin,
        "starts it without --config, --pod-manifest-path and --kubeconfig",
    );
    let empty = |path: &&GuestPath| {
        guest
            .read(path)
            .is_ok_and(|bytes| bytes.trim_ascii().is_empty())
    };
    for drop_in in unit.drop_ins.iter().filter(empty) {
        finding = finding
            .with_evidence(
                drop_in,
                "empty: it adds nothing, and hides a file of the same name in \
                 /usr/lib/systemd/system",
            )
            .with_advice(format!(
                "If nobody emptied {drop_in} on purpose (a power cut does that), remove it."
            ));
    }
    Some(finding.with_advice(
        "kubeadm's packages bring the flags in kubelet.service.d/10-kubeadm.conf: install the \
         kubeadm package of the node's version again, or write that drop-in by hand.",
    ))
}

/// A unit that is not there, or that lies where nobody can look from here.
fn no_unit(guest: &Guest) -> Finding {
    let unseen = |title: &str| {
        Finding::new(UNSEEN, title)
            .with_evidence(FOLDERS[0], "no kubelet.service")
            .with_evidence(FOLDERS[1], "no kubelet.service")
    };
    let units = GuestPath::new("/usr/lib/systemd/system");
    if let Some(missing) = guest.hidden(&units) {
        return unseen(
            "kubelet.service cannot be looked for: the disk that holds /usr was not given",
        )
        .with_advice(format!("{}. Give that disk too.", missing.why));
    }
    // Image-based systems mount /usr by a kernel argument, or bring the kubelet in an image that is
    // laid over it at boot.
    if !guest.exists(&units) {
        return unseen(
            "kubelet.service cannot be looked for: nothing is in /usr/lib/systemd/system, and \
             fstab does not say where /usr is",
        )
        .with_advice(
            "If this system has its /usr on a partition of its own, look at the unit there.",
        );
    }
    if let Some(image) = extension(guest) {
        return Finding::new(
            EXTENSION,
            "kubelet.service cannot be looked for: it may come from a system extension",
        )
        .with_evidence(
            image,
            "laid over /usr at boot (systemd-sysext), not looked into",
        )
        .with_evidence(FOLDERS[0], "no kubelet.service")
        .with_evidence(FOLDERS[1], "no kubelet.service");
    }
    Finding::new(
        MISSING,
        "there is no kubelet.service: nothing starts the kubelet",
    )
    .with_evidence(FOLDERS[0], "no kubelet.service")
    .with_evidence(FOLDERS[1], "no kubelet.service")
    .with_advice("Install the kubelet package again, in the version that the node had.")
}

/// The first image or folder that systemd-sysext lays over /usr (systemd-sysext(8)).
pub(super) fn extension(guest: &Guest) -> Option<GuestPath> {
    ["/etc/extensions", "/var/lib/extensions"]
        .iter()
        .find_map(|folder| {
            let folder = GuestPath::new(folder);
            let first = guest
                .read_dir(&folder)
                .unwrap_or_default()
                .into_iter()
                .next()?;
            Some(folder.join(first.name))
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::severity::Severity;
    use crate::checks::bench::{Bench, control_plane, worker};
    use crate::tree::MemoryTree;

    #[test]
    fn healthy_nodes_are_no_finding() {
        Bench::new(CHECK).silent(control_plane());
        Bench::new(CHECK).silent(worker());
    }

    #[test]
    fn a_drop_in_that_was_emptied_is_found() {
        let healthy = control_plane;
        let bench = Bench::new(CHECK);
        let found = |tree: MemoryTree| bench.found(tree).pop();
        assert!(found(healthy()).is_none());
        let own = "/etc/systemd/system/kubelet.service.d/10-kubeadm.conf";
        let finding = found(healthy().file(own, "")).expect("the kubelet has no configuration");
        assert_eq!(finding.severity, Severity::StopsBoot);
        assert!(
            finding.title.contains("without its configuration"),
            "{}",
            finding.title
        );
        assert!(finding.advice[0].contains(own), "{:?}", finding.advice);
        // A script may bring what cannot be seen here.
        let script = "[Service]\nExecStart=\nExecStart=/usr/local/bin/start-kubelet\n";
        assert!(found(healthy().file(own, script)).is_none());
    }

    #[test]
    fn units_that_cannot_start() {
        let title = |tree: MemoryTree| {
            let found = Bench::new(CHECK).found(tree);
            (found[0].title.clone(), found[0].remedies.len())
        };
        let masked =
            title(control_plane().link("/etc/systemd/system/kubelet.service", "/dev/null"));
        assert!(masked.0.contains("masked") && masked.1 == 0);
        let missing = title(control_plane().without("/usr/lib/systemd/system/kubelet.service"));
        assert!(missing.0.contains("no kubelet.service"));
        let broken = title(control_plane().file(
            "/etc/systemd/system/kubelet.service.d/20.conf",
            "[Service]\nExecStart=/bin/x\n",
        ));
        assert!(broken.0.contains("refuses"));
    }
}
