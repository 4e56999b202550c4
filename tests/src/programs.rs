//! The programs under test.

use std::path::{Path, PathBuf};

use crate::command::Cmd;

/// The folder of the workspace.
pub fn workspace() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

/// Where the built `rescue` is: `$RESCUE_BIN`, else the workspace's release build, else its debug
/// build (with a note, because figures taken from it mean nothing).
///
/// # Panics
/// When there is none: the tests then cannot mean anything.
pub fn rescue_binary() -> PathBuf {
    if let Some(given) = std::env::var_os("RESCUE_BIN") {
        return PathBuf::from(given);
    }
    let target = target_folder();
    let release = target.join("release/rescue");
    if release.exists() {
        return release;
    }
    let debug = target.join("debug/rescue");
    assert!(
        debug.exists(),
        "no rescue binary at {}: run `cargo build --release` first",
        release.display()
    );
    eprintln!("note: testing the debug build {}", debug.display());
    debug
}

/// A command line of the built `rescue`.
pub fn rescue<I: IntoIterator<Item = S>, S: AsRef<std::ffi::OsStr>>(arguments: I) -> Cmd {
    Cmd::new(rescue_binary()).args(arguments)
}

/// A command line of `rescue` with fault injection, aborting at the `at`-th crash point (0: never).
pub fn rescue_faulty<I: IntoIterator<Item = S>, S: AsRef<std::ffi::OsStr>>(
    at: u64,
    arguments: I,
) -> Cmd {
    Cmd::new(faulty_binary())
        .env("RESCUE_ABORT_AT", at.to_string())
        .args(arguments)
}

/// Where `rescue-faulty` is. Cargo builds it with the integration tests, next to them.
///
/// # Panics
/// When it was not built.
pub fn faulty_binary() -> PathBuf {
    let beside = std::env::current_exe()
        .ok()
        .and_then(|test| Some(test.parent()?.parent()?.join("rescue-faulty")));
    let candidates = beside
        .into_iter()
        .chain(["debug", "release"].map(|p| target_folder().join(p).join("rescue-faulty")));
    let found = candidates.into_iter().find(|path| path.exists());
    found.expect("no rescue-faulty: run the tests with cargo test -p tests")
}

fn target_folder() -> PathBuf {
    let target = std::env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| workspace().join("target"), PathBuf::from);
    target.join("x86_64-unknown-linux-gnu")
}
