//! Signing a CA anew with its own key: same key, same name and same extensions byte for byte,
//! another serial number, a later end. What the old one signed stays valid: its signatures are by
//! the same key, and Go, like OpenSSL, knows an issuer by its subject's bytes and its key
//! identifier.

use anyhow::{Context as _, Result, bail};
use der::asn1::BitStringRef;
use der::{Encode, Tag, TagNumber};
use time::{Duration, OffsetDateTime};

use super::inventory::Signer;
use super::x509::certificate::{Certificate, SignatureCheck};
use super::x509::der_parts::{elements, parts, sequence, wrap};
use super::x509::issue::{moment, serial_number, signature_algorithm, whole_seconds};

/// When a CA renewed now ends; `None` beyond what a certificate can say.
pub fn end(now: OffsetDateTime, days: u32) -> Option<OffsetDateTime> {
    whole_seconds(now)
        .checked_add(Duration::days(i64::from(days)))
        .filter(|end| end.year() <= 9999)
}

/// Whether the serial number has to stay: a CA whose own key identifier names issuer and serial
/// number (easyrsa and openssl with `authorityKeyIdentifier=issuer:always`) comes from a tool that
/// writes them into leaves too, and OpenSSL refuses a leaf whose issuer has another serial number.
/// kubeadm and cfssl never write them.
pub fn keeps_serial(old: &Certificate) -> bool {
    names_serial(old).unwrap_or(false)
}

/// Signs `ca.certificate` anew, valid to `not_after`, and proves the result.
pub fn reissue(ca: &Signer, not_after: OffsetDateTime) -> Result<Certificate> {
    let old = &ca.certificate;
    let algorithm =
        signature_algorithm(ca.key.algorithm()).context("naming the signature algorithm")?;
    let serial = if keeps_serial(old) {
        None
    } else {
        Some(new_serial(old)?)
    };
    let tbs =
        to_be_signed(old, &algorithm, serial, not_after).context("assembling a CA certificate")?;
    let signature = ca.key.sign(&tbs)?;
    let bits = BitStringRef::from_bytes(&signature)
        .and_then(|bits| bits.to_der())
        .context("encoding a signature")?;
    let der = sequence(&[&tbs, &algorithm, &bits]).context("assembling a CA certificate")?;
    let new = Certificate::from_der(&der).context("reading back the renewed CA certificate")?;
    prove(old, &new, not_after)?;
    Ok(new)
}

fn new_serial(old: &Certificate) -> Result<Vec<u8>> {
    let old = parts_of(old)?.serial;
    loop {
        let new = serial_number().context("making a serial number")?;
        if new != old {
            return Ok(new);
        }
    }
}

fn prove(old: &Certificate, new: &Certificate, not_after: OffsetDateTime) -> Result<()> {
    if new.signed_by(new) != SignatureCheck::Valid {
        bail!("the renewed CA certificate does not verify with its own key");
    }
    let same = new.is_same_authority(old)
        && new.public_key_info == old.public_key_info
        && new.subject_key_id == old.subject_key_id
        && new.not_before == old.not_before
        && parts_of(new)?.extensions == parts_of(old)?.extensions;
    if !same || new.not_after != not_after || !new.may_sign() {
        bail!("the renewed CA certificate does not say what the old one said");
    }
    if new.not_after <= old.not_after {
        bail!("the renewed CA certificate would not end later than the old one");
    }
    Ok(())
}

/// The parts of a TBSCertificate that matter here, each as it stands.
struct Parts {
    version: Vec<u8>,
    serial: Vec<u8>,
    issuer: Vec<u8>,
    not_before: Vec<u8>,
    subject: Vec<u8>,
    public_key_info: Vec<u8>,
    /// Unique identifiers, which nobody uses, and extensions.
    extensions: Vec<u8>,
}

fn parts_of(certificate: &Certificate) -> Result<Parts> {
    let outer = parts(&certificate.der)?;
    let (_, tbs) = outer.first().context("an empty certificate")?;
    let all = parts(tbs)?;
    let versioned = TagNumber(0);
    let [
        (
            Tag::ContextSpecific {
                constructed: true,
                number,
            },
            version,
        ),
        rest @ ..,
    ] = all.as_slice()
    else {
        bail!("a certificate of version 1 has no extensions, so it is no CA");
    };
    let [
        (_, serial),
        _,
        (_, issuer),
        (_, validity),
        (_, subject),
        (_, public_key_info),
        rest @ ..,
    ] = rest
    else {
        bail!("the certificate's structure could not be followed");
    };
    if *number != versioned {
        bail!("the certificate's structure could not be followed");
    }
    let (_, not_before) = parts(validity)?
        .into_iter()
        .next()
        .context("a certificate without a validity")?;
    Ok(Parts {
        version: version.clone(),
        serial: serial.clone(),
        issuer: issuer.clone(),
        not_before,
        subject: subject.clone(),
        public_key_info: public_key_info.clone(),
        extensions: rest
            .iter()
            .flat_map(|(_, part)| part.iter().copied())
            .collect(),
    })
}

fn to_be_signed(
    old: &Certificate,
    algorithm: &[u8],
    serial: Option<Vec<u8>>,
    not_after: OffsetDateTime,
) -> Result<Vec<u8>> {
    let parts = parts_of(old)?;
    let validity = sequence(&[&parts.not_before, &moment(not_after)?])?;
    Ok(sequence(&[
        &parts.version,
        serial.as_ref().unwrap_or(&parts.serial),
        algorithm,
        &parts.issuer,
        &validity,
        &parts.subject,
        &parts.public_key_info,
        &parts.extensions,
    ])?)
}

/// Whether the authority key identifier carries authorityCertSerialNumber, `[2]`.
fn names_serial(certificate: &Certificate) -> Result<bool> {
    const AUTHORITY_KEY_IDENTIFIER: &[u8] = &[0x55, 0x1d, 0x23];
    let all = parts_of(certificate)?.extensions;
    // `[3] EXPLICIT SEQUENCE OF SEQUENCE { oid, critical?, value }`; the identifiers before it are
    // never there in a CA of ours.
    let list = elements(&wrap(Tag::Sequence, &[&all])?)?;
    let Some((_, extensions)) = list.last() else {
        return Ok(false);
    };
    for (_, extension) in parts(extensions)? {
        let fields = elements(&extension)?;
        let is_identifier = fields
            .first()
            .is_some_and(|(_, oid)| oid == AUTHORITY_KEY_IDENTIFIER);
        if let (true, Some((_, value))) = (is_identifier, fields.last()) {
            let serial = TagNumber(2);
            let is_serial =
                |tag: &Tag| matches!(tag, Tag::ContextSpecific { number, .. } if *number == serial);
            return Ok(elements(value)?.iter().any(|(tag, _)| is_serial(tag)));
        }
    }
    Ok(false)
}
