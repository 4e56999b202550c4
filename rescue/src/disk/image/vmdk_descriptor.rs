//! The text that describes a VMware disk.

use super::ImageError;
use super::files::MAX_FILES;
use crate::base::escaping::escape;
use crate::disk::ReadAt;

const TITLE: &str = "# Disk DescriptorFile";
/// VMware's own have one to a few KiB.
const MAX_LENGTH: u64 = 64 << 10;
/// `parentCID` of a disk without a parent.
const NO_PARENT: &str = "ffffffff";

/// What an extent's file holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ExtentKind {
    /// The bytes as they are, from this sector on.
    Flat { offset: u64 },
    /// Grains behind tables.
    Sparse,
}

/// One line of the list of extents.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Extent {
    pub sectors: u64,
    pub kind: ExtentKind,
    /// Its file, relative to the descriptor's folder. `None`: zeros.
    pub file: Option<String>,
    /// Access `RW`.
    pub writable: bool,
}

/// What the text says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Descriptor {
    /// `monolithicFlat`, `vmfs` …
    pub create_type: String,
    /// Whether what is not in it is in a parent.
    pub is_snapshot: bool,
    /// The parent's name as it stands there.
    pub parent: Option<String>,
    pub extents: Vec<Extent>,
}

/// Whether a file begins like one: comments and blank lines may come first.
pub(super) fn begins(head: &[u8]) -> bool {
    let text = String::from_utf8_lossy(head);
    let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    lines
        .find(|line| line.starts_with(TITLE) || !line.starts_with('#'))
        .is_some_and(|line| line.starts_with(TITLE))
}

impl Descriptor {
    /// From a file of its own.
    pub fn read(file: &dyn ReadAt) -> Result<Self, ImageError> {
        if file.len() > MAX_LENGTH {
            return Err(ImageError::corrupt(format!(
                "a text of {} bytes",
                file.len()
            )));
        }
        let mut text = vec![0; usize::try_from(file.len()).unwrap_or(0)];
        file.read_exact_at(&mut text, 0)?;
        let disk = Self::parse(&text)?;
        if disk.extents.is_empty() {
            Err(ImageError::corrupt("it names no extent"))
        } else {
            Ok(disk)
        }
    }

    /// Keys are compared without regard to case, as VMware and QEMU do.
    pub fn parse(text: &[u8]) -> Result<Self, ImageError> {
        let text = String::from_utf8_lossy(text);
        let text = text.split('\0').next().unwrap_or_default();
        let mut disk = Self {
            create_type: "unknown".into(),
            is_snapshot: false,
            parent: None,
            extents: Vec::new(),
        };
        for line in text
            .lines()
            .map(str::trim)
            .filter(|line| !line.starts_with('#'))
        {
            if let Some(extent) = extent(line)? {
                disk.extents.push(extent);
                continue;
            }
            let Some((key, value)) = line.split_once('=') else {
                continue;
            };
            let value = value.trim().trim_matches('"');
            match key.trim().to_ascii_lowercase().as_str() {
                "createtype" => disk.create_type = escape(value),
                "parentcid" => disk.is_snapshot = !value.eq_ignore_ascii_case(NO_PARENT),
                "parentfilenamehint" => disk.parent = Some(escape(value)),
                _ => {}
            }
        }
        match disk.extents.len() {
            0..=MAX_FILES => Ok(disk),
            count => Err(ImageError::Unsupported(format!("it is in {count} extents"))),
        }
    }
}

