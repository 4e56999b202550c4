//! Device-mapper, spoken to by its own ioctls: block devices over pieces of others, with names that
//! are ours alone. Nobody else's volume group of the same name, and no copy of this disk, ever
//! meets them.
//!
//! A device is marked for removal as soon as it is open, so that it goes with its last user, which
//! a `kill -9` makes soon. One that was killed in the moment before is found by its name and
//! removed by the next run ([`remove_stale`]).

use std::fmt::Write as _;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context;
use nix::errno::Errno;
use rustix::fs::{FileType, Mode, OFlags};

use super::layout::Layout;
use super::luks::Crypt;
use crate::base::sys;
use zeroize::Zeroizing;

const CONTROL: &str = "/dev/mapper/control";
/// Where sysfs shows all block devices.
const BLOCK: &str = "/sys/block";
/// `MISC_MAJOR` and `MAPPER_CTRL_MINOR`: opening such a node loads the module.
const CONTROL_NUMBER: (u32, u32) = (10, 236);

/// How our devices' UUIDs begin, as sysfs shows them.
pub const UUID_PREFIX: &str = "RESCUE-";
const NAME_PREFIX: &str = "rescue-";

/// How long the kernel may take to let go of a device after its last user.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(10);

// <linux/dm-ioctl.h>
const DM_VERSION: u8 = 0;
const DM_DEV_CREATE: u8 = 3;
const DM_DEV_REMOVE: u8 = 4;
const DM_DEV_SUSPEND: u8 = 6;
const DM_TABLE_LOAD: u8 = 9;
/// 4.27 (Linux 3.13) knows deferred removal.
const VERSION: [u32; 3] = [4, 27, 0];
const DEFERRED_REMOVE: u32 = 1 << 17;
/// The kernel wipes its copy of the table.
const SECURE_DATA: u32 = 1 << 15;
/// libdevmapper's `DM_UDEV_DISABLE_{DM,SUBSYSTEM,DISK,OTHER}_RULES_FLAG`, above the cookie: udev
/// looks into our devices no more than into any file of ours.
const LEAVE_ALONE: u32 = 0xf << 16;
const SECTOR: u64 = 512;
const CRYPT: &str = "crypt";

// Offsets in struct dm_ioctl.
const DATA_START: usize = 16;
const TARGET_COUNT: usize = 20;
const FLAGS: usize = 28;
const EVENT_NR: usize = 32;
const DEVICE: usize = 40;
const NAME: usize = 48;
const UUID: usize = 176;

/// Device-mapper itself.
#[derive(Debug)]
pub struct DeviceMapper {
    control: File,
}

/// One line of a table.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Target {
    /// First sector and number of sectors, of 512 bytes.
    start: u64,
    length: u64,
    kind: &'static str,
    parameters: String,
}

/// A device of ours. It is gone when this is dropped and nothing is mounted from it any more, and
/// when the process dies.
#[derive(Debug)]
pub struct MappedDevice {
    /// `None` only while dropping.
    device: Option<OwnedFd>,
    mapper: DeviceMapper,
    name: String,
    minor: u32,
}

impl DeviceMapper {
    /// `None` where the kernel has none (its module is loaded if there is one). Needs root.
    pub fn open() -> anyhow::Result<Option<Self>> {
        let Some(control) = open_control().with_context(|| format!("opening {CONTROL}"))? else {
            return Ok(None);
        };
        let mapper = Self { control };
        mapper
            .send(DM_VERSION, &mut Message::new("", ""))
            .context("asking device-mapper for its version")?;
        Ok(Some(mapper))
    }

    /// Makes a device over others, given by their nodes in the order that `layout` counts.
    pub fn create(self, layout: &Layout, below: &[&Path]) -> anyhow::Result<MappedDevice> {
        let mut numbers = Vec::new();
        for node in below {
            let metadata = std::fs::metadata(node)
                .with_context(|| format!("looking at {}", node.display()))?;
            numbers.push((
                rustix::fs::major(metadata.rdev()),
                rustix::fs::minor(metadata.rdev()),
            ));
        }
        self.make(&targets(layout, &numbers).context("a layout that is not in whole sectors")?)
    }

