//! `rescue repair SRC…`: plan, ask, apply, verify.

use crate::base::shell;
use anyhow::Result;

use super::answers::Answers;
use super::args::{self, Repair, Stop};
use super::set;
use super::terminal::{Terminal, colours, confirm};
use super::{Failure, Outcome};
use crate::base::refusal::Refusal;
use crate::finding::{Inspection, NodeReport};
use crate::in_use::read_only;
use crate::node::Role;
use crate::plan::receipt::{Receipt, SetReceipt, Wanted};
use crate::plan::set::{PLANNERS, SetWishes};
use crate::report::json::Together;
use crate::report::{json, set as set_report, text};
use crate::session::{Session, only_node};
use crate::settings::Settings;
use crate::typed;

/// Repairs every node on the sources, one after the other.
pub fn run(command: &Repair) -> Result<Result<Outcome>, Stop> {
    let sources = args::sources(&command.src, &command.root)?;
    args::refuse_asking(command.json, &args::answers(command.yes, command.dry_run))?;
    let settings = command.settings();
    args::refuse_no_checks(&settings)?;
    read_only::protect(sources.iter().chain(&settings.ca));
    let session = Session {
        sources: &sources,
        settings: &settings,
        ui: &Terminal,
    };
    Ok(Conversation {
        command,
        session: &session,
        settings: &settings,
    }
    .hold())
}

/// Plans of one check that one run carries out; each of them is for nodes that belong to no other plan.
const MOST_PLANS: usize = 64;

/// What is told of one node.
struct Told {
    json: serde_json::Value,
    left: bool,
}

/// What became of one node.
struct NodeEnd {
    name: String,
    source: String,
    json: serde_json::Value,
    receipt: Option<serde_json::Value>,
    left: bool,
    /// By a plan for several nodes.
    changed: bool,
    failure: Option<Failure>,
}

impl NodeEnd {
    fn new(told: Told, receipt: Option<Receipt>) -> Self {
        Self {
            name: String::new(),
            source: String::new(),
            json: told.json,
            left: receipt
                .as_ref()
                .map_or(told.left, |receipt| receipt.after.needs_repair()),
            receipt: receipt.as_ref().map(json::receipt),
            changed: false,
            failure: None,
        }
    }

