//! swap: swap that the next boot switches on while the kubelet refuses to run with it.
//!
//! The kubelet's own rule: with `failSwapOn`, its default, it reads /proc/swaps at its start and
//! exits with "running with swap on is not supported" where a device stands in it
//! (NewContainerManager in pkg/kubelet/cm/container_manager_linux.go).

use std::rc::Rc;

use anyhow::Result;
use serde_json::{Map, Value, json};

use crate::base::yaml;
use crate::change::{Change, Prepared, line};
use crate::finding::{Check, Context, Finding, Mode, Remedy};
use crate::guest::fstab::{self, Role as FstabRole, Spec};
use crate::guest::{Guest, GuestPath, Origin};
use crate::node::{Node, Role};
use crate::systemd::pulled_in_by;

const FSTAB: Mode = Mode::stops_boot(
    "swap.fstab",
    "an fstab line switches swap on while the kubelet fails on swap",
)
.why(WHY)
.done("Makes the line a comment. The swap space itself is not touched.")
.source(SOURCE)
.logged(&["running with swap on is not supported"]);
const UNIT: Mode = Mode::stops_boot(
    "swap.unit",
    "a .swap unit switches swap on while the kubelet fails on swap",
)
.why(WHY)
.done("Disables the unit. The swap space itself is not touched.")
.source(SOURCE)
.logged(&["running with swap on is not supported"]);

const WHY: &str = "With failSwapOn, its default, the kubelet reads /proc/swaps at its start and exits \
    where a device stands in it: \"running with swap on is not supported\". `swapoff -a` lasts until \
    the next boot only.";
const SOURCE: &str = "NewContainerManager in pkg/kubelet/cm/container_manager_linux.go";

/// See the module.
pub const CHECK: Check = Check {
    id: "swap",
    about: "swap that the next boot switches on while the kubelet fails on swap",
    modes: &[FSTAB, UNIT],
    roles: &[Role::ControlPlane, Role::Worker],
    after: &[],
    run,
};

const SAYS: &str =
    "The kubelet exits at its start: \"running with swap on is not supported\" (failSwapOn).";

/// What every switched-on swap hangs on; masked, systemd starts none of them (systemd.special(7)).
const TARGET: &str = "swap.target";

fn run(context: &Context<'_>) -> Result<Vec<Finding>> {
    let (guest, node) = (context.guest, context.node);
    if !fails_on_swap(node) || crate::systemd::is_masked(guest, TARGET) {
        return Ok(Vec::new());
    }
    let mut findings: Vec<Finding> = fstab_lines(guest).into_iter().map(by_fstab).collect();
    findings.extend(units(guest).into_iter().map(by_unit));
    Ok(findings)
}

/// A flag wins over the config; both are true where they are not given.
fn fails_on_swap(node: &Node) -> bool {
    match node.kubelet.flag("--fail-swap-on") {
        Some(value) => value != "false",
        None => {
            yaml::at(&node.kubelet.config, &["failSwapOn"]).and_then(Value::as_bool) != Some(false)
        }
    }
}

/// A line of fstab, with its text.
#[derive(Debug)]
struct Line {
    at: Origin,
    text: String,
}

/// The lines that the next boot switches on. A swap file that is missing is not switched on.
fn fstab_lines(guest: &Guest) -> Vec<Line> {
    let path = GuestPath::new("/etc/fstab");
    let Ok(bytes) = guest.read(&path) else {
        return Vec::new();
    };
    let lines: Vec<&[u8]> = bytes.split(|byte| *byte == b'\n').collect();
    let is_switched_on = |entry: &fstab::Entry| {
        let is_missing =
            matches!(&entry.spec, Spec::Path(file) if !guest.exists(&GuestPath::new(file)));
        entry.role() == FstabRole::Swap && !entry.has_option("noauto") && !is_missing
    };
    let entries = fstab::parse(&bytes).into_iter().flatten();
    let entries = entries.filter(is_switched_on);
    entries
        .filter_map(|entry| {
            let text = String::from_utf8(lines.get(entry.line.checked_sub(1)?)?.to_vec()).ok()?;
            let at = Origin::line(path.clone(), entry.line);
            Some(Line { at, text })
        })
        .collect()
}

fn by_fstab(line: Line) -> Finding {
    Finding::new(
        FSTAB,
        "swap is switched on at boot, and the kubelet does not run with it",
    )
    .with_evidence(&line.at, line.text.trim())
    .with_advice(SAYS)
    .with_remedy(CommentOut {
        line: Rc::new(line),
    })
}

/// A .swap unit and the links that start it.
#[derive(Debug)]
struct SwapUnit {
    name: String,
    links: Vec<GuestPath>,
}

fn units(guest: &Guest) -> Vec<SwapUnit> {
    let names = crate::systemd::unit_names(guest, ".swap");
    let unit = |name: String| SwapUnit {
        links: pulled_in_by(guest, &name),
        name,
    };
    let is_started =
        |unit: &SwapUnit| !unit.links.is_empty() && !crate::systemd::is_masked(guest, &unit.name);
    names.into_iter().map(unit).filter(is_started).collect()
}

