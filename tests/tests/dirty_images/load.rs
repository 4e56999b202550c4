//! Write load on a mounted file system until it is shut down under it.

use std::fs::{self, File};
use std::io::{self, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::{FileExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use rustix::fs::{
    AtFlags, CWD, FallocateFlags, FileType, Gid, Mode, Timespec, Timestamps, Uid, XattrFlags,
};

/// A small generator of repeatable randomness (splitmix64).
#[derive(Debug)]
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    fn bytes(&mut self, length: usize) -> Vec<u8> {
        // Half of it repeats, so that equal bytes at wrong places are found and still most blocks
        // differ.
        let word = self.next().to_le_bytes();
        (0..length)
            .map(|at| word[at % 8] ^ (at / 512) as u8)
            .collect()
    }
}

/// What several writers share.
#[derive(Debug, Default)]
pub struct Gauge {
    pub done: AtomicUsize,
    pub stop: AtomicBool,
}

/// Works in a folder of its own until the file system is gone or it is told to stop. `shared` is
/// where all writers meet.
pub fn write_until_shut_down(
    own: &Path,
    shared: &Path,
    seed: u64,
    gauge: &Gauge,
) -> io::Result<()> {
    let mut writer = Writer {
        random: Random(seed),
        folders: vec![own.to_owned(), shared.to_owned()],
        files: Vec::new(),
        made: 0,
    };
    while !gauge.stop.load(Ordering::Relaxed) {
        match writer.step() {
            Ok(()) => {}
            Err(error) => match error.raw_os_error() {
                Some(nix::libc::EIO | nix::libc::EROFS | nix::libc::ESHUTDOWN) => return Ok(()),
                Some(nix::libc::ENOSPC) => writer.make_room(),
                // Two writers meet in the shared folder; some file systems lack a feature.
                Some(
                    nix::libc::ENOENT
                    | nix::libc::EEXIST
                    | nix::libc::ENOTEMPTY
                    | nix::libc::EOPNOTSUPP
                    | nix::libc::EISDIR
                    | nix::libc::ENOTDIR
                    | nix::libc::EINVAL
                    | nix::libc::EMLINK
                    | nix::libc::EXDEV,
                ) => {}
                _ => return Err(error),
            },
        }
        gauge.done.fetch_add(1, Ordering::Relaxed);
    }
    Ok(())
}

struct Writer {
    random: Random,
    folders: Vec<PathBuf>,
    files: Vec<PathBuf>,
    made: usize,
}

impl Writer {
    fn step(&mut self) -> io::Result<()> {
        match self.random.below(100) {
            0..30 => self.create(),
            30..42 => self.append(),
            42..50 => self.overwrite(),
            50..54 => self.resize(),
            54..57 => self.punch(),
            57..66 => self.rename(),
            66..76 => self.unlink(),
            76..80 => self.link(),
            80..84 => self.symlink(),
            84..88 => self.make_folder(),
            88..89 => self.special(),
            89..93 => self.attributes(),
            93..99 => self.fsync(),
            _ => {
                rustix::fs::syncfs(File::open(&self.folders[0])?)?;
                Ok(())
            }
        }
    }

    fn fresh(&mut self) -> PathBuf {
        self.made += 1;
        let folder = self.random.below(self.folders.len());
        // Long names fill folders fast, so that they grow past one block and get an index.
        let padding = "n".repeat(self.random.below(60));
        self.folders[folder].join(format!(
            "{}-{:x}{padding}",
            self.made,
            self.random.next() & 0xfff
        ))
    }

    fn any(&mut self) -> io::Result<PathBuf> {
        if self.files.is_empty() {
            return Err(io::Error::from_raw_os_error(nix::libc::ENOENT));
        }
        let index = self.random.below(self.files.len());
        Ok(self.files[index].clone())
    }

    fn size(&mut self) -> usize {
        match self.random.below(20) {
            0 => 0,
            1..8 => self.random.below(300),
            8..19 => self.random.below(20_000),
            _ => self.random.below(300_000),
        }
    }

    fn create(&mut self) -> io::Result<()> {
        let path = self.fresh();
        let size = self.size();
        let data = self.random.bytes(size);
        let mut file = File::create(&path)?;
        self.files.push(path);
        file.write_all(&data)?;
        if self.random.below(8) == 0 {
            file.sync_all()?;
        }
        Ok(())
    }

    fn append(&mut self) -> io::Result<()> {
        let (path, size) = (self.any()?, self.size());
        File::options()
            .append(true)
            .open(path)?
            .write_all(&self.random.bytes(size))
    }

    fn overwrite(&mut self) -> io::Result<()> {
        let path = self.any()?;
        let file = File::options().write(true).open(path)?;
        let length = file.metadata()?.len() as usize;
        let (at, size) = (self.random.below(length + 5000), self.random.below(9000));
        file.write_all_at(&self.random.bytes(size), at as u64)
    }

    fn resize(&mut self) -> io::Result<()> {
        let path = self.any()?;
        let size = self.random.below(100_000);
        File::options().write(true).open(path)?.set_len(size as u64)
    }

    fn punch(&mut self) -> io::Result<()> {
        let path = self.any()?;
        let file = File::options().write(true).open(path)?;
        let (at, length) = (
            self.random.below(50_000) as u64,
            1 + self.random.below(20_000) as u64,
        );
        let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        let mode = if self.random.below(2) == 0 {
            hole
        } else {
            FallocateFlags::empty()
        };
        Ok(rustix::fs::fallocate(file, mode, at, length)?)
    }

    fn rename(&mut self) -> io::Result<()> {
        let from = self.any()?;
        let onto_another = self.random.below(3) == 0;
        let to = if onto_another {
            self.any()?
        } else {
            self.fresh()
        };
        fs::rename(&from, &to)?;
        self.files.retain(|file| *file != from && *file != to);
        self.files.push(to);
        Ok(())
    }

    fn unlink(&mut self) -> io::Result<()> {
        let path = self.any()?;
        self.files.retain(|file| *file != path);
        // Sometimes while it is open: an orphan in the journal.
        let open = if self.random.below(4) == 0 {
            File::open(&path).ok()
        } else {
            None
        };
        fs::remove_file(path)?;
        drop(open);
        Ok(())
    }

    fn link(&mut self) -> io::Result<()> {
        let (from, to) = (self.any()?, self.fresh());
        fs::hard_link(from, &to)?;
        self.files.push(to);
        Ok(())
    }

    fn symlink(&mut self) -> io::Result<()> {
        let path = self.fresh();
        // Short targets live in the inode, long ones in a block.
        let target = "../target".repeat(1 + self.random.below(20));
        symlink(target, path)
    }

    fn make_folder(&mut self) -> io::Result<()> {
        if self.folders.len() > 40 {
            let index = 2 + self.random.below(self.folders.len() - 2);
            let moved = self.fresh();
            let folder = self.folders.swap_remove(index);
            self.files.retain(|file| !file.starts_with(&folder));
            self.folders.retain(|other| !other.starts_with(&folder));
            return if self.random.below(2) == 0 {
                fs::remove_dir_all(folder)
            } else {
                fs::rename(folder, moved)
            };
        }
        let path = self.fresh();
        fs::create_dir(&path)?;
        self.folders.push(path);
        Ok(())
    }

    fn special(&mut self) -> io::Result<()> {
        let path = self.fresh();
        let (kind, device) = match self.random.below(3) {
            0 => (FileType::Fifo, 0),
            1 => (FileType::Socket, 0),
            _ => (FileType::CharacterDevice, rustix::fs::makedev(1, 3)),
        };
        Ok(rustix::fs::mknodat(
            CWD,
            path,
            kind,
            Mode::from_raw_mode(0o640),
            device,
        )?)
    }

    fn attributes(&mut self) -> io::Result<()> {
        let path = self.any()?;
        match self.random.below(4) {
            0 => fs::set_permissions(
                path,
                fs::Permissions::from_mode(self.random.below(0o10000) as u32),
            ),
            1 => {
                let (uid, gid) = (
                    self.random.below(70_000) as u32,
                    self.random.below(70_000) as u32,
                );
                Ok(rustix::fs::chown(
                    path,
                    Some(Uid::from_raw(uid)),
                    Some(Gid::from_raw(gid)),
                )?)
            }
            2 => {
                let time = Timespec {
                    tv_sec: self.random.below(2_000_000_000) as i64,
                    tv_nsec: 7,
                };
                let times = Timestamps {
                    last_access: time,
                    last_modification: time,
                };
                Ok(rustix::fs::utimensat(CWD, path, &times, AtFlags::empty())?)
            }
            _ => {
                let size = self.random.below(900);
                Ok(rustix::fs::setxattr(
                    path,
                    "user.rescue",
                    &self.random.bytes(size),
                    XattrFlags::empty(),
                )?)
            }
        }
    }

    fn fsync(&mut self) -> io::Result<()> {
        if self.random.below(3) == 0 {
            let folder = self.random.below(self.folders.len());
            return File::open(&self.folders[folder])?.sync_all();
        }
        let path = self.any()?;
        let mut file = File::options().write(true).open(path)?;
        file.seek(SeekFrom::End(0))?;
        file.write_all(b"the end")?;
        file.sync_data()
    }

    fn make_room(&mut self) {
        for file in self.files.drain(..self.files.len() / 2) {
            let _ = fs::remove_file(file);
        }
    }
}
