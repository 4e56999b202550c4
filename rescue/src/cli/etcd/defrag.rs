//! `rescue etcd defrag SRC…`: databases written anew without their free pages, and where all
//! members are at hand the history compacted and the alarm of a full database lifted.

use anyhow::Result;

use super::run_options::{self, run_options};
use super::sources::EtcdSources;
use crate::cli::Outcome;
use crate::cli::args::Stop;
use crate::cli::shared_flags::arguments;
use crate::cli::terminal::Terminal;
use crate::plan::etcd::defrag::{self, DefragRequest};

arguments! {
    /// write etcd's databases anew without their free pages; with the disks of all members also
    /// --compact, and the lifting of the alarm that a database is full
    #[argh(subcommand, name = "defrag")]
    pub struct DefragCommand {
        etcd_disks, roots, data_dir_for_output,
        own {
            /// drop all history but the newest value of each key, on all members alike
            #[argh(switch)]
            pub compact: bool,
        }
        output_folder, dry_run, keep_in, trust_member, yes, unproven, json, now,
    }
}

/// Plans and does it.
pub fn run(command: &DefragCommand) -> Result<Result<Outcome>, Stop> {
    let sources = EtcdSources::new(&command.src, &command.root, &command.data_dir, "defrag")?;
    let options = run_options!(command, accept_loss: false);
    options.check()?;
    Ok(run_options::run(&sources, &options, |found, settings| {
        let request = DefragRequest {
            compact: command.compact,
            unproven: command.unproven,
            settings,
        };
        defrag::plan(found, &request, &Terminal)
    }))
}
