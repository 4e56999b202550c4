//! Disk images in a format of their own, as runs of bytes: qcow2 and VMDK.
//!
//! An image can name other files of this machine (a backing file, the extents of a VMware disk). A
//! guest that owns a raw disk can write such a header into it, so content alone never decides that
//! another file is opened: see [`Format::of`] and [`files`].

mod concat;
mod files;
pub mod qcow2;
mod tables;
pub mod vmdk;
mod vmdk_descriptor;
mod vmdk_sparse;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Result;

use super::bytes::has;
use super::given::Given;
use super::source::FileBytes;
use super::{ReadAt, shown};
use crate::base::refusal::Refusal;

/// Why an image cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// A file could not be read.
    #[error(transparent)]
    Io(#[from] std::io::Error),
    /// What is written there cannot be.
    #[error("it is damaged: {0}")]
    Corrupt(String),
    /// Well-formed, but not of a kind that is read.
    #[error("{0}")]
    Unsupported(String),
}

impl ImageError {
    fn corrupt(what: impl Into<String>) -> Self {
        Self::Corrupt(what.into())
    }
}

/// A format that is read; names as `qemu-img` has them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// The disk's bytes as they are.
    Raw,
    /// QEMU's.
    Qcow2,
    /// VMware's.
    Vmdk,
}

impl Format {
    /// `raw`, `qcow2`, `vmdk`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
            Self::Vmdk => "vmdk",
        }
    }

    /// By its name.
    pub fn named(name: &str) -> Option<Self> {
        [Self::Raw, Self::Qcow2, Self::Vmdk]
            .into_iter()
            .find(|format| format.name() == name)
    }

    /// What a file of this name is supposed to be; `None` where the name says nothing (`.img`, no
    /// ending).
    fn of_name(path: &Path) -> Option<Self> {
        let ending = path.extension()?.to_str()?.to_ascii_lowercase();
        match ending.as_str() {
            "raw" => Some(Self::Raw),
            "qcow2" | "qcow" => Some(Self::Qcow2),
            "vmdk" => Some(Self::Vmdk),
            _ => None,
        }
    }

    /// What its first bytes say.
    fn of_content(bytes: &dyn ReadAt) -> std::io::Result<Self> {
        let mut head = vec![0; usize::try_from(bytes.len().min(1024)).unwrap_or(1024)];
        bytes.read_exact_at(&mut head, 0)?;
        if has(&head, 0, qcow2::MAGIC) {
            return Ok(Self::Qcow2);
        }
        let is_vmdk = has(&head, 0, vmdk_sparse::MAGIC) || vmdk_descriptor::begins(&head);
        Ok(if is_vmdk { Self::Vmdk } else { Self::Raw })
    }

    /// Decides what a file is. The name and the content together: a guest writes the content of a
    /// raw disk, but not the name of its file on the host (CVE-2008-2004 and CVE-2010-3851 are what
    /// comes of probing content alone).
    ///
    /// The second value: whether it may name other files.
    fn of(path: &Path, bytes: &dyn ReadAt, given: &Given) -> Result<(Self, bool)> {
        let content = Self::of_content(bytes)?;
        if let Some(asked) = given.format {
            return match asked {
                Self::Raw => Ok((Self::Raw, false)),
                _ if asked == content => Ok((content, true)),
                _ => {
                    Err(mismatch(path, &format!("--image-format {}", asked.name()), content).into())
                }
            };
        }
        match Self::of_name(path) {
            Some(Self::Raw) => Ok((Self::Raw, false)),
            Some(named) if content == named => Ok((content, true)),
            // A flat extent is called .vmdk as well, and is raw.
            Some(Self::Vmdk) if content == Self::Raw => Ok((Self::Raw, false)),
            Some(named) => {
                Err(mismatch(path, &format!("its name (.{})", named.name()), content).into())
            }
            None => Ok((content, false)),
        }
    }
}

fn mismatch(path: &Path, said_by: &str, content: Format) -> Refusal {
    let shown = shown(path);
    let what = if content == Format::Raw {
        "no image in a known format"
    } else {
        content.name()
    };
    Refusal::new(
        format!("{shown} begins like {what}, and {said_by} says something else"),
        "a disk read in the wrong format shows what is not there",
        format!(
            "find out which it is (`qemu-img info {shown}`), then name it with --image-format {}",
            content.name()
        ),
    )
}

