//! Files of ours on a node: laid down, recognised again, taken away.

use std::path::PathBuf;

use anyhow::Result;
use serde_json::{Map, Value, json};

use crate::base::refusal::Refusal;
use crate::change::{Change, Prepared};
use crate::finding::{Context, Remedy};
use crate::guest::{Guest, GuestPath};
use crate::tree::{FileKind, TreeError};

/// What every file of ours says of itself, in its first lines.
pub const MARK: &str =
    "Made by rescue (certs schedule); `rescue certs schedule --remove` takes it away again.";

/// One file to be laid down.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewFile {
    /// Where.
    pub path: GuestPath,
    /// What.
    pub content: Content,
}

/// What is laid down.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// A file of text with a mode.
    Text(String, u32),
    /// A link with its target.
    Link(PathBuf),
}

impl NewFile {
    /// A text file.
    pub fn text(path: &str, text: String, mode: u32) -> Self {
        Self {
            path: GuestPath::new(path),
            content: Content::Text(text, mode),
        }
    }

    /// A link.
    pub fn link(path: &str, target: &str) -> Self {
        Self {
            path: GuestPath::new(path),
            content: Content::Link(target.into()),
        }
    }

    /// Whether it is there just so.
    pub fn is_there(&self, guest: &Guest) -> bool {
        match &self.content {
            Content::Text(text, _) => guest
                .read(&self.path)
                .is_ok_and(|bytes| bytes == text.as_bytes()),
            Content::Link(target) => guest
                .read_link(&self.path)
                .is_ok_and(|there| there == *target),
        }
    }

    /// Somebody else's file of that name is not replaced.
    pub fn refuse_foreign(&self, guest: &Guest) -> Result<(), Refusal> {
        if is_ours_or_absent(guest, &self.path) || self.is_there(guest) {
            return Ok(());
        }
        Err(Refusal::new(
            format!("{} is there already and was not made by rescue", self.path),
            "somebody else takes care of this, or uses the name",
            "look at it; move it away to have rescue's own",
        ))
    }

    fn changes(&self, guest: &Guest) -> Result<Vec<Change>> {
        let mut changes = Change::make_dirs(guest, &self.path.parent(), 0o755)?;
        // A folder that this very plan makes cannot be resolved yet.
        if let Some(Change::MakeDir { path: folder, .. }) = changes.last() {
            let path = folder.child(self.path.as_path().file_name().unwrap_or_default());
            let expect = crate::change::Expect::Absent;
            changes.push(match &self.content {
                Content::Text(text, mode) => Change::Write {
                    path,
                    content: crate::change::Content::new(text.as_bytes()),
                    attributes: crate::change::Attributes::Set {
                        mode: *mode,
                        uid: 0,
                        gid: 0,
                    },
                    expect,
                },
                Content::Link(target) => Change::Symlink {
                    path,
                    target: target.clone(),
                    expect,
                },
            });
            return Ok(changes);
        }
        changes.push(match &self.content {
            Content::Text(text, mode) => Change::write(guest, &self.path, text.as_bytes(), *mode)?,
            Content::Link(target) => Change::symlink(guest, &self.path, target.clone())?,
        });
        Ok(changes)
    }
}

/// Whether `path` is free, or holds what a run of ours laid down.
fn is_ours_or_absent(guest: &Guest, path: &GuestPath) -> bool {
    match guest.lstat(path) {
        Err(TreeError::NotFound(_) | TreeError::NotADirectory(_)) => true,
        Ok(meta) if meta.kind == FileKind::Regular => is_ours(guest, path),
        _ => false,
    }
}

/// Whether a file says that it is ours.
pub fn is_ours(guest: &Guest, path: &GuestPath) -> bool {
    guest
        .read_text(path)
        .is_ok_and(|text| text.lines().take(3).any(|line| line.contains(MARK)))
}

/// Lays down files. Undoable.
#[derive(Debug, Clone)]
pub struct AddFiles {
    /// Stable name for JSON.
    pub kind: &'static str,
    /// One line for the plan.
    pub summary: String,
    /// Further lines.
    pub details: Vec<String>,
    /// The files.
    pub files: Vec<NewFile>,
}

impl Remedy for AddFiles {
    fn kind(&self) -> &'static str {
        self.kind
    }
    fn summary(&self) -> String {
        self.summary.clone()
    }
    fn details(&self) -> Vec<String> {
        self.details.clone()
    }
    fn fields(&self) -> Map<String, Value> {
        let paths: Vec<String> = self
            .files
            .iter()
            .map(|file| file.path.to_string())
            .collect();
        Map::from_iter([("paths".to_owned(), json!(paths))])
    }
    fn prepare(&self, context: &Context<'_>) -> Result<Prepared> {
        let mut prepared = Prepared::default();
        for file in self
            .files
            .iter()
            .filter(|file| !file.is_there(context.guest))
        {
            for change in file.changes(context.guest)? {
                // Two files may want the same new folder.
                if !prepared
                    .changes
                    .iter()
                    .any(|there| there.path() == change.path())
                {
                    prepared.changes.push(change);
                }
            }
        }
        Ok(prepared)
    }
}

/// Takes files of ours away. Undoable.
#[derive(Debug, Clone)]
pub struct RemoveFiles {
    /// Which.
    pub paths: Vec<GuestPath>,
}

impl Remedy for RemoveFiles {
    fn kind(&self) -> &'static str {
        "remove-schedule"
    }
    fn summary(&self) -> String {
        let paths: Vec<String> = self.paths.iter().map(ToString::to_string).collect();
        format!("remove {}", paths.join(", "))
    }
    fn fields(&self) -> Map<String, Value> {
        let paths: Vec<String> = self.paths.iter().map(ToString::to_string).collect();
        Map::from_iter([("paths".to_owned(), json!(paths))])
    }
    fn prepare(&self, context: &Context<'_>) -> Result<Prepared> {
        let changes: Result<Vec<Change>, TreeError> = self
            .paths
            .iter()
            .map(|path| Change::remove(context.guest, path))
            .collect();
        Ok(Prepared {
            free: Vec::new(),
            changes: changes?,
        })
    }
}
