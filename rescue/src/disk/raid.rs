//! Linux software RAID: the superblocks of mdadm, versions 0.90, 1.0, 1.1 and 1.2. After the
//! kernel's include/uapi/linux/raid/md_p.h.
//!
//! A mirror's leg holds the whole file system, so that one of them is enough for reading. Other
//! levels are only named.

use super::ReadAt;
use super::bytes::{has, le16, le32, le64, text, uuid};

const MAGIC: [u8; 4] = [0xfc, 0x4e, 0x2b, 0xa9];
const SECTOR: u64 = 512;
/// `MD_FEATURE_RECOVERY_OFFSET`, `MD_FEATURE_RESHAPE_ACTIVE`.
const RECOVERING: u32 = 2;
const RESHAPING: u32 = 4;
/// `MD_DISK_SYNC` of 0.90.
const IN_SYNC: u32 = 1 << 2;
/// From here on roles mean journal, faulty, spare.
const NO_ROLE: u16 = 0xff00;
/// Version 1 has room for so many.
const MAX_DEVICES: u32 = 1920;

/// What the superblock of one member says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// UUID of the array.
    pub array: String,
    /// Its name (`host:0`), where it has one.
    pub name: Option<String>,
    /// 1 is a mirror; negative ones are linear and such.
    pub level: i32,
    /// How many disks the array has when it is whole.
    pub disks: u32,
    /// This member's place among them; `None`: it is a spare, faulty, or still being filled.
    pub role: Option<u32>,
    /// Grows with every change of the array's state: the member with the most knows best.
    pub events: u64,
    /// Whether all members were equal when it was last written.
    pub clean: bool,
    /// First byte of the data.
    pub offset: u64,
    /// Length of the data in bytes.
    pub length: u64,
    /// Whether it is being given another form.
    pub reshaping: bool,
}

impl Member {
    /// Reads the superblock of `version` as the probe names it. The error is half a sentence.
    pub fn read(bytes: &dyn ReadAt, version: &str) -> Result<Self, String> {
        let length = bytes.len();
        let at = match version {
            "0.90" => (length & !0xffff).checked_sub(0x1_0000),
            "1.0" => (length / SECTOR)
                .checked_sub(16)
                .map(|sector| sector / 8 * 8 * SECTOR),
            "1.1" => Some(0),
            _ => Some(4096),
        };
        let at = at.ok_or("it is too short")?;
        let mut raw = vec![0; usize::try_from(length.saturating_sub(at).min(4096)).unwrap_or(0)];
        bytes
            .read_exact_at(&mut raw, at)
            .map_err(|error| error.to_string())?;
        if !has(&raw, 0, &MAGIC) || raw.len() < 4096 {
            return Err("it has no superblock, or one of another byte order".into());
        }
        let member = if version == "0.90" {
            old(&raw)
        } else {
            new(&raw)
        }?;
        if member.level == 1
            && member
                .offset
                .checked_add(member.length)
                .is_none_or(|end| end > length || member.length == 0)
        {
            return Err(format!(
                "its data should reach to byte {} of {length}: it was cut off",
                member.offset.saturating_add(member.length)
            ));
        }
        Ok(member)
    }

    /// `RAID5 of 4 disks`.
    pub fn what(&self) -> String {
        match self.level {
            level @ 0.. => format!("RAID{level} of {} disks", self.disks),
            _ => format!("linear array of {} disks", self.disks),
        }
    }
}

/// Sum of all little-endian words, folded.
fn sum(raw: &[u8]) -> u32 {
    let words = raw.chunks(4).map(|word| {
        u64::from(if word.len() == 4 {
            le32(word, 0)
        } else {
            le16(word, 0).into()
        })
    });
    let sum: u64 = words.sum();
    ((sum & 0xffff_ffff) + (sum >> 32)) as u32
}

fn check(raw: &[u8], length: usize, at: usize) -> Result<(), String> {
    let mut copy = raw
        .get(..length)
        .ok_or("its superblock is too long")?
        .to_vec();
    let expected = le32(&copy, at);
    copy.get_mut(at..at + 4)
        .ok_or("its superblock is too short")?
        .fill(0);
    if sum(&copy) == expected {
        Ok(())
    } else {
        Err("the checksum of its superblock is wrong".into())
    }
}

