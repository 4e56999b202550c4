//! What a repair promises, best first. Every plan says which of these holds, and what may be lost.

use serde::Serialize;
use time::OffsetDateTime;

use crate::base::units;

/// How much is promised.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub enum Level {
    /// Mended in place.
    G0,
    /// Rebuilt with the logs of a majority of the voters at hand.
    G1,
    /// With fewer.
    G2,
    /// From a database alone.
    G3,
    /// From what could be salvaged of a damaged database.
    G4,
}

/// A promise, with what is known of its limits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Guarantee {
    /// How much.
    pub level: Level,
    /// The newest revision that is kept.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub revision: Option<i64>,
    /// The newest write that is kept and carries its time.
    #[serde(
        with = "time::serde::rfc3339::option",
        skip_serializing_if = "Option::is_none"
    )]
    pub newest_write: Option<OffsetDateTime>,
    /// Voters whose logs were not at hand, for people.
    pub missing: Vec<String>,
    /// Whether the revision is raised above all that was ever given out, so that whoever watches
    /// lists anew.
    pub raises_revision: bool,
    /// What else may be lost or be wrong, as sentences.
    pub also: Vec<String>,
}

impl Guarantee {
    /// Of which nothing else is known.
    pub fn new(level: Level) -> Self {
        Self {
            level,
            revision: None,
            newest_write: None,
            missing: Vec::new(),
            raises_revision: false,
            also: Vec::new(),
        }
    }

    /// The promise, as one sentence.
    pub fn statement(&self) -> &'static str {
        match self.level {
            Level::G0 => {
                "G0: no acknowledged write is lost, and the member keeps its identity, provided \
                 its disk kept what etcd had synchronised."
            }
            Level::G1 => {
                "G1: no acknowledged write is lost, provided the disks kept what etcd had \
                 synchronised: the logs of a majority of the voters are at hand, and the newest of \
                 them holds every acknowledged write. Writes that were never acknowledged may \
                 reappear."
            }
            Level::G2 => {
                "G2: writes that were acknowledged only by the missing members are lost. How many \
                 cannot be told: fewer than a majority of the voters' logs are at hand."
            }
            Level::G3 => {
                "G3: writes that had not reached the database are lost: up to 100 ms of them, and \
                 whatever other members acknowledged after that."
            }
            Level::G4 => {
                "G4: best effort. What could be read is kept; revisions that could not are listed, \
                 and keys whose newest value is uncertain are named."
            }
        }
    }

    /// What may be lost, in sentences; empty where nothing may.
    pub fn may_be_lost(&self) -> Vec<String> {
        let mut lines = Vec::new();
        if self.level >= Level::G2 {
            let revision = self
                .revision
                .map(|revision| format!(" at revision {revision}"))
                .unwrap_or_default();
            let time = self
                .newest_write
                .map(|time| format!(", written {}", units::time(time)))
                .unwrap_or_default();
            if !(revision.is_empty() && time.is_empty()) {
                lines.push(format!(
                    "The newest write that is kept is{revision}{time}. Whatever was acknowledged \
                     after it is lost."
                ));
            }
            if !self.missing.is_empty() {
                lines.push(format!("Not at hand: {}.", self.missing.join(", ")));
            }
            if !self.raises_revision {
                lines.push(
                    "Clients that still run may remember revisions that are lost: restart the \
                     kubelets of all nodes that were up meanwhile, and everything else that \
                     watches the API server."
                        .to_owned(),
                );
            }
        }
        lines.extend(self.also.iter().cloned());
        lines
    }

    /// Whether an unattended run may do it without being told that losses are accepted.
    pub fn loses_nothing(&self) -> bool {
        self.level <= Level::G1
    }
}

/// What no guarantee covers: a disk that does not keep what was synchronised to it.
pub const EXCLUDED: &str = "Not covered: virtual disks with cache=unsafe, disks that were taken \
    back to an old hypervisor snapshot, kernels with ext4's early fast_commit (5.10 before \
    5.10.94, 5.15 before 5.15.27), and single members of etcd before 3.4.21 or 3.5.5.";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_first_two_lose_nothing() {
        for level in [Level::G0, Level::G1, Level::G2, Level::G3, Level::G4] {
            let guarantee = Guarantee {
                revision: Some(4711),
                ..Guarantee::new(level)
            };
            assert_eq!(
                guarantee.loses_nothing(),
                guarantee.may_be_lost().is_empty(),
                "{level:?}"
            );
            assert!(guarantee.statement().starts_with(&format!("{level:?}: ")));
        }
    }
}
