use super::*;
use crate::base::ui::Silent;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

fn sh(script: &str, image: &Path) {
    let ran = Command::new("sh")
        .args(["-ec", script, "sh"])
        .arg(image)
        .output()
        .unwrap();
    assert!(ran.status.success(), "{script}: {ran:?}");
}

/// A new file system with some files in it, made by a shell script that is given the image as `$1`.
fn image(length: u64, make: &str) -> tempfile::NamedTempFile {
    let image = tempfile::NamedTempFile::new().unwrap();
    image.as_file().set_len(length).unwrap();
    sh(make, image.path());
    image
}

fn verdict(image: &tempfile::NamedTempFile) -> Verdict {
    let before = crate::base::hash::sha256_hex(&std::fs::read(image.path()).unwrap());
    let found = find(&[Disk::open(image.path()).unwrap()]).unwrap();
    let verdict = look(&found.file_systems[0], &Silent).expect("this test needs root");
    assert_eq!(
        crate::base::hash::sha256_hex(&std::fs::read(image.path()).unwrap()),
        before,
        "looking changed the disk"
    );
    verdict
}

/// Leaves 300 files in the journal only.
const LEAVE_DIRTY: &str =
    "m=$(mktemp -d); mount -o loop \"$1\" $m; for i in $(seq 300); do echo $i >$m/$i; done;
    xfs_io -x -c syncfs -c 'shutdown -f' $m; umount $m; rmdir $m";

const EXT4: &str = "mkfs.ext4 -q -F -d /etc/default \"$1\"";
const XFS: &str = "mkfs.xfs -q \"$1\"";
const BTRFS: &str = "mkfs.btrfs -q \"$1\"";

#[test]
fn sound_file_systems_of_every_kind_are_clean() {
    for (length, make, kind) in [
        (32, EXT4, "ext4"),
        (32, "mkfs.ext2 -q -F \"$1\"", "ext2"),
        (300, XFS, "xfs"),
        (128, BTRFS, "btrfs"),
    ] {
        let verdict = verdict(&image(length << 20, make));
        assert_eq!(
            (verdict.kind.as_str(), &verdict.condition),
            (kind, &Condition::Clean),
            "{verdict:?}"
        );
        assert!(!verdict.needs_mending());
    }
}

#[test]
fn a_dirty_journal_is_no_damage() {
    for (length, make) in [(32, EXT4), (300, XFS)] {
        let image = image(length << 20, make);
        sh(LEAVE_DIRTY, image.path());
        let verdict = verdict(&image);
        assert_eq!(
            (&verdict.condition, &verdict.journal),
            (&Condition::Clean, &Journal::Replayed),
            "{verdict:?}"
        );
    }
}

/// What was fsynced after the last commit is in the log tree; the power goes.
const LEAVE_LOG_TREE: &str =
    "m=$(mktemp -d); mount -o loop,commit=300 \"$1\" $m; sync -f $m; echo x >$m/x; sync $m/x;
    cp --sparse=always \"$1\" \"$1\".cut; umount $m; rmdir $m; mv \"$1\".cut \"$1\"";

#[test]
fn a_log_tree_is_no_damage() {
    let image = image(128 << 20, BTRFS);
    sh(LEAVE_LOG_TREE, image.path());
    let verdict = verdict(&image);
    assert_eq!(
        (&verdict.condition, &verdict.journal),
        (&Condition::Clean, &Journal::Replayed),
        "{verdict:?}"
    );
}

#[test]
fn damage_is_found() {
    // A folder's inode is wiped: what was in it is lost.
    let ext4 = image(32 << 20, EXT4);
    sh("debugfs -w -R 'clri <2>' \"$1\" 2>/dev/null", ext4.path());
    // The root inode's block: group 0's inode chunk, at the place that xfs_db names.
    let xfs = image(300 << 20, XFS);
    sh(
        "xfs_db -x -c 'inode 128' -c 'write -d core.mode 0' \"$1\" >/dev/null",
        xfs.path(),
    );
    for (image, kind) in [(ext4, "ext4"), (xfs, "xfs")] {
        let verdict = verdict(&image);
        assert_eq!(
            (verdict.kind.as_str(), &verdict.condition),
            (kind, &Condition::Damaged),
            "{verdict:?}"
        );
        assert!(verdict.needs_mending() && !verdict.said.is_empty());
    }
}

#[test]
fn damage_of_a_btrfs_is_found() {
    let btrfs = image(128 << 20, BTRFS);
    // Both copies of every leaf and node of the trees; the superblocks stay.
    let bytes = std::fs::read(btrfs.path()).unwrap();
    let fsid = &bytes[0x1_0020..0x1_0030];
    let file = File::options().write(true).open(btrfs.path()).unwrap();
    let mut wiped = 0;
    for at in (0..bytes.len() - 4096)
        .step_by(16 << 10)
        .filter(|at| *at != 0x1_0000 && *at != 64 << 20)
    {
        // A tree block: the file system's id at 0x20, and the owner's, the root tree, at 0x58.
        if &bytes[at + 0x20..at + 0x30] == fsid && bytes[at + 0x58] == 5 {
            file.write_all_at(&[0xff; 64], at as u64 + 0x65).unwrap();
            wiped += 1;
        }
    }
    assert!(wiped > 0, "no tree block was found");
    let verdict = verdict(&btrfs);
    assert_eq!(verdict.condition, Condition::Damaged, "{verdict:?}");
}

#[test]
fn an_error_flag_needs_mending_even_where_nothing_is_found() {
    let image = image(32 << 20, EXT4);
    sh(
        "debugfs -w -R 'ssv state 2' \"$1\" 2>/dev/null",
        image.path(),
    );
    let verdict = verdict(&image);
    assert!(verdict.error_flag && verdict.needs_mending(), "{verdict:?}");
}

#[test]
fn a_lost_superblock_is_damage() {
    let image = image(32 << 20, EXT4);
    let file = File::options().write(true).open(image.path()).unwrap();
    // The magic number stays.
    file.write_all_at(&[0xff; 0x38], 1024).unwrap();
    let verdict = verdict(&image);
    assert_eq!(verdict.condition, Condition::Damaged, "{verdict:?}");
}

#[test]
fn an_unknown_feature_is_not_damage() {
    let image = image(32 << 20, "mkfs.ext4 -q -F -O ^metadata_csum \"$1\"");
    // s_feature_incompat: a bit that nobody uses.
    let mut features = [0; 4];
    image
        .as_file()
        .read_exact_at(&mut features, 1024 + 0x60)
        .unwrap();
    features[3] |= 0x80;
    image
        .as_file()
        .write_all_at(&features, 1024 + 0x60)
        .unwrap();
    let verdict = verdict(&image);
    assert!(
        matches!(verdict.condition, Condition::NotChecked { .. }),
        "{verdict:?}"
    );
    assert!(!verdict.needs_mending());
}
