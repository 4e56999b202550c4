//! From a passphrase to the volume's key: the key of a slot is derived, the slot's area decrypted
//! with it, and what was spread over it put together again (TKS1, the "anti-forensic" splitter).

use std::num::NonZeroU32;
use std::time::Duration;

use aws_lc_rs::{digest, pbkdf2};
use zeroize::Zeroizing;

use super::LuksError;
use super::cipher::{Key, Xts};
use crate::disk::ReadAt;

/// LUKS2 allows no more (cryptsetup, LUKS2_keyslot_luks2.c), in KiB.
const MAX_MEMORY: u32 = 4 << 20;
/// The splitter makes 4000 of every key.
const MAX_STRIPES: u32 = 4000;
/// Two AES-256 keys; nothing of what is read here has more.
pub(super) const MAX_KEY: usize = 64;

/// Hash functions by cryptsetup's names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Hash {
    Sha1,
    Sha256,
    Sha384,
    Sha512,
}

impl Hash {
    pub fn named(name: &str) -> Result<Self, LuksError> {
        match name {
            "sha1" => Ok(Self::Sha1),
            "sha256" => Ok(Self::Sha256),
            "sha384" => Ok(Self::Sha384),
            "sha512" => Ok(Self::Sha512),
            other => Err(LuksError::Unsupported(format!(
                "it hashes with {other}, which is not known here"
            ))),
        }
    }

    fn digest(self) -> &'static digest::Algorithm {
        match self {
            Self::Sha1 => &digest::SHA1_FOR_LEGACY_USE_ONLY,
            Self::Sha256 => &digest::SHA256,
            Self::Sha384 => &digest::SHA384,
            Self::Sha512 => &digest::SHA512,
        }
    }

    /// Bytes of its output.
    pub fn length(self) -> usize {
        self.digest().output_len()
    }

    fn pbkdf2(self) -> pbkdf2::Algorithm {
        match self {
            Self::Sha1 => pbkdf2::PBKDF2_HMAC_SHA1,
            Self::Sha256 => pbkdf2::PBKDF2_HMAC_SHA256,
            Self::Sha384 => pbkdf2::PBKDF2_HMAC_SHA384,
            Self::Sha512 => pbkdf2::PBKDF2_HMAC_SHA512,
        }
    }
}

/// How a key is derived. How long it may take is bounded by the caller; see [`super::work`].
#[derive(Debug, Clone)]
pub(super) enum Kdf {
    Pbkdf2 {
        hash: Hash,
        iterations: u32,
    },
    /// Memory in KiB.
    Argon2 {
        kind: argon2::Algorithm,
        rounds: u32,
        memory: u32,
        lanes: u32,
    },
}

impl Kdf {
    fn derive(&self, passphrase: &[u8], salt: &[u8], length: usize) -> Result<Key, LuksError> {
        let mut key = vec![0; length];
        match self {
            Self::Pbkdf2 { hash, iterations } => {
                let iterations = NonZeroU32::new(*iterations);
                let iterations = iterations
                    .ok_or_else(|| LuksError::Corrupt("a key slot of no iterations".into()))?;
                pbkdf2::derive(hash.pbkdf2(), iterations, salt, passphrase, &mut key);
            }
            Self::Argon2 {
                kind,
                rounds,
                memory,
                lanes,
            } => argon2(*kind, *rounds, *memory, *lanes, passphrase, salt, &mut key)?,
        }
        Ok(Key::new(key))
    }
}

fn argon2(
    kind: argon2::Algorithm,
    rounds: u32,
    memory: u32,
    lanes: u32,
    passphrase: &[u8],
    salt: &[u8],
    key: &mut [u8],
) -> Result<(), LuksError> {
    if memory > MAX_MEMORY {
        return Err(LuksError::Corrupt(format!(
            "a key slot that wants {memory} KiB of memory, more than LUKS2 allows"
        )));
    }
    let available = available_memory();
    if u64::from(memory) << 10 > available {
        return Err(LuksError::Unsupported(format!(
            "its key slot needs {} MiB of memory to be opened, and {} MiB are free: run this again \
             on a machine with more",
            memory >> 10,
            available >> 20
        )));
    }
    let parameters = argon2::Params::new(memory, rounds, lanes, Some(key.len()));
    let parameters = parameters.map_err(|error| {
        LuksError::Corrupt(format!("a key slot with impossible numbers ({error})"))
    })?;
    let mut blocks = Vec::new();
    blocks
        .try_reserve_exact(parameters.block_count())
        .map_err(|_| {
            LuksError::Unsupported(format!(
                "its key slot needs {} MiB of memory to be opened",
                memory >> 10
            ))
        })?;
    blocks.resize(parameters.block_count(), argon2::Block::default());
    argon2::Argon2::new(kind, argon2::Version::V0x13, parameters)
        .hash_password_into_with_memory(passphrase, salt, key, &mut blocks)
        .map_err(|error| LuksError::Corrupt(format!("a key slot that cannot be opened ({error})")))
}

