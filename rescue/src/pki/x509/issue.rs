//! Issuing a leaf: the old one is the authority for names and kind of key, the profile for what it
//! may be used for.
//!
//! Deliberate differences from `kubeadm certs renew`: the subject and the SANs keep their exact
//! bytes (kubeadm drops OU, e-mail and URI SANs), NotAfter never outlives the CA, basicConstraints
//! CA:FALSE is always there (as from 1.21 on).

use anyhow::{Context, Result, bail};
use der::asn1::{BitStringRef, GeneralizedTime, ObjectIdentifier, OctetString, UintRef, UtcTime};
use der::{Encode, Tag};
use time::{Duration, OffsetDateTime};
use x509_cert::ext::Extension;
use x509_cert::ext::pkix::{
    AuthorityKeyIdentifier, BasicConstraints, ExtendedKeyUsage, KeyUsage, KeyUsages,
};

use super::certificate::{AlternativeNames, Certificate, SignatureCheck};
use super::der_parts::{explicit, sequence, wrap};
use super::key::{Algorithm, PrivateKey};
use crate::pki::profile::Usage;

/// A CA certificate with its key; the caller has checked that they belong together.
#[derive(Debug, Clone, Copy)]
pub struct Issuer<'a> {
    /// The certificate.
    pub certificate: &'a Certificate,
    /// Its key.
    pub key: &'a PrivateKey,
}

/// What the new leaf shall say.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    /// Subject, DER.
    pub subject_raw: &'a [u8],
    /// SANs of the old leaf.
    pub alternative_names: Option<&'a AlternativeNames>,
    /// SubjectPublicKeyInfo of the leaf's key, DER.
    pub public_key_info: &'a [u8],
    /// Whether keyEncipherment goes beside digitalSignature.
    pub key_encipherment: bool,
    /// Extended key usages.
    pub usages: &'a [Usage],
    /// From when to when.
    pub validity: Validity,
}

/// From when to when a certificate is valid, whole seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Validity {
    /// First moment.
    pub not_before: OffsetDateTime,
    /// Last moment.
    pub not_after: OffsetDateTime,
}

impl Validity {
    /// For what the control plane uses: from the CA's own first moment, as kubeadm up to 1.30 dates
    /// its leaves. The node's clock may be hours off when it boots; such a leaf is valid all the
    /// same.
    pub fn control_plane(ca: &Certificate, now: OffsetDateTime, days: u32) -> Self {
        Self {
            not_before: ca.not_before,
            not_after: end(ca, now, days),
        }
    }

    /// For the kubelet: from one day ago, but not before the CA. It rotates after 70 to 90 % of the
    /// lifetime, and a lifetime that began with the CA would make it rotate at once.
    pub fn kubelet(ca: &Certificate, now: OffsetDateTime, days: u32) -> Self {
        let not_before = (whole_seconds(now) - Duration::days(1)).max(ca.not_before);
        Self {
            not_before,
            not_after: end(ca, now, days),
        }
    }
}

/// `days` from now, but never after the CA's own end: Go rejects a chain as soon as one of its
/// members is expired.
fn end(ca: &Certificate, now: OffsetDateTime, days: u32) -> OffsetDateTime {
    let end = whole_seconds(now).checked_add(Duration::days(i64::from(days)));
    end.map_or(ca.not_after, |end| end.min(ca.not_after))
}

pub(in crate::pki) fn whole_seconds(time: OffsetDateTime) -> OffsetDateTime {
    time.replace_nanosecond(0).unwrap_or(time)
}

/// Signs `request` and proves the result: parsed again, names byte for byte, signature verified
/// with the CA's public key.
pub fn issue(issuer: Issuer<'_>, request: Request<'_>) -> Result<Certificate> {
    let algorithm =
        signature_algorithm(issuer.key.algorithm()).context("naming the signature algorithm")?;
    let tbs = to_be_signed(issuer.certificate, &request, &algorithm)
        .context("assembling a certificate")?;
    let signature = issuer.key.sign(&tbs)?;
    let bits = BitStringRef::from_bytes(&signature)
        .and_then(|bits| bits.to_der())
        .context("encoding a signature")?;
    let der = sequence(&[&tbs, &algorithm, &bits]).context("assembling a certificate")?;
    let certificate = Certificate::from_der(&der).context("reading back the new certificate")?;
    prove(issuer.certificate, &request, &certificate)?;
    Ok(certificate)
}

fn prove(ca: &Certificate, request: &Request<'_>, made: &Certificate) -> Result<()> {
    if made.signed_by(ca) != SignatureCheck::Valid {
        bail!("the new certificate's signature does not verify with the CA certificate");
    }
    let same_names = made.subject_raw == request.subject_raw
        && made.alternative_names.as_ref().map(|names| &names.raw)
            == request.alternative_names.map(|names| &names.raw);
    let same_dates = made.not_before == request.validity.not_before.max(OffsetDateTime::UNIX_EPOCH)
        && made.not_after == request.validity.not_after;
    if !same_names || !same_dates || made.is_ca || made.public_key_info != request.public_key_info {
        bail!("the new certificate does not say what was asked for");
    }
    if made.not_after <= made.not_before {
        bail!(
            "the new certificate would never be valid: the CA ends {}",
            made.not_after
        );
    }
    Ok(())
}

