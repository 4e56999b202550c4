//! The names of the nodes that a bundle is made for: a list file, or words on the command line.

use anyhow::{Context as _, Result, bail, ensure};
use std::collections::BTreeSet;

use super::kubelet::is_node_name;
use super::x509::certificate::printable;

/// One name per line; `#` begins a comment; empty lines are skipped.
pub fn from_file(bytes: &[u8]) -> Result<Vec<String>> {
    let text = std::str::from_utf8(bytes).ok().context("it is no text")?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let lines = text.lines().enumerate();
    let names = lines.map(|(number, line)| {
        (
            format!("line {}", number + 1),
            line.split('#').next().unwrap_or_default(),
        )
    });
    checked(names.filter(|(_, name)| !name.trim().is_empty()))
}

/// `name,name`.
pub fn from_words(text: &str) -> Result<Vec<String>> {
    checked(
        text.split(',')
            .enumerate()
            .map(|(number, name)| (format!("name {}", number + 1), name)),
    )
}

/// Each one the name of a node, none of them twice. A `place` is where a name stands, for messages.
fn checked<'a>(names: impl Iterator<Item = (String, &'a str)>) -> Result<Vec<String>> {
    let mut seen = BTreeSet::new();
    let mut all = Vec::new();
    for (place, name) in names {
        let name = name.trim();
        if !is_node_name(name) {
            bail!(
                "{place}, {:?}, is not the name of a node (lower-case letters, digits, - and .)",
                printable(name)
            );
        }
        ensure!(seen.insert(name), "{place}, {name:?}, is there twice");
        all.push(name.to_owned());
    }
    ensure!(!all.is_empty(), "it names no node");
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_lists_as_people_write_them() {
        let list = from_file(
            "\u{feff}# rack 1\r\nworker1\r\n\r\n  worker2  # the old one\nw3.example.org"
                .as_bytes(),
        );
        assert_eq!(list.unwrap(), ["worker1", "worker2", "w3.example.org"]);
        assert_eq!(
            from_words("worker1, worker2").unwrap(),
            ["worker1", "worker2"]
        );
    }

    #[test]
    fn refuses_what_is_no_name_and_says_where() {
        for (list, words) in [
            ("a\nb c\n", "line 2"),
            ("Worker1", "line 1"),
            ("../a", "line 1"),
            ("a\n#\na", "line 3, \"a\", is there twice"),
            ("# nothing\n", "no node"),
        ] {
            let error = from_file(list.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(words), "{list:?}: {error}");
        }
        assert!(from_file(b"\xff\xfe").is_err());
        for words in ["", "a,,b", "a,a", "a/b", "a\u{1b}[2J"] {
            assert!(from_words(words).is_err(), "{words:?}");
        }
    }
}
