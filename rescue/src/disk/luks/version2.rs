//! The header of LUKS2: a binary part and JSON, twice; the newer of the two whose checksum is right
//! counts.

use aws_lc_rs::digest;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::Value;

use super::kdf::{Digest, Hash, Kdf, Slot};
use super::{Header, LuksError};
use crate::base::escaping::escape;
use crate::disk::ReadAt;
use crate::disk::bytes::{be16, be64, has, text};

const FIRST: &[u8] = b"LUKS\xba\xbe";
const SECOND: &[u8] = b"SKUL\xba\xbe";
/// Where the second may begin, which is also how long both are.
const LENGTHS: [u64; 9] = [
    0x4000, 0x8000, 0x1_0000, 0x2_0000, 0x4_0000, 0x8_0000, 0x10_0000, 0x20_0000, 0x40_0000,
];
const BINARY: usize = 4096;
const CHECKSUM: std::ops::Range<usize> = 448..512;

pub(super) fn read(bytes: &dyn ReadAt) -> Result<Header, LuksError> {
    let copies = std::iter::once((0, FIRST)).chain(LENGTHS.iter().map(|at| (*at, SECOND)));
    let whole: Vec<(u64, String)> = copies
        .filter_map(|(at, magic)| copy(bytes, at, magic))
        .collect();
    let newest = whole.into_iter().max_by_key(|(sequence, _)| *sequence);
    let (_, json) =
        newest.ok_or_else(|| LuksError::Corrupt("no copy of it has the right checksum".into()))?;
    let json = serde_json::from_str(&json)
        .map_err(|error| LuksError::Corrupt(format!("its JSON does not parse ({error})")))?;
    header(&json)
}

/// Its number and its JSON, if it is whole.
fn copy(bytes: &dyn ReadAt, at: u64, magic: &[u8]) -> Option<(u64, String)> {
    let mut binary = vec![0; BINARY];
    bytes.read_exact_at(&mut binary, at).ok()?;
    let length = be64(&binary, 8);
    let fits = has(&binary, 0, magic)
        && be16(&binary, 6) == 2
        && LENGTHS.contains(&length)
        && be64(&binary, 256) == at;
    if !fits || text(&binary, 72, 32).as_deref() != Some("sha256") {
        return None;
    }
    let mut json = vec![0; usize::try_from(length).ok()?.checked_sub(BINARY)?];
    bytes.read_exact_at(&mut json, at + BINARY as u64).ok()?;
    let expected = binary.get(CHECKSUM)?.get(..32)?.to_vec();
    binary.get_mut(CHECKSUM)?.fill(0);
    let mut context = digest::Context::new(&digest::SHA256);
    context.update(&binary);
    context.update(&json);
    if context.finish().as_ref() != expected {
        return None;
    }
    let end = json
        .iter()
        .position(|byte| *byte == 0)
        .unwrap_or(json.len());
    Some((
        be64(&binary, 16),
        String::from_utf8(json.get(..end)?.to_vec()).ok()?,
    ))
}

/// A field of the JSON that must be there.
fn field<'a>(value: &'a Value, name: &str) -> Result<&'a Value, LuksError> {
    value
        .get(name)
        .ok_or_else(|| LuksError::Corrupt(format!("its JSON has no {name}")))
}

fn word<'a>(value: &'a Value, name: &str) -> Result<&'a str, LuksError> {
    field(value, name)?
        .as_str()
        .ok_or_else(|| LuksError::Corrupt(format!("{name} in its JSON is no text")))
}

/// Numbers of 64 bits are written as text.
fn number(value: &Value, name: &str) -> Result<u64, LuksError> {
    let field = field(value, name)?;
    let number = field.as_u64().or_else(|| field.as_str()?.parse().ok());
    number.ok_or_else(|| LuksError::Corrupt(format!("{name} in its JSON is no number")))
}

fn small<T: TryFrom<u64>>(value: &Value, name: &str) -> Result<T, LuksError> {
    T::try_from(number(value, name)?)
        .map_err(|_| LuksError::Corrupt(format!("{name} in its JSON is too large")))
}

/// A number that is only compared with a bound: past `u32` it is the largest `u32`, so that one
/// slot with such a number does not keep the others from being tried.
fn at_most_u32(value: &Value, name: &str) -> Result<u32, LuksError> {
    Ok(u32::try_from(number(value, name)?).unwrap_or(u32::MAX))
}

fn binary(value: &Value, name: &str) -> Result<Vec<u8>, LuksError> {
    BASE64
        .decode(word(value, name)?)
        .map_err(|_| LuksError::Corrupt(format!("{name} in its JSON is no base64")))
}

/// Objects under their numbers.
fn entries<'a>(value: &'a Value, name: &str) -> Result<Vec<(&'a str, &'a Value)>, LuksError> {
    let object = field(value, name)?.as_object();
    let object =
        object.ok_or_else(|| LuksError::Corrupt(format!("{name} in its JSON is no object")))?;
    Ok(object
        .iter()
        .map(|(key, value)| (key.as_str(), value))
        .collect())
}

