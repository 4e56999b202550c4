//! Bounds on the time that a header may have us spend on deriving keys.
//!
//! A header says itself how much work each of its key slots and digests is, and whoever writes to
//! the disk chooses the header. So the work is added up before it is done, in time of one core, and
//! what is beyond the bound is not begun.
//!
//! Real volumes stay far below: `cryptsetup luksFormat` measures the machine for 2 seconds
//! (`--iter-time`), some people ask for 10. A fast machine makes 8 million iterations of PBKDF2
//! with SHA-256, or 8 rounds of Argon2 over 1 GiB with four threads, in 2 seconds.

use std::time::Duration;

use super::kdf::{Hash, Kdf};
use crate::base::refusal::Refusal;
use crate::base::units;

/// The most time that the key slots and digests of one volume may take with one passphrase: 234
/// million iterations of PBKDF2 with SHA-256 and 32 bytes of key, or 44 rounds of Argon2 over 1
/// GiB.
///
/// Measured on one core of a Xeon with SHA extensions, shared with other work, with a wrong
/// passphrase just below the bound: one slot of 115 million iterations for 64 bytes took 45 s of
/// processor time (71 s by the clock), one of Argon2id with 44 rounds over 1 GiB 71 s (75 s).
pub(super) const PER_PASSPHRASE: Duration = Duration::from_secs(75);

/// The most time for one volume with all passphrases that were given or typed, and all keys of
/// other volumes that are tried on it.
pub(super) const PER_VOLUME: Duration = Duration::from_secs(4 * PER_PASSPHRASE.as_secs());

/// Time for one KiB of Argon2's memory in one round: 1.3 to 1.8 µs were measured with 64 MiB and 1
/// GiB. Lanes are worked on one after the other, so their number does not matter.
const ARGON2_KIB: Duration = Duration::from_nanos(1600);

impl Hash {
    /// Time for one iteration of PBKDF2, for one block of output, as `cryptsetup benchmark`
    /// measures it on the same core.
    fn iteration(self) -> Duration {
        match self {
            Self::Sha1 | Self::Sha256 => Duration::from_nanos(320),
            Self::Sha384 | Self::Sha512 => Duration::from_nanos(840),
        }
    }

    /// Time for `iterations` of PBKDF2 that make `length` bytes; each block of output takes all of
    /// them.
    pub fn pbkdf2_time(self, iterations: u32, length: usize) -> Duration {
        let blocks = u32::try_from(length.div_ceil(self.length())).unwrap_or(u32::MAX);
        self.iteration()
            .saturating_mul(iterations)
            .saturating_mul(blocks)
    }
}

impl Kdf {
    /// Time to derive a key of `length` bytes.
    pub fn time(&self, length: usize) -> Duration {
        match self {
            Self::Pbkdf2 { hash, iterations } => hash.pbkdf2_time(*iterations, length),
            Self::Argon2 { rounds, memory, .. } => {
                ARGON2_KIB.saturating_mul(*memory).saturating_mul(*rounds)
            }
        }
    }
}

impl std::fmt::Display for Kdf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Pbkdf2 { iterations, .. } => write!(f, "PBKDF2 with {iterations} iterations"),
            Self::Argon2 { rounds, memory, .. } => {
                write!(f, "Argon2 with {} MiB in {rounds} rounds", memory >> 10)
            }
        }
    }
}

/// Time that may still be spent.
#[derive(Debug, Clone, Copy)]
pub(super) struct Allowance {
    left: Duration,
}

impl Allowance {
    pub fn new(left: Duration) -> Self {
        Self { left }
    }

    /// The part of it that one passphrase may take.
    pub fn for_one_passphrase(&self) -> Self {
        Self {
            left: self.left.min(PER_PASSPHRASE),
        }
    }

    /// What was taken from it until `later`.
    pub fn less(&self, later: &Self) -> Duration {
        self.left.saturating_sub(later.left)
    }

    /// Takes `time` away. False, with nothing taken, where less is left.
    pub fn take(&mut self, time: Duration) -> bool {
        let left = self.left.checked_sub(time);
        self.left = left.unwrap_or(self.left);
        left.is_some()
    }
}

/// A volume whose header asks for more than the bound. `asks`: for what, with its number. `time`:
/// how long that takes.
pub(super) fn too_much(asks: &str, time: Duration) -> Refusal {
    let time = time::Duration::try_from(time).unwrap_or(time::Duration::MAX);
    let most = PER_PASSPHRASE.as_secs();
    Refusal::new(
        format!(
            "its LUKS header asks for {asks}: about {} of computing for each passphrase",
            units::span(time)
        ),
        format!(
            "cryptsetup makes headers that take seconds; rescue spends {most} s on a passphrase, \
             and {} min on a volume",
            PER_VOLUME.as_secs() / 60
        ),
        "if you trust this disk: `cryptsetup open DEVICE NAME` (of an image file, DEVICE is what \
         `losetup -fP --show FILE` makes), then give /dev/mapper/NAME to rescue instead",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pbkdf2(iterations: u32) -> Kdf {
        Kdf::Pbkdf2 {
            hash: Hash::Sha256,
            iterations,
        }
    }

    fn argon2(memory: u32, rounds: u32) -> Kdf {
        Kdf::Argon2 {
            kind: argon2::Algorithm::Argon2id,
            rounds,
            memory,
            lanes: 4,
        }
    }

    #[test]
    fn real_volumes_are_within_the_bound() {
        // --iter-time 10000 on a fast machine: 4 million iterations a second; and 4 rounds over 1
        // GiB a second.
        for kdf in [pbkdf2(40_000_000), argon2(1 << 20, 40), argon2(4 << 20, 10)] {
            assert!(kdf.time(64) < PER_PASSPHRASE, "{kdf}: {:?}", kdf.time(64));
        }
    }

    #[test]
    fn crafted_numbers_are_beyond_it() {
        for kdf in [
            pbkdf2(1 << 30),
            pbkdf2(u32::MAX),
            argon2(4 << 20, 1000),
            argon2(u32::MAX, u32::MAX),
            argon2(8, 1 << 30),
        ] {
            assert!(kdf.time(64) > PER_PASSPHRASE, "{kdf}: {:?}", kdf.time(64));
        }
        let refusal =
            too_much(&pbkdf2(u32::MAX).to_string(), pbkdf2(u32::MAX).time(64)).to_string();
        assert!(
            refusal.contains("4294967295 iterations: about 45 min"),
            "{refusal}"
        );
        too_much("", Duration::MAX);
    }

    #[test]
    fn what_was_refused_costs_nothing() {
        let mut allowance = Allowance::new(PER_VOLUME).for_one_passphrase();
        assert!(!allowance.take(PER_PASSPHRASE + Duration::from_nanos(1)));
        assert!(allowance.take(PER_PASSPHRASE) && !allowance.take(Duration::from_nanos(1)));
    }
}
