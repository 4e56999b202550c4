//! Where a disk keeps copies of its CA certificates: pki, kubeconfigs, bundles, trust stores. Go
//! checks the dates of roots too, so a CA that was renewed in one place only is expired in all
//! others.
//!
//! Searched are the files that manifests, the kubelet's flags and config, and kubeconfigs name, and
//! a bounded number of files in the folders of [`FOLDERS`]. The volumes of pods
//! (/var/lib/kubelet/pods) are left out: the kubelet fills them from the cluster.

use anyhow::{Context as _, Result};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use super::inventory::certificate_directory;
use super::x509::certificate::Certificate;
use super::x509::pem;
use crate::base::yaml;
use crate::guest::{Guest, GuestPath, RealPath};
use crate::kubeconfig::edit::replace_authority;
use crate::kubeconfig::homes::homes;
use crate::kubeconfig::{Kubeconfig, Material};
use crate::node::Node;
use crate::tree::FileKind;

/// Folders that are searched, and how deep.
const FOLDERS: [(&str, usize); 10] = [
    ("/etc/kubernetes", 6),
    ("/etc/cni/net.d", 3),
    ("/etc/ssl/etcd", 4),
    ("/etc/etcd", 4),
    ("/etc/calico", 4),
    ("/var/lib/kubelet", 1),
    ("/var/lib/kube-proxy", 2),
    ("/var/lib/kube-router", 2),
    // What an administrator put into the system's trust store.
    ("/usr/local/share/ca-certificates", 3),
    ("/etc/pki/ca-trust/source/anchors", 2),
];

/// Made from the folders of the trust store by `update-ca-certificates` or `update-ca-trust`.
const GENERATED: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/pki/ca-trust/extracted",
    "/etc/pki/tls/certs",
];

/// kubeadm's own backups (`kubeadm upgrade`).
const BACKUPS: &str = "/etc/kubernetes/tmp";

/// More entries than any of the folders has; a disk with more is searched up to here.
const MAX_ENTRIES: usize = 5000;

/// A bundle of all public CAs has about 220 KiB.
const MAX_FILE: u64 = 1 << 20;

/// What is to be done with a file that holds a copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// Somebody reads it: exchanged.
    InUse,
    /// A backup, by its name: left as it is.
    Backup,
    /// Made from other files by the guest's own tools: left, and made again by them.
    Generated,
}

/// A file with CA certificates in it.
#[derive(Debug, Clone)]
pub struct CopyFile {
    /// Where.
    pub path: GuestPath,
    /// What to do with it.
    pub standing: Standing,
    /// Its self-issued certificates.
    pub certificates: Vec<Certificate>,
}

/// All files with CA certificates, each once, by path.
pub fn find(guest: &Guest, node: &Node) -> Vec<CopyFile> {
    let mut search = Search {
        guest,
        entries: 0,
        found: BTreeMap::new(),
        referenced: BTreeSet::new(),
    };
    for path in named(node) {
        search.named(&path, 2);
    }
    let own = [(certificate_directory(node), 4)];
    let cert_dir = node
        .kubelet
        .cert_dir
        .value
        .clone()
        .map(|folder| (folder, 1));
    let homes = homes(guest).into_iter().map(|home| (home.join(".kube"), 1));
    let fixed = FOLDERS
        .into_iter()
        .map(|(folder, depth)| (GuestPath::new(folder), depth));
    for (folder, depth) in own.into_iter().chain(cert_dir).chain(fixed).chain(homes) {
        search.folder(&folder, depth);
    }
    for path in GENERATED {
        search.file(&GuestPath::new(path));
    }
    let mut found: Vec<CopyFile> = search.found.into_values().flatten().collect();
    found.sort_by(|a, b| a.path.cmp(&b.path));
    found
}

/// Files that manifests and the kubelet name. Directories and files of other kinds are sorted out
/// by their contents.
fn named(node: &Node) -> Vec<GuestPath> {
    let flags = node
        .static_pods
        .iter()
        .flat_map(|pod| &pod.flags)
        .chain(&node.kubelet.flags);
    let values = flags.map(|(_, value)| value.as_str());
    let client_ca = yaml::text_at(
        &node.kubelet.config,
        &["authentication", "x509", "clientCAFile"],
    );
    let kubelet = [&node.kubelet.kubeconfig, &node.kubelet.bootstrap_kubeconfig];
    let kubelet = kubelet.into_iter().filter_map(|fact| fact.value.clone());
    let values = values
        .chain(client_ca)
        .filter(|value| value.starts_with('/'))
        .map(GuestPath::new);
    values.chain(kubelet).collect()
}

