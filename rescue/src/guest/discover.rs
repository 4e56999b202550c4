//! From sources to guests: finds root file systems and follows their fstab.

use crate::disk::Leftover;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use anyhow::{Context, Result};

use super::fstab::{self, Entry, Role, Spec};
use super::subvolume_roots::{self, RootOf};
use super::{FileSystem, Guest, GuestPath, MergedTree, Missing, Mounted, RealPath, TimeMark};
use crate::base::refusal::Refusal;
use crate::disk::Backing;
use crate::disk::btrfs::Subvolume;
use crate::disk::luks::LuksError;
use crate::disk::lvm::LogicalName;
use crate::disk::probe::{self, Content};
use crate::disk::volume::logical::VolumeGroup;
use crate::disk::volume::{Opened, Volume, encrypted, logical, mirror, survey};
use crate::disk::{Disk, Source, mountinfo, partition::PartitionKind, shown, words};
use crate::tree::{FileKind, FolderTree, MemoryTree, Tree, TreeError};

/// What the sources hold.
#[derive(Debug, Default)]
pub struct Discovery {
    /// The powered-off systems.
    pub guests: Vec<Guest>,
    /// Everything recognised that belongs to no guest.
    pub leftovers: Vec<Leftover>,
    /// The disks, in the order given; from [`look_over`] only, as the next two: they keep disks
    /// open.
    pub disks: Vec<Disk>,
    /// Every piece of them, logical volumes after the partitions.
    pub volumes: Vec<Volume>,
    /// The volume groups that were put together.
    pub groups: Vec<VolumeGroup>,
    /// Swap by the name of its volume, and the number of the guest in `guests` whose it is.
    pub swaps: Vec<(String, usize)>,
}

/// Opens all sources read-only and finds the guests on them. Disks are looked at together: a
/// guest's /var may be on another disk than its root. Everything stays open (and, where the kernel
/// replays a journal, mounted) as long as the guests live.
///
/// # Errors
/// [`Refusal`]s for what people get wrong: no such disk, a folder that is no root, nothing but
/// Windows, a dirty file system without root rights.
pub fn discover(sources: &[Source]) -> Result<Discovery> {
    let mut discovery = Discovery::default();
    let mut disks: Vec<Disk> = Vec::new();
    for source in sources {
        match source {
            Source::Root(folder) => discovery.guests.push(folder_guest(folder)?),
            Source::Disk(path) => {
                let disk = Disk::open(path)?;
                if !disks.iter().any(|there| is_same(&there.path, path)) {
                    disks.push(disk);
                }
            }
        }
    }
    if sources.is_empty() {
        let next = "rescue inspect /dev/sdb, or an image file";
        return Err(Refusal::new("no disk was named", "there is nothing to look at", next).into());
    }
    let mut found = Disks::survey(&disks, OnUnreadable::Refuse)?;
    found.guests(&mut discovery)?;
    if discovery.guests.is_empty() {
        return Err(found.no_system(&disks, &discovery.leftovers).into());
    }
    Ok(discovery)
}

/// As [`discover`], for a look at all that is there: a disk that cannot be opened, a file system
/// that takes root or memory that is not there, and no system at all are leftovers, not refusals.
/// Disks of `closed` are named and not looked into, for the reason given.
///
/// # Errors
/// I/O errors only.
pub fn look_over(paths: &[PathBuf], closed: &[(PathBuf, String)]) -> Result<Discovery> {
    let mut discovery = Discovery::default();
    for path in paths {
        if let Some((_, why)) = closed.iter().find(|(there, _)| there == path) {
            discovery.leftovers.push(Leftover {
                device: shown(path),
                what: why.clone(),
            });
            continue;
        }
        match Disk::open(path) {
            Ok(disk)
                if !discovery
                    .disks
                    .iter()
                    .any(|there| is_same(&there.path, path)) =>
            {
                discovery.disks.push(disk)
            }
            Ok(_) => {}
            Err(error) => discovery.leftovers.push(Leftover {
                device: shown(path),
                what: format!("{error:#}"),
            }),
        }
    }
    let mut found = Disks::survey(&discovery.disks, OnUnreadable::Report)?;
    found.guests(&mut discovery)?;
    discovery.volumes = found
        .volumes
        .into_iter()
        .map(|found| found.volume)
        .collect();
    discovery.groups = found.groups;
    Ok(discovery)
}

/// What becomes of a file system that must not be shown half or stale, among many.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum OnUnreadable {
    /// The look at all of them ends with its refusal.
    Refuse,
    /// It is named, and left out.
    Report,
}

fn is_same(one: &Path, other: &Path) -> bool {
    match (std::fs::metadata(one), std::fs::metadata(other)) {
        (Ok(one), Ok(other)) => {
            let identity =
                |metadata: &std::fs::Metadata| (metadata.rdev(), metadata.dev(), metadata.ino());
            // Two nodes of one block device count as one, too.
            identity(&one) == identity(&other) || (one.rdev() != 0 && one.rdev() == other.rdev())
        }
        _ => false,
    }
}

/// Markers of a Linux root file system, the same as libguestfs looks for.
pub(super) fn is_root(tree: &dyn Tree) -> Result<bool, TreeError> {
    let kind = |path: &str| match tree.lstat(Path::new(path)) {
        Ok(meta) => Ok(Some(meta.kind)),
        Err(error) if error.is_not_found() => Ok(None),
        Err(error) => Err(error),
    };
    let has_bin = matches!(kind("/bin")?, Some(FileKind::Directory | FileKind::Symlink));
    Ok(kind("/etc")? == Some(FileKind::Directory)
        && has_bin
        && (kind("/etc/fstab")?.is_some() || kind("/etc/hosts")?.is_some()))
}

