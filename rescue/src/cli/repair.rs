//! `rescue repair SRC…`: plan, ask, apply, verify.

use anyhow::Result;

use super::Outcome;
use super::args::{self, Repair, Stop};
use super::terminal::{Terminal, colours, confirm};
use crate::refusal::Refusal;
use crate::report::{json, text};
use crate::session::{Inspection, NodeReport, Receipt, Session, only_node};
use crate::settings::Settings;

/// Repairs every node on the sources, one after the other.
pub fn run(command: &Repair) -> Result<Result<Outcome>, Stop> {
    let sources = args::sources(&command.src, &command.root)?;
    if command.json && !command.yes && !command.dry_run {
        return Err(Stop::Usage(
            "--json cannot ask: add --yes to carry the plan out, or --dry-run to see it".to_owned(),
        ));
    }
    let settings = command.settings();
    let session = Session { sources: &sources, settings: &settings, ui: &Terminal };
    Ok(Conversation { command, session: &session, settings: &settings }.hold())
}

/// What is told of one node.
struct Told {
    json: serde_json::Value,
    left: bool,
}

struct Conversation<'a> {
    command: &'a Repair,
    session: &'a Session<'a>,
    settings: &'a Settings,
}

impl Conversation<'_> {
    fn hold(&self) -> Result<Outcome> {
        let inspection = self.session.inspect()?;
        let (mut nodes, mut receipts, mut left) = (Vec::new(), Vec::new(), false);
        for node in self.chosen(inspection)? {
            let (node, receipt) = self.one(node)?;
            left |= receipt.as_ref().map_or(node.left, |receipt| receipt.after.needs_repair());
            nodes.push(node.json);
            receipts.extend(receipt.as_ref().map(json::receipt));
        }
        if self.command.json {
            println!("{}", json::repair(nodes, (!self.command.dry_run).then_some(receipts)));
        }
        Ok(if left { Outcome::FindingsLeft } else { Outcome::Clean })
    }

    /// Several systems are repaired unattended only when each came from a source of its own: two roots on one disk (an old
    /// installation, a clone) must be told apart by a person.
    fn chosen(&self, inspection: Inspection) -> Result<Vec<NodeReport>> {
        if self.command.node.is_none() {
            refuse_copies(&inspection.nodes)?;
        }
        let ambiguous = inspection.nodes.len() > self.session.sources.len();
        if inspection.nodes.len() == 1 || self.command.node.is_some() || self.command.one_node || ambiguous {
            return Ok(vec![only_node(inspection, self.command.node.as_deref())?]);
        }
        Ok(inspection.nodes)
    }

    fn one(&self, node: NodeReport) -> Result<(Told, Option<Receipt>)> {
        let node = self.finish_earlier_run(node)?;
        let plan = self.session.plan(&node);
        let style = text::Style { colours: colours(), details: self.command.dry_run };
        let mut told = Told { json: json::planned(&node, &plan), left: node.needs_repair() };
        self.say(&text::node(&node, self.settings.now, &style));
        self.say(&text::plan(&plan, &style));
        if plan.is_empty() || self.command.dry_run {
            self.say(if plan.is_empty() {
                "Nothing was changed.\n"
            } else {
                "This was a dry run: nothing was changed.\n"
            });
            return Ok((told, None));
        }
        let irreversible = if plan.has_irreversible_steps() { " What is freed cannot be brought back." } else { "" };
        if !self.command.yes && !confirm(&format!("Carry this out on {}?{irreversible}", node.name())) {
            return Err(declined().into());
        }
        let receipt = self.session.repair(node, plan)?;
        self.say(&text::receipt(&receipt, &args::sources_as_typed(self.session.sources), &style));
        told.json = json::node(&receipt.after);
        Ok((told, Some(receipt)))
    }

    fn say(&self, text: &str) {
        if !self.command.json {
            print!("{text}");
        }
    }

    /// A repair that was cut off is completed (or discarded) before anything new is planned.
    fn finish_earlier_run(&self, node: NodeReport) -> Result<NodeReport> {
        let Some(run) = node.unfinished_run() else { return Ok(node) };
        let run = run.id.clone();
        if self.command.dry_run {
            eprintln!("An earlier repair (run {run}) was cut off; `rescue repair` would complete it first.");
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

/// A clone or snapshot beside the disk it was made from: only a person knows which of them is to boot.
fn refuse_copies(nodes: &[NodeReport]) -> Result<()> {
    let identity = |node: &NodeReport| {
        let root = node.guest.file_systems.first().and_then(|fs| fs.uuid.clone());
        (root, node.node.machine_id.value.clone())
    };
    let same = |a: &NodeReport, b: &NodeReport| {
        let ((root_a, machine_a), (root_b, machine_b)) = (identity(a), identity(b));
        let same_disk = (root_a.is_some() && root_a == root_b) || (machine_a.is_some() && machine_a == machine_b);
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
