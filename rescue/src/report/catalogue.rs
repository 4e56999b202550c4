//! The catalogue of checks for people: a table for docs/checks.md, a page for each failure mode in
//! docs/modes, and the same on a terminal.

use std::fmt::Write as _;

use super::wrap;
use crate::base::severity::Severity;
use crate::checks::CATALOGUE;
use crate::finding::Mode;

/// A table of all failure modes, in the catalogue's order.
pub fn markdown() -> String {
    let mut out = "| mode | severity | what is wrong |\n| --- | --- | --- |\n".to_owned();
    for mode in CATALOGUE.iter().flat_map(|check| check.modes) {
        let _ = writeln!(
            out,
            "| [`{}`](modes/{}.md) | {} | {} |",
            mode.id,
            mode.id,
            mode.severity.word(),
            mode.says
        );
    }
    out
}

/// The page of one failure mode, as Markdown.
pub fn page(mode: &Mode) -> String {
    let mut out = format!("# {}\n", mode.id);
    let (says, page) = (sentence(mode.says), &mode.page);
    let severity = format!("**{}**: {}", mode.severity.word(), means(mode.severity));
    let _ = write!(out, "\n{says}\n\n{severity}\n");
    for (title, text) in parts(mode) {
        let _ = write!(out, "\n## {title}\n\n{text}\n");
    }
    let _ = write!(out, "\n## Where the rule comes from\n\n{}\n", page.source);
    out
}

/// Pages on a terminal, one after another.
pub fn plain(modes: &[&Mode]) -> String {
    let pages: Vec<String> = modes.iter().copied().map(plain_page).collect();
    pages.join("\n")
}

fn plain_page(mode: &Mode) -> String {
    let severity = format!("{}: {}", mode.severity.word(), means(mode.severity));
    let mut out = format!("{}\n", mode.id);
    out += &wrap::indented(2, &sentence(mode.says));
    out += &wrap::indented(2, &severity);
    for (title, text) in parts(mode) {
        let _ = write!(out, "\n{title}\n{}", wrap::indented(2, &text));
    }
    let source = wrap::indented(2, mode.page.source);
    let _ = write!(out, "\nWhere the rule comes from\n{source}");
    out
}

fn parts(mode: &Mode) -> Vec<(&'static str, String)> {
    let mut back = "`rescue undo` takes back whatever was changed, as long as the node has not \
        changed the same files since."
        .to_owned();
    if mode.check() == "disk-full" {
        back += " What was deleted to free space stays deleted.";
    }
    let mut parts = vec![("Why", mode.page.why.to_owned())];
    if !mode.logged.is_empty() {
        let words: Vec<String> = mode
            .logged
            .iter()
            .map(|part| format!("\"{part}\""))
            .collect();
        let text = format!(
            "Where the node's last boot logged {}, the finding says that it is certain.",
            words.join(" or ")
        );
        parts.push(("In the node's log", text));
    }
    parts.push(("What rescue does", mode.page.done.to_owned()));
    parts.push(("How to take it back", back));
    parts
}

fn means(severity: Severity) -> &'static str {
    match severity {
        Severity::StopsBoot => "at worst the node does not come back.",
        Severity::WillBreak => "the node comes up, and something of it fails now or soon.",
        Severity::Note => "worth knowing; it does not count for the exit code.",
    }
}

