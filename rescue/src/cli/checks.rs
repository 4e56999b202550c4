//! `rescue checks`

use super::Outcome;
use super::args::Checks;
use crate::report::{json, text};

/// Lists the catalogue.
pub fn run(command: &Checks) -> Outcome {
    match command.json {
        true => println!("{}", json::checks()),
        false => print!("{}", text::checks()),
    }
    Outcome::Clean
}
