//! Writes a cpio archive in the "newc" format that the kernel unpacks
//! (Documentation/driver-api/early-userspace/buffer-format.rst).
//!
//! The same entries give the same bytes: sorted names, owner root, time 0, inodes counted from 1.

use std::collections::BTreeMap;

use anyhow::{Result, bail};

/// What a name stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Entry {
    /// A folder, mode in the low twelve bits.
    Folder(u32),
    /// A file and its mode.
    File(u32, Vec<u8>),
    /// A symbolic link and where it points.
    Link(String),
    /// A character device: mode, major, minor.
    Character(u32, u32, u32),
}

/// An archive under construction; names are relative (`bin/sh`).
#[derive(Debug, Default)]
pub struct Archive {
    entries: BTreeMap<String, Entry>,
}

impl Archive {
    /// Adds an entry and the folders above it; a name can be taken only once.
    pub fn add(&mut self, name: &str, entry: Entry) -> Result<()> {
        if name.is_empty()
            || name.starts_with('/')
            || name.split('/').any(|part| matches!(part, "" | "." | ".."))
        {
            bail!("{name:?} is no name for an archive");
        }
        for (end, _) in name.match_indices('/') {
            let parent = name[..end].to_owned();
            if !matches!(
                self.entries.entry(parent).or_insert(Entry::Folder(0o755)),
                Entry::Folder(_)
            ) {
                bail!("{name}: something above it is not a folder");
            }
        }
        match self.entries.insert(name.to_owned(), entry) {
            None => Ok(()),
            Some(_) => bail!("{name} is twice in the archive"),
        }
    }

    /// The archive's bytes. Sorting puts every folder before what is in it.
    pub fn bytes(&self) -> Result<Vec<u8>> {
        let mut out = Vec::new();
        for (number, (name, entry)) in (1..).zip(&self.entries) {
            write_entry(&mut out, number, name, entry)?;
        }
        write_entry(&mut out, 0, "TRAILER!!!", &Entry::File(0, Vec::new()))?;
        // Archives are concatenated: each ends on a block boundary.
        pad(&mut out, 512);
        Ok(out)
    }
}

fn write_entry(out: &mut Vec<u8>, inode: u32, name: &str, entry: &Entry) -> Result<()> {
    let empty: &[u8] = &[];
    let (mode, links, content, device) = match entry {
        Entry::Folder(mode) => (0o040_000 | mode, 2, empty, (0, 0)),
        Entry::File(0, _) => (0, 1, empty, (0, 0)),
        Entry::File(mode, content) => (0o100_000 | mode, 1, content.as_slice(), (0, 0)),
        Entry::Link(target) => (0o120_777, 1, target.as_bytes(), (0, 0)),
        Entry::Character(mode, major, minor) => (0o020_000 | mode, 1, empty, (*major, *minor)),
    };
    let size = u32::try_from(content.len())?;
    let name_size = u32::try_from(name.len() + 1)?;
    // inode, mode, uid, gid, links, time, size, device, device of the node, name's size, checksum
    // (unused in this format)
    let fields = [
        inode, mode, 0, 0, links, 0, size, 0, 0, device.0, device.1, name_size, 0,
    ];
    out.extend_from_slice(b"070701");
    for field in fields {
        out.extend_from_slice(format!("{field:08X}").as_bytes());
    }
    out.extend_from_slice(name.as_bytes());
    out.push(0);
    pad(out, 4);
    out.extend_from_slice(content);
    pad(out, 4);
    Ok(())
}

fn pad(out: &mut Vec<u8>, boundary: usize) {
    out.resize(out.len().next_multiple_of(boundary), 0);
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::process::{Command, Stdio};

    use super::*;

    fn sample() -> Archive {
        let mut archive = Archive::default();
        archive
            .add("init", Entry::File(0o755, b"#!/bin/sh\n".to_vec()))
            .unwrap();
        archive
            .add("sbin/modprobe", Entry::Link("/init".into()))
            .unwrap();
        archive
            .add("dev/console", Entry::Character(0o600, 5, 1))
            .unwrap();
        archive
    }

    #[test]
    fn is_read_by_cpio() {
        let mut child = Command::new("cpio")
            .args(["--list", "--verbose", "--numeric-uid-gid"])
            .env("TZ", "UTC")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("cpio (apt-get install cpio)");
        child
            .stdin
            .take()
            .unwrap()
            .write_all(&sample().bytes().unwrap())
            .unwrap();
        let text = String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap();
        let lines: Vec<String> = text
            .lines()
            .map(|l| l.split_whitespace().collect::<Vec<_>>().join(" "))
            .collect();
        assert_eq!(
            lines,
            [
                "drwxr-xr-x 2 0 0 0 Jan 1 1970 dev",
                "crw------- 1 0 0 5, 1 Jan 1 1970 dev/console",
                "-rwxr-xr-x 1 0 0 10 Jan 1 1970 init",
                "drwxr-xr-x 2 0 0 0 Jan 1 1970 sbin",
                "lrwxrwxrwx 1 0 0 5 Jan 1 1970 sbin/modprobe -> /init",
            ]
        );
    }

    #[test]
    fn refuses_names_that_escape_or_repeat() {
        for name in ["", "/init", "a/../b", "./a", "a//b"] {
            assert!(sample().add(name, Entry::Folder(0o755)).is_err(), "{name}");
        }
        assert!(sample().add("init", Entry::Folder(0o755)).is_err());
        assert!(sample().add("init/x", Entry::Folder(0o755)).is_err());
    }
}
