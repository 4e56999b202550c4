//! The part of a session that changes several nodes as one.

use crate::plan::receipt::{SetProposal, SetReceipt};
use std::time::Instant;

use anyhow::{Context as _, Result};

use super::{PartWay, Session};
use crate::base::refusal::Refusal;
use crate::finding::{Inspection, NodeReport};
use crate::guest::{Guest, GuestPath};
use crate::plan::etcd::stands::stands;
use crate::plan::set::{PLANNERS, SetPart, SetPlan, SetWishes};
use crate::repair::set::{self, Part};
use crate::repair::transaction::{Recovered, RunInfo};
use crate::repair::undo::Undone;
use crate::repair::undo_look;
use crate::repair::write_mount::WritableGuest;

impl Session<'_> {
    /// What all these nodes need together, of the checks that were asked for.
    pub fn plan_sets(&self, nodes: &[NodeReport], wishes: &SetWishes) -> Vec<SetProposal> {
        let is_asked = |check: &str| self.settings.asks_for(check);
        let planners = PLANNERS.iter().filter(|(check, _)| is_asked(check));
        let proposals = planners.flat_map(|&(check, plan)| {
            plan(nodes, wishes, self.ui)
                .into_iter()
                .map(move |plan| SetProposal { check, plan })
        });
        proposals.collect()
    }

    /// Whether all disks that a plan changes may be written to, and what is written there will be
    /// seen by the nodes.
    ///
    /// # Errors
    /// A refusal (by downcast) that names the node.
    pub fn refuse_unready_set(nodes: &[NodeReport], plan: &SetPlan) -> Result<()> {
        for part in &plan.parts {
            let node = nodes.iter().find(|node| node.guest.source == part.source);
            let node = node
                .with_context(|| format!("{} is not among the nodes that were given", part.name))?;
            let what = || format!("nothing was changed on any disk, because of {}", part.name);
            Self::refuse_unready(&node.guest).with_context(what)?;
            let paths = part
                .changes
                .iter()
                .map(|change| GuestPath::from(change.path()));
            if let Some(missing) = paths
                .into_iter()
                .find_map(|path| node.guest.hidden(&path).cloned())
            {
                let refusal = Refusal::new(
                    format!("{} is not there: {}", missing.at, missing.why),
                    "what is written there now would be hidden at the next boot",
                    "give the disk that holds it too",
                );
                return Err(refusal).with_context(what);
            }
        }
        Ok(())
    }

    /// Carries out a plan for several nodes and inspects all of them again. Nodes that are not
    /// changed stay open, for what is read from them.
    ///
    /// # Errors
    /// A refusal (by downcast) where nothing was changed on any disk; otherwise what says that
    /// something was.
    pub fn repair_set(&self, nodes: Vec<NodeReport>, plan: SetPlan) -> Result<SetReceipt> {
        let started = Instant::now();
        Self::refuse_unready_set(&nodes, &plan)?;
        let SetPlan { summary, parts, .. } = &plan;
        let (changed, others): (Vec<NodeReport>, Vec<NodeReport>) = nodes
            .into_iter()
            .partition(|node| parts.iter().any(|part| part.source == node.guest.source));
        let closed = close(changed)?;
        let read: Vec<&Guest> = others.iter().map(|node| &node.guest).collect();
        let in_order = parts.iter().map(|part| {
            let guest = closed.iter().find(|guest| guest.source == part.source);
            guest.with_context(|| format!("{} is not among the nodes that were given", part.name))
        });
        let in_order: Vec<&Guest> = in_order.collect::<Result<_>>()?;
        let writable = self.open_all(in_order)?;
        let info = RunInfo::new(self.settings.now, summaries(summary, parts));
        let changes = parts.iter().zip(&writable).map(|(part, guest)| Part {
            guest,
            name: part.name.clone(),
            changes: part.changes.clone(),
        });
        let applied = set::apply(changes.collect(), &read, &info, self.ui)?;
        close_all(writable)?;
        drop(read);
        drop(others);
        let after = self
            .inspect()
            .context("the repair is done, but inspecting the nodes again failed");
        let after = after.map_err(PartWay::wrap)?;
        let etcd = stands(&after.nodes, self.ui);
        let parts = plan
            .parts
            .into_iter()
            .map(|part| SetPart {
                changes: Vec::new(),
                ..part
            })
            .collect();
        let plan = SetPlan { parts, ..plan };
        Ok(SetReceipt {
            run: info.id,
            plan,
            applied,
            after,
            etcd,
            took: started.elapsed(),
        })
    }

    /// Finishes the runs of several nodes that were cut off, and looks again. Nodes named in `dead`
    /// are lost for good.
    ///
    /// # Errors
    /// As of [`Session::repair_set`].
    pub fn recover_sets(
        &self,
        nodes: Vec<NodeReport>,
        dead: &[String],
    ) -> Result<(Recovered, Inspection)> {
        let closed = close(nodes)?;
        let writable = self.open_all(&closed)?;
        let guests: Vec<&WritableGuest> = writable.iter().collect();
        let recovered =
            set::recover_without(&guests, dead, self.ui).map_err(PartWay::unless_refused)?;
        close_all(writable)?;
        Ok((recovered, self.inspect().map_err(PartWay::wrap)?))
    }

    /// Takes a run back on all of its nodes, but for those in `dead`, which are lost for good.
    ///
    /// # Errors
    /// As of [`Session::repair_set`].
    pub fn undo_set(
        &self,
        nodes: Vec<NodeReport>,
        dead: &[String],
        run: &str,
    ) -> Result<Vec<(String, Undone)>> {
        for node in &nodes {
            let of = || {
                format!(
                    "nothing is put back on any disk, because of {}",
                    node.name()
                )
            };
            undo_look::refuse_drifted(&node.guest, Some(run)).with_context(of)?;
        }
        let closed = close(nodes)?;
        let writable = self.open_all(&closed)?;
        let guests: Vec<&WritableGuest> = writable.iter().collect();
        let undone =
            set::undo_without(&guests, dead, run, self.ui).map_err(PartWay::unless_refused)?;
        close_all(writable)?;
        Ok(undone)
    }

    fn open_all<'g>(
        &self,
        closed: impl IntoIterator<Item = &'g Guest>,
    ) -> Result<Vec<WritableGuest>> {
        let keep_in = self.keep_in()?;
        let open = |guest: &Guest| Ok(self.open_for_writing(guest)?.keeping_in(keep_in.clone()));
        closed.into_iter().map(open).collect()
    }
}

/// Closes the sources of nodes that are to be written to, once it is known that all of them may be.
fn close(nodes: Vec<NodeReport>) -> Result<Vec<Guest>> {
    for node in &nodes {
        let what = || {
            format!(
                "nothing was changed on any disk, because of {}",
                node.name()
            )
        };
        Session::refuse_unready(&node.guest).with_context(what)?;
    }
    Ok(nodes.into_iter().map(|node| node.guest.close()).collect())
}

fn close_all(writable: Vec<WritableGuest>) -> Result<()> {
    for guest in writable {
        guest
            .close()
            .context("all is done, but unmounting failed")
            .map_err(PartWay::wrap)?;
    }
    Ok(())
}

/// What every node's record says of it.
fn summaries(summary: &str, parts: &[SetPart]) -> Vec<String> {
    let details = parts.iter().flat_map(|part| {
        part.details
            .iter()
            .map(|detail| format!("{}: {detail}", part.name))
    });
    std::iter::once(summary.to_owned()).chain(details).collect()
}
