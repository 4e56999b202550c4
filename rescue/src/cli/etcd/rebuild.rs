//! `rescue etcd rebuild`: a new cluster from a sound database alone.

use std::path::PathBuf;

use anyhow::Result;
use serde_json::json;

use super::new_cluster::{Chosen, Disks, asked, make};
use crate::base::refusal::Refusal;
use crate::base::ui::Ui as _;
use crate::change::folder;
use crate::cli::Outcome;
use crate::cli::args::Stop;
use crate::cli::shared_flags::arguments;
use crate::cli::terminal::Terminal;
use crate::etcd::format::bbolt::Fault;
use crate::etcd::operations::guarantee::{Guarantee, Level};
use crate::etcd::operations::rebuild::from_db::Damaged;
use crate::etcd::operations::rebuild::origin::{Origin, Trailer, trailer};
use crate::etcd::read::backend::{Backend, Facts};
use crate::etcd::read::lease::LastWrite;
use crate::etcd::read::member::Stored;
use crate::etcd::read::survey::{Survey, last_written, survey};

arguments! {
    /// make a new etcd cluster on the disks given, from one database alone: a member's own, an old
    /// copy, or what `etcdctl snapshot save` wrote. What only logs hold is lost: rescue repair with
    /// all control planes' disks keeps it, where it can
    #[argh(subcommand, name = "rebuild")]
    pub struct Rebuild {
        new_member_disks, roots, data_dir_for_output,
        own {
            /// the database: a saved snapshot, or a copy of a member's db
            #[argh(option)]
            pub from: Option<PathBuf>,
            /// take the newest sound database on the disks, without any log
            #[argh(switch)]
            pub db_only: bool,
        }
        members, dead_members, bump, output_folder, dry_run, keep_in, trust_member, yes,
        accept_loss, unproven, json, now,
    }
}

/// Plans and does it.
pub fn run(command: &Rebuild) -> Result<Result<Outcome>, Stop> {
    if command.from.is_some() && command.db_only {
        return Err(Stop::Usage(
            "--from names the database; --db-only takes one from the disks: give one of them"
                .to_owned(),
        ));
    }
    let asked = asked!(command, false, "rebuild --db-only");
    asked.manner.check()?;
    let made = make(&asked, |disks, readable| sound(command, disks, readable));
    Ok(made.map_err(|error| match error.downcast::<Damaged>() {
        Ok(Damaged { origin, fault }) => damaged(&origin, &fault).into(),
        Err(error) => error,
    }))
}

fn sound(command: &Rebuild, disks: &Disks, readable: &folder::Sources<'_>) -> Result<Chosen> {
    let origin = match &command.from {
        Some(path) => Origin::Local(path.clone()),
        None if command.db_only => newest_database(disks)?,
        None => {
            return Err(Refusal::new(
                "it was not said what to make the new cluster from",
                "a database alone lacks what only the logs hold",
                "rescue repair with all control planes' disks, which keeps every acknowledged write where it can; or add --db-only, or --from FILE",
            )
            .into());
        }
    };
    let file = origin.open(readable)?;
    let mut notes = Vec::new();
    match trailer(&file)? {
        Trailer::Sound => notes.push(format!(
            "{origin} is a saved snapshot, and its checksum is right."
        )),
        Trailer::None => {}
        Trailer::Wrong => {
            return Err(Refusal::new(
                format!("the checksum at the end of {origin} does not fit"),
                "the saved snapshot was cut short or has changed since it was saved",
                "take another copy of it; or salvage what is in it: rescue etcd salvage",
            )
            .into());
        }
    }
    let looked = Backend::open(file).and_then(|backend| {
        let facts = backend.facts()?;
        let seen = match command.output.is_some() && !command.dry_run {
            true => glanced_at(&backend, &facts)?,
            false => read_whole(&backend, &facts, &origin)?,
        };
        Ok((facts, seen))
    });
    let (facts, seen) = looked.map_err(|fault| damaged(&origin.to_string(), &fault))?;
    let Contained {
        keys,
        revisions,
        last_write,
        bytes,
    } = seen;
    let guarantee = Guarantee {
        revision: Some(facts.revision),
        newest_write: last_write.as_ref().map(|write| write.time),
        ..Guarantee::new(Level::G3)
    };
    let json = json!({
        "origin": origin.to_string(),
        "revision": facts.revision,
        "compact_revision": facts.compacted,
        "consistent_index": facts.consistent_index,
        "keys": keys,
        "revisions": revisions,
        "last_write": last_write,
    });
    let bytes = bytes.saturating_mul(5) / 4 + (1 << 20);
    Ok(Chosen {
        origin,
        revision: facts.revision,
        facts,
        bytes,
        guarantee,
        notes,
        json,
        uncertain: Vec::new(),
    })
}

/// What is in the database, as far as it was read.
struct Contained {
    keys: Option<u64>,
    revisions: Option<u64>,
    last_write: Option<LastWrite>,
    /// Of the pages in use, or of all.
    bytes: u64,
}

fn read_whole(backend: &Backend, facts: &Facts, origin: &Origin) -> Result<Contained, Fault> {
    let progress = Terminal.begin(&format!("checking {origin}"), Some(backend.db.size()));
    let Survey {
        check,
        keys,
        revisions,
        last_write,
        ..
    } = survey(backend, facts, facts.compacted, &*progress)?;
    let bytes = check.pages.saturating_mul(backend.db.meta().page_size);
    Ok(Contained {
        keys,
        revisions: Some(revisions),
        last_write,
        bytes,
    })
}

/// Where nobody is asked and nothing is replaced, one reading is enough: every page is checked while the new database is written from it.
fn glanced_at(backend: &Backend, facts: &Facts) -> Result<Contained, Fault> {
    let last_write = last_written(backend, facts)?;
    Ok(Contained {
        keys: None,
        revisions: None,
        last_write,
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

/// By the last entry that is in it.
fn newest_database(disks: &Disks) -> Result<Origin> {
    let open = disks
        .opened
        .found
        .iter()
        .zip(&disks.data)
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
