//! `rescue fsck`, and the look at the file systems before every repair: what the checkers find,
//! what is mended, and what is not touched.

#![cfg(feature = "faulty")]

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};
use tests::command::{Cmd, Ran};
use tests::disk::{Disk, MIB, control_plane};
use tests::programs::{faulty_binary, rescue_faulty};

const NOW: &str = "2026-11-23T08:00:00Z";
/// Where the root file system of [`control_plane`] begins.
const ROOT: &str = "?offset=1048576";

fn text(path: &Path) -> &str {
    path.to_str().expect("test paths are UTF-8")
}

fn rescue(words: &[&str]) -> Result<Ran> {
    rescue_faulty(0, words).run()
}

/// Writes to an ext file system behind everybody's back.
fn debugfs(disk: &Disk, command: &str) -> Result<()> {
    Cmd::new("debugfs")
        .args(["-w", "-R", command])
        .arg(format!("{}{ROOT}", text(&disk.path)))
        .ok()?;
    Ok(())
}

/// A bare file system made by a shell script that is given the image as `$1`.
fn bare(folder: &Path, length: u64, make: &str) -> Result<PathBuf> {
    let image = folder.join("bare.img");
    File::create(&image)?.set_len(length)?;
    shell(make, &image)?;
    Ok(image)
}

fn shell(script: &str, image: &Path) -> Result<Ran> {
    Cmd::new("sh").args(["-ec", script, "sh"]).arg(image).ok()
}

fn sha256(path: &Path) -> Result<String> {
    Ok(rescue::base::hash::sha256_hex(&fs::read(path)?))
}

/// Runs it and expects an exit code, words in its output, and whether the image stays as it is.
#[track_caller]
fn expect(words: &[&str], image: &Path, code: i32, said: &[&str]) -> Result<Ran> {
    let before = sha256(image)?;
    let ran = rescue(words)?;
    ensure!(
        ran.code == code,
        "{} ended with {}\n{}",
        ran.line,
        ran.code,
        ran.transcript()
    );
    for word in said {
        ensure!(
            ran.stdout.contains(word) || ran.stderr.contains(word),
            "no {word:?}:\n{}",
            ran.transcript()
        );
    }
    if !words.contains(&"--yes") {
        ensure!(sha256(image)? == before, "{} changed the disk", ran.line);
    }
    Ok(ran)
}

#[test]
fn what_is_sure_is_mended_after_asking_and_a_repair_waits_for_it() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let disk = control_plane(&folder.path().join("disk.img"), 512 * MIB)?;
    let image = text(&disk.path);
    expect(
        &["fsck", image],
        &disk.path,
        0,
        &["no damage found (e2fsck -f -n"],
    )?;

    // The bitmap forgets a block that a file uses.
    debugfs(&disk, "freeb 20000 2000")?;
    expect(
        &["fsck", image],
        &disk.path,
        1,
        &["DAMAGED", "Free blocks count wrong", "Nothing was written"],
    )?;
    let repair = ["repair", "--yes", "--now", NOW, image];
    let before = disk.sha256()?;
    expect(
        &repair,
        &disk.path,
        3,
        &["is damaged", "rescue fsck", "no file was changed"],
    )?;
    ensure!(
        disk.sha256()? == before,
        "a refused repair changed the disk"
    );

    let ran = expect(&["fsck", "--json", "--yes", image], &disk.path, 0, &[])?.json()?;
    let root = &ran["file_systems"][0];
    ensure!(
        root["state"] == "damaged" && root["after"]["state"] == "clean",
        "{ran:#}"
    );
    ensure!(
        root["mended"]["command"] == "e2fsck -f -p" && root["left"].is_null(),
        "{ran:#}"
    );
    disk.assert_clean()?;
    expect(&repair, &disk.path, 0, &["Repaired"])?;
    Ok(())
}

#[test]
fn what_needs_an_answer_is_mended_only_when_that_is_asked_for() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let disk = control_plane(&folder.path().join("disk.img"), 512 * MIB)?;
    let image = text(&disk.path);
    debugfs(&disk, "clri /etc")?;
    expect(
        &["fsck", "--yes", image],
        &disk.path,
        1,
        &["DAMAGED", "--answer-yes"],
    )?;
    let ran = expect(
        &["fsck", "--yes", "--answer-yes", image],
        &disk.path,
        0,
        &["e2fsck -f -y"],
    )?;
    ensure!(
        ran.stdout.contains("Looked again") && ran.stdout.contains("no damage found"),
        "{}",
        ran.transcript()
    );
    disk.assert_clean()
}

