//! The remedies for what all control planes of a cluster share: files copied from another one's
//! disk, as `kubeadm join --control-plane --certificate-key` does, and the service accounts' public
//! key worked out from the private one.

use anyhow::{Context as _, Result};
use serde_json::{Map, Value, json};
use std::rc::Rc;

use crate::change::Planned;
use crate::change::{Attributes, Change, Content, Expect, Prepared};
use crate::finding::{Context, Remedy};
use crate::guest::{Guest, GuestPath};
use crate::pki::service_account::public_pem;
use crate::pki::trust::Permit;
use crate::pki::x509::key::PrivateKey;
use crate::tree::{FileKind, TreeError};

/// One file to be copied.
#[derive(Debug, Clone)]
pub struct SharedFile {
    /// Where it goes on this node.
    pub path: GuestPath,
    /// Its bytes on the other node.
    pub content: Content,
    /// Whether others than root may read it: certificates yes, keys no.
    pub is_secret: bool,
}

/// Files from another control plane of the same cluster.
#[derive(Debug)]
pub struct CopyShared {
    /// Node and source.
    pub from: String,
    /// At least one.
    pub files: Vec<SharedFile>,
    /// Why they belong here, in words.
    pub proof: String,
    /// Why this disk may get them.
    pub permit: Permit,
}

impl Remedy for CopyShared {
    fn kind(&self) -> &'static str {
        "copy-shared-key"
    }

    fn summary(&self) -> String {
        format!(
            "copy {} from {}",
            paths(&self.files).join(" and "),
            self.from
        )
    }

    fn details(&self) -> Vec<String> {
        let why = match &self.permit {
            Permit::Proved(words) => format!("this disk may have it: {words}"),
            Permit::Trusted(words) => format!("THIS DISK GETS IT {words}"),
        };
        vec![format!("it belongs here: {}", self.proof), why]
    }

    fn must_be_read(&self) -> bool {
        self.permit.is_trusted()
    }

    fn fields(&self) -> Map<String, Value> {
        let mut fields = Map::new();
        fields.insert("from".to_owned(), json!(self.from));
        fields.insert("paths".to_owned(), json!(paths(&self.files)));
        fields.insert("proof".to_owned(), json!(self.proof));
        fields.insert("permit".to_owned(), json!(self.permit.words()));
        fields.insert("trusted".to_owned(), json!(self.permit.is_trusted()));
        fields
    }

    fn prepare(&self, context: &Context<'_>) -> Result<Prepared> {
        let mut changes = Vec::new();
        let mut guest = context.guest.clone();
        for file in &self.files {
            for change in
                replace(&guest, file).with_context(|| format!("planning to write {}", file.path))?
            {
                let mut planned =
                    Planned::over(guest.tree(), context.settings.now.unix_timestamp());
                planned.apply(&change)?;
                guest = guest.with_tree(Rc::new(planned));
                changes.push(change);
            }
        }
        Ok(Prepared {
            changes,
            ..Prepared::default()
        })
    }
}

fn paths(files: &[SharedFile]) -> Vec<String> {
    files.iter().map(|file| file.path.to_string()).collect()
}

/// `sa.pub` from `sa.key`.
#[derive(Debug)]
pub struct DerivePublicKey {
    /// The private key.
    pub key: GuestPath,
    /// What is written.
    pub path: GuestPath,
    /// Why it is this key that belongs there, in words.
    pub proof: String,
}

impl Remedy for DerivePublicKey {
    fn kind(&self) -> &'static str {
        "derive-service-account-public-key"
    }

    fn summary(&self) -> String {
        format!("write {} anew from {}", self.path, self.key)
    }

    fn details(&self) -> Vec<String> {
        vec![format!("the private key stays as it is; {}", self.proof)]
    }

    fn fields(&self) -> Map<String, Value> {
        let mut fields = Map::new();
        fields.insert("path".to_owned(), json!(self.path.to_string()));
        fields.insert("key_path".to_owned(), json!(self.key.to_string()));
        fields
    }

    fn prepare(&self, context: &Context<'_>) -> Result<Prepared> {
        let bytes = context.guest.read(&self.key)?;
        let key = PrivateKey::from_pem(&bytes).with_context(|| format!("reading {}", self.key))?;
        let file = SharedFile {
            path: self.path.clone(),
            content: Content::new(public_pem(&key)),
            is_secret: true,
        };
        let changes = replace(context.guest, &file)
            .with_context(|| format!("planning to write {}", self.path))?;
        Ok(Prepared {
            changes,
            ..Prepared::default()
        })
    }
}

/// Missing folders, then the file where its path leads. Owner and mode of a file that is there stay
/// (of a secret one, what [`crate::change::secret`] leaves of them).
fn replace(guest: &Guest, file: &SharedFile) -> Result<Vec<Change>> {
    let folder = file.path.parent();
    let mut changes = Change::make_dirs(guest, &folder, 0o755)?;
    let mut planned = Planned::over(guest.tree(), 0);
    for change in &changes {
        planned.apply(change)?;
    }
    let guest = guest.with_tree(Rc::new(planned));
    let path = match guest.resolve(&file.path) {
        Ok(real) => real,
        Err(TreeError::NotFound(_)) => guest.resolve_parent(&file.path)?,
        Err(error) => return Err(error.into()),
    };
    let expect = Expect::now(&guest, &path)?;
    let mode = if file.is_secret { 0o600 } else { 0o644 };
    let attributes = match guest.tree().lstat(path.as_path()) {
        Ok(old) if old.kind == FileKind::Regular => Attributes::Keep,
        _ => Attributes::Set {
            mode,
            uid: 0,
            gid: 0,
        },
    };
    let content = match file.is_secret {
        true => Content::secret(file.content.expose()),
        false => file.content.clone(),
    };
    changes.push(Change::Write {
        path,
        content,
        attributes,
        expect,
    });
    Ok(changes)
}
