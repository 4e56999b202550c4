//! What a person at the console sees: disks, findings, menu; or, unattended, the receipt and the
//! end.
//!
//! The work itself is the ordinary command, run as a child: what is mended from the ISO is mended
//! by the same code and flags as on a helper VM, and nothing that happens to it takes the menu
//! along.

use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::process::{Command, ExitCode, ExitStatus, Stdio};

use anyhow::{Context, Result};
use nix::sys::signal::{SigSet, Signal};
use rustix::mount::{MountFlags, mount};
use rustix::termios::{OptionalActions, SpecialCodeIndex, tcgetattr, tcsetattr, tcsetpgrp};

use super::console::{EXIT_POWER_OFF, EXIT_REBOOT, EXIT_SHELL};
use super::disks;
use super::options::{After, Auto, Options};
use super::power::Stop;
use super::role;
use crate::disk::attached::Attached;

/// Exit code of a run that was refused, as of the command.
const REFUSED: i32 = 3;
/// … that failed part-way.
const PART_WAY: i32 = 4;

/// Runs until the person (or `rescue.after`) wants a shell or the machine stopped; the exit code
/// says which.
pub fn run(unattended_allowed: bool) -> Result<ExitCode> {
    own_the_terminal()?;
    let options = Options::parse(
        &fs::read_to_string("/proc/cmdline").context("reading the kernel's command line")?,
    );
    banner(&options);
    let auto = options.auto.filter(|_| unattended_allowed);
    let mut disks = find_disks(&options)?;
    if let Some(auto) = auto {
        let code = unattended(auto, &options, &disks)?;
        println!("rescue: exit {code}");
        return Ok(after(options.after));
    }
    if !disks.is_empty() {
        command("inspect", &options, &disks)?;
    }
    loop {
        match ask()? {
            Choice::Repair | Choice::Undo if disks.is_empty() => {
                println!("There is no disk to repair.")
            }
            Choice::Repair => drop(command("repair", &options, &disks)?),
            Choice::Undo => drop(command("undo", &options, &disks)?),
            Choice::Details => drop(command_with("inspect", &["--details"], &options, &disks)?),
            Choice::Again => {
                disks = find_disks(&options)?;
                command("inspect", &options, &disks)?;
            }
            Choice::Shell => return Ok(ExitCode::from(EXIT_SHELL)),
            Choice::Stop(how) => return Ok(after(After::Stop(how))),
        }
    }
}

fn after(after: After) -> ExitCode {
    ExitCode::from(match after {
        After::Stop(Stop::PowerOff) => EXIT_POWER_OFF,
        After::Stop(Stop::Reboot) => EXIT_REBOOT,
        After::Shell => EXIT_SHELL,
    })
}

/// Ctrl-C ends what runs and not the menu; Ctrl-Z is off, for nothing here could wake a stopped
/// command.
fn own_the_terminal() -> Result<()> {
    let mut signals = SigSet::empty();
    for signal in [
        Signal::SIGINT,
        Signal::SIGTSTP,
        Signal::SIGTTIN,
        Signal::SIGTTOU,
    ] {
        signals.add(signal);
    }
    signals
        .thread_block()
        .context("blocking the terminal's signals")?;
    if let Ok(mut modes) = tcgetattr(io::stdin()) {
        modes.special_codes[SpecialCodeIndex::VSUSP] = 0;
        let _ = tcsetattr(io::stdin(), OptionalActions::Now, &modes);
    }
    Ok(())
}

fn banner(options: &Options) {
    println!(
        "\nRescue {}, Linux {}",
        env!("CARGO_PKG_VERSION"),
        rustix::system::uname().release().to_string_lossy()
    );
    println!("Secure Boot: {}", secure_boot());
    println!("Clock: {} (UTC)", clock());
    for problem in &options.problems {
        println!("Kernel argument not understood: {problem}");
    }
}