    /// Makes a device that decrypts another, given by its node.
    pub fn create_encrypted(self, crypt: &Crypt, below: &Path) -> anyhow::Result<MappedDevice> {
        let metadata =
            std::fs::metadata(below).with_context(|| format!("looking at {}", below.display()))?;
        let number = (
            rustix::fs::major(metadata.rdev()),
            rustix::fs::minor(metadata.rdev()),
        );
        let target =
            crypt_target(crypt, number).context("a layout that is not in whole sectors")?;
        let made = self
            .make(std::slice::from_ref(&target))
            .context("having dm-crypt decrypt it");
        // The key is in it.
        drop(Zeroizing::new(target.parameters));
        made
    }

    fn make(self, targets: &[Target]) -> anyhow::Result<MappedDevice> {
        let unique = unique().context("reading random bytes")?;
        let (name, uuid) = (
            format!("{NAME_PREFIX}{unique}"),
            format!("{UUID_PREFIX}{unique}"),
        );
        let mut message = Message::new(&name, &uuid);
        self.send(DM_DEV_CREATE, &mut message)
            .context("making a device of device-mapper")?;
        // From here on dropping takes it down again.
        let minor = message.minor();
        let mut made = MappedDevice {
            device: None,
            mapper: self,
            name: name.clone(),
            minor,
        };
        let mut table = Message::new(&name, "");
        for target in targets {
            table.add(target);
        }
        if targets.iter().any(|target| target.kind == CRYPT) {
            table.set(FLAGS, SECURE_DATA);
        }
        made.mapper
            .send(DM_TABLE_LOAD, &mut table)
            .map_err(|errno| match errno {
                Errno::EBUSY => {
                    anyhow::anyhow!("another program uses a device below it").context(errno)
                }
                errno => errno.into(),
            })?;
        // "Suspend" without its flag is resume.
        made.mapper
            .send(DM_DEV_SUSPEND, &mut Message::new(&name, ""))
            .context("starting a device of device-mapper")?;
        made.device = Some(open_device(minor)?);
        crate::base::fault::point("a device that is not yet marked for removal");
        let mut remove = Message::new(&name, "");
        remove.set(FLAGS, DEFERRED_REMOVE);
        made.mapper
            .send(DM_DEV_REMOVE, &mut remove)
            .context("marking a device of device-mapper for removal")?;
        Ok(made)
    }

    fn send(&self, command: u8, message: &mut Message) -> Result<(), Errno> {
        sys::device_mapper(self.control.as_fd(), command, &mut message.0)
    }

