//! Prints what openssl, etcd and the kernel say of a control plane's disk: one row per line, name
//! and value divided by a tab. Exit code 0 when nothing is left to mend, 1 otherwise.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use argh::FromArgs;
use tests::{Disk, judge};

/// Judges the disk image of a control plane with openssl, etcd and the kernel, changing nothing.
#[derive(FromArgs)]
struct Arguments {
    /// the image
    #[argh(positional)]
    image: PathBuf,
}

fn main() -> Result<ExitCode> {
    let arguments: Arguments = argh::from_env();
    let judgement = judge::disk(&Disk::open(&arguments.image, 512)?)?;
    for (name, value) in judgement.rows() {
        println!("{name}\t{value}");
    }
    Ok(if judgement.healthy() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
