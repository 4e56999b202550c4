//! The members that a command of `rescue etcd` works on, and the nodes they are on where these are to be changed.

use anyhow::Result;

use super::making::Manner;
use super::sources::Sources;
use crate::cli::terminal::Terminal;
use crate::cli::unfinished;
use crate::etcd::read::status::Found;
use crate::finding::NodeReport;
use crate::in_use::read_only;
use crate::session::Session;

/// Members and nodes, open for reading.
#[derive(Debug, Default)]
pub struct Opened {
    /// The members, in the order of the disks.
    pub found: Vec<Found>,
    /// All nodes on the disks; none where only members are read.
    pub nodes: Vec<NodeReport>,
}

impl Opened {
    /// Looks at what was named. Disks that are to be changed are read-only from here on, until the user agrees.
    ///
    /// # Errors
    /// As of [`Sources::members`]; a [`crate::base::refusal::Refusal`] where an earlier repair was cut off.
    pub fn look(sources: &Sources, manner: &Manner<'_>) -> Result<Self> {
        if manner.output.is_some() || sources.disks.is_empty() {
            return Ok(Self {
                found: sources.members()?.0,
                nodes: Vec::new(),
            });
        }
        read_only::protect(&sources.disks);
        let settings = manner.settings();
        let session = Session {
            sources: &sources.disks,
            settings: &settings,
            ui: &Terminal,
        };
        let nodes = session.inspect()?.nodes;
        nodes
            .iter()
            .try_for_each(|node| unfinished::refuse(node, &session))?;
        Ok(Self {
            found: sources
                .members_on(nodes.iter().map(|node| (&node.guest, &node.node)))?
                .0,
            nodes,
        })
    }
}
