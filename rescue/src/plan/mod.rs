//! Runs the checks one after the other on a tree that already holds what earlier remedies will have done, and proves the result:
//! on the planned tree the same checks must be silent, or the plan says what will be left.

pub mod etcd;
pub mod receipt;
pub mod set;

use std::rc::Rc;

use crate::base::severity::Severity;
use crate::change::Planned;
use crate::change::{Change, Prepared, secret};
use crate::checks::catalogue;
use crate::finding::{Check, Context, Finding, Remedy};
use crate::guest::{Guest, GuestPath};
use crate::node::Node;
use crate::settings::Settings;

/// One remedy that the plan will carry out.
#[derive(Debug, Clone)]
pub struct Step {
    /// The check that asked for it.
    pub check: &'static str,
    /// What it mends.
    pub finding: String,
    /// The remedy.
    pub remedy: Rc<dyn Remedy>,
    /// Number of files it changes or frees.
    pub files: usize,
    /// What it takes away from files that will hold a secret, one line each; see [`secret::remarks`].
    pub remarks: Vec<String>,
}

/// A remedy that could not be worked out.
#[derive(Debug, Clone)]
pub struct Dropped {
    /// The remedy's summary.
    pub summary: String,
    /// Why not, with the cause chain.
    pub reason: String,
}

/// What a repair will do, worked out down to the bytes but not yet written anywhere.
#[derive(Debug, Clone, Default)]
pub struct Plan {
    /// In the order they will be done.
    pub steps: Vec<Step>,
    /// Remedies left out because they failed to prepare.
    pub dropped: Vec<Dropped>,
    /// All freeing and changes, in order.
    pub prepared: Prepared,
    /// What the checks still say on the planned tree.
    pub left: Vec<Finding>,
}

impl Plan {
    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }

    /// Whether something of it cannot be undone.
    pub fn has_irreversible_steps(&self) -> bool {
        self.steps.iter().any(|step| !step.remedy.can_be_undone())
    }
}

/// The checks that the settings ask for.
pub fn selected_checks(settings: &Settings) -> Vec<Box<dyn Check>> {
    catalogue()
        .into_iter()
        .filter(|check| settings.only.is_empty() || settings.only.iter().any(|id| id == check.id()))
        .filter(|check| !settings.skip.iter().any(|id| id == check.id()))
        .collect()
}

/// All findings of the selected checks, worst first. A check that fails becomes a finding of its own.
pub fn findings(context: &Context<'_>) -> Vec<Finding> {
    findings_of(context, &selected_checks(context.settings))
}

fn findings_of(context: &Context<'_>, checks: &[Box<dyn Check>]) -> Vec<Finding> {
    let mut findings: Vec<Finding> = checks
        .iter()
        .flat_map(|check| run(check.as_ref(), context))
        .collect();
    findings.sort_by_key(|finding| std::cmp::Reverse(finding.severity));
    findings
}

fn run(check: &dyn Check, context: &Context<'_>) -> Vec<Finding> {
    let found = check.run(context).unwrap_or_else(|error| {
        vec![
            Finding::new(
                check.id(),
                Severity::WillBreak,
                format!("{} could not be checked", check.id()),
            )
            .with_evidence("", format!("{error:#}")),
        ]
    });
    found
        .into_iter()
        .map(|finding| with_doubts(finding, context.guest))
        .collect()
}

/// Says of evidence below a mount point without its file system that the node will see something else there.
fn with_doubts(mut finding: Finding, guest: &Guest) -> Finding {
    let mut doubts: Vec<String> = Vec::new();
    for evidence in finding
        .evidence
        .iter()
        .filter(|evidence| evidence.path.starts_with('/'))
    {
        if let Some(missing) = guest.hidden(&GuestPath::new(&evidence.path)) {
            let doubt = format!(
                "The node will see another {}: {}. Give that disk too.",
                missing.at, missing.why
            );
            if !doubts.contains(&doubt) {
                doubts.push(doubt);
            }
        }
    }
    finding.advice.extend(doubts);
    finding
}

/// Why what was prepared must not be written: the node would not see it.
fn hidden(guest: &Guest, prepared: &Prepared) -> Option<String> {
    let freed = prepared
        .free
        .iter()
        .map(|action| GuestPath::from(&action.path));
    let changed = prepared
        .changes
        .iter()
        .map(|change| GuestPath::from(Change::path(change)));
    freed.chain(changed).find_map(|path| {
        let missing = guest.hidden(&path)?;
        Some(format!(
            "{path} would be hidden at the next boot: {}; give that disk too",
            missing.why
        ))
    })
}

