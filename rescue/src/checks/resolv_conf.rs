//! resolv-conf: the file that the kubelet copies into its pods, as the next boot will find it.
//!
//! The kubelet reads it for every pod sandbox, static pods included: where it is missing, not even
//! the API server starts ("open /run/systemd/resolve/resolv.conf: no such file or directory").

use anyhow::Result;

use super::enable_unit::EnableUnit;
use super::kubelet_setting::SetKubeletSetting;
use crate::base::yaml;
use crate::finding::{Check, Context, Finding, Mode};
use crate::guest::{Guest, GuestPath};
use crate::node::{Node, Role};
use crate::systemd::{Unit, is_masked, is_started};
use crate::tree::FileKind;

const MISSING: Mode = Mode::stops_boot(
    "resolv-conf.missing",
    "the resolv.conf that the kubelet gives to its pods will not be there",
)
.why(
    "The kubelet reads the file for every pod, static pods too, and starts none where it \
    cannot: \"open /run/systemd/resolve/resolv.conf: no such file or directory\". kubeadm writes \
    that path where systemd-resolved ran when it was asked, and every node that joins gets it.",
)
.done(
    "Enables systemd-resolved where it is installed. Else sets `resolvConf` to \
    /etc/resolv.conf, where that names a server.",
)
.source("GetPodDNS in pkg/kubelet/network/dns/dns.go; kubernetes/kubernetes#103110")
.logged(&["resolv.conf: no such file or directory"]);
const LOOP: Mode = Mode::will_break(
    "resolv-conf.loop",
    "the resolv.conf that the kubelet gives to its pods names only this machine itself",
)
.why(
    "127.0.0.53 is systemd-resolved on the node, and nobody within a pod. CoreDNS asks itself \
    and exits: \"Loop (127.0.0.1) detected for zone\".",
)
.done("Nothing by itself: it says which file to name, where one is made at boot.")
.source("https://coredns.io/plugins/loop/#troubleshooting-loops-in-kubernetes-clusters")
.logged(&["detected for zone \".\", see https://coredns.io/plugins/loop"]);

/// See the module.
pub const CHECK: Check = Check {
    id: "resolv-conf",
    about: "the resolv.conf that the kubelet gives to its pods: not there at boot, or leading back \
            to itself",
    modes: &[MISSING, LOOP],
    roles: &[Role::ControlPlane, Role::Worker],
    after: &["kubelet-config"],
    run,
};

/// What the kubelet takes without a setting.
const USUAL: &str = "/etc/resolv.conf";

const RESOLVED: &str = "systemd-resolved.service";

/// Made by systemd-resolved at boot.
const OF_RESOLVED: [&str; 2] = ["/run/systemd/resolve", "/var/run/systemd/resolve"];

fn run(context: &Context<'_>) -> Result<Vec<Finding>> {
    let (guest, node) = (context.guest, context.node);
    let path = resolv_conf(node);
    let is_of_resolved = OF_RESOLVED
        .iter()
        .any(|folder| path.as_path().starts_with(folder));
    let found = match is_of_resolved {
        true => without_resolved(guest, node, &path),
        false => file(guest, node, &path),
    };
    Ok(found.into_iter().collect())
}

/// A flag wins over the configuration.
fn resolv_conf(node: &Node) -> GuestPath {
    let flag = node.kubelet.flag("--resolv-conf");
    let set = yaml::text_at(&node.kubelet.config, &["resolvConf"]);
    let path = flag.or(set).filter(|path| path.starts_with('/'));
    GuestPath::new(path.unwrap_or(USUAL))
}

/// The file is made at boot by systemd-resolved, if anything starts that.
fn without_resolved(guest: &Guest, node: &Node, path: &GuestPath) -> Option<Finding> {
    let unit = Unit::load(guest, RESOLVED).filter(|unit| unit.fragment.is_some());
    if unit.is_some() && is_started(guest, RESOLVED) {
        return None;
    }
    // Where not even journald's unit is seen, the folder of units is not whole.
    let is_whole =
        Unit::load(guest, "systemd-journald.service").is_some_and(|unit| unit.fragment.is_some());
    let why = match (&unit, is_whole) {
        (Some(_), _) => "nothing starts it at boot",
        (None, true) => "it is not installed",
        (None, false) => return None,
    };
    let title = format!("no pod starts: {path} is made by systemd-resolved, and {why}");
    let finding = Finding::new(MISSING, title).with_evidence("", format!("{RESOLVED}: {why}"));
    if unit.is_some() {
        let mask = GuestPath::new("/etc/systemd/system").join(RESOLVED);
        let is_masked = is_masked(guest, RESOLVED);
        return Some(finding.with_remedy(EnableUnit {
            unit: RESOLVED.to_owned(),
            mask: is_masked.then_some(mask),
            asks: is_masked,
        }));
    }
    Some(with_usual(guest, node, finding))
}

