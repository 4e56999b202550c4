//! Text for people: plain words, aligned, colour never alone in meaning.

use std::fmt::Write as _;
use time::OffsetDateTime;

use super::bounded::{self, ENTRIES, MANY};
use super::left_out;
use crate::base::severity::Severity;
use crate::base::units::{bytes, count, percent, span, time};
use crate::checks::CATALOGUE;
use crate::checks::verdict::Verdict;
use crate::finding::Finding;
use crate::finding::{Inspection, NodeReport, counts};
use crate::guest::FileSystem;
use crate::node::{Fact, Role};
use crate::plan::receipt::Receipt;
use crate::plan::{Plan, Step};
use crate::repair::prune::Pruned;
use crate::repair::restart::Restart;
use crate::repair::runs::{RunState, RunSummary};
use crate::repair::transaction::{Applied, Recovered};
use crate::repair::undo::Undone;
use crate::settings::Settings;

/// How to print.
#[derive(Debug, Clone, Copy, Default)]
pub struct Style {
    /// ANSI colours.
    pub colours: bool,
    /// Every fact and every piece of evidence, not only the first ones.
    pub details: bool,
}

/// Evidence lines shown without `--details`, of what a repair will mend.
const EVIDENCE_SHOWN: usize = 1;
/// … where the finding has no remedy, so that the user has to act on it.
const EVIDENCE_SHOWN_UNMENDED: usize = 12;
/// … with `--details`: more than a disk has holders of its space.
const EVIDENCE_SHOWN_DETAILS: usize = 40;
/// Lines of one step shown without a dry run: a text console has 25.
const STEP_LINES_SHOWN: usize = 8;
/// … of one that must be read: more names than a certificate has, fewer than a hostile disk may
/// want.
const STEP_LINES_TO_READ: usize = 40;
/// … with a dry run.
const STEP_LINES_DRY_RUN: usize = MANY;
/// Freed files named by an undo.
const FREED_SHOWN: usize = 10;
/// Width of the label column.
const LABEL: usize = 18;

impl Style {
    fn paint(&self, text: &str, code: &str) -> String {
        if self.colours {
            format!("\x1b[{code}m{text}\x1b[0m")
        } else {
            text.to_owned()
        }
    }

    fn severity(&self, severity: Severity) -> String {
        let word = format!("{:<12}", severity.word());
        match severity {
            Severity::StopsBoot => self.paint(&word, "1;31"),
            Severity::WillBreak => self.paint(&word, "33"),
            Severity::Note => self.paint(&word, "2"),
        }
    }

    pub(super) fn heading(&self, text: &str) -> String {
        self.paint(text, "1")
    }
}

/// Everything that was seen.
pub fn inspection(inspection: &Inspection, settings: &Settings, style: &Style) -> String {
    let mut out = String::new();
    for report in &inspection.nodes {
        out += &node(report, settings, style);
        out.push('\n');
    }
    if !inspection.leftovers.is_empty() {
        let _ = writeln!(out, "{}", style.heading("Also on these disks"));
        bounded::list(
            &mut out,
            &inspection.leftovers,
            ENTRIES,
            ("  ", "(--json names all)"),
            |leftover| format!("{}: {}", leftover.device, leftover.what),
        );
        out.push('\n');
    }
    out
}

/// One node: facts, certificates, findings.
pub fn node(report: &NodeReport, settings: &Settings, style: &Style) -> String {
    let mut out = String::new();
    let now = settings.now;
    let _ = writeln!(
        out,
        "{}  ({})",
        style.heading(report.name()),
        report.guest.source
    );
    facts(&mut out, report, now, style);
    if !report.certificates.is_empty() {
        let _ = writeln!(out, "\n{}", style.heading("Certificates"));
        for line in super::certificates::table(&report.certificates, now).lines() {
            let _ = writeln!(out, "  {line}");
        }
    }
    out.push('\n');
    if !report.findings.is_empty() {
        let _ = writeln!(out, "{}", style.heading("Findings"));
        findings(&mut out, &report.findings, style);
        out.push('\n');
    }
    out += &super::verdict::text(&Verdict::of(report, settings), style);
    out
}

