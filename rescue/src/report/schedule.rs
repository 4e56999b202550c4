//! Text for `rescue certs schedule`.

use std::fmt::Write as _;

use super::text::{self, Style};
use crate::finding::{NodeReport, counts};
use crate::plan::Plan;
use crate::plan::receipt::Receipt;

/// What will be laid down, and what is worth knowing.
pub fn plan(report: &NodeReport, plan: &Plan, style: &Style) -> String {
    let mut out = format!("{}  ({})\n", report.name(), report.guest.source);
    for note in plan.left.iter().filter(|finding| !counts(finding)) {
        let _ = writeln!(out, "  note: {}", note.title);
    }
    if plan.is_empty() && plan.dropped.is_empty() {
        out.push_str("  Nothing is to be added or taken away.\n");
        return out;
    }
    out + &text::plan(plan, style)
}

/// What was laid down or taken away.
pub fn receipt(receipt: &Receipt, sources: &str, style: &Style) -> String {
    let mut out = format!("Changed {} (run {})\n", receipt.node, receipt.run);
    text::done(&mut out, &receipt.done);
    match &receipt.restart {
        Some(restart) => text::restart(&mut out, restart, style),
        None => out.push_str("It takes effect when the node boots.\n"),
    }
    let _ = writeln!(
        out,
        "To take it back: rescue undo {sources} --run {}",
        receipt.run
    );
    out
}
