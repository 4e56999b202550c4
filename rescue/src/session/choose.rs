//! Which of the nodes found a repair is for.

use anyhow::Result;

use super::{Session, only_node};
use crate::base::refusal::Refusal;
use crate::finding::{Inspection, NodeReport};

impl Session<'_> {
    /// Several systems are repaired unattended only when each came from a source of its own: two
    /// roots on one disk (an old installation, a clone) must be told apart by a person. `name`: of
    /// the node meant; `only_one`: whether several are refused.
    ///
    /// # Errors
    /// A [`Refusal`] (by downcast) where which of them is meant would be a guess.
    pub fn choose_nodes(
        &self,
        inspection: Inspection,
        name: Option<&str>,
        only_one: bool,
    ) -> Result<Vec<NodeReport>> {
        if name.is_none() {
            refuse_copies(&inspection.nodes)?;
        }
        let is_ambiguous = inspection.nodes.len() > self.sources.len();
        if inspection.nodes.len() == 1 || name.is_some() || only_one || is_ambiguous {
            return Ok(vec![only_node(inspection, name)?]);
        }
        Ok(inspection.nodes)
    }
}

/// A clone or snapshot beside the disk it was made from: only a person knows which of them is to
/// boot.
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
                format!(
                    "{a} and {b} are copies of one system (same name, and file system UUID or \
                    machine-id)"
                ),
                "which of them is to be repaired cannot be guessed",
                format!("name one with --node {b}, or give only its disks"),
            )
            .into());
        }
    }
    Ok(())
}
