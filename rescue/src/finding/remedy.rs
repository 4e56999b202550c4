//! What mends a finding.

use std::fmt;

use super::Context;
use crate::change::Prepared;

/// What would mend a finding: the intent, printable and cheap. Turned into changes only when a plan
/// is made.
pub trait Remedy: fmt::Debug {
    /// Stable name for JSON: `renew-certificate`.
    fn kind(&self) -> &'static str;

    /// One line for the plan, beginning with a verb: "renew apiserver.crt (expired 2024-02-23),
    /// valid to 2027-11-23".
    fn summary(&self) -> String;

    /// Further lines for the plan (tables of candidates, SAN sources); may be empty.
    fn details(&self) -> Vec<String> {
        Vec::new()
    }

    /// False for what undo cannot bring back (freed logs).
    fn can_be_undone(&self) -> bool {
        true
    }

    /// Whether all of the details should be seen before it is agreed to: names that were put
    /// together, each with its source.
    fn must_be_read(&self) -> bool {
        false
    }

    /// True for what is only done in passing, when something that counts is mended too: no disk is
    /// written for it alone.
    fn is_incidental(&self) -> bool {
        false
    }

    /// True for what may be wanted as it is: it is asked for by itself, and `--yes` alone leaves it
    /// out, unless `--allow MODE` names its mode.
    fn asks_first(&self) -> bool {
        false
    }

    /// Fields for JSON beside `kind` and `summary`; never key material.
    fn fields(&self) -> serde_json::Map<String, serde_json::Value> {
        serde_json::Map::new()
    }

    /// Works it out against the guest as it will be after everything planned before. Keys are made
    /// here.
    fn prepare(&self, context: &Context<'_>) -> anyhow::Result<Prepared>;
}
