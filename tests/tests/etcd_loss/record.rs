//! What each round came to, kept as JSON lines.

use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use crate::peers::Lost;
use crate::round::Outcome;

/// One round.
#[derive(Debug)]
pub struct Line {
    pub round: u64,
    pub version: String,
    /// What was done to each disk.
    pub damages: Vec<String>,
    pub acknowledged: usize,
    pub outcome: Outcome,
    /// `G0` … `G4`, as the plan said; empty where nothing was repaired.
    pub guarantee: String,
    pub lost: usize,
    /// Why it was refused, or the first of what was lost.
    pub words: String,
    pub peers: Option<Lost>,
}

impl Line {
    pub fn sentence(&self) -> String {
        let Self {
            round,
            version,
            damages,
            acknowledged,
            outcome,
            guarantee,
            lost,
            words,
            peers,
        } = self;
        let damages = damages.join("; ");
        format!(
            "round {round} (etcd {version}): {damages}: {outcome:?} {guarantee}, {lost} of \
             {acknowledged} lost; {words}; {peers:?}"
        )
    }

    fn json(&self) -> Value {
        json!({
            "round": self.round, "etcd": self.version, "damages": self.damages,
            "acknowledged": self.acknowledged,
            "outcome": format!("{:?}", self.outcome), "guarantee": self.guarantee,
            "lost": self.lost, "words": self.words,
            "peers": self.peers.map(|lost| json!({
                "force_new_cluster": lost.force_new_cluster,
                "snapshot_restore": lost.snapshot_restore
            })),
        })
    }
}

/// All rounds, those of earlier runs included.
pub struct Record {
    file: Option<PathBuf>,
    lines: Vec<Value>,
}

impl Record {
    pub fn open() -> Result<Self> {
        let file = std::env::var_os("RESCUE_ETCD_RECORD").map(PathBuf::from);
        let text = file
            .as_ref()
            .filter(|file| file.exists())
            .map(fs::read_to_string)
            .transpose()?
            .unwrap_or_default();
        let lines = text
            .lines()
            .map(serde_json::from_str)
            .collect::<Result<_, _>>()
            .context("reading the record")?;
        Ok(Self { file, lines })
    }

    /// Whether etcd's own ways are tried, too: it takes longer.
    pub fn compares(&self) -> bool {
        self.file.is_some()
    }

    pub fn has(&self, round: u64) -> bool {
        self.lines.iter().any(|line| line["round"] == round)
    }

    pub fn keep(&mut self, line: &Line) -> Result<()> {
        let line = line.json();
        if let Some(file) = &self.file {
            writeln!(
                OpenOptions::new().create(true).append(true).open(file)?,
                "{line}"
            )?;
        }
        self.lines.push(line);
        Ok(())
    }

    fn count(&self, of: impl Fn(&Value) -> bool) -> usize {
        self.lines.iter().filter(|line| of(line)).count()
    }

    /// A table for docs: rounds by outcome, and the writes that each way lost where all are known.
    pub fn summary(&self) -> String {
        let mut text = format!("{} rounds\n", self.lines.len());
        for outcome in [
            Outcome::Whole,
            Outcome::LostAsAnnounced,
            Outcome::Silent,
            Outcome::Refused,
            Outcome::Diverged,
            Outcome::LostMore,
        ] {
            let name = format!("{outcome:?}");
            text.push_str(&format!(
                "{name}: {}\n",
                self.count(|line| line["outcome"] == name.as_str())
            ));
        }
        let number = |value: &Value| value.as_u64().unwrap_or(0);
        for way in ["force_new_cluster", "snapshot_restore"] {
            let compared: Vec<&Value> = self
                .lines
                .iter()
                .filter(|line| !line["peers"].is_null())
                .collect();
            let not = compared
                .iter()
                .filter(|line| line["peers"][way].is_null())
                .count();
            let losing = compared
                .iter()
                .filter(|line| number(&line["peers"][way]) > 0)
                .count();
            let lost: u64 = compared
                .iter()
                .map(|line| number(&line["peers"][way]))
                .sum();
            text.push_str(&format!(
                "{way}: {} compared, {not} did not start, {losing} lost something, {lost} writes \
                 in all\n",
                compared.len()
            ));
        }
        let ours: u64 = self.lines.iter().map(|line| number(&line["lost"])).sum();
        text + &format!("rescue: {ours} writes in all\n")
    }

    pub fn ensure_something_was_proved(&self) -> Result<()> {
        let whole = self.count(|line| line["outcome"] == "Whole");
        ensure!(
            whole * 2 > self.lines.len(),
            "only {whole} of {} rounds ended whole:\n{}",
            self.lines.len(),
            self.summary()
        );
        Ok(())
    }
}
