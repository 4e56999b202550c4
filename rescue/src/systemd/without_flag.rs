//! Taking one flag out of the command line of a unit: beside the vendor's files by a drop-in that
//! overrides no more than what carries the flag, or in the vendor's own line. Either is proved by
//! loading the unit again with the change in place.

use std::rc::Rc;

use super::{Unit, Via, environment, lines, words};
use crate::change::Change;
use crate::change::Planned;
use crate::guest::{Guest, GuestPath};

/// Folder for what an administrator lays over the vendor's units.
const ADMINISTRATOR: &str = "/etc/systemd/system";

/// Names to try for the drop-in: the first wins over everything that packages bring, the second
/// also over other people's `99-…`.
const NAMES: [&str; 2] = ["90-rescue", "zz-90-rescue"];

/// Why it cannot be done; one plain sentence without a full stop.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Impossible(String);

fn impossible(why: impl Into<String>) -> Impossible {
    Impossible(why.into())
}

/// What is to be written so that the unit starts without the flag.
#[derive(Debug, Clone)]
pub struct Edit {
    /// Files and their new content, in order.
    pub files: Vec<(GuestPath, String)>,
    /// Drop-ins of an earlier run that must go, because they are in the way.
    pub obsolete: Vec<GuestPath>,
    /// What it does and why in this way, one line each, for the plan.
    pub reasons: Vec<String>,
}

/// Lays a drop-in beside the vendor's files. `note` is written into it as a comment.
pub fn by_drop_in(guest: &Guest, unit: &Unit, flag: &str, note: &str) -> Result<Edit, Impossible> {
    // What an earlier run laid down is replaced, so the unit is taken as it is without that.
    let old: Vec<GuestPath> = NAMES
        .iter()
        .flat_map(|name| drop_in_files(&unit.name, name))
        .filter(|path| guest.lstat(path).is_ok())
        .collect();
    let bare = without_files(guest, &old)?;
    let vendor =
        Unit::load(&bare, &unit.name).ok_or_else(|| impossible("there is no unit file"))?;
    let parts = Parts::find(&vendor, flag)?;
    let mut last = impossible("nothing carries the flag");
    for name in NAMES {
        let mut edit = parts.drop_in(&vendor, name, note);
        edit.obsolete = old
            .iter()
            .filter(|path| edit.files.iter().all(|(file, _)| file != *path))
            .cloned()
            .collect();
        match prove(guest, &vendor, flag, &edit) {
            Ok(()) => return Ok(edit),
            Err(why) => last = why,
        }
    }
    Err(last)
}

/// Edits the lines that carry the flag where they stand.
pub fn in_place(guest: &Guest, unit: &Unit, flag: &str) -> Result<Edit, Impossible> {
    let parts = Parts::find(unit, flag)?;
    let mut origins: Vec<_> = parts
        .variables
        .iter()
        .map(|(variable, _)| variable.origin.clone())
        .collect();
    if parts.command.is_some() {
        origins.extend(unit.command().map(|command| command.origin.clone()));
    }
    let mut edit = Edit {
        files: Vec::new(),
        obsolete: Vec::new(),
        reasons: Vec::new(),
    };
    for origin in origins {
        let there = edit.files.iter().position(|(path, _)| *path == origin.path);
        let text = match there.and_then(|index| edit.files.get(index)) {
            Some((_, text)) => text.clone(),
            None => {
                let bytes = guest
                    .read(&origin.path)
                    .map_err(|error| impossible(error.to_string()))?;
                String::from_utf8(bytes)
                    .map_err(|_| impossible(format!("{} is not UTF-8", origin.path)))?
            }
        };
        let new = cut_from_lines(&text, origin.line, origin.last_line, flag)
            .ok_or_else(|| impossible(format!("{flag} is not spelled out at {origin}")))?;
        edit.reasons.push(format!(
            "{flag} is cut out of {origin}; nothing else in that file changes"
        ));
        match there.and_then(|index| edit.files.get_mut(index)) {
            Some((_, text)) => *text = new,
            None => edit.files.push((origin.path, new)),
        }
    }
    prove(guest, unit, flag, &edit)?;
    Ok(edit)
}

