//! The helper processes of PID 1: the same binary under another name, so that each can die alone.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};

use anyhow::{Context, Result};
use nix::sys::signal::{SigSet, Signal};

use super::coldplug::Coldplug;
use super::{console, session};

/// The name by which a helper process knows that it is one.
pub const PROGRAM: &str = "rescue-live";
/// Joins all consoles to one terminal.
pub const CONSOLE: &str = "console";
/// Finds disks, shows findings, asks.
pub const SESSION: &str = "session";
/// The same after a shell: no longer unattended.
pub const ATTENDED: &str = "attended";
/// A shell.
pub const SHELL: &str = "shell";
/// Runs a command in the foreground of the session's terminal.
pub const FOREGROUND: &str = "foreground";

/// Ourselves, wherever we were started from.
pub const OURSELVES: &str = "/proc/self/exe";

/// Runs one role.
pub fn run(arguments: &[String]) -> ExitCode {
    // PID 1 blocks the signals it waits for, and a mask is inherited.
    let _ = SigSet::all().thread_unblock();
    let result = match arguments.split_first() {
        Some((what, _)) if what == CONSOLE => console::run(),
        Some((what, _)) if what == SESSION => take_terminal().and_then(|()| session::run(true)),
        Some((what, _)) if what == ATTENDED => take_terminal().and_then(|()| session::run(false)),
        Some((what, _)) if what == SHELL => take_terminal().and_then(|()| shell()),
        Some((what, rest)) if what == FOREGROUND => foreground(rest),
        _ => Err(anyhow::anyhow!("not to be called by hand")),
    };
    result.unwrap_or_else(|error| {
        eprintln!("rescue: {error:#}");
        ExitCode::FAILURE
    })
}

/// A role, not yet started.
pub fn command(what: &str) -> Command {
    let mut command = Command::new(OURSELVES);
    command.arg0(PROGRAM).arg(what);
    command
        .env("PATH", "/bin:/sbin")
        .env("HOME", "/root")
        .env("TERM", "linux")
        .env("LANG", "C.UTF-8");
    command.current_dir("/root");
    command
}

/// Starts a role with a terminal as its input and output.
pub fn spawn_on(terminal: &Path, what: &str) -> Result<Child> {
    let open = || fs::OpenOptions::new().read(true).write(true).open(terminal);
    let file = open().with_context(|| format!("opening {}", terminal.display()))?;
    command(what)
        .stdin(Stdio::from(file.try_clone()?))
        .stdout(Stdio::from(file.try_clone()?))
        .stderr(Stdio::from(file))
        .spawn()
        .with_context(|| format!("starting {what}"))
}

/// Makes standard input our controlling terminal, so that Ctrl-C and job control work.
fn take_terminal() -> Result<()> {
    rustix::process::setsid().context("starting a session")?;
    // Not every console can be one (/dev/console cannot): then without job control.
    let _ = rustix::process::ioctl_tiocsctty(std::io::stdin());
    Ok(())
}

/// Becomes a shell. Drivers first: without them there may be no keyboard.
fn shell() -> Result<ExitCode> {
    if let Ok(mut coldplug) = Coldplug::new() {
        while coldplug.walk() > 0 {}
    }
    let mut shell = Command::new("/bin/busybox");
    shell.arg0("-sh").env("PS1", "rescue:\\w# ");
    Err(shell.exec()).context("starting /bin/busybox")
}

/// Becomes a command that owns the terminal until it ends: Ctrl-C reaches it and not the session.
fn foreground(arguments: &[String]) -> Result<ExitCode> {
    let (name, rest) = arguments.split_first().context("no command")?;
    rustix::process::setpgid(None, None).context("starting a process group")?;
    // A background group that takes the terminal is stopped by SIGTTOU otherwise.
    let mut output = SigSet::empty();
    output.add(Signal::SIGTTOU);
    output.thread_block()?;
    let _ = rustix::termios::tcsetpgrp(std::io::stdin(), rustix::process::getpid());
    output.thread_unblock()?;
    let program = if name == "rescue" { OURSELVES } else { name };
    Err(Command::new(program).arg0(name).args(rest).exec())
        .with_context(|| format!("starting {name}"))
}