/// All volumes of all disks, those with files opened.
struct Disks {
    volumes: Vec<Found>,
    leftovers: Vec<Leftover>,
    groups: Vec<VolumeGroup>,
    /// Why the first volume stays locked whose header asks for too much work.
    too_much_work: Option<Refusal>,
    on_unreadable: OnUnreadable,
}

struct Found {
    volume: Volume,
    opened: Option<Opened>,
    roots: Vec<RootOf>,
    used: bool,
    /// Index of the root whose swap it is.
    swap_of: Option<usize>,
}

impl Disks {
    fn survey(disks: &[Disk], on_unreadable: OnUnreadable) -> Result<Self> {
        let mut all = Self {
            volumes: Vec::new(),
            leftovers: Vec::new(),
            groups: Vec::new(),
            too_much_work: None,
            on_unreadable,
        };
        for (index, disk) in disks.iter().enumerate() {
            let found = match survey(disk, index) {
                Ok(found) => found,
                Err(error) => {
                    all.leftovers.push(Leftover {
                        device: disk.name(),
                        what: format!("{error:#}"),
                    });
                    continue;
                }
            };
            all.leftovers.extend(found.notes);
            for volume in found.volumes {
                let found = all.look_into(volume)?;
                all.volumes.push(found);
            }
        }
        all.mirrors()?;
        // Debian's installer puts a volume group into an encrypted partition, others encrypt
        // logical volumes.
        all.encrypted()?;
        all.logical_volumes()?;
        all.encrypted()?;
        Ok(all)
    }

    /// Puts the mirrors on all disks together and looks into them.
    fn mirrors(&mut self) -> Result<()> {
        let volumes: Vec<Volume> = self
            .volumes
            .iter()
            .map(|found| found.volume.clone())
            .collect();
        let mirrors = mirror::survey(&volumes)?;
        self.leftovers.extend(mirrors.notes);
        for found in &mut self.volumes {
            found.used |= mirrors.used.contains(&found.volume.name);
        }
        for volume in mirrors.volumes {
            let found = self.look_into(volume)?;
            self.volumes.push(found);
        }
        Ok(())
    }

    /// Unlocks what is encrypted and looks into it; what stays locked is named.
    fn encrypted(&mut self) -> Result<()> {
        for index in 0..self.volumes.len() {
            let Some(found) = self.volumes.get_mut(index).filter(|found| !found.used) else {
                continue;
            };
            if !encrypted::is_encrypted(&found.volume) {
                continue;
            }
            match encrypted::unlock(&found.volume)? {
                Ok(inside) => {
                    found.used = true;
                    let found = self.look_into(inside)?;
                    self.volumes.push(found);
                }
                // Said with everything else that is not read.
                Err(LuksError::NoKey) => {}
                Err(error) => {
                    found.used = true;
                    let (device, what) = (found.volume.name.clone(), found.volume.what());
                    if let LuksError::TooMuchWork(refusal) = &error {
                        let saw = format!(
                            "no Linux system was found: {device}: {what}: {}",
                            refusal.saw
                        );
                        self.too_much_work.get_or_insert(Refusal {
                            saw,
                            ..refusal.clone()
                        });
                    }
                    self.leftovers.push(Leftover {
                        device,
                        what: format!("{what}: {error}"),
                    });
                }
            }
        }
        Ok(())
    }

    /// Puts the volume groups on all disks together and looks into their volumes.
    fn logical_volumes(&mut self) -> Result<()> {
        let volumes: Vec<Volume> = self
            .volumes
            .iter()
            .map(|found| found.volume.clone())
            .collect();
        let logical = logical::survey(&volumes)?;
        self.leftovers.extend(logical.notes);
        self.groups = logical.groups;
        for found in &mut self.volumes {
            found.used |= logical.used.contains(&found.volume.name);
        }
        for volume in logical.volumes {
            let found = self.look_into(volume)?;
            self.volumes.push(found);
        }
        Ok(())
    }

    /// Opens a volume's files, if it has any that can be read, and looks for a root.
    fn look_into(&mut self, volume: Volume) -> Result<Found> {
        let mut found = Found {
            volume,
            opened: None,
            roots: Vec::new(),
            used: false,
            swap_of: None,
        };
        if found.volume.file_system().is_none() {
            return Ok(found);
        }
        let looked = found.volume.open().and_then(|opened| {
            let roots = subvolume_roots::roots(&opened).context("looking for a system")?;
            Ok((opened, roots))
        });
        match looked {
            Ok((opened, roots)) => {
                found.roots = roots;
                found.opened = Some(opened);
            }
            // Never shown half or stale: the user must know that this takes root, or more memory.
            Err(error) if error.is::<Refusal>() && self.on_unreadable == OnUnreadable::Refuse => {
                return Err(error);
            }
            Err(error) => {
                found.used = true;
                let hint = old_xfs(&found.volume);
                self.leftovers.push(Leftover {
                    device: found.volume.name.clone(),
                    what: format!("{} cannot be opened: {error:#}{hint}", found.volume.what()),
                });
            }
        }
        Ok(found)
    }