fn facts(out: &mut String, report: &NodeReport, now: OffsetDateTime, style: &Style) {
    let node = &report.node;
    let role = role_line(report);
    fact(
        out,
        "role",
        &Fact {
            value: Some(role),
            source: node.role.source.clone(),
        },
        style,
    );
    fact(out, "os", &node.os, style);
    fact(out, "kubelet", &node.kubelet_version, style);
    fact(out, "runtime", &node.container_runtime, style);
    if style.details {
        fact(out, "hostname", &node.hostname, style);
        fact(out, "node name", &node.node_name, style);
        fact(out, "machine-id", &node.machine_id, style);
        fact(out, "certificates", &node.certificate_dir, style);
        fact(out, "manifests", &node.manifest_dir, style);
        fact(out, "config", &node.kubelet.config_path, style);
        fact(out, "kubeconfig", &node.kubelet.kubeconfig, style);
        fact(out, "bootstrap", &node.kubelet.bootstrap_kubeconfig, style);
        if let Some(unit) = &node.kubelet.unit {
            labelled(out, "unit", &super::unit_files(unit), String::clone);
        }
    }
    // A long mount point pushes its own line to the right, but never touches it.
    bounded::list(
        out,
        &report.guest.file_systems,
        ENTRIES,
        ("  ", "file systems (--json names all)"),
        |file_system| {
            format!(
                "{:LABEL$}{}",
                format!("{} ", file_system.mount_point),
                usage(file_system)
            )
        },
    );
    labelled(out, "fstab", &report.guest.unresolved, ToString::to_string);
    if let Some(clock) = &node.clock {
        let _ = writeln!(
            out,
            "  {:LABEL$}newest time on the disk {}",
            "clock",
            last_alive(clock.newest, &clock.source, now)
        );
    }
    labelled(out, "earlier run", &newest_first(&report.runs), |run| {
        format!("{} {}", run.id, state(&run.state))
    });
}

/// Lines with the same label.
fn labelled<T>(out: &mut String, label: &str, items: &[T], text: impl Fn(&T) -> String) {
    bounded::list(
        out,
        items,
        ENTRIES,
        ("  ", "of these (--json names all)"),
        |item| format!("{label:LABEL$}{}", text(item)),
    );
}

/// Oldest first as long as all of them are shown, and else the newest of them.
fn newest_first(runs: &[RunSummary]) -> Vec<&RunSummary> {
    match runs.len() > ENTRIES {
        true => runs.iter().rev().collect(),
        false => runs.iter().collect(),
    }
}

/// When the guest last ran, and how far that is from now: a `--now` given by hand may well lie
/// before it.
fn last_alive(newest: OffsetDateTime, source: &str, now: OffsetDateTime) -> String {
    let side = if newest > now { "after" } else { "before" };
    format!(
        "{} ({source}), {} {side} {}",
        time(newest),
        span((now - newest).abs()),
        time(now)
    )
}

fn role_line(report: &NodeReport) -> String {
    match report.node.role.value {
        Some(Role::ControlPlane) => "kubeadm control plane".to_owned(),
        Some(Role::Worker) => "kubeadm worker".to_owned(),
        Some(Role::Etcd) => "kubeadm etcd member, without a control plane".to_owned(),
        Some(Role::OtherDistribution) => report
            .node
            .distribution
            .value
            .clone()
            .unwrap_or_else(|| "not kubeadm".to_owned()),
        Some(Role::NotKubernetes) if report.is_external_etcd => {
            "etcd, run by systemd, without Kubernetes".to_owned()
        }
        Some(Role::NotKubernetes) => "a Linux system without Kubernetes".to_owned(),
        None => "unknown".to_owned(),
    }
}

