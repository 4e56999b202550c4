//! The text in which LVM2 writes a volume group down: `name { key = value … }`, integers, quoted
//! strings and lists of these. Grammar: lvm2's libdm/libdm-config.c.

use std::collections::{BTreeMap, HashSet};

use super::LvmError;

/// Volume group, its parts, one volume, one segment are four; more is no metadata.
const MAX_DEPTH: usize = 8;
/// Larger texts are refused; LVM's own areas are 1 MiB, and 16,000 volumes take about 10.
pub(super) const MAX_TEXT: u64 = 16 << 20;
/// Sections, fields and entries of lists together. 16,000 volumes have about 500,000; more would
/// take more memory than the text is worth.
const MAX_ITEMS: usize = 1 << 20;

/// One value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Value {
    /// A whole number. Fractions, which no field that is read here has, are kept as text.
    Number(i64),
    /// A quoted string.
    Text(String),
    /// `[ "pv0", 0 ]`; lists hold no lists.
    List(Vec<Value>),
}

/// What stands between two braces, or the text as a whole.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Section {
    values: BTreeMap<String, Value>,
    /// In the order written.
    pub sections: Vec<(String, Section)>,
}

impl Section {
    /// The section of that name.
    pub fn section(&self, name: &str) -> Option<&Section> {
        self.sections
            .iter()
            .find(|(there, _)| there == name)
            .map(|(_, section)| section)
    }

