//! LUKS, versions 1 and 2, without device-mapper and without cryptsetup: headers, key slots, and the decrypted bytes for reading. After the
//! "LUKS1 On-Disk Format Specification" 1.2.3 and the "LUKS2 On-Disk Format Specification" 1.1.
//!
//! For writing `repair` gives the same key to the kernel's dm-crypt.

mod cipher;
mod kdf;
pub mod keys;
mod version1;
mod version2;

use std::io::{Error, ErrorKind, Result as IoResult};
use std::sync::Arc;

use zeroize::Zeroizing;

use super::ReadAt;
use super::bytes::{be16, has};
pub use cipher::Key;
use cipher::Xts;
use kdf::{Digest, Slot};

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

/// Finds the volume's key: with one that opened a volume before (a clone of it, or itself), with what the user gave, with what is typed.
///
/// # Errors
/// [`LuksError::NoKey`] and [`LuksError::WrongKey`] are for the user; so is the rest, in other words.
pub fn unlock(name: &str, bytes: &Arc<dyn ReadAt>) -> Result<Crypt, LuksError> {
    let header = read(bytes.as_ref())?;
    let key = keys::find(name, |attempt| match attempt {
        keys::Attempt::Volume(key) => Ok(header.digest.fits(key).then(|| key.clone())),
        keys::Attempt::Passphrase(passphrase) => header.open(bytes.as_ref(), passphrase),
    })?;
    // Only what can be read here is unlocked at all.
    Xts::new(&header.cipher, &key, header.sector_size)?;
    let rest = bytes.len().checked_sub(header.offset).ok_or_else(|| cut_off(&header, bytes.len()))?;
    let length = header.length.unwrap_or(rest);
    if length > rest || length == 0 {
        return Err(cut_off(&header, bytes.len()));
    }
    let length = length / u64::from(header.sector_size) * u64::from(header.sector_size);
    let Header { cipher, offset, sector_size, iv_tweak, .. } = header;
    Ok(Crypt { cipher, key, offset, length, sector_size, iv_tweak })
}

fn cut_off(header: &Header, there: u64) -> LuksError {
    LuksError::Corrupt(format!("its data begin at byte {} of {there}: it was cut off, copy it again", header.offset))
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
    /// The volume's key, if the passphrase opens one of its slots.
    fn open(&self, bytes: &dyn ReadAt, passphrase: &[u8]) -> Result<Option<Key>, LuksError> {
        let mut trouble = None;
        for slot in &self.slots {
            match slot.open(bytes, passphrase) {
                Ok(key) if key.len() == self.key_length && self.digest.fits(&key) => return Ok(Some(key)),
                Ok(_) => {}
                // Another slot may still open it.
                Err(error) => trouble = Some(error),
            }
        }
        trouble.map_or(Ok(None), Err)
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
        f.debug_struct("Decrypted").field("crypt", &self.crypt).finish_non_exhaustive()
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
        if offset.checked_add(buffer.len() as u64).is_none_or(|end| end > self.crypt.length) {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        let size = u64::from(self.crypt.sector_size);
        let mut at = offset;
        for piece in buffer.chunks_mut(PIECE) {
            let (first, end) = (at / size * size, (at + piece.len() as u64).next_multiple_of(size));
            let mut sectors = Zeroizing::new(vec![0; usize::try_from(end - first).unwrap_or(0)]);
            self.below.read_exact_at(&mut sectors, self.crypt.offset + first)?;
            self.xts.decrypt(&mut sectors, self.crypt.iv_tweak.wrapping_add(first / 512));
            let from = usize::try_from(at - first).unwrap_or(0);
            piece.copy_from_slice(sectors.get(from..from + piece.len()).unwrap_or_default());
            at += piece.len() as u64;
        }
        Ok(())
    }
}
