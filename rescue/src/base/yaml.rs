//! The one seam to serde_yaml, which is archived: reading YAML into JSON values. Edits happen in
//! place, elsewhere.

use anyhow::{Context, Result, ensure};
use serde_json::Value;

/// Longest file that is parsed, in bytes. A parsed file takes some 30 times its length of memory,
/// and the API server itself takes no object of more than 1.5 MiB; manifests and kubeconfigs are a
/// few KiB. The ISO has to do it in 256 MiB.
const LONGEST: usize = 512 << 10;
/// Most `[` and `{` that may be open at once: serde_yaml gives up at 128, but only after libyaml
/// has read everything, in a time that grows with the square of it.
const DEEPEST: usize = 128;
/// With anchors, a file can unfold to a multiple of itself ("billion laughs"): then it must be
/// short and name few of them.
const LONGEST_WITH_ANCHORS: usize = 16 << 10;
const MOST_ALIASES: usize = 64;

/// The text of a file, if parsing it cannot take a machine's memory or an hour.
fn bounded(bytes: &[u8]) -> Result<&str> {
    let text = std::str::from_utf8(bytes).context("the file is not UTF-8 text")?;
    // As Windows' editors write it. go-yaml skips it, and so does every reader in Kubernetes.
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    ensure!(
        text.len() <= LONGEST,
        "it has {} bytes, more than any YAML file that this program has use for",
        text.len()
    );
    let (mut depth, mut deepest, mut anchors, mut aliases, mut before) = (0_usize, 0, 0, 0, '\n');
    let mut characters = text.chars().peekable();
    while let Some(character) = characters.next() {
        let names = |next: Option<&char>| {
            next.is_some_and(|next| next.is_alphanumeric() || matches!(next, '_' | '-'))
        };
        let begins = before.is_whitespace() || matches!(before, '[' | '{' | ',');
        match character {
            '[' | '{' => depth += 1,
            ']' | '}' => depth = depth.saturating_sub(1),
            '&' if begins && names(characters.peek()) => anchors += 1,
            '*' if begins && names(characters.peek()) => aliases += 1,
            _ => {}
        }
        deepest = deepest.max(depth);
        before = character;
    }
    ensure!(
        deepest < DEEPEST,
        "it is nested more than {DEEPEST} levels deep"
    );
    let unfolds =
        anchors > 0 && aliases > 0 && (aliases > MOST_ALIASES || text.len() > LONGEST_WITH_ANCHORS);
    ensure!(
        !unfolds,
        "it repeats parts of itself {aliases} times (anchors and aliases)"
    );
    Ok(text)
}

/// Parses one YAML document.
pub fn parse(bytes: &[u8]) -> Result<Value> {
    let text = bounded(bytes)?;
    let yaml: serde_yaml::Value =
        serde_yaml::from_str(text).context("the file is not valid YAML")?;
    serde_json::to_value(yaml).context("the YAML has keys that are not text")
}

/// All documents of a YAML file that parse; nothing of a file that does not begin as YAML.
pub fn parse_all(bytes: &[u8]) -> Vec<Value> {
    use serde::Deserialize as _;
    let Ok(text) = bounded(bytes) else {
        return Vec::new();
    };
    serde_yaml::Deserializer::from_str(text)
        .map_while(|document| serde_yaml::Value::deserialize(document).ok())
        .filter_map(|document| serde_json::to_value(document).ok())
        .collect()
}

/// The value at a path of keys, if all of them are there.
pub fn at<'a>(value: &'a Value, keys: &[&str]) -> Option<&'a Value> {
    keys.iter().try_fold(value, |value, key| value.get(key))
}

/// Text at a path of keys.
pub fn text_at<'a>(value: &'a Value, keys: &[&str]) -> Option<&'a str> {
    at(value, keys).and_then(Value::as_str)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every level names the one before ten times.
    fn laughs(levels: usize) -> String {
        let mut text = "a0: &a0 [lol, lol]\n".to_owned();
        for level in 1..levels {
            let names = vec![format!("*a{}", level - 1); 10].join(", ");
            text.push_str(&format!("a{level}: &a{level} [{names}]\n"));
        }
        text
    }

    #[test]
    fn what_would_take_all_memory_or_time_is_refused() {
        let deep = format!("a: {}1{}", "[".repeat(200_000), "]".repeat(200_000));
        let long = format!("a: {}", "x".repeat(LONGEST));
        let anchored = format!("a: &a [{}]\nb: *a\n", "x, ".repeat(10_000));
        for (text, why) in [
            (deep, "nested"),
            (long, "bytes"),
            (laughs(12), "repeats"),
            (anchored, "repeats"),
            ("- ".repeat(100_000), ""),
        ] {
            let error = format!("{:#}", parse(text.as_bytes()).unwrap_err());
            assert!(error.contains(why), "{error}");
            assert!(parse_all(text.as_bytes()).is_empty());
        }
    }

    #[test]
    fn ordinary_files_are_not() {
        assert_eq!(
            parse(laughs(3).as_bytes()).unwrap()["a2"][0][0],
            serde_json::json!(["lol", "lol"])
        );
        let script = "run: |\n  [ -e /x ] && ls *log & { true; }\n  case a in *b) ;; esac\n\
            schedule: '* * * * *'\n";
        assert!(parse(script.as_bytes()).is_ok());
        let annotation = format!(
            "a: '{}'",
            r#"{"kind":"Pod","spec":{"a":[{"b":1}]}}"#.repeat(1000)
        );
        assert!(parse(annotation.as_bytes()).is_ok());
    }
}
