//! The remedy that sets one top-level value of the kubelet's configuration; the rest of the file
//! stays byte for byte.

use anyhow::Result;
use serde_json::{Map, Value, json};

use crate::change::{Prepared, line};
use crate::finding::{Context, Remedy};
use crate::guest::{Guest, GuestPath, Origin};

/// Sets a value.
#[derive(Debug)]
pub(super) struct SetKubeletSetting {
    /// The configuration, usually /var/lib/kubelet/config.yaml.
    pub path: GuestPath,
    /// `cgroupDriver`.
    pub key: &'static str,
    /// The new value, plain YAML.
    pub value: String,
    /// Whether the old one may be wanted.
    pub asks: bool,
}

impl Remedy for SetKubeletSetting {
    fn kind(&self) -> &'static str {
        "set-kubelet-setting"
    }

    fn summary(&self) -> String {
        format!("set {} to {} in {}", self.key, self.value, self.path)
    }

    fn asks_first(&self) -> bool {
        self.asks
    }

    fn fields(&self) -> Map<String, Value> {
        Map::from_iter([
            ("path".to_owned(), json!(self.path.to_string())),
            ("key".to_owned(), json!(self.key)),
            ("value".to_owned(), json!(self.value)),
        ])
    }

    fn prepare(&self, context: &Context<'_>) -> Result<Prepared> {
        let new = format!("{}: {}", self.key, self.value);
        let mut draft = context.draft();
        match line_of(&draft.guest, &self.path, self.key) {
            Some((at, old)) => {
                let change = line::replace_line(&draft.guest, &at, &old, &new)?;
                draft.push(change)?;
            }
            None => {
                let mut text = draft.guest.read_text(&self.path)?;
                if !text.ends_with('\n') {
                    text.push('\n');
                }
                draft.write(&self.path, text + &new + "\n", 0o600)?;
            }
        }
        Ok(draft.done())
    }
}

/// The line that sets a top-level key, and its text.
pub(super) fn line_of(guest: &Guest, path: &GuestPath, key: &str) -> Option<(Origin, String)> {
    let text = guest.read_text(path).ok()?;
    let begin = format!("{key}:");
    let mut lines = (1..).zip(text.split('\n'));
    let (number, line) = lines.find(|(_, line)| line.starts_with(&begin))?;
    Some((Origin::line(path.clone(), number), line.to_owned()))
}
