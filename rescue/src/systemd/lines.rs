//! The lines of a unit file, by the rules of systemd's `config_parse()` (src/shared/conf-parser.c).

use std::ops::Range;

/// One assignment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Assignment {
    /// Name of the section it stands in.
    pub section: String,
    /// Left of the first `=`, trimmed.
    pub key: String,
    /// Right of it, continuation lines joined, trimmed.
    pub value: String,
    /// First line of the file it was made from, counted from 1.
    pub first_line: usize,
    /// Last such line.
    pub last_line: usize,
}

/// A file's assignments, up to the first line that makes systemd give up on the rest of the file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Parsed {
    /// In the order of the file.
    pub assignments: Vec<Assignment>,
    /// The line where systemd stops, and why.
    pub stopped: Option<(usize, &'static str)>,
}

/// The longest line systemd reads (`LONG_LINE_MAX`), in bytes.
const LONG_LINE_MAX: usize = 1 << 20;

/// Reads a unit file or drop-in.
pub fn parse(bytes: &[u8]) -> Parsed {
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    let mut parsed = Parsed::default();
    let mut section: Option<String> = None;
    let mut pending: Option<(usize, Vec<u8>)> = None;
    let mut last_line = 0;
    for (index, line) in raw_lines(bytes).enumerate() {
        last_line = index + 1;
        let line = trim_start(bytes.get(line).unwrap_or_default());
        // A comment does not end a continuation.
        if matches!(line.first(), Some(b'#' | b';')) {
            continue;
        }
        let (first_line, mut logical) = pending.take().unwrap_or((last_line, Vec::new()));
        logical.extend_from_slice(line);
        if logical.len() > LONG_LINE_MAX {
            parsed.stopped = Some((last_line, "the line is longer than 1 MiB"));
            return parsed;
        }
        if ends_escaped(&logical) {
            logical.pop();
            logical.push(b' ');
            pending = Some((first_line, logical));
            continue;
        }
        if let Err(why) = take(
            &logical,
            first_line,
            last_line,
            &mut section,
            &mut parsed.assignments,
        ) {
            parsed.stopped = Some((first_line, why));
            return parsed;
        }
    }
    if let Some((first_line, logical)) = pending
        && let Err(why) = take(
            &logical,
            first_line,
            last_line,
            &mut section,
            &mut parsed.assignments,
        )
    {
        parsed.stopped = Some((first_line, why));
    }
    parsed
}

/// One logical line: a section, an assignment, or nothing.
fn take(
    logical: &[u8],
    first_line: usize,
    last_line: usize,
    section: &mut Option<String>,
    assignments: &mut Vec<Assignment>,
) -> Result<(), &'static str> {
    let line = std::str::from_utf8(logical).map_err(|_| "the line is not UTF-8")?;
    let line = line.trim_matches(SPACE);
    if line.is_empty() {
        return Ok(());
    }
    if let Some(rest) = line.strip_prefix('[') {
        let name = rest
            .strip_suffix(']')
            .ok_or("the section header has no ]")?;
        if name.chars().any(char::is_control) || name.contains(['"', '\'', '\\']) {
            return Err("the section header is not valid");
        }
        *section = Some(name.to_owned());
        return Ok(());
    }
    // An assignment outside of a section and a line without = are ignored.
    if let (Some(section), Some((key, value))) = (section, line.split_once('=')) {
        assignments.push(Assignment {
            section: section.clone(),
            key: key.trim_matches(SPACE).to_owned(),
            value: value.trim_matches(SPACE).to_owned(),
            first_line,
            last_line,
        });
    }
    Ok(())
}

const SPACE: [char; 4] = [' ', '\t', '\n', '\r'];

fn trim_start(line: &[u8]) -> &[u8] {
    let blank = line
        .iter()
        .take_while(|byte| super::words::is_space(**byte))
        .count();
    line.get(blank..).unwrap_or_default()
}

/// Whether the last byte is a backslash that is not itself escaped.
fn ends_escaped(line: &[u8]) -> bool {
    line.iter().rev().take_while(|byte| **byte == b'\\').count() % 2 == 1
}

/// Lines as `read_line()` cuts them: `\n`, `\r` and NUL end a line, each at most once per end (so
/// `\r\n` is one end).
fn raw_lines(bytes: &[u8]) -> impl Iterator<Item = Range<usize>> {
    let mut start = 0;
    std::iter::from_fn(move || {
        let rest = bytes.get(start..).filter(|rest| !rest.is_empty())?;
        let length = rest
            .iter()
            .position(|byte| is_end(*byte))
            .unwrap_or(rest.len());
        let after = rest.get(length..).unwrap_or_default();
        let mut ends = 0;
        while let Some(byte) = after.get(ends).filter(|byte| is_end(**byte)) {
            if after.get(..ends).unwrap_or_default().contains(byte) {
                break;
            }
            ends += 1;
        }
        let line = start..start + length;
        start += length + ends;
        Some(line)
    })
}

/// The bytes of lines `first` to `last` (counted from 1), without the end of the last one.
pub(super) fn byte_range(bytes: &[u8], first: usize, last: usize) -> Option<Range<usize>> {
    let mut lines = raw_lines(bytes).take(last).skip(first.checked_sub(1)?);
    let range = lines.next()?;
    Some(range.start..lines.last().unwrap_or_else(|| range.clone()).end)
}

fn is_end(byte: u8) -> bool {
    matches!(byte, b'\n' | b'\r' | 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(text: &str) -> Vec<(String, String, usize)> {
        parse(text.as_bytes())
            .assignments
            .into_iter()
            .map(|a| (a.key, a.value, a.first_line))
            .collect()
    }

    #[test]
    fn joins_lines_over_comments() {
        let text = "[Service]\nExecStart=/bin/a \\\n# a comment\n  ; another\n   b\\\nc\n\
            Type=simple\r\n\r\nUser = root\n";
        assert_eq!(
            values(text),
            [
                ("ExecStart".into(), "/bin/a  b c".into(), 2),
                ("Type".into(), "simple".into(), 7),
                ("User".into(), "root".into(), 9)
            ]
        );
    }

    #[test]
    fn an_escaped_backslash_does_not_continue() {
        assert_eq!(
            values("[S]\nA=b\\\\\nC=d\\"),
            [("A".into(), "b\\\\".into(), 2), ("C".into(), "d".into(), 3)]
        );
    }

    #[test]
    fn stops_where_systemd_stops() {
        let parsed = parse(b"X=1\n[Service]\nA=1\nno assignment\n[Broken\nB=2\n");
        assert_eq!(parsed.assignments.len(), 1);
        assert_eq!(parsed.stopped.map(|(line, _)| line), Some(5));
        assert_eq!(
            parse(b"[S]\nA=\xff\nB=1\n").stopped.map(|(line, _)| line),
            Some(2)
        );
    }
}
