//! The node's own last words: what its kubelet, its runtime, its control plane and systemd wrote of
//! failures before the power went. Read from systemd's journal, from rsyslog's files where there is
//! none, and from the logs of the static pods.
//!
//! Only a bounded part is read, the newest; what that leaves out is said ([`LastWords::is_cut`]).

mod compression;
mod container;
mod gather;
mod journal_file;
mod journald;
mod message;
mod pods;
mod rsyslog;
mod syslog;
mod tail;
mod window;

use time::OffsetDateTime;

use crate::guest::{Guest, GuestPath};

/// Something that was said, once or often.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Word {
    /// Who said it: `kubelet`, `containerd`, `systemd`, or a container of a static pod.
    pub source: String,
    /// Its last wording, without the logger's own header.
    pub text: String,
    /// How often, numbers and identifiers in it apart.
    pub count: u64,
    /// The first time within what was read.
    pub first: Option<OffsetDateTime>,
    /// The last time.
    pub last: Option<OffsetDateTime>,
    /// Which boot, counted back from the newest, 0; `None` where the log tells no boots apart.
    pub boot: Option<usize>,
    /// Whether it tells of a failure.
    pub is_error: bool,
    /// The file of the log.
    pub file: GuestPath,
}

/// A boot that the log knows of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Boot {
    /// Its first entry within what was read.
    pub first: Option<OffsetDateTime>,
    /// Its last entry.
    pub last: Option<OffsetDateTime>,
}

/// What the logs of a node hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LastWords {
    /// The boots, newest first.
    pub boots: Vec<Boot>,
    /// The words, newest first for each log.
    pub words: Vec<Word>,
    /// The files that were read.
    pub files: Vec<GuestPath>,
    /// Whether older ones were left out.
    pub is_cut: bool,
}

impl LastWords {
    /// Reads them. `pods`: names of the node's static pods.
    pub fn read(guest: &Guest, pods: &[&str]) -> Self {
        let mut found = Self::default();
        journald::read(guest, &mut found);
        if found.boots.is_empty() {
            rsyslog::read(guest, &mut found);
        }
        pods::read(guest, pods, &mut found);
        found
    }

    /// The words of the last boot, and those of no particular boot, that contain one of
    /// `fragments`.
    pub fn saying<'a>(&'a self, fragments: &'a [&str]) -> impl Iterator<Item = &'a Word> {
        let is_recent = |word: &&Word| word.boot.is_none_or(|boot| boot == 0);
        let says = |word: &&Word| fragments.iter().any(|part| word.text.contains(part));
        self.words.iter().filter(is_recent).filter(says)
    }
}
