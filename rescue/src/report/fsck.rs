//! What checkers found, for people and for programs.

use std::fmt::Write as _;
use std::time::Duration;

use serde_json::{Value, json};

use crate::base::schema::SCHEMA;
use crate::disk::Leftover;
use crate::fsck::{Condition, Journal, Verdict};
use crate::repair::preen::Preened;

/// Most checks take less than a minute, and then tenths matter.
fn seconds(took: Duration) -> String {
    format!("{:.1} s", took.as_secs_f64())
}

/// What became of one file system.
#[derive(Debug)]
pub struct Entry {
    /// The look before.
    pub before: Verdict,
    /// What was run to mend it, if anything was.
    pub mended: Option<Preened>,
    /// The look after that.
    pub after: Option<Verdict>,
    /// Why it was not mended, or what to do, where something is left.
    pub left: Option<String>,
}

impl Entry {
    /// Whether it still needs mending.
    pub fn is_left(&self) -> bool {
        self.after.as_ref().unwrap_or(&self.before).needs_mending()
    }
}

/// One verdict: a line, and the checker's words where it found something.
pub fn verdict(verdict: &Verdict) -> String {
    let mut text = format!(
        "{} ({}): {}\n",
        verdict.device,
        verdict.kind,
        words(verdict)
    );
    if verdict.condition == Condition::Damaged {
        for line in &verdict.said {
            let _ = writeln!(text, "    {line}");
        }
    }
    text
}

/// What was found before a repair wrote, one line for each file system.
pub fn before_writing(verdicts: &[Verdict]) -> String {
    verdicts.iter().fold(String::new(), |mut out, verdict| {
        let found = match &verdict.condition {
            Condition::Clean => "no damage found",
            Condition::Damaged => "damaged",
            Condition::NotChecked { why, .. } => why,
        };
        let by = verdict
            .checker
            .as_deref()
            .map(|checker| format!(" ({checker})"));
        let journal = match verdict.journal {
            Journal::Replayed => ", journal replayed",
            _ => "",
        };
        let (device, kind) = (&verdict.device, &verdict.kind);
        let by = by.unwrap_or_default();
        let _ = writeln!(out, "  {device} ({kind}) before: {found}{by}{journal}");
        out
    })
}

fn words(verdict: &Verdict) -> String {
    let by = match &verdict.checker {
        Some(checker) => format!("{checker}, {}", seconds(verdict.took)),
        None => String::new(),
    };
    let mut words = match &verdict.condition {
        Condition::Clean => format!("no damage found ({by})"),
        Condition::Damaged => format!("DAMAGED ({by})"),
        Condition::NotChecked {
            why,
            next: Some(next),
        } => format!("not checked: {why}. Next: {next}"),
        Condition::NotChecked { why, next: None } => format!("not checked: {why}"),
    };
    match &verdict.journal {
        Journal::Clean => {}
        Journal::Replayed => words.push_str(
            "; its journal has to be replayed, which the next mount does by itself (here it was \
             replayed in memory only)",
        ),
        Journal::NotReplayable(why) => {
            let _ = write!(words, "; THE KERNEL CANNOT REPLAY ITS JOURNAL: {why}");
        }
    }
    if verdict.error_flag {
        words.push_str(
            "; its superblock carries the error flag: errors were found while it was in use",
        );
    }
    words
}

/// What mending did.
pub fn mended(entry: &Entry) -> String {
    let mut text = String::new();
    if let Some(preened) = &entry.mended {
        let _ = writeln!(
            text,
            "{}: {} ran for {}:",
            entry.before.device,
            preened.line,
            seconds(preened.ran.took)
        );
        for line in &preened.ran.said {
            let _ = writeln!(text, "    {line}");
        }
    }
    if let Some(after) = &entry.after {
        let _ = write!(text, "Looked again: {}", verdict(after));
    }
    if let Some(left) = &entry.left {
        let _ = writeln!(text, "{left}");
    }
    text
}

/// `rescue fsck --json`.
pub fn json(entries: &[Entry], notes: &[Leftover]) -> Value {
    let file_systems: Vec<Value> = entries
        .iter()
        .map(|entry| {
            let mut object = json!(entry.before);
            object["after"] = json!(entry.after);
            object["mended"] = match &entry.mended {
                Some(preened) => json!({
                    "command": preened.line, "exit_code": preened.ran.code,
                    "said": preened.ran.said,
                    "seconds": preened.ran.took.as_secs_f64(),
                }),
                None => Value::Null,
            };
            object["left"] = json!(entry.left);
            object
        })
        .collect();
    json!({"schema": SCHEMA, "file_systems": file_systems, "leftovers": notes})
}
