//! `rescue repair SRC…`: plan, ask, apply, verify.

mod node_outcome;

use anyhow::Result;

use super::answers::Answers;
use super::args::{self, Repair, Stop};
use super::set;
use super::terminal::{Terminal, agree, colours, confirm_item, names_of_this_boot};
use super::{Failure, Outcome};
use crate::base::shell;
use crate::finding::{Inspection, NodeReport};
use crate::in_use::read_only;
use crate::node::Role;
use crate::plan::receipt::{Receipt, SetProposal};
use crate::plan::set::{PLANNERS, SetWishes};
use crate::plan::{LeftOut, Plan};
use crate::report::json::Together;
use crate::report::{json, left_out, set as set_report, text};
use crate::session::Session;
use crate::settings::Settings;
use crate::typed;
use node_outcome::{NodeOutcome, NodeOutput, outcome, summary};

/// Plans of one check that one run carries out; each of them is for nodes that belong to no other
/// plan.
const MOST_PLANS: usize = 64;

/// Repairs every node on the sources, one after the other.
pub fn run(command: &Repair) -> Result<Result<Outcome>, Stop> {
    let sources = args::sources(&command.src, &command.root)?;
    let answers = Answers {
        yes: command.yes,
        accept_loss: command.accept_loss,
        dry_run: command.dry_run,
        json: command.json,
    };
    answers.check()?;
    let settings = command.settings();
    args::refuse_no_checks(&settings)?;
    read_only::protect(sources.iter().chain(&settings.ca));
    let session = Session {
        sources: &sources,
        settings: &settings,
        ui: &Terminal,
    };
    let run = RepairRun {
        command,
        answers,
        session: &session,
        settings: &settings,
    };
    Ok(run.run_repair())
}

/// One `rescue repair`: what was asked for, and what it works with.
struct RepairRun<'a> {
    command: &'a Repair,
    answers: Answers,
    session: &'a Session<'a>,
    settings: &'a Settings,
}