    /// Why there is no guest: the one thing that stands in the way, or all that is there.
    fn no_system(&self, disks: &[Disk], seen: &[Leftover]) -> Refusal {
        // What is wrong with a volume group was noted, and says more.
        let is_rest = |found: &&Found| {
            let content = found.volume.probe.as_ref().map(|probe| &probe.content);
            match content {
                Some(Content::Vfat(_) | Content::LvmPhysicalVolume) => false,
                // Why it was not unlocked was noted, too.
                Some(Content::Luks(_) | Content::MdRaid(_)) => !found.used,
                _ => true,
            }
        };
        let in_the_way: Vec<(&Found, words::NotRead)> = self
            .volumes
            .iter()
            .filter(is_rest)
            .filter_map(|found| words::not_read(&found.volume).map(|words| (found, words)))
            .collect();
        if let [(found, words)] = in_the_way.as_slice() {
            let saw = format!(
                "no Linux system was found: {} holds this: {}",
                found.volume.name,
                found.volume.what()
            );
            return Refusal::new(saw, words.means.clone(), words.next.clone());
        }
        if let Some(refusal) = self
            .too_much_work
            .as_ref()
            .filter(|_| in_the_way.is_empty())
        {
            return refusal.clone();
        }
        let names: Vec<String> = disks.iter().map(Disk::name).collect();
        let seen: Vec<String> = seen
            .iter()
            .map(|leftover| format!("{}: {}", leftover.device, leftover.what))
            .collect();
        let seen = if seen.is_empty() {
            "nothing that is recognised".to_owned()
        } else {
            seen.join("; ")
        };
        Refusal::new(
            format!("no Linux system was found on {}", names.join(", ")),
            format!("what is there: {seen}"),
            "name the disk that holds the node's root file system; lsblk -f shows the disks of \
             this machine",
        )
    }

    fn guests(&mut self, discovery: &mut Discovery) -> Result<()> {
        let all = self.volumes.iter().enumerate();
        let roots: Vec<(usize, RootOf)> = all
            .flat_map(|(index, found)| found.roots.iter().map(move |root| (index, *root)))
            .collect();
        for (index, subvolume) in roots.iter().copied() {
            let guest = self.guest(index, subvolume)?;
            discovery.guests.push(guest);
        }
        let first = discovery.guests.len() - roots.len();
        for found in &self.volumes {
            let guest = found
                .swap_of
                .and_then(|root| roots.iter().position(|(there, _)| *there == root));
            discovery
                .swaps
                .extend(guest.map(|guest| (found.volume.name.clone(), first + guest)));
        }
        discovery.leftovers.append(&mut self.leftovers);
        discovery.leftovers.extend(
            self.volumes
                .iter()
                .filter(|found| !found.used)
                .filter_map(leftover),
        );
        Ok(())
    }

    /// Mounts everything the fstab of the root in `root` asks for.
    fn guest(&mut self, root: usize, subvolume: RootOf) -> Result<Guest> {
        let lookup = Lookup::new(&self.volumes, root);
        let mut assembly = Assembly::default();
        let first = self
            .volumes
            .get_mut(root)
            .context("a root that was there is gone")?;
        first.used = true;
        let opened = first
            .opened
            .clone()
            .context("a root that was open is closed")?;
        let within = opened.subvolumes.clone();
        let subvolume = within
            .as_ref()
            .zip(subvolume)
            .and_then(|(all, id)| all.by_id(id));
        assembly.mount(&first.volume, &opened, subvolume, RealPath::new("/".into()));
        let (source, root_disk) = (first.volume.backing_path(), first.volume.disk);

        let entries = assembly.read_fstab();
        if let (Some(line), Some(all)) = (entries.iter().find(|entry| entry.is_root()), &within)
            && let Err(why) = subvolume_roots::asked_for(line, all)
        {
            assembly.unresolved.push(format!("{} {why}", line.shown()));
        }
        let lookup = lookup.anchored(&entries).of_machine(&assembly.so_far());
        assembly.note_hidden(&entries);
        for entry in entries
            .iter()
            .filter(|entry| entry.role() == Role::Disk && !entry.is_root())
        {
            if !entry.is_mounted_at_boot() {
                continue;
            }
            match lookup.find(&self.volumes, &entry.spec) {
                Ok(index) => self.mount(&mut assembly, index, entry),
                Err(NotFound::Boring) => {}
                Err(NotFound::Absent(why)) => assembly.note(entry, &why, true),
                Err(NotFound::Because(why)) => assembly.note_missing(entry, &why),
            }
        }
        assembly.nest();
        assembly.bind(&entries);
        let mut guest = assembly.finish(source);
        guest.suspended = self.suspended(&guest, &lookup, &entries, root_disk);
        Ok(guest)
    }

    fn mount(&mut self, assembly: &mut Assembly, index: usize, entry: &Entry) {
        let Some(found) = self.volumes.get_mut(index) else {
            return;
        };
        found.used = true;
        let name = &found.volume.name;
        let Some(opened) = &found.opened else {
            // The EFI system partition is mounted by every UEFI guest and never needed; nothing
            // that is repaired can lie on a FAT, which keeps neither owners nor links.
            let content = found.volume.probe.as_ref().map(|probe| &probe.content);
            if found.volume.partition_kind != PartitionKind::EfiSystem
                && !matches!(content, Some(Content::Vfat(_)))
            {
                let why = match words::not_read(&found.volume) {
                    Some(words) => format!("is {name}, {}: {}", found.volume.what(), words.means),
                    None => format!(
                        "is {name}, which could not be opened ({})",
                        found.volume.what()
                    ),
                };
                assembly.note_missing(entry, &why);
            }
            return;
        };
        if !fits(&entry.kind, found.volume.file_system().unwrap_or_default()) {
            let why = format!(
                "is {name}, but that holds {} and not {}",
                found.volume.what(),
                entry.kind
            );
            assembly.note_missing(entry, &why);
            return;
        }
        let subvolume = match opened
            .subvolumes
            .as_ref()
            .map(|all| subvolume_roots::asked_for(entry, all))
            .transpose()
        {
            Ok(subvolume) => subvolume,
            Err(why) => {
                assembly.note_missing(entry, &why);
                return;
            }
        };
        match assembly.mount_point(&entry.mount_point) {
            Ok(at) => match assembly.mounted_at(&device_name(&found.volume, subvolume)) {
                // Mounted a second time: the same files under another name.
                Some(first) => assembly.binds.push((at.as_path().to_path_buf(), first)),
                None => assembly.mount(&found.volume, opened, subvolume, at),
            },
            Err(why) => assembly.note_missing(entry, &why),
        }
    }

