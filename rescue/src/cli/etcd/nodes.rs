//! `rescue etcd nodes SRC…`: the cluster's nodes by the newest member among the sources, and which
//! of the disks given is whose.

use std::path::PathBuf;

use anyhow::Result;

use super::sources::EtcdSources;
use crate::cli::Outcome;
use crate::cli::args::{self, Stop};
use crate::cli::shared_flags::arguments;
use crate::cli::terminal::Terminal;
use crate::report::etcd_nodes;
use crate::session::Session;

arguments! {
    /// list the nodes of the cluster as the newest of the etcd members given knows them, and which
    /// disk is whose; writes nothing
    #[argh(subcommand, name = "nodes")]
    pub struct NodesCommand {
        own {
            /// disks: of at least one machine that runs etcd, and of any others to be told whose
            /// they are
            #[argh(positional)]
            pub src: Vec<PathBuf>,
        }
        roots, data_dir, json, now,
    }
}

/// Lists.
pub fn run(command: &NodesCommand) -> Result<Result<Outcome>, Stop> {
    let sources = EtcdSources::new(&command.src, &command.root, &command.data_dir, "nodes")?;
    Ok(list(command, &sources))
}

fn list(command: &NodesCommand, sources: &EtcdSources) -> Result<Outcome> {
    let settings = args::with_now(command.now);
    let session = Session {
        sources: &sources.disks,
        settings: &settings,
        ui: &Terminal,
    };
    let nodes = session.cluster_nodes(&sources.data_dirs)?;
    if command.json {
        println!("{}", etcd_nodes::json(&nodes));
    } else {
        print!("{}", etcd_nodes::text(&nodes, settings.now));
    }
    Ok(Outcome::Clean)
}
