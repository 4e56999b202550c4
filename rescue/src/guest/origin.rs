//! A place in a file of the guest.

use std::fmt;

use super::GuestPath;

/// A file, and a line of it where one is meant.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Origin {
    /// The file.
    pub path: GuestPath,
    /// Line number, from 1.
    pub line: Option<usize>,
}

impl Origin {
    /// A line of a file.
    pub fn line(path: GuestPath, line: usize) -> Self {
        Self {
            path,
            line: Some(line),
        }
    }
}

impl From<GuestPath> for Origin {
    fn from(path: GuestPath) -> Self {
        Self { path, line: None }
    }
}

/// `/etc/fstab:3`, as compilers and grep write it.
impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.path.fmt(f)?;
        match self.line {
            Some(line) => write!(f, ":{line}"),
            None => Ok(()),
        }
    }
}
