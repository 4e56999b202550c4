//! What only the ISO needs: mounts, modules, consoles, disks, settings, menu.
//!
//! ```text
//! PID 1 (init) ─► console ─► session ─► `rescue inspect|repair …`, or a shell
//!  mounts,         all          modules, disks,
//!  reaps,          consoles     findings, menu
//!  respawns        are one
//! ```
//!
//! Each arrow is a child process of the same binary: whatever dies, its parent goes on, and the
//! last of them does next to nothing. A dead session leaves a shell, a dead console is started
//! again, and PID 1 never ends, because the kernel would panic.

mod coldplug;
mod console;
pub(crate) mod disks;
mod init;
mod modprobe;
mod modules;
mod options;
mod pattern;
mod power;
mod role;
mod session;

use std::process::ExitCode;

/// Runs what this process is in the ISO: PID 1, the kernel's modprobe, or one of PID 1's helpers.
/// `None` for the ordinary command.
///
/// PID 1 alone is not enough to be init: the first process of a container is PID 1 too.
pub fn dispatch() -> Option<ExitCode> {
    let mut arguments = std::env::args_os();
    let name = arguments.next()?;
    let name = std::path::Path::new(&name)
        .file_name()?
        .to_str()?
        .to_owned();
    let rest: Vec<String> = arguments
        .map(|argument| argument.to_string_lossy().into_owned())
        .collect();
    match name.as_str() {
        "init" if std::process::id() == 1 => Some(init::run()),
        "modprobe" => Some(modprobe::run(&rest)),
        role::PROGRAM => Some(role::run(&rest)),
        _ => None,
    }
}
