//! Processes of this machine that have a file or device open for writing.

use std::fs;
use std::path::{Path, PathBuf};

/// A process that has one of the paths open for writing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Opener {
    /// Process id.
    pub pid: u32,
    /// Name of its program, as the kernel shows it.
    pub name: String,
    /// Which path.
    pub path: PathBuf,
}

/// The first other process that has one of `paths` open for writing. Goes by the names in /proc,
/// never by opening or stating them, because a descriptor on a dead network share would hang us.
pub fn writing(paths: &[PathBuf]) -> Option<Opener> {
    let own = std::process::id();
    let processes = fs::read_dir("/proc").ok()?.flatten();
    processes
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|pid| *pid != own)
        .find_map(|pid: u32| writing_in(pid, paths))
}

fn writing_in(pid: u32, paths: &[PathBuf]) -> Option<Opener> {
    let folder = PathBuf::from(format!("/proc/{pid}"));
    for entry in fs::read_dir(folder.join("fd")).ok()?.flatten() {
        let Ok(target) = fs::read_link(entry.path()) else {
            continue;
        };
        if paths.contains(&target) && is_writable(&folder.join("fdinfo").join(entry.file_name())) {
            let name = fs::read_to_string(folder.join("comm")).unwrap_or_default();
            let name = name.trim().replace(|c: char| c.is_control(), "?");
            return Some(Opener {
                pid,
                name,
                path: target,
            });
        }
    }
    None
}

/// `flags:` in fdinfo is octal; the two lowest bits are the access mode, 0 is reading only.
fn is_writable(fdinfo: &Path) -> bool {
    let text = fs::read_to_string(fdinfo).unwrap_or_default();
    let flags = text.lines().find_map(|line| line.strip_prefix("flags:"));
    flags
        .and_then(|flags| u32::from_str_radix(flags.trim(), 8).ok())
        .is_some_and(|flags| flags & 0o3 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    #[test]
    fn finds_a_writer_and_no_reader() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let paths = [file.path().canonicalize().unwrap()];
        assert_eq!(writing(&paths), None, "our own descriptor does not count");
        let sleeper = |stdout: Stdio, stdin: Stdio| {
            Command::new("sleep")
                .arg("30")
                .stdin(stdin)
                .stdout(stdout)
                .spawn()
                .unwrap()
        };
        let mut reader = sleeper(
            Stdio::null(),
            file.reopen()
                .map(|_| fs::File::open(file.path()).unwrap())
                .unwrap()
                .into(),
        );
        assert_eq!(writing(&paths), None);
        let mut writer = sleeper(file.reopen().unwrap().into(), Stdio::null());
        let found = writing(&paths).unwrap();
        assert_eq!((found.pid, found.name.as_str()), (writer.id(), "sleep"));
        for child in [&mut reader, &mut writer] {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }
}
