//! The kubelet's version.

use std::path::Path;

use super::{Fact, StaticPod, Version, packages};
use crate::guest::{Guest, GuestPath};
use crate::systemd::Unit;
use crate::tree::{FileKind, Tree};

/// A kubelet is 30 to 130 MB.
const MAX_BINARY: u64 = 256 << 20;

const CHUNK: usize = 1 << 20;

/// What a match may be long, so that one across two chunks is seen.
const OVERLAP: usize = 256;

/// From the package database, else the binary, else the control plane's image tags.
pub(super) fn find(guest: &Guest, unit: Option<&Unit>, pods: &[StaticPod]) -> Fact<Version> {
    let package = packages::version(guest, "kubelet");
    if let Some((version, source)) =
        package.and_then(|(text, source)| Some((parse(&text)?, source)))
    {
        return Fact::known(version, source);
    }
    if let Some((version, path)) =
        binary_path(guest, unit).and_then(|path| Some((from_binary(guest, &path)?, path)))
    {
        return Fact::known(version, format!("version string in {path}"));
    }
    let names = [
        "kube-apiserver",
        "kube-controller-manager",
        "kube-scheduler",
    ];
    let tag = names.iter().find_map(|name| {
        let pod = pods.iter().rev().find(|pod| pod.name == *name)?;
        Some((
            parse(tag_of(&pod.image)?)?,
            format!("image tag in {}", pod.path),
        ))
    });
    match tag {
        Some((version, source)) => Fact::known(version, source),
        None => Fact::unknown(
            "no kubelet package, no version string in its binary, no control-plane image tag",
        ),
    }
}

/// `1.28.2-1.1`, `v1.20.2`, `1:1.30.0-0`, `1.20.5+really1.20.2-1`: the first three numbers of it.
pub(super) fn parse(text: &str) -> Option<Version> {
    let text = text.split_once("really").map_or(text, |(_, rest)| rest);
    let text = text.split_once(':').map_or(text, |(_, rest)| rest);
    let mut numbers = text.trim_start_matches('v').splitn(3, '.');
    let major = numbers.next()?.parse().ok()?;
    let minor = numbers.next()?.parse().ok()?;
    let patch = numbers.next()?;
    let digits = patch.bytes().take_while(u8::is_ascii_digit).count();
    Some(Version {
        major,
        minor,
        patch: patch.get(..digits)?.parse().ok()?,
    })
}

/// The version in an image's tag.
pub(super) fn of_image(image: &str) -> Option<Version> {
    parse(tag_of(image)?)
}

/// `registry:5000/kube-apiserver:v1.20.2@sha256:…` → `v1.20.2`.
fn tag_of(image: &str) -> Option<&str> {
    let image = image.split('@').next().unwrap_or(image);
    let (_, tag) = image.rsplit_once(':')?;
    (!tag.contains('/')).then_some(tag)
}

fn binary_path(guest: &Guest, unit: Option<&Unit>) -> Option<GuestPath> {
    let started = unit
        .and_then(Unit::command)
        .map(|command| GuestPath::new(&command.program));
    let usual = ["/usr/bin/kubelet", "/usr/local/bin/kubelet"].map(GuestPath::new);
    started
        .filter(|path| path.as_path().ends_with("kubelet"))
        .into_iter()
        .chain(usual)
        .find(|path| guest.exists(path))
}

/// Go's linker puts `-X …gitVersion=v1.20.2` into the binary as a text that ends with a NUL, which
/// no other text in a Go program does; newer ones also carry the whole `-X` in their build
/// information. Several different ones mean "unknown".
pub(super) fn from_binary(guest: &Guest, path: &GuestPath) -> Option<Version> {
    let real = guest.resolve(path).ok()?;
    let tree = guest.tree();
    let meta = tree.lstat(real.as_path()).ok()?;
    if meta.kind != FileKind::Regular || meta.size > MAX_BINARY {
        return None;
    }
    let mut spelled = None;
    let mut candidates = std::collections::BTreeSet::new();
    scan(tree.as_ref(), real.as_path(), meta.size, |window| {
        for at in positions(window, b"v1.") {
            let rest = window.get(at..).unwrap_or_default();
            let length = rest
                .iter()
                .take_while(|byte| is_version_byte(**byte))
                .count()
                .min(64);
            let before = window.get(..at).unwrap_or_default();
            let parsed = rest
                .get(..length)
                .and_then(|text| parse(std::str::from_utf8(text).ok()?));
            let Some(version) = parsed.filter(|version| (5..100).contains(&version.minor)) else {
                continue;
            };
            if before.ends_with(b"gitVersion=") {
                spelled = Some(version);
                return false;
            }
            if rest.get(length) == Some(&0) && !before.last().copied().is_some_and(is_version_byte)
            {
                candidates.insert(version);
            }
        }
        true
    });
    spelled.or_else(|| {
        if candidates.len() == 1 {
            candidates.pop_first()
        } else {
            None
        }
    })
}

fn is_version_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'+' | b'/' | b'_' | b'@' | b'=')
}

/// Positions of `needle`, found by its last byte's neighbour: quick enough for 100 MB.
fn positions<'a>(haystack: &'a [u8], needle: &'a [u8]) -> impl Iterator<Item = usize> + 'a {
    haystack
        .windows(needle.len())
        .enumerate()
        .filter(move |(_, window)| *window == needle)
        .map(|(at, _)| at)
}

/// Shows a file of `size` bytes in overlapping windows to `look` until that returns `false`. A file
/// that cannot be read ends.
pub(super) fn scan(tree: &dyn Tree, path: &Path, size: u64, mut look: impl FnMut(&[u8]) -> bool) {
    let mut window: Vec<u8> = Vec::new();
    let mut offset = 0_u64;
    while offset < size {
        let Ok(chunk) = tree.read_range(path, offset, CHUNK) else {
            return;
        };
        if chunk.is_empty() {
            return;
        }
        offset += chunk.len() as u64;
        let keep = window.len().saturating_sub(OVERLAP);
        window.drain(..keep);
        window.extend_from_slice(&chunk);
        if !look(&window) {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_versions() {
        let parsed = |text: &str| parse(text).map(|version| version.to_string());
        assert_eq!(parsed("1.28.2-1.1").as_deref(), Some("1.28.2"));
        assert_eq!(parsed("v1.20.2").as_deref(), Some("1.20.2"));
        assert_eq!(
            parsed("1.20.5+really1.20.2-1.1+deb12u1").as_deref(),
            Some("1.20.2")
        );
        assert_eq!(parsed("1.18"), None);
        assert_eq!(parsed("1.x.3"), None);
        assert_eq!(
            tag_of("registry:5000/kube-apiserver:v1.20.2@sha256:00"),
            Some("v1.20.2")
        );
        assert_eq!(tag_of("registry:5000/kube-apiserver"), None);
    }
}
