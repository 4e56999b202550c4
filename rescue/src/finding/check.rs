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
}

impl Mode {
    /// A mode that keeps the node from coming back.
    pub const fn stops_boot(id: &'static str, says: &'static str) -> Self {
        let severity = Severity::StopsBoot;
        Self { id, severity, says }
    }

    /// A mode of a node that comes up, and of which something fails now or soon.
    pub const fn will_break(id: &'static str, says: &'static str) -> Self {
        let severity = Severity::WillBreak;
        Self { id, severity, says }
    }

    /// A mode that is worth knowing and does not count for the exit code.
    pub const fn note(id: &'static str, says: &'static str) -> Self {
        let severity = Severity::Note;
        Self { id, severity, says }
    }

    /// The check's identifier: what stands before the dot.
    pub fn check(&self) -> &'static str {
        self.id.split_once('.').map_or(self.id, |(check, _)| check)
    }
}
