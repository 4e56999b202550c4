//! What the user said before being asked.

use super::args::{self, Stop};

/// Flags that answer questions beforehand.
#[derive(Debug, Clone, Copy, Default)]
pub struct Answers {
    /// `--yes`.
    pub yes: bool,
    /// `--accept-loss`: also where acknowledged writes may be lost.
    pub accept_loss: bool,
    /// `--dry-run`.
    pub dry_run: bool,
    /// `--json`: nothing is printed for people.
    pub json: bool,
}

impl Answers {
    /// JSON is for programs, which cannot be asked.
    pub fn check(&self) -> Result<(), Stop> {
        args::refuse_asking(self.json, &args::answers(self.yes, self.dry_run))
    }

    /// Prints a text for people.
    pub fn say(&self, text: &str) {
        if !self.json {
            print!("{text}");
        }
    }
}
