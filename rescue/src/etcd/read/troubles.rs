//! What keeps a member from working, with every page of its database read.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::rc::Rc;

use super::boot::{self, Effect, Problem};
use super::member::{MemberData, Place, Stored};
use super::soundness::soundness;
use crate::base::ui::Ui;
use crate::disk::Backing;
use crate::guest::Guest;
use crate::in_use::held_open::{HeldOpen, Holder};

/// Who has the database open, where the guest is mounted on this machine, or is a folder of it.
/// Pages that change while they are read look damaged.
pub fn holder(guest: &Guest, place: &Place) -> Option<Holder> {
    let real = guest.resolve(&place.db()).ok()?;
    let folder = match guest.file_system_of(&real).map(|found| &found.backing) {
        Some(Backing::Folder(folder)) => folder.as_path(),
        Some(_) => return None,
        None => Path::new(&guest.source),
    };
    let device = std::fs::metadata(folder).ok()?.dev();
    let inode = guest.tree().lstat(real.as_path()).ok()?.ino?;
    HeldOpen::scan().holder(device, inode).cloned()
}

/// The first fault of the database's pages, all of which are read.
pub fn check_pages(guest: &Guest, data: &MemberData, ui: &dyn Ui) -> Option<Problem> {
    let Stored::Open(open) = &data.stored else {
        return None;
    };
    let db = data.place.db();
    let checked = match guest.resolve(&db) {
        Ok(real) => soundness(guest, &real, &open.0.db, ui),
        Err(error) => Rc::new(Err(error.into())),
    };
    checked
        .as_ref()
        .as_ref()
        .err()
        .map(|fault| Problem::database(&db, fault))
}

/// What keeps a member from working, each page of its database checked: what etcd copes with by
/// itself, and alarms, are left out.
pub fn troubles(guest: &Guest, data: &MemberData, ui: &dyn Ui) -> Vec<Problem> {
    let mut problems = boot::problems(data);
    problems.extend(check_pages(guest, data, ui));
    problems.retain(|problem| problem.effect != Effect::Harmless && !problem.is_alarm());
    problems
}
