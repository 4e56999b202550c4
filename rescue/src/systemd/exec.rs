//! `ExecStart=`: commands as systemd's `config_parse_exec()` (src/core/load-fragment.c) takes them
//! apart.

use super::environment;
use super::specifiers::Specifiers;
use super::words::{BadWord, Rules, Word, next_word};

/// Where a setting stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// The file.
    pub path: crate::guest::GuestPath,
    /// First line of the setting, counted from 1.
    pub line: usize,
    /// Last line of it (continuation lines).
    pub last_line: usize,
}

impl std::fmt::Display for Origin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.path, self.line)
    }
}

/// One command of `ExecStart=`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Command {
    /// The program, specifiers resolved; variables are never expanded in it.
    pub program: String,
    /// The words of argv, specifiers resolved, variables not yet expanded.
    pub words: Vec<Template>,
    /// Whether variables are expanded (no `:` prefix).
    pub expands_variables: bool,
    /// The whole right side of the assignment.
    pub raw: String,
    /// Where it stands.
    pub origin: Origin,
}

/// One word of a command before variables are expanded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template {
    /// Unquoted, specifiers resolved.
    pub text: String,
    /// Its bytes in [`Command::raw`], quotes included.
    pub span: std::ops::Range<usize>,
}

impl Command {
    /// argv with variables expanded, each word with the index of its template.
    pub fn expand<'a>(&self, get: impl Fn(&str) -> Option<&'a str>) -> Vec<(usize, String)> {
        let (mut argv, mut length) = (Vec::new(), 0_usize);
        for (index, template) in self.words.iter().enumerate() {
            let words = match self.expands_variables {
                true => environment::expand(&template.text, &get),
                false => vec![template.text.clone()],
            };
            // Each with its pointer and the zero at its end, as the kernel counts.
            length += words.iter().map(|word| word.len() + 9).sum::<usize>();
            argv.extend(words.into_iter().map(|word| (index, word)));
            if length > environment::LONGEST_ARGUMENTS {
                break;
            }
        }
        argv
    }
}

/// What one `ExecStart=` assignment says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ExecLine {
    /// Empty: forget all commands so far.
    Reset,
    /// These are added; none when systemd ignores the line.
    Commands(Vec<Command>),
    /// systemd stops reading the file here.
    Invalid(&'static str),
}

/// Takes one assignment apart.
pub fn parse(
    value: &str,
    origin: &Origin,
    specifiers: &Specifiers,
    unresolved: &mut Vec<String>,
) -> ExecLine {
    if value.is_empty() {
        return ExecLine::Reset;
    }
    let mut parser = Parser {
        raw: value,
        at: 0,
        origin,
        specifiers,
        unresolved,
    };
    let mut commands = Vec::new();
    loop {
        match parser.command() {
            Step::Command(command, more) => {
                commands.push(command);
                if !more {
                    return ExecLine::Commands(commands);
                }
            }
            Step::Skip => {}
            Step::End => return ExecLine::Commands(commands),
            Step::Invalid(why) => return ExecLine::Invalid(why),
        }
    }
}

const UNKNOWN_SPECIFIER: &str = "the command line has a % specifier that does not exist";

enum Step {
    /// A command, and whether a `;` follows.
    Command(Command, bool),
    Skip,
    End,
    Invalid(&'static str),
}

struct Parser<'a> {
    raw: &'a str,
    at: usize,
    origin: &'a Origin,
    specifiers: &'a Specifiers,
    unresolved: &'a mut Vec<String>,
}

#[derive(Default)]
struct Prefixes {
    ignore_failure: bool,
    argv0: bool,
    literal: bool,
    privileges: u8,
}

impl Parser<'_> {
    fn command(&mut self) -> Step {
        let Ok(Some(first)) = self.word() else {
            return Step::End;
        };
        if first.text == ";" {
            return Step::Skip;
        }
        let (prefixes, program) = prefixes(&first.text);
        let refuse = |why| {
            if prefixes.ignore_failure {
                Step::End
            } else {
                Step::Invalid(why)
            }
        };
        let Ok(program) = self.specifiers.resolve(program, self.unresolved) else {
            return refuse(UNKNOWN_SPECIFIER);
        };
        if program.is_empty() {
            return refuse("the command line has no program");
        }
        if program.ends_with('/') || !(program.starts_with('/') || is_file_name(&program)) {
            return refuse("the program is neither an absolute path nor a plain name");
        }
        let mut words = Vec::new();
        if !prefixes.argv0 {
            words.push(Template {
                text: program.clone(),
                span: first.start..first.end,
            });
        }
        let more = match self.arguments(&mut words) {
            Ok(more) => more,
            Err(why) => return refuse(why),
        };
        if words.first().is_none_or(|word| word.text.is_empty()) {
            return refuse("the command line has no argv[0]");
        }
        let command = Command {
            program: simplify(&program),
            words,
            expands_variables: !prefixes.literal,
            raw: self.raw.to_owned(),
            origin: self.origin.clone(),
        };
        Step::Command(command, more)
    }

    /// Reads words up to the end or a lone `;`; says whether it was the latter.
    fn arguments(&mut self, words: &mut Vec<Template>) -> Result<bool, &'static str> {
        loop {
            self.skip_space();
            let rest = self.raw.get(self.at..).unwrap_or_default();
            if lone(rest, ";") {
                self.at += 1;
                self.skip_space();
                return Ok(true);
            }
            if lone(rest, "\\;") {
                words.push(Template {
                    text: ";".to_owned(),
                    span: self.at..self.at + 2,
                });
                self.at += 2;
                continue;
            }
            let Some(word) = self
                .word()
                .map_err(|BadWord| "the command line has unbalanced quotes")?
            else {
                return Ok(false);
            };
            let text = self
                .specifiers
                .resolve(&word.text, self.unresolved)
                .map_err(|_| UNKNOWN_SPECIFIER)?;
            words.push(Template {
                text,
                span: word.start..word.end,
            });
        }
    }

    /// `extract_first_word_and_warn()`: an unknown escape is kept as it is written.
    fn word(&mut self) -> Result<Option<Word>, BadWord> {
        let relaxed = Rules {
            keep_unknown_escapes: true,
            ..Rules::SETTING
        };
        let word = next_word(self.raw, self.at, Rules::SETTING)
            .or_else(|_| next_word(self.raw, self.at, relaxed))?;
        if let Some(word) = &word {
            self.at = word.end;
        }
        Ok(word)
    }

    fn skip_space(&mut self) {
        while self
            .raw
            .as_bytes()
            .get(self.at)
            .copied()
            .is_some_and(super::words::is_space)
        {
            self.at += 1;
        }
    }
}

