//! What a certificate says: names as raw bytes and as text, validity, key, extensions.

use anyhow::{Context, Result, anyhow, bail};
use aws_lc_rs::signature::{self, UnparsedPublicKey, VerificationAlgorithm};
use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};
use time::OffsetDateTime;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::{FromDer, X509Certificate};
use x509_parser::x509::SubjectPublicKeyInfo;

use super::key::{Algorithm, PrivateKey, rsa_bits};
use super::pem;

/// A subject alternative name extension.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AlternativeNames {
    /// The extension's value, DER, as it stood.
    pub raw: Vec<u8>,
    /// Whether it was critical.
    pub critical: bool,
    /// For people: `DNS:localhost`, `IP:127.0.0.1`.
    pub names: Vec<String>,
}

/// One certificate, taken apart.
#[derive(Clone, PartialEq, Eq)]
pub struct Certificate {
    /// The whole of it.
    pub der: Vec<u8>,
    /// Subject, DER.
    pub subject_raw: Vec<u8>,
    /// Issuer, DER.
    pub issuer_raw: Vec<u8>,
    /// Subject for people.
    pub subject: String,
    /// Issuer for people.
    pub issuer: String,
    /// The (last) common name, as Go takes it.
    pub common_name: Option<String>,
    /// All organizations: RBAC groups of a client.
    pub organizations: Vec<String>,
    /// Serial number, hexadecimal.
    pub serial: String,
    /// First moment of validity.
    pub not_before: OffsetDateTime,
    /// Last moment of validity.
    pub not_after: OffsetDateTime,
    /// SubjectPublicKeyInfo, DER.
    pub public_key_info: Vec<u8>,
    /// The public key's bits.
    pub public_key: Vec<u8>,
    /// Kind and size of the key; `None` for kinds that kubeadm never uses.
    pub algorithm: Option<Algorithm>,
    /// Subject alternative names.
    pub alternative_names: Option<AlternativeNames>,
    /// Key usage bits, bit 0 = digitalSignature.
    pub key_usage: Option<u16>,
    /// Extended key usages, dotted OIDs in order.
    pub extended_key_usage: Option<Vec<String>>,
    /// Subject key identifier.
    pub subject_key_id: Option<Vec<u8>>,
    /// Key identifier of the issuer.
    pub authority_key_id: Option<Vec<u8>>,
    /// basicConstraints CA:TRUE.
    pub is_ca: bool,
}

impl fmt::Debug for Certificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Certificate")
            .field("subject", &self.subject)
            .field("issuer", &self.issuer)
            .field("not_after", &self.not_after)
            .finish_non_exhaustive()
    }
}

/// Whether a signature holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SignatureCheck {
    /// It does.
    Valid,
    /// It does not.
    Invalid,
    /// An algorithm that this program does not know (SHA-1, PSS …).
    Unknown,
}

/// Bit of keyCertSign in [`Certificate::key_usage`].
const KEY_CERT_SIGN: u16 = 1 << 5;

impl Certificate {
    /// Takes one certificate apart.
    pub fn from_der(der: &[u8]) -> Result<Self> {
        let (rest, parsed) = X509Certificate::from_der(der)
            .map_err(|error| anyhow!("not an X.509 certificate: {error}"))?;
        if !rest.is_empty() {
            bail!("not an X.509 certificate: {} bytes follow it", rest.len());
        }
        let key_bits = parsed.public_key().subject_public_key.data.to_vec();
        let mut certificate = Self {
            der: der.to_vec(),
            subject_raw: parsed.subject().as_raw().to_vec(),
            issuer_raw: parsed.issuer().as_raw().to_vec(),
            subject: printable(&parsed.subject().to_string()),
            issuer: printable(&parsed.issuer().to_string()),
            common_name: last_text(parsed.subject().iter_common_name()),
            organizations: all_text(parsed.subject().iter_organization()),
            serial: parsed
                .raw_serial()
                .iter()
                .map(|byte| format!("{byte:02x}"))
                .collect(),
            not_before: parsed.validity().not_before.to_datetime(),
            not_after: parsed.validity().not_after.to_datetime(),
            public_key_info: parsed.public_key().raw.to_vec(),
            algorithm: key_algorithm(parsed.public_key()),
            public_key: key_bits,
            alternative_names: None,
            key_usage: None,
            extended_key_usage: None,
            subject_key_id: None,
            authority_key_id: None,
            is_ca: false,
        };
        certificate.read_extensions(&parsed)?;
        Ok(certificate)
    }

