//! `rescue etcd remove-member NAME|ID SRC…`: a member leaves the cluster, offline.

use std::path::PathBuf;

use anyhow::Result;

use crate::base::schema::SCHEMA;
use crate::cli::Outcome;
use crate::cli::answers::Answers;
use crate::cli::args::{self, Stop};
use crate::cli::set;
use crate::cli::shared_flags::arguments;
use crate::cli::terminal::Terminal;
use crate::in_use::read_only;
use crate::plan::etcd::plan_removal;
use crate::plan::set::SetWishes;
use crate::report::set as report;
use crate::session::Session;
use crate::settings::Settings;

arguments! {
    /// remove a member from a cluster that is powered off: shows the plan, asks, writes. Needs the
    /// disks of all voters: the one that leaves is fenced, so that its etcd never starts again
    #[argh(subcommand, name = "remove-member")]
    pub struct RemoveMember {
        own {
            /// the member's name or ID, as rescue etcd status shows it
            #[argh(positional)]
            pub member: String,
            /// the disks of all voters' machines
            #[argh(positional)]
            pub src: Vec<PathBuf>,
            /// a folder where a guest is mounted, instead of a disk; may be given several times
            #[argh(option)]
            pub root: Vec<PathBuf>,
            /// a member whose disk is not at hand and never comes back; it leaves, too; may be
            /// given several times
            #[argh(option)]
            pub declare_dead: Vec<String>,
            /// also databases of etcd 3.6 and later, which no repair has been proved on
            #[argh(switch)]
            pub unproven: bool,
        }
        keep_in, trust_member, yes,
        own {
            /// with --yes: also where acknowledged writes may be lost
            #[argh(switch)]
            pub accept_loss: bool,
        }
        dry_run, json, now,
    }
}

/// Plans, asks, writes.
pub fn run(command: &RemoveMember) -> Result<Result<Outcome>, Stop> {
    let sources = args::sources(&command.src, &command.root)?;
    let answers = Answers {
        yes: command.yes,
        accept_loss: command.accept_loss,
        dry_run: command.dry_run,
        json: command.json,
    };
    answers.check()?;
    let settings = Settings {
        keep_in: command.keep_in.clone(),
        trust: command.trust.clone(),
        ..args::with_now(command.now)
    };
    read_only::protect(&sources);
    let session = Session {
        sources: &sources,
        settings: &settings,
        ui: &Terminal,
    };
    Ok(remove(command, &session, answers))
}

fn remove(command: &RemoveMember, session: &Session<'_>, answers: Answers) -> Result<Outcome> {
    let nodes = session.inspect()?.nodes;
    for node in &nodes {
        session.refuse_unfinished(node)?;
    }
    let wishes = SetWishes {
        declare_dead: command.declare_dead.clone(),
        unproven: command.unproven,
    };
    let plan = plan_removal(&nodes, &command.member, &wishes, session.ui)?;
    let planned = report::plan_json(&plan);
    let receipt = set::carry_out(session, nodes, plan, answers)?;
    if answers.json {
        let done = receipt.as_ref().map(report::receipt_json);
        println!(
            "{}",
            serde_json::json!({"schema": SCHEMA, "plan": planned, "receipt": done})
        );
    }
    Ok(set::outcome(receipt.as_ref()))
}