#[test]
fn the_error_flag_alone_is_mended_and_named_by_the_refusal() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let disk = control_plane(&folder.path().join("disk.img"), 512 * MIB)?;
    let image = text(&disk.path);
    debugfs(&disk, "ssv state 2")?;
    let repair = ["repair", "--yes", "--now", NOW, image];
    expect(
        &repair,
        &disk.path,
        3,
        &["has errors", &format!("rescue fsck {image}")],
    )?;
    // Not even without the look: the file system says it of itself.
    expect(
        &["repair", "--yes", "--no-fsck", "--now", NOW, image],
        &disk.path,
        3,
        &["has errors"],
    )?;
    expect(&["fsck", image], &disk.path, 1, &["error flag"])?;
    expect(&["fsck", "--yes", image], &disk.path, 0, &["e2fsck -f -p"])?;
    expect(&repair, &disk.path, 0, &["Repaired"])?;
    Ok(())
}

#[test]
fn a_missing_checker_is_named_and_stops_no_repair() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let disk = control_plane(&folder.path().join("disk.img"), 512 * MIB)?;
    let image = text(&disk.path);
    // A machine without the program, for one command.
    let without = |words: &str| {
        let script = format!(
            "mount --bind /dev/null /usr/sbin/e2fsck && exec {} {words} {image}",
            text(&faulty_binary())
        );
        Cmd::new("unshare")
            .args(["--mount", "sh", "-ec", &script])
            .env("RESCUE_ABORT_AT", "0")
            .run()
    };
    let ran = without("fsck")?;
    ensure!(
        ran.code == 0 && ran.stdout.contains("apt-get install e2fsprogs"),
        "{}",
        ran.transcript()
    );
    let ran = without(&format!("repair --yes --now {NOW}"))?;
    ensure!(
        ran.code == 0 && ran.stderr.contains("was not checked before writing"),
        "{}",
        ran.transcript()
    );
    disk.assert_clean()
}

#[test]
fn no_fsck_goes_on_without_the_look() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let disk = control_plane(&folder.path().join("disk.img"), 512 * MIB)?;
    debugfs(&disk, "freeb 20000 2000")?;
    let image = text(&disk.path);
    expect(
        &["repair", "--yes", "--now", NOW, image],
        &disk.path,
        3,
        &["--no-fsck"],
    )?;
    expect(
        &["repair", "--yes", "--no-fsck", "--now", NOW, image],
        &disk.path,
        0,
        &["Repaired"],
    )?;
    Ok(())
}

const MAKE_XFS: &str = "mkfs.xfs -q \"$1\"";
/// 300 files that are in the log only.
const LEAVE_DIRTY: &str =
    "m=$(mktemp -d); mount -o loop \"$1\" $m; for i in $(seq 300); do echo $i >$m/$i; done;
    xfs_io -x -c syncfs -c 'shutdown -f' $m; umount $m; rmdir $m";
const COUNT_FILES: &str =
    "m=$(mktemp -d); mount -o loop,ro \"$1\" $m; ls $m | wc -l; umount $m; rmdir $m";

#[test]
fn an_xfs_is_mended_after_its_log_is_replayed_never_without_it() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let image = bare(folder.path(), 320 * MIB, MAKE_XFS)?;
    shell(
        "m=$(mktemp -d); mount -o loop \"$1\" $m; echo >$m/one; stat -c %i $m/one >\"$1.inode\"; \
         umount $m",
        &image,
    )?;
    // A count of links that is wrong: neither mounting nor the log cares.
    shell(
        "xfs_db -x -c \"inode $(cat \"$1.inode\")\" -c 'write -d core.nlinkv2 7' \"$1\" >/dev/null",
        &image,
    )?;
    shell(LEAVE_DIRTY, &image)?;
    expect(
        &["fsck", text(&image)],
        &image,
        1,
        &["DAMAGED", "has to be replayed", "Nothing was written"],
    )?;
    expect(
        &["fsck", "--yes", text(&image)],
        &image,
        0,
        &["xfs_repair ran for", "Looked again"],
    )?;
    shell("xfs_repair -n \"$1\" 2>/dev/null", &image)?;
    let files = shell(COUNT_FILES, &image)?;
    ensure!(
        files.stdout.trim() == "301",
        "the log was thrown away: {}",
        files.stdout
    );
    Ok(())
}

