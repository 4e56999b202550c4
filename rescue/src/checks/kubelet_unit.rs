//! kubelet-unit: systemd does not start the kubelet, or starts it without its configuration.

use super::enable_unit::EnableUnit;
use super::kubelet_enabled;
use super::kubelet_unit_files::{RestoreUnitFile, hidden_by, is_emptied, mends_bare};
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
        "Removes an emptied unit file where the package's own is still there. A link to \
    /dev/null may be somebody's wish: it goes only when you agree to it by itself, or with \
    `--allow kubelet-unit.masked`.",
    )
    .source("systemd.unit(5); https://github.com/systemd/systemd/issues/4436")
    .logged(&["Unit kubelet.service is masked"]);
const REFUSED: Mode = Mode::stops_boot(
    "kubelet-unit.refused",
    "systemd refuses kubelet.service or a drop-in of it",
)
.why(
    "systemd does not load a unit with a bad setting: \"Unit kubelet.service has a bad \
    unit file setting\".",
)
.done(
    "Names the file, the line and what systemd says of it. A file of zero bytes goes where the \
    package's own is still there.",
)
.source("systemd's src/core/load-fragment.c; systemd-analyze verify")
.logged(&["kubelet.service has a bad unit file setting"]);
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
    "Removes the emptied drop-in where the package's own lies below it: one in /etc replaces \
    the one of the same name in /usr/lib. Else writes it as kubeadm's packages bring it.",
)
.source("systemd.unit(5); kubeadm's 10-kubeadm.conf");
const EMPTIED: Mode = Mode::will_break(
    "kubelet-unit.emptied",
    "the file of kubelet.service was zeroed, and only its drop-ins are left",
)
.why(
    "The kubelet is started by a drop-in alone, without the unit's `Restart=always`: when it exits \
    once, as it does while the container runtime is not up yet, nothing starts it again.",
)
.done("Removes the zeroed file, so that the package's own is read again.")
.source("systemd.unit(5); kubelet.service of kubeadm's packages (Restart=always, RestartSec=10)");
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
        EMPTIED,
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
        return Some(masked(guest, path));
    }
    if let Some(refusal) = unit.refusals.first() {
        return Some(refused(guest, path, refusal));
    }
    bare_command(guest, node, unit).or_else(|| emptied(guest, path?))
}

fn emptied(guest: &Guest, path: GuestPath) -> Option<Finding> {
    if !is_emptied(guest, &path) {
        return None;
    }
    let finding = Finding::new(EMPTIED, "kubelet.service holds nothing but zero bytes")
        .with_evidence(&path, "zero bytes; only drop-ins start the kubelet");
    Some(match hidden_by(guest, &path) {
        Some(_) => finding.with_remedy(RestoreUnitFile::remove(path)),
        None => finding
            .with_advice("Install the kubelet package again, in the version that the node had."),
    })
}

/// Nobody masks with an empty file: that is what a power cut leaves. A link may be meant.
fn masked(guest: &Guest, path: Option<GuestPath>) -> Finding {
    const NAME: &str = "kubelet.service";
    let finding = Finding::new(
        MASKED,
        "kubelet.service is masked: systemd refuses to start it",
    );
    let Some(path) = path else {
        return finding.with_advice("Run `systemctl unmask kubelet` on the node.");
    };
    let emptied = is_emptied(guest, &path);
    let saw = match emptied {
        true => "an empty file, which systemd takes for a mask",
        false => "a link to /dev/null",
    };
    let finding = finding.with_evidence(&path, saw);
    if hidden_by(guest, &path).is_none() {
        return finding.with_advice(
            "There is no other kubelet.service on the disk. Install the kubelet package again, in \
             the version that the node had, then type: systemctl unmask kubelet",
        );
    }
    finding.with_remedy(EnableUnit {
        unit: NAME.to_owned(),
        mask: Some(path),
        asks: !emptied,
    })
}

