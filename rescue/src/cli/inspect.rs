//! `rescue inspect SRC…`

use anyhow::Result;

use super::Outcome;
use super::args::{self, Inspect, Stop};
use super::terminal::{Terminal, colours};
use crate::finding::{Inspection, NodeReport};
use crate::plan::receipt::SetProposal;
use crate::plan::set::SetWishes;
use crate::report::{json, set, text};
use crate::session::{Session, only_node};
use crate::typed;

/// Looks and shows.
pub fn run(command: &Inspect) -> Result<Result<Outcome>, Stop> {
    let sources = args::sources(&command.src, &command.root)?;
    let settings = command.settings();
    args::refuse_no_checks(&settings)?;
    let session = Session {
        sources: &sources,
        settings: &settings,
        ui: &Terminal,
    };
    Ok(show(command, &session))
}

fn show(command: &Inspect, session: &Session<'_>) -> Result<Outcome> {
    let mut inspection = session.inspect()?;
    if command.one_node {
        let leftovers = std::mem::take(&mut inspection.leftovers);
        inspection = Inspection {
            nodes: vec![only_node(inspection, None)?],
            leftovers,
        };
    }
    let together = together(session, &inspection);
    if command.json {
        let mut object = json::inspection(&inspection, session.settings);
        object["together"] = together.iter().map(set::outlook_json).collect();
        println!("{object}");
    } else {
        let style = text::Style {
            colours: colours(),
            details: command.details,
        };
        print!(
            "{}",
            text::inspection(&inspection, session.settings, &style)
        );
        print!("{}", set::outlook(&together, &style));
        let sources = typed::with_ca(session.sources, &session.settings.ca);
        let is_planned = together.iter().any(|proposal| proposal.plan.is_ok());
        println!(
            "{}",
            text::next_step(&inspection, is_planned, &sources, session.settings)
        );
    }
    let findings = inspection.nodes.iter().any(NodeReport::needs_repair);
    Ok(if findings || !together.is_empty() {
        Outcome::FindingsLeft
    } else {
        Outcome::Clean
    })
}

/// What a repair of all these nodes would do as one. Why it could do nothing for an only one is
/// among that one's findings.
fn together(session: &Session<'_>, inspection: &Inspection) -> Vec<SetProposal> {
    let mut proposals = session.plan_sets(&inspection.nodes, &SetWishes::default());
    if inspection.nodes.len() < 2 {
        proposals.retain(|proposal| proposal.plan.is_ok());
    }
    proposals
}
