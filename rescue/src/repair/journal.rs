//! The record of one run, as it lies on the guest's disk.
//!
//! ```text
//! /var/lib/rescue/              0700
//!   runs/ID/                    0700, one folder for each run
//!     set.json                  only where several guests are changed as one: which ones; it is there before anything is staged
//!     journal.json              the commit record: what is to be done; its being there is the commit
//!     done.json                 all of it is done
//!     undo.json                 an undo has begun
//!     undone.json               an undo is complete
//!     emptied-N.json            what step N replaced is being given up here, or is: it is kept elsewhere whole
//! <mount point>/<store>/ID/     0700, one for each file system that the run changes
//!     staged/N                  what step N puts in place, by rename
//!     backup/N                  what step N replaced: a hard link to the original inode, or the original folder itself
//! ```
//!
//! `<store>` is `var/lib/rescue/runs` on the file system that holds it (so the store is the run's
//! own folder) and `.rescue` on any other: staging and backup lie on the file system of the file
//! they belong to, because only then a backup can be the original inode, a change is one rename,
//! and no copy of a private key ever lies beside the file it is meant for.
//!
//! A whole folder (an etcd member) is replaced by exchanging `staged/N` and the folder, two names
//! at once; then the old one, now `staged/N`, is renamed to `backup/N`. Which of the two is where
//! is told by their inode numbers. Where a step before it in the same run put a file in that place
//! (a fence), that file is what the step replaces.
//!
//! A record never holds a file's bytes: hashes, names and attributes only. It is one JSON object,
//! written under a temporary name, synchronised and renamed, so it is there whole or not at all.
//! Readers refuse a `format` they do not know.

use std::ffi::OsString;
use std::fmt;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use serde::{Deserialize, Serialize};

use crate::base::escaping::escape;
use crate::change::Expect;
use crate::guest::{GuestPath, RealPath};

/// The format that this program writes.
pub const FORMAT: &str = "rescue-run/1";

/// The format of a record with a folder that is kept on the machine that rescue ran on: a version
/// that does not know of it would take what is not there yet for what is done.
pub const FORMAT_KEPT: &str = "rescue-run/2";

/// Where runs live, inside the guest.
pub const RUNS: &str = "/var/lib/rescue/runs";

/// The store on file systems that do not hold [`RUNS`], below their mount point.
pub const SIDE_STORE: &str = ".rescue";

/// The largest record that is read.
pub const RECORD_LIMIT: u64 = 16 << 20;

/// The commit record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Journal {
    /// [`FORMAT`], or [`FORMAT_KEPT`].
    pub format: String,
    /// Name of the run and of its folder.
    pub id: String,
    /// Counts the runs on this guest from 1; clocks of rescue systems lie, this does not.
    pub sequence: u64,
    /// Version of the program.
    pub version: String,
    /// When the run began, RFC 3339.
    pub started: String,
    /// What the run is for, as the plan said it.
    pub summary: Vec<String>,
    /// What was freed before; it has no undo.
    pub freed: Vec<Freed>,
    /// What is to be done, in this order.
    pub steps: Vec<Step>,
    /// Set where other guests are changed in the same run; see [`super::set`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub set: Option<SetRecord>,
}

impl Journal {
    /// Where the run keeps folders outside the guest.
    pub fn elsewhere(&self) -> Vec<String> {
        self.steps
            .iter()
            .filter_map(|step| step.kept.as_ref())
            .map(KeptAt::shown)
            .collect()
    }
}

/// The guests that one run changes together, as each of them records it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetRecord {
    /// Which of them this is, counted from 0.
    pub me: usize,
    /// All of them.
    pub guests: Vec<SetGuest>,
    /// So many of the steps come first; all guests have made theirs before any goes on.
    pub barrier: usize,
}

impl SetRecord {
    /// Their names, those of a crafted record too.
    pub fn names(&self) -> Vec<String> {
        self.guests
            .iter()
            .map(|guest| escape(&guest.name))
            .collect()
    }
}

/// One of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetGuest {
    /// How people call it.
    pub name: String,
    /// By which it is known again: file system, machine-id, hostname.
    pub identity: String,
}

/// `set.json`: written on every guest before anything is staged on any.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Enlisted {
    /// [`FORMAT`].
    pub format: String,
    /// The guests.
    pub set: SetRecord,
}

/// One file that gave back its space.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Freed {
    /// Which.
    pub path: StoredPath,
    /// Bytes it gave back.
    pub bytes: u64,
    /// True where the end of the file was kept.
    pub tail_kept: bool,
}

/// One step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// Which name it changes.
    pub path: StoredPath,
    /// What was there.
    pub before: State,
    /// What is there afterwards.
    pub after: State,
    /// Mount point of its file system, where its store is.
    pub mount_point: StoredPath,
    /// Set where there was no room for both folders; see [`super::kept`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kept: Option<KeptAt>,
}

