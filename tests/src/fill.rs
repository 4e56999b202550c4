//! Filling a file system the way a virtual machine's own logs do, until there is nothing left.

use std::fs::{self, File, FileTimes, OpenOptions};
use std::io::{ErrorKind, Write as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result, ensure};
use rustix::fs::{FallocateFlags, StatVfs, fallocate, statvfs};

use crate::command::Cmd;
use crate::disk::MIB;
use crate::fixtures::clamp_times;

/// 2024-02-25 06:25 UTC: two days after the certificates of the node expired, when its logs were
/// last rotated.
const LAST_ROTATION: u64 = 1_708_842_300;
const DAY: u64 = 86_400;

/// How a node's disk came to be full.
#[derive(Debug, Clone, Copy)]
pub struct Fill {
    /// Bytes of logs and bundles that were rotated and never removed. Real text, so they need as
    /// much room on the host.
    pub logs: u64,
    /// Bytes of container images in containerd's store, which nothing may delete. Preallocated: no
    /// room on the host.
    pub images: u64,
}

impl Fill {
    /// A share of the free space that reads like the outage: two fifths logs, the rest images.
    pub fn of(root: &Path) -> Result<Self> {
        let free = bytes_free(&statvfs(root)?);
        Ok(Self {
            logs: free / 5 * 2,
            images: free / 5 * 3,
        })
    }
}

/// Fills the mounted root file system with [`Fill::of`] its free space and then, byte by byte,
/// until root itself gets ENOSPC and no block is left, not even ext4's hidden reserve.
pub fn to_enospc(root: &Path) -> Result<()> {
    let fill = Fill::of(root)?;
    images(root, fill.images)?;
    traps(root)?;
    logs(root, fill.logs)?;
    last_block(root)
}

/// Logs, rotated logs and bundles that the outage's own three commands removed: `vmware-*`,
/// `*[0-9]` and `*.tar.gz` in /var/log, and what else grows on such a node. About `total` bytes.
pub fn logs(root: &Path, total: u64) -> Result<()> {
    let log = root.join("var/log");
    fs::create_dir_all(&log)?;
    let share = |percent: u64| total / 100 * percent;
    let vmware = Text::new(vmware_line);
    let syslog = Text::new(syslog_line);
    let container = Text::new(container_line);

    vmware.write(&log.join("vmware-vmsvc-root.log"), share(8), 0)?;
    for n in 1..=3 {
        vmware.write(
            &log.join(format!("vmware-vmsvc-root.{n}.log")),
            share(10),
            n * 7,
        )?;
    }
    for n in 1..=4 {
        vmware.write(
            &log.join(format!("vmware-network.{n}.log")),
            share(1),
            n * 9,
        )?;
    }
    vmware.write(&log.join("vmware-vmtoolsd-root.log"), share(1), 0)?;
    syslog.write(&log.join("syslog"), share(4), 0)?;
    syslog.write(&log.join("syslog.1"), share(12), 1)?;
    syslog.write(&log.join("kern.log.1"), share(3), 1)?;
    syslog.write(&log.join("messages-20240218"), share(7), 7)?;
    for n in 2..=7 {
        syslog.gzip(&log.join(format!("syslog.{n}.gz")), share(2), n)?;
    }
    let pod = first_folder_below(&log.join("pods"))?
        .unwrap_or_else(|| log.join("pods/kube-system_busy-abc_1/busy"));
    fs::create_dir_all(&pod)?;
    container.write(&pod.join("7.log.20240220-061530"), share(4), 5)?;
    bundle(&log, "support-bundle-2023-11-02.tar.gz", &syslog, share(8))?;
    let debs = root.join("var/cache/apt/archives");
    fs::create_dir_all(&debs)?;
    debian_package(&debs.join("kubelet_1.20.2-00_amd64.deb"), share(3))
}

