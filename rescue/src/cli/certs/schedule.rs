//! `rescue certs schedule SRC`: a timer that renews the certificates, and a rule that keeps the log small that filled the disk.

use anyhow::Result;
use std::path::PathBuf;

use crate::base::refusal::Refusal;
use crate::cli::Outcome;
use crate::cli::args::{self, Stop};
use crate::cli::shared_flags::arguments;
use crate::cli::terminal::{Terminal, colours, confirm};
use crate::finding::Context;
use crate::finding::NodeReport;
use crate::in_use::read_only;
use crate::plan::Plan;
use crate::report::{json, schedule as report, text};
use crate::schedule::{self, Wanted};
use crate::session::{Session, only_node};
use crate::typed;

arguments! {
    /// have the node renew its certificates every month, and keep the log small that filled its
    /// disk
    #[argh(subcommand, name = "schedule")]
    pub struct Schedule {
        machine_disks,
        own {
            /// a folder where the guest is mounted, instead of a disk; / for the node that is
            /// running here
            #[argh(option)]
            pub root: Vec<PathBuf>,
            /// only the log rotation, no timer
            #[argh(switch)]
            pub logs_only: bool,
            /// take away what an earlier schedule laid down
            #[argh(switch)]
            pub remove: bool,
        }
        yes, dry_run, json_with_answer, node, now,
    }
}

impl Schedule {
    fn wanted(&self) -> Result<Wanted, Stop> {
        match (self.remove, self.logs_only) {
            (true, true) => Err(Stop::Usage(
                "--remove takes everything away; --logs-only does not go with it".to_owned(),
            )),
            (true, false) => Ok(Wanted::Removed),
            (false, true) => Ok(Wanted::LogsOnly),
            (false, false) => Ok(Wanted::All),
        }
    }
}

/// Plans, asks, writes.
pub fn run(command: &Schedule) -> Result<Result<Outcome>, Stop> {
    let sources = args::sources(&command.src, &command.root)?;
    let wanted = command.wanted()?;
    args::refuse_asking(command.json, &args::answers(command.yes, command.dry_run))?;
    let settings = args::with_now(command.now);
    read_only::protect(&sources);
    let session = Session {
        sources: &sources,
        settings: &settings,
        ui: &Terminal,
    };
    Ok(hold(command, &session, wanted))
}

fn hold(command: &Schedule, session: &Session<'_>, wanted: Wanted) -> Result<Outcome> {
    let say = |text: &str| {
        if !command.json {
            print!("{text}");
        }
    };
    let node = only_node(session.inspect()?, command.node.as_deref())?;
    session.refuse_unfinished(&node)?;
    let plan = plan(session, &node, wanted)?;
    let planned = json::planned(&node, &plan);
    let style = text::Style {
        colours: colours(),
        details: command.dry_run,
    };
    say(&report::plan(&node, &plan, &style));
    if plan.is_empty() || command.dry_run {
        say(if plan.is_empty() {
            "Nothing was changed.\n"
        } else {
            "This was a dry run: nothing was changed.\n"
        });
        if command.json {
            println!("{}", json::repair(vec![planned], None, Vec::new()));
        }
        return Ok(Outcome::Clean);
    }
    if !command.yes && !confirm(&format!("Carry this out on {}?", node.name())) {
        return Err(Refusal::new(
            "the answer was not yes",
            "nothing was changed",
            "run the same command again and answer yes, or add --yes",
        )
        .into());
    }
    let receipt = session.repair(node, plan)?;
    say(&report::receipt(
        &receipt,
        &typed::sources(session.sources),
        &style,
    ));
    if command.json {
        println!(
            "{}",
            json::repair(
                vec![json::node(&receipt.after)],
                Some(vec![json::receipt(&receipt)]),
                Vec::new()
            )
        );
    }
    Ok(Outcome::Clean)
}

fn plan(session: &Session<'_>, node: &NodeReport, wanted: Wanted) -> Result<Plan> {
    let NodeReport {
        guest, node, peers, ..
    } = node;
    schedule::plan(
        &Context {
            guest,
            node,
            settings: session.settings,
            peers,
            ui: session.ui,
        },
        wanted,
    )
}
