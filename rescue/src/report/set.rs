//! Plans and receipts that span several nodes.

use std::fmt::Write as _;

use serde_json::{Value, json};

use super::bounded::{self, ENTRIES, MANY};
use super::text::Style;
use crate::base::units::span;
use crate::etcd::operations::guarantee::EXCLUDED;
use crate::plan::etcd::stands::line;
use crate::plan::receipt::{SetProposal, SetReceipt};
use crate::plan::set::SetPlan;
use crate::repair::undo::Undone;

/// What is to be done to several nodes, what it promises and what may be lost.
pub fn plan(plan: &SetPlan, style: &Style) -> String {
    let mut out = String::new();
    let names: Vec<&str> = plan.parts.iter().map(|part| part.name.as_str()).collect();
    let _ = writeln!(
        out,
        "\n{}",
        style.heading(&format!("Plan for {} as one", names.join(", ")))
    );
    let _ = writeln!(out, "  {}", plan.summary);
    let width = names
        .iter()
        .map(|name| name.len())
        .max()
        .unwrap_or_default();
    for part in &plan.parts {
        let mut names = std::iter::once(part.name.as_str()).chain(std::iter::repeat(""));
        bounded::list(
            &mut out,
            &part.details,
            ENTRIES,
            ("    ", "lines (--dry-run --json has all)"),
            |detail| format!("{:width$}  {detail}", names.next().unwrap_or_default()),
        );
    }
    for why in &plan.why {
        let _ = writeln!(out, "  Nothing smaller: {why}");
    }
    let _ = writeln!(out, "  {}", plan.guarantee.statement());
    for line in plan.guarantee.may_be_lost() {
        let _ = writeln!(out, "  {line}");
    }
    bounded::list(
        &mut out,
        &plan.notes,
        MANY,
        ("  ", "notes (--dry-run --json has all)"),
        String::clone,
    );
    let _ = writeln!(out, "  {EXCLUDED}");
    let _ = writeln!(out, "  The old folders are kept whole, for `rescue undo`.");
    out
}

/// What was done; `sources` as the user would type the disks again.
pub fn receipt(receipt: &SetReceipt, sources: &str, style: &Style) -> String {
    let SetReceipt {
        run,
        plan,
        applied,
        took,
        ..
    } = receipt;
    let mut out = String::new();
    let _ = writeln!(out, "\n{}", style.heading("Done on all of them"));
    let _ = writeln!(
        out,
        "  {} ({})",
        plan.summary,
        span(time::Duration::try_from(*took).unwrap_or_default())
    );
    let _ = writeln!(out, "  {}", plan.guarantee.statement());
    let said: Vec<&String> = applied
        .iter()
        .flat_map(|applied| applied.left_alone.iter().chain(&applied.pruned))
        .collect();
    bounded::list(&mut out, &said, ENTRIES, ("  ", "such lines"), |line| {
        (*line).clone()
    });
    for folder in applied.iter().flat_map(|applied| &applied.elsewhere) {
        let _ = writeln!(out, "{}", super::text::kept_elsewhere(folder));
    }
    for stands in &receipt.etcd {
        let _ = writeln!(out, "  {}", line(stands));
    }
    for line in &plan.afterwards {
        let _ = writeln!(out, "  Afterwards: {line}");
    }
    let _ = writeln!(
        out,
        "To take it back, before any of them has booted: rescue undo {sources} --run {run}"
    );
    out
}

/// What `rescue repair` would do to the nodes as one, in short; empty where that is nothing.
pub fn outlook(together: &[SetProposal], style: &Style) -> String {
    let mut out = String::new();
    if !together.is_empty() {
        let _ = writeln!(out, "\n{}", style.heading("For all nodes together"));
    }
    for SetProposal { check, plan } in together {
        let _ = match plan {
            Ok(plan) => writeln!(
                out,
                "  {check}: {}\n  {}",
                plan.summary,
                plan.guarantee.statement()
            ),
            Err(error) => writeln!(out, "  {check}: {error:#}"),
        };
    }
    out
}

/// The same for programs.
pub fn outlook_json(proposal: &SetProposal) -> Value {
    let error = proposal
        .plan
        .as_ref()
        .err()
        .map(|error| format!("{error:#}"));
    json!({
        "check": proposal.check,
        "plan": proposal.plan.as_ref().ok().map(plan_json),
        "refused": error,
    })
}

/// The plan for programs.
pub fn plan_json(plan: &SetPlan) -> Value {
    let nodes: Vec<Value> = plan
        .parts
        .iter()
        .map(|part| json!({"name": part.name, "source": part.source, "details": part.details}))
        .collect();
    json!({
        "summary": plan.summary,
        "guarantee": plan.guarantee.level,
        "statement": plan.guarantee.statement(),
        "may_be_lost": plan.guarantee.may_be_lost(),
        "revision": plan.guarantee.revision,
        "why": plan.why,
        "notes": plan.notes,
        "nodes": nodes,
        "afterwards": plan.afterwards,
    })
}

/// The receipt for programs: the plan, and which run it was.
pub fn receipt_json(receipt: &SetReceipt) -> Value {
    let mut object = plan_json(&receipt.plan);
    object["run"] = json!(receipt.run);
    object["etcd"] = json!(receipt.etcd);
    object["changes"] = json!(
        receipt
            .applied
            .iter()
            .map(|applied| applied.changes)
            .sum::<usize>()
    );
    object["elsewhere"] = json!(
        receipt
            .applied
            .iter()
            .flat_map(|applied| &applied.elsewhere)
            .collect::<Vec<_>>()
    );
    object["seconds"] = json!(receipt.took.as_secs_f64());
    object
}

/// What an undo did on each node.
pub fn undone(nodes: &[(String, Undone)]) -> String {
    nodes.iter().fold(String::new(), |out, (name, undone)| {
        out + &format!("{name}: {}", super::text::undone(undone))
    })
}

/// … for programs.
pub fn undone_json(nodes: &[(String, Undone)]) -> Value {
    let nodes: Vec<Value> = nodes
        .iter()
        .map(|(name, undone)| {
            let mut object = super::json::undone_fields(undone);
            object["node"] = json!(name);
            object
        })
        .collect();
    json!({"schema": crate::base::schema::SCHEMA, "nodes": [], "undone_together": nodes})
}
