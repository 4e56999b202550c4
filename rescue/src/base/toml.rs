//! The one seam to toml_edit: reading TOML with the places of its values. Edits happen in the text,
//! so that every other byte stays.

use std::ops::Range;

use anyhow::{Context as _, Result, ensure};
use toml_edit::{Document, Item};

/// A configuration of containerd with every default written out has about 12 KiB.
const LONGEST: usize = 512 << 10;

/// A parsed file beside its text.
#[derive(Debug)]
pub struct Toml {
    text: String,
    root: Document<String>,
}

/// Text of a file and where it stands there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spanned {
    /// The value, without quotes.
    pub value: String,
    /// Its bytes, quotes included.
    pub span: Range<usize>,
    /// Its line, counted from 1.
    pub line: usize,
}

impl Toml {
    /// Parses a file.
    ///
    /// # Errors
    /// Where it is not UTF-8, not TOML, or longer than any configuration.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        ensure!(bytes.len() <= LONGEST, "it has {} bytes", bytes.len());
        let text = std::str::from_utf8(bytes).context("the file is not UTF-8 text")?;
        let root = Document::parse(text.to_owned());
        let root = root.map_err(|error| {
            let line = error.span().map_or(0, |span| line_at(text, span.start));
            anyhow::anyhow!("line {line}: {}", error.message())
        })?;
        let text = text.to_owned();
        Ok(Self { text, root })
    }

    /// The item at a path of keys.
    pub fn at(&self, keys: &[&str]) -> Option<&Item> {
        keys.iter()
            .try_fold(self.root.as_item(), |item, key| item.get(key))
    }

    /// An integer.
    pub fn integer(&self, keys: &[&str]) -> Option<i64> {
        self.at(keys)?.as_integer()
    }

    /// The texts of an array; other elements are left out.
    pub fn texts(&self, keys: &[&str]) -> Vec<Spanned> {
        let array = self.at(keys).and_then(Item::as_array);
        let values = array.into_iter().flat_map(toml_edit::Array::iter);
        values
            .filter_map(|value| {
                let span = value.span()?;
                Some(Spanned {
                    value: value.as_str()?.to_owned(),
                    line: line_at(&self.text, span.start),
                    span,
                })
            })
            .collect()
    }

    /// The file without some elements of arrays. Each goes with the comma that follows it, else
    /// with the one before it.
    pub fn without(&self, elements: &[Spanned]) -> String {
        let mut text = self.text.clone();
        let mut spans: Vec<Range<usize>> = elements.iter().map(|it| it.span.clone()).collect();
        spans.sort_by_key(|span| std::cmp::Reverse(span.start));
        for span in spans {
            let cut = with_comma(&text, span);
            text.replace_range(cut, "");
        }
        text
    }
}

/// The bytes of an array's element with one comma.
fn with_comma(text: &str, span: Range<usize>) -> Range<usize> {
    let after = text.get(span.end..).unwrap_or_default();
    if let Some(rest) = after.trim_start().strip_prefix(',') {
        let rest = rest.trim_start_matches([' ', '\t']);
        return span.start..text.len() - rest.len();
    }
    let before = text.get(..span.start).unwrap_or_default();
    match before.trim_end().strip_suffix(',') {
        Some(head) => head.len()..span.end,
        None => span,
    }
}

fn line_at(text: &str, offset: usize) -> usize {
    let before = text.as_bytes().get(..offset).unwrap_or_default();
    1 + before.iter().filter(|byte| **byte == b'\n').count()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn without(text: &str, gone: &[&str]) -> String {
        let toml = Toml::parse(text.as_bytes()).unwrap();
        let mut elements = toml.texts(&["list"]);
        elements.retain(|element| gone.contains(&element.value.as_str()));
        toml.without(&elements)
    }

    #[test]
    fn elements_go_with_one_comma_and_the_rest_stays() {
        for (text, expected) in [
            ("list = [\"cri\"] # why\n", "list = [] # why\n"),
            ("list=['cri', 'a']\n", "list=['a']\n"),
            ("list = [\"a\", \"cri\"]", "list = [\"a\"]"),
            ("list = [\"cri\", \"a\", \"cri\"]", "list = [\"a\"]"),
            (
                "x = 1\nlist = [\n  # first\n  \"cri\",\n]\n",
                "x = 1\nlist = [\n  # first\n  \n]\n",
            ),
        ] {
            assert_eq!(without(text, &["cri"]), expected, "{text}");
            Toml::parse(expected.as_bytes()).unwrap();
        }
    }

    #[test]
    fn values_have_their_lines_and_faults_too() {
        let toml = Toml::parse(b"version = 2\n\nlist = [\"a\",\n 'cri']\n").unwrap();
        let lines: Vec<usize> = toml.texts(&["list"]).iter().map(|it| it.line).collect();
        assert_eq!((toml.integer(&["version"]), lines), (Some(2), vec![3, 4]));
        let error = Toml::parse(b"a = 1\nb = [\n").unwrap_err().to_string();
        assert!(error.contains("line "), "{error}");
    }
}
