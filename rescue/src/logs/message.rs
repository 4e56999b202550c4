//! What one line of a log says: whether it is an error, and what is left of it without what differs
//! each time it is said.

/// Letters of klog's headers for errors: error and fatal.
const KLOG_ERRORS: [char; 2] = ['E', 'F'];

/// How the programs of a node begin a line of an error that carries no level.
const BEGINNINGS: [&str; 6] = [
    "Error:",
    "Error ",
    "error:",
    "panic:",
    "fatal error:",
    "FATAL:",
];

/// What systemd says of a unit that does not come up.
const OF_SYSTEMD: [&str; 9] = [
    "Failed to start",
    "Failed with result",
    "Failed to load",
    "Failed to mount",
    "Main process exited",
    "Start request repeated too quickly",
    "Dependency failed",
    "Timed out waiting",
    "is masked",
];

/// Whether a line tells of something that failed. `priority`: syslog's, 0 to 7.
pub(super) fn is_error(text: &str, priority: Option<u8>) -> bool {
    if priority.is_some_and(|priority| priority <= 3) {
        return true;
    }
    if let Some((letter, _)) = klog(text) {
        return KLOG_ERRORS.contains(&letter);
    }
    if let Some((letter, _)) = capnslog(text) {
        return ['C', 'E'].contains(&letter);
    }
    if let Some(level) = level(text) {
        return ["error", "fatal", "panic", "dpanic", "critical"].contains(&level);
    }
    BEGINNINGS.iter().any(|word| text.starts_with(word))
}

/// Whether a line says by itself how bad it is.
pub(super) fn has_level(text: &str) -> bool {
    klog(text).is_some() || capnslog(text).is_some() || level(text).is_some()
}

/// Whether systemd tells of a unit that does not come up.
pub(super) fn is_failed_unit(text: &str) -> bool {
    OF_SYSTEMD.iter().any(|word| text.contains(word))
}

/// The line as a person reads it: without klog's header, of a line in JSON its message and its
/// error.
pub(super) fn plain(text: &str) -> String {
    let text = text.trim();
    if let Some((_, rest)) = klog(text).or_else(|| capnslog(text)) {
        return rest.to_owned();
    }
    json(text).unwrap_or_else(|| text.to_owned())
}

/// The same for lines that differ in numbers and identifiers only.
pub(super) fn key(text: &str) -> String {
    let is_part = |c: char| c.is_ascii_alphanumeric();
    let mut key = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let length = rest.find(|c| !is_part(c)).unwrap_or(rest.len());
        if length == 0 {
            key.push(first);
            rest = &rest[first.len_utf8()..];
            continue;
        }
        let (word, after) = rest.split_at(length);
        match word.contains(|c: char| c.is_ascii_digit()) {
            true => key.push('#'),
            false => key.push_str(word),
        }
        rest = after;
    }
    key
}

/// The letter of klog's header and what follows it: `E1130 08:00:00.000000    1234 run.go:74] …`.
fn klog(text: &str) -> Option<(char, &str)> {
    let letter = text.chars().next().filter(|c| "IWEF".contains(*c))?;
    let (header, rest) = text.split_once("] ")?;
    let date = header.get(1..5)?;
    let is_header = date.chars().all(|c| c.is_ascii_digit()) && header.get(5..6) == Some(" ");
    is_header.then_some((letter, rest))
}

/// The letter of etcd's older headers and what follows it: `2023-02-23 08:07:15.326768 W | etcd…`.
fn capnslog(text: &str) -> Option<(char, &str)> {
    let (header, rest) = text.split_once(" | ")?;
    let (time, letter) = header.rsplit_once(' ')?;
    let is_time = time.len() >= 19 && time.starts_with(|c: char| c.is_ascii_digit());
    let letter = letter.chars().next().filter(|_| letter.len() == 1)?;
    is_time.then_some((letter, rest))
}

/// The level of a line of logrus (`level=error`) or zap (`"level":"fatal"`).
fn level(text: &str) -> Option<&str> {
    let after = text
        .split_once("level=")
        .or_else(|| text.split_once("\"level\":"))?
        .1;
    let word = after.trim_start_matches(['"', ' ']);
    let end = word.find(|c: char| !c.is_ascii_alphabetic())?;
    word.get(..end)
}

/// Message and error of a line in JSON.
fn json(text: &str) -> Option<String> {
    let object: serde_json::Value = serde_json::from_str(text).ok()?;
    let field = |name: &str| object.get(name).and_then(|value| value.as_str());
    let message = field("msg").or_else(|| field("message"))?;
    Some(match field("error").or_else(|| field("err")) {
        Some(error) => format!("{message}: {error}"),
        None => message.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_told_by_what_each_program_writes() {
        let error = "E1130 08:00:00.123456    1234 run.go:74] \"command failed\" err=\"x\"";
        assert!(is_error(error, Some(6)));
        assert_eq!(plain(error), "\"command failed\" err=\"x\"");
        assert!(is_error(
            "F1130 08:00:00.1 1 server.go:269] failed to run Kubelet",
            None
        ));
        assert!(!is_error(
            "I1130 08:00:00.1 1 server.go:1] Error: only quoted",
            None
        ));
        assert!(is_error(
            "time=\"2026-11-30T08:00:00Z\" level=fatal msg=\"x\"",
            None
        ));
        assert!(!is_error(
            "time=\"2026-11-30T08:00:00Z\" level=info msg=\"level=error\"",
            None
        ));
        let etcd =
            r#"{"level":"fatal","ts":"1","caller":"a.go:1","msg":"discovery failed","error":"e"}"#;
        assert!(is_error(etcd, None));
        assert_eq!(plain(etcd), "discovery failed: e");
        let older = "2023-02-23 08:07:15.326768 W | etcdserver: read-only range request took long";
        assert!(!is_error(older, None) && has_level(older));
        assert_eq!(
            plain(older),
            "etcdserver: read-only range request took long"
        );
        assert!(is_error(
            "2023-02-23 08:07:15.326768 C | etcdmain: no such file",
            None
        ));
        assert!(is_error("Error: unknown flag: --network-plugin", None));
        assert!(is_error("anything at all", Some(3)));
        assert!(!is_error("anything at all", Some(6)));
        assert!(is_failed_unit(
            "kubelet.service: Failed with result 'exit-code'."
        ));
    }

    #[test]
    fn lines_that_differ_in_numbers_are_the_same() {
        let one = key("dial tcp 10.0.0.1:6443: connect: refused, pod 7f3a-aa (4 times)");
        let two = key("dial tcp 10.0.0.22:6443: connect: refused, pod 81bc-aa (15 times)");
        assert_eq!(one, two);
        assert_ne!(key("connection refused"), key("connection reset"));
        assert_eq!(key("größe 12 µs"), "größe # µs");
    }
}
