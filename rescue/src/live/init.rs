//! PID 1: mounts, starts the console process, reaps, and never ends.

use std::collections::BTreeMap;
use std::fs;
use std::panic;
use std::path::Path;
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use nix::sys::reboot::set_cad_enabled;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use rustix::mount::{MountFlags, mount};

use super::power::{Stop, say, stop};
use super::{console, role};

/// After so many deaths of the console process each console gets a plain shell instead.
const CONSOLE_DEATHS: u32 = 3;

/// File systems of the running system: source and type, target, flags, options. /dev first, so that
/// messages have somewhere to go.
const MOUNTS: &[(&str, &str, MountFlags, &str)] = &[
    ("devtmpfs", "/dev", MountFlags::NOSUID, "mode=0755"),
    ("proc", "/proc", SAFE, ""),
    ("sysfs", "/sys", SAFE, ""),
    (
        "tmpfs",
        "/run",
        MountFlags::NOSUID.union(MountFlags::NODEV),
        "mode=0755",
    ),
    (
        "tmpfs",
        "/tmp",
        MountFlags::NOSUID.union(MountFlags::NODEV),
        "mode=1777",
    ),
    (
        "devpts",
        "/dev/pts",
        MountFlags::NOSUID.union(MountFlags::NOEXEC),
        "mode=0600,ptmxmode=0666",
    ),
    ("securityfs", "/sys/kernel/security", SAFE, ""),
];

const SAFE: MountFlags = MountFlags::NOSUID
    .union(MountFlags::NODEV)
    .union(MountFlags::NOEXEC);

/// Runs as PID 1. Never returns: the kernel panics when PID 1 ends.
pub fn run() -> ExitCode {
    loop {
        if panic::catch_unwind(supervise).is_err() {
            say("rescue: PID 1 stumbled and goes on\n");
        }
        thread::sleep(Duration::from_secs(1));
    }
}

fn supervise() {
    mount_all();
    let _ = rustix::system::sethostname(b"rescue");
    // Ctrl-Alt-Del becomes a SIGINT to us instead of an immediate reset.
    let _ = set_cad_enabled(false);
    let mut signals = SigSet::empty();
    for signal in [
        Signal::SIGCHLD,
        Signal::SIGINT,
        Signal::SIGTERM,
        Signal::SIGUSR1,
        Signal::SIGUSR2,
        Signal::SIGHUP,
    ] {
        signals.add(signal);
    }
    let _ = signals.thread_block();

    let mut children = Children::default();
    loop {
        children.respawn();
        match signals.wait() {
            // What busybox's reboot, poweroff and halt send, and Ctrl-Alt-Del.
            Ok(Signal::SIGTERM | Signal::SIGINT) => stop(Stop::Reboot),
            Ok(Signal::SIGUSR1 | Signal::SIGUSR2) => stop(Stop::PowerOff),
            _ => {}
        }
        children.reap();
    }
}

/// The processes that must be there, by what they serve.
#[derive(Debug, Default)]
struct Children {
    /// The console process, or one shell for each console, and their PIDs.
    running: BTreeMap<String, i32>,
    deaths: u32,
}

impl Children {
    fn respawn(&mut self) {
        if self.deaths < CONSOLE_DEATHS {
            self.ensure("/dev/console", role::CONSOLE);
        } else {
            for name in console::active() {
                self.ensure(&name, role::SHELL);
            }
        }
    }

    fn ensure(&mut self, terminal: &str, what: &str) {
        if self.running.contains_key(terminal) {
            return;
        }
        match role::spawn_on(Path::new(terminal), what) {
            Ok(child) => {
                self.running
                    .insert(terminal.to_owned(), child.id().cast_signed());
            }
            Err(error) => {
                say(&format!(
                    "rescue: cannot start {what} on {terminal}: {error:#}\n"
                ));
                self.deaths += 1;
                thread::sleep(Duration::from_secs(1));
            }
        }
    }

    /// Takes the status of every dead process; orphans come to us.
    fn reap(&mut self) {
        loop {
            let pid = match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::StillAlive) | Err(_) => return,
                Ok(status) => status.pid(),
            };
            let before = self.running.len();
            self.running
                .retain(|_, running| Some(*running) != pid.map(nix::unistd::Pid::as_raw));
            if self.running.len() < before {
                self.deaths += 1;
                // Something that dies at once must not become a busy loop.
                thread::sleep(Duration::from_millis(500));
            }
        }
    }
}

fn mount_all() {
    for (kind, target, flags, options) in MOUNTS {
        let _ = fs::create_dir_all(target);
        if let Err(error) = mount_one(kind, target, *flags, options) {
            say(&format!("rescue: mounting {kind} on {target}: {error}\n"));
        }
    }
}

/// Mounts unless that file system is there already (PID 1 may come here twice).
fn mount_one(kind: &str, target: &str, flags: MountFlags, options: &str) -> rustix::io::Result<()> {
    let options = std::ffi::CString::new(options).unwrap_or_default();
    match mount(kind, target, kind, flags, options.as_c_str()) {
        Err(rustix::io::Errno::BUSY) => Ok(()),
        other => other,
    }
}
