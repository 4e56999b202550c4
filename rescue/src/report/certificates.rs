//! The table of certificates, laid out as `kubeadm certs check-expiration` does, with the kubelet's and a state beside it.

use std::fmt::Write as _;
use time::{Duration, OffsetDateTime, UtcOffset};

use crate::pki::inventory::Row;

/// Lines of at most a terminal's width for usual names; ends with a line feed.
pub fn table(rows: &[Row], now: OffsetDateTime) -> String {
    let (authorities, leaves): (Vec<&Row>, Vec<&Row>) = rows.iter().partition(|row| row.is_authority);
    let head = ["CERTIFICATE", "EXPIRES", "RESIDUAL TIME", "CERTIFICATE AUTHORITY", "EXTERNALLY MANAGED", "STATE"];
    let mut text = lay_out(&head, leaves.iter().map(|row| cells(row, now)).collect());
    if !authorities.is_empty() {
        let head = ["CERTIFICATE AUTHORITY", "EXPIRES", "RESIDUAL TIME", "EXTERNALLY MANAGED", "STATE"];
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
        row.expires.map_or_else(|| "-".to_owned(), |end| residual(end - now)),
        row.authority.clone(),
        if row.externally_managed { "yes" } else { "no" }.to_owned(),
        row.verdict.words().to_owned(),
    ]
}

fn lay_out<const N: usize>(head: &[&str; N], rows: Vec<[String; N]>) -> String {
    let mut widths = head.map(str::len);
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    let mut line = |cells: &[&str]| {
        let mut out = String::new();
        for (cell, width) in cells.iter().zip(widths) {
            let _ = write!(out, "{cell:width$}   ");
        }
        text.push_str(out.trim_end());
        text.push('\n');
    };
    line(head);
    for row in &rows {
        line(&row.each_ref().map(String::as_str));
    }
    text
}

/// `Feb 23, 2024 08:02 UTC`, kubeadm's own form.
fn moment(time: OffsetDateTime) -> String {
    let time = time.to_offset(UtcOffset::UTC);
    let month: String = time.month().to_string().chars().take(3).collect();
    format!("{month} {:02}, {} {:02}:{:02} UTC", time.day(), time.year(), time.hour(), time.minute())
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
    use crate::pki::inventory::Verdict;
    use time::macros::datetime;

    #[test]
    fn looks_like_kubeadms() {
        let row = |name: &str, expires, is_authority| Row {
            name: name.to_owned(),
            path: String::new(),
            expires: Some(expires),
            authority: if is_authority { String::new() } else { "ca".to_owned() },
            externally_managed: false,
            is_authority,
            verdict: Verdict::Ok,
        };
        let now = datetime!(2023-02-24 00:00 UTC);
        let rows = [
            row("admin.conf", datetime!(2024-02-23 08:02:25 UTC), false),
            row("apiserver", datetime!(2023-02-23 08:02:25 UTC), false),
            row("ca", datetime!(2033-02-20 08:02:20 UTC), true),
        ];
        let expected = "\
CERTIFICATE   EXPIRES                  RESIDUAL TIME   CERTIFICATE AUTHORITY   EXTERNALLY MANAGED   STATE
admin.conf    Feb 23, 2024 08:02 UTC   364d            ca                      no                   ok
apiserver     Feb 23, 2023 08:02 UTC   <invalid>       ca                      no                   ok

CERTIFICATE AUTHORITY   EXPIRES                  RESIDUAL TIME   EXTERNALLY MANAGED   STATE
ca                      Feb 20, 2033 08:02 UTC   9y              no                   ok
";
        assert_eq!(table(&rows, now), expected);
    }
}
