//! How bad something is.

/// How bad something is, mildest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Severity {
    /// Worth knowing; does not count for the exit code.
    Note,
    /// The node comes up, but something of it fails now or soon.
    WillBreak,
    /// The node does not come back.
    StopsBoot,
}

impl Severity {
    /// The word shown to people and in JSON.
    pub fn word(self) -> &'static str {
        match self {
            Self::Note => "note",
            Self::WillBreak => "will-break",
            Self::StopsBoot => "stops-boot",
        }
    }
}
