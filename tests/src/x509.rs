//! Certificates taken apart into their fields, byte for byte, to be compared one with another. A
//! reader of DER of its own: a second opinion must not share the product's.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, ensure};
use base64::Engine as _;

/// Fields of a certificate by name. Everything but serial number, public key, signature and
/// NotAfter, which differ between any two. Values are hexadecimal DER where they are not readable
/// by themselves.
pub type Fields = BTreeMap<String, String>;

/// Names of extensions that kubeadm's certificates have.
const EXTENSIONS: [(&str, &str); 6] = [
    ("551d0f", "keyUsage"),
    ("551d25", "extendedKeyUsage"),
    ("551d13", "basicConstraints"),
    ("551d0e", "subjectKeyIdentifier"),
    ("551d23", "authorityKeyIdentifier"),
    ("551d11", "subjectAltName"),
];

/// One DER element: its tag, its whole encoding, its content.
#[derive(Clone, Copy)]
struct Element<'a> {
    tag: u8,
    whole: &'a [u8],
    content: &'a [u8],
}

/// The labels of the PEM blocks in a file, in order.
pub fn labels(pem: &str) -> Vec<&str> {
    pem.lines()
        .filter_map(|line| line.strip_prefix("-----BEGIN ")?.strip_suffix("-----"))
        .collect()
}

/// The first certificate of a PEM file, DER.
pub fn first_certificate(pem: &str) -> Result<Vec<u8>> {
    let (_, rest) = pem
        .split_once("-----BEGIN CERTIFICATE-----")
        .context("no certificate")?;
    let (body, _) = rest
        .split_once("-----END CERTIFICATE-----")
        .context("a certificate without an end")?;
    let body: String = body.split_whitespace().collect();
    base64::engine::general_purpose::STANDARD
        .decode(body)
        .context("decoding a certificate")
}

/// The value of `FIELD:` in a kubeconfig with exactly one of it, base64 undone.
pub fn inline(kubeconfig: &str, field: &str) -> Result<String> {
    let found = kubeconfig
        .lines()
        .find_map(|line| line.trim().strip_prefix(field)?.strip_prefix(':'));
    let value = found
        .with_context(|| format!("no {field} in the kubeconfig"))?
        .trim();
    Ok(String::from_utf8(
        base64::engine::general_purpose::STANDARD.decode(value)?,
    )?)
}

/// The fields of a certificate in PEM.
pub fn fields(pem: &str) -> Result<Fields> {
    let der = first_certificate(pem)?;
    let outer = only(elements(one(&der)?.content)?, 3)?;
    let tbs = elements(outer[0].content)?;
    ensure!(
        tbs.len() >= 7 && tbs[0].tag == 0xa0,
        "not an X.509 v3 certificate"
    );
    let [
        version,
        _serial,
        algorithm,
        issuer,
        validity,
        subject,
        key,
        rest @ ..,
    ] = tbs.as_slice()
    else {
        anyhow::bail!("too few fields");
    };
    let dates = only(elements(validity.content)?, 2)?;
    let key = only(elements(key.content)?, 2)?;
    let mut fields = Fields::new();
    let mut put = |name: &str, value: String| fields.insert(name.to_owned(), value);
    put("version", hex(version.content));
    put("signature algorithm", hex(algorithm.whole));
    put("signature algorithm, outer", hex(outer[1].whole));
    put("issuer", hex(issuer.whole));
    put("subject", hex(subject.whole));
    put("notBefore", String::from_utf8(dates[0].content.to_vec())?);
    put("public key algorithm", hex(key[0].whole));
    put("public key size", key_size(&key[1])?);
    let mut order = Vec::new();
    for extension in rest.iter().filter(|field| field.tag == 0xa3) {
        for extension in elements(one(extension.content)?.content)? {
            let parts = elements(extension.content)?;
            let (oid, value) = (
                hex(parts[0].content),
                parts.last().context("an extension without a value")?,
            );
            let name = EXTENSIONS
                .iter()
                .find(|(known, _)| *known == oid)
                .map_or(oid.as_str(), |(_, name)| name);
            let critical = if parts.len() == 3 { "critical " } else { "" };
            put(name, format!("{critical}{}", hex(value.content)));
            order.push(name.to_owned());
        }
    }
    put("order of extensions", order.join(" "));
    Ok(fields)
}

/// Length of an RSA modulus, or of the encoded point, in bits.
fn key_size(bits: &Element<'_>) -> Result<String> {
    let key = bits.content.get(1..).context("an empty key")?;
    let modulus = one(key)
        .ok()
        .filter(|key| key.tag == 0x30)
        .map(|key| elements(key.content))
        .transpose()?;
    let bytes = modulus.map_or(key, |parts| parts[0].content);
    Ok((bytes.iter().skip_while(|byte| **byte == 0).count() * 8).to_string())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn one(der: &[u8]) -> Result<Element<'_>> {
    Ok(only(elements(der)?, 1)?[0])
}

fn only(elements: Vec<Element<'_>>, count: usize) -> Result<Vec<Element<'_>>> {
    ensure!(
        elements.len() == count,
        "{} DER elements where {count} belong",
        elements.len()
    );
    Ok(elements)
}

fn elements(mut der: &[u8]) -> Result<Vec<Element<'_>>> {
    let mut all = Vec::new();
    while let [tag, first, rest @ ..] = der {
        let (head, length) = match first {
            0..=0x7f => (2, usize::from(*first)),
            0x81..=0x84 => {
                let digits = rest
                    .get(..usize::from(first & 0x7f))
                    .context("a cut-off length")?;
                (
                    2 + digits.len(),
                    digits
                        .iter()
                        .fold(0, |length, digit| length << 8 | usize::from(*digit)),
                )
            }
            _ => anyhow::bail!("not DER"),
        };
        let whole = der.get(..head + length).context("a cut-off DER element")?;
        all.push(Element {
            tag: *tag,
            whole,
            content: &whole[head..],
        });
        der = &der[head + length..];
    }
    ensure!(der.is_empty(), "a stray byte after DER");
    Ok(all)
}
