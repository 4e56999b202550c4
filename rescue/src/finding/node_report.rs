//! One node as it was seen, and all that was seen in one run.

use std::rc::Rc;

use super::{Context, Facts, Finding};
use crate::base::severity::Severity;
use crate::base::ui::Ui;
use crate::disk::Leftover;
use crate::guest::Guest;
use crate::node::Node;
use crate::pki::listing::Row;
use crate::pki::peer::Peer;
use crate::pki::strays::Stray;
use crate::pki::trust::Party;
use crate::repair::runs::{RunState, RunSummary};
use crate::settings::Settings;

/// One node as it was seen.
#[derive(Debug)]
pub struct NodeReport {
    /// The powered-off system.
    pub guest: Guest,
    /// Facts.
    pub node: Node,
    /// What the checks say, worst first.
    pub findings: Vec<Finding>,
    /// Its certificates, for the table.
    pub certificates: Vec<Row>,
    /// Files among them that nothing names.
    pub unreferenced: Vec<Stray>,
    /// Earlier repairs of this node, oldest first.
    pub runs: Vec<RunSummary>,
    /// The other nodes of the run.
    pub peers: Vec<Rc<Peer>>,
    /// What its disk proves to the others.
    pub party: Party,
    /// Whether a systemd service starts an etcd member here, without Kubernetes: an external etcd,
    /// of kubespray's or of one's own. Looked for only on systems without Kubernetes.
    pub is_external_etcd: bool,
}

impl NodeReport {
    /// What the checks and remedies look at.
    pub fn context<'a>(
        &'a self,
        settings: &'a Settings,
        ui: &'a dyn Ui,
        facts: &'a Facts,
    ) -> Context<'a> {
        Context {
            guest: &self.guest,
            node: &self.node,
            settings,
            peers: &self.peers,
            ui,
            facts,
        }
    }

    /// How people call it: the Node object's name, else the hostname, else the source.
    pub fn name(&self) -> &str {
        self.node.name(&self.guest.source)
    }

    /// Whether something is left that counts for the exit code: a finding, or a repair that was cut
    /// off.
    pub fn needs_repair(&self) -> bool {
        self.findings.iter().any(counts) || self.unfinished_run().is_some()
    }

    /// An earlier repair of several nodes, this one among them, that was cut off.
    pub fn unfinished_set(&self) -> Option<&RunSummary> {
        let unfinished = [
            RunState::HalfWay,
            RunState::NotCommitted,
            RunState::HalfUndone,
        ];
        self.runs
            .iter()
            .find(|run| !run.together.is_empty() && unfinished.contains(&run.state))
    }

    /// Whether it is one of the nodes that a run changes together.
    pub fn is_part_of(&self, run: &RunSummary) -> bool {
        self.runs.iter().any(|own| own.id == run.id)
            || run.together.iter().any(|name| name == self.name())
    }

    /// The earlier repair that was cut off, if there is one.
    pub fn unfinished_run(&self) -> Option<&RunSummary> {
        let unfinished = [
            RunState::HalfWay,
            RunState::NotCommitted,
            RunState::HalfUndone,
        ];
        self.runs.iter().find(|run| unfinished.contains(&run.state))
    }
}

/// Whether a finding counts for the exit code: notes do not.
pub fn counts(finding: &Finding) -> bool {
    finding.severity > Severity::Note
}

/// Everything that was seen on the sources.
#[derive(Debug)]
pub struct Inspection {
    /// The nodes.
    pub nodes: Vec<NodeReport>,
    /// What belongs to none of them.
    pub leftovers: Vec<Leftover>,
}