/// A clause as a sentence.
fn sentence(clause: &str) -> String {
    let mut letters = clause.chars();
    let first = letters.next().map(char::to_uppercase);
    let first: String = first.into_iter().flatten().collect();
    // The name of a file keeps its letters.
    let is_name = clause
        .split(' ')
        .next()
        .is_some_and(|word| word.contains('.'));
    match is_name {
        true => format!("{clause}."),
        false => format!("{first}{}.", letters.as_str()),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};
    use std::fs;
    use std::path::Path;

    use super::*;

    const BEGIN: &str = "<!-- modes: made from the catalogue -->\n";
    const END: &str = "<!-- /modes -->";

    #[test]
    fn identifiers_are_unique_and_modes_begin_with_their_check() {
        let mut seen = BTreeSet::new();
        for check in CATALOGUE {
            assert!(seen.insert(check.id), "{} is there twice", check.id);
            assert!(!check.modes.is_empty(), "{} has no modes", check.id);
            for mode in check.modes {
                assert_eq!(mode.check(), check.id, "{}", mode.id);
                assert!(seen.insert(mode.id), "{} is there twice", mode.id);
                let is_clause = !mode.says.ends_with('.') && !mode.says.is_empty();
                assert!(is_clause, "{} says \"{}\"", mode.id, mode.says);
            }
        }
    }

    #[test]
    fn a_check_comes_after_those_that_it_names() {
        let ids: Vec<&str> = CATALOGUE.iter().map(|check| check.id).collect();
        for (index, check) in CATALOGUE.iter().enumerate() {
            for earlier in check.after {
                let is_earlier = ids[..index].contains(earlier);
                assert!(is_earlier, "{} must come after {earlier}", check.id);
            }
        }
    }

    #[test]
    fn every_mode_says_why_it_stops_the_node_what_is_done_and_where_that_stands() {
        for mode in CATALOGUE.iter().flat_map(|check| check.modes) {
            let page = &mode.page;
            for (name, text) in [("why", page.why), ("done", page.done)] {
                assert!(text.ends_with('.'), "{}: {name} is no sentence", mode.id);
            }
            assert!(!page.source.is_empty(), "{} names no source", mode.id);
        }
    }

    #[test]
    fn a_page_on_a_terminal_fits_80_columns() {
        for mode in CATALOGUE.iter().flat_map(|check| check.modes) {
            for line in plain_page(mode).lines() {
                let is_one_word = !line.trim().contains(' ');
                assert!(line.chars().count() <= wrap::WIDTH || is_one_word, "{line}");
            }
        }
    }

    /// `RESCUE_WRITE_DOCS=1` writes the pages instead.
    #[test]
    fn docs_modes_has_the_page_of_every_mode_and_no_other() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/modes");
        let modes = CATALOGUE.iter().flat_map(|check| check.modes);
        let pages: BTreeMap<String, String> = modes
            .map(|mode| (format!("{}.md", mode.id), page(mode)))
            .collect();
        if std::env::var_os("RESCUE_WRITE_DOCS").is_some() {
            let _ = fs::remove_dir_all(&folder);
            fs::create_dir_all(&folder).expect("docs/modes is made");
            for (name, text) in &pages {
                fs::write(folder.join(name), text).expect("a page is written");
            }
            return;
        }
        let advice = "run: RESCUE_WRITE_DOCS=1 cargo test -p rescue catalogue";
        let entries = fs::read_dir(&folder).expect("docs/modes");
        let there: BTreeMap<String, String> = entries
            .map(|entry| entry.expect("an entry of docs/modes"))
            .map(|entry| {
                let text = fs::read_to_string(entry.path()).expect("a page");
                (entry.file_name().to_string_lossy().into_owned(), text)
            })
            .collect();
        assert!(there == pages, "docs/modes is not up to date; {advice}");
    }

    /// `RESCUE_WRITE_DOCS=1` writes the table instead.
    #[test]
    fn the_page_of_checks_has_every_check_and_mode() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/checks.md");
        let page = fs::read_to_string(&path).expect("docs/checks.md");
        for check in CATALOGUE {
            let row = format!("| `{}` |", check.id);
            assert!(page.contains(&row), "docs/checks.md has no row {row}");
        }
        let (head, rest) = page.split_once(BEGIN).expect("the first marker");
        let (table, tail) = rest.split_once(END).expect("the second marker");
        if std::env::var_os("RESCUE_WRITE_DOCS").is_some() {
            let page = format!("{head}{BEGIN}{}{END}{tail}", markdown());
            fs::write(&path, page).expect("docs/checks.md is written");
            return;
        }
        let advice = "run: RESCUE_WRITE_DOCS=1 cargo test -p rescue catalogue";
        assert_eq!(
            table,
            markdown(),
            "docs/checks.md is not up to date; {advice}"
        );
    }
}
