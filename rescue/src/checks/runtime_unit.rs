//! runtime-unit: systemd does not start the container runtime that the kubelet talks to.
//!
//! Which one that is, the kubelet's endpoint says. Another runtime on the same node may well be
//! masked or disabled: Docker after a migration to containerd is.

use anyhow::Result;

use super::enable_unit::EnableUnit;
use super::kubelet_unit::extension;
use crate::finding::{Check, Context, Finding, Mode};
use crate::guest::{Guest, GuestPath};
use crate::node::{Role, RuntimeUnit, runtime_units};
use crate::systemd::{Unit, install_links, is_started, units_that_run};
use crate::tree::FileKind;

const DISABLED: Mode = Mode::stops_boot(
    "runtime-unit.disabled",
    "the unit of the container runtime is disabled: nothing starts it at boot",
)
.why(
    "The unit was started by hand once, with `systemctl start`, and never enabled: the \
    next boot does not start it, and the kubelet finds no runtime.",
)
.done("Makes the link that the unit's [Install] section asks for, as `systemctl enable` does.")
.source("systemctl(1), systemd.unit(5)");
const MASKED: Mode = Mode::stops_boot(
    "runtime-unit.masked",
    "the unit of the container runtime is masked",
)
.why(
    "A masked unit is never started. A unit file of 0 bytes, as a power cut leaves it, \
    counts as masked.",
)
.done(
    "Takes the link to /dev/null or the empty file away where the package's own unit is \
    still there. A runtime that the kubelet does not use may stay masked.",
)
.source("systemd.unit(5); https://github.com/systemd/systemd/issues/4436");
const MISSING: Mode = Mode::stops_boot(
    "runtime-unit.missing",
    "the container runtime was installed, and its unit is missing",
)
.why("The kubelet's endpoint belongs to a runtime whose unit is gone: nothing starts it.")
.done("Names the package to install. Nothing is changed.")
.source("the kubelet's endpoint, in kubeadm-flags.env or config.yaml");

/// See the module.
pub const CHECK: Check = Check {
    id: "runtime-unit",
    about: "the unit of the container runtime that the kubelet talks to: disabled, masked or \
            missing",
    modes: &[DISABLED, MASKED, MISSING],
    roles: &[Role::ControlPlane, Role::Worker],
    after: &[],
    run,
};

const UNITS: &str = "/usr/lib/systemd/system";

fn run(context: &Context<'_>) -> Result<Vec<Finding>> {
    let guest = context.guest;
    let (units, endpoint) = runtime_units(guest, context.node);
    let findings = units.iter().filter_map(|unit| fault(guest, unit));
    Ok(findings
        .map(|finding| finding.with_evidence("", format!("the kubelet talks to it: {endpoint}")))
        .collect())
}

fn fault(guest: &Guest, runtime: &RuntimeUnit) -> Option<Finding> {
    let load = |name: &&str| Some(((*name).to_owned(), Unit::load(guest, name)?));
    let found = runtime.names.iter().find_map(load);
    // Somebody's own unit runs the same program.
    let others = units_that_run(guest, runtime.program);
    let is_own = |name: &String| found.as_ref().is_none_or(|(own, _)| own != name);
    if others
        .iter()
        .any(|name| is_own(name) && is_started(guest, name))
    {
        return None;
    }
    match found {
        Some((name, unit)) if unit.masked => Some(masked(guest, &name, unit.fragment?)),
        Some((name, _)) => disabled(guest, &name),
        None => missing(guest, runtime),
    }
}

fn disabled(guest: &Guest, name: &str) -> Option<Finding> {
    let links = install_links(guest, name);
    let first = links.first()?;
    if is_started(guest, name) {
        return None;
    }
    let title = format!("{name} is disabled: the next boot does not start the container runtime");
    let finding = Finding::new(DISABLED, title)
        .with_evidence(
            first.path.clone(),
            "missing: this link would start it at boot",
        )
        .with_advice("Without its container runtime the kubelet starts no pod.");
    Some(finding.with_remedy(EnableUnit {
        unit: name.to_owned(),
        mask: None,
        asks: false,
    }))
}

/// A mask that an administrator or a power cut left in /etc goes where the package's own unit lies
/// below it.
fn masked(guest: &Guest, name: &str, mask: GuestPath) -> Finding {
    let is_link = guest
        .lstat(&mask)
        .is_ok_and(|meta| meta.kind == FileKind::Symlink);
    let saw = if is_link {
        "a link to /dev/null"
    } else {
        "an empty file, which systemd takes for a mask"
    };
    let finding = Finding::new(
        MASKED,
        format!("{name} is masked: systemd refuses to start the container runtime"),
    )
    .with_evidence(&mask, saw);
    let below = [
        "/usr/local/lib/systemd/system",
        UNITS,
        "/lib/systemd/system",
    ];
    let has_vendor_unit = below.iter().any(|folder| {
        let path = GuestPath::new(folder).join(name);
        path != mask && guest.stat(&path).is_ok_and(|meta| meta.size > 0)
    });
    if mask.as_path().starts_with("/etc") && has_vendor_unit {
        return finding.with_remedy(EnableUnit {
            unit: name.to_owned(),
            mask: Some(mask),
            asks: false,
        });
    }
    finding.with_advice(format!(
        "There is no other {name} on the disk. Install the package of the container runtime again, \
         then type: systemctl unmask {name}"
    ))
}