fn fact<T: ToString>(out: &mut String, label: &str, fact: &Fact<T>, style: &Style) {
    let value = fact.value.as_ref().map_or_else(
        || "unknown".to_owned(),
        |value| crate::base::escaping::escape(&value.to_string()),
    );
    let source = match style.details && !fact.source.is_empty() {
        true => format!("  ({})", fact.source),
        false => String::new(),
    };
    let _ = writeln!(out, "  {label:LABEL$}{value}{source}");
}

fn usage(file_system: &FileSystem) -> String {
    let usage = &file_system.usage;
    let errors = if file_system.has_errors {
        ", ERROR FLAG SET"
    } else {
        ""
    };
    // btrfs makes inodes as they are needed.
    let inodes = match usage.inodes_total {
        0 => "no limit of inodes".to_owned(),
        total => format!("inodes {} free", percent(usage.inodes_free, total)),
    };
    format!(
        "{} of {} available ({}), {inodes}, {} on {}{errors}",
        bytes(usage.bytes_available),
        bytes(usage.bytes_total),
        percent(usage.bytes_available, usage.bytes_total),
        file_system.kind,
        file_system.device
    )
}

/// Severity and title, what was seen, and what the user has to know or do. What a repair will mend
/// anyway is kept short.
fn findings(out: &mut String, findings: &[Finding], style: &Style) {
    bounded::list(
        out,
        findings,
        MANY,
        ("  ", "findings (rescue inspect --json has all)"),
        |found| finding(found, style),
    );
    let hidden = !style.details
        && findings.iter().any(|f| {
            f.evidence.len() > EVIDENCE_SHOWN || !(f.remedies.is_empty() || f.advice.is_empty())
        });
    if hidden {
        let _ = writeln!(out, "  (rescue inspect --details says more about each)");
    }
}

fn finding(finding: &Finding, style: &Style) -> String {
    let mut out = format!("{}{}\n", style.severity(finding.severity), finding.title);
    let of_evidence = ("            ", "such lines (rescue inspect --json has all)");
    let (shown, is_short) = (
        evidence_shown(finding, style),
        !style.details && !finding.remedies.is_empty(),
    );
    // That there is more is said once, below all findings.
    let evidence = if is_short {
        finding.evidence.get(..shown).unwrap_or(&finding.evidence)
    } else {
        &finding.evidence
    };
    bounded::list(&mut out, evidence, shown, of_evidence, |evidence| {
        let place = evidence.place();
        let separator = if place.is_empty() { "" } else { ": " };
        format!("{place}{separator}{}", evidence.saw)
    });
    if let Some(log) = &finding.log {
        let place = match style.details {
            true => format!(" ({})", log.place()),
            false => String::new(),
        };
        let _ = writeln!(out, "            {}{place}", bounded::line(&log.saw));
    }
    if style.details || finding.remedies.is_empty() {
        bounded::list(
            &mut out,
            &finding.advice,
            ENTRIES,
            of_evidence,
            String::clone,
        );
    }
    out
}

/// What a repair will mend is kept short; what the user has to mend is shown at length.
fn evidence_shown(finding: &Finding, style: &Style) -> usize {
    match (style.details, finding.remedies.is_empty()) {
        (true, _) => EVIDENCE_SHOWN_DETAILS,
        (false, true) => EVIDENCE_SHOWN_UNMENDED,
        (false, false) => EVIDENCE_SHOWN,
    }
}

/// The last line of an inspection: what to type next. `is_planned`: whether something would be done
/// to all nodes as one.
pub fn next_step(
    inspection: &Inspection,
    is_planned: bool,
    sources: &str,
    settings: &Settings,
) -> String {
    let mendable = is_planned
        || inspection.nodes.iter().any(|node| {
            node.unfinished_run().is_some()
                || node
                    .findings
                    .iter()
                    .any(|f| counts(f) && !f.remedies.is_empty())
        });
    let findings = inspection.nodes.iter().any(NodeReport::needs_repair);
    if !settings.all_checks() && !mendable && !findings {
        return format!(
            "Nothing was found, but not all checks were asked for: rescue inspect {sources} looks \
             at the rest."
        );
    }
    match (mendable, findings) {
        (true, _) => format!(
            "Next: rescue repair {sources}    (shows the plan and asks before anything is written)"
        ),
        (false, true) => {
            "What is left above cannot be mended by this version; each finding says what can."
                .to_owned()
        }
        (false, false) => "Nothing to repair.".to_owned(),
    }
}

