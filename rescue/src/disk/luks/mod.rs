//! LUKS, versions 1 and 2, without device-mapper and without cryptsetup: headers, key slots, and
//! the decrypted bytes for reading. After the "LUKS1 On-Disk Format Specification" 1.2.3 and the
//! "LUKS2 On-Disk Format Specification" 1.1.
//!
//! For writing `repair` gives the same key to the kernel's dm-crypt.

mod cipher;
mod kdf;
pub mod keys;
mod version1;
mod version2;
mod work;

use std::io::{Error, ErrorKind, Result as IoResult};
use std::sync::Arc;
use std::time::Duration;

use zeroize::Zeroizing;

use super::ReadAt;
use super::bytes::{be16, has};
use crate::base::refusal::Refusal;
use crate::base::units;
pub use cipher::Key;
use cipher::Xts;
use kdf::{Digest, Slot};
use work::Allowance;

/// Why a volume cannot be unlocked.
#[derive(Debug, thiserror::Error)]
pub enum LuksError {
    /// It could not be read.
    #[error(transparent)]
    Io(#[from] Error),
    /// What is written there cannot be.
    #[error("its LUKS header is damaged: {0}")]
    Corrupt(String),
    /// Well-formed, but not of a kind that is read.
    #[error("{0}")]
    Unsupported(String),
    /// Finding out whether a passphrase opens it takes longer than any volume of cryptsetup's; see
    /// [`work`].
    #[error(transparent)]
    TooMuchWork(Refusal),
    /// None of the keys given opens it.
    #[error("none of the passphrases given opens it")]
    WrongKey,
    /// Nothing was given to open it with.
    #[error("it is encrypted, and no passphrase was given")]
    NoKey,
}

/// What the header says, of either version.
#[derive(Debug, Clone)]
struct Header {
    cipher: String,
    /// Bytes of the volume's key.
    key_length: usize,
    /// First byte of the data.
    offset: u64,
    /// Length of the data; `None`: to the end.
    length: Option<u64>,
    /// Unit of encryption in bytes: 512 to 4096.
    sector_size: u32,
    /// Added to the number of the sector.
    iv_tweak: u64,
    slots: Vec<Slot>,
    digest: Digest,
}

/// How the data lies under a key: what reads it here, and what dm-crypt is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Crypt {
    /// As dm-crypt names it: `aes-xts-plain64`.
    pub cipher: String,
    /// The volume's key.
    pub key: Key,
    /// First byte of the data.
    pub offset: u64,
    /// Its length.
    pub length: u64,
    /// Unit of encryption in bytes.
    pub sector_size: u32,
    /// Number of the first sector, in units of 512 bytes, for its initialisation vector.
    pub iv_tweak: u64,
}

/// Finds the volume's key: with one that opened a volume before (a clone of it, or itself), with
/// what the user gave, with what is typed.
///
/// # Errors
/// [`LuksError::NoKey`] and [`LuksError::WrongKey`] are for the user; so is the rest, in other
/// words.
pub fn unlock(name: &str, bytes: &Arc<dyn ReadAt>) -> Result<Crypt, LuksError> {
    let header = read(bytes.as_ref())?;
    let key = find_key(name, bytes.as_ref(), &header)?;
    // Only what can be read here is unlocked at all.
    Xts::new(&header.cipher, &key, header.sector_size)?;
    let rest = bytes
        .len()
        .checked_sub(header.offset)
        .ok_or_else(|| cut_off(&header, bytes.len()))?;
    let length = header.length.unwrap_or(rest);
    if length > rest || length == 0 {
        return Err(cut_off(&header, bytes.len()));
    }
    let length = length / u64::from(header.sector_size) * u64::from(header.sector_size);
    let Header {
        cipher,
        offset,
        sector_size,
        iv_tweak,
        ..
    } = header;
    Ok(Crypt {
        cipher,
        key,
        offset,
        length,
        sector_size,
        iv_tweak,
    })
}

