//! What `rescue etcd rebuild`, `salvage` and `defrag` share: a plan of new folders `member`, shown, asked about, and then either written
//! beside (`--output`) or put in the members' places.

use std::path::{Path, PathBuf};
use std::rc::Rc;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use time::OffsetDateTime;

use crate::cli::Outcome;
use crate::cli::args::Stop;
use crate::cli::terminal::{Terminal, confirm};
use crate::etcd::guarantee::{EXCLUDED, Guarantee};
use crate::etcd::status::Found;
use crate::guest::{FolderTree, Guest, GuestPath};
use crate::refusal::Refusal;
use crate::repair::Change;
use crate::repair::folder::{BuildFolder, DirectorySink, Sources};
use crate::repair::set;
use crate::repair::shown_sink::ShownSink;
use crate::repair::transaction::RunInfo;
use crate::repair::write_mount::WritableGuest;
use crate::report::json::SCHEMA;
use crate::session::{PartWay, Session};
use crate::ui::Ui as _;
use crate::units;

/// What is asked for beside the plan itself.
#[derive(Debug)]
pub struct Manner<'a> {
    /// `--output`.
    pub output: Option<&'a Path>,
    /// `--yes`.
    pub yes: bool,
    /// `--accept-loss`.
    pub accept_loss: bool,
    /// `--dry-run`.
    pub dry_run: bool,
    /// `--json`.
    pub json: bool,
    /// The time that counts as now.
    pub now: OffsetDateTime,
}

impl Manner<'_> {
    /// JSON is for programs, which cannot be asked.
    pub fn check(&self) -> Result<(), Stop> {
        match self.json && !self.yes && !self.dry_run && self.output.is_none() {
            true => Err(Stop::Usage(
                "--json cannot ask: add --yes to carry the plan out, --dry-run to see it, or --output DIR".to_owned(),
            )),
            false => Ok(()),
        }
    }
}

/// What becomes of one member.
#[derive(Debug)]
pub struct Part {
    /// The member's name: the folder below `--output`.
    pub name: String,
    /// Its place in the list of members found; none where it has no disk here.
    pub found: Option<usize>,
    /// The new folder.
    pub recipe: Rc<dyn BuildFolder>,
    /// For people.
    pub details: Vec<String>,
}

/// The whole.
#[derive(Debug)]
pub struct Plan {
    /// One line beginning with a verb.
    pub summary: String,
    /// What is promised.
    pub guarantee: Guarantee,
    /// What else should be known, in sentences.
    pub notes: Vec<String>,
    /// One for each member.
    pub parts: Vec<Part>,
    /// What was found, for programs.
    pub facts: Value,
    /// Keys to be listed in a file of their own beside what is made, one a line.
    pub uncertain: Vec<u8>,
}

impl Plan {
    fn text(&self) -> String {
        let mut text = format!("Plan: {}\n", self.summary);
        for part in &self.parts {
            text.push_str(&format!("  {}: {}\n", part.name, part.details.join("; ")));
        }
        text.push_str(&format!("{}\n", self.guarantee.statement()));
        for line in self.guarantee.may_be_lost().iter().chain(&self.notes) {
            text.push_str(&format!("{line}\n"));
        }
        text.push_str(&format!("{EXCLUDED}\n"));
        text
    }

    fn json(&self) -> Value {
        let part = |part: &Part| json!({ "name": part.name, "details": part.details, "bytes": part.recipe.bytes() });
        json!({
            "summary": self.summary,
            "guarantee": self.guarantee.level,
            "promise": self.guarantee,
            "statement": self.guarantee.statement(),
            "may_be_lost": self.guarantee.may_be_lost(),
            "notes": self.notes,
            "members": self.parts.iter().map(part).collect::<Vec<_>>(),
            "found": self.facts,
        })
    }

    /// Shows it, asks, and carries it out. `found` are the members on the disks, `sources` everything else that is read.
    ///
    /// # Errors
    /// A [`Refusal`] where nothing was changed.
    pub fn carry_out(self, found: Vec<Found>, manner: &Manner<'_>) -> Result<Outcome> {
        let said = self.json();
        if !manner.json {
            print!("{}", self.text());
        }
        if manner.dry_run {
            return Ok(close(manner, &said, "planned", Value::Null, Outcome::FindingsLeft));
        }
        if let Some(output) = manner.output {
            let made = self.write_beside(&found, output)?;
            if !manner.json {
                made.iter().for_each(|made| println!("Written: {}", made.display()));
                println!("It is a data folder of etcd; nothing on the disks was changed.");
            }
            let made: Vec<String> = made.iter().map(|made| made.display().to_string()).collect();
            return Ok(close(manner, &said, "written", json!(made), Outcome::Clean));
        }
        if manner.yes && !manner.accept_loss && !self.guarantee.loses_nothing() {
            return Err(Refusal::new(
                format!("this repair promises no more than {:?}", self.guarantee.level),
                "writes may be lost, and --yes alone does not say that this is accepted",
                "see the plan with --dry-run, then add --accept-loss",
            )
            .into());
        }
        if !manner.yes && !confirm("Carry this out?") {
            println!("Nothing was changed.");
            return Ok(Outcome::FindingsLeft);
        }
        let runs = self.put_in_place(found, manner)?;
        if !manner.json {
            println!(
                "Done. The old folders are kept; to take all of it back: rescue undo, with the same disks ({runs})."
            );
        }
        Ok(close(manner, &said, "done", json!(runs), Outcome::Clean))
    }