fn by_unit(unit: SwapUnit) -> Finding {
    let title = format!(
        "{} switches swap on at boot, and the kubelet does not run with it",
        unit.name
    );
    let finding = unit
        .links
        .iter()
        .fold(Finding::new(UNIT, title), |finding, link| {
            finding.with_evidence(link, "starts it at boot")
        });
    finding.with_advice(SAYS).with_remedy(Disable { unit })
}

/// The line becomes a comment; the swap space itself is not touched.
#[derive(Debug)]
struct CommentOut {
    line: Rc<Line>,
}

impl Remedy for CommentOut {
    fn kind(&self) -> &'static str {
        "comment-out-swap"
    }

    fn summary(&self) -> String {
        format!("comment out {}, which switches swap on", self.line.at)
    }

    fn fields(&self) -> Map<String, Value> {
        Map::from_iter([("path".to_owned(), json!(self.line.at.to_string()))])
    }

    fn prepare(&self, context: &Context<'_>) -> Result<Prepared> {
        let change = line::comment_out(context.guest, &self.line.at, &self.line.text)?;
        Ok(Prepared {
            changes: vec![change],
            ..Prepared::default()
        })
    }
}

/// What `systemctl disable` does: the links go, the unit stays.
#[derive(Debug)]
struct Disable {
    unit: SwapUnit,
}

impl Remedy for Disable {
    fn kind(&self) -> &'static str {
        "disable-swap-unit"
    }

    fn summary(&self) -> String {
        format!("disable {}, which switches swap on", self.unit.name)
    }

    fn fields(&self) -> Map<String, Value> {
        Map::from_iter([("unit".to_owned(), json!(self.unit.name))])
    }

    fn prepare(&self, context: &Context<'_>) -> Result<Prepared> {
        let remove = |link: &GuestPath| Ok(Change::remove(context.guest, link)?);
        let changes = self.unit.links.iter().map(remove).collect::<Result<_>>()?;
        Ok(Prepared {
            changes,
            ..Prepared::default()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checks::bench::{Bench, control_plane};

    const LINE: &str = "/swap.img none swap sw 0 0";
    const UNIT_FILE: &str = "/etc/systemd/system/dev-sdb1.swap";
    const LINK: &str = "/etc/systemd/system/multi-user.target.wants/dev-sdb1.swap";

    fn fstab(text: &str) -> crate::tree::MemoryTree {
        control_plane()
            .file(
                "/etc/fstab",
                format!("UUID=1 / ext4 defaults 0 1\n{text}\n"),
            )
            .file("/swap.img", "SWAP")
    }

    #[test]
    fn an_fstab_line_becomes_a_comment() {
        let bench = Bench::new(CHECK);
        let found = bench.found(fstab(LINE));
        assert_eq!(found[0].evidence[0].place(), "/etc/fstab:2");
        let mended = bench.mended(fstab(LINE));
        let text = mended.read_text(&GuestPath::new("/etc/fstab")).unwrap();
        assert_eq!(
            text,
            format!("UUID=1 / ext4 defaults 0 1\n# commented out by rescue: {LINE}\n")
        );
    }

    #[test]
    fn a_unit_is_disabled_and_stays_where_it_is() {
        let tree = control_plane()
            .file(UNIT_FILE, "[Swap]\nWhat=/dev/sdb1\n")
            .link(LINK, UNIT_FILE);
        assert_eq!(Bench::new(CHECK).modes(tree.clone()), ["swap.unit"]);
        let mended = Bench::new(CHECK).mended(tree);
        assert!(mended.exists(&GuestPath::new(UNIT_FILE)));
        assert!(mended.lstat(&GuestPath::new(LINK)).is_err());
    }

    #[test]
    fn swap_that_stays_off_or_is_wanted_is_no_finding() {
        let bench = Bench::new(CHECK);
        bench.silent(control_plane());
        bench.silent(fstab(&format!("#{LINE}")));
        bench.silent(fstab("/dev/sdb1 none swap noauto 0 0"));
        // A file that is missing: systemd's unit fails, and swap stays off.
        bench.silent(fstab("/gone none swap sw 0 0"));
        // Nobody starts the unit; or all swap is masked.
        bench.silent(control_plane().file(UNIT_FILE, "[Swap]\n"));
        bench.silent(fstab(LINE).link("/etc/systemd/system/swap.target", "/dev/null"));
        // The kubelet runs with swap.
        bench.silent(fstab(LINE).file(
            "/var/lib/kubelet/config.yaml",
            "staticPodPath: /etc/kubernetes/manifests\nfailSwapOn: false\n",
        ));
        bench.silent(fstab(LINE).file(
            "/var/lib/kubelet/kubeadm-flags.env",
            "KUBELET_KUBEADM_ARGS=\"--fail-swap-on=false\"\n",
        ));
    }
}
