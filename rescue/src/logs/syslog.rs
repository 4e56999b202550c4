//! Lines of rsyslog's files, /var/log/syslog and /var/log/messages.

use time::format_description::well_known::Rfc3339;
use time::{Date, Duration, Month, OffsetDateTime, Time};

/// One line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct SyslogLine<'a> {
    /// When; `None` where it begins with no time.
    pub at: Option<OffsetDateTime>,
    /// The program that said it.
    pub program: &'a str,
    /// What it said.
    pub text: &'a str,
}

impl SyslogLine<'_> {
    /// Whether a boot begins with it: the kernel's own first line.
    pub fn is_boot(&self) -> bool {
        self.program == "kernel" && self.text.contains("Linux version ")
    }
}

/// Takes a line apart: time, host, program with its process in brackets, text. `newest`: when the
/// file was last written, which tells the year that the traditional form lacks.
pub(super) fn parse(line: &str, newest: OffsetDateTime) -> Option<SyslogLine<'_>> {
    let (at, rest) = match line.split_once(' ') {
        Some((first, rest)) if first.len() > 15 => {
            (OffsetDateTime::parse(first, &Rfc3339).ok(), rest)
        }
        _ => (traditional(line.get(..15)?, newest), line.get(16..)?),
    };
    let (_host, rest) = rest.split_once(' ')?;
    let (program, text) = rest.split_once(": ")?;
    let program = program.split(['[', ' ']).next().unwrap_or(program);
    Some(SyslogLine { at, program, text })
}

/// `Nov 30 08:00:00`, of the year in which it is not after `newest`.
fn traditional(text: &str, newest: OffsetDateTime) -> Option<OffsetDateTime> {
    let mut words = text.split_whitespace();
    let month = month(words.next()?)?;
    let day = words.next()?.parse().ok()?;
    let mut clock = words.next()?.splitn(3, ':').map(|part| part.parse().ok());
    let time = Time::from_hms(clock.next()??, clock.next()??, clock.next()??).ok()?;
    let of = |year| {
        let date = Date::from_calendar_date(year, month, day).ok()?;
        Some(date.with_time(time).assume_utc())
    };
    let year = newest.year();
    of(year)
        .filter(|at| *at <= newest + Duration::days(1))
        .or_else(|| of(year - 1))
}

fn month(name: &str) -> Option<Month> {
    let names = [
        "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
    ];
    let number = (1..).zip(names).find(|(_, known)| *known == name)?.0;
    Month::try_from(number).ok()
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;

    use super::*;

    #[test]
    fn both_forms_are_read() {
        let newest = datetime!(2026-01-02 00:00 UTC);
        let line = "Dec 31 23:59:58 master1 kubelet[1234]: E1231 23:59:58.1 1 a.go:1] no";
        let read = parse(line, newest).unwrap();
        assert_eq!(read.at, Some(datetime!(2025-12-31 23:59:58 UTC)));
        assert_eq!(
            (read.program, read.text),
            ("kubelet", "E1231 23:59:58.1 1 a.go:1] no")
        );
        let line = "2026-01-01T10:00:00.5+01:00 master1 kernel: [    0.000000] Linux version 6.1";
        let read = parse(line, newest).unwrap();
        assert_eq!(read.at, Some(datetime!(2026-01-01 09:00:00.5 UTC)));
        assert!(read.is_boot());
    }

    #[test]
    fn what_is_no_line_is_none() {
        let newest = datetime!(2026-01-02 00:00 UTC);
        for line in [
            "",
            "x",
            "ä".repeat(40).as_str(),
            "Nov 31 08:00:00",
            "2026-01-01T10:00:00Z",
        ] {
            assert_eq!(parse(line, newest), None, "{line}");
        }
        let broken = parse("Nov 31 08:00:00 host kubelet[1]: text", newest).unwrap();
        assert_eq!(broken.at, None);
    }
}
