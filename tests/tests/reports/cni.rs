//! What the network plugins left behind when the power went.

use anyhow::{Result, ensure};

use super::case::Case;

#[test]
fn emptied_results_and_addresses_of_dead_sandboxes_go_and_undo_puts_them_back() -> Result<()> {
    let case = Case::new(
        "healthy; R=\"$T/var/lib/cni/results\"; N=\"$T/var/lib/cni/networks/cbr0\"; \
         mkdir -p \"$R\" \"$N\"; : > \"$R/cbr0-0a1b-eth0\"; head -c 300 /dev/zero > \
         \"$R/cbr0-0a1c-eth0\"; echo '{\"kind\":\"cniCacheV1\"}' > \"$R/cbr0-0a1d-eth0\"; \
         for i in $(seq 1 250); do printf '0a1b\\r\\neth0' > \"$N/10.244.0.$i\"; done; \
         echo 10.244.0.9 > \"$N/last_reserved_ip.0\"",
    )?;
    case.expects("cni.cache-damaged", &["2 results", "cbr0-0a1b-eth0"])?;
    case.expects(
        "cni.addresses-used-up",
        &["250 addresses", "at most 110 pods"],
    )?;
    case.mends("cni.cache-damaged")?;
    ensure!(case.modes()?.is_empty(), "{:?}", case.modes()?);
    ensure!(case.path("/var/lib/cni/results/cbr0-0a1d-eth0").exists());
    ensure!(
        case.path("/var/lib/cni/networks/cbr0/last_reserved_ip.0")
            .exists()
    );
    ensure!(!case.path("/var/lib/cni/networks/cbr0/10.244.0.7").exists());
    Ok(())
}