/// To the second; a wrong clock is worth seeing at once.
fn clock() -> String {
    let format = time::macros::format_description!("[year]-[month]-[day] [hour]:[minute]:[second]");
    time::OffsetDateTime::now_utc()
        .format(format)
        .unwrap_or_else(|_| "unknown".into())
}

/// From the firmware's variable and the kernel's lockdown.
fn secure_boot() -> String {
    const VARIABLES: &str = "/sys/firmware/efi/efivars";
    if !fs::exists("/sys/firmware/efi").unwrap_or(false) {
        return "no (started by BIOS)".into();
    }
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC | MountFlags::RDONLY;
    let _ = mount("efivarfs", VARIABLES, "efivarfs", flags, None);
    let variable = fs::read(format!(
        "{VARIABLES}/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c"
    ));
    let state = match variable.as_deref() {
        // Four bytes of attributes, then the value.
        Ok([_, _, _, _, 1]) => "enabled",
        Ok([_, _, _, _, 0]) => "disabled",
        _ => "unknown",
    };
    let lockdown = fs::read_to_string("/sys/kernel/security/lockdown").unwrap_or_default();
    // `none [integrity] confidentiality`: the brackets mark the one in force.
    let lockdown = lockdown
        .split_once('[')
        .and_then(|(_, rest)| rest.split_once(']'))
        .map_or("unknown", |(word, _)| word);
    format!("{state} (kernel lockdown: {lockdown})")
}

/// Waits for disks and lists them.
fn find_disks(options: &Options) -> Result<Vec<Attached>> {
    println!("Looking for disks ...");
    let found = disks::wait(options.wait, |disks| {
        print!("\r{} found", disks.len());
        let _ = io::stdout().flush();
    })?;
    println!();
    for problem in &found.problems {
        println!("Driver: {problem}");
    }
    for disk in &found.disks {
        println!(
            "  {:<14} {:>10}  {:<12} {}",
            disk.path(),
            crate::base::units::bytes(disk.size),
            disk.driver,
            disk.model
        );
    }
    if found.disks.is_empty() {
        explain_no_disk(options);
    }
    Ok(found.disks)
}

fn explain_no_disk(options: &Options) {
    println!(
        "No disk was found within {} s (the medium we were started from does not count).",
        options.wait.as_secs()
    );
    let controllers = disks::controllers();
    if controllers.is_empty() {
        println!(
            "This machine shows no storage controller. Next: attach the node's disk to this VM."
        );
        return;
    }
    println!("Storage controllers, and what drives them:");
    for controller in controllers {
        println!("  {controller}");
    }
    println!(
        "Next: attach the node's disk; a controller without a driver needs another type in the \
         VM's settings."
    );
}

/// The unattended run; gives the exit code that stands for it.
fn unattended(auto: Auto, options: &Options, disks: &[Attached]) -> Result<i32> {
    if disks.is_empty() {
        return Ok(REFUSED);
    }
    if !options.problems.is_empty() {
        println!("Refused: an unattended run does not guess what a kernel argument means.");
        return Ok(REFUSED);
    }
    println!("=== rescue receipt");
    let mut command = match auto {
        Auto::Inspect => prepare("inspect", &[], options, disks),
        Auto::Repair if options.all_nodes => prepare("repair", &["--yes"], options, disks),
        // Two systems on the machine's disks: which is meant, nobody is there to say.
        Auto::Repair => prepare("repair", &["--yes", "--one-node"], options, disks),
        Auto::Undo => prepare("undo", &["--yes"], options, disks),
    };
    // Text for a log: no colours, no bars (they are drawn on a terminal only).
    command.env("NO_COLOR", "1").stderr(Stdio::piped());
    let mut child = command.spawn().context("running rescue")?;
    if let Some(errors) = child.stderr.take() {
        pass_on(errors);
    }
    let code = finish(child.wait().context("waiting for rescue")?);
    println!("=== end of rescue receipt");
    Ok(code)
}

