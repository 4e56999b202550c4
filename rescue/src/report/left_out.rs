//! Remedies that ask first, for people and for programs: what a plan leaves out, and how to have it
//! done.

use std::fmt::Write as _;

use serde_json::{Value, json};

use super::bounded::{self, ENTRIES, MANY};
use crate::plan::LeftOut;

/// What was left out, each with what to type to have it done. Empty where nothing was.
pub fn text(items: &[LeftOut]) -> String {
    let mut out = String::new();
    let rest = ("  ", "left out (--json names all)");
    bounded::list(&mut out, items, MANY, rest, |item| {
        format!(
            "left out: {}\n            it may be wanted as it is; to do this, add `--allow {}`\n",
            item.summary, item.mode.id
        )
    });
    out
}

/// One item before its own question.
pub fn question(item: &LeftOut) -> String {
    let mut out = String::new();
    let _ = writeln!(
        out,
        "\nThis may be wanted as it is, so it is asked for by itself:"
    );
    let _ = writeln!(out, "  {}", item.finding);
    let _ = writeln!(out, "  remedy: {}", item.summary);
    let rest = ("    ", "lines (--dry-run --json has all)");
    bounded::list(&mut out, &item.details, ENTRIES, rest, String::clone);
    out
}

/// For programs; docs/json.md.
pub fn objects(items: &[LeftOut]) -> Vec<Value> {
    let object = |item: &LeftOut| {
        json!({
            "check": item.mode.check(),
            "mode": item.mode.id,
            "finding": item.finding,
            "kind": item.kind,
            "summary": item.summary,
            "details": item.details,
            "asks_first": true,
        })
    };
    items.iter().map(object).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::finding::Mode;

    fn item() -> LeftOut {
        LeftOut {
            mode: Mode::stops_boot("kubelet-unit.boot-target", "x"),
            finding: "the next boot ends in rescue.target".to_owned(),
            kind: "set-default-target",
            summary: "boot to multi-user.target again (systemctl set-default)".to_owned(),
            details: vec!["default.target is a link".to_owned()],
        }
    }

    #[test]
    fn what_is_left_out_says_what_to_type() {
        let said = text(&[item()]);
        assert!(said.contains("left out: boot to multi-user.target again"));
        assert!(said.contains("add `--allow kubelet-unit.boot-target`"));
        assert!(said.lines().all(|line| line.chars().count() <= 100));
        assert_eq!(text(&[]), "");
    }

    #[test]
    fn a_question_shows_the_finding_the_remedy_and_its_details() {
        let said = question(&item());
        for part in [
            "ends in rescue.target",
            "remedy: boot to",
            "default.target is a link",
        ] {
            assert!(said.contains(part), "{said}");
        }
    }

    #[test]
    fn programs_get_the_mode_to_allow() {
        let objects = objects(&[item()]);
        assert_eq!(objects[0]["mode"], "kubelet-unit.boot-target");
        assert_eq!(objects[0]["check"], "kubelet-unit");
        assert_eq!(objects[0]["asks_first"], true);
    }
}
