//! Lines broken between words, for a text console.

/// Columns of a line, at most.
pub(super) const WIDTH: usize = 80;

/// Lines of at most [`WIDTH`] columns, each behind `indent` spaces, broken between words. A longer
/// word stays whole on a line of its own: it is a path or a command to be copied.
pub(super) fn indented(indent: usize, text: &str) -> String {
    lines(indent, text.split_whitespace())
}

/// The same for text that nobody copies, a line of a log: a longer word is broken, too.
pub(super) fn broken(indent: usize, text: &str) -> String {
    let room = WIDTH.saturating_sub(indent).max(1);
    let words: Vec<String> = text
        .split_whitespace()
        .flat_map(|word| {
            let letters: Vec<char> = word.chars().collect();
            let parts = letters.chunks(room).map(|part| part.iter().collect());
            parts.collect::<Vec<String>>()
        })
        .collect();
    lines(indent, words.iter().map(String::as_str))
}

fn lines<'a>(indent: usize, words: impl Iterator<Item = &'a str>) -> String {
    let mut lines = vec![String::new()];
    for word in words {
        let line = lines.last_mut().filter(|line| {
            line.is_empty() || indent + line.chars().count() + 1 + word.chars().count() <= WIDTH
        });
        match line {
            Some(line) if line.is_empty() => line.push_str(word),
            Some(line) => *line += &format!(" {word}"),
            None => lines.push(word.to_owned()),
        }
    }
    let margin = " ".repeat(indent);
    lines
        .iter()
        .fold(String::new(), |out, line| out + &margin + line + "\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_text_of_a_log_is_broken_within_words() {
        let long = "x".repeat(100);
        assert_eq!(
            indented(2, &format!("a {long}")),
            format!("  a\n  {long}\n")
        );
        let (first, rest) = long.split_at(WIDTH - 2);
        assert_eq!(
            broken(2, &format!("a {long}")),
            format!("  a\n  {first}\n  {rest}\n")
        );
        let words = ["word"; 40].join(" ");
        assert!(indented(4, &words).lines().all(|line| line.len() <= WIDTH));
    }
}
