//! Files that a command leaves on this machine, never on a guest.

use crate::base::shell;
use std::fs::OpenOptions;
use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use anyhow::{Context as _, Result};

use crate::base::refusal::Refusal;

/// Refuses early what [`write`] would refuse late.
pub fn refuse_existing(path: &Path, force: bool) -> Result<()> {
    match path.symlink_metadata().is_ok() && !force {
        true => Err(exists(path).into()),
        false => Ok(()),
    }
}

/// Writes a new file with this mode from its first byte; an existing one is replaced only with
/// `force`, and then whole or not at all.
pub fn write(path: &Path, bytes: &[u8], mode: u32, force: bool) -> Result<()> {
    let shown = shell::quoted(path);
    let mut beside = path.as_os_str().to_owned();
    beside.push(".part");
    let target = if force { Path::new(&beside) } else { path };
    if force {
        let _ = std::fs::remove_file(target);
    }
    let mut file = match OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(target)
    {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::AlreadyExists => return Err(exists(path).into()),
        Err(error) => return Err(error).with_context(|| format!("making {shown}")),
    };
    let written = file.write_all(bytes).and_then(|()| file.sync_all());
    let written = written.and_then(|()| {
        if force {
            std::fs::rename(target, path)
        } else {
            Ok(())
        }
    });
    if let Err(error) = written {
        // Half a file would be taken for a whole one.
        let _ = std::fs::remove_file(target);
        return Err(error).with_context(|| format!("writing {shown}"));
    }
    Ok(())
}

fn exists(path: &Path) -> Refusal {
    Refusal::new(
        format!("{} is there already", shell::quoted(path)),
        "it would be overwritten",
        "name another file with -o, or add --force to replace it",
    )
}

/// Reads a file that travels; larger ones are none of ours.
pub fn read(path: &Path) -> Result<Vec<u8>> {
    const LIMIT: u64 = 16 << 20;
    let shown = shell::quoted(path);
    let meta = std::fs::metadata(path).with_context(|| format!("looking at {shown}"))?;
    if !meta.is_file() || meta.len() > LIMIT {
        return Err(Refusal::new(
            format!("{shown} is no file of up to 16 MiB"),
            "it cannot be what rescue wrote",
            "check the name: the disk comes first, the file last",
        )
        .into());
    }
    std::fs::read(path).with_context(|| format!("reading {shown}"))
}
