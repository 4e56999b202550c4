//! A source as a block device under a throw-away layer, for programs that look at a file system
//! from outside: checkers.

use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context;

use super::server::Export;
use super::{budget, explain};
use crate::disk::ReadAt;
use crate::disk::loop_device::{LoopDevice, LoopOptions};
use crate::mount::{Access, Mount};

/// A block device that shows a source; what is written to it is gone with it. The fields' order is
/// the order of taking down.
#[derive(Debug)]
pub struct ThrowAway {
    device: LoopDevice,
    export: Export,
}

impl ThrowAway {
    /// Shows `source` as it is. Needs root.
    pub fn over(source: &Arc<dyn ReadAt>) -> anyhow::Result<Self> {
        crate::mount::require_root("checking a file system")?;
        let export = Export::start(Arc::clone(source), Arc::clone(budget()?))
            .context("showing the disk to the kernel")?;
        let file = export.open()?;
        let options = LoopOptions {
            sector_size: source.sector_size(),
            read_only: false,
            ..LoopOptions::default()
        };
        let device = LoopDevice::attach(file.as_fd(), &options)?;
        Ok(Self { device, export })
    }

    /// Shows `source`, a file system of `kind`, as it will be once the kernel has replayed its
    /// journal: it is mounted, and unmounted again, on the layer.
    ///
    /// # Errors
    /// A [`crate::base::refusal::Refusal`] where that takes more memory than the layers may have;
    /// else what the kernel said, and then nothing of the attempt is left.
    pub fn replayed(source: &Arc<dyn ReadAt>, kind: &str) -> anyhow::Result<Self> {
        let shown = Self::over(source)?;
        let replay =
            Mount::new(&shown.device.path(), kind, Access::ReadWrite).and_then(Mount::unmount);
        match replay {
            Ok(()) => Ok(shown),
            Err(error) => Err(explain(error, &shown.export.trouble, budget()?)),
        }
    }

    /// A path that opens it in this process.
    pub fn path(&self) -> PathBuf {
        self.device.path()
    }

    /// The first read of the source that failed, in words: a checker then judges a disk that cannot
    /// be read.
    pub fn unreadable(&self) -> Option<String> {
        self.export
            .trouble
            .unreadable
            .lock()
            .ok()
            .and_then(|first| first.clone())
    }
}
