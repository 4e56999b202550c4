//! The one seam to serde_yaml, which is archived: reading YAML into JSON values. Edits happen in place, elsewhere.

use anyhow::{Context, Result};
use serde_json::Value;

/// Parses one YAML document.
pub fn parse(bytes: &[u8]) -> Result<Value> {
    let text = std::str::from_utf8(bytes).context("the file is not UTF-8 text")?;
    let yaml: serde_yaml::Value = serde_yaml::from_str(text).context("the file is not valid YAML")?;
    serde_json::to_value(yaml).context("the YAML has keys that are not text")
}

/// All documents of a YAML file that parse; nothing of a file that does not begin as YAML.
pub fn parse_all(bytes: &[u8]) -> Vec<Value> {
    use serde::Deserialize as _;
    let Ok(text) = std::str::from_utf8(bytes) else { return Vec::new() };
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
