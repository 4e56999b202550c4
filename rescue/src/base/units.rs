//! Numbers as people read them.

use time::{Duration, OffsetDateTime};

/// Bytes in binary units with one decimal: `912 B`, `6.9 GiB`.
pub fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64 / 1024.0;
    let mut unit = UNITS[0];
    for next in &UNITS[1..] {
        // 1023.95 would be shown as 1024.0.
        if value < 1023.95 {
            break;
        }
        value /= 1024.0;
        unit = next;
    }
    format!("{value:.1} {unit}")
}

/// A share: `9.8 %`, `100 %`; `-` of nothing. Rounded down: 9.96 % must not look like the 10 % that
/// it misses.
pub fn percent(part: u64, whole: u64) -> String {
    if whole == 0 {
        return "-".to_owned();
    }
    let tenths = u128::from(part) * 1000 / u128::from(whole);
    match tenths % 10 {
        0 => format!("{} %", tenths / 10),
        rest => format!("{}.{rest} %", tenths / 10),
    }
}

/// `2024-02-23 08:02 UTC`.
pub fn time(time: OffsetDateTime) -> String {
    let utc = time.to_offset(time::UtcOffset::UTC);
    format!(
        "{:04}-{:02}-{:02} {:02}:{:02} UTC",
        utc.year(),
        u8::from(utc.month()),
        utc.day(),
        utc.hour(),
        utc.minute()
    )
}

/// RFC 3339 in UTC, for programs.
pub fn rfc3339(time: OffsetDateTime) -> String {
    let utc = time.to_offset(time::UtcOffset::UTC);
    utc.format(&time::format_description::well_known::Rfc3339)
        .unwrap_or_default()
}

/// A duration in its two largest units: `2 y 273 d`, `5 h 3 min`.
pub fn span(duration: Duration) -> String {
    let minutes = duration.whole_minutes().unsigned_abs();
    let (days, hours) = (minutes / 1440, minutes / 60 % 24);
    match (days / 365, days % 365, hours) {
        (0, 0, 0) => format!("{} min", minutes % 60),
        (0, 0, hours) => format!("{hours} h {} min", minutes % 60),
        (0, days, _) => format!("{days} d"),
        (years, days, _) => format!("{years} y {days} d"),
    }
}

/// `1 file`, `3 files`.
pub fn count(number: usize, singular: &str, plural: &str) -> String {
    format!("{number} {}", if number == 1 { singular } else { plural })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shows_numbers() {
        assert_eq!(bytes(1023), "1023 B");
        assert_eq!(bytes(1024), "1.0 KiB");
        assert_eq!(bytes(1024 * 1024 - 1), "1.0 MiB");
        assert_eq!(bytes(7_408_000_000), "6.9 GiB");
        assert_eq!(bytes(8 << 30), "8.0 GiB");
        assert_eq!(bytes(512 << 20), "512.0 MiB");
        assert_eq!(bytes(3 << 40), "3.0 TiB");
        assert_eq!(percent(9_996, 100_000), "9.9 %");
        assert_eq!(percent(15, 100), "15 %");
        assert_eq!(percent(1, 1000), "0.1 %");
        assert_eq!(percent(1, 10_000), "0 %");
        assert_eq!(percent(1, 0), "-");
        assert_eq!(span(Duration::days(1003)), "2 y 273 d");
        assert_eq!(span(Duration::minutes(303)), "5 h 3 min");
    }
}
