//! `rescue checks`

use anyhow::Result;

use super::Outcome;
use super::args::Checks;
use crate::base::refusal::Refusal;
use crate::checks::CATALOGUE;
use crate::finding::Mode;
use crate::report::{catalogue, json, text};

/// Lists the catalogue, or explains what is named.
pub fn run(command: &Checks) -> Result<Outcome> {
    let mut modes: Vec<&Mode> = Vec::new();
    for id in &command.id {
        modes.extend(named(id)?);
    }
    match (command.json, modes.is_empty()) {
        (true, true) => println!("{}", json::checks()),
        (true, false) => println!("{}", json::modes(&modes)),
        (false, true) => print!("{}", text::checks()),
        (false, false) => print!("{}", catalogue::plain(&modes)),
    }
    Ok(Outcome::Clean)
}

/// The modes of a check, or one mode.
fn named(id: &str) -> Result<Vec<&'static Mode>> {
    let all = CATALOGUE.iter().flat_map(|check| check.modes);
    let found: Vec<&Mode> = all
        .filter(|mode| mode.id == id || mode.check() == id)
        .collect();
    if found.is_empty() {
        return Err(Refusal::new(
            format!("there is no check and no failure mode \"{id}\""),
            "nothing can be said of it",
            "`rescue checks` lists the checks, and `rescue checks CHECK` the failure modes of one.",
        )
        .into());
    }
    Ok(found)
}
