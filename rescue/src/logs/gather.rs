//! Lines become words: the same thing said many times in a boot is one, with a count.

use std::collections::HashMap;

use time::OffsetDateTime;

use super::message;
use super::{LastWords, Word};
use crate::guest::GuestPath;

/// Different words that are kept; what comes later (and is older) is only counted as left out.
const MOST_WORDS: usize = 4000;

/// The longest text of a word, characters.
const LONGEST: usize = 1000;

/// One line of some log.
#[derive(Debug, Clone)]
pub(super) struct Line<'a> {
    /// When it was written.
    pub at: Option<OffsetDateTime>,
    /// Which boot, counted back from the newest, 0; `None` where its log tells no boots apart.
    pub boot: Option<usize>,
    /// Who said it.
    pub source: &'a str,
    /// What.
    pub text: &'a str,
    /// Whether it tells of a failure.
    pub is_error: bool,
    /// The file it stands in.
    pub file: &'a GuestPath,
}

/// Gathers lines, newest first.
#[derive(Debug, Default)]
pub(super) struct Gatherer {
    words: Vec<Word>,
    index: HashMap<(Option<usize>, String, String), usize>,
    left_out: bool,
}

impl Gatherer {
    /// Adds a line that is older than all of the same words before it.
    pub fn add(&mut self, line: &Line<'_>) {
        let text = message::plain(line.text);
        if text.is_empty() {
            return;
        }
        let key = (line.boot, line.source.to_owned(), message::key(&text));
        if let Some(word) = self.index.get(&key).and_then(|at| self.words.get_mut(*at)) {
            word.count += 1;
            word.first = line.at.or(word.first);
            word.is_error |= line.is_error;
            return;
        }
        if self.words.len() >= MOST_WORDS {
            self.left_out = true;
            return;
        }
        self.index.insert(key, self.words.len());
        self.words.push(Word {
            source: line.source.to_owned(),
            text: text.chars().take(LONGEST).collect(),
            count: 1,
            first: line.at,
            last: line.at,
            boot: line.boot,
            is_error: line.is_error,
            file: line.file.clone(),
        });
    }

    /// All words, added to `found`.
    pub fn finish(self, found: &mut LastWords) {
        found.words.extend(self.words);
        found.is_cut |= self.left_out;
    }
}
