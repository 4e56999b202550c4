//! A passphrase: from a file, from the environment, or typed without being shown. It is never
//! printed and never an argument, which every process of a machine could read.

use crate::base::shell;
use anyhow::{Context as _, Result, anyhow};
use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcsetattr};
use std::fs::File;
use std::io::{IsTerminal as _, Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::path::Path;
use zeroize::Zeroizing;

use super::output;
use crate::base::refusal::Refusal;

/// Fewer characters are guessed in no time.
const SHORTEST: usize = 8;
const VARIABLE: &str = "RESCUE_PASSPHRASE";

/// For a new file: long enough, and typed twice.
pub fn choose(file: Option<&Path>) -> Result<Zeroizing<String>> {
    let passphrase = match given(file)? {
        Some(passphrase) => passphrase,
        None => typed_twice()?,
    };
    let length = passphrase.chars().count();
    if length < SHORTEST {
        return Err(Refusal::new(
            format!("the passphrase has {length} characters"),
            "the file holds keys, and a short passphrase is soon guessed",
            format!("take one of at least {SHORTEST} characters, better four words or more"),
        )
        .into());
    }
    Ok(passphrase)
}

/// For a file that is there.
pub fn ask(file: Option<&Path>, of: &str) -> Result<Zeroizing<String>> {
    match given(file)? {
        Some(passphrase) => Ok(passphrase),
        None => type_in(&format!("Passphrase of {of}")),
    }
}

fn given(file: Option<&Path>) -> Result<Option<Zeroizing<String>>> {
    if let Some(path) = file {
        let bytes = Zeroizing::new(output::read(path)?);
        let line =
            first_line(&bytes).with_context(|| format!("reading {}", shell::quoted(path)))?;
        return Ok(Some(line));
    }
    match std::env::var(VARIABLE) {
        Ok(value) if !value.is_empty() => Ok(Some(Zeroizing::new(value))),
        _ => Ok(None),
    }
}

/// Without its line end; spaces belong to it.
fn first_line(bytes: &[u8]) -> Result<Zeroizing<String>> {
    let line = bytes
        .split(|byte| *byte == b'\n')
        .next()
        .unwrap_or_default();
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    // The cause would quote the bytes.
    let text = std::str::from_utf8(line).map_err(|_| anyhow!("the passphrase is not UTF-8"))?;
    Ok(Zeroizing::new(text.to_owned()))
}

fn typed_twice() -> Result<Zeroizing<String>> {
    let first = type_in("Passphrase for the bundle")?;
    if *first != *type_in("The same again")? {
        let next = "run the same command again";
        return Err(Refusal::new("the two passphrases differ", "nothing was written", next).into());
    }
    Ok(first)
}

/// For what can also go without: `None` where there is no terminal to show the question on (an
/// unattended run of the ISO has its errors in a pipe) and to answer it, or nothing was typed.
pub fn try_to_ask(question: &str) -> Option<Zeroizing<Vec<u8>>> {
    if !std::io::stdin().is_terminal() || !std::io::stderr().is_terminal() {
        return None;
    }
    type_in(question)
        .ok()
        .map(|mut typed| Zeroizing::new(std::mem::take(&mut *typed).into_bytes()))
}

fn type_in(question: &str) -> Result<Zeroizing<String>> {
    let stdin = std::io::stdin();
    if !stdin.is_terminal() {
        return Err(Refusal::new(
            "no passphrase was given, and there is no terminal to ask on",
            "the file holds keys and is encrypted",
            format!(
                "--passphrase-file FILE (its first line), or the environment variable {VARIABLE}"
            ),
        )
        .into());
    }
    // Hidden before it is asked for: hiding throws away what was typed until then, and who answers
    // at once has to be heard.
    let hidden = Hidden::new().context("hiding what is typed")?;
    eprint!("{question} (it is not shown; Enter alone stops): ");
    std::io::stderr().flush()?;
    // A terminal gives one line per read; a copy of the descriptor leaves no passphrase in a
    // buffer.
    let mut bytes = Zeroizing::new(vec![0; 4096]);
    let length = File::from(stdin.as_fd().try_clone_to_owned()?)
        .read(&mut bytes)
        .context("reading the passphrase")?;
    drop(hidden);
    let line = first_line(bytes.get(..length).unwrap_or_default())?;
    if line.is_empty() || line.contains('\u{3}') {
        return Err(Refusal::new(
            "no passphrase was typed",
            "nothing was done",
            "run the same command again",
        )
        .into());
    }
    Ok(line)
}

/// The terminal without echo, until dropped. Interrupts wait too, as in getpass(3): they would
/// leave it without echo.
struct Hidden(Termios);

impl Hidden {
    fn new() -> Result<Self> {
        let old = tcgetattr(std::io::stdin())?;
        let mut quiet = old.clone();
        quiet
            .local_modes
            .remove(LocalModes::ECHO | LocalModes::ISIG);
        quiet.local_modes.insert(LocalModes::ECHONL);
        tcsetattr(std::io::stdin(), OptionalActions::Flush, &quiet)?;
        Ok(Self(old))
    }
}

impl Drop for Hidden {
    fn drop(&mut self) {
        let _ = tcsetattr(std::io::stdin(), OptionalActions::Now, &self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_the_first_line_as_it_stands() {
        for (bytes, line) in [
            ("two words \n", "two words "),
            ("a\r\nb\n", "a"),
            ("", ""),
            ("a", "a"),
        ] {
            assert_eq!(*first_line(bytes.as_bytes()).unwrap(), line);
        }
        assert!(!format!("{:#}", first_line(b"secret\xff").unwrap_err()).contains("secret"));
    }
}
