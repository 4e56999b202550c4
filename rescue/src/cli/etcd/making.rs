//! What `rescue etcd rebuild`, `salvage` and `defrag` share: a plan of new folders `member`, which are either written beside (`--output`) or
//! put in the members' places as every plan for several nodes is.

use std::path::{Path, PathBuf};
use std::rc::Rc;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use time::OffsetDateTime;

use super::opened::Opened;
use crate::base::refusal::Refusal;
use crate::base::schema::SCHEMA;
use crate::base::ui::Ui as _;
use crate::base::units;
use crate::change::Change;
use crate::change::folder::{BuildFolder, DirectorySink, Sources};
use crate::checks::CATALOGUE;
use crate::cli::Outcome;
use crate::cli::args::{self, Stop};
use crate::cli::set::{self, Answers};
use crate::cli::terminal::Terminal;
use crate::disk::Source;
use crate::etcd::operations::guarantee::{EXCLUDED, Guarantee};
use crate::etcd::read::status::Found;
use crate::guest::{Guest, GuestPath};
use crate::plan::set::{SetPart, SetPlan};
use crate::repair::shown_sink::ShownSink;
use crate::report::set as report;
use crate::session::Session;
use crate::settings::Settings;
use crate::tree::FolderTree;

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
    /// `--keep-in`.
    pub keep_in: Option<&'a Path>,
    /// `--trust`.
    pub trust: &'a [String],
    /// The time that counts as now, where it is not this machine's.
    pub now: Option<OffsetDateTime>,
}

