//! Findings that the node's own log confirms: rule and log together make them certain.

use crate::base::units::count;
use crate::finding::{Evidence, Finding};
use crate::guest::Guest;
use crate::logs::{LastWords, Word};
use crate::node::Node;

/// Reads the last words of a node.
pub fn read(guest: &Guest, node: &Node) -> LastWords {
    let pods: Vec<&str> = node
        .static_pods
        .iter()
        .map(|pod| pod.name.as_str())
        .collect();
    LastWords::read(guest, &pods)
}

/// Adds to each finding what the logs of the last boot say of it. The logs are read only where a
/// finding is of a mode that programs speak of.
pub(super) fn confirm(findings: &mut [Finding], guest: &Guest, node: &Node) {
    if findings
        .iter()
        .all(|finding| finding.mode.logged.is_empty())
    {
        return;
    }
    let words = read(guest, node);
    for finding in findings {
        finding.log = said(finding.mode.logged, &words);
    }
}

/// The newest of the words that contain one of `parts`, with how often all of them were said.
fn said(parts: &[&str], words: &LastWords) -> Option<Evidence> {
    let found: Vec<&Word> = words.saying(parts).collect();
    let newest = found.iter().max_by_key(|word| word.last)?;
    let times = found.iter().map(|word| word.count).sum::<u64>();
    let times = count(
        usize::try_from(times).unwrap_or(usize::MAX),
        "time",
        "times",
    );
    let boot = words.boots.first().and_then(|boot| boot.first);
    let when = match (newest.boot, boot) {
        (Some(_), Some(first)) => format!(" in the boot of {}", first.date()),
        _ => String::new(),
    };
    Some(Evidence::new(
        &newest.file,
        format!(
            "Certain: the node's own log says so, {times}{when}: {}: {}",
            newest.source, newest.text
        ),
    ))
}
