//! A plan of new folders for etcd members, as text and as JSON.

use serde_json::{Value, json};

use crate::base::schema::SCHEMA;
use crate::etcd::operations::guarantee::EXCLUDED;
use crate::plan::etcd::members_plan::{MembersPlan, PlannedMember};

/// What is to be made, what it promises and what may be lost.
pub fn text(plan: &MembersPlan) -> String {
    let mut text = format!("Plan: {}\n", plan.summary);
    for member in &plan.members {
        text.push_str(&format!(
            "  {}: {}\n",
            member.name,
            member.details.join("; ")
        ));
    }
    text.push_str(&format!("{}\n", plan.guarantee.statement()));
    for line in plan.guarantee.may_be_lost().iter().chain(&plan.notes) {
        text.push_str(&format!("{line}\n"));
    }
    text.push_str(&format!("{EXCLUDED}\n"));
    text
}

/// The same for programs.
pub fn json(plan: &MembersPlan) -> Value {
    let member = |member: &PlannedMember| {
        json!({
            "name": member.name, "details": member.details, "bytes": member.recipe.bytes(),
        })
    };
    json!({
        "summary": plan.summary,
        "guarantee": plan.guarantee.level,
        "promise": plan.guarantee,
        "statement": plan.guarantee.statement(),
        "may_be_lost": plan.guarantee.may_be_lost(),
        "notes": plan.notes,
        "members": plan.members.iter().map(member).collect::<Vec<_>>(),
        "found": plan.facts,
    })
}

/// How it ended, for programs: `made` are the folders written, or the run; `receipt` is of what was
/// changed on the disks.
pub fn outcome(plan: &Value, outcome: &str, made: Value, receipt: Value) -> Value {
    json!({
        "schema": SCHEMA, "plan": plan, "outcome": outcome, "made": made, "receipt": receipt,
    })
}
