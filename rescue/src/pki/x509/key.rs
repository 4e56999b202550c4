//! Private keys: loading what is on the disk, making new ones, writing them as kubeadm does.
//! Nothing here shows a key.

use anyhow::{Context, Result, anyhow, bail};
use der::asn1::BitStringRef;
use der::{Encode, Tag};
use rcgen::{KeyPair, PublicKeyData as _, RsaKeySize, SigningKey as _};
use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;

use super::{der_parts, pem};
use crate::base::ui::Progress;

/// Kind and size of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Algorithm {
    /// RSA with so many bits of modulus.
    Rsa(u32),
    /// ECDSA on NIST P-256.
    P256,
    /// ECDSA on NIST P-384.
    P384,
    /// ECDSA on NIST P-521.
    P521,
}

impl Algorithm {
    /// What a new key should be when the old one was this: RSA sizes that no one generates (1024,
    /// 2047 …) go up to the next usual one, because aws-lc makes 2048, 3072 and 4096 and Go rejects
    /// less than 1024.
    #[must_use]
    pub fn renewed(self) -> Self {
        match self {
            Self::Rsa(bits) if bits <= 2048 => Self::Rsa(2048),
            Self::Rsa(bits) if bits <= 3072 => Self::Rsa(3072),
            Self::Rsa(_) => Self::Rsa(4096),
            other => other,
        }
    }
}

impl fmt::Display for Algorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rsa(bits) => write!(f, "RSA-{bits}"),
            Self::P256 => f.write_str("ECDSA-P256"),
            Self::P384 => f.write_str("ECDSA-P384"),
            Self::P521 => f.write_str("ECDSA-P521"),
        }
    }
}

/// A private key. Debug shows the algorithm only.
pub struct PrivateKey {
    pair: KeyPair,
    algorithm: Algorithm,
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PrivateKey({})", self.algorithm)
    }
}

impl PrivateKey {
    /// The first private key in a PEM file: PKCS#1, SEC1 or PKCS#8; other blocks (`EC PARAMETERS`,
    /// certificates) are skipped, as client-go's keyutil does.
    pub fn from_pem(bytes: &[u8]) -> Result<Self> {
        let blocks = pem::blocks(bytes);
        if blocks.iter().any(|block| {
            block.label == "ENCRYPTED PRIVATE KEY" || (is_key(&block.label) && block.has_headers)
        }) {
            bail!(
                "the private key is encrypted with a passphrase; Kubernetes cannot use such keys \
                 either"
            );
        }
        let block = blocks
            .into_iter()
            .find(|block| is_key(&block.label))
            .with_context(|| match pem::oddity(bytes) {
                Some(oddity) => {
                    format!("the file holds no RSA or ECDSA private key in PEM: {oddity}")
                }
                None => "the file holds no RSA or ECDSA private key in PEM".to_owned(),
            })?;
        // The cause is left out on purpose: nothing of a key may end up in a message.
        let pair = KeyPair::try_from(block.der).map_err(|_| {
            anyhow!(
                "the private key is damaged or of a kind that is not supported (RSA from 2048 \
                 bits, P-256, P-384, P-521 are)"
            )
        })?;
        Self::new(pair)
    }

    fn new(pair: KeyPair) -> Result<Self> {
        let algorithm = match pair.algorithm() {
            algorithm if *algorithm == rcgen::PKCS_ECDSA_P256_SHA256 => Algorithm::P256,
            algorithm if *algorithm == rcgen::PKCS_ECDSA_P384_SHA384 => Algorithm::P384,
            algorithm if *algorithm == rcgen::PKCS_ECDSA_P521_SHA512 => Algorithm::P521,
            algorithm if *algorithm == rcgen::PKCS_RSA_SHA256 => {
                Algorithm::Rsa(rsa_bits(pair.public_key_raw())?)
            }
            _ => bail!("the private key is neither RSA nor ECDSA"),
        };
        Ok(Self { pair, algorithm })
    }

