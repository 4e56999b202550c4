//! Whether a database is sound from end to end: each page that can be reached is read and checked,
//! once for a guest as it was opened. bbolt reads no more than it needs, so that etcd may die of a
//! damaged page long after its start.

use std::rc::Rc;

use super::survey::Meter;
use crate::base::ui::Ui;
use crate::etcd::format::bbolt::{Check, Database, Fault};
use crate::guest::{Guest, RealPath};

/// What the check of all pages of `db`, the file at `path`, says. Where it must be read for that,
/// `ui` shows how far that is.
pub fn soundness(
    guest: &Guest,
    path: &RealPath,
    db: &Database,
    ui: &dyn Ui,
) -> Rc<Result<Check, Fault>> {
    guest.once(path, || {
        let progress = ui.begin(&format!("checking {path}"), Some(db.size()));
        let mut meter = Meter::new(&*progress);
        db.check(&mut |_, item| meter.count(item))
    })
}
