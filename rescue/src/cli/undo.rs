//! `rescue undo SRC…`

use anyhow::Result;

use super::Outcome;
use super::args::{self, Stop, Undo};
use super::terminal::{Terminal, agree};
use crate::base::refusal::Refusal;
use crate::finding::{Inspection, NodeReport};
use crate::in_use::read_only;
use crate::repair::{RunState, RunSummary};
use crate::report::{json, set, text};
use crate::session::{Session, only_node};
use crate::settings::Settings;

/// Takes a run back.
pub fn run(command: &Undo) -> Result<Result<Outcome>, Stop> {
    let sources = args::sources(&command.src, &command.root)?;
    args::refuse_asking(command.json, &[(command.yes, "--yes")])?;
    let settings = Settings {
        fsck: !command.no_fsck,
        keep_in: command.keep_in.clone(),
        ..args::with_now(command.now)
    };
    read_only::protect(&sources);
    let session = Session {
        sources: &sources,
        settings: &settings,
        ui: &Terminal,
    };
    Ok(take_back(command, &session))
}

fn take_back(command: &Undo, session: &Session<'_>) -> Result<Outcome> {
    let inspection = session.inspect()?;
    if let Some(run) = set_to_undo(&inspection, command) {
        return take_set_back(command, session, inspection, &run);
    }
    let node = only_node(with_run(inspection, command), command.node.as_deref())?;
    let question = question(command, &node)?;
    agree(command.yes, &question)?;
    let undone = session.undo(node, command.run.as_deref())?;
    match command.json {
        true => println!("{}", json::undone(&undone)),
        false => print!("{}", text::undone(&undone)),
    }
    Ok(Outcome::Clean)
}

/// The run of several nodes that is meant: the one named, or the newest where it is the same on all
/// of its nodes.
fn set_to_undo(inspection: &Inspection, command: &Undo) -> Option<RunSummary> {
    let meant = |node: &&NodeReport| {
        command
            .node
            .as_deref()
            .is_none_or(|name| node.name() == name || node.guest.source == name)
    };
    let is_named = |run: &&RunSummary| command.run.as_ref().is_some_and(|id| *id == run.id);
    let is_open =
        |run: &&RunSummary| !matches!(run.state, RunState::Undone | RunState::NotCommitted);
    let of = |node: &'_ NodeReport| match &command.run {
        Some(_) => node.runs.iter().find(is_named).cloned(),
        None => node.runs.iter().rfind(is_open).cloned(),
    };
    let runs: Vec<RunSummary> = inspection
        .nodes
        .iter()
        .filter(meant)
        .filter_map(of)
        .collect();
    let set = runs.iter().find(|run| !run.together.is_empty())?;
    // Another repair came after it on one of them: that is undone first.
    let same = |node: &NodeReport| of(node).is_none_or(|run| run.id == set.id);
    let all = inspection
        .nodes
        .iter()
        .filter(|node| node.is_part_of(set))
        .all(same);
    (all || command.run.is_some()).then(|| set.clone())
}

fn take_set_back(
    command: &Undo,
    session: &Session<'_>,
    inspection: Inspection,
    run: &RunSummary,
) -> Result<Outcome> {
    let question = format!(
        "Take back run {} on {} together?",
        run.id,
        run.together.join(", ")
    );
    agree(command.yes, &question)?;
    let nodes = inspection
        .nodes
        .into_iter()
        .filter(|node| node.is_part_of(run))
        .collect();
    let undone = session.undo_set(nodes, &command.declare_dead, &run.id)?;
    match command.json {
        true => println!("{}", set::undone_json(&undone)),
        false => print!("{}", set::undone(&undone)),
    }
    Ok(Outcome::Clean)
}

/// Of several nodes the one that has the run: receipts name all disks that were given, and the run.
fn with_run(mut inspection: Inspection, command: &Undo) -> Inspection {
    let Some(run) = command.run.as_ref().filter(|_| command.node.is_none()) else {
        return inspection;
    };
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
            let there = if runs.is_empty() {
                "none at all".to_owned()
            } else {
                runs.join(", ")
            };
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
            "name the disk of the node that was repaired; rescue runs SRC lists the repairs of a \
             disk",
        )
        .into()),
        None => Ok(format!("Take back the newest repair of {}?", node.name())),
    }
}