/// Silent where nothing shows that it was ever installed, and where its unit may lie on what is not
/// seen here.
fn missing(guest: &Guest, runtime: &RuntimeUnit) -> Option<Finding> {
    let folder = GuestPath::new(UNITS);
    if guest.hidden(&folder).is_some() || !guest.exists(&folder) || extension(guest).is_some() {
        return None;
    }
    if !units_that_run(guest, runtime.program).is_empty() {
        return None;
    }
    let (source, saw) = runtime.installed_by(guest)?;
    let name = runtime.names.first()?;
    let path = source.split(' ').next().unwrap_or_default();
    let finding = Finding::new(
        MISSING,
        format!("there is no {name}: nothing starts the container runtime"),
    )
    .with_evidence(path, saw)
    .with_evidence(UNITS, format!("no {name}"))
    .with_advice(format!(
        "Install the package that brings {name} again, in the version that the node had."
    ));
    Some(finding)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checks::bench::{Bench, worker};
    use crate::tree::MemoryTree;

    const UNIT: &str = "/usr/lib/systemd/system/containerd.service";
    const LINK: &str = "/etc/systemd/system/multi-user.target.wants/containerd.service";
    const MASK: &str = "/etc/systemd/system/containerd.service";

    fn unit(program: &str) -> String {
        format!("[Service]\nExecStart=/usr/bin/{program}\n[Install]\nWantedBy=multi-user.target\n")
    }

    fn node(endpoint: &str) -> MemoryTree {
        let flags = format!("KUBELET_KUBEADM_ARGS=\"--container-runtime-endpoint={endpoint}\"\n");
        worker()
            .file("/var/lib/kubelet/kubeadm-flags.env", flags)
            .file("/etc/machine-id", "1\n")
            .file(UNIT, unit("containerd"))
    }

    fn containerd() -> MemoryTree {
        node("unix:///run/containerd/containerd.sock")
    }

    #[test]
    fn a_disabled_runtime_is_enabled() {
        let bench = Bench::new(CHECK);
        assert_eq!(bench.modes(containerd()), ["runtime-unit.disabled"]);
        let mended = bench.mended(containerd());
        assert!(mended.lstat(&GuestPath::new(LINK)).is_ok());
        bench.silent(containerd().link(LINK, UNIT));
    }

    #[test]
    fn a_mask_goes_where_the_unit_lies_below_it() {
        let bench = Bench::new(CHECK);
        for tree in [
            containerd().link(MASK, "/dev/null"),
            containerd().file(MASK, ""),
        ] {
            assert_eq!(bench.modes(tree.clone()), ["runtime-unit.masked"]);
            let mended = bench.mended(tree);
            assert!(mended.lstat(&GuestPath::new(MASK)).is_err());
        }
        let found = bench.found(containerd().without(UNIT).link(MASK, "/dev/null"));
        assert!(found[0].remedies.is_empty() && !found[0].advice.is_empty());
    }

    #[test]
    fn only_a_runtime_that_was_installed_is_missed() {
        let bench = Bench::new(CHECK);
        let gone = containerd()
            .without(UNIT)
            .file("/etc/containerd/config.toml", "version = 2\n");
        assert_eq!(bench.modes(gone), ["runtime-unit.missing"]);
        bench.silent(containerd().without(UNIT));
    }

    #[test]
    fn other_runtimes_and_other_ways_to_start_are_no_finding() {
        let bench = Bench::new(CHECK);
        let docker = "/usr/lib/systemd/system/docker.service";
        // Docker was masked after the migration to containerd.
        let migrated = containerd().link(LINK, UNIT).file(docker, unit("dockerd"));
        bench.silent(migrated.link("/etc/systemd/system/docker.service", "/dev/null"));
        // A socket starts Docker when the kubelet calls.
        let socket = "/usr/lib/systemd/system/docker.socket";
        let by_socket = node("unix:///var/run/dockershim.sock")
            .file(docker, unit("dockerd"))
            .file(socket, "[Socket]\nListenStream=/run/docker.sock\n");
        assert_eq!(bench.modes(by_socket.clone()), ["runtime-unit.disabled"]);
        let wants = "/etc/systemd/system/sockets.target.wants/docker.socket";
        bench.silent(by_socket.link(wants, socket));
        // Somebody's own unit.
        let own = "/etc/systemd/system/own.service";
        let own_wants = "/etc/systemd/system/multi-user.target.wants/own.service";
        bench.silent(
            containerd()
                .file(own, unit("containerd"))
                .link(own_wants, own),
        );
        bench.silent(node("unix:///run/k3s/containerd/containerd.sock"));
    }
}
