//! Command-line flags as Kubernetes' components read them (spf13/pflag).

/// Flags of a command line without its program: `--name=value`, `--name value`, and bare `--name`,
/// whose value is `true`. The names keep their dashes. What follows a lone `--` is no flag.
pub fn parse(words: &[String]) -> Vec<(String, String)> {
    let mut flags = Vec::new();
    let mut words = words.iter().peekable();
    while let Some(word) = words.next() {
        if word == "--" {
            break;
        }
        if !word.starts_with("--") {
            continue;
        }
        let (name, value) = match word.split_once('=') {
            Some((name, value)) => (name, value.to_owned()),
            // The components take no words beside flags, so a word after a flag is its value.
            None => (
                word.as_str(),
                words
                    .next_if(|next| !next.starts_with('-'))
                    .cloned()
                    .unwrap_or_else(|| "true".to_owned()),
            ),
        };
        flags.push((name.to_owned(), value));
    }
    flags
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_all_spellings() {
        let words = [
            "kubelet", "--a=1", "--b", "2", "--c", "--d=x=y", "-v", "--", "--e",
        ]
        .map(str::to_owned);
        let flags = parse(&words);
        let pairs: Vec<(&str, &str)> = flags
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()))
            .collect();
        assert_eq!(
            pairs,
            [("--a", "1"), ("--b", "2"), ("--c", "true"), ("--d", "x=y")]
        );
    }
}