/// What will be done on one node, and what is left to the plan that follows for all nodes together:
/// that of the checks in `together`.
pub fn plan_beside(plan: &Plan, together: &[&str], style: &Style) -> String {
    if together.is_empty() {
        return crate::report::text::plan(plan, style);
    }
    let has_own = !plan.is_empty()
        || !plan.dropped.is_empty()
        || !plan.left_out.is_empty()
        || plan.left.iter().any(counts);
    let own = if has_own {
        crate::report::text::plan(plan, style)
    } else {
        String::new()
    };
    format!(
        "{own}\nPlanned for all nodes together, below: {}.\n",
        together.join(", ")
    )
}

/// What will be done.
pub fn plan(plan: &Plan, style: &Style) -> String {
    let mut out = String::new();
    if plan.is_empty() {
        let word = if !plan.left_out.is_empty() {
            "Nothing is repaired here without being asked for by itself."
        } else if plan.left.iter().any(counts) {
            "There is nothing this version can mend here."
        } else {
            "Nothing to repair."
        };
        let _ = writeln!(out, "\n{word}");
    } else {
        let _ = writeln!(out, "\n{}", style.heading("Plan"));
        let numbered: Vec<(usize, &Step)> = (1..).zip(&plan.steps).collect();
        bounded::list(
            &mut out,
            &numbered,
            MANY,
            ("  ", "steps (--dry-run --json has all)"),
            |(number, remedy)| step(*number, remedy, style),
        );
    }
    bounded::list(
        &mut out,
        &plan.dropped,
        ENTRIES,
        ("  ", "not possible (--dry-run --json has all)"),
        |dropped| format!("not possible: {}: {}", dropped.summary, dropped.reason),
    );
    out += &left_out::text(&plan.left_out);
    let left: Vec<Finding> = plan
        .left
        .iter()
        .filter(|finding| counts(finding))
        .cloned()
        .collect();
    match (left.is_empty(), plan.is_empty()) {
        (true, false) => {
            let _ = writeln!(
                out,
                "  Proved on a copy in memory: after this plan the same checks find nothing that \
                 counts."
            );
        }
        // The findings stand right above.
        (_, true) => {}
        (false, false) => {
            let _ = writeln!(out, "\n{}", style.heading("Will be left after this plan"));
            findings(&mut out, &left, style);
        }
    }
    if !plan.prepared.changes.is_empty() {
        let _ = writeln!(
            out,
            "  Changed files can be brought back with `rescue undo`."
        );
    }
    out.push('\n');
    out
}

fn step(number: usize, step: &Step, style: &Style) -> String {
    let irreversible = if step.remedy.can_be_undone() {
        ""
    } else {
        "  (cannot be undone)"
    };
    let mut out = format!("{number:>2}. {}{irreversible}\n", step.remedy.summary());
    let details = step.remedy.details();
    let most = match (style.details, step.remedy.must_be_read()) {
        (true, _) => STEP_LINES_DRY_RUN,
        (false, true) => STEP_LINES_TO_READ,
        (false, false) => STEP_LINES_SHOWN,
    };
    let rest = match details.len() > STEP_LINES_DRY_RUN {
        true => "lines (--dry-run --json has all)",
        false => "lines (--dry-run shows all)",
    };
    bounded::list(&mut out, &details, most, ("    ", rest), String::clone);
    // What is taken away from others is always to be read.
    bounded::list(
        &mut out,
        &step.remarks,
        STEP_LINES_TO_READ,
        ("    ", "lines (--dry-run --json has all)"),
        String::clone,
    );
    out
}

