//! Members built anew out of a log, a database and snapshots that are there: for members that go,
//! come, move, or must be given the best history of them all. The log stays what it is; what
//! changes is appended to it, as a leader would have done, and etcd's own start applies it. So
//! nothing is lost that the log holds, where `--force-new-cluster` drops what is not known to be
//! agreed on.
//!
//! [`Base`] says what can be built upon and why not; [`changes`] what is appended; [`Recipe`] is
//! both, and builds.
//!
//! [`from_db`] makes a new cluster from a database alone, [`defrag`] only writes the database anew.

pub mod base;
pub mod changes;
pub mod database;
pub mod defrag;
pub mod edits;
pub mod from_db;
pub mod origin;
pub mod recipe;
pub mod space;
pub mod target;

pub use base::Base;
pub use database::DatabaseFile;
pub use recipe::Recipe;

use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};

use crate::etcd::read::boot::{self, Effect, Kind};
use crate::etcd::read::member::{MemberData, Place, Stored};
use crate::guest::{Guest, GuestPath};

/// Where in a folder `member` the log is.
pub const WAL: &str = "wal";
/// And the rest.
pub const SNAP: &str = "snap";
/// The database's name.
pub const DB: &str = "db";
/// Of the folders.
pub const FOLDER_MODE: u32 = 0o700;
/// Of the database.
pub const DB_MODE: u32 = 0o600;

fn in_snap(name: &str) -> PathBuf {
    Path::new(SNAP).join(name)
}

/// Reads a folder `member`, whatever its name, as etcd will find it, every page of the database
/// too. Alarms are no fault of it.
///
/// # Errors
/// What keeps etcd from starting on it, or from working.
pub fn read_back(guest: &Guest, folder: &GuestPath) -> Result<MemberData> {
    let place = Place {
        data_dir: folder.clone(),
        wal: folder.join(WAL),
        snap: folder.join(SNAP),
    };
    let data = MemberData {
        is_there: guest.exists(folder),
        ..MemberData::read(guest, &place)
    };
    let is_fault =
        |problem: &boot::Problem| problem.effect != Effect::Harmless && problem.kind != Kind::Alarm;
    let problem = boot::problems(&data).into_iter().find(is_fault);
    if let Some(problem) = problem {
        anyhow::bail!(
            "what was built is not sound: {}: {}",
            problem.path,
            problem.saw
        );
    }
    ensure!(
        matches!(data.stored, Stored::Open(_)),
        "what was built has no database"
    );
    if let Stored::Open(open) = &data.stored {
        open.0.db.check(&mut |_, _| {})?;
    }
    Ok(data)
}
