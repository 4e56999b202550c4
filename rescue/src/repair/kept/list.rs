//! What a kept folder holds: of every file what the machine that keeps it may not be able to keep
//! itself (a USB stick knows no owners).

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use serde::{Deserialize, Serialize};

use crate::base::hash::hex;
use crate::repair::journal::StoredPath;
use crate::tree::FileKind;

/// The format of a list.
const FORMAT: &str = "rescue-kept/1";

/// The largest list that is read.
pub(super) const LIST_LIMIT: u64 = 64 << 20;

/// `old.json`, `new.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct List {
    format: String,
    /// The run.
    pub run: String,
    /// Where the folder belongs on the guest.
    pub path: StoredPath,
    /// All that is in it; see [`crate::change::tree_hash::of`]. Empty while it is not known.
    pub sha256: String,
    entries: Vec<Entry>,
}

/// One file, folder or link.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Entry {
    /// Below the folder; nothing for the folder itself.
    pub path: StoredPath,
    pub kind: Kind,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    /// Modification time.
    pub seconds: i64,
    pub nanoseconds: i64,
    /// Of a link.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<StoredPath>,
    /// Extended attributes, their values in hexadecimal.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub attributes: BTreeMap<String, String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Kind {
    File,
    Folder,
    Link,
}

impl From<Kind> for FileKind {
    fn from(kind: Kind) -> Self {
        match kind {
            Kind::File => Self::Regular,
            Kind::Folder => Self::Directory,
            Kind::Link => Self::Symlink,
        }
    }
}

impl Entry {
    /// One without attributes, of this moment.
    pub fn new(path: &Path, kind: Kind, mode: u32, (uid, gid): (u32, u32)) -> Self {
        let path = StoredPath::from(path.to_path_buf());
        let now = time::OffsetDateTime::now_utc().unix_timestamp();
        let attributes = BTreeMap::new();
        Self {
            path,
            kind,
            mode,
            uid,
            gid,
            seconds: now,
            nanoseconds: 0,
            target: None,
            attributes,
        }
    }

    pub fn set_attributes(&mut self, attributes: &BTreeMap<String, Vec<u8>>) {
        self.attributes = attributes
            .iter()
            .map(|(name, value)| (name.clone(), hex(value)))
            .collect();
    }

    pub fn values(&self) -> Result<BTreeMap<String, Vec<u8>>> {
        let value = |(name, text): (&String, &String)| Some((name.clone(), unhex(text)?));
        let all: Option<BTreeMap<_, _>> = self.attributes.iter().map(value).collect();
        all.context("an attribute in the list cannot be read")
    }
}

/// What a folder holds, by the paths below it: parents come before what is in them.
pub(super) type Entries = BTreeMap<PathBuf, Entry>;

impl List {
    pub fn new(run: &str, path: StoredPath, sha256: String, entries: &Entries) -> Self {
        Self {
            format: FORMAT.to_owned(),
            run: run.to_owned(),
            path,
            sha256,
            entries: entries.values().cloned().collect(),
        }
    }

    pub fn parse(bytes: &[u8]) -> Result<Self> {
        let list: Self =
            serde_json::from_slice(bytes).context("the list is not what rescue writes")?;
        ensure!(
            list.format == FORMAT,
            "the list has a format that this version does not know"
        );
        Ok(list)
    }

    /// By their paths, which lead nowhere else.
    pub fn entries(&self) -> Result<Entries> {
        let mut entries = Entries::new();
        for entry in &self.entries {
            let path = entry.path.as_path().to_path_buf();
            if !path
                .components()
                .all(|component| matches!(component, Component::Normal(_)))
            {
                bail!(
                    "the list names {}, which is not below its folder",
                    entry.path
                );
            }
            entries.insert(path, entry.clone());
        }
        let is_folder = |path: &Path| {
            entries
                .get(path)
                .is_some_and(|entry| entry.kind == Kind::Folder)
        };
        ensure!(
            is_folder(Path::new("")),
            "the list does not name its own folder"
        );
        ensure!(
            entries
                .keys()
                .filter_map(|path| path.parent())
                .all(is_folder),
            "the list names a file without its folder"
        );
        Ok(entries)
    }
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let digits = text.as_bytes().chunks(2);
    digits
        .map(|two| {
            u8::from_str_radix(std::str::from_utf8(two).ok()?, 16)
                .ok()
                .filter(|_| two.len() == 2)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_comes_back_and_leads_nowhere_else() {
        let mut entry = Entry::new(Path::new("snap"), Kind::Folder, 0o700, (1, 2));
        entry.set_attributes(&BTreeMap::from([(
            "security.selinux".to_owned(),
            vec![0, 255, 16],
        )]));
        let top = Entry::new(Path::new(""), Kind::Folder, 0o700, (1, 2));
        let entries: Entries = [top.clone(), entry.clone()]
            .map(|e| (e.path.as_path().to_path_buf(), e))
            .into();
        let list = List::new(
            "run",
            StoredPath::from(PathBuf::from("/m")),
            "hash".to_owned(),
            &entries,
        );
        let read = List::parse(&serde_json::to_vec(&list).unwrap()).unwrap();
        assert_eq!(read.entries().unwrap(), entries);
        assert_eq!(
            read.entries().unwrap()[Path::new("snap")].values().unwrap()["security.selinux"],
            [0, 255, 16]
        );
        for bad in ["../x", "/etc", "a/b"] {
            let wrong = Entry {
                path: StoredPath::from(PathBuf::from(bad)),
                ..entry.clone()
            };
            let list = List {
                entries: vec![top.clone(), wrong],
                ..list.clone()
            };
            assert!(list.entries().is_err(), "{bad}");
        }
        assert!(unhex("0").is_none() && unhex("zz").is_none() && unhex("ü").is_none());
    }
}