/// Tries the keys of this run on a volume, for as long as [`work`] allows. The time spent in vain
/// counts when the same volume is looked at again, as a repair does.
fn find_key(name: &str, bytes: &dyn ReadAt, header: &Header) -> Result<Key, LuksError> {
    let mut allowance =
        Allowance::new(work::PER_VOLUME.saturating_sub(keys::spent_in_vain(&header.digest.salt)));
    let before = allowance;
    let found = keys::find(name, header.hopeless(), |attempt| match attempt {
        keys::Attempt::Volume(key) if allowance.take(header.digest.time()) => {
            Ok(header.digest.fits(key).then(|| key.clone()))
        }
        keys::Attempt::Volume(_) => Ok(None),
        keys::Attempt::Passphrase(passphrase) => header.open(bytes, passphrase, &mut allowance),
    });
    if found.is_err() {
        keys::spend_in_vain(&header.digest.salt, before.less(&allowance));
    }
    found
}

fn cut_off(header: &Header, there: u64) -> LuksError {
    LuksError::Corrupt(format!(
        "its data begin at byte {} of {there}: it was cut off, copy it again",
        header.offset
    ))
}

fn read(bytes: &dyn ReadAt) -> Result<Header, LuksError> {
    let mut head = [0; 8];
    bytes.read_exact_at(&mut head, 0)?;
    match be16(&head, 6) {
        1 if has(&head, 0, version1::MAGIC) => version1::read(bytes),
        _ => version2::read(bytes),
    }
}

impl Header {
    /// Key slots, the cheapest first: a dear one must not use up the time that a cheaper one needs.
    fn cheapest_first(&self) -> Vec<&Slot> {
        let mut slots: Vec<&Slot> = self.slots.iter().collect();
        slots.sort_by_key(|slot| slot.time());
        slots
    }

    /// Why no passphrase can be tried at all; `None` where at least one key slot is within the
    /// bound.
    fn hopeless(&self) -> Option<LuksError> {
        let cheapest = self
            .cheapest_first()
            .first()?
            .time()
            .saturating_add(self.digest.time());
        (cheapest > work::PER_PASSPHRASE).then(|| self.too_much_work())
    }

    /// The volume's key, if the passphrase opens one of its slots.
    fn open(
        &self,
        bytes: &dyn ReadAt,
        passphrase: &[u8],
        volume: &mut Allowance,
    ) -> Result<Option<Key>, LuksError> {
        let mut passphrase_allowance = volume.for_one_passphrase();
        let mut trouble = None;
        for slot in self.cheapest_first() {
            let time = slot.time().saturating_add(self.digest.time());
            if !passphrase_allowance.take(time) || !volume.take(time) {
                // The slots after it take as long or longer.
                trouble = Some(self.too_much_work());
                break;
            }
            match slot.open(bytes, passphrase) {
                Ok(key) if key.len() == self.key_length && self.digest.fits(&key) => {
                    return Ok(Some(key));
                }
                Ok(_) => {}
                // Another slot may still open it.
                Err(error) => trouble = Some(error),
            }
        }
        trouble.map_or(Ok(None), Err)
    }

    fn too_much_work(&self) -> LuksError {
        let digest = self.digest.time();
        let all = self.slots.iter().fold(Duration::ZERO, |sum, slot| {
            sum.saturating_add(slot.time()).saturating_add(digest)
        });
        let dearest = self.slots.iter().max_by_key(|slot| slot.time());
        let asks = match dearest {
            Some(slot) if slot.time() > digest => {
                let slots = units::count(self.slots.len(), "key slot", "key slots");
                format!("{slots}, the dearest {}", slot.kdf)
            }
            _ => format!(
                "a digest of its key with {} iterations",
                self.digest.iterations
            ),
        };
        LuksError::TooMuchWork(work::too_much(&asks, all))
    }
}

/// The data, decrypted as it is read.
pub struct Decrypted {
    below: Arc<dyn ReadAt>,
    crypt: Crypt,
    xts: Xts,
}

