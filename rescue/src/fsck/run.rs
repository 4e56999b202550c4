//! Runs a checker: nothing to read from, its words kept within bounds, no control character of a
//! guest let through.

use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::base::escaping::escape;
use crate::base::ui::Ui;

/// A badly damaged file system has a line for every inode. The first say what is wrong, the last
/// how it ended.
const FIRST_LINES: usize = 60;
const LAST_LINES: usize = 20;
/// Longest line that is kept, in bytes.
const LINE: u64 = 400;

/// What a checker did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ran {
    /// Its exit code; `None` when a signal ended it.
    pub code: Option<i32>,
    /// What it said, both outputs together, shortened in the middle.
    pub said: Vec<String>,
    /// How many lines it said in all.
    pub lines: usize,
    /// How long it took.
    pub took: Duration,
}

/// Runs `program words… device` to its end.
///
/// In a process group of its own: Ctrl-C ends Rescue, never a checker in the middle of a write.
pub fn run(program: &Path, words: &[&str], device: &Path, ui: &dyn Ui, what: &str) -> Result<Ran> {
    let started = Instant::now();
    let name = program.display();
    let (reader, writer) = std::io::pipe().context("making a pipe")?;
    let mut command = Command::new(program);
    command
        .args(words)
        .arg(for_others(device))
        .env_clear()
        .env("LC_ALL", "C")
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
    command
        .stdin(Stdio::null())
        .stdout(writer.try_clone().context("duplicating a pipe")?)
        .stderr(writer);
    let mut child = command
        .process_group(0)
        .spawn()
        .with_context(|| format!("starting {name}"))?;
    // Its ends of the pipe must be the only ones, or reading would never end.
    drop(command);
    let progress = ui.begin(what, None);
    let mut kept = Kept::default();
    let mut reader = BufReader::new(reader);
    while let Some(line) = line(&mut reader).with_context(|| format!("reading what {name} says"))? {
        progress.message(&line);
        kept.add(line);
    }
    let status = child
        .wait()
        .with_context(|| format!("waiting for {name}"))?;
    Ok(Ran {
        code: status.code(),
        lines: kept.lines,
        said: kept.into_lines(),
        took: started.elapsed(),
    })
}

/// Our own descriptor, as another process can open it.
fn for_others(device: &Path) -> PathBuf {
    match device.strip_prefix("/proc/self") {
        Ok(rest) => PathBuf::from(format!("/proc/{}", std::process::id())).join(rest),
        Err(_) => device.to_path_buf(),
    }
}

/// The next line that is not empty, its first [`LINE`] bytes; the rest of it is read and forgotten.
/// Progress on one line (`\r`) counts as lines.
fn line(reader: &mut impl BufRead) -> std::io::Result<Option<String>> {
    loop {
        let mut bytes = Vec::new();
        if reader.by_ref().take(LINE).read_until(b'\n', &mut bytes)? == 0 {
            return Ok(None);
        }
        if !bytes.ends_with(b"\n") && bytes.len() as u64 == LINE {
            reader.skip_until(b'\n')?;
        }
        let text = String::from_utf8_lossy(&bytes);
        let text = text
            .trim_end_matches(['\n', '\r'])
            .rsplit('\r')
            .next()
            .unwrap_or_default()
            .trim_end();
        if !text.is_empty() {
            return Ok(Some(escape(text)));
        }
    }
}

#[derive(Default)]
struct Kept {
    first: Vec<String>,
    last: std::collections::VecDeque<String>,
    lines: usize,
}

impl Kept {
    fn add(&mut self, line: String) {
        self.lines += 1;
        if self.first.len() < FIRST_LINES {
            return self.first.push(line);
        }
        if self.last.len() == LAST_LINES {
            self.last.pop_front();
        }
        self.last.push_back(line);
    }

    fn into_lines(self) -> Vec<String> {
        let left_out = self.lines - self.first.len() - self.last.len();
        let mut lines = self.first;
        if left_out > 0 {
            lines.push(format!("… ({left_out} more lines) …"));
        }
        lines.extend(self.last);
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::ui::Silent;

    fn shell(script: &str) -> Ran {
        run(
            Path::new("/bin/sh"),
            &["-c", script],
            Path::new("device"),
            &Silent,
            "",
        )
        .unwrap()
    }

    #[test]
    fn both_outputs_and_the_exit_code_come_back_without_control_characters() {
        let ran = shell("echo one; printf 'a\\033[31m\\n' >&2; exit 4");
        assert_eq!((ran.code, ran.lines), (Some(4), 2));
        assert_eq!(ran.said, ["one", "a\\u{1b}[31m"]);
        assert_eq!(shell("kill -9 $$").code, None);
    }

    #[test]
    fn endless_output_is_kept_within_bounds() {
        let ran = shell("head -c 3000000 /dev/zero | tr '\\0' x; echo; seq 100000; echo end");
        assert_eq!(ran.lines, 100_002);
        assert_eq!(ran.said.len(), FIRST_LINES + LAST_LINES + 1);
        assert!(ran.said[0].len() as u64 <= LINE && ran.said.last().unwrap() == "end");
    }
}
