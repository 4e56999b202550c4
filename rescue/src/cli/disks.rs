//! `rescue disks [SRC…]`

use anyhow::Result;

use super::Outcome;
use super::args::{Disks, Stop};
use crate::inventory;
use crate::report::{inventory as text, json};

/// Draws what is on the disks given, or on all of this machine.
pub fn run(command: &Disks) -> Result<Result<Outcome>, Stop> {
    let paths = if command.src.is_empty() {
        inventory::all_disks()
    } else {
        command.src.clone()
    };
    Ok(inventory::take(&paths).map(|inventory| {
        match command.json {
            true => println!("{}", json::inventory(&inventory)),
            false => print!("{}", text::inventory(&inventory)),
        }
        Outcome::Clean
    }))
}
