//! A fault that looks like what somebody may want is mended only after a question of its own.

use std::fs;

use anyhow::{Result, ensure};

use super::case::Case;

const MODE: &str = "kubelet-unit.boot-target";
const LINK: &str = "/etc/systemd/system/default.target";

const RESCUE_MODE: &str = "healthy; mkdir -p \"$T/usr/lib/systemd/system\"; \
    printf '[Unit]\\n' > \"$T/usr/lib/systemd/system/multi-user.target\"; \
    ln -sfn /usr/lib/systemd/system/rescue.target \"$T/etc/systemd/system/default.target\"";

fn target(case: &Case) -> Result<String> {
    let target = fs::read_link(case.path(LINK))?;
    Ok(target.to_string_lossy().into_owned())
}

#[test]
fn yes_alone_leaves_it_out_and_allow_includes_it() -> Result<()> {
    let case = Case::new(RESCUE_MODE)?;
    let ran = case.rescue(&["repair", "--yes", "--json"])?;
    let json = ran.json()?;
    let left_out = &json["nodes"][0]["plan"]["left_out"][0];
    ensure!(
        left_out["mode"] == MODE && left_out["asks_first"] == true,
        "{left_out}"
    );
    ensure!(target(&case)?.ends_with("rescue.target"));
    case.mends_when_allowed(MODE)?;
    ensure!(target(&case)?.ends_with("multi-user.target"));
    ensure!(case.modes()?.is_empty(), "{:?}", case.modes()?);
    Ok(())
}

#[test]
fn it_is_asked_for_by_itself_before_the_plan() -> Result<()> {
    let case = Case::new(&format!(
        "{RESCUE_MODE}; echo '/swap.img none swap sw 0 0' >> \"$T/etc/fstab\"; \
         truncate -s 2M \"$T/swap.img\""
    ))?;
    let fstab = || fs::read_to_string(case.path("/etc/fstab"));
    let ran = case.answering(&["repair"], "no\nno\n")?;
    ensure!(ran.stdout.contains("Do this too?"), "{}", ran.transcript());
    ensure!(ran.code == 3, "{}", ran.transcript());
    // No to the item, yes to the plan.
    let ran = case.answering(&["repair"], "no\nyes\n")?;
    ensure!(
        ran.code == 1 && ran.stdout.contains("left out: boot to multi-user.target"),
        "{}",
        ran.transcript()
    );
    ensure!(
        fstab()?.contains("# commented out by rescue") && target(&case)?.ends_with("rescue.target")
    );
    // Yes to both.
    let ran = case.answering(&["repair"], "yes\nyes\n")?;
    ensure!(!ran.stdout.contains("left out:"), "{}", ran.transcript());
    ensure!(target(&case)?.ends_with("multi-user.target"));
    Ok(())
}

#[test]
fn an_unknown_mode_is_refused_with_those_that_are_known() -> Result<()> {
    let case = Case::new("true")?;
    let ran = case.rescue(&["repair", "--yes", "--allow", "swap.fstb"])?;
    ensure!(
        ran.code == 2 && ran.stderr.contains("swap.fstab, swap.unit"),
        "{}",
        ran.transcript()
    );
    Ok(())
}
