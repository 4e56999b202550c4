//! The checkers: which program looks at which file system, what its exit code means, and how it is
//! told to mend.

use std::path::PathBuf;

/// A program that checks one kind of file system.
#[derive(Debug)]
pub struct Checker {
    /// Its name.
    pub program: &'static str,
    /// The words that make it look and write nothing; the device follows.
    pub look: &'static [&'static str],
    /// Debian's package, Red Hat's, SUSE's.
    packages: [&'static str; 3],
    judge: fn(i32, &[String]) -> Judgement,
}

/// What a checker's exit code and words mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Judgement {
    /// Nothing is wrong.
    Clean,
    /// It found damage.
    Damaged,
    /// It could not tell: it does not know a feature, or failed itself.
    Unable,
}

/// e2fsck(8): `-f` checks even what is marked clean, `-n` answers every question with no.
static E2FSCK: Checker = Checker {
    program: "e2fsck",
    look: &["-f", "-n"],
    packages: ["e2fsprogs", "e2fsprogs", "e2fsprogs"],
    judge: judge_e2fsck,
};

/// xfs_repair(8): `-n` only looks.
static XFS_REPAIR: Checker = Checker {
    program: "xfs_repair",
    look: &["-n"],
    packages: ["xfsprogs", "xfsprogs", "xfsprogs"],
    judge: judge_xfs,
};

/// btrfs-check(8).
static BTRFS_CHECK: Checker = Checker {
    program: "btrfs",
    look: &["check", "--readonly"],
    packages: ["btrfs-progs", "btrfs-progs", "btrfsprogs"],
    judge: judge_btrfs,
};

impl Checker {
    /// The checker for a file system by the kernel's name for it.
    pub fn of(kind: &str) -> Option<&'static Self> {
        match kind {
            "ext2" | "ext3" | "ext4" => Some(&E2FSCK),
            "xfs" => Some(&XFS_REPAIR),
            "btrfs" => Some(&BTRFS_CHECK),
            _ => None,
        }
    }

    /// Where the program is on this machine.
    pub fn find(&self) -> Option<PathBuf> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        // A user's PATH often lacks sbin.
        let usual = ["/usr/sbin", "/sbin", "/usr/bin", "/bin"].map(PathBuf::from);
        let mut places = std::env::split_paths(&path)
            .filter(|folder| folder.is_absolute())
            .chain(usual);
        places
            .find_map(|folder| Some(folder.join(self.program)).filter(|program| program.is_file()))
    }

    /// The line that installs it.
    pub fn install(&self) -> String {
        let [debian, red_hat, suse] = self.packages;
        format!(
            "apt-get install {debian} (dnf install {red_hat}, zypper install {suse}), or use the \
             rescue ISO, which carries it"
        )
    }

    /// The command line as a person would type it, without the device.
    pub fn line(&self) -> String {
        format!("{} {}", self.program, self.look.join(" "))
    }

    /// What an exit code means; `None`: a signal ended it.
    pub fn judge(&self, code: Option<i32>, said: &[String]) -> Judgement {
        code.map_or(Judgement::Unable, |code| (self.judge)(code, said))
    }
}

/// Bits: 1 corrected, 4 errors left, 8 operational error, 16 usage, 32 cancelled, 128 library
/// error. 8 also where it does not know a feature, or finds no superblock at all; 12 where the
/// damage is such that it gives up.
fn judge_e2fsck(code: i32, said: &[String]) -> Judgement {
    match code {
        0 => Judgement::Clean,
        _ if says(said, "newer version of e2fsck") || says(said, "unsupported feature") => {
            Judgement::Unable
        }
        code if code & 4 != 0 => Judgement::Damaged,
        _ if says(said, "superblock could not be read") || says(said, "Bad magic number") => {
            Judgement::Damaged
        }
        _ => Judgement::Unable,
    }
}

/// With `-n`: 1 where it found corruption, and where it does not know the superblock's features.
fn judge_xfs(code: i32, said: &[String]) -> Judgement {
    match code {
        0 => Judgement::Clean,
        1 if says(said, "more recent xfs_repair") || says(said, "annot allocate") => {
            Judgement::Unable
        }
        1 => Judgement::Damaged,
        _ => Judgement::Unable,
    }
}

/// 1 where it found errors; an unreadable tree ends it with 1 as well, a missing device or an
/// unknown feature too.
fn judge_btrfs(code: i32, said: &[String]) -> Judgement {
    match code {
        0 => Judgement::Clean,
        1 if says(said, "unsupported") || says(said, "missing") && says(said, "device") => {
            Judgement::Unable
        }
        1 => Judgement::Damaged,
        _ => Judgement::Unable,
    }
}

fn says(said: &[String], words: &str) -> bool {
    said.iter().any(|line| line.contains(words))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judge(kind: &str, code: i32, said: &str) -> Judgement {
        let said: Vec<String> = said.lines().map(str::to_owned).collect();
        Checker::of(kind).unwrap().judge(Some(code), &said)
    }

    #[test]
    fn damage_is_told_from_not_knowing() {
        assert_eq!(judge("ext4", 0, ""), Judgement::Clean);
        assert_eq!(
            judge("ext4", 4, "Free blocks count wrong"),
            Judgement::Damaged
        );
        assert_eq!(
            judge("ext4", 12, "Cannot proceed without a root inode."),
            Judgement::Damaged
        );
        assert_eq!(
            judge("ext4", 8, "has unsupported feature(s): FEATURE_C31"),
            Judgement::Unable
        );
        assert_eq!(
            judge("ext4", 8, "Memory allocation failed"),
            Judgement::Unable
        );
        assert_eq!(
            judge(
                "ext3",
                8,
                "The superblock could not be read or does not describe a valid ext2"
            ),
            Judgement::Damaged
        );
        assert_eq!(judge("xfs", 1, "bad magic number"), Judgement::Damaged);
        assert_eq!(
            judge("xfs", 1, "Using a more recent xfs_repair is recommended."),
            Judgement::Unable
        );
        assert_eq!(
            judge("btrfs", 1, "ERROR: errors found in fs roots"),
            Judgement::Damaged
        );
        assert_eq!(
            judge("btrfs", 1, "warning, device 2 is missing"),
            Judgement::Unable
        );
        assert_eq!(
            Checker::of("ext4").unwrap().judge(None, &[]),
            Judgement::Unable
        );
        assert!(Checker::of("vfat").is_none());
    }
}