impl Edit {
    /// The changes that make it so, against `guest`.
    pub fn changes(&self, guest: &Guest) -> crate::tree::TreeResult<Vec<Change>> {
        let mut changes = Vec::new();
        for path in &self.obsolete {
            changes.push(Change::remove(guest, path)?);
        }
        for (path, text) in &self.files {
            let folders = Change::make_dirs(guest, &path.parent(), 0o755)?;
            // A file in a folder that is only planned is resolved where that plan is known.
            let mut planned = Planned::over(guest.tree(), 0);
            for change in changes.iter().chain(&folders) {
                planned.apply(change)?;
            }
            let guest = guest.with_tree(Rc::new(planned));
            changes.extend(
                folders
                    .into_iter()
                    .filter(|folder| !changes.contains(folder))
                    .collect::<Vec<_>>(),
            );
            changes.push(Change::write(&guest, path, text.as_bytes(), 0o644)?);
        }
        Ok(changes)
    }
}

/// What carries the flag.
struct Parts<'a> {
    /// Variables that are split into words, and their values without the flag.
    variables: Vec<(&'a super::Variable, String)>,
    /// The command line as it is written, without the flag.
    command: Option<String>,
}

impl<'a> Parts<'a> {
    fn find(unit: &'a Unit, flag: &str) -> Result<Self, Impossible> {
        let command = unit
            .command()
            .ok_or_else(|| impossible("the unit starts nothing"))?;
        if unit.exec_start.len() > 1 {
            return Err(impossible("the unit starts more than one command"));
        }
        let expanded = unit.expanded();
        let mut variables: Vec<(&super::Variable, String)> = Vec::new();
        let mut dropped: Vec<usize> = Vec::new();
        for (position, (index, word)) in expanded.iter().enumerate() {
            if !spells(word, flag) {
                continue;
            }
            let template = command
                .words
                .get(*index)
                .ok_or_else(|| impossible("the command line changed"))?;
            let variable = environment::whole_word(&template.text)
                .filter(|_| command.expands_variables)
                .and_then(|name| unit.variable(name));
            match variable {
                Some(variable)
                    if variables
                        .iter()
                        .any(|(known, _)| known.name == variable.name) => {}
                Some(variable) => {
                    let value = cut_words(&variable.value, flag).ok_or_else(|| {
                        impossible(format!("the value of {} stands elsewhere", variable.name))
                    })?;
                    variables.push((variable, value));
                }
                None => {
                    dropped.push(*index);
                    if word == flag {
                        dropped.push(value_template(&expanded, position)?);
                    }
                }
            }
        }
        if variables.is_empty() && dropped.is_empty() {
            return Err(impossible(format!("no word of the command line is {flag}")));
        }
        let command = (!dropped.is_empty()).then(|| cut_templates(command, &dropped));
        Ok(Self { variables, command })
    }

    fn drop_in(&self, unit: &Unit, name: &str, note: &str) -> Edit {
        let [drop_in, environment_file] = drop_in_files(&unit.name, name);
        let mut text = String::new();
        for line in note.lines() {
            text.push_str(&format!("# {line}\n"));
        }
        text.push_str("[Service]\n");
        let mut overrides = String::new();
        let mut reasons = Vec::new();
        for (variable, value) in &self.variables {
            let (name, origin) = (&variable.name, &variable.origin);
            match variable.via {
                Via::Environment => {
                    text.push_str(&format!(
                        "Environment=\"{name}={}\"\n",
                        quote_setting(value)
                    ));
                    reasons.push(format!(
                        "only {name} is overridden (it carries the flag at {origin})"
                    ));
                }
                Via::EnvironmentFile => {
                    overrides.push_str(&format!("{name}=\"{}\"\n", quote_environment_file(value)));
                    reasons.push(format!(
                        "{name} is set by an environment file ({origin}), which beats every \
                         Environment=, so it is overridden by another environment file, \
                         {environment_file}"
                    ));
                }
            }
        }
        if let Some(command) = &self.command {
            text.push_str(&format!("ExecStart=\nExecStart={command}\n"));
            let origin = unit
                .command()
                .map(|command| command.origin.to_string())
                .unwrap_or_default();
            reasons.push(format!(
                "ExecStart= is reset and given again without the flag, which stands in it \
                 literally ({origin})"
            ));
        }
        let mut files = Vec::new();
        if !overrides.is_empty() {
            // Optional, so that a lost file can never keep the unit from starting.
            text.push_str(&format!(
                "EnvironmentFile=-{}\n",
                environment_file.as_path().display()
            ));
            files.push((environment_file, overrides));
        }
        files.push((drop_in, text));
        Edit {
            files,
            obsolete: Vec::new(),
            reasons,
        }
    }
}

