//! `rescue certs SRC…`: the certificates of all nodes given, in one table.

use anyhow::Result;
use argh::FromArgs;
use std::path::PathBuf;
use time::OffsetDateTime;

use crate::cli::Outcome;
use crate::cli::args::{self, Stop};
use crate::cli::terminal::colours;
use crate::report::{certificates, json, text};
use crate::survey::survey;

/// list every certificate of the nodes given, in one table; writes nothing. Exit code 1 when one is broken, over or about to end
#[derive(FromArgs, Debug)]
#[argh(subcommand, name = "list")]
pub struct List {
    /// disks of powered-off machines
    #[argh(positional)]
    pub src: Vec<PathBuf>,
    /// a folder where a guest is mounted, instead of a disk
    #[argh(option)]
    pub root: Vec<PathBuf>,
    /// only this node, by name or source
    #[argh(option)]
    pub node: Option<String>,
    /// everything about each certificate, and all unreferenced files
    #[argh(switch)]
    pub details: bool,
    /// print one JSON object (schema rescue/v1) instead of text
    #[argh(switch)]
    pub json: bool,
    /// the time that counts as now (RFC 3339), instead of this machine's clock
    #[argh(option, from_str_fn(args::time_argument))]
    pub now: Option<OffsetDateTime>,
}

/// Shows the table.
pub fn run(command: &List) -> Result<Result<Outcome>, Stop> {
    let sources = args::sources(&command.src, &command.root)?;
    Ok(show(command, &sources))
}

fn show(command: &List, sources: &[crate::disk::Source]) -> Result<Outcome> {
    let settings = args::with_now(command.now);
    let mut survey = survey(sources, &settings)?;
    if let Some(name) = &command.node {
        survey = survey.only(name)?;
    }
    if command.json {
        println!("{}", json::survey(&survey));
    } else {
        let style = text::Style {
            colours: colours(),
            details: command.details,
        };
        print!("{}", certificates::survey(&survey, settings.now, &style));
        if !survey.is_healthy() {
            println!(
                "Next: rescue repair {}    (shows the plan first)",
                args::sources_as_typed(sources)
            );
        }
    }
    Ok(if survey.is_healthy() {
        Outcome::Clean
    } else {
        Outcome::FindingsLeft
    })
}
