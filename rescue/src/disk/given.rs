//! What the user said about the disks beside their names: how image files are to be read, which
//! files they may name, what opens encrypted volumes, where to put what does not fit into memory.
//!
//! One value for the whole process, set once before the first disk is opened: whatever opens a disk
//! again later (after a repair, for `undo`) must read it in the same way.

use std::path::PathBuf;
use std::sync::OnceLock;

use super::image::Format;

/// What was said.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Given {
    /// The format of all image files, instead of what their names and contents say.
    pub format: Option<Format>,
    /// Folders beside the image's own from which an image may have files read that it names.
    pub folders: Vec<PathBuf>,
    /// Files whose content opens LUKS volumes.
    pub luks_key_files: Vec<PathBuf>,
    /// A new file for what replaying journals needs beyond memory.
    pub spill: Option<PathBuf>,
}

static GIVEN: OnceLock<Given> = OnceLock::new();

impl Given {
    /// Makes this what counts. Only the first call has an effect.
    pub fn set(self) {
        let _ = GIVEN.set(self);
    }

    /// What counts; nothing where nothing was set.
    pub fn get() -> Self {
        GIVEN.get().cloned().unwrap_or_default()
    }

    /// How the user typed it, with a blank before each flag.
    pub fn as_typed(&self) -> String {
        let mut flags = self
            .format
            .map(|format| format!(" --image-format {}", format.name()))
            .unwrap_or_default();
        for folder in &self.folders {
            flags.push_str(&format!(
                " --image-folder {}",
                crate::base::shell::quoted(folder)
            ));
        }
        for file in &self.luks_key_files {
            flags.push_str(&format!(
                " --luks-key-file {}",
                crate::base::shell::quoted(file)
            ));
        }
        if let Some(file) = &self.spill {
            flags.push_str(&format!(" --spill {}", crate::base::shell::quoted(file)));
        }
        flags
    }
}
