//! The contract of a check: what it declares beside the function that looks.

use super::{Context, Finding};
use crate::base::severity::Severity;
use crate::node::Role;

/// One subject that is looked at, with all failure modes that are known of it.
#[derive(Debug, Clone, Copy)]
pub struct Check {
    /// Stable name for `--only`, `--skip` and JSON: `disk-full`.
    pub id: &'static str,
    /// One sentence for `rescue checks`: what it looks for and what it can mend.
    pub about: &'static str,
    /// What it can find.
    pub modes: &'static [Mode],
    /// The roles of a node that it is for. Empty: it decides by itself.
    pub roles: &'static [Role],
    /// Identifiers of the checks whose remedies must be prepared before its own.
    pub after: &'static [&'static str],
    /// Looks, and never writes. A file that cannot be read is a finding, not an error, unless
    /// nothing can be said without it.
    pub run: fn(&Context<'_>) -> anyhow::Result<Vec<Finding>>,
}

impl Check {
    /// Whether it says anything about the node of `context`.
    pub fn is_for(&self, context: &Context<'_>) -> bool {
        let role = context.node.role.value;
        self.roles.is_empty() || role.is_some_and(|role| self.roles.contains(&role))
    }
}

/// One way in which a node fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mode {
    /// The check's identifier, a dot, and a name of its own: `swap.fstab`. Stable, for JSON.
    pub id: &'static str,
    /// How bad it is at worst; a finding may be milder.
    pub severity: Severity,
    /// What is wrong with such a node, as a clause: "an fstab line switches swap on".
    pub says: &'static str,
    /// What a reader wants to know beyond that, for the mode's page.
    pub page: Page,
    /// Parts of the lines that programs of the node write to their logs because of it, and because
    /// of nothing else.
    pub logged: &'static [&'static str],
}

/// What docs/modes says of a mode, in whole sentences.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Page {
    /// Why this stops or breaks the node, in the process's own words where it has some.
    pub why: &'static str,
    /// What rescue does about it, or what it says to type where it changes nothing.
    pub done: &'static str,
    /// Where the rule comes from: a function and file of the program, a manual page.
    pub source: &'static str,
}

impl Page {
    const EMPTY: Self = Self {
        why: "",
        done: "",
        source: "",
    };
}

impl Mode {
    const fn new(id: &'static str, severity: Severity, says: &'static str) -> Self {
        Self {
            id,
            severity,
            says,
            page: Page::EMPTY,
            logged: &[],
        }
    }

    /// A mode that keeps the node from coming back.
    pub const fn stops_boot(id: &'static str, says: &'static str) -> Self {
        Self::new(id, Severity::StopsBoot, says)
    }

    /// A mode of a node that comes up, and of which something fails now or soon.
    pub const fn will_break(id: &'static str, says: &'static str) -> Self {
        Self::new(id, Severity::WillBreak, says)
    }

    /// A mode that is worth knowing and does not count for the exit code.
    pub const fn note(id: &'static str, says: &'static str) -> Self {
        Self::new(id, Severity::Note, says)
    }

    /// Why it stops or breaks the node: whole sentences, for the mode's page.
    pub const fn why(mut self, why: &'static str) -> Self {
        self.page.why = why;
        self
    }

    /// What rescue does about it, or says to type: whole sentences, for the mode's page.
    pub const fn done(mut self, done: &'static str) -> Self {
        self.page.done = done;
        self
    }

    /// Where the rule comes from, for the mode's page.
    pub const fn source(mut self, source: &'static str) -> Self {
        self.page.source = source;
        self
    }

    /// What programs of the node write to their logs because of it, and because of nothing else:
    /// any one of these parts of a line tells.
    pub const fn logged(mut self, parts: &'static [&'static str]) -> Self {
        self.logged = parts;
        self
    }

    /// The check's identifier: what stands before the dot.
    pub fn check(&self) -> &'static str {
        self.id.split_once('.').map_or(self.id, |(check, _)| check)
    }
}
