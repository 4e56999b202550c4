//! Certificates as tables: of one node as `kubeadm certs check-expiration` lays it out, with the
//! kubelet's and a state beside it; of many nodes narrow enough for a text console.

use std::fmt::Write as _;
use time::{Duration, OffsetDateTime, UtcOffset};

use super::bounded::{self, ENTRIES, MANY};
use super::text::Style;
use crate::base::units;
use crate::pki::listing::{Kind, Manager, Row};
use crate::pki::strays::{Stray, StrayKind};
use crate::survey::{Survey, Surveyed};

/// Lines of at most a terminal's width for usual names; ends with a line feed.
pub fn table(rows: &[Row], now: OffsetDateTime) -> String {
    let (authorities, leaves): (Vec<&Row>, Vec<&Row>) =
        rows.iter().partition(|row| row.is_authority);
    let head = [
        "CERTIFICATE",
        "EXPIRES",
        "RESIDUAL TIME",
        "CERTIFICATE AUTHORITY",
        "EXTERNALLY MANAGED",
        "STATE",
    ];
    let mut text = lay_out(&head, leaves.iter().map(|row| cells(row, now)).collect());
    if !authorities.is_empty() {
        let head = [
            "CERTIFICATE AUTHORITY",
            "EXPIRES",
            "RESIDUAL TIME",
            "EXTERNALLY MANAGED",
            "STATE",
        ];
        let cells = authorities.iter().map(|row| {
            let [name, expires, residual, _, external, state] = cells(row, now);
            [name, expires, residual, external, state]
        });
        text.push('\n');
        text.push_str(&lay_out(&head, cells.collect()));
    }
    text
}

fn cells(row: &Row, now: OffsetDateTime) -> [String; 6] {
    [
        row.name.clone(),
        row.expires.map_or_else(|| "-".to_owned(), moment),
        row.expires
            .map_or_else(|| "-".to_owned(), |end| residual(end - now)),
        row.authority.clone(),
        if row.externally_managed { "yes" } else { "no" }.to_owned(),
        row.verdict.words().to_owned(),
    ]
}

/// Unreferenced files shown of each node without `--details`.
const STRAYS_SHOWN: usize = 8;

/// `rescue certs`: one table over all nodes; with details a block for each certificate instead.
pub fn survey(survey: &Survey, now: OffsetDateTime, style: &Style) -> String {
    let mut out = String::new();
    if style.details {
        for node in &survey.nodes {
            let _ = writeln!(out, "{}  ({})\n", style.heading(&node.name), node.source);
            let rest = ("", "certificates (--json has all)");
            bounded::list(&mut out, &node.listing.rows, MANY, rest, |row| {
                block(row, now)
            });
        }
    } else {
        let _ = writeln!(out, "{}", narrow(&survey.nodes, now));
    }
    unreferenced(&mut out, &survey.nodes, style);
    if !survey.unreadable.is_empty() {
        let _ = writeln!(out, "{}", style.heading("Could not be read"));
        bounded::list(
            &mut out,
            &survey.unreadable,
            ENTRIES,
            ("  ", "(--json has all)"),
            |unreadable| format!("{}: {}", unreadable.source, unreadable.reason),
        );
        out.push('\n');
    }
    if !survey.leftovers.is_empty() {
        let _ = writeln!(out, "{}", style.heading("Also on these disks"));
        bounded::list(
            &mut out,
            &survey.leftovers,
            ENTRIES,
            ("  ", "(--json has all)"),
            |leftover| format!("{}: {}", leftover.device, leftover.what),
        );
        out.push('\n');
    }
    out.push_str(&summary(&survey.nodes));
    out
}

/// Node, name, date, what is left, CA, state: 80 columns for usual names.
fn narrow(nodes: &[Surveyed], now: OffsetDateTime) -> String {
    let head = [
        "NODE",
        "CERTIFICATE",
        "EXPIRES    LEFT",
        "AUTHORITY",
        "STATE",
    ];
    let cells = |node: &Surveyed, row: &Row| {
        [
            node.name.clone(),
            row.name.clone(),
            row.expires.map_or_else(
                || "-".to_owned(),
                |end| format!("{} {:>4}", date(end), left(end - now)),
            ),
            if row.kind == Kind::Authority {
                "itself".to_owned()
            } else {
                row.authority.clone()
            },
            row.verdict.words().to_owned(),
        ]
    };
    let rows = nodes
        .iter()
        .flat_map(|node| node.listing.rows.iter().map(move |row| cells(node, row)));
    let mut text = lay_out_with(&head, rows.collect(), 2);
    for node in nodes.iter().filter(|node| node.listing.rows.is_empty()) {
        let _ = writeln!(text, "{}  no certificates of kubeadm", node.name);
    }
    text
}

