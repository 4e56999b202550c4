//! Refusing rather than guessing: what was seen, what it means, and the next thing to type.

/// A refusal. Nothing was changed. Exit code 3.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{saw}: {means}. Next: {next}")]
pub struct Refusal {
    /// What was seen: "/dev/sdb1 is mounted on /mnt".
    pub saw: String,
    /// What it means: "writing beside a mounted file system would destroy it".
    pub means: String,
    /// What to do: "umount /mnt, then run this again".
    pub next: String,
}

impl Refusal {
    /// All three parts; none ends with a full stop.
    pub fn new(saw: impl Into<String>, means: impl Into<String>, next: impl Into<String>) -> Self {
        Self {
            saw: saw.into(),
            means: means.into(),
            next: next.into(),
        }
    }
}