/// The drop-in and its environment file; the latter does not end in `.conf`, so systemd does not
/// take it for a drop-in.
fn drop_in_files(unit: &str, name: &str) -> [GuestPath; 2] {
    let folder = GuestPath::new(ADMINISTRATOR).join(format!("{unit}.d"));
    [
        folder.join(format!("{name}.conf")),
        folder.join(format!("{name}.env")),
    ]
}

/// Whether a word is the flag, alone or with its value.
pub fn spells(word: &str, flag: &str) -> bool {
    word.strip_prefix(flag)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('='))
}

/// argv without the flag and its value.
pub fn argv_without(argv: &[String], flag: &str) -> Vec<String> {
    let mut left = Vec::new();
    let mut words = argv.iter().peekable();
    while let Some(word) = words.next() {
        if !spells(word, flag) {
            left.push(word.clone());
        } else if word == flag {
            words.next_if(|next| !next.starts_with('-'));
        }
    }
    left
}

/// The template of the word after a bare flag, when that template is nothing but this word.
fn value_template(expanded: &[(usize, String)], position: usize) -> Result<usize, Impossible> {
    let (own, _) = expanded
        .get(position)
        .ok_or_else(|| impossible("the command line changed"))?;
    let (index, _) = expanded
        .get(position + 1)
        .filter(|(_, word)| !word.starts_with('-'))
        .ok_or_else(|| impossible("the flag has no value"))?;
    let alone = expanded.iter().filter(|(other, _)| other == index).count() == 1;
    if alone && index != own {
        Ok(*index)
    } else {
        Err(impossible("the flag's value stands among other words"))
    }
}

/// A variable's value without the flag; everything else keeps its spelling. `None` where a bare
/// flag has no value in it.
fn cut_words(value: &str, flag: &str) -> Option<String> {
    let words = words::split(value, words::Rules::EXPANSION).ok()?;
    let mut spans = Vec::new();
    let mut words = words.iter().peekable();
    while let Some(word) = words.next() {
        if !spells(&word.text, flag) {
            continue;
        }
        spans.push(word.start..word.end);
        if word.text == flag {
            let value = words.next_if(|next| !next.text.starts_with('-'))?;
            spans.push(value.start..value.end);
        }
    }
    Some(cut(value, &spans))
}

fn cut_templates(command: &super::Command, indexes: &[usize]) -> String {
    let spans: Vec<_> = indexes
        .iter()
        .filter_map(|index| command.words.get(*index))
        .map(|word| word.span.clone())
        .collect();
    cut(&command.raw, &spans)
}

/// `text` without the spans (in order, not overlapping) and the blanks before each.
fn cut(text: &str, spans: &[std::ops::Range<usize>]) -> String {
    let mut out = String::with_capacity(text.len());
    let mut at = 0;
    for span in spans {
        out.push_str(text.get(at..span.start).unwrap_or_default());
        out.truncate(out.trim_end().len());
        at = span.end;
    }
    let rest = text.get(at..).unwrap_or_default();
    out.push_str(if out.is_empty() {
        rest.trim_start()
    } else {
        rest
    });
    out
}