/// Container images, as containerd keeps them; deleting one file of them breaks the image.
/// Preallocated, so they cost the host nothing.
pub fn images(root: &Path, total: u64) -> Result<()> {
    let store = root.join("var/lib/containerd/io.containerd.content.v1.content/blobs/sha256");
    fs::create_dir_all(&store)?;
    for n in 0..8_u8 {
        let name = format!("{n:02x}").repeat(32);
        let file = File::create(store.join(name))?;
        match fallocate(&file, FallocateFlags::empty(), 0, total / 8) {
            // XFS and ext4 may run out before the sum is reached; then the disk is simply full of
            // images.
            Ok(()) | Err(rustix::io::Errno::NOSPC) => {}
            Err(error) => return Err(error).context("preallocating container images"),
        }
    }
    Ok(())
}

/// Files whose names look like rotated logs and whose content must be kept: nothing that frees
/// space may touch them.
pub const TRAPS: [&str; 4] = [
    "var/log/mysql/mysql-bin.000123",
    "var/log/app/state.1",
    "var/log/etcd-snapshot.db.1",
    "var/lib/mysql/mysql-bin.000007",
];

/// What the file of [`TRAPS`] with this name holds.
pub fn trap(name: &str) -> Vec<u8> {
    if name.contains("mysql-bin") {
        // The magic of MySQL's binary log, then an event header.
        [
            b"\xfebin".as_slice(),
            &[0x5d, 0x3f, 0xd9, 0x65, 0x0f, 1, 0, 0, 0, 0x78, 0, 0, 0],
        ]
        .concat()
        .repeat(600)
    } else if name.ends_with("state.1") {
        [
            b"SQLite format 3\0".as_slice(),
            &[0x10, 0, 1, 1, 0, 0x40, 0x20, 0x20],
        ]
        .concat()
        .repeat(400)
    } else {
        // bbolt: page id, flags (meta), magic 0xED0CDAED.
        [
            [0_u8; 8].as_slice(),
            &[4, 0, 0, 0, 0, 0, 0, 0, 0xED, 0xDA, 0x0C, 0xED, 2, 0, 0, 0],
        ]
        .concat()
        .repeat(500)
    }
}

/// Lays down the [`TRAPS`].
pub fn traps(root: &Path) -> Result<()> {
    for name in TRAPS {
        let path = root.join(name);
        fs::create_dir_all(path.parent().context("a trap lies in a folder")?)?;
        fs::write(&path, trap(name))?;
        age(&path, 30)?;
    }
    Ok(())
}

/// Appends to one rotated log until the file system has no free block at all, not for root either.
pub fn last_block(root: &Path) -> Result<()> {
    release_hidden_reserve(root)?;
    let text = Text::new(vmware_line);
    let path = root.join("var/log/vmware-vmsvc-root.4.log");
    let mut file = OpenOptions::new().create(true).append(true).open(&path)?;
    for piece in [text.block.len(), 65_536, 4096, 512, 1] {
        loop {
            match file.write_all(&text.block.as_bytes()[..piece]) {
                Ok(()) => {}
                Err(error) if error.kind() == ErrorKind::StorageFull => break,
                Err(error) => return Err(error).context("filling the last block"),
            }
        }
        // Delayed allocation may hand blocks back.
        let _ = file.sync_all();
    }
    drop(file);
    age(&path, 28)?;
    // A directory or an extent tree may still have freed a block or two: small files take those.
    for n in 0..10_000 {
        let path = root.join(format!("var/log/vmware-vmtoolsd-root.{n}.log"));
        match fs::write(&path, &text.block.as_bytes()[..1024])
            .and_then(|()| File::open(&path)?.sync_all())
        {
            Ok(()) => age(&path, 20)?,
            Err(error) if error.kind() == ErrorKind::StorageFull => {
                let _ = fs::remove_file(&path);
                break;
            }
            Err(error) => return Err(error).context("filling the last block"),
        }
    }
    rustix::fs::sync();
    ensure!(
        full(root)?,
        "{} bytes are still free",
        bytes_free(&statvfs(root)?)
    );
    clamp_times(root)
}