/// A file of the disk.
fn file(guest: &Guest, node: &Node, path: &GuestPath) -> Option<Finding> {
    // Files and links into /run are made at boot by whoever manages the network.
    let is_link = |path: &GuestPath| {
        guest
            .lstat(path)
            .is_ok_and(|meta| meta.kind == FileKind::Symlink)
    };
    if path.as_path().starts_with("/run") || is_link(path) {
        return None;
    }
    let text = guest.read_text(path);
    match text {
        Ok(text) if is_loop(&text) => {
            let title = format!("CoreDNS will ask itself: {path} names only this machine");
            let servers: Vec<&str> = servers(&text).collect();
            let finding = Finding::new(LOOP, title).with_evidence(path, servers.join(", "));
            Some(finding.with_advice(match is_started(guest, RESOLVED) {
                true => {
                    "Set resolvConf: /run/systemd/resolve/resolv.conf in the kubelet's \
                    configuration: systemd-resolved writes the true servers there."
                }
                false => {
                    "Name the true servers in a file of its own, and set resolvConf in the \
                    kubelet's configuration to it."
                }
            }))
        }
        Err(error) if error.is_not_found() && path.as_path() != std::path::Path::new(USUAL) => {
            let title = format!("no pod starts: the kubelet's resolvConf {path} is not there");
            let finding = Finding::new(MISSING, title).with_evidence(path, "not there");
            Some(with_usual(guest, node, finding))
        }
        _ => None,
    }
}

/// `finding` with the usual file as its mend, where that is one of the disk and names a server.
fn with_usual(guest: &Guest, node: &Node, finding: Finding) -> Finding {
    let usual = GuestPath::new(USUAL);
    let text = guest.read_text(&usual).unwrap_or_default();
    let names_one = servers(&text).next().is_some() && !is_loop(&text);
    let config = node.kubelet.config_path.value.clone();
    let is_set_there = node.kubelet.flag("--resolv-conf").is_none();
    match config.filter(|path| names_one && is_set_there && guest.exists(path)) {
        Some(path) => finding.with_remedy(SetKubeletSetting {
            path,
            key: "resolvConf",
            value: USUAL.to_owned(),
            asks: false,
        }),
        None => finding.with_advice(format!(
            "Write a resolv.conf with the true name servers, and set resolvConf in the kubelet's \
             configuration (or its --resolv-conf) to it; {USUAL} names none on this disk."
        )),
    }
}

/// The servers that a resolv.conf names.
fn servers(text: &str) -> impl Iterator<Item = &str> {
    text.lines()
        .filter_map(|line| line.trim().strip_prefix("nameserver"))
        .map(str::trim)
        .filter(|server| !server.is_empty())
}

/// Whether it names servers, and all of them are this machine.
fn is_loop(text: &str) -> bool {
    let is_own = |server: &str| server.starts_with("127.") || server == "::1";
    servers(text).next().is_some() && servers(text).all(is_own)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checks::bench::{Bench, control_plane};
    use crate::tree::MemoryTree;

    const CONFIG: &str = "/var/lib/kubelet/config.yaml";
    const UNIT: &str = "/usr/lib/systemd/system/systemd-resolved.service";
    const LINK: &str = "/etc/systemd/system/sysinit.target.wants/systemd-resolved.service";

    fn node(path: &str) -> MemoryTree {
        let text = format!(
            "kind: KubeletConfiguration\nstaticPodPath: /etc/kubernetes/manifests\n\
             resolvConf: {path}\n"
        );
        control_plane()
            .file(CONFIG, text)
            .file(
                "/usr/lib/systemd/system/systemd-journald.service",
                "[Service]\n",
            )
            .file(USUAL, "nameserver 10.0.0.2\n")
    }

    fn resolved(tree: MemoryTree) -> MemoryTree {
        tree.file(
            UNIT,
            "[Service]\nExecStart=/x\n[Install]\nWantedBy=sysinit.target\n",
        )
    }

    const OF_RUN: &str = "/run/systemd/resolve/resolv.conf";

    #[test]
    fn resolved_is_enabled_where_it_is_installed() {
        let bench = Bench::new(CHECK);
        let mended = bench.mended(resolved(node(OF_RUN)));
        assert!(mended.lstat(&GuestPath::new(LINK)).is_ok());
        bench.silent(resolved(node(OF_RUN)).link(LINK, UNIT));
    }

    #[test]
    fn the_usual_file_is_taken_where_it_is_not() {
        let mended = Bench::new(CHECK).mended(node(OF_RUN));
        let text = mended.read_text(&GuestPath::new(CONFIG)).unwrap();
        assert!(text.contains("resolvConf: /etc/resolv.conf\n"), "{text}");
        let mended = Bench::new(CHECK).mended(node("/etc/kubernetes/resolv.conf"));
        assert!(
            mended
                .read_text(&GuestPath::new(CONFIG))
                .unwrap()
                .contains(USUAL)
        );
        let found = Bench::new(CHECK).found(node(OF_RUN).file(USUAL, "# empty\n"));
        assert!(found[0].remedies.is_empty() && !found[0].advice.is_empty());
    }

    #[test]
    fn a_file_that_leads_back_is_named() {
        let tree = node(USUAL).file(USUAL, "nameserver 127.0.0.53\noptions edns0\n");
        assert_eq!(Bench::new(CHECK).modes(tree), ["resolv-conf.loop"]);
    }

    #[test]
    fn what_is_made_at_boot_or_not_seen_is_no_finding() {
        let bench = Bench::new(CHECK);
        bench.silent(control_plane());
        bench.silent(node(USUAL));
        bench.silent(node(USUAL).without(USUAL));
        bench.silent(
            node(USUAL)
                .without(USUAL)
                .link(USUAL, "../run/systemd/resolve/stub-resolv.conf"),
        );
        bench.silent(node("/run/NetworkManager/resolv.conf"));
        let part = node(OF_RUN).without("/usr/lib/systemd/system/systemd-journald.service");
        bench.silent(part);
    }
}
