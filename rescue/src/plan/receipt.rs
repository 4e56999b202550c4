//! What became of a plan.

use std::time::Duration;

use anyhow::Result;

use super::LeftOut;
use super::etcd::stands::Stands;
use super::set::SetPlan;
use crate::checks::verdict::Verdict;
use crate::finding::{Inspection, NodeReport};
use crate::fsck;
use crate::guest::FileSystem;
use crate::repair::restart::Restart;
use crate::repair::transaction::Applied;
use crate::space::headroom::Headroom;

/// What a repair did.
#[derive(Debug)]
pub struct Receipt {
    /// The node's name.
    pub node: String,
    /// Run identifier, for `rescue undo --run`.
    pub run: String,
    /// One line per remedy.
    pub done: Vec<String>,
    /// What the plan left out because nobody asked for it.
    pub left_out: Vec<LeftOut>,
    /// What the transaction did.
    pub applied: Applied,
    /// What the checkers said of the file systems before anything was written; empty where they
    /// were not asked.
    pub checked: Vec<fsck::Verdict>,
    /// File systems before, root first.
    pub before: Vec<FileSystem>,
    /// Findings that counted before.
    pub findings_before: usize,
    /// The node as it is now.
    pub after: NodeReport,
    /// What can be said of the node as it is now.
    pub verdict: Verdict,
    /// What is free against each limit of the kubelet.
    pub headroom: Vec<Headroom>,
    /// On a running node: what to restart. `None` for one that is powered off.
    pub restart: Option<Restart>,
    /// From confirmation to receipt.
    pub took: Duration,
}

/// What was done to several nodes as one.
#[derive(Debug)]
pub struct SetReceipt {
    /// Run identifier, for `rescue undo --run` with the same disks.
    pub run: String,
    /// The plan that was carried out; nothing is left of its changes.
    pub plan: SetPlan,
    /// What the transaction did to each of the plan's nodes, in their order.
    pub applied: Vec<Applied>,
    /// Everything as it is now.
    pub after: Inspection,
    /// How each etcd member stands now.
    pub etcd: Vec<Stands>,
    /// From confirmation to receipt.
    pub took: Duration,
}

/// A plan for several nodes, and the check whose remedies it replaces.
#[derive(Debug)]
pub struct SetProposal {
    /// Identifier of the check.
    pub check: &'static str,
    /// What is to be done, or why it cannot be.
    pub plan: Result<SetPlan>,
}
