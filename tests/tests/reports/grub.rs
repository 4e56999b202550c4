//! Ubuntu's GRUB recorded a failed boot, and was told to wait for a key then.

use anyhow::{Result, ensure};

use super::case::Case;

const WAITS: &str = "healthy; mkdir -p \"$T/boot/grub\"; \
    printf 'if [ \"${recordfail}\" = 1 ] ; then\\n  set timeout=%s\\nelse\\n  set timeout=0\\nfi\\n' \
    \"$TIMEOUT\" > \"$T/boot/grub/grub.cfg\"; \
    { printf '# GRUB Environment Block\\nrecordfail=1\\n'; printf '%986s' '' | tr ' ' '#'; } \
    > \"$T/boot/grub/grubenv\"";

fn node(timeout: &str) -> Result<Case> {
    Case::new(&format!("TIMEOUT={timeout}; {WAITS}"))
}

#[test]
fn a_menu_that_waits_for_a_key_after_a_power_cut_is_mended() -> Result<()> {
    let case = node("-1")?;
    case.expects(
        "grub.recordfail",
        &["/boot/grub/grubenv:2", "/boot/grub/grub.cfg:2"],
    )?;
    case.mends("grub.recordfail")?;
    let block = std::fs::read(case.path("/boot/grub/grubenv"))?;
    let rest = block.strip_prefix(b"# GRUB Environment Block\n");
    let is_empty = rest.is_some_and(|rest| rest.iter().all(|byte| *byte == b'#'));
    ensure!(block.len() == 1024 && is_empty, "{block:?}");
    Ok(())
}

#[test]
fn a_menu_that_goes_on_after_30_seconds_is_left_alone() -> Result<()> {
    let found = node("30")?.findings("grub")?;
    ensure!(found.is_empty(), "{found:#?}");
    Ok(())
}