    /// Makes a new key of [`Algorithm::renewed`].
    pub fn generate(algorithm: Algorithm) -> Result<Self> {
        let pair = match algorithm.renewed() {
            Algorithm::Rsa(2048) => {
                KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, RsaKeySize::_2048)
            }
            Algorithm::Rsa(3072) => {
                KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, RsaKeySize::_3072)
            }
            Algorithm::Rsa(_) => {
                KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, RsaKeySize::_4096)
            }
            Algorithm::P256 => KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256),
            Algorithm::P384 => KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384),
            Algorithm::P521 => KeyPair::generate_for(&rcgen::PKCS_ECDSA_P521_SHA512),
        };
        Self::new(pair.with_context(|| format!("generating an {algorithm} key"))?)
    }

    /// Kind and size.
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// The bits of the public key as they stand in a SubjectPublicKeyInfo.
    pub fn public_key(&self) -> &[u8] {
        self.pair.public_key_raw()
    }

    /// The SubjectPublicKeyInfo, DER.
    pub fn public_key_info(&self) -> Vec<u8> {
        self.pair.subject_public_key_info()
    }

    /// Signs with the algorithm that Go picks for such a key (see [`super::issue`]).
    pub fn sign(&self, message: &[u8]) -> Result<Vec<u8>> {
        self.pair.sign(message).context("signing with the CA key")
    }

    /// As kubeadm writes it: PKCS#1 `RSA PRIVATE KEY`, or SEC1 `EC PRIVATE KEY` with named curve
    /// and public key.
    pub fn to_pem(&self) -> Result<String> {
        match self.algorithm {
            Algorithm::Rsa(_) => Ok(pem::encode("RSA PRIVATE KEY", &self.type_specific()?)),
            _ => Ok(pem::encode(
                "EC PRIVATE KEY",
                &self.sec1().context("encoding a new EC key")?,
            )),
        }
    }

    /// What is inside the PKCS#8 wrapping: RSAPrivateKey or ECPrivateKey. A key loaded from PKCS#1
    /// or SEC1 has no wrapping.
    fn type_specific(&self) -> Result<Vec<u8>> {
        let der = self.pair.serialized_der();
        match der_parts::elements(der)
            .context("encoding a new key")?
            .as_slice()
        {
            [
                (Tag::Integer, _),
                (Tag::Sequence, _),
                (Tag::OctetString, key),
                ..,
            ] => Ok(key.clone()),
            _ => Ok(der.to_vec()),
        }
    }

    fn sec1(&self) -> Result<Vec<u8>> {
        let inner = self.type_specific()?;
        let parts = der_parts::elements(&inner)?;
        let [(Tag::Integer, _), (Tag::OctetString, scalar), ..] = parts.as_slice() else {
            bail!("an EC key without a private value");
        };
        let curve = match self.algorithm {
            Algorithm::P384 => const_curve("1.3.132.0.34"),
            Algorithm::P521 => const_curve("1.3.132.0.35"),
            _ => const_curve("1.2.840.10045.3.1.7"),
        }?;
        let public = BitStringRef::from_bytes(self.public_key())?.to_der()?;
        Ok(der_parts::sequence(&[
            &1u8.to_der()?,
            &der_parts::wrap(Tag::OctetString, &[scalar])?,
            &der_parts::explicit(0, &curve)?,
            &der_parts::explicit(1, &public)?,
        ])?)
    }
}

fn const_curve(oid: &str) -> der::Result<Vec<u8>> {
    der::asn1::ObjectIdentifier::new(oid)?.to_der()
}

fn is_key(label: &str) -> bool {
    matches!(label, "RSA PRIVATE KEY" | "EC PRIVATE KEY" | "PRIVATE KEY")
}

/// Bits of the modulus in an RSAPublicKey.
pub(super) fn rsa_bits(public_key: &[u8]) -> Result<u32> {
    let parts = der_parts::elements(public_key).context("reading an RSA public key")?;
    let (_, modulus) = parts
        .first()
        .context("an RSA public key without a modulus")?;
    let digits = modulus.iter().skip_while(|byte| **byte == 0);
    let first = digits
        .clone()
        .next()
        .context("an RSA public key with modulus 0")?;
    Ok(u32::try_from(digits.count())? * 8 - first.leading_zeros())
}

