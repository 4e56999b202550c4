//! Keys and certificates for many workers in one file, which travels encrypted with a passphrase
//! (the age format, version 1, with its scrypt recipient: <https://age-encryption.org/v1>; `age -d`
//! opens it too).

use age::secrecy::SecretString;
use age::{DecryptError, scrypt};
use anyhow::{Context as _, Result};
use time::OffsetDateTime;
use zeroize::Zeroizing;

use super::ferry::{self, CertificateFile, Entry, Order};
use super::inventory::Signer;
use super::x509::key::{Algorithm, PrivateKey, generate_all};
use crate::base::ui::Progress;

/// scrypt's N as a power of two: 128 MiB and some tenths of a second per guess. Fixed rather than
/// measured, as the crate would: the machine that opens a bundle may be much slower, with much less
/// memory, than the one that made it.
const WORK_FACTOR: u8 = 17;
/// What is still opened: 256 MiB, as the `age` program makes them. A file that asks for more would
/// take the rescue system's memory.
const MOST_WORK: u8 = 18;

/// Why a bundle could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum Sealed {
    /// Nothing can be told beyond that.
    #[error("the passphrase is wrong")]
    WrongPassphrase,
    /// Cut off, changed, or not for a passphrase.
    #[error("it is damaged or was cut off, or it is not encrypted with a passphrase")]
    Damaged,
    /// More memory and time than we give.
    #[error("it asks for too much work (scrypt 2^{0}, at most 2^{MOST_WORK} is done)")]
    TooMuchWork(u8),
}

/// A new P-256 key, as the kubelet makes them, and its certificate, per node.
pub fn make(
    nodes: &[String],
    signer: &Signer,
    now: OffsetDateTime,
    days: u32,
    progress: &dyn Progress,
) -> Result<CertificateFile> {
    let keys = generate_all(&vec![Algorithm::P256; nodes.len()], progress)?;
    let entries = nodes
        .iter()
        .zip(&keys)
        .map(|(node, key)| entry(node, key, signer, now, days));
    Ok(CertificateFile::new(
        ferry::BUNDLE,
        entries.collect::<Result<_>>()?,
        now,
    ))
}

fn entry(
    node: &str,
    key: &PrivateKey,
    signer: &Signer,
    now: OffsetDateTime,
    days: u32,
) -> Result<Entry> {
    // keyEncipherment means nothing for an EC key; only kubelets before 1.27 asked for it all the
    // same.
    let order = Order {
        node,
        public_key_info: &key.public_key_info(),
        key_encipherment: false,
    };
    let entry = ferry::sign(order, signer, now, days)?;
    Ok(Entry {
        key: Some(Zeroizing::new(key.to_pem()?)),
        ..entry
    })
}

/// Whether these bytes begin as an encrypted file does.
pub fn is_sealed(bytes: &[u8]) -> bool {
    bytes.starts_with(b"age-encryption.org/")
}

/// Encrypts a bundle.
pub fn seal(file: &CertificateFile, passphrase: &str) -> Result<Vec<u8>> {
    let plain = Zeroizing::new(serde_json::to_vec(file)?);
    encrypt(&plain, passphrase, WORK_FACTOR)
}

fn encrypt(plain: &[u8], passphrase: &str, work_factor: u8) -> Result<Vec<u8>> {
    let mut recipient = scrypt::Recipient::new(SecretString::from(passphrase.to_owned()));
    recipient.set_work_factor(work_factor);
    age::encrypt(&recipient, plain).context("encrypting the bundle")
}

/// Decrypts what [`seal`] made.
pub fn open(bytes: &[u8], passphrase: &str) -> Result<Zeroizing<Vec<u8>>, Sealed> {
    let mut identity = scrypt::Identity::new(SecretString::from(passphrase.to_owned()));
    identity.set_max_work_factor(MOST_WORK);
    age::decrypt(&identity, bytes)
        .map(Zeroizing::new)
        .map_err(|error| match error {
            DecryptError::DecryptionFailed | DecryptError::KeyDecryptionFailed => {
                Sealed::WrongPassphrase
            }
            DecryptError::ExcessiveWork { required, .. } => Sealed::TooMuchWork(required),
            _ => Sealed::Damaged,
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The real factor is for real bundles.
    const QUICK: u8 = 4;

    #[test]
    fn opens_only_with_its_passphrase_and_only_whole() {
        let sealed = encrypt(b"much to hide", "correct horse", QUICK).unwrap();
        assert!(is_sealed(&sealed));
        assert!(!sealed.windows(4).any(|bytes| bytes == b"much"));
        assert_eq!(
            open(&sealed, "correct horse").unwrap().as_slice(),
            b"much to hide"
        );
        assert!(matches!(
            open(&sealed, "correct hors"),
            Err(Sealed::WrongPassphrase)
        ));
        for at in 0..sealed.len() {
            assert!(
                open(&sealed[..at], "correct horse").is_err(),
                "cut off at {at}"
            );
            let mut damaged = sealed.clone();
            damaged[at] ^= 1;
            assert!(open(&damaged, "correct horse").is_err(), "byte {at}");
        }
    }

    #[test]
    fn does_not_work_without_end_for_a_hostile_file() {
        let sealed = encrypt(b"x", "correct horse", QUICK).unwrap();
        let head = sealed
            .iter()
            .enumerate()
            .filter(|(_, byte)| **byte == b'\n')
            .nth(1)
            .unwrap()
            .0;
        let line = String::from_utf8(sealed[..head].to_vec()).unwrap();
        let greedy = [
            line.strip_suffix(" 4").unwrap().as_bytes(),
            b" 40",
            &sealed[head..],
        ]
        .concat();
        assert!(matches!(
            open(&greedy, "correct horse"),
            Err(Sealed::TooMuchWork(40))
        ));
    }
}
