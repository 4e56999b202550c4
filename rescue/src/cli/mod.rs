//! The command line: arguments, one file per sub-command; shows, asks, exits. No logic.

mod answers;
mod args;
mod certs;
mod checks;
mod disks;
mod etcd;
mod fsck;
mod given;
mod inspect;
mod repair;
mod runs;
mod set;
mod shared_flags;
mod terminal;
mod undo;
mod words;

use std::process::ExitCode;

use crate::base::refusal::Refusal;
use crate::in_use::read_only;
use crate::repair::{TransactionError, UndoError};
use crate::session::PartWay;
use args::{Command, Stop};

/// How a command ended, as documented for scripts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    /// Nothing is left to do.
    Clean,
    /// Findings that count are (still) there.
    FindingsLeft,
    /// The command line makes no sense.
    Usage,
    /// Refused, or failed before anything was changed.
    Refused,
    /// Failed part-way.
    PartWay,
}

impl From<Outcome> for ExitCode {
    fn from(outcome: Outcome) -> Self {
        Self::from(match outcome {
            Outcome::Clean => 0,
            Outcome::FindingsLeft => 1,
            Outcome::Usage => 2,
            Outcome::Refused => 3,
            Outcome::PartWay => 4,
        })
    }
}

/// Runs the program and says how it ended.
pub fn main() -> ExitCode {
    restore_default_sigpipe();
    report_panics_plainly();
    let words: Vec<String> = std::env::args_os()
        .skip(1)
        .map(|word| word.to_string_lossy().into_owned())
        .collect();
    run(&words).into()
}

/// Whether a command line, without the program's name, can be understood.
#[cfg(test)]
pub(crate) fn understands(words: &[String]) -> bool {
    given::take(words)
        .and_then(|(words, _)| args::parse(&words))
        .is_ok()
}

/// Runs one command line, without the program's name.
fn run(words: &[String]) -> Outcome {
    let outcome = given::take(words).and_then(|(words, given)| {
        let arguments = args::parse(&words)?;
        given::apply(given)?;
        dispatch(&arguments.command)
    });
    read_only::give_all_back();
    match outcome {
        Ok(outcome) => outcome,
        Err(Stop::Help(text)) => {
            println!("{}", text.trim_end());
            Outcome::Clean
        }
        Err(Stop::Usage(text)) => {
            eprintln!("rescue: {}", args::with_next_step(&text, words));
            Outcome::Usage
        }
    }
}

fn dispatch(command: &Command) -> Result<Outcome, Stop> {
    let (outcome, json) = match command {
        Command::Inspect(command) => (inspect::run(command)?, command.json),
        Command::Repair(command) => (repair::run(command)?, command.json),
        Command::Undo(command) => (undo::run(command)?, command.json),
        Command::Certs(command) => (certs::run(command)?, command.json()),
        Command::Etcd(command) => (etcd::run(command)?, command.json()),
        Command::Fsck(command) => (fsck::run(command)?, command.json),
        Command::Runs(command) => (runs::run(command)?, command.json),
        Command::Words(command) => (words::run(command)?, command.json),
        Command::Disks(command) => (disks::run(command)?, command.json),
        Command::Checks(command) => (checks::run(command), command.json),
        Command::Version(_) => {
            println!("rescue {}", env!("CARGO_PKG_VERSION"));
            (Ok(Outcome::Clean), false)
        }
    };
    Ok(outcome.unwrap_or_else(|error| explain(&error, json)))
}

/// A failure in one word and one line.
struct Failure {
    outcome: Outcome,
    /// `refused`, `failed`, `failed part-way`.
    kind: &'static str,
    text: String,
}

impl Failure {
    fn of(error: &anyhow::Error) -> Self {
        let part_way =
            error.is::<TransactionError>() || error.is::<UndoError>() || error.is::<PartWay>();
        let refused = error.chain().any(|cause| cause.is::<Refusal>());
        let outcome = if part_way {
            Outcome::PartWay
        } else {
            Outcome::Refused
        };
        let kind = match (part_way, refused) {
            (true, _) => "failed part-way",
            (false, true) => "refused",
            (false, false) => "failed",
        };
        // Whatever a cause quotes of a guest: one line, and nothing that moves the cursor.
        let text = crate::base::escaping::escape(&format!("{error:#}").replace('\n', " "));
        Self {
            outcome,
            kind,
            text,
        }
    }
}

/// One clear line with the cause chain; for programs, a JSON object on standard output as well.
fn explain(error: &anyhow::Error, json: bool) -> Outcome {
    let Failure {
        outcome,
        kind,
        text,
    } = Failure::of(error);
    let unchanged = if outcome == Outcome::PartWay {
        ""
    } else {
        " (no file was changed)"
    };
    eprintln!("rescue: {kind}{unchanged}: {text}");
    if json {
        println!("{}", crate::report::json::failure(kind, &text));
    }
    outcome
}

/// `rescue inspect … | head` must end quietly, not with a panic on a closed pipe.
fn restore_default_sigpipe() {
    crate::base::sys::restore_default_sigpipe();
}

/// A panic is our mistake; the user gets one line instead of a backtrace, and never a value that
/// may be secret.
fn report_panics_plainly() {
    std::panic::set_hook(Box::new(|panic| {
        let place = panic
            .location()
            .map(ToString::to_string)
            .unwrap_or_default();
        eprintln!(
            "rescue: internal error at {place}; this is a mistake in rescue. If a repair was \
             under way, run the same command \
             again: it completes or discards what was begun."
        );
        std::process::exit(4);
    }));
}
