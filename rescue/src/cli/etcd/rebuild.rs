//! `rescue etcd rebuild`: a new cluster from a sound database alone.

use std::path::PathBuf;

use anyhow::Result;

use super::new_cluster::{new_cluster_request, sources};
use super::run_options::{self, run_options};
use crate::cli::Outcome;
use crate::cli::args::Stop;
use crate::cli::shared_flags::arguments;
use crate::cli::terminal::Terminal;
use crate::plan::etcd::rebuild::{self, DatabaseSource};

arguments! {
    /// make a new etcd cluster on the disks given, from one database alone: a member's own, an old
    /// copy, or what `etcdctl snapshot save` wrote. What only logs hold is lost: rescue repair with
    /// all control planes' disks keeps it, where it can
    #[argh(subcommand, name = "rebuild")]
    pub struct Rebuild {
        new_member_disks, roots, data_dir_for_output,
        own {
            /// the database: a saved snapshot, or a copy of a member's db
            #[argh(option)]
            pub from: Option<PathBuf>,
            /// take the newest sound database on the disks, without any log
            #[argh(switch)]
            pub db_only: bool,
        }
        members, dead_members, bump, output_folder, dry_run, keep_in, trust_member, yes,
        accept_loss, unproven, json, now,
    }
}

/// Plans and does it.
pub fn run(command: &Rebuild) -> Result<Result<Outcome>, Stop> {
    let database = match (&command.from, command.db_only) {
        (Some(_), true) => {
            return Err(Stop::Usage(
                "--from names the database; --db-only takes one from the disks: give one of them"
                    .to_owned(),
            ));
        }
        (Some(path), false) => Some(DatabaseSource::File(path.clone())),
        (None, true) => Some(DatabaseSource::NewestOnDisks),
        (None, false) => None,
    };
    let sources = sources(
        [&command.src, &command.root, &command.data_dir],
        &command.member,
        command.from.is_some(),
        "rebuild --db-only",
    )?;
    let options = run_options!(command, accept_loss: command.accept_loss);
    options.check()?;
    let made = run_options::run(&sources, &options, |found, settings| {
        let request = new_cluster_request!(command, settings, is_salvage: false);
        rebuild::plan(found, &request, database.as_ref(), &Terminal)
    });
    Ok(made.map_err(rebuild::explain_damage))
}