    /// Whether the guest hibernated: its swap then holds memory that knows better than its disks.
    fn suspended(
        &mut self,
        guest: &Guest,
        lookup: &Lookup,
        entries: &[Entry],
        root_disk: usize,
    ) -> Option<String> {
        let mut partitions: Vec<usize> = Vec::new();
        for entry in entries.iter().filter(|entry| entry.role() == Role::Swap) {
            if let Spec::Path(path) = &entry.spec {
                if is_suspended_file(guest, path) {
                    return Some(format!(
                        "the swap file {} holds the memory of a suspended system",
                        GuestPath::new(path)
                    ));
                }
            } else if let Ok(index) = lookup.find(&self.volumes, &entry.spec) {
                partitions.push(index);
            }
        }
        // Swap may be found without fstab (systemd's GPT generator), so the root's whole disk
        // counts.
        for (index, found) in self.volumes.iter_mut().enumerate() {
            let Some(Content::Swap { suspended }) =
                found.volume.probe.as_ref().map(|probe| &probe.content)
            else {
                continue;
            };
            if partitions.contains(&index) || found.volume.disk == root_disk {
                found.used = true;
                found.swap_of = Some(lookup.root);
                if *suspended {
                    return Some(format!(
                        "the swap on {} holds the memory of a suspended system",
                        found.volume.name
                    ));
                }
            }
        }
        None
    }
}

/// crypttab(5): name, device, key, options. Only devices given by UUID can be told.
fn crypt_names(crypttab: &str) -> Vec<(String, String)> {
    let of_line = |line: &str| {
        let mut fields = line.split_whitespace();
        let (name, device) = (fields.next()?, fields.next()?);
        let uuid = device
            .strip_prefix("UUID=")
            .or_else(|| device.strip_prefix("/dev/disk/by-uuid/"))?;
        Some((name.to_owned(), uuid.trim_matches('"').to_ascii_lowercase()))
    };
    crypttab
        .lines()
        .map(str::trim)
        .filter(|line| !line.starts_with('#'))
        .filter_map(of_line)
        .collect()
}

/// Version 4 was the default until 2015; newer kernels are often built without it.
fn old_xfs(volume: &Volume) -> &'static str {
    match volume.probe.as_ref().map(|probe| &probe.content) {
        Some(Content::Xfs(superblock)) if superblock.version < 5 => {
            "; it is XFS version 4, which takes a kernel with CONFIG_XFS_SUPPORT_V4: boot the \
             machine from the rescue ISO, whose kernel has it"
        }
        _ => "",
    }
}

fn is_suspended_file(guest: &Guest, path: &Path) -> bool {
    let first_page = guest
        .resolve(&GuestPath::new(path))
        .and_then(|real| guest.tree().read_range(real.as_path(), 0, 4096));
    first_page.is_ok_and(|page| probe::is_suspended_swap(&page))
}

/// ext4's driver mounts all three ext kinds, so fstab may call them by any of the names.
fn fits(wanted: &str, there: &str) -> bool {
    let is_ext = |kind: &str| matches!(kind, "ext2" | "ext3" | "ext4");
    wanted.split(',').any(|wanted| {
        matches!(wanted, "auto" | "none") || wanted == there || (is_ext(wanted) && is_ext(there))
    })
}

/// What to say about a volume that no guest uses.
fn leftover(found: &Found) -> Option<Leftover> {
    let volume = &found.volume;
    let say = |what: String| {
        Some(Leftover {
            device: volume.name.clone(),
            what,
        })
    };
    if let Some(words) = words::not_read(volume) {
        return say(format!(
            "{}: {}; next: {}",
            volume.what(),
            words.means,
            words.next
        ));
    }
    match (&volume.probe, volume.partition_kind) {
        (None, PartitionKind::NoFileSystem) => None,
        (None, _) => say("nothing that is recognised".into()),
        (Some(probe), _) => match probe.content {
            Content::Swap { .. } => say("swap that no fstab here names".into()),
            _ => say(format!(
                "{}, no root, and no fstab here mounts it at boot",
                volume.what()
            )),
        },
    }
}

/// Finds volumes as one guest's fstab names them.
struct Lookup {
    root: usize,
    root_disk: usize,
    /// Disks that may be this guest's: those without another guest's root, in the order given.
    disks: Vec<usize>,
    /// Index of the root's disk by the guest's own names, where its fstab tells.
    anchor: Option<usize>,
    root_partition: Option<u32>,
    root_is_logical: bool,
    /// The guest's /etc/machine-id, which journald names its folder after.
    machine_id: Option<String>,
    /// The guest's /etc/crypttab: names in /dev/mapper, and the UUIDs of the LUKS headers that they
    /// decrypt.
    crypt_names: Vec<(String, String)>,
}

