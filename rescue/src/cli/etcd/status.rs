//! `rescue etcd status SRC…`: every member's state, which is newest, and whether each will start.

use anyhow::Result;

use super::sources::EtcdSources;
use crate::cli::Outcome;
use crate::cli::args::{self, Stop};
use crate::cli::shared_flags::arguments;
use crate::cli::terminal::{Terminal, colours};
use crate::report::{etcd, json, text};
use crate::session::Session;
use crate::settings::Settings;

arguments! {
    /// show each etcd member's state, which one holds the newest writes, and whether each will
    /// start; writes nothing. Exit code 1 when one will not, or when they contradict each other
    #[argh(subcommand, name = "status")]
    pub struct Status {
        etcd_disks, roots, data_dir,
        own {
            /// only the ends of the files: does not check the databases' pages nor count keys
            #[argh(switch)]
            pub quick: bool,
        }
        trust_member, json, now,
    }
}

/// Looks and shows.
pub fn run(command: &Status) -> Result<Result<Outcome>, Stop> {
    let sources = EtcdSources::new(&command.src, &command.root, &command.data_dir, "status")?;
    Ok(show(command, &sources))
}

fn show(command: &Status, sources: &EtcdSources) -> Result<Outcome> {
    let settings = Settings {
        trust: command.trust.clone(),
        ..args::with_now(command.now)
    };
    let session = Session {
        sources: &sources.disks,
        settings: &settings,
        ui: &Terminal,
    };
    let (cluster, without) = session.etcd_status(&sources.data_dirs, command.quick)?;
    if command.json {
        println!("{}", json::etcd_status(&cluster, &without));
    } else {
        let style = text::Style {
            colours: colours(),
            details: false,
        };
        print!("{}", etcd::status(&cluster, settings.now, &style));
        for node in &without {
            println!("No etcd member on {node}.");
        }
    }
    Ok(if cluster.is_healthy() {
        Outcome::Clean
    } else {
        Outcome::FindingsLeft
    })
}
