//! Runs the checks one after the other on a tree that already holds what earlier remedies will have
//! done, and proves the result: on the planned tree the same checks must be silent, or the plan
//! says what will be left.

mod draft;
pub mod etcd;
pub mod receipt;
pub mod set;

use std::rc::Rc;

use crate::change::{Change, Prepared};
use crate::checks::CATALOGUE;
use crate::finding::{Check, Context, Finding, Mode, Remedy};
use crate::guest::{Guest, GuestPath};
use crate::settings::Settings;

use draft::Draft;

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
    /// What it takes away from files that will hold a secret, one line each; see
    /// [`secret::remarks`].
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
pub fn selected_checks(settings: &Settings) -> Vec<Check> {
    let is_asked = |check: &&Check| {
        let named = |ids: &[String]| ids.iter().any(|id| id == check.id);
        (settings.only.is_empty() || named(&settings.only)) && !named(&settings.skip)
    };
    CATALOGUE.iter().filter(is_asked).copied().collect()
}

/// All findings of the selected checks, worst first. A check that fails becomes a finding of its
/// own.
pub fn findings(context: &Context<'_>) -> Vec<Finding> {
    findings_of(context, &selected_checks(context.settings))
}

fn findings_of(context: &Context<'_>, checks: &[Check]) -> Vec<Finding> {
    let mut findings: Vec<Finding> = checks
        .iter()
        .flat_map(|check| run(check, context))
        .collect();
    findings.sort_by_key(|finding| std::cmp::Reverse(finding.severity));
    findings
}

fn run(check: &Check, context: &Context<'_>) -> Vec<Finding> {
    if !check.is_for(context) {
        return Vec::new();
    }
    let found = (check.run)(context).unwrap_or_else(|error| vec![unchecked(check, &error)]);
    found
        .into_iter()
        .map(|finding| with_doubts(finding, context.guest))
        .collect()
}

/// What a check that fails is reported as: nothing was looked at, so nothing may be claimed.
fn unchecked(check: &Check, error: &anyhow::Error) -> Finding {
    let mode = Mode::will_break(check.id, "the check itself failed");
    Finding::new(mode, format!("{} could not be checked", check.id))
        .with_evidence("", format!("{error:#}"))
}

/// Says of evidence below a mount point without its file system that the node will see something
/// else there.
fn with_doubts(mut finding: Finding, guest: &Guest) -> Finding {
    let mut doubts: Vec<String> = Vec::new();
    for at in finding.evidence.iter().filter_map(|seen| seen.at.as_ref()) {
        let Some(missing) = guest.hidden(&at.path) else {
            continue;
        };
        let doubt = format!(
            "The node will see another {}: {}. Give that disk too.",
            missing.at, missing.why
        );
        if !doubts.contains(&doubt) {
            doubts.push(doubt);
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
pub fn plan_of(context: &Context<'_>, checks: &[Check]) -> Plan {
    let mut draft = Draft::new(context);
    for check in checks {
        let found = run(check, &draft.context());
        for finding in found {
            for remedy in &finding.remedies {
                draft.add(&finding, remedy);
            }
        }
    }
    let steps = &draft.plan.steps;
    if steps.iter().all(|step| step.remedy.is_incidental()) {
        return Plan {
            dropped: draft.plan.dropped,
            left: findings_of(context, checks),
            ..Plan::default()
        };
    }
    let left = findings_of(&draft.context(), checks);
    Plan { left, ..draft.plan }
}

/// Works out a plan of remedies that no check asked for but the user.
pub fn of(context: &Context<'_>, asked_for: &Finding) -> Plan {
    let mut draft = Draft::new(context);
    for remedy in &asked_for.remedies {
        draft.add(asked_for, remedy);
    }
    let left = findings(&draft.context());
    Plan { left, ..draft.plan }
}