    /// A string field.
    pub fn text(&self, key: &str) -> Option<&str> {
        match self.values.get(key)? {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    /// A number that is not negative.
    pub fn number(&self, key: &str) -> Option<u64> {
        match self.values.get(key)? {
            Value::Number(number) => u64::try_from(*number).ok(),
            _ => None,
        }
    }

    /// A list; a lone value is a list of one.
    pub fn list(&self, key: &str) -> &[Value] {
        match self.values.get(key) {
            Some(Value::List(list)) => list,
            Some(value) => std::slice::from_ref(value),
            None => &[],
        }
    }

    /// Whether a list of strings (`status`) holds this one.
    pub fn has(&self, key: &str, wanted: &str) -> bool {
        self.list(key)
            .iter()
            .any(|value| matches!(value, Value::Text(text) if text == wanted))
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Token<'a> {
    Open,
    Close,
    Equals,
    ListOpen,
    ListClose,
    Comma,
    Quoted(String),
    /// A bare word: a name or a number.
    Word(&'a str),
}

/// Reads the whole text.
pub(super) fn parse(text: &str) -> Result<Section, LvmError> {
    let mut lexer = Lexer {
        rest: text,
        items: 0,
    };
    section(&mut lexer, 0)
}

fn corrupt(reason: impl Into<String>) -> LvmError {
    LvmError::Corrupt(format!("its text {}", reason.into()))
}

/// Up to the closing brace, or at depth 0 to the end.
fn section(lexer: &mut Lexer<'_>, depth: usize) -> Result<Section, LvmError> {
    if depth > MAX_DEPTH {
        return Err(corrupt("is nested too deeply"));
    }
    let mut section_ = Section::default();
    let mut names = HashSet::new();
    loop {
        let name = match (lexer.next()?, depth) {
            (None, 0) | (Some(Token::Close), 1..) => return Ok(section_),
            (None, _) => return Err(corrupt("ends in the middle")),
            (Some(Token::Word(name)), _) => name.to_owned(),
            (Some(Token::Quoted(name)), _) => name,
            (Some(_), _) => return Err(corrupt("has a mark where a name belongs")),
        };
        lexer.count()?;
        match lexer.next()? {
            Some(Token::Open) => {
                if !names.insert(name.clone()) {
                    return Err(corrupt("names one section twice"));
                }
                let inner = section(lexer, depth + 1)?;
                section_.sections.push((name, inner));
            }
            Some(Token::Equals) => {
                let value = value(lexer)?;
                if section_.values.insert(name, value).is_some() {
                    return Err(corrupt("sets one field twice"));
                }
            }
            _ => return Err(corrupt("has a name without a value")),
        }
    }
}

fn value(lexer: &mut Lexer<'_>) -> Result<Value, LvmError> {
    match lexer.next()? {
        Some(Token::ListOpen) => {}
        Some(token) => return scalar(token),
        None => return Err(corrupt("ends in the middle")),
    }
    let mut list = Vec::new();
    loop {
        match lexer.next()? {
            Some(Token::ListClose) => return Ok(Value::List(list)),
            Some(Token::Comma) => {}
            Some(token) => {
                lexer.count()?;
                list.push(scalar(token)?);
            }
            None => return Err(corrupt("ends in the middle of a list")),
        }
    }
}

fn scalar(token: Token<'_>) -> Result<Value, LvmError> {
    match token {
        Token::Quoted(text) => Ok(Value::Text(text)),
        Token::Word(word) => Ok(word
            .parse()
            .map_or_else(|_| Value::Text(word.to_owned()), Value::Number)),
        _ => Err(corrupt("has a mark where a value belongs")),
    }
}

struct Lexer<'a> {
    rest: &'a str,
    items: usize,
}

impl<'a> Lexer<'a> {
    fn count(&mut self) -> Result<(), LvmError> {
        self.items += 1;
        if self.items > MAX_ITEMS {
            Err(corrupt("has more entries than any group"))
        } else {
            Ok(())
        }
    }

    fn next(&mut self) -> Result<Option<Token<'a>>, LvmError> {
        self.skip();
        let Some(first) = self.rest.chars().next() else {
            return Ok(None);
        };
        let mark = match first {
            '{' => Token::Open,
            '}' => Token::Close,
            '=' => Token::Equals,
            '[' => Token::ListOpen,
            ']' => Token::ListClose,
            ',' => Token::Comma,
            '"' => return self.quoted().map(Some),
            _ => return self.word().map(Some),
        };
        self.advance(1);
        Ok(Some(mark))
    }

    fn advance(&mut self, length: usize) {
        self.rest = self.rest.get(length..).unwrap_or_default();
    }

    /// Blanks and comments to the end of their line. A NUL ends the text on the disk and is no mark
    /// in it.
    fn skip(&mut self) {
        loop {
            self.rest = self
                .rest
                .trim_start_matches(|c: char| c.is_ascii_whitespace() || c == '\0');
            if !self.rest.starts_with('#') {
                return;
            }
            let length = self.rest.find('\n').unwrap_or(self.rest.len());
            self.advance(length);
        }
    }

    /// `\"` and `\\` are the only escapes.
    fn quoted(&mut self) -> Result<Token<'a>, LvmError> {
        self.advance(1);
        let mut text = String::new();
        let mut characters = self.rest.char_indices();
        while let Some((at, character)) = characters.next() {
            match character {
                '"' => {
                    self.advance(at + 1);
                    return Ok(Token::Quoted(text));
                }
                '\\' => text.extend(characters.next().map(|(_, escaped)| escaped)),
                other => text.push(other),
            }
        }
        Err(corrupt("has a string without an end"))
    }

    fn word(&mut self) -> Result<Token<'a>, LvmError> {
        let is_part = |c: char| c.is_ascii_alphanumeric() || "_-.+/@".contains(c);
        let length = self.rest.find(|c| !is_part(c)).unwrap_or(self.rest.len());
        match self.rest.get(..length) {
            Some(word) if !word.is_empty() => {
                self.advance(length);
                Ok(Token::Word(word))
            }
            _ => Err(corrupt("has a character that belongs nowhere")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_lvm_writes() {
        let parsed = parse(
            "# Generated by LVM2\ncontents = \"Text Format Volume Group\"\nversion = 1\n\
             centos {\nid = \"a\\\"b\\\\c\"\nseqno = 3\nstatus = [\"RESIZEABLE\", \"READ\"]\n\
             flags = []\n\
             logical_volumes {\nroot-1 {\nsegment1 {\nstripes = [\n\"pv0\", 0\n]\n}\n}\n}\n}\n\0",
        )
        .unwrap();
        assert_eq!(parsed.number("version"), Some(1));
        let group = parsed.section("centos").unwrap();
        assert_eq!(
            (group.text("id"), group.number("seqno")),
            (Some("a\"b\\c"), Some(3))
        );
        assert!(
            group.has("status", "READ")
                && !group.has("status", "WRITE")
                && group.list("flags").is_empty()
        );
        let segment = group
            .section("logical_volumes")
            .and_then(|all| all.section("root-1"))
            .unwrap();
        let stripes = segment.section("segment1").unwrap().list("stripes");
        assert_eq!(stripes, [Value::Text("pv0".into()), Value::Number(0)]);
    }

    #[test]
    fn hostile_texts_end_in_an_error() {
        let deep = "a {".repeat(1_000_000);
        let lists = format!("a = {}", "[".repeat(1_000_000));
        for text in [
            "a {",
            "a",
            "a =",
            "a = [",
            "a = [1",
            "a = \"x",
            "a = \"x\\",
            "}",
            "a = }",
            "{",
            "a = { }",
            "a = [[1]]",
            "a = 1 a = 2",
            "a { } a { }",
            "§",
            "a = §",
            "= 1",
            "a { b = 1",
            &deep,
            &lists,
        ] {
            let shown: String = text.chars().take(20).collect();
            assert!(matches!(parse(text), Err(LvmError::Corrupt(_))), "{shown}");
        }
        // A million of anything: quadratic work would not end within the test's time.
        let sections: String = (0..1_100_000)
            .map(|number| format!("a{number}{{}}"))
            .collect();
        for text in [sections, format!("a = [{}]", "1,".repeat(1_100_000))] {
            assert!(matches!(
                parse(&text),
                Err(LvmError::Corrupt(reason)) if reason.contains("more entries")
            ));
        }
        assert_eq!(
            parse("a = -1").unwrap().number("a"),
            None,
            "a count is never negative"
        );
        assert_eq!(parse("a = 99999999999999999999").unwrap().number("a"), None);
    }
}
