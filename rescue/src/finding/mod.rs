//! What a check says, and what mends it: the words that the catalogue, the plan and the reports
//! share.

mod check;
mod evidence;
mod facts;
mod node_report;
mod remedy;

pub use check::{Check, Mode, Page};
pub use evidence::{Evidence, Location};
pub use facts::{EtcdMember, Facts};
pub use node_report::{Inspection, NodeReport, counts};
pub use remedy::Remedy;

use std::fmt;
use std::rc::Rc;

use crate::base::severity::Severity;
use crate::base::ui::Ui;
use crate::change::Draft;
use crate::guest::Guest;
use crate::node::Node;
use crate::pki::peer::Peer;
use crate::settings::Settings;

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
    /// What has been read of this state of the guest.
    pub facts: &'a Facts,
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

/// Something wrong, or worth knowing.
#[derive(Debug, Clone)]
pub struct Finding {
    /// In which way the node fails.
    pub mode: Mode,
    /// How bad it is here: as bad as the mode, or milder.
    pub severity: Severity,
    /// One line: what is wrong, with the name of the thing.
    pub title: String,
    /// What was seen, and where.
    pub evidence: Vec<Evidence>,
    /// Where the node's own log says the same; then the finding is certain.
    pub log: Option<Evidence>,
    /// What mends it; empty when this program cannot, and then `advice` says what can.
    pub remedies: Vec<Rc<dyn Remedy>>,
    /// What the user can do, or what it means: whole sentences, may be empty.
    pub advice: Vec<String>,
}

impl Finding {
    /// Without evidence, remedies and advice; the `with_` methods add them.
    pub fn new(mode: Mode, title: impl Into<String>) -> Self {
        Self {
            mode,
            severity: mode.severity,
            title: title.into(),
            evidence: Vec::new(),
            log: None,
            remedies: Vec::new(),
            advice: Vec::new(),
        }
    }

    /// Identifier of the check that found it.
    pub fn check(&self) -> &'static str {
        self.mode.check()
    }

    /// The same finding, as bad as the circumstances make it. Never worse than its mode.
    #[must_use]
    pub fn with_severity(self, severity: Severity) -> Self {
        let severity = severity.min(self.mode.severity);
        Self { severity, ..self }
    }

    /// Adds evidence.
    #[must_use]
    pub fn with_evidence(mut self, at: impl Into<Location>, saw: impl Into<String>) -> Self {
        self.evidence.push(Evidence::new(at, saw));
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