/// `MemAvailable`, in bytes: what can be had without swapping (proc_meminfo(5)).
fn available_memory() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"));
    let kibibytes = line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok());
    kibibytes.map_or(u64::MAX, |count| count << 10)
}

/// One key slot.
#[derive(Debug, Clone)]
pub(super) struct Slot {
    pub kdf: Kdf,
    pub salt: Vec<u8>,
    /// Cipher of its area, and the length of the key for it.
    pub cipher: String,
    pub area_key_length: usize,
    /// First byte of its area.
    pub offset: u64,
    pub stripes: u32,
    pub hash: Hash,
    /// Length of the volume's key.
    pub key_length: usize,
}

impl Slot {
    /// Time that [`Slot::open`] takes.
    pub fn time(&self) -> Duration {
        self.kdf.time(self.area_key_length)
    }

    /// What this passphrase makes of it: the volume's key, or noise.
    pub fn open(&self, bytes: &dyn ReadAt, passphrase: &[u8]) -> Result<Key, LuksError> {
        let is_possible = (1..=MAX_KEY).contains(&self.key_length)
            && (1..=MAX_KEY).contains(&self.area_key_length)
            && (1..=MAX_STRIPES).contains(&self.stripes);
        let length = self.key_length * self.stripes as usize;
        let end = self.offset.checked_add(length.next_multiple_of(512) as u64);
        if !is_possible || end.is_none_or(|end| end > bytes.len()) {
            return Err(LuksError::Corrupt(
                "a key slot with impossible bounds".into(),
            ));
        }
        let key = self
            .kdf
            .derive(passphrase, &self.salt, self.area_key_length)?;
        let mut area = Zeroizing::new(vec![0; length.next_multiple_of(512)]);
        bytes.read_exact_at(&mut area, self.offset)?;
        Xts::new(&self.cipher, &key, 512)?.decrypt(&mut area, 0);
        area.truncate(length);
        Ok(merge(&area, self.key_length, self.hash))
    }
}

/// Puts together what the splitter spread over `area`.
fn merge(area: &[u8], length: usize, hash: Hash) -> Key {
    let mut key = Zeroizing::new(vec![0; length]);
    let mut stripes = area.chunks_exact(length).peekable();
    while let Some(stripe) = stripes.next() {
        key.iter_mut()
            .zip(stripe)
            .for_each(|(byte, other)| *byte ^= other);
        if stripes.peek().is_some() {
            diffuse(&mut key, hash);
        }
    }
    Key::new(std::mem::take(&mut *key))
}

/// Each piece as long as a digest is replaced by the digest of its number and itself.
fn diffuse(key: &mut [u8], hash: Hash) {
    let algorithm = hash.digest();
    for (number, piece) in (0_u32..).zip(key.chunks_mut(algorithm.output_len())) {
        let mut context = digest::Context::new(algorithm);
        context.update(&number.to_be_bytes());
        context.update(piece);
        let digest = context.finish();
        let length = piece.len();
        piece.copy_from_slice(digest.as_ref().get(..length).unwrap_or_default());
    }
}

/// Tells the right key of a volume.
#[derive(Debug, Clone)]
pub(super) struct Digest {
    pub hash: Hash,
    pub iterations: u32,
    pub salt: Vec<u8>,
    pub digest: Vec<u8>,
}

impl Digest {
    /// Time that [`Digest::fits`] takes.
    pub fn time(&self) -> Duration {
        self.hash.pbkdf2_time(self.iterations, self.digest.len())
    }

    pub fn fits(&self, key: &Key) -> bool {
        // A digest of nothing would fit anything.
        NonZeroU32::new(self.iterations)
            .filter(|_| self.digest.len() >= 16)
            .is_some_and(|iterations| {
                pbkdf2::verify(
                    self.hash.pbkdf2(),
                    iterations,
                    &self.salt,
                    key.bytes(),
                    &self.digest,
                )
                .is_ok()
            })
    }
}
