//! Versions of installed packages, from dpkg's status and rpm's database.

use crate::guest::{Guest, GuestPath};
use crate::tree::FileKind;

const DPKG_STATUS: &str = "/var/lib/dpkg/status";

/// rpm's databases: SQLite, Berkeley DB and NDB, in the old and the new place.
const RPM_DATABASES: [&str; 6] = [
    "/var/lib/rpm/rpmdb.sqlite",
    "/usr/lib/sysimage/rpm/rpmdb.sqlite",
    "/var/lib/rpm/Packages.db",
    "/usr/lib/sysimage/rpm/Packages.db",
    "/var/lib/rpm/Packages",
    "/usr/share/rpm/rpmdb.sqlite",
];

/// A database larger than this is not searched.
const MAX_DATABASE: u64 = 512 << 20;

/// The version of an installed package, as its database has it.
pub fn package_version(guest: &Guest, package: &str) -> Option<String> {
    version(guest, package).map(|(version, _)| version)
}

/// Version of an installed package and where it was read.
pub(super) fn version(guest: &Guest, package: &str) -> Option<(String, String)> {
    dpkg(guest, package).or_else(|| rpm(guest, package))
}

fn dpkg(guest: &Guest, package: &str) -> Option<(String, String)> {
    let path = GuestPath::new(DPKG_STATUS);
    let text = guest.read_text(&path).ok()?;
    let wanted = format!("Package: {package}");
    let paragraph = text
        .split("\n\n")
        .find(|paragraph| paragraph.lines().any(|line| line.trim_end() == wanted))?;
    let field = |name: &str| {
        let value = paragraph
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        Some(value.trim().to_owned())
    };
    // "hold ok installed" is how the kubelet is usually kept from being upgraded.
    field("Status").filter(|status| status.ends_with(" installed"))?;
    Some((field("Version")?, path.to_string()))
}

/// A header in the database holds name, version and release one after the other, each ended by a
/// NUL. Pages freed by an upgrade still hold old headers, so the highest version counts.
fn rpm(guest: &Guest, package: &str) -> Option<(String, String)> {
    let needle: Vec<u8> = [b"\0", package.as_bytes(), b"\0"].concat();
    RPM_DATABASES.iter().map(GuestPath::new).find_map(|path| {
        let real = guest.resolve(&path).ok()?;
        let tree = guest.tree();
        let meta = tree.lstat(real.as_path()).ok()?;
        if meta.kind != FileKind::Regular || meta.size > MAX_DATABASE {
            return None;
        }
        let mut versions = Vec::new();
        super::version::scan(tree.as_ref(), real.as_path(), meta.size, |window| {
            for at in find_all(window, &needle) {
                let after = window.get(at + needle.len()..).unwrap_or_default();
                let text = after.split(|byte| *byte == 0).next().unwrap_or_default();
                versions.extend(
                    std::str::from_utf8(text)
                        .ok()
                        .and_then(super::version::parse)
                        .map(|v| (v, text.to_vec())),
                );
            }
            true
        });
        let (_, text) = versions.into_iter().max()?;
        Some((
            String::from_utf8(text).ok()?,
            format!("{path} (searched for its header)"),
        ))
    })
}

fn find_all<'a>(haystack: &'a [u8], needle: &'a [u8]) -> impl Iterator<Item = usize> + 'a {
    haystack
        .windows(needle.len())
        .enumerate()
        .filter(move |(_, window)| *window == needle)
        .map(|(at, _)| at)
}