/// What was done.
pub fn receipt(receipt: &Receipt, sources: &str, style: &Style) -> String {
    let mut out = String::new();
    let what = if receipt.verdict.stops_boot == 0 {
        "Repaired"
    } else {
        "Repaired in part:"
    };
    let title = format!(
        "{what} {} in {:.1} s (run {})",
        receipt.node,
        receipt.took.as_secs_f64(),
        receipt.run
    );
    let _ = writeln!(out, "{}", style.heading(&title));
    done(&mut out, &receipt.done);
    applied(&mut out, &receipt.applied);
    out += &super::fsck::before_writing(&receipt.checked);
    if receipt.checked.is_empty() {
        out.push_str("  File systems were not checked before writing.\n");
    }
    space_gained(&mut out, receipt);
    out += &super::headroom::text(&receipt.headroom, sources);
    found_again(&mut out, receipt, style);
    out += &super::verdict::text(&receipt.verdict, style);
    out.push_str(
        "Each worker and each further control plane has certificates of its own on its own disk: \
         rescue repair takes several disks at once.\n",
    );
    if let Some(needed) = &receipt.restart {
        restart(&mut out, needed, style);
    }
    match receipt.applied.changes {
        0 => out.push_str("There is nothing to take back: what was freed stays gone.\n"),
        _ => {
            let _ = writeln!(
                out,
                "To take it back: rescue undo {sources} --run {}{}",
                receipt.run,
                match receipt.restart {
                    Some(_) => "",
                    None =>
                        "\n  (before the node boots: once it has run, what it was before is gone)",
                }
            );
        }
    }
    out
}

fn space_gained(out: &mut String, receipt: &Receipt) {
    for (before, after) in receipt.before.iter().zip(&receipt.after.guest.file_systems) {
        if before.usage != after.usage {
            let _ = writeln!(
                out,
                "  {}: {} available before, {} now ({} of {})",
                before.mount_point,
                bytes(before.usage.bytes_available),
                bytes(after.usage.bytes_available),
                percent(after.usage.bytes_available, after.usage.bytes_total),
                bytes(after.usage.bytes_total)
            );
        }
    }
}

fn found_again(out: &mut String, receipt: &Receipt, style: &Style) {
    let left: Vec<Finding> = receipt
        .after
        .findings
        .iter()
        .filter(|finding| counts(finding))
        .cloned()
        .collect();
    if left.is_empty() {
        let found = count(receipt.findings_before, "finding", "findings");
        let _ = writeln!(
            out,
            "Inspected again: {found} before, none left that counts."
        );
    } else {
        let _ = writeln!(out, "{}", style.heading("Inspected again: still left"));
        findings(out, &left, style);
        out.push_str(&left_out::text(&receipt.left_out));
    }
}

/// One line for each step of the plan that was carried out.
pub(super) fn done(out: &mut String, done: &[String]) {
    bounded::list(
        out,
        done,
        MANY,
        ("  ", "(`rescue runs` with --json has all)"),
        |line| format!("done  {line}"),
    );
}

/// What a running node needs before it uses what was changed.
pub(super) fn restart(out: &mut String, restart: &Restart, style: &Style) {
    if restart.is_empty() {
        let _ = writeln!(out, "Nothing has to be restarted.");
        return;
    }
    let _ = writeln!(
        out,
        "{}",
        style.heading("Now restart (rescue restarts nothing by itself)")
    );
    for command in &restart.commands {
        let _ = writeln!(out, "  {command}");
    }
    bounded::list(
        out,
        &restart.static_pods,
        ENTRIES,
        ("  ", "pods (rescue inspect --json names all static pods)"),
        |pod| format!("{} reads {}", pod.name, bounded::names(&pod.because)),
    );
    if !restart.static_pods.is_empty() {
        let _ = writeln!(
            out,
            "  One after the other, and on one control plane at a time: the kubelet ends a pod \
             whose manifest is gone and starts it when \
             the manifest is back."
        );
    }
}

