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

/// A remedy that could be carried out and is not: what it changes may be wanted as it is, and nobody
/// asked for it ([`Remedy::asks_first`]).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeftOut {
    /// What it would mend.
    pub mode: Mode,
    /// The finding's title.
    pub finding: String,
    /// The remedy's kind, for JSON.
    pub kind: &'static str,
    /// The remedy in one line.
    pub summary: String,
    /// Further lines of the remedy.
    pub details: Vec<String>,
}

impl LeftOut {
    fn new(finding: &Finding, remedy: &dyn Remedy) -> Self {
        Self {
            mode: finding.mode,
            finding: finding.title.clone(),
            kind: remedy.kind(),
            summary: remedy.summary(),
            details: remedy.details(),
        }
    }

    fn is_of(&self, finding: &Finding, remedy: &dyn Remedy) -> bool {
        self.mode == finding.mode && self.summary == remedy.summary()
    }
}

/// What a repair will do, worked out down to the bytes but not yet written anywhere.
#[derive(Debug, Clone, Default)]
pub struct Plan {
    /// In the order they will be done.
    pub steps: Vec<Step>,
    /// Remedies left out because they failed to prepare.
    pub dropped: Vec<Dropped>,
    /// Remedies left out because nobody asked for them.
    pub left_out: Vec<LeftOut>,
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
    let checks = CATALOGUE.iter().copied();
    checks.filter(|check| settings.asks_for(check.id)).collect()
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
    one_for_one_cause(findings)
}

/// The check whose findings are taken together.
const MERGED: &str = "certificates";

/// So many findings that say the same are one with a list.
const SAME: usize = 3;

/// Certificates that cannot be signed for the same reason (their CA is not valid yet) have one
/// cause: their findings, which end in the same advice, become one. Elsewhere each finding stands
/// for what its title names.
fn one_for_one_cause(findings: Vec<Finding>) -> Vec<Finding> {
    let is_same = |one: &Finding, other: &Finding| {
        one.check() == MERGED
            && one.mode == other.mode
            && one.severity == other.severity
            && one.remedies.is_empty()
            && other.remedies.is_empty()
            && !one.advice.is_empty()
            && one.advice.last() == other.advice.last()
    };
    let mut kept: Vec<(Finding, usize)> = Vec::new();
    for finding in &findings {
        let count = findings
            .iter()
            .filter(|other| is_same(finding, other))
            .count();
        let known = kept
            .iter_mut()
            .find(|(one, _)| count >= SAME && is_same(one, finding));
        match known {
            Some((one, more)) => {
                one.evidence.extend(finding.evidence.iter().cloned());
                *more += 1;
            }
            None => kept.push((finding.clone(), 0)),
        }
    }
    let titled = kept.into_iter().map(|(mut finding, more)| {
        if more > 0 {
            // What is said of one of them only is not said of all.
            finding.advice = finding.advice.pop().into_iter().collect();
            finding.title = format!("{}, and {more} more for the same reason", finding.title);
        }
        finding
    });
    titled.collect()
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

/// Works out the plan for one guest. `agreed`: what an earlier plan left out and the user agreed to
/// since.
pub fn plan(context: &Context<'_>, agreed: &[LeftOut]) -> Plan {
    plan_of(context, &selected_checks(context.settings), agreed)
}

/// Works out what these checks' remedies come to. `agreed` as of [`plan`].
pub fn plan_of(context: &Context<'_>, checks: &[Check], agreed: &[LeftOut]) -> Plan {
    let may_be_done = |finding: &Finding, remedy: &dyn Remedy| {
        !remedy.asks_first()
            || context.settings.allows(finding.mode.id)
            || agreed.iter().any(|item| item.is_of(finding, remedy))
    };
    let mut draft = Draft::new(context);
    for check in checks {
        let found = run(check, &draft.context());
        for finding in found {
            for remedy in &finding.remedies {
                if may_be_done(&finding, remedy.as_ref()) {
                    draft.add(&finding, remedy);
                } else {
                    draft.leave_out(&finding, remedy.as_ref());
                }
            }
        }
    }
    let steps = &draft.plan.steps;
    if steps.iter().all(|step| step.remedy.is_incidental()) {
        return Plan {
            dropped: draft.plan.dropped,
            left_out: draft.plan.left_out,
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::ui::Silent;
    use crate::checks::bench::control_plane;
    use crate::finding::Facts;
    use crate::node::Node;

    const MODE: &str = "kubelet-unit.boot-target";

    /// Plans the kubelet's unit of a node whose next boot ends in rescue mode.
    fn planned(settings: &Settings, agreed: &[LeftOut]) -> Plan {
        let guest = control_plane()
            .file("/usr/lib/systemd/system/multi-user.target", "[Unit]\n")
            .link(
                "/etc/systemd/system/default.target",
                "/usr/lib/systemd/system/rescue.target",
            )
            .into_guest();
        let settings = Settings {
            only: vec!["kubelet-unit".to_owned()],
            ..settings.clone()
        };
        let context = Context {
            guest: &guest,
            node: &Node::read(&guest),
            settings: &settings,
            peers: &[],
            ui: &Silent,
            facts: &Facts::default(),
        };
        plan(&context, agreed)
    }

    #[test]
    fn what_asks_first_is_left_out_and_named() {
        let plan = planned(&Settings::default(), &[]);
        assert!(plan.is_empty() && plan.prepared.is_empty());
        assert_eq!(plan.left_out.len(), 1);
        assert_eq!(plan.left_out[0].mode.id, MODE);
        assert_eq!(plan.left.len(), 1);
    }

    #[test]
    fn what_is_allowed_or_agreed_to_is_a_step() {
        let allowed = Settings {
            allow: vec![MODE.to_owned()],
            ..Settings::default()
        };
        let agreed = planned(&Settings::default(), &[]).left_out;
        for plan in [
            planned(&allowed, &[]),
            planned(&Settings::default(), &agreed),
        ] {
            assert_eq!(plan.steps.len(), 1);
            assert!(plan.left_out.is_empty() && plan.left.is_empty());
        }
        // Another mode is not meant.
        let other = Settings {
            allow: vec!["swap".to_owned()],
            ..Settings::default()
        };
        assert_eq!(planned(&other, &[]).left_out.len(), 1);
    }
}