fn new(raw: &[u8]) -> Result<Member, String> {
    let devices = le32(raw, 220);
    if devices > MAX_DEVICES {
        return Err(format!("a superblock with {devices} devices"));
    }
    check(raw, 256 + 2 * devices as usize, 216)?;
    let (features, number) = (le32(raw, 8), le32(raw, 160));
    let role = if number < devices {
        le16(raw, 256 + 2 * number as usize)
    } else {
        u16::MAX
    };
    // It is being filled: behind that point it is old.
    let is_whole = features & RECOVERING == 0 || le64(raw, 152) == u64::MAX;
    let sectors = |at: usize| {
        le64(raw, at)
            .checked_mul(SECTOR)
            .ok_or("a superblock with impossible numbers")
    };
    Ok(Member {
        array: uuid(raw, 16).ok_or("a superblock without a UUID")?,
        name: text(raw, 32, 32),
        level: le32(raw, 72).cast_signed(),
        disks: le32(raw, 92),
        role: (role < NO_ROLE && is_whole).then_some(role.into()),
        events: le64(raw, 200),
        clean: le64(raw, 208) == u64::MAX,
        offset: sectors(128)?,
        length: sectors(80)?,
        reshaping: features & RESHAPING != 0,
    })
}

fn old(raw: &[u8]) -> Result<Member, String> {
    let word = |number: usize| le32(raw, number * 4);
    check(raw, 4096, 38 * 4)?;
    // The last of the disks described is the one that it is on.
    const THIS: usize = 992;
    let is_in_sync = word(THIS + 4) & IN_SYNC != 0 && word(THIS + 4) & 1 == 0;
    let [a, b, c, d] = [5, 13, 14, 15].map(word);
    Ok(Member {
        array: format!("{a:08x}:{b:08x}:{c:08x}:{d:08x}"),
        name: None,
        level: word(7).cast_signed(),
        disks: word(10),
        role: is_in_sync.then_some(word(THIS + 3)),
        events: u64::from(word(40)) << 32 | u64::from(word(39)),
        clean: word(33) & 1 != 0,
        offset: 0,
        length: u64::from(word(8)) * 1024,
        // Minor version 91 marks a reshape.
        reshaping: word(2) == 91,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    struct Memory(Vec<u8>);

    impl ReadAt for Memory {
        fn len(&self) -> u64 {
            self.0.len() as u64
        }
        fn sector_size(&self) -> u32 {
            512
        }
        fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> std::io::Result<()> {
            let from = usize::try_from(offset).unwrap();
            let there = self
                .0
                .get(from..from + buffer.len())
                .ok_or(std::io::ErrorKind::UnexpectedEof)?;
            buffer.copy_from_slice(there);
            Ok(())
        }
    }

    fn put(raw: &mut [u8], at: usize, bytes: &[u8]) {
        raw[at..at + bytes.len()].copy_from_slice(bytes);
    }

    /// Leg 1 of a mirror, with the superblock at byte `at` of 4 MiB.
    fn leg(at: usize, data_offset: u64) -> Vec<u8> {
        let mut raw = vec![0; 4096];
        put(&mut raw, 0, &MAGIC);
        put(&mut raw, 4, &1_u32.to_le_bytes());
        put(&mut raw, 16, &[0xa5; 16]);
        put(&mut raw, 32, b"host:0");
        for (field, value) in [(72, 1_u32), (92, 2), (160, 1), (220, 2)] {
            put(&mut raw, field, &value.to_le_bytes());
        }
        let super_offset = at as u64 / SECTOR;
        for (field, value) in [
            (80, 2048),
            (128, data_offset),
            (136, 2048),
            (144, super_offset),
            (200, 42),
            (208, u64::MAX),
        ] {
            put(&mut raw, field, &value.to_le_bytes());
        }
        put(&mut raw, 168, &[0x5a; 16]);
        put(&mut raw, 256, &[0, 0, 1, 0]);
        let sum = sum(&raw[..260]);
        put(&mut raw, 216, &sum.to_le_bytes());
        let mut disk = vec![0; 4 << 20];
        put(&mut disk, at, &raw);
        disk
    }

    /// The same with a superblock of version 0.90, in the last 64 KiB, which is made of words alone
    /// (`mdp_super_t`).
    fn old_leg() -> (usize, Vec<u8>) {
        const WORDS: [(usize, u32); 26] = [
            (0, 0xa92b_4efc),
            (1, 0),
            (2, 90),
            (5, 0x1111_2222),
            (6, 1_700_000_000),
            (7, 1),
            (8, 1024),
            (9, 2),
            (10, 2),
            (13, 0x3333_4444),
            (14, 0x5555_6666),
            (15, 0x7777_8888),
            (32, 1_700_000_000),
            (33, 1),
            (34, 2),
            (35, 2),
            (39, 42),
            // Disk 0, disk 1, and the last one, which says that this is disk 1: number, major,
            // minor, place, state.
            (128, 0),
            (131, 0),
            (132, 6),
            (160, 1),
            (163, 1),
            (164, 6),
            (992, 1),
            (995, 1),
            (996, 6),
        ];
        let mut raw = vec![0; 4096];
        for (word, value) in WORDS {
            put(&mut raw, word * 4, &value.to_le_bytes());
        }
        let sum = sum(&raw);
        put(&mut raw, 38 * 4, &sum.to_le_bytes());
        let (at, mut disk) = ((4 << 20) - 0x1_0000, vec![0; 4 << 20]);
        put(&mut disk, at, &raw);
        (at, disk)
    }

    #[test]
    fn mdadm_reads_the_same_of_the_oldest_version() {
        let (at, disk) = old_leg();
        let said = examine(&disk);
        for words in [
            "Version : 0.90.00",
            "UUID : 11112222:33334444:55556666:77778888",
            "Raid Level : raid1",
            "Used Dev Size : 1024",
            "Raid Devices : 2",
            "State : clean",
            "- correct",
            "Events : 42",
        ] {
            assert!(said.contains(words), "{words} is not in {said}");
        }
        let member = Member::read(&Memory(disk.clone()), "0.90").unwrap();
        assert_eq!(member.array, "11112222:33334444:55556666:77778888");
        assert_eq!(
            (member.level, member.disks, member.role, member.events),
            (1, 2, Some(1), 42)
        );
        assert_eq!(
            (member.offset, member.length, member.clean),
            (0, 1 << 20, true)
        );
        for byte in [32, 40, 156, 33 * 4, 995 * 4] {
            let mut disk = disk.clone();
            disk[at + byte] ^= 1;
            assert!(Member::read(&Memory(disk), "0.90").is_err(), "byte {byte}");
        }
    }

    fn examine(disk: &[u8]) -> String {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), disk).unwrap();
        let ran = Command::new("mdadm")
            .arg("--examine")
            .arg(file.path())
            .output()
            .expect("mdadm must be installed");
        String::from_utf8_lossy(&ran.stdout).into_owned()
    }

    /// What is read here is what mdadm reads, and mdadm finds the checksum right.
    #[test]
    fn mdadm_reads_the_same() {
        let end = ((4 << 20) / 512 - 16) / 8 * 8 * 512;
        for (version, at, data) in [("1.0", end, 0), ("1.1", 0, 2048), ("1.2", 4096, 2048)] {
            let disk = leg(at, data);
            let said = examine(&disk);
            for words in [
                &format!("Version : {version}"),
                "- correct",
                "raid1",
                "Events : 42",
                "Raid Devices : 2",
                "Active device 1",
            ] {
                assert!(said.contains(words), "{words} is not in {said}");
            }
            let member = Member::read(&Memory(disk.clone()), version).unwrap();
            assert_eq!(
                (member.level, member.disks, member.role, member.events),
                (1, 2, Some(1), 42)
            );
            assert_eq!(
                (member.offset, member.length, member.clean),
                (data * 512, 1 << 20, true)
            );
            assert_eq!(member.name.as_deref(), Some("host:0"));
            // Any bit of it that is wrong is noticed.
            for bit in [8, 80, 128, 200, 256] {
                let mut disk = disk.clone();
                disk[at + bit] ^= 1;
                assert!(
                    Member::read(&Memory(disk), version).is_err(),
                    "{version} byte {bit}"
                );
            }
        }
        assert!(Member::read(&Memory(vec![0; 100]), "0.90").is_err());
        assert!(Member::read(&Memory(vec![0xff; 1 << 20]), "1.2").is_err());
    }
}