fn applied(out: &mut String, applied: &Applied) {
    if !applied.freed.is_empty() {
        let freed: u64 = applied.freed.iter().map(|freed| freed.bytes).sum();
        let truncated = applied.freed.iter().filter(|freed| freed.tail_kept).count();
        let deleted = count(
            applied.freed.len() - truncated,
            "file deleted",
            "files deleted",
        );
        let _ = writeln!(
            out,
            "  freed {} ({deleted}, {truncated} truncated); this cannot be undone",
            bytes(freed)
        );
    }
    let _ = writeln!(
        out,
        "  {} made",
        count(applied.changes, "change", "changes")
    );
    left_alone(out, &applied.left_alone);
    bounded::list(
        out,
        &applied.pruned,
        ENTRIES,
        ("  ", "old runs (`rescue runs` lists what is left)"),
        String::clone,
    );
    for folder in &applied.elsewhere {
        let _ = writeln!(out, "{}", kept_elsewhere(folder));
    }
}

fn left_alone(out: &mut String, sentences: &[String]) {
    let rest = "of these: they changed since the plan was made (another `rescue repair` looks at \
        them again)";
    bounded::list(out, sentences, ENTRIES, ("  ", rest), |line| {
        format!("left alone: {line}")
    });
}

/// What did not fit, and is needed for undo.
pub(super) fn kept_elsewhere(folder: &str) -> String {
    format!(
        "  The old folder is kept in {folder} on this machine: undo needs it. It holds every \
         Secret of the cluster; delete it once the node runs"
    )
}

/// What nobody needs any more.
fn may_go(out: &mut String, folders: &[String]) {
    for folder in folders {
        let _ = writeln!(
            out,
            "  {folder} on the machine that rescue ran on is not needed any more: delete it, it \
             holds Secrets"
        );
    }
}

/// What became of repairs that had been cut off.
pub fn recovered(recovered: &Recovered) -> String {
    let mut out = String::new();
    for (runs, what) in [
        (&recovered.completed, "completed"),
        (
            &recovered.discarded,
            "discarded: it had not changed anything yet",
        ),
        (&recovered.undone, "undo completed"),
    ] {
        bounded::list(&mut out, runs, ENTRIES, ("", "runs likewise"), |run| {
            format!("Run {run}: {what}.")
        });
    }
    left_alone(&mut out, &recovered.left_alone);
    out
}

/// What was taken back.
pub fn undone(undone: &Undone) -> String {
    let mut out = String::new();
    let _ = writeln!(out, "Run {} is taken back.", undone.run);
    for (paths, what) in [
        (&undone.restored, "restored"),
        (&undone.removed, "removed"),
        (&undone.kept, "kept"),
    ] {
        bounded::list(
            &mut out,
            paths,
            MANY,
            ("  ", "(--json names all)"),
            |path| format!("{what:9} {path}"),
        );
    }
    if !undone.not_undoable.is_empty() {
        let files = count(undone.not_undoable.len(), "file", "files");
        let _ = writeln!(
            out,
            "  {files} whose space was freed cannot be brought back:"
        );
        let rest = ("            ", "(`rescue runs` with --json names all)");
        bounded::list(
            &mut out,
            &undone.not_undoable,
            FREED_SHOWN,
            rest,
            String::clone,
        );
    }
    may_go(&mut out, &undone.elsewhere);
    out
}

/// What pruning removed.
pub fn pruned(pruned: &Pruned) -> String {
    let mut out = String::new();
    if pruned.removed.is_empty() {
        let kept = count(pruned.kept.len(), "finished run is", "finished runs are");
        let _ = writeln!(out, "There is nothing to remove: {kept} kept.");
        return out;
    }
    let runs = count(pruned.removed.len(), "run is", "runs are");
    let _ = writeln!(
        out,
        "{runs} removed and {} given back; they cannot be undone any more:",
        bytes(pruned.bytes)
    );
    bounded::list(
        &mut out,
        &pruned.removed,
        ENTRIES,
        ("  ", "runs"),
        String::clone,
    );
    may_go(&mut out, &pruned.elsewhere);
    out
}