    /// Removes a device (`dm-3`, and its name) once nobody uses it; whether it is gone.
    fn remove(&self, device: &str, name: &str, patience: Duration) -> bool {
        let deadline = Instant::now() + patience;
        loop {
            // That it has no such name any more can mean that the kernel is still taking it down,
            // and holds what is below it.
            let is_nameless = matches!(
                self.send(DM_DEV_REMOVE, &mut Message::new(name, "")),
                Ok(()) | Err(Errno::ENXIO)
            );
            if is_nameless && !is_shown(Path::new(BLOCK), device, name) {
                return true;
            }
            if Instant::now() > deadline {
                return false;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// Whether sysfs shows this device: it gives no name of one that is being taken down.
fn is_shown(block: &Path, device: &str, name: &str) -> bool {
    let folder = block.join(device);
    folder.exists()
        && std::fs::read_to_string(folder.join("dm/name"))
            .map_or(true, |shown| shown.trim() == name)
}

/// Removes a device that a run of ours left behind when it was killed, by its folder in
/// `/sys/block` (`dm-3`) and its name; whether it is gone. The caller holds the lock on the disk
/// below, which every living run would hold.
pub fn remove_stale(device: &str, name: &str) -> bool {
    let mapper = DeviceMapper::open().ok().flatten();
    mapper.is_some_and(|mapper| mapper.remove(device, name, RELEASE_TIMEOUT))
}

impl MappedDevice {
    /// A path that opens this device, for as long as this lives: `/dev/dm-3`, or our own descriptor
    /// where /dev has no such node.
    pub fn path(&self) -> PathBuf {
        let node = node(self.minor);
        match &self.device {
            Some(device) if !node.exists() => {
                PathBuf::from(format!("/proc/self/fd/{}", device.as_raw_fd()))
            }
            _ => node,
        }
    }
}

impl Drop for MappedDevice {
    fn drop(&mut self) {
        drop(self.device.take());
        // It removes itself, only not at once: the next look at the disk should not find it.
        self.mapper
            .remove(&format!("dm-{}", self.minor), &self.name, RELEASE_TIMEOUT);
    }
}

fn open_control() -> std::io::Result<Option<File>> {
    let open = |path: &Path| File::options().read(true).write(true).open(path);
    match open(Path::new(CONTROL)) {
        Ok(control) => return Ok(Some(control)),
        Err(error) if is_missing(&error) => {}
        Err(error) => return Err(error),
    }
    // No udev, or the module is not loaded: a passing node of our own asks the kernel for it.
    let path = PathBuf::from(format!("/dev/rescue-control-{}", std::process::id()));
    let number = rustix::fs::makedev(CONTROL_NUMBER.0, CONTROL_NUMBER.1);
    let made = rustix::fs::mknodat(
        rustix::fs::CWD,
        &path,
        FileType::CharacterDevice,
        Mode::RUSR | Mode::WUSR,
        number,
    );
    let control = made
        .map_err(std::io::Error::from)
        .and_then(|()| open(&path));
    let _ = std::fs::remove_file(&path);
    match control {
        Ok(control) => Ok(Some(control)),
        Err(error) if is_missing(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

/// A kernel without it, or a container that may not use it.
fn is_missing(error: &std::io::Error) -> bool {
    let errno = error.raw_os_error().map(Errno::from_raw);
    matches!(
        errno,
        Some(Errno::ENOENT | Errno::ENODEV | Errno::ENXIO | Errno::EPERM | Errno::EACCES)
    )
}

fn node(minor: u32) -> PathBuf {
    PathBuf::from(format!("/dev/dm-{minor}"))
}

/// Opens the device, over a passing node of our own where nobody (no devtmpfs, no udev) has made
/// one.
fn open_device(minor: u32) -> anyhow::Result<OwnedFd> {
    let path = node(minor);
    let shown = format!("/sys/block/dm-{minor}/dev");
    let numbers = std::fs::read_to_string(&shown).with_context(|| format!("reading {shown}"))?;
    let major = numbers
        .split(':')
        .next()
        .and_then(|major| major.parse().ok());
    let number = rustix::fs::makedev(
        major.with_context(|| format!("reading {shown}: {numbers:?}"))?,
        minor,
    );
    let is_ours = std::fs::metadata(&path).is_ok_and(|metadata| metadata.rdev() == number);
    let path = if is_ours {
        path
    } else {
        PathBuf::from(format!("/dev/rescue-dm-{minor}-{}", std::process::id()))
    };
    if !is_ours {
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &path,
            FileType::BlockDevice,
            Mode::RUSR | Mode::WUSR,
            number,
        )
        .with_context(|| format!("making {}", path.display()))?;
    }
    let device = rustix::fs::open(&path, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty());
    if !is_ours {
        let _ = std::fs::remove_file(&path);
    }
    device.with_context(|| format!("opening {}", path.display()))
}

fn unique() -> Result<String, rustix::io::Errno> {
    let mut bytes = [0_u8; 8];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())?;
    Ok(bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    }))
}

/// Table lines as Documentation/admin-guide/device-mapper/{linear,striped}.rst have them; `None`
/// where something is not in whole sectors.
fn targets(layout: &Layout, numbers: &[(u32, u32)]) -> Option<Vec<Target>> {
    let sectors = |bytes: u64| bytes.is_multiple_of(SECTOR).then_some(bytes / SECTOR);
    let mut targets = Vec::new();
    for segment in layout.segments() {
        let mut parameters = String::new();
        let kind = if segment.areas.len() == 1 {
            "linear"
        } else {
            "striped"
        };
        if kind == "striped" {
            let _ = write!(
                parameters,
                "{} {} ",
                segment.areas.len(),
                sectors(segment.stripe)?
            );
        }
        for (number, area) in segment.areas.iter().enumerate() {
            let (major, minor) = numbers.get(area.below)?;
            let space = if number == 0 { "" } else { " " };
            let _ = write!(
                parameters,
                "{space}{major}:{minor} {}",
                sectors(area.offset)?
            );
        }
        targets.push(Target {
            start: sectors(segment.start)?,
            length: sectors(segment.length)?,
            kind,
            parameters,
        });
    }
    Some(targets)
}

/// The table line of Documentation/admin-guide/device-mapper/dm-crypt.rst. Without
/// `iv_large_sectors`, as LUKS2 has it: vectors count sectors of 512 bytes whatever the unit of
/// encryption is.
fn crypt_target(crypt: &Crypt, (major, minor): (u32, u32)) -> Option<Target> {
    let sectors = |bytes: u64| bytes.is_multiple_of(SECTOR).then_some(bytes / SECTOR);
    let mut parameters = format!("{} ", crypt.cipher);
    parameters.reserve_exact(2 * crypt.key.len() + 200);
    for byte in crypt.key.bytes() {
        let _ = write!(parameters, "{byte:02x}");
    }
    let _ = write!(
        parameters,
        " {} {major}:{minor} {}",
        crypt.iv_tweak,
        sectors(crypt.offset)?
    );
    if crypt.sector_size != 512 {
        let _ = write!(parameters, " 1 sector_size:{}", crypt.sector_size);
    }
    Some(Target {
        start: 0,
        length: sectors(crypt.length)?,
        kind: CRYPT,
        parameters,
    })
}

/// A `struct dm_ioctl` and the targets behind it. Wiped when dropped: there may be a key in it.
struct Message(Zeroizing<Vec<u8>>);

impl Message {
    fn new(name: &str, uuid: &str) -> Self {
        // Never moved while it grows: that would leave a copy behind.
        let mut message = Self(Zeroizing::new(Vec::with_capacity(16 << 10)));
        message.0.resize(sys::DM_HEADER, 0);
        for (at, number) in (0..).step_by(4).zip(VERSION) {
            message.set(at, number);
        }
        message.set(DATA_START, sys::DM_HEADER as u32);
        message.set(EVENT_NR, LEAVE_ALONE);
        // Both are ours and short; the rest of the fields stays zero.
        for (at, text) in [(NAME, name), (UUID, uuid)] {
            if let Some(field) = message.0.get_mut(at..at + text.len()) {
                field.copy_from_slice(text.as_bytes());
            }
        }
        message
    }

    fn set(&mut self, at: usize, number: u32) {
        if let Some(field) = self.0.get_mut(at..at + 4) {
            field.copy_from_slice(&number.to_ne_bytes());
        }
    }

    fn get(&self, at: usize) -> u32 {
        self.0
            .get(at..at + 4)
            .and_then(|field| field.try_into().ok())
            .map_or(0, u32::from_ne_bytes)
    }

    /// Of `dev`, which the kernel encodes as `new_encode_dev`: the major number in bits 8 to 19.
    fn minor(&self) -> u32 {
        let number = self.get(DEVICE);
        number & 0xff | number >> 12 & !0xff
    }

    /// Adds a `struct dm_target_spec` with its parameters; `next` is the way from one to the next,
    /// in multiples of 8.
    fn add(&mut self, target: &Target) {
        const SPEC: usize = 40;
        let length = (SPEC + target.parameters.len() + 1).next_multiple_of(8);
        self.0.extend(target.start.to_ne_bytes());
        self.0.extend(target.length.to_ne_bytes());
        self.0.extend(0_u32.to_ne_bytes());
        self.0.extend((length as u32).to_ne_bytes());
        let mut kind = target.kind.as_bytes().to_vec();
        kind.resize(16, 0);
        self.0.extend(kind);
        self.0.extend(target.parameters.as_bytes());
        let padding = length - SPEC - target.parameters.len();
        self.0.extend(std::iter::repeat_n(0, padding));
        self.set(TARGET_COUNT, self.get(TARGET_COUNT) + 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::layout::{Area, Segment};

    #[test]
    fn tables_are_what_dmsetup_would_load() {
        let linear = Segment {
            start: 0,
            length: 8 << 20,
            stripe: 512,
            areas: vec![Area {
                below: 1,
                offset: 1 << 20,
            }],
        };
        let areas = vec![
            Area {
                below: 0,
                offset: 1 << 20,
            },
            Area {
                below: 1,
                offset: 9 << 20,
            },
        ];
        let striped = Segment {
            start: 8 << 20,
            length: 8 << 20,
            stripe: 64 << 10,
            areas,
        };
        let layout = Layout::new(vec![linear, striped], &[64 << 20, 64 << 20]).unwrap();
        let targets = targets(&layout, &[(8, 2), (259, 300)]).unwrap();
        let lines: Vec<String> = targets
            .iter()
            .map(|t| format!("{} {} {} {}", t.start, t.length, t.kind, t.parameters))
            .collect();
        assert_eq!(
            lines,
            [
                "0 16384 linear 259:300 2048",
                "16384 16384 striped 2 128 8:2 2048 259:300 18432"
            ]
        );

        let mut message = Message::new("rescue-1", "RESCUE-1");
        targets.iter().for_each(|target| message.add(target));
        assert_eq!(
            (message.get(TARGET_COUNT), message.get(DATA_START)),
            (2, 312)
        );
        let next = message.get(312 + 20) as usize;
        assert_eq!(
            next,
            (40_usize + "259:300 2048".len() + 1).next_multiple_of(8)
        );
        assert_eq!(&message.0[312 + next + 24..][..8], b"striped\0");
        assert_eq!(message.0.len() % 8, 0);
    }

    #[test]
    fn a_device_that_is_being_taken_down_is_not_gone() {
        let block = tempfile::tempdir().unwrap();
        let is_shown = |device| is_shown(block.path(), device, "rescue-1");
        assert!(!is_shown("dm-0"));
        std::fs::create_dir_all(block.path().join("dm-0/dm")).unwrap();
        assert!(is_shown("dm-0"));
        std::fs::write(block.path().join("dm-0/dm/name"), "rescue-1\n").unwrap();
        assert!(is_shown("dm-0"));
        // Its number has gone to another.
        std::fs::write(block.path().join("dm-0/dm/name"), "centos-root\n").unwrap();
        assert!(!is_shown("dm-0"));
    }

    #[test]
    fn half_sectors_are_no_table() {
        let segment = Segment {
            start: 0,
            length: 1024,
            stripe: 512,
            areas: vec![Area {
                below: 0,
                offset: 100,
            }],
        };
        let layout = Layout::new(vec![segment], &[4096]).unwrap();
        assert_eq!(targets(&layout, &[(8, 2)]), None);
    }

    #[test]
    fn minors_are_decoded_as_the_kernel_encodes_them() {
        let mut message = Message::new("", "");
        // new_encode_dev(MKDEV(253, 300))
        message.set(DEVICE, (300 & 0xff) | (253 << 8) | ((300 & !0xff) << 12));
        assert_eq!(message.minor(), 300);
    }
}