/// Everything about one certificate.
fn block(row: &Row, now: OffsetDateTime) -> String {
    let mut lines = names_of(row);
    lines.extend(validity(row, now));
    let authority = match (row.is_authority, row.externally_managed) {
        (true, _) => "a CA itself".to_owned(),
        (false, true) => format!("{} (cannot be renewed on this node)", row.authority),
        (false, false) => row.authority.clone(),
    };
    lines.push(("authority", authority));
    lines.push(("renewed by", manager(row.managed_by).to_owned()));
    let used_by = if row.used_by.is_empty() {
        "nothing on this node names it".to_owned()
    } else {
        bounded::names(&row.used_by)
    };
    lines.push(("used by", used_by));
    lines.push(("state", row.verdict.words().to_owned()));
    let problems = row.problems.iter().take(ENTRIES);
    lines.extend(problems.map(|problem| ("", format!("{}: {}", problem.path, problem.saw))));
    lines.extend(row.remark.iter().map(|remark| ("note", remark.clone())));
    let lines = lines
        .iter()
        .map(|(label, value)| format!("  {label:<12}{value}\n"));
    lines.collect::<String>() + "\n"
}

/// Labels and values: where the certificate is and whom it names.
fn names_of(row: &Row) -> Vec<(&'static str, String)> {
    let list = |values: &[String]| {
        if values.is_empty() {
            "none".to_owned()
        } else {
            bounded::names(values)
        }
    };
    let or = |value: &Option<String>, unknown: &str| value.as_deref().unwrap_or(unknown).to_owned();
    let mut lines = vec![("name", row.name.clone()), ("path", row.path.clone())];
    if let Some(key) = row.key_path.as_ref().filter(|key| **key != row.path) {
        lines.push(("key", key.clone()));
    }
    if let Some(subject) = &row.subject {
        lines.extend([
            ("subject", subject.clone()),
            ("issuer", or(&row.issuer, "unknown")),
            ("names", list(&row.alternative_names)),
            (
                "key type",
                or(&row.key_type, "of a kind that kubeadm never uses"),
            ),
            ("usages", list(&row.extended_key_usage)),
            ("serial", or(&row.serial, "unknown")),
        ]);
    }
    lines
}

fn validity(row: &Row, now: OffsetDateTime) -> Option<(&'static str, String)> {
    let (begin, end) = (row.not_before?, row.expires?);
    let left = end - now;
    let word = if left.is_negative() {
        "over for"
    } else {
        "left"
    };
    let value = format!(
        "{} to {}, {word} {}",
        units::time(begin),
        units::time(end),
        units::span(left.abs())
    );
    Some(("valid", value))
}

fn manager(manager: Manager) -> &'static str {
    match manager {
        Manager::Kubeadm => "kubeadm",
        Manager::Kubelet => "the kubelet; kubeadm never does",
        Manager::Kubespray => "kubespray",
        Manager::Other => "neither kubeadm nor the kubelet",
    }
}

/// Certificates first, then keys: what may be in use after all, or should not lie about.
fn unreferenced(out: &mut String, nodes: &[Surveyed], style: &Style) {
    if nodes
        .iter()
        .all(|node| node.listing.unreferenced.is_empty())
    {
        return;
    }
    let _ = writeln!(
        out,
        "{}",
        style.heading("Unreferenced: nothing on the node names these files")
    );
    for node in nodes {
        let mut strays: Vec<&Stray> = node.listing.unreferenced.iter().collect();
        strays.sort_by_key(|stray| {
            !matches!(
                stray.kind,
                StrayKind::Certificate | StrayKind::Kubeconfig | StrayKind::Key
            )
        });
        let most = if style.details { MANY } else { STRAYS_SHOWN };
        let all = if strays.len() > MANY {
            "(--json names all)"
        } else {
            "(--details shows all)"
        };
        bounded::list(out, &strays, most, ("  ", all), |stray| {
            format!("{}  {}\n    {}", node.name, stray.path, stray.what)
        });
    }
    out.push('\n');
}

