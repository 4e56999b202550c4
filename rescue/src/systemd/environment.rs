//! Variables: the `EnvironmentFile=` format (systemd's src/basic/env-file.c) and their expansion in
//! `ExecStart=` (src/basic/env-util.c).

use super::words::{self, Rules};

/// Where a variable was set last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Via {
    /// `Environment=` in the unit or a drop-in.
    Environment,
    /// A file named by `EnvironmentFile=`; these override every `Environment=`.
    EnvironmentFile,
}

/// An assignment in an environment file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileVariable {
    /// Name; always a valid one.
    pub name: String,
    /// Value, unquoted.
    pub value: String,
    /// First line, counted from 1.
    pub first_line: usize,
    /// Last line.
    pub last_line: usize,
}

/// Whether systemd takes `name` for a variable: letters, digits and underscores, no digit first.
pub fn is_valid_name(name: &str) -> bool {
    !name.is_empty()
        && !name.starts_with(|first: char| first.is_ascii_digit())
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    PreKey,
    Key,
    PreValue,
    Value,
    ValueEscape,
    Single,
    Double,
    DoubleEscape,
    Comment,
    CommentEscape,
}

/// Reads an environment file; assignments to names that are not valid are left out, as systemd
/// does. An error means that systemd refuses the whole file.
pub fn parse_file(bytes: &[u8]) -> Result<Vec<FileVariable>, &'static str> {
    if bytes.contains(&0) {
        return Err("it holds NUL bytes");
    }
    let mut reader = Reader::default();
    let mut state = State::PreKey;
    for (index, byte) in bytes.iter().copied().enumerate() {
        state = reader.step(state, byte)?;
        // `\r\n` is one line for people, two line ends for systemd.
        if byte == b'\n' || (byte == b'\r' && bytes.get(index + 1) != Some(&b'\n')) {
            reader.line += 1;
        }
    }
    match state {
        State::PreKey | State::Key | State::Comment | State::CommentEscape => {}
        State::Value => reader.push(true)?,
        _ => reader.push(false)?,
    }
    Ok(reader.variables)
}

#[derive(Default)]
struct Reader {
    key: Vec<u8>,
    value: Vec<u8>,
    /// Where trailing blanks of the value begin.
    blanks: Option<usize>,
    /// Line ends seen so far.
    line: usize,
    first_line: usize,
    variables: Vec<FileVariable>,
}

impl Reader {
    fn step(&mut self, state: State, byte: u8) -> Result<State, &'static str> {
        let newline = matches!(byte, b'\n' | b'\r');
        let blank = words::is_space(byte);
        Ok(match state {
            State::PreKey if matches!(byte, b'#' | b';') => State::Comment,
            State::PreKey if blank => State::PreKey,
            State::PreKey => {
                self.first_line = self.line + 1;
                self.key = vec![byte];
                State::Key
            }
            State::Key if newline => State::PreKey,
            State::Key if byte == b'=' => {
                self.value.clear();
                self.blanks = None;
                State::PreValue
            }
            State::Key => {
                self.key.push(byte);
                State::Key
            }
            State::PreValue if newline => {
                self.push(false)?;
                State::PreKey
            }
            State::PreValue => match byte {
                b'\'' => State::Single,
                b'"' => State::Double,
                b'\\' => State::ValueEscape,
                _ if blank => State::PreValue,
                _ => {
                    self.value.push(byte);
                    State::Value
                }
            },
            State::Value if newline => {
                self.push(true)?;
                State::PreKey
            }
            State::Value if byte == b'\\' => {
                self.blanks = None;
                State::ValueEscape
            }
            State::Value => {
                if !blank {
                    self.blanks = None;
                } else if self.blanks.is_none() {
                    self.blanks = Some(self.value.len());
                }
                self.value.push(byte);
                State::Value
            }
            State::ValueEscape => {
                // An escaped line end is eaten up.
                if !newline {
                    self.value.push(byte);
                }
                State::Value
            }
            State::Single if byte == b'\'' => State::PreValue,
            State::Double if byte == b'"' => State::PreValue,
            State::Double if byte == b'\\' => State::DoubleEscape,
            State::Single | State::Double => {
                self.value.push(byte);
                state
            }
            State::DoubleEscape => {
                // As in a shell: the backslash stays except before the few characters that need
                // one.
                match byte {
                    b'"' | b'\\' | b'`' | b'$' => self.value.push(byte),
                    b'\n' => {}
                    _ => self.value.extend_from_slice(&[b'\\', byte]),
                }
                State::Double
            }
            State::Comment if byte == b'\\' => State::CommentEscape,
            State::Comment if newline => State::PreKey,
            // Up to systemd 253 a backslash continues a comment; later ones do not.
            State::Comment | State::CommentEscape => State::Comment,
        })
    }

    fn push(&mut self, chomp: bool) -> Result<(), &'static str> {
        if chomp && let Some(blanks) = self.blanks {
            self.value.truncate(blanks);
        }
        let key = std::str::from_utf8(&self.key)
            .map_err(|_| "it is not UTF-8")?
            .trim_end();
        let value = std::str::from_utf8(&self.value).map_err(|_| "it is not UTF-8")?;
        if is_valid_name(key) {
            self.variables.push(FileVariable {
                name: key.to_owned(),
                value: value.to_owned(),
                first_line: self.first_line,
                last_line: self.line + 1,
            });
        }
        self.key.clear();
        self.value.clear();
        self.blanks = None;
        Ok(())
    }
}

