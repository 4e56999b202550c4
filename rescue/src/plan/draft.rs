//! A plan being made: each remedy is worked out on the guest as it will be after those before it.

use std::rc::Rc;

use anyhow::{Result, bail};

use super::{Dropped, LeftOut, Plan, Step, hidden};
use crate::change::{Planned, Prepared, secret};
use crate::finding::{Context, Facts, Finding, Remedy};
use crate::guest::Guest;
use crate::node::Node;
use crate::space::usage_after;

/// The plan so far, and the guest as it will be after it.
pub(super) struct Draft<'a> {
    pub(super) plan: Plan,
    /// What is planned, over the tree as it is. Each change is applied once.
    tree: Planned,
    guest: Guest,
    node: Node,
    facts: Facts,
    /// As it was given, with the guest before the plan.
    given: Context<'a>,
}

/// One remedy, worked out.
struct Attempt {
    prepared: Prepared,
    tree: Planned,
}

impl<'a> Draft<'a> {
    pub(super) fn new(given: &Context<'a>) -> Self {
        let now = given.settings.now.unix_timestamp();
        Self {
            plan: Plan::default(),
            tree: Planned::over(given.guest.tree(), now),
            guest: given.guest.clone(),
            node: given.node.clone(),
            facts: Facts::default(),
            given: *given,
        }
    }

    /// The context of whatever is worked out next.
    pub(super) fn context(&self) -> Context<'_> {
        Context {
            guest: &self.guest,
            node: &self.node,
            // Until something is planned, what was read of the disk as it is still holds.
            facts: if self.plan.prepared.is_empty() {
                self.given.facts
            } else {
                &self.facts
            },
            ..self.given
        }
    }

    /// Adds a remedy, or says why it is left out.
    pub(super) fn add(&mut self, finding: &Finding, remedy: &Rc<dyn Remedy>) {
        match self.attempt(remedy.as_ref()) {
            Ok(attempt) if attempt.prepared.is_empty() => {}
            Ok(attempt) => self.accept(finding, remedy, attempt),
            Err(error) => self.drop_remedy(remedy.as_ref(), &error),
        }
    }

    /// Leaves out a remedy that nobody asked for. It is worked out all the same: what cannot be done
    /// must not be offered.
    pub(super) fn leave_out(&mut self, finding: &Finding, remedy: &dyn Remedy) {
        match self.attempt(remedy) {
            Ok(attempt) if attempt.prepared.is_empty() => {}
            Ok(_) => {
                let item = LeftOut::new(finding, remedy);
                if !self.plan.left_out.contains(&item) {
                    self.plan.left_out.push(item);
                }
            }
            Err(error) => self.drop_remedy(remedy, &error),
        }
    }

    fn drop_remedy(&mut self, remedy: &dyn Remedy, error: &anyhow::Error) {
        self.plan.dropped.push(Dropped {
            summary: remedy.summary(),
            reason: format!("{error:#}"),
        });
    }

    fn attempt(&self, remedy: &dyn Remedy) -> Result<Attempt> {
        let prepared = remedy.prepare(&self.context())?;
        if let Some(why) = hidden(&self.guest, &prepared) {
            bail!(why);
        }
        // A copy: of a remedy that fails half-way nothing may stay.
        let mut tree = self.tree.clone();
        for action in &prepared.free {
            tree.free(action)?;
        }
        for change in &prepared.changes {
            tree.apply(change)?;
        }
        Ok(Attempt { prepared, tree })
    }

    fn accept(&mut self, finding: &Finding, remedy: &Rc<dyn Remedy>, attempt: Attempt) {
        let Attempt { prepared, tree } = attempt;
        self.plan.steps.push(Step {
            check: finding.check(),
            finding: finding.title.clone(),
            remedy: Rc::clone(remedy),
            files: prepared.free.len() + prepared.changes.len(),
            remarks: self.remarks(&prepared),
        });
        let is_freed = !prepared.free.is_empty();
        self.plan.prepared.free.extend(prepared.free);
        self.plan.prepared.changes.extend(prepared.changes);
        let usages = is_freed.then(|| usage_after(self.given.guest, &self.plan.prepared.free));
        self.guest = self.guest.with_tree(Rc::new(tree.clone()));
        for (file_system, usage) in self
            .guest
            .file_systems
            .iter_mut()
            .zip(usages.into_iter().flatten())
        {
            file_system.usage = usage;
        }
        self.tree = tree;
        self.node = self.node.read_again(&self.guest);
        self.facts = Facts::default();
    }

    /// What no earlier step has said.
    fn remarks(&self, prepared: &Prepared) -> Vec<String> {
        let is_said = |line: &String| {
            let steps = &self.plan.steps;
            steps.iter().any(|step| step.remarks.contains(line))
        };
        let mut new: Vec<String> = Vec::new();
        let changes = prepared.changes.iter();
        for line in changes.flat_map(|change| secret::remarks(&self.guest, change)) {
            if !new.contains(&line) && !is_said(&line) {
                new.push(line);
            }
        }
        new
    }
}