fn refused(guest: &Guest, path: Option<GuestPath>, refusal: &str) -> Finding {
    let finding = Finding::new(REFUSED, "systemd refuses to start kubelet.service")
        .with_evidence(path.clone(), refusal);
    let is_hiding = |path: &GuestPath| is_emptied(guest, path) && hidden_by(guest, path).is_some();
    match path.filter(is_hiding) {
        Some(path) => finding.with_remedy(RestoreUnitFile::remove(path)),
        None => finding.with_advice("Correct the unit or the drop-in named here."),
    }
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
    let role = node.role.value;
    let has_joined = guest.exists(&GuestPath::new("/etc/kubernetes/kubelet.conf"));
    let is_one = role == Some(Role::ControlPlane) || (role == Some(Role::Worker) && has_joined);
    if !is_one || !is_kubelet || configured {
        return None;
    }
    let mut finding = Finding::new(
        BARE,
        "the kubelet is started without its configuration: it joins no cluster and runs no static \
         pod",
    )
    .with_evidence(
        &command.origin,
        "starts it without --config, --pod-manifest-path and --kubeconfig",
    );
    for drop_in in unit.drop_ins.iter().filter(|path| is_emptied(guest, path)) {
        let saw = "empty: it adds nothing, and hides a file of the same name in \
                   /usr/lib/systemd/system";
        finding = finding.with_evidence(drop_in, saw);
    }
    Some(match mends_bare(guest, unit) {
        Some(remedy) => finding.with_remedy(remedy),
        None => finding.with_advice(
            "kubeadm's packages bring the flags in kubelet.service.d/10-kubeadm.conf: install the \
             kubeadm package of the node's version again, or write that drop-in by hand.",
        ),
    })
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
        // The package's own lies below it.
        let mended = bench.mended(healthy().file(own, ""));
        assert!(!mended.exists(&GuestPath::new(own)));
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
        assert!(masked.0.contains("masked") && masked.1 == 1);
        let missing = title(control_plane().without("/usr/lib/systemd/system/kubelet.service"));
        assert!(missing.0.contains("no kubelet.service"));
        let broken = title(control_plane().file(
            "/etc/systemd/system/kubelet.service.d/20.conf",
            "[Service]\nExecStart=/bin/x\n",
        ));
        assert!(broken.0.contains("refuses"));
    }

    const OWN: &str = "/etc/systemd/system/kubelet.service";
    const PACKAGE: &str = "/usr/lib/systemd/system/kubelet.service";

    #[test]
    fn an_emptied_unit_goes_and_a_mask_by_hand_is_asked_about() {
        let bench = Bench::new(CHECK);
        let asks = |tree: MemoryTree| bench.found(tree)[0].remedies[0].asks_first();
        assert!(!asks(control_plane().file(OWN, "")));
        assert!(asks(control_plane().link(OWN, "/dev/null")));
        for emptied in [Vec::new(), vec![0; 4096]] {
            let mended = bench.mended(control_plane().file(OWN, emptied));
            assert!(!mended.exists(&GuestPath::new(OWN)));
        }
        // Without a package's own there is nothing to go back to.
        let found = bench.found(control_plane().without(PACKAGE).file(OWN, ""));
        assert!(found[0].remedies.is_empty() && found[0].advice[0].contains("kubelet package"));
    }

    #[test]
    fn kubeadms_drop_in_is_written_again_where_no_other_is_left() {
        let own = "/etc/systemd/system/kubelet.service.d/10-kubeadm.conf";
        let package = "/usr/lib/systemd/system/kubelet.service.d/10-kubeadm.conf";
        let bench = Bench::new(CHECK);
        for node in [control_plane(), worker()] {
            for emptied in [Vec::new(), vec![0; 898]] {
                let tree = node.clone().without(package).file(own, emptied);
                assert_eq!(bench.modes(tree.clone()), ["kubelet-unit.bare"]);
                let mended = bench.mended(tree);
                let kubelet = Node::read(&mended).kubelet;
                assert_eq!(
                    kubelet.flag("--config"),
                    Some("/var/lib/kubelet/config.yaml")
                );
            }
            bench.mended(node.clone().without(package));
        }
        // A kubelet that is meant to run alone has no kubelet.conf.
        let alone = worker()
            .without(package)
            .without("/etc/kubernetes/kubelet.conf");
        bench.silent(alone);
    }
}
