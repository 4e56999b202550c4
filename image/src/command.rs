//! Runs other programs and keeps their last words for the error.

use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

/// Runs a command to its end and gives what it printed; its standard error is in the error when it
/// fails.
pub fn output(command: &mut Command) -> Result<Vec<u8>> {
    let name = command.get_program().to_string_lossy().into_owned();
    let result = command
        .stdin(Stdio::null())
        .env("LC_ALL", "C")
        .env("TZ", "UTC")
        .output()
        .with_context(|| format!("running {name}"))?;
    if !result.status.success() {
        bail!(
            "{name} failed ({}): {}",
            result.status,
            String::from_utf8_lossy(&result.stderr).trim()
        );
    }
    Ok(result.stdout)
}

/// [`output`] for commands whose output does not matter.
pub fn run(command: &mut Command) -> Result<()> {
    output(command).map(drop)
}

/// [`output`] as text.
pub fn text(command: &mut Command) -> Result<String> {
    Ok(String::from_utf8_lossy(&output(command)?).into_owned())
}
