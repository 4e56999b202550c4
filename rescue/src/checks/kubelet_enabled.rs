//! Two modes of kubelet-unit: nothing starts the kubelet at boot, because its unit is disabled or
//! the boot ends before it.

use anyhow::Result;

use super::enable_unit::EnableUnit;
use crate::change::{Change, Prepared};
use crate::finding::{Context, Finding, Mode, Remedy};
use crate::guest::{Guest, GuestPath};
use crate::systemd::{install_links, is_started};

pub(super) const DISABLED: Mode = Mode::stops_boot(
    "kubelet-unit.disabled",
    "kubelet.service is disabled: no link, unit or timer starts it at boot",
)
.why(
    "The unit was started by hand once, or its package was installed again: systemd \
    starts it at no boot, and nothing listens on port 10250.",
)
.done("Makes the link that the unit's [Install] section asks for, as `systemctl enable` does.")
.source("systemctl(1), systemd.unit(5)");
pub(super) const BOOT_TARGET: Mode = Mode::stops_boot(
    "kubelet-unit.boot-target",
    "default.target leads to rescue, emergency or power-off, where no kubelet is started",
)
.why("systemd stops at a target that pulls in neither the network nor the kubelet.")
.done(
    "Leads default.target to multi-user.target again. Rescue mode may be somebody's wish: it is \
    done only when you agree to it by itself, or with `--allow kubelet-unit.boot-target`.",
)
.source("systemd.special(7)");

const UNIT: &str = "kubelet.service";

/// Targets that start next to nothing (systemd.special(7)).
const DEAD_ENDS: [&str; 5] = [
    "rescue.target",
    "emergency.target",
    "poweroff.target",
    "halt.target",
    "reboot.target",
];

/// A unit that was started by hand only. One without [Install] is for something else to start, and
/// is left alone.
pub(super) fn disabled(guest: &Guest) -> Option<Finding> {
    let links = install_links(guest, UNIT);
    let first = links.first()?;
    if is_started(guest, UNIT) {
        return None;
    }
    let finding = Finding::new(
        DISABLED,
        "kubelet.service is disabled: the next boot does not start the kubelet",
    )
    .with_evidence(
        first.path.clone(),
        "missing: this link would start it at boot",
    )
    .with_advice(
        "The node was joined, so somebody started the kubelet by hand. On the running node, \
         `systemctl enable --now kubelet` does the same.",
    );
    Some(finding.with_remedy(EnableUnit {
        unit: UNIT.to_owned(),
        mask: None,
        asks: false,
    }))
}

/// The administrator's default.target; the package's own is never one of [`DEAD_ENDS`].
pub(super) fn boot_target(guest: &Guest) -> Option<Finding> {
    let link = GuestPath::new("/etc/systemd/system/default.target");
    let target = guest.read_link(&link).ok()?;
    let name = target.file_name()?.to_str()?;
    if !DEAD_ENDS.contains(&name) {
        return None;
    }
    let saw = format!("leads to {}", target.display());
    let finding = Finding::new(
        BOOT_TARGET,
        format!("the next boot ends in {name}, which does not start the kubelet"),
    )
    .with_evidence(&link, saw);
    let folder = ["/usr/lib/systemd/system", "/lib/systemd/system"];
    let multi_user = folder.map(|folder| GuestPath::new(folder).join("multi-user.target"));
    Some(
        match multi_user.into_iter().find(|path| guest.exists(path)) {
            Some(target) => finding.with_remedy(SetDefaultTarget { link, target }),
            None => {
                finding.with_advice("Type on the node: systemctl set-default multi-user.target")
            }
        },
    )
}

/// What `systemctl set-default multi-user.target` does.
#[derive(Debug)]
struct SetDefaultTarget {
    link: GuestPath,
    target: GuestPath,
}

impl Remedy for SetDefaultTarget {
    fn kind(&self) -> &'static str {
        "set-default-target"
    }

    fn summary(&self) -> String {
        "boot to multi-user.target again (systemctl set-default)".to_owned()
    }

    /// Rescue mode may be what somebody wants of the next boot.
    fn asks_first(&self) -> bool {
        true
    }

    fn prepare(&self, context: &Context<'_>) -> Result<Prepared> {
        let target = self.target.as_path();
        let change = Change::symlink(context.guest, &self.link, target)?;
        Ok(Prepared {
            changes: vec![change],
            ..Prepared::default()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::kubelet_unit::CHECK;
    use super::*;
    use crate::checks::bench::{Bench, control_plane, worker};
    use crate::tree::MemoryTree;

    const FILE: &str = "/usr/lib/systemd/system/kubelet.service";
    const LINK: &str = "/etc/systemd/system/multi-user.target.wants/kubelet.service";

    fn disabled_node(tree: MemoryTree) -> MemoryTree {
        let unit = "[Service]\nExecStart=/usr/bin/kubelet\n[Install]\nWantedBy=multi-user.target\n";
        tree.file(FILE, unit)
            .file("/etc/machine-id", "1\n")
            .without(LINK)
    }

    #[test]
    fn a_disabled_kubelet_gets_the_link_that_its_unit_asks_for() {
        for tree in [control_plane(), worker()] {
            let tree = disabled_node(tree);
            let modes = Bench::new(CHECK).modes(tree.clone());
            assert_eq!(modes, ["kubelet-unit.disabled"]);
            let mended = Bench::new(CHECK).mended(tree);
            let target = mended.read_link(&GuestPath::new(LINK)).unwrap();
            assert_eq!(target, GuestPath::new(FILE).as_path());
        }
    }

    #[test]
    fn a_kubelet_that_something_else_starts_is_left_alone() {
        let bench = Bench::new(CHECK);
        let timer = "/etc/systemd/system/kubelet.timer";
        bench.silent(
            disabled_node(worker())
                .file(timer, "[Timer]\nOnBootSec=1min\n")
                .link(
                    "/etc/systemd/system/timers.target.wants/kubelet.timer",
                    timer,
                ),
        );
        let own = "/etc/systemd/system/node.service";
        bench.silent(
            disabled_node(worker())
                .file(
                    own,
                    "[Unit]\nRequires=kubelet.service\n[Service]\nExecStart=/x\n",
                )
                .link(
                    "/etc/systemd/system/multi-user.target.wants/node.service",
                    own,
                ),
        );
        // A unit without [Install].
        bench.silent(disabled_node(worker()).file(FILE, "[Service]\nExecStart=/usr/bin/kubelet\n"));
        bench.silent(disabled_node(worker()).link(LINK, FILE));
    }

    #[test]
    fn a_boot_that_ends_in_rescue_mode_is_led_on() {
        let link = "/etc/systemd/system/default.target";
        let multi_user = "/usr/lib/systemd/system/multi-user.target";
        let tree = control_plane()
            .file(multi_user, "[Unit]\n")
            .link(link, "/usr/lib/systemd/system/rescue.target");
        let modes = Bench::new(CHECK).modes(tree.clone());
        assert_eq!(modes, ["kubelet-unit.boot-target"]);
        let mended = Bench::new(CHECK).mended(tree.clone());
        let target = mended.read_link(&GuestPath::new(link)).unwrap();
        assert_eq!(target, GuestPath::new(multi_user).as_path());
        Bench::new(CHECK).silent(tree.link(link, "/lib/systemd/system/graphical.target"));
    }
}
