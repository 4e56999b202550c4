//! `%` specifiers in unit files (systemd.unit(5), "SPECIFIERS"), as far as a powered-off disk can
//! answer them.

use crate::guest::{Guest, GuestPath};

/// Specifiers whose value only the running system knows, or that not every version of systemd has.
const RUNTIME: &str = "bBsvqdDyYAM";

/// A specifier that systemd does not know: it takes the whole setting for broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a % specifier that does not exist")]
pub struct UnknownSpecifier;

/// What specifiers of one unit stand for.
#[derive(Debug, Clone, Default)]
pub struct Specifiers {
    name: String,
    fragment: String,
    machine_id: Option<String>,
    hostname: Option<String>,
    os_release: Vec<(String, String)>,
}

impl Specifiers {
    /// For the unit `name`, loaded from `fragment` in `guest`.
    pub fn new(guest: &Guest, name: &str, fragment: Option<&GuestPath>) -> Self {
        let first_line = |path: &str| {
            let text = guest.read_text(&GuestPath::new(path)).ok()?;
            let line = text
                .lines()
                .map(str::trim)
                .find(|line| !line.is_empty() && !line.starts_with('#'))?;
            Some(line.to_owned())
        };
        let os_release = ["/etc/os-release", "/usr/lib/os-release"]
            .iter()
            .find_map(|path| guest.read(&GuestPath::new(path)).ok())
            .and_then(|bytes| super::environment::parse_file(&bytes).ok())
            .unwrap_or_default();
        Self {
            name: name.to_owned(),
            fragment: fragment
                .map(|path| path.as_path().to_string_lossy().into_owned())
                .unwrap_or_default(),
            machine_id: first_line("/etc/machine-id"),
            hostname: first_line("/etc/hostname"),
            os_release: os_release
                .into_iter()
                .map(|variable| (variable.name, variable.value))
                .collect(),
        }
    }

    /// Replaces specifiers in `text`. Those that only the running system knows (`%b`, `%v` …) stay
    /// as they are and are named in `unresolved`. A letter or digit that is no specifier is an
    /// error, as in systemd; before anything else `%` is plain.
    pub fn resolve(
        &self,
        text: &str,
        unresolved: &mut Vec<String>,
    ) -> Result<String, UnknownSpecifier> {
        let mut out = String::with_capacity(text.len());
        let mut characters = text.chars();
        while let Some(character) = characters.next() {
            if out.len() > super::environment::LONGEST_ARGUMENTS {
                return Err(UnknownSpecifier);
            }
            if character != '%' {
                out.push(character);
                continue;
            }
            match characters.next() {
                None | Some('%') => out.push('%'),
                Some(letter) => match self.value(letter) {
                    Some(value) => out.push_str(&value),
                    None => {
                        out.extend(['%', letter]);
                        if RUNTIME.contains(letter) || self.needs_missing_file(letter) {
                            unresolved.push(format!("%{letter}"));
                        } else if letter.is_ascii_alphanumeric() {
                            return Err(UnknownSpecifier);
                        }
                    }
                },
            }
        }
        Ok(out)
    }

    fn needs_missing_file(&self, letter: char) -> bool {
        (letter == 'm' && self.machine_id.is_none())
            || (matches!(letter, 'H' | 'l') && self.hostname.is_none())
    }

    fn value(&self, letter: char) -> Option<String> {
        let stem = self
            .name
            .rsplit_once('.')
            .map_or(self.name.as_str(), |(stem, _)| stem);
        let (prefix, instance) = stem.split_once('@').unwrap_or((stem, ""));
        let last = prefix.rsplit('-').next().unwrap_or(prefix);
        Some(match letter {
            'n' => self.name.clone(),
            'N' => stem.to_owned(),
            'p' => prefix.to_owned(),
            'P' => unescape(prefix),
            'i' => instance.to_owned(),
            'I' => unescape(instance),
            'j' => last.to_owned(),
            'J' => unescape(last),
            'f' => format!(
                "/{}",
                unescape(if instance.is_empty() {
                    prefix
                } else {
                    instance
                })
            ),
            't' => "/run".to_owned(),
            'S' => "/var/lib".to_owned(),
            'C' => "/var/cache".to_owned(),
            'L' => "/var/log".to_owned(),
            'E' => "/etc".to_owned(),
            'T' => "/tmp".to_owned(),
            'V' => "/var/tmp".to_owned(),
            'u' | 'g' => "root".to_owned(),
            'U' | 'G' => "0".to_owned(),
            'h' => "/root".to_owned(),
            'm' => self.machine_id.clone()?,
            'H' => self.hostname.clone()?,
            'l' => self.hostname.as_ref()?.split('.').next()?.to_owned(),
            'o' => self.os("ID"),
            'w' => self.os("VERSION_ID"),
            'W' => self.os("VARIANT_ID"),
            'y' if !self.fragment.is_empty() => self.fragment.clone(),
            'Y' => self.fragment.rsplit_once('/')?.0.to_owned(),
            'a' => architecture().to_owned(),
            _ => return None,
        })
    }

    fn os(&self, key: &str) -> String {
        self.os_release
            .iter()
            .rev()
            .find(|(name, _)| name == key)
            .map(|(_, value)| value.clone())
            .unwrap_or_default()
    }
}

/// systemd's own word for the architecture; a guest is booted on the one its rescuer runs on.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "x86-64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// `unit_name_unescape()`: `-` is a slash, `\x2d` a byte.
fn unescape(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        let hexadecimal = (byte == b'\\' && bytes.get(at + 1) == Some(&b'x'))
            .then(|| text.get(at + 2..at + 4))
            .flatten()
            .and_then(|digits| u8::from_str_radix(digits, 16).ok());
        match hexadecimal {
            Some(value) => {
                out.push(value);
                at += 4;
            }
            None => {
                out.push(if byte == b'-' { b'/' } else { byte });
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::MemoryTree;

    #[test]
    fn resolves_what_the_disk_knows() {
        let guest = MemoryTree::new()
            .file("/etc/machine-id", "0123\n")
            .file("/etc/hostname", "# a comment\nnode1.example\n")
            .file("/usr/lib/os-release", "ID=debian\nVERSION_ID=\"12\"\n")
            .into_guest();
        let specifiers = Specifiers::new(&guest, "kube-let@a-b\\x2dc.service", None);
        let mut unresolved = Vec::new();
        assert_eq!(
            specifiers
                .resolve("%n %N %p %i %I %j %m %H %l %o %w %% %- 5%", &mut unresolved)
                .as_deref(),
            Ok(
                "kube-let@a-b\\x2dc.service kube-let@a-b\\x2dc kube-let a-b\\x2dc a/b-c let 0123 \
                 node1.example node1 debian 12 % %- 5%"
            )
        );
        assert_eq!(
            specifiers.resolve("%z", &mut unresolved),
            Err(UnknownSpecifier)
        );
        assert!(unresolved.is_empty());
        assert_eq!(
            specifiers.resolve("%v%b", &mut unresolved).as_deref(),
            Ok("%v%b")
        );
        assert_eq!(unresolved, ["%v", "%b"]);
    }
}
