//! Carrying out a plan for several nodes: shown, asked for once, done. Used by every command that
//! has such a plan.

use anyhow::Result;

use super::Outcome;
use super::answers::Answers;
use super::terminal::{colours, confirm, names_of_this_boot};
use crate::base::refusal::Refusal;
use crate::finding::NodeReport;
use crate::plan::receipt::SetReceipt;
use crate::plan::set::SetPlan;
use crate::report::{set, text};
use crate::session::Session;
use crate::typed;

/// Shows the plan, asks, carries it out. `None` after a dry run.
///
/// # Errors
/// A refusal (by downcast) where the answer was no, or nothing could be changed; otherwise what
/// says that something was.
pub fn carry_out(
    session: &Session<'_>,
    nodes: Vec<NodeReport>,
    plan: SetPlan,
    answers: Answers,
) -> Result<Option<SetReceipt>> {
    let style = text::Style {
        colours: colours(),
        details: answers.dry_run,
    };
    answers.say(&set::plan(&plan, &style));
    if answers.dry_run {
        answers.say("This was a dry run: nothing was changed.\n");
        return Ok(None);
    }
    drop(session.keep_in()?);
    Session::refuse_unready_set(&nodes, &plan)?;
    refuse_silent_loss(&plan, answers)?;
    let losses = if plan.guarantee.loses_nothing() {
        ""
    } else {
        " Acknowledged writes may be lost."
    };
    let names: Vec<&str> = plan.parts.iter().map(|part| part.name.as_str()).collect();
    if !answers.yes && !confirm(&format!("Carry this out on {}?{losses}", names.join(", "))) {
        let next = "run the same command again and answer yes, or add --yes";
        return Err(Refusal::new(
            "the answer was not yes",
            "nothing was changed by this plan",
            next,
        )
        .into());
    }
    let receipt = session.repair_set(nodes, plan)?;
    answers.say(&set::receipt(
        &receipt,
        &typed::sources(session.sources),
        &style,
    ));
    answers.say(names_of_this_boot());
    Ok(Some(receipt))
}

/// What the exit code says of a command that is such a plan and nothing else: after a dry run it is
/// still to be done; afterwards everything is done where each member given starts, or is fenced.
pub fn outcome(receipt: Option<&SetReceipt>) -> Outcome {
    let is_well = |receipt: &SetReceipt| receipt.etcd.iter().all(|stands| stands.state.is_well());
    if receipt.is_some_and(is_well) {
        Outcome::Clean
    } else {
        Outcome::FindingsLeft
    }
}

/// A plan that may lose something is never carried out unasked.
fn refuse_silent_loss(plan: &SetPlan, answers: Answers) -> Result<()> {
    if !answers.yes || answers.accept_loss || plan.guarantee.loses_nothing() {
        return Ok(());
    }
    Err(Refusal::new(
        format!(
            "what is to be done may lose acknowledged writes ({})",
            plan.guarantee.statement()
        ),
        "--yes alone does not agree to that, and nothing of it was done",
        "look at the plan with --dry-run; give the disks of all members if some are missing; else \
         add --accept-loss",
    )
    .into())
}
