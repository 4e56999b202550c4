//! What the node logged before the power went confirms what is found, and is shown by itself.

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use tests::Cmd;

use super::case::Case;

const FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/journal");

/// A script that lays a journal down as journald would.
fn journal(form: &str) -> String {
    format!(
        "healthy; J=\"$T/var/log/journal/0123456789abcdef0123456789abcdef\"; mkdir -p \"$J\"; \
         zstd -q -d '{FIXTURES}/{form}.journal.zst' -o \"$J/system.journal\""
    )
}

fn words(case: &Case) -> Result<Value> {
    let ran = case.rescue(&["words", "--json"])?;
    ensure!(ran.code == 0, "{}", ran.transcript());
    Ok(ran.json()?["nodes"][0].clone())
}

/// How often a source said something with `part` in its last boot.
fn count(words: &Value, source: &str, part: &str) -> Option<u64> {
    let is_meant = |word: &&Value| {
        word["source"] == source
            && word["boot"] == 0
            && word["text"]
                .as_str()
                .is_some_and(|text| text.contains(part))
    };
    words["words"].as_array()?.iter().find(is_meant)?["count"].as_u64()
}

#[test]
fn both_forms_of_a_journal_are_counted_as_journalctl_counts() -> Result<()> {
    for form in ["regular", "compact"] {
        let case = Case::new(&journal(form))?;
        let said = words(&case)?;
        let file = case.path("/var/log/journal/0123456789abcdef0123456789abcdef/system.journal");
        let boot = "_BOOT_ID=bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb";
        let listed = Cmd::new("journalctl")
            .args(["-q", "-o", "cat", "--file"])
            .arg(&file)
            .args([boot, "_SYSTEMD_UNIT=kubelet.service"])
            .ok()?;
        let lines = listed.stdout.lines().count() as u64;
        ensure!(
            count(&said, "kubelet", "command failed") == Some(lines),
            "{said:#}"
        );
        ensure!(
            count(&said, "systemd", "kubelet.service: Failed") == Some(40),
            "{said:#}"
        );
        ensure!(
            count(&said, "containerd", "level=fatal") == Some(1),
            "{said:#}"
        );
        ensure!(count(&said, "sshd", "nobody asked").is_none(), "{said:#}");
        ensure!(
            said["boots"]
                .as_array()
                .is_some_and(|boots| boots.len() == 2),
            "{said:#}"
        );
        let text = case.rescue(&["words"])?;
        let is_narrow = text.stdout.lines().all(|line| line.chars().count() <= 80);
        ensure!(
            is_narrow && text.stdout.contains("kubelet, 40 times"),
            "{}",
            text.transcript()
        );
    }
    Ok(())
}

#[test]
fn a_finding_that_the_log_confirms_is_certain() -> Result<()> {
    let script = journal("compact") + "; rm \"$T/var/lib/kubelet/config.yaml\"";
    let case = Case::new(&script)?;
    let found = case.expects("kubelet-config.missing", &[])?;
    let saw = found["log"]["saw"].as_str().context("what the log says")?;
    for part in [
        "Certain",
        "40 times",
        "2026-11-25",
        "failed to load kubelet config file",
    ] {
        ensure!(saw.contains(part), "{saw}");
    }
    let ran = case.rescue(&["inspect"])?;
    ensure!(
        ran.stdout.contains("Certain: the node's own log"),
        "{}",
        ran.transcript()
    );
    Ok(())
}

#[test]
fn a_log_that_says_nothing_of_it_takes_nothing_back() -> Result<()> {
    let script = journal("regular")
        + "; echo '/swap.img none swap sw 0 0' >> \"$T/etc/fstab\"; \
        truncate -s 2M \"$T/swap.img\"; mkswap \"$T/swap.img\" > /dev/null 2>&1";
    let found = Case::new(&script)?.expects("swap.fstab", &[])?;
    ensure!(found["log"].is_null(), "{found:#}");
    Ok(())
}

#[test]
fn without_a_journal_syslog_is_read() -> Result<()> {
    let script = "healthy; rm -rf \"$T/var/log/journal\"; cat > \"$T/var/log/syslog\" <<'END'
Nov 24 08:00:00 master1 kernel: [    0.000000] Linux version 5.10.0-20-amd64
Nov 24 08:00:09 master1 kubelet[612]: F1124 08:00:09.1 612 server.go:1] of the boot before
Nov 25 08:00:00 master1 kernel: [    0.000000] Linux version 5.10.0-20-amd64
Nov 25 08:00:09 master1 kubelet[700]: F1125 08:00:09.1 700 server.go:269] failed to run Kubelet: running with swap on is not supported
Nov 25 08:00:19 master1 kubelet[711]: F1125 08:00:19.1 711 server.go:269] failed to run Kubelet: running with swap on is not supported
Nov 25 08:00:20 master1 systemd[1]: kubelet.service: Failed with result 'exit-code'.
END
touch -d '2026-11-25 08:00:20' \"$T/var/log/syslog\"";
    let case = Case::new(script)?;
    let said = words(&case)?;
    ensure!(
        count(&said, "kubelet", "running with swap on") == Some(2),
        "{said:#}"
    );
    ensure!(
        count(&said, "kubelet", "of the boot before").is_none(),
        "{said:#}"
    );
    let newest = said["boots"][0]["last"].as_str().context("its end")?;
    ensure!(newest == "2026-11-25T08:00:20Z", "{newest}");
    Ok(())
}
