//! A logrotate rule for one log, unless a rule is there already: logrotate takes no two rules for
//! one file ("duplicate log entry").

use super::culprit::{Culprit, Family};
use super::files::{MARK, NewFile};
use crate::base::units;
use crate::guest::{Guest, GuestPath};
use crate::systemd::glob;

const MAIN: &str = "/etc/logrotate.conf";
const FOLDER: &str = "/etc/logrotate.d";

/// Our rules in it.
pub const PREFIX: &str = "rescue-";

/// Endings of files in an included folder that logrotate passes over (config.c, `defTabooExts`).
const TABOO: [&str; 17] = [
    ",v",
    ".bak",
    ".cfsaved",
    ".disabled",
    ".dpkg-bak",
    ".dpkg-del",
    ".dpkg-dist",
    ".dpkg-new",
    ".dpkg-old",
    ".dpkg-tmp",
    ".rpmnew",
    ".rpmorig",
    ".rpmsave",
    ".swp",
    ".ucf-dist",
    ".ucf-old",
    "~",
];

/// One pattern of an existing rule.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Pattern {
    text: String,
    file: String,
    line: usize,
}

/// The rule for a log.
///
/// # Errors
/// A sentence that says why none is added.
pub fn rule_for(guest: &Guest, culprit: &Culprit) -> Result<NewFile, String> {
    let (pattern, name) = match &culprit.family {
        Family::Log { pattern, name } => (pattern, name),
        Family::OwnWriter(what) => return Err(format!("logrotate is not for them: {what}")),
    };
    let programs = [
        "/usr/sbin/logrotate",
        "/usr/bin/logrotate",
        "/sbin/logrotate",
    ];
    if !programs
        .iter()
        .any(|program| guest.exists(&GuestPath::new(program)))
    {
        return Err("logrotate is not installed on this node".to_owned());
    }
    let main = guest.read_text(&GuestPath::new(MAIN)).unwrap_or_default();
    if !includes(&main)
        .iter()
        .any(|folder| folder.trim_end_matches('/') == FOLDER)
    {
        return Err(format!("{MAIN} does not include {FOLDER}"));
    }
    let path = format!("{FOLDER}/{PREFIX}{name}");
    let files = active_files(guest, culprit, pattern);
    let others = patterns(guest, &main)
        .into_iter()
        .filter(|other| other.file != path);
    if let Some((other, file)) = others.into_iter().find_map(|other| {
        let file = files
            .iter()
            .find(|file| glob::matches_path(&other.text, file))
            .cloned()?;
        Some((other, file))
    }) {
        return Err(format!(
            "{}:{} rotates {file} already; logrotate takes no second rule for it, so change that \
             one (for example `maxsize 20M`)",
            other.file, other.line
        ));
    }
    let size = units::bytes(culprit.bytes);
    // copytruncate, because nobody tells these programs to open their log anew.
    let text = format!(
        "# {MARK}\n# This log filled the disk ({size} of it were freed).\n{pattern} {{\n    \
         size 20M\n    rotate 3\n    compress\n    \
         missingok\n    notifempty\n    copytruncate\n}}\n"
    );
    Ok(NewFile::text(&path, text, 0o644))
}

/// Files that the rule is for: those known, and those that are there.
fn active_files(guest: &Guest, culprit: &Culprit, pattern: &str) -> Vec<String> {
    let mut files = culprit.samples.clone();
    files.extend(
        glob::matches(guest, pattern)
            .iter()
            .map(ToString::to_string),
    );
    files
}

/// Folders and files that the main file includes.
fn includes(main: &str) -> Vec<&str> {
    main.lines()
        .filter_map(|line| line.trim().strip_prefix("include"))
        .map(str::trim)
        .collect()
}

/// The patterns of all rules.
fn patterns(guest: &Guest, main: &str) -> Vec<Pattern> {
    let mut all = parse(main, MAIN);
    let folder = GuestPath::new(FOLDER);
    for entry in guest.read_dir(&folder).unwrap_or_default() {
        let name = entry.name.to_string_lossy();
        if name.starts_with('.') || TABOO.iter().any(|ending| name.ends_with(ending)) {
            continue;
        }
        let path = folder.join(&entry.name);
        all.extend(parse(
            &guest.read_text(&path).unwrap_or_default(),
            &path.to_string(),
        ));
    }
    all
}

