//! What became of each node of a repair, and of all of them.

use crate::cli::{Failure, Outcome};
use crate::plan::receipt::{Receipt, SetReceipt};
use crate::report::json;

/// What is printed of one node, and whether something counts that is left on it.
pub(super) struct NodeOutput {
    pub json: serde_json::Value,
    pub left: bool,
}

/// What became of one node, or of the plan of one check for several nodes: that one has no source.
pub(super) struct NodeOutcome {
    pub name: String,
    pub source: String,
    pub json: serde_json::Value,
    pub receipt: Option<serde_json::Value>,
    pub left: bool,
    /// Whether a plan for several nodes changed it.
    changed: bool,
    failure: Option<Failure>,
}

impl NodeOutcome {
    pub fn new(
        name: String,
        source: String,
        output: NodeOutput,
        receipt: Option<&Receipt>,
    ) -> Self {
        Self {
            name,
            source,
            json: output.json,
            left: receipt.map_or(output.left, |receipt| receipt.after.needs_repair()),
            receipt: receipt.map(json::receipt),
            changed: false,
            failure: None,
        }
    }

    pub fn failed(name: String, source: String, json: serde_json::Value, failure: Failure) -> Self {
        Self {
            name,
            source,
            json,
            receipt: None,
            left: true,
            changed: false,
            failure: Some(failure),
        }
    }

    /// All nodes were looked at again; those of the plan were changed.
    pub fn after_set(&mut self, receipt: &SetReceipt) {
        let Some(node) = receipt
            .after
            .nodes
            .iter()
            .find(|node| node.guest.source == self.source)
        else {
            return;
        };
        self.left = self.failure.is_some() || node.needs_repair();
        self.changed |= receipt
            .plan
            .parts
            .iter()
            .any(|part| part.source == self.source);
        self.json = json::node(node);
    }

    pub fn failure_json(&self) -> Option<serde_json::Value> {
        let failure = self.failure.as_ref()?;
        Some(json::failed_node(
            &self.name,
            &self.source,
            failure.kind,
            &failure.text,
        ))
    }

    fn words(&self) -> &'static str {
        match (&self.failure, self.was_changed(), self.left) {
            (Some(failure), ..) => failure.kind,
            (None, true, false) => "repaired",
            (None, true, true) => "repaired, but something is left",
            (None, false, false) => "nothing to repair",
            (None, false, true) => "not repaired, something is left",
        }
    }

    fn was_changed(&self) -> bool {
        self.changed || self.receipt.is_some()
    }
}

/// "Refused" promises that nothing was changed anywhere; once one node of several was, a failure of
/// another is part-way.
pub(super) fn outcome(outcomes: &[NodeOutcome]) -> Outcome {
    let failures: Vec<Outcome> = outcomes
        .iter()
        .filter_map(|outcome| Some(outcome.failure.as_ref()?.outcome))
        .collect();
    let changed =
        outcomes.iter().any(NodeOutcome::was_changed) || failures.contains(&Outcome::PartWay);
    match (failures.is_empty(), changed) {
        (false, true) => Outcome::PartWay,
        (false, false) => Outcome::Refused,
        (true, _) if outcomes.iter().any(|outcome| outcome.left) => Outcome::FindingsLeft,
        (true, _) => Outcome::Clean,
    }
}

/// One line per node; the details stand above.
pub(super) fn summary(outcomes: &[NodeOutcome], sources: &str) -> String {
    let width = outcomes
        .iter()
        .map(|outcome| outcome.name.len())
        .max()
        .unwrap_or_default();
    let mut text = format!(
        "{} nodes:\n",
        outcomes
            .iter()
            .filter(|outcome| !outcome.source.is_empty())
            .count()
    );
    for outcome in outcomes {
        let source = if outcome.source.is_empty() {
            String::new()
        } else {
            format!(" ({})", outcome.source)
        };
        text.push_str(&format!(
            "  {:width$}  {}{source}\n",
            outcome.name,
            outcome.words()
        ));
    }
    if outcomes.iter().any(|outcome| outcome.left) {
        text.push_str(&format!(
            "Next: rescue inspect {sources}    (what is left on each, and what to do about it)\n"
        ));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::etcd::operations::guarantee::{Guarantee, Level};
    use crate::finding::{Inspection, NodeReport};
    use crate::node::Node;
    use crate::plan::set::{SetPart, SetPlan};
    use crate::tree::MemoryTree;

    fn node(source: &str) -> NodeReport {
        let mut guest = MemoryTree::new().into_guest();
        guest.source = source.to_owned();
        let node = Node::read(&guest);
        let (findings, certificates, unreferenced) = (Vec::new(), Vec::new(), Vec::new());
        let (runs, peers, party) = (Vec::new(), Vec::new(), Default::default());
        NodeReport {
            guest,
            node,
            findings,
            certificates,
            unreferenced,
            runs,
            peers,
            party,
            is_external_etcd: false,
        }
    }

    fn outcome_of(source: &str) -> NodeOutcome {
        let output = NodeOutput {
            json: serde_json::Value::Null,
            left: true,
        };
        NodeOutcome::new(source.to_owned(), source.to_owned(), output, None)
    }

    #[test]
    fn only_nodes_of_the_plan_are_called_repaired() {
        let part = SetPart {
            source: "a".into(),
            name: "a".into(),
            details: Vec::new(),
            changes: Vec::new(),
        };
        let plan = SetPlan {
            summary: String::new(),
            guarantee: Guarantee::new(Level::G1),
            why: Vec::new(),
            notes: Vec::new(),
            parts: vec![part],
            afterwards: Vec::new(),
        };
        let receipt = SetReceipt {
            run: String::new(),
            plan,
            applied: Vec::new(),
            etcd: Vec::new(),
            after: Inspection {
                nodes: vec![node("a"), node("b")],
                leftovers: Vec::new(),
            },
            took: std::time::Duration::ZERO,
        };
        let mut outcomes = [outcome_of("a"), outcome_of("b")];
        outcomes
            .iter_mut()
            .for_each(|outcome| outcome.after_set(&receipt));
        assert_eq!(
            outcomes.each_ref().map(NodeOutcome::words),
            ["repaired", "nothing to repair"]
        );
    }
}
