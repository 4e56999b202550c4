//! `rescue certs SRC…`: the certificates of all nodes given, in one table.

use anyhow::Result;
use argh::FromArgs;
use std::path::PathBuf;
use time::OffsetDateTime;

use crate::cli::Outcome;
use crate::cli::args::{self, Stop};
use crate::cli::terminal::{Terminal, colours};
use crate::report::{json, text};
use crate::session::Session;

/// list every certificate of the nodes given
#[derive(FromArgs, Debug)]
#[argh(subcommand, name = "list")]
pub struct List {
    /// disks of powered-off machines
    #[argh(positional)]
    pub src: Vec<PathBuf>,
    /// a folder where a guest is mounted, instead of a disk
    #[argh(option)]
    pub root: Vec<PathBuf>,
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
    let settings = args::with_now(command.now);
    let session = Session { sources: &sources, settings: &settings, ui: &Terminal };
    Ok(session.inspect().map(|inspection| {
        if command.json {
            println!("{}", json::inspection(&inspection));
        } else {
            let style = text::Style { colours: colours(), details: false };
            for node in &inspection.nodes {
                print!("{}", text::node(node, settings.now, &style));
            }
        }
        Outcome::Clean
    }))
}
