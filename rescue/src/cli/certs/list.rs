//! `rescue certs SRC…`: the certificates of all nodes given, in one table.

use anyhow::Result;
use std::path::PathBuf;

use crate::cli::Outcome;
use crate::cli::args::{self, Stop};
use crate::cli::shared_flags::arguments;
use crate::cli::terminal::colours;
use crate::report::{certificates, json, text};
use crate::survey::survey;

arguments! {
    /// list every certificate of the nodes given, in one table; writes nothing. Exit code 1 when
    /// one is broken, over or about to end
    #[argh(subcommand, name = "list")]
    pub struct List {
        own {
            /// disks of powered-off machines
            #[argh(positional)]
            pub src: Vec<PathBuf>,
        }
        roots,
        own {
            /// only this node, by name or source
            #[argh(option)]
            pub node: Option<String>,
            /// everything about each certificate, and all unreferenced files
            #[argh(switch)]
            pub details: bool,
        }
        json, now,
    }
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
