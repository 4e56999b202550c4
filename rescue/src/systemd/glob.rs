//! glob(3) as `EnvironmentFile=` uses it: `*`, `?` and `[…]` within names, sorted, hidden files
//! only by a literal dot.

use crate::guest::{Guest, GuestPath};

/// Far more than anybody has; a crafted pattern must not hold us up.
const MAX_MATCHES: usize = 1000;

/// Files that match `pattern`, an absolute path. Without wildcards: the file itself if it is there.
pub fn matches(guest: &Guest, pattern: &str) -> Vec<GuestPath> {
    let mut found = vec![GuestPath::new("/")];
    for part in pattern.split('/').filter(|part| !part.is_empty()) {
        found = if part.contains(['*', '?', '[', '\\']) {
            found
                .iter()
                .flat_map(|folder| children(guest, folder, part))
                .take(MAX_MATCHES)
                .collect()
        } else {
            found.iter().map(|folder| folder.join(part)).collect()
        };
    }
    found.retain(|path| guest.exists(path));
    found
}

fn children(guest: &Guest, folder: &GuestPath, pattern: &str) -> Vec<GuestPath> {
    let pattern: Vec<char> = pattern.chars().collect();
    guest
        .read_dir(folder)
        .unwrap_or_default()
        .into_iter()
        .filter_map(|entry| entry.name.into_string().ok())
        .filter(|name| name.starts_with('.') <= (pattern.first() == Some(&'.')))
        .filter(|name| matches_name(&pattern, &name.chars().collect::<Vec<_>>()))
        .map(|name| folder.join(name))
        .collect()
}

/// Whether an absolute path matches a pattern, as [`matches`] would find it if it were there.
pub fn matches_path(pattern: &str, path: &str) -> bool {
    let parts = |text: &str| -> Vec<Vec<char>> {
        text.split('/')
            .filter(|part| !part.is_empty())
            .map(|part| part.chars().collect())
            .collect()
    };
    let (pattern, path) = (parts(pattern), parts(path));
    let hidden_fits = |p: &[char], n: &[char]| n.first() != Some(&'.') || p.first() == Some(&'.');
    pattern.len() == path.len()
        && pattern
            .iter()
            .zip(&path)
            .all(|(pattern, name)| hidden_fits(pattern, name) && matches_name(pattern, name))
}

/// Wildcard match with one backtracking point, so that no pattern takes more than the product of
/// both lengths.
fn matches_name(pattern: &[char], name: &[char]) -> bool {
    let (mut at, mut seen) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while seen < name.len() {
        if pattern.get(at) == Some(&'*') {
            star = Some((at, seen));
            at += 1;
        } else if let Some(next) = name
            .get(seen)
            .and_then(|character| one(pattern, at, *character))
        {
            at = next;
            seen += 1;
        } else if let Some((from, taken)) = star {
            star = Some((from, taken + 1));
            at = from + 1;
            seen = taken + 1;
        } else {
            return false;
        }
    }
    pattern
        .get(at..)
        .unwrap_or_default()
        .iter()
        .all(|rest| *rest == '*')
}

/// Matches one character; returns where the pattern goes on.
fn one(pattern: &[char], at: usize, character: char) -> Option<usize> {
    match pattern.get(at)? {
        '?' => Some(at + 1),
        '\\' => (pattern.get(at + 1) == Some(&character)).then_some(at + 2),
        '[' => match class(pattern, at + 1) {
            Some((end, negated, ranges)) => {
                let inside = ranges
                    .iter()
                    .any(|(low, high)| (*low..=*high).contains(&character));
                (inside != negated).then_some(end)
            }
            // Without its ] it is plain text.
            None => (character == '[').then_some(at + 1),
        },
        plain => (*plain == character).then_some(at + 1),
    }
}

type Class = (usize, bool, Vec<(char, char)>);

fn class(pattern: &[char], start: usize) -> Option<Class> {
    let mut at = start;
    let negated = matches!(pattern.get(at), Some('!' | '^'));
    at += usize::from(negated);
    let first = at;
    let mut ranges = Vec::new();
    loop {
        let low = *pattern.get(at)?;
        if low == ']' && at > first {
            return Some((at + 1, negated, ranges));
        }
        match (pattern.get(at + 1), pattern.get(at + 2)) {
            (Some('-'), Some(high)) if *high != ']' => {
                ranges.push((low, *high));
                at += 3;
            }
            _ => {
                ranges.push((low, low));
                at += 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::MemoryTree;

    #[test]
    fn finds_files() {
        let guest = MemoryTree::new()
            .file("/etc/default/kubelet", "")
            .file("/etc/kubelet.d/20-b.env", "")
            .file("/etc/kubelet.d/10-a.env", "")
            .file("/etc/kubelet.d/.hidden.env", "")
            .into_guest();
        let names = |pattern: &str| -> Vec<String> {
            matches(&guest, pattern)
                .iter()
                .map(ToString::to_string)
                .collect()
        };
        assert_eq!(names("/etc/default/kubelet"), ["/etc/default/kubelet"]);
        assert_eq!(
            names("/etc/kubelet.d/*.env"),
            ["/etc/kubelet.d/10-a.env", "/etc/kubelet.d/20-b.env"]
        );
        assert_eq!(names("/etc/*/[1]?-[!b].e*v"), ["/etc/kubelet.d/10-a.env"]);
        assert!(names("/etc/nothing").is_empty());
    }
}
