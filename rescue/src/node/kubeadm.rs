//! The kubeadm program on the node.

use super::{Version, packages, version};
use crate::guest::{Guest, GuestPath};
use crate::tree::FileKind;

/// Where packages, and kubespray's `bin_dir`, put it.
const PLACES: [&str; 3] = [
    "/usr/bin/kubeadm",
    "/usr/local/bin/kubeadm",
    "/opt/bin/kubeadm",
];

/// A kubeadm that can be run on the node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kubeadm {
    /// The program.
    pub path: GuestPath,
    /// Its version, from the package database or the program itself.
    pub version: Option<Version>,
}

/// Looks for kubeadm.
pub fn kubeadm(guest: &Guest) -> Option<Kubeadm> {
    let is_program = |path: &GuestPath| {
        guest
            .stat(path)
            .is_ok_and(|meta| meta.kind == FileKind::Regular && meta.mode & 0o111 != 0)
    };
    let path = PLACES.into_iter().map(GuestPath::new).find(is_program)?;
    // Only a package puts anything into /usr/bin.
    let package = (path.to_string() == PLACES[0])
        .then(|| packages::version(guest, "kubeadm"))
        .flatten();
    let version = package
        .and_then(|(text, _)| version::parse(&text))
        .or_else(|| version::from_binary(guest, &path));
    Some(Kubeadm { path, version })
}
