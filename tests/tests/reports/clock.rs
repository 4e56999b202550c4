//! Certificates that begin tomorrow: one of two clocks was wrong.

use anyhow::{Context as _, Result, ensure};

use super::case::Case;

#[test]
fn certificates_of_tomorrow_are_said_with_both_reasons_and_nothing_is_renewed() -> Result<()> {
    let case = Case::new(
        "find \"$T\" -newermt 2023-02-23T08:30:00Z -exec touch -h -d 2023-02-23T08:30:00Z {} +",
    )?;
    let before = case.sums()?;
    let now = ["--now", "2023-02-22T09:00:00Z"];
    let seen =
        case.rescue(&[&["inspect", "--json", "--only", "certificates"], &now[..]].concat())?;
    let json = seen.json()?;
    let findings = json["nodes"][0]["findings"].as_array();
    let findings = findings.with_context(|| seen.transcript())?;
    let certificates: usize = findings
        .iter()
        .map(|one| one["evidence"].as_array().map_or(0, Vec::len))
        .sum();
    // Twelve certificates of three CAs: one finding for each reason, and none is a note.
    ensure!(findings.len() <= 5 && certificates >= 11, "{findings:#?}");
    for finding in findings {
        let text = finding.to_string();
        let reasons = ["this machine's clock is behind", "a clock that was ahead"];
        let is_said = reasons.iter().all(|reason| text.contains(reason));
        ensure!(is_said && finding["severity"] != "note", "{finding:#}");
    }
    let ran = case.rescue(&[&["repair", "--yes"], &now[..]].concat())?;
    ensure!(case.sums()? == before, "{}", ran.transcript());
    Ok(())
}
