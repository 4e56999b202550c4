//! Mount points whose file system is not among the sources. What lies in such a folder is not what
//! the node sees once it has booted, and whatever is written there is hidden from it.

use std::path::{Path, PathBuf};

use super::{Guest, GuestPath};
use crate::tree::TreeError;

/// A mount point of the guest without its file system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Missing {
    /// Where it is mounted; its links resolved where that is possible.
    pub at: GuestPath,
    /// The line of fstab and what became of it, one plain sentence without a full stop.
    pub why: String,
    /// The number of the line, from 1.
    pub line: usize,
    /// Whether what it wants is on none of the disks given: not when it is there and cannot be
    /// read, or when only a folder was given.
    pub is_absent: bool,
}

impl Guest {
    /// The mount that will hide `path` at the next boot. The path need not be there.
    pub fn hidden(&self, path: &GuestPath) -> Option<&Missing> {
        if self.missing.is_empty() {
            return None;
        }
        let real = self.real_or_written(path);
        let mounted = |at: &Path| {
            self.file_systems
                .iter()
                .any(|fs| is_between(fs.mount_point.as_path(), at, &real))
        };
        let above = self
            .missing
            .iter()
            .filter(|missing| real.starts_with(missing.at.as_path()));
        above
            .filter(|missing| !mounted(missing.at.as_path()))
            .max_by_key(|missing| missing.at.as_path().components().count())
    }

    /// Where a path leads, with the links of what is there resolved. A link to what is not there is
    /// followed as well: it may lead into a file system that is missing.
    pub fn real_or_written(&self, path: &GuestPath) -> PathBuf {
        /// As many as the kernel follows (path_resolution(7)).
        const LINKS: usize = 40;
        let mut path = path.clone();
        for _ in 0..LINKS {
            let (there, rest) = self.as_far_as_it_goes(&path);
            let mut names = rest.components();
            let Some(first) = names.next() else {
                return there;
            };
            let link = GuestPath::new(there.join(first));
            let Ok(target) = self.read_link(&link) else {
                return there.join(rest);
            };
            path = GuestPath::new(there.join(target).join(names.as_path()));
        }
        path.as_path().to_path_buf()
    }

    /// The part of a path that is there, its links resolved, and the names that are left.
    fn as_far_as_it_goes(&self, path: &GuestPath) -> (PathBuf, PathBuf) {
        let mut there = path.clone();
        loop {
            match self.resolve(&there) {
                Ok(real) => {
                    let rest = path.as_path().strip_prefix(there.as_path());
                    let rest = rest.unwrap_or(Path::new("")).to_path_buf();
                    return (real.as_path().to_path_buf(), rest);
                }
                Err(TreeError::NotFound(_)) if there.parent() != there => there = there.parent(),
                Err(_) => return (path.as_path().to_path_buf(), PathBuf::new()),
            }
        }
    }
}

/// Whether something mounted at `mount_point`, at or below `at`, holds `real`.
fn is_between(mount_point: &Path, at: &Path, real: &Path) -> bool {
    mount_point.starts_with(at) && real.starts_with(mount_point)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guest::FileSystem;
    use crate::tree::MemoryTree;

    fn guest(missing: &[&str], mounted: &[&str]) -> Guest {
        let mut guest = MemoryTree::new()
            .file("/var/lib/kubelet/config.yaml", "x")
            .link("/etc/kubernetes/pki", "/var/pki")
            .file("/var/pki/ca.crt", "x")
            .link("/var/lib/containerd", "/data/containerd")
            .link("/var/lib/docker", "../../data/./docker")
            .link("/loop", "/loop")
            .into_guest();
        guest.missing = missing
            .iter()
            .map(|at| Missing {
                at: GuestPath::new(at),
                why: format!("{at} is missing"),
                line: 1,
                is_absent: true,
            })
            .collect();
        let root = guest.file_systems[0].clone();
        let mount = |at: &&str| FileSystem {
            mount_point: GuestPath::new(at),
            ..root.clone()
        };
        guest.file_systems.extend(mounted.iter().map(mount));
        guest
    }

    fn hides(guest: &Guest, path: &str) -> Option<String> {
        guest
            .hidden(&GuestPath::new(path))
            .map(|missing| missing.at.to_string())
    }

    #[test]
    fn what_lies_below_a_missing_mount_is_hidden() {
        let guest = guest(&["/var", "/var/lib/etcd"], &["/var/log"]);
        assert_eq!(
            hides(&guest, "/var/lib/kubelet/config.yaml").as_deref(),
            Some("/var")
        );
        assert_eq!(hides(&guest, "/var/lib/new/file").as_deref(), Some("/var"));
        assert_eq!(
            hides(&guest, "/var/lib/etcd/member").as_deref(),
            Some("/var/lib/etcd")
        );
        assert_eq!(
            hides(&guest, "/etc/kubernetes/pki/ca.crt").as_deref(),
            Some("/var"),
            "through a link"
        );
        assert_eq!(hides(&guest, "/var").as_deref(), Some("/var"));
    }

    #[test]
    fn a_link_into_what_is_missing_is_followed() {
        let guest = guest(&["/data"], &[]);
        for path in ["/var/lib/containerd", "/var/lib/docker/overlay2/l"] {
            assert_eq!(hides(&guest, path).as_deref(), Some("/data"), "{path}");
        }
        assert_eq!(hides(&guest, "/loop/x"), None);
    }

    #[test]
    fn what_lies_elsewhere_is_not() {
        let guest = guest(&["/var"], &["/var/log"]);
        for path in [
            "/etc/kubernetes/admin.conf",
            "/variable",
            "/",
            "/var/log/syslog",
            "/var/log",
        ] {
            assert_eq!(hides(&guest, path), None, "{path}");
        }
    }
}
