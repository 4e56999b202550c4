//! A new cluster from a sound database alone: which database, and what is in it.

use std::path::PathBuf;

use anyhow::Result;
use serde_json::json;

use super::members_plan::MembersPlan;
use super::new_cluster::{self, ChosenDatabase, MembersAtHand, NewClusterRequest};
use crate::base::refusal::Refusal;
use crate::base::ui::Ui;
use crate::change::folder;
use crate::etcd::format::bbolt::Fault;
use crate::etcd::format::file::File;
use crate::etcd::operations::guarantee::{Guarantee, Level};
use crate::etcd::operations::rebuild::from_db::Damaged;
use crate::etcd::operations::rebuild::origin::{Origin, Trailer, trailer};
use crate::etcd::read::backend::{Backend, Facts};
use crate::etcd::read::lease::LastWrite;
use crate::etcd::read::member::Stored;
use crate::etcd::read::status::Found;
use crate::etcd::read::survey::{Survey, last_written, survey};

/// Where the database is taken from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DatabaseSource {
    /// A saved snapshot, or a copy of a member's database, on this machine.
    File(PathBuf),
    /// Of the databases on the disks the one with the newest entry.
    NewestOnDisks,
}

/// Plans a cluster of the members found from one sound database.
///
/// # Errors
/// A [`Refusal`] where `source` is missing, where the database is damaged, and as of
/// [`new_cluster`].
pub fn plan(
    found: &[Found],
    request: &NewClusterRequest<'_>,
    source: Option<&DatabaseSource>,
    ui: &dyn Ui,
) -> Result<MembersPlan> {
    new_cluster::plan(found, request, |at_hand, readable| {
        let origin = match source {
            Some(DatabaseSource::File(path)) => Origin::Local(path.clone()),
            Some(DatabaseSource::NewestOnDisks) => newest_database(at_hand)?,
            None => return Err(no_source().into()),
        };
        sound_database(origin, request, readable, ui)
    })
}

/// Says what to do about a database that proved damaged while the new one was written from it;
/// other errors stay what they are.
pub fn explain_damage(error: anyhow::Error) -> anyhow::Error {
    match error.downcast::<Damaged>() {
        Ok(Damaged { origin, fault }) => damaged(&origin, &fault).into(),
        Err(error) => error,
    }
}

fn no_source() -> Refusal {
    Refusal::new(
        "it was not said what to make the new cluster from",
        "a database alone lacks what only the logs hold",
        "rescue repair with all control planes' disks, which keeps every acknowledged write where \
         it can; or add --db-only, or --from FILE",
    )
}

/// The database of the member whose last applied entry is the newest.
fn newest_database(at_hand: &MembersAtHand<'_>) -> Result<Origin> {
    let open = at_hand
        .found
        .iter()
        .zip(&at_hand.data)
        .filter(|(_, data)| matches!(data.stored, Stored::Open(_)));
    let Some((found, data)) = open.max_by_key(|(_, data)| data.consistent_index()) else {
        return Err(Refusal::new(
            "no database on the disks can be opened",
            "there is nothing to make a cluster from",
            "give a saved snapshot with --from FILE; the last resort is rescue etcd salvage",
        )
        .into());
    };
    Ok(Origin::in_guest(&found.guest, &data.place.db())?)
}

fn sound_database(
    origin: Origin,
    request: &NewClusterRequest<'_>,
    readable: &folder::Sources<'_>,
    ui: &dyn Ui,
) -> Result<ChosenDatabase> {
    let file = origin.open(readable)?;
    let notes = checksum(&origin, &file)?;
    let is_read_later = request.is_written_beside && !request.dry_run;
    let looked = Backend::open(file).and_then(|backend| {
        let facts = backend.facts()?;
        let contents = if is_read_later {
            glance(&backend, &facts)?
        } else {
            read_whole(&backend, &facts, &origin, ui)?
        };
        Ok((facts, contents))
    });
    let (facts, contents) = looked.map_err(|fault| damaged(&origin.to_string(), &fault))?;
    let guarantee = Guarantee {
        revision: Some(facts.revision),
        newest_write: contents.last_write.as_ref().map(|write| write.time),
        ..Guarantee::new(Level::G3)
    };
    let json = json!({
        "origin": origin.to_string(),
        "revision": facts.revision,
        "compact_revision": facts.compacted,
        "consistent_index": facts.consistent_index,
        "keys": contents.keys,
        "revisions": contents.revisions,
        "last_write": contents.last_write,
    });
    Ok(ChosenDatabase {
        origin,
        revision: facts.revision,
        facts,
        bytes: contents.bytes.saturating_mul(5) / 4 + (1 << 20),
        guarantee,
        notes,
        json,
        uncertain_keys: Vec::new(),
    })
}

/// A saved snapshot ends with a checksum; what is said of it, as a sentence.
fn checksum(origin: &Origin, file: &File) -> Result<Vec<String>> {
    match trailer(file)? {
        Trailer::Sound => Ok(vec![format!(
            "{origin} is a saved snapshot, and its checksum is right."
        )]),
        Trailer::None => Ok(Vec::new()),
        Trailer::Wrong => Err(Refusal::new(
            format!("the checksum at the end of {origin} does not fit"),
            "the saved snapshot was cut short or has changed since it was saved",
            "take another copy of it; or salvage what is in it: rescue etcd salvage",
        )
        .into()),
    }
}

/// What is in the database, as far as it was read.
struct Contents {
    keys: Option<u64>,
    revisions: Option<u64>,
    last_write: Option<LastWrite>,
    /// Of the pages in use where all were read, else of the file.
    bytes: u64,
}

fn read_whole(
    backend: &Backend,
    facts: &Facts,
    origin: &Origin,
    ui: &dyn Ui,
) -> Result<Contents, Fault> {
    let progress = ui.begin(&format!("checking {origin}"), Some(backend.db.size()));
    let Survey {
        check,
        keys,
        revisions,
        last_write,
        ..
    } = survey(backend, facts, facts.compacted, &*progress)?;
    Ok(Contents {
        keys,
        revisions: Some(revisions),
        last_write,
        bytes: check.pages.saturating_mul(backend.db.meta().page_size),
    })
}

/// Where nobody is asked and nothing is replaced, one reading is enough: every page is checked
/// while the new database is written from it.
fn glance(backend: &Backend, facts: &Facts) -> Result<Contents, Fault> {
    Ok(Contents {
        keys: None,
        revisions: None,
        last_write: last_written(backend, facts)?,
        bytes: backend.db.size(),
    })
}

fn damaged(origin: &str, fault: &Fault) -> Refusal {
    Refusal::new(
        format!("{origin}: {fault}"),
        "the database is damaged",
        "take that of another member, or a saved snapshot; the last resort is rescue etcd salvage",
    )
}
