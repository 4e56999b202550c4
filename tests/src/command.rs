//! Running a program with its output kept and its time limited.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{Read as _, Seek as _, Write as _};
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

/// How long a program may take unless [`Cmd::timeout`] says otherwise.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(120);

/// A program about to be run.
#[derive(Debug)]
pub struct Cmd {
    program: OsString,
    arguments: Vec<OsString>,
    environment: Vec<(OsString, OsString)>,
    directory: Option<PathBuf>,
    input: Vec<u8>,
    timeout: Duration,
}

/// What a program did.
#[derive(Debug, Clone)]
pub struct Ran {
    /// The command line, for messages.
    pub line: String,
    /// How it ended; a signal when it was killed, also by the time limit.
    pub status: ExitStatus,
    /// Its exit code; -1 when a signal ended it.
    pub code: i32,
    /// Standard output, lossily decoded.
    pub stdout: String,
    /// Standard error, lossily decoded.
    pub stderr: String,
    /// Wall-clock time.
    pub took: Duration,
}

impl Cmd {
    /// A program by name or path.
    pub fn new(program: impl AsRef<OsStr>) -> Self {
        Self {
            program: program.as_ref().to_owned(),
            arguments: Vec::new(),
            environment: Vec::new(),
            directory: None,
            input: Vec::new(),
            timeout: DEFAULT_TIMEOUT,
        }
    }

    /// One more argument.
    #[must_use]
    pub fn arg(mut self, argument: impl AsRef<OsStr>) -> Self {
        self.arguments.push(argument.as_ref().to_owned());
        self
    }

    /// More arguments.
    #[must_use]
    pub fn args<I: IntoIterator<Item = S>, S: AsRef<OsStr>>(mut self, arguments: I) -> Self {
        self.arguments
            .extend(arguments.into_iter().map(|a| a.as_ref().to_owned()));
        self
    }

    /// An environment variable.
    #[must_use]
    pub fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.environment
            .push((name.as_ref().to_owned(), value.as_ref().to_owned()));
        self
    }

    /// The folder to run in.
    #[must_use]
    pub fn dir(mut self, directory: impl Into<PathBuf>) -> Self {
        self.directory = Some(directory.into());
        self
    }

    /// What it reads on standard input (nothing unless given: never the terminal).
    #[must_use]
    pub fn stdin(mut self, input: impl Into<Vec<u8>>) -> Self {
        self.input = input.into();
        self
    }

    /// Kill it, and all it started, after this long.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Runs it to its end; a bad exit code is not an error here.
    pub fn run(self) -> Result<Ran> {
        let line = self.line();
        // Files rather than pipes: no reader threads, and a grandchild that keeps a pipe open
        // cannot hang the test.
        let (mut out, mut err) = (tempfile::tempfile()?, tempfile::tempfile()?);
        let mut input = tempfile::tempfile()?;
        input.write_all(&self.input)?;
        input.rewind()?;

        let mut command = Command::new(&self.program);
        command
            .args(&self.arguments)
            .envs(self.environment.iter().map(|(k, v)| (k, v)))
            .process_group(0);
        command
            .stdin(Stdio::from(input))
            .stdout(out.try_clone()?)
            .stderr(err.try_clone()?);
        if let Some(directory) = &self.directory {
            command.current_dir(directory);
        }
        let started = Instant::now();
        let mut child = command
            .spawn()
            .with_context(|| format!("starting {line} (is it installed? run scripts/setup)"))?;
        let group = Pid::from_raw(i32::try_from(child.id())?);
        let mut overdue = false;
        let status = loop {
            if let Some(status) = child.try_wait()? {
                break status;
            }
            if started.elapsed() > self.timeout {
                overdue = true;
                // It may have ended this very moment; then there is nothing to kill.
                let _ = killpg(group, Signal::SIGKILL);
                break child.wait()?;
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        let ran = Ran {
            code: status.code().unwrap_or(-1),
            status,
            stdout: read_back(&mut out)?,
            stderr: read_back(&mut err)?,
            took: started.elapsed(),
            line,
        };
        ensure!(
            !overdue,
            "{} was killed after {:?}\n{}",
            ran.line,
            self.timeout,
            ran.transcript()
        );
        Ok(ran)
    }

    /// Runs it and insists on exit code 0.
    pub fn ok(self) -> Result<Ran> {
        let ran = self.run()?;
        ensure!(
            ran.code == 0,
            "{} ended with {}\n{}",
            ran.line,
            ran.status,
            ran.transcript()
        );
        Ok(ran)
    }

    fn line(&self) -> String {
        let words = std::iter::once(&self.program).chain(&self.arguments);
        words
            .map(|w| w.to_string_lossy().into_owned())
            .collect::<Vec<_>>()
            .join(" ")
    }
}

impl Ran {
    /// Both outputs, for a failed assertion.
    pub fn transcript(&self) -> String {
        format!(
            "--- stdout\n{}\n--- stderr\n{}",
            self.stdout.trim_end(),
            self.stderr.trim_end()
        )
    }

    /// Standard output as JSON.
    pub fn json(&self) -> Result<serde_json::Value> {
        serde_json::from_str(&self.stdout).with_context(|| {
            format!(
                "reading the output of {} as JSON\n{}",
                self.line,
                self.transcript()
            )
        })
    }
}

fn read_back(file: &mut File) -> Result<String> {
    let mut bytes = Vec::new();
    file.rewind()?;
    file.read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_code_and_input_come_back() {
        let ran = Cmd::new("sh")
            .args(["-c", "cat; echo no >&2; exit 3"])
            .stdin("yes")
            .run()
            .expect("runs");
        assert_eq!(
            (ran.code, ran.stdout.as_str(), ran.stderr.as_str()),
            (3, "yes", "no\n")
        );
        assert!(Cmd::new("false").ok().is_err());
        assert!(Cmd::new("/does/not/exist").run().is_err());
    }

    #[test]
    fn an_overdue_program_is_killed_with_its_children() {
        let started = Instant::now();
        let ran = Cmd::new("sh")
            .args(["-c", "sleep 60 & sleep 60"])
            .timeout(Duration::from_millis(100))
            .run();
        assert!(ran.is_err());
        assert!(started.elapsed() < Duration::from_secs(10));
    }
}
