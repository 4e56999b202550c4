//! Swap was switched off by hand only, and fstab switches it on again at boot.

use std::fs;

use anyhow::{Result, ensure};

use super::case::Case;

const SWAP_BACK: &str = "healthy; echo '/swap.img none swap sw 0 0' >> \"$T/etc/fstab\"; \
    truncate -s 2M \"$T/swap.img\"; mkswap \"$T/swap.img\" > /dev/null 2>&1";

#[test]
fn swap_that_comes_back_is_commented_out() -> Result<()> {
    let case = Case::new(SWAP_BACK)?;
    case.expects(
        "swap.fstab",
        &["/etc/fstab:", "/swap.img", "running with swap on"],
    )?;
    let ran = case.mends("swap.fstab")?;
    ensure!(
        ran.stdout.contains("comment out /etc/fstab:"),
        "{}",
        ran.transcript()
    );
    let fstab = fs::read_to_string(case.path("/etc/fstab"))?;
    ensure!(
        fstab.contains("# commented out by rescue: /swap.img none swap sw 0 0"),
        "{fstab}"
    );
    ensure!(case.modes()?.is_empty(), "{:?}", case.modes()?);
    Ok(())
}

#[test]
fn a_kubelet_that_runs_with_swap_is_left_alone() -> Result<()> {
    let script =
        format!("{SWAP_BACK}; echo 'failSwapOn: false' >> \"$T/var/lib/kubelet/config.yaml\"");
    let case = Case::new(&script)?;
    ensure!(case.findings("swap")?.is_empty());
    Ok(())
}
