//! Only `guest/` opens a path of the guest: nowhere else in the program may a file be named to this
//! machine's kernel, but for the places below, each with the reason why no guest has a say in that
//! name. A new place is noticed here, not on somebody's helper machine.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Words that name a file to the kernel.
const NAMES_A_FILE: &[&str] = &[
    "std::fs",
    "fs::read",
    "fs::write",
    "fs::File",
    "fs::metadata",
    "fs::symlink_metadata",
    "fs::canonicalize",
    "fs::exists",
    "fs::copy",
    "fs::rename",
    "fs::remove_",
    "fs::create_dir",
    "fs::hard_link",
    "File::open(",
    "File::create",
    "File::options",
    "OpenOptions",
    "Command::new",
    "rustix::fs::open",
    "rustix::fs::stat",
    "rustix::fs::mknod",
    "rustix::fs::unlink",
    "rustix::fs::rename",
    "rustix::fs::readlink",
    ".canonicalize()",
    ".exists()",
    ".is_file()",
    ".is_dir()",
];

/// `guest/` and `tree/` are the one resolver; its tests and these places are all there is.
const ALLOWED: &[(&str, &str)] = &[
    (
        "change/planned.rs",
        "a type only: the tree below holds the file open",
    ),
    (
        "etcd/read/troubles.rs",
        "the device number of the folder that the user named",
    ),
    ("cli/args.rs", "what the user typed"),
    ("cli/certs/bundle.rs", "what the user typed"),
    ("cli/certs/output.rs", "where the user wants the output"),
    ("cli/certs/passphrase.rs", "what the user typed"),
    ("cli/certs/worker.rs", "what the user typed"),
    ("cli/given.rs", "the key file that the user named"),
    ("disk/attached.rs", "/sys/block and /dev"),
    (
        "disk/btrfs/identity.rs",
        "/dev/btrfs-control, /sys/fs/btrfs and our own devices",
    ),
    (
        "disk/btrfs/subvolumes.rs",
        "below a mount of ours, by descriptor, no link followed",
    ),
    (
        "disk/device_mapper.rs",
        "/dev/mapper/control and our own devices",
    ),
    (
        "disk/export/memory.rs",
        "/proc/self/cgroup and this machine's control groups",
    ),
    (
        "disk/export/mod.rs",
        "a type only: what the guest holds open",
    ),
    (
        "disk/export/server.rs",
        "/dev/fuse and the one file of ours in it",
    ),
    (
        "disk/export/spill.rs",
        "the file that the user names for large journals",
    ),
    (
        "disk/image/files.rs",
        "files that an image names: confined to its folder and those that the user allows",
    ),
    (
        "disk/image/qcow2.rs",
        "the image's own path, for comparison",
    ),
    ("disk/image/vmdk.rs", "the image's own path, for comparison"),
    (
        "disk/loop_device.rs",
        "/dev/loop-control, our own devices, images that the user named",
    ),
    ("disk/luks/kdf.rs", "/proc/meminfo"),
    ("disk/mountinfo.rs", "/proc/self/mountinfo"),
    ("disk/source.rs", "disks that the user named"),
    (
        "plan/etcd/levelled.rs",
        "etcd's own File, which reads through the guest",
    ),
    (
        "etcd/format/file.rs",
        "a type only: what the guest holds open",
    ),
    (
        "etcd/read/member.rs",
        "etcd's own File, which reads through the guest",
    ),
    (
        "etcd/operations/mend.rs",
        "etcd's own File, which reads through the guest",
    ),
    (
        "etcd/operations/rebuild/database.rs",
        "etcd's own File, which reads through the guest",
    ),
    (
        "etcd/operations/rebuild/origin.rs",
        "files that the user named, and etcd's own File, which reads through the guest",
    ),
    (
        "etcd/format/wal/behind_damage.rs",
        "etcd's own File, which reads through the guest",
    ),
    (
        "etcd/format/wal/log.rs",
        "etcd's own File, which reads through the guest",
    ),
    (
        "etcd/write/wal.rs",
        "etcd's own File, which reads through the guest",
    ),
    ("fsck/checker.rs", "where the checkers are on this machine"),
    ("fsck/run.rs", "a checker, on a device of ours"),
    (
        "fuzzing/etcd.rs",
        "etcd's own File, which reads through the guest",
    ),
    ("fuzzing/runs.rs", "a throw-away guest of the fuzzer"),
    ("inventory.rs", "/sys/block"),
    ("live/coldplug.rs", "/sys/devices"),
    ("live/console.rs", "consoles"),
    ("live/disks.rs", "/sys/block"),
    ("live/init.rs", "mount points of the ISO's own system"),
    ("live/modules.rs", "kernel modules of the ISO"),
    ("live/power.rs", "/proc/sys"),
    ("live/role.rs", "consoles, and the programs of the ISO"),
    ("live/session.rs", "/proc, /sys"),
    (
        "mount/mod.rs",
        "devices of ours; below a mount by descriptor",
    ),
    (
        "repair/confined.rs",
        "the one writer: by descriptor beneath a mount, openat2 without links",
    ),
    (
        "repair/confined_tree.rs",
        "the one writer's own view, by descriptor",
    ),
    ("base/fault.rs", "crash points of tests"),
    (
        "change/folder.rs",
        "the new folder that the user named, with names of our own in it",
    ),
    (
        "repair/freeing.rs",
        "a type only: descriptors come from confined.rs",
    ),
    (
        "in_use/device.rs",
        "/sys, /proc and the disk that the user named",
    ),
    ("in_use/file.rs", "/sys and the image that the user named"),
    ("in_use/heads.rs", "a type only"),
    ("in_use/held_open.rs", "/proc"),
    ("in_use/holders.rs", "/sys"),
    ("in_use/image.rs", "the image that the user named"),
    (
        "in_use/keeper.rs",
        "/run/rescue, /proc and the disk that the user named",
    ),
    ("in_use/mod.rs", "the disk that the user named"),
    ("in_use/openers.rs", "/proc"),
    (
        "in_use/read_only.rs",
        "the disk that the user named, and this program itself",
    ),
    (
        "in_use/vmware.rs",
        "the folder of the image that the user named",
    ),
    (
        "repair/kept/keep_in.rs",
        "the folder of this machine that the user named",
    ),
    (
        "repair/kept/tree.rs",
        "a type only: descriptors come from confined.rs",
    ),
    ("repair/mod.rs", "our own OpenOptions"),
    (
        "repair/new_file.rs",
        "a type only: descriptors come from confined.rs",
    ),
    ("repair/prune.rs", "a type only"),
    ("repair/stage.rs", "a method of ours, and a type"),
    (
        "disk/storage_daemon.rs",
        "qemu-storage-daemon, in a folder of ours",
    ),
    (
        "repair/write_mount.rs",
        "our own OpenOptions; folders that the user named",
    ),
    ("repair/xattrs.rs", "a type only"),
    (
        "session/etcd.rs",
        "the new folder and the list that the user named",
    ),
    ("session/mod.rs", "sources that the user named"),
    (
        "space/plan.rs",
        "the device number of the folder that the user named",
    ),
];

