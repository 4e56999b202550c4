//! The file systems that are shut down: how they are made, mounted and shut down.

/// One way of making and using a file system.
#[derive(Debug, Clone, Copy)]
pub struct Variant {
    /// For messages.
    pub name: &'static str,
    /// What follows `mkfs.`.
    pub mkfs: &'static str,
    /// Further arguments.
    pub arguments: &'static [&'static str],
    /// `mount -o`.
    pub options: &'static str,
    /// Writes before the shutdown comes.
    pub writes: usize,
    /// ext4: whether more must have been written to the journal than it holds.
    pub wraps: bool,
}

/// ext4 and ext3 with few writes: the journal still begins at its beginning.
const FEW: usize = 700;
/// So many that a journal of 4 MiB wraps several times.
const MANY: usize = 2000;

const fn plain(
    name: &'static str,
    mkfs: &'static str,
    arguments: &'static [&'static str],
) -> Variant {
    Variant {
        name,
        mkfs,
        arguments,
        options: "nodiscard",
        writes: FEW,
        wraps: false,
    }
}

const fn wrapping(
    name: &'static str,
    mkfs: &'static str,
    arguments: &'static [&'static str],
    options: &'static str,
) -> Variant {
    Variant {
        name,
        mkfs,
        arguments,
        options,
        writes: MANY,
        wraps: true,
    }
}

/// All of them.
pub const VARIANTS: &[Variant] = &[
    plain("ext4", "ext4", &["-b", "4096"]),
    plain("ext4 1k", "ext4", &["-b", "1024"]),
    plain("ext4 ^metadata_csum", "ext4", &["-O", "^metadata_csum"]),
    plain("ext4 ^64bit", "ext4", &["-O", "^64bit"]),
    plain(
        "ext4 ^64bit ^metadata_csum 1k",
        "ext4",
        &["-O", "^64bit,^metadata_csum", "-b", "1024"],
    ),
    plain("ext4 fast_commit", "ext4", &["-O", "fast_commit"]),
    plain(
        "ext4 inline_data orphan_file",
        "ext4",
        &["-O", "inline_data,orphan_file"],
    ),
    plain("ext4 bigalloc", "ext4", &["-O", "bigalloc"]),
    plain("ext3", "ext3", &[]),
    Variant {
        options: "nodiscard,data=journal",
        ..plain("ext4 data=journal", "ext4", &[])
    },
    wrapping(
        "ext4 wrapped",
        "ext4",
        &["-b", "4096", "-J", "size=4"],
        "nodiscard",
    ),
    wrapping(
        "ext4 wrapped 1k",
        "ext4",
        &["-b", "1024", "-J", "size=4"],
        "nodiscard",
    ),
    wrapping(
        "ext4 wrapped ^metadata_csum ^64bit",
        "ext4",
        &["-O", "^metadata_csum,^64bit", "-J", "size=4"],
        "nodiscard",
    ),
    wrapping(
        "ext4 wrapped data=journal",
        "ext4",
        &["-J", "size=4"],
        "nodiscard,data=journal",
    ),
    wrapping("ext3 wrapped", "ext3", &["-J", "size=4"], "nodiscard"),
    plain("xfs v5", "xfs", &[]),
    plain("xfs v5 1k", "xfs", &["-b", "size=1024"]),
    plain("xfs v5 4k sectors", "xfs", &["-s", "size=4096"]),
    plain(
        "xfs v5 without reflink, bigtime",
        "xfs",
        &["-m", "reflink=0,bigtime=0,inobtcount=0"],
    ),
    plain("xfs v4", "xfs", &["-m", "crc=0"]),
    plain(
        "xfs v4 without ftype",
        "xfs",
        &["-m", "crc=0", "-n", "ftype=0"],
    ),
];

/// Whether the log reaches the disk before the shutdown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shutdown {
    /// `FS_SHUTDOWN_FLAGS_LOGFLUSH`: the disk lost power just after a commit.
    FlushLog,
    /// `FS_SHUTDOWN_FLAGS_NOLOGFLUSH`: in the middle of one.
    Abruptly,
}

impl Variant {
    /// Size of the image in bytes: 300 MiB is the least that mkfs.xfs makes.
    pub fn size(&self) -> u64 {
        if self.is_xfs() { 320 << 20 } else { 96 << 20 }
    }

    pub fn is_xfs(&self) -> bool {
        self.mkfs == "xfs"
    }
}
