//! `rescue inspect SRC…`

use anyhow::Result;

use super::Outcome;
use super::args::{self, Inspect, Stop};
use super::terminal::{Terminal, colours};
use crate::report::{json, text};
use crate::session::{NodeReport, Session, only_node};
use crate::typed;

/// Looks and shows.
pub fn run(command: &Inspect) -> Result<Result<Outcome>, Stop> {
    let sources = args::sources(&command.src, &command.root)?;
    let settings = command.settings();
    args::refuse_no_checks(&settings)?;
    let session = Session { sources: &sources, settings: &settings, ui: &Terminal };
    Ok(show(command, &session))
}

fn show(command: &Inspect, session: &Session<'_>) -> Result<Outcome> {
    let mut inspection = session.inspect()?;
    if command.one_node {
        let leftovers = std::mem::take(&mut inspection.leftovers);
        inspection = crate::session::Inspection { nodes: vec![only_node(inspection, None)?], leftovers };
    }
    if command.json {
        println!("{}", json::inspection(&inspection));
    } else {
        let style = text::Style { colours: colours(), details: command.details };
        print!("{}", text::inspection(&inspection, session.settings.now, &style));
        println!(
            "{}",
            text::next_step(&inspection, &typed::with_ca(session.sources, &session.settings.ca), session.settings)
        );
    }
    let findings = inspection.nodes.iter().any(NodeReport::needs_repair);
    Ok(if findings { Outcome::FindingsLeft } else { Outcome::Clean })
}
