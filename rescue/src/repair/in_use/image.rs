//! Image files in a format of their own: which of them are written to, and through what.

use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::disk::Disk;
use crate::disk::image::Layout;
use crate::refusal::Refusal;

/// Where the bytes of the image at `path` really are: the file to be claimed.
///
/// # Errors
/// A [`Refusal`] for what is only read.
pub fn file_to_write(path: &Path) -> Result<PathBuf> {
    match Disk::open(path)?.layout {
        Layout::Raw => Ok(path.to_path_buf()),
        Layout::Flat(flat) => Ok(flat),
        Layout::Qcow2(_) => Err(read_only(path, "qcow2", "qcow2")),
        Layout::Vmdk(form) => Err(read_only(path, "vmdk", &format!("VMDK ({form})"))),
    }
}

fn read_only(path: &Path, format: &str, shown: &str) -> anyhow::Error {
    let path = crate::typed::path(path);
    Refusal::new(
        format!("{path} is a {shown} image, which can be inspected here, but not be written to"),
        "nothing was changed",
        format!(
            "qemu-img convert -f {format} -O raw {path} {path}.raw, repair {path}.raw, and bring it back with \
             qemu-img convert -f raw -O {format} {path}.raw {path}.repaired"
        ),
    )
    .into()
}
