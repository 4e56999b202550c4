//! `rescue certs schedule SRC`: a timer that renews the certificates, and a rule that keeps the log
//! small that filled the disk.

use anyhow::Result;
use std::path::PathBuf;

use crate::cli::Outcome;
use crate::cli::answers::Answers;
use crate::cli::args::{self, Stop};
use crate::cli::shared_flags::arguments;
use crate::cli::terminal::{Terminal, agree, colours};
use crate::finding::Facts;
use crate::finding::NodeReport;
use crate::in_use::read_only;
use crate::plan::Plan;
use crate::report::{json, schedule as report, text};
use crate::schedule::{self, DesiredState};
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
    fn desired(&self) -> Result<DesiredState, Stop> {
        match (self.remove, self.logs_only) {
            (true, true) => Err(Stop::Usage(
                "--remove takes everything away; --logs-only does not go with it".to_owned(),
            )),
            (true, false) => Ok(DesiredState::Removed),
            (false, true) => Ok(DesiredState::LogsOnly),
            (false, false) => Ok(DesiredState::All),
        }
    }
}

/// Plans, asks, writes.
pub fn run(command: &Schedule) -> Result<Result<Outcome>, Stop> {
    let sources = args::sources(&command.src, &command.root)?;
    let desired = command.desired()?;
    let answers = Answers {
        yes: command.yes,
        dry_run: command.dry_run,
        json: command.json,
        ..Answers::default()
    };
    answers.check()?;
    let settings = args::with_now(command.now);
    read_only::protect(&sources);
    let session = Session {
        sources: &sources,
        settings: &settings,
        ui: &Terminal,
    };
    Ok(plan_and_write(command, &session, desired, answers))
}

fn plan_and_write(
    command: &Schedule,
    session: &Session<'_>,
    desired: DesiredState,
    answers: Answers,
) -> Result<Outcome> {
    let node = only_node(session.inspect()?, command.node.as_deref())?;
    session.refuse_unfinished(&node)?;
    let plan = plan(session, &node, desired)?;
    let planned = json::planned(&node, &plan);
    let style = text::Style {
        colours: colours(),
        details: answers.dry_run,
    };
    answers.say(&report::plan(&node, &plan, &style));
    if plan.is_empty() || answers.dry_run {
        answers.say(if plan.is_empty() {
            "Nothing was changed.\n"
        } else {
            "This was a dry run: nothing was changed.\n"
        });
        if answers.json {
            println!("{}", json::repair(vec![planned], None, Vec::new()));
        }
        return Ok(Outcome::Clean);
    }
    agree(answers.yes, &format!("Carry this out on {}?", node.name()))?;
    let receipt = session.repair(node, plan)?;
    answers.say(&report::receipt(
        &receipt,
        &typed::sources(session.sources),
        &style,
    ));
    if answers.json {
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

fn plan(session: &Session<'_>, node: &NodeReport, desired: DesiredState) -> Result<Plan> {
    let facts = Facts::default();
    schedule::plan(&node.context(session.settings, session.ui, &facts), desired)
}
