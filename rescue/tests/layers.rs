//! Which room of the program may know which. The order stands in ARCHITECTURE.md, lowest first,
//! between two markers; this test reads it there, and holds every `crate::` path of the sources
//! against it. `scripts/layers` prints what it sees.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Rooms by name, and how often one names another.
type Arrows = BTreeMap<(String, String), Vec<String>>;

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The words before two spaces on each line between `<!-- NAME -->` and `<!-- /NAME -->`, in the
/// document's order: highest first.
fn order(name: &str) -> Vec<String> {
    let text = fs::read_to_string(repository().join("ARCHITECTURE.md")).expect("ARCHITECTURE.md");
    let (start, end) = (format!("<!-- {name} -->"), format!("<!-- /{name} -->"));
    let block = text.split_once(&start).expect("the first marker").1;
    let block = block.split_once(&end).expect("the second marker").0;
    let rows = block
        .lines()
        .filter(|line| line.starts_with(|c: char| c.is_ascii_lowercase()));
    rows.filter_map(|row| row.split_once("  "))
        .flat_map(|(rooms, _)| {
            rooms
                .split_whitespace()
                .map(|room| room.trim_end_matches('/'))
        })
        .map(str::to_owned)
        .collect()
}

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("a folder of sources").flatten() {
        let path = entry.path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|ending| ending == "rs") {
            found.push(path);
        }
    }
}

/// A file without its comments and its unit tests, which may look anywhere.
fn code(path: &Path) -> String {
    let text = fs::read_to_string(path).expect("a source file");
    let is_tests = |at: &usize| {
        let second = text[*at..].lines().nth(1);
        second.is_some_and(|line| line.ends_with("mod tests {"))
    };
    let mut parts = text.match_indices("#[cfg(test)]").map(|(at, _)| at);
    let text = &text[..parts.find(is_tests).unwrap_or(text.len())];
    let lines = text
        .lines()
        .filter(|line| !line.trim_start().starts_with("//"));
    lines.collect::<Vec<_>>().join("\n")
}

/// The names that follow `prefix` in `code`, groups in braces taken apart: `crate::{a::B, c}` names
/// a and c.
fn names_after(code: &str, prefix: &str) -> Vec<String> {
    let mut names = Vec::new();
    for (at, _) in code.match_indices(prefix) {
        let is_whole = !code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == ':');
        let rest = &code[at + prefix.len()..];
        match rest.strip_prefix('{') {
            _ if !is_whole => {}
            Some(group) => names.extend(top_level(group)),
            None => names.extend(first_word(rest)),
        }
    }
    names
}

fn first_word(text: &str) -> Option<String> {
    let word: String = text
        .trim_start()
        .chars()
        .take_while(|c| c.is_alphanumeric() || *c == '_')
        .collect();
    (!word.is_empty()).then_some(word)
}

fn top_level(group: &str) -> Vec<String> {
    let (mut depth, mut part, mut names) = (0, String::new(), Vec::new());
    for character in group.chars() {
        match character {
            '}' if depth == 0 => break,
            ',' if depth == 0 => names.extend(first_word(&std::mem::take(&mut part))),
            '{' => depth += 1,
            '}' => depth -= 1,
            _ => part.push(character),
        }
    }
    names.extend(first_word(&part));
    names
}

/// Every arrow between the rooms of `folder`, whose paths begin with `prefix`.
fn arrows(folder: &Path, prefix: &str) -> Arrows {
    let mut files = Vec::new();
    sources(folder, &mut files);
    let mut arrows = Arrows::new();
    for file in files {
        let below = file.strip_prefix(folder).expect("a file below");
        let room = below
            .components()
            .next()
            .expect("a name")
            .as_os_str()
            .to_string_lossy();
        let room = room.trim_end_matches(".rs").to_owned();
        if matches!(room.as_str(), "lib" | "main" | "mod") {
            continue;
        }
        for other in names_after(&code(&file), prefix) {
            if other != room {
                let place = below.display().to_string();
                arrows.entry((room.clone(), other)).or_default().push(place);
            }
        }
    }
    arrows
}

/// Rooms that reach themselves over others.
fn circles(arrows: &Arrows) -> BTreeSet<String> {
    let mut reach: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for (from, to) in arrows.keys() {
        reach.entry(from).or_default().insert(to);
    }
    loop {
        let before: usize = reach.values().map(BTreeSet::len).sum();
        for (from, over) in reach.clone() {
            let further: Vec<&str> = over
                .iter()
                .filter_map(|room| reach.get(room))
                .flatten()
                .copied()
                .collect();
            reach.entry(from).or_default().extend(further);
        }
        if reach.values().map(BTreeSet::len).sum::<usize>() == before {
            break;
        }
    }
    let in_circle = reach
        .iter()
        .filter(|(room, reached)| reached.contains(*room));
    in_circle.map(|(room, _)| (*room).to_owned()).collect()
}

/// What breaks the order: arrows that lead upwards, and rooms that the order does not name.
fn faults(order: &[String], arrows: &Arrows) -> Vec<String> {
    let height = |room: &String| order.iter().position(|known| known == room);
    let fault = |((from, to), places): (&(String, String), &Vec<String>)| match (
        height(from),
        height(to),
    ) {
        (Some(from_height), Some(to_height)) if from_height < to_height => None,
        (None, _) => Some(format!("{from} is not in ARCHITECTURE.md's order")),
        (_, None) => Some(format!(
            "{to}, which {} names, is not in the order",
            places[0]
        )),
        _ => Some(format!("{from} must not know {to}: {}", places.join(", "))),
    };
    arrows.iter().filter_map(fault).collect()
}

fn check(name: &str, folder: &str, prefix: &str) {
    let (order, arrows) = (order(name), arrows(&repository().join(folder), prefix));
    let circles = circles(&arrows);
    println!(
        "{folder}: {} rooms, {} arrows, {} rooms in circles",
        order.len(),
        arrows.len(),
        circles.len()
    );
    for ((from, to), places) in &arrows {
        println!("  {from} -> {to} ({})", places.len());
    }
    let faults = faults(&order, &arrows);
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    assert!(circles.is_empty(), "{circles:?}");
}

#[test]
fn a_room_knows_only_those_below_it() {
    check("rooms", "rescue/src", "crate::");
}

#[test]
fn a_floor_of_etcd_knows_only_those_below_it() {
    check("floors of etcd", "rescue/src/etcd", "crate::etcd::");
}

#[test]
fn an_arrow_upwards_and_a_circle_are_seen() {
    let order = ["high", "low"].map(str::to_owned);
    let arrow =
        |from: &str, to: &str| ((from.to_owned(), to.to_owned()), vec!["file.rs".to_owned()]);
    let down = Arrows::from([arrow("high", "low")]);
    assert!(faults(&order, &down).is_empty() && circles(&down).is_empty());
    let both = Arrows::from([arrow("high", "low"), arrow("low", "high")]);
    assert_eq!(faults(&order, &both), ["low must not know high: file.rs"]);
    assert_eq!(circles(&both).len(), 2);
    let text = "use crate::{a::B, c::{D, e}};\nlet x = crate::f::g(); // crate::no";
    assert_eq!(
        names_after(text.split("//").next().unwrap(), "crate::"),
        ["a", "c", "f"]
    );
}
