//! Makes the disk of the outage with the tests' own builder, for the demo, the measurements, and
//! trying things by hand.

use std::path::PathBuf;

use anyhow::{Result, bail, ensure};
use argh::FromArgs;
use tests::disk::{DiskBuilder, FileSystem, GIB, MIB, Partition, Table};
use tests::{fill, fixtures};

/// Makes the image of a dead kubeadm control plane: a real node's files, certificates that expired
/// in 2024, and a root file system filled with logs until root gets "No space left on device".
#[derive(FromArgs)]
struct Arguments {
    /// the image to write; replaced when it exists
    #[argh(positional)]
    out: PathBuf,
    /// its size, with M or G (default 8G)
    #[argh(option, default = "8 * GIB", from_str_fn(size))]
    size: u64,
    /// TABLE-FILESYSTEM: gpt, mbr, logical or bare, and ext4 or xfs (default gpt-ext4)
    #[argh(option, default = "(Table::Gpt, FileSystem::Ext4)", from_str_fn(kind))]
    kind: (Table, FileSystem),
    /// bytes per sector: 512 or 4096 (default 512)
    #[argh(option, default = "512")]
    sector: u64,
    /// what runs out: space, inodes or nothing (default space)
    #[argh(option, default = "String::from(\"space\")")]
    full: String,
}

fn main() -> Result<()> {
    let arguments: Arguments = argh::from_env();
    ensure!(
        rustix::process::geteuid().is_root(),
        "making disks needs root: run it with sudo"
    );
    let (table, file_system) = arguments.kind;
    let mut root = Partition::new(file_system, "/").uuid(fixtures::ROOT_UUID);
    if arguments.full == "inodes" {
        root = match file_system {
            FileSystem::Ext4 => root.mkfs(["-N", "4096"]),
            _ => bail!("only ext4 runs out of inodes"),
        };
    }
    let disk = DiskBuilder::new(arguments.size)
        .sector_size(arguments.sector)
        .table(table)
        .partition(root);
    let disk = disk.build(&arguments.out)?;
    disk.mounted(|root| {
        fixtures::unpack_control_plane(root)?;
        match arguments.full.as_str() {
            "space" => fill::to_enospc(root),
            "inodes" => fill::inodes(root),
            "nothing" => Ok(()),
            other => bail!("--full takes space, inodes or nothing, not {other:?}"),
        }
    })
}

fn size(text: &str) -> Result<u64, String> {
    let unit = if text.ends_with('M') { MIB } else { GIB };
    let number: u64 = text
        .trim_end_matches(['M', 'G'])
        .parse()
        .map_err(|_| format!("not a size: {text:?}"))?;
    number
        .checked_mul(unit)
        .ok_or_else(|| format!("not a size: {text:?}"))
}

fn kind(text: &str) -> Result<(Table, FileSystem), String> {
    let (table, file_system) = text
        .split_once('-')
        .ok_or("give TABLE-FILESYSTEM, for example gpt-ext4")?;
    let table = match table {
        "gpt" => Table::Gpt,
        "mbr" => Table::Mbr,
        "logical" => Table::MbrLogical,
        "bare" => Table::Bare,
        other => return Err(format!("no such partition table: {other:?}")),
    };
    match file_system {
        "ext4" => Ok((table, FileSystem::Ext4)),
        "xfs" => Ok((table, FileSystem::Xfs)),
        other => Err(format!("no such file system: {other:?}")),
    }
}
