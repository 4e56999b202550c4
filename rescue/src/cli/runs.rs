//! `rescue runs SRC…`

use anyhow::Result;

use super::Outcome;
use super::args::{self, Runs, Stop};
use super::terminal::{Terminal, agree};
use crate::in_use::read_only;
use crate::report::{json, text};
use crate::session::{Session, only_node};

/// Lists earlier repairs, or removes what is kept of old ones.
pub fn run(command: &Runs) -> Result<Result<Outcome>, Stop> {
    let sources = args::sources(&command.src, &command.root)?;
    args::refuse_asking(command.prune && command.json, &[(command.yes, "--yes")])?;
    if !command.prune && (command.keep.is_some() || command.yes) {
        return Err(Stop::Usage("--keep and --yes belong to --prune".to_owned()));
    }
    let settings = args::with_now(command.now);
    let session = Session {
        sources: &sources,
        settings: &settings,
        ui: &Terminal,
    };
    if command.prune {
        read_only::protect(&sources);
    }
    Ok(if command.prune {
        prune(command, &session)
    } else {
        list(command, &session)
    })
}

fn list(command: &Runs, session: &Session<'_>) -> Result<Outcome> {
    let inspection = session.inspect()?;
    match command.json {
        true => println!("{}", json::runs(&inspection.nodes)),
        false => print!("{}", text::runs(&inspection.nodes)),
    }
    Ok(Outcome::Clean)
}

fn prune(command: &Runs, session: &Session<'_>) -> Result<Outcome> {
    let node = only_node(session.inspect()?, command.node.as_deref())?;
    let keep = command.keep.unwrap_or(1);
    let gone = node.runs.len().saturating_sub(keep);
    let folders = node.runs.iter().take(gone).flat_map(|run| &run.keeps);
    let last: String = folders
        .map(|kept| format!(" The old {} is among it, whole.", kept.path))
        .collect();
    let question = format!(
        "Remove what is kept of the finished repairs of {} but for the newest {keep}? They cannot \
         be undone then.{last}",
        node.name()
    );
    agree(command.yes, &question)?;
    let pruned = session.prune(node, keep)?;
    match command.json {
        true => println!("{}", json::pruned(&pruned)),
        false => print!("{}", text::pruned(&pruned)),
    }
    Ok(Outcome::Clean)
}
