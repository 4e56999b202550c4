//! Splitting text into words, by the rules of systemd's `extract_first_word()`
//! (src/basic/extract-word.c) and unescaping by `cunescape_one()` (src/basic/escape.c).

/// What systemd's callers ask of `extract_first_word()`. Quotes are always removed here, as in all
/// settings read by this program.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Rules {
    /// `EXTRACT_CUNESCAPE`: `\n`, `\x41`, `\u00e9` … are C escapes. Without it a backslash just
    /// keeps the next character.
    pub c_escapes: bool,
    /// `EXTRACT_UNESCAPE_RELAX`: an unknown escape stays as it is written.
    pub keep_unknown_escapes: bool,
    /// `EXTRACT_RELAX`: an unbalanced quote ends with the text.
    pub relaxed: bool,
}

impl Rules {
    /// `Environment=` and `ExecStart=`.
    pub const SETTING: Self = Self {
        c_escapes: true,
        keep_unknown_escapes: false,
        relaxed: false,
    };
    /// A whole-word `$VARIABLE` in `ExecStart=`, split up.
    pub const EXPANSION: Self = Self {
        c_escapes: false,
        keep_unknown_escapes: false,
        relaxed: true,
    };
}

/// One word and the bytes of the text it was made from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Word {
    /// Unquoted and unescaped. Bytes that are no UTF-8 (`\xff`) are replaced.
    pub text: String,
    /// First byte in the text, quotes included.
    pub start: usize,
    /// First byte after it.
    pub end: usize,
}

/// Unbalanced quotes, or an escape that does not exist.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("unbalanced quotes or an unknown escape")]
pub struct BadWord;

/// systemd's `WHITESPACE`.
pub fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\n' | b'\r')
}

/// The first word of `text` at or after byte `at`, or `None` at the end.
pub fn next_word(text: &str, at: usize, rules: Rules) -> Result<Option<Word>, BadWord> {
    let bytes = text.as_bytes();
    let mut at = at;
    while bytes.get(at).copied().is_some_and(is_space) {
        at += 1;
    }
    if at >= bytes.len() {
        return Ok(None);
    }
    let start = at;
    let mut word = Vec::new();
    let mut quote: Option<u8> = None;
    while let Some(&byte) = bytes.get(at) {
        match (quote, byte) {
            (_, b'\\') => at = escape(bytes, at + 1, rules, quote.is_some(), &mut word)?,
            (Some(open), _) if byte == open => {
                quote = None;
                at += 1;
            }
            (None, b'\'' | b'"') => {
                quote = Some(byte);
                at += 1;
            }
            (None, _) if is_space(byte) => break,
            _ => {
                word.push(byte);
                at += 1;
            }
        }
    }
    if quote.is_some() && !rules.relaxed {
        return Err(BadWord);
    }
    Ok(Some(Word {
        text: String::from_utf8_lossy(&word).into_owned(),
        start,
        end: at,
    }))
}

/// All words of `text`.
pub fn split(text: &str, rules: Rules) -> Result<Vec<Word>, BadWord> {
    let mut words = Vec::new();
    let mut at = 0;
    while let Some(word) = next_word(text, at, rules)? {
        at = word.end;
        words.push(word);
    }
    Ok(words)
}

/// Handles what follows a backslash at `at`; returns the first byte after it.
fn escape(
    bytes: &[u8],
    at: usize,
    rules: Rules,
    quoted: bool,
    word: &mut Vec<u8>,
) -> Result<usize, BadWord> {
    let Some(&byte) = bytes.get(at) else {
        if rules.keep_unknown_escapes && (!quoted || rules.relaxed) {
            word.push(b'\\');
            return Ok(at);
        }
        return if rules.relaxed { Ok(at) } else { Err(BadWord) };
    };
    if !rules.c_escapes {
        word.push(byte);
        return Ok(at + 1);
    }
    match c_escape(bytes.get(at..).unwrap_or_default()) {
        Some((Escaped::Byte(value), length)) => {
            word.push(value);
            Ok(at + length)
        }
        Some((Escaped::Char(value), length)) => {
            word.extend_from_slice(value.encode_utf8(&mut [0; 4]).as_bytes());
            Ok(at + length)
        }
        None if rules.keep_unknown_escapes => {
            word.extend_from_slice(&[b'\\', byte]);
            Ok(at + 1)
        }
        None => Err(BadWord),
    }
}

enum Escaped {
    Byte(u8),
    Char(char),
}

/// One C escape without its backslash, and how many bytes it takes.
fn c_escape(bytes: &[u8]) -> Option<(Escaped, usize)> {
    let simple = match bytes.first()? {
        b'a' => 0x07,
        b'b' => 0x08,
        b'f' => 0x0c,
        b'n' => b'\n',
        b'r' => b'\r',
        b't' => b'\t',
        b'v' => 0x0b,
        b'\\' => b'\\',
        b'"' => b'"',
        b'\'' => b'\'',
        b's' => b' ',
        b'x' => {
            let value = u8::try_from(number(bytes.get(1..3)?, 16)?).ok()?;
            return (value != 0).then_some((Escaped::Byte(value), 3));
        }
        b'u' => return unicode(bytes, 4),
        b'U' => return unicode(bytes, 8),
        b'0'..=b'7' => {
            let value = u8::try_from(number(bytes.get(..3)?, 8)?).ok()?;
            return (value != 0).then_some((Escaped::Byte(value), 3));
        }
        _ => return None,
    };
    Some((Escaped::Byte(simple), 1))
}

fn unicode(bytes: &[u8], digits: usize) -> Option<(Escaped, usize)> {
    let value = char::from_u32(number(bytes.get(1..=digits)?, 16)?)?;
    (value != '\0').then_some((Escaped::Char(value), digits + 1))
}

fn number(digits: &[u8], radix: u32) -> Option<u32> {
    digits.iter().try_fold(0_u32, |value, digit| {
        value
            .checked_mul(radix)?
            .checked_add(char::from(*digit).to_digit(radix)?)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(text: &str, rules: Rules) -> Vec<String> {
        split(text, rules)
            .expect("well-formed")
            .into_iter()
            .map(|word| word.text)
            .collect()
    }

    #[test]
    fn quotes_and_escapes() {
        assert_eq!(
            texts(
                r#" a "b c"d 'e "f'  "" \x41\102\u00e9\s\"x "#,
                Rules::SETTING
            ),
            ["a", "b cd", "e \"f", "", "ABé \"x"]
        );
        assert_eq!(
            texts(r#"a\ b "c d" e\"f "open"#, Rules::EXPANSION),
            ["a b", "c d", "e\"f", "open"]
        );
    }

    #[test]
    fn refuses_what_systemd_refuses() {
        for bad in [
            r#""open"#, r"\q", r"\x4", r"\x00", r"\08", r"\777", r"\ud800", "end\\",
        ] {
            assert_eq!(split(bad, Rules::SETTING), Err(BadWord), "{bad}");
        }
        let relaxed = Rules {
            keep_unknown_escapes: true,
            ..Rules::SETTING
        };
        assert_eq!(texts(r"\q\d end\", relaxed), [r"\q\d", r"end\"]);
    }

    #[test]
    fn spans_hold_the_quotes() {
        let words = split("  'a b' c", Rules::SETTING).expect("well-formed");
        assert_eq!((words[0].start, words[0].end), (2, 7));
        assert_eq!((words[1].start, words[1].end), (8, 9));
    }
}