#[test]
fn a_log_that_cannot_be_replayed_is_never_thrown_away() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let image = bare(folder.path(), 320 * MIB, MAKE_XFS)?;
    shell(LEAVE_DIRTY, &image)?;
    expect(
        &["fsck", text(&image)],
        &image,
        0,
        &["no damage found (xfs_repair -n", "has to be replayed"],
    )?;
    // An allocation group counts its free space wrongly: the kernel does not mount that.
    shell(
        "xfs_db -x -c 'agf 3' -c 'write -d freeblks 9' \"$1\" >/dev/null",
        &image,
    )?;
    let before = sha256(&image)?;
    let ran = rescue(&["fsck", "--yes", text(&image)])?;
    ensure!(
        ran.code == 1 && ran.stdout.contains("CANNOT REPLAY"),
        "{}",
        ran.transcript()
    );
    ensure!(
        ran.stdout.contains("xfs_repair -L would throw that away"),
        "{}",
        ran.transcript()
    );
    ensure!(sha256(&image)? == before, "the disk was written to");
    Ok(())
}

#[test]
fn a_damaged_btrfs_is_named_and_left_alone() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let image = bare(folder.path(), 128 * MIB, "mkfs.btrfs -q \"$1\"")?;
    expect(
        &["fsck", text(&image)],
        &image,
        0,
        &["no damage found (btrfs check --readonly"],
    )?;
    let mut bytes = fs::read(&image)?;
    let id = bytes[0x1_0020..0x1_0030].to_vec();
    for at in (0..bytes.len() - 4096)
        .step_by(16 << 10)
        .filter(|at| *at != 0x1_0000 && *at != 64 << 20)
    {
        // Leaves of the file tree (owner 5), both copies.
        if bytes[at + 0x20..at + 0x30] == id[..] && bytes[at + 0x58] == 5 {
            bytes[at + 0x65..at + 0xa5].fill(0xff);
        }
    }
    fs::write(&image, bytes)?;
    let before = sha256(&image)?;
    let ran = rescue(&["fsck", "--yes", text(&image)])?;
    ensure!(
        ran.code == 1 && ran.stdout.contains("never run by Rescue"),
        "{}",
        ran.transcript()
    );
    ensure!(sha256(&image)? == before, "the disk was written to");
    Ok(())
}

/// Subvolumes share one file system: it is looked at once, and damage within one of them is found.
#[test]
fn a_btrfs_with_subvolumes_is_looked_at_whole() -> Result<()> {
    const MAKE: &str = "mkfs.btrfs -q \"$1\"
        unshare --mount sh -ec '
            mkdir \"$1.top\"; mount -o loop \"$1\" \"$1.top\"; cd \"$1.top\"
            btrfs -q subvolume create @; btrfs -q subvolume create @var; btrfs subvolume set-default \"$PWD/@\"
            echo node > @/hostname; echo log > @var/syslog
            btrfs -q subvolume snapshot -r @ @before; cd /; umount \"$1.top\"' sh \"$1\"";
    let folder = tempfile::tempdir()?;
    let image = bare(folder.path(), 128 * MIB, MAKE)?;
    let ran = expect(
        &["fsck", text(&image)],
        &image,
        0,
        &["no damage found (btrfs check --readonly"],
    )?;
    ensure!(
        ran.stdout.matches("no damage found").count() == 1,
        "{}",
        ran.transcript()
    );
    let mut bytes = fs::read(&image)?;
    let id = bytes[0x1_0020..0x1_0030].to_vec();
    let mut damaged = 0;
    for at in (0..bytes.len() - 4096)
        .step_by(16 << 10)
        .filter(|at| *at != 0x1_0000 && *at != 64 << 20)
    {
        // Leaves of the tree of @var, the second subvolume (256 was @).
        if bytes[at + 0x20..at + 0x30] == id[..]
            && bytes[at + 0x58..at + 0x60] == 257_u64.to_le_bytes()
        {
            bytes[at + 0x65..at + 0xa5].fill(0xff);
            damaged += 1;
        }
    }
    ensure!(damaged > 0, "there is no tree 257");
    fs::write(&image, bytes)?;
    expect(
        &["fsck", text(&image)],
        &image,
        1,
        &["btrfs", "never run by Rescue"],
    )?;
    Ok(())
}

#[test]
fn a_disk_that_somebody_uses_is_not_mended() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let image = bare(
        folder.path(),
        32 * MIB,
        "mkfs.ext4 -q -F \"$1\"; debugfs -w -R 'freeb 2000 500' \"$1\"",
    )?;
    let lock = File::open(&image)?;
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive)?;
    let before = sha256(&image)?;
    let ran = rescue(&["fsck", "--yes", text(&image)])?;
    ensure!(
        ran.code == 3 && ran.stderr.contains("is locked by another program"),
        "{}",
        ran.transcript()
    );
    ensure!(sha256(&image)? == before, "the disk was written to");
    Ok(())
}
