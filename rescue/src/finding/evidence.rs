//! Where something was seen, and what.

use serde::Serialize;
use serde::ser::SerializeStruct as _;

use crate::guest::{GuestPath, Origin};
use crate::systemd;

/// A place and what was seen there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Evidence {
    /// The file and line; `None` for what is in no file of the node: a fact about another node, a
    /// whole file system.
    pub at: Option<Origin>,
    /// What was seen, quoted where it is short.
    pub saw: String,
}

impl Evidence {
    /// What was seen at a place.
    pub fn new(at: impl Into<Location>, saw: impl Into<String>) -> Self {
        Self {
            at: at.into().0,
            saw: saw.into(),
        }
    }

    /// The place for people, `/etc/fstab:3`; empty without one.
    pub fn place(&self) -> String {
        self.at.as_ref().map(Origin::to_string).unwrap_or_default()
    }
}

/// As documented in docs/json.md: `path` with its line, `line` once more as a number where there is
/// one, `saw`.
impl Serialize for Evidence {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let line = self.at.as_ref().and_then(|at| at.line);
        let mut object =
            serializer.serialize_struct("Evidence", 2 + usize::from(line.is_some()))?;
        object.serialize_field("path", &self.place())?;
        match line {
            Some(line) => object.serialize_field("line", &line)?,
            None => object.skip_field("line")?,
        }
        object.serialize_field("saw", &self.saw)?;
        object.end()
    }
}

/// Whatever names a place. An empty text names none.
#[derive(Debug)]
pub struct Location(Option<Origin>);

impl From<Origin> for Location {
    fn from(origin: Origin) -> Self {
        Self(Some(origin))
    }
}

impl From<&Origin> for Location {
    fn from(origin: &Origin) -> Self {
        origin.clone().into()
    }
}

/// The first line of a setting.
impl From<&systemd::Origin> for Location {
    fn from(origin: &systemd::Origin) -> Self {
        Origin::line(origin.path.clone(), origin.line).into()
    }
}

impl From<&GuestPath> for Location {
    fn from(path: &GuestPath) -> Self {
        Origin::from(path.clone()).into()
    }
}

impl From<GuestPath> for Location {
    fn from(path: GuestPath) -> Self {
        Origin::from(path).into()
    }
}

impl From<&str> for Location {
    fn from(path: &str) -> Self {
        Self((!path.is_empty()).then(|| GuestPath::new(path).into()))
    }
}

impl From<&String> for Location {
    fn from(path: &String) -> Self {
        path.as_str().into()
    }
}

impl From<Option<GuestPath>> for Location {
    fn from(path: Option<GuestPath>) -> Self {
        Self(path.map(Origin::from))
    }
}

impl From<Option<Origin>> for Location {
    fn from(origin: Option<Origin>) -> Self {
        Self(origin)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_has_the_line_twice_and_no_place_as_an_empty_path() {
        let seen = |at: Location| serde_json::to_value(Evidence::new(at, "x")).unwrap();
        let line = Origin::line(GuestPath::new("/etc/fstab"), 3);
        let with_line = serde_json::json!({"path": "/etc/fstab:3", "line": 3, "saw": "x"});
        assert_eq!(seen(line.into()), with_line);
        assert_eq!(
            seen("/etc/fstab".into()),
            serde_json::json!({"path": "/etc/fstab", "saw": "x"})
        );
        assert_eq!(seen("".into()), serde_json::json!({"path": "", "saw": "x"}));
    }
}