struct Search<'a> {
    guest: &'a Guest,
    entries: usize,
    /// By the real file, so that links count once; `None` for a file without CA certificates.
    found: BTreeMap<RealPath, Option<CopyFile>>,
    referenced: BTreeSet<RealPath>,
}

impl Search<'_> {
    /// A file that something refers to is in use whatever it is called; so are the files that it
    /// refers to in turn.
    fn named(&mut self, path: &GuestPath, depth: usize) {
        let Ok(real) = self.guest.resolve(path) else {
            return;
        };
        if depth == 0 || !self.referenced.insert(real) {
            return;
        }
        self.file(path);
        let Some(config) = self.read(path).and_then(|bytes| kubeconfig(&bytes, path)) else {
            return;
        };
        for cluster in config.clusters {
            if let Material::File(file) = cluster.certificate_authority {
                self.named(&file, depth - 1);
            }
        }
    }

    fn folder(&mut self, folder: &GuestPath, depth: usize) {
        // Manifests name certificates and hold none.
        if depth == 0 || folder.as_path().ends_with("kubernetes/manifests") {
            return;
        }
        for entry in self.guest.read_dir(folder).unwrap_or_default() {
            self.entries += 1;
            if self.entries > MAX_ENTRIES {
                return;
            }
            let path = folder.join(&entry.name);
            match entry.kind {
                FileKind::Directory => self.folder(&path, depth - 1),
                // A link to a folder is not followed: what is in use there is named by somebody.
                FileKind::Regular | FileKind::Symlink => self.file(&path),
                FileKind::Special => {}
            }
        }
    }

    fn file(&mut self, path: &GuestPath) {
        let Ok(real) = self.guest.resolve(path) else {
            return;
        };
        if self.found.contains_key(&real) {
            return;
        }
        let certificates = self
            .read(path)
            .map(|bytes| authorities(&bytes, path))
            .unwrap_or_default();
        let standing = self.standing(&real);
        let copy = (!certificates.is_empty()).then(|| CopyFile {
            path: path.clone(),
            standing,
            certificates,
        });
        self.found.insert(real.clone(), copy);
        // A kubeconfig of the folders may name a file elsewhere.
        if standing == Standing::InUse && !self.referenced.contains(&real) {
            self.named(path, 2);
        }
    }

    fn read(&self, path: &GuestPath) -> Option<Vec<u8>> {
        let real = self.guest.resolve(path).ok()?;
        self.guest.tree().read(real.as_path(), MAX_FILE).ok()
    }

    fn standing(&self, real: &RealPath) -> Standing {
        let path = real.as_path();
        if GENERATED
            .iter()
            .any(|generated| path.starts_with(generated))
        {
            return Standing::Generated;
        }
        if self.referenced.contains(real) {
            return Standing::InUse;
        }
        if path.starts_with(BACKUPS) || is_backup_name(path) {
            return Standing::Backup;
        }
        Standing::InUse
    }
}

/// `pki.bak/ca.crt`, `ca.crt.old`, `admin.conf.20240101`, `backup-2024/…`, `admin.conf~`.
fn is_backup_name(path: &Path) -> bool {
    let words = [
        "bak", "bck", "bkp", "backup", "old", "orig", "save", "saved", "prev", "expired",
    ];
    // Somebody's name is nobody's backup.
    let skipped = if path.starts_with("/home") { 3 } else { 0 };
    path.components().skip(skipped).any(|part| {
        let name = part.as_os_str().to_string_lossy().to_lowercase();
        let is_word =
            |word: &str| words.contains(&word.trim_end_matches(|last: char| last.is_ascii_digit()));
        let is_date =
            |word: &str| word.len() >= 8 && word.bytes().all(|byte| byte.is_ascii_digit());
        name.ends_with('~')
            || name
                .split(['.', '-', '_'])
                .skip(1)
                .any(|word| is_word(word) || is_date(word))
            || name
                .split(['.', '-', '_'])
                .next()
                .is_some_and(|word| word == "backup" || word == "backups")
    })
}

