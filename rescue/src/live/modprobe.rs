//! `/sbin/modprobe`: the kernel calls it as `modprobe -q -- fs-xfs` when it wants a module; people
//! may too.

use std::process::ExitCode;

use anyhow::{Result, bail};

use super::modules::Modules;

/// Loads what the arguments name.
pub fn run(arguments: &[String]) -> ExitCode {
    let quiet = arguments.iter().any(|a| a == "-q" || a == "--quiet");
    let names: Vec<&String> = arguments.iter().filter(|a| !a.starts_with('-')).collect();
    match names.first().map(|name| load(name)) {
        Some(Ok(())) => ExitCode::SUCCESS,
        Some(Err(error)) => {
            if !quiet {
                eprintln!("modprobe: {error:#}");
            }
            ExitCode::FAILURE
        }
        None => {
            eprintln!("usage: modprobe [-q] MODULE");
            ExitCode::from(2)
        }
    }
}

/// Loads every module the name or alias stands for; one is enough.
fn load(wanted: &str) -> Result<()> {
    let modules = Modules::open()?;
    let mut result = Ok(());
    let mut loaded = 0;
    for name in modules.resolve(wanted) {
        match modules.load(&name) {
            Ok(_) => loaded += 1,
            Err(error) => result = Err(error),
        }
    }
    match (loaded, result) {
        (0, Ok(())) => bail!("no module for {wanted}"),
        (0, Err(error)) => Err(error),
        _ => Ok(()),
    }
}
