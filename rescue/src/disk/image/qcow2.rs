//! qcow2, versions 2 and 3, for reading: after QEMU's docs/interop/qcow2.txt. Written here because
//! imago 0.2.6, the crate for it, refuses images with the dirty bit (what a host's crash leaves
//! behind), zstd compression and extended entries.

mod header;
mod reader;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Result;

use super::files::Files;
use super::{Format, Image, ImageError, Layout as ImageLayout, refuse, refuse_references};
use crate::base::refusal::Refusal;
use crate::disk::given::Given;
use crate::disk::{ReadAt, shown};
use header::Header;
use reader::Qcow2;

/// First bytes of every qcow2.
pub const MAGIC: &[u8] = b"QFI\xfb";

/// What is below a qcow2 image, in the order in which it is read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// Files below it, the next one first, with their formats.
    pub backing: Vec<(PathBuf, Format)>,
    /// Why nobody may write to it before it is checked, in words.
    pub needs_check: Option<&'static str>,
}

/// One image of the chain, before it is put on top of the others.
struct Link {
    path: PathBuf,
    file: Arc<dyn ReadAt>,
    header: Option<Header>,
}

/// Opens the image at `path` and everything below it.
pub(super) fn open_chain(
    path: &Path,
    file: Arc<dyn ReadAt>,
    may_refer: bool,
    given: &Given,
) -> Result<Image> {
    let chain = chain(path, file, may_refer, given)?;
    let top = chain.first().and_then(|link| link.header.as_ref());
    let layout = Layout {
        backing: chain
            .iter()
            .skip(1)
            .map(|link| (link.path.clone(), link.format()))
            .collect(),
        needs_check: top.and_then(Header::needs_check),
    };
    let mut notes = Vec::new();
    for link in &chain {
        let Some(header) = &link.header else { continue };
        if let Some(why) = header.needs_check() {
            notes.push(format!(
                "the qcow2 image {} {why}; it is read as it is",
                shown(&link.path)
            ));
        }
    }
    let mut below: Option<Arc<dyn ReadAt>> = None;
    for link in chain.into_iter().rev() {
        below = Some(match link.header {
            None => link.file,
            Some(header) => Arc::new(
                Qcow2::new(link.file, header, below)
                    .map_err(|error| refuse(&link.path, Format::Qcow2, error))?,
            ),
        });
    }
    let bytes = below.ok_or_else(|| anyhow::anyhow!("a chain without images"))?;
    Ok(Image {
        bytes,
        layout: ImageLayout::Qcow2(Box::new(layout)),
        notes,
    })
}

impl Link {
    fn format(&self) -> Format {
        if self.header.is_some() {
            Format::Qcow2
        } else {
            Format::Raw
        }
    }
}

/// The image and the files below it, top first.
fn chain(path: &Path, file: Arc<dyn ReadAt>, may_refer: bool, given: &Given) -> Result<Vec<Link>> {
    let mut files = Files::of(path, given)?;
    let mut chain = vec![link(path.canonicalize()?, file)?];
    loop {
        let Some(Link {
            path: by,
            header: Some(header),
            ..
        }) = chain.last()
        else {
            return Ok(chain);
        };
        let Some(backing) = &header.backing else {
            return Ok(chain);
        };
        refuse_references(path, Format::Qcow2, may_refer, &backing.name)?;
        let found = files.open(by, &backing.name)?;
        let next = match backing_format(by, backing, &found.path, found.bytes.as_ref())? {
            Format::Qcow2 => link(found.path, found.bytes)?,
            _ => Link {
                path: found.path,
                file: found.bytes,
                header: None,
            },
        };
        chain.push(next);
    }
}

fn link(path: PathBuf, file: Arc<dyn ReadAt>) -> Result<Link> {
    match Header::read(file.as_ref()) {
        Ok(header) => Ok(Link {
            path,
            file,
            header: Some(header),
        }),
        Err(error) => Err(refuse(&path, Format::Qcow2, error)),
    }
}

/// The header says it since QEMU 6.1. Where it does not, only a file that is nothing else can be
/// told to be raw: guessing is CVE-2010-3851 again.
fn backing_format(
    by: &Path,
    backing: &header::Backing,
    path: &Path,
    bytes: &dyn ReadAt,
) -> Result<Format> {
    let content = Format::of_content(bytes)?;
    match backing.format.as_deref() {
        Some("qcow2") => Ok(Format::Qcow2),
        Some("raw" | "file" | "host_device") => Ok(Format::Raw),
        Some(other) => {
            let what = format!(
                "its backing file {} is of the format {other}, and only raw and qcow2 are read \
                 there",
                shown(path)
            );
            Err(refuse(by, Format::Qcow2, ImageError::Unsupported(what)))
        }
        None if content == Format::Raw => Ok(Format::Raw),
        None if Format::of_name(path) == Some(content) && content == Format::Qcow2 => Ok(content),
        None => Err(Refusal::new(
            format!(
                "{} does not say of which format its backing file {} is",
                shown(by),
                shown(path)
            ),
            "it begins like an image, but a guest could have written that into a raw disk",
            format!(
                "if it is a {0} image: qemu-img rebase -u -F {0} -b {1:?} {2}",
                content.name(),
                backing.name,
                shown(by)
            ),
        )
        .into()),
    }
}