/// Words before a `{` that begin like a path; what stands between braces is of no interest but for
/// its end, which a script may hide.
fn parse(text: &str, file: &str) -> Vec<Pattern> {
    const SCRIPTS: [&str; 5] = [
        "prerotate",
        "postrotate",
        "firstaction",
        "lastaction",
        "preremove",
    ];
    let (mut found, mut inside, mut in_script) = (Vec::new(), false, false);
    for (index, line) in text.lines().enumerate() {
        let line = line.trim();
        let first = line.split_whitespace().next().unwrap_or_default();
        if in_script {
            in_script = first != "endscript";
        } else if inside {
            in_script = SCRIPTS.contains(&first);
            inside = !line.starts_with('}');
        } else if line.starts_with(['/', '"', '\'', '{', '~']) {
            let (words, rest) = line
                .split_once('{')
                .map_or((line, None), |(words, rest)| (words, Some(rest)));
            let paths = split_words(words)
                .into_iter()
                .filter(|word| word.starts_with('/'));
            found.extend(paths.map(|text| Pattern {
                text,
                file: file.to_owned(),
                line: index + 1,
            }));
            inside = rest.is_some_and(|rest| !rest.contains('}'));
        }
    }
    found
}

/// Words, quoted ones as one.
fn split_words(line: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut quote: Option<char> = None;
    for character in line.chars() {
        match (quote, character) {
            (Some(open), _) if character == open => quote = None,
            (None, '"' | '\'') => quote = Some(character),
            (None, _) if character.is_whitespace() => words.push(String::new()),
            _ => {
                if let Some(word) = words.last_mut() {
                    word.push(character);
                }
            }
        }
    }
    words.retain(|word| !word.is_empty());
    words
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::MemoryTree;

    const DEBIAN: &str = "weekly\nrotate 4\ninclude /etc/logrotate.d\n";
    const RSYSLOG: &str = "/var/log/syslog\n/var/log/mail.log\n{\n\trotate 4\n\tpostrotate\n\
        \t\t/usr/lib/x { }\n\tendscript\n}\n\
        \"/var/log/a b.log\" /var/log/*.err { weekly }\n# /var/log/no {\n/var/log/last {\n}\n";

    fn culprit(pattern: &str, samples: &[&str]) -> Culprit {
        let family = Family::Log {
            pattern: pattern.to_owned(),
            name: "it".to_owned(),
        };
        Culprit {
            family,
            bytes: 1 << 30,
            samples: samples.iter().map(|sample| (*sample).to_owned()).collect(),
        }
    }

    fn guest() -> MemoryTree {
        MemoryTree::new()
            .file("/usr/sbin/logrotate", "")
            .file("/etc/logrotate.conf", DEBIAN)
            .file("/etc/logrotate.d/rsyslog", RSYSLOG)
            .file(
                "/etc/logrotate.d/old.dpkg-old",
                "/var/log/vmware-*.log {\n}\n",
            )
    }

    #[test]
    fn patterns_of_real_files() {
        let texts: Vec<String> = parse(RSYSLOG, "x")
            .into_iter()
            .map(|pattern| pattern.text)
            .collect();
        assert_eq!(
            texts,
            [
                "/var/log/syslog",
                "/var/log/mail.log",
                "/var/log/a b.log",
                "/var/log/*.err",
                "/var/log/last"
            ]
        );
        assert_eq!(includes(DEBIAN), ["/etc/logrotate.d"]);
    }

    #[test]
    fn a_rule_where_there_is_none() {
        let log = culprit(
            "/var/log/vmware-*[!0-9].log",
            &["/var/log/vmware-vmsvc-root.log"],
        );
        let rule = rule_for(&guest().into_guest(), &log).unwrap();
        assert_eq!(rule.path.to_string(), "/etc/logrotate.d/rescue-it");
        let twice = guest()
            .file(
                "/etc/logrotate.d/open-vm-tools",
                "# x\n/var/log/vmware*.log {\n}\n",
            )
            .into_guest();
        let why = rule_for(&twice, &log).unwrap_err();
        assert!(
            why.starts_with(
                "/etc/logrotate.d/open-vm-tools:2 rotates /var/log/vmware-vmsvc-root.log already"
            ),
            "{why}"
        );
    }

    #[test]
    fn no_rule_where_it_would_not_be_read() {
        let log = culprit("/var/log/syslog", &["/var/log/syslog"]);
        assert!(
            rule_for(&guest().into_guest(), &log)
                .unwrap_err()
                .contains("/etc/logrotate.d/rsyslog:1 rotates")
        );
        assert!(
            rule_for(&guest().without("/usr/sbin/logrotate").into_guest(), &log)
                .unwrap_err()
                .contains("not installed")
        );
        let alone = guest().file("/etc/logrotate.conf", "weekly\n").into_guest();
        assert!(
            rule_for(&alone, &log)
                .unwrap_err()
                .contains("does not include")
        );
    }
}