    fn write_beside(&self, found: &[Found], output: &Path) -> Result<Vec<PathBuf>> {
        let guests: Vec<&Guest> = found.iter().map(|found| &found.guest).collect();
        let sources = Sources::new(guests);
        drop(DirectorySink::create(output)?);
        let mut made = Vec::new();
        for part in &self.parts {
            let folder = output.join(&part.name);
            drop(DirectorySink::create(&folder)?);
            let mut sink = DirectorySink::create(&folder.join("member"))?;
            let progress = Terminal.begin(&format!("writing {}", part.name), Some(part.recipe.bytes()));
            part.recipe.build(&sources, &mut ShownSink::new(&mut sink, &*progress))?;
            drop(progress);
            let name = folder.display().to_string();
            let guest = Guest::new(name.clone(), Rc::new(FolderTree::open(&folder)?), Vec::new());
            let progress = Terminal.begin(&format!("reading {} back", part.name), None);
            let verify = || part.recipe.verify(&guest, &GuestPath::new("/member"));
            sink.finish_beside(verify)?.with_context(|| format!("reading {name} back"))?;
            drop(progress);
            made.push(folder);
        }
        if !self.uncertain.is_empty() {
            let list = output.join("uncertain-keys");
            std::fs::write(&list, &self.uncertain).with_context(|| format!("writing {}", list.display()))?;
            made.push(list);
        }
        Ok(made)
    }

    fn put_in_place(self, found: Vec<Found>, manner: &Manner<'_>) -> Result<String> {
        let mut changes = Vec::new();
        for part in self.parts {
            let member =
                part.found.and_then(|at| found.get(at)).with_context(|| format!("no disk of {}", part.name))?;
            refuse_unwritable(member)?;
            Session::refuse_unready(&member.guest)?;
            let change = Change::replace_folder(&member.guest, &member.place.member(), part.recipe)?;
            changes.push((part.found, part.name, change));
        }
        let closed: Vec<Guest> = found.into_iter().map(|found| found.guest.close()).collect();
        let writable: Vec<WritableGuest> = closed
            .iter()
            .map(|guest| WritableGuest::open_checked(&guest.source, &guest.file_systems, &Terminal))
            .collect::<Result<_>>()?;
        let mut parts = Vec::new();
        for (at, name, change) in changes {
            let guest = at.and_then(|at| writable.get(at)).context("a guest")?;
            parts.push(set::Part { guest, name, changes: vec![change] });
        }
        ensure!(!parts.is_empty(), "nothing to do");
        let info = RunInfo::new(manner.now, vec![self.summary]);
        set::apply(parts, &[], &info, &Terminal)?;
        for guest in writable {
            guest.close().context("the repair is done, but unmounting failed").map_err(PartWay::wrap)?;
        }
        Ok(format!("run {}", info.id))
    }
}

/// A copy of a data folder belongs to no node: what is made of it is written beside it.
fn refuse_unwritable(member: &Found) -> Result<()> {
    if !member.guest.file_systems.is_empty() {
        return Ok(());
    }
    Err(Refusal::new(
        format!("{} is a data folder, not a node", member.source),
        "there is no place for the record that makes a change safe and lets it be taken back",
        "add --output DIR and move what is written there yourself, or name the node's disk or --root FOLDER",
    )
    .into())
}

fn close(manner: &Manner<'_>, plan: &Value, outcome: &str, made: Value, code: Outcome) -> Outcome {
    if manner.json {
        println!("{}", json!({ "schema": SCHEMA, "plan": plan, "outcome": outcome, "made": made }));
    }
    code
}

/// "1.2 GiB, of which 0.3 GiB are free pages".
pub fn sizes(size: u64, in_use: u64) -> String {
    format!("{}, of which {} are free pages", units::bytes(size), units::bytes(size.saturating_sub(in_use)))
}