/// Whether `rest` begins with `token`, alone in its word.
fn lone(rest: &str, token: &str) -> bool {
    rest.strip_prefix(token)
        .is_some_and(|after| after.bytes().next().is_none_or(super::words::is_space))
}

fn prefixes(word: &str) -> (Prefixes, &str) {
    let mut prefixes = Prefixes::default();
    let mut rest = word;
    loop {
        match rest.bytes().next() {
            Some(b'-') if !prefixes.ignore_failure => prefixes.ignore_failure = true,
            Some(b'@') if !prefixes.argv0 => prefixes.argv0 = true,
            Some(b':') if !prefixes.literal => prefixes.literal = true,
            Some(b'+') if prefixes.privileges == 0 => prefixes.privileges = 3,
            Some(b'!') if prefixes.privileges < 2 => prefixes.privileges += 1,
            _ => return (prefixes, rest),
        }
        rest = rest.get(1..).unwrap_or_default();
    }
}

fn is_file_name(name: &str) -> bool {
    !name.contains('/') && name != "." && name != ".."
}

/// `path_simplify()`: double slashes and `.` taken out.
fn simplify(path: &str) -> String {
    if !path.starts_with('/') {
        return path.to_owned();
    }
    path.split('/')
        .filter(|part| !part.is_empty() && *part != ".")
        .fold(String::new(), |mut out, part| {
            out.push('/');
            out.push_str(part);
            out
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guest::GuestPath;

    fn commands(value: &str) -> Vec<Vec<String>> {
        let origin = Origin {
            path: GuestPath::new("/unit"),
            line: 1,
            last_line: 1,
        };
        match parse(value, &origin, &Specifiers::default(), &mut Vec::new()) {
            ExecLine::Commands(commands) => commands
                .iter()
                .map(|command| command.words.iter().map(|word| word.text.clone()).collect())
                .collect(),
            other => panic!("{value}: {other:?}"),
        }
    }

    #[test]
    fn takes_commands_apart() {
        assert_eq!(
            commands("/bin/a 'b c' \"d\\n\" \\q"),
            [["/bin/a", "b c", "d\n", "\\q"]]
        );
        assert_eq!(commands("-@/bin/a zero one"), [["zero", "one"]]);
        assert_eq!(
            commands("/bin/a x ; /bin/b \\; y"),
            [vec!["/bin/a", "x"], vec!["/bin/b", ";", "y"]]
        );
        assert!(commands("-relative/path").is_empty());
    }

    #[test]
    fn a_line_that_unfolds_without_end_is_cut_where_the_kernel_would_refuse_it() {
        let value = "x ".repeat(200_000);
        for word in ["$A ", "a${A}b "] {
            let line = format!("/bin/x {}", word.repeat(100_000));
            let specifiers = Specifiers::default();
            let origin = Origin {
                path: "/x".into(),
                line: 1,
                last_line: 1,
            };
            let ExecLine::Commands(commands) = parse(&line, &origin, &specifiers, &mut Vec::new())
            else {
                panic!("refused");
            };
            let argv = commands[0].expand(|_| Some(value.as_str()));
            assert!(argv.iter().map(|(_, word)| word.len()).sum::<usize>() < 4 << 20);
        }
    }

    #[test]
    fn spans_point_into_the_line() {
        let origin = Origin {
            path: GuestPath::new("/unit"),
            line: 1,
            last_line: 1,
        };
        let ExecLine::Commands(parsed) = parse(
            "/bin/a 'b c' d",
            &origin,
            &Specifiers::default(),
            &mut Vec::new(),
        ) else {
            panic!("not a command");
        };
        let command = &parsed[0];
        assert_eq!(&command.raw[command.words[1].span.clone()], "'b c'");
    }

    #[test]
    fn refuses_what_systemd_refuses() {
        let origin = Origin {
            path: GuestPath::new("/unit"),
            line: 1,
            last_line: 1,
        };
        for bad in ["relative/path", "/bin/a 'open", "@/bin/a", "/bin/", "+"] {
            let parsed = parse(bad, &origin, &Specifiers::default(), &mut Vec::new());
            assert!(matches!(parsed, ExecLine::Invalid(_)), "{bad}: {parsed:?}");
        }
    }
}