/// `3 nodes, 42 certificates: 30 expired, 12 ok`.
fn summary(nodes: &[Surveyed]) -> String {
    let mut counts: Vec<(&str, usize)> = Vec::new();
    let rows = || nodes.iter().flat_map(|node| &node.listing.rows);
    let mut verdicts: Vec<_> = rows().map(|row| row.verdict).collect();
    verdicts.sort_by_key(|verdict| std::cmp::Reverse(*verdict));
    for verdict in verdicts {
        match counts.last_mut() {
            Some((words, number)) if *words == verdict.words() => *number += 1,
            _ => counts.push((verdict.words(), 1)),
        }
    }
    let states: Vec<String> = counts
        .iter()
        .map(|(words, number)| format!("{number} {words}"))
        .collect();
    let (nodes, certificates) = (nodes.len(), rows().count());
    format!(
        "{}, {}{}{}\n",
        units::count(nodes, "node", "nodes"),
        units::count(certificates, "certificate", "certificates"),
        if states.is_empty() { "" } else { ": " },
        states.join(", ")
    )
}

fn date(time: OffsetDateTime) -> String {
    units::time(time).chars().take(10).collect()
}

/// As kubeadm's residual time, with a plain word where it is over.
fn left(left: Duration) -> String {
    if left.whole_seconds() <= 0 {
        "none".to_owned()
    } else {
        residual(left)
    }
}

fn lay_out<const N: usize>(head: &[&str; N], rows: Vec<[String; N]>) -> String {
    lay_out_with(head, rows, 3)
}

fn lay_out_with<const N: usize>(head: &[&str; N], rows: Vec<[String; N]>, gap: usize) -> String {
    let mut widths = head.map(str::len);
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    let hidden = rows.len().saturating_sub(MANY);
    let mut line = |cells: &[&str]| {
        let mut out = String::new();
        for (cell, width) in cells.iter().zip(widths) {
            let _ = write!(out, "{cell:width$}{:gap$}", "");
        }
        text.push_str(out.trim_end());
        text.push('\n');
    };
    line(head);
    for row in rows.iter().take(MANY) {
        line(&row.each_ref().map(String::as_str));
    }
    if hidden > 0 {
        let _ = writeln!(text, "and {hidden} more (--json has all)");
    }
    text
}

/// `Feb 23, 2024 08:02 UTC`, kubeadm's own form.
fn moment(time: OffsetDateTime) -> String {
    let time = time.to_offset(UtcOffset::UTC);
    let month: String = time.month().to_string().chars().take(3).collect();
    format!(
        "{month} {:02}, {} {:02}:{:02} UTC",
        time.day(),
        time.year(),
        time.hour(),
        time.minute()
    )
}

/// As apimachinery's ShortHumanDuration: the largest unit only, `<invalid>` when it is over.
fn residual(left: Duration) -> String {
    let seconds = left.whole_seconds();
    match seconds {
        i64::MIN..=-2 => "<invalid>".to_owned(),
        -1..=0 => "0s".to_owned(),
        1..60 => format!("{seconds}s"),
        60..3_600 => format!("{}m", seconds / 60),
        3_600..86_400 => format!("{}h", seconds / 3_600),
        86_400..31_536_000 => format!("{}d", seconds / 86_400),
        _ => format!("{}y", seconds / 31_536_000),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use time::macros::datetime;

    #[test]
    fn looks_like_kubeadms() {
        let row = |name: &str, expires, is_authority| Row {
            expires: Some(expires),
            authority: if is_authority {
                String::new()
            } else {
                "ca".to_owned()
            },
            ..Row::new(
                name,
                if is_authority {
                    Kind::Authority
                } else {
                    Kind::Leaf
                },
                "",
            )
        };
        let now = datetime!(2023-02-24 00:00 UTC);
        let rows = [
            row("admin.conf", datetime!(2024-02-23 08:02:25 UTC), false),
            row("apiserver", datetime!(2023-02-23 08:02:25 UTC), false),
            row("ca", datetime!(2033-02-20 08:02:20 UTC), true),
        ];
        let expected = "\
CERTIFICATE   EXPIRES                  RESIDUAL TIME   CERTIFICATE AUTHORITY   EXTERNALLY \
MANAGED   STATE
admin.conf    Feb 23, 2024 08:02 UTC   364d            ca                      \
no                   ok
apiserver     Feb 23, 2023 08:02 UTC   <invalid>       ca                      \
no                   ok

CERTIFICATE AUTHORITY   EXPIRES                  RESIDUAL TIME   EXTERNALLY MANAGED   STATE
ca                      Feb 20, 2033 08:02 UTC   9y              no                   ok
";
        assert_eq!(table(&rows, now), expected);
    }
}