/// A value inside the double quotes of `Environment="…"`.
fn quote_setting(value: &str) -> String {
    value
        .chars()
        .fold(String::with_capacity(value.len()), |mut out, character| {
            match character {
                '"' | '\\' => out.extend(['\\', character]),
                '%' => out.push_str("%%"),
                '\n' => out.push_str("\\n"),
                '\r' => out.push_str("\\r"),
                _ => out.push(character),
            }
            out
        })
}

/// A value inside double quotes in an environment file.
fn quote_environment_file(value: &str) -> String {
    value
        .chars()
        .fold(String::with_capacity(value.len()), |mut out, character| {
            if matches!(character, '"' | '\\' | '`' | '$') {
                out.push('\\');
            }
            out.push(character);
            out
        })
}

/// Cuts the flag with its value out of lines `first` to `last` (counted from 1). `None` where it is
/// not spelled out there.
fn cut_from_lines(text: &str, first: usize, last: usize, flag: &str) -> Option<String> {
    let range = lines::byte_range(text.as_bytes(), first, last)?;
    let (before, rest) = text.split_at_checked(range.start)?;
    let (inside, after) = rest.split_at_checked(range.end - range.start)?;
    let mut kept = String::with_capacity(inside.len());
    let mut rest = inside;
    let mut found = false;
    while let Some((left, right)) = rest.split_once(flag) {
        kept.push_str(left);
        let Some(after_value) = skip_value(right) else {
            // A longer flag that begins with the same letters.
            kept.push_str(flag);
            rest = right;
            continue;
        };
        found = true;
        // One blank goes with the flag: the one after it, else the one before it.
        rest = match after_value.strip_prefix(' ') {
            Some(rest) => rest,
            None => {
                if kept.ends_with(' ') {
                    kept.pop();
                }
                after_value
            }
        };
    }
    kept.push_str(rest);
    found.then(|| [before, &kept, after].concat())
}

/// What follows `=value` or ` value`.
fn skip_value(text: &str) -> Option<&str> {
    let value = match text.strip_prefix('=') {
        Some(value) => value,
        None => text
            .strip_prefix(' ')
            .map(str::trim_start)
            .filter(|value| !value.starts_with('-'))?,
    };
    let end = value
        .find(|end: char| end.is_whitespace() || matches!(end, '"' | '\'' | '\\'))
        .unwrap_or(value.len());
    value.get(end..)
}

/// The guest as if these files were not there.
fn without_files(guest: &Guest, files: &[GuestPath]) -> Result<Guest, Impossible> {
    let mut planned = Planned::over(guest.tree(), 0);
    for path in files {
        let change = Change::remove(guest, path).map_err(|error| impossible(error.to_string()))?;
        planned
            .apply(&change)
            .map_err(|error| impossible(error.to_string()))?;
    }
    Ok(guest.with_tree(Rc::new(planned)))
}

/// Loads the unit with the edit in place: the flag must be gone, and every other word must be the
/// same.
fn prove(guest: &Guest, before: &Unit, flag: &str, edit: &Edit) -> Result<(), Impossible> {
    let mut planned = Planned::over(guest.tree(), 0);
    for change in edit
        .changes(guest)
        .map_err(|error| impossible(error.to_string()))?
    {
        planned
            .apply(&change)
            .map_err(|error| impossible(error.to_string()))?;
    }
    let after = Unit::load(&guest.with_tree(Rc::new(planned)), &before.name)
        .ok_or_else(|| impossible("the unit would be gone"))?;
    if after.argv() != argv_without(&before.argv(), flag) {
        return Err(impossible(format!(
            "{} would not win over the node's other settings",
            describe(edit)
        )));
    }
    if after.refusals != before.refusals || after.masked != before.masked {
        return Err(impossible("systemd would not start the unit any more"));
    }
    Ok(())
}

fn describe(edit: &Edit) -> String {
    edit.files
        .last()
        .map(|(path, _)| path.to_string())
        .unwrap_or_default()
}
