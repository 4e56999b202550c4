//! What a guest's file system lies on, made a block device that the kernel can mount for writing:
//! the kernel's own partition node, a loop device, a device-mapper device over either. All of it
//! goes with the process, however that ends.

use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;

use anyhow::{Context, Result};

use crate::base::refusal::Refusal;
use crate::disk::Backing;
use crate::disk::ReadAt;
use crate::disk::device_mapper::{DeviceMapper, MappedDevice};
use crate::disk::layout::{Laid, Layout};
use crate::disk::loop_device::{LoopDevice, LoopOptions};
use crate::disk::luks::{Crypt, Decrypted};
use crate::disk::lvm::LogicalName;
use crate::disk::partition::Slice;
use crate::disk::stack::{Layer, Mirror, Stack};
use crate::guest::FileSystem;
use crate::in_use::{Claim, Uncached};

/// The disks that are ours to write to, by the path in their backings.
pub(super) type Claims = BTreeMap<PathBuf, Claim>;

/// Claims each disk once, however many file systems are on it, and before any of them is opened:
/// our own mounts must not be taken for somebody else's.
pub(super) fn claim_disks(file_systems: &[FileSystem]) -> Result<Claims> {
    claim_below(file_systems.iter().map(|file_system| &file_system.backing))
}

/// The same for what file systems lie on.
pub(super) fn claim_below<'a>(backings: impl Iterator<Item = &'a Backing>) -> Result<Claims> {
    let mut claims = Claims::new();
    for (path, block_device) in backings.flat_map(Backing::disks) {
        if !claims.contains_key(path) {
            claims.insert(path.to_path_buf(), Claim::take(path, block_device)?);
        }
    }
    Ok(claims)
}

pub(super) fn claim_of<'a>(claims: &'a Claims, path: &Path) -> Result<&'a Claim> {
    claims
        .get(path)
        .with_context(|| format!("{} was not claimed", path.display()))
}

/// The bytes of a file system as its disks hold them now, past every cache; `None` for a folder.
pub(super) fn look(backing: &Backing, claims: &Claims) -> Result<Option<Arc<dyn ReadAt>>> {
    match backing {
        Backing::Folder(_) => Ok(None),
        Backing::Range {
            path,
            offset,
            length,
            sector_size,
            ..
        } => {
            let file = claim_of(claims, path)?
                .file()
                .try_clone()
                .context("duplicating a descriptor")?;
            let disk: Arc<dyn ReadAt> = Arc::new(Uncached::new(file, *sector_size)?);
            let slice =
                Slice::new(disk, *offset, *length).context("the disk is shorter than it was")?;
            Ok(Some(Arc::new(slice)))
        }
        Backing::Stacked(stack) => {
            let mut below = Vec::new();
            for backing in &stack.below {
                below.push(look(backing, claims)?.context("a folder below a volume")?);
            }
            match &stack.layer {
                Layer::Logical { layout, .. } => {
                    Ok(Some(Arc::new(Laid::new(layout.clone(), below))))
                }
                Layer::Mirror(mirror) => {
                    let leg = below.into_iter().next().context("nothing below a mirror")?;
                    let slice = Slice::new(leg, mirror.offset, mirror.length)
                        .context("the leg is shorter than it was")?;
                    Ok(Some(Arc::new(slice)))
                }
                Layer::Encrypted(crypt) => {
                    let below = below
                        .into_iter()
                        .next()
                        .context("nothing below an encrypted volume")?;
                    let decrypted =
                        Decrypted::new(below, crypt.clone()).context("an unknown cipher")?;
                    Ok(Some(Arc::new(decrypted)))
                }
            }
        }
    }
}

/// A block device to write to, for as long as this lives.
#[derive(Debug)]
pub(super) struct WriteDevice {
    made: Made,
    // After what was made of them.
    _below: Vec<Rc<WriteDevice>>,
}

#[derive(Debug)]
enum Made {
    /// The kernel's own.
    Node(PathBuf),
    Loop(LoopDevice),
    Mapped(MappedDevice),
}

impl WriteDevice {
    /// Whether it goes when this is dropped: it is no node of the kernel's own.
    pub fn is_ours(&self) -> bool {
        !matches!(self.made, Made::Node(_))
    }

    /// A path that opens it, in this process.
    pub fn path(&self) -> PathBuf {
        match &self.made {
            Made::Node(node) => node.clone(),
            Made::Loop(device) => device.path(),
            Made::Mapped(device) => device.path(),
        }
    }
}

/// Makes block devices, each once: two volumes on one disk share what is below them.
#[derive(Debug)]
pub(super) struct Devices<'a> {
    claims: &'a Claims,
    made: Vec<(Backing, Rc<WriteDevice>)>,
}

impl<'a> Devices<'a> {
    pub fn new(claims: &'a Claims) -> Self {
        Self {
            claims,
            made: Vec::new(),
        }
    }