/// Where the old folder, and at first the new one, is kept outside the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeptAt {
    /// The folder that was named with --keep-in, on the machine that rescue ran on.
    pub keep_in: StoredPath,
    /// Below it: the run's name, and what the node was called.
    pub folder: StoredPath,
    /// SHA-256 of the list of what was there, which has the hash of the whole in it.
    pub old: String,
    /// SHA-256 of the list of what takes its place.
    pub new: String,
}

impl KeptAt {
    /// The whole path as people read it.
    pub fn shown(&self) -> String {
        format!("{}/{}", self.keep_in, self.folder)
    }
}

/// What is at a path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// Nothing.
    Absent,
    /// A regular file.
    File {
        /// SHA-256 of its bytes, lower-case hexadecimal.
        sha256: String,
    },
    /// A symbolic link.
    Symlink {
        /// Its target as stored.
        target: StoredPath,
    },
    /// A folder.
    Directory,
    /// A folder that is replaced, or replaces, as a whole.
    Tree {
        /// Its inode number, by which it is known; 0 where it is not known yet.
        inode: u64,
        /// All that is in it; see [`crate::change::tree_hash::of`].
        sha256: String,
    },
    /// A device node, FIFO or socket: never changed.
    Special,
}

impl State {
    /// Whether it is a regular file.
    pub fn is_file(&self) -> bool {
        matches!(self, Self::File { .. })
    }

    /// Whether it is a whole folder.
    pub fn is_tree(&self) -> bool {
        matches!(self, Self::Tree { .. })
    }

    /// Whether both hold the same, be it the same inode or not.
    pub fn holds_the_same_as(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Tree { sha256: ours, .. }, Self::Tree { sha256: theirs, .. }) => ours == theirs,
            _ => self == other,
        }
    }
}

impl Step {
    /// Whether it is made by exchanging two names, because a whole folder is before or after it.
    pub fn is_exchange(&self) -> bool {
        self.before.is_tree() || self.after.is_tree()
    }
}

impl From<&Expect> for State {
    fn from(expect: &Expect) -> Self {
        match expect {
            Expect::Absent => Self::Absent,
            Expect::File { sha256 } => Self::File {
                sha256: sha256.clone(),
            },
            Expect::Symlink { target } => Self::Symlink {
                target: target.clone().into(),
            },
            Expect::Directory => Self::Directory,
            Expect::Tree { sha256 } => Self::Tree {
                inode: 0,
                sha256: sha256.clone(),
            },
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Absent => f.write_str("nothing"),
            Self::File { sha256 } => write!(
                f,
                "a file (SHA-256 {}…)",
                escape(sha256.get(..12).unwrap_or(sha256))
            ),
            Self::Symlink { target } => write!(f, "a link to {target}"),
            Self::Directory => f.write_str("a folder"),
            Self::Tree { sha256, .. } => {
                write!(
                    f,
                    "a folder (SHA-256 {}… of all in it)",
                    escape(sha256.get(..12).unwrap_or(sha256))
                )
            }
            Self::Special => f.write_str("a device, FIFO or socket"),
        }
    }
}

/// `done.json`, `undone.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finished {
    /// [`FORMAT`].
    pub format: String,
    /// When, RFC 3339.
    pub finished: String,
    /// Steps (counted from 0) that were left alone because the guest had changed meanwhile; only
    /// after an interruption.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub left_alone: Vec<usize>,
}

/// A path as it is stored: any bytes. Bytes that are not UTF-8 are `\xNN`, a backslash is `\\`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StoredPath(PathBuf);

impl StoredPath {
    /// As a plain path.
    pub fn as_path(&self) -> &Path {
        &self.0
    }

    /// As a path that the confined writer takes; a record that was tampered with must not name
    /// anything else.
    pub fn to_real(&self) -> Result<RealPath> {
        let mut components = self.0.components();
        let rooted = components.next() == Some(Component::RootDir);
        if !rooted || !components.all(|component| matches!(component, Component::Normal(_))) {
            bail!("the record names {self}, which is not an absolute path without `..`");
        }
        Ok(RealPath::new(self.0.clone()))
    }
}

impl From<PathBuf> for StoredPath {
    fn from(path: PathBuf) -> Self {
        Self(path)
    }
}

impl From<&RealPath> for StoredPath {
    fn from(path: &RealPath) -> Self {
        Self(path.as_path().to_path_buf())
    }
}

impl fmt::Display for StoredPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_absolute() {
            GuestPath::new(&self.0).fmt(f)
        } else {
            write!(f, "{}", encode(&self.0).escape_debug())
        }
    }
}

impl fmt::Debug for StoredPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", encode(&self.0))
    }
}

impl Serialize for StoredPath {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&encode(&self.0))
    }
}