/// Earlier repairs.
pub fn runs(nodes: &[NodeReport]) -> String {
    let mut out = String::new();
    for node in nodes {
        if node.runs.is_empty() {
            let _ = writeln!(out, "{}: rescue has not repaired this node.", node.name());
        }
        let rest = ("", "older runs (--json lists all)");
        bounded::list(&mut out, &newest_first(&node.runs), ENTRIES, rest, |one| {
            run(node.name(), one)
        });
    }
    out
}

fn run(node: &str, run: &RunSummary) -> String {
    let mut out = format!("{node}  {}  {}\n", run.id, state(&run.state));
    if !run.together.is_empty() {
        let _ = writeln!(
            out,
            "    of {} together: give all of their disks",
            bounded::names(&run.together)
        );
    }
    bounded::list(
        &mut out,
        &run.summary,
        MANY,
        ("    ", "(--json has all)"),
        String::clone,
    );
    bounded::list(
        &mut out,
        &run.keeps,
        ENTRIES,
        ("    ", "folders (--json has all)"),
        |kept| match &kept.elsewhere {
            Some(folder) => format!(
                "keeps the old {} in {folder} on the machine that rescue ran on",
                kept.path
            ),
            None => format!("keeps the old {} ({})", kept.path, bytes(kept.bytes)),
        },
    );
    out
}

fn state(state: &RunState) -> String {
    match state {
        RunState::Done => "done".to_owned(),
        RunState::NotCommitted => {
            "cut off before it changed anything, or half removed: the next `rescue repair` \
             removes it"
                .to_owned()
        }
        RunState::HalfWay => "cut off half-way: `rescue repair` completes it, `rescue undo` takes \
            it back"
            .to_owned(),
        RunState::HalfUndone => "its undo was cut off: `rescue undo` completes it".to_owned(),
        RunState::Undone => "undone".to_owned(),
        RunState::Unreadable(reason) => {
            format!("its record cannot be read ({reason}): `rescue repair` says what to do")
        }
    }
}

/// The catalogue.
pub fn checks() -> String {
    let width = CATALOGUE.iter().map(|check| check.id.len()).max();
    let width = width.unwrap_or_default();
    CATALOGUE.iter().fold(String::new(), |mut out, check| {
        let _ = writeln!(out, "{:width$}  {}", check.id, check.about);
        out
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::finding::Mode;

    #[test]
    fn what_is_planned_for_all_nodes_is_not_nothing() {
        let plan = Plan {
            steps: Vec::new(),
            dropped: Vec::new(),
            left_out: Vec::new(),
            prepared: Default::default(),
            left: Vec::new(),
        };
        let style = Style {
            colours: false,
            details: false,
        };
        assert!(plan_beside(&plan, &[], &style).contains("Nothing to repair."));
        let beside = plan_beside(&plan, &["etcd"], &style);
        assert_eq!(beside, "\nPlanned for all nodes together, below: etcd.\n");
        let left = vec![Finding::new(
            Mode::will_break("certificates.leaf", "x"),
            "expired",
        )];
        let beside = plan_beside(&Plan { left, ..plan }, &["etcd"], &style);
        assert!(
            beside.contains("nothing this version can mend") && beside.contains("below: etcd."),
            "{beside}"
        );
    }

    #[test]
    fn a_disk_newer_than_now_is_said_to_be_newer() {
        let at = |second| OffsetDateTime::from_unix_timestamp(second).expect("a time");
        let (earlier, later) = (at(1_677_628_800), at(1_708_842_300));
        assert_eq!(
            last_alive(later, "/a", earlier),
            "2024-02-25 06:25 UTC (/a), 361 d after 2023-03-01 00:00 UTC"
        );
        assert_eq!(
            last_alive(earlier, "/a", later),
            "2023-03-01 00:00 UTC (/a), 361 d before 2024-02-25 06:25 UTC"
        );
    }
}
