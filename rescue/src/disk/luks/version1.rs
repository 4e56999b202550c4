//! The header of LUKS1: one structure of 592 bytes, big endian.

use super::kdf::{Digest, Hash, Kdf, Slot};
use super::{Header, LuksError};
use crate::disk::ReadAt;
use crate::disk::bytes::{be32, text};

pub(super) const MAGIC: &[u8] = b"LUKS\xba\xbe";
const SLOTS: usize = 8;
const ACTIVE: u32 = 0x00ac_71f3;

pub(super) fn read(bytes: &dyn ReadAt) -> Result<Header, LuksError> {
    let mut raw = [0; 592];
    bytes.read_exact_at(&mut raw, 0)?;
    let name = |at: usize| {
        text(&raw, at, 32).ok_or_else(|| LuksError::Corrupt("it names no cipher or hash".into()))
    };
    let cipher = format!("{}-{}", name(8)?, name(40)?);
    let hash = Hash::named(&name(72)?)?;
    let key_length = usize::try_from(be32(&raw, 108)).unwrap_or(usize::MAX);
    let field = |at: usize, length: usize| raw.get(at..at + length).unwrap_or_default().to_vec();
    let slot = |at: usize| Slot {
        kdf: Kdf::Pbkdf2 {
            hash,
            iterations: be32(&raw, at + 4),
        },
        salt: field(at + 8, 32),
        cipher: cipher.clone(),
        area_key_length: key_length,
        offset: u64::from(be32(&raw, at + 40)) * 512,
        stripes: be32(&raw, at + 44),
        hash,
        key_length,
    };
    let slots = (0..SLOTS)
        .map(|number| 208 + number * 48)
        .filter(|at| be32(&raw, *at) == ACTIVE)
        .map(slot)
        .collect();
    Ok(Header {
        slots,
        key_length,
        offset: u64::from(be32(&raw, 104)) * 512,
        length: None,
        sector_size: 512,
        iv_tweak: 0,
        digest: Digest {
            hash,
            iterations: be32(&raw, 164),
            salt: field(132, 32),
            digest: field(112, 20),
        },
        cipher,
    })
}