impl Manner<'_> {
    /// JSON is for programs, which cannot be asked.
    pub fn check(&self) -> Result<(), Stop> {
        let [yes, dry_run] = args::answers(self.yes, self.dry_run);
        args::refuse_asking(
            self.json,
            &[yes, dry_run, (self.output.is_some(), "--output DIR")],
        )
    }

    /// No check is asked for: what is read of etcd is read by the command itself.
    pub fn settings(&self) -> Settings {
        let skip = CATALOGUE.iter().map(|check| check.id.to_owned()).collect();
        Settings {
            skip,
            keep_in: self.keep_in.map(Path::to_path_buf),
            trust: self.trust.to_vec(),
            ..args::with_now(self.now)
        }
    }

    /// For people.
    fn say(&self, text: &str) {
        if !self.json {
            print!("{text}");
        }
    }

    /// For programs: `made` are the folders written, or the run; `receipt` is of what was changed on the disks.
    fn close(&self, plan: &Value, outcome: &str, made: Value, receipt: Value) {
        if self.json {
            println!(
                "{}",
                json!({"schema": SCHEMA, "plan": plan, "outcome": outcome, "made": made, "receipt": receipt})
            );
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

    /// Shows it, asks, and carries it out on what was opened for it.
    ///
    /// # Errors
    /// A [`Refusal`] where nothing was changed.
    pub fn carry_out(
        self,
        opened: Opened,
        disks: &[Source],
        manner: &Manner<'_>,
    ) -> Result<Outcome> {
        let is_on_nodes = self
            .parts
            .iter()
            .all(|part| self.refuse_unwritable(part, &opened.found).is_ok());
        match manner.output {
            Some(output) if !manner.dry_run => self.write_beside(&opened.found, output, manner),
            None if is_on_nodes || !manner.dry_run => self.put_in_place(opened, disks, manner),
            _ => {
                manner.say(&format!(
                    "{}This was a dry run: nothing was changed.\n",
                    self.text()
                ));
                manner.close(&self.json(), "planned", Value::Null, Value::Null);
                Ok(Outcome::FindingsLeft)
            }
        }
    }

    fn write_beside(&self, found: &[Found], output: &Path, manner: &Manner<'_>) -> Result<Outcome> {
        manner.say(&self.text());
        drop(DirectorySink::create(output)?);
        // What is not whole is of no use, and stands in the way of the next attempt.
        let made = self
            .write_folders(found, output)
            .inspect_err(|_| drop(std::fs::remove_dir_all(output)))?;
        for made in &made {
            manner.say(&format!("Written: {}\n", made.display()));
        }
        manner.say("It is a data folder of etcd; nothing on the disks was changed.\n");
        let made: Vec<String> = made.iter().map(|made| made.display().to_string()).collect();
        manner.close(&self.json(), "written", json!(made), Value::Null);
        Ok(Outcome::Clean)
    }

    fn write_folders(&self, found: &[Found], output: &Path) -> Result<Vec<PathBuf>> {
        let guests: Vec<&Guest> = found.iter().map(|found| &found.guest).collect();
        let sources = Sources::new(guests);
        let mut made = Vec::new();
        for part in &self.parts {
            let folder = output.join(&part.name);
            drop(DirectorySink::create(&folder)?);
            let mut sink = DirectorySink::create(&folder.join("member"))?;
            let progress =
                Terminal.begin(&format!("writing {}", part.name), Some(part.recipe.bytes()));
            part.recipe
                .build(&sources, &mut ShownSink::new(&mut sink, &*progress))?;
            drop(progress);
            let name = folder.display().to_string();
            let guest = Guest::new(
                name.clone(),
                Rc::new(FolderTree::open(&folder)?),
                Vec::new(),
            );
            let progress = Terminal.begin(&format!("reading {} back", part.name), None);
            let verify = || part.recipe.verify(&guest, &GuestPath::new("/member"));
            sink.finish_beside(verify)?
                .with_context(|| format!("reading {name} back"))?;
            drop(progress);
            made.push(folder);
        }
        if !self.uncertain.is_empty() {
            let list = output.join("uncertain-keys");
            std::fs::write(&list, &self.uncertain)
                .with_context(|| format!("writing {}", list.display()))?;
            made.push(list);
        }
        Ok(made)
    }

    /// The way of every plan for several nodes.
    fn put_in_place(
        self,
        opened: Opened,
        disks: &[Source],
        manner: &Manner<'_>,
    ) -> Result<Outcome> {
        let said = self.json();
        let Opened { found, nodes } = opened;
        let plan = self.into_set(&found)?;
        // Whoever is to be written to must not be open any more.
        drop(found);
        let settings = manner.settings();
        let session = Session {
            sources: disks,
            settings: &settings,
            ui: &Terminal,
        };
        let Manner {
            yes,
            accept_loss,
            dry_run,
            json,
            ..
        } = *manner;
        let Some(receipt) = set::carry_out(
            &session,
            nodes,
            plan,
            Answers {
                yes,
                accept_loss,
                dry_run,
                json,
            },
        )?
        else {
            manner.close(&said, "planned", Value::Null, Value::Null);
            return Ok(Outcome::FindingsLeft);
        };
        manner.close(
            &said,
            "done",
            json!(format!("run {}", receipt.run)),
            report::receipt_json(&receipt),
        );
        Ok(set::outcome(Some(&receipt)))
    }

    fn into_set(self, found: &[Found]) -> Result<SetPlan> {
        let mut parts = Vec::new();
        for part in &self.parts {
            let member = self.refuse_unwritable(part, found)?;
            parts.push(SetPart {
                source: member.source.clone(),
                name: member.node.clone().unwrap_or_else(|| part.name.clone()),
                details: part.details.clone(),
                changes: vec![Change::replace_folder(
                    &member.guest,
                    &member.place.member(),
                    Rc::clone(&part.recipe),
                )?],
            });
        }
        let Self {
            summary,
            guarantee,
            notes,
            ..
        } = self;
        Ok(SetPlan {
            summary,
            guarantee,
            why: Vec::new(),
            notes,
            parts,
            afterwards: Vec::new(),
        })
    }

    /// A copy of a data folder belongs to no node: what is made of it is written beside it.
    fn refuse_unwritable<'f>(&self, part: &Part, found: &'f [Found]) -> Result<&'f Found> {
        let next = "add --output DIR and move what is written there yourself, or name the node's disk or --root FOLDER";
        let Some(member) = part.found.and_then(|at| found.get(at)) else {
            return Err(Refusal::new(
                format!("no disk of {} was given", part.name),
                "there is nothing that could be changed",
                next,
            )
            .into());
        };
        if !member.guest.file_systems.is_empty() {
            return Ok(member);
        }
        Err(Refusal::new(
            format!("{} is a data folder, not a node", member.source),
            "there is no place for the record that makes a change safe and lets it be taken back",
            next,
        )
        .into())
    }
}

/// "1.2 GiB, of which 0.3 GiB are free pages".
pub fn sizes(size: u64, in_use: u64) -> String {
    format!(
        "{}, of which {} are free pages",
        units::bytes(size),
        units::bytes(size.saturating_sub(in_use))
    )
}
