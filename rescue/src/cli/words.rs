//! `rescue words SRC…`

use anyhow::Result;

use super::Outcome;
use super::args::{self, Stop, Words};
use super::terminal::Terminal;
use crate::logs::LastWords;
use crate::report::{json, words};
use crate::session::{Session, last_words};

/// Shows what the nodes themselves logged of failures before the power went.
pub fn run(command: &Words) -> Result<Result<Outcome>, Stop> {
    let sources = args::sources(&command.src, &command.root)?;
    let settings = args::with_now(command.now);
    let session = Session {
        sources: &sources,
        settings: &settings,
        ui: &Terminal,
    };
    Ok(show(command, &session))
}

fn show(command: &Words, session: &Session<'_>) -> Result<Outcome> {
    let inspection = session.inspect()?;
    let nodes: Vec<(_, LastWords)> = inspection
        .nodes
        .iter()
        .map(|node| (node, last_words::read(&node.guest, &node.node)))
        .collect();
    if command.json {
        println!("{}", json::last_words(&nodes));
        return Ok(Outcome::Clean);
    }
    for (number, (node, said)) in nodes.iter().enumerate() {
        if number > 0 {
            println!();
        }
        print!("{}", words::text(node.name(), said));
    }
    Ok(Outcome::Clean)
}
