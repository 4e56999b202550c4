//! What `rescue etcd rebuild`, `salvage` and `defrag` share: their options, and the way from the
//! sources to what was made.

use std::path::Path;

use anyhow::Result;
use serde_json::{Value, json};
use time::OffsetDateTime;

use super::sources::EtcdSources;
use crate::checks::CATALOGUE;
use crate::cli::Outcome;
use crate::cli::answers::Answers;
use crate::cli::args::{self, Stop};
use crate::cli::set;
use crate::cli::terminal::Terminal;
use crate::etcd::read::status::Found;
use crate::plan::etcd::members_plan::MembersPlan;
use crate::report::{etcd_plan, set as set_report};
use crate::session::Session;
use crate::session::etcd::OpenedMembers;
use crate::settings::Settings;

/// Options that rebuild, salvage and defrag share.
#[derive(Debug)]
pub struct RunOptions<'a> {
    /// `--output`: folders are written there, and the disks stay as they are.
    pub output: Option<&'a Path>,
    /// What the user said beforehand.
    pub answers: Answers,
    /// `--keep-in`.
    pub keep_in: Option<&'a Path>,
    /// `--trust`.
    pub trust: &'a [String],
    /// `--now`.
    pub now: Option<OffsetDateTime>,
}

/// Reads [`RunOptions`] off the arguments of a command that has these flags.
macro_rules! run_options {
    ($command:expr, accept_loss: $accept_loss:expr) => {
        $crate::cli::etcd::run_options::RunOptions {
            output: $command.output.as_deref(),
            answers: $crate::cli::answers::Answers {
                yes: $command.yes,
                accept_loss: $accept_loss,
                dry_run: $command.dry_run,
                json: $command.json,
            },
            keep_in: $command.keep_in.as_deref(),
            trust: &$command.trust,
            now: $command.now,
        }
    };
}
pub(super) use run_options;

impl RunOptions<'_> {
    /// JSON is for programs, which cannot be asked.
    pub fn check(&self) -> Result<(), Stop> {
        let Answers {
            yes, dry_run, json, ..
        } = self.answers;
        let [yes, dry_run] = args::answers(yes, dry_run);
        let output = (self.output.is_some(), "--output DIR");
        args::refuse_asking(json, &[yes, dry_run, output])
    }

    /// No check is asked for: what is read of etcd is read by the command itself.
    fn settings(&self) -> Settings {
        let skip = CATALOGUE.iter().map(|check| check.id.to_owned()).collect();
        Settings {
            skip,
            keep_in: self.keep_in.map(Path::to_path_buf),
            trust: self.trust.to_vec(),
            ..args::with_now(self.now)
        }
    }
}

/// Opens the sources, plans with `plan` what is to be made of the members on them, shows it, asks,
/// and makes it.
///
/// # Errors
/// A refusal (by downcast) where nothing was changed; otherwise what says that something was.
pub(super) fn run(
    sources: &EtcdSources,
    options: &RunOptions<'_>,
    plan: impl FnOnce(&[Found], &Settings) -> Result<MembersPlan>,
) -> Result<Outcome> {
    let settings = options.settings();
    let session = Session {
        sources: &sources.disks,
        settings: &settings,
        ui: &Terminal,
    };
    let opened = match options.output {
        _ if sources.is_empty() => OpenedMembers::default(),
        Some(_) => session.open_members_for_reading(&sources.data_dirs)?,
        None => session.open_members_for_change(&sources.data_dirs)?,
    };
    let plan = plan(&opened.found, &settings)?;
    let dry_run = options.answers.dry_run;
    match options.output {
        Some(output) if !dry_run => {
            write_beside(&session, &plan, &opened.found, output, options.answers)
        }
        None if !dry_run || plan.is_on_nodes(&opened.found) => {
            put_in_place(&session, plan, opened, options.answers)
        }
        _ => {
            show_only(&plan, options.answers);
            Ok(Outcome::FindingsLeft)
        }
    }
}

fn show_only(plan: &MembersPlan, answers: Answers) {
    let text = etcd_plan::text(plan);
    answers.say(&format!("{text}This was a dry run: nothing was changed.\n"));
    let json = etcd_plan::json(plan);
    print_outcome(answers, &json, "planned", Value::Null, Value::Null);
}

fn write_beside(
    session: &Session<'_>,
    plan: &MembersPlan,
    found: &[Found],
    output: &Path,
    answers: Answers,
) -> Result<Outcome> {
    answers.say(&etcd_plan::text(plan));
    let made: Vec<String> = session
        .write_members_beside(plan, found, output)?
        .iter()
        .map(|path| path.display().to_string())
        .collect();
    for path in &made {
        answers.say(&format!("Written: {path}\n"));
    }
    answers.say("It is a data folder of etcd; nothing on the disks was changed.\n");
    let json = etcd_plan::json(plan);
    print_outcome(answers, &json, "written", json!(made), Value::Null);
    Ok(Outcome::Clean)
}

/// The way of every plan for several nodes.
fn put_in_place(
    session: &Session<'_>,
    plan: MembersPlan,
    opened: OpenedMembers,
    answers: Answers,
) -> Result<Outcome> {
    let planned = etcd_plan::json(&plan);
    let OpenedMembers { found, nodes } = opened;
    let plan = plan.into_set(&found)?;
    // Whoever is to be written to must not be open any more.
    drop(found);
    let Some(receipt) = set::carry_out(session, nodes, plan, answers)? else {
        print_outcome(answers, &planned, "planned", Value::Null, Value::Null);
        return Ok(Outcome::FindingsLeft);
    };
    let run = json!(format!("run {}", receipt.run));
    let done = set_report::receipt_json(&receipt);
    print_outcome(answers, &planned, "done", run, done);
    Ok(set::outcome(Some(&receipt)))
}

fn print_outcome(answers: Answers, plan: &Value, outcome: &str, made: Value, receipt: Value) {
    if answers.json {
        println!("{}", etcd_plan::outcome(plan, outcome, made, receipt));
    }
}