/// Makes a key for each algorithm, on all cores: RSA generation takes most of a repair's time.
pub fn generate_all(algorithms: &[Algorithm], progress: &dyn Progress) -> Result<Vec<PrivateKey>> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let next = AtomicUsize::new(0);
    let (sender, receiver) = mpsc::channel();
    let mut keys: Vec<Option<PrivateKey>> = algorithms.iter().map(|_| None).collect();
    std::thread::scope(|scope| {
        for _ in 0..cores.min(algorithms.len()) {
            let (sender, next) = (sender.clone(), &next);
            scope.spawn(move || {
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    let Some(algorithm) = algorithms.get(index) else {
                        break;
                    };
                    if sender
                        .send((index, PrivateKey::generate(*algorithm)))
                        .is_err()
                    {
                        break;
                    }
                }
            });
        }
        drop(sender);
        for (index, key) in &receiver {
            let key = key?;
            progress.message(&key.algorithm().to_string());
            progress.advance(1);
            if let Some(slot) = keys.get_mut(index) {
                *slot = Some(key);
            }
        }
        Ok::<(), anyhow::Error>(())
    })?;
    keys.into_iter()
        .collect::<Option<Vec<_>>>()
        .context("a key generator stopped early")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    fn openssl(arguments: &[&str], input: &[u8]) -> Vec<u8> {
        use std::io::Write as _;
        let mut child = Command::new("openssl")
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("openssl is installed");
        child.stdin.take().unwrap().write_all(input).unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "openssl {arguments:?}");
        output.stdout
    }

    #[test]
    fn writes_keys_that_openssl_reads_and_reads_them_back() {
        for algorithm in [
            Algorithm::Rsa(2048),
            Algorithm::P256,
            Algorithm::P384,
            Algorithm::P521,
        ] {
            let key = PrivateKey::generate(algorithm).unwrap();
            let text = key.to_pem().unwrap();
            let label = if matches!(algorithm, Algorithm::Rsa(_)) {
                "RSA PRIVATE KEY"
            } else {
                "EC PRIVATE KEY"
            };
            assert!(
                text.starts_with(&format!("-----BEGIN {label}-----\n")),
                "{algorithm}"
            );
            let again = PrivateKey::from_pem(text.as_bytes()).unwrap();
            assert_eq!(again.public_key(), key.public_key());
            assert_eq!(again.algorithm(), algorithm);
            let public = openssl(&["pkey", "-pubout", "-outform", "DER"], text.as_bytes());
            assert_eq!(public, key.public_key_info(), "{algorithm}");
            // openssl's own encoding of the same key is the same: named curve, public key included.
            let same = openssl(&["pkey", "-traditional"], text.as_bytes());
            assert_eq!(String::from_utf8(same).unwrap(), text, "{algorithm}");
        }
    }

    #[test]
    fn reads_openssl_keys_of_each_kind() {
        let sec1 = openssl(&["ecparam", "-name", "secp384r1", "-genkey"], b"");
        assert!(String::from_utf8_lossy(&sec1).contains("EC PARAMETERS"));
        assert_eq!(
            PrivateKey::from_pem(&sec1).unwrap().algorithm(),
            Algorithm::P384
        );
        let pkcs8 = openssl(
            &[
                "genpkey",
                "-algorithm",
                "RSA",
                "-pkeyopt",
                "rsa_keygen_bits:3072",
            ],
            b"",
        );
        assert_eq!(
            PrivateKey::from_pem(&pkcs8).unwrap().algorithm(),
            Algorithm::Rsa(3072)
        );
        let encrypted = openssl(&["pkey", "-aes128", "-passout", "pass:secret"], &sec1);
        assert!(
            PrivateKey::from_pem(&encrypted)
                .unwrap_err()
                .to_string()
                .contains("encrypted")
        );
        assert!(PrivateKey::from_pem(b"nothing here").is_err());
    }

    #[test]
    fn generates_many_in_order() {
        let wanted = [
            Algorithm::P384,
            Algorithm::Rsa(2048),
            Algorithm::P256,
            Algorithm::P256,
        ];
        let keys = generate_all(&wanted, &crate::base::ui::Silent).unwrap();
        assert_eq!(
            keys.iter().map(PrivateKey::algorithm).collect::<Vec<_>>(),
            wanted
        );
        assert_ne!(keys[2].public_key(), keys[3].public_key());
    }

    #[test]
    fn survives_damaged_keys() {
        let good = PrivateKey::generate(Algorithm::P256).unwrap();
        let der = pem::blocks(good.to_pem().unwrap().as_bytes()).remove(0).der;
        for label in ["EC PRIVATE KEY", "RSA PRIVATE KEY", "PRIVATE KEY"] {
            for at in 0..der.len() {
                let _ = PrivateKey::from_pem(pem::encode(label, &der[..at]).as_bytes());
                for value in [0, 0x7f, 0x80, 0x84, 0xff] {
                    let mut damaged = der.clone();
                    damaged[at] = value;
                    let _ = PrivateKey::from_pem(pem::encode(label, &damaged).as_bytes());
                }
            }
        }
    }

    #[test]
    fn never_shows_a_key() {
        let key = PrivateKey::generate(Algorithm::P256).unwrap();
        assert_eq!(format!("{key:?}"), "PrivateKey(ECDSA-P256)");
    }
}
