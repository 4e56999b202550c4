//! Repairs that were cut off come before whatever else changes a node.

use crate::base::refusal::Refusal;
use crate::finding::NodeReport;
use crate::session::Session;
use crate::typed;

/// # Errors
/// A [`Refusal`] where an earlier repair of this node was cut off.
pub fn refuse(node: &NodeReport, session: &Session<'_>) -> Result<(), Refusal> {
    let Some(run) = node.unfinished_run() else {
        return Ok(());
    };
    let sources = typed::sources(session.sources);
    Err(Refusal::new(
        format!(
            "an earlier repair of {} (run {}) was cut off",
            node.name(),
            run.id
        ),
        "it has to be completed or taken back first",
        format!("rescue repair {sources}, or rescue undo {sources}; then run this again"),
    ))
}