enum NotFound {
    /// It is on none of the disks: why, as the end of a sentence that begins with the fstab line.
    Absent(String),
    /// It may be there, and cannot be told or read: why, in the same way.
    Because(String),
    /// Not worth a word: network shares and the like.
    Boring,
}

impl Lookup {
    fn new(volumes: &[Found], root: usize) -> Self {
        let root_volume = volumes.get(root).map(|found| &found.volume);
        let root_disk = root_volume.map_or(0, |volume| volume.disk);
        let mut disks: Vec<usize> = Vec::new();
        for (index, found) in volumes.iter().enumerate() {
            let disk = found.volume.disk;
            let has_other_root = disk != root_disk
                && volumes
                    .iter()
                    .any(|other| !other.roots.is_empty() && other.volume.disk == disk);
            if (index == root || !has_other_root) && !disks.contains(&disk) {
                disks.push(disk);
            }
        }
        let root_is_logical = root_volume.is_some_and(|volume| volume.logical.is_some());
        let root_partition = root_volume.and_then(|volume| volume.number);
        Self {
            root,
            root_disk,
            disks,
            anchor: None,
            root_partition,
            root_is_logical,
            machine_id: None,
            crypt_names: Vec::new(),
        }
    }

    /// Takes the machine-id and the names of encrypted volumes from the root.
    fn of_machine(mut self, guest: &Guest) -> Self {
        let id = guest
            .read_text(&GuestPath::new("/etc/machine-id"))
            .unwrap_or_default()
            .trim()
            .to_owned();
        self.machine_id =
            Some(id).filter(|id| id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit()));
        self.crypt_names = crypt_names(
            &guest
                .read_text(&GuestPath::new("/etc/crypttab"))
                .unwrap_or_default(),
        );
        self
    }

    /// Takes the guest's own name of its root's disk from the line for `/`.
    fn anchored(mut self, entries: &[Entry]) -> Self {
        let root = entries.iter().find(|entry| entry.is_root());
        if let Some(Spec::Device { disk, partition }) = root.map(|entry| &entry.spec)
            && *partition == self.root_partition
            && !self.root_is_logical
        {
            self.anchor = Some(*disk);
        }
        self
    }

    /// The disk that the guest calls its `index`th (`sda`, `vdb`, `nvme2n1` …).
    fn disk(&self, index: usize) -> Option<usize> {
        let Some(anchor) = self.anchor else {
            return self.disks.get(index).copied();
        };
        if index == anchor {
            return Some(self.root_disk);
        }
        let position = if index > anchor { index - 1 } else { index };
        self.disks
            .iter()
            .filter(|disk| **disk != self.root_disk)
            .nth(position)
            .copied()
    }

    fn find(&self, volumes: &[Found], spec: &Spec) -> Result<usize, NotFound> {
        let on = |disk: Option<usize>, number: Option<u32>| {
            let disk = disk
                .ok_or_else(|| NotFound::Absent("was not found: that disk was not given".into()))?;
            let position = volumes.iter().position(|found| {
                let volume = &found.volume;
                volume.disk == disk && volume.number == number && volume.logical.is_none()
            });
            position.ok_or_else(|| NotFound::Absent("was not found on the disks given".into()))
        };
        match spec {
            Spec::Uuid(uuid) => self.pick(volumes, |v| {
                v.uuid()
                    .is_some_and(|there| there.eq_ignore_ascii_case(uuid))
            }),
            Spec::Label(label) => self.pick(volumes, |v| v.label() == Some(label)),
            Spec::PartUuid(uuid) => self.pick(volumes, |v| v.part_uuid.as_deref() == Some(uuid)),
            Spec::PartLabel(label) => {
                self.pick(volumes, |v| v.part_label.as_deref() == Some(label))
            }
            Spec::Device { disk, partition } => on(self.disk(*disk), *partition),
            Spec::PartitionOfNamedDisk(number) => match self.disks.as_slice() {
                [only] => match on(Some(*only), Some(*number))? {
                    root if root == self.root && !is_btrfs(volumes, root) => Err(NotFound::Absent(
                        "was not found: the only disk given has its root there, so that \
                             another disk is meant"
                            .into(),
                    )),
                    found => Ok(found),
                },
                _ => Err(NotFound::Because(
                    "was not found: which disk it means, only the hypervisor knows".into(),
                )),
            },
            Spec::Mapper(name) => {
                // systemd's generator calls those without a name of their own luks-UUID.
                let by_table = self
                    .crypt_names
                    .iter()
                    .find(|(there, _)| there == name)
                    .map(|(_, uuid)| uuid.as_str());
                let luks_uuid = by_table.or_else(|| name.strip_prefix("luks-"));
                self.pick(volumes, |v| {
                    v.logical
                        .as_ref()
                        .is_some_and(|logical| logical.mapper() == *name)
                        || v.luks_uuid
                            .as_deref()
                            .is_some_and(|uuid| Some(uuid) == luks_uuid)
                })
            }
            Spec::MapperUuid(uuid) => self.pick(volumes, |v| {
                v.logical
                    .as_ref()
                    .is_some_and(|logical| logical.uuid == *uuid)
            }),
            Spec::Logical { group, volume } => {
                let fits = |there: &LogicalName| there.group == *group && there.volume == *volume;
                self.pick(volumes, |v| v.logical.as_ref().is_some_and(fits))
            }
            Spec::Stacked => Err(NotFound::Because(
                "was not found: RAID and such volumes are not supported yet".into(),
            )),
            Spec::Path(_) => Err(NotFound::Because(
                "was not found: loop-mounted files are not supported yet".into(),
            )),
            Spec::Other => Err(NotFound::Boring),
        }
    }

    /// Whether a file system has the journal of the root's machine; where depends on what is
    /// mounted: /var, /var/log or the journal's own.
    fn is_ours(&self, found: &Found) -> bool {
        let (Some(id), Some(opened)) = (&self.machine_id, &found.opened) else {
            return false;
        };
        let places = ["/log/journal", "/journal", "/"].map(|folder| Path::new(folder).join(id));
        places.iter().any(|place| {
            opened
                .tree
                .lstat(place)
                .is_ok_and(|meta| meta.kind == FileKind::Directory)
        })
    }

    /// The one that fits: on the root's own disk if there (a copy of the disk may lie beside it),
    /// else on the others.
    fn pick(&self, volumes: &[Found], fits: impl Fn(&Volume) -> bool) -> Result<usize, NotFound> {
        let all = |on: &dyn Fn(usize) -> bool| -> Vec<usize> {
            let fitting = volumes
                .iter()
                .enumerate()
                .filter(|(_, found)| on(found.volume.disk) && fits(&found.volume));
            fitting.map(|(index, _)| index).collect()
        };
        let mut candidates = all(&|disk| disk == self.root_disk);
        if candidates.is_empty() {
            candidates = all(&|disk| self.disks.contains(&disk));
        }
        match candidates.as_slice() {
            [one] => Ok(*one),
            [] => Err(NotFound::Absent("was not found on the disks given".into())),
            several if several.contains(&self.root) => Ok(self.root),
            several => {
                // Copies of another machine's: what the journal was written for tells them apart.
                let ours = several
                    .iter()
                    .filter(|index| volumes.get(**index).is_some_and(|v| self.is_ours(v)));
                if let [one] = ours.collect::<Vec<_>>().as_slice() {
                    return Ok(**one);
                }
                let names = several
                    .iter()
                    .filter_map(|index| volumes.get(*index))
                    .map(|found| found.volume.name.as_str());
                let names: Vec<&str> = names.collect();
                Err(NotFound::Because(format!(
                    "fits {}: which is meant cannot be guessed",
                    names.join(" and ")
                )))
            }
        }
    }
}

