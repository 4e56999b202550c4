//! `rescue certs …`: one file per sub-command, with its arguments.

mod bundle;
mod install;
mod list;
mod output;
pub(super) mod passphrase;
mod request;
mod schedule;
mod sign;
mod worker;

use anyhow::Result;
use argh::FromArgs;

use super::Outcome;
use super::args::Stop;

/// certificates of one or many nodes: list them, have them signed where the CA is
#[derive(FromArgs, Debug)]
#[argh(subcommand, name = "certs")]
pub struct Certs {
    /// what to do
    #[argh(subcommand)]
    pub command: CertsCommand,
}

/// The sub-commands of `certs`.
#[derive(FromArgs, Debug)]
#[argh(subcommand)]
pub enum CertsCommand {
    /// The table.
    List(list::List),
    /// What keeps it from happening again.
    Schedule(schedule::Schedule),
    /// Ferry, there.
    Request(request::RequestCertificate),
    /// Ferry, where the CA is.
    Sign(sign::Sign),
    /// Ferry, back.
    Install(install::Install),
    /// Many workers at once.
    Bundle(bundle::Bundle),
}

/// The names of the sub-commands; `rescue certs SRC…` means `list`.
const NAMES: [&str; 6] = ["list", "schedule", "request", "sign", "install", "bundle"];

/// `certs disk.img` becomes `certs list disk.img`.
pub fn with_list(mut words: Vec<String>) -> Vec<String> {
    let names_a_command =
        |word: &String| NAMES.contains(&word.as_str()) || word == "--help" || word == "help";
    if words.first().is_some_and(|word| word == "certs")
        && words.get(1).is_some_and(|word| !names_a_command(word))
    {
        words.insert(1, "list".to_owned());
    }
    words
}

impl Certs {
    /// Whether it answers in JSON.
    pub fn json(&self) -> bool {
        match &self.command {
            CertsCommand::List(command) => command.json,
            CertsCommand::Schedule(command) => command.json,
            CertsCommand::Request(command) => command.json,
            CertsCommand::Sign(command) => command.json,
            CertsCommand::Install(command) => command.json,
            CertsCommand::Bundle(command) => command.json,
        }
    }
}

/// Runs the sub-command.
pub fn run(command: &Certs) -> Result<Result<Outcome>, Stop> {
    match &command.command {
        CertsCommand::List(command) => list::run(command),
        CertsCommand::Schedule(command) => schedule::run(command),
        CertsCommand::Request(command) => request::run(command),
        CertsCommand::Sign(command) => sign::run(command),
        CertsCommand::Install(command) => install::run(command),
        CertsCommand::Bundle(command) => bundle::run(command),
    }
}
