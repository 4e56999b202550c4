//! What a check says, and what mends it: the words that the catalogue, the plan and the reports share.

mod node_report;

pub use node_report::{Inspection, NodeReport, counts};

use std::fmt;
use std::rc::Rc;

use crate::base::severity::Severity;
use crate::base::ui::Ui;
use crate::change::{Draft, Prepared};
use crate::guest::Guest;
use crate::node::Node;
use crate::pki::peer::Peer;
use crate::settings::Settings;

/// One failure mode.
pub trait Check {
    /// Stable name for `--only`, `--skip` and JSON: `disk-full`.
    fn id(&self) -> &'static str;

    /// One sentence for `rescue checks`: what it looks for and what it can mend.
    fn about(&self) -> &'static str;

    /// Looks, and never writes. A file that cannot be read is a finding, not an error, unless nothing can be said without it.
    fn run(&self, context: &Context<'_>) -> anyhow::Result<Vec<Finding>>;
}

/// What a check may look at. The guest may already hold what earlier remedies will have done.
#[derive(Clone, Copy)]
pub struct Context<'a> {
    /// The file tree.
    pub guest: &'a Guest,
    /// Facts about it.
    pub node: &'a Node,
    /// What the user asked for, with the time that counts as now.
    pub settings: &'a Settings,
    /// The other nodes of the run.
    pub peers: &'a [Rc<Peer>],
    /// For progress.
    pub ui: &'a dyn Ui,
}

impl Context<'_> {
    /// Changes to this guest, none yet.
    pub fn draft(&self) -> Draft {
        Draft::new(self.guest, self.settings.now.unix_timestamp())
    }
}

impl fmt::Debug for Context<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Context")
            .field("guest", &self.guest)
            .finish_non_exhaustive()
    }
}

/// A file and what was seen in it.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Evidence {
    /// Guest path, with `:LINE` where a line is meant; empty for a file system as a whole.
    pub path: String,
    /// What was seen, quoted where it is short.
    pub saw: String,
}

impl Evidence {
    /// From anything that shows itself.
    pub fn new(path: impl fmt::Display, saw: impl Into<String>) -> Self {
        Self {
            path: path.to_string(),
            saw: saw.into(),
        }
    }
}

/// Something wrong, or worth knowing.
#[derive(Debug, Clone)]
pub struct Finding {
    /// [`Check::id`].
    pub check: &'static str,
    /// How bad.
    pub severity: Severity,
    /// One line: what is wrong, with the name of the thing.
    pub title: String,
    /// What was seen, and where.
    pub evidence: Vec<Evidence>,
    /// What mends it; empty when this program cannot, and then `advice` says what can.
    pub remedies: Vec<Rc<dyn Remedy>>,
    /// What the user can do, or what it means: whole sentences, may be empty.
    pub advice: Vec<String>,
}

impl Finding {
    /// Without evidence, remedies and advice; add them with struct update or the `with_` methods.
    pub fn new(check: &'static str, severity: Severity, title: impl Into<String>) -> Self {
        Self {
            check,
            severity,
            title: title.into(),
            evidence: Vec::new(),
            remedies: Vec::new(),
            advice: Vec::new(),
        }
    }

    /// Adds evidence.
    #[must_use]
    pub fn with_evidence(mut self, path: impl fmt::Display, saw: impl Into<String>) -> Self {
        self.evidence.push(Evidence::new(path, saw));
        self
    }

    /// Adds a remedy.
    #[must_use]
    pub fn with_remedy(mut self, remedy: impl Remedy + 'static) -> Self {
        self.remedies.push(Rc::new(remedy));
        self
    }

    /// Adds advice: a sentence on each line.
    #[must_use]
    pub fn with_advice(mut self, advice: impl Into<String>) -> Self {
        self.advice.extend(advice.into().lines().map(str::to_owned));
        self
    }
}

/// What would mend a finding: the intent, printable and cheap. Turned into changes only when a plan is made.
pub trait Remedy: fmt::Debug {
    /// Stable name for JSON: `renew-certificate`.
    fn kind(&self) -> &'static str;

    /// One line for the plan, beginning with a verb: "renew apiserver.crt (expired 2024-02-23), valid to 2027-11-23".
    fn summary(&self) -> String;

    /// Further lines for the plan (tables of candidates, SAN sources); may be empty.
    fn details(&self) -> Vec<String> {
        Vec::new()
    }

    /// False for what undo cannot bring back (freed logs).
    fn can_be_undone(&self) -> bool {
        true
    }

    /// Whether all of the details should be seen before it is agreed to: names that were put together, each with its source.
    fn must_be_read(&self) -> bool {
        false
    }

    /// True for what is only done in passing, when something that counts is mended too: no disk is written for it alone.
    fn is_incidental(&self) -> bool {
        false
    }

    /// Fields for JSON beside `kind` and `summary`; never key material.
    fn fields(&self) -> serde_json::Map<String, serde_json::Value> {
        serde_json::Map::new()
    }

    /// Works it out against the guest as it will be after everything planned before. Keys are made here.
    fn prepare(&self, context: &Context<'_>) -> anyhow::Result<Prepared>;
}
