//! The operating system and what it calls itself.

use super::Fact;
use crate::base::escaping::escape;
use crate::guest::{Guest, GuestPath};
use crate::systemd::environment;

const OS_RELEASE: [&str; 2] = ["/etc/os-release", "/usr/lib/os-release"];

/// Variables of os-release(5), with the file they were read from.
pub fn os_release(guest: &Guest) -> Option<(GuestPath, Vec<(String, String)>)> {
    OS_RELEASE.iter().map(GuestPath::new).find_map(|path| {
        let variables = environment::parse_file(&guest.read(&path).ok()?).ok()?;
        let pairs: Vec<_> = variables
            .into_iter()
            .map(|variable| (variable.name, variable.value))
            .collect();
        (!pairs.is_empty()).then_some((path, pairs))
    })
}

/// PRETTY_NAME, else NAME and VERSION.
pub(super) fn name(guest: &Guest) -> Fact<String> {
    let Some((path, pairs)) = os_release(guest) else {
        return Fact::unknown("no readable /etc/os-release or /usr/lib/os-release");
    };
    let get = |key: &str| {
        pairs
            .iter()
            .rev()
            .find(|(name, _)| name == key)
            .map(|(_, value)| value.as_str())
    };
    match (get("PRETTY_NAME"), get("NAME")) {
        (Some(pretty), _) if !pretty.is_empty() => Fact::known(escape(pretty), path),
        (_, Some(name)) => Fact::known(
            escape(format!("{name} {}", get("VERSION").unwrap_or_default()).trim()),
            path,
        ),
        _ => Fact::unknown(format!("{path} names nothing")),
    }
}

/// The first line of /etc/hostname that is not a comment (hostname(5)).
pub(super) fn hostname(guest: &Guest) -> Fact<String> {
    first_line(guest, "/etc/hostname")
}

/// /etc/machine-id; empty and `uninitialized` are unknown.
pub(super) fn machine_id(guest: &Guest) -> Fact<String> {
    let fact = first_line(guest, "/etc/machine-id");
    match fact.value.as_deref() {
        Some(id) if id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit()) => fact,
        Some(_) => Fact::unknown("/etc/machine-id holds no id"),
        None => fact,
    }
}

fn first_line(guest: &Guest, path: &str) -> Fact<String> {
    let path = GuestPath::new(path);
    let text = match guest.read_text(&path) {
        Ok(text) => text,
        Err(error) => return Fact::unknown(error),
    };
    match text
        .lines()
        .map(str::trim)
        .find(|line| !line.is_empty() && !line.starts_with('#'))
    {
        // A host name is shown everywhere, also where a terminal would obey it.
        Some(line) => Fact::known(escape(line), path),
        None => Fact::unknown(format!("{path} is empty")),
    }
}
