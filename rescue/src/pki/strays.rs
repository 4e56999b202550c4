//! Files among the certificates that nothing on the node names: backups, leftovers of scripts,
//! earlier certificates. Told by what they hold, not by what they are called; keys are recognised
//! and never shown.

use std::collections::BTreeSet;
use time::OffsetDateTime;

use super::inventory::certificate_directory;
use super::service_account;
use super::x509::certificate::{Certificate, printable};
use super::x509::pem;
use crate::base::units;
use crate::guest::{Guest, GuestPath, RealPath};
use crate::kubeconfig::{Kubeconfig, Material};
use crate::node::Node;
use crate::tree::FileKind;

/// Files looked at per node.
const MAX_FILES: usize = 2_000;

/// Folders below a folder.
const MAX_DEPTH: usize = 4;

/// Larger files are no certificates.
const MAX_BYTES: u64 = 256 * 1024;

/// What an unreferenced file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum StrayKind {
    /// One or more certificates.
    Certificate,
    /// A private key.
    Key,
    /// A public key.
    PublicKey,
    /// A certificate signing request.
    Request,
    /// A kubeconfig.
    Kubeconfig,
    /// A link that leads nowhere.
    DeadLink,
    /// Something else.
    Other,
}

/// One unreferenced file.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Stray {
    /// Guest path.
    pub path: String,
    /// What it is.
    pub kind: StrayKind,
    /// Of a certificate (a kubeconfig's too): its subject.
    pub subject: Option<String>,
    /// Of a certificate: its last moment.
    #[serde(with = "time::serde::rfc3339::option")]
    pub expires: Option<OffsetDateTime>,
    /// One line for people; never anything of a key.
    pub what: String,
}

/// Everything in the folders of certificates that is not among `used`, by path.
pub(super) fn find(guest: &Guest, node: &Node, used: &BTreeSet<RealPath>) -> Vec<Stray> {
    let mut search = Search {
        guest,
        used,
        seen: BTreeSet::new(),
        found: Vec::new(),
        files: 0,
    };
    search.seen.extend(
        service_account::paths(node)
            .iter()
            .filter_map(|path| guest.resolve(path).ok()),
    );
    let directory = certificate_directory(node);
    search.folder(&directory, 0);
    if let Some(folder) = &node.kubelet.cert_dir.value {
        search.folder(folder, 0);
    }
    search.kubernetes();
    search.found.sort_by(|a, b| a.path.cmp(&b.path));
    search.found
}

/// A regular file of a certificate's size.
pub(super) fn read_small(guest: &Guest, path: &GuestPath) -> Option<Vec<u8>> {
    let real = guest.resolve(path).ok()?;
    guest.tree().read(real.as_path(), MAX_BYTES).ok()
}

struct Search<'a> {
    guest: &'a Guest,
    used: &'a BTreeSet<RealPath>,
    seen: BTreeSet<RealPath>,
    found: Vec<Stray>,
    files: usize,
}

impl Search<'_> {
    fn folder(&mut self, folder: &GuestPath, depth: usize) {
        let new = self
            .guest
            .resolve(folder)
            .is_ok_and(|real| self.seen.insert(real));
        if !new || depth > MAX_DEPTH {
            return;
        }
        for entry in self.guest.read_dir(folder).unwrap_or_default() {
            let path = folder.join(&entry.name);
            match entry.kind {
                FileKind::Directory => self.folder(&path, depth + 1),
                FileKind::Special => {}
                FileKind::Regular | FileKind::Symlink => self.file(&path, true),
            }
        }
    }

    /// Beside pki/ lie the kubeconfigs, their backups, and backups of the whole folder. Other files
    /// there are nobody's certificates.
    fn kubernetes(&mut self) {
        let folder = GuestPath::new("/etc/kubernetes");
        for entry in self.guest.read_dir(&folder).unwrap_or_default() {
            let path = folder.join(&entry.name);
            let name = entry.name.to_string_lossy();
            match entry.kind {
                FileKind::Directory if name.starts_with("pki") || name.starts_with("ssl") => {
                    self.folder(&path, 0)
                }
                FileKind::Regular | FileKind::Symlink => self.file(&path, false),
                _ => {}
            }
        }
    }

    fn file(&mut self, path: &GuestPath, whatever: bool) {
        self.files += 1;
        if self.files > MAX_FILES {
            return;
        }
        let Ok(real) = self.guest.resolve(path) else {
            let target = self.guest.read_link(path).unwrap_or_default();
            let what = format!("a link to {}, which is not there", GuestPath::new(target));
            self.add(path, StrayKind::DeadLink, what);
            return;
        };
        if self.used.contains(&real) || !self.seen.insert(real) {
            return;
        }
        match read_small(self.guest, path).map(|bytes| told(&bytes, path)) {
            Some(told) if whatever || told.kind != StrayKind::Other => {
                self.found.push(Stray {
                    path: path.to_string(),
                    ..told
                });
            }
            None if whatever => self.add(
                path,
                StrayKind::Other,
                "not read: no regular file of a certificate's size".to_owned(),
            ),
            _ => {}
        }
    }

    fn add(&mut self, path: &GuestPath, kind: StrayKind, what: String) {
        self.found.push(Stray {
            path: path.to_string(),
            kind,
            subject: None,
            expires: None,
            what,
        });
    }
}