/// `RW 20971520 FLAT "node1-flat.vmdk" 0`.
fn extent(line: &str) -> Result<Option<Extent>, ImageError> {
    let (access, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
    if !matches!(access, "RW" | "RDONLY" | "NOACCESS") {
        return Ok(None);
    }
    let corrupt = || ImageError::corrupt(format!("its line {:?} makes no sense", escape(line)));
    let (sectors, rest) = rest
        .trim()
        .split_once(char::is_whitespace)
        .ok_or_else(corrupt)?;
    let sectors: u64 = sectors.parse().map_err(|_| corrupt())?;
    let (kind, rest) = rest
        .trim()
        .split_once(char::is_whitespace)
        .unwrap_or((rest.trim(), ""));
    let (file, offset) = match rest.trim().strip_prefix('"') {
        Some(quoted) => {
            let (file, offset) = quoted.split_once('"').ok_or_else(corrupt)?;
            (Some(file.to_owned()), offset.trim())
        }
        None => (None, ""),
    };
    let offset: u64 = if offset.is_empty() {
        0
    } else {
        offset.parse().map_err(|_| corrupt())?
    };
    let kind = match kind {
        "ZERO" => {
            return Ok(Some(Extent {
                sectors,
                kind: ExtentKind::Flat { offset: 0 },
                file: None,
                writable: false,
            }));
        }
        "FLAT" | "VMFS" => ExtentKind::Flat { offset },
        "SPARSE" => ExtentKind::Sparse,
        "VMFSSPARSE" | "SESPARSE" => {
            return Err(ImageError::Unsupported(format!(
                "it is an ESXi snapshot ({kind})"
            )));
        }
        _ => {
            return Err(ImageError::Unsupported(format!(
                "it has an extent of the kind {}",
                escape(kind)
            )));
        }
    };
    // Whatever it is: a guest has no access to it, and neither has anybody else.
    if access == "NOACCESS" {
        return Err(ImageError::Unsupported(
            "it has an extent without access".into(),
        ));
    }
    Ok(Some(Extent {
        sectors,
        kind,
        file: Some(file.ok_or_else(corrupt)?),
        writable: access == "RW",
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_vmware_writes() {
        let text = "# Disk DescriptorFile\nversion=1\nCID=fffffffe\nparentCID=ffffffff\n\
            createType=\"twoGbMaxExtentFlat\"\n\n\
            # Extent description\nRW 4192256 FLAT \"a disk-f001.vmdk\" 0\nRW 2048 ZERO\n\
            RDONLY 12 SPARSE \"b.vmdk\"\n\n\
            # The Disk Data Base\n#DDB\nddb.adapterType = \"lsilogic\"\n";
        assert!(
            begins(text.as_bytes())
                && begins(b"\n# made by hand\n# Disk DescriptorFile\n")
                && !begins(b"#!/bin/sh\n")
        );
        let disk = Descriptor::parse(text.as_bytes()).unwrap();
        assert_eq!(
            (disk.create_type.as_str(), disk.is_snapshot),
            ("twoGbMaxExtentFlat", false)
        );
        let flat = ExtentKind::Flat { offset: 0 };
        let expected = [
            Extent {
                sectors: 4_192_256,
                kind: flat,
                file: Some("a disk-f001.vmdk".into()),
                writable: true,
            },
            Extent {
                sectors: 2048,
                kind: flat,
                file: None,
                writable: false,
            },
            Extent {
                sectors: 12,
                kind: ExtentKind::Sparse,
                file: Some("b.vmdk".into()),
                writable: false,
            },
        ];
        assert_eq!(disk.extents, expected);
        let delta = "parentCID=abcd0123\nparentFileNameHint=\"node1.vmdk\"\n";
        let disk = Descriptor::parse(delta.as_bytes()).unwrap();
        assert_eq!(
            (disk.is_snapshot, disk.parent.as_deref()),
            (true, Some("node1.vmdk"))
        );
    }

    #[test]
    fn nonsense_is_refused() {
        for line in [
            "RW",
            "RW x FLAT \"a\"",
            "RW 1 FLAT",
            "RW 1 FLAT \"a",
            "RW 1 FLAT \"a\" x",
            "RW 1 VMFSRDM \"a\"",
            "RW 1 VMFSSPARSE \"a\"",
            "NOACCESS 1 FLAT \"a\"",
        ] {
            assert!(Descriptor::parse(line.as_bytes()).is_err(), "{line}");
        }
        assert!(Descriptor::parse("RW 1 ZERO\n".repeat(MAX_FILES + 1).as_bytes()).is_err());
        assert!(Descriptor::parse(&[0xff; 100]).unwrap().extents.is_empty());
    }
}