/// Of a btrfs several subvolumes are mounted, each by a line of its own.
fn is_btrfs(volumes: &[Found], index: usize) -> bool {
    volumes
        .get(index)
        .is_some_and(|found| found.volume.file_system() == Some("btrfs"))
}

/// A guest in the making.
#[derive(Default)]
pub(super) struct Assembly {
    pub(super) mounts: Vec<Mounted>,
    pub(super) file_systems: Vec<FileSystem>,
    time_marks: Vec<TimeMark>,
    pub(super) binds: Vec<(PathBuf, PathBuf)>,
    unresolved: Vec<String>,
    missing: Vec<Missing>,
    /// The subvolumes among what is mounted.
    subvolumes: Vec<MountedSubvolume>,
}

/// A subvolume of a btrfs and where it is mounted.
#[derive(Clone)]
struct MountedSubvolume {
    volume: Volume,
    opened: Opened,
    subvolume: Subvolume,
    at: RealPath,
}

/// `disk.img partition 2`, for a subvolume as findmnt(8) shows it: `disk.img partition 2[/@]`.
fn device_name(volume: &Volume, subvolume: Option<&Subvolume>) -> String {
    match subvolume {
        Some(subvolume) if !subvolume.path.as_os_str().is_empty() => {
            format!("{}[/{}]", volume.name, shown(&subvolume.path))
        }
        _ => volume.name.clone(),
    }
}

impl Assembly {
    fn mount(
        &mut self,
        volume: &Volume,
        opened: &Opened,
        subvolume: Option<&Subvolume>,
        at: RealPath,
    ) {
        if let Some(superblock) = volume.ext() {
            self.time_marks.push(TimeMark {
                device: volume.name.clone(),
                seconds: superblock.newest_time,
            });
        }
        self.file_systems.push(FileSystem {
            mount_point: GuestPath::from(&at),
            kind: volume.file_system().unwrap_or_default().to_owned(),
            device: device_name(volume, subvolume),
            uuid: volume.uuid().map(str::to_owned),
            usage: opened.usage,
            backing: volume.backing.clone(),
            subvolume: subvolume.map(Into::into),
            has_errors: volume.has_errors(),
        });
        let tree = match subvolume {
            Some(subvolume) => {
                let (volume, opened, subvolume) =
                    (volume.clone(), opened.clone(), subvolume.clone());
                let tree = opened.subvolume(&subvolume).tree;
                self.subvolumes.push(MountedSubvolume {
                    volume,
                    opened,
                    subvolume,
                    at: at.clone(),
                });
                tree
            }
            None => Rc::clone(&opened.tree),
        };
        self.mounts.push(Mounted {
            mount_point: at.as_path().to_path_buf(),
            tree,
        });
    }

    /// Subvolumes inside those that are mounted: folders like any other for the guest, but file
    /// systems of their own for who writes to them, because no rename leads from one into another.
    fn nest(&mut self) {
        for outer in self.subvolumes.clone() {
            let Some(all) = outer.opened.subvolumes.clone() else {
                continue;
            };
            for (inside, subvolume) in subvolume_roots::nested(&outer.subvolume, &all) {
                let at = outer.at.as_path().join(inside);
                let hidden = self.mounts.iter().any(|mount| {
                    at.starts_with(&mount.mount_point)
                        && mount.mount_point.starts_with(outer.at.as_path())
                        && mount.mount_point != outer.at.as_path()
                        && !self.is_nested_mount(&mount.mount_point, &outer)
                });
                if !hidden
                    && self
                        .mounted_at(&device_name(&outer.volume, Some(subvolume)))
                        .is_none()
                {
                    self.mount(
                        &outer.volume,
                        &outer.opened,
                        Some(subvolume),
                        RealPath::new(at),
                    );
                }
            }
        }
    }