/// What some bytes are.
fn told(bytes: &[u8], path: &GuestPath) -> Stray {
    let plain = |kind, what: &str| Stray {
        path: String::new(),
        kind,
        subject: None,
        expires: None,
        what: what.to_owned(),
    };
    let blocks = pem::blocks(bytes);
    let has = |label: &str| blocks.iter().any(|block| block.label.ends_with(label));
    if let Ok(all) = Certificate::all_from_pem(bytes)
        && let Some(first) = all.first()
    {
        let more = match (all.len() - 1, has("PRIVATE KEY")) {
            (0, false) => String::new(),
            (0, true) => ", with its key".to_owned(),
            (more, _) => format!(
                ", and {}",
                units::count(more, "more certificate", "more certificates")
            ),
        };
        return certificate("certificate", first, &more);
    }
    if has("PRIVATE KEY") {
        return plain(StrayKind::Key, "private key");
    }
    if has("CERTIFICATE REQUEST") {
        return plain(StrayKind::Request, "certificate signing request");
    }
    if has("PUBLIC KEY") {
        return plain(StrayKind::PublicKey, "public key");
    }
    if looks_like_kubeconfig(bytes) {
        return kubeconfig(bytes, path)
            .unwrap_or_else(|| plain(StrayKind::Kubeconfig, "kubeconfig"));
    }
    let what = match (
        bytes.len(),
        path.as_path()
            .extension()
            .is_some_and(|extension| extension == "srl"),
    ) {
        (0, _) => "empty",
        (_, true) => "openssl's count of serial numbers",
        _ => "neither certificate nor key",
    };
    plain(StrayKind::Other, what)
}

fn certificate(what: &str, certificate: &Certificate, more: &str) -> Stray {
    Stray {
        path: String::new(),
        kind: StrayKind::Certificate,
        subject: Some(certificate.subject.clone()),
        expires: Some(certificate.not_after),
        what: format!(
            "{what}, {}, ends {}{more}",
            certificate.subject,
            units::time(certificate.not_after)
        ),
    }
}

fn looks_like_kubeconfig(bytes: &[u8]) -> bool {
    let text = String::from_utf8_lossy(bytes);
    text.contains("kind: Config") && text.contains("clusters:")
}

fn kubeconfig(bytes: &[u8], path: &GuestPath) -> Option<Stray> {
    let config = Kubeconfig::parse(bytes, path).ok()?;
    let user = config.current_user()?;
    Some(match &user.certificate {
        Material::Inline(bytes) => {
            let all = Certificate::all_from_pem(bytes).ok()?;
            Stray {
                kind: StrayKind::Kubeconfig,
                ..certificate("kubeconfig", all.first()?, "")
            }
        }
        _ => Stray {
            path: String::new(),
            kind: StrayKind::Kubeconfig,
            subject: None,
            expires: None,
            what: format!("kubeconfig of user {}", printable(&user.name)),
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pki::service_account::public_pem;
    use crate::pki::x509::key::{Algorithm, PrivateKey};
    use crate::tree::MemoryTree;

    fn found(guest: &Guest) -> Vec<(String, StrayKind)> {
        let strays = find(guest, &Node::read(guest), &BTreeSet::new());
        strays
            .into_iter()
            .map(|stray| (stray.path, stray.kind))
            .collect()
    }

    #[test]
    fn files_are_told_by_what_they_hold() {
        let key = PrivateKey::generate(Algorithm::P256).unwrap();
        let guest = MemoryTree::new()
            .file("/etc/kubernetes/pki/sa.key", key.to_pem().unwrap())
            .file("/etc/kubernetes/pki/sa.pub", public_pem(&key))
            .file("/etc/kubernetes/pki/looks-like.crt", key.to_pem().unwrap())
            .file("/etc/kubernetes/pki/deep/er/old.pub", public_pem(&key))
            .file(
                "/etc/kubernetes/pki/request",
                pem::encode("CERTIFICATE REQUEST", b"x"),
            )
            .file("/etc/kubernetes/pki/notes.txt", "hello")
            .link("/etc/kubernetes/pki/gone.crt", "/nowhere")
            .link("/etc/kubernetes/pki/loop", "/etc/kubernetes/pki")
            .file("/etc/kubernetes/pki.bak/ca.key", key.to_pem().unwrap())
            .file("/etc/kubernetes/unrelated.txt", "hello")
            .into_guest();
        let expected = [
            ("/etc/kubernetes/pki.bak/ca.key", StrayKind::Key),
            ("/etc/kubernetes/pki/deep/er/old.pub", StrayKind::PublicKey),
            ("/etc/kubernetes/pki/gone.crt", StrayKind::DeadLink),
            ("/etc/kubernetes/pki/looks-like.crt", StrayKind::Key),
            ("/etc/kubernetes/pki/notes.txt", StrayKind::Other),
            ("/etc/kubernetes/pki/request", StrayKind::Request),
        ];
        assert_eq!(
            found(&guest),
            expected.map(|(path, kind)| (path.to_owned(), kind))
        );
    }

    #[test]
    fn a_crafted_folder_has_an_end() {
        let mut tree = MemoryTree::new().file("/etc/kubernetes/pki/big", vec![b'a'; 300 * 1024]);
        for number in 0..MAX_FILES + 10 {
            tree = tree.file(format!("/etc/kubernetes/pki/x/{number:05}"), "x");
        }
        let strays = found(&tree.into_guest());
        assert_eq!(strays.len(), MAX_FILES);
        assert_eq!(
            strays[0],
            ("/etc/kubernetes/pki/big".to_owned(), StrayKind::Other)
        );
    }
}