fn header(json: &Value) -> Result<Header, LuksError> {
    let unsupported = |what: String| Err(LuksError::Unsupported(what));
    let config = field(json, "config")?;
    let needs = config
        .get("requirements")
        .and_then(|needs| needs.get("mandatory"))
        .and_then(Value::as_array);
    if let Some(needs) = needs.filter(|needs| !needs.is_empty()) {
        let words: Vec<String> = needs.iter().filter_map(Value::as_str).map(escape).collect();
        return unsupported(format!(
            "it is in a state that only cryptsetup knows ({})",
            words.join(", ")
        ));
    }
    let segments = entries(json, "segments")?;
    let [(id, segment)] = segments.as_slice() else {
        return unsupported(format!(
            "it has {} segments: encrypting it was not finished",
            segments.len()
        ));
    };
    if word(segment, "type")? != "crypt" || segment.get("integrity").is_some() {
        return unsupported(
            "it has checksums of its own (dm-integrity), or is not encrypted at all".into(),
        );
    }
    let digest = digest_of(json, id)?;
    let slots = slots(json, &digest.1)?;
    let key_length = slots.first().map_or(0, |slot| slot.key_length);
    Ok(Header {
        cipher: escape(word(segment, "encryption")?),
        key_length,
        offset: number(segment, "offset")?,
        length: if word(segment, "size")? == "dynamic" {
            None
        } else {
            Some(number(segment, "size")?)
        },
        sector_size: small(segment, "sector_size")?,
        iv_tweak: number(segment, "iv_tweak")?,
        slots,
        digest: digest.0,
    })
}

/// The digest of the segment's key, and the slots that hold that key.
fn digest_of(json: &Value, segment: &str) -> Result<(Digest, Vec<String>), LuksError> {
    let names = |digest: &Value, list: &str| -> Vec<String> {
        let list = digest.get(list).and_then(Value::as_array);
        list.into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .map(str::to_owned)
            .collect()
    };
    let digests = entries(json, "digests")?;
    let found = digests
        .iter()
        .find(|(_, digest)| names(digest, "segments").iter().any(|name| name == segment));
    let (_, found) =
        found.ok_or_else(|| LuksError::Corrupt("no digest tells the key of its data".into()))?;
    if word(found, "type")? != "pbkdf2" {
        return Err(LuksError::Unsupported(
            "its digest is of an unknown kind".into(),
        ));
    }
    let digest = Digest {
        hash: Hash::named(word(found, "hash")?)?,
        iterations: at_most_u32(found, "iterations")?,
        salt: binary(found, "salt")?,
        digest: binary(found, "digest")?,
    };
    Ok((digest, names(found, "keyslots")))
}

/// Preferred ones first, ignored ones not at all (priority 0).
fn slots(json: &Value, wanted: &[String]) -> Result<Vec<Slot>, LuksError> {
    let mut slots = Vec::new();
    for (id, value) in entries(json, "keyslots")? {
        let priority = value.get("priority").and_then(Value::as_u64).unwrap_or(1);
        if !wanted.iter().any(|name| name == id) || word(value, "type")? != "luks2" || priority == 0
        {
            continue;
        }
        slots.push((std::cmp::Reverse(priority), slot(value)?));
    }
    slots.sort_by_key(|(priority, _)| *priority);
    // The specification has no more.
    slots.truncate(32);
    Ok(slots.into_iter().map(|(_, slot)| slot).collect())
}

fn slot(value: &Value) -> Result<Slot, LuksError> {
    let (area, kdf, af) = (
        field(value, "area")?,
        field(value, "kdf")?,
        field(value, "af")?,
    );
    if word(area, "type")? != "raw" || word(af, "type")? != "luks1" {
        return Err(LuksError::Unsupported(
            "its key slots are of an unknown kind".into(),
        ));
    }
    let argon2 = |kind| -> Result<Kdf, LuksError> {
        let (rounds, memory) = (at_most_u32(kdf, "time")?, at_most_u32(kdf, "memory")?);
        Ok(Kdf::Argon2 {
            kind,
            rounds,
            memory,
            lanes: small(kdf, "cpus")?,
        })
    };
    let derived = match word(kdf, "type")? {
        "pbkdf2" => Kdf::Pbkdf2 {
            hash: Hash::named(word(kdf, "hash")?)?,
            iterations: at_most_u32(kdf, "iterations")?,
        },
        "argon2i" => argon2(argon2::Algorithm::Argon2i)?,
        "argon2id" => argon2(argon2::Algorithm::Argon2id)?,
        other => {
            return Err(LuksError::Unsupported(format!(
                "its key slots are derived with {}",
                escape(other)
            )));
        }
    };
    Ok(Slot {
        kdf: derived,
        salt: binary(kdf, "salt")?,
        cipher: escape(word(area, "encryption")?),
        area_key_length: small(area, "key_size")?,
        offset: number(area, "offset")?,
        stripes: small(af, "stripes")?,
        hash: Hash::named(word(af, "hash")?)?,
        key_length: small(value, "key_size")?,
    })
}
