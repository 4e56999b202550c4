//! One node on many kinds of disks, all made by the real tools: each is opened, inspected, compared
//! file by file with what the kernel shows of a copy, repaired, checked by fsck, judged by openssl,
//! inspected again and undone.

mod files;
mod guestfish;
mod layouts;
mod machine;

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use rescue::disk::Source;
use rescue::guest::discover;
use tests::command::{Cmd, Ran};
use tests::judge;
use tests::programs::rescue_binary;

use layouts::Layout;
use machine::Machine;

fn rescue(words: &[&str], sources: &[PathBuf]) -> Result<Ran> {
    // etcd's data is left out of this node.
    let skip: &[&str] = if matches!(words, ["undo", ..]) {
        &[]
    } else {
        &["--skip", "etcd"]
    };
    Cmd::new(rescue_binary())
        .args(words)
        .args(skip)
        .args(sources)
        .run()
}

fn expect(ran: &Ran, code: i32) -> Result<()> {
    ensure!(
        ran.code == code,
        "exit code {} instead of {code}\n{}",
        ran.code,
        ran.transcript()
    );
    Ok(())
}

fn check(layout: &Layout) -> Result<()> {
    let folder = tempfile::Builder::new()
        .prefix("rescue-matrix-")
        .tempdir()?;
    let machine = Machine::make(layout, folder.path())?;
    let copy = machine.copy(&folder.path().join("copy"))?;
    let sources = machine.images.clone();

    let seen = rescue(&["inspect"], &sources)?;
    expect(&seen, 1)?;
    for words in layout.says {
        ensure!(
            seen.stdout.contains(words),
            "{words:?} was not said\n{}",
            seen.transcript()
        );
    }
    for (image, copied) in sources.iter().zip(&copy.images) {
        Cmd::new("cmp")
            .arg(image)
            .arg(copied)
            .ok()
            .context("looking changed the image")?;
    }
    // A log that waits is replayed by this mount, on the copy.
    let before = copy.mounted(layout, !layout.power_cut, files::of_folder)?;
    let named: Vec<Source> = sources
        .iter()
        .map(|path| Source::Disk(path.clone()))
        .collect();
    let found = discover(&named)?;
    ensure!(found.guests.len() == 1, "{found:?}");
    files::compare(&before, &files::of_guest(&found.guests[0])?)
        .context("the kernel and rescue see different files")?;
    drop(found);

    let repaired = rescue(&["repair", "--yes", "--reuse-keys"], &sources)?;
    expect(&repaired, 0)?;
    machine.check()?;
    machine.mounted(layout, true, |root| {
        for leaf in judge::certificates(root)? {
            ensure!(leaf.verdict.good, "{}: {}", leaf.name, leaf.verdict.says);
        }
        Ok(())
    })?;
    expect(&rescue(&["inspect"], &sources)?, 0)?;

    expect(&rescue(&["undo", "--yes"], &sources)?, 0)?;
    machine.check()?;
    let after = machine.mounted(layout, true, files::of_folder)?;
    files::compare(&before, &after).context("undo did not restore everything")
}

/// A test for each layout, so that they run side by side.
macro_rules! matrix {
    ($($name:ident)*) => {
        $(
            #[test]
            fn $name() -> Result<()> {
                check(&layouts::$name())
            }
        )*

        #[test]
        fn guestfish_reads_the_same() -> Result<()> {
            match std::env::var_os("RESCUE_GUESTFISH") {
                Some(_) => guestfish::compare(vec![$((stringify!($name), layouts::$name())),*]),
                None => Ok(()),
            }
        }

        #[test]
        fn there_are_at_least_25() {
            assert!([$(stringify!($name)),*].len() >= 25);
        }
    };
}

matrix! {
    gpt_ext4 gpt_ext4_with_4k_sectors mbr_ext4 mbr_ext4_with_4k_sectors mbr_logical_ext3 no_table_ext4 gpt_ext2
    ext4_without_a_journal ext4_with_small_blocks ext4_with_inline_data ext4_after_a_power_cut
    gpt_xfs mbr_xfs_with_boot no_table_xfs xfs_with_4k_sectors xfs_after_a_power_cut
    btrfs_without_subvolumes btrfs_of_ubuntu btrfs_of_suse btrfs_with_a_nested_var no_table_btrfs
    everything_on_its_own esp_boot_swap_and_var var_on_a_second_disk a_linked_folder_on_a_second_disk a_bind_mount
    over_our_own_paths
    gpt_primary_header_gone gpt_primary_table_damaged_on_an_enlarged_disk gpt_without_protective_mbr gpt_with_hybrid_mbr
    gpt_with_entries_of_256_bytes
    by_partuuid by_partuuid_of_an_mbr by_partlabel_with_blanks by_nvme_name by_path_name
    lvm_on_mbr_as_centos_makes_it lvm_on_a_whole_disk
}

fn path_text(path: &Path) -> &str {
    path.to_str().expect("test paths are UTF-8")
}