impl RepairRun<'_> {
    /// One node after the other, then what several of them need as one.
    fn run_repair(&self) -> Result<Outcome> {
        let inspection = self.finish_earlier_sets(self.session.inspect()?)?;
        let mut nodes = self.chosen(inspection)?;
        let proposals = self.session.plan_sets(&nodes, &self.wishes());
        if nodes.len() == 1 && proposals.is_empty() {
            let (output, receipt) = self.repair_node(nodes.remove(0), &[])?;
            // Alone it has no line in a summary.
            let outcome = NodeOutcome::new(String::new(), String::new(), output, receipt.as_ref());
            return Ok(self.close(vec![outcome], Together::default()));
        }
        let mut outcomes = self.repair_each(nodes, &proposals);
        let together = if proposals.is_empty() {
            Together::default()
        } else {
            self.repair_together(&mut outcomes)
        };
        Ok(self.close(outcomes, together))
    }

    /// Where several are repaired, one that cannot be does not stop the others.
    fn repair_each(
        &self,
        mut nodes: Vec<NodeReport>,
        proposals: &[SetProposal],
    ) -> Vec<NodeOutcome> {
        // Control planes first: what they lend to the others may be what their own repair renews.
        nodes.sort_by_key(|node| node.node.role.value != Some(Role::ControlPlane));
        let mut outcomes = Vec::new();
        while !nodes.is_empty() {
            let node = nodes.remove(0);
            let (name, source) = (node.name().to_owned(), node.guest.source.clone());
            let before = json::node(&node);
            let outcome = match self.repair_node(node, &mended_together(proposals, &source)) {
                Ok((output, receipt)) => {
                    if let Some(receipt) = &receipt {
                        self.session.refresh(&mut nodes, &receipt.after);
                    }
                    NodeOutcome::new(name, source, output, receipt.as_ref())
                }
                Err(error) => {
                    let failure = Failure::of(&error);
                    let who = format!("{name} ({source})");
                    print_failure(&who, &failure, " (no file of it was changed)");
                    NodeOutcome::failed(name, source, before, failure)
                }
            };
            outcomes.push(outcome);
            self.answers.say("\n");
        }
        outcomes
    }

    fn wishes(&self) -> SetWishes {
        SetWishes {
            declare_dead: self.command.declare_dead.clone(),
            unproven: self.command.unproven,
        }
    }

    /// What several nodes need as one, after what each of them needed alone: that may have given
    /// the space for it.
    fn repair_together(&self, outcomes: &mut Vec<NodeOutcome>) -> Together {
        let mut together = Together::default();
        for check in PLANNERS.iter().map(|(check, _)| *check) {
            let mut done = Vec::new();
            while done.len() < MOST_PLANS
                && let Some(result) = self
                    .carry_out_next_set(check, &mut done, outcomes, &mut together)
                    .transpose()
            {
                let Err(error) = result else { continue };
                let failure = Failure::of(&error);
                print_failure(check, &failure, " (nothing of it was done)");
                outcomes.push(NodeOutcome::failed(
                    format!("{check} of all nodes"),
                    String::new(),
                    serde_json::Value::Null,
                    failure,
                ));
            }
        }
        together
    }

    /// Carries out the next plan that is not among those `done`: each is made anew, on the disks as
    /// they are by then. `None` where none is left.
    fn carry_out_next_set(
        &self,
        check: &str,
        done: &mut Vec<String>,
        outcomes: &mut [NodeOutcome],
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
        let mut proposals = self
            .session
            .plan_sets(&nodes, &self.wishes())
            .into_iter()
            .filter(|proposal| proposal.check == check);
        let Some(proposal) = proposals.find(|proposal| !done.contains(&identity(proposal))) else {
            return Ok(None);
        };
        done.push(identity(&proposal));
        let plan = proposal.plan?;
        let planned = set_report::plan_json(&plan);
        match set::carry_out(self.session, nodes, plan, self.answers)? {
            None => together.planned.push(planned),
            Some(receipt) => {
                together.done.push(set_report::receipt_json(&receipt));
                outcomes
                    .iter_mut()
                    .for_each(|outcome| outcome.after_set(&receipt));
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
        if self.answers.dry_run {
            eprintln!(
                "An earlier repair of {names} (run {}) was cut off; `rescue repair` would \
                 complete it first.",
                run.id
            );
            return Ok(inspection);
        }
        self.answers.say(&format!(
            "An earlier repair of {names} (run {}) was cut off and has to be completed first.\n",
            run.id
        ));
        agree(self.answers.yes, "Complete it?")?;
        let nodes = inspection
            .nodes
            .into_iter()
            .filter(|node| node.is_part_of(&run))
            .collect();
        let (recovered, inspection) = self
            .session
            .recover_sets(nodes, &self.command.declare_dead)?;
        self.answers.say(&(text::recovered(&recovered) + "\n"));
        Ok(inspection)
    }

    /// What became of each, and the exit code that stands for all.
    fn close(&self, outcomes: Vec<NodeOutcome>, together: Together) -> Outcome {
        let outcome = outcome(&outcomes);
        if outcomes.len() > 1 {
            self.answers.say(&summary(
                &outcomes,
                &typed::with_ca(self.session.sources, &self.settings.ca),
            ));
        }
        if self.answers.json {
            let failed = outcomes
                .iter()
                .filter_map(NodeOutcome::failure_json)
                .collect();
            let receipts = outcomes
                .iter()
                .filter_map(|outcome| outcome.receipt.clone())
                .collect();
            let nodes = outcomes
                .into_iter()
                .map(|outcome| outcome.json)
                .filter(|node| !node.is_null())
                .collect();
            println!(
                "{}",
                json::repair_together(
                    nodes,
                    (!self.answers.dry_run).then_some(receipts),
                    together,
                    failed
                )
            );
        }
        outcome
    }

    fn chosen(&self, inspection: Inspection) -> Result<Vec<NodeReport>> {
        let name = self.command.node.as_deref();
        self.session
            .choose_nodes(inspection, name, self.command.one_node)
    }

    /// Plans, asks and carries out what one node needs alone. `without`: checks whose remedies are
    /// not this node's alone.
    fn repair_node(
        &self,
        node: NodeReport,
        without: &[&str],
    ) -> Result<(NodeOutput, Option<Receipt>)> {
        let node = self.finish_earlier_run(node)?;
        let style = text::Style {
            colours: colours(),
            details: self.answers.dry_run,
        };
        self.answers.say(&text::node(&node, self.settings, &style));
        let plan = self.plan_asking(&node, without)?;
        let mut output = NodeOutput {
            json: json::planned(&node, &plan),
            left: node.needs_repair(),
        };
        self.answers.say(&text::plan_beside(&plan, without, &style));
        if !plan.is_empty() {
            Session::refuse_unready(&node.guest)?;
        }
        if plan.is_empty() || self.answers.dry_run {
            self.answers
                .say(match (plan.is_empty(), without.is_empty()) {
                    (true, true) => "Nothing was changed.\n",
                    // The plan for all nodes is still to come.
                    (true, false) => "",
                    (false, _) => "This was a dry run: nothing was changed.\n",
                });
            return Ok((output, None));
        }
        let irreversible = if plan.has_irreversible_steps() {
            " What is freed cannot be brought back."
        } else {
            ""
        };
        agree(
            self.answers.yes,
            &format!("Carry this out on {}?{irreversible}", node.name()),
        )?;
        let receipt = self.session.repair(node, plan)?;
        self.answers
            .say(&text::receipt(&receipt, &self.undo_words(&receipt), &style));
        self.answers.say(names_of_this_boot());
        output.json = json::node(&receipt.after);
        Ok((output, Some(receipt)))
    }

    /// The plan of one node. Each remedy that asks first is asked for by itself, before the plan is
    /// shown as a whole; without anybody to ask it is left out.
    fn plan_asking(&self, node: &NodeReport, without: &[&str]) -> Result<Plan> {
        let (mut asked, mut agreed) = (Vec::<LeftOut>::new(), Vec::new());
        let mut plan = self.session.plan_without(node, without, &agreed);
        if self.answers.yes || self.answers.dry_run {
            return Ok(plan);
        }
        let next = |plan: &Plan, asked: &[LeftOut]| {
            let mut items = plan.left_out.iter();
            items.find(|item| !asked.contains(item)).cloned()
        };
        while let Some(item) = next(&plan, &asked) {
            Session::refuse_unready(&node.guest)?;
            self.answers.say(&left_out::question(&item));
            asked.push(item.clone());
            if confirm_item("Do this too?") {
                agreed.push(item);
                // What is agreed to may need more, or make something else needless.
                plan = self.session.plan_without(node, without, &agreed);
            }
        }
        Ok(plan)
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

    /// A repair that was cut off is completed (or discarded) before anything new is planned.
    fn finish_earlier_run(&self, node: NodeReport) -> Result<NodeReport> {
        let Some(run) = node.unfinished_run() else {
            return Ok(node);
        };
        let run = run.id.clone();
        if self.answers.dry_run {
            eprintln!(
                "An earlier repair (run {run}) was cut off; `rescue repair` would complete it \
                 first."
            );
            return Ok(node);
        }
        self.answers.say(&format!(
            "An earlier repair of {} (run {run}) was cut off and has to be completed first.\n",
            node.name()
        ));
        agree(self.answers.yes, "Complete it?")?;
        let (recovered, node) = self.session.recover(node)?;
        self.answers.say(&(text::recovered(&recovered) + "\n"));
        Ok(node)
    }
}

/// Checks whose remedies are not this node's alone: what is mended on several nodes as one is not
/// mended on one of them.
fn mended_together(proposals: &[SetProposal], source: &str) -> Vec<&'static str> {
    let changes_it = |proposal: &&SetProposal| {
        let plan = proposal.plan.as_ref();
        plan.is_ok_and(|plan| plan.parts.iter().any(|part| part.source == source))
    };
    proposals
        .iter()
        .filter(changes_it)
        .map(|proposal| proposal.check)
        .collect()
}

/// `unchanged`: what is promised where nothing was changed.
fn print_failure(who: &str, failure: &Failure, unchanged: &str) {
    let unchanged = if failure.outcome == Outcome::PartWay {
        ""
    } else {
        unchanged
    };
    eprintln!(
        "rescue: {who}: {}{unchanged}: {}",
        failure.kind, failure.text
    );
}

/// What a plan is known by when it is made a second time: the nodes that it changes, or why there
/// is none.
fn identity(proposal: &SetProposal) -> String {
    match &proposal.plan {
        Ok(plan) => plan
            .parts
            .iter()
            .map(|part| part.source.as_str())
            .collect::<Vec<_>>()
            .join("\n"),
        Err(error) => format!("{error:#}"),
    }
}