/// Notes and errors, line by line, until the command ends.
fn pass_on(errors: impl Read) {
    for line in BufReader::new(errors).split(b'\n').map_while(Result::ok) {
        println!("{}", String::from_utf8_lossy(&line));
    }
}

fn command(name: &str, options: &Options, disks: &[Attached]) -> Result<i32> {
    command_with(name, &[], options, disks)
}

/// Runs `rescue NAME …` on the disks in the foreground and gives its exit code.
fn command_with(name: &str, extra: &[&str], options: &Options, disks: &[Attached]) -> Result<i32> {
    let status = prepare(name, extra, options, disks)
        .status()
        .with_context(|| format!("running rescue {name}"))?;
    Ok(finish(status))
}

fn prepare(name: &str, extra: &[&str], options: &Options, disks: &[Attached]) -> Command {
    let mut command = role::command(role::FOREGROUND);
    command
        .args(["rescue", name])
        .args(extra)
        .args(options.flags_for(name))
        .args(disks.iter().map(Attached::path));
    command
}

/// Takes the terminal back; gives the exit code of the command that had it.
fn finish(status: ExitStatus) -> i32 {
    let _ = tcsetpgrp(io::stdin(), rustix::process::getpgrp());
    status.code().unwrap_or_else(|| {
        println!("\nrescue was ended ({status}).");
        // Part-way, as far as anyone knows.
        PART_WAY
    })
}

/// What the person wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Choice {
    Repair,
    Details,
    Again,
    Undo,
    Shell,
    Stop(Stop),
}

/// The menu: the word to type, what it does, the choice.
const MENU: &[(&str, &str, Choice)] = &[
    ("repair", "show the plan, ask, then mend", Choice::Repair),
    (
        "details",
        "inspect again and show every fact and all evidence",
        Choice::Details,
    ),
    ("inspect", "look for disks and inspect again", Choice::Again),
    (
        "undo",
        "take the newest repair back, after asking",
        Choice::Undo,
    ),
    ("shell", "a shell; `exit` comes back here", Choice::Shell),
    ("reboot", "restart the machine", Choice::Stop(Stop::Reboot)),
    ("off", "power off", Choice::Stop(Stop::PowerOff)),
];

fn ask() -> Result<Choice> {
    loop {
        println!();
        for (number, (word, what, _)) in (1..).zip(MENU) {
            println!("  {number}  {word:<8} {what}");
        }
        print!("rescue> ");
        io::stdout().flush()?;
        let mut line = String::new();
        if io::stdin()
            .lock()
            .read_line(&mut line)
            .context("reading the answer")?
            == 0
        {
            // Ctrl-D.
            return Ok(Choice::Shell);
        }
        match choose(line.trim()) {
            Some(choice) => return Ok(choice),
            None if line.trim().is_empty() => {}
            None => println!("Type one of the numbers or words."),
        }
    }
}

/// By number, or by the beginning of the word where that is enough.
fn choose(answer: &str) -> Option<Choice> {
    let answer = answer.to_lowercase();
    if let Ok(number) = answer.parse::<usize>() {
        return MENU
            .get(number.checked_sub(1)?)
            .map(|(_, _, choice)| *choice);
    }
    let mut fits = MENU
        .iter()
        .filter(|(word, _, _)| !answer.is_empty() && word.starts_with(&answer));
    match (fits.next(), fits.next()) {
        (Some((_, _, choice)), None) => Some(*choice),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_numbers_and_beginnings_of_words() {
        for (answer, expected) in [
            ("1", Some(Choice::Repair)),
            ("7", Some(Choice::Stop(Stop::PowerOff))),
            ("rep", Some(Choice::Repair)),
            ("Shell", Some(Choice::Shell)),
            // repair or reboot? A guess could write.
            ("re", None),
            ("0", None),
            ("8", None),
            ("", None),
            ("yes", None),
        ] {
            assert_eq!(choose(answer), expected, "{answer}");
        }
    }
}
