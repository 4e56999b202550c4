//! `rescue certs schedule`: what keeps the outage from happening again. A systemd timer that renews
//! kubeadm's certificates, and a logrotate rule for the log that filled the disk; planned, asked,
//! written and undone like a repair.
//!
//! ```text
//! timer     kubeadm's path, version and sub-command, and the units     culprit    which log filled the disk
//! files     what is laid down, recognised, taken away                  logrotate  existing rules, and ours
//! ```

mod culprit;
mod files;
mod logrotate;
mod timer;

use anyhow::Result;

use crate::base::refusal::Refusal;
use crate::base::units;
use crate::finding::{Check, Context, Finding, Mode};
use crate::guest::{Guest, GuestPath};
use crate::pki::listing::{Kind, Listing};
use crate::plan::{Plan, plan_of};
use files::{AddFiles, NewFile, RemoveFiles};
use timer::Timer;

/// What the node is to have afterwards.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DesiredState {
    /// The timer and the log rotation.
    All,
    /// The log rotation alone.
    LogsOnly,
    /// Nothing of it any more.
    Removed,
}

/// Works out what has to be written to the node. Notes are in [`Plan::left`].
///
/// # Errors
/// A [`Refusal`] (by downcast) where the timer makes no sense or would not work, or where a file of
/// somebody else is in the way.
pub fn plan(context: &Context<'_>, desired: DesiredState) -> Result<Plan> {
    if desired == DesiredState::All {
        for file in timer_to_add(context)?.iter().flat_map(Timer::files) {
            file.refuse_foreign(context.guest)?;
        }
    }
    let run = match desired {
        DesiredState::All => timer_and_logs,
        DesiredState::LogsOnly => logs_only,
        DesiredState::Removed => removed,
    };
    Ok(plan_of(context, &[asked_for(run)], &[]))
}

/// The first run of the timer is at most a month away; what ends before that is not its concern.
const FIRST_RUN: time::Duration = time::Duration::days(32);

const RENEWAL: Mode = Mode::will_break(
    "schedule.renewal",
    "nothing renews kubeadm's certificates before they end",
);
const ROTATION: Mode = Mode::will_break(
    "schedule.rotation",
    "nothing keeps the log small that filled the disk",
);
const INSTALLED: Mode = Mode::will_break("schedule.installed", "a schedule that rescue made");
const REMARK: Mode = Mode::note("schedule.remark", "what is not added, and why");

/// A pseudo check, which is never in the catalogue: its findings are what the user asked for.
const fn asked_for(run: fn(&Context<'_>) -> Result<Vec<Finding>>) -> Check {
    Check {
        id: "schedule",
        about: "whether something renews kubeadm's certificates before they end, and rotates the \
            log that filled the disk",
        modes: &[RENEWAL, ROTATION, INSTALLED, REMARK],
        roles: &[],
        after: &[],
        run,
    }
}

/// The timer to be added; `None` where something else does its work.
fn timer_to_add(context: &Context<'_>) -> Result<Option<Timer>, Refusal> {
    let timer = Timer::for_node(context)?;
    Ok(timer::renewed_by(context.guest).is_none().then_some(timer))
}

fn timer_and_logs(context: &Context<'_>) -> Result<Vec<Finding>> {
    let mut findings = timer_findings(context)?;
    findings.extend(log_finding(context));
    Ok(findings)
}

fn logs_only(context: &Context<'_>) -> Result<Vec<Finding>> {
    Ok(log_finding(context).into_iter().collect())
}

fn removed(context: &Context<'_>) -> Result<Vec<Finding>> {
    Ok(removal(context.guest).into_iter().collect())
}

fn timer_findings(context: &Context<'_>) -> Result<Vec<Finding>> {
    if let Some(by) = timer::renewed_by(context.guest) {
        return Ok(vec![note(format!("no timer is added: {by}"))]);
    }
    let Some(timer) = timer_to_add(context)? else {
        return Ok(Vec::new());
    };
    let mut findings: Vec<Finding> = ends_before_first_run(context).into_iter().collect();
    let files = timer.files();
    if !all_there(context.guest, &files) {
        let remedy = AddFiles {
            kind: "add-renewal-timer",
            summary: timer.summary(),
            details: timer.details(),
            files,
        };
        let title = "nothing renews the certificates of this control plane before they end";
        findings.push(Finding::new(RENEWAL, title).with_remedy(remedy));
    }
    Ok(findings)
}

fn all_there(guest: &Guest, files: &[NewFile]) -> bool {
    files.iter().all(|file| file.is_there(guest))
}

fn note(title: String) -> Finding {
    Finding::new(REMARK, title)
}

fn ends_before_first_run(context: &Context<'_>) -> Option<Finding> {
    let now = context.settings.now;
    let rows = Listing::read(context.guest, context.node, now).rows;
    let of_kubeadm = rows
        .iter()
        .filter(|row| matches!(row.kind, Kind::Leaf | Kind::Kubeconfig));
    let leaves = of_kubeadm.filter_map(|row| row.expires);
    let first = leaves.min().filter(|first| *first - now < FIRST_RUN)?;
    let when = if first < now { "ended" } else { "ends" };
    Some(note(format!(
        "a certificate {when} on {}, perhaps before the timer's first run: `rescue repair` renews \
         it now",
        units::time(first)
    )))
}

fn log_finding(context: &Context<'_>) -> Option<Finding> {
    let Some(culprit) = culprit::find(context) else {
        return Some(note(
            "no log is known to have filled a disk of this node: no log rotation is added"
                .to_owned(),
        ));
    };
    match logrotate::rule_for(context.guest, &culprit) {
        // The size that it names changes as more is freed; the rule does not.
        Ok(rule) if files::is_ours(context.guest, &rule.path) => None,
        Ok(rule) => {
            let summary = format!("add a rule for logrotate: {}", culprit.words());
            let details = vec![
                "Rotated when larger than 20 MiB, three older files are kept, compressed."
                    .to_owned(),
                format!("writes {}", rule.path),
            ];
            let remedy = AddFiles {
                kind: "add-log-rotation",
                summary,
                details,
                files: vec![rule],
            };
            let title = format!(
                "nothing keeps the log small that filled the disk ({})",
                culprit.words()
            );
            Some(Finding::new(ROTATION, title).with_remedy(remedy))
        }
        Err(why) => Some(note(format!(
            "no log rotation is added ({}): {why}",
            culprit.words()
        ))),
    }
}

fn removal(guest: &Guest) -> Option<Finding> {
    let link_is_ours =
        |path: &GuestPath| guest.read_link(path).is_ok() && files::is_ours(guest, path);
    let mut paths: Vec<GuestPath> = timer::FILES
        .iter()
        .map(GuestPath::new)
        .filter(|path| files::is_ours(guest, path) || link_is_ours(path))
        .collect();
    let folder = GuestPath::new("/etc/logrotate.d");
    let rules = guest
        .read_dir(&folder)
        .unwrap_or_default()
        .into_iter()
        .map(|entry| entry.name);
    let rules = rules
        .filter(|name| name.to_string_lossy().starts_with(logrotate::PREFIX))
        .map(|name| folder.join(name));
    paths.extend(rules.filter(|path| files::is_ours(guest, path)));
    if paths.is_empty() {
        return None;
    }
    let title = "the schedule that rescue made is there";
    Some(Finding::new(INSTALLED, title).with_remedy(RemoveFiles { paths }))
}