impl<'de> Deserialize<'de> for StoredPath {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        decode(&text)
            .map(Self)
            .ok_or_else(|| serde::de::Error::custom("a path with a broken escape"))
    }
}

fn encode(path: &Path) -> String {
    let mut text = String::new();
    for chunk in path.as_os_str().as_bytes().utf8_chunks() {
        text.push_str(&chunk.valid().replace('\\', "\\\\"));
        for byte in chunk.invalid() {
            text.push_str(&format!("\\x{byte:02x}"));
        }
    }
    text
}

fn decode(text: &str) -> Option<PathBuf> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('\\') {
        bytes.extend_from_slice(rest.get(..at)?.as_bytes());
        rest = rest.get(at + 1..)?;
        if let Some(after) = rest.strip_prefix('\\') {
            bytes.push(b'\\');
            rest = after;
        } else {
            let digits = rest.strip_prefix('x')?.get(..2)?;
            bytes.push(u8::from_str_radix(digits, 16).ok()?);
            rest = rest.get(3..)?;
        }
    }
    bytes.extend_from_slice(rest.as_bytes());
    Some(PathBuf::from(OsString::from_vec(bytes)))
}

/// Whether `id` may name a folder of ours.
pub fn is_run_id(id: &str) -> bool {
    !id.is_empty()
        && id.len() <= 64
        && !id.starts_with('.')
        && id
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'))
}

/// Parses `set.json`.
pub fn parse_enlisted(bytes: &[u8]) -> Result<SetRecord> {
    let enlisted: Enlisted = serde_json::from_slice(bytes).map_err(|error| {
        anyhow!(
            "a field of the record is missing or wrong: {}",
            escape(&error.to_string())
        )
    })?;
    if enlisted.format != FORMAT || enlisted.set.me >= enlisted.set.guests.len() {
        bail!("the record of the guests is of no format that this version knows");
    }
    Ok(enlisted.set)
}

/// Parses a commit record.
pub fn parse_journal(bytes: &[u8]) -> Result<Journal> {
    let probe: serde_json::Value =
        serde_json::from_slice(bytes).context("the record is not JSON")?;
    match probe.get("format").and_then(serde_json::Value::as_str) {
        Some(FORMAT | FORMAT_KEPT) => {}
        Some(other) => {
            bail!("the record has the format {other:?}, which this version does not know")
        }
        None => bail!("the record names no format"),
    }
    // The cause quotes the record, which the guest may have crafted.
    let journal: Journal = serde_json::from_value(probe).map_err(|error| {
        anyhow!(
            "a field of the record is missing or wrong: {}",
            escape(&error.to_string())
        )
    })?;
    if !is_run_id(&journal.id) {
        bail!("the record has no usable name");
    }
    if journal
        .set
        .as_ref()
        .is_some_and(|set| set.me >= set.guests.len() || set.barrier > journal.steps.len())
    {
        bail!("the record of the guests contradicts itself");
    }
    Ok(journal)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::OsStr;

    #[test]
    fn paths_survive_any_bytes() {
        for bytes in [
            &b"/a/b"[..],
            b"/a\\xb",
            b"/\xff\\\xfe",
            b"/tab\t\n",
            "/ü".as_bytes(),
        ] {
            let path = StoredPath(PathBuf::from(OsStr::from_bytes(bytes)));
            let json = serde_json::to_string(&path).unwrap();
            assert_eq!(
                serde_json::from_str::<StoredPath>(&json).unwrap(),
                path,
                "{json}"
            );
        }
        for broken in ["\\", "\\x", "\\x1", "\\q", "\\xzz", "\\xü"] {
            assert!(decode(broken).is_none(), "{broken}");
        }
    }

    #[test]
    fn a_tampered_path_is_no_path() {
        for path in ["/a/../b", "a", "../a", ""] {
            assert!(StoredPath(PathBuf::from(path)).to_real().is_err(), "{path}");
        }
        assert!(StoredPath(PathBuf::from("/a/b")).to_real().is_ok());
    }

    #[test]
    fn run_names() {
        assert!(is_run_id("20261123-024149-a1b2"));
        for id in ["", ".", "..", "a/b", "a\0", ".hidden", "ü"] {
            assert!(!is_run_id(id), "{id}");
        }
    }

    #[test]
    fn unknown_formats_are_refused() {
        let error = parse_journal(br#"{"format":"rescue-run/9"}"#)
            .unwrap_err()
            .to_string();
        assert!(error.contains("rescue-run/9"), "{error}");
        assert!(parse_journal(b"[]").is_err());
        let crafted = br#"{"format":"rescue-run/1","id":"a","sequence":1,"version":"","started":"","summary":[],"freed":[],"steps":"\u001b[2J"}"#;
        let error = format!("{:#}", parse_journal(crafted).unwrap_err());
        assert!(!error.contains(char::is_control), "{error:?}");
        assert!(parse_journal(b"{").is_err());
    }
}