/// The self-issued certificates of a PEM or DER file or of a kubeconfig's clusters.
fn authorities(bytes: &[u8], path: &GuestPath) -> Vec<Certificate> {
    let inline: Vec<Vec<u8>> = match form(bytes) {
        Some(Form::Pem) => pem::certificates(bytes),
        Some(Form::Der) => vec![bytes.to_vec()],
        Some(Form::Kubeconfig) => {
            let clusters = kubeconfig(bytes, path)
                .map(|config| config.clusters)
                .unwrap_or_default();
            clusters
                .iter()
                .flat_map(|cluster| inline_certificates(&cluster.certificate_authority))
                .collect()
        }
        None => Vec::new(),
    };
    let certificates = inline
        .iter()
        .filter_map(|der| Certificate::from_der(der).ok());
    certificates
        .filter(|certificate| certificate.subject_raw == certificate.issuer_raw)
        .collect()
}

fn inline_certificates(material: &Material) -> Vec<Vec<u8>> {
    match material {
        Material::Inline(bytes) => pem::certificates(bytes),
        _ => Vec::new(),
    }
}

#[derive(Debug, Clone, Copy)]
enum Form {
    Pem,
    Der,
    Kubeconfig,
}

/// By what the file holds, not by its name; `None` for what can hold no CA.
fn form(bytes: &[u8]) -> Option<Form> {
    let holds = |words: &[u8]| bytes.windows(words.len()).any(|window| window == words);
    if holds(b"-----BEGIN CERTIFICATE-----") {
        Some(Form::Pem)
    } else if bytes.starts_with(&[0x30, 0x82]) {
        Some(Form::Der)
    } else if holds(b"certificate-authority") {
        Some(Form::Kubeconfig)
    } else {
        None
    }
}

fn kubeconfig(bytes: &[u8], path: &GuestPath) -> Option<Kubeconfig> {
    matches!(form(bytes), Some(Form::Kubeconfig))
        .then(|| Kubeconfig::parse(bytes, path).ok())
        .flatten()
}

/// The bytes of the file at `path` with every other certificate of `new`'s authority exchanged for
/// `new`, all else as it is. `None` where there is none.
pub fn with_successor(
    bytes: &[u8],
    path: &GuestPath,
    new: &Certificate,
) -> Result<Option<Vec<u8>>> {
    let is_old =
        |der: &[u8]| Certificate::from_der(der).is_ok_and(|old| old.is_same_authority(new));
    match form(bytes) {
        Some(Form::Pem) => Ok(pem::replace_certificate(bytes, is_old, &new.der)),
        Some(Form::Der) => Ok((bytes != new.der && is_old(bytes)).then(|| new.der.clone())),
        Some(Form::Kubeconfig) => {
            let config = Kubeconfig::parse(bytes, path)?;
            let mut edited: Option<Vec<u8>> = None;
            for cluster in &config.clusters {
                let Material::Inline(old) = &cluster.certificate_authority else {
                    continue;
                };
                let Some(exchanged) = pem::replace_certificate(old, is_old, &new.der) else {
                    continue;
                };
                let text = edited.as_deref().unwrap_or(bytes);
                let text = replace_authority(text, &cluster.name, &exchanged);
                edited = Some(text.with_context(|| format!("editing {path}"))?);
            }
            Ok(edited)
        }
        None => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tells_backups_by_their_names() {
        for backup in [
            "/etc/kubernetes/pki.bak/ca.crt",
            "/etc/kubernetes/pki-backup/ca.crt",
            "/etc/kubernetes/backup/ca.crt",
            "/etc/kubernetes/admin.conf.old",
            "/etc/kubernetes/admin.conf.20240101",
            "/etc/kubernetes/kubelet.conf~",
            "/etc/kubernetes/pki_old2/ca.crt",
        ] {
            assert!(is_backup_name(Path::new(backup)), "{backup}");
        }
        for live in [
            "/etc/kubernetes/pki/ca.crt",
            "/etc/kubernetes/super-admin.conf",
            "/etc/kubernetes/ssl/ca.pem",
            "/var/lib/kubelet/pki/kubelet-client-2024-01-02-03-04-05.pem",
            "/home/k8s-old/.kube/config",
        ] {
            assert!(!is_backup_name(Path::new(live)), "{live}");
        }
    }
}