#[test]
fn no_code_outside_guest_opens_a_path_of_the_guest() {
    let source = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../rescue/src"));
    let mut found: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for path in rust_files(source) {
        let name = path
            .strip_prefix(source)
            .unwrap()
            .to_str()
            .unwrap()
            .to_owned();
        if name.starts_with("guest/") || name.starts_with("tree/") || name.ends_with("tests.rs") {
            continue;
        }
        let hits = hits(&fs::read_to_string(&path).unwrap());
        if !hits.is_empty() {
            found.insert(name, hits);
        }
    }
    assert!(found.len() > 20, "the sources were not found");
    let allowed: BTreeMap<&str, &str> = ALLOWED.iter().copied().collect();
    for (name, hits) in &found {
        assert!(
            allowed.contains_key(name.as_str()),
            "rescue/src/{name} names files to the kernel: {hits:#?}\n\
             Read the guest's through rescue::guest::Guest; if this is no path of a guest, say so \
             in tests/tests/guest_paths.rs"
        );
    }
    let stale: Vec<&&str> = allowed
        .keys()
        .filter(|name| !found.contains_key(**name))
        .collect();
    assert!(
        stale.is_empty(),
        "these need no exception any more: {stale:?}"
    );
}

fn rust_files(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(rust_files(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files
}

/// Lines of the program itself, without comments and without the tests at its end.
fn hits(text: &str) -> Vec<String> {
    let program = text
        .split("#[cfg(test)]\nmod tests {")
        .next()
        .unwrap_or_default();
    let lines = program
        .lines()
        .map(str::trim)
        .filter(|line| !line.starts_with("//"));
    lines
        .filter(|line| NAMES_A_FILE.iter().any(|word| line.contains(word)))
        .map(str::to_owned)
        .collect()
}

#[test]
fn the_lint_sees_what_it_should() {
    let text = "use std::fs;\n// fs::read is fine in a comment\nlet x = path.exists();\n\
        #[cfg(test)]\nmod tests {\n fs::write()\n}\n";
    assert_eq!(hits(text), ["use std::fs;", "let x = path.exists();"]);
}
