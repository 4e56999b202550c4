//! Files that say how the guest is put together: fstab, units with their drop-ins and environment
//! files.

use crate::change::Planned;
use crate::guest::Guest;
use crate::systemd::{Unit, without_flag};
use crate::tree::MemoryTree;

/// fstab.
pub fn fstab(data: &[u8]) {
    for entry in crate::guest::fstab::parse(data).into_iter().flatten() {
        super::shown::text(&entry.what);
        let _ = (
            entry.role(),
            entry.depth(),
            entry.is_root(),
            entry.is_mounted_at_boot(),
        );
        super::shown::text(&entry.shown());
    }
}

/// A unit file, two drop-ins, an environment file. Where the program says that a flag can be taken
/// away, it must be gone afterwards and nothing else with it.
pub fn units(data: &[u8]) {
    const FLAG: &str = "--bootstrap-kubeconfig";
    let [unit, drop_in, second, environment] = super::parts(data);
    let guest = MemoryTree::new()
        .file("/usr/lib/systemd/system/kubelet.service", unit)
        .file(
            "/usr/lib/systemd/system/kubelet.service.d/10-kubeadm.conf",
            drop_in,
        )
        .file("/etc/systemd/system/kubelet.service.d/20-more.conf", second)
        .file("/etc/default/kubelet", environment)
        .file("/var/lib/kubelet/kubeadm-flags.env", environment)
        .link("/lib", "usr/lib")
        .into_guest();
    let Some(unit) = Unit::load(&guest, "kubelet.service") else {
        return;
    };
    let argv = unit.argv();
    let _ = (unit.argv_with_origins(), unit.variable("KUBELET_ARGS"));
    for edit in [
        without_flag::by_drop_in(&guest, &unit, FLAG, "fuzzed"),
        without_flag::in_place(&guest, &unit, FLAG),
    ] {
        let Ok(edit) = edit else { continue };
        let Ok(after) = with_edit(&guest, &edit) else {
            continue;
        };
        let after = Unit::load(&after, "kubelet.service")
            .expect("the unit is there still")
            .argv();
        assert_eq!(
            after,
            without_flag::argv_without(&argv, FLAG),
            "the edit changes more or less than the flag"
        );
    }
}

fn with_edit(guest: &Guest, edit: &without_flag::Edit) -> anyhow::Result<Guest> {
    let mut planned = Planned::over(guest.tree(), 0);
    for change in edit.changes(guest)? {
        planned.apply(&change)?;
    }
    Ok(guest.with_tree(std::rc::Rc::new(planned)))
}
