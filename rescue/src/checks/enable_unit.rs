//! The remedy of a unit that nothing starts: what `systemctl enable`, and where needed `systemctl
//! unmask`, would do.

use anyhow::Result;
use serde_json::{Map, Value, json};

use crate::change::{Change, Prepared};
use crate::finding::{Context, Remedy};
use crate::guest::GuestPath;
use crate::systemd::{install_links, is_started};

/// Makes the boot start a unit.
#[derive(Debug)]
pub(super) struct EnableUnit {
    /// `kubelet.service`.
    pub unit: String,
    /// The link or empty file that masks it, and that is removed first.
    pub mask: Option<GuestPath>,
    /// Whether somebody may have masked it on purpose.
    pub asks: bool,
}

impl Remedy for EnableUnit {
    fn kind(&self) -> &'static str {
        "enable-unit"
    }

    fn summary(&self) -> String {
        match &self.mask {
            Some(mask) => format!("unmask {}: remove {mask}", self.unit),
            None => format!("enable {}, so that the boot starts it", self.unit),
        }
    }

    fn asks_first(&self) -> bool {
        self.asks
    }

    fn fields(&self) -> Map<String, Value> {
        Map::from_iter([("unit".to_owned(), json!(self.unit))])
    }

    fn prepare(&self, context: &Context<'_>) -> Result<Prepared> {
        let mut draft = context.draft();
        if let Some(mask) = &self.mask {
            draft.push(Change::remove(&draft.guest, mask)?)?;
        }
        if is_started(&draft.guest, &self.unit) {
            return Ok(draft.done());
        }
        for link in install_links(&draft.guest, &self.unit) {
            for folder in Change::make_dirs(&draft.guest, &link.path.parent(), 0o755)? {
                draft.push(folder)?;
            }
            draft.push(Change::symlink(&draft.guest, &link.path, link.target)?)?;
        }
        Ok(draft.done())
    }
}
