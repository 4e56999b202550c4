//! `rescue words`: the node's own last words, newest boot first.

use std::fmt::Write as _;

use serde_json::{Value, json};
use time::OffsetDateTime;

use super::wrap;
use crate::base::escaping::escape;
use crate::base::units::{count, rfc3339, time};
use crate::logs::{Boot, LastWords, Word};

/// Words shown of one boot, or of the pods' logs.
const SHOWN: usize = 20;

/// Characters of one that are shown.
const LONGEST: usize = 400;

/// Columns before the text of a word.
const INDENT: usize = 4;

/// The failures that a node's logs tell of. `name`: how people call the node.
pub fn text(name: &str, words: &LastWords) -> String {
    let mut out = format!("{}\n", escape(name));
    if words.files.is_empty() {
        return out
            + "  No log of it is on the disks given: no journal, no syslog, no logs of pods.\n";
    }
    let errors: Vec<&Word> = words.words.iter().filter(|word| word.is_error).collect();
    for (number, boot) in words.boots.iter().enumerate() {
        let of_boot: Vec<&Word> = of(&errors, Some(number));
        let _ = writeln!(out, "\n{}", boot_title(number, boot));
        section(&mut out, &of_boot);
    }
    let of_pods = of(&errors, None);
    if !of_pods.is_empty() {
        out.push_str("\nThe static pods' own logs\n");
        section(&mut out, &of_pods);
    }
    if words.is_cut {
        out.push_str("\nOlder entries were not read.\n");
    }
    out
}

/// The words of one boot, or of none, the newest first.
fn of<'a>(errors: &[&'a Word], boot: Option<usize>) -> Vec<&'a Word> {
    let mut found: Vec<&Word> = errors
        .iter()
        .copied()
        .filter(|word| word.boot == boot)
        .collect();
    found.sort_by_key(|word| std::cmp::Reverse(word.last));
    found
}

fn boot_title(number: usize, boot: &Boot) -> String {
    let when = match (boot.first, boot.last) {
        (Some(first), Some(last)) => format!("{} to {}", time(first), time(last)),
        _ => "at an unknown time".to_owned(),
    };
    match number {
        0 => format!("Last boot, {when}"),
        number => format!("Boot before it ({number} back), {when}"),
    }
}

fn section(out: &mut String, words: &[&Word]) {
    if words.is_empty() {
        out.push_str("  No failure of the kubelet, the runtime or their units is logged.\n");
    }
    for word in words.iter().take(SHOWN) {
        let _ = writeln!(out, "  {}", head(word));
        out.push_str(&wrap::broken(INDENT, &shortened(&escape(&word.text))));
    }
    if words.len() > SHOWN {
        let rest = count(words.len() - SHOWN, "other message", "other messages");
        let _ = writeln!(out, "  and {rest} (--json has all)");
    }
}

/// A line of a log without what is behind its first [`LONGEST`] characters.
fn shortened(text: &str) -> String {
    match text.char_indices().nth(LONGEST) {
        None => text.to_owned(),
        Some((end, _)) => text.get(..end).unwrap_or(text).to_owned() + "…",
    }
}

/// Who, how often and when: `kubelet, 1204 times, last 2026-11-30 08:12 UTC`.
fn head(word: &Word) -> String {
    let times = match word.count {
        1 => "once".to_owned(),
        many => format!("{many} times"),
    };
    let last = |at: OffsetDateTime| format!(", last {}", time(at));
    format!(
        "{}, {times}{}",
        escape(&word.source),
        word.last.map(last).unwrap_or_default()
    )
}

/// What was said, as evidence for a finding.
pub(crate) fn json(name: &str, source: &str, words: &LastWords) -> Value {
    let at = |at: Option<OffsetDateTime>| at.map(rfc3339);
    let boots: Vec<Value> = words
        .boots
        .iter()
        .map(|boot| json!({"first": at(boot.first), "last": at(boot.last)}))
        .collect();
    let said: Vec<Value> = words
        .words
        .iter()
        .filter(|word| word.is_error)
        .map(|word| {
            json!({
                "source": word.source,
                "text": word.text,
                "count": word.count,
                "first": at(word.first),
                "last": at(word.last),
                "boot": word.boot,
                "path": word.file.to_string(),
            })
        })
        .collect();
    let files: Vec<String> = words.files.iter().map(ToString::to_string).collect();
    json!({
        "name": name,
        "source": source,
        "boots": boots,
        "words": said,
        "files": files,
        "cut": words.is_cut,
    })
}
