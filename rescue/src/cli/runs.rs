//! `rescue runs SRC…`

use anyhow::Result;

use super::Outcome;
use super::args::{self, Runs, Stop};
use super::terminal::Terminal;
use crate::report::{json, text};
use crate::session::Session;

/// Lists earlier repairs.
pub fn run(command: &Runs) -> Result<Result<Outcome>, Stop> {
    let sources = args::sources(&command.src, &command.root)?;
    let settings = args::with_now(command.now);
    let session = Session { sources: &sources, settings: &settings, ui: &Terminal };
    Ok(list(command, &session))
}

fn list(command: &Runs, session: &Session<'_>) -> Result<Outcome> {
    let inspection = session.inspect()?;
    match command.json {
        true => println!("{}", json::runs(&inspection.nodes)),
        false => print!("{}", text::runs(&inspection.nodes)),
    }
    Ok(Outcome::Clean)
}
