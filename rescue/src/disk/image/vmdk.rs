//! VMware's disks, for reading: after VMware's "Virtual Disk Format 5.0" and QEMU's block/vmdk.c. A
//! disk is described by a text, in a file of its own or inside the only extent, and its bytes are
//! in extents: flat (raw) or sparse files.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Result;

use super::concat::{Concat, Part};
use super::files::{Files, Found};
use super::vmdk_descriptor::{Descriptor, Extent, ExtentKind};
use super::vmdk_sparse::{self, Sparse};
use super::{Format, Image, ImageError, Layout, refuse, refuse_references};
use crate::base::refusal::Refusal;
use crate::disk::bytes::has;
use crate::disk::given::Given;
use crate::disk::partition::Slice;
use crate::disk::{ReadAt, shown};

const SECTOR: u64 = 512;

/// Opens the disk whose descriptor, or only extent, is the file at `path`.
pub(super) fn open(
    path: &Path,
    file: Arc<dyn ReadAt>,
    may_refer: bool,
    given: &Given,
) -> Result<Image> {
    let refused = |error: ImageError| refuse(path, Format::Vmdk, error);
    let mut head = [0; 4];
    file.read_exact_at(&mut head, 0)?;
    if has(&head, 0, vmdk_sparse::MAGIC) {
        let (sparse, descriptor) = Sparse::open(file).map_err(refused)?;
        if let Some(text) = descriptor {
            refuse_snapshot(path, &Descriptor::parse(&text).map_err(refused)?)?;
        }
        let form = if sparse.is_compressed() {
            "streamOptimized"
        } else {
            "monolithicSparse"
        };
        return Ok(Image {
            bytes: Arc::new(sparse),
            layout: Layout::Vmdk(form.into()),
            notes: Vec::new(),
        });
    }
    let descriptor = Descriptor::read(file.as_ref()).map_err(refused)?;
    refuse_snapshot(path, &descriptor)?;
    if let Some(name) = descriptor
        .extents
        .iter()
        .find_map(|extent| extent.file.as_ref())
    {
        refuse_references(path, Format::Vmdk, may_refer, name)?;
    }
    let (parts, first) = extents(path, &descriptor, given)?;
    let layout = match (descriptor.extents.as_slice(), first) {
        (
            [
                Extent {
                    kind: ExtentKind::Flat { offset: 0 },
                    writable: true,
                    ..
                },
            ],
            Some(only),
        ) => Layout::Flat(only),
        _ => Layout::Vmdk(descriptor.create_type),
    };
    let disk = Concat::new(parts)
        .ok_or_else(|| refused(ImageError::corrupt("its extents are longer than any disk")))?;
    Ok(Image {
        bytes: Arc::new(disk),
        layout,
        notes: Vec::new(),
    })
}

/// A disk that only holds what changed since a snapshot. The newest is the one with the highest
/// number, and only it is the disk's state.
fn refuse_snapshot(path: &Path, descriptor: &Descriptor) -> Result<()> {
    if !descriptor.is_snapshot {
        return Ok(());
    }
    let shown = shown(path);
    let base = descriptor
        .parent
        .as_deref()
        .unwrap_or("a file that it does not name");
    Err(Refusal::new(
        format!("{shown} is a VMware snapshot: it only holds what changed since {base}"),
        "chains of snapshots are not put together here, and whatever is written to a disk below \
         one is lost or destroys it",
        "in vSphere delete (consolidate) the snapshots, or boot the machine from the rescue ISO; \
         to look only: vmkfstools -i SNAPSHOT.vmdk copy.vmdk on the host, then rescue inspect \
         copy.vmdk",
    )
    .into())
}

/// The bytes of all extents, and the path of the first that is a file.
fn extents(
    path: &Path,
    descriptor: &Descriptor,
    given: &Given,
) -> Result<(Vec<Part>, Option<PathBuf>)> {
    let by = path.canonicalize()?;
    let mut files = Files::of(path, given)?;
    let (mut parts, mut first) = (Vec::new(), None);
    for extent in &descriptor.extents {
        let refused = |what: String| refuse(path, Format::Vmdk, ImageError::Corrupt(what));
        let length = extent
            .sectors
            .checked_mul(SECTOR)
            .ok_or_else(|| refused("an extent longer than any disk".into()))?;
        let Some(name) = &extent.file else {
            parts.push(Part::Zeros(length));
            continue;
        };
        let Found {
            path: extent_path,
            bytes,
        } = files.open_part(&by, name)?;
        let bytes: Arc<dyn ReadAt> = match extent.kind {
            ExtentKind::Flat { offset } => {
                let start = offset.checked_mul(SECTOR);
                let slice = start.and_then(|start| Slice::new(bytes, start, length));
                Arc::new(slice.ok_or_else(|| {
                    refused(format!(
                        "{} has less than the {length} bytes that it should have: it was cut off",
                        shown(&extent_path)
                    ))
                })?)
            }
            ExtentKind::Sparse => {
                let (sparse, _) = Sparse::open(bytes)
                    .map_err(|error| refuse(&extent_path, Format::Vmdk, error))?;
                let slice = Slice::new(Arc::new(sparse), 0, length);
                Arc::new(slice.ok_or_else(|| {
                    refused(format!(
                        "{} holds less than {length} bytes",
                        shown(&extent_path)
                    ))
                })?)
            }
        };
        first.get_or_insert(extent_path);
        parts.push(Part::Bytes(bytes));
    }
    Ok((parts, first))
}