/// Takes the last inode with small rotated logs, leaving blocks free. Make the file system with few
/// inodes (`mkfs.ext4 -N 2048`).
pub fn inodes(root: &Path) -> Result<()> {
    let folder = root.join("var/log/audit-agent");
    fs::create_dir_all(&folder)?;
    for n in 1.. {
        let path = root.join(rotated_log(n).trim_start_matches('/'));
        let line = format!(
            "Feb 20 06:25:01 k8s-master01 audit-agent[611]: rotated file {n}, nothing to report\n"
        );
        match fs::write(&path, line) {
            Ok(()) => age(&path, 3 + n % 60)?,
            Err(error) if error.kind() == ErrorKind::StorageFull => break,
            Err(error) => return Err(error).with_context(|| format!("writing {}", path.display())),
        }
    }
    let free = statvfs(root)?;
    ensure!(free.f_ffree == 0, "{} inodes are still free", free.f_ffree);
    ensure!(
        bytes_free(&free) > MIB,
        "blocks ran out before inodes: make the file system with fewer inodes"
    );
    clamp_times(root)
}

/// Guest path of the n-th of the small logs that [`inodes`] makes: nine generations of each.
pub fn rotated_log(n: u64) -> String {
    format!("/var/log/audit-agent/agent-{}.log.{}", n / 9, n % 9 + 1)
}

/// Whether not even root can write one more block.
pub fn full(root: &Path) -> Result<bool> {
    let probe = root.join("var/log/.probe");
    let result = fs::write(&probe, [7_u8; 4096]).and_then(|()| File::open(&probe)?.sync_all());
    let _ = fs::remove_file(&probe);
    match result {
        Err(error) if error.kind() == ErrorKind::StorageFull => Ok(true),
        Err(error) => Err(error).context("probing for free space"),
        Ok(()) => Ok(false),
    }
}

/// Free bytes of a file system, the part reserved for root included.
fn bytes_free(of: &StatVfs) -> u64 {
    of.f_bfree * of.f_frsize
}

/// ext4 hides up to 4096 clusters even from root; a running kernel shows the number in sysfs, where
/// it can be set to nothing.
fn release_hidden_reserve(root: &Path) -> Result<()> {
    let source = Cmd::new("findmnt")
        .args(["-n", "-o", "SOURCE,FSTYPE", "--target"])
        .arg(root)
        .ok()?
        .stdout;
    let mut words = source.split_whitespace();
    let (Some(device), Some("ext4")) = (words.next(), words.next()) else {
        return Ok(());
    };
    let name = device.rsplit('/').next().unwrap_or(device);
    let knob = PathBuf::from(format!("/sys/fs/ext4/{name}/reserved_clusters"));
    fs::write(&knob, "0").with_context(|| format!("writing {}", knob.display()))
}

/// A mebibyte of log text that can be repeated.
struct Text {
    block: String,
}

impl Text {
    fn new(line: fn(u64, &mut Noise) -> String) -> Self {
        let mut noise = Noise(0x9E37_79B9_7F4A_7C15);
        let mut block = String::new();
        let mut n = 0;
        while block.len() < MIB as usize {
            block.push_str(&line(n, &mut noise));
            n += 1;
        }
        Self { block }
    }

    /// Writes about `size` bytes, whole lines, last changed `days` before the last rotation.
    fn write(&self, path: &Path, size: u64, days: u64) -> Result<()> {
        let mut file = File::create(path)?;
        let mut left = size;
        while left > 0 {
            let piece = self.lines(left);
            file.write_all(piece.as_bytes())
                .with_context(|| format!("writing {}", path.display()))?;
            left = if piece.len() < self.block.len() {
                0
            } else {
                left - piece.len() as u64
            };
        }
        drop(file);
        age(path, days)
    }

    /// Writes a real gzip file of about `size` bytes: one member, repeated, as `cat a.gz b.gz`
    /// makes them.
    fn gzip(&self, path: &Path, size: u64, days: u64) -> Result<()> {
        let plain = tempfile::NamedTempFile::new()?;
        fs::write(plain.path(), &self.block)?;
        let packed = plain.path().with_extension("gz");
        Cmd::new("gzip")
            .args(["-1", "-k", "-f", "-S", ".gz"])
            .arg(plain.path())
            .ok()?;
        let made = PathBuf::from(format!("{}.gz", plain.path().display()));
        fs::rename(&made, &packed)?;
        let member = fs::read(&packed)?;
        fs::remove_file(&packed)?;
        let mut file = File::create(path)?;
        for _ in 0..(size / member.len() as u64).max(1) {
            file.write_all(&member)
                .with_context(|| format!("writing {}", path.display()))?;
        }
        drop(file);
        age(path, days)
    }

