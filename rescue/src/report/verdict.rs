//! The verdict on a node, for people.

use std::fmt::Write as _;

use super::bounded;
use super::text::Style;
use crate::checks::verdict::{BEYOND_THE_DISK, Verdict};

/// Lines of what could not be seen.
const UNSEEN_SHOWN: usize = 8;

/// One sentence, what could not be seen, and what no disk shows.
pub fn text(verdict: &Verdict, style: &Style) -> String {
    let mut out = String::new();
    let _ = writeln!(out, "{}", style.heading(&verdict.sentence()));
    if !verdict.unseen.is_empty() {
        let _ = writeln!(out, "Not seen:");
        bounded::list(
            &mut out,
            &verdict.unseen,
            UNSEEN_SHOWN,
            ("  ", "(--json names all)"),
            |what| format!("{what}."),
        );
    }
    if verdict.stops_boot == 0 {
        let _ = writeln!(out, "{BEYOND_THE_DISK}");
    }
    out
}
