//! Lines of a container's log, as the runtimes write them.

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// Time and text of one line: of a CRI runtime (`TIME stderr F text`), or docker's JSON
/// (`{"log":"text\n","stream":"stderr","time":"TIME"}`).
pub(super) fn parse(line: &str) -> Option<(Option<OffsetDateTime>, String)> {
    if line.starts_with('{') {
        let object: serde_json::Value = serde_json::from_str(line).ok()?;
        let text = object.get("log")?.as_str()?.trim_end().to_owned();
        let at = object.get("time").and_then(|time| time.as_str());
        return Some((at.and_then(when), text));
    }
    let mut words = line.splitn(4, ' ');
    let at = when(words.next()?)?;
    let _stream = words.next()?;
    let _is_whole = words.next()?;
    Some((Some(at), words.next()?.to_owned()))
}

fn when(text: &str) -> Option<OffsetDateTime> {
    OffsetDateTime::parse(text, &Rfc3339).ok()
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;

    use super::*;

    #[test]
    fn both_runtimes_lines_are_read() {
        let at = Some(datetime!(2026-11-30 08:00:00.5 UTC));
        let cri = "2026-11-30T08:00:00.500000000Z stderr F Error: no such file";
        assert_eq!(parse(cri), Some((at, "Error: no such file".to_owned())));
        let docker = r#"{"log":"Error: x\n","stream":"stderr","time":"2026-11-30T08:00:00.5Z"}"#;
        assert_eq!(parse(docker), Some((at, "Error: x".to_owned())));
        for line in ["", "{", "{}", "text", "2026-11-30T08:00:00Z stderr"] {
            assert_eq!(parse(line), None, "{line}");
        }
    }
}