/// Most bytes of arguments that the kernel lets a program start with: a quarter of the usual stack
/// limit of 8 MiB (execve(2)). A command line that unfolds to more cannot be started, and is not
/// unfolded any further.
pub const LONGEST_ARGUMENTS: usize = 2 << 20;

/// The variable that a whole word of a command line names (`$FOO`), which is then split up.
pub fn whole_word(word: &str) -> Option<&str> {
    word.strip_prefix('$')
        .filter(|rest| !rest.starts_with(['{', '$']))
}

/// What one word of a command line becomes: any number of words for `$FOO`, else one with each
/// `${FOO}` replaced and `$$` made `$`.
pub fn expand<'a>(word: &str, get: impl Fn(&str) -> Option<&'a str>) -> Vec<String> {
    if let Some(name) = whole_word(word) {
        let value = get(name).unwrap_or_default();
        return words::split(value, Rules::EXPANSION)
            .unwrap_or_default()
            .into_iter()
            .map(|word| word.text)
            .collect();
    }
    vec![replace(word, get)]
}

fn replace<'a>(word: &str, get: impl Fn(&str) -> Option<&'a str>) -> String {
    let mut out = String::with_capacity(word.len());
    let mut rest = word;
    while let Some((before, after)) = rest.split_once('$') {
        out.push_str(before);
        if out.len() > LONGEST_ARGUMENTS {
            return out;
        }
        if let Some(after) = after.strip_prefix('$') {
            out.push('$');
            rest = after;
        } else if let Some((name, after)) = braced(after) {
            out.push_str(get(name).unwrap_or_default());
            rest = after;
        } else {
            // systemd takes the next character as plain text, even another brace.
            out.push('$');
            let next = after.chars().next().map_or(0, char::len_utf8);
            let (plain, after) = after.split_at(next);
            out.push_str(plain);
            rest = after;
        }
    }
    out.push_str(rest);
    out
}

/// `{NAME}` at the start, and what follows. A colon is syntax that commands do not have: no
/// replacement then.
fn braced(text: &str) -> Option<(&str, &str)> {
    let (name, after) = text.strip_prefix('{')?.split_once('}')?;
    (!name.contains(':')).then_some((name, after))
}

/// Names of all variables that a word of a command line refers to.
pub fn references(word: &str) -> Vec<String> {
    if let Some(name) = whole_word(word) {
        return vec![name.to_owned()];
    }
    let names = std::cell::RefCell::new(Vec::new());
    replace(word, |name| {
        names.borrow_mut().push(name.to_owned());
        None
    });
    names.into_inner()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Vec<(String, String)> {
        parse_file(text.as_bytes())
            .expect("accepted")
            .into_iter()
            .map(|v| (v.name, v.value))
            .collect()
    }

    #[test]
    fn reads_kubesprays_file() {
        let text = "# Upstream\nKUBELET_ADDRESS=\"--node-ip=10.0.0.1\"\n\n\
            KUBELET_ARGS=\"--bootstrap-kubeconfig=/a \\\n--config=/b \\\n \"\nLAST='x y' # kept\n";
        let variables = parse_file(text.as_bytes()).expect("accepted");
        assert_eq!(
            variables[1].value,
            "--bootstrap-kubeconfig=/a --config=/b  "
        );
        assert_eq!((variables[1].first_line, variables[1].last_line), (4, 6));
        assert_eq!(variables[2].value, "x y# kept");
    }

    #[test]
    fn quoting_rules() {
        assert_eq!(
            read("A = b c  \nB=\"a\\tb\\\"\\$\"\nexport C=1\n1D=2\nE=a\\\nb\nF=\nG='\\n'"),
            [
                ("A", "b c"),
                ("B", "a\\tb\"$"),
                ("E", "ab"),
                ("F", ""),
                ("G", "\\n")
            ]
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
        );
        assert!(parse_file(b"A=\0").is_err());
        assert!(parse_file(b"A=\xff\n").is_err());
    }

    #[test]
    fn expansion() {
        let get = |name: &str| match name {
            "TWO" => Some("a 'b c'"),
            "NONE" => Some(""),
            _ => None,
        };
        assert_eq!(expand("$TWO", get), ["a", "b c"]);
        assert_eq!(expand("x=${TWO}!", get), ["x=a 'b c'!"]);
        assert_eq!(expand("${TWO}", get), ["a 'b c'"]);
        assert!(expand("$NONE", get).is_empty());
        assert!(expand("$TWO/x", get).is_empty());
        assert_eq!(expand("$$TWO", get), ["$TWO"]);
        assert_eq!(expand("a$TWO ${TWO:-x} $", get), ["a$TWO ${TWO:-x} $"]);
        assert_eq!(references("a${X}b${Y}"), ["X", "Y"]);
    }
}