    /// Whether what is mounted there is the very folder that `outer` has in that place.
    fn is_nested_mount(&self, at: &Path, outer: &MountedSubvolume) -> bool {
        self.subvolumes.iter().any(|there| {
            let inside = at
                .strip_prefix(outer.at.as_path())
                .map(|inside| outer.subvolume.path.join(inside));
            there.at.as_path() == at
                && there.volume.backing == outer.volume.backing
                && inside.is_ok_and(|path| path == there.subvolume.path)
        })
    }

    /// The guest as far as it is mounted.
    fn so_far(&self) -> Guest {
        let tree = Rc::new(MergedTree::new(self.mounts.clone()));
        Guest::new(String::new(), tree, Vec::new()).with_binds(self.binds.clone())
    }

    /// Lines of fstab, parents before what is mounted below them; lines that are none are noted.
    fn read_fstab(&mut self) -> Vec<Entry> {
        let text = match self.so_far().read_if_there(&GuestPath::new("/etc/fstab")) {
            Ok(text) => text.unwrap_or_default(),
            Err(error) => {
                self.unresolved
                    .push(format!("fstab could not be read: {error}"));
                return Vec::new();
            }
        };
        let mut entries: Vec<Entry> = Vec::new();
        for entry in fstab::parse(&text) {
            match entry {
                Ok(entry) => {
                    // systemd mounts the first of two lines for one place.
                    let again = entries
                        .iter()
                        .any(|there| there.mount_point == entry.mount_point);
                    if !again || entry.role() == Role::Swap {
                        entries.push(entry);
                    }
                }
                Err(line) => self
                    .unresolved
                    .push(format!("fstab line {} is not understood", line.0)),
            }
        }
        entries.sort_by_key(Entry::depth);
        entries
    }

    /// Where a mount point really is: links are followed inside the guest; one that is missing is
    /// made at boot by systemd.
    fn mount_point(&self, wanted: &Path) -> Result<RealPath, String> {
        if !wanted.is_absolute() {
            return Err("has no mount point".into());
        }
        let (guest, path) = (self.so_far(), GuestPath::new(wanted));
        match guest.resolve(&path) {
            Ok(real) => match guest.tree().lstat(real.as_path()) {
                Ok(meta) if meta.kind == FileKind::Directory => Ok(real),
                Ok(_) => Err("has a mount point that is no folder".into()),
                Err(error) => Err(format!("has a mount point that cannot be read: {error}")),
            },
            Err(TreeError::NotFound(_)) => guest
                .resolve_parent(&path)
                .map_err(|_| "has a mount point that does not exist".to_owned()),
            Err(error) => Err(format!("has a mount point that cannot be used: {error}")),
        }
    }

    /// A line of fstab whose file system is not there: `why` ends the sentence that begins with the
    /// line.
    fn note_missing(&mut self, entry: &Entry, why: &str) {
        self.note(entry, why, false);
    }

    /// The same; `is_absent` as of [`Missing`].
    fn note(&mut self, entry: &Entry, why: &str, is_absent: bool) {
        let why = format!("{} {why}", entry.shown());
        let at = self
            .mount_point(&entry.mount_point)
            .map_or_else(|_| GuestPath::new(&entry.mount_point), |at| (&at).into());
        // A mount point of "none" or "/" hides nothing that is not there.
        if entry.mount_point.is_absolute() && at.as_path() != Path::new("/") {
            self.missing.push(Missing {
                at,
                why: why.clone(),
                line: entry.line,
                is_absent,
            });
        }
        self.unresolved.push(why);
    }

    /// Notes what is mounted over the folders that matter and is on no disk: a memory file system,
    /// a network share.
    fn note_hidden(&mut self, entries: &[Entry]) {
        const MATTERS: [&str; 4] = [
            "/etc/kubernetes",
            "/var/lib/kubelet",
            "/var/lib/etcd",
            "/var/lib/rescue",
        ];
        for entry in entries
            .iter()
            .filter(|entry| entry.role() == Role::Elsewhere && entry.is_mounted_at_boot())
        {
            let at = GuestPath::new(&entry.mount_point);
            let hides = MATTERS
                .iter()
                .find(|path| Path::new(path).starts_with(at.as_path()));
            if let Some(path) = hides.filter(|_| entry.mount_point.is_absolute()) {
                self.note_missing(
                    entry,
                    &format!("({}) hides {path} at boot, and is on no disk", entry.kind),
                );
            }
        }
    }

    /// Notes the lines of fstab whose file system is not there, and returns all lines.
    pub(super) fn note_unmounted(&mut self, where_: &str) -> Vec<Entry> {
        let entries = self.read_fstab();
        let wanted = |entry: &&Entry| {
            entry.role() == Role::Disk && !entry.is_root() && entry.is_mounted_at_boot()
        };
        for entry in entries.iter().filter(wanted) {
            let mounted = self.mount_point(&entry.mount_point).is_ok_and(|at| {
                self.file_systems
                    .iter()
                    .any(|there| there.mount_point.as_path() == at.as_path())
            });
            if !mounted
                && !matches!(entry.kind.as_str(), "vfat" | "msdos")
                && entry.spec != Spec::Other
            {
                self.note_missing(entry, &format!("is not mounted {where_}"));
            }
        }
        entries
    }

