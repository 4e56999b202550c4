//! Joins all consoles (screen, serial line) to one pseudo terminal: every one of them shows
//! everything, and input comes from any.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::{ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::process::{Child, ExitCode, ExitStatus};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::pty::{PtyMaster, grantpt, posix_openpt, ptsname_r, unlockpt};
use rustix::termios::{
    OptionalActions, Termios, Winsize, tcdrain, tcgetattr, tcgetwinsize, tcsetattr, tcsetwinsize,
};

use super::power::{Stop, stop};
use super::role;

/// A session that exits with this wants the machine off.
pub const EXIT_POWER_OFF: u8 = 91;
/// … or started again.
pub const EXIT_REBOOT: u8 = 92;
/// … or a shell.
pub const EXIT_SHELL: u8 = 93;

/// A console that takes no more (a serial line with nobody at the other end) loses its oldest
/// output beyond this.
const MAX_BACKLOG: usize = 1 << 20;
/// How long the last words may take before the machine stops. At 9600 baud this is about 14 KiB.
const FAREWELL: Duration = Duration::from_secs(15);
/// How soon a dead child is noticed.
const TICK_MS: u16 = 200;

/// The kernel's consoles as device files.
pub fn active() -> Vec<String> {
    parse_active(&fs::read_to_string("/sys/class/tty/console/active").unwrap_or_default())
}

/// `tty0 ttyS0`. tty0 is whichever screen is in front; we stay on the first.
fn parse_active(text: &str) -> Vec<String> {
    let device = |name: &str| format!("/dev/{}", if name == "tty0" { "tty1" } else { name });
    let mut devices: Vec<String> = text.split_whitespace().map(device).collect();
    devices.dedup();
    devices
}

/// Serves sessions and shells, one after the other, for ever.
pub fn run() -> Result<ExitCode> {
    let mut desk = Desk::open()?;
    let mut next = role::SESSION;
    loop {
        let status = desk.serve(next)?;
        next = match status.code().and_then(|code| u8::try_from(code).ok()) {
            Some(EXIT_POWER_OFF) => desk.stop(Stop::PowerOff),
            Some(EXIT_REBOOT) => desk.stop(Stop::Reboot),
            // Out of the shell one comes back to the menu.
            _ if next == role::SHELL => role::ATTENDED,
            Some(EXIT_SHELL) => role::SHELL,
            _ => {
                desk.tell(&format!(
                    "\nrescue: ended unexpectedly ({status}). Nothing more is done by itself.\n"
                ));
                role::SHELL
            }
        };
        if next == role::SHELL {
            desk.tell(
                "This is a shell. `rescue --help` says what can be done; `exit` goes to the \
                 menu.\n",
            );
        }
    }
}

/// The consoles and the pseudo terminal between them and whoever works.
struct Desk {
    consoles: Vec<Console>,
    master: PtyMaster,
    slave: PathBuf,
    /// Kept open: a master whose last slave was closed gives only errors.
    kept: File,
    /// How the kernel makes a terminal.
    modes: Termios,
}

impl Desk {
    fn open() -> Result<Self> {
        let master =
            posix_openpt(OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC)
                .context("opening a pseudo terminal")?;
        grantpt(&master)?;
        unlockpt(&master)?;
        let slave = PathBuf::from(ptsname_r(&master)?);
        let kept = fs::OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(OFlag::O_NOCTTY.bits())
            .open(&slave)
            .with_context(|| format!("opening {}", slave.display()))?;
        let consoles: Vec<Console> = active()
            .iter()
            .filter_map(|name| Console::open(name).ok())
            .collect();
        let size = consoles.iter().find_map(|console| {
            tcgetwinsize(&console.file)
                .ok()
                .filter(|size| size.ws_row > 0)
        });
        let size = size.unwrap_or(Winsize {
            ws_row: 24,
            ws_col: 80,
            ws_xpixel: 0,
            ws_ypixel: 0,
        });
        let _ = tcsetwinsize(&kept, size);
        let modes = tcgetattr(&kept).context("reading the terminal's modes")?;
        Ok(Self {
            consoles,
            master,
            slave,
            kept,
            modes,
        })
    }

    /// Runs one role on the pseudo terminal until it ends and its output is through.
    fn serve(&mut self, what: &str) -> Result<ExitStatus> {
        // What the last one left (no echo, raw) must not become the next one's.
        let _ = tcsetattr(&self.kept, OptionalActions::Now, &self.modes);
        let mut child = loop {
            match role::spawn_on(&self.slave, what) {
                Ok(child) => break child,
                Err(error) => {
                    self.tell(&format!("rescue: {error:#}\n"));
                    self.flush(Duration::from_secs(2));
                }
            }
        };
        loop {
            self.exchange()?;
            if let Some(status) = ended(&mut child)? {
                while self.read_master()? {}
                return Ok(status);
            }
        }
    }

