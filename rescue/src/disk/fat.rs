//! The boot sector of a FAT file system, which the EFI system partition is: only its size and, on
//! FAT32, how much is free. Fields from Microsoft's "FAT32 File System Specification" 1.03.

use super::bytes::{has, le16, le32};

/// What a FAT's boot sector says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FatSuper {
    /// Length of the file system in bytes.
    pub length: u64,
    /// Bytes free as FAT32's FSInfo sector has them; it is a hint that the last writer left.
    pub free: Option<u64>,
}

impl FatSuper {
    /// From the first bytes of a volume that was recognised as FAT.
    pub fn parse(head: &[u8]) -> Self {
        let sector = u64::from(le16(head, 11));
        let sectors = match le16(head, 19) {
            0 => u64::from(le32(head, 32)),
            few => u64::from(few),
        };
        let cluster = sector * u64::from(head.get(13).copied().unwrap_or(0));
        Self {
            length: sectors * sector,
            free: free_clusters(head, sector).map(|count| count * cluster),
        }
        .without_nonsense()
    }

    fn without_nonsense(self) -> Self {
        let free = self.free.filter(|free| *free <= self.length);
        Self { free, ..self }
    }
}

fn free_clusters(head: &[u8], sector: u64) -> Option<u64> {
    const UNKNOWN: u32 = u32::MAX;
    if !has(head, 82, b"FAT32   ") {
        return None;
    }
    let at = usize::try_from(u64::from(le16(head, 48)) * sector).ok()?;
    let info = head.get(at..at.checked_add(512)?)?;
    let signed = has(info, 0, b"RRaA") && has(info, 484, b"rrAa");
    signed
        .then(|| le32(info, 488))
        .filter(|count| *count != UNKNOWN)
        .map(u64::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn made_by_mtools() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(64 << 20).unwrap();
        let path = file.path().to_str().unwrap();
        // 64 MiB in clusters of one sector: FAT32.
        let made = std::process::Command::new("mformat")
            .args([
                "-F", "-c", "1", "-i", path, "-T", "131072", "-h", "64", "-s", "32",
            ])
            .output();
        let made = made.expect("mformat must be installed (package mtools)");
        assert!(made.status.success(), "{made:?}");
        let before = FatSuper::parse(&std::fs::read(path).unwrap());
        assert_eq!(before.length, 64 << 20);
        let free = before.free.unwrap();
        assert!(free > 60 << 20 && free < 64 << 20, "{free}");
        let copied = std::process::Command::new("mcopy")
            .args(["-i", path, "/bin/sh", "::/sh"])
            .output()
            .unwrap();
        assert!(copied.status.success(), "{copied:?}");
        assert!(FatSuper::parse(&std::fs::read(path).unwrap()).free.unwrap() < free);
    }

    #[test]
    fn nonsense_is_not_believed() {
        let mut head = vec![0; 2048];
        head[82..90].copy_from_slice(b"FAT32   ");
        head[11..13].copy_from_slice(&512_u16.to_le_bytes());
        head[13] = 255;
        head[32..36].copy_from_slice(&9_u32.to_le_bytes());
        head[48..50].copy_from_slice(&1_u16.to_le_bytes());
        head[512..516].copy_from_slice(b"RRaA");
        head[996..1000].copy_from_slice(b"rrAa");
        head[1000..1004].copy_from_slice(&u32::MAX.wrapping_sub(1).to_le_bytes());
        assert_eq!(
            FatSuper::parse(&head),
            FatSuper {
                length: 9 * 512,
                free: None
            }
        );
        head[48..50].copy_from_slice(&u16::MAX.to_le_bytes());
        assert_eq!(FatSuper::parse(&head).free, None);
        assert_eq!(
            FatSuper::parse(b""),
            FatSuper {
                length: 0,
                free: None
            }
            .without_nonsense()
        );
    }
}