impl std::fmt::Debug for Decrypted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Decrypted")
            .field("crypt", &self.crypt)
            .finish_non_exhaustive()
    }
}

impl Decrypted {
    /// `None` for a cipher that is not known.
    pub fn new(below: Arc<dyn ReadAt>, crypt: Crypt) -> Option<Self> {
        let xts = Xts::new(&crypt.cipher, &crypt.key, crypt.sector_size).ok()?;
        Some(Self { below, crypt, xts })
    }
}

impl ReadAt for Decrypted {
    fn len(&self) -> u64 {
        self.crypt.length
    }
    fn sector_size(&self) -> u32 {
        self.below.sector_size()
    }
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> IoResult<()> {
        /// What is decrypted at a time: as much as the kernel asks for.
        const PIECE: usize = 128 << 10;
        if offset
            .checked_add(buffer.len() as u64)
            .is_none_or(|end| end > self.crypt.length)
        {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        let size = u64::from(self.crypt.sector_size);
        let mut at = offset;
        for piece in buffer.chunks_mut(PIECE) {
            let (first, end) = (
                at / size * size,
                (at + piece.len() as u64).next_multiple_of(size),
            );
            let mut sectors = Zeroizing::new(vec![0; usize::try_from(end - first).unwrap_or(0)]);
            self.below
                .read_exact_at(&mut sectors, self.crypt.offset + first)?;
            self.xts
                .decrypt(&mut sectors, self.crypt.iv_tweak.wrapping_add(first / 512));
            let from = usize::try_from(at - first).unwrap_or(0);
            piece.copy_from_slice(sectors.get(from..from + piece.len()).unwrap_or_default());
            at += piece.len() as u64;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::kdf::{Hash, Kdf};
    use super::*;

    struct Nothing;

    impl ReadAt for Nothing {
        fn len(&self) -> u64 {
            0
        }
        fn sector_size(&self) -> u32 {
            512
        }
        fn read_exact_at(&self, _buffer: &mut [u8], _offset: u64) -> IoResult<()> {
            Err(ErrorKind::UnexpectedEof.into())
        }
    }

    /// Slots of 32 s each. Their areas are missing, which is noticed before any work is done.
    fn header(slots: usize, digest_iterations: u32) -> Header {
        let slot = Slot {
            kdf: Kdf::Pbkdf2 {
                hash: Hash::Sha256,
                iterations: 50_000_000,
            },
            salt: vec![0; 32],
            cipher: "aes-xts-plain64".into(),
            area_key_length: 64,
            offset: 0,
            stripes: 4000,
            hash: Hash::Sha256,
            key_length: 64,
        };
        let digest = Digest {
            hash: Hash::Sha256,
            iterations: digest_iterations,
            salt: vec![1; 32],
            digest: vec![0; 32],
        };
        Header {
            cipher: slot.cipher.clone(),
            key_length: 64,
            offset: 0,
            length: None,
            sector_size: 512,
            iv_tweak: 0,
            slots: vec![slot; slots],
            digest,
        }
    }

    fn open(header: &Header, volume: &mut Allowance) -> LuksError {
        header.open(&Nothing, b"", volume).unwrap_err()
    }

    #[test]
    fn the_sum_over_slots_and_passphrases_is_bounded() {
        let mut volume = Allowance::new(work::PER_VOLUME);
        assert!(matches!(
            open(&header(2, 1000), &mut volume),
            LuksError::Corrupt(_)
        ));
        let many = header(32, 1000);
        for _ in 0..20 {
            let LuksError::TooMuchWork(refusal) = open(&many, &mut volume) else {
                panic!("no bound")
            };
            assert!(
                refusal.saw.contains("32 key slots") && refusal.saw.contains("17 min"),
                "{refusal}"
            );
        }
        // 64 s with each of the first four passphrases, one slot with the fifth.
        assert!(!volume.take(Duration::from_secs(32)));
        assert!(header(2, 1000).hopeless().is_none() && header(2, u32::MAX).hopeless().is_some());
    }
}