    fn failed(json: serde_json::Value, failure: Failure) -> Self {
        let (name, source) = (String::new(), String::new());
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
    fn after_set(&mut self, receipt: &SetReceipt) {
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

    fn failure_json(&self) -> Option<serde_json::Value> {
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

/// "Refused" promises that nothing was changed anywhere; once one node of several was, a failure of another is part-way.
fn outcome(ends: &[NodeEnd]) -> Outcome {
    let failures: Vec<Outcome> = ends
        .iter()
        .filter_map(|end| Some(end.failure.as_ref()?.outcome))
        .collect();
    let changed = ends.iter().any(NodeEnd::was_changed) || failures.contains(&Outcome::PartWay);
    match (failures.is_empty(), changed) {
        (false, true) => Outcome::PartWay,
        (false, false) => Outcome::Refused,
        (true, _) if ends.iter().any(|end| end.left) => Outcome::FindingsLeft,
        (true, _) => Outcome::Clean,
    }
}

/// One line per node; the details stand above.
fn summary(ends: &[NodeEnd], sources: &str) -> String {
    let width = ends
        .iter()
        .map(|end| end.name.len())
        .max()
        .unwrap_or_default();
    let mut text = format!(
        "{} nodes:\n",
        ends.iter().filter(|end| !end.source.is_empty()).count()
    );
    for end in ends {
        let source = if end.source.is_empty() {
            String::new()
        } else {
            format!(" ({})", end.source)
        };
        text.push_str(&format!("  {:width$}  {}{source}\n", end.name, end.words()));
    }
    if ends.iter().any(|end| end.left) {
        text.push_str(&format!(
            "Next: rescue inspect {sources}    (what is left on each, and what to do about it)\n"
        ));
    }
    text
}

struct Conversation<'a> {
    command: &'a Repair,
    session: &'a Session<'a>,
    settings: &'a Settings,
}

impl Conversation<'_> {
    /// One node after the other. Where several are repaired, one that cannot be does not stop the others.
    fn hold(&self) -> Result<Outcome> {
        let mut nodes = self.chosen(self.finish_earlier_sets(self.session.inspect()?)?)?;
        let wanted = self.session.plan_sets(&nodes, &self.wishes());
        if nodes.len() == 1 && wanted.is_empty() {
            let (told, receipt) = self.one(nodes.remove(0), &[])?;
            return Ok(self.close(vec![NodeEnd::new(told, receipt)], Together::default()));
        }
        // What is mended on several nodes as one is not mended on one of them.
        let mended_together = |source: &str| -> Vec<&'static str> {
            let part_of = |wanted: &&Wanted| {
                let plan = wanted.plan.as_ref();
                plan.is_ok_and(|plan| plan.parts.iter().any(|part| part.source == source))
            };
            wanted
                .iter()
                .filter(part_of)
                .map(|wanted| wanted.check)
                .collect()
        };
        // Control planes first: what they lend to the others may be what their own repair renews.
        nodes.sort_by_key(|node| node.node.role.value != Some(Role::ControlPlane));
        let mut ends = Vec::new();
        while !nodes.is_empty() {
            let node = nodes.remove(0);
            let (name, source, before) = (
                node.name().to_owned(),
                node.guest.source.clone(),
                json::node(&node),
            );
            match self.one(node, &mended_together(&source)) {
                Ok((told, receipt)) => {
                    if let Some(receipt) = &receipt {
                        self.session.refresh(&mut nodes, &receipt.after);
                    }
                    ends.push(NodeEnd {
                        name,
                        source,
                        ..NodeEnd::new(told, receipt)
                    });
                }
                Err(error) => {
                    let failure = Failure::of(&error);
                    let unchanged = if failure.outcome == Outcome::PartWay {
                        ""
                    } else {
                        " (no file of it was changed)"
                    };
                    eprintln!(
                        "rescue: {name} ({source}): {}{unchanged}: {}",
                        failure.kind, failure.text
                    );
                    ends.push(NodeEnd {
                        name,
                        source,
                        ..NodeEnd::failed(before, failure)
                    });
                }
            }
            self.say("\n");
        }
        let together = if wanted.is_empty() {
            Together::default()
        } else {
            self.together(&mut ends)
        };
        Ok(self.close(ends, together))
    }

    fn wishes(&self) -> SetWishes {
        SetWishes {
            declare_dead: self.command.declare_dead.clone(),
            unproven: self.command.unproven,
        }
    }

    /// What several nodes need as one, after what each of them needed alone: that may have given the space for it.
    fn together(&self, ends: &mut Vec<NodeEnd>) -> Together {
        let mut together = Together::default();
        for check in PLANNERS.iter().map(|(check, _)| *check) {
            let mut done = Vec::new();
            while done.len() < MOST_PLANS
                && let Some(error) = self
                    .next_set(check, &mut done, ends, &mut together)
                    .transpose()
            {
                let Err(error) = error else { continue };
                let failure = Failure::of(&error);
                let unchanged = if failure.outcome == Outcome::PartWay {
                    ""
                } else {
                    " (nothing of it was done)"
                };
                eprintln!(
                    "rescue: {check}: {}{unchanged}: {}",
                    failure.kind, failure.text
                );
                let name = format!("{check} of all nodes");
                ends.push(NodeEnd {
                    name,
                    ..NodeEnd::failed(serde_json::Value::Null, failure)
                });
            }
        }
        together
    }

    /// The next plan that is not among those `done`: each is made anew, on the disks as they are by then. `None` where none is left.
    fn next_set(
        &self,
        check: &str,
        done: &mut Vec<String>,
        ends: &mut [NodeEnd],
        together: &mut Together,
    ) -> Result<Option<()>> {
        let nodes = self
            .session
            .inspect()
            .and_then(|inspection| self.chosen(inspection));
        let nodes = match nodes {
            Ok(nodes) => nodes,
            // Said once, whatever is left to be planned.
            Err(_) if done.last().is_some_and(|last| last.is_empty()) => return Ok(None),
            Err(error) => {
                done.push(String::new());
                return Err(error);
            }
        };
        let wanted = self.session.plan_sets(&nodes, &self.wishes());
        let mut wanted = wanted.into_iter().filter(|wanted| wanted.check == check);
        let Some(wanted) = wanted.find(|wanted| !done.contains(&identity(wanted))) else {
            return Ok(None);
        };
        done.push(identity(&wanted));
        let plan = wanted.plan?;
        let Repair {
            yes,
            accept_loss,
            dry_run,
            json,
            ..
        } = *self.command;
        let planned = set_report::plan_json(&plan);
        match set::carry_out(
            self.session,
            nodes,
            plan,
            Answers {
                yes,
                accept_loss,
                dry_run,
                json,
            },
        )? {
            None => together.planned.push(planned),
            Some(receipt) => {
                together.done.push(set_report::receipt_json(&receipt));
                ends.iter_mut().for_each(|end| end.after_set(&receipt));
            }
        }
        Ok(Some(()))
    }

    /// Repairs of several nodes as one that were cut off come before everything else.
    fn finish_earlier_sets(&self, inspection: Inspection) -> Result<Inspection> {
        let Some(run) = inspection
            .nodes
            .iter()
            .find_map(|node| node.unfinished_set().cloned())
        else {
            return Ok(inspection);
        };
        let names = run.together.join(", ");
        if self.command.dry_run {
            eprintln!(
                "An earlier repair of {names} (run {}) was cut off; `rescue repair` would complete it first.",
                run.id
            );
            return Ok(inspection);
        }
        self.say(&format!(
            "An earlier repair of {names} (run {}) was cut off and has to be completed first.\n",
            run.id
        ));
        if !self.command.yes && !confirm("Complete it?") {
            return Err(declined().into());
        }
        let nodes = inspection
            .nodes
            .into_iter()
            .filter(|node| node.is_part_of(&run))
            .collect();
        let (recovered, inspection) = self
            .session
            .recover_sets(nodes, &self.command.declare_dead)?;
        self.say(&(text::recovered(&recovered) + "\n"));
        Ok(inspection)
    }

    /// What became of each, and the exit code that stands for all.
    fn close(&self, ends: Vec<NodeEnd>, together: Together) -> Outcome {
        let outcome = outcome(&ends);
        if ends.len() > 1 {
            self.say(&summary(
                &ends,
                &typed::with_ca(self.session.sources, &self.settings.ca),
            ));
        }
        if self.command.json {
            let failed = ends.iter().filter_map(NodeEnd::failure_json).collect();
            let receipts = ends.iter().filter_map(|end| end.receipt.clone()).collect();
            let nodes = ends
                .into_iter()
                .map(|end| end.json)
                .filter(|node| !node.is_null())
                .collect();
            println!(
                "{}",
                json::repair_together(
                    nodes,
                    (!self.command.dry_run).then_some(receipts),
                    together,
                    failed
                )
            );
        }
        outcome
    }

    /// Several systems are repaired unattended only when each came from a source of its own: two roots on one disk (an old
    /// installation, a clone) must be told apart by a person.
    fn chosen(&self, inspection: Inspection) -> Result<Vec<NodeReport>> {
        if self.command.node.is_none() {
            refuse_copies(&inspection.nodes)?;
        }
        let ambiguous = inspection.nodes.len() > self.session.sources.len();
        if inspection.nodes.len() == 1
            || self.command.node.is_some()
            || self.command.one_node
            || ambiguous
        {
            return Ok(vec![only_node(inspection, self.command.node.as_deref())?]);
        }
        Ok(inspection.nodes)
    }

    /// `without`: checks whose remedies are not this node's alone.
    fn one(&self, node: NodeReport, without: &[&str]) -> Result<(Told, Option<Receipt>)> {
        let node = self.finish_earlier_run(node)?;
        let plan = self.session.plan_without(&node, without);
        let style = text::Style {
            colours: colours(),
            details: self.command.dry_run,
        };
        let mut told = Told {
            json: json::planned(&node, &plan),
            left: node.needs_repair(),
        };
        self.say(&text::node(&node, self.settings.now, &style));
        self.say(&text::plan_beside(&plan, without, &style));
        if !plan.is_empty() {
            Session::refuse_unready(&node.guest)?;
        }
        if plan.is_empty() || self.command.dry_run {
            self.say(match (plan.is_empty(), without.is_empty()) {
                (true, true) => "Nothing was changed.\n",
                // The plan for all nodes is still to come.
                (true, false) => "",
                (false, _) => "This was a dry run: nothing was changed.\n",
            });
            return Ok((told, None));
        }
        let irreversible = if plan.has_irreversible_steps() {
            " What is freed cannot be brought back."
        } else {
            ""
        };
        if !self.command.yes
            && !confirm(&format!("Carry this out on {}?{irreversible}", node.name()))
        {
            return Err(declined().into());
        }
        let receipt = self.session.repair(node, plan)?;
        self.say(&text::receipt(&receipt, &self.undo_words(&receipt), &style));
        told.json = json::node(&receipt.after);
        Ok((told, Some(receipt)))
    }

    /// How to name this node for `rescue undo`, which takes one node back at a time.
    fn undo_words(&self, receipt: &Receipt) -> String {
        let mut words = match self.session.sources {
            [_] => args::sources_as_typed(self.session.sources),
            _ => typed::guest(&receipt.after.guest),
        };
        if self.command.node.is_some() && self.session.sources.len() == 1 {
            words.push_str(&format!(
                " --node {}",
                shell::quoted(std::path::Path::new(&receipt.node))
            ));
        }
        words
    }

    fn say(&self, text: &str) {
        if !self.command.json {
            print!("{text}");
        }
    }

    /// A repair that was cut off is completed (or discarded) before anything new is planned.
    fn finish_earlier_run(&self, node: NodeReport) -> Result<NodeReport> {
        let Some(run) = node.unfinished_run() else {
            return Ok(node);
        };
        let run = run.id.clone();
        if self.command.dry_run {
            eprintln!(
                "An earlier repair (run {run}) was cut off; `rescue repair` would complete it first."
            );
            return Ok(node);
        }
        self.say(&format!(
            "An earlier repair of {} (run {run}) was cut off and has to be completed first.\n",
            node.name()
        ));
        if !self.command.yes && !confirm("Complete it?") {
            return Err(declined().into());
        }
        let (recovered, node) = self.session.recover(node)?;
        self.say(&(text::recovered(&recovered) + "\n"));
        Ok(node)
    }
}

/// What a plan is known by when it is made a second time: the nodes that it changes, or why there is none.
fn identity(wanted: &Wanted) -> String {
    match &wanted.plan {
        Ok(plan) => plan
            .parts
            .iter()
            .map(|part| part.source.as_str())
            .collect::<Vec<_>>()
            .join("\n"),
        Err(error) => format!("{error:#}"),
    }
}

/// A clone or snapshot beside the disk it was made from: only a person knows which of them is to boot.
fn refuse_copies(nodes: &[NodeReport]) -> Result<()> {
    let identity = |node: &NodeReport| {
        let root = node
            .guest
            .file_systems
            .first()
            .and_then(|fs| fs.uuid.clone());
        (root, node.node.machine_id.value.clone())
    };
    let same = |a: &NodeReport, b: &NodeReport| {
        let ((root_a, machine_a), (root_b, machine_b)) = (identity(a), identity(b));
        let same_disk = (root_a.is_some() && root_a == root_b)
            || (machine_a.is_some() && machine_a == machine_b);
        // Machines made from one template share these without being copies; their names differ.
        same_disk && a.name() == b.name()
    };
    for (index, node) in nodes.iter().enumerate() {
        if let Some(copy) = nodes[..index].iter().find(|earlier| same(earlier, node)) {
            let (a, b) = (&copy.guest.source, &node.guest.source);
            return Err(Refusal::new(
                format!("{a} and {b} are copies of one system (same name, and file system UUID or machine-id)"),
                "which of them is to be repaired cannot be guessed",
                format!("name one with --node {b}, or give only its disks"),
            )
            .into());
        }
    }
    Ok(())
}

fn declined() -> Refusal {
    Refusal::new(
        "the answer was not yes",
        "nothing was changed",
        "run the same command again and answer yes, or add --yes",
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::etcd::operations::guarantee::{Guarantee, Level};
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

    fn end(source: &str) -> NodeEnd {
        let told = Told {
            json: serde_json::Value::Null,
            left: true,
        };
        NodeEnd {
            name: source.to_owned(),
            source: source.to_owned(),
            ..NodeEnd::new(told, None)
        }
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
        let mut ends = [end("a"), end("b")];
        ends.iter_mut().for_each(|end| end.after_set(&receipt));
        assert_eq!(
            ends.each_ref().map(NodeEnd::words),
            ["repaired", "nothing to repair"]
        );
    }
}
