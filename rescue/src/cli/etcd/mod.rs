//! `rescue etcd …`: one file per sub-command, with its arguments.

mod defrag;
mod keys;
mod new_cluster;
mod nodes;
mod rebuild;
mod remove;
mod run_options;
mod salvage;
mod sources;
mod status;

use anyhow::Result;
use argh::FromArgs;

use super::Outcome;
use super::args::Stop;

/// etcd's members on powered-off disks: which is newest, whether each will start, what keys it
/// holds; a member removed
#[derive(FromArgs, Debug)]
#[argh(subcommand, name = "etcd")]
pub struct Etcd {
    /// what to do
    #[argh(subcommand)]
    pub command: EtcdCommand,
}

/// The sub-commands of `etcd`.
#[derive(FromArgs, Debug)]
#[argh(subcommand)]
pub enum EtcdCommand {
    /// Every member's state, compared.
    Status(status::Status),
    /// What a member holds.
    Keys(keys::Keys),
    /// One key.
    Get(keys::Get),
    /// The cluster's nodes.
    Nodes(nodes::NodesCommand),
    /// A new cluster from a database.
    Rebuild(rebuild::Rebuild),
    /// From a damaged one.
    Salvage(salvage::SalvageCommand),
    /// Databases without their free pages.
    Defrag(defrag::DefragCommand),
    /// A member leaves.
    RemoveMember(remove::RemoveMember),
}

impl Etcd {
    /// Whether it answers in JSON.
    pub fn json(&self) -> bool {
        match &self.command {
            EtcdCommand::Status(command) => command.json,
            EtcdCommand::Keys(command) => command.json,
            EtcdCommand::Get(command) => command.json,
            EtcdCommand::Nodes(command) => command.json,
            EtcdCommand::Rebuild(command) => command.json,
            EtcdCommand::Salvage(command) => command.json,
            EtcdCommand::Defrag(command) => command.json,
            EtcdCommand::RemoveMember(command) => command.json,
        }
    }
}

/// Runs the sub-command.
pub fn run(command: &Etcd) -> Result<Result<Outcome>, Stop> {
    match &command.command {
        EtcdCommand::Status(command) => status::run(command),
        EtcdCommand::Keys(command) => keys::run_keys(command),
        EtcdCommand::Get(command) => keys::run_get(command),
        EtcdCommand::Nodes(command) => nodes::run(command),
        EtcdCommand::Rebuild(command) => rebuild::run(command),
        EtcdCommand::Salvage(command) => salvage::run(command),
        EtcdCommand::Defrag(command) => defrag::run(command),
        EtcdCommand::RemoveMember(command) => remove::run(command),
    }
}