    fn mounted_at(&self, device: &str) -> Option<PathBuf> {
        let there = self
            .file_systems
            .iter()
            .find(|there| there.device == device)?;
        Some(there.mount_point.as_path().to_path_buf())
    }

    /// Bind mounts, once all file systems are in place.
    fn bind(&mut self, entries: &[Entry]) {
        for entry in entries
            .iter()
            .filter(|entry| entry.role() == Role::Bind && entry.is_mounted_at_boot())
        {
            let Spec::Path(source) = &entry.spec else {
                self.unresolved
                    .push(format!("{} binds something that is no path", entry.shown()));
                continue;
            };
            match (
                self.so_far().resolve(&GuestPath::new(source)),
                self.mount_point(&entry.mount_point),
            ) {
                (Ok(source), Ok(at)) => {
                    if source != at {
                        self.binds
                            .push((at.as_path().to_path_buf(), source.as_path().to_path_buf()));
                    }
                }
                (Err(error), _) => {
                    self.note(entry, &format!("binds what is not there: {error}"), true)
                }
                (_, Err(why)) => self.note_missing(entry, &why),
            }
        }
    }

    pub(super) fn finish(mut self, source: String) -> Guest {
        if let Some((_, below_root)) = self.file_systems.split_first_mut() {
            below_root.sort_by(|a, b| a.mount_point.cmp(&b.mount_point));
        }
        let tree = Rc::new(MergedTree::new(self.mounts));
        let mut guest = Guest::new(source, tree, self.file_systems).with_binds(self.binds);
        guest.unresolved = self.unresolved;
        guest.missing = self.missing;
        guest.time_marks = self.time_marks;
        guest
    }
}

impl Volume {
    fn backing_path(&self) -> String {
        shown(self.backing.first_path())
    }
}

/// A guest that is already mounted on a folder.
fn folder_guest(folder: &Path) -> Result<Guest> {
    let name = shown(folder);
    let refuse = |saw: String, means: &str, next: String| {
        anyhow::Error::from(Refusal::new(saw, means, next))
    };
    let metadata = match std::fs::metadata(folder) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Err(refuse(
                format!("the folder {name} does not exist"),
                "there is no system to look at",
                "mount the guest's root file system there, or name its disk without --root".into(),
            ));
        }
        Err(error) => return Err(error).with_context(|| format!("looking at the folder {name}")),
    };
    if !metadata.is_dir() {
        return Err(refuse(
            format!("{name} is no folder"),
            "--root takes the folder on which a guest is mounted",
            format!("rescue inspect {name} if it is a disk or an image"),
        ));
    }
    let folder = std::fs::canonicalize(folder)
        .with_context(|| format!("following links to the folder {name}"))?;
    // Also where `/` is mounted once more under another name.
    if is_same(&folder, Path::new("/")) {
        return super::live::guest();
    }
    let tree = FolderTree::open(&folder)?;
    if !is_root(&tree).with_context(|| format!("looking for a system in {name}"))? {
        return Err(refuse(
            format!("{name} holds no Linux root file system"),
            "a root has /etc, /bin and /etc/fstab or /etc/hosts",
            format!(
                "mount the guest's root file system on {name}, or name its disk without --root"
            ),
        ));
    }

    let below = mountinfo::below(&folder).context("reading what is mounted below the folder")?;
    let mut assembly = Assembly::default();
    let device = mountinfo::at(&folder)?.map_or_else(|| name.clone(), |mount| mount.device);
    assembly.mount_folder(tree, device, &folder, PathBuf::from("/"))?;
    for mount in below {
        let Ok(inside) = mount.mount_point.strip_prefix(&folder) else {
            continue;
        };
        let at = Path::new("/").join(inside);
        if mount.is_pseudo() {
            // An empty folder, as the guest's disk has it there.
            assembly.mounts.push(Mounted {
                mount_point: at,
                tree: Rc::new(MemoryTree::new()),
            });
        } else {
            assembly.mount_folder(
                FolderTree::open(&mount.mount_point)?,
                mount.device,
                &mount.mount_point,
                at,
            )?;
        }
    }
    let entries = assembly.note_unmounted(&format!("below {name}"));
    let unmounted: Vec<Entry> = entries
        .iter()
        .filter(|entry| {
            !assembly
                .file_systems
                .iter()
                .any(|there| there.mount_point.as_path() == entry.mount_point)
        })
        .cloned()
        .collect();
    assembly.bind(&unmounted);
    let mut guest = assembly.finish(name);
    let swap_files = entries
        .iter()
        .filter(|entry| entry.role() == Role::Swap)
        .filter_map(|entry| match &entry.spec {
            Spec::Path(path) => Some(path),
            _ => None,
        });
    guest.suspended = swap_files
        .filter(|path| is_suspended_file(&guest, path))
        .map(|path| {
            format!(
                "the swap file {} holds the memory of a suspended system",
                GuestPath::new(path)
            )
        })
        .next();
    Ok(guest)
}

impl Assembly {
    pub(super) fn mount_folder(
        &mut self,
        tree: FolderTree,
        device: String,
        folder: &Path,
        at: PathBuf,
    ) -> Result<()> {
        self.file_systems.push(FileSystem {
            mount_point: GuestPath::new(&at),
            kind: "folder".into(),
            device,
            uuid: None,
            usage: tree.usage()?,
            backing: Backing::Folder(folder.to_path_buf()),
            subvolume: None,
            has_errors: false,
        });
        self.mounts.push(Mounted {
            mount_point: at,
            tree: Rc::new(tree),
        });
        Ok(())
    }
}
