//! AES-XTS, the only cipher that cryptsetup has used unasked since 2013 (1.6).

use aes::cipher::KeyInit as _;
use aes::{Aes128, Aes256};
use xts_mode::Xts128;
use zeroize::Zeroizing;

use super::LuksError;

/// The key of a volume or a slot. Never shown, and wiped when it is dropped.
#[derive(Clone, PartialEq, Eq)]
pub struct Key(Zeroizing<Vec<u8>>);

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Key of {} bytes", self.0.len())
    }
}

impl Key {
    pub(super) fn new(bytes: Vec<u8>) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The key itself.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
}

/// Decrypts sectors.
pub(super) struct Xts {
    kind: Kind,
    sector_size: usize,
    /// plain numbers sectors with 32 bits, plain64 with 64.
    mask: u64,
}

enum Kind {
    Of128(Box<Xts128<Aes128>>),
    Of256(Box<Xts128<Aes256>>),
}

impl Xts {
    pub fn new(cipher: &str, key: &Key, sector_size: u32) -> Result<Self, LuksError> {
        let mask = match cipher {
            "aes-xts-plain64" => u64::MAX,
            "aes-xts-plain" => u32::MAX.into(),
            other => {
                return Err(LuksError::Unsupported(format!(
                    "it is encrypted with {other}, and only aes-xts-plain64 is read"
                )));
            }
        };
        if !matches!(sector_size, 512 | 1024 | 2048 | 4096) {
            return Err(LuksError::Corrupt(format!(
                "sectors of {sector_size} bytes"
            )));
        }
        // The first half is for the data, the second for the tweak.
        let (data, tweak) = key.bytes().split_at(key.len() / 2);
        let kind = match (Aes128::new_from_slice(data), Aes256::new_from_slice(data)) {
            (Ok(data), _) => Aes128::new_from_slice(tweak)
                .ok()
                .map(|tweak| Kind::Of128(Box::new(Xts128::new(data, tweak)))),
            (_, Ok(data)) => Aes256::new_from_slice(tweak)
                .ok()
                .map(|tweak| Kind::Of256(Box::new(Xts128::new(data, tweak)))),
            _ => None,
        };
        let kind =
            kind.ok_or_else(|| LuksError::Unsupported(format!("its key has {} bytes", key.len())))?;
        Ok(Self {
            kind,
            sector_size: sector_size as usize,
            mask,
        })
    }

    /// Whole sectors, the first of which has this number in units of 512 bytes.
    pub fn decrypt(&self, sectors: &mut [u8], first: u64) {
        for (index, sector) in sectors.chunks_exact_mut(self.sector_size).enumerate() {
            let number = first.wrapping_add((index * self.sector_size / 512) as u64) & self.mask;
            let tweak = u128::from(number).to_le_bytes();
            match &self.kind {
                Kind::Of128(xts) => xts.decrypt_sector(sector, tweak),
                Kind::Of256(xts) => xts.decrypt_sector(sector, tweak),
            }
        }
    }
}
