//! `rescue etcd salvage`: a new cluster from what can be read of a damaged database.

use std::path::PathBuf;

use anyhow::Result;

use super::new_cluster::{new_cluster_request, sources};
use super::run_options::{self, run_options};
use crate::cli::Outcome;
use crate::cli::args::Stop;
use crate::cli::shared_flags::arguments;
use crate::cli::terminal::Terminal;
use crate::plan::etcd::salvage;

arguments! {
    /// make a new etcd cluster on the disks given from what can still be read of a damaged
    /// database, page by page; what is missing is counted, keys whose newest value is uncertain are
    /// named
    #[argh(subcommand, name = "salvage")]
    pub struct SalvageCommand {
        new_member_disks, roots, data_dir_for_output,
        own {
            /// the damaged database, where it is not that of the first disk
            #[argh(option)]
            pub from: Option<PathBuf>,
        }
        members, dead_members, bump,
        own {
            /// write data folders, and a list of all uncertain keys, below this new folder instead
            /// of changing the disks
            #[argh(option)]
            pub output: Option<PathBuf>,
        }
        dry_run, keep_in, trust_member, yes, accept_loss, unproven, json, now,
    }
}

/// Plans and does it.
pub fn run(command: &SalvageCommand) -> Result<Result<Outcome>, Stop> {
    let sources = sources(
        [&command.src, &command.root, &command.data_dir],
        &command.member,
        command.from.is_some(),
        "salvage",
    )?;
    let options = run_options!(command, accept_loss: command.accept_loss);
    options.check()?;
    Ok(run_options::run(&sources, &options, |found, settings| {
        let request = new_cluster_request!(command, settings, is_salvage: true);
        salvage::plan(found, &request, command.from.as_deref(), &Terminal)
    }))
}
