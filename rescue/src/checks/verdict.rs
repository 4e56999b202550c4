//! What can be said of a node as a whole. Silence claims no more than was looked at.

use serde::Serialize;

use super::CATALOGUE;
use crate::base::severity::Severity;
use crate::finding::{Finding, NodeReport};
use crate::node::Role;
use crate::settings::Settings;

/// What no disk can show.
pub const BEYOND_THE_DISK: &str =
    "No disk shows the network, DNS, load balancers, registries or the hardware.";

/// What was found, how much was looked for, and what could not be seen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Verdict {
    /// Number of findings that keep the node from coming back.
    pub stops_boot: usize,
    /// Number of findings of a node that comes up, and of which something fails now or soon.
    pub will_break: usize,
    /// Number of failure modes that were looked for: those of the checks that were asked for and
    /// are for this role.
    pub looked_for: usize,
    /// What could not be seen, one plain sentence without a full stop each.
    pub unseen: Vec<String>,
}

impl Verdict {
    /// The verdict on a node.
    pub fn of(report: &NodeReport, settings: &Settings) -> Self {
        let number = |severity: Severity| {
            let of_it = |finding: &&Finding| finding.severity == severity;
            report.findings.iter().filter(of_it).count()
        };
        Self {
            stops_boot: number(Severity::StopsBoot),
            will_break: number(Severity::WillBreak),
            looked_for: looked_for(report, settings),
            unseen: unseen(report, settings),
        }
    }

    /// For people, in one sentence.
    pub fn sentence(&self) -> String {
        match (self.stops_boot, self.will_break) {
            (0, 0) => format!(
                "None of the {} kinds of trouble that rescue looked for was found.",
                self.looked_for
            ),
            (0, 1) => "This node comes up, but 1 finding breaks something now or soon.".to_owned(),
            (0, breaks) => {
                format!("This node comes up, but {breaks} findings break something now or soon.")
            }
            (1, _) => "This node does NOT come back: 1 finding stops it.".to_owned(),
            (stops, _) => format!("This node does NOT come back: {stops} findings stop it."),
        }
    }
}

fn looked_for(report: &NodeReport, settings: &Settings) -> usize {
    let role = report.node.role.value;
    let is_for =
        |roles: &[Role]| roles.is_empty() || role.is_some_and(|role| roles.contains(&role));
    let checks = CATALOGUE.iter().filter(|check| is_for(check.roles));
    let asked = checks.filter(|check| settings.asks_for(check.id));
    asked.map(|check| check.modes.len()).sum()
}

fn unseen(report: &NodeReport, settings: &Settings) -> Vec<String> {
    let mut unseen = report.guest.unresolved.clone();
    if report.node.role.value.is_none() {
        unseen.push("what this node is in its cluster: nothing on the disk says it".to_owned());
    }
    let skipped: Vec<&str> = CATALOGUE
        .iter()
        .map(|check| check.id)
        .filter(|id| !settings.asks_for(id))
        .collect();
    if !skipped.is_empty() {
        unseen.push(format!(
            "what these checks look for: {}",
            skipped.join(", ")
        ));
    }
    // A check that failed has looked at nothing.
    let failed = report
        .findings
        .iter()
        .filter(|finding| finding.mode.id == finding.check());
    unseen.extend(
        failed.map(|finding| format!("what the check {} looks for: it failed", finding.check())),
    );
    unseen
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(stops_boot: usize, will_break: usize) -> String {
        let unseen = Vec::new();
        Verdict {
            stops_boot,
            will_break,
            looked_for: 57,
            unseen,
        }
        .sentence()
    }

    #[test]
    fn silence_claims_what_was_looked_for_and_no_more() {
        assert_eq!(
            verdict(0, 0),
            "None of the 57 kinds of trouble that rescue looked for was found."
        );
        assert!(verdict(0, 2).contains("2 findings break"));
        assert!(verdict(1, 2).contains("does NOT come back: 1 finding stops"));
        assert!(!verdict(0, 0).contains("can be booted"));
    }
}
