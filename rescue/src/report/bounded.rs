//! Bounds on what is printed for people. A guest chooses how many files, users, runs and
//! certificates it has and how long their names are; a text console has 25 lines, and whoever reads
//! it has a node to repair. `--json` has everything.

use std::borrow::Cow;
use std::fmt::Write as _;

/// Entries shown of a list whose length the guest chooses.
pub const ENTRIES: usize = 20;

/// Entries shown of what has to be read in full on any real node: findings, steps of a plan,
/// certificates, nodes.
pub const MANY: usize = 200;

/// Names shown in a sentence.
const NAMES: usize = 12;

/// Characters shown of a line; the longest sentences of our own have 500.
const CHARACTERS: usize = 1000;

/// Writes the first `most` of `items`, each as `line` says it, and a line that counts the rest:
/// `and 12 more REST`. `rest` is a noun, and where all of them are. One item more than `most` is
/// shown: the line that counts it would take the same place.
pub fn list<T>(
    out: &mut String,
    items: &[T],
    most: usize,
    (indent, rest): (&str, &str),
    mut line_of: impl FnMut(&T) -> String,
) {
    let shown = if items.len() <= most + 1 {
        items.len()
    } else {
        most
    };
    for text in items.iter().take(shown).map(&mut line_of) {
        for text in text.lines() {
            let _ = writeln!(out, "{indent}{}", line(text));
        }
    }
    if shown < items.len() {
        let _ = writeln!(out, "{indent}and {} more {rest}", items.len() - shown);
    }
}

/// Names in a sentence: `a, b, c and 3 more`.
pub fn names<T: AsRef<str>>(names: &[T]) -> String {
    joined(names, ", ")
}

/// What has commas of its own: `a 1,2; b 3 and 3 more`.
pub fn sentences<T: AsRef<str>>(sentences: &[T]) -> String {
    joined(sentences, "; ")
}

fn joined<T: AsRef<str>>(names: &[T], separator: &str) -> String {
    let shown = if names.len() <= NAMES + 1 {
        names.len()
    } else {
        NAMES
    };
    let text = names
        .iter()
        .take(shown)
        .map(|name| line(name.as_ref()))
        .collect::<Vec<_>>()
        .join(separator);
    match names.len() - shown {
        0 => text,
        rest => format!("{text} and {rest} more"),
    }
}

/// A line, without what is behind its first 1000 characters.
pub fn line(text: &str) -> Cow<'_, str> {
    match text.char_indices().nth(CHARACTERS) {
        None => Cow::Borrowed(text),
        Some((end, _)) => {
            let (shown, rest) = text.split_at(end);
            Cow::Owned(format!(
                "{shown}… ({} more characters)",
                rest.chars().count()
            ))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listed(count: usize) -> String {
        let items: Vec<usize> = (0..count).collect();
        let mut out = String::new();
        list(
            &mut out,
            &items,
            3,
            ("  ", "runs (--json names all)"),
            |n| format!("run {n}"),
        );
        out
    }

    #[test]
    fn a_list_has_a_bounded_number_of_lines() {
        assert_eq!(listed(0), "");
        assert_eq!(listed(3), "  run 0\n  run 1\n  run 2\n");
        assert_eq!(listed(4).lines().count(), 4);
        assert!(!listed(4).contains("more"), "{}", listed(4));
        assert_eq!(
            listed(20_000),
            "  run 0\n  run 1\n  run 2\n  and 19997 more runs (--json names all)\n"
        );
    }

    #[test]
    fn names_in_a_sentence_are_counted() {
        assert_eq!(names(&["a", "b"]), "a, b");
        assert_eq!(names::<String>(&[]), "");
        assert!(names(&["a"; 13]).ends_with(", a"));
        assert_eq!(
            names(&["a"; 14]),
            format!("{} and 2 more", ["a"; 12].join(", "))
        );
    }

    #[test]
    fn a_long_line_is_cut_between_characters() {
        assert_eq!(line("ü"), "ü");
        assert_eq!(line(&"ü".repeat(1000)), "ü".repeat(1000));
        assert_eq!(
            line(&"ü".repeat(1007)),
            format!("{}… (7 more characters)", "ü".repeat(1000))
        );
    }
}
