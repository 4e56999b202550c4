//! Small DER building blocks. Names and SANs must keep their exact bytes (Go compares issuer and
//! subject bytewise), which typed encoders do not promise, so raw parts are joined under headers
//! written by the `der` crate.

use der::{Decode, Encode, Header, Length, Reader, SliceReader, Tag, TagNumber};

/// `tag` over `parts` as they are.
pub fn wrap(tag: Tag, parts: &[&[u8]]) -> der::Result<Vec<u8>> {
    let length = parts.iter().map(|part| part.len()).sum::<usize>();
    let mut bytes = Header::new(tag, Length::try_from(length)?).to_der()?;
    for part in parts {
        bytes.extend_from_slice(part);
    }
    Ok(bytes)
}

/// A SEQUENCE of encoded parts.
pub fn sequence(parts: &[&[u8]]) -> der::Result<Vec<u8>> {
    wrap(Tag::Sequence, parts)
}

/// `[number] EXPLICIT` around one encoded part.
pub fn explicit(number: u32, part: &[u8]) -> der::Result<Vec<u8>> {
    wrap(
        Tag::ContextSpecific {
            constructed: true,
            number: TagNumber(number),
        },
        &[part],
    )
}

/// The contents of each element directly inside one SEQUENCE, with its tag; what follows the
/// SEQUENCE is ignored.
pub fn elements(bytes: &[u8]) -> der::Result<Vec<(Tag, Vec<u8>)>> {
    let mut outer = SliceReader::new(bytes)?;
    let header = Header::decode(&mut outer)?;
    header.tag().assert_eq(Tag::Sequence)?;
    let inner = outer.read_slice(header.length())?;
    let mut reader = SliceReader::new(inner)?;
    let mut found = Vec::new();
    while !reader.is_finished() {
        let header = Header::decode(&mut reader)?;
        found.push((header.tag(), reader.read_slice(header.length())?.to_vec()));
    }
    Ok(found)
}

/// Each element directly inside one SEQUENCE, with its tag, header and contents as they stand.
pub fn parts(bytes: &[u8]) -> der::Result<Vec<(Tag, Vec<u8>)>> {
    elements(bytes)?
        .into_iter()
        .map(|(tag, contents)| Ok((tag, wrap(tag, &[&contents])?)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn joins_and_takes_apart() {
        let long = wrap(Tag::OctetString, &[&[9; 300]]).unwrap();
        let both = sequence(&[&[0x02, 0x01, 0x05], &long]).unwrap();
        let parts = elements(&both).unwrap();
        assert_eq!(parts[0], (Tag::Integer, vec![5]));
        assert_eq!(parts[1], (Tag::OctetString, vec![9; 300]));
        assert_eq!(super::parts(&both).unwrap()[1], (Tag::OctetString, long));
        assert_eq!(
            explicit(3, &[0x05, 0x00]).unwrap(),
            [0xa3, 0x02, 0x05, 0x00]
        );
        assert!(elements(&both[..20]).is_err());
    }
}
