//! Several changes that build on one another.

use std::rc::Rc;

use anyhow::{Context as _, Result};

use super::{Attributes, Change, Planned, Prepared};
use crate::guest::{Guest, GuestPath};

/// Changes in the making: each is worked out on a guest that already holds those before it.
#[derive(Debug)]
pub struct Draft {
    /// The guest with all changes so far.
    pub guest: Guest,
    changes: Vec<Change>,
    now: i64,
}

impl Draft {
    /// No change yet. `now`: seconds since 1970, the times of new files.
    pub fn new(guest: &Guest, now: i64) -> Self {
        Self {
            guest: guest.clone(),
            changes: Vec::new(),
            now,
        }
    }

    /// Adds a change.
    ///
    /// # Errors
    /// Where the guest, as it is by then, does not allow it.
    pub fn push(&mut self, change: Change) -> Result<()> {
        let mut planned = Planned::over(self.guest.tree(), self.now);
        planned.apply(&change)?;
        self.guest = self.guest.with_tree(Rc::new(planned));
        self.changes.push(change);
        Ok(())
    }

    /// Adds a new file, or new contents of one that exists and keeps its owner and mode.
    ///
    /// # Errors
    /// As [`Draft::push`].
    pub fn write(&mut self, path: &GuestPath, bytes: impl Into<Vec<u8>>, mode: u32) -> Result<()> {
        let change = Change::write(&self.guest, path, bytes, mode)
            .with_context(|| format!("planning to write {path}"))?;
        self.push(change)
    }

    /// As [`Draft::write`]; a new file gets the owner of `like`, else of its folder (kubespray's
    /// are not root's), and a missing folder is made.
    ///
    /// # Errors
    /// As [`Draft::push`].
    pub fn write_like(
        &mut self,
        path: &GuestPath,
        bytes: impl Into<Vec<u8>>,
        mode: u32,
        like: &GuestPath,
    ) -> Result<()> {
        for change in Change::make_dirs(&self.guest, &path.parent(), 0o755)? {
            self.push(change)?;
        }
        let mut change = Change::write(&self.guest, path, bytes, mode)
            .with_context(|| format!("planning to write {path}"))?;
        let model = self
            .guest
            .stat(like)
            .or_else(|_| self.guest.stat(&path.parent()))
            .ok();
        if let (
            Change::Write {
                attributes: attributes @ Attributes::Set { .. },
                ..
            },
            Some(model),
        ) = (&mut change, model)
        {
            *attributes = Attributes::Set {
                mode,
                uid: model.uid,
                gid: model.gid,
            };
        }
        self.push(change)
    }

    /// All changes, in the order in which they were added.
    pub fn done(self) -> Prepared {
        Prepared {
            changes: self.changes,
            ..Prepared::default()
        }
    }
}
