//! Names of files inside the guest.

use crate::base::escaping;
use std::ffi::OsString;
use std::fmt;
use std::path::{Component, Path, PathBuf};

/// An absolute path inside the guest, not yet resolved: the only way to name a guest file.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GuestPath(PathBuf);

impl GuestPath {
    /// From text as the guest's files write it; a relative path counts from the guest's root.
    pub fn new(path: impl AsRef<Path>) -> Self {
        let mut absolute = PathBuf::from("/");
        for component in path.as_ref().components() {
            match component {
                Component::Normal(name) => absolute.push(name),
                Component::ParentDir => absolute.push(".."),
                Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
            }
        }
        Self(absolute)
    }

    /// The path below this one.
    pub fn join(&self, below: impl AsRef<Path>) -> Self {
        let below = below.as_ref();
        Self::new(self.0.join(below.strip_prefix("/").unwrap_or(below)))
    }

    /// The folder above; the root is its own parent.
    pub fn parent(&self) -> Self {
        Self(self.0.parent().unwrap_or(Path::new("/")).to_path_buf())
    }

    /// As a plain path, always beginning with `/`.
    pub fn as_path(&self) -> &Path {
        &self.0
    }

    pub(super) fn components_reversed(&self) -> Vec<OsString> {
        components_reversed(&self.0)
    }
}

/// Names of a path, last first, `.` and the root left out, `..` kept: the resolver's to-do stack.
pub(super) fn components_reversed(path: &Path) -> Vec<OsString> {
    path.components()
        .rev()
        .filter_map(|component| match component {
            Component::Normal(name) => Some(name.to_os_string()),
            Component::ParentDir => Some("..".into()),
            _ => None,
        })
        .collect()
}

impl fmt::Display for GuestPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        escaping::write_path(f, &self.0)
    }
}

impl From<&str> for GuestPath {
    fn from(path: &str) -> Self {
        Self::new(path)
    }
}

impl From<&RealPath> for GuestPath {
    fn from(real: &RealPath) -> Self {
        Self(real.0.clone())
    }
}

impl serde::Serialize for GuestPath {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// A path inside the guest that the resolver found free of symbolic links. Writers check that
/// again.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RealPath(PathBuf);

impl RealPath {
    /// Only the resolver and the transaction's journal make these.
    pub(crate) fn new(path: PathBuf) -> Self {
        debug_assert!(path.is_absolute());
        Self(path)
    }

    /// A mount point of the guest's mount table, which discovery made from resolved paths.
    pub(crate) fn from_mount_point(mount_point: &GuestPath) -> Self {
        Self(mount_point.0.clone())
    }

    /// As a plain path, always beginning with `/`.
    pub fn as_path(&self) -> &Path {
        &self.0
    }

    /// The folder above.
    pub fn parent(&self) -> Self {
        Self(self.0.parent().unwrap_or(Path::new("/")).to_path_buf())
    }

    /// A name in this folder; the caller vouches that it is not a link.
    pub(crate) fn child(&self, name: &std::ffi::OsStr) -> Self {
        Self(self.0.join(name))
    }
}

impl fmt::Display for RealPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        escaping::write_path(f, &self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn normalises_without_climbing() {
        assert_eq!(
            GuestPath::new("etc//./hosts").as_path(),
            Path::new("/etc/hosts")
        );
        assert_eq!(
            GuestPath::new("/a").join("/b/c").as_path(),
            Path::new("/a/b/c")
        );
        assert_eq!(GuestPath::new("/").parent().as_path(), Path::new("/"));
    }

    #[test]
    fn shows_control_characters_escaped() {
        assert_eq!(
            GuestPath::new("/a\x1b[2J\nb").to_string(),
            "/a\\u{1b}[2J\\nb"
        );
        // Shown as it is, this would read "fdp.exe": what comes after is written from right to
        // left.
        assert_eq!(
            GuestPath::new("/\u{202e}exe.pdf\u{200b}").to_string(),
            "/\\u{202e}exe.pdf\\u{200b}"
        );
    }
}