    /// Waits for something to move, and moves it.
    fn exchange(&mut self) -> Result<()> {
        let mut waits = vec![PollFd::new(self.master.as_fd(), PollFlags::POLLIN)];
        for console in &self.consoles {
            let mut events = PollFlags::POLLIN;
            if !console.backlog.is_empty() {
                events |= PollFlags::POLLOUT;
            }
            waits.push(PollFd::new(console.file.as_fd(), events));
        }
        match poll(&mut waits, PollTimeout::from(TICK_MS)) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(error) => return Err(error).context("waiting for the consoles"),
        }
        let broken = PollFlags::POLLERR | PollFlags::POLLHUP | PollFlags::POLLNVAL;
        let hung: Vec<bool> = waits[1..]
            .iter()
            .map(|w| w.revents().is_some_and(|r| r.intersects(broken)))
            .collect();
        drop(waits);

        self.read_master()?;
        for console in &mut self.consoles {
            let typed = console.read();
            // The master takes what fits; a person does not type faster than that.
            let _ = self.master.write(&typed);
            console.write();
        }
        if hung.iter().any(|hung| *hung) {
            // A console that hangs up would make poll return at once, always.
            thread::sleep(Duration::from_millis(u64::from(TICK_MS)));
        }
        Ok(())
    }

    /// Takes output from the pseudo terminal; gives whether there was some.
    fn read_master(&mut self) -> Result<bool> {
        let mut buffer = [0; 4096];
        match self.master.read(&mut buffer) {
            Ok(0) => Ok(false),
            Ok(count) => {
                for console in &mut self.consoles {
                    console.queue(buffer.get(..count).unwrap_or_default());
                }
                Ok(true)
            }
            Err(error)
                if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) =>
            {
                Ok(false)
            }
            Err(error) => Err(error).context("reading the pseudo terminal"),
        }
    }

    /// Says something on all consoles.
    fn tell(&mut self, text: &str) {
        let text = text.replace('\n', "\r\n");
        for console in &mut self.consoles {
            console.queue(text.as_bytes());
        }
    }

    /// Gives the consoles time to take what is queued.
    fn flush(&mut self, limit: Duration) {
        let start = Instant::now();
        while start.elapsed() < limit
            && self
                .consoles
                .iter()
                .any(|console| !console.backlog.is_empty())
        {
            self.consoles.iter_mut().for_each(Console::write);
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Stops the machine once everything is said; gives what to do when that fails.
    fn stop(&mut self, how: Stop) -> &'static str {
        self.flush(FAREWELL);
        // What the driver holds must leave the machine too; a line with nobody there may not hold
        // us up.
        let files: Vec<File> = self
            .consoles
            .iter()
            .filter_map(|console| console.file.try_clone().ok())
            .collect();
        let drains: Vec<_> = files
            .into_iter()
            .map(|file| thread::spawn(move || tcdrain(&file)))
            .collect();
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(5)
            && drains.iter().any(|drain| !drain.is_finished())
        {
            thread::sleep(Duration::from_millis(20));
        }
        stop(how);
        role::SHELL
    }
}

fn ended(child: &mut Child) -> Result<Option<ExitStatus>> {
    child.try_wait().context("waiting for a child")
}

/// One console, not blocking.
struct Console {
    file: File,
    backlog: VecDeque<u8>,
}

impl Console {
    fn open(path: &str) -> Result<Self> {
        let file = fs::OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags((OFlag::O_NOCTTY | OFlag::O_NONBLOCK).bits())
            .open(path)
            .with_context(|| format!("opening {path}"))?;
        // The pseudo terminal does echo, line editing and signals.
        if let Ok(mut modes) = tcgetattr(&file) {
            modes.make_raw();
            let _ = tcsetattr(&file, OptionalActions::Now, &modes);
        }
        Ok(Self {
            file,
            backlog: VecDeque::new(),
        })
    }

    fn queue(&mut self, bytes: &[u8]) {
        self.backlog.extend(bytes);
        let excess = self.backlog.len().saturating_sub(MAX_BACKLOG);
        self.backlog.drain(..excess);
        self.write();
    }

    fn write(&mut self) {
        while !self.backlog.is_empty() {
            let (head, _) = self.backlog.as_slices();
            match self.file.write(head) {
                Ok(count) if count > 0 => drop(self.backlog.drain(..count)),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                // A console that is gone.
                _ => return self.backlog.clear(),
            }
        }
    }

    fn read(&mut self) -> Vec<u8> {
        let mut buffer = [0; 256];
        let count = self.file.read(&mut buffer).unwrap_or(0);
        buffer.get(..count).unwrap_or_default().to_vec()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_consoles_as_device_files() {
        assert_eq!(parse_active("tty0 ttyS0\n"), ["/dev/tty1", "/dev/ttyS0"]);
        assert_eq!(parse_active("ttyS0\n"), ["/dev/ttyS0"]);
        assert_eq!(parse_active(""), Vec::<String>::new());
    }
}
