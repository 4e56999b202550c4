//! The keys of an etcd member, as text and as JSON.

use std::io::{Result, Write};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use crate::base::escaping;
use crate::base::schema::SCHEMA;
use crate::base::units::count;
use crate::etcd::read::keys::{Held, View};

/// One line for each key, and how many there are.
///
/// # Errors
/// Those of `out`.
pub fn list_text(out: &mut impl Write, view: &View) -> Result<()> {
    writeln!(
        out,
        "{:>12}  {:>8}  {:>9}  KEY",
        "REVISION", "VERSION", "BYTES"
    )?;
    for (key, held) in &view.keys {
        let kind = held
            .kind
            .as_ref()
            .map(|kind| format!("    ({kind})"))
            .unwrap_or_default();
        writeln!(
            out,
            "{:>12}  {:>8}  {:>9}  {}{kind}",
            held.modified,
            held.version,
            held.size,
            escaping::key(key)
        )?;
    }
    let keys = count(view.keys.len(), "key", "keys");
    writeln!(out, "{keys} at revision {}", view.revision)
}

/// One object, but written as it comes: a cluster may hold a million keys.
///
/// # Errors
/// Those of `out`.
pub fn list_json(out: &mut impl Write, source: &str, view: &View) -> Result<()> {
    let source = Value::from(source);
    write!(
        out,
        "{{\"schema\":\"{SCHEMA}\",\"source\":{source},\"revision\":{},\"compact_revision\":{},\
         \"applied\":{},\"uncertain\":{},\"keys\":[",
        view.revision, view.compacted, view.applied, view.uncertain
    )?;
    for (number, (key, held)) in view.keys.iter().enumerate() {
        let separator = if number == 0 { "" } else { "," };
        write!(out, "{separator}\n{}", entry(key, held))?;
    }
    writeln!(out, "]}}")
}

/// One key with its value.
pub fn value_json(key: &[u8], held: &Held) -> Value {
    let mut entry = entry(key, held);
    if let Some(object) = entry.as_object_mut() {
        let value = held.value.as_deref().unwrap_or_default();
        object.insert("schema".to_owned(), SCHEMA.into());
        object.insert("value_base64".to_owned(), STANDARD.encode(value).into());
    }
    entry
}

/// What keeps the answer from being certain, one sentence each.
pub fn doubts(view: &View) -> Vec<String> {
    let mut doubts = Vec::new();
    if view.uncertain > 0 {
        let number = usize::try_from(view.uncertain).unwrap_or(usize::MAX);
        doubts.push(format!(
            "the last {} of the log {} not known to be agreed on by a majority: they may be \
             dropped when the members meet again",
            count(number, "entry", "entries"),
            if number == 1 { "is" } else { "are" },
        ));
    }
    doubts.extend(view.doubts.iter().cloned());
    doubts
}

/// Keys that are no text are given in base64, beside their readable form.
fn entry(key: &[u8], held: &Held) -> Value {
    let mut entry = json!({
        "key": escaping::key(key),
        "create_revision": held.create,
        "mod_revision": held.modified,
        "version": held.version,
        "lease": held.lease,
        "bytes": held.size,
    });
    if let Some(object) = entry.as_object_mut() {
        if std::str::from_utf8(key).is_err() {
            object.insert("key_base64".to_owned(), STANDARD.encode(key).into());
        }
        if let Some(kind) = &held.kind {
            object.insert("kind".to_owned(), Value::String(kind.to_string()));
        }
    }
    entry
}
