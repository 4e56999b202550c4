//! A plan that spans several nodes: shown once, with what it promises and what may be lost, and
//! asked for once.

use anyhow::Result;

use crate::base::ui::Ui;
use crate::change::Change;
use crate::etcd::operations::guarantee::Guarantee;
use crate::finding::NodeReport;

/// What several nodes need together.
#[derive(Debug, Clone)]
pub struct SetPlan {
    /// One line that begins with a verb: "rebuild etcd on m1, m2 and m3 from the log of m2".
    pub summary: String,
    /// What it promises.
    pub guarantee: Guarantee,
    /// Why nothing smaller will do, one sentence each.
    pub why: Vec<String>,
    /// What else should be known, in sentences.
    pub notes: Vec<String>,
    /// What becomes of each node that is changed.
    pub parts: Vec<SetPart>,
    /// What to do after the nodes have booted, one sentence each.
    pub afterwards: Vec<String>,
}

/// What becomes of one of the nodes.
#[derive(Debug, Clone)]
pub struct SetPart {
    /// [`crate::guest::Guest::source`] of the node.
    pub source: String,
    /// The node's name.
    pub name: String,
    /// One line each that begins with a verb.
    pub details: Vec<String>,
    /// The changes. A folder that is replaced is fenced first, by itself.
    pub changes: Vec<Change>,
}

/// What the user allows such a plan to do.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SetWishes {
    /// Members that are given up for good although their disks are not at hand.
    pub declare_dead: Vec<String>,
    /// Versions may be repaired that no repair has been proved on.
    pub unproven: bool,
}

/// Looks at all nodes at once, and plans for those that belong together. Nothing where they need
/// nothing together; an error, mostly a [`crate::base::refusal::Refusal`], where something must be
/// done and cannot be. One that cannot be done says nothing against the others.
pub type Planner = fn(&[NodeReport], &SetWishes, &dyn Ui) -> Vec<Result<SetPlan>>;

/// Those that `rescue repair` asks, each with the check whose remedies it replaces on the nodes
/// that it changes.
pub const PLANNERS: &[(&str, Planner)] = &[("etcd", crate::plan::etcd::plan_sets)];