    /// All certificates of a PEM file, in order; like Go's ParseCertsPEM, one that does not parse
    /// makes the file unreadable, and so does a file without any.
    pub fn all_from_pem(bytes: &[u8]) -> Result<Vec<Self>> {
        let all = pem::certificates(bytes);
        if all.is_empty() {
            match pem::oddity(bytes) {
                Some(oddity) => bail!("no certificate in PEM was found in it: {oddity}"),
                None => bail!("no certificate in PEM was found in it"),
            }
        }
        all.iter().map(|der| Self::from_der(der)).collect()
    }

    /// As a PEM block.
    pub fn to_pem(&self) -> String {
        pem::encode("CERTIFICATE", &self.der)
    }

    fn read_extensions(&mut self, parsed: &X509Certificate<'_>) -> Result<()> {
        for extension in parsed.extensions() {
            match extension.parsed_extension() {
                ParsedExtension::SubjectAlternativeName(names) => {
                    self.alternative_names = Some(AlternativeNames {
                        raw: extension.value.to_vec(),
                        critical: extension.critical,
                        names: names.general_names.iter().map(name_text).collect(),
                    });
                }
                ParsedExtension::KeyUsage(usage) => self.key_usage = Some(usage.flags),
                ParsedExtension::ExtendedKeyUsage(_) => {
                    let oids = super::der_parts::elements(extension.value)
                        .context("reading extended key usages")?;
                    self.extended_key_usage =
                        Some(oids.iter().map(|(_, bytes)| oid_text(bytes)).collect());
                }
                ParsedExtension::BasicConstraints(constraints) => self.is_ca = constraints.ca,
                ParsedExtension::SubjectKeyIdentifier(id) => {
                    self.subject_key_id = Some(id.0.to_vec())
                }
                ParsedExtension::AuthorityKeyIdentifier(id) => {
                    self.authority_key_id = id.key_identifier.as_ref().map(|id| id.0.to_vec());
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// May sign certificates: basicConstraints CA:TRUE and, where key usage is given, keyCertSign.
    pub fn may_sign(&self) -> bool {
        self.is_ca && self.key_usage.is_none_or(|bits| bits & KEY_CERT_SIGN != 0)
    }

    /// Whether `key` is this certificate's.
    pub fn matches(&self, key: &PrivateKey) -> bool {
        self.public_key == key.public_key()
    }

    /// Whether a signature made with `key` verifies with this certificate's public key. Who only
    /// has the certificate can write a key file whose public part is the certificate's;
    /// [`Certificate::matches`] alone relies on the library to refuse it.
    pub fn is_proved_by(&self, key: &PrivateKey) -> bool {
        // Nobody else is asked to accept the signature, so it need not be of something new each
        // time.
        const MESSAGE: &[u8] = b"does this private key fit the certificate?";
        if !self.matches(key) {
            return false;
        }
        // With what [`PrivateKey::sign`] signs.
        let oid = match key.algorithm() {
            Algorithm::Rsa(_) => "1.2.840.113549.1.1.11",
            Algorithm::P256 => "1.2.840.10045.4.3.2",
            Algorithm::P384 => "1.2.840.10045.4.3.3",
            Algorithm::P521 => "1.2.840.10045.4.3.4",
        };
        let (Some(algorithm), Ok(signature)) =
            (verification(oid, self.algorithm), key.sign(MESSAGE))
        else {
            return false;
        };
        UnparsedPublicKey::new(algorithm, &self.public_key)
            .verify(MESSAGE, &signature)
            .is_ok()
    }

    /// Whether both are the same authority, maybe of another age: same name byte for byte, same
    /// key. To those who trust one of them the other is as good, dates apart.
    pub fn is_same_authority(&self, other: &Self) -> bool {
        self.subject_raw == other.subject_raw && self.public_key == other.public_key
    }

    /// Whether it was signed by its own key. A signature that cannot be checked (SHA-1) counts
    /// where the key identifiers do not say otherwise.
    pub fn is_self_signed(&self) -> bool {
        match self.signed_by(self) {
            SignatureCheck::Valid => true,
            SignatureCheck::Invalid => false,
            SignatureCheck::Unknown => {
                self.authority_key_id.is_none() || self.authority_key_id == self.subject_key_id
            }
        }
    }

    /// Whether `self` names `issuer` byte for byte and carries its signature. Dates are not looked
    /// at.
    pub fn signed_by(&self, issuer: &Self) -> SignatureCheck {
        if self.issuer_raw != issuer.subject_raw {
            return SignatureCheck::Invalid;
        }
        let Ok((_, parsed)) = X509Certificate::from_der(&self.der) else {
            return SignatureCheck::Invalid;
        };
        // RFC 5280 wants both names of the algorithm to be the same, and Go insists; only one of
        // them is signed.
        if parsed.signature_algorithm != parsed.tbs_certificate.signature
            || parsed.signature_value.unused_bits != 0
        {
            return SignatureCheck::Invalid;
        }
        let oid = parsed.signature_algorithm.algorithm.to_id_string();
        let Some(algorithm) = verification(&oid, issuer.algorithm) else {
            return SignatureCheck::Unknown;
        };
        let key = UnparsedPublicKey::new(algorithm, &issuer.public_key);
        match key.verify(
            parsed.tbs_certificate.as_ref(),
            &parsed.signature_value.data,
        ) {
            Ok(()) => SignatureCheck::Valid,
            Err(_) => SignatureCheck::Invalid,
        }
    }
}

/// How to verify a signature of the kind `oid` made by a key of the kind `key`.
pub(in crate::pki) fn verification(
    oid: &str,
    key: Option<Algorithm>,
) -> Option<&'static dyn VerificationAlgorithm> {
    Some(match (oid, key?) {
        ("1.2.840.113549.1.1.11", Algorithm::Rsa(2048..)) => &signature::RSA_PKCS1_2048_8192_SHA256,
        ("1.2.840.113549.1.1.12", Algorithm::Rsa(2048..)) => &signature::RSA_PKCS1_2048_8192_SHA384,
        ("1.2.840.113549.1.1.13", Algorithm::Rsa(2048..)) => &signature::RSA_PKCS1_2048_8192_SHA512,
        ("1.2.840.10045.4.3.2", Algorithm::P256) => &signature::ECDSA_P256_SHA256_ASN1,
        ("1.2.840.10045.4.3.3", Algorithm::P256) => &signature::ECDSA_P256_SHA384_ASN1,
        ("1.2.840.10045.4.3.4", Algorithm::P256) => &signature::ECDSA_P256_SHA512_ASN1,
        ("1.2.840.10045.4.3.2", Algorithm::P384) => &signature::ECDSA_P384_SHA256_ASN1,
        ("1.2.840.10045.4.3.3", Algorithm::P384) => &signature::ECDSA_P384_SHA384_ASN1,
        ("1.2.840.10045.4.3.4", Algorithm::P384) => &signature::ECDSA_P384_SHA512_ASN1,
        ("1.2.840.10045.4.3.2", Algorithm::P521) => &signature::ECDSA_P521_SHA256_ASN1,
        ("1.2.840.10045.4.3.3", Algorithm::P521) => &signature::ECDSA_P521_SHA384_ASN1,
        ("1.2.840.10045.4.3.4", Algorithm::P521) => &signature::ECDSA_P521_SHA512_ASN1,
        _ => return None,
    })
}

/// Kind and size of a public key; `None` for kinds that kubeadm never uses.
pub(in crate::pki) fn key_algorithm(key: &SubjectPublicKeyInfo<'_>) -> Option<Algorithm> {
    match key.algorithm.algorithm.to_id_string().as_str() {
        "1.2.840.113549.1.1.1" => rsa_bits(&key.subject_public_key.data)
            .ok()
            .map(Algorithm::Rsa),
        "1.2.840.10045.2.1" => match key
            .algorithm
            .parameters
            .as_ref()?
            .as_oid()
            .ok()?
            .to_id_string()
            .as_str()
        {
            "1.2.840.10045.3.1.7" => Some(Algorithm::P256),
            "1.3.132.0.34" => Some(Algorithm::P384),
            "1.3.132.0.35" => Some(Algorithm::P521),
            _ => None,
        },
        _ => None,
    }
}

fn all_text<'a>(
    values: impl Iterator<Item = &'a x509_parser::x509::AttributeTypeAndValue<'a>>,
) -> Vec<String> {
    values
        .filter_map(|value| value.as_str().ok())
        .map(printable)
        .collect()
}

fn last_text<'a>(
    values: impl Iterator<Item = &'a x509_parser::x509::AttributeTypeAndValue<'a>>,
) -> Option<String> {
    all_text(values).pop()
}

fn oid_text(bytes: &[u8]) -> String {
    der::asn1::ObjectIdentifier::from_bytes(bytes)
        .map_or_else(|_| "?".to_owned(), |oid| oid.to_string())
}

fn name_text(name: &GeneralName<'_>) -> String {
    match name {
        GeneralName::DNSName(dns) => format!("DNS:{}", printable(dns)),
        GeneralName::RFC822Name(mail) => format!("email:{}", printable(mail)),
        GeneralName::URI(uri) => format!("URI:{}", printable(uri)),
        GeneralName::IPAddress(bytes) => match *bytes {
            [a, b, c, d] => format!("IP:{}", Ipv4Addr::new(*a, *b, *c, *d)),
            bytes => <[u8; 16]>::try_from(bytes).map_or_else(
                |_| format!("IP of {} bytes", bytes.len()),
                |bytes| format!("IP:{}", Ipv6Addr::from(bytes)),
            ),
        },
        other => printable(&other.to_string()),
    }
}

/// Names come from the guest: nothing in them may control a terminal.
pub fn printable(text: &str) -> String {
    text.chars()
        .map(|character| {
            if crate::base::escaping::misleads(character) {
                '\u{fffd}'
            } else {
                character
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A self-signed certificate of `key`.
    fn certificate(key: &PrivateKey) -> Certificate {
        let mut parameters = rcgen::CertificateParams::new(Vec::new()).unwrap();
        parameters
            .distinguished_name
            .push(rcgen::DnType::CommonName, "x");
        let pem = key.to_pem().unwrap();
        let pair = rcgen::KeyPair::try_from(pem::blocks(pem.as_bytes())[0].der.clone()).unwrap();
        Certificate::from_der(parameters.self_signed(&pair).unwrap().der()).unwrap()
    }

    #[test]
    fn only_the_key_itself_proves_its_certificate() {
        for algorithm in [
            Algorithm::Rsa(2048),
            Algorithm::P256,
            Algorithm::P384,
            Algorithm::P521,
        ] {
            let (own, other) = (
                PrivateKey::generate(algorithm).unwrap(),
                PrivateKey::generate(algorithm).unwrap(),
            );
            let certificate = certificate(&own);
            assert!(certificate.is_proved_by(&own), "{algorithm}");
            assert!(!certificate.is_proved_by(&other), "{algorithm}");
        }
    }

    /// Another's public key written into the PEM of one's own private key.
    #[test]
    fn a_public_key_beside_another_s_private_one_proves_nothing() {
        let (own, other) = (
            PrivateKey::generate(Algorithm::P256).unwrap(),
            PrivateKey::generate(Algorithm::P256).unwrap(),
        );
        let der = pem::blocks(own.to_pem().unwrap().as_bytes())[0].der.clone();
        let at = der
            .windows(65)
            .position(|bytes| bytes == own.public_key())
            .unwrap();
        let mut crafted = der;
        crafted[at..at + 65].copy_from_slice(other.public_key());
        let crafted = pem::encode("EC PRIVATE KEY", &crafted);
        if let Ok(key) = PrivateKey::from_pem(crafted.as_bytes()) {
            assert!(!certificate(&other).is_proved_by(&key));
        }
    }

    #[test]
    fn refuses_garbage() {
        assert!(Certificate::from_der(b"").is_err());
        assert!(Certificate::from_der(&[0x30, 0x82, 0xff, 0xff, 1, 2, 3]).is_err());
        assert!(Certificate::all_from_pem(b"hello").is_err());
    }

    #[test]
    fn hides_control_characters() {
        assert_eq!(printable("a\x1b[2Jb"), "a\u{fffd}[2Jb");
    }
}