    pub fn open(&mut self, backing: &Backing) -> Result<Rc<WriteDevice>> {
        if let Some((_, device)) = self.made.iter().find(|(there, _)| there == backing) {
            return Ok(Rc::clone(device));
        }
        let device = Rc::new(match backing {
            Backing::Folder(folder) => anyhow::bail!("{} is a folder", folder.display()),
            Backing::Range {
                path,
                offset,
                length,
                sector_size,
                ..
            } => {
                let claim = claim_of(self.claims, path)?;
                let made = match claim.node_of(*offset, *length)? {
                    Some(node) => Made::Node(node),
                    None => Made::Loop(show(claim, *offset, *length, *sector_size)?),
                };
                WriteDevice {
                    made,
                    _below: Vec::new(),
                }
            }
            Backing::Stacked(stack) => match &stack.layer {
                Layer::Logical {
                    name,
                    layout,
                    writable: true,
                } => self.logical(stack, name, layout)?,
                Layer::Logical {
                    name,
                    writable: false,
                    ..
                } => return Err(read_only(name).into()),
                Layer::Encrypted(crypt) => self.encrypted(stack, crypt)?,
                Layer::Mirror(mirror) => return Err(one_leg(mirror).into()),
            },
        });
        self.made.push((backing.clone(), Rc::clone(&device)));
        Ok(device)
    }

    fn logical(
        &mut self,
        stack: &Stack,
        name: &LogicalName,
        layout: &Layout,
    ) -> Result<WriteDevice> {
        let Some(mapper) = DeviceMapper::open()? else {
            return self.in_one_piece(stack, name, layout);
        };
        let below = stack
            .below
            .iter()
            .map(|backing| self.open(backing))
            .collect::<Result<Vec<_>>>()?;
        let nodes: Vec<PathBuf> = below.iter().map(|device| device.path()).collect();
        let nodes: Vec<&Path> = nodes.iter().map(PathBuf::as_path).collect();
        Ok(WriteDevice {
            made: Made::Mapped(mapper.create(layout, &nodes)?),
            _below: below,
        })
    }

    /// The kernel's dm-crypt, with the key that opened the volume for reading.
    fn encrypted(&mut self, stack: &Stack, crypt: &Crypt) -> Result<WriteDevice> {
        let Some(mapper) = DeviceMapper::open()? else {
            return Err(no_crypt().into());
        };
        let below = self.open(
            stack
                .below
                .first()
                .context("nothing below an encrypted volume")?,
        )?;
        let device = mapper.create_encrypted(crypt, &below.path())?;
        Ok(WriteDevice {
            made: Made::Mapped(device),
            _below: vec![below],
        })
    }

    /// Without device-mapper: a volume that is one run of bytes needs none.
    fn in_one_piece(
        &mut self,
        stack: &Stack,
        name: &LogicalName,
        layout: &Layout,
    ) -> Result<WriteDevice> {
        let run = layout
            .one_run()
            .and_then(|run| Some((run, stack.below.get(run.below)?)));
        let Some((
            run,
            Backing::Range {
                path,
                offset,
                length,
                sector_size,
                ..
            },
        )) = run
        else {
            return Err(in_pieces(name).into());
        };
        let claim = claim_of(self.claims, path)?;
        if let Some(node) = claim.node_of(*offset, *length)? {
            let options = LoopOptions {
                offset: run.offset,
                length: layout.length(),
                sector_size: *sector_size,
                read_only: false,
            };
            return Ok(WriteDevice {
                made: Made::Loop(LoopDevice::open(&node, &options)?),
                _below: Vec::new(),
            });
        }
        let device = show(claim, offset + run.offset, layout.length(), *sector_size)?;
        Ok(WriteDevice {
            made: Made::Loop(device),
            _below: Vec::new(),
        })
    }
}

fn show(claim: &Claim, offset: u64, length: u64, sector_size: u32) -> Result<LoopDevice> {
    let options = LoopOptions {
        offset,
        length,
        sector_size,
        read_only: false,
    };
    LoopDevice::attach(claim.open_for_writing()?.as_fd(), &options)
}

/// Writing to one leg would leave the other with old files, and md would not know which is right.
fn one_leg(mirror: &Mirror) -> Refusal {
    let legs = mirror.legs.join(" and ");
    let all = if mirror.legs.len() < mirror.disks as usize {
        " with all its disks attached"
    } else {
        ""
    };
    Refusal::new(
        format!("the file system is on a mirror of Linux's software RAID ({legs})"),
        "written to through one leg alone, its legs would differ, and either could win at the next \
         boot; nothing was changed",
        format!(
            "boot the machine{all} from the rescue ISO (or attach its disks to a helper): `mdadm \
             --assemble --scan`, `cat /proc/mdstat` for the array's name (md127 where nothing \
             gives it another), then rescue repair /dev/md127, then `mdadm --stop /dev/md127`"
        ),
    )
}

fn no_crypt() -> Refusal {
    Refusal::new(
        "the file system is encrypted, and this system's kernel has no device-mapper",
        "it can be read here, but only dm-crypt writes to it; nothing was changed",
        "`modprobe dm_crypt`, then run this again; or boot the rescue ISO, or use another helper",
    )
}

fn in_pieces(name: &LogicalName) -> Refusal {
    let (group, volume) = (&name.group, &name.volume);
    Refusal::new(
        format!(
            "the logical volume {group}/{volume} lies in several pieces, and this system's kernel \
             has no device-mapper"
        ),
        "only device-mapper can put them together for writing; nothing was changed",
        "`modprobe dm_mod`, then run this again; or boot the rescue ISO, or use another helper",
    )
}

fn read_only(name: &LogicalName) -> Refusal {
    let (group, volume) = (&name.group, &name.volume);
    Refusal::new(
        format!("the logical volume {group}/{volume} is set read-only in its own metadata"),
        "the node itself could not write to it either; nothing was changed",
        format!(
            "on a helper VM: `lvchange -p rw {group}/{volume}` and `vgchange -an {group}`, then \
             run this again"
        ),
    )
}