    fn lines(&self, at_most: u64) -> &str {
        let limit = usize::try_from(at_most).unwrap_or(usize::MAX);
        if limit >= self.block.len() {
            return &self.block;
        }
        let end = self.block[..limit].rfind('\n').map_or(0, |at| at + 1);
        &self.block[..end]
    }
}

/// A gzipped tar archive of a log, made by tar.
fn bundle(log: &Path, name: &str, text: &Text, size: u64) -> Result<()> {
    let work = tempfile::tempdir()?;
    text.write(&work.path().join("messages"), (4 * size).max(MIB), 0)?;
    let made = work.path().join(name);
    Cmd::new("tar")
        .args(["--use-compress-program=gzip -1", "-cf"])
        .arg(&made)
        .arg("-C")
        .arg(work.path())
        .arg("messages")
        .ok()?;
    fs::copy(&made, log.join(name))?;
    age(&log.join(name), 115)
}

/// A file that begins as Debian packages do; the rest is noise, as of compressed data.
fn debian_package(path: &Path, size: u64) -> Result<()> {
    let mut noise = Noise(0xD1B5_4A32_D192_ED03);
    let mut file = File::create(path)?;
    file.write_all(b"!<arch>\ndebian-binary   1611000000  0     0     100644  4         `\n2.0\n")?;
    let block: Vec<u8> = std::iter::repeat_with(|| noise.next().to_le_bytes())
        .take(1 << 14)
        .flatten()
        .collect();
    for _ in 0..(size / block.len() as u64).max(1) {
        file.write_all(&block)?;
    }
    drop(file);
    age(path, 400)
}

fn age(path: &Path, days: u64) -> Result<()> {
    let then =
        SystemTime::UNIX_EPOCH + Duration::from_secs(LAST_ROTATION.saturating_sub(days * DAY));
    let file = File::open(path)?;
    file.set_times(FileTimes::new().set_modified(then).set_accessed(then))
        .with_context(|| format!("setting the age of {}", path.display()))
}

fn first_folder_below(pods: &Path) -> Result<Option<PathBuf>> {
    let mut found = Vec::new();
    for pod in fs::read_dir(pods).into_iter().flatten() {
        for container in fs::read_dir(pod?.path())? {
            found.push(container?.path());
        }
    }
    found.sort();
    Ok(found.into_iter().next())
}

/// xorshift64: the same disk each time.
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}

fn vmware_line(n: u64, noise: &mut Noise) -> String {
    let (h, m, s, ms) = (n / 3600 % 24, n / 60 % 60, n % 60, noise.next() % 1000);
    format!(
        "[2024-02-2{}T{h:02}:{m:02}:{s:02}.{ms:03}Z] [ warning] [guestinfo] GetDiskInfo: disk \
         usage query failed for /var/lib/kubelet/pods/{:08x}-{:04x}/volumes: Permission denied \
         (13)\n",
        n % 5,
        noise.next() as u32,
        noise.next() as u16,
    )
}

fn syslog_line(n: u64, noise: &mut Noise) -> String {
    let (h, m, s) = (n / 3600 % 24, n / 60 % 60, n % 60);
    format!(
        "Feb 2{} {h:02}:{m:02}:{s:02} k8s-master01 kubelet[{}]: E0223 {h:02}:{m:02}:{s:02}.{:06} \
         {} reflector.go:138] Failed to watch *v1.Node: Get \
         \"https://k8s-vip.example.internal:6443/api/v1/nodes\": x509: certificate has expired or \
         is not yet valid\n",
        n % 5,
        600 + noise.next() % 4000,
        noise.next() % 1_000_000,
        noise.next() % 4000,
    )
}

fn container_line(n: u64, noise: &mut Noise) -> String {
    let (h, m, s) = (n / 3600 % 24, n / 60 % 60, n % 60);
    format!(
        "2024-02-20T{h:02}:{m:02}:{s:02}.{:09}Z stderr F {{\"level\":\"warn\",\"msg\":\"apply \
         request took too long\",\"took\":\"{}ms\"}}\n",
        noise.next() % 1_000_000_000,
        100 + noise.next() % 900,
    )
}
