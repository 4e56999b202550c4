//! `rescue undo SRC…`

use anyhow::Result;

use super::Outcome;
use super::args::{self, Stop, Undo};
use super::terminal::{Terminal, confirm};
use crate::refusal::Refusal;
use crate::repair::in_use::read_only;
use crate::report::{json, text};
use crate::session::{Inspection, NodeReport, Session, only_node};
use crate::settings::Settings;

/// Takes a run back.
pub fn run(command: &Undo) -> Result<Result<Outcome>, Stop> {
    let sources = args::sources(&command.src, &command.root)?;
    if command.json && !command.yes {
        return Err(Stop::Usage("--json cannot ask: add --yes".to_owned()));
    }
    let settings = Settings { fsck: !command.no_fsck, ..args::with_now(command.now) };
    read_only::protect(&sources);
    let session = Session { sources: &sources, settings: &settings, ui: &Terminal };
    Ok(take_back(command, &session))
}

fn take_back(command: &Undo, session: &Session<'_>) -> Result<Outcome> {
    let node = only_node(with_run(session.inspect()?, command), command.node.as_deref())?;
    let question = question(command, &node)?;
    if !command.yes && !confirm(&question) {
        let next = "run the same command again and answer yes, or add --yes";
        return Err(Refusal::new("the answer was not yes", "nothing was changed", next).into());
    }
    let undone = session.undo(node, command.run.as_deref())?;
    match command.json {
        true => println!("{}", json::undone(&undone)),
        false => print!("{}", text::undone(&undone)),
    }
    Ok(Outcome::Clean)
}

/// Of several nodes the one that has the run: receipts name all disks that were given, and the run.
fn with_run(mut inspection: Inspection, command: &Undo) -> Inspection {
    let Some(run) = command.run.as_ref().filter(|_| command.node.is_none()) else { return inspection };
    let has = |node: &NodeReport| node.runs.iter().any(|there| there.id == *run);
    if inspection.nodes.iter().any(has) {
        inspection.nodes.retain(has);
    }
    inspection
}

fn question(command: &Undo, node: &NodeReport) -> Result<String> {
    let runs: Vec<&str> = node.runs.iter().map(|run| run.id.as_str()).collect();
    match &command.run {
        Some(run) if !runs.contains(&run.as_str()) => {
            let there = if runs.is_empty() { "none at all".to_owned() } else { runs.join(", ") };
            Err(Refusal::new(
                format!("{} has no run {run}", node.name()),
                format!("the runs there: {there}"),
                "rescue runs SRC lists them",
            )
            .into())
        }
        Some(run) => Ok(format!("Take back run {run} on {}?", node.name())),
        None if runs.is_empty() => Err(Refusal::new(
            format!("rescue has not repaired {}", node.name()),
            "there is nothing to take back",
            "name the disk of the node that was repaired; rescue runs SRC lists the repairs of a disk",
        )
        .into()),
        None => Ok(format!("Take back the newest repair of {}?", node.name())),
    }
}