/// Refuses an image that names another file when neither its name nor the user says that it is an
/// image at all.
fn refuse_references(path: &Path, format: Format, may_refer: bool, reference: &str) -> Result<()> {
    if may_refer {
        return Ok(());
    }
    let (shown, format) = (shown(path), format.name());
    Err(Refusal::new(
        format!(
            "{shown} begins like a {format} image that reads from another file of this machine \
             ({reference})"
        ),
        "the content of a raw disk is the guest's to write, and it could name any file that way; \
         only the file's name (.qcow2, .vmdk) or the user can say that it is an image",
        format!(
            "if it is a {format} image: the same command with --image-format {format}; else with \
             --image-format raw"
        ),
    )
    .into())
}

/// How the disk's bytes lie in files: what must be known to write to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Layout {
    /// The file's bytes are the disk's.
    Raw,
    /// The bytes of another file are the disk's; a VMware descriptor names it.
    Flat(PathBuf),
    /// qcow2, with the files below it.
    Qcow2(Box<qcow2::Layout>),
    /// A form of VMDK that is only read, in words.
    Vmdk(String),
}

/// An image file as a disk.
pub struct Image {
    /// The disk's bytes.
    pub bytes: Arc<dyn ReadAt>,
    /// Where they are.
    pub layout: Layout,
    /// What is odd about it, one plain sentence each.
    pub notes: Vec<String>,
}

impl std::fmt::Debug for Image {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Image")
            .field("layout", &self.layout)
            .field("notes", &self.notes)
            .finish_non_exhaustive()
    }
}

/// Opens the image file at `path`, whose bytes are `file`.
///
/// # Errors
/// A [`Refusal`] for an image that is damaged, of a kind that is not read, or names files that it
/// may not.
pub fn open(path: &Path, file: Arc<dyn ReadAt>, given: &Given) -> Result<Image> {
    let (format, may_refer) = Format::of(path, file.as_ref(), given)?;
    match format {
        Format::Raw => Ok(Image {
            notes: raw_notes(path, file.as_ref()),
            bytes: file,
            layout: Layout::Raw,
        }),
        Format::Qcow2 => qcow2::open_chain(path, file, may_refer, given),
        Format::Vmdk => vmdk::open(path, file, may_refer, given),
    }
}

/// Whether the file at `path` is read as an image in a format of its own: then its bytes are not
/// the disk's.
pub fn is_formatted(path: &Path) -> bool {
    let format = FileBytes::open(path).and_then(|file| Format::of(path, &file, &Given::get()));
    format.is_ok_and(|(format, _)| format != Format::Raw)
}

/// Somebody may wonder why an image that looks like one is not read as one.
fn raw_notes(path: &Path, file: &dyn ReadAt) -> Vec<String> {
    match Format::of_content(file) {
        Ok(content) if content != Format::Raw => {
            vec![format!(
                "{} begins like a {} image, but is read as a raw disk",
                shown(path),
                content.name()
            )]
        }
        _ => Vec::new(),
    }
}

/// What to say about an image that cannot be read.
fn refuse(path: &Path, format: Format, error: ImageError) -> anyhow::Error {
    let (shown, format) = (shown(path), format.name());
    let (means, next) = match error {
        ImageError::Io(error) => {
            return anyhow::Error::new(error)
                .context(format!("reading the {format} image {shown}"));
        }
        ImageError::Corrupt(_) => (
            "what is on the disk cannot be told from it",
            format!("`qemu-img check {shown}` says more; copy the image again if it was cut off"),
        ),
        ImageError::Unsupported(_) => (
            "this form of the format is not read",
            format!(
                "qemu-img convert -f {format} -O raw {shown} {shown}.raw, then rescue inspect \
                 {shown}.raw"
            ),
        ),
    };
    Refusal::new(
        format!("the {format} image {shown} cannot be read: {error}"),
        means,
        next,
    )
    .into()
}