/// Works out the plan for one guest.
pub fn plan(context: &Context<'_>) -> Plan {
    plan_of(context, &selected_checks(context.settings))
}

/// Works out what these checks' remedies come to.
pub fn plan_of(context: &Context<'_>, checks: &[Box<dyn Check>]) -> Plan {
    let guest = context.guest.clone();
    let mut draft = Draft {
        plan: Plan::default(),
        base: guest.clone(),
        guest,
        node: context.node.clone(),
        context: *context,
    };
    for check in checks {
        let found = run(check.as_ref(), &draft.context());
        for finding in found {
            for remedy in &finding.remedies {
                draft.add(&finding, remedy);
            }
        }
    }
    if draft
        .plan
        .steps
        .iter()
        .all(|step| step.remedy.is_incidental())
    {
        let Draft { plan, context, .. } = draft;
        return Plan {
            dropped: plan.dropped,
            left: findings_of(&context, checks),
            ..Plan::default()
        };
    }
    let left = findings_of(&draft.context(), checks);
    Plan { left, ..draft.plan }
}

/// Works out a plan of remedies that no check asked for but the user.
pub fn of(context: &Context<'_>, asked_for: &Finding) -> Plan {
    let guest = context.guest.clone();
    let mut draft = Draft {
        plan: Plan::default(),
        base: guest.clone(),
        guest,
        node: context.node.clone(),
        context: *context,
    };
    for remedy in &asked_for.remedies {
        draft.add(asked_for, remedy);
    }
    let left = findings(&draft.context());
    Plan { left, ..draft.plan }
}

/// A plan being made, and the guest as it will be after what is planned so far.
struct Draft<'a> {
    plan: Plan,
    base: Guest,
    guest: Guest,
    node: Node,
    /// As it was given, with the guest before the plan.
    context: Context<'a>,
}

impl Draft<'_> {
    fn context(&self) -> Context<'_> {
        Context {
            guest: &self.guest,
            node: &self.node,
            ..self.context
        }
    }

    fn add(&mut self, finding: &Finding, remedy: &Rc<dyn Remedy>) {
        let attempt = remedy.prepare(&self.context()).and_then(|prepared| {
            if let Some(why) = hidden(&self.guest, &prepared) {
                anyhow::bail!(why);
            }
            let mut all = self.plan.prepared.clone();
            all.free.extend(prepared.free.iter().cloned());
            all.changes.extend(prepared.changes.iter().cloned());
            let guest = self.planned(&all)?;
            Ok((prepared, all, guest))
        });
        match attempt {
            Ok((Prepared { free, changes }, ..)) if free.is_empty() && changes.is_empty() => {}
            Ok((prepared, all, guest)) => {
                let files = prepared.free.len() + prepared.changes.len();
                let remarks = self.remarks(&prepared);
                self.node = self.node.read_again(&guest);
                self.guest = guest;
                self.plan.prepared = all;
                let (finding, check) = (finding.title.clone(), finding.check);
                self.plan.steps.push(Step {
                    check,
                    finding,
                    remedy: Rc::clone(remedy),
                    files,
                    remarks,
                });
            }
            Err(error) => {
                self.plan.dropped.push(Dropped {
                    summary: remedy.summary(),
                    reason: format!("{error:#}"),
                });
            }
        }
    }

    /// What no earlier step has said.
    fn remarks(&self, prepared: &Prepared) -> Vec<String> {
        let mut new: Vec<String> = Vec::new();
        for line in prepared
            .changes
            .iter()
            .flat_map(|change| secret::remarks(&self.guest, change))
        {
            if !new.contains(&line)
                && !self
                    .plan
                    .steps
                    .iter()
                    .any(|step| step.remarks.contains(&line))
            {
                new.push(line);
            }
        }
        new
    }

    fn planned(&self, prepared: &Prepared) -> anyhow::Result<Guest> {
        let mut tree = Planned::over(self.base.tree(), self.context.settings.now.unix_timestamp());
        for action in &prepared.free {
            tree.free(action)?;
        }
        for change in &prepared.changes {
            tree.apply(change)?;
        }
        let mut guest = self.base.with_tree(Rc::new(tree));
        let usages = crate::space::usage_after(&self.base, &prepared.free);
        for (file_system, usage) in guest.file_systems.iter_mut().zip(usages) {
            file_system.usage = usage;
        }
        Ok(guest)
    }
}