fn to_be_signed(ca: &Certificate, request: &Request<'_>, algorithm: &[u8]) -> der::Result<Vec<u8>> {
    let version = explicit(0, &2u8.to_der()?)?;
    let validity = sequence(&[
        &moment(request.validity.not_before)?,
        &moment(request.validity.not_after)?,
    ])?;
    let extensions = explicit(3, &sequence(&[&extensions(ca, request)?])?)?;
    sequence(&[
        &version,
        &serial_number()?,
        algorithm,
        &ca.subject_raw,
        &validity,
        request.subject_raw,
        request.public_key_info,
        &extensions,
    ])
}

/// In the order in which Go writes them: KU, EKU, BC, SKI (never on kubeadm's leaves), AKI, SAN.
fn extensions(ca: &Certificate, request: &Request<'_>) -> der::Result<Vec<u8>> {
    let mut key_usage = KeyUsages::DigitalSignature.into();
    if request.key_encipherment {
        key_usage |= KeyUsages::KeyEncipherment;
    }
    let mut all = extension("2.5.29.15", true, KeyUsage(key_usage).to_der()?)?;
    let usages = request
        .usages
        .iter()
        .map(|usage| ObjectIdentifier::new(usage.oid()))
        .collect::<Result<Vec<_>, _>>()?;
    if !usages.is_empty() {
        all.extend(extension(
            "2.5.29.37",
            false,
            ExtendedKeyUsage(usages).to_der()?,
        )?);
    }
    let constraints = BasicConstraints {
        ca: false,
        path_len_constraint: None,
    };
    all.extend(extension("2.5.29.19", true, constraints.to_der()?)?);
    if let Some(id) = &ca.subject_key_id {
        let id = AuthorityKeyIdentifier {
            key_identifier: Some(OctetString::new(id.as_slice())?),
            ..Default::default()
        };
        all.extend(extension("2.5.29.35", false, id.to_der()?)?);
    }
    if let Some(names) = request.alternative_names {
        all.extend(extension("2.5.29.17", names.critical, names.raw.clone())?);
    }
    Ok(all)
}

fn extension(oid: &str, critical: bool, value: Vec<u8>) -> der::Result<Vec<u8>> {
    Extension {
        extn_id: ObjectIdentifier::new(oid)?,
        critical,
        extn_value: OctetString::new(value)?,
    }
    .to_der()
}

/// UTCTime to 2049, GeneralizedTime from 2050 (RFC 5280, 4.1.2.5). A CA dated before 1970 counts
/// from 1970.
pub(in crate::pki) fn moment(time: OffsetDateTime) -> der::Result<Vec<u8>> {
    let since = std::time::Duration::from_secs(u64::try_from(time.unix_timestamp()).unwrap_or(0));
    if time.year() < 2050 {
        UtcTime::from_unix_duration(since)?.to_der()
    } else {
        GeneralizedTime::from_unix_duration(since)?.to_der()
    }
}

/// A random positive number of 63 bits, as kubeadm's own.
pub(in crate::pki) fn serial_number() -> der::Result<Vec<u8>> {
    let mut bytes = [0; 8];
    // The operating system's generator does not fail once it is seeded; if it ever does, no
    // certificate is made.
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_| der::Error::from(der::ErrorKind::Failed))?;
    let number = (u64::from_be_bytes(bytes) >> 1).max(1);
    UintRef::new(&number.to_be_bytes())?.to_der()
}

/// What Go's x509 picks for a CA key: SHA-256 for RSA and P-256, SHA-384 for P-384, SHA-512 for
/// P-521. RSA carries NULL parameters, ECDSA none.
pub(in crate::pki) fn signature_algorithm(key: Algorithm) -> der::Result<Vec<u8>> {
    let oid = |text| ObjectIdentifier::new(text)?.to_der();
    match key {
        Algorithm::Rsa(_) => sequence(&[&oid("1.2.840.113549.1.1.11")?, &wrap(Tag::Null, &[])?]),
        Algorithm::P256 => sequence(&[&oid("1.2.840.10045.4.3.2")?]),
        Algorithm::P384 => sequence(&[&oid("1.2.840.10045.4.3.3")?]),
        Algorithm::P521 => sequence(&[&oid("1.2.840.10045.4.3.4")?]),
    }
}

/// A subject as Go writes it: each organization and then the common name; several organizations are
/// one multi-valued RDN.
pub fn subject(organizations: &[&str], common_name: &str) -> Result<Vec<u8>> {
    let mut names = Vec::new();
    if !organizations.is_empty() {
        let mut values = organizations
            .iter()
            .map(|value| attribute("2.5.4.10", value))
            .collect::<der::Result<Vec<_>>>()?;
        // DER sorts the members of a SET.
        values.sort();
        let values: Vec<&[u8]> = values.iter().map(Vec::as_slice).collect();
        names.push(wrap(Tag::Set, &values)?);
    }
    names.push(wrap(Tag::Set, &[&attribute("2.5.4.3", common_name)?])?);
    let names: Vec<&[u8]> = names.iter().map(Vec::as_slice).collect();
    Ok(sequence(&names)?)
}

fn attribute(oid: &str, value: &str) -> der::Result<Vec<u8>> {
    let printable = value
        .bytes()
        .all(|byte| byte.is_ascii_alphanumeric() || b" '()+,-./:=?".contains(&byte));
    let tag = if printable {
        Tag::PrintableString
    } else {
        Tag::Utf8String
    };
    sequence(&[
        &ObjectIdentifier::new(oid)?.to_der()?,
        &wrap(tag, &[value.as_bytes()])?,
    ])
}
