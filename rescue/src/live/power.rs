//! Off and on again.

use std::fs;
use std::thread;
use std::time::Duration;

use nix::sys::reboot::{RebootMode, reboot};

/// How the machine stops.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// Off.
    PowerOff,
    /// And on again.
    Reboot,
}

/// Writes everything out and stops the machine. Returns only when the kernel refuses.
pub fn stop(how: Stop) {
    nix::unistd::sync();
    let mode = match how {
        Stop::PowerOff => RebootMode::RB_POWER_OFF,
        Stop::Reboot => RebootMode::RB_AUTOBOOT,
    };
    let Err(error) = reboot(mode);
    say(&format!("rescue: cannot stop the machine: {error}\n"));
    thread::sleep(Duration::from_secs(1));
}

/// To the console, whatever it is worth: PID 1 must not die of a failed `println!`.
pub fn say(text: &str) {
    let _ = fs::write("/dev/console", text);
}
